//! Jobs in Raft: who may be flattened, what a cut lets go, each command twice and late; and the order's way to a session.

mod common;

use common::fleet::Fleet;
use common::*;
use meta::admin::{SnapshotName, SnapshotOrder};
use meta::command::{Plan, SnapshotItem};
use meta::refusal::Noun;
use meta::view::WaitFor;
use meta::{AdminAnswer, AdminRefusal, AdminRequest, Class, JobState, Op};
use proto::control::{JobOrder, JobTrouble, JobWork, MetaAnswer, SessionKind};
use proto::{BranchId, Generation, JobId, Level, Span, VolumeId};
use std::collections::BTreeMap;

const SIZE: u64 = 40 * MIB;

fn plan() -> Plan {
    Plan { groups: vec![[1, 2, 3].map(drive_of).to_vec()], chunks: vec![0; 3] }
}
fn snap(w: &mut World, volume: VolumeId, name: &str) {
    let branch = w.state.volumes()[&volume].branch;
    let items = vec![SnapshotItem { volume, branch, name: name.into(), id: 7 }];
    w.admin(Op::SnapshotCreate { items, labels: BTreeMap::new(), protect_until_ms: 0 })
        .expect("sealed at once");
}
/// A volume `v`, and a clone `c` of its snapshot `a`, made.
fn family(w: &mut World) -> (VolumeId, BranchId, VolumeId, BranchId) {
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    snap(w, v, "a");
    let (class, name) = (Class::default(), "c".into());
    w.admin(Op::CloneCreate { branch: b, generation: Generation(1), name, size: SIZE, class, plan: plan() })
        .expect("cloned");
    let (c, row) = w.state.volume_named("c").expect("made");
    let cb = row.branch;
    w.own(Op::Appoint { branch: cb, epoch: w.epoch(cb), node: Some(proto::NodeId(1)) });
    let a = w.attached(cb, 1, SessionKind::Maintenance);
    let (epoch, placement) = (a.epoch, a.placement.expect("to be made"));
    w.node(Op::Created { branch: cb, epoch, placement, failed: vec![], replacements: vec![] });
    w.node(Op::Detach { branch: cb, epoch, clean: true });
    (v, b, c, cb)
}
fn state(w: &World, job: u64) -> JobState {
    w.state.jobs()[&JobId(job)].state
}

#[test]
fn what_is_no_clone_is_not_flattened_and_a_clone_once_at_a_time() {
    let mut w = World::with_nodes(3);
    let (v, b, c, cb) = family(&mut w);
    let not = AdminRefusal::NotAClone { name: "v".into() };
    assert_eq!(w.admin(Op::Flatten { volume: v, branch: b }), Err(not));
    assert_eq!(
        w.admin(Op::Flatten { volume: c, branch: b }),
        Err(AdminRefusal::Changed { name: "c".into() })
    );
    let started = Ok(AdminAnswer::JobStarted { job: JobId(1) });
    assert_eq!(w.admin(Op::Flatten { volume: c, branch: cb }), started);
    assert_eq!(w.admin(Op::Flatten { volume: c, branch: cb }), started, "the same one");
    assert_eq!(w.state.running_job(cb), Some(JobId(1)));
    assert_eq!(w.admin(Op::JobCancel { job: JobId(1) }), Ok(AdminAnswer::Done));
    let over = AdminRefusal::JobOver { name: "j1".into(), state: "cancelled".into() };
    assert_eq!(w.admin(Op::JobCancel { job: JobId(1) }), Err(over));
    let unknown = AdminRefusal::NotFound { noun: Noun::Job, name: "j9".into() };
    assert_eq!(w.admin(Op::JobCancel { job: JobId(9) }), Err(unknown));
    assert_eq!(w.state.running_job(cb), None);
    let again = Ok(AdminAnswer::JobStarted { job: JobId(2) });
    assert_eq!(w.admin(Op::Flatten { volume: c, branch: cb }), again);
}

#[test]
fn a_cut_is_the_current_sessions_for_the_job_that_runs_and_releases_the_parent() {
    let mut w = World::with_nodes(3);
    let (v, b, c, cb) = family(&mut w);
    w.admin(Op::Flatten { volume: c, branch: cb }).expect("a clone");
    let a = w.attached(cb, 2, SessionKind::Guest);
    let (epoch, job) = (a.epoch, JobId(1));
    let level = Level { branch: b, generation: Generation(1), size: SIZE };
    let order = JobOrder { job, work: JobWork::Flatten };
    assert_eq!((a.job, a.parents, a.origin), (Some(order), vec![level], Some((b, Generation(1)))));
    let tied = |w: &World| w.state.branches()[&cb].tied;
    for (epoch, job) in [(proto::Epoch(epoch.0 - 1), job), (epoch, JobId(2))] {
        w.node(Op::Cut { branch: cb, epoch, job });
        assert!(tied(&w), "{epoch} {job}");
    }
    // Its snapshot is held by the clone until then.
    let delete = Op::VolumeDelete { volume: v, force: None, with_snapshots: true };
    assert!(matches!(w.admin(delete.clone()), Err(AdminRefusal::HasClones { .. })));
    let MetaAnswer::Views { views, .. } = w.node(Op::Cut { branch: cb, epoch, job }) else {
        panic!("no views")
    };
    assert!(!views.tied && !tied(&w));
    assert_eq!((state(&w, 1), w.state.running_job(cb)), (JobState::Done, None));
    let before = w.state.clone();
    w.node(Op::Cut { branch: cb, epoch, job });
    assert_eq!((before.branches(), before.jobs()), (w.state.branches(), w.state.jobs()), "a second time");
    w.admin(delete).expect("nobody reads from it");
    assert!(!w.state.branches().contains_key(&b));
    // What it was made from stands on the drives for ever.
    let a = w.attached(cb, 2, SessionKind::Guest);
    assert_eq!((a.job, a.parents, a.origin), (None, vec![], Some((b, Generation(1)))));
    let not = AdminRefusal::NotAClone { name: "c".into() };
    assert_eq!(w.admin(Op::Flatten { volume: c, branch: cb }), Err(not));
}

#[test]
fn a_job_ends_with_its_volume() {
    let mut w = World::with_nodes(3);
    let (_, _, c, cb) = family(&mut w);
    snap(&mut w, c, "x");
    w.admin(Op::Flatten { volume: c, branch: cb }).expect("a clone");
    w.admin(Op::Rollback {
        volume: c,
        seen: cb,
        branch: cb,
        generation: Generation(1),
        plan: plan(),
        safety: None,
    })
    .expect("detached");
    assert_eq!(state(&w, 1), JobState::Void);
    let branch = w.state.volumes()[&c].branch;
    // Also of one that is still being made.
    w.admin(Op::Flatten { volume: c, branch }).expect("a clone");
    w.admin(Op::VolumeDelete { volume: c, force: None, with_snapshots: true }).expect("detached");
    assert_eq!((state(&w, 2), w.state.running_job(branch)), (JobState::Void, None));
}

#[test]
fn old_jobs_go() {
    let mut w = World::with_nodes(3);
    let (_, _, c, cb) = family(&mut w);
    for job in 1..=300 {
        w.admin(Op::Flatten { volume: c, branch: cb }).expect("a clone");
        w.admin(Op::JobCancel { job: JobId(job) }).expect("it runs");
    }
    assert_eq!(w.state.jobs().len(), 256);
    assert_eq!(w.state.jobs().first_key_value().map(|(j, _)| *j), Some(JobId(45)));
}

fn views(f: &mut Fleet) -> Vec<(String, String)> {
    match f.admin(AdminRequest::JobList) {
        Ok(AdminAnswer::Jobs(all)) => all.into_iter().map(|j| (j.state, j.trouble)).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_order_reaches_a_session_whether_one_is_there_or_not() {
    let mut f = Fleet::new(3);
    f.ready("v", 40);
    let token = f.order(
        900,
        AdminRequest::VolumeClone {
            source: "v".into(),
            snapshot: None,
            name: "c".into(),
            size: None,
            class: None,
            prefer: None,
            id: 5,
        },
    );
    f.run(Span::secs(2));
    assert!(matches!(f.admin_answers[&token], Some(Ok(_))));
    f.until("ready", 10, |f| f.waited("c", WaitFor::Ready));
    let branch = f.state.volume_named("c").expect("made").1.branch;
    f.run(Span::secs(5));
    assert!(f.state.branches()[&branch].session.is_none(), "nobody uses it");
    let name = SnapshotName { volume: "c".into(), snapshot: "x".into() };
    let items = vec![SnapshotOrder { name, id: 6 }];
    f.order(901, AdminRequest::SnapshotCreate { items, labels: BTreeMap::new(), protect_until_ms: 0 });
    f.run(Span::secs(1));
    f.trouble = Some(JobTrouble::Snapshot { generation: Generation(1) });
    let flatten = AdminRequest::VolumeFlatten { name: "c".into() };
    assert_eq!(f.admin(flatten.clone()), Ok(AdminAnswer::JobStarted { job: JobId(1) }));
    assert_eq!(views(&mut f), [("running".to_owned(), "waits for a session".to_owned())]);
    f.until("appointed", 10, |f| f.state.branches()[&branch].session.is_some());
    f.run(Span::secs(2));
    let (word, trouble) = views(&mut f).remove(0);
    assert_eq!(word, "running");
    assert!(trouble.contains("c@x") && trouble.contains("delete"), "{trouble}");
    // A guest takes over; what it is told is lost, and told again by the heartbeat's word.
    f.admin(AdminRequest::JobCancel { job: JobId(1) }).expect("it runs");
    f.guest(1, branch);
    f.lists_lost = true;
    f.trouble = None;
    assert_eq!(f.admin(flatten), Ok(AdminAnswer::JobStarted { job: JobId(2) }));
    f.run(Span::secs(3));
    assert!(f.state.branches()[&branch].tied);
    f.lists_lost = false;
    f.until("cut", 5, |f| !f.state.branches()[&branch].tied);
    f.run(Span::secs(2));
    assert_eq!(f.state.branches().len(), 2);
    assert_eq!(views(&mut f).pop(), Some(("done".to_owned(), String::new())));
    f.state.check();
}
