//! What goes into an extent store, and what comes out.

use proto::message::{BlockState, HeldBy, ReplyFrame, RequestFrame, Run};
use proto::record::Sum;
use proto::{
    BranchId, ChunkIndex, DriveId, Epoch, Generation, KeepList, ListIndex, LogIndex, OpenId, Payload,
    Refusal, Version,
};

/// Number of an I/O of this store; unique while the store lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IoId(pub u64);

/// The connection that a request came on (a link of the node, or a local session). An answer goes back to
/// it, or nowhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Source(pub u64);

/// One operation on the drive. Offsets and lengths are multiples of 4 KiB.
#[derive(Clone, Debug)]
pub enum IoOp {
    Read {
        offset: u64,
        blocks: u32,
    },
    /// One write at `offset` of all pieces, one after the other (a vectored write).
    Write {
        offset: u64,
        pieces: Vec<Payload>,
    },
    /// Flush of the volatile cache (fdatasync on a file). Covers what completed before it began.
    Flush,
}

#[derive(Clone, Debug)]
pub enum IoResult {
    Read(Payload),
    Written,
    Flushed,
    /// errno.
    Failed(i32),
}

#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "requests are the common case; a box would cost an allocation each"
)]
pub enum Event {
    Io {
        io: IoId,
        result: IoResult,
    },
    /// A request of a session, local or by a link. The store answers all of `proto::message::Request` save
    /// `Lease`, `LeaseReturn`, `Ping` and `AttemptList`, which are the node's. For `Fence` the node has revoked
    /// and waited out older leases before it hands it on.
    Request {
        source: Source,
        frame: RequestFrame,
    },
    /// 5.3: what a target pulled. Journaled in order with everything else; blocks in the attempt's bitmap are
    /// left out, judged at that moment. Answer: `Effect::Pulled`.
    Pull(Pull),
    /// The connection is gone, or a newer one of the same peer is there: nothing admitted on it and not yet in
    /// a batch may take effect (large writes), and no answer goes to it. Attempts begun on it are over.
    SourceClosed {
        source: Source,
    },
    /// metad has matched the drive's list of openings: it may serve.
    Confirmed,
    /// The node has found that this drive cannot serve, before anything was asked of it.
    Fail(Failure),
    /// metad's order to erase replicas, as of a log index (an older index than the newest seen is ignored).
    Delete {
        replicas: Vec<proto::control::HeldReplica>,
        index: LogIndex,
    },
    /// Which views of a branch are kept here, as metad says; newer lists only. Answer: `Effect::Kept`.
    Keep(KeepList),
    /// All input of this turn has been handed in: seal what waits into one batch.
    TurnEnd,
    /// The time given by `next_wake` has come.
    Wake,
    /// Close cleanly: everything flushed, clean mark written. Ends with `Effect::Closed`.
    Close,
}

/// An extent's difference, pulled by a resync target into one generation.
#[derive(Clone, Debug)]
pub struct Pull {
    pub token: u64,
    /// Number of the attempt (`Attempt::number`) and its epoch (the next session counts from one again); another one's
    /// pull is refused.
    pub attempt: u64,
    pub epoch: Epoch,
    pub source: Source,
    pub branch: BranchId,
    pub chunk: ChunkIndex,
    pub extent: u32,
    /// The view's; for the head, that which the session writes.
    pub generation: Generation,
    /// The view that was pulled before (0: none). Whatever is in between is the target's own, and goes where the source is
    /// absent.
    pub after: Generation,
    /// The source's version of the extent.
    pub version: Version,
    /// The 16 blocks' states: `Data` blocks lie in the payload in order, with their sums. `Absent` removes.
    pub runs: Vec<Run>,
    pub sums: Vec<Sum>,
    pub payload: Payload,
}

/// What opening found: for metad and for the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub drive: DriveId,
    /// Bytes.
    pub capacity: u64,
    /// Openings, newest (this one) last.
    pub openings: Vec<OpenId>,
    pub replicas: Vec<proto::control::HeldReplica>,
    pub in_doubt: Vec<BranchId>,
    /// Bytes of journal that the opening read.
    pub replayed: u64,
    /// Same boot as the last opening: it may serve before metad confirms.
    pub same_boot: bool,
}

/// Why a drive could not be opened, or stopped. Each has a line in docs/operations.md.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("not a blockd drive: no superblock")]
    NoSuperblock,
    #[error("the drive belongs to node {node} of cluster {cluster:032x}", node = .0.node, cluster = .0.cluster.0)]
    Foreign(HeldBy),
    #[error("the drive is smaller than when it was formatted: {now} < {then} bytes")]
    Shrunk { then: u64, now: u64 },
    #[error("disk format needs feature bits {0:#x} that this version does not know")]
    Features(u64),
    #[error("the drive has format {0}, which this version does not read any more")]
    Version(u16),
    /// Found by the node: two drives of the same id cannot both be what metad knows by it.
    #[error("a drive of the same id is open here already: one of the two is a copy")]
    Twin,
    #[error("the journal ends before what was recorded as flushed")]
    JournalLost,
    #[error("both copies of table page {0} are damaged")]
    TableLost(u64),
    #[error("I/O error {errno} at offset {offset}")]
    Io { errno: i32, offset: u64 },
    #[error("I/O error {errno} of a flush")]
    Flush { errno: i32 },
}

impl Failure {
    /// An I/O at this offset failed; none: a flush.
    pub(crate) fn of_io(at: Option<u64>, errno: i32) -> Failure {
        at.map_or(Failure::Flush { errno }, |offset| Failure::Io { errno, offset })
    }
}

#[derive(Clone, Debug)]
pub enum Effect {
    Io {
        io: IoId,
        op: IoOp,
    },
    /// An answer. The order of replies (and broadcasts) of one store is the order of its stream of
    /// acknowledgements.
    Reply {
        source: Source,
        frame: ReplyFrame,
    },
    /// `FlushBegun`, `FlushDone`, `DriveState`: to every connection that has sent this drive anything.
    Broadcast {
        frame: ReplyFrame,
    },
    /// Done, or refused; `written` of the extent's blocks were pulled (others: the bitmap won).
    Pulled {
        token: u64,
        result: Result<u32, Refusal>,
    },
    Opened(Box<Opened>),
    /// The store serves nothing any more (also: could not be opened).
    Failed(Failure),
    Closed,
    /// Erased as ordered by `Delete`, durable.
    Deleted {
        replicas: Vec<proto::control::HeldReplica>,
    },
    /// The list of this index, or a newer one, is obeyed, and that is durable.
    Kept {
        branch: BranchId,
        index: ListIndex,
    },
    /// For the log and the metrics.
    Notice(Notice),
}

/// Worth a log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    BadBlock { branch: BranchId, chunk: ChunkIndex, block: u32, state: BlockState },
    Repaired { branch: BranchId, chunk: ChunkIndex, block: u32 },
    JournalFull,
    SpaceLow { free_extents: u64 },
    Recovered { batches: u64, dropped: u64, bytes: u64 },
}
