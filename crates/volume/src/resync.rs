//! A replica comes back, or a new one is placed (5.3): the session's side of an attempt. The target does the
//! comparing and pulling.

use crate::event::{Leases, Notice};
use crate::members::{Mask, bit, slots};
use crate::session::{Phase, Session, What};
use proto::control::ChangeCause;
use proto::message::{self, ChunkRecord, Request};
use proto::{ChunkIndex, ConfigNumber, MemberState, Place, ProcessNumber, Refusal, Span, Time};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Step {
    Begun,
    /// The target has stored the epoch; v0 is fixed: it is sent every write from there on.
    Ready,
    Listed,
    /// Everything is pulled; no write is answered any more without the target.
    Pulled,
    /// (1): it has every write that was answered. Now a flush must cover everything up to here.
    Required,
    Proposed,
}

#[derive(Debug)]
pub(crate) struct Attempt {
    pub number: u64,
    pub chunk: u32,
    pub target: usize,
    place: Place,
    source: usize,
    configuration: ConfigNumber,
    source_process: ProcessNumber,
    episode: u64,
    pub step: Step,
    v0: u64,
    pub need: u64,
    /// A flush of the target that began since it is required, and what it covered when done.
    pub note: Option<(u64, u64)>,
    pub flushed: Option<u64>,
    moved: u64,
    left: Option<u64>,
    heard: Time,
}

impl Attempt {
    pub fn awaits_flush(&self) -> bool {
        self.step == Step::Required && self.flushed.is_none_or(|f| f < self.need)
    }
}

/// What all attempts of this session have done.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub moved: u64,
    pub rate: u64,
    measured: Time,
    measured_moved: u64,
}

/// Attempts at once: guest I/O first.
const PARALLEL_IDLE: usize = 8;
const PARALLEL_BUSY: usize = 2;
/// Chunks looked at per round.
const SCAN: usize = 256;
const RETRY: Span = Span::millis(200);
const RETRY_FAILED: Span = Span::secs(1);
const RETRY_FULL: Span = Span::secs(5);
/// A target that says nothing for so long.
const SILENT: Span = Span::secs(30);

impl Session {
    /// Of the attempt of a chunk: who must acknowledge, and who is sent writes.
    pub(crate) fn target_masks(&self, chunk: u32) -> (Mask, Mask) {
        let Some(a) = self.attempts.get(&chunk) else { return (0, 0) };
        let early = self.bugs.has(|b| b.promote_early);
        let demanded = if a.step >= Step::Pulled && !early { bit(a.target) } else { 0 };
        (demanded, if a.step >= Step::Ready { bit(a.target) } else { 0 })
    }

    pub(crate) fn target_of(&self, chunk: u32) -> Option<(usize, Step)> {
        self.attempts.get(&chunk).map(|a| (a.target, a.step))
    }

    /// Moves every attempt as far as it can go, and begins others.
    pub(crate) fn push_resync(&mut self, leases: &dyn Leases) {
        if self.phase != Phase::Serving {
            return;
        }
        for chunk in self.attempts.keys().copied().collect::<Vec<_>>() {
            self.push_attempt(chunk, leases);
        }
        self.begin_attempts();
        self.measure();
    }

    fn push_attempt(&mut self, chunk: u32, leases: &dyn Leases) {
        let Some(a) = self.attempts.get(&chunk) else { return };
        let (step, target, v0, number) = (a.step, a.target, a.v0, a.number);
        let required = self.chunks[chunk as usize].required;
        let of_chunk = |w: &crate::fanout::Sent| w.live && w.chunk == chunk;
        match step {
            Step::Ready => {
                // 5.3: all writes < v0 are acknowledged by all in-sync replicas
                let clear = self.chunks[chunk as usize].in_flight == 0
                    || self
                        .window
                        .iter()
                        .all(|(seq, w)| !of_chunk(w) || seq >= v0 || w.acked & required == required);
                if clear || self.bugs.has(|b| b.list_early) {
                    self.list(chunk);
                }
            }
            Step::Pulled => {
                let has_all = self.chunks[chunk as usize].in_flight == 0
                    || self.window.iter().all(|(_, w)| !of_chunk(w) || !w.done || w.acked & bit(target) != 0);
                if self.bugs.has(|b| b.promote_early) {
                    return self.promote(chunk);
                }
                if has_all {
                    let need = self.seq;
                    let a = self.attempts.get_mut(&chunk).expect("just seen");
                    (a.step, a.need) = (Step::Required, need);
                    self.flush_dirty = true;
                }
            }
            Step::Required => {
                let a = &self.attempts[&chunk];
                let drive = self.chunks[chunk as usize].slots[target].drive;
                let leased = self.lease_held(drive, leases);
                let flushed = !a.awaits_flush() || self.bugs.has(|b| b.flush_misses_target);
                let ready = self.linked(drive) && flushed && leased;
                if ready && self.chunks[chunk as usize].undecided.is_none() {
                    self.promote(chunk);
                }
            }
            Step::Begun | Step::Listed if self.now.since(self.attempts[&chunk].heard) > SILENT => {
                self.attempt_failed(number, Refusal::Closing);
            }
            Step::Begun | Step::Listed | Step::Proposed => {}
        }
    }

    fn list(&mut self, chunk: u32) {
        let now = self.now;
        let a = self.attempts.get_mut(&chunk).expect("its attempt");
        (a.step, a.heard) = (Step::Listed, now);
        let (number, target) = (a.number, a.target);
        let drive = self.chunks[chunk as usize].slots[target].drive;
        let token = self.ask(drive, What::List { chunk, number });
        self.send_slot(chunk, target, token, Request::AttemptList { number });
    }

    fn promote(&mut self, chunk: u32) {
        let a = self.attempts.get_mut(&chunk).expect("its attempt");
        a.step = Step::Proposed;
        let (number, target) = (a.number, a.target);
        self.propose(chunk, target, Some(MemberState::InSync), ChangeCause::Promoted(number), vec![]);
    }

    /// Begins attempts, and lets go of members that leave.
    fn begin_attempts(&mut self) {
        if self.seal.bars_attempts() && !self.bugs.has(|b| b.seal_leaves_attempt) {
            return;
        }
        let most = if self.requests.is_empty() { PARALLEL_IDLE } else { PARALLEL_BUSY };
        let from = self.scan_from;
        let around: Vec<u32> =
            self.degraded.range(from..).chain(self.degraded.range(..from)).copied().take(SCAN).collect();
        for chunk in around {
            self.scan_from = chunk;
            if self.attempts.len() >= most {
                return;
            }
            let c = &self.chunks[chunk as usize];
            if c.undecided.is_some() || self.attempts.contains_key(&chunk) {
                continue;
            }
            let whole = c.count(MemberState::InSync) >= usize::from(self.attached.copies);
            if whole {
                let leaving =
                    c.members().find(|(_, s)| s.state == MemberState::Leaving).map(|(slot, _)| slot);
                if let Some(slot) = leaving {
                    self.propose(chunk, slot, None, ChangeCause::Left, vec![]);
                }
                continue;
            }
            self.begin_attempt(chunk);
        }
        self.scan_from = self.scan_from.wrapping_add(1);
    }

    fn target_for(&self, chunk: u32) -> Option<usize> {
        let c = &self.chunks[chunk as usize];
        c.members()
            .find(|(_, s)| s.state == MemberState::Stale && self.linked(s.drive) && s.retry <= self.now)
            .map(|(i, _)| i)
    }

    /// In-sync and not in doubt; spread over the members.
    fn source_for(&self, chunk: u32) -> Option<usize> {
        let c = &self.chunks[chunk as usize];
        let good: Vec<usize> = slots(c.inter)
            .filter(|&s| {
                let d = c.slots[s].drive;
                self.linked(d) && !self.drives[d].doubt && !c.slots[s].lacking
            })
            .collect();
        good.get(chunk as usize % good.len().max(1)).copied()
    }

    fn begin_attempt(&mut self, chunk: u32) {
        let (Some(target), Some(source)) = (self.target_for(chunk), self.source_for(chunk)) else { return };
        let c = &self.chunks[chunk as usize];
        let process = |slot: usize| self.nodes[self.drives[c.slots[slot].drive].node].process;
        let (Some(source_process), Some(target_process)) = (process(source), process(target)) else { return };
        self.attempt_number += 1;
        let drive = c.slots[target].drive;
        let attempt = message::Attempt {
            number: self.attempt_number,
            epoch: self.epoch,
            chunk: ChunkIndex(chunk),
            configuration: c.number,
            generation: self.generation,
            views: self.attached.views.kept.below(self.generation),
            head: self.attached.views.named,
            source: c.slots[source].place,
            source_process,
            target: c.slots[target].place,
            target_process,
        };
        let place = c.slots[target].place;
        let state = Attempt {
            number: attempt.number,
            chunk,
            target,
            place,
            source,
            configuration: c.number,
            source_process,
            episode: self.drives[drive].episode,
            step: Step::Begun,
            v0: 0,
            need: 0,
            note: None,
            flushed: None,
            moved: 0,
            left: None,
            heard: self.now,
        };
        self.attempts.insert(chunk, state);
        let token = self.ask(drive, What::Begin { chunk, number: attempt.number });
        self.send_slot(chunk, target, token, Request::AttemptBegin { attempt });
        self.notice(Notice::ResyncStarted { chunk: ChunkIndex(chunk), target: place.drive });
    }

    fn attempt(&mut self, chunk: u32, number: u64) -> Option<&mut Attempt> {
        let now = self.now;
        let a = self.attempts.get_mut(&chunk).filter(|a| a.number == number)?;
        a.heard = now;
        Some(a)
    }

    /// The target has stored epoch and marks: v0 is the next version.
    pub(crate) fn attempt_ready(&mut self, chunk: u32, number: u64) {
        let v0 = self.seq + 1;
        let Some(a) = self.attempt(chunk, number).filter(|a| a.step == Step::Begun) else { return };
        (a.step, a.v0) = (Step::Ready, v0);
        self.recompute(chunk);
    }

    /// A placement that was never made: its record first. Never for a member that Raft calls in-sync.
    fn make_record(&mut self, chunk: u32, number: u64) {
        let Some(target) = self.attempt(chunk, number).map(|a| a.target) else { return };
        let c = &self.chunks[chunk as usize];
        let s = c.slots[target];
        assert!(s.state == MemberState::Stale, "no session creates a record that Raft calls in-sync");
        let record = ChunkRecord {
            chunk: ChunkIndex(chunk),
            incarnation: s.place.incarnation,
            configuration: c.configuration(),
        };
        let info = self.branch_info();
        let token = self.ask(s.drive, What::Record { chunk, number });
        self.send_drive(s.drive, token, Request::Create { info, chunks: vec![record] });
    }

    pub(crate) fn record_made(&mut self, chunk: u32, number: u64) {
        let Some(a) = self.attempt(chunk, number) else { return };
        let (target, source, source_process) = (a.target, a.source, a.source_process);
        let c = &self.chunks[chunk as usize];
        let drive = c.slots[target].drive;
        let Some(target_process) = self.nodes[self.drives[drive].node].process else { return };
        let attempt = message::Attempt {
            number,
            epoch: self.epoch,
            chunk: ChunkIndex(chunk),
            configuration: c.number,
            generation: self.generation,
            views: self.attached.views.kept.below(self.generation),
            head: self.attached.views.named,
            source: c.slots[source].place,
            source_process,
            target: c.slots[target].place,
            target_process,
        };
        let token = self.ask(drive, What::Begin { chunk, number });
        self.send_slot(chunk, target, token, Request::AttemptBegin { attempt });
    }

    pub(crate) fn attempt_refused(&mut self, chunk: u32, number: u64, refusal: Refusal) {
        let Some(step) = self.attempt(chunk, number).map(|a| a.step) else { return };
        if refusal == Refusal::UnknownReplica && step == Step::Begun {
            self.make_record(chunk, number);
        } else if step < Step::Proposed {
            self.attempt_failed(number, refusal);
        }
    }

    pub(crate) fn attempt_failed(&mut self, number: u64, refusal: Refusal) {
        let Some(a) = self.attempts.values().find(|a| a.number == number && a.step < Step::Proposed) else {
            return;
        };
        let (chunk, target) = (a.chunk, a.target);
        self.drop_attempt(chunk);
        if refusal == Refusal::UnknownView {
            // what the source keeps is not what this session takes for kept
            self.views_in_question();
        }
        let wait = if refusal == Refusal::NoSpace { RETRY_FULL } else { RETRY_FAILED };
        self.chunks[chunk as usize].slots[target].retry = self.now + wait;
    }

    pub(crate) fn progress(&mut self, number: u64, left: u64, moved: u64) {
        let now = self.now;
        if let Some(a) = self.attempts.values_mut().find(|a| a.number == number) {
            (a.left, a.moved, a.heard) = (Some(left), moved, now);
        }
    }

    /// Everything is pulled. Promotion counts as the target's acknowledgement of every write < v0.
    pub(crate) fn pulled(&mut self, number: u64, moved: u64) {
        let Some(a) = self.attempts.values_mut().find(|a| a.number == number && a.step == Step::Listed)
        else {
            return;
        };
        (a.step, a.moved, a.left) = (Step::Pulled, moved, Some(0));
        let (chunk, target, v0) = (a.chunk, a.target, a.v0);
        if !self.bugs.has(|b| b.promote_early) {
            for (seq, w) in self.window.iter_mut().filter(|(_, w)| w.live && w.chunk == chunk) {
                if seq < v0 {
                    w.sent |= bit(target);
                    w.acked |= bit(target);
                }
            }
        }
        self.recompute(chunk);
    }

    /// Ends an attempt whose promotion is not proposed.
    pub(crate) fn drop_attempt(&mut self, chunk: u32) {
        if self
            .attempts
            .get(&chunk)
            .is_none_or(|a| a.step == Step::Proposed && !self.bugs.has(|b| b.take_error_as_unchanged))
        {
            return;
        }
        if let Some(a) = self.attempts.remove(&chunk) {
            self.end_attempt(&a);
            self.chunks[chunk as usize].slots[a.target].retry = self.now + RETRY;
            self.recompute(chunk);
        }
    }

    fn end_attempt(&mut self, a: &Attempt) {
        self.resync.moved += a.moved;
        let s = &self.chunks[a.chunk as usize].slots[a.target];
        if !s.vacant && s.place == a.place {
            self.send_slot(a.chunk, a.target, 0, Request::AttemptEnd { number: a.number });
        }
    }

    pub(crate) fn end_attempt_of(&mut self, chunk: u32, slot: usize) {
        if let Some(a) = self.attempts.get(&chunk).filter(|a| a.target == slot) {
            let number = a.number;
            self.attempt_failed(number, Refusal::NoSpace);
        }
    }

    /// The connection to a target broke.
    pub(crate) fn target_lost(&mut self, node: usize) {
        self.drop_attempts(|s, a| s.drives[s.chunks[a.chunk as usize].slots[a.target].drive].node == node);
    }

    /// The source's process is another one.
    pub(crate) fn source_restarted(&mut self, node: usize) {
        let process = self.nodes[node].process;
        self.drop_attempts(|s, a| {
            let at = s.drives[s.chunks[a.chunk as usize].slots[a.source].drive].node;
            at == node && Some(a.source_process) != process
        });
    }

    pub(crate) fn doubt_of_drive(&mut self, drive: usize) {
        self.drop_attempts(|s, a| {
            let c = &s.chunks[a.chunk as usize];
            c.slots[a.source].drive == drive || c.slots[a.target].drive == drive
        });
    }

    fn drop_attempts(&mut self, which: impl Fn(&Session, &Attempt) -> bool) {
        let void: Vec<u32> = self.attempts.values().filter(|a| which(self, a)).map(|a| a.chunk).collect();
        for chunk in void {
            self.drop_attempt(chunk);
        }
    }

    /// The chunk has another configuration: the attempt is over, promoted or not.
    pub(crate) fn configuration_taken(&mut self, chunk: u32) {
        let Some(a) = self.attempts.remove(&chunk) else { return };
        let c = &self.chunks[chunk as usize];
        assert!(a.configuration < c.number, "a number that is taken up is a newer one");
        let s = c.slots[a.target];
        let promoted =
            a.step == Step::Proposed && !s.vacant && s.place == a.place && s.state != MemberState::Stale;
        self.end_attempt(&a);
        if !promoted {
            self.chunks[chunk as usize].slots[a.target].retry = self.now + RETRY;
            return;
        }
        let (drive, target) = (s.drive, s.place.drive);
        let slot = &mut self.chunks[chunk as usize].slots[a.target];
        slot.lacking = false;
        // 5.6: it ends the doubt with which the attempt began
        slot.healed = a.episode;
        self.notice(Notice::Promoted { chunk: ChunkIndex(chunk), target, bytes_moved: a.moved });
        self.end_doubt_if_healed(drive);
    }

    /// Doubt of a drive ends when all its replicas have been resynced since.
    fn end_doubt_if_healed(&mut self, drive: usize) {
        if !self.drives[drive].doubt || !self.serving() {
            return;
        }
        let healed = self.drives[drive].chunks.iter().all(|&chunk| {
            let c = &self.chunks[chunk as usize];
            c.slot_of(drive).is_none_or(|s| c.set & bit(s) != 0 && !self.in_doubt(chunk, s))
        });
        if healed {
            let token = self.ask(drive, What::EndDoubt);
            self.send_drive(drive, token, Request::EndDoubt);
        }
    }

    fn measure(&mut self) {
        let p = &mut self.resync;
        let span = self.now.since(p.measured);
        if span >= Span::secs(1) {
            let moved = p.moved + self.attempts.values().map(|a| a.moved).sum::<u64>();
            p.rate = moved.saturating_sub(p.measured_moved) * 1_000_000_000 / span.0.max(1);
            (p.measured, p.measured_moved) = (self.now, moved);
        }
    }

    /// Bytes still to compare or move, and bytes moved.
    pub(crate) fn resync_bytes(&self) -> (u64, u64) {
        let chunk = self.geometry.chunk_bytes().min(self.geometry.size);
        let waiting = self
            .degraded
            .iter()
            .filter(|&&c| {
                !self.attempts.contains_key(&c) && self.chunks[c as usize].count(MemberState::Stale) > 0
            })
            .count() as u64;
        let left = self.attempts.values().map(|a| a.left.unwrap_or(chunk)).sum::<u64>();
        (left + waiting * chunk, self.resync.moved + self.attempts.values().map(|a| a.moved).sum::<u64>())
    }

    /// Something could be resynced or let go, now or as soon as a time has passed.
    pub(crate) fn resync_wanted(&self) -> bool {
        self.serving()
            && self.degraded.iter().any(|&chunk| {
                let c = &self.chunks[chunk as usize];
                let whole = c.count(MemberState::InSync) >= usize::from(self.attached.copies);
                let leaving = c.count(MemberState::Leaving) > 0;
                (whole && leaving)
                    || (!whole
                        && c.members().any(|(_, s)| s.state == MemberState::Stale && self.linked(s.drive)))
            })
    }
}
