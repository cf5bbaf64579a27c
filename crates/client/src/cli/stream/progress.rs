//! Progress on stderr: in place on a terminal, a line now and then elsewhere.

use crate::cli::output::bytes;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

pub struct Progress {
    what: &'static str,
    begun: Instant,
    last: Instant,
    terminal: bool,
    open: bool,
}

impl Progress {
    pub fn new(what: &'static str) -> Progress {
        let now = Instant::now();
        Progress { what, begun: now, last: now, terminal: std::io::stderr().is_terminal(), open: false }
    }
    /// Looked at so much of all, and moved so many bytes.
    pub fn say(&mut self, at: u64, all: u64, moved: u64) {
        let each = if self.terminal { Duration::from_millis(200) } else { Duration::from_secs(5) };
        if self.last.elapsed() < each {
            return;
        }
        self.last = Instant::now();
        let percent = u128::from(at) * 100 / u128::from(all.max(1));
        let secs = self.begun.elapsed().as_secs().max(1);
        let line = format!("{}: {percent} %, {}, {}/s", self.what, bytes(moved), bytes(moved / secs));
        if self.terminal {
            eprint!("\r{line}\x1b[K");
            self.open = true;
        } else {
            eprintln!("{line}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.open {
            eprintln!();
        }
    }
}
