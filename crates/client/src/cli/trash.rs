//! Deleting volumes, and the trash.

use super::args::VolumeVerb;
use super::context::{Context, done, request_id};
use super::error::CliError;
use super::output::{Output, Table, ago, bytes};
use api::v1;
use proto::date::show_date;
use serde_json::{Value, json};

pub async fn delete(context: &Context, verb: VolumeVerb) -> Result<Output, CliError> {
    let VolumeVerb::Delete { name, force, with_snapshots, now, to_trash } = verb else {
        unreachable!("called for delete")
    };
    let and = if with_snapshots { " and all its snapshots" } else { "" };
    let how = if now { " and all its data, now" } else { " and all its data" };
    if let Some(o) = context.confirm(&format!("delete volume {name}{and}{how}"), &name)? {
        return Ok(o);
    }
    let r = v1::DeleteVolumeRequest {
        name: name.clone(),
        force: force.unwrap_or_default(),
        request: request_id()?,
        with_snapshots,
        now,
        despite_clones: to_trash,
    };
    let control = context.control()?;
    let asked = control.call(|mut c| {
        let r = r.clone();
        async move { c.delete_volume(r).await }
    });
    let until = asked.await?.rests_until_ms;
    let text = match until {
        None => format!("volume {name} is deleted"),
        Some(until) => format!(
            "volume {name} is in the trash until {}; to have it back: blockctl volume restore {name}",
            show_date(until)
        ),
    };
    let json = json!({"name": name, "done": text, "rests_until_ms": until});
    Ok(Output::new("volume.delete/1", json, text + "\n"))
}

pub async fn list(context: &Context) -> Result<Output, CliError> {
    let control = context.control()?;
    let found = control.call(|mut c| async move { c.list_trash(v1::ListTrashRequest {}).await });
    Ok(listed(&found.await?.volumes))
}

fn listed(volumes: &[v1::TrashedVolume]) -> Output {
    let mut table = Table::new(&["id", "name", "size", "snapshots", "deleted", "erased"]);
    let mut all: Vec<Value> = Vec::new();
    for v in volumes {
        let erased = match &v.clones[..] {
            [] => show_date(v.until_ms),
            clones => {
                format!("{}, not before its clones are gone: {}", show_date(v.until_ms), clones.join(" "))
            }
        };
        table.row(vec![
            format!("v{}", v.id),
            v.name.clone(),
            bytes(v.size),
            v.snapshots.to_string(),
            ago(v.trashed_ms),
            erased,
        ]);
        all.push(json!({
            "id": format!("v{}", v.id), "name": v.name, "size_bytes": v.size, "snapshots": v.snapshots,
            "trashed_ms": v.trashed_ms, "until_ms": v.until_ms, "clones": v.clones,
        }));
    }
    Output::new("volume.trash/1", json!({"volumes": all}), table.text())
}

pub async fn restore(context: &Context, name: String, to: Option<String>) -> Result<Output, CliError> {
    let as_what = to.as_ref().map_or_else(String::new, |to| format!(" as {to}"));
    if let Some(o) = context.dry(&format!("restore volume {name}{as_what}")) {
        return Ok(o);
    }
    let r =
        v1::RestoreVolumeRequest { name: name.clone(), to: to.unwrap_or_default(), request: request_id()? };
    let control = context.control()?;
    let asked = control.call(|mut c| {
        let r = r.clone();
        async move { c.restore_volume(r).await }
    });
    asked.await?;
    Ok(done("volume.restore/1", format!("volume {name} is restored{as_what}")))
}

pub async fn purge(context: &Context, name: String) -> Result<Output, CliError> {
    if let Some(o) = context.confirm(&format!("erase deleted volume {name} for good"), &name)? {
        return Ok(o);
    }
    let r = v1::PurgeVolumeRequest { name: name.clone(), request: request_id()? };
    let control = context.control()?;
    let asked = control.call(|mut c| {
        let r = r.clone();
        async move { c.purge_volume(r).await }
    });
    asked.await?;
    Ok(done("volume.purge/1", format!("deleted volume {name} is erased")))
}

pub async fn orphans(context: &Context) -> Result<Output, CliError> {
    let control = context.control()?;
    let found = control.call(|mut c| async move { c.list_orphans(v1::ListOrphansRequest {}).await });
    Ok(orphaned(&found.await?.drives))
}

fn orphaned(drives: &[v1::Orphans]) -> Output {
    let mut table = Table::new(&["drive", "node", "state", "to erase", "unknown"]);
    let mut all: Vec<Value> = Vec::new();
    for d in drives {
        let since = d.down_since_ms.map_or_else(String::new, |t| format!(", since {}", ago(t)));
        table.row(vec![
            format!("{:016x}", d.drive),
            d.node_name.clone(),
            format!("{}{since}", d.state),
            d.to_erase.to_string(),
            d.unknown.to_string(),
        ]);
        all.push(json!({
            "drive": format!("{:016x}", d.drive), "node": format!("n{}", d.node), "node_name": d.node_name,
            "state": d.state, "down_since_ms": d.down_since_ms, "to_erase": d.to_erase, "unknown": d.unknown,
        }));
    }
    let text = if drives.is_empty() { "no replica is without a volume\n".to_owned() } else { table.text() };
    Output::new("cluster.orphans/1", json!({"drives": all}), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphans_are_told_with_the_state_of_their_drive() {
        assert_eq!(orphaned(&[]).text, "no replica is without a volume\n");
        let d = v1::Orphans {
            drive: 0xd1,
            node: 2,
            node_name: "n2".into(),
            state: "down".into(),
            down_since_ms: Some(951_782_400_000),
            to_erase: 7,
            unknown: 1,
        };
        let output = orphaned(&[d]);
        assert!(
            output.text.contains("00000000000000d1") && output.text.contains("down, since "),
            "{}",
            output.text
        );
        assert_eq!(output.json["drives"][0]["to_erase"], 7);
    }

    #[test]
    fn what_rests_is_listed_with_what_it_waits_for() {
        let v = v1::TrashedVolume {
            id: 12,
            name: "t".into(),
            size: 1 << 30,
            snapshots: 2,
            trashed_ms: 951_782_400_000,
            until_ms: 1_795_316_645_000,
            clones: vec!["c1".into(), "c2".into()],
        };
        let output = listed(&[v]);
        assert!(output.text.contains("v12"), "{}", output.text);
        assert!(output.text.contains("2026-11-22T03:04:05Z, not before its clones are gone: c1 c2"));
        assert_eq!(output.json["volumes"][0]["until_ms"], 1_795_316_645_000u64);
    }
}
