//! The superblock: whose the drive is, where its zones lie, where the journal begins, what opening found.
//! Two copies of up to 16 pages; the newer valid one counts; the other one is overwritten next.

use super::crc_without;
use crate::event::Failure;
use crate::layout::{Layout, SUPERBLOCK_PAGES};
use arrayvec::ArrayVec;
use proto::limits::BLOCK;
use proto::message::HeldBy;
use proto::{ClusterId, DriveId, NodeId, OpenId, PageBuf, Payload};
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"BLOCKDSB";
/// Version of the format. A higher one is refused.
pub const VERSION: u16 = 4;
/// Feature bits that this code knows. Unknown incompatible ones forbid opening; unknown read-only ones too,
/// for there is no read-only opening yet; unknown compatible ones are kept and ignored.
pub const KNOWN_INCOMPATIBLE: u64 = 0;
pub const KNOWN_READ_ONLY: u64 = 0;
/// Openings remembered.
pub const OPENINGS_MAX: usize = 32;
/// Dropped entries that fit.
pub const DROPPED_MAX: usize = (COPY_PAGES - 1) * BLOCK / DROPPED_BYTES;
const DROPPED_BYTES: usize = 12;
const COPY_PAGES: usize = 16;
const _: () = assert!(COPY_PAGES as u64 == SUPERBLOCK_PAGES);
const CRC_AT: usize = 8;
const FLAG_CLEAN: u32 = 1;
const FLAG_TRUSTED: u32 = 2;

/// An entry of the journal: its batch, and its place there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EntryId {
    pub seq: u64,
    pub index: u32,
}

/// What a superblock says, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Kept as found.
    pub compatible: u64,
    pub sequence: u64,
    pub cluster: ClusterId,
    pub node: NodeId,
    pub drive: DriveId,
    /// Closed cleanly: everything flushed.
    pub clean: bool,
    /// metad has confirmed this opening, or the one before it in the same boot: it serves.
    pub trusted: bool,
    /// The kernel's boot id of the last opening; zero if never opened.
    pub boot: [u8; 16],
    /// Counts the openings; headers of the journal carry it.
    pub open: u64,
    /// Journal tail: position in pages, batch number, checksum of the header before it.
    pub tail: u64,
    pub tail_seq: u64,
    pub tail_prev: u32,
    /// The chunk of the journal's index that leads on from the tail.
    pub tail_chunk: u64,
    /// From this batch on only headers of this open number (or later) count.
    pub chain_end: u64,
    /// Batches up to here were flushed when this was written.
    pub flushed: u64,
    /// Branches whose doubt was last cleared before this batch are in doubt.
    pub doubt_at: u64,
    /// The opening that metad confirmed last.
    pub confirmed: OpenId,
    pub layout: Layout,
    /// Newest last.
    pub openings: ArrayVec<OpenId, OPENINGS_MAX>,
    /// Entries of large writes whose data did not survive.
    pub dropped: Vec<EntryId>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    crc: U32,
    version: U16,
    pages: U16,
    compatible: U64,
    read_only: U64,
    incompatible: U64,
    sequence: U64,
    cluster: U128,
    node: U32,
    flags: U32,
    drive: U64,
    boot: [u8; 16],
    open: U64,
    tail: U64,
    tail_seq: U64,
    tail_prev: U32,
    batch_pages: U32,
    chain_end: U64,
    flushed: U64,
    doubt_at: U64,
    confirmed: U64,
    /// Key that the drive's blocks are encrypted with by default; 0 = none, the only value in use.
    key: U32,
    extents: U32,
    drive_pages: U64,
    journal_start: U64,
    journal_pages: U64,
    index_start: U64,
    index_pages: U64,
    chunk_pages: U32,
    reserved: U32,
    tail_chunk: U64,
    records_start: U64,
    record_pages: U64,
    table_start: U64,
    table_pages: U64,
    data_start: U64,
    openings: U32,
    dropped: U32,
    opening: [U64; OPENINGS_MAX],
}
const _: () = assert!(size_of::<Raw>() <= BLOCK);

impl Superblock {
    /// The bytes of one copy: as many pages as the list of dropped entries needs.
    #[must_use]
    pub fn encode(&self) -> Payload {
        assert!(self.dropped.len() <= DROPPED_MAX, "large entries are held back before the list overflows");
        let pages = 1 + (self.dropped.len() * DROPPED_BYTES).div_ceil(BLOCK);
        let mut raw = Raw::new_zeroed_for(self);
        raw.pages = U16::new(u16::try_from(pages).expect("at most 16"));
        let mut out = PageBuf::zeroed(pages);
        let bytes = out.bytes_mut();
        bytes[..size_of::<Raw>()].copy_from_slice(raw.as_bytes());
        for (at, d) in bytes[BLOCK..].chunks_exact_mut(DROPPED_BYTES).zip(&self.dropped) {
            at[..8].copy_from_slice(&d.seq.to_le_bytes());
            at[8..].copy_from_slice(&d.index.to_le_bytes());
        }
        let crc = crc_without(bytes, CRC_AT);
        bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        out.freeze()
    }

    /// One copy, from its 16 pages; `None` if it is no valid one. `Err` if it is valid and must not be opened.
    pub fn decode(bytes: &[u8]) -> Option<Result<Superblock, Failure>> {
        let (raw, _) = Raw::read_from_prefix(bytes).ok()?;
        let pages = usize::from(raw.pages.get());
        if raw.magic != MAGIC || !(1..=COPY_PAGES).contains(&pages) {
            return None;
        }
        let bytes = bytes.get(..pages * BLOCK)?;
        if crc_without(bytes, CRC_AT) != raw.crc.get() {
            return None;
        }
        let unknown = raw.incompatible.get() & !KNOWN_INCOMPATIBLE | raw.read_only.get() & !KNOWN_READ_ONLY;
        if raw.version.get() < VERSION {
            return Some(Err(Failure::Version(raw.version.get())));
        }
        if unknown != 0 || raw.version.get() > VERSION {
            return Some(Err(Failure::Features(unknown)));
        }
        let superblock = raw.superblock(bytes)?;
        superblock.layout.is_sound().then_some(Ok(superblock))
    }

    /// Refuses what is another's, or smaller than it was. `size` in bytes.
    pub fn check_owner(&self, cluster: ClusterId, node: NodeId, size: u64) -> Result<(), Failure> {
        if (self.cluster, self.node) != (cluster, node) {
            return Err(Failure::Foreign(HeldBy { cluster: self.cluster, node: self.node }));
        }
        let then = self.layout.pages * BLOCK as u64;
        if size < then { Err(Failure::Shrunk { then, now: size }) } else { Ok(()) }
    }

    /// Adds this opening to the list; what metad confirmed last never leaves it.
    pub fn add_opening(&mut self, opening: OpenId) {
        if self.openings.is_full() {
            let oldest = self.openings.iter().position(|o| *o != self.confirmed).unwrap_or(0);
            self.openings.remove(oldest);
        }
        self.openings.push(opening);
    }
}

impl Raw {
    fn new_zeroed_for(s: &Superblock) -> Raw {
        let l = &s.layout;
        let mut opening = [U64::ZERO; OPENINGS_MAX];
        for (raw, o) in opening.iter_mut().zip(&s.openings) {
            *raw = o.0.into();
        }
        Raw {
            magic: MAGIC,
            crc: U32::ZERO,
            version: VERSION.into(),
            pages: U16::ZERO,
            compatible: s.compatible.into(),
            read_only: U64::ZERO,
            incompatible: U64::ZERO,
            sequence: s.sequence.into(),
            cluster: s.cluster.0.into(),
            node: s.node.0.into(),
            flags: U32::new((u32::from(s.clean) * FLAG_CLEAN) | (u32::from(s.trusted) * FLAG_TRUSTED)),
            drive: s.drive.0.into(),
            boot: s.boot,
            open: s.open.into(),
            tail: s.tail.into(),
            tail_seq: s.tail_seq.into(),
            tail_prev: s.tail_prev.into(),
            batch_pages: l.batch_pages.into(),
            chain_end: s.chain_end.into(),
            flushed: s.flushed.into(),
            doubt_at: s.doubt_at.into(),
            confirmed: s.confirmed.0.into(),
            key: U32::ZERO,
            extents: l.extents.into(),
            drive_pages: l.pages.into(),
            journal_start: l.journal_start.into(),
            journal_pages: l.journal_pages.into(),
            index_start: l.index_start.into(),
            index_pages: l.index_pages.into(),
            chunk_pages: l.chunk_pages.into(),
            reserved: U32::ZERO,
            tail_chunk: s.tail_chunk.into(),
            records_start: l.records_start.into(),
            record_pages: l.record_pages.into(),
            table_start: l.table_start.into(),
            table_pages: l.table_pages.into(),
            data_start: l.data_start.into(),
            openings: U32::new(u32::try_from(s.openings.len()).expect("at most 32")),
            dropped: U32::new(u32::try_from(s.dropped.len()).expect("at most DROPPED_MAX")),
            opening,
        }
    }

    fn superblock(&self, bytes: &[u8]) -> Option<Superblock> {
        let openings = self.opening.get(..self.openings.get() as usize)?;
        let dropped = self.dropped.get() as usize;
        let list = bytes[BLOCK..].get(..dropped.checked_mul(DROPPED_BYTES)?)?;
        Some(Superblock {
            compatible: self.compatible.get(),
            sequence: self.sequence.get(),
            cluster: ClusterId(self.cluster.get()),
            node: NodeId(self.node.get()),
            drive: DriveId(self.drive.get()),
            clean: self.flags.get() & FLAG_CLEAN != 0,
            trusted: self.flags.get() & FLAG_TRUSTED != 0,
            boot: self.boot,
            open: self.open.get(),
            tail: self.tail.get(),
            tail_seq: self.tail_seq.get(),
            tail_prev: self.tail_prev.get(),
            tail_chunk: self.tail_chunk.get(),
            chain_end: self.chain_end.get(),
            flushed: self.flushed.get(),
            doubt_at: self.doubt_at.get(),
            confirmed: OpenId(self.confirmed.get()),
            layout: Layout {
                pages: self.drive_pages.get(),
                journal_start: self.journal_start.get(),
                journal_pages: self.journal_pages.get(),
                batch_pages: self.batch_pages.get(),
                index_start: self.index_start.get(),
                index_pages: self.index_pages.get(),
                chunk_pages: self.chunk_pages.get(),
                records_start: self.records_start.get(),
                record_pages: self.record_pages.get(),
                table_start: self.table_start.get(),
                table_pages: self.table_pages.get(),
                data_start: self.data_start.get(),
                extents: self.extents.get(),
            },
            openings: openings.iter().map(|o| OpenId(o.get())).collect(),
            dropped: list
                .chunks_exact(DROPPED_BYTES)
                .map(|d| EntryId {
                    seq: u64::from_le_bytes(d[..8].try_into().expect("8 bytes")),
                    index: u32::from_le_bytes(d[8..].try_into().expect("4 bytes")),
                })
                .collect(),
        })
    }
}

/// The copies found at their two places (16 pages each), and what to go on with: its slot, and itself.
pub fn newest(copies: [&[u8]; 2]) -> Result<(u8, Superblock), Failure> {
    let mut best: Option<(u8, Result<Superblock, Failure>)> = None;
    for (slot, bytes) in (0u8..).zip(copies) {
        let Some(found) = Superblock::decode(bytes) else { continue };
        let newer = match (&found, &best) {
            (Ok(s), Some((_, Ok(b)))) => s.sequence > b.sequence,
            // A copy that a newer version of blockd wrote forbids to go on with an older one.
            (Ok(_), Some((_, Err(_)))) => false,
            _ => true,
        };
        if newer {
            best = Some((slot, found));
        }
    }
    match best {
        None => Err(Failure::NoSuperblock),
        Some((_, Err(e))) => Err(e),
        Some((slot, Ok(s))) => Ok((slot, s)),
    }
}
