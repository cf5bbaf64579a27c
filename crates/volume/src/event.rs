//! What goes into a session, and what comes out.

use crate::request::{GuestError, GuestReply, GuestRequest};
use proto::control::{JobOrder, MetaAnswer, MetaRequest};
use proto::message::{DriveHello, ReplyFrame, RequestFrame};
use proto::{
    BranchId, BranchViews, ChunkIndex, ConnNumber, DriveId, Epoch, Geometry, ListIndex, NodeId,
    ProcessNumber, Ticket, Time,
};
use std::collections::BTreeSet;

/// The node's leases (5.5), one per pair of nodes.
pub trait Leases {
    /// Until when this process may count on `node`'s lease for `branch` (already the holder's 2.7 s, counted
    /// from before it asked). `Time::ZERO` if not held. The own node's: `Time::FAR` while it serves the branch
    /// under this session's epoch.
    fn until(&self, node: NodeId, branch: BranchId) -> Time;
}

#[derive(Clone, Debug)]
pub enum Event {
    Guest(GuestRequest),
    /// Whoever asked these has gone: what is not begun of them never is. Each is completed, with `Withdrawn` if anything
    /// was left out; at once unless a part of it is under way.
    Withdraw {
        tickets: BTreeSet<Ticket>,
    },
    /// A link to a node is up (the own node too, once, at the start); `connection` is newer than any before.
    /// Everything sent before on an older one may or may not have arrived: unacknowledged writes are sent again.
    Connected {
        node: NodeId,
        connection: ConnNumber,
        process: ProcessNumber,
        drives: Vec<DriveHello>,
    },
    Disconnected {
        node: NodeId,
    },
    /// An answer, on the newest connection to that node.
    Reply {
        node: NodeId,
        frame: ReplyFrame,
    },
    /// Answer to `Effect::Meta` with this token; `MetaAnswer::Unavailable` decides nothing.
    Meta {
        token: u64,
        answer: MetaAnswer,
    },
    /// metad's watch: look these chunks up.
    ChunksChanged {
        chunks: Vec<ChunkIndex>,
    },
    /// Drives that Raft calls down (all of them, each time).
    Down {
        drives: Vec<DriveId>,
    },
    /// metad tells that the branch's generations changed: the session asks.
    Views {
        views: BranchViews,
    },
    /// The volume's size as of this index. If it grows, its new chunks are to be made as this placement, if there is one.
    Resized {
        index: ListIndex,
        geometry: Geometry,
        placement: Option<u32>,
    },
    /// metad's order: the job to work at, or none (any more), as of this index.
    Job {
        index: ListIndex,
        job: Option<JobOrder>,
    },
    /// A replica's node revokes: a newer epoch asks there.
    Revoked {
        node: NodeId,
        epoch: Epoch,
    },
    /// A lease that was not held is held now.
    LeaseGained {
        node: NodeId,
    },
    /// Drain, flush, detach. Ends with `Effect::Closed`.
    Close,
    /// The time given by `next_wake` has come.
    Wake,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// Drained, flushed, detached.
    Clean,
    /// A newer session exists. The node attaches again unless another guest's attach did it.
    Fenced,
    /// `Close` could not be finished in time; nothing acknowledged is lost, the next opening reconciles.
    GivenUp,
    /// Every connected member of some chunk is in doubt (5.6): attach again, under a new epoch. What a running
    /// guest believes written may be gone: it gets errors.
    Doubt,
}

#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "almost all are frames; a box would be an allocation per write"
)]
pub enum Effect {
    /// To a node's replica side (the own node's too); dropped if there is no connection.
    Send {
        node: NodeId,
        frame: RequestFrame,
    },
    Complete {
        ticket: Ticket,
        result: Result<GuestReply, GuestError>,
    },
    Meta {
        token: u64,
        request: MetaRequest,
    },
    /// The session serves.
    Opened {
        geometry: Geometry,
    },
    /// Created or grown: for the export.
    Resized {
        geometry: Geometry,
    },
    /// The node returns its leases of this branch and forgets the session; all tickets are completed.
    Closed {
        reason: CloseReason,
    },
    Notice(Notice),
}

/// Worth a log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    Dropping { drive: DriveId, chunks: u32, cause: proto::control::ChangeCause },
    Waiting { reason: WaitReason },
    WaitOver { reason: WaitReason },
    ResyncStarted { chunk: ChunkIndex, target: DriveId },
    Promoted { chunk: ChunkIndex, target: DriveId, bytes_moved: u64 },
    Repaired { chunk: ChunkIndex, block: u32, drive: DriveId },
    BadEverywhere { chunk: ChunkIndex, block: u32 },
    Reconciled { extents: u64 },
}

/// Why I/O waits. Each has a line in docs/operations.md: owner, deadline, way out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WaitReason {
    /// Opening: in-sync replicas have not all answered their fence.
    Fencing,
    /// Fewer than `min_in_sync` replicas are left.
    MinInSync,
    /// A change of membership is undecided (metad has not answered).
    Undecided,
    /// Not enough evidence that the fault is not our own (5.2).
    Evidence,
    /// A lease is not held.
    Lease,
    /// Everything that can be reached is in doubt.
    Doubt,
    /// The snapshot of a group: Raft has not said that all are drained, or that it is called off.
    Sealing,
    /// A clone: nobody who has the parent's view can be asked for what the clone itself has not.
    Parent,
}
