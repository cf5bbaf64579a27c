//! The generator: keeps `depth` writes in flight, flushes now and then, notes everything.
//!
//! Invariants: no two writes in flight overlap (so the newest acknowledged write of a block is known); a line is
//! in the kernel before its request is in the socket; a write without an answer is unknown for ever.

use super::histogram::Histogram;
use super::log::{Line, Writer};
use super::stamp::{Stamp, mix};
use crate::nbd_client::{Client, Completion, Error, Settings};
use crate::uri::Uri;
use nbd::client::Command;
use proto::limits::BLOCK;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest write, blocks.
const WRITE_MAX: u64 = 16;
/// One write in so many is forced to media by itself.
const FUA_EVERY: u64 = 64;
/// How often a lost connection is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// How long a write may stay without an answer once the time is up.
const DRAIN: Duration = Duration::from_secs(60);

/// How long `--reconnect` goes on trying, unless told otherwise.
pub const RECONNECT_FOR: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Options {
    pub uri: Uri,
    pub log: PathBuf,
    /// Connect again when the connection is lost, for so long; `None`: stop.
    pub reconnect: Option<Duration>,
    /// Writes in flight, at least 1.
    pub depth: usize,
    pub run_for: Duration,
    /// Flush this often.
    pub flush_every: Duration,
    /// Only the first so many bytes of the volume are written; `None`: all.
    pub span: Option<u64>,
    /// Chooses sizes and places; `None`: by the clock.
    pub seed: Option<u64>,
    pub settings: Settings,
}

impl Options {
    /// The defaults of `blockctl load`.
    #[must_use]
    pub fn new(uri: Uri, log: impl Into<PathBuf>) -> Options {
        Options {
            uri,
            log: log.into(),
            reconnect: None,
            depth: 32,
            run_for: Duration::from_secs(10),
            flush_every: Duration::from_millis(250),
            span: None,
            seed: None,
            settings: Settings::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot connect to {uri}: {source}")]
    Connect { uri: String, source: Error },
    #[error("the log: {0}")]
    Log(#[from] std::io::Error),
    #[error("the volume has {0} bytes; a load needs one block at least")]
    TooSmall(u64),
}

/// What a run did. Times in microseconds.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Writes acknowledged.
    pub writes: u64,
    pub bytes: u64,
    pub flushes: u64,
    /// Writes and flushes that failed.
    pub errors: u64,
    pub first_error: Option<String>,
    /// Writes whose outcome is not known: their connection was lost, they failed, or no answer came.
    pub unknown: u64,
    pub reconnects: u64,
    /// The connection that was lost for good, and why.
    pub lost: Option<String>,
    pub elapsed_us: u64,
    /// Longest time without any completion, and when it ended, since the start.
    pub longest_gap_us: u64,
    pub longest_gap_ended_us: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
    pub iops: u64,
}

impl Report {
    /// Nothing failed and no connection was lost for good. (Reconnects are no failure.)
    #[must_use]
    pub fn ok(&self) -> bool {
        self.errors == 0 && self.lost.is_none() && self.writes > 0
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |us: u64| format!("{}.{:03} ms", us / 1000, us % 1000);
        writeln!(
            f,
            "{} writes ({} MiB) and {} flushes acknowledged in {}: {} per second",
            self.writes,
            self.bytes >> 20,
            self.flushes,
            ms(self.elapsed_us),
            self.iops
        )?;
        writeln!(f, "latency p50 {}, p99 {}, max {}", ms(self.p50_us), ms(self.p99_us), ms(self.max_us))?;
        let (gap, at) = (ms(self.longest_gap_us), ms(self.longest_gap_ended_us));
        writeln!(f, "longest gap between completions {gap} (it ended at {at})")?;
        write!(f, "{} errors, {} unknown, {} reconnects", self.errors, self.unknown, self.reconnects)?;
        if let Some(e) = &self.first_error {
            write!(f, "\nfirst error: {e}")?;
        }
        if let Some(e) = &self.lost {
            write!(f, "\nthe connection was lost: {e}")?;
        }
        Ok(())
    }
}

enum Flight {
    Write { sequence: u64, offset: u64, len: u64, sent: Instant },
    Flush { number: u64 },
}

struct Runner<'a> {
    options: &'a Options,
    client: Option<Client>,
    log: Writer,
    run: u64,
    /// Blocks of the volume that are written.
    blocks: u64,
    chance: u64,
    sequence: u64,
    flights: BTreeMap<u64, Flight>,
    /// First and last block of each write in flight.
    busy: BTreeSet<(u64, u64)>,
    buffer: Vec<u8>,
    start: Instant,
    last_completion: Instant,
    last_flush: Instant,
    flushing: bool,
    latency: Histogram,
    report: Report,
}

/// Runs until the time is up or the connection is lost for good.
pub fn run(options: &Options) -> Result<Report, LoadError> {
    let client = first_connection(options)?;
    let size = client.size();
    let blocks = options.span.map_or(size, |s| s.min(size)) / BLOCK as u64;
    if blocks == 0 {
        return Err(LoadError::TooSmall(size));
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let clock = mix(since.as_secs() ^ u64::from(since.subsec_nanos()).rotate_left(40));
    let run = mix(clock ^ u64::from(std::process::id()).rotate_left(20)).max(1);
    let now = Instant::now();
    let mut runner = Runner {
        log: Writer::begin(&options.log, run, size)?,
        options,
        client: Some(client),
        run,
        blocks,
        chance: options.seed.unwrap_or(clock) | 1,
        sequence: 0,
        flights: BTreeMap::new(),
        busy: BTreeSet::new(),
        buffer: vec![0; BLOCK * usize::try_from(WRITE_MAX).expect("16")],
        start: now,
        last_completion: now,
        last_flush: now,
        flushing: false,
        latency: Histogram::default(),
        report: Report::empty(),
    };
    runner.log.note(Line::Connected);
    runner.work()?;
    Ok(runner.finish()?)
}

/// Never so far that the clock ends: a century is for ever.
fn after(t: Instant, span: Duration) -> Instant {
    t + span.min(Duration::from_secs(100 * 365 * 86_400))
}

/// With `reconnect` the first connection, too, is waited for.
fn first_connection(options: &Options) -> Result<Client, LoadError> {
    let deadline = after(Instant::now(), options.reconnect.unwrap_or_default());
    loop {
        match Client::connect(&options.uri, options.settings) {
            Ok(client) => return Ok(client),
            Err(_) if Instant::now() < deadline => std::thread::sleep(RETRY),
            Err(source) => return Err(LoadError::Connect { uri: options.uri.to_string(), source }),
        }
    }
}

impl Runner<'_> {
    fn work(&mut self) -> std::io::Result<()> {
        let end = after(self.start, self.options.run_for);
        while self.report.lost.is_none() && (Instant::now() < end || !self.flights.is_empty()) {
            if Instant::now() < end {
                self.fill();
            } else if Instant::now() > end + DRAIN {
                break;
            }
            self.log.sync()?;
            if let Err(e) = self.turn() {
                self.lost(&e)?;
            }
        }
        // What is acknowledged is flushed, too, when a run ends by itself.
        if self.report.lost.is_none() && self.flights.is_empty() {
            self.flush();
            self.log.sync()?;
            while !self.flights.is_empty() && self.report.lost.is_none() && Instant::now() < end + DRAIN {
                if let Err(e) = self.turn() {
                    self.lost(&e)?;
                }
            }
        }
        Ok(())
    }

    /// Sends, waits a little, and takes all completions that are there.
    fn turn(&mut self) -> Result<(), Error> {
        let Some(client) = &mut self.client else { return Ok(()) };
        client.send()?;
        let mut next = client.next(Instant::now() + Duration::from_millis(100))?;
        while let Some(completion) = next {
            self.completed(completion);
            next = self.client.as_mut().map_or(Ok(None), Client::ready)?;
        }
        Ok(())
    }

    fn fill(&mut self) {
        if self.last_flush.elapsed() >= self.options.flush_every && !self.flushing {
            self.flush();
        }
        let writes = self.options.depth.max(1);
        let mut tries = 4 * writes;
        while self.busy.len() < writes && tries > 0 {
            tries -= 1;
            self.write();
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.chance) % below
    }

    /// A write somewhere, unless one in flight is there.
    fn write(&mut self) {
        let most = WRITE_MAX.min(self.blocks);
        // Half of them one block, for that is what guests do.
        let count = if self.random(2) == 0 { 1 } else { 1 + self.random(most) };
        let first = self.random(self.blocks - count + 1);
        let last = first + count - 1;
        let before = self.busy.range(..=(last, u64::MAX)).next_back();
        if before.is_some_and(|&(_, busy_to)| busy_to >= first) {
            return;
        }
        let Some(client) = &mut self.client else { return };
        self.sequence += 1;
        let (sequence, offset) = (self.sequence, first * BLOCK as u64);
        let len = count * BLOCK as u64;
        let data = &mut self.buffer[..usize::try_from(len).expect("64 KiB at most")];
        for (i, block) in data.chunks_exact_mut(BLOCK).enumerate() {
            Stamp { run: self.run, offset: offset + (i * BLOCK) as u64, sequence }.fill(block);
        }
        let fua = sequence.is_multiple_of(FUA_EVERY);
        self.log.note(Line::Sent { sequence, offset, len, fua });
        let cookie = client.submit(Command::Write { offset, data, fua });
        self.busy.insert((first, last));
        self.flights.insert(cookie, Flight::Write { sequence, offset, len, sent: Instant::now() });
    }

    fn flush(&mut self) {
        let Some(client) = &mut self.client else { return };
        self.sequence += 1;
        let number = self.sequence;
        self.log.note(Line::FlushSent { number });
        let cookie = client.submit(Command::Flush);
        self.flights.insert(cookie, Flight::Flush { number });
        self.flushing = true;
        self.last_flush = Instant::now();
    }

    fn completed(&mut self, (cookie, result): Completion) {
        let now = Instant::now();
        self.gap(now);
        let error = result.err().map(|e| (u64::from(e.code()), e));
        match (self.flights.remove(&cookie), &error) {
            (Some(Flight::Write { sequence, offset, len, sent }), None) => {
                self.log.note(Line::Acknowledged { sequence });
                self.free(offset, len);
                self.latency.add(now - sent);
                self.report.bytes += len;
            }
            (Some(Flight::Write { sequence, offset, len, .. }), Some((errno, _))) => {
                self.log.note(Line::Failed { sequence, errno: *errno });
                self.free(offset, len);
                self.report.unknown += 1;
            }
            (Some(Flight::Flush { number }), None) => {
                self.log.note(Line::FlushDone { number });
                self.flushing = false;
                self.report.flushes += 1;
            }
            (Some(Flight::Flush { number }), Some((errno, _))) => {
                self.log.note(Line::FlushFailed { number, errno: *errno });
                self.flushing = false;
            }
            (None, _) => unreachable!("the client knows its cookies"),
        }
        if let Some((_, e)) = error {
            self.report.errors += 1;
            self.report.first_error.get_or_insert_with(|| e.to_string());
        }
    }

    fn free(&mut self, offset: u64, len: u64) {
        let first = offset / BLOCK as u64;
        self.busy.remove(&(first, first + len / BLOCK as u64 - 1));
    }

    fn gap(&mut self, now: Instant) {
        let gap = micros(now - self.last_completion);
        if gap > self.report.longest_gap_us {
            self.report.longest_gap_us = gap;
            self.report.longest_gap_ended_us = micros(now - self.start);
        }
        self.last_completion = now;
    }

    /// The connection is gone: what it carried is unknown. Tries to get another one.
    fn lost(&mut self, why: &Error) -> std::io::Result<()> {
        self.client = None;
        self.log.note(Line::Lost);
        self.log.sync()?;
        let writes = self.flights.values().filter(|f| matches!(f, Flight::Write { .. })).count();
        self.report.unknown += writes as u64;
        self.flights.clear();
        self.busy.clear();
        self.flushing = false;
        let deadline = after(Instant::now(), self.options.reconnect.unwrap_or_default());
        let mut last = why.to_string();
        while Instant::now() < deadline {
            match Client::connect(&self.options.uri, self.options.settings) {
                Ok(client) => {
                    self.client = Some(client);
                    self.report.reconnects += 1;
                    self.log.note(Line::Connected);
                    return Ok(());
                }
                Err(e) => last = e.to_string(),
            }
            std::thread::sleep(RETRY);
        }
        self.report.lost = Some(last);
        Ok(())
    }

    fn finish(mut self) -> std::io::Result<Report> {
        let now = Instant::now();
        if self.report.lost.is_some() || !self.flights.is_empty() {
            self.gap(now); // the time at the end without any answer counts as well
        }
        let unanswered = self.flights.values().filter(|f| matches!(f, Flight::Write { .. })).count();
        self.report.unknown += unanswered as u64;
        if !self.flights.is_empty() {
            self.report.errors += 1;
            let message = format!("no answer for {} s to {} requests", DRAIN.as_secs(), self.flights.len());
            self.report.first_error.get_or_insert(message);
        }
        self.log.note(Line::End);
        self.log.sync()?;
        if let Some(client) = self.client.take() {
            client.disconnect();
        }
        let r = &mut self.report;
        r.writes = self.latency.count();
        r.elapsed_us = micros(now - self.start);
        r.p50_us = micros(self.latency.percentile(50));
        r.p99_us = micros(self.latency.percentile(99));
        r.max_us = micros(self.latency.longest());
        r.iops = r.writes * 1_000_000 / r.elapsed_us.max(1);
        Ok(self.report)
    }
}

impl Report {
    fn empty() -> Report {
        Report {
            writes: 0,
            bytes: 0,
            flushes: 0,
            errors: 0,
            first_error: None,
            unknown: 0,
            reconnects: 0,
            lost: None,
            elapsed_us: 0,
            longest_gap_us: 0,
            longest_gap_ended_us: 0,
            p50_us: 0,
            p99_us: 0,
            max_us: 0,
            iops: 0,
        }
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
