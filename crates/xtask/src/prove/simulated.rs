//! The simulator: clean seeds, and proof that it bites.

use crate::sim;
use anyhow::{Result, bail};
use std::time::Instant;

const LIMIT_SECS: f64 = 180.0;
const SNAPSHOTS_LIMIT_SECS: f64 = 600.0;

pub fn run() -> Result<String> {
    sim::run(&["--seeds", "1"])?; // builds
    let start = Instant::now();
    sim::run(&["--seeds", "1000"])?;
    let secs = start.elapsed().as_secs_f64();
    if secs > LIMIT_SECS {
        bail!("1,000 seeds took {secs:.0} s, more than {LIMIT_SECS:.0}");
    }
    sim::run(&["--bugs", "all", "--seeds", "1000"])?;
    Ok(format!("1,000 seeds clean in {secs:.0} s; every seeded bug found within 1,000 seeds"))
}

/// snap-7: the same, wider: every seed's operator makes snapshots, clones and rollbacks.
pub fn snapshots() -> Result<String> {
    sim::run(&["--seeds", "1"])?; // builds
    let start = Instant::now();
    sim::run(&["--seeds", "3000"])?;
    let secs = start.elapsed().as_secs_f64();
    if secs > SNAPSHOTS_LIMIT_SECS {
        bail!("3,000 seeds took {secs:.0} s, more than {SNAPSHOTS_LIMIT_SECS:.0}");
    }
    sim::run(&["--bugs", "all", "--seeds", "3000"])?;
    Ok(format!("3,000 seeds clean in {secs:.0} s; every seeded bug found within them"))
}
