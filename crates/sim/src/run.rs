//! One seed from beginning to end, and what came of it.

use crate::bugs::Bugs;
use crate::counts::Counts;
use crate::swarm::Swarm;
use crate::world::{Failure, World};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How a seed is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    pub nodes: Option<usize>,
    /// Every seed makes many clones.
    pub clones: bool,
    pub bugs: Bugs,
    /// Print every step.
    pub steps: bool,
    /// With the steps: every change of a block, on any replica (volume, chunk, block).
    pub watch: Option<(usize, u32, u32)>,
}

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    pub failure: Option<Failure>,
    pub counts: Counts,
    pub digest: u64,
    pub steps: u64,
    /// Virtual milliseconds.
    pub millis: u64,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A core's assertion is a finding like any other: it is kept with the place where it stands, not printed.
pub fn catch_assertions() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        let text = info
            .payload()
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| info.payload().downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_default();
        let trace = std::backtrace::Backtrace::capture();
        if trace.status() == std::backtrace::BacktraceStatus::Captured {
            eprintln!("{place}: {text}\n{trace}"); // asked for by RUST_BACKTRACE
        }
        PANIC.with(|p| *p.borrow_mut() = Some(format!("{place}: {text}")));
    }));
}

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, options: Options) -> Outcome {
    let swarm = Swarm::draw(seed, options.nodes, options.clones);
    if options.steps {
        println!("{swarm:#?}");
    }
    let mut world = catch_unwind(|| World::new(swarm, options.bugs, options.steps));
    if let Ok(w) = &mut world {
        w.watch = options.watch;
    }
    let panicked = match &mut world {
        Ok(w) => catch_unwind(AssertUnwindSafe(|| w.run())).is_err(),
        Err(_) => true,
    };
    let assertion = panicked.then(|| Failure {
        property: "ASSERT",
        detail: PANIC.with(|p| p.borrow_mut().take()).unwrap_or_else(|| "a panic without words".into()),
    });
    let Ok(world) = world else {
        return Outcome {
            seed,
            failure: assertion,
            counts: Counts::default(),
            digest: 0,
            steps: 0,
            millis: 0,
        };
    };
    Outcome {
        seed,
        failure: assertion.or_else(|| world.failure.clone()),
        counts: world.counts.clone(),
        digest: world.trace.digest(),
        steps: world.trace.steps(),
        millis: world.now.0 / 1_000_000,
    }
}
