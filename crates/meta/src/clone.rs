//! Clones and rollback: commands that make a branch which reads what it has not written from a snapshot.
//!
//! Nothing is copied. The parent's generation is kept for the fork (`keep`), whatever becomes of the snapshot's row. A clone
//! of a volume as it is now takes two commands: a hidden snapshot (`ForkPoint`), and the clone, which takes the row away
//! and leaves the fork. A rollback is a clone that takes over the volume: its old branch keeps the snapshots, and
//! raises its generation, so that nothing of its last head is kept.

use crate::admin::AdminAnswer;
use crate::command::{Op, Plan, SnapshotItem};
use crate::event::EventKind;
use crate::model::{Class, JobState, Phase, Snapshot, SnapshotState};
use crate::name::{check_copies, check_name, check_size};
use crate::refusal::{AdminRefusal, Noun};
use crate::rows::Key;
use crate::seal::{SNAPSHOTS_MAX, Whose};
use crate::state::MetaState;
use proto::{BranchId, Generation, Geometry, Level, VolumeId};
use std::collections::BTreeMap;

type Decision = Result<AdminAnswer, AdminRefusal>;
type Point = (BranchId, Generation);

/// The row's name of a fork point: none that an operator can give.
pub(crate) fn hidden_name(id: u128) -> String {
    format!("~{id:032x}")
}

impl MetaState {
    pub(crate) fn perform_clone(&mut self, at: u64, op: &Op) -> Decision {
        match op {
            Op::ForkPoint { volume, branch, generation, id, name } => {
                self.apply_fork_point(at, *volume, (*branch, *generation), *id, name.as_ref())
            }
            Op::CloneCreate { branch, generation, name, size, class, plan } => {
                self.apply_clone_create(at, (*branch, *generation), name, *size, *class, plan)
            }
            Op::Rollback { volume, seen, branch, generation, plan, safety } => {
                self.check_safety(*volume, *seen, *safety)?;
                self.apply_rollback(at, *volume, *seen, (*branch, *generation), plan)
            }
            _ => unreachable!("perform sends only clones' commands here"),
        }
    }

    fn apply_fork_point(
        &mut self,
        at: u64,
        volume: VolumeId,
        (branch, seen): Point,
        id: u128,
        name: Option<&String>,
    ) -> Decision {
        if let Some(name) = name {
            check_name(name)?;
            self.check_quota(volume)?;
        }
        let item =
            SnapshotItem { volume, branch, name: name.cloned().unwrap_or_else(|| hidden_name(id)), id };
        self.check_item(&item)?;
        if self.branches[&branch].generation != seen {
            return Err(AdminRefusal::Changed { name: self.volumes[&volume].name.clone() });
        }
        let whose = if name.is_none() { Whose::Nobody } else { Whose::Operator };
        self.seal_all(at, &[item], &BTreeMap::new(), 0, whose)
    }

    /// What can be forked: also a hidden snapshot.
    fn sealed_point(&self, point: Point) -> Result<&Snapshot, AdminRefusal> {
        let full = || self.snapshot_name(point.0, point.1);
        let row = self.snapshots.get(&point).filter(|s| self.volumes.contains_key(&s.volume));
        let row = row.ok_or_else(|| AdminRefusal::NotFound { noun: Noun::Snapshot, name: full() })?;
        if row.state == SnapshotState::Sealing {
            return Err(AdminRefusal::NotSealed { name: full() });
        }
        Ok(row)
    }

    fn apply_clone_create(
        &mut self,
        at: u64,
        point: Point,
        name: &str,
        size: u64,
        class: Class,
        plan: &Plan,
    ) -> Decision {
        check_name(name)?;
        check_size(size)?;
        check_copies(class.copies, class.min_in_sync)?;
        if self.index.names.contains_key(name) {
            return Err(AdminRefusal::Exists { noun: Noun::Volume, name: name.to_owned() });
        }
        let source = self.sealed_point(point)?;
        let level = Level { branch: point.0, generation: point.1, size: source.size };
        let (hidden, volume) = (source.hidden, source.volume);
        let from =
            if hidden { self.volumes[&volume].name.clone() } else { self.snapshot_name(point.0, point.1) };
        if size < level.size {
            return Err(AdminRefusal::CloneSmaller { name: from, size: level.size, to: size });
        }
        let geometry = Geometry { size, chunk_shift: self.branches[&point.0].geometry.chunk_shift };
        self.check_plan(plan, geometry.chunks(), class.copies)?;
        let (volume, _) = self.add_volume(at, name, geometry, class, Some(level), plan);
        if hidden {
            // What is kept stays the same: by the fork now.
            self.remove_snapshot(point.0, point.1);
        }
        self.log(at, EventKind::VolumeCloned { name: name.to_owned(), from });
        Ok(AdminAnswer::VolumeCreated { volume })
    }

    /// Takes a fork point away that has no fork.
    pub(crate) fn apply_fork_point_drop(&mut self, branch: BranchId, generation: Generation) -> bool {
        let row = self.snapshots.get(&(branch, generation));
        if !row.is_some_and(|s| s.hidden && s.state == SnapshotState::Sealed) {
            return false;
        }
        self.remove_snapshot(branch, generation);
        self.owe(branch);
        self.changed_views(branch);
        self.reap(branch);
        true
    }

    /// Why the volume cannot go back to this snapshot now.
    pub(crate) fn check_rollback(
        &self,
        volume: VolumeId,
        seen: BranchId,
        point: Point,
    ) -> Result<(), AdminRefusal> {
        let row = self.volumes.get(&volume);
        let row =
            row.ok_or_else(|| AdminRefusal::NotFound { noun: Noun::Volume, name: volume.to_string() })?;
        let name = || row.name.clone();
        if row.branch != seen {
            return Err(AdminRefusal::Changed { name: name() });
        }
        let source = self.sealed_point(point)?;
        if source.volume != volume || source.hidden {
            let name = self.snapshot_name(point.0, point.1);
            return Err(AdminRefusal::NotFound { noun: Noun::Snapshot, name });
        }
        let branch = &self.branches[&seen];
        if let Some(s) = branch.guest() {
            let (node_name, epoch) = (self.node_name(s.node), branch.epoch);
            return Err(AdminRefusal::InUse { name: name(), node: s.node, node_name, epoch });
        }
        if branch.phase != Phase::Ready {
            return Err(AdminRefusal::NotReady { name: name() });
        }
        if branch.sealing.is_some() {
            return Err(AdminRefusal::SealBusy { name: name() });
        }
        if branch.generation.0 == u32::MAX {
            return Err(AdminRefusal::TooManySnapshots { name: name(), most: SNAPSHOTS_MAX as u64 });
        }
        Ok(())
    }

    /// The snapshot that was made first has all that the volume has.
    fn check_safety(
        &self,
        volume: VolumeId,
        seen: BranchId,
        safety: Option<Generation>,
    ) -> Result<(), AdminRefusal> {
        let Some(generation) = safety else { return Ok(()) };
        let epoch = self.branches.get(&seen).map(|b| b.epoch);
        let row = self.snapshots.get(&(seen, generation)).filter(|s| s.state == SnapshotState::Sealed);
        if row.is_some_and(|s| Some(s.sealed_in) == epoch) {
            return Ok(());
        }
        Err(AdminRefusal::Changed { name: self.live_name(volume)? })
    }

    fn apply_rollback(
        &mut self,
        at: u64,
        volume: VolumeId,
        old: BranchId,
        point: Point,
        plan: &Plan,
    ) -> Decision {
        self.check_rollback(volume, old, point)?;
        let row = &self.branches[&old];
        let (class, size) = (row.class, self.snapshots[&point].size);
        let geometry = Geometry { size, chunk_shift: row.geometry.chunk_shift };
        self.check_plan(plan, geometry.chunks(), class.copies)?;
        let level = Level { branch: point.0, generation: point.1, size };
        let new = self.add_branch(at, volume, geometry, class, Some(level), plan);
        self.volumes.get_mut(&volume).expect("checked above").branch = new;
        self.mark(Key::Volume(volume));
        self.end_job(at, old, JobState::Void);
        self.lose_name(old);
        let name = self.branch_name(new);
        let to = self.snapshot_name(point.0, point.1);
        self.log(at, EventKind::RolledBack { name, to });
        Ok(AdminAnswer::Done)
    }

    /// No volume points at the branch any more: nobody writes it, and its last head is not kept.
    fn lose_name(&mut self, branch: BranchId) {
        self.end_session(branch);
        self.set_appointed(branch, None);
        let row = self.branches.get_mut(&branch).expect("the caller looked it up");
        row.generation = Generation(row.generation.0 + 1);
        if row.clean && row.session.is_none() {
            row.unsealed = row.generation;
        } else {
            // A maintenance session closes it: until then replicas may differ in what was its head.
            self.index.unclosed.insert(branch);
        }
        self.owe(branch);
        self.changed_views(branch);
        self.reap(branch);
    }
}
