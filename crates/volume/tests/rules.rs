//! The rules of the session, one by one: what is sent, what is answered, and when.
#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use proto::control::{SessionKind, SessionState};
use proto::message::{BlockState, Request};
use proto::*;
use volume::*;
use world::judge::Kind;
use world::metad::{Metad, configuration, place};
use world::*;

/// Three nodes, one chunk, a session on node 1 that serves.
fn served() -> World {
    served_by(Metad::new(vec![configuration(1, &[1, 2, 3], 100)]), 3)
}

fn served_by(metad: Metad, nodes: u32) -> World {
    let mut w = World::new(1, nodes, metad);
    w.attach(NodeId(1), SessionKind::Guest);
    w.calm(20);
    assert!(w.hosts[0].session.is_serving());
    w
}

fn data(value: u64, blocks: usize) -> GuestData {
    let mut buf = PageBuf::zeroed(blocks);
    for i in 0..blocks {
        buf.bytes_mut()[i * 4096..i * 4096 + 8].copy_from_slice(&value.to_le_bytes());
    }
    GuestData { payload: buf.freeze() }
}

fn ask(w: &mut World, h: usize, op: GuestOp) -> Ticket {
    let epoch = w.hosts[h].epoch;
    let ticket = w.judge.begin(Kind::Other, 0, 0, epoch);
    w.event(h, Event::Guest(GuestRequest { ticket, op }));
    ticket
}

fn write(w: &mut World, h: usize, block: u64, value: u64) -> Ticket {
    ask(w, h, GuestOp::Write { offset: block * 4096, len: 4096, data: data(value, 1), fua: false })
}

fn read(w: &mut World, h: usize, block: u64) -> Ticket {
    ask(w, h, GuestOp::Read { offset: block * 4096, len: 4096 })
}

fn answer(w: &World, t: Ticket) -> Option<Result<Vec<u64>, GuestError>> {
    w.judge.ops[&t].result.clone()
}

/// Requests on their way to a node.
fn sent(w: &World, h: usize, n: u32) -> Vec<&Request> {
    w.hosts[h].links[&NodeId(n)].to_replica.iter().map(|f| &f.request).collect()
}

fn versions(w: &World, h: usize, n: u32) -> Vec<Version> {
    let of = |r: &&Request| match r {
        Request::Write { record, .. } => Some(record.version),
        _ => None,
    };
    sent(w, h, n).iter().filter_map(of).collect()
}

/// Only these nodes are connected, granted and served for a while.
fn run(w: &mut World, h: usize, nodes: &[u32], rounds: usize) {
    for _ in 0..rounds {
        w.now = w.now + Span::millis(5);
        for &n in nodes {
            let n = NodeId(n);
            if !w.hosts[h].links[&n].up {
                w.connect(h, n);
            }
            while w.deliver_to_replica(h, n) {}
            w.drive_steps(n);
            while w.deliver_to_session(h, n) {}
            w.grant(h, n);
        }
        w.metad_step(false);
        w.wake();
    }
}

fn state(w: &World, chunk: usize, node: u32) -> Option<MemberState> {
    w.metad.chunks[chunk].member(DriveId(u64::from(node) * 10)).map(|m| m.state)
}

#[test]
fn a_write_goes_to_all_under_one_version_and_is_answered_when_all_have_it() {
    let mut w = served();
    write(&mut w, 0, 8, 1);
    w.calm(5);
    let t = write(&mut w, 0, 5, 42);
    let v: Vec<_> = (1..=3).map(|n| versions(&w, 0, n)).collect();
    assert_eq!(v[0].len(), 1);
    assert!(v.iter().all(|x| *x == v[0]), "{v:?}");
    run(&mut w, 0, &[1, 2], 3);
    assert_eq!(answer(&w, t), None, "two of three");
    run(&mut w, 0, &[3], 2);
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
    assert!(w.nodes.values().all(|n| n.drives[0].value(0, 5) == 42));
    assert_eq!(w.hosts[0].session.marks().committed, v[0][0]);
}

#[test]
fn the_first_write_under_a_configuration_carries_it_once() {
    let mut w = served();
    write(&mut w, 0, 1, 1);
    write(&mut w, 0, 2, 2);
    w.calm(10);
    for n in w.nodes.values() {
        assert_eq!(n.drives[0].told, [(0, ConfigNumber(1))]);
    }
}

#[test]
fn overlapping_writes_are_held_back_and_others_are_not() {
    let mut w = served();
    write(&mut w, 0, 0, 9);
    w.calm(5);
    write(&mut w, 0, 5, 1);
    let second = write(&mut w, 0, 5, 2);
    write(&mut w, 0, 6, 3);
    assert_eq!(versions(&w, 0, 2).len(), 2, "the second waits for the first");
    w.calm(10);
    assert_eq!(answer(&w, second), Some(Ok(vec![])));
    assert!(w.nodes.values().all(|n| n.drives[0].value(0, 5) == 2));
}

#[test]
fn a_read_waits_for_the_write_before_it_and_for_the_one_that_overtook_it() {
    let mut w = served();
    write(&mut w, 0, 5, 1);
    w.calm(10);
    // a write in flight: the read is not even sent
    let first = write(&mut w, 0, 5, 2);
    let r = read(&mut w, 0, 5);
    assert!(!sent(&w, 0, 1).iter().any(|r| matches!(r, Request::Read { .. })));
    w.calm(10);
    assert_eq!((answer(&w, first), answer(&w, r)), (Some(Ok(vec![])), Some(Ok(vec![2]))));
    // a write sent while the read is under way: the answer is held
    let r = read(&mut w, 0, 5);
    let over = write(&mut w, 0, 5, 3);
    run(&mut w, 0, &[1, 2], 3);
    assert_eq!((answer(&w, r), answer(&w, over)), (None, None));
    w.calm(5);
    assert_eq!(answer(&w, over), Some(Ok(vec![])));
    assert_eq!(answer(&w, r), Some(Ok(vec![2])), "the read came to the replica before the write");
}

#[test]
fn a_read_waits_for_the_lease_of_every_member() {
    let mut w = served();
    write(&mut w, 0, 5, 1);
    w.calm(10);
    w.hosts[0].leases.0.remove(&NodeId(3));
    let r = read(&mut w, 0, 5);
    for n in [1, 2] {
        while w.deliver_to_replica(0, NodeId(n)) {}
        while w.deliver_to_session(0, NodeId(n)) {}
    }
    w.now = w.now + Span::millis(400);
    w.wake();
    assert_eq!(answer(&w, r), None);
    w.now = w.now + Span::millis(400);
    w.wake();
    assert_eq!(w.hosts[0].session.waits().collect::<Vec<_>>(), [WaitReason::Lease]);
    w.grant(0, NodeId(3));
    assert_eq!(answer(&w, r), Some(Ok(vec![1])));
}

#[test]
fn sectors_are_merged_under_the_hold_back() {
    let mut w = served();
    write(&mut w, 0, 15, 7);
    write(&mut w, 0, 16, 8);
    w.calm(10);
    // from the last sector of block 15 to the first of block 17: three blocks, two extents
    let mut buf = PageBuf::zeroed(3);
    buf.bytes_mut().fill(0xee);
    let op = GuestOp::Write {
        offset: 16 * 4096 - 512,
        len: 512 + 4096 + 512,
        data: GuestData { payload: buf.freeze() },
        fua: false,
    };
    let t = ask(&mut w, 0, op);
    w.calm(20);
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
    for n in w.nodes.values() {
        let d = &n.drives[0];
        let block = |b| d.now[&(0, b)].payload.clone().unwrap().bytes().to_vec();
        assert_eq!(d.value(0, 15), 7);
        assert_eq!((block(15)[4096 - 513], block(15)[4096 - 512]), (0, 0xee));
        assert!(block(16).iter().all(|&b| b == 0xee));
        assert_eq!((block(17)[511], block(17)[512]), (0xee, 0), "absent is zeroes");
    }
}

#[test]
fn zeroes_reach_to_the_sector_and_discards_to_the_block() {
    let mut w = served();
    for b in 3..8 {
        write(&mut w, 0, b, b);
    }
    w.calm(10);
    let len = 2 * 4096;
    let t = ask(&mut w, 0, GuestOp::Discard { offset: 3 * 4096 + 512, len, fua: false });
    w.calm(10);
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
    let values = |w: &World| (3..8).map(|b| w.nodes[&NodeId(2)].drives[0].value(0, b)).collect::<Vec<_>>();
    assert_eq!(values(&w), [3, 0, 5, 6, 7]);
    let t = ask(&mut w, 0, GuestOp::WriteZeroes { offset: 5 * 4096 + 512, len, fua: false, no_hole: false });
    w.calm(10);
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
    assert_eq!(values(&w), [3, 0, 5, 0, 0], "block 7 lost its first sector, where its value stands");
    let r = ask(&mut w, 0, GuestOp::Read { offset: 3 * 4096, len: 5 * 4096 });
    w.calm(10);
    assert_eq!(answer(&w, r), Some(Ok(vec![3, 0, 5, 0, 0])));
}

#[test]
fn zeroes_without_holes_take_their_space_to_the_sector() {
    let mut w = served();
    let mut buf = PageBuf::zeroed(1);
    buf.bytes_mut().fill(0xee);
    let old = GuestData { payload: buf.freeze() };
    ask(&mut w, 0, GuestOp::Write { offset: 20 * 4096, len: 4096, data: old, fua: false });
    w.calm(10);
    // From the middle of block 3 to the first sector of block 20: over an extent's end, mostly where nothing stands.
    let (offset, len) = (3 * 4096 + 2048, 17 * 4096 - 2048 + 512);
    let t = ask(&mut w, 0, GuestOp::WriteZeroes { offset, len, fua: false, no_hole: true });
    w.calm(20);
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
    for n in w.nodes.values() {
        let d = &n.drives[0];
        for b in 3..21 {
            let data = d.now.get(&(0, b)).and_then(|b| b.payload.as_ref());
            assert!(data.is_some_and(|p| p.bytes()[..512].iter().all(|b| *b == 0)), "block {b} has a home");
        }
        assert!(!d.now.contains_key(&(0, 2)) && !d.now.contains_key(&(0, 21)));
        let kept = &d.now[&(0, 20)].payload.as_ref().unwrap().bytes()[512..];
        assert!(kept.iter().all(|b| *b == 0xee), "what lies behind is left alone");
    }
}

fn flushes(w: &World) -> usize {
    (1..=3).map(|n| sent(w, 0, n).iter().filter(|r| matches!(r, Request::Flush)).count()).sum()
}

#[test]
fn a_flush_reaches_every_drive_and_the_next_one_costs_nothing() {
    let mut w = served();
    write(&mut w, 0, 5, 1);
    w.calm(10);
    let f = ask(&mut w, 0, GuestOp::Flush);
    assert_eq!(flushes(&w), 3);
    run(&mut w, 0, &[1, 2], 5);
    assert_eq!(answer(&w, f), None);
    w.calm(5);
    assert_eq!(answer(&w, f), Some(Ok(vec![])));
    assert!(w.nodes.values().all(|n| n.drives[0].stable.contains_key(&(0, 5))));
    let f = ask(&mut w, 0, GuestOp::Flush);
    assert_eq!((flushes(&w), answer(&w, f)), (0, Some(Ok(vec![]))));
    let marks = w.hosts[0].session.marks();
    assert_eq!(marks.durable, marks.committed);
}

#[test]
fn the_first_flush_of_a_session_reaches_the_drives_although_it_wrote_nothing() {
    let mut w = served();
    let f = ask(&mut w, 0, GuestOp::Flush);
    assert_eq!((flushes(&w), answer(&w, f)), (3, None));
    w.calm(5);
    assert_eq!(answer(&w, f), Some(Ok(vec![])));
}

#[test]
fn fua_is_answered_after_a_flush() {
    let mut w = served();
    let op = GuestOp::Write { offset: 0, len: 4096, data: data(4, 1), fua: true };
    let t = ask(&mut w, 0, op);
    w.calm(20);
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
    assert!(w.nodes.values().all(|n| n.drives[0].stable.contains_key(&(0, 0))));
}

#[test]
fn a_new_connection_gets_the_same_versions_again() {
    let mut w = served();
    write(&mut w, 0, 8, 1);
    w.calm(5);
    let t = write(&mut w, 0, 5, 1);
    let before = versions(&w, 0, 3);
    assert_eq!(before.len(), 1);
    run(&mut w, 0, &[1, 2], 3);
    w.disconnect(0, NodeId(3));
    w.connect(0, NodeId(3));
    assert_eq!(versions(&w, 0, 3), before);
    assert!(versions(&w, 0, 1).is_empty(), "the others have acknowledged");
    w.calm(5);
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
}

#[test]
fn a_silent_member_is_dropped_and_the_write_goes_on_only_when_metad_has_decided() {
    let mut w = served();
    write(&mut w, 0, 5, 1);
    w.calm(10);
    w.crash(NodeId(3), false);
    let t = write(&mut w, 0, 5, 2);
    for _ in 0..100 {
        w.now = w.now + Span::millis(5);
        for n in [1, 2] {
            while w.deliver_to_replica(0, NodeId(n)) {}
            while w.deliver_to_session(0, NodeId(n)) {}
        }
        w.wake();
    }
    assert_eq!(w.questions.len(), 1, "proposed once");
    assert_eq!(answer(&w, t), None);
    // a lost answer decides nothing
    let (h, token, request) = w.questions.pop_front().unwrap();
    w.event(h, Event::Meta { token, answer: control::MetaAnswer::Unavailable });
    assert_eq!(answer(&w, t), None);
    assert_eq!(w.hosts[0].session.required(0).len(), 3);
    assert_eq!(w.hosts[0].session.intersection(0).len(), 2);
    let decided = w.metad.apply(Epoch(1), &request);
    w.now = w.now + Span::secs(1);
    w.wake();
    let (h, token, again) = w.questions.pop_front().unwrap();
    assert_eq!(again, request, "the same command again");
    w.event(h, Event::Meta { token, answer: decided });
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
    assert_eq!(state(&w, 0, 3), Some(MemberState::Stale));
    assert_eq!(w.hosts[0].session.status().degraded_chunks, 1);
}

#[test]
fn a_session_that_is_cut_off_drops_nobody() {
    let mut w = served();
    write(&mut w, 0, 5, 1);
    w.calm(10);
    w.disconnect(0, NodeId(2));
    w.disconnect(0, NodeId(3));
    let t = write(&mut w, 0, 5, 2);
    run(&mut w, 0, &[1], 200);
    assert_eq!(w.metad.chunks[0].in_sync_count(), 3);
    assert_eq!(answer(&w, t), None);
    assert!(w.hosts[0].session.waits().any(|r| r == WaitReason::Evidence));
    // metad hears neither of two: one may go; then two of three are left to wait for min_in_sync
    w.metad.down = vec![DriveId(30)];
    run(&mut w, 0, &[1], 300);
    assert_eq!(w.metad.chunks[0].in_sync_count(), 2);
    assert_eq!(answer(&w, t), None, "min_in_sync");
    w.metad.down.clear();
    w.calm(400);
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
    assert_eq!(w.metad.chunks[0].in_sync_count(), 3);
}

#[test]
fn a_session_that_was_stopped_takes_its_own_silence_for_nobody_elses() {
    let mut w = served();
    write(&mut w, 0, 5, 1);
    w.calm(10);
    // two have answered, one has not, and all could have been gone for all it knows
    let t = write(&mut w, 0, 5, 2);
    run(&mut w, 0, &[1, 2], 10);
    w.now = w.now + Span::secs(3);
    w.wake();
    run(&mut w, 0, &[1, 2], 200);
    assert_eq!(state(&w, 0, 3), Some(MemberState::InSync), "a second after it went on");
    run(&mut w, 0, &[1, 2], 300);
    assert_eq!(state(&w, 0, 3), Some(MemberState::Stale), "no answer for two seconds");
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
}

#[test]
fn links_that_break_together_are_all_known_before_anyone_is_dropped() {
    let mut w = served_by(Metad::new(vec![configuration(1, &[1, 2, 3], 100)]), 4);
    write(&mut w, 0, 5, 1);
    w.calm(10);
    w.disconnect(0, NodeId(3));
    run(&mut w, 0, &[1, 2], 55);
    assert!(w.questions.is_empty(), "the grace is not over");
    // it is over now, and in the same moment the session turns out to be cut off from everybody
    w.now = w.now + Span::millis(60);
    w.disconnect(0, NodeId(4));
    w.disconnect(0, NodeId(2));
    w.wake();
    let proposed =
        |q: &&(usize, u64, control::MetaRequest)| matches!(q.2, control::MetaRequest::Propose { .. });
    assert!(w.questions.iter().find(proposed).is_none(), "no witness is left: {:?}", w.questions);
    w.calm(100);
    assert_eq!(w.metad.chunks[0].in_sync_count(), 3);
}

#[test]
fn those_who_owe_an_answer_themselves_are_no_witnesses() {
    let mut w = served();
    write(&mut w, 0, 5, 1);
    w.calm(10);
    let t = write(&mut w, 0, 5, 2);
    run(&mut w, 0, &[1], 600);
    assert_eq!(w.metad.chunks[0].in_sync_count(), 3);
    assert!(w.hosts[0].session.waits().any(|r| r == WaitReason::Evidence));
    run(&mut w, 0, &[1, 2], 100);
    assert_eq!(state(&w, 0, 3), Some(MemberState::Stale));
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
}

#[test]
fn with_too_few_replicas_writes_wait_and_reads_and_flushes_go_on() {
    let mut w = served();
    write(&mut w, 0, 5, 1);
    w.calm(10);
    w.metad.down = vec![DriveId(20), DriveId(30)];
    w.crash(NodeId(2), false);
    w.crash(NodeId(3), false);
    run(&mut w, 0, &[1], 400);
    assert_eq!(w.metad.chunks[0].in_sync_count(), 1);
    let (t, r) = (write(&mut w, 0, 5, 2), read(&mut w, 0, 5));
    let f = ask(&mut w, 0, GuestOp::Flush);
    run(&mut w, 0, &[1], 20);
    assert_eq!((answer(&w, t), answer(&w, r), answer(&w, f)), (None, Some(Ok(vec![1])), Some(Ok(vec![]))));
    assert!(w.hosts[0].session.status().waiting.is_some());
    w.metad.down.clear();
    w.calm(400);
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
    assert_eq!(w.metad.chunks[0].in_sync_count(), 3);
    w.same().unwrap();
}

#[test]
fn a_class_that_fails_writes_rather_than_wait_does_so() {
    let mut metad = Metad::new(vec![configuration(1, &[1, 2, 3], 100)]);
    metad.attached.wait_when_degraded = false;
    let mut w = served_by(metad, 3);
    w.metad.down = vec![DriveId(20), DriveId(30)];
    w.crash(NodeId(2), false);
    w.crash(NodeId(3), false);
    let early = write(&mut w, 0, 5, 2);
    run(&mut w, 0, &[1], 400);
    let late = write(&mut w, 0, 5, 3);
    run(&mut w, 0, &[1], 10);
    assert_eq!((answer(&w, early), answer(&w, late)), (Some(Err(GuestError::Io)), Some(Err(GuestError::Io))));
}

#[test]
fn a_drive_that_reports_its_failure_is_dropped_on_the_word_of_one() {
    let mut w = served();
    w.metad.chunks[0].members[2].state = MemberState::Stale;
    w.metad.chunks[0].number = ConfigNumber(2);
    w.event(0, Event::ChunksChanged { chunks: vec![ChunkIndex(0)] });
    w.nodes.get_mut(&NodeId(3)).unwrap().drives[0].refuse_writes = Some(Refusal::DriveFailed);
    w.nodes.get_mut(&NodeId(2)).unwrap().drives[0].refuse_writes = Some(Refusal::DriveFailed);
    run(&mut w, 0, &[1], 20);
    let t = write(&mut w, 0, 5, 2);
    run(&mut w, 0, &[1, 2], 100);
    assert_eq!(state(&w, 0, 2), Some(MemberState::Stale));
    assert_eq!(answer(&w, t), None, "min_in_sync");
}

#[test]
fn a_write_that_all_who_are_left_refused_is_answered_when_the_last_one_is_dropped() {
    let mut w = served();
    write(&mut w, 0, 5, 1);
    w.calm(10);
    for n in [1, 2] {
        w.nodes.get_mut(&NodeId(n)).unwrap().drives[0].refuse_writes = Some(Refusal::NoSpace);
    }
    let t = write(&mut w, 0, 5, 2);
    w.crash(NodeId(3), false);
    run(&mut w, 0, &[1, 2], 40);
    assert_eq!(answer(&w, t), None, "the third may have it");
    w.metad.down = vec![DriveId(30)];
    run(&mut w, 0, &[1, 2], 300);
    assert_eq!(state(&w, 0, 3), Some(MemberState::Stale));
    assert_eq!(answer(&w, t), Some(Err(GuestError::NoSpace)));
    for n in [1, 2] {
        w.nodes.get_mut(&NodeId(n)).unwrap().drives[0].refuse_writes = None;
    }
    let t = write(&mut w, 0, 5, 3);
    run(&mut w, 0, &[1, 2], 20);
    assert_eq!(answer(&w, t), Some(Ok(vec![])), "nothing is held back by it");
}

#[test]
fn what_waits_is_withdrawn_with_its_client_and_what_was_sent_is_not() {
    let mut w = served();
    write(&mut w, 0, 5, 1);
    w.calm(10);
    w.crash(NodeId(2), false);
    w.crash(NodeId(3), false);
    let sent = write(&mut w, 0, 5, 2);
    run(&mut w, 0, &[1], 20);
    w.metad.down = vec![DriveId(20), DriveId(30)];
    run(&mut w, 0, &[1], 400);
    assert_eq!(w.metad.chunks[0].in_sync_count(), 1);
    let waits = write(&mut w, 0, 5, 3);
    run(&mut w, 0, &[1], 20);
    assert_eq!((answer(&w, sent), answer(&w, waits)), (None, None), "min_in_sync");
    w.event(0, Event::Withdraw { tickets: [sent, waits].into() });
    assert_eq!((answer(&w, sent), answer(&w, waits)), (None, Some(Err(GuestError::Withdrawn))));
    w.metad.down.clear();
    w.calm(400);
    assert_eq!(answer(&w, sent), Some(Ok(vec![])));
    let t = read(&mut w, 0, 5);
    w.calm(10);
    assert_eq!(answer(&w, t), Some(Ok(vec![2])), "the third was never written");
    assert!(w.hosts[0].session.waits().next().is_none());
}

#[test]
fn a_returning_member_is_resynced_and_promoted_in_three_steps() {
    let mut w = served();
    for b in 0..4 {
        write(&mut w, 0, b, b + 1);
    }
    w.calm(10);
    w.crash(NodeId(3), false);
    run(&mut w, 0, &[1, 2], 100);
    assert_eq!(state(&w, 0, 3), Some(MemberState::Stale));
    let t = write(&mut w, 0, 1, 99);
    run(&mut w, 0, &[1, 2], 5);
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
    let v0 = w.hosts[0].session.submitted().next();
    w.nodes.get_mut(&NodeId(3)).unwrap().up = true;
    w.connect(0, NodeId(3));
    // it is sent writes only from v0 on, and not required before everything is pulled
    let begin = |w: &World| sent(w, 0, 3).iter().any(|r| matches!(r, Request::AttemptBegin { .. }));
    for _ in 0..50 {
        if begin(&w) {
            break;
        }
        w.now = w.now + Span::millis(10);
        w.wake();
    }
    assert!(begin(&w));
    while w.deliver_to_replica(0, NodeId(3)) {}
    while w.deliver_to_session(0, NodeId(3)) {}
    assert!(sent(&w, 0, 3).iter().any(|r| matches!(r, Request::AttemptList { .. })));
    write(&mut w, 0, 2, 77);
    assert_eq!(versions(&w, 0, 3), [v0]);
    assert_eq!(w.hosts[0].session.required(0).len(), 2);
    w.calm(60);
    assert_eq!(state(&w, 0, 3), Some(MemberState::InSync));
    w.same().unwrap();
    let moved = w.hosts[0].notices.iter().find_map(|n| match n {
        Notice::Promoted { bytes_moved, .. } => Some(*bytes_moved),
        _ => None,
    });
    assert_eq!(moved, Some(4096), "only what differs: block 1; block 2 was written meanwhile");
    assert!(w.nodes[&NodeId(3)].drives[0].stable.contains_key(&(0, 1)), "flushed before it was proposed");
}

#[test]
fn a_new_placement_is_asked_for_until_metad_has_answered() {
    let mut w = served_by(Metad::new(vec![configuration(1, &[1, 2, 3], 100)]), 4);
    w.calm(10);
    let c = &mut w.metad.chunks[0];
    c.number = ConfigNumber(2);
    c.members.push(Member { place: place(4, 400), state: MemberState::Stale });
    // told twice, shortly after one another; the first answer is lost
    w.event(0, Event::ChunksChanged { chunks: vec![ChunkIndex(0)] });
    w.metad_step(true);
    w.event(0, Event::ChunksChanged { chunks: vec![ChunkIndex(0)] });
    assert!(w.questions.is_empty(), "not at once");
    for _ in 0..10 {
        w.now = w.now + Span::millis(50);
        w.wake();
        w.metad_step(true);
    }
    w.calm(100);
    assert!(w.hosts[0].session.configuration(0).number >= ConfigNumber(2));
}

#[test]
fn a_new_placement_gets_its_record_first_and_a_leaving_member_goes() {
    let mut w = served_by(Metad::new(vec![configuration(1, &[1, 2, 3], 100)]), 4);
    write(&mut w, 0, 5, 6);
    w.calm(10);
    let c = &mut w.metad.chunks[0];
    c.members[2].state = MemberState::Leaving;
    c.members.push(Member { place: place(4, 200), state: MemberState::Stale });
    c.number = c.number.next();
    w.event(0, Event::ChunksChanged { chunks: vec![ChunkIndex(0)] });
    w.calm(100);
    assert_eq!((state(&w, 0, 3), state(&w, 0, 4)), (None, Some(MemberState::InSync)));
    assert_eq!(w.nodes[&NodeId(4)].drives[0].value(0, 5), 6);
    assert_eq!(w.metad.chunks[0].members.len(), 3);
}

#[test]
fn a_member_in_doubt_is_dropped_and_comes_back_without_it() {
    let mut w = served();
    write(&mut w, 0, 5, 6);
    w.calm(10);
    w.crash(NodeId(2), true);
    w.calm(3);
    assert!(w.hosts[0].session.doubts(DriveId(20)));
    w.calm(100);
    assert!(w.metad.chunks[0].number > ConfigNumber(2), "dropped and promoted");
    assert_eq!(w.metad.chunks[0].in_sync_count(), 3);
    assert!(!w.nodes[&NodeId(2)].drives[0].doubt && !w.hosts[0].session.doubts(DriveId(20)));
    w.same().unwrap();
}

#[test]
fn when_everything_connected_is_in_doubt_the_session_ends_and_the_next_one_keeps_what_was_flushed() {
    let mut w = World::new(3, 4, Metad::new(vec![configuration(1, &[1, 2, 3], 100)]));
    w.attach(NodeId(4), SessionKind::Guest);
    w.calm(20);
    for b in 0..8 {
        write(&mut w, 0, b, 10 + b);
    }
    w.calm(10);
    ask(&mut w, 0, GuestOp::Flush);
    w.calm(10);
    for b in 0..8 {
        write(&mut w, 0, b, 20 + b);
    }
    w.calm(10);
    for n in 1..=3 {
        w.crash(NodeId(n), true);
    }
    let t = read(&mut w, 0, 5);
    w.calm(400);
    assert_eq!(w.hosts[0].closed, Some(CloseReason::Doubt));
    assert_eq!(answer(&w, t), Some(Err(GuestError::Gone)));
    let h = w.attach(NodeId(4), SessionKind::Guest);
    // it opens only when every member has answered
    run(&mut w, h, &[1, 2], 400);
    assert!(!w.hosts[h].session.is_serving());
    assert!(w.hosts[h].session.waits().any(|r| r == WaitReason::Doubt));
    w.calm(100);
    assert!(w.hosts[h].session.is_serving());
    w.same().unwrap();
    for b in 0..8u32 {
        let v = w.nodes[&NodeId(1)].drives[0].value(0, b);
        assert!(v == 10 + u64::from(b) || v == 20 + u64::from(b), "block {b}: {v}");
    }
    assert!(w.nodes.values().all(|n| !n.drives[0].doubt));
}

#[test]
fn a_fenced_session_gives_up_everything() {
    let mut w = served();
    let t = write(&mut w, 0, 5, 1);
    w.attach(NodeId(2), SessionKind::Guest);
    w.calm(100);
    assert_eq!(w.hosts[0].closed, Some(CloseReason::Fenced));
    assert!(answer(&w, t).is_some());
    let late = write(&mut w, 0, 5, 2);
    assert_eq!(answer(&w, late), Some(Err(GuestError::Gone)));
    assert!(w.hosts[1].session.is_serving());
}

#[test]
fn what_one_replica_alone_has_is_everywhere_before_the_next_session_serves() {
    let mut w = served();
    write(&mut w, 0, 5, 1);
    w.calm(10);
    write(&mut w, 0, 5, 2);
    while w.deliver_to_replica(0, NodeId(3)) {}
    w.kill_session(0);
    let h = w.attach(NodeId(2), SessionKind::Guest);
    let early = read(&mut w, h, 5);
    run(&mut w, h, &[1, 2], 20);
    assert_eq!(answer(&w, early), None, "not all have answered their fence");
    w.calm(40);
    assert_eq!(answer(&w, early), Some(Ok(vec![2])));
    w.same().unwrap();
    assert!(w.nodes.values().all(|n| n.drives[0].stable.contains_key(&(0, 5))), "flushed before it serves");
}

#[test]
fn a_clean_close_leaves_nothing_to_reconcile() {
    let mut w = served();
    let t = write(&mut w, 0, 5, 1);
    w.event(0, Event::Close);
    let late = write(&mut w, 0, 6, 1);
    w.calm(20);
    assert_eq!((answer(&w, t), answer(&w, late)), (Some(Ok(vec![])), Some(Err(GuestError::Gone))));
    assert_eq!(w.hosts[0].closed, Some(CloseReason::Clean));
    assert!(w.metad.detached_clean);
    assert!(w.nodes.values().all(|n| n.drives[0].stable.contains_key(&(0, 5))));
    let h = w.attach(NodeId(2), SessionKind::Guest);
    w.calm(20);
    assert!(w.hosts[h].session.is_serving());
    assert!(!w.hosts[h].notices.iter().any(|n| matches!(n, Notice::Reconciled { .. })));
}

#[test]
fn a_close_that_cannot_end_is_given_up() {
    let mut w = served();
    let t = write(&mut w, 0, 5, 1);
    w.event(0, Event::Close);
    for _ in 0..100 {
        w.now = w.now + Span::millis(100);
        w.wake();
    }
    assert_eq!(w.hosts[0].closed, Some(CloseReason::GivenUp));
    assert_eq!(answer(&w, t), Some(Err(GuestError::Gone)));
}

#[test]
fn a_volume_is_created_by_a_maintenance_session_that_then_closes() {
    let mut metad = Metad::new((0..3).map(|_| configuration(0, &[1, 2, 3], 100)).collect());
    metad.attached.placement = Some(1);
    let mut w = World::new(1, 3, metad);
    let h = w.attach(NodeId(1), SessionKind::Maintenance);
    w.connect(h, NodeId(1));
    let creates: Vec<usize> = sent(&w, h, 1)
        .iter()
        .filter_map(|r| match r {
            Request::Create { chunks, .. } => Some(chunks.len()),
            _ => None,
        })
        .collect();
    assert_eq!(creates, [3], "one message for all chunks of a drive");
    w.calm(600);
    assert_eq!(w.hosts[h].closed, Some(CloseReason::Clean));
    assert!(w.metad.chunks.iter().all(|c| c.number == ConfigNumber(1)));
    assert!(w.nodes.values().all(|n| n.drives[0].records.len() == 3));
    assert!(w.metad.failed_at_creation.is_empty());
}

#[test]
fn a_drive_that_fails_at_creation_is_named() {
    let mut metad = Metad::new(vec![configuration(0, &[1, 2, 3], 100)]);
    metad.attached.placement = Some(1);
    let mut w = World::new(1, 3, metad);
    let h = w.attach(NodeId(1), SessionKind::Maintenance);
    run(&mut w, h, &[1, 2], 500);
    assert_eq!(w.metad.failed_at_creation, [DriveId(30)]);
}

#[test]
fn a_maintenance_session_heals_and_closes() {
    let mut metad = Metad::new(vec![configuration(1, &[1, 2, 3], 100)]);
    metad.chunks[0].members[2].state = MemberState::Stale;
    let mut w = World::new(1, 3, metad);
    let h = w.attach(NodeId(1), SessionKind::Maintenance);
    w.calm(600);
    assert_eq!(w.metad.chunks[0].in_sync_count(), 3);
    assert_eq!(w.hosts[h].closed, Some(CloseReason::Clean));
}

#[test]
fn without_space_the_guest_is_told_before_anything_is_sent() {
    let mut w = served();
    write(&mut w, 0, 5, 1);
    w.calm(10);
    w.nodes.get_mut(&NodeId(2)).unwrap().drives[0].full = true;
    // the next session has no stock of credits
    w.kill_session(0);
    let h = w.attach(NodeId(1), SessionKind::Guest);
    w.calm(40);
    let old = write(&mut w, h, 5, 2);
    w.calm(20);
    assert_eq!(answer(&w, old), Some(Ok(vec![])), "an allocated block");
    let far = write(&mut w, h, 4000, 1);
    w.calm(20);
    assert_eq!(answer(&w, far), Some(Err(GuestError::NoSpace)));
    assert!(w.nodes.values().all(|n| !n.drives[0].now.contains_key(&(0, 4000))));
    let t = ask(&mut w, h, GuestOp::Discard { offset: 5 * 4096, len: 4096, fua: false });
    w.calm(20);
    assert_eq!(answer(&w, t), Some(Ok(vec![])), "a discard needs no credit");
}

#[test]
fn a_write_that_all_refuse_for_space_is_an_error_and_one_refusal_makes_stale() {
    let mut w = served();
    for n in w.nodes.values_mut() {
        n.drives[0].refuse_writes = Some(Refusal::NoSpace);
    }
    let t = write(&mut w, 0, 5, 1);
    w.calm(20);
    assert_eq!(answer(&w, t), Some(Err(GuestError::NoSpace)));
    assert_eq!(w.metad.chunks[0].in_sync_count(), 3);
    for n in [1, 2] {
        w.nodes.get_mut(&NodeId(n)).unwrap().drives[0].refuse_writes = None;
    }
    let t = write(&mut w, 0, 5, 2);
    w.calm(60);
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
    assert!(w.metad.chunks[0].number > ConfigNumber(1), "it was dropped");
}

#[test]
fn a_refusal_counts_no_more_once_the_write_is_sent_again() {
    let mut w = served();
    write(&mut w, 0, 8, 1);
    w.calm(10);
    let all = |w: &mut World, refuse| {
        for n in w.nodes.values_mut() {
            n.drives[0].refuse_writes = refuse;
        }
    };
    all(&mut w, Some(Refusal::NoSpace));
    let t = write(&mut w, 0, 5, 1);
    while w.deliver_to_replica(0, NodeId(3)) {}
    while w.deliver_to_session(0, NodeId(3)) {}
    w.disconnect(0, NodeId(3));
    w.connect(0, NodeId(3));
    w.drive(DriveId(30)).refuse_writes = None;
    while w.deliver_to_replica(0, NodeId(3)) {}
    // it is written there now, and the others refuse it before the session hears of that
    for n in [1, 2] {
        while w.deliver_to_replica(0, NodeId(n)) {}
        while w.deliver_to_session(0, NodeId(n)) {}
    }
    assert_eq!(answer(&w, t), None, "no error where in-sync replicas differ");
    all(&mut w, None);
    w.calm(600);
    assert_eq!(answer(&w, t), Some(Ok(vec![])));
    w.same().unwrap();
}

#[test]
fn a_bad_block_is_read_elsewhere_and_repaired() {
    let mut w = served();
    write(&mut w, 0, 5, 9);
    w.calm(10);
    w.nodes.get_mut(&NodeId(1)).unwrap().drives[0].now.get_mut(&(0, 5)).unwrap().bad = true;
    let r = ask(&mut w, 0, GuestOp::Read { offset: 4 * 4096, len: 3 * 4096 });
    w.calm(20);
    assert_eq!(answer(&w, r), Some(Ok(vec![0, 9, 0])));
    assert!(!w.nodes[&NodeId(1)].drives[0].now[&(0, 5)].bad);
    assert!(w.hosts[0].notices.contains(&Notice::Repaired {
        chunk: ChunkIndex(0),
        block: 5,
        drive: DriveId(10)
    }));
    // bad everywhere: an error for this block only
    for n in w.nodes.values_mut() {
        n.drives[0].now.get_mut(&(0, 5)).unwrap().bad = true;
    }
    let (bad, good) = (read(&mut w, 0, 5), read(&mut w, 0, 6));
    w.calm(20);
    assert_eq!((answer(&w, bad), answer(&w, good)), (Some(Err(GuestError::Io)), Some(Ok(vec![0]))));
}

#[test]
fn verify_names_what_differs() {
    let mut w = served();
    for b in 0..64 {
        write(&mut w, 0, b, b);
    }
    w.calm(40);
    let verify = |w: &mut World| {
        let t = ask(w, 0, GuestOp::Verify { offset: 0, len: 16 << 20 });
        w.calm(60);
        w.judge.verified.get(&t).cloned().expect("verified")
    };
    assert_eq!(verify(&mut w), (vec![], 16 << 20));
    let d = &mut w.nodes.get_mut(&NodeId(3)).unwrap().drives[0];
    d.now.get_mut(&(0, 20)).unwrap().payload = Some(data(1234, 1).payload);
    assert_eq!(verify(&mut w), (vec![65536], 16 << 20));
}

#[test]
fn block_status_comes_in_runs() {
    let mut w = served();
    write(&mut w, 0, 2, 1);
    w.calm(10);
    let ticket = w.judge.begin(Kind::Other, 0, 0, Epoch(1));
    let op = GuestOp::Map { offset: 0, len: 4 * 4096 };
    w.event(0, Event::Guest(GuestRequest { ticket, op }));
    w.calm(10);
    let runs = w.judge.maps.get(&ticket).expect("answered");
    let states: Vec<_> = runs.iter().map(|r| (r.count, r.state)).collect();
    let (a, d) = (BlockState::Absent, BlockState::Data);
    assert_eq!(states, [(1, a), (1, a), (1, d), (1, a)]);
}

#[test]
fn an_idle_session_wants_no_waking() {
    let mut w = served();
    write(&mut w, 0, 5, 1);
    ask(&mut w, 0, GuestOp::Flush);
    w.calm(500);
    assert_eq!(w.hosts[0].session.next_wake(), Time::FAR);
    assert_eq!(w.hosts[0].session.status().state, SessionState::Serving);
    let marks = w.hosts[0].session.marks();
    assert!(w.nodes.values().all(|n| n.drives[0].marks == marks), "marks were told");
}

#[test]
fn an_emptied_drive_is_refused_and_never_read_as_zeroes() {
    let mut w = served();
    write(&mut w, 0, 5, 1);
    w.calm(10);
    w.kill_session(0);
    let d = &mut w.nodes.get_mut(&NodeId(1)).unwrap().drives[0];
    *d = world::replica::Drive::new(DriveId(10));
    let h = w.attach(NodeId(1), SessionKind::Guest);
    let r = read(&mut w, h, 5);
    w.calm(200);
    assert_eq!(answer(&w, r), Some(Ok(vec![1])));
    assert_eq!(
        w.metad.chunks[0].in_sync_count(),
        3,
        "stale first, then its record is made and it is resynced"
    );
    w.same().unwrap();
}
