//! Space figures: the order to count what replicas take by the views that see it, and what was counted.
//!
//! Which views there are metad says (they are in Raft), not the drive's own keep-list: a drive that has not yet heard of a
//! snapshot, or of the end of one, counts right all the same. Rules: `docs/architecture.md`, section 6.

use crate::generations::Generations;
use crate::ids::{BranchId, ChunkIndex, DriveId, Incarnation, RequestId};
use crate::message::{Usage, ViewUsage};
use crate::views::ListIndex;
use serde::{Deserialize, Serialize};

/// Whose count it is: an answer counts only where exactly this order is waited for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct MeasureId {
    /// The operator's.
    pub request: RequestId,
    /// When the measurement began, or began anew: it rises from leader to leader.
    pub begun: ListIndex,
    /// The stretch of chunks that is counted.
    pub part: u32,
}

/// Counts these replicas of a branch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Measure {
    pub id: MeasureId,
    pub branch: BranchId,
    /// The views that there are, below the head.
    pub kept: Generations,
    /// The head is a view, too.
    pub named: bool,
    pub replicas: Vec<MeasuredReplica>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MeasuredReplica {
    pub drive: DriveId,
    pub chunk: ChunkIndex,
    pub incarnation: Incarnation,
    /// The one of its chunk by which views are counted: it is in-sync. Of the others it counts what they take.
    pub views: bool,
}

/// Sums over a `Measure`'s replicas. What is missing there (moved, or its drive does not serve) is missing here.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sums {
    /// Over those by which views are counted; views that see nothing are left out.
    pub views: Usage,
    /// How many these are.
    pub chunks: u32,
    /// Extents over all of them: taken, and of these seen by no view.
    pub taken: u64,
    pub unseen: u64,
    pub replicas: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub id: MeasureId,
    pub sums: Sums,
}

impl Sums {
    /// One more replica, counted to its end.
    pub fn put(&mut self, usage: &Usage, views: bool) {
        self.taken += usage.total;
        self.unseen += usage.unseen;
        self.replicas += 1;
        if views {
            self.views.add(usage);
            self.chunks += 1;
        }
    }
}

impl Usage {
    /// Other replicas of the same branch, by the same views.
    pub fn add(&mut self, other: &Usage) {
        self.total += other.total;
        self.unseen += other.unseen;
        self.head.seen += other.head.seen;
        self.head.exclusive += other.head.exclusive;
        for view in other.views.iter().filter(|v| v.seen > 0) {
            match self.views.binary_search_by_key(&view.generation, |v| v.generation) {
                Ok(at) => {
                    self.views[at].seen += view.seen;
                    self.views[at].exclusive += view.exclusive;
                }
                Err(at) => self.views.insert(at, *view),
            }
        }
    }
    /// What a view sees; nothing, if nobody said otherwise.
    #[must_use]
    pub fn view(&self, generation: crate::ids::Generation) -> ViewUsage {
        let at = self.views.binary_search_by_key(&generation, |v| v.generation);
        at.map_or(ViewUsage { generation, ..ViewUsage::default() }, |at| self.views[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Generation;

    #[test]
    fn sums_are_by_view_and_views_that_see_nothing_are_left_out() {
        let view = |g, seen, exclusive| ViewUsage { generation: Generation(g), seen, exclusive };
        let usage = |views: &[ViewUsage]| Usage {
            total: 5,
            unseen: 1,
            views: views.to_vec(),
            head: view(0, 2, 1),
            ..Usage::default()
        };
        let mut sums = Sums::default();
        sums.put(&usage(&[view(3, 2, 1), view(7, 0, 0)]), true);
        sums.put(&usage(&[view(1, 4, 0), view(3, 1, 1)]), true);
        sums.put(&usage(&[view(9, 9, 9)]), false);
        assert_eq!((sums.chunks, sums.replicas, sums.taken, sums.unseen), (2, 3, 15, 3));
        assert_eq!(sums.views.views, [view(1, 4, 0), view(3, 3, 2)]);
        assert_eq!((sums.views.total, sums.views.unseen, sums.views.head), (10, 2, view(0, 4, 2)));
        assert_eq!(sums.views.view(Generation(3)), view(3, 3, 2));
        assert_eq!(sums.views.view(Generation(7)), view(7, 0, 0));
    }
}
