//! How long guests waited, counted in fixed buckets: two additions per request, no allocation, no clock of its own
//! (times are those of the shard's turns).

use nbd::Op;
use proto::{Span, Time};

/// Upper ends of the buckets, microseconds; what took longer is in the one after the last.
pub const BOUNDS: [u64; 15] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000,
    30_000_000,
];

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Read,
    Write,
    Flush,
    /// Discards and zeroes.
    Zero,
    /// Block status.
    Map,
}

impl Kind {
    pub const ALL: [Kind; 5] = [Kind::Read, Kind::Write, Kind::Flush, Kind::Zero, Kind::Map];

    #[must_use]
    pub fn of(op: &Op) -> Kind {
        match op {
            Op::Read { .. } => Kind::Read,
            Op::Write { .. } => Kind::Write,
            Op::Flush => Kind::Flush,
            Op::Discard { .. } | Op::WriteZeroes { .. } => Kind::Zero,
            Op::Map { .. } | Op::Changes { .. } => Kind::Map,
        }
    }
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => "flush",
            Kind::Zero => "zero",
            Kind::Map => "map",
        }
    }
}

/// One kind's.
#[derive(Clone, Copy, Default, Debug)]
pub struct Histogram {
    pub buckets: [u64; BOUNDS.len() + 1],
    /// Nanoseconds, of all of them.
    pub sum: u64,
}

#[derive(Clone, Copy, Default, Debug)]
pub struct Latencies([Histogram; Kind::ALL.len()]);

impl Latencies {
    pub fn add(&mut self, kind: Kind, took: Span) {
        let h = &mut self.0[kind as usize];
        // A microsecond begun counts: what took 50.1 us did not take at most 50.
        let micros = took.0.div_ceil(1000);
        h.buckets[BOUNDS.partition_point(|&b| b < micros)] += 1;
        h.sum = h.sum.saturating_add(took.0);
    }
    #[must_use]
    pub fn of(&self, kind: Kind) -> &Histogram {
        &self.0[kind as usize]
    }
}

/// Of a request on its way.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub kind: Kind,
    pub since: Time,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_falls_into_the_first_bucket_that_holds_it() {
        let mut l = Latencies::default();
        for (nanos, bucket) in [(0, 0), (50_000, 0), (50_001, 1), (30_000_000_000, 14), (30_000_000_001, 15)]
        {
            let before = l.of(Kind::Read).buckets[bucket];
            l.add(Kind::Read, Span(nanos));
            assert_eq!(l.of(Kind::Read).buckets[bucket], before + 1, "{nanos}");
        }
        assert_eq!(l.of(Kind::Read).buckets.iter().sum::<u64>(), 5);
        assert_eq!(l.of(Kind::Read).sum, 60_000_100_002);
        assert_eq!(l.of(Kind::Flush).buckets, [0; 16]);
        assert!(BOUNDS.is_sorted());
    }
}
