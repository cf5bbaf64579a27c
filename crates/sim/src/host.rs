//! A machine: its clock, its drives, and the process of blockd that may run on it.

use crate::disk::Disk;
use crate::rng::Rng;
use node::{Event, LinkId, Node};
use proto::{NodeId, Time};
use std::collections::VecDeque;

/// What the edge hands to the node.
#[derive(Debug)]
pub enum Input {
    Event(Event),
    Bytes(LinkId, Vec<u8>),
}

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Crash,
    Stop,
    /// The machine's power goes.
    Power,
}

pub struct Host {
    pub id: NodeId,
    pub powered: bool,
    pub node: Option<Box<Node>>,
    /// Numbers the processes, for the simulator: what belongs to an older one is dropped.
    pub life: u64,
    /// In the state directory, under the node's lock.
    pub processes: u64,
    pub boot: [u8; 16],
    pub clock: Clock,
    pub disks: Vec<Disk>,
    /// A stopped process takes nothing in; its kernel holds it.
    pub stopped: bool,
    pub inbox: VecDeque<Input>,
    /// Stopped in the middle of its effects.
    pub undone: bool,
    /// The process ends after so many more effects.
    pub doom: Option<(u64, End)>,
    pub turn_pending: bool,
    /// The last time that something struck this machine.
    pub struck: Time,
    /// The next wake that is in the queue.
    pub wake: Time,
    pub rng: Rng,
}

impl Host {
    #[must_use]
    pub fn runs(&self) -> bool {
        self.node.is_some()
    }
    /// What only the process knew.
    pub fn forget_process(&mut self) {
        self.life += 1;
        self.stopped = false;
        self.undone = false;
        self.turn_pending = false;
        self.doom = None;
        self.inbox.clear();
        self.wake = Time::FAR;
    }
}

/// A machine's clock: starts anew at each boot, and is a little fast or slow.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    booted: Time,
    /// Shown at boot.
    start: u64,
    /// Parts in a million.
    drift: i64,
}

impl Clock {
    #[must_use]
    pub fn new(booted: Time, start: u64, drift: i64) -> Clock {
        Clock { booted, start, drift }
    }
    #[must_use]
    pub fn drift(&self) -> i64 {
        self.drift
    }
    /// What this clock shows.
    #[must_use]
    pub fn local(&self, now: Time) -> Time {
        let passed = i128::from(now.since(self.booted).0);
        let shown = passed + passed * i128::from(self.drift) / 1_000_000;
        Time(self.start + u64::try_from(shown).expect("clocks go forward"))
    }
    /// The moment at which it will show `local`, or just after.
    #[must_use]
    pub fn global(&self, local: Time) -> Time {
        if local == Time::FAR {
            return Time::FAR;
        }
        let shown = i128::from(local.0.saturating_sub(self.start));
        let passed = shown * 1_000_000 / (1_000_000 + i128::from(self.drift)) + 1;
        Time(self.booted.0.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_is_not_early() {
        for drift in [-2000, 0, 1500] {
            let c = Clock::new(Time(777), 5_000_000, drift);
            for local in [5_000_001, 6_000_000, 99_000_000_123] {
                let g = c.global(Time(local));
                assert!(c.local(g).0 >= local);
                assert!(c.local(g).0 <= local + 3);
            }
        }
    }
}
