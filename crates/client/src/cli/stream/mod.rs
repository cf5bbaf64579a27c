//! Snapshots out of the cluster and into it: what changed between two, export, import.
//!
//! Blocking clients of NBD. metad is asked who is who; the bytes go through a node's NBD socket.

mod diff;
mod export;
mod import;
mod input;
mod interrupt;
mod progress;
mod ranges;

use super::args::{NbdSocket, SnapshotName, SnapshotVerb};
use super::context::{Context, request_id};
use super::error::{CliError, exit};
use super::output::Output;
use super::volume;
use crate::control::Control;
use crate::dev::{Folder, status as dev_status};
use crate::nbd_client::{Client, Error, Settings};
use crate::uri::Uri;
use api::v1;
use ranges::Ranges;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Runtime;

/// An order may wait for the seal before it, and a volume for its records.
const PATIENCE: Duration = Duration::from_secs(120);
/// Looked at with one question.
const WINDOW: u64 = 1 << 30;
/// Unit of streams.
const BLOCK: u64 = 4096;

pub fn run(context: &Context, verb: SnapshotVerb) -> Result<Output, CliError> {
    match verb {
        SnapshotVerb::Diff { from, to, nbd } => diff::run(&Cluster::new(context, &nbd)?, &from, &to),
        SnapshotVerb::Export { name, from, output, resume, nbd } => {
            let what = format!("write {name} to {}", output.display());
            if let Some(o) = context.dry(&what) {
                return Ok(o);
            }
            export::run(&Cluster::new(context, &nbd)?, &name, from.as_ref(), &output, resume)
        }
        SnapshotVerb::Import { input, name, nbd } => import::run(context, &nbd, &input, &name),
        other => unreachable!("needs no NBD: {other:?}"),
    }
}

/// metad, and the NBD socket of a node.
struct Cluster {
    runtime: Runtime,
    control: Control,
    socket: PathBuf,
}

impl Cluster {
    fn new(context: &Context, nbd: &NbdSocket) -> Result<Cluster, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| CliError::io("the runtime", &e))?;
        let socket = match &context.global.dir {
            Some(dir) => running_node(&Folder::new(dir)?)?,
            None => nbd.nbd.clone(),
        };
        let control = context.control()?.with_patience(PATIENCE);
        Ok(Cluster { runtime, control, socket })
    }

    fn snapshot(&self, name: &SnapshotName) -> Result<v1::Snapshot, CliError> {
        let wire = v1::SnapshotName { volume: name.volume.clone(), snapshot: name.snapshot.clone() };
        let r = v1::ShowSnapshotRequest { name: Some(wire) };
        let asked = self.control.call(|mut c| {
            let r = r.clone();
            async move { c.show_snapshot(r).await }
        });
        let found = self.runtime.block_on(asked)?;
        if found.sealed {
            return Ok(found);
        }
        let cause = "it can be read when it is sealed";
        Err(CliError::new(1942, exit::STATE, format!("snapshot {name} is still being made"), cause, ""))
    }

    fn snapshots(&self, volume: &str) -> Result<Vec<v1::Snapshot>, CliError> {
        let r = v1::ListSnapshotsRequest { volume: volume.into() };
        let asked = self.control.call(|mut c| {
            let r = r.clone();
            async move { c.list_snapshots(r).await }
        });
        Ok(self.runtime.block_on(asked)?.snapshots)
    }

    fn volume(&self, name: &str) -> Result<v1::Volume, CliError> {
        let shown = self.runtime.block_on(volume::show(&self.control, name, 1))?;
        Ok(shown.volume.unwrap_or_default())
    }

    fn name(&self) -> Result<String, CliError> {
        let asked = self.control.call(|mut c| async move { c.status(v1::StatusRequest {}).await });
        Ok(self.runtime.block_on(asked)?.name)
    }

    fn make_volume(&self, name: &str, size: u64, chunk_bytes: u64) -> Result<(), CliError> {
        let request = request_id()?;
        let r =
            v1::CreateVolumeRequest { name: name.into(), size, chunk_bytes, request, ..Default::default() };
        let asked = self.control.call(|mut c| {
            let r = r.clone();
            async move { c.create_volume(r).await }
        });
        self.runtime.block_on(asked)?;
        Ok(())
    }

    fn wait_ready(&self, name: &str) -> Result<(), CliError> {
        self.runtime.block_on(volume::wait(&self.control, name, "ready", PATIENCE)).map(|_| ())
    }

    /// With all that it has, and whoever uses it.
    fn delete_volume(&self, name: &str, why: &str) -> Result<(), CliError> {
        let request = request_id()?;
        let r = v1::DeleteVolumeRequest {
            name: name.into(),
            force: why.into(),
            request,
            with_snapshots: true,
            now: true,
            despite_clones: false,
        };
        let asked = self.control.call(|mut c| {
            let r = r.clone();
            async move { c.delete_volume(r).await }
        });
        self.runtime.block_on(asked)?;
        Ok(())
    }

    fn make_snapshot(&self, volume: &str, point: &::stream::Point) -> Result<(), CliError> {
        let name = v1::SnapshotName { volume: volume.into(), snapshot: point.name.clone() };
        let ids = vec![unhex(&point.id).expect("checked with the stream")];
        let request = request_id()?;
        let r = v1::CreateSnapshotsRequest { names: vec![name], request, ids, ..Default::default() };
        let asked = self.control.call(|mut c| {
            let r = r.clone();
            async move { c.create_snapshots(r).await }
        });
        self.runtime.block_on(asked)?;
        Ok(())
    }

    fn connect(&self, export: &str) -> Result<Client, CliError> {
        self.connect_for(export, nbd::wire::allocation::NAME)
    }

    /// Its map tells what has changed since this snapshot of its volume.
    fn connect_since(&self, export: &str, since: &str) -> Result<Client, CliError> {
        let client = self.connect_for(export, &format!("{}{since}", nbd::wire::changed::PREFIX))?;
        if client.negotiated().context.is_some() {
            return Ok(client);
        }
        Err(CliError::new(
            1942,
            exit::CONFLICT,
            format!("{export} cannot be compared with snapshot {since}"),
            "it is of another line of the volume's history, not older, or was deleted meanwhile",
            "blockctl snapshot list VOLUME",
        ))
    }

    fn connect_for(&self, export: &str, context: &str) -> Result<Client, CliError> {
        let uri = Uri::unix(&self.socket, export);
        Client::with_context(&uri, Settings::default(), context).map_err(|e| nbd_failed(export, &e))
    }

    /// Both again: they must be who they were.
    fn unchanged(&self, all: &[(&SnapshotName, &v1::Snapshot)]) -> Result<(), CliError> {
        for (name, was) in all {
            if self.snapshot(name)?.id != was.id {
                let message = format!("snapshot {name} was deleted meanwhile, and made anew");
                return Err(CliError::new(1942, exit::CONFLICT, message, "", "repeat it"));
            }
        }
        Ok(())
    }
}

fn nbd_failed(export: &str, e: &Error) -> CliError {
    let message = format!("\"{export}\" cannot be read or written: {e}");
    CliError::new(1943, exit::FAILURE, message, "the node's NBD socket says so", "blockctl cluster status")
}

/// The first that answers.
fn running_node(folder: &Folder) -> Result<PathBuf, CliError> {
    let known = dev_status(folder)?;
    let blockds = known.iter().filter(|s| s.member.role == crate::dev::Role::Blockd);
    let mut sockets = blockds.map(|s| folder.nbd_socket(s.member.number));
    sockets.find(|s| UnixStream::connect(s).is_ok()).ok_or_else(|| {
        let message = "no blockd of this folder answers at its NBD socket";
        CliError::new(1943, exit::UNREACHABLE, message, "", "blockctl dev start all")
    })
}

/// Two snapshots that can be compared: of one volume and branch, the older one first.
fn comparable(
    from: (&SnapshotName, &v1::Snapshot),
    to: (&SnapshotName, &v1::Snapshot),
) -> Result<(), CliError> {
    let (a, b) = (from.0, to.0);
    let (cause, fix) = if a.volume != b.volume {
        ("they are of two volumes", "name two snapshots of one volume".to_owned())
    } else if from.1.branch != to.1.branch {
        ("a rollback lies between them: they are of two lines of the volume's history", String::new())
    } else if from.1.id == to.1.id {
        ("they are the same", String::new())
    } else if from.1.generation > to.1.generation {
        ("the first one is newer than the second", format!("name {b} first, then {a}"))
    } else {
        return Ok(());
    };
    Err(CliError::new(1942, exit::CONFLICT, format!("{a} and {b} cannot be compared"), cause, fix))
}

/// What the map of a connection that compares tells as changed, of a window.
fn changed(client: &mut Client, export: &str, offset: u64, len: u64) -> Result<Ranges, CliError> {
    let mut ranges = Ranges::default();
    let mut at = offset;
    for e in client.map(offset, len).map_err(|e| nbd_failed(export, &e))? {
        if e.flags & u64::from(nbd::wire::changed::CHANGED) != 0 {
            ranges.push(at, e.len);
        }
        at += e.len;
    }
    Ok(ranges)
}

/// The windows of a volume.
fn windows(size: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..size.div_ceil(WINDOW)).map(move |i| (i * WINDOW, WINDOW.min(size - i * WINDOW)))
}

/// 16 bytes of 32 hexadecimal digits.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    digits
        .then(|| (0..16).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("digits")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_that_cannot_be_compared_are_told_why() {
        let name = |v: &str, s: &str| SnapshotName { volume: v.into(), snapshot: s.into() };
        let row = |branch, generation| v1::Snapshot {
            branch,
            generation,
            id: vec![u8::try_from(generation).unwrap(); 16],
            ..Default::default()
        };
        let ask = |a: (&str, u64, u32), b: (&str, u64, u32)| {
            let (x, y) = (name(a.0, "a"), name(b.0, "b"));
            comparable((&x, &row(a.1, a.2)), (&y, &row(b.1, b.2))).map_err(|e| e.cause)
        };
        assert_eq!(ask(("v", 1, 1), ("v", 1, 2)), Ok(()));
        assert!(ask(("v", 1, 2), ("v", 1, 1)).unwrap_err().contains("newer"));
        assert!(ask(("v", 1, 1), ("v", 1, 1)).unwrap_err().contains("same"));
        assert!(ask(("v", 1, 1), ("w", 1, 2)).unwrap_err().contains("two volumes"));
        assert!(ask(("v", 1, 1), ("v", 2, 2)).unwrap_err().contains("rollback"));
    }

    #[test]
    fn an_id_is_typed_as_it_is_shown() {
        assert_eq!(unhex(&super::super::context::hex(&[7; 16])), Some(vec![7; 16]));
        assert_eq!(unhex("07"), None);
        assert_eq!(unhex(&"é".repeat(16)), None);
    }

    #[test]
    fn windows_cover_a_volume_once() {
        let all: Vec<_> = windows(WINDOW + 4096).collect();
        assert_eq!(all, [(0, WINDOW), (WINDOW, 4096)]);
    }
}
