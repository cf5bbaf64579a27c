//! The simulator, built with optimizations and with its seeded bugs compiled in (all off unless named).

use crate::build::{self, Profile};
use anyhow::Result;
use std::process::Command;

pub fn run(args: &[&str]) -> Result<()> {
    let bin = build::build(Profile::Sim, &["sim"], &[])?.join("sim");
    build::run(Command::new(bin).args(args).env("SIM_COMMAND", "cargo xtask sim"))
}
