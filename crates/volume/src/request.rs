//! A guest's request: an obligation. Each ticket is completed exactly once.

use proto::message::Run;
use proto::{Generation, Payload, Ticket};

/// Bytes of a guest's write. The payload covers whole blocks: `offset` rounded down to 4 KiB up to the end
/// rounded up; the bytes outside `offset .. offset + len` in its first and last block mean nothing (they are
/// merged by the session). So nothing is moved in memory, whatever the alignment.
#[derive(Clone, Debug)]
pub struct GuestData {
    pub payload: Payload,
}

/// Offsets and lengths in bytes, multiples of 512, within the volume, length > 0 (the export has checked).
#[derive(Clone, Debug)]
pub enum GuestOp {
    Read {
        offset: u64,
        len: u32,
    },
    Write {
        offset: u64,
        len: u32,
        data: GuestData,
        fua: bool,
    },
    Flush,
    /// Blocks wholly inside read as zeroes; sectors at the edges are left alone, and whatever there is no space for.
    Discard {
        offset: u64,
        len: u64,
        fua: bool,
    },
    /// Reads as zeroes, to the sector. `no_hole`: the space is taken (zeroes are written as data), so that a later
    /// write finds room.
    WriteZeroes {
        offset: u64,
        len: u64,
        fua: bool,
        no_hole: bool,
    },
    /// Block status.
    Map {
        offset: u64,
        len: u64,
    },
    /// What was written or discarded after this generation of the volume's own branch; absent: unchanged. More may be
    /// told than has changed, never less. Answered like a map.
    Changes {
        offset: u64,
        len: u64,
        since: Generation,
    },
    /// Read all in-sync replicas again from their media and compare (`volume verify`).
    Verify {
        offset: u64,
        len: u64,
    },
}

impl GuestOp {
    /// It can change what a later read returns.
    #[must_use]
    pub fn writes(&self) -> bool {
        matches!(self, GuestOp::Write { .. } | GuestOp::Discard { .. } | GuestOp::WriteZeroes { .. })
    }
}

#[derive(Clone, Debug)]
pub struct GuestRequest {
    pub ticket: Ticket,
    pub op: GuestOp,
}

/// A piece of what a read returns, in order.
#[derive(Clone, Debug)]
pub enum ReadPiece {
    Zero {
        bytes: u32,
    },
    /// `len` bytes from `skip` bytes into the payload.
    Data {
        payload: Payload,
        skip: u32,
        len: u32,
    },
}

#[derive(Clone, Debug)]
pub enum GuestReply {
    Done,
    /// A discard that left something as it was: some drive has no space to say that it is gone (a snapshot, or a parent,
    /// still has it). A guest is told that it is done: a discard is advice.
    Left,
    Read(Vec<ReadPiece>),
    /// Runs of blocks from the block that holds `offset`.
    Map(Vec<Run>),
    /// Byte offsets of extents that differ or are bad, at most 16; empty = clean.
    Verified {
        differing: Vec<u64>,
        bytes: u64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GuestError {
    #[error("I/O error")]
    Io,
    #[error("no space left in the cluster")]
    NoSpace,
    #[error("request out of range")]
    Invalid,
    /// A snapshot is read, and nothing else.
    #[error("the export is read-only")]
    ReadOnly,
    /// The session was fenced or closed under the request.
    #[error("the session is gone")]
    Gone,
    /// Its client has gone, and nothing more of it is begun (`Event::Withdraw`).
    #[error("the client is gone")]
    Withdrawn,
}
