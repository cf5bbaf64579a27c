//! Shows what a drive says of itself; changes nothing.

use anyhow::Context;
use blockd::device::{Access, open};
use blockd::inspect::inspect;
use clap::Parser;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(
    name = "blockd-inspect",
    version,
    about = "Shows a drive's superblock, records, table and journal as JSON"
)]
struct Arguments {
    path: PathBuf,
    /// Also while a blockd uses the drive: what is read then may not belong together.
    #[arg(long)]
    force: bool,
}

fn main() -> ExitCode {
    blockd::finish(run())
}

fn run() -> anyhow::Result<ExitCode> {
    let a = Arguments::parse();
    let access = if a.force { Access::ReadOnlyShared } else { Access::ReadOnly };
    let drive =
        open(&a.path, access, Duration::ZERO).context("cannot inspect (--force looks at a drive in use)")?;
    let report = inspect(&drive).context("cannot inspect")?;
    // Whoever reads it may have seen enough.
    let _ = writeln!(std::io::stdout(), "{report:#}");
    Ok(ExitCode::SUCCESS)
}
