//! Frames: a header of 48 bytes, then what it says.

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a stream.
pub const MAGIC: [u8; 8] = *b"BLKDSTRM";
/// Version of the format.
pub const FORMAT: u32 = 1;
/// Unit of what is sent, bytes.
pub const BLOCK: u64 = 4096;
/// Most bytes of the volume in one data frame, and in one frame of zeroes.
pub const PAYLOAD_MAX: u32 = 1 << 20;
pub const ZERO_MAX: u64 = 1 << 40;
/// Longest description (the first and the last frame), bytes.
pub const TEXT_MAX: u32 = 64 << 10;
/// Bytes of a frame's header.
pub const HEADER: usize = size_of::<RawHeader>();

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Kind {
    Begin = 1,
    Data = 2,
    Zero = 3,
    End = 4,
}
impl Kind {
    pub const fn of(code: u16) -> Option<Kind> {
        match code {
            1 => Some(Kind::Begin),
            2 => Some(Kind::Data),
            3 => Some(Kind::Zero),
            4 => Some(Kind::End),
            _ => None,
        }
    }
}

/// How a payload is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Codec {
    Raw = 0,
    Lz4 = 1,
}

/// All numbers little-endian, no padding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    /// CRC-32C over the chain of the frame before, and the rest of this header: a frame stands in its place or nowhere.
    pub chain: U32,
    pub kind: U16,
    pub codec: U16,
    /// 0, 1, 2 ..
    pub index: U64,
    /// Where in the volume, bytes.
    pub offset: U64,
    /// How many bytes of the volume (of the description: its length).
    pub length: U64,
    /// Bytes that follow.
    pub stored: U32,
    /// CRC-32C of the bytes that follow.
    pub sum: U32,
    pub reserved: U64,
}
const _: () = assert!(HEADER == 48);

/// Where the sum of a header begins.
const SUMMED: usize = 4;

impl RawHeader {
    /// The chain after this frame.
    pub fn chained(&self, before: u32) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&before.to_le_bytes()), &self.as_bytes()[SUMMED..])
    }
}

/// One end of what a stream holds: a snapshot, known by a number that travels with it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Point {
    pub name: String,
    /// 32 hexadecimal digits; the same in every cluster that it was imported to.
    pub id: String,
    /// Unix milliseconds.
    pub created_ms: u64,
}

/// The first frame: what this is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Begin {
    pub format: u32,
    /// Words that a reader must know to understand the rest; none so far.
    pub requires: Vec<String>,
    /// Name of the cluster and of the volume that it was taken from, for humans.
    pub cluster: String,
    pub volume: String,
    /// Bytes of the volume in this snapshot.
    pub size: u64,
    pub chunk_shift: u8,
    /// Increment: only what changed since this one. None: a full copy, and what is not named is zero.
    pub from: Option<Point>,
    pub to: Point,
}

/// The last frame: what there was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct End {
    /// Frames before this one.
    pub frames: u64,
    /// Bytes of the volume that came as data, and as zeroes.
    pub data: u64,
    pub zeroes: u64,
}
