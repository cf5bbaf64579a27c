//! Flushes: section 4 (Flush), promise 2. flushed(d) comes from *flush begun* and *flush done* only.

use crate::members::{bit, slots};
use crate::request::GuestReply;
use crate::session::{Session, TICK, What};
use proto::message::Request;
use proto::{DriveId, Ticket, Version};

/// A flush of a guest, or the second half of a FUA.
#[derive(Debug)]
pub(crate) struct PendingFlush {
    pub ticket: Ticket,
    /// Everything up to here is to be flushed ...
    pub upto: u64,
    /// ... on the drives of these chunks; `None`: of all.
    pub chunks: Option<Vec<u32>>,
    pub reply: GuestReply,
}

/// Flushes of one drive under way at once.
const FLUSHES: usize = 2;

impl Session {
    /// What was acknowledged when it came.
    pub(crate) fn guest_flush(&mut self, ticket: Ticket) {
        self.flushes.push_back(PendingFlush {
            ticket,
            upto: self.answered,
            chunks: None,
            reply: GuestReply::Done,
        });
        self.flush_dirty = true;
    }

    pub(crate) fn flush_after_write(
        &mut self,
        ticket: Ticket,
        upto: u64,
        chunks: Vec<u32>,
        reply: GuestReply,
    ) {
        self.flushes.push_back(PendingFlush { ticket, upto, chunks: Some(chunks), reply });
        self.flush_dirty = true;
    }

    /// flushed(d). Where nothing was sent since the last flush, everything that was sent is flushed.
    pub(crate) fn flushed_to(&self, drive: usize) -> Version {
        let d = &self.drives[drive];
        if d.flushed != Version::ZERO && d.flushed >= self.version(d.last_sent) {
            self.version(self.seq)
        } else {
            d.flushed
        }
    }

    /// Drives whose flush a guest's flush waits for, in these chunks or all.
    pub(crate) fn concerned(&self, chunks: Option<&[u32]>) -> Vec<usize> {
        let mut v: Vec<usize> = match chunks {
            None => (0..self.drives.len()).filter(|&d| self.drives[d].required > 0).collect(),
            Some(list) => list
                .iter()
                .flat_map(|&c| {
                    let x = &self.chunks[c as usize];
                    slots(x.required).map(|s| x.slots[s].drive)
                })
                .collect(),
        };
        if self.bugs.has(|b| b.flush_misses_target) {
            v.retain(|&d| {
                self.drives[d].chunks.iter().any(|&c| {
                    let x = &self.chunks[c as usize];
                    x.slot_of(d).is_some_and(|s| x.set & bit(s) != 0)
                })
            });
        }
        v
    }

    /// Answers flushes that are complete, and asks drives for those that are not.
    pub(crate) fn push_flushes(&mut self) {
        self.flush_dirty = false;
        for d in &mut self.drives {
            d.want = 0;
        }
        let mut waiting = std::mem::take(&mut self.flushes);
        let mut all: Option<Vec<usize>> = None;
        let min = u32::from(self.attached.min_in_sync);
        let waits = self.attached.wait_when_degraded;
        waiting.retain(|f| {
            // promise 2 holds for a FUA until it is answered: a member may have gone since it was written
            let few = f
                .chunks
                .as_ref()
                .is_some_and(|c| c.iter().any(|&c| self.chunks[c as usize].inter.count_ones() < min));
            if few && waits {
                return true;
            }
            let mut own = vec![];
            let list: &[usize] = match &f.chunks {
                None => all.get_or_insert_with(|| self.concerned(None)),
                Some(c) => {
                    own.extend(self.concerned(Some(c)));
                    &own
                }
            };
            let upto = self.version(f.upto);
            let mut left = false;
            for &d in list {
                if self.flushed_to(d) < upto {
                    left = true;
                    // from a guest's first flush on, an opened drive is flushed even if nothing was sent
                    self.drives[d].want = self.drives[d].want.max(f.upto.max(1));
                }
            }
            if !left {
                let result = if few { Err(crate::GuestError::Io) } else { Ok(f.reply.clone()) };
                self.effects.push_back(crate::Effect::Complete { ticket: f.ticket, result });
            }
            left
        });
        self.flushes = waiting;
        self.want_for_phase();
        for d in 0..self.drives.len() {
            self.push_flush(d);
        }
        self.raise_durable();
    }

    /// Flushes that the session itself waits for: at the end of an opening and of a close, for a seal, and of a target.
    fn want_for_phase(&mut self) {
        if self.phase == crate::session::Phase::Flushing || self.closing.flushing {
            for d in 0..self.drives.len() {
                if self.drives[d].required > 0 && self.flushed_to(d) < self.version(self.seq) {
                    self.drives[d].want = self.seq.max(1);
                }
            }
        }
        if self.seal.busy()
            && let Some(upto) = self.seal.flush_upto(self.seq, self.drained())
        {
            for d in 0..self.drives.len() {
                if self.drives[d].required > 0 && self.flushed_to(d) < self.version(upto) {
                    self.drives[d].want = self.drives[d].want.max(upto.max(1));
                }
            }
        }
        if let Some(upto) = self.job_flushes() {
            for d in 0..self.drives.len() {
                if self.drives[d].required > 0 && self.flushed_to(d) < self.version(upto) {
                    self.drives[d].want = self.drives[d].want.max(upto.max(1));
                }
            }
        }
        let misses = self.bugs.has(|b| b.flush_misses_target);
        for a in self.attempts.values().filter(|a| a.awaits_flush() && !misses) {
            let drive = self.chunks[a.chunk as usize].slots[a.target].drive;
            self.drives[drive].want = self.drives[drive].want.max(a.need.max(1));
        }
    }

    fn push_flush(&mut self, drive: usize) {
        let d = &self.drives[drive];
        if d.want == 0 || !self.linked(drive) || self.now < d.flush_after || d.flushing.len() >= FLUSHES {
            return;
        }
        // a member in doubt raises no flushed(d): it is being dropped
        if d.flushing.iter().any(|&(_, covers)| covers >= d.want) || self.ignores_flush(drive) {
            return;
        }
        let token = self.ask(drive, What::Flush);
        let covers = self.seq.max(1);
        self.drives[drive].flushing.push((token, covers));
        self.send_drive(drive, token, Request::Flush);
    }

    /// At *begun*: the least write that the drive has not acknowledged.
    pub(crate) fn flush_begun(&mut self, id: DriveId, flush: u64) {
        let Some(&drive) = self.drive_ix.get(&id) else { return };
        let unacknowledged = self.window.iter().find(|(_, w)| {
            let c = &self.chunks[w.chunk as usize];
            w.live && c.slot_of(drive).is_some_and(|s| w.sent & !w.acked & bit(s) != 0)
        });
        let upto = unacknowledged.map_or(self.seq, |(seq, _)| seq - 1);
        self.drives[drive].notes.push_back((flush, upto));
        let chunks = &self.chunks;
        for a in self.attempts.values_mut().filter(|a| a.awaits_flush() && a.note.is_none()) {
            if chunks[a.chunk as usize].slots[a.target].drive == drive {
                a.note = Some((flush, upto));
            }
        }
    }

    /// At *done* on the same connection: flushed(d) is what lies below it.
    pub(crate) fn flush_done(&mut self, id: DriveId, flush: u64) {
        let Some(&drive) = self.drive_ix.get(&id) else { return };
        let ignored = self.ignores_flush(drive);
        let d = &mut self.drives[drive];
        while let Some(&(n, upto)) = d.notes.front().filter(|n| n.0 <= flush) {
            d.notes.pop_front();
            if n == flush && !ignored {
                d.flushed = d.flushed.max(Version::new(self.epoch, upto));
            }
        }
        let chunks = &self.chunks;
        for a in self.attempts.values_mut() {
            if let Some((n, upto)) = a.note
                && chunks[a.chunk as usize].slots[a.target].drive == drive
                && n <= flush
            {
                a.note = None;
                if n == flush {
                    a.flushed = Some(upto);
                }
            }
        }
        self.flush_dirty = true;
        let waits = self.seal.busy() || self.has_job();
        if !self.attempts.is_empty() || self.phase != crate::session::Phase::Serving || waits {
            self.dirty = true;
        }
    }

    /// The answer to a `Flush`; its *done* came before.
    pub(crate) fn flush_answered(&mut self, drive: usize, token: u64) {
        let d = &mut self.drives[drive];
        d.flushing.retain(|f| f.0 != token);
        if d.flushing.is_empty() && d.want > 0 && Version::new(self.epoch, d.want) > d.flushed {
            d.flush_after = self.now + TICK;
        }
        self.flush_dirty = true;
    }

    /// 4, Flush: while a session serves, a member in doubt raises none (a resync target does).
    pub(crate) fn ignores_flush(&self, drive: usize) -> bool {
        let d = &self.drives[drive];
        self.serving()
            && d.doubt
            && d.chunks.iter().any(|&c| {
                let x = &self.chunks[c as usize];
                x.slot_of(drive).is_some_and(|s| x.set & bit(s) != 0 && self.in_doubt(c, s))
            })
    }
}
