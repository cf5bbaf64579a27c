//! The extent table in memory: one entry of 96 bytes per physical extent, who uses it, and which are free. Beside them
//! entries without a place, one for each extent that is zero as a whole in a generation (a *bit*): they stand in the same
//! chains and look like an extent of sixteen zeroes.
//!
//! An entry tells what lies *at home* and is flushed; what has not gone home is the overlay's. Invariants: an
//! extent that an acknowledged entry frees keeps its content here until that entry is flushed (its page must
//! say so until then), and is handed out again only after that, and when nothing reads or writes it.

use crate::disk::page::States;
use proto::{Epoch, Generation, Map, Version};
use slab::Slab;
use std::collections::VecDeque;

/// Number of a physical extent.
pub type Px = u32;
/// No extent.
pub const NONE: u32 = u32::MAX;
/// Numbers from here on are those of bits. (A drive has fewer extents.)
const BITS: Px = 1 << 31;

/// It is a whole zero extent: it has no place on the drive.
#[must_use]
pub const fn is_bit(px: Px) -> bool {
    px >= BITS && px != NONE
}

/// Who uses a physical extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    Free,
    /// Promised to an admitted write that is not acknowledged.
    Reserved,
    /// Acknowledged, the entry not yet flushed: the table page still says free.
    Fresh,
    Owned,
    /// Freed by an entry that is not yet flushed: the table page still says owned.
    Freed,
    /// Both: never in a page.
    FreshFreed,
    /// Free, but a read or write of it is in flight.
    Limbo,
    /// No extent of the drive: a whole zero extent.
    Bit,
}

/// What is known of a physical extent.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub sums: [u32; 16],
    pub states: States,
    /// Number of the replica (in `Records`).
    pub replica: u32,
    pub generation: Generation,
    epoch: Epoch,
    seq: [u32; 2],
    /// The same extent's home in the next older generation.
    pub next: Px,
    /// Index within the chunk; a chunk has at most 65,536.
    pub extent: u16,
    pub usage: Use,
}
const _: () = assert!(size_of::<Extent>() <= 96);

impl Extent {
    const FREE: Extent = Extent {
        sums: [0; 16],
        states: States(0),
        replica: NONE,
        generation: Generation(0),
        epoch: Epoch(0),
        seq: [0; 2],
        next: NONE,
        extent: 0,
        usage: Use::Free,
    };
    #[must_use]
    pub fn version(&self) -> Version {
        Version::new(self.epoch, u64::from(self.seq[0]) | u64::from(self.seq[1]) << 32)
    }
    pub fn set_version(&mut self, v: Version) {
        let b = v.seq.to_le_bytes();
        let half = |i: usize| u32::from_le_bytes(b[i..i + 4].try_into().expect("4 bytes"));
        self.epoch = v.epoch;
        self.seq = [half(0), half(4)];
    }
    /// True if the page that is written now says that it is owned.
    #[must_use]
    pub fn in_page(&self) -> bool {
        matches!(self.usage, Use::Owned | Use::Freed)
    }
}

/// I/Os in flight on an extent, in all and by block.
#[derive(Default)]
struct Busy {
    all: u32,
    blocks: [u32; proto::limits::BLOCKS_PER_EXTENT as usize],
}

/// A whole zero extent.
struct Bit {
    entry: Extent,
    /// The batch that set it.
    seq: u64,
}

/// All extents of the drive.
pub struct Table {
    extents: Vec<Extent>,
    bits: Slab<Bit>,
    /// A bit for each free extent.
    free: Vec<u64>,
    free_count: u32,
    cursor: usize,
    /// By entries not yet flushed, in their order.
    fresh: VecDeque<(u64, Px)>,
    freed: VecDeque<(u64, Px)>,
    /// Reads and home writes in flight.
    busy: Map<Px, Busy>,
}

impl Table {
    #[must_use]
    pub fn new(extents: u32) -> Table {
        let n = extents as usize;
        Table {
            extents: vec![Extent::FREE; n],
            bits: Slab::new(),
            free: vec![0; n.div_ceil(64)],
            free_count: 0,
            cursor: 0,
            fresh: VecDeque::new(),
            freed: VecDeque::new(),
            busy: Map::default(),
        }
    }
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.extents.len()).expect("made from a u32")
    }
    #[must_use]
    pub fn get(&self, px: Px) -> &Extent {
        if px < BITS { &self.extents[px as usize] } else { &self.bits[(px - BITS) as usize].entry }
    }
    pub fn get_mut(&mut self, px: Px) -> &mut Extent {
        if px < BITS { &mut self.extents[px as usize] } else { &mut self.bits[(px - BITS) as usize].entry }
    }
    /// Whole zero extents that are known.
    #[must_use]
    pub fn bits(&self) -> usize {
        self.bits.len()
    }
    /// All of them.
    pub fn all_bits(&self) -> impl Iterator<Item = Px> + '_ {
        self.bits.iter().map(|(i, _)| BITS + u32::try_from(i).expect("far fewer than numbers"))
    }
    /// It is an extent, or a bit that is still there.
    #[must_use]
    pub fn is_there(&self, px: Px) -> bool {
        px < BITS || self.bits.contains((px - BITS) as usize)
    }
    /// A whole zero extent, set by this batch; not linked.
    pub fn add_bit(&mut self, replica: u32, extent: u32, generation: Generation, seq: u64) -> Px {
        let entry = Extent {
            states: States::ALL_ZERO,
            replica,
            generation,
            extent: u16::try_from(extent).expect("a chunk has at most 65,536 extents"),
            usage: Use::Bit,
            ..Extent::FREE
        };
        BITS + u32::try_from(self.bits.insert(Bit { entry, seq })).expect("far fewer than numbers")
    }
    /// It is gone; nothing links to it.
    pub fn remove_bit(&mut self, px: Px) {
        self.bits.remove((px - BITS) as usize);
    }
    /// The batch that set a bit last.
    #[must_use]
    pub fn bit_seq(&self, px: Px) -> u64 {
        self.bits[(px - BITS) as usize].seq
    }
    pub fn set_bit_seq(&mut self, px: Px, seq: u64) {
        self.bits[(px - BITS) as usize].seq = seq;
    }
    /// Extents that can be handed out.
    #[must_use]
    pub fn free_count(&self) -> u32 {
        self.free_count
    }
    /// ... and those that will be, once what frees them is flushed.
    #[must_use]
    pub fn free_soon(&self) -> u32 {
        self.free_count + u32::try_from(self.freed.len()).expect("at most all extents")
    }

    /// After recovery: every extent that nothing owns is free.
    pub fn build_free_list(&mut self) {
        self.free.fill(0);
        self.free_count = 0;
        for px in 0..self.len() {
            if self.get(px).usage == Use::Free {
                self.put_free(px);
            }
        }
    }
    fn put_free(&mut self, px: Px) {
        self.extents[px as usize] = Extent::FREE;
        self.free[px as usize / 64] |= 1 << (px % 64);
        self.free_count += 1;
    }

    /// Takes a free extent, the next one after the last taken, so that what is written together lies together.
    pub fn reserve(&mut self, replica: u32, extent: u32, generation: Generation) -> Option<Px> {
        let words = self.free.len();
        let at = (0..=words).map(|i| (self.cursor + i) % words).find(|w| self.free[*w] != 0)?;
        let bit = self.free[at].trailing_zeros();
        self.free[at] &= self.free[at] - 1;
        self.cursor = at;
        self.free_count -= 1;
        let px = u32::try_from(at).expect("fewer than extents") * 64 + bit;
        *self.get_mut(px) = Extent {
            replica,
            generation,
            extent: u16::try_from(extent).expect("a chunk has at most 65,536 extents"),
            usage: Use::Reserved,
            ..Extent::FREE
        };
        Some(px)
    }
    /// A reservation that came to nothing.
    pub fn unreserve(&mut self, px: Px) {
        assert_eq!(self.get(px).usage, Use::Reserved, "only a reservation is taken back");
        self.put_free(px);
    }
    /// An acknowledged entry makes the reservation real.
    pub fn own(&mut self, px: Px, seq: u64) {
        if self.get(px).usage == Use::Reserved {
            self.get_mut(px).usage = Use::Fresh;
            self.fresh.push_back((seq, px));
        }
        debug_assert!(matches!(self.get(px).usage, Use::Fresh | Use::Owned), "written while freed: {px}");
    }
    /// An acknowledged entry frees it.
    pub fn release(&mut self, px: Px, seq: u64) {
        let e = self.get_mut(px);
        e.usage = match e.usage {
            Use::Owned => Use::Freed,
            Use::Fresh => Use::FreshFreed,
            other => panic!("extent {px} is freed while {other:?}"),
        };
        self.freed.push_back((seq, px));
    }
    /// Entries up to `flushed` are flushed. Tells `touched` of each extent that its page must now show otherwise.
    pub fn settle(&mut self, flushed: u64, mut touched: impl FnMut(Px, u64)) {
        while let Some((seq, px)) = self.fresh.pop_front_if(|f| f.0 <= flushed) {
            let e = self.get_mut(px);
            e.usage = match e.usage {
                Use::Fresh => Use::Owned,
                Use::FreshFreed => Use::Freed,
                other => panic!("extent {px} settles while {other:?}"),
            };
            touched(px, seq);
        }
        while let Some((seq, px)) = self.freed.pop_front_if(|f| f.0 <= flushed) {
            assert_eq!(self.get(px).usage, Use::Freed, "freed extents settle once");
            touched(px, seq);
            if self.busy.contains_key(&px) {
                self.get_mut(px).usage = Use::Limbo;
            } else {
                self.put_free(px);
            }
        }
    }
    /// Seeded bug `reuse_before_flush`: what is freed is handed out at once.
    pub fn reuse_at_once(&mut self, px: Px) {
        self.freed.retain(|f| f.1 != px);
        self.fresh.retain(|f| f.1 != px);
        if !self.busy.contains_key(&px) {
            self.put_free(px);
        } else {
            self.get_mut(px).usage = Use::Limbo;
        }
    }

    /// A read or a home write of a block of it begins.
    pub fn pin(&mut self, px: Px, block: u32) {
        let busy = self.busy.entry(px).or_default();
        busy.all += 1;
        busy.blocks[block as usize] += 1;
    }
    pub fn unpin(&mut self, px: Px, block: u32) {
        let busy = self.busy.get_mut(&px).expect("pinned before");
        busy.all -= 1;
        busy.blocks[block as usize] -= 1;
        if busy.all == 0 {
            self.busy.remove(&px);
            if self.get(px).usage == Use::Limbo {
                self.put_free(px);
            }
        }
    }
    #[must_use]
    pub fn is_pinned(&self, px: Px, block: u32) -> bool {
        self.busy.get(&px).is_some_and(|b| b.blocks[block as usize] > 0)
    }
    /// Extents in each use, for checks: (free, reserved, owned in some way, limbo).
    #[must_use]
    pub fn census(&self) -> [u32; 4] {
        let mut n = [0; 4];
        for e in &self.extents {
            n[match e.usage {
                Use::Free => 0,
                Use::Reserved => 1,
                Use::Limbo => 3,
                _ => 2,
            }] += 1;
        }
        n
    }
}

/// Extents of one chunk -> their newest generation's home. Two levels: a thin chunk takes little.
#[derive(Default)]
pub struct ExtentIndex {
    leaves: Vec<Option<Box<[Px; LEAF]>>>,
}
const LEAF: usize = 64;

impl ExtentIndex {
    #[must_use]
    pub fn get(&self, extent: u32) -> Px {
        let at = extent as usize;
        match self.leaves.get(at / LEAF) {
            Some(Some(leaf)) => leaf[at % LEAF],
            _ => NONE,
        }
    }
    pub fn set(&mut self, extent: u32, px: Px) {
        let at = extent as usize;
        if at / LEAF >= self.leaves.len() {
            self.leaves.resize_with(at / LEAF + 1, || None);
        }
        self.leaves[at / LEAF].get_or_insert_with(|| Box::new([NONE; LEAF]))[at % LEAF] = px;
    }
    /// All extents with a home in `from .. to`, ascending.
    pub fn range(&self, from: u32, to: u32) -> impl Iterator<Item = (u32, Px)> + '_ {
        let first = from as usize / LEAF;
        let leaves = self.leaves.iter().enumerate().skip(first);
        leaves
            .filter_map(|(i, leaf)| leaf.as_ref().map(|l| (i, l)))
            .take_while(move |(i, _)| i * LEAF < to as usize)
            .flat_map(|(i, leaf)| leaf.iter().enumerate().map(move |(j, px)| (i * LEAF + j, *px)))
            .map(|(at, px)| (u32::try_from(at).expect("set by a u32"), px))
            .filter(move |(at, px)| *px != NONE && *at >= from && *at < to)
    }
}

impl Table {
    /// The home of exactly this generation. A bit is none.
    #[must_use]
    pub fn find(&self, index: &ExtentIndex, extent: u32, generation: Generation) -> Option<Px> {
        self.first_of(index, extent, generation).filter(|px| !is_bit(*px))
    }
    /// The bit of exactly this generation.
    #[must_use]
    pub fn find_bit(&self, index: &ExtentIndex, extent: u32, generation: Generation) -> Option<Px> {
        let px = self.first_of(index, extent, generation)?;
        let at = if is_bit(px) { px } else { self.get(px).next };
        (is_bit(at) && self.get(at).generation == generation).then_some(at)
    }
    fn first_of(&self, index: &ExtentIndex, extent: u32, generation: Generation) -> Option<Px> {
        let mut px = index.get(extent);
        while px != NONE {
            let e = self.get(px);
            if e.generation <= generation {
                return (e.generation == generation).then_some(px);
            }
            px = e.next;
        }
        None
    }
    /// Puts `px` (its key is set) into its chunk's index; nothing else may have its key.
    pub fn link(&mut self, index: &mut ExtentIndex, px: Px) {
        assert!(self.try_link(index, px), "two homes of one extent: {px}");
    }
    /// The same; false if something else has its key. A bit stands beneath the home of its generation.
    #[must_use]
    pub fn try_link(&mut self, index: &mut ExtentIndex, px: Px) -> bool {
        let (extent, generation) = (u32::from(self.get(px).extent), self.get(px).generation);
        let above_it = |e: &Extent, at: Px| {
            e.generation > generation || (e.generation == generation && is_bit(px) && !is_bit(at))
        };
        let mut above = NONE;
        let mut at = index.get(extent);
        while at != NONE && above_it(self.get(at), at) {
            above = at;
            at = self.get(at).next;
        }
        if at != NONE && self.get(at).generation == generation && is_bit(at) == is_bit(px) {
            return false;
        }
        self.get_mut(px).next = at;
        if above == NONE {
            index.set(extent, px)
        } else {
            self.get_mut(above).next = px
        }
        true
    }
    /// Takes `px` out of its chunk's index.
    pub fn unlink(&mut self, index: &mut ExtentIndex, px: Px) {
        let (extent, next) = (u32::from(self.get(px).extent), self.get(px).next);
        let mut at = index.get(extent);
        if at == px {
            index.set(extent, next);
            return;
        }
        while at != NONE && self.get(at).next != px {
            at = self.get(at).next;
        }
        assert_ne!(at, NONE, "extent {px} is in its chunk's index");
        self.get_mut(at).next = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(n: u32) -> Table {
        let mut t = Table::new(n);
        t.build_free_list();
        t
    }

    #[test]
    fn a_freed_extent_is_free_only_when_flushed_and_unread() {
        let mut t = table(2);
        let px = t.reserve(0, 5, Generation(1)).unwrap();
        t.own(px, 1);
        t.settle(1, |_, _| ());
        t.release(px, 4);
        t.pin(px, 3);
        t.settle(3, |_, _| ());
        assert_eq!((t.free_count(), t.get(px).usage, t.get(px).in_page()), (1, Use::Freed, true));
        t.settle(4, |_, _| ());
        assert_eq!((t.free_count(), t.get(px).usage, t.get(px).in_page()), (1, Use::Limbo, false));
        t.unpin(px, 3);
        assert_eq!((t.free_count(), t.get(px).usage), (2, Use::Free));
    }

    #[test]
    fn what_is_born_and_freed_unflushed_is_never_in_a_page() {
        let mut t = table(1);
        let px = t.reserve(0, 0, Generation(1)).unwrap();
        t.own(px, 5);
        t.release(px, 6);
        assert!(!t.get(px).in_page());
        t.settle(5, |_, _| ());
        assert!(t.get(px).in_page());
        t.settle(6, |_, _| ());
        assert_eq!(t.free_count(), 1);
    }

    #[test]
    fn generations_of_an_extent_form_a_chain() {
        let mut t = table(4);
        let mut i = ExtentIndex::default();
        for g in [2, 1, 3] {
            let px = t.reserve(0, 9, Generation(g)).unwrap();
            t.link(&mut i, px);
        }
        let at = |t: &Table, i: &ExtentIndex, g| t.find(i, 9, Generation(g));
        assert_eq!(at(&t, &i, 4), None);
        assert_eq!([at(&t, &i, 3), at(&t, &i, 2), at(&t, &i, 1)], [Some(2), Some(0), Some(1)]);
        t.unlink(&mut i, 0);
        assert_eq!([at(&t, &i, 3), at(&t, &i, 2), at(&t, &i, 1)], [Some(2), None, Some(1)]);
        assert_eq!(i.range(0, 4096).collect::<Vec<_>>(), [(9, 2)]);
        assert_eq!(i.range(10, 4096).count(), 0);
    }

    #[test]
    fn a_bit_stands_beneath_the_home_of_its_generation() {
        let mut t = table(4);
        let mut i = ExtentIndex::default();
        let first = t.add_bit(0, 9, Generation(2), 1);
        t.link(&mut i, first);
        assert_eq!((t.find(&i, 9, Generation(2)), t.find_bit(&i, 9, Generation(2))), (None, Some(first)));
        for g in [1, 2, 3] {
            let px = t.reserve(0, 9, Generation(g)).unwrap();
            t.link(&mut i, px);
        }
        assert_eq!((t.find(&i, 9, Generation(2)), t.find_bit(&i, 9, Generation(2))), (Some(1), Some(first)));
        assert_eq!((t.get(1).next, t.get(first).next), (first, 0));
        let late = t.add_bit(0, 9, Generation(3), 1);
        t.link(&mut i, late);
        assert_eq!((t.get(2).next, t.get(late).next), (late, 1));
        let twice = t.add_bit(0, 9, Generation(3), 1);
        assert!(!t.try_link(&mut i, twice));
        t.unlink(&mut i, late);
        t.remove_bit(late);
        assert!(!t.is_there(late) && t.find_bit(&i, 9, Generation(3)).is_none());
        assert_eq!((t.len(), t.bits()), (4, 2));
    }

    #[test]
    fn a_full_table_hands_out_nothing() {
        let mut t = table(65);
        let taken: Vec<Px> = (0..65).map(|e| t.reserve(0, e, Generation(1)).unwrap()).collect();
        assert_eq!(taken, (0..65).collect::<Vec<_>>());
        assert_eq!(t.reserve(0, 65, Generation(1)), None);
        t.unreserve(64);
        assert_eq!(t.reserve(0, 65, Generation(1)), Some(64));
    }
}
