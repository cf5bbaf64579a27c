//! Snapshots that are there: found by name, renamed, protected, labelled, deleted; and what stands in the way of deleting.
//!
//! Deleting takes a row away and tells the drives (`keep`); it never waits for them.

use crate::admin::AdminAnswer;
use crate::command::Op;
use crate::event::EventKind;
use crate::model::{Snapshot, SnapshotState};
use crate::name::{check_labels, check_name};
use crate::refusal::{AdminRefusal, Noun};
use crate::rows::Key;
use crate::state::MetaState;
use proto::control::{MetaAnswer, MetaRefusal, SnapshotFound};
use proto::{BranchId, Generation, Geometry, Level, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

type Decision = Result<AdminAnswer, AdminRefusal>;
type Key2 = (BranchId, Generation);

/// Names in a refusal at most.
const NAMED: usize = 10;

impl MetaState {
    pub(crate) fn perform_snapshot(&mut self, at: u64, op: &Op) -> Decision {
        match op {
            Op::SnapshotCreate { items, labels, protect_until_ms } => {
                self.apply_snapshot_create(at, items, labels, *protect_until_ms)
            }
            Op::SnapshotDelete { branch, generation, name } => {
                self.apply_snapshot_delete(at, (*branch, *generation), name)
            }
            Op::SnapshotRename { branch, generation, from, to } => {
                self.apply_snapshot_rename(at, (*branch, *generation), from, to)
            }
            Op::SnapshotProtect { branch, generation, name, until_ms, force } => {
                self.apply_snapshot_protect(at, (*branch, *generation), name, *until_ms, force.as_ref())
            }
            Op::SnapshotLabel { branch, generation, name, set, remove } => {
                self.apply_snapshot_label((*branch, *generation), name, set, remove)
            }
            _ => unreachable!("perform sends only snapshots' commands here"),
        }
    }

    /// The snapshot, if it still has that name. One that is being sealed is in nobody's hands.
    pub(crate) fn sealed_snapshot(&self, key: Key2, name: &str) -> Result<&Snapshot, AdminRefusal> {
        let gone = || AdminRefusal::NotFound { noun: Noun::Snapshot, name: name.to_owned() };
        let live = |s: &&Snapshot| !s.hidden && self.volumes.contains_key(&s.volume);
        let row = self.snapshots.get(&key).filter(live).ok_or_else(gone)?;
        let full = self.snapshot_name(key.0, key.1);
        if row.name != name {
            return Err(AdminRefusal::SnapshotChanged { name: full });
        }
        if row.state == SnapshotState::Sealing {
            return Err(AdminRefusal::NotSealed { name: full });
        }
        Ok(row)
    }

    fn apply_snapshot_delete(&mut self, at: u64, key: Key2, name: &str) -> Decision {
        let row = self.sealed_snapshot(key, name)?;
        let full = self.snapshot_name(key.0, key.1);
        if row.protect_until_ms > at {
            return Err(AdminRefusal::Protected { name: full, until_ms: row.protect_until_ms });
        }
        let clones = self.clones_of(key);
        if !clones.is_empty() {
            return Err(AdminRefusal::HasClones { name: full, clones });
        }
        self.remove_snapshot(key.0, key.1);
        self.owe(key.0);
        self.changed_views(key.0);
        self.log(at, EventKind::SnapshotDeleted { name: full });
        self.reap(key.0);
        Ok(AdminAnswer::Done)
    }

    fn apply_snapshot_rename(&mut self, at: u64, key: Key2, from: &str, to: &str) -> Decision {
        check_name(to)?;
        let volume = self.sealed_snapshot(key, from)?.volume;
        let old = self.snapshot_name(key.0, key.1);
        if self.index.snapshots.contains_key(&(volume, to.to_owned())) {
            let name = format!("{}@{to}", self.volumes[&volume].name);
            return Err(AdminRefusal::Exists { noun: Noun::Snapshot, name });
        }
        self.index.snapshots.remove(&(volume, from.to_owned()));
        self.index.snapshots.insert((volume, to.to_owned()), key);
        to.clone_into(&mut self.snapshots.get_mut(&key).expect("looked up above").name);
        self.mark(Key::Snapshot(key.0, key.1));
        let new = self.snapshot_name(key.0, key.1);
        self.log(at, EventKind::SnapshotRenamed { from: old, to: new });
        Ok(AdminAnswer::Done)
    }

    /// A protection in force is only made longer, unless somebody gives a reason.
    fn apply_snapshot_protect(
        &mut self,
        at: u64,
        key: Key2,
        name: &str,
        until_ms: u64,
        force: Option<&String>,
    ) -> Decision {
        let old = self.sealed_snapshot(key, name)?.protect_until_ms;
        let full = self.snapshot_name(key.0, key.1);
        let shorter = old > at && until_ms < old;
        if shorter && force.is_none() {
            return Err(AdminRefusal::ProtectedLonger { name: full, until_ms: old });
        }
        self.snapshots.get_mut(&key).expect("looked up above").protect_until_ms = until_ms;
        self.mark(Key::Snapshot(key.0, key.1));
        let forced = force.filter(|_| shorter).cloned();
        self.log(at, EventKind::SnapshotProtected { name: full, until_ms, forced });
        Ok(AdminAnswer::Done)
    }

    fn apply_snapshot_label(
        &mut self,
        key: Key2,
        name: &str,
        set: &BTreeMap<String, String>,
        remove: &BTreeSet<String>,
    ) -> Decision {
        let mut labels = self.sealed_snapshot(key, name)?.labels.clone();
        labels.retain(|k, _| !remove.contains(k));
        labels.extend(set.iter().map(|(k, v)| (k.clone(), v.clone())));
        check_labels(&labels)?;
        self.snapshots.get_mut(&key).expect("looked up above").labels = labels;
        self.mark(Key::Snapshot(key.0, key.1));
        Ok(AdminAnswer::Done)
    }

    // What hangs on a volume.

    /// Refuses the deletion of a volume with snapshots, by their names.
    pub(crate) fn snapshots_in_the_way(
        &self,
        at: u64,
        volume: VolumeId,
        with_snapshots: bool,
        despite_clones: bool,
    ) -> Result<(), AdminRefusal> {
        let name = || self.volumes[&volume].name.clone();
        let mut all = self.snapshots_of(volume);
        if let Some((_, s)) = all.find(|(_, s)| s.protect_until_ms > at) {
            let full = format!("{}@{}", name(), s.name);
            return Err(AdminRefusal::Protected { name: full, until_ms: s.protect_until_ms });
        }
        // Also those whose snapshot has no name.
        for key in self.fork_points(volume).filter(|_| !despite_clones) {
            let clones = self.clones_of(key);
            if !clones.is_empty() {
                let full =
                    if self.snapshots.contains_key(&key) { self.snapshot_name(key.0, key.1) } else { name() };
                return Err(AdminRefusal::HasClones { name: full, clones });
            }
        }
        let count = self.snapshots_of(volume).count() as u64;
        if count > 0 && !with_snapshots {
            let snapshots = self.snapshots_of(volume).take(NAMED).map(|(_, s)| s.name.clone()).collect();
            return Err(AdminRefusal::HasSnapshots { name: name(), count, snapshots });
        }
        Ok(())
    }

    /// The branch goes, with all of its snapshots, and a seal under way.
    pub(crate) fn forget_snapshots(&mut self, branch: BranchId) {
        for generation in self.kept(branch).iter() {
            self.remove_snapshot(branch, generation);
        }
        self.branches.get_mut(&branch).expect("the caller looked it up").sealing = None;
        self.index.sealing.remove(&branch);
        self.mark(Key::Branch(branch));
    }

    pub(crate) fn remove_snapshot(&mut self, branch: BranchId, generation: Generation) {
        if let Some(s) = self.snapshots.remove(&(branch, generation)) {
            self.index.snapshots.remove(&(s.volume, s.name));
            self.index.hidden.remove(&(branch, generation));
            self.mark(Key::Snapshot(branch, generation));
        }
    }

    /// Names of the volumes that are made of this snapshot. Its own volume, gone back to it, is none of them: that
    /// keeps the generation and needs no name of it.
    pub(crate) fn clones_of(&self, key: Key2) -> Vec<String> {
        let own = self.branches.get(&key.0).map(|b| b.volume);
        let forks = self.index.forks.get(&key).into_iter().flatten();
        let others = forks.filter(|b| self.branches.get(b).map(|b| b.volume) != own);
        others.take(NAMED).map(|b| self.branch_name(*b)).collect()
    }

    // Readers.

    #[must_use]
    pub fn snapshots(&self) -> &BTreeMap<(BranchId, Generation), Snapshot> {
        &self.snapshots
    }

    /// A volume's snapshots, those of its older branches first, then the oldest; without hidden ones.
    pub fn snapshots_of(&self, volume: VolumeId) -> impl Iterator<Item = (Key2, &Snapshot)> {
        let first = (volume, String::new());
        let named = self.index.snapshots.range(first..).take_while(move |((v, _), _)| *v == volume);
        let keys: BTreeSet<Key2> = named.map(|(_, key)| *key).collect();
        keys.into_iter().map(|key| (key, &self.snapshots[&key])).filter(|(_, s)| !s.hidden)
    }

    #[must_use]
    pub fn snapshot_named(&self, volume: VolumeId, name: &str) -> Option<(Key2, &Snapshot)> {
        let key = *self.index.snapshots.get(&(volume, name.to_owned()))?;
        Some((key, &self.snapshots[&key]))
    }

    /// `volume@snapshot`.
    #[must_use]
    pub fn snapshot_name(&self, branch: BranchId, generation: Generation) -> String {
        let Some(s) = self.snapshots.get(&(branch, generation)) else {
            return format!("{branch}@{generation}");
        };
        let volume = self.any_volume(s.volume).map_or_else(|| s.volume.to_string(), |v| v.name.clone());
        format!("{volume}@{}", s.name)
    }

    /// The same, or the volume alone where the generation has no name.
    pub(crate) fn point_name(&self, branch: BranchId, generation: Generation) -> String {
        match self.snapshots.get(&(branch, generation)) {
            Some(s) if !s.hidden => self.snapshot_name(branch, generation),
            _ => self.branch_name(branch),
        }
    }

    /// What a reader of a snapshot needs.
    pub(crate) fn find_snapshot(&self, volume: &str, snapshot: &str) -> MetaAnswer {
        let Some((id, _)) = self.volume_named(volume) else {
            return MetaAnswer::Refused(MetaRefusal::NoSuchVolume);
        };
        let readable = |s: &Snapshot| s.state == SnapshotState::Sealed && !s.hidden;
        let found = self.snapshot_named(id, snapshot).filter(|(_, s)| readable(s));
        let Some(((branch, generation), s)) = found else {
            return MetaAnswer::Refused(MetaRefusal::NoSuchSnapshot);
        };
        let chunk_shift = self.branches[&branch].geometry.chunk_shift;
        MetaAnswer::Snapshot(Box::new(SnapshotFound {
            volume: id,
            geometry: Geometry { size: s.size, chunk_shift },
            levels: [Level { branch, generation, size: s.size }]
                .into_iter()
                .chain(self.levels_below(branch))
                .collect(),
        }))
    }
}
