//! Bytes on the drive: structures with fixed places, little-endian, each with its checksum.
//! The document is `docs/disk-format.md`; an `Unverified..` or raw structure becomes ours only by its `verify`.

pub mod chunk;
pub mod entry;
pub mod header;
pub mod page;
pub mod superblock;

/// CRC-32C of `bytes` with the four bytes at `at` taken as zero: where the checksum itself stands.
pub(crate) fn crc_without(bytes: &[u8], at: usize) -> u32 {
    let head = crc32c::crc32c(&bytes[..at]);
    let hole = crc32c::crc32c_append(head, &[0; 4]);
    crc32c::crc32c_append(hole, &bytes[at + 4..])
}
