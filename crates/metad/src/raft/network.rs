//! openraft's network on gRPC: one HTTP/2 channel per peer, opaque payloads in an envelope that names sender, receiver
//! and cluster.

use super::silence::Silence;
use super::snapshot::SnapshotFile;
use super::types::{MetadId, Raft, SnapshotMeta, StorageIOError, Types, Vote};
use api::v1::raft_service_client::RaftServiceClient;
use api::v1::snapshot_part::Part;
use api::v1::{RaftCall, RaftEnvelope, SnapshotHead, SnapshotPart, SnapshotTail};
use openraft::AnyError;
use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, RemoteError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, Snapshot};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Between two tries at a peer that cannot be reached.
const BACKOFF: Duration = Duration::from_millis(200);
const CHUNK: usize = 1 << 20;

/// The cluster's id, as soon as there is one; shared with those who learn it.
pub type ClusterCell = std::sync::Arc<std::sync::OnceLock<proto::ClusterId>>;

pub fn cluster_bytes(cell: &ClusterCell) -> Vec<u8> {
    cell.get().map_or_else(Vec::new, |c| c.0.to_be_bytes().to_vec())
}

/// A lazy channel to `host:port`.
pub fn channel(address: &str) -> Result<Channel, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect_lazy())
}

pub struct Network {
    id: MetadId,
    cluster: ClusterCell,
    silence: Silence,
}
impl Network {
    pub fn new(id: MetadId, cluster: ClusterCell, silence: Silence) -> Network {
        Network { id, cluster, silence }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: MetadId, node: &BasicNode) -> Peer {
        let client = channel(&node.addr).map(|c| {
            RaftServiceClient::new(c)
                .max_decoding_message_size(api::MESSAGE_MAX)
                .max_encoding_message_size(api::MESSAGE_MAX)
        });
        if let Err(e) = &client {
            tracing::error!(metad = target, address = node.addr, error = %e, "not an address");
        }
        Peer {
            from: self.id,
            to: target,
            cluster: self.cluster.clone(),
            client: client.ok(),
            silence: self.silence.clone(),
        }
    }
}

/// One peer.
pub struct Peer {
    from: MetadId,
    to: MetadId,
    cluster: ClusterCell,
    /// None: its address cannot be one.
    client: Option<RaftServiceClient<Channel>>,
    silence: Silence,
}

/// What a call without an answer comes to.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("metad {0} has an impossible address")]
    Address(MetadId),
    #[error("metad {0} cannot be reached: {1}")]
    Unreachable(MetadId, Box<Status>),
    #[error("metad {0}: {1}")]
    Refused(MetadId, Box<Status>),
    #[error("metad {0} sent an answer that cannot be read: {1}")]
    Malformed(MetadId, postcard::Error),
    #[error("no answer of metad {0} in time")]
    Late(MetadId),
}
impl CallError {
    /// A peer that cannot be reached is tried less often.
    fn unreachable(&self) -> bool {
        !matches!(self, CallError::Malformed(..))
    }
}
impl<E: std::error::Error> From<CallError> for RPCError<MetadId, BasicNode, E> {
    fn from(e: CallError) -> Self {
        if e.unreachable() {
            RPCError::Unreachable(Unreachable::new(&e))
        } else {
            RPCError::Network(NetworkError::new(&e))
        }
    }
}
impl From<CallError> for StreamingError<Types, Fatal<MetadId>> {
    fn from(e: CallError) -> Self {
        StreamingError::Unreachable(Unreachable::new(&e))
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("writing to a vector does not fail")
}

impl Peer {
    fn envelope(&self) -> RaftEnvelope {
        RaftEnvelope { to: self.to, from: self.from, cluster: cluster_bytes(&self.cluster) }
    }

    fn call(&self, payload: Vec<u8>, time: Duration) -> tonic::Request<RaftCall> {
        let mut call = tonic::Request::new(RaftCall { envelope: Some(self.envelope()), payload });
        call.set_timeout(time);
        call
    }

    fn client(&self) -> Result<RaftServiceClient<Channel>, CallError> {
        self.client.clone().ok_or(CallError::Address(self.to))
    }

    /// The answer, out of its bytes; what the peer's Raft refused stays an error of its own.
    fn answer<T: DeserializeOwned, E>(
        &self,
        result: Result<tonic::Response<api::v1::RaftAnswer>, Status>,
    ) -> Result<Result<T, E>, CallError>
    where
        E: DeserializeOwned,
    {
        let bytes = result.map_err(|s| match s.code() {
            Code::FailedPrecondition | Code::InvalidArgument => CallError::Refused(self.to, Box::new(s)),
            _ => CallError::Unreachable(self.to, Box::new(s)),
        })?;
        postcard::from_bytes(&bytes.into_inner().payload).map_err(|e| CallError::Malformed(self.to, e))
    }
}

type RpcResult<T> = Result<T, RPCError<MetadId, BasicNode, RaftError<MetadId>>>;

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<MetadId>> {
        let call = self.call(encode(&rpc), option.hard_ttl());
        self.silence.asked(self.to, Instant::now());
        let result = self.client()?.append(call).await;
        let answer = self.answer::<_, RaftError<MetadId>>(result)?;
        self.silence.answered(self.to);
        answer.map_err(|e| RPCError::RemoteError(RemoteError::new(self.to, e)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<MetadId>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<MetadId>> {
        let call = self.call(encode(&rpc), option.hard_ttl());
        let result = self.client()?.vote(call).await;
        self.answer::<_, RaftError<MetadId>>(result)?
            .map_err(|e| RPCError::RemoteError(RemoteError::new(self.to, e)))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<MetadId>, StreamingError<Types, Fatal<MetadId>>> {
        let (parts, stream) = mpsc::channel(4);
        let head = SnapshotHead {
            envelope: Some(self.envelope()),
            payload: encode(&SnapshotCall { vote, meta: snapshot.meta }),
        };
        let reader = tokio::task::spawn_blocking(move || send_parts(head, &snapshot.snapshot, &parts));
        let mut client = self.client()?;
        let sending = client.snapshot(ReceiverStream::new(stream));
        let result = tokio::select! {
            result = tokio::time::timeout(option.hard_ttl(), sending) => result,
            closed = cancel => return Err(closed.into()),
        };
        if let Ok(Err(e)) = reader.await {
            return Err(StorageIOError::read_snapshot(None, AnyError::new(&e)).into_streaming());
        }
        let result = result.map_err(|_| CallError::Late(self.to))?;
        let answer = self.answer::<_, Fatal<MetadId>>(result)?;
        self.silence.answered(self.to);
        answer.map_err(|e| StreamingError::RemoteError(RemoteError::new(self.to, e)))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

trait IntoStreaming {
    fn into_streaming(self) -> StreamingError<Types, Fatal<MetadId>>;
}
impl IntoStreaming for StorageIOError {
    fn into_streaming(self) -> StreamingError<Types, Fatal<MetadId>> {
        StreamingError::StorageError(self.into())
    }
}

/// Head of a snapshot's stream.
#[derive(Serialize, Deserialize)]
pub struct SnapshotCall {
    pub vote: Vote,
    pub meta: SnapshotMeta,
}

/// Reads the file and puts it into the stream. A receiver that is gone is no error of ours.
fn send_parts(
    head: SnapshotHead,
    snapshot: &SnapshotFile,
    parts: &mpsc::Sender<SnapshotPart>,
) -> io::Result<()> {
    let put = |part| parts.blocking_send(SnapshotPart { part: Some(part) }).is_ok();
    if !put(Part::Head(head)) {
        return Ok(());
    }
    let (mut at, mut crc) = (0_u64, 0);
    loop {
        let mut chunk = vec![0; CHUNK];
        let n = snapshot.file.read_at(&mut chunk, at)?;
        if n == 0 {
            put(Part::Tail(SnapshotTail { length: at, crc32c: crc }));
            return Ok(());
        }
        chunk.truncate(n);
        crc = crc32c::crc32c_append(crc, &chunk);
        at += n as u64;
        if !put(Part::Chunk(chunk)) {
            return Ok(());
        }
    }
}

/// What this metad answers its peers with: openraft's own results, encoded.
pub async fn append(raft: &Raft, payload: &[u8]) -> Result<Vec<u8>, Status> {
    let result = raft.append_entries(decode(payload)?).await;
    Ok(encode(&result))
}

pub async fn vote(raft: &Raft, payload: &[u8]) -> Result<Vec<u8>, Status> {
    let result = raft.vote(decode(payload)?).await;
    Ok(encode(&result))
}

pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Status> {
    postcard::from_bytes(payload)
        .map_err(|e| Status::invalid_argument(format!("malformed Raft message: {e}")))
}

pub async fn install(raft: &Raft, call: SnapshotCall, file: SnapshotFile) -> Vec<u8> {
    let snapshot = Snapshot { meta: call.meta, snapshot: Box::new(file) };
    encode(&raft.install_full_snapshot(call.vote, snapshot).await)
}
