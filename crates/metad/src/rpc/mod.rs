//! The gRPC services: translation between protobuf and `meta`, and the way to the leader. Nothing is decided here.

pub mod cluster;
mod convert;
pub mod lead;
pub mod members;
pub mod node;
mod policies;
pub mod quorum;
pub mod raft;
mod snapshots;
mod space;
