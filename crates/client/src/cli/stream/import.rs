//! `snapshot import`: a stream becomes a volume with its snapshot, or an increment is added to one.
//!
//! The whole stream is checked before anything is made. A full one that then fails leaves no volume. An increment is
//! written to the head: it fits only where nothing but a part of this very stream was written since, so that the same
//! command completes it; the snapshot is made last.

use super::input::Checked;
use super::progress::Progress;
use super::{BLOCK, Cluster, Ranges, changed, interrupt, nbd_failed, windows};
use crate::cli::args::NbdSocket;
use crate::cli::context::{Context, hex};
use crate::cli::error::{CliError, exit};
use crate::cli::output::{Output, bytes};
use crate::nbd_client::{Client, Error};
use nbd::client::Command;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use stream::{Begin, Item, Point};

/// Writes at once.
const DEPTH: usize = 16;
/// A write that takes longer failed.
const WRITE_WITHIN: Duration = Duration::from_secs(120);
/// A piece of zeroes.
const ZEROES: u64 = 1 << 30;
/// A session of an import that broke off ends by itself.
const DETACHED_WITHIN: Duration = Duration::from_secs(10);

pub fn run(context: &Context, nbd: &NbdSocket, input: &Path, volume: &str) -> Result<Output, CliError> {
    interrupt::watch()?;
    let mut checked = Checked::open(input)?;
    let begin = checked.begin.clone();
    let what = match &begin.from {
        None => format!("make volume {volume} of {} ({})", begin.volume, bytes(begin.size)),
        Some(from) => format!("add what changed from {} to {} to volume {volume}", from.name, begin.to.name),
    };
    if let Some(o) = context.dry(&what) {
        return Ok(o);
    }
    let cluster = Cluster::new(context, nbd)?;
    match begin.from.clone() {
        None => make(&cluster, &mut checked, volume)?,
        Some(from) => add(&cluster, &mut checked, volume, &from)?,
    }
    let name = format!("{volume}@{}", begin.to.name);
    let json =
        json!({"volume": volume, "snapshot": name, "id": begin.to.id, "bytes": checked.ranges.bytes()});
    Ok(Output::new("snapshot.import/1", json, format!("{name} is imported\n")))
}

// ---------------------------------------------------------------------- a full stream

fn make(cluster: &Cluster, checked: &mut Checked, volume: &str) -> Result<(), CliError> {
    let begin = checked.begin.clone();
    interrupt::half_made(true);
    // Refused: nothing was made.
    cluster.make_volume(volume, begin.size, 1 << begin.chunk_shift)?;
    let result = fill(cluster, checked, volume, &begin);
    let Err(mut e) = result else { return Ok(()) };
    if e.code != 1931 {
        e = broke_off(&e, "");
    }
    match cluster.delete_volume(volume, "its import broke off") {
        Ok(()) => e.cause = format!("{}; volume {volume} is deleted again", e.cause),
        Err(why) => {
            e.cause = format!("{}; volume {volume} is left, not whole: {}", e.cause, why.message);
            e.fix = format!("blockctl volume delete {volume} --with-snapshots");
        }
    }
    e.cause = e.cause.trim_start_matches("; ").to_owned();
    Err(e)
}

fn fill(cluster: &Cluster, checked: &mut Checked, volume: &str, begin: &Begin) -> Result<(), CliError> {
    cluster.wait_ready(volume)?;
    let mut client = cluster.connect(volume)?;
    apply(&mut client, checked, volume, true)?;
    cluster.make_snapshot(volume, &begin.to)?;
    client.disconnect();
    Ok(())
}

fn broke_off(e: &CliError, left: &str) -> CliError {
    let cause = [e.message.as_str(), e.cause.as_str(), left].join("; ");
    let cause = cause.replace("; ; ", "; ").trim_end_matches("; ").to_owned();
    CliError::new(1945, e.exit, "the import broke off", cause, e.fix.clone())
}

// ---------------------------------------------------------------------- an increment

fn add(cluster: &Cluster, checked: &mut Checked, volume: &str, from: &Point) -> Result<(), CliError> {
    let begin = checked.begin.clone();
    let base = fits(cluster, volume, &begin, from)?;
    let mut client = cluster.connect(volume)?;
    untouched(cluster, &mut client, checked, volume, &base)?;
    interrupt::half_made(true);
    let result =
        apply(&mut client, checked, volume, false).and_then(|()| cluster.make_snapshot(volume, &begin.to));
    client.disconnect();
    result.map_err(|e| {
        let left = format!(
            "the head of {volume} may hold a part of the stream; its snapshots, {volume}@{base} too, are as they were"
        );
        let mut e = broke_off(&e, &left);
        e.fix = "the same command again completes it; let nobody write to the volume until then".into();
        e
    })
}

fn unfit(volume: &str, cause: impl Into<String>, fix: impl Into<String>) -> CliError {
    let message = format!("the increment does not fit volume {volume}");
    CliError::new(1944, exit::PRECONDITION, message, cause, fix)
}

/// The name, here, of the snapshot that the stream was taken from: the volume's newest one.
fn fits(cluster: &Cluster, volume: &str, begin: &Begin, from: &Point) -> Result<String, CliError> {
    let snapshots = cluster.snapshots(volume)?;
    let v = cluster.volume(volume)?;
    let own = snapshots.iter().filter(|s| s.branch == v.branch);
    let newest = own.max_by_key(|s| s.generation);
    let id = newest.map(|s| hex(&s.id));
    let name = |s: &api::v1::Snapshot| s.name.clone().unwrap_or_default().snapshot;
    if id.as_deref() == Some(&begin.to.id) {
        return Err(unfit(
            volume,
            "its newest snapshot is the one of the stream: it was imported before",
            "",
        ));
    }
    let Some(newest) = newest.filter(|_| id.as_deref() == Some(&from.id)) else {
        let have =
            newest.map_or("it has none".to_owned(), |s| format!("it is {}, id {}", name(s), hex(&s.id)));
        let cause = format!("its newest snapshot must be {}, id {}; {have}", from.name, from.id);
        return Err(unfit(volume, cause, "import the streams in their order, the full one first"));
    };
    if v.size != begin.size {
        let cause = format!("it has {}, and the stream is of {}", bytes(v.size), bytes(begin.size));
        return Err(unfit(volume, cause, format!("blockctl volume resize {volume} --size {}", begin.size)));
    }
    if snapshots.iter().any(|s| name(s) == begin.to.name) {
        let cause = format!("it has another snapshot of the name {}", begin.to.name);
        return Err(unfit(volume, cause, "blockctl snapshot rename VOL@NAME OTHER"));
    }
    let until = Instant::now() + DETACHED_WITHIN;
    while let Some(s) = cluster.volume(volume)?.session.filter(|s| s.kind() == api::v1::SessionKind::Guest) {
        if Instant::now() > until {
            return Err(unfit(volume, format!("it is in use on {}", s.node_name), "detach it"));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(name(newest))
}

/// Nothing was written since the base but, perhaps, a part of this very stream.
fn untouched(
    cluster: &Cluster,
    head: &mut Client,
    checked: &Checked,
    volume: &str,
    base: &str,
) -> Result<(), CliError> {
    let mut since = cluster.connect_since(volume, base)?;
    let mut strays = Ranges::default();
    for (offset, len) in windows(checked.begin.size) {
        strays.extend(&changed(&mut since, volume, offset, len)?.without(&checked.ranges));
    }
    since.disconnect();
    if strays.bytes() == 0 {
        return Ok(());
    }
    // More may be told than has changed.
    let export = format!("{volume}@{base}");
    let mut old = cluster.connect(&export)?;
    for (mut offset, len) in strays.iter() {
        let end = offset + len;
        while offset < end {
            let n = (end - offset).min(8 << 20);
            let len = usize::try_from(n).expect("8 MiB");
            let now = head.read(offset, len).map_err(|e| nbd_failed(volume, &e))?;
            let was = old.read(offset, len).map_err(|e| nbd_failed(&export, &e))?;
            if now != was {
                let block = usize::try_from(BLOCK).expect("small");
                let differs = now.chunks(block).zip(was.chunks(block)).position(|(a, b)| a != b).unwrap_or(0);
                let at = offset + differs as u64 * BLOCK;
                let cause =
                    format!("it was written to since {export}, at {at} first, and not by this stream");
                let fix = "import the streams into a new volume, and write to clones only";
                return Err(unfit(volume, cause, fix));
            }
            offset += n;
        }
    }
    old.disconnect();
    Ok(())
}

// ---------------------------------------------------------------------- writing

/// Writes the stream; when it returns all is flushed. `fresh`: the volume is all zeroes.
fn apply(client: &mut Client, checked: &mut Checked, volume: &str, fresh: bool) -> Result<(), CliError> {
    let size = checked.begin.size;
    if client.size() < size {
        return Err(unfit(volume, "it is smaller than the stream", ""));
    }
    let mut progress = Progress::new("import");
    let mut moved = 0;
    checked.items(|item| {
        match item {
            Item::Data { offset, bytes } => {
                client.submit(Command::Write { offset, data: &bytes, fua: false });
                moved += bytes.len() as u64;
                progress.say(offset, size, moved);
            }
            Item::Zero { offset, length } if !fresh => {
                for at in (offset..offset + length).step_by(usize::try_from(ZEROES).expect("64-bit")) {
                    let len = ZEROES.min(offset + length - at);
                    let zeroes =
                        Command::WriteZeroes { offset: at, len, fua: false, no_hole: false, fast: false };
                    client.submit(zeroes);
                    settle(client, volume, DEPTH)?;
                }
            }
            _ => {}
        }
        settle(client, volume, DEPTH)
    })?;
    settle(client, volume, 0)?;
    client.flush().map_err(|e| nbd_failed(volume, &e))
}

/// Sends what was submitted, and waits until no more than these are under way.
fn settle(client: &mut Client, volume: &str, most: usize) -> Result<(), CliError> {
    let failed = |e: Error| nbd_failed(volume, &e);
    client.send().map_err(failed)?;
    let until = Instant::now() + WRITE_WITHIN;
    while client.in_flight() > most {
        let (_, result) = client.next(until).map_err(failed)?.ok_or(Error::Timeout).map_err(failed)?;
        result.map_err(|e| failed(Error::Request(e)))?;
    }
    // What has come without waiting.
    while let Some((_, result)) = client.ready().map_err(failed)? {
        result.map_err(|e| failed(Error::Request(e)))?;
    }
    Ok(())
}
