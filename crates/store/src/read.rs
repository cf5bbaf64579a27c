//! Reads: the newest generation up to a view that has the block, from the overlay or from home, verified.
//!
//! Reads never wait for the journal. What is read from the drive is pinned meanwhile: nothing overwrites it.

use crate::disk::page::Presence;
use crate::event::{Failure, IoOp, IoResult, Notice, Source};
use crate::join::Joining;
use crate::listing::{last_of, mix};
use crate::load::MEDIA_ERRORS;
use crate::overlay::What;
use crate::store::{Disk, Job, Store};
use crate::table::{NONE, Px, is_bit};
use proto::limits::{BLOCK, BLOCKS_PER_EXTENT, FRAME_PAYLOAD_MAX, READER_EPOCH};
use proto::message::{BlockState, Reply, Request, Run, Scope, View};
use proto::record::Sum;
use proto::{BranchId, ChunkIndex, Generation, PageBuf, Payload, Refusal, Version};

/// Extents that one `Verify` may ask for.
const VERIFY_MAX: u32 = 256;

/// Where a block's bytes are.
#[derive(Clone)]
pub(crate) enum Bytes {
    None,
    Memory(Payload),
    /// Byte offset on the drive, and what must stay while it is read.
    Drive {
        offset: u64,
        pins: Pins,
    },
}

/// What is pinned while a block is read.
#[derive(Clone, Copy)]
pub(crate) enum Pins {
    /// The block, at home.
    Home(Px),
    /// The batch that holds it.
    Batch(u64),
}

/// A block as seen in a view.
#[derive(Clone)]
pub(crate) struct Seen {
    pub state: BlockState,
    pub version: Version,
    pub generation: Generation,
    pub sum: Sum,
    pub bytes: Bytes,
    /// The extent that has it; it may be a bit.
    pub px: Px,
}

/// Consecutive blocks that one I/O reads.
struct Part {
    first: usize,
    count: usize,
}

pub(crate) enum Kind {
    Read,
    Verify {
        first_extent: u32,
    },
    /// For ourselves.
    Join(Box<Joining>),
}

pub(crate) struct ReadJob {
    source: Source,
    token: u64,
    branch: BranchId,
    chunk: ChunkIndex,
    first: u32,
    kind: Kind,
    blocks: Vec<Seen>,
    parts: Vec<Part>,
    waiting: usize,
    /// All data came by one read, whole and good: it is the answer.
    whole: Option<Payload>,
}

impl Disk {
    /// A block of a replica as a view sees it.
    pub(crate) fn look(&self, replica: u32, block: u32, view: View) -> Seen {
        let (extent, at) = (block / BLOCKS_PER_EXTENT, block % BLOCKS_PER_EXTENT);
        let mut px = self.records.replica(replica).index.get(extent);
        let mut above = None;
        while px != NONE {
            let e = self.table.get(px);
            if e.generation <= last_of(view) {
                if let Some(mut seen) = self.look_at(px, at) {
                    // A bit's version may be that of another extent. Whatever lies above is younger than the bit.
                    if is_bit(px) {
                        seen.version = above.unwrap_or(seen.version);
                    }
                    return seen;
                }
                above = Some(self.version(px));
            }
            px = e.next;
        }
        let nothing = Generation(0);
        Seen {
            state: BlockState::Absent,
            version: Version::ZERO,
            generation: nothing,
            sum: Sum(0),
            bytes: Bytes::None,
            px: NONE,
        }
    }
    /// ... in one physical extent; `None` if it does not have the block.
    pub(crate) fn look_at(&self, px: Px, at: u32) -> Option<Seen> {
        let e = self.table.get(px);
        let (state, sum, bytes) = match self.overlay.get(px, at) {
            Some(b) => match b.what {
                What::Absent => return None,
                What::Zero => (BlockState::Zero, Sum(0), Bytes::None),
                What::Bad => (BlockState::Bad, Sum(b.sum), Bytes::None),
                What::Data => {
                    let offset = self.layout.journal(b.position);
                    (BlockState::Data, Sum(b.sum), Bytes::Drive { offset, pins: Pins::Batch(b.seq) })
                }
            },
            None => match e.states.get(at) {
                Presence::Absent => return None,
                Presence::Zero => (BlockState::Zero, Sum(0), Bytes::None),
                Presence::Data => {
                    let bytes = Bytes::Drive { offset: self.layout.data(px, at), pins: Pins::Home(px) };
                    (BlockState::Data, Sum(e.sums[at as usize]), bytes)
                }
            },
        };
        Some(Seen { state, version: self.version(px), generation: e.generation, sum, bytes, px })
    }
}

impl Store {
    pub(crate) fn read_request(
        &mut self,
        source: Source,
        token: u64,
        scope: &Scope,
        request: &Request,
    ) -> Result<(), Refusal> {
        let (view, first, count, kind, resync) = match request {
            // `media` asks for nothing more: every read is of the drive.
            Request::Read { view, range, media: _, source_process } => {
                (*view, range.first, range.count, Kind::Read, source_process.is_some())
            }
            Request::Verify { view, first_extent, extents } => {
                if *extents > VERIFY_MAX {
                    return Err(Refusal::Invalid);
                }
                let first = first_extent.checked_mul(BLOCKS_PER_EXTENT).ok_or(Refusal::Invalid)?;
                let kind = Kind::Verify { first_extent: *first_extent };
                (*view, first, extents * BLOCKS_PER_EXTENT, kind, false)
            }
            _ => return Err(Refusal::Invalid),
        };
        let replica = self.check_reader(scope, view, resync)?;
        let end = first.checked_add(count).ok_or(Refusal::Invalid)?;
        let whole_answer = matches!(kind, Kind::Read) && count as usize * BLOCK > FRAME_PAYLOAD_MAX;
        if count == 0 || end > self.chunk_blocks(replica) || whole_answer {
            return Err(Refusal::Invalid);
        }
        let blocks = (first..end).map(|b| self.disk().look(replica, b, view)).collect();
        self.begin_read(ReadJob::new(source, token, (scope.branch, scope.chunk), first, kind, blocks));
        Ok(())
    }

    /// Who may read: a session, of the newest epoch known here, all that is not withdrawn; whoever has none, what this
    /// replica holds whole. Resync, only from a replica not in doubt.
    pub(crate) fn check_reader(&self, scope: &Scope, view: View, resync: bool) -> Result<u32, Refusal> {
        if scope.epoch == READER_EPOCH
            && let View::At(g) = view
        {
            let replica = self.check_replica(scope)?;
            let incomplete = self.bugs().serve_incomplete;
            let serves = self.disk().serves(replica, g, incomplete) && !resync;
            return if serves { Ok(replica) } else { Err(Refusal::UnknownView) };
        }
        let replica = self.check_session(scope, resync)?;
        match view {
            View::At(g) if self.disk().records.branch_of(replica).is_withdrawn(g) => {
                Err(Refusal::UnknownView)
            }
            _ => Ok(replica),
        }
    }
    /// Nobody of an older epoch.
    pub(crate) fn check_session(&self, scope: &Scope, resync: bool) -> Result<u32, Refusal> {
        let replica = self.check_replica(scope)?;
        if self.branch_epoch(scope.branch).is_some_and(|e| scope.epoch < e) {
            return Err(Refusal::OldEpoch);
        }
        if resync && self.disk().records.branch_of(replica).in_doubt {
            return Err(Refusal::InDoubt);
        }
        Ok(replica)
    }

    pub(crate) fn begin_read(&mut self, mut job: ReadJob) {
        let mut next_offset = None;
        for (i, seen) in job.blocks.iter().enumerate() {
            let Bytes::Drive { offset, .. } = seen.bytes else {
                next_offset = None;
                continue;
            };
            match job.parts.last_mut() {
                Some(part) if next_offset == Some(offset) => part.count += 1,
                _ => job.parts.push(Part { first: i, count: 1 }),
            }
            next_offset = Some(offset + BLOCK as u64);
        }
        job.waiting = job.parts.len();
        let id = self.reads.insert(job);
        for part in 0..self.reads[id].parts.len() {
            self.issue_part(id, part);
        }
        if self.reads[id].waiting == 0 {
            self.finish_read(id);
        }
    }

    fn issue_part(&mut self, id: usize, part: usize) {
        let job = &self.reads[id];
        let Part { first, count } = job.parts[part];
        let mut at = None;
        let disk = self.disk.as_mut().expect("opened");
        for seen in &job.blocks[first..first + count] {
            let Bytes::Drive { offset, pins } = seen.bytes else { continue };
            at.get_or_insert(offset);
            match pins {
                Pins::Home(px) => disk.table.pin(px, disk.layout.block_at(offset)),
                Pins::Batch(seq) => disk.journal.get_mut(seq).readers += 1,
            }
        }
        let blocks = u32::try_from(count).expect("at most a chunk");
        self.io(
            Job::Read(id, part),
            IoOp::Read { offset: at.expect("parts are read from the drive"), blocks },
        );
    }

    pub(crate) fn read_done(&mut self, id: usize, part: usize, at: Option<u64>, result: IoResult) {
        let job = &mut self.reads[id];
        let Part { first, count } = job.parts[part];
        let disk = self.disk.as_mut().expect("opened");
        for seen in &job.blocks[first..first + count] {
            match seen.bytes {
                Bytes::Drive { pins: Pins::Home(px), offset } => {
                    disk.table.unpin(px, disk.layout.block_at(offset));
                }
                Bytes::Drive { pins: Pins::Batch(seq), .. } => disk.journal.get_mut(seq).readers -= 1,
                _ => {}
            }
        }
        job.waiting -= 1;
        match result {
            IoResult::Read(bytes) if bytes.blocks() == count => job.take(part, &bytes),
            // Not the medium's fault: the block may be well.
            IoResult::Failed(errno) if !MEDIA_ERRORS.contains(&errno) => {
                return self.fail(Failure::of_io(at, errno));
            }
            _ if count == 1 => job.blocks[first].state = BlockState::Bad,
            _ => {
                // One bad sector must not spoil its neighbours: each block by itself.
                for i in first..first + count {
                    self.reads[id].parts.push(Part { first: i, count: 1 });
                    self.reads[id].waiting += 1;
                    let part = self.reads[id].parts.len() - 1;
                    self.issue_part(id, part);
                }
            }
        }
        if self.reads[id].waiting == 0 {
            self.finish_read(id);
        }
    }

    fn finish_read(&mut self, id: usize) {
        let job = self.reads.remove(id);
        for (i, seen) in job.blocks.iter().enumerate().filter(|(_, s)| s.state == BlockState::Bad) {
            let block = job.first + u32::try_from(i).expect("within a chunk");
            self.notice(Notice::BadBlock { branch: job.branch, chunk: job.chunk, block, state: seen.state });
        }
        if let Kind::Join(joining) = &job.kind {
            return self.joined(joining, &job.blocks, |count| job.payload(count));
        }
        let has_parent = self.disk().records.branch(job.branch).is_some_and(|b| b.record.parent.is_some());
        let (source, token, branch) = (job.source, job.token, job.branch);
        let reply = match job.kind {
            Kind::Read => job.answer(),
            Kind::Verify { first_extent } => job.verdict(first_extent, has_parent),
            Kind::Join(_) => unreachable!("looked at above"),
        };
        self.reply(source, token, branch, reply);
    }
}

impl ReadJob {
    pub(crate) fn new(
        source: Source,
        token: u64,
        (branch, chunk): (BranchId, ChunkIndex),
        first: u32,
        kind: Kind,
        blocks: Vec<Seen>,
    ) -> ReadJob {
        let (parts, whole) = (Vec::new(), None);
        ReadJob { source, token, branch, chunk, first, kind, blocks, parts, waiting: 0, whole }
    }

    /// Bytes have come: each block is checked.
    fn take(&mut self, part: usize, bytes: &Payload) {
        let Part { first, count } = self.parts[part];
        let mut good = true;
        for i in 0..count {
            let seen = &mut self.blocks[first + i];
            if Sum::of(bytes.block(i)) == seen.sum {
                seen.bytes = Bytes::Memory(bytes.slice(i, 1));
            } else {
                seen.state = BlockState::Bad;
                seen.bytes = Bytes::None;
                good = false;
            }
        }
        if good && self.parts.len() == 1 {
            self.whole = Some(bytes.clone());
        }
    }

    fn answer(self) -> Reply {
        let mut runs: Vec<Run> = Vec::new();
        let mut sums = Vec::new();
        for (i, s) in self.blocks.iter().enumerate() {
            let new_extent = (self.first as usize + i).is_multiple_of(BLOCKS_PER_EXTENT as usize);
            let same = |r: &Run| {
                (r.state, r.version, r.generation) == (s.state, s.version, s.generation)
                    && (!new_extent || s.state == BlockState::Absent)
            };
            match runs.last_mut() {
                Some(r) if same(r) => r.count += 1,
                _ => {
                    runs.push(Run { count: 1, state: s.state, version: s.version, generation: s.generation })
                }
            }
            if s.state == BlockState::Data {
                sums.push(s.sum);
            }
        }
        let payload = self.payload(sums.len());
        Reply::ReadDone { runs, sums, payload }
    }

    /// The data blocks, in order: without a copy where they came in one piece.
    fn payload(&self, count: usize) -> Payload {
        if let Some(whole) = self.whole.as_ref().filter(|w| w.blocks() == count) {
            return whole.clone();
        }
        let data: Vec<Payload> = self
            .blocks
            .iter()
            .filter(|s| s.state == BlockState::Data)
            .filter_map(|s| if let Bytes::Memory(p) = &s.bytes { Some(p.clone()) } else { None })
            .collect();
        assert_eq!(data.len(), count, "each good block has its bytes");
        if let [one] = &data[..] {
            return one.clone();
        }
        let mut out = PageBuf::zeroed(count);
        for (to, from) in out.bytes_mut().chunks_exact_mut(BLOCK).zip(&data) {
            to.copy_from_slice(from.bytes());
        }
        out.freeze()
    }

    /// Hashes of states and bytes per extent, and the blocks that fail.
    fn verdict(&self, first_extent: u32, has_parent: bool) -> Reply {
        let mut extents = Vec::new();
        let mut bad = Vec::new();
        for (i, blocks) in (first_extent..).zip(self.blocks.chunks(BLOCKS_PER_EXTENT as usize)) {
            let mut hash = 0;
            for (b, seen) in (0..).zip(blocks) {
                let state = match seen.state {
                    BlockState::Bad => {
                        bad.push(i * BLOCKS_PER_EXTENT + b);
                        3
                    }
                    BlockState::Data => 1,
                    BlockState::Zero if has_parent => 2,
                    BlockState::Zero | BlockState::Absent => 0,
                };
                hash = mix(hash, state);
                if let (BlockState::Data, Bytes::Memory(p)) = (seen.state, &seen.bytes) {
                    for word in p.bytes().chunks_exact(8) {
                        hash = mix(hash, u64::from_le_bytes(word.try_into().expect("8 bytes")));
                    }
                }
            }
            extents.push((i, hash));
        }
        Reply::Verified { extents, bad }
    }
}
