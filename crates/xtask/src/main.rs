//! `cargo xtask`: the project's own commands. It links no daemon: it builds them with cargo and runs them as
//! a user would.

mod bench;
mod build;
mod clones;
mod cluster;
mod demo;
mod e2e;
mod load;
mod operator;
mod prove;
mod purity;
mod resize;
mod sim;
mod space;
mod steps;
mod streams;
mod tools;
mod trash;
mod verify;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask COMMAND

  verify                 what CI runs: formatting, lints, tests, simulator seeds, end-to-end checks in short
  e2e [WORD..]           the end-to-end checks of verify, alone; those with such a word in their name
  demo                   a cluster of seven nodes on this machine, a node killed under load, nothing lost
  prove [NAME..]         each claim shown in full: PASS or FAIL, and its figures
  bench [quick|idle]     4k and 1M through NBD on seven nodes beside the raw file; CPU of an idle cluster
  bench snapshots [quick]  writes after snapshots, reads through snapshots and clones, beside those without
  sim [ARGS..]           the simulator; `cargo xtask sim --help` lists its options
";

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let rest: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    std::env::set_current_dir(build::root())?;
    match args.first().map(String::as_str) {
        Some("verify") => verify::run(&rest),
        Some("e2e") => verify::end_to_end_only(&rest),
        Some("demo") => demo::run(&rest),
        Some("bench") => bench::run(&rest),
        Some("prove") => prove::run(&rest),
        Some("sim") => sim::run(&rest),
        None | Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            Ok(())
        }
        Some(other) => bail!("unknown command \"{other}\"\n{USAGE}"),
    }
}
