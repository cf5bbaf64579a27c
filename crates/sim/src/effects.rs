//! The edge: what a node wants done is done here, as a kernel, a network and metad's client would.

use crate::counts::Fault;
use crate::host::Input;
use crate::net::{End, HostIndex};
use crate::words;
use crate::world::{Due, World};
use node::{Effect, Event, LinkId};
use proto::control::MetaRequest;
use proto::{NodeId, Span};

/// The index of a node's host.
#[must_use]
pub fn index_of(node: NodeId) -> HostIndex {
    node.0 as usize - 1
}

impl World {
    pub fn perform(&mut self, host: HostIndex, effect: Effect) {
        self.trace.step(self.now, 200 + host as u64, words::effect_code(&effect), || {
            format!("n{} -> {}", host + 1, words::effect(&effect))
        });
        let now = self.now;
        let h = &mut self.hosts[host];
        let life = h.life;
        match effect {
            Effect::Io { handle, io, op } => {
                let disk = handle as usize;
                let at = h.disks[disk].submit(now, io, op, &mut h.rng);
                self.queue.put(at, Due::Io { host, life, disk, io });
            }
            Effect::Dial { link, to, .. } => self.dial(host, life, link, index_of(to)),
            Effect::Send { link, bytes } => {
                if let Some((at, t)) = self.net.send(now, (host, life, link), bytes, &mut h.rng) {
                    self.queue.put(at, Due::Net(t));
                }
            }
            Effect::CloseLink { link } => {
                if let Some((at, t)) = self.net.close(now, (host, life, link), &mut h.rng) {
                    self.queue.put(at, Due::Net(t));
                }
            }
            Effect::Meta { token, request } => {
                if let MetaRequest::Propose { branch, epoch, changes } = &request {
                    self.check_evidence(host, *branch, *epoch, changes);
                }
                self.meta_request(host, life, token, request);
            }
            Effect::ExportOpened { export, .. } => self.export_opened(host, life, export),
            Effect::ExportRefused { export, error } => self.export_refused(host, life, export, &error),
            Effect::ExportClosed { export } => self.export_closed(host, life, export),
            Effect::ExportBroken { export } => self.export_broken(host, life, export),
            Effect::ExportResized { .. } | Effect::ExportReconnect { .. } => {}
            Effect::Complete { export, ticket, result } => {
                self.completed(host, life, export, ticket, &result)
            }
            Effect::DriveOpened { handle, drive } => self.drive_opened(host, handle as usize, drive),
            Effect::DriveFailed { handle, failure } => self.drive_failed(host, handle as usize, &failure),
            Effect::Stopped => self.stopped_by_itself(host),
            Effect::Notice(_) => {}
        }
    }

    fn dial(&mut self, host: HostIndex, life: u64, link: LinkId, to: HostIndex) {
        let h = &mut self.hosts[host];
        if self.net.passes(host, to) {
            let after = self.net.delay(host, to, &mut h.rng);
            self.put(after, Due::Dial { host, life, link, to });
        } else {
            self.dial_fails(host, life, link, false);
        }
    }

    fn dial_fails(&mut self, host: HostIndex, life: u64, link: LinkId, at_once: bool) {
        let after = if at_once { Span::micros(100) } else { Span::millis(self.rng.within(1000, 3000)) };
        self.put(after, Due::Input { host, life, input: Input::Event(Event::LinkClosed { link }) });
    }

    pub fn dial_arrives(&mut self, host: HostIndex, life: u64, link: LinkId, to: HostIndex) {
        if self.hosts[host].life != life || !self.hosts[host].runs() {
            return;
        }
        let peer = &self.hosts[to];
        if !peer.powered || !self.net.passes(to, host) {
            return self.dial_fails(host, life, link, false);
        }
        if !peer.runs() {
            return self.dial_fails(host, life, link, true);
        }
        let accepted = self.net.accepted_link();
        let there = End { host: to, life: peer.life, link: accepted };
        let conn = self.net.connect(End { host, life, link }, there);
        let after = self.net.delay(to, host, &mut self.rng);
        // The answer to the dial goes first on its way back.
        self.net.not_before(conn, 0, self.now + after);
        self.put(after, Due::Input { host, life, input: Input::Event(Event::Dialled { link }) });
        self.input(to, there.life, Input::Event(Event::Accepted { link: accepted }));
    }

    /// A node's process has ended by itself (asked to, in order).
    fn stopped_by_itself(&mut self, host: HostIndex) {
        self.process_ends(host);
    }

    /// The process is killed.
    pub fn crash(&mut self, host: HostIndex, between: bool) {
        if !self.hosts[host].runs() {
            return;
        }
        if between {
            self.counts.fault(Fault::CrashBetweenEffects);
        }
        let back = Span::millis(self.rng.pick(&[5, 50, 200, 500, 1500, 4000, 9000]));
        self.crash_for(host, back);
    }

    /// ... and started again after so long.
    pub fn crash_for(&mut self, host: HostIndex, back: Span) {
        if !self.hosts[host].runs() {
            return;
        }
        self.counts.fault(Fault::ProcessCrash);
        self.trace.step(self.now, 1, host as u64, || format!("n{}: process killed", host + 1));
        self.process_ends(host);
        self.put(back, Due::Start { host });
    }

    fn process_ends(&mut self, host: HostIndex) {
        self.before_end(host, false);
        let now = self.now;
        self.hosts[host].struck = now;
        let h = &mut self.hosts[host];
        h.node = None;
        h.forget_process();
        let mut rng = h.rng.fork();
        for d in &mut h.disks {
            d.medium.kill(&mut |n| rng.below(n));
        }
        for (at, t) in self.net.process_gone(now, host, &mut self.rng) {
            self.queue.put(at, Due::Net(t));
        }
        self.clients_gone(host);
    }

    /// The machine loses power; it comes back after `back`.
    pub fn power_loss(&mut self, host: HostIndex, back: Span) {
        let now = self.now;
        if !self.hosts[host].powered {
            return;
        }
        self.trace.step(now, 2, host as u64, || format!("n{}: power lost", host + 1));
        self.before_end(host, true);
        let h = &mut self.hosts[host];
        h.node = None;
        h.powered = false;
        h.struck = now;
        h.forget_process();
        let mut rng = h.rng.fork();
        for d in &mut h.disks {
            if !d.medium.is_quiet() {
                self.counts.fault(Fault::Torn);
            }
            if d.medium.unflushed() > 0 {
                self.counts.fault(Fault::SectorsLost);
            }
            d.medium.power_loss(&mut |n| rng.below(n));
        }
        for (at, t) in self.net.machine_gone(now, host, &mut self.rng) {
            self.queue.put(at, Due::Net(t));
        }
        self.clients_gone(host);
        self.lost_power(host);
        self.put(back, Due::Start { host });
    }
}
