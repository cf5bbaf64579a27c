//! `cargo xtask bench`: what blockd does through NBD on seven nodes, beside the raw file in the same run.
//!
//! The machine drifts, so figures are compared only within one interleaved run: for each job raw, blockd, raw,
//! blockd, and the medians are quoted. Where others burnt more than 5 % of the machine there is no verdict.

mod cpu;
mod fio;
pub mod idle;
pub mod report;
mod snapshots;

use crate::build::{self, Profile};
use crate::cluster::Cluster;
use crate::tools;
use anyhow::{Context, Result, bail};
use fio::{Figures, Job, Target};
use std::thread::sleep;
use std::time::{Duration, Instant};

const NODES: u32 = 7;
/// A sixteenth is journal: 1 GiB, the most there is. A burst of 10 s at full speed may fill it to where blocks go home.
const DRIVE: &str = "16GiB";
const VOLUME_MIB: u32 = 2048;
pub const ROUNDS: usize = 3;

const JOBS: &[Job] = &[
    Job { name: "randwrite qd1", rw: "randwrite", bs: "4k", depth: 1, secs: 10, size_mib: VOLUME_MIB },
    Job {
        name: "randwrite qd32 burst",
        rw: "randwrite",
        bs: "4k",
        depth: 32,
        secs: 10,
        size_mib: VOLUME_MIB,
    },
    Job {
        name: "randwrite qd128 burst",
        rw: "randwrite",
        bs: "4k",
        depth: 128,
        secs: 10,
        size_mib: VOLUME_MIB,
    },
    Job { name: "randread qd1", rw: "randread", bs: "4k", depth: 1, secs: 10, size_mib: VOLUME_MIB },
    Job { name: "randread qd32", rw: "randread", bs: "4k", depth: 32, secs: 10, size_mib: VOLUME_MIB },
    Job { name: "randread qd128", rw: "randread", bs: "4k", depth: 128, secs: 10, size_mib: VOLUME_MIB },
    Job { name: "1M write qd8", rw: "write", bs: "1m", depth: 8, secs: 10, size_mib: VOLUME_MIB },
    Job { name: "1M read qd8", rw: "read", bs: "1m", depth: 8, secs: 10, size_mib: VOLUME_MIB },
    Job {
        name: "randwrite qd32 steady",
        rw: "randwrite",
        bs: "4k",
        depth: 32,
        secs: 60,
        size_mib: VOLUME_MIB,
    },
];

/// One job's medians.
pub struct Row {
    pub job: Job,
    pub raw: Figures,
    pub ours: Figures,
    /// CPU microseconds of all blockd processes per I/O.
    pub server_us: f64,
    /// Largest share of the machine that others burnt in any round.
    pub foreign: f64,
    /// IOPS of the raw file's best round, as so many times its worst.
    pub wavered: f64,
}

pub fn run(args: &[&str]) -> Result<()> {
    match args {
        ["idle"] => idle::run(),
        ["snapshots"] => snapshots::run(None),
        ["snapshots", "quick"] => snapshots::run(Some(1)),
        ["quick"] => measure(1, 3).map(|rows| print!("{}", report::table(&rows))),
        [] => {
            let rows = measure(ROUNDS, 0)?;
            report::keep(&rows)
        }
        _ => bail!("bench [quick|idle|snapshots [quick]]"),
    }
}

/// `secs` 0: as the job says.
pub fn measure(rounds: usize, secs: u32) -> Result<Vec<Row>> {
    if let Some(get) = tools::install_clients() {
        bail!("bench drives fio, which is missing: {get}");
    }
    let bins = build::daemons(Profile::Release)?;
    let raw = RawFile::make()?;
    let c = Cluster::up(&bins, NODES, DRIVE, &[])?;
    let size = format!("{VOLUME_MIB}MiB");
    // As whoever makes a disk for a guest does it: near the guest.
    c.ctl(&["volume", "create", "bench", "--size", &size, "--near", "n1"])?;
    c.wait("bench", "healthy", 60)?;
    let ours = Target::Nbd(c.uri(1, "bench"));
    let theirs = Target::Raw(raw.0.clone());
    // both filled once: a read of what was never written measures nothing
    let fill = Job { name: "fill", rw: "write", bs: "1m", depth: 8, secs: 1, size_mib: VOLUME_MIB };
    for t in [&theirs, &ours] {
        fill_once(&fill, t)?;
    }
    let mut rows = Vec::new();
    for job in JOBS {
        let job = if secs > 0 { Job { secs, ..*job } } else { *job };
        rows.push(row(&job, rounds, &c, &theirs, &ours)?);
        eprint!("{}", report::table(&rows[rows.len() - 1..]));
    }
    Ok(rows)
}

fn fill_once(job: &Job, target: &Target) -> Result<()> {
    let mut total = 0.0;
    while total < f64::from(job.size_mib) {
        let f = fio::run(job, target)?;
        total += f.bytes_per_s * f.secs / f64::from(1 << 20);
        if f.ios == 0.0 {
            bail!("filling makes no progress");
        }
    }
    Ok(())
}

fn row(job: &Job, rounds: usize, c: &Cluster, raw: &Target, ours: &Target) -> Result<Row> {
    let cores = std::thread::available_parallelism()?.get();
    let (mut a, mut b, mut server_us, mut foreign) = (Vec::new(), Vec::new(), Vec::new(), 0.0_f64);
    for _ in 0..rounds {
        settle(c)?;
        a.push(fio::run(job, raw)?);
        let pids = c.pids(Some("blockd"))?;
        let all = c.pids(None)?;
        let before = cpu::now(&pids, &all)?;
        let f = fio::run(job, ours)?;
        let burnt = cpu::now(&pids, &all)?.since(before);
        foreign = foreign.max(burnt.foreign(f.secs, cores));
        #[expect(clippy::cast_precision_loss, reason = "a figure for a table")]
        server_us.push(burnt.servers as f64 / f.ios.max(1.0));
        b.push(f);
    }
    let most = a.iter().map(|f| f.iops).fold(0.0, f64::max);
    let least = a.iter().map(|f| f.iops).fold(f64::MAX, f64::min);
    let wavered = most / least.max(1.0);
    Ok(Row {
        job: *job,
        raw: median(&a),
        ours: median(&b),
        server_us: middle(&mut server_us),
        foreign,
        wavered,
    })
}

/// Waits until the journals are as good as empty: no job pays for the one before, and a burst finds room.
fn settle(c: &Cluster) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    let nodes = u32::try_from(c.pids(Some("blockd"))?.len())?;
    loop {
        let used = c.metric(nodes, "blockd_drive_journal_used_bytes")?;
        if used * 100 <= c.metric(nodes, "blockd_drive_journal_bytes")? {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the journals hold {} MiB after two minutes without a guest's write", used >> 20);
        }
        sleep(Duration::from_millis(200));
    }
}

fn median(v: &[Figures]) -> Figures {
    let by = |pick: fn(&Figures) -> f64| middle(&mut v.iter().map(pick).collect::<Vec<_>>());
    Figures {
        iops: by(|f| f.iops),
        bytes_per_s: by(|f| f.bytes_per_s),
        p50_us: by(|f| f.p50_us),
        p99_us: by(|f| f.p99_us),
        ios: by(|f| f.ios),
        secs: by(|f| f.secs),
        cpu_us: v.iter().map(|f| f.cpu_us).max().unwrap_or(0),
    }
}

fn middle(v: &mut [f64]) -> f64 {
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or(0.0)
}

/// A file as large as the volume, written once; gone when dropped.
struct RawFile(String);

impl RawFile {
    fn make() -> Result<RawFile> {
        let path = std::env::temp_dir().join(format!("blockd-bench-{}.raw", std::process::id()));
        let path = path.to_str().context("temporary folder's name is not UTF-8")?.to_owned();
        std::fs::File::create(&path)?.set_len(u64::from(VOLUME_MIB) << 20)?;
        Ok(RawFile(path))
    }
}
impl Drop for RawFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
