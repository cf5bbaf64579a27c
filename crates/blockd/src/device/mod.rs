//! Drives as blockd opens them: a block device or a file, by O_DIRECT, locked on the very descriptor that the ring will
//! use. The lock is then released with the last write in flight, not with the process.

pub mod claims;
pub mod signature;

use crate::sys;
use proto::limits::BLOCK;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long an opening waits for the lock of the process before.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0}: neither a block device nor a file")]
    Kind(PathBuf),
    #[error("{path}: this blockd has it already, as {known}")]
    Ours { path: PathBuf, known: PathBuf },
    #[error(
        "{path}: in use by another process (waited {waited:?}): another blockd, a mounted file system, or LVM"
    )]
    InUse { path: PathBuf, waited: Duration },
    #[error("{0}: its file system has no O_DIRECT. Remedy: ext4, xfs or a block device")]
    NoDirect(PathBuf),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    ReadWrite,
    /// Without a lock: for `blockd-inspect --force` on a drive in use.
    ReadOnlyShared,
    ReadOnly,
}

/// An open drive.
#[derive(Debug)]
pub struct Drive {
    pub fd: OwnedFd,
    pub path: PathBuf,
    /// Bytes, whole blocks.
    pub size: u64,
    /// What was written may be lost by a power cut until it is flushed.
    pub volatile_cache: bool,
    pub is_device: bool,
    /// Of a drive that this process is to serve.
    pub claim: Option<claims::Claim>,
}

/// Opens and locks the drive at `path`, waiting up to `wait` for its lock.
pub fn open(path: &Path, access: Access, wait: Duration) -> Result<Drive, DeviceError> {
    let failed = |source| DeviceError::Io { path: path.into(), source };
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if !kind.is_block_device() && !kind.is_file() {
        return Err(DeviceError::Kind(path.into()));
    }
    let locked = access != Access::ReadOnlyShared;
    let exclusive = if kind.is_block_device() && locked { libc::O_EXCL } else { 0 };
    let in_use = || DeviceError::InUse { path: path.into(), waited: wait };
    let deadline = Instant::now() + wait;
    let file = loop {
        let opened = OpenOptions::new()
            .read(true)
            .write(access == Access::ReadWrite)
            .custom_flags(libc::O_DIRECT | exclusive)
            .open(path);
        match opened {
            Ok(f) => break f,
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                if Instant::now() >= deadline {
                    return Err(in_use());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                return Err(DeviceError::NoDirect(path.into()));
            }
            Err(e) => return Err(failed(e)),
        }
    };
    if kind.is_file() && locked && !sys::lock(&file, wait).map_err(failed)? {
        return Err(in_use());
    }
    let meta = file.metadata().map_err(failed)?;
    let is_device = meta.file_type().is_block_device();
    let size = if is_device { sys::device_size(&file).map_err(failed)? } else { meta.len() };
    let volatile_cache =
        !is_device || has_volatile_cache(Path::new("/sys"), sys::device_numbers(meta.rdev()));
    let size = size / BLOCK as u64 * BLOCK as u64;
    Ok(Drive { fd: file.into(), path: path.into(), size, volatile_cache, is_device, claim: None })
}

/// What the kernel says of a block device's cache; "write back" unless it clearly says otherwise.
fn has_volatile_cache(sys: &Path, (major, minor): (u32, u32)) -> bool {
    let device = sys.join(format!("dev/block/{major}:{minor}"));
    // A partition's queue is that of its disk, one folder up.
    ["queue/write_cache", "../queue/write_cache"]
        .iter()
        .find_map(|at| std::fs::read_to_string(device.join(at)).ok())
        .is_none_or(|text| text.trim() != "write through")
}

/// Makes a file of `size` bytes; sparse, or with all its space taken.
pub fn create_file(path: &Path, size: u64, preallocate: bool) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(size)?;
    if preallocate {
        sys::allocate(&file, size)?;
    }
    file.sync_all()?;
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &tempfile::TempDir, size: u64) -> PathBuf {
        let path = dir.path().join("drive");
        create_file(&path, size, false).unwrap();
        path
    }

    #[test]
    fn a_file_is_locked_on_the_descriptor_and_always_has_a_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, (1 << 20) + 100);
        let d = open(&path, Access::ReadWrite, Duration::ZERO).unwrap();
        assert_eq!((d.size, d.volatile_cache, d.is_device), (1 << 20, true, false));
        let second = open(&path, Access::ReadWrite, Duration::from_millis(40)).unwrap_err();
        assert!(second.to_string().contains("in use by another process"), "{second}");
        assert!(open(&path, Access::ReadOnlyShared, Duration::ZERO).is_ok());
        // The lock goes with the last copy of the descriptor, as the ring's, not with the first.
        let copy = d.fd.try_clone().unwrap();
        drop(d);
        assert!(matches!(open(&path, Access::ReadWrite, Duration::ZERO), Err(DeviceError::InUse { .. })));
        drop(copy);
        assert!(open(&path, Access::ReadWrite, Duration::ZERO).is_ok());
    }

    #[test]
    fn the_lock_of_a_dying_process_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, 1 << 20);
        let d = open(&path, Access::ReadWrite, Duration::ZERO).unwrap();
        let t = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(d);
        });
        assert!(open(&path, Access::ReadWrite, LOCK_WAIT).is_ok());
        t.join().unwrap();
    }

    #[test]
    fn what_is_not_a_drive_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(open(dir.path(), Access::ReadWrite, Duration::ZERO), Err(DeviceError::Kind(_))));
        let gone = dir.path().join("gone");
        assert!(matches!(open(&gone, Access::ReadWrite, Duration::ZERO), Err(DeviceError::Io { .. })));
        assert!(matches!(
            open(Path::new("/dev/null"), Access::ReadWrite, Duration::ZERO),
            Err(DeviceError::Kind(_))
        ));
    }

    #[test]
    fn only_write_through_counts_as_no_cache() {
        let sys = tempfile::tempdir().unwrap();
        let queue = sys.path().join("dev/block/8:1/queue");
        assert!(has_volatile_cache(sys.path(), (8, 1)), "unknown");
        std::fs::create_dir_all(&queue).unwrap();
        std::fs::write(queue.join("write_cache"), "write back\n").unwrap();
        assert!(has_volatile_cache(sys.path(), (8, 1)));
        std::fs::write(queue.join("write_cache"), "write through\n").unwrap();
        assert!(!has_volatile_cache(sys.path(), (8, 1)));
    }
}
