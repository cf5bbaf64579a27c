//! Ctrl-C and SIGTERM: while something is half made, it is taken away first.

use crate::cli::error::{CliError, exit};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{SignalKind, signal};

static HALF_MADE: AtomicBool = AtomicBool::new(false);
static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on a signal ends the process only where nothing is half made.
pub fn watch() -> Result<(), CliError> {
    let failed = |e: std::io::Error| CliError::io("signals", &e);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate()).map_err(failed)?, signal(SignalKind::interrupt()).map_err(failed)?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if !HALF_MADE.load(Ordering::SeqCst) {
                    eprintln!("{}", interrupted());
                    std::process::exit(i32::from(exit::INTERRUPTED));
                }
                ASKED.store(true, Ordering::SeqCst);
            }
        });
    });
    Ok(())
}

pub fn half_made(is: bool) {
    HALF_MADE.store(is, Ordering::SeqCst);
}

pub fn check() -> Result<(), CliError> {
    if ASKED.load(Ordering::SeqCst) { Err(interrupted()) } else { Ok(()) }
}

fn interrupted() -> CliError {
    CliError::new(1931, exit::INTERRUPTED, "interrupted", "", "")
}
