//! A whole node: sessions, stores, links, node-pair leases, credits and exports put together.
//!
//! Pure. The edge (blockd's shard loop, or the simulator) turns effects into system calls and completions
//! into events: `Node::handle(now, Event)`, `Node::received(now, link, &[u8])`, `Node::poll() -> Option<Effect>`,
//! `Node::next_wake() -> Time`.
#![forbid(unsafe_code)]

pub mod event;

pub use event::{Effect, Event, ExportError, ExportInfo, LinkId, NodeParams};
