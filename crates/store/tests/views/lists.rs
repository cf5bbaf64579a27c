//! Keep-lists that come late, twice, out of order or never, against Raft's truth and a set for each replica.

use crate::bench::{BRANCH, Bench, CHUNK, INCARNATION, g};
use crate::{History, Op, op, resync};
use proptest::prelude::*;
use proto::message::View;
use proto::record::Sum;
use proto::{Incarnation, KeepList, ListIndex, Span};
use std::collections::{BTreeMap, BTreeSet};
use store::{Effect, Event};

#[derive(Clone, Debug)]
enum Step {
    Io(Op),
    Seal,
    Confirm,
    CallOff,
    /// The session hears that it was called off.
    Hear,
    Delete(usize),
    Drop,
    Promote,
    /// metad tells the list again.
    Tell,
    /// One of the lists under way arrives; it may come once more.
    Arrive(usize, bool),
    Time,
    Crash(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let io = op().prop_filter("no seals here", |op| !matches!(op, Op::Seal(_) | Op::Withdraw(..)));
    prop_oneof![
        10 => io.prop_map(Step::Io),
        3 => Just(Step::Seal),
        4 => Just(Step::Confirm),
        1 => Just(Step::CallOff),
        1 => Just(Step::Hear),
        2 => (0usize..4).prop_map(Step::Delete),
        1 => Just(Step::Drop),
        2 => Just(Step::Promote),
        2 => Just(Step::Tell),
        6 => (0usize..4, any::<bool>()).prop_map(|(i, again)| Step::Arrive(i, again)),
        3 => Just(Step::Time),
        1 => any::<bool>().prop_map(Step::Crash),
    ]
}

/// What Raft knows, and one drive whose lists travel; `source` is another replica, always in-sync, that never gets a list.
struct World {
    source: Bench,
    target: Bench,
    h: History,
    head: u32,
    open: u32,
    sealing: Option<u32>,
    kept: BTreeSet<u32>,
    in_sync: bool,
    index: u64,
    travelling: Vec<KeepList>,
    /// Sealed views as they were when they were confirmed.
    images: BTreeMap<u32, Vec<Option<Sum>>>,
    /// Those that the target truly holds.
    held: BTreeSet<u32>,
    /// What it says that it holds, by the index of the list that it has obeyed last.
    said: BTreeMap<u64, BTreeSet<u32>>,
    obeyed: u64,
    confirmed: u64,
    attempt: u64,
}

impl World {
    fn new() -> World {
        World {
            source: Bench::new(false),
            target: Bench::new(false),
            h: History::new(),
            head: 1,
            open: 1,
            sealing: None,
            kept: BTreeSet::new(),
            in_sync: true,
            index: 1,
            travelling: Vec::new(),
            images: BTreeMap::new(),
            held: BTreeSet::new(),
            said: BTreeMap::from([(0, BTreeSet::new())]),
            obeyed: 0,
            confirmed: 0,
            attempt: 0,
        }
    }
    fn tell(&mut self) {
        self.index += 1;
        self.travelling.push(KeepList {
            branch: BRANCH,
            index: ListIndex(self.index),
            placed: INCARNATION,
            open: g(self.open),
            head: g(self.head),
            named: true,
            kept: self.kept.iter().map(|n| g(*n)).collect(),
            behind: if self.in_sync { vec![] } else { vec![(CHUNK, INCARNATION)] },
        });
    }
    fn step(&mut self, step: &Step) {
        match step {
            Step::Io(op) => {
                let mut both = vec![&mut self.source];
                if self.in_sync {
                    both.push(&mut self.target);
                }
                self.h.apply(op, &mut both);
            }
            Step::Seal if self.sealing.is_none() && self.head < 9 => {
                self.sealing = Some(self.head);
                self.kept.insert(self.head);
                self.head += 1;
                self.tell();
            }
            Step::Confirm => {
                let Some(sealed) = self.sealing.take() else { return };
                for s in [&mut self.source, &mut self.target] {
                    s.request(proto::message::Request::Flush);
                }
                self.open = self.head;
                self.h.generation = self.head;
                self.images.insert(sealed, self.source.at(sealed, false));
                if self.in_sync {
                    self.held.insert(sealed);
                }
                self.tell();
            }
            Step::CallOff => {
                let Some(sealing) = self.sealing.take() else { return };
                self.kept.remove(&sealing);
                self.tell();
            }
            Step::Hear if self.sealing.is_none() => self.h.generation = self.head,
            Step::Delete(i) => {
                let sealed: Vec<u32> =
                    self.kept.iter().copied().filter(|n| Some(*n) != self.sealing).collect();
                if let Some(n) = sealed.get(i % sealed.len().max(1)) {
                    self.kept.remove(n);
                    self.tell();
                }
            }
            Step::Drop => {
                self.in_sync = false;
                self.tell();
            }
            Step::Promote if !self.in_sync => self.promote(),
            Step::Tell => self.tell(),
            Step::Arrive(i, again) if !self.travelling.is_empty() => {
                let at = i % self.travelling.len();
                let list = if *again { self.travelling[at].clone() } else { self.travelling.remove(at) };
                self.arrive(list);
            }
            Step::Time => self.target.pass(Span::millis(1500)),
            Step::Crash(power) => self.crash(*power),
            _ => {}
        }
    }
    fn promote(&mut self) {
        self.attempt += 1;
        self.h.kept = self.kept.iter().copied().filter(|n| *n < self.open).collect();
        let (source, target) = (&mut self.source, &mut self.target);
        assert!(resync(source, target, &mut self.h, (self.attempt, usize::MAX), &mut Vec::new()));
        target.request(proto::message::Request::AttemptEnd { number: self.attempt });
        target.request(proto::message::Request::Flush);
        self.in_sync = true;
        self.held.extend(self.h.kept.iter().copied());
        self.tell();
    }
    fn arrive(&mut self, list: KeepList) {
        if list.index.0 > self.obeyed {
            let mut said = self.said[&self.obeyed].clone();
            said.retain(|n| list.kept.contains(g(*n)));
            if list.behind.is_empty() {
                said.extend(list.kept.below(list.open).iter().map(|g| g.0));
            }
            self.obeyed = list.index.0;
            self.said.insert(self.obeyed, said);
        }
        self.target.keep(list);
    }
    fn crash(&mut self, power: bool) {
        self.note_confirmed();
        self.target.restart(power);
        // What was flushed of a list stays; what was confirmed is flushed.
        let (index, _, _) = self.target.store.kept(BRANCH).unwrap();
        assert!(index.0 >= self.confirmed && index.0 <= self.obeyed, "{index:?} of {}", self.obeyed);
        self.obeyed = index.0;
        // Writes that were answered and not flushed may be gone: the session drops it.
        self.in_sync = false;
        self.tell();
    }
    fn note_confirmed(&mut self) {
        for e in self.target.effects() {
            if let Effect::Kept { index, .. } = e {
                assert!(index.0 <= self.index);
                self.confirmed = self.confirmed.max(index.0);
            }
        }
    }
    fn check(&self) {
        self.target.store.check();
        let said = &self.said[&self.obeyed];
        for n in 1..self.head {
            let serves = self.target.store.serves(BRANCH, CHUNK, g(n));
            assert_eq!(serves, said.contains(&n), "view {n} of {said:?}");
            assert!(!serves || self.held.contains(&n), "{n} is served and not held");
            let wanted = serves || (self.kept.contains(&n) && self.held.contains(&n));
            if wanted && self.images.contains_key(&n) {
                assert_eq!(self.target.at(n, false), self.images[&n], "view {n}");
            }
        }
        if self.in_sync {
            assert_eq!(self.target.look(View::Head, false), self.source.look(View::Head, false), "the head");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// A replica serves what a set of complete views per list says, and it truly holds that; no view that Raft keeps ever
    /// changes there; and once the newest list has come, all that is in-sync is served, and nothing unseen stays.
    #[test]
    fn lists_that_come_late_or_twice_or_never_free_too_little_and_serve_nothing_false(
        steps in prop::collection::vec(step(), 10..90),
    ) {
        let mut w = World::new();
        for step in &steps {
            w.step(step);
            w.check();
        }
        w.step(&Step::Confirm);
        if !w.in_sync {
            w.promote();
        }
        w.tell();
        let newest = w.travelling.pop().unwrap();
        w.arrive(newest);
        for late in std::mem::take(&mut w.travelling) {
            w.arrive(late);
        }
        w.target.durable(w.h.seq);
        w.target.pass(Span::secs(40));
        w.check();
        w.note_confirmed();
        prop_assert_eq!(w.confirmed, w.index);
        for n in 1..w.head {
            let due = w.kept.contains(&n) && n < w.open;
            prop_assert_eq!(w.target.store.serves(BRANCH, CHUNK, g(n)), due, "view {}", n);
        }
        prop_assert!(w.target.store.is_at_rest());
        let kept: Vec<u32> = w.kept.iter().copied().collect();
        let unseen = |x: &(u32, proto::Generation)| {
            let views = kept.iter().map(|n| View::At(g(*n))).chain([View::Head]);
            let mut seen = views.flat_map(|v| (x.0 * 16..x.0 * 16 + 16).map(move |b| (v, b)));
            !seen.any(|(v, b)| w.target.store.generation(BRANCH, CHUNK, b, v) == Some(x.1))
        };
        let mut left = w.target.store.extents(BRANCH, CHUNK);
        left.retain(|x| x.1 < g(w.open) && unseen(x));
        prop_assert!(left.is_empty(), "{:?} of {:?}", left, kept);
    }
}

#[test]
fn a_replica_placed_after_a_list_is_none_of_its_business() {
    let mut b = Bench::new(false);
    b.write(1, 1, 0, &[5]);
    let behind = |list: KeepList| KeepList { behind: vec![(CHUNK, INCARNATION)], ..list };
    b.keep(behind(crate::list(4, 2, 2, &[1])));
    assert!(!b.store.serves(BRANCH, CHUNK, g(1)), "it is behind");
    let young = Incarnation(INCARNATION.0 + 1);
    b.create(false, young);
    b.keep(crate::list(5, 2, 2, &[1]));
    assert!(!b.store.serves(BRANCH, CHUNK, g(1)), "the list speaks of the one before");
    b.keep(KeepList { placed: young, ..crate::list(6, 2, 2, &[1]) });
    assert!(b.store.serves(BRANCH, CHUNK, g(1)));
}

#[test]
fn a_list_for_what_is_not_here_is_confirmed_and_one_that_waits_for_its_flush_is_not() {
    let mut b = Bench::new(false);
    b.effects();
    let kept = |b: &mut Bench| -> Vec<u64> {
        b.effects()
            .iter()
            .filter_map(|e| if let Effect::Kept { index, .. } = e { Some(index.0) } else { None })
            .collect()
    };
    b.event(Event::Keep(KeepList { branch: proto::BranchId(77), ..crate::list(3, 2, 2, &[1]) }));
    assert_eq!(kept(&mut b), [3]);
    b.store.handle(b.now, Event::Keep(crate::list(4, 2, 2, &[1])));
    b.store.handle(b.now, Event::Keep(crate::list(4, 2, 2, &[1])));
    assert!(b.store.poll().is_none(), "nothing is durable yet");
    b.event(Event::TurnEnd);
    b.pass(Span::secs(2));
    assert_eq!(kept(&mut b), [4]);
    b.keep(crate::list(2, 2, 2, &[]));
    assert_eq!(kept(&mut b), [2], "an older one changes nothing");
    assert!(b.store.serves(BRANCH, CHUNK, g(1)));
}

/// A list of more windows than one batch holds: what a crash leaves of it is a prefix, and nothing is lost or freed by that.
#[test]
fn a_list_that_a_crash_cuts_short_is_obeyed_when_it_comes_again() {
    let many: Vec<u32> = (0..90).map(|w| w * 1536 + 1).collect();
    let some: Vec<u32> = many.iter().copied().filter(|n| n / 1536 % 3 == 1).collect();
    for cut in 0..3 {
        let mut b = Bench::new(false);
        b.write(1, 1, 0, &[1]);
        b.write(2, 2, 0, &[2]);
        let open = 90 * 1536;
        b.durable(2);
        if cut != 1 {
            b.keep(crate::list(5, open, open, &many));
            b.pass(Span::secs(2));
        }
        let kept = if cut == 2 { &some } else { &many };
        let list = KeepList { behind: vec![(CHUNK, INCARNATION)], ..crate::list(6, open, open, kept) };
        b.store.handle(b.now, Event::Keep(list.clone()));
        b.store.handle(b.now, Event::TurnEnd);
        let mut ios = Vec::new();
        while let Some(e) = b.store.poll() {
            if let Effect::Io { io, op } = e {
                b.medium.submit(io, op);
                ios.push(io);
            }
        }
        if cut == 0 {
            assert!(ios.len() == 1 && b.store.kept(BRANCH).unwrap().0 == ListIndex(6));
        } else {
            assert!(ios.len() > 1, "several batches");
        }
        // The first batch is on the drive, and no more.
        b.medium.complete(ios[0]);
        b.restart(false);
        b.store.check();
        if cut > 0 {
            let (index, _, found) = b.store.kept(BRANCH).unwrap();
            assert!(index < ListIndex(6), "{index:?}");
            assert!(found.count() > 0 && found.iter().all(|n| many.contains(&n.0)));
            assert!(many.iter().all(|n| !b.store.serves(BRANCH, CHUNK, g(*n)) || found.contains(g(*n))));
        }
        b.pass(Span::secs(3));
        // What is withdrawn by then may be freed by then.
        let withdrawn = cut == 2;
        assert!(withdrawn || b.at(1, false)[0] == Some(Sum::of(&crate::bench::page(1))), "{cut}");
        assert_eq!(b.look(View::Head, false)[0], Some(Sum::of(&crate::bench::page(2))));
        b.keep(list);
        b.pass(Span::secs(3));
        let (index, _, found) = b.store.kept(BRANCH).unwrap();
        b.store.check();
        assert_eq!((index, found.count()), (ListIndex(6), kept.len() as u64));
        let serves = b.store.serves(BRANCH, CHUNK, g(1537));
        assert_eq!(serves, cut != 1, "what it held before stays");
        b.restart(true);
        b.store.check();
        assert_eq!(b.store.kept(BRANCH).unwrap().2, found);
    }
}
