//! Clones, and the way back to a snapshot.

use super::args::{SnapshotName, VolumeVerb};
use super::context::{Context, done, request_id};
use super::error::CliError;
use super::output::Output;
use super::volume::{CREATE, echo, near_node, wait};
use api::v1;
use serde_json::json;
use std::time::Duration;

/// An order may wait for the seal before its own, and for a session; and a leader may change meanwhile.
const ORDER: Duration = Duration::from_secs(30);

pub async fn clone(context: &Context, verb: VolumeVerb) -> Result<Output, CliError> {
    let VolumeVerb::Clone {
        source,
        name,
        size,
        copies,
        min_in_sync,
        write_through,
        fail_when_degraded,
        near,
        no_wait,
    } = verb
    else {
        unreachable!("called for clone")
    };
    if let Some(o) = context.dry(&format!("make volume {name} a clone of {source}")) {
        return Ok(o);
    }
    size.into_iter().for_each(echo);
    let control = context.control()?.with_patience(ORDER);
    let r = v1::CloneVolumeRequest {
        source: source.volume.clone(),
        snapshot: source.snapshot.clone(),
        name: name.clone(),
        size: size.map_or(0, |s| s.bytes),
        copies: copies.unwrap_or(0),
        min_in_sync: min_in_sync.unwrap_or(0),
        write_through,
        fail_when_degraded,
        near: near_node(&control, near).await?,
        request: request_id()?,
    };
    let made = control.call(|mut c| {
        let r = r.clone();
        async move { c.clone_volume(r).await }
    });
    let id = made.await?.id;
    if !no_wait {
        wait(&control, &name, "ready", CREATE).await?;
    }
    let data = json!({"name": name, "id": id, "source": source.to_string()});
    Ok(Output::new("volume.clone/1", data, format!("volume {name} is a clone of {source}\n")))
}

pub async fn rollback(context: &Context, name: &SnapshotName, no_safety: bool) -> Result<Output, CliError> {
    let what = format!("take volume {} back to {name}", name.volume);
    if no_safety {
        let lost = format!("{what}, without a snapshot of what is there now");
        if let Some(o) = context.confirm(&lost, &name.volume)? {
            return Ok(o);
        }
    } else if let Some(o) = context.dry(&what) {
        return Ok(o);
    }
    let control = context.control()?.with_patience(ORDER);
    let r = v1::RollbackVolumeRequest {
        name: Some(v1::SnapshotName { volume: name.volume.clone(), snapshot: name.snapshot.clone() }),
        no_safety_snapshot: no_safety,
        request: request_id()?,
    };
    let order = control.call(|mut c| {
        let r = r.clone();
        async move { c.rollback_volume(r).await }
    });
    order.await?;
    wait(&control, &name.volume, "ready", CREATE).await?;
    Ok(done("volume.rollback/1", format!("volume {} is back at {name}", name.volume)))
}
