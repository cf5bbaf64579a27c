//! Views: functions of the state and of what nodes said last. They decide nothing.

use crate::admin::{AdminAnswer, AdminRequest};
use crate::chunks::Chunks;
use crate::model::{Branch, Job, JobKind, JobState, Phase, SnapshotState};
use crate::refusal::{AdminRefusal, Noun};
use crate::requests::{find_node, find_snapshot, find_volume};
use crate::runs::{policy_names, policy_word};
use crate::service::Service;
use crate::state::MetaState;
use crate::survey::{Fault, Survey};
use crate::view::{
    DriveView, EventView, FaultView, JobView, NodeView, OrphanView, SessionView, SnapshotView, VolumeLine,
    VolumeView, WaitFor,
};
use proto::control::{JobTrouble, SessionStatus};
use proto::{BranchId, DriveId, Generation, JobId, NodeId, VolumeId};
use std::collections::BTreeSet;

impl Service {
    /// Answers to requests that change nothing.
    pub(crate) fn read(&self, state: &MetaState, request: AdminRequest) -> Result<AdminAnswer, AdminRefusal> {
        Ok(match request {
            AdminRequest::ClusterStatus => AdminAnswer::Cluster(Box::new(self.cluster_view(state)?)),
            AdminRequest::SettingsGet => AdminAnswer::Settings(
                state.settings().all().into_iter().map(|s| (s.key().to_owned(), s.show())).collect(),
            ),
            AdminRequest::Events { after, limit } => AdminAnswer::Events(events(state, after, limit)),
            AdminRequest::NodeList => {
                AdminAnswer::Nodes(state.nodes().keys().map(|n| self.node_view(state, *n)).collect())
            }
            AdminRequest::NodeShow { node } => {
                AdminAnswer::Nodes(vec![self.node_view(state, find_node(state, &node)?)])
            }
            AdminRequest::DriveList => {
                AdminAnswer::Drives(state.drives().keys().map(|d| self.drive_view(state, *d)).collect())
            }
            AdminRequest::DriveShow { drive } if state.drives().contains_key(&drive) => {
                AdminAnswer::Drives(vec![self.drive_view(state, drive)])
            }
            AdminRequest::DriveShow { drive } => {
                return Err(AdminRefusal::NotFound { noun: Noun::Drive, name: drive.to_string() });
            }
            AdminRequest::VolumeList => {
                AdminAnswer::Volumes(state.volumes().keys().map(|v| volume_line(state, *v)).collect())
            }
            AdminRequest::VolumeShow { name } => {
                AdminAnswer::Volume(Box::new(self.volume_view(state, find_volume(state, &name)?)))
            }
            AdminRequest::PolicyList { name } => {
                AdminAnswer::Policies(self.policy_views(state, name.as_deref())?)
            }
            AdminRequest::OrphanList => AdminAnswer::Orphans(self.orphan_views(state)),
            AdminRequest::TrashList => AdminAnswer::Trash(state.trash_views()),
            AdminRequest::SnapshotList { volume } => {
                let volume = volume.map(|name| find_volume(state, &name)).transpose()?;
                AdminAnswer::Snapshots(snapshot_views(state, volume))
            }
            AdminRequest::SnapshotShow { name } => {
                let (key, _) = find_snapshot(state, &name)?;
                AdminAnswer::Snapshots(snapshot_view(state, key).into_iter().collect())
            }
            AdminRequest::JobList => {
                AdminAnswer::Jobs(state.jobs().keys().filter_map(|j| self.job_view(state, *j)).collect())
            }
            AdminRequest::JobShow { job } => {
                let missing = || AdminRefusal::NotFound { noun: Noun::Job, name: job.to_string() };
                AdminAnswer::Jobs(vec![self.job_view(state, job).ok_or_else(missing)?])
            }
            AdminRequest::VolumeWait { name, state: wanted } => {
                AdminAnswer::Waited(is_reached(state, &name, wanted)?)
            }
            // The rest is turned into commands before it comes here.
            _ => AdminAnswer::Done,
        })
    }

    pub(crate) fn node_view(&self, state: &MetaState, id: NodeId) -> NodeView {
        let node = &state.nodes()[&id];
        let drives: Vec<DriveId> =
            state.drives().iter().filter(|(_, d)| d.node == id).map(|(i, _)| *i).collect();
        let space: Vec<(u64, u64)> = drives.iter().map(|d| self.space(state, *d)).collect();
        NodeView {
            node: id,
            name: node.name.clone(),
            zone: node.zone.clone(),
            address: node.address.clone(),
            up: node.down.is_none(),
            down_since_ms: node.down.map(|(t, _)| t),
            draining: node.drain,
            replicas: drives.iter().map(|d| state.replicas_on(*d)).sum(),
            drives,
            sessions: u32::try_from(state.sessions_on(id).len()).unwrap_or(u32::MAX),
            capacity: space.iter().map(|s| s.0).sum(),
            used: space.iter().map(|s| s.1).sum(),
        }
    }

    /// Capacity and used bytes.
    pub(crate) fn space(&self, state: &MetaState, id: DriveId) -> (u64, u64) {
        let drive = &state.drives()[&id];
        self.liveness.space(drive.node, id).unwrap_or((drive.capacity, 0))
    }

    pub(crate) fn drive_view(&self, state: &MetaState, id: DriveId) -> DriveView {
        let drive = &state.drives()[&id];
        let node = state.nodes().get(&drive.node);
        let down_since_ms = drive.down.or(node.and_then(|n| n.down).map(|d| d.0));
        let word = if drive.stranger {
            "stranger"
        } else if drive.openings.is_empty() {
            "unconfirmed"
        } else if down_since_ms.is_some() {
            "down"
        } else if drive.retired || node.is_some_and(|n| n.drain) {
            "draining"
        } else {
            "up"
        };
        let (capacity, used) = self.space(state, id);
        DriveView {
            drive: id,
            node: drive.node,
            node_name: state.node_name(drive.node),
            path: drive.path.clone(),
            state: word.to_owned(),
            down_since_ms,
            capacity,
            used,
            replicas: state.replicas_on(id),
            volumes: state.index.uses.get(&id).map_or(0, |u| u32::try_from(u.len()).unwrap_or(u32::MAX)),
        }
    }

    fn job_view(&self, state: &MetaState, id: JobId) -> Option<JobView> {
        let job = state.jobs().get(&id)?;
        let row = state.branches().get(&job.branch).filter(|_| job.state == JobState::Running);
        let said = row.and_then(|row| self.session_status(job.branch, row));
        let status = said.and_then(|s| s.job).filter(|s| s.job == id);
        let trouble = match (row, status) {
            (None, _) => ended(job),
            (Some(_), None) => "waits for a session".to_owned(),
            (Some(_), Some(s)) => s.trouble.map_or_else(String::new, |t| trouble(state, job.branch, t)),
        };
        Some(JobView {
            job: id,
            kind: job.kind.word().to_owned(),
            // By the name that it has now.
            volume: row.map_or_else(|| job.name.clone(), |_| state.branch_name(job.branch)),
            state: job.state.word().to_owned(),
            started_ms: job.started_ms,
            ended_ms: job.ended_ms,
            done: status.map_or(0, |s| s.done),
            total: status.map_or(0, |s| s.total),
            trouble,
        })
    }

    /// Of drives that have any.
    fn orphan_views(&self, state: &MetaState) -> Vec<OrphanView> {
        let view = |(id, row): (&DriveId, &crate::model::Drive)| {
            let (to_erase, drive) = (state.garbage_count(*id), self.drive_view(state, *id));
            (to_erase > 0 || row.unknown > 0).then_some(OrphanView {
                drive: *id,
                node: drive.node,
                node_name: drive.node_name,
                state: drive.state,
                down_since_ms: drive.down_since_ms,
                to_erase,
                unknown: row.unknown,
            })
        };
        state.drives().iter().filter_map(view).collect()
    }

    fn volume_view(&self, state: &MetaState, id: VolumeId) -> VolumeView {
        let volume = &state.volumes()[&id];
        let row = &state.branches()[&volume.branch];
        let survey = state.survey(volume.branch);
        let status = self.session_status(volume.branch, row);
        let drives = state.drives_of(volume.branch);
        // The session said this up to a heartbeat ago; Raft knows better when nothing is missing.
        let resync = status.filter(|_| survey.degraded > 0 || row.unwell_since.is_some());
        VolumeView {
            volume: id,
            branch: volume.branch,
            name: volume.name.clone(),
            size: row.geometry.size,
            chunk_bytes: row.geometry.chunk_bytes(),
            // Also those beyond its end, where it was larger once: they are healed as the others.
            chunks: state.chunks(volume.branch).map_or(0, Chunks::count),
            class: row.class,
            phase: row.phase,
            created_ms: volume.created_ms,
            state: state_word(row.phase, &survey).to_owned(),
            unwell_chunks: survey.degraded,
            least_in_sync: survey.least,
            unwell_since_ms: row.unwell_since,
            faults: self.fault_views(state, volume.branch, row, &survey),
            session: session_view(state, row, status),
            resync_left: resync.map_or(0, |s| s.resync_left),
            resync_moved: self.resyncs.moved(volume.branch),
            resync_rate: resync.map_or(0, |s| s.resync_rate),
            drives: drives.into_iter().map(|(d, n)| (state.drives()[&d].node, d, n)).collect(),
            snapshots: state.snapshots_of(id).map(|(_, s)| s.name.clone()).collect(),
            parent: row.tie().map(|tie| state.point_name(tie.branch, tie.generation)),
            policies: policy_names(state, id),
            quota: state.quota(id),
        }
    }

    pub(crate) fn session_status(&self, branch: BranchId, row: &Branch) -> Option<&SessionStatus> {
        let session = row.session?;
        self.liveness.session(session.node, branch, row.epoch)
    }

    fn fault_views(
        &self,
        state: &MetaState,
        branch: BranchId,
        row: &Branch,
        survey: &Survey,
    ) -> Vec<FaultView> {
        let outlook = self.outlook(state);
        let view = |((drive, fault), chunks): (&(DriveId, Fault), &u32)| {
            let known = state.drives().get(drive);
            let node = known.map_or(NodeId(0), |d| d.node);
            let down = known.is_some() && state.drive_down(*drive);
            let since = known.and_then(|d| d.down.or_else(|| Some(state.nodes().get(&d.node)?.down?.0)));
            let out = outlook.out.contains(drive);
            let lost = known.map(|_| *drive).into_iter().collect();
            let room = self.room_without(state, &outlook, &lost, &BTreeSet::from([branch]));
            let instead = match (fault, known) {
                (Fault::Leaving, _) => "stop emptying it".to_owned(),
                (_, Some(d)) if d.down.is_some() => "mend the drive".to_owned(),
                (_, Some(_)) => format!("start {}", state.node_name(node)),
                (_, None) => "start what is down".to_owned(),
            };
            let why = match (fault, down) {
                (Fault::Missing, _) => "there are fewer replicas than copies",
                (Fault::Leaving, _) => "it is being emptied",
                (Fault::Down, _) => "its drive or node is down",
                (Fault::Stale, true) => "it went down, and misses what was written since",
                (Fault::Stale, false) => "it misses writes",
            };
            let action = match (fault, down, out) {
                (Fault::Missing | Fault::Leaving, ..) => {
                    room.promise("new replicas are placed and filled".to_owned(), &instead)
                }
                (Fault::Stale, false, false) if row.session.is_some() => "resync is under way".to_owned(),
                (Fault::Stale, false, false) => "a maintenance session will resync it".to_owned(),
                (_, _, true) => {
                    room.promise("its replicas are placed anew on other nodes".to_owned(), &instead)
                }
                _ if outlook.mass_failure => {
                    "healing rests: more than a third of the nodes are down".to_owned()
                }
                _ => {
                    let left = since.map_or(0, |t| {
                        (t + state.settings().down_out_ms).saturating_sub(self.wall_ms).div_ceil(1000)
                    });
                    let promise = format!("placed anew on other nodes in {left} s unless it returns");
                    room.promise(promise, &instead)
                }
            };
            FaultView {
                drive: *drive,
                node,
                node_name: state.node_name(node),
                chunks: *chunks,
                why: why.to_owned(),
                since_ms: since.or(row.unwell_since),
                action,
            }
        };
        survey.faults.iter().map(view).collect()
    }
}

pub(crate) fn snapshot_view(state: &MetaState, key: (BranchId, Generation)) -> Option<SnapshotView> {
    let s = state.snapshots().get(&key)?;
    Some(SnapshotView {
        volume: state.any_volume(s.volume).map(|v| v.name.clone()).unwrap_or_default(),
        name: s.name.clone(),
        id: s.id,
        branch: key.0,
        generation: key.1,
        size: s.size,
        sealed: s.state == SnapshotState::Sealed,
        created_ms: s.created_ms,
        group: s.group.map_or(0, |g| g.0),
        labels: s.labels.clone(),
        protect_until_ms: s.protect_until_ms,
        clones: state.clones_of(key),
        policy: s.policy.map(|made| policy_word(state, made.policy)),
        unconfirmed: u32::try_from(state.owed_of(key.0).len()).unwrap_or(u32::MAX),
    })
}

/// In the order of volumes' names, then oldest first.
fn snapshot_views(state: &MetaState, volume: Option<VolumeId>) -> Vec<SnapshotView> {
    let volumes: Vec<VolumeId> = match volume {
        Some(v) => vec![v],
        None => state.index.names.values().copied().collect(),
    };
    let keys = volumes.into_iter().flat_map(|v| state.snapshots_of(v)).map(|(key, _)| key);
    keys.filter_map(|key| snapshot_view(state, key)).collect()
}

fn session_view(state: &MetaState, row: &Branch, status: Option<&SessionStatus>) -> Option<SessionView> {
    let session = row.session?;
    Some(SessionView {
        node: session.node,
        node_name: state.node_name(session.node),
        kind: session.kind,
        epoch: row.epoch,
        since_ms: session.since_ms,
        node_up: !state.node_down(session.node),
        state: status.map(|s| s.state),
        waiting: status.and_then(|s| s.waiting.clone()),
    })
}

pub(crate) fn state_word(phase: Phase, survey: &Survey) -> &'static str {
    match phase {
        Phase::Creating => "creating",
        _ if survey.unavailable > 0 => "unavailable",
        _ if survey.degraded > 0 => "degraded",
        Phase::Growing => "growing",
        Phase::Ready => "healthy",
    }
}

fn volume_line(state: &MetaState, id: VolumeId) -> VolumeLine {
    let volume = &state.volumes()[&id];
    let row = &state.branches()[&volume.branch];
    let survey = state.survey(volume.branch);
    VolumeLine {
        volume: id,
        branch: volume.branch,
        name: volume.name.clone(),
        size: row.geometry.size,
        copies: row.class.copies,
        state: state_word(row.phase, &survey).to_owned(),
        unwell_chunks: survey.degraded,
        attached: row.guest().map(|s| s.node),
    }
}

fn events(state: &MetaState, after: u64, limit: usize) -> Vec<EventView> {
    let newer = state.events().range(after.saturating_add(1)..);
    let skip = newer.clone().count().saturating_sub(limit);
    newer
        .skip(skip)
        .map(|(number, e)| EventView {
            number: *number,
            at_ms: e.at_ms,
            severity: e.kind.severity(),
            kind: e.kind.name().to_owned(),
            text: e.kind.to_string(),
        })
        .collect()
}

/// The predicate of `volume wait`.
fn is_reached(state: &MetaState, name: &str, wanted: WaitFor) -> Result<bool, AdminRefusal> {
    let volume = match find_volume(state, name) {
        Err(_) if wanted == WaitFor::Deleted => return Ok(true),
        found => found?,
    };
    let branch = state.volumes()[&volume].branch;
    let row = &state.branches()[&branch];
    Ok(match wanted {
        WaitFor::Ready => row.pending().is_none(),
        WaitFor::Healthy => state.is_healthy(branch),
        WaitFor::Attached => row.guest().is_some(),
        WaitFor::Detached => row.guest().is_none(),
        WaitFor::Deleted => false,
    })
}

/// Why a job has come to nothing, and what would help.
fn ended(job: &Job) -> String {
    match (job.state, job.kind) {
        (JobState::Failed { written }, JobKind::Shrink { to, .. }) => format!(
            "byte {written} is written, and lies beyond the new end {to}: nothing was changed; move it, or --discard what is there"
        ),
        _ => String::new(),
    }
}

/// Why a job does not go on, and what would help.
fn trouble(state: &MetaState, branch: BranchId, t: JobTrouble) -> String {
    match t {
        JobTrouble::NoSpace => "no space: add drives, or delete something".to_owned(),
        JobTrouble::BadBlock { offset } => {
            format!("bad in the parent on every replica, at byte {offset}: write there, or cancel the job")
        }
        JobTrouble::Parent => "nobody who has the parent's data can be reached".to_owned(),
        JobTrouble::Snapshot { generation } => {
            if state.snapshots().contains_key(&(branch, generation)) {
                let name = state.snapshot_name(branch, generation);
                return format!(
                    "{name} still reads from the parent, as older ones may: delete them, or cancel the job"
                );
            }
            let forks = state.index.forks.get(&(branch, generation)).into_iter().flatten();
            let names: Vec<String> = forks.map(|b| state.branch_name(*b)).collect();
            format!(
                "its clones {} still read from the parent: flatten or delete them, or cancel the job",
                names.join(", ")
            )
        }
    }
}
