//! metad, without its Raft: one log that everybody agrees on, with delays, and a leader that comes and goes.
//!
//! The state machine and the leader's mind are the real ones (`meta`). What is simulated is what lies around them: when
//! a command is committed, whether an answer arrives, commands that come twice or very late.

use crate::counts::Fault;
use crate::effects::index_of;
use crate::faults::Ending;
use crate::host::Input;
use crate::net::HostIndex;
use crate::rng::Rng;
use crate::swarm::Swarm;
use crate::world::{Due, World};
use meta::service::{Proposal, Service, ServiceEffect, ServiceEvent, Token};
use meta::{Answer, Command, MetaState, Op};
use node::Event;
use proto::control::{MetaAnswer, MetaRequest, WatchUpdate};
use proto::{
    BranchId, ChunkIndex, ClusterId, Configuration, Epoch, LogIndex, ProcessNumber, RequestId, Span, Time,
};
use std::collections::{BTreeMap, BTreeSet};

/// Something that is due at metad, or on the way to or from it.
#[derive(Debug)]
pub enum MetadDue {
    Request {
        host: HostIndex,
        life: u64,
        token: u64,
        request: MetaRequest,
    },
    Answer {
        host: HostIndex,
        life: u64,
        token: u64,
        answer: MetaAnswer,
    },
    /// The node's edge has waited long enough.
    Timeout {
        host: HostIndex,
        life: u64,
        token: u64,
    },
    Commit {
        term: u64,
        proposal: Option<Proposal>,
        command: Box<Command>,
        /// Which order it is: a copy has its number.
        order: u64,
        again: bool,
    },
    Wake {
        at: Time,
    },
    /// A node opens its stream of updates.
    Watch {
        host: HostIndex,
        life: u64,
    },
    Push {
        host: HostIndex,
        life: u64,
        stream: u64,
        update: WatchUpdate,
    },
}

#[derive(Clone, Copy, Debug)]
struct Asker {
    host: HostIndex,
    life: u64,
    token: u64,
}

/// How a stream of updates stands.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    life: u64,
    number: u64,
    open: bool,
    /// Updates arrive in order.
    last: Time,
}

pub struct Metad {
    pub state: MetaState,
    service: Service,
    leader: bool,
    term: u64,
    index: LogIndex,
    tokens: BTreeMap<Token, Asker>,
    next_token: u64,
    /// Requests that a node's edge still waits for.
    waiting: BTreeSet<(HostIndex, u64, u64)>,
    streams: Vec<Stream>,
    wake: Time,
    rng: Rng,
    delay: Span,
    slow: Span,
    no_requests: BTreeSet<HostIndex>,
    no_answers: BTreeSet<HostIndex>,
    lose_answers: u64,
    double: u64,
    late: u64,
    /// Orders that were applied.
    last_order: u64,
    orders: BTreeSet<u64>,
    /// Configurations as last seen by the properties.
    seen: BTreeMap<(BranchId, ChunkIndex), Configuration>,
    looks: u64,
    checked: LogIndex,
}

const CLUSTER: ClusterId = ClusterId(0x5107);

impl Metad {
    #[must_use]
    pub fn new(swarm: &Swarm, bugs: meta::Bugs, rng: Rng) -> Metad {
        let mut state = MetaState::new();
        state.set_bugs(bugs);
        Metad {
            state,
            service: Service::new(),
            leader: false,
            term: 0,
            index: LogIndex(0),
            tokens: BTreeMap::new(),
            next_token: 0,
            waiting: BTreeSet::new(),
            streams: vec![Stream::default(); swarm.nodes],
            wake: Time::FAR,
            rng,
            delay: swarm.meta_delay,
            slow: Span(0),
            no_requests: BTreeSet::new(),
            no_answers: BTreeSet::new(),
            lose_answers: 0,
            double: 0,
            late: 0,
            last_order: 0,
            orders: BTreeSet::new(),
            seen: BTreeMap::new(),
            looks: 0,
            checked: LogIndex(0),
        }
    }

    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        CLUSTER
    }
    #[must_use]
    pub fn branch(&self, volume: &str) -> Option<BranchId> {
        self.state.volume_named(volume).map(|(_, v)| v.branch)
    }
    #[must_use]
    pub fn configurations(&self, branch: BranchId) -> Vec<(ChunkIndex, Configuration)> {
        self.state.chunks(branch).map(|c| c.iter().collect()).unwrap_or_default()
    }
    #[must_use]
    pub fn configuration(&self, branch: BranchId, chunk: ChunkIndex) -> Option<Configuration> {
        self.state.configuration(branch, chunk)
    }
    /// The present epoch and `min_in_sync` of a branch that somebody has attached.
    #[must_use]
    pub fn session_of(&self, branch: BranchId) -> Option<(Epoch, u8)> {
        let b = self.state.branches().get(&branch)?;
        b.session.as_ref()?;
        Some((b.epoch, b.class.min_in_sync))
    }
    /// Names of all volumes, and their branches.
    #[must_use]
    pub fn volumes(&self) -> Vec<(String, BranchId)> {
        self.state.volumes().values().map(|v| (v.name.clone(), v.branch)).collect()
    }
    /// Branches of the volumes that rest in the trash.
    #[must_use]
    pub fn trash(&self) -> Vec<BranchId> {
        self.state.trash().values().map(|t| t.volume.branch).collect()
    }
    #[must_use]
    pub fn drives_of(&self, node: proto::NodeId) -> Vec<proto::DriveId> {
        self.state.drives().iter().filter(|d| d.1.node == node).map(|d| *d.0).collect()
    }
    /// All volumes have their records.
    #[must_use]
    pub fn ready(&self, volume: &str) -> bool {
        let phase = self.branch(volume).and_then(|b| self.state.branches().get(&b)).map(|b| b.phase);
        phase == Some(meta::Phase::Ready)
    }
    /// The state's own invariants, now and then: they are dear.
    pub fn check(&mut self) {
        self.looks += 1;
        if self.looks.is_multiple_of(8) && self.checked != self.state.applied() {
            self.checked = self.state.applied();
            self.state.check();
        }
    }
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leader
    }
    /// A keep-list that a drive has not said yes to.
    #[must_use]
    pub fn owed(&self) -> Option<String> {
        self.state.owed().next().map(|o| format!("{o:?}"))
    }

    fn delay(&mut self) -> Span {
        let slow = if self.slow.0 == 0 { 0 } else { self.rng.within(self.slow.0 / 4, self.slow.0) };
        Span(self.rng.around(self.delay.0) + 1 + slow)
    }

    /// Applies a command outside of time: for the making of the cluster.
    pub fn decree(&mut self, op: Op) -> Answer {
        self.index = LogIndex(self.index.0 + 1);
        let command = Command { at_ms: 0, request: None, op };
        self.state.apply(self.index, &command).answer
    }
}

impl World {
    pub fn metad_due(&mut self, due: MetadDue) {
        match due {
            MetadDue::Request { host, life, token, request } => self.meta_arrives(host, life, token, request),
            MetadDue::Answer { host, life, token, answer } => self.meta_answered(host, life, token, answer),
            MetadDue::Timeout { host, life, token } => {
                self.meta_answered(host, life, token, MetaAnswer::Unavailable);
            }
            MetadDue::Commit { term, proposal, command, order, again } => {
                self.commit((term, order), proposal, &command, again);
            }
            MetadDue::Wake { at } => {
                if self.metad.wake == at {
                    self.metad.wake = Time::FAR;
                    self.serve(ServiceEvent::Wake);
                }
            }
            MetadDue::Watch { host, life } => self.watch_opens(host, life),
            MetadDue::Push { host, life, stream, update } => {
                let s = self.metad.streams[host];
                if s.open && s.number == stream && s.life == life {
                    self.input(host, life, Input::Event(Event::Watch(update)));
                }
            }
        }
    }

    /// A node asks.
    pub fn meta_request(&mut self, host: HostIndex, life: u64, token: u64, request: MetaRequest) {
        let m = &mut self.metad;
        m.waiting.insert((host, life, token));
        let patience = request.patience();
        let after = m.delay();
        let passes = !m.no_requests.contains(&host);
        let heartbeat = matches!(request, MetaRequest::Heartbeat { .. });
        if passes && !heartbeat && m.double > 0 {
            m.double -= 1;
            let later = Span(m.rng.pick(&[1_000_000, 100_000_000, 3_000_000_000, 12_000_000_000]));
            let again = MetadDue::Request { host, life, token, request: request.clone() };
            self.counts.fault(Fault::CommandDoubled);
            self.put(later, Due::Metad(again));
        }
        if passes {
            self.put(after, Due::Metad(MetadDue::Request { host, life, token, request }));
        }
        self.put(patience, Due::Metad(MetadDue::Timeout { host, life, token }));
    }

    fn meta_arrives(&mut self, host: HostIndex, life: u64, token: u64, request: MetaRequest) {
        if !self.metad.leader {
            return;
        }
        self.metad.next_token += 1;
        let t = Token(self.metad.next_token);
        self.metad.tokens.insert(t, Asker { host, life, token });
        let from = self.hosts[host].id;
        if matches!(request, MetaRequest::Heartbeat { .. }) {
            self.serve(ServiceEvent::Clock { node: from, wall_ms: self.now.0 / 1_000_000 });
        }
        self.serve(ServiceEvent::Node { from, token: t, request });
    }

    fn meta_answered(&mut self, host: HostIndex, life: u64, token: u64, answer: MetaAnswer) {
        if self.metad.waiting.remove(&(host, life, token)) {
            self.input(host, life, Input::Event(Event::Meta { token, answer }));
        }
    }

    /// The leader's mind gets an event; what it wants is done.
    fn serve(&mut self, event: ServiceEvent) {
        let now = self.now;
        let quiet =
            matches!(&event, ServiceEvent::Wake | ServiceEvent::StateChanged | ServiceEvent::Clock { .. })
                || matches!(&event, ServiceEvent::Node { request: MetaRequest::Heartbeat { .. }, .. });
        if !quiet {
            self.trace.step(now, 7, self.metad.index.0, || format!("metad <- {event:?}"));
        }
        let m = &mut self.metad;
        m.service.handle(now, now.0 / 1_000_000, &m.state, event);
        while let Some(effect) = self.metad.service.poll() {
            self.metad_effect(effect);
        }
        let at = self.metad.service.next_wake().max(now);
        if at < self.metad.wake {
            self.metad.wake = at;
            self.queue.put(at, Due::Metad(MetadDue::Wake { at }));
        }
    }

    fn metad_effect(&mut self, effect: ServiceEffect) {
        match effect {
            ServiceEffect::Propose { proposal, command } => self.propose(proposal, command),
            ServiceEffect::AnswerNode { token, answer } => {
                let m = &mut self.metad;
                let Some(a) = m.tokens.remove(&token) else { return };
                let heard = matches!(answer, MetaAnswer::Ok);
                if m.no_answers.contains(&a.host) {
                    return;
                }
                if m.lose_answers > 0 && !heard {
                    m.lose_answers -= 1;
                    self.counts.fault(Fault::AnswerLost);
                    return;
                }
                let after = m.delay();
                let due = MetadDue::Answer { host: a.host, life: a.life, token: a.token, answer };
                self.put(after, Due::Metad(due));
            }
            ServiceEffect::AnswerAdmin { answer, .. } => self.admin_answered(answer),
            ServiceEffect::Push { node, update } => self.push(index_of(node), update),
        }
    }

    fn propose(&mut self, proposal: Proposal, command: Command) {
        let m = &mut self.metad;
        m.last_order += 1;
        let order = m.last_order;
        let mut after = m.delay();
        let term = m.term;
        let command = Box::new(command);
        if m.late > 0 && m.rng.permille(500) {
            m.late -= 1;
            after = Span(after.0 + m.rng.pick(&[50_000_000, 800_000_000, 4_000_000_000, 9_000_000_000]));
            self.counts.fault(Fault::CommandLate);
        }
        let m = &mut self.metad;
        if m.double > 0 && m.rng.permille(500) {
            m.double -= 1;
            let later = Span(after.0 + m.rng.pick(&[1, 20_000_000, 1_000_000_000, 8_000_000_000]));
            let again =
                MetadDue::Commit { term, proposal: None, command: command.clone(), order, again: true };
            self.counts.fault(Fault::CommandDoubled);
            self.put(later, Due::Metad(again));
        }
        self.put(
            after,
            Due::Metad(MetadDue::Commit { term, proposal: Some(proposal), command, order, again: false }),
        );
    }

    fn commit(
        &mut self,
        (term, order): (u64, u64),
        proposal: Option<Proposal>,
        command: &Command,
        again: bool,
    ) {
        let now = self.now;
        if !self.metad.leader {
            // Nobody can commit now: the next leader does, or it is lost with the old one.
            if self.metad.rng.permille(600) {
                let after = Span::millis(300);
                let command = Box::new(command.clone());
                self.put(after, Due::Metad(MetadDue::Commit { term, proposal, command, order, again }));
            }
            return;
        }
        let m = &mut self.metad;
        m.index = LogIndex(m.index.0 + 1);
        let index = m.index;
        let over = session_is_over(&m.state, &command.op);
        let tied = |state: &MetaState| match &command.op {
            Op::Cut { branch, .. } => state.branches().get(branch).filter(|b| b.tied).map(|_| *branch),
            _ => None,
        };
        let before = tied(&m.state);
        let outcome = m.state.apply(index, command);
        self.trace.step(now, 8, index.0, || {
            let words = if again { " again" } else { "" };
            format!("metad {index}: applies{words} {:?} => {:?}", command.op, outcome.answer)
        });
        // What was lost with its leader comes a first time.
        let twice = !self.metad.orders.insert(order) && again;
        // An appointment that comes again is only called off again: it decides nothing.
        if (twice || over) && !matches!(command.op, Op::Appoint { .. }) {
            let changed: Vec<String> = outcome
                .changes
                .iter()
                .filter(|c| matters(c.table))
                .map(|c| format!("{:?} {:02x?}", c.table, c.key))
                .collect();
            self.check_aba(&format!("{:?}", command.op), twice, &changed);
        }
        if let Some(branch) = before.filter(|_| tied(&self.metad.state).is_none()) {
            self.check_tie(branch);
        }
        self.snapshots_changed();
        let of_volumes = |t| matches!(t, meta::Table::Volumes | meta::Table::Trash);
        if outcome.changes.iter().any(|c| of_volumes(c.table)) {
            self.volumes_changed();
        }
        self.configurations_changed();
        if term == self.metad.term
            && let Some(proposal) = proposal
        {
            self.serve(ServiceEvent::Applied { proposal, index, answer: outcome.answer });
        }
        self.serve(ServiceEvent::StateChanged);
    }

    /// Tells the atlas what Raft has decided.
    fn configurations_changed(&mut self) {
        for v in 0..self.volumes.len() {
            let Some(branch) = self.branch_of(v) else { continue };
            for (chunk, c) in self.metad.configurations(branch) {
                let old = self.metad.seen.get(&(branch, chunk));
                if old.is_some_and(|o| o.number == c.number) {
                    continue;
                }
                let was = |d| old.is_some_and(|o| o.member(d).is_some_and(proto::Member::in_sync));
                let promoted: Vec<_> =
                    c.in_sync().map(|m| m.place.drive).filter(|d| old.is_some() && !was(*d)).collect();
                for d in promoted {
                    self.atlas.whole(branch, chunk, d);
                }
                self.judge_soundness(v, branch, chunk, &c);
                self.metad.seen.insert((branch, chunk), c);
            }
        }
    }

    // Streams of updates.

    /// A process has started: its edge opens a stream of updates.
    pub fn metad_connected(&mut self, host: HostIndex, life: u64) {
        self.metad.streams[host] =
            Stream { life, number: self.metad.streams[host].number, ..Stream::default() };
        let after = self.metad.delay();
        self.put(after, Due::Metad(MetadDue::Watch { host, life }));
    }

    fn watch_opens(&mut self, host: HostIndex, life: u64) {
        let s = self.metad.streams[host];
        if s.life != life || s.open || !self.hosts[host].runs() {
            return;
        }
        let m = &mut self.metad;
        if !m.leader || m.no_requests.contains(&host) || m.no_answers.contains(&host) {
            let after = Span::millis(m.rng.within(100, 500));
            return self.put(after, Due::Metad(MetadDue::Watch { host, life }));
        }
        let s = &mut m.streams[host];
        s.open = true;
        s.number += 1;
        let (node, process) = (self.hosts[host].id, ProcessNumber(self.hosts[host].processes));
        self.serve(ServiceEvent::WatchOpened { node, process });
    }

    fn stream_breaks(&mut self, host: HostIndex) {
        let s = &mut self.metad.streams[host];
        if !s.open {
            return;
        }
        s.open = false;
        let life = s.life;
        let node = self.hosts[host].id;
        if self.metad.leader {
            self.serve(ServiceEvent::WatchClosed { node });
        }
        let after = Span::millis(self.metad.rng.within(50, 500));
        self.put(after, Due::Metad(MetadDue::Watch { host, life }));
    }

    fn push(&mut self, host: HostIndex, update: WatchUpdate) {
        let after = self.metad.delay();
        let now = self.now;
        let s = &mut self.metad.streams[host];
        if !s.open {
            return;
        }
        let at = (now + after).max(s.last);
        s.last = at;
        let (life, stream) = (s.life, s.number);
        if let WatchUpdate::Keep { .. } = &update
            && self.keep_list_strays(host, life, at, &update)
        {
            return;
        }
        self.queue.put(at, Due::Metad(MetadDue::Push { host, life, stream, update }));
    }

    /// Keep-lists are ordered by their own index alone: here they come late, twice or never, past any stream's end.
    fn keep_list_strays(&mut self, host: HostIndex, life: u64, at: Time, update: &WatchUpdate) -> bool {
        if self.phase != crate::world::Phase::Faults {
            return false;
        }
        let how = self.metad.rng.below(1000);
        if how < 100 {
            self.counts.fault(Fault::KeepListLost);
            return true;
        }
        if how >= 350 {
            return false;
        }
        let fault = if how < 250 { Fault::KeepListLate } else { Fault::KeepListDoubled };
        self.counts.fault(fault);
        let later = self.metad.rng.pick(&[20_000_000, 400_000_000, 3_000_000_000, 12_000_000_000]);
        let input = Input::Event(Event::Watch(update.clone()));
        self.queue.put(at + Span(later), Due::Input { host, life, input });
        fault == Fault::KeepListLate
    }

    // Faults.

    pub fn fault_of_metad(&mut self, kind: Fault, host: HostIndex) -> bool {
        let m = &mut self.metad;
        let long = Span::millis(m.rng.pick(&[100, 600, 2000, 5000]));
        match kind {
            Fault::ControlOneWay | Fault::ControlTwoWay => {
                m.no_answers.insert(host);
                if kind == Fault::ControlTwoWay {
                    m.no_requests.insert(host);
                }
                self.put(long, Due::End(Ending::Control { host }));
                self.stream_breaks(host);
            }
            Fault::Leaderless => {
                if !m.leader {
                    return false;
                }
                self.depose();
                self.put(long, Due::End(Ending::Leader));
            }
            Fault::MetadSlow => {
                m.slow = Span::millis(m.rng.pick(&[20, 200, 900]));
                self.put(long, Due::End(Ending::MetadFast));
            }
            // These are counted when they happen.
            Fault::AnswerLost => {
                m.lose_answers += 2;
                return true;
            }
            Fault::CommandDoubled => {
                m.double += 4;
                return true;
            }
            Fault::CommandLate => {
                m.late += 2;
                return true;
            }
            _ => return false,
        }
        self.counts.fault(kind);
        self.trace.step(self.now, 3, kind as u64, || format!("FAULT {} (n{})", kind.name(), host + 1));
        true
    }

    fn depose(&mut self) {
        self.serve(ServiceEvent::LostLeader);
        let m = &mut self.metad;
        m.leader = false;
        m.term += 1;
        m.tokens.clear();
        for host in 0..self.hosts.len() {
            self.stream_breaks(host);
        }
    }

    pub fn elect(&mut self) {
        if self.metad.leader {
            return;
        }
        self.metad.leader = true;
        self.metad.service = Service::new();
        self.metad.wake = Time::FAR;
        self.serve(ServiceEvent::BecameLeader);
    }

    pub fn metad_fast(&mut self) {
        self.metad.slow = Span(0);
    }

    /// Nothing passes between a node and metad for so long.
    pub fn cut_control(&mut self, host: HostIndex, long: Span) {
        self.metad.no_answers.insert(host);
        self.metad.no_requests.insert(host);
        self.put(long, Due::End(Ending::Control { host }));
        self.stream_breaks(host);
    }

    pub fn control_heals(&mut self, host: HostIndex) {
        self.metad.no_requests.remove(&host);
        self.metad.no_answers.remove(&host);
    }

    /// An operator asks for something.
    pub fn admin(&mut self, request: meta::AdminRequest) {
        self.metad.next_token += 1;
        let token = Token(self.metad.next_token);
        let id = Some(RequestId(u128::from(self.metad.rng.next()) << 64 | u128::from(self.metad.rng.next())));
        self.serve(ServiceEvent::Admin { token, id, request });
    }

    fn admin_answered(&mut self, answer: Option<Result<meta::AdminAnswer, meta::AdminRefusal>>) {
        self.trace.note(self.now, || format!("operator hears {answer:?}"));
    }
}

/// It names a session's epoch, and a later session has begun.
fn session_is_over(state: &MetaState, op: &Op) -> bool {
    match op {
        Op::Detach { branch, epoch, .. }
        | Op::Release { branch, epoch }
        | Op::Propose { branch, epoch, .. }
        | Op::Created { branch, epoch, .. }
        | Op::Sealed { branch, epoch, .. } => state.branches().get(branch).is_some_and(|b| b.epoch > *epoch),
        _ => false,
    }
}

/// Tables whose change by a repeated command would be a second effect.
fn matters(table: meta::Table) -> bool {
    matches!(
        table,
        meta::Table::Drives
            | meta::Table::Volumes
            | meta::Table::Branches
            | meta::Table::Chunks
            | meta::Table::Snapshots
            | meta::Table::Trash
    )
}
