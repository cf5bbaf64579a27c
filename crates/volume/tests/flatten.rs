//! Flatten: everything that a clone has not is written into it, nothing that it has is touched, and the tie is cut when
//! nothing is read from the parents any more: not before (the world looks at every replica when metad cuts).
#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use proptest::prelude::*;
use proto::control::{JobOrder, JobTrouble, JobWork, SessionKind};
use proto::*;
use std::collections::BTreeMap;
use volume::*;
use world::family::{Family, block_of};
use world::judge::Kind;
use world::metad::{Metad, configuration};
use world::*;

const CHUNK: u64 = 16 << 20;
const JOB: JobId = JobId(7);

/// A clone of so many chunks on nodes 1 to 3; its parents lie on nodes 2 to 4 and have data in some of these blocks.
fn clone_of(seed: u64, chunks: u32, sizes: &[u64], blocks: impl Iterator<Item = u32>) -> World {
    let all = (0..chunks).map(|_| configuration(1, &[1, 2, 3], 100)).collect();
    let mut w = World::new(seed, 4, Metad::new(all));
    let places: Vec<(u32, u32)> = blocks.flat_map(|b| (0..chunks).map(move |c| (c, b))).collect();
    w.descend(Family::new(&mut Rng(seed), 24, sizes, &places, 4));
    w.attach(NodeId(1), SessionKind::Guest);
    w.calm(20);
    assert!(w.hosts[0].session.is_serving());
    w
}
fn order(w: &mut World, job: Option<JobId>) {
    let job = job.map(|job| JobOrder { job, work: JobWork::Flatten });
    w.metad.attached.job = job;
    let (h, index) = (w.hosts.len() - 1, w.metad.decided());
    w.event(h, Event::Job { index, job });
}
fn ask(w: &mut World, op: GuestOp) -> Ticket {
    let h = w.hosts.len() - 1;
    let epoch = w.hosts[h].epoch;
    let ticket = w.judge.begin(Kind::Other, 0, 0, epoch);
    w.event(h, Event::Guest(GuestRequest { ticket, op }));
    ticket
}
fn write(w: &mut World, block: u64, value: u64) -> Ticket {
    let mut buf = PageBuf::zeroed(1);
    buf.bytes_mut().copy_from_slice(&block_of(value));
    let data = GuestData { payload: buf.freeze() };
    ask(w, GuestOp::Write { offset: block * 4096, len: 4096, data, fua: false })
}
fn read(w: &mut World, block: u64, blocks: u32) -> Ticket {
    ask(w, GuestOp::Read { offset: block * 4096, len: blocks * 4096 })
}
fn answer(w: &World, t: Ticket) -> Option<Vec<u64>> {
    w.judge.ops[&t].result.clone().map(|r| r.unwrap())
}
fn must(w: &mut World, t: Ticket) -> Vec<u64> {
    w.calm(60);
    answer(w, t).unwrap_or_else(|| panic!("{}", w.hosts.last().unwrap().session.explain()))
}
fn trouble(w: &World) -> Option<JobTrouble> {
    w.hosts.last().unwrap().session.status().job.unwrap().trouble
}
fn until_cut(w: &mut World) {
    for _ in 0..400 {
        w.calm(20);
        if !w.metad.views().tied {
            return;
        }
    }
    panic!("{:?}: {}", w.hosts.last().unwrap().session.status(), w.hosts.last().unwrap().session.explain());
}

#[test]
fn all_that_is_absent_is_written_and_then_the_tie_is_cut() {
    let mut w = clone_of(1, 2, &[2 * CHUNK, CHUNK + 40 * 4096], (0..600).chain(4000..4096));
    let is = w.family.as_ref().unwrap().values();
    for (block, value) in [(3, 5001), (500, 5002), (4095, 5003)] {
        let t = write(&mut w, block, value);
        must(&mut w, t);
    }
    order(&mut w, Some(JOB));
    until_cut(&mut w);
    w.calm(20);
    assert_eq!(w.hosts[0].session.status().job, None, "it is done");
    w.family.as_mut().unwrap().asked.clear();
    w.family.as_mut().unwrap().refuses = Some(Refusal::UnknownView);
    for (block, value) in [(3, 5001), (500, 5002), (4095, 5003)] {
        let t = read(&mut w, block, 1);
        assert_eq!(must(&mut w, t), [value]);
    }
    for first in (0..8192).step_by(256) {
        let t = read(&mut w, first, 256);
        for (b, v) in (first..).zip(must(&mut w, t)) {
            let own = [3, 500, 4095].contains(&b);
            assert!(own || v == is.get(&b).copied().unwrap_or(0), "block {b} is {v}");
        }
    }
    assert_eq!(w.family.as_ref().unwrap().asked, [], "no parent is asked any more");
}

/// A drive takes the states of a read's blocks when it comes, and answers when their bytes are there.
#[test]
fn a_read_that_was_begun_before_all_was_filled_is_waited_for() {
    let mut w = clone_of(9, 1, &[CHUNK], 0..64);
    let is = w.family.as_ref().unwrap().values();
    let t = write(&mut w, 0, 55);
    must(&mut w, t);
    let late = read(&mut w, 0, 2);
    while w.deliver_to_replica(0, NodeId(1)) {}
    let answers = &mut w.hosts[0].links.get_mut(&NodeId(1)).unwrap().to_session;
    let at = answers.iter().position(|f| matches!(f.reply, message::Reply::ReadDone { .. })).unwrap();
    let held = answers.remove(at).unwrap();
    order(&mut w, Some(JOB));
    w.calm(1500);
    assert!(w.metad.views().tied, "it may want what the parent has");
    w.answer(0, NodeId(1), held);
    assert_eq!(must(&mut w, late), [55, is[&1]]);
    until_cut(&mut w);
}

#[test]
fn parents_are_let_go_though_the_end_of_the_job_is_heard_before_the_cut() {
    let mut w = clone_of(10, 1, &[CHUNK], 0..64);
    order(&mut w, Some(JOB));
    w.held = |r| matches!(r, control::MetaRequest::Cut { .. });
    let (h, token, request) = w.take_held();
    let epoch = w.hosts[h].epoch;
    let answer = w.metad.apply(epoch, &request);
    assert!(!w.metad.views().tied);
    // The status of a section is asked about, and not answered yet.
    let t = read(&mut w, 100, 1);
    let index = w.metad.views().index;
    w.event(h, Event::Job { index, job: None });
    w.event(h, Event::Meta { token, answer });
    assert_eq!(must(&mut w, t), [0]);
    w.family.as_mut().unwrap().asked.clear();
    for block in [3, 200, 4000] {
        let t = read(&mut w, block, 1);
        must(&mut w, t);
    }
    assert_eq!(w.family.as_ref().unwrap().asked, [], "no parent is asked any more");
}

#[test]
fn a_snapshot_that_reads_from_the_parent_holds_the_cut_up_and_is_named() {
    let mut w = clone_of(2, 1, &[CHUNK], 0..64);
    assert!(w.snapshot(false));
    w.push_views(0);
    w.calm(40);
    order(&mut w, Some(JOB));
    w.calm(1500);
    assert!(w.metad.views().tied);
    assert_eq!(trouble(&w), Some(JobTrouble::Snapshot { generation: Generation(1) }));
    // one that is made now has everything
    assert!(w.snapshot(false));
    w.push_views(0);
    w.calm(400);
    assert_eq!(trouble(&w), Some(JobTrouble::Snapshot { generation: Generation(1) }));
    w.metad.delete(Generation(1));
    w.push_views(0);
    until_cut(&mut w);
}

#[test]
fn a_parent_that_cannot_be_asked_is_in_nobodys_way() {
    let mut w = clone_of(3, 1, &[CHUNK], 0..64);
    let t = write(&mut w, 5, 55);
    must(&mut w, t);
    w.family.as_mut().unwrap().refuses = Some(Refusal::NoDrive);
    order(&mut w, Some(JOB));
    w.calm(600);
    assert_eq!(trouble(&w), Some(JobTrouble::Parent));
    let t = read(&mut w, 5, 1);
    assert_eq!(must(&mut w, t), [55]);
    let t = write(&mut w, 6, 66);
    must(&mut w, t);
    assert!(!w.hosts[0].session.waits().any(|r| r == WaitReason::Parent), "no guest waits");
    // a close is not held up either
    let refuses = w.family.as_mut().unwrap().refuses.take();
    w.calm(100);
    w.family.as_mut().unwrap().refuses = refuses;
    w.event(0, Event::Close);
    w.calm(40);
    assert_eq!(w.hosts[0].closed, Some(CloseReason::Clean));
}

#[test]
fn without_space_it_waits_and_says_so() {
    let mut w = World::new(4, 4, Metad::new(vec![configuration(1, &[1, 2, 3], 100)]));
    let mut f = Family::new(&mut Rng(4), 24, &[CHUNK], &[], 4);
    // whole extents: no zeroes beside the data that take one first
    f.truth[0].extend((0..64).map(|b| ((0, b), 100 + u64::from(b))));
    w.descend(f);
    for n in 1..=3 {
        w.drive(DriveId(n * 10)).full = true;
    }
    w.attach(NodeId(1), SessionKind::Guest);
    w.calm(20);
    order(&mut w, Some(JOB));
    w.calm(400);
    assert_eq!(trouble(&w), Some(JobTrouble::NoSpace));
    assert!(w.metad.views().tied);
    for n in 1..=3 {
        w.drive(DriveId(n * 10)).full = false;
    }
    until_cut(&mut w);
}

#[test]
fn what_is_called_off_stops_and_what_comes_after_a_lost_session_goes_on() {
    let mut w = clone_of(5, 4, &[4 * CHUNK], 0..4096);
    order(&mut w, Some(JOB));
    w.calm(4);
    order(&mut w, None);
    w.calm(100);
    assert_eq!(w.hosts[0].session.status().job, None);
    let have = w.drive(DriveId(10)).now.len();
    w.calm(100);
    assert_eq!(w.drive(DriveId(10)).now.len(), have, "nothing more is written");
    assert!(have < 4 * 4096 && w.metad.views().tied);
    order(&mut w, Some(JobId(8)));
    w.calm(6);
    w.kill_session(0);
    w.attach(NodeId(2), SessionKind::Guest);
    until_cut(&mut w);
}

/// A guest writes and reads all the while, nodes break off, snapshots come and go, sessions die.
fn walk(seed: u64) {
    let mut rng = Rng(seed);
    let mut w = clone_of(seed, 1, &[CHUNK, 30 * 4096], 0..96);
    let mut is: BTreeMap<u64, u64> = (0..96)
        .map(|b| (b, w.family.as_ref().unwrap().is(0, u32::try_from(b).unwrap()).unwrap_or(0)))
        .collect();
    order(&mut w, Some(JOB));
    for i in 0..60 {
        let mut f = w.family.take().unwrap();
        if rng.chance(20) {
            f.stir(&mut rng);
        }
        w.family = Some(f);
        match rng.below(12) {
            0 => w.disconnect(w.hosts.len() - 1, NodeId(1 + u32::try_from(rng.below(4)).unwrap())),
            1 if w.snapshot(false) => w.push_views(w.hosts.len() - 1),
            2 => {
                let kept: Vec<Generation> = w.metad.views().kept.iter().collect();
                if !kept.is_empty() {
                    w.metad.delete(kept[rng.below(kept.len())]);
                    w.push_views(w.hosts.len() - 1);
                }
            }
            3 if rng.chance(40) => {
                let h = w.hosts.len() - 1;
                w.kill_session(h);
                w.attach(NodeId(1 + u32::try_from(rng.below(3)).unwrap()), SessionKind::Guest);
                w.calm(60);
            }
            4..8 => {
                let block = rng.below(96) as u64;
                let value = 1000 + i;
                let t = if rng.chance(25) {
                    is.insert(block, 0);
                    ask(&mut w, GuestOp::Discard { offset: block * 4096, len: 4096, fua: false })
                } else {
                    is.insert(block, value);
                    write(&mut w, block, value)
                };
                end(&mut w, t);
            }
            _ => {
                let t = read(&mut w, 0, 96);
                let got = end(&mut w, t);
                assert_eq!(got, is.values().copied().collect::<Vec<_>>());
            }
        }
        let some = 1 + rng.below(3);
        w.calm(some);
    }
    w.family.as_mut().unwrap().calm();
    for g in w.metad.views().kept.iter().collect::<Vec<_>>() {
        w.calm(40);
        w.metad.delete(g);
    }
    w.push_views(w.hosts.len() - 1);
    until_cut(&mut w);
    let t = read(&mut w, 0, 96);
    assert_eq!(end(&mut w, t), is.values().copied().collect::<Vec<_>>());
}
fn end(w: &mut World, t: Ticket) -> Vec<u64> {
    w.calm(10);
    if answer(w, t).is_none() {
        w.family.as_mut().unwrap().calm();
        w.calm(600);
    }
    answer(w, t).unwrap_or_else(|| panic!("{}", w.hosts.last().unwrap().session.explain()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_a_guest_sees_does_not_change_by_it(seed in any::<u64>()) {
        walk(seed);
    }
}

#[cfg(feature = "bugs")]
#[test]
#[should_panic(expected = "the tie is cut")]
fn a_cut_under_a_snapshot_is_seen() {
    let mut w = World::new(1, 4, Metad::new(vec![configuration(1, &[1, 2, 3], 100)]));
    w.bugs = Bugs { cut_under_snapshot: true, ..Bugs::default() };
    w.descend(Family::new(&mut Rng(1), 24, &[CHUNK], &[], 4));
    w.attach(NodeId(1), SessionKind::Guest);
    w.calm(20);
    assert!(w.snapshot(false));
    w.push_views(0);
    w.calm(40);
    order(&mut w, Some(JOB));
    until_cut(&mut w);
}
