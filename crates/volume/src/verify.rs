//! Block status, and `volume verify`: both under the hold-back.

use crate::geometry::{Piece, PieceKind};
use crate::members::slots;
use crate::ops::{OpKind, Yield};
use crate::request::GuestError;
use crate::session::{Session, What};
use proto::Refusal;
use proto::limits::BLOCKS_PER_EXTENT;
use proto::message::{BlockState, Request, Run, View};
use std::collections::BTreeMap;

/// What a replica says of its extents: (extent, hash), and the blocks that are bad.
pub(crate) type Verified = (Vec<(u32, u64)>, Vec<u32>);

impl Session {
    /// Block status, and what is absent here from the parents; or what has changed: from one in-sync replica. What was
    /// acknowledged before is on it, and what is in flight and may be in the answer is waited for by `hold_answer`.
    pub(crate) fn start_map(&mut self, id: usize) {
        let Piece { kind, chunk, range, .. } = self.ops[id].piece;
        let Some(slot) = self.readable(chunk, 0) else {
            return self.stalled.push(id);
        };
        let drive = self.chunks[chunk as usize].slots[slot].drive;
        let token = self.ask(drive, What::Map { op: id });
        let view = View::Head;
        let request = match kind {
            PieceKind::Changes(after) => Request::Changes { view, after, range },
            _ => Request::Map { view, range },
        };
        self.send_slot(chunk, slot, token, request);
    }

    /// The generation that changes were asked of is no longer kept: nobody can tell them any more.
    pub(crate) fn map_refused(&mut self, id: usize, refusal: Refusal) -> bool {
        let over =
            refusal == Refusal::UnknownView && matches!(self.ops[id].piece.kind, PieceKind::Changes(_));
        if over {
            self.end_op(id, Err(GuestError::Io));
        }
        over
    }

    pub(crate) fn map_answered(&mut self, id: usize, runs: Vec<Run>) {
        let want = u64::from(self.ops[id].piece.range.count);
        if runs.iter().map(|r| u64::from(r.count)).sum::<u64>() != want {
            self.stalled.push(id);
            return;
        }
        if matches!(self.ops[id].kind, OpKind::Fill(_)) {
            return self.fill_absent(id, &runs);
        }
        // What the own branch has not has not changed.
        let changes = matches!(self.ops[id].piece.kind, PieceKind::Changes(_));
        if !changes && self.parents.is_some() && runs.iter().any(|r| r.state == BlockState::Absent) {
            return self.map_layers(id, &runs);
        }
        self.map_done(id, runs);
    }

    pub(crate) fn map_done(&mut self, id: usize, runs: Vec<Run>) {
        self.ops[id].kind = OpKind::Map(runs);
        self.hold_answer(id);
    }

    /// All in-sync replicas read these extents again from their media.
    pub(crate) fn start_verify(&mut self, id: usize) {
        let (chunk, range) = (self.ops[id].piece.chunk, self.ops[id].piece.range);
        let c = &self.chunks[chunk as usize];
        let all = c.set;
        let ready = c.undecided.is_none()
            && slots(all).all(|s| self.linked(c.slots[s].drive) && !self.drives[c.slots[s].drive].doubt);
        if !ready {
            return self.stalled.push(id);
        }
        let first_extent = range.extent();
        let extents = (range.end() - 1) / BLOCKS_PER_EXTENT - first_extent + 1;
        self.ops[id].kind = OpKind::Verify(vec![], vec![]);
        self.ops[id].outstanding = all.count_ones();
        self.ops[id].no_space = false;
        for slot in slots(all) {
            let drive = self.chunks[chunk as usize].slots[slot].drive;
            let token = self.ask(drive, What::Verify { op: id, slot });
            self.send_slot(chunk, slot, token, Request::Verify { view: View::Head, first_extent, extents });
        }
    }

    /// A replica has answered, or cannot (`None`): then all are asked again.
    pub(crate) fn verify_answered(&mut self, id: usize, slot: usize, answer: Option<Verified>) {
        let op = &mut self.ops[id];
        let OpKind::Verify(answers, bad) = &mut op.kind else { unreachable!("asked by a verify") };
        match answer {
            Some((extents, b)) => {
                answers.push((slot, extents));
                bad.extend(b);
            }
            None => op.no_space = true,
        }
        op.outstanding -= 1;
        if op.outstanding > 0 {
            return;
        }
        if op.no_space {
            self.stalled.push(id);
            self.dirty = true;
            return;
        }
        let (piece, replicas) = (op.piece, answers.len());
        let mut seen: BTreeMap<u32, (u64, usize, bool)> = BTreeMap::new();
        for &(extent, hash) in answers.iter().flat_map(|a| &a.1) {
            let e = seen.entry(extent).or_insert((hash, 0, true));
            e.1 += 1;
            e.2 &= e.0 == hash;
        }
        for b in bad.iter() {
            seen.entry(b / BLOCKS_PER_EXTENT).or_insert((0, 0, false)).2 = false;
        }
        let geometry = self.geometry;
        let differing = seen
            .iter()
            .filter(|(_, (_, count, same))| !same || *count != replicas)
            .map(|(e, _)| geometry.offset(proto::ChunkIndex(piece.chunk), e * BLOCKS_PER_EXTENT))
            .collect();
        self.end_op(id, Ok(Yield::Verified { differing, bytes: piece.len }));
    }
}
