//! The event log: what an operator may want to know afterwards. A ring of `EVENTS_MAX`, in the state.

use crate::model::DownCause;
use crate::rows::Key;
use crate::settings::show_ms;
use crate::state::MetaState;
use proto::control::{ChangeCause, SessionKind};
use proto::date::show_date;
use proto::{BranchId, DriveId, Epoch, NodeId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Events kept.
pub const EVENTS_MAX: usize = 10_000;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EventRecord {
    pub at_ms: u64,
    pub kind: EventKind,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Severity {
    Info,
    Warning,
    Error,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EventKind {
    ClusterCreated { name: String },
    SettingChanged { key: String, value: String },
    NodeAdded { node: NodeId, name: String },
    NodeRemoved { node: NodeId, name: String },
    NodeDown { node: NodeId, name: String, cause: DownCause },
    NodeUp { node: NodeId, name: String, down_ms: u64 },
    NodeDrain { node: NodeId, name: String, drain: bool },
    DriveAdded { drive: DriveId, node: NodeId },
    DriveDown { drive: DriveId, node: NodeId },
    DriveUp { drive: DriveId, node: NodeId, down_ms: u64 },
    DriveStranger { drive: DriveId, node: NodeId, stale: u32, last: u32 },
    DriveRetired { drive: DriveId, retire: bool },
    DriveRemoved { drive: DriveId },
    VolumeCreated { name: String, size: u64 },
    VolumeReady { name: String },
    VolumeDeleted { name: String, forced: Option<String> },
    VolumeRenamed { from: String, to: String },
    VolumeResized { name: String, from: u64, to: u64 },
    VolumeClass { name: String },
    Attached { name: String, node: NodeId, epoch: Epoch, kind: SessionKind, forced: bool },
    Detached { name: String, epoch: Epoch, clean: bool },
    Released { name: String, epoch: Epoch },
    Stale { branch: BranchId, name: String, drive: DriveId, chunks: u32, cause: ChangeCause },
    InSync { branch: BranchId, name: String, drive: DriveId, chunks: u32 },
    PlacedAround { name: String, failed: Vec<DriveId>, chunks: u32 },
    Replacing { name: String, chunks: u32 },
    SnapshotSealed { names: Vec<String> },
    SealCalledOff { names: Vec<String> },
    SnapshotDeleted { name: String },
    SnapshotRenamed { from: String, to: String },
    VolumeCloned { name: String, from: String },
    RolledBack { name: String, to: String },
    Flattened { name: String },
    SnapshotProtected { name: String, until_ms: u64, forced: Option<String> },
    VolumeTrashed { name: String, until_ms: u64, forced: Option<String> },
    VolumeRestored { name: String, was: String },
    PolicyCreated { name: String },
    PolicyDeleted { name: String },
    PolicyAttached { policy: String, name: String },
    PolicyDetached { policy: String, name: String },
    PolicyPruned { names: Vec<String> },
    QuotaSet { name: String, most: Option<u32> },
    Shrinking { name: String, from: u64, to: u64, discard: bool },
}

impl EventKind {
    /// The kind, for filters.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            EventKind::ClusterCreated { .. } => "ClusterCreated",
            EventKind::SettingChanged { .. } => "SettingChanged",
            EventKind::NodeAdded { .. } => "NodeAdded",
            EventKind::NodeRemoved { .. } => "NodeRemoved",
            EventKind::NodeDown { .. } => "NodeDown",
            EventKind::NodeUp { .. } => "NodeUp",
            EventKind::NodeDrain { .. } => "NodeDrain",
            EventKind::DriveAdded { .. } => "DriveAdded",
            EventKind::DriveDown { .. } => "DriveDown",
            EventKind::DriveUp { .. } => "DriveUp",
            EventKind::DriveStranger { .. } => "DriveStranger",
            EventKind::DriveRetired { .. } => "DriveRetired",
            EventKind::DriveRemoved { .. } => "DriveRemoved",
            EventKind::VolumeCreated { .. } => "VolumeCreated",
            EventKind::VolumeReady { .. } => "VolumeReady",
            EventKind::VolumeDeleted { .. } => "VolumeDeleted",
            EventKind::VolumeRenamed { .. } => "VolumeRenamed",
            EventKind::VolumeResized { .. } => "VolumeResized",
            EventKind::VolumeClass { .. } => "VolumeClass",
            EventKind::Attached { .. } => "Attached",
            EventKind::Detached { .. } => "Detached",
            EventKind::Released { .. } => "Released",
            EventKind::Stale { .. } => "Stale",
            EventKind::InSync { .. } => "InSync",
            EventKind::PlacedAround { .. } => "PlacedAround",
            EventKind::Replacing { .. } => "Replacing",
            EventKind::SnapshotSealed { .. } => "SnapshotSealed",
            EventKind::SealCalledOff { .. } => "SealCalledOff",
            EventKind::SnapshotDeleted { .. } => "SnapshotDeleted",
            EventKind::SnapshotRenamed { .. } => "SnapshotRenamed",
            EventKind::SnapshotProtected { .. } => "SnapshotProtected",
            EventKind::VolumeCloned { .. } => "VolumeCloned",
            EventKind::RolledBack { .. } => "RolledBack",
            EventKind::Flattened { .. } => "Flattened",
            EventKind::VolumeTrashed { .. } => "VolumeTrashed",
            EventKind::VolumeRestored { .. } => "VolumeRestored",
            EventKind::PolicyCreated { .. } => "PolicyCreated",
            EventKind::PolicyDeleted { .. } => "PolicyDeleted",
            EventKind::PolicyAttached { .. } => "PolicyAttached",
            EventKind::PolicyDetached { .. } => "PolicyDetached",
            EventKind::PolicyPruned { .. } => "PolicyPruned",
            EventKind::QuotaSet { .. } => "QuotaSet",
            EventKind::Shrinking { .. } => "Shrinking",
        }
    }

    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            EventKind::DriveStranger { .. } => Severity::Error,
            EventKind::NodeDown { .. }
            | EventKind::DriveDown { .. }
            | EventKind::Released { .. }
            | EventKind::SealCalledOff { .. }
            | EventKind::SnapshotProtected { forced: Some(_), .. }
            | EventKind::Shrinking { discard: true, .. }
            | EventKind::PlacedAround { .. } => Severity::Warning,
            EventKind::Stale { cause, .. } if *cause != ChangeCause::Withdrawn => Severity::Warning,
            EventKind::VolumeDeleted { forced: Some(_), .. } | EventKind::Attached { forced: true, .. } => {
                Severity::Warning
            }
            EventKind::Detached { clean: false, .. } => Severity::Warning,
            _ => Severity::Info,
        }
    }
}

impl fmt::Display for EventKind {
    #[expect(clippy::too_many_lines, reason = "a table: a line for each kind")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventKind::ClusterCreated { name } => write!(f, "cluster {name} made"),
            EventKind::SettingChanged { key, value } => write!(f, "{key} set to {value}"),
            EventKind::NodeAdded { node, name } => write!(f, "node {name} ({node}) added"),
            EventKind::NodeRemoved { node, name } => write!(f, "node {name} ({node}) removed"),
            EventKind::NodeDown { node, name, cause: DownCause::Silent } => {
                write!(f, "node {name} ({node}) is down: no heartbeat")
            }
            EventKind::NodeDown { node, name, cause: DownCause::Isolated } => {
                write!(f, "node {name} ({node}) is down: it reaches fewer than half of its peers")
            }
            EventKind::NodeUp { node, name, down_ms } => {
                write!(f, "node {name} ({node}) is up again after {}", show_ms(*down_ms))
            }
            EventKind::NodeDrain { name, drain: true, .. } => write!(f, "node {name} is to be emptied"),
            EventKind::NodeDrain { name, drain: false, .. } => write!(f, "node {name} takes replicas again"),
            EventKind::DriveAdded { drive, node } => write!(f, "drive {drive} added on {node}"),
            EventKind::DriveDown { drive, node } => write!(f, "drive {drive} on {node} has failed"),
            EventKind::DriveUp { drive, node, down_ms } => {
                write!(f, "drive {drive} on {node} serves again after {}", show_ms(*down_ms))
            }
            EventKind::DriveStranger { drive, node, stale, last } => write!(
                f,
                "drive {drive} on {node} was rolled back or copied: {stale} replicas stale, {last} chunks have no other"
            ),
            EventKind::DriveRetired { drive, retire: true } => write!(f, "drive {drive} is to be emptied"),
            EventKind::DriveRetired { drive, retire: false } => {
                write!(f, "drive {drive} takes replicas again")
            }
            EventKind::DriveRemoved { drive } => write!(f, "drive {drive} removed"),
            EventKind::VolumeCreated { name, size } => write!(f, "volume {name} of {size} bytes placed"),
            EventKind::VolumeReady { name } => write!(f, "volume {name} is ready"),
            EventKind::VolumeDeleted { name, forced: None } => write!(f, "volume {name} deleted"),
            EventKind::VolumeDeleted { name, forced: Some(reason) } => {
                write!(f, "volume {name} deleted although attached: {reason}")
            }
            EventKind::VolumeRenamed { from, to } => write!(f, "volume {from} is now {to}"),
            EventKind::VolumeResized { name, from, to } => {
                let how = if to > from { "grows" } else { "has shrunk" };
                write!(f, "volume {name} {how} from {from} to {to}")
            }
            EventKind::Shrinking { name, from, to, discard } => {
                let what =
                    if *discard { ", whatever is written there" } else { ", if nothing is written there" };
                write!(f, "volume {name} is to shrink from {from} to {to}{what}")
            }
            EventKind::VolumeClass { name } => write!(f, "volume {name} has another class"),
            EventKind::Attached { name, node, epoch, kind, forced } => {
                let kind = if *kind == SessionKind::Guest { "attached" } else { "in maintenance" };
                let forced = if *forced { ", by force" } else { "" };
                write!(f, "volume {name} {kind} on {node} (epoch {}{forced})", epoch.0)
            }
            EventKind::Detached { name, epoch, clean } => {
                let how = if *clean { "cleanly" } else { "not cleanly" };
                write!(f, "volume {name} detached {how} (epoch {})", epoch.0)
            }
            EventKind::Released { name, epoch } => {
                write!(f, "volume {name}: the session of epoch {} is gone from its node", epoch.0)
            }
            EventKind::Stale { name, drive, chunks, cause, .. } => {
                write!(f, "volume {name}: {chunks} replicas on {drive} are stale: {}", cause_text(*cause))
            }
            EventKind::InSync { name, drive, chunks, .. } => {
                write!(f, "volume {name}: {chunks} replicas on {drive} are in-sync")
            }
            EventKind::PlacedAround { name, failed, chunks } => {
                write!(f, "volume {name}: {chunks} chunks placed anew, around {} failed drives", failed.len())
            }
            EventKind::Replacing { name, chunks } => {
                write!(f, "volume {name}: new replicas placed for {chunks} chunks")
            }
            EventKind::SnapshotSealed { names } => write!(f, "snapshot {} sealed", names.join(", ")),
            EventKind::SealCalledOff { names } => {
                write!(f, "snapshot {} called off: not drained and flushed in time", names.join(", "))
            }
            EventKind::SnapshotDeleted { name } => write!(f, "snapshot {name} deleted"),
            EventKind::SnapshotRenamed { from, to } => write!(f, "snapshot {from} is now {to}"),
            EventKind::VolumeCloned { name, from } => write!(f, "volume {name} is a clone of {from}"),
            EventKind::Flattened { name } => write!(f, "volume {name} needs its parent no more"),
            EventKind::RolledBack { name, to } => write!(f, "volume {name} rolled back to {to}"),
            EventKind::VolumeTrashed { name, until_ms, forced } => {
                let reason =
                    forced.as_ref().map_or_else(String::new, |r| format!(", although attached: {r}"));
                write!(f, "volume {name} deleted; it rests until {}{reason}", show_date(*until_ms))
            }
            EventKind::PolicyCreated { name } => write!(f, "policy {name} is made"),
            EventKind::PolicyDeleted { name } => write!(f, "policy {name} deleted"),
            EventKind::PolicyAttached { policy, name } => {
                write!(f, "volume {name} gets snapshots by policy {policy}")
            }
            EventKind::PolicyDetached { policy, name } => {
                write!(f, "volume {name} gets no snapshots by policy {policy} any more")
            }
            EventKind::PolicyPruned { names } => {
                write!(f, "snapshot {} deleted: its policy keeps it no more", names.join(", "))
            }
            EventKind::QuotaSet { name, most: Some(most) } => {
                write!(f, "volume {name} may have {most} snapshots")
            }
            EventKind::QuotaSet { name, most: None } => write!(f, "volume {name} has no quota of snapshots"),
            EventKind::VolumeRestored { name, was } if name == was => {
                write!(f, "volume {name} restored from the trash")
            }
            EventKind::VolumeRestored { name, was } => {
                write!(f, "volume {was} restored from the trash as {name}")
            }
            EventKind::SnapshotProtected { name, until_ms: 0, forced: None } => {
                write!(f, "snapshot {name} is not protected any more")
            }
            EventKind::SnapshotProtected { name, until_ms, forced: None } => {
                write!(f, "snapshot {name} is protected until {}", show_date(*until_ms))
            }
            EventKind::SnapshotProtected { name, until_ms: 0, forced: Some(reason) } => {
                write!(f, "snapshot {name} is not protected any more: {reason}")
            }
            EventKind::SnapshotProtected { name, until_ms, forced: Some(reason) } => {
                write!(f, "snapshot {name} is protected until {} only: {reason}", show_date(*until_ms))
            }
        }
    }
}

/// Why a replica went stale, in words.
#[must_use]
pub fn cause_text(cause: ChangeCause) -> &'static str {
    match cause {
        ChangeCause::Silent => "the connection was lost",
        ChangeCause::NoAnswer => "no answer in time",
        ChangeCause::Reported => "its node reported a fault",
        ChangeCause::InDoubt => "its drive may have lost unflushed writes",
        ChangeCause::TooSlow => "much slower than its peers",
        ChangeCause::Promoted(_) => "others were promoted",
        ChangeCause::Left => "it is not needed any more",
        ChangeCause::Withdrawn => "a change was withdrawn",
    }
}

impl MetaState {
    /// Adds an event; the oldest leaves when the ring is full.
    pub(crate) fn log(&mut self, at_ms: u64, kind: EventKind) {
        self.head.last_event += 1;
        let number = self.head.last_event;
        self.events.insert(number, EventRecord { at_ms, kind });
        self.mark(Key::Event(number));
        while self.events.len() > EVENTS_MAX {
            if let Some((old, _)) = self.events.pop_first() {
                self.mark(Key::Event(old));
            }
        }
    }
}
