//! The task that owns the state and the service.
//!
//! Owns `MetaState` and `meta::Service`, and decides nothing: committed entries go into the state, requests into the
//! service, effects to Raft and to those who wait. What the service's contract asks of the edge is kept here: every
//! proposal ends in exactly one `Applied` or `ProposalFailed`; `Applied` comes after the state has the command in it.

use crate::raft::network::ClusterCell;
use crate::raft::state_machine::{Committed, MachineCall, to_index};
use crate::raft::types::{Order, Raft, Reply};
use meta::{
    AdminAnswer, AdminRefusal, AdminRequest, Answer, Command, KeyChange, MetaState, Proposal, Service,
    ServiceEffect, ServiceEvent, Token,
};
use proto::control::{MetaAnswer, MetaRequest, WatchUpdate};
use proto::{LogIndex, NodeId, ProcessNumber, RequestId, Time};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Updates that may wait for a slow node; one that is slower is cut off and starts afresh.
const WATCH_QUEUE: usize = 1024;

/// Answer to an operator; `None`: this metad does not lead.
pub type AdminResult = Option<Result<AdminAnswer, AdminRefusal>>;
type Look = Box<dyn FnOnce(&MetaState) + Send>;

pub enum CoreCall {
    Node { from: NodeId, request: MetaRequest, done: oneshot::Sender<MetaAnswer> },
    Admin { id: Option<RequestId>, request: AdminRequest, done: oneshot::Sender<AdminResult> },
    Watch { node: NodeId, process: ProcessNumber, updates: mpsc::Sender<WatchUpdate> },
    WatchGone { node: NodeId, number: u64 },
    Look(Look),
    Proposed { proposal: Proposal, result: Option<(LogIndex, Answer)> },
    Lead(bool),
    Clock { node: NodeId, wall_ms: u64 },
}

/// The way to the core, for all who ask.
#[derive(Clone)]
pub struct Core {
    calls: mpsc::UnboundedSender<CoreCall>,
}

/// The core ended: the process is about to.
#[derive(Debug, thiserror::Error)]
#[error("metad is shutting down")]
pub struct Gone;

impl Core {
    /// Starts the task. `raft` is filled in before this metad can lead.
    pub fn start(
        state: MetaState,
        machine: mpsc::Receiver<MachineCall>,
        raft: Arc<OnceLock<Raft>>,
        cluster: ClusterCell,
    ) -> Core {
        let (calls, queue) = mpsc::unbounded_channel();
        let task = Task {
            state,
            service: Service::new(),
            raft,
            cluster,
            started: Instant::now(),
            calls: calls.clone(),
            next: 0,
            nodes: BTreeMap::new(),
            admins: BTreeMap::new(),
            watches: BTreeMap::new(),
        };
        tokio::spawn(task.run(machine, queue));
        Core { calls }
    }

    fn send(&self, call: CoreCall) {
        // A core that is gone shows as a closed answer.
        let _ = self.calls.send(call);
    }

    pub async fn node(&self, from: NodeId, request: MetaRequest) -> Result<MetaAnswer, Gone> {
        let (done, wait) = oneshot::channel();
        self.send(CoreCall::Node { from, request, done });
        wait.await.map_err(|_| Gone)
    }

    /// What a node's wall clock shows, with its heartbeat.
    pub fn clock(&self, node: NodeId, wall_ms: u64) {
        self.send(CoreCall::Clock { node, wall_ms });
    }

    pub async fn admin(&self, id: Option<RequestId>, request: AdminRequest) -> Result<AdminResult, Gone> {
        let (done, wait) = oneshot::channel();
        self.send(CoreCall::Admin { id, request, done });
        wait.await.map_err(|_| Gone)
    }

    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&MetaState) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        let (done, wait) = oneshot::channel();
        self.send(CoreCall::Look(Box::new(move |state| drop(done.send(look(state))))));
        wait.await.map_err(|_| Gone)
    }

    /// Updates for one process of a node; the stream ends when this metad leads no longer.
    pub fn watch(&self, node: NodeId, process: ProcessNumber) -> mpsc::Receiver<WatchUpdate> {
        let (updates, stream) = mpsc::channel(WATCH_QUEUE);
        self.send(CoreCall::Watch { node, process, updates });
        stream
    }

    pub fn lead(&self, leads: bool) {
        self.send(CoreCall::Lead(leads));
    }
}

struct WatchStream {
    /// Tells a stream from its successor for the same node.
    number: u64,
    updates: mpsc::Sender<WatchUpdate>,
    /// Waits for the reader to go. It holds a sender too: while it lives, the reader hears of no end.
    waits: tokio::task::AbortHandle,
}
impl Drop for WatchStream {
    fn drop(&mut self) {
        self.waits.abort();
    }
}

struct Task {
    state: MetaState,
    service: Service,
    raft: Arc<OnceLock<Raft>>,
    cluster: ClusterCell,
    started: Instant,
    calls: mpsc::UnboundedSender<CoreCall>,
    /// Last number given to a request or a stream.
    next: u64,
    nodes: BTreeMap<Token, oneshot::Sender<MetaAnswer>>,
    admins: BTreeMap<Token, oneshot::Sender<AdminResult>>,
    watches: BTreeMap<NodeId, WatchStream>,
}

impl Task {
    async fn run(
        mut self,
        mut machine: mpsc::Receiver<MachineCall>,
        mut calls: mpsc::UnboundedReceiver<CoreCall>,
    ) {
        self.learn_cluster();
        loop {
            let wake = self.service.next_wake();
            tokio::select! {
                // What is committed comes first: answers are then as fresh as they can be.
                biased;
                call = machine.recv() => match call {
                    Some(call) => self.machine(call),
                    None => return,
                },
                Some(call) = calls.recv() => self.call(call),
                () = tokio::time::sleep_until(self.instant(wake)), if wake != Time::FAR => {
                    self.event(ServiceEvent::Wake);
                }
            }
        }
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_nanos()).expect("a process lives less than 500 years"))
    }

    fn instant(&self, time: Time) -> Instant {
        self.started + Duration::from_nanos(time.0)
    }

    fn event(&mut self, event: ServiceEvent) {
        let now = self.now();
        self.service.handle(now, wall_ms(), &self.state, event);
        while let Some(effect) = self.service.poll() {
            self.effect(effect);
        }
    }

    fn machine(&mut self, call: MachineCall) {
        match call {
            MachineCall::Apply { entries, done } => {
                let outcomes: Result<Vec<_>, _> = entries.into_iter().map(|e| self.apply(e)).collect();
                if let Err(e) = &outcomes {
                    tracing::error!(error = %e, "a command that this metad does not know: it stops");
                }
                let _ = done.send(outcomes);
            }
            MachineCall::Install { state, done } => {
                self.state = *state;
                let _ = done.send(());
            }
        }
        self.learn_cluster();
        self.event(ServiceEvent::StateChanged);
    }

    fn apply(&mut self, entry: Committed) -> Result<(Reply, Vec<KeyChange>), meta::DecodeError> {
        let Some(order) = entry.order else {
            return Ok((Reply(None), self.state.pass(entry.index)));
        };
        let command = Command::decode(&order.0)?;
        let outcome = self.state.apply(entry.index, &command);
        Ok((Reply(Some(outcome.answer)), outcome.changes))
    }

    fn learn_cluster(&self) {
        if let Some(cluster) = &self.state.head().cluster
            && self.cluster.set(cluster.id).is_ok()
        {
            tracing::info!(
                cluster = format!("{:032x}", cluster.id.0),
                name = cluster.name,
                "belongs to a cluster"
            );
        }
    }

    fn token(&mut self) -> Token {
        self.next += 1;
        Token(self.next)
    }

    fn call(&mut self, call: CoreCall) {
        match call {
            CoreCall::Node { from, request, done } => {
                let token = self.token();
                self.nodes.insert(token, done);
                self.event(ServiceEvent::Node { from, token, request });
            }
            CoreCall::Admin { id, request, done } => {
                let token = self.token();
                self.admins.insert(token, done);
                self.event(ServiceEvent::Admin { token, id, request });
            }
            CoreCall::Watch { node, process, updates } => self.open_watch(node, process, updates),
            CoreCall::WatchGone { node, number } => {
                if self.watches.get(&node).is_some_and(|w| w.number == number) {
                    self.watches.remove(&node);
                    self.event(ServiceEvent::WatchClosed { node });
                }
            }
            CoreCall::Look(look) => look(&self.state),
            CoreCall::Proposed { proposal, result } => self.event(match result {
                Some((index, answer)) => ServiceEvent::Applied { proposal, index, answer },
                None => ServiceEvent::ProposalFailed { proposal },
            }),
            CoreCall::Clock { node, wall_ms } => self.event(ServiceEvent::Clock { node, wall_ms }),
            CoreCall::Lead(true) => self.event(ServiceEvent::BecameLeader),
            CoreCall::Lead(false) => {
                self.event(ServiceEvent::LostLeader);
                for node in std::mem::take(&mut self.watches).into_keys() {
                    self.event(ServiceEvent::WatchClosed { node });
                }
            }
        }
    }

    fn open_watch(&mut self, node: NodeId, process: ProcessNumber, updates: mpsc::Sender<WatchUpdate>) {
        if !self.service.is_leader() {
            // Dropping the sender ends the stream.
            return;
        }
        let Token(number) = self.token();
        let (calls, gone) = (self.calls.clone(), updates.clone());
        let waits = tokio::spawn(async move {
            gone.closed().await;
            let _ = calls.send(CoreCall::WatchGone { node, number });
        })
        .abort_handle();
        self.watches.insert(node, WatchStream { number, updates, waits });
        self.event(ServiceEvent::WatchOpened { node, process });
    }

    fn effect(&mut self, effect: ServiceEffect) {
        match effect {
            ServiceEffect::Propose { proposal, command } => self.propose(proposal, &command),
            ServiceEffect::AnswerNode { token, answer } => {
                if let Some(done) = self.nodes.remove(&token) {
                    let _ = done.send(answer);
                }
            }
            ServiceEffect::AnswerAdmin { token, answer } => {
                if let Some(done) = self.admins.remove(&token) {
                    let _ = done.send(answer);
                }
            }
            ServiceEffect::Push { node, update } => self.push(node, update),
        }
    }

    /// A node that does not keep up is cut off: it watches anew and is told everything from the start.
    fn push(&mut self, node: NodeId, update: WatchUpdate) {
        let Some(watch) = self.watches.get(&node) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = watch.updates.try_send(update) {
            tracing::warn!(node = %node, "does not take its updates: its stream is ended");
            let number = watch.number;
            let _ = self.calls.send(CoreCall::WatchGone { node, number });
        }
    }

    fn propose(&mut self, proposal: Proposal, command: &Command) {
        let order = Order(command.encode());
        let (raft, calls) = (self.raft.get().cloned(), self.calls.clone());
        tokio::spawn(async move {
            let result = match raft {
                Some(raft) => propose(&raft, order).await,
                None => None,
            };
            let _ = calls.send(CoreCall::Proposed { proposal, result });
        });
    }
}

/// What Raft decided; `None` if it was not accepted or nobody knows.
async fn propose(raft: &Raft, order: Order) -> Option<(LogIndex, Answer)> {
    match raft.client_write(order).await {
        Ok(written) => {
            let answer = written.data.0.expect("an entry with a command has an answer");
            Some((to_index(written.log_id), answer))
        }
        Err(e) => {
            tracing::info!(error = %e, "a command was not accepted");
            None
        }
    }
}

/// Unix milliseconds, for stamps that humans read.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_ends_with_the_leading_and_by_its_successor() {
        let (_machine, calls) = mpsc::channel(1);
        let core =
            Core::start(MetaState::default(), calls, Arc::new(OnceLock::new()), Arc::new(OnceLock::new()));
        let ends = async |mut stream: mpsc::Receiver<WatchUpdate>| {
            let all = async { while stream.recv().await.is_some() {} };
            tokio::time::timeout(Duration::from_secs(5), all).await.is_ok()
        };
        assert!(ends(core.watch(NodeId(1), ProcessNumber(1))).await, "nobody leads");
        core.lead(true);
        let older = core.watch(NodeId(1), ProcessNumber(1));
        let newer = core.watch(NodeId(1), ProcessNumber(2));
        assert!(ends(older).await, "the node watches by another stream");
        core.lead(false);
        assert!(ends(newer).await, "it leads no longer");
    }
}
