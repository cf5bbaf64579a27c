//! The state as rows: what the edge commits to its database together with the applied index.

use crate::chunks::PAGE_CHUNKS;
use crate::model::PolicyId;
use proto::{BranchId, ChunkIndex, DriveId, Generation, JobId, NodeId, RequestId, VolumeId};
use std::sync::Arc;

/// Tables of the state. The numbers are on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Table {
    Head = 1,
    Settings = 2,
    Nodes = 3,
    Drives = 4,
    Volumes = 5,
    Branches = 6,
    /// Configurations, in pages of `PAGE_CHUNKS` chunks.
    Chunks = 7,
    /// Replicas to be erased.
    Garbage = 8,
    /// First answers of requests.
    Kept = 9,
    Events = 10,
    Snapshots = 14,
    /// Keep-lists that drives have not confirmed yet.
    Owed = 15,
    Jobs = 17,
    Policies = 16,
    /// Which are attached to which volumes.
    PolicyUses = 19,
    Quotas = 20,
    /// Deleted volumes that rest.
    Trash = 18,
}
impl Table {
    pub const ALL: [Table; 17] = [
        Table::Head,
        Table::Settings,
        Table::Nodes,
        Table::Drives,
        Table::Volumes,
        Table::Branches,
        Table::Chunks,
        Table::Garbage,
        Table::Kept,
        Table::Events,
        Table::Snapshots,
        Table::Owed,
        Table::Jobs,
        Table::Trash,
        Table::Policies,
        Table::PolicyUses,
        Table::Quotas,
    ];
    #[must_use]
    pub fn from_number(n: u8) -> Option<Table> {
        Table::ALL.into_iter().find(|t| *t as u8 == n)
    }
}

/// One row. Keys sort as their ids do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    pub table: Table,
    pub key: Vec<u8>,
    pub value: Arc<[u8]>,
}

/// A row that was written, or removed (`value` is `None`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyChange {
    pub table: Table,
    pub key: Vec<u8>,
    pub value: Option<Arc<[u8]>>,
}

/// The rows could not be read: the database is damaged or newer than this metad, which must stop.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LoadError {
    #[error("row of table {table:?} cannot be read (key {key:02x?})")]
    Row { table: Table, key: Vec<u8> },
    #[error("rows contradict each other: {0}")]
    Torn(&'static str),
}

/// Names one row while a command is applied.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Key {
    Head,
    Settings,
    Node(NodeId),
    Drive(DriveId),
    Volume(VolumeId),
    Branch(BranchId),
    Chunks(BranchId, u32),
    Garbage(DriveId, BranchId, u32),
    Kept(RequestId),
    Event(u64),
    Snapshot(BranchId, Generation),
    Owed(DriveId, BranchId),
    Job(JobId),
    Trash(VolumeId),
    Policy(PolicyId),
    PolicyUse(VolumeId, PolicyId),
    Quota(VolumeId),
}

impl Key {
    pub(crate) fn table(self) -> Table {
        match self {
            Key::Head => Table::Head,
            Key::Settings => Table::Settings,
            Key::Node(_) => Table::Nodes,
            Key::Drive(_) => Table::Drives,
            Key::Volume(_) => Table::Volumes,
            Key::Branch(_) => Table::Branches,
            Key::Chunks(..) => Table::Chunks,
            Key::Garbage(..) => Table::Garbage,
            Key::Kept(_) => Table::Kept,
            Key::Event(_) => Table::Events,
            Key::Snapshot(..) => Table::Snapshots,
            Key::Owed(..) => Table::Owed,
            Key::Job(_) => Table::Jobs,
            Key::Trash(_) => Table::Trash,
            Key::Policy(_) => Table::Policies,
            Key::PolicyUse(..) => Table::PolicyUses,
            Key::Quota(_) => Table::Quotas,
        }
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        match self {
            Key::Head | Key::Settings => vec![0],
            Key::Node(n) => n.0.to_be_bytes().to_vec(),
            Key::Drive(d) => d.0.to_be_bytes().to_vec(),
            Key::Volume(v) | Key::Trash(v) | Key::Quota(v) => v.0.to_be_bytes().to_vec(),
            Key::Branch(b) => b.0.to_be_bytes().to_vec(),
            Key::Chunks(b, page) => [&b.0.to_be_bytes()[..], &page.to_be_bytes()].concat(),
            Key::Garbage(d, b, page) => {
                [&d.0.to_be_bytes()[..], &b.0.to_be_bytes(), &page.to_be_bytes()].concat()
            }
            Key::Kept(r) => r.0.to_be_bytes().to_vec(),
            Key::Event(e) => e.to_be_bytes().to_vec(),
            Key::Snapshot(b, g) => [&b.0.to_be_bytes()[..], &g.0.to_be_bytes()].concat(),
            Key::Policy(p) => p.0.to_be_bytes().to_vec(),
            Key::PolicyUse(v, p) => [v.0.to_be_bytes(), p.0.to_be_bytes()].concat(),
            Key::Owed(d, b) => [d.0.to_be_bytes(), b.0.to_be_bytes()].concat(),
            Key::Job(j) => j.0.to_be_bytes().to_vec(),
        }
    }

    pub(crate) fn parse(table: Table, key: &[u8]) -> Option<Key> {
        Some(match table {
            Table::Head => Key::Head,
            Table::Settings => Key::Settings,
            Table::Nodes => Key::Node(NodeId(be32(key)?)),
            Table::Drives => Key::Drive(DriveId(be64(key)?)),
            Table::Volumes => Key::Volume(VolumeId(be64(key)?)),
            Table::Branches => Key::Branch(BranchId(be64(key)?)),
            Table::Chunks => Key::Chunks(BranchId(be64(key.get(..8)?)?), be32(key.get(8..)?)?),
            Table::Garbage => Key::Garbage(
                DriveId(be64(key.get(..8)?)?),
                BranchId(be64(key.get(8..16)?)?),
                be32(key.get(16..)?)?,
            ),
            Table::Kept => Key::Kept(RequestId(u128::from_be_bytes(key.try_into().ok()?))),
            Table::Events => Key::Event(be64(key)?),
            Table::Snapshots => {
                Key::Snapshot(BranchId(be64(key.get(..8)?)?), Generation(be32(key.get(8..)?)?))
            }
            Table::Trash => Key::Trash(VolumeId(be64(key)?)),
            Table::Quotas => Key::Quota(VolumeId(be64(key)?)),
            Table::Policies => Key::Policy(PolicyId(be64(key)?)),
            Table::PolicyUses => {
                Key::PolicyUse(VolumeId(be64(key.get(..8)?)?), PolicyId(be64(key.get(8..)?)?))
            }
            Table::Owed => Key::Owed(DriveId(be64(key.get(..8)?)?), BranchId(be64(key.get(8..)?)?)),
            Table::Jobs => Key::Job(JobId(be64(key)?)),
        })
    }
}

/// The page that a chunk lies in.
pub(crate) fn page_of(chunk: ChunkIndex) -> u32 {
    chunk.0 / PAGE_CHUNKS
}

fn be32(b: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(b.try_into().ok()?))
}
fn be64(b: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(b.try_into().ok()?))
}
