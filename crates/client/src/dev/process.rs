//! Processes of the cluster: started so that they outlive us, found again by id and start time (an id alone may
//! have been given to somebody else), ended by their own id.

use super::{DevError, Layout};
use rustix::process::{Pid, Signal as Number, kill_process};
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    Kill,
    Stop,
    Cont,
    Term,
}

impl std::str::FromStr for Signal {
    type Err = String;
    fn from_str(s: &str) -> Result<Signal, String> {
        match s.to_ascii_uppercase().trim_start_matches("SIG") {
            "KILL" => Ok(Signal::Kill),
            "STOP" => Ok(Signal::Stop),
            "CONT" => Ok(Signal::Cont),
            "TERM" => Ok(Signal::Term),
            _ => Err(format!("\"{s}\" is none of KILL, STOP, CONT, TERM")),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProcessState {
    Running,
    /// By SIGSTOP.
    Suspended,
    Stopped,
}

/// Logs larger than this are moved aside at a start.
const LOG_MAX: u64 = 8 << 20;

fn io<'a>(path: &'a Path) -> impl Fn(std::io::Error) -> DevError + use<'a> {
    |source| DevError::Io { path: path.into(), source }
}

/// State letter and start time of a process, from /proc.
fn look(pid: u32) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Some((fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
}

/// The living process of this name.
pub fn pid(layout: &Layout, name: &str) -> Result<Option<u32>, DevError> {
    let path = layout.home(name).join("pid");
    let text = match std::fs::read_to_string(&path) {
        Ok(t) => t,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(&path)(e)),
    };
    let mut words = text.split_whitespace();
    let (Some(pid), Some(started)) =
        (words.next().and_then(|w| w.parse().ok()), words.next().and_then(|w| w.parse::<u64>().ok()))
    else {
        return Err(DevError::Damaged { path, message: "not \"ID STARTTIME\"".into() });
    };
    // a zombie is gone: only its parent has not looked yet
    Ok(look(pid).filter(|(state, began)| *began == started && *state != 'Z').map(|_| pid))
}

pub fn state(layout: &Layout, name: &str) -> Result<ProcessState, DevError> {
    Ok(match pid(layout, name)?.and_then(look) {
        None | Some(('Z' | 'X', _)) => ProcessState::Stopped,
        Some(('T' | 't', _)) => ProcessState::Suspended,
        Some(_) => ProcessState::Running,
    })
}

/// To a process that lives; none: nothing happens.
pub fn send(layout: &Layout, name: &str, signal: Signal) -> Result<(), DevError> {
    let Some(pid) = pid(layout, name)?.and_then(|p| i32::try_from(p).ok()).and_then(Pid::from_raw) else {
        return Ok(());
    };
    let number = match signal {
        Signal::Kill => Number::KILL,
        Signal::Stop => Number::STOP,
        Signal::Cont => Number::CONT,
        Signal::Term => Number::TERM,
    };
    match kill_process(pid, number) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(DevError::Io { path: layout.home(name), source: e.into() }),
    }
}

/// Starts a daemon in a process group of its own, its output into its log. False: it runs already.
pub fn spawn(layout: &Layout, name: &str) -> Result<bool, DevError> {
    if pid(layout, name)?.is_some() {
        return Ok(false);
    }
    let log = layout.log(name);
    if std::fs::metadata(&log).is_ok_and(|m| m.len() > LOG_MAX) {
        std::fs::rename(&log, log.with_extension("old")).map_err(io(&log))?;
    }
    let out = OpenOptions::new().create(true).append(true).open(&log).map_err(io(&log))?;
    let err: File = out.try_clone().map_err(io(&log))?;
    let program = layout.program(name)?;
    let mut child = Command::new(&program)
        .arg("--config")
        .arg(layout.config(name))
        .current_dir(layout.home(name))
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .process_group(0)
        .spawn()
        .map_err(io(&program))?;
    let id = child.id();
    let Some((_, started)) = look(id) else {
        let _ = child.wait();
        return Err(DevError::Ended { name: name.into(), log: layout.log_end(name) });
    };
    let path = layout.home(name).join("pid");
    super::layout::write(&path, &format!("{id} {started}\n"))?;
    // reaped while we live; afterwards init does it
    std::thread::spawn(move || child.wait());
    Ok(true)
}
