//! A metad's own folder: its lock, its id, the addresses it took.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a new process waits for the older one's end.
const LOCK_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0}: another metad runs on this folder. Stop it, or give this one its own state_dir")]
    InUse(PathBuf),
    #[error(
        "{path} is metad {known}'s, the configuration says id = {given}. A state_dir belongs to one metad for ever"
    )]
    OtherId { path: PathBuf, known: String, given: u64 },
}

/// Locked until it is dropped, or the process ends.
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the folder if need be, locks it, and checks whose it is.
    pub fn open(path: &Path, id: u64) -> Result<StateDir, StateError> {
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |source| StateError::Io { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))?;
        let file = path.join("lock");
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).open(&file).map_err(at(&file))?;
        let until = Instant::now() + LOCK_WAIT;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => return Err(StateError::InUse(path.into())),
                Err(TryLockError::Error(source)) => return Err(StateError::Io { path: file, source }),
            }
        }
        let dir = StateDir { path: path.into(), _lock: lock };
        match dir.read("id")? {
            Some(known) if known.trim() == id.to_string() => {}
            Some(known) => {
                let known = known.trim().into();
                return Err(StateError::OtherId { path: path.into(), known, given: id });
            }
            None => dir.write("id", &format!("{id}\n"))?,
        }
        Ok(dir)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn read(&self, name: &str) -> Result<Option<String>, StateError> {
        let path = self.path.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io { path, source }),
        }
    }

    /// Replaces a file of the folder; durable when this returns.
    pub fn write(&self, name: &str, text: &str) -> Result<(), StateError> {
        let (path, new) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let replace = || {
            let mut f = File::create(&new)?;
            f.write_all(text.as_bytes())?;
            f.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        replace().map_err(|source| StateError::Io { path: path.clone(), source })
    }

    /// The address to take: for port 0 the one taken last time, if there is one.
    pub fn address(&self, name: &str, wanted: SocketAddr) -> Result<SocketAddr, StateError> {
        if wanted.port() != 0 {
            return Ok(wanted);
        }
        let last = self.read(name)?.and_then(|t| t.trim().parse::<SocketAddr>().ok());
        Ok(last.filter(|l| l.ip() == wanted.ip()).unwrap_or(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_belongs_to_one_metad() {
        let dir = tempfile::tempdir().unwrap();
        drop(StateDir::open(dir.path(), 1).unwrap());
        let error = StateDir::open(dir.path(), 2).err().unwrap().to_string();
        assert!(error.contains("is metad 1's, the configuration says id = 2"), "{error}");
    }

    #[test]
    fn the_port_taken_last_time_is_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path(), 1).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        assert_eq!(state.address("metad.addr", any).unwrap(), any);
        state.write("metad.addr", "127.0.0.1:4711\n").unwrap();
        assert_eq!(state.address("metad.addr", any).unwrap().port(), 4711);
        let fixed = "127.0.0.1:7400".parse().unwrap();
        assert_eq!(state.address("metad.addr", fixed).unwrap(), fixed);
    }
}
