//! WAL: the drive keeps any subset of unflushed sectors and tears any write in flight, at every crash point; completions
//! come in any order.
//!
//! The medium does that (`store::medium`); here it is checked that every drive opens again after every crash, and that
//! what it then holds of each block is what had taken effect (the process died) or was flushed (the power went), with its
//! bytes whole on the medium. Only what was just being written to the journal may be there or not.

use super::truth::Block;
use crate::counts::Property;
use crate::layout::CHUNK_BLOCKS;
use crate::net::HostIndex;
use crate::world::World;
use proto::{BlockRange, BranchId, ChunkIndex, DriveId};
use std::collections::BTreeMap;

/// What a replica held when its process ended.
#[derive(Clone, Copy, Debug)]
struct Held {
    block: Block,
    /// Its entry was flushed: it survives power loss too.
    flushed: bool,
    /// It has to be there when the drive opens again.
    settled: bool,
}

#[derive(Debug, Default)]
pub struct Wal {
    ended: BTreeMap<DriveId, BTreeMap<(BranchId, ChunkIndex, u32), Held>>,
}

impl World {
    /// A process is about to end (with its machine's power, or alone): what must its drives still hold?
    pub fn before_end(&mut self, host: HostIndex, power: bool) {
        let drives: Vec<DriveId> = self.metad.drives_of(self.hosts[host].id);
        for d in &drives {
            self.remember_drive(host, *d);
        }
        if power {
            // That of an earlier process too, if this one has not come so far as to open the drive, or does not run.
            for d in drives {
                for held in self.watchers.wal.ended.get_mut(&d).into_iter().flat_map(BTreeMap::values_mut) {
                    held.settled = held.flushed;
                }
            }
        }
    }

    /// All blocks that guests use.
    fn guests_blocks(&self) -> Vec<(BranchId, ChunkIndex, u32)> {
        let mut all = Vec::new();
        for v in 0..self.volumes.len() {
            let Some(branch) = self.branch_of(v) else { continue };
            let l = self.volumes[v].layout;
            all.extend((l.first..l.first + l.blocks).map(|b| {
                let chunk = ChunkIndex(u32::try_from(b / CHUNK_BLOCKS).expect("few chunks"));
                (branch, chunk, u32::try_from(b % CHUNK_BLOCKS).expect("within a chunk"))
            }));
        }
        all
    }

    /// What a drive holds that is open; what it is just being told may be there afterwards or not.
    fn remember_drive(&mut self, host: HostIndex, drive: DriveId) {
        let Some(entering) = self.entering(host, drive) else { return };
        let mut ended = BTreeMap::new();
        for (branch, chunk, block) in self.guests_blocks() {
            let enters = |e: &(BranchId, ChunkIndex, BlockRange)| {
                (e.0, e.1) == (branch, chunk) && (e.2.first..e.2.end()).contains(&block)
            };
            if entering.iter().any(enters) {
                continue;
            }
            let Some((held, flushed)) = self.at_rest(host, drive, branch, chunk, block) else {
                continue;
            };
            let held = Held { block: held, flushed, settled: true };
            ended.insert((branch, chunk, block), held);
        }
        self.watchers.wal.ended.insert(drive, ended);
    }

    /// A drive is open again: what had to survive is there, as it was.
    pub fn check_wal(&mut self, host: HostIndex, drive: DriveId) {
        self.counts.checked(Property::Wal, 1);
        self.check_homes(host, drive);
        let Some(ended) = self.watchers.wal.ended.remove(&drive) else { return };
        for ((branch, chunk, block), was) in ended {
            // Nothing of the head of a branch that has lost its volume is kept.
            let named = (0..self.volumes.len()).any(|v| self.branch_of(v) == Some(branch));
            if !was.settled || !named {
                continue;
            }
            let Some((now, version)) = self.found(host, drive, branch, chunk, block) else { continue };
            self.counts.checked(Property::Wal, 1);
            if !now.same_as(was.block) {
                let text =
                    format!("{drive} {branch} {chunk} block {block}: had {was:?}, has {now:?} at {version}");
                return self.fail("WAL", text);
            }
        }
    }

    /// Whatever the drive says that it has at home is there, whole.
    fn check_homes(&mut self, host: HostIndex, drive: DriveId) {
        for (branch, chunk, block) in self.guests_blocks() {
            let Some((held, bytes)) = self.at_home(host, drive, branch, chunk, block) else { continue };
            self.counts.checked(Property::Wal, 1);
            if !held.same_as(bytes) {
                let text =
                    format!("{drive} {branch} {chunk} block {block}: has {held:?}, at home lies {bytes:?}");
                return self.fail("WAL", text);
            }
        }
    }
}
