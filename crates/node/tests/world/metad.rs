//! A metad small enough to read at once: one process, nothing lost, every rule of `apply` that a node can meet.

use super::{drive_of, summary};
use proto::control::{
    Attached, HeldReplica, MetaAnswer, MetaRefusal, MetaRequest, SessionKind, SnapshotFound, VolumeRef,
    WatchUpdate,
};
use proto::limits::NODE_DEAD;
use proto::space::Measured;
use proto::{
    BranchId, BranchViews, ChunkIndex, ConfigNumber, Configuration, DriveId, Epoch, Generation, Geometry,
    Incarnation, KeepList, Level, ListIndex, Member, MemberState, NodeId, Place, ProcessNumber, RequestId,
    Sealing, Time, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

pub struct Volume {
    pub name: String,
    pub branch: BranchId,
    pub geometry: Geometry,
    pub epoch: Epoch,
    pub chunks: Vec<Configuration>,
    pub placement: Option<u32>,
    pub session: Option<(NodeId, ProcessNumber, SessionKind)>,
    /// All guest attaches.
    pub guests: Vec<(NodeId, Epoch)>,
    pub clean: bool,
    pub appointed: Option<NodeId>,
    pub views: BranchViews,
    /// By name; those that are being sealed too.
    pub snapshots: BTreeMap<String, (Generation, u64)>,
    /// Of a clone: where it reads what it has not.
    pub parents: Vec<Level>,
}

pub struct Metad {
    nodes: u32,
    pub volumes: BTreeMap<BranchId, Volume>,
    heard: BTreeMap<NodeId, (Time, ProcessNumber)>,
    reaches: BTreeMap<NodeId, Vec<NodeId>>,
    answers: BTreeMap<RequestId, MetaAnswer>,
    pub confirmed: BTreeSet<DriveId>,
    /// Drives whose openings are not confirmed, and why.
    pub refuses: BTreeMap<DriveId, MetaRefusal>,
    down: BTreeSet<DriveId>,
    /// To be pushed.
    pending: Vec<(NodeId, WatchUpdate)>,
    /// So many answers to an attach are lost on their way.
    pub lose_attached: u32,
    /// Answers nothing but `Unavailable`.
    pub leaderless: bool,
    pub detached_cleanly: u32,
    /// What nodes say they have erased.
    pub deleted: Vec<HeldReplica>,
    /// Keep-lists that they say are on the drive.
    pub kept: Vec<(DriveId, BranchId, proto::ListIndex)>,
    /// What they counted.
    pub measured: Vec<(NodeId, Measured)>,
}

impl Metad {
    pub fn new(nodes: u32) -> Metad {
        Metad {
            nodes,
            volumes: BTreeMap::new(),
            heard: BTreeMap::new(),
            reaches: BTreeMap::new(),
            answers: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            refuses: BTreeMap::new(),
            down: BTreeSet::new(),
            pending: vec![],
            lose_attached: 0,
            leaderless: false,
            detached_cleanly: 0,
            deleted: vec![],
            kept: vec![],
            measured: vec![],
        }
    }
    /// A volume of some chunks of 16 MiB on these nodes, made by a maintenance session on the first.
    pub fn create(&mut self, name: &str, chunks: u32, on: &[u32]) -> BranchId {
        let branch = BranchId(self.volumes.len() as u64 + 1);
        let member = |c: u32, n: u32| {
            let incarnation = Incarnation(branch.0 * 1000 + u64::from(c * 10 + n));
            let place = Place { node: NodeId(n), drive: drive_of(n), incarnation };
            Member { place, state: MemberState::InSync }
        };
        let placed = (0..chunks).map(|c| Configuration {
            number: ConfigNumber(0),
            members: on.iter().map(|&n| member(c, n)).collect(),
        });
        let volume = Volume {
            name: name.to_owned(),
            branch,
            geometry: Geometry { size: u64::from(chunks) << 24, chunk_shift: 24 },
            epoch: Epoch(0),
            chunks: placed.collect(),
            placement: Some(1),
            session: None,
            guests: vec![],
            clean: false,
            appointed: None,
            views: BranchViews::plain(Generation::FIRST),
            snapshots: BTreeMap::new(),
            parents: vec![],
        };
        self.volumes.insert(branch, volume);
        self.appoint(branch, Some(NodeId(on[0])));
        branch
    }
    /// A clone of a snapshot, of so many chunks.
    pub fn clone_of(
        &mut self,
        source: BranchId,
        snapshot: &str,
        name: &str,
        chunks: u32,
        on: &[u32],
    ) -> BranchId {
        let v = &self.volumes[&source];
        let (generation, size) = v.snapshots[snapshot];
        assert!(generation < v.views.open(), "only what is sealed is cloned");
        let parents: Vec<Level> =
            [Level { branch: source, generation, size }].into_iter().chain(v.parents.clone()).collect();
        let branch = self.create(name, chunks, on);
        let v = self.volumes.get_mut(&branch).unwrap();
        (v.parents, v.views.tied) = (parents, true);
        branch
    }
    pub fn appoint(&mut self, branch: BranchId, node: Option<NodeId>) {
        let older = std::mem::replace(&mut self.volumes.get_mut(&branch).unwrap().appointed, node);
        for n in older.into_iter().chain(node).collect::<BTreeSet<_>>() {
            let list = self.appointments(n);
            self.pending.push((n, WatchUpdate::Appointed(list)));
        }
    }
    /// Another session has come and gone: who held the volume is told.
    pub fn pass(&mut self, branch: BranchId) {
        let v = self.volumes.get_mut(&branch).unwrap();
        v.epoch = v.epoch.next().unwrap();
        if let Some((holder, _, _)) = v.session.take() {
            self.pending.push((holder, WatchUpdate::Fenced { branch, epoch: v.epoch }));
        }
    }
    /// Its name is free for another one.
    pub fn delete(&mut self, branch: BranchId) {
        self.volumes.get_mut(&branch).unwrap().name.clear();
        self.pass(branch);
    }
    fn kept(&self, answer: &MetaAnswer) -> MetaAnswer {
        match answer {
            MetaAnswer::Attached(a) => match &self.volumes[&a.branch] {
                v if v.epoch == a.epoch && v.session.is_some() => answer.clone(),
                v => MetaAnswer::Refused(MetaRefusal::OldEpoch { epoch: v.epoch }),
            },
            other => other.clone(),
        }
    }
    fn appointments(&self, node: NodeId) -> Vec<BranchId> {
        self.volumes.values().filter(|v| v.appointed == Some(node)).map(|v| v.branch).collect()
    }
    pub fn first_updates(&self, node: NodeId) -> Vec<WatchUpdate> {
        let nodes = (1..=self.nodes).map(summary).collect();
        vec![WatchUpdate::Nodes(nodes), WatchUpdate::Appointed(self.appointments(node))]
    }
    pub fn pushes(&mut self, now: Time) -> Vec<(NodeId, WatchUpdate)> {
        let dead = |n: u32| self.heard.get(&NodeId(n)).is_none_or(|h| now.since(h.0) > NODE_DEAD);
        let down: BTreeSet<DriveId> = (1..=self.nodes).filter(|n| dead(*n)).map(drive_of).collect();
        if down != self.down {
            self.down = down;
            for n in 1..=self.nodes {
                let drives = self.down.iter().copied().collect();
                self.pending.push((NodeId(n), WatchUpdate::Down(drives)));
            }
        }
        std::mem::take(&mut self.pending)
    }
    fn down(&self) -> Vec<DriveId> {
        self.down.iter().copied().collect()
    }

    pub fn handle(&mut self, now: Time, from: NodeId, request: MetaRequest) -> MetaAnswer {
        if self.leaderless {
            return MetaAnswer::Unavailable;
        }
        match request {
            MetaRequest::Heartbeat { node, process, reaches, .. } => {
                assert_eq!(node, from);
                self.heard.insert(node, (now, process));
                self.reaches.insert(node, reaches);
                MetaAnswer::Ok
            }
            MetaRequest::Attach { request, volume, node, process, kind, force, after } => {
                if let Some(kept) = self.answers.get(&request) {
                    return self.kept(kept);
                }
                self.heard.insert(node, (now, process));
                let answer = self.attach(now, &volume, (node, process, kind), force, after);
                self.answers.insert(request, answer.clone());
                if self.lose_attached > 0 && matches!(answer, MetaAnswer::Attached(_)) {
                    self.lose_attached -= 1;
                    return MetaAnswer::Unavailable;
                }
                answer
            }
            MetaRequest::Detach { branch, epoch, clean } => {
                let v = self.volumes.get_mut(&branch).unwrap();
                if v.epoch != epoch {
                    return MetaAnswer::Refused(MetaRefusal::OldEpoch { epoch: v.epoch });
                }
                (v.session, v.clean) = (None, clean);
                self.detached_cleanly += u32::from(clean);
                MetaAnswer::Ok
            }
            MetaRequest::Propose { branch, epoch, changes } => {
                let v = self.volumes.get_mut(&branch).unwrap();
                if v.epoch == epoch {
                    for c in &changes {
                        let old = &mut v.chunks[c.chunk.0 as usize];
                        let proven = c.only_if_down.iter().all(|d| self.down.contains(d));
                        let some = c.members.iter().any(Member::in_sync);
                        if old.number == c.from && proven && some {
                            let members = c.members.iter().copied().collect();
                            *old = Configuration { number: old.number.next(), members };
                        }
                    }
                }
                self.present(branch, &changes.iter().map(|c| c.chunk).collect::<Vec<_>>())
            }
            MetaRequest::Chunks { branch, chunks, .. } => self.present(branch, &chunks),
            MetaRequest::Created { branch, epoch, placement, failed } => {
                assert!(failed.is_empty() && placement == 1);
                self.created(branch, epoch)
            }
            MetaRequest::DriveOpened { drive, .. } => {
                if let Some(refusal) = self.refuses.get(&drive) {
                    return MetaAnswer::Refused(refusal.clone());
                }
                self.confirmed.insert(drive);
                MetaAnswer::DriveConfirmed { drive }
            }
            MetaRequest::Kept { drive, branch, index } => self.told(&[], &[(drive, branch, index)]),
            MetaRequest::Deleted { replicas, .. } => self.told(&replicas, &[]),
            MetaRequest::Views { .. } | MetaRequest::Sealed { .. } | MetaRequest::Snapshot { .. } => {
                self.of_snapshots(request)
            }
            MetaRequest::Volumes { .. } => MetaAnswer::Volumes(vec![]),
            MetaRequest::Measured { measured, .. } => self.counted(from, measured),
            MetaRequest::Cut { .. } | MetaRequest::Shrunk { .. } => unreachable!("no job is ordered here"),
        }
    }
    fn created(&mut self, branch: BranchId, epoch: Epoch) -> MetaAnswer {
        let v = self.volumes.get_mut(&branch).unwrap();
        assert_eq!(v.epoch, epoch);
        v.placement = None;
        v.chunks.iter_mut().for_each(|c| c.number = ConfigNumber(c.number.0.max(1)));
        let configurations = (0..).map(ChunkIndex).zip(v.chunks.clone()).collect();
        MetaAnswer::Created { configurations, placement: None }
    }
    fn told(
        &mut self,
        deleted: &[HeldReplica],
        kept: &[(DriveId, BranchId, proto::ListIndex)],
    ) -> MetaAnswer {
        self.deleted.extend(deleted);
        self.kept.extend(kept);
        MetaAnswer::Ok
    }
    fn counted(&mut self, from: NodeId, measured: Measured) -> MetaAnswer {
        self.measured.push((from, measured));
        MetaAnswer::Ok
    }
    fn of_snapshots(&mut self, request: MetaRequest) -> MetaAnswer {
        match request {
            MetaRequest::Views { branch, .. } => self.views(branch),
            MetaRequest::Sealed { branch, epoch, generation } => {
                let v = self.volumes.get_mut(&branch).unwrap();
                if v.epoch == epoch && v.views.sealing.is_some_and(|s| s.generation == generation) {
                    v.views.sealing = None;
                    v.views.unsealed = v.views.head;
                    self.views_changed(branch);
                }
                self.views(branch)
            }
            MetaRequest::Snapshot { volume, snapshot } => {
                let found = self.volumes.values().find(|v| v.name == volume);
                let Some(v) = found else { return MetaAnswer::Refused(MetaRefusal::NoSuchVolume) };
                match v.snapshots.get(&snapshot).filter(|(g, _)| *g < v.views.open()) {
                    None => MetaAnswer::Refused(MetaRefusal::NoSuchSnapshot),
                    Some(&(generation, size)) => MetaAnswer::Snapshot(Box::new(SnapshotFound {
                        volume: VolumeId(v.branch.0),
                        geometry: Geometry { size, ..v.geometry },
                        levels: [Level { branch: v.branch, generation, size }]
                            .into_iter()
                            .chain(v.parents.clone())
                            .collect(),
                    })),
                }
            }
            other => panic!("of snapshots alone: {other:?}"),
        }
    }
    fn views(&self, branch: BranchId) -> MetaAnswer {
        let v = &self.volumes[&branch];
        MetaAnswer::Views { epoch: v.epoch, views: v.views.clone() }
    }
    /// A snapshot is asked for; its session is told.
    pub fn snapshot(&mut self, branch: BranchId, name: &str) {
        let v = self.volumes.get_mut(&branch).unwrap();
        assert!(v.views.sealing.is_none());
        let generation = v.views.head;
        v.views.sealing = Some(Sealing { generation, group: false });
        v.views.kept.insert(generation);
        v.views.head = Generation(generation.0 + 1);
        v.snapshots.insert(name.to_owned(), (generation, v.geometry.size));
        self.views_changed(branch);
    }
    pub fn is_sealed(&self, branch: BranchId, name: &str) -> bool {
        let v = &self.volumes[&branch];
        v.snapshots[name].0 < v.views.open()
    }
    pub fn delete_snapshot(&mut self, branch: BranchId, name: &str) {
        let v = self.volumes.get_mut(&branch).unwrap();
        let (generation, _) = v.snapshots.remove(name).unwrap();
        v.views.kept.remove(generation);
        self.views_changed(branch);
    }
    /// Its session and its drives are told.
    fn views_changed(&mut self, branch: BranchId) {
        let v = self.volumes.get_mut(&branch).unwrap();
        v.views.index = ListIndex(v.views.index.0 + 1);
        let views = v.views.clone();
        if let Some((node, _, _)) = v.session {
            self.pending.push((node, WatchUpdate::Views { branch, views: views.clone() }));
        }
        let members = v.chunks.iter().flat_map(|c| &c.members);
        let drives: BTreeSet<(NodeId, DriveId)> = members.map(|m| (m.place.node, m.place.drive)).collect();
        let list = KeepList {
            branch,
            index: views.index,
            placed: Incarnation(u64::MAX >> 8),
            open: views.open(),
            head: views.head,
            named: true,
            kept: views.kept.clone(),
            behind: vec![],
        };
        for (node, drive) in drives {
            self.pending.push((node, WatchUpdate::Keep { drive, lists: vec![list.clone()] }));
        }
    }
    fn present(&self, branch: BranchId, chunks: &[ChunkIndex]) -> MetaAnswer {
        let v = &self.volumes[&branch];
        let chunks = chunks.iter().map(|c| (*c, v.chunks[c.0 as usize].clone())).collect();
        MetaAnswer::Configurations { epoch: v.epoch, chunks, down: self.down() }
    }
    fn attach(
        &mut self,
        now: Time,
        volume: &VolumeRef,
        (node, process, kind): (NodeId, ProcessNumber, SessionKind),
        force: bool,
        after: Option<Epoch>,
    ) -> MetaAnswer {
        let down = self.down();
        let found = self.volumes.values_mut().find(|v| match volume {
            VolumeRef::Name(n) => v.name == *n,
            VolumeRef::Branch(b) => v.branch == *b && !v.name.is_empty(),
        });
        let Some(v) = found else { return MetaAnswer::Refused(MetaRefusal::NoSuchVolume) };
        let between = |g: &&(NodeId, Epoch)| g.0 != node && after.is_some_and(|a| g.1 > a);
        if let Some(&(node, epoch)) = v.guests.iter().rev().find(between) {
            return MetaAnswer::Refused(MetaRefusal::Superseded { epoch, node });
        }
        match kind {
            SessionKind::Guest if v.placement.is_some() => return MetaAnswer::Refused(MetaRefusal::NotReady),
            SessionKind::Maintenance if v.appointed != Some(node) => {
                return MetaAnswer::Refused(MetaRefusal::OldEpoch { epoch: v.epoch });
            }
            _ => {}
        }
        let held = v.session.filter(|(n, _, k)| *k == SessionKind::Guest && *n != node && !force);
        if let Some((holder, process, _)) = held {
            let heard = self.heard.get(&holder);
            // A newer process of the node has forgotten the session.
            let live = heard.is_some_and(|h| now.since(h.0) <= NODE_DEAD && h.1 == process);
            if live {
                let (name, epoch) = (format!("n{}", holder.0), v.epoch);
                return MetaAnswer::Refused(MetaRefusal::Held { node: holder, name, epoch, live });
            }
        }
        v.epoch = v.epoch.next().unwrap();
        if kind == SessionKind::Guest {
            v.guests.push((node, v.epoch));
        }
        if let Some((older, _, _)) = v.session.replace((node, process, kind)).filter(|s| s.0 != node) {
            self.pending.push((older, WatchUpdate::Fenced { branch: v.branch, epoch: v.epoch }));
        }
        let clean = std::mem::replace(&mut v.clean, false);
        MetaAnswer::Attached(Box::new(Attached {
            volume: VolumeId(v.branch.0),
            name: v.name.clone(),
            branch: v.branch,
            epoch: v.epoch,
            kind,
            geometry: v.geometry,
            views: v.views.clone(),
            parents: v.parents.clone(),
            origin: v.parents.first().map(|l| (l.branch, l.generation)),
            job: None,
            min_in_sync: 2,
            wait_when_degraded: true,
            write_through: false,
            copies: 3,
            configurations: v.chunks.clone(),
            placement: v.placement,
            clean,
            loss_accepted: false,
            down,
        }))
    }
    /// Every member of every chunk is in-sync.
    pub fn healthy(&self, branch: BranchId) -> bool {
        self.volumes[&branch].chunks.iter().all(|c| c.members.iter().all(Member::in_sync))
    }
}
