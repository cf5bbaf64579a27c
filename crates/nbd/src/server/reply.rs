//! Replies, byte by byte, in the three forms that a client may have negotiated.

use super::ReadPiece;
use super::handshake::cut;
use crate::output::Output;
use crate::wire::{self, Errno, Mode, allocation, changed, chunk};
use proto::limits::BLOCK;
use proto::message::{BlockState, Run};

/// Most extents in one block status; the protocol allows 2^20.
const EXTENTS_MAX: usize = 1 << 16;

/// A run of one state in a block status, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub len: u64,
    pub flags: u32,
}

fn simple(out: &mut Output, cookie: u64, error: u32) {
    out.u32(wire::SIMPLE_REPLY);
    out.u32(error);
    out.u64(cookie);
}

/// Head of a structured or extended chunk. `offset` is the request's.
fn chunk(out: &mut Output, mode: Mode, done: bool, kind: u16, cookie: u64, offset: u64, len: u32) {
    out.u32(if mode == Mode::Extended { wire::EXTENDED_CHUNK } else { wire::STRUCTURED_CHUNK });
    out.u16(if done { chunk::DONE } else { 0 });
    out.u16(kind);
    out.u64(cookie);
    if mode == Mode::Extended {
        out.u64(offset);
        out.u64(u64::from(len));
    } else {
        out.u32(len);
    }
}

/// Success of anything but a read or a status. Simple replies stay allowed beside structured ones.
pub(crate) fn success(out: &mut Output, mode: Mode, cookie: u64, offset: u64) {
    if mode == Mode::Extended {
        chunk(out, mode, true, chunk::NONE, cookie, offset, 0);
    } else {
        simple(out, cookie, 0);
    }
}

/// Success of a read of nothing.
pub(crate) fn success_of_read(out: &mut Output, mode: Mode, cookie: u64, offset: u64) {
    if mode == Mode::Simple {
        simple(out, cookie, 0);
    } else {
        chunk(out, mode, true, chunk::NONE, cookie, offset, 0);
    }
}

/// An error; with its text where the form has room for it.
pub(crate) fn failure(out: &mut Output, mode: Mode, cookie: u64, offset: u64, errno: Errno, why: &str) {
    if mode == Mode::Simple {
        return simple(out, cookie, errno.code());
    }
    let why = cut(why).as_bytes();
    let len = u16::try_from(why.len()).expect("cut to 4,096 bytes");
    chunk(out, mode, true, chunk::ERROR, cookie, offset, 6 + u32::from(len));
    out.u32(errno.code());
    out.u16(len);
    out.put(why);
}

/// The data of a read. `whole`: in one chunk. The pieces are not empty and cover the request.
pub(crate) fn read(
    out: &mut Output,
    mode: Mode,
    cookie: u64,
    offset: u64,
    whole: bool,
    pieces: &[ReadPiece],
) {
    if mode == Mode::Simple {
        simple(out, cookie, 0);
        pieces.iter().for_each(|p| p.send(out));
        return;
    }
    let all_alike = pieces.iter().all(|p| p.is_zero() == pieces[0].is_zero());
    let one_chunk = whole || all_alike;
    let mut rest = pieces;
    let mut at = offset;
    while !rest.is_empty() {
        let zero = if one_chunk { all_alike && rest[0].is_zero() } else { rest[0].is_zero() };
        let n = if one_chunk {
            rest.len()
        } else {
            rest.iter().position(|p| p.is_zero() != zero).unwrap_or(rest.len())
        };
        let (now, later) = rest.split_at(n);
        let len: u32 = now.iter().map(ReadPiece::len).sum();
        let done = later.is_empty();
        if zero {
            chunk(out, mode, done, chunk::OFFSET_HOLE, cookie, offset, 12);
            out.u64(at);
            out.u32(len);
        } else {
            chunk(out, mode, done, chunk::OFFSET_DATA, cookie, offset, 8 + len);
            out.u64(at);
            now.iter().for_each(|p| p.send(out));
        }
        at += u64::from(len);
        rest = later;
    }
}

/// The map as extents of `base:allocation`, or of `blockd:changed:` (`changes`): runs begin with the block in which the request begins (`skip`
/// bytes before it), and end at `limit` bytes. Nothing that reads as zero takes space, so hole = zero.
pub(crate) fn extents(skip: u64, limit: u64, one: bool, changes: bool, runs: &[Run]) -> Vec<Extent> {
    let mut list: Vec<Extent> = Vec::new();
    let (mut skip, mut left) = (skip, limit);
    for run in runs {
        let bytes = u64::from(run.count) * BLOCK as u64;
        let skipped = skip.min(bytes);
        skip -= skipped;
        let len = (bytes - skipped).min(left);
        if len == 0 {
            continue;
        }
        let flags = match (run.state, changes) {
            (BlockState::Absent, true) | (BlockState::Data | BlockState::Bad, false) => 0,
            (_, true) => changed::CHANGED,
            (BlockState::Zero | BlockState::Absent, false) => allocation::HOLE | allocation::ZERO,
        };
        let full = one && !list.is_empty() || list.len() == EXTENTS_MAX;
        match list.last_mut() {
            // Compact extents have 32 bits.
            Some(last) if last.flags == flags && last.len + len <= u64::from(u32::MAX) => last.len += len,
            _ if full => break,
            _ => list.push(Extent { len, flags }),
        }
        left -= len;
    }
    list
}

/// A block status in one context (its id); `last`: no other follows.
pub(crate) fn status(
    out: &mut Output,
    mode: Mode,
    cookie: u64,
    offset: u64,
    (id, last): (u32, bool),
    extents: &[Extent],
) {
    let count = u32::try_from(extents.len()).expect("at most EXTENTS_MAX");
    if mode == Mode::Extended {
        chunk(out, mode, last, chunk::BLOCK_STATUS_EXT, cookie, offset, 8 + 16 * count);
        out.u32(id);
        out.u32(count);
        for e in extents {
            out.u64(e.len);
            out.u64(u64::from(e.flags));
        }
    } else {
        chunk(out, mode, last, chunk::BLOCK_STATUS, cookie, offset, 4 + 8 * count);
        out.u32(id);
        for e in extents {
            out.u32(u32::try_from(e.len).expect("joined to at most 32 bits"));
            out.u32(e.flags);
        }
    }
}

impl ReadPiece {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u32 {
        match self {
            ReadPiece::Zero { bytes } => *bytes,
            ReadPiece::Data { len, .. } => *len,
        }
    }
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    fn is_zero(&self) -> bool {
        matches!(self, ReadPiece::Zero { .. })
    }
    fn send(&self, out: &mut Output) {
        match self {
            ReadPiece::Zero { bytes } => out.zeroes(*bytes as usize),
            ReadPiece::Data { payload, skip, len } => {
                out.data(payload.clone(), *skip as usize, *len as usize);
            }
        }
    }
}
