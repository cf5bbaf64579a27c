//! Whether the leader's wall clock can be believed: the nodes tell theirs with each heartbeat.
//!
//! What a calendar decides alone (to erase what has rested long enough, snapshots by schedule and the end of those that
//! are no longer kept) waits while the leader's clock is apart from most nodes', or while it has not heard them. An
//! operator's own words are obeyed whatever the clocks say. Owns what was heard; decides nothing of safety.

use crate::service::Service;
use crate::state::MetaState;
use crate::view::{Health, HealthCheck};
use proto::{NodeId, Span, Time};
use std::collections::BTreeMap;

/// The leader's clock may be this far from the nodes' median, in milliseconds.
const APART_MS: u64 = 60_000;
/// A clock that was told longer ago is not counted.
const HEARD: Span = Span::secs(30);

#[derive(Debug, Default)]
pub(crate) struct Clocks {
    /// When it was told, and by how many milliseconds it is ahead of the leader's.
    ahead: BTreeMap<NodeId, (Time, i64)>,
}

impl Clocks {
    pub fn told(&mut self, now: Time, own_ms: u64, node: NodeId, wall_ms: u64) {
        let ms = |t: u64| i64::try_from(t).unwrap_or(i64::MAX);
        self.ahead.insert(node, (now, ms(wall_ms).saturating_sub(ms(own_ms))));
    }
    /// By how much most nodes are ahead of the leader; `None`: nobody was heard lately.
    fn median_ms(&self, now: Time) -> Option<i64> {
        let lately = self.ahead.values().filter(|(at, _)| now.since(*at) < HEARD);
        let mut all: Vec<i64> = lately.map(|(_, ms)| *ms).collect();
        all.sort_unstable();
        // The smaller of the two in the middle: of two nodes one that agrees is enough to stand against the other.
        let low = all.get(all.len().saturating_sub(1) / 2)?;
        let high = all.get(all.len() / 2)?;
        Some(if low.abs() <= high.abs() { *low } else { *high })
    }
}

impl Service {
    /// May a calendar decide?
    pub(crate) fn clock_is_sound(&self, state: &MetaState) -> bool {
        match self.clocks.median_ms(self.now) {
            Some(ms) => ms.unsigned_abs() <= APART_MS,
            None => state.nodes().is_empty(),
        }
    }

    pub(crate) fn clock_check(&self, checks: &mut Vec<HealthCheck>) {
        let Some(ms) = self.clocks.median_ms(self.now).filter(|ms| ms.unsigned_abs() > APART_MS) else {
            return;
        };
        let by = ms.unsigned_abs() / 1000;
        let where_to = if ms > 0 { "behind" } else { "ahead of" };
        checks.push(HealthCheck {
            health: Health::Warn,
            code: "CLOCK_APART".into(),
            text: format!("the clock of the leading metad is {by} s {where_to} those of the nodes"),
            since_ms: None,
            action: "set it right (NTP): until then nothing leaves the trash by itself, and policies rest"
                .into(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_nodes_decide_and_old_words_do_not_count() {
        let mut c = Clocks::default();
        let at = Time::ZERO + Span::secs(100);
        assert_eq!(c.median_ms(at), None);
        c.told(at, 1_000_000, NodeId(1), 1_000_100);
        assert_eq!(c.median_ms(at), Some(100));
        c.told(at, 1_000_000, NodeId(2), 9_000_000);
        assert_eq!(c.median_ms(at), Some(100), "one of two");
        c.told(at, 1_000_000, NodeId(3), 9_000_000);
        assert_eq!(c.median_ms(at), Some(8_000_000));
        assert_eq!(c.median_ms(at + HEARD), None);
        c.told(at + HEARD, 1_000_000, NodeId(3), 900_000);
        assert_eq!(c.median_ms(at + HEARD), Some(-100_000));
    }
}
