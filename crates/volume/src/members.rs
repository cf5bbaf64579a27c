//! Whom a session knows: nodes, their drives, and per chunk the replicas with their states.
//!
//! Invariant (section 3): the in-sync set in Raft is a subset of `Chunk::required`, always, for every chunk.

use proto::control::ChunkChange;
use proto::message::{Report, ReportedRun};
use proto::{
    ConfigNumber, Configuration, ConnNumber, DriveId, Marks, Member, MemberState, NodeId, Place,
    ProcessNumber, Time, Version,
};
use std::collections::{BTreeSet, VecDeque};

/// A set of slots of one chunk.
pub(crate) type Mask = u8;
const _: () = assert!(proto::limits::MEMBERS_MAX <= 8);

pub(crate) fn bit(slot: usize) -> Mask {
    1 << slot
}
pub(crate) fn slots(mask: Mask) -> impl Iterator<Item = usize> {
    (0..8).filter(move |&i| mask & (1 << i) != 0)
}

/// A node that holds replicas.
#[derive(Debug)]
pub(crate) struct Node {
    pub id: NodeId,
    /// The live connection.
    pub connection: Option<ConnNumber>,
    /// Process met at the last handshake.
    pub process: Option<ProcessNumber>,
    /// Since when it is connected, or not.
    pub since: Time,
    /// Indices of its drives.
    pub drives: Vec<usize>,
    /// Since when something waits for its lease, which is not held.
    pub lease_wanted: Option<Time>,
}

/// A drive that holds replicas of this branch.
#[derive(Debug, Default)]
pub(crate) struct Drive {
    pub id: DriveId,
    pub node: usize,
    /// The node's present process has it open (the last greeting said so): only then its lease says anything of what the
    /// drive knows.
    pub open: bool,
    /// As the drive last said: it is there and serves.
    pub serving: bool,
    /// Since when it serves, or does not.
    pub since: Time,
    /// It said itself that it failed, or refused what it must not refuse.
    pub failed: bool,
    /// In doubt (5.6); `episode` counts how often it was told.
    pub doubt: bool,
    pub episode: u64,
    /// Answer to the present fence.
    pub report: Option<Report>,
    /// What came of it so far.
    pub reported: Vec<ReportedRun>,
    /// Everything up to here that it was sent is flushed there. ZERO: nothing known.
    pub flushed: Version,
    /// Flushes begun: (number, least unacknowledged - 1).
    pub notes: VecDeque<(u64, u64)>,
    /// Sequence of the newest write sent there.
    pub last_sent: u64,
    /// Up to where somebody waits for a flush.
    pub want: u64,
    /// Flushes asked for: (token, what was sent before).
    pub flushing: Vec<(u64, u64)>,
    /// Not to be asked for a flush before this.
    pub flush_after: Time,
    pub credits: u32,
    /// How many are asked for at a time, and when that was.
    pub stock: u32,
    pub stocked: Time,
    /// Credits are asked for.
    pub credit_asked: bool,
    /// It had none to give; not asked again before this.
    pub full_until: Time,
    pub told: Marks,
    pub told_at: Time,
    /// Chunks of this branch with a replica there.
    pub chunks: BTreeSet<u32>,
    /// Number of chunks that require its replica.
    pub required: u32,
    /// Nanoseconds that an acknowledgement takes, smoothed; number of samples since the last look.
    pub latency: u64,
    pub samples: u32,
    pub slow_since: Option<Time>,
    /// An answer is overdue.
    pub overdue: bool,
    /// When it was last asked whether it serves again.
    pub asked_at: Time,
    /// Reads under way.
    pub reads: u32,
}

/// A replica of a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub place: Place,
    pub drive: usize,
    pub state: MemberState,
    /// No replica: free for a new one.
    pub vacant: bool,
    /// The configuration it was told last, and on which connection.
    pub told: (ConfigNumber, ConnNumber),
    /// Its drive's episode of doubt that a promotion healed.
    pub healed: u64,
    /// It said itself that it does not hold the replica, or refused a write.
    pub lacking: bool,
    /// No resync attempt before this.
    pub retry: Time,
}

/// A proposed change of one chunk. It is undecided until the chunk's number has changed.
#[derive(Debug)]
pub(crate) struct Undecided {
    /// Every set that may come into force.
    pub sets: Vec<Mask>,
    /// What was proposed last.
    pub change: ChunkChange,
    /// Slot that the change is about.
    pub about: Option<usize>,
    /// Token of the question under way.
    pub asked: Option<u64>,
    pub again: Time,
    pub tries: u32,
    pub withdrawn: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub number: ConfigNumber,
    pub slots: Vec<Slot>,
    /// In-sync in Raft as last heard.
    pub set: Mask,
    /// Union of all sets that may be in force, and the target that is about to be proposed.
    pub required: Mask,
    /// Intersection: reads and `min_in_sync` count on it.
    pub inter: Mask,
    /// Whom a write is sent to: required, and a resync target past v0.
    pub fanout: Mask,
    pub undecided: Option<Box<Undecided>>,
    /// Entries of the window.
    pub in_flight: u32,
}

impl Chunk {
    pub fn slot_of(&self, drive: usize) -> Option<usize> {
        self.slots.iter().position(|s| !s.vacant && s.drive == drive)
    }
    pub fn members(&self) -> impl Iterator<Item = (usize, &Slot)> {
        self.slots.iter().enumerate().filter(|(_, s)| !s.vacant)
    }
    pub fn count(&self, state: MemberState) -> usize {
        self.members().filter(|(_, s)| s.state == state).count()
    }
    pub fn configuration(&self) -> Configuration {
        let members = self.members().map(|(_, s)| Member { place: s.place, state: s.state }).collect();
        Configuration { number: self.number, members }
    }
    /// Puts a configuration into the slots. Members that stay keep their slot. Returns the slots that are vacant
    /// or new: nothing that was sent or acknowledged there before counts for what is there now.
    pub fn adopt(&mut self, to: &Configuration, mut drive: impl FnMut(Place) -> usize) -> Mask {
        let mut fresh = 0;
        self.number = to.number;
        for (i, s) in self.slots.iter_mut().enumerate() {
            match to.members.iter().find(|m| m.place == s.place) {
                Some(m) if !s.vacant => s.state = m.state,
                _ => {
                    s.vacant = true;
                    fresh |= bit(i);
                }
            }
        }
        for m in &to.members {
            if self.members().any(|(_, s)| s.place == m.place) {
                continue;
            }
            let slot = Slot {
                place: m.place,
                drive: drive(m.place),
                state: m.state,
                vacant: false,
                told: (ConfigNumber(0), ConnNumber(0)),
                healed: 0,
                lacking: false,
                retry: Time::ZERO,
            };
            let i = self.slots.iter().position(|s| s.vacant).unwrap_or(self.slots.len());
            fresh |= bit(i);
            match self.slots.get_mut(i) {
                Some(s) => *s = slot,
                None => self.slots.push(slot),
            }
        }
        // Of a placement that is not made nobody is required, read or suspected.
        let made = to.number.0 > 0;
        self.set = self
            .members()
            .filter(|(_, s)| made && s.state != MemberState::Stale)
            .fold(0, |m, (i, _)| m | bit(i));
        fresh
    }
}
