//! Clones and rollback end to end: what they read, what they take, what they are refused for, and how long they need.

use crate::cluster::{Cluster, replicas};
use crate::{build, load, resize, tools};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// So many clones of one template, one after another.
const MANY: u32 = 100;
/// Of builds for tests, on a machine that does other things too. What is claimed is shown by `prove`.
const MANY_WITHIN: Duration = Duration::from_secs(40);
/// The claim.
const CLAIMED: Duration = Duration::from_secs(10);

struct Scene {
    c: Cluster,
    /// What was written to the template, by the log of the load that did.
    template: PathBuf,
}

impl Scene {
    /// A template with data and a snapshot of it.
    fn new(bins: &Path) -> Result<Scene> {
        let c = Cluster::up(bins, 3, "1GiB", &[])?;
        c.ctl(&["volume", "create", "t", "--size", "64MiB"])?;
        c.wait("t", "healthy", 60)?;
        let s = Scene { template: c.dir.join("t.log"), c };
        s.write("t", 1, "t.log", 2)?;
        s.c.ctl(&["snapshot", "create", "t@a"])?;
        Ok(s)
    }

    fn write(&self, volume: &str, node: u32, log: &str, secs: u32) -> Result<PathBuf> {
        let log = self.c.dir.join(log);
        let guest = load::start(&self.c, &self.c.uri(node, volume), text(&log)?, secs, &["--span", "32MiB"])?;
        let report = load::finish(guest)?;
        if report.errors > 0 || report.acknowledged == 0 {
            bail!("writing to {volume}: {report:?}");
        }
        Ok(log)
    }

    /// The volume (or `volume@snapshot`) holds what that load wrote.
    fn holds(&self, what: &str, node: u32, log: &Path) -> Result<()> {
        load::check(&self.c, &self.c.uri(node, what), text(log)?).with_context(|| what.to_owned())
    }

    /// The same bytes, as qemu sees them, if it is there.
    fn equal(&self, a: &str, b: &str) -> Result<bool> {
        if !tools::have("qemu-img") {
            return Ok(a != b);
        }
        let (a, b) = (self.c.uri(1, a), self.c.uri(2, b));
        let status =
            Command::new("qemu-img").args(["compare", "-q", "-f", "raw", "-F", "raw", &a, &b]).status()?;
        match status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            other => bail!("qemu-img compare {a} {b}: {other:?}"),
        }
    }
    fn same(&self, a: &str, b: &str) -> Result<()> {
        if tools::have("qemu-img") && !self.equal(a, b)? {
            bail!("{a} and {b} differ");
        }
        Ok(())
    }
    fn differ(&self, a: &str, b: &str) -> Result<()> {
        if self.equal(a, b)? { bail!("{a} and {b} are equal") } else { Ok(()) }
    }

    fn refused(&self, args: &[&str], code: &str, words: &[&str]) -> Result<()> {
        let output = self.c.command(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() || !said.contains(code) || !words.iter().all(|w| said.contains(w)) {
            bail!("{args:?} must be refused with {code} and {words:?}: {said}");
        }
        Ok(())
    }

    /// Bytes used on all drives, once they stay the same.
    fn used(&self) -> Result<u64> {
        let until = Instant::now() + Duration::from_secs(20);
        let mut last = None;
        loop {
            let drives = self.c.json(&["drive", "list"])?;
            let all = drives["drives"].as_array().context("drive list has no drives")?;
            let now: u64 = all.iter().filter_map(|d| d["used_bytes"].as_u64()).sum();
            if last == Some(now) || Instant::now() > until {
                return Ok(now);
            }
            last = Some(now);
            // Two heartbeats.
            std::thread::sleep(Duration::from_millis(1200));
        }
    }
    fn takes_nothing(&self, before: u64, what: &str) -> Result<()> {
        let now = self.used()?;
        if now > before { bail!("{what} take {} bytes", now - before) } else { Ok(()) }
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("temporary folder's name is not UTF-8")
}

pub fn made(bins: &Path) -> Result<()> {
    let s = Scene::new(bins)?;
    let own = clones(&s)?;
    chains(&s, &own)?;
    rolled_back(&s)?;
    many(&s, MANY_WITHIN)?;
    node_lost(&s, &own)?;
    resize::smaller(&s.c)?;
    resize::larger_under_qemu(&s.c)
}

/// Of a snapshot, of a volume as it is now, and larger: they read what their template reads, and take no space for it.
fn clones(s: &Scene) -> Result<PathBuf> {
    let before = s.used()?;
    s.c.ctl(&["volume", "clone", "t@a", "c1"])?;
    s.c.ctl(&["volume", "clone", "t", "c2"])?;
    s.c.ctl(&["volume", "clone", "t@a", "c3", "--size", "96MiB"])?;
    for clone in ["c1", "c2", "c3"] {
        s.holds(clone, 2, &s.template)?;
        s.same("t@a", clone)?;
    }
    let shown = s.c.json(&["volume", "show", "c3"])?;
    if shown["size_bytes"].as_u64() != Some(96 << 20) || shown["parent"] != "t@a" {
        bail!("c3 is a clone of t@a with 96 MiB: {shown}");
    }
    s.takes_nothing(before, "three clones that nobody wrote to")?;
    s.refused(&["volume", "clone", "t@a", "c4", "--size", "32MiB"], "E1501", &["t@a"])?;
    s.refused(&["volume", "clone", "t@none", "c4"], "E1007", &[])?;
    // What is written to a clone is the clone's alone.
    let own = s.write("c1", 3, "c1.log", 1)?;
    s.holds("c1", 2, &own)?;
    s.holds("t", 1, &s.template)?;
    s.holds("t@a", 3, &s.template)?;
    s.differ("t@a", "c1")?;
    s.same("t@a", "c2")?;
    if s.used()? <= before {
        bail!("what was written to a clone takes no space: was {before}");
    }
    Ok(own)
}

/// A clone of a clone's snapshot, and one of that; a parent goes only after those who read from it.
fn chains(s: &Scene, own: &Path) -> Result<()> {
    s.c.ctl(&["snapshot", "create", "c1@x"])?;
    s.c.ctl(&["volume", "clone", "c1@x", "d"])?;
    s.c.ctl(&["volume", "clone", "d", "e"])?;
    for clone in ["d", "e", "c1@x"] {
        s.holds(clone, 1, own)?;
        s.same("c1", clone)?;
    }
    let yes = |args: &[&'static str]| [args, &["--yes"]].concat();
    s.refused(&yes(&["snapshot", "delete", "t@a"]), "E1408", &["c1", "c3"])?;
    s.refused(&yes(&["volume", "delete", "t", "--with-snapshots"]), "E1408", &["c1", "c3"])?;
    s.refused(&yes(&["volume", "delete", "d"]), "E1408", &["e"])?;
    for gone in ["e", "d"] {
        s.c.wait(gone, "detached", 30)?;
        s.c.ctl(&["volume", "delete", gone, "--yes"])?;
    }
    s.c.ctl(&["volume", "clone", "c1@x", "d"]).map(drop)
}

/// Back to a snapshot: not under a guest; what was there before is in a snapshot of its own.
fn rolled_back(s: &Scene) -> Result<()> {
    let log = s.c.dir.join("t2.log");
    let uri = s.c.uri(1, "t");
    let guest = load::start(&s.c, &uri, text(&log)?, 3, &["--span", "32MiB"])?;
    s.c.wait("t", "attached", 20)?;
    s.refused(&["volume", "rollback", "t@a"], "E1203", &["n1"])?;
    let report = load::finish(guest)?;
    if report.errors > 0 || report.acknowledged == 0 {
        bail!("a rollback that was refused disturbed the guest: {report:?}");
    }
    s.c.wait("t", "detached", 30)?;
    s.c.ctl(&["snapshot", "create", "t@later"])?;
    s.c.ctl(&["volume", "rollback", "t@a"])?;
    s.holds("t", 2, &s.template)?;
    s.same("t@a", "t")?;
    s.holds("t@later", 3, &log)?;
    let listed = s.c.json(&["snapshot", "list", "t"])?;
    let names: Vec<String> = listed["snapshots"]
        .as_array()
        .context("snapshot list has no snapshots")?
        .iter()
        .filter_map(|s| s["name"].as_str().map(str::to_owned))
        .collect();
    let safety = names.iter().find(|n| n.starts_with("t@before-rollback-"));
    let safety = safety.with_context(|| format!("no safety snapshot among {names:?}"))?;
    s.holds(safety, 1, &log)?;
    // And forth again.
    s.c.wait("t", "detached", 30)?;
    s.c.ctl(&["volume", "rollback", "t@later", "--no-safety-snapshot", "--yes"])?;
    s.holds("t", 1, &log)?;
    s.holds("c2", 1, &s.template)
}

/// snap-5: a disk made from a template takes no space until it is written, and a hundred are made in no time.
pub fn hundred() -> Result<String> {
    let s = Scene::new(&build::daemons(build::Profile::Release)?)?;
    let before = s.used()?;
    clones(&s)?;
    let own = s.used()? - before;
    let took = many(&s, CLAIMED)?;
    Ok(format!(
        "three clones that nobody wrote to: 0 bytes; one that was written to: {} KiB on three drives\n\
         {MANY} clones ordered one after another, all ready: {:.1} s, 0 bytes",
        own >> 10,
        took.as_secs_f64()
    ))
}

fn many(s: &Scene, within: Duration) -> Result<Duration> {
    let before = s.used()?;
    let begun = Instant::now();
    // The next is ordered while the records of the last are still made.
    for i in 0..MANY {
        s.c.ctl(&["volume", "clone", "t@a", &format!("m{i}"), "--no-wait"])?;
    }
    for i in 0..MANY {
        s.c.wait(&format!("m{i}"), "ready", 60)?;
    }
    let took = begun.elapsed();
    eprintln!("{MANY} clones: {:.1} s", took.as_secs_f64());
    s.takes_nothing(before, "a hundred clones that nobody wrote to")?;
    s.holds(&format!("m{}", MANY - 1), 3, &s.template)?;
    for i in 0..MANY {
        s.c.ctl(&["volume", "delete", &format!("m{i}"), "--force=test", "--yes"])?;
    }
    if took > within {
        bail!("{MANY} clones took {:.1} s", took.as_secs_f64());
    }
    Ok(took)
}

/// A clone goes on without one of the nodes that its parent lies on.
fn node_lost(s: &Scene, own: &Path) -> Result<()> {
    let victim = replicas(&s.c, "c1")?.into_iter().find(|n| n != "n1").context("no replica but on n1")?;
    s.c.kill(&victim)?;
    s.holds("d", 1, own)?;
    s.c.start(&victim)?;
    s.c.wait("d", "healthy", 120)?;
    s.c.ctl(&["volume", "verify", "d"]).map(drop)
}
