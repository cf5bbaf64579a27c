//! The atlas of damage: what power loss has made possible to lose, and when that is over.
//!
//! A replica that lost power may lack what it acknowledged and did not flush. While some in-sync replica of a chunk has
//! not, nothing may be missing. Once all of them have (or the last sound one is dropped while the others' loss is
//! unnoticed: the third fault that section 12 accepts), unflushed writes of that chunk may be gone; the flush rule
//! judges what is found. A new session's first service ends it.

use crate::effects::index_of;
use crate::net::HostIndex;
use crate::world::World;
use oracle::Entry;
use proto::{BranchId, ChunkIndex, Configuration, DriveId, Epoch, Member, Span};
use std::collections::{BTreeMap, BTreeSet};

/// What struck a machine so long ago is over.
const LATELY: Span = Span::secs(12);

type Place = (BranchId, ChunkIndex);

#[derive(Debug, Default)]
pub struct Atlas {
    /// Drives that lost power since they were last whole, per chunk.
    lost: BTreeMap<Place, BTreeSet<DriveId>>,
    /// Chunks whose unflushed writes may be gone.
    permitted: BTreeSet<Place>,
    /// The newest session that was seen to serve.
    served: BTreeMap<BranchId, Epoch>,
}

impl Atlas {
    /// True if nothing sound is left of these members.
    fn unsound(&self, place: Place, c: &Configuration) -> bool {
        let lost = self.lost.get(&place);
        c.number.0 > 0 && c.in_sync().all(|m| lost.is_some_and(|l| l.contains(&m.place.drive)))
    }
    #[must_use]
    pub fn loss_permitted(&self, branch: BranchId, chunk: ChunkIndex) -> bool {
        self.permitted.contains(&(branch, chunk))
    }
    #[must_use]
    pub fn lost_power(&self, branch: BranchId, chunk: ChunkIndex, drive: DriveId) -> bool {
        self.lost.get(&(branch, chunk)).is_some_and(|l| l.contains(&drive))
    }
    /// True if this session was seen to serve before.
    #[must_use]
    pub fn has_served(&self, branch: BranchId, epoch: Epoch) -> bool {
        self.served.get(&branch) == Some(&epoch)
    }
    /// A drive holds everything, flushed, in this chunk.
    pub fn whole(&mut self, branch: BranchId, chunk: ChunkIndex, drive: DriveId) {
        if let Some(l) = self.lost.get_mut(&(branch, chunk)) {
            l.remove(&drive);
        }
    }
}

impl World {
    /// A machine lost power: what its volatile caches held is gone.
    pub fn lost_power(&mut self, host: HostIndex) {
        if !self.hosts[host].disks.iter().any(|d| d.medium.is_volatile()) {
            return;
        }
        for v in 0..self.volumes.len() {
            let Some(branch) = self.branch_of(v) else { continue };
            for (chunk, c) in self.metad.configurations(branch) {
                for m in c.members.iter().filter(|m| index_of(m.place.node) == host) {
                    self.atlas.lost.entry((branch, chunk)).or_default().insert(m.place.drive);
                }
                self.judge_soundness(v, branch, chunk, &c);
            }
        }
    }

    /// True if for some chunk every in-sync member has lost power, has a failing drive or was out of reach lately,
    /// and one is not merely out of reach: then nobody sound could be asked, and a session may tell its guest so.
    #[must_use]
    pub fn nobody_sound(&self, v: usize) -> bool {
        let Some(branch) = self.branch_of(v) else { return true };
        let away = |h: usize| {
            let h = &self.hosts[h];
            !h.runs() || h.stopped || self.now.since(h.struck) < LATELY
        };
        self.metad.configurations(branch).iter().any(|(chunk, c)| {
            let failing = |m: &Member| self.hosts[index_of(m.place.node)].disks.iter().any(|d| d.failing);
            let lost = |m: &Member| self.atlas.lost_power(branch, *chunk, m.place.drive) || failing(m);
            c.in_sync().any(lost) && c.in_sync().all(|m| lost(m) || away(index_of(m.place.node)))
        })
    }

    /// Raft committed another configuration.
    pub fn judge_soundness(&mut self, v: usize, branch: BranchId, chunk: ChunkIndex, c: &Configuration) {
        if !self.atlas.unsound((branch, chunk), c) {
            return;
        }
        let volume = self.volumes[v].number;
        if self.atlas.permitted.insert((branch, chunk)) {
            self.trace.note(self.now, || format!("unflushed writes of {branch} {chunk} may be lost"));
        }
        if let Some(span) = self.volumes[v].layout.of_chunk(chunk) {
            self.tell(Entry::LossPermitted { volume, span });
        }
        self.tell(Entry::ErrorsPermitted { volume, permitted: true });
    }

    /// A session serves (a maintenance session too): its members hold everything, flushed.
    pub fn notice_service(&mut self, v: usize) {
        let Some((branch, epoch, _)) = self.session_of(v) else { return };
        if self.atlas.served.get(&branch) != Some(&epoch) && self.serving_host(branch, epoch).is_some() {
            self.atlas.served.insert(branch, epoch);
            self.members_are_whole(branch);
        }
    }

    fn members_are_whole(&mut self, branch: BranchId) {
        for (chunk, c) in self.metad.configurations(branch) {
            for m in c.in_sync() {
                if !self.in_doubt(m.place, branch) {
                    self.atlas.whole(branch, chunk, m.place.drive);
                }
            }
        }
    }

    /// A volume is served by a new session: what was lost is settled.
    pub fn settle_losses(&mut self, v: usize) {
        let Some(branch) = self.branch_of(v) else { return };
        let volume = self.volumes[v].number;
        self.atlas.permitted.retain(|(b, _)| *b != branch);
        self.members_are_whole(branch);
        self.tell(Entry::ErrorsPermitted { volume, permitted: false });
    }
}
