//! The stream of a snapshot: a full copy, or what changed between two, as bytes for a file or a pipe
//! (`docs/stream-format.md`).
//!
//! Owns the format: `Writer` turns content into bytes, `Reader` turns bytes in pieces of any size into content, or into
//! an error that says what is wrong and where. Never does I/O. Invariants: what a reader hands out came whole, from one
//! stream, in its order; a stream that does not end as it should is never called complete.
#![forbid(unsafe_code)]

mod frame;
mod reader;
mod writer;

pub use frame::{Begin, End, FORMAT, MAGIC, PAYLOAD_MAX, Point, ZERO_MAX};
pub use reader::{Good, Item, Reader, StreamError};
pub use writer::Writer;

#[cfg(test)]
mod tests;
