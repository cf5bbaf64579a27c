//! `cargo xtask prove [NAME..]`: each thing the project claims, shown in full, with PASS or FAIL and its figures.

mod clean;
mod instant;
mod measured;
mod simulated;
mod snapshots;
mod survives;

use anyhow::{Result, bail};
use std::time::Instant;

struct Entry {
    name: &'static str,
    claim: &'static str,
    /// Figures, or what went wrong.
    show: fn() -> Result<String>,
}

const ENTRIES: &[Entry] = &[
    Entry {
        name: "spine-1",
        claim: "a clean clone in a minimal Debian with gcc and Rust: demo and verify, as root and as a plain user",
        show: clean::run,
    },
    Entry { name: "spine-2", claim: "real clients agree; fio verifies for 60 s", show: survives::clients },
    Entry {
        name: "spine-3",
        claim: "a replica's node killed under load; resync; rolling restart",
        show: survives::replica,
    },
    Entry { name: "spine-4", claim: "metad's leader killed under load", show: survives::leader },
    Entry {
        name: "spine-5",
        claim: "all processes killed under load, ten times",
        show: survives::all_killed,
    },
    Entry { name: "spine-6", claim: "the session's blockd killed, its node gone", show: survives::session },
    Entry {
        name: "spine-7",
        claim: "a node gone for good: its chunks are placed anew",
        show: survives::gone,
    },
    Entry {
        name: "spine-8",
        claim: "1,000 simulator seeds in 3 minutes, and every seeded bug is found",
        show: simulated::run,
    },
    Entry {
        name: "spine-9",
        claim: "first step of the speed aims, beside the raw file",
        show: measured::speed,
    },
    Entry { name: "spine-10", claim: "an idle cluster uses less than 3 % of one core", show: measured::idle },
    Entry {
        name: "snap-1",
        claim: "snapshot, clone, rollback of 100 GiB in use: within 50 ms, and I/O stalls less than 20 ms",
        show: instant::run,
    },
    Entry {
        name: "snap-3",
        claim: "1,000 snapshots, deleted in random order under I/O: the space is what the model says",
        show: snapshots::thousand,
    },
    Entry {
        name: "snap-4",
        claim: "a snapshot equals a copy taken at that time, through rewriting and the loss of a node",
        show: snapshots::compare,
    },
    Entry {
        name: "snap-5",
        claim: "a clone costs no space until it is written; 100 clones in less than 10 s",
        show: crate::clones::hundred,
    },
    Entry {
        name: "snap-6",
        claim: "20 snapshots moved to another cluster by increments, each bit for bit; damaged streams leave nothing",
        show: crate::streams::twenty,
    },
    Entry {
        name: "snap-7",
        claim: "3,000 simulator seeds with snapshots in 10 minutes; every seeded bug is found within them",
        show: simulated::snapshots,
    },
];

pub fn run(names: &[&str]) -> Result<()> {
    for n in names {
        if !ENTRIES.iter().any(|e| e.name == *n) {
            let known: Vec<&str> = ENTRIES.iter().map(|e| e.name).collect();
            bail!("no entry \"{n}\"; there are {}", known.join(", "));
        }
    }
    let (mut passed, mut failed) = (0, 0);
    for e in ENTRIES.iter().filter(|e| names.is_empty() || names.contains(&e.name)) {
        println!("{}: {}", e.name, e.claim);
        let start = Instant::now();
        let result = (e.show)();
        let secs = start.elapsed().as_secs_f64();
        match result {
            Ok(figures) => {
                passed += 1;
                println!("PASS {} ({secs:.0} s)\n{}\n", e.name, indent(&figures));
            }
            Err(why) => {
                failed += 1;
                println!("FAIL {} ({secs:.0} s)\n{}\n", e.name, indent(&format!("{why:#}")));
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        bail!("not all was shown");
    }
    Ok(())
}

fn indent(text: &str) -> String {
    text.trim_end().lines().map(|l| format!("    {l}")).collect::<Vec<_>>().join("\n")
}
