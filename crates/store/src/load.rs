//! Blocks that go home: their bytes are read from the journal, in large pieces, in the order in which they lie there.
//!
//! What was read stays until its slice of the ring is home. A block that does not match its checksum, or cannot be read, is
//! bad from then on, to be repaired.

use crate::event::{Failure, IoOp, IoResult, Notice};
use crate::overlay::{Way, What};
use crate::store::{Job, Phase, Store};
use crate::table::Px;
use proto::Payload;
use proto::limits::BLOCKS_PER_EXTENT;
use proto::message::BlockState;
use proto::record::Sum;
use std::collections::{BTreeMap, VecDeque};

/// Pages read at once.
const RUN: u64 = 256;
/// Reads in flight.
const DEPTH: usize = 2;
/// A block that the drive does not read is tried again so often.
const TRIES: u8 = 3;
/// What a drive says of a sector that it cannot read: EIO, ENODATA, EILSEQ, EREMOTEIO. Anything else says nothing of the block.
pub(crate) const MEDIA_ERRORS: [i32; 4] = [5, 61, 84, 121];

/// A block whose bytes are still to be read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Unread {
    /// Of the journal.
    position: u64,
    px: Px,
    block: u8,
    seq: u64,
    /// Reads of it that have failed: after the first one it is read by itself.
    failed: u8,
}
impl Unread {
    fn alone(&self) -> bool {
        self.failed > 0
    }
}

#[derive(Default)]
pub(crate) struct Loader {
    todo: VecDeque<Unread>,
    in_flight: usize,
    /// What was read: position of its first page, and the bytes.
    loaded: BTreeMap<u64, Payload>,
}
impl Loader {
    /// The page at a position of the ring, if it was read.
    pub fn bytes(&self, position: u64) -> Option<Payload> {
        let (first, run) = self.loaded.range(..=position).next_back()?;
        let at = usize::try_from(position - first).ok()?;
        (at < run.blocks()).then(|| run.slice(at, 1))
    }
    /// All that was read has gone home, or will be read again.
    pub fn let_go(&mut self) {
        self.loaded.clear();
    }
    pub fn is_done(&self) -> bool {
        self.todo.is_empty() && self.in_flight == 0
    }
    /// Two entries of one batch may be of one extent: each block is read once.
    fn sort(&mut self) {
        let mut todo: Vec<Unread> = std::mem::take(&mut self.todo).into();
        todo.sort_unstable();
        todo.dedup();
        self.todo = todo.into();
    }
}

impl Store {
    /// What a batch still holds: its extents, and their blocks.
    fn list_batch(&mut self, seq: u64, homes: &mut Vec<Px>) {
        let disk = self.disk.as_ref().expect("opened");
        let Some(batch) = disk.journal.get(seq).filter(|b| b.live > 0) else { return };
        homes.extend(&batch.homes);
        for px in &batch.homes {
            let held = disk.overlay.of(*px).filter(|b| b.seq == seq && b.what == What::Data);
            for b in held.filter(|b| b.way == Way::Pending) {
                let unread = Unread { position: b.position, px: *px, block: b.block, seq, failed: 0 };
                self.loader.todo.push_back(unread);
            }
        }
    }

    /// The next batches that go home, from `next` to at most `last`: their extents, ascending. Their bytes
    /// are read, in the order in which they lie in the ring. Gives the batch that comes after them.
    pub(crate) fn list_slice(&mut self, next: u64, last: u64) -> (u64, VecDeque<Px>) {
        assert!(self.loader.is_done(), "one slice at a time");
        let disk = self.disk();
        let begin = disk.journal.get(next).expect("the ring holds what is not home").position;
        let end = begin + disk.layout.slice();
        let upto =
            (next..=last).take_while(|s| disk.journal.get(*s).is_some_and(|b| b.position < end)).last();
        let upto = upto.unwrap_or(last);
        let mut homes = Vec::new();
        for seq in next..=upto {
            self.list_batch(seq, &mut homes);
        }
        homes.sort_unstable();
        homes.dedup();
        self.loader.sort();
        self.loader.let_go();
        self.push_load();
        (upto + 1, homes.into())
    }

    pub(crate) fn push_load(&mut self) {
        if matches!(self.phase, Phase::Closing(_)) && !self.intake.stalled {
            return;
        }
        while self.loader.in_flight < DEPTH && !self.loader.todo.is_empty() {
            self.load_run();
        }
    }

    /// One read for neighbours in the ring; what has been overwritten meanwhile is left out.
    fn load_run(&mut self) {
        let mut run: Vec<Unread> = Vec::new();
        while let Some(next) = self.loader.todo.front().copied() {
            if !self.is_unread(&next) {
                self.loader.todo.pop_front();
                continue;
            }
            if let Some(first) = run.first() {
                // Those that are read alone stand before all others, but in no order among themselves.
                if first.alone() || next.alone() {
                    break;
                }
                let ring = |u: &Unread| self.disk().layout.ring(u.position);
                if next.position - first.position >= RUN || ring(&next) <= ring(first) {
                    break;
                }
            }
            self.loader.todo.pop_front();
            run.push(next);
        }
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
        let blocks = u32::try_from(last.position - first.position + 1).expect("at most a run");
        let offset = self.disk().layout.journal(first.position);
        self.loader.in_flight += 1;
        self.io(Job::Load(run), IoOp::Read { offset, blocks });
    }
    fn is_unread(&self, u: &Unread) -> bool {
        let found = self.disk().overlay.get(u.px, u32::from(u.block));
        found.is_some_and(|b| b.seq == u.seq && b.what == What::Data)
    }

    pub(crate) fn load_done(&mut self, run: Vec<Unread>, at: Option<u64>, result: IoResult) {
        self.loader.in_flight -= 1;
        let (first, last) = (run.first().expect("a run has blocks").position, run[run.len() - 1].position);
        let bytes = match result {
            IoResult::Read(bytes) if bytes.blocks() as u64 > last - first => bytes,
            // Not the medium's fault: what is well on it must not be given up for that.
            IoResult::Failed(errno) if !MEDIA_ERRORS.contains(&errno) => {
                return self.fail(Failure::of_io(at, errno));
            }
            _ => return self.load_failed(run),
        };
        for u in run {
            if !self.is_unread(&u) {
                continue;
            }
            let at = usize::try_from(u.position - first).expect("within the run");
            let b = self.disk().overlay.get(u.px, u32::from(u.block)).expect("just seen");
            if Sum::of(bytes.block(at)) != Sum(b.sum) {
                self.give_up(&u);
            }
        }
        self.loader.loaded.insert(first, bytes);
    }

    /// One bad sector must not spoil its neighbours, nor one failure a block.
    fn load_failed(&mut self, run: Vec<Unread>) {
        for u in run.into_iter().rev() {
            if u.failed < TRIES {
                self.loader.todo.push_front(Unread { failed: u.failed + 1, ..u });
            } else if self.is_unread(&u) {
                self.give_up(&u);
            }
        }
    }

    /// The journal has not what it should have: the block is bad until it is repaired or overwritten.
    fn give_up(&mut self, u: &Unread) {
        let disk = self.disk_mut();
        disk.overlay.find_mut(u.px, u32::from(u.block)).expect("just seen").what = What::Bad;
        let e = disk.table.get(u.px);
        let r = &disk.records.replica(e.replica).record;
        let block = u32::from(e.extent) * BLOCKS_PER_EXTENT + u32::from(u.block);
        let notice = Notice::BadBlock { branch: r.branch, chunk: r.chunk, block, state: BlockState::Bad };
        self.notice(notice);
        self.flusher.bare.push_front((u.seq, u.px, u.block));
        self.flusher.wanted = true;
    }
}
