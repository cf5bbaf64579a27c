//! What a drive says of itself, read without opening it as a store: superblock, records, a summary of the table, the
//! journal's chain. Read-only.

use crate::device::Drive;
use crate::format::{SuperblockError, superblock_of};
use proto::limits::BLOCK;
use proto::{DriveId, PageBuf};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use store::disk::entry;
use store::disk::header::{HEADER_PAGES_MAX, Header};
use store::disk::page::{
    BranchRecord, KeepWindow, RECORDS_PER_PAGE, ReplicaRecord, Slot, TABLE_PER_PAGE, ZeroWindow, Zone,
    extent_at, newest_slot, slot_at,
};
use store::disk::superblock::Superblock;
use store::layout::Layout;

#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Drive(#[from] SuperblockError),
}

/// Table pages read at once.
const AT_ONCE: u64 = 128;

/// Everything, as JSON.
pub fn inspect(drive: &Drive) -> Result<Value, InspectError> {
    let file = File::from(drive.fd.try_clone()?);
    let s = superblock_of(drive)?;
    let (records, bad_records) = records(&file, &s)?;
    Ok(json!({
        "schema": "drive.inspect/1",
        "path": drive.path.display().to_string(),
        "size": drive.size,
        "superblock": superblock(&s),
        "records": records,
        "damaged_record_pages": bad_records,
        "table": table(&file, &s)?,
        "journal": journal(&file, &s)?,
    }))
}

fn superblock(s: &Superblock) -> Value {
    let l = &s.layout;
    json!({
        "cluster": crate::config::show_cluster(s.cluster),
        "node": s.node.0,
        "drive": s.drive.0,
        "sequence": s.sequence,
        "clean": s.clean,
        "boot": s.boot.iter().map(|b| format!("{b:02x}")).collect::<String>(),
        "open": s.open,
        "tail": { "position": s.tail, "batch": s.tail_seq },
        "chain_end": s.chain_end,
        "flushed": s.flushed,
        "doubt_at": s.doubt_at,
        "confirmed": s.confirmed.0,
        "openings": s.openings.iter().map(|o| o.0).collect::<Vec<_>>(),
        "dropped": s.dropped.len(),
        "layout": {
            "pages": l.pages,
            "journal_start": l.journal_start,
            "journal_pages": l.journal_pages,
            "records_start": l.records_start,
            "record_pages": l.record_pages,
            "table_start": l.table_start,
            "table_pages": l.table_pages,
            "data_start": l.data_start,
            "extents": l.extents,
        },
    })
}

fn read(file: &File, offset: u64, pages: usize) -> io::Result<PageBuf> {
    let mut buf = PageBuf::zeroed(pages);
    file.read_exact_at(buf.bytes_mut(), offset)?;
    Ok(buf)
}

/// Calls `each` with every page of a zone: its index, and its newest slot's body, or none if both are damaged.
fn pages(
    file: &File,
    drive: DriveId,
    zone: Zone,
    (count, at): (u64, impl Fn(u64) -> u64),
    mut each: impl FnMut(u64, Option<&[u8]>),
) -> io::Result<()> {
    let mut page = 0;
    while page < count {
        let n = AT_ONCE.min(count - page);
        let buf = read(file, at(page), usize::try_from(2 * n).expect("a few"))?;
        for (index, both) in (page..).zip(buf.bytes().chunks_exact(2 * BLOCK)) {
            each(index, newest_slot(both, zone, drive, index).map(|(_, _, body)| body));
        }
        page += n;
    }
    Ok(())
}

fn records(file: &File, s: &Superblock) -> io::Result<(Vec<Value>, Vec<u64>)> {
    let l: &Layout = &s.layout;
    let (mut found, mut bad) = (Vec::new(), Vec::new());
    pages(file, s.drive, Zone::Records, (l.record_pages, |p| l.record_page(p, 0)), |index, body| {
        let Some(body) = body else { return bad.push(index) };
        for at in 0..RECORDS_PER_PAGE {
            match slot_at(body, at) {
                Some(Slot::Empty) => {}
                Some(Slot::Branch(b)) => found.push(branch(&b)),
                Some(Slot::Replica(r)) => found.push(replica(&r)),
                Some(Slot::Keep(w)) => found.push(window(&w)),
                Some(Slot::Zeroes(w)) => found.push(zeroes(&w)),
                None => found.push(json!({ "kind": "unknown", "page": index, "slot": at })),
            }
        }
    })?;
    Ok((found, bad))
}

fn branch(b: &BranchRecord) -> Value {
    let version = |v: proto::Version| json!({ "epoch": v.epoch.0, "seq": v.seq });
    json!({
        "kind": "branch",
        "branch": b.branch.0,
        "name": b.name,
        "epoch": b.epoch.0,
        "holder": b.holder.0,
        "generation": b.generation.0,
        "committed": version(b.marks.committed),
        "durable": version(b.marks.durable),
        "doubt_cleared_at": b.clear_seq,
        "size": b.geometry.size,
        "chunk_bytes": b.geometry.chunk_bytes(),
        "parent": b.parent.map(|(p, g)| json!({ "branch": p.0, "generation": g.0 })),
        "keep_list": json!({
            "index": b.list.index.0,
            "open": b.list.open.0,
            "head": b.list.head.0,
            "placed": b.list.placed.0,
            "named": b.list.named,
        }),
    })
}

fn window(w: &KeepWindow) -> Value {
    let ranges: Vec<Value> = w.kept.ranges().iter().map(|(a, b)| json!([a.0, b.0])).collect();
    json!({ "kind": "kept", "branch": w.branch.0, "window": w.window, "index": w.index.0, "generations": ranges })
}

fn zeroes(w: &ZeroWindow) -> Value {
    let extents: u32 = w.bits.iter().map(|b| b.count_ones()).sum();
    json!({
        "kind": "zeroes",
        "branch": w.branch.0,
        "chunk": w.chunk.0,
        "incarnation": w.incarnation.0,
        "generation": w.generation.0,
        "window": w.window,
        "version": w.version.to_string(),
        "extents": extents,
    })
}

fn replica(r: &ReplicaRecord) -> Value {
    let members: Vec<Value> = r
        .configuration
        .members
        .iter()
        .map(|m| json!({ "node": m.place.node.0, "drive": m.place.drive.0, "state": format!("{:?}", m.state) }))
        .collect();
    json!({
        "kind": "replica",
        "branch": r.branch.0,
        "chunk": r.chunk.0,
        "incarnation": r.incarnation.0,
        "configuration": r.configuration.number.0,
        "complete": r.complete.0,
        "whole": r.whole,
        "members": members,
    })
}

fn table(file: &File, s: &Superblock) -> io::Result<Value> {
    let l = &s.layout;
    let (mut used, mut bad) = (0_u64, Vec::new());
    let mut per_branch: BTreeMap<u64, u64> = BTreeMap::new();
    pages(file, s.drive, Zone::Table, (l.table_pages, |p| l.table_page(p, 0)), |index, body| {
        let Some(body) = body else { return bad.push(index) };
        for at in 0..TABLE_PER_PAGE {
            let e = extent_at(body, at);
            if !e.is_free() {
                used += 1;
                *per_branch.entry(e.branch.get()).or_default() += 1;
            }
        }
    })?;
    let branches: Vec<Value> = per_branch
        .into_iter()
        .map(|(branch, extents)| json!({ "branch": branch, "extents": extents }))
        .collect();
    Ok(json!({
        "extents": l.extents,
        "used": used,
        "branches": branches,
        "damaged_pages": bad,
    }))
}

/// Follows the chain from the tail as recovery would, without its decisions.
fn journal(file: &File, s: &Superblock) -> io::Result<Value> {
    let l = &s.layout;
    let (mut position, mut seq, mut prev) = (s.tail, s.tail_seq, s.tail_prev);
    let (mut batches, mut entries, mut blocks) = (0_u64, 0_u64, 0_u64);
    let end = loop {
        position = l.batch_start(position);
        let first = read(file, l.journal(position), 1)?;
        let Some(n) = Header::claimed_pages(first.bytes(), s.drive) else { break "no header" };
        let left = usize::try_from(l.journal_pages - l.ring(position)).unwrap_or(HEADER_PAGES_MAX);
        if n > left {
            break "a header over the end of the ring";
        }
        let whole = read(file, l.journal(position), n)?;
        let Some((h, crc, units)) = Header::decode(whole.bytes(), s.drive) else { break "a damaged header" };
        if h.seq != seq || h.position != position || h.prev != prev {
            break "an older header";
        }
        if h.seq >= s.chain_end && h.open < s.open {
            break "a header of an earlier opening";
        }
        let Some(list) = entry::parse(units) else { break "entries that make no sense" };
        batches += 1;
        entries += list.len() as u64;
        blocks += u64::from(h.payload_blocks);
        position += n as u64 + u64::from(h.payload_blocks);
        (seq, prev) = (seq + 1, crc);
        if position - s.tail > l.journal_pages {
            break "the whole ring";
        }
    };
    Ok(json!({
        "tail": s.tail,
        "batches": batches,
        "next_batch": seq,
        "entries": entries,
        "payload_blocks": blocks,
        "pages": position - s.tail,
        "ends_at": end,
    }))
}
