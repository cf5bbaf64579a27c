//! The node's edge: turns the effects of `node::Node` into system calls, and their completions into events.
//!
//! Nothing is decided here. `unsafe` lives in this crate alone, in `ring` and in small calls of libc, each with its
//! argument.

pub mod config;
pub mod control;
pub mod core;
pub mod daemon;
pub mod device;
pub mod drives;
pub mod export;
pub mod format;
pub mod inspect;
pub mod mailbox;
pub mod net;
pub mod notice;
pub mod ring;
pub mod shard;
pub mod state_dir;
pub mod sys;

pub use edge::{finish, logging, notify};

/// Of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What `--version` says: the build, and what it can read and speak.
#[must_use]
pub fn long_version() -> &'static str {
    static TEXT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let text = || {
        format!(
            "{VERSION}\ndisk format: {}\nprotocol: {}..={}",
            store::disk::superblock::VERSION,
            proto::frame::PROTOCOL_MIN,
            proto::frame::PROTOCOL,
        )
    };
    TEXT.get_or_init(text)
}
