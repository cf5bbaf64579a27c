//! The judge of registers against all orders, on small histories.

use oracle::register::{NEVER, Register, Stamp, Value, ZERO};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
struct Op {
    write: bool,
    value: Value,
    asked: Stamp,
    /// `NEVER`: unanswered.
    answered: Stamp,
}

/// True if some order of the operations, unanswered writes in or out, explains all reads.
fn explained(ops: &[Op], done: u32, now: Value) -> bool {
    let must = (0..ops.len()).filter(|i| done & (1 << i) == 0 && ops[*i].answered != NEVER);
    let Some(least) = must.map(|i| ops[i].answered).min() else { return true };
    (0..ops.len()).any(|i| {
        let o = ops[i];
        let usable = done & (1 << i) == 0 && o.asked < least && (o.write || o.answered != NEVER);
        usable
            && (o.write || o.value == now)
            && explained(ops, done | 1 << i, if o.write { o.value } else { now })
    })
}

/// The first answer at which the online judge objects.
fn judged(ops: &[Op]) -> Option<Stamp> {
    let mut events: Vec<(Stamp, usize, bool)> = vec![];
    for (i, o) in ops.iter().enumerate() {
        events.push((o.asked, i, true));
        if o.answered != NEVER {
            events.push((o.answered, i, false));
        }
    }
    events.sort_unstable();
    let mut r = Register::default();
    for (t, i, ask) in events {
        let o = ops[i];
        let verdict = match (ask, o.write) {
            (true, true) => {
                r.asked(o.value, o.asked, NEVER);
                Ok(())
            }
            (true, false) => Ok(()),
            (false, true) => r.acknowledged(o.asked, t),
            (false, false) => r.returned(o.value, o.asked, t),
        };
        if verdict.is_err() {
            return Some(t);
        }
    }
    None
}

/// What had happened by `t`.
fn until(ops: &[Op], t: Stamp) -> Vec<Op> {
    let cut = |o: &Op| Op { answered: if o.answered > t { NEVER } else { o.answered }, ..*o };
    ops.iter().filter(|o| o.asked <= t).map(cut).collect()
}

fn history() -> impl Strategy<Value = Vec<Op>> {
    let op = (0u8..10, 0u64..6, 0u64..30, 1u64..14, prop::bool::weighted(0.15));
    prop::collection::vec(op, 2..9).prop_map(|raw| {
        let mut n = 0;
        let mut ops = vec![];
        for (i, (kind, value, start, len, lost)) in raw.into_iter().enumerate() {
            let write = kind < 5;
            let zero = kind < 2;
            n += u64::from(write && !zero);
            let value = if !write {
                value
            } else if zero {
                ZERO
            } else {
                n
            };
            let asked = (start * 32) + i as u64 + 1;
            let answered = if lost { NEVER } else { (start + len) * 32 + 16 + i as u64 };
            ops.push(Op { write, value, asked, answered });
        }
        // a read of what is never written is trivial
        for o in ops.iter_mut().filter(|o| !o.write) {
            o.value = o.value.min(n);
        }
        ops
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_judge_agrees_with_all_orders(ops in history()) {
        match judged(&ops) {
            None => prop_assert!(explained(&ops, 0, ZERO), "the judge let it pass"),
            Some(t) => {
                prop_assert!(!explained(&until(&ops, t), 0, ZERO), "the judge objected in vain at {}", t);
                prop_assert!(explained(&until(&ops, t - 1), 0, ZERO), "the judge was late");
            }
        }
    }
}

#[test]
fn the_generator_makes_good_and_bad_histories() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut good, mut bad) = (0, 0);
    for _ in 0..2000 {
        let ops = history().new_tree(&mut runner).unwrap().current();
        if explained(&ops, 0, ZERO) { good += 1 } else { bad += 1 }
    }
    assert!(good > 200 && bad > 200, "{good} good, {bad} bad");
}
