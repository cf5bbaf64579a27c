//! The whole way: guest -> session -> stores of three nodes and back, over real bytes.
#![expect(clippy::unwrap_used, reason = "a test")]

mod world;

use node::event::Notice;
use node::{Event, ExportError};
use proto::{BranchId, ExportId, NodeId, Span};
use volume::{GuestOp, GuestReply};
use world::World;

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| seed.wrapping_mul(31).wrapping_add((i / 7 % 251).try_into().unwrap())).collect()
}

/// Three nodes and a volume that is ready.
fn made(chunks: u32) -> (World, BranchId) {
    let mut w = World::new(3);
    w.run(Span::millis(300));
    let branch = w.metad.create("v", chunks, &[1, 2, 3]);
    let ready = w.until(Span::secs(5), |w| w.metad.volumes[&branch].placement.is_none());
    assert!(ready, "{}", w.tail());
    let serves = w.until(Span::secs(5), |w| w.node(1).session(branch).is_some_and(|s| s.is_serving()));
    assert!(serves, "{}", w.tail());
    w.metad.appoint(branch, None);
    let closed = w.until(Span::secs(5), |w| w.node(1).session(branch).is_none());
    assert!(closed, "{}", w.tail());
    assert_eq!(w.metad.detached_cleanly, 1, "a maintenance session closes cleanly");
    (w, branch)
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
