//! Who burnt how much CPU between two moments, from /proc.

use anyhow::{Context, Result};
use std::fs;

/// CPU of a set of processes and of the whole machine, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    pub servers: u64,
    pub clients: u64,
    /// All processes, of all cores.
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

/// All processes: what the kernel does in interrupts and in its own threads it does for them.
fn machine() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let f: Vec<u64> = line.split_whitespace().skip(1).filter_map(|x| x.parse().ok()).collect();
    // user nice system; idle, iowait, irq, softirq and steal are nobody's
    let busy = f.iter().take(3).sum::<u64>() * TICK_US;
    Ok(busy.saturating_sub(kernel_threads()?))
}

/// CPU of the kernel's own threads so far.
fn kernel_threads() -> Result<u64> {
    const PF_KTHREAD: u64 = 0x0020_0000;
    let mut sum = 0;
    for entry in fs::read_dir("/proc").context("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let flags: u64 = rest.split_whitespace().nth(6).and_then(|x| x.parse().ok()).unwrap_or(0);
        if flags & PF_KTHREAD != 0 {
            sum += process(pid);
        }
    }
    Ok(sum)
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
