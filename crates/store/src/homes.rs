//! Blocks on their way home, as few writes as can be.
//!
//! Neighbours go by one write, over the borders of extents too. Where an extent has several that do not touch, what lies
//! between them is read from its home and written along: two I/Os instead of many, and it stays what it was. Everything
//! in flight is pinned: its extent is not handed out again, and no second write begins there.

use crate::event::{IoOp, IoResult};
use crate::overlay::{Block, Way, What};
use crate::store::{Job, Store};
use crate::table::{Px, Use};
use proto::Payload;
use proto::limits::BLOCKS_PER_EXTENT;
use std::collections::VecDeque;

/// Longest home write, blocks.
const RUN_MAX: usize = 256;
/// From so many pieces of an extent on they go by one write.
const PIECES: usize = 3;

/// A block that goes home: extent, block, batch.
pub(crate) type Going = (Px, u8, u64);

/// Blocks of one extent, and what lies between them being read.
pub(crate) struct Patch {
    run: Vec<Going>,
    payloads: Vec<Payload>,
}
impl Patch {
    fn first(&self) -> u8 {
        self.run[0].1
    }
    fn span(&self) -> u8 {
        self.run[self.run.len() - 1].1 - self.first() + 1
    }
}

/// Pieces that do not touch.
fn pieces(ready: &[(u8, u64, Payload)]) -> usize {
    1 + ready.windows(2).filter(|w| w[0].0 + 1 != w[1].0).count()
}

impl Store {
    /// Flushed blocks of `px` go home, together with what lies next to them in the following extents.
    pub(crate) fn home_run(&mut self, px: Px, queue: &mut VecDeque<Px>) {
        let mut run: Vec<Going> = Vec::new();
        let mut payloads: Vec<Payload> = Vec::new();
        let mut ready = std::mem::take(&mut self.checkpoint.ready);
        let mut start = 0;
        let mut at = Some(px);
        while let Some(px) = at.take() {
            self.ready_blocks(px, &mut ready);
            if pieces(&ready) >= PIECES {
                self.fill(px, &mut ready);
                break;
            }
            for (block, seq, payload) in ready.drain(..) {
                let place = u64::from(px) * u64::from(BLOCKS_PER_EXTENT) + u64::from(block);
                if !run.is_empty() && (place != start + run.len() as u64 || run.len() >= RUN_MAX) {
                    self.write_home(std::mem::take(&mut run), std::mem::take(&mut payloads));
                }
                if run.is_empty() {
                    start = place;
                }
                run.push((px, block, seq));
                payloads.push(payload);
            }
            let ends_here = run.last().is_some_and(|r| (r.0, u32::from(r.1)) == (px, BLOCKS_PER_EXTENT - 1));
            if ends_here && run.len() < RUN_MAX {
                at = queue.pop_front_if(|next| *next == px + 1);
            }
        }
        self.checkpoint.ready = ready;
        if !run.is_empty() {
            self.write_home(run, payloads);
        }
    }

    /// Blocks of an extent that may go home now, ascending; none while it is read or written.
    fn ready_blocks(&self, px: Px, ready: &mut Vec<(u8, u64, Payload)>) {
        let disk = self.disk();
        let early = self.bugs().home_before_flush;
        let flushed = if early { disk.journal.applied } else { disk.journal.flushed };
        let usage = disk.table.get(px).usage;
        let owned = usage == Use::Owned || (early && usage == Use::Fresh);
        if !owned || disk.table.is_pinned(px) {
            return;
        }
        let waits = |b: &&Block| b.what == What::Data && b.way == Way::Pending && b.seq <= flushed;
        let blocks = disk.overlay.of(px).filter(waits);
        ready.extend(blocks.filter_map(|b| Some((b.block, b.seq, b.payload.clone()?))));
    }

    /// They are on their way from here on.
    fn set_out(&mut self, run: &[Going]) {
        let disk = self.disk_mut();
        for (px, block, _) in run {
            disk.overlay.find_mut(*px, u32::from(*block)).expect("just listed").way = Way::Writing;
            disk.table.pin(*px);
        }
    }
    fn write_home(&mut self, run: Vec<Going>, payloads: Vec<Payload>) {
        self.set_out(&run);
        self.write_run(run, payloads);
    }
    /// One after the other, from the place of the first one on; what lies between them is among the payloads.
    fn write_run(&mut self, run: Vec<Going>, pieces: Vec<Payload>) {
        let offset = self.disk().layout.data(run[0].0, u32::from(run[0].1));
        self.checkpoint.in_flight += 1;
        self.io(Job::Home(run), IoOp::Write { offset, pieces });
    }

    fn fill(&mut self, px: Px, ready: &mut Vec<(u8, u64, Payload)>) {
        let (run, payloads): (Vec<Going>, Vec<Payload>) =
            ready.drain(..).map(|(block, seq, payload)| ((px, block, seq), payload)).unzip();
        self.set_out(&run);
        let patch = Patch { run, payloads };
        let offset = self.disk().layout.data(px, u32::from(patch.first()));
        let blocks = u32::from(patch.span());
        self.checkpoint.in_flight += 1;
        self.io(Job::Fill(patch), IoOp::Read { offset, blocks });
    }
    pub(crate) fn filled(&mut self, patch: Patch, result: IoResult) {
        self.checkpoint.in_flight -= 1;
        let IoResult::Read(between) = result else {
            // A bad sector between them: each piece by itself.
            return self.write_apart(patch);
        };
        let (first, span) = (patch.first(), patch.span());
        let mut pieces: Vec<Payload> = Vec::with_capacity(2 * patch.run.len());
        let mut next = first;
        for ((_, block, _), payload) in patch.run.iter().zip(patch.payloads) {
            if *block > next {
                pieces.push(between.slice(usize::from(next - first), usize::from(block - next)));
            }
            pieces.push(payload);
            next = block + 1;
        }
        assert_eq!(pieces.iter().map(Payload::blocks).sum::<usize>(), usize::from(span), "no gap is left");
        self.write_run(patch.run, pieces);
    }
    fn write_apart(&mut self, patch: Patch) {
        let (mut run, mut payloads): (Vec<Going>, Vec<Payload>) = (Vec::new(), Vec::new());
        for (going, payload) in patch.run.into_iter().zip(patch.payloads) {
            if run.last().is_some_and(|last| last.1 + 1 != going.1) {
                self.write_run(std::mem::take(&mut run), std::mem::take(&mut payloads));
            }
            run.push(going);
            payloads.push(payload);
        }
        self.write_run(run, payloads);
    }

    pub(crate) fn home_done(&mut self, run: &[Going]) {
        self.checkpoint.in_flight -= 1;
        let stamp = self.stamp;
        let disk = self.disk.as_mut().expect("opened");
        for (px, block, seq) in run {
            disk.table.unpin(*px);
            let found = disk.overlay.find_mut(*px, u32::from(*block));
            if let Some(b) = found.filter(|b| b.seq == *seq && b.way == Way::Writing) {
                b.way = Way::Written(stamp);
                self.flusher.written.push((stamp, *px, *block, *seq));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_touch_are_one() {
        let of =
            |blocks: &[u8]| pieces(&blocks.iter().map(|b| (*b, 1, Payload::empty())).collect::<Vec<_>>());
        assert_eq!([of(&[3]), of(&[3, 4, 5]), of(&[0, 2]), of(&[0, 1, 3, 15])], [1, 1, 2, 3]);
    }
}
