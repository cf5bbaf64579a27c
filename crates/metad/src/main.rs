//! The daemon that holds who owns what.

use anyhow::Context;
use clap::Parser;
use metad::config::{Config, LogFormat};
use metad::logging::Reload;
use metad::notify::notify;
use metad::server::Metad;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Parser)]
#[command(
    name = "metad",
    version,
    long_version = metad::long_version(),
    about = "Replicated block storage: who owns what, by Raft"
)]
struct Arguments {
    /// Where the configuration stands.
    #[arg(long, default_value = "/etc/blockd/metad.toml")]
    config: PathBuf,
    /// Read the configuration, say whether it is good, and end.
    #[arg(long)]
    check_config: bool,
    /// Overrides the configuration's.
    #[arg(long)]
    log_format: Option<LogFormat>,
}

fn main() -> ExitCode {
    metad::finish(run())
}

fn run() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let config = Config::load(&arguments.config).context("configuration")?;
    if arguments.check_config {
        println!("{}: good", arguments.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    // A task that panics would otherwise leave a metad that answers in part.
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        say(info);
        std::process::abort();
    }));
    let log = metad::logging::start(&config.log, arguments.log_format.unwrap_or(config.log_format));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("metad")
        .enable_all()
        .build()
        .context("the runtime")?;
    runtime.block_on(serve(&config, arguments.config, log))?;
    Ok(ExitCode::SUCCESS)
}

/// What the process is told by signal.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Until it is told to stop. Until then SIGHUP reads the configuration again.
    async fn stop(&mut self, path: &Path, log: &Reload) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => reload(path, log),
            }
        }
    }
}

/// What may change while running: the log's filter.
fn reload(path: &Path, log: &Reload) {
    match Config::load(path) {
        Ok(config) => {
            log.set(&config.log);
            tracing::info!(log = config.log, "configuration read again");
        }
        Err(error) => tracing::error!(%error, "configuration not read again"),
    }
}

async fn serve(config: &Config, path: PathBuf, log: Reload) -> anyhow::Result<()> {
    // First of all: SIGHUP ends a process that does not listen to it.
    let mut signals = Signals::listen().context("signals")?;
    let metad = Metad::start(config).await?;
    tracing::info!(id = config.id, address = metad.address, version = metad::VERSION, "metad starts");
    let (told, stop) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        signals.stop(&path, &log).await;
        tracing::info!("stopping");
        let _ = notify("STOPPING=1");
        let _ = told.send(());
        // A second time: now. What was answered is on disk.
        signals.stop(&path, &log).await;
        tracing::warn!("told to stop twice: now");
        std::process::exit(1);
    });
    let _ = notify("READY=1");
    metad.serve(async { drop(stop.await) }).await?;
    tracing::info!("metad ends");
    Ok(())
}
