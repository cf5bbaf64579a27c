//! CUT: a snapshot holds what its volumes held at one moment between its question and its sealing: all that was
//! acknowledged before, nothing that was asked after, and no write without those that were acknowledged before it was
//! asked. Read from the replicas' true state when Raft has committed that it is sealed; judged by the oracle.

use super::truth::Block;
use crate::counts::Property;
use crate::layout::{CHUNK_BLOCKS, Layout, blocks_of, whole_blocks_of};
use crate::operator::Row;
use crate::world::World;
use oracle::{Entry, Value};
use proto::message::View;
use proto::record::Sum;
use proto::{BranchId, ChunkIndex, Generation, Map};
use std::collections::BTreeMap;
use volume::{GuestOp, GuestRequest};

/// What a view holds, block by block of the guest's region.
pub type Image = BTreeMap<(ChunkIndex, u32), Block>;

/// Images of all sealed views that are kept, and what sums mean.
#[derive(Debug, Default)]
pub struct Cuts {
    pub images: BTreeMap<(BranchId, Generation), (usize, Image)>,
    /// The value of a guest's write that a whole block of this sum carries.
    pub values: Map<(usize, ChunkIndex, u32, Sum), Value>,
}

impl Cuts {
    /// A guest writes: what its whole blocks will be known by.
    pub fn asked(&mut self, volume: usize, request: &GuestRequest) {
        let GuestOp::Write { data, .. } = &request.op else { return };
        let Some(first) = blocks_of(&request.op).next() else { return };
        for (chunk, block) in whole_blocks_of(&request.op) {
            let at = |p: (ChunkIndex, u32)| u64::from(p.0.0) * CHUNK_BLOCKS + u64::from(p.1);
            let i = usize::try_from(at((chunk, block)) - at(first)).expect("within a request");
            let bytes = data.payload.block(i);
            if let Some(value) = Layout::of_block(bytes) {
                self.values.insert((volume, chunk, block, Sum::of(bytes)), value);
            }
        }
    }
}

impl World {
    /// Raft has committed something: what is sealed now, and what is gone?
    pub fn snapshots_changed(&mut self) {
        if self.swarm.snapshots == 0 {
            return;
        }
        let rows = self.snapshot_rows();
        let there: Vec<_> = rows.iter().map(|r| (r.branch, r.generation)).collect();
        self.watchers.cuts.images.retain(|k, _| there.contains(k));
        for row in rows.iter().filter(|r| r.sealed) {
            if !self.watchers.cuts.images.contains_key(&(row.branch, row.generation)) {
                let image = self.image_of(row);
                self.watchers.cuts.images.insert((row.branch, row.generation), (row.volume, image));
            }
        }
        let asked: Vec<String> =
            self.snapshots.asked.iter().filter(|(_, s)| !s.judged).map(|(n, _)| n.clone()).collect();
        for name in asked {
            self.judge_cut(&name, &rows);
        }
    }

    /// A snapshot of which every volume is sealed is judged, once.
    fn judge_cut(&mut self, name: &str, rows: &[Row]) {
        let Some(s) = self.snapshots.asked.get(name) else { return };
        let mine: Vec<&Row> = rows.iter().filter(|r| r.name == name && r.sealed).collect();
        if mine.len() != s.volumes.len() {
            return;
        }
        let number = s.number;
        let volumes = mine.iter().map(|r| (self.volumes[r.volume].number, self.values_of(r))).collect();
        if let Some(s) = self.snapshots.asked.get_mut(name) {
            s.judged = true;
        }
        self.trace.note(self.now, || format!("snapshot {name} is sealed"));
        self.tell(Entry::SnapshotMade { snapshot: number, volumes });
        self.counts.checked(Property::Cut, 1);
    }

    /// The view's content on the first in-sync replica that can be asked; the others must have the same.
    fn image_of(&mut self, row: &Row) -> Image {
        let l = self.volumes[row.volume].layout;
        let mut image = Image::new();
        for b in l.first..l.first + l.blocks {
            let chunk = ChunkIndex(u32::try_from(b / CHUNK_BLOCKS).expect("few chunks"));
            let block = u32::try_from(b % CHUNK_BLOCKS).expect("within a chunk");
            let Some(c) = self.metad.configuration(row.branch, chunk) else { continue };
            for m in c.in_sync() {
                if self.in_doubt(m.place, row.branch) {
                    continue;
                }
                let view = View::At(row.generation);
                let Some(held) = self.held_in(m.place, row.branch, chunk, block, view) else { continue };
                let first = *image.entry((chunk, block)).or_insert(held);
                self.counts.checked(Property::Views, 1);
                if !first.same_as(held) {
                    let (d, n, g) = (m.place.drive, &row.name, row.generation);
                    let text = format!(
                        "{n} ({} {g}) is sealed, and {chunk} block {block} is {held:?} on {d}, {first:?} elsewhere",
                        row.branch
                    );
                    self.fail("VIEWS", text);
                    return image;
                }
            }
        }
        image
    }

    /// Registers of which the image tells the value. Blocks that are written by sectors hold what no guest wrote as a
    /// whole: they are left out.
    fn values_of(&self, row: &Row) -> Vec<(u64, Value)> {
        let Some((v, image)) = self.watchers.cuts.images.get(&(row.branch, row.generation)) else {
            return vec![];
        };
        let l = self.volumes[*v].layout;
        let value = |(at, held): (&(ChunkIndex, u32), &Block)| {
            let block = u64::from(at.0.0) * CHUNK_BLOCKS + u64::from(at.1);
            if block < l.first + l.fine {
                return None;
            }
            let register = l.registers(block * 4096, 4096).first;
            let value = match held {
                Block::Zero => oracle::ZERO,
                Block::Data(sum) => *self.watchers.cuts.values.get(&(*v, at.0, at.1, *sum))?,
            };
            Some((register, value))
        };
        image.iter().filter_map(value).collect()
    }
}
