//! `dev up`: from an empty folder to a cluster that serves, or back to an empty folder.

use super::layout::{Folder, METADS, Member, Role, Shape};
use super::process::{Started, binary};
use super::run::{metads_answer, nodes_serve, start_members};
use super::{DevError, io};
use crate::control::{self, Control};
use api::v1::{AddNodeRequest, InitRequest, MetadMember, SetConfigRequest};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Until all serve.
const READY: Duration = Duration::from_secs(60);
/// For logs, metadata and what guests write at first, bytes.
const ROOM: u64 = 128 << 20;

#[derive(Clone, Debug)]
pub struct Options {
    pub nodes: u32,
    /// Bytes.
    pub drive_size: u64,
    /// Cluster settings.
    pub settings: Vec<(String, String)>,
}

/// Makes the cluster, or goes on with the one that is there. Ready when it returns.
///
/// # Errors
/// Nothing is left of it then, if it was not there before.
pub async fn up(folder: &Folder, wanted: Option<u32>, options: &Options) -> Result<Shape, DevError> {
    match folder.shape() {
        Ok(shape) => {
            if wanted.is_some_and(|n| n != shape.nodes) {
                return Err(DevError::OtherShape { is: shape.nodes, size: shape.drive_size });
            }
            start_members(folder, &Folder::members(&shape)).await?;
            set(&Control::new(folder.endpoints()?, READY)?, &options.settings).await?;
            return Ok(shape);
        }
        Err(DevError::NoCluster(_)) => {}
        Err(e) => return Err(e),
    }
    check(folder, options)?;
    let existed = folder.path().exists();
    let mut started = Vec::new();
    match make(folder, options, &mut started).await {
        Ok(shape) => Ok(shape),
        Err(e) => {
            for process in started {
                process.abandon();
            }
            clean(folder, options.nodes, existed);
            Err(e)
        }
    }
}

/// What can be known before anything is done.
fn check(folder: &Folder, options: &Options) -> Result<(), DevError> {
    folder.check_sockets(options.nodes)?;
    for name in ["metad", "blockd", "blockd-format"] {
        binary(name)?;
    }
    let dir = folder.path();
    if let Ok(mut entries) = std::fs::read_dir(dir)
        && entries.next().is_some()
    {
        return Err(DevError::NotEmpty(dir.into()));
    }
    let above = dir.ancestors().find(|d| d.is_dir()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(above).map_err(|e| io(above)(e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // Drives are sparse, but their journals are zeroed.
    let journal = (options.drive_size / proto::limits::JOURNAL_SHARE)
        .clamp(proto::limits::JOURNAL_MIN, proto::limits::JOURNAL_MAX);
    let need = ROOM + u64::from(options.nodes) * journal * 5 / 4;
    if free < need { Err(DevError::Space { path: above.into(), free, need }) } else { Ok(()) }
}

/// Removes what `make` makes, and nothing else.
fn clean(folder: &Folder, nodes: u32, existed: bool) {
    let dirs = Folder::metads().into_iter().chain((1..=nodes).map(node)).map(|m| folder.of(m));
    for dir in dirs {
        let _ = std::fs::remove_dir_all(dir);
    }
    let _ = std::fs::remove_file(folder.addresses_file());
    let _ = std::fs::remove_file(folder.shape_file());
    if !existed {
        let _ = std::fs::remove_dir(folder.path());
    }
}

fn node(number: u32) -> Member {
    Member { role: Role::Blockd, number }
}

async fn make(folder: &Folder, options: &Options, started: &mut Vec<Started>) -> Result<Shape, DevError> {
    for m in Folder::metads() {
        let dir = folder.of(m);
        std::fs::create_dir_all(&dir).map_err(io(&dir))?;
        let text = format!(
            "id = {}\nstate_dir = \"state\"\naddress = \"127.0.0.1:0\"\nmetrics_address = \"127.0.0.1:0\"\n",
            m.number
        );
        std::fs::write(folder.config(m), text).map_err(io(folder.config(m)))?;
        started.push(Started::new(folder, m)?);
    }
    let addresses = metads_answer(folder, &Folder::metads(), started, READY).await?;
    let control = Control::new(addresses.clone(), READY)?;
    let members = (1..=u64::from(METADS))
        .zip(&addresses)
        .map(|(id, address)| MetadMember { id, address: address.clone(), voter: true, matched: None })
        .collect();
    let init = InitRequest { name: "dev".into(), members, request: random()? };
    let made = control
        .call(|mut c| {
            let init = init.clone();
            async move { c.init(init).await }
        })
        .await?;
    let cluster: String = made.cluster.iter().map(|b| format!("{b:02x}")).collect();
    set(&control, &options.settings).await?;
    std::fs::write(folder.addresses_file(), addresses.join("\n") + "\n")
        .map_err(io(folder.addresses_file()))?;

    let mut formats = Vec::new();
    for n in 1..=options.nodes {
        let add = AddNodeRequest {
            name: format!("n{n}"),
            zone: String::new(),
            data_address: "127.0.0.1:0".into(),
            request: random()?,
        };
        control
            .call(|mut c| {
                let add = add.clone();
                async move { c.add_node(add).await }
            })
            .await?;
        configure_node(folder, n, &cluster)?;
        formats.push((n, format(folder, n, &cluster, options.drive_size)?));
    }
    for (n, child) in formats {
        let path = folder.drive(n);
        let out = child.wait_with_output().map_err(io(&path))?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
            return Err(DevError::Format { path, said });
        }
    }
    for n in 1..=options.nodes {
        started.push(Started::new(folder, node(n))?);
    }
    let nodes: Vec<Member> = (1..=options.nodes).map(node).collect();
    nodes_serve(folder, &control, &nodes, started, READY).await?;
    let shape = Shape { nodes: options.nodes, drive_size: options.drive_size, cluster, token: made.token };
    let text = serde_json::to_string_pretty(&shape).expect("plain fields");
    std::fs::write(folder.shape_file(), text + "\n").map_err(io(folder.shape_file()))?;
    Ok(shape)
}

fn random() -> Result<Vec<u8>, DevError> {
    control::request_id().map_err(io("/dev/urandom"))
}

async fn set(control: &Control, settings: &[(String, String)]) -> Result<(), DevError> {
    for (key, value) in settings {
        let set = SetConfigRequest { key: key.clone(), value: value.clone(), request: random()? };
        control
            .call(|mut c| {
                let set = set.clone();
                async move { c.set_config(set).await }
            })
            .await?;
    }
    Ok(())
}

fn configure_node(folder: &Folder, n: u32, cluster: &str) -> Result<(), DevError> {
    let dir = folder.of(node(n));
    std::fs::create_dir_all(&dir).map_err(io(&dir))?;
    let text = format!(
        "node_id = {n}\nname = \"n{n}\"\ncluster = \"{cluster}\"\nstate_dir = \"state\"\ndata_address = \"127.0.0.1:0\"\n\
         nbd_socket = \"nbd.sock\"\nadmin_socket = \"admin.sock\"\nadmin_address = \"127.0.0.1:0\"\n\
         metad_file = \"../metad.addrs\"\ndrives = [\"drive0\"]\n"
    );
    let path = folder.config(node(n));
    std::fs::write(&path, text).map_err(io(&path))
}

fn format(folder: &Folder, n: u32, cluster: &str, size: u64) -> Result<std::process::Child, DevError> {
    let program = binary("blockd-format")?;
    let mut command = Command::new(&program);
    command.arg(folder.drive(n)).args([
        "--cluster",
        cluster,
        "--node",
        &n.to_string(),
        "--size",
        &size.to_string(),
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().map_err(io(&program))
}
