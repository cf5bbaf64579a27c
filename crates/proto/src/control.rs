//! What a node says to metad and hears from it: the data path's view of the control plane.
//! (blockctl's commands are `meta::Command`s; those here are said by blockd's node core.)

use crate::configuration::{Configuration, Member, Place};
use crate::ids::{
    BranchId, ChunkIndex, ConfigNumber, DriveId, Epoch, Generation, Incarnation, JobId, LogIndex, NodeId,
    OpenId, ProcessNumber, RequestId, VolumeId,
};
use crate::space::{Measure, Measured};
use crate::time::Span;
use crate::units::Geometry;
use crate::views::{BranchViews, KeepList, Level, ListIndex};
use serde::{Deserialize, Serialize};

/// Version of what blockd and metad say to one another, everything in this file: its bytes do not say what they are.
/// A blockd names it when it registers, and metad refuses every other one. Each change of the file raises it.
pub const CONTROL: u32 = 5;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum SessionKind {
    Guest,
    /// Appointed by metad where no guest is attached: creation, healing, sealing.
    Maintenance,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum VolumeRef {
    Name(String),
    Branch(BranchId),
}

/// Why a session asks for another configuration; for events, and for the rules of 5.2.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum ChangeCause {
    /// Connection lost and not back in time.
    Silent,
    /// No answer in time, though connected.
    NoAnswer,
    /// The member itself said so: I/O error, drive stopped, refusal.
    Reported,
    InDoubt,
    TooSlow,
    /// Resync is finished: attempt of this number.
    Promoted(u64),
    /// A member that leaves is no longer needed.
    Left,
    /// The old set again, to settle an undecided change.
    Withdrawn,
}

/// One chunk's new members, computed from the configuration `from`. `apply` refuses it if the chunk has
/// another number by now, or if no member would be left in-sync.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChunkChange {
    pub chunk: ChunkIndex,
    pub from: ConfigNumber,
    pub members: Vec<Member>,
    pub cause: ChangeCause,
    /// 5.2: fewer than a majority vouch for the session: valid only if Raft calls these drives down.
    pub only_if_down: Vec<DriveId>,
}

/// State of one drive in a heartbeat.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DriveStatus {
    pub drive: DriveId,
    pub failed: bool,
    pub serving: bool,
    /// Bytes.
    pub capacity: u64,
    pub used: u64,
    /// Path, for humans.
    pub path: String,
}

/// What a session says of itself in a heartbeat (status only; nothing is decided by it).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionStatus {
    pub branch: BranchId,
    pub epoch: Epoch,
    pub kind: SessionKind,
    pub state: SessionState,
    /// Resync: bytes still to compare or move, bytes moved by attempts of this session, bytes per second lately.
    pub resync_left: u64,
    pub resync_moved: u64,
    pub resync_rate: u64,
    /// Chunks with a replica that is not in-sync.
    pub degraded_chunks: u32,
    /// The generation that it writes: metad tells it again if it has not heard of a seal.
    pub generation: Generation,
    /// Why I/O waits, if it does; a code of `docs/operations.md`.
    pub waiting: Option<String>,
    /// The job that it works at.
    pub job: Option<JobStatus>,
    /// Bytes that its guest sees.
    pub size: u64,
}

/// A job that a session is to work at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct JobOrder {
    pub job: JobId,
    pub work: JobWork,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum JobWork {
    /// A clone is written out.
    Flatten,
    /// What lies from `to` on, up to the end at `from` (bytes), is to read as zeroes; without `discard` only if nothing is
    /// written there. For a maintenance session: no guest has the volume while the job runs.
    Shrink { from: u64, to: u64, discard: bool },
}

/// How far a session is with a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JobStatus {
    pub job: JobId,
    /// Bytes looked at, of all.
    pub done: u64,
    pub total: u64,
    pub trouble: Option<JobTrouble>,
}

/// Why a job does not go on. It tries again by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum JobTrouble {
    NoSpace,
    /// No replica of a parent has good bytes here.
    BadBlock {
        offset: u64,
    },
    /// Nobody who has a parent's view can be asked.
    Parent,
    /// Of a flatten: the snapshot of this generation, and perhaps older ones, still reads from the parent.
    Snapshot {
        generation: Generation,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum SessionState {
    Opening,
    Serving,
    Closing,
}

/// A replica found on a drive (heartbeat of garbage collection and recovery).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct HeldReplica {
    pub branch: BranchId,
    pub chunk: ChunkIndex,
    pub incarnation: Incarnation,
}

/// Said by a node. Those that change something carry a `RequestId`, or name epoch and numbers, so that a
/// late or doubled one is harmless.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MetaRequest {
    /// Not a Raft command: the leader notes it. `reaches`: peers that the data network reaches.
    Heartbeat {
        node: NodeId,
        process: ProcessNumber,
        drives: Vec<DriveStatus>,
        reaches: Vec<NodeId>,
        sessions: Vec<SessionStatus>,
    },
    /// A new session. Answer: `Attached`. Refusals are kept for a repeat of the same request id, too: whoever
    /// was refused tries again with a new one; whoever heard nothing, with the same.
    Attach {
        request: RequestId,
        volume: VolumeRef,
        node: NodeId,
        process: ProcessNumber,
        kind: SessionKind,
        /// Displace a live guest session elsewhere.
        force: bool,
        /// A guest goes on that last held this epoch here: refused if another node's guest attached after it.
        after: Option<Epoch>,
    },
    /// The session is over. `clean`: drained, flushed, leases returned. Answer: `Ok`.
    Detach { branch: BranchId, epoch: Epoch, clean: bool },
    /// Answer: `Configurations`, whatever was decided.
    Propose { branch: BranchId, epoch: Epoch, changes: Vec<ChunkChange> },
    /// Answer: `Configurations`.
    Chunks { branch: BranchId, epoch: Epoch, chunks: Vec<ChunkIndex> },
    /// Creation or growth: records are flushed on all drives but `failed`. Answer: `Created`.
    Created { branch: BranchId, epoch: Epoch, placement: u32, failed: Vec<DriveId> },
    /// A drive was opened: its last openings, newest last; the answer `DriveConfirmed` lets it serve.
    DriveOpened {
        node: NodeId,
        drive: DriveId,
        openings: Vec<OpenId>,
        capacity: u64,
        replicas: Vec<HeldReplica>,
        path: String,
    },
    /// These replicas were erased as told.
    Deleted { drive: DriveId, replicas: Vec<HeldReplica> },
    /// The session asks what Raft knows of its generations now. Answer: `Views`.
    Views { branch: BranchId, epoch: Epoch },
    /// The generation is drained and flushed on every required drive, and the session writes the next (of a group:
    /// writes nothing). Answer: `Views`.
    Sealed { branch: BranchId, epoch: Epoch, generation: Generation },
    /// The keep-list of this index is on the drive, flushed. Answer: `Ok`.
    Kept { drive: DriveId, branch: BranchId, index: ListIndex },
    /// A flatten is done: nothing is absent in the head and in any kept view, on any in-sync replica, flushed. Answer:
    /// `Views`; the tie is cut if the job was still wanted.
    Cut { branch: BranchId, epoch: Epoch, job: JobId },
    /// A shrink has ended: everything beyond the new end reads as zeroes, on every in-sync replica, flushed; or, with
    /// nothing changed, this is the last byte there that is written. Answer: `Job`.
    Shrunk { branch: BranchId, epoch: Epoch, job: JobId, written: Option<u64> },
    /// A reader wants a snapshot of a volume, by name. Answer: `Snapshot`.
    Snapshot { volume: String, snapshot: String },
    /// Volumes, for export lists and sizes. Answer: `Volumes`.
    Volumes { name: Option<String> },
    /// What was counted, as `WatchUpdate::Measure` ordered. Said once: metad orders again what it has not heard of. Answer: `Ok`.
    Measured { node: NodeId, measured: Measured },
}

impl MetaRequest {
    /// How long an edge looks for an answer before it says `Unavailable`: longer where the answer is large.
    #[must_use]
    pub fn patience(&self) -> Span {
        match self {
            MetaRequest::Attach { .. } | MetaRequest::Created { .. } | MetaRequest::DriveOpened { .. } => {
                Span::secs(3)
            }
            _ => Span::secs(1),
        }
    }
}

/// What a session needs to open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attached {
    pub volume: VolumeId,
    pub name: String,
    pub branch: BranchId,
    pub epoch: Epoch,
    pub kind: SessionKind,
    pub geometry: Geometry,
    pub views: BranchViews,
    /// Where absent blocks are read from, nearest first; none: they are zero.
    pub parents: Vec<Level>,
    /// What the branch was made from, also when nothing is read from there any more: its replicas' records name it for
    /// ever, for zeroes in such a branch are never dropped.
    pub origin: Option<(BranchId, Generation)>,
    /// Running as of `views.index`.
    pub job: Option<JobOrder>,
    pub min_in_sync: u8,
    /// Writes wait while fewer than `min_in_sync` are left (else they fail).
    pub wait_when_degraded: bool,
    pub write_through: bool,
    pub copies: u8,
    /// By chunk index; as of the log entry of the attach. Empty number 0: placed, records not yet made.
    pub configurations: Vec<Configuration>,
    /// Placement to be made by this session (creation, growth): its number, or none.
    pub placement: Option<u32>,
    /// The last session detached cleanly: nothing to reconcile (the fence still happens).
    pub clean: bool,
    /// An operator accepted the loss of unflushed writes.
    pub loss_accepted: bool,
    /// Drives that Raft calls down.
    pub down: Vec<DriveId>,
}

/// What a reader of a snapshot needs: it asks for places by `MetaRequest::Chunks` under `READER_EPOCH`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotFound {
    pub volume: VolumeId,
    pub geometry: Geometry,
    /// The snapshot's own branch and generation first, then what absent blocks are read from.
    pub levels: Vec<Level>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeSummary {
    pub volume: VolumeId,
    pub branch: BranchId,
    pub name: String,
    pub geometry: Geometry,
    pub ready: bool,
}

/// Why metad did not do it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MetaRefusal {
    NoSuchVolume,
    /// Of a volume that exists; or it is not sealed yet.
    NoSuchSnapshot,
    /// Still being created, or being deleted.
    NotReady,
    /// A guest's session lives elsewhere.
    Held {
        node: NodeId,
        name: String,
        epoch: Epoch,
        /** metad hears that node. */
        live: bool,
    },
    OldEpoch {
        epoch: Epoch,
    },
    /// Another node's guest attached after the epoch that this one last held: the disk may have changed.
    Superseded {
        epoch: Epoch,
        node: NodeId,
    },
    /// The drive's openings do not match: rolled back or copied.
    Stranger,
    UnknownNode,
    UnknownDrive,
    Exhausted,
    /// No guest has it while this job makes it smaller.
    Shrinking {
        job: JobId,
    },
}

/// metad's answer. No answer (lost, no leader) decides nothing: the node asks again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MetaAnswer {
    Ok,
    Attached(Box<Attached>),
    /// Present configurations of the chunks asked about. If `epoch` is not the asker's, it is fenced.
    Configurations {
        epoch: Epoch,
        chunks: Vec<(ChunkIndex, Configuration)>,
        down: Vec<DriveId>,
    },
    /// The configurations now in force; or, where drives had failed, another placement to make.
    Created {
        configurations: Vec<(ChunkIndex, Configuration)>,
        placement: Option<u32>,
    },
    DriveConfirmed {
        drive: DriveId,
    },
    /// What Raft knows of the branch's generations. If `epoch` is not the asker's, it is fenced.
    Views {
        epoch: Epoch,
        views: BranchViews,
    },
    Snapshot(Box<SnapshotFound>),
    Volumes(Vec<VolumeSummary>),
    Refused(MetaRefusal),
    /// Not the leader, or no leader: ask again later (the edge goes to another metad).
    Unavailable,
    /// What Raft knows of the branch's job and size, as of this index. If `epoch` is not the asker's, it is fenced.
    Job {
        epoch: Epoch,
        index: ListIndex,
        job: Option<JobOrder>,
        geometry: Geometry,
        placement: Option<u32>,
    },
}

/// A node as its peers need it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeSummary {
    pub node: NodeId,
    pub name: String,
    /// Data plane, `host:port`.
    pub address: String,
    pub up: bool,
}

/// Pushed to nodes. A decision never rests on it alone: it says where to look.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum WatchUpdate {
    /// All nodes; sent first and at every change.
    Nodes(Vec<NodeSummary>),
    /// Branches whose maintenance session this node is to hold (all of them, each time).
    Appointed(Vec<BranchId>),
    /// Something changed in these chunks (a placement, a state): the session asks for them.
    ChunksChanged { branch: BranchId, chunks: Vec<ChunkIndex> },
    /// The branch has another session now, or none, or is gone: `epoch` is the present one (or what would be
    /// next), and a session of this node with an older one is over.
    Fenced { branch: BranchId, epoch: Epoch },
    /// Replicas to erase on a drive of this node, as of this log index.
    Delete { drive: DriveId, replicas: Vec<HeldReplica>, index: LogIndex },
    /// The branch's generations changed: a seal was asked for, confirmed or called off, or a snapshot is gone. The
    /// session asks (decision 0013).
    Views { branch: BranchId, views: BranchViews },
    /// Keep-lists for a drive of this node. Told again until `Kept` says that each is on the drive.
    Keep { drive: DriveId, lists: Vec<KeepList> },
    /// Drives that Raft calls down now.
    Down(Vec<DriveId>),
    /// The job that the branch's session is to work at, or none any more; as of this index.
    Job { branch: BranchId, index: ListIndex, job: Option<JobOrder> },
    /// The volume's size as of this index. If it grows, its new chunks' records are to be made by the session, as this
    /// placement; none: there are no new chunks, or they are made.
    Resized { branch: BranchId, index: ListIndex, geometry: Geometry, placement: Option<u32> },
    /// The order to read a volume's replicas again and compare them (`volume verify`).
    Verify { branch: BranchId, request: RequestId },
    /// The order to count what replicas on this node's drives take (`volume space`).
    Measure(Measure),
    /// The order to end the connections of the volume's clients, so that they connect anew and learn its size.
    Reconnect { branch: BranchId },
}

/// Used by `Attached` readers: where the replicas of a branch lie.
#[must_use]
pub fn places(configurations: &[Configuration]) -> Vec<Place> {
    let mut v: Vec<Place> = configurations.iter().flat_map(|c| c.members.iter().map(|m| m.place)).collect();
    v.sort_unstable();
    v.dedup();
    v
}
