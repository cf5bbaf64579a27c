//! A host's drives: the simulated medium, and when its I/Os complete.

use crate::rng::Rng;
use proto::{OpenId, Span, Time};
use store::medium::Medium;
use store::{IoId, IoOp};

#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub write: Span,
    pub flush: Span,
}

pub struct Disk {
    pub medium: Medium,
    pub pace: Pace,
    /// Everything takes this much longer until then.
    pub slow: Option<(Time, Span)>,
    pub opening: OpenId,
    /// I/Os fail until the process is started again.
    pub failing: bool,
}

impl Disk {
    #[must_use]
    pub fn new(medium: Medium, pace: Pace) -> Disk {
        Disk { medium, pace, slow: None, opening: OpenId(0), failing: false }
    }

    /// An I/O begins; when does it end? Completions come in any order.
    pub fn submit(&mut self, now: Time, io: IoId, op: IoOp, rng: &mut Rng) -> Time {
        let (mean, blocks) = match &op {
            IoOp::Read { blocks, .. } => (self.pace.write.0, u64::from(*blocks)),
            IoOp::Write { pieces, .. } => (self.pace.write.0, pieces.iter().map(|p| p.blocks() as u64).sum()),
            IoOp::Flush => (self.pace.flush.0, 0),
        };
        self.medium.submit(io, op);
        let slow = match self.slow {
            Some((until, by)) if until > now => rng.within(by.0 / 4, by.0),
            _ => 0,
        };
        now + Span(1 + rng.around(mean) + blocks * 500 + slow)
    }
}
