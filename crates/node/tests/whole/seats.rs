//! Attaching: what a guest and metad see when answers come late, and when the disk changes hands.

use super::{heals, made};
use crate::world::{World, drive_of};
use proto::{ExportId, NodeId, Span};
use volume::{GuestError, GuestOp};

/// Longer than a question waits before it is asked again, shorter than the edge waits for an answer.
const SLOW: Span = Span::millis(2500);

#[test]
fn an_attach_that_is_answered_late_gives_nothing_back() {
    let (mut w, branch) = made(1);
    w.meta_delay = SLOW;
    w.must_open(1, 1, "v", false);
    w.meta_delay = Span::millis(2);
    w.run(Span::secs(6));
    let v = &w.metad.volumes[&branch];
    assert_eq!(v.epoch, proto::Epoch(2), "made, and attached once");
    assert!(v.session.is_some(), "metad has the session that lives here; {}", w.tail());
    assert!(w.node(1).session(branch).is_some_and(|s| s.epoch() == v.epoch && s.is_serving()));
    w.must_write(1, 1, 0, &[1; 4096]);
}

#[test]
fn an_attach_that_nobody_waits_for_any_more_is_given_back() {
    let (mut w, branch) = made(1);
    w.meta_delay = SLOW;
    w.open(1, 1, "v", false);
    w.run(Span::secs(2));
    w.close(1, 1);
    w.meta_delay = Span::millis(2);
    w.run(Span::secs(8));
    assert!(w.metad.volumes[&branch].session.is_none(), "{}", w.tail());
    assert!(!w.opened.contains_key(&ExportId(1)));
}

#[test]
fn a_drive_is_confirmed_though_the_answer_comes_late() {
    let mut w = World::new(1);
    w.meta_delay = SLOW;
    w.run(Span::secs(4));
    assert!(w.node(1).drives()[0].serving, "{}", w.tail());
}

#[test]
fn a_node_whose_drives_are_not_open_leases_nothing_and_ends_nothing() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 0, &[1; 4096]);
    w.run(Span::secs(2));
    assert!(w.node(1).lease_until(drive_of(3), branch) > w.now);
    w.kill(3);
    w.drives_late = Span::secs(5);
    w.start(3);
    let linked = |w: &World| w.node(1).links().iter().any(|l| l.node.0 == 3 && l.process.0 == 2);
    assert!(w.until(Span::secs(2), linked), "{}", w.tail());
    let counts = |w: &World| w.node(1).lease_until(drive_of(3), branch) > w.now;
    let granted = |w: &World| !w.node(3).leases_granted(w.now).is_empty();
    assert!(!w.until(Span::secs(2), |w| counts(w) || granted(w)), "a lease; {}", w.tail());
    assert_eq!(w.metad.volumes[&branch].epoch, proto::Epoch(2), "the session goes on");
    w.run(Span::secs(3));
    heals(&mut w, branch);
    assert!(w.until(Span::secs(3), counts), "{}", w.tail());
    assert_eq!(w.read(1, 1, 0, 4096), [1; 4096]);
}

#[test]
fn an_open_export_goes_on_with_its_disk_whatever_that_is_called() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 0, &[1; 4096]);
    w.metad.volumes.get_mut(&branch).unwrap().name = "w".into();
    w.metad.pass(branch);
    assert!(w.until(Span::secs(1), |w| w.node(1).session(branch).is_none()), "fenced");
    w.must_write(1, 1, 4096, &[2; 4096]);
    assert_eq!(w.read(1, 1, 0, 4096), [1; 4096]);
    assert_eq!(w.node(1).session(branch).map(|s| s.epoch()), Some(proto::Epoch(4)));
    w.open(1, 2, "v", false);
    let refused = w.until(Span::secs(7), |w| w.refused.contains_key(&ExportId(2)));
    assert!(refused, "no volume has the old name; {}", w.tail());
    w.must_open(1, 3, "w", false);
    assert_eq!(w.metad.volumes[&branch].epoch, proto::Epoch(4), "they share the session");
}

#[test]
fn an_open_export_never_gets_another_disk_of_the_same_name() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 0, &[1; 4096]);
    w.metad.delete(branch);
    let other = w.metad.create("v", 1, &[1, 2, 3]);
    assert!(w.until(Span::secs(1), |w| w.node(1).session(branch).is_none()), "fenced");
    let waits = w.write(1, 1, 0, &[2; 4096]);
    let broken = w.until(Span::secs(8), |w| w.broken.contains(&ExportId(1)));
    assert!(broken, "{}", w.tail());
    assert!(matches!(w.result(1, waits), Some(Err(GuestError::Io))));
    let flush = w.ask(1, 1, GuestOp::Flush);
    assert!(matches!(w.wait(1, flush, Span::secs(1)), Err(GuestError::Io)));
    // Whoever comes anew gets the new one.
    let made = w.until(Span::secs(5), |w| w.metad.volumes[&other].placement.is_none());
    assert!(made, "{}", w.tail());
    w.metad.appoint(other, None);
    w.must_open(1, 2, "v", false);
    assert_eq!(w.opened[&ExportId(2)].branch, other);
    assert_eq!(w.read(1, 2, 0, 4096), [0; 4096]);
    w.close(1, 1);
    w.run(Span::millis(10));
    let late = w.ask(1, 1, GuestOp::Flush);
    assert!(matches!(w.wait(1, late, Span::secs(1)), Err(GuestError::Gone)), "it was closed");
}

#[test]
fn an_epoch_that_passed_before_it_was_heard_of_ends_no_guest() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 0, &[1; 4096]);
    w.metad.lose_attached = 1;
    w.metad.pass(branch);
    let lost = w.until(Span::secs(3), |w| w.metad.lose_attached == 0);
    assert!(lost, "it attaches again, and does not hear the answer; {}", w.tail());
    w.metad.pass(branch);
    w.must_write(1, 1, 4096, &[2; 4096]);
    assert_eq!(w.read(1, 1, 0, 4096), [1; 4096]);
    assert!(!w.broken.contains(&ExportId(1)) && !w.gone.contains(&ExportId(1)));
}

#[test]
fn the_next_client_opens_when_what_the_last_one_asked_is_settled() {
    let (mut w, _) = made(1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 0, &[1; 4096]);
    w.hosts.get_mut(&NodeId(3)).unwrap().frozen = true;
    let write = w.write(1, 1, 0, &[2; 4096]);
    w.run(Span::millis(20));
    w.close(1, 1);
    w.open(1, 2, "v", false);
    let opened = |w: &World| w.opened.contains_key(&ExportId(2));
    assert!(!w.until(Span::millis(500), opened), "the write is with two replicas, and may be with the third");
    assert!(w.until(Span::secs(5), opened), "{:?}; {}", w.refused.get(&ExportId(2)), w.tail());
    assert!(matches!(w.result(1, write), Some(Ok(_))), "{:?}", w.result(1, write));
    assert_eq!(w.read(1, 2, 0, 4096), [2; 4096]);
}

#[test]
fn what_cannot_be_settled_goes_to_a_new_session() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 0, &[1; 4096]);
    let epoch = w.metad.volumes[&branch].epoch;
    w.kill(2);
    w.kill(3);
    let write = w.write(1, 1, 0, &[2; 4096]);
    w.run(Span::secs(3));
    w.close(1, 1);
    w.open(1, 2, "v", false);
    let refused = w.until(Span::secs(7), |w| w.refused.contains_key(&ExportId(2)));
    assert!(refused, "{}", w.tail());
    let why = w.refused[&ExportId(2)].to_string();
    assert!(why.contains("1 writes of a client that has gone are not finished"), "{why}");
    assert!(w.result(1, write).is_none());
    w.open(1, 3, "v", false);
    w.run(Span::secs(5));
    assert!(matches!(w.result(1, write), Some(Err(GuestError::Gone))), "its session was given up");
    w.start(2);
    w.start(3);
    let opened = w.until(Span::secs(8), |w| w.opened.contains_key(&ExportId(3)));
    assert!(opened, "{:?}; {}", w.refused.get(&ExportId(3)), w.tail());
    assert!(w.metad.volumes[&branch].epoch > epoch);
    let read = w.read(1, 3, 0, 4096);
    assert!(read == [1; 4096] || read == [2; 4096]);
    w.run(Span::secs(5));
    assert_eq!(w.read(1, 3, 0, 4096), read, "and that is what it stays");
}
