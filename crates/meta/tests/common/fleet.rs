//! A whole control plane in a few lines: one leader with its service, and nodes that do what sessions do,
//! without any data: drop members that are gone, fill stale ones, let go of those that leave.

use meta::view::{VolumeView, WaitFor};
use meta::{
    AdminAnswer, AdminRefusal, AdminRequest, Answer, Class, Command, MetaState, Op, Proposal, Service,
    ServiceEffect, ServiceEvent, Token,
};
use proto::control::{
    Attached, ChangeCause, ChunkChange, DriveStatus, JobOrder, JobStatus, JobTrouble, JobWork, MetaAnswer,
    MetaRefusal, MetaRequest, SessionKind, SessionState, SessionStatus, VolumeRef, WatchUpdate,
};
use proto::space::Measure;
use proto::{
    BranchId, BranchViews, ChunkIndex, ClusterId, Configuration, DriveId, Epoch, KeepList, LogIndex,
    MemberState, NodeId, OpenId, Place, ProcessNumber, RequestId, Span, Time,
};
use std::collections::{BTreeMap, BTreeSet};

pub struct FakeSession {
    pub epoch: Epoch,
    pub kind: SessionKind,
    pub copies: u8,
    /// What it believes.
    pub chunks: BTreeMap<ChunkIndex, Configuration>,
    pub views: BranchViews,
    pub job: Option<JobOrder>,
    pub size: u64,
}

pub struct FakeNode {
    pub up: bool,
    pub process: u64,
    pub opening: u64,
    pub openings: Vec<OpenId>,
    /// Peers whose data network it does not reach.
    pub cut: BTreeSet<NodeId>,
    pub failed: bool,
    pub sessions: BTreeMap<BranchId, FakeSession>,
    pub appointed: BTreeSet<BranchId>,
    pub heard: Vec<WatchUpdate>,
    pub erased: usize,
    /// Keep-lists told, and those of them that were the newest.
    pub lists: usize,
    pub kept: BTreeMap<BranchId, KeepList>,
    /// Generations told.
    pub views: usize,
}

pub enum Ask {
    Attach(BranchId),
    Session(BranchId),
    Other,
}

pub struct Fleet {
    pub state: MetaState,
    pub service: Service,
    pub now: Time,
    pub nodes: BTreeMap<NodeId, FakeNode>,
    pub log: Vec<Op>,
    index: u64,
    token: u64,
    request: u128,
    asked: BTreeMap<Token, (NodeId, Ask)>,
    pub answers: BTreeMap<Token, MetaAnswer>,
    pub admin_answers: BTreeMap<Token, Option<Result<AdminAnswer, AdminRefusal>>>,
    next_beat: Time,
    /// How many chunks of a session are filled per tick.
    pub fill: usize,
    /// What every session says to have moved.
    pub moved: u64,
    /// Nothing stale is filled while this is set.
    pub lame: bool,
    /// Bytes used of a drive, if not few.
    pub used: BTreeMap<NodeId, u64>,
    /// Proposals fail while this is set.
    pub no_quorum: bool,
    /// Sessions cannot drain while this is set.
    pub stuck: bool,
    /// No list reaches a drive while this is set.
    pub lists_lost: bool,
    /// Sessions are not done with their jobs, and say this.
    pub trouble: Option<JobTrouble>,
    /// The nodes' clocks are behind the leader's by so much.
    pub behind_ms: u64,
    /// What nodes were ordered to count, in its order; they do not by themselves.
    pub measures: Vec<(NodeId, Measure)>,
    /// What every shrink finds beyond the new end.
    pub written: Option<u64>,
}

pub fn drive(n: u32) -> DriveId {
    DriveId(1000 + u64::from(n))
}

pub const BEAT: Span = Span::millis(500);

impl Fleet {
    pub fn new(nodes: u32) -> Fleet {
        let mut f = Fleet {
            state: MetaState::new(),
            service: Service::new(),
            now: Time(5_000_000_000),
            nodes: BTreeMap::new(),
            log: Vec::new(),
            index: 0,
            token: 0,
            request: 0,
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
            admin_answers: BTreeMap::new(),
            next_beat: Time::ZERO,
            fill: 50,
            moved: 1 << 10,
            lame: false,
            used: BTreeMap::new(),
            no_quorum: false,
            stuck: false,
            lists_lost: false,
            trouble: None,
            behind_ms: 0,
            measures: Vec::new(),
            written: None,
        };
        f.event(ServiceEvent::BecameLeader);
        let init = AdminRequest::ClusterInit { cluster: ClusterId(7), name: "c".into(), token: "t".into() };
        f.admin(init).expect("a cluster is made");
        for n in 1..=nodes {
            f.add(n);
        }
        f.run(Span::secs(3));
        f
    }

    pub fn add(&mut self, n: u32) {
        let add = AdminRequest::NodeAdd {
            name: format!("node-{n}"),
            zone: String::new(),
            address: format!("h{n}:1"),
            identity: u128::from(n),
            token: Some("t".into()),
        };
        self.admin(add).expect("a node joins");
        let (node, drive) = (NodeId(n), drive(n));
        let add = AdminRequest::DriveAdd { node, drive, capacity: 1 << 40, path: "p".into() };
        self.admin(add).expect("a drive is added");
        let fake = FakeNode {
            up: false,
            process: 0,
            opening: 0,
            openings: vec![],
            cut: BTreeSet::new(),
            failed: false,
            sessions: BTreeMap::new(),
            appointed: BTreeSet::new(),
            heard: vec![],
            erased: 0,
            lists: 0,
            kept: BTreeMap::new(),
            views: 0,
        };
        self.nodes.insert(node, fake);
        self.start(n);
    }

    pub fn start(&mut self, n: u32) {
        let id = NodeId(n);
        let node = self.nodes.get_mut(&id).expect("a known node");
        if node.up {
            return;
        }
        node.up = true;
        node.process += 1;
        node.opening += 1;
        node.openings.push(OpenId(node.opening));
        let (openings, process) = (node.openings.clone(), ProcessNumber(node.process));
        let (drive, capacity, path) = (drive(n), 1 << 40, "p".into());
        self.ask(
            id,
            Ask::Other,
            MetaRequest::DriveOpened { node: id, drive, openings, capacity, replicas: vec![], path },
        );
        self.event(ServiceEvent::WatchOpened { node: id, process });
    }

    pub fn kill(&mut self, n: u32) {
        let id = NodeId(n);
        let node = self.nodes.get_mut(&id).expect("a known node");
        if !node.up {
            return;
        }
        node.up = false;
        node.sessions.clear();
        node.appointed.clear();
        self.asked.retain(|_, (who, _)| *who != id);
        self.event(ServiceEvent::WatchClosed { node: id });
    }

    pub fn event(&mut self, event: ServiceEvent) {
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let wall = self.now.0 / 1_000_000;
            self.service.handle(self.now, wall, &self.state, event);
            let mut applied = false;
            while let Some(effect) = self.service.poll() {
                match effect {
                    ServiceEffect::Propose { proposal, command } => {
                        let outcome = self.commit(proposal, &command);
                        applied |= matches!(outcome, ServiceEvent::Applied { .. });
                        events.push_back(outcome);
                    }
                    ServiceEffect::AnswerNode { token, answer } => drop(self.answers.insert(token, answer)),
                    ServiceEffect::AnswerAdmin { token, answer } => {
                        drop(self.admin_answers.insert(token, answer))
                    }
                    ServiceEffect::Push { node, update } => self.pushed(node, update),
                }
            }
            if applied {
                events.push_back(ServiceEvent::StateChanged);
            }
        }
    }

    fn commit(&mut self, proposal: Proposal, command: &Command) -> ServiceEvent {
        if self.no_quorum {
            return ServiceEvent::ProposalFailed { proposal };
        }
        self.index += 1;
        self.log.push(command.op.clone());
        let index = LogIndex(self.index);
        let answer = self.state.apply(index, command).answer;
        assert!(!matches!(answer, Answer::Admin(Err(AdminRefusal::PlacementOutdated))), "plans are sound");
        ServiceEvent::Applied { proposal, index, answer }
    }

    fn next_token(&mut self) -> Token {
        self.token += 1;
        Token(self.token)
    }

    /// Of an order that may have to wait; its request id is given.
    pub fn order(&mut self, id: u128, request: AdminRequest) -> Token {
        let token = self.next_token();
        self.event(ServiceEvent::Admin { token, id: Some(RequestId(id)), request });
        token
    }

    pub fn admin(&mut self, request: AdminRequest) -> Result<AdminAnswer, AdminRefusal> {
        let token = self.next_token();
        self.request += 1;
        let id = Some(RequestId(self.request));
        self.event(ServiceEvent::Admin { token, id, request });
        self.admin_answers.remove(&token).expect("answered at once").expect("this is the leader")
    }

    pub fn ask(&mut self, from: NodeId, what: Ask, request: MetaRequest) -> Token {
        let token = self.next_token();
        self.asked.insert(token, (from, what));
        self.event(ServiceEvent::Node { from, token, request });
        token
    }

    fn pushed(&mut self, id: NodeId, update: WatchUpdate) {
        if let WatchUpdate::Measure(order) = &update {
            self.measures.push((id, order.clone()));
        }
        let node = self.nodes.get_mut(&id).expect("pushed to a known node");
        match &update {
            WatchUpdate::Appointed(branches) => node.appointed = branches.iter().copied().collect(),
            WatchUpdate::Fenced { branch, epoch } => {
                node.sessions.retain(|b, s| b != branch || s.epoch >= *epoch)
            }
            _ => {}
        }
        node.heard.push(update);
    }

    pub fn attach(&mut self, n: u32, branch: BranchId, kind: SessionKind, force: bool) -> Token {
        self.request += 1;
        let node = NodeId(n);
        let request = MetaRequest::Attach {
            request: RequestId(self.request),
            volume: VolumeRef::Branch(branch),
            node,
            process: ProcessNumber(self.nodes[&node].process),
            kind,
            force,
            after: None,
        };
        let token = self.ask(node, Ask::Attach(branch), request);
        self.take_answers(false);
        token
    }

    /// A guest on node `n`; panics if refused.
    pub fn guest(&mut self, n: u32, branch: BranchId) {
        self.attach(n, branch, SessionKind::Guest, false);
        assert!(self.nodes[&NodeId(n)].sessions.contains_key(&branch), "attached");
    }

    pub fn try_guest(&mut self, n: u32, branch: BranchId) -> Option<MetaRefusal> {
        let token = self.attach(n, branch, SessionKind::Guest, false);
        match self.answers.remove(&token) {
            Some(MetaAnswer::Refused(r)) => Some(r),
            _ => None,
        }
    }

    /// What the nodes make of their answers.
    fn take_answers(&mut self, all: bool) {
        let tokens: Vec<Token> =
            self.asked.keys().copied().filter(|t| self.answers.contains_key(t)).collect();
        for token in tokens {
            let (id, ask) = self.asked.remove(&token).expect("listed above");
            let refused = matches!(self.answers[&token], MetaAnswer::Refused(_));
            let keep = refused && !all;
            let answer = if keep { continue } else { self.answers.remove(&token).expect("listed above") };
            let node = self.nodes.get_mut(&id).expect("a known node");
            match (ask, answer) {
                (Ask::Attach(branch), MetaAnswer::Attached(a)) => {
                    let session = FakeSession {
                        epoch: a.epoch,
                        kind: a.kind,
                        copies: a.copies,
                        chunks: (0..).map(ChunkIndex).zip(a.configurations.iter().cloned()).collect(),
                        views: a.views.clone(),
                        job: a.job,
                        size: a.geometry.size,
                    };
                    node.sessions.insert(branch, session);
                    self.make(id, &a);
                }
                (Ask::Session(branch), MetaAnswer::Configurations { epoch, chunks, .. }) => {
                    if let Some(s) = node.sessions.get_mut(&branch) {
                        s.chunks.extend(chunks);
                        if s.epoch != epoch {
                            node.sessions.remove(&branch);
                        }
                    }
                }
                (Ask::Session(branch), MetaAnswer::Views { views, .. }) => {
                    if let Some(s) = node.sessions.get_mut(&branch) {
                        s.views = views;
                    }
                }
                (Ask::Session(branch), MetaAnswer::Job { job, geometry, .. }) => {
                    if let Some(s) = node.sessions.get_mut(&branch) {
                        (s.job, s.size) = (job, geometry.size);
                    }
                }
                (Ask::Session(branch), MetaAnswer::Created { configurations, placement }) => {
                    if let Some(s) = node.sessions.get_mut(&branch) {
                        s.chunks.extend(configurations);
                        let epoch = s.epoch;
                        if let Some(placement) = placement {
                            self.created(id, branch, epoch, placement);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn make(&mut self, id: NodeId, a: &Attached) {
        if let Some(placement) = a.placement {
            self.created(id, a.branch, a.epoch, placement);
        }
    }

    fn is_served(&self, d: DriveId) -> bool {
        self.nodes.iter().any(|(n, f)| drive(n.0) == d && f.up && !f.failed)
    }

    fn created(&mut self, id: NodeId, branch: BranchId, epoch: Epoch, placement: u32) {
        let session = &self.nodes[&id].sessions[&branch];
        let used: BTreeSet<DriveId> = session
            .chunks
            .values()
            .filter(|c| c.number.0 == 0)
            .flat_map(|c| c.members.iter().map(|m| m.place.drive))
            .collect();
        let failed = used.into_iter().filter(|d| !self.is_served(*d)).collect();
        self.ask(id, Ask::Session(branch), MetaRequest::Created { branch, epoch, placement, failed });
    }

    /// One round of a node's life.
    fn live(&mut self, id: NodeId) {
        self.take_updates(id);
        self.take_answers(true);
        self.tend_sessions(id);
    }

    fn take_updates(&mut self, id: NodeId) {
        let heard: Vec<WatchUpdate> = self.nodes.get_mut(&id).expect("known").heard.drain(..).collect();
        for update in heard {
            match update {
                WatchUpdate::ChunksChanged { branch, chunks } => {
                    if let Some(epoch) = self.nodes[&id].sessions.get(&branch).map(|s| s.epoch) {
                        self.ask(id, Ask::Session(branch), MetaRequest::Chunks { branch, epoch, chunks });
                    }
                }
                WatchUpdate::Delete { drive, replicas, .. } => {
                    self.nodes.get_mut(&id).expect("known").erased += replicas.len();
                    self.ask(id, Ask::Other, MetaRequest::Deleted { drive, replicas });
                }
                WatchUpdate::Views { branch, views } => {
                    let node = self.nodes.get_mut(&id).expect("known");
                    node.views += 1;
                    if let Some(s) = node.sessions.get_mut(&branch).filter(|s| s.views.index < views.index) {
                        s.views = views;
                    }
                }
                WatchUpdate::Resized { branch, geometry, placement, .. } if !self.lists_lost => {
                    let chunks: Vec<(ChunkIndex, Configuration)> =
                        self.state.chunks(branch).into_iter().flat_map(|c| c.iter()).collect();
                    let Some(s) = self.nodes.get_mut(&id).expect("known").sessions.get_mut(&branch) else {
                        continue;
                    };
                    let news = geometry.size > s.size;
                    s.size = geometry.size;
                    s.chunks.extend(chunks);
                    let epoch = s.epoch;
                    if let Some(placement) = placement.filter(|_| news) {
                        self.created(id, branch, epoch, placement);
                    }
                }
                WatchUpdate::Job { branch, job, .. } if !self.lists_lost => {
                    if let Some(s) = self.nodes.get_mut(&id).expect("known").sessions.get_mut(&branch) {
                        s.job = job;
                    }
                }
                WatchUpdate::Keep { drive, lists } if !self.lists_lost => self.keep(id, drive, lists),
                _ => {}
            }
        }
    }

    fn tend_sessions(&mut self, id: NodeId) {
        let node_appointed = self.nodes[&id].appointed.clone();
        let wanted: Vec<BranchId> =
            node_appointed.iter().filter(|b| !self.nodes[&id].sessions.contains_key(b)).copied().collect();
        for branch in wanted {
            self.attach(id.0, branch, SessionKind::Maintenance, false);
        }
        self.take_answers(true);
        let held: Vec<BranchId> = self.nodes[&id].sessions.keys().copied().collect();
        for branch in held {
            let s = &self.nodes[&id].sessions[&branch];
            let epoch = s.epoch;
            if s.kind == SessionKind::Maintenance && !node_appointed.contains(&branch) {
                self.nodes.get_mut(&id).expect("known").sessions.remove(&branch);
                self.ask(id, Ask::Other, MetaRequest::Detach { branch, epoch, clean: true });
                continue;
            }
            if let Some(JobOrder { job, work }) = s.job.filter(|_| self.trouble.is_none()) {
                let request = match work {
                    JobWork::Flatten => MetaRequest::Cut { branch, epoch, job },
                    JobWork::Shrink { .. } => {
                        assert_eq!(s.kind, SessionKind::Maintenance, "no guest has it meanwhile");
                        MetaRequest::Shrunk { branch, epoch, job, written: self.written }
                    }
                };
                self.ask(id, Ask::Session(branch), request);
                self.take_answers(true);
                if !self.nodes[&id].sessions.contains_key(&branch) {
                    continue;
                }
            }
            let s = &self.nodes[&id].sessions[&branch];
            if let Some(seal) = s.views.sealing.filter(|_| !self.stuck) {
                let generation = seal.generation;
                self.ask(id, Ask::Session(branch), MetaRequest::Sealed { branch, epoch, generation });
                self.take_answers(true);
                // The snapshot may have let another order go on, which ended this session.
                if !self.nodes[&id].sessions.contains_key(&branch) {
                    continue;
                }
            }
            let changes = self.session_changes(id, branch);
            let s = &self.nodes[&id].sessions[&branch];
            if s.kind == SessionKind::Maintenance && !s.views.named && changes.is_empty() {
                // Nothing to do. (Others end as soon as they are not appointed any more.)
                self.nodes.get_mut(&id).expect("known").sessions.remove(&branch);
                self.ask(id, Ask::Other, MetaRequest::Detach { branch, epoch, clean: true });
                continue;
            }
            if !changes.is_empty() {
                self.ask(id, Ask::Session(branch), MetaRequest::Propose { branch, epoch, changes });
                self.take_answers(true);
            }
        }
    }

    fn keep(&mut self, id: NodeId, drive: DriveId, lists: Vec<KeepList>) {
        for list in lists {
            assert!(list.is_possible());
            let node = self.nodes.get_mut(&id).expect("known");
            node.lists += 1;
            let (branch, index) = (list.branch, list.index);
            if node.kept.get(&branch).is_none_or(|l| l.index < index) {
                node.kept.insert(branch, list);
            }
            self.ask(id, Ask::Other, MetaRequest::Kept { drive, branch, index });
        }
    }

    /// A stale replica there can be filled.
    fn takes(&self, place: Place) -> bool {
        let full = self.used.get(&place.node).is_some_and(|u| *u == 1 << 40);
        self.is_served(place.drive) && !self.lame && !full
    }

    fn session_changes(&self, id: NodeId, branch: BranchId) -> Vec<ChunkChange> {
        let s = &self.nodes[&id].sessions[&branch];
        let mut changes = Vec::new();
        for (chunk, c) in s.chunks.iter().filter(|(_, c)| c.number.0 > 0) {
            let mut members = c.members.to_vec();
            let in_sync = members.iter().filter(|m| m.state == MemberState::InSync).count();
            let alive = members.iter().any(|m| m.in_sync() && self.is_served(m.place.drive));
            let gone = members.iter().position(|m| m.in_sync() && !self.is_served(m.place.drive));
            let leaving = members.iter().position(|m| m.state == MemberState::Leaving);
            let stale = members.iter().position(|m| m.state == MemberState::Stale && self.takes(m.place));
            let (cause, only_if_down) = match (gone, leaving, stale) {
                (Some(i), ..) if alive => {
                    members[i].state = MemberState::Stale;
                    (ChangeCause::Silent, vec![members[i].place.drive])
                }
                (_, Some(i), _) if in_sync >= usize::from(s.copies) => {
                    members.remove(i);
                    (ChangeCause::Left, vec![])
                }
                (_, _, Some(i)) if alive => {
                    members[i].state = MemberState::InSync;
                    (ChangeCause::Promoted(1), vec![])
                }
                _ => continue,
            };
            changes.push(ChunkChange { chunk: *chunk, from: c.number, members, cause, only_if_down });
            if changes.len() == self.fill {
                break;
            }
        }
        changes
    }

    fn beat(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        let reaches = self
            .nodes
            .iter()
            .filter(|(n, f)| **n != id && f.up && !node.cut.contains(n) && !f.cut.contains(&id))
            .map(|(n, _)| *n)
            .collect();
        let status = |(b, s): (&BranchId, &FakeSession)| SessionStatus {
            job: s.job.map(|o| JobStatus { job: o.job, done: 3, total: 9, trouble: self.trouble }),
            size: s.size,
            branch: *b,
            epoch: s.epoch,
            kind: s.kind,
            state: SessionState::Serving,
            generation: s.views.sealing.map_or(s.views.head, |seal| seal.generation),
            resync_left: 1 << 20,
            resync_moved: self.moved,
            resync_rate: 1 << 10,
            degraded_chunks: 0,
            waiting: None,
        };
        let sessions = node.sessions.iter().map(status).collect();
        let drives = vec![DriveStatus {
            drive: drive(id.0),
            failed: node.failed,
            serving: !node.failed,
            capacity: 1 << 40,
            used: self.used.get(&id).copied().unwrap_or(1 << 30),
            path: "p".into(),
        }];
        let process = ProcessNumber(node.process);
        let wall_ms = (self.now.0 / 1_000_000).saturating_sub(self.behind_ms);
        self.event(ServiceEvent::Clock { node: id, wall_ms });
        self.ask(id, Ask::Other, MetaRequest::Heartbeat { node: id, process, drives, reaches, sessions });
    }

    /// Lets time pass: wakes, heartbeats, and the nodes' rounds every 100 ms.
    pub fn run(&mut self, span: Span) {
        let end = self.now + span;
        while self.now < end {
            self.now = self.now + Span::millis(100);
            if self.service.next_wake() <= self.now {
                self.event(ServiceEvent::Wake);
            }
            let up: Vec<NodeId> = self.nodes.iter().filter(|(_, n)| n.up).map(|(n, _)| *n).collect();
            let beat = self.now >= self.next_beat;
            for id in up {
                if beat {
                    self.beat(id);
                }
                self.live(id);
            }
            if beat {
                self.next_beat = self.now + BEAT;
            }
        }
    }

    /// Runs until it holds; panics after so many seconds.
    pub fn until(&mut self, what: &str, secs: u64, holds: impl Fn(&Fleet) -> bool) -> Span {
        let start = self.now;
        while !holds(self) {
            if self.now.since(start) >= Span::secs(secs) {
                let last: Vec<&Op> = self.log.iter().rev().take(8).collect();
                panic!("not within {secs} s: {what}; last: {last:?}; {:?}", self.state.branches());
            }
            self.run(Span::millis(100));
        }
        self.now.since(start)
    }

    pub fn create(&mut self, name: &str, mib: u64) -> BranchId {
        let create = AdminRequest::VolumeCreate {
            name: name.into(),
            size: mib << 20,
            chunk_shift: Some(24),
            class: Class::default(),
            prefer: None,
        };
        self.admin(create).expect("a volume is created");
        self.state.volume_named(name).expect("it is there").1.branch
    }

    pub fn ready(&mut self, name: &str, mib: u64) -> BranchId {
        let branch = self.create(name, mib);
        self.until("volume ready", 20, |f| f.waited(name, WaitFor::Ready));
        self.settle(20);
        branch
    }

    /// Until nobody is appointed and all maintenance sessions are over.
    pub fn settle(&mut self, secs: u64) {
        self.until("settled", secs, |f| {
            f.state
                .branches()
                .values()
                .all(|b| b.appointed.is_none() && (b.session.is_none() || b.guest().is_some()))
        });
    }

    pub fn waited(&self, name: &str, wanted: WaitFor) -> bool {
        let branch = self.state.volume_named(name).map(|(_, v)| v.branch);
        match wanted {
            WaitFor::Ready => branch.is_some_and(|b| self.state.branches()[&b].pending().is_none()),
            _ => branch.is_some_and(|b| self.state.is_healthy(b)),
        }
    }

    pub fn show(&mut self, name: &str) -> VolumeView {
        match self.admin(AdminRequest::VolumeShow { name: name.into() }) {
            Ok(AdminAnswer::Volume(v)) => *v,
            other => panic!("not a volume: {other:?}"),
        }
    }

    pub fn all_on(&self, branch: BranchId, n: u32) -> usize {
        let Some(chunks) = self.state.chunks(branch) else { return 0 };
        chunks.iter().filter(|(_, c)| c.member(drive(n)).is_some()).count()
    }
}
