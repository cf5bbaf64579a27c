//! A reader of snapshots among replicas that refuse, move, break off and have bad blocks: whatever it answers is the
//! view, and once faults stop it answers everything.
#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use proto::control::{MetaAnswer, MetaRefusal, MetaRequest, SnapshotFound};
use proto::limits::READER_EPOCH;
use proto::message::{BlockState, Reply, ReplyFrame, Request, RequestFrame, Run, View};
use proto::record::Sum;
use proto::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use volume::*;

const CHUNK: u64 = 16 << 20;
/// Blocks of a chunk that the tests look at: its first and its last ones.
const EDGE: u32 = 12;
const BLOCKS: u32 = 4096;

struct Rng(u64);
impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn pick(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap()
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Read,
    Map,
    /// Since generation 2.
    Changes,
}

/// A replica of one chunk of one branch.
#[derive(Clone, Debug, Default)]
struct Replica {
    /// It does not hold the view (yet, or any more).
    incomplete: bool,
    refuses: Option<Refusal>,
    bad: BTreeSet<u32>,
}

struct World {
    rng: Rng,
    now: Time,
    reader: Reader,
    levels: Vec<Level>,
    /// Blocks that a level has: its value, 0 for zeroes.
    truth: Vec<BTreeMap<(u32, u32), u64>>,
    /// Blocks of the first level that are younger than generation 2; and that generation is kept.
    young: BTreeSet<(u32, u32)>,
    since_gone: bool,
    replicas: BTreeMap<(BranchId, u32, Place), Replica>,
    places: BTreeMap<(BranchId, u32), Configuration>,
    next_incarnation: u64,
    connected: BTreeSet<NodeId>,
    /// On their way to a node, and back.
    links: BTreeMap<NodeId, (VecDeque<RequestFrame>, VecDeque<ReplyFrame>)>,
    questions: VecDeque<(u64, MetaRequest)>,
    deleted: bool,
    /// Everything that was ever bad.
    bad: BTreeSet<(BranchId, u32, u32, Place)>,
    asked: BTreeMap<Ticket, (u64, u64, What)>,
    results: BTreeMap<Ticket, Result<GuestReply, GuestError>>,
    tickets: u64,
}

impl World {
    fn new(seed: u64, depth: u64) -> World {
        let mut rng = Rng(seed);
        let mut levels = vec![];
        let mut truth = vec![];
        for i in 0..depth {
            // two chunks, or one and a bit, or less than one; the first is the volume's own
            let size = if i == 0 { 2 * CHUNK } else { [2 * CHUNK, CHUNK + 5 * 4096, 7 * 4096][rng.pick(3)] };
            levels.push(Level { branch: BranchId(10 + i), generation: Generation(3), size });
            let mut has = BTreeMap::new();
            for chunk in 0..2 {
                for block in (0..EDGE).chain(BLOCKS - EDGE..BLOCKS) {
                    let inside = u64::from(chunk) * CHUNK + u64::from(block) * 4096 < size;
                    if inside && rng.chance(40) {
                        let v = if rng.chance(20) { 0 } else { rng.next() | 1 };
                        has.insert((chunk, block), v);
                    }
                }
            }
            truth.push(has);
        }
        let young = truth[0].keys().copied().filter(|_| rng.chance(50)).collect();
        let found = SnapshotFound {
            volume: VolumeId(1),
            geometry: Geometry { size: 2 * CHUNK, chunk_shift: 24 },
            levels: levels.clone(),
        };
        let now = Time(1_000_000_000);
        let reader = Reader::new("v".into(), "s".into(), found, NodeId(1), now);
        let mut w = World {
            rng,
            now,
            reader,
            levels,
            truth,
            young,
            since_gone: false,
            replicas: BTreeMap::new(),
            places: BTreeMap::new(),
            next_incarnation: 0,
            connected: [NodeId(1)].into(),
            links: (1..=4).map(|n| (NodeId(n), Default::default())).collect(),
            questions: VecDeque::new(),
            deleted: false,
            bad: BTreeSet::new(),
            asked: BTreeMap::new(),
            results: BTreeMap::new(),
            tickets: 0,
        };
        for l in w.levels.clone() {
            for chunk in 0..u32::try_from(l.size.div_ceil(CHUNK)).unwrap() {
                w.places.insert((l.branch, chunk), Configuration::default());
                for n in 2..=4 {
                    w.place(l.branch, chunk, n);
                }
            }
        }
        w.drain();
        w
    }

    fn place(&mut self, branch: BranchId, chunk: u32, n: u32) {
        self.next_incarnation += 1;
        let incarnation = Incarnation(self.next_incarnation);
        let place = Place { node: NodeId(n), drive: DriveId(u64::from(n) * 10), incarnation };
        let c = self.places.get_mut(&(branch, chunk)).unwrap();
        c.members.retain(|m| m.place.node.0 != n);
        c.members.push(Member { place, state: MemberState::InSync });
        c.number = c.number.next();
        self.replicas.insert((branch, chunk, place), Replica::default());
    }

    fn event(&mut self, e: ReaderEvent) {
        self.reader.handle(self.now, e);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(e) = self.reader.poll() {
            match e {
                ReaderEffect::Send { node, frame } => {
                    assert!(self.connected.contains(&node));
                    self.links.get_mut(&node).unwrap().0.push_back(frame);
                }
                ReaderEffect::Gone => assert!(self.deleted),
                ReaderEffect::Meta { token, request } => self.questions.push_back((token, request)),
                ReaderEffect::Complete { ticket, result } => {
                    self.judge(ticket, &result);
                    assert!(self.results.insert(ticket, result).is_none(), "completed once");
                }
            }
        }
    }

    /// What the view has in a block.
    fn is(&self, chunk: u32, block: u32) -> Option<u64> {
        let offset = u64::from(chunk) * CHUNK + u64::from(block) * 4096;
        let seen = self.levels.iter().zip(&self.truth).take_while(|(l, _)| offset < l.size);
        seen.into_iter().find_map(|(_, has)| has.get(&(chunk, block)).copied())
    }

    fn judge(&self, ticket: Ticket, result: &Result<GuestReply, GuestError>) {
        let Some(&(offset, len, what)) = self.asked.get(&ticket) else {
            return assert!(result.is_err(), "asked past the judge");
        };
        let at = |i: u64| {
            let block = (offset + i * 4096) / 4096;
            (
                u32::try_from(block / u64::from(BLOCKS)).unwrap(),
                u32::try_from(block % u64::from(BLOCKS)).unwrap(),
            )
        };
        match result {
            Ok(GuestReply::Read(pieces)) => {
                let mut bytes = vec![];
                for p in pieces {
                    match p {
                        ReadPiece::Zero { bytes: n } => bytes.resize(bytes.len() + *n as usize, 0),
                        ReadPiece::Data { payload, skip, len } => {
                            bytes.extend_from_slice(&payload.bytes()[*skip as usize..(*skip + *len) as usize])
                        }
                    }
                }
                assert_eq!(bytes.len() as u64, len);
                for (i, b) in (0..).zip(bytes.chunks(4096)) {
                    let (chunk, block) = at(i);
                    let value = u64::from_le_bytes(b[..8].try_into().unwrap());
                    assert_eq!(value, self.is(chunk, block).unwrap_or(0), "chunk {chunk} block {block}");
                }
            }
            Ok(GuestReply::Map(runs)) => {
                let mut i = 0;
                for _ in 0..1 {
                    for run in runs {
                        for _ in 0..run.count {
                            let (chunk, block) = at(i);
                            i += 1;
                            let is = match self.is(chunk, block) {
                                _ if what == What::Changes && !self.young.contains(&(chunk, block)) => {
                                    BlockState::Absent
                                }
                                None => BlockState::Absent,
                                Some(0) => BlockState::Zero,
                                Some(_) => BlockState::Data,
                            };
                            assert_eq!(run.state, is, "chunk {chunk} block {block}");
                        }
                    }
                }
                assert_eq!(i * 4096, len);
            }
            Ok(other) => panic!("{other:?}"),
            Err(e) => {
                // what all refuse for long is taken for gone
                let gone = self.deleted || what == What::Changes;
                assert!(*e == GuestError::Io && (gone || self.was_bad(at(0), len / 4096)), "{e:?}")
            }
        }
    }

    /// Some block was bad wherever the reader may have looked.
    fn was_bad(&self, (chunk, first): (u32, u32), count: u64) -> bool {
        (first..first + u32::try_from(count).unwrap()).any(|b| {
            let bad = |l: &Level| self.bad.iter().any(|x| (x.0, x.1, x.2) == (l.branch, chunk, b));
            self.levels.iter().any(bad)
        })
    }

    fn ask(&mut self, chunk: u32, first: u32, count: u32, what: What) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let offset = u64::from(chunk) * CHUNK + u64::from(first) * 4096;
        let len = count * 4096;
        self.asked.insert(ticket, (offset, u64::from(len), what));
        let op = match what {
            What::Read => GuestOp::Read { offset, len },
            What::Map => GuestOp::Map { offset, len: u64::from(len) },
            What::Changes => GuestOp::Changes { offset, len: u64::from(len), since: Generation(2) },
        };
        self.event(ReaderEvent::Guest(GuestRequest { ticket, op }));
        ticket
    }

    fn serve(&mut self, f: RequestFrame) -> ReplyFrame {
        let s = f.scope;
        assert_eq!(s.epoch, READER_EPOCH);
        let level = self.levels.iter().position(|l| l.branch == s.branch).unwrap();
        let (view, range, what) = match f.request {
            Request::Read { view, range, .. } => (view, range, What::Read),
            Request::Map { view, range } => (view, range, What::Map),
            Request::Changes { view, after, range } => {
                assert_eq!((level, after), (0, Generation(2)), "only the volume's own branch is asked");
                (view, range, What::Changes)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(view, View::At(self.levels[level].generation));
        let start = u64::from(s.chunk.0) * CHUNK;
        assert!(start + u64::from(range.end() - 1) * 4096 < self.levels[level].size, "beyond the level");
        let place = self.replicas.iter().find(|((b, c, p), _)| {
            *b == s.branch && *c == s.chunk.0 && p.drive == s.drive && p.incarnation == s.incarnation
        });
        let refused = |refusal| Reply::Refused { refusal, version: Version::ZERO };
        let reply = match place {
            None => refused(Refusal::UnknownReplica),
            Some((_, r)) if r.refuses.is_some() => refused(r.refuses.unwrap()),
            _ if what == What::Changes && self.since_gone => refused(Refusal::UnknownView),
            Some((_, r)) if r.incomplete || self.deleted => refused(Refusal::UnknownView),
            Some((_, r)) => {
                let (mut runs, mut sums, mut bytes) = (vec![], vec![], vec![]);
                for b in range.first..range.end() {
                    let state = match self.truth[level].get(&(s.chunk.0, b)) {
                        _ if what == What::Changes && !self.young.contains(&(s.chunk.0, b)) => {
                            BlockState::Absent
                        }
                        Some(_) if r.bad.contains(&b) && what == What::Read => BlockState::Bad,
                        Some(0) => BlockState::Zero,
                        Some(v) => {
                            let mut block = vec![0; 4096];
                            block[..8].copy_from_slice(&v.to_le_bytes());
                            sums.push(Sum::of(&block));
                            bytes.extend(block);
                            BlockState::Data
                        }
                        None => BlockState::Absent,
                    };
                    runs.push(Run { count: 1, state, version: Version::ZERO, generation: Generation(1) });
                }
                let payload = Payload::copy_of(&bytes);
                if what == What::Read { Reply::ReadDone { runs, sums, payload } } else { Reply::Map { runs } }
            }
        };
        ReplyFrame { token: f.token, branch: s.branch, drive: s.drive, reply }
    }

    fn deliver(&mut self, n: NodeId) {
        if let Some(f) = self.links.get_mut(&n).unwrap().0.pop_front() {
            let reply = self.serve(f);
            self.links.get_mut(&n).unwrap().1.push_back(reply);
        }
    }
    fn answer(&mut self, n: NodeId) {
        if let Some(frame) = self.links.get_mut(&n).unwrap().1.pop_front() {
            self.event(ReaderEvent::Reply { frame });
        }
    }
    fn metad(&mut self, heard: bool) {
        let Some((token, request)) = self.questions.pop_front() else { return };
        let answer = match request {
            _ if !heard => MetaAnswer::Unavailable,
            MetaRequest::Chunks { branch, epoch, chunks } => {
                assert_eq!(epoch, READER_EPOCH);
                let chunks = chunks.iter().map(|c| (*c, self.places[&(branch, c.0)].clone())).collect();
                MetaAnswer::Configurations { epoch: Epoch(9), chunks, down: vec![] }
            }
            MetaRequest::Snapshot { volume, snapshot } => {
                assert_eq!((volume.as_str(), snapshot.as_str()), ("v", "s"));
                if self.deleted {
                    MetaAnswer::Refused(MetaRefusal::NoSuchSnapshot)
                } else {
                    let geometry = self.reader.geometry();
                    let levels = self.levels.clone();
                    MetaAnswer::Snapshot(Box::new(SnapshotFound { volume: VolumeId(1), geometry, levels }))
                }
            }
            other => panic!("{other:?}"),
        };
        self.event(ReaderEvent::Meta { token, answer });
    }
    fn connect(&mut self, n: NodeId) {
        if self.connected.insert(n) {
            self.event(ReaderEvent::Connected { node: n });
        }
    }
    fn disconnect(&mut self, n: NodeId) {
        if self.connected.remove(&n) {
            *self.links.get_mut(&n).unwrap() = Default::default();
            self.event(ReaderEvent::Disconnected { node: n });
        }
    }
    fn wake(&mut self) {
        if self.reader.next_wake() <= self.now {
            self.event(ReaderEvent::Wake);
        }
    }
    fn calm(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.now = self.now + Span::millis(20);
            for n in (1..=4).map(NodeId) {
                self.connect(n);
                for _ in 0..8 {
                    self.deliver(n);
                    self.answer(n);
                }
            }
            for _ in 0..4 {
                self.metad(true);
            }
            self.wake();
        }
    }

    fn fault(&mut self) {
        let keys: Vec<_> = self.replicas.keys().copied().collect();
        let key = keys[self.rng.pick(keys.len())];
        let n = NodeId(1 + u32::try_from(self.rng.below(4)).unwrap());
        match self.rng.below(8) {
            0 => self.connect(n),
            1 if n.0 != 1 => self.disconnect(n),
            2 => {
                // it moves: another node's replica instead of this one
                let (branch, chunk, old) = key;
                self.replicas.remove(&key);
                let c = self.places.get_mut(&(branch, chunk)).unwrap();
                c.members.retain(|m| m.place != old);
                self.place(branch, chunk, n.0);
            }
            3 => {
                let r = self.replicas.get_mut(&key).unwrap();
                r.incomplete = !r.incomplete;
            }
            4 => {
                let all = [
                    Refusal::DriveFailed,
                    Refusal::NoDrive,
                    Refusal::DriveNotConfirmed,
                    Refusal::UnknownReplica,
                ];
                let refusal = all[self.rng.pick(4)];
                let r = self.replicas.get_mut(&key).unwrap();
                r.refuses = if r.refuses.is_some() { None } else { Some(refusal) };
            }
            5 => {
                let b = u32::try_from(self.rng.below(u64::from(EDGE))).unwrap();
                self.replicas.get_mut(&key).unwrap().bad.insert(b);
                self.bad.insert((key.0, key.1, b, key.2));
            }
            6 => {
                // a stale one: asked last
                let (branch, chunk, place) = key;
                let c = self.places.get_mut(&(branch, chunk)).unwrap();
                if c.in_sync_count() > 1
                    && let Some(m) = c.members.iter_mut().find(|m| m.place == place)
                {
                    m.state = MemberState::Stale;
                    c.number = c.number.next();
                }
            }
            _ => self.metad(false),
        }
    }
}

fn walk(seed: u64, depth: u64, faults: u64) {
    let mut w = World::new(seed, depth);
    for _ in 0..600 {
        w.now = w.now + Span::millis(w.rng.below(60));
        let n = NodeId(1 + u32::try_from(w.rng.below(4)).unwrap());
        match w.rng.below(10) {
            0 | 1 => {
                let (chunk, count) =
                    (u32::try_from(w.rng.below(2)).unwrap(), 1 + u32::try_from(w.rng.below(8)).unwrap());
                let first = if w.rng.chance(50) { 0 } else { BLOCKS - EDGE };
                let first = first + u32::try_from(w.rng.below(u64::from(EDGE - 8))).unwrap();
                let what = [What::Map, What::Changes, What::Read, What::Read, What::Read][w.rng.pick(5)];
                w.ask(chunk, first, count, what);
            }
            2 if w.rng.chance(faults) => w.fault(),
            3 => w.metad(true),
            4..=6 => w.deliver(n),
            _ => w.answer(n),
        }
        w.wake();
    }
    // faults stop; every chunk has replicas that hold the view
    for r in w.replicas.values_mut() {
        (r.incomplete, r.refuses) = (false, None);
    }
    w.calm(300);
    assert_eq!(w.results.len(), w.asked.len(), "{:?}", w.reader);
    assert!(w.results.values().any(Result::is_ok));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_answered_is_the_view(seed in any::<u64>(), depth in 1u64..5, faults in 0u64..80) {
        walk(seed, depth, faults);
    }
}

#[test]
fn what_nobody_can_be_asked_about_waits_and_is_never_zeroes() {
    let mut w = World::new(1, 2);
    for r in w.replicas.values_mut() {
        r.incomplete = true;
    }
    let t = w.ask(0, 0, 4, What::Read);
    w.calm(500);
    assert!(!w.results.contains_key(&t), "the snapshot is there, and nobody has it whole");
    w.replicas.values_mut().for_each(|r| r.incomplete = false);
    w.calm(30);
    assert!(w.results[&t].is_ok());
    // without anybody to ask
    (2..=4).for_each(|n| w.disconnect(NodeId(n)));
    let t = w.ask(0, 0, 4, What::Read);
    for _ in 0..100 {
        w.now = w.now + Span::millis(100);
        w.metad(true);
        w.wake();
    }
    assert!(!w.results.contains_key(&t));
    w.calm(30);
    assert!(w.results[&t].is_ok());
}

#[test]
fn a_snapshot_that_is_deleted_is_an_error() {
    let mut w = World::new(2, 1);
    w.calm(10);
    w.deleted = true;
    let t = w.ask(0, 0, 4, What::Read);
    w.calm(100);
    assert_eq!(w.results[&t].as_ref().unwrap_err(), &GuestError::Io);
}

#[test]
fn changes_since_what_is_no_longer_kept_end_in_an_error_and_the_reader_goes_on() {
    let mut w = World::new(2, 2);
    w.calm(10);
    w.since_gone = true;
    let t = w.ask(0, 0, 4, What::Changes);
    w.calm(300);
    assert_eq!(w.results[&t].as_ref().unwrap_err(), &GuestError::Io);
    let t = w.ask(0, 0, 4, What::Read);
    w.calm(30);
    assert!(w.results[&t].is_ok());
    // a generation that is not older has no answer
    let op = GuestOp::Changes { offset: 0, len: 4096, since: Generation(3) };
    w.event(ReaderEvent::Guest(GuestRequest { ticket: Ticket(77), op }));
    assert_eq!(w.results[&Ticket(77)].as_ref().unwrap_err(), &GuestError::Invalid);
}

#[test]
fn places_once_known_need_no_metad() {
    let mut w = World::new(3, 3);
    w.calm(10);
    assert!(w.questions.is_empty());
    let t = w.ask(1, 0, 8, What::Read);
    for _ in 0..50 {
        for n in (1..=4).map(NodeId) {
            w.deliver(n);
            w.answer(n);
        }
    }
    assert!(w.results[&t].is_ok() && w.questions.is_empty());
    assert_eq!(w.reader.next_wake(), Time::FAR, "an idle reader wants no waking");
}

#[test]
fn nothing_is_written() {
    let mut w = World::new(4, 1);
    let ticket = Ticket(99);
    let data = GuestData { payload: PageBuf::zeroed(1).freeze() };
    let ops = [
        (GuestOp::Write { offset: 0, len: 4096, data, fua: false }, GuestError::ReadOnly),
        (GuestOp::Discard { offset: 0, len: 4096, fua: false }, GuestError::ReadOnly),
        (GuestOp::Read { offset: 2 * CHUNK, len: 4096 }, GuestError::Invalid),
    ];
    for (op, error) in ops {
        w.reader.handle(w.now, ReaderEvent::Guest(GuestRequest { ticket, op }));
        let done = std::iter::from_fn(|| w.reader.poll()).find_map(|e| match e {
            ReaderEffect::Complete { result, .. } => Some(result),
            _ => None,
        });
        assert_eq!(done.unwrap().unwrap_err(), error);
    }
}
