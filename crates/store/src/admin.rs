//! Requests that change records: fences, placements, attempts, configurations, doubt, deletion.
//!
//! A change is made in memory when it is admitted and its entry pushed at once, so that everything admitted
//! later sees it; it is answered when a flush covers it.

use crate::disk::entry::slot as slot_entry;
use crate::disk::page::{BranchRecord, ListRecord, ReplicaRecord};
use crate::event::{Effect, Notice, Source};
use crate::intake::Blocked;
use crate::op::{Answer, Op, Then};
use crate::records::{AttemptState, BlockSet, Branch};
use crate::store::{Phase, Store};
use proto::control::HeldReplica;
use proto::limits::REPORT_RUNS;
use proto::message::{Attempt, BranchInfo, ChunkRecord, Probe, Reply, Report, ReportedRun, Request, Scope};
use proto::{BranchId, ChunkIndex, Configuration, Generation, Incarnation, LogIndex, Marks, NodeId, Refusal};

/// Deleted replicas that are remembered.
const DELETED_MAX: usize = 65_536;

impl Store {
    pub(crate) fn record_request(
        &mut self,
        source: Source,
        token: u64,
        scope: &Scope,
        request: Request,
    ) -> Result<(), Refusal> {
        match request {
            Request::Fence { number, holder } => self.fence(source, token, scope, number, holder),
            Request::Create { info, chunks } => self.create(source, token, scope, &info, &chunks),
            Request::Configure { configuration } => self.configure(source, token, scope, configuration),
            Request::AttemptBegin { attempt } => self.attempt_begin(source, token, scope, &attempt),
            Request::AttemptEnd { number } => {
                let replica = self.check_replica(scope)?;
                let r = self.disk_mut().records.replica_mut(replica);
                if r.attempt.as_ref().is_some_and(|a| a.number == number && a.source == source) {
                    r.attempt = None;
                }
                Ok(())
            }
            Request::EndDoubt => {
                self.check_epoch(scope)?;
                let seq = self.disk().journal.next_seq;
                let b = self.disk_mut().records.branch_mut(scope.branch).ok_or(Refusal::UnknownReplica)?;
                b.record.clear_seq = seq;
                let slot = b.slot;
                let answer = Answer::DoubtEnded { source, token, branch: scope.branch };
                self.push_slot(scope.branch, slot, Then::Flushed(Box::new(answer)));
                Ok(())
            }
            _ => Err(Refusal::Invalid),
        }
    }

    /// The slot's present content becomes an entry.
    pub(crate) fn push_slot(&mut self, branch: BranchId, slot: u32, then: Then) {
        let disk = self.disk_mut();
        let bytes = disk.records.content(slot).encode();
        let period = self.intake.enter();
        self.intake.waiting.push_back(Op { then, ..Op::record(slot_entry(branch, slot), bytes, period) });
    }

    /// A newer epoch is adopted: what was admitted under an older one and is in no batch comes to nothing,
    /// attempts are over, credits void.
    fn adopt_epoch(
        &mut self,
        branch: BranchId,
        scope: &Scope,
        holder: Option<NodeId>,
    ) -> Result<(), Refusal> {
        let b = self.disk_mut().records.branch_mut(branch).ok_or(Refusal::UnknownReplica)?;
        if scope.epoch < b.record.epoch {
            return Err(Refusal::OldEpoch);
        }
        let newer = scope.epoch > b.record.epoch;
        b.record.epoch = scope.epoch;
        if newer {
            b.record.holder = NodeId(0);
        }
        if let Some(holder) = holder {
            b.record.holder = holder;
        }
        b.record.marks.raise(scope.marks);
        let replicas: Vec<u32> = b.replicas.values().copied().collect();
        if newer {
            let void = std::mem::take(&mut b.credits);
            self.credits -= void;
            self.break_promises(|_, r| replicas.contains(&r));
            self.doom_larges(|l| l.epoch < scope.epoch && replicas.contains(&l.op.replica));
            for &r in &replicas {
                self.disk_mut().records.replica_mut(r).attempt = None;
            }
            self.drop_blocked(|b, want| matches!(b, Blocked::Pull(_)) && replicas.contains(&want.replica));
        }
        Ok(())
    }

    /// Writes and pulls of these replicas that have no place in the journal's order yet come to nothing: large ones whose
    /// data is on its way, and what waits behind them.
    fn forget_waiting(&mut self, replicas: &[u32]) {
        self.doom_larges(|l| replicas.contains(&l.op.replica));
        self.drop_blocked(|_, want| replicas.contains(&want.replica));
    }

    /// 5.4. Small writes admitted before are finished: they precede the epoch in the journal.
    fn fence(
        &mut self,
        source: Source,
        token: u64,
        scope: &Scope,
        fence: u32,
        holder: NodeId,
    ) -> Result<(), Refusal> {
        self.adopt_epoch(scope.branch, scope, Some(holder))?;
        let b = self.disk_mut().records.branch_mut(scope.branch).ok_or(Refusal::UnknownReplica)?;
        let void = std::mem::take(&mut b.credits);
        let slot = b.slot;
        let replicas: Vec<u32> = b.replicas.values().copied().collect();
        self.credits -= void;
        self.break_promises(|_, r| replicas.contains(&r));
        self.forget_waiting(&replicas);
        let answer = Answer::Report { source, token, branch: scope.branch, fence };
        self.push_slot(scope.branch, slot, Then::Flushed(Box::new(answer)));
        Ok(())
    }

    fn create(
        &mut self,
        source: Source,
        token: u64,
        scope: &Scope,
        info: &BranchInfo,
        chunks: &[ChunkRecord],
    ) -> Result<(), Refusal> {
        let sound = info.branch == scope.branch
            && info.name.len() <= proto::limits::NAME_MAX
            && (proto::limits::CHUNK_SHIFT_MIN..=proto::limits::CHUNK_SHIFT_MAX)
                .contains(&info.geometry.chunk_shift);
        if !sound {
            return Err(Refusal::Invalid);
        }
        let known = self.disk().records.branch(info.branch).is_some();
        if known {
            self.adopt_epoch(info.branch, scope, None)?;
        }
        self.check_chunks(info.branch, chunks, known)?;
        for c in chunks {
            let old = self.disk().records.replica_number(info.branch, c.chunk);
            if let Some(old) = old
                && self.disk().records.replica(old).record.incarnation < c.incarnation
            {
                self.delete_replica(old, Then::Nothing);
            }
        }
        let slot = self.note_branch(scope, info);
        for c in chunks {
            self.note_chunk(info.branch, c);
        }
        // The branch's entry comes last, and with it the answer; a first one came before its chunks.
        let answer = Answer::Done { source, token, branch: info.branch };
        self.push_slot(info.branch, slot, Then::Flushed(Box::new(answer)));
        Ok(())
    }

    fn check_chunks(&self, branch: BranchId, chunks: &[ChunkRecord], known: bool) -> Result<(), Refusal> {
        let records = &self.disk().records;
        let mut slots = usize::from(!known);
        for c in chunks {
            if self.checkpoint.deleted.contains(&c.incarnation) {
                return Err(Refusal::UnknownReplica);
            }
            match records.replica_number(branch, c.chunk).map(|n| records.replica(n).record.incarnation) {
                None => slots += 1,
                Some(there) if there > c.incarnation => return Err(Refusal::UnknownReplica),
                Some(_) => {}
            }
        }
        // A replaced replica's slot comes back before it is needed again; the branch's too. Some stay free for windows of
        // kept generations: without them keep-lists could not be obeyed.
        if slots + records.spare_slots() > records.free_slots() { Err(Refusal::NoSpace) } else { Ok(()) }
    }

    fn note_branch(&mut self, scope: &Scope, info: &BranchInfo) -> u32 {
        let clear_seq = self.disk().journal.next_seq;
        let records = &mut self.disk_mut().records;
        if let Some(b) = records.branch_mut(info.branch) {
            b.record.name.clone_from(&info.name);
            b.record.geometry = info.geometry;
            b.record.generation = b.record.generation.max(info.generation);
            return b.slot;
        }
        let record = BranchRecord {
            branch: info.branch,
            epoch: scope.epoch,
            holder: NodeId(0),
            marks: scope.marks,
            clear_seq,
            generation: info.generation,
            parent: info.parent,
            geometry: info.geometry,
            name: info.name.clone(),
            list: ListRecord::default(),
        };
        let number = records.add_branch(record);
        let slot = records.branches[number as usize].slot;
        self.push_slot(info.branch, slot, Then::Nothing);
        slot
    }

    fn note_chunk(&mut self, branch: BranchId, c: &ChunkRecord) {
        let records = &mut self.disk_mut().records;
        let number = match records.replica_number(branch, c.chunk) {
            Some(n) => {
                let r = &mut records.replica_mut(n).record;
                if r.configuration.number < c.configuration.number {
                    r.configuration = c.configuration.clone();
                }
                n
            }
            None => records.add_replica(ReplicaRecord {
                branch,
                chunk: c.chunk,
                incarnation: c.incarnation,
                configuration: c.configuration.clone(),
                complete: Generation(0),
                whole: false,
            }),
        };
        let slot = records.replica(number).slot;
        self.push_slot(branch, slot, Then::Nothing);
    }

    fn configure(
        &mut self,
        source: Source,
        token: u64,
        scope: &Scope,
        c: Configuration,
    ) -> Result<(), Refusal> {
        self.check_epoch(scope)?;
        let replica = self.check_replica(scope)?;
        let r = self.disk_mut().records.replica_mut(replica);
        let slot = r.slot;
        if r.record.configuration.number < c.number {
            r.record.configuration = c;
        }
        let _ = source;
        let then = if token == 0 { Then::Nothing } else { Then::Done { token } };
        self.push_slot(scope.branch, slot, then);
        if let Some(op) = self.intake.waiting.back_mut() {
            op.source = source;
        }
        Ok(())
    }

    /// 5.3: what an older attempt or session left behind does not join any more; from here on every write of the
    /// chunk is newer than what will be pulled.
    fn attempt_begin(
        &mut self,
        source: Source,
        token: u64,
        scope: &Scope,
        attempt: &Attempt,
    ) -> Result<(), Refusal> {
        let replica = self.check_replica(scope)?;
        let target = attempt.target;
        let r = self.disk().records.replica(replica);
        if attempt.chunk != scope.chunk
            || target.incarnation != r.record.incarnation
            || target.drive != self.drive()
        {
            return Err(Refusal::Invalid);
        }
        self.adopt_epoch(scope.branch, scope, None)?;
        self.forget_waiting(&[replica]);
        self.disk_mut().records.replica_mut(replica).attempt = Some(AttemptState {
            number: attempt.number,
            source,
            generation: attempt.generation,
            layered: !attempt.views.is_empty(),
            written: BlockSet::default(),
        });
        let slot = self.disk().records.branch(scope.branch).ok_or(Refusal::UnknownReplica)?.slot;
        let answer = Answer::Done { source, token, branch: scope.branch };
        self.push_slot(scope.branch, slot, Then::Flushed(Box::new(answer)));
        Ok(())
    }

    /// Credits for new extents, and whether a range could be written without any.
    pub(crate) fn credit(
        &mut self,
        source: Source,
        token: u64,
        scope: &Scope,
        want: u32,
        probe: Option<Probe>,
    ) -> Result<(), Refusal> {
        self.check_epoch(scope)?;
        let allocated = match probe {
            None => false,
            Some(p) => {
                let replica = self.check_replica(scope)?;
                if p.range.end() > self.chunk_blocks(replica) {
                    return Err(Refusal::Invalid);
                }
                let mut extents = p.range.extent()..p.range.end().div_ceil(16);
                match p.zero {
                    true => self.promise(source, replica, p.generation, p.range),
                    false => extents.all(|e| self.disk().find(replica, e, p.generation).is_some()),
                }
            }
        };
        self.void_credits(|b| b.record.branch == scope.branch && b.creditor != source);
        let free = u64::from(self.disk().table.free_count());
        let spare = free.saturating_sub(self.credits + self.promised() + self.reserve());
        // Never all that is left: other sessions ask too, and what a resync pulls takes no credit. All credits together are
        // at most half of what is free, one at a time aside: those that nobody spends would starve every resync.
        let most = spare.div_ceil(4).min((free / 2).saturating_sub(self.credits).max(1));
        let granted = u32::try_from(most).unwrap_or(u32::MAX).min(want);
        self.credits += u64::from(granted);
        let b = self.disk_mut().records.branch_mut(scope.branch).ok_or(Refusal::UnknownReplica)?;
        b.credits += u64::from(granted);
        b.creditor = source;
        if granted < want && !std::mem::replace(&mut self.space_low, true) {
            self.notice(Notice::SpaceLow { free_extents: free });
        }
        self.reply(source, token, scope.branch, Reply::Credit { granted, allocated });
        Ok(())
    }

    /// What was granted on a connection that is gone is nobody's: its session asks anew.
    pub(crate) fn void_credits(&mut self, whose: impl Fn(&Branch) -> bool) {
        let mut void = 0;
        for (_, b) in self.disk_mut().records.branches.iter_mut().filter(|(_, b)| whose(b)) {
            void += std::mem::take(&mut b.credits);
        }
        self.credits -= void;
    }

    /// metad's order: these exact replicas, whatever came later stays.
    pub(crate) fn delete(&mut self, replicas: Vec<HeldReplica>, index: LogIndex) {
        if !matches!(self.phase, Phase::Open) || index < self.checkpoint.deleted_upto {
            return;
        }
        self.checkpoint.deleted_upto = index;
        let deleted = &mut self.checkpoint.deleted;
        deleted.extend(replicas.iter().map(|h| h.incarnation));
        while deleted.len() > DELETED_MAX {
            deleted.pop_first();
        }
        let found: Vec<u32> = replicas
            .iter()
            .filter_map(|h| {
                let n = self.disk().records.replica_number(h.branch, h.chunk)?;
                (self.disk().records.replica(n).record.incarnation == h.incarnation).then_some(n)
            })
            .collect();
        let answer = Box::new(Answer::Deleted { replicas });
        let Some((last, others)) = found.split_last() else {
            self.answer(*answer);
            return;
        };
        for n in others {
            self.delete_replica(*n, Then::Nothing);
        }
        self.delete_replica(*last, Then::Flushed(answer));
    }

    /// Unknown to requests from here on; its extents are freed when the entry takes effect.
    fn delete_replica(&mut self, number: u32, then: Then) {
        let branch = self.disk().records.replica(number).record.branch;
        let credits = self.disk().records.branch_of(number).credits;
        self.doom_larges(|l| l.op.replica == number);
        self.drop_blocked(|_, want| want.replica == number);
        self.break_promises(|_, r| r == number);
        let emptied = self.disk_mut().records.delete_replica(number);
        if self.disk().records.branch_number(branch).is_none() {
            self.credits -= credits;
        }
        let mut then = Some(then);
        for slot in emptied.into_iter().rev() {
            // The entry of the replica's own slot frees the extents and carries the answer.
            let own = self.disk().records.replica(number).slot == slot;
            let owed = if own { then.take().unwrap_or(Then::Nothing) } else { Then::Nothing };
            self.push_slot(branch, slot, owed);
            if own && let Some(op) = self.intake.waiting.back_mut() {
                op.replica = number;
            }
        }
    }

    /// A flush covers it: the answer goes out.
    pub(crate) fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Done { source, token, branch } => self.reply(source, token, branch, Reply::Done),
            Answer::Deleted { replicas } => self.effect(Effect::Deleted { replicas }),
            Answer::Kept { branch, index } => {
                if let Some(b) = self.disk_mut().records.branch_mut(branch) {
                    b.list_flushed = b.list_flushed.max(index);
                }
                self.effect(Effect::Kept { branch, index });
            }
            Answer::DoubtEnded { source, token, branch } => {
                if let Some(b) = self.disk_mut().records.branch_mut(branch) {
                    b.in_doubt = false;
                }
                self.reply(source, token, branch, Reply::Done);
            }
            Answer::Report { source, token, branch, fence } => {
                if let Some(report) = self.report(branch, fence) {
                    for part in parts(report, REPORT_RUNS) {
                        self.reply(source, token, branch, Reply::Report(part));
                    }
                } else {
                    let refusal = Refusal::UnknownReplica;
                    let version = proto::Version::ZERO;
                    self.reply(source, token, branch, Reply::Refused { refusal, version });
                }
            }
        }
    }

    /// What was written, discarded or pulled above the durable mark.
    fn report(&self, branch: BranchId, fence: u32) -> Option<Report> {
        let disk = self.disk();
        let b = disk.records.branch(branch)?;
        let Marks { durable, .. } = b.record.marks;
        let mut runs: Vec<ReportedRun> = Vec::new();
        let mut chunks: Vec<(ChunkIndex, Incarnation)> = Vec::new();
        for (chunk, number) in &b.replicas {
            let r = disk.records.replica(*number);
            chunks.push((*chunk, r.record.incarnation));
            for (extent, newest) in r.index.range(0, u32::MAX) {
                let mut px = newest;
                while px != crate::table::NONE {
                    let (version, e) = (disk.version(px), disk.table.get(px));
                    if version > durable {
                        let generation = e.generation;
                        let next =
                            ReportedRun { chunk: *chunk, first: extent, count: 1, generation, version };
                        match runs.last_mut() {
                            Some(r)
                                if *r == (ReportedRun { first: r.first, count: r.count, ..next })
                                    && r.first + r.count == extent =>
                            {
                                r.count += 1;
                            }
                            _ => runs.push(next),
                        }
                    }
                    px = e.next;
                }
            }
        }
        let free_extents = u64::from(disk.table.free_soon());
        let (in_doubt, marks) = (b.in_doubt, b.record.marks);
        Some(Report { fence, in_doubt, marks, runs, more: false, chunks, free_extents })
    }
}

/// A report of as many parts as it takes: the last one carries everything but the runs.
fn parts(mut report: Report, most: usize) -> Vec<Report> {
    let mut parts = vec![];
    while !report.runs.is_empty() && report.runs.len() + report.chunks.len() > most {
        let rest = report.runs.split_off(report.runs.len().min(most));
        let runs = std::mem::replace(&mut report.runs, rest);
        let head = Report { runs, more: true, chunks: vec![], ..report };
        parts.push(head);
    }
    parts.push(report);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::Version;

    #[test]
    fn a_report_goes_out_in_parts_that_a_frame_has_room_for() {
        let run = |first| ReportedRun {
            chunk: ChunkIndex(0),
            first,
            count: 1,
            generation: Generation(1),
            version: Version::ZERO,
        };
        let chunks = vec![(ChunkIndex(0), Incarnation(1)); 3];
        let report = Report { fence: 7, runs: (0..10).map(run).collect(), chunks, ..Report::default() };
        let all = parts(report.clone(), 4);
        assert_eq!(all.iter().map(|p| p.runs.len()).collect::<Vec<_>>(), [4, 4, 2, 0]);
        assert_eq!(all.iter().map(|p| p.more).collect::<Vec<_>>(), [true, true, true, false]);
        assert!(all.iter().all(|p| p.fence == 7));
        assert_eq!(all.iter().flat_map(|p| p.runs.clone()).collect::<Vec<_>>(), report.runs);
        assert_eq!(all[3].chunks, report.chunks);
        assert_eq!(parts(report.clone(), 13), [report]);
    }
}
