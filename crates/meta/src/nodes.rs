//! Commands about the cluster, its nodes and drives.

use crate::admin::AdminAnswer;
use crate::answer::Answer;
use crate::command::Op;
use crate::event::EventKind;
use crate::model::{Cluster, DownCause, Drive, Node};
use crate::name::check_name;
use crate::refusal::{AdminRefusal, Noun};
use crate::rows::Key;
use crate::settings::Setting;
use crate::state::MetaState;
use crate::touch::Touch;
use proto::control::{ChangeCause, HeldReplica, MetaAnswer, MetaRefusal};
use proto::{ChunkIndex, ClusterId, Configuration, DriveId, MemberState, NodeId, OpenId, ProcessNumber};
use std::collections::BTreeMap;

/// Openings of a drive that are remembered, to know late messages of older ones.
const OPENINGS_MAX: usize = 256;

type Decision = Result<AdminAnswer, AdminRefusal>;

impl MetaState {
    pub(crate) fn apply_cluster_init(&mut self, at: u64, id: ClusterId, name: &str, token: &str) -> Decision {
        check_name(name)?;
        if let Some(c) = &self.head.cluster {
            return Err(AdminRefusal::ClusterExists { name: c.name.clone() });
        }
        let cluster = Cluster { id, name: name.to_owned(), token: token.to_owned(), created_ms: at };
        self.head.cluster = Some(cluster);
        self.mark(Key::Settings);
        self.log(at, EventKind::ClusterCreated { name: name.to_owned() });
        Ok(AdminAnswer::ClusterCreated { cluster: id, token: token.to_owned() })
    }

    pub(crate) fn apply_setting(&mut self, at: u64, setting: Setting) -> Decision {
        self.settings.set(setting);
        self.mark(Key::Settings);
        self.touch(Touch::Settings);
        self.log(at, EventKind::SettingChanged { key: setting.key().into(), value: setting.show() });
        Ok(AdminAnswer::Done)
    }

    pub(crate) fn perform_node(&mut self, at: u64, op: &Op) -> Answer {
        match op {
            Op::NodeAdd { name, zone, address, identity, token } => {
                Answer::Admin(self.apply_node_add(at, name, zone, address, *identity, token.as_deref()))
            }
            Op::NodeRegister { node, zone, address, identity, process } => {
                Answer::Admin(self.apply_node_register(*node, zone, address, *identity, *process))
            }
            Op::NodeDrain { node, drain } => Answer::Admin(self.apply_node_drain(at, *node, *drain)),
            Op::NodeRemove { node } => Answer::Admin(self.apply_node_remove(at, *node)),
            Op::NodeDown { node, seen, cause } => {
                Answer::Planned(self.apply_node_down(at, *node, *seen, *cause))
            }
            Op::NodeUp { node, seen, process } => {
                Answer::Planned(self.apply_node_up(at, *node, *seen, *process))
            }
            _ => unreachable!("perform sends only nodes' commands here"),
        }
    }

    pub(crate) fn perform_drive(&mut self, at: u64, op: &Op) -> Answer {
        match op {
            Op::DriveAdd { node, drive, capacity, path } => {
                Answer::Admin(self.apply_drive_add(at, *node, *drive, *capacity, path))
            }
            Op::DriveOpened { .. } => Answer::Node(self.apply_drive_opened(at, op)),
            Op::DriveDown { drive, seen } => Answer::Planned(self.apply_drive_down(at, *drive, *seen)),
            Op::DriveUp { drive, seen } => Answer::Planned(self.apply_drive_up(at, *drive, *seen)),
            Op::DriveRetire { drive, retire } => Answer::Admin(self.apply_drive_retire(at, *drive, *retire)),
            Op::DriveRemove { drive } => Answer::Admin(self.apply_drive_remove(at, *drive)),
            _ => unreachable!("perform sends only drives' commands here"),
        }
    }

    fn apply_node_add(
        &mut self,
        at: u64,
        name: &str,
        zone: &str,
        address: &str,
        identity: u128,
        token: Option<&str>,
    ) -> Decision {
        let cluster = self.head.cluster.as_ref().ok_or(AdminRefusal::NoCluster)?;
        let cluster_id = cluster.id;
        if token.is_some_and(|t| t != cluster.token) {
            return Err(AdminRefusal::BadToken);
        }
        check_name(name)?;
        if !zone.is_empty() {
            check_name(zone)?;
        }
        let existing = self.index.node_names.get(name).copied();
        if let Some(id) = existing {
            let node = self.nodes.get_mut(&id).expect("indexed");
            // Without an identity it is an operator's order, and that name is taken.
            if node.identity != identity || identity == 0 {
                return Err(AdminRefusal::Exists { noun: Noun::Node, name: name.to_owned() });
            }
            address.clone_into(&mut node.address);
            zone.clone_into(&mut node.zone);
            self.mark(Key::Node(id));
            self.touch(Touch::Nodes);
            return Ok(AdminAnswer::NodeAdded { node: id, cluster: cluster_id });
        }
        self.head.last_node += 1;
        let id = NodeId(self.head.last_node);
        let node = Node {
            name: name.to_owned(),
            zone: zone.to_owned(),
            address: address.to_owned(),
            identity,
            process: ProcessNumber(0),
            // Up when it is heard.
            down: Some((at, DownCause::Silent)),
            changes: 0,
            drain: false,
            added_ms: at,
        };
        self.nodes.insert(id, node);
        self.index.node_names.insert(name.to_owned(), id);
        self.mark(Key::Node(id));
        self.touch(Touch::Nodes);
        self.log(at, EventKind::NodeAdded { node: id, name: name.to_owned() });
        Ok(AdminAnswer::NodeAdded { node: id, cluster: cluster_id })
    }

    /// The first process that registers as a node makes it its own: what it keeps in its state directory tells it from
    /// every other one that has the same node id in its configuration.
    fn apply_node_register(
        &mut self,
        id: NodeId,
        zone: &str,
        address: &str,
        identity: u128,
        process: ProcessNumber,
    ) -> Decision {
        let cluster = self.head.cluster.as_ref().ok_or(AdminRefusal::NoCluster)?.id;
        if !zone.is_empty() {
            check_name(zone)?;
        }
        let node = self.nodes.get_mut(&id).ok_or_else(|| no_node(id))?;
        // Nodes added before identities were compared have one that nobody owns. Their own state directory is known by
        // its count of processes, which goes on, at the same address.
        let goes_on = node.address == address && node.process < process && node.process.0 > 0;
        // Nor does a process that a newer one has replaced tell where the node is.
        let late = process < node.process;
        if late || (node.identity != identity && node.identity != 0 && !goes_on) {
            return Err(AdminRefusal::OtherProcess {
                name: node.name.clone(),
                node: id,
                known: node.address.clone(),
                address: address.to_owned(),
                up: node.down.is_none(),
            });
        }
        node.identity = identity;
        address.clone_into(&mut node.address);
        if !zone.is_empty() {
            zone.clone_into(&mut node.zone);
        }
        self.mark(Key::Node(id));
        self.touch(Touch::Nodes);
        Ok(AdminAnswer::NodeAdded { node: id, cluster })
    }

    fn apply_node_drain(&mut self, at: u64, id: NodeId, drain: bool) -> Decision {
        let node = self.nodes.get_mut(&id).ok_or_else(|| no_node(id))?;
        if node.drain != drain {
            node.drain = drain;
            let name = node.name.clone();
            self.mark(Key::Node(id));
            self.touch(Touch::Nodes);
            self.log(at, EventKind::NodeDrain { node: id, name, drain });
        }
        Ok(AdminAnswer::Done)
    }

    fn apply_node_remove(&mut self, at: u64, id: NodeId) -> Decision {
        let node = self.nodes.get(&id).ok_or_else(|| no_node(id))?;
        let name = node.name.clone();
        let drives: Vec<DriveId> =
            self.drives.iter().filter(|(_, d)| d.node == id).map(|(d, _)| *d).collect();
        let replicas: u64 = drives.iter().map(|d| self.replicas_on(*d)).sum();
        if replicas > 0 {
            return Err(AdminRefusal::HoldsReplicas { noun: Noun::Node, name, replicas });
        }
        if node.down.is_none() {
            return Err(AdminRefusal::NodeUp { name });
        }
        let sessions = self.index.sessions.get(&id).map_or(0, |s| s.len() as u64);
        if sessions > 0 {
            return Err(AdminRefusal::HoldsSessions { name, sessions });
        }
        for drive in drives {
            self.remove_drive(at, drive);
        }
        for branch in self.index.appointed.get(&id).cloned().unwrap_or_default() {
            self.set_appointed(branch, None);
        }
        self.nodes.remove(&id);
        self.index.node_names.remove(&name);
        self.mark(Key::Node(id));
        self.touch(Touch::Nodes);
        self.log(at, EventKind::NodeRemoved { node: id, name });
        Ok(AdminAnswer::Done)
    }

    fn apply_node_down(&mut self, at: u64, id: NodeId, seen: u64, cause: DownCause) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        if node.changes != seen || node.down.is_some() {
            return false;
        }
        node.down = Some((at, cause));
        node.changes += 1;
        let name = node.name.clone();
        self.mark(Key::Node(id));
        self.touch(Touch::Nodes);
        self.log(at, EventKind::NodeDown { node: id, name, cause });
        true
    }

    fn apply_node_up(&mut self, at: u64, id: NodeId, seen: u64, process: ProcessNumber) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        if node.changes != seen || process < node.process {
            return false;
        }
        let came_back = node.down.take();
        if came_back.is_none() && process == node.process {
            return false;
        }
        node.changes += 1;
        node.process = process;
        let name = node.name.clone();
        self.mark(Key::Node(id));
        self.touch(Touch::Nodes);
        if let Some((since, _)) = came_back {
            self.log(at, EventKind::NodeUp { node: id, name, down_ms: at.saturating_sub(since) });
        }
        true
    }

    fn apply_drive_add(&mut self, at: u64, node: NodeId, id: DriveId, capacity: u64, path: &str) -> Decision {
        if !self.nodes.contains_key(&node) {
            return Err(no_node(node));
        }
        if let Some(d) = self.drives.get(&id) {
            if d.node == node {
                return Ok(AdminAnswer::Done);
            }
            let (node, name) = (d.node, self.node_name(d.node));
            return Err(AdminRefusal::OtherNode { drive: id, node, name });
        }
        let drive = Drive {
            node,
            path: path.to_owned(),
            capacity,
            openings: Vec::new(),
            stranger: false,
            down: None,
            changes: 0,
            retired: false,
            unknown: 0,
            added_ms: at,
        };
        self.drives.insert(id, drive);
        self.mark(Key::Drive(id));
        self.touch(Touch::Nodes);
        self.log(at, EventKind::DriveAdded { drive: id, node });
        Ok(AdminAnswer::Done)
    }

    /// The last opening that was confirmed must be in the list. A list whose newest was confirmed already
    /// is a late double: the same answer.
    fn apply_drive_opened(&mut self, at: u64, op: &Op) -> MetaAnswer {
        let Op::DriveOpened { node, drive: id, openings, capacity, path, orphans, unknown } = op else {
            unreachable!("called for this command")
        };
        let Some(drive) = self.drives.get_mut(id) else {
            return MetaAnswer::Refused(MetaRefusal::UnknownDrive);
        };
        let Some(newest) = openings.last().filter(|_| drive.node == *node) else {
            return MetaAnswer::Refused(MetaRefusal::UnknownDrive);
        };
        if drive.stranger {
            return MetaAnswer::Refused(MetaRefusal::Stranger);
        }
        if drive.openings.contains(newest) {
            return MetaAnswer::DriveConfirmed { drive: *id };
        }
        if drive.openings.last().is_some_and(|last| !openings.contains(last)) {
            self.call_stranger(at, *id);
            return MetaAnswer::Refused(MetaRefusal::Stranger);
        }
        confirm(drive, openings);
        drive.capacity = *capacity;
        drive.unknown = *unknown;
        path.clone_into(&mut drive.path);
        if let Some(since) = drive.down.take() {
            drive.changes += 1;
            let down_ms = at.saturating_sub(since);
            self.log(at, EventKind::DriveUp { drive: *id, node: *node, down_ms });
        }
        self.mark(Key::Drive(*id));
        self.touch(Touch::Nodes);
        self.take_orphans(*id, orphans);
        MetaAnswer::DriveConfirmed { drive: *id }
    }

    fn take_orphans(&mut self, drive: DriveId, orphans: &[HeldReplica]) {
        let node = self.drives[&drive].node;
        for r in orphans.iter().filter(|r| r.incarnation.0 != 0) {
            if self.is_orphan(drive, r) {
                self.discard(r.branch, r.chunk, proto::Place { node, drive, incarnation: r.incarnation });
            }
        }
        self.touch(Touch::Garbage(drive));
    }

    /// Its replicas are stale wherever another is in-sync. Where none is, the chunk waits for an operator.
    fn call_stranger(&mut self, at: u64, id: DriveId) {
        let drive = self.drives.get_mut(&id).expect("looked up by the caller");
        drive.stranger = true;
        drive.changes += 1;
        let node = drive.node;
        let branches: Vec<_> =
            self.index.uses.get(&id).map(|u| u.keys().copied().collect()).unwrap_or_default();
        let (mut stale, mut last) = (0, 0);
        for branch in branches {
            let mut changes: BTreeMap<ChunkIndex, Configuration> = BTreeMap::new();
            let chunks = &self.chunks[&branch];
            for (chunk, mut c) in (0..chunks.pages())
                .filter(|p| chunks.page_names(*p, id))
                .flat_map(|p| chunks.page(p))
                .filter(|(_, c)| c.number.0 > 0)
            {
                let others = c.in_sync().any(|m| m.place.drive != id);
                let Some(m) = c.members.iter_mut().find(|m| m.place.drive == id && m.in_sync()) else {
                    continue;
                };
                if !others {
                    last += 1;
                    continue;
                }
                m.state = MemberState::Stale;
                c.number = c.number.next();
                stale += 1;
                changes.insert(chunk, c);
            }
            let changed: Vec<ChunkIndex> = changes.keys().copied().collect();
            self.set_chunks(at, branch, &changes);
            if !changed.is_empty() {
                let chunks = u32::try_from(changed.len()).expect("chunk indexes are 32 bits");
                self.log_stale(at, branch, id, chunks, ChangeCause::Reported);
                self.touch(Touch::Chunks(branch, changed));
            }
        }
        self.mark(Key::Drive(id));
        self.touch(Touch::Nodes);
        self.log(at, EventKind::DriveStranger { drive: id, node, stale, last });
    }

    fn apply_drive_down(&mut self, at: u64, id: DriveId, seen: u64) -> bool {
        let Some(drive) = self.drives.get_mut(&id) else { return false };
        if drive.changes != seen || drive.down.is_some() {
            return false;
        }
        drive.down = Some(at);
        drive.changes += 1;
        let node = drive.node;
        self.mark(Key::Drive(id));
        self.touch(Touch::Nodes);
        self.log(at, EventKind::DriveDown { drive: id, node });
        true
    }

    fn apply_drive_up(&mut self, at: u64, id: DriveId, seen: u64) -> bool {
        let Some(drive) = self.drives.get_mut(&id) else { return false };
        if drive.changes != seen || drive.stranger {
            return false;
        }
        let Some(since) = drive.down.take() else { return false };
        drive.changes += 1;
        let node = drive.node;
        self.mark(Key::Drive(id));
        self.touch(Touch::Nodes);
        self.log(at, EventKind::DriveUp { drive: id, node, down_ms: at.saturating_sub(since) });
        true
    }

    fn apply_drive_retire(&mut self, at: u64, id: DriveId, retire: bool) -> Decision {
        let drive = self.drives.get_mut(&id).ok_or_else(|| no_drive(id))?;
        if drive.retired != retire {
            drive.retired = retire;
            self.mark(Key::Drive(id));
            self.touch(Touch::Nodes);
            self.log(at, EventKind::DriveRetired { drive: id, retire });
        }
        Ok(AdminAnswer::Done)
    }

    fn apply_drive_remove(&mut self, at: u64, id: DriveId) -> Decision {
        let drive = self.drives.get(&id).ok_or_else(|| no_drive(id))?;
        let name = id.to_string();
        let replicas = self.replicas_on(id);
        if replicas > 0 {
            return Err(AdminRefusal::HoldsReplicas { noun: Noun::Drive, name, replicas });
        }
        if !drive.retired && !drive.stranger {
            return Err(AdminRefusal::NotDrained { noun: Noun::Drive, name });
        }
        self.remove_drive(at, id);
        Ok(AdminAnswer::Done)
    }

    fn remove_drive(&mut self, at: u64, id: DriveId) {
        self.forget_garbage(id);
        self.forget_owed_to(id);
        self.drives.remove(&id);
        self.mark(Key::Drive(id));
        self.touch(Touch::Nodes);
        self.log(at, EventKind::DriveRemoved { drive: id });
    }
}

/// The newest opening is confirmed. Those before it that were never confirmed are known from now on too: what was said
/// for one of them and comes late must not look like a drive that was rolled back.
fn confirm(drive: &mut Drive, told: &[OpenId]) {
    for opening in told {
        if !drive.openings.contains(opening) {
            drive.openings.push(*opening);
        }
    }
    let over = drive.openings.len().saturating_sub(OPENINGS_MAX);
    drive.openings.drain(..over);
}

fn no_node(id: NodeId) -> AdminRefusal {
    AdminRefusal::NotFound { noun: Noun::Node, name: id.to_string() }
}
fn no_drive(id: DriveId) -> AdminRefusal {
    AdminRefusal::NotFound { noun: Noun::Drive, name: id.to_string() }
}
