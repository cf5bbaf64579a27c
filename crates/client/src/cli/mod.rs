//! `blockctl`: nouns and verbs, what they print, and how they end.

mod args;
mod clone;
mod cluster;
mod context;
mod dev;
pub mod error;
mod explain;
mod job;
mod load;
mod node;
pub mod output;
mod policy;
pub mod size;
mod snapshot;
mod space;
mod stream;
mod trash;
mod volume;

use args::{Cli, Noun, SnapshotVerb};
use clap::Parser;
use context::Context;
use error::{CliError, exit};
use output::Output;
use std::io::Write;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    // Prints help and usage errors itself, and ends with 0 or 2.
    let cli = Cli::parse();
    let format = cli.global.format;
    match run(cli) {
        Ok(output) => {
            // A reader that is gone (`| head`) is no failure.
            let _ = std::io::stdout().write_all(output.shown(format).as_bytes());
            ExitCode::from(output.exit)
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(e.exit)
        }
    }
}

fn run(cli: Cli) -> Result<Output, CliError> {
    let context = Context::new(cli.global);
    match cli.noun {
        // Blocking clients of NBD.
        Noun::Load(args) => load::run(&context, args),
        Noun::Snapshot(
            verb @ (SnapshotVerb::Diff { .. } | SnapshotVerb::Export { .. } | SnapshotVerb::Import { .. }),
        ) => stream::run(&context, verb),
        Noun::Explain { code } => explain::run(&code),
        Noun::Completion { shell } => Ok(args::completion(shell)),
        noun => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|e| CliError::io("the runtime", &e))?;
            runtime.block_on(async {
                let mut terminate =
                    signal(SignalKind::terminate()).map_err(|e| CliError::io("signals", &e))?;
                let interrupted = || {
                    let cause = "what was sent may still be done";
                    CliError::new(1931, exit::INTERRUPTED, "interrupted", cause, "")
                };
                // What was begun cleans up after itself when it is dropped here.
                tokio::select! {
                    result = ask(&context, noun) => result,
                    _ = tokio::signal::ctrl_c() => Err(interrupted()),
                    _ = terminate.recv() => Err(interrupted()),
                }
            })
        }
    }
}

async fn ask(context: &Context, noun: Noun) -> Result<Output, CliError> {
    match noun {
        Noun::Cluster(verb) => cluster::run(context, verb).await,
        Noun::Node(verb) => node::run(context, verb).await,
        Noun::Drive(verb) => node::run_drive(context, verb).await,
        Noun::Volume(verb) => volume::run(context, verb).await,
        Noun::Snapshot(verb) => snapshot::run(context, verb).await,
        Noun::Job(verb) => job::run(context, verb).await,
        Noun::Policy(verb) => policy::run(context, verb).await,
        Noun::Events { after, limit } => cluster::events(context, after, limit).await,
        Noun::Dev(verb) => dev::run(context, verb).await,
        Noun::Load(_) | Noun::Explain { .. } | Noun::Completion { .. } => {
            unreachable!("need no runtime: done before")
        }
    }
}
