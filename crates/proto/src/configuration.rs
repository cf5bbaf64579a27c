//! Who holds a chunk, and in what state, as Raft has it.

use crate::ids::{ConfigNumber, DriveId, Incarnation, NodeId};
use crate::limits::MEMBERS_MAX;
use arrayvec::ArrayVec;
use serde::{Deserialize, Serialize};

/// Where one replica lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Place {
    pub node: NodeId,
    pub drive: DriveId,
    pub incarnation: Incarnation,
}

/// State of a replica in Raft.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum MemberState {
    /// Holds every acknowledged write; its acknowledgement is required.
    InSync,
    /// Does not; a session may bring it back by resync. A new placement starts here too.
    Stale,
    /// Being emptied (drain, heal of an over-full set): it is to go once enough others are in-sync.
    /// Counts as in-sync until removed.
    Leaving,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Member {
    pub place: Place,
    pub state: MemberState,
}
impl Member {
    /// True if Raft calls it in-sync: its acknowledgement is required.
    #[must_use]
    pub fn in_sync(&self) -> bool {
        self.state != MemberState::Stale
    }
}

/// Replicas and states of one chunk; every change raises the number.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Configuration {
    pub number: ConfigNumber,
    pub members: ArrayVec<Member, MEMBERS_MAX>,
}
impl Configuration {
    pub fn in_sync(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| m.in_sync())
    }
    #[must_use]
    pub fn in_sync_count(&self) -> usize {
        self.in_sync().count()
    }
    #[must_use]
    pub fn member(&self, drive: DriveId) -> Option<&Member> {
        self.members.iter().find(|m| m.place.drive == drive)
    }
}
