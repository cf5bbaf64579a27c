//! A node's own folder: the lock that lets one process connect at a time, the counter that numbers the processes, and
//! who this node is.
//!
//! Whatever is written is whole and on the media before it counts: a new file, fsync, rename, fsync of the folder.

use crate::config::{parse_cluster, show_cluster};
use crate::sys;
use proto::{ClusterId, NodeId, ProcessNumber};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a new process waits for the older one's last breath.
const LOCK_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0}: another blockd runs on this folder. Stop it, or give this one its own state_dir")]
    InUse(PathBuf),
    #[error("{path}: damaged: {what}. It is a small text file; restore it from a backup")]
    Damaged { path: PathBuf, what: String },
    #[error("{path} says {known}, the configuration says {given}. A state_dir belongs to one node for ever")]
    Mismatch { path: PathBuf, known: String, given: String },
}

/// Who this node is, once it has joined a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    pub cluster: ClusterId,
    pub node: NodeId,
}

#[derive(Serialize, Deserialize)]
struct IdentityFile {
    cluster: String,
    node: u32,
}

/// The folder, locked until this is dropped (or the process ends).
pub struct StateDir {
    path: PathBuf,
    _lock: File,
    pub process: ProcessNumber,
}

impl StateDir {
    /// Makes the folder if need be, locks it, and counts this process.
    pub fn open(path: &Path) -> Result<StateDir, StateError> {
        StateDir::open_waiting(path, LOCK_WAIT)
    }

    fn open_waiting(path: &Path, wait: Duration) -> Result<StateDir, StateError> {
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |source| StateError::Io { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))?;
        let lock = path.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock)
            .map_err(at(&lock))?;
        if !sys::lock(&file, wait).map_err(at(&lock))? {
            return Err(StateError::InUse(path.into()));
        }
        let mut dir = StateDir { path: path.into(), _lock: file, process: ProcessNumber(0) };
        let counter = path.join("process");
        let last = match dir.read("process")? {
            None => 0,
            Some(text) => text
                .trim()
                .parse::<u64>()
                .map_err(|e| StateError::Damaged { path: counter.clone(), what: e.to_string() })?,
        };
        dir.process = ProcessNumber(last + 1);
        dir.write("process", &format!("{}\n", last + 1))?;
        Ok(dir)
    }

    /// A file of the folder, if it is there.
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

    /// Who this node is, from what it knows and what its configuration says; none before it has joined.
    pub fn identity(
        &self,
        node: Option<NodeId>,
        cluster: Option<ClusterId>,
    ) -> Result<Option<Identity>, StateError> {
        let path = self.path.join("node.toml");
        let Some(text) = self.read("node.toml")? else {
            return Ok(node.zip(cluster).map(|(node, cluster)| Identity { cluster, node }));
        };
        let damaged = |what: String| StateError::Damaged { path: path.clone(), what };
        let file: IdentityFile = toml::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        let known = Identity {
            cluster: parse_cluster(&file.cluster).map_err(|e| damaged(e.to_string()))?,
            node: NodeId(file.node),
        };
        let mismatch =
            |known: String, given: String| StateError::Mismatch { path: path.clone(), known, given };
        if let Some(given) = node
            && given != known.node
        {
            return Err(mismatch(format!("node {}", known.node.0), format!("node_id = {}", given.0)));
        }
        if let Some(given) = cluster
            && given != known.cluster
        {
            return Err(mismatch(
                format!("cluster {}", show_cluster(known.cluster)),
                format!("cluster = {}", show_cluster(given)),
            ));
        }
        Ok(Some(known))
    }

    /// Remembers who this node is.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), StateError> {
        let file = IdentityFile { cluster: show_cluster(identity.cluster), node: identity.node.0 };
        self.write("node.toml", &toml::to_string(&file).expect("two plain fields"))
    }

    /// Drives that were added while running, one path a line.
    pub fn drives(&self) -> Result<Vec<PathBuf>, StateError> {
        Ok(self.read("drives")?.unwrap_or_default().lines().map(PathBuf::from).collect())
    }

    pub fn add_drive(&self, drive: &Path) -> Result<(), StateError> {
        let mut drives = self.drives()?;
        if !drives.iter().any(|d| d == drive) {
            drives.push(drive.into());
        }
        let lines: String = drives.iter().map(|d| format!("{}\n", d.display())).collect();
        self.write("drives", &lines)
    }
}

/// The kernel's boot id: another one means that what was not flushed may be gone.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map(u128::to_be_bytes)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_a_greater_number_and_only_one_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDir::open(&path).unwrap();
        assert_eq!(first.process, ProcessNumber(1));
        let second = StateDir::open_waiting(&path, Duration::from_millis(30));
        assert!(matches!(second, Err(StateError::InUse(_))));
        drop(first);
        assert_eq!(StateDir::open(&path).unwrap().process, ProcessNumber(2));
        std::fs::write(path.join("process"), "many\n").unwrap();
        assert!(matches!(StateDir::open(&path), Err(StateError::Damaged { .. })));
    }

    #[test]
    fn a_second_process_waits_for_the_first_ones_end() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let t = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(first);
        });
        assert_eq!(StateDir::open(dir.path()).unwrap().process, ProcessNumber(2));
        t.join().unwrap();
    }

    #[test]
    fn the_folder_knows_its_node_and_refuses_another_ones_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(state.identity(None, None).unwrap(), None);
        let id = Identity { cluster: ClusterId(7), node: NodeId(3) };
        assert_eq!(state.identity(Some(NodeId(3)), Some(ClusterId(7))).unwrap(), Some(id.clone()));
        state.set_identity(&id).unwrap();
        assert_eq!(state.identity(None, None).unwrap(), Some(id));
        assert!(matches!(state.identity(Some(NodeId(4)), None), Err(StateError::Mismatch { .. })));
        assert!(matches!(state.identity(None, Some(ClusterId(8))), Err(StateError::Mismatch { .. })));
    }

    #[test]
    fn added_drives_are_remembered_once() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.add_drive(Path::new("/dev/a")).unwrap();
        state.add_drive(Path::new("/dev/b")).unwrap();
        state.add_drive(Path::new("/dev/a")).unwrap();
        assert_eq!(state.drives().unwrap(), [PathBuf::from("/dev/a"), "/dev/b".into()]);
    }

    #[test]
    fn the_boot_id_is_the_same_twice() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }
}
