//! What has been let in and waits: for its data, for those before it, for a batch.
//!
//! Invariants: what waits for a batch is in the order of the journal; a large write's entry joins only when its
//! data has completed; operations on one extent never overtake a large write (or a drop) of it.

use crate::event::{Pull, Source};
use crate::op::Op;
use crate::table::Px;
use proto::message::RequestFrame;
use proto::{BranchId, Generation, Map, Version};
use slab::Slab;
use std::collections::VecDeque;

/// A large write whose data is on its way home.
pub(crate) struct Large {
    pub op: Op,
    pub epoch: proto::Epoch,
    /// Its connection is closed, its epoch or attempt is over: it will not join.
    pub doomed: bool,
}

/// Extents that nothing else may touch until an operation has taken effect.
#[derive(Clone, Copy)]
pub(crate) struct Hold {
    pub replica: u32,
    pub first: u32,
    pub end: u32,
    /// What names it; 0 for a wish.
    pub id: u64,
    /// It frees homes of this generation: those of another one can be freed beside it.
    pub drops: Option<Generation>,
}

/// Waits for a hold.
#[expect(clippy::large_enum_variant, reason = "few, and rare")]
pub(crate) enum Blocked {
    Request(Source, RequestFrame),
    Pull(Pull),
}
impl Blocked {
    pub fn source(&self) -> Source {
        match self {
            Blocked::Request(source, _) => *source,
            Blocked::Pull(p) => p.source,
        }
    }
}

#[derive(Default)]
pub(crate) struct Intake {
    /// In the order of the journal.
    pub waiting: VecDeque<Op>,
    pub larges: Slab<Large>,
    pub holds: Vec<Hold>,
    next_hold: u64,
    /// With the extents that they want: replica, first, end.
    pub blocked: VecDeque<(Blocked, Hold, u64)>,
    /// A hold has gone: the blocked may try again.
    pub retry: bool,
    pub turn_ended: bool,
    /// The ring has no room for what waits, or too much of it is unflushed.
    pub stalled: bool,
    /// Entries that are not applied yet, by home.
    pub users: Map<Px, u32>,
    /// Operations under way in each period, from `first_period` on; the last one is open.
    periods: VecDeque<u32>,
    first_period: u64,
}

impl Intake {
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
    /// An operation begins: its period.
    pub fn enter(&mut self) -> u64 {
        if self.periods.is_empty() {
            self.periods.push_back(0);
        }
        *self.periods.back_mut().expect("just made") += 1;
        self.first_period + self.periods.len() as u64 - 1
    }
    /// An operation is over.
    pub fn leave(&mut self, period: u64) {
        let at = usize::try_from(period - self.first_period).expect("a period under way");
        self.periods[at] -= 1;
    }
    /// Ends the open period; its number.
    pub fn close_period(&mut self) -> u64 {
        if self.periods.is_empty() {
            self.periods.push_back(0);
        }
        self.periods.push_back(0);
        self.first_period + self.periods.len() as u64 - 2
    }
    /// All periods before this one are over.
    pub fn periods_done(&mut self) -> u64 {
        while self.periods.len() > 1 && self.periods[0] == 0 {
            self.periods.pop_front();
            self.first_period += 1;
        }
        self.first_period
    }
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.larges.is_empty() && self.blocked.is_empty()
    }

    /// One more entry will use this home.
    pub fn use_home(&mut self, px: Px) {
        *self.users.entry(px).or_insert(0) += 1;
    }
    /// ... and one less. True if it was the last one.
    pub fn unuse_home(&mut self, px: Px) -> bool {
        let n = self.users.get_mut(&px).expect("used before");
        *n -= 1;
        let last = *n == 0;
        if last {
            self.users.remove(&px);
        }
        last
    }

    /// True if these extents must wait: for a hold, or for others that wait (`before`: only those).
    pub fn conflicts(&self, want: &Hold, before: usize) -> bool {
        if self.holds.is_empty() && self.blocked.is_empty() {
            return false;
        }
        let apart = |h: &Hold| h.drops.zip(want.drops).is_some_and(|(a, b)| a != b);
        let meets =
            |h: &Hold| h.replica == want.replica && h.first < want.end && want.first < h.end && !apart(h);
        self.holds.iter().any(meets) || self.blocked.iter().take(before).any(|b| meets(&b.1))
    }
    pub fn hold(&mut self, replica: u32, first: u32, end: u32) -> u64 {
        self.hold_as(Hold { replica, first, end, id: 0, drops: None })
    }
    pub fn hold_as(&mut self, want: Hold) -> u64 {
        self.next_hold += 1;
        self.holds.push(Hold { id: self.next_hold, ..want });
        self.next_hold
    }
    pub fn release(&mut self, id: u64) {
        if id != 0 {
            self.holds.retain(|h| h.id != id);
            self.retry = !self.blocked.is_empty();
        }
    }

    /// Everything that waits for an answer, when the drive stops.
    pub fn abandon(&mut self) -> Vec<(Source, u64, BranchId, Version)> {
        let mut all = Vec::new();
        for (b, _, _) in self.blocked.drain(..) {
            if let Blocked::Request(source, frame) = b {
                let version = match &frame.request {
                    proto::message::Request::Write { record, .. } => record.version,
                    _ => Version::ZERO,
                };
                all.push((source, frame.token, frame.scope.branch, version));
            }
        }
        let larges = self.larges.drain().map(|l| l.op);
        let ops: Vec<Op> = self.waiting.drain(..).chain(larges).collect();
        for op in ops.iter().filter(|op| op.is_data()) {
            let branch = BranchId(op.raw.branch.get());
            all.push((op.source, 0, branch, crate::disk::entry::version_of(&op.raw)));
        }
        all
    }
}
