//! Flatten (6): what is absent in a clone's head is written there, with versions of its own, until nothing of it is
//! read from a parent; then the tie is cut in Raft.
//!
//! Owns where the work stands. Nothing of that must last: what is left to do is what is absent. What the parents have
//! is read before anything is claimed, for their views never change; under the claim the branch says what is still
//! absent, and only that is written. So a parent that cannot be asked is in nobody's way.
//! The tie is cut only when, after a flush of every required drive, each in-sync replica of each chunk has said that
//! no block is absent in the head nor in a kept view. A block that is there is never absent again, so that holds for
//! views sealed and replicas promoted later, too.

use crate::geometry::{Piece, PieceKind};
use crate::members::slots;
use crate::ops::{Op, OpKind, Yield};
use crate::reads::{Part, Reader, coalesce};
use crate::request::GuestError;
use crate::session::{Asked, Phase, Session, What};
use proto::control::{JobStatus, JobTrouble, MetaRequest};
use proto::limits::{BLOCK, BLOCKS_PER_EXTENT};
use proto::message::{BlockState, Request, Run, View};
use proto::{BlockRange, BranchViews, ChunkIndex, Generation, Generations, JobId, ListIndex, Span, Time};
use std::collections::VecDeque;

/// Blocks of one piece: 1 MiB.
const PIECE: u32 = 256;
/// Blocks of the branch's own map asked for at a time: 16 MiB, no more than the smallest chunk.
const SECTION: u32 = 4096;
/// Pieces under way while no guest waits, and while one does.
const PIECES: usize = 4;
const PIECES_BESIDE: usize = 1;
/// After a piece that could not be written.
const AGAIN: Span = Span::secs(1);
/// After an answer that something is absent in a snapshot: they may be gone by then.
const LOOK_AGAIN: Span = Span::secs(5);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Section by section.
    Filling,
    /// Every required drive, up to this write.
    Flushing(u64),
    /// The replicas of `chunk`: is anything absent in the head or in a kept view?
    Asking,
    /// Something is: in the head?
    AskingHead,
    /// ... it is not. In this snapshot?
    AskingView(Generation),
    /// Snapshots hold it up, as of these views: until they change.
    Resting(ListIndex),
    Cutting,
}

#[derive(Debug)]
pub(crate) struct Flatten {
    job: JobId,
    step: Step,
    chunk: u32,
    /// First block of the chunk that was not looked at.
    block: u32,
    /// Absent runs of what was looked at, not begun.
    todo: VecDeque<BlockRange>,
    looking: bool,
    /// Pieces under way.
    pieces: usize,
    /// The first chunk with a piece that could not be written.
    failed: Option<u32>,
    /// Replicas of the chunk that were asked and have not answered, and whether one said yes; the round they are of.
    outstanding: u32,
    any: bool,
    round: u64,
    asked: bool,
    again: Time,
    trouble: Option<JobTrouble>,
    /// What the replicas were asked up to this token may have been read before all was filled.
    filled: u64,
}

impl Flatten {
    pub fn new(job: JobId) -> Flatten {
        Flatten {
            job,
            step: Step::Filling,
            chunk: 0,
            block: 0,
            todo: VecDeque::new(),
            looking: false,
            pieces: 0,
            failed: None,
            outstanding: 0,
            any: false,
            round: 0,
            asked: false,
            again: Time::ZERO,
            trouble: None,
            filled: 0,
        }
    }
    pub fn job(&self) -> JobId {
        self.job
    }
    pub fn is_busy(&self) -> bool {
        self.pieces > 0
    }
    pub fn flush_upto(&self) -> Option<u64> {
        if let Step::Flushing(upto) = self.step { Some(upto) } else { None }
    }
    fn step(&mut self, step: Step) {
        (self.step, self.chunk, self.block, self.outstanding) = (step, 0, 0, 0);
        self.round += 1;
    }
    /// From this chunk on, after a while.
    fn fill_again(&mut self, chunk: u32, at: Time) {
        self.step(Step::Filling);
        (self.chunk, self.again) = (chunk, at);
        self.todo.clear();
    }
}

impl Session {
    pub(crate) fn flatten_status(&self) -> Option<JobStatus> {
        let f = self.flatten.as_ref()?;
        let at = self.geometry.offset(ChunkIndex(f.chunk), f.block).min(self.geometry.size);
        let filled = f.step != Step::Filling;
        let waits = self.parents_waited_for(false).is_some_and(|t| self.now.since(t) >= AGAIN);
        Some(JobStatus {
            job: f.job,
            done: if filled { self.geometry.size } else { at },
            total: self.geometry.size,
            trouble: if waits { Some(JobTrouble::Parent) } else { f.trouble },
        })
    }

    pub(crate) fn push_flatten(&mut self) {
        if self.phase != Phase::Serving || self.next_job.is_some() {
            return;
        }
        let Some(f) = &self.flatten else { return };
        if self.now < f.again {
            return;
        }
        match f.step {
            Step::Filling => self.fill(),
            Step::Flushing(upto) if self.flushed_everywhere(upto) => {
                self.at_work().step(Step::Asking);
                self.dirty = true;
            }
            Step::Flushing(_) => self.flush_dirty = true,
            Step::Asking | Step::AskingHead | Step::AskingView(_) => self.ask_absence(),
            Step::Resting(index) => {
                if self.attached.views.index > index {
                    self.at_work().step(Step::Asking);
                    self.dirty = true;
                } else {
                    // What metad tells of views may be lost.
                    self.views_in_question();
                    self.at_work().again = self.now + LOOK_AGAIN;
                }
            }
            Step::Cutting => self.ask_cut(),
        }
    }

    fn at_work(&mut self) -> &mut Flatten {
        self.flatten.as_mut().expect("only a job's steps lead here")
    }

    // ------------------------------------------------------------------ filling

    /// Blocks of a chunk up to the end of the parent: what lies beyond it is never read from there. (No view of the branch
    /// ends before it: a clone is at least as large.)
    fn blocks_of(&self, chunk: u32) -> u32 {
        let end = self.attached.parents.first().map_or(0, |l| l.size).min(self.geometry.size);
        let bytes = end.saturating_sub(self.geometry.offset(ChunkIndex(chunk), 0));
        let bytes = bytes.min(self.geometry.chunk_bytes());
        u32::try_from(bytes.div_ceil(BLOCK as u64)).expect("at most a chunk")
    }

    fn fill(&mut self) {
        let most = if self.requests.is_empty() && self.flushes.is_empty() { PIECES } else { PIECES_BESIDE };
        loop {
            let chunks = self.geometry.chunks();
            let f = self.at_work();
            if let Some(chunk) = f.failed {
                if f.pieces == 0 && !f.looking {
                    f.failed = None;
                    let again = self.now + AGAIN;
                    self.at_work().fill_again(chunk, again);
                }
                return;
            }
            if f.pieces >= most || f.looking {
                return;
            }
            let chunk = f.chunk;
            if let Some(range) = f.todo.pop_front() {
                self.begin_piece(chunk, range);
            } else if chunk >= chunks {
                if f.pieces == 0 {
                    let (upto, token) = (self.seq, self.next_token);
                    self.at_work().step(Step::Flushing(upto));
                    self.at_work().filled = token;
                    self.flush_dirty = true;
                    self.dirty = true;
                }
                return;
            } else if f.block >= self.blocks_of(chunk) {
                let f = self.at_work();
                if f.pieces > 0 {
                    return;
                }
                // all of this chunk is written
                (f.chunk, f.block, f.trouble) = (chunk + 1, 0, None);
            } else {
                return self.look_for_absent(chunk);
            }
        }
    }

    /// Asks the branch what it has not.
    fn look_for_absent(&mut self, chunk: u32) {
        let Some(slot) = self.readable(chunk, 0) else { return };
        let first = self.at_work().block;
        let range = BlockRange::new(first, SECTION.min(self.blocks_of(chunk) - first));
        self.at_work().looking = true;
        let drive = self.chunks[chunk as usize].slots[slot].drive;
        let token = self.ask(drive, What::LookForAbsent { chunk, range });
        self.send_slot(chunk, slot, token, Request::Map { view: View::Head, range });
    }

    /// `None`: there is no answer.
    pub(crate) fn absent_found(&mut self, chunk: u32, range: BlockRange, runs: Option<&[Run]>) {
        self.dirty = true;
        let now = self.now;
        // The job may be another one by now: then nothing is looked for.
        let Some(f) = self.flatten.as_mut().filter(|f| f.looking && f.step == Step::Filling) else { return };
        f.looking = false;
        let whole =
            |runs: &&[Run]| runs.iter().map(|r| u64::from(r.count)).sum::<u64>() == u64::from(range.count);
        let Some(runs) = runs.filter(whole) else {
            f.again = now + Span::millis(50);
            return;
        };
        if (chunk, range.first) != (f.chunk, f.block) {
            return;
        }
        f.block = range.end();
        let mut first = range.first;
        for run in runs {
            let end = first + run.count;
            while run.state == BlockState::Absent && first < end {
                // whole pieces: what is read with one claim ends where an extent does
                let next = ((first / PIECE + 1) * PIECE).min(end);
                match f.todo.back_mut() {
                    Some(l) if l.end() == first && l.first / PIECE == first / PIECE => {
                        l.count += next - first
                    }
                    _ => f.todo.push_back(BlockRange::new(first, next - first)),
                }
                first = next;
            }
            first = end;
        }
    }

    /// Reads what the parents have of it. Nothing is claimed yet.
    fn begin_piece(&mut self, chunk: u32, range: BlockRange) {
        self.at_work().pieces += 1;
        let start = self.geometry.offset(ChunkIndex(chunk), range.first);
        let len = u64::from(range.count) * BLOCK as u64;
        let piece = Piece { kind: PieceKind::Map, chunk, range, start, len };
        let id = self.ops.insert(Op::new(None, 0, piece, OpKind::Fill(vec![])));
        self.fetch_beneath(Reader::Fill(id), chunk, range);
    }

    /// The parents have answered: now the blocks are claimed.
    pub(crate) fn fill_with(&mut self, id: usize, parts: Vec<Part>) {
        if self.phase != Phase::Serving {
            return self.end_op(id, Err(GuestError::Gone));
        }
        if parts.iter().any(Part::is_bad) {
            self.at_work().trouble = Some(JobTrouble::BadBlock { offset: self.ops[id].piece.start });
            return self.end_op(id, Err(GuestError::Io));
        }
        self.ops[id].kind = OpKind::Fill(parts);
        self.submit(id);
    }

    /// Under its claim, the branch has said what it has: what is absent is written.
    pub(crate) fn fill_absent(&mut self, id: usize, runs: &[Run]) {
        let Piece { chunk, range, .. } = self.ops[id].piece;
        let OpKind::Fill(parts) = std::mem::replace(&mut self.ops[id].kind, OpKind::Fill(vec![])) else {
            unreachable!("only such an operation asks")
        };
        let mut absent: Vec<BlockRange> = vec![];
        let mut first = range.first;
        for run in runs {
            if run.state == BlockState::Absent {
                coalesce(&mut absent, BlockRange::new(first, run.count));
            }
            first += run.count;
        }
        let mut writes: Vec<(BlockRange, OpKind)> = vec![];
        for hole in absent {
            for p in &parts {
                pieces_of(p, hole, &mut writes);
            }
        }
        if writes.is_empty() {
            return self.end_op(id, Ok(Yield::Written(0)));
        }
        self.ops[id].outstanding = u32::try_from(writes.len()).expect("at most 256 blocks");
        for (range, kind) in writes {
            let start = self.geometry.offset(ChunkIndex(chunk), range.first);
            let is = if matches!(kind, OpKind::Zero) { PieceKind::Zero } else { PieceKind::Write };
            let piece = Piece { kind: is, chunk, range, start, len: u64::from(range.count) * BLOCK as u64 };
            let mut op = Op::new(None, 0, piece, kind);
            op.fills = Some(id);
            let op = self.ops.insert(op);
            // its blocks are claimed already
            self.send_op(op);
        }
    }

    /// One of its writes has ended.
    pub(crate) fn filled(&mut self, id: usize, result: &Result<Yield, GuestError>) {
        let op = &mut self.ops[id];
        op.no_space |= matches!(result, Err(GuestError::NoSpace));
        op.lost |= result.is_err();
        op.outstanding -= 1;
        if op.outstanding > 0 {
            return;
        }
        let end = match (op.no_space, op.lost) {
            (true, _) => Err(GuestError::NoSpace),
            (_, true) => Err(GuestError::Io),
            _ => Ok(Yield::Written(0)),
        };
        self.end_op(id, end);
    }

    /// A piece has ended.
    pub(crate) fn piece_ended(&mut self, chunk: u32, result: &Result<Yield, GuestError>) {
        let f = self.at_work();
        f.pieces -= 1;
        if let Err(e) = result {
            f.failed = Some(f.failed.map_or(chunk, |c| c.min(chunk)));
            if *e == GuestError::NoSpace {
                f.trouble = Some(JobTrouble::NoSpace);
            }
        }
        self.dirty = true;
    }

    // ------------------------------------------------------------------ the cut

    fn ask_absence(&mut self) {
        let chunks = u32::try_from(self.chunks.len()).expect("at most 2^20 chunks");
        let f = self.at_work();
        if f.outstanding > 0 {
            return;
        }
        if f.chunk >= chunks {
            f.step(Step::Cutting);
            f.trouble = None;
            self.dirty = true;
            return;
        }
        let (chunk, step, round) = (f.chunk, f.step, f.round);
        let blocks = self.blocks_of(chunk);
        if blocks == 0 {
            self.at_work().chunk = chunks;
            self.dirty = true;
            return;
        }
        let c = &self.chunks[chunk as usize];
        let all = c.set | c.required;
        let ready = c.number.0 > 0
            && c.undecided.is_none()
            && slots(all).all(|s| self.linked(c.slots[s].drive) && !self.drives[c.slots[s].drive].doubt);
        if !ready {
            // Who is to answer is gone: dropped before long, and then not asked.
            self.at_work().again = self.now + Span::millis(50);
            return;
        }
        let (views, head) = match step {
            Step::AskingView(g) => (std::iter::once(g).collect(), false),
            Step::AskingHead => (Generations::new(), true),
            _ if self.bugs.has(|b| b.cut_under_snapshot) => (Generations::new(), true),
            _ => (self.attached.views.kept.clone(), true),
        };
        let f = self.at_work();
        (f.outstanding, f.any) = (all.count_ones(), false);
        for slot in slots(all) {
            let drive = self.chunks[chunk as usize].slots[slot].drive;
            let token = self.ask(drive, What::Absence { round });
            self.send_slot(chunk, slot, token, Request::Absent { views: views.clone(), head, blocks });
        }
    }

    /// `None`: there is no answer.
    pub(crate) fn absence_answered(&mut self, round: u64, any: Option<bool>) {
        self.dirty = true;
        let now = self.now;
        let views = &self.attached.views;
        let Some(f) = self.flatten.as_mut().filter(|f| f.round == round && f.outstanding > 0) else { return };
        let Some(any) = any else {
            // asked anew, all of them, with what is kept then
            f.round += 1;
            (f.outstanding, f.again) = (0, now + Span::millis(50));
            return;
        };
        f.any |= any;
        f.outstanding -= 1;
        if f.outstanding > 0 {
            return;
        }
        f.round += 1;
        match (f.step, f.any) {
            (Step::Asking, false) => f.chunk += 1,
            (Step::Asking, true) => f.step = Step::AskingHead,
            (Step::AskingHead, true) => {
                let chunk = f.chunk;
                f.fill_again(chunk, now + AGAIN);
            }
            // A block that is there is never absent again: the newest that lacks one is looked for.
            (Step::AskingHead, false) => f.look_below(views, None, now),
            (Step::AskingView(g), false) => f.look_below(views, Some(g), now),
            (Step::AskingView(g), true) => {
                f.trouble = Some(JobTrouble::Snapshot { generation: g });
                f.rest(views, now);
            }
            (step, _) => unreachable!("{step:?} asks nobody"),
        }
    }

    fn ask_cut(&mut self) {
        let now = self.now;
        let (branch, epoch) = (self.branch, self.epoch);
        let filled = self.at_work().filled;
        let looks = |w: &What| matches!(w, What::Fetch { .. } | What::Map { .. });
        let old = self.pending.range(..=filled).any(|(_, p)| looks(&p.what));
        if old || self.parents_waited_for(true).is_some() {
            // It was begun before everything was filled: it may yet want what a parent has, and one that is let go would
            // not answer.
            self.at_work().again = now + Span::millis(50);
            return;
        }
        let f = self.at_work();
        if f.asked {
            return;
        }
        f.asked = true;
        f.again = now + Span::millis(200);
        let request = MetaRequest::Cut { branch, epoch, job: f.job };
        self.ask_metad(Asked::Cut, request);
    }

    /// What Raft knows of the branch after it was asked to cut; or nothing.
    pub(crate) fn cut_answered(&mut self, heard: bool) {
        let Some(f) = &mut self.flatten else { return };
        f.asked = false;
        if heard {
            // Cut, or called off: it is over, and if not, metad says so again.
            self.flatten = None;
        }
        self.dirty = true;
    }
}

impl Flatten {
    /// The next older snapshot than `than`: does it lack something?
    fn look_below(&mut self, views: &BranchViews, than: Option<Generation>, now: Time) {
        let older = views.kept.iter().rfind(|g| than.is_none_or(|t| *g < t));
        match older {
            Some(g) => self.step = Step::AskingView(g),
            // It is gone meanwhile.
            None => {
                let chunk = self.chunk;
                self.step(Step::Asking);
                (self.chunk, self.again) = (chunk, now + Span::millis(50));
            }
        }
    }
    fn rest(&mut self, views: &BranchViews, now: Time) {
        self.step(Step::Resting(views.index));
        self.again = now + LOOK_AGAIN;
    }
}

/// What is to be written where a hole and a part of what was read overlap, extent by extent.
fn pieces_of(p: &Part, hole: BlockRange, writes: &mut Vec<(BlockRange, OpKind)>) {
    let (mut first, end) = (p.first.max(hole.first), (p.first + p.count).min(hole.end()));
    let Some(payload) = &p.payload else {
        if first < end {
            match writes.last_mut() {
                Some((r, OpKind::Zero)) if r.end() == first => r.count += end - first,
                _ => writes.push((BlockRange::new(first, end - first), OpKind::Zero)),
            }
        }
        return;
    };
    while first < end {
        let next = ((first / BLOCKS_PER_EXTENT + 1) * BLOCKS_PER_EXTENT).min(end);
        let bytes = payload.slice((first - p.first) as usize, (next - first) as usize);
        writes.push((BlockRange::new(first, next - first), OpKind::Write(bytes)));
        first = next;
    }
}
