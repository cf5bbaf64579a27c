//! A list of named steps, each timed, with a table at the end.

use anyhow::Result;
use std::fmt::Write as _;
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
    /// Only those with one of these words in their name; none: all.
    only: Vec<String>,
}

impl Steps {
    pub fn new() -> Steps {
        Steps::only(&[])
    }

    pub fn only(words: &[&str]) -> Steps {
        let only = words.iter().map(|w| (*w).to_owned()).collect();
        Steps { rows: Vec::new(), start: Instant::now(), only }
    }

    pub fn step(&mut self, name: &str, body: impl FnOnce() -> Result<Outcome>) {
        if !self.only.is_empty() && !self.only.iter().any(|w| name.contains(w.as_str())) {
            return;
        }
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
        let (text, good) = self.report();
        println!("{text}");
        good
    }

    /// The table, the counts, and at the very end what was not looked at.
    fn report(&self) -> (String, bool) {
        let (mut passed, mut failed, mut skipped) = (0, 0, Vec::new());
        let mut text = format!("\n{:<50} {:>8}  RESULT\n", "STEP", "SECONDS");
        for r in &self.rows {
            let result = match &r.result {
                Ok(Outcome::Passed) => {
                    passed += 1;
                    "passed".to_owned()
                }
                Ok(Outcome::Skipped(why)) => {
                    skipped.push(format!("SKIPPED in \"{}\": {why}", r.name));
                    "skipped in part".to_owned()
                }
                Err(e) => {
                    failed += 1;
                    format!("FAILED: {}", e.to_string().lines().next().unwrap_or(""))
                }
            };
            let _ = writeln!(text, "{:<50} {:>8.1}  {result}", r.name, r.took.as_secs_f64());
        }
        let _ = writeln!(text, "{:<50} {:>8.1}\n", "all", self.start.elapsed().as_secs_f64());
        let _ = write!(text, "{passed} passed, {failed} failed, {} skipped in part", skipped.len());
        for line in skipped {
            let _ = write!(text, "\n{line}");
        }
        (text, failed == 0 && (passed > 0 || self.only.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_choose_steps_and_none_chosen_is_a_failure() {
        let mut s = Steps::only(&["clone"]);
        s.step("end to end: streams", || anyhow::bail!("not asked for"));
        assert!(!s.report().1, "nothing was done");
        let mut s = Steps::only(&["clone"]);
        s.step("end to end: streams", || anyhow::bail!("not asked for"));
        s.step("end to end: clones", || Ok(Outcome::Passed));
        assert!(s.finish());
    }

    #[test]
    fn what_was_skipped_stands_at_the_end_and_fails_nothing() {
        let mut s = Steps::new();
        s.step("a", || Ok(Outcome::Skipped("no fio".into())));
        s.step("b", || Ok(Outcome::Passed));
        let (text, good) = s.report();
        assert!(
            good && text.ends_with("1 passed, 0 failed, 1 skipped in part\nSKIPPED in \"a\": no fio"),
            "{text}"
        );
        s.step("c", || anyhow::bail!("broken"));
        let (text, good) = s.report();
        assert!(!good && text.contains("FAILED: broken"), "{text}");
    }
}
