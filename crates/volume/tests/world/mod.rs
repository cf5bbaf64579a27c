//! A small deterministic world for sessions: fake drives behind links that keep their order, break and delay; a
//! fake metad; leases as plain truth; a guest with unique values. Everything that can happen may happen late.
#![allow(dead_code, reason = "each test uses a part of it")]

pub mod family;
pub mod judge;
pub mod metad;
pub mod replica;

use judge::Judge;
use metad::Metad;
use proto::control::SessionKind;
use proto::message::{DriveHello, Reply, ReplyFrame, RequestFrame, View};
use proto::*;
use replica::Drive;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use volume::*;

pub const BRANCH: BranchId = BranchId(7);

/// A small generator: the walk's only chance.
pub struct Rng(pub u64);
impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// Truth about leases: whom a session may count on.
pub struct Held(pub BTreeSet<NodeId>);
impl Leases for Held {
    fn until(&self, node: NodeId, _: BranchId) -> Time {
        if self.0.contains(&node) { Time::FAR } else { Time::ZERO }
    }
}

/// A session, the links it has, and the leases it holds.
pub struct Host {
    pub session: Session,
    pub node: NodeId,
    pub epoch: Epoch,
    pub leases: Held,
    pub links: BTreeMap<NodeId, Link>,
    pub closed: Option<CloseReason>,
    pub notices: Vec<volume::Notice>,
}

/// Frames on their way, oldest first; only those of the live connection are kept.
#[derive(Default)]
pub struct Link {
    pub connection: u64,
    pub up: bool,
    pub to_replica: VecDeque<RequestFrame>,
    pub to_session: VecDeque<ReplyFrame>,
}

/// A node that holds drives.
pub struct Node {
    pub up: bool,
    pub process: u64,
    pub drives: Vec<Drive>,
}

pub struct World {
    pub now: Time,
    pub rng: Rng,
    pub nodes: BTreeMap<NodeId, Node>,
    pub hosts: Vec<Host>,
    pub metad: Metad,
    pub judge: Judge,
    pub connections: u64,
    pub trace: Vec<String>,
    pub bugs: Bugs,
    /// metad's questions on their way: (host, token, request).
    /// Such questions are not answered by themselves.
    pub held: fn(&control::MetaRequest) -> bool,
    pub questions: VecDeque<(usize, u64, control::MetaRequest)>,
    pub clean: bool,
    /// The parents, if the branch is a clone.
    pub family: Option<family::Family>,
    /// A node cut off from the others.
    pub cut: Option<NodeId>,
    /// Values of each sealed view, as they were when it was confirmed.
    pub images: BTreeMap<Generation, BTreeMap<(u32, u32), u64>>,
    /// When the seal under way was asked for.
    pub asked: u64,
}

impl World {
    /// `nodes` nodes with one drive each (drive id = node id * 10); chunks as metad has them.
    pub fn new(seed: u64, nodes: u32, metad: Metad) -> World {
        let mut w = World {
            now: Time(1_000_000_000),
            rng: Rng(seed),
            nodes: BTreeMap::new(),
            hosts: vec![],
            metad,
            judge: Judge::default(),
            connections: 0,
            trace: vec![],
            bugs: Bugs::default(),
            held: |_| false,
            questions: VecDeque::new(),
            clean: false,
            family: None,
            cut: None,
            images: BTreeMap::new(),
            asked: 0,
        };
        for n in 1..=nodes {
            let mut d = Drive::new(DriveId(u64::from(n) * 10));
            for (chunk, c) in w.metad.chunks.iter().enumerate() {
                if let Some(m) = c.member(d.id).filter(|_| c.number.0 > 0) {
                    d.records.insert((u32::try_from(chunk).unwrap(), m.place.incarnation));
                }
            }
            w.nodes.insert(NodeId(n), Node { up: true, process: 1, drives: vec![d] });
        }
        w
    }

    /// The branch is a clone of these.
    pub fn descend(&mut self, family: family::Family) {
        self.metad.attached.parents = family.levels.clone();
        self.metad.attached.origin = family.levels.first().map(|l| (l.branch, l.generation));
        self.metad.attached.views.tied = true;
        self.judge.inherited = family.values();
        self.family = Some(family);
    }

    pub fn attach(&mut self, node: NodeId, kind: SessionKind) -> usize {
        let mut attached = self.metad.attach(kind);
        attached.clean = std::mem::take(&mut self.clean);
        let epoch = attached.epoch;
        #[allow(unused_mut, reason = "only with seeded bugs")]
        let mut session = Session::new(attached, node, ProcessNumber(1), self.now);
        #[cfg(feature = "bugs")]
        session.set_bugs(self.bugs);
        let links = self.nodes.keys().map(|&n| (n, Link::default())).collect();
        let host = Host {
            session,
            node,
            epoch,
            leases: Held(BTreeSet::new()),
            links,
            closed: None,
            notices: vec![],
        };
        self.hosts.push(host);
        self.hosts.len() - 1
    }

    pub fn drive(&mut self, id: DriveId) -> &mut Drive {
        self.nodes.values_mut().flat_map(|n| &mut n.drives).find(|d| d.id == id).unwrap()
    }

    pub fn event(&mut self, h: usize, e: Event) {
        let host = &mut self.hosts[h];
        if host.closed.is_some() && !matches!(e, Event::Guest(_)) {
            return;
        }
        host.session.handle(self.now, &host.leases, e);
        self.drain(h);
    }

    fn drain(&mut self, h: usize) {
        while let Some(e) = self.hosts[h].session.poll() {
            match e {
                Effect::Send { node, frame } => {
                    let link = self.hosts[h].links.get_mut(&node).unwrap();
                    if link.up {
                        link.to_replica.push_back(frame);
                    }
                }
                Effect::Complete { ticket, result } => self.judge.completed(self.now, ticket, result),
                Effect::Meta { token, request } => self.questions.push_back((h, token, request)),
                Effect::Opened { .. } => self.judge.served(self.now, self.hosts[h].epoch),
                Effect::Closed { reason } => self.closed(h, reason),
                Effect::Resized { .. } => {}
                Effect::Notice(n) => self.hosts[h].notices.push(n),
            }
        }
    }

    fn closed(&mut self, h: usize, reason: CloseReason) {
        let host = &mut self.hosts[h];
        host.closed = Some(reason);
        host.leases.0.clear();
        for l in host.links.values_mut() {
            *l = Link { connection: l.connection, ..Link::default() };
        }
        if reason == CloseReason::Clean {
            self.clean = true;
        }
    }

    /// The process of a session ends: nothing of it is left.
    pub fn kill_session(&mut self, h: usize) {
        if self.hosts[h].closed.is_none() {
            let epoch = self.hosts[h].epoch;
            self.judge.abandoned(epoch);
            self.closed(h, CloseReason::GivenUp);
        }
    }

    pub fn connect(&mut self, h: usize, n: NodeId) {
        let host = &self.hosts[h];
        if host.closed.is_some() || !self.nodes[&n].up || !self.reaches(h, n) {
            return;
        }
        self.connections += 1;
        let link = self.hosts[h].links.get_mut(&n).unwrap();
        *link = Link { connection: self.connections, up: true, ..Link::default() };
        let node = self.nodes.get_mut(&n).unwrap();
        let source = h as u64;
        let drives = node
            .drives
            .iter_mut()
            .map(|d| {
                d.source_closed(source);
                DriveHello {
                    drive: d.id,
                    failed: false,
                    serving: true,
                    in_doubt: if d.doubt { vec![BRANCH] } else { vec![] },
                }
            })
            .collect();
        let process = ProcessNumber(node.process);
        let connection = ConnNumber(self.connections);
        self.event(h, Event::Connected { node: n, connection, process, drives });
    }

    pub fn reaches(&self, h: usize, n: NodeId) -> bool {
        let at = self.hosts[h].node;
        at == n || self.cut.is_none_or(|c| c != n && c != at)
    }

    pub fn disconnect(&mut self, h: usize, n: NodeId) {
        let link = self.hosts[h].links.get_mut(&n).unwrap();
        if link.up {
            *link = Link { connection: link.connection, ..Link::default() };
            for d in &mut self.nodes.get_mut(&n).unwrap().drives {
                d.source_closed(h as u64);
            }
            self.event(h, Event::Disconnected { node: n });
        }
    }

    /// A node's process dies; with `power`, its unflushed writes may be lost.
    pub fn crash(&mut self, n: NodeId, power: bool) {
        for h in 0..self.hosts.len() {
            self.disconnect(h, n);
            if self.hosts[h].node == n {
                self.kill_session(h);
            }
        }
        let node = self.nodes.get_mut(&n).unwrap();
        node.up = false;
        node.process += 1;
        for d in &mut node.drives {
            d.restart();
            if power {
                d.power_loss(&mut self.rng);
            }
        }
    }

    pub fn deliver_to_replica(&mut self, h: usize, n: NodeId) -> bool {
        let Some(f) = self.hosts[h].links.get_mut(&n).unwrap().to_replica.pop_front() else { return false };
        if f.scope.branch != BRANCH {
            let reply = self.family.as_mut().expect("only a clone asks for another branch").handle(n, &f);
            self.answer(h, n, reply);
            return true;
        }
        let holder = self.hosts[h].node;
        let d = self.nodes.get_mut(&n).unwrap().drives.iter_mut().find(|d| d.id == f.scope.drive);
        let Some(d) = d else {
            let reply = Reply::Refused { refusal: Refusal::NoDrive, version: Version::ZERO };
            self.answer(h, n, ReplyFrame { token: f.token, branch: BRANCH, drive: f.scope.drive, reply });
            return true;
        };
        let before = d.epoch;
        let answers = d.handle(h as u64, holder, f);
        let _ = before;
        for a in answers {
            self.answer(h, n, a);
        }
        true
    }

    pub fn answer(&mut self, h: usize, n: NodeId, f: ReplyFrame) {
        let link = self.hosts[h].links.get_mut(&n).unwrap();
        if link.up {
            link.to_session.push_back(f);
        }
    }

    pub fn deliver_to_session(&mut self, h: usize, n: NodeId) -> bool {
        let Some(frame) = self.hosts[h].links.get_mut(&n).unwrap().to_session.pop_front() else {
            return false;
        };
        self.event(h, Event::Reply { node: n, frame });
        true
    }

    /// What drives do by themselves: finish a fence whose older leases are gone, flush, pull.
    pub fn drive_steps(&mut self, n: NodeId) {
        if !self.nodes[&n].up {
            return;
        }
        for i in 0..self.nodes[&n].drives.len() {
            self.finish_fence(n, i);
            let broadcast = self.nodes.get_mut(&n).unwrap().drives[i].flush_step();
            for f in broadcast {
                self.spread(n, f);
            }
            self.pull_step(n, i);
        }
    }

    fn spread(&mut self, n: NodeId, (source, f): (Option<u64>, ReplyFrame)) {
        for h in 0..self.hosts.len() {
            if source.is_none_or(|s| s == h as u64) {
                self.answer(h, n, f.clone());
            }
        }
    }

    fn finish_fence(&mut self, n: NodeId, i: usize) {
        let d = &self.nodes[&n].drives[i];
        let Some((source, token, epoch, number)) = d.fencing else { return };
        let newer = usize::try_from(source).unwrap();
        let waits = self.hosts.iter().any(|o| o.epoch < epoch && o.leases.0.contains(&n));
        if waits {
            return;
        }
        let d = &mut self.nodes.get_mut(&n).unwrap().drives[i];
        d.fencing = None;
        d.epoch = d.epoch.max(epoch);
        let report = d.report(number);
        let (drive, reply) = (d.id, Reply::Report(report));
        self.answer(newer, n, ReplyFrame { token, branch: BRANCH, drive, reply });
    }

    /// 5.3, the target: compare with the source, read, store; one small step at a time.
    fn pull_step(&mut self, n: NodeId, i: usize) {
        for a in self.nodes[&n].drives[i].attempts.values().cloned().collect::<Vec<_>>() {
            let src = &self.nodes[&a.source.0];
            if !a.listed || !src.up || src.process != a.source_process {
                continue;
            }
            let source = src.drives.iter().find(|d| d.id == a.source.1).unwrap().clone();
            let d = &mut self.nodes.get_mut(&n).unwrap().drives[i];
            if let Some(reply) = d.pull_step(a.chunk, &source) {
                let drive = d.id;
                let h = usize::try_from(a.from).unwrap();
                self.answer(h, n, ReplyFrame { token: a.token, branch: BRANCH, drive, reply });
            }
        }
    }

    /// A lease is granted under the stored epoch, and not while a newer one asks.
    pub fn grant(&mut self, h: usize, n: NodeId) {
        let host = &self.hosts[h];
        let node = &self.nodes[&n];
        let ok = node.up
            && host.closed.is_none()
            && host.links[&n].up
            && !host.leases.0.contains(&n)
            && node
                .drives
                .iter()
                .all(|d| d.epoch <= host.epoch && d.fencing.is_none_or(|f| f.2 <= host.epoch))
            && node.drives.iter().any(|d| d.epoch == host.epoch);
        if ok {
            self.hosts[h].leases.0.insert(n);
            self.event(h, Event::LeaseGained { node: n });
        }
    }

    /// The next question that is held, once it is asked.
    #[allow(dead_code, reason = "not all tests hold questions")]
    pub fn take_held(&mut self) -> (usize, u64, control::MetaRequest) {
        for _ in 0..4000 {
            self.calm_round();
            if let Some(at) = self.questions.iter().position(|q| (self.held)(&q.2)) {
                return self.questions.remove(at).unwrap();
            }
        }
        panic!("it is never asked: {}", self.hosts.last().unwrap().session.explain());
    }

    pub fn metad_step(&mut self, lose: bool) {
        let open: Vec<usize> =
            (0..self.questions.len()).filter(|i| !(self.held)(&self.questions[*i].2)).collect();
        if open.is_empty() {
            return;
        }
        let i = open[self.rng.below(open.len())];
        let (h, token, request) = self.questions.remove(i).unwrap();
        // lost: the command, or its answer
        let unheard = lose && self.rng.chance(50);
        let answer = if unheard {
            control::MetaAnswer::Unavailable
        } else {
            match &request {
                control::MetaRequest::Chunks { branch, epoch, chunks } if *branch != BRANCH => {
                    let family = self.family.as_ref().expect("only a clone asks for another branch");
                    family.chunks(*branch, chunks, *epoch)
                }
                _ => {
                    let tied = self.metad.views().tied;
                    let size = self.metad.attached.geometry.size;
                    let answer = self.metad.apply(self.hosts[h].epoch, &request);
                    if tied && !self.metad.views().tied {
                        self.cut_is_right();
                    }
                    if self.metad.attached.geometry.size < size {
                        self.shrink_is_right();
                    }
                    answer
                }
            }
        };
        let answer = if lose { control::MetaAnswer::Unavailable } else { answer };
        self.take_images();
        self.event(h, Event::Meta { token, answer });
    }

    /// Nothing is absent on any in-sync replica, in any view, and a loss of power changes nothing of that.
    fn cut_is_right(&self) {
        let views = self.metad.views();
        let all: Vec<View> = views.kept.iter().map(View::At).chain([View::Head]).collect();
        for (chunk, c) in (0..).zip(&self.metad.chunks) {
            for d in c.in_sync().filter_map(|m| self.find(m.place.drive)) {
                for (b, v) in (0..4096).flat_map(|b| all.iter().map(move |v| (b, *v))) {
                    assert!(
                        d.is_stable(chunk, b, v),
                        "block {b} is absent in {v:?} on {:?}, and the tie is cut",
                        d.id
                    );
                }
            }
        }
    }

    /// Nothing is beyond the end, on any in-sync replica, and a loss of power changes nothing of that.
    fn shrink_is_right(&self) {
        let geometry = self.metad.attached.geometry;
        for (chunk, c) in (0..).zip(&self.metad.chunks) {
            for d in c.in_sync().filter_map(|m| self.find(m.place.drive)) {
                for b in d.now.keys().filter(|k| k.0 == chunk).map(|k| k.1) {
                    let beyond = geometry.offset(ChunkIndex(chunk), b) >= geometry.size;
                    let is = (d.value(chunk, b), d.stable_at(chunk, b, View::Head));
                    assert!(!beyond || is == (0, 0), "chunk {chunk} block {b} of {:?} is {is:?}", d.id);
                }
            }
        }
    }

    /// A snapshot is asked for.
    pub fn snapshot(&mut self, group: bool) -> bool {
        let asked = self.metad.seal(group);
        if asked {
            self.asked = self.judge.moment();
        }
        asked
    }

    /// metad's watch tells a session that there is news.
    pub fn push_views(&mut self, h: usize) {
        let views = self.metad.views().clone();
        self.event(h, Event::Views { views });
    }

    /// What was sealed just now: the same on all in-sync replicas, flushed there, and a cut of what the guest did.
    pub fn take_images(&mut self) {
        for g in std::mem::take(&mut self.metad.sealed) {
            let view = View::At(g);
            let mut image = BTreeMap::new();
            for (chunk, c) in (0..).zip(&self.metad.chunks) {
                for d in c.in_sync().filter_map(|m| self.find(m.place.drive)) {
                    for b in d.now.keys().filter(|k| k.0 == chunk).map(|k| k.1) {
                        let v = *image.entry((chunk, b)).or_insert(d.value_at(chunk, b, view));
                        assert_eq!(
                            d.value_at(chunk, b, view),
                            v,
                            "{g}: chunk {chunk} block {b} of {:?}",
                            d.id
                        );
                        let lost = d.stable_at(chunk, b, view) != v && !d.doubt;
                        assert!(!lost, "{g}: chunk {chunk} block {b} of {:?} is not flushed", d.id);
                    }
                }
            }
            let blocks = u64::from(self.hosts.last().map_or(1, |h| h.session.geometry().chunk_blocks()));
            let flat = image.iter().map(|((c, b), v)| (u64::from(*c) * blocks + u64::from(*b), *v)).collect();
            self.judge.cut(self.asked, &flat);
            self.images.insert(g, image);
        }
    }

    fn find(&self, drive: DriveId) -> Option<&Drive> {
        self.nodes.values().flat_map(|n| &n.drives).find(|d| d.id == drive)
    }

    /// FROZEN: what is sealed never changes, on no replica that Raft calls in-sync.
    pub fn frozen(&self) -> Result<(), String> {
        for (g, image) in self.images.iter().filter(|(g, _)| self.metad.views().kept.contains(**g)) {
            for (chunk, c) in (0..).zip(&self.metad.chunks) {
                for d in c.in_sync().filter_map(|m| self.find(m.place.drive)) {
                    for b in d.now.keys().filter(|k| k.0 == chunk).map(|k| k.1) {
                        let is = d.value_at(chunk, b, View::At(*g));
                        let was = image.get(&(chunk, b)).copied().unwrap_or(0);
                        if is != was {
                            return Err(format!(
                                "{g}: chunk {chunk} block {b} of {:?}: {is}, was {was}",
                                d.id
                            ));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    pub fn wake(&mut self) {
        for h in 0..self.hosts.len() {
            if self.hosts[h].closed.is_none() && self.hosts[h].session.next_wake() <= self.now {
                self.event(h, Event::Wake);
            }
        }
    }

    /// One fair round without faults: everything connected, everything delivered.
    pub fn calm_round(&mut self) {
        self.now = self.now + Span::millis(5);
        for n in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.nodes.get_mut(&n).unwrap().up = true;
        }
        let newest = self.hosts.last().map_or(Epoch(0), |h| h.epoch);
        for h in 0..self.hosts.len() {
            for n in self.nodes.keys().copied().collect::<Vec<_>>() {
                if self.hosts[h].closed.is_some() {
                    continue;
                }
                if self.hosts[h].epoch < newest {
                    self.hosts[h].leases.0.remove(&n);
                    if self.nodes[&n].drives.iter().any(|d| d.epoch == newest) {
                        self.event(h, Event::Revoked { node: n, epoch: newest });
                        continue;
                    }
                }
                if !self.hosts[h].links[&n].up {
                    self.connect(h, n);
                }
                for _ in 0..8 {
                    self.deliver_to_replica(h, n);
                }
                self.drive_steps(n);
                for _ in 0..8 {
                    self.deliver_to_session(h, n);
                }
                self.grant(h, n);
            }
        }
        for _ in 0..4 {
            self.metad_step(false);
        }
        // heartbeats show who has not heard of a seal
        let head = self.metad.views().head;
        let behind = |x: &Host| x.closed.is_none() && x.session.generation() < head;
        if self.now.0 % 100_000_000 < 5_000_000 {
            for h in (0..self.hosts.len()).filter(|&h| behind(&self.hosts[h])).collect::<Vec<_>>() {
                self.push_views(h);
            }
        }
        self.wake();
    }

    pub fn calm(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.calm_round();
        }
    }

    /// Section 3: Raft's in-sync set is required by the session of the current epoch.
    pub fn invariant(&self) -> Result<(), String> {
        let Some(h) = self.hosts.iter().find(|h| h.epoch == self.metad.epoch && h.closed.is_none()) else {
            return Ok(());
        };
        for (i, c) in self.metad.chunks.iter().enumerate() {
            let required = h.session.required(u32::try_from(i).unwrap());
            if let Some(m) = c.in_sync().find(|m| !required.contains(&m.place)) {
                return Err(format!("chunk {i}: {:?} is in-sync and not required", m.place));
            }
        }
        Ok(())
    }

    /// SAME: in-sync replicas not in doubt are equal where nothing is in flight, while the session serves.
    pub fn same(&self) -> Result<(), String> {
        let Some(h) = self.hosts.iter().find(|h| h.epoch == self.metad.epoch && h.session.is_serving())
        else {
            return Ok(());
        };
        for (i, c) in self.metad.chunks.iter().enumerate() {
            let chunk = u32::try_from(i).unwrap();
            let busy: Vec<BlockRange> = h.session.in_flight(chunk).map(|f| f.0).collect();
            let drives: Vec<&Drive> = c
                .in_sync()
                .filter_map(|m| self.nodes.values().flat_map(|n| &n.drives).find(|d| d.id == m.place.drive))
                .filter(|d| !d.doubt)
                .collect();
            let blocks: BTreeSet<u32> =
                drives.iter().flat_map(|d| d.now.keys().filter(|k| k.0 == chunk).map(|k| k.1)).collect();
            for b in blocks {
                if busy.iter().any(|r| r.first <= b && b < r.end()) {
                    continue;
                }
                let values: BTreeSet<u64> = drives.iter().map(|d| d.value(chunk, b)).collect();
                if values.len() > 1 {
                    let v: Vec<_> = drives.iter().map(|d| (d.id, d.now.get(&(chunk, b)))).collect();
                    return Err(format!("chunk {chunk} block {b} differs: {v:?}"));
                }
            }
        }
        Ok(())
    }
}
