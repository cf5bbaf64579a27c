//! The end of a session: a clean close (drained, flushed, detached), or giving up.

use crate::event::CloseReason;
use crate::members::slots;
use crate::session::{Asked, Phase, Session};
use proto::control::{MetaRequest, SessionKind};
use proto::message::Request;
use proto::{MemberState, Span, Time};

/// A close that takes longer is given up: nothing acknowledged is lost, the next opening reconciles.
const CLOSE_WITHIN: Span = Span::secs(8);
/// A maintenance session with nothing to do.
const IDLE_FOR: Span = Span::secs(1);
/// ... and with a member that is merely not connected.
const UNREACHED_FOR: Span = Span::secs(30);

#[derive(Debug, Default)]
pub(crate) struct Closing {
    began: Time,
    /// All drives are being flushed for the last time.
    pub flushing: bool,
    asked: bool,
    again: Time,
}

impl Closing {
    pub fn ask_again(&mut self, at: Time) {
        self.asked = false;
        self.again = at;
    }
}

impl Session {
    /// Drain, flush, detach.
    pub(crate) fn close(&mut self) {
        match self.phase {
            Phase::Serving => {
                self.closing.began = self.now;
                self.enter(Phase::Draining);
                for chunk in self.attempts.keys().copied().collect::<Vec<_>>() {
                    self.drop_attempt(chunk);
                }
            }
            Phase::Draining | Phase::Detaching | Phase::Closed => {}
            _ => self.detach_unclean(),
        }
    }

    fn detach_unclean(&mut self) {
        let request = MetaRequest::Detach { branch: self.branch, epoch: self.epoch, clean: false };
        self.ask_metad(Asked::Detach, request);
        self.give_up(CloseReason::GivenUp);
    }

    pub(crate) fn push_close(&mut self) {
        if self.now.since(self.closing.began) > CLOSE_WITHIN {
            return self.detach_unclean();
        }
        let drained = self.requests.is_empty()
            && self.ops.iter().all(|(_, op)| op.only_reads_parents())
            && self.flushes.is_empty()
            && self.window.iter().all(|(_, w)| w.done);
        if self.phase == Phase::Draining && drained {
            if !self.closing.flushing {
                self.closing.flushing = true;
                self.flush_dirty = true;
            }
            let upto = self.version(self.seq);
            let flushed = (0..self.drives.len())
                .filter(|&d| self.drives[d].required > 0)
                .all(|d| self.flushed_to(d) >= upto);
            // one whose change is undecided may be in-sync or not: the union is flushed, both are right
            if flushed {
                self.raise_durable();
                for d in 0..self.drives.len() {
                    if self.drives[d].required > 0 {
                        self.send_drive(d, 0, Request::Marks);
                    }
                }
                self.enter(Phase::Detaching);
            }
        }
        if self.phase == Phase::Detaching && !self.closing.asked && self.now >= self.closing.again {
            self.closing.asked = true;
            let request = MetaRequest::Detach { branch: self.branch, epoch: self.epoch, clean: true };
            self.ask_metad(Asked::Detach, request);
        }
    }

    pub(crate) fn detached(&mut self) {
        if self.phase == Phase::Detaching {
            self.give_up(CloseReason::Clean);
        }
    }

    /// A maintenance session closes by itself when nothing is left to do.
    pub(crate) fn close_when_idle(&mut self) {
        if self.attached.kind != SessionKind::Maintenance || self.phase != Phase::Serving {
            return;
        }
        let busy = !self.attempts.is_empty()
            || !self.undecided.is_empty()
            || !self.requests.is_empty()
            || !self.flushes.is_empty()
            || !self.ops.is_empty()
            || !self.lacking.is_empty()
            || !self.to_ask.is_empty()
            || !self.asked.is_empty()
            || self.seal.busy()
            || self.has_job()
            || self.growing.is_some()
            || self.views_behind();
        let since = *self.idle_since.get_or_insert(self.now);
        let patient = self.now.since(since) < UNREACHED_FOR;
        if busy || self.work_left(patient) {
            if busy {
                self.idle_since = None;
            }
            return;
        }
        if self.now.since(since) >= IDLE_FOR {
            self.close();
        }
    }

    /// Whether a chunk could still be made whole, by members that are there or, if `patient`, may come.
    fn work_left(&self, patient: bool) -> bool {
        self.degraded.iter().any(|&chunk| {
            let c = &self.chunks[chunk as usize];
            let whole = c.count(MemberState::InSync) >= usize::from(self.attached.copies);
            let may_come = |d: usize| self.linked(d) || (patient && !self.down.contains(&self.drives[d].id));
            if whole {
                c.count(MemberState::Leaving) > 0
            } else {
                c.members().any(|(_, s)| s.state == MemberState::Stale && may_come(s.drive))
            }
        }) || self.drives.iter().any(|d| {
            d.required > 0
                && d.doubt
                && d.chunks.iter().any(|&chunk| {
                    let c = &self.chunks[chunk as usize];
                    slots(c.set).any(|s| self.in_doubt(chunk, s))
                })
        })
    }
}
