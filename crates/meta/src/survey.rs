//! How well a branch is: a walk over those chunks that may not be as they should, the others unread.

use crate::state::MetaState;
use proto::{BranchId, ChunkIndex, Configuration, DriveId, MemberState, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// Why a replica does not count.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Fault {
    /// In-sync by Raft, on a drive that is down: nothing was written since.
    Down,
    Stale,
    Leaving,
    /// Fewer members than copies; the drive is none.
    Missing,
}

#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Chunks with fewer in-sync replicas on drives that are up than there shall be copies.
    pub(crate) degraded: u32,
    /// Chunks with fewer than `min_in_sync` of them: their writes wait.
    pub(crate) below_min: u32,
    /// Chunks with none: they cannot be read.
    pub(crate) unavailable: u32,
    /// Chunks that would be without data, or could not be written, after the loss of one more node.
    pub(crate) fragile: u32,
    pub(crate) least: u8,
    pub(crate) faults: BTreeMap<(DriveId, Fault), u32>,
}

impl MetaState {
    pub(crate) fn survey(&self, branch: BranchId) -> Survey {
        let (Some(row), Some(chunks)) = (self.branches.get(&branch), self.chunks.get(&branch)) else {
            return Survey::default();
        };
        let copies = row.class.copies;
        let mut survey = Survey { least: copies, ..Survey::default() };
        // After the loss of a node: data, and writes if the class leaves room for a loss at all.
        let need = row.class.min_in_sync.min(copies.saturating_sub(1)).max(1);
        if copies == 1 {
            survey.fragile = chunks.count();
        }
        let down: Vec<DriveId> =
            self.drives_of(branch).into_iter().filter(|(d, _)| self.drive_down(*d)).map(|(d, _)| d).collect();
        for page in 0..chunks.pages() {
            if chunks.page_unwell(page) == 0 && !down.iter().any(|d| chunks.page_names(page, *d)) {
                continue;
            }
            for (_, c) in chunks.page(page).into_iter().filter(|(_, c)| c.number.0 > 0) {
                self.survey_chunk(&mut survey, &c, copies, row.class.min_in_sync, need);
            }
        }
        survey
    }

    fn survey_chunk(&self, survey: &mut Survey, c: &Configuration, copies: u8, min: u8, need: u8) {
        let mut on: BTreeMap<NodeId, u8> = BTreeMap::new();
        for m in &c.members {
            let down = self.drive_down(m.place.drive);
            let fault = match m.state {
                MemberState::Stale => Some(Fault::Stale),
                _ if down => Some(Fault::Down),
                MemberState::Leaving => Some(Fault::Leaving),
                MemberState::InSync => None,
            };
            if let Some(fault) = fault {
                *survey.faults.entry((m.place.drive, fault)).or_default() += 1;
            }
            if m.in_sync() && !down {
                *on.entry(m.place.node).or_default() += 1;
            }
        }
        if c.members.len() < usize::from(copies) {
            *survey.faults.entry((DriveId(0), Fault::Missing)).or_default() += 1;
        }
        let good: u8 = on.values().sum();
        let after_loss = good - on.values().max().copied().unwrap_or(0);
        survey.degraded += u32::from(good < copies);
        survey.below_min += u32::from(good < min);
        survey.unavailable += u32::from(good == 0);
        survey.fragile += u32::from(after_loss < need && copies > 1);
        survey.least = survey.least.min(good);
    }

    /// Drives that hold replicas of a branch, with their number.
    pub(crate) fn drives_of(&self, branch: BranchId) -> Vec<(DriveId, u32)> {
        self.index.uses.iter().filter_map(|(d, u)| Some((*d, *u.get(&branch)?))).collect()
    }

    /// Branches that may have something wrong.
    pub(crate) fn suspects(&self) -> BTreeSet<BranchId> {
        let down = self.drives.keys().filter(|d| self.drive_down(**d));
        let on_down = down.filter_map(|d| self.index.uses.get(d)).flat_map(BTreeMap::keys);
        self.index.unwell.iter().chain(on_down).copied().collect()
    }

    /// Every chunk has all copies in-sync, on drives that are up.
    #[must_use]
    pub fn is_healthy(&self, branch: BranchId) -> bool {
        let made = self.branches.get(&branch).is_some_and(|b| b.pending().is_none());
        made && self.survey(branch).degraded == 0
    }

    /// Chunks that are not as they should be, for the simulator's properties.
    #[must_use]
    pub fn unwell_chunks(&self, branch: BranchId) -> Vec<(ChunkIndex, Configuration)> {
        self.chunks.get(&branch).map(|c| c.iter_unwell().collect()).unwrap_or_default()
    }
}
