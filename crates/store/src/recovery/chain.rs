//! Following the journal's chain: from the tail, header by header, to where it ends: first in the index, which has them
//! close together, then in the ring. Then the payload of those batches
//! that nothing says are flushed: they count only if it is whole. What is flushed counts anyhow, and its payload is read
//! when it is wanted.

use super::decide::{BODY, Body, CHAIN, Chain, decide};
use crate::disk::chunk;
use crate::disk::entry::{Entry, parse};
use crate::disk::header::Header;
use crate::disk::superblock::Superblock;
use crate::index::Chunk;
use crate::layout::Layout;
use proto::limits::BLOCK;
use proto::record::Sum;
use proto::{DriveId, PageBuf, Payload};
use std::collections::{BTreeSet, VecDeque};

/// Most pages of the ring that are read at once.
pub const CHUNK: u64 = 256;

/// A batch of the chain.
pub struct Link {
    pub seq: u64,
    pub position: u64,
    pub pages: u64,
    pub crc: u32,
    pub entries: Vec<Entry>,
    /// Position of its payload.
    pub body: u64,
    /// Its header without padding, if the index does not have it.
    pub raw: Option<Box<[u8]>>,
}

/// What the walk wants next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes of the ring: position and pages.
    Read {
        position: u64,
        pages: u64,
    },
    /// A chunk of the index, by its number.
    Chunk(u64),
    /// What would end the chain cannot be read: it may have been acknowledged.
    Unreadable(u64),
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
    /// Pages of the ring that the drive does not give.
    unreadable: BTreeSet<u64>,
    pub links: Vec<Link>,
    position: u64,
    next_seq: u64,
    prev: u32,
    open: u64,
    first_prev: u32,
    first_seq: u64,
    /// All headers are known; payloads of links before this one have been looked at.
    bodies: Option<usize>,
    /// Chunks of the index that have been followed; the number of the next one; whether that is to be looked at.
    chunks_found: VecDeque<Chunk>,
    next_chunk: u64,
    indexing: bool,
    index_pages: u64,
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
            unreadable: BTreeSet::new(),
            links: Vec::new(),
            position: s.tail,
            next_seq: s.tail_seq,
            prev: s.tail_prev,
            open: 0,
            first_prev: s.tail_prev,
            first_seq: s.tail_seq,
            bodies: None,
            chunks_found: VecDeque::new(),
            next_chunk: s.tail_chunk,
            indexing: true,
            index_pages: 0,
        }
    }
    fn limit(&self) -> u64 {
        self.tail + self.layout.journal_pages
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
        let at = self.chunks.partition_point(|c| c.0 <= position);
        self.chunks.insert(at, (position, bytes));
    }
    /// A page of the ring that cannot be read: it matches no checksum.
    pub fn give_unreadable(&mut self, position: u64) {
        self.unreadable.insert(position);
        self.give(position, PageBuf::zeroed(1).freeze());
    }
    /// Pages from here on that have not been read, at most `most`.
    fn want(&self, position: u64, most: u64) -> Step {
        let to_end = self.layout.journal_pages - self.layout.ring(position);
        let next = self.chunks.get(self.chunks.partition_point(|c| c.0 <= position));
        let unread = next.map_or(u64::MAX, |c| c.0 - position);
        let pages = most.min(to_end).min(unread).min((self.limit() - position).max(1));
        Step::Read { position, pages }
    }
    /// What `Step::Chunk` asked for. Followed as a whole or not at all: then the ring leads on.
    pub fn give_chunk(&mut self, bytes: &Payload) {
        self.index_pages += bytes.blocks() as u64;
        let before = (self.links.len(), self.position, self.next_seq, self.prev, self.open);
        let followed = chunk::open(bytes.bytes(), self.drive, self.next_chunk).and_then(|h| self.follow(h));
        let Some(last) = followed else {
            self.links.truncate(before.0);
            (_, self.position, self.next_seq, self.prev, self.open) = before;
            self.indexing = false;
            return;
        };
        // Only what is flushed gets into the index.
        self.flushed = self.flushed.max(last);
        self.chunks_found.push_back(Chunk::found(self.next_chunk, last));
        self.next_chunk += 1;
    }
    /// The headers of a chunk: the number of the last one, if each is the next link (or lies before the tail).
    fn follow(&mut self, mut headers: &[u8]) -> Option<u64> {
        let mut last = None;
        while !headers.is_empty() {
            let used = Header::used(headers, self.drive)?;
            let (header, rest) = headers.split_at_checked(used)?;
            headers = rest;
            let mut padded = header.to_vec();
            padded.resize(used.next_multiple_of(BLOCK), 0);
            let found = Header::decode(&padded, self.drive)?;
            last = Some(found.0.seq);
            if found.0.seq < self.next_seq {
                continue;
            }
            let start = self.layout.batch_start(self.position);
            if self.judge(start, (padded.len() / BLOCK) as u64, Some(&found)) != Chain::Take {
                return None;
            }
        }
        last
    }

    /// Goes on as far as what has been read allows.
    pub fn step(&mut self) -> Step {
        if let Some(from) = self.bodies {
            return self.look_at_bodies(from);
        }
        if self.indexing {
            return Step::Chunk(self.next_chunk);
        }
        loop {
            let start = self.layout.batch_start(self.position);
            if start >= self.limit() {
                return self.ended();
            }
            let Some(first) = self.page(start) else { return self.want(start, CHUNK) };
            let claimed = Header::claimed_pages(first.bytes(), self.drive).unwrap_or(1) as u64;
            if start + claimed > self.limit() {
                return self.ended();
            }
            let mut bytes = first.bytes().to_vec();
            for p in start + 1..start + claimed {
                let Some(page) = self.page(p) else { return self.want(p, start + claimed - p) };
                bytes.extend_from_slice(page.bytes());
            }
            let found = Header::decode(&bytes, self.drive);
            match self.judge(start, claimed, found.as_ref()) {
                Chain::Take => {
                    let used = Header::used(&bytes, self.drive).unwrap_or(bytes.len());
                    let link = self.links.last_mut().expect("just taken");
                    link.raw = Some(bytes[..used].into());
                }
                Chain::End => match self.unreadable.range(start..start + claimed).next() {
                    Some(position) => return Step::Unreadable(*position),
                    None => return self.ended(),
                },
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
                let room = self.layout.ring(start) + end - start <= self.layout.journal_pages;
                let due = h.seq == self.next_seq && h.position == start && end <= self.limit() && room;
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
                raw: None,
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
        self.look_at_bodies(0)
    }
    fn look_at_bodies(&mut self, from: usize) -> Step {
        for i in from..self.links.len() {
            let link = &self.links[i];
            let flushed = link.seq <= self.flushed;
            let end = link.position + link.pages;
            if !flushed && let Some(p) = (link.body..end).find(|p| self.page(*p).is_none()) {
                self.bodies = Some(i);
                return self.want(p, CHUNK.min(end - p));
            }
            if decide(BODY, [!flushed && self.body_is_whole(link), flushed]) == Body::Cut {
                if let Some(position) = self.unreadable.range(link.body..end).next() {
                    return Step::Unreadable(*position);
                }
                self.links.truncate(i);
                break;
            }
        }
        self.bodies = Some(self.links.len());
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

    /// Chunks of the index that were followed, and the number of the next one.
    pub fn take_chunks(&mut self) -> (VecDeque<Chunk>, u64) {
        (std::mem::take(&mut self.chunks_found), self.next_chunk)
    }
    /// Pages of the ring and the index that have been read.
    #[must_use]
    pub fn pages_read(&self) -> u64 {
        self.index_pages + self.chunks.iter().map(|c| c.1.blocks() as u64).sum::<u64>()
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
