//! A cluster in one folder: real processes on loopback, for development, tests and demonstrations.
//!
//! Owns the folder's layout, the processes' records and their life. A process is known by its id and its start time,
//! and ended through a pidfd: an id that was given to another process meanwhile is never touched.

pub mod layout;
pub mod process;
mod run;
mod up;

pub use layout::{Folder, Role};
pub use process::{Life, Record};
pub use run::{Signal, down, kill, resolve, start, status};
pub use up::{NODES, Options, up};

use crate::control::ControlError;
use std::path::PathBuf;

/// Longest path of a unix socket, bytes.
pub const SOCKET_PATH_MAX: usize = 107;

#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{0} holds no cluster")]
    NoCluster(PathBuf),
    #[error("{0} holds a cluster that is not finished")]
    BrokenOff(PathBuf),
    #[error("{0} is not empty, and holds no cluster")]
    NotEmpty(PathBuf),
    #[error("{path} has {len} bytes; a socket's path has at most {SOCKET_PATH_MAX}")]
    SocketPath { path: PathBuf, len: usize },
    #[error("{path}: {free} bytes are free, {need} are needed")]
    Space { path: PathBuf, free: u64, need: u64 },
    #[error("the cluster has {is} nodes and drives of {size} bytes; it cannot go on with others")]
    OtherShape { is: u32, size: u64 },
    #[error("{0} is not beside this program")]
    Binary(PathBuf),
    #[error("no process is called \"{name}\"; there are {known}")]
    Unknown { name: String, known: String },
    #[error("{name} ended at its start")]
    Ended { name: String, log: PathBuf, tail: String },
    #[error("{name} is not ready after {secs} s: {waits}")]
    NotReady { name: String, secs: u64, waits: String, log: PathBuf },
    #[error("{name} (process {pid}) does not end")]
    Immortal { name: String, pid: u32 },
    #[error("no metad leads")]
    NoLeader,
    #[error("{path} cannot be formatted: {said}")]
    Format { path: PathBuf, said: String },
    #[error("{0} is damaged")]
    Damaged(PathBuf),
    #[error(transparent)]
    Control(#[from] ControlError),
}

pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> DevError {
    let path = path.into();
    move |source| DevError::Io { path, source }
}
