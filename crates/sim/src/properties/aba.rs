//! ABA: every Raft command may be applied twice and arbitrarily late, and no other property breaks.
//!
//! Beyond that: a command that comes a second time changes no volume, session or configuration any more, nor does one
//! of a session that is over.

use crate::counts::Property;
use crate::world::World;

impl World {
    /// A command came again, or after its session: `changed` names what it changed.
    pub fn check_aba(&mut self, command: &str, twice: bool, changed: &[String]) {
        self.counts.checked(Property::Aba, 1);
        if !changed.is_empty() {
            let when = if twice { "a second time" } else { "after its session" };
            self.fail("ABA", format!("{command}, applied {when}, changed {}", changed.join(", ")));
        }
    }
}
