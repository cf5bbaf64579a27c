//! All ways to give reads of zero to zeroings, where the quick way has failed.

use crate::register::{Write, ZERO, ZeroRead, Zone, Zones};

pub struct Problem<'a> {
    pub writes: &'a [Write],
    /// Zones of unique values are final; those of zeroings are found anew.
    pub zones: &'a [Option<Zone>],
    pub reads: &'a [ZeroRead],
    /// The first write's value is open, and may be zero.
    pub may_begin_with_zero: bool,
}

pub enum Answer {
    No,
    TooHard,
    Yes { zones: Vec<Option<Zone>>, index: Zones },
}

/// Steps of the search before it gives up.
const PATIENCE: u32 = 200_000;

struct Search<'a> {
    p: &'a Problem<'a>,
    zeroings: Vec<usize>,
    zone: Vec<Option<Zone>>,
    index: Zones,
    steps: u32,
}

impl Problem<'_> {
    pub fn solve(&self) -> Answer {
        let is_zero = |i: usize| self.writes[i].value == ZERO || (i == 0 && self.may_begin_with_zero);
        let mut zone = self.zones.to_vec();
        let mut index = Zones::default();
        for (i, (zone, w)) in zone.iter_mut().zip(self.writes).enumerate() {
            if is_zero(i) {
                let own = Zone { first: w.answered.min(w.deadline), last: w.asked };
                *zone = (w.answered != crate::register::NEVER).then_some(own);
            }
            if let Some(z) = zone
                && !index.insert(*z)
            {
                return Answer::No;
            }
        }
        let zeroings = (0..self.writes.len()).rev().filter(|&i| is_zero(i)).collect();
        let mut s = Search { p: self, zeroings, zone, index, steps: 0 };
        match s.give(0) {
            Some(true) => Answer::Yes { zones: s.zone, index: s.index },
            Some(false) => Answer::No,
            None => Answer::TooHard,
        }
    }
}

impl Search<'_> {
    fn give(&mut self, read: usize) -> Option<bool> {
        let Some(r) = self.p.reads.get(read).copied() else { return Some(true) };
        for k in 0..self.zeroings.len() {
            let i = self.zeroings[k];
            let w = self.p.writes[i];
            if w.asked > r.answered || w.deadline < w.asked {
                continue;
            }
            self.steps += 1;
            if self.steps > PATIENCE {
                return None;
            }
            let old = self.zone[i];
            let seen = Zone { first: r.answered.min(w.deadline), last: r.asked.max(w.asked) };
            let new = old.map_or(seen, |z| z.join(seen));
            if old == Some(new) {
                return self.give(read + 1); // nothing is changed by it: no other choice can be better
            }
            if !self.index.replace(old, new) {
                continue;
            }
            self.zone[i] = Some(new);
            if self.give(read + 1)? {
                return Some(true);
            }
            self.index.remove(new);
            if let Some(z) = old {
                let back = self.index.insert(z);
                debug_assert!(back, "it fitted before");
            }
            self.zone[i] = old;
        }
        Some(false)
    }
}
