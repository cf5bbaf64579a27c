//! Snapshots through the service, among nodes that do their part: who waits for what, what is called off, who is told.

mod common;

use common::fleet::{Fleet, drive};
use meta::admin::{SnapshotName, SnapshotOrder};
use meta::{AdminAnswer, AdminRefusal, AdminRequest, Op, ServiceEvent, SnapshotState, Token};
use proto::control::SessionKind;
use proto::{Generation, NodeId, Span};
use std::collections::BTreeMap;

fn name(text: &str) -> SnapshotName {
    let (volume, snapshot) = text.split_once('@').expect("volume@snapshot");
    SnapshotName { volume: volume.into(), snapshot: snapshot.into() }
}

fn create(names: &[&str]) -> AdminRequest {
    let items = names.iter().map(|n| SnapshotOrder { name: name(n), id: 5 }).collect();
    AdminRequest::SnapshotCreate { items, labels: BTreeMap::new(), protect_until_ms: 0 }
}

type Answered = Option<Result<AdminAnswer, AdminRefusal>>;

fn answer(f: &mut Fleet, token: Token) -> Answered {
    f.admin_answers.remove(&token).map(|a| a.expect("this one leads"))
}

/// Names of what was made.
fn sealed(answer: Answered) -> Vec<String> {
    match answer {
        Some(Ok(AdminAnswer::Snapshots(all))) => all
            .into_iter()
            .inspect(|s| assert!(s.sealed))
            .map(|s| format!("{}@{}", s.volume, s.name))
            .collect(),
        other => panic!("{other:?}"),
    }
}

fn ms(n: u64) -> Span {
    Span::millis(n)
}

#[test]
fn a_volume_without_snapshots_is_told_nothing_of_them() {
    let mut f = Fleet::new(5);
    let branch = f.ready("v", 100);
    f.guest(1, branch);
    f.kill(3);
    f.run(Span::secs(5));
    f.start(3);
    f.run(Span::secs(30));
    assert!(f.nodes.values().all(|n| n.lists == 0 && n.views == 0));
    let new = |o: &&Op| matches!(o, Op::Kept { .. } | Op::Sealed { .. } | Op::SealCancel { .. });
    assert_eq!(f.log.iter().filter(new).count(), 0);
}

#[test]
fn the_answer_comes_when_the_session_has_sealed_and_the_drives_hear_of_it() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 40);
    f.guest(1, branch);
    let token = f.order(900, create(&["v@a"]));
    assert_eq!(answer(&mut f, token), None, "asked, and not sealed");
    f.run(ms(200));
    assert_eq!(sealed(answer(&mut f, token)), ["v@a"]);
    f.run(ms(500));
    for n in 1..=3 {
        let node = &f.nodes[&NodeId(n)];
        assert_eq!(node.lists, 1, "told once");
        let list = &node.kept[&branch];
        assert_eq!((list.open, list.head, list.kept.count()), (Generation(2), Generation(2), 1));
    }
    assert_eq!(f.state.owed().count(), 0);
    // The same request again has the same answer, and makes nothing.
    let again = f.order(900, create(&["v@a"]));
    assert_eq!(sealed(answer(&mut f, again)), ["v@a"]);
    assert_eq!(f.state.snapshots().len(), 1);
    let before = f.log.len();
    f.run(Span::secs(30));
    assert_eq!(f.log.len(), before, "at rest nothing is proposed");
}

#[test]
fn a_detached_volume_that_was_closed_cleanly_needs_nobody() {
    let mut f = Fleet::new(3);
    f.ready("v", 40);
    let token = f.order(900, create(&["v@a"]));
    assert_eq!(sealed(answer(&mut f, token)), ["v@a"], "at once");
}

#[test]
fn one_that_was_not_closed_cleanly_gets_a_maintenance_session() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 40);
    f.guest(1, branch);
    let epoch = f.nodes[&NodeId(1)].sessions[&branch].epoch;
    f.nodes.get_mut(&NodeId(1)).unwrap().sessions.clear();
    f.ask(
        NodeId(1),
        common::fleet::Ask::Other,
        proto::control::MetaRequest::Detach { branch, epoch, clean: false },
    );
    let token = f.order(900, create(&["v@a"]));
    let took =
        f.until("sealed", 5, |f| f.state.snapshots().values().all(|s| s.state == SnapshotState::Sealed));
    assert!(took < Span::secs(1), "{took:?}");
    assert_eq!(sealed(answer(&mut f, token)), ["v@a"]);
    f.settle(5);
    assert!(f.state.branches()[&branch].clean, "and lets go of it");
}

#[test]
fn a_seal_that_does_not_come_about_is_called_off_after_five_seconds() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 40);
    f.guest(1, branch);
    f.stuck = true;
    let token = f.order(900, create(&["v@a"]));
    f.run(ms(4_800));
    assert_eq!(answer(&mut f, token), None);
    f.run(ms(500));
    assert_eq!(answer(&mut f, token), Some(Err(AdminRefusal::SealCalledOff { names: vec!["v".into()] })));
    let row = &f.state.branches()[&branch];
    assert_eq!((row.generation, row.unsealed, row.sealing), (Generation(2), Generation(1), None));
    f.run(ms(200));
    assert_eq!(f.nodes[&NodeId(1)].sessions[&branch].views.sealing, None, "the session knows");
    f.stuck = false;
    let token = f.order(901, create(&["v@a"]));
    f.run(ms(200));
    assert_eq!(sealed(answer(&mut f, token)), ["v@a"]);
}

#[test]
fn the_second_seal_waits_for_the_first_and_gives_up_if_that_takes_long() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 40);
    f.guest(1, branch);
    let tokens: Vec<Token> =
        (0..4).map(|i| f.order(900 + i, create(&[&format!("v@s{i}") as &str]))).collect();
    f.run(ms(1_000));
    for (i, token) in tokens.into_iter().enumerate() {
        assert_eq!(sealed(answer(&mut f, token)), [format!("v@s{i}")]);
    }
    f.stuck = true;
    let first = f.order(910, create(&["v@x"]));
    f.run(ms(300));
    let second = f.order(911, create(&["v@y"]));
    f.run(ms(5_500));
    assert!(matches!(answer(&mut f, first), Some(Err(AdminRefusal::SealCalledOff { .. }))));
    assert_eq!(answer(&mut f, second), None, "its own turn has come");
    f.stuck = false;
    f.run(ms(300));
    assert_eq!(sealed(answer(&mut f, second)), ["v@y"]);
}

#[test]
fn a_group_is_sealed_together_or_called_off_after_a_second() {
    let mut f = Fleet::new(4);
    let x = f.ready("x", 20);
    f.ready("y", 20);
    let z = f.ready("z", 20);
    f.guest(1, x);
    f.guest(2, z);
    f.run(Span::secs(1));
    let all = |s: &str| [format!("x@{s}"), format!("y@{s}"), format!("z@{s}")];
    let order = |f: &mut Fleet, id, s: &str| {
        let names = all(s);
        f.order(id, create(&names.each_ref().map(String::as_str)))
    };
    let token = order(&mut f, 900, "a");
    f.run(ms(500));
    assert_eq!(sealed(answer(&mut f, token)), all("a"));
    let groups: Vec<_> = f.state.snapshots().values().map(|s| s.group).collect();
    assert!(groups[0].is_some() && groups.iter().all(|g| *g == groups[0]));
    f.stuck = true;
    let token = order(&mut f, 901, "b");
    let took = f.until("called off", 3, |f| f.state.branches().values().all(|b| b.sealing.is_none()));
    assert!(took <= ms(1_200), "{took:?}");
    let names = vec!["x".into(), "y".into(), "z".into()];
    assert_eq!(answer(&mut f, token), Some(Err(AdminRefusal::SealCalledOff { names })));
    assert_eq!(f.log.iter().filter(|o| matches!(o, Op::SealCancel { .. })).count(), 1);
    assert_eq!(f.state.snapshots().len(), 3);
}

#[test]
fn a_group_waits_for_its_sessions_before_anything_stands_still() {
    let mut f = Fleet::new(4);
    let x = f.ready("x", 20);
    let y = f.ready("y", 20);
    f.guest(1, x);
    f.attach(2, y, SessionKind::Guest, false);
    let epoch = f.nodes[&NodeId(2)].sessions[&y].epoch;
    f.nodes.get_mut(&NodeId(2)).unwrap().sessions.clear();
    let detach = proto::control::MetaRequest::Detach { branch: y, epoch, clean: false };
    f.ask(NodeId(2), common::fleet::Ask::Other, detach);
    let token = f.order(900, create(&["x@a", "y@a"]));
    assert_eq!(f.state.snapshots().len(), 0, "y has no session: x goes on");
    f.run(Span::secs(4));
    assert_eq!(sealed(answer(&mut f, token)), ["x@a", "y@a"]);
    // One whose node is silent: refused, and nothing was touched.
    f.kill(1);
    f.run(ms(1_500));
    let token = f.order(901, create(&["x@b", "y@b"]));
    f.run(Span::secs(9));
    assert!(f.state.branches().values().all(|b| b.generation == Generation(2)));
    f.run(Span::secs(2));
    assert_eq!(answer(&mut f, token), Some(Err(AdminRefusal::GroupNotReady { names: vec!["x".into()] })));
}

#[test]
fn a_new_leader_repeats_what_is_owed_and_knows_of_seals() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 40);
    f.guest(1, branch);
    f.lists_lost = true;
    let token = f.order(900, create(&["v@a"]));
    f.run(ms(300));
    assert_eq!(sealed(answer(&mut f, token)), ["v@a"]);
    assert_eq!(f.state.owed().count(), 3);
    f.stuck = true;
    let token = f.order(901, create(&["v@b"]));
    f.run(ms(300));
    f.event(ServiceEvent::LostLeader);
    assert_eq!(f.admin_answers.remove(&token), Some(Some(Err(AdminRefusal::OutcomeUnknown))));
    f.lists_lost = false;
    f.event(ServiceEvent::BecameLeader);
    f.run(ms(300));
    assert_eq!(f.state.owed().count(), 0, "told by the next one");
    // The asker comes again, under the same id.
    let token = f.order(901, create(&["v@b"]));
    f.run(ms(300));
    assert_eq!(answer(&mut f, token), None);
    f.stuck = false;
    f.run(ms(300));
    assert_eq!(sealed(answer(&mut f, token)), ["v@b"]);
    assert_eq!(f.state.snapshots().len(), 2);
}

#[test]
fn a_list_is_told_again_every_ten_seconds_and_when_a_stream_opens() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 40);
    f.lists_lost = true;
    f.order(900, create(&["v@a"]));
    f.run(Span::secs(5));
    f.lists_lost = false;
    f.run(Span::secs(3));
    assert_eq!(f.state.owed().count(), 3);
    f.run(Span::secs(3));
    assert_eq!(f.state.owed().count(), 0);
    // A node that is away hears the newest when it is back.
    f.kill(3);
    for i in 0..5 {
        f.order(910 + i, create(&[&format!("v@s{i}") as &str]));
    }
    f.run(Span::secs(60));
    assert_eq!(f.state.owed().map(|(d, ..)| d).collect::<Vec<_>>(), [drive(3)]);
    f.start(3);
    f.run(ms(300));
    assert_eq!(f.state.owed().count(), 0);
    assert_eq!(f.nodes[&NodeId(3)].kept[&branch].kept.count(), 6);
    assert_eq!(f.nodes[&NodeId(3)].lists, 2, "one, before and after");
}

#[test]
fn a_session_that_has_not_heard_of_a_seal_hears_it_again() {
    let mut f = Fleet::new(3);
    let branch = f.ready("v", 40);
    f.guest(1, branch);
    f.run(Span::secs(1));
    f.stuck = true;
    f.order(900, create(&["v@a"]));
    // The push is lost: it still writes what was the head.
    let views = f.nodes[&NodeId(1)].views;
    let node = f.nodes.get_mut(&NodeId(1)).unwrap();
    node.heard.clear();
    f.run(Span::secs(1));
    assert!(f.nodes[&NodeId(1)].views > views);
    assert!(f.nodes[&NodeId(1)].sessions[&branch].views.sealing.is_some());
}
