//! Checkpoints: flushed blocks go home, pages are written, the journal's tail moves. In the background, in rounds.
//!
//! A round takes what is flushed when it begins: its blocks go home (neighbours by one write), a flush, the pages
//! that changed, a flush, the superblock with the new tail, a flush. It begins when the journal fills, when nobody has
//! written for a moment, or when what is in it has been there for a while: the longer blocks stay, the more of them are
//! overwritten and never go home. Under pressure each step asks for its flush at once.

use crate::disk::entry::{DROP_EXTENTS, ExtentKey, drop_extents};
use crate::disk::page::{
    PageHead, RECORDS_PER_PAGE_U32, RawExtent, TABLE_PER_PAGE_U32, Zone, put_extent, put_slot, seal_page,
};
use crate::disk::superblock::Superblock;
use crate::event::{Effect, IoOp};
use crate::intake::Hold;
use crate::layout::Layout;
use crate::op::{Op, Then};
use crate::store::{Disk, Job, Phase, Store, SuperblockWrite};
use crate::table::{NONE, Px, Use, is_bit};
use crate::zeroes::Emptiness;
use proto::{Generation, Incarnation, LogIndex, PageBuf, Payload, Span, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use zerocopy::FromZeros;
use zerocopy::little_endian::U32;

/// A round begins when the oldest batch has been in the journal for so long.
const ROUND_AFTER: Span = Span::secs(30);
/// ... or when no batch has been sealed for so long.
const QUIET: Span = Span::secs(2);
/// After a round that moved nothing.
const RETRY_AFTER: Span = Span::millis(10);
/// Parts of the ring, of which a round takes one if room is wanted.
const PARTS: u64 = 8;
/// Home and page writes in flight. More would only make the journal's writes wait behind them; but more it must be when the
/// ring is nearly full, for then these wait for room.
const DEPTH: usize = 4;
const DEPTH_FULL: usize = 24;
/// Candidates looked at after each flush.
const EMPTY_LOOKS: usize = 1024;

#[derive(Default)]
enum Stage {
    #[default]
    Idle,
    Homing(Homing),
    /// Pages to be written: table, records.
    Paging(VecDeque<u32>, VecDeque<u32>),
    Super,
}

/// Flushed blocks go home, a slice of the ring at a time: so many bytes are in memory at most.
struct Homing {
    /// The batch that is listed next, and the last one of the round.
    next: u64,
    last: u64,
    /// Extents of those that have been listed, ascending.
    queue: VecDeque<Px>,
}

impl Checkpoint {
    /// A batch has been sealed.
    pub fn batch_sealed(&mut self, now: Time) {
        self.quiet_at = now + QUIET;
    }
}

#[derive(Default)]
pub(crate) struct Checkpoint {
    stage: Stage,
    /// Home and page writes in flight.
    pub(crate) in_flight: usize,
    /// Scratch of `home_run`.
    pub(crate) ready: Vec<(u8, u64, Payload)>,
    /// Extents that seemed to hold no byte.
    pub empty: VecDeque<Px>,
    /// metad's newest order to delete.
    pub deleted_upto: LogIndex,
    /// The newest replicas that metad has ordered to be deleted, whether they were here or not: a record that is asked for
    /// after that is nobody's.
    pub deleted: BTreeSet<Incarnation>,
    /// When the next round begins at the latest, if there is no pressure.
    next: Option<Time>,
    /// When it does if no batch is sealed until then.
    quiet_at: Time,
    retry: Option<Time>,
}

impl Store {
    pub(crate) fn pressed(&self) -> bool {
        self.intake.stalled || self.disk().journal.is_pressed()
    }

    fn depth(&self) -> usize {
        let journal = &self.disk().journal;
        let nearly_full = self.intake.stalled || journal.used() * 8 > journal.window() * 7;
        if nearly_full { DEPTH_FULL } else { DEPTH }
    }

    pub(crate) fn checkpoint_deadline(&self) -> Time {
        match self.checkpoint.stage {
            Stage::Idle => {
                let next = self.checkpoint.next.map(|t| t.min(self.checkpoint.quiet_at));
                self.checkpoint.retry.or(next).unwrap_or(Time::FAR)
            }
            _ => Time::FAR,
        }
    }

    /// Goes as far as it can without another completion.
    pub(crate) fn push_checkpoint(&mut self) {
        if matches!(self.phase, Phase::Closing(_)) && !self.intake.stalled {
            return;
        }
        loop {
            let went_on = match std::mem::take(&mut self.checkpoint.stage) {
                Stage::Idle => self.begin_round(),
                Stage::Homing(homing) => self.home(homing),
                Stage::Paging(table, records) => self.page(table, records),
                Stage::Super => self.end_round(),
            };
            if !went_on {
                break;
            }
        }
    }

    fn begin_round(&mut self) -> bool {
        let journal = &self.disk().journal;
        if journal.first_seq() == journal.next_seq {
            (self.checkpoint.next, self.checkpoint.retry) = (None, None);
            return false;
        }
        let (first, flushed, applied) = (journal.first_seq(), journal.flushed, journal.applied);
        let nothing_flushed = first > flushed;
        let latest = *self.checkpoint.next.get_or_insert(self.now + ROUND_AFTER);
        let next = latest.min(self.checkpoint.quiet_at);
        self.checkpoint.retry = self.checkpoint.retry.filter(|t| *t > self.now);
        let held = self.checkpoint.retry.is_some();
        if held || (!self.pressed() && next > self.now) {
            return false;
        }
        if nothing_flushed && !self.bugs().home_before_flush {
            self.flusher.wanted = true;
            self.checkpoint.retry = Some(self.now + RETRY_AFTER);
            return false;
        }
        let early = self.bugs().home_before_flush;
        let target = if early { applied } else { flushed };
        let journal = &self.disk().journal;
        // Under pressure a part of the ring at a time: whoever waits for room waits for one part, not for all of it.
        let in_parts = self.pressed() && !early;
        // Counted from the first batch, not from the tail: behind the tail may lie the end of the ring, which nobody uses.
        let start = journal.get(first).map_or(journal.tail, |b| b.position);
        let part = if in_parts { start + (journal.window() / PARTS).max(1) } else { u64::MAX };
        let taken = (first..=target).take_while(|s| journal.get(*s).is_some_and(|b| b.position < part));
        let last = taken.last().unwrap_or(first - 1);
        self.checkpoint.stage = Stage::Homing(Homing { next: first, last, queue: VecDeque::new() });
        true
    }

    // ------------------------------------------------------------------------------------------ homes

    fn home(&mut self, mut h: Homing) -> bool {
        while self.loader.is_done() {
            while self.checkpoint.in_flight < self.depth()
                && let Some(px) = h.queue.pop_front()
            {
                self.home_run(px, &mut h.queue);
            }
            if !h.queue.is_empty() || h.next > h.last {
                break;
            }
            (h.next, h.queue) = self.list_slice(h.next, h.last);
        }
        let listed = h.queue.is_empty() && h.next > h.last && self.loader.is_done();
        let unflushed = !self.flusher.written.is_empty();
        if !listed || self.checkpoint.in_flight > 0 || unflushed {
            if listed && self.checkpoint.in_flight == 0 {
                self.want_flush();
            }
            self.checkpoint.stage = Stage::Homing(h);
            return false;
        }
        self.loader.let_go();
        let disk = self.disk();
        let table = disk.table_pages.dirty_pages().into();
        let records = disk.record_pages.dirty_pages().into();
        self.checkpoint.stage = Stage::Paging(table, records);
        true
    }

    /// Asks for a flush at once under pressure; else the next one that comes will do.
    pub(crate) fn want_flush(&mut self) {
        if self.pressed() {
            self.flusher.wanted = true;
        }
    }

    // ------------------------------------------------------------------------------------------ pages

    fn page(&mut self, mut table: VecDeque<u32>, mut records: VecDeque<u32>) -> bool {
        while self.checkpoint.in_flight < self.depth()
            && let Some(page) = table.pop_front()
        {
            self.write_table_page(page);
        }
        while self.checkpoint.in_flight < self.depth()
            && let Some(page) = records.pop_front()
        {
            self.write_record_page(page);
        }
        let disk = self.disk();
        let idle = table.is_empty() && records.is_empty() && self.checkpoint.in_flight == 0;
        if !idle || disk.table_pages.is_building() || disk.record_pages.is_building() {
            if idle {
                self.want_flush();
            }
            self.checkpoint.stage = Stage::Paging(table, records);
            return false;
        }
        self.checkpoint.stage = Stage::Super;
        true
    }

    fn write_table_page(&mut self, page: u32) {
        let ahead = self.bugs().page_ahead;
        let disk = self.disk_mut();
        let Some((slot, sequence)) = disk.table_pages.begin(page) else { return };
        let upto = if ahead { disk.journal.next_seq - 1 } else { disk.journal.flushed };
        let mut buffer = PageBuf::zeroed(1);
        let per = TABLE_PER_PAGE_U32;
        for px in page * per..((page + 1) * per).min(disk.table.len()) {
            let usage = disk.table.get(px).usage;
            let shown = disk.table.get(px).in_page() && !(ahead && usage == Use::Freed);
            if shown || (ahead && usage == Use::Fresh) {
                put_extent(&mut buffer, (px - page * per) as usize, &disk.raw_extent(px));
            }
        }
        let head = PageHead { sequence, upto };
        seal_page(&mut buffer, Zone::Table, disk.drive, u64::from(page), head);
        let offset = disk.layout.table_page(u64::from(page), slot);
        self.checkpoint.in_flight += 1;
        self.io(Job::TablePage(page), IoOp::Write { offset, pieces: vec![buffer.freeze()] });
    }

    fn write_record_page(&mut self, page: u32) {
        let disk = self.disk_mut();
        let Some((slot, sequence)) = disk.record_pages.begin(page) else { return };
        let mut buffer = PageBuf::zeroed(1);
        let per = RECORDS_PER_PAGE_U32;
        for number in page * per..((page + 1) * per).min(disk.records.slots()) {
            put_slot(&mut buffer, (number - page * per) as usize, &disk.records.stored(number));
        }
        let head = PageHead { sequence, upto: disk.journal.flushed };
        seal_page(&mut buffer, Zone::Records, disk.drive, u64::from(page), head);
        let offset = disk.layout.record_page(u64::from(page), slot);
        self.checkpoint.in_flight += 1;
        self.io(Job::RecordPage(page), IoOp::Write { offset, pieces: vec![buffer.freeze()] });
    }

    pub(crate) fn page_done(&mut self, records: bool, page: u32) {
        self.checkpoint.in_flight -= 1;
        let stamp = self.stamp;
        let disk = self.disk_mut();
        let pages = if records { &mut disk.record_pages } else { &mut disk.table_pages };
        pages.completed(page, stamp);
    }

    // ------------------------------------------------------------------------------------------ tail

    /// The superblock with the new tail is written; the round is over once that is flushed.
    fn end_round(&mut self) -> bool {
        let disk = self.disk();
        if disk.writing.is_some() {
            // A flush that begins before the write has completed would not cover it.
            if disk.writing.as_ref().is_some_and(|w| w.stamp.is_some()) {
                self.want_flush();
            }
            self.checkpoint.stage = Stage::Super;
            return false;
        }
        self.checkpoint.next = None;
        if !self.move_tail() {
            self.checkpoint.retry = Some(self.now + RETRY_AFTER);
            self.want_flush();
        }
        false
    }

    fn move_tail(&mut self) -> bool {
        let disk = self.disk();
        let pinned = disk.table_pages.pinned().min(disk.record_pages.pinned());
        let seq = disk.journal.keep_from(pinned);
        if seq <= disk.superblock.tail_seq {
            return false;
        }
        let (tail, prev) = disk.journal.tail_at(seq, disk.superblock.tail_prev);
        let mut new = disk.superblock.clone();
        (new.tail, new.tail_seq, new.tail_prev) = (tail, seq, prev);
        new.tail_chunk = disk.index.chunk_of(seq);
        new.dropped.retain(|d| d.seq >= seq);
        self.write_superblock(new);
        true
    }

    /// Writes the next superblock into the slot that is not the newest flushed one.
    pub(crate) fn write_superblock(&mut self, mut new: Superblock) {
        let disk = self.disk_mut();
        assert!(disk.writing.is_none(), "one superblock at a time");
        new.sequence = disk.superblock.sequence + 1;
        new.flushed = disk.journal.flushed.max(disk.superblock.flushed);
        if std::mem::take(&mut disk.confirm) {
            new.trusted = true;
            new.confirmed = *new.openings.last().expect("this opening is there");
        }
        let offset = Layout::superblock(1 - disk.slot);
        let pieces = vec![new.encode()];
        disk.writing = Some(SuperblockWrite { new, stamp: None });
        self.io(Job::Superblock, IoOp::Write { offset, pieces });
    }
    pub(crate) fn superblock_done(&mut self) {
        let stamp = self.stamp;
        self.disk_mut().writing.as_mut().expect("it was in flight").stamp = Some(stamp);
        self.want_flush();
        if matches!(self.phase, Phase::Closing(_)) {
            self.flusher.wanted = true;
        }
    }
    pub(crate) fn superblock_flushed(&mut self, mark: u64) {
        let disk = self.disk_mut();
        if disk.writing.as_ref().is_none_or(|w| w.stamp.is_none_or(|s| s > mark)) {
            return;
        }
        let new = disk.writing.take().expect("just seen").new;
        disk.slot = 1 - disk.slot;
        if new.tail_seq > disk.superblock.tail_seq {
            disk.journal.pass(new.tail_seq, new.tail);
            disk.index.pass(new.tail_chunk, new.tail_seq);
            self.intake.turn_ended |= self.intake.has_waiting();
            self.intake.stalled = false;
        }
        self.disk_mut().superblock = new;
    }

    /// metad's confirmation is written down by itself if no checkpoint takes it along soon.
    pub(crate) fn push_superblock(&mut self) {
        let disk = self.disk();
        if disk.confirm && disk.writing.is_none() && matches!(self.phase, Phase::Open) {
            let new = disk.superblock.clone();
            self.write_superblock(new);
        }
    }
    pub(crate) fn confirmed(&mut self) {
        if !matches!(self.phase, Phase::Open) || std::mem::replace(&mut self.serving, true) {
            return;
        }
        self.disk_mut().confirm = true;
    }

    // ------------------------------------------------------------------------------------------ closing

    pub(crate) fn close(&mut self) {
        match self.phase {
            Phase::Open => self.phase = Phase::Closing(false),
            Phase::Opening(_) => {
                self.phase = Phase::Closed;
                self.effect(Effect::Closed);
            }
            _ => {}
        }
    }
    /// Everything in a batch, everything flushed, then the clean mark, flushed.
    pub(crate) fn push_close(&mut self) {
        let Phase::Closing(marked) = self.phase else { return };
        if self.intake.has_waiting() && self.can_seal() {
            self.seal();
        }
        let quiet = self.intake.is_empty() && self.jobs.is_empty();
        let disk = self.disk();
        if !quiet || disk.writing.is_some() {
            return;
        }
        if !marked {
            if !self.all_flushed() {
                self.flusher.wanted = true;
                self.push_flush();
            }
            if !self.all_flushed() {
                return;
            }
            if !self.jobs.is_empty() {
                return;
            }
            self.phase = Phase::Closing(true);
            let mut new = self.disk().superblock.clone();
            new.clean = true;
            self.write_superblock(new);
            return;
        }
        if self.disk().superblock.clean {
            self.phase = Phase::Closed;
            self.effect(Effect::Closed);
        }
    }

    fn all_flushed(&self) -> bool {
        let journal = &self.disk().journal;
        journal.flushed >= journal.applied && self.stamp <= self.flusher.mark
    }

    // ------------------------------------------------------------------------------------------ empty extents

    /// Extents that hold only zeroes are freed, once nobody needs to know of the zeroes any more, or once a bit says so.
    pub(crate) fn drop_zero_extents(&mut self) {
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        let hiding = self.bugs().drop_hiding_zero;
        let mut found: BTreeMap<(u32, Generation, u32, Emptiness), Vec<u32>> = BTreeMap::new();
        let mut bits: BTreeMap<u32, Vec<(Generation, u32)>> = BTreeMap::new();
        for _ in 0..self.checkpoint.empty.len().min(EMPTY_LOOKS) {
            let Some(px) = self.checkpoint.empty.pop_front() else { break };
            let verdict = self.disk().emptiness(px, &self.intake.users, hiding);
            match verdict {
                Emptiness::Droppable | Emptiness::Convertible => {
                    let e = self.disk().table.get(px);
                    let (extent, g) = (u32::from(e.extent), e.generation);
                    if is_bit(px) {
                        bits.entry(e.replica).or_default().push((g, extent));
                    } else {
                        let key = (e.replica, g, extent / DROP_EXTENTS, verdict);
                        found.entry(key).or_default().push(extent);
                    }
                }
                Emptiness::NotYet => self.checkpoint.empty.push_back(px),
                Emptiness::Not => {}
            }
        }
        for ((replica, generation, _, verdict), mut extents) in found {
            extents.sort_unstable();
            extents.dedup();
            let r = &self.disk().records.replica(replica).record;
            let (branch, chunk, incarnation) = (r.branch, r.chunk, r.incarnation);
            let key = ExtentKey { branch, chunk, incarnation, extent: extents[0], generation };
            let done = match verdict {
                Emptiness::Convertible => self.convert(&key, replica, &extents),
                _ => self.push_drop(&key, replica, &extents, Then::Nothing),
            };
            if !done {
                // A large write is under way there; the next look will find what is still empty.
                let disk = self.disk();
                let homes = extents.iter().filter_map(|e| disk.find(replica, *e, generation));
                let homes: Vec<Px> = homes.collect();
                self.checkpoint.empty.extend(homes);
            }
        }
        for (replica, found) in bits {
            let disk = self.disk();
            if disk.records.replica(replica).bits_pending > 0 {
                // A home has just given way to one of them: judged before that, it may be all that says so now.
                let again: Vec<Px> =
                    found.iter().filter_map(|(g, extent)| disk.find_bit(replica, *extent, *g)).collect();
                self.checkpoint.empty.extend(again);
            } else {
                self.clear_unseen(replica, &found);
            }
        }
    }
    /// One entry that frees some extents of one generation, of which no two are further apart than it can name. False:
    /// something is under way there.
    pub(crate) fn push_drop(&mut self, key: &ExtentKey, replica: u32, extents: &[u32], then: Then) -> bool {
        let first = *extents.iter().min().expect("not empty");
        let end = extents.iter().max().expect("not empty") + 1;
        let want = Hold { replica, first, end, id: 0, drops: Some(key.generation) };
        if self.intake.conflicts(&want, usize::MAX) {
            return false;
        }
        let mut bits = [0u32; 16];
        for at in extents.iter().map(|e| e - first) {
            bits[(at / 32) as usize] |= 1 << (at % 32);
        }
        let hold = self.intake.hold_as(want);
        let period = self.intake.enter();
        self.intake.waiting.push_back(Op {
            raw: drop_extents(&ExtentKey { extent: first, ..*key }, &bits),
            payload: None,
            slot: None,
            bits: None,
            replica,
            px: NONE,
            hold,
            period,
            source: crate::event::Source(0),
            then,
        });
        true
    }
}

impl Disk {
    /// The extent's entry as it stands on the drive.
    pub(crate) fn raw_extent(&self, px: Px) -> RawExtent {
        let e = self.table.get(px);
        let r = &self.records.replica(e.replica).record;
        let mut raw = RawExtent::new_zeroed();
        raw.branch = r.branch.0.into();
        raw.incarnation = r.incarnation.0.into();
        raw.chunk = r.chunk.0.into();
        raw.extent = U32::new(u32::from(e.extent));
        raw.generation = e.generation.0.into();
        let version = e.version();
        raw.epoch = version.epoch.0.into();
        raw.seq = version.seq.into();
        raw.states = e.states.0.into();
        raw.sums = e.sums.map(U32::new);
        raw
    }
}
