//! Space figures: what the leader orders to be counted and adds up, whatever is lost, doubled, late or gone meanwhile.

mod common;

use common::fleet::{Ask, Fleet, drive};
use meta::admin::{SnapshotName, SnapshotOrder};
use meta::refusal::Noun;
use meta::view::SpaceView;
use meta::{AdminAnswer, AdminRefusal, AdminRequest, ServiceEvent};
use proptest::prelude::*;
use proto::control::MetaRequest;
use proto::limits::EXTENT;
use proto::message::{Usage, ViewUsage};
use proto::space::{Measure, Measured, MeasuredReplica, Sums};
use proto::{BranchId, ChunkIndex, Generation, NodeId, RequestId, Span};
use std::collections::{BTreeMap, BTreeSet};

const REQUEST: u128 = 0xabc;

fn space(f: &mut Fleet, name: &str, request: u128) -> Result<SpaceView, AdminRefusal> {
    let order = AdminRequest::VolumeSpace { name: name.into(), request: RequestId(request) };
    f.admin(order).map(|answer| match answer {
        AdminAnswer::Space(view) => *view,
        other => panic!("{other:?}"),
    })
}

fn snapshot(f: &mut Fleet, volume: &str, name: &str) {
    let id = name.bytes().fold(1, |id, b| id * 31 + u128::from(b));
    let name = SnapshotName { volume: volume.into(), snapshot: name.into() };
    let items = vec![SnapshotOrder { name, id }];
    let order = AdminRequest::SnapshotCreate { items, labels: BTreeMap::new(), protect_until_ms: 0 };
    f.admin(order).expect("a detached volume is sealed at once");
}

fn delete_snapshot(f: &mut Fleet, volume: &str, name: &str) {
    let name = SnapshotName { volume: volume.into(), snapshot: name.into() };
    f.admin(AdminRequest::SnapshotDelete { name }).expect("it is there");
}

/// What a replica takes: the same on each drive, but for what is not freed yet.
fn usage(order: &Measure, r: &MeasuredReplica) -> Usage {
    let n = u64::from(r.chunk.0) + 10 * order.branch.0;
    let view = |g: Generation| ViewUsage { generation: g, seen: n + u64::from(g.0), exclusive: 1 };
    let kept: Vec<ViewUsage> = order.kept.iter().map(view).collect();
    let head = if order.named {
        ViewUsage { seen: n, exclusive: 2, ..ViewUsage::default() }
    } else {
        ViewUsage::default()
    };
    let unseen = r.drive.0 % 7;
    Usage { total: 2 * n + kept.len() as u64 + unseen, unseen, views: kept, head, ..Usage::default() }
}

fn count(order: &Measure) -> Measured {
    let mut sums = Sums::default();
    order.replicas.iter().for_each(|r| sums.put(&usage(order, r), r.views));
    Measured { id: order.id, sums }
}

fn answer(f: &mut Fleet, node: NodeId, measured: Measured) {
    f.ask(node, Ask::Other, MetaRequest::Measured { node, measured });
}

/// The nodes do as they are ordered, until nothing is ordered any more.
fn obey(f: &mut Fleet) {
    while !f.measures.is_empty() {
        for (node, order) in std::mem::take(&mut f.measures) {
            answer(f, node, count(&order));
        }
        f.run(Span::millis(200));
    }
}

/// What all of it must come to.
fn expected(f: &Fleet, name: &str) -> SpaceView {
    let (volume, row) = f.state.volume_named(name).expect("it is there");
    let mut v = SpaceView { volume, name: name.into(), finished: true, ..SpaceView::default() };
    v.size = f.state.branches()[&row.branch].geometry.size;
    let mut of_views: BTreeMap<(BranchId, Generation), (u64, u64)> = BTreeMap::new();
    for branch in f.state.branches_of(volume) {
        let kept = f.state.kept(branch);
        let named = branch == row.branch;
        for (chunk, c) in f.state.chunks(branch).expect("of a branch").iter() {
            v.chunks += 1;
            for (at, m) in c.members.iter().enumerate() {
                let replica = MeasuredReplica {
                    drive: m.place.drive,
                    chunk,
                    incarnation: m.place.incarnation,
                    views: at == 0,
                };
                let id =
                    proto::space::MeasureId { request: RequestId(0), begun: proto::ListIndex(0), part: 0 };
                let order = Measure { id, branch, kept: kept.clone(), named, replicas: vec![] };
                let u = usage(&order, &replica);
                v.replicas += 1;
                v.taken_all += u.total * EXTENT as u64;
                v.unseen_all += u.unseen * EXTENT as u64;
                if at == 0 {
                    v.head.seen += u.head.seen * EXTENT as u64;
                    v.head.exclusive += u.head.exclusive * EXTENT as u64;
                    for view in u.views {
                        let sums = of_views.entry((branch, view.generation)).or_default();
                        *sums = (sums.0 + view.seen * EXTENT as u64, sums.1 + view.exclusive * EXTENT as u64);
                    }
                }
            }
        }
    }
    v.chunks_done = v.chunks;
    for ((branch, generation), (seen, exclusive)) in of_views {
        let name =
            f.state.snapshots().get(&(branch, generation)).filter(|s| !s.hidden).map(|s| s.name.clone());
        let frees = if name.is_some() { exclusive } else { 0 };
        let (clones, own) = (Vec::new(), false);
        v.views.push(meta::view::ViewSpace { name, branch, generation, seen, exclusive, frees, clones, own });
    }
    v
}

/// But for what one copy takes: that depends on which was chosen.
fn alike(mut found: SpaceView, expected: &SpaceView) {
    (found.taken, found.unseen) = (expected.taken, expected.unseen);
    assert_eq!(&found, expected);
}

fn made() -> (Fleet, BranchId) {
    let mut f = Fleet::new(4);
    let branch = f.ready("v", 80);
    (f, branch)
}

#[test]
fn each_replica_is_counted_once_and_each_chunk_by_one_that_is_in_sync() {
    let (mut f, branch) = made();
    snapshot(&mut f, "v", "a");
    let first = space(&mut f, "v", REQUEST).unwrap();
    assert!(!first.finished && first.chunks == 5 && first.chunks_done == 0);
    let (mut all, mut views) = (BTreeSet::new(), BTreeSet::new());
    for (node, order) in &f.measures {
        assert_eq!((order.branch, order.named, order.kept.count()), (branch, true, 1));
        for r in &order.replicas {
            assert_eq!(r.drive, drive(node.0));
            assert!(all.insert((r.drive, r.chunk)), "once");
            assert!(!r.views || views.insert(r.chunk), "one of each chunk");
        }
    }
    assert_eq!((all.len(), views.len()), (15, 5));
    let busy = f.measures.iter().filter(|(_, o)| o.replicas.iter().any(|r| r.views)).count();
    assert!(busy > 1, "the work is spread");
    obey(&mut f);
    let found = space(&mut f, "v", REQUEST).unwrap();
    assert!(found.taken * 2 < found.taken_all && found.unseen < found.unseen_all);
    alike(found, &expected(&f, "v"));
}

#[test]
fn a_lost_order_is_given_again_and_a_doubled_answer_counts_once() {
    let (mut f, _) = made();
    space(&mut f, "v", REQUEST).unwrap();
    let lost = std::mem::take(&mut f.measures);
    f.run(Span::millis(1500));
    assert!(f.measures.is_empty(), "not at once");
    f.run(Span::secs(1));
    assert_eq!(f.measures, lost, "the very same");
    for (node, order) in lost {
        answer(&mut f, node, count(&order));
        answer(&mut f, node, count(&order));
    }
    obey(&mut f);
    let found = space(&mut f, "v", REQUEST).unwrap();
    alike(found.clone(), &expected(&f, "v"));
    assert_eq!(space(&mut f, "v", REQUEST).unwrap(), found, "asked again it is the same");
}

#[test]
fn an_answer_of_another_node_or_part_is_nobody_s() {
    let (mut f, _) = made();
    space(&mut f, "v", REQUEST).unwrap();
    let (node, order) = f.measures[0].clone();
    let mut wrong = count(&order);
    wrong.id.part += 1;
    answer(&mut f, node, wrong);
    let mut wrong = count(&order);
    wrong.id.request = RequestId(5);
    answer(&mut f, node, wrong);
    // It says that it is another one.
    let request = MetaRequest::Measured { node, measured: count(&order) };
    f.ask(NodeId(node.0 % 4 + 1), Ask::Other, request);
    obey(&mut f);
    alike(space(&mut f, "v", REQUEST).unwrap(), &expected(&f, "v"));
}

#[test]
fn who_is_silent_is_not_waited_for_and_what_is_missing_is_said() {
    let (mut f, branch) = made();
    space(&mut f, "v", REQUEST).unwrap();
    for secs in (0..).step_by(5) {
        assert!(secs < 70, "it ends");
        for (node, order) in std::mem::take(&mut f.measures) {
            if node != NodeId(1) {
                answer(&mut f, node, count(&order));
            }
        }
        if space(&mut f, "v", REQUEST).unwrap().finished {
            break;
        }
        f.run(Span::secs(5));
    }
    let found = space(&mut f, "v", REQUEST).unwrap();
    let on = f.all_on(branch, 1) as u64;
    assert!(on > 0 && found.replicas_missing == on && found.replicas == 15 - on, "{found:?}");
    assert!(found.chunks_missing > 0 && found.chunks_missing <= on);
}

#[test]
fn a_node_that_is_down_is_not_asked_and_one_that_dies_is_not_waited_for() {
    let (mut f, branch) = made();
    f.lame = true;
    f.kill(1);
    f.until("down", 10, |f| f.state.node_down(NodeId(1)));
    let on = [1, 2].map(|n| f.all_on(branch, n) as u64);
    space(&mut f, "v", REQUEST).unwrap();
    assert!(f.measures.iter().all(|(n, _)| *n != NodeId(1)));
    f.kill(2);
    for (node, order) in std::mem::take(&mut f.measures) {
        if node != NodeId(2) {
            answer(&mut f, node, count(&order));
        }
    }
    f.until("the other one is down", 10, |f| f.state.node_down(NodeId(2)));
    f.run(Span::millis(300));
    let found = space(&mut f, "v", REQUEST).unwrap();
    assert!(found.finished && found.replicas_missing == on[0] + on[1], "{on:?} {found:?}");
    // By the replicas that are left the next one counts all chunks.
    space(&mut f, "v", 2).unwrap();
    obey(&mut f);
    let found = space(&mut f, "v", 2).unwrap();
    assert_eq!((found.finished, found.chunks_missing, found.replicas_missing), (true, 0, on[0] + on[1]));
}

#[test]
fn a_new_leader_begins_anew_and_takes_no_answer_to_the_older_one() {
    let (mut f, _) = made();
    space(&mut f, "v", REQUEST).unwrap();
    let old = std::mem::take(&mut f.measures);
    f.event(ServiceEvent::LostLeader);
    f.event(ServiceEvent::BecameLeader);
    // A leader's first entry.
    f.admin(AdminRequest::SettingSet { key: "down_out".into(), value: "1h".into() }).unwrap();
    for (node, order) in &old {
        answer(&mut f, *node, count(order));
    }
    let begun = space(&mut f, "v", REQUEST).unwrap();
    assert!(!begun.finished && begun.chunks_done == 0);
    let orders = f.measures.clone();
    assert_eq!(orders.len(), old.len());
    for (node, order) in &old {
        answer(&mut f, *node, count(order));
    }
    f.run(Span::millis(300));
    assert!(!space(&mut f, "v", REQUEST).unwrap().finished, "those were answers to another leader");
    obey(&mut f);
    alike(space(&mut f, "v", REQUEST).unwrap(), &expected(&f, "v"));
}

#[test]
fn what_is_not_there_is_not_found_also_when_it_goes_meanwhile() {
    let (mut f, _) = made();
    let none = AdminRefusal::NotFound { noun: Noun::Volume, name: "w".into() };
    assert_eq!(space(&mut f, "w", REQUEST), Err(none));
    space(&mut f, "v", REQUEST).unwrap();
    let orders = std::mem::take(&mut f.measures);
    let delete = AdminRequest::VolumeDelete {
        name: "v".into(),
        force: None,
        with_snapshots: true,
        now: true,
        despite_clones: false,
    };
    f.admin(delete).unwrap();
    for (node, order) in orders {
        answer(&mut f, node, count(&order));
    }
    f.run(Span::secs(3));
    assert!(f.measures.is_empty(), "nothing is ordered for it any more");
    let none = AdminRefusal::NotFound { noun: Noun::Volume, name: "v".into() };
    assert_eq!(space(&mut f, "v", REQUEST), Err(none));
}

#[test]
fn a_snapshot_that_comes_or_goes_meanwhile_lets_all_be_counted_again() {
    let (mut f, _) = made();
    snapshot(&mut f, "v", "a");
    space(&mut f, "v", REQUEST).unwrap();
    snapshot(&mut f, "v", "b");
    obey(&mut f);
    let found = space(&mut f, "v", REQUEST).unwrap();
    assert_eq!(found.views.iter().map(|v| v.name.as_deref()).collect::<Vec<_>>(), [Some("a"), Some("b")]);
    alike(found, &SpaceView { again: 1, ..expected(&f, "v") });
    space(&mut f, "v", 2).unwrap();
    delete_snapshot(&mut f, "v", "a");
    obey(&mut f);
    let found = space(&mut f, "v", 2).unwrap();
    assert_eq!(found.views.len(), 1);
    alike(found, &SpaceView { again: 1, ..expected(&f, "v") });
}

#[test]
fn branches_that_a_rollback_has_left_count_and_nothing_is_freed_of_what_is_read_from() {
    let (mut f, first) = made();
    snapshot(&mut f, "v", "a");
    snapshot(&mut f, "v", "b");
    let name = SnapshotName { volume: "v".into(), snapshot: "a".into() };
    f.order(901, AdminRequest::VolumeRollback { name, safety: None });
    f.until("gone back", 20, |f| f.state.volume_named("v").is_some_and(|(_, v)| v.branch != first));
    let clone = AdminRequest::VolumeClone {
        source: "v".into(),
        snapshot: Some("b".into()),
        name: "c".into(),
        size: None,
        class: None,
        prefer: None,
        id: 9,
    };
    f.order(902, clone);
    f.until("cloned", 20, |f| f.state.volume_named("c").is_some());
    f.settle(30);
    space(&mut f, "v", REQUEST).unwrap();
    obey(&mut f);
    let found = space(&mut f, "v", REQUEST).unwrap();
    let mut wanted = expected(&f, "v");
    assert_eq!((wanted.chunks, wanted.views.len()), (10, 2));
    wanted.parent = Some("v@a".into());
    (wanted.views[0].own, wanted.views[0].frees) = (true, 0);
    (wanted.views[1].clones, wanted.views[1].frees) = (vec!["c".into()], 0);
    alike(found, &wanted);
    // What the clone reads from there is not the clone's.
    space(&mut f, "c", 2).unwrap();
    obey(&mut f);
    let found = space(&mut f, "c", 2).unwrap();
    alike(found, &SpaceView { parent: Some("v@b".into()), ..expected(&f, "c") });
}

#[test]
fn there_are_so_many_at_once_and_who_asks_no_more_is_forgotten() {
    let (mut f, _) = made();
    for request in 1..=8 {
        assert!(!space(&mut f, "v", request).unwrap().waiting);
    }
    assert!(space(&mut f, "v", 9).unwrap().waiting);
    obey(&mut f);
    assert!(space(&mut f, "v", 9).unwrap().waiting, "nobody has heard the end of any");
    assert!(space(&mut f, "v", 3).unwrap().finished);
    assert!(!space(&mut f, "v", 9).unwrap().waiting);
    assert!(space(&mut f, "v", 10).unwrap().waiting);
    f.measures.clear();
    f.run(Span::secs(11));
    f.measures.clear();
    f.run(Span::secs(11));
    assert!(f.measures.is_empty(), "nothing is ordered for nobody");
    for request in 11..=18 {
        assert!(!space(&mut f, "v", request).unwrap().waiting);
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Of the orders so far, this one is answered (again).
    Answer(usize),
    /// A node that has not got all says so.
    Partly(usize),
    Pass(u64),
    Snapshot,
    Ask,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any::<usize>().prop_map(Step::Answer),
        1 => any::<usize>().prop_map(Step::Partly),
        2 => (1u64..4000).prop_map(Step::Pass),
        1 => Just(Step::Snapshot),
        2 => Just(Step::Ask),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is lost, late, doubled or in another order: it ends, with exact figures, or with what is missing in them.
    #[test]
    fn figures_are_exact_or_it_is_said_what_is_missing(steps in prop::collection::vec(step(), 0..30)) {
        let (mut f, _) = made();
        space(&mut f, "v", REQUEST).unwrap();
        let (mut snapshots, mut partly) = (0, false);
        for step in steps {
            let ordered = f.measures.len();
            match step {
                Step::Answer(_) | Step::Partly(_) if ordered == 0 => {}
                Step::Answer(n) => {
                    let (node, order) = f.measures[n % ordered].clone();
                    answer(&mut f, node, count(&order));
                }
                Step::Partly(n) => {
                    let (node, mut order) = f.measures[n % ordered].clone();
                    order.replicas.pop();
                    answer(&mut f, node, count(&order));
                    partly = true;
                }
                Step::Pass(ms) => f.run(Span::millis(ms)),
                Step::Snapshot => {
                    snapshots += 1;
                    snapshot(&mut f, "v", &format!("s{snapshots}"));
                }
                Step::Ask => drop(space(&mut f, "v", REQUEST).unwrap()),
            }
        }
        for round in 0.. {
            prop_assert!(round < 20, "it ends");
            for (node, order) in std::mem::take(&mut f.measures) {
                answer(&mut f, node, count(&order));
            }
            f.run(Span::secs(2));
            if space(&mut f, "v", REQUEST).unwrap().finished {
                break;
            }
        }
        let found = space(&mut f, "v", REQUEST).unwrap();
        let wanted = expected(&f, "v");
        prop_assert_eq!(found.replicas + found.replicas_missing, 15);
        prop_assert!(partly || found.replicas_missing == 0 && found.chunks_missing == 0);
        // The snapshots may be more by now than when it ended.
        if found.replicas_missing == 0 && found.views.len() == wanted.views.len() {
            alike(found.clone(), &SpaceView { again: found.again, ..wanted });
        }
    }
}

#[test]
fn a_large_volume_is_counted_in_stretches() {
    let mut f = Fleet::new(3);
    // 1,200 chunks of 16 MiB: more than a stretch has.
    f.ready("v", 1200 * 16);
    space(&mut f, "v", REQUEST).unwrap();
    let most = |f: &Fleet| f.measures.iter().map(|(_, o)| o.replicas.len()).max();
    assert_eq!(most(&f), Some(1024));
    let parts: BTreeSet<u32> = f.measures.iter().map(|(_, o)| o.id.part).collect();
    assert_eq!(parts.len(), 1);
    for (node, order) in std::mem::take(&mut f.measures) {
        answer(&mut f, node, count(&order));
    }
    assert_eq!(most(&f), Some(176));
    assert_eq!(f.measures[0].1.replicas[0].chunk, ChunkIndex(1024));
    assert_eq!(space(&mut f, "v", REQUEST).unwrap().chunks_done, 1024);
    obey(&mut f);
    alike(space(&mut f, "v", REQUEST).unwrap(), &expected(&f, "v"));
}
