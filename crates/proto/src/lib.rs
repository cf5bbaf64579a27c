//! The shared words of blockd: ids, units, versions, marks, configurations, records, frames.
//!
//! Pure: no I/O, clock, threads or chance. Everything that crosses a wire or lies on a drive is
//! spelled here once, so that the record on the wire *is* the record in the journal.
#![forbid(unsafe_code)]

pub mod collections;
pub mod configuration;
pub mod control;
pub mod date;
pub mod deframer;
pub mod frame;
pub mod generations;
pub mod handshake;
pub mod ids;
pub mod limits;
pub mod marks;
pub mod message;
pub mod payload;
pub mod record;
pub mod refusal;
pub mod space;
pub mod sum;
pub mod time;
pub mod units;
pub mod views;

pub use collections::{Map, Set};
pub use configuration::{Configuration, Member, MemberState, Place};
pub use generations::Generations;
pub use ids::*;
pub use marks::{Marks, Version};
pub use payload::{Page, PageBuf, Payload};
pub use record::{Record, RecordKind};
pub use refusal::Refusal;
pub use time::{Span, Time};
pub use units::{BlockRange, Geometry};
pub use views::{BranchViews, KeepList, Level, ListIndex, Sealing};
