//! One fio job, run and parsed.

use crate::build;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::process::Command;

/// What to drive.
pub enum Target {
    /// A raw file with O_DIRECT through io_uring.
    Raw(String),
    /// An NBD URI.
    Nbd(String),
}

#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub name: &'static str,
    pub rw: &'static str,
    pub bs: &'static str,
    pub depth: u32,
    pub secs: u32,
    /// MiB of the target that the job touches.
    pub size_mib: u32,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    pub iops: f64,
    pub bytes_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub ios: f64,
    pub secs: f64,
    /// CPU of fio itself.
    pub cpu_us: u64,
}

pub fn run(job: &Job, target: &Target) -> Result<Figures> {
    let mut c = Command::new("fio");
    c.args(["--output-format=json", "--time_based", "--group_reporting", "--randrepeat=0", "--norandommap"]);
    c.arg(format!("--name={}", job.name)).arg(format!("--rw={}", job.rw)).arg(format!("--bs={}", job.bs));
    c.arg(format!("--iodepth={}", job.depth)).arg(format!("--runtime={}", job.secs));
    c.arg(format!("--size={}m", job.size_mib));
    match target {
        Target::Raw(path) => c.args(["--ioengine=io_uring", "--direct=1"]).arg(format!("--filename={path}")),
        Target::Nbd(uri) => c.arg("--ioengine=nbd").arg(format!("--uri={uri}")),
    };
    parse(&build::output(&mut c)?).with_context(|| build::shown(&c))
}

/// fio may print notes before its JSON.
fn parse(text: &str) -> Result<Figures> {
    let json: Value = serde_json::from_str(&text[text.find('{').context("no JSON")?..])?;
    let job = &json["jobs"][0];
    if job["error"].as_i64() != Some(0) {
        bail!("fio reports error {}", job["error"]);
    }
    let mut f = Figures { secs: job["job_runtime"].as_f64().unwrap_or(0.0) / 1e3, ..Figures::default() };
    let cpu = job["usr_cpu"].as_f64().unwrap_or(0.0) + job["sys_cpu"].as_f64().unwrap_or(0.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "microseconds of a run of minutes"
    )]
    {
        f.cpu_us = (cpu / 100.0 * f.secs * 1e6) as u64;
    }
    let mut weight = 0.0;
    for side in ["read", "write"] {
        let s = &job[side];
        let ios = s["total_ios"].as_f64().unwrap_or(0.0);
        if ios == 0.0 {
            continue;
        }
        f.iops += s["iops"].as_f64().unwrap_or(0.0);
        f.bytes_per_s += s["bw_bytes"].as_f64().unwrap_or(0.0);
        f.ios += ios;
        let p = &s["clat_ns"]["percentile"];
        // with reads and writes mixed: the mean of both, weighed by number
        f.p50_us += p["50.000000"].as_f64().unwrap_or(0.0) / 1e3 * ios;
        f.p99_us += p["99.000000"].as_f64().unwrap_or(0.0) / 1e3 * ios;
        weight += ios;
    }
    if weight > 0.0 {
        f.p50_us /= weight;
        f.p99_us /= weight;
    }
    Ok(f)
}

#[cfg(test)]
mod tests {
    #[test]
    fn figures_of_a_job_are_read() {
        let text = r#"note: {"#.replace('{', "")
            + r#"{"jobs":[{"error":0,"job_runtime":2000,"usr_cpu":10.0,"sys_cpu":15.0,
            "read":{"total_ios":0},"write":{"total_ios":100,"iops":50.0,"bw_bytes":204800,
            "clat_ns":{"percentile":{"50.000000":1000,"99.000000":9000}}}}]}"#;
        let f = super::parse(&text).unwrap();
        assert_eq!((f.iops, f.p50_us, f.p99_us, f.cpu_us), (50.0, 1.0, 9.0, 500_000));
    }

    #[test]
    fn an_error_of_fio_is_an_error() {
        assert!(super::parse(r#"{"jobs":[{"error":5}]}"#).is_err());
    }
}
