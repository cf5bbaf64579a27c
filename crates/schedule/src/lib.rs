//! When a snapshot is due, and which ones are kept.
//!
//! Owns: calendar time (UTC), schedules (cron expressions and words), retention. Pure: it is asked with a time and never
//! looks at a clock; so metad's state machine may use it, and the same log gives the same snapshots everywhere.
#![forbid(unsafe_code)]

pub mod calendar;
pub mod cron;
pub mod retain;

pub use calendar::Moment;
pub use cron::{Schedule, ScheduleError, jitter};
pub use retain::{Retention, most_kept};
