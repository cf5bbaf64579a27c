//! Whole zero extents take no space, and are not forgotten while something lies beneath.

use crate::bench::{BRANCH, Bench, CHUNK, EXTENTS, g, list, page, set};
use proto::message::*;
use proto::record::Sum;
use proto::*;

fn sum(value: u64) -> Option<Sum> {
    Some(Sum::of(&page(value)))
}
fn homes(b: &Bench) -> Vec<(u32, Generation)> {
    b.store.extents(BRANCH, CHUNK)
}
fn bits(b: &Bench) -> Vec<(u32, Generation)> {
    b.store.zero_extents(BRANCH, CHUNK)
}
fn probe(b: &mut Bench, generation: u32, first: u32, count: u32) -> bool {
    let probe = Probe { generation: g(generation), range: BlockRange::new(first, count), zero: true };
    let replies = b.request(Request::Credit { want: 0, probe: Some(probe) });
    let [Reply::Credit { granted: 0, allocated }] = replies[..] else { panic!("{replies:?}") };
    allocated
}
fn reported(b: &mut Bench) -> Vec<(u32, Generation, Version)> {
    let scope = b.scope();
    let replies = b.ask(scope, Request::Fence { number: 1, holder: NodeId(2) });
    let [Reply::Report(report)] = &replies[..] else { panic!("{replies:?}") };
    let extents = |r: &proto::message::ReportedRun| {
        let (generation, version) = (r.generation, r.version);
        (r.first..r.first + r.count).map(move |e| (e, generation, version))
    };
    report.runs.iter().flat_map(extents).collect()
}
/// Writes until the drive has no space but its reserve.
fn fill(b: &mut Bench, generation: u32) {
    let mut seq = 1000;
    while !matches!(
        b.request(Request::Credit { want: 1, probe: None })[..],
        [Reply::Credit { granted: 0, .. }]
    ) {
        seq += 1;
        b.write_far(generation, seq, u32::try_from(seq).unwrap() - 900);
    }
}

#[test]
fn a_discard_over_a_snapshot_takes_no_extent_and_survives_anything() {
    let mut b = Bench::new(false);
    b.write(1, 1, 0, &[1; 16]);
    b.keep(list(1, 2, 2, &[1]));
    b.zero(2, 2, 0, 16);
    for crash in [None, Some(false), Some(true)] {
        crash.into_iter().for_each(|power| b.restart(power));
        assert_eq!((homes(&b), bits(&b)), (vec![(0, g(1))], vec![(0, g(2))]), "{crash:?}");
        assert_eq!((b.look(View::Head, true)[3], b.at(1, true)[3]), (Some(Sum(0)), sum(1)), "{crash:?}");
        b.request(Request::Flush);
    }
    let map = b.request(Request::Changes { view: View::Head, after: g(1), range: BlockRange::new(0, 17) });
    let [Reply::Map { runs }] = &map[..] else { panic!("{map:?}") };
    let runs: Vec<_> = runs.iter().map(|r| (r.state, r.count)).collect();
    assert_eq!(runs, [(BlockState::Zero, 16), (BlockState::Absent, 1)]);
    let [Reply::Usage(usage)] = &b.request(Request::Usage)[..] else { panic!() };
    assert_eq!((usage.total, usage.head.seen, usage.views[0].exclusive), (1, 0, 1));
    assert_eq!(
        reported(&mut b),
        [(0, g(2), Version::new(Epoch(1), 2)), (0, g(1), Version::new(Epoch(1), 1))]
    );
    // The snapshot goes, and with it all that the bit was for.
    b.durable(2);
    b.keep(list(2, 2, 2, &[]));
    b.pass(Span::secs(5));
    assert_eq!((homes(&b), bits(&b)), (vec![], vec![]));
    b.restart(true);
    assert_eq!((homes(&b), bits(&b)), (vec![], vec![]));
}

#[test]
fn in_a_clone_zeroes_stay_and_what_was_written_gives_its_space_back() {
    let mut b = Bench::new(true);
    b.write(1, 1, 0, &[1; 16]);
    b.write(1, 2, 16, &[2, 2]);
    b.zero(1, 3, 0, EXTENTS * 16);
    assert_eq!(bits(&b), [(2, g(1))], "the others have a home");
    b.durable(3);
    b.pass(Span::secs(5));
    assert_eq!((homes(&b), bits(&b).len()), (vec![], 3), "... and do without");
    b.write(1, 4, 5, &[7]);
    b.request(Request::Flush);
    b.restart(true);
    let view = b.look(View::Head, true);
    assert_eq!((view[4], view[5], view[6], view[47]), (Some(Sum(0)), sum(7), Some(Sum(0)), Some(Sum(0))));
    // A part of it again: the home has nothing that its bit has not.
    b.zero(1, 5, 5, 1);
    b.durable(5);
    b.pass(Span::secs(5));
    assert_eq!((homes(&b), bits(&b).len()), (vec![], 3));
    // A bit that is hidden by its own generation is of no use.
    b.write(1, 6, 0, &[9; 16]);
    b.durable(6);
    b.pass(Span::secs(5));
    assert_eq!((homes(&b), bits(&b)), (vec![(0, g(1))], vec![(1, g(1)), (2, g(1))]));
}

#[test]
fn a_pull_sets_and_clears_bits() {
    let (mut source, mut target) = (Bench::new(true), Bench::new(true));
    source.write(1, 1, 0, &[1; 16]);
    source.zero(2, 2, 0, 16);
    source.write(2, 3, 17, &[4]);
    // Nobody acknowledged these.
    target.zero(1, 1, 16, 32);
    target.zero(2, 2, 16, 32);
    target.begin(1, 2, &set(&[1]));
    let full = target.store.usage().free_extents;
    for (step, extent) in
        [((View::At(g(1)), 0, 1), 0), ((View::At(g(1)), 0, 1), 1), ((View::At(g(1)), 0, 1), 2)]
    {
        assert!(target.pull(&mut source, 1, step, extent));
    }
    for extent in 0..3 {
        assert!(target.pull(&mut source, 1, (View::Head, 1, 2), extent));
    }
    assert_eq!(target.look(View::Head, true), source.look(View::Head, true));
    assert_eq!(target.at(1, true), source.at(1, true));
    assert_eq!(bits(&target), [(0, g(2))]);
    assert_eq!(full - target.store.usage().free_extents, 2);
    assert_eq!(source.digest(&set(&[1])), target.digest(&set(&[1])));
    target.restart(false);
    assert_eq!(target.look(View::Head, true), source.look(View::Head, true));
}

#[test]
fn what_was_zeroed_meanwhile_wins_over_a_pull_that_clears_the_bit() {
    let (mut source, mut target) = (Bench::new(true), Bench::new(true));
    target.zero(1, 1, 0, 16);
    target.begin(1, 1, &set(&[]));
    for b in [&mut source, &mut target] {
        b.zero(1, 5, 3, 2);
    }
    assert!(target.pull(&mut source, 1, (View::Head, 0, 1), 0));
    assert_eq!(target.look(View::Head, true), source.look(View::Head, true));
}

/// Sessions ask first: then a zero is not refused, whoever takes what is left meanwhile.
#[test]
fn on_a_full_drive_a_zero_is_promised_or_not_sent() {
    let mut b = Bench::new(false);
    b.write(1, 1, 0, &[1; 16]);
    b.write(1, 2, 16, &[2; 16]);
    b.keep(list(1, 2, 2, &[1]));
    fill(&mut b, 2);
    assert!(probe(&mut b, 2, 0, 16), "a bit takes nothing");
    assert!(b.zero(2, 2000, 0, 16).is_empty());
    let free = b.store.usage().free_extents;
    let mut parts = 0;
    while probe(&mut b, 2, 16 + parts, 1) && parts < 16 {
        parts += 1;
    }
    // Each of them counts by itself: no promise knows of another one that may come first.
    assert!(parts >= 1 && parts < free && free < 16, "{parts} of {free}");
    // Others take what they can get: a write without a credit gets nothing that was promised.
    let mut seq = 3000;
    while b.write_far(2, seq, u32::try_from(seq).unwrap() - 2960).is_empty() {
        seq += 1;
        assert!(seq < 3060);
    }
    for part in 0..parts {
        assert!(b.zero(2, 4000 + u64::from(part), 16 + part, 1).is_empty(), "{part}");
    }
    assert!(!probe(&mut b, 2, 512, 1) || b.store.generation(BRANCH, CHUNK, 512, View::Head) == Some(g(0)));
    assert_eq!((b.look(View::Head, false)[16], b.at(1, false)[16]), (None, sum(2)));
}

#[test]
fn without_a_slot_zeroes_take_extents() {
    let mut b = Bench::new(true);
    // A window for each generation.
    for generation in 1..200 {
        assert!(b.zero(generation, u64::from(generation), 0, 16).is_empty());
        b.keep(list(
            u64::from(generation),
            generation + 1,
            generation + 1,
            &(1..=generation).collect::<Vec<_>>(),
        ));
    }
    b.pass(Span::secs(5));
    let (bits, homes) = (bits(&b).len(), homes(&b).len());
    assert!(bits > 10 && homes > 100 && bits + homes == 199, "{bits} {homes}");
    b.restart(true);
    assert!((1..200).all(|generation| b.at(generation, true)[0] == Some(Sum(0))));
    // Records still find a slot.
    b.keep(list(200, 3100, 3100, &[1, 199, 3000]));
    assert_eq!(b.store.kept(BRANCH).unwrap().0, ListIndex(200));
}
