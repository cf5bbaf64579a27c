//! Nodes in one process: real bytes over a network in memory, real stores on simulated media, a small metad.
//! Time is virtual, everything happens in a fixed order.

pub mod load;
pub mod metad;

use metad::Metad;
use node::event::{DriveParams, Notice};
use node::{Effect, Event, ExportError, ExportInfo, LinkId, Node, NodeParams};
use proto::control::NodeSummary;
use proto::{ClusterId, DriveId, ExportId, NodeId, OpenId, Payload, ProcessNumber, Span, Ticket, Time};
use std::collections::{BTreeMap, BTreeSet};
use store::event::Failure;
use store::medium::Medium;
use store::{FormatParams, IoId, IoOp};
use volume::{GuestData, GuestError, GuestOp, GuestReply, GuestRequest, ReadPiece};

pub const CLUSTER: ClusterId = ClusterId(0xb10c);
const NET: Span = Span::micros(50);
const DISK: Span = Span::micros(80);
const META: Span = Span::millis(2);

/// What happens at a time, to a process of a node (older ones hear nothing).
enum Thing {
    Bytes(LinkId, Vec<u8>),
    Event(Event),
    Io(u32, IoId),
}

struct Wire {
    /// (node, its link) of the dialler, and of the other side.
    ends: [(NodeId, LinkId); 2],
}

pub struct Host {
    pub node: Option<Node>,
    pub process: ProcessNumber,
    pub boot: u8,
    pub media: Vec<Medium>,
    pub frozen: bool,
}

pub struct World {
    pub now: Time,
    queue: BTreeMap<(Time, u64), (NodeId, ProcessNumber, Thing)>,
    sequence: u64,
    pub hosts: BTreeMap<NodeId, Host>,
    wires: Vec<Wire>,
    next_link: u64,
    pub metad: Metad,
    /// A process that starts is handed its drives so much later.
    pub drives_late: Span,
    /// metad's answers take so long.
    pub meta_delay: Span,
    /// Pairs that do not hear each other.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    pub opened: BTreeMap<ExportId, ExportInfo>,
    pub refused: BTreeMap<ExportId, ExportError>,
    pub gone: BTreeSet<ExportId>,
    /// Their clients get errors.
    pub broken: BTreeSet<ExportId>,
    pub done: BTreeMap<(ExportId, Ticket), (Time, Result<GuestReply, GuestError>)>,
    pub notices: Vec<(Time, NodeId, Notice)>,
    pub stopped: BTreeSet<NodeId>,
    /// Links that a node has closed.
    /// Nodes whose drives may fail, and what failed.
    pub faulty: BTreeSet<NodeId>,
    pub failures: Vec<(NodeId, Failure)>,
    pub closed: BTreeSet<(NodeId, LinkId)>,
    next_ticket: u64,
    dice: u64,
    /// Turns of all nodes so far.
    pub turns: u64,
    /// Turns at the same time.
    still: u32,
}

/// Handles of one medium differ by this: each adding has a handle of its own.
pub const HANDLES: u32 = 8;

fn medium_of(handle: u32) -> usize {
    (handle % HANDLES) as usize
}

pub fn drive_of(n: u32) -> DriveId {
    DriveId(0x100 + u64::from(n))
}

impl World {
    /// Nodes 1..=n, one drive each.
    pub fn new(n: u32) -> World {
        let mut hosts = BTreeMap::new();
        for i in 1..=n {
            let mut medium = Medium::new(96 << 20, true);
            let params = FormatParams {
                size: 96 << 20,
                cluster: CLUSTER,
                node: NodeId(i),
                drive: drive_of(i),
                journal: Some(8 << 20),
            };
            medium.format(&params).unwrap();
            let host =
                Host { node: None, process: ProcessNumber(0), boot: 1, media: vec![medium], frozen: false };
            hosts.insert(NodeId(i), host);
        }
        let mut w = World {
            now: Time(1_000_000_000),
            queue: BTreeMap::new(),
            sequence: 0,
            hosts,
            wires: vec![],
            next_link: 0,
            metad: Metad::new(n),
            meta_delay: META,
            drives_late: Span(0),
            cut: BTreeSet::new(),
            opened: BTreeMap::new(),
            refused: BTreeMap::new(),
            gone: BTreeSet::new(),
            broken: BTreeSet::new(),
            done: BTreeMap::new(),
            notices: vec![],
            stopped: BTreeSet::new(),
            faulty: BTreeSet::new(),
            failures: vec![],
            closed: BTreeSet::new(),
            next_ticket: 0,
            dice: 7,
            still: 0,
            turns: 0,
        };
        (1..=n).for_each(|i| w.start(i));
        w
    }
    fn put(&mut self, after: Span, node: NodeId, thing: Thing) {
        let process = self.hosts[&node].process;
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), (node, process, thing));
    }
    pub fn start(&mut self, n: u32) {
        let id = NodeId(n);
        let host = self.hosts.get_mut(&id).unwrap();
        assert!(host.node.is_none());
        host.process.0 += 1;
        host.frozen = false;
        let process = host.process;
        let params = NodeParams {
            cluster: CLUSTER,
            node: id,
            process,
            boot: [host.boot; 16],
            seed: u64::from(n) << 32 | process.0,
        };
        host.node = Some(Node::new(params, self.now));
        let drives: Vec<(u64, bool)> = host.media.iter().map(|m| (m.size(), m.is_volatile())).collect();
        for (i, (size, volatile_cache)) in drives.into_iter().enumerate() {
            let params = DriveParams {
                handle: u32::try_from(i).unwrap(),
                size,
                volatile_cache,
                path: format!("n{n}/drive{i}"),
                opening: OpenId(process.0 << 16 | u64::from(n) << 8 | i as u64),
            };
            self.put(self.drives_late, id, Thing::Event(Event::AddDrive(params)));
        }
        self.stopped.remove(&id);
        for update in self.metad.first_updates(id) {
            self.put(META, id, Thing::Event(Event::Watch(update)));
        }
    }
    fn roll(&mut self, below: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % below.max(1)
    }
    /// Every I/O of the node's drive fails from now on.
    pub fn break_drive(&mut self, n: u32) {
        self.faulty.insert(NodeId(n));
        self.hosts.get_mut(&NodeId(n)).unwrap().media[0].break_down();
    }
    /// The drive is well and is added once more, to the same process.
    pub fn add_again(&mut self, n: u32, handle: u32) {
        let ix = medium_of(handle);
        let medium = &mut self.hosts.get_mut(&NodeId(n)).unwrap().media[ix];
        medium.mend();
        let (size, volatile_cache) = (medium.size(), medium.is_volatile());
        let opening = OpenId(0xadd << 16 | u64::from(handle));
        let path = format!("n{n}/drive{ix}");
        let params = DriveParams { handle, size, volatile_cache, path, opening };
        self.put(Span(0), NodeId(n), Thing::Event(Event::AddDrive(params)));
    }
    /// The process dies.
    pub fn kill(&mut self, n: u32) {
        let id = NodeId(n);
        let mut seed = self.roll(1 << 30);
        let host = self.hosts.get_mut(&id).unwrap();
        host.node = None;
        for m in &mut host.media {
            m.kill(&mut |below| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 33) % below
            });
        }
        self.drop_wires(|a, b| a == id || b == id);
    }
    /// The machine loses power.
    pub fn power_off(&mut self, n: u32) {
        let id = NodeId(n);
        let mut seed = self.roll(1 << 30);
        let host = self.hosts.get_mut(&id).unwrap();
        host.node = None;
        host.boot += 1;
        for m in &mut host.media {
            m.power_loss(&mut |below| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 33) % below
            });
        }
        self.drop_wires(|a, b| a == id || b == id);
    }
    /// All hear each other again. A connection that has lost bytes is broken: TCP never leaves a hole.
    pub fn mend(&mut self) {
        let cut = std::mem::take(&mut self.cut);
        self.drop_wires(|a, b| cut.contains(&(a, b)) || cut.contains(&(b, a)));
    }
    pub fn drop_wires(&mut self, which: impl Fn(NodeId, NodeId) -> bool) {
        let (gone, kept) =
            std::mem::take(&mut self.wires).into_iter().partition(|w: &Wire| which(w.ends[0].0, w.ends[1].0));
        self.wires = kept;
        let gone: Vec<Wire> = gone;
        for (node, link) in gone.into_iter().flat_map(|w| w.ends) {
            self.put(NET, node, Thing::Event(Event::LinkClosed { link }));
        }
    }

    // ------------------------------------------------------------------ running

    /// Until `done`, at most `limit`. True if it came about.
    pub fn until(&mut self, limit: Span, mut done: impl FnMut(&World) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            if done(self) {
                return true;
            }
            let queued = self.queue.first_key_value().map_or(Time::FAR, |(k, _)| k.0);
            let awake = self.hosts.values().filter(|h| !h.frozen).filter_map(|h| h.node.as_ref());
            let wake = awake.map(Node::next_wake).min().unwrap_or(Time::FAR);
            let next = queued.min(wake).max(self.now);
            if next > end {
                self.now = end;
                return done(self);
            }
            self.still = if next == self.now { self.still + 1 } else { 0 };
            let wakes: Vec<_> =
                self.hosts.iter().filter_map(|(n, h)| Some((n, h.node.as_ref()?.next_wake()))).collect();
            assert!(self.still < 10_000, "time stands still: {wakes:?} {}", self.tail());
            self.now = next;
            self.turn();
        }
    }
    pub fn run(&mut self, span: Span) {
        self.until(span, |_| false);
    }
    fn turn(&mut self) {
        let later = self.queue.split_off(&(self.now, u64::MAX));
        let due = std::mem::replace(&mut self.queue, later);
        let mut touched: BTreeSet<NodeId> = BTreeSet::new();
        for (_, (id, process, thing)) in due {
            let host = self.hosts.get_mut(&id).unwrap();
            if host.process != process || host.node.is_none() {
                continue;
            }
            if host.frozen {
                self.put(Span::millis(10), id, thing);
                continue;
            }
            let node = host.node.as_mut().unwrap();
            touched.insert(id);
            match thing {
                Thing::Bytes(link, bytes) => node.received(self.now, link, &bytes),
                Thing::Event(event) => node.handle(self.now, event),
                Thing::Io(handle, io) => {
                    let result = host.media[medium_of(handle)].complete(io);
                    node.handle(self.now, Event::Io { handle, io, result });
                }
            }
            self.drain(id);
        }
        for (id, host) in &mut self.hosts {
            if let Some(node) = host.node.as_mut().filter(|n| !host.frozen && n.next_wake() <= self.now) {
                node.handle(self.now, Event::Wake);
                touched.insert(*id);
            }
        }
        self.turns += touched.len() as u64;
        for id in touched {
            self.drain(id);
            if let Some(node) = self.hosts.get_mut(&id).unwrap().node.as_mut() {
                node.handle(self.now, Event::TurnEnd);
            }
            self.drain(id);
        }
        let pushes = self.metad.pushes(self.now);
        for (node, update) in pushes {
            self.put(META, node, Thing::Event(Event::Watch(update)));
        }
    }
    fn drain(&mut self, id: NodeId) {
        while let Some(effect) = self.hosts.get_mut(&id).unwrap().node.as_mut().and_then(Node::poll) {
            self.effect(id, effect);
        }
    }
    fn effect(&mut self, id: NodeId, effect: Effect) {
        match effect {
            Effect::Io { handle, io, op } => {
                let slow = if matches!(op, IoOp::Flush) { Span(DISK.0 * 5) } else { DISK };
                self.hosts.get_mut(&id).unwrap().media[medium_of(handle)].submit(io, op);
                self.put(slow, id, Thing::Io(handle, io));
            }
            Effect::Dial { link, to, address } => self.dial(id, link, to, &address),
            Effect::Send { link, bytes } => self.send(id, link, bytes),
            Effect::CloseLink { link } => {
                self.closed.insert((id, link));
                if let Some(at) = self.wires.iter().position(|w| w.ends.contains(&(id, link))) {
                    for (node, link) in self.wires.remove(at).ends.into_iter().filter(|e| *e != (id, link)) {
                        self.put(NET, node, Thing::Event(Event::LinkClosed { link }));
                    }
                }
            }
            Effect::Meta { token, request } => {
                let answer = self.metad.handle(self.now, id, request);
                self.put(self.meta_delay, id, Thing::Event(Event::Meta { token, answer }));
            }
            Effect::ExportOpened { export, info } => drop(self.opened.insert(export, info)),
            Effect::ExportRefused { export, error } => drop(self.refused.insert(export, error)),
            Effect::ExportClosed { export } => drop(self.gone.insert(export)),
            Effect::ExportBroken { export } => drop(self.broken.insert(export)),
            Effect::Complete { export, ticket, result } => {
                let older = self.done.insert((export, ticket), (self.now, result));
                assert!(older.is_none(), "{ticket} is completed once");
            }
            Effect::Notice(notice) => self.notices.push((self.now, id, notice)),
            Effect::Stopped => drop(self.stopped.insert(id)),
            Effect::DriveFailed { failure, .. } if self.faulty.contains(&id) => {
                self.failures.push((id, failure));
            }
            Effect::DriveFailed { failure, .. } => panic!("{id}: {failure}"),
            Effect::DriveOpened { .. } | Effect::ExportResized { .. } | Effect::ExportReconnect { .. } => {}
        }
    }
    fn dial(&mut self, from: NodeId, link: LinkId, to: NodeId, address: &str) {
        assert_eq!(address, format!("n{}:1", to.0));
        let up = self.hosts[&to].node.is_some() && !self.cut.contains(&(from, to));
        if !up {
            return self.put(NET, from, Thing::Event(Event::LinkClosed { link }));
        }
        self.next_link += 1;
        let other = LinkId(1 << 63 | self.next_link);
        self.wires.push(Wire { ends: [(from, link), (to, other)] });
        self.put(NET, to, Thing::Event(Event::Accepted { link: other }));
        self.put(NET, from, Thing::Event(Event::Dialled { link }));
    }
    fn send(&mut self, from: NodeId, link: LinkId, bytes: Vec<u8>) {
        let Some(wire) = self.wires.iter().find(|w| w.ends.contains(&(from, link))) else { return };
        let (to, other) = wire.ends[usize::from(wire.ends[0] == (from, link))];
        if self.cut.contains(&(from, to)) {
            return;
        }
        // In pieces, as a socket gives them.
        let first = bytes.len() / 3;
        let (a, b) = bytes.split_at(first);
        self.put(NET, to, Thing::Bytes(other, a.to_vec()));
        self.put(NET, to, Thing::Bytes(other, b.to_vec()));
    }

    // ------------------------------------------------------------------ guests

    pub fn event(&mut self, n: u32, event: Event) {
        self.put(Span(0), NodeId(n), Thing::Event(event));
    }
    /// Bytes from nowhere.
    pub fn bytes(&mut self, n: u32, link: LinkId, bytes: Vec<u8>) {
        self.put(Span(0), NodeId(n), Thing::Bytes(link, bytes));
    }
    pub fn open(&mut self, n: u32, export: u64, volume: &str, force: bool) {
        let (export, volume) = (ExportId(export), volume.to_owned());
        self.event(n, Event::OpenExport { export, volume, force });
    }
    /// Opens and waits for it.
    pub fn must_open(&mut self, n: u32, export: u64, volume: &str, force: bool) {
        self.open(n, export, volume, force);
        let x = ExportId(export);
        let ok = self.until(Span::secs(8), |w| w.opened.contains_key(&x) || w.refused.contains_key(&x));
        assert!(ok && self.opened.contains_key(&x), "{:?}; {}", self.refused.get(&x), self.tail());
    }
    pub fn ask(&mut self, n: u32, export: u64, op: GuestOp) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        let request = GuestRequest { ticket, op };
        self.event(n, Event::Guest { export: ExportId(export), request });
        ticket
    }
    pub fn write(&mut self, n: u32, export: u64, offset: u64, bytes: &[u8]) -> Ticket {
        // What lies beside the bytes in their blocks means nothing.
        let head = usize::try_from(offset % 4096).unwrap();
        let mut blocks = vec![0xee; (head + bytes.len()).next_multiple_of(4096)];
        blocks[head..head + bytes.len()].copy_from_slice(bytes);
        let data = GuestData { payload: Payload::copy_of(&blocks) };
        let len = u32::try_from(bytes.len()).unwrap();
        self.ask(n, export, GuestOp::Write { offset, len, data, fua: false })
    }
    pub fn result(&self, export: u64, ticket: Ticket) -> Option<&Result<GuestReply, GuestError>> {
        self.done.get(&(ExportId(export), ticket)).map(|(_, r)| r)
    }
    /// Waits for the answer.
    pub fn wait(&mut self, export: u64, ticket: Ticket, limit: Span) -> Result<GuestReply, GuestError> {
        let ok = self.until(limit, |w| w.result(export, ticket).is_some());
        assert!(ok, "{ticket} is not answered in {} ms; {}", limit.as_millis(), self.tail());
        self.result(export, ticket).unwrap().clone()
    }
    pub fn must_write(&mut self, n: u32, export: u64, offset: u64, bytes: &[u8]) {
        let t = self.write(n, export, offset, bytes);
        self.wait(export, t, Span::secs(8)).unwrap();
    }
    pub fn read(&mut self, n: u32, export: u64, offset: u64, len: u32) -> Vec<u8> {
        let t = self.ask(n, export, GuestOp::Read { offset, len });
        let GuestReply::Read(pieces) = self.wait(export, t, Span::secs(8)).unwrap() else { panic!("a read") };
        let mut out = vec![];
        for p in pieces {
            match p {
                ReadPiece::Zero { bytes } => out.resize(out.len() + bytes as usize, 0),
                ReadPiece::Data { payload, skip, len } => {
                    out.extend_from_slice(&payload.bytes()[skip as usize..(skip + len) as usize]);
                }
            }
        }
        assert_eq!(out.len(), len as usize);
        out
    }
    pub fn close(&mut self, n: u32, export: u64) {
        self.event(n, Event::CloseExport { export: ExportId(export) });
    }
    pub fn node(&self, n: u32) -> &Node {
        self.hosts[&NodeId(n)].node.as_ref().unwrap()
    }
    /// The last things that were worth a log line.
    pub fn tail(&self) -> String {
        let last: Vec<String> = self.notices.iter().rev().take(40).map(|n| format!("{n:?}")).collect();
        let mut state = String::new();
        for (id, host) in &self.hosts {
            let Some(node) = &host.node else { continue };
            let attempts: Vec<_> = node.attempts().collect();
            let sessions = node.session_statuses();
            state += &format!("{id} {:?}: {sessions:?} {attempts:?} {:?}\n", host.process, node.links());
        }
        format!("now {:?}, {:#?}\n{state}", self.now, last)
    }
    pub fn noticed(&self, what: impl Fn(&Notice) -> bool) -> usize {
        self.notices.iter().filter(|(_, _, n)| what(n)).count()
    }
}

pub fn summary(n: u32) -> NodeSummary {
    NodeSummary { node: NodeId(n), name: format!("n{n}"), address: format!("n{n}:1"), up: true }
}
