//! A cluster in a folder, run with `blockctl dev` as a user would; gone when dropped.

use crate::build;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Cluster {
    bins: PathBuf,
    pub dir: PathBuf,
    keep: bool,
}

impl Cluster {
    /// Starts `nodes` nodes in a new folder under the system's temporary one (short: sockets have 107 bytes).
    pub fn up(bins: &Path, nodes: u32, drive: &str, settings: &[&str]) -> Result<Cluster> {
        Cluster::up_with(bins, nodes, drive, settings, &[])
    }

    /// With these variables in the daemons' environment.
    pub fn up_with(
        bins: &Path,
        nodes: u32,
        drive: &str,
        settings: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Cluster> {
        let dir = std::env::temp_dir().join(format!(
            "blockd-{}-{:x}",
            std::process::id(),
            Instant::now().elapsed().subsec_nanos() ^ unique()
        ));
        let c = Cluster { bins: bins.to_path_buf(), dir, keep: std::env::var_os("BLOCKD_KEEP").is_some() };
        let mut args = vec![
            "dev".to_owned(),
            "up".into(),
            "--nodes".into(),
            nodes.to_string(),
            "--drive-size".into(),
            drive.into(),
        ];
        for s in settings {
            args.extend(["--set".into(), (*s).to_owned()]);
        }
        let mut up = c.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
        build::output(up.envs(environment.iter().copied()))?;
        Ok(c)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(self.bins.join("blockctl"));
        c.arg("--dir").arg(&self.dir).args(args).stdin(Stdio::null());
        c
    }

    /// Runs blockctl; returns its stdout.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        build::output(&mut self.command(args))
    }

    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["--format", "json"];
        all.extend(args);
        let text = self.ctl(&all)?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    pub fn spawn(&self, args: &[&str]) -> Result<Child> {
        let mut c = self.command(args);
        c.stdout(Stdio::piped()).stderr(Stdio::piped());
        c.spawn().with_context(|| build::shown(&c))
    }

    pub fn socket(&self, node: u32) -> PathBuf {
        self.dir.join(format!("n{node}")).join("nbd.sock")
    }

    pub fn uri(&self, node: u32, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.socket(node).display())
    }

    /// Sum of a metric's samples, of all nodes `1..=nodes`.
    pub fn metric(&self, nodes: u32, name: &str) -> Result<u64> {
        let mut sum = 0;
        for n in 1..=nodes {
            let path = self.dir.join(format!("n{n}")).join("admin.sock");
            let mut s = UnixStream::connect(&path).with_context(|| path.display().to_string())?;
            s.set_read_timeout(Some(Duration::from_secs(5)))?;
            s.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            let mut page = String::new();
            s.read_to_string(&mut page)?;
            let samples =
                page.lines().filter_map(|l| l.strip_prefix(name)?.strip_prefix('{')?.rsplit_once(' '));
            let values: Vec<u64> = samples.map(|(_, v)| v.parse()).collect::<Result<_, _>>()?;
            if values.is_empty() {
                bail!("n{n} shows no metric {name}");
            }
            sum += values.iter().sum::<u64>();
        }
        Ok(sum)
    }

    /// Waits until `blockctl volume wait` says the state is reached.
    pub fn wait(&self, volume: &str, state: &str, secs: u64) -> Result<()> {
        let secs = secs.to_string();
        self.ctl(&["volume", "wait", volume, "--state", state, "--timeout", &secs]).map(|_| ())
    }

    /// Process ids of the living processes whose role is `role` ("blockd", "metad"), or all.
    pub fn pids(&self, role: Option<&str>) -> Result<Vec<u32>> {
        let status = self.json(&["dev", "status"])?;
        let list = status["processes"].as_array().context("dev status has no processes")?;
        Ok(list
            .iter()
            .filter(|p| role.is_none_or(|r| p["role"] == r))
            .filter_map(|p| p["pid"].as_u64().and_then(|n| u32::try_from(n).ok()))
            .collect())
    }

    pub fn kill(&self, what: &str) -> Result<()> {
        self.ctl(&["dev", "kill", what]).map(|_| ())
    }

    pub fn start(&self, what: &str) -> Result<()> {
        self.ctl(&["dev", "start", what]).map(|_| ())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() || self.keep {
            eprintln!("the cluster's folder is kept: {}", self.dir.display());
            let _ = self.ctl(&["dev", "down"]);
            return;
        }
        if let Err(e) = self.ctl(&["dev", "down", "--wipe", "--yes"]) {
            eprintln!("dev down: {e:#}");
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Differs between two calls of one process and, by its id, between processes.
fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static N: AtomicU32 = AtomicU32::new(0);
    N.fetch_add(1, Ordering::Relaxed)
}

/// Nodes that hold replicas of the volume's first chunk, by name.
pub fn replicas(c: &Cluster, volume: &str) -> Result<Vec<String>> {
    let shown = c.json(&["volume", "show", volume])?;
    let list = shown["chunks"][0]["replicas"].as_array().context("volume show lists no replicas")?;
    Ok(list.iter().filter_map(|r| r["node"].as_str().map(str::to_owned)).collect())
}
