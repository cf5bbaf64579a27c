//! What each node must be told: the node table, appointments, changed chunks, fenced sessions, drives
//! that are down, replicas to erase, generations, keep-lists. No decision rests on it: it says where to look, so a lost update
//! costs time only. A node that opens its stream hears everything from the start.

use crate::service::Service;
use crate::state::MetaState;
use crate::touch::Touch;
use proto::control::{NodeSummary, WatchUpdate};
use proto::{
    BranchId, ChunkIndex, DriveId, Epoch, Generation, KeepList, LogIndex, NodeId, ProcessNumber, Span, Time,
};
use std::collections::{BTreeMap, BTreeSet};

/// Replicas named by one order to erase.
const DELETE_BATCH: usize = 4096;
/// Least time between two orders for a drive, and until an order is repeated.
const DELETE_PACE: Span = Span::secs(1);
const DELETE_AGAIN: Span = Span::secs(10);
/// Keep-lists of one update, and replicas that they name at most (a single list may name more).
const KEEP_BATCH: usize = 64;
const BEHIND_BATCH: usize = 1 << 16;
/// Until a list that is not confirmed is told again.
const KEEP_AGAIN: Span = Span::secs(10);
/// Chunks named by one update.
const CHUNKS_BATCH: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Watch {
    watchers: BTreeMap<NodeId, ProcessNumber>,
    /// Watchers that must hear everything.
    new: BTreeSet<NodeId>,
    seen: LogIndex,
    nodes: Vec<NodeSummary>,
    down: Vec<DriveId>,
    /// Drives with replicas to erase: when the next order is due.
    deletes: BTreeMap<DriveId, DeleteTurn>,
    keeps: Keeps,
}

/// Keep-lists that drives have not confirmed, by when each is to be told (again).
#[derive(Debug, Default)]
struct Keeps {
    due: BTreeMap<(DriveId, BranchId), Time>,
    queue: BTreeSet<(Time, DriveId, BranchId)>,
}
impl Keeps {
    fn set(&mut self, drive: DriveId, branch: BranchId, due: Time) {
        if let Some(old) = self.due.insert((drive, branch), due) {
            self.queue.remove(&(old, drive, branch));
        }
        self.queue.insert((due, drive, branch));
    }
    fn forget(&mut self, drive: DriveId, branch: BranchId) {
        if let Some(old) = self.due.remove(&(drive, branch)) {
            self.queue.remove(&(old, drive, branch));
        }
    }
    /// All of a drive, now.
    fn hurry(&mut self, drive: DriveId) {
        let range = (drive, BranchId(0))..=(drive, BranchId(u64::MAX));
        let all: Vec<BranchId> = self.due.range(range).map(|((_, b), _)| *b).collect();
        for branch in all {
            self.set(drive, branch, Time::ZERO);
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct DeleteTurn {
    due: Time,
    earliest: Time,
}

/// What changed, gathered.
#[derive(Default)]
struct Gathered {
    nodes: bool,
    appointed: BTreeSet<NodeId>,
    chunks: BTreeMap<BranchId, BTreeSet<ChunkIndex>>,
    resized: BTreeSet<BranchId>,
    fenced: Vec<(NodeId, BranchId, Epoch)>,
    garbage: BTreeSet<DriveId>,
    views: BTreeSet<BranchId>,
    keeps: BTreeSet<(DriveId, BranchId)>,
    jobs: BTreeSet<BranchId>,
}

impl Watch {
    pub(crate) fn open(&mut self, node: NodeId, process: ProcessNumber) {
        self.watchers.insert(node, process);
        self.new.insert(node);
    }
    pub(crate) fn close(&mut self, node: NodeId) {
        self.watchers.remove(&node);
        self.new.remove(&node);
    }
    pub(crate) fn is_watched(&self, node: NodeId) -> bool {
        self.watchers.contains_key(&node)
    }
    /// A new leader: nobody was told anything by it.
    pub(crate) fn start_over(&mut self, state: &MetaState) {
        self.new = self.watchers.keys().copied().collect();
        self.seen = state.applied();
        self.nodes = summaries(state);
        self.down = state.drives_down();
        self.deletes = state.garbage_drives().into_iter().map(|d| (d, DeleteTurn::default())).collect();
        self.keeps = Keeps::default();
        for (drive, branch, _) in state.owed() {
            self.keeps.set(drive, branch, Time::ZERO);
        }
    }
    pub(crate) fn next_wake(&self) -> Time {
        let keep = self.keeps.queue.first().map_or(Time::FAR, |(due, ..)| *due);
        self.deletes.values().map(|t| t.due).min().unwrap_or(Time::FAR).min(keep)
    }
}

impl Service {
    pub(crate) fn maintain_watch(&mut self, state: &MetaState) {
        if self.watch.seen < state.applied() {
            match gather(state, self.watch.seen) {
                Some(changed) => self.tell_changes(state, &changed),
                None => self.watch.start_over(state),
            }
            self.watch.seen = state.applied();
        }
        for node in std::mem::take(&mut self.watch.new) {
            self.tell_everything(state, node);
        }
        self.tell_deletes(state);
        self.tell_keeps(state);
    }

    fn tell_changes(&mut self, state: &MetaState, changed: &Gathered) {
        if changed.nodes {
            self.tell_nodes(state);
        }
        for node in &changed.appointed {
            self.tell(*node, WatchUpdate::Appointed(state.appointed_on(*node)));
        }
        for (node, branch, epoch) in &changed.fenced {
            self.tell(*node, WatchUpdate::Fenced { branch: *branch, epoch: *epoch });
        }
        for (branch, chunks) in &changed.chunks {
            let chunks: Vec<ChunkIndex> = chunks.iter().copied().collect();
            self.tell_chunks(state, *branch, &chunks);
        }
        for branch in &changed.resized {
            self.tell_size(state, *branch);
        }
        for drive in &changed.garbage {
            let turn = self.watch.deletes.entry(*drive).or_default();
            turn.due = turn.earliest;
        }
        for branch in &changed.views {
            self.tell_views(state, *branch);
        }
        for branch in &changed.jobs {
            self.tell_job(state, *branch);
        }
        for (drive, branch) in &changed.keeps {
            self.watch.keeps.set(*drive, *branch, Time::ZERO);
        }
    }

    /// The size that it is to have, and what is to be made for it.
    pub(crate) fn tell_size(&mut self, state: &MetaState, branch: BranchId) {
        let Some(row) = state.branches().get(&branch) else { return };
        if let Some(session) = row.session {
            let (geometry, placement, index) = (row.geometry, row.pending(), state.list_index());
            self.tell(session.node, WatchUpdate::Resized { branch, index, geometry, placement });
        }
    }

    /// The job that its session is to work at, or that there is none.
    pub(crate) fn tell_job(&mut self, state: &MetaState, branch: BranchId) {
        if let Some(session) = state.branches().get(&branch).and_then(|b| b.session) {
            let (index, job) = (state.list_index(), state.job_order(branch));
            self.tell(session.node, WatchUpdate::Job { branch, index, job });
        }
    }

    /// What its session is to know of the branch's generations.
    pub(crate) fn tell_views(&mut self, state: &MetaState, branch: BranchId) {
        let session = state.branches().get(&branch).and_then(|b| b.session);
        if let (Some(session), Some(views)) = (session, state.views(branch)) {
            self.tell(session.node, WatchUpdate::Views { branch, views });
        }
    }

    /// The lists that are due, those of one drive together. Where nobody watches they wait until somebody does.
    fn tell_keeps(&mut self, state: &MetaState) {
        let mut lists: BTreeMap<DriveId, Vec<KeepList>> = BTreeMap::new();
        while let Some((due, drive, branch)) = self.watch.keeps.queue.first().copied() {
            if due > self.now {
                break;
            }
            let node = state.drives().get(&drive).map(|d| d.node);
            let Some(node) = node.filter(|_| state.owed.contains_key(&(drive, branch))) else {
                self.watch.keeps.forget(drive, branch);
                continue;
            };
            let watched = self.watch.watchers.contains_key(&node);
            self.watch.keeps.set(drive, branch, if watched { self.now + KEEP_AGAIN } else { Time::FAR });
            if watched {
                lists.entry(drive).or_default().extend(state.keep_list(branch, drive));
            }
        }
        for (drive, lists) in lists {
            let node = state.drives()[&drive].node;
            for lists in batches(lists) {
                self.tell(node, WatchUpdate::Keep { drive, lists });
            }
        }
    }

    fn tell_nodes(&mut self, state: &MetaState) {
        let watchers: Vec<NodeId> = self.watch.watchers.keys().copied().collect();
        let (nodes, down) = (summaries(state), state.drives_down());
        if nodes != self.watch.nodes {
            self.watch.nodes.clone_from(&nodes);
            for w in &watchers {
                self.tell(*w, WatchUpdate::Nodes(nodes.clone()));
            }
        }
        if down != self.watch.down {
            self.watch.down.clone_from(&down);
            for w in &watchers {
                self.tell(*w, WatchUpdate::Down(down.clone()));
            }
        }
    }

    fn tell_everything(&mut self, state: &MetaState, node: NodeId) {
        self.tell(node, WatchUpdate::Nodes(summaries(state)));
        self.tell(node, WatchUpdate::Down(state.drives_down()));
        self.tell(node, WatchUpdate::Appointed(state.appointed_on(node)));
        for branch in state.sessions_on(node) {
            let chunks: Vec<ChunkIndex> =
                state.chunks(branch).map(|c| c.iter_unwell().map(|(i, _)| i).collect()).unwrap_or_default();
            self.tell_chunks(state, branch, &chunks);
            if state.branches()[&branch].generation > Generation::FIRST {
                self.tell_views(state, branch);
            }
            if state.running_job(branch).is_some() {
                self.tell_job(state, branch);
            }
        }
        for (drive, row) in state.drives() {
            if row.node == node {
                self.watch.keeps.hurry(*drive);
            }
            if row.node == node
                && let Some(turn) = self.watch.deletes.get_mut(drive)
            {
                turn.due = Time::ZERO;
            }
        }
    }

    fn tell_chunks(&mut self, state: &MetaState, branch: BranchId, chunks: &[ChunkIndex]) {
        let Some(session) = state.branches().get(&branch).and_then(|b| b.session) else { return };
        for batch in chunks.chunks(CHUNKS_BATCH) {
            self.tell(session.node, WatchUpdate::ChunksChanged { branch, chunks: batch.to_vec() });
        }
    }

    fn tell_deletes(&mut self, state: &MetaState) {
        let due: Vec<DriveId> =
            self.watch.deletes.iter().filter(|(_, t)| t.due <= self.now).map(|(d, _)| *d).collect();
        for drive in due {
            let replicas = state.garbage(drive, DELETE_BATCH);
            let Some(row) = state.drives().get(&drive).filter(|_| !replicas.is_empty()) else {
                self.watch.deletes.remove(&drive);
                continue;
            };
            let now = self.now;
            let turn = DeleteTurn { due: now + DELETE_AGAIN, earliest: now + DELETE_PACE };
            self.watch.deletes.insert(drive, turn);
            self.tell(row.node, WatchUpdate::Delete { drive, replicas, index: state.applied() });
        }
    }

    /// To a node whose stream is open.
    pub(crate) fn tell(&mut self, node: NodeId, update: WatchUpdate) {
        if self.watch.watchers.contains_key(&node) {
            self.push(node, update);
        }
    }
}

fn gather(state: &MetaState, seen: LogIndex) -> Option<Gathered> {
    let mut g = Gathered::default();
    for touch in state.touched_after(seen)? {
        match touch {
            Touch::Nodes => g.nodes = true,
            Touch::Appointed(node) => drop(g.appointed.insert(*node)),
            Touch::Chunks(branch, chunks) => g.chunks.entry(*branch).or_default().extend(chunks),
            Touch::Resized(branch) => drop(g.resized.insert(*branch)),
            Touch::Fenced(node, branch, epoch) => g.fenced.push((*node, *branch, *epoch)),
            Touch::Garbage(drive) => drop(g.garbage.insert(*drive)),
            Touch::Views(branch) => drop(g.views.insert(*branch)),
            Touch::Keep(drive, branch) => drop(g.keeps.insert((*drive, *branch))),
            Touch::Job(branch) => drop(g.jobs.insert(*branch)),
            Touch::Branch(_) | Touch::Settings | Touch::Policies => {}
        }
    }
    Some(g)
}

/// Few and small enough for one update.
fn batches(lists: Vec<KeepList>) -> Vec<Vec<KeepList>> {
    let mut all: Vec<Vec<KeepList>> = Vec::new();
    let mut named = 0;
    for list in lists {
        let full =
            all.last().is_none_or(|b| b.len() == KEEP_BATCH || named + list.behind.len() > BEHIND_BATCH);
        if full {
            all.push(Vec::new());
            named = 0;
        }
        named += list.behind.len();
        all.last_mut().expect("pushed above").push(list);
    }
    all
}

fn summaries(state: &MetaState) -> Vec<NodeSummary> {
    let summary = |(id, n): (&NodeId, &crate::model::Node)| NodeSummary {
        node: *id,
        name: n.name.clone(),
        address: n.address.clone(),
        up: n.down.is_none(),
    };
    state.nodes().iter().map(summary).collect()
}
