//! What guests do in the world: attach, ask, move, and start anew when their node is gone.

use crate::guest::ClientState;
use crate::host::Input;
use crate::net::HostIndex;
use crate::world::{Due, Phase, World};
use node::{Event, ExportError};
use oracle::OpId;
use proto::{ExportId, Generation, Span, Ticket};
use volume::{GuestError, GuestReply};

impl World {
    /// Mean time between the turns of a guest.
    fn think(&self, depth: usize) -> u64 {
        let share = self.swarm.operations / self.live().len().max(1) as u64;
        self.swarm.span.0 / share.max(1) * (depth as u64 / 2 + 1)
    }

    /// All that the seed asks for has been asked.
    #[must_use]
    pub fn asked_all(&self) -> bool {
        self.operations >= self.swarm.operations
    }

    pub fn guest_turn(&mut self, volume: usize) {
        if !self.volumes[volume].is_there() {
            return;
        }
        let depth = self.volumes[volume].taste.depth;
        let rest = matches!(self.phase, Phase::Rest { .. });
        if !matches!(self.phase, Phase::Faults | Phase::Rest { .. }) || (rest && self.asked_all()) {
            return;
        }
        for i in 0..self.volumes[volume].clients.len() {
            let burst = self.rng.within(1, depth as u64);
            for _ in 0..burst {
                let c = &self.volumes[volume].clients[i];
                if c.state != ClientState::Open || c.unanswered() >= depth {
                    break;
                }
                self.ask(volume, i, None);
            }
        }
        let mean = self.think(depth) / if rest { 10 } else { 1 };
        let after = Span(self.rng.around(mean) + 1);
        self.put(after, Due::Guest { volume });
    }

    /// One request; `read`: of these blocks (first, count).
    pub fn ask(&mut self, volume: usize, client: usize, read: Option<(u64, u64)>) {
        self.operations += 1;
        let op = OpId(self.operations);
        let since = self.some_view(volume);
        let v = &mut self.volumes[volume];
        let (request, entry) = match read {
            Some((first, count)) => v.ask_read(client, op, first, count),
            None => v.ask(client, op, since, &mut self.rng, &mut self.counts),
        };
        let c = &v.clients[client];
        let (host, life, export) = (c.host, c.life, c.export);
        self.watchers.asked(self.now, volume, c.number, &request);
        self.tell(entry);
        self.input(host, life, Input::Event(Event::Guest { export, request }));
    }

    /// A view of the volume's own branch, for a guest that asks what has changed since.
    fn some_view(&mut self, volume: usize) -> Option<Generation> {
        let branch = self.branch_of(volume).filter(|_| self.volumes[volume].taste.map > 0)?;
        let views = (branch, Generation(0))..=(branch, Generation(u32::MAX));
        let views: Vec<Generation> = self.watchers.cuts.images.range(views).map(|((_, g), _)| *g).collect();
        (!views.is_empty() && self.rng.permille(500)).then(|| self.rng.pick(&views))
    }

    pub fn completed(
        &mut self,
        host: HostIndex,
        life: u64,
        export: ExportId,
        ticket: Ticket,
        result: &Result<GuestReply, GuestError>,
    ) {
        if self.reader_answered((host, life, export), ticket, result) {
            return;
        }
        let Some(v) = self.volume_of(host, life, export) else { return };
        self.check_answer(v, host, ticket, result);
        if matches!(result, Err(GuestError::Io)) && self.nobody_sound(v) {
            let volume = self.volumes[v].number;
            self.tell(oracle::Entry::ErrorsPermitted { volume, permitted: true });
        }
        let at = (host, life, export);
        let since = self.volumes[v].since(at, ticket);
        let view = self.branch_of(v).zip(since);
        let image = view.and_then(|key| self.watchers.cuts.images.get(&key));
        let entry = self.volumes[v].answered(at, ticket, result, image, &mut self.counts);
        if let Some(entry) = entry {
            self.tell(entry);
        }
        self.leave_if_idle(v);
    }

    fn volume_of(&mut self, host: HostIndex, life: u64, export: ExportId) -> Option<usize> {
        (0..self.volumes.len()).find(|&v| self.volumes[v].client(host, life, export).is_some())
    }

    /// A guest that leaves closes its export when everything is answered.
    pub fn leave_if_idle(&mut self, v: usize) {
        let leaving = self.volumes[v]
            .clients
            .iter()
            .position(|c| c.state == ClientState::Leaving && c.unanswered() == 0);
        let Some(i) = leaving else { return };
        let c = &self.volumes[v].clients[i];
        let (host, life, export, old) = (c.host, c.life, c.export, c.old);
        self.client_over(v, i);
        self.put(Span(1), Due::Input { host, life, input: Input::Event(Event::CloseExport { export }) });
        if !old {
            let elsewhere = self.other_host(host);
            self.put(Span::millis(1), Due::Attach { volume: v, host: Some(elsewhere), force: false });
        }
    }

    pub fn client_over(&mut self, v: usize, i: usize) {
        for e in self.volumes[v].gone(i, &mut self.counts) {
            self.tell(e);
        }
    }

    /// A guest wants its volume on some node.
    pub fn guest_attach(&mut self, volume: usize, host: Option<HostIndex>, force: bool) {
        let v = &self.volumes[volume];
        if v.present().is_some() || !v.is_there() || v.parked {
            return;
        }
        let host = host.unwrap_or_else(|| self.rng.index(self.hosts.len()));
        if !self.hosts[host].runs() {
            let other = if self.rng.permille(500) { Some(host) } else { None };
            let after = Span::millis(self.rng.within(100, 800));
            return self.put(after, Due::Attach { volume, host: other, force });
        }
        let life = self.hosts[host].life;
        let export = ExportId(self.rng.next() >> 1);
        let v = &mut self.volumes[volume];
        v.opening(host, life, export, self.now);
        let name = v.name.clone();
        self.trace.note(self.now, || format!("guest of {name} opens on n{}, force {force}", host + 1));
        self.input(host, life, Input::Event(Event::OpenExport { export, volume: name, force }));
    }

    pub fn export_opened(&mut self, host: HostIndex, life: u64, export: ExportId) {
        if self.reader_opened((host, life, export)) {
            return;
        }
        let Some(v) = self.volume_of(host, life, export) else { return };
        let v = self.client_lands(v, host, life, export);
        let epoch = self.branch_of(v).and_then(|b| self.session_epoch(host, b)).unwrap_or_default();
        let entry = self.volumes[v].opened((host, life, export), epoch, self.now);
        if let Some(entry) = entry {
            self.first_service(v, host);
            self.tell(entry);
        }
    }

    pub fn export_refused(&mut self, host: HostIndex, life: u64, export: ExportId, error: &ExportError) {
        if self.reader_over((host, life, export)) {
            return;
        }
        let Some(v) = self.volume_of(host, life, export) else { return };
        self.trace.note(self.now, || format!("refused: {error}"));
        self.export_over(v, host, life, export);
    }

    pub fn export_closed(&mut self, host: HostIndex, life: u64, export: ExportId) {
        if self.reader_over((host, life, export)) {
            return;
        }
        let Some(v) = self.volume_of(host, life, export) else { return };
        self.export_over(v, host, life, export);
    }

    /// Every request fails from here on: the guest gives it up.
    pub fn export_broken(&mut self, host: HostIndex, life: u64, export: ExportId) {
        let after = Span::micros(self.rng.within(1, 5000));
        self.put(after, Due::Input { host, life, input: Input::Event(Event::CloseExport { export }) });
        self.export_closed(host, life, export);
    }

    fn export_over(&mut self, v: usize, host: HostIndex, life: u64, export: ExportId) {
        let found =
            |c: &crate::guest::Client| c.alive() && c.host == host && c.life == life && c.export == export;
        let Some(i) = self.volumes[v].clients.iter().position(found) else { return };
        let old = self.volumes[v].clients[i].old;
        self.client_over(v, i);
        if !old {
            let same = if self.rng.permille(600) { Some(host) } else { None };
            let force = self.rng.permille(if self.phase == Phase::Faults { 400 } else { 1000 });
            let after = Span::millis(self.rng.within(50, 1200));
            self.put(after, Due::Attach { volume: v, host: same, force });
        }
    }

    /// A process or a machine is gone, and with it the attachments on it.
    pub fn clients_gone(&mut self, host: HostIndex) {
        self.readers_gone(host);
        for v in 0..self.volumes.len() {
            for i in 0..self.volumes[v].clients.len() {
                let c = &self.volumes[v].clients[i];
                if !c.alive() || c.host != host {
                    continue;
                }
                let old = c.old;
                self.client_over(v, i);
                if !old {
                    let same = if self.rng.permille(500) { Some(host) } else { None };
                    let force = self.rng.permille(500);
                    let after = Span::millis(self.rng.within(20, 3000));
                    self.put(after, Due::Attach { volume: v, host: same, force });
                }
            }
        }
    }

    /// The attachment that was displaced by our own order goes away for good.
    pub fn guest_retires(&mut self, volume: usize, client: u32) {
        let found = |c: &crate::guest::Client| c.alive() && c.old && c.number == client;
        let Some(i) = self.volumes[volume].clients.iter().position(found) else { return };
        let c = &self.volumes[volume].clients[i];
        let (host, life, export) = (c.host, c.life, c.export);
        self.client_over(volume, i);
        self.input(host, life, Input::Event(Event::CloseExport { export }));
    }

    #[must_use]
    pub fn other_host(&mut self, host: HostIndex) -> HostIndex {
        let n = self.hosts.len();
        (host + 1 + self.rng.index(n - 1)) % n
    }
}
