//! The shard with a plain machine in the node's place: real sockets, real rings, clients that behave and clients that
//! do not.

use blockd::control::{Question, ToControl, ToShard};
use blockd::core::Core;
use blockd::export::door;
use blockd::mailbox::{Mailbox, Sender};
use blockd::ring::Ring;
use blockd::shard::{End, Shard, Visitor};
use nbd::client::{Client, Command, Event as Said, Goal, Outcome, Wish};
use nbd::memory::{MemoryDisk, Reply};
use nbd::{Mode, Op};
use node::{Effect, Event, ExportError, ExportInfo, LinkId};
use proto::control::{MetaAnswer, NodeSummary, VolumeSummary, WatchUpdate};
use proto::{BranchId, Geometry, NodeId, Ticket, Time, VolumeId};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use volume::{GuestError, GuestOp, GuestReply, ReadPiece};

const SIZE: u64 = 64 << 20;

/// One volume in memory, echoing links. Requests are completed at the turn's end, last first.
struct Plain {
    disk: MemoryDisk,
    effects: VecDeque<Effect>,
    held: Vec<(proto::ExportId, Ticket, GuestOp)>,
    /// Bytes that came back on links it dialled.
    echoed: mpsc::Sender<usize>,
    tell: mpsc::Sender<&'static str>,
}

fn op(op: GuestOp) -> Op {
    match op {
        GuestOp::Read { offset, len } => Op::Read { offset, len },
        GuestOp::Write { offset, len, data, fua } => Op::Write { offset, len, data: data.payload, fua },
        GuestOp::Flush => Op::Flush,
        GuestOp::Discard { offset, len, fua } => Op::Discard { offset, len, fua },
        GuestOp::WriteZeroes { offset, len, fua, no_hole } => Op::WriteZeroes { offset, len, fua, no_hole },
        GuestOp::Map { offset, len } => Op::Map { offset, len },
        GuestOp::Verify { .. } => panic!("no NBD request"),
    }
}

fn reply(reply: Reply) -> Result<GuestReply, GuestError> {
    Ok(match reply {
        Reply::Done => GuestReply::Done,
        Reply::Read(pieces) => GuestReply::Read(
            pieces
                .into_iter()
                .map(|p| match p {
                    nbd::ReadPiece::Zero { bytes } => ReadPiece::Zero { bytes },
                    nbd::ReadPiece::Data { payload, skip, len } => ReadPiece::Data { payload, skip, len },
                })
                .collect(),
        ),
        Reply::Map(runs) => GuestReply::Map(runs),
    })
}

impl Core for Plain {
    fn handle(&mut self, _: Time, event: Event) {
        assert!(self.effects.is_empty(), "drained before the next event");
        match event {
            Event::OpenExport { export, volume, .. } if volume == "mem" => {
                self.tell.send("open").unwrap();
                let geometry = Geometry { size: SIZE, chunk_shift: 24 };
                let info = ExportInfo { name: volume, branch: BranchId(1), geometry, read_only: false };
                self.effects.push_back(Effect::ExportOpened { export, info });
            }
            Event::OpenExport { export, volume, .. } => {
                let error = if volume == "held" {
                    ExportError::Held { holder: "n7".into(), epoch: 41 }
                } else {
                    ExportError::NoSuchVolume
                };
                self.effects.push_back(Effect::ExportRefused { export, error });
            }
            Event::CloseExport { .. } => self.tell.send("close").unwrap(),
            Event::Guest { export, request } => self.held.push((export, request.ticket, request.op)),
            Event::TurnEnd => {
                while let Some((export, ticket, guest)) = self.held.pop() {
                    let result = reply(self.disk.apply(op(guest)));
                    self.effects.push_back(Effect::Complete { export, ticket, result });
                }
            }
            Event::Watch(WatchUpdate::Nodes(nodes)) => {
                for n in nodes {
                    let link = LinkId(u64::from(n.node.0));
                    self.effects.push_back(Effect::Dial { link, to: n.node, address: n.address });
                }
            }
            Event::Dialled { link } => {
                for i in 0..8_u8 {
                    self.effects.push_back(Effect::Send { link, bytes: vec![i; 1 << 20] });
                }
            }
            Event::Accepted { .. } => self.tell.send("accepted").unwrap(),
            Event::LinkClosed { .. } => self.tell.send("link closed").unwrap(),
            Event::Shutdown => self.effects.push_back(Effect::Stopped),
            _ => {}
        }
    }
    fn received(&mut self, _: Time, link: LinkId, bytes: &[u8]) {
        if link.0 >> 63 == 1 {
            self.effects.push_back(Effect::Send { link, bytes: bytes.to_vec() });
        } else {
            self.echoed.send(bytes.len()).unwrap();
        }
    }
    fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }
    fn next_wake(&self) -> Time {
        Time::FAR
    }
    fn recycle(&mut self, _: Vec<u8>) {}
}

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
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd.sock");
    let (path, (ready, started)) = (socket.clone(), mpsc::channel());
    let ((tell, told), (echo, echoed)) = (mpsc::channel(), mpsc::channel());
    let thread = std::thread::spawn(move || {
        let (mailbox, wake) = Mailbox::new().unwrap();
        let (mail, answers) = (mailbox.sender(), mailbox.sender());
        let plain = Plain {
            disk: MemoryDisk::new(SIZE),
            effects: VecDeque::new(),
            held: Vec::new(),
            echoed: echo,
            tell,
        };
        // metad's part, said by the test itself.
        let control = move |ask| {
            if let ToControl::Volumes { question, .. } = ask {
                answers.send(ToShard::Volumes { question, answer: volumes(question) });
            }
        };
        let mut shard = Shard::new(plain, Ring::new().unwrap(), (mailbox, wake), control);
        shard.listen(door::unix(&path, 0o660).unwrap().into(), Visitor::Guest { tcp: false });
        let (listener, data) = door::tcp("127.0.0.1:0".parse().unwrap(), None).unwrap();
        shard.listen(listener.into(), Visitor::Peer);
        ready.send((mail, data)).unwrap();
        shard.run().unwrap()
    });
    let (mail, data) = started.recv().unwrap();
    Running { _dir: dir, socket, data, mail, thread, told, echoed }
}

fn volumes(question: Question) -> MetaAnswer {
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
    if matches!(question, Question::Look(_)) {
        v.truncate(1);
    }
    MetaAnswer::Volumes(v)
}

impl Running {
    fn stop(self) {
        self.mail.send(ToShard::Stop);
        assert_eq!(self.thread.join().unwrap(), End::Clean);
    }
    fn told(&self) -> &'static str {
        self.told.recv_timeout(Duration::from_secs(5)).expect("it happens")
    }
}

/// A blocking client.
struct Guest {
    client: Client,
    socket: UnixStream,
}

impl Guest {
    fn connect(path: &Path, export: &str, goal: Goal) -> (Guest, Said) {
        let wish = Wish { export: export.into(), goal, mode: Mode::Extended, allocation: true };
        let mut g = Guest { client: Client::new(wish), socket: UnixStream::connect(path).unwrap() };
        g.socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let said = g.next();
        (g, said)
    }
    fn open(path: &Path) -> Guest {
        let (g, said) = Guest::connect(path, "mem", Goal::Go);
        assert!(matches!(said, Said::Ready(n) if n.size == SIZE));
        g
    }
    fn flush(&mut self) {
        let mut out = Vec::new();
        self.client.write_output(&mut out);
        self.socket.write_all(&out).unwrap();
    }
    fn next(&mut self) -> Said {
        let mut buf = vec![0; 1 << 16];
        loop {
            if let Some(e) = self.client.poll() {
                return e;
            }
            self.flush();
            let n = self.socket.read(&mut buf).unwrap();
            assert!(n > 0, "the server closed the connection");
            self.client.receive(&buf[..n]);
        }
    }
    fn call(&mut self, command: Command<'_>) -> Outcome {
        self.client.submit(command);
        let Said::Completed { result, .. } = self.next() else { panic!("a completion was due") };
        result.unwrap()
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.call(Command::Write { offset, data, fua: false }), Outcome::Done);
    }
    fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let Outcome::Read(data) = self.call(Command::Read { offset, len, whole: false }) else {
            panic!("a read")
        };
        data
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
    assert!(message.contains("attached on n7 (epoch 41)"), "{message}");
    let (_g, said) = Guest::connect(&r.socket, "none", Goal::Go);
    assert!(matches!(said, Said::Refused { message, .. } if message == "no volume of this name"));
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
