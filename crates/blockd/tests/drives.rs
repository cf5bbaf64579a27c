//! Drives of a node: added, refused, failed, added again; the shard with a plain machine, real files and locks.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use api::v1::RegisterRequest;
use blockd::control::ToShard;
use blockd::control::member::Member;
use blockd::control::metad::Metad;
use blockd::control::openings::{add, keep_opening};
use blockd::device::{self, Access};
use blockd::format::{Tool, Wish, format};
use blockd::mailbox::Mailbox;
use blockd::ring::Ring;
use blockd::shard::{End, Shard};
use common::Plain;
use node::DriveState;
use proto::{ClusterId, NodeId};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use store::event::Failure;

const CLUSTER: u128 = 0xabc;

struct Running {
    dir: tempfile::TempDir,
    member: Arc<Member>,
    thread: JoinHandle<End>,
}

fn start(fates: Vec<DriveState>) -> Running {
    let (give, taken) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let (mailbox, wake) = Mailbox::new().unwrap();
        give.send(mailbox.sender()).unwrap();
        let mut plain = Plain::new(mpsc::channel().0, mpsc::channel().0);
        plain.fates = fates.into();
        let mut shard = Shard::new(plain, Ring::new().unwrap(), (mailbox, wake), |_| {});
        shard.run().unwrap()
    });
    let request =
        RegisterRequest { node: 5, cluster: CLUSTER.to_be_bytes().into(), ..RegisterRequest::default() };
    let member = Member::new(Metad::new(Vec::new(), None), request, taken.recv().unwrap());
    Running { dir: tempfile::tempdir().unwrap(), member: Arc::new(member), thread }
}

fn wish() -> Wish {
    Wish {
        tool: Tool::Blockctl,
        cluster: ClusterId(CLUSTER),
        node: NodeId(5),
        size: Some(256 << 20),
        preallocate: false,
        force: false,
    }
}

impl Running {
    fn drive(&self) -> PathBuf {
        let path = self.dir.path().join("drive");
        format(&path, &wish()).unwrap();
        path
    }
    fn add(&self, path: &Path) -> Result<u64, String> {
        add(&self.member, path, None, "").map(|(_, size)| size).map_err(|e| e.to_string())
    }
    fn stop(self) {
        self.member.shard().send(ToShard::Stop);
        assert_eq!(self.thread.join().unwrap(), End::Clean);
    }
}

#[test]
fn a_drive_that_is_here_already_is_said_to_be_here_and_at_once() {
    let r = start(vec![]);
    let path = r.drive();
    assert_eq!(r.add(&path), Ok(256 << 20));
    let alias = r.dir.path().join("alias");
    std::os::unix::fs::symlink(&path, &alias).unwrap();
    let t = Instant::now();
    for name in [&path, &alias] {
        let refused = r.add(name).unwrap_err();
        assert!(refused.contains("this blockd has it already, as "), "{refused}");
        let forced =
            add(&r.member, name, Some(&Wish { force: true, ..wish() }), "why not").unwrap_err().to_string();
        assert!(forced.contains("this blockd has it already"), "it is not formatted under us: {forced}");
    }
    assert!(t.elapsed() < Duration::from_secs(2), "nobody waits for our own lock");
    r.stop();
}

#[test]
fn the_answer_to_an_order_is_the_stores_own_and_a_failed_drive_can_be_added_again() {
    let failure = Failure::Io { errno: 5, offset: 4096 };
    let r = start(vec![DriveState::Failed(failure), DriveState::Failed(Failure::JournalLost)]);
    let path = r.drive();
    let refused = r.add(&path).unwrap_err();
    assert!(refused.contains("I/O error 5 at offset 4096") && refused.contains("kernel's log"), "{refused}");
    // Its descriptor is closed: whoever wants it may have it.
    drop(device::open(&path, Access::ReadWrite, Duration::from_secs(1)).unwrap());
    assert!(r.add(&path).unwrap_err().contains("journal ends before"), "the store's second answer");
    assert_eq!(r.add(&path), Ok(256 << 20));
    let (tx, rx) = mpsc::channel();
    r.member.shard().send(ToShard::Status(Box::new(move |s| tx.send(s).unwrap())));
    let drives = rx.recv().unwrap().drives;
    assert_eq!(drives.len(), 1, "one line for one drive: {drives:?}");
    assert_eq!((&drives[0].state, drives[0].drive), (&DriveState::Serving, 102));
    r.stop();
}

#[test]
fn a_drive_that_is_not_there_at_the_start_comes_in_by_itself() {
    let r = start(vec![DriveState::Failed(Failure::TableLost(3))]);
    let path = r.dir.path().join("drive");
    let (member, at) = (r.member.clone(), path.clone());
    let opener = std::thread::spawn(move || keep_opening(&member, &at, Duration::from_millis(20)));
    let until = |what: &str| {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let missing = r.member.openings.missing();
            if missing.iter().any(|m| m.path == path && m.error.contains(what)) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {missing:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    until("No such file");
    std::fs::write(&path, [0; 8192]).unwrap();
    until("has 8192 bytes, less than the 131072");
    std::fs::remove_file(&path).unwrap();
    format(&path, &wish()).unwrap();
    // Once the store refuses it, then it is good.
    opener.join().unwrap();
    assert!(r.member.openings.missing().is_empty());
    assert!(r.add(&path).unwrap_err().contains("this blockd has it already"));
    r.stop();
}
