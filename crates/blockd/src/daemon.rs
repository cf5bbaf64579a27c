//! The daemon from its start to its end: what is opened in which order, and what is told to whom.

use crate::config::{Config, show_cluster};
use crate::control::ToShard;
use crate::control::admin::Facts;
use crate::control::member::Member;
use crate::control::metad::{CallError, Metad};
use crate::control::openings;
use crate::control::thread::{self, Setup};
use crate::core::Core;
use crate::export::{Limits, door};
use crate::logging::Reload;
use crate::mailbox::{Mailbox, Sender};
use crate::ring::Ring;
use crate::shard::{End, Shard, Visitor};
use crate::state_dir::{Identity, StateDir, boot_id};
use crate::{notify, sys};
use anyhow::{Context, bail};
use api::v1::RegisterRequest;
use node::NodeParams;
use proto::{ClusterId, NodeId};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A joining node says so often that it still waits.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// The port for peers: metad is told of it, so it is bound before anything else.
struct DataDoor {
    listener: TcpListener,
    address: SocketAddr,
}

/// The other listening sockets, bound once this node is in a cluster: whoever connects earlier is refused at once
/// instead of waiting for nobody knows what.
struct Doors {
    nbd: UnixListener,
    nbd_port: Option<TcpListener>,
    admin: UnixListener,
    admin_port: Option<TcpListener>,
}

/// Runs the node until it is told to stop. `make` makes the node's core.
pub fn run<C: Core>(
    config: &Config,
    config_path: PathBuf,
    log: Reload,
    make: impl FnOnce(NodeParams) -> C,
) -> anyhow::Result<End> {
    let started = Instant::now();
    sys::raise_limits();
    let ring = Ring::new().context("io_uring")?;
    let state = Arc::new(StateDir::open(&config.state_dir).context("state folder")?);
    let data = open_data(config, &state)?;
    let runtime = thread::runtime().context("control thread")?;
    let metad = Metad::new(config.metad.clone(), config.metad_file.clone());
    let request = registration(config, &state, &data)?;
    let (identity, request) = identify(config, &state, &runtime, &metad, request)?;
    let doors = open_doors(config, &state)?;
    tracing::info!(
        version = crate::VERSION,
        node = %identity.node,
        cluster = show_cluster(identity.cluster),
        process = state.process.0,
        data = %data.address,
        "blockd starts"
    );
    let (mailbox, wake) = Mailbox::new().context("eventfd")?;
    let mail = mailbox.sender();
    let member = Arc::new(Member::new(metad, request, mail.clone()));
    let (asks, shard_asks) = mpsc::unbounded_channel();
    let core = make(NodeParams {
        cluster: identity.cluster,
        node: identity.node,
        process: state.process,
        boot: boot_id().context("boot id")?,
        seed: sys::random().context("getrandom")?,
    });
    // The control thread ends with the process.
    let mut shard = Shard::new(core, ring, (mailbox, wake), move |ask| drop(asks.send(ask)));
    let name =
        if member.request.name.is_empty() { identity.node.to_string() } else { member.request.name.clone() };
    shard.serve_as(&name, Limits { connections: config.nbd_clients, ..Limits::default() });
    shard.listen(data.listener.into(), Visitor::Peer);
    shard.listen(doors.nbd.into(), Visitor::Guest { tcp: false });
    if let Some(port) = doors.nbd_port {
        shard.listen(port.into(), Visitor::Guest { tcp: true });
    }
    open_drives(config, &state, &member)?;
    let facts = Arc::new(Facts {
        name: member.request.name.clone(),
        data_address: data.address.to_string(),
        nbd_socket: config.nbd_socket.display().to_string(),
        started,
        state,
    });
    let setup = Setup {
        member,
        facts,
        shard_asks,
        admin_socket: doors.admin,
        admin_port: doors.admin_port,
        log,
        config: config_path,
    };
    start_control(runtime, setup, mail)?;
    let _ = notify::notify("READY=1");
    let end = shard.run().context("the shard's ring")?;
    for socket in [&config.nbd_socket, &config.admin_socket] {
        let _ = std::fs::remove_file(socket);
    }
    Ok(end)
}

fn start_control(
    runtime: tokio::runtime::Runtime,
    setup: Setup,
    shard: Sender<ToShard>,
) -> anyhow::Result<()> {
    let run = move || {
        if let Err(error) = thread::run(&runtime, setup) {
            tracing::error!(%error, "the control thread cannot run");
            shard.send(ToShard::Stop);
        }
    };
    std::thread::Builder::new().name("control".into()).spawn(run).context("control thread")?;
    Ok(())
}

/// Binds a TCP port, the same as the last time if the kernel chose it, and writes down which it is.
fn open_port(state: &StateDir, file: &str, address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let before = state.read(file)?.and_then(|t| t.trim().parse().ok());
    let (listener, actual) = door::tcp(address, before)?;
    state.write(file, &format!("{actual}\n"))?;
    Ok((listener, actual))
}

fn open_data(config: &Config, state: &StateDir) -> anyhow::Result<DataDoor> {
    let (listener, address) = open_port(state, "data.addr", config.data_address).context("data_address")?;
    Ok(DataDoor { listener, address })
}

fn open_doors(config: &Config, state: &StateDir) -> anyhow::Result<Doors> {
    let port = |file: &str, address: Option<SocketAddr>| {
        address.map(|a| Ok(open_port(state, file, a)?.0)).transpose()
    };
    Ok(Doors {
        nbd: door::unix(&config.nbd_socket, 0o660).context("nbd_socket")?,
        nbd_port: port("nbd.addr", config.nbd_tcp).map_err(|e: anyhow::Error| e.context("nbd_tcp"))?,
        admin: door::unix(&config.admin_socket, 0o600).context("admin_socket")?,
        admin_port: port("admin.addr", config.admin_address)
            .map_err(|e: anyhow::Error| e.context("admin_address"))?,
    })
}

/// What metad is told at the start; without node and cluster, where they are not known yet.
fn registration(config: &Config, state: &StateDir, data: &DataDoor) -> anyhow::Result<RegisterRequest> {
    let key = match state.read("join")? {
        Some(text) => u128::from_str_radix(text.trim(), 16).context("state_dir/join is damaged")?,
        None => {
            let key = u128::from(sys::random()?) << 64 | u128::from(sys::random()?);
            state.write("join", &format!("{key:032x}\n"))?;
            key
        }
    };
    Ok(RegisterRequest {
        node: 0,
        cluster: Vec::new(),
        name: config.name.clone().or_else(host_name).unwrap_or_default(),
        zone: config.zone.clone(),
        data_address: data.address.to_string(),
        identity: key.to_be_bytes().to_vec(),
        token: config.token.clone(),
        process: state.process.0,
        drives: Vec::new(),
        control: proto::control::CONTROL,
    })
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let short = name.trim().split('.').next()?.to_string();
    (!short.is_empty()).then_some(short)
}

/// Who this node is; a new one joins, and waits for metad until it may.
fn identify(
    config: &Config,
    state: &StateDir,
    runtime: &tokio::runtime::Runtime,
    metad: &Metad,
    mut request: RegisterRequest,
) -> anyhow::Result<(Identity, RegisterRequest)> {
    let identity = match state.identity(config.node, config.cluster)? {
        Some(identity) => identity,
        None => {
            tracing::info!("not in a cluster yet: joining");
            request.node = config.node.map_or(0, |n| n.0);
            request.cluster = config.cluster.map(|c| c.0.to_be_bytes().to_vec()).unwrap_or_default();
            let answer = join(runtime, metad, &request)?;
            let cluster =
                <[u8; 16]>::try_from(answer.cluster.as_slice()).ok().context("metad named no cluster")?;
            Identity { cluster: ClusterId(u128::from_be_bytes(cluster)), node: NodeId(answer.node) }
        }
    };
    state.set_identity(&identity)?;
    request.node = identity.node.0;
    request.cluster = identity.cluster.0.to_be_bytes().to_vec();
    Ok((identity, request))
}

/// Asks until a metad answers; says now and then whom it asked, and what came of it.
fn join(
    runtime: &tokio::runtime::Runtime,
    metad: &Metad,
    request: &RegisterRequest,
) -> anyhow::Result<api::v1::RegisterAnswer> {
    let start = Instant::now();
    let mut said = start;
    loop {
        match runtime.block_on(metad.register(request)) {
            Ok(answer) => return Ok(answer),
            Err(CallError::Unavailable) => {}
            Err(refused) => bail!("cannot join: {refused}"),
        }
        if said.elapsed() >= SAY_AGAIN {
            said = Instant::now();
            let (waited, tried) = (start.elapsed().as_secs(), metad.tried());
            tracing::warn!(
                waited,
                tried,
                "still not in a cluster: no metad answers, or none leads. No guest is let in until then. \
                 See that the metads run, that `metad` in the configuration names them, and that `cluster init` was done"
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Each drive by a thread of its own: one that is locked or slow holds up no other.
fn open_drives(config: &Config, state: &StateDir, member: &Arc<Member>) -> anyhow::Result<()> {
    let mut paths = config.drives.clone();
    paths.extend(state.drives()?.into_iter().filter(|d| !config.drives.contains(d)));
    if paths.is_empty() {
        tracing::info!("no drives: this node only serves its guests");
    }
    for path in paths {
        let member = member.clone();
        let open = move || openings::keep_opening(&member, &path, openings::AGAIN);
        std::thread::Builder::new().name("open drive".into()).spawn(open).context("a thread")?;
    }
    Ok(())
}
