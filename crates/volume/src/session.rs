//! The session: what it knows, and what happens after every event.
//!
//! Owns everything that is decided about one branch: versions, marks, membership, the guest's requests. Never
//! touches a socket, a drive or a clock. The rules stand in the rooms: `ops` and `ordering` (hold-back), `fanout`
//! and `acks` (5.1), `flush`, `reads` (5.5), `links` (retries), `fail` and `propose` (3, 5.2), `resync` (5.3),
//! `opening` and `reconcile` (5.4, 5.6), `repair` (5.8), `seal`, `parents` and
//! `presence`, `job`, `flatten` and `shrink` (6), `create`, `close`.

use crate::bugs::Seeded;
use crate::event::{CloseReason, Effect, Event, Leases, Notice, WaitReason};
use crate::fanout::Window;
use crate::flatten::Flatten;
use crate::members::{Chunk, Drive, Node};
use crate::ops::{Op, Request};
use crate::ordering::Claims;
use crate::reads::{Fetch, Segment};
use crate::request::GuestRequest;
use crate::shrink::Shrink;
use proto::control::{Attached, JobOrder, MetaRequest, SessionKind};
use proto::message::{self, RequestFrame, Scope};
use proto::{
    BranchId, ChunkIndex, DriveId, Epoch, Generation, Geometry, ListIndex, Map, Marks, NodeId, ProcessNumber,
    Span, Time, Version,
};
use slab::Slab;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How often what has a deadline is looked at, while anything has one.
pub(crate) const TICK: Span = Span::millis(50);
/// Woken so late, a session takes it that its process, or its machine, was stopped.
const STOPPED: Span = Span::millis(500);

/// Where a session stands. Each step leads to the next; a failure on the way to `Serving` leads back to `Fencing`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Phase {
    /// Records of a new placement are being made.
    Creating,
    /// Not every in-sync replica has answered its fence.
    Fencing,
    /// What the reports name is written anew.
    Rewriting,
    /// What was rewritten is being flushed.
    Flushing,
    EndingDoubt,
    Serving,
    /// `Close` has come: requests end, no new ones.
    Draining,
    Detaching,
    Closed,
}

/// A question to a replica that is answered by its token.
#[derive(Debug)]
pub(crate) struct Pending {
    pub drive: usize,
    pub since: Time,
    pub what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    Fetch {
        segment: Segment,
        slot: usize,
    },
    Flush,
    Fence,
    Create,
    EndDoubt,
    /// Of a resync attempt: store the epoch; make the record first; list.
    Begin {
        chunk: u32,
        number: u64,
    },
    Record {
        chunk: u32,
        number: u64,
    },
    List {
        chunk: u32,
        number: u64,
    },
    Credit {
        probe: Option<usize>,
    },
    Map {
        op: usize,
    },
    /// Where the branch itself has something.
    Presence(crate::presence::At),
    Verify {
        op: usize,
        slot: usize,
    },
    Repair {
        op: usize,
    },
    /// Of a flatten: what the branch has not; whether a view lacks anything.
    LookForAbsent {
        chunk: u32,
        range: proto::BlockRange,
    },
    Absence {
        round: u64,
    },
    /// Of a shrink: what the branch has.
    LookForWritten {
        chunk: u32,
        range: proto::BlockRange,
    },
    Rewrite {
        key: crate::reconcile::Key,
        slot: usize,
    },
    /// Whether a drive serves again.
    Hello,
}

/// A question to metad.
#[derive(Debug)]
pub(crate) enum Asked {
    Proposal(Vec<u32>),
    Chunks(Vec<u32>),
    Created,
    Detach,
    /// The branch's generations; and that this one is drained and flushed.
    Views(Option<Generation>),
    Cut,
    Shrunk,
}

pub struct Session {
    pub(crate) now: Time,
    pub(crate) me: NodeId,
    pub(crate) process: ProcessNumber,
    pub(crate) attached: Attached,
    pub(crate) branch: BranchId,
    pub(crate) epoch: Epoch,
    pub(crate) generation: Generation,
    pub(crate) geometry: Geometry,
    pub(crate) phase: Phase,
    pub(crate) phase_since: Time,
    pub(crate) began: Time,
    pub(crate) bugs: Seeded,
    pub(crate) effects: VecDeque<Effect>,
    /// Something other than a guest's I/O changed: look at everything.
    pub(crate) dirty: bool,
    pub(crate) next_tick: Time,
    /// When it went on after it had been stopped.
    pub(crate) back: Time,

    pub(crate) nodes: Vec<Node>,
    pub(crate) node_ix: Map<NodeId, usize>,
    pub(crate) drives: Vec<Drive>,
    pub(crate) drive_ix: Map<DriveId, usize>,
    pub(crate) chunks: Vec<Chunk>,
    /// Drives that Raft calls down.
    pub(crate) down: BTreeSet<DriveId>,
    /// Chunks with a member that is stale or leaving; chunks with an undecided change.
    pub(crate) degraded: BTreeSet<u32>,
    pub(crate) undecided: BTreeSet<u32>,
    /// Chunks with a member that said itself that it lacks something.
    pub(crate) lacking: BTreeSet<u32>,
    /// A member is suspected without evidence.
    pub(crate) unproven: bool,
    pub(crate) doubt_since: Option<Time>,
    pub(crate) speed_at: Time,
    pub(crate) to_propose: BTreeSet<u32>,
    /// metad is asked for these.
    pub(crate) to_ask: BTreeSet<u32>,
    pub(crate) ask_after: Time,

    /// Sequence of the newest write; every write up to `committed` is answered; newest answered.
    pub(crate) seq: u64,
    pub(crate) committed: u64,
    pub(crate) answered: u64,
    pub(crate) window: Window,
    /// Marks as last said.
    pub(crate) said: Marks,

    pub(crate) requests: Slab<Request>,
    pub(crate) ops: Slab<Op>,
    pub(crate) claims: Claims,
    pub(crate) arrivals: VecDeque<GuestRequest>,
    /// Operations whose claims are granted.
    pub(crate) ready: VecDeque<usize>,
    /// Requests that have more pieces to yield.
    pub(crate) unsplit: VecDeque<usize>,
    /// Writes of chunks with fewer than `min_in_sync` replicas: nothing claimed.
    pub(crate) parked: BTreeMap<u32, Vec<usize>>,
    pub(crate) fetches: Slab<Fetch>,
    /// Parts of fetches that no replica can serve now.
    pub(crate) stuck: Vec<Segment>,
    /// Operations to be started again when something has changed.
    pub(crate) stalled: Vec<usize>,
    pub(crate) unanswered_reads: bool,
    /// Reads that only wait for leases.
    pub(crate) answerable: Vec<usize>,
    pub(crate) credit_waits: VecDeque<usize>,
    pub(crate) flushes: VecDeque<crate::flush::PendingFlush>,
    pub(crate) flush_dirty: bool,
    pub(crate) scratch: Vec<usize>,

    pub(crate) pending: BTreeMap<u64, Pending>,
    pub(crate) asked: BTreeMap<u64, (Time, Asked)>,
    pub(crate) next_token: u64,

    pub(crate) attempts: BTreeMap<u32, crate::resync::Attempt>,
    pub(crate) attempt_number: u64,
    pub(crate) resync: crate::resync::Progress,
    pub(crate) scan_from: u32,

    pub(crate) fence: u32,
    pub(crate) seal: crate::seal::Seal,
    pub(crate) rewrites: crate::reconcile::Rewrites,
    pub(crate) creation: crate::create::Creation,
    pub(crate) repairs: BTreeSet<(u32, u32, usize)>,
    pub(crate) closing: crate::close::Closing,
    pub(crate) waits: BTreeMap<u8, WaitReason>,
    pub(crate) idle_since: Option<Time>,
    /// The size to be, while its new chunks are not all known.
    pub(crate) growing: Option<Geometry>,
    /// Of a clone: what is absent in the branch is read there.
    pub(crate) parents: Option<Box<crate::parents::Parents>>,
    pub(crate) flatten: Option<Box<Flatten>>,
    pub(crate) shrink: Option<Box<Shrink>>,
    /// Another job, or none, once what is under way of this one has ended.
    pub(crate) next_job: Option<Option<JobOrder>>,
    /// As of which index its job, and its size, are known.
    pub(crate) job_as_of: ListIndex,
    pub(crate) size_as_of: ListIndex,
}

impl Session {
    /// A session that metad has given an epoch. `Connected` follows for every node as links come up.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "one line per field")]
    pub fn new(mut attached: Attached, me: NodeId, process: ProcessNumber, now: Time) -> Session {
        let configurations = std::mem::take(&mut attached.configurations);
        let mut s = Session {
            now,
            me,
            process,
            branch: attached.branch,
            epoch: attached.epoch,
            generation: attached.views.head,
            geometry: attached.geometry,
            phase: if attached.placement.is_some() { Phase::Creating } else { Phase::Fencing },
            phase_since: now,
            began: now,
            bugs: Seeded::default(),
            effects: VecDeque::new(),
            dirty: true,
            next_tick: now,
            back: Time::ZERO,
            nodes: vec![],
            node_ix: Map::default(),
            drives: vec![],
            drive_ix: Map::default(),
            chunks: vec![],
            down: attached.down.iter().copied().collect(),
            degraded: BTreeSet::new(),
            undecided: BTreeSet::new(),
            lacking: BTreeSet::new(),
            unproven: false,
            doubt_since: None,
            speed_at: now,
            to_propose: BTreeSet::new(),
            to_ask: BTreeSet::new(),
            ask_after: now,
            seq: 0,
            committed: 0,
            answered: 0,
            window: Window::default(),
            said: Marks::default(),
            requests: Slab::new(),
            ops: Slab::new(),
            claims: Claims::default(),
            arrivals: VecDeque::new(),
            ready: VecDeque::new(),
            unsplit: VecDeque::new(),
            parked: BTreeMap::new(),
            fetches: Slab::new(),
            stuck: vec![],
            stalled: vec![],
            unanswered_reads: false,
            answerable: vec![],
            credit_waits: VecDeque::new(),
            flushes: VecDeque::new(),
            flush_dirty: false,
            scratch: vec![],
            pending: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_token: 0,
            attempts: BTreeMap::new(),
            attempt_number: 0,
            resync: crate::resync::Progress::default(),
            scan_from: 0,
            fence: 1,
            seal: crate::seal::Seal::new(),
            rewrites: crate::reconcile::Rewrites::default(),
            creation: crate::create::Creation::default(),
            repairs: BTreeSet::new(),
            closing: crate::close::Closing::default(),
            waits: BTreeMap::new(),
            idle_since: None,
            growing: None,
            parents: crate::parents::Parents::new(&attached.parents),
            flatten: None,
            shrink: None,
            next_job: None,
            job_as_of: attached.views.index,
            size_as_of: attached.views.index,
            attached,
        };
        s.window.restart(1);
        s.begin_with_what_is_made(&configurations);
        for (i, c) in configurations.iter().enumerate() {
            s.chunks.push(Chunk::default());
            s.take_up(u32::try_from(i).expect("at most 2^20 chunks"), c);
        }
        s.job_told(s.job_as_of, s.attached.job);
        s
    }

    /// Switches seeded bugs on.
    #[cfg(feature = "bugs")]
    pub fn set_bugs(&mut self, bugs: crate::Bugs) {
        self.bugs = Seeded::new(bugs);
    }

    /// One event. Effects are to be drained by `poll` afterwards.
    pub fn handle(&mut self, now: Time, leases: &dyn Leases, event: Event) {
        self.now = self.now.max(now);
        if self.phase == Phase::Closed {
            if let Event::Guest(g) = event {
                self.complete(g.ticket, Err(crate::GuestError::Gone));
            }
            return;
        }
        // Links that break together are all known before anyone is suspected: a `Wake` follows.
        let may_judge = !matches!(event, Event::Disconnected { .. });
        match event {
            Event::Guest(g) => self.guest(g),
            Event::Withdraw { tickets } => self.withdraw_guests(&tickets),
            Event::Connected { node, connection, process, drives } => {
                self.connected(node, connection, process, &drives);
            }
            Event::Disconnected { node } => self.disconnected(node),
            Event::Reply { node, frame } => self.reply(node, frame),
            Event::Meta { token, answer } => self.meta_answer(token, answer),
            Event::ChunksChanged { chunks } => {
                self.to_ask.extend(chunks.iter().map(|c| c.0));
                self.dirty = true;
            }
            Event::Down { drives } => {
                self.down = drives.into_iter().collect();
                self.dirty = true;
            }
            Event::Views { views } => self.views_told(&views),
            Event::Resized { index, geometry, placement } => self.resized(index, geometry, placement),
            Event::Job { index, job } => self.job_told(index, job),
            Event::Revoked { node: _, epoch } => {
                if epoch > self.epoch {
                    self.give_up(CloseReason::Fenced);
                }
            }
            Event::LeaseGained { .. } => self.dirty = true,
            Event::Close => self.close(),
            Event::Wake => {}
        }
        self.maintain(leases, may_judge);
        #[cfg(debug_assertions)]
        self.check();
    }

    /// The next effect, in order.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When `Wake` is wanted; `Time::FAR` when nothing has a deadline.
    #[must_use]
    pub fn next_wake(&self) -> Time {
        if self.phase == Phase::Closed {
            return Time::FAR;
        }
        let own = if self.has_deadlines() { self.next_tick.min(self.seal.wake()) } else { Time::FAR };
        self.parents.as_ref().map_or(own, |p| p.wake().min(own))
    }

    /// Pushes whatever can be pushed. Cheap when nothing changed.
    fn maintain(&mut self, leases: &dyn Leases, may_judge: bool) {
        let tick = may_judge && self.now >= self.next_tick;
        if tick {
            // woken late: we were stopped, and our own silence is not to be taken for that of others
            if self.now.since(self.next_tick) >= STOPPED {
                self.back = self.now;
            }
            self.next_tick = self.now + TICK;
        }
        self.dirty |= self.now >= self.seal.wake();
        let mut rounds = 0;
        loop {
            self.run_ready();
            if self.parents.is_some() {
                self.push_parents();
            }
            if (self.dirty || (tick && rounds == 0)) && self.phase != Phase::Closed {
                self.dirty = false;
                self.look_at_everything(leases, tick && rounds == 0);
            }
            if self.flush_dirty {
                self.push_flushes();
            }
            self.answer_reads(leases);
            rounds += 1;
            let quiet = self.ready.is_empty() && self.unsplit.is_empty() && !self.flush_dirty && !self.dirty;
            let quiet = quiet && self.parents.as_ref().is_none_or(|p| p.is_quiet());
            if self.phase == Phase::Closed || quiet {
                break;
            }
            assert!(rounds < 10_000, "the session does not come to rest");
        }
    }

    /// What need not be looked at after each write of a guest.
    fn look_at_everything(&mut self, leases: &dyn Leases, tick: bool) {
        if tick {
            self.watch_answers();
            self.tell_marks();
            self.ask_drives();
        }
        self.push_phase();
        if self.phase == Phase::Closed {
            return;
        }
        if tick {
            self.suspect();
        }
        if self.phase == Phase::Closed {
            return;
        }
        self.push_seal();
        self.push_job();
        self.push_growth();
        self.push_resync(leases);
        self.push_proposals();
        self.ask_chunks();
        self.retry_stuck();
        self.admit_arrivals();
        if tick {
            self.note_waits(leases);
            self.close_when_idle();
        }
    }

    fn has_deadlines(&self) -> bool {
        self.phase != Phase::Serving
            || !self.window.is_empty()
            || !self.pending.is_empty()
            || !self.asked.is_empty()
            || !self.ops.is_empty()
            || !self.flushes.is_empty()
            || !self.undecided.is_empty()
            || !self.to_ask.is_empty()
            || !self.attempts.is_empty()
            || !self.waits.is_empty()
            || self.seal.busy()
            || self.has_job()
            || self.growing.is_some()
            || self.views_behind()
            || self.attached.kind == SessionKind::Maintenance
            || self.marks_untold()
            || self.anything_suspect()
            || self.resync_wanted()
    }

    // ---------------------------------------------------------------- saying things

    pub(crate) fn notice(&mut self, n: Notice) {
        self.effects.push_back(Effect::Notice(n));
    }

    pub(crate) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.phase_since = self.now;
        self.dirty = true;
    }

    pub(crate) fn serving(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Draining)
    }

    pub(crate) fn opening(&self) -> bool {
        self.phase < Phase::Serving
    }

    pub(crate) fn version(&self, seq: u64) -> Version {
        Version::new(self.epoch, seq)
    }

    /// True if frames can go to this drive and it is there.
    pub(crate) fn linked(&self, drive: usize) -> bool {
        let d = &self.drives[drive];
        d.serving && !d.failed && self.nodes[d.node].connection.is_some()
    }

    /// A frame about the branch on a drive.
    pub(crate) fn send_drive(&mut self, drive: usize, token: u64, request: message::Request) {
        let (id, node) = (self.drives[drive].id, self.drives[drive].node);
        let scope =
            Scope { drive: id, branch: self.branch, epoch: self.epoch, marks: self.said, ..Scope::default() };
        self.push_frame(drive, node, RequestFrame { token, scope, request });
    }

    /// A frame about a replica of a chunk.
    pub(crate) fn send_slot(&mut self, chunk: u32, slot: usize, token: u64, request: message::Request) {
        let c = &self.chunks[chunk as usize];
        let s = &c.slots[slot];
        let scope = Scope {
            drive: s.place.drive,
            branch: self.branch,
            chunk: ChunkIndex(chunk),
            epoch: self.epoch,
            incarnation: s.place.incarnation,
            configuration: c.number,
            marks: self.said,
        };
        let (drive, node) = (s.drive, self.drives[s.drive].node);
        self.push_frame(drive, node, RequestFrame { token, scope, request });
    }

    fn push_frame(&mut self, drive: usize, node: usize, frame: RequestFrame) {
        if self.nodes[node].connection.is_none() {
            return;
        }
        self.drives[drive].told = self.said;
        self.effects.push_back(Effect::Send { node: self.nodes[node].id, frame });
    }

    /// Notes a question to a drive; its token.
    pub(crate) fn ask(&mut self, drive: usize, what: What) -> u64 {
        self.next_token += 1;
        self.pending.insert(self.next_token, Pending { drive, since: self.now, what });
        self.next_token
    }

    pub(crate) fn ask_metad(&mut self, asked: Asked, request: MetaRequest) -> u64 {
        self.next_token += 1;
        self.asked.insert(self.next_token, (self.now, asked));
        self.effects.push_back(Effect::Meta { token: self.next_token, request });
        self.next_token
    }
}
