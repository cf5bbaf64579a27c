//! The process: what it says of itself, to systemd and in its log, and how it takes signals.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the report")]

use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const METAD: &str = env!("CARGO_BIN_EXE_metad");

struct Daemon {
    child: Child,
    log: PathBuf,
    notify: UnixDatagram,
}

impl Daemon {
    /// Runs in `dir`, its log in a file; returns when it has said that it is ready.
    fn start(dir: &Path, config: &str, args: &[&str], log_max: u64) -> Daemon {
        let path = dir.join("metad.toml");
        std::fs::write(&path, config).unwrap();
        let (log, socket) = (dir.join("log"), dir.join("notify"));
        let notify = UnixDatagram::bind(&socket).unwrap();
        notify.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let child = Command::new(METAD)
            .arg("--config")
            .arg(&path)
            .args(args)
            .env("NOTIFY_SOCKET", &socket)
            .env("BLOCKD_LOG_MAX", log_max.to_string())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let daemon = Daemon { child, log, notify };
        assert_eq!(daemon.told(), "READY=1");
        daemon
    }

    fn told(&self) -> String {
        let mut bytes = [0; 64];
        let n = self.notify.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..n]).into_owned()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn logs(&self, text: &str) {
        let begun = Instant::now();
        while !self.log().contains(text) {
            assert!(begun.elapsed() < Duration::from_secs(10), "no {text:?} in\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(log: &str) -> String {
    format!("id = 1\nstate_dir = \"state\"\naddress = \"127.0.0.1:0\"\nlog = \"{log}\"\n")
}

#[test]
fn a_hangup_reads_the_configuration_again_and_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut metad =
        Daemon::start(dir.path(), &config("info,openraft=warn"), &["--log-format", "json"], 1 << 20);
    std::fs::write(dir.path().join("metad.toml"), config("debug,openraft=error")).unwrap();
    metad.signal(Signal::HUP);
    metad.logs("configuration read again");
    let log = metad.log();
    let line: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!((line["msg"].as_str(), line["level"].as_str()), (Some("metad starts"), Some("info")));
    std::fs::write(dir.path().join("metad.toml"), "nonsense = 1").unwrap();
    metad.signal(Signal::HUP);
    metad.logs("configuration not read again");
    assert!(metad.child.try_wait().unwrap().is_none(), "it goes on");
    metad.signal(Signal::TERM);
    assert_eq!(metad.told(), "STOPPING=1");
    assert!(metad.child.wait().unwrap().success());
}

#[test]
fn a_log_in_a_file_keeps_to_its_size_while_running() {
    const MAX: u64 = 2000;
    let dir = tempfile::tempdir().unwrap();
    let metad = Daemon::start(dir.path(), &config("info,openraft=warn"), &[], MAX);
    let old = dir.path().join("log.old");
    let begun = Instant::now();
    while !old.exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", metad.log());
        metad.signal(Signal::HUP);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(std::fs::metadata(&old).unwrap().len() < MAX + 500);
    metad.signal(Signal::HUP);
    metad.logs("configuration read again");
    assert!(metad.log().starts_with("ts="), "whole lines, and in logfmt");
}

#[test]
fn the_version_names_what_it_reads_and_errors_are_lines_and_no_debug_output() {
    let said = Command::new(METAD).arg("--version").output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    for word in ["database format: 1", "commands: 1..=", "protocol: "] {
        assert!(text.contains(word), "{text}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metad.toml");
    std::fs::write(&path, "id = 1\nadress = 'x'").unwrap();
    let refused = Command::new(METAD).arg("--config").arg(&path).env("RUST_BACKTRACE", "1").output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    let path = path.display();
    assert_eq!(
        said,
        format!("error: configuration\ncause: {path}: unknown key \"adress\"; did you mean \"address\"?\n")
    );
}
