//! Reconciliation (5.4): every range reported above committed (above D, if any replica is in doubt) is written
//! anew, block by block from a replica not in doubt that has it, else from one that is, the highest version first.
//!
//! In its own generation, the oldest first: what is rewritten of a later one lies above what is settled beneath it.
//! What is sealed is identical already. A generation whose seal was called off (decision 0011) is no view of its own:
//! what lies there is rewritten in the next one, as seen there.

use crate::members::{Mask, bit, slots};
use crate::session::{Phase, Session, TICK, What};
use proto::limits::{BLOCK, BLOCKS_PER_EXTENT};
use proto::message::{BlockState, Request, Run, View};
use proto::record::Sum;
use proto::{BlockRange, Generation, Map, Marks, PageBuf, Payload, Time, Version};
use std::collections::{BTreeMap, BTreeSet};

/// An extent of a generation. In this order they are rewritten.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Key {
    generation: Generation,
    pub chunk: u32,
    extent: u32,
}

/// Extents rewritten at once.
const PARALLEL: usize = 32;
const BLOCKS: usize = BLOCKS_PER_EXTENT as usize;

/// An extent that is being read from its replicas.
#[derive(Debug)]
struct Rewrite {
    tried: Mask,
    blocks: [Option<Found>; BLOCKS],
}

/// What a replica has in a block. Absent and bad ones are not found.
#[derive(Clone, Debug)]
enum Found {
    Zero,
    Data(Payload),
}

#[derive(Debug, Default)]
pub(crate) struct Rewrites {
    todo: BTreeSet<Key>,
    active: BTreeMap<Key, Rewrite>,
    /// Version of an extent as a slot reported it.
    versions: Map<(Key, usize), Version>,
    /// Nothing is read again before this: a replica cannot be reached, or refused.
    paused: Time,
    pub count: u64,
    /// The greatest generation that is sealed; and the one above that all between are rewritten in.
    sealed: Generation,
    lowest: Generation,
    /// That one is being sealed: it is flushed in any case.
    seals: bool,
    under_way: Generation,
    /// A seeded bug.
    into_new: bool,
}

impl Rewrites {
    pub fn seals(&self) -> bool {
        self.seals
    }
    /// What was found there is of the generation that is being rewritten, not of one beneath.
    fn belongs(&self, key: Key, found: Generation) -> bool {
        if key.generation == self.lowest || self.into_new {
            found > self.sealed
        } else {
            found == key.generation
        }
    }
    /// The link broke under its read, or there is none: from the first replica on, a little later (at once would
    /// be for ever, where the others answer from memory).
    pub fn again(&mut self, key: Key, now: Time) {
        if self.active.remove(&key).is_some() {
            self.todo.insert(key);
            self.paused = now + TICK;
        }
    }
}

impl Session {
    /// Committed is the highest mark reported, D the least durable one.
    pub(crate) fn begin_reconciliation(&mut self) {
        let reports: Vec<usize> = (0..self.drives.len())
            .filter(|&d| self.drives[d].required > 0 && self.drives[d].report.is_some())
            .collect();
        let marks = |d: &usize| self.drives[*d].report.as_ref().map_or(Marks::default(), |r| r.marks);
        let committed = reports.iter().map(|d| marks(d).committed).max().unwrap_or(Version::ZERO);
        let durable = reports.iter().map(|d| marks(d).durable).min().unwrap_or(Version::ZERO);
        let doubt = reports.iter().any(|&d| self.drives[d].doubt);
        let above = if doubt { durable } else { committed };
        self.said.raise(Marks { committed, durable });
        let views = &self.attached.views;
        let (sealed, seals) = (Generation(views.open().0 - 1), views.sealing.is_some());
        let lowest = self.due();
        self.rewrites = Rewrites { sealed, lowest, seals, ..Rewrites::default() };
        self.rewrites.into_new = self.bugs.has(|b| b.reconcile_into_new);
        let into_new = self.rewrites.into_new.then_some(self.generation);
        for d in &mut self.drives {
            d.flushed = Version::ZERO;
        }
        // a clean detach leaves nothing to reconcile
        let reports = if self.attached.clean { vec![] } else { reports };
        for d in reports {
            let report = self.drives[d].report.as_mut().expect("filtered above");
            for e in std::mem::take(&mut report.runs) {
                let Some(c) = self.chunks.get(e.chunk.0 as usize) else { continue };
                let Some(slot) = c.slot_of(d).filter(|&s| c.required & bit(s) != 0) else { continue };
                let generation = into_new.unwrap_or(e.generation.max(lowest));
                // what is sealed is identical already
                if e.generation <= sealed {
                    continue;
                }
                for extent in e.first..e.first + e.count {
                    let key = Key { generation, chunk: e.chunk.0, extent };
                    let newest = self.rewrites.versions.entry((key, slot)).or_default();
                    *newest = e.version.max(*newest);
                    if e.version > above {
                        self.rewrites.todo.insert(key);
                    }
                }
            }
        }
        self.enter(Phase::Rewriting);
    }

    pub(crate) fn push_rewrites(&mut self) {
        if self.now < self.rewrites.paused {
            return;
        }
        // the next generation when the one beneath is everywhere
        let settled = self.rewrites.active.is_empty() && self.drained();
        let under_way = if settled { None } else { Some(self.rewrites.under_way) };
        let now = under_way.or(self.rewrites.todo.first().map(|k| k.generation)).unwrap_or_default();
        self.rewrites.under_way = now;
        let first = Key { generation: now, chunk: 0, extent: 0 };
        let next = self.rewrites.todo.range(first..).take_while(|k| k.generation == now).take(PARALLEL);
        for key in next.copied().collect::<Vec<_>>() {
            if self.rewrites.active.len() >= PARALLEL || self.window.len() >= PARALLEL * BLOCKS {
                break;
            }
            self.rewrites.todo.remove(&key);
            self.rewrites.active.insert(key, Rewrite { tried: 0, blocks: [const { None }; BLOCKS] });
            self.rewrite_next(key);
        }
        if self.rewrites.todo.is_empty() && self.rewrites.active.is_empty() && self.drained() {
            self.rewritten();
        }
    }

    /// The replica to read an extent from next: not in doubt before in doubt, the highest version first.
    fn rewrite_source(&self, key: Key, tried: Mask) -> Option<usize> {
        let c = &self.chunks[key.chunk as usize];
        let lowest = self.bugs.has(|b| b.reconcile_lowest);
        let version = |s: usize| self.rewrites.versions.get(&(key, s)).copied().unwrap_or(Version::ZERO);
        let candidates = slots(c.required & !tried);
        if lowest {
            candidates.min_by_key(|&s| version(s))
        } else {
            candidates.max_by_key(|&s| (!self.drives[c.slots[s].drive].doubt, version(s)))
        }
    }

    fn rewrite_next(&mut self, key: Key) {
        let Some(r) = self.rewrites.active.get(&key) else { return };
        let full = r.blocks.iter().all(Option::is_some);
        let source = if full { None } else { self.rewrite_source(key, r.tried) };
        let Some(slot) = source else { return self.rewrite(key) };
        let drive = self.chunks[key.chunk as usize].slots[slot].drive;
        if !self.linked(drive) {
            return self.rewrites.again(key, self.now);
        }
        let token = self.ask(drive, What::Rewrite { key, slot });
        let range = BlockRange::new(key.extent * BLOCKS_PER_EXTENT, BLOCKS_PER_EXTENT);
        let view = if key.generation >= self.generation { View::Head } else { View::At(key.generation) };
        let request = Request::Read { view, range, media: false, source_process: None };
        self.send_slot(key.chunk, slot, token, request);
    }

    pub(crate) fn rewrite_read(
        &mut self,
        key: Key,
        slot: usize,
        runs: &[Run],
        sums: &[Sum],
        payload: &Payload,
    ) {
        let Some(mut r) = self.rewrites.active.remove(&key) else { return };
        r.tried |= bit(slot);
        let data: usize = runs.iter().filter(|x| x.state == BlockState::Data).map(|x| x.count as usize).sum();
        let fits = runs.iter().map(|x| x.count).sum::<u32>() == BLOCKS_PER_EXTENT
            && data == payload.blocks()
            && data == sums.len();
        let (mut at, mut block) = (0, 0);
        for run in runs.iter().filter(|_| fits) {
            for _ in 0..run.count {
                let found = match run.state {
                    BlockState::Data => {
                        at += 1;
                        let sound = Sum::of(payload.block(at - 1)) == sums[at - 1];
                        sound.then(|| Found::Data(payload.slice(at - 1, 1)))
                    }
                    BlockState::Zero => Some(Found::Zero),
                    // absent is never written; for a bad one the next replica is asked
                    BlockState::Absent | BlockState::Bad => None,
                };
                if r.blocks[block].is_none() && self.rewrites.belongs(key, run.generation) {
                    r.blocks[block] = found;
                }
                block += 1;
            }
        }
        self.rewrites.active.insert(key, r);
        self.rewrite_next(key);
        self.dirty = true;
    }

    pub(crate) fn rewrite_refused(&mut self, key: Key, slot: usize) {
        // the drive's own fault, or the replica's: it is dropped, or serves again; both are seen elsewhere
        let drive = self.chunks[key.chunk as usize].slots[slot].drive;
        if self.linked(drive) {
            self.lacks(key.chunk, slot);
        }
        self.rewrites.again(key, self.now);
    }

    fn rewrite(&mut self, key: Key) {
        let Some(r) = self.rewrites.active.remove(&key) else { return };
        let base = key.extent * BLOCKS_PER_EXTENT;
        let mut i = 0;
        while i < BLOCKS {
            let Some(kind) = &r.blocks[i] else {
                i += 1;
                continue;
            };
            let zero = matches!(kind, Found::Zero);
            let same = |b: &Option<Found>| b.as_ref().is_some_and(|f| matches!(f, Found::Zero) == zero);
            let count = r.blocks[i..].iter().take_while(|b| same(b)).count();
            let first = base + u32::try_from(i).expect("16 blocks");
            let range = BlockRange::new(first, u32::try_from(count).expect("16 blocks"));
            let payload = (!zero).then(|| join(&r.blocks[i..i + count]));
            self.send_write(None, key.chunk, range, payload, key.generation, 0);
            i += count;
        }
        self.rewrites.count += 1;
    }
}

fn join(blocks: &[Option<Found>]) -> Payload {
    let mut buf = PageBuf::zeroed(blocks.len());
    for (i, b) in blocks.iter().enumerate() {
        if let Some(Found::Data(p)) = b {
            buf.bytes_mut()[i * BLOCK..(i + 1) * BLOCK].copy_from_slice(p.bytes());
        }
    }
    buf.freeze()
}
