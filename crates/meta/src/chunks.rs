//! Configurations of one branch's chunks, kept as they are stored: encoded pages.
//!
//! 16 million chunks must fit into memory, so a page of 64 chunks is a few hundred bytes: a table of the
//! drives it names, then per chunk its number and its members as indexes. What is in memory *is* the
//! row, shared with it. Whoever wants configurations gets them decoded.
//!
//! Page: format byte 1 | varint number of homes | per home varint node, 8 bytes drive (little endian)
//! | varint least incarnation | varint number of chunks | per chunk varint number, byte member count,
//! per member varint home, varint (incarnation - least) * 4 + state. Varints are LEB128.

use crate::model::Home;
use arrayvec::ArrayVec;
use proto::{
    ChunkIndex, ConfigNumber, Configuration, DriveId, Incarnation, Member, MemberState, NodeId, Place,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Chunks of one page.
pub const PAGE_CHUNKS: u32 = 64;
const PAGE_FORMAT: u8 = 1;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Page {
    bytes: Arc<[u8]>,
    /// Chunks that are not as they should be. Derived.
    unwell: u32,
}

/// All chunks of a branch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunks {
    copies: u8,
    count: u32,
    pages: Vec<Page>,
    unwell: u32,
}

/// True if a chunk is as it should be: made, with so many members, all in-sync and none leaving.
#[must_use]
pub fn is_well(c: &Configuration, copies: u8) -> bool {
    c.number > ConfigNumber(0)
        && c.members.len() == usize::from(copies)
        && c.members.iter().all(|m| m.state == MemberState::InSync)
}

impl Chunks {
    pub(crate) fn new(copies: u8) -> Chunks {
        Chunks { copies, count: 0, pages: Vec::new(), unwell: 0 }
    }

    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }
    /// Chunks that are not as they should be.
    #[must_use]
    pub fn unwell(&self) -> u32 {
        self.unwell
    }
    #[must_use]
    pub fn pages(&self) -> u32 {
        u32::try_from(self.pages.len()).expect("pages hold chunks, whose index is 32 bits")
    }
    /// Bytes of all pages.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pages.iter().map(|p| p.bytes.len()).sum()
    }
    pub(crate) fn row(&self, page: u32) -> Option<Arc<[u8]>> {
        self.pages.get(page as usize).map(|p| p.bytes.clone())
    }

    #[must_use]
    pub fn get(&self, chunk: ChunkIndex) -> Option<Configuration> {
        let page = self.pages.get((chunk.0 / PAGE_CHUNKS) as usize)?;
        let mut reader = PageReader::new(&page.bytes)?;
        reader.nth((chunk.0 % PAGE_CHUNKS) as usize)
    }

    /// The chunks of one page.
    #[must_use]
    pub fn page(&self, page: u32) -> Vec<(ChunkIndex, Configuration)> {
        let Some(p) = self.pages.get(page as usize) else { return Vec::new() };
        let reader = PageReader::new(&p.bytes).expect("pages are checked when loaded");
        (page * PAGE_CHUNKS..).map(ChunkIndex).zip(reader).collect()
    }

    #[must_use]
    pub fn page_unwell(&self, page: u32) -> u32 {
        self.pages.get(page as usize).map_or(0, |p| p.unwell)
    }

    /// True if the page names that drive (without decoding its chunks).
    #[must_use]
    pub fn page_names(&self, page: u32, drive: DriveId) -> bool {
        self.pages
            .get(page as usize)
            .and_then(|p| PageReader::new(&p.bytes))
            .is_some_and(|r| r.homes.iter().any(|h| h.drive == drive))
    }

    pub fn iter(&self) -> impl Iterator<Item = (ChunkIndex, Configuration)> + '_ {
        (0..self.pages()).flat_map(|p| self.page(p))
    }

    /// Those of pages that have any chunk that is not well; the others are skipped unread.
    pub fn iter_unwell(&self) -> impl Iterator<Item = (ChunkIndex, Configuration)> + '_ {
        (0..self.pages())
            .filter(|p| self.page_unwell(*p) > 0)
            .flat_map(|p| self.page(p))
            .filter(|(_, c)| !is_well(c, self.copies))
    }

    /// Replaces configurations of existing chunks. Returns the pages that changed.
    pub(crate) fn set(&mut self, changes: &BTreeMap<ChunkIndex, Configuration>) -> Vec<u32> {
        let mut changed = Vec::new();
        let mut rest = changes.iter().peekable();
        while let Some((first, _)) = rest.peek() {
            let page = first.0 / PAGE_CHUNKS;
            let mut all: Vec<Configuration> = self.page(page).into_iter().map(|(_, c)| c).collect();
            while let Some((c, new)) = rest.next_if(|(c, _)| c.0 / PAGE_CHUNKS == page) {
                all[(c.0 % PAGE_CHUNKS) as usize] = new.clone();
            }
            self.put_page(page, &all);
            changed.push(page);
        }
        changed
    }

    /// Appends chunks. Returns the pages that changed.
    pub(crate) fn append(&mut self, new: &[Configuration]) -> Vec<u32> {
        let mut rest = new;
        let mut changed = Vec::new();
        while !rest.is_empty() {
            let page = self.count / PAGE_CHUNKS;
            let mut all: Vec<Configuration> = self.page(page).into_iter().map(|(_, c)| c).collect();
            let take = rest.len().min(PAGE_CHUNKS as usize - all.len());
            all.extend_from_slice(&rest[..take]);
            rest = &rest[take..];
            self.count += u32::try_from(take).expect("at most a page");
            self.put_page(page, &all);
            changed.push(page);
        }
        changed
    }

    /// Another number of copies is wanted: judges all pages again.
    pub(crate) fn set_copies(&mut self, copies: u8) {
        self.copies = copies;
        for page in 0..self.pages() {
            let unwell = self.judge(self.page(page).iter().map(|(_, c)| c));
            self.pages[page as usize].unwell = unwell;
        }
        self.unwell = self.pages.iter().map(|p| p.unwell).sum();
    }

    /// Takes a page as it was stored; pages come in order.
    pub(crate) fn load(&mut self, page: u32, bytes: &Arc<[u8]>) -> Option<()> {
        if page != self.pages() || self.count != page * PAGE_CHUNKS {
            return None;
        }
        let mut reader = PageReader::new(bytes)?;
        let promised = reader.left;
        let all: Vec<Configuration> = reader.by_ref().collect();
        if all.len() != promised || all.len() > PAGE_CHUNKS as usize || !reader.rest.is_empty() {
            return None;
        }
        let unwell = self.judge(all.iter());
        self.unwell += unwell;
        self.count += u32::try_from(all.len()).ok()?;
        self.pages.push(Page { bytes: bytes.clone(), unwell });
        Some(())
    }

    fn judge<'a>(&self, all: impl Iterator<Item = &'a Configuration>) -> u32 {
        let unwell = all.filter(|c| !is_well(c, self.copies)).count();
        u32::try_from(unwell).expect("at most a page")
    }

    fn put_page(&mut self, page: u32, all: &[Configuration]) {
        let new = Page { bytes: encode(all).into(), unwell: self.judge(all.iter()) };
        self.unwell += new.unwell;
        match self.pages.get_mut(page as usize) {
            Some(old) => {
                self.unwell -= old.unwell;
                *old = new;
            }
            None => self.pages.push(new),
        }
    }
}

fn encode(all: &[Configuration]) -> Vec<u8> {
    let mut homes: Vec<Home> = Vec::new();
    let mut least = u64::MAX;
    for m in all.iter().flat_map(|c| &c.members) {
        let home = Home { node: m.place.node, drive: m.place.drive };
        if !homes.contains(&home) {
            homes.push(home);
        }
        least = least.min(m.place.incarnation.0);
    }
    let least = if homes.is_empty() { 0 } else { least };
    let mut out = Vec::with_capacity(16 + homes.len() * 10 + all.len() * 12);
    out.push(PAGE_FORMAT);
    put(&mut out, homes.len() as u64);
    for h in &homes {
        put(&mut out, h.node.0.into());
        out.extend_from_slice(&h.drive.0.to_le_bytes());
    }
    put(&mut out, least);
    put(&mut out, all.len() as u64);
    for c in all {
        put(&mut out, c.number.0);
        out.push(u8::try_from(c.members.len()).expect("MEMBERS_MAX is small"));
        for m in &c.members {
            let home = Home { node: m.place.node, drive: m.place.drive };
            let i = homes.iter().position(|h| *h == home).expect("listed above");
            put(&mut out, i as u64);
            put(&mut out, (m.place.incarnation.0 - least) * 4 + state_code(m.state));
        }
    }
    out
}

fn state_code(s: MemberState) -> u64 {
    match s {
        MemberState::InSync => 0,
        MemberState::Stale => 1,
        MemberState::Leaving => 2,
    }
}

fn put(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push((v & 0x7f) as u8 | 0x80);
        v >>= 7;
    }
    out.push((v & 0x7f) as u8);
}

/// Decodes a page, chunk by chunk; ends early if it is malformed.
struct PageReader<'a> {
    homes: Vec<Home>,
    least: u64,
    left: usize,
    rest: &'a [u8],
}

impl<'a> PageReader<'a> {
    fn new(bytes: &'a [u8]) -> Option<PageReader<'a>> {
        let (&format, mut rest) = bytes.split_first()?;
        if format != PAGE_FORMAT {
            return None;
        }
        let n = take(&mut rest)?;
        let mut homes = Vec::new();
        for _ in 0..n {
            let node = NodeId(u32::try_from(take(&mut rest)?).ok()?);
            let (drive, tail) = rest.split_first_chunk::<8>()?;
            rest = tail;
            homes.push(Home { node, drive: DriveId(u64::from_le_bytes(*drive)) });
        }
        let least = take(&mut rest)?;
        let left = usize::try_from(take(&mut rest)?).ok()?;
        Some(PageReader { homes, least, left, rest })
    }

    fn member(&mut self) -> Option<Member> {
        let home = *self.homes.get(usize::try_from(take(&mut self.rest)?).ok()?)?;
        let v = take(&mut self.rest)?;
        let state = match v & 3 {
            0 => MemberState::InSync,
            1 => MemberState::Stale,
            2 => MemberState::Leaving,
            _ => return None,
        };
        let incarnation = Incarnation(self.least.checked_add(v / 4)?);
        Some(Member { place: Place { node: home.node, drive: home.drive, incarnation }, state })
    }
}

impl Iterator for PageReader<'_> {
    type Item = Configuration;
    fn next(&mut self) -> Option<Configuration> {
        self.left = self.left.checked_sub(1)?;
        let number = ConfigNumber(take(&mut self.rest)?);
        let (&n, rest) = self.rest.split_first()?;
        self.rest = rest;
        let mut members = ArrayVec::new();
        for _ in 0..n {
            members.try_push(self.member()?).ok()?;
        }
        Some(Configuration { number, members })
    }
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut v = 0u64;
    for shift in (0..64).step_by(7) {
        let (&b, tail) = rest.split_first()?;
        *rest = tail;
        let bits = u64::from(b & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        v |= bits << shift;
        if b & 0x80 == 0 {
            return Some(v);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn configuration() -> impl Strategy<Value = Configuration> {
        let state =
            prop_oneof![Just(MemberState::InSync), Just(MemberState::Stale), Just(MemberState::Leaving)];
        let member = (0..9u32, 0..12u64, 0..u64::MAX / 8, state).prop_map(|(n, d, i, state)| Member {
            place: Place { node: NodeId(n), drive: DriveId(d << 50), incarnation: Incarnation(i) },
            state,
        });
        (any::<u64>(), prop::collection::vec(member, 0..=8))
            .prop_map(|(n, m)| Configuration { number: ConfigNumber(n), members: m.into_iter().collect() })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_put_in_comes_out(
            all in prop::collection::vec(configuration(), 1..150),
            changes in prop::collection::btree_map(0..150u32, configuration(), 0..20),
        ) {
            let mut chunks = Chunks::new(3);
            let half = all.len() / 2;
            chunks.append(&all[..half]);
            chunks.append(&all[half..]);
            let mut model = all.clone();
            let n = u32::try_from(all.len()).unwrap();
            let changes: BTreeMap<ChunkIndex, Configuration> =
                changes.into_iter().map(|(c, v)| (ChunkIndex(c % n), v)).collect();
            for (c, v) in &changes { model[c.0 as usize] = v.clone(); }
            chunks.set(&changes);
            let got: Vec<Configuration> = chunks.iter().map(|(_, c)| c).collect();
            prop_assert_eq!(&got, &model);
            prop_assert_eq!(chunks.unwell() as usize, model.iter().filter(|c| !is_well(c, 3)).count());
            prop_assert_eq!(chunks.get(ChunkIndex(n - 1)), model.last().cloned());
            prop_assert_eq!(chunks.get(ChunkIndex(n)), None);
            let mut again = Chunks::new(3);
            for p in 0..chunks.pages() { again.load(p, &chunks.row(p).unwrap()).unwrap(); }
            prop_assert_eq!(again, chunks);
        }

        #[test]
        fn a_damaged_page_is_refused_and_does_not_panic(
            all in prop::collection::vec(configuration(), 1..10),
            cut in any::<prop::sample::Index>(), flip in any::<(prop::sample::Index, u8)>(),
        ) {
            let bytes = encode(&all);
            let mut damaged = bytes.clone();
            damaged[flip.0.index(bytes.len())] ^= flip.1;
            let _ = Chunks::new(3).load(0, &damaged.into());
            let short: Arc<[u8]> = bytes[..cut.index(bytes.len())].into();
            prop_assert_eq!(Chunks::new(3).load(0, &short), None);
        }
    }

    #[test]
    fn a_chunk_of_a_new_volume_takes_few_bytes() {
        let member = |k: u32, i: u64| Member {
            place: Place {
                node: NodeId(k + 1),
                drive: DriveId(u64::MAX - u64::from(k)),
                incarnation: Incarnation(i),
            },
            state: MemberState::InSync,
        };
        let all: Vec<Configuration> = (0..64u32)
            .map(|c| Configuration {
                number: ConfigNumber(1),
                members: (0..3).map(|k| member((c + k) % 7, 48_000_000 + u64::from(c * 3 + k))).collect(),
            })
            .collect();
        let bytes = encode(&all).len();
        assert!(bytes <= 64 * 12, "{bytes}");
    }
}
