//! The leader's part in clones and rollback: a snapshot first, where one is needed, then the command; and fork points that
//! nobody forked.
//!
//! Owns nothing that must last. The snapshot's name comes from the order, so an order that is given again to another leader
//! finds it; if none comes, a hidden one is taken away after a while.

use crate::admin::{AdminRequest, SnapshotName};
use crate::answer::Answer;
use crate::clone::hidden_name;
use crate::command::{Op, Plan, SnapshotItem};
use crate::model::{Class, SnapshotState};
use crate::name::{check_copies, check_name, check_size};
use crate::placement::Placer;
use crate::refusal::{AdminRefusal, Noun};
use crate::requests::{find_snapshot, find_volume, too_few};
use crate::service::{OwnKey, Service, Token};
use crate::state::MetaState;
use proto::{BranchId, DriveId, Generation, Geometry, LogIndex, NodeId, RequestId, Span, Time, VolumeId};
use std::collections::{BTreeMap, VecDeque};

/// An order waits so long for its snapshot: a seal before it, and its own.
const POINT_WAIT: Span = Span::secs(12);
/// A fork point without a fork is left so long for an order that is given again.
const UNFORKED: Span = Span::secs(60);
/// Taking it away is proposed again if that came to nothing.
const DROP_AGAIN: Span = Span::secs(1);

type Point = (BranchId, Generation);

#[derive(Debug)]
struct Order {
    token: Token,
    id: Option<RequestId>,
    request: AdminRequest,
    since: Time,
    /// Its snapshot was proposed.
    asked: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Forking {
    seen: LogIndex,
    orders: VecDeque<Order>,
    /// Fork points without a fork, and when each is taken away.
    unforked: BTreeMap<Point, Time>,
}

impl Forking {
    pub(crate) fn next_wake(&self) -> Time {
        let orders = self.orders.iter().map(|o| o.since + POINT_WAIT);
        self.unforked.values().copied().chain(orders).min().unwrap_or(Time::FAR)
    }
}

/// What an order needs before its command can be proposed.
enum Step {
    Propose(Op),
    /// This snapshot of the volume's head: hidden, or of this name.
    First {
        volume: VolumeId,
        id: u128,
        name: Option<String>,
    },
}

enum Progress {
    Ready(Point),
    Wait,
}

impl Service {
    pub(crate) fn fork_order(
        &mut self,
        state: &MetaState,
        token: Token,
        id: Option<RequestId>,
        request: AdminRequest,
    ) {
        let order = Order { token, id, request, since: self.now, asked: false };
        self.fork_step(state, order);
    }

    /// Proposes it, refuses it, or lets it wait.
    fn fork_step(&mut self, state: &MetaState, mut order: Order) {
        // A repeat of it may have been decided meanwhile.
        if let Some(Answer::Admin(answer)) = order.id.and_then(|id| state.kept_answer(id)) {
            return self.admin_decided(state, order.token, answer);
        }
        match self.fork_command(state, &mut order) {
            Ok(Some(op)) => drop(self.propose_for_admin(order.token, order.id, op)),
            Ok(None) => self.forking.orders.push_back(order),
            Err(refusal) => self.answer_admin(order.token, Err(refusal)),
        }
    }

    fn fork_command(&mut self, state: &MetaState, order: &mut Order) -> Result<Option<Op>, AdminRefusal> {
        let step = match &order.request {
            AdminRequest::VolumeClone { source, snapshot, name, size, class, prefer, id } => {
                if state.volume_named(name).is_some() {
                    return Err(AdminRefusal::Exists { noun: Noun::Volume, name: name.clone() });
                }
                check_name(name)?;
                match snapshot {
                    Some(s) => {
                        let of = SnapshotName { volume: source.clone(), snapshot: s.clone() };
                        let (point, _) = find_snapshot(state, &of)?;
                        Step::Propose(self.clone_op(state, point, name, *size, *class, *prefer)?)
                    }
                    None => Step::First { volume: find_volume(state, source)?, id: *id, name: None },
                }
            }
            AdminRequest::VolumeRollback { name, safety } => {
                let (point, _) = find_snapshot(state, name)?;
                let volume = find_volume(state, &name.volume)?;
                match safety {
                    None => Step::Propose(self.rollback_op(state, volume, point, None)?),
                    Some(id) => {
                        let name = Some(format!("before-rollback-{:08x}", id >> 96));
                        Step::First { volume, id: *id, name }
                    }
                }
            }
            _ => unreachable!("only these are ordered here"),
        };
        let (volume, id, name) = match step {
            Step::Propose(op) => return Ok(Some(op)),
            Step::First { volume, id, name } => (volume, id, name),
        };
        if let AdminRequest::VolumeRollback { name: to, .. } = &order.request
            && !order.asked
        {
            // What stands in its way is said before a snapshot is made. A seal under way is waited for.
            let (point, _) = find_snapshot(state, to)?;
            match state.check_rollback(volume, state.volumes()[&volume].branch, point) {
                Ok(()) | Err(AdminRefusal::SealBusy { .. }) => {}
                Err(refusal) => return Err(refusal),
            }
            if name.as_ref().is_some_and(|n| state.snapshot_named(volume, n).is_none()) {
                state.check_quota(volume)?;
            }
        }
        let Progress::Ready(point) = self.first(state, order, volume, id, name)? else { return Ok(None) };
        let op = match &order.request {
            AdminRequest::VolumeClone { name, size, class, prefer, .. } => {
                self.clone_op(state, point, name, *size, *class, *prefer)?
            }
            AdminRequest::VolumeRollback { name, .. } => {
                let (to, _) = find_snapshot(state, name)?;
                self.rollback_op(state, volume, to, Some(point.1))?
            }
            _ => unreachable!("only these are ordered here"),
        };
        Ok(Some(op))
    }

    /// How far the snapshot is that the order needs first; asks for it.
    fn first(
        &mut self,
        state: &MetaState,
        order: &mut Order,
        volume: VolumeId,
        id: u128,
        name: Option<String>,
    ) -> Result<Progress, AdminRefusal> {
        let row = &state.volumes()[&volume];
        let branch = row.branch;
        let shown = name.clone().unwrap_or_else(|| hidden_name(id));
        let item = SnapshotItem { volume, branch, name: shown, id };
        let late = self.now >= order.since + POINT_WAIT;
        let called_off = || AdminRefusal::SealCalledOff { names: vec![row.name.clone()] };
        if let Some((point, s)) = state.snapshot_named(volume, &item.name).filter(|(_, s)| s.id == id) {
            return match s.state {
                SnapshotState::Sealed => Ok(Progress::Ready(point)),
                SnapshotState::Sealing if late => Err(called_off()),
                SnapshotState::Sealing => Ok(Progress::Wait),
            };
        }
        if self.is_under_way(OwnKey::Point(order.token)) {
            return if late { Err(AdminRefusal::OutcomeUnknown) } else { Ok(Progress::Wait) };
        }
        if order.asked {
            return Err(called_off());
        }
        match state.check_item(&item) {
            Err(AdminRefusal::SealBusy { .. }) if !late => return Ok(Progress::Wait),
            checked => checked?,
        }
        let generation = state.branches()[&branch].generation;
        let op = Op::ForkPoint { volume, branch, generation, id, name };
        self.propose_own(OwnKey::Point(order.token), op);
        order.asked = true;
        Ok(Progress::Wait)
    }

    fn clone_op(
        &self,
        state: &MetaState,
        (branch, generation): Point,
        name: &str,
        size: Option<u64>,
        class: Option<Class>,
        prefer: Option<NodeId>,
    ) -> Result<Op, AdminRefusal> {
        let (row, least) = (&state.branches()[&branch], state.snapshots()[&(branch, generation)].size);
        let (size, class) = (size.unwrap_or(least), class.unwrap_or(row.class));
        check_size(size)?;
        check_copies(class.copies, class.min_in_sync)?;
        let geometry = Geometry { size, chunk_shift: row.geometry.chunk_shift };
        let plan = self.plan_like(state, branch, class.copies, geometry, prefer)?;
        Ok(Op::CloneCreate { branch, generation, name: name.to_owned(), size, class, plan })
    }

    fn rollback_op(
        &self,
        state: &MetaState,
        volume: VolumeId,
        (branch, generation): Point,
        safety: Option<Generation>,
    ) -> Result<Op, AdminRefusal> {
        let seen = state.volumes()[&volume].branch;
        let row = &state.branches()[&seen];
        let (size, copies) = (state.snapshots()[&(branch, generation)].size, row.class.copies);
        let geometry = Geometry { size, chunk_shift: row.geometry.chunk_shift };
        let plan = self.plan_like(state, branch, copies, geometry, None)?;
        Ok(Op::Rollback { volume, seen, branch, generation, plan, safety })
    }

    /// Beside the parent's in-sync replicas, chunk by chunk, where these drives take more.
    fn plan_like(
        &self,
        state: &MetaState,
        parent: BranchId,
        copies: u8,
        geometry: Geometry,
        prefer: Option<NodeId>,
    ) -> Result<Plan, AdminRefusal> {
        let drives = |c: proto::Configuration| -> Vec<DriveId> {
            c.members.iter().filter(|m| m.in_sync()).map(|m| m.place.drive).collect()
        };
        let like: Vec<Vec<DriveId>> =
            state.chunks(parent).map(|all| all.iter().map(|(_, c)| drives(c)).collect()).unwrap_or_default();
        let candidates = self.candidates(state);
        let taking = candidates.len();
        let mut placer = Placer::new(candidates);
        let plan = placer.plan_like(copies, geometry.chunks(), 1 << geometry.chunk_shift, prefer, &like);
        plan.map_err(|few| too_few(state, copies, few, taking))
    }

    pub(crate) fn maintain_forking(&mut self, state: &MetaState) {
        for order in std::mem::take(&mut self.forking.orders) {
            self.fork_step(state, order);
        }
        let now = self.now;
        if self.forking.seen != state.applied() {
            self.forking.seen = state.applied();
            let hidden = &state.index.hidden;
            self.forking.unforked.retain(|point, _| hidden.contains(point));
            for point in hidden {
                self.forking.unforked.entry(*point).or_insert(now + UNFORKED);
            }
        }
        let late: Vec<Point> =
            self.forking.unforked.iter().filter(|(_, due)| **due <= now).map(|(point, _)| *point).collect();
        for (branch, generation) in late {
            self.forking.unforked.insert((branch, generation), now + DROP_AGAIN);
            self.propose_own(OwnKey::Unforked(branch, generation), Op::ForkPointDrop { branch, generation });
        }
    }

    /// Leads no longer: whoever waits asks the next leader.
    pub(crate) fn leave_forking(&mut self) {
        for order in std::mem::take(&mut self.forking).orders {
            // Its snapshot may have been made; the clone or the rollback was not proposed.
            self.answer_not_leader(order.token);
        }
    }
}
