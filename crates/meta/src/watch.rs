//! What each node must be told: the node table, appointments, changed chunks, fenced sessions, drives
//! that are down, replicas to erase. No decision rests on it: it says where to look, so a lost update
//! costs time only. A node that opens its stream hears everything from the start.

use crate::service::Service;
use crate::state::MetaState;
use crate::touch::Touch;
use proto::control::{NodeSummary, WatchUpdate};
use proto::{BranchId, ChunkIndex, DriveId, Epoch, LogIndex, NodeId, ProcessNumber, Span, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Replicas named by one order to erase.
const DELETE_BATCH: usize = 4096;
/// Least time between two orders for a drive, and until an order is repeated.
const DELETE_PACE: Span = Span::secs(1);
const DELETE_AGAIN: Span = Span::secs(10);
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
    /// A new leader: nobody was told anything by it.
    pub(crate) fn start_over(&mut self, state: &MetaState) {
        self.new = self.watchers.keys().copied().collect();
        self.seen = state.applied();
        self.nodes = summaries(state);
        self.down = state.drives_down();
        self.deletes = state.garbage_drives().into_iter().map(|d| (d, DeleteTurn::default())).collect();
    }
    pub(crate) fn next_wake(&self) -> Time {
        self.deletes.values().map(|t| t.due).min().unwrap_or(Time::FAR)
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
            let Some(row) = state.branches().get(branch) else { continue };
            if let Some(session) = row.session {
                self.tell(session.node, WatchUpdate::Resized { branch: *branch, geometry: row.geometry });
            }
        }
        for drive in &changed.garbage {
            let turn = self.watch.deletes.entry(*drive).or_default();
            turn.due = turn.earliest;
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
        }
        for (drive, row) in state.drives() {
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
    fn tell(&mut self, node: NodeId, update: WatchUpdate) {
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
            Touch::Branch(_) | Touch::Settings => {}
        }
    }
    Some(g)
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
