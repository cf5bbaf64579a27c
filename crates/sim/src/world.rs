//! The world: one clock, one queue, and everything that happens in it.
//!
//! Owns hosts, network, metad, guests, judge and the faults under way. One seed decides everything; the same seed gives
//! the same steps. First a phase with faults, then one without, in which everything must come to rest by itself.

use crate::atlas::Atlas;
use crate::bugs::Bugs;
use crate::counts::{Counts, Property};
use crate::disk::{Disk, Pace};
use crate::faults::Ending;
use crate::guest::Volume;
use crate::host::{Clock, End, Host, Input};
use crate::metad::{Metad, MetadDue};
use crate::net::{ConnId, HostIndex, Net, Transit};
use crate::operator::Snapshots;
use crate::properties::Watchers;
use crate::queue::Queue;
use crate::readers::Readers;
use crate::rng::Rng;
use crate::swarm::Swarm;
use crate::trace::Trace;
use node::{Event, LinkId};
use oracle::{Entry, Judge, VolumeNumber};
use proto::{NodeId, Span, Time};
use std::collections::{BTreeMap, VecDeque};
use store::IoId;
use store::medium::Medium;

/// Something that is due.
#[derive(Debug)]
pub enum Due {
    Input {
        host: HostIndex,
        life: u64,
        input: Input,
    },
    Io {
        host: HostIndex,
        life: u64,
        disk: usize,
        io: IoId,
    },
    Net(Transit),
    /// A dial reaches the other machine.
    Dial {
        host: HostIndex,
        life: u64,
        link: LinkId,
        to: HostIndex,
    },
    Turn {
        host: HostIndex,
        life: u64,
    },
    Wake {
        host: HostIndex,
        life: u64,
        at: Time,
    },
    Start {
        host: HostIndex,
    },
    /// A guest's next requests.
    Guest {
        volume: usize,
    },
    /// A guest looks for a node to attach on.
    Attach {
        volume: usize,
        host: Option<HostIndex>,
        force: bool,
    },
    /// An old attachment gives up.
    Retire {
        volume: usize,
        client: u32,
    },
    Metad(MetadDue),
    /// The operator's next command.
    Operator,
    /// He sees to a volume that he wants detached first.
    Errand {
        volume: usize,
    },
    Fault,
    /// A session has just begun to serve: something strikes again.
    Aftershock {
        host: HostIndex,
    },
    /// A connection breaks; each end hears of it after its own time.
    Break {
        conn: ConnId,
        hears: [Span; 2],
    },
    /// The machine whose network went first loses power.
    PowerGoes {
        host: HostIndex,
    },
    End(Ending),
    Look,
}

/// Where a run stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The cluster is made, volumes are created.
    Making,
    Faults,
    /// Faults have stopped: everything must complete and become in-sync.
    Rest {
        until: Time,
    },
    /// Everything is read once more.
    Reading {
        until: Time,
    },
    Done,
}

/// Why a seed failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub property: &'static str,
    pub detail: String,
}

pub struct World {
    pub now: Time,
    pub swarm: Swarm,
    pub bugs: Bugs,
    pub rng: Rng,
    pub queue: Queue<Due>,
    pub hosts: Vec<Host>,
    pub net: Net,
    pub metad: Metad,
    pub volumes: Vec<Volume>,
    pub judge: Judge,
    pub atlas: Atlas,
    pub watchers: Watchers,
    pub snapshots: Snapshots,
    pub readers: Readers,
    pub counts: Counts,
    pub trace: Trace,
    pub phase: Phase,
    pub faults_left: u64,
    pub operations: u64,
    pub failure: Option<Failure>,
    /// Things that happened at this very moment.
    spins: u64,
    /// A block of which every change is to be told (volume, chunk, block), and what the hosts held last.
    pub watch: Option<(usize, u32, u32)>,
    watched: BTreeMap<HostIndex, String>,
}

/// More than that at one moment is somebody who wakes for nothing.
const SPINS: u64 = 100_000;

impl World {
    #[must_use]
    pub fn new(swarm: Swarm, bugs: Bugs, print: bool) -> World {
        let mut rng = Rng::new(swarm.seed ^ 0x5eed);
        let hosts = (0..swarm.nodes).map(|i| make_host(i, &swarm, &mut rng)).collect();
        let volumes = swarm.volumes.iter().map(|(layout, taste)| {
            let name = format!("vol{}", layout.family);
            Volume::new(name, VolumeNumber(layout.family), *layout, taste.clone(), swarm.tight)
        });
        let mut w = World {
            now: Time(1_000_000_000),
            volumes: volumes.collect(),
            net: Net::new(swarm.net_base, swarm.net_jitter),
            metad: Metad::new(&swarm, bugs.meta, rng.fork()),
            queue: Queue::default(),
            hosts,
            judge: Judge::default(),
            atlas: Atlas::default(),
            watchers: Watchers::default(),
            snapshots: Snapshots::default(),
            readers: Readers::default(),
            counts: Counts::default(),
            trace: Trace::new(print),
            phase: Phase::Making,
            faults_left: swarm.fault_count,
            operations: 0,
            failure: None,
            spins: 0,
            watch: None,
            watched: BTreeMap::new(),
            swarm,
            bugs,
            rng,
        };
        w.make();
        w
    }

    /// Runs the seed to its end.
    pub fn run(&mut self) {
        while self.phase != Phase::Done && self.failure.is_none() {
            let Some((at, due)) = self.queue.take() else {
                return self.fail("LIVE", "nothing is left to happen".into());
            };
            debug_assert!(at >= self.now, "time goes forward");
            self.spins = if at == self.now { self.spins + 1 } else { 0 };
            if self.spins > SPINS {
                return self.fail("LIVE", format!("time stands still: {due:?}"));
            }
            self.now = at;
            self.happen(due);
        }
        self.counts.checked(Property::Lin, self.judge.counts.linearizable);
        self.counts.checked(Property::Clones, self.judge.counts.beginnings);
        self.counts.checked(Property::Flush, self.judge.counts.flush + self.judge.counts.flushes);
    }

    pub fn fail(&mut self, property: &'static str, detail: String) {
        if self.failure.is_none() {
            self.trace.note(self.now, || format!("FAILED {property}: {detail}"));
            self.failure = Some(Failure { property, detail });
        }
    }

    /// Tells the judge.
    pub fn tell(&mut self, entry: Entry) {
        if let Err(v) = self.judge.entry(entry) {
            let property = match v.rule {
                oracle::Rule::Linearizable | oracle::Rule::Torn => "LIN",
                oracle::Rule::Flush => "FLUSH",
                oracle::Rule::Cut => "CUT",
                oracle::Rule::Error => "EIO",
                oracle::Rule::Log => "LOG",
            };
            self.fail(property, v.to_string());
        }
    }

    pub fn put(&mut self, after: Span, due: Due) {
        self.queue.put(self.now + after, due);
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Input { host, life, input } => self.input(host, life, input),
            Due::Io { host, life, disk, io } => self.io_done(host, life, disk, io),
            Due::Net(transit) => self.transit(transit),
            Due::Dial { host, life, link, to } => self.dial_arrives(host, life, link, to),
            Due::Turn { host, life } => self.turn(host, life),
            Due::Wake { host, life, at } => self.wake(host, life, at),
            Due::Start { host } => self.start(host),
            Due::Guest { volume } => self.guest_turn(volume),
            Due::Attach { volume, host, force } => self.guest_attach(volume, host, force),
            Due::Retire { volume, client } => self.guest_retires(volume, client),
            Due::Metad(due) => self.metad_due(due),
            Due::Operator => self.operator_turn(),
            Due::Errand { volume } => self.errand_turn(volume),
            Due::Fault => self.fault_due(),
            Due::Aftershock { host } => self.aftershock(host),
            Due::Break { conn, hears } => self.connection_breaks(conn, hears),
            Due::PowerGoes { host } => self.power_goes(host),
            Due::End(ending) => self.fault_ends(ending),
            Due::Look => self.look(),
        }
    }

    /// Something reaches a process: now, or when it continues.
    pub fn input(&mut self, host: HostIndex, life: u64, input: Input) {
        let h = &mut self.hosts[host];
        if h.life != life || h.node.is_none() {
            return;
        }
        if h.stopped {
            h.inbox.push_back(input);
            return;
        }
        self.feed(host, input);
    }

    fn feed(&mut self, host: HostIndex, input: Input) {
        let now = self.now;
        let h = &mut self.hosts[host];
        let local = h.clock.local(now);
        let Some(node) = h.node.as_mut() else { return };
        let words = || match &input {
            Input::Event(e) => format!("n{} <- {}", host + 1, crate::words::event(e)),
            Input::Bytes(link, b) => format!("n{} <- {} bytes on {link:?}", host + 1, b.len()),
        };
        self.trace.step(now, 100 + host as u64, code(&input), words);
        let turn = matches!(input, Input::Event(Event::TurnEnd));
        match input {
            Input::Event(e) => node.handle(local, e),
            Input::Bytes(link, bytes) => node.received(local, link, &bytes),
        }
        if !turn && !h.turn_pending {
            h.turn_pending = true;
            let after = Span(h.rng.below(self.swarm.turn.0 + 1));
            let life = h.life;
            self.put(after, Due::Turn { host, life });
        }
        self.drain(host);
        if self.watch.is_some() {
            self.tell_watched(host);
        }
    }

    /// For someone who follows one block through the steps.
    fn tell_watched(&mut self, host: HostIndex) {
        let Some((v, chunk, block)) = self.watch else { return };
        let chunk = proto::ChunkIndex(chunk);
        let Some(branch) = self.branch_of(v) else { return };
        let Some(c) = self.metad.configuration(branch, chunk) else { return };
        let Some(m) = c.members.iter().find(|m| crate::effects::index_of(m.place.node) == host) else {
            return;
        };
        let text = match self.held(m.place, branch, chunk, block) {
            Some(held) => format!("{held:?} ({})", self.watchers.asked_by(v, chunk, block, held)),
            None => "nothing".into(),
        };
        if self.watched.get(&host) != Some(&text) {
            self.trace.note(self.now, || format!("WATCH n{} {chunk} block {block}: {text}", host + 1));
            self.watched.insert(host, text);
        }
    }

    /// Performs what the node wants, one effect after the other; it may end between any two.
    pub fn drain(&mut self, host: HostIndex) {
        loop {
            let h = &mut self.hosts[host];
            if h.stopped {
                h.undone = true;
                return;
            }
            let Some(node) = h.node.as_mut() else { return };
            let Some(effect) = node.poll() else { break };
            let doom = h.doom.as_mut().map(|(left, end)| {
                *left = left.saturating_sub(1);
                (*left, *end)
            });
            self.perform(host, effect);
            if let Some((0, end)) = doom {
                self.hosts[host].doom = None;
                self.doomed(host, end);
            }
            if self.failure.is_some() {
                return;
            }
        }
        self.hosts[host].undone = false;
        self.schedule_wake(host);
    }

    fn doomed(&mut self, host: HostIndex, end: End) {
        match end {
            End::Crash => self.crash(host, true),
            End::Stop => self.stop(host, true),
            End::Power => self.power_goes(host),
        }
    }

    fn schedule_wake(&mut self, host: HostIndex) {
        let h = &mut self.hosts[host];
        let Some(node) = h.node.as_ref() else { return };
        let at = h.clock.global(node.next_wake()).max(self.now);
        if h.turn_pending && at == self.now {
            return; // the turn ends first, as in blockd
        }
        if at < h.wake {
            h.wake = at;
            let life = h.life;
            self.queue.put(at, Due::Wake { host, life, at });
        }
    }

    fn wake(&mut self, host: HostIndex, life: u64, at: Time) {
        let h = &mut self.hosts[host];
        if h.life != life || h.wake != at {
            return;
        }
        h.wake = Time::FAR;
        let Some(node) = h.node.as_ref() else { return };
        if h.stopped {
            return; // it looks at its clock when it continues
        }
        if node.next_wake() <= h.clock.local(self.now) {
            self.feed(host, Input::Event(Event::Wake));
        } else {
            self.schedule_wake(host);
        }
    }

    fn turn(&mut self, host: HostIndex, life: u64) {
        let h = &mut self.hosts[host];
        if h.life != life || !h.runs() {
            return;
        }
        if h.stopped {
            return; // turn_pending stays: the turn ends after it continues
        }
        h.turn_pending = false;
        self.feed(host, Input::Event(Event::TurnEnd));
    }

    /// A stopped process continues: the effects that were left, then what its kernel held, in any order of sources.
    pub fn go_on(&mut self, host: HostIndex) {
        let h = &mut self.hosts[host];
        if !h.stopped {
            return;
        }
        h.stopped = false;
        let held: VecDeque<Input> = std::mem::take(&mut h.inbox);
        let life = h.life;
        let turn = std::mem::take(&mut h.turn_pending);
        if h.undone {
            self.drain(host);
        }
        let wake_first = self.rng.permille(500);
        if wake_first {
            self.feed(host, Input::Event(Event::Wake));
        }
        for input in held {
            self.input(host, life, input);
        }
        if turn {
            self.input(host, life, Input::Event(Event::TurnEnd));
        }
        self.hosts[host].wake = Time::FAR;
        self.schedule_wake(host);
    }

    fn io_done(&mut self, host: HostIndex, life: u64, disk: usize, io: IoId) {
        let h = &mut self.hosts[host];
        if h.life != life || !h.runs() {
            return;
        }
        let d = &mut h.disks[disk];
        let mut result = d.medium.complete(io);
        if d.failing {
            result = store::IoResult::Failed(5);
        }
        let handle = u32::try_from(disk).expect("few drives");
        self.input(host, life, Input::Event(Event::Io { handle, io, result }));
    }

    fn transit(&mut self, transit: Transit) {
        match transit {
            Transit::Bytes { conn, end, bytes } => {
                let Some(e) = self.net.end(conn, end) else { return };
                if self.net.is_late(conn) {
                    self.counts.fault(crate::counts::Fault::LateBytes);
                }
                self.input(e.host, e.life, Input::Bytes(e.link, bytes));
            }
            Transit::Close { conn, end } => {
                let Some(e) = self.net.end(conn, end) else { return };
                self.net.told(conn, end);
                self.input(e.host, e.life, Input::Event(Event::LinkClosed { link: e.link }));
            }
        }
    }
}

fn code(input: &Input) -> u64 {
    match input {
        Input::Event(e) => crate::words::code(e),
        Input::Bytes(link, b) => (link.0 << 24) ^ b.len() as u64,
    }
}

fn make_host(index: usize, swarm: &Swarm, rng: &mut Rng) -> Host {
    let mut rng = rng.fork();
    let pace = Pace { write: swarm.disk_write, flush: swarm.disk_flush };
    let medium = Medium::new(swarm.drive, !swarm.no_cache[index]);
    Host {
        id: NodeId(u32::try_from(index + 1).expect("few hosts")),
        powered: true,
        node: None,
        life: 0,
        processes: 0,
        boot: boot_id(&mut rng),
        clock: Clock::new(Time::ZERO, rng.within(1_000_000_000, 9_000_000_000), swarm.drift[index]),
        disks: vec![Disk::new(medium, pace)],
        stopped: false,
        inbox: VecDeque::new(),
        undone: false,
        doom: None,
        turn_pending: false,
        struck: Time::ZERO,
        wake: Time::FAR,
        rng,
    }
}

#[must_use]
pub fn boot_id(rng: &mut Rng) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&rng.next().to_le_bytes());
    id[8..].copy_from_slice(&rng.next().to_le_bytes());
    id
}
