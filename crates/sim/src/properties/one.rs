//! ONE: no in-sync replica acknowledges, and no lease check succeeds, under epoch e after epoch e+1 answered its first
//! I/O.
//!
//! Seen from the guests: a request that an older attachment asked after a newer one's first answer is never answered
//! with success (a read needs a lease check after it was asked, a write acknowledgements). Seen from the drives: an
//! in-sync replica knows the epoch that serves (`invariant` checks it beside the sets).

use super::Asked;
use crate::counts::Property;
use crate::world::World;
use proto::Time;
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
        self.counts.checked(Property::One, 1);
        if asked.client < newest && asked.at > since {
            self.fail("ONE", format!("volume {v}: client {} is served after client {newest}", asked.client));
        }
    }
}
