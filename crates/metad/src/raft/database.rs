//! One redb database: Raft's log, its few marks, and the rows of the state.
//!
//! Owns the file and the one thread that writes it. Everything that waits when a commit can start goes into that
//! commit, in the order in which it was asked for: votes and log are never reordered, and several entries share one
//! fsync. A failed commit stops the database for good: whoever asks later hears the same error.
//!
//! Invariants: the purged id is written with the purge; rows are written with the applied index; a snapshot's rows
//! replace the old ones in one transaction.

use super::encoding::{self, DecodeError};
use super::types::{LogId, StoredMembership, Vote};
use meta::{KeyChange, Row, Table};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const MARKS: TableDefinition<&str, &[u8]> = TableDefinition::new("marks");
/// Key: number of the `meta::Table`, then the row's key.
const STATE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("state");

const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const APPLIED: &str = "applied";
const MEMBERSHIP: &str = "membership";
const FORMAT_MARK: &str = "format";

/// Format of the database as a whole: tables, keys, rows. One without the mark is of format 1.
const FORMAT: u32 = 3;

/// How long the file may still be open elsewhere.
const OPEN_WAIT: Duration = Duration::from_secs(10);
/// Jobs of one commit at most: it must end.
const JOBS_PER_COMMIT: usize = 512;

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("the metadata database: {0}")]
    Redb(Box<redb::Error>),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("the database holds a row of the unknown table {0}: it is of a newer metad")]
    UnknownTable(u8),
    #[error(
        "the metadata database {path} is of format {found}, and this metad reads format {FORMAT}: run the version of \
         metad that wrote it; or, if the cluster may be made anew, move its state_dir away (and wipe the drives)"
    )]
    Format { path: String, found: u32 },
    #[error("the database stopped after an earlier error: {0}")]
    Stopped(Arc<str>),
}

fn redb<E: Into<redb::Error>>(e: E) -> DatabaseError {
    DatabaseError::Redb(Box::new(e.into()))
}

/// Where the rows are.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    pub last: Option<LogId>,
    pub membership: StoredMembership,
}

pub enum Write {
    Vote(Vote),
    /// Needs no commit of its own: rides with the next one.
    Committed(Option<LogId>),
    Append(Vec<(u64, Vec<u8>)>),
    /// Removes this index and all above.
    Truncate(u64),
    /// Removes everything up to this one.
    Purge(LogId),
    Apply {
        changes: Vec<KeyChange>,
        applied: Applied,
    },
    /// All rows anew.
    Install {
        rows: Vec<Row>,
        applied: Applied,
    },
    /// Only waits for what was asked before.
    Barrier,
}

struct Job {
    write: Write,
    done: Option<oneshot::Sender<Result<(), DatabaseError>>>,
}

/// Ends the writer thread when the last user is gone.
struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}
impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens the file; waits for the one who had it open before and is on the way out.
fn create(path: &Path) -> Result<Database, redb::DatabaseError> {
    let until = Instant::now() + OPEN_WAIT;
    loop {
        match Database::create(path) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// Clones share the database and its writer.
#[derive(Clone)]
pub struct Db {
    redb: Arc<Database>,
    writer: Arc<Writer>,
}

impl Db {
    /// Opens the database at `path`, or makes it.
    pub fn open(path: &Path) -> Result<Db, DatabaseError> {
        let redb = Arc::new(create(path).map_err(redb)?);
        // All tables exist from the first commit on, so that readers need not ask.
        let tx = redb.begin_write().map_err(self::redb)?;
        check_format(&tx, path)?;
        tx.commit().map_err(self::redb)?;
        // A new file's name must last as long as the votes in it.
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = std::fs::File::open(folder).and_then(|d| d.sync_all());
        synced.map_err(|e| self::redb(redb::StorageError::Io(e)))?;
        let (jobs, queue) = mpsc::channel();
        let database = redb.clone();
        let thread = std::thread::Builder::new()
            .name("database".into())
            .spawn(move || write_loop(&database, &queue))
            .map_err(|e| self::redb(redb::StorageError::Io(e)))?;
        Ok(Db { redb, writer: Arc::new(Writer { jobs: Some(jobs), thread: Some(thread) }) })
    }

    fn send(&self, write: Write, done: Option<oneshot::Sender<Result<(), DatabaseError>>>) {
        let jobs = self.writer.jobs.as_ref().expect("taken only when the last user is gone");
        // The thread ends only after the sender; a lost job shows as a closed `done`.
        let _ = jobs.send(Job { write, done });
    }

    /// Returns when it is on disk.
    pub async fn write(&self, write: Write) -> Result<(), DatabaseError> {
        let (done, wait) = oneshot::channel();
        self.send(write, Some(done));
        wait.await.unwrap_or_else(|_| Err(DatabaseError::Stopped("the writer is gone".into())))
    }

    /// Asks for it without waiting.
    pub fn note(&self, write: Write) {
        self.send(write, None);
    }

    fn mark(&self, key: &str) -> Result<Option<Vec<u8>>, DatabaseError> {
        let tx = self.redb.begin_read().map_err(redb)?;
        let table = tx.open_table(MARKS).map_err(redb)?;
        Ok(table.get(key).map_err(redb)?.map(|v| v.value().to_vec()))
    }

    fn log_id(&self, key: &str) -> Result<Option<LogId>, DatabaseError> {
        Ok(self.mark(key)?.map(|b| encoding::get_log_id(&b)).transpose()?)
    }

    pub fn vote(&self) -> Result<Option<Vote>, DatabaseError> {
        Ok(self.mark(VOTE)?.map(|b| encoding::get_vote(&b)).transpose()?)
    }

    pub fn committed(&self) -> Result<Option<LogId>, DatabaseError> {
        self.log_id(COMMITTED)
    }

    pub fn purged(&self) -> Result<Option<LogId>, DatabaseError> {
        self.log_id(PURGED)
    }

    pub fn applied(&self) -> Result<Applied, DatabaseError> {
        let tx = self.redb.begin_read().map_err(redb)?;
        applied_in(&tx)
    }

    /// Entries as they lie there, until `bytes` are reached; at least one, if there is one.
    pub fn log(
        &self,
        range: impl RangeBounds<u64>,
        bytes: usize,
    ) -> Result<Vec<super::types::Entry>, DatabaseError> {
        let tx = self.redb.begin_read().map_err(redb)?;
        let table = tx.open_table(LOG).map_err(redb)?;
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        let mut entries = Vec::new();
        let mut sum = 0;
        for row in table.range::<u64>(bounds).map_err(redb)? {
            let (_, value) = row.map_err(redb)?;
            entries.push(encoding::get_entry(value.value())?);
            sum += value.value().len();
            if sum >= bytes {
                break;
            }
        }
        Ok(entries)
    }

    pub fn last_entry(&self) -> Result<Option<LogId>, DatabaseError> {
        let tx = self.redb.begin_read().map_err(redb)?;
        let table = tx.open_table(LOG).map_err(redb)?;
        let Some((_, value)) = table.last().map_err(redb)? else { return Ok(None) };
        Ok(Some(encoding::get_entry(value.value())?.log_id))
    }

    /// Shows every row of one moment to `each`, and says which moment that was. Writers go on meanwhile.
    pub fn rows<E: From<DatabaseError>>(
        &self,
        head: impl FnOnce(&Applied) -> Result<(), E>,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<Applied, E> {
        let tx = self.redb.begin_read().map_err(redb)?;
        let applied = applied_in(&tx)?;
        head(&applied)?;
        let table = tx.open_table(STATE).map_err(redb)?;
        for row in table.iter().map_err(redb)? {
            let (key, value) = row.map_err(redb)?;
            each(key.value(), value.value())?;
        }
        Ok(applied)
    }

    /// All rows, for the state in memory.
    pub fn load(&self) -> Result<(Vec<Row>, Applied), DatabaseError> {
        let mut rows = Vec::new();
        let applied = self.rows::<DatabaseError>(
            |_| Ok(()),
            |key, value| {
                rows.push(to_row(key, value)?);
                Ok(())
            },
        )?;
        Ok((rows, applied))
    }
}

/// Makes the tables of a new database and marks it; refuses one of another format.
fn check_format(tx: &redb::WriteTransaction, path: &Path) -> Result<(), DatabaseError> {
    let log = tx.open_table(LOG).map_err(self::redb)?;
    let state = tx.open_table(STATE).map_err(self::redb)?;
    let mut marks = tx.open_table(MARKS).map_err(self::redb)?;
    let mark = marks.get(FORMAT_MARK).map_err(redb)?.map(|v| v.value().to_vec());
    let used = || -> Result<bool, redb::StorageError> {
        Ok(!(log.is_empty()? && state.is_empty()? && marks.is_empty()?))
    };
    let found = match mark {
        Some(bytes) => bytes.try_into().map_or(u32::MAX, u32::from_be_bytes),
        None if used().map_err(self::redb)? => 1,
        None => {
            marks.insert(FORMAT_MARK, FORMAT.to_be_bytes().as_slice()).map_err(redb)?;
            FORMAT
        }
    };
    let path = path.display().to_string();
    if found == FORMAT { Ok(()) } else { Err(DatabaseError::Format { path, found }) }
}

fn applied_in(tx: &redb::ReadTransaction) -> Result<Applied, DatabaseError> {
    let table = tx.open_table(MARKS).map_err(redb)?;
    let get = |key| table.get(key).map_err(redb).map(|v| v.map(|v| v.value().to_vec()));
    Ok(Applied {
        last: get(APPLIED)?.map(|b| encoding::get_log_id(&b)).transpose()?,
        membership: get(MEMBERSHIP)?.map(|b| encoding::get_membership(&b)).transpose()?.unwrap_or_default(),
    })
}

/// A row as it lies in the database and in snapshots.
pub fn to_row(key: &[u8], value: &[u8]) -> Result<Row, DatabaseError> {
    let (&number, key) = key.split_first().ok_or(DatabaseError::UnknownTable(0))?;
    let table = Table::from_number(number).ok_or(DatabaseError::UnknownTable(number))?;
    Ok(Row { table, key: key.to_vec(), value: value.into() })
}

fn row_key(table: Table, key: &[u8]) -> Vec<u8> {
    [&[table as u8], key].concat()
}

fn write_loop(redb: &Database, queue: &mpsc::Receiver<Job>) {
    let mut stopped: Option<Arc<str>> = None;
    while let Ok(first) = queue.recv() {
        let mut jobs = vec![first];
        while jobs.len() < JOBS_PER_COMMIT {
            // Without anybody who waits the commit can wait too.
            let next =
                if jobs.iter().all(|j| j.done.is_none()) { queue.recv().ok() } else { queue.try_recv().ok() };
            let Some(next) = next else { break };
            jobs.push(next);
        }
        let (writes, waiting): (Vec<Write>, Vec<_>) = jobs.into_iter().map(|j| (j.write, j.done)).unzip();
        if stopped.is_none()
            && let Err(e) = commit(redb, writes)
        {
            stopped = Some(e.to_string().into());
        }
        for done in waiting.into_iter().flatten() {
            let result = stopped.clone().map_or(Ok(()), |e| Err(DatabaseError::Stopped(e)));
            let _ = done.send(result);
        }
    }
}

fn commit(redb: &Database, writes: Vec<Write>) -> Result<(), DatabaseError> {
    if writes.iter().all(|w| matches!(w, Write::Barrier)) {
        return Ok(());
    }
    let mut tx = redb.begin_write().map_err(self::redb)?;
    tx.set_durability(Durability::Immediate).map_err(self::redb)?;
    {
        let mut log = tx.open_table(LOG).map_err(self::redb)?;
        let mut marks = tx.open_table(MARKS).map_err(self::redb)?;
        let mut state = tx.open_table(STATE).map_err(self::redb)?;
        for write in writes {
            one(write, &mut log, &mut marks, &mut state)?;
        }
    }
    tx.commit().map_err(self::redb)
}

fn one(
    write: Write,
    log: &mut redb::Table<'_, u64, &[u8]>,
    marks: &mut redb::Table<'_, &str, &[u8]>,
    state: &mut redb::Table<'_, &[u8], &[u8]>,
) -> Result<(), DatabaseError> {
    match write {
        Write::Barrier => {}
        Write::Vote(vote) => {
            marks.insert(VOTE, encoding::put_vote(&vote).as_slice()).map_err(redb)?;
        }
        Write::Committed(Some(id)) => {
            marks.insert(COMMITTED, encoding::put_log_id(id).as_slice()).map_err(redb)?;
        }
        Write::Committed(None) => {
            marks.remove(COMMITTED).map_err(redb)?;
        }
        Write::Append(entries) => {
            for (index, bytes) in entries {
                log.insert(index, bytes.as_slice()).map_err(redb)?;
            }
        }
        Write::Truncate(from) => log.retain_in(from.., |_, _| false).map_err(redb)?,
        Write::Purge(id) => {
            log.retain_in(..=id.index, |_, _| false).map_err(redb)?;
            marks.insert(PURGED, encoding::put_log_id(id).as_slice()).map_err(redb)?;
        }
        Write::Apply { changes, applied } => {
            for change in changes {
                let key = row_key(change.table, &change.key);
                match change.value {
                    Some(value) => drop(state.insert(key.as_slice(), &*value).map_err(redb)?),
                    None => drop(state.remove(key.as_slice()).map_err(redb)?),
                }
            }
            put_applied(marks, &applied)?;
        }
        Write::Install { rows, applied } => {
            state.retain(|_, _| false).map_err(redb)?;
            for row in rows {
                state.insert(row_key(row.table, &row.key).as_slice(), &*row.value).map_err(redb)?;
            }
            put_applied(marks, &applied)?;
        }
    }
    Ok(())
}

fn put_applied(marks: &mut redb::Table<'_, &str, &[u8]>, applied: &Applied) -> Result<(), DatabaseError> {
    if let Some(last) = applied.last {
        marks.insert(APPLIED, encoding::put_log_id(last).as_slice()).map_err(redb)?;
    }
    marks.insert(MEMBERSHIP, encoding::put_membership(&applied.membership).as_slice()).map_err(redb)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_of_another_format_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        drop(Db::open(&path).unwrap());
        drop(Db::open(&path).expect("its own format"));
        let change = |mark: Option<u32>| {
            let raw = Database::create(&path).unwrap();
            let tx = raw.begin_write().unwrap();
            {
                let mut marks = tx.open_table(MARKS).unwrap();
                match mark {
                    Some(n) => drop(marks.insert(FORMAT_MARK, n.to_be_bytes().as_slice()).unwrap()),
                    None => drop(marks.remove(FORMAT_MARK).unwrap()),
                }
                marks.insert(VOTE, [1u8].as_slice()).unwrap();
            }
            tx.commit().unwrap();
        };
        for (mark, found) in [(Some(FORMAT + 1), FORMAT + 1), (None, 1)] {
            change(mark);
            let Err(e) = Db::open(&path) else { panic!("opened") };
            assert!(matches!(&e, DatabaseError::Format { found: f, .. } if *f == found), "{e}");
            assert!(e.to_string().contains(&path.display().to_string()), "{e}");
        }
    }
}
