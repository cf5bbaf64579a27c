//! The pure crates stay pure: nothing in their normal dependencies may bring a runtime, a ring or libc.

use crate::build;
use anyhow::{Result, bail};

pub const PURE: &[&str] =
    &["proto", "store", "volume", "nbd", "node", "meta", "oracle", "schedule", "stream"];
const BANNED: &[&str] =
    &["libc", "io-uring", "tokio", "mio", "rustix", "nix", "rand", "getrandom", "tonic", "redb", "openraft"];

pub fn check() -> Result<()> {
    for krate in PURE {
        let tree = build::output(
            build::cargo().args(["tree", "-e", "normal", "--prefix", "none", "-f", "{p}", "-p", krate]),
        )?;
        for line in tree.lines() {
            let name = line.split_whitespace().next().unwrap_or("");
            if BANNED.contains(&name) {
                bail!("{krate} is a pure crate and depends on {name} (cargo tree -e normal -p {krate})");
            }
        }
    }
    Ok(())
}
