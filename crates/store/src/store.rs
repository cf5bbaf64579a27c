//! The machine: one drive's extent store.
//!
//! Owns all parts and hands events to them. After each event the same `maintain` pushes whatever can be pushed.

use crate::bugs::Bugs;
use crate::checkpoint::Checkpoint;
use crate::disk::page::{record_page_of, table_page_of};
use crate::disk::superblock::Superblock;
use crate::event::{Effect, Event, Failure, IoId, IoOp, IoResult, Notice, Source};
use crate::flush::Flusher;
use crate::homes::Going;
use crate::index::Index;
use crate::intake::Intake;
use crate::journal::Journal;
use crate::layout::Layout;
use crate::overlay::Overlay;
use crate::pages::Pages;
use crate::read::ReadJob;
use crate::records::Records;
use crate::recovery::Recovery;
use crate::sweep::Sweeper;
use crate::table::{NONE, Px, Table};
use proto::message::{Reply, ReplyFrame};
use proto::{BranchId, ClusterId, DriveId, Map, NodeId, OpenId, Refusal, Set, Time, Version};
use slab::Slab;
use std::collections::VecDeque;

/// What a store is opened with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenParams {
    /// Bytes of the drive now.
    pub size: u64,
    /// The kernel's boot id.
    pub boot: [u8; 16],
    /// Whose drive it has to be.
    pub cluster: ClusterId,
    pub node: NodeId,
    /// This opening's id; random.
    pub opening: OpenId,
    /// False on a block device that reports no volatile write cache: then flushes cost nothing.
    pub volatile_cache: bool,
    pub now: Time,
}

/// What an I/O in flight is for.
pub(crate) enum Job {
    Open,
    Batch(u64),
    Large(usize),
    /// Blocks on their way home.
    Home(Vec<Going>),
    TablePage(u32),
    RecordPage(u32),
    /// A chunk of the journal's index.
    Index(u64),
    Superblock,
    Flush,
    /// Read job, and which of its parts.
    Read(usize, usize),
    /// Replayed blocks whose bytes are read.
    Load(Vec<crate::load::Unread>),
}

/// Where the store is in its life.
pub(crate) enum Phase {
    Opening(Box<Recovery>),
    Open,
    /// Closing: `true` once the clean mark is being written.
    Closing(bool),
    Closed,
    Failed,
}

/// A write of the superblock that is under way.
pub(crate) struct SuperblockWrite {
    pub new: Superblock,
    /// When it completed.
    pub stamp: Option<u64>,
}

/// The parts that exist once the drive has been read.
pub(crate) struct Disk {
    pub layout: Layout,
    pub drive: DriveId,
    /// As flushed, and where.
    pub superblock: Superblock,
    pub slot: u8,
    pub writing: Option<SuperblockWrite>,
    /// metad has confirmed this opening and the superblock does not say so yet.
    pub confirm: bool,
    pub table: Table,
    pub table_pages: Pages,
    pub record_pages: Pages,
    pub records: Records,
    pub overlay: Overlay,
    pub journal: Journal,
    pub index: Index,
}

/// One drive's extent store.
pub struct Store {
    pub(crate) params: OpenParams,
    bugs: Bugs,
    pub(crate) now: Time,
    pub(crate) phase: Phase,
    /// metad has matched the openings, or the boot is the same.
    pub(crate) serving: bool,
    effects: VecDeque<Effect>,
    next_io: u64,
    /// In flight, and where on the drive; none: a flush.
    pub(crate) jobs: Map<u64, (Job, Option<u64>)>,
    /// Writes completed so far: orders completions against flushes.
    pub(crate) stamp: u64,
    pub(crate) disk: Option<Disk>,
    pub(crate) intake: Intake,
    pub(crate) flusher: Flusher,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) loader: crate::load::Loader,
    pub(crate) sweeper: Sweeper,
    pub(crate) reads: Slab<ReadJob>,
    /// Connections that have sent something and are open.
    pub(crate) sources: Set<Source>,
    pub(crate) credits: u64,
    /// Space kept for zeroes that sessions are about to send.
    pub(crate) promises: Vec<crate::zeroes::Promise>,
    /// Branches whose marks have risen.
    pub(crate) marks_dirty: VecDeque<BranchId>,
    pub(crate) marks_since: Option<Time>,
    /// Journaled marks that wait for their flush.
    pub(crate) marks_stored: VecDeque<(u64, BranchId, Version)>,
    pub(crate) space_low: bool,
}

impl Store {
    /// Begins to open a drive: effects with reads follow, and in the end `Opened` or `Failed`.
    #[must_use]
    pub fn new(params: OpenParams) -> Store {
        let mut store = Store {
            params,
            bugs: Bugs::NONE,
            now: params.now,
            phase: Phase::Opening(Box::default()),
            serving: false,
            effects: VecDeque::new(),
            next_io: 1,
            jobs: Map::default(),
            stamp: 0,
            disk: None,
            intake: Intake::default(),
            flusher: Flusher::default(),
            checkpoint: Checkpoint::default(),
            loader: crate::load::Loader::default(),
            sweeper: Sweeper::default(),
            reads: Slab::new(),
            sources: Set::default(),
            credits: 0,
            promises: Vec::new(),
            marks_dirty: VecDeque::new(),
            marks_since: None,
            marks_stored: VecDeque::new(),
            space_low: false,
        };
        store.begin_open();
        store
    }
    /// Switches seeded bugs on.
    #[cfg(feature = "bugs")]
    pub fn set_bugs(&mut self, bugs: Bugs) {
        self.bugs = bugs;
    }
    /// Rules left out; constantly none without the feature.
    pub(crate) fn bugs(&self) -> Bugs {
        if cfg!(feature = "bugs") { self.bugs } else { Bugs::NONE }
    }

    /// Takes one event. All effects must have been polled before (asserted).
    pub fn handle(&mut self, now: Time, event: Event) {
        assert!(self.effects.is_empty(), "effects are drained before the next event");
        self.now = self.now.max(now);
        match event {
            Event::Io { io, result } => self.io_done(io, result),
            Event::Request { source, frame } => self.request(source, frame),
            Event::Pull(pull) => self.pull(pull),
            Event::SourceClosed { source } => self.source_closed(source),
            Event::Confirmed => self.confirmed(),
            Event::Fail(failure) => self.fail(failure),
            Event::Delete { replicas, index } => self.delete(replicas, index),
            Event::TurnEnd | Event::Wake => self.intake.turn_ended = true,
            Event::Keep(list) => self.keep(list),
            Event::Close => self.close(),
        }
        self.maintain();
    }
    /// What is to be done, in order; `None` when all has been taken.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }
    /// When `Event::Wake` is wanted next; `Time::FAR` if never.
    #[must_use]
    pub fn next_wake(&self) -> Time {
        match self.phase {
            Phase::Open | Phase::Closing(_) => self.next_deadline(),
            _ => Time::FAR,
        }
    }

    /// Pushes whatever can be pushed; idempotent.
    fn maintain(&mut self) {
        if !matches!(self.phase, Phase::Open | Phase::Closing(_)) {
            return;
        }
        self.unblock();
        self.push_sweep();
        if self.intake.turn_ended {
            self.intake.turn_ended = false;
            self.seal();
        }
        self.push_flush();
        self.push_index();
        self.push_load();
        self.push_checkpoint();
        self.push_flush();
        self.push_superblock();
        self.push_close();
    }

    fn next_deadline(&self) -> Time {
        let can_seal = self.can_seal();
        if self.intake.has_waiting() && can_seal {
            return self.now;
        }
        let marks =
            self.marks_since.filter(|_| can_seal).map_or(Time::FAR, |t| t + proto::limits::MARKS_EVERY);
        self.flusher.deadline().min(marks).min(self.checkpoint_deadline()).min(self.sweep_deadline())
    }

    fn io_done(&mut self, io: IoId, result: IoResult) {
        let (job, at) = self.jobs.remove(&io.0).expect("only what was asked for completes");
        if matches!(self.phase, Phase::Failed | Phase::Closed) {
            return;
        }
        if matches!(result, IoResult::Written) {
            self.stamp += 1;
        }
        match (job, result) {
            (Job::Read(job, part), result) => self.read_done(job, part, at, result),
            (Job::Open, result) => self.open_io(at, result),
            (Job::Load(run), result) => self.load_done(run, at, result),
            (_, IoResult::Failed(errno)) => self.fail(Failure::of_io(at, errno)),
            (Job::Batch(seq), _) => self.batch_done(seq),
            (Job::Large(id), _) => self.large_done(id),
            (Job::Home(blocks), _) => self.home_done(&blocks),
            (Job::TablePage(page), _) => self.page_done(false, page),
            (Job::RecordPage(page), _) => self.page_done(true, page),
            (Job::Index(number), _) => self.index_done(number),
            (Job::Superblock, _) => self.superblock_done(),
            (Job::Flush, _) => self.flush_done(),
        }
    }

    pub(crate) fn io(&mut self, job: Job, op: IoOp) {
        if matches!(op, IoOp::Write { .. }) {
            self.flusher.write_begins(self.now);
        }
        let at = match op {
            IoOp::Read { offset, .. } | IoOp::Write { offset, .. } => Some(offset),
            IoOp::Flush => None,
        };
        let io = self.next_io;
        self.next_io += 1;
        self.jobs.insert(io, (job, at));
        self.effects.push_back(Effect::Io { io: IoId(io), op });
    }
    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }
    pub(crate) fn notice(&mut self, notice: Notice) {
        self.effects.push_back(Effect::Notice(notice));
    }
    /// An answer, unless the connection that asked is gone.
    pub(crate) fn reply(&mut self, source: Source, token: u64, branch: BranchId, reply: Reply) {
        if !self.sources.contains(&source) {
            return;
        }
        let drive = self.drive();
        self.effects.push_back(Effect::Reply { source, frame: ReplyFrame { token, branch, drive, reply } });
    }
    pub(crate) fn broadcast(&mut self, reply: Reply) {
        let frame = ReplyFrame { token: 0, branch: BranchId(0), drive: self.drive(), reply };
        self.effects.push_back(Effect::Broadcast { frame });
    }
    pub(crate) fn drive(&self) -> DriveId {
        self.disk.as_ref().map_or(DriveId(0), |d| d.drive)
    }

    /// The drive stops: nothing is served any more, and nothing more is written.
    pub(crate) fn fail(&mut self, failure: Failure) {
        if matches!(self.phase, Phase::Failed) {
            return;
        }
        let was_open = matches!(self.phase, Phase::Open | Phase::Closing(_));
        self.phase = Phase::Failed;
        if was_open {
            for (source, token, branch, version) in self.intake.abandon() {
                self.reply(source, token, branch, Reply::Refused { refusal: Refusal::DriveFailed, version });
            }
            let drive = self.drive();
            self.broadcast(Reply::DriveState { drive, failed: true, in_doubt: Vec::new() });
        }
        self.effect(Effect::Failed(failure));
    }

    /// What is there once the drive has been read. Panics before.
    pub(crate) fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("opened")
    }
    pub(crate) fn disk_mut(&mut self) -> &mut Disk {
        self.disk.as_mut().expect("opened")
    }
}

impl Disk {
    /// The table must show an effect of batch `seq` on this extent.
    pub(crate) fn touch_extent(&mut self, px: Px, seq: u64) {
        self.table_pages.touch(table_page_of(px), seq);
    }
    pub(crate) fn record_page(slot: u32) -> u32 {
        record_page_of(slot)
    }
    /// The extent's version, as acknowledged.
    pub(crate) fn version(&self, px: Px) -> Version {
        self.overlay.extent(px).map_or_else(|| self.table.get(px).version(), |d| d.version)
    }
    /// The home of an extent of a replica in exactly this generation (reserved ones too).
    pub(crate) fn find(&self, replica: u32, extent: u32, generation: proto::Generation) -> Option<Px> {
        self.table.find(&self.records.replica(replica).index, extent, generation)
    }
    /// Does an older generation of the extent have a home?
    pub(crate) fn has_beneath(&self, replica: u32, extent: u32, generation: proto::Generation) -> bool {
        let mut px = self.records.replica(replica).index.get(extent);
        while px != NONE && self.table.get(px).generation >= generation {
            px = self.table.get(px).next;
        }
        px != NONE
    }
    pub(crate) fn link(&mut self, px: Px) {
        let replica = self.table.get(px).replica;
        self.table.link(&mut self.records.replica_mut(replica).index, px);
    }
    pub(crate) fn try_link(&mut self, px: Px) -> bool {
        let replica = self.table.get(px).replica;
        self.table.try_link(&mut self.records.replica_mut(replica).index, px)
    }
    pub(crate) fn unlink(&mut self, px: Px) {
        let replica = self.table.get(px).replica;
        self.table.unlink(&mut self.records.replica_mut(replica).index, px);
    }
}
