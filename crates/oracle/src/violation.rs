//! What the judge found.

use crate::history::{OpId, VolumeNumber};
use crate::register::Value;

/// Which promise was broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Rule {
    /// No order of the operations explains what was returned.
    Linearizable,
    /// After a power loss: older than a write that a completed flush covers, or two different pasts.
    Flush,
    /// A snapshot is not what the volume held at one moment between its question and its answer.
    Cut,
    /// A read returned bytes that nobody wrote there, or one block in pieces of two writes.
    Torn,
    /// An error that damage within the promises does not explain.
    Error,
    /// The log itself makes no sense (an answer without a question).
    Log,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    pub rule: Rule,
    pub volume: VolumeNumber,
    /// Index of the register (block or sector).
    pub register: u64,
    pub op: OpId,
    /// What was returned, or what the write wrote.
    pub value: Value,
    pub detail: &'static str,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?}: volume {} register {} operation {} value {}: {}",
            self.rule, self.volume.0, self.register, self.op.0, self.value, self.detail
        )
    }
}
