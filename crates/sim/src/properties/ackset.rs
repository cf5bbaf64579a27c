//! ACKSET: at every acknowledgement, every replica that Raft's committed state calls in-sync holds the write, or a newer
//! one, or is in doubt, or the whole set lost power since.
//!
//! What a replica holds is read from its store's own state (the checksum of the block); what a checksum means is known
//! from what guests asked. A replica whose process is down, or not yet open, cannot be asked: SAME sees it later.

use super::{Asked, Watchers, truth::Block};
use crate::counts::Property;
use crate::layout::{blocks_of, whole_blocks_of};
use crate::world::World;
use proto::record::Sum;
use proto::{ChunkIndex, Map, Ticket};
use volume::{GuestOp, GuestRequest};

/// Per block, the contents that guests have asked for, in the order of asking.
#[derive(Debug, Default)]
pub struct AckSet {
    history: Map<(usize, ChunkIndex, u32), Vec<(Ticket, Block)>>,
}

impl AckSet {
    pub fn asked(&mut self, volume: usize, request: &GuestRequest) {
        let contents = |i: usize| match &request.op {
            // Zeroes that take their space are data.
            GuestOp::WriteZeroes { no_hole: true, .. } => Block::Data(Sum::of(&[0; proto::limits::BLOCK])),
            GuestOp::Write { data, .. } => Block::Data(Sum::of(data.payload.block(i))),
            _ => Block::Zero,
        };
        let changes = matches!(
            request.op,
            GuestOp::Write { .. } | GuestOp::Discard { .. } | GuestOp::WriteZeroes { .. }
        );
        if !changes {
            return;
        }
        let first = blocks_of(&request.op).next();
        for (chunk, block) in whole_blocks_of(&request.op) {
            let from = first.map_or(0, |f| distance(f, (chunk, block)));
            self.history.entry((volume, chunk, block)).or_default().push((request.ticket, contents(from)));
        }
    }
}

fn distance(a: (ChunkIndex, u32), b: (ChunkIndex, u32)) -> usize {
    let at = |p: (ChunkIndex, u32)| u64::from(p.0.0) * crate::layout::CHUNK_BLOCKS + u64::from(p.1);
    usize::try_from(at(b) - at(a)).expect("within a request")
}

impl Watchers {
    /// Who asked for these contents of a block, for messages.
    #[must_use]
    pub fn asked_by(&self, volume: usize, chunk: ChunkIndex, block: u32, held: Block) -> String {
        let history = self.ackset.history.get(&(volume, chunk, block));
        let who = history.and_then(|h| h.iter().rev().find(|h| h.1.same_as(held)));
        who.map_or("nobody of late".into(), |w| w.0.to_string())
    }
}

impl World {
    pub fn check_ackset(&mut self, v: usize, ticket: Ticket, asked: &Asked) {
        let Some(branch) = self.branch_of(v) else { return };
        let fine = self.volumes[v].layout.first + self.volumes[v].layout.fine;
        for (chunk, block) in whole_blocks_of(&asked.op) {
            // Blocks that are merged hold what no guest asked for as a whole.
            if u64::from(chunk.0) * crate::layout::CHUNK_BLOCKS + u64::from(block) < fine {
                continue;
            }
            if self.atlas.loss_permitted(branch, chunk) {
                continue;
            }
            let Some(c) = self.metad.configuration(branch, chunk) else { continue };
            let history = self.watchers.ackset.history.get(&(v, chunk, block)).cloned().unwrap_or_default();
            let mine = history.iter().position(|h| h.0 == ticket).unwrap_or(0);
            for m in c.in_sync() {
                let Some(held) = self.held(m.place, branch, chunk, block) else { continue };
                self.counts.checked(Property::AckSet, 1);
                let good = history[mine..].iter().any(|h| h.1.same_as(held));
                // Something asked earlier that is still on its way may also be newer in effect.
                let concurrent = self.unanswered_elsewhere(v, ticket, &history, held);
                if !good && !concurrent && !self.in_doubt(m.place, branch) {
                    let drive = m.place.drive;
                    self.fail(
                        "ACKSET",
                        format!(
                            "{branch} {chunk} block {block}: {ticket} is acknowledged, {drive} holds {held:?}"
                        ),
                    );
                }
            }
        }
        self.watchers.ackset.trim(v, ticket, asked);
    }

    /// True if what is held was asked before, but overlapped this write.
    fn unanswered_elsewhere(
        &self,
        v: usize,
        ticket: Ticket,
        history: &[(Ticket, Block)],
        held: Block,
    ) -> bool {
        history
            .iter()
            .any(|(t, b)| *t != ticket && b.same_as(held) && self.watchers.overlapped(v, *t, ticket))
    }
}

impl AckSet {
    /// Keeps the histories short: what was asked long before an acknowledged write is history.
    fn trim(&mut self, v: usize, ticket: Ticket, asked: &Asked) {
        for (chunk, block) in whole_blocks_of(&asked.op) {
            if let Some(h) = self.history.get_mut(&(v, chunk, block))
                && let Some(i) = h.iter().position(|h| h.0 == ticket)
                && i > 64
            {
                h.drain(..i - 64);
            }
        }
    }
}
