//! Opening drives: claim, lock, superblock, metad, shard, and what became of it.
//!
//! A drive that cannot be opened when blockd starts is tried again by itself; one that was opened and has failed waits
//! for the operator, who knows whether it is well again.

use super::ToShard;
use super::member::Member;
use crate::device::claims::{Claim, Claims};
use crate::device::{self, Access, DeviceError};
use crate::format::{self, FormatError, SuperblockError, remedy};
use crate::sys;
use api::v1::RegisterDrive;
use proto::{DriveId, OpenId};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use store::event::Failure;

/// Between two tries to open a drive of this node.
pub const AGAIN: Duration = Duration::from_secs(30);
/// An operator's order is answered by then; the opening goes on.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// A drive that stays away is spoken of again after so many tries.
const SAY_EACH: u32 = 20;

/// Why a drive does not serve.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {source}. {}", remedy(.source))]
    Failed { path: PathBuf, source: Failure },
    #[error(
        "{path}: its journal is still being read after {} s; that goes on. blockd says in its log, and in `/healthz`, \
         when it is over", waited.as_secs()
    )]
    Slow { path: PathBuf, waited: Duration },
    #[error("{0}: blockd is stopping")]
    Stopping(PathBuf),
}

/// A drive that this node should have and that cannot be opened.
#[derive(Clone, Debug)]
pub struct Missing {
    pub path: PathBuf,
    pub error: String,
    pub since: Instant,
}

/// Drives that this process has, or would like to have.
#[derive(Default)]
pub struct Openings {
    claims: Claims,
    missing: Mutex<BTreeMap<PathBuf, Missing>>,
}

impl Openings {
    #[must_use]
    pub fn missing(&self) -> Vec<Missing> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn found(&self, path: &Path) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
    }

    /// True if the error is another one than before.
    fn missed(&self, path: &Path, error: String) -> bool {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = missing.entry(path.into());
        let fresh = || Missing { path: path.into(), error: String::new(), since: Instant::now() };
        let m = entry.or_insert_with(fresh);
        let news = m.error != error;
        m.error = error;
        news
    }
}

/// Claims the drive; formats it if wished; opens it; waits until the store has opened. Returns its id and size.
pub fn add(
    member: &Member,
    path: &Path,
    wish: Option<&format::Wish>,
    force: &str,
) -> Result<(DriveId, u64), OpenError> {
    let claim = match (member.openings.claims.claim(path), wish) {
        // Says so better, and how a new file is made.
        (Err(DeviceError::Io { source, .. }), Some(wish)) if source.kind() == io::ErrorKind::NotFound => {
            format::format(path, wish)?;
            member.openings.claims.claim(path)?
        }
        (claim, Some(wish)) => {
            let claim = claim?;
            let done = format::format(path, wish)?;
            tracing::warn!(path = %path.display(), drive = done.drive.0, reason = force, "drive formatted");
            claim
        }
        (claim, None) => claim?,
    };
    let opened = open(member, path, claim, Some(ANSWER_WITHIN))?;
    member.openings.found(path);
    Ok(opened)
}

/// `within`: how long the store may take; none: as long as it takes.
fn open(
    member: &Member,
    path: &Path,
    claim: Claim,
    within: Option<Duration>,
) -> Result<(DriveId, u64), OpenError> {
    let failed = |source| OpenError::Io { path: path.into(), source };
    let mut drive = device::open(path, Access::ReadWrite, device::LOCK_WAIT)?;
    let found = format::superblock_of(&drive)?;
    let foreign = |source| OpenError::Failed { path: path.into(), source };
    found.check_owner(member.cluster, member.node, drive.size).map_err(foreign)?;
    drive.claim = Some(claim);
    let capacity = drive.size;
    member.add_drive(RegisterDrive { drive: found.drive.0, capacity, path: path.display().to_string() });
    let opening = OpenId(sys::random().map_err(failed)?);
    let (tell, told) = mpsc::channel();
    let opened = Box::new(move |result| drop(tell.send(result)));
    member.shard().send(ToShard::Drive { drive, opening, opened });
    let result = match within {
        None => told.recv().map_err(|_| OpenError::Stopping(path.into()))?,
        Some(waited) => told.recv_timeout(waited).map_err(|e| match e {
            mpsc::RecvTimeoutError::Timeout => OpenError::Slow { path: path.into(), waited },
            mpsc::RecvTimeoutError::Disconnected => OpenError::Stopping(path.into()),
        })?,
    };
    let drive = result.map_err(foreign)?;
    Ok((drive, capacity))
}

/// Opens a drive of this node, and tries again and again where that fails. For a thread of its own.
pub fn keep_opening(member: &Member, path: &Path, again: Duration) {
    for tries in 0_u32.. {
        let claimed = member.openings.claims.claim(path).map_err(OpenError::from);
        match claimed.and_then(|claim| open(member, path, claim, None)) {
            Ok((drive, _)) => {
                if tries > 0 {
                    tracing::info!(%drive, path = %path.display(), tries, "drive opened at last");
                }
                break;
            }
            // Somebody added it meanwhile.
            Err(OpenError::Device(DeviceError::Ours { .. }) | OpenError::Stopping(_)) => break,
            Err(error) => {
                let again = again.as_secs();
                if member.openings.missed(path, error.to_string()) || tries % SAY_EACH == 0 {
                    tracing::error!(%error, tries, "drive not opened; tried again every {again} s");
                }
            }
        }
        std::thread::sleep(again);
    }
    member.openings.found(path);
}
