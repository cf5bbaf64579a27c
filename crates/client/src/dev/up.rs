//! `dev up`: from an empty folder to a cluster that serves, or back to an empty folder.

use super::layout::{Folder, METADS, Member, Plan, Role, Shape};
use super::process::{Started, binary};
use super::run::{metads_answer, nodes_serve, start_members};
use super::{DevError, io};
use crate::control::{self, Control};
use api::v1::{AddNodeRequest, InitAnswer, InitRequest, MetadMember, SetConfigRequest};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Between two looks at the formats.
const LOOK: Duration = Duration::from_millis(10);
/// Until all serve.
const READY: Duration = Duration::from_secs(60);
/// For logs, metadata and what guests write at first, bytes.
const ROOM: u64 = 128 << 20;

/// Of a new cluster, where nothing else is said.
pub const NODES: u32 = 3;
pub const DRIVE_SIZE: u64 = 10 << 30;

#[derive(Clone, Debug)]
pub struct Options {
    /// None: what the cluster has, or `NODES`.
    pub nodes: Option<u32>,
    /// Bytes. None: what the cluster has, or `DRIVE_SIZE`.
    pub drive_size: Option<u64>,
    /// Cluster settings.
    pub settings: Vec<(String, String)>,
}

/// Makes the cluster, or goes on with the one that is there. Ready when it returns.
///
/// # Errors
/// Nothing is left of it then, if it was not there before.
pub async fn up(folder: &Folder, options: &Options) -> Result<Shape, DevError> {
    match folder.shape() {
        Ok(shape) => {
            if options.nodes.is_some_and(|n| n != shape.nodes)
                || options.drive_size.is_some_and(|s| s != shape.drive_size)
            {
                return Err(DevError::OtherShape { is: shape.nodes, size: shape.drive_size });
            }
            start_members(folder, &Folder::members(&shape)).await?;
            set(&Control::new(folder.endpoints()?, READY)?, &options.settings).await?;
            return Ok(shape);
        }
        Err(DevError::NoCluster(_)) => {}
        Err(e) => return Err(e),
    }
    let plan = Plan { nodes: options.nodes.unwrap_or(NODES) };
    let drive_size = options.drive_size.unwrap_or(DRIVE_SIZE);
    check(folder, plan, drive_size)?;
    let mut making = Making::begin(folder, plan)?;
    let shape = making.make(drive_size, &options.settings).await?;
    making.kept = true;
    Ok(shape)
}

/// A cluster that is being made. Unless it is kept it is gone when this is: also when the making is broken off and
/// nobody comes back to it (Ctrl-C drops it). What even this cannot see (SIGKILL) `dev down --wipe` finds by the mark.
struct Making<'a> {
    folder: &'a Folder,
    plan: Plan,
    /// The folder was there before.
    existed: bool,
    started: Vec<Started>,
    formats: Vec<(u32, Child)>,
    kept: bool,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for (_, mut child) in self.formats.drain(..) {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.started.drain(..).for_each(Started::abandon);
        clean(self.folder, self.plan, self.existed);
    }
}

/// What can be known before anything is done.
fn check(folder: &Folder, plan: Plan, drive_size: u64) -> Result<(), DevError> {
    folder.check_sockets(plan.nodes)?;
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
    let journal = (drive_size / proto::limits::JOURNAL_SHARE)
        .clamp(proto::limits::JOURNAL_MIN, proto::limits::JOURNAL_MAX);
    let need = ROOM + u64::from(plan.nodes) * journal * 5 / 4;
    if free < need { Err(DevError::Space { path: above.into(), free, need }) } else { Ok(()) }
}

/// Removes what `make` makes, and nothing else.
pub(super) fn clean(folder: &Folder, plan: Plan, existed: bool) {
    for m in Folder::planned(plan) {
        let _ = std::fs::remove_dir_all(folder.of(m));
    }
    let _ = std::fs::remove_file(folder.addresses_file());
    let _ = std::fs::remove_file(folder.shape_file());
    let _ = std::fs::remove_file(folder.making_file());
    if !existed {
        let _ = std::fs::remove_dir(folder.path());
    }
}

fn node(number: u32) -> Member {
    Member { role: Role::Blockd, number }
}

impl<'a> Making<'a> {
    fn begin(folder: &'a Folder, plan: Plan) -> Result<Making<'a>, DevError> {
        let existed = folder.path().exists();
        std::fs::create_dir_all(folder.path()).map_err(io(folder.path()))?;
        let text = serde_json::to_string(&plan).expect("plain fields");
        std::fs::write(folder.making_file(), text + "\n").map_err(io(folder.making_file()))?;
        Ok(Making { folder, plan, existed, started: Vec::new(), formats: Vec::new(), kept: false })
    }

    async fn make(&mut self, drive_size: u64, settings: &[(String, String)]) -> Result<Shape, DevError> {
        let folder = self.folder;
        for m in Folder::metads() {
            let dir = folder.of(m);
            std::fs::create_dir_all(&dir).map_err(io(&dir))?;
            let text = format!(
                "id = {}\nstate_dir = \"state\"\naddress = \"127.0.0.1:0\"\nmetrics_address = \"127.0.0.1:0\"\n",
                m.number
            );
            std::fs::write(folder.config(m), text).map_err(io(folder.config(m)))?;
            self.started.push(Started::new(folder, m)?);
        }
        let addresses = metads_answer(folder, &Folder::metads(), &mut self.started, READY).await?;
        let control = Control::new(addresses.clone(), READY)?;
        let made = init(&control, &addresses).await?;
        let cluster: String = made.cluster.iter().map(|b| format!("{b:02x}")).collect();
        // What is deleted to make room is to make room.
        let trash =
            settings.iter().all(|(key, _)| key != "trash").then(|| ("trash".to_owned(), "0".to_owned()));
        let settings: Vec<(String, String)> = trash.into_iter().chain(settings.iter().cloned()).collect();
        set(&control, &settings).await?;
        std::fs::write(folder.addresses_file(), addresses.join("\n") + "\n")
            .map_err(io(folder.addresses_file()))?;
        for n in 1..=self.plan.nodes {
            add_node(&control, n).await?;
            configure_node(folder, n, &cluster)?;
            self.formats.push((n, format(folder, n, &cluster, drive_size)?));
        }
        self.formatted().await?;
        for n in 1..=self.plan.nodes {
            self.started.push(Started::new(folder, node(n))?);
        }
        let nodes: Vec<Member> = (1..=self.plan.nodes).map(node).collect();
        nodes_serve(folder, &control, &nodes, &mut self.started, READY).await?;
        let shape = Shape { nodes: self.plan.nodes, drive_size, cluster, token: made.token };
        let text = serde_json::to_string_pretty(&shape).expect("plain fields");
        std::fs::write(folder.shape_file(), text + "\n").map_err(io(folder.shape_file()))?;
        // From here on it is a cluster, whatever happens.
        self.kept = true;
        let _ = std::fs::remove_file(folder.making_file());
        Ok(shape)
    }

    /// Waits for all formats, without holding up whoever breaks off the making.
    async fn formatted(&mut self) -> Result<(), DevError> {
        while let Some((n, child)) = self.formats.last_mut() {
            let path = self.folder.drive(*n);
            let Some(status) = child.try_wait().map_err(io(&path))? else {
                tokio::time::sleep(LOOK).await;
                continue;
            };
            if !status.success() {
                let mut said = String::new();
                if let Some(mut errors) = child.stderr.take() {
                    errors.read_to_string(&mut said).map_err(io(&path))?;
                }
                return Err(DevError::Format { path, said: said.trim().to_owned() });
            }
            self.formats.pop();
        }
        Ok(())
    }
}

async fn init(control: &Control, addresses: &[String]) -> Result<InitAnswer, DevError> {
    let members = (1..=u64::from(METADS))
        .zip(addresses)
        .map(|(id, address)| MetadMember { id, address: address.clone(), voter: true, matched: None })
        .collect();
    let init = InitRequest { name: "dev".into(), members, request: random()? };
    Ok(control
        .call(|mut c| {
            let init = init.clone();
            async move { c.init(init).await }
        })
        .await?)
}

async fn add_node(control: &Control, n: u32) -> Result<(), DevError> {
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
    Ok(())
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

fn format(folder: &Folder, n: u32, cluster: &str, size: u64) -> Result<Child, DevError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::{Life, Record, down};

    /// A process that would live for a minute, recorded as this member's.
    fn sleeper(folder: &Folder, m: Member) -> Started {
        std::fs::create_dir_all(folder.of(m)).unwrap();
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        Started::of(folder, m, child).unwrap()
    }

    fn made(dir: &Path) -> (Folder, Plan) {
        (Folder::new(&dir.join("c")).unwrap(), Plan { nodes: 2 })
    }

    #[tokio::test]
    async fn a_making_that_is_dropped_leaves_neither_process_nor_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, plan) = made(dir.path());
        let records = {
            let mut making = Making::begin(&folder, plan).unwrap();
            making.started.push(sleeper(&folder, Folder::metads()[0]));
            making.started.push(sleeper(&folder, node(2)));
            making.formats.push((1, Command::new("sleep").arg("60").spawn().unwrap()));
            let format = Record::of(making.formats[0].1.id()).unwrap();
            let mut all: Vec<Record> = making.started.iter().map(|s| s.record).collect();
            all.push(format);
            // As Ctrl-C does it: in the middle of a wait.
            let waiting = making.formatted();
            assert!(tokio::time::timeout(LOOK * 3, waiting).await.is_err(), "it waits");
            assert!(all.iter().all(|r| r.life() == Life::Running));
            all
        };
        assert!(records.iter().all(|r| r.life() == Life::Dead), "{records:?}");
        assert!(!folder.path().exists());
    }

    #[tokio::test]
    async fn what_was_broken_off_hard_is_refused_by_name_and_wiped() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, plan) = made(dir.path());
        let mut making = Making::begin(&folder, plan).unwrap();
        let mut process = sleeper(&folder, node(1));
        let record = process.record;
        // As after SIGKILL: nobody cleans up.
        making.kept = true;
        drop(making);
        let options = Options { nodes: None, drive_size: None, settings: Vec::new() };
        assert!(matches!(up(&folder, &options).await, Err(DevError::BrokenOff(_))));
        assert!(matches!(down(&folder, false).await, Err(DevError::BrokenOff(_))));
        // Its parent, here, is to take note of its end.
        let reaper = std::thread::spawn(move || while process.check(&made(Path::new("/")).0).is_ok() {});
        assert_eq!(down(&folder, true).await.unwrap(), ["n1"]);
        reaper.join().unwrap();
        assert_eq!(record.life(), Life::Dead);
        assert!(!folder.path().exists());
    }

    #[tokio::test]
    async fn a_cluster_that_exists_has_its_own_shape() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, _) = made(dir.path());
        std::fs::create_dir_all(folder.path()).unwrap();
        let shape = Shape { nodes: 3, drive_size: 1 << 30, cluster: String::new(), token: String::new() };
        std::fs::write(folder.shape_file(), serde_json::to_string(&shape).unwrap()).unwrap();
        for (nodes, drive_size) in [(Some(4), None), (None, Some(2 << 30)), (Some(3), Some(2 << 30))] {
            let options = Options { nodes, drive_size, settings: Vec::new() };
            let refused = up(&folder, &options).await;
            assert!(matches!(refused, Err(DevError::OtherShape { is: 3, .. })), "{refused:?}");
        }
    }
}
