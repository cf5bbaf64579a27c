//! The table and the plot that docs/performance.md keeps.

use super::Row;
use anyhow::{Context, Result};
use std::fmt::Write as _;

const DOC: &str = "docs/performance.md";
const PLOT: &str = "performance.svg";
/// Above this share of foreign CPU a row has no verdict.
pub const FOREIGN_MAX: f64 = 0.05;

/// Nor if the raw file's best round did so many times its worst: then the disk, not blockd, made the difference.
const WAVER_MAX: f64 = 1.5;

/// Least ratio to the raw file (IOPS or bandwidth), or largest (latency).
pub fn goal(name: &str) -> Option<(&'static str, f64)> {
    match name {
        "randwrite qd1" => Some(("p50", 5.0)),
        "randwrite qd32 burst" => Some(("iops", 0.4)),
        "randwrite qd32 steady" => Some(("iops", 0.22)),
        "randread qd32" => Some(("iops", 0.5)),
        "1M write qd8" => Some(("iops", 0.15)),
        _ => None,
    }
}

/// Why nothing can be said.
fn unsure(r: &Row) -> Option<String> {
    if r.foreign > FOREIGN_MAX {
        return Some("others were busy".into());
    }
    (r.wavered > WAVER_MAX).then(|| format!("the raw file wavered {:.1}x", r.wavered))
}

/// `None`: no goal, or nothing can be said.
pub fn verdict(r: &Row) -> Option<bool> {
    if unsure(r).is_some() {
        return None;
    }
    goal(r.job.name).map(|(what, limit)| match what {
        "p50" => r.ours.p50_us <= limit * r.raw.p50_us,
        _ => r.ours.iops >= limit * r.raw.iops,
    })
}

pub fn table(rows: &[Row]) -> String {
    let mut t = String::from(
        "| job | raw IOPS | blockd IOPS | ratio | raw p50 us | p50 us | ratio | p99 us | server CPU us/IO | others' CPU | goal |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n",
    );
    for r in rows {
        let goal = goal(r.job.name).map_or(String::new(), |(what, limit)| {
            let sign = if what == "p50" { "p50 <=" } else { ">=" };
            let verdict = match verdict(r) {
                None => format!("no verdict ({})", unsure(r).unwrap_or_default()),
                Some(true) => "met".into(),
                Some(false) => "MISSED".into(),
            };
            format!("{sign} {limit}x: {verdict}")
        });
        let _ = writeln!(
            t,
            "| {} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} | {:.1} | {:.0} | {:.1} | {:.1} % | {goal} |",
            r.job.name,
            r.raw.iops,
            r.ours.iops,
            r.ours.iops / r.raw.iops,
            r.raw.p50_us,
            r.ours.p50_us,
            r.ours.p50_us / r.raw.p50_us,
            r.ours.p99_us,
            r.server_us,
            r.foreign * 100.0,
        );
    }
    t
}

/// A ratio, and the least that is wanted.
pub struct Bar<'a> {
    pub name: &'a str,
    pub ratio: f64,
    pub goal: Option<f64>,
}

/// Ratios as bars, with the goals as ticks.
pub fn bars(title: &str, all: &[Bar]) -> String {
    let longest = all.iter().map(|b| b.name.len()).max().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "a drawing")]
    let (left, height) = (longest as f64 * 7.0 + 20.0, all.len() as f64 * 28.0 + 50.0);
    let (width, line) = (560.0, 28.0);
    let mut s = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <text x=\"10\" y=\"18\">{title}</text>\n",
        left + width + 60.0
    );
    for (i, bar) in all.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "a drawing")]
        let y = 34.0 + i as f64 * line;
        let w = (bar.ratio.min(1.2) / 1.2) * width;
        let _ = writeln!(
            s,
            "<text x=\"10\" y=\"{:.0}\">{}</text><rect x=\"{left}\" y=\"{y:.0}\" width=\"{w:.0}\" height=\"18\" fill=\"#3b7dd8\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\">{:.2}</text>",
            y + 14.0,
            bar.name,
            left + w + 6.0,
            y + 14.0,
            bar.ratio
        );
        if let Some(goal) = bar.goal {
            let x = left + goal / 1.2 * width;
            let _ = writeln!(
                s,
                "<line x1=\"{x:.0}\" x2=\"{x:.0}\" y1=\"{:.0}\" y2=\"{:.0}\" stroke=\"#c0392b\" stroke-width=\"2\"/>",
                y - 2.0,
                y + 20.0
            );
        }
    }
    s.push_str("</svg>\n");
    s
}

fn plot(rows: &[Row]) -> String {
    let bar = |r: &Row| Bar {
        name: r.job.name,
        ratio: r.ours.iops / r.raw.iops,
        goal: goal(r.job.name).filter(|(what, _)| *what == "iops").map(|(_, goal)| goal),
    };
    let all: Vec<Bar> = rows.iter().map(bar).collect();
    bars("IOPS through NBD, three copies, as a ratio to the raw file (tick: goal)", &all)
}

/// Prints the table and puts it, with the plot, into the documentation.
pub fn keep(rows: &[Row]) -> Result<()> {
    let table = table(rows);
    println!("{table}");
    put("bench", &table, PLOT, &plot(rows))
}

/// Between the marks of this name.
pub fn put(mark: &str, table: &str, plot_name: &str, plot: &str) -> Result<()> {
    let (begin, end) = (format!("<!-- {mark}: begin -->"), format!("<!-- {mark}: end -->"));
    let doc = std::fs::read_to_string(DOC).with_context(|| DOC.to_owned())?;
    let (head, rest) = doc.split_once(&begin).with_context(|| format!("{DOC} has no line {begin}"))?;
    let (_, tail) = rest.split_once(&end).with_context(|| format!("{DOC} has no line {end}"))?;
    std::fs::write(DOC, format!("{head}{begin}\n\n{table}\n![ratios]({plot_name})\n\n{end}{tail}"))?;
    std::fs::write(format!("docs/{plot_name}"), plot)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fio::{Figures, Job};

    #[test]
    fn a_verdict_needs_a_quiet_machine_and_a_steady_disk() {
        let job = Job { name: "randread qd32", rw: "randread", bs: "4k", depth: 32, secs: 1, size_mib: 1 };
        let of = |iops| Figures { iops, ..Figures::default() };
        let row = |ours, foreign, wavered| Row {
            job,
            raw: of(100.0),
            ours: of(ours),
            server_us: 1.0,
            foreign,
            wavered,
        };
        assert_eq!(verdict(&row(50.0, 0.04, 1.4)), Some(true));
        assert_eq!(verdict(&row(49.0, 0.04, 1.4)), Some(false));
        assert_eq!(verdict(&row(49.0, 0.06, 1.4)), None);
        assert_eq!(verdict(&row(49.0, 0.04, 1.6)), None);
        assert!(table(&[row(49.0, 0.04, 1.6)]).contains("no verdict (the raw file wavered 1.6x)"));
    }
}
