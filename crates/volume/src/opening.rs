//! A session opens (5.4): it serves nothing until every in-sync replica of the volume, on every drive, has
//! answered its fence, or is committed stale under the new epoch.

use crate::event::{CloseReason, Effect, Notice};
use crate::members::{bit, slots};
use crate::session::{Phase, Session, What};
use proto::message::{Report, Request};
use proto::{Refusal, Set, Version};

impl Session {
    /// Moves the opening, or the closing, as far as it can go.
    pub(crate) fn push_phase(&mut self) {
        loop {
            let before = self.phase;
            match before {
                Phase::Creating => self.push_creation(),
                Phase::Fencing => self.push_fencing(),
                Phase::Rewriting => self.push_rewrites(),
                Phase::Flushing => self.push_last_flush(),
                Phase::EndingDoubt => self.push_end_of_doubt(),
                Phase::Draining | Phase::Detaching => self.push_close(),
                Phase::Serving | Phase::Closed => {}
            }
            if self.phase == before {
                return;
            }
        }
    }

    /// Drives whose answers the opening needs.
    fn needed(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.drives.len()).filter(|&d| self.drives[d].required > 0)
    }

    fn asked_of(&self, drive: usize, what: fn(&What) -> bool) -> bool {
        self.pending.values().any(|p| p.drive == drive && what(&p.what))
    }

    pub(crate) fn send_fence(&mut self, drive: usize) {
        let d = &self.drives[drive];
        let asked = self.asked_of(drive, |w| matches!(w, What::Fence));
        if d.required == 0 || d.report.is_some() || asked || !self.linked(drive) || self.now < d.full_until {
            return;
        }
        self.drives[drive].reported = vec![];
        let token = self.ask(drive, What::Fence);
        let (number, holder) = (self.fence, self.me);
        self.send_drive(drive, token, Request::Fence { number, holder });
    }

    pub(crate) fn fence_refused(&mut self, drive: usize, refusal: Refusal) {
        match refusal {
            // no record of the branch: an emptied drive is refused, never read as zeroes
            Refusal::UnknownReplica => {
                for chunk in self.drives[drive].chunks.clone() {
                    let c = &self.chunks[chunk as usize];
                    if let Some(slot) = c.slot_of(drive).filter(|&s| c.set & bit(s) != 0) {
                        self.lacks(chunk, slot);
                    }
                }
            }
            Refusal::NoDrive => self.set_serving(drive, false),
            _ => {}
        }
        self.drives[drive].full_until = self.now + proto::Span::millis(200);
    }

    /// An answer counts only for the fence it answers.
    pub(crate) fn reported(&mut self, drive: usize, mut r: Report) {
        if self.phase != Phase::Fencing || r.fence != self.fence {
            return;
        }
        let runs = &mut self.drives[drive].reported;
        runs.append(&mut r.runs);
        if r.more {
            return;
        }
        r.runs = std::mem::take(runs);
        let held: Set<_> = r.chunks.iter().copied().collect();
        for chunk in self.drives[drive].chunks.clone() {
            let c = &self.chunks[chunk as usize];
            let Some(slot) = c.slot_of(drive).filter(|&s| c.set & bit(s) != 0) else { continue };
            if !held.contains(&(proto::ChunkIndex(chunk), c.slots[slot].place.incarnation)) {
                self.lacks(chunk, slot);
            }
        }
        let d = &mut self.drives[drive];
        d.credits = 0;
        d.episode += u64::from(r.in_doubt && !d.doubt);
        d.doubt = r.in_doubt;
        d.report = Some(r);
        self.dirty = true;
    }

    fn push_fencing(&mut self) {
        for d in self.needed().collect::<Vec<_>>() {
            self.send_fence(d);
        }
        let lacking = self.lacking.iter().any(|&chunk| {
            let c = &self.chunks[chunk as usize];
            slots(c.required).any(|s| c.slots[s].lacking)
        });
        if !lacking && self.needed().all(|d| self.drives[d].report.is_some()) {
            self.begin_reconciliation();
        }
    }

    /// A member connects as another process, or has fallen into doubt: all are fenced again.
    pub(crate) fn open_afresh(&mut self) {
        let begun = self.phase > Phase::Fencing || self.drives.iter().any(|d| d.report.is_some());
        if self.phase < Phase::Fencing || !begun {
            return;
        }
        self.fence += 1;
        self.pending.retain(|_, p| {
            !matches!(p.what, What::Fence | What::Rewrite { .. } | What::Flush | What::EndDoubt)
        });
        self.window.restart(self.seq + 1);
        self.committed = self.seq;
        for c in &mut self.chunks {
            c.in_flight = 0;
        }
        for d in &mut self.drives {
            d.report = None;
            d.notes.clear();
            d.flushing.clear();
        }
        self.rewrites = crate::reconcile::Rewrites::default();
        self.enter(Phase::Fencing);
    }

    pub(crate) fn rewritten(&mut self) {
        // what is being sealed was perhaps never flushed by the predecessor
        let must = self.rewrites.count > 0 || self.rewrites.seals();
        if must && !self.bugs.has(|b| b.serve_before_flush) {
            self.flush_dirty = true;
            self.enter(Phase::Flushing);
        } else {
            self.enter(Phase::EndingDoubt);
        }
    }

    fn push_last_flush(&mut self) {
        let upto = self.version(self.seq);
        if self.needed().all(|d| self.flushed_to(d) >= upto) {
            self.enter(Phase::EndingDoubt);
        }
    }

    fn push_end_of_doubt(&mut self) {
        let doubtful: Vec<usize> = self.needed().filter(|&d| self.drives[d].doubt).collect();
        if doubtful.is_empty() {
            return self.serve();
        }
        for d in doubtful {
            if self.linked(d) && !self.asked_of(d, |w| matches!(w, What::EndDoubt)) {
                let token = self.ask(d, What::EndDoubt);
                self.send_drive(d, token, Request::EndDoubt);
            }
        }
    }

    pub(crate) fn doubt_ended(&mut self, drive: usize) {
        self.drives[drive].doubt = false;
        self.dirty = true;
    }

    /// It serves, regarding every drive of the volume as unflushed.
    fn serve(&mut self) {
        assert!(self.window.iter().all(|(_, w)| w.done), "what reconciliation wrote is everywhere");
        for d in &mut self.drives {
            d.flushed = Version::ZERO;
            d.notes.clear();
            d.report = None;
        }
        self.committed = self.seq;
        self.answered = self.seq;
        // A predecessor may have written any generation up to the head of the attach; what was asked for since waits.
        self.generation = self.generation.max(self.due());
        if self.rewrites.seals() {
            self.seal.flushed_below(self.generation);
        }
        let extents = std::mem::take(&mut self.rewrites).count;
        if extents > 0 {
            self.notice(Notice::Reconciled { extents });
        }
        self.enter(Phase::Serving);
        self.raise_marks();
        self.effects.push_back(Effect::Opened { geometry: self.geometry });
    }

    /// Another session exists, or this one cannot go on: it gives up everything.
    pub(crate) fn give_up(&mut self, reason: CloseReason) {
        if self.phase == Phase::Closed {
            return;
        }
        self.drop_guests(crate::GuestError::Gone);
        self.pending.clear();
        self.asked.clear();
        self.attempts.clear();
        self.window.restart(self.seq + 1);
        self.waits.clear();
        self.phase = Phase::Closed;
        self.effects.push_back(Effect::Closed { reason });
    }
}
