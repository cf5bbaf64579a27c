//! The extent store: one drive's journal, overlay, extent table and replica records.
//!
//! Pure: a state machine. Requests and completions of I/O go in by [`Store::handle`], effects come out of
//! [`Store::poll`] and are drained before the next event. The same code runs in blockd and in the simulator.
#![forbid(unsafe_code)]

mod admin;
mod admit;
pub mod bugs;
mod checkpoint;
mod commit;
pub mod disk;
pub mod event;
mod flush;
pub mod format;
mod homes;
mod index;
pub mod inspect;
mod intake;
mod join;
mod journal;
mod keep;
pub mod layout;
mod listing;
mod load;
pub mod medium;
mod op;
mod overlay;
mod pages;
mod read;
mod records;
mod recovery;
mod store;
mod sweep;
mod table;
mod usage;
pub mod view;
mod zeroes;

pub use bugs::Bugs;
pub use event::{Effect, Event, IoId, IoOp, IoResult, Source};
pub use format::{FormatParams, FormatStep, format};
pub use store::{OpenParams, Store};
pub use usage::Tally;
