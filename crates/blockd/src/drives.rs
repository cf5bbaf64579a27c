//! The drives that the shard works on: descriptor, claim and counts of each, from its opening until it has failed.
//!
//! How a drive is stands in the node; here is only what the node does not know. A failed drive's descriptor is closed
//! and its claim given up, so that it can be added again without a restart; its line stays until then.

use crate::control::{DriveOpened, DriveStatus};
use crate::device::Drive;
use crate::device::claims::Claim;
use crate::ring::{Fd, Ring};
use crate::shard::Tag;
use node::{DriveState, DriveView, Event};
use proto::DriveId;
use std::collections::BTreeMap;
use std::path::PathBuf;
use store::event::Failure;
use store::{IoId, IoOp, IoResult};

/// For the metrics.
#[derive(Clone, Copy, Default, Debug)]
pub struct DriveCounts {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
}

struct Entry {
    /// Until it has failed.
    device: Option<(Fd, Option<Claim>)>,
    path: PathBuf,
    /// 0 until it is open.
    drive: u64,
    size: u64,
    /// Who wants to know what became of the opening.
    asked: Option<DriveOpened>,
    counts: DriveCounts,
}

#[derive(Default)]
pub struct Drives {
    all: BTreeMap<u32, Entry>,
    next: u32,
}

impl Drives {
    /// Takes an opened device in; returns its handle. The line of the same path that has failed goes.
    pub fn add(&mut self, ring: &mut Ring<Tag>, drive: Drive, asked: DriveOpened) -> u32 {
        self.all.retain(|_, e| e.device.is_some() || e.path != drive.path);
        let handle = self.next;
        self.next += 1;
        let entry = Entry {
            device: Some((ring.add(drive.fd), drive.claim)),
            path: drive.path,
            drive: 0,
            size: drive.size,
            asked: Some(asked),
            counts: DriveCounts::default(),
        };
        self.all.insert(handle, entry);
        handle
    }

    /// Begins an operation. On a drive that is closed it fails at once: the event for the node.
    pub fn io(&mut self, ring: &mut Ring<Tag>, handle: u32, io: IoId, op: IoOp) -> Option<Event> {
        let tag = Tag::Drive { handle, io };
        let Some((entry, fd)) = self.all.get_mut(&handle).and_then(|e| {
            let fd = e.device.as_ref()?.0;
            Some((e, fd))
        }) else {
            return Some(Event::Io { handle, io, result: IoResult::Failed(libc::EBADF) });
        };
        let counts = &mut entry.counts;
        match op {
            IoOp::Read { offset, blocks } => {
                counts.reads += 1;
                counts.bytes_read += u64::from(blocks) * proto::limits::BLOCK as u64;
                ring.read(fd, offset, blocks as usize, tag);
            }
            IoOp::Write { offset, pieces } => {
                counts.writes += 1;
                counts.bytes_written += pieces.iter().map(|p| p.len() as u64).sum::<u64>();
                ring.write(fd, offset, pieces, tag);
            }
            IoOp::Flush => {
                counts.flushes += 1;
                ring.flush(fd, tag);
            }
        }
        None
    }

    /// `Effect::DriveOpened`.
    pub fn opened(&mut self, handle: u32, drive: DriveId) {
        let Some(e) = self.all.get_mut(&handle) else { return };
        e.drive = drive.0;
        tracing::info!(%drive, path = %e.path.display(), size = e.size, "drive opened");
        if let Some(tell) = e.asked.take() {
            tell(Ok(drive));
        }
    }

    /// `Effect::DriveFailed`: nothing more is done on it.
    pub fn failed(&mut self, ring: &mut Ring<Tag>, handle: u32, failure: Failure) {
        let Some(e) = self.all.get_mut(&handle) else { return };
        tracing::error!(path = %e.path.display(), error = %failure, "drive failed");
        if let Some((fd, claim)) = e.device.take() {
            ring.close(fd);
            drop(claim);
        }
        if let Some(tell) = e.asked.take() {
            tell(Err(failure));
        }
    }

    /// `views`: the node's.
    #[must_use]
    pub fn status(&self, views: Vec<DriveView>) -> Vec<DriveStatus> {
        let mut views: BTreeMap<u32, DriveView> = views.into_iter().map(|v| (v.handle, v)).collect();
        let one = |(handle, e): (&u32, &Entry)| {
            let view = views.remove(handle);
            DriveStatus {
                drive: e.drive,
                path: e.path.display().to_string(),
                capacity: e.size,
                since: view.as_ref().map(|v| v.since),
                journal: view.as_ref().map(|v| v.journal).unwrap_or_default(),
                state: view.map_or(DriveState::Opening, |v| v.state),
                counts: e.counts,
            }
        };
        self.all.iter().map(one).collect()
    }
}
