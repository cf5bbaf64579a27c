//! WAL: the drive keeps any subset of unflushed sectors and tears any write in flight, at every crash point; completions
//! come in any order.
//!
//! The medium does that (`store::medium`); here it is checked that every drive opens again after every crash, and that
//! what it then holds of each block is nothing older than what it had acknowledged (the process died) or flushed (the
//! power went), with its bytes whole on the medium.

use super::truth::Block;
use crate::counts::Property;
use crate::layout::CHUNK_BLOCKS;
use crate::net::HostIndex;
use crate::world::World;
use proto::{BranchId, ChunkIndex, DriveId, Version};
use std::collections::BTreeMap;

/// What a replica held when its process ended.
#[derive(Clone, Copy, Debug)]
struct Held {
    block: Block,
    version: Version,
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
        if power && !self.hosts[host].runs() {
            return self.power_goes_later(host);
        }
        for v in 0..self.volumes.len() {
            let Some(branch) = self.branch_of(v) else { continue };
            let l = self.volumes[v].layout;
            for (chunk, c) in self.metad.configurations(branch) {
                for m in c.members.iter().filter(|m| crate::effects::index_of(m.place.node) == host) {
                    let from = (u64::from(chunk.0) * CHUNK_BLOCKS).max(l.first);
                    let to = ((u64::from(chunk.0) + 1) * CHUNK_BLOCKS).min(l.first + l.blocks);
                    for b in from..to {
                        let block = u32::try_from(b % CHUNK_BLOCKS).expect("within a chunk");
                        let Some((held, version, flushed)) = self.at_rest(m.place, branch, chunk, block)
                        else {
                            continue;
                        };
                        let held = Held { block: held, version, flushed, settled: !power || flushed };
                        self.watchers
                            .wal
                            .ended
                            .entry(m.place.drive)
                            .or_default()
                            .insert((branch, chunk, block), held);
                    }
                }
            }
        }
    }

    /// The process has ended before; now its machine loses power too.
    fn power_goes_later(&mut self, host: HostIndex) {
        let drives: Vec<DriveId> = self.metad.drives_of(self.hosts[host].id);
        for d in drives {
            for held in self.watchers.wal.ended.get_mut(&d).into_iter().flat_map(BTreeMap::values_mut) {
                held.settled = held.flushed;
            }
        }
    }

    /// A drive is open again: nothing that had to survive is missing.
    pub fn check_wal(&mut self, host: HostIndex, drive: DriveId) {
        self.counts.checked(Property::Wal, 1);
        self.check_homes(host, drive);
        let Some(ended) = self.watchers.wal.ended.remove(&drive) else { return };
        for ((branch, chunk, block), was) in ended {
            if !was.settled {
                continue;
            }
            let Some((now, version)) = self.found(host, drive, branch, chunk, block) else { continue };
            self.counts.checked(Property::Wal, 1);
            if version <= was.version && !now.same_as(was.block) {
                let text =
                    format!("{drive} {branch} {chunk} block {block}: had {was:?}, has {now:?} at {version}");
                return self.fail("WAL", text);
            }
        }
    }

    /// Whatever the drive says that it has at home is there, whole.
    fn check_homes(&mut self, host: HostIndex, drive: DriveId) {
        for v in 0..self.volumes.len() {
            let Some(branch) = self.branch_of(v) else { continue };
            let l = self.volumes[v].layout;
            for b in l.first..l.first + l.blocks {
                let chunk = ChunkIndex(u32::try_from(b / CHUNK_BLOCKS).expect("few chunks"));
                let block = u32::try_from(b % CHUNK_BLOCKS).expect("within a chunk");
                let Some((held, bytes)) = self.at_home(host, drive, branch, chunk, block) else { continue };
                self.counts.checked(Property::Wal, 1);
                if !held.same_as(bytes) {
                    let text = format!(
                        "{drive} {branch} {chunk} block {block}: has {held:?}, at home lies {bytes:?}"
                    );
                    return self.fail("WAL", text);
                }
            }
        }
    }
}
