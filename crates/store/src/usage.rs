//! Space by view: which extents of a replica each view sees, and which it alone sees. Counted from memory when asked.

use crate::store::{Disk, Store};
use crate::table::{Px, is_bit};
use proto::limits::BLOCKS_PER_EXTENT;
use proto::message::{Scope, Usage, ViewUsage};
use proto::{BranchId, ChunkIndex, Generation, Generations, Incarnation, Refusal};

/// A count under way, of one replica, by these views.
#[derive(Clone, Debug)]
pub struct Tally {
    kept: Vec<Generation>,
    /// The head is a view.
    named: bool,
    usage: Usage,
    /// Extents that begin to be seen at a view, less those that end there.
    steps: Vec<i64>,
}

impl Tally {
    #[must_use]
    pub fn new(kept: &Generations, named: bool) -> Tally {
        let kept: Vec<Generation> = kept.iter().collect();
        let views = kept.iter().map(|g| ViewUsage { generation: *g, ..ViewUsage::default() }).collect();
        Tally { named, usage: Usage { views, ..Usage::default() }, steps: vec![0; kept.len() + 1], kept }
    }
    /// A physical extent of this generation, of which nothing is seen from the other one on; none: the head sees some of it.
    fn put(&mut self, generation: Generation, hidden: Option<Generation>) {
        let first = self.kept.partition_point(|v| *v < generation);
        let end = hidden.map_or(self.kept.len(), |h| self.kept.partition_point(|v| *v < h)).max(first);
        let head = self.named && hidden.is_none();
        self.usage.total += 1;
        self.steps[first] += 1;
        self.steps[end] -= 1;
        self.usage.head.seen += u64::from(head);
        match (end - first, head) {
            (0, false) => self.usage.unseen += 1,
            (0, true) => self.usage.head.exclusive += 1,
            (1, false) => self.usage.views[first].exclusive += 1,
            _ => {}
        }
    }
    #[must_use]
    pub fn usage(mut self) -> Usage {
        let mut seen = 0;
        for (view, step) in self.usage.views.iter_mut().zip(self.steps) {
            seen += step;
            view.seen = u64::try_from(seen).expect("no more end than begin");
        }
        self.usage
    }
}

impl Store {
    /// Counts on from this extent. `budget` is in physical extents and falls by those that were looked at; when it is used
    /// up the answer is where to go on.
    ///
    /// # Errors
    /// There is no such replica here.
    pub fn tally(
        &self,
        (branch, chunk, incarnation): (BranchId, ChunkIndex, Incarnation),
        from: u32,
        budget: &mut usize,
        tally: &mut Tally,
    ) -> Result<Option<u32>, Refusal> {
        let disk = self.disk.as_ref().ok_or(Refusal::NoDrive)?;
        let scope = Scope { branch, chunk, incarnation, ..Scope::default() };
        let replica = self.check_replica(&scope)?;
        Ok(disk.tally(replica, from, budget, tally))
    }
}

impl Disk {
    /// By the views that the drive's own list names.
    pub(crate) fn usage_of(&self, replica: u32) -> Usage {
        let b = self.records.branch_of(replica);
        let list = b.record.list;
        // Without a list the head is a view: no volume without snapshots has one.
        let mut tally = Tally::new(&b.kept, list.named || list.index.0 == 0);
        let mut budget = usize::MAX;
        self.tally(replica, 0, &mut budget, &mut tally);
        Usage { index: list.index, ..tally.usage() }
    }
    fn tally(&self, replica: u32, from: u32, budget: &mut usize, tally: &mut Tally) -> Option<u32> {
        let mut chain = Vec::new();
        for (extent, newest) in self.records.replica(replica).index.range(from, u32::MAX) {
            if *budget == 0 {
                return Some(extent);
            }
            self.list_chain(newest, &mut chain);
            *budget = budget.saturating_sub(chain.len());
            self.tally_extent(&chain, tally);
        }
        None
    }
    /// The homes of one extent, oldest first.
    fn tally_extent(&self, chain: &[Px], tally: &mut Tally) {
        // By which generation each block is hidden, for what is older than where we are.
        let mut covered = [None; BLOCKS_PER_EXTENT as usize];
        for px in chain.iter().rev() {
            let (present, generation) = (self.present(*px), self.table.get(*px).generation);
            // Of what has no block at all nothing is ever seen.
            let mut hidden = Some(generation);
            for (_, by) in covered.iter_mut().enumerate().filter(|(block, _)| present >> block & 1 == 1) {
                hidden = hidden.zip(*by).map(|(a, b): (Generation, Generation)| a.max(b));
                *by = Some(generation);
            }
            // A whole zero extent hides what is older, and takes no space.
            if !is_bit(*px) {
                tally.put(generation, hidden);
            }
        }
    }
}
