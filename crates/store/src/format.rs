//! Formatting: the plan of writes that makes a drive ours.

use crate::disk::superblock::Superblock;
use crate::layout::{Layout, LayoutError};
use arrayvec::ArrayVec;
use proto::limits::BLOCK;
use proto::{ClusterId, DriveId, NodeId, OpenId, Payload};

/// What a drive is formatted with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FormatParams {
    /// Bytes; a rest of less than 4 KiB stays unused.
    pub size: u64,
    pub cluster: ClusterId,
    pub node: NodeId,
    /// Random.
    pub drive: DriveId,
    /// Bytes of journal; `None`: a sixteenth of the drive, 64 MiB to 1 GiB. Tests ask for less, and may then
    /// have drives of less than `DRIVE_MIN`.
    pub journal: Option<u64>,
}

/// One step of formatting; all are done in order, then the drive is flushed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FormatStep {
    /// The range reads as zeroes afterwards (bytes).
    Zero {
        offset: u64,
        length: u64,
    },
    Write {
        offset: u64,
        bytes: Payload,
    },
    Flush,
}

/// The steps: first all that recovery reads is zeroed, flushed; then the superblock makes it valid.
pub fn format(params: &FormatParams) -> Result<Vec<FormatStep>, LayoutError> {
    let layout = Layout::plan(params.size, params.journal)?;
    let superblock = Superblock {
        compatible: 0,
        sequence: 1,
        cluster: params.cluster,
        node: params.node,
        drive: params.drive,
        clean: true,
        trusted: false,
        boot: [0; 16],
        open: 0,
        tail: 0,
        tail_seq: 1,
        tail_prev: 0,
        tail_chunk: 0,
        chain_end: 1,
        flushed: 0,
        doubt_at: 0,
        confirmed: OpenId(0),
        layout,
        openings: ArrayVec::new(),
        dropped: Vec::new(),
    };
    Ok(vec![
        FormatStep::Zero { offset: 0, length: layout.data_start * BLOCK as u64 },
        FormatStep::Flush,
        FormatStep::Write { offset: Layout::superblock(0), bytes: superblock.encode() },
        FormatStep::Flush,
    ])
}

impl crate::medium::Medium {
    /// Formats this (zeroed) medium.
    pub fn format(&mut self, params: &FormatParams) -> Result<(), LayoutError> {
        for step in format(params)? {
            if let FormatStep::Write { offset, bytes } = step {
                self.put(offset, &bytes);
            }
        }
        Ok(())
    }
}
