//! Time is an argument. `Time` is nanoseconds of the clock that the edge reads (CLOCK_BOOTTIME)
//! or of the simulator; only differences mean anything, and only within one process.

use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};

/// A moment, in nanoseconds of an arbitrary start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct Time(pub u64);

/// A length of time, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct Span(pub u64);

impl Span {
    #[must_use]
    pub const fn millis(n: u64) -> Span {
        Span(n * 1_000_000)
    }
    #[must_use]
    pub const fn micros(n: u64) -> Span {
        Span(n * 1_000)
    }
    #[must_use]
    pub const fn secs(n: u64) -> Span {
        Span(n * 1_000_000_000)
    }
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }
}
impl Time {
    pub const ZERO: Time = Time(0);
    pub const FAR: Time = Time(u64::MAX);
    /// How long ago `earlier` was; zero if it lies ahead.
    #[must_use]
    pub const fn since(self, earlier: Time) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}
impl Add<Span> for Time {
    type Output = Time;
    fn add(self, s: Span) -> Time {
        Time(self.0.saturating_add(s.0))
    }
}
impl Sub<Span> for Time {
    type Output = Time;
    fn sub(self, s: Span) -> Time {
        Time(self.0.saturating_sub(s.0))
    }
}
