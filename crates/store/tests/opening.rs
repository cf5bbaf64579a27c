//! What opening refuses, what closing leaves, and what damage does: exact effects, one rule each.
#![allow(clippy::unwrap_used, reason = "a test")]

use proto::message::{
    BlockState, BranchInfo, ChunkRecord, HeldBy, Probe, Reply, Request, RequestFrame, Run, Scope, View,
};
use proto::*;
use store::event::{Failure, Opened, Pull};
use store::layout::Layout;
use store::medium::Medium;
use store::{Effect, Event, FormatParams, IoId, IoOp, IoResult, OpenParams, Source, Store, inspect};

const SIZE: u64 = 16 << 20;
const BRANCH: BranchId = BranchId(5);

fn format_params() -> FormatParams {
    FormatParams {
        size: SIZE,
        cluster: ClusterId(1),
        node: NodeId(2),
        drive: DriveId(3),
        journal: Some(1 << 20),
    }
}
fn params(boot: u8, opening: u64) -> OpenParams {
    OpenParams {
        size: SIZE,
        boot: [boot; 16],
        cluster: ClusterId(1),
        node: NodeId(2),
        opening: OpenId(opening),
        volatile_cache: true,
        now: Time(1),
    }
}
fn medium() -> Medium {
    let mut m = Medium::new(SIZE, true);
    m.format(&format_params()).unwrap();
    m
}

/// A store and its drive; every I/O completes at once.
struct Bench {
    medium: Medium,
    store: Store,
    now: Time,
    seen: Vec<Effect>,
}
impl Bench {
    fn open(medium: Medium, p: OpenParams) -> Bench {
        let mut b = Bench { medium, store: Store::new(p), now: Time(1), seen: Vec::new() };
        b.settle();
        b
    }
    fn settle(&mut self) {
        loop {
            let mut ios: Vec<IoId> = Vec::new();
            while let Some(e) = self.store.poll() {
                match e {
                    Effect::Io { io, op } => {
                        self.medium.submit(io, op);
                        ios.push(io);
                    }
                    other => self.seen.push(other),
                }
            }
            ios.extend(self.medium.in_flight());
            let Some(io) = ios.first().copied() else { break };
            let result = self.medium.complete(io);
            self.store.handle(self.now, Event::Io { io, result });
        }
    }
    fn event(&mut self, e: Event) {
        self.store.handle(self.now, e);
        self.settle();
    }
    fn request(&mut self, token: u64, scope: Scope, request: Request) -> Vec<Reply> {
        self.seen.clear();
        self.event(Event::Request { source: Source(1), frame: RequestFrame { token, scope, request } });
        self.event(Event::TurnEnd);
        self.replies()
    }
    fn replies(&mut self) -> Vec<Reply> {
        let replies = self.seen.drain(..).filter_map(|e| match e {
            Effect::Reply { frame, .. } => Some(frame.reply),
            _ => None,
        });
        replies.collect()
    }
    fn opened(&self) -> &Opened {
        self.seen.iter().find_map(|e| if let Effect::Opened(o) = e { Some(&**o) } else { None }).unwrap()
    }
    fn failure(&self) -> Option<&Failure> {
        self.seen.iter().find_map(|e| if let Effect::Failed(f) = e { Some(f) } else { None })
    }
    fn pass(&mut self, span: Span) {
        let end = self.now + span;
        while self.store.next_wake() <= end {
            self.now = self.now.max(self.store.next_wake());
            self.event(Event::Wake);
        }
        self.now = end;
    }
    /// Confirmed, with one replica.
    fn with_replica() -> Bench {
        Bench::with_replica_on(medium())
    }
    fn with_replica_on(medium: Medium) -> Bench {
        let size = medium.size();
        let mut b = Bench::open(medium, OpenParams { size, ..params(1, 10) });
        b.event(Event::Confirmed);
        let replies = b.create(1, 7);
        assert_eq!(replies, [Reply::Done]);
        b
    }
    fn create(&mut self, token: u64, incarnation: u64) -> Vec<Reply> {
        let info = BranchInfo {
            branch: BRANCH,
            name: "vol1".into(),
            geometry: Geometry { size: 16 << 20, chunk_shift: 24 },
            parent: None,
            generation: Generation(1),
        };
        let chunk = ChunkRecord {
            chunk: ChunkIndex(0),
            incarnation: Incarnation(incarnation),
            configuration: Configuration::default(),
        };
        self.request(token, scope(), Request::Create { info, chunks: vec![chunk] })
    }
    fn write(&mut self, seq: u64, first: u32, fill: u8, blocks: u32) -> Vec<Reply> {
        self.write_payload(seq, first, Payload::copy_of(&vec![fill; blocks as usize * 4096]))
    }
    fn write_payload(&mut self, seq: u64, first: u32, payload: Payload) -> Vec<Reply> {
        let blocks = u32::try_from(payload.blocks()).unwrap();
        let record = Record {
            kind: RecordKind::Write,
            branch: BRANCH,
            chunk: ChunkIndex(0),
            range: BlockRange::new(first, blocks),
            version: Version::new(Epoch(1), seq),
            generation: Generation(1),
            incarnation: Incarnation(7),
            key: KeyId(0),
            sums: Record::sums_of(&payload),
        };
        self.request(0, scope(), Request::Write { record, payload, fresh: true })
    }
    fn read(&mut self, first: u32, count: u32) -> (Vec<(u32, BlockState)>, Payload) {
        let range = BlockRange::new(first, count);
        let request = Request::Read { view: View::Head, range, media: false, source_process: None };
        let replies = self.request(9, scope(), request);
        let [Reply::ReadDone { runs, payload, .. }] = &replies[..] else { panic!("{replies:?}") };
        (runs.iter().map(|r| (r.count, r.state)).collect(), payload.clone())
    }
}
fn scope() -> Scope {
    Scope {
        drive: DriveId(3),
        branch: BRANCH,
        chunk: ChunkIndex(0),
        epoch: Epoch(1),
        incarnation: Incarnation(7),
        configuration: ConfigNumber(1),
        marks: Marks::default(),
    }
}
fn refusal(replies: &[Reply]) -> Option<Refusal> {
    replies.iter().find_map(|r| if let Reply::Refused { refusal, .. } = r { Some(*refusal) } else { None })
}

#[test]
fn a_file_system_is_no_blockd_drive() {
    let mut m = Medium::new(SIZE, true);
    m.put(0, &Payload::copy_of(&[0x53; 8192]));
    let b = Bench::open(m, params(1, 1));
    assert_eq!(b.failure(), Some(&Failure::NoSuperblock));
    let small = OpenParams { size: 4096, ..params(1, 1) };
    let mut store = Store::new(small);
    assert!(matches!(store.poll(), Some(Effect::Failed(Failure::NoSuperblock))));
}

#[test]
fn another_nodes_or_clusters_drive_is_refused_by_name() {
    let held = HeldBy { cluster: ClusterId(1), node: NodeId(2) };
    for p in
        [OpenParams { node: NodeId(9), ..params(1, 1) }, OpenParams { cluster: ClusterId(9), ..params(1, 1) }]
    {
        assert_eq!(Bench::open(medium(), p).failure(), Some(&Failure::Foreign(held)));
    }
}

#[test]
fn a_drive_that_shrank_is_refused() {
    let now = SIZE - 65536;
    let b = Bench::open(medium(), OpenParams { size: now, ..params(1, 1) });
    assert_eq!(b.failure(), Some(&Failure::Shrunk { then: SIZE, now }));
}

#[test]
fn unknown_features_are_refused_and_nothing_is_written() {
    let mut m = medium();
    let mut bytes = PageBuf::copy_of(m.get(0, 1).bytes());
    bytes.bytes_mut()[32] = 4; // an incompatible bit
    bytes.bytes_mut()[8..12].fill(0);
    let crc = crc32c::crc32c(bytes.bytes());
    bytes.bytes_mut()[8..12].copy_from_slice(&crc.to_le_bytes());
    m.put(0, &bytes.freeze());
    let before = m.get(0, 32);
    let b = Bench::open(m, params(1, 1));
    assert_eq!(b.failure(), Some(&Failure::Features(4)));
    assert_eq!(b.medium.get(0, 32), before);
}

#[test]
fn nobody_is_served_before_metad_has_confirmed() {
    let mut b = Bench::open(medium(), params(1, 10));
    assert_eq!(b.opened().openings, [OpenId(10)]);
    assert!(!b.opened().same_boot);
    let replies = b.request(1, scope(), Request::Flush);
    assert_eq!(refusal(&replies), Some(Refusal::DriveNotConfirmed));
    b.event(Event::Confirmed);
    b.pass(Span::secs(3));
    // A restart within the same boot needs no new confirmation; another boot does.
    let again = Bench::open(b.medium, params(1, 11));
    assert!(again.opened().same_boot && again.store.is_serving());
    let rebooted = Bench::open(again.medium, params(2, 12));
    assert!(!rebooted.opened().same_boot && !rebooted.store.is_serving());
    assert_eq!(rebooted.opened().openings, [OpenId(10), OpenId(11), OpenId(12)]);
}

#[test]
fn an_unconfirmed_opening_does_not_serve_after_a_restart_in_the_same_boot() {
    let b = Bench::open(medium(), params(1, 10));
    let again = Bench::open(b.medium, params(1, 11));
    assert!(!again.opened().same_boot && !again.store.is_serving());
}

#[test]
fn a_write_is_acknowledged_read_and_survives() {
    let mut b = Bench::with_replica();
    let replies = b.write(1, 3, 0xaa, 2);
    let [Reply::Acks(acks)] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!((acks[0].version, acks[0].extents), (Version::new(Epoch(1), 1), 1));
    let (runs, payload) = b.read(2, 4);
    assert_eq!(runs, [(1, BlockState::Absent), (2, BlockState::Data), (1, BlockState::Absent)]);
    assert_eq!(payload.bytes(), [0xaa; 8192]);
    let mut again = Bench::open(b.medium, params(1, 11));
    assert_eq!(again.read(3, 2).1.bytes(), [0xaa; 8192]);
}

#[test]
fn wrong_sums_ranges_and_incarnations_are_refused() {
    let mut b = Bench::with_replica();
    let payload = Payload::copy_of(&[1; 4096]);
    let good = Record {
        kind: RecordKind::Write,
        branch: BRANCH,
        chunk: ChunkIndex(0),
        range: BlockRange::new(0, 1),
        version: Version::new(Epoch(1), 1),
        generation: Generation(1),
        incarnation: Incarnation(7),
        key: KeyId(0),
        sums: Record::sums_of(&payload),
    };
    let mut ask = |change: fn(&mut Record, &mut Scope)| {
        let (mut record, mut s) = (good.clone(), scope());
        change(&mut record, &mut s);
        let request = Request::Write { record, payload: payload.clone(), fresh: true };
        refusal(&b.request(0, s, request))
    };
    assert_eq!(ask(|r, _| r.sums[0].0 ^= 1), Some(Refusal::BadChecksum));
    assert_eq!(ask(|r, _| r.range.first = 4096), Some(Refusal::Invalid));
    assert_eq!(ask(|r, _| r.range.first = u32::MAX), Some(Refusal::Invalid));
    assert_eq!(ask(|_, s| s.incarnation = Incarnation(8)), Some(Refusal::UnknownReplica));
    assert_eq!(ask(|_, s| s.branch = BranchId(6)), Some(Refusal::UnknownReplica));
    assert_eq!(ask(|_, s| s.epoch = Epoch(0)), Some(Refusal::OldEpoch));
    assert_eq!(ask(|_, s| s.epoch = Epoch(2)), Some(Refusal::NotFenced));
    assert_eq!(ask(|_, _| ()), None);
}

#[test]
fn a_rotten_block_at_home_is_bad_and_its_neighbours_are_not() {
    let mut b = Bench::with_replica();
    b.write(1, 0, 0x11, 16);
    b.pass(Span::secs(20));
    let offset = b.store.home_offset(BRANCH, ChunkIndex(0), 5).unwrap();
    b.medium.rot(offset, 77);
    let (runs, payload) = b.read(0, 16);
    assert_eq!(runs, [(5, BlockState::Data), (1, BlockState::Bad), (10, BlockState::Data)]);
    assert_eq!(payload.blocks(), 15);
    b.medium.make_unreadable(offset + 4096);
    assert_eq!(b.read(4, 4).0, [(1, BlockState::Data), (2, BlockState::Bad), (1, BlockState::Data)]);
}

#[test]
fn a_repair_is_done_only_if_the_extent_is_still_what_failed() {
    let mut b = Bench::with_replica();
    b.write(1, 0, 0x11, 16);
    b.pass(Span::secs(20));
    let offset = b.store.home_offset(BRANCH, ChunkIndex(0), 5).unwrap();
    b.medium.rot(offset, 77);
    let payload = Payload::copy_of(&[0x11; 4096]);
    let record = Record {
        kind: RecordKind::Write,
        branch: BRANCH,
        chunk: ChunkIndex(0),
        range: BlockRange::new(5, 1),
        version: Version::new(Epoch(1), 1),
        generation: Generation(1),
        incarnation: Incarnation(7),
        key: KeyId(0),
        sums: Record::sums_of(&payload),
    };
    let repair = |failed| Request::Repair { record: record.clone(), payload: payload.clone(), failed };
    let late = b.request(4, scope(), repair(Version::new(Epoch(1), 9)));
    assert_eq!(refusal(&late), Some(Refusal::Changed));
    assert_eq!(b.request(4, scope(), repair(Version::new(Epoch(1), 1))), [Reply::Done]);
    assert_eq!(b.read(5, 1).0, [(1, BlockState::Data)]);
    b.pass(Span::secs(20));
    assert!(b.store.is_at_rest());
    assert_eq!(b.read(0, 16).0, [(16, BlockState::Data)]);
}

#[test]
fn an_error_on_the_journal_stops_the_drive() {
    let mut b = Bench::with_replica();
    b.medium.break_down();
    let replies = b.write(1, 0, 1, 1);
    assert!(replies.iter().all(|r| !matches!(r, Reply::Acks(_))));
    assert!(b.store.has_failed());
    assert_eq!(refusal(&b.write(2, 0, 1, 1)), Some(Refusal::DriveFailed));
}

#[test]
fn a_failed_io_is_reported_with_its_place_and_a_failed_flush_as_a_flush() {
    let mut b = Bench::with_replica();
    b.write(1, 0, 1, 1);
    b.medium.break_down();
    b.seen.clear();
    b.event(Event::Close);
    assert!(matches!(b.failure(), Some(Failure::Flush { errno: 5 })), "{:?}", b.failure());
    let mut broken = medium();
    broken.break_down();
    let at_start = Bench::open(broken, params(1, 10));
    assert_eq!(at_start.failure(), Some(&Failure::Io { errno: 5, offset: 0 }));
    // A batch goes to the journal, which does not begin at the drive's start.
    let mut b = Bench::with_replica();
    b.medium.break_down();
    let scope =
        Scope { marks: Marks { committed: Version::new(Epoch(1), 1), ..Marks::default() }, ..scope() };
    b.seen.clear();
    b.event(Event::Request {
        source: Source(1),
        frame: RequestFrame { token: 1, scope, request: Request::Marks },
    });
    b.event(Event::TurnEnd);
    b.pass(Span::secs(2));
    assert!(matches!(b.failure(), Some(Failure::Io { errno: 5, offset: 1.. })), "{:?}", b.failure());
}

#[test]
fn a_clean_close_leaves_no_doubt_and_a_power_loss_does() {
    let mut b = Bench::with_replica();
    b.write(1, 0, 1, 1);
    b.event(Event::Close);
    assert!(b.seen.iter().any(|e| matches!(e, Effect::Closed)));
    b.medium.power_loss(&mut |_| 0);
    let mut b = Bench::open(b.medium, params(2, 11));
    assert!(b.opened().in_doubt.is_empty());
    b.event(Event::Confirmed);
    b.medium.power_loss(&mut |_| 0);
    // Doubt lasts through a second restart, and ends by order.
    let b = Bench::open(b.medium, params(3, 12));
    assert_eq!(b.opened().in_doubt, [BRANCH]);
    let mut b = Bench::open(b.medium, params(3, 13));
    assert_eq!(b.opened().in_doubt, [BRANCH]);
    b.event(Event::Confirmed);
    assert_eq!(b.request(5, scope(), Request::EndDoubt), [Reply::Done]);
    let b = Bench::open(b.medium, params(3, 14));
    assert!(b.opened().in_doubt.is_empty());
}

#[test]
fn at_rest_everything_is_home_and_nothing_wakes() {
    let mut b = Bench::with_replica();
    for i in 0..40 {
        b.write(i + 1, u32::try_from(i * 7).unwrap(), 3, 1);
    }
    b.pass(Span::secs(30));
    b.store.check();
    assert!(b.store.is_at_rest(), "{:?}", b.store.usage());
    assert_eq!(b.store.next_wake(), Time::FAR);
    assert_eq!(b.store.usage().journal_used, 0);
}

#[test]
fn credits_are_bounded_by_space_and_void_on_a_new_connection() {
    let mut b = Bench::with_replica();
    let ask = |b: &mut Bench, want| {
        let probe = Probe { generation: Generation(1), range: BlockRange::new(0, 1), zero: false };
        let replies = b.request(2, scope(), Request::Credit { want, probe: Some(probe) });
        let [Reply::Credit { granted, allocated }] = replies[..] else { panic!("{replies:?}") };
        (granted, allocated)
    };
    let all = b.store.usage().free_extents - 2;
    // a quarter of what is left at a time, so that others get some too
    assert_eq!(ask(&mut b, u32::MAX), (all.div_ceil(4), false));
    let mut granted = all.div_ceil(4);
    while let (more @ 1.., _) = ask(&mut b, u32::MAX) {
        granted += more;
    }
    assert_eq!(granted, all);
    assert_eq!(ask(&mut b, 1), (0, false));
    b.write(1, 0, 1, 1);
    assert_eq!(ask(&mut b, 1), (0, true));
    b.event(Event::SourceClosed { source: Source(1) });
    assert_eq!(ask(&mut b, u32::MAX), ((all - 1).div_ceil(4), true));
}

#[test]
fn deleting_names_an_incarnation_and_frees_its_extents() {
    let mut b = Bench::with_replica();
    let free = b.store.usage().free_extents;
    b.write(1, 0, 1, 16);
    b.write(2, 40, 1, 1);
    let held =
        |i| proto::control::HeldReplica { branch: BRANCH, chunk: ChunkIndex(0), incarnation: Incarnation(i) };
    b.event(Event::Delete { replicas: vec![held(6)], index: LogIndex(4) });
    b.event(Event::TurnEnd);
    assert_eq!(b.store.replicas(), [held(7)]);
    b.event(Event::Delete { replicas: vec![held(7)], index: LogIndex(5) });
    b.event(Event::TurnEnd);
    assert!(b.store.replicas().is_empty());
    assert!(b.seen.iter().any(|e| matches!(e, Effect::Deleted { replicas } if *replicas == [held(7)])));
    assert_eq!(b.store.usage().free_extents, free);
    assert_eq!(refusal(&b.write(3, 0, 1, 1)), Some(Refusal::UnknownReplica));
    // Asked for before metad's order, and late: it is nobody's.
    for incarnation in [6, 7] {
        assert_eq!(refusal(&b.create(5, incarnation)), Some(Refusal::UnknownReplica));
    }
    assert!(b.store.replicas().is_empty());
    let b = Bench::open(b.medium, params(1, 11));
    assert!(b.opened().replicas.is_empty());
    assert_eq!(b.store.usage().free_extents, free);
}

#[test]
fn equal_content_of_equal_version_gives_equal_digests_however_it_is_stored() {
    let digest = |b: &mut Bench| {
        b.request(
            3,
            scope(),
            Request::Digest { views: proto::Generations::new(), head: true, source_process: None },
        )
    };
    let mut a = Bench::with_replica();
    a.write(16, 0, 7, 16);
    a.write(19, 20, 8, 1);
    let mut b = Bench::with_replica();
    for block in 0..16 {
        b.write(u64::from(block) + 1, block, 7, 1);
    }
    b.write(17, 20, 9, 2);
    assert_ne!(digest(&mut a), digest(&mut b));
    b.write(18, 20, 8, 1);
    let zero = Record {
        kind: RecordKind::Zero,
        branch: BRANCH,
        chunk: ChunkIndex(0),
        range: BlockRange::new(21, 300),
        version: Version::new(Epoch(1), 19),
        generation: Generation(1),
        incarnation: Incarnation(7),
        key: KeyId(0),
        sums: Default::default(),
    };
    b.request(0, scope(), Request::Write { record: zero, payload: Payload::empty(), fresh: false });
    b.pass(Span::secs(30));
    assert_eq!(digest(&mut a), digest(&mut b));
}

#[test]
fn inspection_shows_what_was_written() {
    let mut b = Bench::with_replica();
    b.write(1, 3, 0xaa, 2);
    let medium = b.medium;
    let mut read = |offset: u64, blocks: u32| Ok::<_, ()>(medium.get(offset, blocks));
    let (_, s) = inspect::superblock(&mut read).unwrap();
    assert_eq!((s.drive, s.node, s.open), (DriveId(3), NodeId(2), 1));
    let j = inspect::journal(&s, &mut read).unwrap();
    let last = j.batches.last().unwrap().entries.last().unwrap();
    assert!(matches!(last, store::disk::entry::Entry::Write { first: 3, count: 2, .. }), "{last:?}");
    assert!(!j.lost && j.batches.len() >= 2);
    assert!(inspect::records(&s, &mut read, |_, head| assert!(head.is_some())).unwrap().is_empty());
}

/// A large write whose data is on its way, and a small one that waits behind it; then `request`; then all I/O ends.
/// Returns what was acknowledged.
fn behind_a_large_write(b: &mut Bench, request: Request) -> Vec<u64> {
    let mut now = |frame: RequestFrame| {
        b.store.handle(b.now, Event::Request { source: Source(1), frame });
        while let Some(e) = b.store.poll() {
            match e {
                Effect::Io { io, op } => b.medium.submit(io, op),
                other => b.seen.push(other),
            }
        }
    };
    for (seq, blocks) in [(1, 16), (2, 1)] {
        let payload = Payload::copy_of(&vec![9; blocks as usize * 4096]);
        let record = Record {
            kind: RecordKind::Write,
            branch: BRANCH,
            chunk: ChunkIndex(0),
            range: BlockRange::new(0, blocks),
            version: Version::new(Epoch(1), seq),
            generation: Generation(1),
            incarnation: Incarnation(7),
            key: KeyId(0),
            sums: Record::sums_of(&payload),
        };
        now(RequestFrame {
            token: 0,
            scope: scope(),
            request: Request::Write { record, payload, fresh: true },
        });
    }
    now(RequestFrame { token: 5, scope: scope(), request });
    b.event(Event::TurnEnd);
    b.pass(Span::secs(3));
    let acks = b.replies().into_iter().flat_map(|r| if let Reply::Acks(v) = r { v } else { vec![] });
    acks.map(|a| a.version.seq).collect()
}

fn attempt(number: u64, epoch: Epoch) -> proto::message::Attempt {
    let (node, drive) = (NodeId(2), DriveId(3));
    proto::message::Attempt {
        number,
        epoch,
        chunk: ChunkIndex(0),
        configuration: ConfigNumber(1),
        generation: Generation(1),
        views: proto::Generations::new(),
        head: true,
        source: Place { node: NodeId(1), drive: DriveId(1), incarnation: Incarnation(1) },
        source_process: ProcessNumber(1),
        target: Place { node, drive, incarnation: Incarnation(7) },
        target_process: ProcessNumber(1),
    }
}

#[test]
fn what_waits_behind_a_large_write_does_not_join_a_newer_attempt() {
    let mut b = Bench::with_replica();
    let attempt = attempt(2, Epoch(1));
    assert_eq!(behind_a_large_write(&mut b, Request::AttemptBegin { attempt }), []);
    assert_eq!(b.read(0, 1).0, [(1, BlockState::Absent)]);
    b.store.check();
}

/// The next session counts its attempts from one again, on the same connection.
#[test]
fn a_pull_that_waits_does_not_join_the_next_sessions_attempt_of_the_same_number() {
    let mut b = Bench::with_replica();
    b.request(1, scope(), Request::AttemptBegin { attempt: attempt(1, Epoch(1)) });
    let payload = Payload::copy_of(&[9; 16 * 4096]);
    let record = Record {
        kind: RecordKind::Write,
        branch: BRANCH,
        chunk: ChunkIndex(0),
        range: BlockRange::new(0, 16),
        version: Version::new(Epoch(1), 1),
        generation: Generation(1),
        incarnation: Incarnation(7),
        key: KeyId(0),
        sums: Record::sums_of(&payload),
    };
    let block = Payload::copy_of(&[8; 4096]);
    let run =
        |count, state| Run { count, state, version: Version::new(Epoch(1), 1), generation: Generation(1) };
    let pull = Pull {
        token: 9,
        attempt: 1,
        epoch: Epoch(1),
        source: Source(1),
        branch: BRANCH,
        chunk: ChunkIndex(0),
        extent: 0,
        after: Generation(0),
        generation: Generation(1),
        version: Version::new(Epoch(1), 1),
        runs: vec![run(1, BlockState::Data), run(15, BlockState::Absent)],
        sums: Record::sums_of(&block)[..1].to_vec(),
        payload: block,
    };
    let request = |scope, request| Event::Request {
        source: Source(1),
        frame: RequestFrame { token: 0, scope, request },
    };
    let next = Scope { epoch: Epoch(2), ..scope() };
    // Its data is on its way when the pull comes, and has not arrived when the next session begins.
    for event in [
        request(scope(), Request::Write { record, payload, fresh: true }),
        Event::Pull(pull.clone()),
        request(next, Request::AttemptBegin { attempt: attempt(1, Epoch(2)) }),
        Event::Pull(Pull { token: 10, ..pull }),
    ] {
        b.store.handle(b.now, event);
        while let Some(e) = b.store.poll() {
            match e {
                Effect::Io { io, op } => b.medium.submit(io, op),
                other => b.seen.push(other),
            }
        }
    }
    b.event(Event::TurnEnd);
    b.pass(Span::secs(3));
    let pulled =
        |e: &Effect| if let Effect::Pulled { token, result } = e { Some((*token, *result)) } else { None };
    let pulled: Vec<_> = b.seen.iter().filter_map(pulled).collect();
    assert_eq!(pulled, [(9, Err(Refusal::OldAttempt)), (10, Err(Refusal::OldAttempt))]);
    b.store.check();
}

#[test]
fn what_waits_behind_a_large_write_does_not_follow_a_second_fence_of_its_own_epoch() {
    let mut b = Bench::with_replica();
    let fence = Request::Fence { number: 2, holder: NodeId(1) };
    assert_eq!(behind_a_large_write(&mut b, fence), []);
    assert_eq!(b.read(0, 1).0, [(1, BlockState::Absent)]);
    b.store.check();
}

/// Eight batches of fifteen blocks each, flushed; then one block more, whose header says so.
fn eight_long_batches() -> Bench {
    let mut b = Bench::with_replica();
    for i in 0..8_u8 {
        assert_eq!(refusal(&b.write(1 + u64::from(i), u32::from(i) * 16, 1 + i, 15)), None);
    }
    assert_eq!(b.request(2, scope(), Request::Flush), [Reply::Flushed]);
    b.write(9, 200, 99, 1);
    b
}

/// A ring of 8 MiB with eighty batches of fourteen blocks, all flushed: more than a chunk of the index holds.
fn eighty_batches() -> Bench {
    let mut m = Medium::new(SIZE, true);
    m.format(&FormatParams { journal: Some(8 << 20), ..format_params() }).unwrap();
    let mut b = Bench::with_replica_on(m);
    for i in 0..80_u8 {
        assert_eq!(refusal(&b.write(1 + u64::from(i), u32::from(i % 8) * 16, 1 + i, 14)), None);
    }
    assert_eq!(b.request(2, scope(), Request::Flush), [Reply::Flushed]);
    b
}
fn newest_of_eighty(b: &mut Bench) {
    for i in 72..80_u8 {
        let (runs, payload) = b.read(u32::from(i % 8) * 16, 14);
        assert_eq!(runs, [(14, BlockState::Data)]);
        assert!(payload.bytes().iter().all(|x| *x == 1 + i));
    }
}

#[test]
fn an_opening_reads_of_what_the_index_lists_neither_headers_nor_blocks() {
    let b = eighty_batches();
    let used = b.store.usage().journal_used;
    assert!(used > 1100, "eighty times fifteen pages: {used}");
    let mut again = Bench::open(b.medium, params(1, 11));
    let read = again.opened().replayed / 4096;
    assert!((10..400).contains(&read), "read {read} pages of {used}");
    newest_of_eighty(&mut again);
    again.store.check();
    // ... and all of it goes home, nothing lost.
    again.pass(Span::secs(60));
    assert!(again.store.is_at_rest());
    newest_of_eighty(&mut again);
}

#[test]
fn an_index_that_is_torn_or_cannot_be_read_costs_time_and_nothing_else() {
    let b = eighty_batches();
    let (_, s) = inspect::superblock(&mut |at, n| Ok::<_, ()>(b.medium.get(at, n))).unwrap();
    for (damage, at) in [(1, 0), (1, 3 * 4096), (2, 0), (2, 4 * 4096)] {
        let mut medium = b.medium.clone();
        let at = s.layout.chunk(s.tail_chunk) + at;
        if damage == 1 {
            medium.rot(at, 77)
        } else {
            medium.make_unreadable(at)
        }
        let mut again = Bench::open(medium, params(1, 11));
        assert_eq!(again.failure(), None);
        let read = again.opened().replayed / 4096;
        assert!(read > 1100, "read in the ring, after {damage} at {at}: {read}");
        newest_of_eighty(&mut again);
        again.store.check();
        again.pass(Span::secs(60));
        assert!(again.store.is_at_rest());
        newest_of_eighty(&mut again);
    }
}

#[test]
fn a_flushed_block_that_has_rotted_in_the_journal_is_bad_and_its_neighbours_are_not() {
    for unreadable in [false, true] {
        let b = eight_long_batches();
        let mut medium = b.medium;
        let wanted = Payload::copy_of(&[5; 4096]);
        let at = (0..SIZE).step_by(4096).filter(|at| medium.get(*at, 1) == wanted).nth(3).unwrap();
        if unreadable {
            medium.make_unreadable(at)
        } else {
            medium.rot(at, 77)
        }
        let mut again = Bench::open(medium, params(1, 11));
        assert_eq!(again.failure(), None);
        let (runs, payload) = again.read(4 * 16, 15);
        assert_eq!(runs, [(3, BlockState::Data), (1, BlockState::Bad), (11, BlockState::Data)]);
        assert_eq!(payload.blocks(), 14);
        again.pass(Span::secs(60));
        assert!(again.store.is_at_rest(), "it does not stand in the way of the rest");
        assert_eq!(again.read(4 * 16, 15).0, runs, "and stays bad until it is repaired");
        assert_eq!(again.read(0, 15).0, [(15, BlockState::Data)]);
    }
}

#[test]
fn the_shortest_ring_never_stays_full_wherever_its_batches_end() {
    for before in 0..60_u32 {
        let mut m = Medium::new(SIZE, true);
        m.format(&FormatParams { journal: Some(128 * 4096), ..format_params() }).unwrap();
        let mut b = Bench::with_replica_on(m);
        for i in 0..before + 30 {
            if i == before {
                // Empty, and so that the next batch may not fit before the end of the ring.
                b.pass(Span::secs(60));
            }
            b.write(1 + u64::from(i), (i % 8) * 16, 1, if i < before { 1 } else { 15 });
            b.pass(Span::millis(300));
            assert_eq!(b.store.usage().waiting, 0, "write {i}, {before} short ones: {:?}", b.store.usage());
        }
    }
}

/// Byte offsets of the journal's header pages.
fn headers(m: &Medium) -> Vec<u64> {
    let (_, s) = inspect::superblock(&mut |at, n| Ok::<_, ()>(m.get(at, n))).unwrap();
    let ring = s.layout.journal_start..s.layout.journal_start + s.layout.journal_pages;
    ring.map(|p| p * 4096).filter(|at| m.get(*at, 1).bytes().starts_with(b"BLOCKDJR")).collect()
}

#[test]
fn a_header_that_cannot_be_read_ends_the_opening_and_not_the_chain() {
    let mut b = Bench::with_replica();
    b.write(1, 0, 5, 1);
    assert_eq!(b.request(2, scope(), Request::Flush), [Reply::Flushed]);
    let well = b.medium;
    let mut medium = well.clone();
    // No later header says that it is flushed: to the reader it looks like one that may never have been acknowledged.
    let last = *headers(&medium).last().unwrap();
    medium.make_unreadable(last);
    let again = Bench::open(medium, params(1, 11));
    assert_eq!(again.failure(), Some(&Failure::Io { errno: 5, offset: last }));
    let mut again = Bench::open(well, params(1, 11));
    assert_eq!(again.read(0, 1).0, [(1, BlockState::Data)]);
}

#[test]
fn a_chain_that_ends_before_what_pages_know_has_lost_something() {
    let mut b = Bench::with_replica();
    b.write(1, 0, 5, 1);
    b.pass(Span::secs(60));
    assert!(b.store.is_at_rest());
    let mut medium = b.medium;
    let (slot, _) = inspect::superblock(&mut |at, n| Ok::<_, ()>(medium.get(at, n))).unwrap();
    // The older superblock counts, and what lies behind its tail has rotted.
    medium.rot(store::layout::Layout::superblock(slot), 777);
    for at in headers(&medium) {
        medium.rot(at, 777);
    }
    assert_eq!(Bench::open(medium, params(1, 11)).failure(), Some(&Failure::JournalLost));
}

#[test]
fn a_drive_of_an_older_format_is_refused_as_such() {
    for old in [1, 2] {
        let mut m = medium();
        let mut page = m.get(0, 1).bytes().to_vec();
        page[12] = old;
        let crc =
            crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&page[..8]), &[0; 4]), &page[12..]);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
        m.put(0, &Payload::copy_of(&page));
        assert_eq!(Bench::open(m, params(1, 11)).failure(), Some(&Failure::Version(u16::from(old))));
    }
}

/// Asks for a block and leaves its read of the drive lying: the read, and where.
fn a_read_that_hangs(b: &mut Bench, block: u32) -> (IoId, u64) {
    let request = Request::Read {
        view: View::Head,
        range: BlockRange::new(block, 1),
        media: false,
        source_process: None,
    };
    let frame = RequestFrame { token: 77, scope: scope(), request };
    b.store.handle(b.now, Event::Request { source: Source(1), frame });
    let Some(Effect::Io { io, op: IoOp::Read { offset, blocks: 1 } }) = b.store.poll() else {
        panic!("it is read from the drive")
    };
    assert!(b.store.poll().is_none());
    (io, offset)
}

#[test]
fn what_is_not_home_is_read_from_the_journal_which_stays_for_it() {
    let mut b = Bench::with_replica();
    for i in 0..9_u8 {
        assert_eq!(refusal(&b.write(1 + u64::from(i), u32::from(i), 1 + i, 1)), None);
    }
    assert_eq!(b.read(8, 1).1.bytes()[0], 9);
    let (io, offset) = a_read_that_hangs(&mut b, 0);
    let layout = Layout::plan(SIZE, Some(1 << 20)).unwrap();
    assert!((layout.journal(0)..layout.chunk(0)).contains(&offset), "read from the ring");
    // The block is overwritten, and so is everything else, again and again: without that read the ring would go round.
    let mut refused = 0;
    for seq in 10..400_u64 {
        let first = u32::try_from(seq % 9).unwrap();
        b.write(seq, first, 100, 1);
        b.pass(Span::millis(500));
        refused += usize::from(b.store.usage().waiting > 0);
    }
    assert!(refused > 0, "the ring is full: what is being read is not written over");
    let page = b.medium.get(offset, 1);
    b.store.handle(b.now, Event::Io { io, result: IoResult::Read(page) });
    b.settle();
    let replies = b.replies();
    let data = replies
        .iter()
        .find_map(|r| if let Reply::ReadDone { payload, .. } = r { Some(payload) } else { None });
    assert!(data.unwrap().bytes().iter().all(|x| *x == 1), "as it was when it was asked for");
    b.pass(Span::secs(60));
    assert!(b.store.is_at_rest() && b.store.usage().waiting == 0, "and then all goes on");
    b.store.check();
}

#[test]
fn blocks_that_rotted_in_the_journal_are_bad_and_do_not_go_home() {
    let mut b = Bench::with_replica();
    for i in 0..9_u8 {
        b.write(1 + u64::from(i), u32::from(i), 1 + i, 1);
    }
    let (io, offset) = a_read_that_hangs(&mut b, 1);
    let page = b.medium.get(offset, 1);
    b.store.handle(b.now, Event::Io { io, result: IoResult::Read(page) });
    b.settle();
    b.medium.rot(offset, 9);
    b.pass(Span::secs(60));
    assert!(b.store.is_at_rest());
    let (runs, _) = b.read(0, 9);
    assert_eq!(runs, [(1, BlockState::Data), (1, BlockState::Bad), (7, BlockState::Data)]);
    b.store.check();
}

/// A ring of 32 MiB with sixty flushed batches of fourteen blocks: two long reads on their way home, and more. They are under
/// way when this returns, the rest of the drive is still.
fn two_loads() -> (Bench, Vec<(IoId, u64, u32)>) {
    let mut m = Medium::new(64 << 20, true);
    m.format(&FormatParams { size: 64 << 20, journal: Some(32 << 20), ..format_params() }).unwrap();
    let mut b = Bench::with_replica_on(m);
    for i in 0..60_u8 {
        assert_eq!(refusal(&b.write(1 + u64::from(i), u32::from(i) * 16, 1 + i, 14)), None);
    }
    assert_eq!(b.request(2, scope(), Request::Flush), [Reply::Flushed]);
    b.now = b.now + Span::secs(3);
    b.store.handle(b.now, Event::Wake);
    let loads = b.loads();
    assert_eq!(loads.len(), 2, "{loads:?}");
    (b, loads)
}
impl Bench {
    /// Reads that the store asks for now; everything else goes to the drive.
    fn loads(&mut self) -> Vec<(IoId, u64, u32)> {
        let mut loads = Vec::new();
        while let Some(e) = self.store.poll() {
            match e {
                Effect::Io { io, op: IoOp::Read { offset, blocks } } => loads.push((io, offset, blocks)),
                Effect::Io { io, op } => self.medium.submit(io, op),
                other => self.seen.push(other),
            }
        }
        loads
    }
    fn fail(&mut self, load: (IoId, u64, u32), errno: i32) -> Vec<(IoId, u64, u32)> {
        self.store.handle(self.now, Event::Io { io: load.0, result: IoResult::Failed(errno) });
        self.loads()
    }
}

#[test]
fn long_reads_that_fail_one_after_the_other_are_done_again_block_by_block() {
    const EIO: i32 = 5;
    let (mut b, loads) = two_loads();
    let mut again = b.fail(loads[0], EIO);
    assert!(matches!(again[..], [(_, offset, 1)] if offset == loads[0].1), "{again:?}");
    again.extend(b.fail(loads[1], EIO));
    // All of these are well; the first one only at its fourth try.
    again = [b.fail(again[0], EIO), again[1..].to_vec()].concat();
    while let Some((io, offset, blocks)) = again.pop() {
        let page = b.medium.get(offset, blocks);
        b.store.handle(b.now, Event::Io { io, result: IoResult::Read(page) });
        again.extend(b.loads());
    }
    b.settle();
    b.pass(Span::secs(60));
    assert!(b.store.is_at_rest());
    for i in 0..60_u8 {
        let (runs, payload) = b.read(u32::from(i) * 16, 14);
        assert_eq!(runs, [(14, BlockState::Data)]);
        assert!(payload.bytes().iter().all(|x| *x == 1 + i));
    }
    b.store.check();
}

#[test]
fn a_read_that_fails_for_other_reasons_than_the_medium_stops_the_drive_and_spoils_nothing() {
    const ENOMEM: i32 = 12;
    let (mut b, loads) = two_loads();
    b.fail(loads[0], ENOMEM);
    let (_, offset, _) = loads[0];
    assert_eq!(b.failure(), Some(&Failure::Io { errno: ENOMEM, offset }));
    let mut again = Bench::open(b.medium, OpenParams { size: 64 << 20, ..params(1, 11) });
    again.pass(Span::secs(60));
    assert_eq!(again.read(0, 14).0, [(14, BlockState::Data)]);
}

#[test]
fn nothing_goes_home_before_a_flush_has_covered_it() {
    let mut b = Bench::with_replica();
    assert_eq!(refusal(&b.write(1, 0, 7, 1)), None);
    b.pass(Span::secs(60));
    assert!(b.store.is_at_rest(), "it is home");
    assert_eq!(refusal(&b.write(2, 0, 8, 1)), None);
    b.now = b.now + Span::secs(60);
    b.store.handle(b.now, Event::Wake);
    let asked: Vec<(IoId, IoOp)> = std::iter::from_fn(|| b.store.poll())
        .filter_map(|e| if let Effect::Io { io, op } = e { Some((io, op)) } else { None })
        .collect();
    let [(io, IoOp::Flush)] = asked[..] else { panic!("a flush, and nothing on its way home: {asked:?}") };
    b.store.handle(b.now, Event::Io { io, result: IoResult::Flushed });
    let mut loads = b.loads();
    b.now = b.now + Span::secs(1);
    b.store.handle(b.now, Event::Wake);
    loads.extend(b.loads());
    assert_eq!(loads.len(), 1, "now it is read, to go home");
}
