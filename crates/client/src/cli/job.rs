//! Jobs: work that takes its time.

use super::args::JobVerb;
use super::context::{Context, done, request_id};
use super::error::{CliError, exit};
use super::output::{Output, Table, ago, bytes};
use crate::control::Control;
use api::v1;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

const LOOK: Duration = Duration::from_millis(200);
/// A line of progress this often where nobody watches.
const LINE_EVERY: Duration = Duration::from_secs(10);

pub async fn run(context: &Context, verb: JobVerb) -> Result<Output, CliError> {
    match verb {
        JobVerb::List => list(context).await,
        JobVerb::Show { job } => {
            let j = show(&context.control()?, number(&job)?).await?;
            Ok(Output::new("job.show/1", value(&j), text(&j)))
        }
        JobVerb::Wait { job, timeout } => {
            wait(&context.control()?, number(&job)?, Duration::from_secs(timeout)).await
        }
        JobVerb::Cancel { job } => {
            let id = number(&job)?;
            if let Some(o) = context.dry(&format!("cancel job j{id}")) {
                return Ok(o);
            }
            let r = v1::CancelJobRequest { id, request: request_id()? };
            context
                .control()?
                .call(|mut c| {
                    let r = r.clone();
                    async move { c.cancel_job(r).await }
                })
                .await?;
            Ok(done("job.cancel/1", format!("job j{id} is cancelled")))
        }
    }
}

/// `volume flatten`.
pub async fn flatten(context: &Context, name: String, waits: Option<u64>) -> Result<Output, CliError> {
    if let Some(o) = context.dry(&format!("write out all that volume {name} reads from its parent")) {
        return Ok(o);
    }
    let control = context.control()?;
    let r = v1::FlattenVolumeRequest { name: name.clone(), request: request_id()? };
    let job = control
        .call(|mut c| {
            let r = r.clone();
            async move { c.flatten_volume(r).await }
        })
        .await?;
    match waits {
        Some(secs) => wait(&control, job.id, Duration::from_secs(secs)).await,
        None => {
            let text = format!("volume {name} is being flattened: blockctl job wait j{}\n", job.id);
            Ok(Output::new("volume.flatten/1", json!({"name": name, "job": format!("j{}", job.id)}), text))
        }
    }
}

/// `volume resize` to less, which metad has begun.
pub async fn shrink(control: &Control, name: &str, job: u64, waits: Option<u64>) -> Result<Output, CliError> {
    match waits {
        Some(secs) => wait(control, job, Duration::from_secs(secs)).await,
        None => {
            let text = format!("volume {name} is being made smaller: blockctl job wait j{job}\n");
            Ok(Output::new("volume.resize/1", json!({"name": name, "job": format!("j{job}")}), text))
        }
    }
}

/// `j3`, or `3`.
fn number(job: &str) -> Result<u64, CliError> {
    job.strip_prefix('j').unwrap_or(job).parse().map_err(|_| {
        let what = format!("\"{job}\" is no job");
        CliError::new(1923, exit::USAGE, what, "jobs are named like j3", "blockctl job list")
    })
}

async fn show(control: &Control, id: u64) -> Result<v1::Job, CliError> {
    Ok(control.call(|mut c| async move { c.show_job(v1::ShowJobRequest { id }).await }).await?)
}

fn progress(j: &v1::Job) -> String {
    if j.total == 0 { "-".into() } else { format!("{} of {}", bytes(j.done), bytes(j.total)) }
}

fn value(j: &v1::Job) -> Value {
    json!({
        "job": format!("j{}", j.id), "kind": j.kind, "volume": j.volume, "state": j.state, "started_ms": j.started_ms,
        "ended_ms": j.ended_ms, "done_bytes": j.done, "total_bytes": j.total, "trouble": j.trouble,
    })
}

fn text(j: &v1::Job) -> String {
    let trouble = if j.trouble.is_empty() { String::new() } else { format!(": {}", j.trouble) };
    format!("job j{}: {} of volume {} is {} ({}){trouble}\n", j.id, j.kind, j.volume, j.state, progress(j))
}

async fn list(context: &Context) -> Result<Output, CliError> {
    let jobs =
        context.control()?.call(|mut c| async move { c.list_jobs(v1::ListJobsRequest {}).await }).await?.jobs;
    let mut table = Table::new(&["job", "kind", "volume", "state", "done", "started", "waits for"]);
    for j in &jobs {
        table.row(vec![
            format!("j{}", j.id),
            j.kind.clone(),
            j.volume.clone(),
            j.state.clone(),
            progress(j),
            ago(j.started_ms),
            if j.trouble.is_empty() { "-".into() } else { j.trouble.clone() },
        ]);
    }
    Ok(Output::new("job.list/1", json!({"jobs": jobs.iter().map(value).collect::<Vec<_>>()}), table.text()))
}

async fn wait(control: &Control, id: u64, timeout: Duration) -> Result<Output, CliError> {
    let begun = Instant::now();
    let watched = std::io::stderr().is_terminal();
    let mut said = Instant::now();
    loop {
        let j = show(control, id).await?;
        if j.state != "running" {
            let mut o = Output::new("job.wait/1", value(&j), text(&j));
            o.exit = if j.state == "done" { 0 } else { exit::FAILURE };
            return Ok(o);
        }
        if watched {
            eprint!("\r\x1b[K{}", text(&j).trim_end());
            let _ = std::io::stderr().flush();
        } else if said.elapsed() >= LINE_EVERY {
            said = Instant::now();
            eprint!("{}", text(&j));
        }
        if begun.elapsed() >= timeout {
            let what = format!("job j{id} is still running after {} s", timeout.as_secs());
            let cause = if j.trouble.is_empty() { progress(&j) } else { j.trouble };
            return Err(CliError::new(1924, exit::STATE, what, cause, format!("blockctl job wait j{id}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}
