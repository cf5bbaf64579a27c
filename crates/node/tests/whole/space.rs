//! Space figures: what nodes count is what a look at every block finds.

use super::snapshots::sealed;
use super::*;
use proto::message::{Usage, ViewUsage};
use proto::space::{Measure, MeasureId, Measured, MeasuredReplica, Sums};
use proto::{ChunkIndex, Generation, Generations, ListIndex, RequestId};
use std::collections::BTreeSet;
use store::Store;

/// Numbers without meaning, the same each time.
fn dice(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below
}

fn store(w: &World, n: u32) -> &Store {
    w.node(n).stores().next().unwrap().1
}

/// Counts all replicas that this node should have; the chunks with these numbers by views.
fn order(w: &World, branch: BranchId, n: u32, part: u32, views: impl Fn(u32) -> bool) -> Measure {
    let v = &w.metad.volumes[&branch];
    let of_chunk = |(chunk, c): (u32, &proto::Configuration)| {
        let place = c.members.iter().find(|m| m.place.node == NodeId(n))?.place;
        Some(MeasuredReplica {
            drive: place.drive,
            chunk: ChunkIndex(chunk),
            incarnation: place.incarnation,
            views: views(chunk),
        })
    };
    Measure {
        id: MeasureId { request: RequestId(1), begun: ListIndex(9), part },
        branch,
        kept: v.views.kept.clone(),
        named: true,
        replicas: (0..).zip(&v.chunks).filter_map(of_chunk).collect(),
    }
}

/// What they come to, block by block.
fn counted(w: &World, n: u32, m: &Measure) -> Sums {
    let mut sums = Sums::default();
    for r in &m.replicas {
        let s = store(w, n);
        let blocks = w.metad.volumes[&m.branch].geometry.chunk_blocks();
        let views: Vec<View> = m.kept.iter().map(View::At).chain([View::Head]).collect();
        let seen_by = |view: &View| -> BTreeSet<(u32, Generation)> {
            let at = |b: u32| (b / 16, s.generation(m.branch, r.chunk, b, *view).unwrap());
            (0..blocks).map(at).filter(|x| x.1.0 > 0).collect()
        };
        let seen: Vec<_> = views.iter().map(seen_by).collect();
        let all = s.extents(m.branch, r.chunk);
        let by = |x: &(u32, Generation)| seen.iter().filter(|s| s.contains(x)).count();
        let mut usage = Usage { total: all.len() as u64, ..Usage::default() };
        usage.unseen = all.iter().filter(|x| by(x) == 0).count() as u64;
        for (view, seen) in views.iter().zip(&seen) {
            let generation = if let View::At(g) = view { *g } else { Generation(0) };
            let exclusive = seen.iter().filter(|x| by(x) == 1).count() as u64;
            let of = ViewUsage { generation, seen: seen.len() as u64, exclusive };
            if *view == View::Head { usage.head = of } else { usage.views.push(of) }
        }
        sums.put(&usage, r.views);
    }
    sums
}

/// Orders it and waits for the answer.
fn measure(w: &mut World, n: u32, m: &Measure) -> Sums {
    w.metad.measured.clear();
    w.event(n, Event::Watch(WatchUpdate::Measure(m.clone())));
    let done = w.until(Span::secs(5), |w| !w.metad.measured.is_empty());
    assert!(done, "{}", w.tail());
    let [(from, Measured { id, sums })] = &w.metad.measured[..] else { panic!("once") };
    assert_eq!((*from, *id), (NodeId(n), m.id));
    sums.clone()
}

#[test]
fn what_nodes_count_is_what_every_block_shows() {
    let (mut w, branch) = made_among(4, 2);
    w.must_open(1, 1, "v", false);
    let mut state = 5;
    for round in 0..5u32 {
        for _ in 0..30 {
            let len = 4096 * (1 + dice(&mut state, 24));
            let offset = (16 << 20) - (1 << 20) + 4096 * dice(&mut state, (2 << 20) / 4096 - 24);
            let op = match dice(&mut state, 5) {
                0 => GuestOp::Discard { offset, len, fua: false },
                _ => {
                    let bytes = pattern(round.try_into().unwrap(), len.try_into().unwrap());
                    w.must_write(1, 1, offset, &bytes);
                    continue;
                }
            };
            let t = w.ask(1, 1, op);
            w.wait(1, t, Span::secs(2)).unwrap();
        }
        sealed(&mut w, branch, &format!("s{round}"));
        if round == 3 {
            w.metad.delete_snapshot(branch, "s1");
        }
        for n in 1..=3 {
            // At once after it, and when what nobody sees is freed.
            for (part, rest) in [(1, Span(0)), (2, Span::secs(20))] {
                w.run(rest);
                let m = order(&w, branch, n, part, |chunk| chunk % 3 == n - 1);
                let sums = measure(&mut w, n, &m);
                // Nothing was joined or freed meanwhile: so few are one slice.
                let wanted = counted(&w, n, &m);
                let seen_by_some: Vec<ViewUsage> =
                    wanted.views.views.iter().filter(|v| v.seen > 0).copied().collect();
                assert_eq!(sums.views.views, seen_by_some);
                assert_eq!(Sums { views: wanted.views.clone(), ..sums.clone() }, wanted);
                assert_eq!(sums.views.head, wanted.views.head);
                assert_eq!((sums.replicas, sums.chunks), (2, u32::from(n < 3)));
                assert!(round == 0 || sums.taken > 0);
                assert!(part == 1 || sums.unseen == 0, "freed by then");
            }
        }
    }
    // By views that the drive has not heard of: its own list does not matter.
    let m = Measure { kept: Generations::new(), ..order(&w, branch, 1, 3, |_| true) };
    let sums = measure(&mut w, 1, &m);
    assert_eq!(sums, counted(&w, 1, &m));
    assert!(sums.unseen > 0 && sums.views.views.is_empty());
}

#[test]
fn a_count_is_in_slices_and_what_is_not_here_is_not_counted() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 0, &pattern(1, 1 << 20));
    let here = order(&w, branch, 1, 1, |_| true);
    let once = measure(&mut w, 1, &here);
    assert_eq!((once.replicas, once.taken, once.views.head.exclusive), (1, 16, 16));
    // So many that it takes its time, also of those that are not here, or not this one any more.
    let replica = here.replicas[0];
    let gone = MeasuredReplica { incarnation: proto::Incarnation(99), ..replica };
    let strange = MeasuredReplica { drive: proto::DriveId(77), ..replica };
    let replicas = [replica, gone, strange, replica].repeat(100);
    let many = Measure { id: MeasureId { part: 2, ..here.id }, replicas, ..here.clone() };
    let (began, turns) = (w.now, w.turns);
    w.metad.measured.clear();
    for _ in 0..3 {
        w.event(1, Event::Watch(WatchUpdate::Measure(many.clone())));
    }
    // Guests go on meanwhile.
    w.must_write(1, 1, 0, &pattern(2, 4096));
    assert!(w.metad.measured.is_empty());
    let done = w.until(Span::secs(5), |w| !w.metad.measured.is_empty());
    assert!(done && w.now.since(began) > Span::millis(5), "{}", w.tail());
    assert!(w.turns - turns < 200, "{} turns", w.turns - turns);
    let sums = w.metad.measured[0].1.sums.clone();
    assert_eq!((sums.replicas, sums.chunks, sums.taken), (200, 200, 3200));
    w.run(Span::millis(50));
    assert_eq!(w.metad.measured.len(), 1, "repeats of what waits are nothing");
    // One that began later takes its place; an answer that was lost is given again.
    w.metad.measured.clear();
    let later = Measure { id: MeasureId { begun: ListIndex(10), ..here.id }, ..here.clone() };
    w.event(1, Event::Watch(WatchUpdate::Measure(many.clone())));
    w.event(1, Event::Watch(WatchUpdate::Measure(later.clone())));
    w.run(Span::millis(100));
    assert_eq!(w.metad.measured.iter().map(|m| m.1.id).collect::<Vec<_>>(), [later.id]);
    assert_eq!(measure(&mut w, 1, &later), once);
    // A drive that has failed has nothing.
    w.break_drive(1);
    w.must_write(1, 1, 0, &pattern(3, 4096));
    w.run(Span::secs(3));
    let sums = measure(&mut w, 1, &here);
    assert_eq!(sums, Sums::default());
}
