//! The record: one write (or zeroing) of a branch. The same 128 bytes on the wire and in the journal.

use crate::ids::{BranchId, ChunkIndex, Epoch, Generation, Incarnation, KeyId};
use crate::limits::{BLOCK, BLOCKS_PER_EXTENT, CHUNK_BLOCKS_MAX};
use crate::marks::Version;
use crate::refusal::Refusal;
pub use crate::sum::Sum;
use crate::units::BlockRange;
use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of an encoded record, on the wire and in the journal, bytes.
pub const RECORD_BYTES: usize = 128;
/// Codes of the kinds. The journal has further kinds of entries in the same 128 bytes (`store::journal`).
pub const KIND_WRITE: u8 = 1;
pub const KIND_ZERO: u8 = 2;
/// First code that only a journal uses; never on the wire.
pub const KIND_JOURNAL: u8 = 16;

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

impl Record {
    /// The 128 bytes, as they lie on the wire (`home` and `flags` are the journal's and 0 here).
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        RawRecord::of(self).to_bytes()
    }
    /// What `bytes` say, checked for shape: kind, range, reserved fields. Whether the sums match the payload is
    /// another question (`Record::matches`), asked where the write is admitted.
    /// `chunk_blocks`, if known, bounds the range.
    pub fn decode(bytes: &[u8], chunk_blocks: Option<u32>) -> Result<Record, Refusal> {
        let raw = RawRecord::read(bytes).ok_or(Refusal::Invalid)?;
        if raw.home.get() != 0 || raw.flags != 0 {
            return Err(Refusal::Invalid);
        }
        let record = raw.record()?;
        match chunk_blocks {
            Some(blocks) if record.range.end() > blocks => Err(Refusal::Invalid),
            _ => Ok(record),
        }
    }
    /// True if `payload` is what the record's sums speak of.
    #[must_use]
    pub fn matches(&self, payload: &crate::payload::Payload) -> bool {
        match self.kind {
            RecordKind::Zero => payload.is_empty(),
            RecordKind::Write => {
                payload.blocks() == self.range.count as usize
                    && (0..payload.blocks()).all(|i| Sum::of(payload.block(i)) == self.sums[i])
            }
        }
    }
}

/// The bytes of a record. All numbers little-endian, no padding, any alignment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawRecord {
    pub kind: u8,
    /// Journal only.
    pub flags: u8,
    pub reserved: U16,
    pub key: U32,
    pub branch: U64,
    pub chunk: U32,
    pub first: U32,
    pub count: U32,
    pub generation: U32,
    pub epoch: U32,
    /// Journal only: number of the physical extent that is the blocks' home, plus 1. 0 on the wire.
    pub home: U32,
    pub seq: U64,
    pub incarnation: U64,
    pub reserved2: U64,
    pub sums: [U32; BLOCKS_PER_EXTENT as usize],
}
const _: () = assert!(size_of::<RawRecord>() == RECORD_BYTES);
const _: () = assert!(std::mem::offset_of!(RawRecord, sums) == 64);

impl RawRecord {
    #[must_use]
    pub fn of(r: &Record) -> RawRecord {
        RawRecord {
            kind: match r.kind {
                RecordKind::Write => KIND_WRITE,
                RecordKind::Zero => KIND_ZERO,
            },
            flags: 0,
            reserved: U16::ZERO,
            key: r.key.0.into(),
            branch: r.branch.0.into(),
            chunk: r.chunk.0.into(),
            first: r.range.first.into(),
            count: r.range.count.into(),
            generation: r.generation.0.into(),
            epoch: r.version.epoch.0.into(),
            home: U32::ZERO,
            seq: r.version.seq.into(),
            incarnation: r.incarnation.0.into(),
            reserved2: U64::ZERO,
            sums: r.sums.map(|s| U32::new(s.0)),
        }
    }
    #[must_use]
    pub fn to_bytes(self) -> [u8; RECORD_BYTES] {
        zerocopy::transmute!(self)
    }
    /// `None` if `bytes` is not exactly one record long.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<RawRecord> {
        RawRecord::read_from_bytes(bytes).ok()
    }
    /// The write or zeroing that these bytes are; `Invalid` for other kinds, impossible ranges, or reserved
    /// fields that are not 0.
    pub fn record(&self) -> Result<Record, Refusal> {
        let kind = match self.kind {
            KIND_WRITE => RecordKind::Write,
            KIND_ZERO => RecordKind::Zero,
            _ => return Err(Refusal::Invalid),
        };
        let range = BlockRange::new(self.first.get(), self.count.get());
        let used = if kind == RecordKind::Write { range.count as usize } else { 0 };
        let shape = range.count > 0
            && range.first.checked_add(range.count).is_some_and(|end| end <= CHUNK_BLOCKS_MAX)
            && (kind == RecordKind::Zero || range.in_one_extent());
        let reserved = self.reserved.get() == 0 && self.reserved2.get() == 0;
        if !shape || !reserved || self.generation.get() == 0 || self.sums[used..].iter().any(|s| s.get() != 0)
        {
            return Err(Refusal::Invalid);
        }
        Ok(Record {
            kind,
            branch: BranchId(self.branch.get()),
            chunk: ChunkIndex(self.chunk.get()),
            range,
            version: Version::new(Epoch(self.epoch.get()), self.seq.get()),
            generation: Generation(self.generation.get()),
            incarnation: Incarnation(self.incarnation.get()),
            key: KeyId(self.key.get()),
            sums: self.sums.map(|s| Sum(s.get())),
        })
    }
}

const _: () = assert!(BLOCK == 1 << 12);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Payload;
    use proptest::prelude::*;

    fn write(first: u32, blocks: usize) -> (Record, Payload) {
        let payload = Payload::copy_of(&(0u8..=250).cycle().take(blocks * BLOCK).collect::<Vec<_>>());
        let record = Record {
            kind: RecordKind::Write,
            branch: BranchId(7),
            chunk: ChunkIndex(3),
            range: BlockRange::new(first, u32::try_from(blocks).unwrap()),
            version: Version::new(Epoch(5), 99),
            generation: Generation(1),
            incarnation: Incarnation(12),
            key: KeyId(0),
            sums: Record::sums_of(&payload),
        };
        (record, payload)
    }

    #[test]
    fn bytes_are_where_the_format_says() {
        let (r, _) = write(33, 2);
        let b = r.encode();
        assert_eq!(b[0], KIND_WRITE);
        assert_eq!(b[8..16], 7u64.to_le_bytes());
        assert_eq!(b[16..20], 3u32.to_le_bytes());
        assert_eq!(b[20..24], 33u32.to_le_bytes());
        assert_eq!(b[24..28], 2u32.to_le_bytes());
        assert_eq!(b[28..32], 1u32.to_le_bytes());
        assert_eq!(b[32..36], 5u32.to_le_bytes());
        assert_eq!(b[40..48], 99u64.to_le_bytes());
        assert_eq!(b[48..56], 12u64.to_le_bytes());
        assert_eq!(b[64..68], r.sums[0].0.to_le_bytes());
    }

    #[test]
    fn sums_are_checked_against_the_payload() {
        let (r, p) = write(0, 4);
        assert!(r.matches(&p));
        assert!(!r.matches(&p.slice(0, 3)));
        let mut bytes = p.bytes().to_vec();
        bytes[3 * BLOCK + 5] ^= 1;
        assert!(!r.matches(&Payload::copy_of(&bytes)));
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        let (good, _) = write(16, 16);
        assert!(Record::decode(&good.encode(), Some(32)).is_ok());
        assert_eq!(Record::decode(&good.encode(), Some(31)), Err(Refusal::Invalid));
        assert_eq!(Record::decode(&good.encode()[1..], None), Err(Refusal::Invalid));
        let bad = |change: fn(&mut RawRecord)| {
            let mut raw = RawRecord::of(&write(16, 3).0);
            change(&mut raw);
            Record::decode(&raw.to_bytes(), None)
        };
        assert!(bad(|_| ()).is_ok());
        for change in [
            (|r| r.kind = 0) as fn(&mut RawRecord),
            |r| r.kind = KIND_JOURNAL,
            |r| r.flags = 1,
            |r| r.home = U32::new(1),
            |r| r.count = U32::ZERO,
            |r| r.count = U32::new(17),
            |r| r.first = U32::new(14),
            |r| r.first = U32::new(u32::MAX),
            |r| r.generation = U32::ZERO,
            |r| r.sums[3] = U32::new(1),
            |r| r.reserved = U16::new(1),
            |r| r.reserved2 = U64::new(1),
        ] {
            assert_eq!(bad(change), Err(Refusal::Invalid));
        }
    }

    proptest! {
        #[test]
        fn decode_inverts_encode(
            zero: bool, branch: u64, chunk: u32, first in 0u32..1 << 19, count in 1u32..1 << 19, epoch: u32,
            seq: u64, generation in 1u32.., incarnation: u64, sums: [u32; 16],
        ) {
            let count = if zero { count } else { 1 + count % (16 - first % 16) };
            let r = Record {
                kind: if zero { RecordKind::Zero } else { RecordKind::Write },
                branch: BranchId(branch), chunk: ChunkIndex(chunk), range: BlockRange::new(first, count),
                version: Version::new(Epoch(epoch), seq), generation: Generation(generation),
                incarnation: Incarnation(incarnation), key: KeyId(0),
                sums: std::array::from_fn(|i| Sum(if !zero && i < count as usize { sums[i] } else { 0 })),
            };
            prop_assert_eq!(Record::decode(&r.encode(), None), Ok(r));
        }

        #[test]
        fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Record::decode(&bytes, Some(65536));
        }
    }
}
