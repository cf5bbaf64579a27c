//! A simulated medium: what a drive may do to the bytes it was given, and nothing kinder.
//!
//! Owns the contents of one drive: per 4 KiB sector what is durable, what was written since the last flush, and
//! what is in flight. Never decides when an I/O completes, nor draws chance: the caller does both.
//! Media assumptions (`docs/disk-format.md`): completions come in any order; a kill leaves every completed
//! write, and any part of those in flight; a power loss leaves any subset of what no flush covers, sector by
//! sector, and tears writes in flight; identical bytes written again harm nothing.

use crate::event::{IoId, IoOp, IoResult};
use proto::limits::BLOCK;
use proto::{Map, PageBuf, Payload};
use std::collections::{BTreeMap, BTreeSet};

/// Chance, from the caller: a number below the argument (which is at least 1).
pub type Dice<'a> = &'a mut dyn FnMut(u64) -> u64;

/// Written, not yet durable.
#[derive(Clone)]
struct Copy {
    io: IoId,
    /// When its write completed; `None` while in flight.
    stamp: Option<u64>,
    bytes: Payload,
}

#[derive(Clone)]
enum Flight {
    Read {
        first: u64,
        blocks: u32,
    },
    Write {
        first: u64,
        blocks: u64,
    },
    /// Covers what had completed when it began.
    Flush {
        mark: u64,
    },
}

/// One simulated drive.
#[derive(Clone)]
pub struct Medium {
    /// Bytes.
    size: u64,
    volatile: bool,
    /// Sectors that are not all zero.
    durable: Map<u64, Payload>,
    /// Copies that no flush covers yet, oldest first.
    recent: BTreeMap<u64, Vec<Copy>>,
    flights: BTreeMap<IoId, Flight>,
    stamp: u64,
    /// Sectors that fail when read.
    unreadable: BTreeSet<u64>,
    /// Everything fails from now on.
    broken: bool,
}

impl Medium {
    /// A zeroed drive. `volatile`: completed writes survive a power loss only once flushed.
    #[must_use]
    pub fn new(size: u64, volatile: bool) -> Medium {
        assert!(size.is_multiple_of(BLOCK as u64), "a drive is whole sectors");
        Medium {
            size,
            volatile,
            durable: Map::default(),
            recent: BTreeMap::new(),
            flights: BTreeMap::new(),
            stamp: 0,
            unreadable: BTreeSet::new(),
            broken: false,
        }
    }
    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
    #[must_use]
    pub fn is_volatile(&self) -> bool {
        self.volatile
    }
    /// I/Os in flight, oldest first.
    pub fn in_flight(&self) -> impl Iterator<Item = IoId> + '_ {
        self.flights.keys().copied()
    }
    /// True if nothing is in flight.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.flights.is_empty()
    }
    /// Sectors that a power loss could still change.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        self.recent.len()
    }

    /// Writes durably, at once: for formatting.
    pub fn put(&mut self, offset: u64, bytes: &Payload) {
        let first = self.sector(offset, bytes.blocks() as u64);
        for i in 0..bytes.blocks() {
            self.settle(first + i as u64, &bytes.slice(i, 1));
        }
    }
    /// The bytes at rest: the newest completed write of each sector.
    #[must_use]
    pub fn get(&self, offset: u64, blocks: u32) -> Payload {
        let first = self.sector(offset, u64::from(blocks));
        let mut out = PageBuf::zeroed(blocks as usize);
        for (i, chunk) in out.bytes_mut().chunks_exact_mut(BLOCK).enumerate() {
            if let Some(bytes) = self.newest(first + i as u64) {
                chunk.copy_from_slice(bytes.bytes());
            }
        }
        out.freeze()
    }

    /// An effect of a store begins. Panics on what no store may do: two writes in flight on one sector, or an
    /// I/O beyond the end.
    pub fn submit(&mut self, io: IoId, op: IoOp) {
        let flight = match op {
            IoOp::Read { offset, blocks } => {
                Flight::Read { first: self.sector(offset, u64::from(blocks)), blocks }
            }
            IoOp::Write { offset, pieces } => {
                let blocks = pieces.iter().map(|p| p.blocks() as u64).sum();
                let first = self.sector(offset, blocks);
                let mut at = first;
                for piece in &pieces {
                    for i in 0..piece.blocks() {
                        self.begin_write(io, at, piece.slice(i, 1));
                        at += 1;
                    }
                }
                Flight::Write { first, blocks }
            }
            IoOp::Flush => Flight::Flush { mark: self.stamp },
        };
        assert!(self.flights.insert(io, flight).is_none(), "an I/O's number is used once");
    }

    /// An I/O in flight completes.
    pub fn complete(&mut self, io: IoId) -> IoResult {
        let flight = self.flights.remove(&io).expect("only what is in flight completes");
        if self.broken {
            self.forget(io);
            return IoResult::Failed(EIO);
        }
        match flight {
            Flight::Read { first, blocks } => self.complete_read(first, blocks),
            Flight::Write { first, blocks } => {
                self.stamp += 1;
                for at in first..first + blocks {
                    self.complete_sector(io, at);
                }
                IoResult::Written
            }
            Flight::Flush { mark } => {
                self.flushed(mark);
                IoResult::Flushed
            }
        }
    }

    /// The process dies: what completed stays, of what was in flight any part lands.
    pub fn kill(&mut self, dice: Dice<'_>) {
        let percent = [0, 50, 100][usize::try_from(dice(3)).expect("below 3")];
        self.stamp += 1;
        let stamp = self.stamp;
        for copies in self.recent.values_mut() {
            copies.retain_mut(|c| c.stamp.is_some() || dice(100) < percent);
            for c in copies {
                c.stamp.get_or_insert(stamp);
            }
        }
        self.recent.retain(|_, copies| !copies.is_empty());
        self.flights.clear();
        if !self.volatile {
            self.flushed(stamp);
        }
    }

    /// The machine loses power: each sector keeps what was durable or any later copy; in flight it may tear.
    pub fn power_loss(&mut self, dice: Dice<'_>) {
        let percent = [0, 20, 50, 80, 100][usize::try_from(dice(5)).expect("below 5")];
        for (at, copies) in std::mem::take(&mut self.recent) {
            if dice(100) >= percent {
                continue;
            }
            let last = copies.len() as u64 - 1;
            let pick = if dice(100) < 70 { last } else { dice(last + 1) };
            let pick = usize::try_from(pick).expect("an index");
            let before = match pick {
                0 => self.durable.get(&at).cloned(),
                i => Some(copies[i - 1].bytes.clone()),
            };
            let chosen = &copies[pick];
            let tears = chosen.stamp.is_none() && dice(100) < 40;
            let bytes = if tears { torn(before.as_ref(), &chosen.bytes, dice) } else { chosen.bytes.clone() };
            self.settle(at, &bytes);
        }
        self.flights.clear();
    }

    /// Bytes rot: one bit of the sector at rest flips.
    pub fn rot(&mut self, offset: u64, bit: u32) {
        let at = self.sector(offset, 1);
        let mut page = PageBuf::copy_of(self.get(offset, 1).bytes());
        page.bytes_mut()[(bit as usize / 8) % BLOCK] ^= 1 << (bit % 8);
        self.recent.remove(&at);
        self.settle(at, &page.freeze());
    }
    /// Reads of this sector fail until it is written again.
    pub fn make_unreadable(&mut self, offset: u64) {
        let at = self.sector(offset, 1);
        self.unreadable.insert(at);
    }
    /// Every I/O fails from now on.
    pub fn break_down(&mut self) {
        self.broken = true;
    }

    /// I/O succeeds again, on what is there.
    pub fn mend(&mut self) {
        self.broken = false;
    }

    fn sector(&self, offset: u64, blocks: u64) -> u64 {
        assert!(offset.is_multiple_of(BLOCK as u64), "an I/O is aligned");
        assert!(blocks > 0 && offset + blocks * BLOCK as u64 <= self.size, "an I/O lies within the drive");
        offset / BLOCK as u64
    }
    fn newest(&self, at: u64) -> Option<&Payload> {
        let recent = self.recent.get(&at).and_then(|c| c.iter().rev().find(|c| c.stamp.is_some()));
        recent.map(|c| &c.bytes).or_else(|| self.durable.get(&at))
    }
    fn begin_write(&mut self, io: IoId, at: u64, bytes: Payload) {
        let copies = self.recent.entry(at).or_default();
        assert!(copies.iter().all(|c| c.stamp.is_some()), "two writes in flight on sector {at}");
        copies.push(Copy { io, stamp: None, bytes });
    }
    fn complete_sector(&mut self, io: IoId, at: u64) {
        self.unreadable.remove(&at);
        let copies = self.recent.get_mut(&at).expect("in flight on this sector");
        let copy = copies.iter_mut().find(|c| c.io == io).expect("this write's copy");
        copy.stamp = Some(self.stamp);
        if !self.volatile {
            let bytes = copy.bytes.clone();
            self.recent.remove(&at);
            self.settle(at, &bytes);
        }
    }
    fn complete_read(&self, first: u64, blocks: u32) -> IoResult {
        if (first..first + u64::from(blocks)).any(|at| self.unreadable.contains(&at)) {
            return IoResult::Failed(EIO);
        }
        let mut out = self.get(first * BLOCK as u64, blocks);
        let racing = |at: u64| self.recent.get(&at)?.iter().find(|c| c.stamp.is_none());
        if (first..first + u64::from(blocks)).any(|at| racing(at).is_some()) {
            // A read that races a write gets half of each: whoever relies on it must not.
            let mut page = PageBuf::copy_of(out.bytes());
            for (i, chunk) in page.bytes_mut().chunks_exact_mut(BLOCK).enumerate() {
                if let Some(c) = racing(first + i as u64) {
                    chunk[BLOCK / 2..].copy_from_slice(&c.bytes.bytes()[BLOCK / 2..]);
                }
            }
            out = page.freeze();
        }
        IoResult::Read(out)
    }
    fn flushed(&mut self, mark: u64) {
        let mut settled = Vec::new();
        self.recent.retain(|at, copies| {
            if let Some(last) = copies.iter().rposition(|c| c.stamp.is_some_and(|s| s <= mark)) {
                settled.push((*at, copies[last].bytes.clone()));
                copies.drain(..=last);
            }
            !copies.is_empty()
        });
        for (at, bytes) in settled {
            self.settle(at, &bytes);
        }
    }
    fn settle(&mut self, at: u64, bytes: &Payload) {
        if bytes.bytes().iter().all(|b| *b == 0) {
            self.durable.remove(&at);
        } else {
            self.durable.insert(at, bytes.clone());
        }
    }
    fn forget(&mut self, io: IoId) {
        self.recent.retain(|_, copies| {
            copies.retain(|c| c.io != io);
            !copies.is_empty()
        });
    }
}

/// errno of an I/O error.
const EIO: i32 = 5;

/// A sector caught in the middle: some of the new bytes, the rest old, or rubbish where they differ.
fn torn(before: Option<&Payload>, after: &Payload, dice: Dice<'_>) -> Payload {
    let mut page = before.map_or_else(|| PageBuf::zeroed(1), |b| PageBuf::copy_of(b.bytes()));
    if page.bytes() == after.bytes() {
        return after.clone();
    }
    let cut = usize::try_from(dice(8)).expect("below 8") * (BLOCK / 8);
    page.bytes_mut()[..cut].copy_from_slice(&after.bytes()[..cut]);
    if dice(4) == 0 {
        let noise = dice(256).to_le_bytes()[0];
        for (old, new) in page.bytes_mut().iter_mut().zip(after.bytes()).skip(cut).take(512) {
            if old != new {
                *old ^= noise;
            }
        }
    }
    page.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fill: u8) -> Payload {
        Payload::copy_of(&[fill; BLOCK])
    }
    fn write(m: &mut Medium, io: u64, at: u64, fill: u8) {
        m.submit(IoId(io), IoOp::Write { offset: at * BLOCK as u64, pieces: vec![page(fill)] });
    }

    #[test]
    fn a_flush_covers_what_completed_before_it_began() {
        let mut m = Medium::new(1 << 20, true);
        write(&mut m, 1, 0, 1);
        m.complete(IoId(1));
        m.submit(IoId(2), IoOp::Flush);
        write(&mut m, 3, 1, 2);
        m.complete(IoId(3));
        m.complete(IoId(2));
        m.power_loss(&mut |_| 0); // nothing of what is unflushed survives
        assert_eq!(m.get(0, 1), page(1));
        assert_eq!(m.get(4096, 1), page(0));
    }

    #[test]
    fn a_kill_leaves_what_completed() {
        let mut m = Medium::new(1 << 20, true);
        write(&mut m, 1, 0, 1);
        m.complete(IoId(1));
        write(&mut m, 2, 0, 2);
        m.kill(&mut |n| u64::from(n == 100) * 99); // nothing in flight lands
        assert_eq!(m.get(0, 1), page(1));
        assert!(m.is_quiet());
    }

    #[test]
    fn without_a_cache_what_completed_is_durable() {
        let mut m = Medium::new(1 << 20, false);
        write(&mut m, 1, 0, 1);
        m.complete(IoId(1));
        m.power_loss(&mut |_| 0);
        assert_eq!(m.get(0, 1), page(1));
    }

    #[test]
    #[should_panic(expected = "two writes in flight")]
    fn two_writes_in_flight_on_a_sector_are_a_bug() {
        let mut m = Medium::new(1 << 20, true);
        write(&mut m, 1, 0, 1);
        write(&mut m, 2, 0, 2);
    }
}
