//! Latencies in buckets that grow by a thirty-second: bounded memory, three per cent of error.

use std::time::Duration;

/// log2 of the buckets per octave.
const FINE: u32 = 5;
const BUCKETS: usize = (64 << FINE) as usize;

/// Durations, counted in nanoseconds.
#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    longest: Duration,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: vec![0; BUCKETS], total: 0, longest: Duration::ZERO }
    }
}

fn bucket(ns: u64) -> usize {
    let octave = ns.max(1).ilog2();
    if octave < FINE {
        return usize::try_from(ns).expect("less than 32");
    }
    let fine = (ns >> (octave - FINE)) - (1 << FINE);
    usize::try_from(u64::from((octave - FINE + 1) << FINE) + fine).expect("less than BUCKETS")
}

/// Least value of a bucket.
fn floor(bucket: usize) -> u64 {
    let (octave, fine) = (bucket >> FINE, (bucket & ((1 << FINE) - 1)) as u64);
    if octave == 0 { fine } else { ((1 << FINE) + fine) << (octave - 1) }
}

impl Histogram {
    pub fn add(&mut self, d: Duration) {
        let ns = u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.longest = self.longest.max(d);
    }
    #[must_use]
    pub fn count(&self) -> u64 {
        self.total
    }
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.longest
    }
    /// The duration that `percent` of all do not exceed; zero if there are none.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> Duration {
        let wanted = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (i, n) in self.counts.iter().enumerate() {
            seen += n;
            if seen >= wanted {
                return Duration::from_nanos(floor(i + 1).saturating_sub(1)).min(self.longest);
            }
        }
        self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_without_gaps() {
        for b in 0..BUCKETS - (5 << FINE) {
            assert_eq!(bucket(floor(b)), b);
            assert_eq!(bucket(floor(b + 1) - 1), b);
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn percentiles_are_near_the_truth() {
        let mut h = Histogram::default();
        assert_eq!(h.percentile(50), Duration::ZERO);
        for us in 1..=1000 {
            h.add(Duration::from_micros(us));
        }
        for p in [1, 50, 99, 100] {
            let truth = p as f64 * 10.0;
            let got = h.percentile(p).as_secs_f64() * 1e6;
            assert!((got - truth).abs() <= truth * 0.04 + 0.1, "p{p}: {got}");
        }
        assert_eq!(h.longest(), Duration::from_micros(1000));
        assert_eq!(h.count(), 1000);
    }
}
