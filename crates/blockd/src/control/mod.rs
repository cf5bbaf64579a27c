//! The control plane of a node: metad's client, the admin service, metrics; all in one thread of their own.

pub mod admin;
pub mod member;
pub mod metad;
mod metrics;
pub mod thread;

use crate::device::Drive;
use crate::export::ConnId;
use crate::shard::DriveCounts;
use node::{LinkId, VerifyState};
use proto::control::{MetaAnswer, MetaRequest, WatchUpdate};
use proto::{BranchId, OpenId, RequestId};
use std::net::SocketAddr;

/// Who wants to know of volumes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// NBD_OPT_LIST.
    List(ConnId),
    /// NBD_OPT_INFO.
    Look(ConnId),
}

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
    Resolved {
        link: LinkId,
        address: Option<SocketAddr>,
    },
    /// Opened and locked.
    Drive {
        drive: Drive,
        opening: OpenId,
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
    pub clients: usize,
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
    pub state: &'static str,
    pub counts: DriveCounts,
}
