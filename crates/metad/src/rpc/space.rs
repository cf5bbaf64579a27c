//! Space figures: between protobuf and `meta`.

use api::v1;
use meta::view::{SpaceView, ViewSpace};

pub fn space(v: SpaceView) -> v1::VolumeSpace {
    v1::VolumeSpace {
        name: v.name,
        size: v.size,
        finished: v.finished,
        waiting: v.waiting,
        again: v.again,
        chunks: v.chunks,
        chunks_done: v.chunks_done,
        chunks_missing: v.chunks_missing,
        replicas: v.replicas,
        replicas_missing: v.replicas_missing,
        seen: v.head.seen,
        exclusive: v.head.exclusive,
        snapshots: v.views.into_iter().map(snapshot).collect(),
        taken: v.taken,
        unseen: v.unseen,
        taken_all: v.taken_all,
        unseen_all: v.unseen_all,
        parent: v.parent.unwrap_or_default(),
    }
}

fn snapshot(v: ViewSpace) -> v1::SnapshotSpace {
    v1::SnapshotSpace {
        name: v.name.unwrap_or_default(),
        branch: v.branch.0,
        generation: v.generation.0,
        seen: v.seen,
        exclusive: v.exclusive,
        frees: v.frees,
        clones: v.clones,
        own: v.own,
    }
}
