//! Which drives this process has, by what they are and not by how they are called.
//!
//! The lock of a drive tells processes apart, not parts of this one: so a drive is claimed before its lock is waited
//! for, and whoever asks for it twice hears that it is here already.

use super::DeviceError;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device's number, or a file's file system and inode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Identity {
    Device(u64),
    File(u64, u64),
}

type Held = BTreeMap<Identity, PathBuf>;

#[derive(Clone, Default, Debug)]
pub struct Claims(Arc<Mutex<Held>>);

/// This process's claim to a drive; it ends when this is dropped.
#[derive(Debug)]
pub struct Claim {
    identity: Identity,
    held: Arc<Mutex<Held>>,
}

fn locked(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Claims {
    /// Fails with `DeviceError::Ours` if this process has the drive already.
    pub fn claim(&self, path: &Path) -> Result<Claim, DeviceError> {
        let failed = |source: io::Error| DeviceError::Io { path: path.into(), source };
        let meta = std::fs::metadata(path).map_err(failed)?;
        let identity = if meta.file_type().is_block_device() {
            Identity::Device(meta.rdev())
        } else {
            Identity::File(meta.dev(), meta.ino())
        };
        let mut held = locked(&self.0);
        if let Some(known) = held.get(&identity) {
            return Err(DeviceError::Ours { path: path.into(), known: known.clone() });
        }
        held.insert(identity, path.into());
        Ok(Claim { identity, held: self.0.clone() })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        locked(&self.held).remove(&self.identity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_is_claimed_once_whatever_it_is_called_and_again_after_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("drive"), dir.path().join("alias"));
        std::fs::write(&path, "x").unwrap();
        std::os::unix::fs::symlink(&path, &other).unwrap();
        let claims = Claims::default();
        let claim = claims.claim(&path).unwrap();
        let refused = claims.claim(&other).unwrap_err().to_string();
        assert!(
            refused.contains("alias: this blockd has it already, as ") && refused.contains("/drive"),
            "{refused}"
        );
        drop(claim);
        assert!(claims.claim(&other).is_ok());
        assert!(matches!(claims.claim(&dir.path().join("none")), Err(DeviceError::Io { .. })));
    }
}
