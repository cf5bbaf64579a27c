//! Guests: one volume each, attached on one node at a time (or, for a while, on an old one and a new one).
//!
//! Owns what a guest asks and how its answers are told to the judge. A client is one attachment: an export opened in
//! one process. What it left unanswered when it ended is unknown.

use crate::counts::{Counts, Guest as Did};
use crate::layout::place_of;
use crate::layout::{Layout, Odd};
use crate::net::HostIndex;
use crate::properties::cut::Image;
use crate::rng::Rng;
use oracle::{Entry, OpId, OpKind, Outcome, VolumeNumber, ZERO};
use proto::limits::{BLOCK, SECTOR};
use proto::message::{BlockState, Run};
use proto::{BranchId, Epoch, ExportId, Generation, Level, Ticket, Time};
use std::collections::BTreeMap;
use volume::{GuestData, GuestError, GuestOp, GuestReply, GuestRequest};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientState {
    /// `OpenExport` is asked.
    Opening,
    Open,
    /// No new requests; closes when all are answered.
    Leaving,
    Gone,
}

#[derive(Debug)]
struct Pending {
    op: OpId,
    changes: bool,
    /// What has changed since then: what has not is what that view holds.
    since: Option<Generation>,
    offset: u64,
    len: u64,
}

#[derive(Debug)]
pub struct Client {
    /// Rising per volume; given when the export has opened.
    pub number: u32,
    pub host: HostIndex,
    pub life: u64,
    pub export: ExportId,
    pub state: ClientState,
    pub since: Time,
    /// Displaced by a newer attachment of ours: goes on for a while.
    pub old: bool,
    pending: BTreeMap<Ticket, Pending>,
}

impl Client {
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.pending.len()
    }
    #[must_use]
    pub fn alive(&self) -> bool {
        self.state != ClientState::Gone
    }
}

/// How often a guest does what; drawn per seed.
#[derive(Clone, Debug)]
pub struct Taste {
    pub read: u64,
    pub write: u64,
    pub discard: u64,
    pub zeroes: u64,
    /// Of a thousand writes of zeroes: they keep their space.
    pub no_hole: u64,
    pub flush: u64,
    /// Block status, and what has changed since a snapshot.
    pub map: u64,
    /// Of a thousand writes.
    pub fua: u64,
    pub fine: u64,
    /// Requests in flight at most; and how many of them change something (the others are reads, and go on while those
    /// that write wait).
    pub depth: usize,
    pub writers: usize,
    /// Longest request, blocks.
    pub longest: u64,
    /// Of a thousand: whole extents, aligned.
    pub extents: u64,
}

#[derive(Debug)]
pub struct Volume {
    pub name: String,
    pub number: VolumeNumber,
    pub layout: Layout,
    pub taste: Taste,
    /// Drives are small: a write may be refused.
    pub tight: bool,
    /// Fixed when it is made; a rollback makes another volume of it, of the same name.
    pub branch: Option<BranchId>,
    /// What is absent in the branch is read from this view.
    pub parent: Option<Level>,
    /// It was deleted or rolled back: the last epoch that it can have been written in.
    pub gone: Option<Epoch>,
    /// It rests in the trash: nobody has it open, and it may come back with all that it had.
    pub trashed: bool,
    /// The operator wants it detached.
    pub parked: bool,
    pub clients: Vec<Client>,
    /// The newest client that was served, and its session's epoch then.
    served: u32,
    served_epoch: Epoch,
    tickets: u64,
}

/// What a request is to the node and to the judge.
struct Drawn {
    op: GuestOp,
    kind: OpKind,
    since: Option<Generation>,
    offset: u64,
    len: u64,
}

impl Volume {
    #[must_use]
    pub fn new(name: String, number: VolumeNumber, layout: Layout, taste: Taste, tight: bool) -> Volume {
        Volume {
            name,
            number,
            layout,
            taste,
            tight,
            branch: None,
            parent: None,
            gone: None,
            trashed: false,
            parked: false,
            clients: vec![],
            served: 0,
            served_epoch: Epoch(0),
            tickets: 0,
        }
    }

    pub fn client(&mut self, host: HostIndex, life: u64, export: ExportId) -> Option<&mut Client> {
        self.clients.iter_mut().find(|c| c.host == host && c.life == life && c.export == export && c.alive())
    }
    /// Neither gone nor in the trash.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.gone.is_none() && !self.trashed
    }
    /// Takes away those that are opening.
    pub fn take_opening(&mut self) -> Vec<Client> {
        self.clients.extract_if(.., |c| c.state == ClientState::Opening).collect()
    }
    /// ... or one.
    pub fn take_client(&mut self, host: HostIndex, life: u64, export: ExportId) -> Vec<Client> {
        let is = |c: &mut Client| (c.host, c.life, c.export) == (host, life, export) && c.alive();
        self.clients.extract_if(.., is).collect()
    }
    /// The attachment that the guest means now.
    #[must_use]
    pub fn present(&self) -> Option<&Client> {
        self.clients.iter().rev().find(|c| c.alive() && !c.old)
    }

    pub fn opening(&mut self, host: HostIndex, life: u64, export: ExportId, now: Time) {
        self.clients.push(Client {
            number: 0,
            host,
            life,
            export,
            state: ClientState::Opening,
            since: now,
            old: false,
            pending: BTreeMap::new(),
        });
    }

    /// The export is open, on a session of this epoch: its number, for the judge.
    pub fn opened(&mut self, at: (HostIndex, u64, ExportId), epoch: Epoch, now: Time) -> Option<Entry> {
        // Two exports of one volume in one process share its session: no newer client is served by that. Nor by a
        // session that is over and does not know it yet.
        let shares = |c: &&Client| c.alive() && c.number > 0 && (c.host, c.life) == (at.0, at.1);
        let beside = self.clients.iter().filter(shares).map(|c| c.number).max();
        let number = match beside {
            Some(n) if n == self.served || epoch < self.served_epoch => n,
            None if epoch < self.served_epoch => 0,
            _ => self.served + 1,
        };
        let c = self.client(at.0, at.1, at.2).filter(|c| c.state == ClientState::Opening)?;
        c.number = number;
        c.state = ClientState::Open;
        c.since = now;
        if number >= self.served {
            (self.served, self.served_epoch) = (number, epoch);
        }
        Some(Entry::Serves { volume: self.number, client: number })
    }

    /// The attachment is over: what it asked is unknown for ever.
    pub fn gone(&mut self, index: usize, counts: &mut Counts) -> Vec<Entry> {
        let c = &mut self.clients[index];
        c.state = ClientState::Gone;
        let left = std::mem::take(&mut c.pending);
        left.into_values()
            .map(|p| {
                counts.guest(Did::Unanswered);
                Entry::Answer { op: p.op, outcome: Outcome::Gone }
            })
            .collect()
    }

    /// A new request of a client; `op` numbers it for the judge.
    pub fn ask(
        &mut self,
        index: usize,
        op: OpId,
        since: Option<Generation>,
        rng: &mut Rng,
        counts: &mut Counts,
    ) -> (GuestRequest, Entry) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let writing = self.clients[index].pending.values().filter(|p| p.changes).count();
        let mut drawn = self.draw(op, writing < self.taste.writers, rng, counts);
        if let (GuestOp::Map { offset, len }, Some(since)) = (&drawn.op, since) {
            drawn.since = Some(since);
            drawn.op = GuestOp::Changes { offset: *offset, len: *len, since };
        }
        self.issue(index, op, ticket, drawn)
    }

    /// A read of part of the region, for the end of a run: `step` of so many blocks.
    pub fn ask_read(&mut self, index: usize, op: OpId, block: u64, blocks: u64) -> (GuestRequest, Entry) {
        self.tickets += 1;
        let (offset, len) = ((self.layout.first + block) * BLOCK as u64, blocks * BLOCK as u64);
        let drawn = self.read(offset, len);
        self.issue(index, op, Ticket(self.tickets), drawn)
    }

    fn issue(&mut self, index: usize, op: OpId, ticket: Ticket, d: Drawn) -> (GuestRequest, Entry) {
        let c = &mut self.clients[index];
        let changes = !matches!(d.kind, OpKind::Read { .. });
        c.pending.insert(ticket, Pending { op, changes, since: d.since, offset: d.offset, len: d.len });
        let entry = Entry::Ask { op, volume: self.number, client: c.number, kind: d.kind };
        (GuestRequest { ticket, op: d.op }, entry)
    }

    fn draw(&mut self, op: OpId, may_change: bool, rng: &mut Rng, counts: &mut Counts) -> Drawn {
        let t = &self.taste;
        let total =
            if may_change { t.read + t.write + t.discard + t.zeroes + t.flush + t.map } else { t.read };
        let k = rng.below(total);
        let fua = rng.permille(t.fua);
        let fine = rng.permille(t.fine);
        if k < t.read {
            counts.guest(Did::Read);
            let (offset, len) = self.range(fine, rng);
            return self.read(offset, len);
        }
        if k < t.read + t.write {
            let (offset, len) = self.range(fine, rng);
            let partial = offset % BLOCK as u64 != 0 || len % BLOCK as u64 != 0;
            counts.guest(if partial { Did::SubBlock } else { Did::Write });
            if fua {
                counts.guest(Did::Fua);
            }
            let data = GuestData { payload: self.layout.payload(offset, len, op.0) };
            let kind = OpKind::Write { span: self.layout.registers(offset, len), value: op.0, fua };
            let len32 = u32::try_from(len).expect("a request");
            return Drawn {
                op: GuestOp::Write { offset, len: len32, data, fua },
                kind,
                since: None,
                offset,
                len,
            };
        }
        if k < t.read + t.write + t.discard {
            counts.guest(Did::Discard);
            let (offset, len) = self.range(fine, rng);
            let b = BLOCK as u64;
            let (first, end) = (offset.div_ceil(b) * b, (offset + len) / b * b);
            let whole = self.layout.registers(first, end.saturating_sub(first));
            let kind = OpKind::Zero { span: whole, fua };
            return Drawn { op: GuestOp::Discard { offset, len, fua }, kind, since: None, offset, len };
        }
        if k < t.read + t.write + t.discard + t.zeroes {
            counts.guest(Did::Zeroes);
            let (offset, len) = self.range(fine, rng);
            let kind = OpKind::Zero { span: self.layout.registers(offset, len), fua };
            let no_hole = rng.permille(t.no_hole);
            return Drawn {
                op: GuestOp::WriteZeroes { offset, len, fua, no_hole },
                kind,
                since: None,
                offset,
                len,
            };
        }
        if k < t.read + t.write + t.discard + t.zeroes + t.flush {
            counts.guest(Did::Flush);
            return Drawn { op: GuestOp::Flush, kind: OpKind::Flush, since: None, offset: 0, len: 0 };
        }
        counts.guest(Did::Map);
        let (offset, len) = self.range(false, rng);
        let kind = OpKind::Read { span: self.layout.registers(offset, len) };
        Drawn { op: GuestOp::Map { offset, len }, kind, since: None, offset, len }
    }

    fn read(&self, offset: u64, len: u64) -> Drawn {
        let kind = OpKind::Read { span: self.layout.registers(offset, len) };
        let len32 = u32::try_from(len).expect("a request");
        Drawn { op: GuestOp::Read { offset, len: len32 }, kind, since: None, offset, len }
    }

    /// Bytes of the region: sectors in its fine part, else blocks, sometimes whole extents.
    fn range(&self, fine: bool, rng: &mut Rng) -> (u64, u64) {
        let l = &self.layout;
        if fine {
            let sectors = l.fine * (BLOCK / SECTOR) as u64;
            let first = rng.below(sectors);
            let count = rng.within(1, (sectors - first).min(20));
            return (l.first * BLOCK as u64 + first * SECTOR as u64, count * SECTOR as u64);
        }
        let (first, count) = if rng.permille(self.taste.extents) {
            let extents = l.blocks / 16;
            let first = rng.below(extents);
            let count = rng.within(1, (extents - first).min(self.taste.longest.div_ceil(16)));
            (first * 16, count * 16)
        } else {
            let longest = if rng.permille(700) { self.taste.longest.min(8) } else { self.taste.longest };
            // Half of the requests meet in a small part, so that they overlap.
            let reach = if rng.permille(500) { l.blocks.min(48) } else { l.blocks };
            let first = rng.below(reach);
            (first, rng.within(1, longest.min(l.blocks - first)))
        };
        ((l.first + first) * BLOCK as u64, count * BLOCK as u64)
    }

    /// Which view a request compares with.
    pub fn since(&mut self, at: (HostIndex, u64, ExportId), ticket: Ticket) -> Option<Generation> {
        self.client(at.0, at.1, at.2)?.pending.get(&ticket)?.since
    }

    /// What block status says of registers. `image`: what the view holds that it compares with.
    fn status(&self, p: &Pending, runs: &[Run], image: Option<&Image>) -> Outcome {
        let mut block = p.offset / BLOCK as u64;
        let mut says = vec![];
        for run in runs {
            for b in block..block + u64::from(run.count) {
                let registers = self.layout.of_block(b).each();
                let seen = image.and_then(|i| i.seen.get(&place_of(b)));
                match (p.since, run.state, seen) {
                    (None, BlockState::Zero | BlockState::Absent, _) => {
                        says.extend(registers.map(|r| (r, ZERO)));
                    }
                    (Some(_), BlockState::Absent, Some(seen)) => {
                        says.extend(registers.zip(seen.values.iter().copied()));
                    }
                    _ => {}
                }
            }
            block += u64::from(run.count);
        }
        let whole = block * BLOCK as u64 == p.offset + p.len;
        if whole { Outcome::Partly(says) } else { Outcome::Read(vec![]) }
    }

    /// An answer of a node: told to the judge.
    pub fn answered(
        &mut self,
        at: (HostIndex, u64, ExportId),
        ticket: Ticket,
        result: &Result<GuestReply, GuestError>,
        image: Option<&Image>,
        counts: &mut Counts,
    ) -> Option<Entry> {
        let layout = self.layout;
        let c = self.client(at.0, at.1, at.2)?;
        let p = c.pending.remove(&ticket)?;
        let outcome = match result {
            Ok(GuestReply::Read(pieces)) => match layout.values(p.offset, p.len, pieces) {
                Ok(values) => Outcome::Read(values),
                Err(Odd::Torn(r)) => Outcome::Torn(r),
                Err(Odd::Length) => Outcome::Read(vec![]),
            },
            Ok(GuestReply::Map(runs)) => self.status(&p, runs, image),
            // Somebody has no space to say that it is gone: it is, or is not.
            Ok(GuestReply::Left) if self.tight => Outcome::Gone,
            Ok(GuestReply::Left) => Outcome::Failed,
            Ok(_) => Outcome::Done,
            // The view may be gone that it compares with.
            Err(_) if p.since.is_some() => Outcome::Gone,
            // Refused for want of space: nothing is lost, and nobody need have it.
            Err(GuestError::NoSpace) if self.tight => Outcome::Gone,
            Err(GuestError::Gone) => {
                counts.guest(Did::Unanswered);
                Outcome::Gone
            }
            Err(_) => Outcome::Failed,
        };
        Some(Entry::Answer { op: p.op, outcome })
    }
}
