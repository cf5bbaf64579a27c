//! Space figures end to end: exact to the extent after writes, snapshots, deletes, a clone and a rollback; and what they say
//! when a node is gone.

use crate::cluster::Cluster;
use crate::load;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

const EXTENT: u64 = 64 << 10;
const COPIES: u64 = 3;
const VOLUME: &str = "space";
const CLONE: &str = "space-clone";

/// Whole extents, from the volume's begin.
fn write(c: &Cluster, volume: &str, extents: u64) -> Result<()> {
    let (log, span) = (c.dir.join("space.log"), format!("{}KiB", (extents * EXTENT) >> 10));
    let log = log.to_str().context("temporary folder's name is not UTF-8")?;
    let (begun, mut written) = (Instant::now(), 0);
    // At random: but so often that no block is left out.
    while written < 20 * extents * EXTENT {
        let report = load::finish(load::start(c, &c.uri(1, volume), log, 1, &["--span", &span])?)?;
        written += report.bytes_written;
        if report.errors > 0 || begun.elapsed() > Duration::from_secs(60) {
            bail!("{span} of {volume} are not rewritten: {written} bytes, {report:?}");
        }
    }
    Ok(())
}

/// In extents.
#[derive(Debug, PartialEq, Eq)]
struct Figures {
    /// Seen by the volume, exclusive.
    head: (u64, u64),
    /// Name, sees, exclusive, freed by its deletion.
    snapshots: Vec<(String, u64, u64, u64)>,
    /// By one copy, without what is only waiting to be freed.
    taken: u64,
}

fn extents(v: &Value) -> Result<u64> {
    let bytes = v.as_u64().with_context(|| format!("no number: {v}"))?;
    if bytes % EXTENT == 0 { Ok(bytes / EXTENT) } else { bail!("{bytes} bytes are no whole extents") }
}

/// What `volume space` says, and what it says to be waiting to be freed.
fn measured(c: &Cluster, volume: &str) -> Result<(Figures, u64)> {
    let v = c.json(&["volume", "space", volume])?;
    let n = |key: &str| extents(&v[key]).with_context(|| key.to_owned());
    let snapshot = |s: &Value| {
        let name = s["name"].as_str().unwrap_or("-").to_owned();
        let [sees, exclusive, frees] =
            ["referenced_bytes", "exclusive_bytes", "frees_bytes"].map(|key| extents(&s[key]));
        Ok((name, sees?, exclusive?, frees?))
    };
    let unseen = n("to_free_bytes")?;
    let figures = Figures {
        head: (n("referenced_bytes")?, n("exclusive_bytes")?),
        snapshots: v["snapshots"]
            .as_array()
            .context("no snapshots")?
            .iter()
            .map(snapshot)
            .collect::<Result<_>>()?,
        taken: n("taken_bytes")? - unseen,
    };
    let all = &v["all_copies"];
    let everywhere = extents(&all["taken_bytes"])? - extents(&all["to_free_bytes"])?;
    if v["complete"] != true || everywhere != figures.taken * COPIES {
        bail!("one copy has {} extents, all have {everywhere}: {v}", figures.taken);
    }
    Ok((figures, unseen))
}

fn is(
    c: &Cluster,
    what: &str,
    head: (u64, u64),
    snapshots: &[(&str, u64, u64, u64)],
    taken: u64,
) -> Result<()> {
    let named = |s: &(&str, u64, u64, u64)| (format!("{VOLUME}@{}", s.0), s.1, s.2, s.3);
    let wanted = Figures { head, snapshots: snapshots.iter().map(named).collect(), taken };
    let (found, _) = measured(c, VOLUME)?;
    if found != wanted { bail!("{what}: found {found:?}, must be {wanted:?}") } else { Ok(()) }
}

/// The sweep has come.
fn freed(c: &Cluster, volume: &str) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    while measured(c, volume)?.1 > 0 {
        if Instant::now() > until {
            bail!("what nobody sees is not freed: {:?}", measured(c, volume)?);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

pub fn exact(bins: &Path) -> Result<()> {
    let c = &Cluster::up(bins, 3, "512MiB", &[])?;
    c.ctl(&["volume", "create", VOLUME, "--size", "64MiB"])?;
    c.wait(VOLUME, "healthy", 60)?;
    is(c, "new", (0, 0), &[], 0)?;
    write(c, VOLUME, 16)?;
    is(c, "16 written", (16, 16), &[], 16)?;
    c.ctl(&["snapshot", "create", "space@a"])?;
    is(c, "a snapshot", (16, 0), &[("a", 16, 0, 0)], 16)?;
    write(c, VOLUME, 8)?;
    is(c, "8 rewritten", (16, 8), &[("a", 16, 8, 8)], 24)?;
    c.ctl(&["snapshot", "create", "space@b"])?;
    write(c, VOLUME, 4)?;
    is(c, "4 more", (16, 4), &[("a", 16, 8, 8), ("b", 16, 4, 4)], 28)?;
    listed(c)?;
    c.ctl(&["snapshot", "delete", "space@b", "--yes"])?;
    // Right at once, whatever the drives have freed.
    is(c, "b deleted", (16, 8), &[("a", 16, 8, 8)], 24)?;
    freed(c, VOLUME)?;
    is(c, "b freed", (16, 8), &[("a", 16, 8, 8)], 24)?;
    cloned(c)?;
    node_lost(c)
}

/// The list and one alone say the same.
fn listed(c: &Cluster) -> Result<()> {
    let list = c.json(&["snapshot", "list", VOLUME, "--space"])?;
    let shown = c.json(&["snapshot", "show", "space@b", "--space"])?;
    let b = &list["snapshots"][1];
    if b["name"] != "space@b" || b["space"] != shown["space"] || extents(&b["space"]["frees_bytes"])? != 4 {
        bail!("space@b frees 4 extents, by {b} and {shown}");
    }
    if c.json(&["snapshot", "list", VOLUME])?["snapshots"][1].get("space").is_some() {
        bail!("a plain list counts nothing");
    }
    Ok(())
}

/// What a clone reads from its parent is the parent's, and is not freed; a rollback leaves its branch behind.
fn cloned(c: &Cluster) -> Result<()> {
    c.ctl(&["volume", "clone", "space@a", CLONE])?;
    is(c, "a clone", (16, 8), &[("a", 16, 8, 0)], 24)?;
    write(c, CLONE, 4)?;
    let (clone, _) = measured(c, CLONE)?;
    if clone != (Figures { head: (4, 4), snapshots: vec![], taken: 4 }) {
        bail!("4 extents are the clone's own: {clone:?}");
    }
    c.wait(CLONE, "detached", 30)?;
    c.ctl(&["volume", "delete", CLONE, "--now", "--yes"])?;
    is(c, "the clone deleted", (16, 8), &[("a", 16, 8, 8)], 24)?;
    c.wait(VOLUME, "detached", 30)?;
    c.ctl(&["volume", "rollback", "space@a", "--no-safety-snapshot", "--yes"])?;
    c.wait(VOLUME, "ready", 60)?;
    is(c, "gone back", (0, 0), &[("a", 16, 16, 0)], 16)?;
    write(c, VOLUME, 4)?;
    is(c, "4 written since", (4, 4), &[("a", 16, 16, 0)], 20)?;
    freed(c, VOLUME)
}

/// Of a node that is gone it is said that its replicas are missing; what one copy takes is known all the same.
fn node_lost(c: &Cluster) -> Result<()> {
    c.wait(VOLUME, "detached", 30)?;
    c.kill("n3")?;
    let output = c.command(&["--format", "json", "volume", "space", VOLUME]).output()?;
    let v: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&output.stderr)))?;
    if output.status.success()
        || v["complete"] != false
        || v["missing_replicas"].as_u64().is_none_or(|n| n == 0)
    {
        bail!("n3 is gone, and nothing is missing: {v}");
    }
    // By now it is called down: the others are asked instead.
    let output = c.command(&["--format", "json", "volume", "space", VOLUME]).output()?;
    let v: Value = serde_json::from_slice(&output.stdout)?;
    let all = extents(&v["all_copies"]["taken_bytes"])?;
    if v["missing_chunks"] != 0 || extents(&v["taken_bytes"])? != 20 || all != 40 {
        bail!("20 extents in each of two copies that are left: {v}");
    }
    c.start("n3")?;
    c.wait(VOLUME, "healthy", 120)?;
    is(c, "all are back", (4, 4), &[("a", 16, 16, 0)], 20)
}
