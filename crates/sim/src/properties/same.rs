//! SAME: while a session serves, in-sync replicas not in doubt give equal contents for every block without a write in
//! flight, in every view that is kept (so far: the head).

use super::truth::Block;
use crate::counts::Property;
use crate::layout::CHUNK_BLOCKS;
use crate::world::World;
use proto::{BranchId, ChunkIndex, Configuration};

impl World {
    pub fn check_same(&mut self) {
        for v in 0..self.volumes.len() {
            let Some((branch, epoch, _)) = self.session_of(v) else { continue };
            let Some(host) = self.serving_host(branch, epoch) else { continue };
            for (chunk, c) in self.metad.configurations(branch) {
                if c.number.0 > 0 && !self.atlas.loss_permitted(branch, chunk) {
                    self.check_same_chunk(v, host, branch, chunk, &c);
                }
            }
        }
    }

    fn check_same_chunk(
        &mut self,
        v: usize,
        host: usize,
        branch: BranchId,
        chunk: ChunkIndex,
        c: &Configuration,
    ) {
        let l = self.volumes[v].layout;
        let from = (u64::from(chunk.0) * CHUNK_BLOCKS).max(l.first);
        let to = ((u64::from(chunk.0) + 1) * CHUNK_BLOCKS).min(l.first + l.blocks);
        let members: Vec<_> = c.in_sync().map(|m| m.place).filter(|p| !self.in_doubt(*p, branch)).collect();
        let busy = self.in_flight(host, branch, chunk);
        for b in from..to {
            let block = u32::try_from(b % CHUNK_BLOCKS).expect("within a chunk");
            if busy.iter().any(|r| (r.first..r.end()).contains(&block)) {
                continue;
            }
            let mut first: Option<(proto::DriveId, Block)> = None;
            for m in &members {
                let Some(held) = self.held(*m, branch, chunk, block) else { continue };
                let Some((drive, other)) = first else {
                    first = Some((m.drive, held));
                    continue;
                };
                self.counts.checked(Property::Same, 1);
                if !other.same_as(held) {
                    let d = m.drive;
                    let who = |b| self.watchers.asked_by(v, chunk, block, b);
                    let text = format!(
                        "{branch} {chunk} block {block}: {drive} has {other:?} ({}), {d} has {held:?} ({})",
                        who(other),
                        who(held)
                    );
                    return self.fail("SAME", text);
                }
            }
        }
    }
}
