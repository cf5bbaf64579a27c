//! Volumes that come and go: clones, volumes that were rolled back, volumes that were deleted.
//!
//! Owns which branch each of the guests' volumes is, and what a new one begins with. A rollback ends one volume and begins
//! another of the same name: what guests knew of the old one says nothing of it. All of this is noticed from what Raft
//! has committed, whoever asked for it and however late: a command that was lost has made nothing.

use crate::counts::Operator as Did;
use crate::guest::{ClientState, Volume};
use crate::host::Input;
use crate::layout::{Layout, place_of};
use crate::swarm;
use crate::world::{Due, World};
use node::Event;
use oracle::{Entry, VolumeNumber};
use proto::limits::BLOCK;
use proto::{BranchId, Epoch, Level, Span};

/// Blocks by which the region of a clone that is larger than its source grows, at most.
const MORE: u64 = 32;

impl World {
    /// The branch of a volume that is there.
    #[must_use]
    pub fn branch_of(&self, v: usize) -> Option<BranchId> {
        self.volumes[v].branch.filter(|_| self.volumes[v].gone.is_none())
    }
    /// The volume that a branch is, or was.
    #[must_use]
    pub fn volume_of_branch(&self, branch: BranchId) -> Option<usize> {
        self.volumes.iter().position(|v| v.branch == Some(branch))
    }
    /// Volumes that are there, and not in the trash.
    #[must_use]
    pub fn live(&self) -> Vec<usize> {
        (0..self.volumes.len()).filter(|v| self.volumes[*v].is_there()).collect()
    }
    /// One of them.
    #[must_use]
    pub fn some_volume(&mut self) -> usize {
        let live = self.live();
        live[self.rng.index(live.len())]
    }
    /// Branch, present epoch and `min_in_sync` of a volume that somebody has attached.
    #[must_use]
    pub fn session_of(&self, v: usize) -> Option<(BranchId, Epoch, u8)> {
        let branch = self.branch_of(v)?;
        let (epoch, min) = self.metad.session_of(branch)?;
        Some((branch, epoch, min))
    }
    /// What is absent in the branch is not zero, but its parent's.
    #[must_use]
    pub fn has_parent(&self, branch: BranchId) -> bool {
        self.volumes.iter().any(|v| v.branch == Some(branch) && v.parent.is_some())
    }

    /// Raft has committed something about volumes: which are there now, and which branches are they?
    pub fn volumes_changed(&mut self) {
        let there = self.metad.volumes();
        let trash = self.metad.trash();
        for v in 0..self.volumes.len() {
            if self.volumes[v].gone.is_some() {
                continue;
            }
            let now = there.iter().find(|(name, _)| *name == self.volumes[v].name).map(|(_, b)| *b);
            match self.volumes[v].branch {
                None => self.volumes[v].branch = now,
                Some(branch) if trash.contains(&branch) => self.volume_rests(v),
                Some(branch) if now == Some(branch) => self.volume_comes_back(v),
                Some(branch) => self.volume_ends(v, branch, now.is_some()),
            }
        }
        for (name, branch) in there {
            if self.volume_of_branch(branch).is_none() {
                self.volume_begins(name, branch);
            }
        }
    }

    /// Deleted, or rolled back: whoever has it open is told by its node, and goes away.
    fn volume_ends(&mut self, v: usize, branch: BranchId, rolled_back: bool) {
        self.counts.operator(if rolled_back { Did::Rollback } else { Did::VolumeDelete });
        let name = self.volumes[v].name.clone();
        self.trace.note(self.now, || format!("{name} ({branch}) is no more"));
        let epoch = self.metad.state.branches().get(&branch).map(|b| b.epoch);
        self.volumes[v].gone = Some(epoch.unwrap_or_default());
        self.clients_go(v, rolled_back);
    }

    fn volume_rests(&mut self, v: usize) {
        if !std::mem::replace(&mut self.volumes[v].trashed, true) {
            self.counts.operator(Did::Trash);
            self.clients_go(v, false);
        }
    }

    /// From the trash.
    fn volume_comes_back(&mut self, v: usize) {
        if std::mem::take(&mut self.volumes[v].trashed) {
            self.counts.operator(Did::Restore);
            self.put(Span(1), Due::Attach { volume: v, host: None, force: false });
            self.put(Span::millis(1), Due::Guest { volume: v });
        }
    }

    fn clients_go(&mut self, v: usize, rolled_back: bool) {
        for i in 0..self.volumes[v].clients.len() {
            let c = &self.volumes[v].clients[i];
            // One that opens opens what has the name then.
            if !c.alive() || (c.state == ClientState::Opening && rolled_back) {
                continue;
            }
            let (host, life, export) = (c.host, c.life, c.export);
            self.client_over(v, i);
            let after = Span::micros(self.rng.within(1, 2_000_000));
            self.put(after, Due::Input { host, life, input: Input::Event(Event::CloseExport { export }) });
        }
    }

    fn volume_begins(&mut self, name: String, branch: BranchId) {
        let row = &self.metad.state.branches()[&branch];
        let parent = row.parent.expect("a volume without a parent is one of the seed's own");
        let size = row.geometry.size;
        let source = self.volume_of_branch(parent.branch).expect("a parent is there before its fork");
        let before = (0..self.volumes.len()).rev().find(|v| self.volumes[*v].name == name);
        let larger = size > parent.size;
        let layout = larger_layout(self.volumes[source].layout, parent, size);
        let number = VolumeNumber(u32::try_from(self.volumes.len() + 1).expect("few volumes"));
        let taste = if before.is_some() || self.rng.permille(500) {
            self.volumes[before.unwrap_or(source)].taste.clone()
        } else {
            let swarm::Taste { no_hole, map, .. } = self.volumes[source].taste;
            swarm::Taste { no_hole, map, ..swarm::taste(&mut self.rng) }
        };
        self.trace.note(self.now, || format!("{name} ({branch}) begins with {parent:?}, {size} bytes"));
        let mut volume = Volume::new(name, number, layout, taste, self.swarm.tight);
        (volume.branch, volume.parent) = (Some(branch), Some(parent));
        let v = self.volumes.len();
        self.volumes.push(volume);
        match before {
            // Those that open.
            Some(before) => {
                let opening = self.volumes[before].take_opening();
                self.volumes[v].clients = opening;
            }
            None => self.counts.operator(if larger { Did::LargerClone } else { Did::Clone }),
        }
        if self.volumes[source].parent.is_some() {
            self.counts.operator(Did::Deep);
        }
        self.begins_with(v, parent);
        self.put(Span(1), Due::Attach { volume: v, host: None, force: false });
        self.put(Span::millis(1), Due::Guest { volume: v });
    }

    /// Its registers hold what the parent's view holds, as far as that is known.
    fn begins_with(&mut self, v: usize, parent: Level) {
        let number = self.volumes[v].number;
        let Some(source) = self.volume_of_branch(parent.branch) else { return };
        let layout = self.volumes[source].layout;
        let image = self.watchers.cuts.images.get(&(parent.branch, parent.generation));
        let mut values = vec![];
        for b in layout.each() {
            let seen = image.and_then(|i| i.seen.get(&place_of(b)));
            let of = |(i, r): (usize, u64)| (r, seen.map(|s| s.values[i]));
            values.extend(layout.of_block(b).each().enumerate().map(of));
        }
        self.tell(Entry::Begins { volume: number, values });
    }

    /// More is known of a view: those that began with it are told.
    pub fn view_known(&mut self, key: (BranchId, proto::Generation)) {
        for v in 0..self.volumes.len() {
            if let Some(parent) = self.volumes[v].parent
                && (parent.branch, parent.generation) == key
            {
                self.begins_with(v, parent);
            }
        }
    }

    /// An export has opened: on the branch that the name has now, which may be another than when it was asked for.
    pub fn client_lands(&mut self, v: usize, host: usize, life: u64, export: proto::ExportId) -> usize {
        let branch = self.hosts[host].node.as_ref().and_then(|n| n.branch_of_export(export));
        let Some(to) = branch.and_then(|b| self.volume_of_branch(b)).filter(|to| *to != v) else { return v };
        if self.volumes[v].client(host, life, export).is_some() {
            let client = self.volumes[v].take_client(host, life, export);
            self.volumes[to].clients.extend(client);
        }
        to
    }
}

/// The region of a volume that is made of a view of another one: the same, and somewhat more if it is larger.
fn larger_layout(source: Layout, parent: Level, size: u64) -> Layout {
    let more = (size - parent.size) / BLOCK as u64;
    Layout { blocks: source.blocks + more.min(MORE), ..source }
}
