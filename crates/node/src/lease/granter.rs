//! The replica's side: who may serve reads counting on us, and when a newer epoch is let in.
//!
//! Owns, per node, which branches its lease covers and when each was last granted; the newest epoch that
//! is known here, per branch; and since when this process runs. Never talks to a drive: the node hands a fence
//! to the store once `clear_at` says that it may.
//! Invariants: a lease is granted only to the epoch that is known here: of what is not known (a drive is not open yet)
//! nothing is granted. A fence of a newer epoch reaches a store only when no other node's lease for the branch can
//! still be counted on: returned, run out (3.03 s after the last grant), or held by an older process of the
//! same node. What processes before this one granted has run out 3.03 s after our start.

use crate::bugs::Seeded;
use proto::limits::LEASE_WAIT;
use proto::{BranchId, Epoch, Map, NodeId, ProcessNumber, Time};
use std::collections::BTreeMap;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cover {
    epoch: Epoch,
    granted: Time,
}

#[derive(Default, Debug)]
struct Grantee {
    process: ProcessNumber,
    covers: BTreeMap<BranchId, Cover>,
}

#[derive(Debug)]
pub(crate) struct Granter {
    started: Time,
    bugs: Seeded,
    grantees: BTreeMap<NodeId, Grantee>,
    /// The newest epoch that has asked here, or that a drive has on record.
    known: Map<BranchId, Epoch>,
}

/// What a lease does not cover.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct NotCovered {
    /// A newer epoch is known.
    pub refused: Vec<BranchId>,
    /// The epoch shown is not known.
    pub unknown: Vec<BranchId>,
}

/// A fence as the leases see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Asking {
    pub branch: BranchId,
    pub epoch: Epoch,
    pub holder: NodeId,
    /// What the drive has on record: the epoch and its holder.
    pub on_record: Option<(Epoch, NodeId)>,
}

impl Granter {
    pub fn new(started: Time, bugs: Seeded) -> Granter {
        Granter { started, bugs, grantees: BTreeMap::new(), known: Map::default() }
    }
    #[cfg(any(feature = "bugs", test))]
    pub fn set_bugs(&mut self, bugs: Seeded) {
        self.bugs = bugs;
    }
    /// The newest epoch of the branch that is known here; zero: none.
    pub fn known(&self, branch: BranchId) -> Epoch {
        self.known.get(&branch).copied().unwrap_or(Epoch(0))
    }
    /// What a drive had on record when it was opened, or is about to have.
    pub fn recorded(&mut self, branch: BranchId, epoch: Epoch) {
        let known = self.known.entry(branch).or_insert(epoch);
        *known = epoch.max(*known);
    }
    /// A connection of this process is the newest: what an older process of that node held is returned.
    pub fn connected(&mut self, node: NodeId, process: ProcessNumber) {
        let grantee = self.grantees.entry(node).or_default();
        if grantee.process < process {
            grantee.covers.clear();
            grantee.process = process;
        }
    }
    /// `node` asks for its lease.
    pub fn lease(&mut self, now: Time, node: NodeId, shown: &[(BranchId, Epoch)]) -> NotCovered {
        let grantee = self.grantees.entry(node).or_default();
        let mut not = NotCovered::default();
        for &(branch, epoch) in shown {
            match self.known.get(&branch) {
                Some(known) if *known > epoch => not.refused.push(branch),
                Some(known) if *known == epoch => {
                    grantee.covers.insert(branch, Cover { epoch, granted: now });
                }
                _ => not.unknown.push(branch),
            }
        }
        grantee.covers.retain(|_, c| now < c.granted + LEASE_WAIT);
        not
    }
    pub fn returned(&mut self, node: NodeId, branches: &[BranchId]) {
        if let Some(grantee) = self.grantees.get_mut(&node) {
            for branch in branches {
                grantee.covers.remove(branch);
            }
        }
    }
    /// A newer epoch asks: from here on the older ones get no lease. Returns the nodes whose lease covers the
    /// branch: they are to be told.
    pub fn asks(&mut self, now: Time, asking: Asking) -> Vec<NodeId> {
        self.recorded(asking.branch, asking.epoch);
        self.in_the_way(now, asking).map(|(node, _)| node).collect()
    }
    fn in_the_way(&self, now: Time, asking: Asking) -> impl Iterator<Item = (NodeId, Cover)> + '_ {
        self.grantees.iter().filter(move |(n, _)| **n != asking.holder).filter_map(move |(&n, g)| {
            let cover = *g.covers.get(&asking.branch)?;
            (cover.epoch < asking.epoch && now < cover.granted + LEASE_WAIT).then_some((n, cover))
        })
    }
    /// When the fence may go on to the store, as far as is known now; not after `now`: at once.
    pub fn clear_at(&self, now: Time, asking: Asking) -> Time {
        if self.bugs.has(|b| b.fence_before_lease) {
            return now;
        }
        let leases = self.in_the_way(now, asking).map(|(_, c)| c.granted + LEASE_WAIT).max().unwrap_or(now);
        let other = asking.on_record.is_some_and(|(e, node)| e < asking.epoch && node != asking.holder);
        let grace = if other && !self.bugs.has(|b| b.lease_through_restart) {
            self.started + LEASE_WAIT
        } else {
            now
        };
        leases.max(grace)
    }
    /// Leases that run now: (holder, branch, epoch, granted).
    pub fn running(&self, now: Time) -> impl Iterator<Item = (NodeId, BranchId, Epoch, Time)> + '_ {
        self.grantees.iter().flat_map(move |(&n, g)| {
            g.covers
                .iter()
                .filter(move |(_, c)| now < c.granted + LEASE_WAIT)
                .map(move |(&b, c)| (n, b, c.epoch, c.granted))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bugs::Bugs;
    use proto::Span;

    const B: BranchId = BranchId(7);
    const LATE: Time = Time(10_000_000_000);
    fn granter() -> Granter {
        let mut g = Granter::new(Time::ZERO, Seeded::default());
        g.recorded(B, Epoch(1));
        g
    }
    fn refused() -> NotCovered {
        NotCovered { refused: vec![B], unknown: vec![] }
    }
    fn ask(epoch: u32, holder: u32) -> Asking {
        let on_record = Some((Epoch(1), NodeId(1)));
        Asking { branch: B, epoch: Epoch(epoch), holder: NodeId(holder), on_record }
    }

    #[test]
    fn a_newer_epoch_waits_until_the_older_lease_has_run_out() {
        let mut g = granter();
        assert_eq!(g.lease(LATE, NodeId(1), &[(B, Epoch(1))]), NotCovered::default());
        let later = LATE + Span::millis(500);
        assert_eq!(g.asks(later, ask(2, 2)), [NodeId(1)]);
        assert_eq!(g.clear_at(later, ask(2, 2)), LATE + LEASE_WAIT);
        assert_eq!(g.lease(later, NodeId(1), &[(B, Epoch(1))]), refused(), "no renewal for the older epoch");
        assert_eq!(g.clear_at(later, ask(2, 2)), LATE + LEASE_WAIT);
        assert_eq!(g.clear_at(LATE + LEASE_WAIT, ask(2, 2)), LATE + LEASE_WAIT);
    }

    #[test]
    fn what_is_not_known_here_is_neither_granted_nor_refused() {
        let mut g = Granter::new(Time::ZERO, Seeded::default());
        let unknown = NotCovered { refused: vec![], unknown: vec![B] };
        assert_eq!(g.lease(LATE, NodeId(1), &[(B, Epoch(2))]), unknown, "no drive has said anything yet");
        g.recorded(B, Epoch(1));
        assert_eq!(g.lease(LATE, NodeId(1), &[(B, Epoch(2))]), unknown, "nor does an older record say it");
        assert_eq!(g.running(LATE).count(), 0);
        g.recorded(B, Epoch(2));
        assert_eq!(g.lease(LATE, NodeId(1), &[(B, Epoch(2))]), NotCovered::default());
        assert_eq!(g.running(LATE).count(), 1);
        g.recorded(B, Epoch(3));
        assert_eq!(g.lease(LATE, NodeId(1), &[(B, Epoch(2))]), refused());
    }

    #[test]
    fn a_returned_lease_is_not_waited_for() {
        let mut g = granter();
        g.lease(LATE, NodeId(1), &[(B, Epoch(1))]);
        g.asks(LATE, ask(2, 2));
        g.returned(NodeId(1), &[B]);
        assert_eq!(g.clear_at(LATE, ask(2, 2)), LATE);
    }

    #[test]
    fn a_newer_process_of_the_holder_returns_what_the_older_one_held() {
        let mut g = granter();
        g.connected(NodeId(1), ProcessNumber(4));
        g.lease(LATE, NodeId(1), &[(B, Epoch(1))]);
        g.connected(NodeId(1), ProcessNumber(4));
        assert!(g.clear_at(LATE, ask(2, 2)) > LATE);
        g.connected(NodeId(1), ProcessNumber(5));
        assert_eq!(g.clear_at(LATE, ask(2, 2)), LATE);
    }

    #[test]
    fn the_holder_itself_goes_on_at_once() {
        let mut g = granter();
        g.lease(LATE, NodeId(1), &[(B, Epoch(1))]);
        assert_eq!(g.asks(LATE, ask(2, 1)), []);
        assert_eq!(g.clear_at(LATE, ask(2, 1)), LATE);
    }

    #[test]
    fn after_a_start_only_the_holder_on_record_is_let_in_at_once() {
        let g = granter();
        let early = Time::ZERO + Span::millis(100);
        assert_eq!(g.clear_at(early, ask(2, 2)), Time::ZERO + LEASE_WAIT);
        assert_eq!(g.clear_at(early, ask(2, 1)), early);
        let unknown = Asking { on_record: None, ..ask(2, 2) };
        assert_eq!(g.clear_at(early, unknown), early);
        assert_eq!(g.clear_at(LATE, ask(2, 2)), LATE);
    }

    #[test]
    fn each_seeded_bug_leaves_its_rule_out() {
        let early = Time::ZERO + Span::millis(100);
        let mut g = granter();
        g.lease(early, NodeId(1), &[(B, Epoch(1))]);
        g.set_bugs(Seeded::new(Bugs { fence_before_lease: true, ..Bugs::default() }));
        assert_eq!(g.clear_at(early, ask(2, 2)), early);
        g.set_bugs(Seeded::new(Bugs { lease_through_restart: true, ..Bugs::default() }));
        assert_eq!(g.clear_at(early, ask(2, 2)), early + LEASE_WAIT);
        assert_eq!(g.clear_at(early, Asking { branch: BranchId(8), ..ask(2, 2) }), early);
    }
}
