//! A chunk of the journal's index: a head of 128 bytes, then headers of batches, one behind the other, without padding.

use super::crc_without;
use super::header::HEADER_PAGES_MAX;
use proto::DriveId;
use proto::record::RECORD_BYTES;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"BLOCKDJX";
const CRC_AT: usize = 8;
/// Bytes of the head.
pub const CHUNK_HEAD: usize = RECORD_BYTES;
/// Least pages of a chunk: the longest header and the head.
pub const CHUNK_PAGES_MIN: u32 = 5;
const _: () = assert!(CHUNK_PAGES_MIN as usize > HEADER_PAGES_MAX);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    crc: U32,
    /// Bytes in use, the head included.
    used: U32,
    drive: U64,
    number: U64,
    rest: [u8; 96],
}
const _: () = assert!(size_of::<Raw>() == CHUNK_HEAD);

/// Writes the head in front of what has been filled in.
pub fn seal(bytes: &mut [u8], used: usize, drive: DriveId, number: u64) {
    let raw = Raw {
        magic: MAGIC,
        crc: U32::ZERO,
        used: U32::new(u32::try_from(used).expect("within a chunk")),
        drive: drive.0.into(),
        number: number.into(),
        rest: [0; 96],
    };
    bytes[..CHUNK_HEAD].copy_from_slice(raw.as_bytes());
    let crc = crc_without(&bytes[..used], CRC_AT);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
}

/// The headers in it; `None` if it is damaged, another's, or not this number.
#[must_use]
pub fn open(bytes: &[u8], drive: DriveId, number: u64) -> Option<&[u8]> {
    let (raw, _) = Raw::read_from_prefix(bytes).ok()?;
    let used = raw.used.get() as usize;
    let ours = raw.magic == MAGIC && raw.drive.get() == drive.0 && raw.number.get() == number;
    if !ours || used <= CHUNK_HEAD || used > bytes.len() || !used.is_multiple_of(RECORD_BYTES) {
        return None;
    }
    (crc_without(&bytes[..used], CRC_AT) == raw.crc.get()).then(|| &bytes[CHUNK_HEAD..used])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::limits::BLOCK;

    #[test]
    fn only_the_chunk_that_is_due_and_whole_is_taken() {
        let mut bytes = vec![0u8; 5 * BLOCK];
        let used = CHUNK_HEAD + 3 * RECORD_BYTES;
        bytes[CHUNK_HEAD..used].fill(7);
        seal(&mut bytes, used, DriveId(3), 9);
        assert_eq!(open(&bytes, DriveId(3), 9), Some(&[7u8; 3 * RECORD_BYTES][..]));
        assert_eq!(open(&bytes, DriveId(3), 10), None);
        assert_eq!(open(&bytes, DriveId(4), 9), None);
        for at in (0..used).step_by(5) {
            let mut bad = bytes.clone();
            bad[at] ^= 16;
            assert_eq!(open(&bad, DriveId(3), 9), None, "byte {at}");
        }
        for cut in [0, 100, CHUNK_HEAD, used - 1] {
            assert_eq!(open(&bytes[..cut], DriveId(3), 9), None);
        }
    }
}
