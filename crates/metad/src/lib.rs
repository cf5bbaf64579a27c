//! The Raft edge: openraft, tonic and redb around `meta`'s pure machines.
//!
//! Nothing is decided here. `raft` is the port through which a command comes back committed, `core` owns the state and
//! the service, `rpc` translates. What it keeps: rows are committed with the applied index, votes and log never in
//! another order than asked, reads only by a leader that has confirmed that it leads, and no Raft message is taken that
//! was meant for another metad or cluster.
#![forbid(unsafe_code)]

pub mod config;
pub mod core;
mod logging;
mod metrics;
pub mod raft;
mod random;
pub mod rpc;
pub mod server;
mod state_dir;

pub use logging::start as start_logging;
