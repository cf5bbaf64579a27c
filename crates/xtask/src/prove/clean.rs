//! A clean clone in a minimal Debian.

use crate::{build, tools};
use anyhow::{Result, bail};
use std::fmt::Write as _;
use std::process::Command;
use std::time::Instant;

/// `verify` must end within this, build included.
const LIMIT_SECS: f64 = 25.0 * 60.0;

pub fn run() -> Result<String> {
    if !tools::have("debootstrap") {
        bail!("needs root and debootstrap: apt-get install debootstrap");
    }
    let mut figures = String::new();
    for who in ["root", "user"] {
        for what in ["demo", "verify"] {
            let start = Instant::now();
            build::run(Command::new("tools/clean-room.sh").args([who, "cargo", "xtask", what]))?;
            let secs = start.elapsed().as_secs_f64();
            let _ = writeln!(figures, "{what} as {who}: {:.1} minutes, build included", secs / 60.0);
            if what == "verify" && secs > LIMIT_SECS {
                bail!("verify took longer than 25 minutes\n{figures}");
            }
        }
    }
    Ok(figures)
}
