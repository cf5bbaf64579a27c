//! The command line: many seeds on all cores, one seed in steps, all bugs.

use sim::bugs::{self, Bug};
use sim::{Bugs, Counts, Options, Outcome};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

pub const HELP: &str = "\
Usage: sim [--seeds N] [--from K] [--nodes N] [--bug NAME]     run N seeds (default 200) from K (default 1)
       sim --seed N [--bug NAME] [--steps]                     run one seed, with --steps: print every step
                    [--watch VOLUME,CHUNK,BLOCK]               ... and every change of that block on any replica
       sim --bugs all [--seeds N]                              find a failing seed for every seeded bug
       sim --bugs recorded                                     run the recorded seed of every seeded bug
       sim --bugs list                                         name the seeded bugs
       --clones: every seed makes many clones (another history for the same seed)
       --threads T (default: all cores), --keep-going (do not stop at the first failing seed)";

/// Seeds that are known to show each bug, and by which property; `name seed PROPERTY` a line.
const RECORDED: &str = include_str!("../seeds.txt");

enum What {
    Seeds,
    One(u64),
    AllBugs,
    RecordedBugs,
    ListBugs,
}

pub struct Cli {
    what: What,
    seeds: u64,
    from: u64,
    nodes: Option<usize>,
    clones: bool,
    bug: Option<&'static Bug>,
    steps: bool,
    watch: Option<(usize, u32, u32)>,
    threads: usize,
    keep_going: bool,
}

impl Cli {
    pub fn parse(args: &[String]) -> Result<Cli, String> {
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let mut c = Cli {
            what: What::Seeds,
            seeds: 200,
            from: 1,
            nodes: None,
            clones: false,
            bug: None,
            steps: false,
            watch: None,
            threads,
            keep_going: false,
        };
        let mut i = args.iter();
        while let Some(arg) = i.next() {
            let mut value = || i.next().cloned().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--seeds" => c.seeds = number(&value()?)?,
                "--from" => c.from = number(&value()?)?,
                "--seed" => c.what = What::One(number(&value()?)?),
                "--nodes" => c.nodes = Some(nodes(&value()?)?),
                "--clones" => c.clones = true,
                "--threads" => {
                    c.threads = usize::try_from(number(&value()?)?.max(1)).map_err(|e| e.to_string())?
                }
                "--bug" => {
                    let name = value()?;
                    c.bug =
                        Some(bugs::named(&name).ok_or(format!("no bug is named {name}; see --bugs list"))?);
                }
                "--bugs" => {
                    c.what = match value()?.as_str() {
                        "all" => What::AllBugs,
                        "recorded" => What::RecordedBugs,
                        "list" => What::ListBugs,
                        other => return Err(format!("--bugs {other}: all, recorded or list")),
                    }
                }
                "--steps" => c.steps = true,
                "--watch" => c.watch = Some(watched(&value()?)?),
                "--keep-going" => c.keep_going = true,
                "--help" | "-h" => return Err("The simulator.".into()),
                other => return Err(format!("{other}?")),
            }
        }
        Ok(c)
    }

    pub fn run(&self) -> ExitCode {
        sim::run::catch_assertions();
        let good = match self.what {
            What::Seeds => self.seeds(),
            What::One(seed) => self.one(seed),
            What::AllBugs => self.all_bugs(),
            What::RecordedBugs => self.recorded_bugs(),
            What::ListBugs => {
                for b in bugs::ALL {
                    println!("{:26} {}", b.name, b.what);
                }
                true
            }
        };
        if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn options(&self, bugs: Bugs) -> Options {
        Options { nodes: self.nodes, clones: self.clones, bugs, steps: self.steps, watch: self.watch }
    }
    fn bugs(&self) -> Bugs {
        self.bug.map(Bug::bugs).unwrap_or_default()
    }
    fn replay(&self, seed: u64, bug: Option<&Bug>) -> String {
        let command = std::env::var("SIM_COMMAND").unwrap_or_else(|_| "sim".into());
        let bug = bug.map(|b| format!(" --bug {}", b.name)).unwrap_or_default();
        let nodes = self.nodes.map(|n| format!(" --nodes {n}")).unwrap_or_default();
        let clones = if self.clones { " --clones" } else { "" };
        format!("{command} --seed {seed}{nodes}{clones}{bug} --steps")
    }

    fn one(&self, seed: u64) -> bool {
        let o = sim::run(seed, self.options(self.bugs()));
        for line in o.counts.lines() {
            println!("{line}");
        }
        println!("seed {seed}: {} steps, {} ms of virtual time, digest {:016x}", o.steps, o.millis, o.digest);
        self.report(&o, self.bug)
    }

    /// True if the seed is good.
    fn report(&self, o: &Outcome, bug: Option<&Bug>) -> bool {
        let Some(f) = &o.failure else { return true };
        println!("seed {} FAILED after {} steps: {}: {}", o.seed, o.steps, f.property, f.detail);
        println!("  replay: {}", self.replay(o.seed, bug));
        false
    }

    /// Runs seeds on all threads; `each` hears every outcome and says whether to go on.
    fn each_seed(&self, from: u64, count: u64, bugs: Bugs, mut each: impl FnMut(Outcome) -> bool) {
        let next = AtomicU64::new(from);
        let stop = AtomicBool::new(false);
        let (tell, hear) = mpsc::channel();
        let options = self.options(bugs);
        std::thread::scope(|s| {
            for _ in 0..self.threads {
                let (tell, next, stop) = (tell.clone(), &next, &stop);
                s.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= from + count || tell.send(sim::run(seed, options)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(tell);
            for outcome in &hear {
                if !each(outcome) {
                    stop.store(true, Ordering::Relaxed);
                    break;
                }
            }
        });
    }

    fn seeds(&self) -> bool {
        let start = Instant::now();
        let (mut done, mut bad) = (0u64, 0u64);
        let mut counts = Counts::default();
        let (mut steps, mut millis) = (0u64, 0u64);
        self.each_seed(self.from, self.seeds, self.bugs(), |o| {
            done += 1;
            counts.add(&o.counts);
            steps += o.steps;
            millis += o.millis;
            if !self.report(&o, self.bug) {
                bad += 1;
            }
            if done % 100 == 0 {
                eprintln!("{done} seeds, {bad} failed, {:.1} s", start.elapsed().as_secs_f64());
            }
            bad == 0 || self.keep_going
        });
        for line in counts.lines() {
            println!("{line}");
        }
        let secs = start.elapsed().as_secs_f64();
        println!(
            "{done} seeds in {secs:.1} s: {} guest operations, {} faults, {steps} steps, {} s of virtual time, {bad} failed",
            counts.operations(),
            counts.faults_done(),
            millis / 1000
        );
        bad == 0 && self.nothing_missing(&counts, done)
    }

    fn nothing_missing(&self, counts: &Counts, done: u64) -> bool {
        let zeroes = counts.zeroes();
        // A handful of seeds need not meet everything.
        if zeroes.is_empty() || done < 50 {
            return true;
        }
        println!("FAILED: never done or never checked: {}", zeroes.join("; "));
        false
    }

    fn all_bugs(&self) -> bool {
        let mut survivors = vec![];
        for bug in bugs::ALL {
            let start = Instant::now();
            let mut found: Option<Outcome> = None;
            self.each_seed(self.from, self.seeds, bug.bugs(), |o| {
                if o.failure.is_some() {
                    found = Some(o);
                }
                found.is_none()
            });
            let secs = start.elapsed().as_secs_f64();
            match found {
                Some(o) => {
                    let f = o.failure.as_ref().map_or("", |f| f.property);
                    println!(
                        "{:26} seed {:<6} {f:10} {secs:6.1} s  {}",
                        bug.name,
                        o.seed,
                        self.replay(o.seed, Some(bug))
                    );
                }
                None => {
                    println!("{:26} SURVIVED {} seeds ({secs:.1} s): {}", bug.name, self.seeds, bug.what);
                    survivors.push(bug.name);
                }
            }
        }
        println!("{} of {} seeded bugs found", bugs::ALL.len() - survivors.len(), bugs::ALL.len());
        survivors.is_empty()
    }

    /// Every bug has recorded seeds, and one of them still shows it, by the property that is recorded with it: that is the
    /// bug's own effect, and nothing else that happens to go wrong.
    fn recorded_bugs(&self) -> bool {
        let mut good = true;
        for line in RECORDED.lines().filter(|l| recorded(l).is_none_or(|r| bugs::named(r.0).is_none())) {
            println!("{line}: not a bug, a seed and a property");
            good = false;
        }
        for bug in bugs::ALL {
            let seeds: Vec<_> =
                RECORDED.lines().filter_map(recorded).filter(|(name, ..)| *name == bug.name).collect();
            if seeds.is_empty() {
                println!("{:26} FAILED: has no recorded seed", bug.name);
                good = false;
                continue;
            }
            let shows = |(_, seed, property): &(&str, u64, &str)| {
                let failure = sim::run(*seed, self.options(bug.bugs())).failure;
                failure.is_some_and(|f| f.property == *property)
            };
            match seeds.into_iter().find(shows) {
                Some((_, seed, property)) => println!("{:26} found by seed {seed}: {property}", bug.name),
                None => {
                    println!("{:26} FAILED: not found by its recorded seeds", bug.name);
                    good = false;
                }
            }
        }
        good
    }
}

/// A line of the record: bug, seed, property.
fn recorded(line: &str) -> Option<(&str, u64, &str)> {
    let mut words = line.split(' ');
    let (name, seed, property) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    words.next().is_none().then_some((name, seed, property))
}

fn number(text: &str) -> Result<u64, String> {
    text.replace('_', "").parse().map_err(|_| format!("{text} is not a number"))
}
fn watched(text: &str) -> Result<(usize, u32, u32), String> {
    let parts: Vec<u32> = text.split(',').filter_map(|p| p.parse().ok()).collect();
    match parts[..] {
        [volume, chunk, block] if volume > 0 => Ok((volume as usize - 1, chunk, block)),
        _ => Err(format!("--watch {text}: volume (1 ..), chunk, block")),
    }
}
fn nodes(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (3..=7).contains(n)).ok_or(format!("--nodes {text}: 3 to 7"))
}
