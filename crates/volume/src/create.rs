//! A new placement, at creation or growth: the records are made on all drives, flushed, and only then committed.
//! One message per drive, not per chunk; drives that fail are placed around.

use crate::session::{Asked, Phase, Session, What};
use proto::control::MetaRequest;
use proto::limits::ANSWER_TIMEOUT;
use proto::message::{BranchInfo, ChunkRecord, Request};
use proto::{ChunkIndex, Configuration, DriveId, Geometry, ListIndex, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Records in one message: well below `limits::FRAME_BODY_MAX`.
const BATCH: usize = 8192;

#[derive(Debug, Default)]
pub(crate) struct Creation {
    /// Chunks that have no records yet; `None`: not begun.
    chunks: Option<BTreeSet<u32>>,
    drives: BTreeMap<usize, Making>,
    since: Time,
    asked: bool,
    again: Time,
}

#[derive(Debug, Default)]
struct Making {
    left: Vec<Vec<ChunkRecord>>,
    sent: bool,
    failed: bool,
}

impl Creation {
    /// The link broke: the same message again.
    pub fn again(&mut self, drive: usize) {
        if let Some(m) = self.drives.get_mut(&drive) {
            m.sent = false;
        }
    }
    pub fn refused(&mut self, drive: usize) {
        if let Some(m) = self.drives.get_mut(&drive) {
            m.failed = true;
        }
    }
    pub fn ask_again(&mut self, at: Time) {
        self.asked = false;
        self.again = at;
    }
    /// Nothing is being made.
    pub fn is_idle(&self) -> bool {
        self.chunks.is_none()
    }
}

impl Session {
    pub(crate) fn branch_info(&self) -> BranchInfo {
        BranchInfo {
            branch: self.branch,
            name: self.attached.name.clone(),
            geometry: self.growing.unwrap_or(self.geometry),
            parent: self.attached.origin,
            generation: self.generation,
        }
    }

    fn begin_creation(&mut self, chunks: BTreeSet<u32>) {
        let mut drives: BTreeMap<usize, Vec<ChunkRecord>> = BTreeMap::new();
        for &chunk in &chunks {
            let c = &self.chunks[chunk as usize];
            let configuration = c.configuration();
            for (_, s) in c.members() {
                drives.entry(s.drive).or_default().push(ChunkRecord {
                    chunk: ChunkIndex(chunk),
                    incarnation: s.place.incarnation,
                    configuration: configuration.clone(),
                });
            }
        }
        self.creation = Creation { chunks: Some(chunks), since: self.now, ..Creation::default() };
        for (drive, records) in drives {
            let mut left: Vec<Vec<ChunkRecord>> = records.chunks(BATCH).map(<[_]>::to_vec).collect();
            left.reverse();
            self.creation.drives.insert(drive, Making { left, ..Making::default() });
        }
    }

    pub(crate) fn push_creation(&mut self) {
        if self.creation.chunks.is_none() {
            let new = (0..).zip(&self.chunks).filter(|(_, c)| c.number.0 == 0).map(|(i, _)| i).collect();
            self.begin_creation(new);
        }
        let late = self.now.since(self.creation.since) > ANSWER_TIMEOUT;
        let mut send = vec![];
        for (&drive, m) in &mut self.creation.drives {
            let d = &self.drives[drive];
            let linked = d.serving && !d.failed && self.nodes[d.node].connection.is_some();
            m.failed |= (late || d.failed) && !m.left.is_empty();
            if let Some(records) = m.left.last()
                && !m.failed
                && !m.sent
                && linked
            {
                m.sent = true;
                send.push((drive, records.clone()));
            }
        }
        for (drive, chunks) in send {
            let info = self.branch_info();
            let token = self.ask(drive, What::Create);
            self.send_drive(drive, token, Request::Create { info, chunks });
        }
        let over = self.creation.drives.values().all(|m| m.failed || m.left.is_empty());
        if over && !self.creation.asked && self.now >= self.creation.again {
            self.commit_creation();
        }
    }

    fn commit_creation(&mut self) {
        self.creation.asked = true;
        let failed: Vec<DriveId> =
            self.creation.drives.iter().filter(|(_, m)| m.failed).map(|(&d, _)| self.drives[d].id).collect();
        let placement = self.attached.placement.expect("only a new placement is created");
        let request = MetaRequest::Created { branch: self.branch, epoch: self.epoch, placement, failed };
        self.ask_metad(Asked::Created, request);
    }

    pub(crate) fn records_made(&mut self, drive: usize, _token: u64) {
        if let Some(m) = self.creation.drives.get_mut(&drive) {
            m.left.pop();
            m.sent = false;
            self.creation.since = self.now;
        }
        self.dirty = true;
    }

    /// The configurations are in force; or, where drives had failed, there is another placement to make.
    pub(crate) fn placement_answered(
        &mut self,
        configurations: &[(ChunkIndex, Configuration)],
        placement: Option<u32>,
    ) {
        if self.phase != Phase::Creating && self.growing.is_none() {
            return;
        }
        let mut again = BTreeSet::new();
        for (chunk, c) in configurations {
            if chunk.0 as usize == self.chunks.len() {
                self.chunks.push(crate::members::Chunk::default());
            }
            // What is in force already may have an attempt, or a change that is undecided: it is not taken up again.
            let news = |have: &crate::members::Chunk| have.number.0 == 0 || c.number > have.number;
            if self.chunks.get(chunk.0 as usize).is_some_and(news) {
                self.take_up(chunk.0, c);
                if c.number.0 == 0 {
                    again.insert(chunk.0);
                }
            }
        }
        self.attached.placement = placement;
        if placement.is_some() {
            self.begin_creation(again);
            self.dirty = true;
        } else {
            self.creation = Creation::default();
            if self.phase == Phase::Creating {
                self.enter(Phase::Fencing);
            } else {
                self.grow();
            }
        }
    }

    /// Opens with the chunks that are made, if any is: those of a growth are made while it serves.
    pub(crate) fn begin_with_what_is_made(&mut self, configurations: &[Configuration]) {
        let made = configurations.iter().take_while(|c| c.number.0 > 0).count() as u64;
        if self.attached.placement.is_none() || made == 0 {
            return;
        }
        self.growing = Some(self.geometry);
        self.geometry.size = self.geometry.size.min(made * self.geometry.chunk_bytes());
        self.phase = Phase::Fencing;
    }

    /// metad's word: the volume's size as of this index. It grows, or has grown; or has shrunk, and no guest has it then.
    pub(crate) fn resized(&mut self, index: ListIndex, geometry: Geometry, placement: Option<u32>) {
        if self.phase == Phase::Creating || index < self.size_as_of {
            return;
        }
        self.size_as_of = index;
        if geometry.size <= self.geometry.size {
            if self.growing.take().is_some() {
                self.creation = Creation::default();
                self.attached.placement = None;
            }
            if geometry.size < self.geometry.size {
                self.geometry = geometry;
                self.effects.push_back(crate::Effect::Resized { geometry });
            }
            return;
        }
        self.growing = Some(geometry);
        if self.creation.is_idle() {
            self.attached.placement = placement;
        }
        self.dirty = true;
        self.grow();
    }

    /// Makes the records of new chunks, once all of them are known, and shows the guest its new size.
    pub(crate) fn push_growth(&mut self) {
        let Some(geometry) = self.growing.filter(|_| self.phase == Phase::Serving) else { return };
        let known = self.chunks.len() >= geometry.chunks() as usize;
        if known && self.attached.placement.is_some() {
            self.push_creation();
        }
        self.grow();
    }

    /// The guest sees the size once every chunk of it is known and in force.
    fn grow(&mut self) {
        let Some(geometry) = self.growing else { return };
        if self.chunks.len() >= geometry.chunks() as usize && self.chunks.iter().all(|c| c.number.0 > 0) {
            self.geometry = geometry;
            self.growing = None;
            self.attached.placement = None;
            // metad may have been asked about it, and its answer not be here: it is not waited for.
            self.creation = Creation::default();
            self.effects.push_back(crate::Effect::Resized { geometry });
        } else if self.attached.placement.is_none() || self.chunks.len() < geometry.chunks() as usize {
            let made = self.chunks.iter().take_while(|c| c.number.0 > 0).count();
            let from = u32::try_from(made).expect("at most 2^20 chunks");
            self.to_ask.extend(from..geometry.chunks());
        }
    }
}
