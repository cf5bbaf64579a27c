//! What nodes and operators ask: answered from the state, or turned into a command.

use crate::admin::{AdminAnswer, AdminRequest, Shrink, SnapshotName};
use crate::answer::Answer;
use crate::chunks::Chunks;
use crate::command::{Op, Plan, Replacement};
use crate::model::{Class, Phase};
use crate::name::{check_chunk_shift, check_copies, check_name, check_size};
use crate::placement::{Candidate, Placer, TooFew};
use crate::refusal::{AdminRefusal, Noun};
use crate::service::{Service, Token};
use crate::settings::Setting;
use crate::state::MetaState;
use proto::control::{MetaAnswer, MetaRefusal, MetaRequest, VolumeSummary, WatchUpdate};
use proto::limits::CHUNK_SHIFT_DEFAULT;
use proto::{BranchId, DriveId, Generation, Geometry, NodeId, RequestId, VolumeId};

impl Service {
    pub(crate) fn node_request(
        &mut self,
        state: &MetaState,
        from: NodeId,
        token: Token,
        request: MetaRequest,
    ) {
        if !self.leader {
            return self.answer_node(token, MetaAnswer::Unavailable);
        }
        match request {
            MetaRequest::Heartbeat { node, process, drives, reaches, sessions } => {
                let known = node == from && state.nodes().contains_key(&node);
                if known {
                    let now = self.now;
                    self.resyncs.observe(now, state);
                    self.resyncs.hear(state, &sessions);
                    self.liveness.hear(now, node, process, drives, reaches, sessions);
                }
                let answer =
                    if known { MetaAnswer::Ok } else { MetaAnswer::Refused(MetaRefusal::UnknownNode) };
                self.answer_node(token, answer);
            }
            MetaRequest::Attach { request, volume, node, process, kind, force, after } => {
                let holder_unheard = self.holder_unheard(state, state.resolve(&volume));
                let op = Op::Attach { volume, node, process, kind, force, holder_unheard, after };
                self.propose_for_node(token, Some(request), op);
            }
            MetaRequest::Detach { branch, epoch, clean } => {
                self.propose_for_node(token, None, Op::Detach { branch, epoch, clean });
            }
            MetaRequest::Propose { branch, epoch, changes } => {
                self.propose_for_node(token, None, Op::Propose { branch, epoch, changes });
            }
            MetaRequest::Chunks { branch, chunks, .. } => {
                self.answer_node(token, state.present(branch, chunks));
            }
            MetaRequest::Views { branch, .. } => self.answer_node(token, state.present_views(branch)),
            MetaRequest::Sealed { branch, epoch, generation } => {
                self.propose_for_node(token, None, Op::Sealed { branch, epoch, generation });
            }
            // What is settled already needs no command; should it not be, the list is told again.
            MetaRequest::Kept { drive, branch, index } if state.is_settled_by(drive, branch, index) => {
                self.propose_for_node(token, None, Op::Kept { drive, branch, index });
            }
            MetaRequest::Kept { .. } => self.answer_node(token, MetaAnswer::Ok),
            MetaRequest::Cut { branch, epoch, job } => {
                self.propose_for_node(token, None, Op::Cut { branch, epoch, job });
            }
            MetaRequest::Shrunk { branch, epoch, job, written } => {
                self.propose_for_node(token, None, Op::Shrunk { branch, epoch, job, written });
            }
            MetaRequest::Snapshot { volume, snapshot } => {
                let answer = state.find_snapshot(&volume, &snapshot);
                self.answer_node(token, answer);
            }
            MetaRequest::Created { branch, epoch, placement, failed } => {
                let replacements = self.replacements(state, branch, &failed);
                let op = Op::Created { branch, epoch, placement, failed, replacements };
                self.propose_for_node(token, None, op);
            }
            MetaRequest::DriveOpened { node, drive, openings, capacity, replicas, path } => {
                let unknown = replicas.iter().filter(|r| !state.was_placed(r)).count();
                let unknown = u32::try_from(unknown).unwrap_or(u32::MAX);
                let orphans = replicas.into_iter().filter(|r| state.is_orphan(drive, r)).collect();
                let op = Op::DriveOpened { node, drive, openings, capacity, path, orphans, unknown };
                self.propose_for_node(token, None, op);
            }
            MetaRequest::Deleted { drive, replicas } => {
                self.propose_for_node(token, None, Op::Deleted { drive, replicas });
            }
            MetaRequest::Measured { node, measured } => self.measured(token, (from, node), &measured),
            MetaRequest::Volumes { name } => {
                let answer = MetaAnswer::Volumes(summaries(state, name.as_deref()));
                self.answer_node(token, answer);
            }
        }
    }

    /// No node that is heard reaches the node of the branch's session.
    fn holder_unheard(&self, state: &MetaState, branch: Option<BranchId>) -> bool {
        let session = branch.and_then(|b| state.branches().get(&b)).and_then(|b| b.session);
        session.is_none_or(|s| !self.liveness.is_reached(self.now, state, s.node))
    }

    /// Other drives for the unmade chunks that a failed drive was to hold.
    fn replacements(&self, state: &MetaState, branch: BranchId, failed: &[DriveId]) -> Vec<Replacement> {
        let (Some(row), Some(chunks)) = (state.branches().get(&branch), state.chunks(branch)) else {
            return Vec::new();
        };
        if failed.is_empty() {
            return Vec::new();
        }
        let candidates = self.candidates(state).into_iter().filter(|c| !failed.contains(&c.drive)).collect();
        let mut placer = Placer::new(candidates);
        let sets = placer.sets(row.class.copies);
        let mut out = Vec::new();
        for (chunk, c) in chunks.iter_unwell().filter(|(_, c)| c.number.0 == 0) {
            let mut drives: Vec<DriveId> =
                c.members.iter().map(|m| m.place.drive).filter(|d| !failed.contains(d)).collect();
            if drives.len() == c.members.len() {
                continue;
            }
            while drives.len() < usize::from(row.class.copies) {
                let (nodes, zones) = homes(state, &drives);
                let Some(d) = placer.one_more_of(&sets, &nodes, &zones, failed) else { break };
                drives.push(d);
            }
            if drives.len() == usize::from(row.class.copies) {
                out.push(Replacement { chunk, drives });
            }
        }
        out
    }

    /// Drives that take new replicas now.
    pub(crate) fn candidates(&self, state: &MetaState) -> Vec<Candidate> {
        let usable = state.drives().iter().filter(|(id, d)| {
            let node = state.nodes().get(&d.node);
            !state.drive_down(**id) && !d.retired && !d.openings.is_empty() && node.is_some_and(|n| !n.drain)
        });
        usable
            .filter_map(|(id, d)| {
                let (capacity, used) = self.liveness.space(d.node, *id).unwrap_or((d.capacity, 0));
                let full = used.saturating_mul(100) >= capacity.saturating_mul(state.settings().full_percent);
                (!full).then(|| Candidate {
                    drive: *id,
                    node: d.node,
                    zone: state.nodes()[&d.node].zone.clone(),
                    free: capacity.saturating_sub(used),
                    load: state.replicas_on(*id),
                })
            })
            .collect()
    }

    pub(crate) fn admin_request(
        &mut self,
        state: &MetaState,
        token: Token,
        id: Option<RequestId>,
        request: AdminRequest,
    ) {
        if !self.leader {
            return self.answer_not_leader(token);
        }
        if let Some(Answer::Admin(answer)) = id.and_then(|id| state.kept_answer(id)) {
            return self.admin_decided(state, token, answer);
        }
        if let AdminRequest::SnapshotCreate { .. } = request {
            return self.snapshot_order(state, token, id, request);
        }
        if let AdminRequest::VolumeClone { .. } | AdminRequest::VolumeRollback { .. } = request {
            return self.fork_order(state, token, id, request);
        }
        match self.admin_decision(state, request) {
            Ok(Decided::Answer(answer)) => self.answer_admin(token, Ok(answer)),
            Ok(Decided::Command(op)) => {
                self.propose_for_admin(token, id, op);
            }
            Err(refusal) => self.answer_admin(token, Err(refusal)),
        }
    }

    fn admin_decision(&mut self, state: &MetaState, request: AdminRequest) -> Result<Decided, AdminRefusal> {
        let command = |op| Ok(Decided::Command(op));
        match request {
            AdminRequest::ClusterInit { cluster, name, token } => {
                command(Op::ClusterInit { cluster, name, token })
            }
            AdminRequest::SettingSet { key, value } => {
                command(Op::SettingSet { setting: Setting::parse(&key, &value)? })
            }
            AdminRequest::NodeAdd { name, zone, address, identity, token } => {
                command(Op::NodeAdd { name, zone, address, identity, token })
            }
            AdminRequest::NodeRegister { node, zone, address, identity, process } => {
                command(Op::NodeRegister { node, zone, address, identity, process })
            }
            AdminRequest::NodeDrain { node, drain } => {
                command(Op::NodeDrain { node: find_node(state, &node)?, drain })
            }
            AdminRequest::NodeRemove { node } => command(Op::NodeRemove { node: find_node(state, &node)? }),
            AdminRequest::DriveAdd { node, drive, capacity, path } => {
                command(Op::DriveAdd { node, drive, capacity, path })
            }
            AdminRequest::DriveRetire { drive, retire } => command(Op::DriveRetire { drive, retire }),
            AdminRequest::DriveRemove { drive } => command(Op::DriveRemove { drive }),
            AdminRequest::VolumeCreate { name, size, chunk_shift, class, prefer } => {
                let chunk_shift = chunk_shift.unwrap_or(CHUNK_SHIFT_DEFAULT);
                command(self.create(state, name, Geometry { size, chunk_shift }, class, prefer)?)
            }
            AdminRequest::VolumeResize { name, size, shrink } => {
                command(self.resize(state, &name, size, shrink)?)
            }
            AdminRequest::VolumeRename { name, to } => {
                check_name(&to)?;
                command(Op::VolumeRename { volume: find_volume(state, &name)?, from: name, to })
            }
            AdminRequest::VolumeClass { name, class } => {
                check_copies(class.copies, class.min_in_sync)?;
                command(Op::VolumeClass { volume: find_volume(state, &name)?, class })
            }
            AdminRequest::VolumeDelete { .. }
            | AdminRequest::VolumeRestore { .. }
            | AdminRequest::VolumePurge { .. } => command(trash_command(state, request)?),
            AdminRequest::VolumeFlatten { name } => {
                let volume = find_volume(state, &name)?;
                command(Op::Flatten { volume, branch: state.volumes()[&volume].branch })
            }
            AdminRequest::JobCancel { job } => command(Op::JobCancel { job }),
            AdminRequest::VolumeReconnect { name } => {
                self.reconnect(state, &name).map(|said| Decided::Answer(AdminAnswer::Waited(said)))
            }
            AdminRequest::VolumeVerify { name, request } => {
                self.verify(state, &name, request).map(Decided::Answer)
            }
            AdminRequest::VolumeSpace { name, request } => {
                let view = self.measure_space(state, &name, request)?;
                Ok(Decided::Answer(AdminAnswer::Space(Box::new(view))))
            }
            AdminRequest::PolicyCreate { .. }
            | AdminRequest::PolicyDelete { .. }
            | AdminRequest::PolicyAttach { .. }
            | AdminRequest::PolicyDetach { .. }
            | AdminRequest::VolumeQuota { .. } => command(self.policy_command(state, request)?),
            AdminRequest::SnapshotDelete { .. }
            | AdminRequest::SnapshotRename { .. }
            | AdminRequest::SnapshotProtect { .. }
            | AdminRequest::SnapshotLabel { .. } => command(snapshot_command(state, request)?),
            read => self.read(state, read).map(Decided::Answer),
        }
    }

    fn create(
        &self,
        state: &MetaState,
        name: String,
        geometry: Geometry,
        class: Class,
        prefer: Option<NodeId>,
    ) -> Result<Op, AdminRefusal> {
        check_name(&name)?;
        check_size(geometry.size)?;
        check_chunk_shift(geometry.chunk_shift)?;
        check_copies(class.copies, class.min_in_sync)?;
        // A name that exists is refused by `apply`, which knows of repeated requests: a plan is not needed.
        let plan = if state.head().cluster.is_none() || state.volume_named(&name).is_some() {
            Plan::default()
        } else {
            self.plan(state, class.copies, geometry.chunks(), geometry.chunk_shift, prefer)?
        };
        Ok(Op::VolumeCreate { name, geometry, class, plan })
    }

    fn resize(
        &self,
        state: &MetaState,
        name: &str,
        size: u64,
        shrink: Option<Shrink>,
    ) -> Result<Op, AdminRefusal> {
        check_size(size)?;
        let volume = find_volume(state, name)?;
        let branch = state.volumes()[&volume].branch;
        let row = &state.branches()[&branch];
        let from = row.geometry.size;
        if let Some(Shrink { discard }) = shrink.filter(|_| size < from) {
            return Ok(Op::VolumeShrink { volume, branch, from, to: size, discard });
        }
        let geometry = Geometry { size, ..row.geometry };
        let there = state.chunks(branch).map_or(0, Chunks::count);
        let added = geometry.chunks().saturating_sub(there);
        let plan = match added {
            0 => Plan::default(),
            n => self.plan(state, row.class.copies, n, geometry.chunk_shift, None)?,
        };
        Ok(Op::VolumeResize { volume, from, to: size, plan })
    }

    fn plan(
        &self,
        state: &MetaState,
        copies: u8,
        chunks: u32,
        chunk_shift: u8,
        prefer: Option<NodeId>,
    ) -> Result<Plan, AdminRefusal> {
        let candidates = self.candidates(state);
        let taking = candidates.len();
        let plan = Placer::new(candidates).plan(copies, chunks, 1 << chunk_shift, prefer);
        plan.map_err(|few| too_few(state, copies, few, taking))
    }

    /// Whether the order could be given, or there is nobody to give it to. Before that the session must know the size.
    fn reconnect(&mut self, state: &MetaState, name: &str) -> Result<bool, AdminRefusal> {
        let volume = find_volume(state, name)?;
        let branch = state.volumes()[&volume].branch;
        let row = &state.branches()[&branch];
        let Some(session) = row.guest() else { return Ok(true) };
        let knows = self.session_status(branch, row).is_some_and(|s| s.size == row.geometry.size);
        if !knows || !self.watch.is_watched(session.node) {
            return Ok(false);
        }
        self.push(session.node, WatchUpdate::Reconnect { branch });
        Ok(true)
    }

    /// The order goes to whoever holds the session; without one the planner appoints one first.
    fn verify(
        &mut self,
        state: &MetaState,
        name: &str,
        request: RequestId,
    ) -> Result<AdminAnswer, AdminRefusal> {
        let volume = find_volume(state, name)?;
        let branch = state.volumes()[&volume].branch;
        let row = &state.branches()[&branch];
        match row.session.filter(|s| !state.node_down(s.node)) {
            Some(session) if row.pending().is_none() => {
                self.push(session.node, WatchUpdate::Verify { branch, request });
                Ok(AdminAnswer::Verifying { node: session.node })
            }
            _ => {
                self.planner.want_session(branch, self.now);
                Err(AdminRefusal::NotReady { name: name.to_owned() })
            }
        }
    }
}

/// Deleting, and what was deleted.
fn trash_command(state: &MetaState, request: AdminRequest) -> Result<Op, AdminRefusal> {
    match request {
        AdminRequest::VolumeDelete { name, force, with_snapshots, now, despite_clones } => {
            let volume = find_volume(state, &name)?;
            let rests = !now && (despite_clones || state.settings().trash_ms > 0);
            Ok(if rests {
                Op::VolumeTrash { volume, force, with_snapshots, despite_clones }
            } else {
                Op::VolumeDelete { volume, force, with_snapshots }
            })
        }
        AdminRequest::VolumeRestore { name, to } => {
            let volume = state.find_trashed(&name)?;
            let name = to.unwrap_or_else(|| state.trash()[&volume].volume.name.clone());
            Ok(Op::VolumeRestore { volume, name })
        }
        AdminRequest::VolumePurge { name } => {
            Ok(Op::VolumePurge { volume: state.find_trashed(&name)?, early: true })
        }
        _ => unreachable!("only these are ordered here"),
    }
}

/// Orders about one snapshot that is there.
fn snapshot_command(state: &MetaState, request: AdminRequest) -> Result<Op, AdminRefusal> {
    match request {
        AdminRequest::SnapshotDelete { name } => {
            let ((branch, generation), name) = find_snapshot(state, &name)?;
            Ok(Op::SnapshotDelete { branch, generation, name })
        }
        AdminRequest::SnapshotRename { name, to } => {
            let ((branch, generation), from) = find_snapshot(state, &name)?;
            Ok(Op::SnapshotRename { branch, generation, from, to })
        }
        AdminRequest::SnapshotProtect { name, until_ms, force } => {
            let ((branch, generation), name) = find_snapshot(state, &name)?;
            Ok(Op::SnapshotProtect { branch, generation, name, until_ms, force })
        }
        AdminRequest::SnapshotLabel { name, set, remove } => {
            let ((branch, generation), name) = find_snapshot(state, &name)?;
            Ok(Op::SnapshotLabel { branch, generation, name, set, remove })
        }
        _ => unreachable!("only these are ordered here"),
    }
}

/// Of the drives, so many take new replicas.
pub(crate) fn too_few(state: &MetaState, copies: u8, few: TooFew, taking: usize) -> AdminRefusal {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let usable = state.drives().keys().filter(|d| !state.drive_down(**d)).count();
    AdminRefusal::TooFewDomains {
        need: copies,
        have: few.have,
        nodes: count(state.nodes().len()),
        full: count(usable.saturating_sub(taking)),
    }
}

enum Decided {
    Answer(AdminAnswer),
    Command(Op),
}

/// Nodes and zones of these drives.
pub(crate) fn homes(state: &MetaState, drives: &[DriveId]) -> (Vec<NodeId>, Vec<String>) {
    let nodes: Vec<NodeId> = drives.iter().filter_map(|d| state.drives().get(d)).map(|d| d.node).collect();
    let zones = nodes.iter().filter_map(|n| state.nodes().get(n)).map(|n| n.zone.clone()).collect();
    (nodes, zones)
}

/// By its name, or as `n3`.
pub(crate) fn find_node(state: &MetaState, word: &str) -> Result<NodeId, AdminRefusal> {
    let by_number = || {
        let id = NodeId(word.strip_prefix('n')?.parse().ok()?);
        state.nodes().contains_key(&id).then_some(id)
    };
    state
        .node_named(word)
        .or_else(by_number)
        .ok_or_else(|| AdminRefusal::NotFound { noun: Noun::Node, name: word.to_owned() })
}

pub(crate) fn find_volume(state: &MetaState, name: &str) -> Result<VolumeId, AdminRefusal> {
    state
        .volume_named(name)
        .map(|(id, _)| id)
        .ok_or_else(|| AdminRefusal::NotFound { noun: Noun::Volume, name: name.to_owned() })
}

/// Its key and its name.
pub(crate) fn find_snapshot(
    state: &MetaState,
    name: &SnapshotName,
) -> Result<((BranchId, Generation), String), AdminRefusal> {
    let volume = find_volume(state, &name.volume)?;
    let found = state.snapshot_named(volume, &name.snapshot).filter(|(_, s)| !s.hidden);
    let full = || format!("{}@{}", name.volume, name.snapshot);
    let (key, row) = found.ok_or_else(|| AdminRefusal::NotFound { noun: Noun::Snapshot, name: full() })?;
    Ok((key, row.name.clone()))
}

fn summaries(state: &MetaState, name: Option<&str>) -> Vec<VolumeSummary> {
    let summary = |id: VolumeId| {
        let volume = &state.volumes()[&id];
        let row = &state.branches()[&volume.branch];
        VolumeSummary {
            volume: id,
            branch: volume.branch,
            name: volume.name.clone(),
            geometry: row.geometry,
            ready: row.phase != Phase::Creating,
        }
    };
    match name {
        Some(name) => state.volume_named(name).map(|(id, _)| summary(id)).into_iter().collect(),
        None => state.volumes().keys().map(|id| summary(*id)).collect(),
    }
}
