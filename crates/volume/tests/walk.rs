//! Random walks: a guest, broken links, restarts, power losses one at a time, takeovers, a late and forgetful
//! metad. Per block linearizable, the invariant of section 3, equal replicas; and everything completes, with all
//! replicas in-sync, once faults stop.
#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use proptest::prelude::*;
use proto::control::SessionKind;
use proto::*;
use volume::*;
use world::family::Family;
use world::judge::Kind;
use world::metad::{Metad, configuration};
use world::*;

const CHUNK: u64 = 16 << 20;
const CHUNK_BLOCKS: u64 = 4096;

fn world(seed: u64) -> World {
    World::new(
        seed,
        4,
        Metad::new(vec![configuration(1, &[1, 2, 3], 100), configuration(1, &[2, 3, 4], 101)]),
    )
}

fn newest(w: &World) -> Option<usize> {
    (0..w.hosts.len()).rev().find(|&h| w.hosts[h].closed.is_none())
}

fn guest(w: &mut World) {
    let alive: Vec<usize> = (0..w.hosts.len()).filter(|&h| w.hosts[h].closed.is_none()).collect();
    let Some(&newest) = alive.last() else { return };
    // an older session that lives is still asked now and then
    let h = if w.rng.chance(25) { alive[w.rng.below(alive.len())] } else { newest };
    let epoch = w.hosts[h].epoch;
    // few blocks, around an extent's border, in two chunks; zeroes in an extent of their own
    let first = [12, 14, CHUNK_BLOCKS + 2][w.rng.below(3)] + w.rng.below(3) as u64;
    let count = 1 + w.rng.below(4) as u64;
    let roll = w.rng.below(100);
    let (kind, op) = if roll < 45 {
        let values: Vec<u64> = (0..count).map(|_| w.judge.value()).collect();
        let mut buf = PageBuf::zeroed(values.len());
        for (i, v) in values.iter().enumerate() {
            buf.bytes_mut()[i * 4096..i * 4096 + 8].copy_from_slice(&v.to_le_bytes());
            buf.bytes_mut()[i * 4096 + 4088..(i + 1) * 4096].copy_from_slice(&v.to_le_bytes());
        }
        let len = u32::try_from(count * 4096).unwrap();
        let fua = w.rng.chance(10);
        let data = GuestData { payload: buf.freeze() };
        (Kind::Write(values), GuestOp::Write { offset: first * 4096, len, data, fua })
    } else if roll < 85 {
        (Kind::Read, GuestOp::Read { offset: first * 4096, len: u32::try_from(count * 4096).unwrap() })
    } else if roll < 92 {
        (Kind::Other, GuestOp::Flush)
    } else if roll < 96 {
        let offset = CHUNK - (2 + w.rng.below(20) as u64) * 4096;
        let len = (1 + w.rng.below(30) as u64) * 2048;
        (
            Kind::Other,
            GuestOp::WriteZeroes { offset, len: len.min(CHUNK - offset), fua: false, no_hole: false },
        )
    } else {
        let mut buf = PageBuf::zeroed(1);
        buf.bytes_mut()[512..1024].fill(7);
        let offset = CHUNK - (1 + w.rng.below(20) as u64) * 4096 + 512;
        (
            Kind::Other,
            GuestOp::Write { offset, len: 512, data: GuestData { payload: buf.freeze() }, fua: false },
        )
    };
    let ticket = w.judge.begin(kind, first, count, epoch);
    w.event(h, Event::Guest(GuestRequest { ticket, op }));
}

/// What can go wrong, one at a time; damage stays within what is promised.
fn fault(w: &mut World) {
    let n = NodeId(1 + u32::try_from(w.rng.below(4)).unwrap());
    // promise 3: of each set one member that has lost nothing must be left; a drop under way does not count it
    let sound = |d: DriveId| w.nodes.values().any(|x| x.drives[0].id == d && !x.drives[0].doubt);
    let undecided = !w.questions.is_empty() || w.hosts.iter().any(|h| h.session.undecided().next().is_some());
    let may_lose = !undecided
        && w.metad.chunks.iter().all(|c| c.in_sync().any(|m| m.place.node != n && sound(m.place.drive)));
    match w.rng.below(12) {
        10 | 11 => {
            // a node is cut off from all others; what runs there still reaches itself
            w.cut = if w.cut.is_some() { None } else { Some(n) };
            for h in 0..w.hosts.len() {
                for other in w.nodes.keys().copied().collect::<Vec<_>>() {
                    if !w.reaches(h, other) {
                        w.disconnect(h, other);
                    }
                }
            }
        }
        0..=3 => {
            if let Some(h) = newest(w) {
                w.disconnect(h, n);
            }
        }
        4 | 5 if w.nodes.values().filter(|n| n.up).count() >= 3 => w.crash(n, false),
        6 if may_lose => w.crash(n, true),
        7 | 8 => {
            // a takeover, with or without the death of the older session
            if w.hosts.len() < 6 {
                if w.rng.chance(50)
                    && let Some(h) = newest(w)
                {
                    w.kill_session(h);
                }
                w.attach(n, SessionKind::Guest);
            }
        }
        _ => {
            let d = DriveId(u64::from(n.0) * 10);
            if w.metad.down.contains(&d) {
                w.metad.down.clear()
            } else {
                w.metad.down = vec![d]
            };
        }
    }
}

/// Snapshots are asked for, called off, deleted; who should hear of it hears it, or does not, or too late.
fn snapshots(w: &mut World) {
    match w.rng.below(10) {
        0..=2 => {
            let group = w.rng.chance(30);
            w.snapshot(group);
        }
        3 => w.metad.decide(),
        4 if w.rng.chance(50) => w.metad.cancel(),
        5 => {
            let kept: Vec<Generation> = w.metad.views().kept.iter().collect();
            if let Some(&g) = kept.get(w.rng.below(kept.len().max(1))) {
                w.metad.delete(g);
            }
        }
        6 => {
            let views = w.metad.views().clone();
            let n = NodeId(1 + u32::try_from(w.rng.below(4)).unwrap());
            w.nodes.get_mut(&n).unwrap().drives[0].obey(&views);
        }
        _ => {
            let alive: Vec<usize> = (0..w.hosts.len()).filter(|&h| w.hosts[h].closed.is_none()).collect();
            if !alive.is_empty() {
                let h = alive[w.rng.below(alive.len())];
                w.push_views(h);
            }
        }
    }
    w.take_images();
}

fn step(w: &mut World, faults: u64) {
    let pause = w.rng.below(10);
    w.now = w.now + Span::millis(if pause == 0 { w.rng.next() % 200 } else { w.rng.next() % 4 });
    let alive: Vec<usize> = (0..w.hosts.len()).filter(|&h| w.hosts[h].closed.is_none()).collect();
    let n = NodeId(1 + u32::try_from(w.rng.below(4)).unwrap());
    match w.rng.below(20) {
        0..=3 => guest(w),
        4 if w.rng.chance(20) => snapshots(w),
        4 if w.rng.chance(faults) => fault(w),
        4 => {
            let lose = faults > 0 && w.rng.chance(20);
            w.metad_step(lose);
        }
        5 => {
            if let Some(&h) = alive.first() {
                w.hosts[h].leases.0.remove(&n);
            }
        }
        6 => {
            w.nodes.get_mut(&n).unwrap().up = true;
        }
        7 | 8 => w.drive_steps(n),
        9 => w.nodes.get_mut(&n).unwrap().drives[0].self_flush = true,
        _ => {
            if alive.is_empty() {
                if w.rng.chance(5) {
                    w.attach(n, SessionKind::Guest);
                }
                return;
            }
            let h = alive[w.rng.below(alive.len())];
            if !w.hosts[h].links[&n].up {
                if w.rng.chance(15) {
                    w.connect(h, n);
                }
            } else if w.rng.chance(10) {
                w.grant(h, n);
            } else if w.rng.chance(50) {
                w.deliver_to_replica(h, n);
            } else {
                w.deliver_to_session(h, n);
            }
        }
    }
    w.wake();
}

/// Every third walk is that of a clone, with up to four levels above it.
fn descend(w: &mut World, seed: u64) {
    if !seed.is_multiple_of(3) {
        return;
    }
    let mut rng = Rng(seed ^ 0xfa_411e);
    let sizes: Vec<u64> =
        (0..1 + rng.below(4)).map(|_| [2 * CHUNK, CHUNK + 4 * 4096, 14 * 4096][rng.below(3)]).collect();
    let blocks: Vec<(u32, u32)> = (10..20).map(|b| (0, b)).chain((0..10).map(|b| (1, b))).collect();
    w.descend(Family::new(&mut rng, 24, &sizes, &blocks, 4));
}

fn walk(seed: u64, steps: usize, faults: u64, bugs: Bugs) -> Result<World, String> {
    let mut w = world(seed);
    descend(&mut w, seed);
    w.bugs = bugs;
    w.judge.zeroed = (CHUNK_BLOCKS - 64..CHUNK_BLOCKS).collect();
    w.attach(NodeId(1), SessionKind::Guest);
    for i in 0..steps {
        step(&mut w, faults);
        if let Some(mut f) = w.family.take() {
            if w.rng.chance(faults / 8) {
                f.stir(&mut w.rng);
            }
            w.family = Some(f);
        }
        w.invariant()?;
        w.same()?;
        if i % 16 == 0 {
            w.frozen()?;
        }
    }
    w.judge.linearizable()?;
    // faults stop
    w.family.iter_mut().for_each(Family::calm);
    w.cut = None;
    w.metad.down.clear();
    if newest(&w).is_none_or(|h| w.hosts[h].epoch != w.metad.epoch) {
        w.attach(NodeId(2), SessionKind::Guest);
    }
    for round in 0.. {
        if round > 6000 {
            return Err(format!("does not come to rest: {}", describe(&w)));
        }
        w.calm_round();
        w.invariant()?;
        w.same()?;
        w.metad.decide();
        w.take_images();
        if newest(&w).is_none_or(|h| w.hosts[h].epoch != w.metad.epoch) {
            w.attach(NodeId(2), SessionKind::Guest);
        }
        let rest = newest(&w).is_some_and(|h| w.hosts[h].session.is_serving())
            && w.metad.chunks.iter().all(|c| c.in_sync_count() == 3)
            && w.judge.open().is_empty()
            && w.metad.views().sealing.is_none()
            && w.nodes.values().all(|n| n.drives.iter().all(|d| !d.doubt));
        if rest {
            break;
        }
    }
    // what is read at the end is what was written
    let h = newest(&w).expect("it serves");
    for first in [12, 14, CHUNK_BLOCKS + 2] {
        let epoch = w.hosts[h].epoch;
        let ticket = w.judge.begin(Kind::Read, first, 6, epoch);
        w.event(
            h,
            Event::Guest(GuestRequest { ticket, op: GuestOp::Read { offset: first * 4096, len: 6 * 4096 } }),
        );
    }
    w.calm(200);
    if !w.judge.open().is_empty() {
        return Err(format!("the last reads do not end: {}", describe(&w)));
    }
    w.same()?;
    w.frozen()?;
    w.judge.linearizable()?;
    Ok(w)
}

fn describe(w: &World) -> String {
    let h = newest(w).map(|h| &w.hosts[h]);
    let older: Vec<_> = w
        .hosts
        .iter()
        .filter(|o| o.closed.is_none() && o.epoch < w.metad.epoch)
        .map(|o| o.session.explain())
        .collect();
    format!(
        "older {older:?} {:?} nodes {:?} open {:?} metad {:?} {:?}",
        h.map(|h| h.session.explain()),
        w.nodes.values().map(|n| (n.process, &n.drives[0].attempts)).collect::<Vec<_>>(),
        w.judge.open().len(),
        w.metad.epoch,
        w.metad.chunks.iter().map(|c| (c.number, c.in_sync_count())).collect::<Vec<_>>(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn walks_keep_every_promise(seed in any::<u64>(), faults in 0u64..60) {
        if let Err(e) = walk(seed, 2500, faults, Bugs::default()) {
            prop_assert!(false, "seed {seed} faults {faults}: {e}");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "only of tests that are run by hand")]
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(otherwise)
}

/// One walk again: SEED=n FAULTS=n cargo test -p volume --test walk -- again --ignored
#[test]
#[ignore = "by hand"]
fn again() {
    let steps = usize::try_from(number("STEPS", 2500)).unwrap();
    let r = walk(number("SEED", 0), steps, number("FAULTS", 20), Bugs::default());
    println!("{:?}", r.map(|w| w.judge.completed));
}

/// For a longer look: WALKS=n cargo test -p volume --test walk -- many --ignored
#[test]
#[ignore = "by hand"]
fn many() {
    let (n, from) = (number("WALKS", 200), number("FROM", 0));
    let (mut done, mut promoted, mut epochs, mut reconciled, mut sealed) = (0, 0, 0, 0, 0);
    for seed in from..from + n {
        let r = std::panic::catch_unwind(|| walk(seed, 3000, 10 + seed % 60, Bugs::default()));
        let w = r.unwrap_or_else(|_| panic!("seed {seed}")).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        done += w.judge.completed;
        epochs += w.metad.epoch.0;
        sealed += w.images.len();
        let all = || w.hosts.iter().flat_map(|h| &h.notices);
        promoted += all().filter(|n| matches!(n, Notice::Promoted { .. })).count();
        reconciled += all().filter(|n| matches!(n, Notice::Reconciled { .. })).count();
    }
    println!(
        "{n} walks: {done} answers, {epochs} epochs, {promoted} promotions, {reconciled} reconciliations, {sealed} snapshots"
    );
}

/// The walk bites: each seeded bug is found.
#[cfg(feature = "bugs")]
mod bites {
    use super::*;

    fn found(name: &str, bugs: Bugs) -> Option<u64> {
        let most = number("WALKS", 400);
        (0..most).find(|&seed| {
            let r = std::panic::catch_unwind(|| walk(seed, 3000, 10 + seed % 60, bugs));
            match r {
                Ok(Ok(_)) => false,
                Ok(Err(e)) => {
                    println!("{name}: seed {seed}: {e}");
                    true
                }
                Err(_) => {
                    println!("{name}: seed {seed}: an invariant of the session");
                    true
                }
            }
        })
    }

    macro_rules! bugs {
        ($($name:ident),*) => {
            $(#[test]
            #[ignore = "by hand: minutes"]
            fn $name() {
                assert!(found(stringify!($name), Bugs { $name: true, ..Bugs::default() }).is_some());
            })*
        };
    }
    bugs!(
        forget_stale,
        promote_early,
        take_error_as_unchanged,
        drop_without_evidence,
        list_early,
        flush_misses_target,
        reconcile_lowest,
        serve_before_flush,
        read_unacknowledged,
        no_hold_back,
        no_lease_check,
        cut_misses_write,
        reconcile_into_new,
        seal_leaves_attempt,
        parent_head
    );
}
