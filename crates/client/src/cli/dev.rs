//! A cluster in a folder: verbs, and the folder's errors in three lines.

use super::args::DevVerb;
use super::context::{Context, done};
use super::error::{CliError, exit};
use super::output::{Output, Table, bytes};
use crate::dev::{self, DevError, Folder, NODES, Options, Role};
use serde_json::json;

pub async fn run(context: &Context, verb: DevVerb) -> Result<Output, CliError> {
    let folder = context.folder()?;
    match verb {
        DevVerb::Up { nodes, drive_size, set } => {
            let options = Options { nodes, drive_size: drive_size.map(|s| s.bytes), settings: set };
            let many = match folder.shape() {
                Ok(shape) => shape.nodes,
                Err(_) => nodes.unwrap_or(NODES),
            };
            let what = format!("start {many} nodes in {}", folder.path().display());
            if let Some(o) = context.dry(&what) {
                return Ok(o);
            }
            let shape = dev::up(&folder, &options).await?;
            let dir = folder.path().display();
            let text = format!(
                "{} nodes with drives of {} and 3 metads serve in {dir}\nnbd: nbd+unix:///VOLUME?socket={}\n",
                shape.nodes,
                bytes(shape.drive_size),
                folder.nbd_socket(1).display()
            );
            let json = json!({
                "dir": dir.to_string(), "nodes": shape.nodes, "drive_bytes": shape.drive_size,
                "cluster": shape.cluster, "metad": folder.endpoints()?,
            });
            Ok(Output::new("dev.up/1", json, text))
        }
        DevVerb::Kill { who, signal } => {
            if context.global.dry_run {
                let names = dev::resolve(&folder, &who).await?.join(" ");
                return Ok(context.would(&format!("send SIG{} to {names}", signal.word())));
            }
            let hit = dev::kill(&folder, &who, signal).await?;
            Ok(names("dev.kill/1", "signalled", &hit))
        }
        DevVerb::Start { who } => {
            if context.global.dry_run {
                let names = dev::resolve(&folder, &who).await?.join(" ");
                return Ok(context.would(&format!("start {names}")));
            }
            Ok(names("dev.start/1", "started", &dev::start(&folder, &who).await?))
        }
        DevVerb::Down { wipe } => {
            if wipe {
                let what = format!("remove the cluster in {}", folder.path().display());
                let name =
                    folder.path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                if let Some(o) = context.confirm(&what, &name)? {
                    return Ok(o);
                }
            }
            if let Some(o) = context.dry(&format!("end all processes in {}", folder.path().display())) {
                return Ok(o);
            }
            let hit = dev::down(&folder, wipe).await?;
            let text = format!(
                "{} processes ended{}",
                hit.len(),
                if wipe { ", the cluster is removed" } else { "" }
            );
            Ok(done("dev.down/1", text))
        }
        DevVerb::Status => status(&folder),
    }
}

fn names(schema: &'static str, verb: &str, names: &[String]) -> Output {
    let text =
        if names.is_empty() { format!("{verb}: none\n") } else { format!("{verb}: {}\n", names.join(" ")) };
    Output::new(schema, json!({"processes": names}), text)
}

fn status(folder: &Folder) -> Result<Output, CliError> {
    let mut table = Table::new(&["name", "role", "pid", "state", "socket"]);
    let mut list = Vec::new();
    for s in dev::status(folder)? {
        let pid = s.record.filter(|_| s.life != dev::Life::Dead).map(|r| r.pid);
        let m = s.member;
        let socket = match m.role {
            Role::Blockd => Some(folder.nbd_socket(m.number).display().to_string()),
            Role::Metad => None,
        };
        let address = match m.role {
            Role::Metad => folder.metad_address(m)?,
            Role::Blockd => None,
        };
        table.row(vec![
            m.name(),
            m.role.word().into(),
            pid.map_or_else(|| "-".into(), |p| p.to_string()),
            s.life.word().into(),
            socket.clone().or_else(|| address.clone()).unwrap_or_else(|| "-".into()),
        ]);
        list.push(json!({
            "name": m.name(), "role": m.role.word(), "pid": pid, "state": s.life.word(),
            "socket": socket, "address": address, "log": folder.log(m).display().to_string(),
        }));
    }
    Ok(Output::new("dev.status/1", json!({"processes": list}), table.text()))
}

impl From<DevError> for CliError {
    fn from(e: DevError) -> CliError {
        let message = e.to_string();
        let new =
            |code, exit, cause: &str, fix: String| CliError::new(code, exit, message.clone(), cause, fix);
        match e {
            DevError::Io { ref source, .. } => {
                new(1950, exit::of_io(source), "the operating system refused it", String::new())
            }
            DevError::NoCluster(dir) => new(
                1951,
                exit::NOT_FOUND,
                "cluster.json is not there",
                format!("blockctl --dir {} dev up --nodes 7", dir.display()),
            ),
            DevError::BrokenOff(dir) => new(
                1964,
                exit::STATE,
                "another dev up makes it now, or one was killed while it did",
                format!("blockctl --dir {} dev down --wipe", dir.display()),
            ),
            DevError::NotEmpty(_) => {
                new(1952, exit::CONFLICT, "a cluster needs a folder of its own", "name another --dir".into())
            }
            DevError::SocketPath { .. } => new(
                1953,
                exit::USAGE,
                "the kernel's limit",
                "use a shorter --dir, for instance under /tmp".into(),
            ),
            DevError::Space { need, .. } => new(
                1954,
                exit::FULL,
                "journals are zeroed when drives are formatted",
                format!("free {}, or use fewer nodes or a smaller --drive-size", bytes(need)),
            ),
            DevError::OtherShape { .. } => new(
                1955,
                exit::CONFLICT,
                "the cluster in this folder was made with these",
                "leave --nodes and --drive-size out, or wipe it: blockctl dev down --wipe".into(),
            ),
            DevError::Binary(_) => new(
                1956,
                exit::PRECONDITION,
                "the daemons are started from there",
                "cargo build -p blockd -p metad -p client".into(),
            ),
            DevError::Format { .. } => new(1962, exit::FAILURE, "blockd-format refused it", String::new()),
            DevError::Damaged(path) => {
                new(1963, exit::FAILURE, "it was edited or torn", format!("look at {}", path.display()))
            }
            DevError::Control(e) => CliError::from(e),
            of_processes => process_error(&of_processes),
        }
    }
}

/// Of the processes in the folder.
fn process_error(e: &DevError) -> CliError {
    let message = e.to_string();
    let new = |code, exit, cause: &str, fix: String| CliError::new(code, exit, message.clone(), cause, fix);
    match e {
        DevError::Unknown { .. } => {
            new(1957, exit::NOT_FOUND, "names are as in dev status", "blockctl dev status".into())
        }
        DevError::Ended { log, tail, .. } => {
            new(1958, exit::FAILURE, &format!("its log ends with\n{tail}"), format!("less {}", log.display()))
        }
        DevError::NotReady { log, .. } => {
            new(1959, exit::FAILURE, "its log says more", format!("less {}", log.display()))
        }
        DevError::Immortal { pid, .. } => new(
            1960,
            exit::FAILURE,
            "a system call of it does not return",
            format!("look at /proc/{pid}/stack"),
        ),
        DevError::NoLeader => new(
            1961,
            exit::UNREACHABLE,
            "an election is under way, or a majority is down",
            "blockctl dev start all".into(),
        ),
        _ => new(1950, exit::FAILURE, "", String::new()),
    }
}
