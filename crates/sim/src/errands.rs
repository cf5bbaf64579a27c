//! What the operator does with a volume that nobody has open: its guest is asked to go, and comes back when it is done,
//! or when it took too long.

use crate::guest::ClientState;
use crate::world::{Due, Phase, World};
use meta::AdminRequest;
use proto::{Span, Time};

/// The guest waits so long.
const PATIENCE: Span = Span::secs(15);

#[derive(Debug)]
pub struct Errand {
    until: Time,
    request: AdminRequest,
}

impl World {
    pub fn begin_errand(&mut self, volume: usize, request: AdminRequest) {
        if self.volumes[volume].parked {
            return;
        }
        self.volumes[volume].parked = true;
        self.snapshots.errands.insert(volume, Errand { until: self.now + PATIENCE, request });
        self.put(Span(1), Due::Errand { volume });
    }

    pub fn errand_turn(&mut self, volume: usize) {
        let Some(e) = self.snapshots.errands.get(&volume) else { return };
        let (late, request) = (self.now >= e.until, e.request.clone());
        // Done, or it took too long.
        if !self.volumes[volume].is_there() || late || self.phase != Phase::Faults {
            return self.errand_ends(volume);
        }
        let clients = &mut self.volumes[volume].clients;
        // Those that were displaced, on nodes that do not know it yet, are in nobody's way.
        if clients.iter().all(|c| !c.alive() || c.old) {
            self.operator_asks(request);
        } else if let Some(c) = clients.iter_mut().find(|c| !c.old && c.state == ClientState::Open) {
            c.state = ClientState::Leaving;
            self.leave_if_idle(volume);
        }
        let after = Span::millis(self.rng.within(50, 900));
        self.put(after, Due::Errand { volume });
    }

    fn errand_ends(&mut self, volume: usize) {
        self.snapshots.errands.remove(&volume);
        self.volumes[volume].parked = false;
        self.put(Span(1), Due::Attach { volume, host: None, force: false });
    }

    /// No more of it.
    pub fn errands_end(&mut self) {
        for volume in std::mem::take(&mut self.snapshots.errands).into_keys() {
            self.volumes[volume].parked = false;
        }
    }
}
