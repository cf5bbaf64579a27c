//! Space by view: which extents of a replica each kept view sees, and which it alone sees. Counted from memory when asked.

use crate::store::Disk;
use crate::table::is_bit;
use proto::Generation;
use proto::message::{Usage, ViewUsage};

impl Disk {
    pub(crate) fn usage_of(&self, replica: u32) -> Usage {
        let b = self.records.branch_of(replica);
        let list = b.record.list;
        // Without a list the head is a view: no volume without snapshots has one.
        let named = list.named || list.index.0 == 0;
        let kept: Vec<Generation> = b.kept.iter().collect();
        let mut out = Usage { index: list.index, ..Usage::default() };
        out.views = kept.iter().map(|g| ViewUsage { generation: *g, ..ViewUsage::default() }).collect();
        // Extents that begin to be seen at a view, less those that end there.
        let mut steps = vec![0i64; kept.len() + 1];
        for (_, newest) in self.records.replica(replica).index.range(0, u32::MAX) {
            let chain = self.chain(newest);
            // A whole zero extent hides what is older, and takes no space.
            for at in (0..chain.len()).filter(|at| !is_bit(chain[*at])) {
                out.total += 1;
                let hidden = self.hidden_from(&chain[at..]);
                let first = kept.partition_point(|v| *v < self.table.get(chain[at]).generation);
                let end = hidden.map_or(kept.len(), |h| kept.partition_point(|v| *v < h)).max(first);
                let head = named && hidden.is_none();
                steps[first] += 1;
                steps[end] -= 1;
                out.head.seen += u64::from(head);
                match (end - first, head) {
                    (0, false) => out.unseen += 1,
                    (0, true) => out.head.exclusive += 1,
                    (1, false) => out.views[first].exclusive += 1,
                    _ => {}
                }
            }
        }
        let mut seen = 0;
        for (view, step) in out.views.iter_mut().zip(steps) {
            seen += step;
            view.seen = u64::try_from(seen).expect("no more end than begin");
        }
        out
    }
    /// The generation from which on nothing of the first home (oldest first) is seen; `None`: the head sees some of it.
    fn hidden_from(&self, chain: &[crate::table::Px]) -> Option<Generation> {
        let mut left = self.present(chain[0]);
        if left == 0 {
            return Some(self.table.get(chain[0]).generation);
        }
        chain[1..].iter().find_map(|px| {
            left &= !self.present(*px);
            (left == 0).then(|| self.table.get(*px).generation)
        })
    }
}
