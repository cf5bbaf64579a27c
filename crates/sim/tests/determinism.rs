//! The same seed gives the same run: twice in one process, and in another process.

use sim::Options;
use std::process::Command;

fn digest(seed: u64) -> (u64, u64) {
    let o = sim::run(seed, Options::default());
    (o.digest, o.steps)
}

#[test]
fn the_same_seed_gives_the_same_steps_twice() {
    assert_eq!(digest(3), digest(3));
}

#[test]
fn other_seeds_give_other_steps() {
    assert_ne!(digest(3), digest(4));
}

#[test]
fn the_same_seed_gives_the_same_steps_in_another_process() {
    let (here, _) = digest(5);
    let out = Command::new(env!("CARGO_BIN_EXE_sim")).args(["--seed", "5"]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains(&format!("digest {here:016x}")), "another process says: {text}");
}
