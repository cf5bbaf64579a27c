//! Attaching: what a guest and metad see when answers come late, and when the disk changes hands.

use super::{heals, made};
use crate::world::{World, drive_of};
use proto::{ExportId, Span};

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
