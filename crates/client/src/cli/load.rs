//! `load`: the client that remembers what it was told.

use super::args::{LoadArgs, LoadVerb};
use super::context::Context;
use super::error::{CliError, exit};
use super::output::Output;
use crate::load::{CheckOptions, Options, check, run as run_load};
use crate::nbd_client::Settings;
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

pub fn run(context: &Context, args: LoadArgs) -> Result<Output, CliError> {
    if let Some(LoadVerb::Check { uri, log, flushed_only }) = args.check {
        let options = CheckOptions { uri, log, flushed_only, settings: Settings::default() };
        let report = check(&options).map_err(|e| failed(&e))?;
        return Ok(output("load.check/1", &report, format!("{report}\n"), report.ok()));
    }
    let (Some(uri), Some(log)) = (args.uri, args.log) else {
        return Err(CliError::usage("an export and a log are needed", "blockctl load URI --log FILE"));
    };
    if let Some(o) = context.dry(&format!("write to {uri} for {} s, and log to {}", args.secs, log.display()))
    {
        return Ok(o);
    }
    let mut options = Options::new(uri, log);
    options.reconnect = args.reconnect.map(Duration::from_secs);
    options.depth = usize::try_from(args.depth).expect("at most 4096");
    options.run_for = Duration::from_secs(args.secs);
    options.span = args.span.map(|s| s.bytes);
    options.seed = args.seed;
    let report = run_load(&options).map_err(|e| failed(&e))?;
    Ok(output("load/1", &report, format!("{report}\n"), report.ok()))
}

fn output(schema: &'static str, report: &impl Serialize, text: String, ok: bool) -> Output {
    let mut json = serde_json::to_value(report).expect("plain fields");
    if let Value::Object(map) = &mut json {
        map.insert("ok".into(), ok.into());
    }
    let mut output = Output::new(schema, json, text);
    output.exit = if ok { 0 } else { exit::FAILURE };
    output
}

fn failed(e: &impl std::fmt::Display) -> CliError {
    CliError::new(
        1940,
        exit::FAILURE,
        e.to_string(),
        "the load did not get as far as a report",
        "blockctl volume show NAME",
    )
}
