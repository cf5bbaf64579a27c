//! Sending a write (5.1): to everyone required and to resync targets past v0, at once, under one version, which is
//! given at this moment. What was sent stays in the window until all it was sent to have acknowledged it.

use crate::members::{Mask, bit, slots};
use crate::ops::OpKind;
use crate::session::Session;
use proto::limits::BLOCKS_PER_EXTENT;
use proto::message::Request;
use proto::record::Sum;
use proto::{BlockRange, ChunkIndex, ConnNumber, Generation, KeyId, Payload, Record, RecordKind, Time};
use std::collections::VecDeque;

/// A write that was sent.
#[derive(Debug)]
pub(crate) struct Sent {
    /// Not all it was sent to have acknowledged it.
    pub live: bool,
    /// Answered: all required have it.
    pub done: bool,
    /// The operation of a guest; none: reconciliation.
    pub op: Option<usize>,
    pub chunk: u32,
    pub sent: Mask,
    pub acked: Mask,
    /// Credits given with it.
    pub fresh: Mask,
    /// Refused there for want of space.
    pub refused: Mask,
    pub at: Time,
    pub record: Record,
    pub payload: Option<Payload>,
}

/// Writes in the order of their versions, from the oldest live one on.
#[derive(Debug, Default)]
pub(crate) struct Window {
    base: u64,
    list: VecDeque<Sent>,
}

impl Window {
    /// Empty; the next write has this sequence.
    pub fn restart(&mut self, base: u64) {
        self.base = base;
        self.list.clear();
    }
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }
    pub fn push(&mut self, seq: u64, sent: Sent) {
        assert_eq!(seq, self.base + self.list.len() as u64, "one sequence without gaps");
        self.list.push_back(sent);
    }
    pub fn get(&mut self, seq: u64) -> Option<&mut Sent> {
        let i = usize::try_from(seq.checked_sub(self.base)?).ok()?;
        self.list.get_mut(i)
    }
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Sent)> {
        (self.base..).zip(&self.list)
    }
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Sent)> {
        (self.base..).zip(&mut self.list)
    }
    /// Forgets what nobody waits for.
    pub fn trim(&mut self) {
        while self.list.front().is_some_and(|s| !s.live) {
            self.list.pop_front();
            self.base += 1;
        }
    }
}

impl Session {
    /// Sends a guest's write, once there is space for it everywhere.
    pub(crate) fn send_op(&mut self, id: usize) {
        if self.ops[id].beyond && self.next_job.is_some() {
            // The job was called off.
            return self.end_op(id, Err(crate::GuestError::Withdrawn));
        }
        if self.seal.holds() {
            return self.seal.hold(id);
        }
        let op = &self.ops[id];
        let (chunk, range) = (op.piece.chunk, op.piece.range);
        let (payload, fresh) = match &op.kind {
            OpKind::Write(p) => {
                let payload = p.clone();
                match self.take_credits(id, chunk) {
                    Some(fresh) => (Some(payload), fresh),
                    None => return,
                }
            }
            OpKind::Zero => match self.may_zero(id, chunk) {
                true => (None, 0),
                false => return,
            },
            other => unreachable!("{other:?} is not sent"),
        };
        let generation = self.generation;
        self.send_write(Some(id), chunk, range, payload, generation, fresh);
    }

    /// One version, to all at once.
    pub(crate) fn send_write(
        &mut self,
        op: Option<usize>,
        chunk: u32,
        range: BlockRange,
        payload: Option<Payload>,
        generation: Generation,
        fresh: Mask,
    ) {
        self.seq += 1;
        let seq = self.seq;
        let (kind, sums) = match &payload {
            Some(p) => (RecordKind::Write, Record::sums_of(p)),
            None => (RecordKind::Zero, [Sum::default(); BLOCKS_PER_EXTENT as usize]),
        };
        let record = Record {
            kind,
            branch: self.branch,
            chunk: ChunkIndex(chunk),
            range,
            version: self.version(seq),
            generation,
            incarnation: proto::Incarnation(0),
            key: KeyId(0),
            sums,
        };
        if let Some(p) = &mut self.parents {
            p.presence.wrote(chunk, range);
        }
        let c = &mut self.chunks[chunk as usize];
        c.in_flight += 1;
        let sent = c.fanout;
        assert!(sent & c.required == c.required, "everyone required gets it");
        let entry = Sent {
            live: true,
            done: false,
            op,
            chunk,
            sent,
            acked: 0,
            fresh,
            refused: 0,
            at: self.now,
            record,
            payload,
        };
        self.window.push(seq, entry);
        for slot in slots(sent) {
            let drive = self.chunks[chunk as usize].slots[slot].drive;
            self.drives[drive].last_sent = seq;
            self.transmit(seq, slot);
        }
    }

    /// Sends write `seq` to one of its replicas, behind the chunk's configuration if that is new there.
    pub(crate) fn transmit(&mut self, seq: u64, slot: usize) {
        let Some(w) = self.window.get(seq) else { return };
        let chunk = w.chunk;
        let fresh = w.fresh & bit(slot) != 0;
        let payload = w.payload.clone();
        let mut record = w.record.clone();
        let s = &self.chunks[chunk as usize].slots[slot];
        if !self.linked(s.drive) {
            return;
        }
        record.incarnation = s.place.incarnation;
        self.tell_configuration(chunk, slot);
        let payload = payload.unwrap_or_else(Payload::empty);
        self.send_slot(chunk, slot, 0, Request::Write { record, payload, fresh });
    }

    /// 5.1: the first frame under a new configuration carries it.
    fn tell_configuration(&mut self, chunk: u32, slot: usize) {
        let c = &self.chunks[chunk as usize];
        let drive = c.slots[slot].drive;
        let connection = self.nodes[self.drives[drive].node].connection.unwrap_or(ConnNumber(0));
        let now = (c.number, connection);
        if c.slots[slot].told != now {
            let configuration = c.configuration();
            self.chunks[chunk as usize].slots[slot].told = now;
            self.send_slot(chunk, slot, 0, Request::Configure { configuration });
        }
    }
}
