//! What an operator asks of this node: the admin service on its socket, `/metrics` and `/healthz` beside it.

use super::member::Member;
use super::openings::{self, OpenError};
use super::{Status, ToShard, metrics, notices};
use crate::format;
use crate::state_dir::StateDir;
use api::v1::blockd_admin_server::{BlockdAdmin, BlockdAdminServer};
use api::v1::blockd_verify_server::{BlockdVerify, BlockdVerifyServer};
use api::v1::{
    AddDriveAnswer, AddDriveRequest, BlockdAttaching, BlockdDrive, BlockdPeer, BlockdSession, BlockdSessions,
    BlockdSessionsRequest, BlockdStatus, BlockdStatusRequest, ResyncProgress, SessionKind, SessionState,
    ShutdownAnswer, ShutdownRequest, VerificationRequest, VerificationState,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tonic::service::Routes;
use tonic::{Request, Response, Status as Refusal};

/// What does not change while the process lives.
pub struct Facts {
    pub name: String,
    pub data_address: String,
    pub nbd_socket: String,
    pub started: Instant,
    pub state: Arc<StateDir>,
}

pub struct Admin {
    pub member: Arc<Member>,
    pub facts: Arc<Facts>,
}

/// What the admin port shows, and the socket too: nothing in it changes anything.
pub fn pages(member: &Arc<Member>) -> Routes {
    let (m, h) = (member.clone(), member.clone());
    let pages = axum::Router::new()
        .route("/metrics", axum::routing::get(move || async move { measures(&m).await }))
        .route("/healthz", axum::routing::get(move || async move { health(&h).await }));
    Routes::from(pages)
}

/// All that is served on the admin socket: its file's permissions are the guard.
pub fn routes(member: &Arc<Member>, facts: &Arc<Facts>) -> Routes {
    let admin = || Admin { member: member.clone(), facts: facts.clone() };
    pages(member).add_service(BlockdAdminServer::new(admin())).add_service(BlockdVerifyServer::new(admin()))
}

type Page = (axum::http::StatusCode, String);

const SILENT: &str = "the shard does not answer";

async fn measures(member: &Member) -> Page {
    match member.shard_status().await {
        Some(s) => {
            let drives = notices::drives(member, &s);
            (axum::http::StatusCode::OK, metrics::page(&s, &drives, &member.seen()))
        }
        None => (axum::http::StatusCode::SERVICE_UNAVAILABLE, format!("{SILENT}\n")),
    }
}

/// 200 while the shard turns, all drives serve and nobody waits; else the reasons.
async fn health(member: &Member) -> Page {
    let notices = match member.shard_status().await {
        Some(s) => notices::all(member, &s),
        None => vec![SILENT.into()],
    };
    if notices.is_empty() {
        (axum::http::StatusCode::OK, "ok\n".into())
    } else {
        (axum::http::StatusCode::SERVICE_UNAVAILABLE, notices.join("\n") + "\n")
    }
}

fn millis(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn kind_of(kind: proto::control::SessionKind) -> SessionKind {
    match kind {
        proto::control::SessionKind::Guest => SessionKind::Guest,
        proto::control::SessionKind::Maintenance => SessionKind::Maintenance,
    }
}

impl Admin {
    async fn shard(&self) -> Result<Status, Refusal> {
        self.member.shard_status().await.ok_or_else(|| Refusal::deadline_exceeded(SILENT))
    }
}

#[tonic::async_trait]
impl BlockdAdmin for Admin {
    async fn status(&self, _: Request<BlockdStatusRequest>) -> Result<Response<BlockdStatus>, Refusal> {
        let (s, seen) = (self.shard().await?, self.member.seen());
        let drives = notices::drives(&self.member, &s);
        let drives = drives.iter().map(|d| {
            let told = seen.drives.iter().find(|t| t.drive.0 == d.drive);
            BlockdDrive {
                drive: d.drive,
                path: d.path.clone(),
                capacity: d.capacity,
                used: told.map_or(0, |t| t.used),
                state: d.state.into(),
                reason: d.reason.clone(),
                since_ms: millis(d.ago),
            }
        });
        let attaching = s.attaching.iter().map(|a| BlockdAttaching {
            volume: a.volume.clone(),
            kind: kind_of(a.kind).into(),
            since_ms: notices::ago(a.since).as_millis(),
            reason: a.reason.clone(),
            exports: u32::try_from(a.exports).unwrap_or(u32::MAX),
            requests: a.requests as u64,
        });
        let peers = seen.nodes.iter().filter(|n| n.node != self.member.node).map(|n| BlockdPeer {
            node: n.node.0,
            address: n.address.clone(),
            connected: seen.reaches.contains(&n.node),
        });
        let metad = self.member.metad.last_answer();
        Ok(Response::new(BlockdStatus {
            node: self.member.node.0,
            name: self.facts.name.clone(),
            cluster: self.member.cluster.0.to_be_bytes().to_vec(),
            process: self.member.process.0,
            data_address: self.facts.data_address.clone(),
            nbd_socket: self.facts.nbd_socket.clone(),
            version: crate::VERSION.into(),
            uptime_ms: millis(self.facts.started.elapsed()),
            drives: drives.collect(),
            peers: peers.collect(),
            metad_ago_ms: metad.as_ref().map_or(0, |(_, ago)| millis(*ago)),
            metad: metad.map(|(a, _)| a).unwrap_or_default(),
            notices: notices::all(&self.member, &s),
            attaching: attaching.collect(),
        }))
    }

    async fn add_drive(
        &self,
        request: Request<AddDriveRequest>,
    ) -> Result<Response<AddDriveAnswer>, Refusal> {
        let r = request.into_inner();
        let path = PathBuf::from(&r.path);
        if !path.is_absolute() {
            return Err(Refusal::invalid_argument("the path of a drive starts with /"));
        }
        let wish = r.format.then(|| format::Wish {
            tool: format::Tool::Blockctl,
            cluster: self.member.cluster,
            node: self.member.node,
            size: None,
            preallocate: false,
            force: !r.force.is_empty(),
        });
        let (member, state, force) = (self.member.clone(), self.facts.state.clone(), r.force);
        let added = tokio::task::spawn_blocking(move || {
            let refused = |e: OpenError| Refusal::failed_precondition(e.to_string());
            let answer = openings::add(&member, &path, wish.as_ref(), &force).map_err(refused)?;
            state.add_drive(&path).map_err(|e| Refusal::internal(e.to_string()))?;
            Ok::<_, Refusal>(answer)
        });
        let (drive, capacity) = added.await.map_err(|e| Refusal::internal(e.to_string()))??;
        Ok(Response::new(AddDriveAnswer { drive: drive.0, capacity }))
    }

    async fn sessions(&self, _: Request<BlockdSessionsRequest>) -> Result<Response<BlockdSessions>, Refusal> {
        let (s, seen) = (self.shard().await?, self.member.seen());
        let sessions = seen.sessions.iter().map(|x| {
            let export = s.exports.iter().find(|e| e.branch == Some(x.branch));
            BlockdSession {
                branch: x.branch.0,
                volume: export.map(|e| e.volume.clone()).unwrap_or_default(),
                epoch: x.epoch.0,
                kind: kind_of(x.kind).into(),
                state: match x.state {
                    proto::control::SessionState::Opening => SessionState::Opening,
                    proto::control::SessionState::Serving => SessionState::Serving,
                    proto::control::SessionState::Closing => SessionState::Closing,
                }
                .into(),
                clients: export.map_or(0, |e| u32::try_from(e.clients).unwrap_or(u32::MAX)),
                in_flight: export.map_or(0, |e| e.in_flight as u64),
                degraded_chunks: x.degraded_chunks,
                resync: Some(ResyncProgress {
                    left_bytes: x.resync_left,
                    moved_bytes: x.resync_moved,
                    rate: x.resync_rate,
                }),
                waiting: x.waiting.clone().unwrap_or_default(),
            }
        });
        Ok(Response::new(BlockdSessions { sessions: sessions.collect() }))
    }

    async fn shutdown(&self, request: Request<ShutdownRequest>) -> Result<Response<ShutdownAnswer>, Refusal> {
        tracing::warn!(reason = request.into_inner().reason, "told to stop");
        self.member.shard().send(ToShard::Stop);
        Ok(Response::new(ShutdownAnswer {}))
    }
}

#[tonic::async_trait]
impl BlockdVerify for Admin {
    async fn verification(
        &self,
        request: Request<VerificationRequest>,
    ) -> Result<Response<VerificationState>, Refusal> {
        let id = <[u8; 16]>::try_from(request.into_inner().request)
            .map_err(|_| Refusal::invalid_argument("a request id has 16 bytes"))?;
        let id = proto::RequestId(u128::from_be_bytes(id));
        let state = self.member.verification(id).await;
        Ok(Response::new(state.map_or_else(VerificationState::default, |s| VerificationState {
            known: true,
            finished: s.finished,
            checked_bytes: s.done,
            total_bytes: s.total,
            differing: s.differing,
            error: s.error.map(|e| e.to_string()).unwrap_or_default(),
        })))
    }
}
