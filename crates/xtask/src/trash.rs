//! Deleted volumes, and snapshots by schedule, end to end.

use crate::cluster::Cluster;
use crate::load;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// Deleting is answered in this, whatever nodes are down.
const AT_ONCE: Duration = Duration::from_secs(3);

fn refused(c: &Cluster, args: &[&str], code: &str) -> Result<()> {
    let output = c.command(args).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() || !said.contains(code) {
        bail!("{args:?} must be refused with {code}: {said}");
    }
    Ok(())
}

fn until(what: &str, secs: u64, holds: impl Fn() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(secs);
    while !holds()? {
        if Instant::now() > end {
            bail!("not within {secs} s: {what}");
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}

fn list<'a>(v: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    v[key].as_array().with_context(|| format!("no {key} in {v}"))
}

fn used(c: &Cluster) -> Result<u64> {
    let drives = c.json(&["drive", "list"])?;
    Ok(list(&drives, "drives")?.iter().filter_map(|d| d["used_bytes"].as_u64()).sum())
}

fn written(c: &Cluster, volume: &str, log: &str) -> Result<()> {
    let report = load::finish(load::start(c, &c.uri(1, volume), log, 1, &["--span", "16MiB"])?)?;
    if report.errors > 0 || report.acknowledged == 0 {
        bail!("writing to {volume}: {report:?}");
    }
    c.wait(volume, "detached", 30)
}

/// A volume comes back from the trash as it was; its name is free meanwhile; in its time it is erased, and its space is free.
pub fn rested(bins: &Path) -> Result<()> {
    let c = Cluster::up(bins, 3, "512MiB", &["trash=20s"])?;
    let log = c.dir.join("load.log");
    let log = log.to_str().context("temporary folder's name is not UTF-8")?;
    c.ctl(&["volume", "create", "v", "--size", "64MiB"])?;
    c.wait("v", "healthy", 60)?;
    let before = used(&c)?;
    written(&c, "v", log)?;
    c.ctl(&["snapshot", "create", "v@a"])?;
    refused(&c, &["volume", "delete", "v", "--yes"], "E1407")?;
    let deleted = c.json(&["volume", "delete", "v", "--with-snapshots", "--yes"])?;
    if deleted["rests_until_ms"].as_u64().is_none() {
        bail!("it does not rest: {deleted}");
    }
    c.ctl(&["volume", "create", "v", "--size", "64MiB"])?;
    refused(&c, &["volume", "restore", "v"], "E1504")?;
    c.ctl(&["volume", "restore", "v", "--as", "w"])?;
    load::check(&c, &c.uri(2, "w"), log)?;
    load::check(&c, &c.uri(3, "w@a"), log)?;
    c.wait("w", "detached", 30)?;
    c.kill("n3")?;
    for volume in ["v", "w"] {
        let begun = Instant::now();
        c.ctl(&["volume", "delete", volume, "--with-snapshots", "--yes"])?;
        if begun.elapsed() > AT_ONCE {
            bail!("deleting {volume} took {:?} with a node down", begun.elapsed());
        }
    }
    c.ctl(&["volume", "purge", "v", "--yes"])?;
    let trash = c.json(&["volume", "list", "--trash"])?;
    if list(&trash, "volumes")?.iter().map(|v| &v["name"]).ne(["w"]) {
        bail!("w alone rests: {trash}");
    }
    until("w is erased", 60, || Ok(list(&c.json(&["volume", "list", "--trash"])?, "volumes")?.is_empty()))?;
    c.start("n3")?;
    until("the space is free", 60, || Ok(used(&c)? <= before))
}

/// A policy makes a snapshot of a volume under load in its minute, and is refused where it does not fit.
pub fn scheduled(bins: &Path) -> Result<()> {
    let c = Cluster::up(bins, 3, "512MiB", &[])?;
    let log = c.dir.join("load.log");
    let log = log.to_str().context("temporary folder's name is not UTF-8")?;
    c.ctl(&["volume", "create", "v", "--size", "64MiB"])?;
    c.ctl(&["policy", "create", "p", "--schedule", "* * * * *", "--keep-last", "2"])?;
    c.ctl(&["volume", "quota", "v", "--snapshots", "1"])?;
    refused(&c, &["policy", "attach", "p", "v"], "E1601")?;
    c.ctl(&["volume", "quota", "v", "--snapshots", "1", "--manual-only"])?;
    c.ctl(&["policy", "attach", "p", "v"])?;
    c.ctl(&["snapshot", "create", "v@mine"])?;
    refused(&c, &["snapshot", "create", "v@more"], "E1602")?;
    let guest = load::start(&c, &c.uri(1, "v"), log, 65, &["--span", "16MiB"])?;
    let made = || -> Result<Option<String>> {
        let all = c.json(&["snapshot", "list", "v"])?;
        let by = list(&all, "snapshots")?.iter().find(|s| s["policy"] == "p");
        Ok(by.and_then(|s| s["name"].as_str().map(str::to_owned)))
    };
    until("a snapshot by the policy", 90, || Ok(made()?.is_some()))?;
    let name = made()?.context("it was there")?;
    if !name.starts_with("v@p-20") {
        bail!("a policy's snapshot is named after it and its time: {name}");
    }
    let report = load::finish(guest)?;
    if report.errors > 0 || report.acknowledged == 0 {
        bail!("a policy's snapshot disturbed the guest: {report:?}");
    }
    refused(&c, &["policy", "delete", "p", "--yes"], "E1603")?;
    c.ctl(&["policy", "detach", "p", "v"])?;
    c.ctl(&["policy", "delete", "p", "--yes"]).map(drop)
}
