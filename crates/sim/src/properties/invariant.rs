//! The invariant of section 3: the in-sync set in Raft is a subset of the replicas whose acknowledgement the volume's
//! session requires. Always, for every chunk of every branch. (While the session is the current one, and serves.)

use crate::counts::Property;
use crate::world::World;

impl World {
    pub fn check_invariant(&mut self) {
        let branches: Vec<_> = self.metad.state.branches().keys().copied().collect();
        for branch in branches {
            let Some((epoch, _)) = self.metad.session_of(branch) else { continue };
            let Some(host) = self.serving_host(branch, epoch) else { continue };
            for (chunk, c) in self.metad.configurations(branch) {
                if c.number.0 == 0 {
                    continue;
                }
                let required = self.required(host, branch, chunk);
                for m in c.in_sync() {
                    self.counts.checked(Property::Invariant, 1);
                    if !required.contains(&m.place.drive) {
                        let d = m.place.drive;
                        let text = format!(
                            "{branch} {chunk}: Raft calls {d} in-sync, the session requires {required:?}"
                        );
                        return self.fail("INVARIANT", text);
                    }
                    // ONE, seen from the drives: whoever serves has been stored by every in-sync replica.
                    if let Some(known) = self.stored_epoch(m.place, branch) {
                        self.counts.checked(Property::One, 1);
                        if known < epoch {
                            let d = m.place.drive;
                            let text = format!(
                                "{branch} on {d}: epoch {known} is stored while epoch {epoch} serves"
                            );
                            return self.fail("ONE", text);
                        }
                    }
                }
            }
        }
        self.metad.check();
    }
}
