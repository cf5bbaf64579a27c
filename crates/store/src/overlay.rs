//! The overlay: blocks that are in the journal and not yet at home. Per block only the newest.
//!
//! Flat: a block is a slot of a slab, linked to the others of its extent; steady work allocates nothing. Never
//! more than the journal holds: a block leaves when it is home (and flushed) or when a newer one takes its place.

use crate::table::Px;
use proto::{Map, Payload, Version};
use slab::Slab;

const END: usize = usize::MAX;

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
    next: usize,
    pub block: u8,
    pub what: What,
    pub way: Way,
    /// The batch that holds it.
    pub seq: u64,
    pub sum: u32,
    pub version: Version,
    /// Bytes of `Data`.
    pub payload: Option<Payload>,
    /// Journal position of its bytes, in pages since format.
    pub position: u64,
}

/// The blocks of one physical extent.
#[derive(Clone, Debug)]
pub struct Dirty {
    first: usize,
    pub count: u32,
    /// The extent's version, as acknowledged.
    pub version: Version,
}

#[derive(Default)]
pub struct Overlay {
    extents: Map<Px, Dirty>,
    blocks: Slab<Block>,
}

impl Overlay {
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
        self.extents.entry(px).or_insert(Dirty { first: END, count: 0, version: home })
    }
    #[must_use]
    pub fn get(&self, px: Px, block: u32) -> Option<&Block> {
        self.of(px).find(|b| u32::from(b.block) == block)
    }
    /// Blocks of an extent, in no order.
    pub fn of(&self, px: Px) -> impl Iterator<Item = &Block> {
        let mut at = self.extents.get(&px).map_or(END, |d| d.first);
        std::iter::from_fn(move || {
            let b = self.blocks.get(at)?;
            at = b.next;
            Some(b)
        })
    }
    pub fn find_mut(&mut self, px: Px, block: u32) -> Option<&mut Block> {
        let mut at = self.extents.get(&px)?.first;
        while at != END {
            if u32::from(self.blocks[at].block) == block {
                return self.blocks.get_mut(at);
            }
            at = self.blocks[at].next;
        }
        None
    }
    /// Puts a block in; its extent has been entered. Gives back the batch of the one that it takes the place of.
    pub fn put(&mut self, px: Px, mut new: Block) -> Option<u64> {
        if let Some(old) = self.find_mut(px, u32::from(new.block)) {
            let seq = old.seq;
            new.next = old.next;
            *old = new;
            return Some(seq);
        }
        let d = self.extents.get_mut(&px).expect("entered before");
        new.next = d.first;
        d.first = self.blocks.insert(new);
        d.count += 1;
        None
    }
    /// Takes a block out; the extent goes with its last one, and its version is given back then.
    pub fn remove(&mut self, px: Px, block: u32) -> Option<Version> {
        let d = self.extents.get_mut(&px)?;
        let (mut before, mut at) = (END, d.first);
        while at != END && u32::from(self.blocks[at].block) != block {
            (before, at) = (at, self.blocks[at].next);
        }
        assert_ne!(at, END, "the block is here");
        let next = self.blocks.remove(at).next;
        if before == END {
            d.first = next
        } else {
            self.blocks[before].next = next
        }
        d.count -= 1;
        if d.count > 0 {
            return None;
        }
        self.extents.remove(&px).map(|d| d.version)
    }
    /// Takes the whole extent out: the batches that held its blocks.
    pub fn clear(&mut self, px: Px) -> Vec<u64> {
        let Some(d) = self.extents.remove(&px) else { return Vec::new() };
        let mut seqs = Vec::with_capacity(d.count as usize);
        let mut at = d.first;
        while at != END {
            let b = self.blocks.remove(at);
            seqs.push(b.seq);
            at = b.next;
        }
        seqs
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
            next: END,
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
