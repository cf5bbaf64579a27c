//! What an export is to its clients.

use crate::wire::{BlockSizes, Mode, tflag};
use proto::limits::{BLOCK, REQUEST_ADVERTISED, SECTOR};

/// Block sizes of every export of ours: sectors are merged by the session, blocks are efficient.
#[expect(clippy::cast_possible_truncation, reason = "512 and 4096")]
pub const BLOCK_SIZES: BlockSizes =
    BlockSizes { min: SECTOR as u32, preferred: BLOCK as u32, max: REQUEST_ADVERTISED };

const _: () = assert!(BLOCK_SIZES.min.is_power_of_two() && BLOCK_SIZES.min <= 65536);
const _: () = assert!(BLOCK_SIZES.preferred.is_power_of_two() && BLOCK_SIZES.preferred >= BLOCK_SIZES.min);
const _: () = assert!(BLOCK_SIZES.max >= 1 << 20);

/// A volume or a snapshot as the owner describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// Bytes; a multiple of 512.
    pub size: u64,
    /// Snapshots, and what is attached for reading.
    pub read_only: bool,
    /// For people; may be empty.
    pub description: String,
}

impl Export {
    /// Transmission flags under `mode`. MULTI_CONN holds because all connections of an export share one
    /// session, and the session's flush covers every write that it has answered.
    #[must_use]
    pub fn flags(&self, mode: Mode) -> u16 {
        let mut f = tflag::HAS_FLAGS
            | tflag::SEND_FLUSH
            | tflag::SEND_FUA
            | tflag::SEND_TRIM
            | tflag::SEND_WRITE_ZEROES
            | tflag::CAN_MULTI_CONN
            | tflag::SEND_CACHE
            | tflag::SEND_FAST_ZERO;
        if self.read_only {
            f |= tflag::READ_ONLY;
        }
        if mode >= Mode::Structured {
            f |= tflag::SEND_DF;
        }
        f
    }
}
