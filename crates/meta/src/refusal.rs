//! Why an operator's order is refused: what, which object, why, and what to do next.

use crate::name::NameFault;
use proto::date::show_date;
use proto::{ClusterId, DriveId, Epoch, NodeId, VolumeId};
use serde::{Deserialize, Serialize};

/// Objects that can be missing, or there already.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Noun {
    Volume,
    Node,
    Drive,
    Snapshot,
    Job,
    /// A deleted volume.
    Trashed,
    Policy,
}
impl Noun {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Noun::Volume => "volume",
            Noun::Node => "node",
            Noun::Drive => "drive",
            Noun::Snapshot => "snapshot",
            Noun::Job => "job",
            Noun::Trashed => "deleted volume",
            Noun::Policy => "policy",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AdminRefusal {
    // The cluster.
    NoCluster,
    ClusterExists {
        name: String,
    },
    BadToken,
    UnknownSetting {
        key: String,
        known: Vec<String>,
    },
    BadSetting {
        key: String,
        value: String,
        low: String,
        high: String,
    },
    // What was typed.
    BadName {
        name: String,
        fault: NameFault,
    },
    BadSize {
        size: u64,
        nearest: u64,
    },
    BadChunkSize {
        low: u64,
        high: u64,
    },
    BadCopies {
        copies: u32,
        most: u8,
    },
    BadMinInSync {
        min_in_sync: u32,
        copies: u8,
    },
    // Objects.
    NotFound {
        noun: Noun,
        name: String,
    },
    Exists {
        noun: Noun,
        name: String,
    },
    // Nodes and drives.
    HoldsReplicas {
        noun: Noun,
        name: String,
        replicas: u64,
    },
    NotDrained {
        noun: Noun,
        name: String,
    },
    HoldsSessions {
        name: String,
        sessions: u64,
    },
    NodeUp {
        name: String,
    },
    OtherNode {
        drive: DriveId,
        node: NodeId,
        name: String,
    },
    StrangerDrive {
        drive: DriveId,
    },
    // Volumes.
    Attached {
        name: String,
        node: NodeId,
        node_name: String,
        epoch: Epoch,
    },
    NotReady {
        name: String,
    },
    Shrink {
        name: String,
        size: u64,
        to: u64,
    },
    /// The volume changed between the look and the order.
    Changed {
        name: String,
    },
    /// Not so many failure domains with a drive that takes new replicas. `have`/`need` count nodes.
    TooFewDomains {
        need: u8,
        have: u32,
        nodes: u32,
        full: u32,
    },
    /// A drive of the placement went away meanwhile; the order can be repeated.
    PlacementOutdated,
    /// The order may or may not have been carried out: the leader changed meanwhile.
    OutcomeUnknown,
    /// Another state directory is this node already.
    OtherProcess {
        name: String,
        node: NodeId,
        /// Where the known one is, and the one that asks.
        known: String,
        address: String,
        up: bool,
    },
    /// The node says another cluster's id, or none.
    OtherCluster {
        node: NodeId,
        /// Its word; none: it named no cluster.
        said: Option<ClusterId>,
        cluster: ClusterId,
    },
    // Snapshots. Names are `volume@snapshot`, but of volumes.
    /// Another seal of the volume is under way.
    SealBusy {
        name: String,
    },
    /// These were not sealed in time.
    SealCalledOff {
        names: Vec<String>,
    },
    /// Sessions of these volumes were not heard, or do not serve yet.
    GroupNotReady {
        names: Vec<String>,
    },
    NotSealed {
        name: String,
    },
    /// It got another name between the look and the order.
    SnapshotChanged {
        name: String,
    },
    Protected {
        name: String,
        until_ms: u64,
    },
    /// A protection that is to be made shorter.
    ProtectedLonger {
        name: String,
        until_ms: u64,
    },
    HasSnapshots {
        name: String,
        count: u64,
        /// The first ones.
        snapshots: Vec<String>,
    },
    HasClones {
        name: String,
        clones: Vec<String>,
    },
    TooManySnapshots {
        name: String,
        most: u64,
    },
    BadGroup {
        most: u64,
    },
    BadLabel {
        key: String,
    },
    /// A clone that is to be smaller than what it is made of.
    CloneSmaller {
        name: String,
        size: u64,
        to: u64,
    },
    /// Nothing of it is read from a parent.
    NotAClone {
        name: String,
    },
    /// It has ended.
    JobOver {
        name: String,
        state: String,
    },
    /// The volume's quota allows fewer snapshots than there would be.
    PolicyConflict {
        policy: String,
        name: String,
        needs: u64,
        most: u32,
    },
    QuotaFull {
        name: String,
        most: u32,
        by_hand: u64,
        /// For policies.
        reserved: u64,
    },
    PolicyInUse {
        name: String,
        volumes: Vec<String>,
    },
    PolicyNotAttached {
        policy: String,
        name: String,
    },
    BadPolicy {
        name: String,
        why: String,
    },
    /// The name of a deleted volume is another one's by now.
    RestoreTaken {
        name: String,
        volume: VolumeId,
    },
    /// In the trash: the name of one volume, and the id of another.
    AmbiguousTrashed {
        word: String,
        other: String,
    },
    /// A blockd of another version than metad.
    OtherControl {
        said: u32,
        known: u32,
    },
    /// As `Attached`, for orders that no force carries out.
    InUse {
        name: String,
        node: NodeId,
        node_name: String,
        epoch: Epoch,
    },
    /// What it has not written itself is its parent's, also beyond the new end.
    ShrinkClone {
        name: String,
        parent: String,
    },
    /// It and this cannot be together.
    JobRuns {
        name: String,
        job: String,
        kind: String,
    },
}

/// Exit codes of `blockctl` (operations.md).
pub mod exit {
    pub const FAILURE: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const NOT_FOUND: u8 = 3;
    pub const EXISTS: u8 = 4;
    pub const STATE: u8 = 5;
    pub const PERMISSION: u8 = 6;
    pub const FULL: u8 = 7;
    pub const PRECONDITION: u8 = 8;
    pub const UNREACHABLE: u8 = 20;
    pub const UNKNOWN_OUTCOME: u8 = 21;
}

impl AdminRefusal {
    /// Stable number, shown as `E1203`.
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            AdminRefusal::NoCluster => 1001,
            AdminRefusal::ClusterExists { .. } => 1002,
            AdminRefusal::BadToken => 1003,
            AdminRefusal::UnknownSetting { .. } => 1004,
            AdminRefusal::BadSetting { .. } => 1005,
            AdminRefusal::BadName { .. } => 1006,
            AdminRefusal::NotFound { .. } => 1007,
            AdminRefusal::Exists { .. } => 1008,
            AdminRefusal::OutcomeUnknown => 1009,
            AdminRefusal::HoldsReplicas { .. } => 1101,
            AdminRefusal::NotDrained { .. } => 1102,
            AdminRefusal::HoldsSessions { .. } => 1103,
            AdminRefusal::NodeUp { .. } => 1104,
            AdminRefusal::OtherNode { .. } => 1105,
            AdminRefusal::StrangerDrive { .. } => 1106,
            AdminRefusal::OtherProcess { .. } => 1107,
            AdminRefusal::OtherCluster { .. } => 1108,
            AdminRefusal::OtherControl { .. } => 1109,
            AdminRefusal::SealBusy { .. } => 1401,
            AdminRefusal::SealCalledOff { .. } => 1402,
            AdminRefusal::GroupNotReady { .. } => 1403,
            AdminRefusal::NotSealed { .. } => 1404,
            AdminRefusal::SnapshotChanged { .. } => 1405,
            AdminRefusal::Protected { .. } | AdminRefusal::ProtectedLonger { .. } => 1406,
            AdminRefusal::HasSnapshots { .. } => 1407,
            AdminRefusal::HasClones { .. } => 1408,
            AdminRefusal::TooManySnapshots { .. } => 1409,
            AdminRefusal::BadGroup { .. } => 1410,
            AdminRefusal::BadLabel { .. } => 1411,
            AdminRefusal::CloneSmaller { .. } => 1501,
            AdminRefusal::NotAClone { .. } => 1502,
            AdminRefusal::JobOver { .. } => 1503,
            AdminRefusal::RestoreTaken { .. } => 1504,
            AdminRefusal::AmbiguousTrashed { .. } => 1505,
            AdminRefusal::JobRuns { .. } => 1506,
            AdminRefusal::ShrinkClone { .. } => 1507,
            AdminRefusal::PolicyConflict { .. } => 1601,
            AdminRefusal::QuotaFull { .. } => 1602,
            AdminRefusal::PolicyInUse { .. } => 1603,
            AdminRefusal::PolicyNotAttached { .. } => 1604,
            AdminRefusal::BadPolicy { .. } => 1605,
            AdminRefusal::BadSize { .. } => 1201,
            AdminRefusal::BadChunkSize { .. } => 1202,
            AdminRefusal::Attached { .. } | AdminRefusal::InUse { .. } => 1203,
            AdminRefusal::NotReady { .. } => 1204,
            AdminRefusal::Shrink { .. } => 1205,
            AdminRefusal::Changed { .. } => 1206,
            AdminRefusal::TooFewDomains { .. } => 1207,
            AdminRefusal::PlacementOutdated => 1208,
            AdminRefusal::BadCopies { .. } => 1209,
            AdminRefusal::BadMinInSync { .. } => 1210,
        }
    }

    #[must_use]
    pub fn exit(&self) -> u8 {
        match self {
            AdminRefusal::UnknownSetting { .. }
            | AdminRefusal::BadSetting { .. }
            | AdminRefusal::BadName { .. }
            | AdminRefusal::BadSize { .. }
            | AdminRefusal::BadChunkSize { .. }
            | AdminRefusal::BadCopies { .. }
            | AdminRefusal::BadMinInSync { .. }
            | AdminRefusal::BadGroup { .. }
            | AdminRefusal::CloneSmaller { .. }
            | AdminRefusal::BadPolicy { .. }
            | AdminRefusal::BadLabel { .. } => exit::USAGE,
            AdminRefusal::NotFound { .. } | AdminRefusal::PolicyNotAttached { .. } => exit::NOT_FOUND,
            AdminRefusal::ClusterExists { .. }
            | AdminRefusal::Exists { .. }
            | AdminRefusal::RestoreTaken { .. }
            | AdminRefusal::AmbiguousTrashed { .. }
            | AdminRefusal::OtherNode { .. }
            | AdminRefusal::OtherProcess { .. }
            | AdminRefusal::SnapshotChanged { .. }
            | AdminRefusal::Changed { .. } => exit::EXISTS,
            AdminRefusal::HoldsReplicas { .. }
            | AdminRefusal::NotDrained { .. }
            | AdminRefusal::HoldsSessions { .. }
            | AdminRefusal::NodeUp { .. }
            | AdminRefusal::StrangerDrive { .. }
            | AdminRefusal::Attached { .. }
            | AdminRefusal::InUse { .. }
            | AdminRefusal::NotReady { .. }
            | AdminRefusal::SealBusy { .. }
            | AdminRefusal::NotSealed { .. }
            | AdminRefusal::HasSnapshots { .. }
            | AdminRefusal::HasClones { .. }
            | AdminRefusal::PolicyConflict { .. }
            | AdminRefusal::PolicyInUse { .. }
            | AdminRefusal::NotAClone { .. }
            | AdminRefusal::JobOver { .. }
            | AdminRefusal::ShrinkClone { .. }
            | AdminRefusal::JobRuns { .. }
            | AdminRefusal::Shrink { .. } => exit::STATE,
            AdminRefusal::Protected { .. }
            | AdminRefusal::ProtectedLonger { .. }
            | AdminRefusal::BadToken => exit::PERMISSION,
            AdminRefusal::NoCluster
            | AdminRefusal::TooFewDomains { .. }
            | AdminRefusal::OtherCluster { .. }
            | AdminRefusal::OtherControl { .. } => exit::PRECONDITION,
            AdminRefusal::PlacementOutdated
            | AdminRefusal::SealCalledOff { .. }
            | AdminRefusal::GroupNotReady { .. } => exit::FAILURE,
            AdminRefusal::TooManySnapshots { .. } | AdminRefusal::QuotaFull { .. } => exit::FULL,
            AdminRefusal::OutcomeUnknown => exit::UNKNOWN_OUTCOME,
        }
    }

    /// First line: what is refused, and of which object.
    #[expect(clippy::too_many_lines, reason = "a table: a line for each kind")]
    #[must_use]
    pub fn what(&self) -> String {
        match self {
            AdminRefusal::NoCluster => "there is no cluster yet".into(),
            AdminRefusal::ClusterExists { name } => format!("the cluster \"{name}\" exists already"),
            AdminRefusal::BadToken => "the join token is not this cluster's".into(),
            AdminRefusal::UnknownSetting { key, .. } => format!("no setting \"{key}\""),
            AdminRefusal::BadSetting { key, value, .. } => format!("{key} cannot be \"{value}\""),
            AdminRefusal::BadName { name, .. } => format!("\"{name}\" cannot be a name"),
            AdminRefusal::NotFound { noun, name } => format!("no {} \"{name}\"", noun.word()),
            AdminRefusal::Exists { noun, name } => format!("{} \"{name}\" exists already", noun.word()),
            AdminRefusal::OutcomeUnknown => "no answer: the order may have been carried out, or not".into(),
            AdminRefusal::HoldsReplicas { noun, name, replicas } => {
                format!("{} {name} still holds {replicas} replicas", noun.word())
            }
            AdminRefusal::NotDrained { noun, name } => format!("{} {name} is in use", noun.word()),
            AdminRefusal::HoldsSessions { name, sessions } => {
                format!("node {name} still holds {sessions} sessions")
            }
            AdminRefusal::NodeUp { name } => format!("node {name} is up"),
            AdminRefusal::OtherNode { drive, name, .. } => format!("drive {drive} belongs to node {name}"),
            AdminRefusal::StrangerDrive { drive } => format!("drive {drive} was rolled back or copied"),
            AdminRefusal::OtherProcess { name, known, address, .. } => {
                format!("the process at {address} is not node {name}: that one is at {known}")
            }
            AdminRefusal::OtherCluster { node, said: Some(said), cluster } => {
                format!("node {node} is of cluster {:032x}, not of {:032x}", said.0, cluster.0)
            }
            AdminRefusal::OtherCluster { node, said: None, cluster } => {
                format!("node {node} names no cluster; this is {:032x}", cluster.0)
            }
            AdminRefusal::SealBusy { name } => format!("another snapshot of volume \"{name}\" is under way"),
            AdminRefusal::SealCalledOff { names } => format!("no snapshot was made: {}", names.join(", ")),
            AdminRefusal::GroupNotReady { names } => {
                format!("not all volumes of the group can be sealed now: {}", names.join(", "))
            }
            AdminRefusal::NotSealed { name } => format!("snapshot {name} is not sealed yet"),
            AdminRefusal::SnapshotChanged { name } => format!("snapshot {name} was renamed meanwhile"),
            AdminRefusal::Protected { name, until_ms } | AdminRefusal::ProtectedLonger { name, until_ms } => {
                format!("snapshot {name} is protected until {}", show_date(*until_ms))
            }
            AdminRefusal::HasSnapshots { name, count: 1, .. } => format!("volume \"{name}\" has a snapshot"),
            AdminRefusal::HasSnapshots { name, count, .. } => {
                format!("volume \"{name}\" has {count} snapshots")
            }
            AdminRefusal::HasClones { name, .. } => {
                let noun = if name.contains('@') { "snapshot" } else { "volume" };
                format!("{noun} {name} has clones")
            }
            AdminRefusal::TooManySnapshots { name, most } => {
                format!("volume \"{name}\" has {most} snapshots: no more are possible")
            }
            AdminRefusal::BadGroup { most } => format!("a group is 1 to {most} volumes, each once"),
            AdminRefusal::BadLabel { key } => format!("\"{key}\" cannot be labelled so"),
            AdminRefusal::CloneSmaller { name, size, to } => {
                format!("{name} has {size} bytes: a clone of it cannot have {to}")
            }
            AdminRefusal::NotAClone { name } => format!("volume \"{name}\" reads nothing from a parent"),
            AdminRefusal::JobOver { name, state } => format!("job {name} is {state}"),
            AdminRefusal::PolicyConflict { policy, name, needs, most } => {
                format!(
                    "volume \"{name}\" may have {most} snapshots; with policy {policy} it comes to {needs}"
                )
            }
            AdminRefusal::QuotaFull { name, most, .. } => {
                format!("volume \"{name}\" may have {most} snapshots, and no more")
            }
            AdminRefusal::PolicyInUse { name, .. } => format!("policy {name} is attached"),
            AdminRefusal::PolicyNotAttached { policy, name } => {
                format!("policy {policy} is not attached to volume \"{name}\"")
            }
            AdminRefusal::BadPolicy { name, .. } => format!("policy {name} cannot be made"),
            AdminRefusal::RestoreTaken { name, .. } => {
                format!("volume \"{name}\" exists: what was deleted cannot have that name again")
            }
            AdminRefusal::AmbiguousTrashed { word, .. } => {
                format!("\"{word}\" means two volumes in the trash: nothing was done")
            }
            AdminRefusal::OtherControl { said: 0, known } => {
                format!("this blockd names no control protocol; metad speaks {known}")
            }
            AdminRefusal::OtherControl { said, known } => {
                format!("this blockd speaks control protocol {said}; metad speaks {known}")
            }
            AdminRefusal::BadSize { size, .. } => format!("{size} bytes cannot be a volume's size"),
            AdminRefusal::BadChunkSize { .. } => "no such chunk size".into(),
            AdminRefusal::Attached { name, node_name, epoch, .. }
            | AdminRefusal::InUse { name, node_name, epoch, .. } => {
                format!("volume \"{name}\" is attached on {node_name} (epoch {})", epoch.0)
            }
            AdminRefusal::NotReady { name } => format!("volume \"{name}\" is still being made"),
            AdminRefusal::Shrink { name, size, to } => {
                format!("volume \"{name}\" has {size} bytes: {to} are fewer")
            }
            AdminRefusal::ShrinkClone { name, parent } => {
                format!("volume \"{name}\" reads from {parent}: it cannot get smaller")
            }
            AdminRefusal::JobRuns { name, job, kind } => {
                format!("volume \"{name}\" is worked at by job {job} ({kind})")
            }
            AdminRefusal::Changed { name } => format!("volume \"{name}\" was changed meanwhile"),
            AdminRefusal::TooFewDomains { need, have, .. } => {
                format!("{need} copies need {need} nodes with a usable drive; there are {have}")
            }
            AdminRefusal::PlacementOutdated => "a drive of the placement went away meanwhile".into(),
            AdminRefusal::BadCopies { copies, .. } => format!("a volume cannot have {copies} copies"),
            AdminRefusal::BadMinInSync { min_in_sync, .. } => format!("min_in_sync cannot be {min_in_sync}"),
        }
    }

    /// Second line: why.
    #[expect(clippy::too_many_lines, reason = "a table: a line for each kind")]
    #[must_use]
    pub fn cause(&self) -> String {
        match self {
            AdminRefusal::NoCluster => "nodes, drives and volumes belong to a cluster".into(),
            AdminRefusal::ClusterExists { .. } => "a cluster is made once".into(),
            AdminRefusal::BadToken => "only the token that `cluster init` printed lets a node join".into(),
            AdminRefusal::UnknownSetting { known, .. } => format!("known are {}", known.join(", ")),
            AdminRefusal::BadSetting { low, high, .. } => format!("allowed is {low} to {high}"),
            AdminRefusal::BadName { fault, .. } => fault.to_string(),
            AdminRefusal::NotFound { .. } => "it never existed, was removed, or is spelled otherwise".into(),
            AdminRefusal::Exists { .. } => "names are unique".into(),
            AdminRefusal::OutcomeUnknown => "metad's leader changed while it was under way".into(),
            AdminRefusal::HoldsReplicas { .. } => "removing it would lose redundancy".into(),
            AdminRefusal::NotDrained { .. } => "it must be emptied first".into(),
            AdminRefusal::HoldsSessions { .. } => "guests are attached there".into(),
            AdminRefusal::NodeUp { .. } => "a node that runs would go on by itself".into(),
            AdminRefusal::OtherNode { node, .. } => format!("it was added on {node}; a drive does not move"),
            AdminRefusal::StrangerDrive { .. } => {
                "its list of openings lacks the one confirmed last, so its contents are old".into()
            }
            AdminRefusal::OtherProcess { up: true, .. } => {
                "that one is up; this one has another state directory, or is older".into()
            }
            AdminRefusal::OtherProcess { .. } => {
                "it has another state directory than that one, or is older".into()
            }
            AdminRefusal::OtherCluster { .. } => "a node id counts in one cluster only".into(),
            AdminRefusal::SealBusy { .. } => "a volume is sealed once at a time".into(),
            AdminRefusal::SealCalledOff { .. } => {
                "the session did not drain and flush it in time (5 s; a group: 1 s), or the volume was deleted".into()
            }
            AdminRefusal::GroupNotReady { .. } => "their sessions do not serve, or are not heard".into(),
            AdminRefusal::NotSealed { .. } => "its session drains and flushes it".into(),
            AdminRefusal::SnapshotChanged { .. } => "somebody else gave another order".into(),
            AdminRefusal::Protected { .. } => "until then it is not deleted, nor its volume".into(),
            AdminRefusal::ProtectedLonger { .. } => "a protection is made longer, not shorter".into(),
            AdminRefusal::HasSnapshots { count, snapshots, .. } => {
                let more = if *count > snapshots.len() as u64 { ", .." } else { "" };
                format!("{}{more}", snapshots.join(", "))
            }
            AdminRefusal::HasClones { clones, .. } => {
                format!("{} read from it what they have not written themselves", clones.join(", "))
            }
            AdminRefusal::TooManySnapshots { .. } => "the drives keep a list of them for each volume".into(),
            AdminRefusal::BadGroup { .. } => "all volumes of a group are sealed at one moment".into(),
            AdminRefusal::BadLabel { .. } => {
                "keys are written as names, values have up to 255 printable bytes, and there are up to 32 of them".into()
            }
            AdminRefusal::CloneSmaller { .. } => "a clone has all that its snapshot has".into(),
            AdminRefusal::NotAClone { .. } => "it is no clone, or was flattened".into(),
            AdminRefusal::JobOver { .. } => "what has ended cannot be called off".into(),
            AdminRefusal::PolicyConflict { .. } => {
                "the quota counts what policies keep, and what is made by hand".into()
            }
            AdminRefusal::QuotaFull { by_hand, reserved: 0, .. } => format!("{by_hand} are made by hand"),
            AdminRefusal::QuotaFull { by_hand, reserved, .. } => {
                format!("{by_hand} are made by hand, and its policies come to keep {reserved}")
            }
            AdminRefusal::PolicyInUse { volumes, .. } => volumes.join(", "),
            AdminRefusal::PolicyNotAttached { .. } => "it never was, or was detached".into(),
            AdminRefusal::BadPolicy { why, .. } => why.clone(),
            AdminRefusal::RestoreTaken { .. } => "the name of a deleted volume is free for others".into(),
            AdminRefusal::AmbiguousTrashed { word, other } => {
                format!("one has that name, and {word} is the id of the one named \"{other}\"")
            }
            AdminRefusal::OtherControl { .. } => "blockd and metad must be of one version".into(),
            AdminRefusal::BadSize { .. } => "sizes are multiples of 4 KiB from 1 MiB to 16 TiB".into(),
            AdminRefusal::BadChunkSize { low, high } => format!("powers of two from {low} to {high} bytes"),
            AdminRefusal::Attached { .. } | AdminRefusal::InUse { .. } => "a guest uses it".into(),
            AdminRefusal::NotReady { .. } => "the records of its chunks are not all on the drives yet".into(),
            AdminRefusal::Shrink { .. } => "what lies beyond the new end would be gone".into(),
            AdminRefusal::ShrinkClone { .. } => "what it has not written is its parent's, beyond the new end too".into(),
            AdminRefusal::JobRuns { .. } => "what is asked for cannot be until the job has ended".into(),
            AdminRefusal::Changed { .. } => "somebody else gave another order".into(),
            AdminRefusal::TooFewDomains { nodes, full, .. } => {
                format!("of {nodes} nodes the others are down, drained or have no drive; full drives: {full}")
            }
            AdminRefusal::PlacementOutdated => {
                "it failed or was removed between the plan and its commit".into()
            }
            AdminRefusal::BadCopies { most, .. } => format!("1 to {most} are possible"),
            AdminRefusal::BadMinInSync { copies, .. } => format!("1 to {copies}, the number of copies"),
        }
    }

    /// Third line: what to do.
    #[expect(clippy::too_many_lines, reason = "a table: a line for each kind")]
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            AdminRefusal::NoCluster => "blockctl cluster init".into(),
            AdminRefusal::ClusterExists { .. } => "blockctl cluster status".into(),
            AdminRefusal::BadToken => "ask a metad of the cluster for it: blockctl cluster token".into(),
            AdminRefusal::UnknownSetting { .. } => "blockctl cluster config get".into(),
            AdminRefusal::BadSetting { key, low, .. } => {
                // As it is typed: in one word.
                format!("blockctl cluster config set {key}={}", low.replace(' ', ""))
            }
            AdminRefusal::BadName { .. } => "use another name, for instance vol-1".into(),
            AdminRefusal::NotFound { noun: Noun::Trashed, .. } => "blockctl volume list --trash".into(),
            AdminRefusal::NotFound { noun, .. } => format!("blockctl {} list", noun.word()),
            AdminRefusal::Exists { noun, name } => format!("blockctl {} show {name}", noun.word()),
            AdminRefusal::OutcomeUnknown => "look, and repeat the order if nothing happened".into(),
            AdminRefusal::HoldsReplicas { noun: Noun::Node, name, .. }
            | AdminRefusal::NotDrained { noun: Noun::Node, name } => format!("blockctl node drain {name}"),
            AdminRefusal::HoldsReplicas { noun, name, .. } | AdminRefusal::NotDrained { noun, name } => {
                format!("blockctl {} drain {name}", noun.word())
            }
            AdminRefusal::HoldsSessions { .. } => "move or stop the guests".into(),
            AdminRefusal::NodeUp { .. } => "stop its blockd, then remove it".into(),
            AdminRefusal::OtherNode { .. } => "put it back, or format it anew under --force".into(),
            AdminRefusal::StrangerDrive { drive } => {
                format!("blockctl drive drain {drive}, then format it anew")
            }
            AdminRefusal::OtherProcess { node, .. } => format!(
                "remove node_id = {} from its blockd.toml and join it with a token, or give it its state_dir back",
                node.0
            ),
            AdminRefusal::OtherCluster { cluster, .. } => {
                format!(
                    "cluster = \"{:032x}\" in its blockd.toml, if it is to be a node of this one",
                    cluster.0
                )
            }
            AdminRefusal::SealBusy { .. } => "repeat the order".into(),
            AdminRefusal::SealCalledOff { names } | AdminRefusal::GroupNotReady { names } => {
                let volume = names.first().map_or("", |n| n.split('@').next().unwrap_or(n));
                format!("blockctl volume show {volume}, and repeat the order")
            }
            AdminRefusal::NotSealed { name } | AdminRefusal::SnapshotChanged { name } => {
                format!("blockctl snapshot list {}", name.split('@').next().unwrap_or(name))
            }
            AdminRefusal::Protected { name, .. } | AdminRefusal::ProtectedLonger { name, .. } => {
                format!("wait, or: blockctl snapshot protect {name} --until none --force=REASON")
            }
            AdminRefusal::HasSnapshots { name, .. } => {
                format!("delete them, or: blockctl volume delete {name} --with-snapshots")
            }
            AdminRefusal::HasClones { name, .. } if !name.contains('@') => {
                format!(
                    "delete the clones, or: blockctl volume flatten CLONE; or let it rest until they are gone: blockctl volume delete {name} --to-trash"
                )
            }
            AdminRefusal::HasClones { .. } => {
                "delete the clones first, or: blockctl volume flatten CLONE".into()
            }
            AdminRefusal::TooManySnapshots { name, .. } => {
                format!("delete some: blockctl snapshot list {name}")
            }
            AdminRefusal::BadGroup { .. } => "name each volume once: VOL@NAME VOL2@NAME".into(),
            AdminRefusal::BadLabel { .. } => "--label app=db".into(),
            AdminRefusal::PolicyConflict { name, needs, .. } => {
                format!(
                    "keep less, or: blockctl volume quota {name} --snapshots {needs}, or with --manual-only"
                )
            }
            AdminRefusal::QuotaFull { name, .. } => {
                format!("delete some: blockctl snapshot list {name}; or: blockctl volume quota {name}")
            }
            AdminRefusal::PolicyInUse { name, volumes } => {
                let volume = volumes.first().map_or("VOL", |v| v.split(' ').next().unwrap_or(v));
                format!("blockctl policy detach {name} {volume}")
            }
            AdminRefusal::PolicyNotAttached { policy, .. } => format!("blockctl policy show {policy}"),
            AdminRefusal::BadPolicy { name, .. } => {
                format!("for instance: blockctl policy create {name} --schedule daily --keep-daily 7")
            }
            AdminRefusal::RestoreTaken { name, volume } => {
                format!("blockctl volume restore {volume} --as {name}-restored")
            }
            AdminRefusal::AmbiguousTrashed { word, .. } => {
                format!(
                    "say @{word} for the id; the name is clear when that one is gone. blockctl volume list --trash"
                )
            }
            AdminRefusal::CloneSmaller { size, .. } => format!("leave --size out, or: --size {size}"),
            AdminRefusal::NotAClone { name } => format!("blockctl volume show {name}"),
            AdminRefusal::JobOver { .. } => "blockctl job list".into(),
            AdminRefusal::OtherControl { said, known } if said > known => {
                "install metad's newer version".into()
            }
            AdminRefusal::OtherControl { .. } => "install blockd's newer version on this node".into(),
            AdminRefusal::BadSize { nearest, .. } => format!("the nearest is {nearest}"),
            AdminRefusal::BadChunkSize { .. } => "leave it out: 256 MiB is right for most".into(),
            AdminRefusal::Attached { name, node_name, .. } => {
                format!("detach it on {node_name}, or: blockctl volume delete {name} --force=REASON")
            }
            AdminRefusal::InUse { node_name, .. } => format!("detach it on {node_name}"),
            AdminRefusal::NotReady { name } => format!("blockctl volume wait {name} --state ready"),
            AdminRefusal::Shrink { name, to, .. } => {
                format!("if nothing is written beyond: blockctl volume resize {name} --size {to} --force")
            }
            AdminRefusal::ShrinkClone { name, .. } => format!("blockctl volume flatten {name} --wait"),
            AdminRefusal::JobRuns { job, .. } => {
                format!("blockctl job wait {job}, or: blockctl job cancel {job}")
            }
            AdminRefusal::Changed { name } => format!("blockctl volume show {name}"),
            AdminRefusal::TooFewDomains { have, .. } => match have {
                0 => "add nodes and drives: blockctl drive add".into(),
                n => format!("add nodes, or ask for fewer copies: --copies {n}"),
            },
            AdminRefusal::PlacementOutdated => "repeat the order".into(),
            AdminRefusal::BadCopies { .. } => "--copies 3".into(),
            AdminRefusal::BadMinInSync { .. } => "--min-in-sync 2".into(),
        }
    }
}
