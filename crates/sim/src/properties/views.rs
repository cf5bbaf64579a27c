//! VIEWS: a sealed view never changes, and every replica that would show it to a reader shows the same: whatever crashes,
//! resyncs, promotions, late keep-lists and deletions of other snapshots happen.
//!
//! At rest every in-sync replica shows every kept view, no list is owed any more, and nothing is stored that no view
//! sees.

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
            let of = self.watchers.cuts.images.iter().filter(|(_, i)| i.0 == v);
            let keys: Vec<(BranchId, Generation)> = of.map(|(k, _)| *k).collect();
            if keys.is_empty() {
                continue;
            }
            let (branch, generation) = keys[self.rng.index(keys.len())];
            self.check_view(branch, generation);
        }
    }

    fn check_view(&mut self, branch: BranchId, generation: Generation) {
        let Some((v, image)) = self.watchers.cuts.images.get(&(branch, generation)) else { return };
        let (v, image) = (*v, image.clone());
        for (chunk, c) in self.metad.configurations(branch) {
            for m in &c.members {
                if !self.shows(m.place, branch, chunk, generation) {
                    continue;
                }
                for ((_, block), kept) in image.iter().filter(|((c, _), _)| *c == chunk) {
                    let view = View::At(generation);
                    let Some(held) = self.held_in(m.place, branch, chunk, *block, view) else { continue };
                    self.counts.checked(Property::Views, 1);
                    if !kept.same_as(held) {
                        let d = m.place.drive;
                        let who = |b: Block| self.watchers.asked_by(v, chunk, *block, b);
                        let text = format!(
                            "{branch} {generation} {chunk} block {block}: was {kept:?} ({}), {d} has {held:?} ({})",
                            who(*kept),
                            who(held)
                        );
                        return self.fail("VIEWS", text);
                    }
                }
            }
        }
    }

    /// The replica would answer a reader of this view.
    fn shows(&self, place: Place, branch: BranchId, chunk: ChunkIndex, generation: Generation) -> bool {
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
        for r in &rows {
            for (chunk, c) in self.metad.configurations(r.branch) {
                for m in c.in_sync() {
                    self.counts.checked(Property::Kept, 1);
                    if !self.shows(m.place, r.branch, chunk, r.generation) {
                        let d = m.place.drive;
                        return Some(format!(
                            "{d} does not show {} ({} {} {chunk})",
                            r.name, r.branch, r.generation
                        ));
                    }
                }
            }
        }
        self.unseen()
    }

    /// An extent that no view sees and that nobody has freed.
    fn unseen(&self) -> Option<String> {
        for h in &self.hosts {
            for (drive, store) in h.node.iter().flat_map(|n| n.stores()) {
                for r in store.replicas() {
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
