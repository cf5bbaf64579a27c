//! The end: sessions close cleanly (drained, flushed, leases returned, detached), then drives, then links.

use crate::drives::State;
use crate::event::Effect;
use crate::node::{Job, Node};
use crate::seats::SeatId;
use proto::{Span, Time};
use volume::GuestError;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stopping {
    /// Sessions close until then.
    Sessions(Time),
    Drives,
    Stopped,
}

/// A session that has not closed by then is left to the next one's reconciliation. (A daemon exits within 10 s.)
const SESSIONS_MAX: Span = Span::secs(8);

impl Node {
    pub(crate) fn shutdown(&mut self, now: Time) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Stopping::Sessions(now + SESSIONS_MAX));
        let ids: Vec<SeatId> = self.seats.all.keys().copied().collect();
        for id in ids {
            self.refuse_exports(id, &crate::event::ExportError::Closing);
            self.close_seat(now, id);
        }
    }
    pub(crate) fn stopping_wake(&self) -> Time {
        match self.stopping {
            Some(Stopping::Sessions(until)) => until,
            _ => Time::FAR,
        }
    }
    pub(crate) fn tend_shutdown(&mut self, now: Time) {
        match self.stopping {
            Some(Stopping::Sessions(until)) if self.seats.all.is_empty() || until <= now => {
                let ids: Vec<SeatId> = self.seats.all.keys().copied().collect();
                for id in ids {
                    self.abandon(now, id);
                }
                self.stopping = Some(Stopping::Drives);
                for (ix, _) in self.drives.iter().enumerate().filter(|(_, d)| d.state == State::Open) {
                    self.jobs.push_back(Job::Store(ix, store::Event::Close));
                }
            }
            _ => {}
        }
        self.run(now);
        let closed = |s: State| matches!(s, State::Closed | State::Failed | State::Opening);
        if self.stopping == Some(Stopping::Drives) && self.drives.iter().all(|d| closed(d.state)) {
            self.stopping = Some(Stopping::Stopped);
            self.links.send_all(&mut self.out);
            for link in self.links.all(|_| true) {
                let lost = self.links.close(now, link, &mut self.out);
                self.lost(lost);
            }
            self.out.push_back(Effect::Stopped);
        }
    }
    fn abandon(&mut self, now: Time, id: SeatId) {
        if self.seats.all.get(&id).is_some_and(|s| s.live().is_some()) {
            self.end_live(now, id, volume::CloseReason::GivenUp);
        }
        self.remove_seat(id, GuestError::Gone);
    }
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopping == Some(Stopping::Stopped)
    }
}
