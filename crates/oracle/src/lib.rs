//! The judge of histories: what guests asked, what they were told, and whether section 2 allows it.
//!
//! Owns: linearizability per register (a block, or a sector where a guest writes sectors), the flush rule after a
//! power loss, the rules for errors. Never: does I/O, knows a cluster, a clock or the simulator. The same judge reads
//! the simulator's guests and the logs of real runs ([`History`], one [`Entry`] a line).
//!
//! Invariants: stamps rise with every entry; a write that was never answered is *unknown*: it may have taken effect at
//! any moment since it was sent (until its client was replaced), or never.
#![forbid(unsafe_code)]

mod cut;
mod exact;
pub mod history;
pub mod judge;
pub mod register;
pub mod violation;

pub use history::{Entry, History, OpId, OpKind, Outcome, SnapshotNumber, VolumeNumber};
pub use judge::{Counts, Judge};
pub use register::{Register, Stamp, Value, ZERO};
pub use violation::{Rule, Violation};
