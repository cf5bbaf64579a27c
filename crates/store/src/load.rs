//! After an opening: the bytes of replayed blocks are read from the journal, in the order in which they lie there.
//!
//! Recovery reads no payload of batches that it knows as flushed. Nothing goes home before all of it has been loaded; a
//! guest's read of a block that has not been is answered from the journal. A block that does not match its
//! checksum, or cannot be read, is bad from then on, to be repaired.

use crate::event::{IoOp, IoResult};
use crate::overlay::What;
use crate::store::{Job, Phase, Store};
use crate::table::Px;
use proto::Payload;
use proto::record::Sum;
use std::collections::VecDeque;

/// Pages read at once.
const RUN: u64 = 256;
/// Reads in flight.
const DEPTH: usize = 2;

/// A block whose bytes are still to be read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Unread {
    /// Of the journal.
    position: u64,
    px: Px,
    block: u8,
    seq: u64,
    /// A read of several failed: this one by itself.
    alone: bool,
}

#[derive(Default)]
pub(crate) struct Loader {
    todo: VecDeque<Unread>,
    in_flight: usize,
}
impl Loader {
    pub fn is_done(&self) -> bool {
        self.todo.is_empty() && self.in_flight == 0
    }
}

impl Store {
    /// What recovery has left unread.
    pub(crate) fn list_unread(&mut self) {
        let overlay = &self.disk().overlay;
        let mut todo: Vec<Unread> = overlay
            .iter()
            .flat_map(|(px, _)| overlay.of(px).map(move |b| (px, b)))
            .filter(|(_, b)| b.what == What::Data && b.payload.is_none())
            .map(|(px, b)| Unread { position: b.position, px, block: b.block, seq: b.seq, alone: false })
            .collect();
        todo.sort_unstable();
        self.loader.todo = todo.into();
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
                let ring = |u: &Unread| self.disk().layout.ring(u.position);
                let together = next.position - first.position < RUN && ring(&next) > ring(first);
                if !together || first.alone || next.alone {
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
        self.disk_mut().journal.readers += 1;
        self.io(Job::Load(run), IoOp::Read { offset, blocks });
    }
    fn is_unread(&self, u: &Unread) -> bool {
        let found = self.disk().overlay.get(u.px, u32::from(u.block));
        found.is_some_and(|b| b.seq == u.seq && b.what == What::Data && b.payload.is_none())
    }

    pub(crate) fn load_done(&mut self, run: Vec<Unread>, result: IoResult) {
        self.loader.in_flight -= 1;
        self.disk_mut().journal.readers -= 1;
        let bytes = match result {
            IoResult::Read(bytes) => Some(bytes),
            _ if run.len() > 1 => {
                // One bad sector must not spoil its neighbours.
                for u in run.into_iter().rev() {
                    self.loader.todo.push_front(Unread { alone: true, ..u });
                }
                return;
            }
            _ => None,
        };
        let first = run.first().expect("a run has blocks").position;
        for u in run {
            if !self.is_unread(&u) {
                continue;
            }
            let at = usize::try_from(u.position - first).expect("within the run");
            let page = bytes.as_ref().map(|b| b.block(at));
            let b = self.disk_mut().overlay.find_mut(u.px, u32::from(u.block)).expect("just seen");
            match page.filter(|p| Sum::of(p) == Sum(b.sum)) {
                Some(page) => b.payload = Some(Payload::copy_of(page)),
                None => {
                    b.what = What::Bad;
                    self.flusher.bare.push_front((u.seq, u.px, u.block));
                    self.flusher.wanted = true;
                }
            }
        }
    }
}
