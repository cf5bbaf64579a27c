//! Members of metad's own Raft group: the first ones, one more, one less.

use super::lead::Lead;
use super::quorum::{self, Peer};
use crate::raft::network::{ClusterCell, channel, cluster_bytes};
use crate::raft::silence::Silence;
use crate::raft::types::{MetadId, Metrics, Raft};
use api::v1::cluster_service_client::ClusterServiceClient;
use api::v1::{Check, ErrorDetail, MetadAnswer, MetadMember, MetadRequest};
use openraft::error::{ClientWriteError, InitializeError, RaftError};
use openraft::{BasicNode, ChangeMembers, ServerState};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tonic::{Code, Status};

/// Until somebody leads after the first start.
const FIRST_ELECTION: Duration = Duration::from_secs(5);
/// Until a metad that is to become a member has said who it is.
const MEET: Duration = Duration::from_secs(2);
/// Until the new one has the log.
const CATCH_UP: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Members {
    pub id: MetadId,
    /// As others reach it.
    pub address: String,
    pub raft: Raft,
    pub lead: Lead,
    pub cluster: ClusterCell,
    pub silence: Silence,
    /// A peer that leaves messages without an answer for so long is down.
    pub patience: Duration,
}

fn refuse(status: Code, code: u32, exit: u32, message: String, cause: &str, fix: &str) -> Status {
    let (cause, fix) = (cause.into(), fix.into());
    api::error::status(status, &ErrorDetail { code, message, cause, fix, leader: None, exit })
}

fn other_metad(text: String, cause: &str) -> Status {
    refuse(Code::FailedPrecondition, 1904, 8, text, cause, "blockctl cluster status")
}

fn check_address(id: MetadId, address: &str) -> Result<(), Status> {
    if crate::config::is_endpoint(address) {
        return Ok(());
    }
    let text = format!("\"{address}\" is no address of metad {id}");
    let fix = "write HOST:PORT, as in 10.0.0.1:7400";
    Err(refuse(Code::InvalidArgument, 1913, 2, text, "the others must be able to reach it there", fix))
}

/// Members by their ids; each id and each address once.
fn named(members: &[MetadMember]) -> Result<BTreeMap<MetadId, BasicNode>, Status> {
    let mut nodes = BTreeMap::new();
    let mut addresses = BTreeSet::new();
    for m in members {
        check_address(m.id, &m.address)?;
        let twice = nodes.insert(m.id, BasicNode::new(&m.address)).is_some();
        if twice || m.id == 0 || !addresses.insert(&m.address) {
            let text = format!("metad {} at {} cannot be a member as it is named", m.id, m.address);
            let cause = "ids are 1 and up, and each metad has its own id and address";
            return Err(refuse(
                Code::InvalidArgument,
                1913,
                2,
                text,
                cause,
                "write each as ID=HOST:PORT, once",
            ));
        }
    }
    Ok(nodes)
}

impl Members {
    /// What this metad knows of itself and the others.
    pub fn show(&self) -> MetadAnswer {
        let m: Metrics = self.lead.metrics();
        let role = match m.state {
            ServerState::Leader => "leader",
            ServerState::Follower => "follower",
            ServerState::Candidate => "candidate",
            ServerState::Learner => "learner",
            ServerState::Shutdown => "shutdown",
        };
        let membership = m.membership_config.membership();
        let voters: BTreeSet<MetadId> = membership.voter_ids().collect();
        let matched = |id: &MetadId| m.replication.as_ref()?.get(id)?.as_ref().map(|l| l.index);
        let members: Vec<MetadMember> = membership
            .nodes()
            .map(|(id, node)| MetadMember {
                id: *id,
                address: node.addr.clone(),
                voter: voters.contains(id),
                matched: matched(id),
            })
            .collect();
        let leader = m.current_leader.unwrap_or(0);
        MetadAnswer {
            id: self.id,
            address: self.address.clone(),
            cluster: cluster_bytes(&self.cluster),
            role: role.into(),
            term: m.current_term,
            leader,
            leader_address: members
                .iter()
                .find(|x| x.id == leader)
                .map_or_else(String::new, |x| x.address.clone()),
            last_log: m.last_log_index.unwrap_or(0),
            applied: m.last_applied.map_or(0, |l| l.index),
            snapshot: m.snapshot.map_or(0, |l| l.index),
            members,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// What is not well with the metads, as the leader sees it, and whether they survive the loss of one more.
    pub fn health(&self, wall_ms: u64) -> (Vec<Check>, bool) {
        let m: Metrics = self.lead.metrics();
        quorum::judge(m.membership_config.membership().get_joint_config(), &self.peers(&m), wall_ms)
    }

    /// The members as this metad sees them, if it leads.
    fn peers(&self, m: &Metrics) -> BTreeMap<MetadId, Peer> {
        let silent = self.silence.silent(Instant::now(), self.patience);
        let last = m.last_log_index.unwrap_or(0);
        let peer = |(id, node): (&MetadId, &BasicNode)| {
            let matched = m.replication.as_ref().and_then(|r| r.get(id)).map(|l| l.map_or(0, |l| l.index));
            let lag = matched.map_or(0, |l| last.saturating_sub(l));
            let silent = silent.get(id).copied().filter(|_| *id != self.id);
            (*id, Peer { id: *id, address: node.addr.clone(), lag, silent })
        };
        m.membership_config.membership().nodes().map(peer).collect()
    }

    /// Makes the first members a group, unless there is one, and waits until somebody leads it.
    ///
    /// A group's first members cannot be corrected afterwards: each is met before anything is written.
    pub async fn first(&self, members: &[MetadMember]) -> Result<(), Status> {
        let mut nodes = named(members)?;
        nodes.entry(self.id).or_insert_with(|| BasicNode::new(&self.address));
        if !self.raft.is_initialized().await.map_err(|e| Status::internal(e.to_string()))? {
            self.meet_all(&nodes).await?;
        }
        match self.raft.initialize(nodes).await {
            // Repeated, or the others were asked too: the group that exists counts.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(e) => return Err(Status::invalid_argument(e.to_string())),
        }
        let led =
            self.raft.wait(Some(FIRST_ELECTION)).metrics(|m| m.current_leader.is_some(), "a leader").await;
        led.map_err(|_| {
            let text = "no leader was elected: are all of the members named running?";
            refuse(
                Code::Unavailable,
                1902,
                20,
                text.into(),
                "a majority of them must answer",
                "blockctl cluster status",
            )
        })?;
        Ok(())
    }

    /// One more, or another address of one that is there.
    pub async fn add(&self, id: MetadId, address: &str) -> Result<(), Status> {
        self.lead.confirm().await?;
        self.meet(id, address).await?;
        let node = BasicNode::new(address);
        let metrics = self.lead.metrics();
        let membership = metrics.membership_config.membership();
        if membership.voter_ids().any(|v| v == id) {
            if membership.get_node(&id) == Some(&node) {
                return Ok(());
            }
            return self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, node)]))).await;
        }
        let learned = tokio::time::timeout(CATCH_UP, self.raft.add_learner(id, node, true)).await;
        learned
            .map_err(|_| Status::deadline_exceeded("the new metad does not catch up; it stays a learner"))?
            .map_err(|e| self.changed_error(e))?;
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id]))).await
    }

    /// All of them at once; the first refusal counts.
    async fn meet_all(&self, nodes: &BTreeMap<MetadId, BasicNode>) -> Result<(), Status> {
        let mut meetings = tokio::task::JoinSet::new();
        for (id, node) in nodes {
            let (me, id, address) = (self.clone(), *id, node.addr.clone());
            meetings.spawn(async move {
                let met = me.meet(id, &address).await?;
                // Of another group that has no cluster yet, or of this one whose making was begun elsewhere.
                if met.members.iter().any(|m| m.id != id) {
                    let text = format!("metad {id} belongs to another group of metads");
                    return Err(other_metad(text, "its state_dir is not empty"));
                }
                Ok(())
            });
        }
        while let Some(met) = meetings.join_next().await {
            met.map_err(|e| Status::internal(e.to_string()))??;
        }
        Ok(())
    }

    /// The one that answers there must be the one that is meant, and of no other cluster.
    async fn meet(&self, id: MetadId, address: &str) -> Result<MetadAnswer, Status> {
        check_address(id, address)?;
        let channel = channel(address).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let unreachable = |e: Status| {
            let text = format!("metad {id} does not answer at {address}");
            refuse(Code::FailedPrecondition, 1903, 8, text, e.message(), "start it, and look at its log")
        };
        let mut client = ClusterServiceClient::new(channel);
        let met = tokio::time::timeout(MEET, client.metad(MetadRequest {})).await;
        let met = met.unwrap_or_else(|_| Err(Status::deadline_exceeded("it is silent")));
        let met = met.map_err(unreachable)?.into_inner();
        let (text, cause) = if met.id != id {
            (
                format!("at {address} runs metad {}, not {id}", met.id),
                "each metad has its own id in metad.toml",
            )
        } else if !met.cluster.is_empty() && met.cluster != cluster_bytes(&self.cluster) {
            (format!("metad {id} belongs to another cluster"), "its state_dir is not empty")
        } else {
            return Ok(met);
        };
        Err(other_metad(text, cause))
    }

    pub async fn remove(&self, id: MetadId) -> Result<(), Status> {
        self.lead.confirm().await?;
        let metrics = self.lead.metrics();
        let membership = metrics.membership_config.membership();
        if membership.get_node(&id).is_none() {
            let text = format!("no metad {id}");
            return Err(refuse(Code::NotFound, 1905, 3, text, "it is no member", "blockctl cluster status"));
        }
        if membership.voter_ids().any(|v| v == id) {
            if membership.voter_ids().count() == 1 {
                let text = format!("metad {id} is the last one");
                return Err(refuse(
                    Code::FailedPrecondition,
                    1906,
                    8,
                    text,
                    "a cluster needs one",
                    "add another first",
                ));
            }
            let voters: BTreeSet<MetadId> = membership.voter_ids().collect();
            if let Some(missing) = quorum::missing_without(id, &voters, &self.peers(&metrics)) {
                let ids: Vec<String> = missing.iter().map(ToString::to_string).collect();
                let text = format!("without metad {id} the others would be no majority");
                let cause = format!("of them metad {} does not answer", ids.join(" and "));
                let fix = "start it; or let it leave first, if it is gone for good";
                return Err(refuse(Code::FailedPrecondition, 1914, 8, text, &cause, fix));
            }
            self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await
        } else {
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await
        }
    }

    async fn change(&self, change: ChangeMembers<MetadId, BasicNode>) -> Result<(), Status> {
        self.raft.change_membership(change, false).await.map_err(|e| self.changed_error(e)).map(drop)
    }

    fn changed_error(&self, e: RaftError<MetadId, ClientWriteError<MetadId, BasicNode>>) -> Status {
        match e {
            RaftError::APIError(ClientWriteError::ForwardToLeader(f)) => {
                api::error::not_leader(f.leader_node.map(|n| n.addr))
            }
            RaftError::APIError(ClientWriteError::ChangeMembershipError(e)) => {
                let text = "the members were not changed".to_owned();
                refuse(
                    Code::FailedPrecondition,
                    1907,
                    5,
                    text,
                    &e.to_string(),
                    "repeat it when the other change is over",
                )
            }
            RaftError::Fatal(e) => Status::internal(e.to_string()),
        }
    }
}
