//! A clone among parents that refuse, move, are incomplete and have several levels: what its guest sees is what the
//! clone has, else the nearest parent, else zeroes; and zeroes are never what could not be asked.
#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use proptest::prelude::*;
use proto::control::SessionKind;
use proto::message::BlockState;
use proto::*;
use std::collections::BTreeMap;
use volume::*;
use world::family::{Family, block_of};
use world::judge::Kind;
use world::metad::{Metad, configuration};
use world::*;

const CHUNK: u64 = 16 << 20;

/// One chunk on nodes 1 to 3 of four, a clone of `sizes`; its parents lie on nodes 2 to 4.
fn clone_of(seed: u64, sizes: &[u64], blocks: impl Iterator<Item = u32>) -> World {
    let mut w = World::new(seed, 4, Metad::new(vec![configuration(1, &[1, 2, 3], 100)]));
    let places: Vec<(u32, u32)> = blocks.map(|b| (0, b)).collect();
    let family = Family::new(&mut Rng(seed), 24, sizes, &places, 4);
    w.descend(family);
    w.attach(NodeId(1), SessionKind::Guest);
    w
}
fn serve(w: &mut World) {
    w.calm(20);
    assert!(w.hosts[0].session.is_serving());
}
fn set(w: &mut World, level: usize, block: u32, value: u64) {
    w.family.as_mut().unwrap().truth[level].insert((0, block), value);
}

fn ask(w: &mut World, op: GuestOp) -> Ticket {
    let epoch = w.hosts[0].epoch;
    let ticket = w.judge.begin(Kind::Other, 0, 0, epoch);
    w.event(0, Event::Guest(GuestRequest { ticket, op }));
    ticket
}
fn read(w: &mut World, block: u64, blocks: u32) -> Ticket {
    ask(w, GuestOp::Read { offset: block * 4096, len: blocks * 4096 })
}
fn write(w: &mut World, offset: u64, bytes: &[u8]) -> Ticket {
    let first = offset / 4096 * 4096;
    let blocks = usize::try_from((offset + bytes.len() as u64).div_ceil(4096) - first / 4096).unwrap();
    // what lies beside the bytes means nothing
    let mut buf = PageBuf::zeroed(blocks);
    buf.bytes_mut().fill(0xee);
    let skip = usize::try_from(offset - first).unwrap();
    buf.bytes_mut()[skip..skip + bytes.len()].copy_from_slice(bytes);
    let len = u32::try_from(bytes.len()).unwrap();
    ask(w, GuestOp::Write { offset, len, data: GuestData { payload: buf.freeze() }, fua: false })
}
fn answer(w: &World, t: Ticket) -> Option<Result<Vec<u64>, GuestError>> {
    w.judge.ops[&t].result.clone()
}
fn must(w: &mut World, t: Ticket) -> Vec<u64> {
    w.calm(30);
    answer(w, t).unwrap_or_else(|| panic!("{}", w.hosts[0].session.explain())).unwrap()
}
fn family(w: &mut World) -> &mut Family {
    w.family.as_mut().unwrap()
}

#[test]
fn what_is_absent_is_the_nearest_parents_and_below_the_last_it_is_zero() {
    let mut w = clone_of(1, &[CHUNK, CHUNK, CHUNK], 0..0);
    set(&mut w, 0, 1, 11);
    set(&mut w, 1, 1, 21);
    set(&mut w, 1, 2, 22);
    set(&mut w, 0, 3, 0);
    set(&mut w, 2, 3, 33);
    set(&mut w, 2, 4, 34);
    serve(&mut w);
    let t = read(&mut w, 0, 6);
    assert_eq!(must(&mut w, t), [0, 11, 22, 0, 34, 0]);
    // what the clone writes is its own; a discard hides the parents
    let t = write(&mut w, 2 * 4096, &block_of(99));
    must(&mut w, t);
    let t = ask(&mut w, GuestOp::Discard { offset: 4 * 4096, len: 4096, fua: false });
    must(&mut w, t);
    let t = read(&mut w, 0, 6);
    assert_eq!(must(&mut w, t), [0, 11, 99, 0, 0, 0]);
}

#[test]
fn beyond_the_size_of_a_level_those_below_it_are_not_seen() {
    let mut w = clone_of(1, &[CHUNK, 2 * 4096, CHUNK], 0..0);
    set(&mut w, 1, 1, 21);
    set(&mut w, 2, 2, 32);
    set(&mut w, 2, 40, 33);
    serve(&mut w);
    for _ in 0..2 {
        let t = read(&mut w, 0, 64);
        let mut is = vec![0; 64];
        is[1] = 21;
        assert_eq!(must(&mut w, t), is);
    }
}

#[test]
fn a_sector_is_merged_with_what_the_parent_has_and_nothing_else_is_copied() {
    let mut w = clone_of(1, &[CHUNK, CHUNK], 0..0);
    set(&mut w, 1, 5, 77);
    set(&mut w, 0, 40, 78);
    serve(&mut w);
    let t = write(&mut w, 5 * 4096 + 512, &[9; 512]);
    must(&mut w, t);
    for n in 1..=3 {
        let d = w.drive(DriveId(n * 10));
        let block = d.now[&(0, 5)].payload.clone().unwrap();
        let mut is = block_of(77);
        is[512..1024].fill(9);
        assert!(block.bytes() == is);
        assert_eq!(d.now.len(), 1, "one block was written");
    }
    // zeroes to the sector, too
    let t = ask(&mut w, GuestOp::WriteZeroes { offset: 40 * 4096, len: 512, fua: false, no_hole: false });
    must(&mut w, t);
    let mut is = block_of(78);
    is[..512].fill(0);
    assert!(w.drive(DriveId(10)).now[&(0, 40)].payload.clone().unwrap().bytes() == is);
}

#[test]
fn what_nobody_can_be_asked_for_waits_and_nothing_else_does() {
    let mut w = clone_of(1, &[CHUNK], 0..0);
    set(&mut w, 0, 1, 11);
    set(&mut w, 0, 33, 12);
    family(&mut w).refuses = Some(Refusal::UnknownView);
    serve(&mut w);
    let first = write(&mut w, 64 * 4096, &block_of(5));
    must(&mut w, first);
    let (parent, merge) = (read(&mut w, 1, 1), write(&mut w, 33 * 4096 + 512, &[1; 512]));
    let unwritten = read(&mut w, 100, 1);
    w.calm(200);
    assert!(w.hosts[0].session.waits().any(|r| r == WaitReason::Parent));
    // a flush, a write, a read of its own, in the same extent too; a seal
    let own = write(&mut w, 2 * 4096, &block_of(6));
    must(&mut w, own);
    let own = read(&mut w, 2, 1);
    assert_eq!(must(&mut w, own), [6]);
    let flush = ask(&mut w, GuestOp::Flush);
    must(&mut w, flush);
    let generation = w.hosts[0].session.generation();
    assert!(w.snapshot(false));
    w.push_views(0);
    w.calm(60);
    assert!(w.hosts[0].session.generation() > generation, "{}", w.hosts[0].session.explain());
    for t in [parent, merge, unwritten] {
        assert!(answer(&w, t).is_none(), "never zeroes for what could not be asked");
    }
    assert!(!w.drive(DriveId(10)).now.contains_key(&(0, 33)));
    family(&mut w).refuses = None;
    w.calm(200);
    assert_eq!(answer(&w, parent).unwrap().unwrap(), [11]);
    assert_eq!(answer(&w, unwritten).unwrap().unwrap(), [0]);
    answer(&w, merge).unwrap().unwrap();
    assert!(w.hosts[0].session.waits().next().is_none());
    let t = read(&mut w, 33, 1);
    assert_eq!(must(&mut w, t), [12]);
}

#[test]
fn it_does_without_a_leader_once_it_knows_the_places() {
    let mut w = clone_of(1, &[CHUNK, CHUNK], 0..0);
    set(&mut w, 1, 1, 11);
    serve(&mut w);
    w.calm(20);
    let asked = w.questions.len();
    let t = read(&mut w, 1, 1);
    for _ in 0..40 {
        w.now = w.now + Span::millis(5);
        for n in 1..=4 {
            while w.deliver_to_replica(0, NodeId(n)) {}
            while w.deliver_to_session(0, NodeId(n)) {}
        }
        w.wake();
    }
    assert_eq!(answer(&w, t).unwrap().unwrap(), [11]);
    assert_eq!(w.questions.len(), asked, "metad was not asked");
}

#[test]
fn a_parents_replica_that_is_incomplete_or_has_moved_or_is_gone_is_passed_over() {
    let mut w = clone_of(1, &[CHUNK], 0..0);
    set(&mut w, 0, 1, 11);
    serve(&mut w);
    let places: Vec<Place> =
        family(&mut w).places[&(BranchId(20), 0)].members.iter().map(|m| m.place).collect();
    // one is incomplete, one has moved, and the node of the third breaks off under the read
    family(&mut w).incomplete.insert((BranchId(20), 0, places[0]));
    family(&mut w).place(BranchId(20), 0, places[1].node.0);
    let t = read(&mut w, 1, 1);
    w.disconnect(0, places[2].node);
    assert_eq!(must(&mut w, t), [11]);
}

#[test]
fn later_reads_ask_the_one_level_that_has_it_and_nobody_for_what_is_nowhere() {
    let mut w = clone_of(1, &[CHUNK; 5], 0..0);
    for b in 16..32 {
        set(&mut w, 4, b, 100 + u64::from(b));
    }
    serve(&mut w);
    let t = read(&mut w, 0, 48);
    must(&mut w, t);
    // all is known by now
    w.calm(50);
    family(&mut w).asked.clear();
    let t = read(&mut w, 0, 48);
    let is: Vec<u64> = (0..48).map(|b| if (16..32).contains(&b) { 100 + b } else { 0 }).collect();
    assert_eq!(must(&mut w, t), is);
    assert_eq!(family(&mut w).asked, [(4, true, BlockRange::new(16, 16))]);
    // what the clone writes it asks nobody for
    let t = write(&mut w, 16 * 4096, &block_of(1));
    must(&mut w, t);
    family(&mut w).asked.clear();
    let t = read(&mut w, 16, 1);
    assert_eq!(must(&mut w, t), [1]);
    assert_eq!(family(&mut w).asked, []);
}

#[test]
fn the_status_of_blocks_is_that_of_all_levels() {
    let mut w = clone_of(1, &[CHUNK, CHUNK], 0..0);
    set(&mut w, 0, 1, 11);
    set(&mut w, 1, 2, 22);
    set(&mut w, 0, 3, 0);
    set(&mut w, 1, 3, 23);
    set(&mut w, 1, 4000, 24);
    serve(&mut w);
    let t = write(&mut w, 8 * 4096, &block_of(5));
    must(&mut w, t);
    let t = ask(&mut w, GuestOp::Map { offset: 0, len: CHUNK });
    must(&mut w, t);
    let states: Vec<BlockState> =
        w.judge.maps[&t].iter().flat_map(|r| (0..r.count).map(|_| r.state)).collect();
    assert_eq!(states.len(), 4096);
    for (b, s) in states.iter().enumerate() {
        let is = match b {
            1 | 2 | 8 | 4000 => BlockState::Data,
            3 => BlockState::Zero,
            _ => BlockState::Absent,
        };
        assert_eq!(*s, is, "block {b}");
    }
}

#[test]
fn verify_compares_what_the_branch_itself_has() {
    let mut w = clone_of(1, &[CHUNK], 0..64);
    family(&mut w).refuses = Some(Refusal::NoDrive);
    serve(&mut w);
    let t = write(&mut w, 0, &block_of(5));
    must(&mut w, t);
    let t = ask(&mut w, GuestOp::Verify { offset: 0, len: CHUNK });
    must(&mut w, t);
    assert_eq!(w.judge.verified[&t], (vec![], CHUNK));
}

#[test]
fn a_session_that_ends_under_a_read_of_its_parent_ends() {
    let mut w = clone_of(1, &[CHUNK], 0..64);
    family(&mut w).refuses = Some(Refusal::UnknownView);
    serve(&mut w);
    let t = read(&mut w, 1, 1);
    w.calm(10);
    w.event(0, Event::Close);
    w.calm(2000);
    assert!(w.hosts[0].closed.is_some());
    assert_eq!(answer(&w, t).unwrap(), Err(GuestError::Gone));
    assert_eq!(w.hosts[0].session.next_wake(), Time::FAR);
}

/// One request after another, of any kind, while the parents change: to the byte what a model says.
fn model(seed: u64) {
    let mut rng = Rng(seed);
    let sizes: Vec<u64> =
        (0..1 + rng.below(5)).map(|_| [CHUNK, CHUNK, 40 * 4096, 21 * 4096][rng.below(4)]).collect();
    let mut w = clone_of(seed, &sizes, 0..64);
    let mut is: BTreeMap<u64, Vec<u8>> = (0..64u64)
        .map(|b| (b, block_of(family(&mut w).is(0, u32::try_from(b).unwrap()).unwrap_or(0))))
        .collect();
    let mut absent: Vec<bool> = (0..64).map(|b| family(&mut w).is(0, b).is_none()).collect();
    serve(&mut w);
    for i in 0..60u8 {
        let mut f = w.family.take().unwrap();
        if rng.chance(30) {
            f.stir(&mut rng);
        }
        w.family = Some(f);
        if rng.chance(5) {
            let n = NodeId(1 + u32::try_from(rng.below(4)).unwrap());
            w.disconnect(0, n);
        }
        let sectors = 64 * 8;
        let first = rng.below(sectors - 1);
        let most = [8, 40, 300][rng.below(3)];
        let count = 1 + rng.below((sectors - first).min(most));
        let (offset, len) = (first as u64 * 512, count * 512);
        let bytes: Vec<u8> = match rng.below(4) {
            0 => vec![0; len],
            _ => vec![i + 1; len],
        };
        let t = match rng.below(6) {
            0 if bytes[0] == 0 => {
                ask(&mut w, GuestOp::WriteZeroes { offset, len: len as u64, fua: false, no_hole: false })
            }
            0..=2 => write(&mut w, offset, &bytes),
            3 => {
                let t = ask(&mut w, GuestOp::Discard { offset, len: len as u64, fua: false });
                for b in offset.div_ceil(4096)..(offset + len as u64) / 4096 {
                    is.insert(b, vec![0; 4096]);
                    absent[usize::try_from(b).unwrap()] = false;
                }
                end(&mut w, t);
                continue;
            }
            _ => {
                looked(&mut w, &is, &absent);
                continue;
            }
        };
        for (k, byte) in bytes.iter().enumerate() {
            let at = usize::try_from(offset).unwrap() + k;
            is.get_mut(&(at as u64 / 4096)).unwrap()[at % 4096] = *byte;
            absent[at / 4096] = false;
        }
        end(&mut w, t);
    }
    family(&mut w).calm();
    looked(&mut w, &is, &absent);
}

/// Whoever cannot be asked comes back in time.
fn end(w: &mut World, t: Ticket) {
    w.calm(10);
    if answer(w, t).is_none() {
        family(w).calm();
        w.calm(600);
    }
    answer(w, t).unwrap_or_else(|| panic!("{}", w.hosts[0].session.explain())).unwrap();
}

fn looked(w: &mut World, is: &BTreeMap<u64, Vec<u8>>, absent: &[bool]) {
    let t = read(w, 0, 64);
    end(w, t);
    let first: Vec<u64> = is.values().map(|b| u64::from_le_bytes(b[..8].try_into().unwrap())).collect();
    assert_eq!(answer(w, t).unwrap().unwrap(), first);
    let t = ask(w, GuestOp::Map { offset: 0, len: 64 * 4096 });
    end(w, t);
    let states: Vec<BlockState> =
        w.judge.maps[&t].iter().flat_map(|r| (0..r.count).map(|_| r.state)).collect();
    assert_eq!(states.len(), 64);
    for (b, s) in states.iter().enumerate() {
        assert_eq!(*s == BlockState::Absent, absent[b], "block {b}");
        assert!(*s != BlockState::Zero || is[&(b as u64)].iter().all(|x| *x == 0), "block {b}");
    }
    // all of what is merged, not the first bytes alone
    for d in 1..=3u64 {
        let drive = w.drive(DriveId(d * 10));
        for ((_, b), block) in &drive.now {
            let have = block.payload.as_ref().map_or(vec![0; 4096], |p| p.bytes().to_vec());
            assert!(have == is[&u64::from(*b)], "block {b} of drive {d}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_clone_is_what_a_model_says_to_the_byte(seed in any::<u64>()) {
        model(seed);
    }
}

#[cfg(feature = "bugs")]
#[test]
fn the_head_of_a_parent_is_not_what_was_cloned() {
    let mut w = World::new(1, 4, Metad::new(vec![configuration(1, &[1, 2, 3], 100)]));
    w.bugs = Bugs { parent_head: true, ..Bugs::default() };
    let mut f = Family::new(&mut Rng(1), 24, &[CHUNK], &[], 4);
    f.truth[0].insert((0, 1), 11);
    w.descend(f);
    w.attach(NodeId(1), SessionKind::Guest);
    serve(&mut w);
    let t = read(&mut w, 1, 1);
    assert_ne!(must(&mut w, t), [11], "the seeded bug shows");
}
