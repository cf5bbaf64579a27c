//! From nothing, or from what an earlier `up` left, to a cluster that serves.

use super::layout::{SCHEMA, write};
use super::process::{self, ProcessState};
use super::{DevError, Layout, State};
use api::v1::cluster_service_client::ClusterServiceClient;
use api::v1::{
    AddNodeRequest, InitRequest, ListNodesRequest, MetadAnswer, MetadMember, MetadRequest, SetConfigRequest,
};
use std::future::Future;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

#[derive(Clone, Debug)]
pub struct Options {
    pub nodes: u32,
    /// Bytes.
    pub drive_size: u64,
    /// Cluster settings, KEY=VALUE.
    pub settings: Vec<String>,
}

const METADS: u32 = 3;
/// A process must accept connections within this.
const READY: Duration = Duration::from_secs(30);
/// Metadata, logs, and the first megabytes of data, per node.
const SLACK: u64 = 16 << 20;

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, DevError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| DevError::Io { path: "tokio".into(), source })
}

/// Makes the cluster, or goes on with the one that is there. What a failed first `up` started is ended again.
pub fn up(layout: &Layout, options: &Options) -> Result<State, DevError> {
    let new = !layout.state().exists();
    let mut state = if new { make(layout, options)? } else { State::load(layout)? };
    if let Err(e) = bring_up(layout, &mut state) {
        if new {
            // its folder stays for a look at the logs; the processes do not
            let _ = super::down(layout, false);
            let _ = std::fs::remove_file(layout.state());
        }
        return Err(e);
    }
    Ok(state)
}

fn make(layout: &Layout, options: &Options) -> Result<State, DevError> {
    let dir = &layout.dir;
    let io = |source| DevError::Io { path: dir.clone(), source };
    layout.check_sockets(options.nodes)?;
    for program in ["blockd", "metad", "blockd-format"] {
        layout.binary(program)?;
    }
    let is_empty = |d: &Path| std::fs::read_dir(d).is_ok_and(|mut entries| entries.next().is_none());
    if dir.exists() && !is_empty(dir) {
        return Err(DevError::Occupied(dir.clone()));
    }
    std::fs::create_dir_all(dir).map_err(io)?;
    check_room(dir, options)?;
    let state = State {
        schema: SCHEMA.into(),
        metads: METADS,
        nodes: options.nodes,
        drive_size: options.drive_size,
        cluster: None,
        token: None,
        settings: options.settings.clone(),
    };
    for name in state.names() {
        std::fs::create_dir_all(layout.home(&name)).map_err(io)?;
    }
    state.save(layout)?;
    Ok(state)
}

/// Drives are sparse, but a journal is written whole at format.
fn check_room(dir: &Path, options: &Options) -> Result<(), DevError> {
    use proto::limits::{JOURNAL_MAX, JOURNAL_MIN, JOURNAL_SHARE};
    let journal = (options.drive_size / JOURNAL_SHARE).clamp(JOURNAL_MIN, JOURNAL_MAX);
    let needed = u64::from(options.nodes) * (journal + SLACK);
    let stat = rustix::fs::statvfs(dir).map_err(|e| DevError::Io { path: dir.into(), source: e.into() })?;
    let free = stat.f_bavail * stat.f_frsize;
    if free < needed {
        return Err(DevError::NoRoom { dir: dir.into(), free: free >> 20, needed: needed >> 20 });
    }
    Ok(())
}

fn bring_up(layout: &Layout, state: &mut State) -> Result<(), DevError> {
    let metads: Vec<String> = state.metad_names().collect();
    for (i, name) in metads.iter().enumerate() {
        let config = layout.config(name);
        if !config.exists() {
            write(&config, &format!("id = {}\nstate_dir = \".\"\naddress = \"127.0.0.1:0\"\n", i + 1))?;
        }
    }
    start_ready(layout, &metads)?;
    let addresses: Vec<String> = metads.iter().map(|n| address(layout, n)).collect::<Result<_, _>>()?;
    write(&layout.metad_file(), &(addresses.join("\n") + "\n"))?;
    let runtime = runtime()?;
    if state.cluster.is_none() {
        let (cluster, token) = runtime.block_on(init(&addresses))?;
        (state.cluster, state.token) = (Some(cluster), Some(token));
        state.save(layout)?;
    }
    for setting in std::mem::take(&mut state.settings) {
        runtime.block_on(set(&addresses, &setting))?;
    }
    state.save(layout)?;
    for i in 1..=state.nodes {
        prepare_node(layout, state, &runtime, &addresses, i)?;
    }
    let nodes: Vec<String> = (1..=state.nodes).map(|i| format!("n{i}")).collect();
    start_ready(layout, &nodes)?;
    runtime.block_on(all_up(&addresses, state.nodes))
}

/// Adds the node, formats its drive, and last writes its configuration: that file says that it is prepared.
fn prepare_node(
    layout: &Layout,
    state: &State,
    runtime: &tokio::runtime::Runtime,
    metads: &[String],
    number: u32,
) -> Result<(), DevError> {
    let name = format!("n{number}");
    let config = layout.config(&name);
    if config.exists() {
        return Ok(());
    }
    let cluster = state.cluster.clone().unwrap_or_default();
    // the same identity again: the same node again
    let mut identity = name.clone().into_bytes();
    identity.resize(16, 0);
    let request = AddNodeRequest {
        name: name.clone(),
        zone: String::new(),
        data_address: "127.0.0.1:0".into(),
        identity: identity.clone(),
        request: identity,
    };
    let node = runtime.block_on(with_leader(metads, |mut c| {
        let request = request.clone();
        async move { c.add_node(request).await.map(tonic::Response::into_inner) }
    }))?;
    let drive = layout.home(&name).join("drive0");
    format(layout, &drive, &cluster, node.id, state.drive_size)?;
    let text = format!(
        "node_id = {}\nname = \"{name}\"\ncluster = \"{cluster}\"\nstate_dir = \".\"\ndata_address = \"127.0.0.1:0\"\n\
         nbd_socket = \"nbd.sock\"\nadmin_socket = \"admin.sock\"\nmetad_file = \"../metad.list\"\ndrives = [\"drive0\"]\n",
        node.id
    );
    write(&config, &text)
}

fn format(layout: &Layout, drive: &Path, cluster: &str, node: u32, size: u64) -> Result<(), DevError> {
    let out = Command::new(layout.binary("blockd-format")?)
        .args(["--cluster", cluster, "--node", &node.to_string(), "--size", &size.to_string(), "--force"])
        .arg(drive)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| DevError::Io { path: drive.into(), source })?;
    if out.status.success() {
        return Ok(());
    }
    Err(DevError::Format(String::from_utf8_lossy(&out.stderr).trim().to_owned()))
}

/// Starts those that do not run and waits until each accepts connections.
pub(super) fn start_ready(layout: &Layout, names: &[String]) -> Result<(), DevError> {
    // metads first: a node asks them at once
    for role in ['m', 'n'] {
        let group: Vec<&String> = names.iter().filter(|n| n.starts_with(role)).collect();
        for name in &group {
            process::spawn(layout, name)?;
        }
        for name in &group {
            wait_ready(layout, name)?;
        }
    }
    Ok(())
}

fn wait_ready(layout: &Layout, name: &str) -> Result<(), DevError> {
    let start = Instant::now();
    loop {
        let ready = match layout.socket(name) {
            Some(socket) => std::os::unix::net::UnixStream::connect(socket).is_ok(),
            None => address(layout, name).is_ok_and(|a| std::net::TcpStream::connect(a).is_ok()),
        };
        if ready {
            return Ok(());
        }
        if process::state(layout, name)? == ProcessState::Stopped {
            return Err(DevError::Ended { name: name.into(), log: layout.log_end(name) });
        }
        if start.elapsed() > READY {
            return Err(DevError::NotReady {
                name: name.into(),
                secs: READY.as_secs(),
                log: layout.log_end(name),
            });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The address that a metad has chosen.
pub(super) fn address(layout: &Layout, name: &str) -> Result<String, DevError> {
    let path = layout.home(name).join("metad.addr");
    std::fs::read_to_string(&path)
        .map(|t| t.trim().to_owned())
        .map_err(|source| DevError::Io { path, source })
}

async fn connect(address: &str) -> Result<ClusterServiceClient<Channel>, DevError> {
    let failed = |e: tonic::transport::Error| DevError::Metad(format!("{address}: {e}"));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(failed)?;
    let channel = endpoint
        .connect_timeout(Duration::from_secs(1))
        .timeout(Duration::from_secs(5))
        .connect()
        .await
        .map_err(failed)?;
    Ok(ClusterServiceClient::new(channel))
}

/// What a metad says of itself.
pub(super) async fn ask_metad(address: &str) -> Result<MetadAnswer, DevError> {
    let answer = connect(address).await?.metad(MetadRequest {}).await;
    answer.map(tonic::Response::into_inner).map_err(|s| DevError::Metad(s.message().to_owned()))
}

/// Asks one metad after the other until one that leads has answered.
async fn with_leader<A, F: Future<Output = Result<A, tonic::Status>>>(
    metads: &[String],
    call: impl Fn(ClusterServiceClient<Channel>) -> F,
) -> Result<A, DevError> {
    let start = Instant::now();
    let mut last = DevError::NoLeader;
    while start.elapsed() < READY {
        for address in metads {
            let client = match connect(address).await {
                Ok(c) => c,
                Err(e) => {
                    last = e;
                    continue;
                }
            };
            match call(client).await {
                Ok(answer) => return Ok(answer),
                Err(s) if matches!(s.code(), tonic::Code::Unavailable | tonic::Code::DeadlineExceeded) => {
                    last = DevError::Metad(format!("{address}: {}", s.message()));
                }
                Err(s) => return Err(DevError::Metad(s.message().to_owned())),
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(last)
}

async fn init(addresses: &[String]) -> Result<(String, String), DevError> {
    let members = (1..).zip(addresses).map(|(id, a)| MetadMember {
        id,
        address: a.clone(),
        voter: true,
        matched: None,
    });
    let request = InitRequest { name: "dev".into(), members: members.collect(), request: random_id()? };
    let answer = with_leader(&addresses[..1], |mut c| {
        let request = request.clone();
        async move { c.init(request).await.map(tonic::Response::into_inner) }
    })
    .await?;
    let hex = answer.cluster.iter().map(|b| format!("{b:02x}")).collect();
    Ok((hex, answer.token))
}

/// Sixteen random bytes of the kernel's.
fn random_id() -> Result<Vec<u8>, DevError> {
    use std::io::Read;
    let path = Path::new("/dev/urandom");
    let io = |source| DevError::Io { path: path.into(), source };
    let mut id = vec![0; 16];
    std::fs::File::open(path).map_err(io)?.read_exact(&mut id).map_err(io)?;
    Ok(id)
}

async fn set(metads: &[String], setting: &str) -> Result<(), DevError> {
    let (key, value) =
        setting.split_once('=').ok_or_else(|| DevError::Metad(format!("--set {setting}: not KEY=VALUE")))?;
    let request =
        SetConfigRequest { key: key.trim().into(), value: value.trim().into(), request: random_id()? };
    with_leader(metads, |mut c| {
        let request = request.clone();
        async move { c.set_config(request).await.map(drop) }
    })
    .await
}

/// All nodes are up and all their drives serve.
async fn all_up(metads: &[String], nodes: u32) -> Result<(), DevError> {
    let start = Instant::now();
    loop {
        let list = with_leader(metads, |mut c| async move {
            c.list_nodes(ListNodesRequest {}).await.map(tonic::Response::into_inner)
        })
        .await?;
        let ready = list.nodes.iter().filter(|n| n.up && !n.drives.is_empty() && n.capacity > 0).count();
        if ready >= nodes as usize {
            return Ok(());
        }
        if start.elapsed() > READY {
            return Err(DevError::Metad(format!(
                "only {ready} of {nodes} nodes are up after {} s",
                READY.as_secs()
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
