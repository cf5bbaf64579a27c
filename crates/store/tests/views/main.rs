//! Views: what a resync makes equal, what keep-lists keep, serve and free. Exact effects, and properties against models.
#![allow(clippy::unwrap_used, reason = "a test")]

mod bench;
mod joins;
mod lists;
mod rules;
mod zeroes;

use bench::{BLOCKS, Bench, EXTENTS, g, list, steps};
use proptest::prelude::*;
use proto::message::{Reply, Request, Usage, View, ViewUsage};
use proto::{Generations, KeepList, Span};

#[derive(Clone, Debug)]
enum Op {
    Write {
        first: u32,
        values: Vec<u64>,
    },
    Zero {
        first: u32,
        count: u32,
    },
    /// The next ones are of the next generation, which is kept or not.
    Seal(bool),
    /// A snapshot is deleted, and (by bits) the source and the target hear of it.
    Withdraw(usize, u8),
}

fn op() -> impl Strategy<Value = Op> {
    let few = prop::collection::vec(1u64..40, 1..4);
    let whole = (0..EXTENTS, prop::collection::vec(1u64..40, 16)).prop_map(|(e, values)| (e * 16, values));
    let write = prop_oneof![4 => (0..BLOCKS, few), 1 => whole].prop_map(|(first, mut values)| {
        values.truncate((16 - first % 16) as usize);
        Op::Write { first, values }
    });
    let zero =
        (0..BLOCKS, 1u32..20).prop_map(|(first, count)| Op::Zero { first, count: count.min(BLOCKS - first) });
    let withdraw = (0usize..4, 1u8..4).prop_map(|(i, who)| Op::Withdraw(i, who));
    prop_oneof![12 => write, 4 => zero, 4 => any::<bool>().prop_map(Op::Seal), 1 => withdraw]
}

/// A session's history: generations up to five, and which of the sealed ones are kept.
struct History {
    generation: u32,
    seq: u64,
    kept: Vec<u32>,
    index: u64,
}
impl History {
    fn new() -> History {
        History { generation: 1, seq: 0, kept: Vec::new(), index: 0 }
    }
    fn list(&mut self) -> KeepList {
        self.index += 1;
        list(self.index, self.generation, self.generation, &self.kept)
    }
    fn apply(&mut self, op: &Op, stores: &mut [&mut Bench]) {
        match op {
            Op::Withdraw(..) if self.kept.is_empty() => {}
            Op::Withdraw(i, who) => {
                self.kept.remove(i % self.kept.len());
                let list = self.list();
                for (s, bit) in stores.iter_mut().zip([1, 2]) {
                    if who & bit != 0 {
                        s.keep(list.clone());
                        s.pass(Span::millis(30));
                    }
                }
            }
            Op::Seal(_) if self.generation == 5 => {}
            Op::Seal(kept) => {
                if *kept {
                    self.kept.push(self.generation);
                }
                self.generation += 1;
            }
            Op::Write { first, values } => {
                self.seq += 1;
                for s in stores {
                    let done = s.write(self.generation, self.seq, *first, values);
                    assert!(done.is_empty(), "{done:?}");
                }
            }
            Op::Zero { first, count } => {
                self.seq += 1;
                for s in stores {
                    let done = s.zero(self.generation, self.seq, *first, *count);
                    assert!(done.is_empty(), "{done:?}");
                }
            }
        }
    }
}

/// Views one after the other, with writes of the session in between; `stop`: after so many pulls it is over.
fn resync(
    source: &mut Bench,
    target: &mut Bench,
    h: &mut History,
    (number, stop): (u64, usize),
    meanwhile: &mut Vec<Op>,
) -> bool {
    let views: Generations = h.kept.iter().map(|n| g(*n)).collect();
    target.begin(number, h.generation, &views);
    let mut pulls = 0;
    for step in steps(&views, h.generation) {
        if let Some(op) = meanwhile.pop().filter(|op| !matches!(op, Op::Seal(_))) {
            h.apply(&op, &mut [source, target]);
        }
        let Some(differ) = target.differ(source, step.0, g(step.1)) else { return false };
        for extent in differ {
            if pulls == stop || !target.pull(source, number, step, extent) {
                return false;
            }
            pulls += 1;
            if let Some(op) = meanwhile.pop().filter(|op| !matches!(op, Op::Seal(_))) {
                h.apply(&op, &mut [source, target]);
            }
        }
    }
    true
}

/// What the head and each kept view see.
fn all_views(b: &Bench, h: &History, parent: bool) -> Vec<Vec<Option<proto::record::Sum>>> {
    let views = h.kept.iter().map(|n| View::At(g(*n))).chain([View::Head]);
    views.map(|v| b.look(v, parent)).collect()
}

/// Usage by brute force: what each view sees, block by block.
fn counted(b: &Bench, kept: &[u32]) -> Usage {
    let all = b.store.extents(bench::BRANCH, bench::CHUNK);
    let views: Vec<View> = kept.iter().map(|n| View::At(g(*n))).chain([View::Head]).collect();
    let seen: Vec<Vec<(u32, proto::Generation)>> = views
        .iter()
        .map(|v| {
            let at =
                |block| (block / 16, b.store.generation(bench::BRANCH, bench::CHUNK, block, *v).unwrap());
            let mut seen: Vec<_> = (0..BLOCKS).map(at).filter(|s| s.1.0 > 0).collect();
            seen.dedup();
            seen.sort_unstable();
            seen.dedup();
            seen
        })
        .collect();
    let mut usage = Usage { total: all.len() as u64, ..Usage::default() };
    let by = |x: &(u32, proto::Generation)| seen.iter().filter(|s| s.contains(x)).count();
    usage.unseen = all.iter().filter(|x| by(x) == 0).count() as u64;
    for (view, seen) in views.iter().zip(&seen) {
        let generation = if let View::At(g) = view { *g } else { proto::Generation(0) };
        let exclusive = seen.iter().filter(|x| by(x) == 1).count() as u64;
        let of = ViewUsage { generation, seen: seen.len() as u64, exclusive };
        if *view == View::Head { usage.head = of } else { usage.views.push(of) }
    }
    usage
}

/// Usage by these views, whatever list the drive has, a few physical extents at a time.
fn tallied(b: &Bench, kept: &[u32], slice: usize) -> Usage {
    let kept: Generations = kept.iter().map(|n| g(*n)).collect();
    let mut tally = store::Tally::new(&kept, true);
    let mut from = Some(0);
    while let Some(extent) = from {
        let replica = (bench::BRANCH, bench::CHUNK, bench::INCARNATION);
        from = b.store.tally(replica, extent, &mut slice.clone(), &mut tally).unwrap();
        assert!(from.is_none_or(|next| next > extent), "it goes on");
    }
    tally.usage()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// A stale replica, with writes that nobody acknowledged, becomes equal in every kept view, whatever is written
    /// meanwhile and however often the attempt starts anew; a second look finds nothing to pull. Then a list comes: what no
    /// view sees is freed, and nothing else changes, also over a power loss; and space is counted right.
    #[test]
    fn a_resync_makes_every_view_equal_and_a_list_frees_what_none_sees(
        before in prop::collection::vec(op(), 0..14),
        junk in prop::collection::vec(op(), 0..4),
        missed in prop::collection::vec(op(), 0..14),
        meanwhile in prop::collection::vec(op(), 0..8),
        stop in 0usize..6,
        (parent, crash, power, drop_last, tell) in any::<(bool, bool, bool, bool, bool)>(),
    ) {
        let (mut source, mut target) = (Bench::new(parent), Bench::new(parent));
        let mut h = History::new();
        for op in &before {
            h.apply(op, &mut [&mut source, &mut target]);
        }
        let mut alone = History { kept: Vec::new(), generation: h.generation, seq: h.seq, index: 0 };
        for op in junk.iter().filter(|op| !matches!(op, Op::Seal(_) | Op::Withdraw(..))) {
            alone.apply(op, &mut [&mut target]);
        }
        h.seq = alone.seq.max(h.seq) + 1;
        for op in &missed {
            h.apply(op, &mut [&mut source]);
        }
        // It may have heard of snapshots that it has not.
        if tell {
            target.keep(h.list());
            target.pass(Span::millis(30));
        }
        let mut meanwhile = meanwhile;
        if !resync(&mut source, &mut target, &mut h, (1, stop), &mut meanwhile) {
            if crash {
                target.restart(power);
            }
            // Each withdrawn view may end one more.
            let mut again = (11..19).map(|n| resync(&mut source, &mut target, &mut h, (n, usize::MAX), &mut meanwhile));
            prop_assert!(again.any(|whole| whole));
        }
        prop_assert_eq!(all_views(&source, &h, parent), all_views(&target, &h, parent));
        // Nothing is pulled twice, but for what was written meanwhile.
        prop_assert!(resync(&mut source, &mut target, &mut h, (3, usize::MAX), &mut Vec::new()));
        let views: Generations = h.kept.iter().map(|n| g(*n)).collect();
        prop_assert_eq!(source.digest(&views), target.digest(&views));
        prop_assert!(resync(&mut source, &mut target, &mut h, (4, 0), &mut Vec::new()));
        target.request(Request::AttemptEnd { number: 4 });

        if drop_last {
            h.kept.pop();
        }
        for s in [&mut source, &mut target] {
            s.durable(h.seq);
            let before = all_views(s, &h, parent);
            // Right before the drive has heard of it.
            prop_assert_eq!(tallied(s, &h.kept, 1), counted(s, &h.kept));
            s.keep(h.list());
            s.pass(Span::secs(40));
            prop_assert!(s.store.is_at_rest());
            prop_assert_eq!(all_views(s, &h, parent), before.clone());
            let Reply::Usage(usage) = s.request(Request::Usage).remove(0) else { panic!() };
            let sealed = s.store.extents(bench::BRANCH, bench::CHUNK);
            prop_assert_eq!(usage.unseen, 0, "{:?} of {:?}", usage, sealed);
            prop_assert_eq!(&tallied(s, &h.kept, 2), &Usage { index: proto::ListIndex(0), ..usage.clone() });
            prop_assert_eq!(Usage { index: proto::ListIndex(0), ..usage }, counted(s, &h.kept));
            s.restart(power);
            prop_assert_eq!(all_views(s, &h, parent), before);
            s.pass(Span::secs(40));
        }
    }
}
