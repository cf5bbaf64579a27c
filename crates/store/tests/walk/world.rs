//! The store, its medium, and a session that writes to it.

use crate::model::{ABSENT, Model, pages};
use proto::message::{
    Attempt, BlockState, BranchInfo, ChunkRecord, Reply, ReplyFrame, Request, RequestFrame, Run, Scope, View,
};
use proto::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use store::event::Pull;
use store::medium::Medium;
use store::view::BlockView;
use store::{Bugs, Effect, Event, FormatParams, IoId, OpenParams, Source, Store};

pub const BRANCH: BranchId = BranchId(7);
const DRIVE: DriveId = DriveId(99);
pub const CHUNKS: u32 = 2;
/// Extents of a chunk that are written.
pub const EXTENTS: u32 = 5;
pub const BLOCKS: u32 = EXTENTS * 16;

/// A write that is not answered.
#[derive(Clone)]
pub struct Pending {
    pub record: Record,
    pub payload: Payload,
    /// The connection that it was last sent on.
    pub source: Source,
}

/// Chunk and block, and its value.
pub type Looked = ((u32, u32), u64);

/// A read under way: what may come back for each block.
pub struct Reading {
    pub chunk: u32,
    pub first: u32,
    pub view: View,
    pub floors: Vec<usize>,
}

pub struct World {
    pub rng: u64,
    pub bugs: Bugs,
    pub medium: Medium,
    pub store: Store,
    pub now: Time,
    pub boot: u8,
    openings: u64,
    pub model: Model,
    pub pending: Vec<Pending>,
    pub source: Source,
    old_sources: Vec<Source>,
    pub epoch: Epoch,
    /// The fence is answered.
    pub fenced: bool,
    seq: u64,
    pub value: u64,
    pub generation: u32,
    pub incarnations: [u64; CHUNKS as usize],
    pub created: bool,
    pub creating: bool,
    /// A deletion is ordered and not confirmed: chunk.
    pub deleting: Option<u32>,
    pub durable: Version,
    /// Flush under way: the least version not answered when it began, and when that was.
    notes: BTreeMap<u64, (Version, u64)>,
    events: u64,
    pub doubt: bool,
    reads: BTreeMap<u64, Reading>,
    token: u64,
    attempt: Option<(u64, u32, Version, bool)>,
    pulls: BTreeMap<u64, (u32, u32, Version, Version)>,
    pub queue: VecDeque<IoId>,
    pub steps: u64,
    pub opened: bool,
    /// After a crash: what is there has been looked at.
    pub settled: bool,
    pub refused_once: bool,
    fence_token: u64,
    doubt_token: u64,
    /// Snapshots: sealed generations that are kept.
    pub kept: BTreeSet<u32>,
    /// Those that the replica of each chunk truly holds, and whether Raft calls it in-sync.
    pub held: [BTreeSet<u32>; CHUNKS as usize],
    pub behind: [bool; CHUNKS as usize],
    /// Keep-lists under way; the index of the newest one.
    pub lists: Vec<KeepList>,
    pub index: u64,
    /// The newest one that the drive says it has.
    pub confirmed: u64,
    /// An `EndDoubt` is not answered.
    pub doubt_ending: bool,
    /// The branch has a parent: a zero must be told from nothing.
    pub parent: bool,
    pub trace: bool,
}

pub fn below(rng: &mut u64, n: u64) -> u64 {
    *rng = rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *rng;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % n.max(1)
}

impl World {
    pub fn new(seed: u64, bugs: Bugs) -> World {
        let mut rng = seed.wrapping_mul(0x5851_f42d_4c95_7f2d);
        let volatile = below(&mut rng, 5) > 0;
        // In the longer ring the index has full chunks.
        let ring = 128 + 256 * (seed % 2);
        let size = (32 + ring + 20 + 10 + 6 + 16 * (30 + below(&mut rng, 20))) * 4096;
        let mut medium = Medium::new(size, volatile);
        let params = FormatParams {
            size,
            cluster: ClusterId(1),
            node: NodeId(1),
            drive: DRIVE,
            journal: Some(ring * 4096),
        };
        medium.format(&params).unwrap();
        let store = Store::new(open_params(size, 1, 1, volatile));
        let mut w = World {
            rng,
            bugs,
            medium,
            store,
            now: Time(1),
            boot: 1,
            openings: 1,
            model: Model::default(),
            pending: Vec::new(),
            source: Source(1),
            old_sources: Vec::new(),
            epoch: Epoch(1),
            fenced: true,
            seq: 0,
            value: 0,
            generation: 1,
            incarnations: [11, 12],
            created: false,
            creating: false,
            deleting: None,
            durable: Version::ZERO,
            notes: BTreeMap::new(),
            events: 0,
            doubt: false,
            reads: BTreeMap::new(),
            token: 0,
            attempt: None,
            pulls: BTreeMap::new(),
            queue: VecDeque::new(),
            steps: 0,
            opened: false,
            settled: true,
            refused_once: false,
            fence_token: 0,
            doubt_token: 0,
            kept: BTreeSet::new(),
            held: [BTreeSet::new(), BTreeSet::new()],
            behind: [false; 2],
            lists: Vec::new(),
            index: 0,
            confirmed: 0,
            doubt_ending: false,
            parent: seed % 3 == 2,
            trace: std::env::var("WALK_TRACE").is_ok(),
        };
        w.model.nothing = if w.parent { ABSENT } else { 0 };
        w.set_bugs();
        w.drain().expect("only reads");
        w
    }
    pub fn set_bugs(&mut self) {
        #[cfg(feature = "bugs")]
        self.store.set_bugs(self.bugs);
        let _ = self.bugs;
    }
    pub fn dice(&mut self, n: u64) -> u64 {
        below(&mut self.rng, n)
    }
    pub fn reopen(&mut self) {
        self.openings += 1;
        let p = open_params(self.medium.size(), self.boot, self.openings, self.medium.is_volatile());
        self.store = Store::new(OpenParams { now: self.now, ..p });
        self.set_bugs();
        self.opened = false;
        self.settled = false;
        self.queue.clear();
    }
    fn token(&mut self) -> u64 {
        self.token += 1;
        self.token
    }
    fn scope(&self, chunk: u32) -> Scope {
        let committed = self
            .pending
            .iter()
            .map(|p| p.record.version)
            .min()
            .map_or(Version::new(self.epoch, self.seq), |v| v.before());
        Scope {
            drive: DRIVE,
            branch: BRANCH,
            chunk: ChunkIndex(chunk),
            epoch: self.epoch,
            incarnation: Incarnation(self.incarnations[chunk as usize]),
            configuration: ConfigNumber(1),
            marks: Marks { committed, durable: self.durable },
        }
    }

    // ---------------------------------------------------------------- events and effects
    pub fn event(&mut self, event: Event) -> Result<(), String> {
        if self.trace {
            println!("{:4} {}", self.steps, cut(&event));
        }
        self.store.handle(self.now, event);
        self.drain()
    }
    fn send(&mut self, source: Source, token: u64, scope: Scope, request: Request) -> Result<(), String> {
        self.event(Event::Request { source, frame: RequestFrame { token, scope, request } })
    }
    pub fn drain(&mut self) -> Result<(), String> {
        while let Some(e) = self.store.poll() {
            if self.trace {
                println!("          -> {}", cut(&e));
            }
            match e {
                Effect::Io { io, op } => {
                    self.medium.submit(io, op);
                    self.queue.push_back(io);
                }
                Effect::Reply { source, frame } => self.reply(source, frame)?,
                Effect::Broadcast { frame } => self.broadcast(&frame.reply),
                Effect::Pulled { token, result } => {
                    self.events += 1;
                    let Some((chunk, extent, version, v0)) = self.pulls.remove(&token) else { continue };
                    if result.is_ok() && self.attempt.is_some() {
                        for b in extent * 16..extent * 16 + 16 {
                            let h = self.model.history((chunk, b));
                            let newer = h.iter().any(|w| w.version >= v0);
                            if !newer && let Some(w) = h.iter_mut().find(|w| w.version == version) {
                                w.acked = true;
                                w.done_at = self.events;
                            }
                        }
                    }
                }
                Effect::Opened(o) => {
                    self.opened = true;
                    if o.drive != DRIVE {
                        return Err("another drive".into());
                    }
                }
                Effect::Failed(f) => return Err(format!("the store failed: {f}")),
                Effect::Deleted { replicas } => self.deleted(replicas[0].chunk.0),
                Effect::Kept { index, .. } => self.confirmed = self.confirmed.max(index.0),
                Effect::Closed | Effect::Notice(_) => {}
            }
        }
        Ok(())
    }
    fn deleted(&mut self, chunk: u32) {
        if self.deleting.take() == Some(chunk) {
            self.placed_anew(chunk);
            self.created = false;
        }
    }
    /// Another replica of the chunk: it holds nothing.
    pub fn placed_anew(&mut self, chunk: u32) {
        self.incarnations[chunk as usize] += 100;
        self.model.blocks.retain(|at, _| at.0 != chunk);
        self.held[chunk as usize].clear();
        self.behind[chunk as usize] = true;
    }
    fn broadcast(&mut self, reply: &Reply) {
        if !self.settled {
            return;
        }
        match reply {
            Reply::FlushBegun { flush, .. } => {
                let least = self.pending.iter().map(|p| p.record.version).min();
                let note = least.unwrap_or(Version::new(self.epoch, self.seq + 1));
                self.notes.insert(*flush, (note, self.events));
            }
            Reply::FlushDone { flush, .. } => {
                if let Some((note, begun)) = self.notes.remove(flush) {
                    self.model.flushed_below(note, begun);
                    if note.seq > 0 {
                        self.durable = self.durable.max(note.before());
                    }
                }
            }
            _ => {}
        }
    }
    fn reply(&mut self, source: Source, frame: ReplyFrame) -> Result<(), String> {
        if source != self.source {
            return Ok(());
        }
        match frame.reply {
            Reply::Acks(acks) => {
                for a in acks {
                    self.pending.retain(|p| p.record.version != a.version);
                    self.model.acked(a.version);
                }
            }
            Reply::Refused { refusal, version } => self.refused(refusal, version)?,
            Reply::Report(report) if frame.token == self.fence_token => {
                self.fenced = true;
                self.check_report(&report)?;
                self.take_over()?;
            }
            Reply::Done => {
                if frame.token == self.doubt_token {
                    self.doubt = false;
                    self.doubt_ending = false;
                } else if let Some(a) = &mut self.attempt
                    && a.0 == frame.token
                {
                    a.3 = true;
                } else if self.creating {
                    self.created = true;
                    self.creating = false;
                }
            }
            Reply::ReadDone { runs, sums, payload } => {
                if let Some(r) = self.reads.remove(&frame.token) {
                    self.check_read(&r, &runs, sums.len(), &payload)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
    fn refused(&mut self, refusal: Refusal, version: Version) -> Result<(), String> {
        match refusal {
            // Undone: it was never applied here.
            Refusal::NoSpace => {
                self.pending.retain(|p| p.record.version != version);
                for h in self.model.blocks.values_mut() {
                    h.retain(|w| w.version != version || w.acked);
                }
                self.refused_once = true;
                Ok(())
            }
            Refusal::DriveNotConfirmed | Refusal::UnknownReplica | Refusal::Closing | Refusal::OldAttempt => {
                Ok(())
            }
            other => Err(format!("refused: {other:?} {version}")),
        }
    }
    /// A new session: what is there now is what is there.
    fn take_over(&mut self) -> Result<(), String> {
        self.pending.clear();
        for (at, value) in self.look(View::Head)? {
            let place = self.model.allows(at, View::Head, value, false)?;
            let h = self.model.history(at);
            h.truncate(place + 1);
            for w in h {
                w.acked = true;
            }
        }
        self.durable = self.durable.max(Version::ZERO);
        Ok(())
    }

    // ---------------------------------------------------------------- steps
    pub fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        self.now = self.now + Span::micros(20);
        if !self.opened {
            self.complete_some()?;
        } else if self.store.is_serving() && !self.created {
            self.create()?;
        } else {
            match self.dice(105) {
                0..=21 => self.write_small()?,
                22..=29 => self.write_large()?,
                30..=35 => self.zero()?,
                36..=47 => self.event(Event::TurnEnd)?,
                48..=74 => self.complete_some()?,
                75..=77 => self.flush()?,
                78..=82 => self.pass_time()?,
                83..=85 => self.read()?,
                86..=87 => self.reconnect()?,
                88 => self.fence()?,
                89..=90 => self.confirm()?,
                91 => self.seal(),
                92..=93 => self.attempt()?,
                94..=95 => self.pull()?,
                96 => self.delete()?,
                97 => self.end_doubt()?,
                98 => self.old_epoch()?,
                99 => self.crash()?,
                100..=101 => self.snapshots(),
                102..=103 => self.arrive()?,
                _ => self.pull_view()?,
            }
        }
        self.check()
    }
    pub fn create(&mut self) -> Result<(), String> {
        if self.creating || self.deleting.is_some() {
            return self.busy();
        }
        let geometry = Geometry { size: 64 << 20, chunk_shift: 24 };
        let info = BranchInfo {
            branch: BRANCH,
            name: "v".into(),
            geometry,
            parent: self.parent.then_some((BranchId(3), Generation(2))),
            generation: Generation(self.generation),
        };
        let chunks = (0..CHUNKS)
            .map(|c| ChunkRecord {
                chunk: ChunkIndex(c),
                incarnation: Incarnation(self.incarnations[c as usize]),
                configuration: Configuration::default(),
            })
            .collect();
        self.creating = true;
        let token = self.token();
        let scope = self.scope(0);
        self.send(self.source, token, scope, Request::Create { info, chunks })?;
        self.event(Event::TurnEnd)
    }
    fn busy(&mut self) -> Result<(), String> {
        self.event(Event::TurnEnd)?;
        self.complete_some()
    }
    fn ready(&self) -> bool {
        self.store.is_serving() && self.created && self.fenced && self.pending.len() < 12
    }
    fn is_busy(&self, chunk: u32, first: u32, count: u32) -> bool {
        let range = BlockRange::new(first, count);
        self.deleting == Some(chunk)
            || self.pending.iter().any(|p| p.record.chunk.0 == chunk && p.record.range.overlaps(range))
    }
    fn record(&mut self, kind: RecordKind, chunk: u32, first: u32, payload: &Payload, count: u32) -> Record {
        self.seq += 1;
        Record {
            kind,
            branch: BRANCH,
            chunk: ChunkIndex(chunk),
            range: BlockRange::new(first, count),
            version: Version::new(self.epoch, self.seq),
            generation: Generation(self.generation),
            incarnation: Incarnation(self.incarnations[chunk as usize]),
            key: KeyId(0),
            sums: Record::sums_of(payload),
        }
    }
    fn write(&mut self, chunk: u32, first: u32, count: u32) -> Result<(), String> {
        if !self.ready() || self.is_busy(chunk, first, count) {
            return Ok(());
        }
        let values: Vec<u64> = (0..count)
            .map(|_| {
                self.value += 1;
                self.value
            })
            .collect();
        let payload = pages(&values);
        let record = self.record(RecordKind::Write, chunk, first, &payload, count);
        for (b, v) in (first..).zip(&values) {
            self.model.sent((chunk, b), *v, record.version, self.generation);
        }
        self.submit(Pending { record, payload, source: self.source })
    }
    fn submit(&mut self, p: Pending) -> Result<(), String> {
        self.pending.retain(|q| q.record.version != p.record.version);
        let p = Pending { source: self.source, ..p };
        self.pending.push(p.clone());
        let scope = self.scope(p.record.chunk.0);
        let request = Request::Write { record: p.record, payload: p.payload, fresh: true };
        self.send(self.source, 0, scope, request)
    }
    fn write_small(&mut self) -> Result<(), String> {
        let chunk = self.dice(u64::from(CHUNKS)) as u32;
        let first = self.dice(u64::from(BLOCKS)) as u32;
        let count = 1 + self.dice(3) as u32;
        let count = count.min(16 - first % 16);
        self.write(chunk, first, count)
    }
    fn write_large(&mut self) -> Result<(), String> {
        let chunk = self.dice(u64::from(CHUNKS)) as u32;
        let extent = self.dice(u64::from(EXTENTS)) as u32;
        self.write(chunk, extent * 16, 16)
    }
    fn zero(&mut self) -> Result<(), String> {
        let chunk = self.dice(u64::from(CHUNKS)) as u32;
        let mut first = self.dice(u64::from(BLOCKS)) as u32;
        let mut count = (1 + self.dice(40) as u32).min(BLOCKS - first);
        if self.dice(2) == 0 {
            first = first / 16 * 16;
            count = 16;
        }
        if !self.ready() || self.is_busy(chunk, first, count) {
            return Ok(());
        }
        let record = self.record(RecordKind::Zero, chunk, first, &Payload::empty(), count);
        for b in first..first + count {
            self.model.sent((chunk, b), 0, record.version, self.generation);
        }
        self.submit(Pending { record, payload: Payload::empty(), source: self.source })
    }
    pub fn complete_some(&mut self) -> Result<(), String> {
        for _ in 0..1 + self.dice(3) {
            if self.queue.is_empty() {
                return Ok(());
            }
            let at = self.dice(self.queue.len() as u64) as usize;
            let at = if self.dice(3) == 0 { at } else { 0 };
            self.complete(at)?;
        }
        Ok(())
    }
    pub fn complete(&mut self, at: usize) -> Result<(), String> {
        let io = self.queue.remove(at).expect("in range");
        let result = self.medium.complete(io);
        self.event(Event::Io { io, result })
    }
    pub fn flush(&mut self) -> Result<(), String> {
        if !self.ready() {
            return Ok(());
        }
        let (token, scope) = (self.token(), self.scope(0));
        self.send(self.source, token, scope, Request::Flush)
    }
    fn pass_time(&mut self) -> Result<(), String> {
        let span = match self.dice(3) {
            0 => Span::millis(5),
            1 => Span::millis(1100),
            _ => Span::secs(6),
        };
        self.now = self.now + span;
        self.wake()
    }
    pub fn wake(&mut self) -> Result<(), String> {
        for _ in 0..50 {
            if self.store.next_wake() > self.now {
                return Ok(());
            }
            self.event(Event::Wake)?;
        }
        Err("woken again and again for nothing".into())
    }
    fn read(&mut self) -> Result<(), String> {
        if !self.ready() {
            return Ok(());
        }
        let chunk = self.dice(u64::from(CHUNKS)) as u32;
        let first = self.dice(u64::from(BLOCKS)) as u32;
        let count = (1 + self.dice(24) as u32).min(BLOCKS - first);
        let sealed = self.dice(u64::from(self.generation)) as u32;
        let withdrawn = |(_, open, kept): (ListIndex, Generation, Generations)| {
            Generation(sealed) < open && !kept.contains(Generation(sealed))
        };
        let gone = self.store.kept(BRANCH).is_some_and(withdrawn);
        let view = if sealed == 0 || gone { View::Head } else { View::At(Generation(sealed)) };
        let floors = (first..first + count)
            .map(|b| self.model.visible((chunk, b), view).iter().rposition(|w| w.acked).unwrap_or(0))
            .collect();
        let token = self.token();
        self.reads.insert(token, Reading { chunk, first, view, floors });
        let request = Request::Read {
            view,
            range: BlockRange::new(first, count),
            media: self.dice(3) == 0,
            source_process: None,
        };
        let scope = self.scope(chunk);
        self.send(self.source, token, scope, request)
    }
    /// Forgets what was on the old connection, and opens a new one.
    pub fn new_source(&mut self) {
        self.old_sources.push(self.source);
        self.source = Source(self.source.0 + 1);
        self.notes.clear();
        self.reads.clear();
        self.attempt = None;
        self.pulls.clear();
    }
    fn reconnect(&mut self) -> Result<(), String> {
        if !self.store.is_serving() || !self.created || !self.fenced {
            return Ok(());
        }
        let old = self.source;
        self.new_source();
        self.event(Event::SourceClosed { source: old })?;
        self.resend()
    }
    pub fn resend(&mut self) -> Result<(), String> {
        if !self.store.is_serving() || !self.created || !self.fenced {
            return Ok(());
        }
        for p in self.pending.clone() {
            if p.source != self.source {
                self.submit(p)?;
            }
        }
        Ok(())
    }
    pub fn fence(&mut self) -> Result<(), String> {
        if !self.store.is_serving() || !self.created {
            return Ok(());
        }
        let old = self.source;
        self.new_source();
        if self.dice(2) == 0 {
            self.event(Event::SourceClosed { source: old })?;
        }
        if self.fenced {
            self.epoch = Epoch(self.epoch.0 + 1);
            self.seq = 0;
        }
        self.fenced = false;
        self.fence_token = self.token();
        let mut scope = self.scope(0);
        scope.marks = Marks::default();
        let request = Request::Fence { number: 1, holder: NodeId(1) };
        self.send(self.source, self.fence_token, scope, request)?;
        self.event(Event::TurnEnd)
    }
    pub fn confirm(&mut self) -> Result<(), String> {
        if self.store.is_serving() { Ok(()) } else { self.event(Event::Confirmed) }
    }
    /// A snapshot: everything answered and flushed.
    fn seal(&mut self) {
        let flushed = self.model.blocks.values().flatten().all(|w| w.flushed);
        if self.ready() && self.pending.is_empty() && flushed && self.generation < 5 && self.attempt.is_none()
        {
            if self.dice(3) > 0 {
                self.kept.insert(self.generation);
            }
            for chunk in (0..CHUNKS as usize).filter(|c| !self.behind[*c]) {
                self.held[chunk].insert(self.generation);
            }
            self.generation += 1;
            self.tell();
        }
    }
    /// metad makes a list, as of now.
    pub fn tell(&mut self) {
        self.index += 1;
        let behind = (0..CHUNKS as usize).filter(|c| self.behind[*c]);
        self.lists.push(KeepList {
            branch: BRANCH,
            index: ListIndex(self.index),
            placed: Incarnation(self.incarnations[0].max(self.incarnations[1])),
            open: Generation(self.generation),
            head: Generation(self.generation),
            named: true,
            kept: self.kept.iter().map(|g| Generation(*g)).collect(),
            behind: behind.map(|c| (ChunkIndex(c as u32), Incarnation(self.incarnations[c]))).collect(),
        });
    }
    /// One is deleted, or a replica has all of them now, or one is lost.
    fn snapshots(&mut self) {
        match self.dice(4) {
            0 => {
                if let Some(g) = self.kept.iter().nth(self.dice_const(self.kept.len())).copied() {
                    self.kept.remove(&g);
                }
            }
            // What is placed anew here is empty in all views: so it holds them.
            1 if self.created && self.deleting.is_none() => {
                for chunk in 0..CHUNKS as usize {
                    if std::mem::take(&mut self.behind[chunk]) {
                        self.held[chunk] = self.kept.clone();
                    }
                }
            }
            2 if !self.lists.is_empty() => {
                let at = self.dice(self.lists.len() as u64) as usize;
                self.lists.remove(at);
            }
            _ => {}
        }
        if self.generation > 1 {
            self.tell();
        }
    }
    fn dice_const(&self, n: usize) -> usize {
        (self.steps as usize) % n.max(1)
    }
    /// A list comes, late or soon, once or more.
    fn arrive(&mut self) -> Result<(), String> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let at = self.dice(self.lists.len() as u64) as usize;
        let list = if self.dice(3) == 0 { self.lists[at].clone() } else { self.lists.remove(at) };
        self.event(Event::Keep(list))
    }
    /// A resync finds a sealed view as it is, and pulls it all the same: nothing changes.
    fn pull_view(&mut self) -> Result<(), String> {
        let Some((attempt, chunk, _, true)) = self.attempt else { return Ok(()) };
        let Some((_, open, kept)) = self.store.kept(BRANCH) else { return Ok(()) };
        if !self.ready() || self.deleting == Some(chunk) || self.generation == 1 {
            return Ok(());
        }
        let view = Generation(1 + self.dice(u64::from(self.generation) - 1) as u32);
        let extent = self.dice(u64::from(EXTENTS)) as u32;
        let mut runs = Vec::new();
        let (mut sums, mut values) = (Vec::new(), Vec::new());
        for b in extent * 16..extent * 16 + 16 {
            let at = (ChunkIndex(chunk), b, View::At(view));
            let Some((state, version)) = self.store.block(BRANCH, at.0, at.1, at.2) else { return Ok(()) };
            let value = self.model.value_of(state).ok_or("unknown bytes")?;
            let state = match state {
                BlockView::Data(sum) => {
                    sums.push(sum);
                    values.push(value);
                    BlockState::Data
                }
                BlockView::Zero => BlockState::Zero,
                BlockView::Absent => BlockState::Absent,
            };
            runs.push(Run { count: 1, state, version, generation: view });
        }
        let withdrawn = view < open && !kept.contains(view);
        if withdrawn || (values.is_empty() && self.dice(4) > 0) {
            return Ok(());
        }
        let version = runs.iter().map(|r| r.version).max().unwrap();
        let after = kept.before(view).filter(|a| *a < view).unwrap_or(Generation(0));
        let token = self.token();
        let pull = Pull {
            token,
            attempt,
            epoch: self.epoch,
            source: self.source,
            branch: BRANCH,
            chunk: ChunkIndex(chunk),
            extent,
            generation: view,
            after,
            version,
            runs,
            sums,
            payload: pages(&values),
        };
        self.event(Event::Pull(pull))
    }
    fn attempt(&mut self) -> Result<(), String> {
        if !self.ready() || !self.pending.is_empty() {
            return Ok(());
        }
        let chunk = self.dice(u64::from(CHUNKS)) as u32;
        if self.deleting == Some(chunk) {
            return Ok(());
        }
        let token = self.token();
        let place = Place {
            node: NodeId(1),
            drive: DRIVE,
            incarnation: Incarnation(self.incarnations[chunk as usize]),
        };
        let attempt = Attempt {
            number: token,
            epoch: self.epoch,
            chunk: ChunkIndex(chunk),
            configuration: ConfigNumber(1),
            generation: Generation(self.generation),
            views: self.kept.iter().map(|g| Generation(*g)).collect(),
            head: true,
            source: place,
            source_process: ProcessNumber(1),
            target: place,
            target_process: ProcessNumber(1),
        };
        let v0 = Version::new(self.epoch, self.seq + 1);
        self.attempt = Some((token, chunk, v0, false));
        let scope = self.scope(chunk);
        self.send(self.source, token, scope, Request::AttemptBegin { attempt })?;
        self.event(Event::TurnEnd)
    }
    fn pull(&mut self) -> Result<(), String> {
        let Some((attempt, chunk, v0, true)) = self.attempt else { return Ok(()) };
        if !self.ready() || self.deleting == Some(chunk) {
            return Ok(());
        }
        let extent = self.dice(u64::from(EXTENTS)) as u32;
        if self.pulls.values().any(|p| (p.0, p.1) == (chunk, extent)) {
            return Ok(());
        }
        // A version of its own, below v0: it names the pull in the history.
        self.value += 1;
        let version = Version::new(Epoch(0), self.value);
        let (mut runs, mut sums, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for b in extent * 16..extent * 16 + 16 {
            let data = self.dice(3) > 0;
            self.value += 1;
            let value = if data { self.value } else { 0 };
            self.model.pulled((chunk, b), value, version, v0, self.generation);
            let state = if data { BlockState::Data } else { BlockState::Zero };
            runs.push(Run { count: 1, state, version, generation: Generation(self.generation) });
            if data {
                values.push(value);
                sums.push(proto::record::Sum::of(&crate::model::page(value)));
            }
        }
        let token = self.token();
        self.pulls.insert(token, (chunk, extent, version, v0));
        let pull = Pull {
            token,
            attempt,
            epoch: self.epoch,
            source: self.source,
            branch: BRANCH,
            chunk: ChunkIndex(chunk),
            extent,
            after: Generation(0),
            generation: Generation(self.generation),
            version,
            runs,
            sums,
            payload: pages(&values),
        };
        self.event(Event::Pull(pull))
    }
    fn delete(&mut self) -> Result<(), String> {
        let chunk = 1;
        let busy = self.is_busy(chunk, 0, BLOCKS) || !self.pulls.is_empty() || self.attempt.is_some();
        if !self.ready() || busy || self.dice(3) > 0 {
            return Ok(());
        }
        self.deleting = Some(chunk);
        self.reads.clear();
        let incarnation = Incarnation(self.incarnations[chunk as usize]);
        let held = proto::control::HeldReplica { branch: BRANCH, chunk: ChunkIndex(chunk), incarnation };
        self.event(Event::Delete { replicas: vec![held], index: LogIndex(self.steps) })?;
        self.event(Event::TurnEnd)
    }
    fn end_doubt(&mut self) -> Result<(), String> {
        if !self.ready() || !self.doubt {
            return Ok(());
        }
        self.doubt_token = self.token();
        self.doubt_ending = true;
        let scope = self.scope(0);
        self.send(self.source, self.doubt_token, scope, Request::EndDoubt)
    }
    /// A late frame of a session that is fenced.
    fn old_epoch(&mut self) -> Result<(), String> {
        if !self.ready() || self.epoch.0 < 2 {
            return Ok(());
        }
        let (chunk, block) = (0, self.dice(u64::from(BLOCKS)) as u32);
        if self.is_busy(chunk, block, 1) {
            return Ok(());
        }
        let payload = pages(&[u64::MAX - self.steps]);
        let mut record = self.record(RecordKind::Write, chunk, block, &payload, 1);
        self.seq -= 1;
        record.version = Version::new(Epoch(self.epoch.0 - 1), 1_000_000);
        let mut scope = self.scope(chunk);
        scope.epoch = Epoch(self.epoch.0 - 1);
        let source = Source(1_000_000 + self.steps);
        self.send(source, 0, scope, Request::Write { record, payload, fresh: true })
    }
}

/// Without the bytes.
fn cut(what: &impl std::fmt::Debug) -> String {
    let mut s = format!("{what:?}");
    if let Some(at) = s.find(", sums: [") {
        s.truncate(at);
    }
    s.truncate(420);
    s
}

fn open_params(size: u64, boot: u8, opening: u64, volatile: bool) -> OpenParams {
    OpenParams {
        size,
        boot: [boot; 16],
        cluster: ClusterId(1),
        node: NodeId(1),
        opening: OpenId(opening),
        volatile_cache: volatile,
        now: Time(1),
    }
}
