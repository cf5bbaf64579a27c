//! Policies: when volumes get snapshots by themselves, and which of these are kept; and how many snapshots a volume may have.
//!
//! A run names its slot, the time that the schedule says: only a later slot than the last one's is run, so a run that comes
//! twice or late makes nothing. What is not to be kept any more goes with the command that seals the newer one. Only
//! snapshots that the policy itself made are counted and go; of these a protected one stays, and one with clones.
//!
//! Invariant: under a quota that counts all, what attached policies come to keep fits: they are refused otherwise, and so
//! are further snapshots by hand. So no policy fails for a quota at midnight.

use crate::admin::AdminAnswer;
use crate::command::{Op, SnapshotItem};
use crate::event::EventKind;
use crate::model::{Made, Policy, PolicyId, PolicyUse, Quota, Snapshot, SnapshotState};
use crate::name::check_name;
use crate::refusal::{AdminRefusal, Noun};
use crate::rows::Key;
use crate::seal::Whose;
use crate::state::MetaState;
use crate::touch::Touch;
use proto::limits::NAME_MAX;
use proto::{BranchId, Generation, VolumeId};
use schedule::{Moment, Retention, Schedule};
use std::collections::{BTreeMap, BTreeSet};

type Decision = Result<AdminAnswer, AdminRefusal>;

/// Schedules of one policy; snapshots that it keeps of a volume.
pub const SCHEDULES_MAX: usize = 8;
pub const KEEP_MAX: u64 = 1000;
/// Bytes of `-20261122-0304` and a number behind it, which its snapshots' names have after the policy's.
const SUFFIX: usize = 16;
const NAMED: usize = 10;

impl MetaState {
    pub(crate) fn perform_policy(&mut self, at: u64, op: &Op) -> Decision {
        match op {
            Op::PolicyCreate { name, schedules, jitter_ms, retention, keeps } => {
                self.apply_policy_create(at, name, schedules, *jitter_ms, *retention, *keeps)
            }
            Op::PolicyDelete { policy } => self.apply_policy_delete(at, *policy),
            Op::PolicyAttach { policy, volume } => self.apply_policy_attach(at, *policy, *volume),
            Op::PolicyDetach { policy, volume } => self.apply_policy_detach(at, *policy, *volume),
            Op::QuotaSet { volume, quota } => self.apply_quota(at, *volume, *quota),
            Op::PolicyRun { policy, item, slot_ms } => self.apply_policy_run(at, *policy, item, *slot_ms),
            _ => unreachable!("perform sends only policies' commands here"),
        }
    }

    fn apply_policy_create(
        &mut self,
        at: u64,
        name: &str,
        schedules: &[Schedule],
        jitter_ms: u64,
        retention: Retention,
        keeps: u64,
    ) -> Decision {
        check_policy(name, schedules, &retention, keeps)?;
        if self.policy_named(name).is_some() {
            return Err(AdminRefusal::Exists { noun: Noun::Policy, name: name.to_owned() });
        }
        self.head.last_policy += 1;
        let id = PolicyId(self.head.last_policy);
        let schedules = schedules.to_vec();
        let row = Policy { name: name.to_owned(), schedules, jitter_ms, retention, keeps, created_ms: at };
        self.policies.insert(id, row);
        self.mark(Key::Policy(id));
        self.log(at, EventKind::PolicyCreated { name: name.to_owned() });
        Ok(AdminAnswer::Done)
    }

    fn apply_policy_delete(&mut self, at: u64, id: PolicyId) -> Decision {
        let name = self.policies.get(&id).ok_or_else(|| no_policy(id))?.name.clone();
        let volumes: Vec<String> = self.policy_volumes(id).take(NAMED).map(|v| self.volume_word(v)).collect();
        if !volumes.is_empty() {
            return Err(AdminRefusal::PolicyInUse { name, volumes });
        }
        self.policies.remove(&id);
        self.mark(Key::Policy(id));
        self.log(at, EventKind::PolicyDeleted { name });
        Ok(AdminAnswer::Done)
    }

    fn apply_policy_attach(&mut self, at: u64, id: PolicyId, volume: VolumeId) -> Decision {
        let policy = self.policies.get(&id).ok_or_else(|| no_policy(id))?;
        let name = self.live_name(volume)?;
        if self.policy_uses.contains_key(&(volume, id)) {
            return Ok(AdminAnswer::Done);
        }
        if let Some(quota) = self.quotas.get(&volume).filter(|q| !q.manual_only) {
            let needs = self.claimed(volume, Some(id));
            if needs > u64::from(quota.most) {
                let (policy, most) = (policy.name.clone(), quota.most);
                return Err(AdminRefusal::PolicyConflict { policy, name, needs, most });
            }
        }
        let policy = policy.name.clone();
        // Slots from now on: what was before nobody has missed.
        self.policy_uses.insert((volume, id), PolicyUse { since_ms: at, ran_ms: at, before_ms: at });
        self.mark(Key::PolicyUse(volume, id));
        self.touch(Touch::Policies);
        self.log(at, EventKind::PolicyAttached { policy, name });
        Ok(AdminAnswer::Done)
    }

    fn apply_policy_detach(&mut self, at: u64, id: PolicyId, volume: VolumeId) -> Decision {
        let policy = self.policies.get(&id).ok_or_else(|| no_policy(id))?.name.clone();
        let name = self.live_name(volume)?;
        if self.policy_uses.remove(&(volume, id)).is_none() {
            return Err(AdminRefusal::PolicyNotAttached { policy, name });
        }
        self.mark(Key::PolicyUse(volume, id));
        self.touch(Touch::Policies);
        self.log(at, EventKind::PolicyDetached { policy, name });
        Ok(AdminAnswer::Done)
    }

    fn apply_quota(&mut self, at: u64, volume: VolumeId, quota: Option<Quota>) -> Decision {
        let name = self.live_name(volume)?;
        if let Some(q) = quota.filter(|q| !q.manual_only) {
            let (needs, mut uses) = (self.claimed(volume, None), self.uses_of(volume));
            if let Some(policy) = uses.next().filter(|_| needs > u64::from(q.most)) {
                let policy = self.policies[&policy].name.clone();
                return Err(AdminRefusal::PolicyConflict { policy, name, needs, most: q.most });
            }
            drop(uses);
        }
        match quota {
            Some(q) => drop(self.quotas.insert(volume, q)),
            None => drop(self.quotas.remove(&volume)),
        }
        self.mark(Key::Quota(volume));
        self.log(at, EventKind::QuotaSet { name, most: quota.map(|q| q.most) });
        Ok(AdminAnswer::Done)
    }

    /// Refuses a snapshot by hand that the volume's quota does not allow.
    pub(crate) fn check_quota(&self, volume: VolumeId) -> Result<(), AdminRefusal> {
        let Some(quota) = self.quotas.get(&volume) else { return Ok(()) };
        let by_hand = self.snapshots_of(volume).filter(|(_, s)| self.is_by_hand(s)).count() as u64;
        let taken = if quota.manual_only { by_hand } else { self.claimed(volume, None) };
        if taken < u64::from(quota.most) {
            return Ok(());
        }
        let reserved = taken - by_hand.min(taken);
        Err(AdminRefusal::QuotaFull { name: self.live_name(volume)?, most: quota.most, by_hand, reserved })
    }

    /// No attached policy counts it.
    fn is_by_hand(&self, s: &Snapshot) -> bool {
        s.policy.is_none_or(|m| !self.policy_uses.contains_key(&(s.volume, m.policy)))
    }

    /// Snapshots by hand, and what the attached policies come to keep, with one more of them if asked.
    fn claimed(&self, volume: VolumeId, more: Option<PolicyId>) -> u64 {
        let by_hand = self.snapshots_of(volume).filter(|(_, s)| self.is_by_hand(s)).count() as u64;
        let all: BTreeSet<PolicyId> = self.uses_of(volume).chain(more).collect();
        by_hand + all.iter().filter_map(|p| self.policies.get(p)).map(|p| p.keeps).sum::<u64>()
    }

    /// A slot of the schedule has come. The snapshot is sealed as any other.
    fn apply_policy_run(&mut self, at: u64, id: PolicyId, item: &SnapshotItem, slot_ms: u64) -> Decision {
        if !self.policies.contains_key(&id) {
            return Err(no_policy(id));
        }
        let key = (item.volume, id);
        let ran_ms = self.policy_uses.get(&key).map(|u| u.ran_ms);
        if ran_ms.is_none_or(|ran| slot_ms <= ran) {
            // Detached meanwhile; or it ran.
            return Err(AdminRefusal::Changed { name: self.live_name(item.volume)? });
        }
        check_name(&item.name)?;
        let made = Made { policy: id, slot_ms };
        let answer =
            self.seal_all(at, std::slice::from_ref(item), &BTreeMap::new(), 0, Whose::Policy(made))?;
        let row = self.policy_uses.get_mut(&key).expect("looked up above");
        (row.before_ms, row.ran_ms) = (row.ran_ms, slot_ms);
        self.mark(Key::PolicyUse(key.0, key.1));
        self.touch(Touch::Policies);
        Ok(answer)
    }

    /// The seal of a run was called off: the slot is to be run again.
    pub(crate) fn run_failed(&mut self, volume: VolumeId, made: Made) {
        let key = (volume, made.policy);
        if let Some(row) = self.policy_uses.get_mut(&key).filter(|u| u.ran_ms == made.slot_ms) {
            row.ran_ms = row.before_ms;
            self.mark(Key::PolicyUse(key.0, key.1));
            self.touch(Touch::Policies);
        }
    }

    /// A newer one is sealed: what the policy keeps no more goes.
    pub(crate) fn retain(&mut self, at: u64, volume: VolumeId, id: PolicyId) {
        if !self.policy_uses.contains_key(&(volume, id)) {
            return;
        }
        let Some(policy) = self.policies.get(&id) else { return };
        let of = |s: &Snapshot| s.policy.filter(|m| m.policy == id && s.state == SnapshotState::Sealed);
        let (keys, slots): (Vec<(BranchId, Generation)>, Vec<u64>) =
            self.snapshots_of(volume).filter_map(|(key, s)| Some((key, of(s)?.slot_ms))).unzip();
        let kept = policy.retention.kept(&slots);
        let mut names = Vec::new();
        let surplus: Vec<_> = (0..keys.len()).filter(|i| !kept.contains(i)).map(|i| keys[i]).collect();
        for key in surplus {
            let free = self.snapshots[&key].protect_until_ms <= at && self.clones_of(key).is_empty();
            if !free {
                continue;
            }
            names.push(self.snapshot_name(key.0, key.1));
            self.remove_snapshot(key.0, key.1);
            self.owe(key.0);
            self.changed_views(key.0);
            self.reap(key.0);
        }
        if !names.is_empty() {
            self.log(at, EventKind::PolicyPruned { names });
        }
    }

    /// The volume is erased.
    pub(crate) fn forget_policies(&mut self, volume: VolumeId) {
        let uses: Vec<PolicyId> = self.uses_of(volume).collect();
        for id in uses {
            self.policy_uses.remove(&(volume, id));
            self.mark(Key::PolicyUse(volume, id));
        }
        if self.quotas.remove(&volume).is_some() {
            self.mark(Key::Quota(volume));
        }
    }

    pub(crate) fn live_name(&self, volume: VolumeId) -> Result<String, AdminRefusal> {
        let row = self.volumes.get(&volume);
        let gone = || AdminRefusal::NotFound { noun: Noun::Volume, name: volume.to_string() };
        row.map(|v| v.name.clone()).ok_or_else(gone)
    }

    fn volume_word(&self, volume: VolumeId) -> String {
        match (self.volumes.get(&volume), self.trash.get(&volume)) {
            (Some(v), _) => v.name.clone(),
            (None, Some(t)) => format!("{} (in the trash, {volume})", t.volume.name),
            (None, None) => volume.to_string(),
        }
    }

    // Readers.

    #[must_use]
    pub fn policies(&self) -> &BTreeMap<PolicyId, Policy> {
        &self.policies
    }
    #[must_use]
    pub fn policy_uses(&self) -> &BTreeMap<(VolumeId, PolicyId), PolicyUse> {
        &self.policy_uses
    }
    #[must_use]
    pub fn quota(&self, volume: VolumeId) -> Option<Quota> {
        self.quotas.get(&volume).copied()
    }
    #[must_use]
    pub fn policy_named(&self, name: &str) -> Option<(PolicyId, &Policy)> {
        self.policies.iter().find(|(_, p)| p.name == name).map(|(id, p)| (*id, p))
    }
    pub(crate) fn find_policy(&self, name: &str) -> Result<PolicyId, AdminRefusal> {
        let gone = || AdminRefusal::NotFound { noun: Noun::Policy, name: name.to_owned() };
        self.policy_named(name).map(|(id, _)| id).ok_or_else(gone)
    }
    /// Policies attached to a volume.
    pub fn uses_of(&self, volume: VolumeId) -> impl Iterator<Item = PolicyId> + '_ {
        let range = (volume, PolicyId(0))..=(volume, PolicyId(u64::MAX));
        self.policy_uses.range(range).map(|((_, p), _)| *p)
    }
    /// Volumes that a policy is attached to.
    pub fn policy_volumes(&self, id: PolicyId) -> impl Iterator<Item = VolumeId> + '_ {
        self.policy_uses.keys().filter(move |(_, p)| *p == id).map(|(v, _)| *v)
    }
}

/// What cannot be a policy.
///
/// # Errors
/// Says why not.
pub fn check_policy(
    name: &str,
    schedules: &[Schedule],
    retention: &Retention,
    keeps: u64,
) -> Result<(), AdminRefusal> {
    check_name(name)?;
    let bad = |why: String| Err(AdminRefusal::BadPolicy { name: name.to_owned(), why });
    if name.len() + SUFFIX > NAME_MAX {
        return bad(format!(
            "its name has more than {} bytes; its snapshots' begin with it",
            NAME_MAX - SUFFIX
        ));
    }
    if schedules.is_empty() || schedules.len() > SCHEDULES_MAX {
        return bad(format!("it has 1 to {SCHEDULES_MAX} schedules"));
    }
    if retention.keeps_all() || keeps == 0 {
        return bad("it does not say what to keep".into());
    }
    if keeps > KEEP_MAX {
        return bad(format!("it keeps {keeps} snapshots of a volume; at most {KEEP_MAX} are possible"));
    }
    Ok(())
}

/// `policy-20261122-0304`: of the slot, so the same whenever it is run.
#[must_use]
pub(crate) fn run_name(policy: &str, slot_ms: u64) -> String {
    let m = Moment::of(slot_ms);
    format!("{policy}-{:04}{:02}{:02}-{:02}{:02}", m.year, m.month, m.day, m.hour, m.minute)
}

fn no_policy(id: PolicyId) -> AdminRefusal {
    AdminRefusal::NotFound { noun: Noun::Policy, name: id.to_string() }
}
