//! Block-aligned memory in safe Rust: what goes to a drive by O_DIRECT is aligned by its type.

use crate::limits::BLOCK;
use std::cell::RefCell;
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One block of memory, aligned to its size.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub struct Page(pub [u8; BLOCK]);

impl Page {
    pub const ZERO: Page = Page([0; BLOCK]);
}

/// Memory that goes back to its thread's pool. Aligned memory is dear to allocate and small pieces come and go with each
/// request: so what was given back last, and is still in the cache, is taken first.
#[derive(Default)]
struct Pages(Vec<Page>);

/// Largest piece that is kept, blocks: an extent.
const KEPT_BLOCKS: usize = 16;
/// Blocks that a thread keeps: as many as wait in a journal at once, for they come back in thousands.
const KEPT_IN_ALL: usize = 256 << 10;
const _: () = assert!(KEPT_IN_ALL as u64 * BLOCK as u64 == crate::limits::JOURNAL_MAX);
/// Blocks that `trim` gives back at once: few, for it is called between I/Os.
const TRIM_AT_ONCE: usize = 4 << 10;

#[derive(Default)]
struct Pool {
    /// By length in blocks, less one.
    free: [Vec<Vec<Page>>; KEPT_BLOCKS],
    blocks: usize,
    /// Least that lay unused since the last look.
    unused: usize,
    /// To be given back.
    excess: usize,
}

/// Gives memory back that this thread's pool has not needed: some of it, at each call. `look`: what lay unused since the last
/// look is not needed.
pub fn trim(look: bool) {
    let _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if look {
            pool.excess = pool.unused;
            pool.unused = pool.blocks;
        }
        let mut given = 0;
        for length in (0..KEPT_BLOCKS).rev() {
            while given < pool.excess.min(TRIM_AT_ONCE) && pool.free[length].pop().is_some() {
                given += length + 1;
            }
        }
        pool.blocks -= given;
        pool.excess = pool.excess.saturating_sub(given).min(pool.blocks);
        pool.unused = pool.unused.min(pool.blocks);
    });
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

impl Pages {
    /// Memory with whatever it held before.
    fn taken(blocks: usize) -> Option<Pages> {
        if !(1..=KEPT_BLOCKS).contains(&blocks) {
            return None;
        }
        // None while the thread ends.
        POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            let taken = pool.free[blocks - 1].pop()?;
            pool.blocks -= blocks;
            pool.unused = pool.unused.min(pool.blocks);
            Some(Pages(taken))
        })
        .ok()?
    }
}
impl Drop for Pages {
    fn drop(&mut self) {
        let blocks = self.0.len();
        if !(1..=KEPT_BLOCKS).contains(&blocks) {
            return;
        }
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.blocks + blocks <= KEPT_IN_ALL {
                pool.blocks += blocks;
                pool.free[blocks - 1].push(std::mem::take(&mut self.0));
            }
        });
    }
}

/// Owned, writable, block-aligned memory: what a read fills, or what becomes a `Payload`.
#[derive(Default)]
pub struct PageBuf(Pages);

impl PageBuf {
    /// Zeroed memory of `blocks` blocks.
    #[must_use]
    pub fn zeroed(blocks: usize) -> PageBuf {
        PageBuf(match Pages::taken(blocks) {
            Some(mut pages) => {
                pages.0.fill(Page::ZERO);
                pages
            }
            None => Pages(vec![Page::ZERO; blocks]),
        })
    }
    /// Memory that holds anything, of other requests too: for a caller who overwrites all of it, or throws it away.
    #[must_use]
    pub fn for_overwrite(blocks: usize) -> PageBuf {
        PageBuf(Pages::taken(blocks).unwrap_or_else(|| Pages(vec![Page::ZERO; blocks])))
    }
    /// A copy of `bytes`, padded with zeroes to whole blocks.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> PageBuf {
        let mut b = PageBuf::for_overwrite(bytes.len().div_ceil(BLOCK));
        let (copied, padding) = b.bytes_mut().split_at_mut(bytes.len());
        copied.copy_from_slice(bytes);
        padding.fill(0);
        b
    }
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.0.0.len()
    }
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.0.as_bytes()
    }
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.0.as_mut_bytes()
    }
    #[must_use]
    pub fn freeze(self) -> Payload {
        let count = self.blocks();
        Payload { pages: Arc::new(self.0), start: 0, count }
    }
}

/// Shared, immutable, block-aligned memory. Cloning and slicing copy no bytes.
#[derive(Clone)]
pub struct Payload {
    pages: Arc<Pages>,
    start: usize,
    count: usize,
}

impl Payload {
    #[must_use]
    pub fn empty() -> Payload {
        PageBuf::default().freeze()
    }
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Payload {
        PageBuf::copy_of(bytes).freeze()
    }
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
    /// Length in blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.count
    }
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count * BLOCK
    }
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.pages.0[self.start..self.start + self.count].as_bytes()
    }
    /// Bytes of one block.
    #[must_use]
    pub fn block(&self, i: usize) -> &[u8] {
        &self.bytes()[i * BLOCK..(i + 1) * BLOCK]
    }
    /// Blocks `first .. first + count` of this payload, sharing its memory. Panics beyond the end.
    #[must_use]
    pub fn slice(&self, first: usize, count: usize) -> Payload {
        assert!(first + count <= self.count, "slice beyond the payload");
        Payload { pages: self.pages.clone(), start: self.start + first, count }
    }
}
impl PartialEq for Payload {
    fn eq(&self, o: &Payload) -> bool {
        self.bytes() == o.bytes()
    }
}
impl Eq for Payload {}
impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} blocks)", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_comes_back_is_used_again_and_shows_nothing_of_what_it_held() {
        for blocks in [1, 2, KEPT_BLOCKS] {
            let old = PageBuf::copy_of(&vec![7; blocks * BLOCK]).freeze();
            let (address, clone) = (old.bytes().as_ptr(), old.clone());
            drop(old);
            let other = PageBuf::zeroed(blocks);
            assert_ne!(other.bytes().as_ptr(), address, "still held by a clone");
            drop(clone);
            let copy = PageBuf::copy_of(&vec![9; blocks * BLOCK - 5]);
            assert_eq!(copy.bytes().as_ptr(), address);
            assert!(copy.bytes()[..blocks * BLOCK - 5].iter().all(|b| *b == 9));
            assert_eq!(copy.bytes()[blocks * BLOCK - 5..], [0; 5]);
            drop(copy);
            assert!(PageBuf::zeroed(blocks).bytes().iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn what_nobody_has_needed_for_a_while_is_given_back_bit_by_bit() {
        let kept = || POOL.with(|p| p.borrow().blocks);
        drop((0..10_000).map(|_| PageBuf::zeroed(1)).collect::<Vec<_>>());
        assert_eq!(kept(), 10_000);
        trim(true);
        trim(false);
        assert_eq!(kept(), 10_000, "just used");
        drop((0..3_000).map(|_| PageBuf::zeroed(1)).collect::<Vec<_>>());
        trim(true);
        assert_eq!(kept(), 10_000 - TRIM_AT_ONCE, "7,000 lay unused; the rest of them later");
        for _ in 0..5 {
            trim(false);
        }
        assert_eq!(kept(), 3_000);
    }

    #[test]
    fn a_thread_keeps_no_more_than_its_bound() {
        let many: Vec<PageBuf> =
            (0..KEPT_IN_ALL / KEPT_BLOCKS + 10).map(|_| PageBuf::zeroed(KEPT_BLOCKS)).collect();
        drop(many);
        drop(PageBuf::zeroed(KEPT_BLOCKS + 1));
        assert!(POOL.with(|p| p.borrow().blocks) <= KEPT_IN_ALL);
    }
}
