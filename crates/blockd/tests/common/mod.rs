//! A plain machine in the node's place, and a blocking NBD client.
#![allow(dead_code, clippy::unwrap_used, reason = "shared by several tests, each of which uses a part")]

use blockd::core::Core;
use nbd::client::{Client, Command, Event as Said, Goal, Outcome, Wish};
use nbd::memory::{MemoryDisk, Reply};
use nbd::{Mode, Op};
use node::{DriveState, DriveView, Effect, Event, ExportError, ExportInfo, JournalFill, LinkId, SeatView};
use proto::control::WatchUpdate;
use proto::{BranchId, DriveId, ExportId, Geometry, Ticket, Time};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;
use volume::{GuestError, GuestOp, GuestReply, ReadPiece};

pub const SIZE: u64 = 64 << 20;

/// One volume in memory, echoing links. Requests are completed at the turn's end, last first.
pub struct Plain {
    pub disk: MemoryDisk,
    pub effects: VecDeque<Effect>,
    pub held: Vec<(ExportId, Ticket, GuestOp)>,
    /// The export opened last, and those that `Fenced` has broken.
    pub open: Option<ExportId>,
    pub broken: Vec<ExportId>,
    /// Bytes that came back on links it dialled.
    pub echoed: mpsc::Sender<usize>,
    pub tell: mpsc::Sender<&'static str>,
    pub drives: Vec<DriveView>,
    /// What becomes of the next drives that are opened; then they serve.
    pub fates: VecDeque<DriveState>,
    pub attaching: Vec<SeatView>,
}

fn op(op: GuestOp) -> Op {
    match op {
        GuestOp::Read { offset, len } => Op::Read { offset, len },
        GuestOp::Write { offset, len, data, fua } => Op::Write { offset, len, data: data.payload, fua },
        GuestOp::Flush => Op::Flush,
        GuestOp::Discard { offset, len, fua } => Op::Discard { offset, len, fua },
        GuestOp::WriteZeroes { offset, len, fua, no_hole } => Op::WriteZeroes { offset, len, fua, no_hole },
        GuestOp::Map { offset, len } => Op::Map { offset, len },
        GuestOp::Changes { offset, len, since } => Op::Changes { offset, len, since },
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

impl Plain {
    pub fn new(echoed: mpsc::Sender<usize>, tell: mpsc::Sender<&'static str>) -> Plain {
        Plain {
            disk: MemoryDisk::new(SIZE),
            effects: VecDeque::new(),
            held: Vec::new(),
            open: None,
            broken: Vec::new(),
            echoed,
            tell,
            drives: Vec::new(),
            fates: VecDeque::new(),
            attaching: Vec::new(),
        }
    }
}

impl Core for Plain {
    fn verification(&self, _: proto::RequestId) -> Option<node::VerifyState> {
        None
    }

    fn drives(&self) -> Vec<DriveView> {
        self.drives.clone()
    }
    fn attaching(&self) -> Vec<SeatView> {
        self.attaching.clone()
    }

    fn handle(&mut self, now: Time, event: Event) {
        assert!(self.effects.is_empty(), "drained before the next event");
        match event {
            Event::OpenExport { export, volume, .. } if volume == "mem" || volume == "mem@s" => {
                self.tell.send("open").unwrap();
                self.open = Some(export);
                let geometry = Geometry { size: SIZE, chunk_shift: 24 };
                let read_only = volume.contains('@');
                let info = ExportInfo { name: volume, branch: BranchId(1), geometry, read_only };
                self.effects.push_back(Effect::ExportOpened { export, info });
            }
            Event::OpenExport { export, volume, .. } => {
                let error = match volume.as_str() {
                    "held" => ExportError::Held { holder: "n7".into(), epoch: 41 },
                    "mem@t" => ExportError::NoSuchSnapshot,
                    _ => ExportError::NoSuchVolume,
                };
                self.effects.push_back(Effect::ExportRefused { export, error });
            }
            Event::AddDrive(d) => {
                let state = self.fates.pop_front().unwrap_or(DriveState::Serving);
                let (handle, drive) = (d.handle, DriveId(u64::from(d.handle) + 100));
                self.effects.push_back(match &state {
                    DriveState::Failed(failure) => Effect::DriveFailed { handle, failure: failure.clone() },
                    _ => Effect::DriveOpened { handle, drive },
                });
                self.drives.push(DriveView {
                    handle,
                    drive,
                    state,
                    since: now,
                    journal: JournalFill::default(),
                });
            }
            Event::CloseExport { .. } => self.tell.send("close").unwrap(),
            Event::Guest { export, request } => self.held.push((export, request.ticket, request.op)),
            Event::TurnEnd => {
                while let Some((export, ticket, guest)) = self.held.pop() {
                    let result = match self.broken.contains(&export) {
                        true => Err(GuestError::Io),
                        false => reply(self.disk.apply(op(guest))),
                    };
                    self.effects.push_back(Effect::Complete { export, ticket, result });
                }
            }
            Event::Watch(WatchUpdate::Nodes(nodes)) => {
                for n in nodes {
                    let link = LinkId(u64::from(n.node.0));
                    self.effects.push_back(Effect::Dial { link, to: n.node, address: n.address });
                }
            }
            Event::Watch(WatchUpdate::Fenced { .. }) => {
                let export = self.open.take().expect("one is open");
                self.broken.push(export);
                self.effects.push_back(Effect::ExportBroken { export });
                self.tell.send("broken").unwrap();
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

/// A blocking client.
pub struct Guest {
    pub client: Client,
    pub socket: UnixStream,
}

impl Guest {
    pub fn connect(path: &Path, export: &str, goal: Goal) -> (Guest, Said) {
        let wish = Wish {
            export: export.into(),
            goal,
            mode: Mode::Extended,
            context: Some("base:allocation".into()),
        };
        let mut g = Guest { client: Client::new(wish), socket: UnixStream::connect(path).unwrap() };
        g.socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let said = g.next();
        (g, said)
    }
    pub fn open(path: &Path) -> Guest {
        let (g, said) = Guest::connect(path, "mem", Goal::Go);
        assert!(matches!(said, Said::Ready(n) if n.size == SIZE));
        g
    }
    pub fn flush(&mut self) {
        let mut out = Vec::new();
        self.client.write_output(&mut out);
        self.socket.write_all(&out).unwrap();
    }
    pub fn next(&mut self) -> Said {
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
    pub fn call(&mut self, command: Command<'_>) -> Outcome {
        self.client.submit(command);
        let Said::Completed { result, .. } = self.next() else { panic!("a completion was due") };
        result.unwrap()
    }
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.call(Command::Write { offset, data, fua: false }), Outcome::Done);
    }
    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let Outcome::Read(data) = self.call(Command::Read { offset, len, whole: false }) else {
            panic!("a read")
        };
        data
    }
}
