//! What blockctl shows: plain data, made by functions of the state and of what nodes last said.

use crate::event::Severity;
use crate::model::{Class, Phase, Quota};
use proto::control::{SessionKind, SessionState};
use proto::{BranchId, ClusterId, DriveId, Epoch, Generation, JobId, NodeId, VolumeId};
use schedule::Retention;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Health {
    Ok,
    Warn,
    Err,
}
impl Health {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Health::Ok => "HEALTH_OK",
            Health::Warn => "HEALTH_WARN",
            Health::Err => "HEALTH_ERR",
        }
    }
}

/// Something that is not well.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HealthCheck {
    pub health: Health,
    /// Stable, like `NODE_DOWN`.
    pub code: String,
    pub text: String,
    /// Unix ms, where known.
    pub since_ms: Option<u64>,
    /// What is being done about it.
    pub action: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterView {
    pub id: ClusterId,
    pub name: String,
    pub health: Health,
    pub checks: Vec<HealthCheck>,
    /// All data survives, and can be written, when any one node is lost.
    pub survives_one_node: bool,
    pub nodes: u32,
    pub nodes_up: u32,
    pub drives: u32,
    pub drives_up: u32,
    pub volumes: u32,
    pub volumes_unwell: u32,
    /// Bytes of all drives.
    pub capacity: u64,
    pub used: u64,
    /// Sum of the volumes' sizes.
    pub provisioned: u64,
    /// Resync under way: bytes left, bytes per second.
    pub resync_left: u64,
    pub resync_rate: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeView {
    pub node: NodeId,
    pub name: String,
    pub zone: String,
    pub address: String,
    pub up: bool,
    pub down_since_ms: Option<u64>,
    pub draining: bool,
    pub drives: Vec<DriveId>,
    pub replicas: u64,
    pub sessions: u32,
    pub capacity: u64,
    pub used: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DriveView {
    pub drive: DriveId,
    pub node: NodeId,
    pub node_name: String,
    pub path: String,
    /// `up`, `down`, `draining`, `stranger`, `unconfirmed`.
    pub state: String,
    pub down_since_ms: Option<u64>,
    pub capacity: u64,
    pub used: u64,
    pub replicas: u64,
    pub volumes: u32,
}

/// Replicas of a volume that are not in-sync, by drive.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FaultView {
    pub drive: DriveId,
    pub node: NodeId,
    pub node_name: String,
    pub chunks: u32,
    pub why: String,
    pub since_ms: Option<u64>,
    /// What is being done.
    pub action: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionView {
    pub node: NodeId,
    pub node_name: String,
    pub kind: SessionKind,
    pub epoch: Epoch,
    pub since_ms: u64,
    pub node_up: bool,
    /// From its heartbeat.
    pub state: Option<SessionState>,
    pub waiting: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeView {
    pub volume: VolumeId,
    pub branch: BranchId,
    pub name: String,
    pub size: u64,
    pub chunk_bytes: u64,
    pub chunks: u32,
    pub class: Class,
    pub phase: Phase,
    pub created_ms: u64,
    /// `healthy`, `degraded`, `creating`, `growing`.
    pub state: String,
    pub unwell_chunks: u32,
    /// Fewest in-sync replicas of any chunk.
    pub least_in_sync: u8,
    pub unwell_since_ms: Option<u64>,
    pub faults: Vec<FaultView>,
    pub session: Option<SessionView>,
    /// Bytes to compare or move; moved since the volume ceased to be whole (the figure stays when it is whole
    /// again); per second.
    pub resync_left: u64,
    pub resync_moved: u64,
    pub resync_rate: u64,
    /// Where the replicas are, with the number of chunks.
    pub drives: Vec<(NodeId, DriveId, u32)>,
    /// Names, oldest first.
    pub snapshots: Vec<String>,
    /// What it reads where it has not been written: a snapshot, or a volume as it once was.
    pub parent: Option<String>,
    /// Attached ones, by name.
    pub policies: Vec<String>,
    pub quota: Option<Quota>,
}
impl VolumeView {
    /// Until full redundancy, seconds, if something moves.
    #[must_use]
    pub fn resync_seconds(&self) -> Option<u64> {
        (self.resync_left > 0 && self.resync_rate > 0).then(|| self.resync_left.div_ceil(self.resync_rate))
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotView {
    pub volume: String,
    pub name: String,
    pub id: u128,
    pub branch: BranchId,
    pub generation: Generation,
    /// Bytes of the volume at that time.
    pub size: u64,
    pub sealed: bool,
    pub created_ms: u64,
    /// Equal for those that were sealed at one moment; 0: it was alone.
    pub group: u64,
    pub labels: BTreeMap<String, String>,
    /// 0: not protected.
    pub protect_until_ms: u64,
    pub clones: Vec<String>,
    /// What made it; none: an order by hand.
    pub policy: Option<String>,
    /// Drives that have not confirmed the newest list of the volume's snapshots.
    pub unconfirmed: u32,
}

/// What a volume takes. All in bytes, in whole extents of 64 KiB: one block written takes one.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SpaceView {
    pub volume: VolumeId,
    pub name: String,
    pub size: u64,
    /// All is counted, or known to be missing. The figures are parts of what they will be until then.
    pub finished: bool,
    /// Others are counted first.
    pub waiting: bool,
    /// So often it began anew, for snapshots came or went.
    pub again: u32,
    /// Chunks of all of the volume's branches; counted so far, or known to be missing.
    pub chunks: u64,
    pub chunks_done: u64,
    /// No in-sync replica of these could be asked: they are in none of the figures of one copy.
    pub chunks_missing: u64,
    /// Replicas counted; and those that are in no figure of all copies.
    pub replicas: u64,
    pub replicas_missing: u64,
    /// By the volume as it is now.
    pub head: ViewBytes,
    /// By its snapshots, and what clones need; those of older branches first, then the oldest. When it is finished.
    pub views: Vec<ViewSpace>,
    /// One copy: all that it takes; of that seen by nobody, and not freed yet.
    pub taken: u64,
    pub unseen: u64,
    /// The same of all copies.
    pub taken_all: u64,
    pub unseen_all: u64,
    /// What it reads where it has not been written. Counts where it is.
    pub parent: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ViewBytes {
    /// Of which it sees something.
    pub seen: u64,
    /// And nobody else does.
    pub exclusive: u64,
}

/// A snapshot, or a state that has no name and is kept for a clone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ViewSpace {
    pub name: Option<String>,
    pub branch: BranchId,
    pub generation: Generation,
    pub seen: u64,
    pub exclusive: u64,
    /// What its deletion alone frees: nothing, if somebody reads from it.
    pub frees: u64,
    /// Volumes that read from it, some.
    pub clones: Vec<String>,
    /// The volume itself went back to it, and reads from it.
    pub own: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JobView {
    pub job: JobId,
    pub kind: String,
    pub volume: String,
    pub state: String,
    pub started_ms: u64,
    /// 0: it has not.
    pub ended_ms: u64,
    /// Bytes looked at, of all; 0 of 0 where no session works at it.
    pub done: u64,
    pub total: u64,
    /// Why it does not go on; empty: it does, or has ended.
    pub trouble: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyView {
    pub name: String,
    pub schedules: Vec<String>,
    pub jitter_ms: u64,
    pub retention: Retention,
    /// Snapshots of a volume that it comes to keep.
    pub keeps: u64,
    pub created_ms: u64,
    pub volumes: Vec<PolicyVolume>,
}
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyVolume {
    pub name: String,
    /// The last slot that was run.
    pub ran_ms: Option<u64>,
    /// When the next run is; or when the one was due that is late.
    pub next_ms: u64,
    pub late: bool,
}

/// Replicas on a drive that nobody needs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OrphanView {
    pub drive: DriveId,
    pub node: NodeId,
    pub node_name: String,
    /// As `DriveView` has it.
    pub state: String,
    pub down_since_ms: Option<u64>,
    /// Its node has not said yet that these are erased.
    pub to_erase: u64,
    /// Never placed by this cluster's metads; left alone.
    pub unknown: u32,
}

/// A deleted volume that can be restored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TrashView {
    pub volume: VolumeId,
    pub name: String,
    pub size: u64,
    pub snapshots: u32,
    pub trashed_ms: u64,
    pub until_ms: u64,
    /// Volumes that read from it: it rests until they are gone.
    pub clones: Vec<String>,
}

/// One line of `volume list`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeLine {
    pub volume: VolumeId,
    pub branch: BranchId,
    pub name: String,
    pub size: u64,
    pub copies: u8,
    pub state: String,
    pub unwell_chunks: u32,
    pub attached: Option<NodeId>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventView {
    pub number: u64,
    pub at_ms: u64,
    pub severity: Severity,
    /// The kind's name, like `NodeDown`.
    pub kind: String,
    pub text: String,
}

/// What `volume wait --state` waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum WaitFor {
    /// Records are made: it can be attached.
    Ready,
    /// Every chunk has all copies in-sync.
    Healthy,
    Attached,
    Detached,
    Deleted,
}
impl WaitFor {
    #[must_use]
    pub fn parse(word: &str) -> Option<WaitFor> {
        Some(match word {
            "ready" => WaitFor::Ready,
            "healthy" => WaitFor::Healthy,
            "attached" => WaitFor::Attached,
            "detached" => WaitFor::Detached,
            "deleted" => WaitFor::Deleted,
            _ => return None,
        })
    }
}
