//! The making of the cluster, and the way from phase to phase.

use crate::counts::Fault;
use crate::world::{Due, Phase, World};
use meta::{AdminRequest, Class, Op};
use proto::{DriveId, NodeId, Span, Time};
use store::FormatParams;

/// The cluster must be ready by then.
const MADE_BY: Time = Time(1_000_000_000 + Span::secs(60).0);

impl World {
    /// Drives are formatted, nodes and drives are known to metad, processes start.
    pub fn make(&mut self) {
        let cluster = self.metad.cluster();
        self.metad.decree(Op::ClusterInit { cluster, name: "sim".into(), token: "t".into() });
        for i in 0..self.hosts.len() {
            let name = format!("n{}", i + 1);
            let address = format!("{name}:1");
            let identity = i as u128 + 1;
            self.metad.decree(Op::NodeAdd { name, zone: String::new(), address, identity, token: None });
            self.make_drives(i);
            self.put(Span::millis(1), Due::Start { host: i });
        }
        if let Some(d) = self.swarm.down_out {
            self.metad.decree(Op::SettingSet { setting: meta::settings::Setting::DownOut(d.as_millis()) });
        }
        if self.swarm.clones > 0 {
            self.metad.decree(Op::SettingSet { setting: meta::Setting::Trash(self.swarm.trash.as_millis()) });
        }
        if self.swarm.drift.iter().any(|d| *d != 0) {
            self.counts.fault(Fault::ClockDrift);
        }
        self.elect();
        self.put(Span::millis(100), Due::Look);
    }

    fn make_drives(&mut self, host: usize) {
        let node = NodeId(u32::try_from(host + 1).expect("few hosts"));
        let cluster = self.metad.cluster();
        for i in 0..self.hosts[host].disks.len() {
            let d = &mut self.hosts[host].disks[i];
            let drive = DriveId((host as u64 + 1) * 100 + i as u64);
            let capacity = d.medium.size();
            let params =
                FormatParams { size: capacity, cluster, node, drive, journal: Some(self.swarm.journal) };
            d.medium.format(&params).expect("the simulated drives can be formatted");
            self.metad.decree(Op::DriveAdd { node, drive, capacity, path: format!("/dev/sim{i}") });
        }
    }

    /// From making to faults, and from faults to rest.
    pub fn next_phase(&mut self) {
        match self.phase {
            Phase::Making => self.make_volumes(),
            Phase::Faults if self.asked_all() && self.faults_left == 0 => self.all_faults_end(),
            Phase::Faults if self.now.0 > self.swarm.span.0 * 3 => self.all_faults_end(),
            _ => {}
        }
    }

    fn make_volumes(&mut self) {
        let all_run = self.hosts.iter().all(|h| h.runs());
        for v in 0..self.volumes.len() {
            let name = self.volumes[v].name.clone();
            if self.metad.branch(&name).is_none() && all_run {
                let request = AdminRequest::VolumeCreate {
                    name,
                    size: self.swarm.bytes_of(&self.volumes[v].layout),
                    chunk_shift: Some(proto::limits::CHUNK_SHIFT_MIN),
                    class: Class::of_copies(3),
                    prefer: None,
                };
                self.admin(request);
            }
        }
        if self.volumes.iter().all(|v| self.metad.ready(&v.name)) {
            self.trace.note(self.now, || "the volumes are ready".into());
            self.phase = Phase::Faults;
            for volume in 0..self.volumes.len() {
                self.put(Span(1), Due::Attach { volume, host: None, force: false });
                self.put(Span::millis(1), Due::Guest { volume });
            }
            if self.swarm.has_views() {
                self.put(Span::millis(20), Due::Operator);
            }
            for _ in 0..self.swarm.fault_count {
                let after = Span(self.rng.below(self.swarm.span.0));
                self.put(after, Due::Fault);
            }
        } else if self.now > MADE_BY {
            self.fail("LIVE", "the volumes did not become ready".into());
        }
    }
}
