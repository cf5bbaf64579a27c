//! Snapshots.

use super::args::{Moment, SnapshotName, SnapshotVerb, WithSpace};
use super::context::{Context, done, hex, request_id};
use super::error::CliError;
use super::output::{Output, Table, ago, bytes};
use super::space::{self, Takes};
use crate::control::Control;
use api::v1;
use proto::date::show_date;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// An order may wait for the seal before it, and for sessions; and a leader may change meanwhile.
const CREATE: Duration = Duration::from_secs(30);

pub async fn run(context: &Context, verb: SnapshotVerb) -> Result<Output, CliError> {
    match verb {
        SnapshotVerb::Create { names, group, label, protect_until } => {
            create(context, names, group, label, protect_until).await
        }
        SnapshotVerb::List { volume, space } => list(context, volume, space).await,
        SnapshotVerb::Show { name, space } => {
            let r = v1::ShowSnapshotRequest { name: Some(wire(&name)) };
            let control = context.control()?;
            let found = control.call(|mut c| {
                let r = r.clone();
                async move { c.show_snapshot(r).await }
            });
            let found = found.await?;
            let takes = takes(&control, std::slice::from_ref(&found), space).await?;
            Ok(takes.judged(shown(&found, takes.of(&found))))
        }
        SnapshotVerb::Rename { name, to } => rename(context, &name, to).await,
        SnapshotVerb::Delete { names } => delete(context, names).await,
        SnapshotVerb::Protect { name, until, force } => protect(context, &name, until, force).await,
        SnapshotVerb::Label { name, labels } => label(context, &name, &labels).await,
        SnapshotVerb::Diff { .. } | SnapshotVerb::Export { .. } | SnapshotVerb::Import { .. } => {
            unreachable!("clients of NBD: done before")
        }
    }
}

fn wire(name: &SnapshotName) -> v1::SnapshotName {
    v1::SnapshotName { volume: name.volume.clone(), snapshot: name.snapshot.clone() }
}

fn full(s: &v1::Snapshot) -> String {
    s.name.as_ref().map_or_else(String::new, |n| format!("{}@{}", n.volume, n.snapshot))
}

fn joined(names: &[SnapshotName]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn wire_labels(labels: Vec<(String, String)>) -> Vec<v1::Label> {
    labels.into_iter().map(|(key, value)| v1::Label { key, value }).collect()
}

/// Unix ms; 0: never.
fn at(moment: Moment) -> u64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    match moment {
        Moment::None => 0,
        Moment::At(ms) => ms,
        // In whole seconds, as it is shown.
        Moment::In(ms) => (u64::try_from(now()).unwrap_or(0) + ms).div_ceil(1000) * 1000,
    }
}

async fn create(
    context: &Context,
    names: Vec<SnapshotName>,
    group: bool,
    label: Vec<(String, String)>,
    protect_until: Option<Moment>,
) -> Result<Output, CliError> {
    let together = if group { " as a group" } else { "" };
    if let Some(o) = context.dry(&format!("make snapshot {}{together}", joined(&names))) {
        return Ok(o);
    }
    let control = context.control()?.with_patience(CREATE);
    let begun = Instant::now();
    let orders: Vec<Vec<SnapshotName>> =
        if group { vec![names] } else { names.into_iter().map(|n| vec![n]).collect() };
    let mut made: Vec<v1::Snapshot> = Vec::new();
    for order in orders {
        let r = v1::CreateSnapshotsRequest {
            names: order.iter().map(wire).collect(),
            labels: wire_labels(label.clone()),
            protect_until_ms: protect_until.map_or(0, at),
            request: request_id()?,
            ids: Vec::new(),
        };
        match ask_create(&control, r).await {
            Ok(snapshots) => made.extend(snapshots),
            Err(e) if made.is_empty() => return Err(e),
            Err(mut e) => {
                let before: Vec<String> = made.iter().map(full).collect();
                let _ = write!(e.cause, "; made before: {}", before.join(", "));
                return Err(e);
            }
        }
    }
    let secs = begun.elapsed().as_secs_f64();
    let all: Vec<String> = made.iter().map(full).collect();
    let text = format!("snapshot {} is made{together} ({:.0} ms)\n", all.join(", "), secs * 1000.0);
    let json = json!({"snapshots": made.iter().map(snapshot_json).collect::<Vec<_>>(), "seconds": secs});
    Ok(Output::new("snapshot.create/1", json, text))
}

async fn ask_create(control: &Control, r: v1::CreateSnapshotsRequest) -> Result<Vec<v1::Snapshot>, CliError> {
    let made = control.call(|mut c| {
        let r = r.clone();
        async move { c.create_snapshots(r).await }
    });
    Ok(made.await?.snapshots)
}

/// What these take, if that was asked for.
async fn takes(control: &Control, all: &[v1::Snapshot], asked: WithSpace) -> Result<Takes, CliError> {
    let mut volumes: Vec<&str> = all.iter().filter_map(|s| Some(s.name.as_ref()?.volume.as_str())).collect();
    volumes.dedup();
    let mut takes = Takes::default();
    for volume in volumes.into_iter().filter(|_| asked.space) {
        takes.add(&space::measure(control, volume, Duration::from_secs(asked.timeout)).await?);
    }
    Ok(takes)
}

async fn list(context: &Context, volume: Option<String>, space: WithSpace) -> Result<Output, CliError> {
    let r = v1::ListSnapshotsRequest { volume: volume.unwrap_or_default() };
    let control = context.control()?;
    let found = control.call(|mut c| {
        let r = r.clone();
        async move { c.list_snapshots(r).await }
    });
    let snapshots = found.await?.snapshots;
    let takes = takes(&control, &snapshots, space).await?;
    let mut heads = vec!["snapshot", "size"];
    if space.space {
        heads.extend(["exclusive", "shared", "frees"]);
    }
    heads.extend(["made", "group", "protected", "labels"]);
    let mut table = Table::new(&heads);
    for s in &snapshots {
        let made = if s.sealed { ago(s.created_ms) } else { "being made".into() };
        let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let group = if s.group == 0 { String::new() } else { s.group.to_string() };
        let mut cells = vec![full(s), bytes(s.size)];
        if space.space {
            cells.extend(space::cells(takes.of(s)));
        }
        cells.extend([made, or_none(group), or_none(protection(s)), or_none(label_text(s))]);
        table.row(cells);
    }
    let all: Vec<Value> = snapshots.iter().map(|s| with_space(snapshot_json(s), takes.of(s))).collect();
    Ok(takes.judged(Output::new("snapshot.list/1", json!({"snapshots": all}), table.text())))
}

fn protection(s: &v1::Snapshot) -> String {
    if s.protect_until_ms == 0 { String::new() } else { show_date(s.protect_until_ms) }
}

fn label_text(s: &v1::Snapshot) -> String {
    s.labels.iter().map(|l| format!("{}={}", l.key, l.value)).collect::<Vec<_>>().join(" ")
}

fn snapshot_json(s: &v1::Snapshot) -> Value {
    let name = s.name.clone().unwrap_or_default();
    let labels: Map<String, Value> =
        s.labels.iter().map(|l| (l.key.clone(), l.value.clone().into())).collect();
    json!({
        "name": full(s), "volume": name.volume, "snapshot": name.snapshot, "id": hex(&s.id),
        "branch": s.branch, "generation": s.generation, "size_bytes": s.size, "sealed": s.sealed,
        "created_ms": s.created_ms, "group": (s.group != 0).then_some(s.group), "labels": labels,
        "protect_until_ms": (s.protect_until_ms != 0).then_some(s.protect_until_ms), "clones": s.clones, "policy": (!s.policy.is_empty()).then_some(&s.policy),
        "unconfirmed_drives": s.unconfirmed,
    })
}

fn with_space(mut snapshot: Value, takes: Option<&v1::SnapshotSpace>) -> Value {
    if let Some(takes) = takes {
        snapshot["space"] = space::figures(takes);
    }
    snapshot
}

fn shown(s: &v1::Snapshot, takes: Option<&v1::SnapshotSpace>) -> Output {
    let mut text = format!("snapshot  {}\n", full(s));
    let mut line = |head: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(text, "{head:<10}{value}");
        }
    };
    line("state", if s.sealed { "sealed".into() } else { "being made".into() });
    line("made", format!("{} ({})", show_date(s.created_ms), ago(s.created_ms)));
    line("size", bytes(s.size));
    line("space", takes.map_or_else(String::new, space::sentence));
    line("protected", protection(s));
    line("labels", label_text(s));
    line("group", if s.group == 0 { String::new() } else { s.group.to_string() });
    line("clones", s.clones.join(" "));
    line("policy", s.policy.clone());
    line("id", hex(&s.id));
    let told =
        if s.unconfirmed == 0 { String::new() } else { format!("{} have not confirmed", s.unconfirmed) };
    line("drives", told);
    Output::new("snapshot.show/1", with_space(snapshot_json(s), takes), text)
}

async fn rename(context: &Context, name: &SnapshotName, to: String) -> Result<Output, CliError> {
    // With its volume it is meant as well.
    let to = to.strip_prefix(&format!("{}@", name.volume)).map_or(to.clone(), str::to_owned);
    if let Some(o) = context.dry(&format!("rename snapshot {name} to {}@{to}", name.volume)) {
        return Ok(o);
    }
    let r = v1::RenameSnapshotRequest { name: Some(wire(name)), to: to.clone(), request: request_id()? };
    let control = context.control()?;
    let asked = control.call(|mut c| {
        let r = r.clone();
        async move { c.rename_snapshot(r).await }
    });
    asked.await?;
    Ok(done("snapshot.rename/1", format!("snapshot {name} is now {}@{to}", name.volume)))
}

async fn delete(context: &Context, names: Vec<SnapshotName>) -> Result<Output, CliError> {
    let all = joined(&names);
    if let Some(o) = context.confirm(&format!("delete snapshot {all}"), &all)? {
        return Ok(o);
    }
    let control = context.control()?;
    for (gone, name) in names.iter().enumerate() {
        let r = v1::DeleteSnapshotRequest { name: Some(wire(name)), request: request_id()? };
        let asked = control.call(|mut c| {
            let r = r.clone();
            async move { c.delete_snapshot(r).await }
        });
        if let Err(e) = asked.await {
            let mut e = CliError::from(e);
            if gone > 0 {
                let _ = write!(e.cause, "; deleted before: {}", joined(&names[..gone]));
            }
            return Err(e);
        }
    }
    Ok(done("snapshot.delete/1", format!("snapshot {all} is deleted")))
}

async fn protect(
    context: &Context,
    name: &SnapshotName,
    until: Moment,
    force: Option<String>,
) -> Result<Output, CliError> {
    let until_ms = at(until);
    let what = match until_ms {
        0 => format!("snapshot {name} is not protected"),
        ms => format!("snapshot {name} is protected until {}", show_date(ms)),
    };
    if let Some(o) = context.dry(&format!("say that {what}")) {
        return Ok(o);
    }
    let r = v1::ProtectSnapshotRequest {
        name: Some(wire(name)),
        until_ms,
        force: force.unwrap_or_default(),
        request: request_id()?,
    };
    let control = context.control()?;
    let asked = control.call(|mut c| {
        let r = r.clone();
        async move { c.protect_snapshot(r).await }
    });
    asked.await?;
    Ok(done("snapshot.protect/1", what))
}

async fn label(context: &Context, name: &SnapshotName, labels: &[String]) -> Result<Output, CliError> {
    let (mut set, mut remove) = (Vec::new(), Vec::new());
    for label in labels {
        match (label.split_once('='), label.strip_suffix('-')) {
            (Some((key, value)), _) => set.push((key.to_owned(), value.to_owned())),
            (None, Some(key)) => remove.push(key.to_owned()),
            (None, None) => {
                return Err(CliError::usage(
                    format!("\"{label}\" is no label"),
                    "write KEY=VALUE, or KEY- to remove",
                ));
            }
        }
    }
    if let Some(o) = context.dry(&format!("label snapshot {name}: {}", labels.join(" "))) {
        return Ok(o);
    }
    let r = v1::LabelSnapshotRequest {
        name: Some(wire(name)),
        set: wire_labels(set),
        remove,
        request: request_id()?,
    };
    let control = context.control()?;
    let asked = control.call(|mut c| {
        let r = r.clone();
        async move { c.label_snapshot(r).await }
    });
    asked.await?;
    Ok(done("snapshot.label/1", format!("snapshot {name} is labelled")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_shown_with_what_matters() {
        let s = v1::Snapshot {
            name: Some(v1::SnapshotName { volume: "v".into(), snapshot: "a".into() }),
            id: vec![1; 16],
            size: 1 << 30,
            sealed: true,
            created_ms: 951_782_400_000,
            protect_until_ms: 1_795_316_645_000,
            labels: vec![v1::Label { key: "app".into(), value: "db".into() }],
            ..Default::default()
        };
        let output = shown(&s, None);
        for line in [
            "snapshot  v@a\n",
            "made      2000-02-29 (",
            "protected 2026-11-22T03:04:05Z\n",
            "labels    app=db\n",
        ] {
            assert!(output.text.contains(line), "{}", output.text);
        }
        assert!(!output.text.contains("clones") && !output.text.contains("drives"));
        assert_eq!(output.json["group"], Value::Null);
        assert_eq!(output.json["labels"]["app"], "db");
    }
}
