//! Reads everything back that a log speaks of, and has the oracle judge what is found.
//!
//! Per block only those writes are kept that a read may still return: superseded ones are dropped as the log is
//! read, so memory is bounded by what was written, not by how often.

use super::log::{self, Line, LogError};
use super::stamp::{Found, Stamp};
use crate::nbd_client::{Client, Error, Settings};
use crate::uri::Uri;
use nbd::Errno;
use nbd::client::{Command, Outcome};
use oracle::register::NEVER;
use oracle::{Register, ZERO};
use proto::limits::BLOCK;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Blocks read at once, and reads in flight.
const READ_BLOCKS: u64 = 64;
const READS: usize = 8;
/// Findings that are told one by one.
const EXAMPLES: usize = 16;
/// Bits of a sequence in a value; the run's number lies above.
const SEQUENCE_BITS: u32 = 44;

#[derive(Clone, Debug)]
pub struct CheckOptions {
    pub uri: Uri,
    pub log: PathBuf,
    /// After a power loss of the whole cluster: only what a completed flush (or FUA) covers must be there.
    pub flushed_only: bool,
    pub settings: Settings,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("the log: {0}")]
    Log(#[from] LogError),
    #[error("the log speaks of no write")]
    Empty,
    #[error("cannot read from {uri}: {source}")]
    Client { uri: String, source: Error },
}

/// One block that is not as it must be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Bytes in the volume.
    pub offset: u64,
    pub found: String,
    pub why: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct CheckReport {
    pub runs: u64,
    pub writes: u64,
    pub acknowledged: u64,
    pub unknown: u64,
    pub flushes: u64,
    pub flushed_only: bool,
    /// Blocks that were read back and judged.
    pub blocks: u64,
    /// Blocks that hold less than was acknowledged (or flushed), or what nobody may find there.
    pub missing: u64,
    /// Blocks in pieces.
    pub torn: u64,
    /// Blocks that could not be read.
    pub unreadable: u64,
    /// The first findings.
    pub examples: Vec<Finding>,
}

impl CheckReport {
    #[must_use]
    pub fn ok(&self) -> bool {
        self.missing == 0 && self.torn == 0 && self.unreadable == 0
    }
}

impl std::fmt::Display for CheckReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.flushed_only { "flushed" } else { "acknowledged" };
        let verdict = if self.ok() { "ok: nothing" } else { "FAILED: something" };
        writeln!(f, "{verdict} {what} is missing or torn")?;
        write!(
            f,
            "{} writes in {} runs ({} acknowledged, {} unknown), {} flushes; {} blocks read back: \
             {} missing, {} torn, {} unreadable",
            self.writes,
            self.runs,
            self.acknowledged,
            self.unknown,
            self.flushes,
            self.blocks,
            self.missing,
            self.torn,
            self.unreadable
        )?;
        for e in &self.examples {
            write!(f, "\nat {}: {}: {}", e.offset, e.found, e.why)?;
        }
        Ok(())
    }
}

/// A write that a read may still return. Times are lines of the log.
#[derive(Clone, Copy)]
struct Candidate {
    value: u64,
    asked: u64,
    answered: u64,
    fua: bool,
}

struct Sent {
    value: u64,
    asked: u64,
    offset: u64,
    len: u64,
    fua: bool,
}

#[derive(Default)]
struct Past {
    flushed_only: bool,
    /// Runs of the log, in order.
    runs: Vec<u64>,
    blocks: BTreeMap<u64, Vec<Candidate>>,
    /// Writes of the present run without an answer.
    sent: BTreeMap<u64, Sent>,
    flushes: BTreeMap<u64, u64>,
    /// Line of the newest question of a completed flush: what was answered before is flushed.
    flushed: u64,
    last_line: u64,
    report: CheckReport,
}

impl Past {
    fn take(&mut self, at: u64, line: Line) {
        self.last_line = at;
        match line {
            Line::Run { run, .. } => {
                self.forget();
                self.runs.push(run);
                self.report.runs += 1;
            }
            Line::Sent { sequence, offset, len, fua } => {
                let value = ((self.runs.len() as u64) << SEQUENCE_BITS) | sequence;
                self.report.writes += 1;
                for block in blocks(offset, len) {
                    let candidate = Candidate { value, asked: at, answered: NEVER, fua };
                    self.blocks.entry(block).or_default().push(candidate);
                }
                self.sent.insert(sequence, Sent { value, asked: at, offset, len, fua });
            }
            Line::Acknowledged { sequence } => {
                if let Some(sent) = self.sent.remove(&sequence) {
                    self.report.acknowledged += 1;
                    self.acknowledged(&sent, at);
                }
            }
            Line::FlushSent { number } => {
                self.flushes.insert(number, at);
            }
            Line::FlushDone { number } => {
                if let Some(asked) = self.flushes.remove(&number) {
                    self.flushed = self.flushed.max(asked);
                    self.report.flushes += 1;
                }
            }
            Line::Lost | Line::End => self.forget(),
            Line::Failed { .. } | Line::FlushFailed { .. } | Line::Connected => {}
        }
    }

    /// Answers to what is open will never come.
    fn forget(&mut self) {
        self.sent.clear();
        self.flushes.clear();
    }

    fn acknowledged(&mut self, sent: &Sent, at: u64) {
        for block in blocks(sent.offset, sent.len) {
            let list = self.blocks.get_mut(&block).expect("it was noted when it was sent");
            if let Some(c) = list.iter_mut().find(|c| c.value == sent.value) {
                c.answered = at;
                c.fua = sent.fua;
            }
            debug_assert!(sent.asked <= at);
            // The newest question among those that must not be lost: what was complete before it is over.
            let (flushed_only, flushed) = (self.flushed_only, self.flushed);
            let kept =
                |c: &Candidate| c.answered != NEVER && (!flushed_only || c.answered < flushed || c.fua);
            let newest = list.iter().filter(|c| kept(c)).map(|c| c.asked).max().unwrap_or(0);
            list.retain(|c| c.answered >= newest);
        }
    }

    /// Which value the oracle knows a block's content by; `None` if no order of writes can explain it.
    fn value(&self, found: Found) -> Option<u64> {
        match found {
            // What the volume held before the log began is nothing, for the judge.
            Found::Zeroes | Found::Foreign => Some(ZERO),
            Found::Stamped(stamp) => Some(match self.runs.iter().position(|&r| r == stamp.run) {
                Some(i) => ((i as u64 + 1) << SEQUENCE_BITS) | stamp.sequence,
                None => ZERO,
            }),
            Found::Misplaced(_) | Found::Torn => None,
        }
    }

    fn judge(&self, block: u64, value: u64) -> Result<(), &'static str> {
        let mut register = Register::default();
        let mut events: Vec<(u64, bool, &Candidate)> = Vec::new();
        let candidates = &self.blocks[&block];
        for c in candidates {
            events.push((c.asked, false, c));
            if c.answered != NEVER {
                events.push((c.answered, true, c));
            }
        }
        events.sort_by_key(|(at, ..)| *at);
        for (at, answer, c) in events {
            if answer { register.acknowledged(c.asked, at)? } else { register.asked(c.value, at, NEVER) }
        }
        let now = self.last_line;
        if self.flushed_only {
            let fua = |asked| candidates.iter().any(|c| c.asked == asked && c.fua);
            register.lose(now + 1, self.flushed, fua);
        }
        register.returned(value, now + 2, now + 3)
    }

    fn look(&mut self, block: u64, bytes: &[u8]) {
        let offset = block * BLOCK as u64;
        let found = Stamp::read(bytes, offset);
        self.report.blocks += 1;
        let verdict = match self.value(found) {
            Some(value) => self.judge(block, value),
            None => Err("no write wrote this"),
        };
        let Err(why) = verdict else { return };
        if found == Found::Torn {
            self.report.torn += 1;
        } else {
            self.report.missing += 1;
        }
        self.example(offset, format!("{found:?}"), self.explain(block, why));
    }

    fn explain(&self, block: u64, why: &str) -> String {
        let newest = self.blocks[&block].iter().filter(|c| c.answered != NEVER).max_by_key(|c| c.asked);
        match newest {
            Some(c) => {
                let (run, sequence) = (c.value >> SEQUENCE_BITS, c.value & ((1 << SEQUENCE_BITS) - 1));
                format!(
                    "{why}; newest acknowledged write: {sequence} of run {run} (lines {}, {})",
                    c.asked, c.answered
                )
            }
            None => why.to_owned(),
        }
    }

    fn example(&mut self, offset: u64, found: String, why: String) {
        if self.report.examples.len() < EXAMPLES {
            self.report.examples.push(Finding { offset, found, why });
        }
    }

    fn unreadable(&mut self, first: u64, count: u64, errno: Errno) {
        let judged = self.blocks.range(first..first + count).count() as u64;
        self.report.unreadable += judged;
        let why = "the read failed".to_owned();
        self.example(first * BLOCK as u64, errno.to_string(), why);
    }
}

fn blocks(offset: u64, len: u64) -> std::ops::Range<u64> {
    offset / BLOCK as u64..(offset + len) / BLOCK as u64
}

/// Checks a volume against a log. Nothing else may write meanwhile.
pub fn check(options: &CheckOptions) -> Result<CheckReport, CheckError> {
    let mut past = Past { flushed_only: options.flushed_only, ..Past::default() };
    log::read(&options.log, |at, line| past.take(at, line))?;
    if past.blocks.is_empty() {
        return Err(CheckError::Empty);
    }
    let failed = |source| CheckError::Client { uri: options.uri.to_string(), source };
    let mut client = Client::connect(&options.uri, options.settings).map_err(failed)?;
    read_back(&mut past, &mut client, options.settings.request).map_err(failed)?;
    client.disconnect();
    let mut report = past.report;
    report.flushed_only = options.flushed_only;
    report.unknown = report.writes - report.acknowledged;
    Ok(report)
}

/// Neighbours together: ranges of blocks to read.
fn ranges(past: &Past) -> Vec<(u64, u64)> {
    let mut list: Vec<(u64, u64)> = Vec::new();
    for &block in past.blocks.keys() {
        match list.last_mut() {
            Some((first, count)) if *first + *count == block && *count < READ_BLOCKS => *count += 1,
            _ => list.push((block, 1)),
        }
    }
    list
}

fn read_back(past: &mut Past, client: &mut Client, patience: Duration) -> Result<(), Error> {
    let mut todo = ranges(past).into_iter();
    let mut waiting: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    loop {
        while waiting.len() < READS {
            let Some((first, count)) = todo.next() else { break };
            let bytes = BLOCK as u64;
            let len = u32::try_from(count * bytes).expect("READ_BLOCKS blocks at most");
            let cookie = client.submit(Command::Read { offset: first * bytes, len, whole: false });
            waiting.insert(cookie, (first, count));
        }
        if waiting.is_empty() {
            return Ok(());
        }
        client.send()?;
        let (cookie, result) = client.next(Instant::now() + patience)?.ok_or(Error::Timeout)?;
        let (first, count) = waiting.remove(&cookie).expect("the client knows its cookies");
        match result {
            Ok(Outcome::Read(data)) => {
                for (block, bytes) in (first..).zip(data.chunks_exact(BLOCK)) {
                    past.look(block, bytes);
                }
            }
            Ok(other) => unreachable!("a read gives data: {other:?}"),
            Err(errno) => past.unreadable(first, count, errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oracle::history::Span;
    use oracle::{Entry, Judge, OpId, OpKind, VolumeNumber};
    use proptest::prelude::*;

    const BLOCKS: u64 = 3;
    const VOLUME: VolumeNumber = VolumeNumber(0);

    #[derive(Clone, Debug)]
    enum Step {
        Send { first: u64, count: u64, fua: bool },
        Acknowledge(prop::sample::Index),
        Flush,
        FlushDone(prop::sample::Index),
        Lost,
        NewRun,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..BLOCKS, 1..=BLOCKS, 0..8u8).prop_map(|(first, count, fua)| Step::Send {
                first,
                count: count.min(BLOCKS - first),
                fua: fua == 0,
            }),
            5 => any::<prop::sample::Index>().prop_map(Step::Acknowledge),
            2 => Just(Step::Flush),
            2 => any::<prop::sample::Index>().prop_map(Step::FlushDone),
            1 => Just(Step::Lost),
            1 => Just(Step::NewRun),
        ]
    }

    /// The same steps as lines of a log and as a history of the oracle, which forgets nothing.
    struct Both {
        lines: Vec<Line>,
        history: Vec<Entry>,
        values: Vec<u64>,
    }

    fn play(steps: &[Step]) -> Both {
        let mut both = Both { lines: vec![], history: vec![], values: vec![ZERO] };
        let (mut run, mut sequence) = (1, 0);
        let (mut sent, mut flushes): (Vec<u64>, Vec<u64>) = (vec![], vec![]);
        both.lines.push(Line::Run { unix_ns: 0, run, size: BLOCKS * 4096 });
        for s in steps {
            let op = |run: u64, sequence| OpId((run << SEQUENCE_BITS) | sequence);
            let done = |op| Entry::Answer { op, outcome: oracle::Outcome::Done };
            let ask = |op, kind| Entry::Ask { op, volume: VOLUME, client: 1, kind };
            match s {
                Step::Send { first, count, fua } => {
                    sequence += 1;
                    let (offset, len) = (first * 4096, count * 4096);
                    both.lines.push(Line::Sent { sequence, offset, len, fua: *fua });
                    let op = op(run, sequence);
                    let span = Span { first: *first, count: *count };
                    both.history.push(ask(op, OpKind::Write { span, value: op.0, fua: *fua }));
                    both.values.push(op.0);
                    sent.push(sequence);
                }
                Step::Acknowledge(which) if !sent.is_empty() => {
                    let sequence = sent.remove(which.index(sent.len()));
                    both.lines.push(Line::Acknowledged { sequence });
                    both.history.push(done(op(run, sequence)));
                }
                Step::Flush => {
                    sequence += 1;
                    both.lines.push(Line::FlushSent { number: sequence });
                    both.history.push(ask(op(run, sequence), OpKind::Flush));
                    flushes.push(sequence);
                }
                Step::FlushDone(which) if !flushes.is_empty() => {
                    let number = flushes.remove(which.index(flushes.len()));
                    both.lines.push(Line::FlushDone { number });
                    both.history.push(done(op(run, number)));
                }
                Step::Lost | Step::NewRun => {
                    (sent, flushes) = (vec![], vec![]);
                    both.lines.push(Line::Lost);
                    if matches!(s, Step::NewRun) {
                        (run, sequence) = (run + 1, 0);
                        both.lines.push(Line::Run { unix_ns: 0, run, size: BLOCKS * 4096 });
                    }
                }
                _ => {}
            }
        }
        both
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        /// What is forgotten on the way changes no verdict.
        #[test]
        fn the_pruned_past_judges_like_the_whole_one(
            steps in prop::collection::vec(step(), 1..40),
            flushed_only in any::<bool>(),
        ) {
            let both = play(&steps);
            let mut past = Past { flushed_only, ..Past::default() };
            for (at, line) in (1..).zip(&both.lines) {
                past.take(at, *line);
            }
            let span = |first, count| Span { first, count };
            for block in past.blocks.keys().copied() {
                for &value in &both.values {
                    let mut judge = whole(&both, flushed_only);
                    let (op, kind) = (OpId(u64::MAX), OpKind::Read { span: span(block, 1) });
                    let ask = Entry::Ask { op, volume: VOLUME, client: 2, kind };
                    judge.entry(ask).expect("a question breaks nothing");
                    let outcome = oracle::Outcome::Read(vec![value]);
                    let expected = judge.entry(Entry::Answer { op, outcome }).is_ok();
                    let got = past.judge(block, value).is_ok();
                    prop_assert_eq!(got, expected, "block {} value {:#x} of {:?}", block, value, both.lines);
                }
            }
        }
    }

    /// A judge that has seen everything. (It cannot be cloned: it is fed anew for each question.)
    fn whole(both: &Both, flushed_only: bool) -> Judge {
        let mut judge = Judge::default();
        let all = Span { first: 0, count: BLOCKS };
        let end =
            [Entry::LossPermitted { volume: VOLUME, span: all }, Entry::Serves { volume: VOLUME, client: 2 }];
        for e in both.history.iter().chain(if flushed_only { &end[..] } else { &[] }) {
            judge.entry(e.clone()).expect("writes alone break nothing");
        }
        judge
    }
}
