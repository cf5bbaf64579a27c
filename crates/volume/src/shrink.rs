//! Shrink (6): what lies beyond a volume's new end reads as zeroes on every in-sync replica, flushed; then Raft sets the size.
//!
//! Done by a maintenance session, for no guest has the volume while the job runs. It goes from the old end down to the new
//! one, section by section: the branch says what it has there. Without `discard` the first thing that is found, which is
//! the last that is written, ends the job, and nothing has changed. With it zeroes are written over what is found, as a
//! guest's are: under the session's versions, in the generation of the head. So a snapshot keeps what it has, and a replica
//! that comes back later is made equal. Then the section is looked at once more.
//! Nothing of this must last: a successor looks again, and zeroes what is left.

use crate::geometry::{PieceKind, Splitter};
use crate::ops::{Op, OpKind, Yield};
use crate::request::GuestError;
use crate::session::{Asked, Phase, Session, What};
use proto::control::{JobStatus, JobTrouble, MetaRequest};
use proto::limits::{BLOCK, BLOCKS_PER_EXTENT};
use proto::message::{BlockState, Request, Run, View};
use proto::{BlockRange, ChunkIndex, JobId, Span, Time};

/// Bytes of the map asked for at a time: no more than the smallest chunk, and sections do not span chunks.
const SECTION: u64 = 16 << 20;
const _: () = assert!(SECTION <= 1 << proto::limits::CHUNK_SHIFT_MIN);
/// After a section that could not be zeroed.
const AGAIN: Span = Span::secs(1);
/// After an answer that did not come.
const ASK_AGAIN: Span = Span::millis(50);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// At what is written below `at`.
    Looking,
    /// Every required drive, up to this write.
    Flushing(u64),
    /// metad: all reads as zeroes; or, if nothing is to be discarded, this is the last byte that is written.
    Ending(Option<u64>),
}

#[derive(Debug)]
pub(crate) struct Shrink {
    job: JobId,
    /// The old end and the new one, bytes.
    from: u64,
    to: u64,
    discard: bool,
    step: Step,
    /// From here to the old end everything reads as zeroes.
    at: u64,
    looking: bool,
    /// Writes of zeroes under way, and whether one could not be done.
    zeroes: usize,
    failed: bool,
    asked: bool,
    again: Time,
    trouble: Option<JobTrouble>,
}

impl Shrink {
    pub fn new(job: JobId, from: u64, to: u64, discard: bool) -> Shrink {
        Shrink {
            job,
            from,
            to,
            discard,
            step: Step::Looking,
            at: from,
            looking: false,
            zeroes: 0,
            failed: false,
            asked: false,
            again: Time::ZERO,
            trouble: None,
        }
    }
    pub fn job(&self) -> JobId {
        self.job
    }
    pub fn is_busy(&self) -> bool {
        self.zeroes > 0
    }
    pub fn flush_upto(&self) -> Option<u64> {
        if let Step::Flushing(upto) = self.step { Some(upto) } else { None }
    }
    pub fn status(&self) -> JobStatus {
        let (done, total) = (self.from - self.at, self.from - self.to);
        JobStatus { job: self.job, done, total, trouble: self.trouble }
    }
    /// Where the section begins that ends at `at`.
    fn section(&self) -> u64 {
        ((self.at - 1) / SECTION * SECTION).max(self.to)
    }
}

impl Session {
    pub(crate) fn push_shrink(&mut self) {
        let Some(s) = &mut self.shrink else { return };
        // The last growth may not have come here yet.
        let ready = self.phase == Phase::Serving && self.next_job.is_none() && self.geometry.size == s.from;
        if !ready || self.now < s.again {
            return;
        }
        let step = s.step;
        match step {
            Step::Looking if s.looking || s.zeroes > 0 => {}
            Step::Looking if s.failed => {
                s.failed = false;
                s.again = self.now + AGAIN;
            }
            Step::Looking if s.at > s.to => self.look_for_written(),
            Step::Looking => {
                s.step = Step::Flushing(self.seq);
                self.flush_dirty = true;
                self.dirty = true;
            }
            Step::Flushing(upto) if self.flushed_everywhere(upto) => {
                self.shrink.as_mut().expect("just seen").step = Step::Ending(None);
                self.dirty = true;
            }
            Step::Flushing(_) => self.flush_dirty = true,
            Step::Ending(written) => self.end_shrink(written),
        }
    }

    /// Asks the branch what it has in the next section.
    fn look_for_written(&mut self) {
        let s = self.shrink.as_ref().expect("only its steps lead here");
        let (start, end) = (s.section(), s.at);
        let (chunk, first) = self.geometry.locate(start);
        let (_, last) = self.geometry.locate(end - 1);
        let range = BlockRange::new(first, last - first + 1);
        let Some(slot) = self.readable(chunk.0, 0) else { return };
        self.shrink.as_mut().expect("just seen").looking = true;
        let drive = self.chunks[chunk.0 as usize].slots[slot].drive;
        let token = self.ask(drive, What::LookForWritten { chunk: chunk.0, range });
        self.send_slot(chunk.0, slot, token, Request::Map { view: View::Head, range });
    }

    /// `None`: there is no answer.
    pub(crate) fn written_found(&mut self, chunk: u32, range: BlockRange, runs: Option<&[Run]>) {
        self.dirty = true;
        let now = self.now;
        let asked = (ChunkIndex(chunk), range.first);
        let geometry = self.geometry;
        // The job may be another one by now: then nothing is looked for, or something else.
        let Some(s) = self.shrink.as_mut().filter(|s| s.looking) else { return };
        if geometry.locate(s.section()) != asked {
            return;
        }
        s.looking = false;
        let whole =
            |runs: &&[Run]| runs.iter().map(|r| u64::from(r.count)).sum::<u64>() == u64::from(range.count);
        let Some(runs) = runs.filter(whole) else {
            s.again = now + ASK_AGAIN;
            return;
        };
        let written = written(range, runs);
        match written.last() {
            None => (s.at, s.trouble) = (s.section(), None),
            Some(last) if !s.discard => {
                s.step = Step::Ending(Some(geometry.offset(ChunkIndex(chunk), last.end()) - 1));
            }
            Some(_) => self.zero_beyond(chunk, range, &written),
        }
    }

    /// Zeroes the extents that hold any of this, as far as they lie in what was looked at: then they take no space.
    fn zero_beyond(&mut self, chunk: u32, within: BlockRange, written: &[BlockRange]) {
        let mut ranges: Vec<BlockRange> = vec![];
        for w in written {
            let first = (w.extent() * BLOCKS_PER_EXTENT).max(within.first);
            let end = (((w.end() - 1) / BLOCKS_PER_EXTENT + 1) * BLOCKS_PER_EXTENT).min(within.end());
            match ranges.last_mut() {
                Some(l) if l.end() >= first => l.count = end - l.first,
                _ => ranges.push(BlockRange::new(first, end - first)),
            }
        }
        let mut pieces = vec![];
        for r in ranges {
            let start = self.geometry.offset(ChunkIndex(chunk), r.first);
            let mut splitter = Splitter::new(PieceKind::Zero, start, u64::from(r.count) * BLOCK as u64);
            pieces.extend(std::iter::from_fn(|| splitter.next(self.geometry)));
        }
        self.shrink.as_mut().expect("just seen").zeroes = pieces.len();
        for piece in pieces {
            let mut op = Op::new(None, 0, piece, OpKind::Zero);
            op.beyond = true;
            let op = self.ops.insert(op);
            self.submit(op);
        }
    }

    /// A write of zeroes has ended.
    pub(crate) fn zeroed_beyond(&mut self, result: &Result<Yield, GuestError>) {
        let s = self.shrink.as_mut().expect("kept while any is under way");
        s.zeroes -= 1;
        s.failed |= result.is_err();
        if matches!(result, Err(GuestError::NoSpace)) {
            s.trouble = Some(JobTrouble::NoSpace);
        }
        self.dirty = true;
    }

    /// It is called off: what is not sent never is.
    pub(crate) fn withdraw_zeroes(&mut self) {
        let mut ended = vec![];
        let ops = &self.ops;
        self.parked.retain(|_, list| {
            ended.extend(list.extract_if(.., |id| ops[*id].beyond));
            !list.is_empty()
        });
        for id in ended {
            self.end_op(id, Err(GuestError::Withdrawn));
        }
    }

    fn end_shrink(&mut self, written: Option<u64>) {
        let (branch, epoch) = (self.branch, self.epoch);
        let s = self.shrink.as_mut().expect("only its steps lead here");
        if s.asked {
            return;
        }
        s.asked = true;
        let request = MetaRequest::Shrunk { branch, epoch, job: s.job, written };
        self.ask_metad(Asked::Shrunk, request);
    }

    /// metad has answered, or never will; what it said of the job is taken.
    pub(crate) fn shrunk_answered(&mut self) {
        let now = self.now;
        if let Some(s) = &mut self.shrink {
            (s.asked, s.again) = (false, now + ASK_AGAIN);
        }
        self.dirty = true;
    }
}

/// Where something is that does not read as zeroes.
fn written(range: BlockRange, runs: &[Run]) -> Vec<BlockRange> {
    let mut found = vec![];
    let mut first = range.first;
    for run in runs {
        let is = matches!(run.state, BlockState::Data | BlockState::Bad) && run.count > 0;
        if is {
            crate::reads::coalesce(&mut found, BlockRange::new(first, run.count));
        }
        first += run.count;
    }
    found
}
