//! The client's half of the transmission phase: requests out, replies in any order, put together again.

use super::{Broken, Command, Event, Extent, Negotiated, Outcome};
use crate::gather::{Gather, discard};
use crate::output::Output;
use crate::wire::{self, Errno, Mode, Reader, cflag, chunk, cmd};
use proto::Map;
use std::collections::VecDeque;

/// Most of a chunk that is collected before it is looked at, bytes: 2^20 extents of 16 bytes.
const GATHER_MAX: u64 = 8 + (16 << 20);

enum State {
    Magic,
    Simple,
    Chunk,
    /// Collecting a chunk other than data.
    Collect {
        head: Head,
    },
    /// The offset in front of a chunk's data.
    DataOffset {
        head: Head,
    },
    /// Data of a read.
    Data {
        cookie: u64,
        at: usize,
        left: usize,
        done: bool,
    },
    /// Dropping a chunk that we need not know.
    Skip {
        cookie: u64,
        left: u64,
        done: bool,
    },
}

#[derive(Clone, Copy)]
struct Head {
    done: bool,
    kind: u16,
    cookie: u64,
    len: u64,
}

enum Kind {
    Plain,
    Status { extents: Vec<Extent> },
    Read { data: Vec<u8>, got: Vec<(usize, usize)> },
}

struct Pending {
    offset: u64,
    kind: Kind,
    error: Option<Errno>,
}

pub(super) struct Transmission {
    state: State,
    gather: Gather,
    mode: Mode,
    context: Option<u32>,
    pending: Map<u64, Pending>,
    next: u64,
}

type Progress = Result<(), Broken>;

impl Transmission {
    pub fn new(n: &Negotiated) -> Transmission {
        Transmission {
            state: State::Magic,
            gather: Gather::default(),
            mode: n.mode,
            context: n.context,
            pending: Map::default(),
            next: 1,
        }
    }
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    pub fn submit(&mut self, command: Command<'_>, out: &mut Output) -> u64 {
        let cookie = self.next;
        self.next += 1;
        let flag = |on, bit| if on { bit } else { 0 };
        let mut kind = Kind::Plain;
        let (code, flags, offset, len, payload): (u16, u16, u64, u64, &[u8]) = match command {
            Command::Read { offset, len, whole } => {
                kind = Kind::Read { data: vec![0; len as usize], got: Vec::new() };
                (cmd::READ, flag(whole, cflag::DF), offset, u64::from(len), &[])
            }
            Command::Write { offset, data, fua } => {
                let marked = flag(self.mode == Mode::Extended, cflag::PAYLOAD_LEN);
                (cmd::WRITE, flag(fua, cflag::FUA) | marked, offset, data.len() as u64, data)
            }
            Command::Flush => (cmd::FLUSH, 0, 0, 0, &[]),
            Command::Trim { offset, len, fua } => (cmd::TRIM, flag(fua, cflag::FUA), offset, len, &[]),
            Command::WriteZeroes { offset, len, fua, no_hole, fast } => {
                let flags =
                    flag(fua, cflag::FUA) | flag(no_hole, cflag::NO_HOLE) | flag(fast, cflag::FAST_ZERO);
                (cmd::WRITE_ZEROES, flags, offset, len, &[])
            }
            Command::Cache { offset, len } => (cmd::CACHE, 0, offset, len, &[]),
            Command::Status { offset, len, one } => {
                kind = Kind::Status { extents: Vec::new() };
                (cmd::BLOCK_STATUS, flag(one, cflag::REQ_ONE), offset, len, &[])
            }
        };
        self.pending.insert(cookie, Pending { offset, kind, error: None });
        self.send(out, code, flags, cookie, offset, len);
        out.put(payload);
        cookie
    }

    pub fn disconnect(&mut self, out: &mut Output) {
        self.send(out, cmd::DISC, 0, 0, 0, 0);
    }

    /// Lengths beyond 32 bits need extended headers; asking for more without them is the caller's bug.
    fn send(&self, out: &mut Output, command: u16, flags: u16, cookie: u64, offset: u64, len: u64) {
        let extended = self.mode == Mode::Extended;
        out.u32(if extended { wire::EXTENDED_REQUEST } else { wire::COMPACT_REQUEST });
        out.u16(flags);
        out.u16(command);
        out.u64(cookie);
        out.u64(offset);
        if extended {
            out.u64(len);
        } else {
            out.u32(u32::try_from(len).expect("compact requests have 32-bit lengths"));
        }
    }

    /// Reads from the front of `input` up to the end of one header or of one piece of data.
    pub fn step(&mut self, input: &mut &[u8], events: &mut VecDeque<Event>) -> Progress {
        match &mut self.state {
            State::Magic => {
                if self.gather.fill(4, input) {
                    self.magic()?;
                }
                Ok(())
            }
            State::Simple => {
                if !self.gather.fill(wire::SIMPLE_REPLY_LEN, input) {
                    return Ok(());
                }
                let bytes = self.gather.take();
                self.simple(&bytes, events)
            }
            State::Chunk => {
                let extended = self.mode == Mode::Extended;
                let need = if extended { wire::EXTENDED_CHUNK_LEN } else { wire::STRUCTURED_CHUNK_LEN };
                if !self.gather.fill(need, input) {
                    return Ok(());
                }
                let bytes = self.gather.take();
                self.chunk(&bytes, events)
            }
            State::Collect { head } => {
                let head = *head;
                let need = usize::try_from(head.len).expect("bounded by GATHER_MAX");
                if !self.gather.fill(need, input) {
                    return Ok(());
                }
                let bytes = self.gather.take();
                self.collected(head, &bytes)?;
                self.chunk_over(head.cookie, head.done, events)
            }
            State::DataOffset { head } => {
                let head = *head;
                if !self.gather.fill(8, input) {
                    return Ok(());
                }
                let bytes = self.gather.take();
                let offset = Reader(&bytes).u64().expect("gathered");
                let len = head.len - 8;
                let at = self.covers(head, offset, len)?;
                let left = usize::try_from(len).expect("within a read of ours");
                self.state = State::Data { cookie: head.cookie, at, left, done: head.done };
                Ok(())
            }
            &mut State::Data { cookie, at, left, done } => self.data(cookie, at, left, done, input, events),
            State::Skip { cookie, left, done } => {
                let (cookie, done) = (*cookie, *done);
                if discard(left, input) { self.chunk_over(cookie, done, events) } else { Ok(()) }
            }
        }
    }

    fn magic(&mut self) -> Progress {
        let magic = Reader(self.gather.bytes()).u32().expect("gathered");
        self.state = match (magic, self.mode) {
            (wire::SIMPLE_REPLY, Mode::Simple | Mode::Structured) => State::Simple,
            (wire::STRUCTURED_CHUNK, Mode::Structured) | (wire::EXTENDED_CHUNK, Mode::Extended) => {
                State::Chunk
            }
            _ => return Err(Broken::ReplyMagic(magic)),
        };
        Ok(())
    }

    fn simple(&mut self, bytes: &[u8], events: &mut VecDeque<Event>) -> Progress {
        let mut r = Reader(&bytes[4..]);
        let (error, cookie) = (r.u32().expect("gathered"), r.u64().expect("gathered"));
        self.state = State::Magic;
        let mode = self.mode;
        let p = self.pending.get_mut(&cookie).ok_or(Broken::Cookie(cookie))?;
        if error != 0 {
            p.error = Some(Errno::from_code(error));
        }
        match &mut p.kind {
            // With structured replies a read is never answered simply, a status only with an error.
            Kind::Read { .. } if mode != Mode::Simple => return Err(Broken::Incomplete(cookie)),
            Kind::Status { .. } if error == 0 => return Err(Broken::Incomplete(cookie)),
            Kind::Read { data, got } if error == 0 => {
                let left = data.len();
                got.push((0, left));
                if left > 0 {
                    self.state = State::Data { cookie, at: 0, left, done: true };
                    return Ok(());
                }
            }
            _ => {}
        }
        self.complete(cookie, events)
    }

    fn chunk(&mut self, bytes: &[u8], events: &mut VecDeque<Event>) -> Progress {
        let mut r = Reader(&bytes[4..]);
        let (flags, kind) = (r.u16().expect("gathered"), r.u16().expect("gathered"));
        let cookie = r.u64().expect("gathered");
        let p = self.pending.get(&cookie).ok_or(Broken::Cookie(cookie))?;
        let len = if self.mode == Mode::Extended {
            if r.u64() != Some(p.offset) {
                return Err(Broken::Cookie(cookie));
            }
            r.u64().expect("gathered")
        } else {
            u64::from(r.u32().expect("gathered"))
        };
        let head = Head { done: flags & chunk::DONE != 0, kind, cookie, len };
        let wrong = Err(Broken::Chunk { kind, len });
        self.state = match kind {
            chunk::NONE if len == 0 && head.done => return self.chunk_over(cookie, true, events),
            chunk::OFFSET_DATA if len > 8 => State::DataOffset { head },
            chunk::OFFSET_HOLE if len == 12 => State::Collect { head },
            chunk::BLOCK_STATUS if self.mode == Mode::Structured && len <= GATHER_MAX && len > 4 => {
                State::Collect { head }
            }
            chunk::BLOCK_STATUS_EXT if self.mode == Mode::Extended && len <= GATHER_MAX && len > 8 => {
                State::Collect { head }
            }
            chunk::ERROR | chunk::ERROR_OFFSET if (6..=1 << 16).contains(&len) => State::Collect { head },
            k if k & chunk::IS_ERROR != 0 && len > 0 => {
                let p = self.pending.get_mut(&cookie).expect("found above");
                p.error = p.error.or(Some(Errno::Invalid));
                State::Skip { cookie, left: len, done: head.done }
            }
            _ => return wrong,
        };
        Ok(())
    }

    /// Notes that a chunk speaks of `offset .. offset + len`; returns where in the read that lies.
    fn covers(&mut self, head: Head, offset: u64, len: u64) -> Result<usize, Broken> {
        let wrong = Broken::Chunk { kind: head.kind, len: head.len };
        let p = self.pending.get_mut(&head.cookie).ok_or(wrong)?;
        let Kind::Read { data, got } = &mut p.kind else { return Err(wrong) };
        let at = offset.checked_sub(p.offset).and_then(|at| usize::try_from(at).ok()).ok_or(wrong)?;
        let end = usize::try_from(len).ok().and_then(|len| at.checked_add(len)).ok_or(wrong)?;
        if end > data.len() || got.iter().any(|&(from, to)| at < to && from < end) {
            return Err(wrong);
        }
        // Chunks mostly come in order: they join.
        match got.last_mut() {
            Some(last) if last.1 == at => last.1 = end,
            _ => got.push((at, end)),
        }
        Ok(at)
    }

    fn data(
        &mut self,
        cookie: u64,
        at: usize,
        left: usize,
        done: bool,
        input: &mut &[u8],
        events: &mut VecDeque<Event>,
    ) -> Progress {
        let n = left.min(input.len());
        let p = self.pending.get_mut(&cookie).ok_or(Broken::Cookie(cookie))?;
        let Kind::Read { data, .. } = &mut p.kind else { return Err(Broken::Cookie(cookie)) };
        data[at..at + n].copy_from_slice(&input[..n]);
        *input = &input[n..];
        if n < left {
            self.state = State::Data { cookie, at: at + n, left: left - n, done };
            return Ok(());
        }
        self.chunk_over(cookie, done, events)
    }

    fn collected(&mut self, head: Head, bytes: &[u8]) -> Progress {
        let wrong = Broken::Chunk { kind: head.kind, len: head.len };
        let mut r = Reader(bytes);
        match head.kind {
            chunk::OFFSET_HOLE => {
                let (offset, len) = (r.u64().ok_or(wrong)?, r.u32().ok_or(wrong)?);
                self.covers(head, offset, u64::from(len)).map(|_| ()) // the buffer is zero already
            }
            chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT => self.extents(head, r).ok_or(wrong),
            _ => {
                let errno = Errno::from_code(r.u32().ok_or(wrong)?);
                let p = self.pending.get_mut(&head.cookie).ok_or(wrong)?;
                p.error = p.error.or(Some(errno));
                Ok(())
            }
        }
    }

    fn extents(&mut self, head: Head, mut r: Reader<'_>) -> Option<()> {
        let wide = head.kind == chunk::BLOCK_STATUS_EXT;
        let p = self.pending.get_mut(&head.cookie)?;
        let Kind::Status { extents } = &mut p.kind else { return None };
        if Some(r.u32()?) != self.context || !extents.is_empty() {
            return None;
        }
        let count = if wide { Some(r.u32()?) } else { None };
        while !r.is_empty() {
            let (len, flags) =
                if wide { (r.u64()?, r.u64()?) } else { (u64::from(r.u32()?), u64::from(r.u32()?)) };
            if len == 0 {
                return None;
            }
            extents.push(Extent { len, flags });
        }
        (count.is_none_or(|c| c as usize == extents.len())).then_some(())
    }

    fn chunk_over(&mut self, cookie: u64, done: bool, events: &mut VecDeque<Event>) -> Progress {
        self.state = State::Magic;
        if done { self.complete(cookie, events) } else { Ok(()) }
    }

    fn complete(&mut self, cookie: u64, events: &mut VecDeque<Event>) -> Progress {
        let p = self.pending.remove(&cookie).ok_or(Broken::Cookie(cookie))?;
        let result = match (p.error, p.kind) {
            (Some(errno), _) => Err(errno),
            (None, Kind::Plain) => Ok(Outcome::Done),
            (None, Kind::Read { data, got }) => {
                if got.iter().map(|&(from, to)| to - from).sum::<usize>() != data.len() {
                    return Err(Broken::Incomplete(cookie));
                }
                Ok(Outcome::Read(data))
            }
            (None, Kind::Status { extents }) if !extents.is_empty() => Ok(Outcome::Status(extents)),
            (None, Kind::Status { .. }) => return Err(Broken::Incomplete(cookie)),
        };
        events.push_back(Event::Completed { cookie, result });
        Ok(())
    }
}
