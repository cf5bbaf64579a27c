//! Seeded bugs: each leaves out one rule, so that the simulator can show that it would notice.

macro_rules! bugs {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        /// Rules left out. All false, and constantly so without the feature `bugs`.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Bugs { $($(#[$doc])* pub $name: bool),* }
        impl Bugs {
            pub const NONE: Bugs = Bugs { $($name: false),* };
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];
            /// The bug of that name alone.
            #[must_use]
            pub fn named(name: &str) -> Option<Bugs> {
                match name { $(stringify!($name) => Some(Bugs { $name: true, ..Bugs::NONE }),)* _ => None }
            }
        }
    };
}

bugs! {
    /// Acknowledge a write before its journal write has completed.
    ack_before_journal;
    /// Acknowledge a batch when an earlier one is not complete.
    ack_without_prefix;
    /// Write a block home before a flush covers its journal entry.
    home_before_flush;
    /// Reuse a freed extent before the entry that frees it is flushed.
    reuse_before_flush;
    /// Write a table page ahead of the journal entries that it speaks of.
    page_ahead;
    /// Let a large write's entry join late, over a newer one.
    late_join;
    /// No doubt after a machine's power loss.
    ignore_doubt;
    /// A pull overwrites what was written since the attempt began.
    pull_over_newer;
    /// Admit writes of an older epoch.
    skip_epoch_check;
    /// List batches in the journal's index that are not flushed.
    index_early;
    /// A discard leaves no trace in the report to a fence.
    forget_discards;
    /// A write goes to the newest home of its extent, whatever that one's generation.
    write_into_sealed;
    /// A write supersedes what the overlay holds of older generations.
    supersede_sealed;
    /// Free what kept views see, and the head does not.
    free_kept;
    /// A keep-list judges what is younger than it, too.
    late_list_frees;
    /// Drop a zero extent, or the bit that stands for one, although something lies beneath or the branch has a parent.
    drop_hiding_zero;
    /// Serve views that the replica does not hold whole.
    serve_incomplete;
}
