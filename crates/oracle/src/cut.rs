//! Snapshots: a consistent cut. All that was acknowledged before the question is in it, nothing that was asked after the
//! answer, and there is *one* moment in between at which the volumes held all of it.
//!
//! Per register a snapshot is a read whose question and answer are the snapshot's. Across registers each value bounds the
//! moment: not before its write was asked for, not after the answer of a write that must have followed it.

use crate::history::{OpId, SnapshotNumber, VolumeNumber};
use crate::judge::Judge;
use crate::register::{NEVER, Stamp, Value};
use crate::violation::{Rule, Violation};

/// A bound of the moment, and the register that sets it.
#[derive(Clone, Copy)]
struct Bound {
    at: Stamp,
    volume: VolumeNumber,
    register: u64,
    value: Value,
}

impl Judge {
    pub(crate) fn snapshot_made(
        &mut self,
        snapshot: SnapshotNumber,
        volumes: &[(VolumeNumber, Vec<(u64, Value)>)],
    ) -> Result<(), Violation> {
        let none = VolumeNumber(0);
        let Some(asked) = self.snapshots.remove(&snapshot) else {
            let detail = "a snapshot that nobody asked for";
            let (rule, op) = (Rule::Log, OpId(snapshot.0));
            return Err(Violation { rule, volume: none, register: 0, op, value: 0, detail });
        };
        let bound = |at| Bound { at, volume: none, register: 0, value: 0 };
        let (mut from, mut to) = (bound(asked), bound(NEVER));
        for (volume, values) in volumes {
            // Its moment may lie before the loss: the session had drained it, and went on with the next generation, when
            // power failed. Of that past nothing is known any more.
            if self.volume(*volume).settled > asked {
                continue;
            }
            for (register, value) in values {
                if self.is_lossy(*volume, *register) {
                    continue;
                }
                self.counts.cuts += 1;
                let now = self.now;
                let r = self.volume(*volume).registers.entry(*register).or_default();
                let violation = |detail| Violation {
                    rule: Rule::Cut,
                    volume: *volume,
                    register: *register,
                    op: OpId(snapshot.0),
                    value: *value,
                    detail,
                };
                r.returned(*value, asked, now).map_err(violation)?;
                let Some((since, until)) = r.bounds(*value) else { continue };
                let here = |at| Bound { at, volume: *volume, register: *register, value: *value };
                from = if since > from.at { here(since) } else { from };
                to = if until < to.at { here(until) } else { to };
                if from.at > to.at {
                    return Err(two_moments(snapshot, from));
                }
            }
            self.flushed_by_snapshot(*volume, asked);
        }
        Ok(())
    }
}

fn two_moments(snapshot: SnapshotNumber, b: Bound) -> Violation {
    let detail = "asked for after something that the snapshot lacks was acknowledged";
    let (volume, register, value) = (b.volume, b.register, b.value);
    Violation { rule: Rule::Cut, volume, register, op: OpId(snapshot.0), value, detail }
}

#[cfg(test)]
mod tests {
    use crate::history::{Entry, History, OpId, OpKind, Outcome, SnapshotNumber, Span, VolumeNumber};
    use crate::{Judge, Rule};

    const S: SnapshotNumber = SnapshotNumber(1);
    fn v(n: u32) -> VolumeNumber {
        VolumeNumber(n)
    }
    fn ask(op: u64, volume: u32, register: u64) -> Entry {
        let kind = OpKind::Write { span: Span { first: register, count: 1 }, value: op, fua: false };
        Entry::Ask { op: OpId(op), volume: v(volume), client: 1, kind }
    }
    fn done(op: u64) -> Entry {
        Entry::Answer { op: OpId(op), outcome: Outcome::Done }
    }
    fn asked() -> Entry {
        Entry::SnapshotAsked { snapshot: S }
    }
    fn made(images: &[(u32, &[(u64, u64)])]) -> Entry {
        let volumes = images.iter().map(|(n, values)| (v(*n), values.to_vec())).collect();
        Entry::SnapshotMade { snapshot: S, volumes }
    }
    fn judge(entries: Vec<Entry>) -> Result<(), Rule> {
        Judge::whole(&History(entries)).map(|c| assert!(c.cuts > 0)).map_err(|e| e.rule)
    }

    #[test]
    fn what_was_acknowledged_before_must_be_in_it() {
        let history = |value| vec![ask(5, 1, 0), done(5), asked(), made(&[(1, &[(0, value)])])];
        assert_eq!(judge(history(5)), Ok(()));
        assert_eq!(judge(history(0)), Err(Rule::Cut));
    }

    #[test]
    fn what_was_under_way_may_be_in_it_or_not() {
        let history = |value| vec![asked(), ask(5, 1, 0), made(&[(1, &[(0, value)])]), done(5)];
        assert_eq!(judge(history(5)), Ok(()));
        assert_eq!(judge(history(0)), Ok(()));
        assert_eq!(judge(history(7)), Err(Rule::Cut));
    }

    #[test]
    fn a_value_that_was_replaced_before_the_question_is_not_in_it() {
        let entries =
            |value| vec![ask(5, 1, 0), done(5), ask(6, 1, 0), done(6), asked(), made(&[(1, &[(0, value)])])];
        assert_eq!(judge(entries(6)), Ok(()));
        assert_eq!(judge(entries(5)), Err(Rule::Cut));
    }

    /// 6 was acknowledged before 7 was asked for: whoever has 7 has 6, whatever registers or volumes they are in.
    #[test]
    fn all_registers_are_of_one_moment() {
        let history = |a, b, volume| {
            let image: Vec<(u32, &[(u64, u64)])> = vec![(1, a), (volume, b)];
            vec![
                ask(5, 1, 0),
                done(5),
                asked(),
                ask(6, 1, 0),
                done(6),
                ask(7, volume, 1),
                done(7),
                made(&image),
            ]
        };
        for volume in [1, 2] {
            assert_eq!(judge(history(&[(0, 6)], &[(1, 7)], volume)), Ok(()));
            assert_eq!(judge(history(&[(0, 6)], &[(1, 0)], volume)), Ok(()));
            assert_eq!(judge(history(&[(0, 5)], &[(1, 0)], volume)), Ok(()));
            assert_eq!(judge(history(&[(0, 5)], &[(1, 7)], volume)), Err(Rule::Cut));
        }
    }

    #[test]
    fn a_snapshot_flushes() {
        let span = Span { first: 0, count: 1 };
        let read = |value| {
            let kind = OpKind::Read { span };
            let ask = Entry::Ask { op: OpId(9), volume: v(1), client: 2, kind };
            [ask, Entry::Answer { op: OpId(9), outcome: Outcome::Read(vec![value]) }]
        };
        let history = |value, late| {
            let mut h = vec![ask(4, 1, 0), done(4), ask(5, 1, 0), done(5), asked()];
            let loss = Entry::LossPermitted { volume: v(1), span };
            if late {
                h.push(made(&[(1, &[(0, 5)])]))
            } else {
                h.push(loss.clone())
            }
            h.extend([loss, Entry::Serves { volume: v(1), client: 2 }]);
            h.extend(read(value));
            h
        };
        assert_eq!(judge(history(5, true)), Ok(()));
        assert_eq!(judge(history(4, true)), Err(Rule::Flush));
        // Lost before it was made.
        let lost = Judge::whole(&History(history(4, false)));
        assert!(lost.is_ok(), "{lost:?}");
    }

    /// The session that sealed it had lost something before, and nobody has been served since.
    #[test]
    fn a_snapshot_after_a_loss_that_is_not_settled_flushes_nothing() {
        let span = Span { first: 0, count: 1 };
        let loss = Entry::LossPermitted { volume: v(1), span };
        let read = Entry::Ask { op: OpId(9), volume: v(1), client: 2, kind: OpKind::Read { span } };
        let history = vec![
            ask(4, 1, 0),
            done(4),
            ask(5, 1, 0),
            done(5),
            loss,
            asked(),
            made(&[(1, &[(0, 4)])]),
            Entry::Serves { volume: v(1), client: 2 },
            read,
            Entry::Answer { op: OpId(9), outcome: Outcome::Read(vec![4]) },
        ];
        let judged = Judge::whole(&History(history));
        assert!(judged.is_ok(), "{judged:?}");
    }

    #[test]
    fn what_a_permitted_loss_may_have_taken_is_not_judged() {
        let span = Span { first: 0, count: 1 };
        let loss = Entry::LossPermitted { volume: v(1), span };
        let image = made(&[(1, &[(0, 0), (1, 0)])]);
        assert_eq!(judge(vec![ask(5, 1, 0), done(5), asked(), loss, image]), Ok(()));
    }
}
