//! The overlay: blocks that are in the journal and not yet at home. Per block only the newest.
//!
//! Bytes stay in memory only for the blocks that came last: those of all others are in the journal, and are read
//! from there, by a guest or on their way home. Memory that is used again at once is in the processor's cache; as much
//! memory as the journal is long would be neither in the cache nor small.
//!
//! Flat: a block is a slot of a slab, and its extent knows the slots of its 16 blocks, so that finding one touches two
//! places of memory and no more; steady work allocates nothing. Never more than the journal holds: a block leaves
//! when it is home (and flushed) or when a newer one takes its place.

use crate::table::Px;
use proto::{Map, Payload, Version};
use slab::Slab;
use std::collections::VecDeque;

/// A slot of an extent that holds no block.
const NOTHING: u32 = u32::MAX;
const SLOTS: usize = proto::limits::BLOCKS_PER_EXTENT as usize;

/// What a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    Data,
    Zero,
    Absent,
    /// Written, but the journal's copy does not match its checksum (found at recovery).
    Bad,
}

/// How far it is on its way home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    Pending,
    Writing,
    /// The home write has completed, with this stamp.
    Written(u64),
}

/// One block.
#[derive(Clone, Debug)]
pub struct Block {
    pub block: u8,
    pub what: What,
    pub way: Way,
    /// The batch that holds it.
    pub seq: u64,
    pub sum: u32,
    pub version: Version,
    /// Bytes of `Data`, if they are in memory.
    pub payload: Option<Payload>,
    /// Journal position of its bytes, in pages since format.
    pub position: u64,
}

/// The blocks of one physical extent.
#[derive(Clone, Debug)]
pub struct Dirty {
    /// Where its blocks are in the slab.
    slots: [u32; SLOTS],
    pub count: u32,
    /// The extent's version, as acknowledged.
    pub version: Version,
}

pub struct Overlay {
    extents: Map<Px, Dirty>,
    blocks: Slab<Block>,
    /// Blocks that came with their bytes, oldest first: extent, block, batch. Some have been overwritten since.
    recent: VecDeque<(Px, u8, u64)>,
    /// How many of them keep their bytes.
    keeps: usize,
    /// Batches up to here are on their way home: their blocks keep what bytes they have.
    pub going: u64,
}

impl Overlay {
    /// One that keeps the bytes of the `keeps` blocks that came last.
    #[must_use]
    pub fn new(keeps: usize) -> Overlay {
        Overlay { extents: Map::default(), blocks: Slab::new(), recent: VecDeque::new(), keeps, going: 0 }
    }
    /// Blocks held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }
    #[must_use]
    pub fn extent(&self, px: Px) -> Option<&Dirty> {
        self.extents.get(&px)
    }
    /// The extent's, made if need be with the version that it has at home.
    pub fn enter(&mut self, px: Px, home: Version) -> &mut Dirty {
        self.extents.entry(px).or_insert(Dirty { slots: [NOTHING; SLOTS], count: 0, version: home })
    }
    #[must_use]
    pub fn get(&self, px: Px, block: u32) -> Option<&Block> {
        self.at(self.extents.get(&px)?.slots[block as usize])
    }
    fn at(&self, slot: u32) -> Option<&Block> {
        if slot == NOTHING { None } else { self.blocks.get(slot as usize) }
    }
    /// Blocks of an extent, ascending.
    pub fn of(&self, px: Px) -> impl Iterator<Item = &Block> {
        let slots = self.extents.get(&px).map_or([NOTHING; SLOTS], |d| d.slots);
        slots.into_iter().filter_map(|slot| self.at(slot))
    }
    pub fn find_mut(&mut self, px: Px, block: u32) -> Option<&mut Block> {
        let slot = self.extents.get(&px)?.slots[block as usize];
        if slot == NOTHING { None } else { self.blocks.get_mut(slot as usize) }
    }
    /// Puts a block in; its extent has been entered. Gives back the batch of the one that it takes the place of.
    pub fn put(&mut self, px: Px, new: Block) -> Option<u64> {
        if new.payload.is_some() {
            self.recent.push_back((px, new.block, new.seq));
            if self.recent.len() > self.keeps {
                self.let_go();
            }
        }
        let d = self.extents.get_mut(&px).expect("entered before");
        let slot = &mut d.slots[usize::from(new.block)];
        if *slot != NOTHING {
            return Some(std::mem::replace(&mut self.blocks[*slot as usize], new).seq);
        }
        *slot = u32::try_from(self.blocks.insert(new)).expect("no more blocks than the journal holds");
        d.count += 1;
        None
    }
    /// The oldest block that came with its bytes is to be read from the journal from now on.
    fn let_go(&mut self) {
        let Some((px, block, seq)) = self.recent.pop_front() else { return };
        if seq > self.going
            && let Some(b) = self.find_mut(px, u32::from(block)).filter(|b| b.seq == seq)
        {
            b.payload = None;
        }
    }
    /// Takes a block out. With the last one the extent goes too, and its version is given back.
    pub fn remove(&mut self, px: Px, block: u32) -> (Block, Option<Version>) {
        let d = self.extents.get_mut(&px).expect("the extent is here");
        let slot = std::mem::replace(&mut d.slots[block as usize], NOTHING);
        assert_ne!(slot, NOTHING, "the block is here");
        let removed = self.blocks.remove(slot as usize);
        d.count -= 1;
        let version = (d.count == 0).then_some(d.version);
        if version.is_some() {
            self.extents.remove(&px);
        }
        (removed, version)
    }
    /// Takes the whole extent out: the batches that held its blocks.
    pub fn clear(&mut self, px: Px) -> Vec<u64> {
        let Some(d) = self.extents.remove(&px) else { return Vec::new() };
        let held = d.slots.into_iter().filter(|slot| *slot != NOTHING);
        held.map(|slot| self.blocks.remove(slot as usize).seq).collect()
    }
    /// All extents, in no order: for checks.
    pub fn iter(&self) -> impl Iterator<Item = (Px, &Dirty)> {
        self.extents.iter().map(|(px, d)| (*px, d))
    }
}

impl Block {
    #[must_use]
    pub fn new(block: u32, what: What, seq: u64, version: Version) -> Block {
        Block {
            block: u8::try_from(block).expect("16 blocks"),
            what,
            way: Way::Pending,
            seq,
            sum: 0,
            version,
            payload: None,
            position: 0,
        }
    }
}
