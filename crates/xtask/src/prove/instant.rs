//! How long a snapshot, a clone, a rollback takes on a volume with 100 GiB in use, and what the guest feels of it.

use super::survives::path;
use crate::build::{self, Profile};
use crate::cluster::Cluster;
use crate::tools;
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// As `BLOCKD_TEST_SPARSE_ZEROES` of blockd: extents full of zeroes are holes of the drives' files.
const SPARSE: &str = "BLOCKD_TEST_SPARSE_ZEROES";
const SNAPSHOTS: u32 = 100;
const MADE_MS: f64 = 50.0;
const STALL_MS: u64 = 20;
/// How long after its answer a snapshot may still be felt.
const AFTER_MS: u64 = 50;

fn now_ms() -> u64 {
    let t = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(t.as_millis()).unwrap_or(0)
}

/// fio's completions of 4k random writes, depth 32, each with its time.
struct Guest {
    fio: Child,
    log: String,
}

impl Guest {
    fn start(c: &Cluster, uri: &str, gib: u64, secs: u32) -> Result<Guest> {
        let log = path(c, "guest")?;
        let mut f = Command::new("fio");
        f.args(["--name=w", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--time_based"]);
        f.args(["--randrepeat=0", "--norandommap", "--log_unix_epoch=1", "--log_avg_msec=0"]);
        f.arg(format!("--write_lat_log={log}")).arg(format!("--runtime={secs}"));
        f.arg(format!("--size={gib}g")).arg(format!("--uri={uri}"));
        f.current_dir(&c.dir);
        let fio =
            f.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("fio")?;
        Ok(Guest { fio, log })
    }
    /// Times of all completions, Unix milliseconds, in order.
    fn end(mut self) -> Result<Vec<u64>> {
        let mut said = String::new();
        if let Some(mut stderr) = self.fio.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        if !self.fio.wait()?.success() {
            bail!("the guest's fio failed: {}", said.trim());
        }
        let file = format!("{}_lat.1.log", self.log);
        let text = fs::read_to_string(&file).with_context(|| file.clone())?;
        let mut times: Vec<u64> =
            text.lines().filter_map(|l| l.split(',').next()?.trim().parse().ok()).collect();
        times.sort_unstable();
        if times.len() < 1000 {
            bail!("fio logged {} completions", times.len());
        }
        Ok(times)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.fio.kill();
        let _ = self.fio.wait();
    }
}

/// The longest time without a completion that touches this window.
fn stall(times: &[u64], from: u64, to: u64) -> u64 {
    let first = times.partition_point(|t| *t < from).saturating_sub(1);
    let last = (times.partition_point(|t| *t <= to) + 1).min(times.len());
    times[first..last].windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0)
}

/// Median, 99th of a hundred, greatest.
fn spread<T: Copy + PartialOrd>(all: &mut [T]) -> (T, T, T) {
    all.sort_by(|a, b| a.partial_cmp(b).expect("no NaN"));
    let at = |part: usize| all[(all.len() * part / 100).min(all.len() - 1)];
    (at(50), at(99), all[all.len() - 1])
}

/// Runs a verb; milliseconds until it answered, its start and end.
fn timed(c: &Cluster, args: &[&str]) -> Result<(f64, u64, u64)> {
    let (from, start) = (now_ms(), Instant::now());
    c.ctl(args)?;
    Ok((start.elapsed().as_secs_f64() * 1e3, from, now_ms()))
}

/// A volume with so many GiB in use: zeroes, each in an extent of its own.
fn filled(gib: u64) -> Result<Cluster> {
    if let Some(get) = tools::install_clients() {
        bail!("clients are missing: {get}");
    }
    // Inherited by the daemons.
    let bins = build::daemons(Profile::Release)?;
    // After a snapshot each random write takes an extent: 100 times half a second of them beside what there is.
    let drive = format!("{}GiB", 2 * gib + 150);
    let c = Cluster::up_with(&bins, 3, &drive, &[], &[(SPARSE, "1")])?;
    c.ctl(&["volume", "create", "big", "--size", &format!("{gib}GiB")])?;
    c.wait("big", "healthy", 60)?;
    let mut fill = Command::new("qemu-io");
    fill.args(["-f", "raw"]);
    for g in 0..gib {
        fill.args(["-c", &format!("write -z {g}G 1G")]);
    }
    let said = build::output(fill.arg(c.uri(1, "big")))?;
    if said.contains("failed") {
        bail!("qemu-io: {said}");
    }
    Ok(c)
}

/// snap-1.
pub fn run() -> Result<String> {
    let gib: u64 = std::env::var("BLOCKD_PROVE_GIB").ok().and_then(|g| g.parse().ok()).unwrap_or(100);
    let start = Instant::now();
    let c = filled(gib)?;
    let mut figures = format!("{gib} GiB in use, made in {:.0} s\n", start.elapsed().as_secs_f64());
    let (mut made, mut windows) = (Vec::new(), Vec::new());
    let secs = SNAPSHOTS / 2 + 15;
    let guest = Guest::start(&c, &c.uri(1, "big"), gib, secs)?;
    sleep(Duration::from_secs(5));
    for i in 0..SNAPSHOTS {
        let (ms, from, to) = timed(&c, &["snapshot", "create", &format!("big@s{i}")])?;
        made.push(ms);
        windows.push((from, to + AFTER_MS));
        sleep(Duration::from_millis(400_u64.saturating_sub(to - from)));
    }
    let times = guest.end()?;
    let mut stalls: Vec<u64> = windows.iter().map(|(from, to)| stall(&times, *from, *to)).collect();
    // The same windows between the snapshots: what this machine does by itself.
    let mut without: Vec<u64> =
        windows.iter().map(|(from, to)| stall(&times, *from + 200, *to + 200)).collect();
    let (median, p99, most) = spread(&mut made);
    let _ = writeln!(
        figures,
        "{SNAPSHOTS} snapshots under {} writes: made in {median:.0} ms, p99 {p99:.0}, longest {most:.0}",
        times.len()
    );
    let (s50, s99, smost) = spread(&mut stalls);
    let (w50, w99, wmost) = spread(&mut without);
    let _ = writeln!(figures, "longest gap around a snapshot: {s50} ms, p99 {s99}, longest {smost}");
    let _ = writeln!(figures, "longest gap between them: {w50} ms, p99 {w99}, longest {wmost}");
    let (clone, ..) = timed(&c, &["volume", "clone", "big@s0", "copy", "--no-wait"])?;
    let begun = Instant::now();
    c.wait("copy", "healthy", 60)?;
    let ready = clone + begun.elapsed().as_secs_f64() * 1e3;
    c.wait("big", "detached", 60)?;
    let (rollback, ..) = timed(&c, &["volume", "rollback", "big@s1", "--yes"])?;
    let _ = writeln!(
        figures,
        "a clone: made in {clone:.0} ms, its records on all drives after {ready:.0} ms; a rollback: {rollback:.0} ms"
    );
    let slow = p99 > MADE_MS || clone > MADE_MS || rollback > MADE_MS;
    if slow || s99 > STALL_MS {
        bail!("{figures}wanted: made within {MADE_MS:.0} ms, gaps of at most {STALL_MS} ms at p99");
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_counts_if_it_touches_the_window() {
        let times = [0, 1, 2, 30, 31, 32, 80];
        assert_eq!(stall(&times, 10, 20), 28);
        assert_eq!(stall(&times, 30, 32), 48, "what begins in it");
        assert_eq!(stall(&times, 31, 31), 1, "what begins behind it does not count");
        assert_eq!(stall(&[1, 2, 3, 4], 2, 3), 1);
        assert_eq!(spread(&mut [3, 1, 2]), (2, 3, 3));
    }
}
