//! Seeded bugs by name: each leaves out one rule of the cores, and the same generator must find it.

/// Rules left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bugs {
    pub store: store::Bugs,
    pub volume: volume::Bugs,
    pub node: node::Bugs,
    pub meta: meta::Bugs,
}

/// One of them: its name, what it leaves out, and how to switch it on.
pub struct Bug {
    pub name: &'static str,
    pub what: &'static str,
    set: fn(&mut Bugs),
}

impl Bug {
    #[must_use]
    pub fn bugs(&self) -> Bugs {
        let mut b = Bugs::default();
        (self.set)(&mut b);
        b
    }
}

#[must_use]
pub fn named(name: &str) -> Option<&'static Bug> {
    ALL.iter().find(|b| b.name == name)
}

macro_rules! bugs {
    ($($name:literal $($path:ident).+ $what:literal;)*) => {
        pub const ALL: &[Bug] = &[$(Bug { name: $name, what: $what, set: |b| b.$($path).+ = true }),*];
    };
}

bugs! {
    "ack_before_journal" store.ack_before_journal "acknowledge before the journal write";
    "ack_without_prefix" store.ack_without_prefix "acknowledge a batch when an earlier one is not complete";
    "home_before_flush" store.home_before_flush "write home before a flush";
    "reuse_before_flush" store.reuse_before_flush "reuse a freed extent before a flush";
    "page_ahead" store.page_ahead "write a table page ahead of its journal entry";
    "index_early" store.index_early "list in the journal's index what is not flushed";
    "late_join" store.late_join "a large write's entry joins over a newer one";
    "ignore_doubt" store.ignore_doubt "ignore doubt after a machine's power loss";
    "pull_over_newer" store.pull_over_newer "a pull overwrites what was written since the attempt began";
    "skip_epoch_check" store.skip_epoch_check "drop the epoch check";
    "forget_discards" store.forget_discards "leave a discard in flight out of the report";
    "write_into_sealed" store.write_into_sealed "a write of the new generation into a sealed extent";
    "supersede_sealed" store.supersede_sealed "a sealed generation's journal entry superseded by the next one's";
    "free_kept" store.free_kept "free a version that a snapshot sees";
    "late_list_frees" store.late_list_frees "a late keep-list frees by what it did not know";
    "drop_hiding_zero" store.drop_hiding_zero "a zero dropped that hid what lies beneath";
    "serve_incomplete" store.serve_incomplete "read an absent block from an incomplete replica of a view";
    "forget_stale" volume.forget_stale "forget the stale mark";
    "promote_early" volume.promote_early "promote before the session requires the replica";
    "take_error_as_unchanged" volume.take_error_as_unchanged "take a refused or lost answer for \"nothing changed\"";
    "drop_without_evidence" volume.drop_without_evidence "drop a silent member while cut off oneself";
    "list_early" volume.list_early "list the source before the older writes are acknowledged";
    "flush_misses_target" volume.flush_misses_target "a flush that misses the replica being promoted";
    "reconcile_lowest" volume.reconcile_lowest "reconcile from the lowest version";
    "serve_before_flush" volume.serve_before_flush "serve before what was rewritten is flushed";
    "read_unacknowledged" volume.read_unacknowledged "serve a read that overlapped an unacknowledged write";
    "no_hold_back" volume.no_hold_back "overlapping writes are in flight together";
    "no_lease_check" volume.no_lease_check "answer reads without looking at leases";
    "cut_misses_write" volume.cut_misses_write "a cut that misses an acknowledged write";
    "reconcile_into_new" volume.reconcile_into_new "a successor reconciles into the new generation";
    "seal_leaves_attempt" volume.seal_leaves_attempt "a seal leaves a resync attempt running";
    "parent_head" volume.parent_head "a clone reads its parent's head instead of the generation that it was made of";
    "cut_under_snapshot" volume.cut_under_snapshot "a tie cut under a child's snapshot";
    "lease_through_restart" node.lease_through_restart "grant leases through a restart";
    "fence_before_lease" node.fence_before_lease "answer a fence before the older lease has run out";
    "old_connection" node.old_connection "process frames of an old connection";
    "equal_versions" node.equal_versions "take equal versions for equal content";
    "keep_absent" node.keep_absent "resync without removal";
    "apply_old_configuration" meta.apply_old_configuration "apply a command of an old configuration";
    "apply_old_epoch" meta.apply_old_epoch "apply a command of a session that is over";
}
