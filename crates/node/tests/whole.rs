//! The whole way: guest -> session -> stores of three nodes and back, over real bytes.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "whole/clones.rs"]
mod clones;
#[path = "whole/seats.rs"]
mod seats;
#[path = "whole/snapshots.rs"]
mod snapshots;
#[path = "whole/space.rs"]
mod space;
mod world;

use node::event::Notice;
use node::{DriveState, Event, ExportError};
use proto::control::{MetaRefusal, WatchUpdate};
use proto::limits::CLOSE_AFTER;
use proto::message::View;
use proto::{BranchId, ExportId, NodeId, Span};
use store::event::Failure;
use store::view::BlockView;
use volume::GuestOp;
use world::load::Load;
use world::{HANDLES, World};

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| seed.wrapping_mul(31).wrapping_add((i / 7 % 251).try_into().unwrap())).collect()
}

/// Three nodes and a volume that is ready.
fn made(chunks: u32) -> (World, BranchId) {
    made_among(3, chunks)
}
/// The same; further nodes have no replica of it.
fn made_among(nodes: u32, chunks: u32) -> (World, BranchId) {
    let mut w = World::new(nodes);
    w.run(Span::millis(300));
    let branch = w.metad.create("v", chunks, &[1, 2, 3]);
    created(&mut w, branch, 1);
    assert_eq!(w.metad.detached_cleanly, 1, "a maintenance session closes cleanly");
    (w, branch)
}
/// Its maintenance session, on this node, makes it and goes.
fn created(w: &mut World, branch: BranchId, on: u32) {
    let ready = w.until(Span::secs(5), |w| w.metad.volumes[&branch].placement.is_none());
    assert!(ready, "{}", w.tail());
    let serves = w.until(Span::secs(5), |w| w.node(on).session(branch).is_some_and(|s| s.is_serving()));
    assert!(serves, "{}", w.tail());
    w.metad.appoint(branch, None);
    let closed = w.until(Span::secs(5), |w| w.node(on).session(branch).is_none());
    assert!(closed, "{}", w.tail());
}

#[test]
fn a_volume_is_created_written_and_read() {
    let (mut w, _) = made(2);
    w.must_open(1, 1, "v", false);
    let (a, b) = (pattern(1, 4096), pattern(2, 200_000));
    w.must_write(1, 1, 8192, &a);
    w.must_write(1, 1, (16 << 20) - 65_536, &b);
    assert_eq!(w.read(1, 1, 8192, 4096), a);
    assert_eq!(w.read(1, 1, (16 << 20) - 65_536, 200_000 / 512 * 512), b[..200_000 / 512 * 512]);
    assert_eq!(w.read(1, 1, 0, 8192), vec![0; 8192]);
    let t = w.ask(1, 1, GuestOp::Flush);
    w.wait(1, t, Span::secs(2)).unwrap();
}

/// Replicas of a healthy volume hold the same in every block.
fn same_everywhere(w: &World, branch: BranchId, nodes: &[u32]) {
    let v = &w.metad.volumes[&branch];
    let store = |n: u32| w.node(n).stores().next().unwrap().1;
    for chunk in 0..u32::try_from(v.chunks.len()).unwrap() {
        for block in 0..v.geometry.chunk_blocks() {
            let state =
                |n: u32| store(n).block(branch, proto::ChunkIndex(chunk), block, View::Head).unwrap().0;
            let first = state(nodes[0]);
            // Without a parent, zero and absent read the same.
            let zeroes = |s| matches!(s, BlockView::Zero | BlockView::Absent);
            for &n in nodes {
                let other = state(n);
                assert!(
                    other == first || zeroes(other) && zeroes(first),
                    "chunk {chunk} block {block} on n{n}"
                );
            }
        }
    }
}
fn heals(w: &mut World, branch: BranchId) {
    let healthy = w.until(Span::secs(20), |w| w.metad.healthy(branch));
    assert!(healthy, "{:?} {}", w.metad.volumes[&branch].chunks, w.tail());
}

#[test]
fn a_replica_dies_and_comes_back_and_only_what_changed_is_moved() {
    let (mut w, branch) = made(2);
    w.must_open(1, 1, "v", false);
    let mut load = Load::new(&w, 1, 1, 4000);
    load.run(&mut w, Span::millis(1500));
    load.drain(&mut w);
    w.kill(3);
    // Meanwhile 20 extents are written.
    let mut load = Load::new(&w, 1, 1, 320);
    load.run(&mut w, Span::secs(2));
    assert!(load.gap < Span::secs(1), "longest pause {} ms", load.gap.as_millis());
    let stale = w.metad.volumes[&branch].chunks.iter().all(|c| c.in_sync_count() == 2);
    assert!(stale, "the dead replica is marked stale");
    w.start(3);
    load.run(&mut w, Span::secs(2));
    load.drain(&mut w);
    heals(&mut w, branch);
    w.run(Span::secs(2));
    same_everywhere(&w, branch, &[1, 2, 3]);
    load.check(&mut w, 1, 1);
    let moved = |n: &Notice| match n {
        Notice::Volume { notice: volume::Notice::Promoted { bytes_moved, .. }, .. } => *bytes_moved,
        _ => 0,
    };
    let moved: u64 = w.notices.iter().map(|(_, _, n)| moved(n)).sum();
    assert!((1..=20 << 16).contains(&moved), "{moved} bytes were moved");
    assert!(load.writes > 500, "{} writes", load.writes);
}

#[test]
fn the_node_of_a_session_dies_and_another_one_opens_within_six_seconds() {
    let (mut w, branch) = made(2);
    w.must_open(1, 1, "v", false);
    let mut load = Load::new(&w, 1, 1, 2000);
    load.run(&mut w, Span::millis(1200));
    w.kill(1);
    load.forget();
    let killed = w.now;
    w.must_open(2, 2, "v", false);
    w.read(2, 2, 0, 4096);
    assert!(w.now.since(killed) < Span::secs(6), "{} ms", w.now.since(killed).as_millis());
    load.check(&mut w, 2, 2);
    w.start(1);
    heals(&mut w, branch);
    same_everywhere(&w, branch, &[1, 2, 3]);
}

#[test]
fn a_volume_that_is_held_elsewhere_is_refused_and_taken_over_with_force() {
    let (mut w, _) = made(1);
    w.must_open(1, 1, "v", false);
    let mut load = Load::new(&w, 1, 1, 500);
    load.run(&mut w, Span::millis(600));
    w.open(2, 2, "v", false);
    let refused = w.until(Span::secs(5), |w| w.refused.contains_key(&ExportId(2)));
    assert!(refused);
    assert!(matches!(&w.refused[&ExportId(2)], ExportError::Held { holder, .. } if holder == "n1"));
    load.collect(&w);
    load.run(&mut w, Span::millis(300));
    let before = w.now;
    load.forget();
    w.must_open(2, 3, "v", true);
    assert!(w.now.since(before) < Span::millis(500), "a live holder yields at once");
    let closed = w.until(Span::secs(1), |w| w.broken.contains(&ExportId(1)));
    assert!(closed, "the export of the older holder is broken; {}", w.tail());
    load.check(&mut w, 2, 3);
}

#[test]
fn a_restart_of_the_sessions_own_node_does_not_wait() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    let mut load = Load::new(&w, 1, 1, 500);
    load.run(&mut w, Span::millis(1200));
    w.kill(1);
    load.forget();
    w.run(Span::millis(50));
    w.start(1);
    let started = w.now;
    w.must_open(1, 2, "v", false);
    assert!(w.now.since(started) < Span::secs(1), "{} ms", w.now.since(started).as_millis());
    load.check(&mut w, 1, 2);
    heals(&mut w, branch);
}

#[test]
fn everything_is_killed_at_once_and_nothing_acknowledged_is_missing() {
    let (mut w, branch) = made(2);
    let mut export = 0;
    for round in 0..3u32 {
        export += 1;
        w.must_open(1, export, "v", false);
        let mut load = Load::new(&w, 1, export, 300);
        load.run(&mut w, Span::millis(700 + u64::from(round) * 130));
        (1..=3).for_each(|n| w.kill(n));
        load.forget();
        (1..=3).for_each(|n| w.start(n));
        export += 1;
        w.must_open(2, export, "v", false);
        load.check(&mut w, 2, export);
        heals(&mut w, branch);
        same_everywhere(&w, branch, &[1, 2, 3]);
        w.close(2, export);
        let gone = w.until(Span::secs(8), |w| w.node(2).session(branch).is_none());
        assert!(gone, "{}", w.tail());
    }
}

#[test]
fn power_is_lost_everywhere_and_what_was_flushed_is_there() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    let mut load = Load::new(&w, 1, 1, 200);
    load.run(&mut w, Span::millis(800));
    load.drain(&mut w);
    load.waits_for(&mut w, GuestOp::Flush);
    (1..=3).for_each(|n| w.power_off(n));
    w.run(Span::millis(100));
    (1..=3).for_each(|n| w.start(n));
    w.must_open(2, 2, "v", false);
    load.check(&mut w, 2, 2);
    heals(&mut w, branch);
    same_everywhere(&w, branch, &[1, 2, 3]);
}

#[test]
fn broken_connections_cost_a_pause_and_nothing_else() {
    let (mut w, branch) = made(2);
    w.must_open(1, 1, "v", false);
    let mut load = Load::new(&w, 1, 1, 1000);
    for i in 0..12u32 {
        load.run(&mut w, Span::millis(97));
        let peer = NodeId(2 + i % 2);
        w.drop_wires(|a, b| a == peer || b == peer);
    }
    load.run(&mut w, Span::millis(500));
    load.drain(&mut w);
    assert!(load.gap < Span::millis(300), "{} ms", load.gap.as_millis());
    assert!(w.metad.healthy(branch), "nobody was dropped for a connection that came back");
    load.check(&mut w, 1, 1);
    same_everywhere(&w, branch, &[1, 2, 3]);
}

#[test]
fn a_shutdown_closes_sessions_and_drives_cleanly() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 0, &pattern(3, 65_536));
    let before = w.metad.detached_cleanly;
    w.event(1, Event::Shutdown);
    let stopped = w.until(Span::secs(10), |w| w.stopped.contains(&NodeId(1)));
    assert!(stopped, "{}", w.tail());
    assert_eq!(w.metad.detached_cleanly, before + 1);
    w.kill(1);
    w.start(1);
    w.must_open(2, 2, "v", false);
    assert_eq!(w.read(2, 2, 0, 65_536), pattern(3, 65_536));
    heals(&mut w, branch);
}

#[test]
fn exports_share_a_session_that_closes_two_seconds_after_the_last_one() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    let epoch = w.metad.volumes[&branch].epoch;
    w.must_open(1, 2, "v", false);
    assert_eq!(w.metad.volumes[&branch].epoch, epoch, "the second one joins");
    w.must_write(1, 1, 0, &[5; 4096]);
    assert_eq!(w.read(1, 2, 0, 4096), [5; 4096]);
    w.close(1, 1);
    w.run(Span::secs(3));
    assert!(w.node(1).session(branch).is_some());
    w.close(1, 2);
    w.run(Span::millis(1900));
    assert!(w.node(1).session(branch).is_some());
    let closed = w.until(Span::secs(1), |w| w.node(1).session(branch).is_none());
    assert!(closed, "{}", w.tail());
    w.run(Span::millis(10));
    assert_eq!(w.node(2).leases_granted(w.now), [], "leases are returned");
    // The next one opens at once, on another node too.
    w.must_open(2, 3, "v", false);
    assert_eq!(w.read(2, 3, 0, 4096), [5; 4096]);
}

#[test]
fn a_volume_just_disconnected_opens_on_another_node() {
    let (mut w, _) = made(1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 4096, &[6; 4096]);
    w.close(1, 1);
    w.run(Span::millis(1));
    w.must_open(2, 2, "v", false);
    assert_eq!(w.read(2, 2, 4096, 4096), [6; 4096]);
}

#[test]
fn io_goes_on_without_metad_and_an_opening_says_what_is_missing() {
    let (mut w, _) = made(1);
    w.must_open(1, 1, "v", false);
    let mut load = Load::new(&w, 1, 1, 500);
    load.run(&mut w, Span::millis(300));
    w.metad.leaderless = true;
    load.run(&mut w, Span::secs(4));
    assert!(load.gap < Span::millis(100), "{} ms", load.gap.as_millis());
    w.open(2, 2, "v", false);
    let refused = w.until(Span::secs(7), |w| w.refused.contains_key(&ExportId(2)));
    assert!(refused && w.refused[&ExportId(2)] == ExportError::NoMetad, "{:?}", w.refused);
    w.metad.leaderless = false;
    load.drain(&mut w);
    load.check(&mut w, 1, 1);
}

#[test]
fn a_session_that_is_fenced_by_no_guest_attaches_again_and_the_guest_sees_a_pause() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    let mut load = Load::new(&w, 1, 1, 500);
    for _ in 0..3 {
        load.run(&mut w, Span::millis(300));
        let v = w.metad.volumes.get_mut(&branch).unwrap();
        v.epoch = v.epoch.next().unwrap();
        let epoch = v.epoch;
        w.event(1, Event::Watch(WatchUpdate::Fenced { branch, epoch }));
    }
    load.run(&mut w, Span::millis(300));
    load.drain(&mut w);
    assert!(load.gap < Span::millis(500), "{} ms", load.gap.as_millis());
    assert_eq!(w.noticed(|n| matches!(n, Notice::SessionClosed { .. })), 4);
    load.check(&mut w, 1, 1);
}

#[test]
fn a_replica_that_hangs_is_dropped_and_heals_when_it_goes_on() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    let mut load = Load::new(&w, 1, 1, 500);
    load.run(&mut w, Span::millis(500));
    w.hosts.get_mut(&NodeId(2)).unwrap().frozen = true;
    load.run(&mut w, Span::secs(6));
    assert!(load.gap < Span::millis(3500), "{} ms", load.gap.as_millis());
    assert!(!w.metad.healthy(branch));
    w.hosts.get_mut(&NodeId(2)).unwrap().frozen = false;
    load.run(&mut w, Span::secs(1));
    load.drain(&mut w);
    heals(&mut w, branch);
    w.run(Span::secs(2));
    same_everywhere(&w, branch, &[1, 2, 3]);
    load.check(&mut w, 1, 1);
}

#[test]
fn a_verification_reads_all_replicas_and_finds_what_rotted() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    let mut load = Load::new(&w, 1, 1, 300);
    load.run(&mut w, Span::millis(400));
    load.drain(&mut w);
    let home = |w: &World| {
        let store = w.node(3).stores().next().unwrap().1;
        (0..300).find_map(|b| store.home_offset(branch, proto::ChunkIndex(0), b))
    };
    let settled = w.until(Span::secs(60), |w| home(w).is_some());
    assert!(settled, "blocks go home");
    for (request, rot) in [(1, false), (2, true)] {
        if rot {
            let offset = home(&w).unwrap();
            w.hosts.get_mut(&NodeId(3)).unwrap().media[0].rot(offset, 5);
        }
        if rot {
            // Its last client has gone: it would close while it verifies. It waits, and does not spin.
            w.close(1, 1);
            w.run(Span(CLOSE_AFTER.0 - 20_000));
        }
        let request = proto::RequestId(request);
        w.event(1, Event::Watch(WatchUpdate::Verify { branch, request }));
        let turns = w.turns;
        let done = w.until(Span::secs(10), |w| w.node(1).verify(request).is_some_and(|v| v.finished));
        assert!(done, "{}", w.tail());
        assert!(w.turns - turns < 500, "{} turns", w.turns - turns);
        let state = w.node(1).verify(request).unwrap();
        assert_eq!((state.done, state.error), (1 << 24, None));
        assert_eq!(state.differing.len(), usize::from(rot), "{state:?}");
    }
}

#[test]
fn rubbish_on_a_connection_closes_it_and_harms_nobody_else() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    let mut load = Load::new(&w, 1, 1, 200);
    let hello = |cluster: u128, to: u32| {
        let me = proto::handshake::Identity {
            cluster: proto::ClusterId(cluster),
            node: NodeId(9),
            process: proto::ProcessNumber(1),
        };
        let mut bytes = vec![];
        proto::frame::encode_hello(&mut bytes, &me.dial(NodeId(to), proto::ConnNumber(1)));
        bytes
    };
    let mut ping = vec![];
    let frame = proto::message::RequestFrame {
        token: 1,
        scope: proto::message::Scope::default(),
        request: proto::message::Request::Ping,
    };
    proto::frame::encode_request(&mut ping, &frame);
    let mut after = hello(world::CLUSTER.0, 2);
    after.extend_from_slice(&[7; 300]);
    let strangers = [vec![0; 128], pattern(3, 5000), hello(1, 2), hello(world::CLUSTER.0, 3), ping, after];
    for (i, bytes) in strangers.into_iter().enumerate() {
        load.run(&mut w, Span::millis(30));
        let link = node::LinkId(1 << 63 | 1 << 40 | i as u64);
        w.event(2, Event::Accepted { link });
        w.bytes(2, link, bytes);
        w.run(Span::millis(1));
        assert!(w.closed.contains(&(NodeId(2), link)), "stranger {i}");
    }
    load.run(&mut w, Span::millis(100));
    load.drain(&mut w);
    assert!(load.gap < Span::millis(50) && w.metad.healthy(branch));
    let refused =
        |r| move |n: &Notice| matches!(n, Notice::HandshakeRefused { refusal, .. } if *refusal == r);
    assert_eq!(w.noticed(refused(proto::Refusal::WrongCluster)), 1);
    assert_eq!(w.noticed(refused(proto::Refusal::WrongNode)), 1);
    assert_eq!(w.noticed(|n| matches!(n, Notice::BadFrame { .. })), 4);
}

#[test]
fn a_dead_holders_lease_is_waited_out_and_a_live_ones_is_returned() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 0, &[1; 4096]);
    w.run(Span::millis(1500));
    let granted = w.node(2).leases_granted(w.now);
    assert!(granted.iter().any(|l| l.node == NodeId(1) && l.branch == branch), "{granted:?}");
    let last = granted.iter().map(|l| l.time).max().unwrap();
    w.hosts.get_mut(&NodeId(1)).unwrap().frozen = true;
    w.open(2, 2, "v", true);
    let opened = w.until(Span::secs(6), |w| w.opened.contains_key(&ExportId(2)));
    assert!(opened, "{}", w.tail());
    let waited = w.now.since(last);
    assert!(waited >= proto::limits::LEASE_WAIT, "opened {} ms after the last grant", waited.as_millis());
    assert_eq!(w.read(2, 2, 0, 4096), [1; 4096]);
    // It wakes up, and serves nothing: its guest hears that it is over.
    w.hosts.get_mut(&NodeId(1)).unwrap().frozen = false;
    let gone = w.until(Span::secs(8), |w| w.broken.contains(&ExportId(1)));
    assert!(gone, "{}", w.tail());
}

#[test]
fn a_node_that_slept_while_another_guest_came_and_went_does_not_go_on() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 0, &[1; 4096]);
    w.hosts.get_mut(&NodeId(1)).unwrap().frozen = true;
    let pending = w.write(1, 1, 0, &[2; 4096]);
    w.must_open(2, 2, "v", true);
    w.must_write(2, 2, 0, &[3; 4096]);
    w.close(2, 2);
    let left = w.until(Span::secs(12), |w| w.metad.volumes[&branch].session.is_none());
    assert!(left, "{}", w.tail());
    w.hosts.get_mut(&NodeId(1)).unwrap().frozen = false;
    let gone = w.until(Span::secs(8), |w| w.broken.contains(&ExportId(1)));
    assert!(gone, "{}", w.tail());
    assert!(matches!(w.result(1, pending), Some(Err(volume::GuestError::Io))));
    // Nor does it when it asks again, or flushes.
    for op in [GuestOp::Flush, GuestOp::Read { offset: 0, len: 4096 }] {
        let t = w.ask(1, 1, op);
        assert!(matches!(w.wait(1, t, Span::secs(1)), Err(volume::GuestError::Io)));
    }
    assert!(!w.gone.contains(&ExportId(1)), "its connection stays");
    // A new start on the same node is another matter; it finds the other guest's write.
    w.must_open(1, 3, "v", false);
    assert_eq!(w.read(1, 3, 0, 4096), [3; 4096]);
}

/// One node at a time suffers; the guest goes on, or opens elsewhere; in the end all is well and nothing is missing.
fn one_thing_after_another(seed: u64, steps: u32) {
    let mut chance = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut roll = move |below: u64| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        chance % below
    };
    // A fourth node holds no replica; a session may live there too.
    let (mut w, branch) = made_among(4, 2);
    let (mut home, mut export) = (1, 1);
    w.must_open(home, export, "v", false);
    let mut load = Load::new(&w, home, export, 6000);
    for _ in 0..steps {
        load.run(&mut w, Span::millis(50 + roll(400)));
        let n = 1 + u32::try_from(roll(4)).unwrap();
        let (id, what) = (NodeId(n), roll(7));
        let pause = Span::millis(20 + roll(2500));
        match what {
            0 | 1 => {
                let power = what == 1;
                if power {
                    w.power_off(n)
                } else {
                    w.kill(n)
                };
                if n == home {
                    load.forget();
                    home = 1 + n % 4;
                    export += 1;
                    w.must_open(home, export, "v", true);
                    load.move_to(home, export);
                }
                load.run(&mut w, pause);
                w.start(n);
            }
            2 => w.drop_wires(|a, b| a == id || b == id),
            3 if n != home => {
                w.hosts.get_mut(&id).unwrap().frozen = true;
                load.run(&mut w, pause);
                w.hosts.get_mut(&id).unwrap().frozen = false;
            }
            4 => {
                w.metad.leaderless = true;
                load.run(&mut w, pause);
                w.metad.leaderless = false;
            }
            5 => {
                let other = NodeId(1 + (n + u32::try_from(roll(3)).unwrap()) % 4);
                w.cut.insert((id, other));
                load.run(&mut w, pause);
                w.mend();
            }
            _ => {
                load.forget();
                home = 1 + home % 4;
                export += 1;
                w.must_open(home, export, "v", true);
                load.move_to(home, export);
            }
        }
        heals(&mut w, branch);
    }
    load.drain(&mut w);
    w.run(Span::secs(2));
    heals(&mut w, branch);
    same_everywhere(&w, branch, &[1, 2, 3]);
    load.check(&mut w, home, export);
}

#[test]
fn nothing_is_missing_after_one_thing_after_another() {
    let seeds = std::option_env!("SEEDS").map_or(0..3, |s| {
        let (a, b) = s.split_once("..").unwrap();
        a.parse().unwrap()..b.parse().unwrap()
    });
    for seed in seeds {
        println!("seed {seed}");
        one_thing_after_another(seed, 6);
    }
}

#[test]
fn an_idle_cluster_hardly_wakes() {
    let (mut w, _) = made(1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 0, &[1; 4096]);
    w.run(Span::secs(20));
    let before = w.turns;
    w.run(Span::secs(10));
    let each = (w.turns - before) / 30;
    // Heartbeats, pings and lease renewals, their answers, and what is sent for them.
    assert!(each < 40, "{each} turns per node and second");
}

#[test]
fn an_export_that_comes_back_while_its_session_closes_waits_for_the_next_one() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 0, &[4; 4096]);
    w.close(1, 1);
    let closing = |w: &World| {
        let state = w.node(1).session(branch).map(|s| s.status().state);
        state == Some(proto::control::SessionState::Closing)
    };
    assert!(w.until(Span::secs(3), closing), "{}", w.tail());
    w.must_open(1, 2, "v", false);
    assert_eq!(w.metad.volumes[&branch].epoch, proto::Epoch(3), "made, first guest, second guest");
    assert_eq!(w.read(1, 2, 0, 4096), [4; 4096]);
}

#[test]
fn an_order_to_erase_reaches_a_drive_that_is_not_open_yet() {
    let (mut w, branch) = made(1);
    w.run(Span::secs(1));
    let held = w.node(3).stores().next().unwrap().1.replicas();
    assert_eq!(held.iter().map(|r| r.branch).collect::<Vec<_>>(), [branch]);
    w.kill(3);
    w.start(3);
    let drive = world::drive_of(3);
    let order = WatchUpdate::Delete { drive, replicas: held.clone(), index: proto::LogIndex(99) };
    w.event(3, Event::Watch(order));
    let erased = w.until(Span::secs(3), |w| w.metad.deleted == held);
    assert!(erased, "{:?} {}", w.metad.deleted, w.tail());
    assert_eq!(w.node(3).stores().next().unwrap().1.replicas(), []);
}

#[test]
fn a_keep_list_reaches_a_drive_that_is_not_open_yet_and_is_confirmed() {
    let (mut w, branch) = made(1);
    w.run(Span::secs(1));
    let list = |index, kept: &[u32]| proto::KeepList {
        branch,
        index: proto::ListIndex(index),
        placed: proto::Incarnation(u64::MAX),
        open: proto::Generation(3),
        head: proto::Generation(3),
        named: true,
        kept: kept.iter().map(|g| proto::Generation(*g)).collect(),
        behind: Vec::new(),
    };
    let drive = world::drive_of(3);
    w.kill(3);
    w.start(3);
    // Of those that wait the newest counts.
    for (index, kept) in [(8, &[1, 2][..]), (9, &[1]), (7, &[2])] {
        w.event(3, Event::Watch(WatchUpdate::Keep { drive, lists: vec![list(index, kept)] }));
    }
    let kept = |w: &World, index| w.metad.kept.contains(&(drive, branch, proto::ListIndex(index)));
    assert!(w.until(Span::secs(3), |w| kept(w, 9)), "{:?} {}", w.metad.kept, w.tail());
    let (_, store) = w.node(3).stores().next().unwrap();
    let serves = |g| store.serves(branch, proto::ChunkIndex(0), proto::Generation(g));
    assert_eq!([serves(1), serves(2)], [true, false]);
    w.event(3, Event::Watch(WatchUpdate::Keep { drive, lists: vec![list(10, &[])] }));
    assert!(w.until(Span::secs(3), |w| kept(w, 10)));
    assert!(!kept(&w, 8) && !kept(&w, 7));
}

/// State of the drive that was added under this handle.
fn drive_state(w: &World, n: u32, handle: u32) -> Option<DriveState> {
    w.node(n).drive_views().into_iter().find(|v| v.handle == handle).map(|v| v.state)
}

#[test]
fn a_drive_that_failed_is_added_again_and_is_not_believed_until_metad_confirms_it() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    let mut load = Load::new(&w, 1, 1, 500);
    load.run(&mut w, Span::millis(300));
    assert_eq!(drive_state(&w, 3, 0), Some(DriveState::Serving));
    w.break_drive(3);
    load.run(&mut w, Span::secs(4));
    assert!(load.gap < Span::secs(3), "guests go on with two");
    let [(_, failure)] = &w.failures[..] else { panic!("{:?}", w.failures) };
    assert_eq!(drive_state(&w, 3, 0), Some(DriveState::Failed(failure.clone())), "the cause is kept");
    // The same boot, and yet what was not flushed may be gone: it waits for metad.
    w.metad.leaderless = true;
    w.add_again(3, HANDLES);
    let opened = w.until(Span::secs(2), |w| drive_state(w, 3, HANDLES) != Some(DriveState::Opening));
    assert!(opened);
    load.run(&mut w, Span::secs(2));
    assert_eq!(drive_state(&w, 3, HANDLES), Some(DriveState::Confirming { refused: None }));
    assert_eq!(drive_state(&w, 3, 0), Some(DriveState::Closed));
    assert_eq!(w.node(3).drives().len(), 1, "one drive is told of once");
    w.metad.leaderless = false;
    let serves = w.until(Span::secs(3), |w| drive_state(w, 3, HANDLES) == Some(DriveState::Serving));
    assert!(serves, "{}", w.tail());
    load.run(&mut w, Span::millis(500));
    load.drain(&mut w);
    heals(&mut w, branch);
    load.check(&mut w, 1, 1);
    same_everywhere(&w, branch, &[1, 2, 3]);
}

#[test]
fn a_drive_that_cannot_be_opened_is_tried_again_in_its_own_place() {
    let mut w = World::new(3);
    w.break_drive(2);
    w.run(Span::millis(300));
    assert!(matches!(drive_state(&w, 2, 0), Some(DriveState::Failed(Failure::Io { .. }))));
    for again in 1..5 {
        w.add_again(2, again * HANDLES);
        w.hosts.get_mut(&NodeId(2)).unwrap().media[0].break_down();
        w.run(Span::millis(50));
        assert_eq!(w.node(2).drive_views().len(), 1, "tries leave nothing behind");
    }
    assert_eq!(w.failures.len(), 5);
    w.add_again(2, 5 * HANDLES);
    w.run(Span::secs(1));
    assert_eq!(drive_state(&w, 2, 5 * HANDLES), Some(DriveState::Serving));
}

#[test]
fn a_copy_of_a_drive_is_refused_beside_it_and_the_first_one_goes_on() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    let mut load = Load::new(&w, 1, 1, 300);
    load.run(&mut w, Span::millis(300));
    let media = &mut w.hosts.get_mut(&NodeId(2)).unwrap().media;
    let copy = media[0].clone();
    media.push(copy);
    w.faulty.insert(NodeId(2));
    w.add_again(2, HANDLES + 1);
    load.run(&mut w, Span::secs(1));
    assert_eq!(drive_state(&w, 2, HANDLES + 1), Some(DriveState::Failed(Failure::Twin)));
    assert_eq!(drive_state(&w, 2, 0), Some(DriveState::Serving));
    assert_eq!(w.node(2).drives().len(), 1, "metad and the peers hear of one");
    load.drain(&mut w);
    load.check(&mut w, 1, 1);
    same_everywhere(&w, branch, &[1, 2, 3]);
}

#[test]
fn a_drive_that_metad_does_not_know_says_so_once_and_a_stranger_never_serves() {
    let mut w = World::new(3);
    w.metad.refuses.insert(world::drive_of(2), MetaRefusal::UnknownDrive);
    w.metad.refuses.insert(world::drive_of(3), MetaRefusal::Stranger);
    w.run(Span::secs(20));
    let refused = Some(MetaRefusal::UnknownDrive);
    assert_eq!(drive_state(&w, 2, 0), Some(DriveState::Confirming { refused }));
    assert_eq!(drive_state(&w, 3, 0), Some(DriveState::Stranger));
    assert_eq!(w.noticed(|n| matches!(n, Notice::NotConfirmed { .. })), 1);
    assert!(!w.node(3).drives()[0].serving && !w.node(2).drives()[0].serving);
    let since = w.node(2).drive_views()[0].since;
    assert!(w.now.since(since) > Span::secs(15), "asking again is no news");
    w.metad.refuses.clear();
    w.run(Span::secs(6));
    assert_eq!(drive_state(&w, 2, 0), Some(DriveState::Serving), "it asked again");
}

#[test]
fn a_guest_that_waits_for_its_volume_is_in_the_list_with_its_reason() {
    let (mut w, _) = made(1);
    w.must_open(1, 1, "v", false);
    w.open(2, 2, "v", false);
    w.run(Span::secs(1));
    let waiting = w.node(2).seats_attaching();
    let [seat] = &waiting[..] else { panic!("{waiting:?}") };
    assert_eq!((&*seat.volume, seat.exports, seat.requests), ("v", 1, 0));
    assert!(seat.reason.contains("the volume is attached on node n1 (epoch "), "{}", seat.reason);
    assert!(w.now.since(seat.since) >= Span::millis(900));
    assert!(w.node(1).seats_attaching().is_empty());
}
