//! NBD, both ends, as pure machines: bytes and answers in, bytes and questions out.
//!
//! Owns the protocol: fixed newstyle handshake, simple, structured and extended replies, block status of
//! `base:allocation`. Never opens, reads or writes anything, and never judges what a volume may do.
//! Whatever a peer sends, a machine neither panics nor loses its place in the stream: it answers with an error
//! where the protocol allows that, and closes where it does not.
#![forbid(unsafe_code)]

pub mod client;
mod export;
mod gather;
pub mod memory;
mod output;
mod server;
pub mod wire;

pub use export::{BLOCK_SIZES, Export};
pub use output::Piece;
pub use server::{Ask, Close, Listed, Op, ReadPiece, RefusalKind, Refused, RequestId, Server, Violation};
pub use wire::{Errno, Mode};
