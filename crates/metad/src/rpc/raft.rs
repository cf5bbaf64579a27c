//! Peers' calls: checks the envelope, then hands the bytes to Raft.

use crate::raft::network::{self, ClusterCell, SnapshotCall, cluster_bytes};
use crate::raft::snapshot::{SnapshotFile, Snapshots};
use crate::raft::types::{MetadId, Raft};
use api::v1::raft_service_server::RaftService;
use api::v1::snapshot_part::Part;
use api::v1::{RaftAnswer, RaftCall, RaftEnvelope, SnapshotHead, SnapshotPart};
use std::io::Write;
use tonic::{Request, Response, Status, Streaming};

pub struct RaftRpc {
    pub id: MetadId,
    pub cluster: ClusterCell,
    pub raft: Raft,
    pub snapshots: Snapshots,
}

impl RaftRpc {
    /// A message for another metad, or of another cluster, must not be taken for ours: a vote or an acknowledgement
    /// would count for the wrong one.
    fn check(&self, envelope: Option<&RaftEnvelope>) -> Result<(), Status> {
        let envelope = envelope.ok_or_else(|| Status::invalid_argument("no envelope"))?;
        if envelope.to != self.id {
            let text = format!("this is metad {}, not {}", self.id, envelope.to);
            return Err(Status::failed_precondition(text));
        }
        let ours = cluster_bytes(&self.cluster);
        if !ours.is_empty() && !envelope.cluster.is_empty() && ours != envelope.cluster {
            return Err(Status::failed_precondition("this metad belongs to another cluster"));
        }
        Ok(())
    }

    async fn receive(
        &self,
        head: SnapshotHead,
        mut parts: Streaming<SnapshotPart>,
    ) -> Result<Vec<u8>, Status> {
        let call: SnapshotCall = network::decode(&head.payload)?;
        let file = self.snapshots.begin().map_err(internal)?;
        let result = match fill(&file, &mut parts).await {
            Ok(()) => Ok(network::install(&self.raft, call, file.clone()).await),
            Err(e) => Err(e),
        };
        self.snapshots.discard(&file);
        result
    }
}

fn internal(e: impl std::fmt::Display) -> Status {
    Status::internal(e.to_string())
}

/// Writes the chunks to the file; an error unless the tail is there and right.
async fn fill(file: &SnapshotFile, parts: &mut Streaming<SnapshotPart>) -> Result<(), Status> {
    let (mut length, mut crc) = (0_u64, 0);
    while let Some(part) = parts.message().await? {
        match part.part {
            Some(Part::Chunk(chunk)) => {
                length += chunk.len() as u64;
                crc = crc32c::crc32c_append(crc, &chunk);
                (&*file.file).write_all(&chunk).map_err(internal)?;
            }
            Some(Part::Tail(tail)) if tail.length == length && tail.crc32c == crc => return Ok(()),
            Some(Part::Tail(_)) => return Err(Status::data_loss("the snapshot arrived damaged")),
            Some(Part::Head(_)) | None => {
                return Err(Status::invalid_argument("a chunk or the tail was due"));
            }
        }
    }
    Err(Status::data_loss("the snapshot ended before its tail"))
}

#[tonic::async_trait]
impl RaftService for RaftRpc {
    async fn append(&self, request: Request<RaftCall>) -> Result<Response<RaftAnswer>, Status> {
        let call = request.into_inner();
        self.check(call.envelope.as_ref())?;
        let payload = network::append(&self.raft, &call.payload).await?;
        Ok(Response::new(RaftAnswer { payload }))
    }

    async fn vote(&self, request: Request<RaftCall>) -> Result<Response<RaftAnswer>, Status> {
        let call = request.into_inner();
        self.check(call.envelope.as_ref())?;
        let payload = network::vote(&self.raft, &call.payload).await?;
        Ok(Response::new(RaftAnswer { payload }))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<RaftAnswer>, Status> {
        let mut parts = request.into_inner();
        let Some(SnapshotPart { part: Some(Part::Head(head)) }) = parts.message().await? else {
            return Err(Status::invalid_argument("the head was due"));
        };
        self.check(head.envelope.as_ref())?;
        let payload = self.receive(head, parts).await?;
        Ok(Response::new(RaftAnswer { payload }))
    }
}
