//! A volume's session: the one writer of a branch (architecture, section 5).
//!
//! Pure: guests' requests, replicas' answers, metad's answers and time go in; frames, proposals and completed
//! tickets come out. A maintenance session is the same code without a guest.
#![forbid(unsafe_code)]

pub mod event;
pub mod request;

pub use event::{CloseReason, Effect, Event, Leases};
pub use request::{GuestData, GuestError, GuestOp, GuestReply, GuestRequest, ReadPiece};
