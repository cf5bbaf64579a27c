//! Crashes at any point, and the rest at the end.

use crate::world::{BRANCH, World, below};
use proto::message::View;
use proto::{ChunkIndex, Span};
use store::Event;

impl World {
    /// The process dies, or the machine loses power; the drive is opened again, maybe more than once.
    pub fn crash(&mut self) -> Result<(), String> {
        let power = self.dice(2) == 0;
        self.crash_as(power)
    }
    pub fn crash_as(&mut self, power: bool) -> Result<(), String> {
        let existed = self.created && self.deleting.is_none();
        let mut lost_power = power;
        self.cut(power);
        // Sometimes it crashes again while it opens.
        while self.dice(4) == 0 {
            for _ in 0..self.dice(14) {
                if !self.opened && !self.queue.is_empty() {
                    self.complete_some()?;
                }
            }
            let again = self.dice(2) == 0;
            lost_power |= again;
            self.cut(again);
        }
        let mut patience = 10_000;
        while !self.opened {
            self.complete_some()?;
            patience -= 1;
            if patience == 0 {
                return Err("opening does not end".into());
            }
        }
        self.after_crash(existed, lost_power)
    }

    fn cut(&mut self, power: bool) {
        if self.trace {
            println!("{:4} CRASH power {power}", self.steps);
        }
        let mut rng = self.rng ^ 0x1234;
        let mut dice = |n: u64| below(&mut rng, n);
        if power {
            self.medium.power_loss(&mut dice);
            self.boot = self.boot.wrapping_add(1);
        } else {
            self.medium.kill(&mut dice);
        }
        self.dice(1);
        self.new_source();
        self.reopen();
        self.drain().expect("only reads");
    }

    fn after_crash(&mut self, existed: bool, power: bool) -> Result<(), String> {
        self.store.check();
        self.check_homes()?;
        if existed {
            let b = self.store.branch(BRANCH).ok_or("the branch is gone")?;
            if self.fenced && b.epoch < self.epoch {
                return Err(format!("stored epoch {} below {}", b.epoch, self.epoch));
            }
            if b.marks.durable > self.durable {
                return Err(format!("stored durable {} above the true {}", b.marks.durable, self.durable));
            }
            self.doubt |= power && self.medium.is_volatile();
            let may_have_ended = std::mem::take(&mut self.doubt_ending) && !power;
            if b.in_doubt != self.doubt && !may_have_ended && (self.doubt || power) {
                return Err(format!("in doubt: {} instead of {}", b.in_doubt, self.doubt));
            }
            self.doubt = b.in_doubt;
        } else {
            self.doubt = self.store.branch(BRANCH).is_some_and(|b| b.in_doubt);
        }
        for c in 0..2 {
            let held = self.store.replica(BRANCH, ChunkIndex(c));
            let due = self.incarnations[c as usize];
            if existed && held.map(|h| h.0.0) != Some(due) {
                return Err(format!("replica of chunk {c}: {held:?}, should be {due}"));
            }
            if !existed && held.is_none() {
                // Not made yet, or deleted: made anew.
                if self.deleting == Some(c) {
                    self.placed_anew(c);
                }
                self.model.blocks.retain(|at, _| at.0 != c);
                self.pending.retain(|p| p.record.chunk.0 != c);
                self.created = false;
            }
        }
        self.deleting = None;
        self.creating = false;
        self.created &= existed || self.store.replica(BRANCH, ChunkIndex(1)).is_some();
        self.settle(power)?;
        self.settled = true;
        self.check_views(true)?;
        // The session may live: then it sends again what was not answered.
        let lives = self.dice(3) > 0;
        if !lives {
            self.pending.clear();
        }
        for p in self.pending.clone() {
            for b in p.record.range.first..p.record.range.end() {
                let at = (p.record.chunk.0, b);
                let h = self.model.history(at);
                if h.last().is_none_or(|w| w.version != p.record.version) {
                    let value = match p.payload.is_empty() {
                        true => 0,
                        false => {
                            let i = (b - p.record.range.first) as usize;
                            u64::from_le_bytes(p.payload.block(i)[..8].try_into().expect("8 bytes"))
                        }
                    };
                    self.model.sent(at, value, p.record.version, p.record.generation.0);
                } else if let Some(w) = h.last_mut() {
                    w.acked = true;
                }
            }
        }
        if self.dice(4) > 0 {
            self.confirm()?;
        }
        self.resend()
    }

    fn settle(&mut self, power: bool) -> Result<(), String> {
        for (at, value) in self.look(View::Head)? {
            let what = if power { "after power loss" } else { "after a kill" };
            let place =
                self.model.allows(at, View::Head, value, power).map_err(|e| format!("{what}: {e}"))?;
            if self.model.blocks.contains_key(&at) {
                self.model.settle(at, place);
            }
        }
        Ok(())
    }

    /// Faults stop: everything is answered, goes home, and survives one more power loss.
    pub fn come_to_rest(&mut self) -> Result<(), String> {
        if self.generation > 1 {
            self.tell();
        }
        for round in 0..400 {
            // The newest list comes at last; older ones may come after it.
            let due = self.generation > 1 && self.confirmed < self.index && self.opened;
            if due && let Some(newest) = self.lists.iter().max_by_key(|l| l.index).cloned() {
                self.event(Event::Keep(newest))?;
            }
            while !self.queue.is_empty() {
                self.complete(0)?;
            }
            self.confirm()?;
            if self.opened && !self.created && self.deleting.is_none() {
                self.create()?;
            }
            if !self.fenced && round % 8 == 0 {
                self.fence()?;
            }
            self.resend()?;
            self.event(Event::TurnEnd)?;
            self.now = self.now + Span::millis(300);
            self.wake()?;
            self.check()?;
            if round > 20 && self.pending.is_empty() && self.store.is_at_rest() {
                break;
            }
        }
        if !self.pending.is_empty() {
            let stuck: Vec<_> = self.pending.iter().map(|p| p.record.version).collect();
            return Err(format!("never answered: {stuck:?}"));
        }
        if !self.store.is_at_rest() {
            return Err(format!("never at rest: {:?}", self.store.usage()));
        }
        self.check_space()?;
        for w in self.model.blocks.values_mut().flatten() {
            w.flushed |= w.acked;
        }
        self.crash_as(true)
    }
}
