//! What an operator asks of this node: the admin service on its socket, `/metrics` and `/healthz` beside it.

use super::member::Member;
use super::{Status, ToShard, metrics, thread};
use crate::format;
use crate::state_dir::StateDir;
use api::v1::blockd_admin_server::{BlockdAdmin, BlockdAdminServer};
use api::v1::blockd_verify_server::{BlockdVerify, BlockdVerifyServer};
use api::v1::{
    AddDriveAnswer, AddDriveRequest, BlockdDrive, BlockdPeer, BlockdSession, BlockdSessions,
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

/// All that is served on the admin socket and port.
pub fn routes(member: &Arc<Member>, facts: &Arc<Facts>) -> Routes {
    let (m, h) = (member.clone(), member.clone());
    let pages = axum::Router::new()
        .route(
            "/metrics",
            axum::routing::get(move || async move {
                m.shard_status().await.map_or_else(
                    || {
                        (
                            axum::http::StatusCode::SERVICE_UNAVAILABLE,
                            "the shard does not answer\n".to_string(),
                        )
                    },
                    |s| (axum::http::StatusCode::OK, metrics::page(&s, &m.seen())),
                )
            }),
        )
        .route("/healthz", axum::routing::get(move || async move { health(&h).await }));
    let admin = || Admin { member: member.clone(), facts: facts.clone() };
    Routes::from(pages)
        .add_service(BlockdAdminServer::new(admin()))
        .add_service(BlockdVerifyServer::new(admin()))
}

/// 200 while the shard turns and no drive has failed; else the reasons.
async fn health(member: &Member) -> (axum::http::StatusCode, String) {
    let notices = match member.shard_status().await {
        Some(s) => notices(member, &s),
        None => vec!["the shard does not answer".into()],
    };
    if notices.is_empty() {
        (axum::http::StatusCode::OK, "ok\n".into())
    } else {
        (axum::http::StatusCode::SERVICE_UNAVAILABLE, notices.join("\n") + "\n")
    }
}

/// Whatever is not well.
fn notices(member: &Member, s: &Status) -> Vec<String> {
    let failed =
        s.drives.iter().filter(|d| d.state == "failed").map(|d| format!("drive {} has failed", d.path));
    let waiting = member.seen();
    let waits = waiting
        .sessions
        .iter()
        .filter_map(|x| x.waiting.as_ref().map(|w| format!("I/O of branch {} waits: {w}", x.branch.0)));
    let silent = match member.metad.last_answer() {
        None => Some("no metad has answered yet".to_string()),
        Some((_, ago)) if ago.as_secs() >= 5 => {
            Some(format!("no metad has answered for {} s", ago.as_secs()))
        }
        Some(_) => None,
    };
    failed.chain(waits).chain(silent).chain(waiting.refused.clone()).collect()
}

impl Admin {
    async fn shard(&self) -> Result<Status, Refusal> {
        self.member
            .shard_status()
            .await
            .ok_or_else(|| Refusal::deadline_exceeded("the shard does not answer"))
    }
}

#[tonic::async_trait]
impl BlockdAdmin for Admin {
    async fn status(&self, _: Request<BlockdStatusRequest>) -> Result<Response<BlockdStatus>, Refusal> {
        let (s, seen) = (self.shard().await?, self.member.seen());
        let drives = s.drives.iter().map(|d| {
            let told = seen.drives.iter().find(|t| t.drive.0 == d.drive);
            BlockdDrive {
                drive: d.drive,
                path: d.path.clone(),
                capacity: d.capacity,
                used: told.map_or(0, |t| t.used),
                state: d.state.into(),
            }
        });
        let peers = seen.nodes.iter().filter(|n| n.node != self.member.node).map(|n| BlockdPeer {
            node: n.node.0,
            address: n.address.clone(),
            connected: seen.reaches.contains(&n.node),
        });
        let metad = self.member.metad.last_answer();
        let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
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
            notices: notices(&self.member, &s),
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
        if r.format {
            let wish = format::Wish {
                cluster: self.member.cluster,
                node: self.member.node,
                size: None,
                preallocate: false,
                force: !r.force.is_empty(),
            };
            let at = path.clone();
            let done = tokio::task::spawn_blocking(move || format::format(&at, &wish)).await;
            let done = done.map_err(|e| Refusal::internal(e.to_string()))?;
            let done = done.map_err(|e| Refusal::failed_precondition(e.to_string()))?;
            tracing::warn!(path = r.path, drive = done.drive.0, reason = r.force, "drive formatted");
        }
        let (member, state) = (self.member.clone(), self.facts.state.clone());
        let added = tokio::task::spawn_blocking(move || {
            let answer = thread::open_drive(&member, &path)
                .map_err(|e| Refusal::failed_precondition(e.to_string()))?;
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
                kind: match x.kind {
                    proto::control::SessionKind::Guest => SessionKind::Guest,
                    proto::control::SessionKind::Maintenance => SessionKind::Maintenance,
                }
                .into(),
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
