//! The command line.

use super::output::{Format, Output};
use super::size::Size;
use crate::control::is_endpoint;
use crate::dev::Signal;
use crate::uri::Uri;
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::path::PathBuf;

#[derive(Parser, Debug)]
#[command(name = "blockctl", version, about = "Operates a blockd cluster", infer_subcommands = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub noun: Noun,
}

/// May stand anywhere.
#[derive(Args, Debug, Clone)]
pub struct Global {
    /// A cluster in a folder (see `dev up`).
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "endpoint")]
    pub dir: Option<PathBuf>,
    /// metads to ask.
    #[arg(long, global = true, value_name = "HOST:PORT,..", value_delimiter = ',')]
    pub endpoint: Vec<String>,
    #[arg(long, global = true, value_enum, default_value_t)]
    pub format: Format,
    /// Do what cannot be undone without asking.
    #[arg(long, global = true)]
    pub yes: bool,
    /// Say what would be done, and do nothing.
    #[arg(long, global = true)]
    pub dry_run: bool,
}

#[derive(Subcommand, Debug)]
pub enum Noun {
    /// The cluster as a whole, and its metads.
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Nodes.
    #[command(subcommand)]
    Node(NodeVerb),
    /// Drives.
    #[command(subcommand)]
    Drive(DriveVerb),
    /// Volumes.
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Snapshots of volumes.
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// Snapshots by schedule, and how many of them are kept.
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// What happened.
    Events {
        /// Only those after this number.
        #[arg(long, default_value_t = 0)]
        after: u64,
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Work that takes its time.
    #[command(subcommand)]
    Job(JobVerb),
    /// Write to an export, remember what was acknowledged, and check it.
    Load(LoadArgs),
    /// A cluster in one folder, of real processes on loopback.
    #[command(subcommand)]
    Dev(DevVerb),
    /// A script that completes blockctl's commands in a shell.
    Completion { shell: clap_complete::Shell },
    /// What an error's code means.
    Explain { code: String },
}

#[derive(Subcommand, Debug)]
#[command(infer_subcommands = true)]
pub enum ClusterVerb {
    /// Make a cluster on a metad that has none.
    Init {
        #[arg(long, default_value = "blockd")]
        name: String,
        /// Further first metads, as ID=HOST:PORT.
        #[arg(long, value_name = "ID=HOST:PORT", value_parser = member)]
        metad: Vec<(u64, String)>,
    },
    /// Take one more metad into the cluster.
    Join {
        token: String,
        /// The new one's id, from its metad.toml.
        #[arg(long)]
        id: u64,
        /// Where the others reach it.
        #[arg(long, value_name = "HOST:PORT", value_parser = endpoint)]
        address: String,
    },
    /// Take a metad out of the cluster.
    Leave {
        #[arg(long)]
        id: u64,
    },
    /// How the cluster is.
    Status,
    /// Replicas on drives that nobody needs, and why they are there still.
    Orphans,
    /// What lets nodes and metads join.
    Token,
    /// Settings of the cluster.
    #[command(subcommand)]
    Config(ConfigVerb),
}

fn member(text: &str) -> Result<(u64, String), String> {
    let (id, address) = text.split_once('=').ok_or("write ID=HOST:PORT")?;
    let number = id.parse().ok().filter(|n| *n > 0);
    Ok((number.ok_or_else(|| format!("\"{id}\" is no id: they are 1 and up"))?, endpoint(address)?))
}

fn endpoint(text: &str) -> Result<String, String> {
    if is_endpoint(text) { Ok(text.to_owned()) } else { Err(format!("\"{text}\" is not HOST:PORT")) }
}

#[derive(Subcommand, Debug)]
#[command(infer_subcommands = true)]
pub enum JobVerb {
    /// Those that run, and those that ended lately.
    #[command(visible_alias = "ls")]
    List,
    Show {
        /// Like j3.
        job: String,
    },
    /// Until it ends.
    Wait {
        job: String,
        /// Seconds.
        #[arg(long, default_value_t = 3600)]
        timeout: u64,
    },
    /// Call it off. What it has done so far stays, and harms nothing.
    Cancel { job: String },
}

#[derive(Subcommand, Debug)]
#[command(infer_subcommands = true)]
pub enum ConfigVerb {
    /// All settings, or one.
    Get { key: Option<String> },
    Set {
        #[arg(value_name = "KEY=VALUE", value_parser = pair)]
        setting: (String, String),
    },
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

#[derive(Subcommand, Debug)]
#[command(infer_subcommands = true)]
pub enum NodeVerb {
    #[command(visible_alias = "ls")]
    List,
    Show {
        node: String,
    },
    /// Make a node known; prints what its blockd.toml needs.
    Add {
        name: String,
        /// Failure domain above the node.
        #[arg(long, default_value = "")]
        zone: String,
    },
    /// Move all replicas elsewhere.
    Drain {
        node: String,
        /// Take it back into use.
        #[arg(long)]
        undo: bool,
    },
    /// Forget a node that is drained and stopped.
    #[command(visible_alias = "rm")]
    Remove {
        node: String,
    },
}

#[derive(Subcommand, Debug)]
#[command(infer_subcommands = true)]
pub enum DriveVerb {
    #[command(visible_alias = "ls")]
    List,
    Show {
        drive: String,
    },
    /// Format a drive and take it into use, through the admin socket of its node.
    Add {
        path: PathBuf,
        /// Node of a cluster in a folder, as `n3`.
        #[arg(long)]
        node: Option<String>,
        /// blockd's admin socket.
        #[arg(long, default_value = "/run/blockd/admin.sock")]
        socket: PathBuf,
        /// It is formatted already.
        #[arg(long)]
        no_format: bool,
        /// Over a signature that is there; the reason is logged.
        #[arg(long, value_name = "REASON")]
        force: Option<String>,
    },
    /// Move all replicas elsewhere.
    Drain {
        drive: String,
        #[arg(long)]
        undo: bool,
    },
    /// Forget a drive that is drained.
    #[command(visible_alias = "rm")]
    Remove {
        drive: String,
    },
}

#[derive(Subcommand, Debug)]
#[command(infer_subcommands = true)]
pub enum VolumeVerb {
    /// A new volume, all zeroes.
    #[command(alias = "c")]
    Create {
        name: String,
        #[arg(long)]
        size: Size,
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        copies: u32,
        #[arg(long)]
        chunk_size: Option<Size>,
        /// Writes need so many in-sync replicas.
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        min_in_sync: u32,
        /// Every write is on media before it is acknowledged.
        #[arg(long)]
        write_through: bool,
        /// With too few replicas writes fail instead of waiting.
        #[arg(long)]
        fail_when_degraded: bool,
        /// Put the first replicas on this node, if it fits.
        #[arg(long)]
        near: Option<String>,
        /// Return when it is placed; its records may still be made.
        #[arg(long)]
        no_wait: bool,
    },
    #[command(visible_alias = "ls")]
    List {
        /// Deleted ones, which can be restored.
        #[arg(long)]
        trash: bool,
    },
    Show {
        name: String,
        /// So many chunks in JSON and YAML.
        #[arg(long, default_value_t = 1024)]
        chunks: u32,
    },
    /// Wait until a volume is ready, healthy, attached, detached or deleted.
    Wait {
        name: String,
        #[arg(long, default_value = "healthy")]
        state: String,
        /// Seconds.
        #[arg(long, default_value_t = 120)]
        timeout: u64,
    },
    /// Make it larger; or smaller, which is a job.
    Resize {
        name: String,
        #[arg(long)]
        size: Size,
        /// When it is larger, end its NBD connections, so that clients connect anew and learn the size. For clients that do
        /// (QEMU with `reconnect-delay`): others lose their disk.
        #[arg(long, conflicts_with = "force")]
        reconnect: bool,
        /// It may get smaller, if nothing is written beyond the new end.
        #[arg(long)]
        force: bool,
        /// Whatever is written there.
        #[arg(long, requires = "force")]
        discard: bool,
        /// Smaller: return when it is done, or after so many seconds.
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "3600")]
        wait: Option<u64>,
    },
    /// To the trash, for as long as the setting `trash` says.
    #[command(visible_alias = "rm")]
    Delete {
        name: String,
        /// Although a guest is attached; the reason is logged.
        #[arg(long, value_name = "REASON")]
        force: Option<String>,
        /// And all of its snapshots; those that are protected keep it.
        #[arg(long)]
        with_snapshots: bool,
        /// Not to the trash: erase it at once.
        #[arg(long, conflicts_with = "to_trash")]
        now: bool,
        /// Although clones read from it: it rests in the trash until they are gone.
        #[arg(long)]
        to_trash: bool,
    },
    /// How many snapshots it may have.
    Quota {
        name: String,
        /// So many, or none: as many as there can be.
        #[arg(long, value_name = "N", value_parser = limit)]
        snapshots: Limit,
        /// Count only those made by hand, not what policies make.
        #[arg(long)]
        manual_only: bool,
    },
    /// Take a deleted volume out of the trash.
    Restore {
        /// Its name (of several, the one deleted last), or its id as listed.
        name: String,
        /// Under another name.
        #[arg(long = "as", value_name = "NAME")]
        to: Option<String>,
    },
    /// Erase a deleted volume before its time.
    Purge {
        /// Its name (of several, the one deleted last), or its id as listed.
        name: String,
    },
    /// A new volume that reads what it has not written from a snapshot, or from a volume as it is now.
    Clone {
        #[arg(value_name = "VOL[@SNAP]", value_parser = source_name)]
        source: SourceName,
        name: String,
        /// Larger than the source; what lies beyond it is zero.
        #[arg(long)]
        size: Option<Size>,
        /// A class of its own; without it, the source's.
        #[arg(long)]
        copies: Option<u32>,
        /// Writes need so many in-sync replicas.
        #[arg(long, requires = "copies")]
        min_in_sync: Option<u32>,
        /// Every write is on media before it is acknowledged.
        #[arg(long, requires = "copies")]
        write_through: bool,
        /// With too few replicas writes fail instead of waiting.
        #[arg(long, requires = "copies")]
        fail_when_degraded: bool,
        /// Put the first replicas on this node, if it fits.
        #[arg(long)]
        near: Option<String>,
        /// Return when it is placed; its records may still be made.
        #[arg(long)]
        no_wait: bool,
    },
    /// Back to a snapshot. The volume must be detached; its snapshots stay, newer ones too.
    Rollback {
        #[arg(value_name = "VOL@NAME", value_parser = snapshot_name)]
        name: SnapshotName,
        /// Do not make a snapshot of what is there now first: it is lost.
        #[arg(long)]
        no_safety_snapshot: bool,
    },
    /// Write into a clone all that it reads from its parent, until it needs the parent no more: a job.
    Flatten {
        name: String,
        /// Return when it is done, or after so many seconds.
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "3600")]
        wait: Option<u64>,
    },
    /// What it and its snapshots take, and what deleting each of them would free.
    Space {
        name: String,
        /// Seconds.
        #[arg(long, default_value_t = 60)]
        timeout: u64,
    },
    /// Read all in-sync replicas again from their media and compare them.
    Verify {
        name: String,
        /// Seconds.
        #[arg(long, default_value_t = 3600)]
        timeout: u64,
        /// Admin socket of the blockd that holds the volume's session, where it is not a cluster in a folder.
        #[arg(long, default_value = "/run/blockd/admin.sock")]
        socket: PathBuf,
    },
}

#[derive(Subcommand, Debug)]
#[command(infer_subcommands = true)]
pub enum PolicyVerb {
    /// When snapshots are made, and which are kept. It does nothing until it is attached to volumes.
    Create {
        name: String,
        /// hourly, daily, weekly, monthly, yearly; or minute hour day month weekday as in cron: "30 2 * * mon-fri". UTC.
        #[arg(long, required = true)]
        schedule: Vec<String>,
        /// Spread the volumes' runs over so long after each time: 10m.
        #[arg(long, value_name = "TIME", default_value = "0", value_parser = span, hide_default_value = true)]
        jitter: u64,
        #[command(flatten)]
        keep: Kept,
    },
    #[command(visible_alias = "ls")]
    List,
    /// With the volumes that it is attached to, when it ran and runs.
    Show { name: String },
    /// What it made stays.
    #[command(visible_alias = "rm")]
    Delete { name: String },
    /// Make snapshots of these volumes by it from now on.
    Attach {
        name: String,
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// What it made stays.
    Detach {
        name: String,
        #[arg(required = true)]
        volumes: Vec<String>,
    },
}

/// Each word keeps the newest snapshot of each of so many periods, and passes over those that an earlier word keeps.
#[derive(Args, Debug, Clone, Copy)]
#[group(required = true, multiple = true)]
pub struct Kept {
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub keep_last: u32,
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub keep_hourly: u32,
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub keep_daily: u32,
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub keep_weekly: u32,
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub keep_monthly: u32,
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub keep_yearly: u32,
}

/// Ms.
fn span(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[digits..] {
        "" if text == "0" => 0,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err("write 30s, 10m or 2h".into()),
    };
    let n: u64 = text[..digits].parse().map_err(|_| "write 30s, 10m or 2h")?;
    n.checked_mul(unit).filter(|ms| *ms <= 86_400_000).ok_or_else(|| "at most 24h".into())
}

/// So many, or none.
fn limit(text: &str) -> Result<Limit, String> {
    if text == "none" {
        return Ok(Limit(None));
    }
    text.parse().map(|n| Limit(Some(n))).map_err(|_| format!("\"{text}\" is no number; write one, or none"))
}
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit(pub Option<u32>);

#[derive(Subcommand, Debug)]
#[command(infer_subcommands = true)]
pub enum SnapshotVerb {
    /// Keep volumes as they are now; returns when all that was written before is in it, and flushed.
    Create {
        #[arg(required = true, value_name = "VOL@NAME", value_parser = snapshot_name)]
        names: Vec<SnapshotName>,
        /// Of several volumes, all at one moment, or none.
        #[arg(long)]
        group: bool,
        #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
        label: Vec<(String, String)>,
        /// Not to be deleted before: 2026-12-31, 2026-12-31T18:00 (UTC), or 30d from now.
        #[arg(long, value_name = "DATE", value_parser = moment)]
        protect_until: Option<Moment>,
    },
    /// Of one volume, or all.
    #[command(visible_alias = "ls")]
    List {
        volume: Option<String>,
        #[command(flatten)]
        space: WithSpace,
    },
    Show {
        #[arg(value_name = "VOL@NAME", value_parser = snapshot_name)]
        name: SnapshotName,
        #[command(flatten)]
        space: WithSpace,
    },
    Rename {
        #[arg(value_name = "VOL@NAME", value_parser = snapshot_name)]
        name: SnapshotName,
        /// The name alone.
        to: String,
    },
    #[command(visible_alias = "rm")]
    Delete {
        #[arg(required = true, value_name = "VOL@NAME", value_parser = snapshot_name)]
        names: Vec<SnapshotName>,
    },
    /// Not to be deleted before a date.
    Protect {
        #[arg(value_name = "VOL@NAME", value_parser = snapshot_name)]
        name: SnapshotName,
        /// 2026-12-31, 2026-12-31T18:00 (UTC), 30d from now, or none.
        #[arg(long, value_name = "DATE", value_parser = moment)]
        until: Moment,
        /// Earlier than before; the reason is logged.
        #[arg(long, value_name = "REASON")]
        force: Option<String>,
    },
    /// Set labels (KEY=VALUE) and remove them (KEY-).
    Label {
        #[arg(value_name = "VOL@NAME", value_parser = snapshot_name)]
        name: SnapshotName,
        #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
        labels: Vec<String>,
    },
    /// Which bytes were written or discarded between two snapshots of a volume (or more).
    Diff {
        #[arg(value_name = "VOL@OLDER", value_parser = snapshot_name)]
        from: SnapshotName,
        #[arg(value_name = "VOL@NEWER", value_parser = snapshot_name)]
        to: SnapshotName,
        #[command(flatten)]
        nbd: NbdSocket,
    },
    /// Write a snapshot, or what changed since an older one, to a file or a pipe.
    Export {
        #[arg(value_name = "VOL@NAME", value_parser = snapshot_name)]
        name: SnapshotName,
        /// Only what changed since this one.
        #[arg(long, value_name = "VOL@OLDER", value_parser = snapshot_name)]
        from: Option<SnapshotName>,
        /// A new file; - is the standard output.
        #[arg(long, value_name = "FILE|-")]
        output: PathBuf,
        /// Go on with a file that was cut.
        #[arg(long)]
        resume: bool,
        #[command(flatten)]
        nbd: NbdSocket,
    },
    /// Make a volume and its snapshot of a stream, or add an increment to it: all of it, or nothing.
    Import {
        /// - is the standard input, kept in a temporary file until it was checked.
        #[arg(value_name = "FILE|-")]
        input: PathBuf,
        /// The volume: a new one, but for an increment.
        name: String,
        #[command(flatten)]
        nbd: NbdSocket,
    },
}

#[derive(Args, Debug, Clone, Copy)]
pub struct WithSpace {
    /// With what each takes: the nodes count it, which takes some time.
    #[arg(long)]
    pub space: bool,
    /// Of the count, per volume; seconds.
    #[arg(long, default_value_t = 60, requires = "space")]
    pub timeout: u64,
}

#[derive(Args, Debug)]
pub struct NbdSocket {
    /// NBD socket of a blockd, where it is not a cluster in a folder.
    #[arg(long, default_value = "/run/blockd/nbd.sock")]
    pub nbd: PathBuf,
}

/// `volume` or `volume@snapshot`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceName {
    pub volume: String,
    /// Empty: as it is now.
    pub snapshot: String,
}
impl std::fmt::Display for SourceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = if self.snapshot.is_empty() { "" } else { "@" };
        write!(f, "{}{at}{}", self.volume, self.snapshot)
    }
}

fn source_name(text: &str) -> Result<SourceName, String> {
    if text.contains('@') {
        return snapshot_name(text).map(|n| SourceName { volume: n.volume, snapshot: n.snapshot });
    }
    Ok(SourceName { volume: text.to_owned(), snapshot: String::new() })
}

/// `volume@snapshot`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotName {
    pub volume: String,
    pub snapshot: String,
}
impl std::fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.volume, self.snapshot)
    }
}

fn snapshot_name(text: &str) -> Result<SnapshotName, String> {
    let parts = text.split_once('@').filter(|(v, s)| !v.is_empty() && !s.is_empty());
    let (volume, snapshot) = parts.ok_or("write VOLUME@SNAPSHOT")?;
    Ok(SnapshotName { volume: volume.into(), snapshot: snapshot.into() })
}

/// As it is typed: a date, so long from now, or never.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    None,
    /// Unix ms.
    At(u64),
    /// Ms.
    In(u64),
}

fn moment(text: &str) -> Result<Moment, String> {
    const UNITS: [(char, u64); 5] = [('s', 1), ('m', 60), ('h', 3_600), ('d', 86_400), ('w', 7 * 86_400)];
    if text == "none" {
        return Ok(Moment::None);
    }
    if let Some(ms) = proto::date::parse_date(text) {
        return Ok(Moment::At(ms));
    }
    let span = UNITS.iter().find_map(|(letter, secs)| {
        let n: u64 = text.strip_suffix(*letter)?.parse().ok()?;
        n.checked_mul(secs * 1000)
    });
    // Far enough, and far from where numbers end.
    let span = span.filter(|ms| *ms <= 1000 * 366 * 86_400_000);
    span.map(Moment::In).ok_or_else(|| "write 2026-12-31, 2026-12-31T18:00 (UTC), 30d or none".to_owned())
}

/// Up to a year: far enough, and far from where clocks end.
fn seconds() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(0..=365 * 86_400)
}

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct LoadArgs {
    #[command(subcommand)]
    pub check: Option<LoadVerb>,
    #[arg(required = true)]
    pub uri: Option<Uri>,
    /// What was sent, acknowledged and flushed.
    #[arg(long, required = true)]
    pub log: Option<PathBuf>,
    /// Connect again when the connection is lost, for so many seconds (60).
    #[arg(long, value_name = "SECS", num_args = 0..=1, require_equals = true, default_missing_value = "60", value_parser = seconds())]
    pub reconnect: Option<u64>,
    /// Writes in flight.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub depth: u32,
    #[arg(long, default_value_t = 10, value_parser = seconds())]
    pub secs: u64,
    /// Only the first bytes of the volume.
    #[arg(long)]
    pub span: Option<Size>,
    /// Chooses sizes and places.
    #[arg(long)]
    pub seed: Option<u64>,
}

#[derive(Subcommand, Debug)]
pub enum LoadVerb {
    /// Read everything back: is anything that was acknowledged missing, or torn?
    Check {
        uri: Uri,
        log: PathBuf,
        /// After a power loss of the whole cluster: only what a completed flush covers must be there.
        #[arg(long)]
        flushed_only: bool,
    },
}

#[derive(Subcommand, Debug)]
#[command(infer_subcommands = true)]
pub enum DevVerb {
    /// Make a cluster in --dir, or go on with the one that is there.
    Up {
        /// 3, unless the cluster exists.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=99))]
        nodes: Option<u32>,
        /// 10GiB, unless the cluster exists.
        #[arg(long)]
        drive_size: Option<Size>,
        /// A cluster setting.
        #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
        set: Vec<(String, String)>,
    },
    /// Send a signal to n3, m1, metad-leader or all.
    Kill {
        #[arg(required = true)]
        who: Vec<String>,
        #[arg(long, value_enum, default_value = "KILL", ignore_case = true)]
        signal: Signal,
    },
    /// Start what does not run: n3, m1 or all.
    Start {
        #[arg(required = true)]
        who: Vec<String>,
    },
    /// End all processes; data stays.
    Down {
        /// Remove the cluster too.
        #[arg(long)]
        wipe: bool,
    },
    Status,
}

/// The script for one shell.
pub fn completion(shell: clap_complete::Shell) -> Output {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "blockctl", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    Output::new(
        "completion/1",
        serde_json::json!({"shell": shell.to_string(), "script": script}),
        script.clone(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn prefixes_aliases_and_options_anywhere_work() {
        for line in [
            "blockctl vol ls --dir /x",
            "blockctl --dir /x volume list",
            "blockctl volume --format json list",
            "blockctl v c a --size 10G",
            "blockctl volume rm a --yes --now",
            "blockctl volume rm a --to-trash --with-snapshots",
            "blockctl volume ls --trash",
            "blockctl volume restore v12 --as b",
            "blockctl policy create p --schedule daily --schedule hourly --jitter 10m --keep-daily 7 --keep-last 2",
            "blockctl policy ls",
            "blockctl policy attach p a b",
            "blockctl volume quota a --snapshots 5 --manual-only",
            "blockctl volume quota a --snapshots none",
            "blockctl volume purge a --yes",
            "blockctl volume space a --timeout 5",
            "blockctl snapshot ls a --space --timeout 5",
            "blockctl snapshot show a@1 --space",
            "blockctl cluster config set down_out=20s",
            "blockctl dev kill metad-leader --signal stop",
            "blockctl load nbd+unix:///v?socket=/s --log /l --reconnect --secs 3",
            "blockctl cluster token",
            "blockctl cluster orphans",
            "blockctl snapshot create a@1 b@1 --group --label app=db --protect-until 2026-12-31",
            "blockctl snap ls",
            "blockctl snapshot protect a@1 --until 30d --force mistyped",
            "blockctl snapshot protect a@1 --until none",
            "blockctl snapshot label a@1 app=db old-",
            "blockctl snapshot diff a@1 a@2",
            "blockctl snapshot export a@2 --from a@1 --output - --nbd /s",
            "blockctl snapshot export a@2 --output /f --resume",
            "blockctl snapshot import - b",
            "blockctl cluster init --metad 2=10.0.0.2:7400 --metad 3=[::1]:7400",
            "blockctl load check nbd+unix:///v?socket=/s /l",
        ] {
            parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in [
            "blockctl volume create a",
            "blockctl volume create a --size 1.5",
            "blockctl load nbd+unix:///v?socket=/s",
            "blockctl --dir /x --endpoint a:1 volume ls",
            "blockctl c",
            "blockctl volume rm a --now --to-trash",
            "blockctl policy create p --schedule daily",
            "blockctl policy create p --keep-last 3",
            "blockctl policy create p --schedule daily --keep-last 3 --jitter 2d",
            "blockctl policy attach p",
            "blockctl volume quota a --snapshots many",
            "blockctl snapshot create",
            "blockctl snapshot create a",
            "blockctl snapshot show @a",
            "blockctl snapshot diff a@1",
            "blockctl snapshot ls a --timeout 5",
            "blockctl snapshot export a@2",
            "blockctl snapshot import /f",
            "blockctl snapshot protect a@1 --until 2026-02-30",
            "blockctl snapshot protect a@1 --until 99999999999999d",
            "blockctl cluster init --metad 2=10.0.0.2",
            "blockctl cluster init --metad 0=10.0.0.2:7400",
            "blockctl cluster init --metad 2=10.0.0.2:74000",
            "blockctl cluster join t --id 2 --address m2",
            "blockctl load nbd+unix:///v?socket=/s --log /l --secs 18446744073709551615",
            "blockctl load nbd+unix:///v?socket=/s --log /l --reconnect=18446744073709551615",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
