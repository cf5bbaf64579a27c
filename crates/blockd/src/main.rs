//! The daemon of a node.

use anyhow::Context;
use blockd::config::Config;
use clap::Parser;
use std::path::PathBuf;

#[derive(Parser)]
#[command(name = "blockd", version, about = "Replicated block storage: the daemon of a node")]
struct Arguments {
    /// Where the configuration stands.
    #[arg(long, default_value = "/etc/blockd/blockd.toml")]
    config: PathBuf,
    /// Read the configuration, say whether it is good, and end.
    #[arg(long)]
    check_config: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config = Config::load(&arguments.config).context("configuration")?;
    if arguments.check_config {
        println!("{}: good", arguments.config.display());
        return Ok(());
    }
    let _ = config;
    Ok(())
}
