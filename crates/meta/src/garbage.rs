//! Replicas that no configuration names any more: to be erased, until their node says that it is done.
//!
//! A replica is known by its incarnation, which is given once: what is garbage stays garbage.

use crate::rows::{Key, page_of};
use crate::state::MetaState;
use crate::touch::Touch;
use proto::control::HeldReplica;
use proto::{BranchId, ChunkIndex, DriveId, Incarnation, LogIndex, Place};
use std::collections::BTreeSet;

/// (drive, branch, page) -> the replicas of that page's chunks.
pub(crate) type GarbageKey = (DriveId, BranchId, u32);
pub(crate) type GarbagePage = BTreeSet<(ChunkIndex, Incarnation)>;

impl MetaState {
    pub(crate) fn discard(&mut self, branch: BranchId, chunk: ChunkIndex, place: Place) {
        if !self.drives.contains_key(&place.drive) {
            return;
        }
        let key = (place.drive, branch, page_of(chunk));
        self.garbage.entry(key).or_default().insert((chunk, place.incarnation));
        self.mark(Key::Garbage(key.0, key.1, key.2));
    }

    /// Replicas to erase on a drive, at most so many.
    #[must_use]
    pub fn garbage(&self, drive: DriveId, most: usize) -> Vec<HeldReplica> {
        self.garbage
            .range((drive, BranchId(0), 0)..=(drive, BranchId(u64::MAX), u32::MAX))
            .flat_map(|(key, page)| {
                page.iter().map(|(chunk, incarnation)| HeldReplica {
                    branch: key.1,
                    chunk: *chunk,
                    incarnation: *incarnation,
                })
            })
            .take(most)
            .collect()
    }

    /// Drives that have something to erase.
    pub(crate) fn garbage_drives(&self) -> BTreeSet<DriveId> {
        let mut drives = BTreeSet::new();
        let mut from = (DriveId(0), BranchId(0), 0);
        while let Some((key, _)) = self.garbage.range(from..).next() {
            drives.insert(key.0);
            let Some(next) = key.0.0.checked_add(1) else { break };
            from = (DriveId(next), BranchId(0), 0);
        }
        drives
    }

    /// A node erased these. Returns whether any was known.
    pub(crate) fn apply_deleted(&mut self, drive: DriveId, replicas: &[HeldReplica]) -> bool {
        let mut changed = false;
        for r in replicas {
            let key = (drive, r.branch, page_of(r.chunk));
            let Some(page) = self.garbage.get_mut(&key) else { continue };
            if !page.remove(&(r.chunk, r.incarnation)) {
                continue;
            }
            if page.is_empty() {
                self.garbage.remove(&key);
            }
            changed = true;
            self.mark(Key::Garbage(key.0, key.1, key.2));
        }
        if changed {
            self.touch(Touch::Garbage(drive));
        }
        changed
    }

    /// True if this replica is one that metad placed once and that no configuration names now.
    pub(crate) fn is_orphan(&self, drive: DriveId, r: &HeldReplica) -> bool {
        let given = self.was_placed(r);
        let named = self.configuration(r.branch, r.chunk).is_some_and(|c| {
            c.members.iter().any(|m| m.place.drive == drive && m.place.incarnation == r.incarnation)
        });
        given && !named
    }

    /// Some metad of this cluster gave it its incarnation.
    pub(crate) fn was_placed(&self, r: &HeldReplica) -> bool {
        r.incarnation.0 != 0 && r.incarnation.0 <= self.head.last_incarnation
    }

    /// How many replicas are to be erased on a drive.
    #[must_use]
    pub fn garbage_count(&self, drive: DriveId) -> u64 {
        let range = (drive, BranchId(0), 0)..=(drive, BranchId(u64::MAX), u32::MAX);
        self.garbage.range(range).map(|(_, page)| page.len() as u64).sum()
    }

    /// Forgets what was to be erased on a drive that is removed.
    pub(crate) fn forget_garbage(&mut self, drive: DriveId) {
        let range = (drive, BranchId(0), 0)..=(drive, BranchId(u64::MAX), u32::MAX);
        let keys: Vec<GarbageKey> = self.garbage.range(range).map(|(k, _)| *k).collect();
        for key in keys {
            self.garbage.remove(&key);
            self.mark(Key::Garbage(key.0, key.1, key.2));
        }
    }

    /// The log index that orders to erase carry.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.head.applied
    }
}
