//! The header of a batch: 128 bytes, followed by its entries, filling whole pages; the payload lies behind it.
//! Each header carries the checksum of the one before it, so that recovery follows one unbroken chain.

use super::crc_without;
use proto::limits::BLOCK;
use proto::record::RECORD_BYTES;
use proto::{DriveId, PageBuf, Payload};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"BLOCKDJR";
const CRC_AT: usize = 8;
/// Most header pages of a batch.
pub const HEADER_PAGES_MAX: usize = 4;
/// Units (128 bytes) that fit behind the head in that many pages.
pub const UNITS_MAX: usize = HEADER_PAGES_MAX * BLOCK / RECORD_BYTES - 1;

/// What a header says besides its entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Number of the batch; 1 and up, without gaps.
    pub seq: u64,
    /// The drive's open number when it was written.
    pub open: u64,
    /// Its place, in pages since format.
    pub position: u64,
    /// Checksum of the header before it.
    pub prev: u32,
    /// Batches up to here were flushed when it was written.
    pub flushed: u64,
    pub payload_blocks: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    crc: U32,
    prev: U32,
    seq: U64,
    open: U64,
    position: U64,
    flushed: U64,
    drive: U64,
    pages: U16,
    reserved: U16,
    units: U32,
    payload_blocks: U32,
    rest: [u8; 60],
}
const _: () = assert!(size_of::<Raw>() == RECORD_BYTES);

/// Header pages that `units` need.
#[must_use]
pub fn header_pages(units: usize) -> usize {
    ((units + 1) * RECORD_BYTES).div_ceil(BLOCK)
}

impl Header {
    /// The header's pages, and their checksum. `fill` writes the units.
    #[must_use]
    pub fn encode(&self, drive: DriveId, units: usize, fill: impl FnOnce(&mut [u8])) -> (Payload, u32) {
        assert!(units <= UNITS_MAX, "a batch has at most UNITS_MAX units");
        let pages = header_pages(units);
        let mut out = PageBuf::zeroed(pages);
        let bytes = out.bytes_mut();
        let raw = Raw {
            magic: MAGIC,
            crc: U32::ZERO,
            prev: self.prev.into(),
            seq: self.seq.into(),
            open: self.open.into(),
            position: self.position.into(),
            flushed: self.flushed.into(),
            drive: drive.0.into(),
            pages: U16::new(u16::try_from(pages).expect("at most 4")),
            reserved: U16::ZERO,
            units: U32::new(u32::try_from(units).expect("at most UNITS_MAX")),
            payload_blocks: self.payload_blocks.into(),
            rest: [0; 60],
        };
        bytes[..RECORD_BYTES].copy_from_slice(raw.as_bytes());
        fill(&mut bytes[RECORD_BYTES..(units + 1) * RECORD_BYTES]);
        let crc = crc_without(bytes, CRC_AT);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        (out.freeze(), crc)
    }

    /// How many pages the header at the start of `page` claims to have; `None` if it is none of ours.
    #[must_use]
    pub fn claimed_pages(page: &[u8], drive: DriveId) -> Option<usize> {
        let (raw, _) = Raw::read_from_prefix(page).ok()?;
        let pages = usize::from(raw.pages.get());
        let ours = raw.magic == MAGIC && raw.drive.get() == drive.0;
        (ours && (1..=HEADER_PAGES_MAX).contains(&pages)).then_some(pages)
    }

    /// Bytes that the header at the start of `bytes` uses, the padding of its last page left out; `None` if it is none.
    #[must_use]
    pub fn used(bytes: &[u8], drive: DriveId) -> Option<usize> {
        Header::claimed_pages(bytes, drive)?;
        let (raw, _) = Raw::read_from_prefix(bytes).ok()?;
        let units = raw.units.get() as usize;
        (units <= UNITS_MAX).then_some((units + 1) * RECORD_BYTES)
    }

    /// A whole header (its claimed pages): what it says, its checksum, its units. `None` if it is damaged.
    #[must_use]
    pub fn decode(bytes: &[u8], drive: DriveId) -> Option<(Header, u32, &[u8])> {
        let pages = Header::claimed_pages(bytes, drive)?;
        let (raw, _) = Raw::read_from_prefix(bytes).ok()?;
        let units = raw.units.get() as usize;
        if bytes.len() != pages * BLOCK || units > UNITS_MAX || header_pages(units) != pages {
            return None;
        }
        if crc_without(bytes, CRC_AT) != raw.crc.get() {
            return None;
        }
        let header = Header {
            seq: raw.seq.get(),
            open: raw.open.get(),
            position: raw.position.get(),
            prev: raw.prev.get(),
            flushed: raw.flushed.get(),
            payload_blocks: raw.payload_blocks.get(),
        };
        Some((header, raw.crc.get(), &bytes[RECORD_BYTES..(units + 1) * RECORD_BYTES]))
    }
}
