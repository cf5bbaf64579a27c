//! The ruler: durable <= committed <= submitted, per volume.

use crate::ids::Epoch;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Orders the writes of a branch: given at the moment of sending.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    pub epoch: Epoch,
    /// 1 and up within an epoch; one sequence spans all chunks. 0 = before the epoch's first write.
    pub seq: u64,
}
impl Version {
    pub const ZERO: Version = Version { epoch: Epoch(0), seq: 0 };
    #[must_use]
    pub const fn new(epoch: Epoch, seq: u64) -> Version {
        Version { epoch, seq }
    }
    /// Nothing of this epoch yet: below all its writes, above all of older epochs.
    #[must_use]
    pub const fn start_of(epoch: Epoch) -> Version {
        Version { epoch, seq: 0 }
    }
    #[must_use]
    pub const fn next(self) -> Version {
        Version { epoch: self.epoch, seq: self.seq + 1 }
    }
    /// The version just below (seq must be 1 or more).
    #[must_use]
    pub const fn before(self) -> Version {
        Version { epoch: self.epoch, seq: self.seq - 1 }
    }
}
impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch.0, self.seq)
    }
}
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch.0, self.seq)
    }
}

/// What a session tells its replicas and what they store with the next batch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug, Serialize, Deserialize)]
pub struct Marks {
    /// Every write up to here is answered by all in-sync replicas.
    pub committed: Version,
    /// Every write up to here is flushed on all in-sync replicas' drives.
    pub durable: Version,
}
impl Marks {
    /// Marks only rise.
    pub fn raise(&mut self, o: Marks) {
        self.committed = self.committed.max(o.committed);
        self.durable = self.durable.max(o.durable);
    }
}
