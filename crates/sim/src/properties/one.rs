//! ONE: no in-sync replica acknowledges, and no lease check succeeds, under epoch e after epoch e+1 answered its first
//! I/O.
//!
//! Seen from the guests: a request that an older attachment asked after a newer one's first answer is never answered
//! with success (a read needs a lease check after it was asked, a write acknowledgements). Seen from the drives: an
//! in-sync replica knows the epoch that serves (`invariant` checks it beside the sets). Seen from the leases: an older session
//! that still lives anywhere lacks one that it needs; nor has one of the branch that a volume was before a rollback all.

use super::Asked;
use crate::counts::Property;
use crate::world::World;
use proto::control::SessionKind;
use proto::{ChunkIndex, Time};
use std::collections::BTreeMap;
use volume::GuestOp;

#[derive(Debug, Default)]
pub struct One {
    /// Per volume: the newest client that has had an answer, and when it had its first.
    first: BTreeMap<usize, (u32, Time)>,
}

impl World {
    pub fn check_one(&mut self, v: usize, asked: &Asked) {
        if matches!(asked.op, GuestOp::Flush) {
            return; // with nothing to flush it asks nobody
        }
        let now = self.now;
        let first = self.watchers.one.first.entry(v).or_insert((asked.client, now));
        if first.0 < asked.client {
            *first = (asked.client, now);
        }
        let (newest, since) = *first;
        if asked.client == newest && since == now {
            self.check_older_leases(v);
        }
        self.counts.checked(Property::One, 1);
        if asked.client < newest && asked.at > since {
            self.fail("ONE", format!("volume {v}: client {} is served after client {newest}", asked.client));
        }
    }

    /// A volume that was rolled back is served: no guest's session of what it was before would be.
    pub fn check_predecessors(&mut self, v: usize) {
        if self.session_of(v).is_none_or(|(branch, epoch, _)| self.serving_host(branch, epoch).is_none()) {
            return;
        }
        let name = self.volumes[v].name.clone();
        let before =
            self.volumes.iter().filter(|o| o.name == name).filter_map(|o| Some((o.branch?, o.gone?)));
        for (branch, ended) in before.collect::<Vec<_>>() {
            for host in 0..self.hosts.len() {
                let session = self
                    .session(host, branch)
                    .filter(|s| s.epoch() <= ended && s.is_serving() && s.kind() == SessionKind::Guest);
                let chunks = session.map_or(0, volume::Session::chunks);
                for chunk in (0..chunks).filter_map(|c| u32::try_from(c).ok()) {
                    self.counts.checked(Property::One, 1);
                    if self.leased(host, branch, ChunkIndex(chunk)) {
                        let text = format!(
                            "{name} is served after a rollback: n{} holds all leases of {branch} c{chunk}, its past",
                            host + 1
                        );
                        return self.fail("ONE", text);
                    }
                }
            }
        }
    }

    /// While a session serves, no older one's lease check would succeed: somebody whose lease it needs has taken it
    /// back, or it has run out.
    pub fn check_older_leases(&mut self, v: usize) {
        let Some((branch, epoch, _)) = self.session_of(v) else { return };
        if self.serving_host(branch, epoch).is_none() {
            return;
        }
        for host in 0..self.hosts.len() {
            let Some(chunks) = self.older_session(host, branch, epoch) else { continue };
            for chunk in 0..chunks {
                self.counts.checked(Property::One, 1);
                if self.leased(host, branch, ChunkIndex(chunk)) {
                    let text = format!(
                        "{branch} c{chunk}: n{} holds all leases of an older epoch while epoch {epoch} serves",
                        host + 1
                    );
                    return self.fail("ONE", text);
                }
            }
        }
    }
}
