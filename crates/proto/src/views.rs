//! Which views of a branch are kept, as metad tells it: to the session that writes the branch (`BranchViews`),
//! and to the drives that store it (`KeepList`). Rules: `docs/architecture.md`, section 6; why completeness of a
//! replica travels with the list: `docs/decisions/0010-keep-lists-carry-completeness.md`.

use crate::generations::Generations;
use crate::ids::{BranchId, ChunkIndex, Generation, Incarnation, LogIndex};
use crate::limits::LINEAGE_BITS;
use serde::{Deserialize, Serialize};

/// When metad said something: the lineage (top 6 bits), and the index of the log entry. So what a metad says that
/// was restored from a backup is newer than all that was said before, though its log may be shorter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct ListIndex(pub u64);

impl ListIndex {
    /// # Panics
    /// If the log index does not fit into 58 bits: at a million commands a second that is 9,000 years.
    #[must_use]
    pub fn new(lineage: u8, index: LogIndex) -> ListIndex {
        let shift = 64 - LINEAGE_BITS;
        assert!(index.0 >> shift == 0 && lineage >> LINEAGE_BITS == 0, "a log index of 58 bits");
        ListIndex(u64::from(lineage) << shift | index.0)
    }
}

/// A generation that is being sealed: Raft has raised the head above it, and the session has not confirmed yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Sealing {
    pub generation: Generation,
    /// One of a group: the session stays drained until Raft says that all are sealed, or called off.
    pub group: bool,
}

/// What the session of a branch knows of its generations. Committed state, and the head never falls: only what is
/// newer is taken. A session acts on it only as an answer under its own epoch (decision 0013).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BranchViews {
    pub index: ListIndex,
    /// The head's generation in Raft. A session writes an older one until it has drained and flushed that.
    pub head: Generation,
    /// Sessions may have written this one and all above since the branch was last drained and flushed: the head, or
    /// less while a seal is under way or after one was called off (a session that has not heard of that goes on with
    /// the older one). Asked by `open()`.
    pub unsealed: Generation,
    pub sealing: Option<Sealing>,
    /// Generations below the head that are kept: snapshots (also one that is being sealed) and fork points.
    pub kept: Generations,
    /// A volume points at the branch: its head is a view, too.
    pub named: bool,
    /// The parent is kept for this branch.
    pub tied: bool,
}

impl BranchViews {
    /// Of a branch without snapshots.
    #[must_use]
    pub fn plain(head: Generation) -> BranchViews {
        BranchViews {
            index: ListIndex::default(),
            head,
            unsealed: head,
            sealing: None,
            kept: Generations::new(),
            named: true,
            tied: false,
        }
    }
    /// The least generation that is not sealed: replicas may differ in it and in all above. It is not always the one
    /// below the head: a seal that was called off leaves the head where it is, and confirms nothing.
    #[must_use]
    pub fn open(&self) -> Generation {
        self.sealing.map_or(self.unsealed, |s| s.generation.min(self.unsealed))
    }
}

/// What a drive must know of a branch's views: which are kept, up to where they are sealed, and which of its
/// replicas hold them all. Newer log indexes only; what is younger than the list is left alone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeepList {
    pub branch: BranchId,
    pub index: ListIndex,
    /// Replicas placed later are none of this list's business.
    pub placed: Incarnation,
    /// All generations below are sealed: no session writes them any more.
    pub open: Generation,
    /// The head's generation at `index`: `open` or above.
    pub head: Generation,
    /// The head is a view.
    pub named: bool,
    /// All below `head`.
    pub kept: Generations,
    /// Replicas on this drive, placed by then, that Raft does not call in-sync: they get no view by this list. Those too
    /// that Raft has let go and the drive may still hold: a reader with old places may ask them.
    /// All others hold every kept generation below `open`.
    pub behind: Vec<(ChunkIndex, Incarnation)>,
}

impl KeepList {
    /// What no metad says; from outside it must be asked.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        self.open.0 > 0 && self.open <= self.head && self.kept.last().is_none_or(|g| g < self.head)
    }
}

/// One level that a reader looks in: a view that never changes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Level {
    pub branch: BranchId,
    pub generation: Generation,
    /// Bytes; beyond it the level is absent.
    pub size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_metad_speaks_later_than_all_before() {
        let old = ListIndex::new(0, LogIndex((1 << 58) - 1));
        assert!(old < ListIndex::new(1, LogIndex(1)));
        assert!(ListIndex::new(1, LogIndex(1)) < ListIndex::new(1, LogIndex(2)));
        assert!(ListIndex::new(63, LogIndex(5)) > ListIndex::new(62, LogIndex(9)));
    }

    #[test]
    fn a_seal_that_was_called_off_leaves_generations_open() {
        let mut v = BranchViews::plain(Generation(4));
        assert_eq!(v.open(), Generation(4));
        v.sealing = Some(Sealing { generation: Generation(3), group: false });
        assert_eq!(v.open(), Generation(3));
        v.unsealed = Generation(2);
        assert_eq!(v.open(), Generation(2), "the one before was called off");
        v.sealing = None;
        assert_eq!(v.open(), Generation(2));
    }

    #[test]
    fn a_list_names_only_what_lies_below_the_head() {
        let list = |open, head, kept: &[u32]| KeepList {
            branch: BranchId(1),
            index: ListIndex(1),
            placed: Incarnation(1),
            open: Generation(open),
            head: Generation(head),
            named: true,
            kept: kept.iter().map(|g| Generation(*g)).collect(),
            behind: Vec::new(),
        };
        assert!(list(3, 3, &[1, 2]).is_possible());
        assert!(list(2, 3, &[1, 2]).is_possible());
        assert!(list(1, 3, &[1]).is_possible(), "after seals that were called off");
        for bad in [list(0, 0, &[]), list(3, 2, &[]), list(3, 3, &[3])] {
            assert!(!bad.is_possible(), "{bad:?}");
        }
    }
}
