//! Acknowledgements (promise 2): a write is answered when everyone required has it, and `min_in_sync` of the
//! intersection. The marks (section 1) follow.

use crate::event::CloseReason;
use crate::fanout::Sent;
use crate::members::{Chunk, bit, slots};
use crate::ops::Yield;
use crate::request::GuestError;
use crate::resync::Step;
use crate::session::{Phase, Session};
use proto::limits::MARKS_EVERY;
use proto::message::{Ack, Request};
use proto::{DriveId, Marks, Refusal, Span, Version};

/// An opening that found no space asks again after this.
const REWRITE_AGAIN: Span = Span::millis(200);

/// Promise 2. What reconciliation writes is not a guest's: all required, whatever their number.
fn complete(s: &Sent, c: &Chunk, min: u32) -> bool {
    s.acked & c.required == c.required && (s.op.is_none() || (s.acked & c.inter).count_ones() >= min)
}

impl Session {
    pub(crate) fn acked(&mut self, a: &Ack) {
        if a.branch != self.branch || a.version.epoch != self.epoch {
            return;
        }
        let Some(&drive) = self.drive_ix.get(&a.drive) else { return };
        let seq = a.version.seq;
        let Some(w) = self.window.get(seq) else { return };
        let chunk = w.chunk;
        let c = &self.chunks[chunk as usize];
        let Some(slot) = c.slot_of(drive) else { return };
        if w.sent & bit(slot) == 0 || w.acked & bit(slot) != 0 {
            return;
        }
        w.acked |= bit(slot);
        let took = self.now.since(w.at);
        let credit = w.fresh & bit(slot) != 0 && a.extents == 0;
        let refused = w.refused;
        for s in slots(refused) {
            self.lacks(chunk, s);
        }
        let d = &mut self.drives[drive];
        d.latency = d.latency - d.latency / 8 + took.0 / 8;
        d.samples += 1;
        d.credits += u32::from(credit);
        if self.settle(seq) {
            self.advance();
        }
        if !self.attempts.is_empty() {
            self.dirty = true;
        }
    }

    /// After something changed for write `seq`: answers it if it is complete, lets go of it if nobody waits for
    /// it. True if the marks may have moved.
    pub(crate) fn settle(&mut self, seq: u64) -> bool {
        let min = u32::from(self.attached.min_in_sync);
        let Some(w) = self.window.get(seq) else { return false };
        let c = &mut self.chunks[w.chunk as usize];
        let mut moved = false;
        let mut answer = None;
        let fails = !self.attached.wait_when_degraded && c.undecided.is_none() && c.inter.count_ones() < min;
        let (chunk, all_have_it) = (w.chunk, w.live && !w.done && w.acked & c.required == c.required);
        if fails && all_have_it && w.op.is_some() {
            self.fail_if_too_few(chunk);
            return false;
        }
        if w.live && !w.done && complete(w, c, min) {
            w.done = true;
            moved = true;
            answer = w.op;
            self.answered = self.answered.max(seq);
        }
        if w.live && w.done && w.acked & w.sent == w.sent {
            w.live = false;
            w.payload = None;
            c.in_flight -= 1;
            moved = true;
        }
        if let Some(op) = answer {
            self.end_op(op, Ok(Yield::Written(seq)));
        }
        if self.opening() || self.seal.holds() {
            self.dirty = true;
        }
        moved
    }

    /// The marks, as far as they have come. They rise only while the session serves.
    pub(crate) fn advance(&mut self) {
        while self.window.get(self.committed + 1).is_some_and(|w| w.done) {
            self.committed += 1;
        }
        self.window.trim();
        self.raise_marks();
    }

    pub(crate) fn raise_marks(&mut self) {
        if self.serving() {
            let committed = self.version(self.committed);
            self.said.raise(Marks { committed, durable: Version::ZERO });
        }
    }

    /// The least flushed(d) over all that are required; durable follows it.
    pub(crate) fn raise_durable(&mut self) {
        if self.serving() {
            let least =
                self.concerned(None).into_iter().map(|d| self.flushed_to(d)).min().unwrap_or(Version::ZERO);
            let durable = least.min(self.said.committed);
            self.said.raise(Marks { committed: Version::ZERO, durable });
        }
    }

    /// 5.1: marks are told once a second at least, while they move.
    pub(crate) fn tell_marks(&mut self) {
        if !self.serving() {
            return;
        }
        for d in 0..self.drives.len() {
            let x = &self.drives[d];
            if x.required == 0 || !self.linked(d) || self.now.since(x.told_at) < MARKS_EVERY {
                continue;
            }
            if x.told != self.said {
                self.send_drive(d, 0, Request::Marks);
            }
            self.drives[d].told_at = self.now;
        }
    }

    pub(crate) fn marks_untold(&self) -> bool {
        self.serving()
            && (0..self.drives.len())
                .any(|d| self.drives[d].required > 0 && self.drives[d].told != self.said && self.linked(d))
    }

    /// Whose acknowledgement write entries of this chunk wait for has changed.
    pub(crate) fn settle_chunk(&mut self, chunk: u32) {
        let c = &self.chunks[chunk as usize];
        if c.in_flight > 0 {
            let keep = c.required | c.fanout;
            let mine: Vec<u64> =
                self.window.iter().filter(|(_, w)| w.live && w.chunk == chunk).map(|(seq, _)| seq).collect();
            for seq in mine {
                if let Some(w) = self.window.get(seq) {
                    w.sent &= keep;
                    w.acked &= keep;
                    w.refused &= keep;
                    if w.refused != 0 && !w.done && self.judge_refused(seq) {
                        // opened afresh: there is no window any more
                        return;
                    }
                }
                self.settle(seq);
            }
            self.advance();
        }
        self.fail_if_too_few(chunk);
        if !self.parked.is_empty() {
            self.unpark(chunk);
        }
        self.flush_dirty = true;
        self.dirty = true;
    }

    /// A class that fails writes rather than wait: all in-sync replicas have the write, but they are too few.
    fn fail_if_too_few(&mut self, chunk: u32) {
        let c = &self.chunks[chunk as usize];
        let few = c.inter.count_ones() < u32::from(self.attached.min_in_sync);
        if self.attached.wait_when_degraded || !few || c.undecided.is_some() || c.in_flight == 0 {
            return;
        }
        let required = c.required;
        let mut failed = vec![];
        for (_, w) in self.window.iter_mut() {
            if w.chunk == chunk && w.live && !w.done && w.acked & required == required && w.op.is_some() {
                failed.extend(w.op.take());
            }
        }
        let seqs: Vec<u64> =
            self.window.iter().filter(|(_, w)| w.chunk == chunk && w.live).map(|(s, _)| s).collect();
        for op in failed {
            self.end_op(op, Err(GuestError::Io));
        }
        for seq in seqs {
            self.settle(seq);
        }
        self.advance();
    }

    /// A write was refused by a replica.
    pub(crate) fn write_refused(&mut self, drive: DriveId, version: Version, refusal: Refusal) {
        let Some(&d) = self.drive_ix.get(&drive) else { return };
        if version.epoch != self.epoch {
            return;
        }
        let Some(w) = self.window.get(version.seq) else { return };
        let chunk = w.chunk;
        let Some(slot) = self.chunks[chunk as usize].slot_of(d) else { return };
        if w.sent & bit(slot) == 0 || w.acked & bit(slot) != 0 {
            return;
        }
        let required = self.chunks[chunk as usize].required & bit(slot) != 0;
        match refusal {
            Refusal::OldEpoch => self.give_up(CloseReason::Fenced),
            Refusal::OldConnection | Refusal::Closing => {}
            Refusal::DriveNotConfirmed => self.set_serving(d, false),
            Refusal::NoSpace => self.no_space(version.seq, slot),
            _ if !required => self.end_attempt_of(chunk, slot),
            Refusal::NoDrive | Refusal::DriveFailed => self.drives[d].failed = true,
            _ => self.lacks(chunk, slot),
        }
        self.dirty = true;
    }

    /// A target that is about to be promoted may be required already: it is let go first.
    fn no_space(&mut self, seq: u64, slot: usize) {
        let Some(w) = self.window.get(seq) else { return };
        let chunk = w.chunk;
        let target = self.target_of(chunk).is_some_and(|(t, step)| t == slot && step < Step::Proposed);
        if target || self.chunks[chunk as usize].required & bit(slot) == 0 {
            return self.end_attempt_of(chunk, slot);
        }
        if let Some(w) = self.window.get(seq) {
            w.refused |= bit(slot);
        }
        self.judge_refused(seq);
    }

    /// Section 4, Space: once sent, a write is applied by all in-sync replicas, or those that refused are marked
    /// stale, or it is undone where it was applied. Here: if all refused nothing is applied, and the guest gets
    /// the error; otherwise those that refused are marked stale. What an opening rewrites is no guest's to hear of, and must
    /// be equal everywhere before anything is served: rather than leave fewer than `min_in_sync`, it waits for space. True:
    /// the session opens afresh.
    fn judge_refused(&mut self, seq: u64) -> bool {
        let min = u32::from(self.attached.min_in_sync);
        let Some(w) = self.window.get(seq) else { return false };
        let (chunk, refused) = (w.chunk, w.refused);
        let required = self.chunks[chunk as usize].required;
        let all = required & !refused == 0;
        if self.phase == Phase::Rewriting && (all || (required & !refused).count_ones() < min) {
            for s in slots(refused) {
                let drive = self.chunks[chunk as usize].slots[s].drive;
                self.drives[drive].full_until = self.now + REWRITE_AGAIN;
            }
            self.open_afresh();
            return true;
        }
        if all {
            // a target may have it: it is not in-sync, and what it holds beyond its source is pulled over
            let sent = w.sent;
            w.acked = sent;
            let op = w.op.take();
            if let Some((slot, _)) = self.target_of(chunk) {
                self.end_attempt_of(chunk, slot);
            }
            if let Some(op) = op {
                self.end_op(op, Err(GuestError::NoSpace));
            }
            self.settle(seq);
            self.advance();
        } else if w.acked != 0 {
            for s in slots(refused) {
                self.lacks(chunk, s);
            }
        }
        false
    }
}
