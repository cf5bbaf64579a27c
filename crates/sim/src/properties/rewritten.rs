//! FLUSH, seen from the drives: when a session begins to serve, what it has written anew is flushed on every in-sync
//! replica. What was chosen then has been told to a guest: after a power loss of all, another choice would un-happen it.

use crate::counts::Property;
use crate::layout::CHUNK_BLOCKS;
use crate::net::HostIndex;
use crate::world::World;
use proto::ChunkIndex;

impl World {
    /// An export has just opened on this host.
    pub fn check_rewritten(&mut self, v: usize, host: HostIndex) {
        let Some((branch, epoch, _)) = self.session_of(v) else { return };
        // Only at the very first service: afterwards there are the guest's own writes.
        if self.serving_host(branch, epoch) != Some(host) || self.atlas.has_served(branch, epoch) {
            return;
        }
        let l = self.volumes[v].layout;
        for b in l.first..l.first + l.blocks {
            let chunk = ChunkIndex(u32::try_from(b / CHUNK_BLOCKS).expect("few chunks"));
            let block = u32::try_from(b % CHUNK_BLOCKS).expect("within a chunk");
            let Some(c) = self.metad.configuration(branch, chunk) else { continue };
            for m in c.in_sync() {
                let at = crate::effects::index_of(m.place.node);
                let Some((_, version)) = self.found(at, m.place.drive, branch, chunk, block) else {
                    continue;
                };
                let Some((_, flushed)) = self.at_rest(at, m.place.drive, branch, chunk, block) else {
                    continue;
                };
                if version.epoch != epoch {
                    continue;
                }
                self.counts.checked(Property::Flush, 1);
                if !flushed {
                    let d = m.place.drive;
                    let text = format!(
                        "{branch} {chunk} block {block}: epoch {epoch} serves, and on {d} its rewrite is not flushed"
                    );
                    return self.fail("FLUSH", text);
                }
            }
        }
    }
}
