//! Connections (5.1, Retries): what a new one changes, what is sent again, and whose answer an answer is.

use crate::event::CloseReason;
use crate::members::{Drive, Node, bit};
use crate::session::{Pending, Phase, Session, What};
use proto::message::{DriveHello, Reply, ReplyFrame};
use proto::{BranchId, ConnNumber, DriveId, NodeId, ProcessNumber, Refusal, Time};

impl Session {
    pub(crate) fn node_index(&mut self, id: NodeId) -> usize {
        if let Some(&n) = self.node_ix.get(&id) {
            return n;
        }
        let n = self.nodes.len();
        let since = self.now;
        self.nodes.push(Node {
            id,
            connection: None,
            process: None,
            since,
            drives: vec![],
            lease_wanted: None,
        });
        self.node_ix.insert(id, n);
        n
    }

    pub(crate) fn drive_index(&mut self, id: DriveId, node: NodeId) -> usize {
        let n = self.node_index(node);
        if let Some(&d) = self.drive_ix.get(&id) {
            return d;
        }
        let d = self.drives.len();
        self.drives.push(Drive { id, node: n, ..Drive::default() });
        self.drive_ix.insert(id, d);
        self.nodes[n].drives.push(d);
        d
    }

    pub(crate) fn connected(
        &mut self,
        id: NodeId,
        connection: ConnNumber,
        process: ProcessNumber,
        drives: &[DriveHello],
    ) {
        let n = self.node_index(id);
        if self.nodes[n].connection.is_some_and(|c| c >= connection) {
            return;
        }
        self.link_lost(n);
        self.parents_linked(id, true);
        let changed = self.nodes[n].process.is_some_and(|p| p != process);
        let node = &mut self.nodes[n];
        node.connection = Some(connection);
        node.process = Some(process);
        node.since = self.now;
        node.lease_wanted = None;
        for hello in drives {
            self.drive_index(hello.drive, id);
        }
        let mut afresh = false;
        for d in self.nodes[n].drives.clone() {
            afresh |= self.greeted(d, drives, changed);
        }
        if changed {
            self.source_restarted(n);
        }
        if self.opening() && afresh {
            self.open_afresh();
        }
        self.flush_dirty = true;
        self.dirty = true;
        for d in self.nodes[n].drives.clone() {
            self.drive_up(d);
        }
    }

    /// What the handshake says of one drive. True if an opening that has begun must start afresh.
    fn greeted(&mut self, d: usize, hellos: &[DriveHello], changed: bool) -> bool {
        let hello = hellos.iter().find(|h| h.drive == self.drives[d].id);
        let branch = self.branch;
        self.set_serving(d, hello.is_some_and(|h| h.serving));
        let x = &mut self.drives[d];
        x.open = hello.is_some();
        x.failed = hello.is_some_and(|h| h.failed);
        let doubt = hello.is_some_and(|h| h.in_doubt.contains(&branch));
        // The replica has forgotten what it granted on the old connection.
        x.credits = 0;
        if changed {
            x.full_until = Time::ZERO;
        }
        let news = doubt && x.report.as_ref().is_some_and(|r| !r.in_doubt);
        x.episode += u64::from(doubt);
        x.doubt = doubt;
        x.overdue = false;
        x.required > 0 && (changed || news)
    }

    pub(crate) fn disconnected(&mut self, id: NodeId) {
        let n = self.node_index(id);
        if self.nodes[n].connection.take().is_none() {
            return;
        }
        self.nodes[n].since = self.now;
        self.link_lost(n);
        self.parents_linked(id, false);
        self.dirty = true;
    }

    /// Nothing that was asked on the old connection will be answered.
    fn link_lost(&mut self, n: usize) {
        for d in self.nodes[n].drives.clone() {
            let x = &mut self.drives[d];
            x.notes.clear();
            x.flushing.clear();
            x.credit_asked = false;
            x.told = proto::Marks::default();
        }
        self.target_lost(n);
        let lost: Vec<u64> =
            self.pending.iter().filter(|(_, p)| self.drives[p.drive].node == n).map(|(&t, _)| t).collect();
        for token in lost {
            if let Some(p) = self.pending.remove(&token) {
                self.lost(p);
            }
        }
    }

    fn lost(&mut self, p: Pending) {
        match p.what {
            What::Fetch { segment, .. } => {
                self.drives[p.drive].reads -= 1;
                self.read_lost(segment);
            }
            What::Credit { probe: Some(op) } => {
                self.ops[op].lost = true;
                self.probe_answered(op);
            }
            What::Map { op } => self.stalled.push(op),
            What::Presence(at) => self.presence_lost(at),
            What::LookForAbsent { chunk, range } => self.absent_found(chunk, range, None),
            What::Absence { round } => self.absence_answered(round, None),
            What::LookForWritten { chunk, range } => self.written_found(chunk, range, None),
            What::Verify { op, slot } => self.verify_answered(op, slot, None),
            What::Repair { op } => self.repaired(op, false),
            What::Rewrite { key, .. } => self.rewrites.again(key, self.now),
            What::Create => self.creation.again(p.drive),
            What::Flush
            | What::Fence
            | What::EndDoubt
            | What::Begin { .. }
            | What::Record { .. }
            | What::List { .. }
            | What::Credit { probe: None }
            | What::Hello => {}
        }
    }

    /// A drive can be reached (again): what is unacknowledged is sent again, under the same versions.
    pub(crate) fn drive_up(&mut self, d: usize) {
        self.dirty = true;
        if !self.linked(d) {
            return;
        }
        match self.phase {
            Phase::Creating => {}
            Phase::Fencing => self.send_fence(d),
            _ => self.resend(d),
        }
    }

    fn resend(&mut self, d: usize) {
        let chunks = &self.chunks;
        let again: Vec<(u64, usize)> = self
            .window
            .iter()
            .filter(|(_, w)| w.live)
            .filter_map(|(seq, w)| {
                let slot = chunks[w.chunk as usize].slot_of(d)?;
                (w.sent & !w.acked & bit(slot) != 0).then_some((seq, slot))
            })
            .collect();
        for (seq, slot) in again {
            // What refused it before may take it now: only the answer to this sending counts.
            if let Some(w) = self.window.get(seq) {
                w.refused &= !bit(slot);
            }
            self.transmit(seq, slot);
        }
    }

    pub(crate) fn reply(&mut self, node: NodeId, f: ReplyFrame) {
        if f.token & crate::chain::TOKEN != 0 {
            return self.parents_reply(f.token, f.reply);
        }
        let Some(&n) = self.node_ix.get(&node) else { return };
        if self.nodes[n].connection.is_none() || (f.branch != self.branch && f.branch != BranchId(0)) {
            return;
        }
        match f.reply {
            Reply::Acks(list) => list.iter().for_each(|a| self.acked(a)),
            Reply::FlushBegun { drive, flush } => self.flush_begun(drive, flush),
            Reply::FlushDone { drive, flush } => self.flush_done(drive, flush),
            Reply::DriveState { drive, failed, in_doubt } => self.drive_state(drive, failed, &in_doubt),
            Reply::Revoke { branches } => {
                if branches.iter().any(|&(b, e)| b == self.branch && e > self.epoch) {
                    self.give_up(CloseReason::Fenced);
                }
            }
            Reply::Progress { number, bytes_done: _, bytes_left, bytes_moved } => {
                self.progress(number, bytes_left, bytes_moved);
            }
            Reply::Pulled { number, bytes_moved } => {
                self.pending.remove(&f.token);
                self.pulled(number, bytes_moved);
            }
            Reply::AttemptFailed { number, refusal } => {
                self.pending.remove(&f.token);
                self.attempt_failed(number, refusal);
            }
            Reply::Leased { .. } => {}
            Reply::Refused { refusal: Refusal::OldEpoch, .. } => self.give_up(CloseReason::Fenced),
            Reply::Refused { refusal, version } => match self.pending.remove(&f.token) {
                Some(p) => self.refused(p, f.token, refusal),
                None => self.write_refused(f.drive, version, refusal),
            },
            other => {
                if let Some(p) = self.pending.remove(&f.token) {
                    self.answered(p, f.token, other);
                }
            }
        }
    }

    fn answered(&mut self, p: Pending, token: u64, reply: Reply) {
        match (p.what, reply) {
            (What::Fetch { segment, slot }, Reply::ReadDone { runs, sums, payload }) => {
                self.drives[p.drive].reads -= 1;
                self.read_done(segment, slot, &runs, &sums, &payload);
            }
            (What::Rewrite { key, slot }, Reply::ReadDone { runs, sums, payload }) => {
                self.rewrite_read(key, slot, &runs, &sums, &payload);
            }
            (What::Flush, Reply::Flushed) => self.flush_answered(p.drive, token),
            (What::Credit { probe }, Reply::Credit { granted, allocated }) => {
                self.credit_answered(p.drive, probe, granted, allocated);
            }
            (What::Fence, Reply::Report(r)) => {
                let (drive, more) = (p.drive, r.more);
                if more {
                    self.pending.insert(token, Pending { what: What::Fence, ..p });
                }
                self.reported(drive, r);
            }
            (What::Create, Reply::Done) => self.records_made(p.drive, token),
            (What::EndDoubt, Reply::Done) => self.doubt_ended(p.drive),
            (What::Begin { chunk, number }, Reply::Done) => self.attempt_ready(chunk, number),
            (What::Record { chunk, number }, Reply::Done) => self.record_made(chunk, number),
            (What::Map { op }, Reply::Map { runs }) => self.map_answered(op, runs),
            (What::Presence(at), Reply::Map { runs }) => self.presence_answered(p.drive, at, &runs),
            (What::LookForAbsent { chunk, range }, Reply::Map { runs }) => {
                self.absent_found(chunk, range, Some(&runs));
            }
            (What::LookForWritten { chunk, range }, Reply::Map { runs }) => {
                self.written_found(chunk, range, Some(&runs));
            }
            (What::Absence { round }, Reply::Absence { any }) => self.absence_answered(round, Some(any)),
            (What::Verify { op, slot }, Reply::Verified { extents, bad }) => {
                self.verify_answered(op, slot, Some((extents, bad)));
            }
            (What::Repair { op }, Reply::Done) => self.repaired(op, true),
            (What::Hello, _) => {
                self.set_serving(p.drive, true);
                self.drive_up(p.drive);
            }
            // an answer of another kind than asked for: as if it were lost, and the drive's own fault
            (what, _) => {
                self.drives[p.drive].failed = true;
                self.lost(Pending { what, ..p });
            }
        }
        if self.phase != Phase::Serving {
            self.dirty = true;
        }
    }

    fn refused(&mut self, p: Pending, token: u64, refusal: Refusal) {
        let d = p.drive;
        match refusal {
            Refusal::DriveNotConfirmed | Refusal::Closing => self.set_serving(d, false),
            Refusal::DriveFailed => self.drives[d].failed = true,
            _ => {}
        }
        self.dirty = true;
        match p.what {
            What::Fetch { segment, slot } => {
                self.drives[d].reads -= 1;
                self.read_refused(segment, slot, refusal);
            }
            What::Flush => {
                self.flush_answered(d, token);
                self.drives[d].flush_after = self.now + proto::Span::millis(200);
            }
            What::Fence => self.fence_refused(d, refusal),
            What::Create => self.creation.refused(d),
            What::Begin { chunk, number } | What::Record { chunk, number } | What::List { chunk, number } => {
                self.attempt_refused(chunk, number, refusal);
            }
            What::Rewrite { key, slot } => self.rewrite_refused(key, slot),
            What::Credit { probe: Some(op) } => {
                self.ops[op].lost |= refusal != Refusal::NoSpace;
                self.ops[op].no_space |= refusal == Refusal::NoSpace;
                self.probe_answered(op);
            }
            What::Credit { probe: None } => self.credit_answered(d, None, 0, false),
            What::Map { op } if self.map_refused(op, refusal) => {}
            what @ (What::Map { .. }
            | What::Presence(_)
            | What::LookForAbsent { .. }
            | What::Absence { .. }
            | What::LookForWritten { .. }
            | What::Verify { .. }
            | What::Repair { .. }) => {
                if refusal == Refusal::UnknownView {
                    self.views_in_question();
                }
                self.lost(Pending { what, ..p });
            }
            What::EndDoubt => {}
            What::Hello => match refusal {
                Refusal::DriveNotConfirmed | Refusal::NoDrive | Refusal::DriveFailed | Refusal::Closing => {}
                // No credit for this branch, but it is the drive itself that says so: it serves.
                _ => {
                    self.set_serving(d, true);
                    self.drive_up(d);
                }
            },
        }
    }

    fn drive_state(&mut self, id: DriveId, failed: bool, in_doubt: &[BranchId]) {
        let Some(&d) = self.drive_ix.get(&id) else { return };
        self.dirty = true;
        if in_doubt.contains(&self.branch) {
            self.doubted(d);
        }
        let up = !failed && (self.drives[d].failed || !self.drives[d].serving);
        self.drives[d].failed = failed;
        if up {
            self.set_serving(d, true);
            self.drive_up(d);
        }
    }

    /// A drive has fallen into doubt.
    pub(crate) fn doubted(&mut self, d: usize) {
        self.drives[d].doubt = true;
        self.drives[d].episode += 1;
        self.drives[d].notes.clear();
        let news = self.drives[d].report.as_ref().is_some_and(|r| !r.in_doubt);
        if self.opening() && self.drives[d].required > 0 && news {
            self.open_afresh();
        }
        self.doubt_of_drive(d);
        self.dirty = true;
    }
}
