//! Who burnt how much CPU between two moments, from /proc.

use anyhow::{Context, Result};
use std::fs;

/// CPU of a set of processes and of the whole machine, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    pub servers: u64,
    pub clients: u64,
    /// Everything that was not idle, of all cores.
    pub machine: u64,
}

const TICK_US: u64 = 10_000; // USER_HZ is 100 on every Linux that runs this

/// User and system time of one process, its waited-for children left out.
fn process(pid: u32) -> u64 {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return 0 };
    // the name may hold blanks: fields count from behind its closing parenthesis
    let Some((_, rest)) = stat.rsplit_once(')') else { return 0 };
    let f: Vec<u64> = rest.split_whitespace().skip(11).take(2).filter_map(|x| x.parse().ok()).collect();
    f.iter().sum::<u64>() * TICK_US
}

fn machine() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let f: Vec<u64> = line.split_whitespace().skip(1).filter_map(|x| x.parse().ok()).collect();
    // user nice system - - irq softirq steal; idle and iowait are not work
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|i| f.get(*i)).sum::<u64>();
    Ok(busy * TICK_US)
}

pub fn now(servers: &[u32]) -> Result<Cpu> {
    Ok(Cpu { servers: servers.iter().map(|p| process(*p)).sum(), clients: 0, machine: machine()? })
}

impl Cpu {
    /// What was burnt since `earlier`; `clients`: CPU of the load generator, as it says itself.
    pub fn since(self, earlier: Cpu, clients: u64) -> Cpu {
        Cpu { servers: self.servers - earlier.servers, clients, machine: self.machine - earlier.machine }
    }
    /// Share of the machine that neither servers nor clients burnt. `secs` of `cores` cores.
    pub fn foreign(self, secs: f64, cores: usize) -> f64 {
        let others = self.machine.saturating_sub(self.servers + self.clients);
        #[expect(clippy::cast_precision_loss, reason = "a share for a table")]
        let (others, all) = (others as f64, secs * 1e6 * cores as f64);
        others / all
    }
}
