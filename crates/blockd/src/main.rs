//! The daemon of a node.

use anyhow::Context;
use blockd::config::{Config, LogFormat};
use blockd::shard::End;
use blockd::{daemon, logging, sys};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "blockd",
    version,
    long_version = blockd::long_version(),
    about = "Replicated block storage: the daemon of a node"
)]
struct Arguments {
    /// Where the configuration stands.
    #[arg(long, default_value = "/etc/blockd/blockd.toml")]
    config: PathBuf,
    /// Read the configuration, say whether it is good, and end.
    #[arg(long)]
    check_config: bool,
    /// Overrides the configuration's.
    #[arg(long)]
    log_format: Option<LogFormat>,
}

fn main() -> ExitCode {
    blockd::finish(run())
}

fn run() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let config = Config::load(&arguments.config).context("configuration")?;
    if arguments.check_config {
        println!("{}: good", arguments.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    // No thread of a node outlives another one's bug: the process ends, and its peers take over.
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        say(info);
        std::process::abort();
    }));
    sys::keep_memory();
    let log = logging::start(&config.log, arguments.log_format.unwrap_or(config.log_format));
    let end = daemon::run(&config, arguments.config, log, |params| node::Node::new(params, sys::now()))?;
    tracing::info!(clean = (end == End::Clean), "blockd ends");
    Ok(if end == End::Clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
