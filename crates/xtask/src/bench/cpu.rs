//! Who burnt how much CPU between two moments, from /proc.

use anyhow::{Context, Result};
use std::fs;

/// CPU so far, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    pub servers: u64,
    /// Of all processes that are not the measurement's own, with the children that they have waited for. What the
    /// kernel does in interrupts and in threads of its own is nobody's: it does it for the load.
    pub others: u64,
}

const TICK_US: u64 = 10_000; // USER_HZ is 100 on every Linux that runs this

/// A process's times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Times {
    own: u64,
    /// Children that have ended and were waited for.
    children: u64,
    kernel: bool,
}

/// Out of `/proc/PID/stat`.
fn times(stat: &str) -> Option<Times> {
    const PF_KTHREAD: u64 = 0x0020_0000;
    // the name may hold blanks: fields count from behind its closing parenthesis
    let (_, rest) = stat.rsplit_once(')')?;
    let field = |i: usize| rest.split_whitespace().nth(i)?.parse::<u64>().ok();
    let ticks = |i: usize| Some((field(i)? + field(i + 1)?) * TICK_US);
    Some(Times { own: ticks(11)?, children: ticks(13)?, kernel: field(6)? & PF_KTHREAD != 0 })
}

/// `ours`: all processes of the cluster, the servers among them. This process and its children (fio) are ours too.
pub fn now(servers: &[u32], ours: &[u32]) -> Result<Cpu> {
    let mut cpu = Cpu::default();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        // it may have ended meanwhile
        let Some(t) = fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|s| times(&s)) else {
            continue;
        };
        if servers.contains(&pid) {
            cpu.servers += t.own;
        }
        if !t.kernel && pid != std::process::id() && !ours.contains(&pid) {
            cpu.others += t.own + t.children;
        }
    }
    Ok(cpu)
}

impl Cpu {
    /// What was burnt since `earlier`.
    pub fn since(self, earlier: Cpu) -> Cpu {
        Cpu {
            servers: self.servers.saturating_sub(earlier.servers),
            others: self.others.saturating_sub(earlier.others),
        }
    }
    /// Share of `secs` of `cores` cores that others burnt.
    pub fn foreign(self, secs: f64, cores: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a share for a table")]
        let (others, all) = (self.others as f64, secs * 1e6 * cores as f64);
        others / all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 10 0 0 0 3 4 50 60 20 0 1 0 99";
        assert_eq!(times(stat), Some(Times { own: 70_000, children: 1_100_000, kernel: false }));
        let kernel = stat.replace("4194560", "69238880");
        assert!(times(&kernel).unwrap().kernel);
        assert_eq!(times("7 (a"), None);
    }

    #[test]
    fn a_stranger_that_burns_is_seen_and_one_of_ours_is_not_a_stranger() {
        let mut child =
            Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        let before = now(&[pid], &[]).unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        let burnt = loop {
            let burnt = now(&[pid], &[]).unwrap().since(before);
            if burnt.servers >= 200_000 || Instant::now() > end {
                break burnt;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let (without, with) = (now(&[], &[pid]).unwrap().others, now(&[], &[]).unwrap().others);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(burnt.servers >= 200_000 && burnt.others >= burnt.servers, "{burnt:?}");
        assert!(with >= without + 200_000, "{with} {without}");
    }
}
