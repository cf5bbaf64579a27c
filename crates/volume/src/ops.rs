//! A guest's requests and the operations they are split into.
//!
//! A request is an obligation: its ticket is completed exactly once. An operation lies in one chunk; an exclusive
//! one holds its claim (`ordering`) from its start until every required replica has acknowledged it.

use crate::event::Effect;
use crate::geometry::{Piece, PieceKind, Splitter, index};
use crate::members::Mask;
use crate::reads::Part;
use crate::request::{GuestError, GuestOp, GuestReply, GuestRequest, ReadPiece};
use crate::session::{Phase, Session};
use proto::limits::{BLOCK, EXTENT};
use proto::message::Run;
use proto::{BlockRange, Generation, PageBuf, Payload, Ticket, Version};
use std::collections::{BTreeSet, VecDeque};

/// A guest's request.
#[derive(Debug)]
pub(crate) struct Request {
    pub ticket: Ticket,
    splitter: Splitter,
    data: Option<Bytes>,
    fua: bool,
    /// A discard: what there is no space for is left as it is; and something was.
    pub advice: bool,
    pub left_some: bool,
    answer: Answer,
    /// Operations under way, and begun so far.
    left: u32,
    begun: u32,
    error: Option<GuestError>,
    /// Newest write of this request, and its chunks: what a FUA has to flush.
    upto: u64,
    chunks: Vec<u32>,
}

/// What a write puts down.
#[derive(Debug)]
enum Bytes {
    /// And the block of the volume that they begin with.
    Given(Payload, u64),
    /// Zeroes that take their space: one extent of them serves every piece.
    Zeroes(Payload),
}

impl Bytes {
    fn of(&self, piece: &Piece) -> Payload {
        let count = piece.range.count as usize;
        match self {
            Bytes::Given(payload, first) => payload.slice(index(piece.start / BLOCK as u64 - first), count),
            Bytes::Zeroes(extent) => extent.slice(0, count),
        }
    }
}

/// What a request collects, by operation.
#[derive(Debug)]
enum Answer {
    Done,
    Read(Vec<Vec<ReadPiece>>),
    Map(Vec<Vec<Run>>),
    Verified { differing: Vec<u64>, bytes: u64 },
}

/// What an operation yields.
#[derive(Debug)]
pub(crate) enum Yield {
    /// Sequence of the write; 0 if none was sent.
    Written(u64),
    Read(Vec<ReadPiece>),
    Map(Vec<Run>),
    Verified {
        differing: Vec<u64>,
        bytes: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Op {
    pub request: Option<usize>,
    /// Which operation of its request.
    place: u32,
    pub piece: Piece,
    pub kind: OpKind,
    /// Extents on which its claim waits.
    waits: u32,
    claimed: bool,
    /// Reads whose answer waits for this one's end.
    pub watchers: Vec<usize>,
    /// A read: exclusive operations it waits for.
    pub blockers: u32,
    /// Answers that are still to come before it goes on.
    pub outstanding: u32,
    /// Slots on whose drives a credit was got for it; no space was found somewhere.
    pub credits: Mask,
    /// It is known that the blocks can be written without a new extent: in this generation.
    pub probed: Option<Generation>,
    pub probing: Generation,
    pub no_space: bool,
    /// An answer was lost with its connection: ask again.
    pub lost: bool,
    /// Blocks read for a merge: the first and the last.
    pub edges: [Option<Part>; 2],
    /// It writes a part of what this one fills, and under its claim.
    pub fills: Option<usize>,
    /// It zeroes what is beyond the end that the volume gets (`shrink`).
    pub beyond: bool,
}

#[derive(Debug)]
pub(crate) enum OpKind {
    Write(Payload),
    Zero,
    Read(Vec<Part>),
    Map(Vec<Run>),
    /// Answers of replicas: (slot, hashes of extents).
    Verify(Vec<(usize, Vec<(u32, u64)>)>, Vec<u32>),
    /// A bad block on this slot, in a generation whose extent had this version.
    Repair {
        slot: usize,
        failed: Version,
        generation: Generation,
    },
    /// What the parents have of blocks that are absent in the branch (`flatten`).
    Fill(Vec<Part>),
}

impl Op {
    pub fn new(request: Option<usize>, place: u32, piece: Piece, kind: OpKind) -> Op {
        Op {
            request,
            place,
            piece,
            kind,
            waits: 0,
            claimed: false,
            watchers: vec![],
            blockers: 0,
            outstanding: 0,
            credits: 0,
            probed: None,
            probing: Generation(0),
            no_space: false,
            lost: false,
            edges: [None, None],
            fills: None,
            beyond: false,
        }
    }
    fn writes(&self) -> bool {
        matches!(self.kind, OpKind::Write(_) | OpKind::Zero | OpKind::Fill(_))
    }
    /// Nothing of the branch is touched yet, and nobody waits for it.
    pub fn only_reads_parents(&self) -> bool {
        matches!(self.kind, OpKind::Fill(_)) && !self.claimed
    }
    fn exclusive(&self) -> bool {
        !matches!(self.kind, OpKind::Read(_) | OpKind::Map(_))
    }
}

impl Session {
    pub(crate) fn complete(&mut self, ticket: Ticket, result: Result<GuestReply, GuestError>) {
        self.effects.push_back(Effect::Complete { ticket, result });
    }

    pub(crate) fn guest(&mut self, g: GuestRequest) {
        match self.phase {
            Phase::Serving => self.admit(g),
            Phase::Draining | Phase::Detaching | Phase::Closed => {
                self.complete(g.ticket, Err(GuestError::Gone))
            }
            _ => self.arrivals.push_back(g),
        }
    }

    pub(crate) fn admit_arrivals(&mut self) {
        while self.phase == Phase::Serving {
            let Some(g) = self.arrivals.pop_front() else { break };
            self.admit(g);
        }
    }

    /// Their client has gone: a write that waits must not be put down when another client reads already. What is under
    /// way cannot be called back.
    pub(crate) fn withdraw_guests(&mut self, tickets: &BTreeSet<Ticket>) {
        let (gone, kept): (VecDeque<GuestRequest>, VecDeque<GuestRequest>) =
            std::mem::take(&mut self.arrivals).into_iter().partition(|g| tickets.contains(&g.ticket));
        self.arrivals = kept;
        for g in gone {
            self.complete(g.ticket, Err(GuestError::Withdrawn));
        }
        // Between events no request waits to be split: whatever is not done has an operation under way or parked.
        for (_, q) in self.requests.iter_mut().filter(|(_, q)| tickets.contains(&q.ticket)) {
            if !q.splitter.done() {
                q.error.get_or_insert(GuestError::Withdrawn);
            }
        }
        let mut ended = vec![];
        let (ops, requests) = (&self.ops, &self.requests);
        self.parked.retain(|_, list| {
            list.retain(|&id| {
                let gone = ops[id].request.is_some_and(|r| tickets.contains(&requests[r].ticket));
                if gone {
                    ended.push(id);
                }
                !gone
            });
            !list.is_empty()
        });
        for id in ended {
            self.end_op(id, Err(GuestError::Withdrawn));
        }
    }

    fn admit(&mut self, g: GuestRequest) {
        let ticket = g.ticket;
        let (kind, offset, len) = match &g.op {
            GuestOp::Flush => return self.guest_flush(ticket),
            GuestOp::Read { offset, len } => (PieceKind::Read, *offset, u64::from(*len)),
            GuestOp::Write { offset, len, .. } => (PieceKind::Write, *offset, u64::from(*len)),
            GuestOp::WriteZeroes { offset, len, no_hole: true, .. } => (PieceKind::Write, *offset, *len),
            GuestOp::Discard { offset, len, .. } | GuestOp::WriteZeroes { offset, len, .. } => {
                (PieceKind::Zero, *offset, *len)
            }
            GuestOp::Map { offset, len } => (PieceKind::Map, *offset, *len),
            GuestOp::Changes { offset, len, since } => (PieceKind::Changes(*since), *offset, *len),
            GuestOp::Verify { offset, len } => (PieceKind::Verify, *offset, *len),
        };
        if len == 0 || offset.checked_add(len).is_none_or(|end| end > self.geometry.size) {
            return self.complete(ticket, Err(GuestError::Invalid));
        }
        let mut splitter = Splitter::new(kind, offset, len);
        let (mut data, mut wants_flush) = (None, false);
        let advice = matches!(g.op, GuestOp::Discard { .. });
        let answer = match g.op {
            GuestOp::Write { data: d, fua, .. } => {
                let first = offset / BLOCK as u64;
                if d.payload.blocks() as u64 != (offset + len).div_ceil(BLOCK as u64) - first {
                    return self.complete(ticket, Err(GuestError::Invalid));
                }
                data = Some(Bytes::Given(d.payload, first));
                wants_flush = fua || self.attached.write_through;
                Answer::Done
            }
            GuestOp::Discard { fua, .. } => {
                splitter = Splitter::whole_blocks(offset, len);
                wants_flush = fua || self.attached.write_through;
                Answer::Done
            }
            GuestOp::WriteZeroes { fua, no_hole, .. } => {
                data = no_hole.then(|| Bytes::Zeroes(PageBuf::zeroed(EXTENT / BLOCK).freeze()));
                wants_flush = fua || self.attached.write_through;
                Answer::Done
            }
            GuestOp::Read { .. } => Answer::Read(vec![]),
            GuestOp::Map { .. } | GuestOp::Changes { .. } => Answer::Map(vec![]),
            GuestOp::Verify { .. } => Answer::Verified { differing: vec![], bytes: 0 },
            GuestOp::Flush => unreachable!("answered above"),
        };
        if splitter.done() {
            return self.complete(ticket, Ok(GuestReply::Done));
        }
        let fua = wants_flush;
        let r = self.requests.insert(Request {
            ticket,
            splitter,
            data,
            fua,
            advice,
            left_some: false,
            answer,
            left: 0,
            begun: 0,
            error: None,
            upto: 0,
            chunks: vec![],
        });
        self.split(r);
    }

    /// Begins as many operations of a request as may be under way.
    fn split(&mut self, r: usize) {
        let geometry = self.geometry;
        loop {
            let q = &mut self.requests[r];
            let most = match q.answer {
                Answer::Read(_) => 16,
                Answer::Map(_) | Answer::Verified { .. } => 4,
                Answer::Done if q.data.is_some() => 256,
                Answer::Done => 16,
            };
            if q.left >= most || q.error.is_some() {
                return;
            }
            let Some(piece) = q.splitter.next(geometry) else { return };
            let kind = match piece.kind {
                PieceKind::Read => OpKind::Read(vec![]),
                PieceKind::Map | PieceKind::Changes(_) => OpKind::Map(vec![]),
                PieceKind::Verify => OpKind::Verify(vec![], vec![]),
                PieceKind::Zero => OpKind::Zero,
                PieceKind::ZeroEdge => OpKind::Write(PageBuf::zeroed(1).freeze()),
                PieceKind::Write => OpKind::Write(q.data.as_ref().expect("a write has bytes").of(&piece)),
            };
            let place = q.begun;
            q.begun += 1;
            q.left += 1;
            if q.fua && !q.chunks.contains(&piece.chunk) {
                q.chunks.push(piece.chunk);
            }
            match &mut q.answer {
                Answer::Read(v) => v.push(vec![]),
                Answer::Map(v) => v.push(vec![]),
                Answer::Done | Answer::Verified { .. } => {}
            }
            let op = self.ops.insert(Op::new(Some(r), place, piece, kind));
            self.submit(op);
            if !self.requests.contains(r) {
                return;
            }
        }
    }

    /// Whether writes of this chunk can be acknowledged at all now.
    fn enough(&self, chunk: u32) -> bool {
        self.chunks[chunk as usize].inter.count_ones() >= u32::from(self.attached.min_in_sync)
    }

    /// Hands an operation to the hold-back. A write that could not be acknowledged claims nothing, so that reads go on.
    pub(crate) fn submit(&mut self, id: usize) {
        let op = &self.ops[id];
        let chunk = op.piece.chunk;
        if op.writes() && !self.enough(chunk) {
            if !self.attached.wait_when_degraded && self.chunks[chunk as usize].undecided.is_none() {
                return self.end_op(id, Err(GuestError::Io));
            }
            self.parked.entry(chunk).or_default().push(id);
            self.dirty = true;
            return;
        }
        let exclusive = op.exclusive();
        let (chunk, range) = (op.piece.chunk, op.piece.range);
        let unheld = if exclusive {
            self.bugs.has(|b| b.no_hold_back)
        } else {
            self.bugs.has(|b| b.read_unacknowledged)
        };
        let waits = if unheld { 0 } else { self.claims.claim(id, chunk, range, exclusive) };
        let op = &mut self.ops[id];
        op.claimed = exclusive && !unheld;
        op.waits = waits;
        if waits == 0 {
            self.ready.push_back(id);
        }
    }

    /// Writes that waited for more replicas.
    pub(crate) fn unpark(&mut self, chunk: u32) {
        if let Some(list) = self.parked.remove(&chunk) {
            for id in list {
                self.submit(id);
            }
        }
    }

    pub(crate) fn run_ready(&mut self) {
        loop {
            while let Some(r) = self.unsplit.pop_front() {
                if self.requests.contains(r) {
                    self.split(r);
                }
            }
            let Some(id) = self.ready.pop_front() else { break };
            self.start(id);
        }
    }

    fn start(&mut self, id: usize) {
        let op = &self.ops[id];
        let (head, tail, range) = (op.piece.head(), op.piece.tail(), op.piece.range);
        match op.kind {
            OpKind::Write(_) if head != 0 || tail != 0 => self.start_merge(id, head, tail, range),
            OpKind::Write(_) | OpKind::Zero => self.send_op(id),
            OpKind::Read(_) => self.start_read(id),
            OpKind::Map(_) | OpKind::Fill(_) => self.start_map(id),
            OpKind::Verify(..) => self.start_verify(id),
            OpKind::Repair { .. } => self.start_repair(id),
        }
    }

    /// 4, Sectors: read the block that is written in part; merge; write: one operation under the hold-back.
    fn start_merge(&mut self, id: usize, head: usize, tail: usize, range: BlockRange) {
        let last = range.end() - 1;
        let one = range.count == 1;
        self.ops[id].outstanding = u32::from(head != 0 || one) + u32::from(tail != 0 && !one);
        let chunk = self.ops[id].piece.chunk;
        if head != 0 || one {
            self.fetch_edge(id, chunk, range.first, false);
        }
        if tail != 0 && !one {
            self.fetch_edge(id, chunk, last, true);
        }
    }

    /// The blocks at the edges have been read.
    pub(crate) fn merge(&mut self, id: usize) {
        let op = &mut self.ops[id];
        let (head, tail) = (op.piece.head(), op.piece.tail());
        let OpKind::Write(payload) = &op.kind else { unreachable!("only writes are merged") };
        if op.edges.iter().flatten().any(Part::is_bad) {
            return self.end_op(id, Err(GuestError::Io));
        }
        let mut buf = PageBuf::copy_of(payload.bytes());
        let end = buf.bytes().len();
        let old = |part: &Option<Part>, from: usize, to: usize, into: &mut [u8]| match part
            .as_ref()
            .and_then(Part::bytes)
        {
            Some(b) => into.copy_from_slice(&b[from..to]),
            None => into.fill(0),
        };
        if head != 0 {
            old(&op.edges[0], 0, head, &mut buf.bytes_mut()[..head]);
        }
        if tail != 0 {
            let which = usize::from(op.piece.range.count > 1);
            old(&op.edges[which], BLOCK - tail, BLOCK, &mut buf.bytes_mut()[end - tail..]);
        }
        op.kind = OpKind::Write(buf.freeze());
        op.edges = [None, None];
        self.send_op(id);
    }

    /// Ends an operation: what it held is free, what waited for it goes on.
    pub(crate) fn end_op(&mut self, id: usize, result: Result<Yield, GuestError>) {
        let op = self.ops.remove(id);
        if op.claimed {
            let mut freed = std::mem::take(&mut self.scratch);
            self.claims.release(id, op.piece.chunk, op.piece.range, &mut freed);
            for other in freed.drain(..) {
                let o = &mut self.ops[other];
                o.waits -= 1;
                if o.waits == 0 {
                    self.ready.push_back(other);
                }
            }
            self.scratch = freed;
        }
        for w in op.watchers {
            let reader = &mut self.ops[w];
            reader.blockers -= 1;
            if reader.blockers == 0 {
                self.answerable.push(w);
            }
        }
        if let Some(r) = op.request {
            self.note_result(r, op.place, op.piece.len, result);
        } else if let Some(fill) = op.fills {
            self.filled(fill, &result);
        } else if matches!(op.kind, OpKind::Fill(_)) {
            self.piece_ended(op.piece.chunk, &result);
        } else if op.beyond {
            self.zeroed_beyond(&result);
        }
    }

    fn note_result(&mut self, r: usize, place: u32, len: u64, result: Result<Yield, GuestError>) {
        let q = &mut self.requests[r];
        q.left -= 1;
        match (result, &mut q.answer) {
            (Ok(Yield::Written(seq)), _) => q.upto = q.upto.max(seq),
            (Ok(Yield::Read(v)), Answer::Read(all)) => all[place as usize] = v,
            (Ok(Yield::Map(v)), Answer::Map(all)) => all[place as usize] = v,
            (Ok(Yield::Verified { differing: d, bytes: n }), Answer::Verified { differing, bytes }) => {
                differing.extend(d.into_iter().take(16 - differing.len().min(16)));
                *bytes += n;
            }
            (Ok(y), _) => unreachable!("{y:?} of {len} bytes does not belong to this request"),
            (Err(e), _) => q.error = Some(e),
        }
        if q.error.is_none() && !q.splitter.done() {
            return self.unsplit.push_back(r);
        }
        if q.left == 0 {
            self.end_request(r);
        }
    }

    fn end_request(&mut self, r: usize) {
        let q = self.requests.remove(r);
        if let Some(e) = q.error {
            return self.complete(q.ticket, Err(e));
        }
        let done = if q.left_some { GuestReply::Left } else { GuestReply::Done };
        let reply = match q.answer {
            Answer::Done if q.fua && q.upto > 0 => {
                return self.flush_after_write(q.ticket, q.upto, q.chunks, done);
            }
            Answer::Done => done,
            Answer::Read(v) => GuestReply::Read(v.into_iter().flatten().collect()),
            Answer::Map(v) => GuestReply::Map(v.into_iter().flatten().collect()),
            Answer::Verified { mut differing, bytes } => {
                differing.sort_unstable();
                GuestReply::Verified { differing, bytes }
            }
        };
        self.complete(q.ticket, Ok(reply));
    }

    /// The session is over: every ticket is completed.
    pub(crate) fn drop_guests(&mut self, error: GuestError) {
        let mut tickets: Vec<Ticket> = self.requests.iter().map(|(_, q)| q.ticket).collect();
        tickets.extend(self.flushes.drain(..).map(|f| f.ticket));
        tickets.extend(self.arrivals.drain(..).map(|g| g.ticket));
        tickets.sort_unstable();
        self.requests.clear();
        self.ops.clear();
        self.claims.clear();
        self.ready.clear();
        self.unsplit.clear();
        self.parked.clear();
        self.fetches.clear();
        self.drop_parents();
        self.stuck.clear();
        self.stalled.clear();
        self.answerable.clear();
        self.credit_waits.clear();
        self.seal.clear();
        for t in tickets {
            self.complete(t, Err(error));
        }
    }
}
