//! A volume grows while a guest uses it: the session makes the new chunks, and the guest sees them when all are in force.
#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use proptest::prelude::*;
use proto::control::SessionKind;
use proto::*;
use std::collections::BTreeMap;
use volume::*;
use world::family::block_of;
use world::judge::Kind;
use world::metad::{Metad, configuration};
use world::*;

const CHUNK: u64 = 16 << 20;

/// One chunk on nodes 1 to 3 of five, served on node 1.
fn served(seed: u64) -> World {
    let mut w = World::new(seed, 5, Metad::new(vec![configuration(1, &[1, 2, 3], 100)]));
    w.attach(NodeId(1), SessionKind::Guest);
    w.calm(20);
    assert!(w.hosts[0].session.is_serving());
    w
}
/// Raft has placed so many more chunks, on nodes that the session may not know.
fn order(w: &mut World, chunks: usize, nodes: &[u32]) -> Geometry {
    let first = w.metad.chunks.len();
    for i in 0..chunks {
        w.metad.chunks.push(configuration(0, nodes, 200 + (first + i) as u64));
    }
    let geometry = Geometry { size: w.metad.chunks.len() as u64 * CHUNK, chunk_shift: 24 };
    w.metad.attached.geometry = geometry;
    w.metad.attached.placement = (chunks > 0).then_some(2);
    w.metad.decided();
    geometry
}
fn tell(w: &mut World, geometry: Geometry) {
    let h = w.hosts.len() - 1;
    let (index, placement) = (w.metad.views().index, w.metad.attached.placement);
    w.event(h, Event::Resized { index, geometry, placement });
}
fn size(w: &World) -> u64 {
    w.hosts.last().unwrap().session.geometry().size
}
fn ask(w: &mut World, op: GuestOp) -> Ticket {
    let h = w.hosts.len() - 1;
    let epoch = w.hosts[h].epoch;
    let ticket = w.judge.begin(Kind::Other, 0, 0, epoch);
    w.event(h, Event::Guest(GuestRequest { ticket, op }));
    ticket
}
fn write(w: &mut World, block: u64, value: u64) -> Ticket {
    let mut buf = PageBuf::zeroed(1);
    buf.bytes_mut().copy_from_slice(&block_of(value));
    ask(
        w,
        GuestOp::Write {
            offset: block * 4096,
            len: 4096,
            data: GuestData { payload: buf.freeze() },
            fua: false,
        },
    )
}
fn read(w: &mut World, block: u64) -> Ticket {
    ask(w, GuestOp::Read { offset: block * 4096, len: 4096 })
}
fn must(w: &mut World, t: Ticket) -> Vec<u64> {
    w.calm(60);
    let answer = w.judge.ops[&t].result.clone();
    answer.unwrap_or_else(|| panic!("{}", w.hosts.last().unwrap().session.explain())).unwrap()
}
fn grown(w: &mut World, to: u64) {
    for _ in 0..200 {
        w.calm(10);
        if size(w) == to {
            return;
        }
    }
    panic!("{} instead of {to}: {}", size(w), w.hosts.last().unwrap().session.explain());
}

#[test]
fn a_guest_writes_on_while_its_volume_grows_onto_other_nodes() {
    let mut w = served(1);
    let t = write(&mut w, 1, 11);
    must(&mut w, t);
    let to = order(&mut w, 2, &[3, 4, 5]);
    tell(&mut w, to);
    assert_eq!(size(&w), CHUNK, "not before the chunks are in force");
    let (during, beyond) = (write(&mut w, 2, 22), write(&mut w, 4096 + 5, 33));
    assert_eq!(must(&mut w, during), [0; 0]);
    assert_eq!(w.judge.ops[&beyond].result, Some(Err(GuestError::Invalid)), "asked too early");
    grown(&mut w, 3 * CHUNK);
    assert_eq!(w.hosts.len(), 1, "the same session");
    assert!(w.metad.chunks.iter().all(|c| c.number.0 > 0));
    let late = write(&mut w, 2 * 4096 + 7, 44);
    must(&mut w, late);
    for n in 3..=5 {
        assert_eq!(w.drive(DriveId(n * 10)).value(2, 7), 44);
    }
    for (block, value) in [(1, 11), (2, 22), (2 * 4096 + 7, 44), (2 * 4096 + 8, 0)] {
        let t = read(&mut w, block);
        assert_eq!(must(&mut w, t), [value]);
    }
    // told again, late, and of less
    let small = Geometry { size: 2 * CHUNK, chunk_shift: 24 };
    w.event(0, Event::Resized { index: ListIndex(0), geometry: small, placement: None });
    tell(&mut w, to);
    w.calm(20);
    assert_eq!(size(&w), 3 * CHUNK);
}

#[test]
fn within_the_last_chunk_it_grows_at_once() {
    let mut w = World::new(1, 3, Metad::new(vec![configuration(1, &[1, 2, 3], 100)]));
    w.metad.attached.geometry.size = CHUNK / 2;
    w.attach(NodeId(1), SessionKind::Guest);
    w.calm(20);
    let to = order(&mut w, 0, &[]);
    tell(&mut w, to);
    assert_eq!(size(&w), CHUNK);
}

#[test]
fn a_drive_that_does_not_answer_is_placed_around() {
    let mut w = served(3);
    w.cut = Some(NodeId(5));
    w.disconnect(0, NodeId(5));
    let to = order(&mut w, 1, &[3, 4, 5]);
    tell(&mut w, to);
    let t = write(&mut w, 2, 22);
    must(&mut w, t);
    grown(&mut w, 2 * CHUNK);
    assert_eq!(w.metad.failed_at_creation, [DriveId(50)]);
}

/// metad's answer names all chunks since the growth began: what is in force may have a resync under way.
#[test]
fn what_is_in_force_is_not_taken_up_again() {
    let mut w = served(5);
    let t = write(&mut w, 1, 11);
    must(&mut w, t);
    let to = order(&mut w, 1, &[3, 4, 5]);
    tell(&mut w, to);
    w.held = |r| matches!(r, control::MetaRequest::Created { .. });
    let (h, token, request) = w.take_held();
    w.metad.chunks[0].members[2].state = MemberState::Stale;
    w.metad.chunks[0].number = ConfigNumber(2);
    w.event(h, Event::ChunksChanged { chunks: vec![ChunkIndex(0)] });
    let begun = |w: &World| w.hosts[0].notices.iter().any(|n| matches!(n, Notice::ResyncStarted { .. }));
    for _ in 0..2000 {
        if begun(&w) {
            break;
        }
        w.calm(1);
    }
    assert!(begun(&w), "{}", w.hosts[0].session.explain());
    let epoch = w.hosts[h].epoch;
    let answer = w.metad.apply(epoch, &request);
    w.event(h, Event::Meta { token, answer });
    grown(&mut w, 2 * CHUNK);
    w.calm(400);
    assert_eq!(w.metad.chunks[0].in_sync_count(), 3);
}

#[test]
fn a_session_that_opens_meanwhile_serves_what_is_made_and_makes_the_rest() {
    let mut w = served(4);
    let t = write(&mut w, 1, 11);
    must(&mut w, t);
    let to = order(&mut w, 2, &[2, 4, 5]);
    tell(&mut w, to);
    w.kill_session(0);
    let h = w.attach(NodeId(2), SessionKind::Guest);
    // Of the new chunks nobody answers yet: what is made is served all the same.
    for _ in 0..40 {
        if w.hosts[h].session.is_serving() {
            break;
        }
        w.calm(1);
    }
    assert!(w.hosts[h].session.is_serving());
    grown(&mut w, 3 * CHUNK);
    let t = read(&mut w, 1);
    assert_eq!(must(&mut w, t), [11]);
}

/// Growth at random moments, under writes, lost links and lost sessions: nothing acknowledged goes.
fn walk(seed: u64) {
    let mut rng = Rng(seed);
    let mut w = served(seed);
    let mut is: BTreeMap<u64, u64> = BTreeMap::new();
    let mut to = w.hosts[0].session.geometry();
    for i in 0..80 {
        let blocks = size(&w) / 4096;
        match rng.below(10) {
            0 if w.metad.attached.placement.is_none() && w.metad.chunks.len() < 6 => {
                let first = 1 + u32::try_from(rng.below(3)).unwrap();
                let more = 1 + rng.below(2);
                to = order(&mut w, more, &[first, first + 1, first + 2]);
                if rng.chance(70) {
                    tell(&mut w, to);
                }
            }
            1 => w.disconnect(w.hosts.len() - 1, NodeId(1 + u32::try_from(rng.below(5)).unwrap())),
            2 if rng.chance(30) => {
                w.kill_session(w.hosts.len() - 1);
                w.attach(NodeId(1 + u32::try_from(rng.below(3)).unwrap()), SessionKind::Guest);
                w.calm(60);
            }
            3 => tell(&mut w, to),
            _ => {
                let block = rng.next() % blocks;
                let t = write(&mut w, block, 100 + i);
                must(&mut w, t);
                is.insert(block, 100 + i);
            }
        }
        let some = rng.below(4);
        w.calm(some);
    }
    tell(&mut w, to);
    grown(&mut w, to.size);
    for (block, value) in is {
        let t = read(&mut w, block);
        assert_eq!(must(&mut w, t), [value], "block {block}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn growth_loses_nothing(seed in any::<u64>()) {
        walk(seed);
    }
}
