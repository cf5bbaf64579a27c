//! The rows of the state: what is known of a node, a drive, a volume, a branch.

use proto::control::SessionKind;
use proto::limits::{COPIES_DEFAULT, MIN_IN_SYNC_DEFAULT};
use proto::{
    BranchId, ClusterId, DriveId, Epoch, Generation, Geometry, Level, LogIndex, NodeId, OpenId,
    ProcessNumber, VolumeId,
};
use schedule::{Retention, Schedule};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The cluster itself, and all counters. One row, written with every command.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Head {
    pub applied: LogIndex,
    pub cluster: Option<Cluster>,
    /// High bits of epochs; raised when metad is restored from a backup.
    pub lineage: u8,
    /// Last ids given.
    pub last_node: u32,
    pub last_volume: u64,
    pub last_branch: u64,
    pub last_incarnation: u64,
    pub last_event: u64,
    /// Number of the last answer kept for repeats.
    pub last_kept: u64,
    pub last_job: u64,
    pub last_policy: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub name: String,
    pub token: String,
    pub created_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum DownCause {
    /// Silent towards the leader for a full timeout.
    Silent,
    /// Its data network reaches fewer than half of its peers.
    Isolated,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    /// Failure domain above the node; empty: none.
    pub zone: String,
    pub address: String,
    /// Of its state directory; 0: nobody has registered as this node yet.
    pub identity: u128,
    /// Newest process known.
    pub process: ProcessNumber,
    /// Since when it is down (Unix ms), if it is.
    pub down: Option<(u64, DownCause)>,
    /// Number of changes between up and down.
    pub changes: u64,
    pub drain: bool,
    pub added_ms: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Drive {
    pub node: NodeId,
    pub path: String,
    /// Bytes.
    pub capacity: u64,
    /// Openings that were told with a confirmed one, newest last; a late message of an older one is known by it.
    pub openings: Vec<OpenId>,
    /// The list of openings did not match: rolled back or copied. For good.
    pub stranger: bool,
    /// Since when it is down by itself (Unix ms), its node aside.
    pub down: Option<u64>,
    pub changes: u64,
    /// To be emptied.
    pub retired: bool,
    /// Replicas on it that no metad of this cluster has placed, when it was opened last.
    pub unknown: u32,
    pub added_ms: u64,
}

/// What a volume asks of its replicas.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Class {
    pub copies: u8,
    pub min_in_sync: u8,
    /// Writes wait while fewer than `min_in_sync` are left (else they fail).
    pub wait_when_degraded: bool,
    /// Every write is FUA.
    pub write_through: bool,
}
impl Default for Class {
    fn default() -> Class {
        Class::of_copies(COPIES_DEFAULT)
    }
}
impl Class {
    /// The defaults for so many copies.
    #[must_use]
    pub fn of_copies(copies: u8) -> Class {
        Class {
            copies,
            min_in_sync: MIN_IN_SYNC_DEFAULT.min(copies),
            wait_when_degraded: true,
            write_through: false,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Volume {
    pub name: String,
    pub branch: BranchId,
    pub created_ms: u64,
}

/// A deleted volume that can be restored for a while.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trashed {
    pub volume: Volume,
    pub trashed_ms: u64,
    /// Erased from then on (Unix ms), once nobody reads from it.
    pub until_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PolicyId(pub u64);
impl std::fmt::Display for PolicyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// When volumes get a snapshot, and which of these are kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Policy {
    pub name: String,
    /// A time that several name is one slot.
    pub schedules: Vec<Schedule>,
    /// Runs are spread over so many ms after their slot.
    pub jitter_ms: u64,
    pub retention: Retention,
    /// Snapshots of a volume that it comes to keep.
    pub keeps: u64,
    pub created_ms: u64,
}

/// A policy attached to a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyUse {
    pub since_ms: u64,
    /// The last slot that was run; or since when it is attached.
    pub ran_ms: u64,
    /// The same before that run, which may come to nothing.
    pub before_ms: u64,
}

/// How many snapshots a volume may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Quota {
    pub most: u32,
    /// What policies make does not count.
    pub manual_only: bool,
}

/// The run of a policy that made a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Made {
    pub policy: PolicyId,
    pub slot_ms: u64,
}

/// Life of a branch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Phase {
    /// Placed; its records are not all made.
    Creating,
    Ready,
    /// Chunks were added; their records are not all made.
    Growing,
}

/// The one writer of a branch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Session {
    pub node: NodeId,
    pub process: ProcessNumber,
    pub kind: SessionKind,
    pub since_ms: u64,
}

/// A seal under way: the head was raised, and not everything below it is drained and flushed yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Seal {
    /// The one below the head.
    pub generation: Generation,
    /// Of a group: the command that all of its volumes are sealed by.
    pub group: Option<LogIndex>,
    /// Of a group: this one is drained and flushed; the others are waited for.
    pub drained: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Branch {
    pub volume: VolumeId,
    pub geometry: Geometry,
    /// The head's. A seal raises it when it is asked for, and for good.
    pub generation: Generation,
    /// Sessions may have written this one and all above since the branch was last drained and flushed.
    pub unsealed: Generation,
    pub sealing: Option<Seal>,
    /// What is absent here is read from this view. Fixed when the branch is made.
    pub parent: Option<Level>,
    /// The parent's generation is kept for this branch.
    pub tied: bool,
    pub class: Class,
    pub phase: Phase,
    /// The last placement, and the first chunk that it is about.
    pub placement: u32,
    pub placement_first: u32,
    pub epoch: Epoch,
    pub session: Option<Session>,
    /// The newest guest attach, and the newest one by any other node than that. Node 0: what a guest had of it before is
    /// not what is there now (`shrink`).
    pub guests: [Option<(NodeId, Epoch)>; 2],
    /// The last session detached cleanly, or there was none.
    pub clean: bool,
    pub loss_accepted: bool,
    /// Who is to hold a maintenance session.
    pub appointed: Option<NodeId>,
    /// Since when (Unix ms) some chunk is not as it should be.
    pub unwell_since: Option<u64>,
}
impl Branch {
    /// The newest guest attach of another node, if it came after the epoch that a guest of `node` last held.
    #[must_use]
    pub fn superseded(&self, node: NodeId, after: Option<Epoch>) -> Option<(NodeId, Epoch)> {
        let after = after?;
        // Two are enough: of two different nodes at least one is another one.
        self.guests.iter().flatten().find(|(n, _)| *n != node).filter(|(_, e)| *e > after).copied()
    }
    pub(crate) fn note_guest(&mut self, node: NodeId, epoch: Epoch) {
        if self.guests[0].is_some_and(|(n, _)| n != node) {
            self.guests[1] = self.guests[0];
        }
        self.guests[0] = Some((node, epoch));
    }
    /// The placement that a session has to make records for.
    #[must_use]
    pub fn pending(&self) -> Option<u32> {
        (self.phase != Phase::Ready).then_some(self.placement)
    }
    /// The view of the parent that is kept for this branch.
    #[must_use]
    pub fn tie(&self) -> Option<Level> {
        self.parent.filter(|_| self.tied)
    }
    /// The drives that a node's session may regard as its own node's come from here; `None`: no guest.
    #[must_use]
    pub fn guest(&self) -> Option<&Session> {
        self.session.as_ref().filter(|s| s.kind == SessionKind::Guest)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum SnapshotState {
    /// Asked for; not to be read yet, and gone if it is called off.
    Sealing,
    Sealed,
}

/// A named, kept generation of a branch. Its key is (branch, generation), which is never used again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    pub volume: VolumeId,
    /// Unique among the volume's snapshots.
    pub name: String,
    /// Random: tells it from every other one, in other clusters too.
    pub id: u128,
    /// Bytes of the volume at that time.
    pub size: u64,
    pub state: SnapshotState,
    /// The command that sealed several volumes at one moment; none: it was alone.
    pub group: Option<LogIndex>,
    pub labels: BTreeMap<String, String>,
    /// Not deleted before (Unix ms); 0: not protected.
    pub protect_until_ms: u64,
    pub created_ms: u64,
    /// A fork point in the making, which no operator sees: gone when there is a fork of it, or after a while.
    pub hidden: bool,
    /// None: by hand.
    pub policy: Option<Made>,
    /// The branch's epoch when it was sealed: while it is still that, nobody was attached since.
    pub sealed_in: Epoch,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum JobKind {
    /// A clone is written out, and its tie to the parent cut.
    Flatten,
    /// The volume gets smaller (bytes). Without `discard` only if nothing is written beyond the new end.
    Shrink { from: u64, to: u64, discard: bool },
}
impl JobKind {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            JobKind::Flatten => "flatten",
            JobKind::Shrink { .. } => "shrink",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum JobState {
    Running,
    Done,
    Cancelled,
    /// Its volume was deleted or rolled back.
    Void,
    /// Of a shrink: this byte, the last one, is written, and was not to be discarded.
    Failed {
        written: u64,
    },
}
impl JobState {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            JobState::Running => "running",
            JobState::Done => "done",
            JobState::Cancelled => "cancelled",
            JobState::Void => "void",
            JobState::Failed { .. } => "failed",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Job {
    pub kind: JobKind,
    pub branch: BranchId,
    /// The volume's when it was ordered.
    pub name: String,
    pub state: JobState,
    pub started_ms: u64,
    /// 0: it has not.
    pub ended_ms: u64,
}

/// A drive and the node it is in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Home {
    pub node: NodeId,
    pub drive: DriveId,
}
