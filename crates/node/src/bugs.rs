//! Seeded bugs: each leaves out one rule, so that the simulator can show that it would notice.

/// Rules left out; all off by default. Switched on by `Node::set_bugs` (feature `bugs`) only.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Bugs {
    /// Leases are granted, and newer epochs let in, as if no older process had granted any.
    pub lease_through_restart: bool,
    /// A fence is answered before an older session's lease has run out.
    pub fence_before_lease: bool,
    /// Frames of a connection are processed though a newer one of the same peer exists.
    pub old_connection: bool,
    /// A resync takes extents of equal versions for equal content.
    pub equal_versions: bool,
    /// A resync leaves what the source does not have.
    pub keep_absent: bool,
}

/// The switch: a constant false without the feature.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Seeded(Bugs);

impl Seeded {
    #[cfg(any(feature = "bugs", test))]
    pub(crate) fn new(bugs: Bugs) -> Seeded {
        Seeded(bugs)
    }
    pub(crate) fn has(self, bug: impl Fn(&Bugs) -> bool) -> bool {
        cfg!(any(feature = "bugs", test)) && bug(&self.0)
    }
}
