//! Desired minus actual = commands. On the leader only; everything it proposes names what it saw.
//!
//! Desired: every branch with work to be done has a session; every chunk has its copies on drives that
//! are not out; nothing more. A drive is *out* when it is retired, its node is drained, it was rolled
//! back, or it has been down for longer than `down_out`. When more than a third of the nodes are down,
//! that is taken for a fault of something else: nothing is placed anew for drives that are down.

use crate::chunks::is_well;
use crate::command::{Op, PlaceItem, PruneItem};
use crate::model::{Branch, Phase};
use crate::placement::Placer;
use crate::requests::homes;
use crate::service::{OwnKey, Service};
use crate::state::MetaState;
use crate::touch::Touch;
use proto::control::SessionKind;
use proto::limits::MEMBERS_MAX;
use proto::{
    BranchId, ChunkIndex, Configuration, DriveId, LogIndex, Member, MemberState, NodeId, Span, Time,
};
use std::collections::{BTreeMap, BTreeSet};

/// The round over all branches that are not well, while there are any, or drives that are down.
const ROUND: Span = Span::secs(1);
/// A branch is looked at no more often than this.
const LOOK_AGAIN: Span = Span::millis(250);
/// Nor is the queue.
const LOOK_EVERY: Span = Span::millis(50);
/// An appointed node that has not attached by then is given up for another.
const APPOINTED_WAIT: Span = Span::secs(10);
/// A guest whose node is gone may come back before a maintenance session takes its volume.
const GUEST_GRACE: Span = Span::secs(10);
/// An order that needs a session keeps it wanted for so long.
const WANTED: Span = Span::secs(60);
/// Maintenance sessions per node.
pub(crate) const APPOINTED_MAX: usize = 16;
/// A drive this full has no extent for a resync: what is left is kept for repairs (a 128th).
const FULL_PERCENT: u64 = 99;
/// Chunks of one command, replicas to be filled per branch, and branches looked at per round.
const ITEMS_MAX: usize = 256;
const FILLING_MAX: usize = 256;
const BRANCHES_MAX: usize = 512;

#[derive(Debug, Default)]
pub(crate) struct Planner {
    seen: LogIndex,
    started: bool,
    /// Branches to look at.
    queue: BTreeSet<BranchId>,
    /// Where the round goes on.
    cursor: BranchId,
    /// When the round over everything is due, and when the queue is.
    next_round: Time,
    next_look: Time,
    looked: BTreeMap<BranchId, Time>,
    /// Appointments as this leader saw them begin.
    appointed: BTreeMap<BranchId, (NodeId, Time)>,
    guest_gone: BTreeMap<BranchId, Time>,
    wanted: BTreeMap<BranchId, Time>,
}

impl Planner {
    /// Somebody needs a session of this branch, for an order.
    pub(crate) fn want_session(&mut self, branch: BranchId, now: Time) {
        self.wanted.insert(branch, now);
        self.queue.insert(branch);
        self.next_look = now;
    }
    pub(crate) fn next_wake(&self) -> Time {
        let look = if self.queue.is_empty() { Time::FAR } else { self.next_look };
        self.next_round.min(look)
    }
}

/// Which drives are out, and why not.
#[derive(Clone)]
pub(crate) struct Outlook {
    pub(crate) out: BTreeSet<DriveId>,
    /// Nothing more can be pulled to these.
    pub(crate) full: BTreeSet<DriveId>,
    pub(crate) down: BTreeSet<DriveId>,
    pub(crate) mass_failure: bool,
}

impl Service {
    pub(crate) fn outlook(&self, state: &MetaState) -> Outlook {
        let down = state.nodes().values().filter(|n| n.down.is_some()).count();
        let mass_failure = down * 3 > state.nodes().len();
        let limit = state.settings().down_out_ms;
        let long = |since: u64| self.wall_ms.saturating_sub(since) >= limit;
        let is_out = |id: &DriveId| {
            let d = &state.drives()[id];
            let node = state.nodes().get(&d.node);
            let emptied = d.retired || d.stranger || node.is_none_or(|n| n.drain);
            let gone = d.down.is_some_and(long) || node.and_then(|n| n.down).is_some_and(|(t, _)| long(t));
            emptied || (gone && !mass_failure)
        };
        let is_full = |id: &DriveId| {
            let (capacity, used) = self.space(state, *id);
            used.saturating_mul(100) >= capacity.saturating_mul(FULL_PERCENT) && used > 0
        };
        let drives = || state.drives().keys().copied();
        Outlook {
            out: drives().filter(is_out).collect(),
            full: drives().filter(is_full).collect(),
            down: state.drives_down().into_iter().collect(),
            mass_failure,
        }
    }

    pub(crate) fn maintain_planner(&mut self, state: &MetaState) {
        self.notice_changes(state);
        if self.now < self.planner.next_wake() {
            return;
        }
        let outlook = self.outlook(state);
        if self.now >= self.planner.next_round {
            self.fill_queue(state, &outlook);
            self.planner.next_round = Time::FAR;
        }
        let mut placer = Placer::new(self.candidates(state));
        let queue: Vec<BranchId> = self.planner.queue.iter().copied().collect();
        let mut looked = 0;
        for branch in queue {
            let before = self.planner.looked.get(&branch).copied();
            let waits = before.is_some_and(|t| self.now < t + LOOK_AGAIN);
            if waits || looked == BRANCHES_MAX || self.is_under_way(OwnKey::Branch(branch)) {
                continue;
            }
            looked += 1;
            self.planner.queue.remove(&branch);
            self.planner.looked.insert(branch, self.now);
            self.look_at(state, branch, &outlook, &mut placer);
        }
        self.planner.next_look = self.now + LOOK_EVERY;
        self.forget(state);
        if self.is_busy(state) {
            self.planner.next_round = self.planner.next_round.min(self.now + ROUND);
        }
    }

    fn notice_changes(&mut self, state: &MetaState) {
        let first = !std::mem::replace(&mut self.planner.started, true);
        if !first && self.planner.seen == state.applied() {
            return;
        }
        let seen = std::mem::replace(&mut self.planner.seen, state.applied());
        match state.touched_after(seen).filter(|_| !first) {
            None => {
                self.planner.queue.extend(&state.index.unwell);
                self.planner.queue.extend(&state.index.sealing);
                self.planner.queue.extend(&state.index.unclosed);
                self.planner.queue.extend(state.index.jobs.keys());
                self.planner.queue.extend(state.index.appointed.values().flatten());
                self.planner.next_round = self.now;
            }
            Some(touches) => {
                for touch in touches {
                    match touch {
                        Touch::Branch(b) => {
                            self.planner.queue.insert(*b);
                            if is_new(state, *b) {
                                // An operator waits for it.
                                self.planner.next_look = self.planner.next_look.min(self.now);
                            }
                        }
                        Touch::Nodes | Touch::Settings => {
                            self.planner.next_round = self.planner.next_round.min(self.now + LOOK_AGAIN);
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    /// The round: branches that are not well or appointed, and those on drives that are out.
    fn fill_queue(&mut self, state: &MetaState, outlook: &Outlook) {
        let from = self.planner.cursor;
        let mut more: BTreeSet<BranchId> = BTreeSet::new();
        let on_out = outlook.out.iter().filter_map(|d| state.index.uses.get(d)).flat_map(BTreeMap::keys);
        let appointed = state.index.appointed.values().flatten();
        let gone = state
            .index
            .sessions
            .iter()
            .filter(|(n, _)| state.node_down(**n))
            .flat_map(|(_, b)| b)
            .filter(|b| state.index.unwell.contains(b));
        more.extend(state.index.unwell.iter().chain(on_out).chain(appointed).chain(gone));
        more.extend(self.planner.wanted.keys());
        more.extend(&state.index.sealing);
        more.extend(&state.index.unclosed);
        more.extend(state.index.jobs.keys());
        let next: Vec<BranchId> =
            more.range(from..).chain(more.range(..from)).copied().take(BRANCHES_MAX).collect();
        if let Some(last) = next.last() {
            self.planner.cursor = BranchId(last.0.wrapping_add(1));
        }
        self.planner.queue.extend(next);
    }

    /// Something may become due by the mere passing of time.
    fn is_busy(&self, state: &MetaState) -> bool {
        !self.planner.wanted.is_empty()
            || !state.index.unwell.is_empty()
            || !state.index.sealing.is_empty()
            || !state.index.unclosed.is_empty()
            || !state.index.jobs.is_empty()
            || !state.index.appointed.is_empty()
            || state.nodes().values().any(|n| n.down.is_some() || n.drain)
            || state.drives().values().any(|d| d.down.is_some() || d.stranger || d.retired)
    }

    fn forget(&mut self, state: &MetaState) {
        let now = self.now;
        let known = |b: &BranchId| state.branches().contains_key(b);
        self.planner.wanted.retain(|b, t| known(b) && now.since(*t) < WANTED);
        let under_way: BTreeSet<OwnKey> = self.own.values().copied().collect();
        // What is over does not count against its node.
        self.planner.appointed.retain(|b, (node, _)| {
            let stands = state.branches().get(b).is_some_and(|r| r.appointed == Some(*node));
            stands || under_way.contains(&OwnKey::Branch(*b))
        });
        self.resyncs.forget(state);
        self.planner.guest_gone.retain(|b, _| known(b));
        self.planner.looked.retain(|_, t| now < *t + LOOK_AGAIN);
    }

    fn look_at(&mut self, state: &MetaState, branch: BranchId, outlook: &Outlook, placer: &mut Placer) {
        let Some(row) = state.branches().get(&branch) else { return };
        let needed = self.needs_session(state, branch, row, outlook, placer);
        let served = self.is_served(state, branch, row);
        if !needed {
            let idle = served != Some(SessionKind::Guest) && row.appointed.is_some();
            if idle {
                let op = Op::Appoint { branch, epoch: row.epoch, node: None };
                self.propose_own(OwnKey::Branch(branch), op);
            }
            return;
        }
        match served {
            Some(_) => self.heal(state, branch, row, outlook, placer),
            None => self.appoint(state, branch, row),
        }
    }

    /// Who serves the branch now: a session whose node is up and runs the same process. A guest that is
    /// gone counts for a while, and for as long as some node reaches its node.
    fn is_served(&mut self, state: &MetaState, branch: BranchId, row: &Branch) -> Option<SessionKind> {
        let session = row.session?;
        let node = state.nodes().get(&session.node);
        let lives = node.is_some_and(|n| n.down.is_none() && n.process <= session.process);
        if lives {
            self.planner.guest_gone.remove(&branch);
            return Some(session.kind);
        }
        if session.kind == SessionKind::Maintenance {
            return None;
        }
        let now = self.now;
        let since = *self.planner.guest_gone.entry(branch).or_insert(now);
        let heard = state.node_down(session.node) && self.liveness.is_reached(now, state, session.node);
        (heard || now.since(since) < GUEST_GRACE).then_some(SessionKind::Guest)
    }

    fn needs_session(
        &self,
        state: &MetaState,
        branch: BranchId,
        row: &Branch,
        outlook: &Outlook,
        placer: &Placer,
    ) -> bool {
        let to_seal = row.sealing.is_some_and(|s| !s.drained) || state.index.unclosed.contains(&branch);
        let job = state.running_job(branch).is_some();
        if row.pending().is_some() || to_seal || job || self.planner.wanted.contains_key(&branch) {
            return true;
        }
        let Some(chunks) = state.chunks(branch) else { return false };
        interesting(state, branch, outlook).into_iter().flat_map(|p| chunks.page(p)).any(|(_, c)| {
            let j = Judged::of(&c, row.class.copies, outlook);
            let fillable =
                c.members.iter().any(|m| m.state == MemberState::Stale && !state.drive_down(m.place.drive));
            let (kept, _) = homes(state, &j.kept);
            let room = || placer.has_room(&kept, |d| c.member(d).is_none());
            fillable || j.surplus.is_some() || (j.missing && j.may_grow() && room())
        })
    }

    fn appoint(&mut self, state: &MetaState, branch: BranchId, row: &Branch) {
        let now = self.now;
        if let Some(node) = row.appointed {
            let known = self.planner.appointed.get(&branch).filter(|(n, _)| *n == node).map(|(_, t)| *t);
            let since = known.unwrap_or(now);
            self.planner.appointed.insert(branch, (node, since));
            if !state.node_down(node) && now.since(since) < APPOINTED_WAIT {
                return;
            }
        }
        let Some(node) = self.appointee(state, branch, row) else { return };
        self.planner.appointed.insert(branch, (node, now));
        self.propose_own(OwnKey::Branch(branch), Op::Appoint { branch, epoch: row.epoch, node: Some(node) });
    }

    /// A node that is up, not the one that failed to attach, holding replicas of the branch if possible,
    /// with the fewest maintenance sessions.
    fn appointee(&self, state: &MetaState, branch: BranchId, row: &Branch) -> Option<NodeId> {
        let holders: BTreeSet<NodeId> = state
            .drives()
            .iter()
            .filter(|(d, _)| state.index.uses.get(*d).is_some_and(|u| u.contains_key(&branch)))
            .map(|(_, d)| d.node)
            .collect();
        let asked = |n: &NodeId| {
            let promised = self.planner.appointed.values().filter(|(p, _)| p == n).count();
            state.index.appointed.get(n).map_or(0, BTreeSet::len).max(promised)
        };
        state
            .nodes()
            .iter()
            .filter(|(n, r)| r.down.is_none() && row.appointed != Some(**n))
            .map(|(n, _)| *n)
            .filter(|n| asked(n) < APPOINTED_MAX)
            .min_by_key(|n| (!holders.contains(n), asked(n), *n))
            .or_else(|| row.appointed.filter(|n| !state.node_down(*n)))
    }

    /// Places what is missing and removes what is too much, through the session that is there.
    fn heal(
        &mut self,
        state: &MetaState,
        branch: BranchId,
        row: &Branch,
        outlook: &Outlook,
        placer: &mut Placer,
    ) {
        let Some(chunks) = state.chunks(branch) else { return };
        let copies = row.class.copies;
        let sets = placer.sets(copies);
        let (mut place, mut prune) = (Vec::new(), Vec::new());
        let mut filling = 0;
        for page in interesting(state, branch, outlook) {
            for (chunk, c) in chunks.page(page) {
                if is_well(&c, copies) && !c.members.iter().any(|m| outlook.out.contains(&m.place.drive)) {
                    continue;
                }
                let j = Judged::of(&c, copies, outlook);
                filling += usize::from(j.filling);
                if let Some(drive) = j.surplus {
                    prune.push(PruneItem { chunk, from: c.number, drive });
                } else if let Some(drive) = j.makes_way.filter(|_| j.missing && !j.can_grow) {
                    let (kept, _) = homes(state, &j.kept);
                    if placer.has_room(&kept, |d| c.member(d).is_none()) {
                        prune.push(PruneItem { chunk, from: c.number, drive });
                    }
                } else if j.missing && j.can_grow && filling < FILLING_MAX && place.len() < ITEMS_MAX {
                    let item = one_more(state, chunk, &c, &j, &sets, placer);
                    filling += usize::from(item.is_some());
                    place.extend(item);
                }
            }
            if prune.len() >= ITEMS_MAX {
                break;
            }
        }
        let epoch = row.epoch;
        if !prune.is_empty() {
            self.propose_own(OwnKey::Branch(branch), Op::Prune { branch, epoch, items: prune });
        } else if !place.is_empty() {
            self.propose_own(OwnKey::Branch(branch), Op::Place { branch, epoch, items: place });
        }
    }
}

/// Placed, and nobody makes its records yet.
fn is_new(state: &MetaState, branch: BranchId) -> bool {
    state
        .branches()
        .get(&branch)
        .is_some_and(|b| b.phase == Phase::Creating && b.session.is_none() && b.appointed.is_none())
}

/// Where one more replica of a chunk goes.
fn one_more(
    state: &MetaState,
    chunk: ChunkIndex,
    c: &Configuration,
    j: &Judged,
    sets: &BTreeSet<Vec<NodeId>>,
    placer: &mut Placer,
) -> Option<PlaceItem> {
    let all: Vec<DriveId> = c.members.iter().map(|m| m.place.drive).collect();
    let (kept, mut zones) = homes(state, &j.kept);
    zones.retain(|z| !z.is_empty());
    // Best on a node that holds none at all; else beside the one that is to go.
    let (every, _) = homes(state, &all);
    let apart = placer.one_more_of(sets, &every, &zones, &all);
    let drive = apart.or_else(|| placer.one_more_of(sets, &kept, &zones, &all))?;
    Some(PlaceItem { chunk, from: c.number, drive, replaces: j.victim })
}

/// Pages that may hold a chunk with something to do.
fn interesting(state: &MetaState, branch: BranchId, outlook: &Outlook) -> Vec<u32> {
    let Some(chunks) = state.chunks(branch) else { return Vec::new() };
    let out: Vec<DriveId> = outlook
        .out
        .iter()
        .copied()
        .filter(|d| state.index.uses.get(d).is_some_and(|u| u.contains_key(&branch)))
        .collect();
    (0..chunks.pages())
        .filter(|p| chunks.page_unwell(*p) > 0 || out.iter().any(|d| chunks.page_names(*p, *d)))
        .collect()
}

/// What the planner thinks of one chunk.
pub(crate) struct Judged {
    /// A member that can be removed: as many others as there shall be are in-sync.
    surplus: Option<DriveId>,
    /// Fewer than `copies` members are in-sync or on the way to it, on drives that are not out.
    pub(crate) missing: bool,
    /// A member is being filled, or waits for its drive.
    filling: bool,
    can_grow: bool,
    /// Where there are as many members as there may be: a stale one that will not be filled, and goes for another.
    makes_way: Option<DriveId>,
    /// Members that stay.
    pub(crate) kept: Vec<DriveId>,
    /// The in-sync member that a new one would replace.
    victim: Option<DriveId>,
}

impl Judged {
    pub(crate) fn of(c: &Configuration, copies: u8, outlook: &Outlook) -> Judged {
        let copies = usize::from(copies);
        let is_out = |m: &Member| outlook.out.contains(&m.place.drive);
        // One that is to be filled and cannot be is as good as none.
        let hopeless = |m: &Member| {
            m.state == MemberState::Stale && (is_out(m) || outlook.full.contains(&m.place.drive))
        };
        let stays = |m: &&Member| m.state != MemberState::Leaving && !is_out(m) && !hopeless(m);
        let kept: Vec<DriveId> = c.members.iter().filter(stays).map(|m| m.place.drive).collect();
        let good = c.members.iter().filter(stays).filter(|m| m.state == MemberState::InSync).count();
        let filling = c.members.iter().filter(stays).any(|m| m.state == MemberState::Stale);
        // Who goes first: on drives that are out, those that leave, stale ones, the newest.
        let rank = |m: &&Member| (is_out(m), m.state != MemberState::InSync, m.place.incarnation);
        let surplus = (c.number.0 > 0 && good >= copies && c.members.len() > copies)
            .then(|| c.members.iter().max_by_key(rank).map(|m| m.place.drive))
            .flatten();
        // The newest first: one that was placed last held nothing before, older ones may be all that is left of the chunk
        // if the ones in-sync are lost.
        let sound = c
            .members
            .iter()
            .any(|m| m.state == MemberState::InSync && !is_out(m) && !outlook.down.contains(&m.place.drive));
        let makes_way = c
            .members
            .iter()
            .filter(|m| sound && hopeless(m))
            .max_by_key(|m| m.place.incarnation)
            .map(|m| m.place.drive);
        let victim =
            c.members.iter().find(|m| is_out(m) && m.state == MemberState::InSync).map(|m| m.place.drive);
        Judged {
            surplus,
            missing: c.number.0 > 0 && kept.len() < copies,
            filling,
            can_grow: c.members.len() < MEMBERS_MAX.min(copies + 2),
            makes_way,
            kept,
            victim,
        }
    }
    fn may_grow(&self) -> bool {
        self.can_grow || self.makes_way.is_some()
    }
}
