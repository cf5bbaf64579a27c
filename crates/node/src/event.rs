//! What goes into a node, and what comes out.

use proto::control::{MetaAnswer, MetaRequest, WatchUpdate};
use proto::{BranchId, ClusterId, DriveId, ExportId, Geometry, NodeId, OpenId, ProcessNumber, Ticket};
use store::event::Failure;
use store::{IoId, IoOp, IoResult};
use volume::{GuestError, GuestReply, GuestRequest};

/// A TCP connection of the data plane; the node numbers those it dials, the edge those it accepts
/// (edge's numbers have the top bit set).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u64);

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeParams {
    pub cluster: ClusterId,
    pub node: NodeId,
    /// Counted in the state directory, under its lock.
    pub process: ProcessNumber,
    /// The kernel's boot id.
    pub boot: [u8; 16],
    /// Seed for ids of requests and openings; all chance of a node comes from it.
    pub seed: u64,
}

/// A drive handed to the node; the edge holds its lock and descriptor.
#[derive(Clone, Debug)]
pub struct DriveParams {
    /// The edge's handle; the drive's own id is found in its superblock. Effects name this handle.
    pub handle: u32,
    /// Bytes.
    pub size: u64,
    /// False on a block device that reports no volatile write cache.
    pub volatile_cache: bool,
    pub path: String,
    /// This opening's id.
    pub opening: OpenId,
}

#[derive(Clone, Debug)]
pub enum Event {
    AddDrive(DriveParams),
    Io {
        handle: u32,
        io: IoId,
        result: IoResult,
    },
    /// A peer has connected to us.
    Accepted {
        link: LinkId,
    },
    /// Our dial succeeded.
    Dialled {
        link: LinkId,
    },
    /// Our dial failed, or an established connection is gone.
    LinkClosed {
        link: LinkId,
    },
    Meta {
        token: u64,
        answer: MetaAnswer,
    },
    Watch(WatchUpdate),
    /// The first client of an export wants the volume (NBD_OPT_GO). Answer: `ExportOpened` or `ExportRefused`.
    OpenExport {
        export: ExportId,
        volume: String,
        force: bool,
    },
    /// The last client has gone; the session closes after 2 s unless `OpenExport` of the volume comes again.
    CloseExport {
        export: ExportId,
    },
    Guest {
        export: ExportId,
        request: GuestRequest,
    },
    /// `volume verify` and the like: tickets of the node's own.
    Wake,
    /// All input that was ready has been handed in: seal batches, send what is to be sent.
    TurnEnd,
    /// Drain, flush, return leases, close drives. Ends with `Effect::Stopped`.
    Shutdown,
}

/// What an export needs to know of the volume it serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportInfo {
    pub name: String,
    pub branch: BranchId,
    pub geometry: Geometry,
    pub read_only: bool,
}

/// Why a volume is not to be had here. Whoever shows it names the volume and this node before it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExportError {
    #[error("there is no volume of this name. blockctl volume list shows what there is")]
    NoSuchVolume,
    #[error("there is no such snapshot, or it is not sealed yet. blockctl snapshot list shows what there is")]
    NoSuchSnapshot,
    #[error(
        "it is still being created, or is being deleted. blockctl volume wait --state ready waits for it"
    )]
    NotReady,
    #[error(
        "it is attached on node {holder} (epoch {epoch}). Close its clients there, or stop the blockd of {holder}: \
         within about 6 s after that it can be attached here"
    )]
    Held { holder: String, epoch: u32 },
    #[error(
        "metad cannot be reached, or none leads. See that a majority of the metads runs; then connect again"
    )]
    NoMetad,
    #[error("it could not be opened within 6 s: {0}. Connect again, or see blockctl volume show")]
    Timeout(String),
    #[error("blockd is stopping there. Connect again once it runs, or to another node")]
    Closing,
}

#[derive(Debug)]
pub enum Effect {
    Io {
        handle: u32,
        io: IoId,
        op: IoOp,
    },
    /// Connect to a peer's data address; `Dialled` or `LinkClosed` follows.
    Dial {
        link: LinkId,
        to: NodeId,
        address: String,
    },
    /// One send per dirty link and turn. The buffer comes back by `Node::recycle` if the edge likes.
    Send {
        link: LinkId,
        bytes: Vec<u8>,
    },
    CloseLink {
        link: LinkId,
    },
    /// To metad. The edge finds the leader, and answers `Unavailable` when it cannot within a second.
    Meta {
        token: u64,
        request: MetaRequest,
    },
    ExportOpened {
        export: ExportId,
        info: ExportInfo,
    },
    ExportRefused {
        export: ExportId,
        error: ExportError,
    },
    ExportResized {
        export: ExportId,
        geometry: Geometry,
    },
    /// Its clients are to connect anew, if what they have asked can be answered first.
    ExportReconnect {
        export: ExportId,
    },
    /// There will be no session for the export any more: drop its clients.
    ExportClosed {
        export: ExportId,
    },
    /// What its clients believe of the disk is not true any more: another guest had it meanwhile, or what they had
    /// written is gone. They stay, and every request of theirs fails, until `CloseExport`. Who comes anew opens anew.
    ExportBroken {
        export: ExportId,
    },
    Complete {
        export: ExportId,
        ticket: Ticket,
        result: Result<GuestReply, GuestError>,
    },
    DriveOpened {
        handle: u32,
        drive: DriveId,
    },
    DriveFailed {
        handle: u32,
        failure: Failure,
    },
    Stopped,
    Notice(Notice),
}

/// Worth a log line.
#[derive(Clone, Debug)]
pub enum Notice {
    Store {
        drive: Option<DriveId>,
        notice: store::event::Notice,
    },
    Volume {
        branch: BranchId,
        name: String,
        notice: volume::event::Notice,
    },
    LinkUp {
        node: NodeId,
    },
    LinkDown {
        node: NodeId,
    },
    HandshakeRefused {
        node: Option<NodeId>,
        refusal: proto::Refusal,
    },
    SessionClosed {
        branch: BranchId,
        reason: volume::CloseReason,
    },
    /// Bytes of a peer were not understood; the connection is closed.
    BadFrame {
        node: Option<NodeId>,
        error: proto::frame::FrameError,
    },
    /// metad calls the drive rolled back or copied: it serves nobody.
    Stranger {
        drive: DriveId,
    },
    /// metad does not confirm the drive's openings, and says why; asked again.
    NotConfirmed {
        drive: DriveId,
        refusal: proto::control::MetaRefusal,
    },
    /// `volume verify` has ended.
    Verified {
        request: proto::RequestId,
        state: crate::VerifyState,
    },
}
