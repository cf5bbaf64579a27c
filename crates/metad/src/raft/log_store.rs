//! openraft's log and vote on our database.

use super::database::{DatabaseError, Db, Write};
use super::encoding;
use super::types::{Entry, LogId, StorageError, StorageIOError, Types, Vote};
use openraft::AnyError;
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;

/// Entries of one message to a follower, bytes.
const BATCH_BYTES: usize = 4 << 20;

#[derive(Clone)]
pub struct LogStore {
    db: Db,
}

impl LogStore {
    pub fn new(db: Db) -> LogStore {
        LogStore { db }
    }
}

fn reading(e: DatabaseError) -> StorageError {
    StorageIOError::read_logs(AnyError::new(&e)).into()
}
fn writing(e: DatabaseError) -> StorageError {
    StorageIOError::write_logs(AnyError::new(&e)).into()
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.db.log(range, usize::MAX).map_err(reading)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.db.log(start..end, BATCH_BYTES).map_err(reading)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let last_purged_log_id = self.db.purged().map_err(reading)?;
        let last_log_id = self.db.last_entry().map_err(reading)?.or(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let write = self.db.write(Write::Vote(*vote)).await;
        write.map_err(|e| StorageIOError::write_vote(AnyError::new(&e)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.db.vote().map_err(|e| StorageIOError::read_vote(AnyError::new(&e)).into())
    }

    /// Only a hint: what is applied is on disk before it is answered. So it rides with the next commit.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.db.note(Write::Committed(committed));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        self.db.write(Write::Barrier).await.map_err(reading)?;
        self.db.committed().map_err(reading)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let encoded = entries.into_iter().map(|e| (e.log_id.index, encoding::put_entry(&e))).collect();
        match self.db.write(Write::Append(encoded)).await {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(e) => {
                callback.log_io_completed(Err(io::Error::other(e.to_string())));
                Err(writing(e))
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.db.write(Write::Truncate(log_id.index)).await.map_err(writing)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.db.write(Write::Purge(log_id)).await.map_err(writing)
    }
}
