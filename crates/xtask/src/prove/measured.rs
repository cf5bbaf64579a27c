//! What is measured rather than tested.

use crate::bench::{self, idle, report};
use anyhow::{Result, bail};

pub fn speed() -> Result<String> {
    let rows = bench::measure(bench::ROUNDS, 0)?;
    let table = report::table(&rows);
    let with_goal = || rows.iter().filter(|r| report::goal(r.job.name).is_some());
    if with_goal().any(|r| report::verdict(r) == Some(false)) {
        bail!("an aim is missed\n{table}");
    }
    if with_goal().any(|r| report::verdict(r).is_none()) {
        bail!("no verdict for some rows: run it when machine and disk are quiet\n{table}");
    }
    Ok(table)
}

pub fn idle() -> Result<String> {
    let share = idle::measure()?;
    let figure = format!("{:.2} % of one core, limit {:.0} %", share * 100.0, idle::LIMIT * 100.0);
    if share >= idle::LIMIT {
        bail!(figure);
    }
    Ok(figure)
}
