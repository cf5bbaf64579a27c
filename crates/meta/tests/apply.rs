//! Exact answers per command, and per refusal.

mod common;

use common::*;
use meta::command::{PlaceItem, Plan, PruneItem, Replacement};
use meta::event::EventKind;
use meta::model::DownCause;
use meta::refusal::Noun;
use meta::{AdminAnswer, AdminRefusal, Answer, Class, Command, DecodeError, Op, Phase, Setting};
use proto::MemberState::{InSync, Leaving, Stale};
use proto::control::{ChangeCause, ChunkChange, HeldReplica, MetaAnswer, MetaRefusal, SessionKind};
use proto::limits::EPOCH_COUNTER_MAX;
use proto::{
    BranchId, ChunkIndex, ClusterId, ConfigNumber, Configuration, DriveId, Epoch, Incarnation, NodeId,
    OpenId, ProcessNumber, VolumeId,
};

fn propose(w: &mut World, branch: BranchId, epoch: Epoch, changes: Vec<ChunkChange>) -> Configuration {
    match w.node(Op::Propose { branch, epoch, changes }) {
        MetaAnswer::Configurations { chunks, .. } => chunks[0].1.clone(),
        other => panic!("{other:?}"),
    }
}

fn replica(branch: BranchId, chunk: u32, incarnation: u64) -> HeldReplica {
    HeldReplica { branch, chunk: ChunkIndex(chunk), incarnation: Incarnation(incarnation) }
}

#[test]
fn an_unknown_command_is_an_error_and_never_skipped() {
    let good = Command { at_ms: 1, request: None, op: Op::NodeRemove { node: NodeId(1) } }.encode();
    assert!(Command::decode(&good).is_ok());
    assert_eq!(Command::decode(&[]), Err(DecodeError::Empty));
    let newer = meta::command::COMMAND_FORMAT + 1;
    assert_eq!(Command::decode(&[newer, 0, 0]), Err(DecodeError::Format(newer)));
    assert_eq!(good[0], 1, "in the oldest format that has it");
    assert!(matches!(Command::decode(&[1, 0, 0, 250, 1]), Err(DecodeError::Malformed(_))));
    assert!(matches!(Command::decode(&good[..good.len() - 1]), Err(DecodeError::Malformed(_))));
    let long = [good, vec![0]].concat();
    assert_eq!(Command::decode(&long), Err(DecodeError::Trailing(1)));
}

#[test]
fn a_cluster_is_made_once() {
    let mut w = World::default();
    let init = Op::ClusterInit { cluster: ClusterId(5), name: "c".into(), token: "t".into() };
    let node = Op::NodeAdd {
        name: "a".into(),
        zone: String::new(),
        address: "x:1".into(),
        identity: 1,
        token: None,
    };
    assert_eq!(w.admin(node), Err(AdminRefusal::NoCluster));
    let made = AdminAnswer::ClusterCreated { cluster: ClusterId(5), token: "t".into() };
    assert_eq!(w.admin(init.clone()), Ok(made));
    assert_eq!(w.admin(init), Err(AdminRefusal::ClusterExists { name: "c".into() }));
    assert_eq!(w.admin(Op::SettingSet { setting: Setting::DownOut(20_000) }), Ok(AdminAnswer::Done));
    assert_eq!(w.state.settings().down_out_ms, 20_000);
}

#[test]
fn a_node_joins_with_the_token_and_is_known_by_its_identity() {
    let mut w = World::with_nodes(1);
    let join = |name: &str, identity, token: &str| Op::NodeAdd {
        name: name.into(),
        zone: "z1".into(),
        address: "10.9.9.9:1".into(),
        identity,
        token: Some(token.into()),
    };
    assert_eq!(w.admin(join("b", 2, "wrong")), Err(AdminRefusal::BadToken));
    let b = AdminAnswer::NodeAdded { node: NodeId(2), cluster: ClusterId(77) };
    assert_eq!(w.admin(join("b", 2, "secret")), Ok(b.clone()));
    assert_eq!(w.admin(join("b", 2, "secret")), Ok(b), "the same node again");
    let exists = AdminRefusal::Exists { noun: Noun::Node, name: "b".into() };
    assert_eq!(w.admin(join("b", 3, "secret")), Err(exists), "another one under its name");
    assert_eq!(w.admin(join("node-1", 1, "secret")).map(|_| ()), Ok(()));
    assert_eq!(w.state.nodes()[&NodeId(1)].address, "10.9.9.9:1", "it comes with its new address");
    assert!(w.state.node_down(NodeId(2)), "and is up when it is heard");
}

#[test]
fn a_node_belongs_to_the_state_directory_that_registered_first() {
    let mut w = World::with_nodes(1);
    let add = |name: &str| Op::NodeAdd {
        name: name.into(),
        zone: String::new(),
        address: "127.0.0.1:0".into(),
        identity: 0,
        token: None,
    };
    let node = NodeId(2);
    let register = |identity, address: &str, process| Op::NodeRegister {
        node,
        zone: String::new(),
        address: address.into(),
        identity,
        process: ProcessNumber(process),
    };
    let known = AdminAnswer::NodeAdded { node, cluster: ClusterId(77) };
    assert_eq!(
        w.admin(register(5, "a:1", 1)),
        Err(AdminRefusal::NotFound { noun: Noun::Node, name: "n2".into() })
    );
    assert_eq!(w.admin(add("b")), Ok(known.clone()));
    let exists = AdminRefusal::Exists { noun: Noun::Node, name: "b".into() };
    assert_eq!(w.admin(add("b")), Err(exists), "nobody's identity is no identity");
    assert_eq!(w.admin(register(5, "a:1", 1)), Ok(known.clone()), "the first one owns it");
    w.up(2, 1);
    assert_eq!(w.admin(register(5, "a:2", 2)), Ok(known.clone()), "and may move");
    let other = |up| AdminRefusal::OtherProcess {
        name: "b".into(),
        node,
        known: "a:2".into(),
        address: "c:1".into(),
        up,
    };
    assert_eq!(w.admin(register(6, "c:1", 1)), Err(other(true)));
    assert!(other(true).what().contains("c:1") && other(true).what().contains("a:2"), "both addresses");
    assert_eq!(w.state.nodes()[&node].address, "a:2", "and nothing is changed");
    w.down(2);
    assert_eq!(w.admin(register(6, "c:1", 9)), Err(other(false)), "nor when the first one is down");
    assert_eq!(
        w.admin(register(6, "a:2", 1)).map(drop).map_err(|r| r.code()),
        Err(1107),
        "counts from 1 again"
    );
    assert_eq!(w.admin(register(7, "a:2", 2)), Ok(known), "the same folder, of a time without identities");
    w.up(2, 2);
    let late = w.admin(register(7, "a:1", 1));
    assert_eq!(late.map(drop).map_err(|r| r.code()), Err(1107), "a process that was replaced");
    assert_eq!(w.state.nodes()[&node].identity, 7);
}

#[test]
fn a_node_is_removed_when_it_is_down_and_empty() {
    let mut w = World::with_nodes(4);
    let (volume, _) = w.volume("v", MIB, &[1, 2, 3]);
    let remove = |n| Op::NodeRemove { node: NodeId(n) };
    let holds = AdminRefusal::HoldsReplicas { noun: Noun::Node, name: "node-1".into(), replicas: 1 };
    assert_eq!(w.admin(remove(1)), Err(holds));
    assert_eq!(w.admin(remove(4)), Err(AdminRefusal::NodeUp { name: "node-4".into() }));
    w.down(4);
    assert_eq!(w.admin(remove(4)), Ok(AdminAnswer::Done));
    assert_eq!(w.admin(remove(4)), Err(AdminRefusal::NotFound { noun: Noun::Node, name: "n4".into() }));
    assert!(!w.state.drives().contains_key(&drive_of(4)), "with its drives");
    assert_eq!(
        w.admin(Op::VolumeDelete { volume, force: None, with_snapshots: false }),
        Ok(AdminAnswer::Done)
    );
    w.down(1);
    assert_eq!(w.admin(remove(1)), Ok(AdminAnswer::Done), "what is to be erased does not hold it up");
    assert!(w.state.garbage(drive_of(1), 10).is_empty());
}

#[test]
fn up_and_down_name_the_change_that_they_saw() {
    let mut w = World::with_nodes(1);
    let node = NodeId(1);
    let seen = w.state.nodes()[&node].changes;
    let down = Op::NodeDown { node, seen, cause: DownCause::Silent };
    assert!(w.own(down.clone()));
    assert!(!w.own(down.clone()), "twice");
    assert!(w.state.drive_down(drive_of(1)) && w.state.drives_down() == vec![drive_of(1)]);
    w.up(1, 1);
    assert!(!w.own(down), "late");
    assert!(!w.state.node_down(node));
    let seen = w.state.nodes()[&node].changes;
    assert!(!w.own(Op::NodeUp { node, seen, process: ProcessNumber(1) }), "nothing new");
    assert!(w.own(Op::NodeUp { node, seen, process: ProcessNumber(2) }), "another process");
    let seen = w.state.nodes()[&node].changes;
    assert!(!w.own(Op::NodeUp { node, seen, process: ProcessNumber(1) }), "an older one");

    let (drive, seen) = (drive_of(1), w.state.drives()[&drive_of(1)].changes);
    assert!(w.own(Op::DriveDown { drive, seen }));
    assert!(w.state.drive_down(drive));
    assert!(!w.own(Op::DriveUp { drive, seen }), "computed from before");
    assert!(w.own(Op::DriveUp { drive, seen: seen + 1 }));
    assert!(!w.own(Op::DriveDown { drive, seen }), "late");
    assert!(!w.state.drive_down(drive));
}

#[test]
fn a_drive_serves_when_its_openings_match() {
    let mut w = World::with_nodes(1);
    let (drive, confirmed) = (drive_of(1), MetaAnswer::DriveConfirmed { drive: drive_of(1) });
    assert_eq!(w.opened(1, &[1, 20]), confirmed);
    assert_eq!(w.opened(1, &[1, 20, 30]), confirmed);
    assert_eq!(w.opened(1, &[1, 20]), confirmed, "a late double of an older opening changes nothing");
    assert_eq!(w.state.drives()[&drive].openings.last(), Some(&OpenId(30)));
    assert_eq!(w.opened(1, &[20, 30, 31, 32]), confirmed, "an opening whose answer was lost");
    assert_eq!(w.opened(1, &[1, 20, 99]), MetaAnswer::Refused(MetaRefusal::Stranger), "rolled back");
    assert_eq!(w.opened(1, &[1, 20, 30, 31, 32, 33]), MetaAnswer::Refused(MetaRefusal::Stranger), "for good");
    let other = Op::DriveOpened {
        node: NodeId(1),
        drive: DriveId(9),
        openings: vec![OpenId(1)],
        capacity: 1,
        path: String::new(),
        orphans: vec![],
        unknown: 0,
    };
    assert_eq!(w.node(other), MetaAnswer::Refused(MetaRefusal::UnknownDrive));
}

#[test]
fn a_drive_belongs_to_one_node() {
    let mut w = World::with_nodes(2);
    let add = |node| Op::DriveAdd { node: NodeId(node), drive: drive_of(1), capacity: 1, path: "p".into() };
    assert_eq!(w.admin(add(1)), Ok(AdminAnswer::Done), "again");
    let other = AdminRefusal::OtherNode { drive: drive_of(1), node: NodeId(1), name: "node-1".into() };
    assert_eq!(w.admin(add(2)), Err(other));
    let missing = AdminRefusal::NotFound { noun: Noun::Node, name: "n9".into() };
    assert_eq!(w.admin(add(9)), Err(missing));
}

#[test]
fn a_strangers_replicas_are_stale_wherever_another_is_in_sync() {
    let mut w = World::with_nodes(3);
    let (_, branch) = w.volume("v", 32 * MIB, &[1, 2, 3]);
    let a = w.attached(branch, 1, SessionKind::Guest);
    // Chunk 1 has nobody but node 1.
    let c = w.config(branch, 1);
    let alone = change(&c, 1, ChangeCause::Silent, |d, s| Some(if d == drive_of(1) { s } else { Stale }));
    propose(&mut w, branch, a.epoch, vec![alone]);
    let before = [w.config(branch, 0), w.config(branch, 1)];
    assert_eq!(w.opened(1, &[500]), MetaAnswer::Refused(MetaRefusal::Stranger));
    let c0 = w.config(branch, 0);
    assert_eq!(states(&c0), vec![Stale, InSync, InSync]);
    assert_eq!(c0.number, before[0].number.next());
    assert_eq!(w.config(branch, 1), before[1], "the last one is not dropped: an operator must decide");
    assert!(w.state.drive_down(drive_of(1)));
    let last = w.state.events().values().last().unwrap();
    let expected = EventKind::DriveStranger { drive: drive_of(1), node: NodeId(1), stale: 1, last: 1 };
    assert_eq!(last.kind, expected);
}

#[test]
fn a_retired_drive_is_removed_when_empty() {
    let mut w = World::with_nodes(4);
    w.volume("v", MIB, &[1, 2, 3]);
    let (retire, remove) = (
        |n, retire| Op::DriveRetire { drive: drive_of(n), retire },
        |n| Op::DriveRemove { drive: drive_of(n) },
    );
    let in_use = AdminRefusal::NotDrained { noun: Noun::Drive, name: drive_of(4).to_string() };
    assert_eq!(w.admin(remove(4)), Err(in_use));
    assert_eq!(w.admin(retire(4, true)), Ok(AdminAnswer::Done));
    assert_eq!(w.admin(remove(4)), Ok(AdminAnswer::Done));
    assert_eq!(w.admin(retire(1, true)), Ok(AdminAnswer::Done));
    let holds = AdminRefusal::HoldsReplicas { noun: Noun::Drive, name: drive_of(1).to_string(), replicas: 1 };
    assert_eq!(w.admin(remove(1)), Err(holds));
    let create = w.create_op("w", MIB, &[1, 2, 3]);
    assert_eq!(w.admin(create), Err(AdminRefusal::PlacementOutdated), "and takes nothing new");
}

#[test]
fn a_volume_is_created_by_a_maintenance_session_and_then_ready() {
    let mut w = World::with_nodes(3);
    let op = w.create_op("v", 40 * MIB, &[1, 2, 3]);
    assert_eq!(w.admin(op.clone()), Ok(AdminAnswer::VolumeCreated { volume: VolumeId(1) }));
    assert_eq!(w.admin(op), Err(AdminRefusal::Exists { noun: Noun::Volume, name: "v".into() }));
    let branch = w.state.volume_named("v").unwrap().1.branch;
    assert_eq!(w.attach(branch, 1, SessionKind::Guest), MetaAnswer::Refused(MetaRefusal::NotReady));
    let stranger = MetaAnswer::Refused(MetaRefusal::OldEpoch { epoch: Epoch(0) });
    assert_eq!(w.attach(branch, 2, SessionKind::Maintenance), stranger, "it was not appointed");
    assert!(w.own(Op::Appoint { branch, epoch: Epoch(0), node: Some(NodeId(2)) }));
    assert!(!w.own(Op::Appoint { branch, epoch: Epoch(0), node: Some(NodeId(2)) }), "twice");
    let a = w.attached(branch, 2, SessionKind::Maintenance);
    assert_eq!((a.epoch, a.placement, a.clean, a.configurations.len()), (Epoch(1), Some(1), true, 3));
    assert!(a.configurations.iter().all(|c| c.number == ConfigNumber(0) && c.members.len() == 3));
    let mut given: Vec<u64> =
        a.configurations.iter().flat_map(|c| c.members.iter().map(|m| m.place.incarnation.0)).collect();
    given.sort_unstable();
    assert_eq!(given, (1..=9).collect::<Vec<u64>>(), "each replica has its own incarnation");
    let created =
        |epoch, placement| Op::Created { branch, epoch, placement, failed: vec![], replacements: vec![] };
    let old = MetaAnswer::Refused(MetaRefusal::OldEpoch { epoch: Epoch(1) });
    assert_eq!(w.node(created(Epoch(0), 1)), old);
    let MetaAnswer::Created { configurations, placement } = w.node(created(Epoch(1), 1)) else { panic!() };
    assert_eq!((configurations.len(), placement), (3, None));
    assert!(configurations.iter().all(|(_, c)| c.number == ConfigNumber(1) && states(c) == vec![InSync; 3]));
    let again = w.node(created(Epoch(1), 1));
    assert_eq!(again, MetaAnswer::Created { configurations, placement: None }, "the same answer again");
    assert_eq!(w.state.branches()[&branch].phase, Phase::Ready);
}

#[test]
fn creation_is_placed_around_a_failed_drive_or_goes_on_without_it() {
    let mut w = World::with_nodes(5);
    let op = w.create_op("v", 40 * MIB, &[1, 2, 3]);
    w.admin(op).unwrap();
    let branch = w.state.volume_named("v").unwrap().1.branch;
    w.own(Op::Appoint { branch, epoch: Epoch(0), node: Some(NodeId(1)) });
    let a = w.attached(branch, 1, SessionKind::Maintenance);
    let failed = vec![drive_of(3)];
    let around = |chunk, n| Replacement {
        chunk: ChunkIndex(chunk),
        drives: vec![drive_of(1), drive_of(2), drive_of(n)],
    };
    // Chunk 0 has a replacement, chunk 1 a bad one (the failed drive itself), chunk 2 none.
    let replacements = vec![around(0, 4), around(1, 3)];
    let created = Op::Created { branch, epoch: a.epoch, placement: 1, failed, replacements };
    let MetaAnswer::Created { configurations, placement } = w.node(created.clone()) else { panic!() };
    assert_eq!(placement, Some(2), "chunk 0 has to be made on the other drive");
    let [c0, c1, c2] = [0, 1, 2].map(|i| configurations[i].1.clone());
    assert_eq!(c0.number, ConfigNumber(0));
    assert_eq!(c0.members[2].place.drive, drive_of(4));
    assert_eq!(c0.members[0].place, a.configurations[0].members[0].place, "what is made stays");
    assert_eq!((c1.number, states(&c1)), (ConfigNumber(1), vec![InSync, InSync, Stale]));
    assert_eq!((c2.number, states(&c2)), (ConfigNumber(1), vec![InSync, InSync, Stale]));
    let erased = w.state.garbage(drive_of(3), 10);
    assert_eq!(erased, vec![replica(branch, 0, a.configurations[0].members[2].place.incarnation.0)]);
    let repeat = w.node(created);
    assert_eq!(
        repeat,
        MetaAnswer::Created { configurations, placement: Some(2) },
        "an old placement changes nothing"
    );
    let rest = Op::Created { branch, epoch: a.epoch, placement: 2, failed: vec![], replacements: vec![] };
    let MetaAnswer::Created { placement, .. } = w.node(rest) else { panic!() };
    assert_eq!(placement, None);
    // Fewer than min_in_sync left and nothing to put in their place: it stays unmade.
    let op = w.create_op("w", MIB, &[1, 2, 3]);
    w.admin(op).unwrap();
    let branch = w.state.volume_named("w").unwrap().1.branch;
    w.own(Op::Appoint { branch, epoch: Epoch(0), node: Some(NodeId(1)) });
    let a = w.attached(branch, 1, SessionKind::Maintenance);
    let failed = vec![drive_of(2), drive_of(3)];
    let answer = w.node(Op::Created { branch, epoch: a.epoch, placement: 1, failed, replacements: vec![] });
    let MetaAnswer::Created { placement, configurations } = answer else { panic!() };
    assert_eq!((placement, configurations[0].1.number), (Some(1), ConfigNumber(0)));
}

#[test]
fn a_bad_volume_is_refused() {
    let mut w = World::with_nodes(3);
    let mut with = |change: &dyn Fn(&mut Op)| {
        let mut op = w.create_op("v", 32 * MIB, &[1, 2, 3]);
        change(&mut op);
        w.admin(op).unwrap_err()
    };
    let size = with(&|op| {
        if let Op::VolumeCreate { geometry, .. } = op {
            geometry.size += 1;
        }
    });
    assert_eq!(size, AdminRefusal::BadSize { size: 32 * MIB + 1, nearest: 32 * MIB });
    let outdated: [&dyn Fn(&mut Plan); 4] =
        [&|p| p.chunks.truncate(1), &|p| p.chunks[0] = 1, &|p| p.groups[0][2] = DriveId(5), &|p| {
            p.groups[0][2] = p.groups[0][1]
        }];
    for change in outdated {
        let refusal = with(&|op| {
            if let Op::VolumeCreate { plan, .. } = op {
                change(plan);
            }
        });
        assert_eq!(refusal, AdminRefusal::PlacementOutdated);
    }
}

#[test]
fn a_guest_holds_its_volume_until_it_is_dead() {
    let mut w = World::with_nodes(4);
    let (_, branch) = w.volume("v", MIB, &[1, 2, 3]);
    let guest = SessionKind::Guest;
    let a = w.attached(branch, 1, guest);
    assert_eq!((a.epoch, a.clean, a.down.clone()), (Epoch(2), true, vec![]));
    let held = |epoch, live| {
        let (node, name) = (NodeId(1), "node-1".into());
        MetaAnswer::Refused(MetaRefusal::Held { node, name, epoch: Epoch(epoch), live })
    };
    assert_eq!(w.attach(branch, 2, guest), held(2, true));
    let again = w.attached(branch, 1, guest);
    assert_eq!((again.epoch, again.clean), (Epoch(3), false), "the same node attaches over itself");
    w.down(1);
    assert_eq!(w.attach(branch, 2, guest), held(3, false), "a peer still reaches it");
    let unheard = |force, unheard| {
        let Op::Attach { volume, node, process, kind, .. } = attach_op(branch, 2, guest) else {
            unreachable!()
        };
        Op::Attach { volume, node, process, kind, force, holder_unheard: unheard, after: None }
    };
    let MetaAnswer::Attached(b) = w.node(unheard(false, true)) else { panic!() };
    assert_eq!((b.epoch, b.clean, b.down), (Epoch(4), false, vec![drive_of(1)]));
    w.up(1, 1);
    assert!(matches!(w.attach(branch, 1, guest), MetaAnswer::Refused(MetaRefusal::Held { live: true, .. })));
    assert!(matches!(w.node(unheard(true, false)), MetaAnswer::Attached(_)), "by force");
    w.up(2, 9);
    assert_eq!(
        w.attached(branch, 1, guest).epoch,
        Epoch(6),
        "a newer process of the holder's node: it is gone"
    );
    let late = MetaAnswer::Refused(MetaRefusal::OldEpoch { epoch: Epoch(6) });
    assert_eq!(w.attach(branch, 2, guest), late, "an attach of a process that is no more");
}

#[test]
fn a_guest_goes_on_only_over_a_disk_that_no_other_nodes_guest_has_had() {
    let mut w = World::with_nodes(4);
    let (_, branch) = w.volume("v", MIB, &[1, 2, 3]);
    let guest = SessionKind::Guest;
    let again = |w: &mut World, n: u32, epoch: u32| {
        let mut op = attach_op(branch, n, guest);
        if let Op::Attach { after, .. } = &mut op {
            *after = Some(Epoch(epoch));
        }
        w.node(op)
    };
    let superseded =
        |epoch, n| MetaAnswer::Refused(MetaRefusal::Superseded { epoch: Epoch(epoch), node: NodeId(n) });
    let leave = |w: &mut World, epoch| {
        assert_eq!(w.node(Op::Detach { branch, epoch: Epoch(epoch), clean: true }), MetaAnswer::Ok);
    };
    assert_eq!(w.attached(branch, 1, guest).epoch, Epoch(2));
    assert!(matches!(again(&mut w, 1, 2), MetaAnswer::Attached(_)), "nobody came between");
    w.own(Op::Release { branch, epoch: Epoch(3) });
    w.own(Op::Appoint { branch, epoch: Epoch(4), node: Some(NodeId(3)) });
    assert_eq!(w.attached(branch, 3, SessionKind::Maintenance).epoch, Epoch(5));
    assert!(matches!(again(&mut w, 1, 3), MetaAnswer::Attached(_)), "maintenance writes nothing of its own");
    leave(&mut w, 6);
    assert_eq!(w.attached(branch, 2, guest).epoch, Epoch(7));
    assert_eq!(again(&mut w, 1, 6), superseded(7, 2), "while it holds the volume");
    leave(&mut w, 7);
    assert_eq!(again(&mut w, 1, 6), superseded(7, 2), "and after it has gone");
    assert_eq!(w.epoch(branch), Epoch(7), "a refusal raises nothing");
    assert_eq!(w.attached(branch, 1, guest).epoch, Epoch(8), "a guest that starts anew");
    assert_eq!(again(&mut w, 1, 6), superseded(7, 2), "which does not make the older one's disk its own");
    assert!(matches!(again(&mut w, 1, 8), MetaAnswer::Attached(_)));
    leave(&mut w, 9);
    assert_eq!(again(&mut w, 2, 7), superseded(9, 1));
}

#[test]
fn a_guest_displaces_a_maintenance_session_and_not_the_reverse() {
    let mut w = World::with_nodes(3);
    let (_, branch) = w.volume("v", MIB, &[1, 2, 3]);
    w.own(Op::Appoint { branch, epoch: Epoch(1), node: Some(NodeId(2)) });
    let m = w.attached(branch, 2, SessionKind::Maintenance);
    let g = w.attached(branch, 3, SessionKind::Guest);
    assert_eq!((m.epoch, g.epoch, g.clean), (Epoch(2), Epoch(3), false));
    assert_eq!(w.state.branches()[&branch].appointed, None);
    assert!(w.own(Op::Appoint { branch, epoch: Epoch(3), node: Some(NodeId(2)) }));
    let held = w.attach(branch, 2, SessionKind::Maintenance);
    assert!(matches!(held, MetaAnswer::Refused(MetaRefusal::Held { live: true, .. })));
    assert!(!w.own(Op::Appoint { branch, epoch: Epoch(2), node: None }), "the planner saw an older epoch");
}

#[test]
fn attach_is_refused_where_there_is_nothing_to_attach() {
    let mut w = World::with_nodes(3);
    let (_, branch) = w.volume("v", MIB, &[1, 2, 3]);
    let none = MetaAnswer::Refused(MetaRefusal::NoSuchVolume);
    assert_eq!(w.attach(BranchId(99), 1, SessionKind::Guest), none);
    assert_eq!(w.attach(branch, 9, SessionKind::Guest), MetaAnswer::Refused(MetaRefusal::UnknownNode));
    assert_eq!(Epoch(EPOCH_COUNTER_MAX).next(), None);
}

#[test]
fn a_detach_ends_its_own_session_only() {
    let mut w = World::with_nodes(3);
    let (_, branch) = w.volume("v", MIB, &[1, 2, 3]);
    let a = w.attached(branch, 1, SessionKind::Guest);
    let detach = |epoch, clean| Op::Detach { branch, epoch, clean };
    let old = MetaAnswer::Refused(MetaRefusal::OldEpoch { epoch: a.epoch });
    assert_eq!(w.node(detach(Epoch(1), true)), old);
    assert_eq!(w.node(detach(a.epoch, false)), MetaAnswer::Ok);
    assert_eq!(w.node(detach(a.epoch, true)), MetaAnswer::Ok, "again");
    assert!(!w.attached(branch, 2, SessionKind::Guest).clean, "and the first one counts");
    let gone = Op::Detach { branch: BranchId(9), epoch: Epoch(1), clean: true };
    assert_eq!(w.node(gone), MetaAnswer::Refused(MetaRefusal::NoSuchVolume));
}

#[test]
fn a_release_raises_the_epoch() {
    let mut w = World::with_nodes(3);
    let (_, branch) = w.volume("v", MIB, &[1, 2, 3]);
    let a = w.attached(branch, 1, SessionKind::Guest);
    assert!(!w.own(Op::Release { branch, epoch: Epoch(1) }));
    assert!(w.own(Op::Release { branch, epoch: a.epoch }));
    assert!(!w.own(Op::Release { branch, epoch: a.epoch }));
    let c = w.config(branch, 0);
    let change = to(&c, 0, ChangeCause::Silent, drive_of(2), Stale);
    assert_eq!(propose(&mut w, branch, a.epoch, vec![change]), c, "what it proposes is refused");
    assert_eq!(w.epoch(branch), Epoch(3));
    assert!(!w.attached(branch, 2, SessionKind::Guest).clean);
}

#[test]
fn a_proposal_names_its_epoch_and_number_and_the_answer_is_the_present() {
    let mut w = World::with_nodes(3);
    let (_, branch) = w.volume("v", 32 * MIB, &[1, 2, 3]);
    let a = w.attached(branch, 1, SessionKind::Guest);
    let c = w.config(branch, 0);
    let drop3 = to(&c, 0, ChangeCause::Silent, drive_of(3), Stale);
    let op = |epoch, changes| Op::Propose { branch, epoch, changes };
    let present = |epoch, chunks| MetaAnswer::Configurations { epoch, chunks, down: vec![] };
    let unchanged = present(a.epoch, vec![(ChunkIndex(0), c.clone())]);
    assert_eq!(w.node(op(Epoch(1), vec![drop3.clone()])), unchanged, "an old epoch");
    let mut future = drop3.clone();
    future.from = c.number.next();
    assert_eq!(w.node(op(a.epoch, vec![future])), unchanged, "another number");
    let missing = ChunkChange { chunk: ChunkIndex(7), ..drop3.clone() };
    assert_eq!(w.node(op(a.epoch, vec![missing])), present(a.epoch, vec![]), "no such chunk");

    let n = propose(&mut w, branch, a.epoch, vec![drop3.clone()]);
    assert_eq!((n.number, states(&n)), (c.number.next(), vec![InSync, InSync, Stale]));
    assert_eq!(propose(&mut w, branch, a.epoch, vec![drop3.clone()]), n, "a double changes nothing");
    let same = change(&n, 0, ChangeCause::Withdrawn, |_, s| Some(s));
    let w1 = propose(&mut w, branch, a.epoch, vec![same]);
    assert_eq!(
        (w1.number, states(&w1)),
        (n.number.next(), states(&n)),
        "the old set again raises the number"
    );

    // Chunk by chunk: one is current, the other not.
    let c1 = w.config(branch, 1);
    let both = vec![drop3, to(&c1, 1, ChangeCause::Silent, drive_of(2), Stale)];
    let MetaAnswer::Configurations { chunks, .. } = w.node(op(a.epoch, both)) else { panic!() };
    assert_eq!(chunks[0].1, w1);
    assert_eq!(states(&chunks[1].1), vec![InSync, Stale, InSync]);
    w.node(Op::Detach { branch, epoch: a.epoch, clean: true });
    let late = to(&w1, 0, ChangeCause::Silent, drive_of(2), Stale);
    assert_eq!(propose(&mut w, branch, a.epoch, vec![late]), w1, "after its detach");
}

#[test]
fn what_a_session_may_make_of_a_member_is_a_table() {
    let promoted = ChangeCause::Promoted(1);
    // (from, to, cause, allowed) for the fourth member, beside three in-sync ones that stay.
    let table = [
        (InSync, Some(InSync), ChangeCause::Withdrawn, true),
        (InSync, Some(Stale), ChangeCause::Silent, true),
        (InSync, Some(Leaving), ChangeCause::Left, false),
        (InSync, None, ChangeCause::Left, false),
        (Stale, Some(InSync), promoted, true),
        (Stale, Some(InSync), ChangeCause::Withdrawn, false),
        (Stale, Some(Stale), ChangeCause::Withdrawn, true),
        (Stale, Some(Leaving), promoted, false),
        (Stale, None, ChangeCause::Left, true),
        (Leaving, Some(InSync), promoted, false),
        (Leaving, Some(Stale), ChangeCause::Silent, true),
        (Leaving, Some(Leaving), ChangeCause::Withdrawn, true),
        (Leaving, None, ChangeCause::Left, true),
    ];
    for (from, new, cause, allowed) in table {
        let mut w = World::with_nodes(4);
        let (_, branch) = w.volume("v", MIB, &[1, 2, 3]);
        let a = w.attached(branch, 1, SessionKind::Guest);
        let extra = drive_of(4);
        // Bring the fourth member into the state `from`.
        let number = w.config(branch, 0).number;
        let item = PlaceItem { chunk: ChunkIndex(0), from: number, drive: extra, replaces: None };
        assert!(w.own(Op::Place { branch, epoch: a.epoch, items: vec![item] }));
        let c = w.config(branch, 0);
        assert_eq!(states(&c), vec![InSync, InSync, InSync, Stale]);
        if from != Stale {
            let c = propose(&mut w, branch, a.epoch, vec![to(&c, 0, promoted, extra, InSync)]);
            assert_eq!(c.in_sync_count(), 4);
        }
        if from == Leaving {
            w.add_node(5);
            let number = w.config(branch, 0).number;
            let item =
                PlaceItem { chunk: ChunkIndex(0), from: number, drive: drive_of(5), replaces: Some(extra) };
            assert!(w.own(Op::Place { branch, epoch: a.epoch, items: vec![item] }));
        }
        let c = w.config(branch, 0);
        let proposal = change(&c, 0, cause, |d, s| if d == extra { new } else { Some(s) });
        let after = propose(&mut w, branch, a.epoch, vec![proposal]);
        assert_eq!(after.number != c.number, allowed, "{from:?} to {new:?}");
        if allowed {
            assert_eq!(after.member(extra).map(|m| m.state), new);
        }
    }
}

#[test]
fn nobody_empties_a_set_or_adds_to_it() {
    let mut w = World::with_nodes(4);
    let (_, branch) = w.volume("v", MIB, &[1, 2, 3]);
    let a = w.attached(branch, 1, SessionKind::Guest);
    let c = w.config(branch, 0);
    let all_stale = change(&c, 0, ChangeCause::Reported, |_, _| Some(Stale));
    assert_eq!(propose(&mut w, branch, a.epoch, vec![all_stale]), c);
    let mut stranger = change(&c, 0, ChangeCause::Promoted(1), |_, s| Some(s));
    stranger.members[2].place.incarnation = Incarnation(999);
    assert_eq!(propose(&mut w, branch, a.epoch, vec![stranger]), c, "another incarnation is another replica");
    let mut twice = change(&c, 0, ChangeCause::Withdrawn, |_, s| Some(s));
    twice.members.push(twice.members[0]);
    assert_eq!(propose(&mut w, branch, a.epoch, vec![twice]), c);
    let fewer = change(&c, 0, ChangeCause::Left, |d, s| (d != drive_of(3)).then_some(s));
    assert_eq!(propose(&mut w, branch, a.epoch, vec![fewer]), c, "in-sync members do not vanish");
}

#[test]
fn only_if_down_is_checked_where_it_is_applied() {
    let mut w = World::with_nodes(3);
    let (_, branch) = w.volume("v", MIB, &[1, 2, 3]);
    let a = w.attached(branch, 1, SessionKind::Guest);
    let c = w.config(branch, 0);
    let drop_both = |c: &Configuration| {
        let mut d = change(c, 0, ChangeCause::Silent, |d, s| Some(if d == drive_of(1) { s } else { Stale }));
        d.only_if_down = vec![drive_of(2), drive_of(3)];
        d
    };
    w.down(2);
    assert_eq!(propose(&mut w, branch, a.epoch, vec![drop_both(&c)]), c, "one of them is up");
    w.down(3);
    let n = propose(&mut w, branch, a.epoch, vec![drop_both(&c)]);
    assert_eq!(states(&n), vec![InSync, Stale, Stale]);
}

#[test]
fn a_replacement_is_placed_filled_and_the_old_one_removed() {
    let mut w = World::with_nodes(4);
    let (_, branch) = w.volume("v", MIB, &[1, 2, 3]);
    let item = |c: &Configuration, n, replaces| PlaceItem {
        chunk: ChunkIndex(0),
        from: c.number,
        drive: drive_of(n),
        replaces,
    };
    let c = w.config(branch, 0);
    let place = |w: &mut World, epoch, i| w.own(Op::Place { branch, epoch, items: vec![i] });
    assert!(!place(&mut w, Epoch(1), item(&c, 4, None)), "without a session nothing changes");
    let a = w.attached(branch, 1, SessionKind::Guest);
    assert!(!place(&mut w, Epoch(1), item(&c, 4, None)), "an old epoch");
    let mut old = item(&c, 4, None);
    old.from = ConfigNumber(0);
    assert!(!place(&mut w, a.epoch, old), "an old number");
    assert!(!place(&mut w, a.epoch, item(&c, 3, None)), "a drive that has one already");
    assert!(place(&mut w, a.epoch, item(&c, 4, Some(drive_of(3)))));
    let c = w.config(branch, 0);
    assert_eq!(states(&c), vec![InSync, InSync, Leaving, Stale]);
    assert_eq!(c.in_sync_count(), 3, "one that leaves is still required");
    let prune = |c: &Configuration, n| Op::Prune {
        branch,
        epoch: a.epoch,
        items: vec![PruneItem { chunk: ChunkIndex(0), from: c.number, drive: drive_of(n) }],
    };
    assert!(!w.own(prune(&c, 3)), "too few others are in-sync");
    let c = propose(&mut w, branch, a.epoch, vec![to(&c, 0, ChangeCause::Promoted(4), drive_of(4), InSync)]);
    let gone = c.members[2].place;
    assert!(w.own(prune(&c, 3)));
    let c = w.config(branch, 0);
    assert_eq!(states(&c), vec![InSync; 3]);
    assert!(w.state.is_healthy(branch));
    let garbage = w.state.garbage(drive_of(3), 10);
    assert_eq!(garbage, vec![replica(branch, 0, gone.incarnation.0)]);
    assert!(!w.own(prune(&c, 1)), "no more than that");
    assert!(w.own(Op::Deleted { drive: drive_of(3), replicas: garbage.clone() }));
    assert!(!w.own(Op::Deleted { drive: drive_of(3), replicas: garbage }), "again");
    assert!(w.state.garbage(drive_of(3), 10).is_empty());
}

#[test]
fn a_stale_member_may_go_while_anyone_stays_in_sync() {
    let mut w = World::with_nodes(4);
    let (_, branch) = w.volume("v", MIB, &[1, 2, 3]);
    let a = w.attached(branch, 1, SessionKind::Guest);
    let c = w.config(branch, 0);
    let prune = |c: &Configuration, n| Op::Prune {
        branch,
        epoch: a.epoch,
        items: vec![PruneItem { chunk: ChunkIndex(0), from: c.number, drive: drive_of(n) }],
    };
    let c = propose(&mut w, branch, a.epoch, vec![to(&c, 0, ChangeCause::Silent, drive_of(3), Stale)]);
    let c = propose(&mut w, branch, a.epoch, vec![to(&c, 0, ChangeCause::Silent, drive_of(2), Stale)]);
    assert_eq!(states(&c), vec![InSync, Stale, Stale]);
    assert!(!w.own(prune(&c, 1)), "the only one in-sync");
    assert!(w.own(prune(&c, 3)));
    let c = w.config(branch, 0);
    assert_eq!(states(&c), vec![InSync, Stale]);
    assert!(w.own(prune(&c, 2)));
    assert!(!w.own(prune(&w.config(branch, 0), 1)), "the only one");
}

#[test]
fn a_deleted_volume_leaves_its_replicas_to_be_erased() {
    let mut w = World::with_nodes(3);
    let (volume, branch) = w.volume("v", 40 * MIB, &[1, 2, 3]);
    let a = w.attached(branch, 1, SessionKind::Guest);
    let attached = AdminRefusal::Attached {
        name: "v".into(),
        node: NodeId(1),
        node_name: "node-1".into(),
        epoch: a.epoch,
    };
    let delete = |force: Option<&str>| Op::VolumeDelete {
        volume,
        force: force.map(Into::into),
        with_snapshots: false,
    };
    assert_eq!(w.admin(delete(None)), Err(attached));
    assert_eq!(w.admin(delete(Some("it is a test"))), Ok(AdminAnswer::Done));
    let gone = AdminRefusal::NotFound { noun: Noun::Volume, name: "v1".into() };
    assert_eq!(w.admin(delete(None)), Err(gone));
    for n in 1..=3 {
        assert_eq!(w.state.garbage(drive_of(n), 10).len(), 3);
        assert_eq!(w.state.replicas_on(drive_of(n)), 0);
    }
    let c = Op::Propose { branch, epoch: a.epoch, changes: vec![] };
    assert_eq!(w.node(c), MetaAnswer::Refused(MetaRefusal::NoSuchVolume));
    let (again, _) = w.volume("v", MIB, &[1, 2, 3]);
    assert_ne!(again, volume, "ids are never used again");
    assert_eq!(w.admin(delete(None)).map(|_| ()).unwrap_err().code(), 1007, "a late double hits nobody");
}

#[test]
fn an_opened_drive_names_replicas_that_nobody_knows() {
    let mut w = World::with_nodes(3);
    let (_, branch) = w.volume("v", MIB, &[1, 2, 3]);
    let named = w.config(branch, 0).members[0].place.incarnation.0;
    let all = [
        replica(branch, 0, named),
        replica(branch, 5, 2),
        replica(BranchId(9), 0, 3),
        replica(branch, 0, 999),
    ];
    let op = Op::DriveOpened {
        node: NodeId(1),
        drive: drive_of(1),
        openings: vec![OpenId(1), OpenId(50)],
        capacity: 1 << 40,
        path: "/dev/y".into(),
        orphans: all.to_vec(),
        unknown: 0,
    };
    assert_eq!(w.node(op), MetaAnswer::DriveConfirmed { drive: drive_of(1) });
    let garbage = w.state.garbage(drive_of(1), 10);
    assert_eq!(garbage, vec![all[1], all[2]], "not the one in use, nor one that metad never gave out");
    assert_eq!(w.state.drives()[&drive_of(1)].capacity, 1 << 40);
}

#[test]
fn a_volume_is_renamed_grown_and_given_another_class() {
    let mut w = World::with_nodes(4);
    let (volume, branch) = w.volume("v", 20 * MIB, &[1, 2, 3]);
    w.volume("other", MIB, &[1, 2, 3]);
    let rename = |from: &str, to: &str| Op::VolumeRename { volume, from: from.into(), to: to.into() };
    let exists = AdminRefusal::Exists { noun: Noun::Volume, name: "other".into() };
    assert_eq!(w.admin(rename("v", "other")), Err(exists));
    assert_eq!(w.admin(rename("v", "x")), Ok(AdminAnswer::Done));
    assert_eq!(w.admin(rename("v", "y")), Err(AdminRefusal::Changed { name: "x".into() }));

    let group = vec![drive_of(2), drive_of(3), drive_of(4)];
    let plan = |n| Plan { groups: vec![group.clone()], chunks: vec![0; n] };
    let resize = |from, to, n| Op::VolumeResize { volume, from: from * MIB, to: to * MIB, plan: plan(n) };
    let shrink = AdminRefusal::Shrink { name: "x".into(), size: 20 * MIB, to: 10 * MIB };
    assert_eq!(w.admin(resize(20, 10, 0)), Err(shrink));
    assert_eq!(w.admin(resize(20, 30, 0)), Ok(AdminAnswer::Done), "within the last chunk");
    assert_eq!(w.admin(resize(20, 60, 2)), Err(AdminRefusal::Changed { name: "x".into() }));
    assert_eq!(w.admin(resize(30, 60, 1)), Err(AdminRefusal::PlacementOutdated));
    let a = w.attached(branch, 1, SessionKind::Guest);
    assert_eq!(w.admin(resize(30, 60, 2)), Ok(AdminAnswer::Done), "in use");
    assert_eq!(w.epoch(branch), a.epoch, "by the session that is there");
    let a = w.attached(branch, 1, SessionKind::Guest);
    assert_eq!(a.placement, Some(2), "or by the next one");
    w.node(Op::Detach { branch, epoch: a.epoch, clean: true });
    assert_eq!(w.admin(resize(60, 90, 2)), Err(AdminRefusal::NotReady { name: "x".into() }));
    w.own(Op::Appoint { branch, epoch: a.epoch, node: Some(NodeId(2)) });
    let m = w.attached(branch, 2, SessionKind::Maintenance);
    let numbers: Vec<u64> = m.configurations.iter().map(|c| c.number.0).collect();
    assert_eq!((m.placement, numbers), (Some(2), vec![1, 1, 0, 0]));
    let made = Op::Created { branch, epoch: m.epoch, placement: 2, failed: vec![], replacements: vec![] };
    let MetaAnswer::Created { configurations, placement: None } = w.node(made) else { panic!() };
    assert_eq!(configurations.iter().map(|(c, _)| c.0).collect::<Vec<u32>>(), vec![2, 3], "the new ones");

    let class = Class { min_in_sync: 1, write_through: true, ..Class::of_copies(2) };
    let op = |class| Op::VolumeClass { volume, class };
    let bad = Class { min_in_sync: 3, ..class };
    assert_eq!(w.admin(op(bad)), Err(AdminRefusal::BadMinInSync { min_in_sync: 3, copies: 2 }));
    assert_eq!(w.admin(op(class)), Ok(AdminAnswer::Done));
    assert_eq!(w.state.chunks(branch).unwrap().unwell(), 4, "every chunk has a copy too many now");
    assert!(w.state.is_healthy(branch), "which is no harm");
}

#[test]
fn the_first_answer_to_a_request_is_kept() {
    let mut w = World::with_nodes(4);
    let (_, branch) = w.volume("v", MIB, &[1, 2, 3]);
    let attach = attach_op(branch, 1, SessionKind::Guest);
    let first = w.apply(Some(1), attach.clone());
    let Answer::Node(MetaAnswer::Attached(a)) = &first else { panic!() };
    let again = w.apply(Some(1), attach.clone());
    let Answer::Node(MetaAnswer::Attached(mut b)) = again else { panic!() };
    assert!(b.views.index > a.views.index, "what Raft knows of its generations is as of now");
    b.views.index = a.views.index;
    assert_eq!(&b, a);
    assert_eq!(w.epoch(branch), a.epoch, "no new epoch");

    let refused = w.apply(Some(2), attach_op(branch, 2, SessionKind::Guest));
    w.node(Op::Detach { branch, epoch: a.epoch, clean: true });
    let late = w.apply(Some(2), attach_op(branch, 2, SessionKind::Guest));
    assert_eq!(late, refused, "a late double of what was refused takes no effect");
    assert!(w.state.branches()[&branch].session.is_none());
    let over = Answer::Node(MetaAnswer::Refused(MetaRefusal::OldEpoch { epoch: a.epoch }));
    assert_eq!(w.apply(Some(1), attach), over, "nor does one of a session that is over");

    let create = w.create_op("w", MIB, &[1, 2, 3]);
    let made = w.apply(Some(3), create.clone());
    assert_eq!(w.apply(Some(3), create), made);
    assert_eq!(w.state.volumes().len(), 2);
}

#[test]
fn every_refusal_says_what_why_and_what_next() {
    let mut codes = std::collections::BTreeSet::new();
    let name = || "x".to_owned();
    let all = [
        AdminRefusal::NoCluster,
        AdminRefusal::ClusterExists { name: name() },
        AdminRefusal::BadToken,
        AdminRefusal::UnknownSetting { key: name(), known: vec![name()] },
        AdminRefusal::BadSetting { key: name(), value: name(), low: name(), high: name() },
        meta::name::check_name("").unwrap_err(),
        AdminRefusal::BadSize { size: 1, nearest: MIB },
        meta::name::check_chunk_shift(1).unwrap_err(),
        AdminRefusal::BadCopies { copies: 9, most: 5 },
        AdminRefusal::BadMinInSync { min_in_sync: 4, copies: 3 },
        AdminRefusal::NotFound { noun: Noun::Volume, name: name() },
        AdminRefusal::Exists { noun: Noun::Volume, name: name() },
        AdminRefusal::HoldsReplicas { noun: Noun::Node, name: name(), replicas: 3 },
        AdminRefusal::NotDrained { noun: Noun::Drive, name: name() },
        AdminRefusal::HoldsSessions { name: name(), sessions: 2 },
        AdminRefusal::NodeUp { name: name() },
        AdminRefusal::OtherNode { drive: DriveId(1), node: NodeId(1), name: name() },
        AdminRefusal::StrangerDrive { drive: DriveId(1) },
        AdminRefusal::Attached { name: name(), node: NodeId(3), node_name: "n3".into(), epoch: Epoch(41) },
        AdminRefusal::NotReady { name: name() },
        AdminRefusal::Shrink { name: name(), size: 2, to: 1 },
        AdminRefusal::Changed { name: name() },
        AdminRefusal::TooFewDomains { need: 3, have: 2, nodes: 2, full: 0 },
        AdminRefusal::PlacementOutdated,
        AdminRefusal::OutcomeUnknown,
        AdminRefusal::OtherProcess {
            name: name(),
            node: NodeId(2),
            known: name(),
            address: name(),
            up: true,
        },
        AdminRefusal::OtherCluster { node: NodeId(2), said: None, cluster: ClusterId(1) },
        AdminRefusal::ShrinkClone { name: name(), parent: name() },
        AdminRefusal::JobRuns { name: name(), job: "j1".into(), kind: name() },
    ];
    for r in &all {
        assert!(codes.insert(r.code()), "{r:?} has a code of its own");
        assert!(!r.what().is_empty() && !r.cause().is_empty() && !r.fix().is_empty() && r.exit() > 0);
    }
    let in_use =
        AdminRefusal::InUse { name: name(), node: NodeId(3), node_name: "n3".into(), epoch: Epoch(41) };
    assert_eq!(
        (in_use.code(), in_use.what(), in_use.exit()),
        (all[18].code(), all[18].what(), all[18].exit())
    );
    assert!(!in_use.fix().contains("--force"), "a resize knows no force");
    assert!(all[18].fix().contains("blockctl volume delete x --force=REASON"));
    let setting = Setting::parse("down_out", "1s").unwrap_err().fix();
    assert_eq!(setting, "blockctl cluster config set down_out=5s");
    let typed = setting.rsplit('=').next().unwrap();
    assert_eq!(Setting::parse("down_out", typed), Ok(Setting::DownOut(5_000)), "the remedy can be typed");
    let drive = AdminRefusal::StrangerDrive { drive: DriveId(0xab_cdef) };
    assert_eq!(drive.fix(), "blockctl drive drain 0000000000abcdef, then format it anew");
    assert_eq!(all[18].what(), "volume \"x\" is attached on n3 (epoch 41)");
    assert_eq!(all[22].what(), "3 copies need 3 nodes with a usable drive; there are 2");
}

#[test]
fn events_and_answers_are_rings() {
    let mut w = World::with_nodes(1);
    let mut state = w.state.clone();
    let mut index = w.index;
    for i in 0..(meta::event::EVENTS_MAX as u64 + 5) {
        index += 1;
        let op = Op::SettingSet { setting: Setting::DownOut(60_000 + i) };
        let request = Some(proto::RequestId(u128::from(i)));
        let outcome = state.apply(proto::LogIndex(index), &Command { at_ms: i, request, op });
        assert!(outcome.changes.len() <= 7, "head, settings, event in and out, answer in and out");
    }
    assert_eq!(state.events().len(), meta::event::EVENTS_MAX);
    w.state = state;
    w.state.check();
    let loaded = meta::MetaState::load(w.state.rows()).unwrap();
    assert!(loaded == w.state);
}

/// The simulator's seeded bugs do what they say, in the build that knows them.
#[cfg(feature = "bugs")]
#[test]
fn seeded_bugs_leave_out_their_rule() {
    for (old_configuration, old_epoch) in [(true, false), (false, true)] {
        let mut w = World::with_nodes(3);
        let (_, branch) = w.volume("v", MIB, &[1, 2, 3]);
        let a = w.attached(branch, 1, SessionKind::Guest);
        let c = w.config(branch, 0);
        let drop3 = to(&c, 0, ChangeCause::Silent, drive_of(3), Stale);
        let epoch = if old_epoch { Epoch(1) } else { a.epoch };
        if old_configuration {
            let same = change(&c, 0, ChangeCause::Withdrawn, |_, s| Some(s));
            propose(&mut w, branch, a.epoch, vec![same]);
        }
        let before = w.config(branch, 0);
        assert_eq!(propose(&mut w, branch, epoch, vec![drop3.clone()]), before, "the rule holds");
        let bugs = meta::Bugs { apply_old_configuration: old_configuration, apply_old_epoch: old_epoch };
        w.state.set_bugs(bugs);
        let after = propose(&mut w, branch, epoch, vec![drop3]);
        assert_eq!(states(&after), vec![InSync, InSync, Stale], "the bug bites");
    }
}
