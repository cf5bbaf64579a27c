//! Streams end to end: a volume, three snapshots, one full stream and two increments into another volume.

use crate::build::Profile;
use crate::cluster::Cluster;
use crate::{build, load, tools};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use stream::{Item, Reader};

/// Blocks of a stream that are not zero.
fn content(path: &Path) -> Result<BTreeMap<u64, Vec<u8>>> {
    let all = std::fs::read(path)?;
    let (mut reader, mut input, mut blocks) = (Reader::new(), &all[..], BTreeMap::new());
    while let Some(item) = reader.next(&mut input)? {
        if let Item::Data { offset, bytes } = item {
            for (i, b) in (0..).zip(bytes.chunks(4096)).filter(|(_, b)| b.iter().any(|x| *x != 0)) {
                blocks.insert(offset + i * 4096, b.to_vec());
            }
        }
    }
    reader.finish()?;
    Ok(blocks)
}

/// Fails, and says why with this code.
fn refused(c: &Cluster, args: &[&str], code: &str) -> Result<()> {
    let output = c.command(args).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() || !said.contains(code) {
        bail!("{args:?} must be refused with {code}: {said}");
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("temporary folder's name is not UTF-8")
}

fn volumes(c: &Cluster) -> Result<usize> {
    Ok(c.json(&["volume", "list"])?["volumes"].as_array().context("volume list has no volumes")?.len())
}

pub fn moved(bins: &Path) -> Result<()> {
    let c = Cluster::up(bins, 3, "512MiB", &[])?;
    c.ctl(&["volume", "create", "a", "--size", "64MiB"])?;
    c.wait("a", "healthy", 60)?;
    let file = |name: &str| c.dir.join(name);
    let mut logs = Vec::new();
    for (n, span) in [(1, "48MiB"), (2, "16MiB"), (3, "4MiB")] {
        let log = file(&format!("log{n}"));
        let guest = load::start(&c, &c.uri(1, "a"), text(&log)?, 1, &["--span", span])?;
        let report = load::finish(guest)?;
        if report.errors > 0 || report.acknowledged == 0 {
            bail!("load {n}: {report:?}");
        }
        c.ctl(&["snapshot", "create", &format!("a@s{n}")])?;
        logs.push(log);
    }
    let streams = [file("full"), file("inc2"), file("inc3")];
    c.ctl(&["snapshot", "export", "a@s1", "--output", text(&streams[0])?])?;
    c.ctl(&["snapshot", "export", "a@s2", "--from", "a@s1", "--output", text(&streams[1])?])?;
    c.ctl(&["snapshot", "export", "a@s3", "--from", "a@s2", "--output", text(&streams[2])?])?;
    compared(&c)?;
    resumed(&c, &streams)?;
    damaged(&c, &streams)?;
    added(&c, &streams, &logs)?;
    same(&c)?;
    written_since(&c, &streams)
}

/// What is told as changed lies in what was written; and errors name what is wrong.
fn compared(c: &Cluster) -> Result<()> {
    let diff = c.json(&["snapshot", "diff", "a@s2", "a@s3"])?;
    let ranges = diff["ranges"].as_array().context("a diff has ranges")?;
    let end = |r: &serde_json::Value| r["offset"].as_u64().zip(r["length"].as_u64()).map(|(o, l)| o + l);
    let within = ranges.iter().all(|r| end(r).is_some_and(|e| e <= 4 << 20));
    if ranges.is_empty() || !within {
        bail!("changes since a@s2 are in the first 4 MiB: {diff}");
    }
    refused(c, &["snapshot", "diff", "a@s3", "a@s2"], "E1942")?;
    refused(c, &["snapshot", "diff", "a@s1", "a@s1"], "E1942")?;
    refused(c, &["snapshot", "export", "a@s1", "--from", "a@s2", "--output", "-"], "E1942")
}

/// A file that was cut goes on and is the same at its end; a pipe has the same bytes.
fn resumed(c: &Cluster, streams: &[PathBuf]) -> Result<()> {
    let whole = std::fs::read(&streams[0])?;
    let cut = c.dir.join("cut");
    for at in [0, 30, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&cut, &whole[..at])?;
        c.ctl(&["snapshot", "export", "a@s1", "--output", text(&cut)?, "--resume"])?;
        if std::fs::read(&cut)? != whole {
            bail!("a stream cut at {at} and resumed is another one");
        }
    }
    refused(c, &["snapshot", "export", "a@s1", "--output", text(&cut)?], "E1930")?;
    refused(c, &["snapshot", "export", "a@s2", "--output", text(&cut)?, "--resume"], "E1941")?;
    let piped = c.command(&["snapshot", "export", "a@s1", "--output", "-"]).output()?;
    if !piped.status.success() || piped.stdout != whole {
        bail!("a pipe gets other bytes: {}", String::from_utf8_lossy(&piped.stderr));
    }
    Ok(())
}

/// Cut and flipped streams leave nothing.
fn damaged(c: &Cluster, streams: &[PathBuf]) -> Result<()> {
    let whole = std::fs::read(&streams[0])?;
    let bad = c.dir.join("bad");
    for at in [0, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&bad, &whole[..at])?;
        refused(c, &["snapshot", "import", text(&bad)?, "b"], "E1941")?;
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        std::fs::write(&bad, &flipped)?;
        refused(c, &["snapshot", "import", text(&bad)?, "b"], "E1941")?;
    }
    // An increment has nothing to be added to.
    refused(c, &["snapshot", "import", text(&streams[1])?, "b"], "E")?;
    let left = volumes(c)?;
    if left != 1 {
        bail!("{left} volumes are there after imports that were refused");
    }
    Ok(())
}

/// The full stream by a pipe, then the increments in their order; one import is killed and repeated.
fn added(c: &Cluster, streams: &[PathBuf], logs: &[PathBuf]) -> Result<()> {
    let mut import = c.command(&["snapshot", "import", "-", "b"]);
    build::output(import.stdin(Stdio::from(std::fs::File::open(&streams[0])?)))?;
    let check = |n: usize| load::check(c, &c.uri(2, "b"), text(&logs[n])?);
    check(0)?;
    refused(c, &["snapshot", "import", text(&streams[2])?, "b"], "E1944")?;
    let mut broken_off = c.spawn(&["snapshot", "import", text(&streams[1])?, "b"])?;
    std::thread::sleep(Duration::from_millis(60));
    broken_off.kill()?;
    broken_off.wait()?;
    let shown = c.json(&["snapshot", "list", "b"])?;
    if shown["snapshots"].as_array().is_some_and(|s| s.len() == 1) {
        c.ctl(&["snapshot", "import", text(&streams[1])?, "b"])?;
    }
    check(1)?;
    refused(c, &["snapshot", "import", text(&streams[1])?, "b"], "E1944")?;
    c.ctl(&["snapshot", "import", text(&streams[2])?, "b"])?;
    check(2)
}

/// All three snapshots have the same ids and bytes in both volumes.
fn same(c: &Cluster) -> Result<()> {
    for n in 1..=3 {
        let [a, b] = ["a", "b"].map(|v| format!("{v}@s{n}"));
        let id = |name: &str| Ok::<_, anyhow::Error>(c.json(&["snapshot", "show", name])?["id"].clone());
        if id(&a)? != id(&b)? {
            bail!("{b} has another id than {a}");
        }
        let files = [c.dir.join(format!("a{n}")), c.dir.join(format!("b{n}"))];
        c.ctl(&["snapshot", "export", &a, "--output", text(&files[0])?])?;
        c.ctl(&["snapshot", "export", &b, "--output", text(&files[1])?])?;
        let (x, y) = (content(&files[0])?, content(&files[1])?);
        if x.is_empty() || x != y {
            bail!("{b} has other bytes than {a}: {} and {} blocks", y.len(), x.len());
        }
    }
    Ok(())
}

/// Who has written to a volume is not overwritten.
fn written_since(c: &Cluster, streams: &[PathBuf]) -> Result<()> {
    c.ctl(&["snapshot", "import", text(&streams[0])?, "w"])?;
    let log = c.dir.join("log-w");
    let report = load::finish(load::start(c, &c.uri(3, "w"), text(&log)?, 1, &[])?)?;
    if report.acknowledged == 0 {
        bail!("nothing was written: {report:?}");
    }
    refused(c, &["snapshot", "import", text(&streams[1])?, "w"], "E1944")?;
    load::check(c, &c.uri(3, "w"), text(&log)?)
}

/// Rounds of snap-6.
const ROUNDS: u64 = 20;
/// Places at which each of two streams is cut and flipped.
const PLACES: u64 = 12;

fn snapshots(c: &Cluster, volume: &str) -> Result<usize> {
    let list = c.json(&["snapshot", "list", volume])?;
    Ok(list["snapshots"].as_array().context("snapshot list has no snapshots")?.len())
}

fn equal(a: &str, b: &str) -> Result<()> {
    build::output(Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw", a, b])).map(drop)
}

/// Numbers without meaning, the same each time.
fn chance(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % below
}

/// A guest's work of one round: writes of all sizes, zeroes and discards.
fn work(uri: &str, round: u64, state: &mut u64) -> Result<()> {
    let mut c = Command::new("qemu-io");
    c.args(["-f", "raw", "-d", "unmap"]);
    let size = 64 << 20;
    for i in 0..30 {
        let len = (1 + chance(state, [8, 128, 2048][usize::try_from(i % 3)?])) * 512;
        let at = chance(state, (size - len) / 512) * 512;
        let verb = match chance(state, 6) {
            0 => format!("discard {at} {len}"),
            1 => format!("write -z -u {at} {len}"),
            _ => format!("write -P {} {at} {len}", 1 + (round * 30 + i) % 254),
        };
        c.args(["-c", &verb]);
    }
    let said = build::output(c.arg(uri))?;
    if said.contains("failed") {
        bail!("qemu-io: {said}");
    }
    Ok(())
}

/// A damaged stream is refused, and neither a volume nor a snapshot nor a byte comes of it.
fn leaves_nothing(c: &Cluster, good: &Path, into: &str, state: &mut u64) -> Result<()> {
    let whole = std::fs::read(good)?;
    let bad = c.dir.join("bad");
    let before = (volumes(c)?, if into == "new" { 0 } else { snapshots(c, into)? });
    for _ in 0..PLACES {
        let at = usize::try_from(chance(state, whole.len() as u64))?;
        std::fs::write(&bad, &whole[..at])?;
        refused(c, &["snapshot", "import", text(&bad)?, into], "E1941")?;
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << chance(state, 8);
        std::fs::write(&bad, &flipped)?;
        refused(c, &["snapshot", "import", text(&bad)?, into], "E1941")?;
    }
    let after = (volumes(c)?, if into == "new" { 0 } else { snapshots(c, into)? });
    if before != after {
        bail!("refused streams left something: {before:?}, then {after:?}");
    }
    Ok(())
}

/// snap-6: a volume changes through 20 snapshots; a full stream and 19 increments make each of them again, in another
/// cluster.
pub fn twenty() -> Result<String> {
    if let Some(get) = tools::install_clients() {
        bail!("clients are missing: {get}");
    }
    let bins = build::daemons(Profile::Release)?;
    let (here, there) = (Cluster::up(&bins, 3, "1GiB", &[])?, Cluster::up(&bins, 3, "1GiB", &[])?);
    here.ctl(&["volume", "create", "web", "--size", "64MiB"])?;
    here.wait("web", "healthy", 60)?;
    let (mut state, mut bytes, start) = (11, 0, Instant::now());
    for round in 0..ROUNDS {
        work(&here.uri(1, "web"), round, &mut state)?;
        let name = format!("web@s{round}");
        here.ctl(&["snapshot", "create", &name])?;
        let file = here.dir.join(format!("stream{round}"));
        let mut args = vec!["snapshot", "export", &name, "--output", text(&file)?];
        let from = format!("web@s{}", round.saturating_sub(1));
        if round > 0 {
            args.extend(["--from", &from]);
        }
        here.ctl(&args)?;
        bytes += std::fs::metadata(&file)?.len();
        if round == 0 {
            leaves_nothing(&there, &file, "new", &mut state)?;
        } else if round == ROUNDS / 2 {
            leaves_nothing(&there, &file, "copy", &mut state)?;
            equal(&here.uri(1, &from), &there.uri(1, "copy"))?;
        }
        there.ctl(&["snapshot", "import", text(&file)?, "copy"])?;
    }
    // The volume goes on changing: the snapshots do not.
    work(&here.uri(1, "web"), ROUNDS, &mut state)?;
    for round in 0..ROUNDS {
        equal(&here.uri(2, &format!("web@s{round}")), &there.uri(3, &format!("copy@s{round}")))
            .with_context(|| format!("snapshot {round}"))?;
    }
    let found = Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "raw"])
        .args([here.uri(2, "web@s3"), there.uri(3, "copy@s4")])
        .output()?;
    if found.status.success() {
        bail!("two different snapshots compare equal: nothing was shown");
    }
    Ok(format!(
        "{ROUNDS} snapshots equal in both clusters, {bytes} bytes of streams, {:.0} s; {} damaged streams refused",
        start.elapsed().as_secs_f64(),
        PLACES * 4
    ))
}
