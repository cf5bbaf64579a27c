//! The control plane of a node: metad's client, the admin service, metrics; all in one thread of their own.

pub mod admin;
pub mod member;
pub mod metad;
mod metrics;
mod notices;
pub mod openings;
pub mod since;
pub mod thread;

use crate::device::Drive;
use crate::drives::DriveCounts;
use crate::export::ConnId;
use crate::export::latency::Latencies;
use node::{DriveState, LinkId, SeatView, VerifyState};
use proto::control::{MetaAnswer, MetaRequest, WatchUpdate};
use proto::{BranchId, DriveId, Generation, OpenId, RequestId, Time};
use std::net::SocketAddr;
use store::event::Failure;

/// Who wants to know of volumes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Question {
    /// NBD_OPT_LIST.
    List(ConnId),
    /// NBD_OPT_INFO of this name.
    Look(ConnId, String),
}

/// Which generations snapshots sealed that a guest wants to compare its export with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Since {
    /// The branch of the export; they all are of it.
    pub branch: BranchId,
    /// `None`: there is none that it can be compared with.
    pub found: Vec<Option<Generation>>,
}

/// Told what became of a drive's opening, once.
pub type DriveOpened = Box<dyn FnOnce(Result<DriveId, Failure>) + Send>;

/// To the control thread.
#[derive(Debug)]
pub enum ToControl {
    Meta {
        token: u64,
        request: MetaRequest,
    },
    Volumes {
        question: Question,
        name: Option<String>,
    },
    /// Snapshots of the volume of this export.
    Since {
        connection: ConnId,
        export: String,
        snapshots: Vec<String>,
    },
    /// A peer's address that is a name.
    Resolve {
        link: LinkId,
        address: String,
    },
}

/// To the shard.
pub enum ToShard {
    Meta {
        token: u64,
        answer: MetaAnswer,
    },
    Watch(WatchUpdate),
    Volumes {
        question: Question,
        answer: MetaAnswer,
    },
    /// `None`: metad does not answer.
    Since {
        connection: ConnId,
        export: String,
        answer: Option<Since>,
    },
    Resolved {
        link: LinkId,
        address: Option<SocketAddr>,
    },
    /// Opened and locked.
    Drive {
        drive: Drive,
        opening: OpenId,
        opened: DriveOpened,
    },
    Status(Box<dyn FnOnce(Status) + Send>),
    /// How far a `volume verify` is.
    Verification {
        request: RequestId,
        reply: Box<dyn FnOnce(Option<VerifyState>) + Send>,
    },
    /// Drain, flush, close, end.
    Stop,
}

/// What the shard tells of itself.
#[derive(Clone, Default, Debug)]
pub struct Status {
    pub drives: Vec<DriveStatus>,
    pub exports: Vec<ExportStatus>,
    /// Seats whose session metad has not granted yet.
    pub attaching: Vec<SeatView>,
    pub clients: usize,
    pub turned_away: u64,
    pub latencies: Latencies,
    pub in_flight: usize,
    pub requests: u64,
    pub links: usize,
    pub link_bytes_in: u64,
    pub link_bytes_out: u64,
    pub turns: u64,
    pub enters: u64,
}

#[derive(Clone, Debug)]
pub struct ExportStatus {
    pub volume: String,
    /// Once open.
    pub branch: Option<BranchId>,
    pub clients: usize,
    pub in_flight: usize,
}

#[derive(Clone, Debug)]
pub struct DriveStatus {
    /// 0 until it is open.
    pub drive: u64,
    pub path: String,
    pub capacity: u64,
    pub state: DriveState,
    /// By the shard's clock; none: a moment ago.
    pub since: Option<Time>,
    pub counts: DriveCounts,
    pub journal: node::JournalFill,
}
