//! A volume gets smaller in Raft: what stands in its way and in whose way it stands, each command twice and late, and what
//! of the larger volume stays.

mod common;

use common::fleet::Fleet;
use common::*;
use meta::admin::{Shrink, SnapshotName, SnapshotOrder};
use meta::command::{Plan, SnapshotItem};
use meta::{AdminAnswer, AdminRefusal, AdminRequest, Class, JobState, Op};
use proto::control::{JobOrder, JobTrouble, JobWork, MetaAnswer, MetaRefusal, SessionKind, VolumeRef};
use proto::{BranchId, Epoch, Generation, Geometry, JobId, NodeId, ProcessNumber, Span, VolumeId};
use std::collections::BTreeMap;

const SIZE: u64 = 40 * MIB;
const LESS: u64 = 10 * MIB;
const JOB: JobId = JobId(1);

fn plan(chunks: usize) -> Plan {
    Plan { groups: vec![[1, 2, 3].map(drive_of).to_vec()], chunks: vec![0; chunks] }
}
fn snap(w: &mut World, volume: VolumeId, name: &str) -> Result<AdminAnswer, AdminRefusal> {
    let branch = w.state.volumes()[&volume].branch;
    let items = vec![SnapshotItem { volume, branch, name: name.into(), id: 7 }];
    w.admin(Op::SnapshotCreate { items, labels: BTreeMap::new(), protect_until_ms: 0 })
}
fn shrink(volume: VolumeId, branch: BranchId, to: u64, discard: bool) -> Op {
    Op::VolumeShrink { volume, branch, from: SIZE, to, discard }
}
fn maintained(w: &mut World, branch: BranchId, node: u32) -> Epoch {
    w.own(Op::Appoint { branch, epoch: w.epoch(branch), node: Some(NodeId(node)) });
    w.attached(branch, node, SessionKind::Maintenance).epoch
}
fn shrunk(branch: BranchId, epoch: Epoch) -> Op {
    Op::Shrunk { branch, epoch, job: JOB, written: None }
}
fn size(w: &World, branch: BranchId) -> u64 {
    w.state.branches()[&branch].geometry.size
}
fn runs(job: u64) -> AdminRefusal {
    AdminRefusal::JobRuns { name: "v".into(), job: format!("j{job}"), kind: "shrink".into() }
}

#[test]
fn what_stands_in_the_way_is_named() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    let changed = Err(AdminRefusal::Changed { name: "v".into() });
    let op = |from, to| Op::VolumeShrink { volume: v, branch: b, from, to, discard: false };
    assert_eq!(w.admin(op(SIZE + MIB, LESS)), changed);
    assert_eq!(w.admin(op(SIZE, SIZE)), changed);
    assert_eq!(w.admin(shrink(v, BranchId(9), LESS, false)), changed);
    assert_eq!(w.admin(op(SIZE, 100)).map_err(|e| e.code()), Err(1201));
    let epoch = w.attached(b, 2, SessionKind::Guest).epoch;
    let refused = w.admin(shrink(v, b, LESS, true)).expect_err("a guest has it");
    assert_eq!((refused.code(), refused.fix()), (1203, "detach it on node-2".into()));
    w.node(Op::Detach { branch: b, epoch, clean: false });
    // A seal under way.
    snap(&mut w, v, "a").expect("asked for");
    assert_eq!(w.admin(shrink(v, b, LESS, true)), Err(AdminRefusal::SealBusy { name: "v".into() }));
    let epoch = maintained(&mut w, b, 1);
    w.node(Op::Detach { branch: b, epoch, clean: true });
    // A volume that is being made; a clone; and one that is flattened.
    let class = Class::default();
    let (branch, generation, name) = (b, Generation(1), "c".into());
    w.admin(Op::CloneCreate { branch, generation, name, size: SIZE, class, plan: plan(3) }).expect("cloned");
    let (c, row) = w.state.volume_named("c").expect("made");
    let cb = row.branch;
    assert_eq!(w.admin(shrink(c, cb, LESS, true)), Err(AdminRefusal::NotReady { name: "c".into() }));
    let epoch = maintained(&mut w, cb, 1);
    w.node(Op::Created { branch: cb, epoch, placement: 1, failed: vec![], replacements: vec![] });
    let clone = AdminRefusal::ShrinkClone { name: "c".into(), parent: "v@a".into() };
    assert_eq!(w.admin(shrink(c, cb, LESS, true)), Err(clone));
    w.admin(Op::Flatten { volume: c, branch: cb }).expect("a clone");
    let refused = w.admin(shrink(c, cb, LESS, true)).expect_err("a job runs");
    assert_eq!(refused.what(), "volume \"c\" is worked at by job j1 (flatten)");
    w.node(Op::Cut { branch: cb, epoch, job: JOB });
    assert_eq!(w.admin(shrink(c, cb, LESS, true)), Ok(AdminAnswer::JobStarted { job: JobId(2) }));
    assert_eq!(w.admin(Op::Flatten { volume: c, branch: cb }).map_err(|e| e.code()), Err(1506));
}

#[test]
fn nobody_attaches_seals_or_grows_it_meanwhile() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    let started = Ok(AdminAnswer::JobStarted { job: JOB });
    assert_eq!(w.admin(shrink(v, b, LESS, false)), started);
    assert_eq!(w.admin(shrink(v, b, LESS, false)), started, "the same one");
    assert_eq!(w.admin(shrink(v, b, LESS, true)), Err(runs(1)), "another one");
    assert_eq!(snap(&mut w, v, "a"), Err(runs(1)));
    let (volume, branch, generation) = (v, b, w.state.branches()[&b].generation);
    assert_eq!(w.admin(Op::ForkPoint { volume, branch, generation, id: 3, name: None }), Err(runs(1)));
    let grow = Op::VolumeResize { volume: v, from: SIZE, to: 60 * MIB, plan: plan(1) };
    assert_eq!(w.admin(grow.clone()), Err(runs(1)));
    for force in [false, true] {
        let Op::Attach { volume, node, process, kind, holder_unheard, after, .. } =
            attach_op(b, 1, SessionKind::Guest)
        else {
            unreachable!()
        };
        let attach = Op::Attach { volume, node, process, kind, force, holder_unheard, after };
        assert_eq!(w.node(attach), MetaAnswer::Refused(MetaRefusal::Shrinking { job: JOB }));
    }
    let order = JobOrder { job: JOB, work: JobWork::Shrink { from: SIZE, to: LESS, discard: false } };
    w.own(Op::Appoint { branch: b, epoch: w.epoch(b), node: Some(NodeId(1)) });
    let a = w.attached(b, 1, SessionKind::Maintenance);
    assert_eq!((a.job, a.geometry.size), (Some(order), SIZE));
    // The way out.
    w.admin(Op::JobCancel { job: JOB }).expect("it runs");
    w.admin(grow).expect("it is over");
    assert_eq!(size(&w, b), 60 * MIB);
    let epoch = w.epoch(b);
    w.node(Op::Created { branch: b, epoch, placement: 2, failed: vec![], replacements: vec![] });
    w.node(shrunk(b, epoch));
    assert_eq!(size(&w, b), 60 * MIB, "it was called off");
    w.attached(b, 2, SessionKind::Guest);
}

#[test]
fn the_size_is_set_by_the_current_session_for_the_job_that_runs() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    snap(&mut w, v, "a").expect("sealed at once");
    w.admin(shrink(v, b, LESS, true)).expect("it can");
    let epoch = maintained(&mut w, b, 2);
    w.node(shrunk(b, Epoch(epoch.0 - 1)));
    w.node(Op::Shrunk { branch: b, epoch, job: JobId(2), written: None });
    w.node(Op::Cut { branch: b, epoch, job: JOB });
    assert_eq!((size(&w, b), w.state.running_job(b)), (SIZE, Some(JOB)));
    let MetaAnswer::Job { epoch: now, job, geometry, placement, .. } = w.node(shrunk(b, epoch)) else {
        panic!("not of a job")
    };
    let small = Geometry { size: LESS, chunk_shift: 24 };
    assert_eq!((now, job, geometry, placement), (epoch, None, small, None));
    assert_eq!((size(&w, b), w.state.jobs()[&JOB].state), (LESS, JobState::Done));
    assert_eq!(w.admin(Op::JobCancel { job: JOB }).map_err(|e| e.code()), Err(1503), "too late");
    let before = w.state.clone();
    w.node(shrunk(b, epoch));
    assert_eq!((before.branches(), before.jobs()), (w.state.branches(), w.state.jobs()), "a second time");
    // What was beyond stays placed, and is there for what reaches into it.
    assert_eq!(w.state.chunks(b).expect("a branch").count(), 3);
    assert_eq!(w.state.snapshots()[&(b, Generation(1))].size, SIZE);
    snap(&mut w, v, "small").expect("asked for");
    w.node(Op::Sealed { branch: b, epoch, generation: Generation(2) });
    assert_eq!(w.state.snapshots()[&(b, Generation(2))].size, LESS);
    // Growth takes it up again, and places what is more.
    let grow = |from, to, n| Op::VolumeResize { volume: v, from, to, plan: plan(n) };
    assert_eq!(w.admin(grow(LESS, SIZE, 0)), Ok(AdminAnswer::Done));
    assert!(w.state.branches()[&b].pending().is_none(), "nothing is to be made");
    assert_eq!(w.admin(grow(SIZE, 80 * MIB, 2)), Ok(AdminAnswer::Done));
    assert_eq!(w.state.chunks(b).expect("a branch").count(), 5);
    let answer = w.node(Op::Created { branch: b, epoch, placement: 2, failed: vec![], replacements: vec![] });
    let MetaAnswer::Created { configurations, .. } = answer else { panic!("not created") };
    assert_eq!(configurations.iter().map(|(c, _)| c.0).collect::<Vec<_>>(), [3, 4]);
}

#[test]
fn clones_and_rollbacks_to_what_is_larger_have_its_size() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    snap(&mut w, v, "a").expect("sealed at once");
    w.admin(shrink(v, b, LESS, true)).expect("it can");
    let epoch = maintained(&mut w, b, 2);
    w.node(shrunk(b, epoch));
    let (class, name) = (Class::default(), "c".into());
    let (branch, generation) = (b, Generation(1));
    w.admin(Op::CloneCreate { branch, generation, name, size: SIZE, class, plan: plan(3) }).expect("cloned");
    let safety = None;
    w.admin(Op::Rollback { volume: v, seen: b, branch: b, generation, plan: plan(3), safety })
        .expect("detached");
    assert_eq!(size(&w, w.state.volumes()[&v].branch), SIZE);
    assert_eq!(size(&w, b), LESS, "what it was stays so");
}

#[test]
fn what_is_found_ends_the_job_with_nothing_changed() {
    let mut w = World::with_nodes(3);
    let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
    w.admin(shrink(v, b, LESS, false)).expect("it can");
    let epoch = maintained(&mut w, b, 2);
    let found = Op::Shrunk { branch: b, epoch, job: JOB, written: Some(12_345) };
    w.node(found.clone());
    assert_eq!(w.state.jobs()[&JOB].state, JobState::Failed { written: 12_345 });
    assert_eq!((size(&w, b), w.state.running_job(b)), (SIZE, None));
    w.node(found);
    w.node(shrunk(b, epoch));
    assert_eq!(size(&w, b), SIZE);
    w.attached(b, 1, SessionKind::Guest);
}

/// A guest whose node was given up for dead comes back to a disk of another size, or with a part of it gone.
#[test]
fn who_had_it_before_does_not_go_on() {
    for (discard, ends) in [(true, false), (false, true)] {
        let mut w = World::with_nodes(3);
        let (v, b) = w.volume("v", SIZE, &[1, 2, 3]);
        let after = Some(w.attached(b, 1, SessionKind::Guest).epoch);
        w.down(1);
        w.own(Op::Appoint { branch: b, epoch: w.epoch(b), node: Some(NodeId(2)) });
        let attach = |node, kind, after| Op::Attach {
            volume: VolumeRef::Branch(b),
            node: NodeId(node),
            process: ProcessNumber(1),
            kind,
            force: false,
            holder_unheard: true,
            after,
        };
        let MetaAnswer::Attached(a) = w.node(attach(2, SessionKind::Maintenance, None)) else {
            panic!("the guest is dead")
        };
        w.admin(shrink(v, b, LESS, discard)).expect("no guest has it");
        if ends {
            w.node(shrunk(b, a.epoch));
        } else {
            w.admin(Op::JobCancel { job: JOB }).expect("it runs");
        }
        w.up(1, 1);
        let refused = w.node(attach(1, SessionKind::Guest, after));
        assert!(
            matches!(refused, MetaAnswer::Refused(MetaRefusal::Superseded { node: NodeId(0), .. })),
            "{refused:?}"
        );
        assert!(matches!(w.node(attach(1, SessionKind::Guest, None)), MetaAnswer::Attached(_)), "anew");
    }
}

fn jobs(f: &mut Fleet) -> Vec<(String, String)> {
    match f.admin(AdminRequest::JobList) {
        Ok(AdminAnswer::Jobs(all)) => all.into_iter().map(|j| (j.state, j.trouble)).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_order_finds_a_session_and_survives_a_leader() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 40);
    let resize = |mib: u64, shrink| AdminRequest::VolumeResize { name: "v".into(), size: mib << 20, shrink };
    let without = f.admin(resize(10, None)).expect_err("not without a word");
    assert_eq!((without.code(), without.fix().contains("--force")), (1205, true));
    f.written = Some(99);
    let kept = Some(Shrink { discard: false });
    assert_eq!(f.admin(resize(10, kept)), Ok(AdminAnswer::JobStarted { job: JOB }));
    f.until("found", 10, |f| f.state.running_job(branch).is_none());
    let (word, why) = jobs(&mut f).remove(0);
    assert_eq!(word, "failed");
    assert!(why.contains("byte 99") && why.contains("--discard"), "{why}");
    f.settle(20);
    f.written = None;
    f.trouble = Some(JobTrouble::NoSpace);
    let all = Some(Shrink { discard: true });
    assert_eq!(f.admin(resize(10, all)), Ok(AdminAnswer::JobStarted { job: JobId(2) }));
    f.run(Span::secs(3));
    assert!(jobs(&mut f).pop().expect("it runs").1.contains("no space"));
    let name = SnapshotName { volume: "v".into(), snapshot: "x".into() };
    let items = vec![SnapshotOrder { name, id: 6 }];
    let create = AdminRequest::SnapshotCreate { items, labels: BTreeMap::new(), protect_until_ms: 0 };
    let token = f.order(900, create);
    f.run(Span::secs(1));
    assert_eq!(f.admin_answers[&token], Some(Err(runs(2))));
    f.event(meta::ServiceEvent::LostLeader);
    f.event(meta::ServiceEvent::BecameLeader);
    f.trouble = None;
    f.until("smaller", 20, |f| f.state.branches()[&branch].geometry.size == 10 << 20);
    assert_eq!(jobs(&mut f).pop(), Some(("done".into(), String::new())));
    f.settle(20);
    // And larger again: the chunks are there.
    assert_eq!(f.admin(resize(40, None)), Ok(AdminAnswer::Done));
    f.guest(1, branch);
    f.run(Span::secs(2));
    assert_eq!(f.nodes[&NodeId(1)].sessions[&branch].size, 40 << 20);
    f.state.check();
}
