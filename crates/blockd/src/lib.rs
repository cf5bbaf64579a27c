//! The node's edge: turns the effects of `node::Node` into system calls, and their completions into events.
//!
//! Nothing is decided here. `unsafe` lives in this crate alone, in `ring` and in small calls of libc, each with its
//! argument.

pub mod config;
pub mod control;
pub mod core;
pub mod device;
pub mod export;
pub mod format;
pub mod inspect;
pub mod logging;
pub mod mailbox;
pub mod net;
pub mod notice;
pub mod notify;
pub mod ring;
pub mod shard;
pub mod state_dir;
pub mod sys;
