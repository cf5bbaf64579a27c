//! Entries of the journal: records as they came by the wire, and what only a journal has. One to three units of
//! 128 bytes each.

use super::page::{RECORD_SLOT, Slot};
use proto::limits::BLOCKS_PER_EXTENT;
use proto::record::{KIND_JOURNAL, KIND_WRITE, KIND_ZERO, RECORD_BYTES, RawRecord, Sum};
use proto::{BranchId, ChunkIndex, Epoch, Generation, Incarnation, Marks, Version};
use zerocopy::FromZeros;
use zerocopy::little_endian::U32;

/// An extent's difference, pulled from a resync's source.
pub const KIND_PULL: u8 = KIND_JOURNAL;
/// Extents without any byte, or that no view sees, are freed.
pub const KIND_DROP: u8 = KIND_JOURNAL + 1;
/// Marks of a branch.
pub const KIND_MARKS: u8 = KIND_JOURNAL + 2;
/// A record slot's new content.
pub const KIND_SLOT: u8 = KIND_JOURNAL + 3;
/// The payload is not in the journal: it was written to `home` before the entry joined.
pub const FLAG_LARGE: u8 = 1;
/// Units of a slot entry: its head and the slot's bytes.
pub const SLOT_UNITS: usize = 1 + RECORD_SLOT / RECORD_BYTES;
/// Extents that one drop entry can name.
pub const DROP_EXTENTS: u32 = 512;

/// An extent of a replica, in one generation: what a physical extent holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ExtentKey {
    pub branch: BranchId,
    pub chunk: ChunkIndex,
    pub incarnation: Incarnation,
    pub extent: u32,
    pub generation: Generation,
}

/// Which blocks a pull sets, and to what: a bit for each block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PullMasks {
    pub data: u16,
    pub zero: u16,
    pub absent: u16,
}
impl PullMasks {
    /// Of an entry that was made here.
    #[must_use]
    pub fn of(raw: &RawRecord) -> PullMasks {
        PullMasks::split(raw.reserved2.get())
    }
    fn split(bits: u64) -> PullMasks {
        let part = |n: u32| u16::try_from(bits >> (16 * n) & 0xffff).expect("16 bits");
        PullMasks { data: part(0), zero: part(1), absent: part(2) }
    }
    fn pack(self) -> u64 {
        u64::from(self.data) | u64::from(self.zero) << 16 | u64::from(self.absent) << 32
    }
    fn unpack(bits: u64) -> Option<PullMasks> {
        let m = PullMasks::split(bits);
        let apart = m.data & m.zero == 0 && (m.data | m.zero) & m.absent == 0;
        (bits >> 48 == 0 && apart).then_some(m)
    }
    /// Nothing newer was left out: the extent's version is the source's from then on. Otherwise it is at least
    /// that of what was left out, and must be reported as such.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.all() == u16::MAX
    }
    /// All blocks that are set.
    #[must_use]
    pub fn all(self) -> u16 {
        self.data | self.zero | self.absent
    }
}

/// The head unit of an entry: a record with the journal's own fields.
#[must_use]
pub fn pull(key: &ExtentKey, version: Version, masks: PullMasks, sums: &[Sum; 16]) -> RawRecord {
    let mut raw = head(KIND_PULL, key.branch, key.chunk, key.incarnation);
    raw.first = U32::new(key.extent * BLOCKS_PER_EXTENT);
    raw.count = U32::new(BLOCKS_PER_EXTENT);
    raw.generation = key.generation.0.into();
    raw.epoch = version.epoch.0.into();
    raw.seq = version.seq.into();
    raw.reserved2 = masks.pack().into();
    raw.sums = sums.map(|s| U32::new(s.0));
    raw
}
/// Frees the extents `first + i` for each bit i, in one generation.
#[must_use]
pub fn drop_extents(key: &ExtentKey, bits: &[u32; 16]) -> RawRecord {
    let mut raw = head(KIND_DROP, key.branch, key.chunk, key.incarnation);
    raw.first = key.extent.into();
    raw.count = U32::new(DROP_EXTENTS);
    raw.generation = key.generation.0.into();
    raw.sums = bits.map(U32::new);
    raw
}
#[must_use]
pub fn marks(branch: BranchId, slot: u32, marks: Marks) -> RawRecord {
    let mut raw = head(KIND_MARKS, branch, ChunkIndex(0), Incarnation(0));
    raw.home = U32::new(slot + 1);
    raw.epoch = marks.committed.epoch.0.into();
    raw.seq = marks.committed.seq.into();
    let durable = marks.durable.seq.to_le_bytes();
    raw.sums[0] = marks.durable.epoch.0.into();
    raw.sums[1] = U32::from_bytes(durable[..4].try_into().expect("4 bytes"));
    raw.sums[2] = U32::from_bytes(durable[4..].try_into().expect("4 bytes"));
    raw
}
#[must_use]
pub fn slot(branch: BranchId, slot: u32) -> RawRecord {
    let mut raw = head(KIND_SLOT, branch, ChunkIndex(0), Incarnation(0));
    raw.home = U32::new(slot + 1);
    raw
}
fn head(kind: u8, branch: BranchId, chunk: ChunkIndex, incarnation: Incarnation) -> RawRecord {
    let mut raw = RawRecord::new_zeroed();
    raw.kind = kind;
    raw.branch = branch.0.into();
    raw.chunk = chunk.0.into();
    raw.incarnation = incarnation.0.into();
    raw
}

/// The extent of a replica that a record of one extent speaks of.
#[must_use]
pub fn key_of(raw: &RawRecord) -> ExtentKey {
    ExtentKey {
        branch: BranchId(raw.branch.get()),
        chunk: ChunkIndex(raw.chunk.get()),
        incarnation: Incarnation(raw.incarnation.get()),
        extent: raw.first.get() / BLOCKS_PER_EXTENT,
        generation: Generation(raw.generation.get()),
    }
}
#[must_use]
pub fn version_of(raw: &RawRecord) -> Version {
    Version::new(Epoch(raw.epoch.get()), raw.seq.get())
}

/// An entry as replay takes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Blocks `first ..` of the extent; sums from index 0 on. `large`: the data is at home.
    Write {
        key: ExtentKey,
        first: u32,
        count: u32,
        version: Version,
        home: u32,
        large: bool,
        sums: [Sum; 16],
    },
    /// Any range within the chunk; `home`: an extent that is new for it (then the range lies in one extent).
    Zero {
        key: ExtentKey,
        first: u32,
        count: u32,
        version: Version,
        home: Option<u32>,
    },
    Pull {
        key: ExtentKey,
        version: Version,
        masks: PullMasks,
        home: Option<u32>,
        sums: [Sum; 16],
    },
    Drop {
        key: ExtentKey,
        bits: [u32; 16],
    },
    Marks {
        branch: BranchId,
        slot: u32,
        marks: Marks,
    },
    Slot {
        slot: u32,
        content: Slot,
    },
}

impl Entry {
    /// Blocks of payload behind the header.
    #[must_use]
    pub fn payload_blocks(&self) -> u32 {
        match self {
            Entry::Write { count, large: false, .. } => *count,
            Entry::Pull { masks, .. } => masks.data.count_ones(),
            _ => 0,
        }
    }
}

/// One unit of bytes.
fn unit(bytes: &[u8], at: usize) -> Option<&[u8]> {
    bytes.get(at * RECORD_BYTES..(at + 1) * RECORD_BYTES)
}

/// All entries of a header's units; `None` if they make no sense (a checksum has vouched for them, so this is
/// another version's, or a bug's).
#[must_use]
pub fn parse(units: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut at = 0;
    while let Some(bytes) = unit(units, at) {
        let raw = RawRecord::read(bytes)?;
        at += 1;
        entries.push(match raw.kind {
            KIND_WRITE | KIND_ZERO => write_or_zero(&raw)?,
            KIND_PULL => Entry::Pull {
                key: key_of(&raw),
                version: version_of(&raw),
                masks: PullMasks::unpack(raw.reserved2.get())?,
                home: raw.home.get().checked_sub(1),
                sums: raw.sums.map(|s| Sum(s.get())),
            },
            KIND_DROP => Entry::Drop {
                key: ExtentKey { extent: raw.first.get(), ..key_of(&raw) },
                bits: raw.sums.map(U32::get),
            },
            KIND_MARKS => parse_marks(&raw)?,
            KIND_SLOT => {
                let content = Slot::decode(units.get(at * RECORD_BYTES..at * RECORD_BYTES + RECORD_SLOT)?)?;
                at += SLOT_UNITS - 1;
                Entry::Slot { slot: raw.home.get().checked_sub(1)?, content }
            }
            _ => return None,
        });
    }
    Some(entries)
}

fn parse_marks(raw: &RawRecord) -> Option<Entry> {
    let seq = u64::from(raw.sums[1].get()) | u64::from(raw.sums[2].get()) << 32;
    let durable = Version::new(Epoch(raw.sums[0].get()), seq);
    let marks = Marks { committed: version_of(raw), durable };
    let branch = BranchId(raw.branch.get());
    Some(Entry::Marks { branch, slot: raw.home.get().checked_sub(1)?, marks })
}

fn write_or_zero(raw: &RawRecord) -> Option<Entry> {
    let mut plain = *raw;
    plain.home = U32::ZERO;
    plain.flags = 0;
    let record = plain.record().ok()?;
    let key = key_of(raw);
    let (first, count, version) = (record.range.first, record.range.count, record.version);
    let home = raw.home.get().checked_sub(1);
    Some(if raw.kind == KIND_ZERO {
        Entry::Zero { key, first, count, version, home }
    } else {
        let large = raw.flags & FLAG_LARGE != 0;
        let sums = record.sums;
        Entry::Write { key, first: first % BLOCKS_PER_EXTENT, count, version, home: home?, large, sums }
    })
}
