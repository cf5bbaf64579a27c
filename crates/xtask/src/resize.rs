//! A volume made smaller, and larger again, end to end.

use crate::cluster::{Cluster, replicas};
use crate::{build, load, tools};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const SMALL: u64 = 32 << 20;

fn output(c: &Cluster, args: &[&str]) -> Result<(Output, String)> {
    let out = c.command(args).output()?;
    let said = [&out.stdout[..], &out.stderr[..]].concat();
    Ok((out, String::from_utf8_lossy(&said).into_owned()))
}

fn written(c: &Cluster, log: &str, more: &[&str]) -> Result<()> {
    let report = load::finish(load::start(c, &c.uri(1, "r"), log, 1, more)?)?;
    if report.errors > 0 || report.acknowledged == 0 {
        bail!("writing to r: {report:?}");
    }
    c.wait("r", "detached", 30)
}

/// Not by mistake, not over what is written unless that is said; then what was beyond is gone for good from the head, on
/// a replica too that was away, and a snapshot of before has it all.
pub fn smaller(c: &Cluster) -> Result<()> {
    let dir = c.dir.to_str().context("temporary folder's name is not UTF-8")?;
    let (all, low) = (format!("{dir}/all.log"), format!("{dir}/low.log"));
    c.ctl(&["volume", "create", "r", "--size", "64MiB"])?;
    c.wait("r", "healthy", 60)?;
    written(c, &all, &[])?;
    c.ctl(&["snapshot", "create", "r@a"])?;
    refused(c, &all)?;
    let victim = replicas(c, "r")?.into_iter().find(|n| n != "n1").context("no replica but on n1")?;
    c.kill(&victim)?;
    c.ctl(&["volume", "resize", "r", "--size", "32MiB", "--force", "--discard", "--wait", "60", "--yes"])?;
    size_is(c, SMALL)?;
    written(c, &low, &[])?;
    c.ctl(&["volume", "resize", "r", "--size", "64MiB"])?;
    size_is(c, 2 * SMALL)?;
    c.start(&victim)?;
    c.wait("r", "healthy", 120)?;
    load::check(c, &c.uri(2, "r"), &low)?;
    c.ctl(&["volume", "verify", "r"])?;
    zeroes(c, dir)?;
    load::check(c, &c.uri(3, "r@a"), &all)?;
    c.ctl(&["volume", "clone", "r@a", "ra"])?;
    load::check(c, &c.uri(1, "ra"), &all)
}

fn refused(c: &Cluster, all: &str) -> Result<()> {
    let (out, said) = output(c, &["volume", "resize", "r", "--size", "32MiB"])?;
    if out.status.success() || !said.contains("E1205") || !said.contains("--force") {
        bail!("a volume that would get smaller is refused with E1205, which names --force: {said}");
    }
    let (out, said) = output(c, &["volume", "resize", "r", "--size", "32MiB", "--force", "--wait", "60"])?;
    if out.status.code() != Some(1) || !said.contains("failed") || !said.contains("is written") {
        bail!("what is written beyond the end is in the way: {} {said}", out.status);
    }
    size_is(c, 2 * SMALL)?;
    load::check(c, &c.uri(2, "r"), all)?;
    c.wait("r", "detached", 30)?;
    let guest = load::start(c, &c.uri(1, "r"), &format!("{all}.2"), 4, &["--depth", "1"])?;
    c.wait("r", "attached", 20)?;
    let (_, said) = output(c, &["volume", "resize", "r", "--size", "32MiB", "--force"])?;
    if !said.contains("E1203") || !said.contains("n1") {
        bail!("under a guest it is refused with its node: {said}");
    }
    load::finish(guest)?;
    c.wait("r", "detached", 30)
}

fn size_is(c: &Cluster, bytes: u64) -> Result<()> {
    let shown = c.json(&["volume", "show", "r"])?;
    if shown["size_bytes"].as_u64() != Some(bytes) {
        bail!("r has {bytes} bytes: {shown}");
    }
    Ok(())
}

/// What lies beyond the end that it once had.
fn zeroes(c: &Cluster, dir: &str) -> Result<()> {
    if tools::have("qemu-io") {
        let said = build::output(
            Command::new("qemu-io").args(["-r", "-f", "raw", "-c", "read -P 0 32M 32M"]).arg(c.uri(1, "r")),
        )?;
        if said.contains("failed") {
            bail!("something has come back: {said}");
        }
    }
    c.wait("r", "detached", 30)?;
    c.ctl(&["snapshot", "create", "r@b"])?;
    let exported = c.json(&["snapshot", "export", "r@b", "--output", &format!("{dir}/b.blkd")])?;
    match exported["data_bytes"].as_u64() {
        Some(data) if data <= SMALL => Ok(()),
        _ => bail!("r@b has data beyond the end that r had: {exported}"),
    }
}

/// QEMU with the volume as its disk, and an NBD server of its own in front of it.
struct Qemu {
    child: Child,
    monitor: BufReader<UnixStream>,
    out: PathBuf,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Qemu {
    fn start(dir: &Path, volume: &Path, export: &str) -> Result<Qemu> {
        let (out, monitor) = (dir.join("qemu.nbd"), dir.join("qemu.mon"));
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!(
                "driver=nbd,node-name=disk,server.type=unix,server.path={},export={export},reconnect-delay=30",
                volume.display()
            ))
            .arg("--nbd-server")
            .arg(format!("addr.type=unix,addr.path={}", out.display()))
            .arg("--chardev")
            .arg(format!("socket,id=m,path={},server=on,wait=off", monitor.display()))
            .args(["--monitor", "chardev=m"])
            .stdin(Stdio::null())
            .spawn()?;
        let until = Instant::now() + Duration::from_secs(10);
        let stream = loop {
            match UnixStream::connect(&monitor) {
                Ok(s) => break s,
                Err(e) if Instant::now() > until => bail!("QEMU's monitor: {e}"),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut q = Qemu { child, monitor: BufReader::new(stream), out };
        q.ask("qmp_capabilities", &json!({}))?;
        Ok(q)
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let line = json!({"execute": command, "arguments": arguments}).to_string();
        self.monitor.get_mut().write_all(line.as_bytes())?;
        loop {
            let mut said = String::new();
            self.monitor.read_line(&mut said)?;
            let v: Value = serde_json::from_str(&said).with_context(|| format!("QEMU said {said:?}"))?;
            if v.get("return").is_some() {
                return Ok(());
            }
            if v.get("error").is_some() || said.is_empty() {
                bail!("{command}: QEMU said {said}");
            }
        }
    }

    /// As a guest does it: through QEMU.
    fn io(&mut self, commands: &[&str]) -> Result<()> {
        let export = json!({"type": "nbd", "id": "e", "node-name": "disk", "writable": true});
        self.ask("block-export-add", &export)?;
        let mut c = Command::new("qemu-io");
        c.args(["-f", "raw"]);
        for x in commands {
            c.args(["-c", x]);
        }
        let said = build::output(c.arg(format!("nbd+unix:///disk?socket={}", self.out.display())));
        let until = Instant::now() + Duration::from_secs(5);
        // Its client may not have gone altogether.
        while let Err(e) = self.ask("block-export-del", &json!({"id": "e", "mode": "safe"})) {
            if Instant::now() > until {
                return Err(e);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::sleep(Duration::from_millis(200));
        let said = said?;
        if said.contains("failed") || said.contains("rror") {
            bail!("{commands:?}: {said}");
        }
        Ok(())
    }
}

/// A disk grows under QEMU: its connection is ended, it connects anew with its next I/O, and learns the size.
pub fn larger_under_qemu(c: &Cluster) -> Result<()> {
    if !tools::have("qemu-storage-daemon") || !tools::have("qemu-io") {
        return Ok(());
    }
    c.ctl(&["volume", "create", "g", "--size", "64MiB"])?;
    c.wait("g", "ready", 60)?;
    let mut q = Qemu::start(&c.dir, &c.socket(1), "g")?;
    q.io(&["write -P 5 0 64k", "write -P 6 60M 1M"])?;
    let grown = json!({"node-name": "disk", "size": 96 << 20});
    c.ctl(&["volume", "resize", "g", "--size", "96MiB"])?;
    if q.ask("block_resize", &grown).is_ok() {
        bail!("QEMU knows of the new size without having connected anew: --reconnect is for nothing");
    }
    c.ctl(&["volume", "resize", "g", "--size", "96MiB", "--reconnect"])?;
    q.io(&["read -P 5 0 64k"])?;
    q.ask("block_resize", &grown)?;
    q.io(&["read -P 6 60M 1M", "read -P 0 64M 32M", "write -P 7 80M 64k", "read -P 7 80M 64k", "flush"])?;
    drop(q);
    let said = build::output(
        Command::new("qemu-io").args(["-r", "-f", "raw", "-c", "read -P 7 80M 64k"]).arg(c.uri(2, "g")),
    )?;
    if said.contains("failed") {
        bail!("what QEMU wrote beyond the old end is not there: {said}");
    }
    Ok(())
}
