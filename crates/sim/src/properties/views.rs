//! VIEWS: a sealed view never changes, and every replica that would show it to a reader shows the same: whatever crashes,
//! resyncs, promotions, late keep-lists and deletions of other snapshots happen.
//!
//! At rest every in-sync replica shows the views that snapshots and forks need, and no others; no list is owed any more, and
//! nothing is stored that no view sees, and no replica that no branch has.

use super::cut::Image;
use super::truth::Block;
use crate::counts::Property;
use crate::effects::index_of;
use crate::world::World;
use proto::message::View;
use proto::{BranchId, ChunkIndex, Generation, Place};

impl World {
    /// One of each volume's views, now and then.
    pub fn check_some_views(&mut self) {
        if !self.rng.permille(350) {
            return;
        }
        for v in 0..self.volumes.len() {
            let of = self.watchers.cuts.images.iter().filter(|(_, i)| i.volume == v);
            let keys: Vec<(BranchId, Generation)> = of.map(|(k, _)| *k).collect();
            if keys.is_empty() {
                continue;
            }
            let (branch, generation) = keys[self.rng.index(keys.len())];
            self.check_view(branch, generation);
        }
    }

    fn check_view(&mut self, branch: BranchId, generation: Generation) {
        let Some(image) = self.watchers.cuts.images.remove(&(branch, generation)) else { return };
        if let Err(text) = self.compare_view(&image, branch, generation) {
            self.fail("VIEWS", text);
        }
        self.watchers.cuts.images.insert((branch, generation), image);
    }

    fn compare_view(
        &mut self,
        image: &Image,
        branch: BranchId,
        generation: Generation,
    ) -> Result<(), String> {
        // Also those that no configuration names any more: a reader may have heard of them before.
        let stores: Vec<_> = self.hosts.iter().flat_map(|h| h.node.iter()).flat_map(|n| n.stores()).collect();
        let mut checked = 0;
        for (chunk, _) in self.metad.configurations(branch) {
            for (d, store) in &stores {
                if !store.serves(branch, chunk, generation) {
                    continue;
                }
                for ((_, block), kept) in image.own.range((chunk, 0)..=(chunk, u32::MAX)) {
                    let view = View::At(generation);
                    let Some(held) = store.block(branch, chunk, *block, view) else { continue };
                    let held = self.block_of(branch, held.0);
                    checked += 1;
                    if !kept.same_as(held) {
                        let who = |b: Block| self.watchers.asked_by(image.volume, chunk, *block, b);
                        return Err(format!(
                            "{branch} {generation} {chunk} block {block}: was {kept:?} ({}), {d} has {held:?} ({})",
                            who(*kept),
                            who(held)
                        ));
                    }
                }
            }
        }
        self.counts.checked(Property::Views, checked);
        Ok(())
    }

    /// The replica would answer a reader of this view.
    pub(super) fn shows(
        &self,
        place: Place,
        branch: BranchId,
        chunk: ChunkIndex,
        generation: Generation,
    ) -> bool {
        self.store(index_of(place.node), place.drive).is_some_and(|s| {
            s.serves(branch, chunk, generation)
                && s.replica(branch, chunk).is_some_and(|r| r.0 == place.incarnation)
        })
    }

    /// What of the snapshots is not at rest yet.
    pub fn views_unrest(&mut self) -> Option<String> {
        let rows = self.snapshot_rows();
        if let Some(r) = rows.iter().find(|r| !r.sealed) {
            return Some(format!("{} of {} is not sealed", r.name, self.volumes[r.volume].name));
        }
        if let Some(owed) = self.metad.owed() {
            return Some(format!("a keep-list is owed: {owed}"));
        }
        if let Some(r) = rows.iter().find(|r| r.hidden) {
            return Some(format!("a fork point without a fork is there: {r:?}"));
        }
        let branches: Vec<BranchId> = self.metad.state.branches().keys().copied().collect();
        branches.into_iter().find_map(|b| self.branch_unrest(b)).or_else(|| self.unseen())
    }

    /// Every in-sync replica shows every view that a snapshot or a fork needs, and no other.
    fn branch_unrest(&mut self, branch: BranchId) -> Option<String> {
        let row = &self.metad.state.branches()[&branch];
        let (kept, head) = (self.metad.state.kept(branch), row.generation);
        if row.phase != meta::Phase::Ready {
            return Some(format!("{branch} is not ready"));
        }
        for (chunk, c) in self.metad.configurations(branch) {
            let whole = c.in_sync_count();
            if whole < 3 || c.members.iter().any(|m| !m.in_sync()) {
                return Some(format!("{branch} {chunk}: {whole} in-sync of {:?}", c.members));
            }
            for m in c.in_sync() {
                for g in (Generation::FIRST.0..=head.0).map(Generation) {
                    self.counts.checked(Property::Kept, 1);
                    let shows = self.shows(m.place, branch, chunk, g);
                    if shows != kept.contains(g) {
                        let d = m.place.drive;
                        let does = if shows { "shows" } else { "does not show" };
                        return Some(format!("{d} {does} {branch} {chunk} {g}, and kept are {kept:?}"));
                    }
                }
            }
        }
        None
    }

    /// An extent that no view sees and that nobody has freed.
    fn unseen(&self) -> Option<String> {
        for h in &self.hosts {
            for (drive, store) in h.node.iter().flat_map(|n| n.stores()) {
                if let Some(r) = self.metad.state.garbage(drive, 1).first() {
                    return Some(format!("{drive}: {r:?} is still to be erased"));
                }
                for r in store.replicas() {
                    let c = self.metad.configuration(r.branch, r.chunk);
                    let member = c.as_ref().and_then(|c| c.member(drive));
                    if member.is_none_or(|m| m.place.incarnation != r.incarnation) {
                        return Some(format!("{drive}: {r:?} is nobody's"));
                    }
                    let unseen = store.unseen_extents(r.branch, r.chunk);
                    if unseen > 0 {
                        return Some(format!(
                            "{drive}: {unseen} extents of {} {} are seen by no view",
                            r.branch, r.chunk
                        ));
                    }
                }
            }
        }
        None
    }
}

impl World {
    /// All views once more, when everything is at rest.
    pub fn check_all_views(&mut self) {
        let keys: Vec<_> = self.watchers.cuts.images.keys().copied().collect();
        for (branch, generation) in keys {
            self.check_view(branch, generation);
        }
    }
}
