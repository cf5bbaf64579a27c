//! A volume gets smaller: what lies beyond its new end reads as zeroes everywhere, for good, and nothing else changes. The
//! world looks at every replica, as flushed, when metad sets the size.
#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use proptest::prelude::*;
use proto::control::{JobOrder, JobTrouble, JobWork, SessionKind};
use proto::*;
use std::collections::BTreeMap;
use volume::*;
use world::family::block_of;
use world::judge::Kind;
use world::metad::{Metad, configuration};
use world::*;

const CHUNK: u64 = 16 << 20;
const BLOCKS: u64 = CHUNK / 4096;

/// Three chunks on nodes 1 to 3, served on node 1 to a guest.
fn served(seed: u64) -> World {
    let all = (0..3).map(|_| configuration(1, &[1, 2, 3], 100)).collect();
    let mut w = World::new(seed, 3, Metad::new(all));
    w.attach(NodeId(1), SessionKind::Guest);
    w.calm(20);
    assert!(w.hosts[0].session.is_serving());
    w
}
fn last(w: &World) -> usize {
    w.hosts.len() - 1
}
fn ask(w: &mut World, op: GuestOp) -> Vec<u64> {
    let h = last(w);
    let ticket = w.judge.begin(Kind::Other, 0, 0, w.hosts[h].epoch);
    w.event(h, Event::Guest(GuestRequest { ticket, op }));
    w.calm(40);
    let answer = w.judge.ops[&ticket].result.clone();
    answer.unwrap_or_else(|| panic!("{}", w.hosts[h].session.explain())).unwrap()
}
fn write(w: &mut World, block: u64, value: u64) {
    let mut buf = PageBuf::zeroed(1);
    buf.bytes_mut().copy_from_slice(&block_of(value));
    let data = GuestData { payload: buf.freeze() };
    ask(w, GuestOp::Write { offset: block * 4096, len: 4096, data, fua: false });
}
fn read(w: &mut World, block: u64, count: u32) -> Vec<u64> {
    ask(w, GuestOp::Read { offset: block * 4096, len: count * 4096 })
}
fn snapshot(w: &mut World) {
    assert!(w.snapshot(false));
    w.push_views(last(w));
    w.calm(60);
    assert_eq!(w.metad.views().sealing, None);
}
/// The guest goes.
fn detach(w: &mut World) {
    let h = last(w);
    w.event(h, Event::Close);
    w.calm(60);
    assert_eq!(w.hosts[h].closed, Some(CloseReason::Clean));
}
fn order(w: &mut World, job: u64, to: u64, discard: bool) {
    let from = w.metad.attached.geometry.size;
    w.metad.decided();
    w.metad.attached.job = Some(JobOrder { job: JobId(job), work: JobWork::Shrink { from, to, discard } });
}
fn cancel(w: &mut World) {
    w.metad.decided();
    w.metad.attached.job = None;
}
/// What metad's heartbeats bring about.
fn tell(w: &mut World) {
    let (h, index) = (last(w), w.metad.views().index);
    let (job, geometry, placement) =
        (w.metad.attached.job, w.metad.attached.geometry, w.metad.attached.placement);
    w.event(h, Event::Resized { index, geometry, placement });
    w.event(h, Event::Job { index, job });
}
fn maintain(w: &mut World, node: u32) {
    w.attach(NodeId(node), SessionKind::Maintenance);
}
fn until_over(w: &mut World) {
    for _ in 0..400 {
        if w.metad.attached.job.is_none() {
            return w.calm(10);
        }
        w.calm(10);
        tell(w);
    }
    let h = last(w);
    panic!("{:?}: {}", w.hosts[h].session.status(), w.hosts[h].session.explain());
}
fn size(w: &World) -> u64 {
    w.metad.attached.geometry.size
}
/// As large as it was, and a guest again.
fn grow(w: &mut World) {
    let h = last(w);
    w.kill_session(h);
    w.metad.decided();
    w.metad.attached.geometry.size = 3 * CHUNK;
    w.attach(NodeId(2), SessionKind::Guest);
    w.calm(60);
    assert!(w.hosts.last().unwrap().session.is_serving());
}

#[test]
fn what_is_written_beyond_the_end_ends_the_job_and_its_last_byte_is_named() {
    let mut w = served(1);
    for (block, value) in [(5, 55), (2 * BLOCKS + 7, 77), (BLOCKS + 3, 33)] {
        write(&mut w, block, value);
    }
    detach(&mut w);
    order(&mut w, 1, CHUNK, false);
    maintain(&mut w, 2);
    until_over(&mut w);
    assert_eq!(w.metad.written, Some((2 * BLOCKS + 8) * 4096 - 1));
    assert_eq!((size(&w), w.hosts.last().unwrap().session.geometry().size), (3 * CHUNK, 3 * CHUNK));
    assert_eq!(w.hosts.last().unwrap().session.status().job, None, "it is over");
    order(&mut w, 2, 2 * CHUNK + 8 * 4096, false);
    tell(&mut w);
    until_over(&mut w);
    assert_eq!((w.metad.written, size(&w)), (None, 2 * CHUNK + 8 * 4096), "just behind it");
    assert_eq!(w.hosts.last().unwrap().session.geometry().size, size(&w));
    grow(&mut w);
    assert_eq!(read(&mut w, 2 * BLOCKS + 6, 4), [0, 77, 0, 0]);
}

#[test]
fn what_is_discarded_is_zeroes_after_a_growth_and_snapshots_keep_it() {
    let mut w = served(2);
    // The end lies within an extent, between two blocks that are written.
    let end = BLOCKS + 21;
    for block in [5, end - 1, end, end + 1, end + 40, 2 * BLOCKS, 3 * BLOCKS - 1] {
        write(&mut w, block, 1000 + block);
    }
    snapshot(&mut w);
    write(&mut w, end + 1, 2000);
    ask(&mut w, GuestOp::Discard { offset: (end + 40) * 4096, len: 4096, fua: false });
    detach(&mut w);
    order(&mut w, 1, end * 4096, true);
    maintain(&mut w, 3);
    until_over(&mut w);
    assert_eq!(size(&w), end * 4096);
    w.frozen().unwrap();
    grow(&mut w);
    assert_eq!(read(&mut w, end - 1, 3), [1000 + end - 1, 0, 0]);
    assert_eq!(read(&mut w, end + 40, 1), [0]);
    assert_eq!(read(&mut w, 3 * BLOCKS - 1, 1), [0]);
    assert_eq!(read(&mut w, 5, 1), [1005]);
    for n in 1..=3 {
        let drive = w.drive(DriveId(n * 10));
        let of = |chunk, block| drive.value_at(chunk, block, message::View::At(Generation(1)));
        assert_eq!((of(1, 21), of(1, 61), of(2, 0)), (1000 + end, 1000 + end + 40, 1000 + 2 * BLOCKS));
    }
    // In the head it takes new data.
    write(&mut w, 2 * BLOCKS, 9);
    assert_eq!(read(&mut w, 2 * BLOCKS, 2), [9, 0]);
    w.frozen().unwrap();
}

#[test]
fn what_is_called_off_stops() {
    let mut w = served(3);
    write(&mut w, 2 * BLOCKS, 22);
    write(&mut w, BLOCKS, 11);
    snapshot(&mut w);
    detach(&mut w);
    for n in 1..=3 {
        w.drive(DriveId(n * 10)).full = true;
    }
    order(&mut w, 1, CHUNK, true);
    maintain(&mut w, 1);
    w.calm(300);
    let status = w.hosts.last().unwrap().session.status().job.unwrap();
    assert_eq!((status.job, status.trouble), (JobId(1), Some(JobTrouble::NoSpace)));
    assert_eq!((status.done, status.total), (0, 2 * CHUNK));
    cancel(&mut w);
    tell(&mut w);
    w.calm(20);
    assert_eq!(w.hosts.last().unwrap().session.status().job, None);
    for n in 1..=3 {
        w.drive(DriveId(n * 10)).full = false;
    }
    w.calm(300);
    assert_eq!((w.drive(DriveId(10)).value(2, 0), size(&w)), (22, 3 * CHUNK));
}

/// Too few replicas are there: the zeroes wait, and do not come about later when the job was called off.
#[test]
fn zeroes_that_wait_for_replicas_go_with_their_job() {
    let mut w = served(4);
    write(&mut w, 2 * BLOCKS, 22);
    detach(&mut w);
    w.metad.chunks[2] = configuration(2, &[1], 100);
    order(&mut w, 1, CHUNK, true);
    maintain(&mut w, 1);
    w.calm(100);
    assert_eq!(w.hosts.last().unwrap().session.status().job.unwrap().job, JobId(1));
    cancel(&mut w);
    tell(&mut w);
    w.calm(10);
    assert_eq!(w.hosts.last().unwrap().session.status().job, None);
    w.metad.chunks[2] = configuration(3, &[1, 2, 3], 100);
    let h = last(&w);
    w.event(h, Event::ChunksChanged { chunks: vec![ChunkIndex(2)] });
    w.calm(200);
    assert_eq!(w.drive(DriveId(10)).value(2, 0), 22);
}

/// It was called off, a guest has written there since, and then the word of it comes to a session that is younger.
#[test]
fn a_late_order_is_not_acted_on() {
    let mut w = served(5);
    detach(&mut w);
    order(&mut w, 1, CHUNK, true);
    let late = Event::Job { index: w.metad.views().index, job: w.metad.attached.job };
    let small = Geometry { size: CHUNK, chunk_shift: 24 };
    let size_late = Event::Resized { index: w.metad.views().index, geometry: small, placement: None };
    cancel(&mut w);
    w.attach(NodeId(2), SessionKind::Guest);
    w.calm(40);
    write(&mut w, 2 * BLOCKS, 22);
    // A guest's session does not do it at all.
    let h = last(&w);
    w.event(
        h,
        Event::Job {
            index: ListIndex(1 << 40),
            job: Some(JobOrder {
                job: JobId(1),
                work: JobWork::Shrink { from: 3 * CHUNK, to: CHUNK, discard: true },
            }),
        },
    );
    w.calm(100);
    assert_eq!(read(&mut w, 2 * BLOCKS, 1), [22]);
    detach(&mut w);
    maintain(&mut w, 1);
    w.calm(40);
    let h = last(&w);
    w.event(h, late);
    w.event(h, size_late);
    w.calm(200);
    assert_eq!((w.drive(DriveId(10)).value(2, 0), w.hosts[h].session.geometry().size), (22, 3 * CHUNK));
}

/// The session dies after so many rounds of its work, with the power of a node or without; another one ends it.
#[test]
fn whenever_the_session_dies_the_next_one_ends_the_job() {
    for rounds in 0..40 {
        let mut w = served(rounds);
        for block in [7, BLOCKS, BLOCKS + 1, 2 * BLOCKS + 100] {
            write(&mut w, block, 100 + block);
        }
        if rounds % 2 == 0 {
            snapshot(&mut w);
        }
        detach(&mut w);
        order(&mut w, 1, BLOCKS * 4096 + 4096, true);
        maintain(&mut w, 2);
        w.calm(usize::try_from(rounds).unwrap());
        let h = last(&w);
        w.kill_session(h);
        w.crash(NodeId(1 + u32::try_from(rounds % 3).unwrap()), true);
        maintain(&mut w, 3);
        until_over(&mut w);
        assert_eq!((size(&w), w.metad.written), (BLOCKS * 4096 + 4096, None), "{rounds}");
        w.frozen().unwrap();
        grow(&mut w);
        assert_eq!(read(&mut w, BLOCKS, 2), [100 + BLOCKS, 0], "{rounds}");
        assert_eq!(read(&mut w, 2 * BLOCKS + 100, 1), [0], "{rounds}");
        assert_eq!(read(&mut w, 7, 1), [107]);
        w.same().unwrap();
    }
}

/// Guests, snapshots, shrinks and growths in turn, under lost links, sessions, answers, and power.
fn walk(seed: u64) {
    let mut rng = Rng(seed);
    let mut w = served(seed);
    let mut is: BTreeMap<u64, u64> = BTreeMap::new();
    for round in 0..6u64 {
        for i in 0..8 {
            let block = rng.next() % 3 * BLOCKS + rng.next() % 40;
            write(&mut w, block, 1000 * (round + 1) + i);
            is.insert(block, 1000 * (round + 1) + i);
        }
        if rng.chance(60) {
            snapshot(&mut w);
        }
        detach(&mut w);
        let end = BLOCKS * (rng.next() % 3) + 256 + rng.next() % 40;
        let discard = rng.chance(80);
        let holds = is.keys().next_back().copied().filter(|b| *b >= end);
        order(&mut w, round, end * 4096, discard);
        maintain(&mut w, 1 + u32::try_from(rng.below(3)).unwrap());
        let mut called_off = false;
        for _ in 0..rng.below(30) {
            match rng.below(12) {
                0 => w.disconnect(last(&w), NodeId(1 + u32::try_from(rng.below(3)).unwrap())),
                1 => w.metad_step(true),
                2 if rng.chance(30) => {
                    let h = last(&w);
                    w.kill_session(h);
                    if rng.chance(50) {
                        w.crash(NodeId(1 + u32::try_from(rng.below(3)).unwrap()), true);
                    }
                    maintain(&mut w, 1 + u32::try_from(rng.below(3)).unwrap());
                }
                3 if rng.chance(10) && w.metad.attached.job.is_some() => {
                    cancel(&mut w);
                    called_off = true;
                }
                4 => tell(&mut w),
                _ => w.calm(1),
            }
        }
        until_over(&mut w);
        tell(&mut w);
        let smaller = size(&w) < 3 * CHUNK;
        assert!(called_off || smaller == (discard || holds.is_none()), "{holds:?}");
        if !smaller && !discard {
            assert!(called_off || w.metad.written == holds.map(|b| (b + 1) * 4096 - 1));
        }
        grow(&mut w);
        for (block, value) in is.clone() {
            let got = read(&mut w, block, 1)[0];
            let gone = block >= end && discard;
            // One that was called off may have zeroed some of it.
            assert!(got == value && !(gone && smaller) || got == 0 && gone, "{block}: {got} was {value}");
            if got == 0 {
                is.remove(&block);
            }
        }
        w.same().unwrap();
        w.frozen().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_beyond_the_end_comes_back_and_nothing_else_changes(seed in any::<u64>()) {
        walk(seed);
    }
}
