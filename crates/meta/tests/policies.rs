//! Policies: exact answers per command, each twice and late; what is run, kept and refused as time passes.

mod common;

use common::fleet::Fleet;
use common::*;
use meta::command::{Plan, SnapshotItem};
use meta::model::{PolicyId, Quota};
use meta::refusal::Noun;
use meta::{AdminAnswer, AdminRefusal, AdminRequest, Answer, Class, Op};
use proptest::prelude::*;
use proto::control::SessionKind;
use proto::{BranchId, Generation, Span, VolumeId};
use schedule::{Retention, Schedule};
use std::collections::{BTreeMap, BTreeSet};

const SIZE: u64 = 20 * MIB;
const DAY: u64 = 86_400_000;
const P: PolicyId = PolicyId(1);

fn keep(last: u32) -> Retention {
    Retention { last, ..Retention::default() }
}
fn create(name: &str, retention: Retention) -> Op {
    let keeps = u64::from(retention.last + retention.daily);
    let schedules = vec![Schedule::parse("daily").expect("a word")];
    Op::PolicyCreate { name: name.into(), schedules, jitter_ms: 0, retention, keeps }
}
fn attach(volume: VolumeId) -> Op {
    Op::PolicyAttach { policy: P, volume }
}
fn detach(volume: VolumeId) -> Op {
    Op::PolicyDetach { policy: P, volume }
}
fn quota(volume: VolumeId, most: u32, manual_only: bool) -> Op {
    Op::QuotaSet { volume, quota: Some(Quota { most, manual_only }) }
}
fn run(w: &World, volume: VolumeId, slot_ms: u64) -> Op {
    let branch = w.state.volumes()[&volume].branch;
    let item = SnapshotItem { volume, branch, name: format!("run-{slot_ms}"), id: slot_ms.into() };
    Op::PolicyRun { policy: P, item, slot_ms }
}
fn snap(w: &mut World, volume: VolumeId, name: &str) -> Result<AdminAnswer, AdminRefusal> {
    let branch = w.state.volumes()[&volume].branch;
    let items = vec![SnapshotItem { volume, branch, name: name.into(), id: 7 }];
    w.admin(Op::SnapshotCreate { items, labels: BTreeMap::new(), protect_until_ms: 0 })
}
fn names(w: &World, volume: VolumeId) -> Vec<String> {
    w.state.snapshots_of(volume).map(|(_, s)| s.name.clone()).collect()
}
fn no_policy() -> AdminRefusal {
    AdminRefusal::NotFound { noun: Noun::Policy, name: "p1".into() }
}

#[test]
fn policies_are_made_attached_detached_and_deleted() {
    let mut w = World::with_nodes(3);
    let (v, _) = w.volume("v", SIZE, &[1, 2, 3]);
    assert_eq!(w.admin(attach(v)), Err(no_policy()));
    let made = w.apply(Some(3), create("d", keep(2)));
    assert_eq!(made, Answer::Admin(Ok(AdminAnswer::Done)));
    assert_eq!(w.apply(Some(3), create("d", keep(2))), made);
    let exists = AdminRefusal::Exists { noun: Noun::Policy, name: "d".into() };
    assert_eq!(w.admin(create("d", keep(3))), Err(exists));
    for (bad, why) in [
        (create("e", Retention::default()), "what to keep"),
        (create("e", keep(1001)), "1001"),
        (create(&"e".repeat(48), keep(1)), "47 bytes"),
        (
            Op::PolicyCreate {
                name: "e".into(),
                schedules: vec![],
                jitter_ms: 0,
                retention: keep(1),
                keeps: 1,
            },
            "1 to 8",
        ),
    ] {
        let Err(AdminRefusal::BadPolicy { why: said, .. }) = w.admin(bad) else { panic!("taken") };
        assert!(said.contains(why), "{said}");
    }
    assert!(matches!(w.admin(create("-", keep(1))), Err(AdminRefusal::BadName { .. })));
    assert_eq!(w.admin(attach(v)), Ok(AdminAnswer::Done));
    assert_eq!(w.admin(attach(v)), Ok(AdminAnswer::Done), "twice");
    let used = AdminRefusal::PolicyInUse { name: "d".into(), volumes: vec!["v".into()] };
    assert_eq!(w.admin(Op::PolicyDelete { policy: P }), Err(used));
    w.admin(detach(v)).expect("attached");
    let not = AdminRefusal::PolicyNotAttached { policy: "d".into(), name: "v".into() };
    assert_eq!(w.admin(detach(v)), Err(not));
    w.admin(Op::PolicyDelete { policy: P }).expect("not used");
    assert_eq!(w.admin(Op::PolicyDelete { policy: P }), Err(no_policy()));
    assert!(matches!(w.admin(attach(VolumeId(9))), Err(AdminRefusal::NotFound { .. })));
}

#[test]
fn a_slot_is_run_once_and_what_is_not_kept_goes_with_the_seal() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    w.admin(create("d", keep(2))).expect("made");
    let late = run(&w, v, w.at_ms + DAY);
    let changed = Err(AdminRefusal::Changed { name: "v".into() });
    assert_eq!(w.admin(late.clone()), changed, "not attached");
    w.admin(attach(v)).expect("attached");
    assert_eq!(w.admin(run(&w, v, w.at_ms - 10)), changed, "before it was attached");
    snap(&mut w, v, "mine").expect("sealed at once");
    let slots: Vec<u64> = (1..=5).map(|d| w.at_ms + d * DAY).collect();
    for slot in &slots {
        let op = run(&w, v, *slot);
        w.at_ms = *slot;
        w.admin(op.clone()).expect("sealed at once");
        assert_eq!(w.admin(op), changed, "twice");
    }
    assert_eq!(w.admin(late), changed, "late");
    let kept: Vec<String> = slots[3..].iter().map(|s| format!("run-{s}")).collect();
    assert_eq!(names(&w, v), [vec!["mine".to_owned()], kept.clone()].concat());
    // Protected ones, and those with clones, stay until they can go.
    let (last, before) =
        (w.state.snapshot_named(v, &kept[1]).unwrap().0, w.state.snapshot_named(v, &kept[0]).unwrap().0);
    let (branch, generation) = before;
    let until_ms = w.at_ms + 2 * DAY + DAY / 2;
    w.admin(Op::SnapshotProtect { branch, generation, name: kept[0].clone(), until_ms, force: None })
        .expect("longer");
    let plan = Plan { groups: vec![vec![drive_of(1), drive_of(2), drive_of(3)]], chunks: vec![0; 2] };
    let class = Class::default();
    w.admin(Op::CloneCreate { branch: b, generation: last.1, name: "c".into(), size: SIZE, class, plan })
        .expect("cloned");
    for d in 6..=8 {
        let op = run(&w, v, slots[0] + d * DAY);
        w.at_ms = slots[0] + d * DAY;
        w.admin(op).expect("sealed at once");
    }
    let there: BTreeSet<String> = names(&w, v).into_iter().collect();
    assert!(there.contains(&kept[1]) && there.contains("mine"), "{there:?}");
    assert!(!there.contains(&kept[0]), "its protection has ended: {there:?}");
    assert_eq!(there.len(), 4, "{there:?}");
    // Detached: nothing of it goes any more.
    w.admin(detach(v)).expect("attached");
    assert_eq!(names(&w, v).len(), 4);
}

#[test]
fn a_run_that_is_called_off_is_run_again() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    w.admin(create("d", keep(2))).expect("made");
    w.admin(attach(v)).expect("attached");
    let epoch = w.attached(b, 1, SessionKind::Guest).epoch;
    let slot = w.at_ms + DAY;
    w.admin(run(&w, v, slot)).expect("asked");
    let busy = run(&w, v, slot + DAY);
    assert_eq!(w.admin(busy), Err(AdminRefusal::SealBusy { name: "v".into() }));
    assert_eq!(w.state.policy_uses()[&(v, P)].ran_ms, slot, "what is refused counts for nothing");
    assert!(w.own(Op::SealCancel { branch: b, generation: Generation(1) }));
    w.admin(run(&w, v, slot)).expect("asked again");
    w.node(Op::Sealed { branch: b, epoch, generation: Generation(2) });
    assert_eq!(names(&w, v), [format!("run-{slot}")]);
}

#[test]
fn a_quota_and_what_does_not_fit_into_it() {
    let mut w = World::with_nodes(3);
    let (v, _) = w.volume("v", SIZE, &[1, 2, 3]);
    w.admin(create("d", Retention { daily: 7, ..Retention::default() })).expect("made");
    w.admin(quota(v, 5, false)).expect("nothing in its way");
    let conflict =
        |needs, most| AdminRefusal::PolicyConflict { policy: "d".into(), name: "v".into(), needs, most };
    assert_eq!(w.admin(attach(v)), Err(conflict(7, 5)), "seven a week do not fit into five");
    w.admin(quota(v, 5, true)).expect("what policies make does not count");
    w.admin(attach(v)).expect("attached");
    assert_eq!(w.admin(quota(v, 6, false)), Err(conflict(7, 6)));
    w.admin(quota(v, 8, false)).expect("it fits");
    snap(&mut w, v, "a").expect("the eighth");
    let full =
        |reserved, by_hand, most| AdminRefusal::QuotaFull { name: "v".into(), most, by_hand, reserved };
    assert_eq!(snap(&mut w, v, "b"), Err(full(7, 1, 8)), "the policy's are spoken for");
    w.admin(quota(v, 1, true)).expect("one by hand");
    assert_eq!(snap(&mut w, v, "b"), Err(full(0, 1, 1)));
    // A policy that is attached already runs whatever there is.
    let op = run(&w, v, w.at_ms + DAY);
    w.admin(op).expect("sealed at once");
    w.admin(Op::QuotaSet { volume: v, quota: None }).expect("none");
    snap(&mut w, v, "b").expect("no quota");
    // What a policy that is detached has made counts as made by hand.
    w.admin(detach(v)).expect("attached");
    w.admin(quota(v, 3, false)).expect("no policy in its way");
    assert_eq!(snap(&mut w, v, "c"), Err(full(0, 3, 3)));
    // They go with their volume.
    w.admin(attach(v)).expect_err("three by hand");
    w.admin(quota(v, 20, false)).expect("more");
    w.admin(attach(v)).expect("fits");
    w.admin(Op::VolumeDelete { volume: v, force: None, with_snapshots: true }).expect("deleted");
    assert!(w.state.policy_uses().is_empty() && w.state.quota(v).is_none());
    w.admin(Op::PolicyDelete { policy: P }).expect("not used any more");
}

// Through the service, as time passes.

fn order(schedules: &[&str], jitter_ms: u64, retention: Retention) -> AdminRequest {
    let schedules = schedules.iter().map(|s| (*s).to_owned()).collect();
    AdminRequest::PolicyCreate { name: "p".into(), schedules, jitter_ms, retention }
}
fn on(volume: &str) -> AdminRequest {
    AdminRequest::PolicyAttach { name: "p".into(), volume: volume.into() }
}
fn of(f: &Fleet, name: &str) -> Vec<u64> {
    let (volume, _) = f.state.volume_named(name).expect("it is there");
    f.state.snapshots_of(volume).filter_map(|(_, s)| s.policy.map(|m| m.slot_ms)).collect()
}

#[test]
fn the_leader_runs_what_is_due_and_of_what_was_missed_the_last() {
    let mut f = Fleet::new(3);
    f.ready("v", 20);
    let bad = f.admin(order(&["sometimes"], 0, keep(3))).unwrap_err();
    assert_eq!(bad.code(), 1605);
    f.admin(order(&["*/5 * * * *"], 0, keep(3))).expect("made");
    f.admin(on("v")).expect("attached");
    f.run(Span::secs(16 * 60));
    let slots = of(&f, "v");
    assert_eq!(slots.len(), 3);
    assert!(slots.iter().all(|s| s % 300_000 == 0) && slots[2] - slots[0] == 600_000, "{slots:?}");
    // Nobody leads for half an hour.
    f.event(meta::ServiceEvent::LostLeader);
    f.now = f.now + Span::secs(1800);
    f.event(meta::ServiceEvent::BecameLeader);
    f.run(Span::secs(10));
    let after = of(&f, "v");
    assert_eq!(after.len(), 3);
    assert_eq!(after[1], slots[2], "one run for all that was missed");
    assert!(after[2] - after[1] >= 1_500_000);
    let Ok(AdminAnswer::Policies(shown)) = f.admin(AdminRequest::PolicyList { name: Some("p".into()) })
    else {
        panic!("no policy")
    };
    let line = &shown[0].volumes[0];
    assert_eq!((line.name.as_str(), line.ran_ms, line.late), ("v", Some(after[2]), false));
    assert_eq!(line.next_ms, after[2] + 300_000);
    f.state.check();
}

#[test]
fn jitter_spreads_the_volumes_and_a_stuck_one_is_tried_again() {
    let mut f = Fleet::new(3);
    let branch = f.ready("a", 20);
    f.ready("b", 20);
    f.admin(order(&["*/10 * * * *"], 240_000, keep(2))).expect("made");
    f.admin(on("a")).expect("attached");
    f.admin(on("b")).expect("attached");
    f.guest(1, branch);
    f.stuck = true;
    f.run(Span::secs(20 * 60));
    assert!(of(&f, "a").is_empty() && !of(&f, "b").is_empty());
    f.stuck = false;
    f.run(Span::secs(70));
    assert_eq!(of(&f, "a").len(), 1);
    f.run(Span::secs(20 * 60));
    assert_eq!((of(&f, "a").len(), of(&f, "b").len()), (2, 2));
    let made = |v: &str| {
        let (volume, _) = f.state.volume_named(v).expect("there");
        f.state.snapshots_of(volume).last().map(|(_, s)| s.created_ms % 600_000).expect("made")
    };
    assert!(made("a").abs_diff(made("b")) > 1000, "not both at once");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    /// Over months, with gaps, snapshots by hand and deletions: slots rise, nothing of an operator goes, and never more is kept
    /// than was promised.
    #[test]
    fn months_of_a_policy(
        counts in prop::array::uniform3(0..4u32),
        steps in prop::collection::vec((0..8u8, 1..40u64), 1..120),
    ) {
        let retention = Retention { last: counts[0], daily: counts[1], weekly: counts[2], ..Retention::default() };
        prop_assume!(!retention.keeps_all());
        let schedules = vec![Schedule::parse("0 */6 * * *").unwrap()];
        let mut w = World::with_nodes(3);
        w.at_ms = 1_700_000_000_000;
        let (v, b): (VolumeId, BranchId) = w.volume("v", SIZE, &[1, 2, 3]);
        let keeps = schedule::most_kept(&schedules, &retention, w.at_ms).unwrap() - 1;
        let every = schedules[0].clone();
        w.admin(Op::PolicyCreate { name: "d".into(), schedules, jitter_ms: 0, retention, keeps }).unwrap();
        w.admin(attach(v)).unwrap();
        let (mut mine, mut last) = (BTreeSet::new(), 0);
        for (i, (what, hours)) in steps.into_iter().enumerate() {
            w.at_ms += hours * 3_600_000;
            match what {
                0 => {
                    snap(&mut w, v, &format!("mine-{i}")).unwrap();
                    mine.insert(format!("mine-{i}"));
                }
                1 => {
                    if let Some(name) = mine.pop_first() {
                        let ((branch, generation), _) = w.state.snapshot_named(v, &name).unwrap();
                        w.admin(Op::SnapshotDelete { branch, generation, name }).unwrap();
                    }
                }
                _ => {
                    let slot = every.last_until(w.at_ms).unwrap();
                    let op = run(&w, v, slot);
                    let ran = w.admin(op).is_ok();
                    prop_assert!(!ran || slot > last);
                    last = last.max(if ran { slot } else { 0 });
                }
            }
            let all = w.state.snapshots_of(v);
            let (own, by_hand): (Vec<_>, Vec<_>) = all.map(|(_, s)| s.clone()).partition(|s| s.policy.is_some());
            prop_assert_eq!(by_hand.into_iter().map(|s| s.name).collect::<BTreeSet<_>>(), mine.clone());
            prop_assert!(own.len() as u64 <= keeps, "{} of {}", own.len(), keeps);
            prop_assert!(last == 0 || retention.last == 0 || own.iter().any(|s| s.policy.unwrap().slot_ms == last));
        }
        prop_assert_eq!(w.state.kept(b).count(), w.state.snapshots_of(v).count() as u64);
    }
}
