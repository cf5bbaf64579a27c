//! Flushes of the drive: who asked, what they cover, and what becomes possible when one is done.
//!
//! A flush covers what completed before it began, and never more. One is in flight at a time.

use crate::event::{IoOp, Source};
use crate::op::Answer;
use crate::overlay::{Way, What};
use crate::store::{Job, Phase, Store};
use crate::table::Px;
use proto::limits::{SELF_FLUSH_AFTER, SELF_FLUSH_BYTES};
use proto::message::Reply;
use proto::{BranchId, Time};
use std::collections::VecDeque;

/// A session's flush that waits.
struct Asked {
    source: Source,
    token: u64,
    branch: BranchId,
    /// All operations of this period and before must be acknowledged first.
    period: u64,
}

struct InFlight {
    mark: u64,
    /// Batches up to here had taken effect when it began.
    upto: u64,
    answers: Vec<Asked>,
}

#[derive(Default)]
pub(crate) struct Flusher {
    /// Number of the flush; rises.
    number: u64,
    asked: VecDeque<Asked>,
    in_flight: Option<InFlight>,
    /// Somebody inside waits for a flush.
    pub wanted: bool,
    /// Everything with a stamp up to here is flushed.
    pub mark: u64,
    /// Since when something may be unflushed, and how many bytes of journal.
    since: Option<Time>,
    pub bytes: u64,
    /// Answers owed when a batch is flushed, in the order of batches.
    pub owed: VecDeque<(u64, Answer)>,
    /// Blocks whose home write has completed: stamp, extent, block, batch.
    pub written: Vec<(u64, Px, u8, u64)>,
    /// Blocks without bytes that the table is to show, in the order of batches.
    pub bare: VecDeque<(u64, Px, u8)>,
}

impl Flusher {
    pub fn write_begins(&mut self, now: Time) {
        self.since.get_or_insert(now);
    }
    pub fn deadline(&self) -> Time {
        match (&self.in_flight, self.since) {
            (None, Some(since)) => since + SELF_FLUSH_AFTER,
            _ => Time::FAR,
        }
    }
    /// Opening has flushed everything.
    pub fn opened(&mut self, stamp: u64) {
        self.mark = stamp;
        self.since = None;
    }
    pub fn source_closed(&mut self, source: Source) {
        self.asked.retain(|a| a.source != source);
    }
}

impl Store {
    pub(crate) fn ask_flush(&mut self, source: Source, token: u64, branch: BranchId) {
        let period = self.intake.close_period();
        self.flusher.asked.push_back(Asked { source, token, branch, period });
    }

    /// Begins a flush if somebody waits for one that would do.
    pub(crate) fn push_flush(&mut self) {
        if !matches!(self.phase, Phase::Open | Phase::Closing(_)) || self.flusher.in_flight.is_some() {
            return;
        }
        let done = self.intake.periods_done();
        let asked = self.flusher.asked.front().is_some_and(|a| a.period < done);
        let applied = self.disk().journal.applied;
        let owed = self.flusher.owed.front().is_some_and(|o| o.0 <= applied);
        let due = self.flusher.bytes >= SELF_FLUSH_BYTES || self.flusher.deadline() <= self.now;
        if asked || owed || due || self.flusher.wanted {
            self.begin_flush(done);
        }
    }

    fn begin_flush(&mut self, periods_done: u64) {
        let f = &mut self.flusher;
        f.number += 1;
        f.wanted = false;
        let mut answers = Vec::new();
        while let Some(a) = f.asked.pop_front_if(|a| a.period < periods_done) {
            answers.push(a);
        }
        // What is in flight now is not covered: the clock starts anew for it.
        f.since =
            self.jobs.values().any(|(j, _)| !matches!(j, Job::Read(..) | Job::Load(..))).then_some(self.now);
        f.bytes = 0;
        let upto = self.disk.as_ref().expect("opened").journal.applied;
        f.in_flight = Some(InFlight { mark: self.stamp, upto, answers });
        let (drive, flush) = (self.drive(), self.flusher.number);
        self.broadcast(Reply::FlushBegun { drive, flush });
        if self.params.volatile_cache {
            self.io(Job::Flush, IoOp::Flush);
        } else {
            self.flush_done();
        }
    }

    pub(crate) fn flush_done(&mut self) {
        let done = self.flusher.in_flight.take().expect("a flush was in flight");
        self.flusher.mark = done.mark;
        self.intake.stalled = false;
        let (drive, flush) = (self.drive(), self.flusher.number);
        self.broadcast(Reply::FlushDone { drive, flush });
        for a in done.answers {
            self.reply(a.source, a.token, a.branch, Reply::Flushed);
        }
        self.superblock_flushed(done.mark);
        let disk = self.disk_mut();
        disk.table_pages.flushed(done.mark);
        disk.record_pages.flushed(done.mark);
        disk.journal.flush_to(done.upto);
        self.index_flushed(done.mark);
        let disk = self.disk_mut();
        let flushed = disk.journal.flushed;
        let crate::store::Disk { table, table_pages, records, record_pages, .. } = disk;
        table.settle(flushed, |px, seq| table_pages.touch(crate::disk::page::table_page_of(px), seq));
        records.settle(flushed, |slot, seq| record_pages.touch(crate::store::Disk::record_page(slot), seq));
        self.commit_blocks(done.mark, flushed);
        self.settle_marks(flushed);
        while let Some((_, answer)) = self.flusher.owed.pop_front_if(|o| o.0 <= flushed) {
            self.answer(answer);
        }
        self.drop_zero_extents();
    }

    /// What is home and flushed leaves the overlay; the table shows it from now on.
    fn commit_blocks(&mut self, mark: u64, flushed: u64) {
        let written = std::mem::take(&mut self.flusher.written);
        let disk = self.disk.as_mut().expect("opened");
        let mut later = Vec::new();
        for (stamp, px, block, seq) in written {
            if stamp > mark {
                later.push((stamp, px, block, seq));
            } else if disk
                .overlay
                .get(px, u32::from(block))
                .is_some_and(|b| b.seq == seq && b.way == Way::Written(stamp))
            {
                disk.commit(px, u32::from(block));
            }
        }
        while let Some((seq, px, block)) = self.flusher.bare.pop_front_if(|b| b.0 <= flushed) {
            let found = disk.overlay.get(px, u32::from(block));
            if found.is_some_and(|b| b.seq == seq && b.what != What::Data) {
                disk.commit(px, u32::from(block));
                if disk.overlay.extent(px).is_none() && !disk.table.get(px).states.any_data() {
                    self.checkpoint.empty.push_back(px);
                }
            }
        }
        self.flusher.written = later;
    }

    fn settle_marks(&mut self, flushed: u64) {
        while let Some((_, branch, durable)) = self.marks_stored.pop_front_if(|m| m.0 <= flushed) {
            if let Some(b) = self.disk_mut().records.branch_mut(branch) {
                b.stored_durable = b.stored_durable.max(durable);
            }
        }
    }
}

impl crate::store::Disk {
    /// A block moves from the overlay into the table.
    fn commit(&mut self, px: Px, block: u32) {
        let (b, last) = self.overlay.remove(px, block);
        let e = self.table.get_mut(px);
        let presence = match b.what {
            What::Data | What::Bad => crate::disk::page::Presence::Data,
            What::Zero => crate::disk::page::Presence::Zero,
            What::Absent => crate::disk::page::Presence::Absent,
        };
        e.states.set(block, presence);
        e.sums[block as usize] = b.sum;
        let version = e.version().max(b.version);
        e.set_version(last.unwrap_or(version));
        self.journal.block_out(b.seq);
        self.touch_extent(px, b.seq);
    }
}
