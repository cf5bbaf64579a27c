//! The trash: exact answers per command and refusal, each command twice and late; what a volume in it can do, and when it goes.

mod common;

use common::fleet::Fleet;
use common::*;
use meta::command::{Plan, SnapshotItem};
use meta::refusal::Noun;
use meta::view::WaitFor;
use meta::{AdminAnswer, AdminRefusal, AdminRequest, Answer, Class, Op, Setting};
use proto::control::{MetaAnswer, MetaRefusal, SessionKind};
use proto::{BranchId, Generation, Span, VolumeId};
use std::collections::BTreeMap;

const SIZE: u64 = 40 * MIB;
const DAY: u64 = 86_400_000;

fn trash(volume: VolumeId) -> Op {
    Op::VolumeTrash { volume, force: None, with_snapshots: true, despite_clones: false }
}
fn restore(volume: VolumeId, name: &str) -> Op {
    Op::VolumeRestore { volume, name: name.into() }
}
fn purge(volume: VolumeId, early: bool) -> Op {
    Op::VolumePurge { volume, early }
}
fn snap(
    w: &mut World,
    volume: VolumeId,
    name: &str,
    protect_until_ms: u64,
) -> Result<AdminAnswer, AdminRefusal> {
    let branch = w.state.volumes()[&volume].branch;
    let items = vec![SnapshotItem { volume, branch, name: name.into(), id: 7 }];
    w.admin(Op::SnapshotCreate { items, labels: BTreeMap::new(), protect_until_ms })
}
fn clone(branch: BranchId, n: u32, name: &str) -> Op {
    let plan = Plan { groups: vec![vec![drive_of(1), drive_of(2), drive_of(3)]], chunks: vec![0; 3] };
    let (generation, class) = (Generation(n), Class::default());
    Op::CloneCreate { branch, generation, name: name.into(), size: SIZE, class, plan }
}
fn not_trashed(volume: VolumeId) -> AdminRefusal {
    AdminRefusal::NotFound { noun: Noun::Trashed, name: volume.to_string() }
}
fn no_volume(volume: VolumeId) -> AdminRefusal {
    AdminRefusal::NotFound { noun: Noun::Volume, name: volume.to_string() }
}

#[test]
fn a_deleted_volume_rests_under_no_name_and_comes_back_whole() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    snap(&mut w, v, "a", 0).expect("sealed at once");
    let answer = w.apply(Some(5), trash(v));
    let until_ms = w.at_ms + DAY;
    assert_eq!(answer, Answer::Admin(Ok(AdminAnswer::Trashed { until_ms })));
    assert_eq!(w.apply(Some(5), trash(v)), answer, "the order again");
    assert_eq!(w.admin(trash(v)), Err(no_volume(v)), "late");
    assert_eq!(w.state.trash()[&v].until_ms, until_ms);
    // It is nobody's, and all of it is there.
    assert!(w.state.volume_named("v").is_none() && w.state.branches().contains_key(&b));
    assert_eq!(w.attach(b, 1, SessionKind::Guest), MetaAnswer::Refused(MetaRefusal::NoSuchVolume));
    let views = w.state.views(b).expect("its branch is there");
    assert!(views.named && views.kept.count() == 1, "{views:?}");
    // Late commands about it change nothing.
    let gone = |name: &str| Err(AdminRefusal::NotFound { noun: Noun::Snapshot, name: name.into() });
    let (branch, generation) = (b, Generation(1));
    assert_eq!(
        w.admin(Op::SnapshotRename { branch, generation, from: "a".into(), to: "z".into() }),
        gone("a")
    );
    assert_eq!(w.admin(Op::SnapshotDelete { branch, generation, name: "a".into() }), gone("a"));
    assert_eq!(w.admin(clone(b, 1, "c")), gone("v@a"));
    assert_eq!(w.admin(Op::VolumeRename { volume: v, from: "v".into(), to: "w".into() }), Err(no_volume(v)));
    assert_eq!(
        w.admin(Op::VolumeDelete { volume: v, force: None, with_snapshots: true }),
        Err(no_volume(v)),
        "only the trash's own command erases it"
    );
    // Another one takes its name.
    let (other, _) = w.volume("v", SIZE, &[1, 2, 3]);
    assert_eq!(w.admin(restore(v, "v")), Err(AdminRefusal::RestoreTaken { name: "v".into(), volume: v }));
    assert!(matches!(w.admin(restore(v, "-")), Err(AdminRefusal::BadName { .. })));
    let back = w.apply(Some(6), restore(v, "w"));
    assert_eq!(back, Answer::Admin(Ok(AdminAnswer::VolumeCreated { volume: v })));
    assert_eq!(w.apply(Some(6), restore(v, "w")), back);
    assert_eq!(w.admin(restore(v, "x")), Err(not_trashed(v)), "late");
    assert_eq!(w.state.volume_named("w").map(|(id, r)| (id, r.branch)), Some((v, b)));
    assert_eq!(w.state.volume_named("v").map(|(id, _)| id), Some(other));
    assert!(w.state.snapshot_named(v, "a").is_some());
    w.attached(b, 1, SessionKind::Guest);
}

#[test]
fn what_stands_in_the_way_of_the_trash() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    let until_ms = w.at_ms + DAY;
    snap(&mut w, v, "p", until_ms).expect("sealed at once");
    assert_eq!(w.admin(trash(v)), Err(AdminRefusal::Protected { name: "v@p".into(), until_ms }));
    let (branch, generation, name) = (b, Generation(1), "p".to_owned());
    w.admin(Op::SnapshotProtect { branch, generation, name, until_ms: 0, force: Some("x".into()) })
        .expect("by force");
    let plain = Op::VolumeTrash { volume: v, force: None, with_snapshots: false, despite_clones: false };
    assert!(matches!(w.admin(plain), Err(AdminRefusal::HasSnapshots { count: 1, .. })));
    let epoch = w.attached(b, 1, SessionKind::Guest).epoch;
    assert!(matches!(w.admin(trash(v)), Err(AdminRefusal::Attached { .. })));
    // By force: the guest is fenced. Restored, it is reconciled as after any loss.
    let forced =
        Op::VolumeTrash { volume: v, force: Some("x".into()), with_snapshots: true, despite_clones: false };
    w.admin(forced).expect("by force");
    let row = &w.state.branches()[&b];
    assert_eq!((row.session, row.epoch.0, row.clean), (None, epoch.0 + 1, false));
    w.admin(restore(v, "v")).expect("restored");
    assert!(!w.attached(b, 1, SessionKind::Guest).clean);
}

#[test]
fn a_volume_with_clones_rests_until_they_are_gone() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    snap(&mut w, v, "a", 0).expect("sealed at once");
    w.admin(clone(b, 1, "c")).expect("cloned");
    let (c, _) = w.state.volume_named("c").map(|(id, r)| (id, r.branch)).expect("made");
    let clones = |names: &[&str]| AdminRefusal::HasClones {
        name: "v@a".into(),
        clones: names.iter().map(|n| (*n).to_owned()).collect(),
    };
    assert_eq!(w.admin(trash(v)), Err(clones(&["c"])));
    let rest = Op::VolumeTrash { volume: v, force: None, with_snapshots: true, despite_clones: true };
    w.admin(rest).expect("it rests");
    w.at_ms += 2 * DAY;
    let named = |list: &[&str]| AdminRefusal::HasClones {
        name: "v".into(),
        clones: list.iter().map(|n| (*n).to_owned()).collect(),
    };
    assert_eq!(w.admin(purge(v, false)), Err(named(&["c"])));
    assert_eq!(w.admin(purge(v, true)), Err(named(&["c"])), "not by order either");
    // A clone in the trash reads from it still: it can be restored.
    w.admin(trash(c)).expect("nothing depends on it");
    assert_eq!(w.admin(purge(v, false)), Err(named(&["c (in the trash)"])));
    w.admin(purge(c, true)).expect("erased");
    w.admin(purge(v, false)).expect("erased");
    assert!(w.state.branches().is_empty() && w.state.trash().is_empty() && w.state.snapshots().is_empty());
    assert!(!w.state.garbage(drive_of(1), 99).is_empty(), "the drives are told");
}

#[test]
fn it_is_erased_in_its_time_and_not_before() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    w.admin(trash(v)).expect("nothing depends on it");
    assert_eq!(w.admin(purge(v, false)), Err(AdminRefusal::Changed { name: "v".into() }), "too early");
    assert!(w.state.branches().contains_key(&b));
    w.at_ms += DAY;
    let gone = w.apply(Some(9), purge(v, false));
    assert_eq!(gone, Answer::Admin(Ok(AdminAnswer::Done)));
    assert_eq!(w.apply(Some(9), purge(v, false)), gone);
    assert_eq!(w.admin(purge(v, true)), Err(not_trashed(v)));
    assert_eq!(w.admin(restore(v, "v")), Err(not_trashed(v)));
    // The setting counts when it is deleted.
    let (v, _) = w.volume("v", SIZE, &[1, 2, 3]);
    w.admin(Op::SettingSet { setting: Setting::Trash(5000) }).expect("in range");
    w.admin(trash(v)).expect("nothing depends on it");
    w.admin(Op::SettingSet { setting: Setting::Trash(DAY) }).expect("in range");
    assert_eq!(w.state.trash()[&v].until_ms - w.state.trash()[&v].trashed_ms, 5000);
}

// Through the service.

fn delete(name: &str, now: bool, despite_clones: bool) -> AdminRequest {
    AdminRequest::VolumeDelete { name: name.into(), force: None, with_snapshots: true, now, despite_clones }
}
fn set(f: &mut Fleet, value: &str) {
    f.admin(AdminRequest::SettingSet { key: "trash".into(), value: value.into() }).expect("in range");
}
fn rests(answer: Result<AdminAnswer, AdminRefusal>) -> bool {
    match answer.expect("deleted") {
        AdminAnswer::Trashed { .. } => true,
        AdminAnswer::Done => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_planner_erases_what_has_rested_whatever_nodes_are_down() {
    let mut f = Fleet::new(4);
    set(&mut f, "30s");
    let branch = f.ready("v", 60);
    f.settle(10);
    f.kill(2);
    assert!(rests(f.admin(delete("v", false, false))));
    let wait = AdminRequest::VolumeWait { name: "v".into(), state: WaitFor::Deleted };
    assert_eq!(f.admin(wait), Ok(AdminAnswer::Waited(true)));
    f.run(Span::secs(25));
    assert!(f.state.branches().contains_key(&branch));
    f.run(Span::secs(10));
    assert!(!f.state.branches().contains_key(&branch) && f.state.trash().is_empty());
    f.start(2);
    f.until("erased", 60, |f| f.state.drives().keys().all(|d| f.state.garbage(*d, 1).is_empty()));
    f.run(Span::secs(20));
    let before = f.log.len();
    f.run(Span::secs(200));
    assert_eq!(&f.log[before..], &[][..], "at rest nothing is proposed");
}

#[test]
fn orphans_are_told_by_drive() {
    let mut f = Fleet::new(3);
    let orphans = |f: &mut Fleet| match f.admin(AdminRequest::OrphanList) {
        Ok(AdminAnswer::Orphans(all)) => all,
        other => panic!("{other:?}"),
    };
    f.ready("v", 60);
    f.kill(2);
    f.run(Span::secs(5));
    assert!(!rests(f.admin(delete("v", true, false))));
    f.run(Span::secs(30));
    let all = orphans(&mut f);
    assert_eq!(all.len(), 1, "what is up is erased: {all:?}");
    assert_eq!((all[0].state.as_str(), all[0].unknown), ("down", 0));
    assert!(all[0].to_erase > 0 && all[0].down_since_ms.is_some());
    f.start(2);
    f.run(Span::secs(30));
    assert_eq!(orphans(&mut f), vec![]);
}

#[test]
fn a_drive_with_replicas_of_nobody_says_so() {
    let mut w = World::with_nodes(1);
    let op = |opening, unknown| Op::DriveOpened {
        node: proto::NodeId(1),
        drive: drive_of(1),
        openings: [1, opening].map(proto::OpenId).to_vec(),
        capacity: 1 << 30,
        path: "/dev/x".into(),
        orphans: vec![],
        unknown,
    };
    w.node(op(7, 3));
    assert_eq!(w.state.drives()[&drive_of(1)].unknown, 3);
    w.node(op(7, 5));
    assert_eq!(w.state.drives()[&drive_of(1)].unknown, 3, "the same opening again");
}

#[test]
fn now_and_a_setting_of_nothing_erase_at_once() {
    let mut f = Fleet::new(3);
    f.ready("a", 20);
    f.ready("b", 20);
    assert!(!rests(f.admin(delete("a", true, false))));
    set(&mut f, "0");
    assert!(!rests(f.admin(delete("b", false, false))));
    assert!(f.state.branches().is_empty() && f.state.trash().is_empty());
}

#[test]
fn a_clone_that_goes_ends_the_rest_of_its_source() {
    let mut f = Fleet::new(3);
    set(&mut f, "10s");
    f.ready("v", 20);
    f.settle(10);
    let order = AdminRequest::VolumeClone {
        source: "v".into(),
        snapshot: None,
        name: "c".into(),
        size: None,
        class: None,
        prefer: None,
        id: 1,
    };
    f.admin(order).expect("cloned");
    f.settle(10);
    assert_eq!(f.admin(delete("v", false, false)).unwrap_err().code(), 1408);
    assert!(rests(f.admin(delete("v", false, true))));
    f.run(Span::secs(60));
    let Ok(AdminAnswer::Trash(list)) = f.admin(AdminRequest::TrashList) else { panic!("no list") };
    assert_eq!((list.len(), list[0].name.as_str(), &list[0].clones[..]), (1, "v", &["c".to_owned()][..]));
    assert!(!rests(f.admin(delete("c", true, false))));
    f.until("erased", 10, |f| f.state.branches().is_empty());
}

#[test]
fn names_find_what_was_deleted_last_and_ids_all_of_it() {
    let mut f = Fleet::new(3);
    let (mut ids, restore) = (Vec::new(), |name: &str, to: Option<&str>| AdminRequest::VolumeRestore {
        name: name.into(),
        to: to.map(Into::into),
    });
    for _ in 0..3 {
        f.ready("v", 20);
        ids.push(f.state.volume_named("v").expect("made").0);
        assert!(rests(f.admin(delete("v", false, false))));
        f.run(Span::secs(1));
    }
    f.admin(restore(&ids[0].to_string(), Some("first"))).expect("by its id");
    f.admin(restore("v", None)).expect("the last one");
    assert_eq!(f.state.volume_named("first").map(|v| v.0), Some(ids[0]));
    assert_eq!(f.state.volume_named("v").map(|v| v.0), Some(ids[2]));
    let taken = f.admin(restore("v", None)).unwrap_err();
    assert_eq!(taken.code(), 1504);
    assert_eq!(taken.fix(), format!("blockctl volume restore {} --as v-restored", ids[1]));
    f.admin(AdminRequest::VolumePurge { name: "v".into() }).expect("in the trash");
    assert_eq!(f.admin(AdminRequest::VolumePurge { name: "v".into() }).unwrap_err().code(), 1007);
    let Ok(AdminAnswer::Volumes(all)) = f.admin(AdminRequest::VolumeList) else { panic!("no list") };
    assert_eq!(all.len(), 2, "what is deleted is in no list of volumes");
}

#[test]
fn a_word_that_means_two_volumes_means_none() {
    let mut f = Fleet::new(3);
    f.ready("web", 20);
    let web = f.state.volume_named("web").expect("made").0;
    let name = web.to_string();
    f.ready(&name, 20);
    let other = f.state.volume_named(&name).expect("made").0;
    for volume in ["web", &name] {
        assert!(rests(f.admin(delete(volume, false, false))));
    }
    let purge = |f: &mut Fleet, name: &str| f.admin(AdminRequest::VolumePurge { name: name.into() });
    let twice = purge(&mut f, &name).unwrap_err();
    assert_eq!((twice.code(), f.state.trash().len()), (1505, 2));
    purge(&mut f, &format!("@{name}")).expect("the id");
    assert!(f.state.trash().contains_key(&other) && f.state.trash().len() == 1);
    purge(&mut f, &name).expect("only one is left");
    assert!(f.state.trash().is_empty());
}

#[test]
fn nothing_leaves_the_trash_by_a_clock_that_the_nodes_do_not_share() {
    let mut f = Fleet::new(3);
    f.ready("v", 20);
    assert!(rests(f.admin(delete("v", false, false))));
    f.behind_ms = 2 * DAY;
    // The leader's clock says that it has rested long enough.
    f.run(Span::secs(DAY / 1000 + 60));
    assert_eq!(f.state.trash().len(), 1);
    let Ok(AdminAnswer::Cluster(view)) = f.admin(AdminRequest::ClusterStatus) else { panic!("no view") };
    assert!(view.checks.iter().any(|c| c.code == "CLOCK_APART"), "{:?}", view.checks);
    f.behind_ms = 0;
    f.run(Span::secs(60));
    assert!(f.state.trash().is_empty());
}

#[test]
fn a_snapshot_in_the_making_protects_as_well() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    w.attached(b, 1, SessionKind::Guest);
    let until = w.at_ms + DAY;
    snap(&mut w, v, "a", until).expect("asked for: the session drains");
    let epoch = w.epoch(b);
    assert_eq!(w.node(Op::Detach { branch: b, epoch, clean: false }), MetaAnswer::Ok);
    assert_eq!(w.admin(trash(v)).unwrap_err().code(), 1406);
}
