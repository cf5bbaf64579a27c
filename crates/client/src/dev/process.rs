//! One process: its record in a file, whether it lives, how it is started and ended.

use super::layout::{Folder, Member, Role};
use super::{DevError, io};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A log that has grown beyond this is put aside: by the daemon while it runs, else at the next start.
const LOG_MAX: u64 = 16 << 20;
/// Where the daemons read that number (`edge::capped`).
const LOG_MAX_VARIABLE: &str = "BLOCKD_LOG_MAX";
/// Lines of a log that are shown where a process failed.
const TAIL: usize = 12;

/// A process that was started here: with its start time an id cannot be mistaken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    pub pid: u32,
    /// Ticks since boot.
    pub started: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    Running,
    /// By SIGSTOP.
    Stopped,
    Dead,
}
impl Life {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Life::Running => "running",
            Life::Stopped => "stopped",
            Life::Dead => "dead",
        }
    }
}

/// State and start time of a process, if there is one with this id.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

impl Record {
    pub(super) fn of(pid: u32) -> Option<Record> {
        stat(pid).map(|(_, started)| Record { pid, started })
    }

    #[must_use]
    pub fn life(self) -> Life {
        match stat(self.pid) {
            Some((state, started)) if started == self.started => match state {
                'Z' | 'X' => Life::Dead,
                'T' | 't' => Life::Stopped,
                _ => Life::Running,
            },
            _ => Life::Dead,
        }
    }

    /// # Errors
    /// The signal is not permitted.
    pub fn signal(self, signal: rustix::process::Signal) -> std::io::Result<()> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
        // The descriptor holds on to one process; only then is it looked at.
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        if self.life() == Life::Dead {
            return Ok(());
        }
        match pidfd_send_signal(&fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits until it is gone.
    pub fn wait(self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.life() != Life::Dead {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    fn file(folder: &Folder, m: Member) -> PathBuf {
        folder.of(m).join("pid")
    }

    /// The last process of this member, whether it lives or not.
    ///
    /// # Errors
    /// Its file is damaged or cannot be read.
    pub fn read(folder: &Folder, m: Member) -> Result<Option<Record>, DevError> {
        let path = Record::file(folder, m);
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io(&path))?,
        };
        let mut words = text.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(pid)), Some(Ok(started))) = (words.next(), words.next()) else {
            return Err(DevError::Damaged(path));
        };
        let pid = u32::try_from(pid).map_err(|_| DevError::Damaged(path))?;
        Ok(Some(Record { pid, started }))
    }

    fn write(self, folder: &Folder, m: Member) -> Result<(), DevError> {
        let path = Record::file(folder, m);
        let new = path.with_extension("new");
        std::fs::write(&new, format!("{} {}\n", self.pid, self.started)).map_err(io(&new))?;
        std::fs::rename(&new, &path).map_err(io(&path))
    }
}

/// A daemon beside this program.
///
/// # Errors
/// It is not there.
pub fn binary(name: &str) -> Result<PathBuf, DevError> {
    let me = std::env::current_exe().map_err(io("this program"))?;
    let path = me.with_file_name(name);
    if path.is_file() { Ok(path) } else { Err(DevError::Binary(path)) }
}

fn open_log(path: &Path) -> Result<File, DevError> {
    if std::fs::metadata(path).is_ok_and(|m| m.len() > LOG_MAX) {
        std::fs::rename(path, path.with_extension("old")).map_err(io(path))?;
    }
    OpenOptions::new().create(true).append(true).open(path).map_err(io(path))
}

/// The last lines of a member's log.
#[must_use]
pub fn tail(folder: &Folder, m: Member) -> String {
    let text = std::fs::read(folder.log(m)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(8192)..]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

/// A process that was started a moment ago.
pub struct Started {
    pub member: Member,
    pub record: Record,
    child: Child,
}

impl Started {
    /// Starts a member's daemon in a process group of its own, its log behind it.
    ///
    /// # Errors
    /// The program is missing or cannot be started.
    pub fn new(folder: &Folder, m: Member) -> Result<Started, DevError> {
        let program = binary(m.role.word())?;
        let log = open_log(&folder.log(m))?;
        let errors = log.try_clone().map_err(io(folder.log(m)))?;
        let mut command = Command::new(&program);
        command.arg("--config").arg(folder.config(m)).current_dir(folder.of(m));
        // Huge pages for its tables and buffers, which are touched at random (docs/operations.md).
        command.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
        command.env(LOG_MAX_VARIABLE, LOG_MAX.to_string());
        command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        Started::of(folder, m, command.spawn().map_err(io(&program))?)
    }

    /// Writes down which process it is.
    pub(super) fn of(folder: &Folder, m: Member, child: Child) -> Result<Started, DevError> {
        let ended = || DevError::Ended { name: m.name(), log: folder.log(m), tail: tail(folder, m) };
        let record = Record::of(child.id()).ok_or_else(ended)?;
        record.write(folder, m)?;
        Ok(Started { member: m, record, child })
    }

    /// An error once it has ended.
    ///
    /// # Errors
    /// It has ended.
    pub fn check(&mut self, folder: &Folder) -> Result<(), DevError> {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            let m = self.member;
            return Err(DevError::Ended { name: m.name(), log: folder.log(m), tail: tail(folder, m) });
        }
        Ok(())
    }

    /// Ends it at once: a start that failed half-way.
    pub fn abandon(mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    #[must_use]
    pub fn role(&self) -> Role {
        self.member.role
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_time_too() {
        let me = Record::of(std::process::id()).unwrap();
        assert_eq!(me.life(), Life::Running);
        let other = Record { started: me.started + 1, ..me };
        assert_eq!(other.life(), Life::Dead);
        // Sent to nobody: this process goes on.
        other.signal(rustix::process::Signal::KILL).unwrap();
    }

    #[test]
    fn signals_stop_and_end_a_process() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let record = Record::of(child.id()).unwrap();
        record.signal(rustix::process::Signal::STOP).unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        while record.life() != Life::Stopped {
            assert!(Instant::now() < until);
        }
        record.signal(rustix::process::Signal::KILL).unwrap();
        assert!(record.wait(Duration::from_secs(5)));
        child.wait().unwrap();
    }
}
