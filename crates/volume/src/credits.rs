//! Space (section 4): a write that may need a new extent carries a credit of each drive; without credits the
//! session asks about that very range, and answers ENOSPC before anything is sent. Zeroes carry none: where something may
//! lie beneath them (a snapshot, a parent) each is asked for; the drive keeps what it takes until it comes.

use crate::members::{Mask, bit, slots};
use crate::ops::Yield;
use crate::request::GuestError;
use crate::session::{Session, What};
use proto::message::{Probe, Request};
use proto::{Generation, Span};

/// Credits asked for at a time: twice as many as the last time if those were spent so soon, half as many if they
/// lasted. (In a fresh generation every write takes a new extent.)
const CREDITS_MIN: u32 = 256;
const CREDITS_MAX: u32 = 4096;
const SPENT_SOON: Span = Span::millis(50);
const LASTED: Span = Span::secs(2);
/// A drive that had no space is not asked for stock again before this.
const FULL_FOR: Span = Span::secs(1);

impl Session {
    /// Credits for one write of a chunk, from each of its drives. None: the operation waits, or has failed.
    pub(crate) fn take_credits(&mut self, id: usize, chunk: u32) -> Option<Mask> {
        let c = &self.chunks[chunk as usize];
        let (required, fanout) = (c.required, c.fanout);
        let probed = self.ops[id].probed == Some(self.generation);
        let mut got = self.ops[id].credits;
        let mut missing = 0;
        for slot in slots(fanout & !got) {
            let drive = self.chunks[chunk as usize].slots[slot].drive;
            let d = &mut self.drives[drive];
            if d.credits > 0 {
                d.credits -= 1;
                got |= bit(slot);
            } else if required & bit(slot) != 0 {
                missing |= bit(slot);
            }
            if self.drives[drive].credits < self.drives[drive].stock.max(CREDITS_MIN) * 3 / 8 {
                self.ask_credits(drive);
            }
        }
        self.ops[id].credits = got;
        if missing == 0 || probed {
            return Some(got);
        }
        let waits =
            slots(missing).any(|s| self.drives[self.chunks[chunk as usize].slots[s].drive].credit_asked);
        if waits {
            self.credit_waits.push_back(id);
        } else {
            self.probe(id, chunk, missing, false);
        }
        None
    }

    /// May a zero be sent? False: it waits for what its drives say, or has ended.
    pub(crate) fn may_zero(&mut self, id: usize, chunk: u32) -> bool {
        // The branch's record names its parent also when the tie is cut.
        let over_something = self.generation > Generation::FIRST || self.attached.origin.is_some();
        if !over_something || self.ops[id].probed == Some(self.generation) {
            return true;
        }
        let required = self.chunks[chunk as usize].required;
        self.probe(id, chunk, required, true);
        false
    }

    fn ask_credits(&mut self, drive: usize) {
        let d = &self.drives[drive];
        if d.credit_asked || self.now < d.full_until || !self.linked(drive) {
            return;
        }
        let d = &mut self.drives[drive];
        d.credit_asked = true;
        let since = self.now.since(d.stocked);
        let stock = d.stock.max(CREDITS_MIN);
        d.stock = if since < SPENT_SOON {
            (stock * 2).min(CREDITS_MAX)
        } else if since > LASTED {
            (stock / 2).max(CREDITS_MIN)
        } else {
            stock
        };
        d.stocked = self.now;
        let want = d.stock;
        let token = self.ask(drive, What::Credit { probe: None });
        self.send_drive(drive, token, Request::Credit { want, probe: None });
    }

    /// No stock: may these very blocks be written?
    fn probe(&mut self, id: usize, chunk: u32, missing: Mask, zero: bool) {
        let range = self.ops[id].piece.range;
        self.ops[id].no_space = false;
        self.ops[id].probing = self.generation;
        let mut asked = 0;
        for slot in slots(missing) {
            let drive = self.chunks[chunk as usize].slots[slot].drive;
            if !self.linked(drive) {
                continue;
            }
            asked += 1;
            let token = self.ask(drive, What::Credit { probe: Some(id) });
            let probe = Probe { generation: self.generation, range, zero };
            let request = Request::Credit { want: u32::from(!zero), probe: Some(probe) };
            self.send_slot(chunk, slot, token, request);
        }
        self.ops[id].outstanding = asked;
        if asked == 0 {
            self.credit_waits.push_back(id);
        }
    }

    pub(crate) fn credit_answered(
        &mut self,
        drive: usize,
        probe: Option<usize>,
        granted: u32,
        allocated: bool,
    ) {
        let Some(id) = probe else {
            let d = &mut self.drives[drive];
            d.credit_asked = false;
            d.credits += granted;
            if granted == 0 {
                d.full_until = self.now + FULL_FOR;
            }
            return self.retry_credits();
        };
        let chunk = self.ops[id].piece.chunk;
        let c = &self.chunks[chunk as usize];
        let mut spare = granted;
        match c.slot_of(drive) {
            Some(slot) if granted > 0 => {
                self.ops[id].credits |= bit(slot);
                spare -= 1;
            }
            Some(slot) if !allocated && c.required & bit(slot) != 0 => self.ops[id].no_space = true,
            // It is there; or nobody is to write there any more, and what that drive has room for decides nothing.
            _ => {}
        }
        self.drives[drive].credits += spare;
        self.probe_answered(id);
    }

    /// An answer to a probe has come, or never will on this connection.
    pub(crate) fn probe_answered(&mut self, id: usize) {
        let op = &mut self.ops[id];
        op.outstanding -= 1;
        if op.outstanding > 0 {
            return;
        }
        if std::mem::take(&mut op.lost) {
            self.credit_waits.push_back(id);
            self.dirty = true;
        } else if op.no_space {
            self.return_credits(id);
            self.end_without_space(id);
        } else {
            self.ops[id].probed = Some(self.ops[id].probing);
            self.send_op(id);
        }
    }

    /// Nothing was sent. A discard is advice: what there is no space for stays as it is.
    fn end_without_space(&mut self, id: usize) {
        let advised = self.ops[id].request.and_then(|r| self.requests.get_mut(r)).filter(|q| q.advice);
        let result = advised.map_or(Err(GuestError::NoSpace), |q| {
            q.left_some = true;
            Ok(Yield::Written(0))
        });
        self.end_op(id, result);
    }

    fn return_credits(&mut self, id: usize) {
        let (chunk, credits) = (self.ops[id].piece.chunk, self.ops[id].credits);
        for slot in slots(credits) {
            let drive = self.chunks[chunk as usize].slots[slot].drive;
            self.drives[drive].credits += 1;
        }
    }

    /// Writes that waited for an answer about credits.
    pub(crate) fn retry_credits(&mut self) {
        for id in std::mem::take(&mut self.credit_waits) {
            self.send_op(id);
        }
    }
}
