//! Clones and rollback in Raft: exact answers per command and refusal, each command twice and late; who may go and who stays.

mod common;

use common::fleet::Fleet;
use common::*;
use meta::admin::SnapshotName;
use meta::command::{Plan, SnapshotItem};
use meta::refusal::Noun;
use meta::view::WaitFor;
use meta::{AdminAnswer, AdminRefusal, AdminRequest, Answer, Class, Op, Phase, ServiceEvent, SnapshotState};
use proptest::prelude::*;
use proto::control::{MetaAnswer, MetaRefusal, MetaRequest, SessionKind, VolumeRef};
use proto::{BranchId, DriveId, Epoch, Generation, Level, NodeId, ProcessNumber, Span, VolumeId};
use std::collections::{BTreeMap, BTreeSet};

const SIZE: u64 = 40 * MIB;

fn g(n: u32) -> Generation {
    Generation(n)
}

fn plan(size: u64, nodes: &[u32]) -> Plan {
    let chunks = usize::try_from(size.div_ceil(16 * MIB)).expect("few");
    Plan { groups: vec![nodes.iter().map(|n| drive_of(*n)).collect()], chunks: vec![0; chunks] }
}

fn snap(w: &mut World, volume: VolumeId, name: &str) -> Result<AdminAnswer, AdminRefusal> {
    let branch = w.state.volumes()[&volume].branch;
    let items = vec![SnapshotItem { volume, branch, name: name.into(), id: 7 }];
    w.admin(Op::SnapshotCreate { items, labels: BTreeMap::new(), protect_until_ms: 0 })
}

fn clone(branch: BranchId, n: u32, name: &str, size: u64) -> Op {
    let (plan, class) = (plan(size, &[1, 2, 3]), Class::default());
    Op::CloneCreate { branch, generation: g(n), name: name.into(), size, class, plan }
}

fn fork_point(volume: VolumeId, branch: BranchId, head: u32, id: u128, name: Option<String>) -> Op {
    Op::ForkPoint { volume, branch, generation: g(head), id, name }
}

fn rollback(volume: VolumeId, seen: BranchId, branch: BranchId, n: u32) -> Op {
    Op::Rollback { volume, seen, branch, generation: g(n), plan: plan(SIZE, &[1, 2, 3]), safety: None }
}

fn delete(volume: VolumeId) -> Op {
    Op::VolumeDelete { volume, force: None, with_snapshots: true }
}

fn head(w: &World, name: &str) -> (VolumeId, BranchId) {
    let (volume, row) = w.state.volume_named(name).expect("it is there");
    (volume, row.branch)
}

/// Makes the records of a new branch.
fn finish(w: &mut World, branch: BranchId, clean: bool) {
    w.own(Op::Appoint { branch, epoch: w.epoch(branch), node: Some(NodeId(1)) });
    let a = w.attached(branch, 1, SessionKind::Maintenance);
    let epoch = a.epoch;
    if let Some(placement) = a.placement {
        w.node(Op::Created { branch, epoch, placement, failed: vec![], replacements: vec![] });
    }
    w.own(Op::Appoint { branch, epoch, node: None });
    assert_eq!(w.node(Op::Detach { branch, epoch, clean }), MetaAnswer::Ok);
}

fn kept(w: &World, branch: BranchId) -> Vec<u32> {
    w.state.kept(branch).iter().map(|g| g.0).collect()
}

fn confirm_lists(w: &mut World) {
    let all: Vec<_> = w.state.owed().collect();
    let now = w.state.list_index();
    for (drive, branch, _) in all {
        w.own(Op::Kept { drive, branch, index: now });
    }
    assert_eq!(w.state.owed().count(), 0);
}

fn owed(w: &World) -> Vec<(DriveId, BranchId)> {
    w.state.owed().map(|(d, b, _)| (d, b)).collect()
}

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn a_clone_reads_its_snapshot_and_all_below() {
    let mut w = World::with_nodes(4);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    snap(&mut w, v, "a").expect("sealed at once");
    confirm_lists(&mut w);
    let Answer::Admin(Ok(made)) = w.apply(Some(5), clone(b, 1, "c", 64 * MIB)) else { panic!("refused") };
    let (c, cb) = head(&w, "c");
    assert_eq!(made, AdminAnswer::VolumeCreated { volume: c });
    assert_eq!(owed(&w), vec![], "what is kept is the same");
    let row = &w.state.branches()[&cb];
    let level = Level { branch: b, generation: g(1), size: SIZE };
    assert_eq!((row.parent, row.tied, row.phase), (Some(level), true, Phase::Creating));
    assert_eq!((row.geometry.size, row.geometry.chunk_shift), (64 * MIB, 24));
    // Again with its id: the same. Without: the name is taken.
    assert_eq!(w.apply(Some(5), clone(b, 1, "c", 64 * MIB)), Answer::Admin(Ok(made)));
    let exists = AdminRefusal::Exists { noun: Noun::Volume, name: "c".into() };
    assert_eq!(w.admin(clone(b, 1, "c", SIZE)), Err(exists));
    finish(&mut w, cb, true);
    snap(&mut w, c, "x").expect("sealed at once");
    w.admin(clone(cb, 1, "d", 64 * MIB)).expect("a clone of a clone");
    let (_, db) = head(&w, "d");
    finish(&mut w, db, true);
    let below = vec![Level { branch: cb, generation: g(1), size: 64 * MIB }, level];
    assert_eq!(w.attached(db, 2, SessionKind::Guest).parents, below);
    assert_eq!(w.attached(cb, 2, SessionKind::Guest).parents, vec![level]);
    assert_eq!(w.attached(b, 2, SessionKind::Guest).parents, vec![]);
}

#[test]
fn what_a_clone_is_refused_for() {
    let mut w = World::with_nodes(4);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    snap(&mut w, v, "a").expect("sealed at once");
    let gone = |name: &str| Err(AdminRefusal::NotFound { noun: Noun::Snapshot, name: name.into() });
    assert_eq!(w.admin(clone(b, 2, "c", SIZE)), gone("b1@g2"));
    assert_eq!(w.admin(clone(BranchId(9), 1, "c", SIZE)), gone("b9@g1"));
    let smaller = AdminRefusal::CloneSmaller { name: "v@a".into(), size: SIZE, to: 32 * MIB };
    assert_eq!(w.admin(clone(b, 1, "c", 32 * MIB)), Err(smaller));
    assert!(matches!(w.admin(clone(b, 1, "-", SIZE)), Err(AdminRefusal::BadName { .. })));
    assert!(matches!(w.admin(clone(b, 1, "c", SIZE + 1)), Err(AdminRefusal::BadSize { .. })));
    let exists = AdminRefusal::Exists { noun: Noun::Volume, name: "v".into() };
    assert_eq!(w.admin(clone(b, 1, "v", SIZE)), Err(exists));
    let class = Class::default();
    let few = plan(SIZE, &[1, 2]);
    let op = Op::CloneCreate { branch: b, generation: g(1), name: "c".into(), size: SIZE, class, plan: few };
    assert_eq!(w.admin(op), Err(AdminRefusal::PlacementOutdated));
    // One that is being sealed.
    w.attached(b, 1, SessionKind::Guest);
    snap(&mut w, v, "s").expect("asked");
    assert_eq!(w.admin(clone(b, 2, "c", SIZE)), Err(AdminRefusal::NotSealed { name: "v@s".into() }));
    // And late: the snapshot is gone.
    w.admin(Op::SnapshotDelete { branch: b, generation: g(1), name: "a".into() }).expect("no clones");
    assert_eq!(w.admin(clone(b, 1, "c", SIZE)), gone("b1@g1"));
    assert_eq!(w.state.volumes().len(), 1);
}

#[test]
fn a_fork_keeps_its_snapshot_and_its_volume() {
    let mut w = World::with_nodes(4);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    snap(&mut w, v, "a").expect("sealed at once");
    w.admin(clone(b, 1, "c", SIZE)).expect("cloned");
    let (c, cb) = head(&w, "c");
    let snapshot = Op::SnapshotDelete { branch: b, generation: g(1), name: "a".into() };
    let clones = AdminRefusal::HasClones { name: "v@a".into(), clones: names(&["c"]) };
    assert_eq!(w.admin(snapshot.clone()), Err(clones.clone()));
    assert_eq!(w.admin(delete(v)), Err(clones));
    confirm_lists(&mut w);
    // It goes while its records are being made; the snapshot's row keeps the generation.
    w.admin(delete(c)).expect("nothing depends on it");
    assert!(!w.state.branches().contains_key(&cb));
    assert_eq!((kept(&w, b), owed(&w)), (vec![1], vec![]));
    assert_eq!(w.admin(clone(b, 1, "c", SIZE)).map(drop), Ok(()));
    let (c, _) = head(&w, "c");
    w.admin(delete(c)).expect("nothing depends on it");
    w.admin(snapshot).expect("no clones any more");
    w.admin(delete(v)).expect("nothing depends on it");
    assert!(w.state.branches().is_empty() && w.state.snapshots().is_empty());
}

#[test]
fn a_fork_point_without_a_name_is_kept_by_its_fork_alone() {
    let mut w = World::with_nodes(4);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    let point = |n, id| fork_point(v, b, n, id, None);
    w.admin(point(1, 3)).expect("sealed at once");
    assert!(matches!(w.admin(point(1, 3)), Err(AdminRefusal::Exists { .. })), "once");
    assert_eq!((kept(&w, b), w.state.snapshots_of(v).count()), (vec![1], 0));
    // No operator's order reaches it.
    let name = w.state.snapshots()[&(b, g(1))].name.clone();
    let order = Op::SnapshotDelete { branch: b, generation: g(1), name: name.clone() };
    let gone = AdminRefusal::NotFound { noun: Noun::Snapshot, name };
    assert_eq!(w.admin(order), Err(gone));
    confirm_lists(&mut w);
    w.admin(clone(b, 1, "c", SIZE)).expect("cloned");
    assert!(w.state.snapshots().is_empty());
    assert_eq!((kept(&w, b), owed(&w)), (vec![1], vec![]), "by the fork");
    let drop = |n| Op::ForkPointDrop { branch: b, generation: g(n) };
    assert!(!w.own(drop(1)), "late");
    assert_eq!(w.admin(point(1, 3)), Err(AdminRefusal::Changed { name: "v".into() }), "late");
    let clones = AdminRefusal::HasClones { name: "v".into(), clones: names(&["c"]) };
    assert_eq!(w.admin(delete(v)), Err(clones));
    let (c, _) = head(&w, "c");
    w.admin(delete(c)).expect("nothing depends on it");
    assert_eq!(kept(&w, b), vec![0u32; 0]);
    assert_eq!(owed(&w).len(), 3, "the parent's drives hear of it");
    // Nobody forks the next one; a named one is none of its business.
    w.admin(point(2, 4)).expect("sealed at once");
    snap(&mut w, v, "a").expect("sealed at once");
    assert!(!w.own(drop(3)));
    assert!(w.own(drop(2)) && !w.own(drop(2)));
    assert_eq!(kept(&w, b), [3]);
    // A hidden one does not stand in the way.
    w.admin(point(4, 5)).expect("sealed at once");
    w.admin(delete(v)).expect("its snapshots go with it");
    assert!(w.state.branches().is_empty() && w.state.snapshots().is_empty());
}

#[test]
fn a_snapshot_before_a_rollback_is_not_made_again_by_a_late_copy() {
    let mut w = World::with_nodes(4);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    let order = |n| fork_point(v, b, n, 3, Some("before".into()));
    w.admin(order(1)).expect("sealed at once");
    assert_eq!(w.state.snapshots_of(v).map(|(_, s)| s.name.clone()).collect::<Vec<_>>(), ["before"]);
    assert!(matches!(w.admin(order(2)), Err(AdminRefusal::Exists { .. })));
    w.admin(Op::SnapshotDelete { branch: b, generation: g(1), name: "before".into() }).expect("no clones");
    assert_eq!(w.admin(order(1)), Err(AdminRefusal::Changed { name: "v".into() }), "late");
    assert!(w.state.snapshots().is_empty());
    let bad = fork_point(v, b, 2, 3, Some("~".into()));
    assert!(matches!(w.admin(bad), Err(AdminRefusal::BadName { .. })));
}

#[test]
fn a_rollback_takes_over_the_name_and_leaves_the_snapshots() {
    let mut w = World::with_nodes(4);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    snap(&mut w, v, "a").expect("sealed at once");
    snap(&mut w, v, "newer").expect("sealed at once");
    let grown = Op::VolumeResize { volume: v, from: SIZE, to: 64 * MIB, plan: plan(16 * MIB, &[1, 2, 3]) };
    w.admin(grown).expect("grows");
    finish(&mut w, b, true);
    let epoch = w.attached(b, 2, SessionKind::Guest).epoch;
    assert_eq!(w.node(Op::Detach { branch: b, epoch, clean: true }), MetaAnswer::Ok);
    confirm_lists(&mut w);
    w.admin(rollback(v, b, b, 1)).expect("rolled back");
    let (_, new) = head(&w, "v");
    assert_ne!(new, b);
    let row = &w.state.branches()[&new];
    let level = Level { branch: b, generation: g(1), size: SIZE };
    assert_eq!((row.parent, row.phase, row.geometry.size), (Some(level), Phase::Creating, SIZE));
    let old = &w.state.branches()[&b];
    assert_eq!((old.generation, old.unsealed), (g(4), g(4)), "nothing of its last head is kept");
    let list = w.state.keep_list(b, drive_of(1)).expect("it is there");
    assert!(!list.named && list.kept.count() == 2 && owed(&w).len() == 3);
    assert_eq!(w.state.snapshots_of(v).map(|(_, s)| s.name.clone()).collect::<Vec<_>>(), ["a", "newer"]);
    // A guest that held the old branch finds no volume; by its name it finds the new one.
    let refused = MetaAnswer::Refused(MetaRefusal::NoSuchVolume);
    assert_eq!(w.attach(b, 2, SessionKind::Guest), refused);
    finish(&mut w, new, true);
    let by_name = Op::Attach {
        volume: VolumeRef::Name("v".into()),
        node: NodeId(3),
        process: ProcessNumber(1),
        kind: SessionKind::Guest,
        force: false,
        holder_unheard: false,
        after: None,
    };
    let MetaAnswer::Attached(a) = w.node(by_name) else { panic!("refused") };
    assert_eq!((a.branch, a.parents, a.name), (new, vec![level], "v".to_owned()));
    // The same order again, late; and while a guest is attached.
    assert_eq!(w.admin(rollback(v, b, b, 1)), Err(AdminRefusal::Changed { name: "v".into() }));
    assert!(matches!(w.admin(rollback(v, new, b, 2)), Err(AdminRefusal::InUse { node: NodeId(3), .. })));
    // Its own fork does not keep a snapshot's name; the generation stays.
    w.admin(Op::SnapshotDelete { branch: b, generation: g(1), name: "a".into() }).expect("no clones");
    w.admin(Op::SnapshotDelete { branch: b, generation: g(2), name: "newer".into() }).expect("no clones");
    assert_eq!(kept(&w, b), [1]);
    w.node(Op::Detach { branch: new, epoch: a.epoch, clean: true });
    w.admin(delete(v)).expect("all of it goes");
    assert!(w.state.branches().is_empty() && w.state.owed().count() == 0);
}

#[test]
fn what_a_rollback_is_refused_for() {
    let mut w = World::with_nodes(4);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    let (other, ob) = w.volume("w", SIZE, &[1, 2, 3]);
    snap(&mut w, v, "a").expect("sealed at once");
    snap(&mut w, other, "a").expect("sealed at once");
    w.admin(fork_point(v, b, 2, 1, None)).expect("sealed at once");
    let gone = |name: &str| AdminRefusal::NotFound { noun: Noun::Snapshot, name: name.into() };
    assert_eq!(w.admin(rollback(v, b, ob, 1)), Err(gone("w@a")), "another volume's");
    assert_eq!(w.admin(rollback(v, b, b, 7)), Err(gone("b1@g7")));
    assert!(matches!(w.admin(rollback(v, b, b, 2)), Err(AdminRefusal::NotFound { .. })), "a hidden one");
    let nobody = AdminRefusal::NotFound { noun: Noun::Volume, name: "v99".into() };
    assert_eq!(w.admin(rollback(VolumeId(99), b, b, 1)), Err(nobody));
    assert_eq!(w.admin(rollback(v, ob, b, 1)), Err(AdminRefusal::Changed { name: "v".into() }));
    let mut outdated = rollback(v, b, b, 1);
    if let Op::Rollback { plan, .. } = &mut outdated {
        plan.chunks.pop();
    }
    assert_eq!(w.admin(outdated), Err(AdminRefusal::PlacementOutdated));
    let epoch = w.attached(b, 1, SessionKind::Guest).epoch;
    assert!(matches!(w.admin(rollback(v, b, b, 1)), Err(AdminRefusal::InUse { .. })));
    w.node(Op::Detach { branch: b, epoch, clean: false });
    snap(&mut w, v, "s").expect("asked");
    assert_eq!(w.admin(rollback(v, b, b, 1)), Err(AdminRefusal::SealBusy { name: "v".into() }));
    assert!(w.own(Op::SealCancel { branch: b, generation: g(3) }));
    let grown = Op::VolumeResize { volume: v, from: SIZE, to: 64 * MIB, plan: plan(16 * MIB, &[1, 2, 3]) };
    w.admin(grown).expect("grows");
    assert_eq!(w.admin(rollback(v, b, b, 1)), Err(AdminRefusal::NotReady { name: "v".into() }));
    assert_eq!(w.state.volumes()[&v].branch, b);
}

#[test]
fn an_old_branch_that_was_not_closed_cleanly_is_closed_first_and_a_needless_one_goes() {
    let mut w = World::with_nodes(4);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    snap(&mut w, v, "a").expect("sealed at once");
    let epoch = w.attached(b, 1, SessionKind::Guest).epoch;
    w.node(Op::Detach { branch: b, epoch, clean: false });
    // A maintenance session runs: it is fenced.
    w.own(Op::Appoint { branch: b, epoch, node: Some(NodeId(1)) });
    let epoch = w.attached(b, 1, SessionKind::Maintenance).epoch;
    w.admin(rollback(v, b, b, 1)).expect("rolled back");
    let row = &w.state.branches()[&b];
    assert_eq!((row.session, row.appointed, row.generation, row.unsealed), (None, None, g(3), g(2)));
    assert_eq!(
        w.node(Op::Detach { branch: b, epoch, clean: true }),
        MetaAnswer::Refused(MetaRefusal::OldEpoch { epoch: Epoch(epoch.0 + 1) })
    );
    confirm_lists(&mut w);
    finish(&mut w, b, true);
    assert_eq!(w.state.branches()[&b].unsealed, g(3), "now what was its head can be freed");
    assert_eq!(owed(&w).len(), 3);
    // Back once more: nobody needs the branch between.
    let (_, second) = head(&w, "v");
    finish(&mut w, second, true);
    w.admin(rollback(v, second, b, 1)).expect("rolled back");
    assert!(!w.state.branches().contains_key(&second));
    assert!(!w.state.garbage(drive_of(1), 9).is_empty());
    assert_eq!(w.state.branches_of(v).collect::<Vec<_>>(), [b, head(&w, "v").1]);
}

// Through the service.

fn order(source: &str, snapshot: Option<&str>, name: &str) -> AdminRequest {
    AdminRequest::VolumeClone {
        source: source.into(),
        snapshot: snapshot.map(Into::into),
        name: name.into(),
        size: None,
        class: None,
        prefer: None,
        id: 0xfeed << 112,
    }
}

fn back(safety: Option<u128>) -> AdminRequest {
    let name = SnapshotName { volume: "v".into(), snapshot: "a".into() };
    AdminRequest::VolumeRollback { name, safety }
}

fn snapshot(f: &mut Fleet, id: u128, name: &str) {
    let name = SnapshotName { volume: "v".into(), snapshot: name.into() };
    let items = vec![meta::admin::SnapshotOrder { name, id }];
    let request = AdminRequest::SnapshotCreate { items, labels: BTreeMap::new(), protect_until_ms: 0 };
    let token = f.order(id, request);
    f.run(Span::secs(1));
    assert!(matches!(f.admin_answers.remove(&token), Some(Some(Ok(AdminAnswer::Snapshots(_))))));
}

fn drives(f: &Fleet, branch: BranchId) -> Vec<BTreeSet<DriveId>> {
    let chunks = f.state.chunks(branch).expect("it is there");
    chunks.iter().map(|(_, c)| c.members.iter().map(|m| m.place.drive).collect()).collect()
}

#[test]
fn a_clone_of_a_volume_in_use_is_made_beside_it() {
    let mut f = Fleet::new(7);
    let branch = f.ready("v", 20_000);
    f.guest(1, branch);
    let token = f.order(900, order("v", None, "c"));
    assert!(!f.admin_answers.contains_key(&token), "its session seals first");
    f.run(Span::secs(1));
    assert!(matches!(f.admin_answers[&token], Some(Ok(AdminAnswer::VolumeCreated { .. }))));
    assert!(f.state.snapshots().is_empty());
    f.until("ready", 10, |f| f.waited("c", WaitFor::Ready));
    let clone = f.state.volume_named("c").expect("made").1.branch;
    assert_eq!(drives(&f, clone), drives(&f, branch), "on its parent's drives");
    let again = f.order(900, order("v", None, "c"));
    assert_eq!(f.admin_answers[&again], f.admin_answers[&token]);
    let exists = AdminRefusal::Exists { noun: Noun::Volume, name: "c".into() };
    assert_eq!(f.admin(order("v", None, "c")), Err(exists));
    assert!(matches!(f.admin(order("v", Some("no"), "d")), Err(AdminRefusal::NotFound { .. })));
    // One of the drives takes no more.
    let like = drives(&f, branch);
    let out = *like[0].first().expect("three");
    f.admin(AdminRequest::DriveRetire { drive: out, retire: true }).expect("known");
    let token = f.order(901, order("v", None, "d"));
    f.run(Span::secs(1));
    assert!(matches!(f.admin_answers[&token], Some(Ok(_))));
    let second = f.state.volume_named("d").expect("made").1.branch;
    for (of, like) in drives(&f, second).into_iter().zip(like) {
        assert!(!of.contains(&out) && (of == like || like.contains(&out)), "{of:?} {like:?}");
    }
    f.state.check();
}

#[test]
fn a_fork_point_that_nobody_forks_goes_after_a_minute() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 40);
    f.guest(1, branch);
    let token = f.order(900, order("v", None, "c"));
    f.event(ServiceEvent::LostLeader);
    assert_eq!(f.admin_answers[&token], None, "the next leader is to be asked");
    f.event(ServiceEvent::BecameLeader);
    f.run(Span::secs(20));
    let point = f.state.snapshots().values().next().expect("it is there");
    assert!(point.hidden && point.state == SnapshotState::Sealed);
    // The same order finds it.
    let token = f.order(900, order("v", None, "c"));
    assert!(matches!(f.admin_answers[&token], Some(Ok(_))));
    assert!(f.state.snapshots().is_empty());
    f.order(901, order("v", None, "d"));
    f.event(ServiceEvent::LostLeader);
    f.event(ServiceEvent::BecameLeader);
    f.run(Span::secs(50));
    assert_eq!(f.state.snapshots().len(), 1);
    f.run(Span::secs(15));
    assert!(f.state.snapshots().is_empty());
    f.until("told", 5, |f| f.state.owed().count() == 0);
    let (before, _) = (f.log.len(), f.run(Span::secs(90)));
    assert_eq!(f.log.len(), before, "at rest");
}

#[test]
fn a_clone_whose_source_cannot_be_sealed_is_refused() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 40);
    f.guest(1, branch);
    f.stuck = true;
    let token = f.order(900, order("v", None, "c"));
    f.run(Span::secs(4));
    assert!(!f.admin_answers.contains_key(&token));
    f.run(Span::secs(3));
    let off = AdminRefusal::SealCalledOff { names: names(&["v"]) };
    assert_eq!(f.admin_answers[&token], Some(Err(off)));
    assert!(f.state.snapshots().is_empty() && f.state.volume_named("c").is_none());
}

#[test]
fn a_rollback_makes_a_snapshot_first_and_the_snapshots_are_read_through() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 40);
    f.guest(1, branch);
    snapshot(&mut f, 900, "a");
    assert!(matches!(f.admin(back(Some(1))), Err(AdminRefusal::InUse { .. })));
    assert_eq!(f.state.snapshots().len(), 1, "refused before anything is made");
    // Not cleanly detached: the snapshot needs a session, the old branch too.
    f.kill(1);
    f.run(Span::secs(20));
    f.start(1);
    f.settle(60);
    let epoch = f.state.branches()[&branch].epoch;
    if f.state.branches()[&branch].guest().is_some() {
        let detach = MetaRequest::Detach { branch, epoch, clean: false };
        f.ask(NodeId(1), common::fleet::Ask::Other, detach);
    }
    let token = f.order(901, back(Some(0xabcd << 112)));
    f.run(Span::secs(10));
    assert_eq!(f.admin_answers[&token], Some(Ok(AdminAnswer::Done)));
    let (volume, row) = f.state.volume_named("v").expect("it is there");
    let new = row.branch;
    assert_ne!(new, branch);
    let all: Vec<String> = f.state.snapshots_of(volume).map(|(_, s)| s.name.clone()).collect();
    assert_eq!(all, ["a", "before-rollback-abcd0000"]);
    f.until("ready", 20, |f| f.waited("v", WaitFor::Ready));
    f.until("closed", 60, |f| {
        let old = &f.state.branches()[&branch];
        old.unsealed == old.generation && f.state.owed().count() == 0
    });
    // A snapshot of the new branch: its own level, then the old branch's.
    snapshot(&mut f, 902, "b");
    let ask = MetaRequest::Snapshot { volume: "v".into(), snapshot: "b".into() };
    let token = f.ask(NodeId(2), common::fleet::Ask::Other, ask);
    let MetaAnswer::Snapshot(found) = &f.answers[&token] else { panic!("{:?}", f.answers[&token]) };
    let levels: Vec<(BranchId, Generation)> = found.levels.iter().map(|l| (l.branch, l.generation)).collect();
    assert_eq!(levels, [(new, g(1)), (branch, g(1))]);
    f.settle(60);
    f.run(Span::secs(30));
    let (before, _) = (f.log.len(), f.run(Span::secs(30)));
    assert_eq!(f.log.len(), before, "at rest");
    f.state.check();
}

// Any history.

/// A random order, mostly one that makes sense.
fn random_op(w: &World, kind: u8, n: [u32; 3]) -> Option<Op> {
    fn pick<T: Clone>(all: Vec<T>, n: u32) -> Option<T> {
        all.get(n as usize % all.len().max(1)).cloned()
    }
    let s = &w.state;
    let volume = pick(s.volumes().iter().map(|(v, r)| (*v, r.branch)).collect(), n[0]);
    let point = pick(s.snapshots().iter().map(|(k, r)| (*k, r.clone())).collect(), n[1]);
    Some(match kind {
        0 => w.create_op(&format!("v{}", n[2] % 6), SIZE, &[1, 2, 3]),
        1..=4 => {
            let (volume, branch) = volume?;
            let name = format!("s{}", n[2] % 9);
            let items = vec![SnapshotItem { volume, branch, name, id: 1 }];
            Op::SnapshotCreate { items, labels: BTreeMap::new(), protect_until_ms: 0 }
        }
        5..=8 => {
            let ((branch, generation), _) = point?;
            clone(branch, generation.0, &format!("v{}", n[2] % 6), SIZE)
        }
        9 => {
            let (volume, branch) = volume?;
            let name = n[2].is_multiple_of(3).then(|| format!("s{}", n[2] % 9));
            fork_point(volume, branch, s.branches()[&branch].generation.0, n[2].into(), name)
        }
        10 => Op::ForkPointDrop { branch: point.as_ref()?.0.0, generation: point?.0.1 },
        11..=14 => {
            // Mostly to one of its own.
            let ((branch, generation), row) = point?;
            let own = (row.volume, s.volumes().get(&row.volume)?.branch);
            let (volume, seen) = if n[2].is_multiple_of(8) { volume? } else { own };
            rollback(volume, seen, branch, generation.0)
        }
        15..=17 => {
            let ((branch, generation), row) = point?;
            Op::SnapshotDelete { branch, generation, name: row.name }
        }
        18 => Op::VolumeDelete { volume: volume?.0, force: Some("test".into()), with_snapshots: true },
        19 | 20 => {
            let (volume, force) = (volume?.0, Some("test".into()));
            Op::VolumeTrash { volume, force, with_snapshots: true, despite_clones: !n[2].is_multiple_of(3) }
        }
        21 => {
            let volume = pick(s.trash().keys().copied().collect(), n[0])?;
            Op::VolumeRestore { volume, name: format!("v{}", n[2] % 6) }
        }
        _ => Op::VolumePurge {
            volume: pick(s.trash().keys().copied().collect(), n[0])?,
            early: !n[2].is_multiple_of(3),
        },
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Rows are compared, and the invariants of one state checked, after each command (`World::apply`).
    #[test]
    fn nobody_goes_that_is_needed_and_nothing_is_left(
        steps in prop::collection::vec((0..23u8, prop::array::uniform3(0..1000u32), any::<bool>()), 1..60),
    ) {
        let mut w = World::with_nodes(3);
        for (kind, n, clean) in steps {
            let Some(op) = random_op(&w, kind, n) else { continue };
            let before: BTreeMap<BranchId, Vec<Level>> =
                w.state.branches().keys().map(|b| (*b, w.state.levels_below(*b))).collect();
            w.apply(None, op.clone());
            for (branch, levels) in &before {
                let still = w.state.branches().contains_key(branch);
                prop_assert!(!still || w.state.levels_below(*branch) == *levels, "{:?}: a chain changed", op);
            }
            let new: Vec<BranchId> = w.state.branches().keys().copied().collect();
            for branch in new {
                for level in w.state.levels_below(branch) {
                    prop_assert!(w.state.kept(level.branch).contains(level.generation), "{:?}", op);
                    prop_assert!(level.generation < w.state.branches()[&level.branch].unsealed);
                }
                let row = &w.state.branches()[&branch];
                // A seal under way ends with the session that closes cleanly.
                let seals = row.sealing.is_some();
                if row.pending().is_some() || seals {
                    finish(&mut w, branch, clean || seals);
                }
            }
        }
        // Hidden rows are collected, and the operator deletes everything, clones first.
        while !w.state.branches().is_empty() {
            let before = w.state.branches().len() + w.state.snapshots().len();
            let hidden: Vec<_> = w.state.snapshots().iter().filter(|(_, s)| s.hidden).map(|(k, _)| *k).collect();
            for (branch, generation) in hidden {
                w.own(Op::ForkPointDrop { branch, generation });
            }
            let volumes: Vec<VolumeId> = w.state.volumes().keys().copied().collect();
            for volume in volumes {
                w.apply(None, delete(volume));
            }
            for volume in w.state.trash().keys().copied().collect::<Vec<_>>() {
                w.apply(None, Op::VolumePurge { volume, early: true });
            }
            prop_assert!(w.state.branches().len() + w.state.snapshots().len() < before, "somebody waits for ever");
        }
        prop_assert!(w.state.volumes().is_empty() && w.state.trash().is_empty() && w.state.snapshots().is_empty());
        prop_assert_eq!(w.state.owed().count(), 0);
    }
}

#[test]
fn a_rollback_after_somebody_wrote_behind_its_safety_snapshot_is_refused() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    snap(&mut w, v, "a").expect("sealed at once");
    w.admin(fork_point(v, b, 2, 9, Some("before-rollback".into()))).expect("sealed at once");
    let with = |safety| {
        let Op::Rollback { volume, seen, branch, generation, plan, .. } = rollback(v, b, b, 1) else {
            unreachable!()
        };
        Op::Rollback { volume, seen, branch, generation, plan, safety }
    };
    let changed = Err(AdminRefusal::Changed { name: "v".into() });
    assert_eq!(w.admin(with(Some(g(3)))), changed, "there is none");
    let epoch = w.attached(b, 2, SessionKind::Guest).epoch;
    assert_eq!(w.node(Op::Detach { branch: b, epoch, clean: true }), MetaAnswer::Ok);
    assert_eq!(w.admin(with(Some(g(2)))), changed, "a guest was there since");
    w.admin(fork_point(v, b, 3, 10, Some("before-rollback-2".into()))).expect("sealed at once");
    w.admin(with(Some(g(3)))).expect("it has everything");
}

#[test]
fn a_safety_snapshot_counts_for_the_quota() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    snap(&mut w, v, "a").expect("sealed at once");
    let quota = Some(meta::model::Quota { most: 1, manual_only: false });
    w.admin(Op::QuotaSet { volume: v, quota }).expect("as many as there are");
    let refused = w.admin(fork_point(v, b, 2, 9, Some("before-rollback".into()))).unwrap_err();
    assert_eq!(refused.code(), 1602);
    w.admin(fork_point(v, b, 2, 10, None)).expect("one that no operator sees");
}

#[test]
fn what_drives_keep_of_a_long_name_is_never_longer() {
    let mut w = World::with_nodes(3);
    let long = "n".repeat(proto::limits::NAME_MAX);
    let (v, b) = w.volume(&long, SIZE, &[1, 2, 3]);
    snap(&mut w, v, "a").expect("sealed at once");
    w.admin(rollback(v, b, b, 1)).expect("rolled back");
    let (_, new) = head(&w, &long);
    finish(&mut w, new, true);
    w.own(Op::Appoint { branch: b, epoch: w.epoch(b), node: Some(NodeId(1)) });
    let old = w.attached(b, 1, SessionKind::Maintenance);
    assert_eq!((old.branch, old.name), (b, long.clone()), "a drive refuses a longer one, and never heals");
    w.admin(Op::VolumeTrash { volume: v, force: None, with_snapshots: true, despite_clones: false })
        .expect("rests");
    w.own(Op::Appoint { branch: new, epoch: w.epoch(new), node: Some(NodeId(1)) });
    assert_eq!(w.attached(new, 1, SessionKind::Maintenance).name, long);
}
