//! `blockctl load`, run and its report read.

use crate::cluster::Cluster;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::process::Child;

/// What `load --format json` says at its end.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub acknowledged: u64,
    pub bytes_written: u64,
    pub errors: u64,
    pub longest_gap_ms: f64,
    pub reconnects: u64,
}

impl Report {
    fn parse(text: &str) -> Result<Report> {
        let v: Value = serde_json::from_str(text).with_context(|| format!("load printed no JSON: {text}"))?;
        let n = |k: &str| v[k].as_u64().with_context(|| format!("load's report has no {k}: {text}"));
        #[expect(clippy::cast_precision_loss, reason = "milliseconds for a person")]
        let longest_gap_ms = n("longest_gap_us")? as f64 / 1e3;
        Ok(Report {
            acknowledged: n("writes")?,
            bytes_written: n("bytes")?,
            errors: n("errors")?,
            longest_gap_ms,
            reconnects: n("reconnects")?,
        })
    }
}

pub fn start(c: &Cluster, uri: &str, log: &str, secs: u32, more: &[&str]) -> Result<Child> {
    let secs = secs.to_string();
    let mut args = vec!["--format", "json", "load", uri, "--log", log, "--secs", &secs];
    args.extend(more);
    c.spawn(&args)
}

pub fn finish(child: Child) -> Result<Report> {
    let out = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        bail!("load failed:\n{text}{}", String::from_utf8_lossy(&out.stderr));
    }
    Report::parse(&text)
}

/// The report of a load whose server was taken away.
pub fn broken_off(child: Child) -> Result<Report> {
    let out = child.wait_with_output()?;
    if out.status.success() {
        bail!("the load ended before its server was taken away");
    }
    let report = Report::parse(&String::from_utf8_lossy(&out.stdout))?;
    if report.acknowledged == 0 {
        bail!("the load wrote nothing: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(report)
}

/// Fails if anything acknowledged is missing or torn.
pub fn check(c: &Cluster, uri: &str, log: &str) -> Result<()> {
    c.ctl(&["load", "check", uri, log]).map(|_| ())
}
