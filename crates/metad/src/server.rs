//! Puts a metad together, serves it, and ends it.

use crate::config::Config;
use crate::core::Core;
use crate::metrics;
use crate::raft::database::Db;
use crate::raft::network::{ClusterCell, Network};
use crate::raft::silence::Silence;
use crate::raft::snapshot::Snapshots;
use crate::raft::state_machine::StateMachine;
use crate::raft::types::Raft;
use crate::raft::{LogStore, settings};
use crate::rpc::cluster::ClusterRpc;
use crate::rpc::lead::Lead;
use crate::rpc::members::Members;
use crate::rpc::node::NodeRpc;
use crate::rpc::raft::RaftRpc;
use crate::state_dir::StateDir;
use anyhow::{Context, anyhow};
use api::v1::cluster_service_server::ClusterServiceServer;
use api::v1::node_service_server::NodeServiceServer;
use api::v1::raft_service_server::RaftServiceServer;
use meta::MetaState;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// How long the port taken last time may still be taken by the process before.
const BIND_WAIT: Duration = Duration::from_secs(10);
/// Open requests get so long to end after SIGTERM.
const DRAIN: Duration = Duration::from_secs(3);
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A metad that runs.
pub struct Metad {
    pub address: String,
    pub raft: Raft,
    pub lead: Lead,
    listener: TcpListener,
    metrics: Option<TcpListener>,
    cluster: ClusterRpc,
    node: NodeRpc,
    peers: RaftRpc,
    // The last to go.
    _state_dir: StateDir,
}

impl Metad {
    /// Opens the state and joins the group, if there is one.
    pub async fn start(config: &Config) -> anyhow::Result<Metad> {
        let dir = StateDir::open(&config.state_dir, config.id)?;
        let listener = bind(&dir, "metad.addr", config.address).await?;
        let bound = listener.local_addr()?;
        let address = config.advertise.clone().unwrap_or_else(|| bound.to_string());
        let metrics = match config.metrics_address {
            Some(a) => Some(bind(&dir, "metrics.addr", a).await?),
            None => None,
        };
        let snapshots = Snapshots::open(&dir.path().join("snapshots"))?;
        let path = dir.path().join("metad.redb");
        let (db, state) = tokio::task::spawn_blocking(move || {
            let db = Db::open(&path)?;
            let (rows, _) = db.load()?;
            let state = MetaState::load(rows).context("the state")?;
            Ok::<_, anyhow::Error>((db, state))
        })
        .await??;

        let cluster = ClusterCell::default();
        let silence = Silence::default();
        let handle = Arc::new(OnceLock::new());
        let (calls, machine) = mpsc::channel(16);
        let core = Core::start(state, machine, handle.clone(), cluster.clone());
        let raft = Raft::new(
            config.id,
            settings(config.heartbeat_ms, config.election_ms)?,
            Network::new(config.id, cluster.clone(), silence.clone()),
            LogStore::new(db.clone()),
            StateMachine::new(db, snapshots.clone(), calls),
        )
        .await
        .context("Raft does not start")?;
        handle.set(raft.clone()).map_err(|_| anyhow!("set once"))?;
        let lead = Lead::new(config.id, raft.clone(), Duration::from_millis(3 * config.election_ms));
        tokio::spawn(lead.clone().follow(core.clone()));
        let members = Members {
            id: config.id,
            address: address.clone(),
            raft: raft.clone(),
            lead: lead.clone(),
            cluster: cluster.clone(),
            silence,
            patience: Duration::from_millis(3 * config.election_ms),
        };
        Ok(Metad {
            address,
            listener,
            metrics,
            cluster: ClusterRpc { core: core.clone(), lead: lead.clone(), members },
            node: NodeRpc { core, lead: lead.clone() },
            peers: RaftRpc { id: config.id, cluster, raft: raft.clone(), snapshots },
            raft,
            lead,
            _state_dir: dir,
        })
    }

    /// Serves until `stop` is ready, or Raft has stopped by itself (which is an error).
    pub async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
        if let Some(listener) = self.metrics {
            tokio::spawn(metrics::serve(listener, self.lead.clone()));
        }
        let (drained, drain) = tokio::sync::oneshot::channel();
        let stop = async move {
            stop.await;
            let _ = drained.send(());
        };
        let limit = api::MESSAGE_MAX;
        // The server's own setting does not reach sockets that come from a listener of ours. Without it the kernel holds
        // an answer's last packet back for 40 ms.
        let incoming = TcpIncoming::from(self.listener).with_nodelay(Some(true));
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .add_service(
                RaftServiceServer::new(self.peers)
                    .max_decoding_message_size(limit)
                    .max_encoding_message_size(limit),
            )
            .add_service(
                NodeServiceServer::new(self.node)
                    .max_decoding_message_size(limit)
                    .max_encoding_message_size(limit),
            )
            .add_service(
                ClusterServiceServer::new(self.cluster)
                    .max_decoding_message_size(limit)
                    .max_encoding_message_size(limit),
            )
            .serve_with_incoming_shutdown(incoming, stop);
        let late = async move {
            // Watches never end by themselves.
            match drain.await {
                Ok(()) => tokio::time::sleep(DRAIN).await,
                Err(_) => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            result = server => result.context("gRPC"),
            () = late => Ok(()),
            e = fatal(&self.raft) => Err(e),
        };
        self.raft.shutdown().await.context("Raft does not stop")?;
        ended
    }
}

/// Ends with the reason when Raft has stopped.
async fn fatal(raft: &Raft) -> anyhow::Error {
    let mut metrics = raft.metrics();
    loop {
        if let Err(e) = &metrics.borrow_and_update().running_state {
            return anyhow!("Raft has stopped: {e}");
        }
        if metrics.changed().await.is_err() {
            return anyhow!("Raft has stopped");
        }
    }
}

/// Listens where it did last time, and writes down where that is.
async fn bind(dir: &StateDir, file: &str, wanted: SocketAddr) -> anyhow::Result<TcpListener> {
    let address = dir.address(file, wanted)?;
    let until = Instant::now() + BIND_WAIT;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(e) => return Err(e).with_context(|| format!("cannot listen on {address}")),
        }
    };
    dir.write(file, &format!("{}\n", listener.local_addr()?))?;
    Ok(listener)
}
