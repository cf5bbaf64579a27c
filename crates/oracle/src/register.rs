//! One register's linearizability, online: n log n by zones.
//!
//! Values are unique per register, zeroes apart. All that is known of a value is its *zone*: `first`, the earliest
//! answer of an operation that wrote or returned it, and `last`, the latest question of such an operation. If
//! `first < last` the register held the value throughout: a *forward* zone. Else it held it at some moment between:
//! a *backward* zone. A history is linearizable if and only if no two forward zones overlap and none holds a backward
//! zone (Gibbons and Korach). Both only grow towards a violation as answers arrive, so each is judged when it comes.
//!
//! Zeroes are written by many: a read of zero is given to the newest zeroing that explains it; only if something then
//! does not fit are all ways to give them tried (`exact`).

use crate::exact;
use std::collections::BTreeMap;

/// Position of an entry in the history, 1 and up.
pub type Stamp = u64;
pub type Value = u64;
/// What nobody wrote, and what zeroing writes.
pub const ZERO: Value = 0;
/// Not answered, no deadline.
pub const NEVER: Stamp = Stamp::MAX;

/// What is known of one write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    pub value: Value,
    pub asked: Stamp,
    /// `NEVER`: not answered, or unknown.
    pub answered: Stamp,
    /// It has taken effect by then, or never will (its client was replaced).
    pub deadline: Stamp,
}

/// A read of zero, kept for `exact`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZeroRead {
    pub asked: Stamp,
    pub answered: Stamp,
}

/// Earliest answer, latest question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Zone {
    pub first: Stamp,
    pub last: Stamp,
}
impl Zone {
    fn forward(self) -> bool {
        self.first < self.last
    }
    #[must_use]
    pub fn join(self, o: Zone) -> Zone {
        Zone { first: self.first.min(o.first), last: self.last.max(o.last) }
    }
}

/// The zones of one register, so kept that a conflict is found in log n.
#[derive(Clone, Default, Debug)]
pub struct Zones {
    /// first -> last; disjoint.
    forward: BTreeMap<Stamp, Stamp>,
    /// first (the right end) -> last (the left end).
    backward: BTreeMap<Stamp, Stamp>,
}
impl Zones {
    pub fn remove(&mut self, z: Zone) {
        if z.forward() {
            self.forward.remove(&z.first)
        } else {
            self.backward.remove(&z.first)
        };
    }
    /// False, and nothing is changed, if it does not fit.
    #[must_use]
    pub fn insert(&mut self, z: Zone) -> bool {
        if z.forward() {
            let before = self.forward.range(..=z.first).next_back().is_some_and(|(_, last)| *last > z.first);
            let within = self.forward.range(z.first..z.last).next().is_some();
            let holds = self.backward.range(z.first..z.last).any(|(_, left)| *left > z.first);
            if before || within || holds {
                return false;
            }
            self.forward.insert(z.first, z.last);
        } else {
            let held = self.forward.range(..z.last).next_back().is_some_and(|(_, last)| *last > z.first);
            if held {
                return false;
            }
            self.backward.insert(z.first, z.last);
        }
        true
    }
    #[must_use]
    pub fn replace(&mut self, old: Option<Zone>, new: Zone) -> bool {
        if let Some(z) = old {
            self.remove(z);
        }
        if self.insert(new) {
            return true;
        }
        if let Some(z) = old {
            let back = self.insert(z);
            debug_assert!(back, "it fitted before");
        }
        false
    }
}

/// Why an observation cannot be.
pub type Conflict = &'static str;

/// What the parent's view holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    /// It is among the beginnings, or does not matter any more.
    Known,
    /// This era may have begun with it: with any value.
    Open,
    /// It was not known when somebody read it.
    Pinned(Value),
}

/// One register. A new *era* begins when a permitted loss is settled: the register then starts with one value of a set.
#[derive(Clone, Debug)]
pub struct Register {
    /// The era's writes; the first is its beginning.
    writes: Vec<Write>,
    zone: Vec<Option<Zone>>,
    zones: Zones,
    zero_reads: Vec<ZeroRead>,
    /// Values with which this era may have begun; one is left once somebody has read it.
    beginnings: Vec<Value>,
    /// What a clone's register holds before anybody writes it, as far as that is known.
    origin: Origin,
    /// This era began with a loss.
    lost: bool,
    /// Each value's write of this era (zeroes apart).
    by_value: BTreeMap<Value, usize>,
}

impl Default for Register {
    fn default() -> Register {
        let mut r = Register {
            writes: vec![],
            zone: vec![],
            zones: Zones::default(),
            zero_reads: vec![],
            beginnings: vec![ZERO],
            origin: Origin::Known,
            lost: false,
            by_value: BTreeMap::new(),
        };
        r.begin(0);
        r
    }
}

impl Register {
    fn begin(&mut self, at: Stamp) {
        let value = match self.beginnings[..] {
            [value] if self.origin != Origin::Open => value,
            _ => NEVER,
        };
        self.writes = vec![Write { value, asked: at, answered: at, deadline: NEVER }];
        let z = Zone { first: at, last: at };
        self.zones = Zones::default();
        let fits = self.zones.insert(z);
        debug_assert!(fits, "nothing else is there");
        self.zone = vec![Some(z)];
        self.zero_reads.clear();
        self.by_value.clear();
    }

    /// The register is a clone's, and begins with what its parent's view holds; `None`: not known yet.
    pub fn begins(&mut self, value: Option<Value>, now: Stamp) -> Result<(), Conflict> {
        match (self.origin, value) {
            (Origin::Pinned(pinned), Some(value)) if pinned != value => {
                return Err("began with something else than its parent's view holds");
            }
            (Origin::Pinned(_), Some(_)) => self.origin = Origin::Known,
            (Origin::Open, Some(value)) => {
                self.origin = Origin::Known;
                if !self.beginnings.contains(&value) {
                    self.beginnings.push(value);
                }
                if let [value] = self.beginnings[..] {
                    self.writes[0].value = value;
                }
            }
            // Said again, when the era that it began is over.
            (_, _) if self.writes.len() > 1 || self.writes[0].answered > 0 => {}
            (_, value) => {
                self.origin = if value.is_some() { Origin::Known } else { Origin::Open };
                self.beginnings = value.into_iter().collect();
                self.begin(now);
            }
        }
        Ok(())
    }
    /// This era may have begun with the value.
    fn may_begin_with(&self, value: Value) -> bool {
        self.beginnings.contains(&value) || self.origin == Origin::Open
    }
    /// It has begun with the value.
    fn has_begun_with(&mut self, value: Value) {
        if self.origin == Origin::Open {
            let other = self.beginnings.contains(&value);
            self.origin = if other { Origin::Known } else { Origin::Pinned(value) };
        }
        self.beginnings = vec![value];
        self.writes[0].value = value;
    }

    /// A write is sent; `deadline` before `asked` means that it must never take effect.
    pub fn asked(&mut self, value: Value, asked: Stamp, deadline: Stamp) {
        if value != ZERO {
            let double = self.by_value.insert(value, self.writes.len());
            assert!(double.is_none(), "a value is written once per register");
        }
        self.writes.push(Write { value, asked, answered: NEVER, deadline });
        self.zone.push(None);
    }

    /// The write asked at `asked` is acknowledged at `now`.
    pub fn acknowledged(&mut self, asked: Stamp, now: Stamp) -> Result<(), Conflict> {
        let Some(i) = self.find(asked) else { return Ok(()) }; // of an era that is over: it may have been lost
        self.writes[i].answered = now;
        if self.writes[i].deadline < asked {
            return Err("acknowledged, though a newer client was served before it was sent");
        }
        self.observe(i, asked, now)
    }

    fn find(&self, asked: Stamp) -> Option<usize> {
        self.writes.iter().rposition(|w| w.asked == asked)
    }

    /// A read asked at `asked` returns `value` at `now`.
    pub fn returned(&mut self, value: Value, asked: Stamp, now: Stamp) -> Result<(), Conflict> {
        if value == ZERO {
            return self.returned_zero(asked, now);
        }
        if let Some(i) = self.by_value.get(&value).copied() {
            if self.writes[i].deadline < self.writes[i].asked {
                return Err("returned a write that was sent after a newer client was served");
            }
            return self.observe(i, asked, now);
        }
        self.pin(value)?;
        self.observe(0, asked, now)
    }

    /// The era began with `value`.
    fn pin(&mut self, value: Value) -> Result<(), Conflict> {
        if self.writes[0].value != NEVER || !self.may_begin_with(value) {
            return match self.lost {
                _ if self.beginnings == [value] => Ok(()),
                true => {
                    Err("returned what was never written, was lost before, or is older than a flush covers")
                }
                false => Err("returned what was never written, nor is what it began with"),
            };
        }
        self.has_begun_with(value);
        Ok(())
    }

    fn returned_zero(&mut self, asked: Stamp, now: Stamp) -> Result<(), Conflict> {
        self.zero_reads.push(ZeroRead { asked, answered: now });
        for i in (0..self.writes.len()).rev() {
            let w = self.writes[i];
            let began = i == 0 && w.value == NEVER && self.may_begin_with(ZERO);
            if (w.value != ZERO && !began) || w.asked > now || w.deadline < w.asked {
                continue;
            }
            if self.fits(i, asked, now) {
                if began {
                    self.has_begun_with(ZERO);
                }
                return Ok(());
            }
        }
        self.try_all("returned zeroes that nothing explains")
    }

    fn fits(&mut self, i: usize, asked: Stamp, now: Stamp) -> bool {
        let w = self.writes[i];
        let seen = Zone { first: now.min(w.deadline), last: asked.max(w.asked) };
        let new = self.zone[i].map_or(seen, |z| z.join(seen));
        if self.zone[i] == Some(new) {
            return true;
        }
        if !self.zones.replace(self.zone[i], new) {
            return false;
        }
        self.zone[i] = Some(new);
        true
    }

    fn observe(&mut self, i: usize, asked: Stamp, now: Stamp) -> Result<(), Conflict> {
        if self.fits(i, asked, now) {
            return Ok(());
        }
        let w = self.writes[i];
        let seen = Zone { first: now.min(w.deadline), last: asked.max(w.asked) };
        self.zone[i] = Some(self.zone[i].map_or(seen, |z| z.join(seen)));
        self.try_all("no order of the operations explains this")
    }

    /// Gives the reads of zero to the zeroings in every way.
    fn try_all(&mut self, otherwise: Conflict) -> Result<(), Conflict> {
        let may_begin = self.writes[0].value == NEVER && self.may_begin_with(ZERO);
        let problem = exact::Problem {
            writes: &self.writes,
            zones: &self.zone,
            reads: &self.zero_reads,
            may_begin_with_zero: may_begin,
        };
        match problem.solve() {
            exact::Answer::No => Err(otherwise),
            exact::Answer::TooHard => Err("too many overlapping zeroings to decide"),
            exact::Answer::Yes { zones, index } => {
                self.zone = zones;
                self.zones = index;
                Ok(())
            }
        }
    }

    /// Writes of clients that are no more, by `mine`: effective by `now`, or never.
    pub fn settle(&mut self, now: Stamp, mine: impl Fn(Stamp) -> bool) {
        for w in &mut self.writes {
            if w.answered == NEVER && w.deadline == NEVER && mine(w.asked) {
                w.deadline = now;
            }
        }
    }

    /// A permitted loss is settled: the next era begins with a value not older than any that was complete before
    /// `flushed` (or is named by `fua`).
    pub fn lose(&mut self, now: Stamp, flushed: Stamp, fua: impl Fn(Stamp) -> bool) {
        let done = |i: usize| self.zone[i].map_or(NEVER, |z| z.first).min(self.writes[i].answered);
        let since = |i: usize| self.zone[i].map_or(self.writes[i].asked, |z| z.last);
        let n = self.writes.len();
        let covered: Vec<usize> = (0..n)
            .filter(|&i| done(i) < flushed || (self.writes[i].answered != NEVER && fua(self.writes[i].asked)))
            .collect();
        let mut allowed = vec![];
        let mut carried = vec![];
        let mut open = false;
        for i in 0..n {
            let w = self.writes[i];
            let too_old = covered.iter().any(|&c| c != i && done(i) < since(c));
            let dead = w.deadline < w.asked;
            if w.answered == NEVER && w.deadline == NEVER && i > 0 {
                carried.push((w, self.zone[i].is_some()));
            }
            if too_old || dead {
                continue;
            }
            if i == 0 && w.value == NEVER {
                allowed.extend(&self.beginnings);
                open = self.origin == Origin::Open;
            } else {
                allowed.push(w.value);
            }
        }
        if self.origin == Origin::Open && !open {
            self.origin = Origin::Known;
        }
        allowed.sort_unstable();
        allowed.dedup();
        self.beginnings = allowed;
        self.lost = true;
        self.begin(now);
        for (w, seen) in carried {
            // Sent by a client that lives on: it may still take effect, or do so again.
            if !seen {
                self.asked(w.value, w.asked, NEVER);
            }
        }
    }

    /// The bounds that holding `value` sets to a moment: not before it was asked for, and not after the first answer of
    /// what was asked when it was already done. Nothing is said of zeroes, which are written by many.
    #[must_use]
    pub fn bounds(&self, value: Value) -> Option<(Stamp, Stamp)> {
        let i = match self.by_value.get(&value) {
            Some(i) => *i,
            None => (value != ZERO && self.writes[0].value == value).then_some(0)?,
        };
        let done = self.zone[i].map_or(NEVER, |z| z.first).min(self.writes[i].answered);
        let after = self.writes.iter().filter(|w| w.asked > done).map(|w| w.answered);
        Some((self.writes[i].asked, after.min().unwrap_or(NEVER)))
    }

    /// For messages: the writes of this era.
    #[must_use]
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }
}
