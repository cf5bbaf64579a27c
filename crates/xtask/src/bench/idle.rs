//! `cargo xtask bench idle`: seven nodes with ten volumes attached, and nothing to do.

use super::cpu;
use crate::build::{self, Profile};
use crate::cluster::Cluster;
use anyhow::{Result, bail};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const SECS: u64 = 20;
const VOLUMES: u32 = 10;
/// Share of one core that all processes of the cluster may use.
pub const LIMIT: f64 = 0.03;

pub fn run() -> Result<()> {
    let share = measure()?;
    println!("idle: {:.2} % of one core in all (limit {:.0} %)", share * 100.0, LIMIT * 100.0);
    if share >= LIMIT {
        bail!("an idle cluster uses too much CPU");
    }
    Ok(())
}

/// Share of one core that blockd and metad processes used together.
pub fn measure() -> Result<f64> {
    let bins = build::daemons(Profile::Release)?;
    let c = Cluster::up(&bins, 7, "1GiB", &[])?;
    let mut attached = Vec::new();
    for i in 0..VOLUMES {
        let name = format!("idle{i}");
        c.ctl(&["volume", "create", &name, "--size", "64MiB"])?;
        c.wait(&name, "healthy", 60)?;
        attached.push(hold(&c, i % 7 + 1, &name)?);
    }
    std::thread::sleep(Duration::from_secs(5));
    let pids = c.pids(None)?;
    let before = cpu::now(&pids, &pids)?;
    std::thread::sleep(Duration::from_secs(SECS));
    let used = cpu::now(&pids, &pids)?.since(before).servers;
    drop(attached);
    #[expect(clippy::cast_precision_loss, reason = "a share for a table")]
    Ok(used as f64 / (SECS as f64 * 1e6))
}

/// An NBD client that has opened the export and says nothing more.
fn hold(c: &Cluster, node: u32, volume: &str) -> Result<UnixStream> {
    use std::io::{Read, Write};
    let mut s = UnixStream::connect(c.socket(node))?;
    s.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut hello = [0; 18];
    s.read_exact(&mut hello)?;
    // NBD_OPT_EXPORT_NAME with no zeroes: the server answers 10 bytes (size, flags) and serves
    let mut ask = Vec::new();
    ask.extend(3_u32.to_be_bytes());
    ask.extend(b"IHAVEOPT");
    ask.extend(1_u32.to_be_bytes());
    ask.extend(u32::try_from(volume.len())?.to_be_bytes());
    ask.extend(volume.as_bytes());
    s.write_all(&ask)?;
    let mut answer = [0; 10];
    s.read_exact(&mut answer)?;
    Ok(s)
}
