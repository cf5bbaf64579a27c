//! What changed lately, for the leader's watch: a short memory beside the state, not part of it.

use crate::state::MetaState;
use proto::{BranchId, ChunkIndex, DriveId, Epoch, LogIndex, NodeId};
use std::collections::VecDeque;

/// Touches remembered; whoever is further behind looks at everything.
const TOUCHES_MAX: usize = 4096;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Touch {
    /// The node table: names, addresses, up or down; a drive up or down.
    Nodes,
    Appointed(NodeId),
    /// Changed by another than the session.
    Chunks(BranchId, Vec<ChunkIndex>),
    Resized(BranchId),
    /// The session that this node held is not current any more.
    Fenced(NodeId, BranchId, Epoch),
    Garbage(DriveId),
    /// The branch's generations: for its session.
    Views(BranchId),
    /// Its job has begun or ended.
    Job(BranchId),
    /// A keep-list is owed.
    Keep(DriveId, BranchId),
    /// Something that the planner may have to look at.
    Branch(BranchId),
    Settings,
    /// A policy came to a volume, left it, or ran.
    Policies,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Touched {
    ring: VecDeque<(LogIndex, Touch)>,
    /// Everything later than this is in the ring.
    complete_after: LogIndex,
}

impl Touched {
    pub(crate) fn starting_at(index: LogIndex) -> Touched {
        Touched { ring: VecDeque::new(), complete_after: index }
    }
    fn push(&mut self, index: LogIndex, touch: Touch) {
        if self.ring.len() == TOUCHES_MAX
            && let Some((dropped, _)) = self.ring.pop_front()
        {
            self.complete_after = self.complete_after.max(dropped);
        }
        self.ring.push_back((index, touch));
    }
}

impl MetaState {
    pub(crate) fn touch(&mut self, touch: Touch) {
        let index = self.head.applied;
        self.touched.push(index, touch);
    }

    /// What changed after `seen`; `None` if that is too long ago.
    pub(crate) fn touched_after(&self, seen: LogIndex) -> Option<impl Iterator<Item = &Touch>> {
        let complete = seen >= self.touched.complete_after;
        complete.then(|| self.touched.ring.iter().filter(move |t| t.0 > seen).map(|t| &t.1))
    }
}
