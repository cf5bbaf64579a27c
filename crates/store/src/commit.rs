//! From waiting to acknowledged: batches are sealed, written, and take effect in their order.

use crate::disk::entry::{
    KIND_DROP, KIND_MARKS, KIND_PULL, KIND_SLOT, PullMasks, marks as marks_entry, version_of,
};
use crate::disk::header::{Header, UNITS_MAX, header_pages};
use crate::disk::page::States;
use crate::disk::superblock::DROPPED_MAX;
use crate::event::{IoOp, Notice, Source};
use crate::journal::{Batch, IN_FLIGHT};
use crate::op::{Op, Then};
use crate::overlay::{Block, What};
use crate::store::{Disk, Job, Store};
use crate::table::{NONE, Px, Use, is_bit};
use proto::limits::{BLOCK, BLOCKS_PER_EXTENT, MARKS_EVERY};
use proto::message::{Ack, Reply};
use proto::record::{KIND_WRITE, KIND_ZERO, RECORD_BYTES, RawRecord};
use proto::{BranchId, ChunkIndex, Generation, Version};

/// Blocks of payload in one batch: 512 KiB.
const PAYLOAD_MAX: usize = 128;
/// Marks entries in one batch.
const MARKS_MAX: usize = 24;

impl Store {
    pub(crate) fn can_seal(&self) -> bool {
        self.disk.as_ref().is_some_and(|d| d.journal.in_flight < IN_FLIGHT) && !self.intake.stalled
    }

    /// Everything that waits goes into batches, as far as there is room.
    pub(crate) fn seal(&mut self) {
        while self.disk().journal.in_flight < IN_FLIGHT {
            let due = self.marks_since.is_some_and(|t| t + MARKS_EVERY <= self.now);
            if (self.intake.waiting.is_empty() && !due) || !self.seal_one() {
                break;
            }
        }
    }

    /// How many of the waiting operations fit into one batch, and their units and blocks.
    fn fit(&self, mut units: usize) -> (usize, usize, usize) {
        let room = self.disk().layout.batch_pages as usize;
        let dropped = self.disk().superblock.dropped.len();
        let mut larges = dropped + self.disk().journal.unflushed_larges as usize;
        let (mut n, mut blocks) = (0, 0);
        for op in &self.intake.waiting {
            let (u, b) = (units + op.units(), blocks + op.blocks());
            if u > UNITS_MAX || b > PAYLOAD_MAX || header_pages(u) + b > room {
                break;
            }
            if op.is_large() {
                larges += 1;
                if larges > DROPPED_MAX / 2 {
                    break;
                }
            }
            (n, units, blocks) = (n + 1, u, b);
        }
        (n, units, blocks)
    }

    fn seal_one(&mut self) -> bool {
        let marks = self.take_marks();
        let (n, units, blocks) = self.fit(marks.len());
        if n == 0 && !self.intake.waiting.is_empty() {
            // Only the bound on unflushed large entries holds the first one up: a flush helps.
            self.flusher.wanted = true;
            self.intake.stalled = true;
        }
        let pages = header_pages(units) + blocks;
        let start = self.disk().journal.room(pages as u64);
        if units == 0 || start.is_none() {
            self.return_marks(&marks);
            self.flusher.wanted |= self.disk().journal.lags();
            if units > 0 && !std::mem::replace(&mut self.intake.stalled, true) {
                self.notice(Notice::JournalFull);
            }
            return false;
        }
        self.marks_since = (!self.marks_dirty.is_empty()).then_some(self.now);
        let ops: Vec<Op> = self.intake.waiting.drain(..n).collect();
        self.write_batch(start.expect("looked at above"), &marks, ops, units, blocks);
        true
    }

    /// Marks that have risen, of some branches.
    fn take_marks(&mut self) -> Vec<(BranchId, RawRecord)> {
        let mut taken = Vec::new();
        while taken.len() < MARKS_MAX
            && let Some(id) = self.marks_dirty.pop_front()
        {
            if let Some(b) = self.disk_mut().records.branch_mut(id) {
                b.marks_dirty = false;
                taken.push((id, marks_entry(id, b.slot, b.record.marks)));
            }
        }
        taken
    }
    fn return_marks(&mut self, marks: &[(BranchId, RawRecord)]) {
        for (id, _) in marks.iter().rev() {
            if let Some(b) = self.disk_mut().records.branch_mut(*id) {
                b.marks_dirty = true;
                self.marks_dirty.push_front(*id);
            }
        }
    }

    fn write_batch(
        &mut self,
        position: u64,
        marks: &[(BranchId, RawRecord)],
        mut ops: Vec<Op>,
        units: usize,
        blocks: usize,
    ) {
        let disk = self.disk.as_mut().expect("opened");
        let seq = disk.journal.next_seq;
        let mut homes = Vec::with_capacity(ops.len());
        for op in &ops {
            if op.px != NONE {
                homes.push(op.px);
            }
        }
        for (_, raw) in marks {
            disk.record_pages.touch(Disk::record_page(raw.home.get() - 1), seq);
        }
        let header = Header {
            seq,
            open: disk.superblock.open,
            position,
            prev: disk.journal.crc,
            flushed: disk.journal.flushed,
            payload_blocks: u32::try_from(blocks).expect("at most PAYLOAD_MAX"),
        };
        let (head, crc) = header.encode(disk.drive, units, |bytes| fill_units(bytes, marks, &ops));
        disk.index.add(seq, &head.bytes()[..(units + 1) * RECORD_BYTES]);
        let pages = (head.blocks() + blocks) as u64;
        let mut pieces = Vec::with_capacity(1 + ops.len());
        pieces.push(head);
        pieces.extend(ops.iter_mut().filter_map(|op| op.payload.take()));
        let larges = ops.iter().map(|op| u32::from(op.is_large())).sum();
        let header = pages - blocks as u64;
        let batch = Batch { homes, ops, larges, ..Batch::new(position, pages, header, crc) };
        disk.journal.push(batch);
        self.checkpoint.batch_sealed(self.now);
        disk.journal.in_flight += 1;
        let offset = disk.layout.journal(position);
        for (id, raw) in marks {
            let durable = u64::from(raw.sums[1].get()) | u64::from(raw.sums[2].get()) << 32;
            let durable = Version::new(proto::Epoch(raw.sums[0].get()), durable);
            self.marks_stored.push_back((seq, *id, durable));
        }
        self.flusher.bytes += pages * BLOCK as u64;
        self.io(Job::Batch(seq), IoOp::Write { offset, pieces });
        if self.bugs().ack_before_journal {
            self.acknowledge(seq);
        }
    }

    /// A journal write has completed: it and what waited for it takes effect, in order.
    pub(crate) fn batch_done(&mut self, seq: u64) {
        let stamp = self.stamp;
        let journal = &mut self.disk_mut().journal;
        journal.in_flight -= 1;
        journal.get_mut(seq).stamp = Some(stamp);
        if self.bugs().ack_without_prefix {
            self.acknowledge(seq);
        }
        loop {
            let journal = &self.disk().journal;
            let next = journal.applied + 1;
            if journal.get(next).is_none_or(|b| b.stamp.is_none()) {
                break;
            }
            self.apply(next);
        }
    }

    fn apply(&mut self, seq: u64) {
        let batch = self.disk_mut().journal.get_mut(seq);
        let mut at = batch.position + batch.header;
        let mut ops = std::mem::take(&mut batch.ops);
        self.disk_mut().journal.applied = seq;
        for op in &mut ops {
            self.apply_op(op, seq, at);
            at += op.blocks() as u64;
        }
        self.answer_ops(ops, seq);
        // A ring that had no room may have some for smaller ones; and flushes may be owed.
        self.intake.stalled = false;
    }

    fn apply_op(&mut self, op: &mut Op, seq: u64, position: u64) {
        match op.raw.kind {
            KIND_WRITE if op.is_large() => self.apply_large(op, seq),
            KIND_WRITE => {
                if self.bugs().supersede_sealed {
                    self.disk_mut().supersede_older(op, seq);
                }
                self.disk_mut().apply_small(op, seq, position);
                self.look_beneath(op.px);
            }
            KIND_ZERO => self.apply_zero(op, seq),
            KIND_PULL => self.apply_pull(op, seq, position),
            KIND_DROP => self.apply_drop(op, seq),
            KIND_SLOT => {
                if op.replica != NONE {
                    self.apply_delete(op.replica, seq);
                }
                if let Some(change) = op.bits.take() {
                    self.apply_bits(&change, seq);
                }
                let image = op.slot.take().expect("a slot's entry has its bytes");
                self.disk_mut().records.slot_entered(seq, op.raw.home.get() - 1, image);
            }
            _ => {}
        }
        if op.px != NONE {
            self.intake.unuse_home(op.px);
        }
        self.intake.release(op.hold);
        self.intake.leave(op.period);
    }

    fn apply_large(&mut self, op: &Op, seq: u64) {
        let late_join = self.bugs().late_join;
        let disk = self.disk.as_mut().expect("opened");
        let (extent, generation) =
            (op.raw.first.get() / BLOCKS_PER_EXTENT, Generation(op.raw.generation.get()));
        let old = disk.find(op.replica, extent, generation);
        let newer = |px: Px| disk.table.get(px).usage == Use::Reserved || self.intake.users.contains_key(&px);
        if old.is_some_and(newer) {
            assert!(late_join, "nothing newer waits for an extent that a large write holds");
            disk.table.unreserve(op.px);
            return;
        }
        if let Some(px) = old {
            self.free_extent(px, seq);
        }
        let disk = self.disk_mut();
        disk.table.own(op.px, seq);
        let e = disk.table.get_mut(op.px);
        e.states = States::ALL_DATA;
        e.sums = op.raw.sums.map(|s| s.get());
        e.set_version(version_of(&op.raw));
        disk.link(op.px);
        self.look_beneath(op.px);
    }

    /// What a home hides from now on: older generations, and the bit of its own.
    fn look_beneath(&mut self, px: Px) {
        let next = self.disk().table.get(px).next;
        if is_bit(next) {
            self.checkpoint.empty.push_back(next);
        }
        self.sweep_beneath(px);
    }

    fn apply_zero(&mut self, op: &Op, seq: u64) {
        let (first, end) = (op.raw.first.get(), op.raw.first.get() + op.raw.count.get());
        let (generation, version) = (Generation(op.raw.generation.get()), version_of(&op.raw));
        let forget = self.bugs().forget_discards;
        let disk = self.disk_mut();
        let index = &disk.records.replica(op.replica).index;
        let found: Vec<(u32, Px)> = index
            .range(first / BLOCKS_PER_EXTENT, end.div_ceil(BLOCKS_PER_EXTENT))
            .filter_map(|(extent, _)| Some((extent, disk.table.find(index, extent, generation)?)))
            .filter(|(_, px)| *px == op.px || disk.table.get(*px).usage != Use::Reserved)
            .collect();
        for (extent, px) in found {
            let from = first.saturating_sub(extent * BLOCKS_PER_EXTENT);
            let to = (end - extent * BLOCKS_PER_EXTENT).min(BLOCKS_PER_EXTENT);
            let disk = self.disk.as_mut().expect("opened");
            disk.table.own(px, seq);
            // The report to a fence names extents by their version.
            disk.raise(px, if forget { Version::ZERO } else { version });
            for block in from..to {
                disk.put(px, Block::new(block, What::Zero, seq, version));
                self.flusher.bare.push_back((seq, px, u8::try_from(block).expect("16 blocks")));
            }
            self.sweep_beneath(px);
        }
    }

    fn apply_pull(&mut self, op: &Op, seq: u64, position: u64) {
        if op.px == NONE {
            return;
        }
        let masks = PullMasks::of(&op.raw);
        let version = version_of(&op.raw);
        let disk = self.disk.as_mut().expect("opened");
        disk.table.own(op.px, seq);
        let home = disk.table.get(op.px).version();
        let d = disk.overlay.enter(op.px, home);
        d.version = if masks.is_whole() { version } else { d.version.max(version) };
        let mut piece = 0_u64;
        for block in (0..BLOCKS_PER_EXTENT).filter(|b| masks.all() >> b & 1 == 1) {
            let what = match () {
                () if masks.data >> block & 1 == 1 => What::Data,
                () if masks.zero >> block & 1 == 1 => What::Zero,
                () => What::Absent,
            };
            let mut b = Block::new(block, what, seq, version);
            if what == What::Data {
                b.sum = op.raw.sums[block as usize].get();
                b.position = position + piece;
                piece += 1;
            } else {
                self.flusher.bare.push_back((seq, op.px, u8::try_from(block).expect("16 blocks")));
            }
            disk.put(op.px, b);
        }
        if masks.all() == 0 {
            disk.leave_if_empty(op.px);
        }
        self.sweep_pulled(op.px);
    }

    fn apply_drop(&mut self, op: &Op, seq: u64) {
        let generation = Generation(op.raw.generation.get());
        for i in (0..512u32).filter(|i| op.raw.sums[(i / 32) as usize].get() >> (i % 32) & 1 == 1) {
            let px = self.disk().find(op.replica, op.raw.first.get() + i, generation);
            self.free_extent(px.expect("held since it was chosen"), seq);
        }
    }

    fn apply_delete(&mut self, replica: u32, seq: u64) {
        let homes: Vec<Px> =
            self.disk().records.replica(replica).index.range(0, u32::MAX).map(|(_, px)| px).collect();
        for newest in homes {
            let mut px = newest;
            while px != NONE {
                let next = self.disk().table.get(px).next;
                if is_bit(px) {
                    self.free_bit(px)
                } else {
                    self.free_extent(px, seq)
                }
                px = next;
            }
        }
        self.disk_mut().records.bury(replica, seq);
    }

    /// An entry frees it: gone from the maps now, reused when the entry is flushed.
    fn free_extent(&mut self, px: Px, seq: u64) {
        let reuse = self.bugs().reuse_before_flush;
        let disk = self.disk_mut();
        for old in disk.overlay.clear(px) {
            disk.journal.block_superseded(old, seq);
        }
        let above = disk.above(px);
        disk.unlink(px);
        disk.table.release(px, seq);
        if reuse {
            disk.table.reuse_at_once(px);
        }
        self.look_above(above);
    }

    /// Answers of a batch that has taken effect.
    fn answer_ops(&mut self, ops: Vec<Op>, seq: u64) {
        let mut acks: Vec<(Source, Vec<Ack>)> = Vec::new();
        let drive = self.drive();
        for op in ops {
            let branch = BranchId(op.raw.branch.get());
            match op.then {
                Then::Nothing => {}
                Then::Ack { extents } => {
                    let chunk = ChunkIndex(op.raw.chunk.get());
                    let ack = Ack { branch, drive, version: version_of(&op.raw), chunk, extents };
                    match acks.iter_mut().find(|a| a.0 == op.source) {
                        Some(a) => a.1.push(ack),
                        None => acks.push((op.source, vec![ack])),
                    }
                }
                Then::Done { token } => self.reply(op.source, token, branch, Reply::Done),
                Then::Repaired { token } => {
                    let (chunk, block) = (ChunkIndex(op.raw.chunk.get()), op.raw.first.get());
                    self.notice(Notice::Repaired { branch, chunk, block });
                    self.reply(op.source, token, branch, Reply::Done);
                }
                Then::Pulled { token, written } => {
                    self.effect(crate::event::Effect::Pulled { token, result: Ok(written) });
                }
                Then::Swept => self.sweeper.flying -= 1,
                Then::Joined => self.sweeper.joining -= 1,
                Then::Flushed(answer) => self.flusher.owed.push_back((seq, *answer)),
            }
        }
        for (source, acks) in acks {
            self.reply(source, 0, BranchId(0), Reply::Acks(acks));
        }
    }

    /// Seeded bugs: acknowledges the batch although it has not taken effect.
    fn acknowledge(&mut self, seq: u64) {
        let mut early = Vec::new();
        for op in &mut self.disk_mut().journal.get_mut(seq).ops {
            if matches!(op.then, Then::Ack { .. }) {
                let then = std::mem::replace(&mut op.then, Then::Nothing);
                early.push(Op { then, raw: op.raw, source: op.source, ..Op::record(op.raw, [0; 256], 0) });
            }
        }
        self.answer_ops(early, seq);
    }
}

fn fill_units(bytes: &mut [u8], marks: &[(BranchId, RawRecord)], ops: &[Op]) {
    let mut at = 0;
    let mut put = |unit: &[u8]| {
        bytes[at..at + unit.len()].copy_from_slice(unit);
        at += unit.len();
    };
    for (_, raw) in marks {
        debug_assert_eq!(raw.kind, KIND_MARKS);
        put(&raw.to_bytes());
    }
    for op in ops {
        put(&op.raw.to_bytes());
        if let Some(slot) = &op.slot {
            put(&slot[..]);
        }
    }
    debug_assert!(at.is_multiple_of(RECORD_BYTES));
}

impl Disk {
    fn apply_small(&mut self, op: &Op, seq: u64, position: u64) {
        let version = version_of(&op.raw);
        self.table.own(op.px, seq);
        self.raise(op.px, version);
        let first = op.raw.first.get() % BLOCKS_PER_EXTENT;
        for i in 0..op.raw.count.get() {
            let mut b = Block::new(first + i, What::Data, seq, version);
            b.sum = op.raw.sums[i as usize].get();
            b.position = position + u64::from(i);
            self.put(op.px, b);
        }
    }
    /// Seeded bug `supersede_sealed`: older generations' blocks in the overlay are taken for older copies.
    fn supersede_older(&mut self, op: &Op, seq: u64) {
        let mut px = self.table.get(op.px).next;
        while px != NONE {
            for i in 0..op.raw.count.get() {
                let block = op.raw.first.get() % BLOCKS_PER_EXTENT + i;
                if self.overlay.get(px, block).is_some_and(|b| b.way == crate::overlay::Way::Pending) {
                    let (b, last) = self.overlay.remove(px, block);
                    self.journal.block_superseded(b.seq, seq);
                    if let Some(version) = last {
                        self.table.get_mut(px).set_version(version);
                    }
                }
            }
            px = self.table.get(px).next;
        }
    }
    /// The next newer home of the same extent.
    pub(crate) fn above(&self, px: Px) -> Option<Px> {
        let e = self.table.get(px);
        let mut at = self.records.replica(e.replica).index.get(u32::from(e.extent));
        while at != NONE && at != px {
            if self.table.get(at).next == px {
                return Some(at);
            }
            at = self.table.get(at).next;
        }
        None
    }
    pub(crate) fn raise(&mut self, px: Px, version: Version) {
        let home = self.table.get(px).version();
        let d = self.overlay.enter(px, home);
        d.version = d.version.max(version);
    }
    pub(crate) fn put(&mut self, px: Px, b: Block) {
        let seq = b.seq;
        let old = self.overlay.put(px, b);
        self.journal.block_in(seq, old);
    }
    fn leave_if_empty(&mut self, px: Px) {
        if let Some(d) = self.overlay.extent(px)
            && d.count == 0
        {
            let version = d.version;
            self.overlay.clear(px);
            self.table.get_mut(px).set_version(version);
        }
    }
}
