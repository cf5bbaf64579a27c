//! `nbd_bench URI PATTERN BLOCK DEPTH SECS`: one job of `client::bench`, its figures as JSON.

use client::bench::{Job, run};
use client::nbd_client::Settings;
use std::time::Duration;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = job(&args)
        .ok_or_else(|| "usage: nbd_bench URI PATTERN BLOCK DEPTH SECS".to_owned())
        .and_then(|(uri, job)| run(&uri, &job, Settings::default()).map_err(|e| e.to_string()));
    match outcome {
        Ok(figures) => println!("{}", serde_json::to_string(&figures).expect("plain numbers")),
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(1);
        }
    }
}

fn job(args: &[String]) -> Option<(client::uri::Uri, Job)> {
    let [uri, pattern, block, depth, secs] = args else { return None };
    let job = Job {
        pattern: pattern.parse().ok()?,
        block: block.parse().ok()?,
        depth: depth.parse().ok()?,
        run_for: Duration::from_secs(secs.parse().ok()?),
        span: None,
    };
    Some((uri.parse().ok()?, job))
}
