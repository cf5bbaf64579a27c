//! Volumes.

use super::args::VolumeVerb;
use super::clone;
use super::context::{Context, done, request_id};
use super::error::{CliError, exit};
use super::node::{admin, refused};
use super::output::{Output, Table, ago, bytes, seconds};
use super::size::Size;
use super::trash;
use crate::control::Control;
use api::v1;
use api::v1::blockd_admin_client::BlockdAdminClient;
use api::v1::blockd_verify_client::BlockdVerifyClient;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};
use tonic::transport::Channel;

const LOOK: Duration = Duration::from_millis(50);
/// The same while it may be done in no time: for so long.
const LOOK_SOON: Duration = Duration::from_millis(10);
const SOON: Duration = Duration::from_millis(300);
/// A line of progress this often where nobody watches.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Until a new volume's records are made.
pub const CREATE: Duration = Duration::from_secs(60);

pub async fn run(context: &Context, verb: VolumeVerb) -> Result<Output, CliError> {
    match verb {
        VolumeVerb::Create { .. } => create(context, verb).await,
        VolumeVerb::List { trash: true } => trash::list(context).await,
        VolumeVerb::List { trash: false } => list(context).await,
        VolumeVerb::Clone { .. } => clone::clone(context, verb).await,
        VolumeVerb::Rollback { name, no_safety_snapshot } => {
            clone::rollback(context, &name, no_safety_snapshot).await
        }
        VolumeVerb::Show { name, chunks } => {
            let detail = show(&context.control()?, &name, chunks).await?;
            Ok(shown(&detail))
        }
        VolumeVerb::Wait { name, state, timeout } => {
            let waited = wait(&context.control()?, &name, &state, Duration::from_secs(timeout)).await?;
            let secs = waited.as_secs_f64();
            let text = format!("volume {name} is {state} after {secs:.1} s\n");
            Ok(Output::new("volume.wait/1", json!({"name": name, "state": state, "seconds": secs}), text))
        }
        VolumeVerb::Resize { .. } => resize(context, verb).await,
        VolumeVerb::Flatten { name, wait } => super::job::flatten(context, name, wait).await,
        VolumeVerb::Delete { .. } => trash::delete(context, verb).await,
        VolumeVerb::Quota { name, snapshots, manual_only } => {
            quota(context, name, snapshots.0, manual_only).await
        }
        VolumeVerb::Restore { name, to } => trash::restore(context, name, to).await,
        VolumeVerb::Purge { name } => trash::purge(context, name).await,
        VolumeVerb::Space { name, timeout } => {
            super::space::run(context, &name, Duration::from_secs(timeout)).await
        }
        VolumeVerb::Verify { name, timeout, socket } => {
            verify(context, &name, Duration::from_secs(timeout), &socket).await
        }
    }
}

async fn resize(context: &Context, verb: VolumeVerb) -> Result<Output, CliError> {
    let VolumeVerb::Resize { name, size, reconnect, force, discard, wait: waits } = verb else {
        unreachable!("called for resize")
    };
    let what = format!("resize volume {name} to {} bytes", size.bytes);
    let asked = if discard {
        context.confirm(&format!("{what}, whatever is written beyond"), &name)?
    } else {
        context.dry(&what)
    };
    if let Some(o) = asked {
        return Ok(o);
    }
    echo(size);
    let (name, size) = (name.clone(), size.bytes);
    let r =
        v1::ResizeVolumeRequest { name: name.clone(), size, shrink: force, discard, request: request_id()? };
    let control = context.control()?;
    let order = control.call(|mut c| {
        let r = r.clone();
        async move { c.resize_volume(r).await }
    });
    match order.await?.job {
        Some(job) => super::job::shrink(&control, &name, job.id, waits).await,
        None => {
            wait(&control, &name, "ready", CREATE).await?;
            let mut what = format!("volume {name} has {}", bytes(size));
            if reconnect {
                reconnected(&control, &name).await?;
                what.push_str("; its clients connect anew, or its node's log says why not");
            }
            Ok(done("volume.resize/1", what))
        }
    }
}

/// As soon as the session knows the size its clients are to learn it.
async fn reconnected(control: &Control, name: &str) -> Result<(), CliError> {
    let begun = Instant::now();
    let r = v1::ReconnectVolumeRequest { name: name.to_owned() };
    loop {
        let asked = control.call(|mut c| {
            let r = r.clone();
            async move { c.reconnect_volume(r).await }
        });
        if asked.await?.reached {
            return Ok(());
        }
        if begun.elapsed() > CREATE {
            let what = format!("the clients of volume {name} were not told to connect anew");
            let cause = "its session does not know the new size yet";
            return Err(CliError::new(
                1212,
                exit::STATE,
                what,
                cause,
                format!("blockctl volume show {name}"),
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn quota(
    context: &Context,
    name: String,
    most: Option<u32>,
    manual_only: bool,
) -> Result<Output, CliError> {
    let counted = if manual_only { " made by hand" } else { "" };
    let what = match most {
        Some(n) => format!("volume {name} may have {n} snapshots{counted}"),
        None => format!("volume {name} has no quota of snapshots"),
    };
    if let Some(o) = context.dry(&format!("say that {what}")) {
        return Ok(o);
    }
    let r = v1::SetQuotaRequest { name, snapshots: most, manual_only, request: request_id()? };
    let control = context.control()?;
    let asked = control.call(|mut c| {
        let r = r.clone();
        async move { c.set_quota(r).await }
    });
    asked.await?;
    Ok(done("volume.quota/1", what))
}

/// A decimal size may surprise: the exact number is said.
pub fn echo(size: Size) {
    if size.decimal {
        eprintln!("that is {} bytes", size.bytes);
    }
}

/// 0: none.
pub async fn near_node(control: &Control, near: Option<String>) -> Result<u32, CliError> {
    let Some(node) = near else { return Ok(0) };
    let r = v1::ShowNodeRequest { node };
    let found = control.call(|mut c| {
        let r = r.clone();
        async move { c.show_node(r).await }
    });
    Ok(found.await?.id)
}

async fn create(context: &Context, verb: VolumeVerb) -> Result<Output, CliError> {
    let VolumeVerb::Create {
        name,
        size,
        copies,
        chunk_size,
        min_in_sync,
        write_through,
        fail_when_degraded,
        near,
        no_wait,
    } = verb
    else {
        unreachable!("called for create")
    };
    if let Some(o) = context.dry(&format!("create volume {name} of {} bytes", size.bytes)) {
        return Ok(o);
    }
    echo(size);
    let control = context.control()?;
    let near = near_node(&control, near).await?;
    let r = v1::CreateVolumeRequest {
        name: name.clone(),
        size: size.bytes,
        copies,
        chunk_bytes: chunk_size.map_or(0, |s| s.bytes),
        min_in_sync,
        write_through,
        fail_when_degraded,
        near,
        request: request_id()?,
    };
    let made = control
        .call(|mut c| {
            let r = r.clone();
            async move { c.create_volume(r).await }
        })
        .await?;
    if !no_wait {
        wait(&control, &name, "ready", CREATE).await?;
    }
    let json = json!({"name": name, "id": made.id, "size_bytes": size.bytes, "ready": !no_wait});
    Ok(Output::new("volume.create/1", json, format!("volume {name} is made: {}\n", bytes(size.bytes))))
}

async fn list(context: &Context) -> Result<Output, CliError> {
    let control = context.control()?;
    let volumes =
        control.call(|mut c| async move { c.list_volumes(v1::ListVolumesRequest {}).await }).await?.volumes;
    let mut table = Table::new(&["name", "size", "copies", "state", "attached"]);
    let mut all = Vec::new();
    for v in volumes {
        let attached = (v.attached != 0).then(|| format!("n{}", v.attached));
        table.row(vec![
            v.name.clone(),
            bytes(v.size),
            v.copies.to_string(),
            v.state.clone(),
            attached.clone().unwrap_or_else(|| "-".into()),
        ]);
        all.push(json!({
            "name": v.name, "id": v.id, "branch": v.branch, "size_bytes": v.size, "copies": v.copies,
            "state": v.state, "unwell_chunks": v.unwell_chunks, "attached": attached,
        }));
    }
    Ok(Output::new("volume.list/1", json!({"volumes": all}), table.text()))
}

pub async fn show(control: &Control, name: &str, chunks: u32) -> Result<v1::VolumeDetail, CliError> {
    let r = v1::ShowVolumeRequest { name: name.into(), first_chunk: 0, chunk_limit: chunks };
    Ok(control
        .call(|mut c| {
            let r = r.clone();
            async move { c.show_volume(r).await }
        })
        .await?)
}

fn session_state(s: &v1::Session) -> &'static str {
    match s.state() {
        v1::SessionState::Opening => "opening",
        v1::SessionState::Serving => "serving",
        v1::SessionState::Closing => "closing",
        v1::SessionState::Unspecified => "unheard",
    }
}

fn session_kind(s: &v1::Session) -> &'static str {
    if s.kind() == v1::SessionKind::Maintenance { "maintenance" } else { "guest" }
}

/// Seconds until full redundancy, if something moves.
fn time_left(r: &v1::ResyncProgress) -> Option<u64> {
    (r.left_bytes > 0 && r.rate > 0).then(|| r.left_bytes.div_ceil(r.rate))
}

fn shown(detail: &v1::VolumeDetail) -> Output {
    let v = detail.volume.clone().unwrap_or_default();
    let resync = v.resync.unwrap_or_default();
    Output::new("volume.show/1", volume_json(&v, &resync, &detail.chunks), volume_text(&v, &resync))
}

/// What it is made of, and its snapshots.
fn family(text: &mut String, v: &v1::Volume) {
    if !v.parent.is_empty() {
        let _ = writeln!(text, "clone of  {}", v.parent);
    }
    if !v.policies.is_empty() {
        let _ = writeln!(text, "policies  {}", v.policies.join(" "));
    }
    if let Some(most) = v.snapshot_quota {
        let counted = if v.quota_manual_only { " made by hand" } else { "" };
        let _ = writeln!(text, "quota     {most} snapshots{counted}");
    }
    if !v.snapshots.is_empty() {
        let _ = writeln!(text, "snapshots {}", snapshot_names(&v.snapshots));
    }
}

fn volume_text(v: &v1::Volume, resync: &v1::ResyncProgress) -> String {
    let mut text = format!("volume    {}\nstate     {}", v.name, v.state);
    if v.unwell_chunks > 0 {
        let _ = write!(
            text,
            ": {} of {} chunks, the least has {} of {} copies in-sync",
            v.unwell_chunks, v.chunks, v.least_in_sync, v.copies
        );
    }
    if let Some(ms) = v.unwell_since_ms {
        let _ = write!(text, ", since {}", ago(ms));
    }
    for f in &v.faults {
        let since = f.since_ms.map_or_else(String::new, |ms| format!(", since {}", ago(ms)));
        let _ = write!(
            text,
            "\n  {} chunks on {} drive {:016x}: {}{since}; {}",
            f.chunks, f.node_name, f.drive, f.why, f.action
        );
    }
    let _ =
        writeln!(text, "\nsize      {} in {} chunks of {}", bytes(v.size), v.chunks, bytes(v.chunk_bytes));
    let wait = if v.wait_when_degraded { "wait" } else { "fail" };
    let through = if v.write_through { ", write-through" } else { "" };
    let _ = writeln!(
        text,
        "class     {} copies, writes {wait} below {} in-sync{through}",
        v.copies, v.min_in_sync
    );
    match &v.session {
        Some(s) => {
            let up = if s.node_up { "" } else { ", whose node is down" };
            let _ = writeln!(
                text,
                "session   {} on {} (epoch {}), {}{up}, since {}",
                session_kind(s),
                s.node_name,
                s.epoch,
                session_state(s),
                ago(s.since_ms)
            );
            if !s.waiting.is_empty() {
                let _ = writeln!(text, "waits     {}", s.waiting);
            }
        }
        None => text.push_str("session   none\n"),
    }
    if resync.left_bytes > 0 || resync.moved_bytes > 0 {
        let left = time_left(resync).map_or_else(String::new, |s| format!(", {} left", seconds(s)));
        let _ = writeln!(
            text,
            "resync    {} to go, {} moved, {} per second{left}",
            bytes(resync.left_bytes),
            bytes(resync.moved_bytes),
            bytes(resync.rate)
        );
    }
    let shares: Vec<String> =
        v.shares.iter().map(|s| format!("n{}:{:016x} ({})", s.node, s.drive, s.chunks)).collect();
    let _ = writeln!(text, "replicas  {}", shares.join(" "));
    family(&mut text, v);
    text
}

/// Their number, and the newest few.
fn snapshot_names(all: &[String]) -> String {
    const SHOWN: usize = 8;
    let newest = all[all.len().saturating_sub(SHOWN)..].join(" ");
    if all.len() <= SHOWN { newest } else { format!("{}, the newest: {newest}", all.len()) }
}

fn volume_json(v: &v1::Volume, resync: &v1::ResyncProgress, chunks: &[v1::Chunk]) -> Value {
    let drive = |d: u64| format!("{d:016x}");
    let replica = |r: &v1::Replica| {
        let state = match r.state() {
            v1::ReplicaState::InSync => "in-sync",
            v1::ReplicaState::Stale => "stale",
            v1::ReplicaState::Leaving => "leaving",
            v1::ReplicaState::Unspecified => "unknown",
        };
        json!({"node": r.node_name, "node_id": r.node, "drive": drive(r.drive), "state": state, "up": r.up})
    };
    let chunk = |c: &v1::Chunk| json!({"index": c.index, "number": c.number, "replicas": c.replicas.iter().map(replica).collect::<Vec<_>>()});
    let fault = |f: &v1::Fault| {
        json!({
            "node": f.node_name, "drive": drive(f.drive), "chunks": f.chunks, "why": f.why,
            "since_ms": f.since_ms, "action": f.action,
        })
    };
    let session = v.session.as_ref().map(|s| {
        json!({
            "node": s.node_name, "node_id": s.node, "epoch": s.epoch, "kind": session_kind(s),
            "state": session_state(s), "node_up": s.node_up, "since_ms": s.since_ms, "waiting": s.waiting,
        })
    });
    let share = |s: &v1::Share| json!({"node_id": s.node, "drive": drive(s.drive), "chunks": s.chunks});
    json!({
        "name": v.name, "id": v.id, "branch": v.branch, "state": v.state, "size_bytes": v.size,
        "chunk_bytes": v.chunk_bytes, "chunk_count": v.chunks, "copies": v.copies, "min_in_sync": v.min_in_sync,
        "write_through": v.write_through, "wait_when_degraded": v.wait_when_degraded,
        "unwell_chunks": v.unwell_chunks, "least_in_sync": v.least_in_sync, "unwell_since_ms": v.unwell_since_ms,
        "created_ms": v.created_ms, "session": session,
        "faults": v.faults.iter().map(fault).collect::<Vec<_>>(),
        "resync": {
            "left_bytes": resync.left_bytes, "moved_bytes": resync.moved_bytes, "rate": resync.rate,
            "left_seconds": time_left(resync),
        },
        "shares": v.shares.iter().map(share).collect::<Vec<_>>(), "snapshots": v.snapshots, "parent": v.parent,
        "policies": v.policies, "snapshot_quota": v.snapshot_quota, "quota_manual_only": v.quota_manual_only,
        "chunks": chunks.iter().map(chunk).collect::<Vec<_>>(),
    })
}

/// Progress on stderr: in place on a terminal, a line now and then elsewhere.
struct Progress {
    last: Option<Instant>,
    terminal: bool,
    open: bool,
}

impl Progress {
    fn new() -> Progress {
        Progress { last: None, terminal: std::io::stderr().is_terminal(), open: false }
    }
    fn due(&self) -> bool {
        let every = if self.terminal { Duration::from_millis(500) } else { LINE_EVERY };
        self.last.is_none_or(|l| l.elapsed() >= every)
    }
    fn show(&mut self, text: &str) {
        // Quick ones say nothing.
        if self.last.replace(Instant::now()).is_none() {
            return;
        }
        if self.terminal {
            eprint!("\r\x1b[K{text}");
            let _ = std::io::stderr().flush();
            self.open = true;
        } else {
            eprintln!("{text}");
        }
    }
}
impl Drop for Progress {
    fn drop(&mut self) {
        if self.open {
            eprintln!();
        }
    }
}

fn progress_line(v: &v1::Volume) -> String {
    let resync = v.resync.unwrap_or_default();
    let left = time_left(&resync).map_or_else(String::new, |s| format!(", {} left", seconds(s)));
    format!(
        "volume {}: {}, {} of {} chunks unwell; {} to move, {} per second{left}",
        v.name,
        v.state,
        v.unwell_chunks,
        v.chunks,
        bytes(resync.left_bytes),
        bytes(resync.rate)
    )
}

pub async fn wait(
    control: &Control,
    name: &str,
    state: &str,
    timeout: Duration,
) -> Result<Duration, CliError> {
    let begun = Instant::now();
    let mut progress = Progress::new();
    loop {
        let r = v1::WaitVolumeRequest { name: name.into(), state: state.into() };
        if control
            .call(|mut c| {
                let r = r.clone();
                async move { c.wait_volume(r).await }
            })
            .await?
            .reached
        {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() >= timeout {
            let detail = show(control, name, 0).await?;
            let v = detail.volume.unwrap_or_default();
            let cause = v.faults.first().map_or_else(
                || progress_line(&v),
                |f| format!("{} chunks on {}: {}; {}", f.chunks, f.node_name, f.why, f.action),
            );
            let message =
                format!("volume \"{name}\" is {} after {} s, not {state}", v.state, timeout.as_secs());
            return Err(CliError::new(
                1212,
                exit::FAILURE,
                message,
                cause,
                format!("blockctl volume show {name}"),
            ));
        }
        if progress.due() && state != "deleted" {
            let detail = show(control, name, 0).await?;
            progress.show(&progress_line(&detail.volume.unwrap_or_default()));
        }
        tokio::time::sleep(if begun.elapsed() < SOON { LOOK_SOON } else { LOOK }).await;
    }
}

/// `NotReady` of metad: no session holds the volume yet; one is appointed.
const NOT_READY: u32 = 1204;
/// An order that no session has taken up is given again.
const ORDER_AGAIN: Duration = Duration::from_millis(500);
/// Until a session is there.
const APPOINT: Duration = Duration::from_secs(30);

/// A session that closes meanwhile (its guest has gone) leaves the volume to another one: that is asked anew.
async fn verify(context: &Context, name: &str, timeout: Duration, socket: &Path) -> Result<Output, CliError> {
    let begun = Instant::now();
    if context.global.dir.is_none() {
        // Before anything is read: is it here that the session is?
        let session = show(&context.control()?, name, 0).await?.volume.unwrap_or_default().session;
        if let Some(s) = session.filter(|s| s.node_up) {
            session_admin(context, name, s.node, socket).await?;
        }
    }
    loop {
        let state = verify_once(context, name, timeout, begun, socket).await?;
        if state.error.is_empty() || begun.elapsed() > timeout.min(APPOINT) {
            return Ok(verified(name, &state, begun.elapsed()));
        }
        tokio::time::sleep(LOOK * 2).await;
    }
}

/// The node that is to verify, once there is a session.
async fn order(control: &Control, name: &str, request: &[u8], begun: Instant) -> Result<u32, CliError> {
    loop {
        let r = v1::VerifyVolumeRequest { name: name.into(), request: request.to_vec() };
        let ordered = control
            .call(|mut c| {
                let r = r.clone();
                async move { c.verify_volume(r).await }
            })
            .await;
        match ordered.map_err(CliError::from) {
            Ok(verifying) => return Ok(verifying.node),
            Err(e) if e.code != NOT_READY || begun.elapsed() > APPOINT => return Err(e),
            Err(_) => tokio::time::sleep(LOOK * 2).await,
        }
    }
}

/// A session that is just being opened (or has moved) does not hear the order: it is repeated, and known by its id.
async fn verify_once(
    context: &Context,
    name: &str,
    timeout: Duration,
    begun: Instant,
    socket: &Path,
) -> Result<v1::VerificationState, CliError> {
    let control = context.control()?;
    let request = request_id()?;
    let mut progress = Progress::new();
    loop {
        let node = order(&control, name, &request, begun).await?;
        let channel = session_admin(context, name, node, socket).await?;
        let mut admin = BlockdVerifyClient::new(channel);
        let ordered = Instant::now();
        loop {
            let r = v1::VerificationRequest { request: request.clone() };
            let s = admin.verification(r).await.map_err(|s| refused(&s))?.into_inner();
            if s.finished {
                return Ok(s);
            }
            if begun.elapsed() > timeout {
                return Err(late(name, &s, timeout));
            }
            if !s.known && begun.elapsed() > APPOINT {
                let message = format!("n{node} does not verify volume \"{name}\"");
                let cause = "the order did not reach its session";
                return Err(CliError::new(1214, exit::FAILURE, message, cause, "repeat it"));
            }
            if !s.known && ordered.elapsed() > ORDER_AGAIN {
                break;
            }
            if s.known && progress.due() {
                progress.show(&format!("{} of {} read", bytes(s.checked_bytes), bytes(s.total_bytes)));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn late(name: &str, s: &v1::VerificationState, timeout: Duration) -> CliError {
    let message = format!("volume \"{name}\" is not verified after {} s", timeout.as_secs());
    let cause = format!("{} of {} are read", bytes(s.checked_bytes), bytes(s.total_bytes));
    CliError::new(1213, exit::UNKNOWN_OUTCOME, message, cause, "give it more time: --timeout")
}

/// The blockd that holds the volume's session: in a folder any of them, else the one at the socket, if it is that one.
async fn session_admin(context: &Context, name: &str, node: u32, socket: &Path) -> Result<Channel, CliError> {
    let answer = admin(context, Some(&format!("n{node}")), socket.to_owned()).await;
    if context.global.dir.is_some() {
        return answer;
    }
    let here = match answer {
        // No right to ask is no other node.
        Err(e) if e.exit == exit::PERMISSION => return Err(e),
        Err(e) => Err(e.message),
        Ok(channel) => {
            let mut blockd = BlockdAdminClient::new(channel.clone());
            match blockd.status(v1::BlockdStatusRequest {}).await {
                Ok(status) if status.get_ref().node == node => return Ok(channel),
                Ok(status) => Err(format!("{} is {}'s", socket.display(), status.get_ref().name)),
                Err(status) => Err(refused(&status).message),
            }
        }
    };
    let r = v1::ShowNodeRequest { node: format!("n{node}") };
    let there = context
        .control()?
        .call(|mut c| {
            let r = r.clone();
            async move { c.show_node(r).await }
        })
        .await?;
    here.map_err(|cause| elsewhere(name, &there, cause))
}

fn elsewhere(name: &str, node: &v1::Node, cause: String) -> CliError {
    CliError::new(
        1215,
        exit::PRECONDITION,
        format!("the session of volume \"{name}\" is on node {} ({})", node.name, node.data_address),
        cause,
        format!("on {}: blockctl volume verify {name}", node.name),
    )
}

fn verified(name: &str, s: &v1::VerificationState, took: Duration) -> Output {
    let secs = took.as_secs_f64();
    let clean = s.differing.is_empty() && s.error.is_empty();
    let text = if clean {
        format!(
            "volume {name} is clean: all in-sync replicas of {} agree ({secs:.1} s)\n",
            bytes(s.checked_bytes)
        )
    } else if let Some(first) = s.differing.first() {
        format!("volume {name} DIFFERS: {} extents, the first at byte {first}\n", s.differing.len())
    } else {
        format!("volume {name} was not verified: {} (after {})\n", s.error, bytes(s.checked_bytes))
    };
    let json = json!({
        "name": name, "clean": clean, "checked_bytes": s.checked_bytes, "total_bytes": s.total_bytes,
        "differing": s.differing, "error": s.error, "seconds": secs,
    });
    let mut output = Output::new("volume.verify/1", json, text);
    output.exit = if clean { 0 } else { exit::FAILURE };
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_well_is_said_with_cause_and_time_left() {
        let fault = v1::Fault {
            node_name: "n3".into(),
            chunks: 2,
            why: "the connection was lost".into(),
            action: "resync".into(),
            ..Default::default()
        };
        let v = v1::Volume {
            name: "v".into(),
            state: "degraded".into(),
            chunks: 4,
            unwell_chunks: 2,
            copies: 3,
            least_in_sync: 2,
            faults: vec![fault],
            resync: Some(v1::ResyncProgress { left_bytes: 100 << 20, moved_bytes: 5, rate: 10 << 20 }),
            ..Default::default()
        };
        let output = shown(&v1::VolumeDetail { volume: Some(v), chunks: Vec::new() });
        assert!(
            output.text.contains("degraded: 2 of 4 chunks, the least has 2 of 3 copies in-sync"),
            "{}",
            output.text
        );
        assert!(
            output.text.contains("2 chunks on n3 drive 0000000000000000: the connection was lost; resync")
        );
        assert!(output.text.contains("10 s left"));
        assert_eq!(output.json["resync"]["left_seconds"], 10);
        assert_eq!(output.json["state"], "degraded");
    }

    #[test]
    fn a_volume_that_differs_fails() {
        let took = Duration::from_secs(1);
        let state = v1::VerificationState { finished: true, differing: vec![65536], ..Default::default() };
        assert_eq!(verified("v", &state, took).exit, exit::FAILURE);
        let clean = v1::VerificationState { finished: true, ..Default::default() };
        assert_eq!(verified("v", &clean, took).exit, 0);
        let stopped = v1::VerificationState { finished: true, error: "fenced".into(), ..Default::default() };
        assert_eq!(verified("v", &stopped, took).exit, exit::FAILURE);
    }
}
