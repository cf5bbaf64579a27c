//! A cluster in one folder: real processes on loopback, for trying things out and for the end-to-end tests.
//!
//! Owns the folder's layout and the processes in it, by their own ids. Decides nothing about the cluster: it
//! writes configuration files, starts daemons and asks metad as an operator would. Two clusters in two folders
//! do not meet: ports are chosen by the kernel and stand in files.

mod layout;
mod process;
mod status;
mod up;

pub use layout::{Layout, State};
pub use process::{ProcessState, Signal};
pub use status::{ProcessStatus, leader, status};
pub use up::{Options, up};

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What went wrong, with the object; `fix` says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("there is no development cluster in {0}")]
    NoCluster(PathBuf),
    #[error("{path}: {message}")]
    Damaged { path: PathBuf, message: String },
    #[error("{0} is not empty and holds no development cluster")]
    Occupied(PathBuf),
    #[error("{dir}: {free} MiB are free, {needed} MiB are needed")]
    NoRoom { dir: PathBuf, free: u64, needed: u64 },
    #[error("the socket's path would have {len} bytes, and 107 are possible: {path}")]
    SocketPath { path: PathBuf, len: usize },
    #[error("{0}: not found beside blockctl")]
    NoBinary(PathBuf),
    #[error("\"{0}\" is no process of this cluster")]
    NoProcess(String),
    #[error("{name} ended at once; its log ends:\n{log}")]
    Ended { name: String, log: String },
    #[error("{name} is not ready after {secs} s; its log ends:\n{log}")]
    NotReady { name: String, secs: u64, log: String },
    #[error("metad: {0}")]
    Metad(String),
    #[error("blockd-format: {0}")]
    Format(String),
    #[error("no metad leads at the moment")]
    NoLeader,
    #[error("{0} does not end, not even by SIGKILL")]
    Undead(String),
}

impl DevError {
    /// What to do next.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            DevError::NoCluster(_) => {
                "name the folder with --dir, or make one: blockctl dev up --nodes 3 --dir DIR"
            }
            DevError::Occupied(_) => "choose another folder",
            DevError::NoRoom { .. } => "free space, or choose smaller drives: --drive-size 512MiB",
            DevError::SocketPath { .. } => "choose a folder with a shorter path, as /tmp/c1",
            DevError::NoBinary(_) => "build them together: cargo build -p blockd -p metad -p client",
            DevError::NoProcess(_) => "blockctl dev status lists the processes",
            DevError::Ended { .. } | DevError::NotReady { .. } => "the log stands in the process's folder",
            DevError::NoLeader => "try again; blockctl dev status says which metads live",
            DevError::Damaged { .. } => "dev down --wipe removes the cluster",
            DevError::Io { .. } | DevError::Metad(_) | DevError::Format(_) | DevError::Undead(_) => {
                "see the message"
            }
        }
    }
}

/// Time a daemon has to end by itself after SIGTERM (it promises 10 s), and after SIGKILL.
const TERM_WAIT: Duration = Duration::from_secs(12);
const KILL_WAIT: Duration = Duration::from_secs(5);

/// The processes that a word names: `n3`, `m1`, `metad-leader`, `all`.
fn named(layout: &Layout, state: &State, what: &str) -> Result<Vec<String>, DevError> {
    let all = state.names();
    match what {
        "all" => Ok(all),
        "metad-leader" => leader(layout, state)?.map(|n| vec![n]).ok_or(DevError::NoLeader),
        name if all.iter().any(|n| n == name) => Ok(vec![name.to_owned()]),
        other => Err(DevError::NoProcess(other.to_owned())),
    }
}

/// Sends a signal; after KILL it waits until the processes are gone. Returns whom.
pub fn kill(layout: &Layout, what: &str, signal: Signal) -> Result<Vec<String>, DevError> {
    let state = State::load(layout)?;
    let names = named(layout, &state, what)?;
    // at once, not one after the other: "all" is a crash of everything
    for n in &names {
        process::send(layout, n, signal)?;
    }
    if signal == Signal::Kill {
        for n in &names {
            wait_gone(layout, n, KILL_WAIT)?;
        }
    }
    Ok(names)
}

fn wait_gone(layout: &Layout, name: &str, limit: Duration) -> Result<(), DevError> {
    let start = Instant::now();
    while process::state(layout, name)? != ProcessState::Stopped {
        if start.elapsed() > limit {
            return Err(DevError::Undead(name.to_owned()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Starts what is named and does not run; metads first. Returns when they accept connections.
pub fn start(layout: &Layout, what: &str) -> Result<Vec<String>, DevError> {
    let state = State::load(layout)?;
    let names = named(layout, &state, what)?;
    up::start_ready(layout, &names)?;
    Ok(names)
}

/// Ends everything, nodes before metads. `wipe` removes the folder too.
pub fn down(layout: &Layout, wipe: bool) -> Result<(), DevError> {
    let state = State::load(layout)?;
    let (nodes, metads): (Vec<String>, Vec<String>) =
        state.names().into_iter().partition(|n| n.starts_with('n'));
    for group in [nodes, metads] {
        for n in &group {
            process::send(layout, n, Signal::Cont)?;
            process::send(layout, n, Signal::Term)?;
        }
        for n in &group {
            if wait_gone(layout, n, TERM_WAIT).is_err() {
                process::send(layout, n, Signal::Kill)?;
                wait_gone(layout, n, KILL_WAIT)?;
            }
        }
    }
    if wipe {
        std::fs::remove_dir_all(&layout.dir)
            .map_err(|source| DevError::Io { path: layout.dir.clone(), source })?;
    }
    Ok(())
}
