//! Why something is refused: a small stable enum with a wire code. A refusal is neither a bug (an
//! assert) nor a fault of media or peer (an event).

use serde::{Deserialize, Serialize};

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize, thiserror::Error)]
        #[repr(u16)]
        pub enum Refusal { $($(#[$doc])* #[error($text)] $name = $code),* }
        impl Refusal {
            pub const ALL: &[Refusal] = &[$(Refusal::$name),*];
            #[must_use]
            pub const fn code(self) -> u16 { self as u16 }
            #[must_use]
            pub fn from_code(code: u16) -> Option<Refusal> {
                match code { $($code => Some(Refusal::$name),)* _ => None }
            }
        }
    };
}

refusals! {
    /// A newer session exists: the sender is fenced.
    OldEpoch = 1, "a newer session of this volume exists";
    /// The frame's epoch is newer than the stored one: it must fence first.
    NotFenced = 2, "this session has not fenced the replica yet";
    /// No record of that replica here, or another incarnation.
    UnknownReplica = 3, "no such replica on this drive";
    /// The drive is not here, or stopped after an I/O error.
    NoDrive = 4, "the drive is not served by this node";
    DriveFailed = 5, "the drive has failed";
    /// No space for a new extent; nothing was written.
    NoSpace = 6, "the drive has no free space";
    /// Reads only: the block is bad on this drive.
    BadBlock = 7, "checksum of a block does not match";
    /// The source of a resync, or a reader, is in doubt or not in-sync.
    InDoubt = 8, "the replica is in doubt";
    /// A view that this replica's keep-list no longer names, or never had.
    UnknownView = 9, "the replica does not keep this view";
    /// A malformed or impossible request: ranges beyond the chunk, wrong lengths.
    Invalid = 10, "malformed request";
    /// Sums in the record do not match the payload.
    BadChecksum = 11, "checksum of the payload does not match";
    /// The attempt named is not the present one.
    OldAttempt = 12, "the resync attempt is over";
    /// The block's version is no longer the one that failed: nothing to repair.
    Changed = 13, "the block has changed meanwhile";
    /// metad has not confirmed this drive yet, or calls it a stranger (rolled back or copied).
    DriveNotConfirmed = 14, "metad has not confirmed this drive";
    /// Handshake: another cluster, protocol version, or feature that is not understood.
    WrongCluster = 15, "another cluster";
    WrongVersion = 16, "unsupported protocol version or feature";
    /// Handshake: a newer connection or process of the same peer exists.
    OldConnection = 17, "a newer connection exists";
    /// The older holder's lease has not run out yet; ask again.
    LeasePending = 18, "an older lease is still running";
    /// The process is shutting down.
    Closing = 19, "the node is shutting down";
    /// Handshake: this process is not the addressed node.
    WrongNode = 20, "not the addressed node";
}
