//! Which peers leave the leader's messages without an answer, and since when.
//!
//! openraft tells how far each peer's log is, which says nothing of a peer that died while nothing was written; but the
//! leader sends every peer a heartbeat, and here is noted which of them were answered.

use super::types::MetadId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Messages further apart than this belong to different times of leadership: what was unanswered before does not count.
const GAP: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
struct Unanswered {
    first: Instant,
    last: Instant,
}

/// Shared by the network, which notes, and by those who report.
#[derive(Clone, Debug, Default)]
pub struct Silence {
    peers: Arc<Mutex<BTreeMap<MetadId, Unanswered>>>,
}

impl Silence {
    fn peers(&self) -> MutexGuard<'_, BTreeMap<MetadId, Unanswered>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message goes to this peer.
    pub fn asked(&self, peer: MetadId, now: Instant) {
        let mut peers = self.peers();
        let unanswered = peers.entry(peer).or_insert(Unanswered { first: now, last: now });
        if now.saturating_duration_since(unanswered.last) > GAP {
            unanswered.first = now;
        }
        unanswered.last = now;
    }

    /// It has answered.
    pub fn answered(&self, peer: MetadId) {
        self.peers().remove(&peer);
    }

    /// Peers that have answered nothing for at least so long, each with for how long.
    #[must_use]
    pub fn silent(&self, now: Instant, limit: Duration) -> BTreeMap<MetadId, Duration> {
        let since = |u: &Unanswered| now.saturating_duration_since(u.first);
        self.peers().iter().map(|(id, u)| (*id, since(u))).filter(|(_, d)| *d >= limit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    #[test]
    fn silence_counts_from_the_first_message_without_an_answer() {
        let (s, t) = (Silence::default(), Instant::now());
        let at = |ms| t + Duration::from_millis(ms);
        s.asked(2, at(0));
        s.asked(3, at(0));
        s.answered(3);
        s.asked(2, at(600));
        s.asked(3, at(600));
        assert!(s.silent(at(900), LIMIT).is_empty(), "not for long enough");
        assert_eq!(s.silent(at(1200), LIMIT), BTreeMap::from([(2, Duration::from_millis(1200))]));
        s.answered(2);
        assert!(s.silent(at(9000), LIMIT).keys().eq([&3]), "one that answers again is not silent");
    }

    #[test]
    fn what_an_earlier_leadership_left_without_an_answer_does_not_count() {
        let (s, t) = (Silence::default(), Instant::now());
        s.asked(2, t);
        let later = t + Duration::from_secs(60);
        s.asked(2, later);
        assert!(s.silent(later + LIMIT / 2, LIMIT).is_empty());
        assert_eq!(s.silent(later + LIMIT, LIMIT).len(), 1);
    }
}
