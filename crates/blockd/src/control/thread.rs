//! The control thread: a tokio runtime of one thread, apart from the data path.

use super::admin::{self, Facts};
use super::member::Member;
use super::{ToControl, ToShard};
use crate::config::Config;
use crate::logging::Reload;
use crate::{notify, sys};
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// From the first SIGTERM to the end of the process, whatever hangs.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// What the control thread works with.
pub struct Setup {
    pub member: Arc<Member>,
    pub facts: Arc<Facts>,
    pub shard_asks: mpsc::UnboundedReceiver<ToControl>,
    pub admin_socket: UnixListener,
    pub admin_port: Option<TcpListener>,
    pub log: Reload,
    pub config: PathBuf,
}

/// A runtime for the control thread (and for joining a cluster before it runs).
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Runs until the process ends.
pub fn run(runtime: &tokio::runtime::Runtime, setup: Setup) -> io::Result<()> {
    runtime.block_on(async move {
        let Setup { member, facts, mut shard_asks, admin_socket, admin_port, log, config } = setup;
        tokio::spawn(member.clone().keep_registered());
        tokio::spawn(member.clone().keep_watching());
        admin_socket.set_nonblocking(true)?;
        let socket = tokio_stream::wrappers::UnixListenerStream::new(tokio::net::UnixListener::from_std(
            admin_socket,
        )?);
        let server = || Server::builder().accept_http1(true);
        serve(server().add_routes(admin::routes(&member, &facts)).serve_with_incoming(socket));
        if let Some(port) = admin_port {
            port.set_nonblocking(true)?;
            let port = TcpIncoming::from(tokio::net::TcpListener::from_std(port)?).with_nodelay(Some(true));
            // Whoever reaches a port may look, not act.
            serve(server().add_routes(admin::pages(&member)).serve_with_incoming(port));
        }
        tokio::spawn(signals(member.clone(), log, config));
        while let Some(message) = shard_asks.recv().await {
            tokio::spawn(member.clone().handle(message));
        }
        Ok(())
    })
}

fn serve(server: impl Future<Output = Result<(), tonic::transport::Error>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the admin service ended");
        }
    });
}

/// SIGTERM and SIGINT stop, a second one stops now; SIGHUP reads the configuration again.
async fn signals(member: Arc<Member>, log: Reload, config: PathBuf) {
    let listen = |kind| signal(kind).expect("signals can be listened to");
    let mut term = listen(SignalKind::terminate());
    let mut int = listen(SignalKind::interrupt());
    let mut hup = listen(SignalKind::hangup());
    let mut stopping = false;
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = hup.recv() => {
                reload(&member, &log, &config);
                continue;
            }
        }
        if stopping {
            tracing::warn!("told to stop twice: now");
            sys::exit_now(1);
        }
        stopping = true;
        tracing::info!("stopping: drain, flush, return leases");
        let _ = notify::notify("STOPPING=1");
        member.shard().send(ToShard::Stop);
        tokio::spawn(async {
            tokio::time::sleep(STOP_WITHIN).await;
            tracing::error!("not stopped within 10 s: the next process recovers");
            sys::exit_now(1);
        });
    }
}

/// What may change while running: the log's filter and the addresses of metad.
fn reload(member: &Member, log: &Reload, path: &Path) {
    match Config::load(path) {
        Ok(config) => {
            log.set(&config.log);
            member.metad.reload();
            tracing::info!(log = config.log, "configuration read again");
        }
        Err(error) => tracing::error!(%error, "configuration not read again"),
    }
}
