//! openraft's state machine: hands committed entries to the machine that owns the state, and commits the changed rows
//! with the applied index.

use super::database::{Applied, Db, Write};
use super::snapshot::{self, SnapshotFile, Snapshots};
use super::types::{
    Entry, LogId, Order, Reply, SnapshotMeta, StorageError, StorageIOError, StoredMembership, Types,
};
use meta::{KeyChange, MetaState};
use openraft::AnyError;
use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot};
use proto::LogIndex;
use tokio::sync::{mpsc, oneshot};

/// A committed entry: its index, and its command if it has one.
pub struct Committed {
    pub index: LogIndex,
    pub order: Option<Order>,
}

/// What each entry came to, with the rows it changed.
pub type Outcomes = Result<Vec<(Reply, Vec<KeyChange>)>, meta::DecodeError>;

/// To the one who owns the `MetaState`.
pub enum MachineCall {
    /// Answers, in order, what each entry came to; an error: a command that this metad does not know.
    Apply { entries: Vec<Committed>, done: oneshot::Sender<Outcomes> },
    /// The state as of a snapshot that is committed to the database.
    Install { state: Box<MetaState>, done: oneshot::Sender<()> },
}

/// The index as the state counts it: 1 and up (openraft's first entry has 0).
pub fn to_index(id: LogId) -> LogIndex {
    LogIndex(id.index + 1)
}

pub struct StateMachine {
    db: Db,
    snapshots: Snapshots,
    machine: mpsc::Sender<MachineCall>,
}

impl StateMachine {
    pub fn new(db: Db, snapshots: Snapshots, machine: mpsc::Sender<MachineCall>) -> StateMachine {
        StateMachine { db, snapshots, machine }
    }
}

/// The machine ended: the process is about to.
#[derive(Debug, thiserror::Error)]
#[error("the state's owner is gone")]
struct Gone;

fn reading(e: impl std::error::Error + Send + Sync + 'static) -> StorageError {
    StorageIOError::read_state_machine(AnyError::new(&e)).into()
}
fn writing(e: impl std::error::Error + Send + Sync + 'static) -> StorageError {
    StorageIOError::write_state_machine(AnyError::new(&e)).into()
}
fn copying(e: impl std::error::Error + Send + Sync + 'static) -> StorageError {
    StorageIOError::write_snapshot(None, AnyError::new(&e)).into()
}

/// Runs what waits for the disk beside the runtime's own threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StorageError> {
    tokio::task::spawn_blocking(work).await.map_err(copying)
}

/// Rows that cannot be loaded must not replace those that can.
#[derive(Debug, thiserror::Error)]
enum InstallError {
    #[error(transparent)]
    Snapshot(#[from] snapshot::SnapshotError),
    #[error(transparent)]
    Rows(#[from] meta::rows::LoadError),
}

fn load(file: &SnapshotFile) -> Result<(Vec<meta::Row>, Box<MetaState>), InstallError> {
    let (_, rows) = snapshot::read(file)?;
    let state = MetaState::load(rows.iter().cloned())?;
    Ok((rows, Box::new(state)))
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let applied = self.db.applied().map_err(reading)?;
        Ok((applied.last, applied.membership))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut applied = self.db.applied().map_err(reading)?;
        let mut committed = Vec::new();
        for entry in entries {
            applied.last = Some(entry.log_id);
            let order = match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(order) => Some(order),
                EntryPayload::Membership(m) => {
                    applied.membership = StoredMembership::new(Some(entry.log_id), m);
                    None
                }
            };
            committed.push(Committed { index: to_index(entry.log_id), order });
        }
        let (done, wait) = oneshot::channel();
        self.machine
            .send(MachineCall::Apply { entries: committed, done })
            .await
            .map_err(|_| writing(Gone))?;
        let outcomes = wait.await.map_err(|_| writing(Gone))?.map_err(writing)?;
        let (replies, changes): (Vec<Reply>, Vec<Vec<KeyChange>>) = outcomes.into_iter().unzip();
        let changes = changes.into_iter().flatten().collect();
        self.db.write(Write::Apply { changes, applied }).await.map_err(writing)?;
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { db: self.db.clone(), snapshots: self.snapshots.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StorageError> {
        Ok(Box::new(self.snapshots.begin().map_err(copying)?))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<SnapshotFile>,
    ) -> Result<(), StorageError> {
        let file = (*snapshot).clone();
        let (rows, state) = blocking(move || load(&file)).await?.map_err(copying)?;
        let applied = Applied { last: meta.last_log_id, membership: meta.last_membership.clone() };
        self.db.write(Write::Install { rows, applied }).await.map_err(copying)?;
        self.snapshots.keep(&snapshot).map_err(copying)?;
        let (done, wait) = oneshot::channel();
        self.machine.send(MachineCall::Install { state, done }).await.map_err(|_| writing(Gone))?;
        wait.await.map_err(|_| writing(Gone))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        let current = self.snapshots.current().map_err(reading)?;
        Ok(current.map(|(meta, file)| Snapshot { meta, snapshot: Box::new(file) }))
    }
}

pub struct Builder {
    db: Db,
    snapshots: Snapshots,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let (db, snapshots) = (self.db.clone(), self.snapshots.clone());
        let (meta, file) = blocking(move || snapshots.build(&db)).await?.map_err(copying)?;
        Ok(Snapshot { meta, snapshot: Box::new(file) })
    }
}
