//! The daemon that holds who owns what.

use anyhow::Context;
use clap::Parser;
use metad::config::Config;
use metad::server::Metad;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(name = "metad", version, about = "Replicated block storage: who owns what, by Raft")]
struct Arguments {
    /// Where the configuration stands.
    #[arg(long, default_value = "/etc/blockd/metad.toml")]
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
    // A task that panics would otherwise leave a metad that answers in part.
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        say(info);
        std::process::abort();
    }));
    metad::start_logging(&config.log, config.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("metad")
        .enable_all()
        .build()?;
    runtime.block_on(run(&config))
}

async fn run(config: &Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let metad = Metad::start(config).await?;
    tracing::info!(id = config.id, address = metad.address, version = env!("CARGO_PKG_VERSION"), "serves");
    let (told, stop) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("is told to stop");
        let _ = told.send(());
        // A second time: now. What was answered is on disk.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(1);
    });
    metad.serve(async { drop(stop.await) }).await?;
    tracing::info!("stopped");
    Ok(())
}
