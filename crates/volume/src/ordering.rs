//! The hold-back (5.1): per block, whatever overlaps something in flight waits.
//!
//! An exclusive operation (write, zeroes, merge, repair, comparison) *claims* its blocks, extent by extent,
//! all at once and in the order of arrival: so claims never wait in a circle. A read claims nothing once it
//! runs; it waits for the exclusive ones before it, and its answer for those that were there when the data came.

use proto::limits::BLOCKS_PER_EXTENT;
use proto::{BlockRange, Map};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Claim {
    op: usize,
    /// Blocks of the extent.
    blocks: u16,
    exclusive: bool,
    granted: bool,
}

/// All claims of a session, by (chunk, extent). An extent without claims has no entry.
#[derive(Default)]
pub(crate) struct Claims {
    extents: Map<u64, Vec<Claim>>,
    /// Emptied vectors, used again: no allocation per write.
    spare: Vec<Vec<Claim>>,
}

/// The extents of a range, with the blocks of each.
fn extents(chunk: u32, range: BlockRange) -> impl Iterator<Item = (u64, u16)> {
    let last = (range.end() - 1) / BLOCKS_PER_EXTENT;
    (range.extent()..=last).map(move |e| {
        let first = range.first.max(e * BLOCKS_PER_EXTENT) % BLOCKS_PER_EXTENT;
        let count = range.end().min((e + 1) * BLOCKS_PER_EXTENT) - e * BLOCKS_PER_EXTENT - first;
        let blocks = (((1u32 << count) - 1) << first) & 0xffff;
        ((u64::from(chunk) << 32) | u64::from(e), u16::try_from(blocks).expect("16 blocks"))
    })
}

impl Claims {
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Claims a range. Returns on how many extents the operation has to wait; `release` yields its name once
    /// for each of them.
    pub fn claim(&mut self, op: usize, chunk: u32, range: BlockRange, exclusive: bool) -> u32 {
        let mut waits = 0;
        for (key, blocks) in extents(chunk, range) {
            let before = self
                .extents
                .get(&key)
                .map_or(0, |v| v.iter().filter(|c| c.exclusive).fold(0, |m, c| m | c.blocks));
            let granted = before & blocks == 0;
            waits += u32::from(!granted);
            if exclusive || !granted {
                let spare = &mut self.spare;
                let list = self.extents.entry(key).or_insert_with(|| spare.pop().unwrap_or_default());
                list.push(Claim { op, blocks, exclusive, granted });
            }
        }
        waits
    }

    /// Gives back what an exclusive operation held; `freed` gets the operations that wait for one extent less.
    pub fn release(&mut self, op: usize, chunk: u32, range: BlockRange, freed: &mut Vec<usize>) {
        for (key, _) in extents(chunk, range) {
            let list = self.extents.get_mut(&key).expect("a claim stays until it is released");
            list.retain(|c| c.op != op);
            let mut taken = 0;
            list.retain_mut(|c| {
                let free = c.blocks & taken == 0;
                if !c.granted && free {
                    freed.push(c.op);
                    c.granted = true;
                    if !c.exclusive {
                        return false;
                    }
                }
                if c.exclusive {
                    taken |= c.blocks;
                }
                true
            });
            if list.is_empty() {
                let list = self.extents.remove(&key).expect("just seen");
                self.spare.push(list);
            }
        }
    }

    /// The exclusive operations that hold any of these blocks now, each once.
    pub fn holders(&self, chunk: u32, range: BlockRange, out: &mut Vec<usize>) {
        if self.is_empty() {
            return;
        }
        for (key, blocks) in extents(chunk, range) {
            for c in self.extents.get(&key).map_or(&[][..], Vec::as_slice) {
                if c.exclusive && c.granted && c.blocks & blocks != 0 && !out.contains(&c.op) {
                    out.push(c.op);
                }
            }
        }
    }

    pub fn clear(&mut self) {
        self.extents.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn freed(c: &mut Claims, op: usize, range: BlockRange) -> Vec<usize> {
        let mut v = vec![];
        c.release(op, 0, range, &mut v);
        v
    }

    #[test]
    fn overlapping_writes_wait_in_order_of_arrival() {
        let mut c = Claims::default();
        let r = BlockRange::new(3, 2);
        assert_eq!(c.claim(1, 0, r, true), 0);
        assert_eq!(c.claim(2, 0, BlockRange::new(4, 1), true), 1);
        assert_eq!(c.claim(3, 0, BlockRange::new(4, 2), true), 1);
        assert_eq!(c.claim(4, 0, BlockRange::new(6, 1), true), 0, "another block of the extent");
        assert_eq!(c.claim(5, 1, r, true), 0, "another chunk");
        assert_eq!(freed(&mut c, 1, r), [2]);
        assert_eq!(freed(&mut c, 2, BlockRange::new(4, 1)), [3]);
    }

    #[test]
    fn reads_wait_for_writes_and_hold_nothing_back() {
        let mut c = Claims::default();
        let r = BlockRange::new(0, 1);
        assert_eq!(c.claim(1, 0, r, false), 0);
        assert!(c.is_empty());
        assert_eq!(c.claim(2, 0, r, true), 0);
        assert_eq!(c.claim(3, 0, r, false), 1);
        assert_eq!(c.claim(4, 0, r, true), 1);
        assert_eq!(freed(&mut c, 2, r), [3, 4], "the read starts, and the next write with it");
        let mut h = vec![];
        c.holders(0, r, &mut h);
        assert_eq!(h, [4]);
        assert!(freed(&mut c, 4, r).is_empty());
        assert!(c.is_empty());
    }

    #[test]
    fn a_range_of_extents_waits_for_each_of_them() {
        let mut c = Claims::default();
        let (a, b) = (BlockRange::new(15, 1), BlockRange::new(33, 1));
        assert_eq!(c.claim(1, 0, a, true), 0);
        assert_eq!(c.claim(2, 0, b, true), 0);
        let wide = BlockRange::new(8, 40);
        assert_eq!(c.claim(3, 0, wide, true), 2);
        assert_eq!(c.claim(4, 0, BlockRange::new(20, 1), true), 1, "behind the wide one, which came first");
        assert_eq!(freed(&mut c, 1, a), [3]);
        assert_eq!(freed(&mut c, 2, b), [3]);
        assert_eq!(freed(&mut c, 3, wide), [4]);
    }
}
