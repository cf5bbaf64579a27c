//! A seal (6): the session drains, flushes every required drive, goes on with the next generation, and confirms.
//!
//! Acted upon is only what metad *answered* to this session's epoch: a watch says where to look. An older session that
//! acted on a seal asked for after its successor had attached would write a generation that the successor does not
//! know of (decision 0013).
//! Invariants: nothing of a drained generation is in flight; while writes are held none is sent. A single volume's
//! writes are never held longer than `PAUSE`: then they go on in the old generation, and it is tried again. Those of
//! a group are held until Raft says that all are drained, or that it is called off.

use crate::members::Chunk;
use crate::session::{Asked, Phase, Session};
use proto::control::MetaRequest;
use proto::{BranchViews, Generation, ListIndex, Span, Time};
use std::collections::VecDeque;

/// How long writes are held at most for the sake of one volume.
const PAUSE: Span = Span::millis(250);
/// After a pause that came to nothing.
const RETRY: Span = Span::millis(200);
/// Between two questions to metad.
const ASK_AGAIN: Span = Span::millis(50);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Nothing is being sealed.
    Idle,
    /// Until nothing stands in the way of a short pause; and not before this.
    Waiting(Time),
    /// The drives are flushed up to this write while I/O goes on, so that the flush of the pause is a short one.
    Flushing(u64),
    /// Since then writes are held, until all that was sent is everywhere and flushed.
    Paused(Time),
    /// The next generation is written, and Raft does not know it yet.
    Confirming,
    /// Of a group, since then: drained and flushed; held.
    Held(Time),
}

#[derive(Debug)]
pub(crate) struct Seal {
    pub step: Step,
    /// What is being sealed.
    generation: Generation,
    group: bool,
    /// Every generation up to here was drained and flushed by this session.
    drained: Generation,
    /// Operations whose writes are held, in their order.
    waits: VecDeque<usize>,
    /// Newest write when the pause began.
    seq: u64,
    /// metad has answered that it knows the group's member to be drained.
    told: bool,
    /// metad said that it knows more.
    hinted: ListIndex,
    /// Somebody refused what he should have: what is known of the views may be old.
    wanted: bool,
    asked: bool,
    ask_after: Time,
}

impl Seal {
    pub fn new() -> Seal {
        Seal {
            step: Step::Idle,
            generation: Generation(0),
            group: false,
            drained: Generation(0),
            waits: VecDeque::new(),
            seq: 0,
            told: false,
            hinted: ListIndex::default(),
            wanted: false,
            asked: false,
            ask_after: Time::ZERO,
        }
    }
    /// Guests' writes are not sent.
    pub fn holds(&self) -> bool {
        matches!(self.step, Step::Paused(_) | Step::Held(_))
    }
    /// Something about it is under way.
    pub fn busy(&self) -> bool {
        self.step != Step::Idle || self.wanted || self.asked
    }
    /// Resync attempts would be in the way.
    pub fn bars_attempts(&self) -> bool {
        matches!(self.step, Step::Flushing(_) | Step::Paused(_) | Step::Held(_))
    }
    /// When the pause is over at the latest.
    pub fn wake(&self) -> Time {
        if let Step::Paused(since) = self.step { since + PAUSE } else { Time::FAR }
    }
    pub fn hold(&mut self, op: usize) {
        self.waits.push_back(op);
    }
    pub fn clear(&mut self) {
        self.waits.clear();
        self.step = Step::Idle;
    }
    /// Up to which write the drives are to be flushed for it.
    pub fn flush_upto(&self, seq: u64, drained: bool) -> Option<u64> {
        match self.step {
            Step::Flushing(upto) => Some(upto),
            Step::Paused(_) if drained => Some(seq),
            _ => None,
        }
    }
    /// An opening has flushed every generation below this one.
    pub fn flushed_below(&mut self, head: Generation) {
        self.drained = Generation(head.0 - 1);
    }
}

impl Session {
    /// metad's watch: it knows more than this. Nothing is done by it but asking.
    pub(crate) fn views_told(&mut self, views: &BranchViews) {
        let index = views.index;
        if index > self.attached.views.index && index > self.seal.hinted {
            self.seal.hinted = index;
            self.seal.ask_after = self.now;
            self.dirty = true;
        }
    }

    /// What Raft knows of the branch's generations, in a state in which this session's epoch is the present one.
    pub(crate) fn views_answered(&mut self, views: BranchViews) {
        self.seal.wanted = false;
        self.dirty = true;
        if views.index <= self.attached.views.index {
            return;
        }
        self.attached.views = views;
    }

    /// The generation to be written now: until it is drained, the one that is being sealed.
    pub(crate) fn due(&self) -> Generation {
        let views = &self.attached.views;
        views.sealing.map_or(views.head, |s| s.generation)
    }

    /// The question was answered, or never will be.
    pub(crate) fn views_heard(&mut self, sealed: Option<Generation>, heard: bool) {
        self.seal.asked = false;
        self.seal.ask_after = self.now + ASK_AGAIN;
        self.seal.told |= heard && sealed == Some(self.seal.generation);
    }

    /// A replica does not keep a view that it was asked for.
    pub(crate) fn views_in_question(&mut self) {
        self.seal.wanted = true;
        self.dirty = true;
    }

    /// Moves the seal as far as it can go.
    pub(crate) fn push_seal(&mut self) {
        if self.serving() {
            self.follow_views();
            while self.push_seal_once() {}
        }
        self.ask_views();
    }

    /// What the newest answer of metad makes of the seal.
    pub(crate) fn follow_views(&mut self) {
        let (due, sealing) = (self.due(), self.attached.views.sealing);
        if due > self.generation {
            // called off; or all of the group are drained
            self.go_on_in(due);
        }
        match self.seal.step {
            Step::Confirming | Step::Held(_) if due > self.seal.generation => self.end_pause(Step::Idle),
            Step::Waiting(_) | Step::Flushing(_) | Step::Paused(_)
                if self.generation > self.seal.generation =>
            {
                self.end_pause(Step::Idle);
            }
            Step::Waiting(_) | Step::Flushing(_) | Step::Paused(_) if self.phase != Phase::Serving => {
                // it closes: what is left is written in the old generation, and the clean end seals it
                self.end_pause(Step::Idle);
            }
            _ => {}
        }
        let Some(s) = sealing.filter(|_| self.seal.step == Step::Idle && self.phase == Phase::Serving) else {
            return;
        };
        let step = if s.generation == self.generation {
            Step::Waiting(self.now)
        } else if s.generation < self.generation && s.generation <= self.seal.drained {
            // drained and flushed by the opening
            if s.group { Step::Held(self.now) } else { Step::Confirming }
        } else {
            return;
        };
        (self.seal.generation, self.seal.group, self.seal.told) = (s.generation, s.group, false);
        (self.seal.step, self.seal.seq) = (step, self.seq);
        self.dirty = true;
    }

    /// One step. True if there may be another.
    fn push_seal_once(&mut self) -> bool {
        match self.seal.step {
            Step::Waiting(again) if self.now >= again => {
                if self.bugs.has(|b| b.cut_misses_write) {
                    self.sealed();
                    return false;
                }
                if self.seal_obstructed() {
                    return false;
                }
                // 6: a seal restarts the attempts under way (while it has to wait, they may be what it waits for)
                self.drop_attempts_for_seal();
                self.seal.step = Step::Flushing(self.seq);
                self.flush_dirty = true;
                true
            }
            Step::Flushing(_) if self.seal_obstructed() => {
                self.seal.step = Step::Waiting(self.now + ASK_AGAIN);
                false
            }
            Step::Flushing(upto) if self.flushed_everywhere(upto) => {
                self.seal.step = Step::Paused(self.now);
                self.seal.seq = self.seq;
                self.flush_dirty = true;
                true
            }
            Step::Paused(since) => {
                if self.seal_obstructed() {
                    self.end_pause(Step::Waiting(self.now + RETRY));
                } else if self.drained() && self.flushed_everywhere(self.seq) {
                    self.sealed();
                } else if self.now.since(since) >= PAUSE {
                    self.end_pause(Step::Waiting(self.now + RETRY));
                } else {
                    self.flush_dirty = true;
                }
                false
            }
            _ => false,
        }
    }

    /// Everything that was sent is everywhere, and flushed there.
    fn sealed(&mut self) {
        let g = self.generation;
        self.seal.drained = g;
        self.seal.ask_after = self.now;
        if self.seal.group {
            self.seal.step = Step::Held(self.now);
            self.seal.seq = self.seq;
        } else {
            self.go_on_in(Generation(g.0 + 1));
            self.end_pause(Step::Confirming);
        }
        self.dirty = true;
    }

    /// Later writes carry this generation. No attempt crosses the border: it would pull what is sealed into the next.
    fn go_on_in(&mut self, generation: Generation) {
        self.drop_attempts_for_seal();
        self.generation = generation;
        self.dirty = true;
    }

    fn drop_attempts_for_seal(&mut self) {
        if !self.bugs.has(|b| b.seal_leaves_attempt) {
            for chunk in self.attempts.keys().copied().collect::<Vec<_>>() {
                self.drop_attempt(chunk);
            }
        }
    }

    fn end_pause(&mut self, next: Step) {
        self.seal.step = next;
        for id in std::mem::take(&mut self.seal.waits) {
            self.send_op(id);
        }
        self.dirty = true;
    }

    pub(crate) fn drained(&self) -> bool {
        self.window.iter().all(|(_, w)| w.done)
    }

    pub(crate) fn flushed_everywhere(&self, upto: u64) -> bool {
        let upto = self.version(upto);
        self.drives.iter().enumerate().all(|(d, x)| x.required == 0 || self.flushed_to(d) >= upto)
    }

    /// A drain would not end soon: a change is undecided, a member cannot be reached or is about to be dropped, or
    /// writes wait for more replicas.
    fn seal_obstructed(&self) -> bool {
        let few = |c: &Chunk| c.in_flight > 0 && c.inter.count_ones() < u32::from(self.attached.min_in_sync);
        !self.undecided.is_empty()
            || !self.lacking.is_empty()
            || self.degraded.iter().any(|&c| few(&self.chunks[c as usize]))
            || (0..self.drives.len()).any(|d| {
                let x = &self.drives[d];
                x.required > 0 && (!self.linked(d) || x.overdue || self.ignores_flush(d))
            })
    }

    fn ask_views(&mut self) {
        if self.seal.asked || self.now < self.seal.ask_after || self.phase >= Phase::Detaching {
            return;
        }
        let (branch, epoch) = (self.branch, self.epoch);
        let confirms = match self.seal.step {
            Step::Confirming => true,
            Step::Held(_) => !self.seal.told,
            _ => false,
        };
        let behind = self.seal.hinted > self.attached.views.index;
        if confirms {
            let generation = self.seal.generation;
            let request = MetaRequest::Sealed { branch, epoch, generation };
            self.ask_metad(Asked::Views(Some(generation)), request);
        } else if self.seal.wanted || behind || matches!(self.seal.step, Step::Held(_)) {
            self.ask_metad(Asked::Views(None), MetaRequest::Views { branch, epoch });
        } else {
            return;
        }
        self.seal.asked = true;
    }

    /// Since when writes are held for a group.
    pub(crate) fn held_since(&self) -> Option<Time> {
        if let Step::Held(since) = self.seal.step { Some(since) } else { None }
    }

    pub(crate) fn views_behind(&self) -> bool {
        self.seal.hinted > self.attached.views.index
    }

    pub(crate) fn check_seal(&self) {
        let lies = self.bugs.has(|b| b.cut_misses_write);
        let clear = |d: Generation| self.window.iter().all(|(_, w)| w.done || w.record.generation > d);
        assert!(lies || clear(self.seal.drained), "nothing of a drained generation is in flight");
        let held = matches!(self.seal.step, Step::Held(_));
        let over = held || self.phase == Phase::Closed;
        assert!(over || self.generation > self.seal.drained, "what is drained is written no more");
        assert!(!self.seal.holds() || self.seq == self.seal.seq, "nothing is sent while writes are held");
        assert!(self.seal.holds() || self.seal.waits.is_empty(), "nothing is held without a reason");
    }
    /// True while guests' writes are held for a seal, and whether for a group.
    #[must_use]
    pub fn holds_writes(&self) -> Option<bool> {
        self.seal.holds().then_some(matches!(self.seal.step, Step::Held(_)))
    }
    /// The generation that it writes.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }
}
