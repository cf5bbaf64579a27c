//! Seeded bugs: each leaves out one rule, so that the simulator can show that it would be found.

/// All off by default; switched on by `Session::set_bugs` (feature `bugs`) only.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Bugs {
    /// Goes on without a member before metad has committed it stale.
    pub forget_stale: bool,
    /// Proposes a resync target before its acknowledgement is required.
    pub promote_early: bool,
    /// Takes a refused or lost answer to a proposal for "nothing changed".
    pub take_error_as_unchanged: bool,
    /// Drops a silent member although the fault may be its own.
    pub drop_without_evidence: bool,
    /// Lists the source before the older writes are acknowledged.
    pub list_early: bool,
    /// Flushes do not wait for the replica that is being promoted.
    pub flush_misses_target: bool,
    /// Reconciles from the lowest version, in doubt or not.
    pub reconcile_lowest: bool,
    /// Serves before what was rewritten is flushed.
    pub serve_before_flush: bool,
    /// Serves a read that overlapped an unacknowledged write.
    pub read_unacknowledged: bool,
    /// Overlapping writes are in flight together.
    pub no_hold_back: bool,
    /// Answers reads without looking at leases.
    pub no_lease_check: bool,
    /// A seal switches to the next generation without drain and flush.
    pub cut_misses_write: bool,
    /// What a predecessor left in a generation that is being sealed is rewritten in the next one.
    pub reconcile_into_new: bool,
    /// A seal leaves the resync attempts under way alone.
    pub seal_leaves_attempt: bool,
    /// A clone reads its parent's head instead of the generation that it was made of.
    pub parent_head: bool,
    /// A tie is cut although a snapshot of the clone still reads from the parent.
    pub cut_under_snapshot: bool,
}

/// The switch: a constant false without the feature.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Seeded(Bugs);

impl Seeded {
    #[cfg(feature = "bugs")]
    pub(crate) fn new(bugs: Bugs) -> Seeded {
        Seeded(bugs)
    }
    pub(crate) fn has(self, bug: impl Fn(&Bugs) -> bool) -> bool {
        cfg!(feature = "bugs") && bug(&self.0)
    }
}
