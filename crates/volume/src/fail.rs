//! A replica fails (5.2): what is suspected, and the evidence that the fault is not our own.

use crate::event::{CloseReason, Notice};
use crate::members::{bit, slots};
use crate::session::{Session, What};
use proto::control::ChangeCause;
use proto::limits::{ANSWER_TIMEOUT, LEASE_WAIT, RECONNECT_GRACE};
use proto::message::Request;
use proto::{DriveId, MemberState, Span};
use std::collections::BTreeMap;

/// While a session opens links are only being dialled.
const OPENING_GRACE: Span = Span::secs(1);
/// A target that does not answer, a comparison of media.
const PATIENCE: Span = Span::secs(10);
/// TooSlow: so many times its fastest peer, and at least so long, for so long.
const SLOW_TIMES: u64 = 20;
const SLOW_LEAST: Span = Span::millis(20);
const SLOW_FOR: Span = Span::secs(5);
/// Nothing not in doubt is connected: for so long before the session opens anew.
const DOUBT_FOR: Span = Span::millis(500);
const ASK_EVERY: Span = Span::millis(500);

impl Session {
    /// 5.6: in doubt, and not resynced since.
    pub(crate) fn in_doubt(&self, chunk: u32, slot: usize) -> bool {
        let s = &self.chunks[chunk as usize].slots[slot];
        let d = &self.drives[s.drive];
        d.doubt && s.healed != d.episode
    }

    pub(crate) fn set_serving(&mut self, drive: usize, serving: bool) {
        let now = self.now;
        let d = &mut self.drives[drive];
        if d.serving != serving {
            d.serving = serving;
            d.since = now;
        }
    }

    /// A replica said itself that it does not hold what it should.
    pub(crate) fn lacks(&mut self, chunk: u32, slot: usize) {
        self.chunks[chunk as usize].slots[slot].lacking = true;
        self.lacking.insert(chunk);
        self.dirty = true;
    }

    /// Answers that are overdue; members that are slow.
    pub(crate) fn watch_answers(&mut self) {
        self.flush_dirty = true;
        for d in &mut self.drives {
            d.overdue = false;
        }
        let mut stuck_attempts = vec![];
        for p in self.pending.values() {
            let since = p.since.max(self.nodes[self.drives[p.drive].node].since).max(self.back);
            let limit = match p.what {
                // the replica waits out an older lease first
                What::Fence => Span(LEASE_WAIT.0 + ANSWER_TIMEOUT.0),
                What::Verify { .. } | What::Begin { .. } | What::Record { .. } => PATIENCE,
                What::List { .. } | What::Hello => continue,
                _ => ANSWER_TIMEOUT,
            };
            if self.now.since(since) > limit {
                match p.what {
                    What::Begin { chunk, number } | What::Record { chunk, number } => {
                        stuck_attempts.push((chunk, number))
                    }
                    _ => self.drives[p.drive].overdue = true,
                }
            }
        }
        self.watch_writes(&mut stuck_attempts);
        for n in &self.nodes {
            if n.connection.is_some()
                && n.lease_wanted.is_some_and(|t| self.now.since(t.max(self.back)) > ANSWER_TIMEOUT)
            {
                for &d in &n.drives {
                    self.drives[d].overdue |= self.drives[d].required > 0;
                }
            }
        }
        for (chunk, number) in stuck_attempts {
            self.attempt_refused(chunk, number, proto::Refusal::Closing);
        }
        self.watch_speed();
    }

    fn watch_writes(&mut self, stuck_attempts: &mut Vec<(u32, u64)>) {
        for (_, w) in self.window.iter() {
            if self.now.since(w.at.max(self.back)) <= ANSWER_TIMEOUT {
                break;
            }
            let c = &self.chunks[w.chunk as usize];
            for s in slots(w.sent & !w.acked) {
                let drive = c.slots[s].drive;
                if !w.live || self.now.since(self.nodes[self.drives[drive].node].since) <= ANSWER_TIMEOUT {
                    continue;
                }
                if c.set & bit(s) != 0 {
                    self.drives[drive].overdue = true;
                } else if let Some(a) = self.attempts.get(&w.chunk) {
                    stuck_attempts.push((w.chunk, a.number));
                }
            }
        }
        stuck_attempts.sort_unstable();
        stuck_attempts.dedup();
    }

    /// 20x slower than its peers for 5 s.
    fn watch_speed(&mut self) {
        if self.now.since(self.speed_at) < Span::secs(1) {
            return;
        }
        self.speed_at = self.now;
        let measured = self.drives.iter().filter(|d| d.samples >= 8 && d.required > 0).map(|d| d.latency);
        let best = measured.clone().min().unwrap_or(0).max(1);
        let peers = measured.count();
        for d in &mut self.drives {
            let slow =
                peers >= 2 && d.samples >= 8 && d.latency > SLOW_LEAST.0 && d.latency / SLOW_TIMES > best;
            d.slow_since = if slow { Some(d.slow_since.unwrap_or(self.now)) } else { None };
            d.samples = 0;
        }
    }

    /// Why this drive's replicas are to be dropped, if they are.
    fn cause(&self, drive: usize) -> Option<ChangeCause> {
        let d = &self.drives[drive];
        let node = &self.nodes[d.node];
        let (lost, unserved) =
            if self.opening() { (OPENING_GRACE, ANSWER_TIMEOUT) } else { (RECONNECT_GRACE, RECONNECT_GRACE) };
        if d.failed && node.connection.is_some() {
            Some(ChangeCause::Reported)
        } else if node.connection.is_none() {
            (self.now.since(node.since) >= lost).then_some(ChangeCause::Silent)
        } else if !d.serving {
            (self.now.since(d.since.max(node.since)) >= unserved).then_some(ChangeCause::Silent)
        } else if d.overdue {
            Some(ChangeCause::NoAnswer)
        } else if d.slow_since.is_some_and(|t| self.now.since(t) >= SLOW_FOR) {
            Some(ChangeCause::TooSlow)
        } else {
            None
        }
    }

    fn cause_of(&self, chunk: u32, slot: usize) -> Option<ChangeCause> {
        let s = &self.chunks[chunk as usize].slots[slot];
        if s.lacking {
            Some(ChangeCause::Reported)
        } else if self.serving() && self.in_doubt(chunk, slot) {
            Some(ChangeCause::InDoubt)
        } else {
            self.cause(s.drive)
        }
    }

    /// Whether what was proposed still has its reason.
    pub(crate) fn still_wanted(&self, chunk: u32) -> bool {
        let Some(u) = &self.chunks[chunk as usize].undecided else { return false };
        match (u.change.cause, u.about) {
            (ChangeCause::Promoted(_) | ChangeCause::Left, _) | (_, None) => true,
            (_, Some(slot)) => self.cause_of(chunk, slot).is_some(),
        }
    }

    /// The same set may by now be justified in another way: doubt, where it was silence that metad does not see.
    pub(crate) fn refresh_evidence(&mut self, chunk: u32) {
        let Some((slot, change)) =
            self.chunks[chunk as usize].undecided.as_ref().and_then(|u| Some((u.about?, &u.change)))
        else {
            return;
        };
        if matches!(change.cause, ChangeCause::Promoted(_) | ChangeCause::Left) {
            return;
        }
        let Some(cause) = self.cause_of(chunk, slot) else { return };
        let Some(only_if_down) = self.evidence(chunk, slot, cause) else { return };
        if let Some(u) = &mut self.chunks[chunk as usize].undecided {
            (u.change.cause, u.change.only_if_down) = (cause, only_if_down);
        }
    }

    /// 5.2. `None`: no evidence. Otherwise the drives that Raft must call down for the drop to be valid.
    fn evidence(&self, chunk: u32, slot: usize, cause: ChangeCause) -> Option<Vec<DriveId>> {
        let c = &self.chunks[chunk as usize];
        let left = c.inter & !bit(slot);
        let accepted = self.opening() && self.attached.loss_accepted;
        let good = slots(left)
            .filter(|&s| {
                let d = c.slots[s].drive;
                // who has not answered for long himself is no witness: perhaps it is we who cannot be heard
                self.linked(d)
                    && !self.drives[d].overdue
                    && !c.slots[s].lacking
                    && (!self.in_doubt(chunk, s) || accepted)
                    && (self.serving() || self.drives[d].report.is_some())
            })
            .count();
        let majority = usize::from(self.attached.copies) / 2 + 1;
        let drive = c.slots[slot].place.drive;
        if self.bugs.has(|b| b.drop_without_evidence) {
            return (left != 0).then(Vec::new);
        }
        match cause {
            _ if good >= majority => Some(vec![]),
            ChangeCause::InDoubt | ChangeCause::Reported if good >= 1 => Some(vec![]),
            ChangeCause::Silent | ChangeCause::NoAnswer if good >= 1 && self.down.contains(&drive) => {
                Some(vec![drive])
            }
            _ => None,
        }
    }

    /// Proposes to drop what is suspected and may be dropped.
    pub(crate) fn suspect(&mut self) {
        if self.phase < crate::session::Phase::Fencing || self.phase >= crate::session::Phase::Detaching {
            return;
        }
        // just back from a stop: who is still connected shows within a moment
        if self.now.since(self.back) < RECONNECT_GRACE {
            return;
        }
        self.unproven = false;
        let mut dropped: BTreeMap<(usize, u8), (u32, ChangeCause)> = BTreeMap::new();
        for d in 0..self.drives.len() {
            if self.drives[d].required == 0 || !(self.cause(d).is_some() || self.drives[d].doubt) {
                continue;
            }
            for chunk in self.drives[d].chunks.clone() {
                self.suspect_slot(chunk, d, &mut dropped);
            }
        }
        for chunk in std::mem::take(&mut self.lacking) {
            let c = &self.chunks[chunk as usize];
            for s in slots(c.set).filter(|&s| c.slots[s].lacking).collect::<Vec<_>>() {
                self.lacking.insert(chunk);
                let drive = self.chunks[chunk as usize].slots[s].drive;
                self.suspect_slot(chunk, drive, &mut dropped);
            }
        }
        for ((drive, _), (chunks, cause)) in dropped {
            let drive = self.drives[drive].id;
            self.notice(Notice::Dropping { drive, chunks, cause });
        }
        self.look_at_doubt();
    }

    fn suspect_slot(
        &mut self,
        chunk: u32,
        drive: usize,
        dropped: &mut BTreeMap<(usize, u8), (u32, ChangeCause)>,
    ) {
        let c = &self.chunks[chunk as usize];
        let Some(slot) = c.slot_of(drive).filter(|&s| c.set & bit(s) != 0) else { return };
        if c.undecided.is_some() {
            return;
        }
        let Some(cause) = self.cause_of(chunk, slot) else { return };
        match self.evidence(chunk, slot, cause) {
            Some(only_if_down) => {
                self.drop_attempt(chunk);
                self.propose(chunk, slot, Some(MemberState::Stale), cause, only_if_down);
                dropped.entry((drive, code(cause))).or_insert((0, cause)).0 += 1;
            }
            None => {
                self.unproven = true;
                if self.now >= self.ask_after {
                    self.to_ask.insert(chunk);
                }
            }
        }
    }

    /// 5.6: a live session opens anew if no connected member not in doubt would be left.
    fn look_at_doubt(&mut self) {
        let mut hopeless = false;
        if self.serving() {
            for d in self.drives.iter().filter(|d| d.doubt && d.required > 0) {
                hopeless |= d.chunks.iter().any(|&chunk| {
                    let c = &self.chunks[chunk as usize];
                    let any_doubt = slots(c.set).any(|s| self.in_doubt(chunk, s));
                    any_doubt
                        && !slots(c.set).any(|s| self.linked(c.slots[s].drive) && !self.in_doubt(chunk, s))
                });
            }
        }
        self.doubt_since = hopeless.then(|| self.doubt_since.unwrap_or(self.now));
        if self.doubt_since.is_some_and(|t| self.now.since(t) >= DOUBT_FOR) {
            self.give_up(CloseReason::Doubt);
        }
    }

    pub(crate) fn anything_suspect(&self) -> bool {
        !self.lacking.is_empty()
            || (0..self.drives.len()).any(|d| {
                let x = &self.drives[d];
                x.required > 0 && (!self.linked(d) || x.doubt || x.overdue || x.slow_since.is_some())
            })
    }

    /// Drives that do not serve are asked whether they do again.
    pub(crate) fn ask_drives(&mut self) {
        for d in 0..self.drives.len() {
            let x = &self.drives[d];
            let connected = self.nodes[x.node].connection.is_some();
            if !connected
                || x.serving
                || x.failed
                || x.chunks.is_empty()
                || self.now.since(x.asked_at) < ASK_EVERY
            {
                continue;
            }
            self.drives[d].asked_at = self.now;
            self.pending.retain(|_, p| p.drive != d || !matches!(p.what, What::Hello));
            let token = self.ask(d, What::Hello);
            self.send_drive(d, token, Request::Credit { want: 0, probe: None });
        }
    }
}

fn code(cause: ChangeCause) -> u8 {
    match cause {
        ChangeCause::Silent => 0,
        ChangeCause::NoAnswer => 1,
        ChangeCause::Reported => 2,
        ChangeCause::InDoubt => 3,
        ChangeCause::TooSlow => 4,
        ChangeCause::Promoted(_) | ChangeCause::Left | ChangeCause::Withdrawn => 5,
    }
}
