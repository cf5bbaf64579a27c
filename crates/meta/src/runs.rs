//! The leader's part in policies: what is due, and what is shown of it.
//!
//! Owns nothing that must last: which slot ran last stands in Raft with the snapshot that it made. Of several slots that were
//! missed (no leader, a volume that could not be sealed, the trash) the last one is run, once.

use crate::admin::AdminRequest;
use crate::command::{Op, SnapshotItem};
use crate::model::{Phase, Policy, PolicyId, PolicyUse};
use crate::policy::{KEEP_MAX, check_policy, run_name};
use crate::refusal::{AdminRefusal, Noun};
use crate::requests::find_volume;
use crate::service::{OwnKey, Service};
use crate::state::MetaState;
use crate::touch::Touch;
use crate::view::{PolicyView, PolicyVolume};
use proto::{LogIndex, Span, Time, VolumeId};
use schedule::{Retention, Schedule, jitter, most_kept};
use std::collections::BTreeMap;

/// Wall clocks are looked at again after so long at the latest.
const LOOK_AGAIN: Span = Span::secs(60);
/// A run that came to nothing is tried again: something is under way with the volume, or its session cannot seal.
const TRY_AGAIN: Span = Span::secs(60);

type Use = (VolumeId, PolicyId);

#[derive(Debug, Default)]
pub(crate) struct Runs {
    seen: LogIndex,
    next: Time,
    tried: BTreeMap<Use, Time>,
}
impl Runs {
    pub(crate) fn next_wake(&self) -> Time {
        self.next
    }
}

impl Service {
    pub(crate) fn maintain_runs(&mut self, state: &MetaState) {
        let seen = std::mem::replace(&mut self.runs.seen, state.applied());
        let changed = seen != state.applied()
            && state.touched_after(seen).is_none_or(|mut t| t.any(|t| matches!(t, Touch::Policies)));
        if !changed && self.now < self.runs.next {
            return;
        }
        let now = self.now;
        if !self.clock_is_sound(state) {
            self.runs.next = now + Span::secs(5);
            return;
        }
        self.runs.next = if state.policy_uses().is_empty() { Time::FAR } else { now + LOOK_AGAIN };
        self.runs.tried.retain(|_, at| now < *at + TRY_AGAIN);
        for (key, used) in state.policy_uses() {
            let policy = &state.policies()[&key.1];
            if !state.volumes().contains_key(&key.0) {
                continue;
            }
            match due(policy, used, key.0, self.wall_ms) {
                Ok(slot_ms) if !self.runs.tried.contains_key(key) => {
                    self.runs.tried.insert(*key, now);
                    self.run(state, *key, policy, slot_ms);
                }
                Ok(_) => {}
                Err(Some(next)) => {
                    let wait = Span::millis(next.saturating_sub(self.wall_ms)).min(LOOK_AGAIN);
                    self.runs.next = self.runs.next.min(now + wait);
                }
                Err(None) => {}
            }
        }
    }

    fn run(&mut self, state: &MetaState, (volume, id): Use, policy: &Policy, slot_ms: u64) {
        let branch = state.volumes()[&volume].branch;
        let row = &state.branches()[&branch];
        if row.phase == Phase::Creating || row.sealing.is_some() || state.shrinking(branch).is_some() {
            return;
        }
        let name = run_name(&policy.name, slot_ms);
        // Somebody may have given another snapshot that name.
        let names = std::iter::once(name.clone()).chain((2..10).map(|n| format!("{name}.{n}")));
        let mut free = names.filter(|n| state.snapshot_named(volume, n).is_none());
        let Some(name) = free.next() else { return };
        let id_of = run_id(state, volume, id, slot_ms, row.generation.0);
        let item = SnapshotItem { volume, branch, name, id: id_of };
        self.propose_own(OwnKey::Run(volume, id), Op::PolicyRun { policy: id, item, slot_ms });
    }

    pub(crate) fn policy_command(
        &self,
        state: &MetaState,
        request: AdminRequest,
    ) -> Result<Op, AdminRefusal> {
        Ok(match request {
            AdminRequest::PolicyCreate { name, schedules, jitter_ms, retention } => {
                let bad = |why: String| AdminRefusal::BadPolicy { name: name.clone(), why };
                let parsed = schedules.iter().map(|s| Schedule::parse(s).map_err(|e| bad(e.to_string())));
                let schedules = parsed.collect::<Result<Vec<_>, _>>()?;
                let keeps = keeps(&schedules, &retention, self.wall_ms);
                check_policy(&name, &schedules, &retention, keeps)?;
                Op::PolicyCreate { name, schedules, jitter_ms, retention, keeps }
            }
            AdminRequest::PolicyDelete { name } => Op::PolicyDelete { policy: state.find_policy(&name)? },
            AdminRequest::PolicyAttach { name, volume } => {
                Op::PolicyAttach { policy: state.find_policy(&name)?, volume: find_volume(state, &volume)? }
            }
            AdminRequest::PolicyDetach { name, volume } => {
                Op::PolicyDetach { policy: state.find_policy(&name)?, volume: find_volume(state, &volume)? }
            }
            AdminRequest::VolumeQuota { name, quota } => {
                Op::QuotaSet { volume: find_volume(state, &name)?, quota }
            }
            _ => unreachable!("only these are ordered here"),
        })
    }

    /// All, or one.
    pub(crate) fn policy_views(
        &self,
        state: &MetaState,
        name: Option<&str>,
    ) -> Result<Vec<PolicyView>, AdminRefusal> {
        let only = name.map(|n| state.find_policy(n)).transpose()?;
        let chosen = state.policies().iter().filter(|(id, _)| only.is_none_or(|o| o == **id));
        Ok(chosen.map(|(id, p)| self.policy_view(state, *id, p)).collect())
    }

    fn policy_view(&self, state: &MetaState, id: PolicyId, p: &Policy) -> PolicyView {
        let of = |volume: VolumeId| {
            let used = &state.policy_uses()[&(volume, id)];
            let name = state.volumes().get(&volume)?.name.clone();
            let (next_ms, late) = match due(p, used, volume, self.wall_ms) {
                Ok(slot) => (slot + jitter(volume.0, p.jitter_ms), true),
                Err(next) => (next.unwrap_or(0), false),
            };
            let ran = used.ran_ms > used.since_ms;
            Some(PolicyVolume { name, ran_ms: ran.then_some(used.ran_ms), next_ms, late })
        };
        PolicyView {
            name: p.name.clone(),
            schedules: p.schedules.iter().map(|s| s.text().to_owned()).collect(),
            jitter_ms: p.jitter_ms,
            retention: p.retention,
            keeps: p.keeps,
            created_ms: p.created_ms,
            volumes: state.policy_volumes(id).filter_map(of).collect(),
        }
    }
}

/// The slot that is to be run now; else when (Unix ms) the next one comes.
fn due(policy: &Policy, used: &PolicyUse, volume: VolumeId, wall_ms: u64) -> Result<u64, Option<u64>> {
    let later = jitter(volume.0, policy.jitter_ms);
    let now = wall_ms.saturating_sub(later);
    let last = policy.schedules.iter().filter_map(|s| s.last_until(now)).max();
    if let Some(slot) = last.filter(|slot| *slot > used.ran_ms) {
        return Ok(slot);
    }
    let after = now.max(used.ran_ms);
    Err(policy.schedules.iter().filter_map(|s| s.next_after(after)).min().map(|next| next + later))
}

/// What a policy comes to keep of a volume, after it has run for ever: without the one just made.
fn keeps(schedules: &[Schedule], r: &Retention, wall_ms: u64) -> u64 {
    let asked = [r.last, r.hourly, r.daily, r.weekly, r.monthly, r.yearly];
    let asked: u64 = asked.into_iter().map(u64::from).sum();
    if asked > KEEP_MAX {
        // It is refused for it: not worth a closer look.
        return asked;
    }
    most_kept(schedules, r, wall_ms).map_or(0, |most| most.saturating_sub(1))
}

/// Tells the snapshot from every other one, in other clusters too: the cluster's id is random, the rest is its own.
fn run_id(state: &MetaState, volume: VolumeId, policy: PolicyId, slot_ms: u64, generation: u32) -> u128 {
    let cluster = state.head().cluster.as_ref().map_or(0, |c| c.id.0);
    let parts = [volume.0, policy.0, slot_ms, u64::from(generation)];
    parts.into_iter().fold(cluster, |id, part| {
        let mixed = (id ^ u128::from(part)).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        mixed ^ mixed >> 67
    })
}

/// The policies of a volume, by name.
pub(crate) fn policy_names(state: &MetaState, volume: VolumeId) -> Vec<String> {
    state.uses_of(volume).filter_map(|p| state.policies().get(&p)).map(|p| p.name.clone()).collect()
}

/// Of a deleted policy: its number.
pub(crate) fn policy_word(state: &MetaState, id: PolicyId) -> String {
    state.policies().get(&id).map_or_else(|| format!("{} {id}", Noun::Policy.word()), |p| p.name.clone())
}
