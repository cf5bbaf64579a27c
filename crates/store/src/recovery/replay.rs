//! Replay: the entries of the chain, in its order, over the pages as they were found.
//!
//! What belongs to the table (who owns an extent) is left to a page that includes the entry; what belongs to the
//! overlay is always done again. The order is the journal's, never the versions'.

use super::chain::{Link, Walk, block_sums};
use super::decide::{LARGE, Large, decide};
use super::{LEAST, table_entries};
use crate::disk::entry::{Entry, ExtentKey};
use crate::disk::page::{
    RECORDS_PER_PAGE, Slot, States, TABLE_PER_PAGE, Zone, newest_slot, record_page_of, table_page_of,
};
use crate::disk::superblock::{EntryId, Superblock};
use crate::event::Failure;
use crate::index::Index;
use crate::journal::{Batch, Journal};
use crate::layout::Layout;
use crate::overlay::{Block, What};
use crate::pages::Pages;
use crate::records::Records;
use crate::store::Disk;
use crate::table::{NONE, Px, Table, Use};
use proto::limits::{BLOCK, BLOCKS_PER_EXTENT};
use proto::record::Sum;
use proto::{DriveId, Generation, Map, Payload, Set, Version};
use std::collections::{BTreeMap, BTreeSet};

/// An extent of a replica that is here: its number, the extent, the generation.
type Key = (u32, u32, Generation);

/// What the overlay will hold of an extent.
#[derive(Default)]
struct Pending {
    blocks: BTreeMap<u32, Block>,
    version: Option<Version>,
}

/// An entry of a large write whose data must be looked at.
struct Check {
    id: EntryId,
    home: Px,
    key: Key,
    sums: [Sum; 16],
    /// Blocks that no newer entry covers, those apart that must be looked at themselves.
    bare: u16,
}

pub(crate) struct Replay {
    walk: Walk,
    superblock: Superblock,
    pub records: Records,
    orphans: Vec<u32>,
    touched_records: Vec<(u32, u64)>,
    pub dropped: Vec<EntryId>,
    table: Table,
    /// Per table page: slot, sequence, and what it includes.
    heads: Vec<(u8, u64, u64)>,
    touched: Vec<(Px, u64)>,
    /// Keys of the chain's entries, and ranges of its zeroes: whose owners are kept track of.
    wanted: Set<Key>,
    zeroed: Map<u32, Vec<(u32, u32)>>,
    owners: Map<Key, Vec<Px>>,
    checks: Vec<Check>,
    pending: BTreeMap<Key, Pending>,
}

impl Replay {
    pub fn new(walk: Walk, superblock: Superblock, mut slots: Vec<Slot>, upto: Vec<u64>) -> Replay {
        let touched_records = replay_records(&walk.links, &mut slots, &upto);
        slots.truncate(superblock.layout.record_slots() as usize);
        let (records, orphans) = Records::restore(slots);
        let table = Table::new(superblock.layout.extents);
        let dropped = superblock.dropped.clone();
        let mut replay = Replay {
            walk,
            superblock,
            records,
            orphans,
            touched_records,
            dropped,
            table,
            heads: Vec::new(),
            touched: Vec::new(),
            wanted: Set::default(),
            zeroed: Map::default(),
            owners: Map::default(),
            checks: Vec::new(),
            pending: BTreeMap::new(),
        };
        replay.list_keys();
        replay
    }
    pub fn end(&self) -> (u64, u64, u32, u64) {
        self.walk.end()
    }

    /// The newest batch that a page of the table includes.
    pub fn pages_know(&self) -> u64 {
        self.heads.iter().map(|h| h.2).max().unwrap_or(0)
    }
    pub fn pages_read(&self) -> u64 {
        self.walk.pages_read()
    }

    fn key(&self, k: &ExtentKey) -> Option<Key> {
        let n = self.records.replica_number(k.branch, k.chunk)?;
        (self.records.replica(n).record.incarnation == k.incarnation).then_some((n, k.extent, k.generation))
    }

    fn list_keys(&mut self) {
        let mut wanted = Set::default();
        let mut zeroed: Map<u32, Vec<(u32, u32)>> = Map::default();
        for e in self.walk.links.iter().flat_map(|l| &l.entries) {
            match e {
                Entry::Write { key, .. } | Entry::Pull { key, .. } => wanted.extend(self.key(key)),
                Entry::Zero { key, first, count, .. } => {
                    if let Some((n, _, _)) = self.key(key) {
                        let end = (first + count).div_ceil(BLOCKS_PER_EXTENT);
                        zeroed.entry(n).or_default().push((first / BLOCKS_PER_EXTENT, end));
                    }
                }
                Entry::Drop { key, bits } => {
                    if let Some((n, first, g)) = self.key(key) {
                        wanted.extend(bits_of(bits).map(|i| (n, first + i, g)));
                    }
                }
                Entry::Marks { .. } | Entry::Slot { .. } => {}
            }
        }
        (self.wanted, self.zeroed) = (wanted, zeroed);
    }
    fn is_wanted(&self, key: &Key) -> bool {
        let zeroed = |z: &Vec<(u32, u32)>| z.iter().any(|(a, b)| (*a..*b).contains(&key.1));
        self.wanted.contains(key) || self.zeroed.get(&key.0).is_some_and(zeroed)
    }

    // ------------------------------------------------------------------------------------------ table

    /// Table pages, both slots of each.
    pub fn take_table(&mut self, from: u64, bytes: &Payload) -> Result<(), Failure> {
        let drive = self.superblock.drive;
        for (page, both) in (from..).zip(bytes.bytes().chunks_exact(2 * BLOCK)) {
            let lost = Failure::TableLost(page);
            let (slot, head, body) = newest_slot(both, Zone::Table, drive, page).ok_or(lost.clone())?;
            self.heads.push((slot, head.sequence, head.upto));
            for (at, raw) in table_entries(body) {
                let px = u32::try_from(page * TABLE_PER_PAGE as u64 + at as u64).map_err(|_| lost.clone())?;
                let states = States(raw.states.get());
                let sound = px < self.table.len() && states.is_valid() && raw.extent.get() < 1 << 16;
                if !sound || raw.generation.get() < LEAST.0 {
                    return Err(lost);
                }
                let key = ExtentKey {
                    branch: proto::BranchId(raw.branch.get()),
                    chunk: proto::ChunkIndex(raw.chunk.get()),
                    incarnation: proto::Incarnation(raw.incarnation.get()),
                    extent: raw.extent.get(),
                    generation: Generation(raw.generation.get()),
                };
                // An extent of a deleted replica is free.
                if let Some(key) = self.key(&key) {
                    let version = Version::new(proto::Epoch(raw.epoch.get()), raw.seq.get());
                    self.own(px, key, states, raw.sums.map(|s| s.get()), version);
                }
            }
        }
        Ok(())
    }
    fn own(&mut self, px: Px, key: Key, states: States, sums: [u32; 16], version: Version) {
        let e = self.table.get_mut(px);
        e.usage = Use::Owned;
        (e.replica, e.extent, e.generation) = (key.0, u16::try_from(key.1).expect("checked"), key.2);
        (e.states, e.sums) = (states, sums);
        e.set_version(version);
        if self.is_wanted(&key) {
            self.owners.entry(key).or_default().push(px);
        }
    }
    /// The extent's page includes the effect of this batch.
    fn includes(&self, px: Px, seq: u64) -> bool {
        self.heads[px as usize / TABLE_PER_PAGE].2 >= seq
    }
    /// The same, of an extent that an entry names and that may not exist.
    fn included(&self, px: Px, seq: u64) -> bool {
        px < self.table.len() && self.includes(px, seq)
    }

    // ------------------------------------------------------------------------------------------ large entries

    /// Which large entries must be looked at: newest first, each block against the newest entry that covers it.
    pub fn list_larges(&mut self) {
        let already: BTreeSet<EntryId> = self.dropped.iter().copied().collect();
        let mut covered: Map<Key, u16> = Map::default();
        let mut zeroes: Vec<(u32, Generation, u32, u32)> = Vec::new();
        let mut checks = Vec::new();
        let flushed = self.walk.flushed;
        for link in self.walk.links.iter().rev() {
            for (index, e) in link.entries.iter().enumerate().rev() {
                let index = u32::try_from(index).expect("a batch has few entries");
                let id = EntryId { seq: link.seq, index };
                match e {
                    Entry::Write { key, first, count, large, home, sums, .. } => {
                        let Some(key) = self.key(key) else { continue };
                        let mask = u16::try_from((1u32 << count) - 1).expect("16 bits") << first;
                        let known =
                            [already.contains(&id), self.included(*home, link.seq), link.seq <= flushed];
                        let [skip, included, safe] = known;
                        let unsure = *large && decide(LARGE, [skip, included, safe, false]) == Large::Drop;
                        if unsure {
                            let zero = zeroes.iter().filter(|z| (z.0, z.1) == (key.0, key.2));
                            let over = zero.fold(0, |m, z| m | range_mask(key.1, z.2, z.3));
                            let bare = !(covered.get(&key).copied().unwrap_or(0) | over);
                            checks.push(Check { id, home: *home, key, sums: *sums, bare });
                        }
                        // One that may be dropped covers nothing yet: what it hides must be whole then.
                        if !skip && !unsure {
                            *covered.entry(key).or_insert(0) |= mask;
                        }
                    }
                    Entry::Pull { key, masks, .. } => {
                        if let Some(key) = self.key(key) {
                            *covered.entry(key).or_insert(0) |= masks.all();
                        }
                    }
                    Entry::Zero { key, first, count, .. } => {
                        if let Some(k) = self.key(key) {
                            zeroes.push((k.0, k.2, *first, first + count));
                        }
                    }
                    _ => {}
                }
            }
        }
        self.checks = checks;
    }
    /// The home of the `at`-th large entry to be looked at.
    pub fn large_home(&self, at: usize) -> Option<Px> {
        self.checks.get(at).map(|c| c.home).filter(|px| *px < self.table.len())
    }
    pub fn take_large(&mut self, at: usize, bytes: &Payload) {
        let c = &self.checks[at];
        let hidden = self.checks[..at].iter().any(|n| n.key == c.key && !self.dropped.contains(&n.id));
        let good =
            hidden || (0..16usize).all(|b| c.bare >> b & 1 == 0 || Sum::of(bytes.block(b)) == c.sums[b]);
        if decide(LARGE, [false, false, false, good]) == Large::Drop {
            self.dropped.push(c.id);
        }
    }

    // ------------------------------------------------------------------------------------------ replay

    pub fn run(&mut self) -> Result<(), Failure> {
        let dropped: BTreeSet<EntryId> = self.dropped.iter().copied().collect();
        self.dropped = dropped.iter().copied().filter(|d| d.seq >= self.superblock.tail_seq).collect();
        let links = std::mem::take(&mut self.walk.links);
        for link in &links {
            let mut at = link.body;
            for (index, e) in (0..).zip(&link.entries) {
                if !dropped.contains(&EntryId { seq: link.seq, index }) {
                    self.entry(link.seq, at, e)?;
                }
                at += u64::from(e.payload_blocks());
            }
        }
        self.walk.links = links;
        Ok(())
    }

    fn entry(&mut self, seq: u64, at: u64, e: &Entry) -> Result<(), Failure> {
        match e {
            Entry::Write { key, large: true, version, home, sums, .. } => {
                if let Some(key) = self.key(key) {
                    self.large(seq, key, *home, *version, sums)?;
                }
            }
            Entry::Write { key, version, home, .. } => {
                if let Some(key) = self.key(key) {
                    self.claim(seq, key, *home)?;
                    self.raise(key, *version);
                    self.data(seq, at, key, *version, e);
                }
            }
            Entry::Pull { key, version, masks, home, .. } => {
                if let Some(key) = self.key(key) {
                    let Some(home) = *home else { return Ok(()) };
                    self.claim(seq, key, home)?;
                    if masks.is_whole() {
                        self.pending.entry(key).or_default().version = Some(*version);
                    } else {
                        self.raise(key, *version);
                    }
                    self.data(seq, at, key, *version, e);
                    self.bare(seq, key, *version, masks.zero, What::Zero);
                    self.bare(seq, key, *version, masks.absent, What::Absent);
                }
            }
            Entry::Zero { key, first, count, version, home } => {
                if let Some((n, extent, g)) = self.key(key) {
                    if let Some(home) = home {
                        self.claim(seq, (n, extent, g), *home)?;
                    }
                    self.zero(seq, (n, g), (*first, first + count), *version);
                }
            }
            Entry::Drop { key, bits } => {
                if let Some((n, first, g)) = self.key(key) {
                    for key in bits_of(bits).map(|i| (n, first + i, g)) {
                        self.pending.remove(&key);
                        self.free_others(seq, key, NONE);
                    }
                }
            }
            Entry::Marks { .. } | Entry::Slot { .. } => {}
        }
        Ok(())
    }

    /// The extent must have an owner from here on: the home that the entry names, unless it has one already.
    fn claim(&mut self, seq: u64, key: Key, home: Px) -> Result<(), Failure> {
        let owned = self.owners.get(&key).is_some_and(|o| !o.is_empty());
        if home >= self.table.len() {
            return Err(Failure::TableLost(u64::from(home) / TABLE_PER_PAGE as u64));
        }
        if owned || self.includes(home, seq) {
            return Ok(());
        }
        self.take(seq, key, home, States::default(), [0; 16], Version::ZERO)
    }
    fn take(
        &mut self,
        seq: u64,
        key: Key,
        px: Px,
        states: States,
        sums: [u32; 16],
        version: Version,
    ) -> Result<(), Failure> {
        if self.table.get(px).usage != Use::Free {
            return Err(Failure::TableLost(u64::from(px) / TABLE_PER_PAGE as u64));
        }
        self.own(px, key, states, sums, version);
        self.touched.push((px, seq));
        Ok(())
    }
    /// Other homes of the same extent are free, unless their page knows better.
    fn free_others(&mut self, seq: u64, key: Key, but: Px) {
        let Some(all) = self.owners.remove(&key) else { return };
        let (gone, kept): (Vec<Px>, Vec<Px>) =
            all.into_iter().partition(|px| *px != but && !self.includes(*px, seq));
        for px in gone {
            self.table.get_mut(px).usage = Use::Free;
            self.touched.push((px, seq));
        }
        self.owners.insert(key, kept);
    }

    fn large(
        &mut self,
        seq: u64,
        key: Key,
        home: Px,
        version: Version,
        sums: &[Sum; 16],
    ) -> Result<(), Failure> {
        if home >= self.table.len() {
            return Err(Failure::TableLost(u64::from(home) / TABLE_PER_PAGE as u64));
        }
        self.free_others(seq, key, home);
        if !self.includes(home, seq) {
            self.take(seq, key, home, States::ALL_DATA, sums.map(|s| s.0), version)?;
        }
        let p = self.pending.entry(key).or_default();
        p.blocks.clear();
        p.version = Some(version);
        Ok(())
    }

    fn raise(&mut self, key: Key, version: Version) {
        let known = self.pending.get(&key).and_then(|p| p.version).unwrap_or_else(|| self.home_version(key));
        self.pending.entry(key).or_default().version = Some(known.max(version));
    }
    fn home_version(&self, key: Key) -> Version {
        let owner = self.owners.get(&key).and_then(|o| o.last());
        owner.map_or(Version::ZERO, |px| self.table.get(*px).version())
    }

    /// Blocks whose bytes the journal has.
    fn data(&mut self, seq: u64, at: u64, key: Key, version: Version, e: &Entry) {
        for (position, (block, sum)) in (at..).zip(block_sums(e)) {
            let page = self.walk.page(position);
            // Bytes of what is flushed may not have been read: they are looked at when they are loaded.
            let bad = page.as_ref().is_some_and(|p| Sum::of(p.bytes()) != sum);
            let what = if bad { What::Bad } else { What::Data };
            let mut b = Block::new(block, what, seq, version);
            (b.sum, b.position) = (sum.0, position);
            self.pending.entry(key).or_default().blocks.insert(block, b);
        }
    }
    fn bare(&mut self, seq: u64, key: Key, version: Version, mask: u16, what: What) {
        for block in (0..BLOCKS_PER_EXTENT).filter(|b| mask >> b & 1 == 1) {
            self.pending.entry(key).or_default().blocks.insert(block, Block::new(block, what, seq, version));
        }
    }
    fn zero(&mut self, seq: u64, (n, g): (u32, Generation), (first, end): (u32, u32), version: Version) {
        for extent in first / BLOCKS_PER_EXTENT..end.div_ceil(BLOCKS_PER_EXTENT) {
            let key = (n, extent, g);
            let here =
                self.owners.get(&key).is_some_and(|o| !o.is_empty()) || self.pending.contains_key(&key);
            if here {
                self.raise(key, version);
                self.bare(seq, key, version, range_mask(extent, first, end), What::Zero);
            }
        }
    }

    // ------------------------------------------------------------------------------------------ results

    /// The ring as it was found.
    pub fn fill_journal(&mut self, journal: &mut Journal, layout: &Layout, drive: DriveId) -> Index {
        let (chunks, next) = self.walk.take_chunks();
        let listed = chunks.back().map_or(0, |c| c.last);
        let mut index = Index::new(layout, drive, chunks, next);
        for l in &self.walk.links {
            let batch = Batch::new(l.position, l.pages, l.body - l.position, l.crc);
            journal.push(Batch { stamp: Some(0), ..batch });
            if let Some(raw) = &l.raw {
                index.add(l.seq, raw);
            }
        }
        journal.applied = journal.next_seq - 1;
        journal.flushed = journal.applied;
        journal.index_to(listed);
        index
    }

    /// Hands everything over; gives back the blocks that the table may show at once: batch, extent, block.
    pub fn finish(mut self, disk: &mut Disk) -> Result<Vec<(u64, Px, u8)>, Failure> {
        let mut pages = Pages::new(self.superblock.layout.table_pages);
        for (page, (slot, sequence, _)) in (0..).zip(&self.heads) {
            pages.found(page, *slot, *sequence);
        }
        for (px, seq) in &self.touched {
            pages.touch(table_page_of(*px), *seq);
        }
        for (slot, seq) in &self.touched_records {
            disk.record_pages.touch(record_page_of(*slot), *seq);
        }
        // A replica without its branch cannot be; its slot is empty from now on.
        for slot in &self.orphans {
            disk.record_pages.touch(record_page_of(*slot), self.superblock.tail_seq);
        }
        self.table.build_free_list();
        disk.table = self.table;
        disk.table_pages = pages;
        disk.records = self.records;
        disk.records.forget_empty_branches();
        for px in 0..disk.table.len() {
            if disk.table.get(px).usage == Use::Owned && !disk.try_link(px) {
                return Err(Failure::TableLost(u64::from(px) / TABLE_PER_PAGE as u64));
            }
        }
        disk.show_bits();
        let mut bare = Vec::new();
        for ((n, extent, g), p) in self.pending {
            let Some(px) = disk.find(n, extent, g) else {
                if p.blocks.values().any(|b| matches!(b.what, What::Data | What::Bad)) {
                    return Err(Failure::JournalLost);
                }
                continue;
            };
            let home = disk.table.get(px).version();
            if !p.blocks.is_empty() {
                disk.overlay.enter(px, home).version = p.version.unwrap_or(home);
            }
            for b in p.blocks.into_values() {
                let (seq, block) = (b.seq, b.block);
                let homes = &mut disk.journal.get_mut(seq).homes;
                if homes.last() != Some(&px) {
                    homes.push(px);
                }
                if b.what != What::Data {
                    bare.push((seq, px, block));
                }
                disk.put(px, b);
            }
        }
        bare.sort_unstable();
        Ok(bare)
    }
}

/// Entries on records, over the slots as their pages show them. Gives back which slots changed, and by which batch.
fn replay_records(links: &[Link], slots: &mut [Slot], upto: &[u64]) -> Vec<(u32, u64)> {
    let mut touched = Vec::new();
    for link in links {
        for e in &link.entries {
            let (Entry::Marks { slot, .. } | Entry::Slot { slot, .. }) = e else { continue };
            let at = *slot as usize;
            if at >= slots.len() || upto[at / RECORDS_PER_PAGE] >= link.seq {
                continue;
            }
            match (e, &mut slots[at]) {
                (Entry::Marks { branch, marks, .. }, Slot::Branch(b)) if b.branch == *branch => {
                    b.marks.raise(*marks)
                }
                (Entry::Slot { content: Slot::Branch(new), .. }, Slot::Branch(old))
                    if old.branch == new.branch =>
                {
                    let marks = old.marks;
                    *old = new.clone();
                    old.marks.raise(marks);
                }
                (Entry::Slot { content, .. }, slot) => *slot = content.clone(),
                _ => {}
            }
            touched.push((*slot, link.seq));
        }
    }
    touched
}

fn bits_of(bits: &[u32; 16]) -> impl Iterator<Item = u32> + '_ {
    (0..512u32).filter(|i| bits[(i / 32) as usize] >> (i % 32) & 1 == 1)
}

/// Blocks of an extent that lie in `first .. end` (blocks of the chunk).
fn range_mask(extent: u32, first: u32, end: u32) -> u16 {
    let base = extent * BLOCKS_PER_EXTENT;
    let from = first.clamp(base, base + BLOCKS_PER_EXTENT) - base;
    let to = end.clamp(base, base + BLOCKS_PER_EXTENT) - base;
    let below = |n: u32| u16::try_from((1u32 << n) - 1).expect("at most 16 bits");
    below(to) & !below(from)
}
