//! Space: what a volume and its snapshots take. The nodes count it; metad adds it up and is asked until it is finished.

use super::context::{Context, request_id};
use super::error::{CliError, exit};
use super::output::{Output, Table, bytes};
use crate::control::Control;
use api::v1;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// How often it is asked how far it is; sooner while it may be done in no time.
const LOOK: Duration = Duration::from_millis(100);
const LOOK_SOON: Duration = Duration::from_millis(10);
const SOON: Duration = Duration::from_millis(300);

pub async fn run(context: &Context, name: &str, timeout: Duration) -> Result<Output, CliError> {
    let begun = Instant::now();
    let space = measure(&context.control()?, name, timeout).await?;
    Ok(shown(&space, begun.elapsed()))
}

/// Finished. It may be that not all could be counted: that is said in it.
pub async fn measure(control: &Control, name: &str, timeout: Duration) -> Result<v1::VolumeSpace, CliError> {
    let begun = Instant::now();
    let r = v1::MeasureVolumeRequest { name: name.into(), request: request_id()? };
    loop {
        let asked = control.call(|mut c| {
            let r = r.clone();
            async move { c.measure_volume(r).await }
        });
        let space = asked.await?;
        if space.finished {
            return Ok(space);
        }
        if begun.elapsed() >= timeout {
            return Err(late(&space, timeout));
        }
        tokio::time::sleep(if begun.elapsed() < SOON { LOOK_SOON } else { LOOK }).await;
    }
}

fn late(s: &v1::VolumeSpace, timeout: Duration) -> CliError {
    let message = format!("the space of volume \"{}\" is not counted after {} s", s.name, timeout.as_secs());
    let mut cause = match s.waiting {
        true => "other volumes are counted first".to_owned(),
        false => format!("{} of {} chunks are counted", s.chunks_done, s.chunks),
    };
    if s.again > 0 {
        let _ = write!(cause, "; it began anew {} times, for snapshots were made or deleted", s.again);
    }
    CliError::new(1217, exit::FAILURE, message, cause, "give it more time: --timeout")
}

/// What is not in the figures; empty: nothing.
fn missing(s: &v1::VolumeSpace) -> String {
    let mut text = String::new();
    if s.chunks_missing > 0 {
        let _ = writeln!(
            text,
            "INCOMPLETE: {} of {} chunks are in none of these figures, for none of their in-sync replicas can be asked",
            s.chunks_missing, s.chunks
        );
    }
    if s.replicas_missing > 0 {
        let _ = writeln!(
            text,
            "INCOMPLETE: {} of {} replicas are not in the figures of all copies, for their drives or nodes cannot be asked",
            s.replicas_missing,
            s.replicas + s.replicas_missing
        );
    }
    text
}

fn shared(seen: u64, exclusive: u64) -> u64 {
    seen.saturating_sub(exclusive)
}

fn shown(s: &v1::VolumeSpace, took: Duration) -> Output {
    let mut text = format!("volume    {}\nsize      {}\n", s.name, bytes(s.size));
    let _ = writeln!(
        text,
        "now       {}: {} exclusive, {} shared with snapshots",
        bytes(s.seen),
        bytes(s.exclusive),
        bytes(shared(s.seen, s.exclusive))
    );
    if !s.parent.is_empty() {
        let _ = writeln!(text, "and       what it reads from {}, which counts there", s.parent);
    }
    let _ = writeln!(text, "taken     {} per copy, {} in all copies", bytes(s.taken), bytes(s.taken_all));
    let _ = writeln!(text, "to free   {} per copy, {} in all copies", bytes(s.unseen), bytes(s.unseen_all));
    if !s.snapshots.is_empty() {
        let mut table = Table::new(&["snapshot", "sees", "exclusive", "shared", "frees", "kept for"]);
        for v in &s.snapshots {
            let [exclusive, shared, frees] = cells(Some(v));
            let name = if v.name.is_empty() { "-".into() } else { format!("{}@{}", s.name, v.name) };
            table.row(vec![name, bytes(v.seen), exclusive, shared, frees, kept_for(v)]);
        }
        text.push_str(&table.text());
    }
    let lacks = missing(s);
    text.push_str(&lacks);
    let snapshot = |v: &v1::SnapshotSpace| {
        let mut all = figures(v);
        all["name"] = if v.name.is_empty() { Value::Null } else { format!("{}@{}", s.name, v.name).into() };
        all["branch"] = v.branch.into();
        all["generation"] = v.generation.into();
        all
    };
    let json = json!({
        "name": s.name, "complete": lacks.is_empty(), "size_bytes": s.size, "referenced_bytes": s.seen,
        "exclusive_bytes": s.exclusive, "shared_bytes": shared(s.seen, s.exclusive),
        "snapshots": s.snapshots.iter().map(snapshot).collect::<Vec<_>>(),
        "taken_bytes": s.taken, "to_free_bytes": s.unseen,
        "all_copies": {"taken_bytes": s.taken_all, "to_free_bytes": s.unseen_all},
        "chunk_count": s.chunks, "missing_chunks": s.chunks_missing,
        "replica_count": s.replicas + s.replicas_missing, "missing_replicas": s.replicas_missing,
        "parent": s.parent, "seconds": took.as_secs_f64(),
    });
    let mut output = Output::new("volume.space/1", json, text);
    output.exit = if lacks.is_empty() { 0 } else { exit::FAILURE };
    output
}

fn kept_for(v: &v1::SnapshotSpace) -> String {
    let own = v.own.then_some("the volume itself");
    let all: Vec<&str> = v.clones.iter().map(String::as_str).chain(own).collect();
    if all.is_empty() { "-".into() } else { all.join(" ") }
}

/// For programs.
pub fn figures(v: &v1::SnapshotSpace) -> Value {
    json!({
        "referenced_bytes": v.seen, "exclusive_bytes": v.exclusive, "shared_bytes": shared(v.seen, v.exclusive),
        "frees_bytes": v.frees, "clones": v.clones, "kept_for_volume": v.own,
    })
}

/// Exclusive, shared, freed by its deletion.
pub fn cells(v: Option<&v1::SnapshotSpace>) -> [String; 3] {
    match v {
        Some(v) => [v.exclusive, shared(v.seen, v.exclusive), v.frees].map(bytes),
        // Made after the count.
        None => [(); 3].map(|()| "-".to_owned()),
    }
}

pub fn sentence(v: &v1::SnapshotSpace) -> String {
    let [exclusive, shared, frees] = cells(Some(v));
    let kept = kept_for(v);
    let kept = if kept == "-" { String::new() } else { format!(", for it is kept for {kept}") };
    format!("{}: {exclusive} exclusive, {shared} shared; deleting it frees {frees}{kept}", bytes(v.seen))
}

/// What snapshots take, of some volumes.
#[derive(Default)]
pub struct Takes {
    by_key: BTreeMap<(u64, u32), v1::SnapshotSpace>,
    lacks: String,
}

impl Takes {
    pub fn add(&mut self, s: &v1::VolumeSpace) {
        self.by_key.extend(s.snapshots.iter().map(|v| ((v.branch, v.generation), v.clone())));
        // These are figures of one copy.
        let ours = v1::VolumeSpace { replicas_missing: 0, ..s.clone() };
        for line in missing(&ours).lines() {
            let _ = writeln!(self.lacks, "volume {}: {line}", s.name);
        }
    }
    pub fn of(&self, s: &v1::Snapshot) -> Option<&v1::SnapshotSpace> {
        self.by_key.get(&(s.branch, s.generation))
    }
    /// With what is missing in the figures, if anything is.
    pub fn judged(&self, mut output: Output) -> Output {
        if !self.lacks.is_empty() {
            output.text.push_str(&self.lacks);
            output.json.insert("space_complete".into(), false.into());
            output.exit = exit::FAILURE;
        }
        output
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> v1::VolumeSpace {
        let view = |name: &str, exclusive, frees, clones: &[&str], own| v1::SnapshotSpace {
            name: name.into(),
            branch: 1,
            generation: 1,
            seen: 3 << 16,
            exclusive,
            frees,
            clones: clones.iter().map(|c| (*c).to_owned()).collect(),
            own,
        };
        v1::VolumeSpace {
            name: "v".into(),
            size: 1 << 30,
            finished: true,
            chunks: 4,
            replicas: 12,
            seen: 5 << 16,
            exclusive: 2 << 16,
            snapshots: vec![
                view("a", 1 << 16, 1 << 16, &[], false),
                view("b", 1 << 16, 0, &["c"], true),
                view("", 0, 0, &["d"], false),
            ],
            taken: 7 << 16,
            taken_all: 21 << 16,
            ..Default::default()
        }
    }

    #[test]
    fn figures_are_shown_with_who_keeps_what() {
        let o = shown(&measured(), Duration::from_secs(1));
        for line in [
            "now       320 KiB: 128 KiB exclusive, 192 KiB shared with snapshots\n",
            "taken     448 KiB per copy, 1.3 MiB in all copies\n",
            "v@a       192 KiB  64 KiB     128 KiB  64 KiB  -\n",
            "v@b       192 KiB  64 KiB     128 KiB  0 B     c the volume itself\n",
            "-         192 KiB  0 B        192 KiB  0 B     d\n",
        ] {
            assert!(o.text.contains(line), "{line}{}", o.text);
        }
        assert!(!o.text.contains("INCOMPLETE") && o.exit == 0 && o.json["complete"] == true);
        assert_eq!(o.json["snapshots"][1]["kept_for_volume"], true);
        assert_eq!(o.json["snapshots"][2]["name"], Value::Null);
    }

    #[test]
    fn what_was_not_counted_is_said_and_is_a_failure() {
        let lacks = v1::VolumeSpace { chunks_missing: 1, replicas_missing: 3, ..measured() };
        let o = shown(&lacks, Duration::from_secs(1));
        assert!(o.text.contains("1 of 4 chunks are in none of these figures"), "{}", o.text);
        assert!(o.text.contains("3 of 15 replicas are not in the figures of all copies"), "{}", o.text);
        assert_eq!((o.exit, &o.json["complete"]), (exit::FAILURE, &Value::Bool(false)));
        let mut takes = Takes::default();
        takes.add(&v1::VolumeSpace { chunks_missing: 0, ..lacks.clone() });
        assert_eq!(
            takes.judged(Output::silent()).exit,
            0,
            "a copy that is down changes no snapshot's figures"
        );
        takes.add(&lacks);
        assert_eq!(takes.judged(Output::silent()).exit, exit::FAILURE);
    }

    #[test]
    fn a_count_that_does_not_end_says_why() {
        let s = v1::VolumeSpace { again: 2, chunks_done: 3, finished: false, ..measured() };
        let e = late(&s, Duration::from_secs(60));
        assert!(e.cause.contains("3 of 4 chunks") && e.cause.contains("began anew 2 times"), "{e}");
        let e = late(&v1::VolumeSpace { waiting: true, ..s }, Duration::from_secs(60));
        assert!(e.cause.contains("other volumes"), "{e}");
    }
}
