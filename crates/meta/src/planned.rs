//! The planner's commands: appoint, place, prune. Each names the epoch and the configurations it saw;
//! what is not current is not applied. They put no member into an in-sync set.

use crate::command::{PlaceItem, PruneItem};
use crate::event::EventKind;
use crate::state::MetaState;
use crate::touch::Touch;
use proto::limits::MEMBERS_MAX;
use proto::{BranchId, ChunkIndex, ConfigNumber, Configuration, Epoch, Member, MemberState, NodeId};
use std::collections::BTreeMap;

impl MetaState {
    pub(crate) fn apply_appoint(&mut self, branch: BranchId, epoch: Epoch, node: Option<NodeId>) -> bool {
        let Some(row) = self.branches.get(&branch) else { return false };
        let known = node.is_none_or(|n| self.nodes.contains_key(&n));
        if row.epoch != epoch || row.appointed == node || !known {
            return false;
        }
        self.set_appointed(branch, node);
        true
    }

    /// One more replica per chunk, stale; the one it replaces leaves, if it is in-sync.
    pub(crate) fn apply_place(
        &mut self,
        at: u64,
        branch: BranchId,
        epoch: Epoch,
        items: &[PlaceItem],
    ) -> bool {
        let Some(copies) = self.session_copies(branch, epoch) else { return false };
        let mut new: BTreeMap<ChunkIndex, Configuration> = BTreeMap::new();
        for item in items {
            let Some(mut c) = self.configuration(branch, item.chunk) else { continue };
            let usable = self.drives.get(&item.drive).is_some_and(|d| !d.stranger && !d.retired);
            let limit = MEMBERS_MAX.min(usize::from(copies) + 2);
            if c.number != item.from
                || c.number == ConfigNumber(0)
                || new.contains_key(&item.chunk)
                || c.member(item.drive).is_some()
                || c.members.len() >= limit
                || !usable
            {
                continue;
            }
            for m in c.members.iter_mut().filter(|m| Some(m.place.drive) == item.replaces) {
                if m.state == MemberState::InSync {
                    m.state = MemberState::Leaving;
                }
            }
            c.members.push(Member { place: self.new_place(item.drive), state: MemberState::Stale });
            c.number = c.number.next();
            new.insert(item.chunk, c);
        }
        let placed = u32::try_from(new.len()).expect("chunk indexes are 32 bits");
        if placed > 0 {
            let name = self.branch_name(branch);
            self.log(at, EventKind::Replacing { name, chunks: placed });
        }
        self.change(at, branch, &new)
    }

    /// Removes members that are not needed: as many in-sync ones as there shall be copies remain without. A stale one
    /// counts for nothing: it may go while anyone stays in-sync (the planner makes way for another one).
    pub(crate) fn apply_prune(
        &mut self,
        at: u64,
        branch: BranchId,
        epoch: Epoch,
        items: &[PruneItem],
    ) -> bool {
        let Some(copies) = self.session_copies(branch, epoch) else { return false };
        let mut new: BTreeMap<ChunkIndex, Configuration> = BTreeMap::new();
        for item in items {
            let Some(mut c) = self.configuration(branch, item.chunk) else { continue };
            if c.number != item.from || c.number == ConfigNumber(0) || new.contains_key(&item.chunk) {
                continue;
            }
            let Some(i) = c.members.iter().position(|m| m.place.drive == item.drive) else { continue };
            let needed =
                if c.members.remove(i).state == MemberState::Stale { 1 } else { usize::from(copies) };
            let staying = c.members.iter().filter(|m| m.state == MemberState::InSync).count();
            if staying < needed {
                continue;
            }
            c.number = c.number.next();
            new.insert(item.chunk, c);
        }
        self.change(at, branch, &new)
    }

    fn session_copies(&self, branch: BranchId, epoch: Epoch) -> Option<u8> {
        let row = self.branches.get(&branch)?;
        (row.epoch == epoch && row.session.is_some()).then_some(row.class.copies)
    }

    fn change(&mut self, at: u64, branch: BranchId, new: &BTreeMap<ChunkIndex, Configuration>) -> bool {
        if new.is_empty() {
            return false;
        }
        self.set_chunks(at, branch, new);
        self.touch(Touch::Chunks(branch, new.keys().copied().collect()));
        true
    }
}
