//! Where the zones of a drive lie. Computed once, at format; then it stands in the superblock.
//!
//! ```text
//! | superblock A | superblock B | journal ring | journal index | record pages (2 slots each) | table pages (2 slots each) | data |
//! ```

use crate::disk::chunk::CHUNK_PAGES_MIN;
use crate::disk::page::{RECORDS_PER_PAGE, TABLE_PER_PAGE};
use proto::limits::{
    BLOCK, BLOCKS_PER_EXTENT, DRIVE_MIN, JOURNAL_MAX, JOURNAL_MIN, JOURNAL_SHARE, REPLAY_MAX,
};

/// Pages of one superblock copy: one of fields, the rest for the list of dropped entries.
pub const SUPERBLOCK_PAGES: u64 = 16;
/// Most pages of one batch: header pages and 512 KiB of payload.
pub const BATCH_PAGES: u32 = 4 + 128;
/// Least journal that a test may ask for, pages.
const JOURNAL_PAGES_MIN: u64 = 128;
/// Least pages of the longest batch: header pages and one whole extent, and then some.
const BATCH_PAGES_MIN: u32 = 24;
/// The index has this share of the ring, in about so many chunks, of at most so many pages.
const INDEX_SHARE: u64 = 16;
const CHUNKS: u64 = 32;
const CHUNK_PAGES_MAX: u32 = 32;
const CHUNKS_MIN: u64 = 4;
/// Record slots: one per two extents, within these bounds.
const RECORDS_MIN: u64 = 512;
const RECORDS_MAX: u64 = 262_144;

/// All in pages of 4 KiB, from the start of the drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Pages of the drive when it was formatted.
    pub pages: u64,
    pub journal_start: u64,
    pub journal_pages: u64,
    /// Most pages of a batch; none begins closer than that to the end of the ring.
    pub batch_pages: u32,
    /// The journal's index, and pages of one of its chunks.
    pub index_start: u64,
    pub index_pages: u64,
    pub chunk_pages: u32,
    pub records_start: u64,
    /// Pages, of which each has two slots.
    pub record_pages: u64,
    pub table_start: u64,
    /// Pages, of which each has two slots.
    pub table_pages: u64,
    pub data_start: u64,
    pub extents: u32,
}

/// Why a drive cannot be laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("a drive must have at least {DRIVE_MIN} bytes")]
    TooSmall,
    #[error("a drive may have at most 128 TiB")]
    TooLarge,
}

impl Layout {
    /// Zones for a drive of `size` bytes. `journal`: bytes of the ring, for tests; else a sixteenth of the drive,
    /// 64 MiB to 1 GiB, and the drive has at least `DRIVE_MIN`.
    pub fn plan(size: u64, journal: Option<u64>) -> Result<Layout, LayoutError> {
        let block = BLOCK as u64;
        if journal.is_none() && size < DRIVE_MIN {
            return Err(LayoutError::TooSmall);
        }
        if size > 128 << 40 {
            return Err(LayoutError::TooLarge);
        }
        let pages = size / block;
        let journal = journal.unwrap_or((size / JOURNAL_SHARE).clamp(JOURNAL_MIN, JOURNAL_MAX));
        let journal_pages = (journal / block).max(JOURNAL_PAGES_MIN);
        let journal_start = 2 * SUPERBLOCK_PAGES;
        let index_start = journal_start + journal_pages;
        let share = journal_pages / INDEX_SHARE;
        let chunk_pages = u32::try_from(share / CHUNKS).unwrap_or(u32::MAX);
        let chunk_pages = chunk_pages.clamp(CHUNK_PAGES_MIN, CHUNK_PAGES_MAX);
        let index_pages = u64::from(chunk_pages) * (share / u64::from(chunk_pages)).max(CHUNKS_MIN);
        let records_start = index_start + index_pages;
        let per_extent = u64::from(BLOCKS_PER_EXTENT);
        let small = size < DRIVE_MIN;
        let least = if small { 64 } else { RECORDS_MIN };
        let slots = (pages / per_extent / 2).clamp(least, RECORDS_MAX);
        let record_pages = slots.div_ceil(RECORDS_PER_PAGE as u64);
        let table_start = records_start + 2 * record_pages;
        let left = pages.checked_sub(table_start).ok_or(LayoutError::TooSmall)?;
        let per_page = TABLE_PER_PAGE as u64;
        let mut extents = left * per_page / (per_extent * per_page + 2);
        let data_start =
            |extents: u64| (table_start + 2 * extents.div_ceil(per_page)).next_multiple_of(per_extent);
        while extents > 0 && data_start(extents) + extents * per_extent > pages {
            extents -= 1;
        }
        if extents < 16 {
            return Err(LayoutError::TooSmall);
        }
        let batch_pages =
            u32::try_from(journal_pages / 8).unwrap_or(u32::MAX).clamp(BATCH_PAGES_MIN, BATCH_PAGES);
        Ok(Layout {
            pages,
            journal_start,
            journal_pages,
            batch_pages,
            index_start,
            index_pages,
            chunk_pages,
            records_start,
            record_pages,
            table_start,
            table_pages: extents.div_ceil(per_page),
            data_start: data_start(extents),
            extents: u32::try_from(extents).map_err(|_| LayoutError::TooLarge)?,
        })
    }

    /// Byte offset of a superblock copy.
    #[must_use]
    pub fn superblock(slot: u8) -> u64 {
        u64::from(slot) * SUPERBLOCK_PAGES * BLOCK as u64
    }
    /// Ring index of an absolute journal position (pages).
    #[must_use]
    pub fn ring(&self, position: u64) -> u64 {
        position % self.journal_pages
    }
    /// Byte offset of an absolute journal position (pages).
    #[must_use]
    pub fn journal(&self, position: u64) -> u64 {
        (self.journal_start + self.ring(position)) * BLOCK as u64
    }
    /// Byte offset of a chunk of the journal's index.
    #[must_use]
    pub fn chunk(&self, number: u64) -> u64 {
        let pages = u64::from(self.chunk_pages);
        (self.index_start + number % (self.index_pages / pages) * pages) * BLOCK as u64
    }
    /// Where a batch begins that would begin at `position`: not so close to the end of the ring that the
    /// longest one would not fit.
    #[must_use]
    pub fn batch_start(&self, position: u64) -> u64 {
        let left = self.journal_pages - self.ring(position);
        if left < u64::from(self.batch_pages) { position + left } else { position }
    }
    /// Pages of the ring that are read at once on their way home: at most 8 MiB. It is memory, and time that guests wait.
    #[must_use]
    pub fn slice(&self) -> u64 {
        (self.journal_pages / 16).clamp(1, 2048)
    }
    /// Byte offset of a slot of a record page.
    #[must_use]
    pub fn record_page(&self, page: u64, slot: u8) -> u64 {
        (self.records_start + 2 * page + u64::from(slot)) * BLOCK as u64
    }
    /// Byte offset of a slot of a table page.
    #[must_use]
    pub fn table_page(&self, page: u64, slot: u8) -> u64 {
        (self.table_start + 2 * page + u64::from(slot)) * BLOCK as u64
    }
    /// Byte offset of a block of a physical extent.
    #[must_use]
    pub fn data(&self, extent: u32, block: u32) -> u64 {
        (self.data_start + u64::from(extent) * u64::from(BLOCKS_PER_EXTENT) + u64::from(block)) * BLOCK as u64
    }
    /// Which block of its extent lies at this byte offset of the data.
    #[must_use]
    pub fn block_at(&self, offset: u64) -> u32 {
        let block = (offset / BLOCK as u64 - self.data_start) % u64::from(BLOCKS_PER_EXTENT);
        u32::try_from(block).expect("below 16")
    }
    /// Number of record slots.
    #[must_use]
    pub fn record_slots(&self) -> u32 {
        u32::try_from(self.record_pages).expect("at most RECORDS_MAX slots")
            * u32::try_from(RECORDS_PER_PAGE).expect("a few")
    }
    /// True if the zones follow each other within the drive, as `plan` makes them.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let ends = [
            (2 * SUPERBLOCK_PAGES, self.journal_start),
            (self.journal_start.saturating_add(self.journal_pages), self.index_start),
            (self.index_start.saturating_add(self.index_pages), self.records_start),
            (self.records_start.saturating_add(self.record_pages.saturating_mul(2)), self.table_start),
            (self.table_start.saturating_add(self.table_pages.saturating_mul(2)), self.data_start),
            (self.data_start.saturating_add(u64::from(self.extents) * 16), self.pages),
        ];
        ends.iter().all(|(end, next)| end <= next)
            && self.table_pages * TABLE_PER_PAGE as u64 >= u64::from(self.extents)
            && self.record_pages > 0
            && self.record_pages <= RECORDS_MAX
            && (BATCH_PAGES_MIN..=BATCH_PAGES).contains(&self.batch_pages)
            && (CHUNK_PAGES_MIN..=CHUNK_PAGES_MAX).contains(&self.chunk_pages)
            && self.index_pages >= CHUNKS_MIN * u64::from(self.chunk_pages)
            && self.index_pages <= REPLAY_MAX / BLOCK as u64 / 2
            && self.journal_pages >= 4 * u64::from(self.batch_pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_fit_whatever_the_size() {
        for size in [256u64 << 20, 1 << 30, 10 << 30, (1 << 40) + 12288, 100 << 40] {
            let l = Layout::plan(size, None).unwrap();
            assert!(l.is_sound(), "{l:?}");
            assert!((JOURNAL_MIN..=JOURNAL_MAX).contains(&(l.journal_pages * 4096)));
            let data = u64::from(l.extents) * 65536;
            assert!(size >= 1 << 30 || data > size / 2);
            assert!(size < 10 << 30 || data > size / 10 * 8, "{l:?}");
        }
        assert_eq!(Layout::plan(1 << 20, None), Err(LayoutError::TooSmall));
        assert!(Layout::plan(4 << 20, Some(512 << 10)).unwrap().is_sound());
    }

    #[test]
    fn no_batch_crosses_the_end_of_the_ring() {
        let l = Layout::plan(4 << 20, Some(512 << 10)).unwrap();
        for p in 0..300 {
            let s = l.batch_start(p);
            assert!(s >= p && l.ring(s) + u64::from(l.batch_pages) <= l.journal_pages);
        }
    }
}
