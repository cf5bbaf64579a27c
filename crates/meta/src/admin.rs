//! What operators ask, and what they hear. The edge translates these to and from gRPC.

use crate::model::Class;
use crate::view::{ClusterView, DriveView, EventView, NodeView, VolumeLine, VolumeView, WaitFor};
use proto::{ClusterId, DriveId, NodeId, ProcessNumber, RequestId, VolumeId};
use serde::{Deserialize, Serialize};

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
    },
    /// Compare all replicas; needs a session (one is appointed if there is none).
    VolumeVerify {
        name: String,
        request: RequestId,
    },
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
}
