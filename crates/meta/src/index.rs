//! What is derived from the rows, to find things without looking at everything. Never stored.

use proto::{BranchId, Configuration, DriveId, Generation, JobId, Map, NodeId, RequestId, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Index {
    pub(crate) names: BTreeMap<String, VolumeId>,
    pub(crate) node_names: BTreeMap<String, NodeId>,
    /// Kept answers in the order of arrival.
    pub(crate) kept: BTreeMap<u64, RequestId>,
    /// Replicas per drive and branch (also those of placements not made yet).
    pub(crate) uses: BTreeMap<DriveId, BTreeMap<BranchId, u32>>,
    /// Replicas per drive.
    pub(crate) replicas: BTreeMap<DriveId, u64>,
    /// Branches with a chunk that is not well, or with a placement to be made.
    pub(crate) unwell: BTreeSet<BranchId>,
    pub(crate) appointed: BTreeMap<NodeId, BTreeSet<BranchId>>,
    /// Branches with a session, by its node.
    pub(crate) sessions: BTreeMap<NodeId, BTreeSet<BranchId>>,
    /// A volume's snapshots by name.
    pub(crate) snapshots: BTreeMap<(VolumeId, String), (BranchId, Generation)>,
    /// Branches that keep a generation of their parent.
    pub(crate) forks: BTreeMap<(BranchId, Generation), BTreeSet<BranchId>>,
    /// Branches with a seal under way.
    pub(crate) sealing: BTreeSet<BranchId>,
    /// A volume's branches: the one that it points at, and those that lost its name.
    pub(crate) branches: BTreeSet<(VolumeId, BranchId)>,
    /// Fork points in the making.
    pub(crate) hidden: BTreeSet<(BranchId, Generation)>,
    /// Branches without a name that were not closed cleanly since: nothing of their last head is freed until they are.
    pub(crate) unclosed: BTreeSet<BranchId>,
    /// Running jobs.
    pub(crate) jobs: BTreeMap<BranchId, JobId>,
}

impl Index {
    pub(crate) fn count(&mut self, branch: BranchId, c: &Configuration) {
        for m in &c.members {
            *self.uses.entry(m.place.drive).or_default().entry(branch).or_default() += 1;
            *self.replicas.entry(m.place.drive).or_default() += 1;
        }
    }

    /// The same for many: a branch lies on few drives, so they are added up first.
    pub(crate) fn count_all<'a>(&mut self, branch: BranchId, all: impl Iterator<Item = &'a Configuration>) {
        let mut sums: Map<DriveId, u32> = Map::default();
        for m in all.flat_map(|c| &c.members) {
            *sums.entry(m.place.drive).or_default() += 1;
        }
        for (drive, n) in sums {
            *self.uses.entry(drive).or_default().entry(branch).or_default() += n;
            *self.replicas.entry(drive).or_default() += u64::from(n);
        }
    }

    pub(crate) fn discount(&mut self, branch: BranchId, c: &Configuration) {
        for m in &c.members {
            let drive = m.place.drive;
            let uses = self.uses.get_mut(&drive).expect("counted before");
            let n = uses.get_mut(&branch).expect("counted before");
            *n -= 1;
            if *n == 0 {
                uses.remove(&branch);
            }
            if uses.is_empty() {
                self.uses.remove(&drive);
            }
            let total = self.replicas.get_mut(&drive).expect("counted before");
            *total -= 1;
            if *total == 0 {
                self.replicas.remove(&drive);
            }
        }
    }
}

/// A set of branches per node, without empty sets.
pub(crate) fn put(map: &mut BTreeMap<NodeId, BTreeSet<BranchId>>, node: NodeId, branch: BranchId) {
    map.entry(node).or_default().insert(branch);
}
pub(crate) fn remove(map: &mut BTreeMap<NodeId, BTreeSet<BranchId>>, node: NodeId, branch: BranchId) {
    if let Some(set) = map.get_mut(&node) {
        set.remove(&branch);
        if set.is_empty() {
            map.remove(&node);
        }
    }
}
