//! Policies: snapshots by schedule, and how many are kept.

use super::args::{Kept, PolicyVerb};
use super::context::{Context, done, request_id};
use super::error::CliError;
use super::output::{Output, Table, ago};
use api::v1;
use proto::date::show_date;
use serde_json::{Value, json};
use std::fmt::Write as _;

pub async fn run(context: &Context, verb: PolicyVerb) -> Result<Output, CliError> {
    match verb {
        PolicyVerb::Create { name, schedule, jitter, keep } => {
            create(context, name, schedule, jitter, keep).await
        }
        PolicyVerb::List => {
            let policies = ask(context, String::new()).await?;
            Ok(listed(&policies))
        }
        PolicyVerb::Show { name } => {
            let policies = ask(context, name).await?;
            Ok(policies.first().map_or_else(|| listed(&[]), shown))
        }
        PolicyVerb::Delete { name } => {
            if let Some(o) = context.confirm(&format!("delete policy {name}"), &name)? {
                return Ok(o);
            }
            let r = v1::DeletePolicyRequest { name: name.clone(), request: request_id()? };
            let control = context.control()?;
            let asked = control.call(|mut c| {
                let r = r.clone();
                async move { c.delete_policy(r).await }
            });
            asked.await?;
            Ok(done("policy.delete/1", format!("policy {name} is deleted; the snapshots that it made stay")))
        }
        PolicyVerb::Attach { name, volumes } => attach(context, name, volumes, false).await,
        PolicyVerb::Detach { name, volumes } => attach(context, name, volumes, true).await,
    }
}

async fn create(
    context: &Context,
    name: String,
    schedules: Vec<String>,
    jitter_ms: u64,
    keep: Kept,
) -> Result<Output, CliError> {
    if let Some(o) = context.dry(&format!("make policy {name}")) {
        return Ok(o);
    }
    let retention = v1::Retention {
        last: keep.keep_last,
        hourly: keep.keep_hourly,
        daily: keep.keep_daily,
        weekly: keep.keep_weekly,
        monthly: keep.keep_monthly,
        yearly: keep.keep_yearly,
    };
    let r = v1::CreatePolicyRequest {
        name: name.clone(),
        schedules,
        jitter_ms,
        retention: Some(retention),
        request: request_id()?,
    };
    let control = context.control()?;
    let asked = control.call(|mut c| {
        let r = r.clone();
        async move { c.create_policy(r).await }
    });
    asked.await?;
    Ok(done(
        "policy.create/1",
        format!("policy {name} is made; attach it: blockctl policy attach {name} VOL"),
    ))
}

async fn attach(
    context: &Context,
    name: String,
    volumes: Vec<String>,
    away: bool,
) -> Result<Output, CliError> {
    let all = volumes.join(", ");
    let what = if away {
        format!("detach policy {name} from {all}")
    } else {
        format!("attach policy {name} to {all}")
    };
    if let Some(o) = context.dry(&what) {
        return Ok(o);
    }
    let control = context.control()?;
    for (before, volume) in volumes.iter().enumerate() {
        let r = v1::AttachPolicyRequest {
            name: name.clone(),
            volume: volume.clone(),
            detach: away,
            request: request_id()?,
        };
        let asked = control.call(|mut c| {
            let r = r.clone();
            async move { c.attach_policy(r).await }
        });
        if let Err(e) = asked.await {
            let mut e = CliError::from(e);
            if before > 0 {
                let _ = write!(e.cause, "; done before: {}", volumes[..before].join(", "));
            }
            return Err(e);
        }
    }
    Ok(if away {
        done("policy.detach/1", format!("policy {name} makes no more snapshots of {all}"))
    } else {
        done("policy.attach/1", format!("policy {name} makes snapshots of {all}"))
    })
}

/// All, or one.
async fn ask(context: &Context, name: String) -> Result<Vec<v1::Policy>, CliError> {
    let r = v1::ListPoliciesRequest { name };
    let control = context.control()?;
    let found = control.call(|mut c| {
        let r = r.clone();
        async move { c.list_policies(r).await }
    });
    Ok(found.await?.policies)
}

fn kept(r: &v1::Retention) -> String {
    let words = [
        ("last", r.last),
        ("hourly", r.hourly),
        ("daily", r.daily),
        ("weekly", r.weekly),
        ("monthly", r.monthly),
        ("yearly", r.yearly),
    ];
    let said = words.iter().filter(|(_, n)| *n > 0).map(|(word, n)| format!("{word} {n}"));
    said.collect::<Vec<_>>().join(", ")
}

fn policy_json(p: &v1::Policy) -> Value {
    let r = p.retention.unwrap_or_default();
    let volume = |v: &v1::PolicyVolume| json!({"volume": v.name, "ran_ms": v.ran_ms, "next_ms": v.next_ms, "late": v.late});
    json!({
        "name": p.name, "schedules": p.schedules, "jitter_ms": p.jitter_ms,
        "keep": {
            "last": r.last, "hourly": r.hourly, "daily": r.daily, "weekly": r.weekly, "monthly": r.monthly,
            "yearly": r.yearly,
        },
        "keeps": p.keeps, "created_ms": p.created_ms,
        "volumes": p.volumes.iter().map(volume).collect::<Vec<_>>(),
    })
}

fn listed(policies: &[v1::Policy]) -> Output {
    let mut table = Table::new(&["policy", "schedule", "keeps", "volumes"]);
    for p in policies {
        let r = p.retention.unwrap_or_default();
        table.row(vec![p.name.clone(), p.schedules.join("; "), kept(&r), p.volumes.len().to_string()]);
    }
    let all: Vec<Value> = policies.iter().map(policy_json).collect();
    Output::new("policy.list/1", json!({"policies": all}), table.text())
}

fn shown(p: &v1::Policy) -> Output {
    let mut text = format!("policy    {}\nschedule  {} (UTC)\n", p.name, p.schedules.join("; "));
    if p.jitter_ms > 0 {
        let _ =
            writeln!(text, "jitter    up to {} s later, the same each time for a volume", p.jitter_ms / 1000);
    }
    let r = p.retention.unwrap_or_default();
    let _ = writeln!(text, "keeps     {}: {} snapshots of a volume in the end", kept(&r), p.keeps);
    for v in &p.volumes {
        let ran = v.ran_ms.map_or_else(|| "has not run yet".into(), |t| format!("ran {}", ago(t)));
        let when = if v.late { "was due" } else { "next" };
        let _ = writeln!(text, "volume    {}: {ran}, {when} {}", v.name, show_date(v.next_ms));
    }
    Output::new("policy.show/1", policy_json(p), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_shown_with_when_it_runs_and_what_it_keeps() {
        let volume =
            v1::PolicyVolume { name: "v".into(), ran_ms: None, next_ms: 1_795_316_645_000, late: true };
        let p = v1::Policy {
            name: "nightly".into(),
            schedules: vec!["daily".into(), "0 12 * * mon-fri".into()],
            jitter_ms: 600_000,
            retention: Some(v1::Retention { last: 2, daily: 7, ..Default::default() }),
            keeps: 8,
            created_ms: 1,
            volumes: vec![volume],
        };
        let output = shown(&p);
        for line in [
            "schedule  daily; 0 12 * * mon-fri (UTC)\n",
            "jitter    up to 600 s later",
            "keeps     last 2, daily 7: 8 snapshots of a volume in the end\n",
            "volume    v: has not run yet, was due 2026-11-22T03:04:05Z\n",
        ] {
            assert!(output.text.contains(line), "{}", output.text);
        }
        assert_eq!(listed(&[p]).json["policies"][0]["keep"]["daily"], 7);
    }
}
