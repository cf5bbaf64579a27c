//! The overlay: blocks that are in the journal and not yet at home. Per block only the newest.
//!
//! It knows where their bytes are, and has none: those are in the journal, and are read from there, by a guest or on
//! their way home (decision 0008).
//!
//! Flat: a block is a slot of a slab, its extent knows the slots of its 16 blocks, and a number per physical extent of the
//! drive says where that is: so finding a block touches three places of memory and no more. Steady work allocates nothing.
//! Never more than the journal holds: a block leaves when it is home (and flushed) or when a newer one takes its place.

use crate::table::Px;
use proto::Version;
use slab::Slab;

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
    /// Journal position of its bytes, in pages since format.
    pub position: u64,
}

/// The blocks of one physical extent.
#[derive(Clone, Debug)]
pub struct Dirty {
    px: Px,
    /// Where its blocks are in the slab.
    slots: [u32; SLOTS],
    pub count: u32,
    /// The extent's version, as acknowledged.
    pub version: Version,
}

pub struct Overlay {
    /// By physical extent: one more than its place in `extents`; 0 if nothing of it is here. Zeroed memory that nobody has
    /// touched costs nothing.
    places: Vec<u32>,
    extents: Slab<Dirty>,
    blocks: Slab<Block>,
}

impl Overlay {
    /// For a drive of so many extents, with a journal of so many blocks: room for them is reserved now, so that no growth
    /// copies them later, in the middle of a guest's write. (One entry that zeroes many blocks may still outgrow it.)
    #[must_use]
    pub fn new(extents: u32, blocks: u64) -> Overlay {
        let room = usize::try_from(blocks).expect("a journal is small");
        Overlay {
            places: vec![0; extents as usize],
            extents: Slab::with_capacity(room.min(extents as usize)),
            blocks: Slab::with_capacity(room),
        }
    }
    /// Blocks held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }
    /// (A bit is none of the drive's extents: it has nothing here.)
    fn place(&self, px: Px) -> Option<usize> {
        (self.places.get(px as usize).copied().unwrap_or(0) as usize).checked_sub(1)
    }
    #[must_use]
    pub fn extent(&self, px: Px) -> Option<&Dirty> {
        self.extents.get(self.place(px)?)
    }
    fn extent_mut(&mut self, px: Px) -> Option<&mut Dirty> {
        let place = self.place(px)?;
        self.extents.get_mut(place)
    }
    /// The extent's, made if need be with the version that it has at home.
    pub fn enter(&mut self, px: Px, home: Version) -> &mut Dirty {
        let place = self.place(px).unwrap_or_else(|| {
            let made = self.extents.insert(Dirty { px, slots: [NOTHING; SLOTS], count: 0, version: home });
            self.places[px as usize] = u32::try_from(made + 1).expect("no more than the drive's extents");
            made
        });
        &mut self.extents[place]
    }
    fn leave(&mut self, px: Px) -> Option<Dirty> {
        let place = self.place(px)?;
        self.places[px as usize] = 0;
        Some(self.extents.remove(place))
    }
    #[must_use]
    pub fn get(&self, px: Px, block: u32) -> Option<&Block> {
        self.at(self.extent(px)?.slots[block as usize])
    }
    fn at(&self, slot: u32) -> Option<&Block> {
        if slot == NOTHING { None } else { self.blocks.get(slot as usize) }
    }
    /// Blocks of an extent, ascending.
    pub fn of(&self, px: Px) -> impl Iterator<Item = &Block> {
        let slots = self.extent(px).map_or([NOTHING; SLOTS], |d| d.slots);
        slots.into_iter().filter_map(|slot| self.at(slot))
    }
    pub fn find_mut(&mut self, px: Px, block: u32) -> Option<&mut Block> {
        let slot = self.extent(px)?.slots[block as usize];
        if slot == NOTHING { None } else { self.blocks.get_mut(slot as usize) }
    }
    /// Puts a block in; its extent has been entered. Gives back the batch of the one that it takes the place of.
    pub fn put(&mut self, px: Px, new: Block) -> Option<u64> {
        let place = self.place(px).expect("entered before");
        let d = &mut self.extents[place];
        let slot = &mut d.slots[usize::from(new.block)];
        if *slot != NOTHING {
            return Some(std::mem::replace(&mut self.blocks[*slot as usize], new).seq);
        }
        *slot = u32::try_from(self.blocks.insert(new)).expect("no more blocks than the journal holds");
        d.count += 1;
        None
    }
    /// Takes a block out. With the last one the extent goes too, and its version is given back.
    pub fn remove(&mut self, px: Px, block: u32) -> (Block, Option<Version>) {
        let d = self.extent_mut(px).expect("the extent is here");
        let slot = std::mem::replace(&mut d.slots[block as usize], NOTHING);
        assert_ne!(slot, NOTHING, "the block is here");
        d.count -= 1;
        let version = (d.count == 0).then_some(d.version);
        if version.is_some() {
            self.leave(px);
        }
        (self.blocks.remove(slot as usize), version)
    }
    /// Takes the whole extent out: the batches that held its blocks.
    pub fn clear(&mut self, px: Px) -> Vec<u64> {
        let Some(d) = self.leave(px) else { return Vec::new() };
        let held = d.slots.into_iter().filter(|slot| *slot != NOTHING);
        held.map(|slot| self.blocks.remove(slot as usize).seq).collect()
    }
    /// All extents: for checks.
    pub fn iter(&self) -> impl Iterator<Item = (Px, &Dirty)> {
        self.extents.iter().map(|(_, d)| (d.px, d))
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
            position: 0,
        }
    }
}
