//! What resyncs have moved, per branch, counted over all sessions that worked at it.
//!
//! Owns a running total per branch, from what sessions say of themselves. In the leader's memory only: a new leader
//! begins with what the present session says. It decides nothing.
//! The figure shown is what was moved since the branch ceased to be whole, and stays when it is whole again.

use crate::state::MetaState;
use proto::control::SessionStatus;
use proto::{BranchId, Epoch, Span, Time};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Default, Debug)]
struct Moved {
    /// The session that was heard last, and what it had moved.
    epoch: Epoch,
    session: u64,
    /// By sessions before it.
    earlier: u64,
    /// Since when the branch is, or was last, not whole; and the total at that time.
    since: Option<u64>,
    base: u64,
}
impl Moved {
    fn total(&self) -> u64 {
        self.earlier + self.session
    }
    fn begins(&mut self, since: Option<u64>) {
        if since.is_some() && self.since != since {
            (self.since, self.base) = (since, self.total());
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Resyncs {
    observe_at: Time,
    branches: BTreeMap<BranchId, Moved>,
}

/// How often faults are looked for.
const OBSERVE_EVERY: Span = Span::millis(500);

impl Resyncs {
    /// Notes faults as they begin: a session that mends one may be over before it has said a word.
    pub(crate) fn observe(&mut self, now: Time, state: &MetaState) {
        if now < self.observe_at {
            return;
        }
        self.observe_at = now + OBSERVE_EVERY;
        for branch in &state.index.unwell {
            let since = state.branches().get(branch).and_then(|row| row.unwell_since);
            self.branches.entry(*branch).or_default().begins(since);
        }
    }

    pub(crate) fn hear(&mut self, state: &MetaState, sessions: &[SessionStatus]) {
        for s in sessions {
            if let Some(row) = state.branches().get(&s.branch) {
                self.one(s.branch, s.epoch, s.resync_moved, row.unwell_since);
            }
        }
    }

    fn one(&mut self, branch: BranchId, epoch: Epoch, moved: u64, unwell_since: Option<u64>) {
        if moved == 0 && unwell_since.is_none() && !self.branches.contains_key(&branch) {
            return;
        }
        let m = self.branches.entry(branch).or_default();
        if epoch < m.epoch {
            return;
        }
        // What this message adds was moved since.
        m.begins(unwell_since);
        if epoch > m.epoch {
            (m.epoch, m.earlier, m.session) = (epoch, m.total(), 0);
        }
        m.session = m.session.max(moved);
    }

    /// Bytes, since the branch ceased to be whole.
    pub(crate) fn moved(&self, branch: BranchId) -> u64 {
        self.branches.get(&branch).map_or(0, |m| m.total() - m.base)
    }

    pub(crate) fn forget(&mut self, state: &MetaState) {
        self.branches.retain(|b, _| state.branches().contains_key(b));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: BranchId = BranchId(1);

    fn said(r: &mut Resyncs, epoch: u32, moved: u64, since: Option<u64>) -> u64 {
        r.one(B, Epoch(epoch), moved, since);
        r.moved(B)
    }

    #[test]
    fn the_figure_counts_from_the_fault_on_and_stays_when_all_is_well() {
        let mut r = Resyncs::default();
        assert_eq!(said(&mut r, 1, 0, Some(5)), 0);
        assert_eq!(said(&mut r, 1, 70, Some(5)), 70);
        assert_eq!(said(&mut r, 1, 80, None), 80, "the last of it is heard afterwards");
        assert_eq!(said(&mut r, 1, 80, Some(9)), 0, "another fault");
        assert_eq!(said(&mut r, 1, 100, Some(9)), 20);
    }

    #[test]
    fn a_fault_that_no_session_speaks_of_begins_the_count_anew() {
        let mut r = Resyncs::default();
        said(&mut r, 1, 70, Some(5));
        r.branches.entry(B).or_default().begins(Some(9));
        assert_eq!(r.moved(B), 0);
        assert_eq!(said(&mut r, 2, 30, None), 30, "whole again before it was heard");
    }

    #[test]
    fn sessions_add_up_and_late_words_of_older_ones_do_not() {
        let mut r = Resyncs::default();
        said(&mut r, 1, 70, Some(5));
        assert_eq!(said(&mut r, 2, 0, Some(5)), 70);
        assert_eq!(said(&mut r, 2, 30, Some(5)), 100);
        assert_eq!(said(&mut r, 1, 75, Some(5)), 100);
        assert_eq!(said(&mut r, 3, 0, None), 100, "healthy, and a guest has come");
    }
}
