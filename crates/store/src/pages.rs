//! Which pages of a zone must be written, and which of their slots is the newest flushed one.
//!
//! A page pins the journal's tail at the oldest entry whose effect no flushed slot shows. Invariant: a write
//! never goes to the slot that is the newest flushed one.

use std::collections::BTreeSet;

/// One page of a zone.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Of the newest flushed slot.
    sequence: u64,
    slot: u8,
    /// Least batch whose effect no write (begun or done) shows; `CLEAN` if none.
    dirty: u64,
    /// Least batch whose effect only the write that is under way shows.
    building: u64,
    /// `None`: nothing under way. `Some(None)`: in flight. `Some(Some(stamp))`: completed, not yet flushed.
    build: Option<Option<u64>>,
}
const CLEAN: u64 = u64::MAX;

pub struct Pages {
    pages: Vec<Page>,
    /// Pages that are dirty.
    dirty: BTreeSet<u32>,
    /// Pages with a write under way.
    building: Vec<u32>,
}

impl Pages {
    #[must_use]
    pub fn new(count: u64) -> Pages {
        let clean = Page { sequence: 0, slot: 0, dirty: CLEAN, building: CLEAN, build: None };
        let count = usize::try_from(count).expect("fits in memory");
        Pages { pages: vec![clean; count], dirty: BTreeSet::new(), building: Vec::new() }
    }
    /// What was read at opening.
    pub fn found(&mut self, page: u32, slot: u8, sequence: u64) {
        let p = &mut self.pages[page as usize];
        (p.slot, p.sequence) = (slot, sequence);
    }
    /// The page must show an effect of batch `seq`.
    pub fn touch(&mut self, page: u32, seq: u64) {
        let p = &mut self.pages[page as usize];
        if p.dirty == CLEAN {
            self.dirty.insert(page);
        }
        p.dirty = p.dirty.min(seq);
    }
    /// Dirty pages, ascending.
    #[must_use]
    pub fn dirty_pages(&self) -> Vec<u32> {
        self.dirty.iter().copied().collect()
    }
    /// A write of the page begins: the slot to write to, and the sequence. `None`: one is under way.
    pub fn begin(&mut self, page: u32) -> Option<(u8, u64)> {
        let p = &mut self.pages[page as usize];
        if p.build.is_some() {
            return None;
        }
        assert_ne!(p.dirty, CLEAN, "only dirty pages are written");
        p.build = Some(None);
        p.building = p.dirty;
        p.dirty = CLEAN;
        self.dirty.remove(&page);
        self.building.push(page);
        Some((1 - p.slot, p.sequence + 1))
    }
    pub fn completed(&mut self, page: u32, stamp: u64) {
        self.pages[page as usize].build = Some(Some(stamp));
    }
    /// The drive has flushed everything up to `stamp`.
    pub fn flushed(&mut self, stamp: u64) {
        let pages = &mut self.pages;
        self.building.retain(|page| {
            let p = &mut pages[*page as usize];
            let done = matches!(p.build, Some(Some(s)) if s <= stamp);
            if done {
                (p.slot, p.sequence) = (1 - p.slot, p.sequence + 1);
                (p.build, p.building) = (None, CLEAN);
            }
            !done
        });
    }
    /// A write of some page is in flight, or not yet flushed.
    #[must_use]
    pub fn is_building(&self) -> bool {
        !self.building.is_empty()
    }
    /// The least batch that some page pins.
    #[must_use]
    pub fn pinned(&self) -> u64 {
        let all = self.dirty.iter().chain(&self.building);
        all.map(|p| self.pages[*p as usize]).map(|p| p.dirty.min(p.building)).min().unwrap_or(CLEAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_pins_until_a_flush_covers_its_write() {
        let mut p = Pages::new(2);
        assert_eq!(p.pinned(), CLEAN);
        p.touch(1, 7);
        p.touch(1, 5);
        assert_eq!((p.pinned(), p.dirty_pages()), (5, vec![1]));
        assert_eq!(p.begin(1), Some((1, 1)));
        assert_eq!(p.begin(1), None);
        p.touch(1, 9);
        p.completed(1, 100);
        p.flushed(99);
        assert_eq!(p.pinned(), 5);
        p.flushed(100);
        assert_eq!(p.pinned(), 9);
        assert_eq!(p.begin(1), Some((0, 2)), "the other slot, the next sequence");
    }
}
