//! The generator and its check against a disk in memory that can misbehave.
#![allow(clippy::unwrap_used, reason = "a test's failures may panic")]

use client::load::{self, CheckOptions, CheckReport, Options};
use client::memory_server::{Faults, Shared, spawn};
use client::nbd_client::{Client, Error, Settings};
use client::uri::Uri;
use nbd::Mode;
use nbd::memory::{MemoryDisk, MemoryOwner};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SIZE: u64 = 8 << 20;

struct Rig {
    dir: tempfile::TempDir,
    shared: Shared,
    uri: Uri,
}

impl Rig {
    fn new() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let owner = MemoryOwner { name: "vol".into(), read_only: false, disk: MemoryDisk::new(SIZE) };
        let shared = Shared::new(owner);
        let socket = dir.path().join("nbd.sock");
        spawn(&socket, shared.clone()).unwrap();
        Rig { uri: Uri::unix(socket, "vol"), dir, shared }
    }
    fn log(&self) -> PathBuf {
        self.dir.path().join("load.log")
    }
    fn options(&self, ms: u64) -> Options {
        let mut o = Options::new(self.uri.clone(), self.log());
        o.run_for = Duration::from_millis(ms);
        o.flush_every = Duration::from_millis(20);
        o.seed = Some(1);
        o
    }
    fn check(&self, flushed_only: bool) -> CheckReport {
        let settings = Settings::default();
        load::check(&CheckOptions { uri: self.uri.clone(), log: self.log(), flushed_only, settings }).unwrap()
    }
    fn client(&self) -> Client {
        Client::connect(&self.uri, Settings::default()).unwrap()
    }
    fn set(&self, fault: impl Fn(&Faults) -> &AtomicBool, on: bool) {
        fault(&self.shared.faults).store(on, Ordering::Relaxed);
    }
}

#[test]
fn a_good_disk_passes_over_several_runs() {
    let rig = Rig::new();
    for _ in 0..2 {
        let report = load::run(&rig.options(200)).unwrap();
        assert!(report.ok(), "{report}");
        assert!(report.writes > 100 && report.flushes > 2, "{report}");
        assert!(report.p50_us <= report.p99_us && report.p99_us <= report.max_us);
        assert!(report.longest_gap_us > 0 && report.unknown == 0);
    }
    for flushed_only in [false, true] {
        let report = rig.check(flushed_only);
        assert!(report.ok(), "{report}");
        assert_eq!((report.runs, report.unknown), (2, 0));
        assert!(report.blocks > 1000 && report.acknowledged == report.writes);
    }
}

#[test]
fn lost_writes_are_found() {
    let rig = Rig::new();
    load::run(&rig.options(100)).unwrap();
    rig.set(|f| &f.lose_writes, true);
    load::run(&rig.options(20)).unwrap();
    rig.set(|f| &f.lose_writes, false);
    let report = rig.check(false);
    assert!(!report.ok() && report.missing > 0 && report.torn == 0, "{report}");
    assert!(!report.examples.is_empty());
    // The run ended with a flush: they are missing by that rule, too.
    assert!(!rig.check(true).ok());
}

#[test]
fn torn_writes_are_found() {
    let rig = Rig::new();
    load::run(&rig.options(100)).unwrap();
    rig.set(|f| &f.tear_writes, true);
    load::run(&rig.options(20)).unwrap();
    let report = rig.check(false);
    assert!(report.torn > 0, "{report}");
}

#[test]
fn one_zeroed_block_is_found_and_one_old_block_too() {
    let rig = Rig::new();
    let mut o = rig.options(300);
    o.span = Some(64 * 4096);
    load::run(&o).unwrap();
    assert!(rig.check(false).ok());
    let mut client = rig.client();
    let before = client.read(5 * 4096, 4096).unwrap();
    client.write(5 * 4096, &[0; 4096]).unwrap();
    let report = rig.check(false);
    assert_eq!((report.missing, report.torn), (1, 0), "{report}");
    assert_eq!(report.examples[0].offset, 5 * 4096);
    // Back to what an older run wrote.
    client.write(5 * 4096, &before).unwrap();
    o.seed = Some(2);
    load::run(&o).unwrap();
    assert!(rig.check(false).ok());
    client.write(5 * 4096, &before).unwrap();
    assert_eq!(rig.check(false).missing, 1);
    // And a whole block in the wrong place.
    client.write(6 * 4096, &before).unwrap();
    assert_eq!(rig.check(false).missing, 2);
}

#[test]
fn unflushed_writes_may_be_lost_when_only_flushed_ones_count() {
    let rig = Rig::new();
    load::run(&rig.options(100)).unwrap();
    rig.set(|f| &f.lose_writes, true);
    // No flush within this run but the one at its end: cut that off, as a death would.
    let mut o = rig.options(20);
    o.flush_every = Duration::from_secs(100);
    load::run(&o).unwrap();
    let text = std::fs::read_to_string(rig.log()).unwrap();
    let end = text.rfind("\nF ").unwrap() + 1;
    // FUA writes are flushed by themselves: take their answers away.
    let fua: Vec<&str> = text[..end]
        .lines()
        .filter(|l| l.starts_with("S ") && l.ends_with(" 1"))
        .map(|l| l.split(' ').nth(2).unwrap())
        .collect();
    let second = text.rfind("\nR ").unwrap() + 1;
    let kept = text[second..end]
        .lines()
        .filter(|l| !(l.starts_with("A ") && fua.contains(&l.split(' ').nth(2).unwrap())));
    let cut: String = kept.flat_map(|l| [l, "\n"]).collect();
    std::fs::write(rig.log(), format!("{}{cut}", &text[..second])).unwrap();
    assert!(!rig.check(false).ok());
    let report = rig.check(true);
    assert!(report.ok(), "{report}");
}

#[test]
fn errors_are_counted_and_leave_writes_unknown() {
    let rig = Rig::new();
    rig.set(|f| &f.fail_writes, true);
    let report = load::run(&rig.options(20)).unwrap();
    assert!(!report.ok() && report.errors > 0 && report.unknown == report.errors, "{report}");
    assert_eq!(report.first_error.as_deref(), Some("input/output error"));
    assert!(rig.check(false).ok(), "nothing was acknowledged");
}

#[test]
fn a_lost_connection_ends_a_run_unless_it_may_reconnect() {
    let rig = Rig::new();
    rig.shared.faults.drop_after.store(500, Ordering::Relaxed);
    let report = load::run(&rig.options(400)).unwrap();
    assert!(!report.ok() && report.lost.is_some() && report.reconnects == 0, "{report}");
    let mut o = rig.options(400);
    o.reconnect = Some(Duration::from_secs(5));
    let report = load::run(&o).unwrap();
    assert!(report.ok() && report.reconnects > 0 && report.unknown > 0, "{report}");
    rig.shared.faults.drop_after.store(0, Ordering::Relaxed);
    let report = rig.check(false);
    assert!(report.ok() && report.unknown > 0, "{report}");
}

#[test]
fn a_standstill_is_the_longest_gap() {
    let rig = Rig::new();
    let shared = rig.shared.clone();
    let nap = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        shared.faults.freeze.store(true, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(150));
        shared.faults.freeze.store(false, Ordering::Relaxed);
    });
    let report = load::run(&rig.options(400)).unwrap();
    nap.join().unwrap();
    assert!(report.ok(), "{report}");
    assert!((130_000..2_000_000).contains(&report.longest_gap_us), "{report}");
    assert!(report.longest_gap_ended_us > 200_000, "{report}");
}

#[test]
fn nobody_there_is_an_error() {
    let rig = Rig::new();
    let mut o = rig.options(100);
    o.uri = Uri::unix(rig.dir.path().join("none"), "vol");
    assert!(matches!(load::run(&o), Err(load::LoadError::Connect { .. })));
    o.uri = Uri { export: "other".into(), ..rig.uri.clone() };
    let Err(load::LoadError::Connect { source: Error::Refused { message, .. }, .. }) = load::run(&o) else {
        panic!("the export does not exist")
    };
    assert_eq!(message, "no volume \"other\"");
}

#[test]
fn the_blocking_client_does_what_it_says_in_every_mode() {
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let rig = Rig::new();
        let mut c = Client::connect(&rig.uri, Settings { mode, ..Settings::default() }).unwrap();
        assert_eq!((c.size(), c.negotiated().mode), (SIZE, mode));
        let data: Vec<u8> = (0..300_000u32 / 512 * 512).map(|i| i.to_le_bytes()[0] ^ 0x5a).collect();
        c.write(512, &data).unwrap();
        c.flush().unwrap();
        assert_eq!(c.read(512, data.len()).unwrap(), data);
        assert!(matches!(c.write(SIZE, &[0; 512]), Err(Error::Request(nbd::Errno::NoSpace))));
        assert!(matches!(c.read(1, 512), Err(Error::Request(nbd::Errno::Invalid))));
        if mode > Mode::Simple {
            let map = c.map(0, SIZE).unwrap();
            assert_eq!(map.iter().map(|e| e.len).sum::<u64>(), SIZE);
            assert_eq!((map.len(), map[0].flags, map[1].flags), (2, 0, 3));
            assert_eq!(map[0].len, (512 + data.len() as u64).next_multiple_of(4096));
        }
        c.disconnect();
    }
}

#[test]
fn more_than_the_sockets_hold_does_not_stick() {
    let rig = Rig::new();
    let mut c = rig.client();
    let data = vec![7; 1 << 20];
    let mut waiting = 0;
    for i in 0..24 {
        let offset = (i % 8) << 20;
        c.submit(nbd::client::Command::Write { offset, data: &data, fua: false });
        c.submit(nbd::client::Command::Read { offset, len: 1 << 20, whole: false });
        waiting += 2;
    }
    c.send().unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while waiting > 0 {
        let (_, result) = c.next(deadline).unwrap().expect("in time");
        result.unwrap();
        waiting -= 1;
    }
    assert_eq!(c.in_flight(), 0);
}

#[test]
fn bench_measures_every_pattern() {
    use client::bench::{BenchError, Job, Pattern, run};
    let rig = Rig::new();
    for pattern in [Pattern::RandWrite, Pattern::RandRead, Pattern::Write, Pattern::Read] {
        for (block, depth) in [(4096, 1), (4096, 32), (1 << 20, 8)] {
            let job = Job { pattern, block, depth, run_for: Duration::from_millis(30), span: None };
            let f = run(&rig.uri, &job, Settings::default()).unwrap();
            assert!(f.ops > 0 && f.iops > 0.0 && f.elapsed_s >= 0.03, "{f:?}");
            assert!(f.p50_us <= f.p99_us && f.p99_us <= f.max_us, "{f:?}");
            assert!((f.bytes_per_s - f.iops * f64::from(block)).abs() < 1.0, "{f:?}");
        }
    }
    let job = Job { pattern: Pattern::Read, block: 4096, depth: 1, run_for: Duration::ZERO, span: Some(512) };
    let small = run(&rig.uri, &job, Settings::default());
    assert!(matches!(small, Err(BenchError::TooSmall { span: 512, block: 4096 })));
    let odd = run(&rig.uri, &Job { block: 100, ..job }, Settings::default());
    assert!(matches!(odd, Err(BenchError::Unaligned(100))));
}
