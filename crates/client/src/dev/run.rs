//! The processes of a cluster that exists: start, signal, stop, show.

use super::layout::{Folder, Member, Plan, Role, Shape};
use super::process::{Life, Record, Started};
use super::{DevError, io};
use crate::control::{self, Control};
use api::v1::blockd_admin_client::BlockdAdminClient;
use api::v1::{BlockdStatusRequest, ListDrivesRequest, ListNodesRequest, MetadRequest};
use std::time::{Duration, Instant};
use tonic::transport::Endpoint;

/// Until a process that was started serves.
const READY: Duration = Duration::from_secs(60);
/// A daemon ends within 10 s of a SIGTERM.
const TERM_PATIENCE: Duration = Duration::from_secs(15);
const KILL_PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);
/// One question at one process.
const ASK: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
#[value(rename_all = "UPPER")]
pub enum Signal {
    Kill,
    Stop,
    Cont,
    Term,
}
impl Signal {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Signal::Kill => "KILL",
            Signal::Stop => "STOP",
            Signal::Cont => "CONT",
            Signal::Term => "TERM",
        }
    }
    fn raw(self) -> rustix::process::Signal {
        match self {
            Signal::Kill => rustix::process::Signal::KILL,
            Signal::Stop => rustix::process::Signal::STOP,
            Signal::Cont => rustix::process::Signal::CONT,
            Signal::Term => rustix::process::Signal::TERM,
        }
    }
}

/// One line of `dev status`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    pub member: Member,
    pub record: Option<Record>,
    pub life: Life,
}

/// # Errors
/// There is no cluster in this folder.
pub fn status(folder: &Folder) -> Result<Vec<Shown>, DevError> {
    let shape = folder.shape()?;
    let show = |member| {
        let record = Record::read(folder, member)?;
        Ok(Shown { member, record, life: record.map_or(Life::Dead, Record::life) })
    };
    Folder::members(&shape).into_iter().map(show).collect()
}

/// The members that a word names: `n3`, `m1`, `all`, `metad-leader`.
async fn named(folder: &Folder, shape: &Shape, word: &str) -> Result<Vec<Member>, DevError> {
    let all = Folder::members(shape);
    match word {
        "all" => Ok(all),
        "metad-leader" => Ok(vec![leader(folder).await?]),
        name => match all.iter().find(|m| m.name() == name) {
            Some(m) => Ok(vec![*m]),
            None => {
                let known: Vec<String> = all.iter().map(|m| m.name()).collect();
                Err(DevError::Unknown { name: name.into(), known: known.join(", ") + ", metad-leader, all" })
            }
        },
    }
}

/// Who leads, by the word of the one that does: the newest term counts.
async fn leader(folder: &Folder) -> Result<Member, DevError> {
    let until = Instant::now() + READY / 4;
    loop {
        let mut best: Option<(u64, Member)> = None;
        for m in Folder::metads() {
            let Some(address) = folder.metad_address(m)? else { continue };
            if Record::read(folder, m)?.is_none_or(|r| r.life() != Life::Running) {
                continue;
            }
            let mut client = control::one(&address)?;
            if let Ok(Ok(answer)) = tokio::time::timeout(ASK, client.metad(MetadRequest {})).await {
                let answer = answer.into_inner();
                if answer.role == "leader" && answer.id == u64::from(m.number) {
                    best = best.max(Some((answer.term, m)));
                }
            }
        }
        if let Some((_, m)) = best {
            return Ok(m);
        }
        if Instant::now() >= until {
            return Err(DevError::NoLeader);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The names that words stand for.
///
/// # Errors
/// An unknown name, or no cluster in this folder.
pub async fn resolve(folder: &Folder, words: &[String]) -> Result<Vec<String>, DevError> {
    let shape = folder.shape()?;
    let mut names = Vec::new();
    for word in words {
        names.extend(named(folder, &shape, word).await?.iter().map(|m| m.name()));
    }
    Ok(names)
}

/// Sends a signal to the named ones; after KILL and TERM waits until they are gone.
///
/// # Errors
/// An unknown name, or a process that does not end.
pub async fn kill(folder: &Folder, words: &[String], signal: Signal) -> Result<Vec<String>, DevError> {
    let shape = folder.shape()?;
    let mut members = Vec::new();
    for word in words {
        members.extend(named(folder, &shape, word).await?);
    }
    let mut hit = Vec::new();
    for m in &members {
        if let Some(record) = Record::read(folder, *m)?.filter(|r| r.life() != Life::Dead) {
            hit.push((*m, record));
        }
    }
    // All at once first: they go down together.
    for (m, record) in &hit {
        record.signal(signal.raw()).map_err(io(folder.of(*m)))?;
    }
    let patience = match signal {
        Signal::Kill => KILL_PATIENCE,
        Signal::Term => TERM_PATIENCE,
        Signal::Stop | Signal::Cont => Duration::ZERO,
    };
    if patience > Duration::ZERO {
        for (m, record) in &hit {
            if !record.wait(patience) {
                return Err(DevError::Immortal { name: m.name(), pid: record.pid });
            }
        }
    }
    Ok(hit.iter().map(|(m, _)| m.name()).collect())
}

/// Starts the named ones that do not run. They serve when this returns.
///
/// # Errors
/// One that ends at its start, or does not serve in time.
pub async fn start(folder: &Folder, words: &[String]) -> Result<Vec<String>, DevError> {
    let shape = folder.shape()?;
    let mut members = Vec::new();
    for word in words {
        members.extend(named(folder, &shape, word).await?);
    }
    start_members(folder, &members).await
}

/// What was started and does not come to serve is ended again.
pub(super) async fn start_members(folder: &Folder, members: &[Member]) -> Result<Vec<String>, DevError> {
    let mut started = Vec::new();
    match start_all(folder, members, &mut started).await {
        Ok(names) => Ok(names),
        Err(e) => {
            started.into_iter().for_each(Started::abandon);
            Err(e)
        }
    }
}

async fn start_all(
    folder: &Folder,
    members: &[Member],
    started: &mut Vec<Started>,
) -> Result<Vec<String>, DevError> {
    for m in members {
        match Record::read(folder, *m)?.map_or(Life::Dead, Record::life) {
            Life::Dead => started.push(Started::new(folder, *m)?),
            Life::Stopped => {
                if let Some(record) = Record::read(folder, *m)? {
                    record.signal(rustix::process::Signal::CONT).map_err(io(folder.of(*m)))?;
                }
            }
            Life::Running => {}
        }
    }
    let new: Vec<Member> = started.iter().map(|s| s.member).collect();
    let (metads, nodes): (Vec<Member>, Vec<Member>) = new.iter().partition(|m| m.role == Role::Metad);
    metads_answer(folder, &metads, started, READY).await?;
    if !nodes.is_empty() {
        let control = Control::new(folder.endpoints()?, READY)?;
        nodes_serve(folder, &control, &nodes, started, READY).await?;
    }
    Ok(new.iter().map(|m| m.name()).collect())
}

/// Ends everything: nodes first, so that they can say goodbye.
///
/// # Errors
/// A process that does not end even when killed.
pub async fn down(folder: &Folder, wipe: bool) -> Result<Vec<String>, DevError> {
    let shape = match (folder.shape(), folder.making()?) {
        // There is nothing to go on with.
        (Err(DevError::BrokenOff(_)), Some(plan)) if wipe => return remove_broken_off(folder, plan),
        (shape, _) => shape?,
    };
    let mut ended = Vec::new();
    for role in [Role::Blockd, Role::Metad] {
        let members = Folder::members(&shape).into_iter().filter(|m| m.role == role);
        let names: Vec<String> = members.map(|m| m.name()).collect();
        // One that is stopped cannot end.
        kill(folder, &names, Signal::Cont).await?;
        match kill(folder, &names, Signal::Term).await {
            Ok(hit) => ended.extend(hit),
            Err(DevError::Immortal { .. }) => ended.extend(kill(folder, &names, Signal::Kill).await?),
            Err(e) => return Err(e),
        }
    }
    if wipe {
        for m in Folder::members(&shape) {
            let dir = folder.of(m);
            std::fs::remove_dir_all(&dir).map_err(io(&dir))?;
        }
        let _ = std::fs::remove_file(folder.addresses_file());
        let _ = std::fs::remove_file(folder.making_file());
        std::fs::remove_file(folder.shape_file()).map_err(io(folder.shape_file()))?;
        // Stays if there is something else in it.
        let _ = std::fs::remove_dir(folder.path());
    }
    Ok(ended)
}

/// What a `dev up` left that did not come to its end.
fn remove_broken_off(folder: &Folder, plan: Plan) -> Result<Vec<String>, DevError> {
    let mut ended = Vec::new();
    for m in Folder::planned(plan) {
        let Some(record) = Record::read(folder, m)?.filter(|r| r.life() != Life::Dead) else { continue };
        record.signal(rustix::process::Signal::KILL).map_err(io(folder.of(m)))?;
        if !record.wait(KILL_PATIENCE) {
            return Err(DevError::Immortal { name: m.name(), pid: record.pid });
        }
        ended.push(m.name());
    }
    super::up::clean(folder, plan, false);
    Ok(ended)
}

fn check_all(folder: &Folder, started: &mut [Started]) -> Result<(), DevError> {
    started.iter_mut().try_for_each(|s| s.check(folder))
}

fn late(folder: &Folder, m: Member, patience: Duration, waits: &str) -> DevError {
    DevError::NotReady { name: m.name(), secs: patience.as_secs(), waits: waits.into(), log: folder.log(m) }
}

/// Waits until each of these metads answers at the address it wrote down; returns the addresses.
pub(super) async fn metads_answer(
    folder: &Folder,
    metads: &[Member],
    started: &mut [Started],
    patience: Duration,
) -> Result<Vec<String>, DevError> {
    let until = Instant::now() + patience;
    let mut addresses = Vec::new();
    for m in metads {
        loop {
            check_all(folder, started)?;
            if let Some(address) = folder.metad_address(*m)? {
                let mut client = control::one(&address)?;
                let answer = tokio::time::timeout(ASK, client.metad(MetadRequest {})).await;
                if let Ok(Ok(answer)) = answer
                    && answer.get_ref().id == u64::from(m.number)
                {
                    addresses.push(address);
                    break;
                }
            }
            if Instant::now() >= until {
                return Err(late(folder, *m, patience, "it does not answer"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(addresses)
}

/// Waits until each of these nodes serves all its drives, and metad says so.
pub(super) async fn nodes_serve(
    folder: &Folder,
    control: &Control,
    nodes: &[Member],
    started: &mut [Started],
    patience: Duration,
) -> Result<(), DevError> {
    let until = Instant::now() + patience;
    for m in nodes {
        while let Err(waits) = serves(folder, *m).await {
            check_all(folder, started)?;
            if Instant::now() >= until {
                return Err(late(folder, *m, patience, &waits));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    loop {
        check_all(folder, started)?;
        let all = control.call(|mut c| async move { c.list_nodes(ListNodesRequest {}).await }).await?.nodes;
        let drives =
            control.call(|mut c| async move { c.list_drives(ListDrivesRequest {}).await }).await?.drives;
        let up = |m: &&Member| {
            let here = |d: &&api::v1::Drive| d.node == m.number;
            all.iter().any(|n| n.id == m.number && n.up)
                && drives.iter().any(|d| here(&d))
                && drives.iter().filter(here).all(|d| d.state == "up" || d.state == "draining")
        };
        let Some(missing) = nodes.iter().find(|m| !up(m)) else { return Ok(()) };
        if Instant::now() >= until {
            return Err(late(folder, *missing, patience, "metad does not call it up"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Says what is missing.
async fn serves(folder: &Folder, m: Member) -> Result<(), String> {
    let mut client = admin(folder, m.number).await.map_err(|e| e.to_string())?;
    let asked = tokio::time::timeout(ASK, client.status(BlockdStatusRequest {})).await;
    let status = asked.map_err(|_| "it does not answer")?.map_err(|s| s.message().to_owned())?.into_inner();
    match status.drives.iter().find(|d| d.state != "serving") {
        Some(d) => Err(format!("drive {} is {}", d.path, d.state)),
        None if status.drives.is_empty() => Err("it has no drive yet".into()),
        None => Ok(()),
    }
}

/// The admin service of a node in this folder.
///
/// # Errors
/// Its socket is not there, or nobody listens.
pub async fn admin(
    folder: &Folder,
    node: u32,
) -> Result<BlockdAdminClient<tonic::transport::Channel>, tonic::transport::Error> {
    let uri = format!("unix://{}", folder.admin_socket(node).display());
    Ok(BlockdAdminClient::new(Endpoint::from_shared(uri)?.connect_timeout(ASK).connect().await?))
}
