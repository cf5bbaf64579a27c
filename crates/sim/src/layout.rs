//! What guests touch of a volume, and how its bytes say who wrote them.
//!
//! Each sector that a guest writes carries the number of the operation and its own place, so a read tells which write
//! it saw, and whether the bytes belong there. Registers are sectors in the first blocks of the region (where guests
//! write less than blocks) and blocks elsewhere (where a block must never be seen in pieces).

use oracle::history::Span;
use oracle::{Value, ZERO};
use proto::limits::{BLOCK, CHUNK_SHIFT_MIN, SECTOR};
use proto::{ChunkIndex, PageBuf, Payload};
use volume::{GuestOp, ReadPiece};

/// Blocks of a chunk of the simulated volumes (16 MiB, the least).
pub const CHUNK_BLOCKS: u64 = (1 << CHUNK_SHIFT_MIN) / BLOCK as u64;
const SECTORS: u64 = (BLOCK / SECTOR) as u64;
/// In bytes that a write does not mean: must never be seen.
const RUBBISH: u64 = 0xdead_dead_dead_dead;

#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Number of the volume that this one descends from, by clones and rollbacks; part of each sector's place: what a
    /// clone reads of its parent's belongs there.
    pub family: u32,
    /// First block of the region within the volume.
    pub first: u64,
    /// Blocks of the region.
    pub blocks: u64,
    /// Of these, the first so many are written by sectors too.
    pub fine: u64,
}

/// Why the bytes of a read cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Odd {
    /// Not as many bytes as were asked for.
    Length,
    /// A register in pieces of several writes, or bytes of another place or of nobody.
    Torn(u64),
}

impl Layout {
    /// Registers wholly inside a range of bytes of the volume (the range of a block's pieces counts only if `fine`).
    #[must_use]
    pub fn registers(&self, offset: u64, len: u64) -> Span {
        let at = |byte: u64| {
            let sector = byte / SECTOR as u64 - self.first * SECTORS;
            if sector < self.fine * SECTORS {
                sector
            } else {
                self.fine * SECTORS + sector / SECTORS - self.fine
            }
        };
        let (first, end) = (at(offset), at(offset + len));
        Span { first, count: end - first }
    }
    /// Registers of some blocks of the region.
    #[must_use]
    pub fn all(&self) -> Span {
        self.registers(self.first * BLOCK as u64, self.blocks * BLOCK as u64)
    }

    /// Registers of the region that lie in a chunk.
    #[must_use]
    pub fn of_chunk(&self, chunk: ChunkIndex) -> Option<Span> {
        let from = (u64::from(chunk.0) * CHUNK_BLOCKS).max(self.first);
        let to = ((u64::from(chunk.0) + 1) * CHUNK_BLOCKS).min(self.first + self.blocks);
        (from < to).then(|| self.registers(from * BLOCK as u64, (to - from) * BLOCK as u64))
    }

    fn place(&self, sector: u64) -> u64 {
        (u64::from(self.family) << 48) | (sector + 1)
    }

    /// The payload of a write of `value` to the bytes `offset .. offset + len`.
    #[must_use]
    pub fn payload(&self, offset: u64, len: u64, value: Value) -> Payload {
        let first = offset / BLOCK as u64;
        let end = (offset + len).div_ceil(BLOCK as u64);
        let blocks = usize::try_from(end - first).expect("a request fits memory");
        let mut buf = PageBuf::zeroed(blocks);
        for (i, bytes) in buf.bytes_mut().chunks_exact_mut(SECTOR).enumerate() {
            let sector = first * SECTORS + i as u64;
            let at = sector * SECTOR as u64;
            let meant = at >= offset && at < offset + len;
            let (a, b) = if meant { (value, self.place(sector)) } else { (RUBBISH, RUBBISH) };
            bytes[..8].copy_from_slice(&a.to_le_bytes());
            bytes[8..16].copy_from_slice(&b.to_le_bytes());
        }
        buf.freeze()
    }

    /// One value per register of what a read of `offset .. offset + len` returned.
    pub fn values(&self, offset: u64, len: u64, pieces: &[ReadPiece]) -> Result<Vec<Value>, Odd> {
        let mut sectors = Vec::with_capacity(usize::try_from(len).expect("a request fits memory") / SECTOR);
        for p in pieces {
            match p {
                ReadPiece::Zero { bytes } => sectors.extend(vec![(0, 0); *bytes as usize / SECTOR]),
                ReadPiece::Data { payload, skip, len } => {
                    let bytes = &payload.bytes()[*skip as usize..(*skip + *len) as usize];
                    sectors.extend(bytes.chunks_exact(SECTOR).map(stamp));
                }
            }
        }
        if sectors.len() as u64 * SECTOR as u64 != len {
            return Err(Odd::Length);
        }
        let first = offset / SECTOR as u64;
        let registers = self.registers(offset, len);
        let mut out = Vec::new();
        let mut next = 0;
        for r in registers.each() {
            let width = if r < self.fine * SECTORS { 1 } else { SECTORS };
            let value = sectors[next].0;
            for (k, (v, place)) in sectors[next..].iter().take(usize::try_from(width).expect("8")).enumerate()
            {
                let here = if *v == ZERO { 0 } else { self.place(first + (next + k) as u64) };
                if *v != value || *place != here {
                    return Err(Odd::Torn(r));
                }
            }
            next += usize::try_from(width).expect("8");
            out.push(value);
        }
        Ok(out)
    }

    /// Blocks of the region.
    pub fn each(&self) -> impl Iterator<Item = u64> + use<> {
        self.first..self.first + self.blocks
    }
    /// Registers of one block.
    #[must_use]
    pub fn of_block(&self, block: u64) -> Span {
        self.registers(block * BLOCK as u64, BLOCK as u64)
    }
}

/// Blocks that a request touches, in order.
pub fn blocks_of(op: &GuestOp) -> impl Iterator<Item = (ChunkIndex, u32)> + use<> {
    let (offset, len) = bytes_of(op);
    let b = BLOCK as u64;
    blocks(offset / b, (offset + len).div_ceil(b))
}

/// Blocks that lie wholly inside a request.
pub fn whole_blocks_of(op: &GuestOp) -> impl Iterator<Item = (ChunkIndex, u32)> + use<> {
    let (offset, len) = bytes_of(op);
    let b = BLOCK as u64;
    blocks(offset.div_ceil(b), (offset + len) / b)
}

fn bytes_of(op: &GuestOp) -> (u64, u64) {
    match op {
        GuestOp::Read { offset, len } | GuestOp::Write { offset, len, .. } => (*offset, u64::from(*len)),
        GuestOp::Discard { offset, len, .. }
        | GuestOp::WriteZeroes { offset, len, .. }
        | GuestOp::Map { offset, len }
        | GuestOp::Changes { offset, len, .. }
        | GuestOp::Verify { offset, len } => (*offset, *len),
        GuestOp::Flush => (0, 0),
    }
}

fn blocks(first: u64, end: u64) -> impl Iterator<Item = (ChunkIndex, u32)> {
    (first..end).map(place_of)
}

/// A block of the volume: its chunk, and where in it.
#[must_use]
pub fn place_of(block: u64) -> (ChunkIndex, u32) {
    let chunk = ChunkIndex(u32::try_from(block / CHUNK_BLOCKS).expect("few chunks"));
    (chunk, u32::try_from(block % CHUNK_BLOCKS).expect("within a chunk"))
}
/// And back.
#[must_use]
pub fn block_at((chunk, block): (ChunkIndex, u32)) -> u64 {
    u64::from(chunk.0) * CHUNK_BLOCKS + u64::from(block)
}

fn stamp(sector: &[u8]) -> (u64, u64) {
    let word = |i: usize| u64::from_le_bytes(sector[i..i + 8].try_into().expect("eight bytes"));
    (word(0), word(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    const L: Layout = Layout { family: 3, first: 100, blocks: 32, fine: 2 };

    #[test]
    fn what_is_written_is_read_back() {
        for (offset, len) in [(100 * 4096, 8 * 4096), (102 * 4096, 4096), (100 * 4096 + 512, 1024)] {
            let p = L.payload(offset, len, 77);
            let skip = u32::try_from(offset % 4096).unwrap();
            let pieces = [ReadPiece::Data { payload: p, skip, len: u32::try_from(len).unwrap() }];
            let values = L.values(offset, len, &pieces).unwrap();
            assert_eq!(values, vec![77; usize::try_from(L.registers(offset, len).count).unwrap()]);
        }
    }

    #[test]
    fn bytes_of_another_place_are_odd() {
        let p = L.payload(103 * 4096, 4096, 77);
        let pieces = [ReadPiece::Data { payload: p, skip: 0, len: 4096 }];
        assert_eq!(L.values(104 * 4096, 4096, &pieces), Err(Odd::Torn(18)));
    }

    #[test]
    fn a_block_in_two_pieces_is_odd_where_blocks_are_atomic() {
        let (a, b) = (L.payload(103 * 4096, 4096, 1), L.payload(103 * 4096, 4096, 2));
        let pieces = [
            ReadPiece::Data { payload: a, skip: 0, len: 2048 },
            ReadPiece::Data { payload: b, skip: 2048, len: 2048 },
        ];
        assert_eq!(L.values(103 * 4096, 4096, &pieces), Err(Odd::Torn(17)));
    }
}
