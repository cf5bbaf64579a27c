//! Who reads from whom, and who may go: a branch is there while a volume points at it, a snapshot names one of its
//! generations, or another branch is forked from it.
//!
//! Invariant: a fork is younger than its parent, so no chain of parents is a ring. What is erased is told to the drives as
//! ever (`garbage`); a parent whose fork went is told what it need not keep (`keep`).

use crate::rows::Key;
use crate::state::MetaState;
use crate::touch::Touch;
use proto::{BranchId, Generation, Level, VolumeId};

impl MetaState {
    /// Where a reader looks for what is absent in the branch, the nearest first.
    #[must_use]
    pub fn levels_below(&self, branch: BranchId) -> Vec<Level> {
        let tie = |b: BranchId| self.branches.get(&b).and_then(crate::model::Branch::tie);
        std::iter::successors(tie(branch), |level| tie(level.branch)).collect()
    }

    /// A volume's branches, the oldest first.
    pub fn branches_of(&self, volume: VolumeId) -> impl DoubleEndedIterator<Item = BranchId> + '_ {
        let range = (volume, BranchId(0))..=(volume, BranchId(u64::MAX));
        self.index.branches.range(range).map(|(_, b)| *b)
    }

    /// The generations of a volume's branches that others are forked from.
    pub(crate) fn fork_points(&self, volume: VolumeId) -> impl Iterator<Item = (BranchId, Generation)> + '_ {
        let of = |b: BranchId| self.index.forks.range((b, Generation(0))..=(b, Generation(u32::MAX)));
        self.branches_of(volume).flat_map(of).map(|(key, _)| *key)
    }

    /// Removes the branch if nobody needs it, and then its parent if that was there for it only, and so on up.
    pub(crate) fn reap(&mut self, branch: BranchId) {
        let mut next = Some(branch);
        while let Some(b) = next.filter(|b| self.is_needless(*b)) {
            next = self.erase_branch(b);
        }
    }

    fn is_needless(&self, branch: BranchId) -> bool {
        self.branches.contains_key(&branch) && !self.is_named(branch) && self.kept(branch).is_empty()
    }

    /// The same for a branch that is about to lose its volume.
    pub(crate) fn remove_branch(&mut self, branch: BranchId) {
        assert!(self.kept(branch).is_empty(), "the caller looked for snapshots and forks");
        if let Some(parent) = self.erase_branch(branch) {
            self.reap(parent);
        }
    }

    /// All of the branch goes: its session, its replicas, what is owed. Returns the parent that it releases.
    fn erase_branch(&mut self, branch: BranchId) -> Option<BranchId> {
        let row = &self.branches[&branch];
        let (epoch, tie, volume) = (row.epoch, row.tie(), row.volume);
        if let Some(s) = row.session {
            self.touch(Touch::Fenced(s.node, branch, epoch.next().unwrap_or(epoch)));
        }
        self.set_session(branch, None);
        self.set_appointed(branch, None);
        let chunks = self.chunks.remove(&branch).expect("every branch has chunks");
        for page in 0..chunks.pages() {
            for (chunk, c) in chunks.page(page) {
                self.index.discount(branch, &c);
                for m in &c.members {
                    self.discard(branch, chunk, m.place);
                }
            }
            self.mark(Key::Chunks(branch, page));
        }
        for drive in self.garbage_drives() {
            self.touch(Touch::Garbage(drive));
        }
        self.forget_owed(branch);
        self.branches.remove(&branch);
        self.index.unwell.remove(&branch);
        self.index.unclosed.remove(&branch);
        self.index.branches.remove(&(volume, branch));
        self.mark(Key::Branch(branch));
        tie.map(|level| self.release(level, branch))
    }

    /// The parent need not keep the generation for this fork any more.
    pub(crate) fn release(&mut self, level: Level, fork: BranchId) -> BranchId {
        let key = (level.branch, level.generation);
        let forks = self.index.forks.get_mut(&key).expect("a tied branch is a fork of its parent");
        forks.remove(&fork);
        if forks.is_empty() {
            self.index.forks.remove(&key);
        }
        if !self.kept(level.branch).contains(level.generation) {
            self.owe(level.branch);
            self.changed_views(level.branch);
        }
        level.branch
    }
}
