//! Snapshots: between protobuf and `meta`.

use crate::random;
use api::v1;
use meta::AdminRequest;
use meta::admin::{SnapshotName, SnapshotOrder};
use meta::view::SnapshotView;
use std::collections::BTreeMap;
use tonic::Status;

pub fn name(name: Option<v1::SnapshotName>) -> Result<SnapshotName, Status> {
    let n = name.ok_or_else(|| Status::invalid_argument("a snapshot is named by its volume and its name"))?;
    Ok(SnapshotName { volume: n.volume, snapshot: n.snapshot })
}

pub fn labels(labels: Vec<v1::Label>) -> BTreeMap<String, String> {
    labels.into_iter().map(|l| (l.key, l.value)).collect()
}

pub fn create(r: v1::CreateSnapshotsRequest) -> Result<AdminRequest, Status> {
    let order = |n| Ok(SnapshotOrder { name: name(Some(n))?, id: random::u128().map_err(random::status)? });
    Ok(AdminRequest::SnapshotCreate {
        items: r.names.into_iter().map(order).collect::<Result<_, Status>>()?,
        labels: labels(r.labels),
        protect_until_ms: r.protect_until_ms,
    })
}

pub fn snapshot(v: SnapshotView) -> v1::Snapshot {
    v1::Snapshot {
        name: Some(v1::SnapshotName { volume: v.volume, snapshot: v.name }),
        id: v.id.to_be_bytes().to_vec(),
        branch: v.branch.0,
        generation: v.generation.0,
        size: v.size,
        sealed: v.sealed,
        created_ms: v.created_ms,
        group: v.group,
        labels: v.labels.into_iter().map(|(key, value)| v1::Label { key, value }).collect(),
        protect_until_ms: v.protect_until_ms,
        clones: v.clones,
        unconfirmed: v.unconfirmed,
    }
}
