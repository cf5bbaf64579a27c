//! `cargo xtask verify`: what the README tells a user to run, and what CI runs. It changes nothing outside the
//! target folder and temporary folders of its own.

use crate::steps::{Outcome, Steps};
use crate::{build, clones, e2e, operator, purity, sim, space, streams, tools, trash};
use anyhow::{Result, bail};

pub fn run(args: &[&str]) -> Result<()> {
    if !args.is_empty() {
        bail!("verify takes no arguments");
    }
    let mut s = Steps::new();
    // First: the tests below use them too, and would skip in silence what is not there.
    let missing = tools::install_clients();
    s.step("formatting", || cargo(&["fmt", "--all", "--check"]));
    s.step("pure crates stay pure", || purity::check().map(|()| Outcome::Passed));
    s.step("lints", || cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]));
    s.step("unit and property tests", || {
        let mut tests = build::cargo();
        tests.args(["test", "--quiet", "--workspace", "--no-fail-fast"]);
        if missing.is_none() {
            // Nothing is missing: so nothing may be skipped.
            tests.env("BLOCKD_NEED_CLIENTS", "1");
        }
        build::run(&mut tests).map(|()| with_clients(missing.as_deref()))
    });
    ends(&mut s, missing.as_deref());
    if !s.finish() {
        bail!("verify failed");
    }
    Ok(())
}

fn cargo(args: &[&str]) -> Result<Outcome> {
    build::run(build::cargo().args(args)).map(|()| Outcome::Passed)
}

/// Of a step that uses real clients: passed, or skipped in part.
fn with_clients(missing: Option<&str>) -> Outcome {
    missing.map_or(Outcome::Passed, |get| {
        Outcome::Skipped(format!("what needs clients that are not there; to have them: {get}"))
    })
}

/// What needs the other crates' binaries.
fn ends(s: &mut Steps, missing: Option<&str>) {
    s.step("simulator: 200 seeds", || sim::run(&["--seeds", "200"]).map(|()| Outcome::Passed));
    s.step("simulator: recorded seeds of the seeded bugs", || {
        sim::run(&["--bugs", "recorded"]).map(|()| Outcome::Passed)
    });
    end_to_end(s, missing);
}

/// `cargo xtask e2e`: the end-to-end checks of `verify`, alone; with words, those that have one in their name.
pub fn end_to_end_only(args: &[&str]) -> Result<()> {
    let missing = tools::install_clients();
    let mut s = Steps::only(args);
    end_to_end(&mut s, missing.as_deref());
    if !s.finish() {
        bail!("e2e failed");
    }
    Ok(())
}

/// Real processes, in short.
fn end_to_end(s: &mut Steps, missing: Option<&str>) {
    let bins = match build::daemons(build::Profile::Dev) {
        Ok(b) => b,
        Err(e) => return s.step("building the daemons", || Err(e)),
    };
    s.step("end to end: own client", || e2e::own_client(&bins).map(|()| Outcome::Passed));
    s.step("end to end: a restart and rubbish disturb no guest", || {
        e2e::disturbed(&bins).map(|()| Outcome::Passed)
    });
    s.step("end to end: snapshots as streams", || streams::moved(&bins).map(|()| Outcome::Passed));
    s.step("end to end: space of volumes and snapshots", || space::exact(&bins).map(|()| Outcome::Passed));
    s.step("end to end: clones, rollback and sizes", || clones::made(&bins).map(|()| with_clients(missing)));
    s.step("end to end: deleted volumes rest", || trash::rested(&bins).map(|()| Outcome::Passed));
    s.step("end to end: snapshots by schedule", || trash::scheduled(&bins).map(|()| Outcome::Passed));
    s.step("end to end: what an operator is told", || operator::told(&bins).map(|()| Outcome::Passed));
    s.step("end to end: a dev up that is broken off leaves nothing", || {
        e2e::broken_off(&bins).map(|()| Outcome::Passed)
    });
    s.step("end to end: real clients", || e2e::real_clients(&bins).map(|()| with_clients(missing)));
}
