//! Seals, one rule at a time: what is held, what is flushed, and which generation is written.
#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use proto::control::{MetaRequest, SessionKind};
use proto::message::{Request, View};
use proto::*;
use volume::*;
use world::judge::Kind;
use world::metad::{Metad, configuration};
use world::*;

fn served() -> World {
    let mut w = World::new(1, 3, Metad::new(vec![configuration(1, &[1, 2, 3], 100)]));
    w.attach(NodeId(1), SessionKind::Guest);
    w.calm(20);
    assert!(w.hosts[0].session.is_serving());
    w
}

fn write(w: &mut World, h: usize, block: u64, value: u64) -> Ticket {
    let mut buf = PageBuf::zeroed(1);
    buf.bytes_mut()[..8].copy_from_slice(&value.to_le_bytes());
    let epoch = w.hosts[h].epoch;
    let ticket = w.judge.begin(Kind::Write(vec![value]), block, 1, epoch);
    let data = GuestData { payload: buf.freeze() };
    let op = GuestOp::Write { offset: block * 4096, len: 4096, data, fua: false };
    w.event(h, Event::Guest(GuestRequest { ticket, op }));
    ticket
}

fn read(w: &mut World, h: usize, block: u64) -> Ticket {
    let epoch = w.hosts[h].epoch;
    let ticket = w.judge.begin(Kind::Read, block, 1, epoch);
    let op = GuestOp::Read { offset: block * 4096, len: 4096 };
    w.event(h, Event::Guest(GuestRequest { ticket, op }));
    ticket
}

fn answered(w: &World, t: Ticket) -> Option<Vec<u64>> {
    w.judge.ops[&t].result.clone().map(|r| r.unwrap())
}

/// Generations of the writes on their way to a node.
fn sent(w: &World, h: usize, n: u32) -> Vec<(u32, Generation)> {
    let of = |f: &message::RequestFrame| match &f.request {
        Request::Write { record, .. } => Some((record.range.first, record.generation)),
        _ => None,
    };
    w.hosts[h].links[&NodeId(n)].to_replica.iter().filter_map(of).collect()
}

fn deliver(w: &mut World, nodes: &[u32]) {
    for &n in nodes {
        while w.deliver_to_replica(0, NodeId(n)) {}
        for _ in 0..2 {
            w.drive_steps(NodeId(n));
        }
        while w.deliver_to_session(0, NodeId(n)) {}
    }
}

fn without_the_third(w: &mut World) {
    for _ in 0..100 {
        w.now = w.now + Span::millis(10);
        deliver(w, &[1, 2]);
        w.metad_step(false);
        w.wake();
    }
}

fn ask(w: &mut World, group: bool) {
    assert!(w.snapshot(group));
    w.push_views(0);
    w.metad_step(false);
}

const G1: Generation = Generation(1);
const G2: Generation = Generation(2);

/// A write that node 3 has not got, in a pause: and one that is held.
fn paused() -> (World, Ticket) {
    let mut w = served();
    write(&mut w, 0, 1, 11);
    w.calm(10);
    ask(&mut w, false);
    assert_eq!(w.hosts[0].session.holds_writes(), None, "the drives are flushed first, and I/O goes on");
    // the flush of the drives begins before this one is there
    write(&mut w, 0, 2, 12);
    let late: Vec<_> =
        (1..=3).map(|n| w.hosts[0].links.get_mut(&NodeId(n)).unwrap().to_replica.pop_back()).collect();
    deliver(&mut w, &[1, 2, 3]);
    for (n, f) in (1..).zip(late) {
        w.hosts[0].links.get_mut(&NodeId(n)).unwrap().to_replica.push_back(f.unwrap());
    }
    assert_eq!(w.hosts[0].session.holds_writes(), Some(false));
    deliver(&mut w, &[1, 2]);
    let held = write(&mut w, 0, 3, 13);
    (w, held)
}

#[test]
fn a_seal_sends_nothing_new_until_flushed() {
    let (mut w, held) = paused();
    assert!(sent(&w, 0, 1).is_empty(), "held");
    let r = read(&mut w, 0, 1);
    w.grant(0, NodeId(3));
    deliver(&mut w, &[1, 2]);
    assert_eq!(answered(&w, r), Some(vec![11]), "reads go on");
    while w.deliver_to_replica(0, NodeId(3)) {}
    while w.deliver_to_session(0, NodeId(3)) {}
    assert!(sent(&w, 0, 1).is_empty(), "drained, and not flushed");
    assert_eq!(w.hosts[0].session.generation(), G1);
    deliver(&mut w, &[1, 2]);
    assert!(sent(&w, 0, 1).is_empty(), "not flushed everywhere");
    deliver(&mut w, &[3]);
    assert_eq!(w.hosts[0].session.generation(), G2);
    assert_eq!(sent(&w, 0, 1), [(3, G2)]);
    let sealed = |q: &(usize, u64, MetaRequest)| matches!(q.2, MetaRequest::Sealed { generation: G1, .. });
    assert!(w.questions.iter().any(sealed), "and it confirms");
    w.calm(20);
    assert_eq!(answered(&w, held), Some(vec![]));
    assert_eq!(w.images[&G1], [((0, 1), 11), ((0, 2), 12), ((0, 3), 0)].into());
    w.frozen().unwrap();
}

#[test]
fn a_stuck_drain_goes_on_in_the_old_generation_and_is_tried_again() {
    let (mut w, held) = paused();
    for _ in 0..26 {
        assert_eq!(w.hosts[0].session.holds_writes(), Some(false));
        assert!(w.hosts[0].session.next_wake() <= w.now + Span::millis(250));
        w.now = w.now + Span::millis(10);
        w.wake();
        if w.hosts[0].session.holds_writes().is_none() {
            break;
        }
    }
    assert_eq!(w.hosts[0].session.holds_writes(), None, "250 ms");
    assert_eq!(sent(&w, 0, 1), [(3, G1)]);
    w.calm(200);
    assert_eq!(answered(&w, held), Some(vec![]));
    assert_eq!(w.hosts[0].session.generation(), G2);
    assert_eq!(w.images[&G1], [((0, 1), 11), ((0, 2), 12), ((0, 3), 13)].into());
}

#[test]
fn a_member_that_goes_during_the_pause_ends_it() {
    let (mut w, held) = paused();
    w.disconnect(0, NodeId(3));
    assert_eq!(w.hosts[0].session.holds_writes(), None);
    assert_eq!(sent(&w, 0, 1), [(3, G1)]);
    w.calm(400);
    assert_eq!(answered(&w, held), Some(vec![]));
    assert_eq!((w.hosts[0].session.generation(), w.images.len()), (G2, 1));
}

#[test]
fn a_group_is_held_until_raft_says_that_all_are_drained_or_none() {
    for sealed in [true, false] {
        let mut w = served();
        write(&mut w, 0, 1, 11);
        w.calm(10);
        ask(&mut w, true);
        let early = write(&mut w, 0, 2, 12);
        w.calm(100);
        assert_eq!(answered(&w, early), Some(vec![]), "before the pause");
        assert_eq!(w.hosts[0].session.holds_writes(), Some(true));
        let (held, r) = (write(&mut w, 0, 2, 22), read(&mut w, 0, 1));
        w.calm(200);
        assert_eq!((answered(&w, held), answered(&w, r)), (None, Some(vec![11])), "reads go on");
        assert!(w.hosts[0].session.waits().any(|r| r == WaitReason::Sealing));
        assert!(w.metad.drained);
        if sealed {
            w.metad.decide()
        } else {
            w.metad.cancel()
        }
        w.take_images();
        w.push_views(0);
        w.calm(20);
        assert_eq!(answered(&w, held), Some(vec![]));
        assert_eq!(w.hosts[0].session.generation(), G2);
        assert_eq!(w.images.len(), usize::from(sealed));
        w.frozen().unwrap();
        w.same().unwrap();
    }
}

#[test]
fn a_seal_that_is_called_off_leaves_the_next_generation_behind() {
    let (mut w, held) = paused();
    w.metad.cancel();
    w.push_views(0);
    w.metad_step(false);
    assert_eq!(w.hosts[0].session.holds_writes(), None);
    assert_eq!(sent(&w, 0, 1), [(3, G2)]);
    assert!(w.snapshot(false));
    w.push_views(0);
    w.calm(40);
    assert_eq!(answered(&w, held), Some(vec![]));
    assert_eq!(w.hosts[0].session.generation(), Generation(3));
    assert_eq!(w.images[&G2], [((0, 1), 11), ((0, 2), 12), ((0, 3), 13)].into());
}

#[test]
fn a_successor_seals_what_it_finds() {
    let mut w = served();
    write(&mut w, 0, 1, 11);
    w.calm(10);
    write(&mut w, 0, 1, 12);
    while w.deliver_to_replica(0, NodeId(3)) {}
    w.kill_session(0);
    assert!(w.snapshot(false));
    let h = w.attach(NodeId(2), SessionKind::Maintenance);
    w.calm(60);
    assert_eq!(w.images[&G1], [((0, 1), 12)].into(), "rewritten in its own generation, and flushed");
    assert_eq!(w.hosts[h].session.generation(), G2);
    w.calm(400);
    assert_eq!(w.hosts[h].closed, Some(CloseReason::Clean));
}

/// Else its replicas would differ for ever, and the guest's write be there or not by who is asked.
#[test]
fn what_a_successor_rewrites_waits_for_space_that_nobody_has() {
    let mut w = served();
    write(&mut w, 0, 1, 11);
    w.calm(10);
    write(&mut w, 0, 1, 12);
    while w.deliver_to_replica(0, NodeId(3)) {}
    w.kill_session(0);
    let all = |w: &mut World, refuse| w.nodes.values_mut().for_each(|n| n.drives[0].refuse_writes = refuse);
    all(&mut w, Some(proto::Refusal::NoSpace));
    let h = w.attach(NodeId(2), SessionKind::Guest);
    w.calm(100);
    assert!(!w.hosts[h].session.is_serving(), "nothing is served that differs");
    assert_eq!(w.metad.chunks[0].in_sync_count(), 3);
    all(&mut w, None);
    w.calm(100);
    assert!(w.hosts[h].session.is_serving());
    for n in w.nodes.values() {
        assert_eq!(n.drives[0].value_at(0, 1, View::Head), 12);
    }
}

/// The replica that it was read from has room: it writes over what it has. The others have all that was acknowledged, and are
/// not given up for what was not.
#[test]
fn what_a_successor_rewrites_drops_nobody_below_the_least_for_want_of_space() {
    let mut w = served();
    write(&mut w, 0, 1, 11);
    w.calm(10);
    write(&mut w, 0, 1, 12);
    while w.deliver_to_replica(0, NodeId(3)) {}
    w.kill_session(0);
    for n in [1, 2] {
        w.nodes.get_mut(&NodeId(n)).unwrap().drives[0].refuse_writes = Some(proto::Refusal::NoSpace);
    }
    let h = w.attach(NodeId(2), SessionKind::Guest);
    w.calm(200);
    assert!(!w.hosts[h].session.is_serving());
    assert_eq!(w.metad.chunks[0].in_sync_count(), 2, "one of them may be given up, and not the other");
    for n in [1, 2] {
        w.nodes.get_mut(&NodeId(n)).unwrap().drives[0].refuse_writes = None;
    }
    w.calm(400);
    assert!(w.hosts[h].session.is_serving());
    assert_eq!(w.metad.chunks[0].in_sync_count(), 3);
}

#[test]
fn a_successor_goes_on_where_a_predecessor_had_gone_on() {
    let mut w = served();
    write(&mut w, 0, 1, 11);
    w.calm(10);
    ask(&mut w, false);
    deliver(&mut w, &[1, 2, 3]);
    deliver(&mut w, &[1, 2, 3]);
    assert_eq!(w.hosts[0].session.generation(), G2);
    // what it says to metad is never heard
    let t = write(&mut w, 0, 1, 12);
    deliver(&mut w, &[1, 2, 3]);
    assert_eq!(answered(&w, t), Some(vec![]));
    write(&mut w, 0, 1, 13);
    while w.deliver_to_replica(0, NodeId(2)) {}
    w.questions.clear();
    w.kill_session(0);
    let h = w.attach(NodeId(3), SessionKind::Guest);
    w.calm(60);
    let r = read(&mut w, h, 1);
    let t = write(&mut w, h, 1, 14);
    w.calm(20);
    assert_eq!((answered(&w, r), answered(&w, t)), (Some(vec![13]), Some(vec![])));
    assert_eq!(w.images[&G1], [((0, 1), 11)].into());
    for n in w.nodes.values() {
        assert_eq!(n.drives[0].value_at(0, 1, View::Head), 14);
    }
    w.frozen().unwrap();
}

#[test]
fn a_group_that_a_successor_finds_is_held_from_its_first_service() {
    let mut w = served();
    write(&mut w, 0, 1, 11);
    w.calm(10);
    w.kill_session(0);
    assert!(w.snapshot(true));
    let h = w.attach(NodeId(2), SessionKind::Guest);
    let held = write(&mut w, h, 1, 12);
    w.calm(100);
    assert!(w.hosts[h].session.is_serving());
    assert_eq!((answered(&w, held), w.metad.drained), (None, true));
    w.metad.decide();
    w.push_views(h);
    w.calm(20);
    assert_eq!(answered(&w, held), Some(vec![]));
    assert_eq!(w.images[&G1], [((0, 1), 11)].into());
}

#[test]
fn a_seal_called_off_while_a_successor_opens_belongs_to_the_next_generation() {
    let mut w = served();
    write(&mut w, 0, 1, 11);
    w.calm(10);
    write(&mut w, 0, 1, 12);
    while w.deliver_to_replica(0, NodeId(3)) {}
    w.kill_session(0);
    assert!(w.snapshot(false));
    let h = w.attach(NodeId(2), SessionKind::Guest);
    // called off, and the drives have heard of it before the session has
    w.metad.cancel();
    let views = w.metad.views().clone();
    w.nodes.values_mut().for_each(|n| n.drives[0].obey(&views));
    w.calm(100);
    assert!(w.hosts[h].session.is_serving());
    assert_eq!(w.metad.chunks[0].in_sync_count(), 3);
    assert_eq!((w.metad.chunks[0].number, w.hosts[h].session.generation()), (ConfigNumber(1), G2));
    w.same().unwrap();
    let r = read(&mut w, h, 1);
    w.calm(10);
    assert_eq!(answered(&w, r), Some(vec![12]));
}

#[test]
fn an_older_session_does_not_act_on_what_was_asked_for_after_its_successor_came() {
    let mut w = served();
    write(&mut w, 0, 1, 11);
    w.calm(10);
    w.attach(NodeId(2), SessionKind::Guest);
    assert!(w.snapshot(false));
    w.push_views(0);
    deliver(&mut w, &[1, 2, 3]);
    assert_eq!(w.hosts[0].session.generation(), G1);
    w.metad_step(false);
    assert_eq!(w.hosts[0].closed, Some(CloseReason::Fenced));
    w.push_views(1);
    w.calm(100);
    assert_eq!((w.hosts[1].session.generation(), w.images.len()), (G2, 1));
}

#[test]
fn a_clean_close_seals() {
    let mut w = served();
    ask(&mut w, false);
    let t = write(&mut w, 0, 1, 11);
    w.event(0, Event::Close);
    w.calm(40);
    assert_eq!((w.hosts[0].closed, answered(&w, t)), (Some(CloseReason::Clean), Some(vec![])));
    assert_eq!(w.images[&G1], [((0, 1), 11)].into());
    let h = w.attach(NodeId(2), SessionKind::Guest);
    w.calm(20);
    assert_eq!(w.hosts[h].session.generation(), G2);
}

#[test]
fn a_seal_restarts_the_attempts_and_the_next_ones_pull_what_it_sealed() {
    let mut w = served();
    write(&mut w, 0, 1, 11);
    w.calm(10);
    w.crash(NodeId(3), false);
    without_the_third(&mut w);
    write(&mut w, 0, 2, 12);
    deliver(&mut w, &[1, 2]);
    w.nodes.get_mut(&NodeId(3)).unwrap().up = true;
    w.connect(0, NodeId(3));
    let attempts = |w: &World| -> Vec<(u64, Generation, Vec<Generation>)> {
        let of = |f: &message::RequestFrame| match &f.request {
            Request::AttemptBegin { attempt: a } => Some((a.number, a.generation, a.views.iter().collect())),
            _ => None,
        };
        w.hosts[0].links[&NodeId(3)].to_replica.iter().filter_map(of).collect()
    };
    for _ in 0..40 {
        w.now = w.now + Span::millis(10);
        w.wake();
    }
    assert_eq!(attempts(&w), [(1, G1, vec![])]);
    ask(&mut w, false);
    let ended = |f: &message::RequestFrame| matches!(f.request, Request::AttemptEnd { number: 1 });
    assert!(w.hosts[0].links[&NodeId(3)].to_replica.iter().any(ended));
    w.hosts[0].links.get_mut(&NodeId(3)).unwrap().to_replica.clear();
    for _ in 0..60 {
        w.now = w.now + Span::millis(10);
        deliver(&mut w, &[1, 2]);
        w.metad_step(false);
        w.wake();
    }
    assert_eq!(attempts(&w).last(), Some(&(2, G2, vec![G1])));
    write(&mut w, 0, 1, 21);
    w.calm(100);
    assert_eq!(w.metad.chunks[0].in_sync_count(), 3);
    assert_eq!(w.images[&G1], [((0, 1), 11), ((0, 2), 12)].into());
    w.frozen().unwrap();
    w.same().unwrap();
}

#[test]
fn a_source_that_does_not_keep_a_view_makes_the_session_ask() {
    let mut w = served();
    write(&mut w, 0, 1, 11);
    w.calm(10);
    ask(&mut w, false);
    w.calm(40);
    write(&mut w, 0, 1, 12);
    w.calm(10);
    assert_eq!(w.images.len(), 1);
    // nobody tells the session that the snapshot is gone
    w.metad.delete(G1);
    let views = w.metad.views().clone();
    w.nodes.values_mut().for_each(|n| n.drives[0].obey(&views));
    w.crash(NodeId(3), false);
    without_the_third(&mut w);
    w.calm(600);
    assert_eq!(w.metad.chunks[0].in_sync_count(), 3);
    assert!(w.metad.chunks[0].number > ConfigNumber(2));
    w.same().unwrap();
}

#[test]
fn more_credits_are_asked_for_while_they_are_spent() {
    let mut w = served();
    let mut most = 0;
    for round in 0..60u64 {
        for i in 0..64 {
            write(&mut w, 0, (round * 64 + i) % 4096, 1 + round * 64 + i);
        }
        let wants = w.hosts[0].links[&NodeId(2)].to_replica.iter().filter_map(|f| match f.request {
            Request::Credit { want, probe: None } => Some(want),
            _ => None,
        });
        most = most.max(wants.max().unwrap_or(0));
        w.calm(1);
    }
    assert!(most >= 512, "{most}");
    w.calm(1000);
    let t = write(&mut w, 0, 1, 7);
    w.calm(10);
    assert_eq!(answered(&w, t), Some(vec![]));
}

/// A zero over what a snapshot holds may need space: it is asked for first, so that no replica refuses what was sent.
#[test]
fn over_a_snapshot_zeroes_are_asked_for_and_a_discard_without_space_leaves_things_as_they_are() {
    let mut w = served();
    write(&mut w, 0, 1, 11);
    w.calm(10);
    let zero = |w: &mut World, op: GuestOp| {
        let epoch = w.hosts[0].epoch;
        let ticket = w.judge.begin(Kind::Write(vec![0]), 1, 1, epoch);
        w.event(0, Event::Guest(GuestRequest { ticket, op }));
        let asked = w.hosts[0].links[&NodeId(2)].to_replica.iter().any(|f| {
            matches!(f.request, Request::Credit { probe: Some(message::Probe { zero: true, .. }), .. })
        });
        w.calm(20);
        (w.judge.ops[&ticket].result.clone(), asked)
    };
    let discard = || GuestOp::Discard { offset: 4096, len: 4096, fua: false };
    let zeroes = || GuestOp::WriteZeroes { offset: 4096, len: 4096, fua: true, no_hole: false };
    assert_eq!(zero(&mut w, discard()), (Some(Ok(vec![])), false), "there is no snapshot");
    write(&mut w, 0, 1, 12);
    ask(&mut w, false);
    w.calm(40);
    assert_eq!(w.hosts[0].session.generation(), G2);
    let holds = |w: &World, value: u64| w.nodes.values().all(|n| n.drives[0].value(0, 1) == value);
    w.nodes.get_mut(&NodeId(2)).unwrap().drives[0].full = true;
    assert_eq!(zero(&mut w, discard()), (Some(Ok(vec![])), true));
    assert!(holds(&w, 12), "nothing was sent to anybody");
    assert_eq!(zero(&mut w, zeroes()), (Some(Err(GuestError::NoSpace)), true));
    assert!(holds(&w, 12));
    w.nodes.get_mut(&NodeId(2)).unwrap().drives[0].full = false;
    assert_eq!(zero(&mut w, zeroes()), (Some(Ok(vec![])), true));
    assert!(holds(&w, 0) && w.metad.chunks[0].in_sync_count() == 3);
}
