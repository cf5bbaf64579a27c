//! NBD exports of this node: the glue between `nbd::Server`, one per connection, and the node.
//!
//! Owns connections, open exports (one per volume name, shared by its connections) and tickets. Decides nothing about
//! volumes: it asks the node to open and close, and metad for what is merely looked at. A connection's memory is
//! bounded by the server machine's credit; a client that hangs, sends rubbish or goes away harms no other.

mod connection;
mod convert;
pub mod door;
pub mod latency;

use crate::control::{ExportStatus, Question, Since, ToControl};
use crate::net::Way;
use crate::ring::{Errno, Outgoing, Ring};
use crate::shard::Tag;
use connection::Connection;
use latency::{Clock, Kind, Latencies};
use nbd::{Ask, RefusalKind, Refused, RequestId};
use node::{Event, ExportError, ExportInfo};
use proto::control::MetaAnswer;
use proto::{ExportId, Generation, Geometry, Map, Span, Ticket, Time};
use slab::Slab;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use volume::{GuestError, GuestReply, GuestRequest};

/// Number of a connection of a guest; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u64);

enum Phase {
    Opening,
    Open(Box<ExportInfo>),
}

/// An open (or opening) volume and who shares it.
struct Export {
    id: ExportId,
    phase: Phase,
    clients: Vec<ConnId>,
}

/// Who asked for what: kept until the node completes it.
struct Asked {
    connection: ConnId,
    request: RequestId,
    clock: Clock,
}

/// What guests may take of this process.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// From the connect until the client has entered an export.
    pub handshake: Span,
    /// Descriptors that the process may have (RLIMIT_NOFILE).
    pub descriptors: u64,
    /// So many of them guests leave to peers, drives and metad.
    pub kept_back: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        let descriptors = crate::sys::descriptors();
        // Where there are few, guests get half.
        let kept_back = KEPT_BACK.min(descriptors / 2);
        Limits { connections: CONNECTIONS, handshake: HANDSHAKE, descriptors, kept_back }
    }
}

/// Connections of guests at once, unless told otherwise.
const CONNECTIONS: usize = 1024;
/// A client that has not entered an export by then goes.
const HANDSHAKE: Span = Span::secs(30);
const KEPT_BACK: u64 = 256;
/// What a client asked must be answered in this, if it is to connect anew.
const LEAVE_WITHIN: Span = Span::secs(5);
/// Snapshots in one list of contexts.
const SINCE_MAX: usize = 16;
/// Between two lines of the log about guests that were not let in.
const SAY_AGAIN: Span = Span::secs(10);

#[derive(Default)]
pub struct Exports {
    /// This node's name, for messages.
    pub node: String,
    pub limits: Limits,
    /// The turn's.
    now: Time,
    /// Connections in their handshake and until when, oldest first; some have entered or gone meanwhile.
    handshakes: VecDeque<(Time, ConnId)>,
    /// Clients that are to connect anew, and until when.
    leaving: Vec<(Time, ConnId)>,
    /// Not before then it is said again that guests are not let in.
    quiet_until: Time,
    /// Connections that were not let in, or went for their handshake's sake.
    pub turned_away: u64,
    pub latencies: Latencies,
    connections: Map<ConnId, Connection>,
    exports: Map<String, Export>,
    names: Map<ExportId, String>,
    /// Exports that are over for good, and their clients, who hear nothing but errors.
    broken: Map<ExportId, Vec<ConnId>>,
    tickets: Slab<Asked>,
    dirty: Vec<ConnId>,
    /// Scratch of `flush`.
    held: Vec<ConnId>,
    next_connection: u64,
    next_export: u64,
    draining: bool,
    /// For the node, in order.
    pub events: VecDeque<Event>,
    /// For the control thread.
    pub asks: Vec<ToControl>,
    pub requests: u64,
}

impl Exports {
    /// A turn begins, at this time. Handshakes that are due end.
    pub fn turn(&mut self, ring: &mut Ring<Tag>, now: Time) {
        self.now = now;
        while let Some(&(until, id)) = self.handshakes.front() {
            match self.connections.get(&id) {
                Some(c) if c.server.export().is_none() && until > now => break,
                // It waits for us: for a volume that is being opened, say.
                Some(c) if c.server.export().is_none() && c.name.is_some() => {
                    self.handshakes.push_back((now + self.limits.handshake, id));
                }
                Some(c) if c.server.export().is_none() => {
                    self.turn_away("it entered no export in time");
                    self.drop_connection(ring, id);
                }
                _ => {}
            }
            self.handshakes.pop_front();
        }
        self.stay();
    }

    /// When `turn` has something to do; `Time::FAR`: never.
    #[must_use]
    pub fn next_wake(&self) -> Time {
        let leaving = self.leaving.first().map_or(Time::FAR, |(until, _)| *until);
        self.handshakes.front().map_or(Time::FAR, |(until, _)| *until).min(leaving)
    }

    /// Clients whose requests could not be answered in time keep their connections.
    fn stay(&mut self) {
        let now = self.now;
        let late: Vec<ConnId> =
            self.leaving.extract_if(.., |(until, _)| *until <= now).map(|l| l.1).collect();
        for id in late {
            let Some(c) = self.connections.get_mut(&id) else { continue };
            c.leaves = false;
            c.server.pause(false);
            c.resume = true;
            let in_flight = c.server.in_flight();
            tracing::warn!(
                volume = c.name,
                in_flight,
                "a client was to connect anew to learn the volume's size, and keeps its connection: what it asked is not answered"
            );
            self.touch(id);
        }
    }

    /// `Effect::ExportReconnect`.
    pub fn reconnect(&mut self, export: ExportId) {
        let Some(name) = self.names.get(&export) else { return };
        for id in self.exports[name].clients.clone() {
            let Some(c) = self.connections.get_mut(&id) else { continue };
            // Who is in its handshake learns the size there.
            if c.server.export().is_some() && !std::mem::replace(&mut c.leaves, true) {
                c.server.pause(true);
                self.leaving.push((self.now + LEAVE_WITHIN, id));
                self.touch(id);
            }
        }
    }

    fn turn_away(&mut self, why: &str) {
        self.turned_away += 1;
        if self.now >= self.quiet_until {
            self.quiet_until = self.now + SAY_AGAIN;
            let (total, connections) = (self.turned_away, self.connections.len());
            tracing::warn!(total, connections, why, "an NBD client was turned away");
        }
    }

    /// Why this socket, just accepted, is not let in.
    fn full(&self, socket: &OwnedFd) -> Option<&'static str> {
        // The kernel gives the lowest number that is free: all below are taken.
        let taken = u64::try_from(socket.as_raw_fd()).expect("a descriptor");
        if self.connections.len() >= self.limits.connections {
            Some("as many clients are connected as may be (nbd_clients)")
        } else if taken + self.limits.kept_back >= self.limits.descriptors {
            Some("too few descriptors are left: raise the limit of open files (LimitNOFILE)")
        } else {
            None
        }
    }

    /// A client has connected.
    pub fn accept(&mut self, ring: &mut Ring<Tag>, socket: OwnedFd) {
        if let Some(why) = self.full(&socket) {
            return self.turn_away(why);
        }
        let id = ConnId(self.next_connection);
        self.next_connection += 1;
        let mut c = Connection::new(ring.add(socket));
        if self.draining {
            c.server.drain();
        }
        self.connections.insert(id, c);
        self.handshakes.push_back((self.now + self.limits.handshake, id));
        self.pump(ring, id);
    }

    pub fn received(&mut self, ring: &mut Ring<Tag>, id: ConnId, result: Result<usize, Errno>, buf: Vec<u8>) {
        let Some(c) = self.connections.get_mut(&id) else { return };
        match result {
            Ok(n) if n > 0 => {
                c.received(buf, n);
                self.pump(ring, id);
            }
            _ => self.drop_connection(ring, id),
        }
    }

    pub fn sent(&mut self, ring: &mut Ring<Tag>, id: ConnId, result: Result<(), Errno>, out: Outgoing) {
        let Some(c) = self.connections.get_mut(&id) else { return };
        c.sent(out);
        if result.is_err() {
            return self.drop_connection(ring, id);
        }
        self.pump(ring, id);
    }

    /// Lets a connection's machine go on as far as it can. True if it took input or asked for anything.
    fn pump(&mut self, ring: &mut Ring<Tag>, id: ConnId) -> bool {
        let mut any = false;
        loop {
            let Some(c) = self.connections.get_mut(&id) else { return any };
            let progress = c.offer();
            let mut asked = false;
            while let Some(ask) = self.connections.get_mut(&id).and_then(|c| c.server.poll()) {
                asked = true;
                self.ask(id, ask);
            }
            if !progress && !asked {
                break;
            }
            any = true;
        }
        if let Some(c) = self.connections.get_mut(&id) {
            c.receive(ring, Tag::Guest(id, Way::Receive));
        }
        self.touch(id);
        any
    }

    fn touch(&mut self, id: ConnId) {
        if let Some(c) = self.connections.get_mut(&id)
            && !std::mem::replace(&mut c.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    fn ask(&mut self, id: ConnId, ask: Ask) {
        match ask {
            Ask::List => self.asks.push(ToControl::Volumes { question: Question::List(id), name: None }),
            Ask::Export { name, open: true } => self.enter(id, name),
            Ask::Export { name, open: false } => self.look(id, name),
            Ask::Contexts { name, since } => self.contexts(id, name, since),
            Ask::Request { id: request, op } => {
                self.requests += 1;
                let c = self.connections.get(&id).expect("the asking connection");
                let export = c.export.expect("requests come after the export was opened");
                if matches!(op, nbd::Op::Changes { .. }) && !self.is_compared(c) {
                    let c = self.connections.get_mut(&id).expect("the asking connection");
                    let why = "the volume has another line of history than the snapshot";
                    c.server.fail(request, nbd::Errno::Invalid, why);
                    return self.touch(id);
                }
                let clock = Clock { kind: Kind::of(&op), since: self.now };
                let ticket = Ticket(self.tickets.insert(Asked { connection: id, request, clock }) as u64);
                let request = GuestRequest { ticket, op: convert::guest_op(op) };
                self.events.push_back(Event::Guest { export, request });
            }
        }
    }

    /// NBD_OPT_INFO: opens nothing.
    fn look(&mut self, id: ConnId, name: String) {
        match self.exports.get(&name) {
            Some(Export { phase: Phase::Open(info), .. }) => {
                let export = convert::export(info);
                self.answer(id, Ok(export));
            }
            _ => self
                .asks
                .push(ToControl::Volumes { question: Question::Look(id, name.clone()), name: Some(name) }),
        }
    }

    /// What changed since these snapshots: metad knows their generations.
    fn contexts(&mut self, id: ConnId, name: String, since: Vec<String>) {
        if since.len() > SINCE_MAX {
            let message = format!("at most {SINCE_MAX} snapshots can be compared with at once");
            return self.answer_contexts(id, Err(refuse(RefusalKind::Policy, message)));
        }
        self.asks.push(ToControl::Since { connection: id, export: name, snapshots: since });
    }

    fn answer_contexts(&mut self, id: ConnId, answer: Result<Vec<Option<Generation>>, Refused>) {
        if let Some(c) = self.connections.get_mut(&id) {
            c.server.answer_contexts(answer);
            c.resume = true;
            self.touch(id);
        }
    }

    /// metad's answer to `ToControl::Since`.
    pub fn compared(&mut self, id: ConnId, name: &str, answer: Option<Since>) {
        let answer = match answer {
            Some(Since { branch, found }) => {
                if let Some(c) = self.connections.get_mut(&id)
                    && found.iter().any(Option::is_some)
                    && !c.compared.contains(&branch)
                {
                    c.compared.push(branch);
                }
                Ok(found)
            }
            None => Err(convert::refused(&self.node, name, &ExportError::NoMetad)),
        };
        self.answer_contexts(id, answer);
    }

    /// Whether what this connection is told of changes is of the branch that it was promised of: while it entered, the
    /// volume may have been given another.
    fn is_compared(&self, c: &Connection) -> bool {
        let open = c.name.as_ref().and_then(|name| self.exports.get(name)).map(|e| &e.phase);
        matches!(open, Some(Phase::Open(info)) if c.compared.iter().all(|b| *b == info.branch))
    }

    /// NBD_OPT_GO.
    fn enter(&mut self, id: ConnId, name: String) {
        if self.draining {
            let refused = convert::refused(&self.node, &name, &ExportError::Closing);
            return self.answer(id, Err(refused));
        }
        let Some(c) = self.connections.get_mut(&id) else { return };
        c.name = Some(name.clone());
        if let Some(e) = self.exports.get_mut(&name) {
            e.clients.push(id);
            if let Phase::Open(info) = &e.phase {
                c.export = Some(e.id);
                let export = convert::export(info);
                self.answer(id, Ok(export));
            }
            return;
        }
        let export = ExportId(self.next_export);
        self.next_export += 1;
        self.exports.insert(name.clone(), Export { id: export, phase: Phase::Opening, clients: vec![id] });
        self.names.insert(export, name.clone());
        self.events.push_back(Event::OpenExport { export, volume: name, force: false });
    }

    fn answer(&mut self, id: ConnId, answer: Result<nbd::Export, Refused>) {
        if let Some(c) = self.connections.get_mut(&id) {
            if answer.is_err() {
                c.name = None;
            }
            c.server.answer_export(answer);
            c.resume = true;
            self.touch(id);
        }
    }

    /// `Effect::ExportOpened`.
    pub fn opened(&mut self, export: ExportId, info: ExportInfo) {
        let Some(name) = self.names.get(&export) else { return };
        let e = self.exports.get_mut(name).expect("an export has its name");
        let described = convert::export(&info);
        e.phase = Phase::Open(Box::new(info));
        for id in e.clients.clone() {
            if let Some(c) = self.connections.get_mut(&id) {
                c.export = Some(export);
            }
            self.answer(id, Ok(described.clone()));
        }
        self.close_unused(export);
    }

    /// `Effect::ExportRefused`.
    pub fn refused(&mut self, export: ExportId, error: &ExportError) {
        let Some(name) = self.names.remove(&export) else { return };
        let e = self.exports.remove(&name).expect("an export has its name");
        tracing::info!(volume = name, clients = e.clients.len(), %error, "export refused");
        let refused = convert::refused(&self.node, &name, error);
        for id in e.clients {
            self.answer(id, Err(refused.clone()));
        }
    }

    /// `Effect::ExportResized`.
    pub fn resized(&mut self, export: ExportId, geometry: Geometry) {
        let Some(name) = self.names.get(&export) else { return };
        let e = self.exports.get_mut(name).expect("an export has its name");
        if let Phase::Open(info) = &mut e.phase {
            info.geometry = geometry;
        }
        for id in &e.clients {
            if let Some(c) = self.connections.get_mut(id) {
                c.server.resized(geometry.size);
            }
        }
    }

    /// `Effect::ExportClosed`: the session is gone for good.
    pub fn closed(&mut self, ring: &mut Ring<Tag>, export: ExportId) {
        let Some(name) = self.names.remove(&export) else { return };
        let e = self.exports.remove(&name).expect("an export has its name");
        tracing::warn!(
            volume = name,
            clients = e.clients.len(),
            "export closed: another session took the volume"
        );
        for id in e.clients {
            self.drop_connection(ring, id);
        }
    }

    /// `Effect::ExportBroken`: its clients stay, and the node fails what they ask. The name is free for who comes anew.
    pub fn broken(&mut self, export: ExportId) {
        let Some(name) = self.names.remove(&export) else { return };
        let e = self.exports.remove(&name).expect("an export has its name");
        tracing::error!(
            volume = name,
            clients = e.clients.len(),
            "export broken: the disk is not what its clients believe; they get errors until they disconnect"
        );
        for id in &e.clients {
            if let Some(c) = self.connections.get_mut(id) {
                c.name = None;
            }
        }
        self.broken.insert(export, e.clients);
    }

    /// `Effect::Complete`.
    pub fn complete(&mut self, now: Time, ticket: Ticket, result: Result<GuestReply, GuestError>) {
        let key = usize::try_from(ticket.0).expect("a key of `tickets`");
        let asked = self.tickets.remove(key);
        self.latencies.add(asked.clock.kind, now.since(asked.clock.since));
        let Some(c) = self.connections.get_mut(&asked.connection) else { return };
        match result {
            // A pause for the guest, not an error, if its client connects again. (Elsewhere it is one: another guest
            // may have had the disk meanwhile.)
            Err(GuestError::Gone) if self.draining => c.server.forsake(asked.request),
            result => convert::complete(&mut c.server, asked.request, result),
        }
        c.resume = true;
        self.touch(asked.connection);
    }

    /// metad's answer to `ToControl::Volumes`.
    pub fn answered(&mut self, question: Question, answer: MetaAnswer) {
        match question {
            Question::List(id) => {
                if let Some(c) = self.connections.get_mut(&id) {
                    c.server.answer_list(convert::list(&self.node, answer));
                    c.resume = true;
                    self.touch(id);
                }
            }
            Question::Look(id, name) => {
                let answer = convert::looked(&self.node, &name, answer);
                self.answer(id, answer);
            }
        }
    }

    /// Machines that were answered go on: held-back input may become events.
    pub fn resume(&mut self, ring: &mut Ring<Tag>) {
        let mut i = 0;
        while i < self.dirty.len() {
            let id = self.dirty[i];
            i += 1;
            let Some(c) = self.connections.get_mut(&id) else { continue };
            c.collect();
            if std::mem::take(&mut c.resume) {
                self.pump(ring, id);
            }
        }
    }

    /// The turn's end: what the machines said goes out, one send each. True if one of them, rid of what it had to say,
    /// goes on with input that it held back.
    pub fn flush(&mut self, ring: &mut Ring<Tag>) -> bool {
        let mut held = std::mem::take(&mut self.held);
        while let Some(id) = self.dirty.pop() {
            let Some(c) = self.connections.get_mut(&id) else { continue };
            c.dirty = false;
            let there = c.flush(ring, Tag::Guest(id, Way::Send));
            if !there || c.is_over() || c.may_leave() {
                self.drop_connection(ring, id);
            } else if c.holds_input() {
                held.push(id);
            } else {
                c.receive(ring, Tag::Guest(id, Way::Receive));
            }
        }
        let mut any = false;
        for id in held.drain(..) {
            any |= self.pump(ring, id);
        }
        self.held = held;
        any
    }

    fn drop_connection(&mut self, ring: &mut Ring<Tag>, id: ConnId) {
        let Some(c) = self.connections.remove(&id) else { return };
        ring.close(c.fd());
        if let Some(export) = c.export
            && let Some(clients) = self.broken.get_mut(&export)
        {
            clients.retain(|other| *other != id);
            if clients.is_empty() {
                self.broken.remove(&export);
                self.events.push_back(Event::CloseExport { export });
            }
        }
        if let Some(name) = c.name
            && let Some(e) = self.exports.get_mut(&name)
        {
            e.clients.retain(|other| *other != id);
            let export = e.id;
            self.close_unused(export);
        }
    }

    /// The last client has gone. While it opens the answer is awaited first.
    fn close_unused(&mut self, export: ExportId) {
        let Some(name) = self.names.get(&export) else { return };
        let e = &self.exports[name];
        if e.clients.is_empty() && matches!(e.phase, Phase::Open(_)) {
            self.exports.remove(name);
            self.names.remove(&export);
            self.events.push_back(Event::CloseExport { export });
        }
    }

    /// Takes nothing new; what is in flight is completed by the node. Connections end then.
    pub fn drain(&mut self) {
        self.draining = true;
        for c in self.connections.values_mut() {
            c.server.drain();
        }
        for id in self.connections.keys().copied().collect::<Vec<_>>() {
            self.touch(id);
        }
    }

    /// Nothing is left to be said to any client.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.connections.values().all(Connection::is_quiet)
    }

    /// What is open or opening.
    #[must_use]
    pub fn status(&self) -> Vec<ExportStatus> {
        let one = |(name, e): (&String, &Export)| ExportStatus {
            volume: name.clone(),
            branch: match &e.phase {
                Phase::Open(info) => Some(info.branch),
                Phase::Opening => None,
            },
            clients: e.clients.len(),
            in_flight: self.tickets.iter().filter(|(_, t)| e.clients.contains(&t.connection)).count(),
        };
        self.exports.iter().map(one).collect()
    }

    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.tickets.len()
    }

    #[must_use]
    pub fn clients(&self) -> usize {
        self.connections.len()
    }
}

/// A refusal in the words of NBD.
fn refuse(kind: RefusalKind, message: impl Into<String>) -> Refused {
    Refused { kind, message: message.into() }
}
