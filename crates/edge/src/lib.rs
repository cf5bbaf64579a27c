//! What blockd and metad have in common as daemons: their log, what they tell systemd, how they end.
//!
//! Nothing of storage or of clusters is known here.
#![forbid(unsafe_code)]

pub mod capped;
pub mod logging;
pub mod notify;

use serde::Deserialize;
use std::process::ExitCode;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Default, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Logfmt,
    Json,
}

/// The end of a binary's `main`: the error and its causes, each on a line, without a backtrace.
pub fn finish(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        for cause in error.chain().skip(1) {
            eprintln!("cause: {cause}");
        }
        ExitCode::FAILURE
    })
}
