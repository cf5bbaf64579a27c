//! A volume's session: the one writer of a branch (architecture, section 5).
//!
//! Pure: guests' requests, replicas' answers, metad's answers and time go in; frames, proposals and completed
//! tickets come out. A maintenance session is the same code without a guest.
#![forbid(unsafe_code)]

mod acks;
mod bugs;
mod chain;
mod close;
mod create;
mod credits;
pub mod event;
mod fail;
mod fanout;
mod flatten;
mod flush;
mod geometry;
mod job;
mod links;
mod members;
mod opening;
mod ops;
mod ordering;
mod parents;
mod presence;
mod propose;
pub mod reader;
mod reads;
mod reconcile;
mod repair;
pub mod request;
mod resync;
mod seal;
mod session;
mod shrink;
mod status;
mod verify;

pub use bugs::Bugs;
pub use event::{CloseReason, Effect, Event, Leases, Notice, WaitReason};
pub use reader::{Reader, ReaderEffect, ReaderEvent};
pub use request::{GuestData, GuestError, GuestOp, GuestReply, GuestRequest, ReadPiece};
pub use session::Session;
