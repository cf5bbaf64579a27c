//! Snapshots as files: written from one read transaction, streamed as they are, checked before they are installed.
//!
//! `snapshot` is the current one; `snapshot.N.part` are under way and are removed at every start, so that half a
//! snapshot never survives. A file: magic, length and bytes of the head, rows (two lengths, key, value), an end mark,
//! the number of rows and the CRC-32C of all before it.

use super::database::{Applied, DatabaseError, Db, to_row};
use super::encoding::{self, DecodeError};
use super::types::SnapshotMeta;
use meta::Row;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const MAGIC: &[u8; 16] = b"blockd-metadata2";
const CURRENT: &str = "snapshot";
const PART: &str = ".part";
/// In place of a key's length.
const END: u32 = u32::MAX;
/// Keys are a few ids.
const KEY_MAX: u32 = 1 << 10;
/// Rows are pages; none comes near this.
const VALUE_MAX: u32 = 1 << 28;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("snapshot: {0}")]
    Io(#[from] io::Error),
    #[error("snapshot: {0}")]
    Database(#[from] DatabaseError),
    #[error("snapshot: {0}")]
    Decode(#[from] DecodeError),
    #[error("not a snapshot, or a damaged one: {0}")]
    Damaged(&'static str),
}

/// A snapshot that lies complete in a file.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    pub path: PathBuf,
    pub file: Arc<File>,
}

/// The folder of snapshots.
#[derive(Clone, Debug)]
pub struct Snapshots {
    dir: Arc<PathBuf>,
    next: Arc<AtomicU64>,
}

impl Snapshots {
    /// Removes what is under way, and the current one if it is damaged (it is only a copy of the database).
    pub fn open(dir: &Path) -> Result<Snapshots, SnapshotError> {
        std::fs::create_dir_all(dir)?;
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.to_string_lossy().ends_with(PART) {
                std::fs::remove_file(path)?;
            }
        }
        let all = Snapshots { dir: Arc::new(dir.into()), next: Arc::default() };
        let current = all.dir.join(CURRENT);
        if current.exists()
            && let Err(e) = all.current().and_then(|s| s.map_or(Ok(()), |(_, s)| read(&s).map(drop)))
        {
            tracing::warn!(path = %current.display(), error = %e, "removing a damaged snapshot");
            std::fs::remove_file(&current)?;
        }
        Ok(all)
    }

    /// An empty file for one that arrives.
    pub fn begin(&self) -> Result<SnapshotFile, SnapshotError> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{CURRENT}.{n}{PART}"));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(SnapshotFile { path, file: Arc::new(file) })
    }

    /// Makes it the current one.
    pub fn keep(&self, snapshot: &SnapshotFile) -> Result<SnapshotFile, SnapshotError> {
        let path = self.dir.join(CURRENT);
        snapshot.file.sync_all()?;
        std::fs::rename(&snapshot.path, &path)?;
        // The log before it is purged next.
        File::open(&*self.dir)?.sync_all()?;
        Ok(SnapshotFile { path, file: snapshot.file.clone() })
    }

    pub fn discard(&self, snapshot: &SnapshotFile) {
        if snapshot.path.to_string_lossy().ends_with(PART) {
            let _ = std::fs::remove_file(&snapshot.path);
        }
    }

    pub fn current(&self) -> Result<Option<(SnapshotMeta, SnapshotFile)>, SnapshotError> {
        let path = self.dir.join(CURRENT);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let mut input = Checked { inner: &file, crc: 0 };
        let meta = input.head()?;
        Ok(Some((meta, SnapshotFile { path, file: Arc::new(file) })))
    }

    /// Writes all rows of this moment.
    pub fn build(&self, db: &Db) -> Result<(SnapshotMeta, SnapshotFile), SnapshotError> {
        let target = self.begin()?;
        let result = self.write(db, &target).and_then(|meta| Ok((meta, self.keep(&target)?)));
        if result.is_err() {
            self.discard(&target);
        }
        result
    }

    fn write(&self, db: &Db, target: &SnapshotFile) -> Result<SnapshotMeta, SnapshotError> {
        let out = std::cell::RefCell::new(Checked { inner: BufWriter::new(&*target.file), crc: 0 });
        let unique = self.next.fetch_add(1, Ordering::Relaxed);
        let to_meta = |a: &Applied| {
            let at = a.last.map_or_else(|| "0".into(), |l| format!("{}-{}", l.leader_id.term, l.index));
            SnapshotMeta {
                last_log_id: a.last,
                last_membership: a.membership.clone(),
                snapshot_id: format!("{at}-{}-{unique}", std::process::id()),
            }
        };
        let mut meta = SnapshotMeta::default();
        let mut rows = 0_u64;
        db.rows::<SnapshotError>(
            |applied| {
                meta = to_meta(applied);
                let head = encoding::put_snapshot_meta(&meta);
                let mut out = out.borrow_mut();
                out.put(MAGIC)?;
                out.put(&length(&head)?.to_le_bytes())?;
                out.put(&head)
            },
            |key, value| {
                rows += 1;
                let mut out = out.borrow_mut();
                out.put(&length(key)?.to_le_bytes())?;
                out.put(&length(value)?.to_le_bytes())?;
                out.put(key)?;
                out.put(value)
            },
        )?;
        let mut out = out.into_inner();
        out.put(&END.to_le_bytes())?;
        out.put(&rows.to_le_bytes())?;
        let crc = out.crc;
        out.put(&crc.to_le_bytes())?;
        out.inner.flush()?;
        Ok(meta)
    }
}

fn length(bytes: &[u8]) -> Result<u32, SnapshotError> {
    u32::try_from(bytes.len()).map_err(|_| SnapshotError::Damaged("a row above 4 GiB"))
}

/// Reads and checks a whole snapshot.
pub fn read(snapshot: &SnapshotFile) -> Result<(SnapshotMeta, Vec<Row>), SnapshotError> {
    let mut file = &*snapshot.file;
    io::Seek::seek(&mut file, io::SeekFrom::Start(0))?;
    let mut input = Checked { inner: BufReader::new(file), crc: 0 };
    let meta = input.head()?;
    let mut rows = Vec::new();
    loop {
        let key = input.number()?;
        if key == END {
            break;
        }
        let value = input.number()?;
        if key > KEY_MAX || value > VALUE_MAX {
            return Err(SnapshotError::Damaged("an impossible length"));
        }
        let (key, value) = (input.take(key)?, input.take(value)?);
        rows.push(to_row(&key, &value)?);
    }
    let count = u64::from_le_bytes(input.array()?);
    let crc = input.crc;
    if u32::from_le_bytes(input.array()?) != crc || usize::try_from(count) != Ok(rows.len()) {
        return Err(SnapshotError::Damaged("its checksum or its number of rows"));
    }
    Ok((meta, rows))
}

/// Sums what passes.
struct Checked<T> {
    inner: T,
    crc: u32,
}
impl<T: Write> Checked<T> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        Ok(self.inner.write_all(bytes)?)
    }
}
impl<T: Read> Checked<T> {
    fn take(&mut self, len: u32) -> Result<Vec<u8>, SnapshotError> {
        let mut bytes = Vec::new();
        let got = (&mut self.inner).take(len.into()).read_to_end(&mut bytes)?;
        if u32::try_from(got) != Ok(len) {
            return Err(SnapshotError::Damaged("it ends too early"));
        }
        self.crc = crc32c::crc32c_append(self.crc, &bytes);
        Ok(bytes)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let bytes = self.take(u32::try_from(N).expect("a few bytes"))?;
        Ok(bytes.try_into().expect("as many as asked for"))
    }
    fn number(&mut self) -> Result<u32, SnapshotError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn head(&mut self) -> Result<SnapshotMeta, SnapshotError> {
        if self.array()? != *MAGIC {
            return Err(SnapshotError::Damaged("its first bytes"));
        }
        let len = self.number()?;
        if len > VALUE_MAX {
            return Err(SnapshotError::Damaged("an impossible length"));
        }
        Ok(encoding::get_snapshot_meta(&self.take(len)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::database::Write as DbWrite;
    use meta::{KeyChange, Table};

    async fn filled(dir: &Path) -> Db {
        let db = Db::open(&dir.join("db")).unwrap();
        let changes = (0..100_u64)
            .map(|n| KeyChange {
                table: Table::Events,
                key: n.to_be_bytes().to_vec(),
                value: Some(vec![7; 100].into()),
            })
            .collect();
        db.write(DbWrite::Apply { changes, applied: Applied::default() }).await.unwrap();
        db
    }

    #[tokio::test]
    async fn a_snapshot_holds_all_rows() {
        let dir = tempfile::tempdir().unwrap();
        let db = filled(dir.path()).await;
        let snapshots = Snapshots::open(&dir.path().join("s")).unwrap();
        let (meta, file) = snapshots.build(&db).unwrap();
        let (read_meta, rows) = read(&file).unwrap();
        assert_eq!(read_meta, meta);
        assert_eq!(rows, db.load().unwrap().0);
        assert_eq!(snapshots.current().unwrap().unwrap().0, meta);
    }

    #[tokio::test]
    async fn half_a_snapshot_does_not_survive_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let db = filled(dir.path()).await;
        let at = dir.path().join("s");
        let snapshots = Snapshots::open(&at).unwrap();
        let part = snapshots.begin().unwrap();
        (&*part.file).write_all(b"blockd-meta").unwrap();
        drop(Snapshots::open(&at).unwrap());
        assert!(!part.path.exists());

        let (_, file) = snapshots.build(&db).unwrap();
        let bytes = std::fs::read(&file.path).unwrap();
        for cut in [3, 40, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&file.path, &bytes[..cut]).unwrap();
            assert!(Snapshots::open(&at).unwrap().current().unwrap().is_none(), "cut at {cut}");
        }
        for flip in [30, bytes.len() / 2, bytes.len() - 2] {
            let mut torn = bytes.clone();
            torn[flip] ^= 1;
            std::fs::write(&file.path, &torn).unwrap();
            assert!(Snapshots::open(&at).unwrap().current().unwrap().is_none(), "flipped at {flip}");
        }
        std::fs::write(&file.path, &bytes).unwrap();
        assert!(Snapshots::open(&at).unwrap().current().unwrap().is_some());
    }
}
