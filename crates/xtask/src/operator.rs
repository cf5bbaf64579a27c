//! What an operator is told, by a real cluster: end to end, in short.

use crate::build;
use crate::cluster::{Cluster, replicas};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Status, refusals and their exit codes, and a second process with a node's id.
pub fn told(bins: &Path) -> Result<()> {
    let c = Cluster::up(bins, 3, "512MiB", &[])?;
    c.ctl(&["volume", "create", "vol1", "--size", "64MiB"])?;
    c.wait("vol1", "healthy", 60)?;
    refusals(&c)?;
    dead_metad(&c)?;
    verify_from_elsewhere(&c)?;
    no_room(&c)?;
    impostor(bins, &c)
}

/// Fails unless blockctl ends so and says this on stderr.
fn refused(command: &mut Command, exit: i32, words: &[&str]) -> Result<()> {
    let out = command.output()?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if out.status.code() != Some(exit) || !words.iter().all(|w| said.contains(w)) {
        bail!("{}: {}, not {exit} with {words:?}: {said}", build::shown(command), out.status);
    }
    Ok(())
}

fn refusals(c: &Cluster) -> Result<()> {
    refused(
        &mut c.command(&["volume", "create", "v", "--size", "64MiB", "--copies", "300"]),
        2,
        &["E1209", "300"],
    )?;
    let set = ["cluster", "config", "set", "down_out=1s"];
    refused(&mut c.command(&set), 2, &["E1005", "fix: blockctl cluster config set down_out=5s"])?;
    refused(&mut c.command(&["dev", "up", "--drive-size", "1GiB"]), 4, &["E1955"])
}

fn check<'a>(status: &'a Value, code: &str) -> Option<&'a Value> {
    status["checks"].as_array()?.iter().find(|c| c["code"] == code)
}

/// Waits until the status is so.
fn status_is(c: &Cluster, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        let status = c.json(&["cluster", "status"])?;
        if holds(&status) {
            return Ok(status);
        }
        if Instant::now() > until {
            bail!("cluster status does not come to {what}: {status}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A follower that is killed, and one that is stopped, while nothing is written.
fn dead_metad(c: &Cluster) -> Result<()> {
    for signal in ["KILL", "STOP"] {
        let status = status_is(c, "all metads well", |s| {
            check(s, "METAD_DOWN").is_none() && s["survives_one_node"] == true
        })?;
        let leader = status["metad"]["leader"].as_u64().context("nobody leads")?;
        let victim = format!("m{}", leader % 3 + 1);
        c.ctl(&["dev", "kill", &victim, "--signal", signal])?;
        status_is(c, "METAD_DOWN", |s| check(s, "METAD_DOWN").is_some() && s["survives_one_node"] == false)?;
        c.start(&victim)?;
    }
    status_is(c, "all well again", |s| s["health"] == "HEALTH_OK").map(drop)
}

/// Without the folder blockctl is on a machine somewhere: only the session's own blockd tells how far it is.
fn verify_from_elsewhere(c: &Cluster) -> Result<()> {
    let status = c.json(&["dev", "status"])?;
    let metads: Vec<&str> = status["processes"]
        .as_array()
        .context("dev status")?
        .iter()
        .filter_map(|p| p["address"].as_str())
        .collect();
    let blockctl = c.command(&[]).get_program().to_owned();
    let verify = |socket: &Path| {
        let mut command = Command::new(&blockctl);
        command.args(["--endpoint", &metads.join(","), "volume", "verify", "vol1", "--socket"]).arg(socket);
        command
    };
    // A guest on n1 holds the session.
    let log = c.dir.join("verify.log");
    let log = log.to_str().context("temporary folder's name is not UTF-8")?;
    let guest = crate::load::start(c, &c.uri(1, "vol1"), log, 8, &["--depth", "2"])?;
    c.wait("vol1", "attached", 10)?;
    let admin = |n: u32| c.dir.join(format!("n{n}")).join("admin.sock");
    let told = ["E1215", "on node n1", "fix: on n1: blockctl volume verify vol1"];
    refused(&mut verify(&admin(2)), 8, &told)?;
    refused(&mut verify(&c.dir.join("nowhere.sock")), 8, &told)?;
    build::output(&mut verify(&admin(1)))?;
    crate::load::finish(guest).map(drop)
}

/// Three copies on three nodes: nothing can be placed anew, and nobody says so.
fn no_room(c: &Cluster) -> Result<()> {
    let victim = replicas(c, "vol1")?.pop().context("no replica")?;
    c.kill(&victim)?;
    let want = format!("no other node has room: add one, or start {victim}");
    status_is(c, &want, |s| check(s, "NODE_DOWN").is_some_and(|n| n["action"] == want.as_str()))?;
    let shown = c.json(&["volume", "show", "vol1"])?;
    if shown["faults"][0]["action"] != want.as_str() {
        bail!("volume show promises what cannot be: {shown}");
    }
    c.start(&victim)?;
    c.wait("vol1", "healthy", 60)
}

/// The configuration of n2 copied to another machine: metad takes no second n2, and the first one goes on.
fn impostor(bins: &Path, c: &Cluster) -> Result<()> {
    let before = c.json(&["node", "show", "n2"])?;
    let dir = c.dir.join("other");
    std::fs::create_dir(&dir)?;
    let text = std::fs::read_to_string(c.dir.join("n2/blockd.toml"))?;
    std::fs::write(dir.join("blockd.toml"), text.replace("drives = [\"drive0\"]", "drives = []"))?;
    let log = std::fs::File::create(dir.join("log"))?;
    let mut command = Command::new(bins.join("blockd"));
    command.arg("--config").arg(dir.join("blockd.toml")).stdin(Stdio::null()).stdout(Stdio::null());
    let mut other = command.stderr(log).spawn()?;
    let result = is_refused(&dir, &mut other);
    // It may have ended by itself.
    let _ = other.kill();
    let _ = other.wait();
    std::fs::remove_dir_all(&dir)?;
    result?;
    let after = c.json(&["node", "show", "n2"])?;
    if after["data_address"] != before["data_address"] || after["up"] != true {
        bail!("a second process with its id disturbed n2: {after}");
    }
    Ok(())
}

fn is_refused(dir: &Path, other: &mut Child) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        let said = std::fs::read_to_string(dir.join("log"))?;
        if said.contains("is not node n2") {
            return Ok(());
        }
        if Instant::now() > until || other.try_wait()?.is_some() {
            bail!("a second process with the id of n2 is not refused: {said}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
