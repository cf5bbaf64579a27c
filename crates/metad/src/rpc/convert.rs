//! `meta`'s views as protobuf.

use api::v1;
use meta::view::{
    ClusterView, DriveView, EventView, FaultView, Health, JobView, NodeView, OrphanView, SessionView,
    TrashView, VolumeLine, VolumeView,
};
use proto::control::{SessionKind, SessionState};
use proto::{ChunkIndex, Configuration, MemberState, RequestId};
use tonic::Status;

pub fn sixteen(what: &str, bytes: &[u8]) -> Result<[u8; 16], Status> {
    bytes.try_into().map_err(|_| Status::invalid_argument(format!("{what} must have 16 bytes")))
}

/// The id of a request that changes something; empty: it has none.
pub fn request_id(bytes: &[u8]) -> Result<Option<RequestId>, Status> {
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some(RequestId(u128::from_be_bytes(sixteen("request", bytes)?))))
}

fn health(h: Health) -> i32 {
    match h {
        Health::Ok => v1::Health::Ok,
        Health::Warn => v1::Health::Warn,
        Health::Err => v1::Health::Err,
    }
    .into()
}

/// The cluster as `meta` sees it, and its metads as their leader sees them.
pub fn status(
    v: ClusterView,
    metad: v1::MetadAnswer,
    (mut checks, metads_survive): (Vec<v1::Check>, bool),
) -> v1::ClusterStatus {
    let check = |c: meta::view::HealthCheck| v1::Check {
        health: health(c.health),
        code: c.code,
        text: c.text,
        since_ms: c.since_ms,
        action: c.action,
    };
    let worst = checks.iter().map(|c| c.health).max().unwrap_or_default();
    checks.extend(v.checks.into_iter().map(check));
    v1::ClusterStatus {
        health: health(v.health).max(worst),
        checks,
        survives_one_node: v.survives_one_node && metads_survive,
        cluster: v.id.0.to_be_bytes().to_vec(),
        name: v.name,
        metad: Some(metad),
        nodes: v.nodes,
        nodes_up: v.nodes_up,
        drives: v.drives,
        drives_up: v.drives_up,
        volumes: v.volumes,
        volumes_unwell: v.volumes_unwell,
        capacity: v.capacity,
        used: v.used,
        provisioned: v.provisioned,
        resync_left: v.resync_left,
        resync_rate: v.resync_rate,
    }
}

pub fn job(j: JobView) -> v1::Job {
    v1::Job {
        id: j.job.0,
        kind: j.kind,
        volume: j.volume,
        state: j.state,
        started_ms: j.started_ms,
        ended_ms: j.ended_ms,
        done: j.done,
        total: j.total,
        trouble: j.trouble,
    }
}

pub fn node(v: NodeView) -> v1::Node {
    v1::Node {
        id: v.node.0,
        name: v.name,
        zone: v.zone,
        data_address: v.address,
        up: v.up,
        down_since_ms: v.down_since_ms,
        draining: v.draining,
        drives: v.drives.into_iter().map(|d| d.0).collect(),
        replicas: v.replicas,
        sessions: v.sessions,
        capacity: v.capacity,
        used: v.used,
    }
}

pub fn drive(v: DriveView) -> v1::Drive {
    v1::Drive {
        id: v.drive.0,
        node: v.node.0,
        node_name: v.node_name,
        path: v.path,
        state: v.state,
        down_since_ms: v.down_since_ms,
        capacity: v.capacity,
        used: v.used,
        replicas: v.replicas,
        volumes: v.volumes,
    }
}

pub fn event(v: EventView) -> v1::Event {
    let severity = match v.severity {
        meta::event::Severity::Info => "info",
        meta::event::Severity::Warning => "warn",
        meta::event::Severity::Error => "error",
    };
    v1::Event { number: v.number, time_ms: v.at_ms, severity: severity.into(), kind: v.kind, text: v.text }
}

pub fn line(v: VolumeLine) -> v1::VolumeLine {
    v1::VolumeLine {
        id: v.volume.0,
        branch: v.branch.0,
        name: v.name,
        size: v.size,
        copies: v.copies.into(),
        state: v.state,
        unwell_chunks: v.unwell_chunks,
        attached: v.attached.map_or(0, |n| n.0),
    }
}

fn fault(v: FaultView) -> v1::Fault {
    v1::Fault {
        drive: v.drive.0,
        node: v.node.0,
        node_name: v.node_name,
        chunks: v.chunks,
        why: v.why,
        since_ms: v.since_ms,
        action: v.action,
    }
}

fn session(v: SessionView) -> v1::Session {
    let kind = match v.kind {
        SessionKind::Guest => v1::SessionKind::Guest,
        SessionKind::Maintenance => v1::SessionKind::Maintenance,
    };
    let state = match v.state {
        None => v1::SessionState::Unspecified,
        Some(SessionState::Opening) => v1::SessionState::Opening,
        Some(SessionState::Serving) => v1::SessionState::Serving,
        Some(SessionState::Closing) => v1::SessionState::Closing,
    };
    v1::Session {
        node: v.node.0,
        node_name: v.node_name,
        epoch: v.epoch.0,
        kind: kind.into(),
        state: state.into(),
        node_up: v.node_up,
        since_ms: v.since_ms,
        waiting: v.waiting.unwrap_or_default(),
    }
}

pub fn volume(v: VolumeView) -> v1::Volume {
    v1::Volume {
        id: v.volume.0,
        branch: v.branch.0,
        name: v.name,
        size: v.size,
        chunk_bytes: v.chunk_bytes,
        chunks: v.chunks,
        copies: v.class.copies.into(),
        min_in_sync: v.class.min_in_sync.into(),
        write_through: v.class.write_through,
        wait_when_degraded: v.class.wait_when_degraded,
        state: v.state,
        unwell_chunks: v.unwell_chunks,
        least_in_sync: v.least_in_sync.into(),
        unwell_since_ms: v.unwell_since_ms,
        faults: v.faults.into_iter().map(fault).collect(),
        session: v.session.map(session),
        resync: Some(v1::ResyncProgress {
            left_bytes: v.resync_left,
            moved_bytes: v.resync_moved,
            rate: v.resync_rate,
        }),
        created_ms: v.created_ms,
        shares: v
            .drives
            .into_iter()
            .map(|(node, drive, chunks)| v1::Share { node: node.0, drive: drive.0, chunks })
            .collect(),
        snapshots: v.snapshots,
        parent: v.parent.unwrap_or_default(),
        policies: v.policies,
        snapshot_quota: v.quota.map(|q| q.most),
        quota_manual_only: v.quota.is_some_and(|q| q.manual_only),
    }
}

pub fn orphan(v: OrphanView) -> v1::Orphans {
    v1::Orphans {
        drive: v.drive.0,
        node: v.node.0,
        node_name: v.node_name,
        state: v.state,
        down_since_ms: v.down_since_ms,
        to_erase: v.to_erase,
        unknown: v.unknown,
    }
}

pub fn trashed(v: TrashView) -> v1::TrashedVolume {
    v1::TrashedVolume {
        id: v.volume.0,
        name: v.name,
        size: v.size,
        snapshots: v.snapshots,
        trashed_ms: v.trashed_ms,
        until_ms: v.until_ms,
        clones: v.clones,
    }
}

pub fn chunk(state: &meta::MetaState, index: ChunkIndex, c: &Configuration) -> v1::Chunk {
    let replica = |m: &proto::Member| v1::Replica {
        node: m.place.node.0,
        drive: m.place.drive.0,
        incarnation: m.place.incarnation.0,
        state: match m.state {
            MemberState::InSync => v1::ReplicaState::InSync,
            MemberState::Stale => v1::ReplicaState::Stale,
            MemberState::Leaving => v1::ReplicaState::Leaving,
        }
        .into(),
        up: !state.drive_down(m.place.drive),
        node_name: state.node_name(m.place.node),
    };
    v1::Chunk { index: index.0, number: c.number.0, replicas: c.members.iter().map(replica).collect() }
}
