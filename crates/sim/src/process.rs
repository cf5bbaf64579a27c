//! Processes of blockd: started, fed with drives, and what is noticed when they end.

use crate::host::{Clock, Input};
use crate::net::HostIndex;
use crate::world::{Due, World, boot_id};
use node::event::DriveParams;
use node::{Event, Node, NodeParams};
use proto::{DriveId, OpenId, ProcessNumber, Span};
use store::event::Failure;

impl World {
    /// A machine gets power if it has none, and its blockd is started.
    pub fn start(&mut self, host: HostIndex) {
        let now = self.now;
        let h = &mut self.hosts[host];
        if h.runs() {
            return;
        }
        if !h.powered {
            h.powered = true;
            h.boot = boot_id(&mut h.rng);
            h.clock = Clock::new(now, h.rng.within(1_000_000_000, 9_000_000_000), h.clock.drift());
        }
        h.forget_process();
        h.processes += 1;
        let params = NodeParams {
            cluster: self.metad.cluster(),
            node: h.id,
            process: ProcessNumber(h.processes),
            boot: h.boot,
            seed: h.rng.next(),
        };
        let mut node = Box::new(Node::new(params, h.clock.local(now)));
        node.set_bugs(self.bugs.node, self.bugs.store, self.bugs.volume);
        h.node = Some(node);
        let life = h.life;
        let mut drives = vec![];
        for (i, d) in h.disks.iter_mut().enumerate() {
            d.failing = false;
            d.opening = OpenId(h.rng.next());
            drives.push(DriveParams {
                handle: u32::try_from(i).expect("few drives"),
                size: d.medium.size(),
                volatile_cache: d.medium.is_volatile(),
                path: format!("/dev/sim{i}"),
                opening: d.opening,
            });
        }
        self.trace.step(now, 6, host as u64, || format!("n{}: process started", host + 1));
        self.metad_connected(host, life);
        for d in drives {
            let add = Input::Event(Event::AddDrive(d));
            if self.swarm.late_drives.0 == 0 {
                self.input(host, life, add);
            } else {
                let after = Span(self.hosts[host].rng.below(self.swarm.late_drives.0));
                self.put(after, Due::Input { host, life, input: add });
            }
        }
    }

    pub fn drive_opened(&mut self, host: HostIndex, disk: usize, drive: DriveId) {
        self.trace.note(self.now, || format!("n{} disk {disk} is {drive}", host + 1));
        self.check_wal(host, drive);
    }

    /// A drive stopped: after an I/O error that we made, or else something is wrong.
    pub fn drive_failed(&mut self, host: HostIndex, disk: usize, failure: &Failure) {
        if !self.hosts[host].disks[disk].failing {
            return self.fail("WAL", format!("n{}: drive {disk} stopped: {failure}", host + 1));
        }
        // Its operator sees to the drive and starts the process again.
        let life = self.hosts[host].life;
        let after = Span::millis(self.rng.within(500, 8000));
        self.put(after, Due::End(crate::faults::Ending::Mended { host, life }));
    }
}
