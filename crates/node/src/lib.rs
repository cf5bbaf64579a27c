//! A whole node: sessions, stores, links, node-pair leases, credits and exports put together.
//!
//! Pure. The edge (blockd's shard loop, or the simulator) turns effects into system calls and completions
//! into events: `Node::handle(now, Event)`, `Node::received(now, link, &[u8])`, `Node::poll() -> Option<Effect>`,
//! `Node::next_wake() -> Time`.
#![forbid(unsafe_code)]

mod attach;
mod bugs;
mod desk;
mod drives;
pub mod event;
mod guests;
mod lease;
mod link;
mod links;
mod measure;
mod node;
mod pull;
mod seats;
mod serve;
mod shutdown;
mod status;
mod verify;

pub use bugs::Bugs;
pub use event::{Effect, Event, ExportError, ExportInfo, LinkId, NodeParams};
pub use node::Node;
pub use seats::in_words;
pub use status::{DriveState, DriveView, JournalFill, LeaseStatus, LinkStatus, SeatView};
pub use verify::VerifyState;
