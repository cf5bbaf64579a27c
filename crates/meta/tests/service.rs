//! The service among nodes that do their part: liveness, watch, planner, views.

mod common;

use common::fleet::{Ask, BEAT, Fleet, drive};
use meta::view::{Health, WaitFor};
use meta::{
    AdminAnswer, AdminRefusal, AdminRequest, Op, Service, ServiceEffect, ServiceEvent, Setting, Token,
};
use proto::control::{MetaAnswer, MetaRefusal, MetaRequest, SessionKind, WatchUpdate};
use proto::{DriveId, Epoch, NodeId, Span, Time};

fn down_out(f: &mut Fleet, value: &str) {
    f.admin(AdminRequest::SettingSet { key: "down_out".into(), value: value.into() }).expect("in range");
}

#[test]
fn a_volume_is_made_at_once_and_leaves_nothing_running() {
    let mut f = Fleet::new(5);
    let branch = f.create("v", 100);
    let took = f.until("ready", 5, |f| f.waited("v", WaitFor::Ready));
    assert!(took <= Span::millis(500), "{took:?}");
    f.settle(5);
    let row = &f.state.branches()[&branch];
    assert_eq!((row.epoch, row.clean), (Epoch(1), true));
    let before = f.log.len();
    f.run(Span::secs(30));
    assert_eq!(f.log.len(), before, "a cluster at rest proposes nothing");
}

#[test]
fn appointments_that_are_over_do_not_count_against_a_node() {
    let mut f = Fleet::new(3);
    for i in 0..60 {
        f.create(&format!("v{i}"), 20);
        f.until("ready", 5, |f| f.waited(&format!("v{i}"), WaitFor::Ready));
    }
}

#[test]
fn too_few_nodes_are_named() {
    let mut f = Fleet::new(3);
    f.kill(3);
    f.run(Span::secs(4));
    let create = |copies| AdminRequest::VolumeCreate {
        name: "v".into(),
        size: 1 << 30,
        chunk_shift: None,
        class: meta::Class::of_copies(copies),
        prefer: None,
    };
    let few = AdminRefusal::TooFewDomains { need: 3, have: 2, nodes: 3, full: 0 };
    assert_eq!(f.admin(create(3)), Err(few));
    assert!(f.admin(create(2)).is_ok());
    let twice = f.admin(create(2));
    assert_eq!(twice.unwrap_err().code(), 1008);
}

#[test]
fn creation_goes_around_a_node_that_died_unnoticed() {
    let mut f = Fleet::new(5);
    f.kill(2);
    let branch = f.create("v", 100);
    f.until("ready", 10, |f| f.waited("v", WaitFor::Ready));
    assert_eq!(f.all_on(branch, 2), 0);
    f.until("healthy", 10, |f| f.waited("v", WaitFor::Healthy));
}

#[test]
fn a_silent_node_is_down_after_its_time_and_up_when_heard() {
    let mut f = Fleet::new(3);
    f.kill(2);
    let took = f.until("down", 5, |f| f.state.node_down(NodeId(2)));
    assert!(took <= Span::millis(2600), "{took:?}");
    assert!(took >= Span::millis(1500), "{took:?}: one heartbeat more or less");
    f.start(2);
    let took = f.until("up", 5, |f| !f.state.node_down(NodeId(2)));
    assert!(took <= Span::secs(1), "{took:?}");
}

#[test]
fn a_new_leader_calls_nobody_dead_before_a_period_of_its_own() {
    let mut f = Fleet::new(3);
    f.run(Span::secs(5));
    f.kill(3);
    f.run(Span::millis(1500));
    f.event(ServiceEvent::LostLeader);
    f.event(ServiceEvent::BecameLeader);
    f.run(Span::millis(1500));
    assert!(!f.state.node_down(NodeId(3)), "silent for 3 s, but not towards this leader");
    f.until("down", 2, |f| f.state.node_down(NodeId(3)));
}

#[test]
fn a_leader_that_was_stopped_calls_nobody_dead_for_it() {
    let mut f = Fleet::new(3);
    f.now = f.now + Span::secs(60);
    f.event(ServiceEvent::Wake);
    f.run(Span::secs(1));
    assert!(f.state.nodes().values().all(|n| n.down.is_none()));
}

#[test]
fn an_isolated_node_is_down_though_it_is_heard() {
    let mut f = Fleet::new(5);
    f.nodes.get_mut(&NodeId(1)).unwrap().cut = [3, 4, 5].map(NodeId).into();
    f.run(Span::secs(1));
    assert!(!f.state.node_down(NodeId(1)), "for a moment, it does not matter");
    f.until("down", 4, |f| f.state.node_down(NodeId(1)));
    f.run(Span::secs(3));
    assert!(f.state.node_down(NodeId(1)), "and stays so, though it is heard");
    assert!((2..=5).all(|n| !f.state.node_down(NodeId(n))), "those that miss one peer are not");
    f.nodes.get_mut(&NodeId(1)).unwrap().cut.clear();
    f.until("up", 2, |f| !f.state.node_down(NodeId(1)));
}

#[test]
fn a_failed_drive_is_down_and_comes_back() {
    let mut f = Fleet::new(3);
    f.nodes.get_mut(&NodeId(2)).unwrap().failed = true;
    f.until("down", 1, |f| f.state.drives_down() == vec![drive(2)]);
    assert!(!f.state.node_down(NodeId(2)));
    f.nodes.get_mut(&NodeId(2)).unwrap().failed = false;
    f.until("up", 1, |f| f.state.drives_down().is_empty());
}

#[test]
fn an_attach_waits_until_nobody_hears_the_holder() {
    let mut f = Fleet::new(5);
    let branch = f.ready("v", 16);
    f.guest(1, branch);
    let held = |live| {
        let (node, name) = (NodeId(1), "node-1".into());
        Some(MetaRefusal::Held { node, name, epoch: Epoch(2), live })
    };
    assert_eq!(f.try_guest(2, branch), held(true));
    f.kill(1);
    assert_eq!(f.try_guest(2, branch), held(true), "not known yet");
    let took = f.until("down", 5, |f| f.state.node_down(NodeId(1)));
    assert!(took < Span::secs(3));
    assert_eq!(f.try_guest(2, branch), None);
    assert_eq!(f.state.branches()[&branch].epoch, Epoch(3));
}

#[test]
fn a_holder_that_only_metad_does_not_hear_is_not_displaced() {
    let mut f = Fleet::new(5);
    let branch = f.ready("v", 16);
    f.guest(1, branch);
    // Its heartbeats are lost; its peers reach it. They are what `reaches` is made of.
    f.until("down", 10, |f| {
        let _ = f;
        true
    });
    let others: Vec<NodeId> = (2..=5).map(NodeId).collect();
    for _ in 0..8 {
        f.now = f.now + BEAT;
        for id in &others {
            let mut reaches = others.clone();
            reaches.push(NodeId(1));
            let request = MetaRequest::Heartbeat {
                node: *id,
                process: proto::ProcessNumber(1),
                drives: vec![],
                reaches,
                sessions: vec![],
            };
            f.ask(*id, common::fleet::Ask::Other, request);
        }
        f.event(ServiceEvent::Wake);
    }
    assert!(f.state.node_down(NodeId(1)));
    assert!(matches!(f.try_guest(2, branch), Some(MetaRefusal::Held { live: false, .. })));
}

#[test]
fn a_session_that_its_node_does_not_know_is_released() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 16);
    f.guest(1, branch);
    f.run(Span::secs(15));
    assert_eq!(f.state.branches()[&branch].epoch, Epoch(2), "named in heartbeats, it stays");
    f.nodes.get_mut(&NodeId(1)).unwrap().sessions.clear();
    f.run(Span::secs(8));
    assert!(f.state.branches()[&branch].session.is_some(), "an answer may be on its way");
    f.until("released", 5, |f| f.state.branches()[&branch].session.is_none());
    assert_eq!(f.try_guest(2, branch), None);
}

#[test]
fn a_session_that_has_none_in_raft_is_told_so() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 16);
    f.guest(1, branch);
    let epoch = f.state.branches()[&branch].epoch;
    // Somebody has given its epoch back.
    f.ask(NodeId(1), Ask::Other, MetaRequest::Detach { branch, epoch, clean: false });
    assert!(f.state.branches()[&branch].session.is_none());
    assert!(f.nodes[&NodeId(1)].sessions.contains_key(&branch), "it has not heard of it");
    f.run(Span::secs(2));
    assert!(f.nodes[&NodeId(1)].sessions.is_empty(), "told with its next heartbeat");
}

#[test]
fn a_fenced_session_is_told_so() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 16);
    f.guest(1, branch);
    f.attach(2, branch, SessionKind::Guest, true);
    assert!(f.nodes[&NodeId(1)].sessions.is_empty(), "by the watch");
    assert!(f.nodes[&NodeId(2)].sessions.contains_key(&branch));
}

#[test]
fn a_node_that_comes_back_in_time_is_only_resynced() {
    let mut f = Fleet::new(5);
    let (held, idle) = (f.ready("held", 200), f.ready("idle", 200));
    // Two sets of three among five nodes have one in common.
    let holds = |f: &Fleet, n: u32| (f.all_on(held, n), f.all_on(idle, n));
    let n = (1..=5).find(|n| holds(&f, *n).0 > 0 && holds(&f, *n).1 > 0).unwrap();
    f.guest(n % 5 + 1, held);
    let before = holds(&f, n);
    f.kill(n);
    f.run(Span::secs(5));
    assert!(!f.waited("held", WaitFor::Healthy) && !f.waited("idle", WaitFor::Healthy));
    let shown = f.show("held");
    assert_eq!(
        (shown.state.as_str(), shown.least_in_sync, shown.resync_seconds()),
        ("degraded", 2, Some(1024))
    );
    assert_eq!((shown.faults[0].node, shown.faults[0].chunks as usize), (NodeId(n), before.0));
    assert!(shown.faults[0].action.contains("unless it returns"), "{}", shown.faults[0].action);
    f.run(Span::secs(60));
    f.start(n);
    f.until("healthy", 30, |f| f.waited("held", WaitFor::Healthy) && f.waited("idle", WaitFor::Healthy));
    assert_eq!(holds(&f, n), before, "nothing was moved");
    assert!(!f.log.iter().any(|op| matches!(op, Op::Place { .. })));
    f.settle(20);
}

#[test]
fn a_whole_volume_has_nothing_left_to_resync_whatever_its_session_said_before() {
    let mut f = Fleet::new(5);
    let branch = f.ready("v", 4);
    f.guest(1, branch);
    f.run(Span::secs(2));
    assert_eq!(f.show("v").resync_left, 0);
    f.kill(2);
    f.kill(3);
    f.until("degraded", 5, |f| f.state.branches()[&branch].unwell_since.is_some());
    f.run(Span::secs(1));
    assert_eq!(f.show("v").resync_left, 1 << 20);
    f.start(2);
    f.start(3);
    f.until("healthy", 60, |f| f.waited("v", WaitFor::Healthy));
    let v = f.show("v");
    assert_eq!((v.resync_left, v.resync_rate), (0, 0));
    f.moved += 3;
    f.run(Span::secs(1));
    assert_eq!(f.show("v").resync_moved, 3, "of the last fault");
}

#[test]
fn a_node_gone_for_good_is_placed_around() {
    let mut f = Fleet::new(7);
    down_out(&mut f, "20s");
    let (held, idle) = (f.ready("held", 1000), f.ready("idle", 1000));
    f.guest(1, held);
    f.kill(3);
    f.run(Span::secs(19));
    assert!(f.all_on(held, 3) > 0 && !f.log.iter().any(|op| matches!(op, Op::Place { .. })), "not yet");
    f.until("healthy", 90, |f| f.waited("held", WaitFor::Healthy) && f.waited("idle", WaitFor::Healthy));
    f.until("empty", 20, |f| f.all_on(held, 3) + f.all_on(idle, 3) == 0);
    f.settle(20);
    for branch in [held, idle] {
        for (_, c) in f.state.chunks(branch).unwrap().iter() {
            assert_eq!((c.members.len(), c.in_sync_count()), (3, 3));
        }
    }
    assert!(f.state.branches()[&held].guest().is_some(), "the guest was not disturbed");
    assert_eq!(f.state.branches()[&held].epoch, Epoch(2));
    // It comes back after all: what lies there is erased.
    assert!(!f.state.garbage(drive(3), 1).is_empty());
    f.start(3);
    f.until("erased", 20, |f| f.state.garbage(drive(3), 1).is_empty());
    assert!(f.nodes[&NodeId(3)].erased > 0);
}

/// Members of the only chunk on nodes that are up, and all of them.
fn members(f: &Fleet, branch: proto::BranchId) -> (Vec<NodeId>, usize) {
    let c = f.state.configuration(branch, proto::ChunkIndex(0)).expect("the volume has a chunk");
    let up = c.members.iter().map(|m| m.place.node).filter(|n| f.nodes[n].up).collect();
    (up, c.members.len())
}

#[test]
fn healing_goes_on_though_one_target_after_another_dies() {
    let mut f = Fleet::new(12);
    down_out(&mut f, "20s");
    let branch = f.ready("v", 16);
    let first: Vec<NodeId> = members(&f, branch).0;
    f.guest(first[0].0, branch);
    f.lame = true;
    f.kill(first[2].0);
    let mut dead = vec![first[2]];
    // Two targets may be added to what there is; then one has to go for each.
    for _ in 0..3 {
        let placed =
            |f: &Fleet| members(f, branch).0.into_iter().find(|n| !first.contains(n) && !dead.contains(n));
        f.until("placed", 90, |f| placed(f).is_some());
        let target = placed(&f).unwrap();
        f.kill(target.0);
        dead.push(target);
    }
    f.lame = false;
    f.until("healthy", 90, |f| f.waited("v", WaitFor::Healthy));
    f.until("pruned", 10, |f| members(f, branch).1 == 3);
}

#[test]
fn a_replica_that_its_full_drive_cannot_take_is_placed_elsewhere() {
    let mut f = Fleet::new(4);
    let branch = f.ready("v", 16);
    let first: Vec<NodeId> = members(&f, branch).0;
    f.guest(first[0].0, branch);
    f.kill(first[2].0);
    f.run(Span::secs(5));
    f.used.insert(first[2], 1 << 40);
    f.start(first[2].0);
    f.until("healthy", 30, |f| f.waited("v", WaitFor::Healthy));
    f.until("pruned", 10, |f| members(f, branch).1 == 3);
    assert!(!members(&f, branch).0.contains(&first[2]));
}

#[test]
fn a_dead_guests_volume_is_healed_without_it() {
    let mut f = Fleet::new(5);
    down_out(&mut f, "20s");
    let branch = f.ready("v", 400);
    f.guest(2, branch);
    f.kill(2);
    f.until("down", 4, |f| f.state.node_down(NodeId(2)));
    f.until("healthy", 60, |f| f.waited("v", WaitFor::Healthy));
    f.settle(20);
    assert_eq!(f.all_on(branch, 2), 0);
    assert_eq!(f.try_guest(4, branch), None);
}

#[test]
fn a_drained_node_is_emptied_without_losing_a_copy() {
    let mut f = Fleet::new(5);
    let branch = f.ready("v", 500);
    let n = (1..=5).rev().find(|n| f.all_on(branch, *n) > 0).unwrap();
    f.guest(n % 5 + 1, branch);
    f.admin(AdminRequest::NodeDrain { node: format!("node-{n}"), drain: true }).unwrap();
    for _ in 0..600 {
        f.run(Span::millis(100));
        let least = f.state.chunks(branch).unwrap().iter().map(|(_, c)| c.in_sync_count()).min();
        assert!(least >= Some(3), "no chunk is ever with fewer: {least:?}");
        if f.all_on(branch, n) == 0 {
            break;
        }
    }
    assert_eq!(f.all_on(branch, n), 0);
    f.kill(n);
    f.run(Span::secs(4));
    let removed = f.admin(AdminRequest::NodeRemove { node: format!("node-{n}") });
    assert_eq!(removed, Ok(AdminAnswer::Done));
}

#[test]
fn where_there_is_no_other_node_nothing_is_started() {
    let mut f = Fleet::new(3);
    down_out(&mut f, "20s");
    let branch = f.ready("v", 100);
    f.kill(3);
    f.run(Span::secs(60));
    let row = &f.state.branches()[&branch];
    assert!(row.appointed.is_none(), "a session could do nothing");
    assert_eq!(f.state.chunks(branch).unwrap().iter().map(|(_, c)| c.members.len()).max(), Some(3));
    let before = f.log.len();
    f.run(Span::secs(60));
    assert_eq!(f.log.len(), before);
    f.start(3);
    f.until("healthy", 10, |f| f.waited("v", WaitFor::Healthy));
}

#[test]
fn a_mass_failure_starts_no_healing() {
    let mut f = Fleet::new(6);
    down_out(&mut f, "20s");
    let branch = f.ready("v", 300);
    for n in [4, 5, 6] {
        f.kill(n);
    }
    f.run(Span::secs(90));
    assert!(!f.log.iter().any(|op| matches!(op, Op::Place { .. })));
    let Ok(AdminAnswer::Cluster(status)) = f.admin(AdminRequest::ClusterStatus) else { panic!() };
    assert!(status.checks.iter().any(|c| c.action.contains("healing rests")), "{status:?}");
    for n in [4, 5, 6] {
        f.start(n);
    }
    f.until("healthy", 30, |f| f.waited("v", WaitFor::Healthy));
    assert_eq!(f.state.chunks(branch).unwrap().iter().map(|(_, c)| c.members.len()).max(), Some(3));
}

#[test]
fn a_volume_grows_while_detached() {
    let mut f = Fleet::new(5);
    let branch = f.ready("v", 100);
    let grow = |mib: u64| AdminRequest::VolumeResize { name: "v".into(), size: mib << 20, shrink: None };
    assert_eq!(f.admin(grow(50)).unwrap_err().code(), 1205);
    assert_eq!(f.admin(grow(300)), Ok(AdminAnswer::Done));
    f.until("ready", 10, |f| f.waited("v", WaitFor::Ready));
    assert_eq!(f.state.chunks(branch).unwrap().count(), 19);
    f.settle(10);
    f.guest(1, branch);
}

#[test]
fn a_volume_grows_in_use_and_the_session_is_told_until_it_knows() {
    let mut f = Fleet::new(5);
    let branch = f.ready("v", 100);
    f.guest(1, branch);
    let epoch = f.state.branches()[&branch].epoch;
    f.lists_lost = true;
    let grow = AdminRequest::VolumeResize { name: "v".into(), size: 300 << 20, shrink: None };
    assert_eq!(f.admin(grow), Ok(AdminAnswer::Done));
    f.run(Span::secs(3));
    assert!(!f.waited("v", WaitFor::Ready), "nobody has heard of it");
    f.lists_lost = false;
    f.until("ready", 10, |f| f.waited("v", WaitFor::Ready));
    assert_eq!(f.state.branches()[&branch].epoch, epoch, "the same session");
    assert_eq!(f.state.chunks(branch).unwrap().count(), 19);
    f.settle(10);
}

#[test]
fn another_number_of_copies_is_made_so() {
    let mut f = Fleet::new(5);
    let branch = f.ready("v", 100);
    let set = |copies| AdminRequest::VolumeClass { name: "v".into(), class: meta::Class::of_copies(copies) };
    for copies in [4u8, 2] {
        f.admin(set(copies)).unwrap();
        f.until("as many", 60, |f| {
            f.state.chunks(branch).unwrap().iter().all(|(_, c)| c.members.len() == usize::from(copies))
        });
        f.settle(20);
        assert!(f.waited("v", WaitFor::Healthy));
    }
}

#[test]
fn the_verdict_says_what_is_wrong() {
    let mut f = Fleet::new(4);
    f.ready("v", 100);
    let status = |f: &mut Fleet| match f.admin(AdminRequest::ClusterStatus) {
        Ok(AdminAnswer::Cluster(c)) => *c,
        other => panic!("{other:?}"),
    };
    let s = status(&mut f);
    assert_eq!((s.health, s.survives_one_node, s.checks.len()), (Health::Ok, true, 0), "{s:?}");
    f.kill(1);
    f.run(Span::secs(4));
    let s = status(&mut f);
    let codes: Vec<&str> = s.checks.iter().map(|c| c.code.as_str()).collect();
    assert_eq!((s.health, s.survives_one_node), (Health::Warn, false), "one more, and writes wait");
    assert_eq!(codes, ["VOLUME_DEGRADED", "NODE_DOWN"]);
    f.kill(2);
    f.run(Span::secs(4));
    let s = status(&mut f);
    assert_eq!((s.health, s.nodes_up), (Health::Err, 2));
    assert!(s.checks.iter().any(|c| c.code == "VOLUME_BELOW_MIN"), "{s:?}");
    let Ok(AdminAnswer::Nodes(nodes)) = f.admin(AdminRequest::NodeList) else { panic!() };
    assert_eq!(nodes.iter().map(|n| n.up).collect::<Vec<_>>(), [false, false, true, true]);
    let Ok(AdminAnswer::Drives(drives)) = f.admin(AdminRequest::DriveList) else { panic!() };
    assert_eq!(drives[0].state, "down");
    let Ok(AdminAnswer::Events(events)) = f.admin(AdminRequest::Events { after: 0, limit: 3 }) else {
        panic!()
    };
    assert_eq!(events.len(), 3);
    assert_eq!(events[2].kind, "NodeDown");
    let wait = |name: &str, state| AdminRequest::VolumeWait { name: name.into(), state };
    assert_eq!(f.admin(wait("v", WaitFor::Healthy)), Ok(AdminAnswer::Waited(false)));
    assert_eq!(f.admin(wait("v", WaitFor::Detached)), Ok(AdminAnswer::Waited(true)));
    assert_eq!(f.admin(wait("w", WaitFor::Deleted)), Ok(AdminAnswer::Waited(true)));
    assert_eq!(f.admin(wait("w", WaitFor::Ready)).unwrap_err().exit(), 3);
}

#[test]
fn healing_is_promised_only_where_another_node_has_room() {
    let action = |f: &mut Fleet, code: &str| match f.admin(AdminRequest::ClusterStatus) {
        Ok(AdminAnswer::Cluster(c)) => c.checks.iter().find(|c| c.code == code).unwrap().action.clone(),
        other => panic!("{other:?}"),
    };
    let without = "no other node has room: add one, or start node-2";
    let mut f = Fleet::new(3);
    f.ready("v", 100);
    f.kill(2);
    f.run(Span::secs(4));
    assert_eq!(action(&mut f, "NODE_DOWN"), without);
    assert_eq!(
        action(&mut f, "VOLUME_DEGRADED"),
        "no other node has room: add one, or start what is down",
        "three copies on three nodes"
    );
    assert_eq!(f.show("v").faults[0].action, without);
    // A node without replicas is missed by nobody.
    f.add(4);
    f.run(Span::secs(2));
    let promise = action(&mut f, "NODE_DOWN");
    assert!(promise.starts_with("its replicas are placed anew in "), "{promise}");
    let fault = f.show("v").faults[0].action.clone();
    assert!(fault.starts_with("placed anew on other nodes in "), "{fault}");
    // The promise is kept.
    down_out(&mut f, "5s");
    f.until("healed", 60, |f| f.waited("v", WaitFor::Healthy));
    assert_eq!(action(&mut f, "NODE_DOWN"), "nothing on it is missing elsewhere: start it, or remove it");
}

#[test]
fn a_watcher_hears_everything_from_the_start_and_then_changes() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 16);
    f.guest(1, branch);
    f.kill(3);
    f.run(Span::secs(4));
    let node = NodeId(1);
    f.nodes.get_mut(&node).unwrap().heard.clear();
    f.event(ServiceEvent::WatchOpened { node, process: proto::ProcessNumber(1) });
    let heard = &f.nodes[&node].heard;
    let WatchUpdate::Nodes(nodes) = &heard[0] else { panic!("{heard:?}") };
    assert_eq!(nodes.iter().map(|n| n.up).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(heard[1], WatchUpdate::Down(vec![drive(3)]));
    assert_eq!(heard[2], WatchUpdate::Appointed(vec![]));
    let WatchUpdate::ChunksChanged { branch: b, chunks } = &heard[3] else { panic!("{heard:?}") };
    assert_eq!((*b, chunks.len()), (branch, 1));
    f.nodes.get_mut(&node).unwrap().heard.clear();
    f.start(3);
    f.event(ServiceEvent::Wake);
    f.run(Span::millis(500));
    f.until("told", 3, |f| f.state.drives_down().is_empty() && !f.nodes[&NodeId(1)].sessions.is_empty());
}

#[test]
fn who_is_not_the_leader_decides_nothing() {
    let f = Fleet::new(3);
    let mut follower = Service::new();
    let mut ask = |event| {
        follower.handle(Time(1), 1, &f.state, event);
        let effect = follower.poll();
        assert_eq!(follower.poll(), None);
        effect
    };
    let token = Token(4);
    let request = MetaRequest::Volumes { name: None };
    let answer = ask(ServiceEvent::Node { from: NodeId(1), token, request });
    assert_eq!(answer, Some(ServiceEffect::AnswerNode { token, answer: MetaAnswer::Unavailable }));
    let answer = ask(ServiceEvent::Admin { token, id: None, request: AdminRequest::NodeList });
    assert_eq!(answer, Some(ServiceEffect::AnswerAdmin { token, answer: None }));
    assert_eq!(ask(ServiceEvent::StateChanged), None);
    assert_eq!(follower.next_wake(), Time::FAR);
}

#[test]
fn a_lost_proposal_is_answered_and_tried_again() {
    let mut f = Fleet::new(3);
    f.no_quorum = true;
    let set = AdminRequest::SettingSet { key: "down_out".into(), value: "30s".into() };
    assert_eq!(f.admin(set.clone()), Err(AdminRefusal::OutcomeUnknown));
    f.kill(3);
    f.run(Span::secs(4));
    assert!(!f.state.node_down(NodeId(3)));
    f.no_quorum = false;
    f.run(Span::secs(1));
    assert!(f.state.node_down(NodeId(3)), "liveness proposes again");
    assert!(f.admin(set).is_ok());
    assert_eq!(f.state.settings().all()[0], Setting::DownOut(30_000));
}

#[test]
fn an_order_to_verify_goes_to_a_session() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 16);
    let verify = || AdminRequest::VolumeVerify { name: "v".into(), request: proto::RequestId(5) };
    assert_eq!(f.admin(verify()).unwrap_err().code(), 1204, "a session is appointed first");
    f.until("a session", 5, |f| f.state.branches()[&branch].session.is_some());
    let Ok(AdminAnswer::Verifying { node }) = f.admin(verify()) else { panic!() };
    let order = WatchUpdate::Verify { branch, request: proto::RequestId(5) };
    assert!(f.nodes[&node].heard.contains(&order));
    f.settle(90);
}

#[test]
fn deleting_a_volume_erases_its_replicas() {
    let mut f = Fleet::new(4);
    f.ready("v", 300);
    assert_eq!(
        f.admin(AdminRequest::VolumeDelete {
            name: "v".into(),
            force: None,
            with_snapshots: false,
            now: true,
            despite_clones: false
        }),
        Ok(AdminAnswer::Done)
    );
    f.until("erased", 10, |f| (1..=4).all(|n| f.state.garbage(drive(n), 1).is_empty()));
    assert_eq!(f.nodes.values().map(|n| n.erased).sum::<usize>(), 19 * 3);
    assert!(f.state.drives().keys().all(|d: &DriveId| f.state.replicas_on(*d) == 0));
}
