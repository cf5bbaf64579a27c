//! Readers of snapshots: `volume@snapshot` opened on any node, without a session. What they are given is what the view
//! held when it was sealed, or an error once it is deleted; never zeroes for what could not be asked, never silence.

use crate::counts::{Operator as Did, Property};
use crate::host::Input;
use crate::layout::place_of;
use crate::net::HostIndex;
use crate::operator::Row;
use crate::properties::truth::Block;
use crate::world::{Due, Phase, World};
use node::Event;
use oracle::ZERO;
use proto::limits::BLOCK;
use proto::message::{BlockState, Run};
use proto::record::Sum;
use proto::{BranchId, ExportId, Generation, Span, Ticket, Time};
use std::collections::BTreeMap;
use volume::{GuestError, GuestOp, GuestReply, GuestRequest, ReadPiece};

/// What a reader asks of all blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Data,
    /// Which blocks are zero.
    Status,
    /// Which are the same as in an older view of the branch.
    Changes(Generation),
}

/// Where a reader's export is.
type At = (HostIndex, u64, ExportId);

#[derive(Debug)]
struct Reader {
    name: String,
    volume: usize,
    key: (BranchId, Generation),
    what: What,
    /// Reads under way: first block and count.
    asked: BTreeMap<Ticket, (u64, u64)>,
    /// Blocks of the region that were asked for.
    next: u64,
    since: Time,
}

#[derive(Debug, Default)]
pub struct Readers {
    open: BTreeMap<At, Reader>,
    tickets: u64,
}

/// Blocks of one read.
const STEP: u64 = 24;

impl World {
    /// Somebody reads a snapshot from one end to the other.
    pub fn open_reader(&mut self, row: &Row) {
        let host = self.rng.index(self.hosts.len());
        if !self.hosts[host].runs() || !row.sealed {
            return;
        }
        self.counts.operator(Did::Read);
        let (life, export) = (self.hosts[host].life, ExportId(self.rng.next() >> 1));
        let name = format!("{}@{}", self.volumes[row.volume].name, row.name);
        let what = self.what_to_read(row);
        let reader = Reader {
            what,
            name: name.clone(),
            volume: row.volume,
            key: (row.branch, row.generation),
            asked: BTreeMap::new(),
            next: 0,
            since: self.now,
        };
        self.readers.open.insert((host, life, export), reader);
        self.input(host, life, Input::Event(Event::OpenExport { export, volume: name, force: false }));
    }

    fn what_to_read(&mut self, row: &Row) -> What {
        if self.swarm.clones == 0 || self.rng.permille(600) {
            return What::Data;
        }
        let older = (row.branch, Generation(0))..(row.branch, row.generation);
        let older: Vec<Generation> = self.watchers.cuts.images.range(older).map(|((_, g), _)| *g).collect();
        let none = older.is_empty() || self.rng.permille(300);
        if none { What::Status } else { What::Changes(self.rng.pick(&older)) }
    }

    /// True if the export was a reader's.
    pub fn reader_opened(&mut self, at: At) -> bool {
        let known = self.readers.open.contains_key(&at);
        if known {
            self.reader_asks(at);
        }
        known
    }

    fn reader_asks(&mut self, at: At) {
        let Some(r) = self.readers.open.get_mut(&at) else { return };
        let l = self.volumes[r.volume].layout;
        if r.next >= l.blocks {
            return self.reader_closes(at);
        }
        self.readers.tickets += 1;
        // Apart from the guests' own.
        let ticket = Ticket(1 << 40 | self.readers.tickets);
        let (first, count) = (l.first + r.next, STEP.min(l.blocks - r.next));
        r.asked.insert(ticket, (first, count));
        r.next += count;
        let (offset, len) = (first * BLOCK as u64, count * BLOCK as u64);
        let op = match r.what {
            What::Data => GuestOp::Read { offset, len: u32::try_from(len).expect("few blocks") },
            What::Status => GuestOp::Map { offset, len },
            What::Changes(since) => GuestOp::Changes { offset, len, since },
        };
        let request = GuestRequest { ticket, op };
        self.put_input(at, Input::Event(Event::Guest { export: at.2, request }));
    }

    fn reader_closes(&mut self, at: At) {
        self.readers.open.remove(&at);
        self.put_input(at, Input::Event(Event::CloseExport { export: at.2 }));
    }

    fn put_input(&mut self, at: At, input: Input) {
        self.put(Span(1), Due::Input { host: at.0, life: at.1, input });
    }

    /// True if the answer was a reader's.
    pub fn reader_answered(
        &mut self,
        at: At,
        ticket: Ticket,
        result: &Result<GuestReply, GuestError>,
    ) -> bool {
        let Some(r) = self.readers.open.get_mut(&at) else { return false };
        let Some((first, count)) = r.asked.remove(&ticket) else { return true };
        let (name, key, what, volume) = (r.name.clone(), r.key, r.what, r.volume);
        match result {
            Ok(GuestReply::Read(pieces)) => {
                self.judge_reader(&name, key, first, count, pieces);
                self.reader_asks(at);
            }
            Ok(GuestReply::Map(runs)) => {
                self.judge_status(&name, key, what, first, runs);
                self.reader_asks(at);
            }
            // Its node goes, or the snapshot is gone, or the one that it compares with.
            Err(GuestError::Gone) => {}
            Err(_) if matches!(what, What::Changes(since) if !self.metad.state.kept(key.0).contains(since)) =>
            {
                self.reader_closes(at);
            }
            Err(_) if !self.metad.state.snapshots().contains_key(&key) || self.volumes[volume].trashed => {
                // Who reads is told by the end of its export; what has changed may end for other reasons too.
                if what != What::Data {
                    self.reader_closes(at);
                }
            }
            other => self.fail("VIEWS", format!("a reader of {name} is told {other:?}, and it is there")),
        }
        true
    }

    fn judge_reader(
        &mut self,
        name: &str,
        key: (BranchId, Generation),
        first: u64,
        count: u64,
        pieces: &[ReadPiece],
    ) {
        let Some(image) = self.watchers.cuts.images.get(&key) else { return };
        let bytes = bytes_of(pieces);
        if bytes.len() as u64 != count * BLOCK as u64 {
            return self.fail("VIEWS", format!("a reader of {name} got {} bytes", bytes.len()));
        }
        let mut wrong = None;
        let mut checked = 0;
        for (b, bytes) in (first..).zip(bytes.chunks_exact(BLOCK)) {
            let (chunk, block) = place_of(b);
            let Some(kept) = image.seen.get(&(chunk, block)).map(|s| s.block) else { continue };
            checked += 1;
            let same = match kept {
                Block::Zero | Block::Absent => bytes.iter().all(|x| *x == 0),
                Block::Data(sum) => sum == Sum::of(bytes),
            };
            if !same {
                wrong = Some(format!(
                    "a reader of {name} got other bytes than {kept:?} in {chunk} block {block}"
                ));
            }
        }
        self.counts.checked(Property::Readers, checked);
        if let Some(text) = wrong {
            self.fail("VIEWS", text);
        }
    }

    /// Block status of a snapshot, or what has changed up to it: less than is true may be said, never more.
    fn judge_status(
        &mut self,
        name: &str,
        key: (BranchId, Generation),
        what: What,
        first: u64,
        runs: &[Run],
    ) {
        let images = &self.watchers.cuts.images;
        let Some(image) = images.get(&key) else { return };
        let older = match what {
            What::Changes(since) => images.get(&(key.0, since)),
            What::Data | What::Status => None,
        };
        let states = runs.iter().flat_map(|r| (0..r.count).map(|_| r.state));
        let mut checked = 0;
        let mut wrong = None;
        for (b, state) in (first..).zip(states) {
            let at = place_of(b);
            let Some(seen) = image.seen.get(&at) else { continue };
            let good = match (what, state) {
                (What::Status, BlockState::Zero | BlockState::Absent) => {
                    seen.values.iter().all(|v| *v == ZERO)
                }
                (What::Changes(_), BlockState::Absent) => {
                    older.and_then(|o| o.seen.get(&at)).is_none_or(|o| o.values == seen.values)
                }
                _ => continue,
            };
            checked += 1;
            if !good {
                wrong = Some(format!(
                    "a reader of {name} is told {state:?} ({what:?}) of {} block {}",
                    at.0, at.1
                ));
            }
        }
        self.counts.checked(Property::Status, checked);
        if let Some(text) = wrong {
            self.fail("VIEWS", text);
        }
    }

    /// The export is over. True if it was a reader's.
    pub fn reader_over(&mut self, at: At) -> bool {
        self.readers.open.remove(&at).is_some()
    }

    pub fn readers_gone(&mut self, host: HostIndex) {
        self.readers.open.retain(|at, _| at.0 != host);
    }

    /// A reader that is still waiting, when everything else is at rest.
    #[must_use]
    pub fn reader_waits(&self) -> Option<String> {
        let rest = matches!(self.phase, Phase::Rest { .. });
        let (at, r) = self.readers.open.iter().next().filter(|_| rest)?;
        Some(format!("a reader of {} on n{} waits since {:?}", r.name, at.0 + 1, r.since))
    }
}

fn bytes_of(pieces: &[ReadPiece]) -> Vec<u8> {
    let mut out = Vec::new();
    for p in pieces {
        match p {
            ReadPiece::Zero { bytes } => out.resize(out.len() + *bytes as usize, 0),
            ReadPiece::Data { payload, skip, len } => {
                out.extend_from_slice(&payload.bytes()[*skip as usize..(*skip + *len) as usize]);
            }
        }
    }
    out
}
