//! Snapshots: between protobuf and `meta`.

use super::cluster::class;
use super::convert::request_id;
use crate::random;
use api::v1;
use meta::AdminRequest;
use meta::admin::{SnapshotName, SnapshotOrder};
use meta::view::SnapshotView;
use proto::NodeId;
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
    if !r.ids.is_empty() && r.ids.len() != r.names.len() {
        return Err(Status::invalid_argument("an id for each snapshot, or none"));
    }
    let mut given = r.ids.into_iter();
    let mut order = |n| {
        let id = match given.next() {
            Some(bytes) => <[u8; 16]>::try_from(bytes)
                .map(u128::from_be_bytes)
                .map_err(|_| Status::invalid_argument("the id of a snapshot has 16 bytes"))?,
            None => random::u128().map_err(random::status)?,
        };
        Ok(SnapshotOrder { name: name(Some(n))?, id })
    };
    let items = r.names.into_iter().map(&mut order).collect::<Result<_, Status>>()?;
    Ok(AdminRequest::SnapshotCreate { items, labels: labels(r.labels), protect_until_ms: r.protect_until_ms })
}

/// Of the snapshot that an order needs first: an order that is given again finds it by this.
pub fn order_id(request: &[u8]) -> Result<u128, Status> {
    match request_id(request)? {
        Some(id) => Ok(id.0),
        None => random::u128().map_err(random::status),
    }
}

pub fn clone(r: v1::CloneVolumeRequest) -> Result<AdminRequest, Status> {
    let asked = v1::CreateVolumeRequest {
        copies: r.copies,
        min_in_sync: r.min_in_sync,
        write_through: r.write_through,
        fail_when_degraded: r.fail_when_degraded,
        ..v1::CreateVolumeRequest::default()
    };
    let class = if r.copies == 0 { None } else { Some(class(&asked)?) };
    Ok(AdminRequest::VolumeClone {
        id: order_id(&r.request)?,
        source: r.source,
        snapshot: (!r.snapshot.is_empty()).then_some(r.snapshot),
        name: r.name,
        size: (r.size != 0).then_some(r.size),
        class,
        prefer: (r.near != 0).then_some(NodeId(r.near)),
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
        policy: v.policy.unwrap_or_default(),
        unconfirmed: v.unconfirmed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_imported_snapshot_keeps_its_id_and_a_wrong_one_is_refused() {
        let asked = |ids: Vec<Vec<u8>>| {
            let name = v1::SnapshotName { volume: "v".into(), snapshot: "s".into() };
            create(v1::CreateSnapshotsRequest { names: vec![name], ids, ..Default::default() })
        };
        let id = |r| match r {
            Ok(AdminRequest::SnapshotCreate { items, .. }) => items[0].id,
            other => panic!("{other:?}"),
        };
        assert_eq!(id(asked(vec![7u128.to_be_bytes().to_vec()])), 7);
        assert_ne!(id(asked(vec![])), id(asked(vec![])));
        assert!(asked(vec![vec![1; 15]]).is_err());
        assert!(asked(vec![vec![1; 16]; 2]).is_err());
    }
}
