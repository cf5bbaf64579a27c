//! The leader's mind: who asks what, what becomes a command, who must be told.
//!
//! Pure, on every metad; it acts only between `BecameLeader` and `LostLeader`. It never changes the state:
//! it proposes, and tells the asker what Raft decided. The edge keeps this contract:
//! - every `Propose` ends in exactly one `Applied` or `ProposalFailed`, also after `LostLeader`;
//! - `StateChanged` follows whenever commands were applied (one for many is enough), and `Applied` comes
//!   after the state passed here has the command in it;
//! - an admin's read is handed in only by a leader that has applied all that was committed when it came;
//! - effects are drained before the next event.

use crate::admin::{AdminAnswer, AdminRequest};
use crate::answer::Answer;
use crate::clocks::Clocks;
use crate::command::{Command, Op};
use crate::forking::Forking;
use crate::liveness::Liveness;
use crate::model::PolicyId;
use crate::planner::Planner;
use crate::refusal::AdminRefusal;
use crate::resyncs::Resyncs;
use crate::runs::Runs;
use crate::seals::Seals;
use crate::space::Spaces;
use crate::state::MetaState;
use crate::trash::Resting;
use crate::watch::Watch;
use proto::control::{MetaAnswer, MetaRequest, WatchUpdate};
use proto::{LogIndex, NodeId, ProcessNumber, RequestId, Time};
use std::collections::{BTreeMap, VecDeque};

/// The edge's name of a request that waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// A command on its way through Raft; unique within one process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Proposal(pub u64);

#[derive(Clone, Debug)]
pub enum ServiceEvent {
    /// From a node, over the control network. `from` is who it says it is.
    Node {
        from: NodeId,
        token: Token,
        request: MetaRequest,
    },
    /// From an operator. `id`: given with what changes something, so that a repeat is harmless.
    Admin {
        token: Token,
        id: Option<RequestId>,
        request: AdminRequest,
    },
    /// The command is committed and applied (here).
    Applied {
        proposal: Proposal,
        index: LogIndex,
        answer: Answer,
    },
    /// Not accepted, or nobody knows: leadership was lost.
    ProposalFailed {
        proposal: Proposal,
    },
    BecameLeader,
    LostLeader,
    /// A node's stream of updates is open; everything is told from the start.
    WatchOpened {
        node: NodeId,
        process: ProcessNumber,
    },
    WatchClosed {
        node: NodeId,
    },
    /// A node's wall clock, Unix milliseconds, with its heartbeat.
    Clock {
        node: NodeId,
        wall_ms: u64,
    },
    /// Commands were applied.
    StateChanged,
    /// The time given by `next_wake` has come.
    Wake,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceEffect {
    Propose {
        proposal: Proposal,
        command: Command,
    },
    AnswerNode {
        token: Token,
        answer: MetaAnswer,
    },
    /// `None`: not the leader: ask another metad.
    AnswerAdmin {
        token: Token,
        answer: Option<Result<AdminAnswer, AdminRefusal>>,
    },
    Push {
        node: NodeId,
        update: WatchUpdate,
    },
}

/// Who waits for a proposal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waiter {
    Node(Token),
    Admin(Token),
    /// Liveness or the planner.
    Own,
}

#[derive(Debug)]
pub struct Service {
    pub(crate) leader: bool,
    /// When this metad became the leader.
    pub(crate) since: Time,
    pub(crate) now: Time,
    pub(crate) wall_ms: u64,
    next_proposal: u64,
    pending: BTreeMap<Proposal, Waiter>,
    /// Own commands under way; while there are any of a kind, no more of it are proposed.
    pub(crate) own: BTreeMap<Proposal, OwnKey>,
    effects: VecDeque<ServiceEffect>,
    pub(crate) liveness: Liveness,
    pub(crate) resyncs: Resyncs,
    pub(crate) watch: Watch,
    pub(crate) planner: Planner,
    pub(crate) seals: Seals,
    pub(crate) forking: Forking,
    pub(crate) resting: Resting,
    pub(crate) runs: Runs,
    pub(crate) clocks: Clocks,
    pub(crate) spaces: Spaces,
}

/// What an own command is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum OwnKey {
    Node(NodeId),
    Drive(proto::DriveId),
    Branch(proto::BranchId),
    Seal(proto::BranchId),
    /// A snapshot that this order needs first.
    Point(Token),
    /// A fork point that nobody forked.
    Unforked(proto::BranchId, proto::Generation),
    /// The end of a volume's rest.
    Purge(proto::VolumeId),
    /// A policy's turn at a volume.
    Run(proto::VolumeId, PolicyId),
}

impl Default for Service {
    fn default() -> Service {
        Service::new()
    }
}

impl Service {
    #[must_use]
    pub fn new() -> Service {
        Service {
            leader: false,
            since: Time::ZERO,
            now: Time::ZERO,
            wall_ms: 0,
            next_proposal: 0,
            pending: BTreeMap::new(),
            own: BTreeMap::new(),
            effects: VecDeque::new(),
            liveness: Liveness::default(),
            resyncs: Resyncs::default(),
            watch: Watch::default(),
            planner: Planner::default(),
            seals: Seals::default(),
            forking: Forking::default(),
            resting: Resting::default(),
            runs: Runs::default(),
            clocks: Clocks::default(),
            spaces: Spaces::default(),
        }
    }

    /// `now` is this process's clock; `wall_ms` the wall clock, Unix ms, for stamps only.
    pub fn handle(&mut self, now: Time, wall_ms: u64, state: &MetaState, event: ServiceEvent) {
        assert!(self.effects.is_empty(), "effects are drained before the next event");
        let before = self.now;
        self.now = self.now.max(now);
        self.wall_ms = wall_ms;
        self.notice_own_stall(state, before);
        match event {
            ServiceEvent::Node { from, token, request } => self.node_request(state, from, token, request),
            ServiceEvent::Admin { token, id, request } => self.admin_request(state, token, id, request),
            ServiceEvent::Applied { proposal, answer, .. } => self.applied(state, proposal, answer),
            ServiceEvent::ProposalFailed { proposal } => self.failed(proposal),
            ServiceEvent::BecameLeader => {
                self.leader = true;
                self.since = self.now;
                self.liveness = Liveness::default();
                self.resyncs = Resyncs::default();
                self.planner = Planner::default();
                self.resting = Resting::default();
                self.runs = Runs::default();
                self.clocks = Clocks::default();
                self.spaces = Spaces::default();
                self.watch.start_over(state);
            }
            ServiceEvent::LostLeader => {
                self.leader = false;
                self.own.clear();
                self.leave_seals();
                self.leave_forking();
            }
            ServiceEvent::WatchOpened { node, process } => self.watch.open(node, process),
            ServiceEvent::WatchClosed { node } => self.watch.close(node),
            ServiceEvent::Clock { node, wall_ms } => {
                let known = self.leader && state.nodes().contains_key(&node);
                if known {
                    self.clocks.told(self.now, self.wall_ms, node, wall_ms);
                }
            }
            ServiceEvent::StateChanged | ServiceEvent::Wake => {}
        }
        self.maintain(state);
    }

    #[must_use]
    pub fn poll(&mut self) -> Option<ServiceEffect> {
        self.effects.pop_front()
    }

    /// When to come back with `Wake`, if nothing else happens.
    #[must_use]
    pub fn next_wake(&self) -> Time {
        if !self.leader {
            return Time::FAR;
        }
        let seals = self
            .seals
            .next_wake()
            .min(self.forking.next_wake())
            .min(self.resting.next_wake())
            .min(self.runs.next_wake())
            .min(self.spaces.next_wake());
        self.liveness.next_wake().min(self.planner.next_wake()).min(self.watch.next_wake()).min(seals)
    }

    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader
    }

    /// Pushes whatever can be pushed.
    fn maintain(&mut self, state: &MetaState) {
        if !self.leader {
            return;
        }
        self.maintain_liveness(state);
        self.maintain_seals(state);
        self.maintain_forking(state);
        self.maintain_trash(state);
        self.maintain_runs(state);
        self.maintain_planner(state);
        self.maintain_spaces(state);
        self.maintain_watch(state);
    }

    // Proposals.

    fn submit(&mut self, waiter: Waiter, request: Option<RequestId>, op: Op) -> Proposal {
        self.next_proposal += 1;
        let proposal = Proposal(self.next_proposal);
        self.pending.insert(proposal, waiter);
        let command = Command { at_ms: self.wall_ms, request, op };
        self.effects.push_back(ServiceEffect::Propose { proposal, command });
        proposal
    }

    pub(crate) fn propose_for_node(&mut self, token: Token, request: Option<RequestId>, op: Op) {
        self.submit(Waiter::Node(token), request, op);
    }
    pub(crate) fn propose_for_admin(&mut self, token: Token, request: Option<RequestId>, op: Op) -> Proposal {
        self.submit(Waiter::Admin(token), request, op)
    }
    /// A command of the leader's own, unless one about the same thing is under way.
    pub(crate) fn propose_own(&mut self, key: OwnKey, op: Op) -> bool {
        if self.is_under_way(key) {
            return false;
        }
        let proposal = self.submit(Waiter::Own, None, op);
        self.own.insert(proposal, key);
        true
    }
    pub(crate) fn is_under_way(&self, key: OwnKey) -> bool {
        self.own.values().any(|k| *k == key)
    }

    fn applied(&mut self, state: &MetaState, proposal: Proposal, answer: Answer) {
        self.own.remove(&proposal);
        self.seals.ended(proposal);
        match (self.pending.remove(&proposal), answer) {
            (Some(Waiter::Node(token)), Answer::Node(answer)) => self.answer_node(token, answer),
            (Some(Waiter::Node(token)), Answer::Planned(_)) => self.answer_node(token, MetaAnswer::Ok),
            (Some(Waiter::Admin(token)), Answer::Admin(answer)) => self.admin_decided(state, token, answer),
            (Some(Waiter::Own) | None, _) => {}
            (Some(waiter), answer) => {
                // A request id that was used for another kind of request before: the asker's fault.
                debug_assert!(!matches!(answer, Answer::Planned(_)), "an own command for {waiter:?}");
                match waiter {
                    Waiter::Node(token) => self.answer_node(token, MetaAnswer::Unavailable),
                    Waiter::Admin(token) => self.answer_admin(token, Err(AdminRefusal::OutcomeUnknown)),
                    Waiter::Own => {}
                }
            }
        }
    }

    /// The outcome is not known: a node asks again, an operator is told so.
    fn failed(&mut self, proposal: Proposal) {
        self.own.remove(&proposal);
        self.seals.ended(proposal);
        match self.pending.remove(&proposal) {
            Some(Waiter::Node(token)) => self.answer_node(token, MetaAnswer::Unavailable),
            Some(Waiter::Admin(token)) => self.answer_admin(token, Err(AdminRefusal::OutcomeUnknown)),
            Some(Waiter::Own) | None => {}
        }
    }

    // Answers.

    pub(crate) fn answer_node(&mut self, token: Token, answer: MetaAnswer) {
        self.effects.push_back(ServiceEffect::AnswerNode { token, answer });
    }
    pub(crate) fn answer_admin(&mut self, token: Token, answer: Result<AdminAnswer, AdminRefusal>) {
        self.effects.push_back(ServiceEffect::AnswerAdmin { token, answer: Some(answer) });
    }
    pub(crate) fn answer_not_leader(&mut self, token: Token) {
        self.effects.push_back(ServiceEffect::AnswerAdmin { token, answer: None });
    }
    pub(crate) fn push(&mut self, node: NodeId, update: WatchUpdate) {
        self.effects.push_back(ServiceEffect::Push { node, update });
    }
}
