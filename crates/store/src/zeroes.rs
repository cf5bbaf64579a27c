//! Whole zero extents: a *bit* says that an extent is zero where its generation has nothing else. It takes a part of a
//! record slot, and no extent of the drive.
//!
//! It owns which extents get a bit, when a bit goes, and what it was promised that a zero may take. What is admitted stands
//! in the replica's record; the table shows it once its slot entry has taken effect. Invariants: a slot entry stands in the
//! journal before the zero that it was made for; blocks that the generation has win over its bit; a bit goes only if
//! nothing that anybody sees changes by that, and nobody needs to know of it any more.

use crate::disk::entry::ExtentKey;
use crate::disk::page::ZEROES;
use crate::event::Source;
use crate::intake::Hold;
use crate::op::{BitChange, Then};
use crate::records::{Bits, Records};
use crate::store::{Disk, Store};
use crate::table::{NONE, Px, Use, is_bit};
use proto::limits::BLOCKS_PER_EXTENT;
use proto::{BlockRange, Generation, Span, Time, Version};
use std::collections::BTreeMap;

/// Bits that a drive of any size may have in memory.
const BITS_MIN: u32 = 65_536;
/// How long a promise holds: a session sends at once, or not at all.
const PROMISE: Span = Span::secs(10);

/// What a zero of a range would take: extents of the drive, and slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Need {
    /// Extents that are zeroed in part over something that would show through.
    pub parts: u32,
    /// ... and those that are zeroed as a whole.
    pub whole: u32,
    /// Slots that the bits of those lack.
    pub slots: u32,
}

/// Space kept for a zero that a session is about to send.
pub(crate) struct Promise {
    source: Source,
    replica: u32,
    generation: Generation,
    range: BlockRange,
    pub extents: u64,
    pub slots: u32,
    until: Time,
}

/// How the zero of an extent is written down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Nothing is there that could show through, or its generation has a home.
    None,
    /// Only in part, where something would show through.
    Part,
    /// As a whole: by a bit.
    Whole,
    /// Its bit is there.
    Bit,
}

impl Disk {
    pub(crate) fn find_bit(&self, replica: u32, extent: u32, generation: Generation) -> Option<Px> {
        self.table.find_bit(&self.records.replica(replica).index, extent, generation)
    }
    /// After an opening: the table shows what the slots say.
    pub(crate) fn show_bits(&mut self) {
        for number in self.records.replicas.iter().map(|(n, _)| n).collect::<Vec<_>>() {
            let number = u32::try_from(number).expect("no more than slots");
            for ((generation, window), w) in self.records.replica(number).zeroes.clone() {
                for extent in extents_of(window, &w.bits) {
                    let px = self.table.add_bit(number, extent, generation, 0);
                    self.table.get_mut(px).set_version(w.version);
                    self.link(px);
                }
            }
        }
    }
    /// More bits may be made: memory is bounded.
    pub(crate) fn has_room_for_bits(&self, more: u32) -> bool {
        let most = (self.table.len() / 2).max(BITS_MIN) as usize;
        self.table.bits() + more as usize <= most
    }
    /// What a zero of these blocks does to one of the extents that it touches.
    fn way(&self, replica: u32, extent: u32, generation: Generation, range: BlockRange) -> Way {
        if self.find(replica, extent, generation).is_some() {
            return Way::None;
        }
        let r = self.records.replica(replica);
        let (first, end) = (extent * BLOCKS_PER_EXTENT, (extent + 1) * BLOCKS_PER_EXTENT);
        let whole = range.first <= first && end <= range.end();
        // What was zeroed since an attempt began must be told from what was zero before.
        let known = r.has_bit(generation, extent) && (whole || r.attempt.is_none());
        if known {
            return Way::Bit;
        }
        let hides = self.hides_all(replica)
            || r.has_bit(generation, extent)
            || self.has_beneath(replica, extent, generation);
        match (hides, whole) {
            (false, _) => Way::None,
            (true, true) => Way::Whole,
            (true, false) => Way::Part,
        }
    }
    /// A zero must be told from nothing wherever it is: the branch has a parent; or a resync that is under way pulls
    /// older views, so that something may come to lie beneath.
    fn hides_all(&self, replica: u32) -> bool {
        let layered = self.records.replica(replica).attempt.as_ref().is_some_and(|a| a.layered);
        self.records.branch_of(replica).record.parent.is_some() || layered
    }
    /// How each extent of a range is zeroed, those apart where nothing is to be done.
    pub(crate) fn ways(&self, replica: u32, generation: Generation, range: BlockRange) -> Vec<(u32, Way)> {
        let end = range.end().div_ceil(BLOCKS_PER_EXTENT);
        let way = |extent: u32| (extent, self.way(replica, extent, generation, range));
        let listed: Vec<(u32, Way)> = if self.hides_all(replica) {
            (range.extent()..end).map(way).collect()
        } else {
            // (An admitted bit that the table does not show yet hides nothing: it would be beneath.)
            let held = self.records.replica(replica).index.range(range.extent(), end);
            held.map(|(e, _)| way(e)).collect()
        };
        listed.into_iter().filter(|w| w.1 != Way::None).collect()
    }
}

impl Store {
    /// Slots that bits may still take: a quarter of all stays for records and what is kept.
    fn bit_slots(&self) -> usize {
        let records = &self.disk().records;
        let promised: u32 = self.promises.iter().filter(|p| p.until > self.now).map(|p| p.slots).sum();
        let kept = (records.slots() as usize / 4).max(records.spare_slots()) + promised as usize;
        records.free_slots().saturating_sub(kept)
    }
    /// Extents that were promised.
    pub(crate) fn promised(&self) -> u64 {
        self.promises.iter().filter(|p| p.until > self.now).map(|p| p.extents).sum()
    }
    /// May these extents get bits now?
    pub(crate) fn may_set(&self, replica: u32, generation: Generation, extents: &[u32]) -> bool {
        let lacking = self.disk().records.bits_lacking(replica, generation, extents);
        let more = u32::try_from(extents.len()).expect("extents of a chunk");
        lacking <= self.bit_slots() && self.disk().has_room_for_bits(more)
    }

    fn need(&self, replica: u32, generation: Generation, range: BlockRange) -> Need {
        let ways = self.disk().ways(replica, generation, range);
        let of = |way: Way| ways.iter().filter(|w| w.1 == way).map(|w| w.0).collect::<Vec<u32>>();
        let whole = of(Way::Whole);
        let slots = self.disk().records.bits_lacking(replica, generation, &whole);
        let count = |n: usize| u32::try_from(n).expect("extents of a chunk");
        Need { parts: count(of(Way::Part).len()), whole: count(whole.len()), slots: count(slots) }
    }
    /// A session asks before it sends a zero: true if there is room for it, which is kept for a while.
    pub(crate) fn promise(
        &mut self,
        source: Source,
        replica: u32,
        generation: Generation,
        range: BlockRange,
    ) -> bool {
        let now = self.now;
        self.promises.retain(|p| p.until > now && !(p.replica == replica && p.range.overlaps(range)));
        let need = self.need(replica, generation, range);
        let bits = need.slots as usize <= self.bit_slots() && self.disk().has_room_for_bits(need.whole);
        let extents = u64::from(if bits { need.parts } else { need.parts + need.whole });
        let slots = if bits { need.slots } else { 0 };
        let free = u64::from(self.disk().table.free_count());
        // A part of the reserve stays for what a session rewrites when it opens.
        let kept = self.credits + self.promised() + self.reserve() / 2;
        if extents > 0 && free < kept + extents {
            return false;
        }
        if extents > 0 || slots > 0 {
            let until = now + PROMISE;
            self.promises.push(Promise { source, replica, generation, range, extents, slots, until });
        }
        true
    }
    /// What was promised to this very zero: extents.
    pub(crate) fn redeem(&mut self, replica: u32, generation: Generation, range: BlockRange) -> u64 {
        let of = |p: &Promise| p.replica == replica && p.range == range && p.generation == generation;
        let found = self.promises.iter().position(of);
        found.map_or(0, |at| self.promises.swap_remove(at).extents)
    }
    /// Promises made on a connection that is gone, or to an older session.
    pub(crate) fn break_promises(&mut self, whose: impl Fn(Source, u32) -> bool) {
        self.promises.retain(|p| !whose(p.source, p.replica));
    }

    // ------------------------------------------------------------------------------------------ setting

    /// These extents get bits, by slot entries (the caller has asked whether there is room); those that have one get the
    /// version.
    pub(crate) fn set_bits(
        &mut self,
        replica: u32,
        generation: Generation,
        extents: &[u32],
        version: Version,
        moved: bool,
    ) {
        for (window, bits) in by_window(extents) {
            let slot = self.disk_mut().records.set_bits(replica, (generation, window), &bits, version);
            let change = BitChange { replica, generation, window, bits, version: Some(version), moved };
            self.push_bits(slot, change);
        }
    }
    /// The bits of these extents go; of those that have none, nothing.
    pub(crate) fn clear_bits(&mut self, replica: u32, generation: Generation, extents: &[u32]) {
        for (window, bits) in by_window(extents) {
            if let Some(slot) = self.disk_mut().records.clear_bits(replica, (generation, window), &bits) {
                self.push_bits(
                    slot,
                    BitChange { replica, generation, window, bits, version: None, moved: false },
                );
            }
        }
    }
    fn push_bits(&mut self, slot: u32, change: BitChange) {
        let disk = self.disk_mut();
        disk.records.replica_mut(change.replica).bits_pending += 1;
        let branch = disk.records.replica(change.replica).record.branch;
        self.push_slot(branch, slot, Then::Nothing);
        let op = self.intake.waiting.back_mut().expect("just pushed");
        op.bits = Some(Box::new(change));
    }
    /// A slot entry of bits has taken effect.
    pub(crate) fn apply_bits(&mut self, c: &BitChange, seq: u64) {
        self.disk_mut().records.replica_mut(c.replica).bits_pending -= 1;
        for extent in extents_of(c.window, &c.bits) {
            let found = self.disk().find_bit(c.replica, extent, c.generation);
            match (c.version, found) {
                (Some(version), _) => self.apply_bit(c, extent, version, seq),
                (None, Some(px)) => self.free_bit(px),
                (None, None) => {}
            }
        }
    }
    fn apply_bit(&mut self, c: &BitChange, extent: u32, version: Version, seq: u64) {
        let forget = self.bugs().forget_discards;
        let disk = self.disk_mut();
        let px = disk.find_bit(c.replica, extent, c.generation).unwrap_or_else(|| {
            let px = disk.table.add_bit(c.replica, extent, c.generation, 0);
            disk.link(px);
            px
        });
        // The report to a fence names extents by their version.
        let newest = disk.table.get(px).version().max(if forget { Version::ZERO } else { version });
        disk.table.get_mut(px).set_version(newest);
        if !c.moved {
            disk.table.set_bit_seq(px, seq);
        }
        let live = disk.records.is_live(c.replica);
        if live
            && disk.records.branch_of(c.replica).record.parent.is_none()
            && disk.table.get(px).next == NONE
        {
            self.checkpoint.empty.push_back(px);
        }
        self.sweep_pulled(px);
    }
    /// It is gone from the maps.
    pub(crate) fn free_bit(&mut self, px: Px) {
        let disk = self.disk_mut();
        let above = disk.above(px);
        disk.unlink(px);
        disk.table.remove_bit(px);
        self.look_above(above);
    }
    /// What was kept to hide something may be of no use any more.
    pub(crate) fn look_above(&mut self, above: Option<Px>) {
        if let Some(above) = above.filter(|px| !self.disk().table.get(*px).states.any_data()) {
            self.checkpoint.empty.push_back(above);
        }
    }

    // ------------------------------------------------------------------------------------------ going

    /// Bits of which nobody sees a block go.
    pub(crate) fn clear_unseen(&mut self, replica: u32, found: &[(Generation, u32)]) {
        let mut by: BTreeMap<Generation, Vec<u32>> = BTreeMap::new();
        found.iter().for_each(|(g, extent)| by.entry(*g).or_default().push(*extent));
        for (generation, extents) in by {
            self.clear_bits(replica, generation, &extents);
        }
    }
    /// Homes without a byte, of one generation, give way to bits: what is zero as a whole takes no space.
    pub(crate) fn convert(&mut self, key: &ExtentKey, replica: u32, extents: &[u32]) -> bool {
        let first = *extents.iter().min().expect("not empty");
        let end = extents.iter().max().expect("not empty") + 1;
        let want = Hold { replica, first, end, id: 0, drops: None };
        if self.intake.conflicts(&want, usize::MAX) || !self.may_set(replica, key.generation, extents) {
            return false;
        }
        let disk = self.disk();
        let versions = extents.iter().filter_map(|e| disk.find(replica, *e, key.generation));
        let version = versions.map(|px| disk.version(px)).max().unwrap_or(Version::ZERO);
        self.set_bits(replica, key.generation, extents, version, true);
        self.push_drop(key, replica, extents, Then::Nothing);
        true
    }
}

impl Records {
    /// Slots that bits of these extents lack.
    pub fn bits_lacking(&self, replica: u32, generation: Generation, extents: &[u32]) -> usize {
        let there = &self.replica(replica).zeroes;
        by_window(extents).keys().filter(|w| !there.contains_key(&(generation, **w))).count()
    }
}

/// The slots' share of some extents.
fn by_window(extents: &[u32]) -> BTreeMap<u32, Bits> {
    let mut windows: BTreeMap<u32, Bits> = BTreeMap::new();
    for extent in extents {
        let (window, at) = (extent / ZEROES, extent % ZEROES);
        windows.entry(window).or_default()[(at / 64) as usize] |= 1 << (at % 64);
    }
    windows
}
/// The extents that a slot's bits name.
pub(crate) fn extents_of(window: u32, bits: &Bits) -> impl Iterator<Item = u32> + '_ {
    let set = |at: &u32| bits[(at / 64) as usize] >> (at % 64) & 1 == 1;
    (0..ZEROES).filter(set).map(move |at| window * ZEROES + at)
}

/// Looks at what seemed to hold no byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Emptiness {
    Droppable,
    /// A home whose blocks are all zero, over something that they hide: a bit does as well.
    Convertible,
    /// Empty, but somebody may still need to know.
    NotYet,
    Not,
}

impl Disk {
    pub(crate) fn emptiness(&self, px: Px, users: &proto::Map<Px, u32>, hiding: bool) -> Emptiness {
        if !self.table.is_there(px) {
            return Emptiness::Not;
        }
        let e = self.table.get(px);
        let settled = matches!(e.usage, Use::Owned | Use::Bit);
        let empty = settled && !e.states.any_data() && self.overlay.extent(px).is_none();
        // A replica that is being erased may have outlived its branch's record.
        if !empty || !self.records.is_live(e.replica) {
            return Emptiness::Not;
        }
        let r = self.records.replica(e.replica);
        let bit = is_bit(px);
        if users.contains_key(&px) || r.bits_pending > 0 {
            return Emptiness::NotYet;
        }
        let b = &self.records.branches[r.branch as usize];
        // Zeroes hide what lies beneath; it is looked at again when that goes. (What is absent hides nothing.)
        let hides = b.record.parent.is_some() || e.next != NONE;
        if e.states.any_zero() && hides && !hiding {
            let own_bit = is_bit(e.next) && self.table.get(e.next).generation == e.generation;
            let whole = e.states == crate::disk::page::States::ALL_ZERO || own_bit;
            return match (bit, whole, r.attempt.is_none()) {
                (true, _, _) => self.covered(px),
                (false, false, _) => Emptiness::Not,
                (false, true, true) => Emptiness::Convertible,
                (false, true, false) => Emptiness::NotYet,
            };
        }
        let known = e.version() <= b.stored_durable && r.attempt.is_none();
        if known { Emptiness::Droppable } else { Emptiness::NotYet }
    }
    /// A bit that hides something goes only if the home of its own generation hides all of it, for good: what lies
    /// beside the journal may be given up after a power loss until it is flushed.
    fn covered(&self, bit: Px) -> Emptiness {
        let e = self.table.get(bit);
        let home = self.find(e.replica, u32::from(e.extent), e.generation);
        // (A home without a byte gives way to the bit.)
        match home.filter(|px| self.present(*px) == u16::MAX && self.has_data(*px)) {
            Some(px) if self.table.get(px).usage == Use::Owned => Emptiness::Droppable,
            Some(_) => Emptiness::NotYet,
            None => Emptiness::Not,
        }
    }
}
