//! The journal's index: a copy of flushed batches' headers in one place, so that an opening need not read the ring.
//!
//! Headers are collected in chunks. A chunk is written when it is full and everything in it is flushed, so what it lists
//! is known to be flushed, payload and all; once the chunk is flushed too, recovery no longer reads these batches in the
//! ring. Each copy is a whole header with its own checksum and place in the chain and is judged like the original: a chunk
//! that is missing or torn costs time, never data. It owns the numbers of chunks, which rise; chunk `n` lies in place
//! `n` modulo their count. Invariant: no chunk is overwritten that the flushed superblock still leads to.

use crate::disk::chunk::{self, CHUNK_HEAD};
use crate::event::IoOp;
use crate::layout::Layout;
use crate::store::{Job, Phase, Store};
use proto::{DriveId, PageBuf, Payload};
use std::collections::VecDeque;

/// A chunk that is full.
pub struct Chunk {
    pub number: u64,
    /// Its last batch.
    pub last: u64,
    /// Its bytes, until they are written.
    bytes: Option<Payload>,
    /// When its write completed.
    stamp: Option<u64>,
}
impl Chunk {
    /// One that was found on the drive.
    #[must_use]
    pub fn found(number: u64, last: u64) -> Chunk {
        Chunk { number, last, bytes: None, stamp: Some(0) }
    }
}

pub struct Index {
    drive: DriveId,
    chunk_pages: usize,
    /// Chunks that there is room for.
    places: u64,
    /// Full ones that the ring may still need, by number without gaps.
    full: VecDeque<Chunk>,
    /// The one that is being filled: bytes, how many are used, its last batch.
    filling: PageBuf,
    used: usize,
    last: u64,
    /// Its number.
    next: u64,
    in_flight: bool,
}

impl Index {
    /// What is there already, and the number of the next chunk.
    #[must_use]
    pub fn new(layout: &Layout, drive: DriveId, full: VecDeque<Chunk>, next: u64) -> Index {
        let chunk_pages = layout.chunk_pages as usize;
        Index {
            drive,
            chunk_pages,
            places: layout.index_pages / u64::from(layout.chunk_pages),
            full,
            filling: PageBuf::default(),
            used: 0,
            last: 0,
            next,
            in_flight: false,
        }
    }
    /// A header that has been sealed, without its padding.
    pub fn add(&mut self, seq: u64, header: &[u8]) {
        if self.used + header.len() > self.filling.bytes().len() {
            self.close();
        }
        self.filling.bytes_mut()[self.used..self.used + header.len()].copy_from_slice(header);
        self.used += header.len();
        self.last = seq;
    }
    fn close(&mut self) {
        let mut bytes = std::mem::replace(&mut self.filling, PageBuf::zeroed(self.chunk_pages));
        if self.used > CHUNK_HEAD {
            chunk::seal(bytes.bytes_mut(), self.used, self.drive, self.next);
            let bytes = Some(bytes.freeze());
            self.full.push_back(Chunk { number: self.next, last: self.last, bytes, stamp: None });
            self.next += 1;
        }
        self.used = CHUNK_HEAD;
    }
    /// The first chunk that leads on from batch `seq`.
    #[must_use]
    pub fn chunk_of(&self, seq: u64) -> u64 {
        self.full.iter().find(|c| c.last >= seq).map_or(self.next, |c| c.number)
    }
    /// The flushed superblock leads from batch `seq` to chunk `number`: what lies before is nobody's.
    pub fn pass(&mut self, number: u64, seq: u64) {
        while self.full.pop_front_if(|c| c.number < number).is_some() {}
        if self.last < seq && self.used > CHUNK_HEAD {
            self.used = CHUNK_HEAD;
        }
    }
    /// The next chunk to be written, if everything in it is flushed; `from`: the flushed superblock leads to this one.
    fn writable(&mut self, flushed: u64, from: u64) -> Option<(u64, Payload)> {
        if self.in_flight {
            return None;
        }
        let places = self.places;
        let c = self.full.iter_mut().find(|c| c.bytes.is_some())?;
        if c.last > flushed || c.number >= from + places {
            return None;
        }
        self.in_flight = true;
        Some((c.number, c.bytes.take()?))
    }
    fn written(&mut self, number: u64, stamp: u64) {
        self.in_flight = false;
        if let Some(c) = self.full.iter_mut().find(|c| c.number == number) {
            c.stamp = Some(stamp);
        }
    }
    /// Batches up to which recovery needs no ring, once everything with a stamp up to `mark` is flushed.
    #[must_use]
    pub fn leads_to(&self, mark: u64) -> Option<u64> {
        self.full.iter().take_while(|c| c.stamp.is_some_and(|s| s <= mark)).last().map(|c| c.last)
    }
}

impl Store {
    /// Writes what is full and flushed, one chunk at a time.
    pub(crate) fn push_index(&mut self) {
        if !matches!(self.phase, Phase::Open) {
            return;
        }
        let early = self.bugs().index_early;
        let disk = self.disk_mut();
        let flushed = if early { u64::MAX } else { disk.journal.flushed };
        if let Some((number, bytes)) = disk.index.writable(flushed, disk.superblock.tail_chunk) {
            let offset = disk.layout.chunk(number);
            self.io(Job::Index(number), IoOp::Write { offset, pieces: vec![bytes] });
        }
    }
    pub(crate) fn index_done(&mut self, number: u64) {
        let stamp = self.stamp;
        self.disk_mut().index.written(number, stamp);
        self.flusher.wanted |= self.disk().journal.lags();
    }
    /// A flush is done.
    pub(crate) fn index_flushed(&mut self, mark: u64) {
        let disk = self.disk_mut();
        if let Some(upto) = disk.index.leads_to(mark) {
            let flushed = disk.journal.flushed;
            disk.journal.index_to(upto.min(flushed));
        }
    }
}
