//! What operators ask, and what they hear. The edge translates these to and from gRPC.

use crate::model::{Class, Quota};
use crate::view::{
    ClusterView, DriveView, EventView, JobView, NodeView, OrphanView, PolicyView, SnapshotView, SpaceView,
    TrashView, VolumeLine, VolumeView, WaitFor,
};
use proto::{BranchId, ClusterId, DriveId, Generation, JobId, NodeId, ProcessNumber, RequestId, VolumeId};
use schedule::Retention;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A volume may get smaller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shrink {
    /// Whatever is written beyond the new end is given up.
    pub discard: bool,
}

/// Reads too: the edge hands a read on only after it made sure that this metad is the leader and has
/// applied everything committed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AdminRequest {
    // The cluster. `cluster` and `token` are random, made by the edge.
    ClusterInit {
        cluster: ClusterId,
        name: String,
        token: String,
    },
    ClusterStatus,
    SettingsGet,
    SettingSet {
        key: String,
        value: String,
    },
    /// Newest last; `after`: only later ones.
    Events {
        after: u64,
        limit: usize,
    },

    // Nodes and drives. A node is named by its name or as `n3`.
    NodeAdd {
        name: String,
        zone: String,
        address: String,
        /// Of its state directory; 0: whichever registers first.
        identity: u128,
        token: Option<String>,
    },
    /// A process of a node that was added before.
    NodeRegister {
        node: NodeId,
        zone: String,
        address: String,
        identity: u128,
        process: ProcessNumber,
    },
    NodeList,
    NodeShow {
        node: String,
    },
    NodeDrain {
        node: String,
        drain: bool,
    },
    NodeRemove {
        node: String,
    },
    DriveAdd {
        node: NodeId,
        drive: DriveId,
        capacity: u64,
        path: String,
    },
    DriveList,
    DriveShow {
        drive: DriveId,
    },
    DriveRetire {
        drive: DriveId,
        retire: bool,
    },
    DriveRemove {
        drive: DriveId,
    },

    // Volumes.
    VolumeCreate {
        name: String,
        size: u64,
        /// log2 of bytes; none: the default.
        chunk_shift: Option<u8>,
        class: Class,
        /// Place the first replicas here if it fits.
        prefer: Option<NodeId>,
    },
    VolumeList,
    VolumeShow {
        name: String,
    },
    VolumeWait {
        name: String,
        state: WaitFor,
    },
    VolumeResize {
        name: String,
        size: u64,
        /// It may get smaller: by a job.
        shrink: Option<Shrink>,
    },
    /// Let its clients connect anew, to learn its size; only as soon as its session knows that.
    VolumeReconnect {
        name: String,
    },
    VolumeRename {
        name: String,
        to: String,
    },
    VolumeClass {
        name: String,
        class: Class,
    },
    VolumeDelete {
        name: String,
        force: Option<String>,
        with_snapshots: bool,
        /// Not to the trash first.
        now: bool,
        /// To the trash, to rest until nobody reads from it.
        despite_clones: bool,
    },
    /// Replicas on drives that nobody needs.
    OrphanList,
    /// What rests in the trash.
    TrashList,
    /// By its name, the one deleted last, or by its id.
    VolumeRestore {
        name: String,
        /// None: the one that it had.
        to: Option<String>,
    },
    /// Erase it before its time.
    VolumePurge {
        name: String,
    },
    /// Compare all replicas; needs a session (one is appointed if there is none).
    VolumeVerify {
        name: String,
        request: RequestId,
    },
    /// What it takes: begins to count, or tells how far that is. By the request it is known which.
    VolumeSpace {
        name: String,
        request: RequestId,
    },

    // Clones.
    /// A volume that reads what it has not written from a snapshot; of none: from the volume as it is now.
    VolumeClone {
        source: String,
        snapshot: Option<String>,
        name: String,
        /// None: the source's.
        size: Option<u64>,
        /// None: the source's.
        class: Option<Class>,
        prefer: Option<NodeId>,
        /// Random: names the fork point.
        id: u128,
    },
    VolumeRollback {
        name: SnapshotName,
        /// Random: names the snapshot that is made of the volume first; none: it is not.
        safety: Option<u128>,
    },

    /// A clone is written out until it needs its parent no more: a job.
    VolumeFlatten {
        name: String,
    },

    // Jobs: the newest last.
    JobList,
    JobShow {
        job: JobId,
    },
    JobCancel {
        job: JobId,
    },

    // Policies.
    PolicyCreate {
        name: String,
        schedules: Vec<String>,
        jitter_ms: u64,
        retention: Retention,
    },
    /// All, or one.
    PolicyList {
        name: Option<String>,
    },
    PolicyDelete {
        name: String,
    },
    PolicyAttach {
        name: String,
        volume: String,
    },
    PolicyDetach {
        name: String,
        volume: String,
    },
    /// How many snapshots a volume may have; none: as many as there can be.
    VolumeQuota {
        name: String,
        quota: Option<Quota>,
    },

    // Snapshots.
    /// Several: a group, sealed at one moment. Answered when all are sealed.
    SnapshotCreate {
        items: Vec<SnapshotOrder>,
        labels: BTreeMap<String, String>,
        protect_until_ms: u64,
    },
    /// Of one volume, or all.
    SnapshotList {
        volume: Option<String>,
    },
    SnapshotShow {
        name: SnapshotName,
    },
    SnapshotDelete {
        name: SnapshotName,
    },
    SnapshotRename {
        name: SnapshotName,
        to: String,
    },
    SnapshotProtect {
        name: SnapshotName,
        until_ms: u64,
        force: Option<String>,
    },
    SnapshotLabel {
        name: SnapshotName,
        set: BTreeMap<String, String>,
        remove: BTreeSet<String>,
    },
}

/// `volume@snapshot`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct SnapshotName {
    pub volume: String,
    pub snapshot: String,
}

/// One snapshot to be made; `id` is random.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotOrder {
    pub name: SnapshotName,
    pub id: u128,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AdminAnswer {
    Done,
    ClusterCreated {
        cluster: ClusterId,
        token: String,
    },
    Cluster(Box<ClusterView>),
    /// Key and value.
    Settings(Vec<(String, String)>),
    Events(Vec<EventView>),
    NodeAdded {
        node: NodeId,
        cluster: ClusterId,
    },
    Nodes(Vec<NodeView>),
    Drives(Vec<DriveView>),
    VolumeCreated {
        volume: VolumeId,
    },
    Volumes(Vec<VolumeLine>),
    Volume(Box<VolumeView>),
    /// `VolumeWait`: whether it is so now.
    Waited(bool),
    /// `VolumeVerify`: the node whose session does it.
    Verifying {
        node: NodeId,
    },
    /// `VolumeSpace`, as far as it is.
    Space(Box<SpaceView>),
    /// `SnapshotCreate` is in Raft: for the service, which waits until these are sealed.
    SnapshotsMade {
        keys: Vec<(BranchId, Generation)>,
    },
    Snapshots(Vec<SnapshotView>),
    JobStarted {
        job: JobId,
    },
    Jobs(Vec<JobView>),
    /// `VolumeDelete`: it rests until then.
    Trashed {
        until_ms: u64,
    },
    Trash(Vec<TrashView>),
    Policies(Vec<PolicyView>),
    Orphans(Vec<OrphanView>),
}
