//! Opening a drive: superblock, records, journal, table, replay, a flush, the new superblock, a flush.
//!
//! Reads only, until everything is understood; the first write is preceded by a flush, so that what was read from
//! the drive's cache is durable before anything rests on it.

pub mod chain;
pub mod decide;
pub mod replay;

use crate::disk::page::{RECORDS_PER_PAGE, Slot, TABLE_PER_PAGE, Zone, extent_at, newest_slot, slot_at};
use crate::disk::superblock::{Superblock, newest};
use crate::event::{Effect, Failure, IoOp, IoResult, Notice, Opened};
use crate::journal::Journal;
use crate::layout::{Layout, SUPERBLOCK_PAGES};
use crate::overlay::Overlay;
use crate::pages::Pages;
use crate::records::Records;
use crate::store::{Disk, Job, Phase, Store, SuperblockWrite};
use crate::table::{Table, Use};
use chain::{Step, Walk};
use decide::{DOUBT, decide};
use proto::limits::BLOCK;
use proto::{Generation, OpenId, Payload};
use replay::Replay;

/// Pages of a zone read at once (both slots counted).
const CHUNK: u64 = 512;

#[derive(Default)]
enum Stage {
    #[default]
    Superblock,
    /// Zone pages from here on.
    Records(u64),
    /// The ring from here on, so many pages.
    Journal(u64, u64),
    /// A chunk of the journal's index.
    Index,
    Table(u64),
    /// Data of large writes that no flush covers: which one is read.
    Larges(usize),
    FirstFlush,
    Writing,
    LastFlush,
}

/// What opening has found so far.
#[derive(Default)]
pub(crate) struct Recovery {
    stage: Stage,
    superblock: Option<(u8, Superblock)>,
    slots: Vec<Slot>,
    record_heads: Vec<(u8, u64, u64)>,
    walk: Option<Walk>,
    replay: Option<Replay>,
    /// What is written when all is read.
    next: Option<Superblock>,
    replayed: u64,
    same_boot: bool,
    batches: u64,
    /// Of the last read of the journal that failed.
    errno: i32,
}

impl Recovery {
    fn layout(&self) -> Layout {
        self.superblock.as_ref().expect("read first").1.layout
    }
    fn superblock(&self) -> &Superblock {
        &self.superblock.as_ref().expect("read first").1
    }
}

impl Store {
    pub(crate) fn begin_open(&mut self) {
        let blocks = u32::try_from(2 * SUPERBLOCK_PAGES).expect("32");
        if self.params.size < 2 * SUPERBLOCK_PAGES * BLOCK as u64 {
            self.fail(Failure::NoSuperblock);
            return;
        }
        self.io(Job::Open, IoOp::Read { offset: 0, blocks });
    }

    /// An I/O of the opening has completed.
    pub(crate) fn open_io(&mut self, at: Option<u64>, result: IoResult) {
        let mut r = match std::mem::replace(&mut self.phase, Phase::Failed) {
            Phase::Opening(r) => r,
            other => {
                self.phase = other;
                return;
            }
        };
        let bytes = match result {
            IoResult::Read(bytes) => bytes,
            IoResult::Failed(errno) if !self.read_less(&mut r, errno) => {
                self.phase = Phase::Opening(r);
                self.fail(Failure::of_io(at, errno));
                return;
            }
            IoResult::Failed(_) => {
                self.phase = Phase::Opening(r);
                return;
            }
            IoResult::Written | IoResult::Flushed => Payload::empty(),
        };
        match self.open_step(&mut r, &bytes) {
            Ok(true) => self.opened(*r),
            Ok(false) => self.phase = Phase::Opening(r),
            Err(failure) => {
                self.phase = Phase::Opening(r);
                self.fail(failure);
            }
        }
    }

    /// True when everything is done.
    fn open_step(&mut self, r: &mut Recovery, bytes: &Payload) -> Result<bool, Failure> {
        match std::mem::take(&mut r.stage) {
            Stage::Superblock => {
                let (a, b) = bytes.bytes().split_at(bytes.len() / 2);
                let (slot, superblock) = newest([a, b])?;
                superblock.check_owner(self.params.cluster, self.params.node, self.params.size)?;
                r.superblock = Some((slot, superblock));
                self.read_zone(r, Stage::Records(0));
            }
            Stage::Records(from) => {
                take_records(r, from, bytes)?;
                let next = from + bytes.blocks() as u64 / 2;
                if next < r.layout().record_pages {
                    self.read_zone(r, Stage::Records(next));
                } else {
                    r.walk = Some(Walk::new(r.superblock()));
                    self.walk_on(r)?;
                }
            }
            Stage::Journal(position, _) => {
                r.walk.as_mut().expect("begun").give(position, bytes.clone());
                self.walk_on(r)?;
            }
            Stage::Index => {
                r.walk.as_mut().expect("begun").give_chunk(bytes);
                self.walk_on(r)?;
            }
            Stage::Table(from) => {
                r.replay.as_mut().expect("begun").take_table(from, bytes)?;
                let next = from + bytes.blocks() as u64 / 2;
                if next < r.layout().table_pages {
                    self.read_zone(r, Stage::Table(next));
                } else {
                    let replay = r.replay.as_mut().expect("begun");
                    if replay.pages_know() >= replay.end().1 {
                        return Err(Failure::JournalLost);
                    }
                    replay.list_larges();
                    self.read_large(r, 0)?;
                }
            }
            Stage::Larges(at) => {
                r.replay.as_mut().expect("begun").take_large(at, bytes);
                self.read_large(r, at + 1)?;
            }
            Stage::FirstFlush => {
                let next = r.next.as_ref().expect("made");
                let offset = Layout::superblock(1 - r.superblock.as_ref().expect("read").0);
                let pieces = vec![next.encode()];
                r.stage = Stage::Writing;
                self.io(Job::Open, IoOp::Write { offset, pieces });
            }
            Stage::Writing => {
                r.stage = Stage::LastFlush;
                self.io(Job::Open, IoOp::Flush);
            }
            Stage::LastFlush => return Ok(true),
        }
        Ok(false)
    }

    fn read_zone(&mut self, r: &mut Recovery, stage: Stage) {
        let l = r.layout();
        let (offset, left) = match stage {
            Stage::Records(page) => (l.record_page(page, 0), l.record_pages - page),
            Stage::Table(page) => (l.table_page(page, 0), l.table_pages - page),
            _ => return,
        };
        r.stage = stage;
        let blocks = u32::try_from((2 * left).min(CHUNK)).expect("bounded by CHUNK");
        self.io(Job::Open, IoOp::Read { offset, blocks });
    }

    fn walk_on(&mut self, r: &mut Recovery) -> Result<(), Failure> {
        match r.walk.as_mut().expect("begun").step() {
            Step::Read { position, pages } => {
                self.read_ring(r, position, pages);
                Ok(())
            }
            Step::Chunk(number) => {
                r.stage = Stage::Index;
                let layout = r.layout();
                self.io(Job::Open, IoOp::Read { offset: layout.chunk(number), blocks: layout.chunk_pages });
                Ok(())
            }
            Step::Lost => Err(Failure::JournalLost),
            Step::Unreadable(position) => {
                Err(Failure::Io { errno: r.errno, offset: r.layout().journal(position) })
            }
            Step::End => {
                let walk = r.walk.take().expect("begun");
                let upto: Vec<u64> = r.record_heads.iter().map(|h| h.2).collect();
                // A page speaks only of what was flushed: a chain that ends before that has lost something.
                if upto.iter().any(|u| *u >= walk.end().1) {
                    return Err(Failure::JournalLost);
                }
                let slots = std::mem::take(&mut r.slots);
                let superblock = r.superblock().clone();
                r.replay = Some(Replay::new(walk, superblock, slots, upto));
                self.read_zone(r, Stage::Table(0));
                Ok(())
            }
        }
    }

    fn read_ring(&mut self, r: &mut Recovery, position: u64, pages: u64) {
        r.stage = Stage::Journal(position, pages);
        let offset = r.layout().journal(position);
        let blocks = u32::try_from(pages).expect("bounded by a chunk");
        self.io(Job::Open, IoOp::Read { offset, blocks });
    }
    /// A read has failed: one of the journal is tried in smaller pieces, so that a bad sector hides no other. A page of the
    /// ring that cannot be read matches no checksum, and must not be what ends the chain; a chunk of the index that cannot
    /// is one that is not there. False if that ends the opening.
    fn read_less(&mut self, r: &mut Recovery, errno: i32) -> bool {
        match r.stage {
            Stage::Journal(position, pages) if pages > 1 => self.read_ring(r, position, pages / 2),
            Stage::Journal(position, _) => {
                r.errno = errno;
                r.walk.as_mut().expect("begun").give_unreadable(position);
                return self.walk_on(r).is_ok();
            }
            Stage::Index => {
                r.walk.as_mut().expect("begun").give_chunk(&Payload::empty());
                return self.walk_on(r).is_ok();
            }
            _ => return false,
        }
        true
    }

    fn read_large(&mut self, r: &mut Recovery, at: usize) -> Result<(), Failure> {
        let replay = r.replay.as_mut().expect("begun");
        if let Some(px) = replay.large_home(at) {
            r.stage = Stage::Larges(at);
            let offset = r.layout().data(px, 0);
            self.io(Job::Open, IoOp::Read { offset, blocks: 16 });
            return Ok(());
        }
        let mut replay = r.replay.take().expect("begun");
        replay.run()?;
        self.build(r, replay)?;
        r.stage = Stage::FirstFlush;
        self.io(Job::Open, IoOp::Flush);
        Ok(())
    }

    /// Everything is understood: memory as it will be, and the superblock that will say so.
    fn build(&mut self, r: &mut Recovery, mut replay: Replay) -> Result<(), Failure> {
        let (slot, old) = r.superblock.clone().expect("read first");
        let (position, next_seq, crc, open) = replay.end();
        r.batches = next_seq - old.tail_seq;
        r.replayed = replay.pages_read() * BLOCK as u64;
        let mut next = old.clone();
        let same_boot = old.boot == self.params.boot;
        r.same_boot = same_boot && old.trusted;
        let doubt = decide(DOUBT, [old.clean, same_boot, self.params.volatile_cache]);
        if doubt && !self.bugs().ignore_doubt {
            next.doubt_at = next_seq;
        }
        next.sequence += 1;
        next.clean = false;
        next.trusted = r.same_boot;
        next.boot = self.params.boot;
        next.open = old.open.max(open) + 1;
        next.chain_end = next_seq;
        next.flushed = next_seq - 1;
        next.dropped.clone_from(&replay.dropped);
        next.add_opening(self.params.opening);
        let mut journal = Journal::new(old.layout, old.tail, old.tail_seq, old.tail_prev);
        let index = replay.fill_journal(&mut journal, &old.layout, old.drive);
        debug_assert_eq!((journal.head, journal.next_seq, journal.crc), (position, next_seq, crc));
        let mut record_pages = Pages::new(old.layout.record_pages);
        for (page, (slot, sequence, _)) in (0..).zip(&r.record_heads) {
            record_pages.found(page, *slot, *sequence);
        }
        let overlay = Overlay::new(old.layout.extents, old.layout.journal_pages);
        let mut disk = Disk {
            layout: old.layout,
            drive: old.drive,
            superblock: old,
            slot,
            writing: Some(SuperblockWrite { new: next.clone(), stamp: None }),
            confirm: false,
            table: Table::new(0),
            table_pages: Pages::new(0),
            record_pages,
            records: Records::new(0),
            overlay,
            journal,
            index,
        };
        let bare = replay.finish(&mut disk)?;
        for (_, b) in &mut disk.records.branches {
            b.in_doubt = b.record.clear_seq < next.doubt_at;
        }
        self.flusher.bare = bare.into();
        self.disk = Some(disk);
        r.next = Some(next);
        Ok(())
    }

    /// The drive serves.
    fn opened(&mut self, r: Recovery) {
        let next = r.next.expect("written");
        let dropped = next.dropped.len() as u64;
        let openings: Vec<OpenId> = next.openings.to_vec();
        let stamp = self.stamp;
        self.flusher.opened(stamp);
        self.phase = Phase::Open;
        self.serving = r.same_boot;
        let disk = self.disk.as_mut().expect("built");
        disk.writing = None;
        disk.slot = 1 - disk.slot;
        disk.superblock = next;
        for px in 0..disk.table.len() {
            let e = disk.table.get(px);
            if e.usage == Use::Owned && !e.states.any_data() && disk.overlay.extent(px).is_none() {
                self.checkpoint.empty.push_back(px);
            }
        }
        self.checkpoint.empty.extend(disk.table.all_bits());
        // What was to be swept is not written down anywhere.
        let listed = disk.records.replicas.iter().map(|(n, _)| u32::try_from(n).expect("no more than slots"));
        let listed: Vec<u32> =
            listed.filter(|n| disk.records.branch_of(*n).record.list.index.0 > 0).collect();
        listed.into_iter().for_each(|n| self.sweep_all(n));
        let disk = self.disk();
        let replicas = disk.records.sorted().iter().flat_map(|b| disk.held(b)).collect();
        let in_doubt = disk.records.sorted().iter().filter(|b| b.in_doubt).map(|b| b.record.branch).collect();
        let opened = Opened {
            drive: disk.drive,
            capacity: u64::from(disk.layout.extents) * proto::limits::EXTENT as u64,
            openings,
            replicas,
            in_doubt,
            replayed: r.replayed,
            same_boot: r.same_boot,
        };
        if r.batches > 0 {
            self.notice(Notice::Recovered { batches: r.batches, dropped, bytes: r.replayed });
        }
        self.effect(Effect::Opened(Box::new(opened)));
        // What was replayed and needs no home write shows in the table at once: it is flushed.
        self.flusher.wanted = !self.flusher.bare.is_empty();
    }
}

fn take_records(r: &mut Recovery, from: u64, bytes: &Payload) -> Result<(), Failure> {
    let drive = r.superblock().drive;
    for (page, both) in (from..).zip(bytes.bytes().chunks_exact(2 * BLOCK)) {
        let (slot, head, body) =
            newest_slot(both, Zone::Records, drive, page).ok_or(Failure::TableLost(page))?;
        r.record_heads.push((slot, head.sequence, head.upto));
        for at in 0..RECORDS_PER_PAGE {
            r.slots.push(slot_at(body, at).ok_or(Failure::TableLost(page))?);
        }
    }
    Ok(())
}

impl Disk {
    pub(crate) fn held(&self, b: &crate::records::Branch) -> Vec<proto::control::HeldReplica> {
        let held = |n: &u32| {
            let r = &self.records.replica(*n).record;
            proto::control::HeldReplica { branch: r.branch, chunk: r.chunk, incarnation: r.incarnation }
        };
        b.replicas.values().map(held).collect()
    }
}

/// A page of the table: its entries that are not free.
pub(crate) fn table_entries(body: &[u8]) -> impl Iterator<Item = (usize, crate::disk::page::RawExtent)> + '_ {
    (0..TABLE_PER_PAGE).map(|at| (at, extent_at(body, at))).filter(|(_, e)| !e.is_free())
}
/// First generation: anything below is no generation.
pub(crate) const LEAST: Generation = Generation::FIRST;
