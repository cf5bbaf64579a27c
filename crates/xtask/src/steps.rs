//! A list of named steps, each timed, with a table at the end.

use anyhow::Result;
use std::time::{Duration, Instant};

/// How a step ended.
pub enum Outcome {
    Passed,
    /// Why, and how to have it.
    Skipped(String),
}

struct Row {
    name: String,
    result: Result<Outcome>,
    took: Duration,
}

pub struct Steps {
    rows: Vec<Row>,
    start: Instant,
}

impl Steps {
    pub fn new() -> Steps {
        Steps { rows: Vec::new(), start: Instant::now() }
    }

    pub fn step(&mut self, name: &str, body: impl FnOnce() -> Result<Outcome>) {
        eprintln!("== {name}");
        let start = Instant::now();
        let result = body();
        if let Err(e) = &result {
            eprintln!("FAILED: {name}: {e:#}");
        }
        self.rows.push(Row { name: name.to_owned(), result, took: start.elapsed() });
    }

    /// Prints the table; true if nothing failed.
    pub fn finish(self) -> bool {
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        println!("\n{:<44} {:>8}  RESULT", "STEP", "SECONDS");
        for r in &self.rows {
            let result = match &r.result {
                Ok(Outcome::Passed) => {
                    passed += 1;
                    "passed".to_owned()
                }
                Ok(Outcome::Skipped(why)) => {
                    skipped += 1;
                    format!("skipped: {why}")
                }
                Err(e) => {
                    failed += 1;
                    format!("FAILED: {}", e.to_string().lines().next().unwrap_or(""))
                }
            };
            println!("{:<44} {:>8.1}  {result}", r.name, r.took.as_secs_f64());
        }
        println!("{:<44} {:>8.1}\n", "all", self.start.elapsed().as_secs_f64());
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        failed == 0
    }
}
