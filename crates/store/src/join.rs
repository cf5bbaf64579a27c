//! Joins: of two neighbours in a chain that no kept view tells apart, what the newer one lacks moves into it, so that the
//! sweep may free the older one. Then deleted snapshots give their space back to the extent.
//!
//! It owns the joins under way: blocks are read under a hold of their extent, checked, and journaled as a pull into the
//! newer home; the older one is left to the sweep. Invariants: no view changes; nothing from the list's `open` on is
//! touched; a block that cannot be read is moved nowhere.

use crate::disk::entry::{ExtentKey, PullMasks, pull as pull_entry};
use crate::event::Source;
use crate::intake::Hold;
use crate::op::{Op, Then};
use crate::read::{Bytes, Kind, ReadJob, Seen};
use crate::store::{Phase, Store};
use crate::table::{NONE, Px, Use, is_bit};
use proto::limits::BLOCKS_PER_EXTENT;
use proto::message::BlockState;
use proto::record::Sum;
use proto::{Generation, Incarnation, Payload, Version};

/// Joins under way.
const JOINS: usize = 8;

/// A pair of neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pair {
    /// The older generation's home, if it has one; what it has that the newer one lacks.
    home: Px,
    data: u16,
    /// Nothing; but the older generation's bit moves into the newer one, where what that one has wins over it.
    bit: bool,
    old: Generation,
    /// The newer generation's home.
    into: Px,
}

/// A join whose blocks are being read.
pub(crate) struct Joining {
    replica: u32,
    incarnation: Incarnation,
    extent: u32,
    pair: Pair,
    version: Version,
    hold: u64,
}

/// A generation's part of a chain.
#[derive(Clone, Copy)]
struct Link {
    generation: Generation,
    home: Px,
    bit: bool,
}

impl Store {
    pub(crate) fn may_join(&self) -> bool {
        self.sweeper.joining < JOINS
    }
    /// The oldest two neighbours of an extent that no kept view tells apart, besides those that nobody sees.
    pub(crate) fn pair(&self, replica: u32, extent: u32, unseen: &[Px]) -> Option<Pair> {
        let disk = self.disk();
        let b = disk.records.branch_of(replica);
        let open = b.record.list.open;
        let mut links: Vec<Link> = Vec::new();
        for px in disk.chain(disk.records.replica(replica).index.get(extent)) {
            let generation = disk.table.get(px).generation;
            if generation >= open || unseen.contains(&px) {
                continue;
            }
            if links.last().is_none_or(|l| l.generation != generation) {
                links.push(Link { generation, home: NONE, bit: false });
            }
            let link = links.last_mut().expect("just made");
            if is_bit(px) {
                link.bit = true;
            } else {
                link.home = px;
            }
        }
        links.windows(2).find_map(|pair| {
            let [old, new] = [pair[0], pair[1]];
            let apart = b.kept.at_or_above(old.generation).is_some_and(|view| view < new.generation);
            // With its bit the newer one lacks nothing.
            if apart || new.bit || new.home == NONE {
                return None;
            }
            let lacks = !disk.present(new.home);
            let has = if old.home == NONE { 0 } else { disk.present(old.home) };
            let data = lacks & has;
            // The bit after the blocks: it would hide them.
            let bit = data == 0 && old.bit && lacks != 0 && self.may_set(replica, new.generation, &[extent]);
            let pair = Pair { home: old.home, data, bit, old: old.generation, into: new.home };
            (data != 0 || bit).then_some(pair)
        })
    }

    /// Begins to join two neighbours; false if something is in the way.
    pub(crate) fn join(&mut self, replica: u32, extent: u32, pair: Pair) -> bool {
        let disk = self.disk();
        let quiet = |px: Px| {
            let usage = disk.table.get(px).usage;
            matches!(usage, Use::Owned | Use::Fresh) && !self.intake.users.contains_key(&px)
        };
        let want = Hold { replica, first: extent, end: extent + 1, id: 0, drops: None };
        let free = quiet(pair.into) && (pair.home == NONE || quiet(pair.home));
        if !free || self.intake.conflicts(&want, usize::MAX) {
            return false;
        }
        if pair.bit {
            return self.move_bit(replica, extent, pair);
        }
        let r = &disk.records.replica(replica).record;
        let (branch, chunk, incarnation) = (r.branch, r.chunk, r.incarnation);
        let version = if pair.home == NONE { Version::ZERO } else { disk.version(pair.home) };
        let blocks = (0..BLOCKS_PER_EXTENT).map(|b| match pair.data >> b & 1 {
            1 => disk.look_at(pair.home, b).expect("it has this block"),
            _ => Seen::nothing(),
        });
        let blocks: Vec<Seen> = blocks.collect();
        let hold = self.intake.hold(replica, extent, extent + 1);
        self.sweeper.joining += 1;
        let joining = Joining { replica, incarnation, extent, pair, version, hold };
        let first = extent * BLOCKS_PER_EXTENT;
        let kind = Kind::Join(Box::new(joining));
        self.begin_read(ReadJob::new(Source(0), 0, (branch, chunk), first, kind, blocks));
        true
    }

    /// The newer generation gets a bit as well; the older one's is seen by nobody then.
    fn move_bit(&mut self, replica: u32, extent: u32, pair: Pair) -> bool {
        let disk = self.disk();
        let generation = disk.table.get(pair.into).generation;
        let r = disk.records.replica(replica);
        let Some(bit) = disk.find_bit(replica, extent, pair.old).filter(|_| r.bits_pending == 0) else {
            return false;
        };
        let version = disk.table.get(bit).version();
        self.set_bits(replica, generation, &[extent], version, true);
        true
    }

    /// The older one's blocks have been read.
    pub(crate) fn joined(&mut self, j: &Joining, blocks: &[Seen], payload: impl FnOnce(usize) -> Payload) {
        let live = self.disk().records.is_live(j.replica)
            && self.disk().records.replica(j.replica).record.incarnation == j.incarnation
            && matches!(self.phase, Phase::Open | Phase::Closing(_));
        let bad = blocks.iter().any(|s| s.state == BlockState::Bad);
        if !live || bad {
            self.sweeper.joining -= 1;
            return self.intake.release(j.hold);
        }
        let mut masks = PullMasks::default();
        let mut sums = [Sum(0); 16];
        for (b, seen) in blocks.iter().enumerate() {
            match seen.state {
                BlockState::Data => {
                    masks.data |= 1 << b;
                    sums[b] = seen.sum;
                }
                BlockState::Zero => masks.zero |= 1 << b,
                _ => {}
            }
        }
        let disk = self.disk();
        let r = &disk.records.replica(j.replica).record;
        let generation = disk.table.get(j.pair.into).generation;
        let key = ExtentKey {
            branch: r.branch,
            chunk: r.chunk,
            incarnation: r.incarnation,
            extent: j.extent,
            generation,
        };
        let version = j.version.max(disk.version(j.pair.into));
        let raw = pull_entry(&key, version, masks, &sums);
        let data = masks.data.count_ones() as usize;
        let bytes = (data > 0).then(|| payload(data));
        let op = self.data_op(Source(0), raw, bytes, j.replica, j.pair.into);
        self.push_data(Op { then: Then::Joined, hold: j.hold, ..op });
    }
}

impl Seen {
    fn nothing() -> Seen {
        Seen {
            state: BlockState::Absent,
            version: Version::ZERO,
            generation: Generation(0),
            sum: Sum(0),
            bytes: Bytes::None,
            px: NONE,
        }
    }
}
