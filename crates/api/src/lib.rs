//! The control plane's words: generated from `proto/blockd/*.proto`, and the few helpers that all of its users share.
//!
//! Nothing is decided here. `NodeService` carries `proto::control` as opaque bytes, `RaftService` carries openraft's
//! messages as opaque bytes; what operators ask is typed.
#![forbid(unsafe_code)]

pub mod error;

/// All messages and services.
#[allow(clippy::all, clippy::pedantic, clippy::restriction, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("blockd.v1");
}

/// Largest message of the control plane, bytes: `ShowVolume` of 65,536 chunks, and openraft's appends.
pub const MESSAGE_MAX: usize = 64 << 20;
