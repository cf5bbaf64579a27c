//! Reads (5.5): from the local in-sync replica that is not in doubt, else from another; released when every
//! overlapping write sent meanwhile is acknowledged, under a lease of every in-sync replica. A bad block is read
//! from another replica (5.8). What a clone has not is its parents' (6, `parents`).

use crate::event::{CloseReason, Leases, Notice};
use crate::members::{Mask, bit, slots};
use crate::ops::{OpKind, Yield};
use crate::request::{GuestError, ReadPiece};
use crate::session::{Session, What};
use proto::limits::BLOCK;
use proto::message::{BlockState, Request, Run, View};
use proto::record::Sum;
use proto::{BlockRange, ChunkIndex, Payload, Refusal, Time, Version};

/// Some blocks that were read.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub first: u32,
    pub count: u32,
    pub state: BlockState,
    pub payload: Option<Payload>,
    pub version: Version,
}

impl Part {
    pub fn is_bad(&self) -> bool {
        self.state == BlockState::Bad
    }
    /// Bytes; `None`: zeroes.
    pub fn bytes(&self) -> Option<&[u8]> {
        self.payload.as_ref().map(Payload::bytes)
    }
}

/// For whom blocks are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reader {
    Guest(usize),
    /// The first or the last block of a write, for its merge.
    Edge(usize, bool),
    Repair(usize),
    /// What is absent in a clone, for its flatten.
    Fill(usize),
}

/// Blocks being read, from as many replicas as it takes.
#[derive(Debug)]
pub(crate) struct Fetch {
    reader: Reader,
    chunk: u32,
    parts: Vec<Part>,
    /// Segments that have no answer yet.
    left: u32,
}

impl Fetch {
    /// A guest waits for it.
    pub fn is_a_guests(&self) -> bool {
        matches!(self.reader, Reader::Guest(_) | Reader::Edge(..))
    }
    pub fn is_of(&self, chunk: u32) -> bool {
        self.chunk == chunk
    }
    /// A repair is of what the branch itself has.
    pub fn sees_parents(&self) -> bool {
        !matches!(self.reader, Reader::Repair(_))
    }
    /// More of it, in one segment that was counted, or in several.
    pub fn more(&mut self, segments: u32) {
        self.left += segments;
    }
    pub fn found(&mut self, parts: impl IntoIterator<Item = Part>) {
        self.parts.extend(parts);
    }
}

/// A run of blocks of a fetch, and the replicas that could not give it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub fetch: usize,
    pub range: BlockRange,
    pub tried: Mask,
}

impl Session {
    pub(crate) fn start_read(&mut self, id: usize) {
        let (chunk, range) = (self.ops[id].piece.chunk, self.ops[id].piece.range);
        self.fetch(Reader::Guest(id), chunk, range, 0);
    }

    pub(crate) fn fetch_edge(&mut self, id: usize, chunk: u32, block: u32, last: bool) {
        self.fetch(Reader::Edge(id, last), chunk, BlockRange::new(block, 1), 0);
    }

    pub(crate) fn fetch(&mut self, reader: Reader, chunk: u32, range: BlockRange, tried: Mask) {
        let fetch = self.fetches.insert(Fetch { reader, chunk, parts: vec![], left: 1 });
        if self.parents.is_some() && self.fetches[fetch].sees_parents() {
            return self.fetch_layers(fetch, chunk, range);
        }
        self.fetch_segment(Segment { fetch, range, tried });
    }

    /// The same of what the parents have, whatever the branch has.
    pub(crate) fn fetch_beneath(&mut self, reader: Reader, chunk: u32, range: BlockRange) {
        let fetch = self.fetches.insert(Fetch { reader, chunk, parts: vec![], left: 1 });
        self.fetch_parents(fetch, chunk, range);
    }

    /// A replica that may be read (3, 5.6): of the intersection, not in doubt, there; the local one first.
    pub(crate) fn readable(&self, chunk: u32, tried: Mask) -> Option<usize> {
        let c = &self.chunks[chunk as usize];
        slots(c.inter & !tried)
            .filter(|&s| {
                let d = c.slots[s].drive;
                self.linked(d) && !self.drives[d].doubt && !c.slots[s].lacking
            })
            .min_by_key(|&s| {
                let d = &self.drives[c.slots[s].drive];
                (self.nodes[d.node].id != self.me, d.reads)
            })
    }

    pub(crate) fn fetch_segment(&mut self, g: Segment) {
        let chunk = self.fetches[g.fetch].chunk;
        if let Some(slot) = self.readable(chunk, g.tried) {
            let drive = self.chunks[chunk as usize].slots[slot].drive;
            self.drives[drive].reads += 1;
            let token = self.ask(drive, What::Fetch { segment: g, slot });
            let request =
                Request::Read { view: View::Head, range: g.range, media: false, source_process: None };
            self.send_slot(chunk, slot, token, request);
        } else if self.chunks[chunk as usize].set & !g.tried != 0 {
            self.stuck.push(g);
            self.dirty = true;
        } else {
            let part = Part {
                first: g.range.first,
                count: g.range.count,
                state: BlockState::Bad,
                payload: None,
                version: Version::ZERO,
            };
            self.fetches[g.fetch].parts.push(part);
            self.segment_done(g.fetch);
        }
    }

    /// Reads that no replica could serve.
    pub(crate) fn retry_stuck(&mut self) {
        let dirty = self.dirty;
        for g in std::mem::take(&mut self.stuck) {
            self.fetch_segment(g);
        }
        for id in std::mem::take(&mut self.stalled) {
            self.ready.push_back(id);
        }
        self.retry_credits();
        self.dirty = dirty;
    }

    pub(crate) fn read_done(
        &mut self,
        g: Segment,
        slot: usize,
        runs: &[Run],
        sums: &[Sum],
        payload: &Payload,
    ) {
        let chunk = self.fetches[g.fetch].chunk;
        let drive = self.chunks[chunk as usize].slots[slot].drive;
        let local = self.nodes[self.drives[drive].node].id == self.me;
        if !well_formed(g.range, runs, sums, payload, local) {
            return self.fetch_segment(Segment { tried: g.tried | bit(slot), ..g });
        }
        let (mut first, mut at) = (g.range.first, 0);
        let beneath = self.parents.is_some() && self.fetches[g.fetch].sees_parents();
        let mut absent: Vec<BlockRange> = vec![];
        for run in runs {
            let range = BlockRange::new(first, run.count);
            first += run.count;
            if beneath && run.state == BlockState::Absent {
                coalesce(&mut absent, range);
                continue;
            }
            if run.state == BlockState::Bad {
                self.fetches[g.fetch].left += 1;
                self.want_repair(chunk, range, slot, run);
                self.fetch_segment(Segment { fetch: g.fetch, range, tried: g.tried | bit(slot) });
                continue;
            }
            let data = run.state == BlockState::Data;
            let bytes = data.then(|| payload.slice(at, run.count as usize));
            at += if data { run.count as usize } else { 0 };
            self.fetches[g.fetch].parts.push(Part {
                first: range.first,
                count: run.count,
                state: run.state,
                payload: bytes,
                version: run.version,
            });
        }
        for range in absent {
            self.fetches[g.fetch].left += 1;
            self.fetch_parents(g.fetch, chunk, range);
        }
        self.segment_done(g.fetch);
    }

    /// A replica did not give the blocks: another one.
    pub(crate) fn read_refused(&mut self, g: Segment, slot: usize, refusal: Refusal) {
        let chunk = self.fetches[g.fetch].chunk;
        let drive = self.chunks[chunk as usize].slots[slot].drive;
        let mut tried = g.tried;
        match refusal {
            Refusal::OldEpoch => return self.give_up(CloseReason::Fenced),
            Refusal::DriveNotConfirmed | Refusal::NoDrive | Refusal::Closing => {
                self.set_serving(drive, false)
            }
            Refusal::DriveFailed => self.drives[drive].failed = true,
            Refusal::InDoubt => self.doubted(drive),
            Refusal::UnknownReplica => self.lacks(chunk, slot),
            _ => tried |= bit(slot),
        }
        self.dirty = true;
        self.fetch_segment(Segment { tried, ..g });
    }

    /// The link broke under it: again, from whoever is there.
    pub(crate) fn read_lost(&mut self, g: Segment) {
        self.stuck.push(g);
        self.dirty = true;
    }

    pub(crate) fn segment_done(&mut self, fetch: usize) {
        let f = &mut self.fetches[fetch];
        f.left -= 1;
        if f.left > 0 {
            return;
        }
        let mut f = self.fetches.remove(fetch);
        f.parts.sort_by_key(|p| p.first);
        for p in f.parts.iter().filter(|p| p.is_bad()) {
            self.effects.push_back(crate::Effect::Notice(Notice::BadEverywhere {
                chunk: ChunkIndex(f.chunk),
                block: p.first,
            }));
        }
        match f.reader {
            Reader::Guest(id) => {
                self.ops[id].kind = OpKind::Read(f.parts);
                self.hold_answer(id);
            }
            Reader::Edge(id, last) => {
                let op = &mut self.ops[id];
                op.edges[usize::from(last)] = f.parts.pop();
                op.outstanding -= 1;
                if op.outstanding == 0 {
                    self.merge(id);
                }
            }
            Reader::Repair(id) => self.repair_with(id, f.parts.pop()),
            Reader::Fill(id) => self.fill_with(id, f.parts),
        }
    }

    /// 5.5: released only when every overlapping write that is in flight now is acknowledged.
    pub(crate) fn hold_answer(&mut self, id: usize) {
        let (chunk, range) = (self.ops[id].piece.chunk, self.ops[id].piece.range);
        let mut holders = std::mem::take(&mut self.scratch);
        if !self.bugs.has(|b| b.read_unacknowledged) {
            self.claims.holders(chunk, range, &mut holders);
        }
        self.ops[id].blockers = u32::try_from(holders.len()).expect("few");
        for h in holders.drain(..) {
            self.ops[h].watchers.push(id);
        }
        self.scratch = holders;
        if self.ops[id].blockers == 0 {
            self.answerable.push(id);
        }
    }

    /// The lease of everyone required, while a change is undecided of the union (3). None: all are held.
    pub(crate) fn lease_missing(&self, chunk: u32, leases: &dyn Leases) -> Option<usize> {
        let c = &self.chunks[chunk as usize];
        slots(c.required)
            .map(|s| c.slots[s].drive)
            .find(|&d| !self.lease_held(d, leases))
            .map(|d| self.drives[d].node)
    }
    /// The lease of the drive's node, which knows what this drive knows.
    pub(crate) fn lease_held(&self, drive: usize, leases: &dyn Leases) -> bool {
        self.lease_of(drive, leases) > self.now
    }
    /// Until when it is counted on.
    pub(crate) fn lease_of(&self, drive: usize, leases: &dyn Leases) -> Time {
        let d = &self.drives[drive];
        if d.open { leases.until(self.nodes[d.node].id, self.branch) } else { Time::ZERO }
    }

    pub(crate) fn answer_reads(&mut self, leases: &dyn Leases) {
        if self.answerable.is_empty() {
            return;
        }
        let mut list = std::mem::take(&mut self.answerable);
        list.retain(|&id| {
            let chunk = self.ops[id].piece.chunk;
            if !self.bugs.has(|b| b.no_lease_check)
                && let Some(n) = self.lease_missing(chunk, leases)
            {
                self.nodes[n].lease_wanted.get_or_insert(self.now);
                return true;
            }
            self.answer(id);
            false
        });
        list.append(&mut self.answerable);
        self.answerable = list;
        self.unanswered_reads = !self.answerable.is_empty();
    }

    fn answer(&mut self, id: usize) {
        let op = &mut self.ops[id];
        let (head, len) = (op.piece.head(), op.piece.len);
        let parts = match &mut op.kind {
            OpKind::Map(runs) => {
                let runs = std::mem::take(runs);
                return self.end_op(id, Ok(Yield::Map(runs)));
            }
            OpKind::Read(parts) => std::mem::take(parts),
            other => unreachable!("{other:?} is not a read"),
        };
        if parts.iter().any(Part::is_bad) {
            return self.end_op(id, Err(GuestError::Io));
        }
        self.end_op(id, Ok(Yield::Read(pieces(parts, head, len))));
    }
}

/// Adds a range behind others.
pub(crate) fn coalesce(ranges: &mut Vec<BlockRange>, range: BlockRange) {
    match ranges.last_mut() {
        Some(l) if l.end() == range.first => *l = BlockRange::new(l.first, l.count + range.count),
        _ => ranges.push(range),
    }
}

/// Whether an answer fits the question and its own checksums (those of our own node were checked by its store).
pub(crate) fn well_formed(
    range: BlockRange,
    runs: &[Run],
    sums: &[Sum],
    payload: &Payload,
    local: bool,
) -> bool {
    let blocks: u64 = runs.iter().map(|r| u64::from(r.count)).sum();
    let data: u64 = runs.iter().filter(|r| r.state == BlockState::Data).map(|r| u64::from(r.count)).sum();
    blocks == u64::from(range.count)
        && data == payload.blocks() as u64
        && (local
            || (sums.len() == payload.blocks()
                && (0..sums.len()).all(|i| Sum::of(payload.block(i)) == sums[i])))
}

/// The bytes from `head` on, `len` of them.
pub(crate) fn pieces(parts: Vec<Part>, head: usize, len: u64) -> Vec<ReadPiece> {
    let mut v = Vec::with_capacity(parts.len());
    let mut skip = head;
    let mut left = crate::geometry::index(len);
    for p in parts {
        let here = (p.count as usize * BLOCK - skip).min(left);
        left -= here;
        let n = u32::try_from(here).expect("at most 1 MiB");
        v.push(match p.payload {
            Some(payload) => {
                ReadPiece::Data { payload, skip: u32::try_from(skip).expect("below a block"), len: n }
            }
            None => ReadPiece::Zero { bytes: n },
        });
        skip = 0;
    }
    v
}
