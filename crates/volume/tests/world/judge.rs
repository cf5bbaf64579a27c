//! The guest's history, and whether it is linearizable per block. Values are unique, so each block's history
//! falls into zones (one per value): two forward zones never overlap, a backward zone lies in no forward one.

use proto::{Epoch, Ticket, Time};
use std::collections::BTreeMap;
use volume::{GuestError, GuestReply, ReadPiece};

#[derive(Clone, Debug)]
pub enum Kind {
    Write(Vec<u64>),
    Read,
    Other,
}

#[derive(Clone, Debug)]
pub struct Operation {
    pub kind: Kind,
    /// First block of the volume, and how many.
    pub first: u64,
    pub count: u64,
    pub epoch: Epoch,
    pub begun: u64,
    pub ended: Option<u64>,
    pub result: Option<Result<Vec<u64>, GuestError>>,
}

#[derive(Default)]
pub struct Judge {
    clock: u64,
    pub tickets: u64,
    pub values: u64,
    pub ops: BTreeMap<Ticket, Operation>,
    /// When each epoch first served.
    services: BTreeMap<Epoch, u64>,
    pub completed: u64,
    pub flushes: u64,
    /// Blocks that were zeroed: values there are not unique.
    pub zeroed: std::collections::BTreeSet<u64>,
    /// What blocks of a clone are before they are written.
    pub inherited: BTreeMap<u64, u64>,
    abandoned: Vec<Epoch>,
    pub maps: BTreeMap<Ticket, Vec<proto::message::Run>>,
    pub verified: BTreeMap<Ticket, (Vec<u64>, u64)>,
}

impl Judge {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub fn begin(&mut self, kind: Kind, first: u64, count: u64, epoch: Epoch) -> Ticket {
        self.tickets += 1;
        let begun = self.tick();
        let t = Ticket(self.tickets);
        self.ops.insert(t, Operation { kind, first, count, epoch, begun, ended: None, result: None });
        t
    }

    pub fn value(&mut self) -> u64 {
        self.values += 1;
        self.values
    }

    pub fn served(&mut self, _: Time, epoch: Epoch) {
        let now = self.tick();
        self.services.entry(epoch).or_insert(now);
    }

    pub fn abandoned(&mut self, epoch: Epoch) {
        self.abandoned.push(epoch);
    }

    pub fn completed(&mut self, _: Time, ticket: Ticket, result: Result<GuestReply, GuestError>) {
        let now = self.tick();
        let op = self.ops.get_mut(&ticket).expect("a ticket that was given");
        assert!(op.ended.is_none(), "{ticket} is completed twice");
        op.ended = Some(now);
        self.completed += 1;
        op.result = Some(result.map(|r| match r {
            GuestReply::Read(pieces) => values(&pieces),
            GuestReply::Map(runs) => {
                self.maps.insert(ticket, runs);
                vec![]
            }
            GuestReply::Verified { differing, bytes } => {
                self.verified.insert(ticket, (differing, bytes));
                vec![]
            }
            GuestReply::Done | GuestReply::Left => vec![],
        }));
    }

    /// Requests without an answer whose session still lives.
    pub fn open(&self) -> Vec<Ticket> {
        self.ops
            .iter()
            .filter(|(_, o)| o.ended.is_none() && !self.abandoned.contains(&o.epoch))
            .map(|(t, _)| *t)
            .collect()
    }

    /// Something that is not a guest's happens now.
    pub fn moment(&mut self) -> u64 {
        self.tick()
    }

    /// A snapshot asked for at `asked` and sealed now: of each block a value that was not overwritten by anything
    /// answered before it was asked for, and not written after now.
    pub fn cut(&mut self, asked: u64, image: &BTreeMap<u64, u64>) {
        let now = self.tick();
        let mut writes: BTreeMap<u64, Vec<(u64, u64, u64)>> = BTreeMap::new();
        for o in self.ops.values() {
            let Kind::Write(values) = &o.kind else { continue };
            let end = if matches!(o.result, Some(Ok(_))) { o.ended.unwrap_or(u64::MAX) } else { u64::MAX };
            for (i, v) in values.iter().enumerate() {
                writes.entry(o.first + i as u64).or_default().push((*v, o.begun, end));
            }
        }
        for (block, list) in writes.iter().filter(|(b, _)| !self.zeroed.contains(b)) {
            let is = image.get(block).copied().unwrap_or(0);
            let own = list.iter().find(|w| w.0 == is).copied().unwrap_or((0, 0, 0));
            assert!(is == own.0 && own.1 < now, "block {block}: {is} in a snapshot, from nowhere");
            let missed = list.iter().find(|w| w.1 > own.2 && w.2 < asked);
            assert!(
                missed.is_none(),
                "block {block}: {is} in a snapshot, {missed:?} was answered before {asked}"
            );
        }
    }

    pub fn linearizable(&self) -> Result<(), String> {
        // per (block, value): (invocation, response) of every operation that wrote or read it
        let mut seen: BTreeMap<(u64, u64), Vec<(u64, u64)>> = BTreeMap::new();
        let mut writes: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
        for o in self.ops.values() {
            if let Kind::Write(values) = &o.kind {
                let over = self.services.range(Epoch(o.epoch.0 + 1)..).map(|s| *s.1).min();
                let end = match (&o.result, o.ended) {
                    (Some(Ok(_)), Some(e)) => e,
                    // unanswered: before the next epoch's first service, or never
                    _ => over.unwrap_or(u64::MAX),
                };
                for (i, v) in values.iter().enumerate() {
                    writes.insert((o.first + i as u64, *v), (o.begun, end));
                    if matches!(o.result, Some(Ok(_))) {
                        seen.entry((o.first + i as u64, *v)).or_default().push((o.begun, end));
                    }
                }
            }
            if let (Kind::Read, Some(Ok(got)), Some(end)) = (&o.kind, &o.result, o.ended) {
                for (i, v) in got.iter().enumerate() {
                    let key = (o.first + i as u64, *v);
                    if !self.zeroed.contains(&key.0) {
                        seen.entry(key).or_default().push((o.begun, end));
                    }
                }
            }
        }
        let mut zones: BTreeMap<u64, Vec<(u64, u64, u64)>> = BTreeMap::new();
        for ((block, value), mut ops) in seen {
            if self.zeroed.contains(&block) {
                continue;
            }
            let write = if value == self.inherited.get(&block).copied().unwrap_or(0) {
                (0, 0)
            } else {
                *writes.get(&(block, value)).ok_or(format!("block {block}: {value} from nowhere"))?
            };
            ops.push(write);
            if let Some(r) = ops.iter().find(|o| o.1 < write.0) {
                return Err(format!(
                    "block {block}: {value} read at {r:?} before it was written at {write:?}"
                ));
            }
            let low = ops.iter().map(|o| o.1).min().expect("its write");
            let high = ops.iter().map(|o| o.0).max().expect("its write");
            zones.entry(block).or_default().push((low, high, value));
        }
        for (block, list) in zones {
            for (i, a) in list.iter().enumerate() {
                for b in &list[i + 1..] {
                    let forward = |z: &(u64, u64, u64)| z.0 < z.1;
                    let clash = match (forward(a), forward(b)) {
                        (true, true) => a.0 < b.1 && b.0 < a.1,
                        (true, false) => a.0 < b.1 && b.0 < a.1,
                        (false, true) => b.0 < a.1 && a.0 < b.1,
                        (false, false) => false,
                    };
                    if clash {
                        return Err(format!(
                            "block {block}: values {a:?} and {b:?} (end, begin, value) contradict"
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The value of each block: its first eight bytes.
pub fn values(pieces: &[ReadPiece]) -> Vec<u64> {
    let mut bytes = vec![];
    for p in pieces {
        match p {
            ReadPiece::Zero { bytes: n } => bytes.resize(bytes.len() + *n as usize, 0),
            ReadPiece::Data { payload, skip, len } => {
                bytes.extend_from_slice(&payload.bytes()[*skip as usize..(*skip + *len) as usize]);
            }
        }
    }
    bytes.chunks(4096).map(|b| u64::from_le_bytes(b[..8].try_into().unwrap())).collect()
}
