//! The properties of section 11, one file each, read from the cores' true state and from what guests see.
//!
//! LIN and FLUSH are the oracle's (`oracle`); what it is told comes from `driver` and `atlas`. The others are here.
//! Each counts its checks: a property that was never checked has not been shown.

mod aba;
mod ackset;
pub mod cut;
mod evidence;
mod invariant;
mod live;
mod min;
mod one;
mod rewritten;
mod same;
mod tie;
pub mod truth;
mod views;
mod wal;

use crate::layout::whole_blocks_of;
use crate::net::HostIndex;
use crate::world::{Due, Phase, World};
use proto::{Span, Ticket, Time};
use std::collections::BTreeMap;
use volume::{GuestError, GuestOp, GuestReply, GuestRequest};

pub use wal::Wal;

/// A request under way, as the watchers need it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub at: Time,
    pub client: u32,
    pub op: GuestOp,
}

/// What the properties remember.
#[derive(Debug, Default)]
pub struct Watchers {
    asked: BTreeMap<(usize, Ticket), Asked>,
    /// Writes: when they were asked, and when they were answered.
    times: BTreeMap<(usize, Ticket), (Time, Option<Time>)>,
    pub one: one::One,
    pub evidence: evidence::Evidence,
    pub ackset: ackset::AckSet,
    pub wal: Wal,
    pub cuts: cut::Cuts,
}

impl Watchers {
    pub fn asked(&mut self, now: Time, volume: usize, client: u32, request: &GuestRequest) {
        let a = Asked { at: now, client, op: request.op.clone() };
        self.ackset.asked(volume, request);
        self.asked.insert((volume, request.ticket), a);
        self.times.insert((volume, request.ticket), (now, None));
    }
    /// True if the first request may have taken effect after the second was asked.
    #[must_use]
    pub fn overlapped(&self, volume: usize, first: Ticket, second: Ticket) -> bool {
        let asked = self.times.get(&(volume, second)).map_or(Time::ZERO, |t| t.0);
        self.times.get(&(volume, first)).is_none_or(|t| t.1.is_none_or(|done| done >= asked))
    }
}

/// How often the whole state is looked at.
const LOOK: Span = Span::millis(100);

impl World {
    /// A guest's request is answered: what must be true at that very moment?
    pub fn check_answer(
        &mut self,
        v: usize,
        host: HostIndex,
        ticket: Ticket,
        result: &Result<GuestReply, GuestError>,
    ) {
        let Some(asked) = self.watchers.asked.remove(&(v, ticket)) else { return };
        // A discard of less than a block does nothing, and asks nobody.
        let nothing =
            matches!(asked.op, GuestOp::Discard { .. }) && whole_blocks_of(&asked.op).next().is_none();
        if result.is_err() || nothing || matches!(result, Ok(GuestReply::Left)) {
            return;
        }
        let now = self.now;
        self.watchers.times.entry((v, ticket)).and_modify(|t| t.1 = Some(now));
        self.check_one(v, &asked);
        if matches!(asked.op, GuestOp::Write { .. } | GuestOp::Discard { .. } | GuestOp::WriteZeroes { .. }) {
            self.check_min(v, host, &asked);
            self.check_ackset(v, ticket, &asked);
        }
    }

    /// A client of a volume is served for the first time.
    pub fn first_service(&mut self, v: usize, host: HostIndex) {
        self.check_rewritten(v, host);
        self.check_predecessors(v);
        self.settle_losses(v);
        if self.phase == Phase::Faults && self.rng.permille(self.swarm.aftershock) {
            let soon = Span::millis(self.rng.pick(&[1, 5, 20, 100, 300, 700]));
            self.put(soon, Due::Aftershock { host });
        }
    }

    /// Looks at everything, from time to time.
    pub fn look(&mut self) {
        for v in 0..self.volumes.len() {
            self.notice_service(v);
            self.check_older_leases(v);
            self.check_predecessors(v);
        }
        self.check_invariant();
        self.check_same();
        self.complete_images();
        self.check_some_views();
        match self.phase {
            Phase::Rest { until } => self.check_rest(until),
            Phase::Reading { until } => self.check_reading(until),
            Phase::Making | Phase::Faults => self.next_phase(),
            Phase::Done => {}
        }
        self.put(LOOK, Due::Look);
    }
}
