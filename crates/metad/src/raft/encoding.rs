//! How openraft's values lie in our database and snapshots: in an encoding of ours, so that another version of openraft
//! opens what this one wrote. A format byte, then postcard.

use super::types::{Entry, LogId, Membership, MetadId, Order, SnapshotMeta, StoredMembership, Vote};
use openraft::{BasicNode, CommittedLeaderId, EntryPayload};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Version of everything in this file.
pub const FORMAT: u8 = 1;

/// The database or a snapshot holds what this metad cannot read: it must stop.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("{what} of format {format}; this metad knows {FORMAT}: upgrade it")]
    Format { what: &'static str, format: u8 },
    #[error("{what} cannot be read: {source}")]
    Malformed { what: &'static str, source: postcard::Error },
    #[error("{what} is empty")]
    Empty { what: &'static str },
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct DiskLogId {
    term: u64,
    leader: MetadId,
    index: u64,
}

#[derive(Serialize, Deserialize)]
struct DiskVote {
    term: u64,
    candidate: MetadId,
    committed: bool,
}

#[derive(Serialize, Deserialize)]
struct DiskMembership {
    configs: Vec<BTreeSet<MetadId>>,
    nodes: BTreeMap<MetadId, String>,
}

#[derive(Serialize, Deserialize)]
enum DiskPayload {
    Blank,
    Order(Vec<u8>),
    Membership(DiskMembership),
}

#[derive(Serialize, Deserialize)]
struct DiskEntry {
    id: DiskLogId,
    payload: DiskPayload,
}

#[derive(Serialize, Deserialize)]
struct DiskStored {
    at: Option<DiskLogId>,
    membership: DiskMembership,
}

#[derive(Serialize, Deserialize)]
struct DiskMeta {
    last: Option<DiskLogId>,
    membership: DiskStored,
    id: String,
}

fn put<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![FORMAT]).expect("writing to a vector does not fail")
}

fn get<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, DecodeError> {
    let (&format, body) = bytes.split_first().ok_or(DecodeError::Empty { what })?;
    if format != FORMAT {
        return Err(DecodeError::Format { what, format });
    }
    postcard::from_bytes(body).map_err(|source| DecodeError::Malformed { what, source })
}

impl From<LogId> for DiskLogId {
    fn from(l: LogId) -> DiskLogId {
        DiskLogId { term: l.leader_id.term, leader: l.leader_id.node_id, index: l.index }
    }
}
impl From<DiskLogId> for LogId {
    fn from(d: DiskLogId) -> LogId {
        LogId::new(CommittedLeaderId::new(d.term, d.leader), d.index)
    }
}
impl From<&Membership> for DiskMembership {
    fn from(m: &Membership) -> DiskMembership {
        DiskMembership {
            configs: m.get_joint_config().clone(),
            nodes: m.nodes().map(|(id, n)| (*id, n.addr.clone())).collect(),
        }
    }
}
impl From<DiskMembership> for Membership {
    fn from(d: DiskMembership) -> Membership {
        let nodes: BTreeMap<MetadId, BasicNode> =
            d.nodes.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
        Membership::new(d.configs, nodes)
    }
}
impl From<&StoredMembership> for DiskStored {
    fn from(s: &StoredMembership) -> DiskStored {
        DiskStored { at: s.log_id().map(DiskLogId::from), membership: s.membership().into() }
    }
}
impl From<DiskStored> for StoredMembership {
    fn from(d: DiskStored) -> StoredMembership {
        StoredMembership::new(d.at.map(LogId::from), d.membership.into())
    }
}

pub fn put_entry(entry: &Entry) -> Vec<u8> {
    let payload = match &entry.payload {
        EntryPayload::Blank => DiskPayload::Blank,
        EntryPayload::Normal(order) => DiskPayload::Order(order.0.clone()),
        EntryPayload::Membership(m) => DiskPayload::Membership(m.into()),
    };
    put(&DiskEntry { id: entry.log_id.into(), payload })
}

pub fn get_entry(bytes: &[u8]) -> Result<Entry, DecodeError> {
    let disk: DiskEntry = get("log entry", bytes)?;
    let payload = match disk.payload {
        DiskPayload::Blank => EntryPayload::Blank,
        DiskPayload::Order(bytes) => EntryPayload::Normal(Order(bytes)),
        DiskPayload::Membership(m) => EntryPayload::Membership(m.into()),
    };
    Ok(Entry { log_id: disk.id.into(), payload })
}

pub fn put_log_id(id: LogId) -> Vec<u8> {
    put(&DiskLogId::from(id))
}

pub fn get_log_id(bytes: &[u8]) -> Result<LogId, DecodeError> {
    get::<DiskLogId>("log id", bytes).map(LogId::from)
}

pub fn put_vote(vote: &Vote) -> Vec<u8> {
    put(&DiskVote { term: vote.leader_id.term, candidate: vote.leader_id.node_id, committed: vote.committed })
}

pub fn get_vote(bytes: &[u8]) -> Result<Vote, DecodeError> {
    let d: DiskVote = get("vote", bytes)?;
    Ok(if d.committed { Vote::new_committed(d.term, d.candidate) } else { Vote::new(d.term, d.candidate) })
}

pub fn put_membership(m: &StoredMembership) -> Vec<u8> {
    put(&DiskStored::from(m))
}

pub fn get_membership(bytes: &[u8]) -> Result<StoredMembership, DecodeError> {
    get::<DiskStored>("membership", bytes).map(StoredMembership::from)
}

pub fn put_snapshot_meta(m: &SnapshotMeta) -> Vec<u8> {
    put(&DiskMeta {
        last: m.last_log_id.map(DiskLogId::from),
        membership: (&m.last_membership).into(),
        id: m.snapshot_id.clone(),
    })
}

pub fn get_snapshot_meta(bytes: &[u8]) -> Result<SnapshotMeta, DecodeError> {
    let d: DiskMeta = get("snapshot head", bytes)?;
    Ok(SnapshotMeta {
        last_log_id: d.last.map(LogId::from),
        last_membership: d.membership.into(),
        snapshot_id: d.id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_votes_and_memberships_come_back() {
        let id = LogId::new(CommittedLeaderId::new(3, 2), 77);
        let nodes = BTreeMap::from([
            (1, BasicNode::new("a:1")),
            (2, BasicNode::new("b:2")),
            (3, BasicNode::new("c:3")),
        ]);
        let joint = Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])], nodes);
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Order(vec![1, 2, 3])),
            EntryPayload::Membership(joint.clone()),
        ] {
            let entry = Entry { log_id: id, payload };
            assert_eq!(get_entry(&put_entry(&entry)).unwrap(), entry);
        }
        for vote in [Vote::new(4, 1), Vote::new_committed(5, 3)] {
            assert_eq!(get_vote(&put_vote(&vote)).unwrap(), vote);
        }
        let stored = StoredMembership::new(Some(id), joint);
        assert_eq!(get_membership(&put_membership(&stored)).unwrap(), stored);
        let meta = SnapshotMeta { last_log_id: Some(id), last_membership: stored, snapshot_id: "s".into() };
        assert_eq!(get_snapshot_meta(&put_snapshot_meta(&meta)).unwrap(), meta);
    }

    #[test]
    fn another_format_is_named_and_not_guessed() {
        let mut bytes = put_vote(&Vote::new(1, 1));
        bytes[0] = 9;
        assert_eq!(get_vote(&bytes), Err(DecodeError::Format { what: "vote", format: 9 }));
        assert_eq!(get_log_id(&[]), Err(DecodeError::Empty { what: "log id" }));
        assert!(matches!(get_entry(&[FORMAT, 1]), Err(DecodeError::Malformed { .. })));
    }
}
