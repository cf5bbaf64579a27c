//! Nodes and drives.

use super::args::{DriveVerb, NodeVerb};
use super::context::{Context, done, hex, request_id};
use super::error::{CliError, exit};
use super::output::{Output, Table, ago, bytes};
use crate::dev::{Folder, status as dev_status};
use api::v1;
use api::v1::blockd_admin_client::BlockdAdminClient;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;
use tonic::transport::{Channel, Endpoint};

pub async fn run(context: &Context, verb: NodeVerb) -> Result<Output, CliError> {
    match verb {
        NodeVerb::List => {
            let control = context.control()?;
            let nodes =
                control.call(|mut c| async move { c.list_nodes(v1::ListNodesRequest {}).await }).await?.nodes;
            let mut table =
                Table::new(&["id", "name", "state", "drives", "replicas", "sessions", "used", "capacity"]);
            for n in &nodes {
                table.row(vec![
                    format!("n{}", n.id),
                    n.name.clone(),
                    node_state(n).into(),
                    n.drives.len().to_string(),
                    n.replicas.to_string(),
                    n.sessions.to_string(),
                    bytes(n.used),
                    bytes(n.capacity),
                ]);
            }
            let list: Vec<Value> = nodes.iter().map(node_json).collect();
            Ok(Output::new("node.list/1", json!({"nodes": list}), table.text()))
        }
        NodeVerb::Show { node } => show(context, node).await,
        NodeVerb::Add { name, zone } => add(context, name, zone).await,
        NodeVerb::Drain { node, undo } => {
            let what = if undo { format!("take {node} back into use") } else { format!("empty {node}") };
            if let Some(o) = context.dry(&what) {
                return Ok(o);
            }
            let r = v1::DrainNodeRequest { node: node.clone(), drain: !undo, request: request_id()? };
            context
                .control()?
                .call(|mut c| {
                    let r = r.clone();
                    async move { c.drain_node(r).await }
                })
                .await?;
            let text =
                if undo { "takes replicas again" } else { "is being emptied: blockctl node show follows it" };
            Ok(done("node.drain/1", format!("{node} {text}")))
        }
        NodeVerb::Remove { node } => {
            if let Some(o) = context.confirm(&format!("remove node {node}"), &node)? {
                return Ok(o);
            }
            let r = v1::RemoveNodeRequest { node: node.clone(), request: request_id()? };
            context
                .control()?
                .call(|mut c| {
                    let r = r.clone();
                    async move { c.remove_node(r).await }
                })
                .await?;
            Ok(done("node.remove/1", format!("{node} is removed")))
        }
    }
}

fn node_state(n: &v1::Node) -> &'static str {
    match (n.up, n.draining) {
        (false, _) => "down",
        (true, true) => "draining",
        (true, false) => "up",
    }
}

fn node_json(n: &v1::Node) -> Value {
    json!({
        "id": n.id, "name": n.name, "zone": n.zone, "data_address": n.data_address, "state": node_state(n),
        "up": n.up, "down_since_ms": n.down_since_ms, "draining": n.draining,
        "drives": n.drives.iter().map(|d| drive_name(*d)).collect::<Vec<_>>(),
        "replicas": n.replicas, "sessions": n.sessions, "capacity_bytes": n.capacity, "used_bytes": n.used,
    })
}

/// Ids of drives are random and long: hexadecimal.
fn drive_name(id: u64) -> String {
    format!("{id:016x}")
}

async fn show(context: &Context, node: String) -> Result<Output, CliError> {
    let r = v1::ShowNodeRequest { node };
    let n = context
        .control()?
        .call(|mut c| {
            let r = r.clone();
            async move { c.show_node(r).await }
        })
        .await?;
    let mut text = format!("node      {} (n{})\nstate     {}", n.name, n.id, node_state(&n));
    if let Some(ms) = n.down_since_ms {
        let _ = write!(text, ", since {}", ago(ms));
    }
    let zone = if n.zone.is_empty() { "-" } else { &n.zone };
    let _ = writeln!(text, "\nzone      {zone}\naddress   {}", n.data_address);
    let _ = writeln!(text, "used      {} of {}", bytes(n.used), bytes(n.capacity));
    let _ = writeln!(text, "replicas  {}\nsessions  {}", n.replicas, n.sessions);
    for d in &n.drives {
        let _ = writeln!(text, "drive     {}", drive_name(*d));
    }
    Ok(Output::new("node.show/1", node_json(&n), text))
}

async fn add(context: &Context, name: String, zone: String) -> Result<Output, CliError> {
    if let Some(o) = context.dry(&format!("add node {name}")) {
        return Ok(o);
    }
    // Its address comes when its blockd registers.
    let r = v1::AddNodeRequest { name, zone, data_address: "127.0.0.1:0".into(), request: request_id()? };
    let control = context.control()?;
    let n = control
        .call(|mut c| {
            let r = r.clone();
            async move { c.add_node(r).await }
        })
        .await?;
    let status = control.call(|mut c| async move { c.status(v1::StatusRequest {}).await }).await?;
    let cluster = hex(&status.cluster);
    let metads: Vec<String> =
        status.metad.map(|m| m.members.into_iter().map(|m| m.address).collect()).unwrap_or_default();
    let text = format!(
        "node {} is n{}; its blockd.toml:\nnode_id = {}\nname = \"{}\"\ncluster = \"{cluster}\"\nmetad = {metads:?}\n",
        n.name, n.id, n.id, n.name
    );
    Ok(Output::new(
        "node.add/1",
        json!({"id": n.id, "name": n.name, "cluster": cluster, "metad": metads}),
        text,
    ))
}

pub async fn run_drive(context: &Context, verb: DriveVerb) -> Result<Output, CliError> {
    match verb {
        DriveVerb::List => {
            let drives = list_drives(context).await?;
            let mut table =
                Table::new(&["id", "node", "path", "state", "replicas", "volumes", "used", "capacity"]);
            for d in &drives {
                table.row(vec![
                    drive_name(d.id),
                    d.node_name.clone(),
                    d.path.clone(),
                    d.state.clone(),
                    d.replicas.to_string(),
                    d.volumes.to_string(),
                    bytes(d.used),
                    bytes(d.capacity),
                ]);
            }
            let list: Vec<Value> = drives.iter().map(drive_json).collect();
            Ok(Output::new("drive.list/1", json!({"drives": list}), table.text()))
        }
        DriveVerb::Show { drive } => Ok(shown_drive(&find_drive(context, &drive).await?)),
        DriveVerb::Add { path, node, socket, no_format, force } => {
            add_drive(context, path, node, socket, !no_format, force.unwrap_or_default()).await
        }
        DriveVerb::Drain { drive, undo } => {
            let d = find_drive(context, &drive).await?;
            let name = drive_name(d.id);
            let what = if undo { format!("take {name} back into use") } else { format!("empty {name}") };
            if let Some(o) = context.dry(&what) {
                return Ok(o);
            }
            let r = v1::DrainDriveRequest { drive: d.id, drain: !undo, request: request_id()? };
            context
                .control()?
                .call(|mut c| {
                    let r = r.clone();
                    async move { c.drain_drive(r).await }
                })
                .await?;
            let text = if undo { "takes replicas again" } else { "is being emptied" };
            Ok(done("drive.drain/1", format!("{name} {text}")))
        }
        DriveVerb::Remove { drive } => {
            let d = find_drive(context, &drive).await?;
            let name = drive_name(d.id);
            if let Some(o) = context.confirm(&format!("remove drive {name}"), &drive)? {
                return Ok(o);
            }
            let r = v1::RemoveDriveRequest { drive: d.id, request: request_id()? };
            context
                .control()?
                .call(|mut c| {
                    let r = r.clone();
                    async move { c.remove_drive(r).await }
                })
                .await?;
            Ok(done("drive.remove/1", format!("{name} is removed")))
        }
    }
}

fn shown_drive(d: &v1::Drive) -> Output {
    let mut text = format!(
        "drive     {}\nnode      {}\npath      {}\nstate     {}",
        drive_name(d.id),
        d.node_name,
        d.path,
        d.state
    );
    if let Some(ms) = d.down_since_ms {
        let _ = write!(text, ", since {}", ago(ms));
    }
    let _ = writeln!(text, "\nused      {} of {}", bytes(d.used), bytes(d.capacity));
    let _ = writeln!(text, "replicas  {} of {} volumes", d.replicas, d.volumes);
    Output::new("drive.show/1", drive_json(d), text)
}

async fn list_drives(context: &Context) -> Result<Vec<v1::Drive>, CliError> {
    let control = context.control()?;
    Ok(control.call(|mut c| async move { c.list_drives(v1::ListDrivesRequest {}).await }).await?.drives)
}

/// By the first digits of its id, or by its path if only one node has it.
async fn find_drive(context: &Context, word: &str) -> Result<v1::Drive, CliError> {
    let all = list_drives(context).await?;
    let fits = |d: &&v1::Drive| drive_name(d.id).starts_with(&word.to_lowercase()) || d.path == word;
    let mut found = all.iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(d), None) => Ok(d.clone()),
        (Some(_), Some(_)) => Err(CliError::usage(
            format!("several drives are called \"{word}\""),
            "give more digits of its id",
        )),
        (None, _) => {
            let message = format!("no drive \"{word}\"");
            Err(CliError::new(
                1007,
                exit::NOT_FOUND,
                message,
                "it never existed, or was removed",
                "blockctl drive list",
            ))
        }
    }
}

fn drive_json(d: &v1::Drive) -> Value {
    json!({
        "id": drive_name(d.id), "node": d.node_name, "node_id": d.node, "path": d.path, "state": d.state,
        "down_since_ms": d.down_since_ms, "replicas": d.replicas, "volumes": d.volumes,
        "capacity_bytes": d.capacity, "used_bytes": d.used,
    })
}

/// A channel to the admin services of a node: in a folder by its name, else at the socket.
pub async fn admin(context: &Context, node: Option<&str>, socket: PathBuf) -> Result<Channel, CliError> {
    let socket = match (&context.global.dir, node) {
        (Some(dir), Some(node)) => {
            let folder = Folder::new(dir)?;
            let known = dev_status(&folder)?;
            let number = known.iter().find(|s| s.member.name() == node).map(|s| s.member.number);
            let number = number.ok_or_else(|| {
                CliError::new(
                    1007,
                    exit::NOT_FOUND,
                    format!("no node \"{node}\" in this folder"),
                    "",
                    "blockctl dev status",
                )
            })?;
            folder.admin_socket(number)
        }
        _ => socket,
    };
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
    let endpoint = endpoint.map_err(|e| CliError::admin(&socket, &e))?;
    endpoint.connect().await.map_err(|e| CliError::admin(&socket, &e))
}

/// blockd's own words.
pub fn refused(status: &tonic::Status) -> CliError {
    match api::error::detail(status) {
        Some(d) => CliError::from(crate::control::ControlError::Refused(Box::new(d))),
        None => CliError::new(
            1911,
            exit::FAILURE,
            status.message(),
            format!("blockd answered {:?}", status.code()),
            "",
        ),
    }
}

async fn add_drive(
    context: &Context,
    path: PathBuf,
    node: Option<String>,
    socket: PathBuf,
    format: bool,
    force: String,
) -> Result<Output, CliError> {
    let path = std::path::absolute(&path).map_err(|e| CliError::io(path.display(), &e))?;
    let shown = path.display().to_string();
    if format {
        if let Some(o) = context.confirm(&format!("format {shown}"), &shown)? {
            return Ok(o);
        }
    } else if let Some(o) = context.dry(&format!("take {shown} into use")) {
        return Ok(o);
    }
    let mut admin = BlockdAdminClient::new(admin(context, node.as_deref(), socket).await?);
    let r = v1::AddDriveRequest { path: shown.clone(), format, force };
    let added = admin.add_drive(r).await.map_err(|s| refused(&s))?.into_inner();
    let name = drive_name(added.drive);
    let text = format!("drive {name} at {shown}: {}\n", bytes(added.capacity));
    Ok(Output::new("drive.add/1", json!({"id": name, "path": shown, "capacity_bytes": added.capacity}), text))
}
