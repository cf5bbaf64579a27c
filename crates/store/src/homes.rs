//! Blocks on their way home, as few writes as can be.
//!
//! Neighbours go by one write, over the borders of extents too. (To read what lies between pieces of an extent, and write it
//! along, was tried: it is two I/Os instead of three or four, and dearer, by the bytes that are moved.) Everything in flight
//! is pinned: its extent is not handed out again, and no second write begins there.

use crate::event::IoOp;
use crate::overlay::{Block, Way, What};
use crate::store::{Job, Store};
use crate::table::{Px, Use};
use proto::Payload;
use proto::limits::BLOCKS_PER_EXTENT;
use std::collections::VecDeque;

/// Longest home write, blocks.
const RUN_MAX: usize = 256;
/// A block that goes home: extent, block, batch.
pub(crate) type Going = (Px, u8, u64);

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

    /// Blocks of an extent that may go home now, ascending; not those that are just read or written there. (Reads of other
    /// blocks do not matter: they would keep a busy extent from going home for ever, and the ring full.)
    fn ready_blocks(&self, px: Px, ready: &mut Vec<(u8, u64, Payload)>) {
        let disk = self.disk();
        let early = self.bugs().home_before_flush;
        let flushed = if early { disk.journal.applied } else { disk.journal.flushed };
        let usage = disk.table.get(px).usage;
        let owned = usage == Use::Owned || (early && usage == Use::Fresh);
        if !owned {
            return;
        }
        let waits = |b: &&Block| {
            let pinned = disk.table.is_pinned(px, u32::from(b.block));
            b.what == What::Data && b.way == Way::Pending && b.seq <= flushed && !pinned
        };
        let blocks = disk.overlay.of(px).filter(waits);
        ready.extend(blocks.filter_map(|b| Some((b.block, b.seq, self.loader.bytes(b.position)?))));
    }

    fn write_home(&mut self, run: Vec<Going>, pieces: Vec<Payload>) {
        let disk = self.disk_mut();
        for (px, block, _) in &run {
            disk.overlay.find_mut(*px, u32::from(*block)).expect("just listed").way = Way::Writing;
            disk.table.pin(*px, u32::from(*block));
        }
        let offset = disk.layout.data(run[0].0, u32::from(run[0].1));
        self.checkpoint.in_flight += 1;
        self.io(Job::Home(run), IoOp::Write { offset, pieces });
    }

    pub(crate) fn home_done(&mut self, run: &[Going]) {
        self.checkpoint.in_flight -= 1;
        let stamp = self.stamp;
        let disk = self.disk.as_mut().expect("opened");
        for (px, block, seq) in run {
            disk.table.unpin(*px, u32::from(*block));
            let found = disk.overlay.find_mut(*px, u32::from(*block));
            if let Some(b) = found.filter(|b| b.seq == *seq && b.way == Way::Writing) {
                b.way = Way::Written(stamp);
                self.flusher.written.push((stamp, *px, *block, *seq));
            }
        }
    }
}
