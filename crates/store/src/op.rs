//! An admitted operation: its journal entry, and what is owed when it has taken effect.

use crate::disk::entry::{FLAG_LARGE, KIND_PULL, PullMasks, SLOT_UNITS};
use crate::disk::page::RECORD_SLOT;
use crate::event::Source;
use crate::records::Bits;
use crate::table::{NONE, Px};
use proto::control::HeldReplica;
use proto::record::{KIND_WRITE, KIND_ZERO, RawRecord};
use proto::{BranchId, Generation, Payload, Version};

/// An admitted operation.
pub struct Op {
    pub raw: RawRecord,
    /// Bytes that go into the journal behind the header; until its batch is sealed.
    pub payload: Option<Payload>,
    /// A record slot's new content.
    pub slot: Option<Box<[u8; RECORD_SLOT]>>,
    /// Whole zero extents that this slot sets or clears.
    pub bits: Option<Box<BitChange>>,
    /// Number of the replica; `NONE` for changes of records.
    pub replica: u32,
    /// Home; `NONE` if it has none (of its own).
    pub px: Px,
    /// The hold that goes when it has taken effect; 0 if none.
    pub hold: u64,
    /// Period of admission: flushes wait for whole periods.
    pub period: u64,
    pub source: Source,
    pub then: Then,
}

/// Bits of one window that a slot entry changes.
pub struct BitChange {
    pub replica: u32,
    pub generation: Generation,
    pub window: u32,
    pub bits: Bits,
    /// They are set, with this version; none: they go.
    pub version: Option<Version>,
    /// What they say was there before, at rest: in a home that gives way to them, or as the bits of an older generation.
    pub moved: bool,
}

/// What is owed.
pub enum Then {
    Nothing,
    /// An acknowledgement; `extents`: taken from the session's credit.
    Ack {
        extents: u32,
    },
    /// `Done`, and a notice.
    Repaired {
        token: u64,
    },
    Done {
        token: u64,
    },
    Pulled {
        token: u64,
        written: u32,
    },
    /// The sweep may go on.
    Swept,
    /// ... and with joins.
    Joined,
    /// Once a flush covers it.
    Flushed(Box<Answer>),
}

/// Owed once a flush covers the entry.
pub enum Answer {
    Done { source: Source, token: u64, branch: BranchId },
    Report { source: Source, token: u64, branch: BranchId, fence: u32 },
    DoubtEnded { source: Source, token: u64, branch: BranchId },
    Deleted { replicas: Vec<HeldReplica> },
    Kept { branch: BranchId, index: proto::ListIndex },
}

impl Op {
    /// A change of records, for nobody.
    #[must_use]
    pub fn record(raw: RawRecord, slot: [u8; RECORD_SLOT], period: u64) -> Op {
        Op {
            raw,
            payload: None,
            slot: Some(Box::new(slot)),
            bits: None,
            replica: NONE,
            px: NONE,
            hold: 0,
            period,
            source: Source(0),
            then: Then::Nothing,
        }
    }
    /// Units of 128 bytes in the header.
    #[must_use]
    pub fn units(&self) -> usize {
        if self.slot.is_some() { SLOT_UNITS } else { 1 }
    }
    /// Blocks behind the header.
    #[must_use]
    pub fn blocks(&self) -> usize {
        let blocks = match self.raw.kind {
            KIND_WRITE if !self.is_large() => self.raw.count.get(),
            KIND_PULL => PullMasks::of(&self.raw).data.count_ones(),
            _ => 0,
        };
        blocks as usize
    }
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.raw.flags & FLAG_LARGE != 0
    }
    /// True if it came from a session and may be dropped while it waits.
    #[must_use]
    pub fn is_data(&self) -> bool {
        matches!(self.raw.kind, KIND_WRITE | KIND_ZERO | KIND_PULL)
    }
}
