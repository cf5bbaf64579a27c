//! MIN (promise 2): nothing is acknowledged with fewer than `min_in_sync` in-sync replicas.
//!
//! Judged for requests within one extent: a longer one is written piece by piece, each acknowledged in its own time.

use super::Asked;
use crate::counts::Property;
use crate::layout::blocks_of;
use crate::net::HostIndex;
use crate::world::World;
use std::collections::BTreeSet;

impl World {
    pub fn check_min(&mut self, v: usize, host: HostIndex, asked: &Asked) {
        let Some((branch, epoch, min)) = self.session_of(v) else { return };
        // A late answer of an older session counts by what was in force then.
        if self.session_epoch(host, branch) != Some(epoch) {
            return;
        }
        let extents: BTreeSet<_> = blocks_of(&asked.op).map(|b| (b.0, b.1 / 16)).collect();
        if extents.len() != 1 {
            return;
        }
        let chunks: BTreeSet<_> = blocks_of(&asked.op).map(|b| b.0).collect();
        for chunk in chunks {
            let Some(c) = self.metad.configuration(branch, chunk) else { continue };
            self.counts.checked(Property::Min, 1);
            if c.in_sync_count() < usize::from(min) {
                let n = c.in_sync_count();
                self.fail("MIN", format!("{branch} {chunk}: acknowledged with {n} in-sync replicas"));
            }
        }
    }
}
