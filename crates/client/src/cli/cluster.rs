//! The cluster, its metads, its settings, its events.

use super::args::{ClusterVerb, ConfigVerb};
use super::context::{Context, done, hex, request_id};
use super::error::{CliError, exit};
use super::output::{Output, Table, ago, bytes};
use super::trash;
use api::v1;
use serde_json::json;
use std::fmt::Write as _;

pub async fn run(context: &Context, verb: ClusterVerb) -> Result<Output, CliError> {
    match verb {
        ClusterVerb::Init { name, metad } => init(context, name, metad).await,
        ClusterVerb::Join { token, id, address } => {
            if let Some(o) = context.dry(&format!("take metad {id} at {address} into the cluster")) {
                return Ok(o);
            }
            let add = v1::AddMetadRequest { id, address: address.clone(), token };
            let control = context.control()?.with_patience(std::time::Duration::from_secs(90));
            control
                .call(|mut c| {
                    let add = add.clone();
                    async move { c.add_metad(add).await }
                })
                .await?;
            Ok(done("cluster.join/1", format!("metad {id} at {address} is a member")))
        }
        ClusterVerb::Leave { id } => {
            let what = format!("take metad {id} out of the cluster");
            if let Some(o) = context.confirm(&what, &id.to_string())? {
                return Ok(o);
            }
            let request = v1::RemoveMetadRequest { id };
            context.control()?.call(|mut c| async move { c.remove_metad(request).await }).await?;
            Ok(done("cluster.leave/1", format!("metad {id} is no member any more")))
        }
        ClusterVerb::Orphans => trash::orphans(context).await,
        ClusterVerb::Token => token(context).await,
        ClusterVerb::Status => status(context).await,
        ClusterVerb::Config(verb) => config(context, verb).await,
    }
}

async fn init(context: &Context, name: String, metad: Vec<(u64, String)>) -> Result<Output, CliError> {
    if let Some(o) = context.dry(&format!("make the cluster \"{name}\"")) {
        return Ok(o);
    }
    let members = metad
        .into_iter()
        .map(|(id, address)| v1::MetadMember { id, address, voter: true, matched: None })
        .collect();
    let init = v1::InitRequest { name: name.clone(), members, request: request_id()? };
    let made = context
        .control()?
        .call(|mut c| {
            let init = init.clone();
            async move { c.init(init).await }
        })
        .await?;
    let cluster = hex(&made.cluster);
    let text = format!("cluster \"{name}\" is made\ncluster id  {cluster}\njoin token  {}\n", made.token);
    Ok(Output::new("cluster.init/1", json!({"name": name, "cluster": cluster, "token": made.token}), text))
}

async fn token(context: &Context) -> Result<Output, CliError> {
    let token =
        context.control()?.call(|mut c| async move { c.token(v1::TokenRequest {}).await }).await?.token;
    Ok(Output::new("cluster.token/1", json!({"token": token}), format!("{token}\n")))
}

fn health(h: i32) -> &'static str {
    match v1::Health::try_from(h) {
        Ok(v1::Health::Ok) => "HEALTH_OK",
        Ok(v1::Health::Warn) => "HEALTH_WARN",
        Ok(v1::Health::Err) => "HEALTH_ERR",
        _ => "HEALTH_UNKNOWN",
    }
}

async fn status(context: &Context) -> Result<Output, CliError> {
    let s = context.control()?.call(|mut c| async move { c.status(v1::StatusRequest {}).await }).await?;
    let codes: Vec<&str> = s.checks.iter().map(|c| c.code.as_str()).collect();
    let mut text = health(s.health).to_owned();
    if !codes.is_empty() {
        let _ = write!(text, " {}", codes.join(" "));
    }
    let yes = if s.survives_one_node { "yes" } else { "no" };
    let _ = writeln!(text, "\nsurvives the loss of one node: {yes}");
    for c in &s.checks {
        let since = c.since_ms.map_or_else(String::new, |ms| format!(", since {}", ago(ms)));
        let action = if c.action.is_empty() { String::new() } else { format!("; {}", c.action) };
        let _ = writeln!(text, "  {} {}{since}{action}", c.code, c.text);
    }
    let metad = s.metad.clone().unwrap_or_default();
    let _ = writeln!(text, "cluster   {} ({})", s.name, hex(&s.cluster));
    let _ = writeln!(
        text,
        "metads    {}, metad {} leads (term {})",
        metad.members.len(),
        metad.leader,
        metad.term
    );
    let _ = writeln!(text, "nodes     {} of {} up", s.nodes_up, s.nodes);
    let _ = writeln!(
        text,
        "drives    {} of {} up, {} of {} used",
        s.drives_up,
        s.drives,
        bytes(s.used),
        bytes(s.capacity)
    );
    let _ = writeln!(
        text,
        "volumes   {}, {} unwell, {} provisioned",
        s.volumes,
        s.volumes_unwell,
        bytes(s.provisioned)
    );
    if s.resync_left > 0 {
        let _ =
            writeln!(text, "resync    {} left, {} per second", bytes(s.resync_left), bytes(s.resync_rate));
    }
    let checks: Vec<_> = s
        .checks
        .iter()
        .map(|c| {
            json!({"health": health(c.health), "code": c.code, "text": c.text, "since_ms": c.since_ms, "action": c.action})
        })
        .collect();
    let members: Vec<_> = metad
        .members
        .iter()
        .map(|m| json!({"id": m.id, "address": m.address, "voter": m.voter, "matched": m.matched}))
        .collect();
    let json = json!({
        "health": health(s.health), "checks": checks, "survives_one_node": s.survives_one_node,
        "name": s.name, "cluster": hex(&s.cluster),
        "metad": {"leader": metad.leader, "term": metad.term, "members": members, "applied": metad.applied},
        "nodes": s.nodes, "nodes_up": s.nodes_up, "drives": s.drives, "drives_up": s.drives_up,
        "volumes": s.volumes, "volumes_unwell": s.volumes_unwell,
        "capacity_bytes": s.capacity, "used_bytes": s.used, "provisioned_bytes": s.provisioned,
        "resync": {"left_bytes": s.resync_left, "rate": s.resync_rate},
    });
    Ok(Output::new("cluster.status/1", json, text))
}

async fn config(context: &Context, verb: ConfigVerb) -> Result<Output, CliError> {
    let control = context.control()?;
    let (settings, only) = match verb {
        ConfigVerb::Get { key } => {
            (control.call(|mut c| async move { c.get_config(v1::GetConfigRequest {}).await }).await?, key)
        }
        ConfigVerb::Set { setting: (key, value) } => {
            if let Some(o) = context.dry(&format!("set {key} to {value}")) {
                return Ok(o);
            }
            let set = v1::SetConfigRequest { key: key.clone(), value, request: request_id()? };
            (
                control
                    .call(|mut c| {
                        let set = set.clone();
                        async move { c.set_config(set).await }
                    })
                    .await?,
                Some(key),
            )
        }
    };
    let mut table = Table::new(&["key", "value"]);
    let mut list = serde_json::Map::new();
    for s in settings.settings.iter().filter(|s| only.as_ref().is_none_or(|k| *k == s.key)) {
        table.row(vec![s.key.clone(), s.value.clone()]);
        list.insert(s.key.clone(), s.value.clone().into());
    }
    if let Some(key) = only.filter(|_| list.is_empty()) {
        let known: Vec<&str> = settings.settings.iter().map(|s| s.key.as_str()).collect();
        let cause = format!("known are {}", known.join(", "));
        return Err(CliError::new(
            1004,
            exit::NOT_FOUND,
            format!("no setting \"{key}\""),
            cause,
            "blockctl cluster config get",
        ));
    }
    Ok(Output::new("cluster.config/1", json!({"settings": list}), table.text()))
}

pub async fn events(context: &Context, after: u64, limit: u32) -> Result<Output, CliError> {
    let request = v1::ListEventsRequest { after, limit };
    let events = context.control()?.call(|mut c| async move { c.list_events(request).await }).await?.events;
    let mut table = Table::new(&["number", "when", "severity", "event"]);
    let mut list = Vec::new();
    for e in events {
        table.row(vec![e.number.to_string(), ago(e.time_ms), e.severity.clone(), e.text.clone()]);
        list.push(json!({
            "number": e.number, "time_ms": e.time_ms, "severity": e.severity, "kind": e.kind, "text": e.text,
        }));
    }
    Ok(Output::new("events/1", json!({"events": list}), table.text()))
}
