//! Snapshots in Raft: exact answers per command and refusal, each command twice and late; what sessions and drives are told.

mod common;

use common::*;
use meta::command::{PlaceItem, PruneItem, SnapshotItem};
use meta::refusal::Noun;
use meta::{AdminAnswer, AdminRefusal, MetaState, Op, Seal, SnapshotState};
use proto::MemberState::{InSync, Stale};
use proto::control::{ChangeCause, MetaAnswer, MetaRefusal, SessionKind};
use proto::{
    BranchId, ChunkIndex, DriveId, Epoch, Generation, Generations, KeepList, ListIndex, LogIndex, NodeId,
    VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

fn g(n: u32) -> Generation {
    Generation(n)
}

fn item(w: &World, volume: VolumeId, name: &str) -> SnapshotItem {
    let branch = w.state.volumes()[&volume].branch;
    SnapshotItem { volume, branch, name: name.into(), id: 7 }
}

fn create(items: Vec<SnapshotItem>) -> Op {
    Op::SnapshotCreate { items, labels: BTreeMap::new(), protect_until_ms: 0 }
}

fn snap(w: &mut World, volume: VolumeId, name: &str) -> Result<AdminAnswer, AdminRefusal> {
    let op = create(vec![item(w, volume, name)]);
    w.admin(op)
}

fn made(keys: &[(BranchId, u32)]) -> Result<AdminAnswer, AdminRefusal> {
    Ok(AdminAnswer::SnapshotsMade { keys: keys.iter().map(|(b, n)| (*b, g(*n))).collect() })
}

fn confirm(w: &mut World, branch: BranchId, epoch: Epoch, n: u32) -> proto::BranchViews {
    match w.node(Op::Sealed { branch, epoch, generation: g(n) }) {
        MetaAnswer::Views { views, .. } => views,
        other => panic!("{other:?}"),
    }
}

fn delete(branch: BranchId, n: u32, name: &str) -> Op {
    Op::SnapshotDelete { branch, generation: g(n), name: name.into() }
}

fn kept(w: &World, branch: BranchId) -> Vec<u32> {
    w.state.kept(branch).iter().map(|g| g.0).collect()
}

fn owed(w: &World) -> Vec<(DriveId, BranchId)> {
    w.state.owed().map(|(d, b, _)| (d, b)).collect()
}

/// All drives confirm what they are owed.
fn confirm_lists(w: &mut World) {
    let all: Vec<_> = w.state.owed().collect();
    for (drive, branch, _) in all {
        let index = w.state.keep_list(branch, drive).expect("of a branch").index;
        assert!(w.own(Op::Kept { drive, branch, index }));
        assert!(!w.own(Op::Kept { drive, branch, index }), "twice does nothing");
    }
    assert_eq!(owed(w), []);
}

#[test]
fn a_volume_that_is_closed_cleanly_is_sealed_at_once() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", 40 * MIB, &[1, 2, 3]);
    assert_eq!(owed(&w), [], "without snapshots nobody is owed anything");
    assert_eq!(snap(&mut w, v, "a"), made(&[(b, 1)]));
    let row = &w.state.snapshots()[&(b, g(1))];
    assert_eq!((row.state, row.size, row.group), (SnapshotState::Sealed, 40 * MIB, None));
    let branch = &w.state.branches()[&b];
    assert_eq!((branch.generation, branch.unsealed, branch.sealing), (g(2), g(2), None));
    assert_eq!(owed(&w), [1, 2, 3].map(|n| (drive_of(n), b)));
    let exists = AdminRefusal::Exists { noun: Noun::Snapshot, name: "v@a".into() };
    assert_eq!(snap(&mut w, v, "a"), Err(exists));
    assert_eq!(snap(&mut w, v, "b"), made(&[(b, 2)]));
    assert_eq!(kept(&w, b), [1, 2]);
    confirm_lists(&mut w);
}

#[test]
fn the_session_seals_and_says_so_with_its_epoch_and_the_generation() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", MIB, &[1, 2, 3]);
    let a = w.attached(b, 1, SessionKind::Guest);
    assert_eq!((a.views.head, a.views.open(), a.views.sealing), (g(1), g(1), None));
    assert_eq!(snap(&mut w, v, "a"), made(&[(b, 1)]));
    assert_eq!(owed(&w), [], "nothing to tell the drives yet");
    assert_eq!(kept(&w, b), [1], "but it is kept");
    let views = w.state.views(b).unwrap();
    assert_eq!((views.head, views.open()), (g(2), g(1)));
    assert!(views.sealing.is_some_and(|s| s.generation == g(1) && !s.group));
    assert_eq!(snap(&mut w, v, "b"), Err(AdminRefusal::SealBusy { name: "v".into() }));
    let busy = AdminRefusal::NotSealed { name: "v@a".into() };
    assert_eq!(w.admin(delete(b, 1, "a")), Err(busy));
    for (epoch, n) in [(Epoch(1), 1), (a.epoch, 2), (Epoch(a.epoch.0 + 1), 1), (a.epoch, 0)] {
        assert!(confirm(&mut w, b, epoch, n).sealing.is_some(), "{epoch:?} {n} confirms nothing");
    }
    for _ in 0..2 {
        let views = confirm(&mut w, b, a.epoch, 1);
        assert_eq!((views.sealing, views.open(), views.head), (None, g(2), g(2)));
        assert_eq!(owed(&w).len(), 3);
    }
    assert_eq!(snap(&mut w, v, "b"), made(&[(b, 2)]), "the next one");
    assert!(confirm(&mut w, b, a.epoch, 1).sealing.is_some(), "a late word of the one before");
}

#[test]
fn a_confirmation_without_a_session_or_of_an_older_one_is_none() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", MIB, &[1, 2, 3]);
    let a = w.attached(b, 1, SessionKind::Guest);
    snap(&mut w, v, "a").unwrap();
    w.node(Op::Detach { branch: b, epoch: a.epoch, clean: false });
    assert!(confirm(&mut w, b, a.epoch, 1).sealing.is_some(), "it is over");
    let next = w.attached(b, 2, SessionKind::Guest);
    assert!(next.views.sealing.is_some(), "the next one hears of it");
    assert!(confirm(&mut w, b, a.epoch, 1).sealing.is_some());
    assert!(confirm(&mut w, b, next.epoch, 1).sealing.is_none());
}

#[test]
fn a_clean_detach_seals_and_an_unclean_one_does_not() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", MIB, &[1, 2, 3]);
    for (round, clean) in [(1, true), (2, false)] {
        let a = w.attached(b, 1, SessionKind::Guest);
        snap(&mut w, v, &format!("s{round}")).unwrap();
        for _ in 0..2 {
            assert_eq!(w.node(Op::Detach { branch: b, epoch: a.epoch, clean }), MetaAnswer::Ok);
            let sealed = w.state.snapshots()[&(b, g(round))].state == SnapshotState::Sealed;
            assert_eq!(sealed, clean);
        }
        let late = w.node(Op::Detach { branch: b, epoch: Epoch(a.epoch.0 - 1), clean: true });
        assert!(matches!(late, MetaAnswer::Refused(MetaRefusal::OldEpoch { .. })));
        assert_eq!(w.state.branches()[&b].sealing.is_some(), !clean, "not by a late one of another session");
    }
    assert_eq!(snap(&mut w, v, "x"), Err(AdminRefusal::SealBusy { name: "v".into() }));
}

#[test]
fn a_seal_called_off_raises_the_head_and_seals_nothing() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", MIB, &[1, 2, 3]);
    let a = w.attached(b, 1, SessionKind::Guest);
    snap(&mut w, v, "a").unwrap();
    let cancel = |n| Op::SealCancel { branch: b, generation: g(n) };
    assert!(!w.own(cancel(2)) && !w.own(cancel(0)), "another generation");
    assert!(w.own(cancel(1)));
    assert!(!w.own(cancel(1)), "twice");
    let row = &w.state.branches()[&b];
    assert_eq!((row.generation, row.unsealed, row.sealing), (g(2), g(1), None), "g1 may still be written");
    assert_eq!(kept(&w, b), [] as [u32; 0]);
    assert_eq!(w.state.views(b).unwrap().open(), g(1));
    assert!(confirm(&mut w, b, a.epoch, 1).open() == g(1), "a late confirmation");
    assert_eq!(w.state.snapshot_named(v, "a"), None);
    // The name is free, the generation is not used again; and the next seal covers both.
    assert_eq!(snap(&mut w, v, "a"), made(&[(b, 2)]));
    assert!(!w.own(cancel(1)), "a late one");
    let views = confirm(&mut w, b, a.epoch, 2);
    assert_eq!((views.open(), views.head), (g(3), g(3)));
    // So does a clean detach.
    snap(&mut w, v, "c").unwrap();
    assert!(w.own(cancel(3)));
    confirm_lists(&mut w);
    w.node(Op::Detach { branch: b, epoch: a.epoch, clean: true });
    assert_eq!(w.state.branches()[&b].unsealed, g(4));
    assert_eq!(owed(&w).len(), 3, "and the drives may join what was called off");
}

#[test]
fn a_volume_being_made_or_changed_is_not_sealed() {
    let mut w = World::with_nodes(3);
    let op = w.create_op("v", MIB, &[1, 2, 3]);
    let Ok(AdminAnswer::VolumeCreated { volume: v }) = w.admin(op) else { panic!() };
    assert_eq!(snap(&mut w, v, "a"), Err(AdminRefusal::NotReady { name: "v".into() }));
    let (v, _) = w.volume("w", MIB, &[1, 2, 3]);
    let mut moved = item(&w, v, "a");
    moved.branch = BranchId(99);
    assert_eq!(w.admin(create(vec![moved])), Err(AdminRefusal::Changed { name: "w".into() }));
    let mut unknown = item(&w, v, "a");
    unknown.volume = VolumeId(99);
    assert_eq!(w.admin(create(vec![unknown])).unwrap_err().code(), 1007);
    for (op, code) in [
        (create(vec![item(&w, v, "a@b")]), 1006),
        (create(vec![]), 1410),
        (create(vec![item(&w, v, "a"), item(&w, v, "b")]), 1410),
        (
            Op::SnapshotCreate {
                items: vec![item(&w, v, "a")],
                labels: [("a b".to_owned(), String::new())].into(),
                protect_until_ms: 0,
            },
            1411,
        ),
    ] {
        assert_eq!(w.admin(op).unwrap_err().code(), code);
    }
    assert!(w.state.snapshots().is_empty() && owed(&w).is_empty());
}

#[test]
fn of_a_group_all_are_sealed_or_none() {
    let mut w = World::with_nodes(3);
    let vols = ["x", "y", "z"].map(|n| w.volume(n, MIB, &[1, 2, 3]));
    let [(vx, x), (vy, y), (vz, z)] = vols;
    let all = |w: &World, name: &str| create(vec![item(w, vx, name), item(w, vy, name), item(w, vz, name)]);
    // One is busy: none is made.
    let a = w.attached(x, 1, SessionKind::Guest);
    let c = w.attached(y, 2, SessionKind::Guest);
    snap(&mut w, vx, "own").unwrap();
    let op = all(&w, "g");
    assert_eq!(w.admin(op), Err(AdminRefusal::SealBusy { name: "x".into() }));
    assert_eq!(w.state.snapshots().len(), 1);
    assert_eq!(w.state.branches()[&z].generation, g(1));
    confirm(&mut w, x, a.epoch, 1);
    // z is closed cleanly, so it is drained from the start; x and y are attached.
    let op = all(&w, "g");
    assert_eq!(w.admin(op), made(&[(x, 2), (y, 1), (z, 1)]));
    let group = Some(LogIndex(w.index));
    let seal = |w: &World, b| w.state.branches()[&b].sealing;
    assert_eq!(seal(&w, z), Some(Seal { generation: g(1), group, drained: true }));
    let views = confirm(&mut w, x, a.epoch, 2);
    assert!(views.sealing.is_some_and(|s| s.group && s.generation == g(2)), "it waits for y");
    assert_eq!(views.open(), g(2));
    let views = confirm(&mut w, x, a.epoch, 2);
    assert!(views.sealing.is_some(), "twice is once");
    let late = w.admin(delete(z, 1, "g"));
    assert_eq!(late, Err(AdminRefusal::NotSealed { name: "z@g".into() }));
    let views = confirm(&mut w, y, c.epoch, 1);
    assert_eq!(views.sealing, None);
    for (b, n) in [(x, 2), (y, 1), (z, 1)] {
        let row = &w.state.snapshots()[&(b, g(n))];
        assert_eq!((row.state, row.group), (SnapshotState::Sealed, group));
        assert_eq!(seal(&w, b), None);
        assert_eq!(w.state.branches()[&b].unsealed, g(n + 1));
    }
    // Called off by any of them, though some have drained.
    let op = all(&w, "h");
    w.admin(op).unwrap();
    confirm(&mut w, x, a.epoch, 3);
    assert!(w.own(Op::SealCancel { branch: x, generation: g(3) }));
    assert!(!w.own(Op::SealCancel { branch: y, generation: g(2) }), "they went together");
    assert_eq!(w.state.snapshots().len(), 4);
    for (b, n) in [(x, 4), (y, 3), (z, 3)] {
        let row = &w.state.branches()[&b];
        assert_eq!((row.generation, row.unsealed, row.sealing), (g(n), g(n - 1), None));
    }
    // All closed cleanly: one command does it.
    w.node(Op::Detach { branch: x, epoch: a.epoch, clean: true });
    let op = all(&w, "i");
    w.admin(op).unwrap();
    w.node(Op::Detach { branch: y, epoch: c.epoch, clean: true });
    assert!(w.state.branches().values().all(|b| b.sealing.is_none()), "a clean detach drains, too");
    let op = all(&w, "j");
    w.admin(op).unwrap();
    assert!(w.state.snapshots().values().all(|s| s.state == SnapshotState::Sealed));
}

#[test]
fn snapshots_are_renamed_labelled_protected_and_deleted() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", MIB, &[1, 2, 3]);
    snap(&mut w, v, "a").unwrap();
    snap(&mut w, v, "b").unwrap();
    confirm_lists(&mut w);
    let rename = |from: &str, to: &str| Op::SnapshotRename {
        branch: b,
        generation: g(1),
        from: from.into(),
        to: to.into(),
    };
    let exists = AdminRefusal::Exists { noun: Noun::Snapshot, name: "v@b".into() };
    assert_eq!(w.admin(rename("a", "b")), Err(exists));
    assert_eq!(w.admin(rename("a", "-")).unwrap_err().code(), 1006);
    assert_eq!(w.admin(rename("a", "c")), Ok(AdminAnswer::Done));
    let changed = AdminRefusal::SnapshotChanged { name: "v@c".into() };
    assert_eq!(w.admin(rename("a", "d")), Err(changed.clone()), "a late one");
    assert_eq!(w.admin(delete(b, 1, "a")), Err(changed), "so is this");
    let protect = |until_ms, force: Option<&str>| Op::SnapshotProtect {
        branch: b,
        generation: g(1),
        name: "c".into(),
        until_ms,
        force: force.map(Into::into),
    };
    let far = w.at_ms + 1_000_000;
    assert_eq!(w.admin(protect(far, None)), Ok(AdminAnswer::Done));
    assert_eq!(
        w.admin(delete(b, 1, "c")),
        Err(AdminRefusal::Protected { name: "v@c".into(), until_ms: far })
    );
    let with = Op::VolumeDelete { volume: v, force: None, with_snapshots: true };
    assert_eq!(w.admin(with.clone()).unwrap_err().code(), 1406, "nor does its volume go");
    assert_eq!(w.admin(protect(far - 1, None)).unwrap_err().code(), 1406);
    assert_eq!(w.admin(protect(far + 1, None)), Ok(AdminAnswer::Done));
    assert_eq!(w.admin(protect(0, Some("mistyped"))), Ok(AdminAnswer::Done));
    let label = Op::SnapshotLabel {
        branch: b,
        generation: g(1),
        name: "c".into(),
        set: [("app".to_owned(), "db".to_owned())].into(),
        remove: BTreeSet::new(),
    };
    assert_eq!(w.admin(label), Ok(AdminAnswer::Done));
    assert_eq!(w.state.snapshots()[&(b, g(1))].labels["app"], "db");
    assert_eq!(owed(&w), [], "none of that is the drives' business");
    let has =
        AdminRefusal::HasSnapshots { name: "v".into(), count: 2, snapshots: vec!["c".into(), "b".into()] };
    let plain = Op::VolumeDelete { volume: v, force: Some("x".into()), with_snapshots: false };
    assert_eq!(w.admin(plain), Err(has));
    assert_eq!(w.admin(delete(b, 1, "c")), Ok(AdminAnswer::Done));
    assert_eq!(w.admin(delete(b, 1, "c")).unwrap_err().code(), 1007, "twice");
    assert_eq!(kept(&w, b), [2]);
    assert_eq!(owed(&w).len(), 3);
    assert_eq!(snap(&mut w, v, "c"), made(&[(b, 3)]), "a generation is used once");
    assert_eq!(w.admin(delete(b, 1, "c")).unwrap_err().code(), 1007, "late, under the name of another");
    assert_eq!(w.admin(with), Ok(AdminAnswer::Done));
    assert!(w.state.snapshots().is_empty() && owed(&w).is_empty());
}

#[test]
fn a_volume_may_go_while_it_is_being_sealed() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", MIB, &[1, 2, 3]);
    let a = w.attached(b, 1, SessionKind::Guest);
    snap(&mut w, v, "a").unwrap();
    let gone = Op::VolumeDelete { volume: v, force: Some("x".into()), with_snapshots: true };
    assert_eq!(w.admin(gone), Ok(AdminAnswer::Done));
    let late = w.node(Op::Sealed { branch: b, epoch: a.epoch, generation: g(1) });
    assert_eq!(late, MetaAnswer::Refused(MetaRefusal::NoSuchVolume));
    assert!(!w.own(Op::SealCancel { branch: b, generation: g(1) }));
    assert!(!w.own(Op::Kept { drive: drive_of(1), branch: b, index: ListIndex(u64::MAX) }));
}

#[test]
fn who_is_behind_is_told_and_promotions_and_drops_owe_lists_anew() {
    let mut w = World::with_nodes(4);
    let (v, b) = w.volume("v", 40 * MIB, &[1, 2, 3]);
    let (_, plain) = w.volume("plain", 40 * MIB, &[1, 2, 3]);
    let a = w.attached(b, 1, SessionKind::Guest);
    let p = w.attached(plain, 1, SessionKind::Guest);
    let turn = |w: &mut World, branch, epoch, n: u32, state, cause| {
        let c = w.config(branch, 1);
        let changes = vec![to(&c, 1, cause, drive_of(n), state)];
        w.node(Op::Propose { branch, epoch, changes });
    };
    turn(&mut w, plain, p.epoch, 2, Stale, ChangeCause::Silent);
    turn(&mut w, plain, p.epoch, 2, InSync, ChangeCause::Promoted(1));
    turn(&mut w, b, a.epoch, 2, Stale, ChangeCause::Silent);
    assert_eq!(owed(&w), [], "without snapshots a drop owes nothing");
    snap(&mut w, v, "a").unwrap();
    confirm(&mut w, b, a.epoch, 1);
    let list = w.state.keep_list(b, drive_of(2)).unwrap();
    let replica = w.config(b, 1).member(drive_of(2)).unwrap().place.incarnation;
    assert_eq!(list.behind, [(ChunkIndex(1), replica)]);
    assert_eq!(w.state.keep_list(b, drive_of(1)).unwrap().behind, []);
    confirm_lists(&mut w);
    turn(&mut w, b, a.epoch, 2, InSync, ChangeCause::Promoted(1));
    assert_eq!(owed(&w), [(drive_of(2), b)], "whole now");
    assert_eq!(w.state.keep_list(b, drive_of(2)).unwrap().behind, []);
    confirm_lists(&mut w);
    turn(&mut w, b, a.epoch, 3, Stale, ChangeCause::Silent);
    assert_eq!(owed(&w), [(drive_of(3), b)]);
    // A new replica is owed one, too, and a drive that holds nothing any more is owed nothing.
    let c = w.config(b, 1);
    let place = PlaceItem { chunk: ChunkIndex(1), from: c.number, drive: drive_of(4), replaces: None };
    assert!(w.own(Op::Place { branch: b, epoch: a.epoch, items: vec![place] }));
    assert_eq!(owed(&w), [(drive_of(3), b), (drive_of(4), b)]);
    let list = w.state.keep_list(b, drive_of(4)).unwrap();
    assert_eq!(list.behind.len(), 1);
    assert_eq!(list.placed, list.behind[0].1, "it is the newest placement");
    // One that is let go stays behind until it is erased: the drive may be asked for it by a reader with old places.
    let held = w.state.keep_list(b, drive_of(3)).unwrap().behind;
    assert_eq!(held.len(), 1);
    turn(&mut w, b, a.epoch, 4, InSync, ChangeCause::Promoted(1));
    let c = w.config(b, 1);
    let gone = PruneItem { chunk: ChunkIndex(1), from: c.number, drive: drive_of(3) };
    assert!(w.own(Op::Prune { branch: b, epoch: a.epoch, items: vec![gone] }));
    assert!(w.config(b, 1).member(drive_of(3)).is_none());
    assert_eq!(w.state.keep_list(b, drive_of(3)).unwrap().behind, held);
}

#[test]
fn what_is_owed_is_settled_only_by_a_list_as_new() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", MIB, &[1, 2, 3]);
    snap(&mut w, v, "a").unwrap();
    let d = drive_of(1);
    let first = w.state.keep_list(b, d).unwrap();
    snap(&mut w, v, "b").unwrap();
    assert!(!w.own(Op::Kept { drive: d, branch: b, index: first.index }), "an older list");
    let second = w.state.keep_list(b, d).unwrap();
    assert!(second.index > first.index && second.is_possible() && first.is_possible());
    assert!(w.own(Op::Kept { drive: d, branch: b, index: second.index }));
    assert_eq!(owed(&w), [2, 3].map(|n| (drive_of(n), b)));
    // Rows and indexes were compared after each command: what is owed survives loading.
    let loaded = MetaState::load(w.state.rows()).unwrap();
    assert_eq!(loaded.owed().count(), 2);
    assert_eq!(loaded.keep_list(b, d), w.state.keep_list(b, d));
}

#[test]
fn growth_makes_replicas_that_the_drives_hear_of() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", 16 * MIB, &[1, 2, 3]);
    snap(&mut w, v, "a").unwrap();
    confirm_lists(&mut w);
    let plan = meta::command::Plan { groups: vec![[1, 2, 3].map(drive_of).to_vec()], chunks: vec![0] };
    w.admin(Op::VolumeResize { volume: v, from: 16 * MIB, to: 32 * MIB, plan }).unwrap();
    w.own(Op::Appoint { branch: b, epoch: w.epoch(b), node: Some(NodeId(1)) });
    let a = w.attached(b, 1, SessionKind::Maintenance);
    let failed = vec![drive_of(3)];
    let (epoch, placement) = (a.epoch, a.placement.unwrap());
    w.node(Op::Created { branch: b, epoch, placement, failed, replacements: vec![] });
    assert_eq!(owed(&w), [1, 2, 3].map(|n| (drive_of(n), b)));
    assert_eq!(w.state.keep_list(b, drive_of(3)).unwrap().behind.len(), 1, "it was made without this one");
    assert_eq!(w.state.keep_list(b, drive_of(1)).unwrap().behind, []);
    assert_eq!(w.state.snapshots()[&(b, g(1))].size, 16 * MIB, "the snapshot is as large as it was");
}

/// The list as the rows say it, by looking at everything.
fn naive(s: &MetaState, branch: BranchId, drive: DriveId) -> KeepList {
    let row = &s.branches()[&branch];
    let mut kept = Generations::new();
    for (b, g) in s.snapshots().keys() {
        if *b == branch {
            kept.insert(*g);
        }
    }
    let mut behind = Vec::new();
    for (chunk, c) in s.chunks(branch).expect("a branch of the world").iter() {
        for m in &c.members {
            if m.place.drive == drive && m.state == Stale {
                behind.push((chunk, m.place.incarnation));
            }
        }
    }
    let let_go = s.garbage(drive, usize::MAX).into_iter().filter(|r| r.branch == branch);
    behind.extend(let_go.map(|r| (r.chunk, r.incarnation)));
    KeepList {
        branch,
        index: ListIndex::new(0, s.applied()),
        placed: proto::Incarnation(s.head().last_incarnation),
        open: row.unsealed,
        head: row.generation,
        named: s.volumes().values().any(|v| v.branch == branch),
        kept,
        behind,
    }
}

mod random {
    use super::*;
    use proptest::prelude::*;

    /// What each drive has heard last, as one that obeys would.
    #[derive(Default)]
    struct Drives(BTreeMap<(DriveId, BranchId), KeepList>);

    fn one_step(
        w: &mut World,
        drives: &mut Drives,
        vols: &[(VolumeId, BranchId)],
        (kind, n): (u8, [u32; 3]),
    ) {
        let (v, b) = vols[n[0] as usize % vols.len()];
        let row = w.state.branches()[&b].clone();
        match kind {
            0 | 1 => drop(snap(w, v, &format!("s{}", n[1] % 9))),
            2 => {
                let all: Vec<_> = vols.iter().map(|(v, _)| item(w, *v, &format!("g{}", n[1] % 9))).collect();
                drop(w.admin(create(all)));
            }
            3..=5 => {
                drop(w.node(Op::Sealed { branch: b, epoch: row.epoch, generation: g(row.generation.0 - 1) }))
            }
            6 => drop(w.own(Op::SealCancel { branch: b, generation: g(row.generation.0 - 1) })),
            7 | 8 => {
                let all: Vec<_> = w.state.snapshots().iter().map(|(k, s)| (*k, s.name.clone())).collect();
                let Some(((branch, generation), name)) = all.get(n[1] as usize % all.len().max(1)) else {
                    return;
                };
                drop(w.admin(delete(*branch, generation.0, name)));
            }
            9 => match row.session {
                Some(_) => drop(w.node(Op::Detach { branch: b, epoch: row.epoch, clean: n[1] % 2 == 0 })),
                None => drop(w.attach(b, n[1] % 4 + 1, SessionKind::Guest)),
            },
            10..=12 => {
                let chunk = n[1] % 3;
                let c = w.config(b, chunk);
                let m = c.members[n[2] as usize % c.members.len()];
                let (state, cause) = match m.state {
                    InSync => (Stale, ChangeCause::Silent),
                    _ => (InSync, ChangeCause::Promoted(1)),
                };
                let changes = vec![to(&c, chunk, cause, m.place.drive, state)];
                w.node(Op::Propose { branch: b, epoch: row.epoch, changes });
            }
            13 => {
                let chunk = ChunkIndex(n[1] % 3);
                let from = w.config(b, chunk.0).number;
                let place = PlaceItem { chunk, from, drive: drive_of(n[2] % 4 + 1), replaces: None };
                w.own(Op::Place { branch: b, epoch: row.epoch, items: vec![place] });
            }
            _ => {
                let all: Vec<_> = w.state.owed().collect();
                let Some((d, b, _)) = all.get(n[1] as usize % all.len().max(1)) else { return };
                let list = w.state.keep_list(*b, *d).expect("a branch of the world");
                let index = list.index;
                drives.0.insert((*d, *b), list);
                w.own(Op::Kept { drive: *d, branch: *b, index });
            }
        }
    }

    /// Who is owed nothing knows what matters: what is kept, what is sealed, and which replicas are whole.
    fn check(w: &World, drives: &Drives, vols: &[(VolumeId, BranchId)]) {
        let owed: BTreeSet<_> = w.state.owed().map(|(d, b, _)| (d, b)).collect();
        for (_, b) in vols {
            let members = w
                .state
                .chunks(*b)
                .expect("a branch of the world")
                .iter()
                .flat_map(|(_, c)| c.members.to_vec());
            let uses: BTreeSet<DriveId> = members.map(|m| m.place.drive).collect();
            for d in uses {
                let list = w.state.keep_list(*b, d).expect("a branch of the world");
                assert_eq!(list, naive(&w.state, *b, d));
                assert!(list.is_possible());
                if owed.contains(&(d, *b)) {
                    continue;
                }
                let sealed = |l: &KeepList| l.kept.below(l.open);
                let Some(heard) = drives.0.get(&(d, *b)) else {
                    assert!(sealed(&list).is_empty(), "{b} on {d}: never told");
                    continue;
                };
                assert_eq!(sealed(heard), sealed(&list), "{b} on {d}");
                if !sealed(&list).is_empty() {
                    // What was let go and is erased by now may still be among what it has heard.
                    let member = |(chunk, i): &(ChunkIndex, proto::Incarnation)| {
                        let c = w.config(*b, chunk.0);
                        c.members.iter().any(|m| m.place.drive == d && m.place.incarnation == *i)
                    };
                    assert!(list.behind.iter().all(|r| heard.behind.contains(r)), "{b} on {d}");
                    let members = |l: &KeepList| l.behind.iter().filter(|r| member(r)).count();
                    assert_eq!(members(heard), members(&list), "{b} on {d}");
                }
                assert!(heard.open <= list.open);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        #[test]
        fn lists_are_as_the_rows_say_and_whoever_must_hear_one_is_owed_it(
            steps in prop::collection::vec((0..17u8, prop::array::uniform3(0..1000u32)), 1..90),
        ) {
            let mut w = World::with_nodes(4);
            let vols = [w.volume("x", 40 * MIB, &[1, 2, 3]), w.volume("y", 40 * MIB, &[2, 3, 4])];
            let mut drives = Drives::default();
            for step in steps {
                one_step(&mut w, &mut drives, &vols, step);
                check(&w, &drives, &vols);
            }
        }
    }
}
