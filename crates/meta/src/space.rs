//! `volume space`: what a volume and its snapshots take, counted by the nodes that have the replicas, added up here.
//!
//! Owns the measurements under way, on the leader only: nothing of them is in Raft, and a new leader begins anew when it is asked
//! again. All branches of a volume count: those too that a rollback has left, while snapshots keep them. Each is gone through in
//! stretches of chunks: every replica on a drive that is up is counted where it is, and of each chunk one that is in-sync also by
//! the views that Raft knows. The next stretch is taken from the configurations as they are then.
//!
//! Invariants: all figures of a measurement are by one set of views; if a snapshot comes or goes meanwhile, all is counted
//! again. What could not be counted is counted as such: a figure is never smaller in silence. It ends, whoever is silent.

use crate::model::Branch;
use crate::refusal::AdminRefusal;
use crate::requests::find_volume;
use crate::service::{Service, Token};
use crate::state::MetaState;
use crate::view::{SpaceView, ViewSpace};
use proto::control::{MetaAnswer, WatchUpdate};
use proto::limits::EXTENT;
use proto::message::{Usage, ViewUsage};
use proto::space::{Measure, MeasureId, Measured, MeasuredReplica};
use proto::{
    BranchId, ChunkIndex, Configuration, Generation, Generations, ListIndex, Member, NodeId, RequestId, Span,
    Time, VolumeId,
};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Measurements at once. Who comes later waits until one is over.
const AT_ONCE: usize = 8;
/// One that nobody has asked about for so long is forgotten, done or not.
const FORGOTTEN: Span = Span::secs(10);
/// A part that was not answered is ordered again.
const AGAIN: Span = Span::secs(2);
/// A node that does not answer for so long, and is not called down, is not waited for.
const SILENT: Span = Span::secs(60);
/// Bytes of a volume that are counted at a time.
const STRETCH: u64 = 16 << 30;

#[derive(Debug, Default)]
pub(crate) struct Spaces {
    all: BTreeMap<RequestId, Measurement>,
}

#[derive(Debug)]
struct Measurement {
    request: RequestId,
    volume: VolumeId,
    /// When it was asked about last.
    asked: Time,
    /// Its end was told.
    told: bool,
    begun: ListIndex,
    /// How often snapshots came or went meanwhile.
    again: u32,
    /// The volume's, the oldest first.
    branches: Vec<Counted>,
    /// The stretch that is being counted: the branch's place in `branches`, first chunk, number of chunks.
    branch: usize,
    chunk: u32,
    len: u32,
    part: u32,
    /// What nodes were ordered of it and have not answered.
    orders: BTreeMap<NodeId, Ordered>,
}

/// A branch, and what is known of it so far, in extents.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Counted {
    branch: BranchId,
    kept: Generations,
    /// The volume's head is here.
    named: bool,
    views: Usage,
    /// By all replicas that were counted.
    taken: u64,
    unseen: u64,
    replicas: u64,
    /// Chunks without views, replicas without anything.
    chunks_missing: u32,
    replicas_missing: u64,
}

#[derive(Debug)]
struct Ordered {
    order: Measure,
    /// Chunks that it counts by views.
    chunks: u32,
    tell_at: Time,
    until: Time,
}

impl Counted {
    fn new(state: &MetaState, branch: BranchId) -> Counted {
        Counted {
            branch,
            kept: state.kept(branch),
            named: state.is_named(branch),
            views: Usage::default(),
            taken: 0,
            unseen: 0,
            replicas: 0,
            chunks_missing: 0,
            replicas_missing: 0,
        }
    }
    fn lacks(&mut self, chunks: u32, replicas: u64) {
        self.chunks_missing += chunks;
        self.replicas_missing += replicas;
    }
}

impl Measurement {
    fn new(state: &MetaState, request: RequestId, volume: VolumeId, asked: Time) -> Measurement {
        Measurement {
            request,
            volume,
            asked,
            told: false,
            begun: state.list_index(),
            again: 0,
            branches: state.branches_of(volume).map(|b| Counted::new(state, b)).collect(),
            branch: 0,
            chunk: 0,
            len: 0,
            part: 0,
            orders: BTreeMap::new(),
        }
    }
    fn is_done(&self) -> bool {
        self.branch == self.branches.len()
    }
    /// The views are still those that it counts by.
    fn is_of(&self, state: &MetaState) -> bool {
        let same = |c: &Counted, b| c.branch == b && c.named == state.is_named(b) && c.kept == state.kept(b);
        let mut now = state.branches_of(self.volume);
        self.branches.iter().all(|c| now.next().is_some_and(|b| same(c, b))) && now.next().is_none()
    }
    fn next_wake(&self) -> Time {
        let told = self.orders.values().map(|o| o.tell_at.min(o.until)).min();
        let due = if self.is_done() { Time::FAR } else { told.unwrap_or(Time::ZERO) };
        due.min(self.asked + FORGOTTEN)
    }

    /// Goes on as far as it can; at most by one stretch. What is to be told goes into `out`.
    fn step(&mut self, state: &MetaState, now: Time, out: &mut Vec<(NodeId, WatchUpdate)>) {
        if self.is_done() {
            return;
        }
        let lost: Vec<NodeId> = self
            .orders
            .iter()
            .filter(|(n, o)| o.until <= now || state.node_down(**n))
            .map(|(n, _)| *n)
            .collect();
        for node in lost {
            let lost = self.orders.remove(&node).expect("listed above");
            self.branches[self.branch].lacks(lost.chunks, lost.order.replicas.len() as u64);
        }
        if self.orders.is_empty() {
            self.chunk += self.len;
            self.len = 0;
            if self.is_of(state) {
                self.open_stretch(state, now);
            } else {
                let again = self.again + 1;
                *self =
                    Measurement { again, ..Measurement::new(state, self.request, self.volume, self.asked) };
            }
        }
        for (node, o) in self.orders.iter_mut().filter(|(_, o)| o.tell_at <= now) {
            o.tell_at = now + AGAIN;
            out.push((*node, WatchUpdate::Measure(o.order.clone())));
        }
    }
    fn open_stretch(&mut self, state: &MetaState, now: Time) {
        let counted = &mut self.branches[self.branch];
        let (row, chunks) = (&state.branches()[&counted.branch], state.chunks(counted.branch));
        let left = chunks.map_or(0, |c| c.count().saturating_sub(self.chunk));
        let (Some(chunks), 1..) = (chunks, left) else {
            (self.branch, self.chunk) = (self.branch + 1, 0);
            return;
        };
        self.len = left.min(stretch(row));
        self.part += 1;
        let id = MeasureId { request: self.request, begun: self.begun, part: self.part };
        for chunk in (self.chunk..self.chunk + self.len).map(ChunkIndex) {
            // What is placed and not made takes nothing.
            let Some(c) = chunks.get(chunk).filter(|c| c.number.0 > 0) else { continue };
            let chosen = chosen(state, chunk, &c);
            counted.lacks(u32::from(chosen.is_none()), 0);
            for m in &c.members {
                if state.drive_down(m.place.drive) {
                    counted.lacks(0, 1);
                    continue;
                }
                let order = || Measure {
                    id,
                    branch: counted.branch,
                    kept: counted.kept.clone(),
                    named: counted.named,
                    replicas: Vec::new(),
                };
                let fresh = || Ordered { order: order(), chunks: 0, tell_at: now, until: now + SILENT };
                let ordered = self.orders.entry(m.place.node).or_insert_with(fresh);
                let views = chosen == Some(*m);
                ordered.chunks += u32::from(views);
                let (drive, incarnation) = (m.place.drive, m.place.incarnation);
                ordered.order.replicas.push(MeasuredReplica { drive, chunk, incarnation, views });
            }
        }
    }
    /// A node's answer, if it is waited for.
    fn take(&mut self, node: NodeId, measured: &Measured) {
        if self.orders.get(&node).is_none_or(|o| o.order.id != measured.id) {
            return;
        }
        let o = self.orders.remove(&node).expect("just found");
        let (counted, sums) = (&mut self.branches[self.branch], &measured.sums);
        let (asked, counted_there) = (o.order.replicas.len() as u64, u64::from(sums.replicas));
        counted.lacks(o.chunks.saturating_sub(sums.chunks), asked.saturating_sub(counted_there));
        counted.views.add(&sums.views);
        counted.taken += sums.taken;
        counted.unseen += sums.unseen;
        counted.replicas += counted_there;
    }
}

/// Chunks of a stretch.
fn stretch(row: &Branch) -> u32 {
    u32::try_from(STRETCH >> row.geometry.chunk_shift).expect("few").max(1)
}

/// The replica by which a chunk's views are counted: in-sync, on a drive that is up, the work spread.
fn chosen(state: &MetaState, chunk: ChunkIndex, c: &Configuration) -> Option<Member> {
    let there: Vec<&Member> = c.in_sync().filter(|m| !state.drive_down(m.place.drive)).collect();
    there.get(chunk.0 as usize % there.len().max(1)).map(|m| **m)
}

impl Spaces {
    pub(crate) fn next_wake(&self) -> Time {
        self.all.values().map(Measurement::next_wake).min().unwrap_or(Time::FAR)
    }
}

impl Service {
    /// Begins a measurement, or tells how far it is: it is known by its request.
    pub(crate) fn measure_space(
        &mut self,
        state: &MetaState,
        name: &str,
        request: RequestId,
    ) -> Result<SpaceView, AdminRefusal> {
        let volume = find_volume(state, name)?;
        let all = &mut self.spaces.all;
        if all.get(&request).is_none_or(|m| m.volume != volume) {
            // One whose end was told makes room. Should that answer be lost it is counted anew.
            let over = all.values().filter(|m| m.told).min_by_key(|m| m.asked).map(|m| m.request);
            if let (AT_ONCE.., Some(over)) = (all.len(), over) {
                all.remove(&over);
            }
            if all.len() < AT_ONCE {
                all.insert(request, Measurement::new(state, request, volume, self.now));
            }
        }
        let m = all.get_mut(&request);
        Ok(view(
            state,
            volume,
            m.map(|m| {
                (m.asked, m.told) = (self.now, m.is_done());
                &*m
            }),
        ))
    }

    /// A node has counted; it says who it is.
    pub(crate) fn measured(&mut self, token: Token, (from, said): (NodeId, NodeId), measured: &Measured) {
        if let Some(m) = self.spaces.all.get_mut(&measured.id.request).filter(|_| from == said) {
            m.take(from, measured);
        }
        self.answer_node(token, MetaAnswer::Ok);
    }

    pub(crate) fn maintain_spaces(&mut self, state: &MetaState) {
        let now = self.now;
        let live = |m: &Measurement| state.volumes().contains_key(&m.volume) && m.asked + FORGOTTEN > now;
        self.spaces.all.retain(|_, m| live(m));
        let mut out = Vec::new();
        for m in self.spaces.all.values_mut() {
            m.step(state, now, &mut out);
        }
        for (node, update) in out {
            self.tell(node, update);
        }
    }
}

/// What is known so far; of none, that it waits.
fn view(state: &MetaState, volume: VolumeId, m: Option<&Measurement>) -> SpaceView {
    let row = &state.volumes()[&volume];
    let head = &state.branches()[&row.branch];
    let count = |b: BranchId| state.chunks(b).map_or(0, |c| u64::from(c.count()));
    let mut v = SpaceView {
        volume,
        name: row.name.clone(),
        size: head.geometry.size,
        finished: m.is_some_and(Measurement::is_done),
        waiting: m.is_none(),
        parent: head.tie().map(|tie| state.point_name(tie.branch, tie.generation)),
        ..SpaceView::default()
    };
    let Some(m) = m else { return v };
    v.again = m.again;
    for (at, c) in m.branches.iter().enumerate() {
        v.chunks += count(c.branch);
        v.chunks_done += match at.cmp(&m.branch) {
            Ordering::Less => count(c.branch),
            Ordering::Equal => u64::from(m.chunk),
            Ordering::Greater => 0,
        };
        v.chunks_missing += u64::from(c.chunks_missing);
        v.replicas += c.replicas;
        v.replicas_missing += c.replicas_missing;
        v.head.seen += bytes(c.views.head.seen);
        v.head.exclusive += bytes(c.views.head.exclusive);
        v.taken += bytes(c.views.total);
        v.unseen += bytes(c.views.unseen);
        v.taken_all += bytes(c.taken);
        v.unseen_all += bytes(c.unseen);
        if v.finished {
            let one = |g| view_space(state, volume, (c.branch, g), c.views.view(g));
            v.views.extend(c.kept.iter().map(one));
        }
    }
    v
}

fn view_space(
    state: &MetaState,
    volume: VolumeId,
    key: (BranchId, Generation),
    usage: ViewUsage,
) -> ViewSpace {
    let named = state.snapshots().get(&key).filter(|s| !s.hidden);
    let clones = state.clones_of(key);
    let of_volume = |b: &BranchId| state.branches().get(b).is_some_and(|b| b.volume == volume);
    let own = state.index.forks.get(&key).is_some_and(|forks| forks.iter().any(of_volume));
    let exclusive = bytes(usage.exclusive);
    ViewSpace {
        name: named.map(|s| s.name.clone()),
        branch: key.0,
        generation: key.1,
        seen: bytes(usage.seen),
        exclusive,
        frees: if named.is_some() && clones.is_empty() && !own { exclusive } else { 0 },
        clones,
        own,
    }
}

fn bytes(extents: u64) -> u64 {
    extents.saturating_mul(EXTENT as u64)
}
