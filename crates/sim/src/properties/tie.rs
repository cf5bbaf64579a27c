//! TIE: when Raft cuts the tie of a clone to its parent, no in-sync replica lacks a block that the parent may have had (up to
//! its end) in the head or in a kept view. (That no loss of power brings an older state back in which one is missing, the readers find out: LIN, VIEWS.)

use crate::counts::{Operator, Property};
use crate::effects::index_of;
use crate::layout::CHUNK_BLOCKS;
use crate::world::World;
use proto::message::View;
use proto::{BranchId, Place};
use store::view::BlockView;

impl World {
    pub fn check_tie(&mut self, branch: BranchId) {
        self.counts.operator(Operator::Untied);
        let Some(row) = self.metad.state.branches().get(&branch) else { return };
        let parent = row.parent.map_or(0, |l| l.size);
        let blocks = parent.min(row.geometry.size).div_ceil(proto::limits::BLOCK as u64);
        let kept = self.metad.state.kept(branch);
        let views: Vec<View> = kept.iter().map(View::At).chain([View::Head]).collect();
        for (chunk, c) in self.metad.configurations(branch) {
            let here = blocks.saturating_sub(u64::from(chunk.0) * CHUNK_BLOCKS).min(CHUNK_BLOCKS);
            let here = u32::try_from(here).expect("within a chunk");
            let sound = |p: &Place| !self.in_doubt(*p, branch);
            let members: Vec<Place> = c.in_sync().map(|m| m.place).filter(sound).collect();
            for place in members {
                let Some(store) = self.store(index_of(place.node), place.drive) else { continue };
                let absent = |b: &u32, view| {
                    store.block(branch, chunk, *b, view).is_some_and(|s| s.0 == BlockView::Absent)
                };
                let lacks = |view: View| (0..here).find(|b| absent(b, view));
                let found = views.iter().find_map(|v| Some((*v, lacks(*v)?)));
                self.counts.checked(Property::Tie, 1);
                if let Some((view, block)) = found {
                    let text = format!(
                        "{branch} {chunk} block {block} of {view:?} is absent on {}, and the tie is cut",
                        place.drive
                    );
                    return self.fail("TIE", text);
                }
            }
        }
    }
}
