//! What the drive keeps about branches and replicas: in memory, each in a slot of the record pages.
//!
//! The state here is the *admitted* one: a change is made at once and its entry pushed. Beside it stands what is
//! flushed, slot by slot: that is what record pages show. Never decides who may change what: admission does.

use crate::disk::page::{
    BranchRecord, KeepWindow, RECORD_SLOT, ReplicaRecord, Slot, WINDOW, ZEROES, ZeroBits, ZeroWindow,
};
use crate::event::Source;
use crate::table::ExtentIndex;
use proto::limits::BLOCKS_PER_EXTENT;
use proto::{BranchId, ChunkIndex, Generation, Generations, ListIndex, Map, Version};
use slab::Slab;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A branch with at least one replica here.
pub struct Branch {
    pub record: BranchRecord,
    pub slot: u32,
    pub in_doubt: bool,
    /// Chunk -> number of its replica.
    pub replicas: BTreeMap<ChunkIndex, u32>,
    /// Extents granted and not yet used, and on which connection: they are void when it closes.
    pub credits: u64,
    pub creditor: Source,
    /// Marks have risen since they were last journaled.
    pub marks_dirty: bool,
    /// The durable mark that is stored and flushed.
    pub stored_durable: Version,
    /// Generations that keep-lists named and none has withdrawn since.
    pub kept: Generations,
    /// Slots of the windows that say so; one for each window that is not empty.
    pub windows: BTreeMap<u32, u32>,
    /// The newest list that is obeyed and flushed.
    pub list_flushed: ListIndex,
}
impl Branch {
    /// The view is withdrawn, or was never kept: what it saw may be gone.
    #[must_use]
    pub fn is_withdrawn(&self, g: Generation) -> bool {
        g < self.record.list.open && !self.kept.contains(g)
    }
    /// Some sealed, kept view sees what is written in this generation.
    #[must_use]
    pub fn is_frozen(&self, g: Generation) -> bool {
        self.kept.at_or_above(g).is_some_and(|view| view < self.record.list.open)
    }
}

/// A resync attempt with a replica here as its target.
pub struct AttemptState {
    pub number: u64,
    pub source: Source,
    /// That the session writes, and that the head is pulled into.
    pub generation: Generation,
    /// Older views are pulled before the head.
    pub layered: bool,
    /// Blocks written or discarded since it began; they win over what is pulled.
    pub written: BlockSet,
}

pub struct Replica {
    pub branch: u32,
    pub record: ReplicaRecord,
    pub slot: u32,
    pub index: ExtentIndex,
    pub attempt: Option<AttemptState>,
    pub marked: crate::sweep::Marked,
    /// Extents that are zero as a whole, by generation and window: as admitted.
    pub zeroes: BTreeMap<(Generation, u32), Zeroes>,
    /// Slot entries of those that have not taken effect.
    pub bits_pending: u32,
}
impl Replica {
    /// The extent's bit is set.
    #[must_use]
    pub fn has_bit(&self, generation: Generation, extent: u32) -> bool {
        let at = extent % ZEROES;
        let window = self.zeroes.get(&(generation, extent / ZEROES));
        window.is_some_and(|w| w.bits[(at / 64) as usize] >> (at % 64) & 1 == 1)
    }
    /// Generations between these two (without them) in which the extent's bit is set.
    #[must_use]
    pub fn bits_between(&self, after: Generation, before: Generation, extent: u32) -> Vec<Generation> {
        let all = self.zeroes.keys().map(|k| k.0).filter(|g| *g > after && *g < before);
        let mut found: Vec<Generation> = all.filter(|g| self.has_bit(*g, extent)).collect();
        found.dedup();
        found
    }
}

/// Bits of a window of extents.
pub type Bits = ZeroBits;
/// A window of whole zero extents, and its slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Zeroes {
    pub slot: u32,
    pub bits: Bits,
    pub version: Version,
}

/// A set of blocks of a chunk.
#[derive(Default, Clone, Debug)]
pub struct BlockSet {
    words: Vec<u16>,
}
impl BlockSet {
    pub fn insert(&mut self, first: u32, count: u32) {
        for b in first..first + count {
            let at = (b / BLOCKS_PER_EXTENT) as usize;
            if at >= self.words.len() {
                self.words.resize(at + 1, 0);
            }
            self.words[at] |= 1 << (b % BLOCKS_PER_EXTENT);
        }
    }
    /// The blocks of one extent, a bit each.
    #[must_use]
    pub fn of_extent(&self, extent: u32) -> u16 {
        self.words.get(extent as usize).copied().unwrap_or(0)
    }
}

/// Bytes of a slot.
pub type Image = Box<[u8; RECORD_SLOT]>;

/// Whose a slot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    Nobody,
    Branch(u32),
    Replica(u32),
    /// A window of a branch's kept generations.
    Window(u32, u32),
    /// A window of a replica's whole zero extents.
    Zeroes(u32, Generation, u32),
}

/// The windows that a set of generations needs.
fn windows_of(kept: &Generations) -> BTreeSet<u32> {
    kept.ranges().iter().flat_map(|(a, b)| a.0 / WINDOW..=b.0 / WINDOW).collect()
}
/// What one window shows of it.
fn in_window(kept: &Generations, window: u32) -> Generations {
    let first = window * WINDOW;
    let last = first + (WINDOW - 1);
    let clipped = kept.ranges().iter().filter(|(a, b)| a.0 <= last && b.0 >= first);
    let ranges = clipped.map(|(a, b)| (Generation(a.0.max(first)), Generation(b.0.min(last)))).collect();
    Generations::of_ranges(ranges).expect("parts of a set are one")
}

pub struct Records {
    pub branches: Slab<Branch>,
    pub replicas: Slab<Replica>,
    by_branch: Map<BranchId, u32>,
    by_chunk: Map<(BranchId, ChunkIndex), u32>,
    owners: Vec<Owner>,
    free: Vec<u32>,
    /// What flushed entries say of each slot, and what entries say that are not flushed, in their order.
    stored: Vec<Option<Image>>,
    unflushed: VecDeque<(u64, u32, Image)>,
    /// Deleted replicas whose extents are not settled: until this batch is flushed.
    dying: VecDeque<(u64, u32)>,
}

impl Records {
    #[must_use]
    pub fn new(slots: u32) -> Records {
        Records {
            branches: Slab::new(),
            replicas: Slab::new(),
            by_branch: Map::default(),
            by_chunk: Map::default(),
            owners: vec![Owner::Nobody; slots as usize],
            free: (0..slots).rev().collect(),
            stored: vec![None; slots as usize],
            unflushed: VecDeque::new(),
            dying: VecDeque::new(),
        }
    }
    #[must_use]
    pub fn branch_number(&self, branch: BranchId) -> Option<u32> {
        self.by_branch.get(&branch).copied()
    }
    #[must_use]
    pub fn branch(&self, branch: BranchId) -> Option<&Branch> {
        self.branch_number(branch).map(|n| &self.branches[n as usize])
    }
    pub fn branch_mut(&mut self, branch: BranchId) -> Option<&mut Branch> {
        self.branch_number(branch).map(|n| &mut self.branches[n as usize])
    }
    #[must_use]
    pub fn replica_number(&self, branch: BranchId, chunk: ChunkIndex) -> Option<u32> {
        self.by_chunk.get(&(branch, chunk)).copied()
    }
    #[must_use]
    pub fn replica(&self, number: u32) -> &Replica {
        &self.replicas[number as usize]
    }
    pub fn replica_mut(&mut self, number: u32) -> &mut Replica {
        &mut self.replicas[number as usize]
    }
    #[must_use]
    pub fn branch_of(&self, replica: u32) -> &Branch {
        &self.branches[self.replica(replica).branch as usize]
    }
    /// Slots that nothing uses.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        self.free.len()
    }
    /// Slots that no new replica gets.
    #[must_use]
    pub fn spare_slots(&self) -> usize {
        (self.owners.len() / 16).min(64)
    }
    /// The replica is there, and not being erased.
    #[must_use]
    pub fn is_live(&self, number: u32) -> bool {
        let r = self.replicas.get(number as usize);
        r.is_some_and(|r| self.replica_number(r.record.branch, r.record.chunk) == Some(number))
    }
    /// Branches in the order of their ids.
    #[must_use]
    pub fn sorted(&self) -> Vec<&Branch> {
        let mut all: Vec<&Branch> = self.branches.iter().map(|(_, b)| b).collect();
        all.sort_by_key(|b| b.record.branch);
        all
    }

    /// A new branch, in a free slot (the caller has asked that there is one).
    pub fn add_branch(&mut self, record: BranchRecord) -> u32 {
        let slot = self.free.pop().expect("the caller has counted the slots");
        self.insert_branch(record, slot)
    }
    fn insert_branch(&mut self, record: BranchRecord, slot: u32) -> u32 {
        let id = record.branch;
        let stored_durable = record.marks.durable;
        let list_flushed = record.list.index;
        let branch = Branch {
            record,
            slot,
            in_doubt: false,
            replicas: BTreeMap::new(),
            credits: 0,
            creditor: Source(0),
            marks_dirty: false,
            stored_durable,
            kept: Generations::new(),
            windows: BTreeMap::new(),
            list_flushed,
        };
        let number = u32::try_from(self.branches.insert(branch)).expect("no more than slots");
        self.by_branch.insert(id, number);
        self.owners[slot as usize] = Owner::Branch(number);
        number
    }
    /// A new replica of a known branch, in a free slot.
    pub fn add_replica(&mut self, record: ReplicaRecord) -> u32 {
        let slot = self.free.pop().expect("the caller has counted the slots");
        self.insert_replica(record, slot)
    }
    fn insert_replica(&mut self, record: ReplicaRecord, slot: u32) -> u32 {
        let branch = self.by_branch[&record.branch];
        let key = (record.branch, record.chunk);
        let replica = Replica {
            branch,
            record,
            slot,
            index: ExtentIndex::default(),
            attempt: None,
            marked: crate::sweep::Marked::default(),
            zeroes: BTreeMap::new(),
            bits_pending: 0,
        };
        let number = u32::try_from(self.replicas.insert(replica)).expect("no more than slots");
        self.by_chunk.insert(key, number);
        self.branches[branch as usize].replicas.insert(key.1, number);
        self.owners[slot as usize] = Owner::Replica(number);
        number
    }

    /// Slots that the branch lacks to say that these generations are kept.
    #[must_use]
    pub fn windows_lacking(&self, branch: u32, kept: &Generations) -> usize {
        let there = &self.branches[branch as usize].windows;
        windows_of(kept).iter().filter(|w| !there.contains_key(w)).count()
    }
    /// These generations are kept from now on (the caller has counted the slots). Gives back the slots whose content
    /// has changed; those of windows that are empty now are free.
    pub fn set_kept(&mut self, branch: u32, kept: Generations) -> Vec<u32> {
        let needed = windows_of(&kept);
        let b = &mut self.branches[branch as usize];
        let before = std::mem::replace(&mut b.kept, kept);
        let all: BTreeSet<u32> = b.windows.keys().copied().chain(needed.iter().copied()).collect();
        let mut changed = Vec::new();
        for window in all {
            if let Some(slot) = b.windows.get(&window).copied() {
                if !needed.contains(&window) {
                    b.windows.remove(&window);
                    self.owners[slot as usize] = Owner::Nobody;
                    self.free.push(slot);
                } else if in_window(&before, window) == in_window(&b.kept, window) {
                    continue;
                }
                changed.push(slot);
            } else {
                let slot = self.free.pop().expect("the caller has counted the slots");
                b.windows.insert(window, slot);
                self.owners[slot as usize] = Owner::Window(branch, window);
                changed.push(slot);
            }
        }
        changed
    }

    /// Sets bits of a window, in a slot of its own (the caller has counted them): the slot whose content has changed.
    pub fn set_bits(&mut self, replica: u32, key: (Generation, u32), bits: &Bits, version: Version) -> u32 {
        if !self.replica(replica).zeroes.contains_key(&key) {
            let slot = self.free.pop().expect("the caller has counted the slots");
            self.owners[slot as usize] = Owner::Zeroes(replica, key.0, key.1);
            let zeroes = Zeroes { slot, bits: Bits::default(), version: Version::ZERO };
            self.replica_mut(replica).zeroes.insert(key, zeroes);
        }
        let w = self.replica_mut(replica).zeroes.get_mut(&key).expect("just looked at");
        w.bits.iter_mut().zip(bits).for_each(|(to, from)| *to |= from);
        w.version = w.version.max(version);
        w.slot
    }
    /// Clears bits of a window: the slot whose content has changed (it is free now if none is left), if any has.
    pub fn clear_bits(&mut self, replica: u32, key: (Generation, u32), bits: &Bits) -> Option<u32> {
        let w = self.replica_mut(replica).zeroes.get_mut(&key)?;
        let before = w.bits;
        w.bits.iter_mut().zip(bits).for_each(|(to, from)| *to &= !from);
        let (slot, empty) = (w.slot, w.bits == Bits::default());
        if w.bits == before {
            return None;
        }
        if empty {
            self.replica_mut(replica).zeroes.remove(&key);
            self.owners[slot as usize] = Owner::Nobody;
            self.free.push(slot);
        }
        Some(slot)
    }

    /// Forgets a replica as far as requests go; its extents are still on the drive. Gives back the slots that are
    /// empty now: those of its zeroes and its own, and with the last one its branch's and those of its windows. To be
    /// emptied from the last one on: without its zeroes a replica that is still there would show what they hide.
    pub fn delete_replica(&mut self, number: u32) -> Vec<u32> {
        let (branch, slot, key) = {
            let r = self.replica(number);
            (r.branch, r.slot, (r.record.branch, r.record.chunk))
        };
        self.by_chunk.remove(&key);
        let zeroes = std::mem::take(&mut self.replica_mut(number).zeroes);
        let mut emptied: Vec<u32> = zeroes.into_values().map(|w| w.slot).collect();
        emptied.push(slot);
        let b = &mut self.branches[branch as usize];
        b.replicas.remove(&key.1);
        if b.replicas.is_empty() {
            emptied.extend(b.windows.values());
            emptied.push(b.slot);
            self.by_branch.remove(&key.0);
            self.branches.remove(branch as usize);
        }
        for slot in &emptied {
            self.owners[*slot as usize] = Owner::Nobody;
            self.free.push(*slot);
        }
        emptied
    }
    /// The deletion is in this batch: what is left of the replica goes once that is flushed.
    pub fn bury(&mut self, number: u32, seq: u64) {
        self.dying.push_back((seq, number));
    }
    /// An entry that sets this slot has taken effect.
    pub fn slot_entered(&mut self, seq: u64, slot: u32, image: Image) {
        self.unflushed.push_back((seq, slot, image));
    }
    /// Entries up to `flushed` are flushed, and the table has settled. Tells `touched` of each slot whose page must
    /// now show otherwise.
    pub fn settle(&mut self, flushed: u64, mut touched: impl FnMut(u32, u64)) {
        while let Some((seq, slot, image)) = self.unflushed.pop_front_if(|u| u.0 <= flushed) {
            self.stored[slot as usize] = (image[0] != 0).then_some(image);
            touched(slot, seq);
        }
        while let Some((_, number)) = self.dying.pop_front_if(|d| d.0 <= flushed) {
            self.replicas.remove(number as usize);
        }
    }

    /// What a slot holds now: for its entry.
    #[must_use]
    pub fn content(&self, slot: u32) -> Slot {
        match self.owners[slot as usize] {
            Owner::Nobody => Slot::Empty,
            Owner::Branch(n) => Slot::Branch(self.branches[n as usize].record.clone()),
            Owner::Replica(n) => Slot::Replica(self.replica(n).record.clone()),
            Owner::Zeroes(n, generation, window) => {
                let r = self.replica(n);
                let w = &r.zeroes[&(generation, window)];
                let (branch, chunk, incarnation) = (r.record.branch, r.record.chunk, r.record.incarnation);
                let (version, bits) = (w.version, w.bits);
                Slot::Zeroes(ZeroWindow { branch, chunk, incarnation, generation, window, version, bits })
            }
            Owner::Window(n, window) => {
                let b = &self.branches[n as usize];
                let (branch, index) = (b.record.branch, b.record.list.index);
                Slot::Keep(KeepWindow { branch, window, index, kept: in_window(&b.kept, window) })
            }
        }
    }
    /// What a slot's page shows: what is flushed; a branch's marks as they are now (they only ever rise, and what
    /// a session has told is true whether it is flushed here or not).
    #[must_use]
    pub fn stored(&self, slot: u32) -> Slot {
        let Some(image) = &self.stored[slot as usize] else { return Slot::Empty };
        let mut content = Slot::decode(&image[..]).expect("encoded by ourselves");
        if let (Slot::Branch(b), Owner::Branch(n)) = (&mut content, self.owners[slot as usize]) {
            let now = &self.branches[n as usize].record;
            if now.branch == b.branch {
                b.marks.raise(now.marks);
            }
        }
        content
    }
    #[must_use]
    pub fn slots(&self) -> u32 {
        u32::try_from(self.owners.len()).expect("made from a u32")
    }

    /// A branch whose replicas were never made is forgotten.
    pub fn forget_empty_branches(&mut self) {
        let empty: Vec<u32> = self
            .by_branch
            .values()
            .copied()
            .filter(|n| self.branches[*n as usize].replicas.is_empty())
            .collect();
        for n in empty {
            let b = self.branches.remove(n as usize);
            self.by_branch.remove(&b.record.branch);
            for slot in b.windows.into_values().chain([b.slot]) {
                self.owners[slot as usize] = Owner::Nobody;
                self.free.push(slot);
            }
        }
    }
    /// For checks: each window of each branch is in its slot, and none is empty.
    pub fn check_windows(&self) {
        for (number, b) in &self.branches {
            let needed: BTreeSet<u32> = windows_of(&b.kept);
            assert!(b.windows.keys().eq(needed.iter()), "a window for each part of what is kept");
            for (window, slot) in &b.windows {
                let number = u32::try_from(number).expect("no more than slots");
                assert_eq!(self.owners[*slot as usize], Owner::Window(number, *window), "a window's slot");
            }
        }
    }

    /// For checks: each window of zeroes is in its slot, and none is empty.
    pub fn check_zeroes(&self) {
        for (_, n) in self.by_chunk.iter() {
            for ((generation, window), w) in &self.replica(*n).zeroes {
                assert!(w.bits != Bits::default(), "a window without a bit has no slot");
                let owner = Owner::Zeroes(*n, *generation, *window);
                assert_eq!(self.owners[w.slot as usize], owner, "a window's slot");
            }
        }
    }

    /// False if its replica is missing, as of one that was deleted.
    fn insert_zeroes(&mut self, w: &ZeroWindow, slot: u32) -> bool {
        let Some(n) = self.replica_number(w.branch, w.chunk) else { return false };
        let r = self.replica_mut(n);
        let key = (w.generation, w.window);
        if r.record.incarnation != w.incarnation || r.zeroes.contains_key(&key) || w.bits == Bits::default() {
            return false;
        }
        r.zeroes.insert(key, Zeroes { slot, bits: w.bits, version: w.version });
        self.owners[slot as usize] = Owner::Zeroes(n, w.generation, w.window);
        true
    }

    /// False if its branch is missing, as of one that was deleted.
    fn insert_window(&mut self, w: &KeepWindow, slot: u32) -> bool {
        let Some(branch) = self.branch_number(w.branch) else { return false };
        let b = &mut self.branches[branch as usize];
        if b.windows.contains_key(&w.window) || w.kept.is_empty() {
            return false;
        }
        b.windows.insert(w.window, slot);
        w.kept.iter().for_each(|g| b.kept.insert(g));
        self.owners[slot as usize] = Owner::Window(branch, w.window);
        true
    }

    /// After recovery: from what the slots hold. Replicas, windows and zeroes of what is missing are left out (their slots are
    /// given back): cannot be, unless a page is damaged.
    pub fn restore(slots: Vec<Slot>) -> (Records, Vec<u32>) {
        let count = u32::try_from(slots.len()).expect("as many as the zone has");
        let mut records = Records::new(count);
        let (mut replicas, mut windows, mut zeroes) = (Vec::new(), Vec::new(), Vec::new());
        let mut orphans = Vec::new();
        let mut empty = Vec::new();
        for (number, slot) in (0..count).zip(slots) {
            records.stored[number as usize] = (slot != Slot::Empty).then(|| Box::new(slot.encode()));
            match slot {
                Slot::Empty => empty.push(number),
                Slot::Branch(b) => {
                    records.insert_branch(b, number);
                }
                Slot::Replica(r) => replicas.push((number, r)),
                Slot::Keep(w) => windows.push((number, w)),
                Slot::Zeroes(w) => zeroes.push((number, w)),
            }
        }
        // Two of one chunk cannot be either; the younger one would be the true one.
        replicas.sort_by_key(|(_, r)| std::cmp::Reverse(r.incarnation));
        for (number, r) in replicas {
            let known = records.by_branch.contains_key(&r.branch);
            if known && !records.by_chunk.contains_key(&(r.branch, r.chunk)) {
                records.insert_replica(r, number);
            } else {
                orphans.push(number);
                records.stored[number as usize] = None;
            }
        }
        let mut unknown: Vec<u32> = Vec::new();
        unknown.extend(windows.iter().filter(|(n, w)| !records.insert_window(w, *n)).map(|w| w.0));
        unknown.extend(zeroes.iter().filter(|(n, w)| !records.insert_zeroes(w, *n)).map(|w| w.0));
        for number in unknown {
            orphans.push(number);
            records.stored[number as usize] = None;
        }
        records.free = empty.into_iter().chain(orphans.iter().copied()).rev().collect();
        (records, orphans)
    }
}
