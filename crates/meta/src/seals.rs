//! The leader's part in sealing: orders that wait for a seal before them, or for sessions; seals that take too long; and askers,
//! who hear of their snapshots when these are sealed or called off.
//!
//! Owns nothing that must last: a new leader counts the time of each seal from when it sees it first, and an asker who is told
//! "outcome unknown" asks again under the same request id.

use crate::admin::{AdminAnswer, AdminRequest, SnapshotOrder};
use crate::answer::Answer;
use crate::command::{Op, SnapshotItem};
use crate::model::SnapshotState;
use crate::refusal::AdminRefusal;
use crate::report::snapshot_view;
use crate::requests::find_volume;
use crate::service::{OwnKey, Proposal, Service, Token};
use crate::state::MetaState;
use proto::control::SessionState;
use proto::limits::HEARTBEAT;
use proto::{BranchId, Generation, LogIndex, RequestId, Span, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A seal that is not confirmed by then is called off.
const SEAL: Span = Span::secs(5);
/// The same for a group, whose sessions stand still meanwhile.
const GROUP_SEAL: Span = Span::secs(1);
/// Calling off is proposed again if that came to nothing.
const CANCEL_AGAIN: Span = Span::secs(1);
/// An order waits so long for the seal before it, or for the sessions of a group.
const ORDER_WAIT: Span = Span::secs(5);
const SESSIONS_WAIT: Span = Span::secs(10);

type Key = (BranchId, Generation);

#[derive(Debug)]
struct Order {
    token: Token,
    id: Option<RequestId>,
    request: AdminRequest,
    since: Time,
}

#[derive(Debug, Default)]
pub(crate) struct Seals {
    seen: LogIndex,
    /// Seals under way, and when each is to be called off.
    under_way: BTreeMap<BranchId, (Generation, Time)>,
    /// First come, first served.
    queue: VecDeque<Order>,
    /// Branches whose seal is proposed and not decided.
    proposed: BTreeMap<Proposal, Vec<BranchId>>,
    waiting: Vec<(Token, Vec<Key>)>,
}

impl Seals {
    pub(crate) fn ended(&mut self, proposal: Proposal) {
        self.proposed.remove(&proposal);
    }
    pub(crate) fn next_wake(&self) -> Time {
        let orders = self.queue.iter().map(|o| o.since + wait_of(&o.request));
        self.under_way.values().map(|(_, due)| *due).chain(orders).min().unwrap_or(Time::FAR)
    }
}

fn wait_of(request: &AdminRequest) -> Span {
    match request {
        AdminRequest::SnapshotCreate { items, .. } if items.len() > 1 => SESSIONS_WAIT,
        _ => ORDER_WAIT,
    }
}

impl Service {
    /// What Raft decided for an operator. Of snapshots he hears when they are sealed.
    pub(crate) fn admin_decided(
        &mut self,
        state: &MetaState,
        token: Token,
        answer: Result<AdminAnswer, AdminRefusal>,
    ) {
        match answer {
            Ok(AdminAnswer::SnapshotsMade { keys }) => match made(state, &keys) {
                Some(answer) => self.answer_admin(token, answer),
                None => self.seals.waiting.push((token, keys)),
            },
            other => self.answer_admin(token, other),
        }
    }

    pub(crate) fn snapshot_order(
        &mut self,
        state: &MetaState,
        token: Token,
        id: Option<RequestId>,
        request: AdminRequest,
    ) {
        let order = Order { token, id, request, since: self.now };
        if let Some(order) = self.try_order(state, order) {
            self.seals.queue.push_back(order);
        }
    }

    /// Gives the order back if it has to wait.
    fn try_order(&mut self, state: &MetaState, order: Order) -> Option<Order> {
        // A repeat of it may have been decided meanwhile.
        if let Some(Answer::Admin(answer)) = order.id.and_then(|id| state.kept_answer(id)) {
            self.admin_decided(state, order.token, answer);
            return None;
        }
        let AdminRequest::SnapshotCreate { items, labels, protect_until_ms } = &order.request else {
            unreachable!("only these are ordered here")
        };
        let late = self.now >= order.since + wait_of(&order.request);
        let items = match snapshot_items(state, items) {
            Ok(items) => items,
            Err(refusal) => {
                self.answer_admin(order.token, Err(refusal));
                return None;
            }
        };
        if let Some(obstacle) = self.obstacle(state, &items) {
            if late {
                self.answer_admin(order.token, Err(obstacle));
                return None;
            }
            return Some(order);
        }
        let branches = items.iter().map(|i| i.branch).collect();
        let op = Op::SnapshotCreate { items, labels: labels.clone(), protect_until_ms: *protect_until_ms };
        let proposal = self.propose_for_admin(order.token, order.id, op);
        self.seals.proposed.insert(proposal, branches);
        None
    }

    /// Why it cannot be proposed now, though it may be soon.
    fn obstacle(&mut self, state: &MetaState, items: &[SnapshotItem]) -> Option<AdminRefusal> {
        let name = |i: &SnapshotItem| state.volumes()[&i.volume].name.clone();
        let asked: BTreeSet<BranchId> = self.seals.proposed.values().flatten().copied().collect();
        let busy =
            |i: &&SnapshotItem| state.branches()[&i.branch].sealing.is_some() || asked.contains(&i.branch);
        if let Some(item) = items.iter().find(busy) {
            return Some(AdminRefusal::SealBusy { name: name(item) });
        }
        if items.len() < 2 {
            return None;
        }
        // The sessions of a group stand still until all have drained: so all must be there before it begins.
        let not_ready: Vec<&SnapshotItem> =
            items.iter().filter(|i| !self.can_seal_now(state, i.branch)).collect();
        for item in &not_ready {
            if state.branches()[&item.branch].session.is_none_or(|s| state.node_down(s.node)) {
                self.planner.want_session(item.branch, self.now);
            }
        }
        let names: Vec<String> = not_ready.into_iter().map(name).collect();
        (!names.is_empty()).then_some(AdminRefusal::GroupNotReady { names })
    }

    /// Closed cleanly, or its session serves, as its node said within two heartbeats.
    fn can_seal_now(&self, state: &MetaState, branch: BranchId) -> bool {
        let row = &state.branches()[&branch];
        let Some(session) = row.session else { return row.clean };
        let heard = self.liveness.current(self.now, Span(HEARTBEAT.0 * 2), session.node).is_some();
        let status = self.liveness.session(session.node, branch, row.epoch);
        heard && status.is_some_and(|s| s.state == SessionState::Serving)
    }

    pub(crate) fn maintain_seals(&mut self, state: &MetaState) {
        if self.seals.seen != state.applied() {
            self.seals.seen = state.applied();
            self.notice_seals(state);
            for (token, keys) in std::mem::take(&mut self.seals.waiting) {
                self.admin_decided(state, token, Ok(AdminAnswer::SnapshotsMade { keys }));
            }
        }
        self.call_off(state);
        for order in std::mem::take(&mut self.seals.queue) {
            if let Some(order) = self.try_order(state, order) {
                self.seals.queue.push_back(order);
            }
        }
    }

    fn notice_seals(&mut self, state: &MetaState) {
        let now = self.now;
        let seal = |b: &BranchId| state.branches().get(b).and_then(|r| r.sealing);
        self.seals.under_way.retain(|b, (g, _)| seal(b).is_some_and(|s| s.generation == *g));
        for branch in &state.index.sealing {
            let seal = seal(branch).expect("indexed as being sealed");
            let limit = if seal.group.is_some() { GROUP_SEAL } else { SEAL };
            self.seals.under_way.entry(*branch).or_insert((seal.generation, now + limit));
        }
    }

    fn call_off(&mut self, state: &MetaState) {
        let now = self.now;
        let late = self.seals.under_way.iter().filter(|(_, (_, due))| *due <= now);
        let late: Vec<Key> = late.map(|(b, (g, _))| (*b, *g)).collect();
        let mut groups = BTreeSet::new();
        for (branch, generation) in late {
            self.seals.under_way.insert(branch, (generation, now + CANCEL_AGAIN));
            let group = state.branches().get(&branch).and_then(|r| r.sealing).and_then(|s| s.group);
            // One command is enough for a group.
            if group.is_none_or(|g| groups.insert(g)) {
                self.propose_own(OwnKey::Seal(branch), Op::SealCancel { branch, generation });
            }
        }
    }

    /// Leads no longer: whoever waits asks the next leader.
    pub(crate) fn leave_seals(&mut self) {
        let seals = std::mem::take(&mut self.seals);
        for (token, _) in seals.waiting {
            self.answer_admin(token, Err(AdminRefusal::OutcomeUnknown));
        }
        for order in seals.queue {
            self.answer_not_leader(order.token);
        }
    }
}

/// The answer about these, once all are sealed, or some are gone.
fn made(state: &MetaState, keys: &[Key]) -> Option<Result<AdminAnswer, AdminRefusal>> {
    let rows: Vec<_> = keys.iter().map(|key| state.snapshots().get(key)).collect();
    if rows.iter().any(Option::is_none) {
        let names = keys.iter().map(|(b, _)| state.branch_name(*b)).collect();
        return Some(Err(AdminRefusal::SealCalledOff { names }));
    }
    let all = rows.iter().flatten().all(|s| s.state == SnapshotState::Sealed);
    all.then(|| Ok(AdminAnswer::Snapshots(keys.iter().filter_map(|k| snapshot_view(state, *k)).collect())))
}

fn snapshot_items(state: &MetaState, orders: &[SnapshotOrder]) -> Result<Vec<SnapshotItem>, AdminRefusal> {
    let item = |o: &SnapshotOrder| {
        let volume = find_volume(state, &o.name.volume)?;
        let branch = state.volumes()[&volume].branch;
        Ok(SnapshotItem { volume, branch, name: o.name.snapshot.clone(), id: o.id })
    };
    orders.iter().map(item).collect()
}
