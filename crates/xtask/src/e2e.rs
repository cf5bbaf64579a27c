//! End-to-end checks in short: real processes, real drives (files, O_DIRECT), real clients where they are.

use crate::cluster::{Cluster, replicas};
use crate::{build, load, tools};
use anyhow::{Context, Result, bail};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Our own client: write under the loss of a replica's node, resync, verify; all killed and started again.
pub fn own_client(bins: &Path) -> Result<()> {
    let c = Cluster::up(bins, 4, "512MiB", &[])?;
    c.ctl(&["volume", "create", "vol1", "--size", "128MiB"])?;
    c.wait("vol1", "healthy", 60)?;
    let log = c.dir.join("load.log");
    let log = log.to_str().context("temporary folder's name is not UTF-8")?;
    let uri = c.uri(1, "vol1");
    // Not the session's own node, and one of those that hold the data.
    let victim = replicas(&c, "vol1")?.into_iter().find(|n| n != "n1").context("no replica but on n1")?;
    let guest = load::start(&c, &uri, log, 6, &[])?;
    std::thread::sleep(Duration::from_secs(2));
    c.kill(&victim)?;
    let report = load::finish(guest)?;
    if report.errors > 0 || report.acknowledged == 0 {
        bail!("{victim} killed under load: {report:?}");
    }
    let shown = c.json(&["volume", "show", "vol1"])?;
    let named = shown["faults"].as_array().is_some_and(|f| f.iter().any(|f| f["node"] == victim.as_str()));
    if shown["state"] != "degraded" || !named {
        bail!("{victim} is down, and volume show does not say so: {shown}");
    }
    c.ctl(&["load", "check", &uri, log])?;
    c.start(&victim)?;
    c.wait("vol1", "healthy", 120)?;
    moved_something(&c)?;
    c.ctl(&["volume", "verify", "vol1"])?;
    c.kill("all")?;
    c.start("all")?;
    c.wait("vol1", "healthy", 120)?;
    c.ctl(&["load", "check", &uri, log])?;
    Ok(())
}

/// The resync has moved what was written meanwhile; the last figure comes with a heartbeat.
fn moved_something(c: &Cluster) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let shown = c.json(&["volume", "show", "vol1"])?;
        if shown["resync"]["moved_bytes"].as_u64().is_some_and(|moved| moved > 0) {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("the resync of a replica that missed writes has moved nothing: {shown}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// `dev up` ended by Ctrl-C at some moments, and once by SIGKILL: no process is left, and no folder.
pub fn broken_off(bins: &Path) -> Result<()> {
    let base = std::env::temp_dir().join(format!("blockd-off-{}", std::process::id()));
    std::fs::create_dir(&base)?;
    let broken_off = || -> Result<()> {
        for (round, ms) in [150, 600, 1500].into_iter().enumerate() {
            let dir = base.join(format!("c{round}"));
            let mut up = ctl(bins, &dir, &["dev", "up", "--nodes", "3", "--drive-size", "512MiB"]).spawn()?;
            std::thread::sleep(Duration::from_millis(ms));
            let hard = round == 1;
            signal(&up, if hard { "KILL" } else { "INT" })?;
            up.wait()?;
            if hard || dir.join("cluster.json").exists() {
                build::output(&mut ctl(bins, &dir, &["dev", "down", "--wipe", "--yes"]))?;
            }
            if dir.exists() {
                bail!("{} is left of a dev up that was broken off after {ms} ms", dir.display());
            }
            // What formats a drive when blockctl is killed hard ends by itself.
            let until = Instant::now() + Duration::from_secs(10);
            let mut left = processes_of(&dir)?;
            while hard && !left.is_empty() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(100));
                left = processes_of(&dir)?;
            }
            if !left.is_empty() {
                bail!("processes {left:?} are left of a dev up that was broken off after {ms} ms");
            }
        }
        Ok(())
    };
    let result = broken_off();
    let _ = std::fs::remove_dir_all(&base);
    result
}

fn ctl(bins: &Path, dir: &Path, args: &[&str]) -> Command {
    let mut c = Command::new(bins.join("blockctl"));
    c.arg("--dir").arg(dir).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    c
}

fn signal(child: &Child, name: &str) -> Result<()> {
    // The shell's own: a minimal system has no `kill` program.
    build::run(Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &child.id().to_string()]))
}

/// Processes whose command line names the folder.
fn processes_of(dir: &Path) -> Result<Vec<String>> {
    let word = dir.to_str().context("temporary folder's name is not UTF-8")?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        // It may have ended meanwhile.
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(word) {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}

/// A guest whose client connects again sees neither its blockd's restart nor other clients' rubbish as an error.
pub fn disturbed(bins: &Path) -> Result<()> {
    let c = Cluster::up(bins, 3, "512MiB", &[])?;
    c.ctl(&["volume", "create", "vol1", "--size", "64MiB"])?;
    c.wait("vol1", "healthy", 60)?;
    let log = c.dir.join("load.log");
    let log = log.to_str().context("temporary folder's name is not UTF-8")?;
    let uri = c.uri(1, "vol1");
    let guest = load::start(&c, &uri, log, 6, &["--reconnect"])?;
    std::thread::sleep(Duration::from_secs(1));
    let others = rubbish(&c.socket(1))?;
    std::thread::sleep(Duration::from_secs(1));
    drop(others);
    c.ctl(&["dev", "kill", "n1", "--signal", "TERM"])?;
    c.start("n1")?;
    let report = load::finish(guest)?;
    if report.errors > 0 || report.reconnects != 1 {
        bail!(
            "a guest that connects again saw errors, or lost its connection to others' rubbish: {report:?}"
        );
    }
    load::check(&c, &uri, log)
}

/// Clients that say nothing, half of something, nonsense, and an option of 4 GiB; they stay connected.
fn rubbish(socket: &Path) -> Result<Vec<UnixStream>> {
    let huge = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &7u32.to_be_bytes(), &u32::MAX.to_be_bytes()].concat();
    let nonsense = pattern(8192);
    let said: [&[u8]; 4] = [b"", b"\0\0", &huge, &nonsense];
    let mut clients = Vec::new();
    for bytes in said.iter().cycle().take(16) {
        let mut s = UnixStream::connect(socket)?;
        // It may hang up before the end.
        let _ = s.write_all(bytes);
        clients.push(s);
    }
    Ok(clients)
}

/// qemu-img, qemu-io, nbdinfo, nbdcopy and fio, as far as they are there.
pub fn real_clients(bins: &Path) -> Result<()> {
    let c = Cluster::up(bins, 3, "512MiB", &[])?;
    c.ctl(&["volume", "create", "vol1", "--size", "64MiB"])?;
    c.wait("vol1", "healthy", 60)?;
    let uri = c.uri(1, "vol1");
    let run = |program: &str, args: &[&str]| -> Result<String> {
        if !tools::have(program) {
            return Ok(String::new());
        }
        build::output(Command::new(program).args(args))
    };
    let image = c.dir.join("image.raw");
    let image = image.to_str().context("temporary folder's name is not UTF-8")?;
    std::fs::write(image, pattern(64 << 20))?;
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", image, &uri])?;
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &uri])?;
    run("nbdinfo", &["--json", &uri])?;
    run("nbdinfo", &["--map", &uri])?;
    if tools::have("nbdcopy") {
        let copy = c.dir.join("copy.raw");
        run("nbdcopy", &[&uri, copy.to_str().context("not UTF-8")?])?;
        if std::fs::read(&copy)? != std::fs::read(image)? {
            bail!("nbdcopy read something else than was written");
        }
    }
    let commands = [
        "write -P 7 4k 64k",
        "read -P 7 4k 64k",
        "discard 4k 4k",
        "write -z 8k 4k",
        "read -P 0 8k 4k",
        "flush",
    ];
    let mut args: Vec<&str> = vec!["-f", "raw"];
    for x in &commands {
        args.extend(["-c", x]);
    }
    args.push(&uri);
    let said = run("qemu-io", &args)?;
    if said.contains("failed") {
        bail!("qemu-io: {said}");
    }
    let u = format!("--uri={uri}");
    let aux = format!("--aux-path={}", c.dir.display());
    run(
        "fio",
        &[
            "--name=v",
            "--ioengine=nbd",
            // what it knows of the writes to verify, else left in the current folder
            &aux,
            &u,
            "--rw=randrw",
            "--bsrange=512-256k",
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--runtime=10",
            "--time_based",
            "--size=64m",
        ],
    )?;
    Ok(())
}

/// Neither constant nor compressible; the same each time.
fn pattern(len: usize) -> Vec<u8> {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let mut v = Vec::with_capacity(len);
    while v.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        v.extend_from_slice(&x.to_le_bytes());
    }
    v.truncate(len);
    v
}
