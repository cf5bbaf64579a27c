//! Snapshots on real processes.

use super::survives::{cluster, path, sleep, volume};
use crate::cluster::{Cluster, replicas};
use crate::{build, tools};
use anyhow::{Context, Result, bail};
use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const EXTENT: u64 = 64 << 10;
const COPIES: u64 = 3;
/// A volume's lower half is what the model knows, the upper one a guest's who writes all the time.
const HALF: u64 = 128 << 20;

fn clients() -> Result<()> {
    if let Some(get) = tools::install_clients() {
        bail!("clients are missing: {get}");
    }
    Ok(())
}

fn qemu_io(uri: &str, commands: &[String]) -> Result<()> {
    let mut c = Command::new("qemu-io");
    c.args(["-f", "raw"]);
    commands.iter().for_each(|x| {
        c.args(["-c", x]);
    });
    let said = build::output(c.arg(uri))?;
    if said.contains("failed") {
        bail!("qemu-io: {said}");
    }
    Ok(())
}

/// A guest who writes at random until it is stopped.
struct Writer(Child);

impl Writer {
    fn start(uri: &str, offset: u64, size: u64) -> Result<Writer> {
        let mut c = Command::new("fio");
        c.args(["--name=w", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=16"]);
        c.args(["--time_based", "--runtime=3600", "--randrepeat=0"]);
        c.arg(format!("--offset={offset}")).arg(format!("--size={size}")).arg(format!("--uri={uri}"));
        let c = c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(Writer(c.spawn().context("fio")?))
    }
    /// Fails if it has ended by itself.
    fn stop(mut self) -> Result<()> {
        if let Some(status) = self.0.try_wait()? {
            bail!("the guest's fio ended by itself: {status}");
        }
        let pid = self.0.id().to_string();
        build::run(Command::new("sh").args(["-c", "kill -s INT \"$0\"", &pid]))?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Numbers without meaning, the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Which physical extents must be there: those of which the head or a snapshot sees a block.
#[derive(Default)]
struct Model {
    /// Per extent: generation, blocks written in it.
    written: Vec<Vec<(u64, u16)>>,
    /// The head's generation.
    now: u64,
    /// Generations of the snapshots that are there.
    kept: Vec<(u64, u64)>,
}

impl Model {
    fn write(&mut self, first_block: u64, blocks: u64) {
        for block in first_block..first_block + blocks {
            let (extent, bit) = (usize::try_from(block / 16).expect("few extents"), 1 << (block % 16));
            if extent >= self.written.len() {
                self.written.resize(extent + 1, Vec::new());
            }
            match self.written[extent].last_mut() {
                Some((at, mask)) if *at == self.now => *mask |= bit,
                _ => self.written[extent].push((self.now, bit)),
            }
        }
    }
    fn snapshot(&mut self, number: u64) {
        self.kept.push((number, self.now));
        self.now += 1;
    }
    fn delete(&mut self, number: u64) {
        self.kept.retain(|(n, _)| *n != number);
    }
    /// For each extent: one for each interval between snapshots in which it was written, for what no snapshot tells apart is
    /// joined; one for what is sealed behind the last snapshot, if the head sees some of it; and the head's own.
    fn extents(&self) -> u64 {
        let mut ends: Vec<u64> = self.kept.iter().map(|(_, at)| *at).collect();
        ends.sort_unstable();
        let count = |chain: &Vec<(u64, u16)>| {
            let part = |from: Option<u64>, to: u64| {
                let within = chain.iter().filter(|(at, _)| from.is_none_or(|f| *at > f) && *at <= to);
                within.fold(0, |mask, (_, m)| mask | m)
            };
            let starts = std::iter::once(None).chain(ends.iter().copied().map(Some));
            let kept = starts.zip(&ends).filter(|(from, to)| part(*from, **to) != 0).count() as u64;
            let head = chain.last().filter(|(at, _)| *at == self.now).map_or(0, |(_, mask)| *mask);
            let rest = self.now.checked_sub(1).map_or(0, |to| part(ends.last().copied(), to));
            kept + u64::from(rest & !head != 0) + u64::from(head != 0)
        };
        self.written.iter().map(count).sum()
    }
}

/// Bytes used on all drives, as metad shows them.
fn used(c: &Cluster) -> Result<u64> {
    let list = c.json(&["drive", "list"])?;
    let drives =
        list.as_array().or_else(|| list["drives"].as_array()).context("drive list lists no drives")?;
    drives.iter().map(|d| d["used"].as_u64().context("a drive without \"used\"")).sum()
}

/// Waits until exactly so many extents of the volume are in use.
fn settles(c: &Cluster, before: u64, extents: u64) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let found = used(c)?.saturating_sub(before) / EXTENT;
        if found == extents * COPIES {
            return Ok(start.elapsed());
        }
        if start.elapsed() > Duration::from_secs(60) {
            bail!("{found} extents are in use, {} by the model", extents * COPIES);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// snap-3: a thousand snapshots of one volume, deleted in random order under I/O: the space is what the model says.
pub fn thousand() -> Result<String> {
    const SNAPSHOTS: u64 = 1000;
    clients()?;
    let c = cluster(&[])?;
    volume(&c, "vol1", "256MiB")?;
    let (uri, mut model, mut chance) = (c.uri(1, "vol1"), Model::default(), Chance(7));
    let before = used(&c)?;
    let all: Vec<String> = (0..8).map(|i| format!("write -P 1 {}M 32M", 32 * i)).collect();
    qemu_io(&uri, &all)?;
    model.write(0, 2 * HALF / 4096);
    let start = Instant::now();
    for i in 0..SNAPSHOTS {
        let mut commands = Vec::new();
        for _ in 0..8 {
            let blocks = 1 + chance.below(24);
            let first = chance.below(HALF / 4096 - blocks);
            commands.push(format!("write -P {} {} {}", i % 250 + 2, first * 4096, blocks * 4096));
            model.write(first, blocks);
        }
        qemu_io(&uri, &commands)?;
        c.ctl(&["snapshot", "create", &format!("vol1@s{i}")])?;
        model.snapshot(i);
    }
    let mut figures = format!("{SNAPSHOTS} snapshots made in {:.0} s\n", start.elapsed().as_secs_f64());
    let took = settles(&c, before, model.extents()).context("all are there")?;
    let _ = writeln!(figures, "all there: {} extents as the model says, after {took:.1?}", model.extents());
    let mut left: Vec<u64> = (0..SNAPSHOTS).collect();
    for until in [SNAPSHOTS / 2, 0] {
        let writer = Writer::start(&uri, HALF, HALF)?;
        let start = Instant::now();
        while left.len() as u64 > until {
            let at = usize::try_from(chance.below(left.len() as u64)).context("a small number")?;
            let number = left.swap_remove(at);
            c.ctl(&["snapshot", "delete", &format!("vol1@s{number}")])?;
            model.delete(number);
        }
        let secs = start.elapsed().as_secs_f64();
        writer.stop()?;
        // Whatever the guest wrote: now all of its half is the head's.
        let rest: Vec<String> = (4..8).map(|i| format!("write -P 9 {}M 32M", 32 * i)).collect();
        qemu_io(&uri, &rest)?;
        model.write(HALF / 4096, HALF / 4096);
        let (n, extents) = (left.len(), model.extents());
        let took = settles(&c, before, extents).with_context(|| format!("{n} are left"))?;
        let _ = writeln!(
            figures,
            "{n} left, deleted in {secs:.0} s under I/O: {extents} extents as the model says, after {took:.1?}"
        );
    }
    c.ctl(&["volume", "verify", "vol1"])?;
    Ok(figures)
}

/// snap-4: a snapshot compares equal with a copy taken at that time: while the volume is rewritten, and after a node
/// was lost and rebuilt, on every node.
pub fn compare() -> Result<String> {
    clients()?;
    let c = cluster(&["down_out=10s"])?;
    volume(&c, "vol1", "256MiB")?;
    let uri = c.uri(1, "vol1");
    let writer = Writer::start(&uri, 0, 2 * HALF)?;
    sleep(5);
    writer.stop()?;
    let copy = path(&c, "copy.raw")?;
    build::output(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw", &uri, &copy]))?;
    c.ctl(&["snapshot", "create", "vol1@then"])?;
    let writer = Writer::start(&uri, 0, 2 * HALF)?;
    let same = |node: u32| -> Result<()> {
        let snapshot = c.uri(node, "vol1@then");
        let args = ["compare", "-f", "raw", "-F", "raw", &copy, &snapshot];
        build::output(Command::new("qemu-img").args(args)).map(|_| ()).with_context(|| format!("on n{node}"))
    };
    for node in [1, 3, 6] {
        same(node)?;
    }
    let mut figures = "equal on n1, n3 and n6 while the volume was rewritten\n".to_owned();
    let victim = replicas(&c, "vol1")?.into_iter().find(|n| n != "n1").context("no replica but on n1")?;
    c.kill(&victim)?;
    let start = Instant::now();
    while c.json(&["volume", "show", "vol1"])?["state"] == "healthy" {
        if start.elapsed() > Duration::from_secs(30) {
            bail!("metad does not notice that {victim} is lost");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    c.wait("vol1", "healthy", 120)?;
    let _ = writeln!(figures, "{victim} lost: whole again {:.0} s later", start.elapsed().as_secs_f64());
    let number: u32 = victim.trim_start_matches('n').parse().context("nodes are n1, n2 ..")?;
    for node in (1..=7).filter(|n| *n != number) {
        same(node)?;
    }
    writer.stop()?;
    c.start(&victim)?;
    c.wait("vol1", "healthy", 60)?;
    same(number)?;
    let _ = writeln!(figures, "equal on all nodes, and on {victim} when it was back");
    let said = Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw", &copy, &uri]).output()?;
    if said.status.success() {
        bail!("the volume itself is still equal: it was not rewritten");
    }
    c.ctl(&["volume", "verify", "vol1"])?;
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_counts_what_somebody_sees() {
        let mut m = Model::default();
        m.write(0, 32);
        assert_eq!(m.extents(), 2);
        m.snapshot(1);
        m.write(3, 1);
        assert_eq!(m.extents(), 3, "one block over a full extent");
        m.snapshot(2);
        m.write(3, 1);
        assert_eq!(m.extents(), 4);
        m.delete(2);
        assert_eq!(m.extents(), 3, "the middle one is hidden by the head's");
        m.write(0, 16);
        assert_eq!(m.extents(), 3);
        m.delete(1);
        assert_eq!(m.extents(), 2, "only what the head sees");
        for n in 3..6 {
            m.snapshot(n);
            m.write(16 + n, 1);
        }
        assert_eq!(m.extents(), 5);
        m.delete(4);
        assert_eq!(m.extents(), 4, "what was written in between is joined");
        m.delete(3);
        m.delete(5);
        assert_eq!(m.extents(), 3, "one that is sealed, and the head's");
    }
}
