//! The extent store: one drive's journal, overlay, extent table and replica records.
//!
//! Pure: a state machine. Requests and completions of I/O go in by [`Store::handle`], effects come out of
//! [`Store::poll`] and are drained before the next event. The same code runs in blockd and in the simulator.
#![forbid(unsafe_code)]

pub mod bugs;
pub mod disk;
pub mod event;
pub mod format;
pub mod layout;
pub mod medium;

pub use bugs::Bugs;
pub use event::{Effect, Event, IoId, IoOp, IoResult, Source};
pub use format::{FormatParams, FormatStep, format};
