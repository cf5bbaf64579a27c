//! Following the journal's chain: from the tail, header by header, to where it ends.

use super::decide::{BODY, Body, CHAIN, Chain, decide};
use crate::disk::entry::{Entry, parse};
use crate::disk::header::Header;
use crate::disk::superblock::Superblock;
use crate::layout::Layout;
use proto::limits::{BLOCK, REPLAY_MAX};
use proto::record::Sum;
use proto::{DriveId, Payload};

/// Pages read at once.
const CHUNK: u64 = 256;

/// A batch of the chain.
pub struct Link {
    pub seq: u64,
    pub position: u64,
    pub pages: u64,
    pub crc: u32,
    pub entries: Vec<Entry>,
    /// Position of its payload.
    pub body: u64,
}

/// What the walk wants next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes of the ring: position and pages.
    Read {
        position: u64,
        pages: u64,
    },
    End,
    Lost,
}

/// The walk along the ring.
pub struct Walk {
    layout: Layout,
    drive: DriveId,
    tail: u64,
    chain_end: u64,
    least_open: u64,
    /// Recorded as flushed, as far as is known.
    pub flushed: u64,
    /// Contiguous pieces of the ring, by position.
    chunks: Vec<(u64, Payload)>,
    pub links: Vec<Link>,
    position: u64,
    next_seq: u64,
    prev: u32,
    open: u64,
    first_prev: u32,
    first_seq: u64,
}

impl Walk {
    #[must_use]
    pub fn new(s: &Superblock) -> Walk {
        Walk {
            layout: s.layout,
            drive: s.drive,
            tail: s.tail,
            chain_end: s.chain_end,
            least_open: s.open,
            flushed: s.flushed,
            chunks: Vec::new(),
            links: Vec::new(),
            position: s.tail,
            next_seq: s.tail_seq,
            prev: s.tail_prev,
            open: 0,
            first_prev: s.tail_prev,
            first_seq: s.tail_seq,
        }
    }
    fn limit(&self) -> u64 {
        self.tail + self.layout.journal_pages.min(REPLAY_MAX / BLOCK as u64)
    }
    /// A page of the ring, if it has been read.
    #[must_use]
    pub fn page(&self, position: u64) -> Option<Payload> {
        let at = self.chunks.partition_point(|c| c.0 <= position).checked_sub(1)?;
        let (start, bytes) = &self.chunks[at];
        let i = usize::try_from(position - start).ok()?;
        (i < bytes.blocks()).then(|| bytes.slice(i, 1))
    }
    /// What `Step::Read` asked for.
    pub fn give(&mut self, position: u64, bytes: Payload) {
        self.chunks.push((position, bytes));
    }
    fn want(&self, position: u64) -> Step {
        let to_end = self.layout.journal_pages - self.layout.ring(position);
        Step::Read { position, pages: CHUNK.min(to_end).min((self.limit() - position).max(1)) }
    }

    /// Goes on as far as what has been read allows.
    pub fn step(&mut self) -> Step {
        loop {
            let start = self.layout.batch_start(self.position);
            if start >= self.limit() {
                return self.ended();
            }
            let Some(first) = self.page(start) else { return self.want(start) };
            let claimed = Header::claimed_pages(first.bytes(), self.drive).unwrap_or(1) as u64;
            if start + claimed > self.limit() {
                return self.ended();
            }
            let mut bytes = first.bytes().to_vec();
            for p in start + 1..start + claimed {
                let Some(page) = self.page(p) else { return self.want(p) };
                bytes.extend_from_slice(page.bytes());
            }
            let found = Header::decode(&bytes, self.drive);
            if let Some((header, _, _)) = &found {
                let end = start + claimed + u64::from(header.payload_blocks);
                let room = self.layout.ring(start) + end - start <= self.layout.journal_pages;
                if header.seq == self.next_seq && end <= self.limit() && room {
                    for p in start + claimed..end {
                        if self.page(p).is_none() {
                            return self.want(p);
                        }
                    }
                }
            }
            match self.judge(start, claimed, found.as_ref()) {
                Chain::Take => {}
                Chain::End => return self.ended(),
                Chain::Lost => return Step::Lost,
            }
        }
    }

    fn judge(&mut self, start: u64, pages: u64, found: Option<&(Header, u32, &[u8])>) -> Chain {
        let entries = found.and_then(|(_, _, units)| parse(units));
        let facts = match found {
            None => [false; 5],
            Some((h, _, _)) => {
                let end = start + pages + u64::from(h.payload_blocks);
                let fresh = h.open >= self.open && (h.seq < self.chain_end || h.open >= self.least_open);
                let due = h.seq == self.next_seq && h.position == start && end <= self.limit();
                [true, due, h.prev == self.prev, fresh, entries.is_some()]
            }
        };
        let [a, b, c, d, e] = facts;
        let verdict = decide(CHAIN, [a, b, c, d, e, self.next_seq <= self.flushed]);
        if let (Chain::Take, Some((h, crc, _)), Some(entries)) = (verdict, found, entries) {
            let body = start + pages;
            let link = Link {
                seq: h.seq,
                position: start,
                pages: pages + u64::from(h.payload_blocks),
                crc: *crc,
                entries,
                body,
            };
            self.position = start + link.pages;
            self.flushed = self.flushed.max(h.flushed);
            (self.next_seq, self.prev, self.open) = (h.seq + 1, *crc, h.open);
            self.links.push(link);
        }
        verdict
    }

    /// All headers are known, and with them what was flushed: now the payloads.
    fn ended(&mut self) -> Step {
        if self.next_seq <= self.flushed {
            return Step::Lost;
        }
        for i in 0..self.links.len() {
            let whole = self.body_is_whole(&self.links[i]);
            let flushed = self.links[i].seq <= self.flushed;
            if decide(BODY, [whole, flushed]) == Body::Cut {
                self.links.truncate(i);
                break;
            }
        }
        let last = self.links.last();
        self.position = last.map_or(self.tail, |l| l.position + l.pages);
        self.prev = last.map_or(self.first_prev, |l| l.crc);
        self.next_seq = last.map_or(self.first_seq, |l| l.seq + 1);
        Step::End
    }
    fn body_is_whole(&self, link: &Link) -> bool {
        let mut at = link.body;
        for e in &link.entries {
            for (_, sum) in block_sums(e) {
                if self.page(at).is_none_or(|p| Sum::of(p.bytes()) != sum) {
                    return false;
                }
                at += 1;
            }
        }
        at == link.position + link.pages
    }

    /// Where the next batch goes: position, number, checksum before it, highest open number seen.
    #[must_use]
    pub fn end(&self) -> (u64, u64, u32, u64) {
        (self.position, self.next_seq, self.prev, self.open)
    }
}

/// Blocks whose bytes an entry has in the journal, in the order of its payload: block of the extent, sum.
pub fn block_sums(e: &Entry) -> Vec<(u32, Sum)> {
    match e {
        Entry::Write { first, count, large: false, sums, .. } => {
            (0..*count).map(|i| (first + i, sums[i as usize])).collect()
        }
        Entry::Pull { masks, sums, .. } => {
            (0..16u32).filter(|b| masks.data >> b & 1 == 1).map(|b| (b, sums[b as usize])).collect()
        }
        _ => Vec::new(),
    }
}
