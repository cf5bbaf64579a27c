//! Our own NBD load generator, for machines without fio, and to tell the server's cost from the client's: one
//! thread, one connection, `depth` requests in flight. It checks no data; `load` does.

use crate::load::Histogram;
use crate::nbd_client::{Client, Error, Settings};
use crate::uri::Uri;
use nbd::client::{Command, Outcome};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    RandRead,
    RandWrite,
    Read,
    Write,
}

impl Pattern {
    fn is_read(self) -> bool {
        matches!(self, Pattern::RandRead | Pattern::Read)
    }
    fn is_random(self) -> bool {
        matches!(self, Pattern::RandRead | Pattern::RandWrite)
    }
}

impl std::str::FromStr for Pattern {
    type Err = String;
    /// By fio's words.
    fn from_str(s: &str) -> Result<Pattern, String> {
        match s {
            "randread" => Ok(Pattern::RandRead),
            "randwrite" => Ok(Pattern::RandWrite),
            "read" => Ok(Pattern::Read),
            "write" => Ok(Pattern::Write),
            _ => Err(format!("\"{s}\" is none of randread, randwrite, read, write")),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub pattern: Pattern,
    /// Bytes of one request, a multiple of 512.
    pub block: u32,
    /// Requests in flight, at least 1.
    pub depth: usize,
    pub run_for: Duration,
    /// Only the first so many bytes; `None`: the whole export.
    pub span: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Figures {
    pub ops: u64,
    pub iops: f64,
    pub bytes_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
    pub elapsed_s: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("{0}")]
    Client(#[from] Error),
    #[error("the span of {span} bytes does not hold one request of {block}")]
    TooSmall { span: u64, block: u32 },
    #[error("a request of {0} bytes is not a multiple of 512")]
    Unaligned(u32),
}

/// Where the next request goes.
struct Places {
    count: u64,
    block: u64,
    random: bool,
    state: u64,
}

impl Places {
    fn next(&mut self) -> u64 {
        let n = if self.random {
            // xorshift64*: good enough to choose places by, and cheap.
            self.state ^= self.state >> 12;
            self.state ^= self.state << 25;
            self.state ^= self.state >> 27;
            (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % self.count
        } else {
            self.state = (self.state + 1) % self.count;
            self.state
        };
        n * self.block
    }
}

/// Runs one job. The first failed request ends it.
pub fn run(uri: &Uri, job: &Job, settings: Settings) -> Result<Figures, BenchError> {
    if job.block == 0 || !job.block.is_multiple_of(512) {
        return Err(BenchError::Unaligned(job.block));
    }
    let mut client = Client::connect(uri, settings)?;
    let span = job.span.map_or(client.size(), |s| s.min(client.size()));
    let count = span / u64::from(job.block);
    if count == 0 {
        return Err(BenchError::TooSmall { span, block: job.block });
    }
    let random = job.pattern.is_random();
    let mut places = Places { count, block: u64::from(job.block), random, state: 0x9e37_79b9_7f4a_7c15 };
    // Not all alike, or a deduplicating layer below would flatter.
    let mut x = 1_u32;
    let data: Vec<u8> = std::iter::repeat_with(|| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        x.to_be_bytes()[0]
    })
    .take(job.block as usize)
    .collect();
    let start = Instant::now();
    let end = start + job.run_for;
    let mut sent: BTreeMap<u64, Instant> = BTreeMap::new();
    let mut latency = Histogram::default();
    loop {
        let now = Instant::now();
        while now < end && sent.len() < job.depth.max(1) {
            let offset = places.next();
            let command = if job.pattern.is_read() {
                Command::Read { offset, len: job.block, whole: false }
            } else {
                Command::Write { offset, data: &data, fua: false }
            };
            sent.insert(client.submit(command), now);
        }
        if sent.is_empty() {
            break;
        }
        client.send()?;
        let first = client.next(Instant::now() + settings.request)?.ok_or(Error::Timeout)?;
        let mut next = Some(first);
        let now = Instant::now();
        while let Some((cookie, result)) = next {
            let _data: Outcome = result.map_err(Error::Request)?;
            latency.add(now - sent.remove(&cookie).expect("the client knows its cookies"));
            next = client.ready()?;
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    client.disconnect();
    Ok(figures(&latency, job.block, elapsed))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn figures(latency: &Histogram, block: u32, elapsed_s: f64) -> Figures {
    let us = |d: Duration| d.as_secs_f64() * 1e6;
    let iops = latency.count() as f64 / elapsed_s;
    Figures {
        ops: latency.count(),
        iops,
        bytes_per_s: iops * f64::from(block),
        p50_us: us(latency.percentile(50)),
        p99_us: us(latency.percentile(99)),
        max_us: us(latency.longest()),
        elapsed_s,
    }
}
