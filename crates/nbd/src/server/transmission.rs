//! The server's half of the transmission phase: requests in, operations out, replies in any order.
//!
//! Invariants: an operation handed out is answered exactly once; the bytes in flight exceed `CREDIT_BYTES` by
//! at most one request; after a rejected request the stream is in sync; a success is never sent for a request
//! that the owner has not completed.

use super::handshake::{Agreed, Context};
use super::reply;
use super::request::{Admitted, Header, Rejected, Rules};
use super::{Ask, Close, Op, ReadPiece, RequestId, Violation};
use crate::export::Export;
use crate::gather::{Gather, discard};
use crate::output::Output;
use crate::wire::{Errno, Mode};
use proto::limits::{BLOCK, EXPORT_CREDIT_BYTES, EXPORT_CREDIT_REQUESTS};
use proto::message::Run;
use proto::{Map, PageBuf};
use std::collections::VecDeque;

/// A block status looks at no more than this at once, bytes: the rest is asked for again.
const STATUS_MAX: u64 = 1 << 30;

enum State {
    Header,
    /// Filling a write's payload.
    Payload {
        write: Write,
        buffer: PageBuf,
        at: usize,
        end: usize,
    },
    /// Dropping the payload of a request that was rejected.
    Discard {
        left: u64,
        header: Header,
        rejected: Rejected,
    },
    Closed,
}

struct Write {
    cookie: u64,
    offset: u64,
    len: u32,
    fua: bool,
}

/// What a reply must know of its request.
#[derive(Clone, Copy)]
struct Pending {
    cookie: u64,
    offset: u64,
    kind: Kind,
    /// Bytes of credit held.
    cost: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Read {
        len: u32,
        whole: bool,
    },
    /// `context`: the one that is being looked up.
    Status {
        len: u64,
        one: bool,
        context: usize,
    },
    /// Only success or failure.
    Plain,
}

pub(crate) struct Transmission {
    state: State,
    gather: Gather,
    mode: Mode,
    contexts: Vec<Context>,
    export: Export,
    pending: Map<RequestId, Pending>,
    next: u64,
    in_flight: usize,
    /// No further request is read.
    paused: bool,
    /// Pieces of the read that is being answered; kept for its capacity.
    pieces: Vec<ReadPiece>,
}

impl Transmission {
    pub fn new(agreed: Agreed) -> Transmission {
        Transmission {
            state: State::Header,
            gather: Gather::default(),
            mode: agreed.mode,
            contexts: agreed.contexts,
            export: agreed.export,
            pending: Map::default(),
            next: 0,
            in_flight: 0,
            paused: false,
            pieces: Vec::new(),
        }
    }
    /// Between requests only while there is credit; within one always, since its memory is already held.
    pub fn wants_input(&self, out: &Output) -> bool {
        match self.state {
            State::Header => {
                !self.paused
                    && self.in_flight + out.len() < EXPORT_CREDIT_BYTES
                    && self.pending.len() < EXPORT_CREDIT_REQUESTS
            }
            State::Payload { .. } | State::Discard { .. } => true,
            State::Closed => false,
        }
    }
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }
    /// Between two requests, and all are answered.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && matches!(self.state, State::Header)
    }
    /// Requests from now on are judged by the new size.
    pub fn resize(&mut self, size: u64) {
        self.export.size = size;
    }
    pub fn export(&self) -> &Export {
        &self.export
    }
    /// Reads no further; replies to what is in flight still go out.
    pub fn close(&mut self) {
        self.state = State::Closed;
    }

    /// Reads from the front of `input` up to the end of one header or payload.
    pub fn step(&mut self, input: &mut &[u8], out: &mut Output, asks: &mut VecDeque<Ask>) -> Option<Close> {
        match &mut self.state {
            State::Header => {
                if !self.gather.fill(Header::size(self.mode), input) {
                    return None;
                }
                let header = Header::decode(self.mode, self.gather.bytes());
                self.gather.clear();
                match header {
                    Some(h) => self.header(h, out, asks),
                    None => Some(Close::Violation(Violation::RequestMagic)),
                }
            }
            State::Payload { buffer, at, end, .. } => {
                let n = (*end - *at).min(input.len());
                buffer.bytes_mut()[*at..*at + n].copy_from_slice(&input[..n]);
                *input = &input[n..];
                *at += n;
                if at == end {
                    self.written(asks);
                }
                None
            }
            State::Discard { left, header, rejected } => {
                let (header, rejected) = (*header, *rejected);
                if discard(left, input) {
                    self.state = State::Header;
                    self.reject(&header, rejected, out);
                }
                None
            }
            State::Closed => None,
        }
    }

    fn header(&mut self, h: Header, out: &mut Output, asks: &mut VecDeque<Ask>) -> Option<Close> {
        let rules = Rules { mode: self.mode, contexts: !self.contexts.is_empty(), export: &self.export };
        let verdict = rules.admit(&h);
        let payload = h.payload(self.mode);
        match verdict {
            Ok(Admitted::Disconnect) => return Some(Close::Disconnected),
            Ok(Admitted::Write { offset, len, fua }) => {
                self.begin_write(Write { cookie: h.cookie, offset, len, fua });
            }
            Ok(admitted) => {
                assert!(payload == 0, "only a write with data is admitted with a payload");
                self.admit(h.cookie, admitted, out, asks);
            }
            Err(rejected) if payload > 0 => {
                if payload > u64::from(u32::MAX) {
                    return Some(Close::Violation(Violation::PayloadLength(payload)));
                }
                self.state = State::Discard { left: payload, header: h, rejected };
            }
            Err(rejected) => self.reject(&h, rejected, out),
        }
        None
    }

    /// The payload is placed as the volume wants it: whole blocks, the first byte at its offset in its block.
    fn begin_write(&mut self, write: Write) {
        let at = in_block(write.offset);
        let end = at + write.len as usize;
        let mut buffer = PageBuf::for_overwrite(end.div_ceil(BLOCK));
        buffer.bytes_mut()[..at].fill(0);
        buffer.bytes_mut()[end..].fill(0);
        self.in_flight += write.len as usize;
        self.state = State::Payload { write, buffer, at, end };
    }

    fn written(&mut self, asks: &mut VecDeque<Ask>) {
        let state = std::mem::replace(&mut self.state, State::Header);
        let State::Payload { write, buffer, .. } = state else { unreachable!("called for a payload") };
        let Write { cookie, offset, len, fua } = write;
        let pending = Pending { cookie, offset, kind: Kind::Plain, cost: len as usize };
        let op = Op::Write { offset, len, data: buffer.freeze(), fua };
        self.ask(pending, op, asks);
    }

    fn admit(&mut self, cookie: u64, admitted: Admitted, out: &mut Output, asks: &mut VecDeque<Ask>) {
        let plain = |offset| Pending { cookie, offset, kind: Kind::Plain, cost: 0 };
        let (pending, op) = match admitted {
            Admitted::Read { offset, len: 0, .. } => {
                return reply::success_of_read(out, self.mode, cookie, offset);
            }
            Admitted::Read { offset, len, whole } => {
                let cost = len as usize;
                self.in_flight += cost;
                (Pending { cookie, offset, kind: Kind::Read { len, whole }, cost }, Op::Read { offset, len })
            }
            Admitted::Status { offset, len, one } => {
                let len = len.min(STATUS_MAX);
                let kind = Kind::Status { len, one, context: 0 };
                (Pending { cookie, offset, kind, cost: 0 }, self.look_up(0, offset, len))
            }
            Admitted::Flush => (plain(0), Op::Flush),
            Admitted::Trim { offset, len, fua } => (plain(offset), Op::Discard { offset, len, fua }),
            Admitted::Zeroes { offset, len, fua, no_hole } => {
                (plain(offset), Op::WriteZeroes { offset, len, fua, no_hole })
            }
            Admitted::Nothing { offset } => return reply::success(out, self.mode, cookie, offset),
            Admitted::Write { .. } | Admitted::Disconnect => unreachable!("handled with the header"),
        };
        self.ask(pending, op, asks);
    }

    fn look_up(&self, context: usize, offset: u64, len: u64) -> Op {
        match self.contexts[context].since {
            None => Op::Map { offset, len },
            Some(since) => Op::Changes { offset, len, since },
        }
    }

    fn ask(&mut self, pending: Pending, op: Op, asks: &mut VecDeque<Ask>) {
        let id = RequestId(self.next);
        self.next += 1;
        self.pending.insert(id, pending);
        asks.push_back(Ask::Request { id, op });
    }

    fn reject(&self, h: &Header, r: Rejected, out: &mut Output) {
        reply::failure(out, self.mode, h.cookie, h.offset, r.errno, r.why);
    }

    fn retire(&mut self, id: RequestId) -> Pending {
        let pending = self.pending.remove(&id).expect("each request is completed exactly once");
        self.in_flight -= pending.cost;
        pending
    }

    pub fn done(&mut self, id: RequestId, out: &mut Output) {
        let p = self.retire(id);
        assert!(p.kind == Kind::Plain, "a read or a status needs its data");
        reply::success(out, self.mode, p.cookie, p.offset);
    }

    /// Leaves a request without an answer.
    pub fn forsake(&mut self, id: RequestId) {
        self.retire(id);
    }

    pub fn fail(&mut self, id: RequestId, errno: Errno, why: &str, out: &mut Output) {
        let p = self.retire(id);
        reply::failure(out, self.mode, p.cookie, p.offset, errno, why);
    }

    pub fn read_done(&mut self, id: RequestId, pieces: impl Iterator<Item = ReadPiece>, out: &mut Output) {
        let p = self.retire(id);
        let Kind::Read { len, whole } = p.kind else { panic!("read data for another request: {:?}", p.kind) };
        let mut held = std::mem::take(&mut self.pieces);
        held.extend(pieces.filter(|piece| !piece.is_empty()));
        let total: u64 = held.iter().map(|piece| u64::from(piece.len())).sum();
        assert!(total == u64::from(len), "a read of {len} bytes was answered with {total}");
        reply::read(out, self.mode, p.cookie, p.offset, whole, &held);
        held.clear();
        self.pieces = held;
    }

    /// One chunk for each context, looked up one after the other.
    pub fn status_done(&mut self, id: RequestId, runs: &[Run], out: &mut Output, asks: &mut VecDeque<Ask>) {
        let p = self.retire(id);
        let Kind::Status { len, one, context } = p.kind else {
            panic!("a map for another request: {:?}", p.kind)
        };
        let Context { id, since } = self.contexts[context];
        let extents = reply::extents(in_block(p.offset) as u64, len, one, since.is_some(), runs);
        if extents.is_empty() {
            return reply::failure(out, self.mode, p.cookie, p.offset, Errno::Io, "the map is empty");
        }
        let next = context + 1;
        let last = next == self.contexts.len();
        reply::status(out, self.mode, p.cookie, p.offset, (id, last), &extents);
        if !last {
            let op = self.look_up(next, p.offset, len);
            self.ask(Pending { kind: Kind::Status { len, one, context: next }, ..p }, op, asks);
        }
    }
}

/// Offset of a byte within its block.
fn in_block(offset: u64) -> usize {
    usize::try_from(offset % BLOCK as u64).expect("less than a block")
}
