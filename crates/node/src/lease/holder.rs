//! The session's side: until when we may count on each node's lease.
//!
//! Owns, per node, what we show (the branches of which a session here holds the epoch there), what was asked
//! and not answered, and until when each branch is covered. The span counts from before we asked, and is given
//! up at 2.7 s. Never extends anything by itself: only an answer does.

use super::granter::NotCovered;
use proto::limits::{LEASE_HELD, LEASE_RENEW};
use proto::{BranchId, Epoch, NodeId, Time};
use std::collections::{BTreeMap, VecDeque};

#[derive(Debug)]
struct Asked {
    token: u64,
    at: Time,
    shown: Vec<(BranchId, Epoch)>,
}

#[derive(Default, Debug)]
struct Lessor {
    connected: bool,
    /// When to ask next.
    next: Time,
    asked: VecDeque<Asked>,
    shows: BTreeMap<BranchId, Epoch>,
    covers: BTreeMap<BranchId, (Epoch, Time)>,
}

#[derive(Default, Debug)]
pub(crate) struct Holder {
    lessors: BTreeMap<NodeId, Lessor>,
}

/// What an answer changed.
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct Answered {
    /// Not held before, held now.
    pub gained: Vec<(BranchId, Epoch)>,
    /// A newer epoch is known there.
    pub refused: Vec<(BranchId, Epoch)>,
}

impl Holder {
    pub fn connected(&mut self, node: NodeId, now: Time) {
        let lessor = self.lessors.entry(node).or_default();
        lessor.connected = true;
        lessor.asked.clear();
        lessor.next = now;
    }
    /// What was asked will not be answered; what is held runs out by itself.
    pub fn disconnected(&mut self, node: NodeId) {
        if let Some(lessor) = self.lessors.get_mut(&node) {
            lessor.connected = false;
            lessor.asked.clear();
        }
    }
    /// A session holds `epoch` at `node`: from here on it is shown. True if that is news.
    pub fn show(&mut self, now: Time, node: NodeId, branch: BranchId, epoch: Epoch) -> bool {
        let lessor = self.lessors.entry(node).or_default();
        if lessor.shows.get(&branch) == Some(&epoch) {
            return false;
        }
        lessor.shows.insert(branch, epoch);
        lessor.covers.remove(&branch);
        lessor.next = now;
        true
    }
    /// Until when the branch is covered under this epoch.
    pub fn until(&self, node: NodeId, branch: BranchId, epoch: Epoch) -> Time {
        match self.lessors.get(&node).and_then(|l| l.covers.get(&branch)) {
            Some((e, until)) if *e == epoch => *until,
            _ => Time::ZERO,
        }
    }
    /// The nodes to ask now.
    pub fn due(&self, now: Time) -> Vec<NodeId> {
        let due = |l: &Lessor| l.connected && !l.shows.is_empty() && l.next <= now;
        self.lessors.iter().filter(|(_, l)| due(l)).map(|(n, _)| *n).collect()
    }
    pub fn next_wake(&self) -> Time {
        let wanted = self.lessors.values().filter(|l| l.connected && !l.shows.is_empty());
        wanted.map(|l| l.next).min().unwrap_or(Time::FAR)
    }
    /// What to show when asking `node` now; the answer comes with `token`.
    pub fn ask(&mut self, now: Time, node: NodeId, token: u64) -> Vec<(BranchId, Epoch)> {
        let lessor = self.lessors.entry(node).or_default();
        let shown: Vec<_> = lessor.shows.iter().map(|(b, e)| (*b, *e)).collect();
        lessor.next = now + LEASE_RENEW;
        lessor.asked.push_back(Asked { token, at: now, shown: shown.clone() });
        shown
    }
    pub fn leased(&mut self, now: Time, node: NodeId, token: u64, not: &NotCovered) -> Answered {
        let mut answered = Answered::default();
        let Some(lessor) = self.lessors.get_mut(&node) else { return answered };
        let Some(at) = lessor.asked.iter().position(|a| a.token == token) else { return answered };
        let asked = lessor.asked.drain(..=at).next_back().expect("the one that was found");
        for (branch, epoch) in asked.shown {
            // A session that was replaced or revoked meanwhile is not covered by an answer to older words.
            if lessor.shows.get(&branch) != Some(&epoch) {
                continue;
            }
            // It is shown again next time: what was granted before runs out by itself.
            if not.unknown.contains(&branch) {
                continue;
            }
            if not.refused.contains(&branch) {
                lessor.shows.remove(&branch);
                lessor.covers.remove(&branch);
                answered.refused.push((branch, epoch));
                continue;
            }
            let until = asked.at + LEASE_HELD;
            let held = lessor.covers.insert(branch, (epoch, until)).map_or(Time::ZERO, |c| c.1);
            if held <= now && until > now {
                answered.gained.push((branch, epoch));
            }
        }
        answered
    }
    /// `node` takes its lease back: at once not counted on, and not asked for again.
    pub fn revoked(&mut self, node: NodeId, branch: BranchId, newer: Epoch) {
        if let Some(lessor) = self.lessors.get_mut(&node)
            && lessor.shows.get(&branch).is_some_and(|e| *e < newer)
        {
            lessor.shows.remove(&branch);
            lessor.covers.remove(&branch);
        }
    }
    /// The session is over: nothing is counted on. The nodes that are to be told.
    pub fn forget(&mut self, branch: BranchId) -> Vec<NodeId> {
        let mut tell = Vec::new();
        for (&node, lessor) in &mut self.lessors {
            let shown = lessor.shows.remove(&branch).is_some();
            let covered = lessor.covers.remove(&branch).is_some();
            if (shown || covered) && lessor.connected {
                tell.push(node);
            }
        }
        tell
    }
    /// Leases that are held: (lessor, branch, epoch, until).
    pub fn held(&self) -> impl Iterator<Item = (NodeId, BranchId, Epoch, Time)> + '_ {
        self.lessors.iter().flat_map(|(&n, l)| l.covers.iter().map(move |(&b, &(e, until))| (n, b, e, until)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::Span;

    const N: NodeId = NodeId(2);
    const B: BranchId = BranchId(7);
    const E: Epoch = Epoch(3);
    const NOW: Time = Time(5_000_000_000);
    fn shown() -> Holder {
        let mut h = Holder::default();
        h.connected(N, NOW);
        assert!(h.show(NOW, N, B, E));
        assert!(!h.show(NOW, N, B, E));
        h
    }

    #[test]
    fn the_span_counts_from_before_it_was_asked() {
        let mut h = shown();
        assert_eq!(h.due(NOW), [N]);
        assert_eq!(h.ask(NOW, N, 1), [(B, E)]);
        assert_eq!(h.due(NOW), []);
        let later = NOW + Span::millis(400);
        assert_eq!(h.leased(later, N, 1, &NotCovered::default()).gained, [(B, E)]);
        assert_eq!(h.until(N, B, E), NOW + LEASE_HELD);
        assert_eq!(h.until(N, B, Epoch(4)), Time::ZERO);
        assert_eq!(h.due(NOW + LEASE_RENEW), [N]);
        h.ask(NOW + LEASE_RENEW, N, 2);
        assert_eq!(h.leased(NOW + LEASE_RENEW, N, 2, &NotCovered::default()), Answered::default());
        assert_eq!(h.until(N, B, E), NOW + LEASE_RENEW + LEASE_HELD);
    }

    #[test]
    fn an_answer_that_comes_too_late_gains_nothing() {
        let mut h = shown();
        h.ask(NOW, N, 1);
        assert_eq!(h.leased(NOW + LEASE_HELD, N, 1, &NotCovered::default()), Answered::default());
    }

    #[test]
    fn a_refused_branch_is_not_held() {
        let mut h = shown();
        h.ask(NOW, N, 1);
        assert_eq!(h.leased(NOW, N, 1, &NotCovered { refused: vec![B], unknown: vec![] }).refused, [(B, E)]);
        assert_eq!(h.until(N, B, E), Time::ZERO);
        assert_eq!(h.due(NOW + LEASE_RENEW), []);
    }

    #[test]
    fn what_is_unknown_there_is_neither_held_nor_over() {
        let mut h = shown();
        h.ask(NOW, N, 1);
        let unknown = NotCovered { refused: vec![], unknown: vec![B] };
        assert_eq!(h.leased(NOW, N, 1, &unknown), Answered::default());
        assert_eq!(h.until(N, B, E), Time::ZERO);
        assert_eq!(h.ask(NOW + LEASE_RENEW, N, 2), [(B, E)], "shown again");
    }

    #[test]
    fn an_answer_to_older_words_does_not_cover_what_was_revoked_since() {
        let mut h = shown();
        h.ask(NOW, N, 1);
        h.revoked(N, B, Epoch(4));
        assert_eq!(h.leased(NOW, N, 1, &NotCovered::default()), Answered::default());
        assert_eq!(h.until(N, B, E), Time::ZERO);
    }

    #[test]
    fn an_answer_to_an_older_session_does_not_cover_the_next_one() {
        let mut h = shown();
        h.ask(NOW, N, 1);
        assert_eq!(h.forget(B), [N]);
        h.show(NOW, N, B, Epoch(5));
        assert_eq!(h.leased(NOW, N, 1, &NotCovered::default()), Answered::default());
        assert_eq!(h.until(N, B, Epoch(5)), Time::ZERO);
    }

    #[test]
    fn an_answer_on_a_lost_connection_is_nobodys() {
        let mut h = shown();
        h.ask(NOW, N, 1);
        h.disconnected(N);
        h.connected(N, NOW);
        assert_eq!(h.leased(NOW, N, 1, &NotCovered::default()), Answered::default());
        assert_eq!(h.due(NOW), [N], "asked again at once");
    }
}
