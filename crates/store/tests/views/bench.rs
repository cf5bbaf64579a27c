//! A store whose I/O completes at once, a session that writes to it, and a resync from another one.

use proto::message::*;
use proto::record::Sum;
use proto::*;
use store::event::Pull;
use store::medium::Medium;
use store::view::BlockView;
use store::{Effect, Event, FormatParams, OpenParams, Source, Store};

pub const BRANCH: BranchId = BranchId(5);
pub const CHUNK: ChunkIndex = ChunkIndex(0);
pub const EXTENTS: u32 = 3;
pub const BLOCKS: u32 = EXTENTS * 16;
const SIZE: u64 = 12 << 20;
const DRIVE: DriveId = DriveId(3);
pub const INCARNATION: Incarnation = Incarnation(7);
const SESSION: Source = Source(1);

pub struct Bench {
    pub medium: Medium,
    pub store: Store,
    pub now: Time,
    /// Everything is checked whenever time passes; dear.
    pub checks: bool,
    boot: u8,
    openings: u64,
    seen: Vec<Effect>,
    token: u64,
}

pub fn g(n: u32) -> Generation {
    Generation(n)
}
pub fn set(all: &[u32]) -> Generations {
    all.iter().map(|n| g(*n)).collect()
}
pub fn page(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(limits::BLOCK / 8)
}

impl Bench {
    pub fn new(parent: bool) -> Bench {
        Bench::sized(SIZE, parent)
    }
    pub fn sized(size: u64, parent: bool) -> Bench {
        let mut medium = Medium::new(size, true);
        let params = FormatParams {
            size,
            cluster: ClusterId(1),
            node: NodeId(2),
            drive: DRIVE,
            journal: Some(1 << 20),
        };
        medium.format(&params).unwrap();
        let mut b = Bench {
            medium,
            store: Store::new(open_params(size, 1, 1)),
            now: Time(1),
            checks: true,
            boot: 1,
            openings: 1,
            seen: Vec::new(),
            token: 0,
        };
        b.settle();
        b.event(Event::Confirmed);
        b.create(parent, INCARNATION);
        b
    }
    pub fn create(&mut self, parent: bool, incarnation: Incarnation) {
        let info = BranchInfo {
            branch: BRANCH,
            name: "v".into(),
            geometry: Geometry { size: u64::from(BLOCKS) * 4096, chunk_shift: 24 },
            parent: parent.then_some((BranchId(1), g(4))),
            generation: g(1),
        };
        let chunks = vec![ChunkRecord { chunk: CHUNK, incarnation, configuration: Configuration::default() }];
        assert_eq!(self.request(Request::Create { info, chunks }), [Reply::Done]);
    }
    pub fn settle(&mut self) {
        loop {
            while let Some(e) = self.store.poll() {
                match e {
                    Effect::Io { io, op } => self.medium.submit(io, op),
                    other => self.seen.push(other),
                }
            }
            let Some(io) = self.medium.in_flight().next() else { break };
            let result = self.medium.complete(io);
            self.store.handle(self.now, Event::Io { io, result });
        }
    }
    pub fn event(&mut self, e: Event) {
        self.store.handle(self.now, e);
        self.settle();
    }
    pub fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.seen)
    }
    pub fn pass(&mut self, span: Span) {
        let end = self.now + span;
        let mut wakes = 0;
        while self.store.next_wake() <= end {
            self.now = self.now.max(self.store.next_wake());
            self.event(Event::Wake);
            wakes += 1;
            assert!(wakes < 20_000, "woken without end");
        }
        self.now = end;
        if self.checks {
            self.store.check();
        }
    }
    /// Power loss (or the death of the process), and another opening.
    pub fn restart(&mut self, power: bool) {
        let mut dice = |_: u64| 0;
        if power {
            self.medium.power_loss(&mut dice);
            self.boot += 1;
        } else {
            self.medium.kill(&mut dice);
        }
        self.openings += 1;
        self.store = Store::new(OpenParams {
            now: self.now,
            ..open_params(self.medium.size(), self.boot, self.openings)
        });
        self.seen.clear();
        self.settle();
        self.event(Event::Confirmed);
    }
    pub fn scope(&self) -> Scope {
        Scope {
            drive: DRIVE,
            branch: BRANCH,
            chunk: CHUNK,
            epoch: Epoch(1),
            incarnation: INCARNATION,
            ..Scope::default()
        }
    }
    pub fn request(&mut self, request: Request) -> Vec<Reply> {
        let scope = self.scope();
        self.ask(scope, request)
    }
    /// By a reader without a session.
    pub fn outsider(&mut self, request: Request) -> Vec<Reply> {
        let scope = Scope { epoch: limits::READER_EPOCH, ..self.scope() };
        self.ask(scope, request)
    }
    pub fn ask(&mut self, scope: Scope, request: Request) -> Vec<Reply> {
        self.token += 1;
        let token = self.token;
        self.event(Event::Request { source: SESSION, frame: RequestFrame { token, scope, request } });
        self.event(Event::TurnEnd);
        self.pass(Span::micros(1));
        let reply = |e: &Effect| match e {
            Effect::Reply { frame, .. } if frame.token == token => Some(frame.reply.clone()),
            _ => None,
        };
        self.seen.iter().filter_map(reply).collect()
    }
    pub fn write(&mut self, generation: u32, seq: u64, first: u32, values: &[u64]) -> Vec<Reply> {
        let payload = Payload::copy_of(&values.iter().flat_map(|v| page(*v)).collect::<Vec<_>>());
        let count = u32::try_from(values.len()).unwrap();
        self.put(RecordKind::Write, generation, seq, BlockRange::new(first, count), payload)
    }
    pub fn zero(&mut self, generation: u32, seq: u64, first: u32, count: u32) -> Vec<Reply> {
        self.put(RecordKind::Zero, generation, seq, BlockRange::new(first, count), Payload::empty())
    }
    /// One block of an extent that views are not looked at in.
    pub fn write_far(&mut self, generation: u32, seq: u64, extent: u32) -> Vec<Reply> {
        self.write(generation, seq, extent * 16, &[seq])
    }
    fn put(
        &mut self,
        kind: RecordKind,
        generation: u32,
        seq: u64,
        range: BlockRange,
        payload: Payload,
    ) -> Vec<Reply> {
        let record = Record {
            kind,
            branch: BRANCH,
            chunk: CHUNK,
            range,
            version: Version::new(Epoch(1), seq),
            generation: g(generation),
            incarnation: INCARNATION,
            key: KeyId(0),
            sums: Record::sums_of(&payload),
        };
        self.request(Request::Write { record, payload, fresh: true })
    }
    pub fn durable(&mut self, seq: u64) {
        self.request(Request::Flush);
        let v = Version::new(Epoch(1), seq);
        let scope = Scope { marks: Marks { committed: v, durable: v }, ..self.scope() };
        self.ask(scope, Request::Marks);
        self.pass(Span::secs(3));
    }
    /// All blocks as a view sees them; zeroes as nothing, if that is the same.
    pub fn look(&self, view: View, parent: bool) -> Vec<Option<Sum>> {
        let block = |b| match self.store.block(BRANCH, CHUNK, b, view).unwrap().0 {
            BlockView::Data(sum) => Some(sum),
            BlockView::Zero if parent => Some(Sum(0)),
            BlockView::Zero | BlockView::Absent => None,
        };
        (0..BLOCKS).map(block).collect()
    }
    pub fn at(&self, n: u32, parent: bool) -> Vec<Option<Sum>> {
        self.look(View::At(g(n)), parent)
    }
    pub fn digest(&mut self, views: &Generations) -> Reply {
        let request = Request::Digest { views: views.clone(), head: true, source_process: None };
        self.request(request).remove(0)
    }
    pub fn begin(&mut self, number: u64, generation: u32, views: &Generations) {
        let place = Place { node: NodeId(2), drive: DRIVE, incarnation: INCARNATION };
        let attempt = Attempt {
            number,
            epoch: Epoch(1),
            chunk: CHUNK,
            configuration: ConfigNumber(0),
            generation: g(generation),
            views: views.clone(),
            head: true,
            source: place,
            source_process: ProcessNumber(1),
            target: place,
            target_process: ProcessNumber(1),
        };
        assert_eq!(self.request(Request::AttemptBegin { attempt }), [Reply::Done]);
    }
    fn manifest(&mut self, view: View, after: Generation) -> Option<Vec<ManifestEntry>> {
        let request = Request::Manifest { view, after, from: 0, source_process: None };
        match self.request(request).remove(0) {
            Reply::Manifest { entries, next: None } => Some(entries),
            Reply::Refused { refusal: Refusal::UnknownView, .. } => None,
            other => panic!("{other:?}"),
        }
    }
    /// What differs in one view; none: somebody does not keep it any more.
    pub fn differ(&mut self, source: &mut Bench, view: View, after: Generation) -> Option<Vec<u32>> {
        let (theirs, ours) = (source.manifest(view, after)?, self.manifest(view, after)?);
        let missing = theirs.iter().filter(|e| !ours.contains(e)).map(|e| e.extent);
        let ours = ours.iter().map(|e| e.extent).filter(|x| theirs.iter().all(|e| e.extent != *x));
        let mut all: Vec<u32> = missing.chain(ours).collect();
        all.sort_unstable();
        Some(all)
    }
    /// One extent of one view. False: the source does not keep it any more.
    pub fn pull(&mut self, source: &mut Bench, attempt: u64, step: (View, u32, u32), extent: u32) -> bool {
        let (view, after, into) = step;
        let range = BlockRange::new(extent * 16, 16);
        let read = Request::Read { view, range, media: false, source_process: Some(ProcessNumber(1)) };
        let (runs, sums, payload) = match source.request(read).remove(0) {
            Reply::ReadDone { runs, sums, payload } => (runs, sums, payload),
            Reply::Refused { refusal: Refusal::UnknownView, .. } => return false,
            other => panic!("{other:?}"),
        };
        self.token += 1;
        let pull = Pull {
            token: self.token,
            attempt,
            epoch: Epoch(1),
            source: SESSION,
            branch: BRANCH,
            chunk: CHUNK,
            extent,
            generation: g(into),
            after: g(after),
            version: runs.iter().map(|r| r.version).max().unwrap(),
            runs,
            sums,
            payload,
        };
        let token = self.token;
        self.event(Event::Pull(pull));
        self.event(Event::TurnEnd);
        self.pass(Span::micros(1));
        let done =
            self.seen.iter().any(|e| matches!(e, Effect::Pulled { token: t, result: Ok(_) } if *t == token));
        assert!(done, "{:?}", self.seen);
        true
    }
    /// Of the next list.
    pub fn index(&mut self) -> u64 {
        self.store.kept(BRANCH).unwrap().0.0 + 1
    }
    pub fn keep(&mut self, list: KeepList) {
        self.event(Event::Keep(list));
        self.event(Event::TurnEnd);
    }
}

pub fn steps(views: &Generations, generation: u32) -> Vec<(View, u32, u32)> {
    let mut after = 0;
    let mut all = Vec::new();
    for v in views.iter() {
        all.push((View::At(v), after, v.0));
        after = v.0;
    }
    all.push((View::Head, after, generation));
    all
}

pub fn list(index: u64, open: u32, head: u32, kept: &[u32]) -> KeepList {
    KeepList {
        branch: BRANCH,
        index: ListIndex(index),
        placed: INCARNATION,
        open: g(open),
        head: g(head),
        named: true,
        kept: set(kept),
        behind: Vec::new(),
    }
}

fn open_params(size: u64, boot: u8, opening: u64) -> OpenParams {
    OpenParams {
        size,
        boot: [boot; 16],
        cluster: ClusterId(1),
        node: NodeId(2),
        opening: OpenId(opening),
        volatile_cache: true,
        now: Time(1),
    }
}
