//! Real processes killed under load.

use crate::build::{self, Profile};
use crate::cluster::{Cluster, replicas};
use crate::{e2e, load, tools};
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DRIVE: &str = "2GiB";

pub fn cluster(settings: &[&str]) -> Result<Cluster> {
    Cluster::up(&build::daemons(Profile::Release)?, 7, DRIVE, settings)
}

pub fn volume(c: &Cluster, name: &str, size: &str) -> Result<()> {
    c.ctl(&["volume", "create", name, "--size", size])?;
    c.wait(name, "healthy", 60)
}

pub fn path(c: &Cluster, name: &str) -> Result<String> {
    Ok(c.dir.join(name).to_str().context("temporary folder's name is not UTF-8")?.to_owned())
}

pub fn sleep(secs: u64) {
    std::thread::sleep(Duration::from_secs(secs));
}

/// spine-2: real clients, and fio for a minute.
pub fn clients() -> Result<String> {
    if let Some(get) = tools::install_clients() {
        bail!("clients are missing: {get}");
    }
    let bins = build::daemons(Profile::Release)?;
    e2e::real_clients(&bins)?;
    e2e::disturbed(&bins)?;
    let c = cluster(&[])?;
    volume(&c, "vol1", "1GiB")?;
    let f = fio_verify(&c.uri(1, "vol1"), 60)?;
    let (ios, stall) = fio_end(f)?;
    Ok(format!("all clients agree; fio: {ios} verified I/Os in 60 s without error, longest {stall:.0} ms"))
}

/// fio's nbd engine, 512 B to 256 KiB mixed, verified, depth 32.
fn fio_verify(uri: &str, secs: u32) -> Result<Child> {
    let mut c = Command::new("fio");
    c.args([
        "--name=v",
        "--ioengine=nbd",
        "--rw=randrw",
        "--bsrange=512-256k",
        "--iodepth=32",
        "--verify=crc32c",
    ]);
    c.args(["--verify_fatal=1", "--time_based", "--size=256m", "--output-format=json"]);
    c.arg(format!("--aux-path={}", std::env::temp_dir().display()));
    c.arg(format!("--uri={uri}")).arg(format!("--runtime={secs}"));
    c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("fio")
}

/// Number of I/Os, and the longest in milliseconds.
fn fio_end(child: Child) -> Result<(u64, f64)> {
    let out = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&out.stdout);
    let json: serde_json::Value =
        serde_json::from_str(&text[text.find('{').unwrap_or(0)..]).with_context(|| text.to_string())?;
    let job = &json["jobs"][0];
    if !out.status.success() || job["error"].as_i64() != Some(0) {
        bail!("fio: {}", String::from_utf8_lossy(&out.stderr));
    }
    let (mut ios, mut longest) = (0, 0.0_f64);
    for side in ["read", "write"] {
        ios += job[side]["total_ios"].as_u64().unwrap_or(0);
        longest = longest.max(job[side]["clat_ns"]["max"].as_f64().unwrap_or(0.0) / 1e6);
    }
    Ok((ios, longest))
}

/// spine-3: a replica's node killed under verified load, back, resynced; then a rolling restart.
pub fn replica() -> Result<String> {
    if let Some(get) = tools::install_clients() {
        bail!("clients are missing: {get}");
    }
    let c = cluster(&[])?;
    volume(&c, "vol1", "1GiB")?;
    let mut figures = String::new();
    let victim = replicas(&c, "vol1")?.into_iter().find(|n| n != "n1").context("no replica but on n1")?;
    let f = fio_verify(&c.uri(1, "vol1"), 60)?;
    sleep(5);
    c.kill(&victim)?;
    let (ios, stall) = fio_end(f)?;
    let _ =
        writeln!(figures, "{victim} killed under fio: {ios} verified I/Os, no error, longest {stall:.0} ms");
    if stall >= 1000.0 {
        bail!("stalled for {stall:.0} ms\n{figures}");
    }
    let shown = c.json(&["volume", "show", "vol1"])?;
    let (state, faults) = (shown["state"].as_str().unwrap_or(""), shown["faults"].to_string());
    let _ = writeln!(figures, "volume show: {state}: {faults}");
    if state != "degraded" || shown["faults"].as_array().is_none_or(Vec::is_empty) {
        bail!("volume show does not say degraded and why: {shown}");
    }
    c.start(&victim)?;
    c.wait("vol1", "healthy", 120)?;
    moved(&c, &victim, &mut figures)?;
    c.ctl(&["volume", "verify", "vol1"])?;
    rolling(&c, &mut figures)?;
    Ok(figures)
}

/// What was written while a replica is away, and what is moved when it is back.
const AWAY: u64 = 64 << 20;

/// 64 MiB written while a replica is away: not more than that is moved, plus what was written since the resync began.
fn moved(c: &Cluster, victim: &str, figures: &mut String) -> Result<()> {
    let uri = c.uri(1, "vol1");
    let write = |pattern: u8| {
        let (a, b) = (format!("write -P {pattern} 0 32M"), format!("write -P {} 32M 32M", pattern + 1));
        build::output(Command::new("qemu-io").args(["-f", "raw", "-c", &a, "-c", &b, "-c", "flush", &uri]))
    };
    c.kill(victim)?;
    sleep(3);
    write(1)?;
    c.start(victim)?;
    c.wait("vol1", "healthy", 120)?;
    sleep(1); // the last figure comes with a heartbeat
    let quiet = moved_bytes(c)?;
    let _ = writeln!(figures, "64 MiB written while {victim} was away: {} KiB moved", quiet >> 10);

    c.kill(victim)?;
    sleep(3);
    write(3)?;
    let log = path(c, "meanwhile.log")?;
    let meanwhile = load::start(c, &uri, &log, 8, &["--depth", "8"])?;
    sleep(1);
    c.start(victim)?;
    c.wait("vol1", "healthy", 120)?;
    let since = load::finish(meanwhile)?;
    load::check(c, &uri, &log)?;
    let busy = moved_bytes(c)?;
    let _ = writeln!(
        figures,
        "the same under a load that wrote {} KiB since: {} KiB moved, longest gap {:.0} ms, {} errors",
        since.bytes_written >> 10,
        busy >> 10,
        since.longest_gap_ms,
        since.errors
    );
    if quiet > AWAY || busy > AWAY + since.bytes_written || quiet == 0 || busy == 0 || since.errors > 0 {
        bail!("moved more than was written, or nothing, or errors\n{figures}");
    }
    Ok(())
}

/// Since the volume ceased to be whole.
fn moved_bytes(c: &Cluster) -> Result<u64> {
    let shown = c.json(&["volume", "show", "vol1"])?;
    if shown["resync"]["left_bytes"].as_u64() != Some(0) {
        bail!("the volume is healthy, and volume show says that something is left to resync: {shown}");
    }
    shown["resync"]["moved_bytes"]
        .as_u64()
        .with_context(|| format!("volume show has no resync.moved_bytes: {shown}"))
}

/// Until the load of a rolling restart ends: longer than seven restarts take, which is looked at.
const ROLLING_SECS: u32 = 150;

/// All nodes, one after the other, under load.
fn rolling(c: &Cluster, figures: &mut String) -> Result<()> {
    let log = path(c, "rolling.log")?;
    let uri = c.uri(1, "vol1");
    let mut l = load::start(c, &uri, &log, ROLLING_SECS, &["--reconnect", "--depth", "8"])?;
    sleep(2);
    let start = Instant::now();
    for n in 1..=7 {
        let name = format!("n{n}");
        c.ctl(&["dev", "kill", &name, "--signal", "TERM"])?;
        sleep(1);
        c.start(&name)?;
        c.wait("vol1", "healthy", 60)?;
    }
    let took = start.elapsed().as_secs_f64();
    if let Some(status) = l.try_wait()? {
        bail!(
            "the load ended ({status}) before the seventh restart was over, after {took:.0} s: nothing is shown"
        );
    }
    let report = load::finish(l)?;
    load::check(c, &uri, &log)?;
    c.ctl(&["volume", "verify", "vol1"])?;
    let _ = writeln!(
        figures,
        "rolling restart of seven nodes in {took:.0} s: {} writes, {} errors, {} reconnects, longest gap {:.0} ms; verify clean",
        report.acknowledged, report.errors, report.reconnects, report.longest_gap_ms
    );
    if report.errors > 0 {
        bail!("I/O errors during the rolling restart\n{figures}");
    }
    Ok(())
}

/// spine-4: metad's leader killed under load.
pub fn leader() -> Result<String> {
    let c = cluster(&[])?;
    volume(&c, "vol1", "256MiB")?;
    let log = path(&c, "load.log")?;
    let l = load::start(&c, &c.uri(1, "vol1"), &log, 12, &[])?;
    sleep(4);
    c.kill("metad-leader")?;
    let start = Instant::now();
    c.ctl(&["volume", "create", "vol2", "--size", "64MiB"])?;
    c.wait("vol2", "healthy", 10)?;
    let created = start.elapsed().as_secs_f64();
    let report = load::finish(l)?;
    let figures = format!(
        "longest gap of the load {:.0} ms; a volume created {created:.1} s after the kill",
        report.longest_gap_ms
    );
    if report.errors > 0 || report.longest_gap_ms > 100.0 || created > 5.0 {
        bail!(figures);
    }
    Ok(figures)
}

/// spine-5: everything killed at once, ten times.
pub fn all_killed() -> Result<String> {
    let c = cluster(&[])?;
    volume(&c, "vol1", "256MiB")?;
    let mut figures = String::new();
    for round in 1..=10 {
        let log = path(&c, &format!("load{round}.log"))?;
        let uri = c.uri(1, "vol1");
        let l = load::start(&c, &uri, &log, 30, &[])?;
        sleep(3);
        c.kill("all")?;
        let written = load::broken_off(l)?;
        let start = Instant::now();
        c.start("all")?;
        c.wait("vol1", "healthy", 60)?;
        let whole = start.elapsed().as_secs_f64();
        load::check(&c, &uri, &log).with_context(|| format!("round {round}\n{figures}"))?;
        let _ = writeln!(
            figures,
            "round {round}: {} writes acknowledged until the kill, none is missing; healthy {whole:.1} s after the start",
            written.acknowledged
        );
    }
    Ok(figures)
}

/// spine-6: the session's own blockd killed and started; its node gone.
pub fn session() -> Result<String> {
    if let Some(get) = tools::install_clients() {
        bail!("clients are missing: {get}");
    }
    let c = cluster(&[])?;
    volume(&c, "vol1", "256MiB")?;
    let (uri, log) = (c.uri(1, "vol1"), path(&c, "load.log")?);
    let l = load::start(&c, &uri, &log, 12, &["--reconnect"])?;
    sleep(4);
    let killed = Instant::now();
    c.kill("n1")?;
    // From here on the new process counts: `dev start` returns when it serves.
    let down_ms = killed.elapsed().as_secs_f64() * 1e3;
    c.start("n1")?;
    let report = load::finish(l)?;
    load::check(&c, &uri, &log)?;
    let after = report.longest_gap_ms - down_ms;
    let mut figures = format!(
        "n1 killed and started (down for {down_ms:.0} ms): the load's longest gap {:.0} ms, {after:.0} ms after the start; nothing lost\n",
        report.longest_gap_ms
    );
    if after > 1000.0 || report.errors > 0 {
        bail!(figures);
    }
    let log = path(&c, "load2.log")?;
    let l = load::start(&c, &uri, &log, 30, &[])?;
    sleep(4);
    let killed = Instant::now();
    c.kill("n1")?;
    let other = c.uri(
        replicas(&c, "vol1")?.iter().find(|n| *n != "n1").and_then(|n| n[1..].parse().ok()).unwrap_or(2),
        "vol1",
    );
    build::output(Command::new("qemu-io").args(["-r", "-f", "raw", "-c", "read 0 4k", &other]))?;
    let took = killed.elapsed().as_secs_f64();
    let _ = l.wait_with_output()?;
    load::check(&c, &other, &log)?;
    let _ = writeln!(figures, "n1 gone: first read on another node {took:.1} s after the kill; nothing lost");
    if took > 6.0 {
        bail!(figures);
    }
    Ok(figures)
}

/// spine-7: a node gone for good.
pub fn gone() -> Result<String> {
    let c = cluster(&["down_out=20s"])?;
    volume(&c, "open", "1GiB")?;
    volume(&c, "closed", "1GiB")?;
    let log = path(&c, "closed.log")?;
    let filled = load::start(&c, &c.uri(2, "closed"), &log, 5, &[])?;
    load::finish(filled)?;
    let log_open = path(&c, "open.log")?;
    let both: Vec<String> = replicas(&c, "open")?;
    let closed = replicas(&c, "closed")?;
    let victim =
        both.iter().find(|n| *n != "n1" && closed.contains(n)).or_else(|| closed.iter().find(|n| *n != "n1"));
    let victim = victim.context("no node to lose")?.clone();
    let l = load::start(&c, &c.uri(1, "open"), &log_open, 60, &["--depth", "4"])?;
    sleep(2);
    c.kill(&victim)?;
    let start = Instant::now();
    let mut progress = [0, 0];
    while start.elapsed() < Duration::from_secs(90) {
        for (seen, v) in progress.iter_mut().zip(["open", "closed"]) {
            *seen += u32::from(c.json(&["volume", "show", v])?["resync"]["left_seconds"].is_u64());
        }
        let whole = |v: &str| Ok::<_, anyhow::Error>(c.json(&["volume", "show", v])?["state"] == "healthy");
        if start.elapsed() > Duration::from_secs(20) && whole("closed")? && whole("open")? {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let took = start.elapsed().as_secs_f64();
    let report = load::finish(l)?;
    for v in ["open", "closed"] {
        c.wait(v, "healthy", 1)?;
        if replicas(&c, v)?.contains(&victim) {
            bail!("{v} still names {victim}");
        }
        c.ctl(&["volume", "verify", v])?;
    }
    load::check(&c, &c.uri(1, "open"), &log_open)?;
    load::check(&c, &c.uri(2, "closed"), &log)?;
    let figures = format!(
        "{victim} gone: both volumes whole again {took:.0} s after the kill (down_out 20 s); progress with time left seen {} times \
         for the open one, {} for the other; longest gap of the load {:.0} ms",
        progress[0], progress[1], report.longest_gap_ms
    );
    if progress.contains(&0) || report.errors > 0 {
        bail!(figures);
    }
    Ok(figures)
}
