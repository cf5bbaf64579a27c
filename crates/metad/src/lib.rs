//! The Raft edge: openraft, tonic and redb around `meta`'s pure machines.
//!
//! Nothing is decided here. `raft` is the port through which a command comes back committed, `core` owns the state and
//! the service, `rpc` translates. What it keeps: rows are committed with the applied index, votes and log never in
//! another order than asked, reads only by a leader that has confirmed that it leads, and no Raft message is taken that
//! was meant for another metad or cluster.
#![forbid(unsafe_code)]

pub mod config;
pub mod core;
mod metrics;
pub mod raft;
mod random;
pub mod rpc;
pub mod server;
mod state_dir;

pub use edge::{finish, logging, notify};

/// Of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What `--version` says: the build, what it can read, and what its members can follow.
#[must_use]
pub fn long_version() -> &'static str {
    static TEXT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let text = || {
        format!(
            "{VERSION}\ndatabase format: {}\ncommands: 1..={}\nprotocol: {}..={}",
            raft::FORMAT,
            meta::command::COMMAND_FORMAT,
            proto::frame::PROTOCOL_MIN,
            proto::frame::PROTOCOL,
        )
    };
    TEXT.get_or_init(text)
}
