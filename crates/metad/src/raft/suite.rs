//! openraft's own storage suite on our log and state.

use super::database::Db;
use super::log_store::LogStore;
use super::snapshot::Snapshots;
use super::state_machine::{MachineCall, StateMachine};
use super::types::{Reply, StorageError, Types};
use meta::{Command, MetaState};
use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;
use tokio::sync::mpsc;

struct InFolder;

/// Owns a state and nothing else.
async fn own(mut state: MetaState, mut calls: mpsc::Receiver<MachineCall>) {
    while let Some(call) = calls.recv().await {
        match call {
            MachineCall::Apply { entries, done } => {
                let outcomes = entries.into_iter().map(|e| match e.order {
                    None => Ok((Reply(None), state.pass(e.index))),
                    Some(order) => {
                        let outcome = state.apply(e.index, &Command::decode(&order.0)?);
                        Ok((Reply(Some(outcome.answer)), outcome.changes))
                    }
                });
                let _ = done.send(outcomes.collect());
            }
            MachineCall::Install { state: new, done } => {
                state = *new;
                let _ = done.send(());
            }
        }
    }
}

impl StoreBuilder<Types, LogStore, StateMachine, TempDir> for InFolder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("db")).unwrap();
        let snapshots = Snapshots::open(&dir.path().join("snapshots")).unwrap();
        let (calls, machine) = mpsc::channel(4);
        tokio::spawn(own(MetaState::new(), machine));
        Ok((dir, LogStore::new(db.clone()), StateMachine::new(db, snapshots, calls)))
    }
}

#[test]
fn openrafts_storage_suite_passes() {
    Suite::test_all(InFolder).unwrap();
}
