//! Block-aligned memory in safe Rust: what goes to a drive by O_DIRECT is aligned by its type.

use crate::limits::BLOCK;
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One block of memory, aligned to its size.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub struct Page(pub [u8; BLOCK]);

impl Page {
    pub const ZERO: Page = Page([0; BLOCK]);
}

/// Owned, writable, block-aligned memory: what a read fills, or what becomes a `Payload`.
#[derive(Default)]
pub struct PageBuf(Vec<Page>);

impl PageBuf {
    /// Zeroed memory of `blocks` blocks.
    #[must_use]
    pub fn zeroed(blocks: usize) -> PageBuf {
        PageBuf(vec![Page::ZERO; blocks])
    }
    /// A copy of `bytes`, padded with zeroes to whole blocks.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> PageBuf {
        let mut b = PageBuf::zeroed(bytes.len().div_ceil(BLOCK));
        b.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        b
    }
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.0.len()
    }
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }
    #[must_use]
    pub fn freeze(self) -> Payload {
        let count = self.0.len();
        Payload { pages: Arc::new(self.0), start: 0, count }
    }
}

/// Shared, immutable, block-aligned memory. Cloning and slicing copy no bytes.
#[derive(Clone)]
pub struct Payload {
    pages: Arc<Vec<Page>>,
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
        self.pages[self.start..self.start + self.count].as_bytes()
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
