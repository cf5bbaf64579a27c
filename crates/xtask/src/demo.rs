//! `cargo xtask demo`: a whole cluster on this machine, a node killed under a write, nothing lost.

use crate::build::{self, Profile};
use crate::cluster::{Cluster, replicas};
use anyhow::{Context, Result, bail};
use std::time::{Duration, Instant};

const NODES: u32 = 7;
const SECS: &str = "8";

pub fn run(args: &[&str]) -> Result<()> {
    if !args.is_empty() {
        bail!("demo takes no arguments");
    }
    eprintln!("building blockd, metad and blockctl (the first time takes minutes)");
    let bins = build::daemons(Profile::Dev)?;
    let said = play(&bins)?;
    println!();
    for (i, line) in said.iter().enumerate() {
        println!("{:>2}. {line}", i + 1);
    }
    Ok(())
}

fn play(bins: &std::path::Path) -> Result<Vec<String>> {
    let mut said = Vec::new();
    let start = Instant::now();
    let c = Cluster::up(bins, NODES, "1GiB", &[])?;
    said.push(format!(
        "started {NODES} nodes and 3 metads on loopback in {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    c.ctl(&["volume", "create", "demo", "--size", "512MiB"])?;
    c.wait("demo", "healthy", 30)?;
    said.push("made the volume \"demo\": 512 MiB, three copies".into());

    let log = c.dir.join("demo.log");
    let log = log.to_str().context("temporary folder's name is not UTF-8")?;
    let writer = c.spawn(&["load", &c.uri(1, "demo"), "--log", log, "--secs", SECS])?;
    std::thread::sleep(Duration::from_secs(2));
    let victim = victim(&c)?;
    c.kill(&victim)?;
    said.push(format!(
        "wrote to it through NBD on n1; 2 s later killed {victim}, which holds a copy of it (kill -9)"
    ));
    let out = writer.wait_with_output()?;
    let report = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        bail!("the writer failed:\n{report}{}", String::from_utf8_lossy(&out.stderr));
    }
    said.push(format!("the writer went on without an error: {}", report.trim().replace('\n', "; ")));
    let shown = c.json(&["volume", "show", "demo"])?;
    said.push(format!("the volume says: {}", shown["state"].as_str().unwrap_or("?")));

    let reader = (1..=NODES)
        .rev()
        .find(|n| format!("n{n}") != victim && *n != 1)
        .context("no node is left to read on")?;
    let checked = c.ctl(&["load", "check", &c.uri(reader, "demo"), log])?;
    said.push(format!("read everything back on n{reader}: {}", checked.trim().replace('\n', "; ")));

    c.start(&victim)?;
    let start = Instant::now();
    c.wait("demo", "healthy", 120)?;
    let shown = c.json(&["volume", "show", "demo"])?;
    let moved = shown["resync"]["moved_bytes"].as_u64().unwrap_or(0);
    said.push(format!(
        "started {victim} again: resync moved {} MiB, healthy after {:.1} s",
        moved >> 20,
        start.elapsed().as_secs_f64()
    ));
    let verified = c.ctl(&["volume", "verify", "demo"])?;
    said.push(format!("volume verify: {}", verified.trim().lines().last().unwrap_or("").trim()));
    drop(c);
    said.push("stopped everything and removed the folder".into());
    Ok(said)
}

/// A node that holds a replica of the volume's first chunk and is not where the session lives.
fn victim(c: &Cluster) -> Result<String> {
    replicas(c, "demo")?.into_iter().find(|n| n != "n1").context("no replica on another node")
}
