//! Repair of a bad block (5.8): conditional on the version that failed, with the source's version, under the
//! hold-back.

use crate::event::Notice;
use crate::geometry::{Piece, PieceKind};
use crate::members::bit;
use crate::ops::{Op, OpKind, Yield};
use crate::reads::{Part, Reader};
use crate::session::{Session, What};
use proto::limits::{BLOCK, BLOCKS_PER_EXTENT};
use proto::message::{BlockState, Request, Run};
use proto::record::Sum;
use proto::{BlockRange, ChunkIndex, KeyId, Payload, Record, RecordKind};

/// Repairs under way at once.
const REPAIRS: usize = 16;

impl Session {
    /// A read met bad blocks on this replica.
    pub(crate) fn want_repair(&mut self, chunk: u32, range: BlockRange, slot: usize, bad: &Run) {
        let (failed, generation) = (bad.version, bad.generation);
        for block in range.first..range.end() {
            if self.phase != crate::session::Phase::Serving
                || self.repairs.len() >= REPAIRS
                || !self.repairs.insert((chunk, block, slot))
            {
                continue;
            }
            let range = BlockRange::new(block, 1);
            let start = self.geometry.offset(ChunkIndex(chunk), block);
            let piece = Piece { kind: PieceKind::Write, chunk, range, start, len: BLOCK as u64 };
            let id = self.ops.insert(Op::new(None, 0, piece, OpKind::Repair { slot, failed, generation }));
            self.submit(id);
        }
    }

    pub(crate) fn start_repair(&mut self, id: usize) {
        let piece = self.ops[id].piece;
        let OpKind::Repair { slot, .. } = self.ops[id].kind else { unreachable!("started as a repair") };
        self.fetch(Reader::Repair(id), piece.chunk, piece.range, bit(slot));
    }

    /// The source has given the block; `None` or bad: there is none.
    pub(crate) fn repair_with(&mut self, id: usize, part: Option<Part>) {
        let piece = self.ops[id].piece;
        let OpKind::Repair { slot, failed, generation } = self.ops[id].kind else {
            unreachable!("started as a repair")
        };
        let member = self.chunks[piece.chunk as usize].set & bit(slot) != 0;
        let usable = part.filter(|p| matches!(p.state, BlockState::Data | BlockState::Zero));
        let (Some(part), true) = (usable, member) else { return self.repaired(id, false) };
        let s = self.chunks[piece.chunk as usize].slots[slot];
        if !self.linked(s.drive) {
            return self.repaired(id, false);
        }
        let (kind, sums, payload) = match part.payload {
            Some(p) => (RecordKind::Write, Record::sums_of(&p), p),
            None => (RecordKind::Zero, [Sum::default(); BLOCKS_PER_EXTENT as usize], Payload::empty()),
        };
        let record = Record {
            kind,
            branch: self.branch,
            chunk: ChunkIndex(piece.chunk),
            range: piece.range,
            version: part.version,
            // where it is bad: the source may store the same view in another
            generation,
            incarnation: s.place.incarnation,
            key: KeyId(0),
            sums,
        };
        let token = self.ask(s.drive, What::Repair { op: id });
        self.send_slot(piece.chunk, slot, token, Request::Repair { record, payload, failed });
    }

    /// It is done, or will not be: the next read meets the block again.
    pub(crate) fn repaired(&mut self, id: usize, done: bool) {
        let piece = self.ops[id].piece;
        let OpKind::Repair { slot, .. } = self.ops[id].kind else { unreachable!("started as a repair") };
        self.repairs.remove(&(piece.chunk, piece.range.first, slot));
        if done {
            let drive = self.chunks[piece.chunk as usize].slots[slot].place.drive;
            self.notice(Notice::Repaired { chunk: ChunkIndex(piece.chunk), block: piece.range.first, drive });
        }
        self.end_op(id, Ok(Yield::Written(0)));
    }
}
