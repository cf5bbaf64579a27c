//! The fault atlas in action: what breaks, when, and when it ends.
//!
//! Everything here can be survived by what section 2 promises: machines come back with their drives, and what power
//! loss may take is judged by the flush rule (`atlas`).

use crate::counts::Fault;
use crate::guest::ClientState;
use crate::host::End;
use crate::net::{ConnId, HostIndex};
use crate::world::{Due, Phase, World};
use proto::{Span, Time};

/// The end of a fault that lasts.
#[derive(Clone, Debug)]
pub enum Ending {
    Continue {
        host: HostIndex,
        life: u64,
    },
    Data {
        cuts: Vec<(HostIndex, HostIndex)>,
    },
    Control {
        host: HostIndex,
    },
    Leader,
    MetadFast,
    NetFast {
        host: HostIndex,
    },
    /// A failed drive is mended; the process must be started again.
    Mended {
        host: HostIndex,
        life: u64,
    },
}

impl World {
    pub fn fault_due(&mut self) {
        if self.phase != Phase::Faults {
            return;
        }
        self.faults_left = self.faults_left.saturating_sub(1);
        for _ in 0..20 {
            let kind = self.draw_fault();
            if self.fault(kind) {
                return;
            }
        }
    }

    /// Shortly after a session has begun to serve: what it rests on is young.
    pub fn aftershock(&mut self, host: HostIndex) {
        if self.phase != Phase::Faults {
            return;
        }
        let kind = self.rng.pick(&[
            Fault::PowerLossAll,
            Fault::PowerLossAll,
            Fault::PowerLoss,
            Fault::ProcessCrash,
            Fault::Takeover,
        ]);
        match kind {
            Fault::PowerLossAll => self.power_loss_of_all(),
            Fault::Takeover => self.take_over(),
            kind => self.fault_of_host(kind, host),
        };
    }

    fn draw_fault(&mut self) -> Fault {
        let total: u64 = self.swarm.faults.iter().map(|f| f.1).sum();
        let mut k = self.rng.below(total);
        for (f, weight) in &self.swarm.faults {
            if k < *weight {
                return *f;
            }
            k -= weight;
        }
        unreachable!("below the total")
    }

    /// Hosts whose process does not run (or is stopped) now.
    fn away(&self) -> usize {
        self.hosts.iter().filter(|h| !h.runs() || h.stopped).count()
    }

    /// Does it, if it can be done now.
    fn fault(&mut self, kind: Fault) -> bool {
        let mut host = self.rng.index(self.hosts.len());
        // Often where a guest is: there most can go wrong.
        if self.rng.permille(300) {
            let v = self.some_volume();
            host = self.volumes[v].present().map_or(host, |c| c.host);
        }
        match kind {
            Fault::ProcessCrash
            | Fault::CrashBetweenEffects
            | Fault::PowerLoss
            | Fault::Stop
            | Fault::StopBetweenEffects
            | Fault::DiskError => self.fault_of_host(kind, host),
            Fault::PowerLossAll => self.power_loss_of_all(),
            Fault::LinkBreak | Fault::LinkHalfBreak => self.break_a_link(kind),
            Fault::DataOneWay | Fault::DataTwoWay => self.cut_data(kind, host),
            Fault::ForcedAttach | Fault::CleanMove => self.move_a_guest(kind),
            Fault::Takeover => self.take_over(),
            Fault::DiskSlow => {
                let until = self.now + Span::millis(self.rng.within(500, 8000));
                let by = Span::millis(self.rng.pick(&[5, 50, 400, 1500]));
                let d = self.rng.index(self.hosts[host].disks.len());
                self.hosts[host].disks[d].slow = Some((until, by));
                self.did(kind, host)
            }
            Fault::NetSlow => {
                let by = Span::millis(self.rng.pick(&[2, 20, 150, 600]));
                self.net.slow_down(host, by);
                let after = Span::millis(self.rng.within(500, 6000));
                self.put(after, Due::End(Ending::NetFast { host }));
                self.did(kind, host)
            }
            _ => self.fault_of_metad(kind, host),
        }
    }

    fn did(&mut self, kind: Fault, host: HostIndex) -> bool {
        self.counts.fault(kind);
        self.hosts[host].struck = self.now;
        self.trace.step(self.now, 3, kind as u64, || format!("FAULT {} (n{})", kind.name(), host + 1));
        true
    }

    fn fault_of_host(&mut self, kind: Fault, host: HostIndex) -> bool {
        if !self.hosts[host].runs() || self.hosts[host].stopped {
            return false;
        }
        // Mostly one at a time, so that the others have something to do; now and then several.
        if self.away() * 2 >= self.hosts.len() - 1 && !self.rng.permille(250) {
            return false;
        }
        match kind {
            Fault::ProcessCrash => self.crash(host, false),
            Fault::CrashBetweenEffects | Fault::StopBetweenEffects => {
                let end = if kind == Fault::CrashBetweenEffects { End::Crash } else { End::Stop };
                let after = self.rng.within(1, 200);
                self.hosts[host].doom = Some((after, end));
            }
            // ... or it goes while the node is busy: between a write of its drive and the flush after it.
            Fault::PowerLoss if self.rng.permille(300) => {
                let after = self.rng.within(1, 300);
                self.hosts[host].doom = Some((after, End::Power));
            }
            Fault::PowerLoss => {
                // Now and then its network goes first: what its own drive has been told the others have not.
                let first = self.rng.permille(400);
                if first {
                    let others = (0..self.hosts.len()).filter(|h| *h != host);
                    let cuts = others.map(|o| (host, o)).collect();
                    self.cut_for(cuts, 30, 30);
                }
                let after = if first { self.rng.within(500, 30_000) } else { 0 };
                self.put(Span::micros(after), Due::PowerGoes { host });
            }
            Fault::Stop => self.stop(host, false),
            _ => {
                // One drive at a time: two of three may be gone, not the last one.
                if self.hosts.iter().any(|h| h.disks.iter().any(|d| d.failing)) {
                    return false;
                }
                let d = self.rng.index(self.hosts[host].disks.len());
                self.hosts[host].disks[d].failing = true;
                let life = self.hosts[host].life;
                self.put(Span::secs(9), Due::End(Ending::Mended { host, life }));
                return self.did(kind, host);
            }
        }
        true
    }

    pub fn power_goes(&mut self, host: HostIndex) {
        if self.phase != Phase::Faults || !self.hosts[host].powered {
            return;
        }
        self.counts.fault(Fault::PowerLoss);
        let back = Span::millis(self.rng.pick(&[100, 1000, 3000, 8000, 15_000]));
        self.power_loss(host, back);
    }

    pub fn stop(&mut self, host: HostIndex, between: bool) {
        let h = &mut self.hosts[host];
        if !h.runs() || h.stopped {
            return;
        }
        h.stopped = true;
        let life = h.life;
        self.did(if between { Fault::StopBetweenEffects } else { Fault::Stop }, host);
        let after = Span::millis(self.rng.pick(&[20, 200, 800, 2500, 3500, 7000]));
        self.put(after, Due::End(Ending::Continue { host, life }));
    }

    fn power_loss_of_all(&mut self) -> bool {
        self.did(Fault::PowerLossAll, 0);
        for host in 0..self.hosts.len() {
            let back = Span::millis(self.rng.within(200, 5000));
            self.power_loss(host, back);
        }
        true
    }

    fn break_a_link(&mut self, kind: Fault) -> bool {
        let live = self.net.live();
        if live.is_empty() {
            return false;
        }
        let conn = self.rng.pick(&live);
        for h in self.net.hosts_of(conn) {
            self.hosts[h].struck = self.now;
        }
        let soon = |r: &mut crate::rng::Rng| Span::micros(r.within(1, 300));
        let mut hears = [soon(&mut self.rng), soon(&mut self.rng)];
        let mut after = 0;
        if kind == Fault::LinkHalfBreak {
            // What is sent to one end just before lingers on the way, while the other end is already connected anew.
            let end = self.rng.index(2);
            hears[end] = Span::millis(self.rng.within(1, 3000));
            self.net.stall(conn, end);
            after = self.rng.pick(&[1, 500, 5000, 40_000]);
        }
        self.counts.fault(kind);
        self.trace.step(self.now, 3, kind as u64, || format!("FAULT {} ({conn:?})", kind.name()));
        self.put(Span::micros(after), Due::Break { conn, hears });
        true
    }

    pub fn connection_breaks(&mut self, conn: ConnId, hears: [Span; 2]) {
        for (at, t) in self.net.break_conn(self.now, conn, hears, &mut self.rng) {
            self.queue.put(at, Due::Net(t));
        }
    }

    fn cut_data(&mut self, kind: Fault, host: HostIndex) -> bool {
        let n = self.hosts.len();
        // One pair, or one host from all others.
        let others: Vec<HostIndex> = if self.rng.permille(500) {
            vec![self.other_host(host)]
        } else {
            (0..n).filter(|h| *h != host).collect()
        };
        let out = self.rng.permille(500);
        let mut cuts = vec![];
        for o in others {
            if kind == Fault::DataTwoWay || out {
                cuts.push((host, o));
            }
            if kind == Fault::DataTwoWay || !out {
                cuts.push((o, host));
            }
        }
        for (a, b) in &cuts {
            self.net.cut(*a, *b);
        }
        let after = Span::millis(self.rng.pick(&[50, 300, 1000, 3000, 7000]));
        self.put(after, Due::End(Ending::Data { cuts }));
        self.did(kind, host)
    }

    fn move_a_guest(&mut self, kind: Fault) -> bool {
        let volume = self.some_volume();
        let v = &mut self.volumes[volume];
        let Some(i) = v.clients.iter().rposition(|c| c.alive() && !c.old) else { return false };
        if v.clients[i].state != ClientState::Open {
            return false;
        }
        let (host, number) = (v.clients[i].host, v.clients[i].number);
        if kind == Fault::CleanMove {
            v.clients[i].state = ClientState::Leaving;
            self.put(Span(1), Due::Guest { volume });
            self.leave_if_idle(volume);
        } else {
            v.clients[i].old = true;
            let goes_on = Span::millis(self.rng.pick(&[1, 500, 2000, 6000]));
            self.put(goes_on, Due::Retire { volume, client: number });
            let elsewhere = self.other_host(host);
            self.put(Span(1), Due::Attach { volume, host: Some(elsewhere), force: true });
        }
        self.did(kind, host)
    }

    /// A guest's node is cut off (from one peer in one direction, or from all), or stopped; meanwhile the guest is
    /// attached elsewhere by force, and the old attachment goes on asking.
    fn take_over(&mut self) -> bool {
        let volume = self.some_volume();
        let v = &mut self.volumes[volume];
        let Some(i) = v.clients.iter().rposition(|c| c.alive() && !c.old) else { return false };
        if v.clients[i].state != ClientState::Open || self.hosts[v.clients[i].host].stopped {
            return false;
        }
        v.clients[i].old = true;
        let (host, number) = (v.clients[i].host, v.clients[i].number);
        let elsewhere = self.other_host(host);
        let n = self.hosts.len();
        let style = self.rng.below(5);
        match style {
            0 => {
                let after = self.rng.within(1, 60);
                self.hosts[host].doom = Some((after, End::Stop));
            }
            1 | 2 => {
                let others: Vec<HostIndex> = (0..n).filter(|h| *h != host).collect();
                let cuts = others.iter().flat_map(|&o| [(host, o), (o, host)]).collect();
                self.cut_for(cuts, 5000, 9000);
                // Mostly from metad too: nobody can tell it.
                if self.rng.permille(700) {
                    self.cut_control(host, Span::secs(9));
                }
                // What cut it off has hit the others as well: they start anew.
                let restarts = style == 2;
                for o in others.into_iter().filter(|_| restarts) {
                    if self.rng.permille(700) {
                        let back = Span::millis(self.rng.pick(&[5, 50, 200, 500]));
                        self.crash_for(o, back);
                    }
                }
            }
            _ => {
                // What it has sent to one replica is held back until a newer session is there.
                let to = self.other_host(host);
                self.cut_for(vec![(host, to)], 2300, 3600);
            }
        }
        let soon = Span::millis(self.rng.below(if style == 1 { 2500 } else { 900 }));
        self.put(soon, Due::Attach { volume, host: Some(elsewhere), force: true });
        let goes_on = Span::millis(self.rng.within(4000, 11_000));
        self.put(goes_on, Due::Retire { volume, client: number });
        self.did(Fault::Takeover, host)
    }

    fn cut_for(&mut self, cuts: Vec<(HostIndex, HostIndex)>, least: u64, most: u64) {
        for (a, b) in &cuts {
            self.net.cut(*a, *b);
            (self.hosts[*a].struck, self.hosts[*b].struck) = (self.now, self.now);
        }
        let after = Span::millis(self.rng.within(least, most));
        self.put(after, Due::End(Ending::Data { cuts }));
    }

    pub fn fault_ends(&mut self, ending: Ending) {
        self.trace.step(self.now, 4, 0, || format!("END {ending:?}"));
        match ending {
            Ending::Continue { host, life } => {
                if self.hosts[host].life == life {
                    self.go_on(host);
                }
            }
            Ending::Data { cuts } => {
                for (a, b) in cuts {
                    (self.hosts[a].struck, self.hosts[b].struck) = (self.now, self.now);
                    for (at, t) in self.net.heal(self.now, a, b, &mut self.rng) {
                        self.queue.put(at, Due::Net(t));
                    }
                }
            }
            Ending::NetFast { host } => self.net.speed_up(host),
            Ending::Mended { host, life } => {
                if self.hosts[host].life == life {
                    self.crash(host, false);
                }
            }
            Ending::Control { host } => self.control_heals(host),
            Ending::Leader => self.elect(),
            Ending::MetadFast => self.metad_fast(),
        }
    }

    /// No more faults: everything that lasts ends now.
    pub fn all_faults_end(&mut self) {
        self.trace.step(self.now, 5, 0, || "faults are over".into());
        let cuts = self.net.cuts();
        self.fault_ends(Ending::Data { cuts });
        for host in 0..self.hosts.len() {
            self.net.speed_up(host);
            self.control_heals(host);
            self.hosts[host].doom = None;
            for d in &mut self.hosts[host].disks {
                d.slow = None;
            }
            self.go_on(host);
            if !self.hosts[host].runs() {
                self.put(Span::millis(1), Due::Start { host });
            } else if self.hosts[host].disks.iter().any(|d| d.failing) {
                // Its operator replaces the cable and starts it again.
                self.crash(host, false);
            }
        }
        self.elect();
        self.metad_fast();
        let until = Time(self.now.0 + Span::secs(120).0);
        self.phase = Phase::Rest { until };
        if self.swarm.tight {
            self.put(Span::secs(1), Due::Operator);
        }
        self.errands_end();
        for volume in self.live() {
            self.put(Span(1), Due::Guest { volume });
            self.put(Span(2), Due::Attach { volume, host: None, force: true });
        }
    }
}
