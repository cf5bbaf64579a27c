//! This node as a member of the cluster: registers it and its drives with metad, and passes metad's watch on.

use super::metad::{CallError, Metad};
use super::openings::Openings;
use super::since::since;
use super::{ToControl, ToShard};
use crate::mailbox::Sender;
use api::v1::{RegisterDrive, RegisterRequest, WatchRequest};
use proto::control::{DriveStatus, MetaAnswer, MetaRequest, NodeSummary, SessionStatus, WatchUpdate};
use proto::{ClusterId, NodeId, ProcessNumber, RequestId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// After a refusal that will not change by itself.
const AGAIN_REFUSED: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(100);

/// What the node said and heard last, for the admin service.
#[derive(Clone, Default)]
pub struct Seen {
    pub drives: Vec<DriveStatus>,
    pub sessions: Vec<SessionStatus>,
    pub reaches: Vec<NodeId>,
    pub nodes: Vec<NodeSummary>,
    /// Why metad does not take this node, if it does not.
    pub refused: Option<String>,
}

pub struct Member {
    pub metad: Metad,
    pub node: NodeId,
    pub cluster: ClusterId,
    pub process: ProcessNumber,
    pub request: RegisterRequest,
    pub openings: Openings,
    shard: Sender<ToShard>,
    /// Drives to be registered, by id.
    drives: Mutex<BTreeMap<u64, RegisterDrive>>,
    /// A drive was added.
    more: Notify,
    /// How many drives metad has been told of, or none yet.
    registered: watch::Sender<Option<usize>>,
    seen: Mutex<Seen>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Member {
    #[must_use]
    pub fn new(metad: Metad, request: RegisterRequest, shard: Sender<ToShard>) -> Member {
        let cluster = <[u8; 16]>::try_from(request.cluster.as_slice()).expect("a member knows its cluster");
        Member {
            metad,
            node: NodeId(request.node),
            cluster: ClusterId(u128::from_be_bytes(cluster)),
            process: ProcessNumber(request.process),
            request,
            openings: Openings::default(),
            shard,
            drives: Mutex::default(),
            more: Notify::new(),
            registered: watch::Sender::new(None),
            seen: Mutex::default(),
        }
    }

    #[must_use]
    pub fn seen(&self) -> Seen {
        locked(&self.seen).clone()
    }

    /// A drive was opened by this process: metad is to know it before the node speaks of it.
    pub fn add_drive(&self, drive: RegisterDrive) {
        locked(&self.drives).insert(drive.drive, drive);
        self.more.notify_one();
    }

    fn is_registered(&self) -> bool {
        *self.registered.borrow() == Some(locked(&self.drives).len())
    }

    /// Registers, again and again until metad takes it; then whenever a drive comes.
    pub async fn keep_registered(self: Arc<Self>) {
        loop {
            if self.is_registered() {
                self.more.notified().await;
            } else {
                let wait = self.register().await;
                tokio::time::sleep(wait).await;
            }
        }
    }

    async fn register(&self) -> Duration {
        let drives: Vec<RegisterDrive> = locked(&self.drives).values().cloned().collect();
        let count = drives.len();
        match self.metad.register(&RegisterRequest { drives, ..self.request.clone() }).await {
            Ok(_) => {
                tracing::info!(drives = count, "registered with metad");
                locked(&self.seen).refused = None;
                self.registered.send_replace(Some(count));
                Duration::ZERO
            }
            Err(CallError::Unavailable) => AGAIN,
            Err(error @ CallError::Refused(_)) => {
                tracing::error!(%error, "metad does not take this node");
                locked(&self.seen).refused = Some(error.to_string());
                AGAIN_REFUSED
            }
        }
    }

    /// One request of the node's.
    pub async fn call(&self, request: &MetaRequest) -> MetaAnswer {
        if let MetaRequest::Heartbeat { drives, sessions, reaches, .. } = request {
            let mut seen = locked(&self.seen);
            (seen.drives, seen.sessions, seen.reaches) = (drives.clone(), sessions.clone(), reaches.clone());
        }
        if !self.is_registered() {
            let mut registered = self.registered.subscribe();
            let done = registered.wait_for(|_| self.is_registered());
            if !matches!(tokio::time::timeout(Duration::from_secs(1), done).await, Ok(Ok(_))) {
                return MetaAnswer::Unavailable;
            }
        }
        self.metad.call(request).await
    }

    /// Follows the leader's watch for ever.
    pub async fn keep_watching(self: Arc<Self>) {
        // Not before metad has taken this node: of another version it would not be understood.
        let mut registered = self.registered.subscribe();
        let _ = registered.wait_for(Option::is_some).await;
        loop {
            let request = WatchRequest { node: self.node.0, process: self.process.0 };
            match self.metad.watch(request).await {
                Ok(mut stream) => loop {
                    match stream.message().await {
                        Ok(Some(event)) => self.pass_on(&event.update),
                        Ok(None) => break,
                        Err(status) => {
                            tracing::debug!(status = status.message(), "the watch broke");
                            break;
                        }
                    }
                },
                Err(error) => tracing::debug!(%error, "no watch"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn pass_on(&self, bytes: &[u8]) {
        match postcard::from_bytes::<WatchUpdate>(bytes) {
            Ok(update) => {
                if let WatchUpdate::Nodes(nodes) = &update {
                    locked(&self.seen).nodes.clone_from(nodes);
                }
                self.shard.send(ToShard::Watch(update));
            }
            Err(error) => tracing::error!(%error, "a watch's update that this version does not understand"),
        }
    }

    /// A message of the shard's, answered into its mailbox.
    pub async fn handle(self: Arc<Self>, message: ToControl) {
        match message {
            ToControl::Meta { token, request } => {
                let answer = self.call(&request).await;
                self.shard.send(ToShard::Meta { token, answer });
            }
            ToControl::Volumes { question, name } => {
                let snapshot = name.as_deref().and_then(|n| n.split_once('@'));
                let request = match snapshot {
                    Some((volume, snapshot)) => {
                        MetaRequest::Snapshot { volume: volume.to_owned(), snapshot: snapshot.to_owned() }
                    }
                    None => MetaRequest::Volumes { name },
                };
                let answer = self.call(&request).await;
                self.shard.send(ToShard::Volumes { question, answer });
            }
            ToControl::Since { connection, export, snapshots } => {
                let answer = since(&export, &snapshots, async |request| self.call(&request).await).await;
                self.shard.send(ToShard::Since { connection, export, answer });
            }
            ToControl::Resolve { link, address } => {
                let found = tokio::net::lookup_host(&address).await.map(|mut a| a.next());
                if let Err(error) = &found {
                    tracing::warn!(address, %error, "a peer's name is not found");
                }
                self.shard.send(ToShard::Resolved { link, address: found.ok().flatten() });
            }
        }
    }

    /// What the shard tells of itself.
    pub async fn shard_status(&self) -> Option<super::Status> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        // The receiver is gone only if the asker has hung up.
        self.shard.send(ToShard::Status(Box::new(move |s| drop(tx.send(s)))));
        tokio::time::timeout(Duration::from_secs(2), rx).await.ok()?.ok()
    }

    /// How far a `volume verify` is; `None`: not known here, or no answer.
    pub async fn verification(&self, request: RequestId) -> Option<node::VerifyState> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        // The receiver is gone only if the asker has hung up.
        let reply = Box::new(move |s| drop(tx.send(s)));
        self.shard.send(ToShard::Verification { request, reply });
        tokio::time::timeout(Duration::from_secs(2), rx).await.ok()?.ok()?
    }

    pub fn shard(&self) -> &Sender<ToShard> {
        &self.shard
    }
}
