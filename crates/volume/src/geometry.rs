//! Splitting a guest's request: a piece lies in one chunk, a written piece in one extent.

use proto::limits::{BLOCK, EXTENT};
use proto::{BlockRange, Generation, Geometry};

/// What a piece of a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PieceKind {
    Read,
    Write,
    /// Whole blocks.
    Zero,
    /// Part of one block that is to read as zeroes: a merge.
    ZeroEdge,
    Map,
    /// A map of what is younger than this.
    Changes(Generation),
    Verify,
}

/// A piece of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub kind: PieceKind,
    pub chunk: u32,
    pub range: BlockRange,
    /// Byte offset in the volume.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl Piece {
    /// Bytes of the first block that the piece leaves alone.
    pub fn head(&self) -> usize {
        index(self.start % BLOCK as u64)
    }
    /// Bytes of the last block that the piece leaves alone.
    pub fn tail(&self) -> usize {
        let over = index((self.start + self.len) % BLOCK as u64);
        if over == 0 { 0 } else { BLOCK - over }
    }
}

/// An index into memory.
pub(crate) fn index(n: u64) -> usize {
    usize::try_from(n).expect("64-bit addresses")
}

/// Largest piece, bytes (powers of two, none larger than the smallest chunk, so no piece spans two chunks).
const READ_MAX: u64 = 1 << 20;
const ZERO_MAX: u64 = 1 << 24;
const MAP_MAX: u64 = 1 << 24;
const VERIFY_MAX: u64 = 1 << 20;
const _: () = assert!(READ_MAX <= proto::limits::FRAME_PAYLOAD_MAX as u64);
const _: () = assert!(
    ZERO_MAX <= 1 << proto::limits::CHUNK_SHIFT_MIN && MAP_MAX <= 1 << proto::limits::CHUNK_SHIFT_MIN
);

/// Yields the pieces of a request, in order, as they are wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Splitter {
    kind: PieceKind,
    next: u64,
    end: u64,
}

impl Splitter {
    pub fn new(kind: PieceKind, start: u64, len: u64) -> Splitter {
        Splitter { kind, next: start, end: start + len }
    }
    /// A discard: blocks that lie wholly inside; may be empty.
    pub fn whole_blocks(start: u64, len: u64) -> Splitter {
        let end = (start + len) / BLOCK as u64 * BLOCK as u64;
        let next = start.next_multiple_of(BLOCK as u64).min(end);
        Splitter { kind: PieceKind::Zero, next, end }
    }
    pub fn done(&self) -> bool {
        self.next >= self.end
    }
    pub fn next(&mut self, geometry: Geometry) -> Option<Piece> {
        if self.done() {
            return None;
        }
        let (block, extent) = (BLOCK as u64, EXTENT as u64);
        let start = self.next;
        let to = |unit: u64| ((start / unit + 1) * unit).min(self.end);
        let (kind, stop) = match self.kind {
            PieceKind::Zero if !start.is_multiple_of(block) || self.end - start < block => {
                (PieceKind::ZeroEdge, to(block))
            }
            // Whole extents by themselves: they take no space.
            PieceKind::Zero if !start.is_multiple_of(extent) || self.end - start < extent => {
                (PieceKind::Zero, to(extent) / block * block)
            }
            PieceKind::Zero => (PieceKind::Zero, to(ZERO_MAX) / extent * extent),
            PieceKind::Write => (self.kind, to(EXTENT as u64)),
            PieceKind::Read => (self.kind, to(READ_MAX)),
            PieceKind::Map | PieceKind::Changes(_) => (self.kind, to(MAP_MAX)),
            PieceKind::Verify => (self.kind, to(VERIFY_MAX)),
            PieceKind::ZeroEdge => unreachable!("made from Zero only"),
        };
        self.next = stop;
        let (chunk, first) = geometry.locate(start);
        let (_, last) = geometry.locate(stop - 1);
        let range = BlockRange::new(first, last - first + 1);
        Some(Piece { kind, chunk: chunk.0, range, start, len: stop - start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut s: Splitter) -> Vec<Piece> {
        let g = Geometry { size: 64 << 20, chunk_shift: 24 };
        std::iter::from_fn(|| s.next(g)).collect()
    }

    #[test]
    fn a_write_is_split_at_extents_and_covers_every_byte_once() {
        let v = all(Splitter::new(PieceKind::Write, (16 << 20) - 512, 65536 + 1024));
        assert_eq!(v.len(), 3);
        assert_eq!((v[0].chunk, v[0].range, v[0].len), (0, BlockRange::new(4095, 1), 512));
        assert_eq!((v[0].head(), v[0].tail()), (3584, 0));
        assert_eq!((v[1].chunk, v[1].range, v[1].len), (1, BlockRange::new(0, 16), 65536));
        assert_eq!((v[2].range, v[2].len, v[2].head(), v[2].tail()), (BlockRange::new(16, 1), 512, 0, 3584));
    }

    #[test]
    fn zeroes_merge_their_edges_and_discards_leave_them_alone() {
        let v = all(Splitter::new(PieceKind::Zero, 512, 3 * 4096));
        let kinds: Vec<_> = v.iter().map(|p| (p.kind, p.range)).collect();
        assert_eq!(
            kinds,
            [
                (PieceKind::ZeroEdge, BlockRange::new(0, 1)),
                (PieceKind::Zero, BlockRange::new(1, 2)),
                (PieceKind::ZeroEdge, BlockRange::new(3, 1)),
            ]
        );
        let v = all(Splitter::whole_blocks(512, 3 * 4096));
        assert_eq!(v.len(), 1);
        assert_eq!(v[0].range, BlockRange::new(1, 2));
        assert!(Splitter::whole_blocks(512, 4096).done());
    }

    #[test]
    fn zeroes_of_whole_extents_go_by_themselves() {
        let extent = EXTENT as u64;
        let v = all(Splitter::new(PieceKind::Zero, extent - 8192, 4 * extent + 12288));
        let blocks: Vec<_> = v.iter().map(|p| (p.range.first, p.range.count)).collect();
        assert_eq!(blocks, [(14, 2), (16, 64), (80, 1)]);
        let v = all(Splitter::new(PieceKind::Zero, (16 << 20) - extent, 2 * extent));
        assert_eq!(v.iter().map(|p| (p.chunk, p.range.count)).collect::<Vec<_>>(), [(0, 16), (1, 16)]);
    }

    #[test]
    fn no_piece_spans_two_chunks() {
        for kind in [PieceKind::Read, PieceKind::Zero, PieceKind::Map, PieceKind::Verify] {
            let v = all(Splitter::new(kind, 4096, (33 << 20) - 4096));
            assert_eq!(v.iter().map(|p| p.len).sum::<u64>(), (33 << 20) - 4096);
            assert!(v.iter().all(|p| p.range.end() <= 4096));
        }
    }
}
