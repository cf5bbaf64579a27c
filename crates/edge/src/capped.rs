//! A log that does not outgrow its file. `blockctl dev` has no journald behind its daemons: it gives them a file as
//! stderr, and says in the environment how large that may become. What is beyond goes on in a new file; the one before
//! stays as `.old`.

use rustix::stdio::{dup2_stderr, dup2_stdout};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Environment: bytes of a log file, as a number.
pub const LOG_MAX: &str = "BLOCKD_LOG_MAX";

/// Stderr, in a file with a limit if it is so.
#[derive(Debug, Default)]
pub struct Stderr {
    capped: Option<Capped>,
}

#[derive(Debug)]
struct Capped {
    path: PathBuf,
    max: u64,
    len: u64,
}

impl Stderr {
    /// Capped if the environment names a limit and stderr is a file.
    #[must_use]
    pub fn of_environment() -> Stderr {
        let max = std::env::var(LOG_MAX).ok().and_then(|t| t.parse().ok());
        Stderr { capped: max.and_then(Capped::of) }
    }

    /// One line. Nobody can be told that stderr is gone.
    pub fn write(&mut self, line: &[u8]) {
        let _ = io::stderr().write_all(line);
        if let Some(capped) = &mut self.capped {
            capped.len += line.len() as u64;
            // A file that cannot be renamed is tried again when it has grown as much again.
            if capped.len > capped.max {
                let _ = capped.turn();
            }
        }
    }
}

impl Capped {
    fn of(max: u64) -> Option<Capped> {
        let path = std::fs::read_link("/proc/self/fd/2").ok()?;
        let file = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
        Some(Capped { path, max, len: file.len() })
    }

    /// From here on a new file is stderr, and stdout where the two were one.
    fn turn(&mut self) -> io::Result<()> {
        self.len = 0;
        let both = std::fs::read_link("/proc/self/fd/1").is_ok_and(|p| p == self.path);
        let file = put_aside(&self.path)?;
        dup2_stderr(&file)?;
        if both {
            dup2_stdout(&file)?;
        }
        Ok(())
    }
}

/// Renames the log and makes an empty one.
///
/// # Errors
/// Of the file system's.
pub fn put_aside(path: &Path) -> io::Result<File> {
    std::fs::rename(path, path.with_extension("old"))?;
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_before_is_kept_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for round in ["one", "two", "three"] {
            std::fs::write(&path, round).unwrap();
            put_aside(&path).unwrap().write_all(b"new").unwrap();
            assert_eq!(std::fs::read_to_string(path.with_extension("old")).unwrap(), round);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
