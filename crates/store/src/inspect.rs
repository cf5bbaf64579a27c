//! Looking at a drive without opening it: decodes what lies there, by a callback that reads. Never writes.

use crate::disk::entry::Entry;
use crate::disk::page::{
    PageHead, RECORDS_PER_PAGE, Slot, States, TABLE_PER_PAGE, Zone, newest_slot, slot_at,
};
use crate::disk::superblock::{Superblock, newest};
use crate::event::Failure;
use crate::layout::SUPERBLOCK_PAGES;
use crate::recovery::chain::{Step, Walk};
use crate::recovery::table_entries;
use crate::table::Px;
use proto::limits::BLOCK;
use proto::{BranchId, ChunkIndex, Epoch, Generation, Incarnation, Payload, Version};

/// Reads `blocks` blocks at a byte offset.
pub type ReadFn<'a, E> = &'a mut dyn FnMut(u64, u32) -> Result<Payload, E>;

/// Why something could not be shown.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InspectError<E> {
    #[error("cannot read the drive: {0}")]
    Read(E),
    #[error("{0}")]
    Format(Failure),
}

/// An extent's entry in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtentInfo {
    pub px: Px,
    pub branch: BranchId,
    pub chunk: ChunkIndex,
    pub incarnation: Incarnation,
    pub extent: u32,
    pub generation: Generation,
    pub version: Version,
    pub states: States,
    pub sums: [u32; 16],
}

/// A batch of the journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchInfo {
    pub seq: u64,
    /// Pages since format; and how many.
    pub position: u64,
    pub pages: u64,
    pub entries: Vec<Entry>,
}

/// The journal as recovery would find it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalInfo {
    pub batches: Vec<BatchInfo>,
    /// Batches up to here are recorded as flushed.
    pub flushed: u64,
    /// Number and position of the next batch.
    pub next_seq: u64,
    pub end: u64,
    /// Something that was flushed is missing.
    pub lost: bool,
}

/// A page that both slots of are damaged, or the head of the newer one.
pub type PageInfo = Option<PageHead>;

const CHUNK: u64 = 256;

/// The newest superblock, and which copy it is.
pub fn superblock<E>(read: ReadFn<'_, E>) -> Result<(u8, Superblock), InspectError<E>> {
    let blocks = u32::try_from(2 * SUPERBLOCK_PAGES).expect("32");
    let bytes = read(0, blocks).map_err(InspectError::Read)?;
    let (a, b) = bytes.bytes().split_at(bytes.len() / 2);
    newest([a, b]).map_err(InspectError::Format)
}

/// All record slots that are not empty; `page` is told of each page.
pub fn records<E>(
    s: &Superblock,
    read: ReadFn<'_, E>,
    mut page: impl FnMut(u64, PageInfo),
) -> Result<Vec<(u32, Slot)>, InspectError<E>> {
    let mut found = Vec::new();
    for_pages(s, Zone::Records, read, |number, head, body| {
        page(number, head);
        for at in 0..RECORDS_PER_PAGE {
            let slot = u32::try_from(number * RECORDS_PER_PAGE as u64 + at as u64).unwrap_or(u32::MAX);
            match body.and_then(|b| slot_at(b, at)) {
                None | Some(Slot::Empty) => {}
                Some(content) => found.push((slot, content)),
            }
        }
    })?;
    Ok(found)
}

/// All extents that are not free, one by one; `page` is told of each page.
pub fn table<E>(
    s: &Superblock,
    read: ReadFn<'_, E>,
    mut page: impl FnMut(u64, PageInfo),
    mut extent: impl FnMut(ExtentInfo),
) -> Result<(), InspectError<E>> {
    for_pages(s, Zone::Table, read, |number, head, body| {
        page(number, head);
        for (at, raw) in body.into_iter().flat_map(table_entries) {
            let px = u32::try_from(number * TABLE_PER_PAGE as u64 + at as u64).unwrap_or(u32::MAX);
            extent(ExtentInfo {
                px,
                branch: BranchId(raw.branch.get()),
                chunk: ChunkIndex(raw.chunk.get()),
                incarnation: Incarnation(raw.incarnation.get()),
                extent: raw.extent.get(),
                generation: Generation(raw.generation.get()),
                version: Version::new(Epoch(raw.epoch.get()), raw.seq.get()),
                states: States(raw.states.get()),
                sums: raw.sums.map(|s| s.get()),
            });
        }
    })
}

fn for_pages<E>(
    s: &Superblock,
    zone: Zone,
    read: ReadFn<'_, E>,
    mut each: impl FnMut(u64, PageInfo, Option<&[u8]>),
) -> Result<(), InspectError<E>> {
    let count = if zone == Zone::Table { s.layout.table_pages } else { s.layout.record_pages };
    let mut from = 0;
    while from < count {
        let n = CHUNK.min(count - from);
        let at =
            if zone == Zone::Table { s.layout.table_page(from, 0) } else { s.layout.record_page(from, 0) };
        let blocks = u32::try_from(2 * n).expect("bounded by CHUNK");
        let bytes = read(at, blocks).map_err(InspectError::Read)?;
        for (number, both) in (from..).zip(bytes.bytes().chunks_exact(2 * BLOCK)) {
            match newest_slot(both, zone, s.drive, number) {
                Some((_, head, body)) => each(number, Some(head), Some(body)),
                None => each(number, None, None),
            }
        }
        from += n;
    }
    Ok(())
}

/// The chain of the journal from the tail on, as the index and the ring have it.
pub fn journal<E>(s: &Superblock, read: ReadFn<'_, E>) -> Result<JournalInfo, InspectError<E>> {
    let mut walk = Walk::new(s);
    let lost = loop {
        match walk.step() {
            Step::Read { position, pages } => {
                let blocks = u32::try_from(pages).expect("bounded by a chunk");
                let bytes = read(s.layout.journal(position), blocks).map_err(InspectError::Read)?;
                walk.give(position, bytes);
            }
            Step::Chunk(number) => {
                let bytes = read(s.layout.chunk(number), s.layout.chunk_pages).map_err(InspectError::Read)?;
                walk.give_chunk(&bytes);
            }
            Step::End | Step::Unreadable(_) => break false,
            Step::Lost => break true,
        }
    };
    let (end, next_seq, _, _) = walk.end();
    let batches = walk
        .links
        .iter()
        .map(|l| BatchInfo { seq: l.seq, position: l.position, pages: l.pages, entries: l.entries.clone() })
        .collect();
    Ok(JournalInfo { batches, flushed: walk.flushed, next_seq, end, lost })
}
