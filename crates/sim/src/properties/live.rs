//! LIVE: once faults stop and every member of each set is back, everything becomes in-sync and all I/O completes,
//! without an operator.

use crate::counts::Property;
use crate::guest::ClientState;
use crate::world::{Due, Phase, World};
use proto::{Span, Time};

/// Blocks of one read of the last check.
const STEP: u64 = 32;

impl World {
    /// What is not at rest yet, in words; none: everything is.
    fn unrest(&mut self) -> Option<String> {
        for v in self.volumes.iter().filter(|v| v.is_there()) {
            let branch = v.branch?;
            match v.present() {
                Some(c) if c.state == ClientState::Open => {}
                other => {
                    return Some(format!(
                        "{}: the guest is not attached ({:?})",
                        v.name,
                        other.map(|c| c.state)
                    ));
                }
            }
            if let Some(c) = v.clients.iter().find(|c| c.alive() && c.unanswered() > 0) {
                let (n, host) = (c.unanswered(), c.host + 1);
                let status = self.session(c.host, branch).map(volume::Session::status);
                return Some(format!("{}: {n} requests on n{host} are not answered: {status:?}", v.name));
            }
        }
        if let Some(why) = self.reader_waits() {
            return Some(why);
        }
        if let Some(why) = self.views_unrest() {
            return Some(why);
        }
        if !self.asked_all() {
            return Some("not everything has been asked yet".into());
        }
        let away = self.hosts.iter().position(|h| !h.runs());
        away.map(|h| format!("n{} does not run", h + 1))
    }

    pub fn check_rest(&mut self, until: Time) {
        self.counts.checked(Property::Live, 1);
        match self.unrest() {
            None => self.read_everything(),
            Some(why) if self.now > until => self.fail("LIVE", why),
            Some(_) => {}
        }
    }

    fn read_everything(&mut self) {
        self.check_all_views();
        self.phase = Phase::Reading { until: self.now + Span::secs(60) };
        for v in 0..self.volumes.len() {
            let open = self.volumes[v].clients.iter().rposition(|c| c.state == ClientState::Open && !c.old);
            let Some(client) = open else { continue };
            let blocks = self.volumes[v].layout.blocks;
            for first in (0..blocks).step_by(usize::try_from(STEP).expect("small")) {
                self.ask(v, client, Some((first, STEP.min(blocks - first))));
            }
        }
        self.put(Span(1), Due::Look);
    }

    pub fn check_reading(&mut self, until: Time) {
        self.counts.checked(Property::Live, 1);
        let left: usize =
            self.volumes.iter().flat_map(|v| &v.clients).map(crate::guest::Client::unanswered).sum();
        if left == 0 {
            self.phase = Phase::Done;
        } else if self.now > until {
            self.fail("LIVE", format!("{left} of the last reads are not answered"));
        }
    }
}
