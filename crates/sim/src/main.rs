//! `sim`: runs seeds, finds seeded bugs, replays one seed step by step.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--help" || a == "-h") {
        println!("{}", cli::HELP);
        return ExitCode::SUCCESS;
    }
    match cli::Cli::parse(&args) {
        Ok(cli) => cli.run(),
        Err(why) => {
            eprintln!("{why}\n\n{}", cli::HELP);
            ExitCode::from(2)
        }
    }
}
