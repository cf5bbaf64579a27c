//! Sealing: the head is raised when a snapshot is asked for, and for good; the snapshot is sealed when the session has drained
//! and flushed everything below, or is called off. Of a group all are sealed by one command, or none.
//!
//! The head never falls, and what was called off confirms nothing (`docs/decisions/0011`): so a session may act on any word of a
//! seal, however late it comes, and every command here may come twice.

use crate::admin::AdminAnswer;
use crate::command::SnapshotItem;
use crate::event::EventKind;
use crate::model::{Made, Phase, Seal, Snapshot, SnapshotState};
use crate::name::{check_labels, check_name};
use crate::refusal::{AdminRefusal, Noun};
use crate::rows::Key;
use crate::state::MetaState;
use crate::touch::Touch;
use proto::control::{MetaAnswer, MetaRefusal};
use proto::{BranchId, Epoch, Generation};
use std::collections::{BTreeMap, BTreeSet};

/// Snapshots of one volume.
pub const SNAPSHOTS_MAX: usize = 10_000;
/// Whom a snapshot is made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Whose {
    Operator,
    /// A fork point: with a name that no operator can give.
    Nobody,
    Policy(Made),
}

/// Volumes of one group.
pub const GROUP_MAX: usize = 256;

impl MetaState {
    pub(crate) fn apply_snapshot_create(
        &mut self,
        at: u64,
        items: &[SnapshotItem],
        labels: &BTreeMap<String, String>,
        protect_until_ms: u64,
    ) -> Result<AdminAnswer, AdminRefusal> {
        check_labels(labels)?;
        for item in items {
            check_name(&item.name)?;
            self.check_quota(item.volume)?;
        }
        self.seal_all(at, items, labels, protect_until_ms, Whose::Operator)
    }

    /// Begins to seal these volumes.
    pub(crate) fn seal_all(
        &mut self,
        at: u64,
        items: &[SnapshotItem],
        labels: &BTreeMap<String, String>,
        protect_until_ms: u64,
        whose: Whose,
    ) -> Result<AdminAnswer, AdminRefusal> {
        let branches: BTreeSet<BranchId> = items.iter().map(|i| i.branch).collect();
        let hidden = whose == Whose::Nobody;
        if items.is_empty() || items.len() > GROUP_MAX || branches.len() != items.len() {
            return Err(AdminRefusal::BadGroup { most: GROUP_MAX as u64 });
        }
        // All are looked at before any is changed.
        for item in items {
            self.check_item(item)?;
        }
        let group = (items.len() > 1).then_some(self.head.applied);
        let made = items.iter().map(|item| {
            let row = self.branches.get_mut(&item.branch).expect("checked above");
            let generation = row.generation;
            row.generation = Generation(generation.0 + 1);
            let drained = row.clean && row.session.is_none();
            row.sealing = Some(Seal { generation, group, drained: drained && group.is_some() });
            let snapshot = Snapshot {
                volume: item.volume,
                name: item.name.clone(),
                id: item.id,
                size: row.geometry.size,
                state: SnapshotState::Sealing,
                group,
                labels: labels.clone(),
                protect_until_ms,
                created_ms: at,
                hidden,
                policy: if let Whose::Policy(made) = whose { Some(made) } else { None },
                sealed_in: Epoch::default(),
            };
            self.snapshots.insert((item.branch, generation), snapshot);
            if hidden {
                self.index.hidden.insert((item.branch, generation));
            }
            self.index.snapshots.insert((item.volume, item.name.clone()), (item.branch, generation));
            self.index.sealing.insert(item.branch);
            self.mark(Key::Snapshot(item.branch, generation));
            self.changed_views(item.branch);
            (item.branch, generation, drained)
        });
        let made: Vec<(BranchId, Generation, bool)> = made.collect();
        if made.iter().all(|(.., drained)| *drained) {
            self.all_sealed(at, &branches);
        }
        let keys = made.into_iter().map(|(b, g, _)| (b, g)).collect();
        Ok(AdminAnswer::SnapshotsMade { keys })
    }

    pub(crate) fn check_item(&self, item: &SnapshotItem) -> Result<(), AdminRefusal> {
        let volume = self.volumes.get(&item.volume);
        let volume = volume
            .ok_or_else(|| AdminRefusal::NotFound { noun: Noun::Volume, name: item.volume.to_string() })?;
        let name = || volume.name.clone();
        if volume.branch != item.branch {
            return Err(AdminRefusal::Changed { name: name() });
        }
        let full = format!("{}@{}", volume.name, item.name);
        if self.index.snapshots.contains_key(&(item.volume, item.name.clone())) {
            return Err(AdminRefusal::Exists { noun: Noun::Snapshot, name: full });
        }
        let row = &self.branches[&item.branch];
        if row.phase == Phase::Creating {
            return Err(AdminRefusal::NotReady { name: name() });
        }
        if row.sealing.is_some() {
            return Err(AdminRefusal::SealBusy { name: name() });
        }
        self.not_while_shrinking(item.branch)?;
        let many = self.snapshots_of(item.volume).count() >= SNAPSHOTS_MAX;
        if many || row.generation.0 == u32::MAX {
            return Err(AdminRefusal::TooManySnapshots { name: name(), most: SNAPSHOTS_MAX as u64 });
        }
        Ok(())
    }

    /// The session says so. The answer is what Raft knows now, whatever was decided.
    pub(crate) fn apply_sealed(
        &mut self,
        at: u64,
        branch: BranchId,
        epoch: Epoch,
        generation: Generation,
    ) -> MetaAnswer {
        let Some(row) = self.branches.get(&branch) else {
            return MetaAnswer::Refused(MetaRefusal::NoSuchVolume);
        };
        let current = row.epoch == epoch && row.session.is_some();
        if current && row.sealing.is_some_and(|s| s.generation == generation) {
            self.drained(at, branch);
        }
        self.present_views(branch)
    }

    /// The branch was closed with everything drained and flushed: nothing below its head is written any more.
    pub(crate) fn closed_cleanly(&mut self, at: u64, branch: BranchId) {
        let row = &self.branches[&branch];
        if row.sealing.is_some() {
            self.drained(at, branch);
        } else if row.unsealed < row.generation {
            self.branches.get_mut(&branch).expect("looked up above").unsealed = row.generation;
            self.index.unclosed.remove(&branch);
            self.owe(branch);
            self.changed_views(branch);
        }
    }

    /// Everything up to the generation that is being sealed is on all required drives, flushed.
    fn drained(&mut self, at: u64, branch: BranchId) {
        let row = self.branches.get_mut(&branch).expect("looked up by the caller");
        let Some(seal) = row.sealing.as_mut().filter(|s| !s.drained) else { return };
        if seal.group.is_none() {
            return self.all_sealed(at, &BTreeSet::from([branch]));
        }
        seal.drained = true;
        let group = seal.group;
        self.mark(Key::Branch(branch));
        let all = self.sealed_with(branch, group);
        let is_drained = |b: &BranchId| self.branches[b].sealing.is_some_and(|s| s.drained);
        if all.iter().all(is_drained) {
            self.all_sealed(at, &all);
        }
    }

    /// The branch, and those that are sealed by the same command.
    fn sealed_with(&self, branch: BranchId, group: Option<proto::LogIndex>) -> BTreeSet<BranchId> {
        let same =
            |b: &&BranchId| group.is_some() && self.branches[*b].sealing.is_some_and(|s| s.group == group);
        self.index.sealing.iter().filter(same).chain([&branch]).copied().collect()
    }

    fn all_sealed(&mut self, at: u64, branches: &BTreeSet<BranchId>) {
        let (mut names, mut made) = (Vec::new(), Vec::new());
        for branch in branches {
            let row = self.branches.get_mut(branch).expect("the caller looked it up");
            let seal = row.sealing.take().expect("only what is being sealed is sealed");
            row.unsealed = row.generation;
            let key = (*branch, seal.generation);
            let snapshot = self.snapshots.get_mut(&key).expect("a seal has a snapshot");
            (snapshot.state, snapshot.sealed_in) = (SnapshotState::Sealed, row.epoch);
            self.index.sealing.remove(branch);
            self.mark(Key::Snapshot(key.0, key.1));
            self.owe(*branch);
            self.changed_views(*branch);
            let s = &self.snapshots[&key];
            made.extend(s.policy.map(|made| (s.volume, made)));
            if !s.hidden {
                names.push(self.snapshot_name(key.0, key.1));
            }
        }
        if !names.is_empty() {
            self.log(at, EventKind::SnapshotSealed { names });
        }
        for (volume, made) in made {
            self.retain(at, volume, made.policy);
        }
    }

    /// Called off, if it is not sealed yet. `unsealed` stays: who has not heard of it goes on with the older generation.
    pub(crate) fn apply_seal_cancel(&mut self, at: u64, branch: BranchId, generation: Generation) -> bool {
        let seal = self.branches.get(&branch).and_then(|b| b.sealing);
        let Some(seal) = seal.filter(|s| s.generation == generation) else { return false };
        let mut names = Vec::new();
        for branch in self.sealed_with(branch, seal.group) {
            let row = self.branches.get_mut(&branch).expect("indexed as being sealed");
            let seal = row.sealing.take().expect("indexed as being sealed");
            self.index.sealing.remove(&branch);
            let s = &self.snapshots[&(branch, seal.generation)];
            let run = s.policy.map(|made| (s.volume, made));
            if !s.hidden {
                names.push(self.snapshot_name(branch, seal.generation));
            }
            if let Some((volume, made)) = run {
                self.run_failed(volume, made);
            }
            self.remove_snapshot(branch, seal.generation);
            self.changed_views(branch);
        }
        if !names.is_empty() {
            self.log(at, EventKind::SealCalledOff { names });
        }
        true
    }

    /// The branch's row, and what its session is to know, have changed.
    pub(crate) fn changed_views(&mut self, branch: BranchId) {
        self.mark(Key::Branch(branch));
        self.touch(Touch::Views(branch));
        self.touch(Touch::Branch(branch));
    }
}
