//! Deleted volumes that rest for a while: until then a volume can be restored, with all that it had.
//!
//! In the trash a volume has no name in the cluster: another one can take it. Nobody attaches it, opens its snapshots or
//! makes clones of it; who reads from it already (clones do) reads on, and its replicas are healed as any others. It is
//! erased by a command of the planner's at the end of its time, or earlier by an order; while other volumes read from it, it
//! rests on. Neither deleting nor erasing waits for a node.

use crate::admin::AdminAnswer;
use crate::command::Op;
use crate::event::EventKind;
use crate::model::{JobState, Trashed, Volume};
use crate::name::check_name;
use crate::refusal::{AdminRefusal, Noun};
use crate::rows::Key;
use crate::service::{OwnKey, Service};
use crate::state::MetaState;
use crate::touch::Touch;
use crate::view::TrashView;
use proto::{BranchId, LogIndex, Span, Time, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

type Decision = Result<AdminAnswer, AdminRefusal>;

/// Wall clocks are looked at again after so long at the latest.
const LOOK_AGAIN: Span = Span::secs(60);
/// An erasure that came to nothing is proposed again.
const PURGE_AGAIN: Span = Span::secs(5);

impl MetaState {
    pub(crate) fn perform_trash(&mut self, at: u64, op: &Op) -> Decision {
        match op {
            Op::VolumeTrash { volume, force, with_snapshots, despite_clones } => {
                self.apply_volume_trash(at, *volume, force.as_ref(), *with_snapshots, *despite_clones)
            }
            Op::VolumeRestore { volume, name } => self.apply_volume_restore(at, *volume, name),
            Op::VolumePurge { volume, early } => self.apply_volume_purge(at, *volume, *early),
            _ => unreachable!("perform sends only the trash's commands here"),
        }
    }

    fn apply_volume_trash(
        &mut self,
        at: u64,
        id: VolumeId,
        force: Option<&String>,
        with_snapshots: bool,
        despite_clones: bool,
    ) -> Decision {
        let branch = self.check_delete(at, id, force, with_snapshots, despite_clones)?;
        self.end_job(at, branch, JobState::Void);
        if self.branches[&branch].guest().is_some() {
            self.end_session(branch);
        }
        let volume = self.volumes.remove(&id).expect("checked above");
        self.index.names.remove(&volume.name);
        self.mark(Key::Volume(id));
        self.mark(Key::Trash(id));
        let until_ms = at.saturating_add(self.settings.trash_ms);
        let kind = EventKind::VolumeTrashed { name: volume.name.clone(), until_ms, forced: force.cloned() };
        self.trash.insert(id, Trashed { volume, trashed_ms: at, until_ms });
        self.touch(Touch::Branch(branch));
        self.log(at, kind);
        Ok(AdminAnswer::Trashed { until_ms })
    }

    /// Under a name that is free now.
    fn apply_volume_restore(&mut self, at: u64, id: VolumeId, name: &str) -> Decision {
        check_name(name)?;
        let row = self.trash.get(&id).ok_or_else(|| not_trashed(id.to_string()))?;
        if self.index.names.contains_key(name) {
            return Err(AdminRefusal::RestoreTaken { name: name.to_owned(), volume: id });
        }
        let (was, branch) = (row.volume.name.clone(), row.volume.branch);
        let mut volume = self.trash.remove(&id).expect("looked up above").volume;
        name.clone_into(&mut volume.name);
        self.volumes.insert(id, volume);
        self.index.names.insert(name.to_owned(), id);
        self.mark(Key::Trash(id));
        self.mark(Key::Volume(id));
        self.touch(Touch::Branch(branch));
        self.log(at, EventKind::VolumeRestored { name: name.to_owned(), was });
        Ok(AdminAnswer::VolumeCreated { volume: id })
    }

    /// `early`: an operator's order, before its time.
    fn apply_volume_purge(&mut self, at: u64, id: VolumeId, early: bool) -> Decision {
        let row = self.trash.get(&id).ok_or_else(|| not_trashed(id.to_string()))?;
        let name = row.volume.name.clone();
        if !early && row.until_ms > at {
            return Err(AdminRefusal::Changed { name });
        }
        let clones = self.clones_of_volume(id);
        if !clones.is_empty() {
            return Err(AdminRefusal::HasClones { name, clones });
        }
        let branch = row.volume.branch;
        self.trash.remove(&id);
        self.mark(Key::Trash(id));
        self.erase_volume(id, branch);
        self.log(at, EventKind::VolumeDeleted { name, forced: None });
        Ok(AdminAnswer::Done)
    }

    /// The volume's row is gone: so go its snapshots, and the branches that nobody else needs.
    pub(crate) fn erase_volume(&mut self, id: VolumeId, branch: BranchId) {
        self.forget_policies(id);
        // The newest first: forks are younger than what they fork.
        let branches: Vec<BranchId> = self.branches_of(id).rev().collect();
        for b in &branches {
            self.forget_snapshots(*b);
        }
        self.remove_branch(branch);
        for b in branches {
            self.reap(b);
        }
    }

    /// Names of other volumes that read from this one.
    #[must_use]
    pub fn clones_of_volume(&self, id: VolumeId) -> Vec<String> {
        let all: BTreeSet<String> = self.fork_points(id).flat_map(|key| self.clones_of(key)).collect();
        all.into_iter().collect()
    }

    /// In the cluster, or in the trash.
    pub(crate) fn any_volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.get(&id).or_else(|| self.trash.get(&id).map(|t| &t.volume))
    }

    /// A volume that is not in the trash points at it.
    pub(crate) fn is_live(&self, branch: BranchId) -> bool {
        let volume = self.branches.get(&branch).and_then(|b| self.volumes.get(&b.volume));
        volume.is_some_and(|v| v.branch == branch)
    }

    #[must_use]
    pub fn trash(&self) -> &BTreeMap<VolumeId, Trashed> {
        &self.trash
    }

    /// By its name, the one that was deleted last, or by its id as it is listed (`v12`, or `@v12`, which is nobody's name).
    pub(crate) fn find_trashed(&self, word: &str) -> Result<VolumeId, AdminRefusal> {
        let of_id = |id: &str| self.trash.keys().copied().find(|v| v.to_string() == id);
        if let Some(id) = word.strip_prefix('@') {
            return of_id(id).ok_or_else(|| not_trashed(word.to_owned()));
        }
        let named = self.trash.iter().filter(|(_, t)| t.volume.name == word);
        let newest = named.max_by_key(|(id, t)| (t.trashed_ms, **id)).map(|(id, _)| *id);
        match (newest, of_id(word)) {
            (Some(named), Some(other)) if named != other => Err(AdminRefusal::AmbiguousTrashed {
                word: word.to_owned(),
                other: self.trash[&other].volume.name.clone(),
            }),
            (named, other) => named.or(other).ok_or_else(|| not_trashed(word.to_owned())),
        }
    }

    /// What was deleted last comes first.
    pub(crate) fn trash_views(&self) -> Vec<TrashView> {
        let view = |(id, t): (&VolumeId, &Trashed)| {
            let row = &self.branches[&t.volume.branch];
            let snapshots = self.snapshots_of(*id).count();
            TrashView {
                volume: *id,
                name: t.volume.name.clone(),
                size: row.geometry.size,
                snapshots: u32::try_from(snapshots).unwrap_or(u32::MAX),
                trashed_ms: t.trashed_ms,
                until_ms: t.until_ms,
                clones: self.clones_of_volume(*id),
            }
        };
        let mut all: Vec<TrashView> = self.trash.iter().map(view).collect();
        all.sort_by_key(|t| std::cmp::Reverse((t.trashed_ms, t.volume)));
        all
    }
}

fn not_trashed(name: String) -> AdminRefusal {
    AdminRefusal::NotFound { noun: Noun::Trashed, name }
}

/// When the trash is to be looked at.
#[derive(Debug, Default)]
pub(crate) struct Resting {
    seen: LogIndex,
    next: Time,
}
/// A clock that is not to be believed is looked at again after this.
const CLOCK_AGAIN: Span = Span::secs(5);

impl Resting {
    pub(crate) fn next_wake(&self) -> Time {
        self.next
    }
}

impl Service {
    /// Erases what has rested long enough, and what its clones have left alone.
    pub(crate) fn maintain_trash(&mut self, state: &MetaState) {
        if self.resting.seen == state.applied() && self.now < self.resting.next {
            return;
        }
        self.resting.seen = state.applied();
        if !self.clock_is_sound(state) {
            self.resting.next = self.now + CLOCK_AGAIN;
            return;
        }
        let due = |until: u64| Span::millis(until.saturating_sub(self.wall_ms)).min(LOOK_AGAIN);
        let next =
            state.trash().values().filter(|t| t.until_ms > self.wall_ms).map(|t| due(t.until_ms)).min();
        self.resting.next = next.map_or(Time::FAR, |span| self.now + span);
        let rested = state.trash().iter().filter(|(_, t)| t.until_ms <= self.wall_ms).map(|(id, _)| *id);
        let rested: Vec<VolumeId> = rested.filter(|id| state.clones_of_volume(*id).is_empty()).collect();
        for volume in rested {
            self.propose_own(OwnKey::Purge(volume), Op::VolumePurge { volume, early: false });
            self.resting.next = self.resting.next.min(self.now + PURGE_AGAIN);
        }
    }
}
