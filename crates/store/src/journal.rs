//! The journal ring: batches in flight and those whose effects are not yet everywhere, and what pins its tail.
//!
//! Owns positions, the chain of checksums, and per batch what keeps the tail from passing it. Invariants:
//! batches take effect in order (prefix marks); `tail <= first live batch <= applied <= head`; a batch is passed
//! only when its blocks are home, or superseded by *flushed* entries.

use crate::layout::Layout;
use crate::op::Op;
use crate::table::Px;
use proto::limits::{BLOCK, REPLAY_MAX};
use std::collections::VecDeque;

/// Most that recovery reads.
pub const REPLAY_PAGES: u64 = REPLAY_MAX / BLOCK as u64;
/// Journal writes in flight at once. More would make small batches.
pub const IN_FLIGHT: usize = 2;

/// A batch that the ring holds.
pub struct Batch {
    /// Where its header begins, in pages since format.
    pub position: u64,
    pub pages: u64,
    /// Of these its header.
    pub header: u64,
    /// Checksum of its header.
    pub crc: u32,
    /// Overlay blocks that it holds the newest copy of.
    pub live: u32,
    /// Least batch that must stay until this one is flushed: it holds what this one supersedes.
    pub hold: u64,
    /// Homes of its blocks.
    pub homes: Vec<Px>,
    /// Its entries, until they take effect.
    pub ops: Vec<Op>,
    /// When its write completed.
    pub stamp: Option<u64>,
    pub larges: u32,
    /// Reads of its blocks in flight: it stays.
    pub readers: u32,
}
impl Batch {
    /// One at this place, with its header's pages and checksum, that holds nothing yet.
    #[must_use]
    pub fn new(position: u64, pages: u64, header: u64, crc: u32) -> Batch {
        Batch {
            position,
            pages,
            header,
            crc,
            live: 0,
            hold: u64::MAX,
            homes: Vec::new(),
            ops: Vec::new(),
            stamp: None,
            larges: 0,
            readers: 0,
        }
    }
}

pub struct Journal {
    layout: Layout,
    /// Flushed tail: the ring before it may be overwritten.
    pub tail: u64,
    pub head: u64,
    /// Number of the next batch, and checksum of the newest header.
    pub next_seq: u64,
    pub crc: u32,
    /// From `first_seq` on.
    batches: VecDeque<Batch>,
    first_seq: u64,
    /// Batches up to here have taken effect / are flushed.
    pub applied: u64,
    pub flushed: u64,
    pub in_flight: usize,
    /// Batches up to here are in the journal's index: recovery need not read them in the ring.
    indexed: u64,
    /// Pages of those that are not.
    unindexed: u64,
    /// Large entries in batches that are not flushed.
    pub unflushed_larges: u32,
}

impl Journal {
    /// An empty ring whose next batch is `next_seq` at `head`, everything before it flushed.
    #[must_use]
    pub fn new(layout: Layout, tail: u64, first_seq: u64, crc: u32) -> Journal {
        Journal {
            layout,
            tail,
            head: tail,
            next_seq: first_seq,
            crc,
            batches: VecDeque::new(),
            first_seq,
            applied: first_seq - 1,
            flushed: first_seq - 1,
            in_flight: 0,
            indexed: first_seq - 1,
            unindexed: 0,
            unflushed_larges: 0,
        }
    }
    /// Pages of the ring.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.layout.journal_pages
    }
    /// Most pages outside of the index: with it they are what recovery may read at most.
    fn limit(&self) -> u64 {
        let l = &self.layout;
        // Behind the last chunk one more is looked at, and the last read of the ring may reach too far.
        let too_far = u64::from(l.chunk_pages) + crate::recovery::chain::CHUNK + u64::from(l.batch_pages);
        REPLAY_PAGES - l.index_pages - too_far
    }
    /// Only a flush, or two, can make room: the index is behind.
    #[must_use]
    pub fn lags(&self) -> bool {
        self.unindexed * 8 > self.limit() * 7
    }
    /// What recovery would read is counted right, and bounded; for checks.
    pub fn check_replay(&self) {
        let listed = |i: usize| self.first_seq + i as u64 <= self.indexed;
        let sum: u64 =
            self.batches.iter().enumerate().filter(|(i, _)| !listed(*i)).map(|(_, b)| b.pages).sum();
        assert_eq!(self.unindexed, sum, "pages that recovery would read in the ring");
        assert!(self.unindexed <= self.limit(), "recovery reads no more than it may");
        assert!(self.indexed <= self.flushed, "what is not flushed is not in the index");
    }
    /// So full that room should be made.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        // What the index lacks waits for two flushes at most, one of the batches and one of their chunk: that alone must
        // not be pressure, nor may the longest batches fill a short ring before it is.
        self.used() * 4 > self.window() * 3 || self.lags()
    }
    #[must_use]
    pub fn used(&self) -> u64 {
        self.head - self.tail
    }
    /// Where a batch of `pages` would begin; `None` if there is no room, or recovery would have to read too much.
    #[must_use]
    pub fn room(&self, pages: u64) -> Option<u64> {
        let start = self.layout.batch_start(self.head);
        let fits = start + pages <= self.tail + self.window();
        (fits && self.unindexed + pages <= self.limit()).then_some(start)
    }
    /// A new batch at the head; its number.
    pub fn push(&mut self, batch: Batch) -> u64 {
        let seq = self.next_seq;
        self.head = batch.position + batch.pages;
        self.crc = batch.crc;
        self.unflushed_larges += batch.larges;
        self.next_seq += 1;
        self.unindexed += batch.pages;
        self.batches.push_back(batch);
        seq
    }
    /// The index leads on from batch `upto`, whatever becomes of the ring before it.
    pub fn index_to(&mut self, upto: u64) {
        while self.indexed < upto {
            self.indexed += 1;
            self.unindexed -= self.get(self.indexed).map_or(0, |b| b.pages);
        }
    }
    #[must_use]
    pub fn get(&self, seq: u64) -> Option<&Batch> {
        seq.checked_sub(self.first_seq).and_then(|i| self.batches.get(usize::try_from(i).ok()?))
    }
    pub fn get_mut(&mut self, seq: u64) -> &mut Batch {
        let at = usize::try_from(seq - self.first_seq).expect("a batch of the ring");
        &mut self.batches[at]
    }
    /// The first batch that the ring still needs.
    #[must_use]
    pub fn first_seq(&self) -> u64 {
        self.first_seq
    }
    /// A block of batch `seq` entered the overlay, in place of one of batch `old` if there was one.
    pub fn block_in(&mut self, seq: u64, old: Option<u64>) {
        self.get_mut(seq).live += 1;
        if let Some(old) = old {
            self.block_superseded(old, seq);
        }
    }
    /// What batch `old` held of a block is superseded by batch `by`.
    pub fn block_superseded(&mut self, old: u64, by: u64) {
        self.get_mut(old).live -= 1;
        let b = self.get_mut(by);
        b.hold = b.hold.min(old);
    }
    /// A block of batch `seq` is home and flushed.
    pub fn block_out(&mut self, seq: u64) {
        self.get_mut(seq).live -= 1;
    }
    /// The least batch that cannot be passed on account of the overlay and of who reads; `pages`: what the pages pin.
    #[must_use]
    pub fn keep_from(&self, pages: u64) -> u64 {
        let unflushed = self.flushed + 1;
        let held = (unflushed..self.next_seq).filter_map(|s| self.get(s)).map(|b| b.hold).min();
        let limit = unflushed.min(pages).min(held.unwrap_or(u64::MAX));
        let needed = |b: &Batch| b.live > 0 || b.readers > 0;
        (self.first_seq..limit).find(|s| self.get(*s).is_some_and(needed)).unwrap_or(limit)
    }
    /// Where the tail would be if it passed everything before batch `seq`: position, checksum before it.
    #[must_use]
    pub fn tail_at(&self, seq: u64, prev: u32) -> (u64, u32) {
        let crc = if seq == self.first_seq { prev } else { self.get(seq - 1).map_or(self.crc, |b| b.crc) };
        (self.get(seq).map_or(self.head, |b| b.position), crc)
    }
    /// The tail is flushed at batch `seq`, position `tail`: what lies before is forgotten.
    pub fn pass(&mut self, seq: u64, tail: u64) {
        while self.first_seq < seq {
            let b = self.batches.pop_front().expect("the tail lies within the ring");
            if self.first_seq > self.indexed {
                self.unindexed -= b.pages;
                self.indexed = self.first_seq;
            }
            assert_eq!(b.live, 0, "batch {} is passed while blocks are not home", self.first_seq);
            assert_eq!(b.readers, 0, "batch {} is passed while it is read", self.first_seq);
            self.first_seq += 1;
        }
        assert!(self.tail <= tail && tail <= self.head, "the tail moves forward within the ring");
        self.tail = tail;
    }
    /// Batches up to `upto` are flushed.
    pub fn flush_to(&mut self, upto: u64) {
        while self.flushed < upto {
            self.flushed += 1;
            self.unflushed_larges -= self.get(self.flushed).map_or(0, |b| b.larges);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_index_does_not_list_is_bounded_whatever_room_the_ring_has() {
        let layout = Layout::plan(16 << 30, None).unwrap();
        let mut j = Journal::new(layout, 0, 1, 0);
        while let Some(position) = j.room(128) {
            j.push(Batch::new(position, 128, 1, 0));
        }
        let listed = j.next_seq / 2;
        assert!(j.used() <= j.limit() && j.is_pressed() && j.lags());
        assert!(j.used() > j.limit() - 256 && j.limit() > 40_000);
        (j.applied, j.flushed) = (j.next_seq - 1, j.next_seq - 1);
        j.index_to(listed);
        j.check_replay();
        assert!(j.room(128).is_some() && !j.is_pressed(), "the ring is longer than that");
        j.pass(listed / 2, j.get(listed / 2).unwrap().position);
        j.check_replay();
        j.pass(listed + 9, j.get(listed + 9).unwrap().position);
        j.check_replay();
    }
}
