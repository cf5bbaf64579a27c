//! Snapshots of the whole way: sealed under writes, and read on nodes that have nothing of the volume.

use super::*;
use proto::Generation;
use volume::{GuestError, GuestReply};

pub fn sealed(w: &mut World, branch: BranchId, name: &str) {
    w.metad.snapshot(branch, name);
    let ok = w.until(Span::secs(2), |w| w.metad.is_sealed(branch, name));
    assert!(ok, "{}", w.tail());
    // the lists reach the drives
    w.run(Span::millis(300));
}

#[test]
fn a_snapshot_is_read_on_a_node_without_replicas_while_the_volume_is_written() {
    let (mut w, branch) = made_among(4, 2);
    w.must_open(1, 1, "v", false);
    let (a, b) = (pattern(1, 200_704), pattern(2, 8192));
    w.must_write(1, 1, (16 << 20) - 65_536, &a);
    w.must_write(1, 1, 4096, &b);
    sealed(&mut w, branch, "s");
    for block in 0..8 {
        w.must_write(1, 1, block * 4096, &pattern(9, 4096));
    }
    w.must_write(1, 1, (16 << 20) - 65_536, &pattern(8, 200_704));
    w.must_open(4, 7, "v@s", false);
    let info = w.opened[&ExportId(7)].clone();
    assert!(info.read_only);
    assert_eq!((info.name.as_str(), info.geometry.size), ("v@s", 32 << 20));
    assert_eq!(w.read(4, 7, (16 << 20) - 65_536, 200_704), a);
    assert_eq!(w.read(4, 7, 0, 16_384), [vec![0; 4096], b.clone(), vec![0; 4096]].concat());
    assert_eq!(w.read(1, 1, 4096, 4096), pattern(9, 4096), "the volume itself goes on");
    // block status, too
    let t = w.ask(4, 7, GuestOp::Map { offset: 0, len: 32 << 20 });
    let GuestReply::Map(runs) = w.wait(7, t, Span::secs(2)).unwrap() else { panic!("a map") };
    let data: u32 =
        runs.iter().filter(|r| r.state == proto::message::BlockState::Data).map(|r| r.count).sum();
    assert_eq!(data, 2 + 49);
    // nothing is written
    let t = w.write(4, 7, 0, &b);
    assert_eq!(w.wait(7, t, Span::secs(1)).unwrap_err(), GuestError::ReadOnly);
    // nor is a session or metad needed
    w.kill(1);
    w.metad.leaderless = true;
    assert_eq!(w.read(4, 7, 4096, 8192), b);
    w.close(4, 7);
    w.run(Span::millis(50));
    assert_eq!(w.node(4).seats_attaching().len(), 0);
}

#[test]
fn one_node_after_another_may_fail_under_a_reader() {
    let (mut w, branch) = made_among(4, 1);
    w.must_open(4, 1, "v", false);
    let a = pattern(3, 65_536);
    w.must_write(4, 1, 0, &a);
    sealed(&mut w, branch, "s");
    w.must_open(4, 2, "v@s", false);
    for n in 1..=3 {
        w.kill(n);
        let t = w.ask(4, 2, GuestOp::Read { offset: 0, len: 65_536 });
        w.run(Span::secs(1));
        assert!(w.result(2, t).is_some_and(Result::is_ok));
        assert_eq!(w.read(4, 2, 0, 65_536), a);
        w.start(n);
        w.run(Span::secs(2));
    }
}

#[test]
fn a_snapshot_that_is_deleted_while_it_is_open_is_an_error_and_not_zeroes() {
    let (mut w, branch) = made_among(4, 1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 0, &pattern(3, 4096));
    sealed(&mut w, branch, "s");
    w.must_write(1, 1, 0, &pattern(4, 4096));
    w.must_open(4, 2, "v@s", false);
    assert_eq!(w.read(4, 2, 0, 4096), pattern(3, 4096));
    w.metad.delete_snapshot(branch, "s");
    w.run(Span::secs(2));
    let t = w.ask(4, 2, GuestOp::Read { offset: 0, len: 4096 });
    assert_eq!(w.wait(2, t, Span::secs(3)).unwrap_err(), GuestError::Io);
    assert!(w.broken.contains(&ExportId(2)), "who comes anew asks anew");
    let t = w.ask(4, 2, GuestOp::Read { offset: 0, len: 4096 });
    assert_eq!(w.wait(2, t, Span::secs(1)).unwrap_err(), GuestError::Io);
    w.open(4, 3, "v@s", false);
    w.run(Span::secs(1));
    assert_eq!(w.refused[&ExportId(3)], ExportError::NoSuchSnapshot);
}

#[test]
fn several_exports_share_a_reader_and_what_is_not_there_is_refused() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, 0, &pattern(3, 4096));
    w.open(2, 2, "v@s", false);
    w.open(2, 3, "u@s", false);
    w.run(Span::secs(1));
    assert_eq!(w.refused[&ExportId(2)], ExportError::NoSuchSnapshot);
    assert_eq!(w.refused[&ExportId(3)], ExportError::NoSuchVolume);
    sealed(&mut w, branch, "s");
    w.must_open(2, 4, "v@s", false);
    w.must_open(2, 5, "v@s", false);
    w.close(2, 4);
    w.run(Span::secs(3));
    assert_eq!(w.read(2, 5, 0, 4096), pattern(3, 4096));
    w.event(2, Event::Shutdown);
    let stopped = w.until(Span::secs(10), |w| w.stopped.contains(&NodeId(2)));
    assert!(stopped, "{}", w.tail());
}

#[test]
fn a_session_elsewhere_seals_what_its_dead_predecessor_was_asked_to() {
    let (mut w, branch) = made(1);
    w.must_open(1, 1, "v", false);
    let a = pattern(5, 4096);
    w.must_write(1, 1, 0, &a);
    w.kill(1);
    w.metad.snapshot(branch, "s");
    w.must_open(2, 2, "v", false);
    w.must_write(2, 2, 0, &pattern(6, 4096));
    let ok = w.until(Span::secs(5), |w| w.metad.is_sealed(branch, "s"));
    assert!(ok, "{}", w.tail());
    w.start(1);
    heals(&mut w, branch);
    w.run(Span::secs(1));
    w.must_open(1, 3, "v@s", false);
    assert_eq!(w.read(1, 3, 0, 4096), a);
    assert_eq!(w.read(2, 2, 0, 4096), pattern(6, 4096));
}

/// Blocks that are told as changed, of the first `count`.
fn changed(w: &mut World, node: u32, export: u64, count: u64, since: u32) -> Vec<u64> {
    let op = GuestOp::Changes { offset: 0, len: count * 4096, since: Generation(since) };
    let t = w.ask(node, export, op);
    let GuestReply::Map(runs) = w.wait(export, t, Span::secs(2)).unwrap() else { panic!("a map") };
    let flags = runs
        .iter()
        .flat_map(|r| std::iter::repeat_n(r.state != proto::message::BlockState::Absent, r.count as usize));
    (0..).zip(flags).filter(|(_, c)| *c).map(|(i, _)| i).collect()
}

#[test]
fn what_has_changed_since_a_snapshot_is_told_by_the_session_and_by_readers() {
    let (mut w, branch) = made_among(4, 2);
    w.must_open(1, 1, "v", false);
    let write = |w: &mut World, block: u64, seed| w.must_write(1, 1, block * 4096, &pattern(seed, 4096));
    (0..6).for_each(|b| write(&mut w, b, 1));
    sealed(&mut w, branch, "a");
    write(&mut w, 1, 2);
    write(&mut w, 40, 2);
    sealed(&mut w, branch, "b");
    write(&mut w, 2, 3);
    let t = w.ask(1, 1, GuestOp::Discard { offset: 3 * 4096, len: 4096, fua: false });
    w.wait(1, t, Span::secs(2)).unwrap();
    assert_eq!(changed(&mut w, 1, 1, 64, 1), [1, 2, 3, 40], "at the head, since a");
    assert_eq!(changed(&mut w, 1, 1, 64, 2), [2, 3], "since b");
    assert_eq!(changed(&mut w, 1, 1, 64, 0), [0, 1, 2, 3, 4, 5, 40], "all that there is");
    w.must_open(4, 7, "v@b", false);
    assert_eq!(changed(&mut w, 4, 7, 64, 1), [1, 40]);
    let op = GuestOp::Changes { offset: 0, len: 4096, since: Generation(2) };
    let t = w.ask(4, 7, op);
    assert_eq!(w.wait(7, t, Span::secs(2)).unwrap_err(), GuestError::Invalid, "not older");
    w.metad.delete_snapshot(branch, "a");
    w.run(Span::secs(2));
    for (node, export) in [(1, 1), (4, 7)] {
        let t = w.ask(node, export, GuestOp::Changes { offset: 0, len: 4096, since: Generation(1) });
        assert_eq!(w.wait(export, t, Span::secs(5)).unwrap_err(), GuestError::Io, "a is deleted");
    }
    assert_eq!(changed(&mut w, 1, 1, 64, 2), [2, 3], "b is not");
}
