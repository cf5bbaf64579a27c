//! Client against server over arbitrary fragmentation and completion order, judged by a plain array of bytes;
//! and both against bytes that nobody should send.
#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "a test's numbers are small, and its failures may panic"
)]

mod common;
use common::Rig;
use nbd::client::{Client, Command, Event, Extent, Goal, Outcome, Wish};
use nbd::memory::{MemoryDisk, MemoryOwner};
use nbd::{Close, Errno, Mode, Op, RequestId, Server};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

const SIZE: u64 = 64 * 4096;
const SECTORS: u64 = SIZE / 512;

#[derive(Clone, Debug)]
enum Do {
    Read {
        sector: u64,
        count: u64,
        whole: bool,
    },
    Write {
        sector: u64,
        count: u64,
        fill: u8,
        fua: bool,
    },
    Zeroes {
        sector: u64,
        count: u64,
    },
    Trim {
        sector: u64,
        count: u64,
    },
    Status {
        sector: u64,
        count: u64,
        one: bool,
    },
    Flush,
    /// The owner completes the request at this place in its queue.
    Complete {
        which: prop::sample::Index,
    },
}

fn action() -> impl Strategy<Value = Do> {
    let range = || (0..SECTORS + 2, prop_oneof![Just(1u64), Just(8), 1..40u64, 1..SECTORS]);
    prop_oneof![
        3 => (range(), any::<bool>()).prop_map(|((sector, count), whole)| Do::Read { sector, count, whole }),
        4 => (range(), 1..255u8, any::<bool>())
            .prop_map(|((sector, count), fill, fua)| Do::Write { sector, count, fill, fua }),
        1 => range().prop_map(|(sector, count)| Do::Zeroes { sector, count }),
        1 => range().prop_map(|(sector, count)| Do::Trim { sector, count }),
        1 => (range(), any::<bool>()).prop_map(|((sector, count), one)| Do::Status { sector, count, one }),
        1 => Just(Do::Flush),
        4 => any::<prop::sample::Index>().prop_map(|which| Do::Complete { which }),
    ]
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Simple), Just(Mode::Structured), Just(Mode::Extended)]
}

/// Both ends, with the wire cut into pieces of the given sizes, again and again.
struct Pair {
    client: Client,
    server: Server,
    owner: MemoryOwner,
    held: VecDeque<(RequestId, Op)>,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    cuts: Vec<usize>,
    turn: usize,
    mode: Mode,
    model: Vec<u8>,
    /// Cookies in the order of the server's ids: requests reach the owner in the order in which they are sent.
    admitted: Vec<u64>,
    /// What each request must give.
    expected: BTreeMap<u64, Expected>,
}

#[derive(PartialEq, Debug)]
enum Expected {
    Pending,
    Exactly(Result<Outcome, Errno>),
    /// Extents of the model as it was then.
    Status {
        now: Vec<u8>,
    },
}

impl Pair {
    fn new(mode: Mode, goal: Goal, cuts: Vec<usize>) -> Pair {
        let wish = Wish { export: "vol".into(), goal, mode, context: Some("base:allocation".into()) };
        let mut pair = Pair {
            client: Client::new(wish),
            server: Server::new(),
            owner: MemoryOwner { name: "vol".into(), read_only: false, disk: MemoryDisk::new(SIZE) },
            held: VecDeque::new(),
            to_server: Vec::new(),
            to_client: Vec::new(),
            cuts,
            turn: 0,
            mode: Mode::Simple,
            model: vec![0; SIZE as usize],
            admitted: Vec::new(),
            expected: BTreeMap::new(),
        };
        pair.settle();
        pair
    }
    fn cut(&mut self, most: usize) -> usize {
        self.turn += 1;
        self.cuts[self.turn % self.cuts.len()].min(most)
    }
    /// Moves bytes until both ends are silent.
    fn settle(&mut self) {
        loop {
            self.client.write_output(&mut self.to_server);
            self.server.write_output(&mut self.to_client);
            let n = self.cut(self.to_client.len());
            let bytes: Vec<u8> = self.to_client.drain(..n).collect();
            self.client.receive(&bytes);
            let m = self.cut(self.to_server.len());
            let taken = self.server.receive(&self.to_server[..m]);
            self.to_server.drain(..taken);
            self.owner.serve(&mut self.server, Some(&mut self.held));
            self.client.write_output(&mut self.to_server);
            let stuck = self.to_server.is_empty() || !self.server.wants_input();
            if stuck && self.to_client.is_empty() && self.server.output_len() == 0 {
                return;
            }
        }
    }
    fn act(&mut self, action: &Do) {
        let structured = self.mode >= Mode::Structured;
        let data;
        let bytes = |sector: u64, count: u64| (sector * 512, count * 512);
        let fits = |sector: u64, count: u64| sector + count <= SECTORS;
        let (command, ok, error) = match *action {
            Do::Read { sector, count, whole } => {
                let (offset, len) = bytes(sector, count);
                let whole = whole && structured;
                (Command::Read { offset, len: len as u32, whole }, fits(sector, count), Errno::Invalid)
            }
            Do::Write { sector, count, fill, fua } => {
                let (offset, len) = bytes(sector, count);
                data = vec![fill; len as usize];
                (Command::Write { offset, data: &data, fua }, fits(sector, count), Errno::NoSpace)
            }
            Do::Zeroes { sector, count } => {
                let (offset, len) = bytes(sector, count);
                let command = Command::WriteZeroes {
                    offset,
                    len,
                    fua: false,
                    no_hole: count % 2 == 0,
                    fast: count % 2 == 1,
                };
                (command, fits(sector, count), Errno::NoSpace)
            }
            Do::Trim { sector, count } => {
                let (offset, len) = bytes(sector, count);
                (Command::Trim { offset, len, fua: true }, fits(sector, count), Errno::Invalid)
            }
            Do::Status { sector, count, one } => {
                let (offset, len) = bytes(sector, count);
                (Command::Status { offset, len, one }, structured && fits(sector, count), Errno::Invalid)
            }
            Do::Flush => (Command::Flush, true, Errno::Io),
            Do::Complete { which } => {
                if !self.held.is_empty() {
                    self.complete(which.index(self.held.len()));
                }
                return;
            }
        };
        let cookie = self.client.submit(command);
        if ok {
            self.admitted.push(cookie);
            self.expected.insert(cookie, Expected::Pending);
        } else {
            self.expected.insert(cookie, Expected::Exactly(Err(error)));
        }
        self.settle();
        self.judge();
    }
    /// The owner completes one of the requests that it holds, and the model says what must come back.
    fn complete(&mut self, i: usize) {
        let (id, op) = self.held.remove(i).unwrap();
        let part = |offset: u64, len: u64| offset as usize..(offset + len) as usize;
        let expected = match &op {
            Op::Read { offset, len } => {
                Expected::Exactly(Ok(Outcome::Read(self.model[part(*offset, u64::from(*len))].to_vec())))
            }
            Op::Map { offset, len } => Expected::Status { now: self.model[part(*offset, *len)].to_vec() },
            Op::Write { offset, len, data, .. } => {
                let skip = (offset % 4096) as usize;
                self.model[part(*offset, u64::from(*len))]
                    .copy_from_slice(&data.bytes()[skip..skip + *len as usize]);
                Expected::Exactly(Ok(Outcome::Done))
            }
            Op::Discard { offset, len, .. } | Op::WriteZeroes { offset, len, .. } => {
                self.model[part(*offset, *len)].fill(0);
                Expected::Exactly(Ok(Outcome::Done))
            }
            Op::Changes { .. } => panic!("no such context was selected"),
            Op::Flush => Expected::Exactly(Ok(Outcome::Done)),
        };
        let cookie = self.admitted[id.0 as usize];
        self.expected.insert(cookie, expected);
        self.owner.complete(&mut self.server, id, op);
        self.settle();
        self.judge();
    }
    /// Every completion is the one that is due.
    fn judge(&mut self) {
        while let Some(event) = self.client.poll() {
            match event {
                Event::Ready(n) => {
                    assert_eq!(n.size, SIZE);
                    assert_eq!(n.context.is_some(), n.mode >= Mode::Structured);
                    self.mode = n.mode;
                }
                Event::Completed { cookie, result } => {
                    let expected = self.expected.remove(&cookie).expect("a completion for a request");
                    match expected {
                        Expected::Exactly(e) => assert_eq!(result, e),
                        Expected::Status { now } => {
                            let Ok(Outcome::Status(extents)) = result else { panic!("{result:?}") };
                            check_extents(&now, &extents);
                        }
                        Expected::Pending => panic!("completed before its owner did"),
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Extents cover no more than was asked for, something at least, and what is called zero is zero.
fn check_extents(now: &[u8], extents: &[Extent]) {
    let mut at = 0;
    for e in extents {
        let range = at..at + e.len as usize;
        match e.flags {
            3 => assert!(now[range.clone()].iter().all(|&b| b == 0), "called a hole, but has data"),
            0 => {}
            other => panic!("flags {other}"),
        }
        at = range.end;
    }
    assert!(at > 0 && at <= now.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn client_and_server_agree_with_an_array_of_bytes(
        mode in mode(),
        oldest in any::<bool>(),
        cuts in prop::collection::vec(prop_oneof![1..40usize, 1..5000usize, Just(1 << 20)], 1..6),
        actions in prop::collection::vec(action(), 1..60),
    ) {
        let goal = if oldest { Goal::ExportName } else { Goal::Go };
        let mut pair = Pair::new(mode, goal, cuts);
        pair.judge();
        prop_assert!(pair.server.export().is_some());
        let reached = if oldest { mode.min(Mode::Structured) } else { mode };
        prop_assert_eq!(pair.mode, reached);
        for a in &actions {
            pair.act(a);
        }
        while !pair.held.is_empty() {
            pair.complete(0);
        }
        prop_assert_eq!(pair.client.in_flight(), 0);
        prop_assert!(pair.expected.is_empty());
        pair.client.disconnect();
        pair.settle();
        prop_assert_eq!(pair.server.finished(), Some(Close::Disconnected));
    }

    /// Whatever comes, whenever: no panic, no endless loop, and nothing out of bounds reaches the owner.
    #[test]
    fn noise_never_breaks_a_server(
        mode in prop_oneof![Just(None), (0..3u8).prop_map(Some)],
        noise in prop::collection::vec(noise(), 1..30),
    ) {
        let mut rig = Rig::new(SIZE);
        if let Some(mode) = mode {
            rig.enter(mode);
        }
        for bytes in &noise {
            let mut rest = &bytes[..];
            while rig.server.wants_input() && !rest.is_empty() {
                let n = rig.server.receive(rest);
                prop_assert!(n > 0);
                rest = &rest[n..];
                // The memory disk panics beyond its end, the server on an answer that does not fit.
                rig.owner.serve(&mut rig.server, None);
                while rig.server.poll_output().is_some() {}
            }
        }
    }

    /// The same for the client: a server may say anything at any time.
    #[test]
    fn noise_never_breaks_a_client(
        mode in mode(),
        entered in any::<bool>(),
        noise in prop::collection::vec(answer(), 1..30),
    ) {
        let mut client = if entered {
            let mut pair = Pair::new(mode, Goal::Go, vec![1 << 20]);
            pair.client.submit(Command::Read { offset: 0, len: 8192, whole: false });
            pair.client.submit(Command::Flush);
            if mode >= Mode::Structured {
                pair.client.submit(Command::Status { offset: 0, len: 8192, one: false });
            }
            pair.client
        } else {
            Client::new(Wish { export: "vol".into(), goal: Goal::Go, mode, context: Some("base:allocation".into()) })
        };
        for bytes in &noise {
            client.receive(bytes);
            while client.poll().is_some() {}
            client.write_output(&mut Vec::new());
        }
    }

    /// A good stream with one byte changed: the server errs or serves, but never panics, and its answers are
    /// still a stream that a client can read.
    #[test]
    fn one_wrong_byte_in_a_good_stream(
        mode in 0..3u8,
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let mut stream = Vec::new();
        let request = |flags, command, cookie, offset, len: u32| if mode == 2 {
            let flags = flags | if command == 1 { 32 } else { 0 };
            common::extended(flags, command, cookie, offset, u64::from(len))
        } else {
            common::compact(flags, command, cookie, offset, len)
        };
        stream.extend(request(1, 1, 1, 512, 4096));
        stream.extend([0xaa; 4096]);
        stream.extend(request(0, 0, 2, 0, 16384));
        stream.extend(request(0, 6, 3, 0, 8192));
        stream.extend(request(0, 7, 4, 0, 16384));
        stream.extend(request(0, 3, 5, 0, 0));
        let at = at.index(stream.len());
        stream[at] = value;
        let mut rig = Rig::entered(SIZE, mode);
        let mut rest = &stream[..];
        while rig.server.wants_input() && !rest.is_empty() {
            let n = rig.server.receive(rest);
            rest = &rest[n..];
            rig.owner.serve(&mut rig.server, None);
        }
        let mut answers = Vec::new();
        rig.server.write_output(&mut answers);
        prop_assert!(well_formed(&answers), "{:?}", answers);
    }
}

/// Do these bytes divide into replies? (Reads are the only ones with data behind a simple reply.)
fn well_formed(mut bytes: &[u8]) -> bool {
    let word = |b: &[u8], at: usize| u32::from_be_bytes(b[at..at + 4].try_into().unwrap());
    while bytes.len() >= 16 {
        let skip = match word(bytes, 0) {
            0x6744_6698 => {
                // Of a read that was mutated we do not know the length: look for the next reply.
                let next = bytes[16..].windows(4).position(|w| w == 0x6744_6698u32.to_be_bytes());
                16 + next.unwrap_or(bytes.len() - 16)
            }
            0x668e_33ef => 20 + word(bytes, 16) as usize,
            0x6e8a_278c => 32 + word(bytes, 28) as usize,
            _ => return false,
        };
        if skip > bytes.len() {
            return false;
        }
        bytes = &bytes[skip..];
    }
    bytes.is_empty()
}

/// Bytes that resemble what a client sends, or do not.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let number = || prop_oneof![0..12u64, Just(512), Just(4096), Just(SIZE), any::<u64>()];
    let small = || prop_oneof![0..14u32, Just(4096), Just(65536), any::<u32>()];
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        (0..13u32, prop::collection::vec(any::<u8>(), 0..64)).prop_map(|(o, d)| common::option(o, &d)),
        (6..11u32, small(), small()).prop_map(|(o, n, count)| {
            common::option(o, &common::B::new().u32(n).raw(b"vol").u32(count).raw(b"\0\0\0\x05base:").0)
        }),
        (0..13u32, small()).prop_map(|(o, len)| {
            common::B::new().u64(0x4948_4156_454f_5054).u32(o).u32(len).raw(b"data").0
        }),
        (0..64u16, 0..9u16, number(), number(), small())
            .prop_map(|(f, c, cookie, offset, len)| common::compact(f, c, cookie, offset, len)),
        (0..64u16, 0..9u16, number(), number(), number())
            .prop_map(|(f, c, cookie, offset, len)| common::extended(f, c, cookie, offset, len)),
    ]
}

/// Bytes that resemble what a server sends, or do not.
fn answer() -> impl Strategy<Value = Vec<u8>> {
    let number = || prop_oneof![0..12u64, Just(4096), any::<u64>()];
    let small = || prop_oneof![0..14u32, Just(4096), any::<u32>()];
    let data = || prop::collection::vec(any::<u8>(), 0..64);
    prop_oneof![
        data(),
        Just(b"NBDMAGICIHAVEOPT\0\x03".to_vec()),
        (prop_oneof![Just(11u32), Just(8), Just(10), Just(7)], 0..5u32, data())
            .prop_map(|(o, kind, d)| common::option_reply(o, kind, &d)),
        (prop_oneof![Just(11u32), Just(8), Just(7)], 0..12u32)
            .prop_map(|(o, e)| common::error_reply(o, e, "no")),
        (small(), 0..5u64).prop_map(|(error, cookie)| common::simple(error, cookie).0),
        (0..2u16, prop_oneof![0..7u16, 0x8001..0x8004u16], 1..4u64, small(), number(), data())
            .prop_map(|(f, k, c, len, off, d)| common::chunk(f, k, c, len).u64(off).raw(&d).0),
        (0..2u16, prop_oneof![0..7u16, 0x8001..0x8004u16], 1..4u64, number(), number(), data())
            .prop_map(|(f, k, c, len, off, d)| common::ext_chunk(f, k, c, 0, len).u64(off).raw(&d).0),
    ]
}

#[test]
fn goals_that_only_ask_are_answered() {
    let ask = |goal, export: &str| {
        let mut pair = Pair::new(Mode::Extended, goal, vec![7]);
        if export != "vol" {
            let wish = Wish {
                export: export.into(),
                goal,
                mode: Mode::Extended,
                context: Some("base:allocation".into()),
            };
            (pair.client, pair.server) = (Client::new(wish), Server::new());
            pair.settle();
        }
        let event = pair.client.poll().expect("an answer");
        pair.client.disconnect();
        pair.settle();
        assert_eq!(pair.server.finished(), Some(Close::Aborted));
        event
    };
    let Event::Info(n) = ask(Goal::Info, "vol") else { panic!() };
    assert_eq!((n.size, n.mode, n.blocks), (SIZE, Mode::Extended, Some(nbd::BLOCK_SIZES)));
    assert_eq!(n.description.as_deref(), Some("a disk in memory"));
    let Event::Listed(list) = ask(Goal::List, "vol") else { panic!() };
    assert_eq!((list.len(), &list[0].name[..]), (1, "vol"));
    assert_eq!(ask(Goal::ListContexts, "vol"), Event::Contexts(vec!["base:allocation".into()]));
    let Event::Refused { code, message } = ask(Goal::Info, "nope") else { panic!() };
    assert_eq!((code, &message[..]), (nbd::wire::rep::ERR_UNKNOWN, "no volume \"nope\""));
}

#[test]
fn a_client_does_with_less_than_it_wished() {
    let mut client = Client::new(Wish {
        export: "v".into(),
        goal: Goal::Go,
        mode: Mode::Extended,
        context: Some("base:allocation".into()),
    });
    let mut said = Vec::new();
    client.receive(b"NBDMAGICIHAVEOPT\0\x03");
    client.receive(&common::error_reply(11, 1, "no"));
    client.receive(&common::error_reply(8, 1, "no"));
    let export = common::B::new().u16(0).u64(4096).u16(1).0;
    client.receive(&[common::option_reply(7, 3, &export), common::option_reply(7, 1, &[])].concat());
    let Some(Event::Ready(n)) = client.poll() else { panic!() };
    assert_eq!((n.mode, n.size, n.context), (Mode::Simple, 4096, None));
    client.write_output(&mut said);
    let go = common::option(7, &common::B::new().string("v").u16(2).u16(3).u16(2).0);
    let expected = [vec![0, 0, 0, 3], common::option(11, &[]), common::option(8, &[]), go].concat();
    assert_eq!(said, expected);
}

#[test]
fn a_read_reply_that_lacks_data_is_noticed() {
    let mut pair = Pair::new(Mode::Structured, Goal::Go, vec![1 << 20]);
    pair.client.poll();
    let cookie = pair.client.submit(Command::Read { offset: 4096, len: 8192, whole: false });
    pair.client.receive(&common::chunk(1, 2, cookie, 12).u64(4096).u32(4096).0);
    assert_eq!(pair.client.poll(), Some(Event::Broken(nbd::client::Broken::Incomplete(cookie))));
}

#[test]
fn overlapping_and_foreign_chunks_are_noticed() {
    for (at, len) in [(4096, 4096), (0, 4096), (8192, 8192)] {
        let mut pair = Pair::new(Mode::Structured, Goal::Go, vec![1 << 20]);
        pair.client.poll();
        let cookie = pair.client.submit(Command::Read { offset: 4096, len: 8192, whole: false });
        pair.client.receive(&common::chunk(0, 2, cookie, 12).u64(4096).u32(4096).0);
        assert_eq!(pair.client.poll(), None);
        pair.client.receive(&common::chunk(0, 2, cookie, 12).u64(at).u32(len).0);
        assert!(matches!(pair.client.poll(), Some(Event::Broken(_))), "{at}");
    }
}
