//! `cargo xtask bench snapshots`: what snapshots and clones cost a guest: writes right after a snapshot and when everything
//! has been written anew, reads through many snapshots and through a chain of clones.
//!
//! Each figure is compared with one of the same round: the volume before its snapshot, or a volume without any.

use super::fio::{self, Figures, Job, Target};
use super::report::{Bar, FOREIGN_MAX, bars, put};
use super::{cpu, median, settle};
use crate::build::{self, Profile};
use crate::cluster::Cluster;
use crate::tools;
use anyhow::{Result, bail};
use std::fmt::Write as _;
use std::process::Command;

const ROUNDS: usize = 5;
/// As blockd's setting: a volume full of zeroes takes its extents and none of the disk.
const SPARSE: &str = "BLOCKD_TEST_SPARSE_ZEROES";
/// Large enough that a few seconds of random writes meet fresh extents most of the time.
const WRITTEN_GIB: u32 = 8;
const READ_MIB: u32 = 1024;
const SNAPSHOTS: u32 = 50;
const LEVELS: u32 = 10;

const WRITE: Job = Job {
    name: "randwrite qd32",
    rw: "randwrite",
    bs: "4k",
    depth: 32,
    secs: 3,
    size_mib: WRITTEN_GIB << 10,
};
const READ: Job =
    Job { name: "randread qd32", rw: "randread", bs: "4k", depth: 32, secs: 4, size_mib: READ_MIB };

/// One comparison's medians.
struct Row {
    name: &'static str,
    base: Figures,
    ours: Figures,
    /// Least ratio of IOPS.
    goal: f64,
    foreign: f64,
}

impl Row {
    fn of(name: &'static str, goal: f64, rounds: &[(Figures, Figures)], foreign: f64) -> Row {
        let side =
            |pick: fn(&(Figures, Figures)) -> Figures| median(&rounds.iter().map(pick).collect::<Vec<_>>());
        // The median of the ratios, not the ratio of the medians: each is of one round.
        let mut ratios: Vec<f64> = rounds.iter().map(|(a, b)| b.iops / a.iops.max(1.0)).collect();
        let base = side(|r| r.0);
        let ours = Figures { iops: base.iops * super::middle(&mut ratios), ..side(|r| r.1) };
        Row { name, base, ours, goal, foreign }
    }
    fn ratio(&self) -> f64 {
        self.ours.iops / self.base.iops.max(1.0)
    }
    fn verdict(&self) -> &'static str {
        if self.foreign > FOREIGN_MAX {
            "no verdict (others were busy)"
        } else if self.ratio() >= self.goal {
            "met"
        } else {
            "MISSED"
        }
    }
}

pub fn run(rounds: Option<usize>) -> Result<()> {
    if let Some(get) = tools::install_clients() {
        bail!("bench drives fio and qemu-io, which are missing: {get}");
    }
    let bins = build::daemons(Profile::Release)?;
    let c = Cluster::up_with(&bins, 3, "16GiB", &["trash=0s"], &[(SPARSE, "1")])?;
    let count = rounds.unwrap_or(ROUNDS);
    let mut rows = written(&c, count)?;
    rows.extend(read(&c, count)?);
    let mut table = String::from(
        "| | IOPS without | IOPS | ratio | p99 without us | p99 us | others' CPU | goal |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n",
    );
    for r in &rows {
        let _ = writeln!(
            table,
            "| {} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} | {:.1} % | >= {}: {} |",
            r.name,
            r.base.iops,
            r.ours.iops,
            r.ratio(),
            r.base.p99_us,
            r.ours.p99_us,
            r.foreign * 100.0,
            r.goal,
            r.verdict()
        );
    }
    println!("{table}");
    if rounds.is_some() {
        return Ok(());
    }
    let all: Vec<Bar> =
        rows.iter().map(|r| Bar { name: r.name, ratio: r.ratio(), goal: Some(r.goal) }).collect();
    let plot = bars("IOPS with snapshots or clones, as a ratio to those without (tick: goal)", &all);
    put("bench snapshots", &table, "snapshots.svg", &plot)
}

/// Runs fio and adds what others burnt meanwhile.
fn timed(c: &Cluster, job: &Job, uri: &str, foreign: &mut f64) -> Result<Figures> {
    let cores = std::thread::available_parallelism()?.get();
    let (pids, all) = (c.pids(Some("blockd"))?, c.pids(None)?);
    let before = cpu::now(&pids, &all)?;
    let f = fio::run(job, &Target::Nbd(uri.to_owned()))?;
    *foreign = foreign.max(cpu::now(&pids, &all)?.since(before).foreign(f.secs, cores));
    Ok(f)
}

fn volume(c: &Cluster, name: &str, mib: u32) -> Result<()> {
    c.ctl(&["volume", "create", name, "--size", &format!("{mib}MiB"), "--near", "n1"])?;
    c.wait(name, "healthy", 60)
}

fn qemu_io(uri: &str, commands: &[String]) -> Result<()> {
    let mut q = Command::new("qemu-io");
    q.args(["-f", "raw"]);
    for x in commands {
        q.args(["-c", x]);
    }
    let said = build::output(q.arg(uri))?;
    if said.contains("failed") {
        bail!("qemu-io: {said}");
    }
    Ok(())
}

/// Writes before a snapshot, right after it, and when nothing of the old generation is seen by the head.
fn written(c: &Cluster, rounds: usize) -> Result<Vec<Row>> {
    volume(c, "w", WRITTEN_GIB << 10)?;
    let uri = c.uri(1, "w");
    let fill: Vec<String> = (0..WRITTEN_GIB).map(|g| format!("write -z {g}G 1G")).collect();
    qemu_io(&uri, &fill)?;
    let (mut right_after, mut later, mut foreign) = (Vec::new(), Vec::new(), 0.0);
    for round in 0..rounds {
        settle(c)?;
        let before = timed(c, &WRITE, &uri, &mut foreign)?;
        settle(c)?;
        let name = format!("w@s{round}");
        c.ctl(&["snapshot", "create", &name])?;
        let after = timed(c, &WRITE, &uri, &mut foreign)?;
        qemu_io(&uri, &fill)?;
        settle(c)?;
        let copied = timed(c, &WRITE, &uri, &mut foreign)?;
        c.ctl(&["snapshot", "delete", &name, "--yes"])?;
        right_after.push((before, after));
        later.push((before, copied));
    }
    c.wait("w", "detached", 60)?;
    c.ctl(&["volume", "delete", "w", "--with-snapshots", "--yes"])?;
    Ok(vec![
        Row::of("4k randwrite qd32 right after a snapshot", 0.7, &right_after, foreign),
        Row::of("the same when all has been written anew", 0.95, &later, foreign),
    ])
}

/// Some extents of a volume, written in parts.
fn scribble(uri: &str, number: u32) -> Result<()> {
    let mut state = u64::from(number) + 1;
    let mut at = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % (u64::from(READ_MIB) * 16 - 1) * 65536
    };
    let all: Vec<String> = (0..60)
        .map(|i| format!("write -P {} {} {}", 1 + number % 250, at(), if i % 3 == 0 { "64k" } else { "8k" }))
        .collect();
    qemu_io(uri, &all)
}

/// Reads of a volume with many snapshots, and of the last of a chain of clones, beside a plain one's.
fn read(c: &Cluster, rounds: usize) -> Result<Vec<Row>> {
    let fill: Vec<String> =
        (0..READ_MIB / 32).map(|i| format!("write -P {} {}M 32M", 1 + i % 250, i * 32)).collect();
    for name in ["plain", "many", "template"] {
        volume(c, name, READ_MIB)?;
        qemu_io(&c.uri(1, name), &fill)?;
    }
    for i in 0..SNAPSHOTS {
        scribble(&c.uri(1, "many"), i)?;
        scribble(&c.uri(1, "plain"), i)?;
        c.ctl(&["snapshot", "create", &format!("many@s{i}")])?;
    }
    let mut source = "template".to_owned();
    for i in 0..LEVELS {
        let name = format!("level{i}");
        c.ctl(&["volume", "clone", &source, &name])?;
        c.wait(&name, "healthy", 60)?;
        scribble(&c.uri(1, &name), i)?;
        source = name;
    }
    let (mut snapshots, mut clones, mut foreign) = (Vec::new(), Vec::new(), 0.0);
    // Once for what is learnt at the first reads.
    for name in ["plain", "many", &source] {
        timed(c, &READ, &c.uri(1, name), &mut 0.0)?;
    }
    for _ in 0..rounds {
        settle(c)?;
        let plain = timed(c, &READ, &c.uri(1, "plain"), &mut foreign)?;
        let many = timed(c, &READ, &c.uri(1, "many"), &mut foreign)?;
        let deep = timed(c, &READ, &c.uri(1, &source), &mut foreign)?;
        let again = timed(c, &READ, &c.uri(1, "plain"), &mut foreign)?;
        let base = Figures { iops: f64::midpoint(plain.iops, again.iops), ..plain };
        snapshots.push((base, many));
        clones.push((base, deep));
    }
    Ok(vec![
        Row::of("4k randread qd32 through 50 snapshots", 0.9, &snapshots, foreign),
        Row::of("4k randread qd32 through 10 levels of clones", 0.9, &clones, foreign),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_rounds_and_a_busy_machine_gives_no_verdict() {
        let of = |iops| Figures { iops, ..Figures::default() };
        let rounds = [(of(100.0), of(95.0)), (of(50.0), of(10.0)), (of(200.0), of(196.0))];
        let row = Row::of("x", 0.95, &rounds, 0.01);
        assert!((row.ratio() - 0.95).abs() < 1e-9);
        assert_eq!(row.verdict(), "met");
        assert_eq!(Row::of("x", 0.96, &rounds, 0.01).verdict(), "MISSED");
        assert!(Row::of("x", 0.95, &rounds, 0.2).verdict().contains("no verdict"));
    }
}
