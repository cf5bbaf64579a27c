//! Whether what is lost can be placed anew. The planner asks chunk by chunk before it begins; whoever promises healing
//! asks here first.

use crate::placement::Placer;
use crate::planner::{Judged, Outlook};
use crate::requests::homes;
use crate::service::Service;
use crate::state::MetaState;
use proto::{BranchId, DriveId};
use std::collections::BTreeSet;

/// Chunks that need a replica elsewhere, and those of them for which no other node has room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Room {
    pub(crate) chunks: u32,
    pub(crate) short: u32,
}

impl Room {
    /// `promise`, as far as it can be kept; else what to do, `instead` of adding a node.
    pub(crate) fn promise(self, promise: String, instead: &str) -> String {
        match self {
            Room { short: 0, .. } => promise,
            Room { chunks, short } if short == chunks => {
                format!("no other node has room: add one, or {instead}")
            }
            Room { chunks, short } => format!(
                "{promise}; but for {short} of {chunks} chunks no other node has room: add one, or {instead}"
            ),
        }
    }
}

impl Service {
    /// Room for what these branches would lack without the `lost` drives; with none, for what they lack by now.
    pub(crate) fn room_without(
        &self,
        state: &MetaState,
        outlook: &Outlook,
        lost: &BTreeSet<DriveId>,
        branches: &BTreeSet<BranchId>,
    ) -> Room {
        let out = outlook.out.union(lost).copied().collect();
        let without = Outlook { out, mass_failure: false, ..outlook.clone() };
        let placer = Placer::new(self.candidates(state));
        let mut room = Room::default();
        for branch in branches {
            let (Some(row), Some(chunks)) = (state.branches().get(branch), state.chunks(*branch)) else {
                continue;
            };
            let concerns = |p: &u32| match lost.is_empty() {
                true => chunks.page_unwell(*p) > 0,
                false => lost.iter().any(|d| chunks.page_names(*p, *d)),
            };
            for (_, c) in (0..chunks.pages()).filter(concerns).flat_map(|p| chunks.page(p)) {
                let hit = lost.is_empty() || c.members.iter().any(|m| lost.contains(&m.place.drive));
                let judged = Judged::of(&c, row.class.copies, &without);
                if !hit || !judged.missing {
                    continue;
                }
                room.chunks += 1;
                let (kept, _) = homes(state, &judged.kept);
                room.short += u32::from(!placer.has_room(&kept, |d| c.member(d).is_none()));
            }
        }
        room
    }

    /// The same for one drive, or all of a node, and whatever lies on them.
    pub(crate) fn room_for_all_on(
        &self,
        state: &MetaState,
        outlook: &Outlook,
        lost: &BTreeSet<DriveId>,
    ) -> Room {
        if lost.is_empty() {
            return Room::default();
        }
        let uses = lost.iter().filter_map(|d| state.index.uses.get(d));
        let branches: BTreeSet<BranchId> = uses.flat_map(|u| u.keys().copied()).collect();
        self.room_without(state, outlook, lost, &branches)
    }
}
