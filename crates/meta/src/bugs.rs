//! Named bugs for the simulator: each leaves out one rule. All off unless the feature `bugs` is built in.

/// Which rules are left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bugs {
    /// Apply a command that was computed from an old configuration of the chunk.
    pub apply_old_configuration: bool,
    /// Apply a command of a session that is no longer current.
    pub apply_old_epoch: bool,
}

impl Bugs {
    /// What is in force: nothing, unless the feature is built in.
    pub(crate) fn effective(self) -> Bugs {
        if cfg!(feature = "bugs") { self } else { Bugs::default() }
    }
}
