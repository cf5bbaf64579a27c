//! `blockd:changed:SNAPSHOT`: which generation it means for an export.
//!
//! A generation can be compared with a view of the same branch alone, and with a later one: everything else is said
//! not to be there.

use super::Since;
use proto::control::{MetaAnswer, MetaRefusal, MetaRequest};
use proto::{BranchId, Generation};
use std::future::Future;

/// What the export shows: a branch, up to a generation.
type Shown = (BranchId, Generation);

/// Asks metad about the export, then about each snapshot; `None`: it does not answer.
pub async fn since<F>(export: &str, snapshots: &[String], ask: impl Fn(MetaRequest) -> F) -> Option<Since>
where
    F: Future<Output = MetaAnswer>,
{
    let named = |volume: &str, snapshot: &str| MetaRequest::Snapshot {
        volume: volume.to_owned(),
        snapshot: snapshot.to_owned(),
    };
    let (volume, request) = match export.split_once('@') {
        Some((volume, snapshot)) => (volume, named(volume, snapshot)),
        None => (export, MetaRequest::Volumes { name: Some(export.to_owned()) }),
    };
    let nothing = Since { branch: BranchId(0), found: vec![None; snapshots.len()] };
    let Some((branch, upto)) = shown(ask(request).await)? else { return Some(nothing) };
    let mut found = Vec::with_capacity(snapshots.len());
    for s in snapshots {
        let of = shown(ask(named(volume, s)).await)?;
        found.push(of.filter(|(b, g)| *b == branch && *g < upto).map(|(_, g)| g));
    }
    Some(Since { branch, found })
}

/// `None`: no answer. Within: there is no such thing.
fn shown(answer: MetaAnswer) -> Option<Option<Shown>> {
    match answer {
        MetaAnswer::Snapshot(s) => Some(s.levels.first().map(|l| (l.branch, l.generation))),
        // The head is later than all snapshots.
        MetaAnswer::Volumes(v) => Some(v.first().map(|v| (v.branch, Generation(u32::MAX)))),
        MetaAnswer::Refused(MetaRefusal::NoSuchVolume | MetaRefusal::NoSuchSnapshot) => Some(None),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::control::{SnapshotFound, VolumeSummary};
    use proto::{Geometry, Level, VolumeId};

    fn geometry() -> Geometry {
        Geometry { size: 1 << 30, chunk_shift: 28 }
    }

    /// Volume v is at branch 2; its snapshots: old of branch 1, a and b of branch 2.
    async fn metad(request: MetaRequest) -> MetaAnswer {
        let snapshot = |branch, generation| {
            let level = Level { branch: BranchId(branch), generation: Generation(generation), size: 1 << 30 };
            MetaAnswer::Snapshot(Box::new(SnapshotFound {
                volume: VolumeId(1),
                geometry: geometry(),
                levels: vec![level],
            }))
        };
        match request {
            MetaRequest::Volumes { name } if name.as_deref() == Some("v") => {
                MetaAnswer::Volumes(vec![VolumeSummary {
                    volume: VolumeId(1),
                    branch: BranchId(2),
                    name: "v".into(),
                    geometry: geometry(),
                    ready: true,
                }])
            }
            MetaRequest::Volumes { .. } => MetaAnswer::Volumes(vec![]),
            MetaRequest::Snapshot { volume, snapshot: s } if volume == "v" => match s.as_str() {
                "old" => snapshot(1, 3),
                "a" => snapshot(2, 4),
                "b" => snapshot(2, 6),
                "silent" => MetaAnswer::Unavailable,
                _ => MetaAnswer::Refused(MetaRefusal::NoSuchSnapshot),
            },
            _ => MetaAnswer::Refused(MetaRefusal::NoSuchVolume),
        }
    }

    async fn found(export: &str, snapshots: &[&str]) -> Option<Vec<Option<u32>>> {
        let snapshots: Vec<String> = snapshots.iter().map(|s| (*s).to_owned()).collect();
        let since = since(export, &snapshots, metad).await?;
        Some(since.found.iter().map(|g| g.map(|g| g.0)).collect())
    }

    #[tokio::test]
    async fn only_older_snapshots_of_the_same_branch_are_offered() {
        let all = ["old", "a", "b", "none"];
        assert_eq!(found("v", &all).await, Some(vec![None, Some(4), Some(6), None]));
        assert_eq!(found("v@b", &all).await, Some(vec![None, Some(4), None, None]));
        assert_eq!(found("v@a", &all).await, Some(vec![None; 4]));
        assert_eq!(found("w", &all).await, Some(vec![None; 4]));
        assert_eq!(found("v@gone", &["a"]).await, Some(vec![None]));
        assert_eq!(found("v", &["a", "silent"]).await, None);
    }
}
