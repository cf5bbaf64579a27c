//! The judge: feeds a history's entries to the registers, online.

use crate::history::{Entry, History, OpId, OpKind, Outcome, SnapshotNumber, Span, VolumeNumber};
use crate::register::{Register, Stamp, Value};
use crate::violation::{Rule, Violation};
use std::collections::{BTreeMap, BTreeSet};

/// How much was checked: a judge that checked nothing has judged nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Values of reads, and acknowledgements of writes, per register.
    pub linearizable: u64,
    /// Registers whose past was cut by a permitted loss and judged by the flush rule.
    pub flush: u64,
    pub errors_permitted: u64,
    pub flushes: u64,
    /// Registers of snapshots.
    pub cuts: u64,
    /// Registers that begin with what their parent's view holds.
    pub beginnings: u64,
}

#[derive(Clone, Debug)]
struct Op {
    volume: VolumeNumber,
    client: u32,
    kind: OpKind,
    asked: Stamp,
    /// An error is permitted if it was so at any moment of the operation.
    excused: bool,
}

#[derive(Default, Debug)]
pub(crate) struct Volume {
    pub(crate) registers: BTreeMap<u64, Register>,
    /// The youngest client served, and since when.
    served: u32,
    served_at: Stamp,
    /// Latest question of a flush that was answered: what was complete by then is flushed.
    flushed: Stamp,
    /// Questions of acknowledged forced writes.
    fua: BTreeSet<Stamp>,
    /// Questions by client, for the deadlines of those that are replaced.
    unanswered: BTreeMap<Stamp, u32>,
    lossy: Vec<Span>,
    /// When a loss was last permitted.
    lossy_since: Stamp,
    /// When one was last settled: registers' pasts end there.
    pub(crate) settled: Stamp,
    errors_permitted: bool,
}

/// Judges a history as it happens.
#[derive(Default, Debug)]
pub struct Judge {
    pub(crate) now: Stamp,
    ops: BTreeMap<OpId, Op>,
    pub(crate) volumes: BTreeMap<VolumeNumber, Volume>,
    /// Snapshots asked for, and when.
    pub(crate) snapshots: BTreeMap<SnapshotNumber, Stamp>,
    pub counts: Counts,
}

impl Judge {
    /// Offline: the first violation of a whole history.
    pub fn whole(history: &History) -> Result<Counts, Violation> {
        let mut j = Judge::default();
        for e in &history.0 {
            j.entry(e.clone())?;
        }
        Ok(j.counts)
    }

    pub fn entry(&mut self, entry: Entry) -> Result<(), Violation> {
        self.now += 1;
        match entry {
            Entry::Ask { op, volume, client, kind } => self.ask(op, volume, client, kind),
            Entry::Answer { op, outcome } => return self.answer(op, &outcome),
            Entry::Serves { volume, client } => self.serves(volume, client),
            Entry::LossPermitted { volume, span } => {
                let now = self.now;
                let v = self.volume(volume);
                v.lossy.push(span);
                v.lossy_since = now;
            }
            Entry::SnapshotAsked { snapshot } => drop(self.snapshots.insert(snapshot, self.now)),
            Entry::SnapshotMade { snapshot, volumes } => return self.snapshot_made(snapshot, &volumes),
            Entry::Begins { volume, values } => return self.begins(volume, &values),
            Entry::ErrorsPermitted { volume, permitted } => {
                self.volume(volume).errors_permitted = permitted;
                for op in self.ops.values_mut().filter(|o| o.volume == volume) {
                    op.excused |= permitted;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn volume(&mut self, v: VolumeNumber) -> &mut Volume {
        self.volumes.entry(v).or_default()
    }

    fn begins(&mut self, volume: VolumeNumber, values: &[(u64, Option<Value>)]) -> Result<(), Violation> {
        let now = self.now;
        let v = self.volume(volume);
        for (register, value) in values {
            let r = v.registers.entry(*register).or_default();
            let (op, read) = (OpId(0), value.unwrap_or_default());
            let violation = |detail| Violation {
                rule: Rule::Linearizable,
                volume,
                register: *register,
                op,
                value: read,
                detail,
            };
            r.begins(*value, now).map_err(violation)?;
        }
        self.counts.beginnings += values.len() as u64;
        Ok(())
    }

    fn ask(&mut self, id: OpId, volume: VolumeNumber, client: u32, kind: OpKind) {
        let now = self.now;
        let v = self.volume(volume);
        let excused = v.errors_permitted;
        if let Some((span, value)) = kind.writes() {
            let deadline = if client < v.served { v.served_at } else { crate::register::NEVER };
            for r in span.each() {
                v.registers.entry(r).or_default().asked(value, now, deadline);
            }
            v.unanswered.insert(now, client);
        }
        let double = self.ops.insert(id, Op { volume, client, kind, asked: now, excused });
        assert!(double.is_none(), "an operation's number is used once");
    }

    fn answer(&mut self, id: OpId, outcome: &Outcome) -> Result<(), Violation> {
        let Some(op) = self.ops.remove(&id) else {
            return Err(Violation {
                rule: Rule::Log,
                volume: VolumeNumber(0),
                register: 0,
                op: id,
                value: 0,
                detail: "an answer to what was not asked",
            });
        };
        let fail = |rule, register, value, detail| {
            Err(Violation { rule, volume: op.volume, register, op: id, value, detail })
        };
        match (outcome, &op.kind) {
            (Outcome::Gone, _) => Ok(()),
            (Outcome::Failed, _) if op.excused => {
                self.counts.errors_permitted += 1;
                Ok(())
            }
            (Outcome::Failed, _) => fail(Rule::Error, 0, 0, "an I/O error within promised damage"),
            (Outcome::Torn(register), _) => {
                fail(Rule::Torn, *register, 0, "pieces of several writes, or foreign bytes")
            }
            (Outcome::Read(values), OpKind::Read { span }) => {
                if values.len() as u64 != span.count {
                    return fail(Rule::Log, span.first, 0, "a read of another length");
                }
                let values = span.each().zip(values.iter().copied());
                self.read_done(id, &op, values)
            }
            (Outcome::Partly(values), OpKind::Read { .. }) => self.read_done(id, &op, values.iter().copied()),
            (Outcome::Done, OpKind::Flush) => {
                let v = self.volumes.entry(op.volume).or_default();
                if op.client >= v.served {
                    v.flushed = v.flushed.max(op.asked);
                    self.counts.flushes += 1;
                }
                Ok(())
            }
            (Outcome::Done, kind) if kind.writes().is_some() => self.write_done(id, &op),
            _ => fail(Rule::Log, 0, 0, "an answer of the wrong kind"),
        }
    }

    fn read_done(
        &mut self,
        id: OpId,
        op: &Op,
        values: impl Iterator<Item = (u64, Value)>,
    ) -> Result<(), Violation> {
        let v = self.volumes.entry(op.volume).or_default();
        for (register, value) in values {
            let r = v.registers.entry(register).or_default();
            self.counts.linearizable += 1;
            if let Err(detail) = r.returned(value, op.asked, self.now) {
                let rule = if detail.contains("flush") { Rule::Flush } else { Rule::Linearizable };
                return Err(Violation { rule, volume: op.volume, register, op: id, value, detail });
            }
        }
        Ok(())
    }

    fn write_done(&mut self, id: OpId, op: &Op) -> Result<(), Violation> {
        let Some((span, value)) = op.kind.writes() else { return Ok(()) };
        let v = self.volumes.entry(op.volume).or_default();
        v.unanswered.remove(&op.asked);
        if op.kind.fua() {
            v.fua.insert(op.asked);
        }
        for register in span.each() {
            let r = v.registers.entry(register).or_default();
            self.counts.linearizable += 1;
            if let Err(detail) = r.acknowledged(op.asked, self.now) {
                return Err(Violation {
                    rule: Rule::Linearizable,
                    volume: op.volume,
                    register,
                    op: id,
                    value,
                    detail,
                });
            }
        }
        Ok(())
    }

    /// What was acknowledged before a snapshot was asked for is flushed, if nothing was lost in between, or is to be
    /// settled yet.
    pub(crate) fn flushed_by_snapshot(&mut self, volume: VolumeNumber, asked: Stamp) {
        let v = self.volume(volume);
        if v.lossy_since < asked && v.lossy.is_empty() {
            v.flushed = v.flushed.max(asked);
        }
    }
    /// True if the register's past is open: a loss is permitted, and nobody has been served since.
    pub(crate) fn is_lossy(&self, volume: VolumeNumber, register: u64) -> bool {
        self.volumes
            .get(&volume)
            .is_some_and(|v| v.lossy.iter().any(|s| (s.first..s.first + s.count).contains(&register)))
    }

    fn serves(&mut self, volume: VolumeNumber, client: u32) {
        let now = self.now;
        let v = self.volumes.entry(volume).or_default();
        if client < v.served {
            return; // an opening that finished after a newer one: it can do nothing
        }
        if client > v.served {
            let late: BTreeSet<Stamp> =
                v.unanswered.iter().filter(|(_, c)| **c < client).map(|(s, _)| *s).collect();
            if !late.is_empty() {
                for r in v.registers.values_mut() {
                    r.settle(now, |asked| late.contains(&asked));
                }
                v.unanswered.retain(|s, _| !late.contains(s));
            }
            v.served = client;
            v.served_at = now;
        }
        let mut lost = BTreeSet::new();
        for span in std::mem::take(&mut v.lossy) {
            lost.extend(v.registers.range(span.each()).map(|(r, _)| *r));
        }
        if !lost.is_empty() {
            v.settled = now;
        }
        for r in lost {
            if let Some(register) = v.registers.get_mut(&r) {
                register.lose(now, v.flushed, |asked| v.fua.contains(&asked));
                self.counts.flush += 1;
            }
        }
    }
}
