//! openraft's types, as metad fills them in.

use serde::{Deserialize, Serialize};
use std::fmt;

pub type MetadId = u64;
pub type LogId = openraft::LogId<MetadId>;
pub type Vote = openraft::Vote<MetadId>;
pub type Entry = openraft::Entry<Types>;
pub type Membership = openraft::Membership<MetadId, openraft::BasicNode>;
pub type StoredMembership = openraft::StoredMembership<MetadId, openraft::BasicNode>;
pub type SnapshotMeta = openraft::SnapshotMeta<MetadId, openraft::BasicNode>;
pub type StorageError = openraft::StorageError<MetadId>;
pub type StorageIOError = openraft::StorageIOError<MetadId>;
pub type Raft = openraft::Raft<Types>;
pub type Metrics = openraft::RaftMetrics<MetadId, openraft::BasicNode>;

/// An encoded `meta::Command`. Raft does not look into it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order(pub Vec<u8>);
impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Order({} bytes)", self.0.len())
    }
}

/// What an entry came to; `None` for entries without a command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply(pub Option<meta::Answer>);

openraft::declare_raft_types!(
    pub Types:
        D = Order,
        R = Reply,
        NodeId = MetadId,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = super::snapshot::SnapshotFile,
        AsyncRuntime = openraft::TokioRuntime,
);
