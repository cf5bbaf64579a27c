//! The shard with a plain machine in the node's place: real sockets, real rings, clients that behave and clients that
//! do not.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use blockd::control::Status;
use blockd::control::{Question, ToControl, ToShard};
use blockd::export::latency::Kind;
use blockd::export::{Limits, door};
use blockd::mailbox::{Mailbox, Sender};
use blockd::ring::Ring;
use blockd::shard::{End, Shard, Visitor};
use common::{Guest, Plain, SIZE};
use nbd::client::{Command, Event as Said, Goal, Outcome};
use proto::control::{MetaAnswer, NodeSummary, SnapshotFound, VolumeSummary, WatchUpdate};
use proto::{BranchId, Epoch, Geometry, NodeId, Span, VolumeId};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

struct Running {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    data: SocketAddr,
    mail: Sender<ToShard>,
    thread: JoinHandle<End>,
    told: mpsc::Receiver<&'static str>,
    echoed: mpsc::Receiver<usize>,
}

fn start() -> Running {
    start_with(Limits::default())
}

fn start_with(limits: Limits) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd.sock");
    let (path, (ready, started)) = (socket.clone(), mpsc::channel());
    let ((tell, told), (echo, echoed)) = (mpsc::channel(), mpsc::channel());
    let thread = std::thread::spawn(move || {
        let (mailbox, wake) = Mailbox::new().unwrap();
        let (mail, answers) = (mailbox.sender(), mailbox.sender());
        let plain = Plain::new(echo, tell);
        // metad's part, said by the test itself.
        let control = move |ask| {
            if let ToControl::Volumes { question, .. } = ask {
                let answer = volumes(&question);
                answers.send(ToShard::Volumes { question, answer });
            }
        };
        let mut shard = Shard::new(plain, Ring::new().unwrap(), (mailbox, wake), control);
        shard.serve_as("n5", limits);
        shard.listen(door::unix(&path, 0o660).unwrap().into(), Visitor::Guest { tcp: false });
        let (listener, data) = door::tcp("127.0.0.1:0".parse().unwrap(), None).unwrap();
        shard.listen(listener.into(), Visitor::Peer);
        ready.send((mail, data)).unwrap();
        shard.run().unwrap()
    });
    let (mail, data) = started.recv().unwrap();
    Running { _dir: dir, socket, data, mail, thread, told, echoed }
}

fn volumes(question: &Question) -> MetaAnswer {
    let geometry = Geometry { size: SIZE, chunk_shift: 24 };
    let mut v = vec![
        VolumeSummary { volume: VolumeId(1), branch: BranchId(1), name: "mem".into(), geometry, ready: true },
        VolumeSummary {
            volume: VolumeId(2),
            branch: BranchId(2),
            name: "young".into(),
            geometry,
            ready: false,
        },
    ];
    if let Question::Look(_, name) = question {
        if name == "mem@s" {
            let (volume, geometry) = (VolumeId(1), Geometry { size: SIZE / 2, ..geometry });
            return MetaAnswer::Snapshot(Box::new(SnapshotFound { volume, geometry, levels: vec![] }));
        }
        v.truncate(1);
    }
    MetaAnswer::Volumes(v)
}

impl Running {
    fn stop(self) {
        self.mail.send(ToShard::Stop);
        assert_eq!(self.thread.join().unwrap(), End::Clean);
    }
    fn status(&self) -> Status {
        let (tx, rx) = mpsc::channel();
        self.mail.send(ToShard::Status(Box::new(move |s| tx.send(s).unwrap())));
        rx.recv_timeout(Duration::from_secs(5)).unwrap()
    }
    /// Waits until the status is so.
    fn until(&self, what: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let s = self.status();
            if what(&s) {
                return s;
            }
            assert!(Instant::now() < deadline, "{s:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    fn told(&self) -> &'static str {
        self.told.recv_timeout(Duration::from_secs(5)).expect("it happens")
    }
}

#[test]
fn what_a_guest_writes_it_reads_from_bytes_to_tens_of_megabytes() {
    let r = start();
    let mut g = Guest::open(&r.socket);
    for (offset, len) in [(0, 512), (4096 * 3 + 512, 70_000 / 512 * 512), (8 << 20, 40 << 20)] {
        let data: Vec<u8> = (0..len).map(|i| u8::try_from((i / 512 + i % 251) % 256).unwrap()).collect();
        g.write(offset, &data);
        assert!(g.read(offset, u32::try_from(len).unwrap()) == data, "{offset} {len}");
    }
    assert_eq!(g.call(Command::Flush), Outcome::Done);
    assert!(
        matches!(g.call(Command::Status { offset: 0, len: SIZE, one: false }), Outcome::Status(v) if !v.is_empty())
    );
    r.stop();
}

#[test]
fn many_requests_in_flight_on_many_connections_of_one_export() {
    let r = start();
    let threads: Vec<_> = (0..4_u64)
        .map(|t| {
            let path = r.socket.clone();
            std::thread::spawn(move || {
                let mut g = Guest::open(&path);
                for round in 0..20_u8 {
                    let data = vec![round + 1; 4096];
                    for i in 0..300 {
                        g.client.submit(Command::Write {
                            offset: (t * 300 + i) * 4096,
                            data: &data,
                            fua: false,
                        });
                    }
                    for _ in 0..300 {
                        assert!(matches!(g.next(), Said::Completed { result: Ok(_), .. }));
                    }
                }
                assert!(g.read(t * 300 * 4096, 300 * 4096).iter().all(|b| *b == 20));
            })
        })
        .collect();
    for t in threads {
        t.join().unwrap();
    }
    assert_eq!(r.told(), "open");
    assert_eq!(r.told(), "close");
    r.stop();
}

#[test]
fn looking_at_exports_opens_none_and_a_refusal_says_why() {
    let r = start();
    let (_g, said) = Guest::connect(&r.socket, "", Goal::List);
    assert!(matches!(said, Said::Listed(l) if l.len() == 1 && l[0].name == "mem"));
    let (_g, said) = Guest::connect(&r.socket, "mem", Goal::Info);
    assert!(matches!(said, Said::Info(i) if i.size == SIZE));
    assert!(r.told.try_recv().is_err(), "nothing was opened");
    let (_g, said) = Guest::connect(&r.socket, "held", Goal::Go);
    let Said::Refused { message, .. } = said else { panic!("{said:?}") };
    assert!(
        message
            .starts_with("volume \"held\" cannot be had on node n5: it is attached on node n7 (epoch 41). "),
        "{message}"
    );
    assert!(
        message.contains("Close its clients there, or stop the blockd of n7") && !message.contains("--force")
    );
    let (_g, said) = Guest::connect(&r.socket, "none", Goal::Go);
    let Said::Refused { message, .. } = said else { panic!("{said:?}") };
    assert!(
        message.contains("volume \"none\" cannot be had on node n5: there is no volume of this name"),
        "{message}"
    );
    r.stop();
}

#[test]
fn a_snapshot_is_read_only_to_its_clients() {
    let r = start();
    // looked at: metad says how large it is
    let (_g, said) = Guest::connect(&r.socket, "mem@s", Goal::Info);
    let Said::Info(i) = said else { panic!("{said:?}") };
    assert!(i.size == SIZE / 2 && i.flags & nbd::wire::tflag::READ_ONLY != 0);
    assert!(r.told.try_recv().is_err(), "nothing was opened");
    // opened
    let (mut g, said) = Guest::connect(&r.socket, "mem@s", Goal::Go);
    let Said::Ready(n) = said else { panic!("{said:?}") };
    assert!(n.flags & nbd::wire::tflag::READ_ONLY != 0);
    assert_eq!(g.read(0, 4096), vec![0; 4096]);
    g.client.submit(Command::Write { offset: 0, data: &[1; 512], fua: false });
    let Said::Completed { result, .. } = g.next() else { panic!("a completion was due") };
    assert_eq!(result.unwrap_err(), nbd::Errno::Perm);
    let (_g, said) = Guest::connect(&r.socket, "mem@t", Goal::Go);
    let Said::Refused { message, .. } = said else { panic!("{said:?}") };
    assert!(message.contains("there is no such snapshot"), "{message}");
    r.stop();
}

#[test]
fn clients_that_vanish_hang_or_send_rubbish_harm_no_other() {
    let r = start();
    let mut good = Guest::open(&r.socket);
    let mut rubbish = UnixStream::connect(&r.socket).unwrap();
    rubbish.write_all(&[0x55; 5000]).unwrap();
    let _silent = UnixStream::connect(&r.socket).unwrap();
    // Half a request, then gone; and requests whose answers nobody reads.
    let mut half = Guest::open(&r.socket);
    half.client.submit(Command::Write { offset: 0, data: &[1; 8192], fua: false });
    let mut out = Vec::new();
    half.client.write_output(&mut out);
    half.socket.write_all(&out[..5000]).unwrap();
    drop(half);
    let mut deaf = Guest::open(&r.socket);
    for _ in 0..64 {
        deaf.client.submit(Command::Read { offset: 0, len: 8 << 20, whole: false });
    }
    deaf.flush();
    for i in 0..50 {
        good.write(i * 4096, &[9; 4096]);
        assert_eq!(good.read(i * 4096, 4096), [9; 4096]);
    }
    drop(deaf);
    good.write(0, &[8; 4096]);
    r.stop();
}

#[test]
fn clients_of_a_broken_export_hear_errors_until_they_leave_and_others_open_anew() {
    let r = start();
    let (mut a, mut b) = (Guest::open(&r.socket), Guest::open(&r.socket));
    a.write(0, &[1; 4096]);
    assert_eq!(r.told(), "open");
    r.mail.send(ToShard::Watch(WatchUpdate::Fenced { branch: BranchId(1), epoch: Epoch(2) }));
    assert_eq!(r.told(), "broken");
    for g in [&mut a, &mut b] {
        g.client.submit(Command::Flush);
        assert!(matches!(g.next(), Said::Completed { result: Err(nbd::Errno::Io), .. }));
    }
    let mut c = Guest::open(&r.socket);
    assert_eq!(r.told(), "open");
    assert_eq!(c.call(Command::Flush), Outcome::Done);
    drop(a);
    assert!(r.told.recv_timeout(Duration::from_millis(100)).is_err(), "one of its clients is left");
    drop(b);
    assert_eq!(r.told(), "close");
    assert_eq!(c.call(Command::Flush), Outcome::Done);
    r.stop();
}

#[test]
fn links_carry_megabytes_both_ways_and_a_lost_one_is_reported() {
    let (a, b) = (start(), start());
    let peer = |address: String| NodeSummary { node: NodeId(5), name: "n5".into(), address, up: true };
    a.mail.send(ToShard::Watch(WatchUpdate::Nodes(vec![peer(b.data.to_string())])));
    assert_eq!(b.told(), "accepted");
    let mut echoed = 0;
    while echoed < 8 << 20 {
        echoed += a.echoed.recv_timeout(Duration::from_secs(5)).expect("the echo comes");
    }
    assert_eq!(echoed, 8 << 20);
    b.stop();
    assert_eq!(a.told(), "link closed");
    // Nobody listens there any more.
    a.mail.send(ToShard::Watch(WatchUpdate::Nodes(vec![peer("127.0.0.1:1".into())])));
    assert_eq!(a.told(), "link closed");
    a.stop();
}

#[test]
fn an_idle_shard_with_clients_and_links_does_not_turn() {
    let r = start();
    let _guests: Vec<Guest> = (0..10).map(|_| Guest::open(&r.socket)).collect();
    let turns = |r: &Running| {
        let (tx, rx) = mpsc::channel();
        r.mail.send(ToShard::Status(Box::new(move |s| tx.send(s.enters).unwrap())));
        rx.recv().unwrap()
    };
    let before = turns(&r);
    let t = Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    assert!(turns(&r) - before <= 2, "{:?}", t.elapsed());
    r.stop();
}

/// True once the server has closed the connection.
fn is_closed(mut socket: &UnixStream) -> bool {
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn no_more_guests_are_let_in_than_may_be_and_those_that_are_in_go_on() {
    let r = start_with(Limits { connections: 2, ..Limits::default() });
    let (mut a, b) = (Guest::open(&r.socket), Guest::open(&r.socket));
    let third = UnixStream::connect(&r.socket).unwrap();
    assert!(is_closed(&third));
    a.write(0, &[1; 4096]);
    let s = r.status();
    assert_eq!((s.clients, s.turned_away), (2, 1));
    drop(b);
    r.until(|s| s.clients == 1);
    Guest::open(&r.socket).write(4096, &[2; 4096]);
    r.stop();
}

#[test]
fn guests_leave_descriptors_to_peers() {
    let limits = Limits { descriptors: 1000, kept_back: 999, ..Limits::default() };
    let r = start_with(limits);
    assert!(is_closed(&UnixStream::connect(&r.socket).unwrap()), "any descriptor is one of the last 999");
    // A peer is let in all the same.
    let _peer = std::net::TcpStream::connect(r.data).unwrap();
    assert_eq!(r.told(), "accepted");
    assert_eq!(r.status().turned_away, 1);
    r.stop();
}

#[test]
fn a_client_that_enters_no_export_in_time_goes_and_one_that_did_stays() {
    let r = start_with(Limits { handshake: Span::millis(200), ..Limits::default() });
    let mut good = Guest::open(&r.socket);
    let silent = UnixStream::connect(&r.socket).unwrap();
    // It talks all the time and never enters.
    let mut lister = UnixStream::connect(&r.socket).unwrap();
    lister.write_all(&3_u32.to_be_bytes()).unwrap();
    let t = Instant::now();
    let mut talking = true;
    while talking && t.elapsed() < Duration::from_secs(5) {
        let list = [&b"IHAVEOPT"[..], &3_u32.to_be_bytes(), &0_u32.to_be_bytes()].concat();
        talking = lister.write_all(&list).is_ok();
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!talking && t.elapsed() >= Duration::from_millis(150), "{:?}", t.elapsed());
    assert!(is_closed(&silent));
    std::thread::sleep(Duration::from_millis(250));
    good.write(0, &[1; 4096]);
    let s = r.status();
    assert_eq!((s.clients, s.turned_away), (1, 2));
    r.stop();
}

#[test]
fn every_request_is_counted_by_its_kind_and_time() {
    let r = start();
    let mut g = Guest::open(&r.socket);
    for i in 0..5 {
        g.write(i * 4096, &[1; 4096]);
    }
    g.read(0, 4096);
    g.call(Command::Flush);
    let s = r.status();
    let count = |kind| s.latencies.of(kind).buckets.iter().sum::<u64>();
    assert_eq!([Kind::Read, Kind::Write, Kind::Flush, Kind::Zero].map(count), [1, 5, 1, 0]);
    assert!(s.latencies.of(Kind::Write).sum < 5_000_000_000, "{:?}", s.latencies.of(Kind::Write));
    r.stop();
}
