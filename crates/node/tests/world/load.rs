//! A guest that writes stamped blocks without pause, and knows what it was told.

use super::World;
use proto::{ExportId, Span, Ticket, Time};
use std::collections::BTreeMap;
use volume::GuestOp;

const BLOCK: usize = 4096;

pub struct Load {
    pub n: u32,
    pub export: u64,
    blocks: u64,
    depth: usize,
    stamp: u64,
    flying: BTreeMap<Ticket, (u64, u64)>,
    /// Per block: the newest stamp acknowledged, and those sent since.
    pub acked: BTreeMap<u64, u64>,
    maybe: BTreeMap<u64, Vec<u64>>,
    pub writes: u64,
    last: Time,
    /// The longest time without an answer.
    pub gap: Span,
}

impl Load {
    pub fn new(w: &World, n: u32, export: u64, blocks: u64) -> Load {
        Load {
            n,
            export,
            blocks,
            depth: 8,
            stamp: 0,
            flying: BTreeMap::new(),
            acked: BTreeMap::new(),
            maybe: BTreeMap::new(),
            writes: 0,
            last: w.now,
            gap: Span(0),
        }
    }
    fn block_of(&self, i: u64) -> u64 {
        i.wrapping_mul(2_654_435_761) % self.blocks
    }
    pub fn bytes(stamp: u64) -> Vec<u8> {
        stamp.to_le_bytes().repeat(BLOCK / 8)
    }
    /// Writes for so long.
    pub fn run(&mut self, w: &mut World, span: Span) {
        let end = w.now + span;
        while w.now < end {
            while self.flying.len() < self.depth {
                self.stamp += 1;
                let block = self.block_of(self.stamp);
                if self.flying.values().any(|f| f.0 == block) {
                    continue;
                }
                let t = w.write(self.n, self.export, block * BLOCK as u64, &Load::bytes(self.stamp));
                self.flying.insert(t, (block, self.stamp));
                self.maybe.entry(block).or_default().push(self.stamp);
            }
            w.until(Span::millis(4), |_| false);
            self.collect(w);
        }
    }
    /// Takes answers.
    pub fn collect(&mut self, w: &World) {
        let tickets: Vec<Ticket> = self.flying.keys().copied().collect();
        for t in tickets {
            let Some((at, result)) = w.done.get(&(ExportId(self.export), t)) else { continue };
            result.as_ref().unwrap_or_else(|e| panic!("{t} at {at:?}: {e}; {}", w.tail()));
            let (block, stamp) = self.flying.remove(&t).unwrap();
            self.gap = self.gap.max(at.since(self.last));
            self.last = self.last.max(*at);
            self.acked.insert(block, stamp);
            self.maybe.get_mut(&block).unwrap().retain(|s| *s > stamp);
            self.writes += 1;
        }
    }
    /// No more writes; what is not answered stays unknown.
    pub fn forget(&mut self) {
        self.flying.clear();
    }
    /// Goes on through another export.
    pub fn move_to(&mut self, n: u32, export: u64) {
        (self.n, self.export) = (n, export);
    }
    pub fn drain(&mut self, w: &mut World) {
        for t in self.flying.keys().copied().collect::<Vec<_>>() {
            w.wait(self.export, t, Span::secs(8)).unwrap();
        }
        self.collect(w);
    }
    /// Every block reads as the newest acknowledged write, or one that was sent after it.
    pub fn check(&mut self, w: &mut World, n: u32, export: u64) {
        let blocks: Vec<(u64, u64)> = self.acked.iter().map(|(b, s)| (*b, *s)).collect();
        for (block, acked) in blocks {
            let bytes = w.read(n, export, block * BLOCK as u64, 4096);
            let stamp = u64::from_le_bytes(*bytes.first_chunk().unwrap());
            assert_eq!(bytes, Load::bytes(stamp), "block {block} is whole");
            let known = stamp == acked || self.maybe.get(&block).is_some_and(|m| m.contains(&stamp));
            assert!(known, "block {block} reads as {stamp}, acknowledged was {acked}; {}", w.tail());
        }
    }
    pub fn waits_for(&mut self, w: &mut World, op: GuestOp) {
        let t = w.ask(self.n, self.export, op);
        w.wait(self.export, t, Span::secs(8)).unwrap();
    }
}
