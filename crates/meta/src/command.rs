//! Everything that goes through Raft.
//!
//! A command is encoded as a format version byte and postcard. A metad that cannot decode one stops: to
//! skip it would make two metads differ. Commands carry no clock reading but the proposer's `at_ms`, and
//! no chance. New kinds of `Op` go to the end of the enum and raise `COMMAND_FORMAT`; a command is written in
//! the oldest format that has it, so that metads are upgraded one after the other.

use crate::model::{Class, DownCause, PolicyId, Quota};
use crate::settings::Setting;
use proto::control::{ChunkChange, HeldReplica, SessionKind, VolumeRef};
use proto::{
    BranchId, ChunkIndex, ClusterId, ConfigNumber, DriveId, Epoch, Generation, Geometry, JobId, ListIndex,
    NodeId, OpenId, ProcessNumber, RequestId, VolumeId,
};
use schedule::{Retention, Schedule};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Newest version of the encoding of commands.
pub const COMMAND_FORMAT: u8 = 9;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Command {
    /// The proposer's wall clock, Unix milliseconds: for "since when", never for a decision of safety.
    pub at_ms: u64,
    /// The first answer to a request is kept and given again.
    pub request: Option<RequestId>,
    pub op: Op,
}

/// Which drives the chunks go to: each chunk names a group.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Drives in the order of preference (first: the preferred node's).
    pub groups: Vec<Vec<DriveId>>,
    /// Per new chunk, index into `groups`.
    pub chunks: Vec<u16>,
}

/// New places of one chunk whose records could not all be made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Replacement {
    pub chunk: ChunkIndex,
    pub drives: Vec<DriveId>,
}

/// One more replica of a chunk. It starts stale.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PlaceItem {
    pub chunk: ChunkIndex,
    /// The configuration that the planner saw.
    pub from: ConfigNumber,
    pub drive: DriveId,
    /// This member becomes `Leaving` if it is in-sync.
    pub replaces: Option<DriveId>,
}

/// A member that is not needed any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PruneItem {
    pub chunk: ChunkIndex,
    pub from: ConfigNumber,
    pub drive: DriveId,
}

/// One volume to be sealed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotItem {
    pub volume: VolumeId,
    /// The branch that the proposer saw the volume point at.
    pub branch: BranchId,
    pub name: String,
    pub id: u128,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Op {
    // The cluster.
    ClusterInit {
        cluster: ClusterId,
        name: String,
        /// Lets nodes join.
        token: String,
    },
    SettingSet {
        setting: Setting,
    },

    // Nodes. `seen` is the node's (or drive's) count of changes between up and down that the proposer
    // saw: a late command changes nothing.
    NodeAdd {
        name: String,
        zone: String,
        /// Data plane, `host:port`.
        address: String,
        /// Random, from the node's state directory: the same node again is not a second one.
        identity: u128,
        /// By `cluster join`; none: by an operator.
        token: Option<String>,
    },
    NodeDrain {
        node: NodeId,
        drain: bool,
    },
    NodeRemove {
        node: NodeId,
    },
    NodeDown {
        node: NodeId,
        seen: u64,
        cause: DownCause,
    },
    NodeUp {
        node: NodeId,
        seen: u64,
        process: ProcessNumber,
    },

    // Drives.
    DriveAdd {
        node: NodeId,
        drive: DriveId,
        capacity: u64,
        path: String,
    },
    DriveOpened {
        node: NodeId,
        drive: DriveId,
        /// Newest last.
        openings: Vec<OpenId>,
        capacity: u64,
        path: String,
        /// Replicas on the drive that no configuration names (as the leader saw it; checked again).
        orphans: Vec<HeldReplica>,
        /// How many replicas are on it that were never placed.
        unknown: u32,
    },
    DriveDown {
        drive: DriveId,
        seen: u64,
    },
    DriveUp {
        drive: DriveId,
        seen: u64,
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
        geometry: Geometry,
        class: Class,
        plan: Plan,
    },
    VolumeDelete {
        volume: VolumeId,
        /// Although a guest is attached; the reason is logged.
        force: Option<String>,
        /// And all snapshots that are not protected.
        with_snapshots: bool,
    },
    VolumeRename {
        volume: VolumeId,
        from: String,
        to: String,
    },
    VolumeResize {
        volume: VolumeId,
        from: u64,
        to: u64,
        plan: Plan,
    },
    VolumeClass {
        volume: VolumeId,
        class: Class,
    },

    // Sessions.
    Attach {
        volume: VolumeRef,
        node: NodeId,
        process: ProcessNumber,
        kind: SessionKind,
        force: bool,
        /// No node's data network reaches the present holder's node, as the leader has heard.
        holder_unheard: bool,
        /// The epoch that the guest last held, if it goes on.
        after: Option<Epoch>,
    },
    Detach {
        branch: BranchId,
        epoch: Epoch,
        clean: bool,
    },
    /// The holder's node lives and does not know of the session: it was never taken up, or is gone.
    Release {
        branch: BranchId,
        epoch: Epoch,
    },
    Propose {
        branch: BranchId,
        epoch: Epoch,
        changes: Vec<ChunkChange>,
    },
    Created {
        branch: BranchId,
        epoch: Epoch,
        placement: u32,
        failed: Vec<DriveId>,
        replacements: Vec<Replacement>,
    },

    // The planner's.
    Appoint {
        branch: BranchId,
        /// The epoch that the planner saw.
        epoch: Epoch,
        node: Option<NodeId>,
    },
    Place {
        branch: BranchId,
        epoch: Epoch,
        items: Vec<PlaceItem>,
    },
    Prune {
        branch: BranchId,
        epoch: Epoch,
        items: Vec<PruneItem>,
    },
    Deleted {
        drive: DriveId,
        replicas: Vec<HeldReplica>,
    },

    // Format 2.
    /// A process of a node that has its id says where it is.
    NodeRegister {
        node: NodeId,
        /// Empty: as before.
        zone: String,
        address: String,
        /// Of its state directory: another one is another node.
        identity: u128,
        process: ProcessNumber,
    },

    // Format 3. Snapshots are named by (branch, generation), which is never used again, and by the name that was
    // seen: a late command changes nothing.
    /// Several items: a group, sealed at one moment or not at all.
    SnapshotCreate {
        items: Vec<SnapshotItem>,
        labels: BTreeMap<String, String>,
        protect_until_ms: u64,
    },
    /// The session of this epoch has drained and flushed the generation.
    Sealed {
        branch: BranchId,
        epoch: Epoch,
        generation: Generation,
    },
    /// It took too long. Of a group: all of it.
    SealCancel {
        branch: BranchId,
        generation: Generation,
    },
    SnapshotDelete {
        branch: BranchId,
        generation: Generation,
        name: String,
    },
    SnapshotRename {
        branch: BranchId,
        generation: Generation,
        from: String,
        to: String,
    },
    SnapshotProtect {
        branch: BranchId,
        generation: Generation,
        name: String,
        /// 0: no longer.
        until_ms: u64,
        /// Earlier than now in force; the reason is logged.
        force: Option<String>,
    },
    SnapshotLabel {
        branch: BranchId,
        generation: Generation,
        name: String,
        set: BTreeMap<String, String>,
        remove: BTreeSet<String>,
    },
    /// The drive has this keep-list, flushed.
    Kept {
        drive: DriveId,
        branch: BranchId,
        index: ListIndex,
    },

    // Format 4. Clones.
    /// A snapshot of the volume's head that an order needs first. Without a name: hidden, to be forked.
    ForkPoint {
        volume: VolumeId,
        branch: BranchId,
        /// The head that the proposer saw: it rises, so a copy that comes late makes no second snapshot.
        generation: Generation,
        id: u128,
        name: Option<String>,
    },
    /// Nobody forked it.
    ForkPointDrop {
        branch: BranchId,
        generation: Generation,
    },
    /// A volume whose branch reads what it has not written from a snapshot.
    CloneCreate {
        branch: BranchId,
        generation: Generation,
        name: String,
        size: u64,
        class: Class,
        plan: Plan,
    },
    /// The volume gets a new branch that reads from one of its snapshots. The old one loses the name and keeps the
    /// snapshots.
    Rollback {
        volume: VolumeId,
        /// The branch that the proposer saw the volume point at.
        seen: BranchId,
        branch: BranchId,
        generation: Generation,
        plan: Plan,
        /// The snapshot of `seen` that was made first: who attached after it may have written what it has not.
        safety: Option<Generation>,
    },

    // Format 5. Jobs.
    Flatten {
        volume: VolumeId,
        /// The branch that the proposer saw the volume point at.
        branch: BranchId,
    },
    JobCancel {
        job: JobId,
    },
    /// The session of this epoch has made sure that no kept view of the branch lacks a block.
    Cut {
        branch: BranchId,
        epoch: Epoch,
        job: JobId,
    },

    // Format 6. The trash.
    /// Deleted, for a while.
    VolumeTrash {
        volume: VolumeId,
        /// Although a guest is attached; the reason is logged.
        force: Option<String>,
        with_snapshots: bool,
        /// It rests until nobody reads from it.
        despite_clones: bool,
    },
    VolumeRestore {
        volume: VolumeId,
        name: String,
    },
    /// `early`: before its time.
    VolumePurge {
        volume: VolumeId,
        early: bool,
    },

    // Format 7. Policies.
    PolicyCreate {
        name: String,
        schedules: Vec<Schedule>,
        jitter_ms: u64,
        retention: Retention,
        /// Snapshots of a volume that it comes to keep: computed by the proposer.
        keeps: u64,
    },
    PolicyDelete {
        policy: PolicyId,
    },
    PolicyAttach {
        policy: PolicyId,
        volume: VolumeId,
    },
    PolicyDetach {
        policy: PolicyId,
        volume: VolumeId,
    },
    QuotaSet {
        volume: VolumeId,
        quota: Option<Quota>,
    },
    /// A slot of a policy's has come. Only a later one than the last is run.
    PolicyRun {
        policy: PolicyId,
        item: SnapshotItem,
        slot_ms: u64,
    },

    // Format 9. Shrinking.
    VolumeShrink {
        volume: VolumeId,
        /// The branch that the proposer saw the volume point at.
        branch: BranchId,
        from: u64,
        to: u64,
        discard: bool,
    },
    /// The session of this epoch has made sure that nothing is beyond the new end; or something is written there, up to
    /// this byte.
    Shrunk {
        branch: BranchId,
        epoch: Epoch,
        job: JobId,
        written: Option<u64>,
    },
}

impl Op {
    /// The first format of commands that has it.
    fn format(&self) -> u8 {
        match self {
            Op::Flatten { .. } | Op::JobCancel { .. } | Op::Cut { .. } => 5,
            Op::NodeRegister { .. } => 2,
            // Have a field that the formats before have not.
            Op::VolumeDelete { .. } => 3,
            Op::DriveOpened { .. } => 7,
            Op::SnapshotCreate { .. }
            | Op::Sealed { .. }
            | Op::SealCancel { .. }
            | Op::SnapshotDelete { .. }
            | Op::SnapshotRename { .. }
            | Op::SnapshotProtect { .. }
            | Op::SnapshotLabel { .. }
            | Op::Kept { .. } => 3,
            Op::ForkPoint { .. } | Op::ForkPointDrop { .. } | Op::CloneCreate { .. } => 4,
            Op::Rollback { .. } => 8,
            Op::VolumeTrash { .. } | Op::VolumeRestore { .. } | Op::VolumePurge { .. } => 6,
            Op::PolicyCreate { .. }
            | Op::PolicyDelete { .. }
            | Op::PolicyAttach { .. }
            | Op::PolicyDetach { .. }
            | Op::QuotaSet { .. }
            | Op::PolicyRun { .. } => 7,
            Op::VolumeShrink { .. } | Op::Shrunk { .. } => 9,
            _ => 1,
        }
    }
}

/// The metad must stop: it cannot follow the log.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("command of format {0}; this metad knows up to {COMMAND_FORMAT}: upgrade it")]
    Format(u8),
    #[error("empty command")]
    Empty,
    #[error("malformed or unknown command: {0}")]
    Malformed(#[from] postcard::Error),
    #[error("{0} bytes after the end of the command")]
    Trailing(usize),
}

impl Command {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![self.op.format()]).expect("writing to a vector does not fail")
    }

    /// # Errors
    /// Every error means that this metad must stop.
    pub fn decode(bytes: &[u8]) -> Result<Command, DecodeError> {
        let (&format, body) = bytes.split_first().ok_or(DecodeError::Empty)?;
        if format == 0 || format > COMMAND_FORMAT {
            return Err(DecodeError::Format(format));
        }
        let (command, rest) = postcard::take_from_bytes(body)?;
        if rest.is_empty() { Ok(command) } else { Err(DecodeError::Trailing(rest.len())) }
    }
}
