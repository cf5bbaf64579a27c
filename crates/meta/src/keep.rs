//! Which generations of a branch are kept, and who must know: its session (`views`), and the drives that store it
//! (`keep_list`, owed to each until it says that the list is flushed there).
//!
//! A list is computed from the rows when it is told, never stored: an owed row says only that the drive has not confirmed one
//! that is new enough. Why completeness travels with it: `docs/decisions/0010`. A branch that never had a snapshot owes nothing.

use crate::rows::Key;
use crate::state::MetaState;
use crate::touch::Touch;
use proto::control::{MetaAnswer, MetaRefusal};
use proto::{
    BranchId, BranchViews, ChunkIndex, DriveId, Generation, Generations, Incarnation, KeepList, ListIndex,
    Sealing,
};
use std::collections::BTreeSet;

/// All keys of a branch.
const LAST: Generation = Generation(u32::MAX);

impl MetaState {
    /// What is said now is as of this.
    #[must_use]
    pub fn list_index(&self) -> ListIndex {
        ListIndex::new(self.head.lineage, self.head.applied)
    }

    /// Generations below the head that somebody needs: snapshots, also those being sealed, and fork points.
    #[must_use]
    pub fn kept(&self, branch: BranchId) -> Generations {
        let range = (branch, Generation(0))..=(branch, LAST);
        let snapshots = self.snapshots.range(range.clone()).map(|((_, g), _)| *g);
        let forks = self.index.forks.range(range).map(|((_, g), _)| *g);
        snapshots.chain(forks).collect()
    }

    /// What a session is to know of its branch's generations, as of now.
    #[must_use]
    pub fn views(&self, branch: BranchId) -> Option<BranchViews> {
        let row = self.branches.get(&branch)?;
        let sealing = |s: crate::model::Seal| Sealing { generation: s.generation, group: s.group.is_some() };
        Some(BranchViews {
            index: self.list_index(),
            head: row.generation,
            unsealed: row.unsealed,
            sealing: row.sealing.map(sealing),
            kept: self.kept(branch),
            named: self.is_named(branch),
            tied: row.tied,
        })
    }

    pub(crate) fn present_views(&self, branch: BranchId) -> MetaAnswer {
        let (Some(row), Some(views)) = (self.branches.get(&branch), self.views(branch)) else {
            return MetaAnswer::Refused(MetaRefusal::NoSuchVolume);
        };
        MetaAnswer::Views { epoch: row.epoch, views }
    }

    /// A volume points at it.
    pub(crate) fn is_named(&self, branch: BranchId) -> bool {
        let volume = self.branches.get(&branch).and_then(|b| self.any_volume(b.volume));
        volume.is_some_and(|v| v.branch == branch)
    }

    /// What the drive must know of the branch, as of now.
    #[must_use]
    pub fn keep_list(&self, branch: BranchId, drive: DriveId) -> Option<KeepList> {
        let row = self.branches.get(&branch)?;
        // A replica that is not in-sync makes its chunk one that is not well: the other pages are not read.
        let behind = |(chunk, c): (ChunkIndex, proto::Configuration)| {
            let m = c.member(drive).filter(|m| !m.in_sync())?;
            Some((chunk, m.place.incarnation))
        };
        // What was let go may still be there: to a reader with old places it must not look whole.
        let pages = self.garbage.range((drive, branch, 0)..=(drive, branch, u32::MAX));
        let let_go = pages.flat_map(|(_, page)| page.iter().copied());
        Some(KeepList {
            branch,
            index: self.list_index(),
            placed: Incarnation(self.head.last_incarnation),
            open: row.unsealed,
            head: row.generation,
            named: self.is_named(branch),
            kept: self.kept(branch),
            behind: self.chunks.get(&branch)?.iter_unwell().filter_map(behind).chain(let_go).collect(),
        })
    }

    /// Drives with a list to confirm, and since which index; by drive.
    pub fn owed(&self) -> impl Iterator<Item = (DriveId, BranchId, ListIndex)> + '_ {
        self.owed.iter().map(|((d, b), index)| (*d, *b, *index))
    }

    /// Drives that have not confirmed the branch's newest list.
    #[must_use]
    pub fn owed_of(&self, branch: BranchId) -> Vec<DriveId> {
        let drives = self.index.uses.iter().filter(|(_, u)| u.contains_key(&branch)).map(|(d, _)| *d);
        drives.filter(|d| self.owed.contains_key(&(*d, branch))).collect()
    }

    /// What is kept has changed, or up to where it is sealed: all of the branch's drives must know.
    pub(crate) fn owe(&mut self, branch: BranchId) {
        for (drive, _) in self.drives_of(branch) {
            self.owe_one(drive, branch);
        }
    }

    fn owe_one(&mut self, drive: DriveId, branch: BranchId) {
        self.owed.insert((drive, branch), self.list_index());
        self.mark(Key::Owed(drive, branch));
        self.touch(Touch::Keep(drive, branch));
    }

    /// Replicas on these drives came into the in-sync set, left it, were made or let go.
    pub(crate) fn owe_moved(&mut self, branch: BranchId, drives: &BTreeSet<DriveId>) {
        if drives.is_empty() {
            return;
        }
        let any = self.has_views(branch);
        for drive in drives {
            if !self.index.uses.get(drive).is_some_and(|u| u.contains_key(&branch)) {
                if self.owed.remove(&(*drive, branch)).is_some() {
                    self.mark(Key::Owed(*drive, branch));
                }
            } else if any {
                self.owe_one(*drive, branch);
            }
        }
    }

    /// Some sealed generation is kept: then it matters which replicas hold it.
    fn has_views(&self, branch: BranchId) -> bool {
        let Some(row) = self.branches.get(&branch) else { return false };
        let sealed = (branch, Generation(0))..(branch, row.unsealed);
        self.snapshots.range(sealed.clone()).next().is_some()
            || self.index.forks.range(sealed).next().is_some()
    }

    /// The drive has this list, flushed. Returns whether that settles what it was owed.
    pub(crate) fn apply_kept(&mut self, drive: DriveId, branch: BranchId, index: ListIndex) -> bool {
        let settled = self.is_settled_by(drive, branch, index);
        if settled {
            self.owed.remove(&(drive, branch));
            self.mark(Key::Owed(drive, branch));
        }
        settled
    }

    pub(crate) fn is_settled_by(&self, drive: DriveId, branch: BranchId, index: ListIndex) -> bool {
        self.owed.get(&(drive, branch)).is_some_and(|owed| *owed <= index)
    }

    /// The branch is gone.
    pub(crate) fn forget_owed(&mut self, branch: BranchId) {
        let keys: Vec<(DriveId, BranchId)> =
            self.owed.keys().filter(|(_, b)| *b == branch).copied().collect();
        self.forget_keys(keys);
    }

    /// The drive is gone.
    pub(crate) fn forget_owed_to(&mut self, drive: DriveId) {
        let range = (drive, BranchId(0))..=(drive, BranchId(u64::MAX));
        let keys: Vec<(DriveId, BranchId)> = self.owed.range(range).map(|(k, _)| *k).collect();
        self.forget_keys(keys);
    }

    fn forget_keys(&mut self, keys: Vec<(DriveId, BranchId)>) {
        for (drive, branch) in keys {
            self.owed.remove(&(drive, branch));
            self.mark(Key::Owed(drive, branch));
        }
    }
}
