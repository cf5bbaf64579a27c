//! Joins: a thousand snapshots deleted in any order give their space back, to the extent.

use crate::bench::{BLOCKS, BRANCH, Bench, CHUNK, EXTENTS, g, list, page};
use proto::message::{Reply, Request, View};
use proto::record::Sum;
use proto::{Generation, Span};
use std::collections::{BTreeMap, BTreeSet};

fn homes(b: &Bench) -> Vec<(u32, Generation)> {
    b.store.extents(BRANCH, CHUNK)
}

/// What was written in each generation, as sets of blocks: the truth by brute force.
#[derive(Default)]
struct Model {
    /// Per generation: blocks with bytes, and extents zeroed as a whole before them.
    written: BTreeMap<u32, (BTreeSet<u32>, BTreeSet<u32>)>,
    kept: BTreeSet<u32>,
    head: u32,
    /// The head's blocks, and those of each kept view.
    now: Vec<Option<Sum>>,
    images: BTreeMap<u32, Vec<Option<Sum>>>,
    seq: u64,
}

impl Model {
    fn new() -> Model {
        Model { head: 1, now: vec![None; BLOCKS as usize], ..Model::default() }
    }
    fn write(&mut self, b: &mut Bench, first: u32, values: &[u64]) {
        self.seq += 1;
        assert!(b.write(self.head, self.seq, first, values).is_empty());
        let at = self.written.entry(self.head).or_default();
        for (block, value) in (first..).zip(values) {
            at.0.insert(block);
            self.now[block as usize] = Some(Sum::of(&page(*value)));
        }
    }
    /// Only what this generation has not written: there it would be zeroes beside bytes, in a home.
    fn zero(&mut self, b: &mut Bench, extent: u32) {
        let at = self.written.entry(self.head).or_default();
        if at.0.iter().any(|block| block / 16 == extent) {
            return;
        }
        self.seq += 1;
        at.1.insert(extent);
        assert!(b.zero(self.head, self.seq, extent * 16, 16).is_empty());
        self.now[(extent * 16) as usize..(extent * 16 + 16) as usize].fill(None);
    }
    fn snapshot(&mut self, b: &mut Bench) {
        drain(b);
        self.images.insert(self.head, self.now.clone());
        self.kept.insert(self.head);
        self.head += 1;
        self.tell(b);
    }
    fn tell(&self, b: &mut Bench) {
        let kept: Vec<u32> = self.kept.iter().copied().collect();
        let index = b.index();
        b.keep(list(index, self.head, self.head, &kept));
    }
    fn delete(&mut self, b: &mut Bench, snapshot: u32) {
        self.kept.remove(&snapshot);
        self.images.remove(&snapshot);
        self.tell(b);
    }
    /// One extent for each interval between views in which an extent was written, if a view sees a block of it.
    fn extents(&self) -> usize {
        let mut ends: Vec<u32> = self.kept.iter().copied().collect();
        ends.extend([self.head - 1, self.head]);
        let mut count = 0;
        for extent in 0..EXTENTS {
            let (mut from, mut parts) = (0, Vec::new());
            for end in &ends {
                let (mut data, mut zero) = (BTreeSet::new(), false);
                let part = self.written.iter().filter(|(at, _)| **at > from && **at <= *end);
                for (_, (blocks, zeroed)) in part {
                    if zeroed.contains(&extent) {
                        data.clear();
                        zero = true;
                    }
                    data.extend(blocks.iter().copied().filter(|block| block / 16 == extent));
                }
                parts.push((data, zero));
                from = *end;
            }
            let head = parts.pop().expect("the head is there");
            let rest = parts.pop().expect("and what is sealed behind the last view");
            // A view sees its own part. What is sealed behind the last one only the head sees.
            count += parts.iter().filter(|(data, _)| !data.is_empty()).count();
            count += usize::from(!head.0.is_empty());
            let hidden = head.1 || rest.0.iter().all(|block| head.0.contains(block));
            count += usize::from(!hidden);
        }
        count
    }
    fn check(&self, b: &mut Bench) {
        b.durable(self.seq);
        b.pass(Span::secs(40));
        assert!(b.store.is_at_rest(), "{:?}", b.store.usage());
        b.store.check();
        assert_eq!(b.look(View::Head, false), self.now);
        for (view, image) in &self.images {
            assert_eq!(&b.at(*view, false), image, "view {view}");
        }
        assert_eq!(homes(b).len(), self.extents(), "{:?} kept {:?} head {}", homes(b), self.kept, self.head);
        let [Reply::Usage(usage)] = &b.request(Request::Usage)[..] else { panic!() };
        assert_eq!((usage.total, usage.unseen), (self.extents() as u64, 0));
    }
}

/// Whatever waits for room in the journal is done, and flushed: as for a seal.
fn drain(b: &mut Bench) {
    while b.store.usage().waiting > 0 {
        b.pass(Span::millis(20));
    }
    b.request(Request::Flush);
}

fn below(rng: &mut u64, n: u64) -> u64 {
    *rng ^= *rng << 13;
    *rng ^= *rng >> 7;
    *rng ^= *rng << 17;
    *rng % n
}

fn some_writes(m: &mut Model, b: &mut Bench, rng: &mut u64) {
    for _ in 0..below(rng, 4) {
        let first = u32::try_from(below(rng, u64::from(BLOCKS))).unwrap();
        match below(rng, 8) {
            0 => m.zero(b, first / 16),
            1 => m.write(b, first / 16 * 16, &[m.seq + 1000; 16]),
            n => {
                let count = usize::try_from(n - 1).unwrap().min(16 - first as usize % 16);
                m.write(b, first, &vec![m.seq + 1000; count]);
            }
        }
    }
}

/// Snapshots made, and deleted in random order under further writes, with crashes in between.
fn many(snapshots: u32, seed: u64) {
    let mut b = Bench::sized(160 << 20, false);
    b.checks = snapshots < 100;
    let (mut m, mut rng) = (Model::new(), seed);
    for _ in 0..snapshots {
        some_writes(&mut m, &mut b, &mut rng);
        m.snapshot(&mut b);
    }
    m.check(&mut b);
    let mut left: Vec<u32> = m.kept.iter().copied().collect();
    let mut rounds = 0;
    while !left.is_empty() {
        let at = usize::try_from(below(&mut rng, left.len() as u64)).unwrap();
        m.delete(&mut b, left.swap_remove(at));
        if below(&mut rng, 8) == 0 {
            some_writes(&mut m, &mut b, &mut rng);
        }
        if below(&mut rng, u64::from(snapshots / 8)) == 0 {
            if below(&mut rng, 2) == 0 {
                drain(&mut b);
                b.restart(below(&mut rng, 2) == 0);
            }
            m.check(&mut b);
            rounds += 1;
        }
    }
    m.check(&mut b);
    assert!(rounds > 1 || snapshots < 20);
    b.restart(true);
    m.check(&mut b);
}

#[test]
fn a_thousand_snapshots_give_their_space_back_to_the_extent() {
    many(1000, 7);
}

#[test]
fn so_do_a_few() {
    for seed in 1..12 {
        many(20, seed);
    }
}

#[test]
fn what_no_view_tells_apart_is_joined_and_listings_stay_equal() {
    let (mut a, mut b) = (Bench::new(true), Bench::new(true));
    for s in [&mut a, &mut b] {
        s.write(1, 1, 0, &[1, 1, 1]);
        s.write(2, 2, 1, &[2]);
        s.zero(2, 3, 16, 16);
        s.write(3, 4, 2, &[3]);
        s.write(3, 5, 20, &[4]);
        s.write(4, 6, 5, &[5]);
        s.keep(list(1, 4, 4, &[1, 2, 3]));
        s.durable(6);
    }
    a.keep(list(2, 4, 4, &[3]));
    a.pass(Span::secs(5));
    let mut left = homes(&a);
    left.sort_unstable();
    assert_eq!(left, [(0, g(3)), (0, g(4)), (1, g(3))]);
    assert_eq!(a.store.zero_extents(BRANCH, CHUNK), [(1, g(3))], "the bit went along");
    assert_eq!((a.look(View::Head, true), a.at(3, true)), (b.look(View::Head, true), b.at(3, true)));
    let views = crate::bench::set(&[3]);
    assert_eq!(a.digest(&views), b.digest(&views));
    a.restart(true);
    assert_eq!((a.look(View::Head, true), a.at(3, true)), (b.look(View::Head, true), b.at(3, true)));
}

#[test]
fn what_many_snapshots_alone_had_of_one_extent_goes_at_once() {
    let mut b = Bench::sized(160 << 20, false);
    for n in 1..=60 {
        b.write(n, u64::from(n), 0, &[u64::from(n) + 100; 16]);
    }
    drain(&mut b);
    assert_eq!(homes(&b).len(), 60);
    let index = b.index();
    b.keep(list(index, 60, 60, &[]));
    b.pass(Span::millis(200));
    // one drop after the other, with a pause between them, would have taken more than a second
    assert_eq!(homes(&b), [(0, g(60))]);
}
