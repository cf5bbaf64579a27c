//! metad as a register: epoch, configurations; refuses what is not current.

use super::BRANCH;
use proto::control::*;
use proto::*;

pub struct Metad {
    pub epoch: Epoch,
    pub chunks: Vec<Configuration>,
    pub down: Vec<DriveId>,
    pub attached: Attached,
    pub detached_clean: bool,
    pub failed_at_creation: Vec<DriveId>,
    /// Of a group: its member is drained.
    pub drained: bool,
    /// Generations that were sealed, until the world has taken their images.
    pub sealed: Vec<Generation>,
    /// Of a shrink that came to nothing: the last byte that is written.
    pub written: Option<u64>,
}

pub fn place(node: u32, incarnation: u64) -> Place {
    Place { node: NodeId(node), drive: DriveId(u64::from(node) * 10), incarnation: Incarnation(incarnation) }
}

/// One configuration with these nodes in-sync.
pub fn configuration(number: u64, nodes: &[u32], incarnation: u64) -> Configuration {
    let members =
        nodes.iter().map(|&n| Member { place: place(n, incarnation), state: MemberState::InSync }).collect();
    Configuration { number: ConfigNumber(number), members }
}

impl Metad {
    pub fn new(chunks: Vec<Configuration>) -> Metad {
        let size = chunks.len() as u64 * (16 << 20);
        let attached = Attached {
            volume: VolumeId(1),
            name: "v1".into(),
            branch: BRANCH,
            epoch: Epoch(0),
            kind: SessionKind::Guest,
            geometry: Geometry { size, chunk_shift: 24 },
            views: proto::BranchViews::plain(Generation::FIRST),
            parents: vec![],
            origin: None,
            job: None,
            min_in_sync: 2,
            wait_when_degraded: true,
            write_through: false,
            copies: 3,
            configurations: vec![],
            placement: None,
            clean: false,
            loss_accepted: false,
            down: vec![],
        };
        Metad {
            epoch: Epoch(0),
            chunks,
            down: vec![],
            attached,
            detached_clean: false,
            failed_at_creation: vec![],
            drained: false,
            sealed: vec![],
            written: None,
        }
    }

    pub fn views(&self) -> &BranchViews {
        &self.attached.views
    }

    /// Something of the branch is decided.
    pub fn decided(&mut self) -> ListIndex {
        self.changed().index
    }

    fn changed(&mut self) -> &mut BranchViews {
        let views = &mut self.attached.views;
        views.index = ListIndex(views.index.0 + 1);
        views
    }

    /// A snapshot is asked for. False: one is under way.
    pub fn seal(&mut self, group: bool) -> bool {
        if self.views().sealing.is_some() {
            return false;
        }
        self.drained = false;
        let views = self.changed();
        let generation = views.head;
        views.sealing = Some(Sealing { generation, group });
        views.kept.insert(generation);
        views.head = Generation(generation.0 + 1);
        true
    }

    /// The seal is called off.
    pub fn cancel(&mut self) {
        if let Some(s) = self.views().sealing {
            let views = self.changed();
            views.sealing = None;
            views.kept.remove(s.generation);
        }
    }

    /// All of the group are drained.
    pub fn decide(&mut self) {
        if let Some(s) = self.views().sealing.filter(|_| self.drained) {
            let views = self.changed();
            (views.sealing, views.unsealed) = (None, views.head);
            self.sealed.push(s.generation);
        }
    }

    pub fn delete(&mut self, g: Generation) {
        if self.views().sealing.is_none_or(|s| s.generation != g) {
            self.changed().kept.remove(g);
        }
    }

    fn confirm(&mut self, generation: Generation) {
        if let Some(s) = self.views().sealing.filter(|s| s.generation == generation) {
            self.drained = true;
            if !s.group {
                self.decide();
            }
        }
    }

    pub fn attach(&mut self, kind: SessionKind) -> Attached {
        self.epoch = self.epoch.next().unwrap();
        let (epoch, configurations, down) = (self.epoch, self.chunks.clone(), self.down.clone());
        Attached { epoch, kind, configurations, down, ..self.attached.clone() }
    }

    fn answer(&self, chunks: impl Iterator<Item = u32>) -> MetaAnswer {
        let chunks = chunks.map(|c| (ChunkIndex(c), self.chunks[c as usize].clone())).collect();
        MetaAnswer::Configurations { epoch: self.epoch, chunks, down: self.down.clone() }
    }

    pub fn apply(&mut self, _from: Epoch, request: &MetaRequest) -> MetaAnswer {
        match request {
            MetaRequest::Propose { branch: _, epoch, changes } => {
                for c in changes {
                    self.change(*epoch, c);
                }
                self.answer(changes.iter().map(|c| c.chunk.0))
            }
            MetaRequest::Chunks { chunks, .. } => self.answer(chunks.iter().map(|c| c.0)),
            MetaRequest::Created { failed, .. } => {
                self.failed_at_creation.clone_from(failed);
                for c in &mut self.chunks {
                    if c.number.0 == 0 {
                        c.number = ConfigNumber(1);
                    }
                }
                self.attached.placement = None;
                let all = (0..).map(ChunkIndex).zip(self.chunks.clone()).collect();
                MetaAnswer::Created { configurations: all, placement: None }
            }
            MetaRequest::Detach { epoch, clean, .. } => {
                if *epoch != self.epoch {
                    return MetaAnswer::Refused(MetaRefusal::OldEpoch { epoch: self.epoch });
                }
                self.detached_clean = *clean;
                match self.views().sealing {
                    Some(s) if *clean => self.confirm(s.generation),
                    None if *clean => {
                        let views = self.changed();
                        views.unsealed = views.head;
                    }
                    _ => {}
                }
                MetaAnswer::Ok
            }
            MetaRequest::Sealed { epoch, generation, .. } => {
                if *epoch == self.epoch {
                    self.confirm(*generation);
                }
                MetaAnswer::Views { epoch: self.epoch, views: self.views().clone() }
            }
            MetaRequest::Views { .. } => MetaAnswer::Views { epoch: self.epoch, views: self.views().clone() },
            MetaRequest::Cut { epoch, job, .. } => {
                if *epoch == self.epoch && self.attached.job.is_some_and(|o| o.job == *job) {
                    self.changed().tied = false;
                    (self.attached.parents, self.attached.job) = (vec![], None);
                }
                MetaAnswer::Views { epoch: self.epoch, views: self.views().clone() }
            }
            MetaRequest::Shrunk { epoch, job, written, .. } => {
                let order = self.attached.job.filter(|o| *epoch == self.epoch && o.job == *job);
                if let Some(JobWork::Shrink { from, to, .. }) = order.map(|o| o.work) {
                    assert_eq!(self.attached.geometry.size, from);
                    self.decided();
                    (self.attached.job, self.written) = (None, *written);
                    if written.is_none() {
                        self.attached.geometry.size = to;
                    }
                }
                let Attached { geometry, job, placement, .. } = self.attached;
                MetaAnswer::Job { epoch: self.epoch, index: self.views().index, job, geometry, placement }
            }
            other => panic!("not said by a session: {other:?}"),
        }
    }

    fn change(&mut self, epoch: Epoch, c: &ChunkChange) {
        let have = &mut self.chunks[c.chunk.0 as usize];
        let current = epoch == self.epoch && c.from == have.number;
        let heard = c.only_if_down.iter().all(|d| self.down.contains(d));
        if current && heard && c.members.iter().any(Member::in_sync) {
            have.members = c.members.iter().copied().collect();
            have.number = have.number.next();
        }
    }
}
