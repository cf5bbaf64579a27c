//! What two nodes say to each other on a data connection.
//!
//! A connection is *directed*: the node that holds sessions dials (`Request`s flow from it), the node
//! that holds replicas answers (`Reply`s flow back). Frames of one connection keep their order, and the
//! replica side handles them in that order. Bytes: see `frame` and `docs/protocol.md`.

use crate::configuration::{Configuration, Place};
use crate::generations::Generations;
use crate::ids::{
    BranchId, ChunkIndex, ConfigNumber, DriveId, Epoch, Generation, Incarnation, NodeId, ProcessNumber,
};
use crate::marks::{Marks, Version};
use crate::payload::Payload;
use crate::record::{Record, Sum};
use crate::refusal::Refusal;
use crate::units::{BlockRange, Geometry};
use crate::views::ListIndex;
use serde::{Deserialize, Serialize};

/// What every frame of a branch carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Scope {
    pub drive: DriveId,
    pub branch: BranchId,
    pub chunk: ChunkIndex,
    /// The session's epoch. Checked in the store's thread where the frame is admitted.
    pub epoch: Epoch,
    /// The placement addressed; 0 where the frame is about a branch on a drive, not about one chunk.
    pub incarnation: Incarnation,
    /// Configuration of the chunk as the session has it.
    pub configuration: ConfigNumber,
    pub marks: Marks,
}

/// A state of the branch that can be read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum View {
    Head,
    /// The newest state with generation <= g. To anybody but the branch's session only if g is sealed and kept, and
    /// the replica holds it whole.
    At(Generation),
}

/// What a replica keeps about a branch for recovery without metad (and to name it in messages).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BranchInfo {
    pub branch: BranchId,
    pub name: String,
    pub geometry: Geometry,
    /// (branch, generation) that absent blocks are read from.
    pub parent: Option<(BranchId, Generation)>,
    /// Generation that new writes carry.
    pub generation: Generation,
}

/// One replica to be made on a drive.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChunkRecord {
    pub chunk: ChunkIndex,
    pub incarnation: Incarnation,
    pub configuration: Configuration,
}

/// A resync attempt (5.3). If anything named here changes, it is over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// Unique within the session.
    pub number: u64,
    pub epoch: Epoch,
    pub chunk: ChunkIndex,
    pub configuration: ConfigNumber,
    /// The generation that the session writes.
    pub generation: Generation,
    /// Kept views to be made equal before the head, all below `generation`.
    pub views: Generations,
    /// The head is a view, too (always so while a volume points at the branch).
    pub head: bool,
    pub source: Place,
    pub source_process: ProcessNumber,
    pub target: Place,
    pub target_process: ProcessNumber,
}

/// A question about blocks that are to be written in a generation, before anything is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Probe {
    pub generation: Generation,
    pub range: BlockRange,
    /// They are to be zeroed: what that takes is kept for a while for a zero of just this range.
    pub zero: bool,
}

/// From the node that holds sessions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// A guest's, a reconciliation's or a merged write. Acknowledged by `Reply::Acks` (no token), or refused.
    /// `fresh`: the session gives a credit for a new extent with it.
    Write { record: Record, payload: Payload, fresh: bool },
    /// Flush the drive after everything of this connection before it. Answer: `Flushed` (after `FlushDone`).
    Flush,
    /// Nothing but its scope's marks.
    Marks,
    /// The chunk's configuration; stored no later than the next write of the chunk.
    Configure { configuration: Configuration },
    /// A newer session asks for the branch on this drive. Answer: `Report`, `LeasePending` never (the replica waits).
    Fence { number: u32, holder: NodeId },
    /// Make records for chunks of a branch on this drive, flushed. Answer: `Done`.
    Create { info: BranchInfo, chunks: Vec<ChunkRecord> },
    /// 5.3: store epoch and marks (flushed), start the bitmap. Answer: `Done`.
    AttemptBegin { attempt: Attempt },
    /// 5.3: all writes below v0 are acknowledged: compare with the source and pull. Answers: `Progress`.., `Pulled`.
    AttemptList { number: u64 },
    /// The attempt is over.
    AttemptEnd { number: u64 },
    /// Doubt of this branch on this drive is healed. Answer: `Done` once flushed.
    EndDoubt,
    /// Read blocks of a view. Answer: `ReadDone`. `media`: from the drive, not from memory.
    /// `source_process`: refused (`OldAttempt`) by another process, if given.
    Read { view: View, range: BlockRange, media: bool, source_process: Option<ProcessNumber> },
    /// Extents whose content in a view differs from that in the view `after` (0: from nothing), from `from` (extent
    /// index) on. Answer: `Manifest`.
    Manifest { view: View, after: Generation, from: u32, source_process: Option<ProcessNumber> },
    /// Hash over the manifests of these kept views, and of the head. Answer: `Digest`.
    Digest { views: Generations, head: bool, source_process: Option<ProcessNumber> },
    /// Write one block again if the extent's version is still `failed` (5.8). Answer: `Done`.
    Repair { record: Record, payload: Payload, failed: Version },
    /// Credits for new extents on this drive. Answer: `Credit`. `probe`: may these blocks be written, too?
    Credit { want: u32, probe: Option<Probe> },
    /// State of blocks for block status. Answer: `Map`.
    Map { view: View, range: BlockRange },
    /// Read extents from the media and hash them (`volume verify`). Answer: `Verified`.
    Verify { view: View, first_extent: u32, extents: u32 },
    /// What changed in a view since the generation `after`: blocks written or discarded in a generation above it, up
    /// to the view. Answer: `Map`; a run that is absent there did not change.
    Changes { view: View, after: Generation, range: BlockRange },
    /// Is any of the replica's first blocks absent in one of these views (or the head)? Answer: `Absence`.
    Absent { views: Generations, head: bool, blocks: u32 },
    /// Extents of the replica by the views that see them. Answer: `Usage`.
    Usage,
    /// Per node pair: renew the lease for the branches of which this node shows the epoch. Answer: `Leased`.
    Lease { shown: Vec<(BranchId, Epoch)> },
    /// Per node pair: these branches are served no more by this node.
    LeaseReturn { branches: Vec<BranchId> },
    /// Per node pair: is anybody there? Answer: `Done`.
    Ping,
}

/// One acknowledged write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ack {
    pub branch: BranchId,
    pub drive: DriveId,
    pub version: Version,
    pub chunk: ChunkIndex,
    /// New extents that this write took: what the session's credit loses.
    pub extents: u32,
}

/// State of a run of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum BlockState {
    Data,
    Zero,
    Absent,
    /// Written, but the checksum does not match.
    Bad,
}

/// A run of blocks in the answer to a read. Data blocks lie in the payload, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Run {
    pub count: u32,
    pub state: BlockState,
    /// Version of the extent that the run lies in (a run never spans extents unless absent).
    pub version: Version,
    /// Generation the run was found in; 0 if absent.
    pub generation: Generation,
}

/// One extent of a manifest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ManifestEntry {
    pub extent: u32,
    pub version: Version,
    /// Hash of the 16 blocks' states as seen in the view. Not cryptographic.
    pub hash: u64,
}

/// Neighbouring extents of one version that a fence's report names: changed above the replica's durable mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReportedRun {
    pub chunk: ChunkIndex,
    pub first: u32,
    /// At least 1.
    pub count: u32,
    pub generation: Generation,
    pub version: Version,
}

/// Answer to a fence (5.4).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The fence that this answers; another one's answer does not count.
    pub fence: u32,
    pub in_doubt: bool,
    pub marks: Marks,
    /// Written, discarded or pulled above the durable mark. At most `limits::REPORT_RUNS`.
    pub runs: Vec<ReportedRun>,
    /// Another part follows. What is not `runs` counts in the last one.
    pub more: bool,
    /// Chunks of the branch that this drive has records of.
    pub chunks: Vec<(ChunkIndex, Incarnation)>,
    /// Credits are void: the session asks anew.
    pub free_extents: u64,
}

/// Physical extents of one replica by who sees them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// The keep-list that this was counted by.
    pub index: ListIndex,
    /// All that the replica takes.
    pub total: u64,
    /// What no view sees, and which is not freed yet.
    pub unseen: u64,
    pub views: Vec<ViewUsage>,
    /// Of the head; all zero if it is no view.
    pub head: ViewUsage,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ViewUsage {
    pub generation: Generation,
    /// Extents of which the view sees a block.
    pub seen: u64,
    /// Those of them that no other view sees: what deleting it would free.
    pub exclusive: u64,
}

/// To the node that holds sessions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// Writes acknowledged, in the order in which they became so.
    Acks(Vec<Ack>),
    /// A request, or the write `version`, was not done.
    Refused {
        refusal: Refusal,
        version: Version,
    },
    /// In the stream of acknowledgements: a flush of this drive begins; numbers rise.
    FlushBegun {
        drive: DriveId,
        flush: u64,
    },
    /// ... and is done: what was acknowledged before *begun* is flushed.
    FlushDone {
        drive: DriveId,
        flush: u64,
    },
    /// The `Flush` with this token is done (its `FlushBegun` and `FlushDone` came before).
    Flushed,
    Report(Report),
    Done,
    Progress {
        number: u64,
        bytes_done: u64,
        bytes_left: u64,
        bytes_moved: u64,
    },
    Pulled {
        number: u64,
        bytes_moved: u64,
    },
    /// The attempt failed at the target; the session may start another.
    AttemptFailed {
        number: u64,
        refusal: Refusal,
    },
    ReadDone {
        runs: Vec<Run>,
        sums: Vec<Sum>,
        payload: Payload,
    },
    Manifest {
        entries: Vec<ManifestEntry>,
        /** Where to go on; `None` at the end. */
        next: Option<u32>,
    },
    Digest {
        hash: u64,
        extents: u64,
    },
    Credit {
        granted: u32,
        /** Answer to the probe: a write needs no new extent; a zero has what it needs. */
        allocated: bool,
    },
    Map {
        runs: Vec<Run>,
    },
    Absence {
        any: bool,
    },
    Usage(Usage),
    Verified {
        /** (extent, hash of its blocks' states and bytes) */
        extents: Vec<(u32, u64)>,
        /** Blocks that fail their checksum. */
        bad: Vec<u32>,
    },
    /// The lease is renewed (its span counts from before the holder asked), but not for these branches.
    Leased {
        /** A newer epoch is known (or asking) here: the session is over. */
        refused: Vec<BranchId>,
        /** The epoch is not known here (a drive is not open yet, or never had it): nothing is granted or decided. */
        unknown: Vec<BranchId>,
    },
    /// Not asked for: a newer epoch asks for these branches; the older holder yields and sends `LeaseReturn`.
    Revoke {
        branches: Vec<(BranchId, Epoch)>,
    },
    /// Not asked for: the drive stopped (I/O error) or fell into doubt (reset); `branches` are then in doubt.
    DriveState {
        drive: DriveId,
        failed: bool,
        in_doubt: Vec<BranchId>,
    },
}

/// One frame from the session's side. `token` comes back with the answer; 0 where none is expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestFrame {
    pub token: u64,
    pub scope: Scope,
    pub request: Request,
}

/// One frame from the replica's side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplyFrame {
    pub token: u64,
    /// Branch and drive that the reply is about (0 where it is per node or in itself).
    pub branch: BranchId,
    pub drive: DriveId,
    pub reply: Reply,
}

/// What a drive says of itself in a handshake.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DriveHello {
    pub drive: DriveId,
    pub failed: bool,
    /// False until metad has matched its list of openings.
    pub serving: bool,
    /// Branches that are in doubt there.
    pub in_doubt: Vec<BranchId>,
}

/// First frame in both directions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Newest and oldest version that the sender speaks.
    pub protocol: u16,
    pub protocol_min: u16,
    pub features_required: u64,
    pub features_offered: u64,
    pub cluster: crate::ids::ClusterId,
    pub from: NodeId,
    pub to: NodeId,
    pub process: ProcessNumber,
    /// Given by the dialler; the answer repeats it.
    pub connection: crate::ids::ConnNumber,
    /// Reserved for authentication; empty now.
    pub auth: Vec<u8>,
    /// In the answer: the drives of the answering node.
    pub drives: Vec<DriveHello>,
}

/// Whose a drive is, in words for the one who tried to open it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeldBy {
    pub cluster: crate::ids::ClusterId,
    pub node: NodeId,
}
