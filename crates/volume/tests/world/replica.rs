//! A drive in memory: what was written, what of it is flushed.

use super::{BRANCH, Rng};
use proto::message::*;
use proto::record::Sum;
use proto::*;
use std::collections::{BTreeMap, BTreeSet};

/// A block: `None` is zeroes; a value is what its first eight bytes say.
pub type Value = u64;

#[derive(Clone, Debug)]
pub struct Pulling {
    pub number: u64,
    pub from: u64,
    pub token: u64,
    pub chunk: u32,
    pub source: (NodeId, DriveId),
    pub source_process: u64,
    pub listed: bool,
    pub written: BTreeSet<u32>,
    pub views: Vec<Generation>,
    /// The view before the one that is being pulled.
    pub after: Generation,
    pub need: Option<Vec<u32>>,
    pub got: Option<(u32, Block)>,
    pub moved: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Block {
    pub present: bool,
    pub zero: bool,
    pub bad: bool,
    pub payload: Option<Payload>,
    pub version: Version,
    pub generation: Generation,
}

pub type Blocks = BTreeMap<(u32, u32), Block>;
/// By generation, too.
pub type Layers = BTreeMap<(u32, u32, Generation), Block>;

#[derive(Clone)]
pub struct Drive {
    pub id: DriveId,
    pub epoch: Epoch,
    pub holder: NodeId,
    pub records: BTreeSet<(u32, Incarnation)>,
    pub now: BTreeMap<(u32, u32), Block>,
    pub stable: BTreeMap<(u32, u32), Block>,
    /// What `now` and `stable` hide: older generations of the same blocks.
    pub older: Layers,
    pub older_stable: Layers,
    /// Generations that its keep-list does not name.
    pub withdrawn: BTreeSet<Generation>,
    pub marks: Marks,
    pub marks_stable: Marks,
    pub doubt: bool,
    /// (source, token, epoch, number)
    pub fencing: Option<(u64, u64, Epoch, u32)>,
    pub attempts: BTreeMap<u32, Pulling>,
    /// The flush under way: what it will cover, and who asked.
    pub flush: Option<(Blocks, Layers, Marks)>,
    pub flush_number: u64,
    pub flush_wanted: Vec<(u64, u64, u64)>,
    pub self_flush: bool,
    pub full: bool,
    pub told: Vec<(u32, ConfigNumber)>,
    pub refuse_writes: Option<Refusal>,
}

impl Drive {
    pub fn new(id: DriveId) -> Drive {
        Drive {
            id,
            epoch: Epoch(0),
            holder: NodeId(0),
            records: BTreeSet::new(),
            now: BTreeMap::new(),
            stable: BTreeMap::new(),
            older: Layers::new(),
            older_stable: Layers::new(),
            withdrawn: BTreeSet::new(),
            marks: Marks::default(),
            marks_stable: Marks::default(),
            doubt: false,
            fencing: None,
            attempts: BTreeMap::new(),
            flush: None,
            flush_number: 0,
            flush_wanted: vec![],
            self_flush: false,
            full: false,
            told: vec![],
            refuse_writes: None,
        }
    }

    pub fn value(&self, chunk: u32, block: u32) -> Value {
        self.now
            .get(&(chunk, block))
            .and_then(|b| b.payload.as_ref())
            .map_or(0, |p| u64::from_le_bytes(p.bytes()[..8].try_into().unwrap()))
    }

    pub fn source_closed(&mut self, source: u64) {
        self.flush_wanted.retain(|f| f.0 != source);
        if self.fencing.is_some_and(|f| f.0 == source) {
            self.fencing = None;
        }
        self.attempts.retain(|_, a| a.from != source);
    }

    pub fn restart(&mut self) {
        self.fencing = None;
        self.attempts.clear();
        self.flush = None;
        self.flush_wanted.clear();
    }

    /// Any subset of what is not flushed survives.
    pub fn power_loss(&mut self, rng: &mut Rng) {
        let (mut all, stable) = (flat(&self.now, &self.older), flat(&self.stable, &self.older_stable));
        for k in all.keys().copied().collect::<Vec<_>>() {
            if stable.get(&k) != all.get(&k) && rng.chance(70) {
                match stable.get(&k) {
                    Some(b) => all.insert(k, b.clone()),
                    None => all.remove(&k),
                };
            }
        }
        self.now.clear();
        self.older.clear();
        for (k, b) in all {
            self.put(k, b);
        }
        self.stable = self.now.clone();
        self.older_stable = self.older.clone();
        self.marks = self.marks_stable;
        self.doubt = true;
    }

    /// A block of a generation: what is newer hides it.
    fn put(&mut self, (chunk, block, g): (u32, u32, Generation), b: Block) {
        let b = Block { generation: g, ..b };
        match self.now.get(&(chunk, block)) {
            Some(x) if x.generation > g => drop(self.older.insert((chunk, block, g), b)),
            _ => {
                let before = self.now.insert((chunk, block), b);
                if let Some(x) = before.filter(|x| x.generation < g) {
                    self.older.insert((chunk, block, x.generation), x);
                }
            }
        }
    }

    /// A block as a view sees it.
    pub fn seen(&self, chunk: u32, block: u32, view: View) -> Option<&Block> {
        seen(&self.now, &self.older, chunk, block, view)
    }

    pub fn value_at(&self, chunk: u32, block: u32, view: View) -> Value {
        self.seen(chunk, block, view).map_or(0, Block::value)
    }

    /// Something is there, and flushed.
    pub fn is_stable(&self, chunk: u32, block: u32, view: View) -> bool {
        seen(&self.stable, &self.older_stable, chunk, block, view).is_some()
    }

    /// What a flush has reached.
    pub fn stable_at(&self, chunk: u32, block: u32, view: View) -> Value {
        seen(&self.stable, &self.older_stable, chunk, block, view).map_or(0, Block::value)
    }

    /// A keep-list: what no view sees any more is freed.
    pub fn obey(&mut self, views: &BranchViews) {
        for g in (1..views.open().0).map(Generation).filter(|g| !views.kept.contains(*g)) {
            self.withdrawn.insert(g);
            let unseen: Vec<_> = self.older.keys().copied().filter(|k| k.2 == g).collect();
            for k in unseen {
                let next = self.older.range(k..).nth(1).filter(|n| n.0.0 == k.0 && n.0.1 == k.1);
                let hides = next.map_or(self.now[&(k.0, k.1)].generation, |n| n.0.2);
                if views.kept.at_or_above(g).is_none_or(|kept| kept >= hides) {
                    self.older.remove(&k);
                }
            }
        }
    }

    /// The version of an extent is the highest applied since it was last pulled.
    fn extent_version(&self, chunk: u32, extent: u32, g: Generation) -> Version {
        let blocks = extent * 16..extent * 16 + 16;
        let of = |b: u32| match self.now.get(&(chunk, b)) {
            Some(x) if x.generation == g => Some(x.version),
            _ => self.older.get(&(chunk, b, g)).map(|x| x.version),
        };
        blocks.filter_map(of).max().unwrap_or_default()
    }

    pub fn report(&self, fence: u32) -> Report {
        let all = flat(&self.now, &self.older);
        let runs: BTreeSet<_> = all.keys().map(|&(c, b, g)| (c, b / 16, g)).collect();
        let runs = runs
            .into_iter()
            .map(|(c, e, generation)| ReportedRun {
                chunk: ChunkIndex(c),
                first: e,
                count: 1,
                generation,
                version: self.extent_version(c, e, generation),
            })
            .filter(|e| e.version > self.marks.durable)
            .collect();
        let chunks = self.records.iter().map(|&(c, i)| (ChunkIndex(c), i)).collect();
        Report {
            fence,
            in_doubt: self.doubt,
            marks: self.marks,
            runs,
            more: false,
            chunks,
            free_extents: 100,
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm per request")]
    pub fn handle(&mut self, source: u64, holder: NodeId, f: RequestFrame) -> Vec<ReplyFrame> {
        let (token, drive, scope) = (f.token, self.id, f.scope);
        let frame = |reply| ReplyFrame { token, branch: BRANCH, drive, reply };
        let refused = |refusal, version| vec![frame(Reply::Refused { refusal, version })];
        let version = match &f.request {
            Request::Write { record, .. } => record.version,
            _ => Version::ZERO,
        };
        if scope.epoch < self.epoch || self.fencing.is_some_and(|x| x.2 > scope.epoch) {
            return refused(Refusal::OldEpoch, version);
        }
        let admits = matches!(
            f.request,
            Request::Fence { .. }
                | Request::Create { .. }
                | Request::AttemptBegin { .. }
                | Request::Credit { .. }
        );
        if scope.epoch > self.epoch && !admits {
            return refused(Refusal::NotFenced, version);
        }
        let known = self.records.contains(&(scope.chunk.0, scope.incarnation));
        if scope.incarnation.0 != 0 && !known {
            return refused(Refusal::UnknownReplica, version);
        }
        if scope.epoch == self.epoch {
            self.marks.raise(scope.marks);
        }
        match f.request {
            Request::Write { record, payload, .. } => self.write(&record, &payload, token),
            Request::Flush => {
                self.flush_wanted.push((source, token, self.flush_number + 1));
                if self.flush.is_some() {
                    self.flush_wanted.last_mut().unwrap().2 += 1;
                }
                vec![]
            }
            Request::Marks | Request::LeaseReturn { .. } => vec![],
            Request::Configure { configuration } => {
                self.told.push((scope.chunk.0, configuration.number));
                vec![]
            }
            Request::Fence { number, holder: by } => {
                assert_eq!(by, holder);
                self.fencing = Some((source, token, scope.epoch, number));
                vec![]
            }
            Request::Create { chunks, .. } => {
                self.epoch = scope.epoch;
                self.records.extend(chunks.iter().map(|c| (c.chunk.0, c.incarnation)));
                vec![frame(Reply::Done)]
            }
            Request::AttemptBegin { attempt } => {
                self.epoch = scope.epoch;
                self.marks.raise(scope.marks);
                self.marks_stable.raise(scope.marks);
                let pulling = Pulling {
                    number: attempt.number,
                    from: source,
                    token: 0,
                    chunk: attempt.chunk.0,
                    source: (attempt.source.node, attempt.source.drive),
                    source_process: attempt.source_process.0,
                    listed: false,
                    written: BTreeSet::new(),
                    views: attempt.views.iter().chain([attempt.generation]).collect(),
                    after: Generation(0),
                    need: None,
                    got: None,
                    moved: 0,
                };
                self.attempts.insert(attempt.chunk.0, pulling);
                vec![frame(Reply::Done)]
            }
            Request::AttemptList { number } => {
                if let Some(a) = self.attempts.get_mut(&scope.chunk.0).filter(|a| a.number == number) {
                    a.listed = true;
                    a.token = token;
                    vec![]
                } else {
                    let refusal = Refusal::OldAttempt;
                    vec![frame(Reply::AttemptFailed { number, refusal })]
                }
            }
            Request::AttemptEnd { number } => {
                self.attempts.retain(|&c, a| c != scope.chunk.0 || a.number != number);
                vec![]
            }
            Request::EndDoubt => {
                self.doubt = false;
                vec![frame(Reply::Done)]
            }
            Request::Read { view: View::At(g), .. } if self.withdrawn.contains(&g) => {
                refused(Refusal::UnknownView, Version::ZERO)
            }
            Request::Read { range, view, .. } => vec![frame(self.read(scope.chunk.0, range, view))],
            Request::Repair { record, payload, failed } => {
                let c = record.chunk.0;
                if self.extent_version(c, record.range.extent(), record.generation) != failed {
                    return refused(Refusal::Changed, Version::ZERO);
                }
                self.apply(&record, &payload);
                vec![frame(Reply::Done)]
            }
            Request::Credit { want, probe } => {
                let there = |p: &Probe| {
                    self.extent_version(scope.chunk.0, p.range.extent(), p.generation) != Version::ZERO
                };
                let allocated = probe.is_some_and(|p| there(&p) || (p.zero && !self.full));
                let granted = if self.full { 0 } else { want };
                vec![frame(Reply::Credit { granted, allocated })]
            }
            Request::Map { range, view } => {
                let Reply::ReadDone { runs, .. } = self.read(scope.chunk.0, range, view) else {
                    unreachable!()
                };
                vec![frame(Reply::Map { runs })]
            }
            Request::Absent { views, .. } if views.iter().any(|g| self.withdrawn.contains(&g)) => {
                refused(Refusal::UnknownView, Version::ZERO)
            }
            Request::Absent { views, head, blocks } => {
                let mut all = views.iter().map(View::At).chain(head.then_some(View::Head));
                let any =
                    all.any(|v| (0..blocks.min(4096)).any(|b| self.seen(scope.chunk.0, b, v).is_none()));
                vec![frame(Reply::Absence { any })]
            }
            Request::Verify { first_extent, extents, .. } => {
                let list = (first_extent..first_extent + extents)
                    .map(|e| {
                        let v = (e * 16..e * 16 + 16).map(|b| self.value(scope.chunk.0, b));
                        (e, v.fold(17, |h: u64, x| h.wrapping_mul(31).wrapping_add(x)))
                    })
                    .collect();
                vec![frame(Reply::Verified { extents: list, bad: vec![] })]
            }
            other => panic!("not for a drive: {other:?}"),
        }
    }

    fn write(&mut self, record: &Record, payload: &Payload, token: u64) -> Vec<ReplyFrame> {
        let drive = self.id;
        if let Some(refusal) = self.refuse_writes {
            let reply = Reply::Refused { refusal, version: record.version };
            return vec![ReplyFrame { token, branch: BRANCH, drive, reply }];
        }
        if record.kind == RecordKind::Write {
            assert_eq!(Record::sums_of(payload), record.sums, "sums are those of the payload");
            assert!(record.range.in_one_extent());
            assert_eq!(payload.blocks(), record.range.count as usize);
        }
        self.apply(record, payload);
        if let Some(a) = self.attempts.get_mut(&record.chunk.0) {
            a.written.extend(record.range.first..record.range.end());
        }
        let ack = Ack { branch: BRANCH, drive, version: record.version, chunk: record.chunk, extents: 0 };
        vec![ReplyFrame { token: 0, branch: BranchId(0), drive, reply: Reply::Acks(vec![ack]) }]
    }

    fn apply(&mut self, record: &Record, payload: &Payload) {
        for i in 0..record.range.count {
            let data = record.kind == RecordKind::Write;
            let block = Block {
                present: true,
                zero: !data,
                bad: false,
                payload: data.then(|| payload.slice(i as usize, 1)),
                version: record.version,
                generation: record.generation,
            };
            self.put((record.chunk.0, record.range.first + i, record.generation), block);
        }
    }

    fn read(&self, chunk: u32, range: BlockRange, view: View) -> Reply {
        let (mut runs, mut sums, mut bytes) = (vec![], vec![], vec![]);
        for b in range.first..range.end() {
            let block = self.seen(chunk, b, view).cloned().unwrap_or_default();
            let version = self.extent_version(chunk, b / 16, block.generation);
            let state = match &block.payload {
                _ if block.bad => BlockState::Bad,
                Some(p) => {
                    sums.push(Sum::of(p.bytes()));
                    bytes.extend_from_slice(p.bytes());
                    BlockState::Data
                }
                None if block.zero => BlockState::Zero,
                None => BlockState::Absent,
            };
            runs.push(Run { count: 1, state, version, generation: block.generation });
        }
        Reply::ReadDone { runs, sums, payload: Payload::copy_of(&bytes) }
    }

    /// A flush begins, or is done: what goes into the stream of acknowledgements.
    pub fn flush_step(&mut self) -> Vec<(Option<u64>, ReplyFrame)> {
        let drive = self.id;
        let frame = |token, reply| ReplyFrame { token, branch: BranchId(0), drive, reply };
        let Some((cover, older, marks)) = self.flush.take() else {
            if self.flush_wanted.is_empty() && !std::mem::take(&mut self.self_flush) {
                return vec![];
            }
            self.flush_number += 1;
            self.flush = Some((self.now.clone(), self.older.clone(), self.marks));
            return vec![(None, frame(0, Reply::FlushBegun { drive, flush: self.flush_number }))];
        };
        self.stable = cover;
        self.older_stable = older;
        self.marks_stable.raise(marks);
        let done = self.flush_number;
        let mut v = vec![(None, frame(0, Reply::FlushDone { drive, flush: done }))];
        for (source, token, _) in self.flush_wanted.extract_if(.., |f| f.2 <= done) {
            v.push((Some(source), frame(token, Reply::Flushed)));
        }
        v
    }

    /// One step of the target's pulling, the oldest view first; the answer when everything is pulled.
    pub fn pull_step(&mut self, chunk: u32, source: &Drive) -> Option<Reply> {
        let a = self.attempts.get_mut(&chunk)?;
        let (Some(&g), head) = (a.views.first(), a.views.len() == 1) else {
            let (number, bytes_moved) = (a.number, a.moved);
            self.attempts.remove(&chunk);
            return Some(Reply::Pulled { number, bytes_moved });
        };
        let view = if head { View::Head } else { View::At(g) };
        if !head && source.withdrawn.contains(&g) {
            let number = a.number;
            self.attempts.remove(&chunk);
            return Some(Reply::AttemptFailed { number, refusal: Refusal::UnknownView });
        }
        let Some(need) = &mut a.need else {
            let of =
                |d: &Drive| d.now.keys().filter(|k| k.0 == chunk).map(|k| k.1).collect::<BTreeSet<u32>>();
            let mut need: Vec<u32> = of(self).union(&of(source)).copied().collect();
            need.retain(|&b| !same(self.seen(chunk, b, view), source.seen(chunk, b, view)));
            self.attempts.get_mut(&chunk)?.need = Some(need);
            return None;
        };
        if let Some((b, block)) = a.got.take() {
            if !(head && a.written.contains(&b)) {
                a.moved += 4096;
                let after = a.after;
                self.older.retain(|k, _| k.0 != chunk || k.1 != b || k.2 <= after || k.2 > g);
                if self.now.get(&(chunk, b)).is_some_and(|x| x.generation > after && x.generation <= g) {
                    self.now.remove(&(chunk, b));
                }
                // what was beneath is the newest now
                let beneath = self.older.range((chunk, b, Generation(0))..=(chunk, b, Generation(u32::MAX)));
                if !self.now.contains_key(&(chunk, b))
                    && let Some((k, x)) = beneath.last().map(|(k, x)| (*k, x.clone()))
                {
                    self.older.remove(&k);
                    self.now.insert((chunk, b), x);
                }
                self.put((chunk, b, g), block);
            }
            return None;
        }
        match need.pop() {
            Some(b) => {
                let mut block = source.seen(chunk, b, view).cloned().unwrap_or_default();
                block.zero |= block.payload.is_none();
                block.present = true;
                a.got = Some((b, block));
            }
            None => {
                a.after = a.views.remove(0);
                a.need = None;
            }
        }
        None
    }
}

impl Block {
    pub fn value(&self) -> Value {
        self.payload.as_ref().map_or(0, |p| u64::from_le_bytes(p.bytes()[..8].try_into().unwrap()))
    }
}

fn same(a: Option<&Block>, b: Option<&Block>) -> bool {
    let bytes = |x: Option<&Block>| x.and_then(|x| x.payload.clone()).map(|p| p.bytes().to_vec());
    bytes(a) == bytes(b)
}

fn flat(now: &Blocks, older: &Layers) -> Layers {
    let newest = now.iter().map(|(k, b)| ((k.0, k.1, b.generation), b.clone()));
    older.iter().map(|(k, b)| (*k, b.clone())).chain(newest).collect()
}

fn seen<'a>(now: &'a Blocks, older: &'a Layers, chunk: u32, block: u32, view: View) -> Option<&'a Block> {
    let newest = now.get(&(chunk, block))?;
    match view {
        View::At(g) if newest.generation > g => {
            older.range((chunk, block, Generation(0))..=(chunk, block, g)).next_back().map(|(_, b)| b)
        }
        _ => Some(newest),
    }
}
