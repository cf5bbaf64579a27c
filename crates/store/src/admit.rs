//! Admission: who may do what, and the space for it. What is let in becomes an `Op`, or waits.
//!
//! The epoch is checked here, in the store's own thread, and nowhere later for small writes: what has been
//! admitted before a fence precedes the fence in the journal.

use crate::disk::entry::{ExtentKey, FLAG_LARGE, PullMasks, key_of, pull as pull_entry};
use crate::event::{Effect, IoOp, Pull, Source};
use crate::intake::{Blocked, Hold, Large};
use crate::op::{Op, Then};
use crate::store::{Job, Phase, Store};
use crate::table::{NONE, Px, is_bit};
use crate::zeroes::Way;
use proto::limits::BLOCKS_PER_EXTENT;
use proto::message::{BlockState, Reply, Request, RequestFrame, Scope};
use proto::record::RawRecord;
use proto::{BranchId, Generation, Payload, Record, RecordKind, Refusal, Version};
use zerocopy::little_endian::U32;

/// Who takes space.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purse {
    /// A guest's write with a credit.
    Credit,
    /// Discards, repairs, reconciliation: the reserve too.
    Reserve,
    /// Resync, and large overwrites, which can do without.
    Spare,
    /// A zero that it was promised to: what was kept for it is no longer counted.
    Promised,
}

impl Store {
    /// One request of a session.
    pub(crate) fn request(&mut self, source: Source, frame: RequestFrame) {
        self.sources.insert(source);
        let (token, branch) = (frame.token, frame.scope.branch);
        let version = match &frame.request {
            Request::Write { record, .. } => record.version,
            _ => Version::ZERO,
        };
        if let Err(refusal) = self.may_serve().and_then(|()| self.dispatch(source, frame)) {
            self.reply(source, token, branch, Reply::Refused { refusal, version });
        }
    }

    fn may_serve(&self) -> Result<(), Refusal> {
        match self.phase {
            Phase::Failed => Err(Refusal::DriveFailed),
            Phase::Closing(_) | Phase::Closed => Err(Refusal::Closing),
            Phase::Open if self.serving => Ok(()),
            Phase::Open | Phase::Opening(_) => Err(Refusal::DriveNotConfirmed),
        }
    }

    fn dispatch(&mut self, source: Source, frame: RequestFrame) -> Result<(), Refusal> {
        let RequestFrame { token, scope, request } = frame;
        self.note_marks(&scope);
        match request {
            Request::Write { record, payload, fresh } => {
                let want = self.check_write(&scope, &record, &payload)?;
                // A net: no session does that. (A repair writes what is there.)
                if self.disk().records.branch_of(want.replica).is_frozen(record.generation) {
                    return Err(Refusal::Invalid);
                }
                if self.intake.conflicts(&want, usize::MAX) {
                    let request = Request::Write { record, payload, fresh };
                    let blocked = Blocked::Request(source, RequestFrame { token, scope, request });
                    let period = self.intake.enter();
                    self.intake.blocked.push_back((blocked, want, period));
                    return Ok(());
                }
                self.admit_write(source, want.replica, &record, payload, fresh)
            }
            Request::Repair { record, payload, failed } => {
                let want = self.check_write(&scope, &record, &payload)?;
                self.admit_repair(source, token, &want, &record, payload, failed)
            }
            Request::Flush => {
                self.check_epoch(&scope)?;
                self.ask_flush(source, token, scope.branch);
                Ok(())
            }
            Request::Marks => self.check_epoch(&scope),
            Request::Credit { want, probe } => self.credit(source, token, &scope, want, probe),
            Request::Read { .. } | Request::Verify { .. } => {
                self.read_request(source, token, &scope, &request)
            }
            Request::Manifest { .. }
            | Request::Digest { .. }
            | Request::Map { .. }
            | Request::Changes { .. }
            | Request::Absent { .. }
            | Request::Usage => self.list_request(source, token, &scope, &request),
            Request::Lease { .. } | Request::LeaseReturn { .. } | Request::Ping => Err(Refusal::Invalid),
            request => self.record_request(source, token, &scope, request),
        }
    }

    /// The branch's present session, and nobody else.
    pub(crate) fn check_epoch(&self, scope: &Scope) -> Result<(), Refusal> {
        let stored = self.disk().records.branch(scope.branch).ok_or(Refusal::UnknownReplica)?.record.epoch;
        if scope.epoch < stored && !self.bugs().skip_epoch_check {
            return Err(Refusal::OldEpoch);
        }
        if scope.epoch > stored { Err(Refusal::NotFenced) } else { Ok(()) }
    }
    /// The replica addressed, by its incarnation.
    pub(crate) fn check_replica(&self, scope: &Scope) -> Result<u32, Refusal> {
        let records = &self.disk().records;
        let number = records.replica_number(scope.branch, scope.chunk).ok_or(Refusal::UnknownReplica)?;
        let same = records.replica(number).record.incarnation == scope.incarnation;
        if same { Ok(number) } else { Err(Refusal::UnknownReplica) }
    }
    /// Extents of a chunk of the branch.
    pub(crate) fn chunk_blocks(&self, replica: u32) -> u32 {
        self.disk().records.branch_of(replica).record.geometry.chunk_blocks()
    }

    fn check_write(&self, scope: &Scope, record: &Record, payload: &Payload) -> Result<Hold, Refusal> {
        self.check_epoch(scope)?;
        let replica = self.check_replica(scope)?;
        let ours = record.branch == scope.branch
            && record.chunk == scope.chunk
            && record.incarnation == scope.incarnation
            && record.generation >= Generation::FIRST
            && record.key.0 == 0;
        let end = record.range.first.checked_add(record.range.count).ok_or(Refusal::Invalid)?;
        let fits = record.range.count > 0 && end <= self.chunk_blocks(replica);
        if !ours || !fits || (record.kind == RecordKind::Write && !record.range.in_one_extent()) {
            return Err(Refusal::Invalid);
        }
        if !record.matches(payload) {
            return Err(Refusal::BadChecksum);
        }
        let last = end.div_ceil(BLOCKS_PER_EXTENT);
        Ok(Hold { replica, first: record.range.extent(), end: last, id: 0, drops: None })
    }

    fn admit_write(
        &mut self,
        source: Source,
        replica: u32,
        record: &Record,
        payload: Payload,
        fresh: bool,
    ) -> Result<(), Refusal> {
        if record.kind == RecordKind::Zero {
            return self.admit_zero(source, replica, record);
        }
        let extent = record.range.extent();
        let mut home = self.disk().find(replica, extent, record.generation);
        if self.bugs().write_into_sealed {
            let newest = self.disk().records.replica(replica).index.get(extent);
            home = Some(newest).filter(|px| *px != NONE && !is_bit(*px));
        }
        let purse = if fresh { Purse::Credit } else { self.purse_without(replica) };
        let whole = record.range.count == BLOCKS_PER_EXTENT;
        if whole {
            let purse = if home.is_some() { Purse::Spare } else { purse };
            if let Some(px) = self.take_extent(replica, extent, record.generation, purse) {
                self.begin_large(source, px, record, payload, u32::from(home.is_none() && fresh));
                return Ok(());
            }
        }
        let mut taken = 0;
        let px = match home {
            Some(px) => px,
            None => {
                let px =
                    self.take_extent(replica, extent, record.generation, purse).ok_or(Refusal::NoSpace)?;
                self.disk_mut().link(px);
                taken = u32::from(fresh);
                px
            }
        };
        let op = self.data_op(source, RawRecord::of(record), Some(payload), replica, px);
        self.push_data(Op { then: Then::Ack { extents: taken }, ..op });
        Ok(())
    }

    /// A free extent, if this purse may have one. Reserved, not linked.
    fn take_extent(&mut self, replica: u32, extent: u32, generation: Generation, purse: Purse) -> Option<Px> {
        let free = u64::from(self.disk().table.free_count());
        let branch = self.disk().records.replica(replica).branch as usize;
        let own = self.disk().records.branches[branch].credits;
        let promised = self.promised();
        let kept = match purse {
            Purse::Credit if own > 0 => 0,
            Purse::Promised => 0,
            Purse::Credit | Purse::Reserve => self.credits + promised,
            Purse::Spare => self.credits + promised + self.reserve(),
        };
        if free <= kept {
            return None;
        }
        if purse == Purse::Credit && own > 0 {
            self.credits -= 1;
            self.disk_mut().records.branches[branch].credits -= 1;
        }
        self.disk_mut().table.reserve(replica, extent, generation)
    }

    /// Of a write without a credit. The reserve is for those who must have every write: a target of a resync is let go
    /// instead.
    fn purse_without(&self, replica: u32) -> Purse {
        if self.disk().records.replica(replica).attempt.is_some() { Purse::Spare } else { Purse::Reserve }
    }

    /// Extents that no credit is given for.
    pub(crate) fn reserve(&self) -> u64 {
        u64::from(self.disk().layout.extents / 128).clamp(2, 1024)
    }

    /// An operation on blocks of a replica, with nothing owed yet.
    pub(crate) fn data_op(
        &mut self,
        source: Source,
        mut raw: RawRecord,
        payload: Option<Payload>,
        replica: u32,
        px: Px,
    ) -> Op {
        if px != NONE {
            raw.home = U32::new(px + 1);
            self.intake.use_home(px);
        }
        let period = self.intake.enter();
        Op { raw, payload, slot: None, bits: None, replica, px, hold: 0, period, source, then: Then::Nothing }
    }

    /// The entry takes its place in the order of the journal.
    pub(crate) fn push_data(&mut self, op: Op) {
        let written = matches!(op.raw.kind, proto::record::KIND_WRITE | proto::record::KIND_ZERO);
        let generation = Generation(op.raw.generation.get());
        if written
            && let Some(a) = &mut self.disk_mut().records.replica_mut(op.replica).attempt
            && generation >= a.generation
        {
            a.written.insert(op.raw.first.get(), op.raw.count.get());
        }
        self.intake.waiting.push_back(op);
    }

    fn begin_large(&mut self, source: Source, px: Px, record: &Record, payload: Payload, extents: u32) {
        let replica = self.disk().table.get(px).replica;
        let mut raw = RawRecord::of(record);
        raw.flags = FLAG_LARGE;
        let op = self.data_op(source, raw, None, replica, px);
        let extent = record.range.extent();
        let hold = self.intake.hold(replica, extent, extent + 1);
        let epoch = self.disk().records.branch_of(replica).record.epoch;
        let op = Op { then: Then::Ack { extents }, hold, ..op };
        let id = self.intake.larges.insert(Large { op, epoch, doomed: false });
        let offset = self.disk().layout.data(px, 0);
        self.flusher.bytes += payload.len() as u64;
        self.io(Job::Large(id), IoOp::Write { offset, pieces: vec![payload] });
    }

    /// The data of a large write is at home: its entry joins, unless its time is over.
    pub(crate) fn large_done(&mut self, id: usize) {
        let large = self.intake.larges.remove(id);
        let raw = &large.op.raw;
        let (branch, chunk) = (BranchId(raw.branch.get()), proto::ChunkIndex(raw.chunk.get()));
        let known = self.disk().records.replica_number(branch, chunk) == Some(large.op.replica);
        if large.doomed && !(known && self.bugs().late_join) {
            self.drop_op(large.op);
        } else {
            self.push_data(large.op);
        }
    }

    /// Larges that may not join any more: their extents are nobody's business from now on.
    pub(crate) fn doom_larges(&mut self, over: impl Fn(&Large) -> bool) {
        let doomed: Vec<usize> =
            self.intake.larges.iter().filter(|(_, l)| !l.doomed && over(l)).map(|(id, _)| id).collect();
        for id in doomed {
            let l = &mut self.intake.larges[id];
            l.doomed = true;
            let hold = l.op.hold;
            self.intake.release(hold);
        }
    }

    /// An operation comes to nothing.
    pub(crate) fn drop_op(&mut self, op: Op) {
        self.intake.leave(op.period);
        self.intake.release(op.hold);
        if op.px == NONE {
            return;
        }
        let last = self.intake.unuse_home(op.px);
        let disk = self.disk_mut();
        if last && disk.table.get(op.px).usage == crate::table::Use::Reserved {
            if !op.is_large() {
                disk.unlink(op.px);
            }
            disk.table.unreserve(op.px);
        }
    }

    /// Where something lies beneath, or may come to lie there, a zero must be told from nothing: whole extents get bits,
    /// parts take an extent. So do whole ones, if there is no slot for their bits.
    fn admit_zero(&mut self, source: Source, replica: u32, record: &Record) -> Result<(), Refusal> {
        let (range, generation) = (record.range, record.generation);
        let mut promised = self.redeem(replica, generation, range);
        let ways = self.disk().ways(replica, generation, range);
        let of = |way: Way| ways.iter().filter(|w| w.1 == way).map(|w| w.0).collect::<Vec<u32>>();
        let (mut bits, mut needy) = (of(Way::Whole), of(Way::Part));
        if !self.may_set(replica, generation, &bits) {
            needy.append(&mut bits);
        }
        bits.extend(of(Way::Bit));
        let mut made: Vec<(u32, Px)> = Vec::new();
        for extent in needy {
            let purse = if promised > 0 { Purse::Promised } else { self.purse_without(replica) };
            promised = promised.saturating_sub(1);
            let Some(px) = self.take_extent(replica, extent, generation, purse) else {
                for (_, px) in made {
                    self.disk_mut().table.unreserve(px);
                }
                return Err(Refusal::NoSpace);
            };
            made.push((extent, px));
        }
        self.set_bits(replica, generation, &bits, record.version, false);
        for (extent, px) in made {
            self.disk_mut().link(px);
            let first = range.first.max(extent * BLOCKS_PER_EXTENT);
            let last = range.end().min((extent + 1) * BLOCKS_PER_EXTENT);
            let mut raw = RawRecord::of(record);
            raw.first = U32::new(first);
            raw.count = U32::new(last - first);
            let op = self.data_op(source, raw, None, replica, px);
            self.push_data(op);
        }
        let op = self.data_op(source, RawRecord::of(record), None, replica, NONE);
        self.push_data(Op { then: Then::Ack { extents: 0 }, ..op });
        Ok(())
    }

    /// 5.8: one block again, if the extent is still what failed and nothing is on its way to it.
    fn admit_repair(
        &mut self,
        source: Source,
        token: u64,
        want: &Hold,
        record: &Record,
        payload: Payload,
        failed: Version,
    ) -> Result<(), Refusal> {
        if record.kind != RecordKind::Write || record.range.count != 1 {
            return Err(Refusal::Invalid);
        }
        let disk = self.disk();
        let px = disk.find(want.replica, want.first, record.generation).ok_or(Refusal::Changed)?;
        let quiet = !self.intake.conflicts(want, usize::MAX) && !self.intake.users.contains_key(&px);
        if disk.version(px) != failed || !quiet {
            return Err(Refusal::Changed);
        }
        let op = self.data_op(source, RawRecord::of(record), Some(payload), want.replica, px);
        self.push_data(Op { then: Then::Repaired { token }, ..op });
        Ok(())
    }

    /// What a resync's target pulled.
    pub(crate) fn pull(&mut self, pull: Pull) {
        let token = pull.token;
        if let Err(refusal) = self.may_serve().and_then(|()| self.try_pull(pull)) {
            self.effect(Effect::Pulled { token, result: Err(refusal) });
        }
    }

    fn try_pull(&mut self, pull: Pull) -> Result<(), Refusal> {
        let records = &self.disk().records;
        let replica = records.replica_number(pull.branch, pull.chunk).ok_or(Refusal::UnknownReplica)?;
        let r = records.replica(replica);
        let attempt = r.attempt.as_ref().ok_or(Refusal::OldAttempt)?;
        let epoch = records.branch_of(replica).record.epoch;
        if (attempt.number, epoch, attempt.source) != (pull.attempt, pull.epoch, pull.source) {
            return Err(Refusal::OldAttempt);
        }
        let incarnation = r.record.incarnation;
        let want = Hold { replica, first: pull.extent, end: pull.extent + 1, id: 0, drops: None };
        if self.intake.conflicts(&want, usize::MAX) {
            let period = self.intake.enter();
            self.intake.blocked.push_back((Blocked::Pull(pull), want, period));
            return Ok(());
        }
        let (mut masks, sums) = self.check_pull(replica, &pull)?;
        let attempt = self.disk().records.replica(replica).attempt.as_ref().expect("looked at above");
        // What was written since the attempt began is of the head: older views do not see it.
        let head = pull.generation == attempt.generation;
        let newer = attempt.written.of_extent(pull.extent);
        let newer = if head && !self.bugs().pull_over_newer { newer } else { 0 };
        let payload = without(&pull.payload, masks.data, newer);
        masks =
            PullMasks { data: masks.data & !newer, zero: masks.zero & !newer, absent: masks.absent & !newer };
        let px = self.pull_home(replica, &pull, masks)?;
        self.clear_between(replica, incarnation, &pull, masks.absent);
        if masks.absent != 0 {
            // Where the source is absent this bit must not show. What it stands for else is pulled, or was written meanwhile
            // and has its home: a zero of a part takes one while an attempt runs.
            self.clear_bits(replica, pull.generation, &[pull.extent]);
        }
        let mut kept = [proto::record::Sum(0); 16];
        for b in 0..16 {
            if masks.data >> b & 1 == 1 {
                kept[b] = sums[b];
            }
        }
        let key = pull_key(&pull, incarnation, pull.generation);
        let raw = pull_entry(&key, pull.version, masks, &kept);
        debug_assert_eq!(key_of(&raw), key);
        let op = self.data_op(pull.source, raw, payload, replica, px);
        let then = Then::Pulled { token: pull.token, written: masks.all().count_ones() };
        self.push_data(Op { then, ..op });
        Ok(())
    }

    /// Where the source is absent, nothing of ours may show through: what older generations hold since the view before
    /// nobody has acknowledged. An entry for each of them, before the pull's own.
    fn clear_between(&mut self, replica: u32, incarnation: proto::Incarnation, pull: &Pull, absent: u16) {
        if absent != 0 {
            // The rest of such a bit is hidden by what is pulled.
            let bits = self.disk().records.replica(replica);
            for g in bits.bits_between(pull.after, pull.generation, pull.extent) {
                self.clear_bits(replica, g, &[pull.extent]);
            }
        }
        let disk = self.disk();
        let chain = disk.chain(disk.records.replica(replica).index.get(pull.extent));
        let between = chain.into_iter().filter(|px| {
            let g = disk.table.get(*px).generation;
            g > pull.after && g < pull.generation && !is_bit(*px)
        });
        // An entry that is on its way to one of them is not in the masks yet.
        let held =
            |px: &Px| absent & if self.intake.users.contains_key(px) { u16::MAX } else { disk.present(*px) };
        let cleared: Vec<(Px, u16)> = between.map(|px| (px, held(&px))).filter(|c| c.1 != 0).collect();
        for (px, absent) in cleared {
            let (generation, version) = (self.disk().table.get(px).generation, self.disk().version(px));
            let masks = PullMasks { absent, ..PullMasks::default() };
            let key = pull_key(pull, incarnation, generation);
            let raw = pull_entry(&key, version, masks, &[proto::record::Sum(0); 16]);
            let op = self.data_op(pull.source, raw, None, replica, px);
            self.push_data(op);
        }
    }

    /// Where pulled blocks will live; none if there is nothing to write down, or a bit says it all.
    fn pull_home(&mut self, replica: u32, pull: &Pull, masks: PullMasks) -> Result<Px, Refusal> {
        let (extent, generation) = (pull.extent, pull.generation);
        if let Some(px) = self.disk().find(replica, extent, generation) {
            return Ok(px);
        }
        let disk = self.disk();
        let bit = disk.records.replica(replica).has_bit(generation, extent);
        let beneath = bit
            || disk.has_beneath(replica, extent, generation)
            || disk.records.branch_of(replica).record.parent.is_some();
        if masks.data == 0 && !(masks.zero != 0 && beneath) {
            return Ok(NONE);
        }
        if masks.zero == u16::MAX && (bit || self.may_set(replica, generation, &[extent])) {
            self.set_bits(replica, generation, &[extent], pull.version, false);
            return Ok(NONE);
        }
        let px = self.take_extent(replica, extent, generation, Purse::Spare).ok_or(Refusal::NoSpace)?;
        self.disk_mut().link(px);
        Ok(px)
    }

    /// The 16 blocks' states as masks, and their sums, checked against the bytes.
    fn check_pull(
        &self,
        replica: u32,
        pull: &Pull,
    ) -> Result<(PullMasks, [proto::record::Sum; 16]), Refusal> {
        if pull.extent >= self.chunk_blocks(replica) / BLOCKS_PER_EXTENT
            || pull.generation < Generation::FIRST
            || pull.after >= pull.generation
        {
            return Err(Refusal::Invalid);
        }
        let mut masks = PullMasks::default();
        let mut sums = [proto::record::Sum(0); 16];
        let (mut block, mut data) = (0u32, 0usize);
        for run in &pull.runs {
            for _ in 0..run.count {
                if block >= BLOCKS_PER_EXTENT {
                    return Err(Refusal::Invalid);
                }
                let bit = 1u16 << block;
                match run.state {
                    BlockState::Data => {
                        masks.data |= bit;
                        let sum = *pull.sums.get(data).ok_or(Refusal::Invalid)?;
                        let ok = data < pull.payload.blocks()
                            && proto::record::Sum::of(pull.payload.block(data)) == sum;
                        if !ok {
                            return Err(Refusal::BadChecksum);
                        }
                        sums[block as usize] = sum;
                        data += 1;
                    }
                    BlockState::Zero => masks.zero |= bit,
                    BlockState::Absent => masks.absent |= bit,
                    BlockState::Bad => return Err(Refusal::BadBlock),
                }
                block += 1;
            }
        }
        let whole = block == BLOCKS_PER_EXTENT && data == pull.payload.blocks();
        if whole { Ok((masks, sums)) } else { Err(Refusal::Invalid) }
    }

    /// A hold has gone: those that waited for it go on, in their order.
    pub(crate) fn unblock(&mut self) {
        while std::mem::take(&mut self.intake.retry) {
            let mut at = 0;
            while at < self.intake.blocked.len() {
                let want = self.intake.blocked[at].1;
                if self.intake.conflicts(&want, at) {
                    at += 1;
                    continue;
                }
                let (blocked, _, period) = self.intake.blocked.remove(at).expect("just looked at");
                // What waits further behind must not hold this one up again: it is admitted as if alone.
                let rest = self.intake.blocked.split_off(at);
                match blocked {
                    Blocked::Request(source, frame) => self.request(source, frame),
                    Blocked::Pull(pull) => self.pull(pull),
                }
                self.intake.blocked.extend(rest);
                self.intake.leave(period);
            }
        }
    }

    /// The connection is gone: what it sent and no batch holds comes to nothing, and nothing is answered on it.
    pub(crate) fn source_closed(&mut self, source: Source) {
        self.sources.remove(&source);
        self.flusher.source_closed(source);
        if self.disk.is_none() || matches!(self.phase, Phase::Opening(_)) {
            return;
        }
        self.doom_larges(|l| l.op.source == source);
        self.drop_waiting(|op| op.source == source);
        self.drop_blocked(|b, _| b.source() == source);
        self.void_credits(|b| b.creditor == source);
        self.break_promises(|s, _| s == source);
        for (_, r) in &mut self.disk_mut().records.replicas {
            if r.attempt.as_ref().is_some_and(|a| a.source == source) {
                r.attempt = None;
            }
        }
    }
    pub(crate) fn drop_waiting(&mut self, over: impl Fn(&Op) -> bool) {
        let (gone, kept): (Vec<Op>, Vec<Op>) =
            self.intake.waiting.drain(..).partition(|op| op.is_data() && over(op));
        self.intake.waiting = kept.into();
        for op in gone {
            self.drop_op(op);
        }
    }
    pub(crate) fn drop_blocked(&mut self, over: impl Fn(&Blocked, &Hold) -> bool) {
        let all = std::mem::take(&mut self.intake.blocked);
        let (gone, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|(b, want, _)| over(b, want));
        self.intake.blocked = kept.into();
        self.intake.retry = !self.intake.blocked.is_empty();
        for (blocked, _, period) in gone {
            self.intake.leave(period);
            if let Blocked::Pull(pull) = blocked {
                self.effect(Effect::Pulled { token: pull.token, result: Err(Refusal::OldAttempt) });
            }
        }
    }

    /// Marks that a frame of the present session carries.
    fn note_marks(&mut self, scope: &Scope) {
        let now = self.now;
        let Some(b) = self.disk_mut().records.branch_mut(scope.branch) else { return };
        let mut raised = b.record.marks;
        raised.raise(scope.marks);
        if scope.epoch != b.record.epoch || raised == b.record.marks {
            return;
        }
        b.record.marks = raised;
        if !std::mem::replace(&mut b.marks_dirty, true) {
            self.marks_dirty.push_back(scope.branch);
            self.marks_since.get_or_insert(now);
        }
    }
    pub(crate) fn branch_epoch(&self, branch: BranchId) -> Option<proto::Epoch> {
        self.disk().records.branch(branch).map(|b| b.record.epoch)
    }
}

fn pull_key(pull: &Pull, incarnation: proto::Incarnation, generation: Generation) -> ExtentKey {
    ExtentKey { branch: pull.branch, chunk: pull.chunk, incarnation, extent: pull.extent, generation }
}

/// The data blocks of an extent's pull without those that are newer here.
fn without(payload: &Payload, data: u16, newer: u16) -> Option<Payload> {
    if data & !newer == 0 {
        return None;
    }
    if data & newer == 0 {
        return Some(payload.clone());
    }
    let mut bytes = Vec::new();
    let blocks = (0..16).filter(|b| data >> b & 1 == 1);
    for (i, _) in blocks.enumerate().filter(|(_, b)| newer >> b & 1 == 0) {
        bytes.extend_from_slice(payload.block(i));
    }
    Some(Payload::copy_of(&bytes))
}
