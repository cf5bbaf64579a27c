//! `blockctl load`: a guest that remembers. It writes stamped blocks, notes in a log what it was told, and can
//! say later whether anything that was acknowledged, or flushed, is missing or torn.
//!
//! The log is written before a request is sent and after an answer came, so it survives the writer's own death:
//! at worst it knows less than the server did, never more.

pub mod check;
mod histogram;
pub mod log;
mod run;
mod stamp;

pub use check::{CheckOptions, CheckReport, check};
pub use histogram::Histogram;
pub use run::{LoadError, Options, RECONNECT_FOR, Report, run};
