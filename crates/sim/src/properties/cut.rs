//! CUT: a snapshot holds what its volumes held at one moment between its question and its sealing: all that was
//! acknowledged before, nothing that was asked after, and no write without those that were acknowledged before it was
//! asked. Read from the replicas' true state when Raft has committed that it is sealed; judged by the oracle.

use super::truth::Block;
use crate::counts::Property;
use crate::layout::{Layout, block_at, place_of};
use crate::operator::Row;
use crate::world::World;
use oracle::{Value, ZERO};
use proto::limits::BLOCK;
use proto::message::View;
use proto::{BranchId, ChunkIndex, Generation, Place};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use volume::ReadPiece;

/// A block of the guest's region: its chunk, and where in it.
pub type At = (ChunkIndex, u32);
type Key = (BranchId, Generation);

/// What a reader of a view gets of a block.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Data, or zero: what is absent is looked for in the parents.
    pub block: Block,
    /// Of each of its registers.
    pub values: Vec<Value>,
}

/// What a view holds.
#[derive(Clone, Debug)]
pub struct Image {
    /// Whose branch it is of.
    pub volume: usize,
    /// What the branch itself has. Blocks are missing of which nobody could be asked yet.
    pub own: BTreeMap<At, Block>,
    pub seen: BTreeMap<At, Seen>,
}

/// Images of all sealed views that a snapshot or a fork keeps.
#[derive(Debug, Default)]
pub struct Cuts {
    pub images: BTreeMap<Key, Image>,
    /// Those that lack something.
    incomplete: BTreeSet<Key>,
}

impl World {
    /// Raft has committed something: what is sealed now, and what is gone?
    pub fn snapshots_changed(&mut self) {
        if !self.swarm.has_views() {
            return;
        }
        let rows = self.snapshot_rows();
        let mut images = std::mem::take(&mut self.watchers.cuts.images);
        images.retain(|k, _| self.metad.state.kept(k.0).contains(k.1));
        self.watchers.cuts.incomplete.retain(|k| images.contains_key(k));
        self.watchers.cuts.images = images;
        for row in rows.iter().filter(|r| r.sealed) {
            let key = (row.branch, row.generation);
            if let Entry::Vacant(new) = self.watchers.cuts.images.entry(key) {
                new.insert(Image { volume: row.volume, own: BTreeMap::new(), seen: BTreeMap::new() });
                self.fill_image(key, true);
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
        if mine.len() != s.volumes {
            return;
        }
        let number = s.number;
        let volumes = mine.iter().map(|r| (self.volumes[r.volume].number, self.values_of(r))).collect();
        if let Some(s) = self.snapshots.asked.get_mut(name) {
            s.judged = true;
        }
        self.trace.note(self.now, || format!("snapshot {name} is sealed"));
        self.tell(oracle::Entry::SnapshotMade { snapshot: number, volumes });
        self.counts.checked(Property::Cut, 1);
    }

    /// Views of which something is not known yet: whoever shows them may be there now.
    pub fn complete_images(&mut self) {
        for key in self.watchers.cuts.incomplete.clone() {
            self.fill_image(key, false);
        }
    }

    /// Looks for what is not known of a view. `sealed`: just now, when every in-sync replica has it, in lists or not.
    fn fill_image(&mut self, key: Key, sealed: bool) {
        let Some(mut image) = self.watchers.cuts.images.remove(&key) else { return };
        let before = image.seen.len();
        let l = self.volumes[image.volume].layout;
        let mut complete = true;
        for block in l.each() {
            if let Err((property, text)) = self.fill_block(key, &mut image, &l, block, sealed) {
                self.fail(property, text);
                break;
            }
            complete &= image.seen.contains_key(&place_of(block));
        }
        let known = image.seen.len() > before;
        self.watchers.cuts.images.insert(key, image);
        if complete {
            self.watchers.cuts.incomplete.remove(&key);
        } else {
            self.watchers.cuts.incomplete.insert(key);
        }
        if known && !sealed {
            self.view_known(key);
        }
    }

    /// One block, on those replicas that can be asked: all must have the same.
    fn fill_block(
        &mut self,
        (branch, generation): Key,
        image: &mut Image,
        l: &Layout,
        block: u64,
        sealed: bool,
    ) -> Result<(), (&'static str, String)> {
        let at = place_of(block);
        if image.seen.contains_key(&at) {
            return Ok(());
        }
        let Some(c) = self.metad.configuration(branch, at.0) else { return Ok(()) };
        let mut from = None;
        for m in c.in_sync() {
            let asked = if sealed {
                !self.in_doubt(m.place, branch)
            } else {
                self.shows(m.place, branch, at.0, generation)
            };
            let view = View::At(generation);
            let Some(held) = self.held_in(m.place, branch, at.0, at.1, view).filter(|_| asked) else {
                continue;
            };
            let first = *image.own.entry(at).or_insert(held);
            self.counts.checked(Property::Views, 1);
            if !first.same_as(held) {
                let text = format!(
                    "{branch} {generation} is sealed, and {} block {} is {held:?} on {}, {first:?} elsewhere",
                    at.0, at.1, m.place.drive
                );
                return Err(("VIEWS", text));
            }
            from.get_or_insert((m.place, held));
        }
        let Some((place, held)) = from else { return Ok(()) };
        if let Some(seen) = self.seen_through((branch, generation), place, held, l, block)? {
            image.seen.insert(at, seen);
        }
        Ok(())
    }

    /// What a reader gets of a block that the branch itself holds like this.
    fn seen_through(
        &self,
        (branch, generation): Key,
        place: Place,
        held: Block,
        l: &Layout,
        block: u64,
    ) -> Result<Option<Seen>, (&'static str, String)> {
        let at = place_of(block);
        let values = vec![ZERO; usize::try_from(l.of_block(block).count).expect("few")];
        let zero = Seen { block: Block::Zero, values };
        match held {
            Block::Zero => Ok(Some(zero)),
            Block::Absent => {
                let v = self.volume_of_branch(branch).and_then(|v| self.volumes[v].parent);
                let Some(level) = v.filter(|l| (block + 1) * BLOCK as u64 <= l.size) else {
                    return Ok(Some(zero));
                };
                let Some(parent) = self.watchers.cuts.images.get(&(level.branch, level.generation)) else {
                    return Err(("KEPT", format!("{branch} has lost its parent's view {level:?}")));
                };
                let l = self.volumes[parent.volume].layout;
                let beyond = !(l.first..l.first + l.blocks).contains(&block);
                Ok(if beyond { Some(zero) } else { parent.seen.get(&at).cloned() })
            }
            Block::Data(_) => {
                let view = View::At(generation);
                let Some(payload) = self.bytes_in(place, branch, at.0, at.1, view) else { return Ok(None) };
                let piece = ReadPiece::Data { payload, skip: 0, len: 4096 };
                match l.values(block * BLOCK as u64, BLOCK as u64, &[piece]) {
                    Ok(values) => Ok(Some(Seen { block: held, values })),
                    Err(odd) => {
                        let d = place.drive;
                        Err(("CUT", format!("{branch} {generation} {} block {} on {d}: {odd:?}", at.0, at.1)))
                    }
                }
            }
        }
    }

    /// The registers' values, as far as they are known.
    fn values_of(&self, row: &Row) -> Vec<(u64, Value)> {
        let Some(image) = self.watchers.cuts.images.get(&(row.branch, row.generation)) else {
            return vec![];
        };
        let l = self.volumes[image.volume].layout;
        let of = |(at, seen): (&At, &Seen)| {
            let registers = l.of_block(block_at(*at)).each();
            registers.zip(seen.values.clone()).collect::<Vec<_>>()
        };
        image.seen.iter().flat_map(of).collect()
    }
}
