//! The record: one write (or zeroing) of a branch. The same 128 bytes on the wire and in the journal.

use crate::ids::{BranchId, ChunkIndex, Generation, Incarnation, KeyId};
use crate::limits::{BLOCK, BLOCKS_PER_EXTENT};
use crate::marks::Version;
use crate::units::BlockRange;
use serde::{Deserialize, Serialize};

/// CRC-32C of one block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Sum(pub u32);
impl Sum {
    #[must_use]
    pub fn of(block: &[u8]) -> Sum {
        debug_assert_eq!(block.len(), BLOCK);
        Sum(crc32c::crc32c(block))
    }
}
impl std::fmt::Debug for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// What a record does to its blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum RecordKind {
    /// New bytes; the payload has one block per block of the range, which lies in one extent.
    Write,
    /// The blocks read as zeroes (discard, write zeroes); no payload; any range within the chunk.
    Zero,
}

/// One write of one session to one chunk.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Record {
    pub kind: RecordKind,
    pub branch: BranchId,
    pub chunk: ChunkIndex,
    /// Blocks within the chunk; a `Write` stays within one extent (`limits::BLOCKS_PER_EXTENT`).
    pub range: BlockRange,
    pub version: Version,
    pub generation: Generation,
    pub incarnation: Incarnation,
    pub key: KeyId,
    /// Checksum of each block of a `Write`, in order; the rest is zero.
    pub sums: [Sum; BLOCKS_PER_EXTENT as usize],
}

impl Record {
    /// A `Write` record for `payload`, sums computed from it. Panics if the range leaves its extent.
    #[must_use]
    pub fn sums_of(payload: &crate::payload::Payload) -> [Sum; BLOCKS_PER_EXTENT as usize] {
        let mut sums = [Sum::default(); BLOCKS_PER_EXTENT as usize];
        for (i, s) in sums.iter_mut().enumerate().take(payload.blocks()) {
            *s = Sum::of(payload.block(i));
        }
        sums
    }
}
