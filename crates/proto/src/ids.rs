//! Ids: each a type of its own, so that a drive is never taken for a node.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, concat!($prefix, "{}"), self.0) }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, concat!($prefix, "{}"), self.0) }
        }
    };
}

id!(/// One cluster; random, made by `cluster init`. Stands in every handshake and superblock.
    ClusterId(u128), "cluster-");
id!(/// One machine that runs blockd; 1 and up, never reused. Shown as `n3`.
    NodeId(u32), "n");
id!(/// One line of history: chunks, replicas, sessions, epochs and versions belong to a branch.
    BranchId(u64), "b");
id!(/// A named volume; points at one branch.
    VolumeId(u64), "v");
id!(/// Index of a chunk within its branch, 0 and up.
    ChunkIndex(u32), "c");
id!(/// Number of one placement of a replica; given by metad, unique in the cluster, grows with the log.
    Incarnation(u64), "i");
id!(/// Counts the snapshots of a branch; a snapshot seals a generation. The first is 1; 0 is no generation.
    Generation(u32), "g");
id!(/// Number of a chunk's configuration; every change raises it. 0 is "none seen".
    ConfigNumber(u64), "#");
id!(/// Number of a session of one branch. The top 6 bits are the lineage (`limits::LINEAGE_BITS`),
    /// which rises when metad is restored from a backup. 0 is "no session yet".
    Epoch(u32), "e");
id!(/// Number of one process of a node, counted in its state directory under its lock.
    ProcessNumber(u64), "p");
id!(/// Number of a connection, given by the dialling process; a replica serves the newest only.
    ConnNumber(u64), "conn");
id!(/// Identifies one mutating request to metad; the first answer is kept, so a repeat is harmless. Random.
    RequestId(u128), "r");
id!(/// Which key a block is encrypted with; 0 = not encrypted (the only value in use so far).
    KeyId(u32), "k");
id!(/// Index of an entry in metad's Raft log.
    LogIndex(u64), "log");
id!(/// A job: work that takes its time, and that an operator can look at and cancel. 1 and up.
    JobId(u64), "j");
id!(/// One opening of a drive; random; the drive keeps a list of them (time travel is found by it).
    OpenId(u64), "open");
id!(/// A guest's request as the export knows it: must be completed exactly once.
    Ticket(u64), "t");
id!(/// An open export of this process (an NBD export that clients are connected to).
    ExportId(u64), "x");

/// One drive, random at format; never reused. Shown everywhere as it is typed: 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct DriveId(pub u64);
impl fmt::Debug for DriveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl fmt::Display for DriveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Epoch {
    /// The epoch of the next session; `None` when the counter of this lineage is used up.
    #[must_use]
    pub fn next(self) -> Option<Epoch> {
        let counter = self.0 & crate::limits::EPOCH_COUNTER_MAX;
        (counter < crate::limits::EPOCH_COUNTER_MAX).then(|| Epoch(self.0 + 1))
    }
}
impl ConfigNumber {
    #[must_use]
    pub fn next(self) -> ConfigNumber {
        ConfigNumber(self.0 + 1)
    }
}
impl Generation {
    pub const FIRST: Generation = Generation(1);
}
