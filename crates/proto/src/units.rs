//! Units and geometry: bytes of a volume -> chunk, extent, block.

use crate::ids::ChunkIndex;
use crate::limits::{
    BLOCK, BLOCKS_PER_EXTENT, CHUNK_BLOCKS_MAX, CHUNK_SHIFT_MAX, CHUNK_SHIFT_MIN, VOLUME_SIZE_MAX,
};
use serde::{Deserialize, Serialize};

/// A run of blocks within one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct BlockRange {
    /// First block, index within the chunk.
    pub first: u32,
    /// Number of blocks, at least 1.
    pub count: u32,
}
impl BlockRange {
    #[must_use]
    pub const fn new(first: u32, count: u32) -> BlockRange {
        BlockRange { first, count }
    }
    /// One past the last block.
    #[must_use]
    pub const fn end(self) -> u32 {
        self.first + self.count
    }
    /// True if the range lies within the largest chunk: what comes from a peer must be asked.
    #[must_use]
    pub const fn is_possible(self) -> bool {
        match self.first.checked_add(self.count) {
            Some(end) => self.count > 0 && end <= CHUNK_BLOCKS_MAX,
            None => false,
        }
    }
    #[must_use]
    pub const fn overlaps(self, o: BlockRange) -> bool {
        self.first < o.end() && o.first < self.end()
    }
    /// Index of the extent (within the chunk) of the first block.
    #[must_use]
    pub const fn extent(self) -> u32 {
        self.first / BLOCKS_PER_EXTENT
    }
    /// True if all blocks lie in one extent.
    #[must_use]
    pub const fn in_one_extent(self) -> bool {
        self.count > 0 && self.extent() == (self.end() - 1) / BLOCKS_PER_EXTENT
    }
}

/// Size and chunking of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Geometry {
    /// Bytes; a multiple of 4 KiB.
    pub size: u64,
    /// log2 of the chunk size in bytes, 24..=32.
    pub chunk_shift: u8,
}
impl Geometry {
    /// True within the limits: what comes from a peer must be asked.
    #[must_use]
    pub const fn is_possible(self) -> bool {
        self.chunk_shift >= CHUNK_SHIFT_MIN
            && self.chunk_shift <= CHUNK_SHIFT_MAX
            && self.size <= VOLUME_SIZE_MAX
    }
    #[must_use]
    pub const fn chunk_bytes(self) -> u64 {
        1 << self.chunk_shift
    }
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a chunk is at most 4 GiB: 2^20 blocks")]
    pub const fn chunk_blocks(self) -> u32 {
        (self.chunk_bytes() / BLOCK as u64) as u32
    }
    /// Number of chunks; the last may be partly beyond the size.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "16 TiB in chunks of 16 MiB are 2^20")]
    pub const fn chunks(self) -> u32 {
        self.size.div_ceil(self.chunk_bytes()) as u32
    }
    /// The chunk and the block within it of a byte offset.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "bounded by chunks() and chunk_blocks()")]
    pub const fn locate(self, offset: u64) -> (ChunkIndex, u32) {
        let chunk = (offset >> self.chunk_shift) as u32;
        let block = ((offset & (self.chunk_bytes() - 1)) / BLOCK as u64) as u32;
        (ChunkIndex(chunk), block)
    }
    /// Byte offset in the volume of a block of a chunk.
    #[must_use]
    pub const fn offset(self, chunk: ChunkIndex, block: u32) -> u64 {
        ((chunk.0 as u64) << self.chunk_shift) + block as u64 * BLOCK as u64
    }
}
