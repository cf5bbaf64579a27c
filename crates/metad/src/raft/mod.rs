//! Raft: the port through which a command is proposed and comes back committed. openraft is known here and in `rpc`.

pub mod database;
mod encoding;
mod log_store;
pub mod network;
pub mod silence;
pub mod snapshot;
pub mod state_machine;
#[cfg(test)]
mod suite;
pub mod types;

pub use encoding::FORMAT;
pub use log_store::LogStore;

use openraft::{Config, ConfigError, SnapshotPolicy};
use std::sync::Arc;

/// Entries between two snapshots, and those kept behind one for followers that lag a little.
const SNAPSHOT_EVERY: u64 = 10_000;
const KEPT: u64 = 2_000;
const SNAPSHOT_TIMEOUT_MS: u64 = 60_000;

/// The election's timeout is random between `election_ms` and 1.8 times it; a leader counts as alive for the latter.
pub fn settings(heartbeat_ms: u64, election_ms: u64) -> Result<Arc<Config>, Box<ConfigError>> {
    let config = Config {
        cluster_name: "blockd".into(),
        heartbeat_interval: heartbeat_ms,
        election_timeout_min: election_ms,
        election_timeout_max: election_ms * 9 / 5,
        max_payload_entries: 300,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: KEPT,
        replication_lag_threshold: SNAPSHOT_EVERY + KEPT,
        purge_batch_size: 256,
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        ..Config::default()
    };
    Ok(Arc::new(config.validate().map_err(Box::new)?))
}
