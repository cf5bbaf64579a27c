//! End-to-end checks in short: real processes, real drives (files, O_DIRECT), real clients where they are.

use crate::cluster::Cluster;
use crate::{load, tools};
use anyhow::{Context, Result, bail};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Our own client: write under the loss of a replica's node, resync, verify; all killed and started again.
pub fn own_client(bins: &Path) -> Result<()> {
    let c = Cluster::up(bins, 4, "512MiB", &[])?;
    c.ctl(&["volume", "create", "vol1", "--size", "128MiB"])?;
    c.wait("vol1", "healthy", 60)?;
    let log = c.dir.join("load.log");
    let log = log.to_str().context("temporary folder's name is not UTF-8")?;
    let uri = c.uri(1, "vol1");
    c.ctl(&["load", &uri, "--log", log, "--secs", "3"])?;
    c.kill("n2")?;
    c.ctl(&["load", &uri, "--log", log, "--secs", "3"])?;
    c.ctl(&["load", "check", &uri, log])?;
    c.start("n2")?;
    c.wait("vol1", "healthy", 120)?;
    c.ctl(&["volume", "verify", "vol1"])?;
    c.kill("all")?;
    c.start("all")?;
    c.wait("vol1", "healthy", 120)?;
    c.ctl(&["load", "check", &uri, log])?;
    Ok(())
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
        crate::build::output(Command::new(program).args(args))
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
