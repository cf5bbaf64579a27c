//! The trace: a digest of everything that happened, and, if asked, the steps in words.

use proto::Time;
use std::fmt;

/// Never changes what happens; words are only made when they are wanted.
#[derive(Debug, Default)]
pub struct Trace {
    digest: u64,
    steps: u64,
    print: bool,
}

impl Trace {
    #[must_use]
    pub fn new(print: bool) -> Trace {
        Trace { print, ..Trace::default() }
    }
    /// One thing that happened: `code` and `detail` go into the digest, `words` only into the printed steps.
    pub fn step(&mut self, now: Time, code: u64, detail: u64, words: impl FnOnce() -> String) {
        self.steps += 1;
        for v in [now.0, code, detail] {
            self.digest = (self.digest ^ v).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        }
        if self.print {
            println!("{:7} {} {}", self.steps, Stamp(now), words());
        }
    }
    /// Words without a step of their own (a core's notice).
    pub fn note(&mut self, now: Time, words: impl FnOnce() -> String) {
        if self.print {
            println!("        {} {}", Stamp(now), words());
        }
    }
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

struct Stamp(Time);
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0.0 / 1000;
        write!(f, "{:4}.{:06}", us / 1_000_000, us % 1_000_000)
    }
}
