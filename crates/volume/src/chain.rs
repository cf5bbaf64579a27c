//! Views that never change, read without a session (6): a chain of levels, each a sealed generation of a branch; what
//! is absent in one is looked for in the next, and below the last it is zero.
//!
//! Only kept and complete views are answered to the reader's epoch, so no lease and no mark is needed: what comes back
//! is the view, whoever gave it. Whoever does not give it is passed over: our own node's replica first, then those in
//! sync, then the rest; when all were tried metad is asked where they are now, and it begins anew. What nobody could be
//! asked about is never taken for zeroes: it waits.

use crate::reads::{Part, well_formed};
use proto::control::{MetaAnswer, MetaRequest};
use proto::limits::{ANSWER_TIMEOUT, BLOCK, READER_EPOCH};
use proto::message::{BlockState, Reply, Request, RequestFrame, Run, Scope, View};
use proto::{
    BlockRange, ChunkIndex, Configuration, Epoch, Generation, Level, Map, NodeId, Payload, Place, Refusal,
    Set, Span, Time, Version,
};
use slab::Slab;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// When all were tried, before it begins anew.
const AGAIN: Span = Span::millis(200);
/// A question to metad that nobody answers is asked again.
const META_AGAIN: Span = Span::secs(3);
/// So long it counts that metad knows no such view: it may be there under another name.
const GONE_FOR: Span = Span::secs(2);
/// So many rounds in which all refuse end a question of what has changed.
const REFUSED: u32 = 10;
/// Chunks in one question.
const BATCH: usize = 4096;
/// Marks the chain's tokens: whoever owns it has others.
pub(crate) const TOKEN: u64 = 1 << 47;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Want {
    Data,
    /// States alone, for block status.
    States,
    /// States in that level alone: what is absent there stays so.
    Here,
    /// What that level has that is younger than this; what it has not has not changed since.
    Changes(Generation),
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "almost all are frames; a box would be an allocation per read")]
pub(crate) enum Out {
    Send {
        node: NodeId,
        frame: RequestFrame,
    },
    Meta {
        token: u64,
        request: MetaRequest,
    },
    /// What was fetched under this tag, in order; `None`: the view is gone.
    Done {
        tag: usize,
        parts: Option<Vec<Part>>,
    },
    /// Of a chunk's replicas one says that it does not keep the view, and none that can be asked gives it.
    Doubted,
}

#[derive(Debug)]
struct At {
    level: Level,
    chunks: Map<u32, Configuration>,
    /// Chunks whose places are to be asked for.
    wanted: BTreeSet<u32>,
    /// The question under way.
    asked: Option<(u64, Vec<u32>, Time)>,
    ask_after: Time,
}

#[derive(Debug)]
struct Job {
    tag: usize,
    want: Want,
    chunk: u32,
    parts: Vec<Part>,
    /// Segments without an answer.
    left: u32,
    failed: bool,
}

/// Some blocks that are looked for in one level.
#[derive(Clone, Debug)]
struct Segment {
    job: usize,
    level: usize,
    range: BlockRange,
    /// Who did not give them in this round; how many of those said that they have no such view, and on how many of
    /// those in sync they are bad.
    tried: Vec<Place>,
    unknown: usize,
    bad: usize,
    /// In the round before they were bad everywhere.
    was_bad: bool,
    /// Rounds in which all said that they have no such view.
    refused: u32,
}

#[derive(Debug)]
struct Pending {
    segment: Segment,
    place: Place,
    since: Time,
}

#[derive(Debug)]
pub(crate) struct Chain {
    now: Time,
    me: NodeId,
    chunk_shift: u8,
    levels: Vec<At>,
    connected: Set<NodeId>,
    jobs: Slab<Job>,
    pending: BTreeMap<u64, Pending>,
    /// Not before this; those that wait for places, until there are any.
    waiting: Vec<(Time, Segment)>,
    next_token: u64,
    out: VecDeque<Out>,
    /// When metad said that there is no such view any more.
    gone: Option<Time>,
    /// A seeded bug: the levels' heads are read.
    heads: bool,
}

impl Chain {
    /// The nearest level first. Beyond a level's size nothing of those below it is seen either: it was smaller than
    /// they are when it was sealed.
    pub fn new(me: NodeId, chunk_shift: u8, levels: &[Level], now: Time) -> Chain {
        let mut least = u64::MAX;
        let mut at = |level: &Level| {
            least = least.min(level.size);
            let chunks = least.div_ceil(1 << chunk_shift);
            At {
                level: Level { size: least, ..*level },
                chunks: Map::default(),
                wanted: (0..u32::try_from(chunks).expect("at most 2^20 chunks")).collect(),
                asked: None,
                ask_after: now,
            }
        };
        let mut chain = Chain {
            now,
            me,
            chunk_shift,
            levels: levels.iter().map(&mut at).collect(),
            connected: Set::default(),
            jobs: Slab::new(),
            pending: BTreeMap::new(),
            waiting: Vec::new(),
            next_token: 0,
            out: VecDeque::new(),
            gone: None,
            heads: false,
        };
        chain.connected.insert(me);
        chain.push(now);
        chain
    }
    pub fn poll(&mut self) -> Option<Out> {
        self.out.pop_front()
    }
    /// metad says whether the view is still there.
    pub fn known(&mut self, now: Time, gone: bool) {
        self.gone = gone.then_some(now);
        if gone {
            // Places of what is gone may never be told: whoever waits for them hears of it now.
            self.waiting.iter_mut().for_each(|(at, _)| *at = now);
        }
    }
    fn is_gone(&self) -> bool {
        self.gone.is_some_and(|t| self.now.since(t) < GONE_FOR)
    }
    /// A seeded bug: reads the heads of the levels, as a session that had them would.
    pub fn read_heads(&mut self) {
        self.heads = true;
    }
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }
    /// Nothing is to be polled.
    pub fn is_quiet(&self) -> bool {
        self.out.is_empty()
    }

    pub fn next_wake(&self) -> Time {
        let answers = self.pending.values().next().map(|p| p.since + ANSWER_TIMEOUT);
        let waits = self.waiting.iter().map(|(at, _)| *at);
        let asks = self.levels.iter().map(|l| match &l.asked {
            Some((_, _, since)) => *since + META_AGAIN,
            None if l.wanted.is_empty() => Time::FAR,
            None => l.ask_after,
        });
        waits.chain(asks).chain(answers).min().unwrap_or(Time::FAR)
    }

    /// Fetches blocks of a chunk, from this level on.
    pub fn fetch(&mut self, now: Time, tag: usize, level: usize, chunk: u32, range: BlockRange, want: Want) {
        self.now = self.now.max(now);
        let job = self.jobs.insert(Job { tag, want, chunk, parts: vec![], left: 1, failed: false });
        self.look(Segment {
            job,
            level,
            range,
            tried: vec![],
            unknown: 0,
            bad: 0,
            was_bad: false,
            refused: 0,
        });
    }

    // ------------------------------------------------------------------ events

    pub fn connected(&mut self, now: Time, node: NodeId) {
        self.now = self.now.max(now);
        self.connected.insert(node);
        // who waited for anybody has somebody to ask
        for (at, s) in &mut self.waiting {
            if *at != Time::FAR {
                (*at, s.tried) = (now, vec![]);
                (s.unknown, s.bad) = (0, 0);
            }
        }
        self.push(now);
    }

    pub fn disconnected(&mut self, now: Time, node: NodeId) {
        self.now = self.now.max(now);
        self.connected.remove(&node);
        let lost: Vec<u64> =
            self.pending.iter().filter(|(_, p)| p.place.node == node).map(|(t, _)| *t).collect();
        for token in lost {
            let p = self.pending.remove(&token).expect("just seen");
            self.look(p.segment);
        }
    }

    pub fn reply(&mut self, now: Time, token: u64, reply: Reply) {
        self.now = self.now.max(now);
        let Some(Pending { segment: s, place, .. }) = self.pending.remove(&token) else { return };
        let local = place.node == self.me;
        match reply {
            Reply::ReadDone { runs, sums, payload }
                if self.jobs[s.job].want == Want::Data
                    && well_formed(s.range, &runs, &sums, &payload, local) =>
            {
                self.found(s, place, &runs, &payload);
            }
            Reply::Map { runs }
                if self.jobs[s.job].want != Want::Data
                    && runs.iter().map(|r| u64::from(r.count)).sum::<u64>() == u64::from(s.range.count) =>
            {
                self.found(s, place, &runs, &Payload::empty());
            }
            Reply::Refused {
                refusal: refusal @ (Refusal::UnknownView | Refusal::UnknownReplica), ..
            } => {
                let unknown = s.unknown + 1;
                if refusal == Refusal::UnknownReplica {
                    // It may have moved.
                    let chunk = self.jobs[s.job].chunk;
                    self.want_places(s.level, chunk);
                }
                self.next(Segment { unknown, ..s }, place);
            }
            _ => self.next(s, place),
        }
    }

    /// True if the question was the chain's.
    pub fn meta(&mut self, now: Time, token: u64, answer: &MetaAnswer) -> bool {
        self.now = self.now.max(now);
        let is_it = |l: &At| l.asked.as_ref().is_some_and(|(t, ..)| *t == token);
        let Some(level) = self.levels.iter().position(is_it) else { return false };
        let l = &mut self.levels[level];
        let (_, mut left, _) = l.asked.take().expect("just seen");
        match answer {
            MetaAnswer::Configurations { chunks, .. } => {
                // Those of a growth that are not made yet are asked for again.
                for (chunk, c) in chunks.iter().filter(|(_, c)| c.number.0 > 0) {
                    left.retain(|x| *x != chunk.0);
                    let newer = l.chunks.get(&chunk.0).is_none_or(|have| have.number <= c.number);
                    if newer {
                        l.chunks.insert(chunk.0, c.clone());
                    }
                }
            }
            MetaAnswer::Refused(_) => self.out.push_back(Out::Doubted),
            _ => {}
        }
        let l = &mut self.levels[level];
        if !left.is_empty() {
            l.wanted.extend(left);
            l.ask_after = now + AGAIN;
        }
        for (at, s) in &mut self.waiting {
            if *at == Time::FAR && l.chunks.contains_key(&self.jobs[s.job].chunk) && s.level == level {
                *at = now;
            }
        }
        self.push(now);
        true
    }

    /// Asks for places; begins rounds that are due; passes over who does not answer.
    pub fn push(&mut self, now: Time) {
        self.now = self.now.max(now);
        let silent: Vec<u64> = self
            .pending
            .iter()
            .take_while(|(_, p)| self.now.since(p.since) >= ANSWER_TIMEOUT)
            .map(|(t, _)| *t)
            .collect();
        for token in silent {
            let p = self.pending.remove(&token).expect("just seen");
            self.next(p.segment, p.place);
        }
        let due: Vec<(Time, Segment)> = self.waiting.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, s) in due {
            self.look(s);
        }
        for i in 0..self.levels.len() {
            self.ask_places(i);
        }
    }

    // ------------------------------------------------------------------ places

    fn ask_places(&mut self, level: usize) {
        let l = &mut self.levels[level];
        if let Some((_, _, since)) = &l.asked {
            if self.now.since(*since) < META_AGAIN {
                return;
            }
            let (_, chunks, _) = l.asked.take().expect("just seen");
            l.wanted.extend(chunks);
        }
        if l.wanted.is_empty() || self.now < l.ask_after {
            return;
        }
        let take: Vec<u32> = l.wanted.iter().copied().take(BATCH).collect();
        l.wanted = take.last().map_or_else(BTreeSet::new, |last| l.wanted.split_off(&(last + 1)));
        self.next_token += 1;
        let token = TOKEN | self.next_token;
        let chunks = take.iter().copied().map(ChunkIndex).collect();
        l.asked = Some((token, take, self.now));
        let request = MetaRequest::Chunks { branch: l.level.branch, epoch: READER_EPOCH, chunks };
        self.out.push_back(Out::Meta { token, request });
    }

    fn want_places(&mut self, level: usize, chunk: u32) {
        let l = &mut self.levels[level];
        if l.asked.as_ref().is_none_or(|(_, chunks, _)| !chunks.contains(&chunk)) {
            l.wanted.insert(chunk);
        }
        self.ask_places(level);
    }

    // ------------------------------------------------------------------ segments

    /// Blocks of a chunk that a level has room for.
    fn blocks(&self, level: usize, chunk: u32) -> u32 {
        let start = u64::from(chunk) << self.chunk_shift;
        let left = self.levels[level].level.size.saturating_sub(start).min(1 << self.chunk_shift);
        u32::try_from(left.div_ceil(BLOCK as u64)).expect("a chunk has at most 2^20 blocks")
    }

    /// Asks somebody for the blocks of a segment. What lies beyond the level's end is absent, here and below.
    fn look(&mut self, mut s: Segment) {
        let room = if s.level < self.levels.len() { self.blocks(s.level, self.jobs[s.job].chunk) } else { 0 };
        if s.range.first >= room {
            return self.settle(&s, BlockState::Absent);
        }
        if s.range.end() > room {
            self.jobs[s.job].left += 1;
            let beyond = BlockRange::new(room, s.range.end() - room);
            self.settle(&Segment { range: beyond, tried: vec![], ..s }, BlockState::Absent);
            s.range = BlockRange::new(s.range.first, room - s.range.first);
        }
        self.ask(s);
    }

    fn ask(&mut self, mut s: Segment) {
        let chunk = self.jobs[s.job].chunk;
        let Some(c) = self.levels[s.level].chunks.get(&chunk) else {
            if self.is_gone() {
                return self.fail(&s);
            }
            self.want_places(s.level, chunk);
            return self.waiting.push((Time::FAR, s));
        };
        let untried = c.members.iter().filter(|m| !s.tried.contains(&m.place));
        let next = untried
            .filter(|m| self.connected.contains(&m.place.node))
            .min_by_key(|m| (m.place.node != self.me, !m.in_sync()))
            .map(|m| m.place);
        let number = c.number;
        if let Some(place) = next {
            let l = &self.levels[s.level].level;
            let view = if self.heads { View::Head } else { View::At(l.generation) };
            let request = match self.jobs[s.job].want {
                Want::Data => Request::Read { view, range: s.range, media: false, source_process: None },
                Want::States | Want::Here => Request::Map { view, range: s.range },
                Want::Changes(after) => Request::Changes { view, after, range: s.range },
            };
            let scope = Scope {
                drive: place.drive,
                branch: l.branch,
                chunk: ChunkIndex(chunk),
                epoch: if self.heads { Epoch(u32::MAX) } else { READER_EPOCH },
                incarnation: place.incarnation,
                configuration: number,
                ..Scope::default()
            };
            self.next_token += 1;
            let token = TOKEN | self.next_token;
            let since = self.now;
            self.pending.insert(token, Pending { segment: s, place, since });
            let frame = RequestFrame { token, scope, request };
            return self.out.push_back(Out::Send { node: place.node, frame });
        }
        let of = |places: &[Place]| c.members.iter().filter(|m| places.contains(&m.place)).count();
        // Somebody said so, and nobody else can be asked: the others may never come back.
        let unknown = s.unknown > 0;
        let all_refuse = of(&s.tried) == c.members.len() && s.unknown == s.tried.len();
        let all_bad = s.bad > 0 && s.bad >= c.in_sync_count();
        if all_bad && s.was_bad {
            return self.settle(&s, BlockState::Bad);
        }
        s.was_bad = all_bad;
        if unknown {
            if self.is_gone() {
                return self.fail(&s);
            }
            self.out.push_back(Out::Doubted);
        }
        if all_refuse {
            // The view may be kept, and what it is compared with not: metad is not asked about that.
            s.refused += 1;
            if s.refused >= REFUSED && matches!(self.jobs[s.job].want, Want::Changes(_)) {
                return self.fail(&s);
            }
        }
        // another round, with the places as they are then
        self.want_places(s.level, chunk);
        (s.tried, s.unknown, s.bad) = (vec![], 0, 0);
        self.waiting.push((self.now + AGAIN, s));
    }

    /// This one did not give it.
    fn next(&mut self, mut s: Segment, place: Place) {
        s.tried.push(place);
        self.ask(s);
    }

    fn found(&mut self, s: Segment, place: Place, runs: &[Run], payload: &Payload) {
        let (mut first, mut at) = (s.range.first, 0);
        let mut again: Vec<Segment> = vec![];
        for run in runs {
            let range = BlockRange::new(first, run.count);
            first += run.count;
            let elsewhere = match run.state {
                BlockState::Absent if !matches!(self.jobs[s.job].want, Want::Here | Want::Changes(_)) => {
                    Some(Segment {
                        level: s.level + 1,
                        range,
                        tried: vec![],
                        unknown: 0,
                        bad: 0,
                        was_bad: false,
                        ..s
                    })
                }
                BlockState::Bad if self.jobs[s.job].want == Want::Data => {
                    let tried = s.tried.iter().copied().chain([place]).collect();
                    let c = self.levels[s.level].chunks.get(&self.jobs[s.job].chunk);
                    let counts = c.is_some_and(|c| c.in_sync().any(|m| m.place == place));
                    Some(Segment { range, tried, bad: s.bad + usize::from(counts), ..s })
                }
                _ => None,
            };
            if let Some(next) = elsewhere {
                match again.last_mut() {
                    Some(l) if l.level == next.level && l.range.end() == range.first => {
                        l.range = BlockRange::new(l.range.first, l.range.count + range.count);
                    }
                    _ => again.push(next),
                }
                continue;
            }
            let data = run.state == BlockState::Data && self.jobs[s.job].want == Want::Data;
            let bytes = data.then(|| payload.slice(at, run.count as usize));
            at += if data { run.count as usize } else { 0 };
            let part = Part {
                first: range.first,
                count: run.count,
                state: run.state,
                payload: bytes,
                version: run.version,
            };
            self.jobs[s.job].parts.push(part);
        }
        self.jobs[s.job].left += u32::try_from(again.len()).expect("few");
        again.into_iter().for_each(|s| self.look(s));
        self.settled(s.job);
    }

    /// All of a segment is this.
    fn settle(&mut self, s: &Segment, state: BlockState) {
        let part =
            Part { first: s.range.first, count: s.range.count, state, payload: None, version: Version::ZERO };
        self.jobs[s.job].parts.push(part);
        self.settled(s.job);
    }

    fn fail(&mut self, s: &Segment) {
        self.jobs[s.job].failed = true;
        self.settled(s.job);
    }

    fn settled(&mut self, job: usize) {
        self.jobs[job].left -= 1;
        if self.jobs[job].left > 0 {
            return;
        }
        let mut j = self.jobs.remove(job);
        j.parts.sort_by_key(|p| p.first);
        let parts = (!j.failed).then_some(j.parts);
        self.out.push_back(Out::Done { tag: j.tag, parts });
    }
}
