//! The target's side of a resync attempt (architecture, 5.3): compare with the source, pull what differs.
//!
//! Owns the attempts that sessions began on drives of this node, the questions to their sources and to our own
//! stores, and the pace. An attempt's views are made equal one after the other, oldest first, each listed on both sides
//! when the one before it is pulled. It never decides what an extent's difference means (the store leaves out what the
//! attempt's bitmap names), nor when an attempt may list (the session does).
//! Invariants: `Pulled` is said only when every extent that differed has been pulled by the store; an attempt is
//! over, without a word more, when its connection closes; when the source's process or connection goes, it fails.

use crate::bugs::Seeded;
use proto::limits::{BLOCKS_PER_EXTENT, EXTENT};
use proto::message::{
    Attempt, BlockState, ManifestEntry, Reply, ReplyFrame, Request, RequestFrame, Run, Scope, View,
};
use proto::{BlockRange, BranchId, DriveId, Generation, NodeId, Refusal, Span, Time, Version};
use std::collections::{BTreeMap, VecDeque};
use store::Source;

/// Extents on their way, over all attempts: while guests write here, and else.
const WINDOW_BUSY: usize = 4;
const WINDOW: usize = 32;
const PROGRESS_EVERY: Span = Span::millis(200);

/// What is to be done for an attempt.
#[derive(Debug)]
pub(crate) enum Out {
    /// To the source's node (which may be ours).
    Source {
        node: NodeId,
        frame: RequestFrame,
    },
    /// To the target's own store.
    Own(RequestFrame),
    Pull {
        drive: DriveId,
        pull: Box<store::event::Pull>,
    },
    /// To the session.
    Reply {
        source: Source,
        frame: ReplyFrame,
    },
}

/// Hash and version of an extent. Equal versions say nothing by themselves; but different ones are pulled even where the
/// hashes, of 32-bit sums, meet by chance.
type Content = (u64, Version);

/// An attempt's name here: the connection that it was begun on, branch, number.
type Key = (Source, BranchId, u64);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    SourceDigest,
    OwnDigest,
    SourcePage,
    OwnPage,
    Read(u32),
    Pull(u32),
}

#[derive(Debug)]
enum Stage {
    /// The session has not asked for the list.
    Begun,
    Digests {
        source: Option<(u64, u64)>,
        own: Option<(u64, u64)>,
    },
    /// One view, on both sides.
    Listing {
        source: BTreeMap<u32, Content>,
        own: BTreeMap<u32, Content>,
        left: u8,
    },
    Pulling {
        todo: VecDeque<u32>,
        flying: usize,
    },
}

/// A view to be made equal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Step {
    view: View,
    /// The view before, and the generation that is pulled into.
    after: Generation,
    into: Generation,
}

fn steps_of(attempt: &Attempt) -> Vec<Step> {
    let mut after = Generation(0);
    let mut steps: Vec<Step> = Vec::new();
    for g in attempt.views.iter() {
        steps.push(Step { view: View::At(g), after, into: g });
        after = g;
    }
    if attempt.head {
        steps.push(Step { view: View::Head, after, into: attempt.generation });
    }
    steps
}

#[derive(Debug)]
struct Job {
    attempt: Attempt,
    branch: BranchId,
    /// Token of `AttemptList`: what is said of it carries this.
    token: u64,
    stage: Stage,
    /// Views in their order, and which one is being made equal.
    steps: Vec<Step>,
    at: usize,
    done: u64,
    moved: u64,
    progress_at: Time,
}

pub(crate) struct Pulls {
    jobs: BTreeMap<Key, Job>,
    tokens: BTreeMap<u64, (Key, What)>,
    next_token: u64,
    flying: usize,
    busy_until: Time,
    out: VecDeque<Out>,
    bugs: Seeded,
}

/// Tokens of the node's own questions: sessions' tokens never have this bit.
pub(crate) const OWN_TOKEN: u64 = 1 << 63;
/// Guests count as writing for so long after a write.
const BUSY: Span = Span::millis(50);

impl Pulls {
    pub fn new() -> Pulls {
        Pulls {
            jobs: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next_token: OWN_TOKEN,
            flying: 0,
            busy_until: Time::ZERO,
            out: VecDeque::new(),
            bugs: Seeded::default(),
        }
    }
    #[cfg(feature = "bugs")]
    pub fn set_bugs(&mut self, bugs: Seeded) {
        self.bugs = bugs;
    }
    pub fn poll(&mut self) -> Option<Out> {
        self.out.pop_front()
    }
    /// Guest I/O goes first.
    pub fn guest_write(&mut self, now: Time) {
        self.busy_until = now + BUSY;
    }
    /// Attempts under way: (branch, attempt, extents left).
    pub fn attempts(&self) -> impl Iterator<Item = (BranchId, &Attempt, usize)> + '_ {
        self.jobs.values().map(|j| {
            let left = if let Stage::Pulling { todo, flying } = &j.stage { todo.len() + flying } else { 0 };
            (j.branch, &j.attempt, left)
        })
    }

    /// `AttemptBegin` goes by, on its way to the store. A session has one attempt per chunk. The next session of the
    /// same node counts from 1 again, on the same connection: what an older one left behind is over. An older one's that
    /// comes late begins nothing (the store will refuse it): the present one's goes on.
    pub fn begun(&mut self, source: Source, branch: BranchId, attempt: Attempt) {
        if self.jobs.iter().any(|(k, j)| k.1 == branch && j.attempt.epoch > attempt.epoch) {
            return;
        }
        let older: Vec<Key> = self
            .jobs
            .iter()
            .filter(|(k, j)| {
                let same = j.attempt.target == attempt.target && j.attempt.chunk == attempt.chunk;
                k.1 == branch && (same || j.attempt.epoch < attempt.epoch)
            })
            .map(|(k, _)| *k)
            .collect();
        older.into_iter().for_each(|k| self.drop_job(k));
        let number = attempt.number;
        let job = Job {
            steps: steps_of(&attempt),
            at: 0,
            attempt,
            branch,
            token: 0,
            stage: Stage::Begun,
            done: 0,
            moved: 0,
            progress_at: Time::ZERO,
        };
        self.jobs.insert((source, branch, number), job);
    }
    /// `AttemptList`: ask both sides for their digest.
    pub fn list(&mut self, source: Source, branch: BranchId, drive: DriveId, number: u64, token: u64) {
        let key = (source, branch, number);
        let Some(job) = self.jobs.get_mut(&key).filter(|j| matches!(j.stage, Stage::Begun)) else {
            let reply = Reply::AttemptFailed { number, refusal: Refusal::OldAttempt };
            let frame = ReplyFrame { token, branch, drive, reply };
            self.out.push_back(Out::Reply { source, frame });
            return;
        };
        job.token = token;
        job.stage = Stage::Digests { source: None, own: None };
        let Attempt { views, head, source_process, .. } = job.attempt.clone();
        let digest = |source_process| Request::Digest { views: views.clone(), head, source_process };
        self.ask(key, What::SourceDigest, digest(Some(source_process)));
        self.ask(key, What::OwnDigest, digest(None));
    }
    pub fn ended(&mut self, source: Source, branch: BranchId, number: u64) {
        self.drop_job((source, branch, number));
    }
    /// The connection that attempts were begun on is gone.
    pub fn connection_closed(&mut self, source: Source) {
        let keys: Vec<Key> = self.jobs.keys().filter(|k| k.0 == source).copied().collect();
        keys.into_iter().for_each(|k| self.drop_job(k));
    }
    /// No connection to `node`: attempts that pull from it have failed.
    pub fn source_lost(&mut self, node: NodeId) {
        let lost = |j: &Job| j.attempt.source.node == node && !matches!(j.stage, Stage::Begun);
        let keys: Vec<Key> = self.jobs.iter().filter(|(_, j)| lost(j)).map(|(k, _)| *k).collect();
        keys.into_iter().for_each(|k| self.fail(k, Refusal::OldConnection));
    }
    /// The target's drive answers no more.
    pub fn drive_lost(&mut self, drive: DriveId) {
        let lost = |j: &Job| j.attempt.target.drive == drive;
        let keys: Vec<Key> = self.jobs.iter().filter(|(_, j)| lost(j)).map(|(k, _)| *k).collect();
        keys.into_iter().for_each(|k| self.fail(k, Refusal::DriveFailed));
    }

    fn drop_job(&mut self, key: Key) {
        if let Some(Job { stage: Stage::Pulling { flying, .. }, .. }) = self.jobs.remove(&key) {
            self.flying -= flying;
        }
        self.tokens.retain(|_, (k, _)| *k != key);
    }
    fn fail(&mut self, key: Key, refusal: Refusal) {
        self.say(key, Reply::AttemptFailed { number: key.2, refusal });
        self.drop_job(key);
    }
    fn say(&mut self, key: Key, reply: Reply) {
        let Some(job) = self.jobs.get(&key) else { return };
        let frame =
            ReplyFrame { token: job.token, branch: job.branch, drive: job.attempt.target.drive, reply };
        self.out.push_back(Out::Reply { source: key.0, frame });
    }
    fn token(&mut self, key: Key, what: What) -> u64 {
        self.next_token += 1;
        self.tokens.insert(self.next_token, (key, what));
        self.next_token
    }
    fn ask(&mut self, key: Key, what: What, request: Request) {
        let token = self.token(key, what);
        let Some(Job { attempt: a, branch, .. }) = self.jobs.get(&key) else { return };
        let own = matches!(what, What::OwnDigest | What::OwnPage);
        let place = if own { a.target } else { a.source };
        let scope = Scope {
            drive: place.drive,
            branch: *branch,
            chunk: a.chunk,
            epoch: a.epoch,
            incarnation: place.incarnation,
            configuration: a.configuration,
            ..Scope::default()
        };
        let frame = RequestFrame { token, scope, request };
        self.out.push_back(match own {
            true => Out::Own(frame),
            false => Out::Source { node: place.node, frame },
        });
    }
    fn ask_page(&mut self, key: Key, what: What, from: u32) {
        let Some(job) = self.jobs.get(&key) else { return };
        let source_process = (what == What::SourcePage).then_some(job.attempt.source_process);
        let Step { view, after, .. } = job.steps[job.at];
        self.ask(key, what, Request::Manifest { view, after, from, source_process });
    }

    /// An answer to one of our questions.
    pub fn reply(&mut self, now: Time, token: u64, reply: Reply) {
        let Some((key, what)) = self.tokens.remove(&token) else { return };
        match (what, reply) {
            (What::SourceDigest | What::OwnDigest, Reply::Digest { hash, extents }) => {
                self.digest(key, what, (hash, extents));
            }
            (What::SourcePage | What::OwnPage, Reply::Manifest { entries, next }) => {
                self.page(now, key, what, &entries, next);
            }
            (What::Read(extent), Reply::ReadDone { runs, sums, payload }) => {
                self.read_done(key, extent, (runs, sums, payload));
            }
            (_, Reply::Refused { refusal, .. }) => self.fail(key, refusal),
            _ => self.fail(key, Refusal::Invalid),
        }
    }
    fn digest(&mut self, key: Key, what: What, value: (u64, u64)) {
        let Some(Job { stage: Stage::Digests { source, own }, .. }) = self.jobs.get_mut(&key) else { return };
        *(if what == What::OwnDigest { &mut *own } else { &mut *source }) = Some(value);
        match (*source, *own) {
            (Some(s), Some(o)) if s == o => self.finish(key),
            (Some(_), Some(_)) => self.list_view(key, 0),
            _ => {}
        }
    }
    /// The next view, if there is one.
    fn list_view(&mut self, key: Key, at: usize) {
        let job = self.jobs.get_mut(&key).expect("the caller has found it");
        if at == job.steps.len() {
            return self.finish(key);
        }
        job.at = at;
        job.stage = Stage::Listing { source: BTreeMap::new(), own: BTreeMap::new(), left: 2 };
        self.ask_page(key, What::SourcePage, 0);
        self.ask_page(key, What::OwnPage, 0);
    }
    fn page(&mut self, now: Time, key: Key, what: What, entries: &[ManifestEntry], next: Option<u32>) {
        let (by_version, keep) = (self.bugs.has(|b| b.equal_versions), self.bugs.has(|b| b.keep_absent));
        let content = |e: &ManifestEntry| (if by_version { 0 } else { e.hash }, e.version);
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let Stage::Listing { source, own, left } = &mut job.stage else { return };
        let into = if what == What::OwnPage { &mut *own } else { &mut *source };
        into.extend(entries.iter().map(|e| (e.extent, content(e))));
        // A page that leads nowhere new would be asked for without end.
        let last = entries.last().map(|e| e.extent);
        if let Some(from) = next {
            return match last.is_some_and(|l| from > l) {
                true => self.ask_page(key, what, from),
                false => self.fail(key, Refusal::Invalid),
            };
        }
        *left -= 1;
        if *left > 0 {
            return;
        }
        let mut differ: Vec<u32> =
            source.iter().filter(|(e, h)| own.get(e) != Some(h)).map(|(e, _)| *e).collect();
        differ.extend(own.keys().filter(|e| !source.contains_key(e) && !keep));
        differ.sort_unstable();
        job.stage = Stage::Pulling { todo: differ.into(), flying: 0 };
        self.push(now);
    }
    fn read_done(
        &mut self,
        key: Key,
        extent: u32,
        data: (Vec<Run>, Vec<proto::record::Sum>, proto::Payload),
    ) {
        let (runs, sums, payload) = data;
        if runs.iter().any(|r| r.state == BlockState::Bad) {
            return self.fail(key, Refusal::BadBlock);
        }
        if runs.iter().map(|r| u64::from(r.count)).sum::<u64>() != u64::from(BLOCKS_PER_EXTENT) {
            return self.fail(key, Refusal::Invalid);
        }
        let token = self.token(key, What::Pull(extent));
        let Some(job) = self.jobs.get_mut(&key) else { return };
        job.moved += payload.len() as u64;
        let pull = store::event::Pull {
            token,
            attempt: key.2,
            epoch: job.attempt.epoch,
            source: key.0,
            branch: job.branch,
            chunk: job.attempt.chunk,
            extent,
            generation: job.steps[job.at].into,
            after: job.steps[job.at].after,
            version: runs.iter().map(|r| r.version).max().unwrap_or(Version::ZERO),
            runs,
            sums,
            payload,
        };
        self.out.push_back(Out::Pull { drive: job.attempt.target.drive, pull: Box::new(pull) });
    }
    /// The store has pulled, or refused to.
    pub fn pulled(&mut self, now: Time, token: u64, result: Result<u32, Refusal>) {
        let Some((key, _)) = self.tokens.remove(&token) else { return };
        if let Err(refusal) = result {
            return self.fail(key, refusal);
        }
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let Stage::Pulling { todo, flying } = &mut job.stage else { return };
        *flying -= 1;
        self.flying -= 1;
        job.done += EXTENT as u64;
        let left = ((todo.len() + *flying) * EXTENT) as u64;
        if now >= job.progress_at && left > 0 {
            job.progress_at = now + PROGRESS_EVERY;
            let (bytes_done, bytes_moved) = (job.done, job.moved);
            self.say(key, Reply::Progress { number: key.2, bytes_done, bytes_left: left, bytes_moved });
        }
        self.push(now);
    }
    /// Reads as many extents as the pace allows, in turn among the attempts.
    pub fn push(&mut self, now: Time) {
        let window = if now < self.busy_until { WINDOW_BUSY } else { WINDOW };
        let mut finished = Vec::new();
        let mut reads = Vec::new();
        let mut more = true;
        while more {
            more = false;
            for (key, job) in &mut self.jobs {
                let Stage::Pulling { todo, flying } = &mut job.stage else { continue };
                if self.flying < window
                    && let Some(extent) = todo.pop_front()
                {
                    *flying += 1;
                    self.flying += 1;
                    reads.push((*key, extent, job.steps[job.at].view, job.attempt.source_process));
                    more = true;
                } else if todo.is_empty() && *flying == 0 && !finished.contains(key) {
                    finished.push(*key);
                }
            }
        }
        for (key, extent, view, process) in reads {
            let range = BlockRange::new(extent * BLOCKS_PER_EXTENT, BLOCKS_PER_EXTENT);
            let read = Request::Read { view, range, media: false, source_process: Some(process) };
            self.ask(key, What::Read(extent), read);
        }
        for key in finished {
            let next = self.jobs[&key].at + 1;
            self.list_view(key, next);
        }
    }
    /// There is an attempt that may want to go on.
    pub fn is_busy(&self) -> bool {
        !self.jobs.is_empty()
    }
    /// The pace has a clock of its own only while guests hold it back.
    pub fn next_wake(&self) -> Time {
        let waits = |j: &Job| matches!(&j.stage, Stage::Pulling { todo, .. } if !todo.is_empty());
        if self.flying < WINDOW && self.jobs.values().any(waits) { self.busy_until } else { Time::FAR }
    }
    fn finish(&mut self, key: Key) {
        let Some(job) = self.jobs.get(&key) else { return };
        self.say(key, Reply::Pulled { number: key.2, bytes_moved: job.moved });
        self.drop_job(key);
    }
}

#[cfg(test)]
mod tests;
