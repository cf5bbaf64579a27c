//! What a node says of itself: for the admin socket, and for the simulator, which judges by it.

use crate::node::Node;
use crate::seats::{Phase, Seat, in_words};
use proto::control::{DriveStatus, MetaRefusal, SessionKind, SessionStatus, VolumeRef};
use proto::message::Attempt;
use proto::{BranchId, DriveId, Epoch, ExportId, NodeId, ProcessNumber, Time};
use store::Store;
use store::event::Failure;
use volume::Session;

/// A lease that runs, seen from one of its two sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseStatus {
    /// The other side.
    pub node: NodeId,
    pub branch: BranchId,
    pub epoch: Epoch,
    /// Held: until when it is counted on. Granted: when it was last granted.
    pub time: Time,
}

/// A peer as the data network shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkStatus {
    pub node: NodeId,
    pub process: ProcessNumber,
}

/// How a drive is, from its adding to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DriveState {
    /// The store reads it.
    Opening,
    /// Open; metad has not matched its list of openings, so it serves nobody. What metad said last, if it refused.
    Confirming {
        refused: Option<MetaRefusal>,
    },
    Serving,
    /// metad calls it rolled back or copied: it serves nobody.
    Stranger,
    Failed(Failure),
    Closed,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DriveView {
    /// The edge's.
    pub handle: u32,
    /// 0 until it has opened.
    pub drive: DriveId,
    pub state: DriveState,
    pub since: Time,
    pub journal: JournalFill,
}

/// How full a drive's journal is, bytes. Nothing while it is not open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct JournalFill {
    pub used: u64,
    pub size: u64,
}

/// A volume's place here for which metad has not granted a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeatView {
    /// Its name; of a maintenance session, the branch.
    pub volume: String,
    pub kind: SessionKind,
    pub since: Time,
    pub reason: String,
    pub exports: usize,
    /// Guests' requests that wait.
    pub requests: usize,
}

impl Node {
    /// Every drive that was added, by its handle.
    #[must_use]
    pub fn drive_views(&self) -> Vec<DriveView> {
        self.drives.iter().map(crate::drives::Drive::view).collect()
    }
    /// Seats without a session.
    #[must_use]
    pub fn seats_attaching(&self) -> Vec<SeatView> {
        let view = |s: &Seat| {
            let Phase::Attaching(a) = &s.phase else { return None };
            Some(SeatView {
                volume: match &s.volume {
                    VolumeRef::Name(name) => name.clone(),
                    VolumeRef::Branch(branch) => branch.to_string(),
                },
                kind: s.kind,
                since: a.since,
                reason: a.refused.as_ref().map_or_else(|| "metad has not answered".into(), in_words),
                exports: s.exports.len(),
                requests: s.queue.len(),
            })
        };
        self.seats.all.values().filter_map(view).collect()
    }
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.params.node
    }
    #[must_use]
    pub fn process(&self) -> ProcessNumber {
        self.params.process
    }
    /// Live sessions, opening and closing ones too.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> + '_ {
        self.seats.live().map(|(_, l)| &l.session)
    }
    pub fn session(&self, branch: BranchId) -> Option<&Session> {
        self.seats.of_branch(branch).map(|(_, l)| &l.session)
    }
    /// The branch whose session an export is on.
    #[must_use]
    pub fn branch_of_export(&self, export: ExportId) -> Option<BranchId> {
        let seat = self.seats.all.get(self.seats.by_export.get(&export)?)?;
        seat.live().map(|l| l.branch)
    }
    /// Drives that are open, with their stores.
    pub fn stores(&self) -> impl Iterator<Item = (DriveId, &Store)> + '_ {
        let open = self.drives.iter().filter(|d| d.state == crate::drives::State::Open);
        open.map(|d| (d.id(), &d.store))
    }
    #[must_use]
    pub fn session_statuses(&self) -> Vec<SessionStatus> {
        self.sessions().map(Session::status).collect()
    }
    #[must_use]
    pub fn drives(&self) -> Vec<DriveStatus> {
        self.drive_statuses()
    }
    /// Leases that our sessions hold.
    #[must_use]
    pub fn leases_held(&self, now: Time) -> Vec<LeaseStatus> {
        let running = self.holder.held().filter(|l| l.3 > now);
        running.map(|(node, branch, epoch, time)| LeaseStatus { node, branch, epoch, time }).collect()
    }
    /// Leases that others hold from us.
    #[must_use]
    pub fn leases_granted(&self, now: Time) -> Vec<LeaseStatus> {
        let running = self.granter.running(now);
        running.map(|(node, branch, epoch, time)| LeaseStatus { node, branch, epoch, time }).collect()
    }
    /// Until when a session here may count on the lease of that drive's node; what the session itself is told.
    #[must_use]
    pub fn lease_until(&self, drive: DriveId, branch: BranchId) -> Time {
        let Some((_, live)) = self.seats.of_branch(branch) else { return Time::ZERO };
        let (me, epoch) = (self.params.node, live.epoch);
        let (holder, granter) = (&self.holder, &self.granter);
        live.session.lease_until(drive, &crate::seats::Counted { me, epoch, holder, granter })
    }
    /// Peers with a connection of ours that is up.
    #[must_use]
    pub fn links(&self) -> Vec<LinkStatus> {
        let up = self.links.connected();
        up.into_iter().map(|a| LinkStatus { node: a.peer, process: a.process }).collect()
    }
    /// Resync attempts with a target here: branch, attempt, extents left to pull.
    pub fn attempts(&self) -> impl Iterator<Item = (BranchId, &Attempt, usize)> + '_ {
        self.pulls.attempts()
    }
    /// Guests' requests that are not completed: with a session, and waiting for one.
    #[must_use]
    pub fn open_requests(&self) -> (usize, usize) {
        let seats = self.seats.all.values();
        seats.fold((0, 0), |(f, q), s| (f + s.flying.len(), q + s.queue.len()))
    }
}
