//! Who is alive, as the leader has heard it. Nothing here is in Raft until it is stamped into a command.
//!
//! A node is down when it was silent for a full period *of this leader*, or when its data network has
//! reached fewer than half of the peers that are heard, for as long. A drive is down when its node says
//! that it failed, or has not served it for as long. All this decides liveness only.

use crate::command::Op;
use crate::model::{DownCause, Phase};
use crate::service::{OwnKey, Service};
use crate::state::MetaState;
use proto::control::{DriveStatus, SessionState, SessionStatus, WatchUpdate};
use proto::{BranchId, DriveId, Epoch, Generation, JobId, NodeId, ProcessNumber, Span, Time};
use std::collections::{BTreeMap, BTreeSet};

/// A session that its own node's heartbeats do not name for so long is released.
pub(crate) const RELEASE_AFTER: Span = Span::secs(10);

/// A session that still closes though it has none in Raft is told after so long.
const CLOSING_WAIT: Span = Span::secs(3);

/// What a node said last.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) at: Time,
    pub(crate) process: ProcessNumber,
    pub(crate) drives: Vec<DriveStatus>,
    pub(crate) reaches: BTreeSet<NodeId>,
    pub(crate) sessions: Vec<SessionStatus>,
}

#[derive(Debug, Default)]
pub(crate) struct Liveness {
    pub(crate) heard: BTreeMap<NodeId, Heard>,
    isolated_since: BTreeMap<NodeId, Time>,
    /// Drives that are not served, though their node is heard.
    unserved_since: BTreeMap<DriveId, Time>,
    /// Sessions that are not in their node's heartbeats.
    absent_since: BTreeMap<(BranchId, Epoch), Time>,
    next_look: Time,
    /// Nodes heard since the last look.
    fresh: BTreeSet<NodeId>,
}

impl Liveness {
    pub(crate) fn hear(
        &mut self,
        at: Time,
        node: NodeId,
        process: ProcessNumber,
        drives: Vec<DriveStatus>,
        reaches: Vec<NodeId>,
        sessions: Vec<SessionStatus>,
    ) {
        if self.heard.get(&node).is_some_and(|h| h.process > process) {
            return;
        }
        let reaches = reaches.into_iter().collect();
        self.heard.insert(node, Heard { at, process, drives, reaches, sessions });
        self.fresh.insert(node);
    }

    /// What the node said, if that is not too old.
    pub(crate) fn current(&self, now: Time, period: Span, node: NodeId) -> Option<&Heard> {
        self.heard.get(&node).filter(|h| now.since(h.at) < period)
    }

    /// Some other node that is heard says that it reaches this one.
    pub(crate) fn is_reached(&self, now: Time, state: &MetaState, node: NodeId) -> bool {
        let period = state.settings().node_dead();
        self.heard.iter().any(|(n, h)| *n != node && now.since(h.at) < period && h.reaches.contains(&node))
    }

    /// Capacity and used bytes of a drive, as its node said last.
    pub(crate) fn space(&self, node: NodeId, drive: DriveId) -> Option<(u64, u64)> {
        let status = self.heard.get(&node)?.drives.iter().find(|d| d.drive == drive)?;
        Some((status.capacity, status.used))
    }

    pub(crate) fn drive(&self, node: NodeId, drive: DriveId) -> Option<&DriveStatus> {
        self.heard.get(&node)?.drives.iter().find(|d| d.drive == drive)
    }

    /// What a session says of itself.
    pub(crate) fn session(&self, node: NodeId, branch: BranchId, epoch: Epoch) -> Option<&SessionStatus> {
        self.heard.get(&node)?.sessions.iter().find(|s| s.branch == branch && s.epoch == epoch)
    }

    pub(crate) fn next_wake(&self) -> Time {
        self.next_look
    }
}

/// How often silence is looked at while nodes are up.
fn look_every(period: Span) -> Span {
    Span(period.0 / 4)
}

impl Service {
    /// This process was stopped for a while (or the machine was): what it did not hear proves nothing.
    pub(crate) fn notice_own_stall(&mut self, state: &MetaState, before: Time) {
        let period = state.settings().node_dead();
        if self.leader && self.now.since(before) >= Span(period.0 / 2) && before >= self.since {
            self.since = self.now;
        }
    }

    pub(crate) fn maintain_liveness(&mut self, state: &MetaState) {
        let fresh = std::mem::take(&mut self.liveness.fresh);
        if fresh.is_empty() && self.now < self.liveness.next_look {
            return;
        }
        let period = state.settings().node_dead();
        for node in &fresh {
            self.judge_isolation(state, *node, period);
        }
        let all: Vec<NodeId> = state.nodes().keys().copied().collect();
        for node in &all {
            self.judge_node(state, *node, period);
        }
        for node in fresh {
            self.judge_drives(state, node, period);
            self.judge_sessions(state, node);
        }
        let watched = state.nodes().values().any(|n| n.down.is_none());
        self.liveness.next_look = if watched { self.now + look_every(period) } else { Time::FAR };
        self.liveness.heard.retain(|n, _| state.nodes().contains_key(n));
    }

    fn judge_isolation(&mut self, state: &MetaState, node: NodeId, period: Span) {
        let Some(heard) = self.liveness.current(self.now, period, node) else { return };
        let peers: Vec<NodeId> = state
            .nodes()
            .keys()
            .copied()
            .filter(|n| *n != node && self.liveness.current(self.now, period, *n).is_some())
            .collect();
        let reached = peers.iter().filter(|p| heard.reaches.contains(p)).count();
        if reached * 2 < peers.len() {
            let now = self.now;
            self.liveness.isolated_since.entry(node).or_insert(now);
        } else {
            self.liveness.isolated_since.remove(&node);
        }
    }

    fn judge_node(&mut self, state: &MetaState, id: NodeId, period: Span) {
        let node = &state.nodes()[&id];
        let heard = self.liveness.heard.get(&id);
        let last = heard.map_or(self.since, |h| h.at.max(self.since));
        let silent = self.now.since(last) >= period;
        let isolated_since = self.liveness.isolated_since.get(&id).copied();
        let isolated = isolated_since.is_some_and(|t| !silent && self.now.since(t.max(self.since)) >= period);
        let seen = node.changes;
        if node.down.is_none() && (silent || isolated) {
            let cause = if silent { DownCause::Silent } else { DownCause::Isolated };
            self.propose_own(OwnKey::Node(id), Op::NodeDown { node: id, seen, cause });
            return;
        }
        let Some(heard) = heard.filter(|h| self.now.since(h.at) < period) else { return };
        let process = heard.process;
        let back = node.down.is_some() && isolated_since.is_none();
        if process >= node.process && (back || (node.down.is_none() && process > node.process)) {
            self.propose_own(OwnKey::Node(id), Op::NodeUp { node: id, seen, process });
        }
    }

    fn judge_drives(&mut self, state: &MetaState, node: NodeId, period: Span) {
        let now = self.now;
        let mine: Vec<DriveId> = state
            .drives()
            .iter()
            .filter(|(_, d)| d.node == node && !d.openings.is_empty())
            .map(|(i, _)| *i)
            .collect();
        for id in mine {
            let drive = &state.drives()[&id];
            let status = self.liveness.drive(node, id);
            let failed = status.is_some_and(|s| s.failed);
            let serves = status.is_some_and(|s| s.serving && !s.failed);
            let seen = drive.changes;
            if serves {
                self.liveness.unserved_since.remove(&id);
                if drive.down.is_some() && !drive.stranger {
                    self.propose_own(OwnKey::Drive(id), Op::DriveUp { drive: id, seen });
                }
                continue;
            }
            let since = *self.liveness.unserved_since.entry(id).or_insert(now);
            if drive.down.is_none() && (failed || now.since(since) >= period) {
                self.propose_own(OwnKey::Drive(id), Op::DriveDown { drive: id, seen });
            }
        }
    }

    /// Sessions that this node should know: it says so, is told that they are over, or they are released.
    fn judge_sessions(&mut self, state: &MetaState, node: NodeId) {
        let Some(heard) = self.liveness.heard.get(&node) else { return };
        let named: BTreeSet<(BranchId, Epoch)> = heard.sessions.iter().map(|s| (s.branch, s.epoch)).collect();
        let (process, now) = (heard.process, self.now);
        let generations: BTreeMap<(BranchId, Epoch), Generation> =
            heard.sessions.iter().map(|s| ((s.branch, s.epoch), s.generation)).collect();
        let sizes: BTreeMap<(BranchId, Epoch), u64> =
            heard.sessions.iter().map(|s| ((s.branch, s.epoch), s.size)).collect();
        let jobs: BTreeMap<(BranchId, Epoch), Option<JobId>> =
            heard.sessions.iter().map(|s| ((s.branch, s.epoch), s.job.map(|j| j.job))).collect();
        let closing: BTreeSet<(BranchId, Epoch)> = heard
            .sessions
            .iter()
            .filter(|s| s.state == SessionState::Closing)
            .map(|s| (s.branch, s.epoch))
            .collect();
        for key in &named {
            let (branch, epoch) = *key;
            let row = state.branches().get(&branch);
            let current = row.map(|b| b.epoch);
            let over = match row {
                // Detached or released, it holds nothing any more: nothing that it proposes would be applied. One
                // that closes has not heard the answer to its detach; if it waits for something else, it waits in vain.
                Some(r) if r.epoch == epoch && r.session.is_none() => {
                    let since = *self.liveness.absent_since.entry(*key).or_insert(now);
                    !closing.contains(key) || now.since(since) >= CLOSING_WAIT
                }
                Some(r) => r.epoch != epoch,
                None => true,
            };
            let behind = row.filter(|r| !over && r.sealing.is_some_and(|s| generations[key] <= s.generation));
            if behind.is_some() {
                // It has not heard of the seal; or it has, and hears it once more.
                self.tell_views(state, branch);
            }
            if row.is_some_and(|r| !over && r.phase != Phase::Creating && sizes[key] != r.geometry.size) {
                self.tell_size(state, branch);
            }
            if !over && row.is_some() && jobs[key] != state.running_job(branch) {
                self.tell_job(state, branch);
            }
            if over {
                let next = || epoch.next().unwrap_or(epoch);
                let epoch = current.filter(|c| *c != epoch).unwrap_or_else(next);
                self.push(node, WatchUpdate::Fenced { branch, epoch });
            }
        }
        for branch in state.sessions_on(node) {
            let row = &state.branches()[&branch];
            let key = (branch, row.epoch);
            let session = row.session.expect("indexed as having one");
            if named.contains(&key) || process < session.process {
                self.liveness.absent_since.remove(&key);
                continue;
            }
            let since = *self.liveness.absent_since.entry(key).or_insert(now);
            if now.since(since) >= RELEASE_AFTER {
                self.propose_own(OwnKey::Branch(branch), Op::Release { branch, epoch: row.epoch });
            }
        }
        self.liveness.absent_since.retain(|(b, e), _| state.branches().get(b).is_some_and(|r| r.epoch == *e));
    }
}
