//! The sweep: extents of sealed generations of which no kept view sees a block are freed, in the background.
//!
//! It owns, per replica, which extents are to be looked at: all when a list was obeyed and after an opening, one when a
//! block took effect over something older. Invariants: nothing from the list's `open` on is freed; nothing that a kept
//! view sees, or, if the branch has a name, the head as it was at the list (`head`; what is younger hides nothing); a drop
//! comes into the journal behind the list that it rests on.

use crate::disk::entry::{DROP_EXTENTS, ExtentKey};
use crate::op::Then;
use crate::store::{Disk, Phase, Store};
use crate::table::{NONE, Px, Use, is_bit};
use proto::{Generation, Span, Time};
use std::collections::{BTreeMap, VecDeque};

/// Extents looked at in one go.
const SLICE: usize = 256;
/// Between two goes.
const PAUSE: Span = Span::millis(1);
/// Between two goes that join as much as they may.
const JOIN_PAUSE: Span = Span::millis(4);
/// After something was in the way; and how long new ones are collected.
const LATER: Span = Span::millis(20);
/// Drop entries on their way.
const FLYING: usize = 4;

/// Extents of one replica that are to be looked at.
#[derive(Default, Clone, Debug)]
pub struct Marked {
    /// All from this one on.
    from: Option<u32>,
    words: Vec<u64>,
    queued: bool,
}
impl Marked {
    fn insert(&mut self, extent: u32) {
        let at = (extent / 64) as usize;
        if at >= self.words.len() {
            self.words.resize(at + 1, 0);
        }
        self.words[at] |= 1 << (extent % 64);
    }
    fn is_empty(&self) -> bool {
        self.from.is_none() && self.words.is_empty()
    }
    /// Takes some of the single ones out.
    fn take(&mut self, most: usize) -> Vec<u32> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(word) = self.words.last_mut()
        {
            if *word == 0 {
                self.words.pop();
                continue;
            }
            let bit = word.trailing_zeros();
            *word &= *word - 1;
            taken.push(u32::try_from(self.words.len() - 1).expect("extents of a chunk") * 64 + bit);
        }
        taken
    }
}

#[derive(Default)]
pub(crate) struct Sweeper {
    /// Replicas with something marked.
    queue: VecDeque<u32>,
    /// Drop entries that have not taken effect.
    pub flying: usize,
    /// Joins that have not.
    pub joining: usize,
    /// The next look.
    at: Time,
}
impl Sweeper {
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.flying == 0 && self.joining == 0
    }
    pub fn deadline(&self) -> Time {
        if self.queue.is_empty() { Time::FAR } else { self.at }
    }
}

impl Store {
    /// Everything of a replica is to be looked at.
    pub(crate) fn sweep_all(&mut self, replica: u32) {
        self.disk_mut().records.replica_mut(replica).marked.from = Some(0);
        self.queue_sweep(replica, PAUSE);
    }
    /// An extent may hide something from now on, by a block of this physical extent.
    pub(crate) fn sweep_beneath(&mut self, px: Px) {
        let disk = self.disk();
        let e = disk.table.get(px);
        // The replica may be deleted already, and its branch with it.
        if e.next == NONE || !disk.records.is_live(e.replica) {
            return;
        }
        let list = disk.records.branch_of(e.replica).record.list;
        if list.index.0 > 0 && e.generation <= list.head {
            let (replica, extent) = (e.replica, u32::from(e.extent));
            self.mark(replica, extent);
        }
    }
    /// What a resync pulls into an older generation may be of a view that was withdrawn meanwhile.
    pub(crate) fn sweep_pulled(&mut self, px: Px) {
        let disk = self.disk();
        let e = disk.table.get(px);
        let (replica, extent, generation) = (e.replica, u32::from(e.extent), e.generation);
        if disk.records.is_live(replica) && generation < disk.records.branch_of(replica).record.list.open {
            self.mark(replica, extent);
        }
        self.sweep_beneath(px);
    }
    fn mark(&mut self, replica: u32, extent: u32) {
        self.disk_mut().records.replica_mut(replica).marked.insert(extent);
        self.queue_sweep(replica, LATER);
    }
    fn queue_sweep(&mut self, replica: u32, wait: Span) {
        if self.sweeper.queue.is_empty() {
            self.sweeper.at = self.now + wait;
        }
        if !std::mem::replace(&mut self.disk_mut().records.replica_mut(replica).marked.queued, true) {
            self.sweeper.queue.push_back(replica);
        }
    }

    pub(crate) fn sweep_deadline(&self) -> Time {
        if matches!(self.phase, Phase::Open) { self.sweeper.deadline() } else { Time::FAR }
    }
    /// Looks at some of what is marked, if it is time.
    pub(crate) fn push_sweep(&mut self) {
        if !matches!(self.phase, Phase::Open) || self.now < self.sweeper.deadline() {
            return;
        }
        self.sweeper.at = self.now + PAUSE;
        if self.sweeper.flying >= FLYING || self.pressed() {
            self.sweeper.at = self.now + LATER;
            return;
        }
        let mut looks = SLICE;
        // Each once, and then it is the others' turn: what cannot be dropped yet is marked again at once.
        for _ in 0..self.sweeper.queue.len() {
            let Some(replica) = self.sweeper.queue.front().copied().filter(|_| looks > 0) else { break };
            let extents = self.take_marked(replica, looks);
            looks = looks.saturating_sub(extents.len().max(1));
            self.sweep(replica, &extents);
            let records = &mut self.disk_mut().records;
            let rest = records.replicas.get_mut(replica as usize).is_some_and(|r| {
                r.marked.queued = !r.marked.is_empty();
                r.marked.queued
            });
            self.sweeper.queue.pop_front();
            if rest {
                self.sweeper.queue.push_back(replica);
            }
            if self.sweeper.flying >= FLYING {
                break;
            }
        }
    }
    fn take_marked(&mut self, replica: u32, most: usize) -> Vec<u32> {
        let records = &mut self.disk_mut().records;
        if !records.is_live(replica) {
            if let Some(r) = records.replicas.get_mut(replica as usize) {
                r.marked = Marked { queued: true, ..Marked::default() };
            }
            return Vec::new();
        }
        let r = records.replica_mut(replica);
        let mut taken = r.marked.take(most);
        if taken.len() < most
            && let Some(from) = r.marked.from
        {
            let more: Vec<u32> =
                r.index.range(from, u32::MAX).map(|e| e.0).take(most - taken.len()).collect();
            let ends = more.len() < most - taken.len();
            r.marked.from = more.last().map(|e| e + 1).filter(|_| !ends);
            taken.extend(more);
        }
        taken
    }

    /// Drops what nobody sees of these extents.
    fn sweep(&mut self, replica: u32, extents: &[u32]) {
        let mut found: BTreeMap<(Generation, u32), Vec<u32>> = BTreeMap::new();
        let mut bits: Vec<(Generation, u32)> = Vec::new();
        for (at, &extent) in extents.iter().enumerate() {
            let unseen = self.unseen(replica, extent);
            if let Some(pair) = self.pair(replica, extent, &unseen) {
                if !self.may_join() {
                    // Guests first: the rest is looked at when some of those under way are done.
                    extents[at..].iter().for_each(|e| self.mark(replica, *e));
                    self.sweeper.at = self.now + JOIN_PAUSE;
                    break;
                }
                // It is looked at again once the blocks have moved.
                if !unseen.is_empty() || !self.join(replica, extent, pair) {
                    self.mark(replica, extent);
                    self.sweeper.at = self.now + LATER;
                }
            }
            for px in unseen {
                let e = self.disk().table.get(px);
                let quiet = matches!(e.usage, Use::Owned | Use::Fresh | Use::Bit)
                    && !self.intake.users.contains_key(&px)
                    && (!is_bit(px) || self.disk().records.replica(replica).bits_pending == 0)
                    && self.hides_for_good(replica, extent, px);
                if quiet && is_bit(px) {
                    bits.push((e.generation, extent));
                } else if quiet {
                    found.entry((e.generation, extent / DROP_EXTENTS)).or_default().push(extent);
                } else {
                    self.mark(replica, extent);
                    self.sweeper.at = self.now + LATER;
                }
            }
        }
        for ((generation, _), extents) in found {
            self.drop_unseen(replica, generation, &extents);
        }
        self.clear_unseen(replica, &bits);
    }

    /// One entry for some extents of one generation.
    fn drop_unseen(&mut self, replica: u32, generation: Generation, extents: &[u32]) {
        let r = &self.disk().records.replica(replica).record;
        let (branch, chunk, incarnation) = (r.branch, r.chunk, r.incarnation);
        let key = ExtentKey { branch, chunk, incarnation, extent: extents[0], generation };
        if self.push_drop(&key, replica, extents, Then::Swept) {
            self.sweeper.flying += 1;
        } else {
            extents.iter().for_each(|e| self.mark(replica, *e));
            self.sweeper.at = self.now + LATER;
        }
    }

    /// What lies above is flushed. A whole extent is written beside the journal: after a power loss its entry may be
    /// dropped while a later drop of what it hid stands, and then neither would be there.
    fn hides_for_good(&self, replica: u32, extent: u32, px: Px) -> bool {
        let disk = self.disk();
        let chain = disk.chain(disk.records.replica(replica).index.get(extent));
        let above = chain.iter().skip_while(|at| **at != px).skip(1);
        above.into_iter().all(|px| disk.table.get(*px).usage != Use::Fresh)
    }

    /// The homes of an extent that the list judges and of which no view sees a block.
    pub(crate) fn unseen(&self, replica: u32, extent: u32) -> Vec<Px> {
        let disk = self.disk();
        let (bugs, b) = (self.bugs(), disk.records.branch_of(replica));
        let list = b.record.list;
        if list.index.0 == 0 {
            return Vec::new();
        }
        let open = if bugs.late_list_frees { Generation(u32::MAX) } else { list.open };
        let chain = disk.chain(disk.records.replica(replica).index.get(extent));
        let judged = chain.iter().enumerate().filter(|(_, px)| disk.table.get(**px).generation < open);
        let unseen = judged.filter(|(i, px)| {
            let g = disk.table.get(**px).generation;
            let kept = if bugs.free_kept { None } else { b.kept.at_or_above(g) };
            let head = list.named.then_some(list.head).filter(|head| *head >= g);
            // The first view that sees anything of it sees most of it.
            let Some(view) = kept.into_iter().chain(head).min() else { return true };
            disk.shows(&chain[*i..], view) == 0
        });
        unseen.map(|(_, px)| *px).collect()
    }
}

impl Disk {
    /// Blocks of the first of these homes (oldest first) that a view sees.
    pub(crate) fn shows(&self, chain: &[Px], view: Generation) -> u16 {
        let newer = chain[1..].iter().take_while(|px| self.table.get(**px).generation <= view);
        let mut left = self.present(chain[0]);
        for px in newer {
            if left == 0 {
                break;
            }
            left &= !self.present(*px);
        }
        left
    }
}
