//! The store's true state, read-only: for the simulator's properties, metrics and tests.

use crate::disk::page::Presence;
use crate::op::{Op, Then};
use crate::overlay::Way;
use crate::read::Bytes;
use crate::store::{Phase, Store};
use crate::table::{NONE, Use, is_bit};
use proto::control::HeldReplica;
use proto::limits::BLOCKS_PER_EXTENT;
use proto::message::{BlockState, View};
use proto::record::Sum;
use proto::{
    BlockRange, BranchId, ChunkIndex, ConfigNumber, DriveId, Epoch, Generation, Generations, Incarnation,
    ListIndex, Marks, NodeId, Payload, Version,
};

/// A block as the store's memory has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockView {
    /// Written; its checksum. Whether the drive still has the bytes is another question.
    Data(Sum),
    Zero,
    Absent,
}

/// Where the bytes of a block are.
#[derive(Clone, Debug)]
pub enum BytesAt {
    Memory(Payload),
    /// Bytes from the start of the drive: at home, or in the journal.
    Drive(u64),
}

/// A branch as the store's memory has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BranchView {
    pub epoch: Epoch,
    pub holder: NodeId,
    pub marks: Marks,
    pub in_doubt: bool,
    /// Extents granted to its session and not used.
    pub credits: u64,
}

/// Figures for metrics. Pages of 4 KiB, extents of 64 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    pub extents: u32,
    pub free_extents: u32,
    pub reserved_extents: u32,
    pub journal_used: u64,
    pub journal_window: u64,
    pub overlay_blocks: usize,
    pub waiting: usize,
}

impl Store {
    /// True once the drive has been read, until it fails or is closed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Closing(_))
    }
    /// True if requests are answered: open, and confirmed by metad (or the same boot).
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Open) && self.serving
    }
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.phase, Phase::Failed)
    }
    /// From the superblock; `None` before it is read.
    #[must_use]
    pub fn drive_id(&self) -> Option<DriveId> {
        self.disk.as_ref().map(|d| d.drive)
    }
    /// State of a block (as acknowledged) in a view, and the version of the extent that it is in. `None` if there
    /// is no replica of that chunk here.
    #[must_use]
    pub fn block(
        &self,
        branch: BranchId,
        chunk: ChunkIndex,
        block: u32,
        view: View,
    ) -> Option<(BlockView, Version)> {
        let disk = self.disk.as_ref()?;
        let replica = disk.records.replica_number(branch, chunk)?;
        let seen = disk.look(replica, block, view);
        let state = match seen.state {
            BlockState::Data | BlockState::Bad => BlockView::Data(seen.sum),
            BlockState::Zero => BlockView::Zero,
            BlockState::Absent => BlockView::Absent,
        };
        Some((state, seen.version))
    }
    /// The generation that a view finds a block in, on an extent of the drive; 0: it is absent, or zero without one.
    #[must_use]
    pub fn generation(
        &self,
        branch: BranchId,
        chunk: ChunkIndex,
        block: u32,
        view: View,
    ) -> Option<Generation> {
        let disk = self.disk.as_ref()?;
        let replica = disk.records.replica_number(branch, chunk)?;
        let seen = disk.look(replica, block, view);
        Some(if is_bit(seen.px) { Generation(0) } else { seen.generation })
    }
    /// True if what `block` tells of the head is there, and survives power loss: its entry and bytes are flushed.
    #[must_use]
    pub fn is_flushed(&self, branch: BranchId, chunk: ChunkIndex, block: u32) -> bool {
        self.is_flushed_in(branch, chunk, block, View::Head)
    }
    /// The same of any view.
    #[must_use]
    pub fn is_flushed_in(&self, branch: BranchId, chunk: ChunkIndex, block: u32, view: View) -> bool {
        let Some(disk) = &self.disk else { return false };
        let Some(replica) = disk.records.replica_number(branch, chunk) else { return false };
        let (extent, at) = (block / BLOCKS_PER_EXTENT, block % BLOCKS_PER_EXTENT);
        let mut px = disk.records.replica(replica).index.get(extent);
        while px != NONE {
            let e = disk.table.get(px);
            let entry = disk.overlay.get(px, at).map(|b| b.seq);
            let there = entry.is_some() || e.states.get(at) != Presence::Absent;
            if there && e.generation <= crate::listing::last_of(view) {
                if is_bit(px) {
                    return disk.table.bit_seq(px) <= disk.journal.flushed;
                }
                return e.usage == Use::Owned && entry.is_none_or(|seq| seq <= disk.journal.flushed);
            }
            px = e.next;
        }
        false
    }
    /// What journal writes in flight (or behind one) set: after an end of the process it may be there, or not.
    #[must_use]
    pub fn entering(&self) -> Vec<(BranchId, ChunkIndex, BlockRange)> {
        let Some(d) = &self.disk else { return Vec::new() };
        let batches = (d.journal.applied + 1..d.journal.next_seq).filter_map(|seq| d.journal.get(seq));
        let range = |op: &Op| {
            let branch = BranchId(op.raw.branch.get());
            if let Some(c) = op.bits.as_ref().filter(|c| c.version.is_some()) {
                let set: Vec<u32> = crate::zeroes::extents_of(c.window, &c.bits).collect();
                let first = set.first()? * BLOCKS_PER_EXTENT;
                let count = (set.last()? + 1) * BLOCKS_PER_EXTENT - first;
                let chunk = d.records.replicas.get(c.replica as usize)?.record.chunk;
                return Some((branch, chunk, BlockRange { first, count }));
            }
            let range = BlockRange { first: op.raw.first.get(), count: op.raw.count.get() };
            op.is_data().then_some((branch, ChunkIndex(op.raw.chunk.get()), range))
        };
        batches.flat_map(|b| b.ops.iter().filter_map(range)).collect()
    }
    /// Where the bytes of a written block are now; `None`: it is not written in this view.
    #[must_use]
    pub fn bytes_at(&self, branch: BranchId, chunk: ChunkIndex, block: u32, view: View) -> Option<BytesAt> {
        let disk = self.disk.as_ref()?;
        let replica = disk.records.replica_number(branch, chunk)?;
        match disk.look(replica, block, view).bytes {
            Bytes::None => None,
            Bytes::Memory(payload) => Some(BytesAt::Memory(payload)),
            Bytes::Drive { offset, .. } => Some(BytesAt::Drive(offset)),
        }
    }
    /// Where the block's bytes lie on the drive, if they are at home (bytes from the start): for fault injection.
    #[must_use]
    pub fn home_offset(&self, branch: BranchId, chunk: ChunkIndex, block: u32) -> Option<u64> {
        self.home_offset_in(branch, chunk, block, View::Head)
    }
    /// The same as any view sees it.
    #[must_use]
    pub fn home_offset_in(&self, branch: BranchId, chunk: ChunkIndex, block: u32, view: View) -> Option<u64> {
        let disk = self.disk.as_ref()?;
        let replica = disk.records.replica_number(branch, chunk)?;
        match disk.look(replica, block, view).bytes {
            Bytes::Drive { offset, pins: crate::read::Pins::Home(_) } => Some(offset),
            _ => None,
        }
    }
    #[must_use]
    pub fn branch(&self, branch: BranchId) -> Option<BranchView> {
        let b = self.disk.as_ref()?.records.branch(branch)?;
        Some(BranchView {
            epoch: b.record.epoch,
            holder: b.record.holder,
            marks: b.record.marks,
            in_doubt: b.in_doubt,
            credits: b.credits,
        })
    }
    /// Branches in doubt, in the order of their ids: for the handshake.
    #[must_use]
    pub fn in_doubt(&self) -> Vec<BranchId> {
        let Some(d) = &self.disk else { return Vec::new() };
        d.records.sorted().iter().filter(|b| b.in_doubt).map(|b| b.record.branch).collect()
    }
    /// Incarnation, and the number of the configuration as last told.
    #[must_use]
    pub fn replica(&self, branch: BranchId, chunk: ChunkIndex) -> Option<(Incarnation, ConfigNumber)> {
        let d = self.disk.as_ref()?;
        let r = &d.records.replica(d.records.replica_number(branch, chunk)?).record;
        Some((r.incarnation, r.configuration.number))
    }
    /// All replicas, by branch and chunk.
    #[must_use]
    pub fn replicas(&self) -> Vec<HeldReplica> {
        let Some(d) = &self.disk else { return Vec::new() };
        d.records.sorted().iter().flat_map(|b| d.held(b)).collect()
    }
    /// What the newest keep-list left: its index, the least generation that is not sealed, and which are kept.
    #[must_use]
    pub fn kept(&self, branch: BranchId) -> Option<(ListIndex, Generation, Generations)> {
        let b = self.disk.as_ref()?.records.branch(branch)?;
        Some((b.record.list.index, b.record.list.open, b.kept.clone()))
    }
    /// Would a reader without a session be served this view?
    #[must_use]
    pub fn serves(&self, branch: BranchId, chunk: ChunkIndex, g: Generation) -> bool {
        let Some(d) = &self.disk else { return false };
        let replica = d.records.replica_number(branch, chunk);
        replica.is_some_and(|n| d.serves(n, g, self.bugs().serve_incomplete))
    }
    /// Physical extents of a replica: extent, generation. Those that an entry on its way frees are not among them.
    #[must_use]
    pub fn extents(&self, branch: BranchId, chunk: ChunkIndex) -> Vec<(u32, Generation)> {
        let Some(d) = &self.disk else { return Vec::new() };
        let Some(n) = d.records.replica_number(branch, chunk) else { return Vec::new() };
        let homes = d.records.replica(n).index.range(0, u32::MAX);
        let each = |(e, newest)| d.chain(newest).into_iter().map(move |px| (e, px));
        homes.flat_map(each).filter(|h| !is_bit(h.1)).map(|(e, px)| (e, d.table.get(px).generation)).collect()
    }
    /// Whole zero extents of a replica that take no space: extent, generation.
    #[must_use]
    pub fn zero_extents(&self, branch: BranchId, chunk: ChunkIndex) -> Vec<(u32, Generation)> {
        let Some(d) = &self.disk else { return Vec::new() };
        let Some(n) = d.records.replica_number(branch, chunk) else { return Vec::new() };
        let homes = d.records.replica(n).index.range(0, u32::MAX);
        let each = |(e, newest)| d.chain(newest).into_iter().map(move |px| (e, px));
        homes.flat_map(each).filter(|h| is_bit(h.1)).map(|(e, px)| (e, d.table.get(px).generation)).collect()
    }
    /// Physical and whole zero extents of a replica that no view sees and that are not freed yet.
    #[must_use]
    pub fn unseen_extents(&self, branch: BranchId, chunk: ChunkIndex) -> usize {
        let Some(d) = &self.disk else { return 0 };
        let Some(n) = d.records.replica_number(branch, chunk) else { return 0 };
        let homes = d.records.replica(n).index.range(0, u32::MAX);
        homes.map(|(extent, _)| self.unseen(n, extent).len()).sum()
    }
    /// Number of the resync attempt whose target a replica is.
    #[must_use]
    pub fn attempt(&self, branch: BranchId, chunk: ChunkIndex) -> Option<u64> {
        let d = self.disk.as_ref()?;
        let r = d.records.replica(d.records.replica_number(branch, chunk)?);
        r.attempt.as_ref().map(|a| a.number)
    }
    #[must_use]
    pub fn usage(&self) -> Usage {
        let Some(d) = &self.disk else { return Usage::default() };
        let reserved = u32::try_from(self.intake.larges.len()).unwrap_or(u32::MAX);
        Usage {
            extents: d.table.len(),
            free_extents: d.table.free_count(),
            reserved_extents: reserved,
            journal_used: d.journal.used(),
            journal_window: d.journal.window(),
            overlay_blocks: d.overlay.len(),
            waiting: self.intake.waiting.len() + self.intake.larges.len() + self.intake.blocked.len(),
        }
    }
    /// True if nothing is under way and nothing remains to be done: all blocks home, the ring empty.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let Some(d) = &self.disk else { return false };
        self.intake.is_empty()
            && self.jobs.is_empty()
            && self.sweeper.is_idle()
            && d.overlay.len() == 0
            && d.journal.first_seq() == d.journal.next_seq
            && d.writing.is_none()
    }

    /// Checks everything that can be checked from memory; panics on a broken invariant. Dear: for tests.
    pub fn check(&self) {
        let Some(d) = &self.disk else { return };
        if !self.is_open() {
            return;
        }
        let j = &d.journal;
        assert!(j.tail <= j.head && j.head - j.tail <= j.window(), "the ring holds what it says");
        j.check_replay();
        assert!(j.flushed <= j.applied && j.applied < j.next_seq, "flushed <= applied <= sealed");
        let mut live: proto::Map<u64, u32> = proto::Map::default();
        for (px, dirty) in d.overlay.iter() {
            let usage = d.table.get(px).usage;
            assert!(matches!(usage, Use::Owned | Use::Fresh), "overlay of extent {px} which is {usage:?}");
            assert_eq!(dirty.count as usize, d.overlay.of(px).count(), "blocks are counted");
            for b in d.overlay.of(px) {
                assert!(b.seq <= j.applied, "the overlay holds what has taken effect");
                assert!(!matches!(b.way, Way::Written(s) if s > self.stamp), "stamps are of the past");
                *live.entry(b.seq).or_insert(0) += 1;
            }
        }
        for seq in j.first_seq()..j.next_seq {
            let b = j.get(seq).expect("the ring has no holes");
            assert_eq!(b.live, live.remove(&seq).unwrap_or(0), "blocks of batch {seq}");
        }
        assert!(live.is_empty(), "blocks of batches that the ring has passed: {live:?}");
        self.check_extents();
        self.check_lists();
        let credits: u64 = d.records.branches.iter().map(|(_, b)| b.credits).sum();
        assert_eq!(credits, self.credits, "credits add up");
    }

    /// What is kept has its slots; and no sweep on its way frees what a view sees. (Windows and replicas may be ahead of the
    /// branch's list: of one that a crash cut short.)
    fn check_lists(&self) {
        let d = self.disk.as_ref().expect("the caller has looked");
        d.records.check_windows();
        d.records.check_zeroes();
        self.check_bits();
        for (_, b) in &d.records.branches {
            let list = b.record.list;
            assert!(b.list_flushed <= list.index && list.open <= list.head, "lists grow");
            for n in b.replicas.values() {
                let r = &d.records.replica(*n).record;
                assert!(r.complete < list.open || r.complete.0 == 0, "complete up to what is sealed");
            }
        }
        if self.bugs().free_kept || self.bugs().late_list_frees {
            return;
        }
        let swept = self.intake.waiting.iter().filter(|op| matches!(op.then, Then::Swept));
        for op in swept.filter(|op| d.records.is_live(op.replica)) {
            let b = d.records.branch_of(op.replica);
            let generation = Generation(op.raw.generation.get());
            assert!(generation < b.record.list.open, "what is not sealed is never swept");
            let head = b.record.list.named.then_some(b.record.list.head);
            for i in (0..512u32).filter(|i| op.raw.sums[(i / 32) as usize].get() >> (i % 32) & 1 == 1) {
                let extent = op.raw.first.get() + i;
                let px = d.find(op.replica, extent, generation).expect("held");
                let newest = d.records.replica(op.replica).index.get(extent);
                for view in b.kept.iter().chain(head) {
                    let seen = d.states(newest, View::At(view)).iter().any(|s| s.2 == px);
                    assert!(!seen, "a sweep frees what view {view} sees of extent {extent}");
                }
            }
        }
    }

    /// What the table shows of whole zero extents is what is admitted, where nothing is on its way.
    fn check_bits(&self) {
        let d = self.disk.as_ref().expect("the caller has looked");
        let mut shown = 0;
        for (number, r) in &d.records.replicas {
            let number = u32::try_from(number).expect("no more than slots");
            for (extent, newest) in r.index.range(0, u32::MAX) {
                for px in d.chain(newest).into_iter().filter(|px| is_bit(*px)) {
                    shown += 1;
                    let generation = d.table.get(px).generation;
                    let known = !d.records.is_live(number) || r.has_bit(generation, extent);
                    assert!(known || r.bits_pending > 0, "bit {extent} {generation} is admitted");
                }
            }
            let admitted = r.zeroes.values().flat_map(|w| w.bits).map(u64::count_ones).sum::<u32>() as usize;
            let visible = d.table.all_bits().filter(|px| d.table.get(*px).replica == number).count();
            assert!(
                r.bits_pending > 0 || !d.records.is_live(number) || admitted == visible,
                "bits are shown"
            );
        }
        assert_eq!(shown, d.table.bits(), "each bit is in its chain");
    }

    /// Every extent is either free, or promised, or some replica's.
    fn check_extents(&self) {
        let d = self.disk.as_ref().expect("the caller has looked");
        let mut linked = 0;
        for (number, r) in &d.records.replicas {
            for (extent, newest) in r.index.range(0, u32::MAX) {
                let mut px = newest;
                while px != NONE {
                    let e = d.table.get(px);
                    assert_eq!(e.replica as usize, number, "extent {px} is its replica's");
                    assert_eq!(u32::from(e.extent), extent, "extent {px} is where it says");
                    linked += u32::from(matches!(e.usage, Use::Owned | Use::Fresh));
                    px = e.next;
                }
            }
        }
        let [free, _, owned, _] = d.table.census();
        let freed = d.table.free_soon() - d.table.free_count();
        assert_eq!(free, d.table.free_count(), "free extents are counted");
        assert_eq!(owned, linked + freed, "what is owned is in some chunk's map, or about to be free");
        let larges = self.intake.larges.iter().filter(|(_, l)| l.op.px != NONE).count();
        let waiting = self.intake.waiting.iter().filter(|o| o.px != NONE).count();
        assert!(
            waiting + larges <= self.intake.users.values().map(|n| *n as usize).sum(),
            "users are counted"
        );
        assert!(self.intake.waiting.iter().all(|o| !matches!(o.then, Then::Flushed(_)) || o.slot.is_some()));
    }
}
