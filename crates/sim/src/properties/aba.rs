//! ABA: every Raft command may be applied twice and arbitrarily late, and no other property breaks.
//!
//! Beyond that: a command that comes a second time changes no volume, session or configuration any more.

use crate::counts::Property;
use crate::world::World;

impl World {
    /// A command came again: `changed` names what it changed.
    pub fn check_aba(&mut self, command: &str, changed: &[String]) {
        self.counts.checked(Property::Aba, 1);
        if !changed.is_empty() {
            self.fail("ABA", format!("{command}, applied a second time, changed {}", changed.join(", ")));
        }
    }
}
