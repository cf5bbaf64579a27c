//! `blockctl` as a process: what it does, and what it leaves alone.
#![allow(clippy::unwrap_used, reason = "a test's failures may panic")]

use std::path::Path;
use std::process::{Command, Output};

fn blockctl(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blockctl")).arg("--dir").arg(dir).args(args).output().unwrap()
}

fn said(o: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}

/// A cluster of one node as it stands in its folder, whose `n1` is this process.
fn folder(dir: &Path, pid: u32) {
    let shape = r#"{"nodes": 1, "drive_size": 1073741824, "cluster": "", "token": ""}"#;
    std::fs::write(dir.join("cluster.json"), shape).unwrap();
    for name in ["m1", "m2", "m3", "n1"] {
        std::fs::create_dir_all(dir.join(name)).unwrap();
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let started = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned();
    std::fs::write(dir.join("n1/pid"), format!("{pid} {started}\n")).unwrap();
}

#[test]
fn a_dry_run_ends_starts_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Command::new("sleep").arg("60").spawn().unwrap();
    folder(dir.path(), process.id());
    let log = dir.path().join("load.log");
    let log = log.to_str().unwrap();
    for (args, want) in [
        (&["dev", "kill", "n1"][..], "would send SIGKILL to n1\n"),
        (&["dev", "kill", "all", "--signal", "stop"], "would send SIGSTOP to m1 m2 m3 n1\n"),
        (&["dev", "start", "m1", "n1"], "would start m1 n1\n"),
        (&["dev", "down"], "would end all processes in "),
        (&["dev", "down", "--wipe"], "would remove the cluster in "),
        (&["dev", "up"], "would start 1 nodes in "),
        (&["snapshot", "create", "v@a", "w@a", "--group"], "would make snapshot v@a, w@a as a group\n"),
        (&["snapshot", "delete", "v@a", "v@b"], "would delete snapshot v@a, v@b\n"),
        (
            &["snapshot", "protect", "v@a", "--until", "2026-12-31"],
            "would say that snapshot v@a is protected until 2026-12-31\n",
        ),
        (&["volume", "clone", "v@a", "c"], "would make volume c a clone of v@a\n"),
        (&["volume", "clone", "v", "c"], "would make volume c a clone of v\n"),
        (&["volume", "rollback", "v@a"], "would take volume v back to v@a\n"),
        (&["volume", "delete", "v", "--now"], "would delete volume v and all its data, now\n"),
        (&["volume", "restore", "v12", "--as", "w"], "would restore volume v12 as w\n"),
        (&["policy", "create", "p", "--schedule", "daily", "--keep-last", "3"], "would make policy p\n"),
        (&["policy", "attach", "p", "v", "w"], "would attach policy p to v, w\n"),
        (&["policy", "delete", "p"], "would delete policy p\n"),
        (&["volume", "quota", "v", "--snapshots", "5"], "would say that volume v may have 5 snapshots\n"),
        (&["volume", "purge", "v"], "would erase deleted volume v for good\n"),
        (
            &["volume", "delete", "v", "--with-snapshots"],
            "would delete volume v and all its snapshots and all its data\n",
        ),
        (&["load", "nbd+unix:///v?socket=/nowhere", "--log", log], "would write to nbd+unix:///v"),
    ] {
        let o = blockctl(dir.path(), &[&["--dry-run"], args].concat());
        assert!(o.status.success() && said(&o).starts_with(want), "{args:?}: {}", said(&o));
        assert!(process.try_wait().unwrap().is_none(), "{args:?}");
    }
    assert!(!Path::new(log).exists() && dir.path().join("cluster.json").exists());
    assert!(!dir.path().join("m1/pid").exists());
    let o = blockctl(dir.path(), &["--dry-run", "dev", "kill", "n7"]);
    assert_eq!(o.status.code(), Some(3), "a name that is none: {}", said(&o));
    // Without it the same command does what it says.
    let reaper = std::thread::spawn(move || process.wait().unwrap());
    let o = blockctl(dir.path(), &["dev", "kill", "n1"]);
    assert!(o.status.success(), "{}", said(&o));
    assert!(!reaper.join().unwrap().success());
}

#[test]
fn a_socket_that_is_not_there_is_named_with_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let o = Command::new(env!("CARGO_BIN_EXE_blockctl"))
        .args(["drive", "add", "/dev/null", "--no-format", "--socket"])
        .arg(&socket)
        .output()
        .unwrap();
    assert_eq!(o.status.code(), Some(20), "{}", said(&o));
    let want = format!("error[E1908]: blockd does not answer at {}\ncause: ", socket.display());
    assert!(said(&o).starts_with(&want) && said(&o).contains("No such file"), "{}", said(&o));
}
