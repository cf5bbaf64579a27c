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

/// Lengths that are kept, blocks: all up to an extent, then powers of two up to 1 MiB; what is between is rounded up.
const EXACT: usize = 16;
const LENGTHS: usize = EXACT + 4;
const KEPT_BLOCKS: usize = EXACT << (LENGTHS - EXACT);
/// Blocks that a thread keeps, 256 MiB: what it reads and writes at once comes back in thousands.
const KEPT_IN_ALL: usize = 64 << 10;

/// Which of the lengths holds `blocks`; none: too long, or nothing.
fn class(blocks: usize) -> Option<usize> {
    match blocks {
        0 => None,
        1..=EXACT => Some(blocks - 1),
        _ if blocks <= KEPT_BLOCKS => {
            Some(EXACT - 1 + (blocks.next_power_of_two() / EXACT).trailing_zeros() as usize)
        }
        _ => None,
    }
}
/// Its blocks.
fn length(class: usize) -> usize {
    if class < EXACT { class + 1 } else { EXACT << (class + 1 - EXACT) }
}
/// Blocks that `trim` gives back at once: few, for it is called between I/Os.
const TRIM_AT_ONCE: usize = 4 << 10;

#[derive(Default)]
struct Pool {
    /// By length.
    free: [Vec<Vec<Page>>; LENGTHS],
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
        for class in (0..LENGTHS).rev() {
            while given < pool.excess.min(TRIM_AT_ONCE) && pool.free[class].pop().is_some() {
                given += length(class);
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
    /// Memory for `blocks` blocks or more: from the pool with whatever it held before, else zeroed. True if it is zeroed.
    fn take(blocks: usize) -> (Pages, bool) {
        let Some(class) = class(blocks) else { return (Pages(vec![Page::ZERO; blocks]), true) };
        // None while the thread ends.
        let kept = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            let taken = pool.free[class].pop()?;
            pool.blocks -= taken.len();
            pool.unused = pool.unused.min(pool.blocks);
            Some(Pages(taken))
        });
        match kept {
            Ok(Some(pages)) => (pages, false),
            _ => (Pages(vec![Page::ZERO; length(class)]), true),
        }
    }
}
impl Drop for Pages {
    fn drop(&mut self) {
        let blocks = self.0.len();
        let Some(class) = class(blocks) else { return };
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.blocks + blocks <= KEPT_IN_ALL {
                pool.blocks += blocks;
                pool.free[class].push(std::mem::take(&mut self.0));
            }
        });
    }
}

/// Owned, writable, block-aligned memory: what a read fills, or what becomes a `Payload`.
#[derive(Default)]
pub struct PageBuf {
    pages: Pages,
    /// Blocks of it that count.
    count: usize,
}

impl PageBuf {
    /// Zeroed memory of `blocks` blocks.
    #[must_use]
    pub fn zeroed(blocks: usize) -> PageBuf {
        let (mut pages, zeroed) = Pages::take(blocks);
        if !zeroed {
            pages.0[..blocks].fill(Page::ZERO);
        }
        PageBuf { pages, count: blocks }
    }
    /// Memory that holds anything, of other requests too: for a caller who overwrites all of it, or throws it away.
    #[must_use]
    pub fn for_overwrite(blocks: usize) -> PageBuf {
        PageBuf { pages: Pages::take(blocks).0, count: blocks }
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
        self.count
    }
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.pages.0[..self.count].as_bytes()
    }
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.0[..self.count].as_mut_bytes()
    }
    #[must_use]
    pub fn freeze(self) -> Payload {
        Payload { pages: Arc::new(self.pages), start: 0, count: self.count }
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
        for blocks in [1, 2, EXACT, EXACT + 1, 2 * EXACT, KEPT_BLOCKS] {
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
    fn every_length_has_room_in_the_least_class_that_holds_it() {
        for blocks in 1..=KEPT_BLOCKS {
            let class = class(blocks).unwrap();
            assert!(length(class) >= blocks && (class == 0 || length(class - 1) < blocks), "{blocks}");
        }
        assert_eq!((class(0), class(KEPT_BLOCKS + 1), length(LENGTHS - 1)), (None, None, KEPT_BLOCKS));
        let odd = PageBuf::copy_of(&[3; 17 * BLOCK + 1]);
        assert_eq!((odd.blocks(), odd.bytes().len(), odd.freeze().len()), (18, 18 * BLOCK, 18 * BLOCK));
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
