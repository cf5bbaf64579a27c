//! Where guests come in: the unix socket and, if wanted, a TCP port.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error("{path}: {source}")]
    Socket { path: PathBuf, source: io::Error },
    #[error("{0}: another process answers on this socket. Stop it, or configure another path")]
    InUse(PathBuf),
    #[error("{0}: there is something that is no socket; it is left alone. Move it away")]
    NotSocket(PathBuf),
    #[error("{address}: {source}")]
    Port { address: SocketAddr, source: io::Error },
}

/// The listener of a process that was killed lives on for a moment: its ring is taken down behind its back.
const LAST_BREATH: Duration = Duration::from_secs(3);

/// Whether somebody answers on this socket, and goes on to.
fn still_answers(path: &Path) -> bool {
    let start = Instant::now();
    while UnixStream::connect(path).is_ok() {
        if start.elapsed() > LAST_BREATH {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Listens on a unix socket with these permissions. A stale socket file, on which nobody answers, is replaced; the new
/// one appears with its permissions already set.
pub fn unix(path: &Path, mode: u32) -> Result<UnixListener, DoorError> {
    let failed = |source| DoorError::Socket { path: path.into(), source };
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(failed)?;
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
        Ok(m) if !m.file_type().is_socket() => return Err(DoorError::NotSocket(path.into())),
        Ok(_) if still_answers(path) => return Err(DoorError::InUse(path.into())),
        Ok(_) => {}
    }
    // By way of the folder's descriptor, so that the temporary name does not count against the path's 107 bytes.
    let name = path.file_name().ok_or_else(|| DoorError::NotSocket(path.into()))?;
    let dir = std::fs::File::open(folder).map_err(failed)?;
    let new = PathBuf::from(format!("/proc/self/fd/{}/.{}.new", dir.as_raw_fd(), name.display()));
    let bind = || {
        match std::fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&new, path)?;
        Ok(listener)
    };
    bind().map_err(failed)
}

/// Listens on a TCP port. Where the port is 0, `before` is tried first: the one that it had the last time.
pub fn tcp(address: SocketAddr, before: Option<SocketAddr>) -> Result<(TcpListener, SocketAddr), DoorError> {
    let again = before.filter(|b| address.port() == 0 && b.ip() == address.ip());
    let bound = again.and_then(|a| TcpListener::bind(a).ok()).map_or_else(|| TcpListener::bind(address), Ok);
    let listener = bound.map_err(|source| DoorError::Port { address, source })?;
    let actual = listener.local_addr().map_err(|source| DoorError::Port { address, source })?;
    Ok((listener, actual))
}

/// The descriptor for the ring.
#[must_use]
pub fn descriptor(listener: impl Into<OwnedFd>) -> OwnedFd {
    listener.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let first = unix(&path, 0o660).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(unix(&path, 0o660), Err(DoorError::InUse(_))));
        drop(first);
        let _second = unix(&path, 0o600).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(unix(&path, 0o660), Err(DoorError::NotSocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_port_that_the_kernel_chose_is_tried_first_the_next_time() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (first, a) = tcp(any, None).unwrap();
        let (_other, b) = tcp(any, Some(a)).unwrap();
        assert_ne!(a, b, "it is taken");
        drop(first);
        assert_eq!(tcp(any, Some(a)).unwrap().1, a);
    }
}
