//! What a session says of itself: for metad's lists, for humans, and for the simulator, which judges by it.

use crate::event::{Leases, Notice, WaitReason};
use crate::members::{Mask, slots};
use crate::session::{Phase, Session};
use proto::control::{SessionKind, SessionState, SessionStatus};
use proto::{
    BranchId, Configuration, DriveId, Epoch, Geometry, Marks, MemberState, Place, Span, Time, Version,
};

/// A wait shorter than this is not worth a word.
const WORTH: Span = Span::millis(200);

impl WaitReason {
    /// Code of docs/operations.md.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            WaitReason::Fencing => "fencing",
            WaitReason::MinInSync => "min-in-sync",
            WaitReason::Undecided => "undecided",
            WaitReason::Evidence => "evidence",
            WaitReason::Lease => "lease",
            WaitReason::Doubt => "doubt",
            WaitReason::Sealing => "sealing",
            WaitReason::Parent => "parent",
        }
    }
}

impl Session {
    #[must_use]
    pub fn status(&self) -> SessionStatus {
        let (resync_left, resync_moved) = self.resync_bytes();
        let degraded =
            self.degraded.iter().filter(|&&c| self.chunks[c as usize].count(MemberState::Stale) > 0).count();
        SessionStatus {
            branch: self.branch,
            epoch: self.epoch,
            kind: self.attached.kind,
            state: match self.phase {
                Phase::Serving => SessionState::Serving,
                Phase::Draining | Phase::Detaching | Phase::Closed => SessionState::Closing,
                _ => SessionState::Opening,
            },
            generation: self.generation,
            resync_left,
            resync_moved,
            resync_rate: if self.attempts.is_empty() { 0 } else { self.resync.rate },
            degraded_chunks: u32::try_from(degraded).expect("at most 2^20 chunks"),
            waiting: self.waits.values().next().map(|w| w.code().to_string()),
            job: self.job_status(),
            size: self.geometry.size,
        }
    }

    // ------------------------------------------------------------- read-only, for those who judge

    #[must_use]
    pub fn branch(&self) -> BranchId {
        self.branch
    }
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
    #[must_use]
    pub fn kind(&self) -> SessionKind {
        self.attached.kind
    }
    #[must_use]
    pub fn name(&self) -> &str {
        &self.attached.name
    }
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }
    #[must_use]
    pub fn process(&self) -> proto::ProcessNumber {
        self.process
    }
    /// True from the first service to the end of the drain.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.serving()
    }
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }
    /// As last heard from metad.
    #[must_use]
    pub fn configuration(&self, chunk: u32) -> Configuration {
        self.chunks[chunk as usize].configuration()
    }
    /// Whose acknowledgement the session requires.
    #[must_use]
    pub fn required(&self, chunk: u32) -> Vec<Place> {
        self.places(chunk, self.chunks[chunk as usize].required)
    }
    /// Until when reads of what lies on this drive may count on its node's lease.
    #[must_use]
    pub fn lease_until(&self, drive: DriveId, leases: &dyn Leases) -> Time {
        self.drive_ix.get(&drive).map_or(Time::ZERO, |&d| self.lease_of(d, leases))
    }
    /// Whom reads and `min_in_sync` count on.
    #[must_use]
    pub fn intersection(&self, chunk: u32) -> Vec<Place> {
        self.places(chunk, self.chunks[chunk as usize].inter)
    }
    fn places(&self, chunk: u32, mask: Mask) -> Vec<Place> {
        slots(mask).map(|s| self.chunks[chunk as usize].slots[s].place).collect()
    }
    /// Chunks with an undecided change.
    pub fn undecided(&self) -> impl Iterator<Item = u32> + '_ {
        self.undecided.iter().copied()
    }
    /// Ranges of a chunk with a write in flight: sent, not answered.
    pub fn in_flight(&self, chunk: u32) -> impl Iterator<Item = (proto::BlockRange, Version)> + '_ {
        self.window
            .iter()
            .filter(move |(_, w)| w.live && !w.done && w.chunk == chunk)
            .map(|(_, w)| (w.record.range, w.record.version))
    }
    #[must_use]
    pub fn marks(&self) -> Marks {
        self.said
    }
    /// Version of the newest write sent.
    #[must_use]
    pub fn submitted(&self) -> Version {
        self.version(self.seq)
    }
    /// flushed(d), as far as it has been seen.
    #[must_use]
    pub fn flushed(&self, drive: DriveId) -> Version {
        self.drive_ix.get(&drive).map_or(Version::ZERO, |&d| self.drives[d].flushed)
    }
    /// True if the session takes this drive to be in doubt.
    #[must_use]
    pub fn doubts(&self, drive: DriveId) -> bool {
        self.drive_ix.get(&drive).is_some_and(|&d| self.drives[d].doubt)
    }
    /// True if the session is connected to this drive, and does not doubt what it has of a chunk: a witness against
    /// other members of it (5.2).
    #[must_use]
    pub fn vouched_by(&self, chunk: u32, drive: DriveId) -> bool {
        let Some(&d) = self.drive_ix.get(&drive) else { return false };
        let slot = self.chunks[chunk as usize].slot_of(d);
        self.linked(d) && slot.is_some_and(|s| !self.in_doubt(chunk, s))
    }
    /// Resync attempts under way: chunk, target, and how far they are.
    pub fn attempts(&self) -> impl Iterator<Item = (u32, Place, String)> + '_ {
        self.attempts.values().map(|a| {
            let place = self.chunks[a.chunk as usize].slots[a.target].place;
            (a.chunk, place, format!("{:?}", a.step))
        })
    }
    /// What stands in the way, in words; for a failing test.
    #[must_use]
    pub fn explain(&self) -> String {
        let undecided: Vec<_> = self.undecided.iter().map(|&c| &self.chunks[c as usize].undecided).collect();
        let drives: Vec<_> = self
            .drives
            .iter()
            .map(|d| (d.id, d.serving, d.failed, d.doubt, d.overdue, d.slow_since, d.want))
            .collect();
        format!(
            "{:?} undecided {undecided:?} drives (serving failed doubt overdue slow want) {drives:?} pending {:?} \
             asked {:?} attempts {:?} window {} requests {} arrivals {} flushes {:?} seq {} seal {:?} generation {:?} views {:?} ops {:?} parents {:?}",
            self.phase,
            self.pending,
            self.asked,
            self.attempts,
            self.window.len(),
            self.requests.len(),
            self.arrivals.len(),
            self.flushes,
            self.seq,
            self.seal,
            self.generation,
            self.attached.views,
            self.ops.iter().take(3).collect::<Vec<_>>(),
            self.parents,
        )
    }
    /// Guests' requests that are not completed.
    #[must_use]
    pub fn open_requests(&self) -> usize {
        self.requests.len() + self.flushes.len() + self.arrivals.len()
    }
    pub fn waits(&self) -> impl Iterator<Item = WaitReason> + '_ {
        self.waits.values().copied()
    }

    // ------------------------------------------------------------- waits

    /// Why I/O waits, if it does.
    pub(crate) fn note_waits(&mut self, leases: &dyn Leases) {
        if self.phase == Phase::Closed {
            return;
        }
        let unanswered = self.unanswered_reads;
        for n in 0..self.nodes.len() {
            let held = self.nodes[n]
                .drives
                .iter()
                .all(|&d| self.drives[d].required == 0 || self.lease_held(d, leases));
            if held || !unanswered {
                self.nodes[n].lease_wanted = None;
            }
        }
        let worth = |since: proto::Time| self.now.since(since) >= WORTH;
        let lease = self.nodes.iter().filter_map(|n| n.lease_wanted).any(worth);
        let few = |c: u32| self.chunks[c as usize].inter.count_ones() < u32::from(self.attached.min_in_sync);
        let min = !self.parked.is_empty()
            || self.degraded.iter().any(|&c| few(c) && self.chunks[c as usize].in_flight > 0);
        let undecided = self.undecided.iter().any(|&c| {
            let u = self.chunks[c as usize].undecided.as_ref();
            u.is_some_and(|u| u.tries > 1)
        });
        let fencing = self.phase == Phase::Fencing && worth(self.began);
        let reported = || self.drives.iter().filter(|d| d.required > 0 && d.report.is_some());
        let doubt = fencing && reported().count() > 0 && reported().all(|d| d.doubt);
        let now = [
            (WaitReason::Doubt, doubt || self.doubt_since.is_some()),
            (WaitReason::Evidence, self.unproven),
            (WaitReason::Fencing, fencing),
            (WaitReason::Undecided, undecided),
            (WaitReason::MinInSync, min),
            (WaitReason::Lease, lease),
            (WaitReason::Sealing, self.held_since().is_some_and(worth)),
            (WaitReason::Parent, self.parents_waited_for(true).is_some_and(worth)),
        ];
        for (i, (reason, is)) in (0u8..).zip(now) {
            match (is, self.waits.contains_key(&i)) {
                (true, false) => {
                    self.waits.insert(i, reason);
                    self.notice(Notice::Waiting { reason });
                }
                (false, true) => {
                    self.waits.remove(&i);
                    self.notice(Notice::WaitOver { reason });
                }
                _ => {}
            }
        }
    }

    /// The invariants. Cheap enough for every event of a test; a violation is a bug of the session.
    pub fn check(&self) {
        assert!(self.committed <= self.seq && self.answered <= self.seq, "committed <= submitted");
        assert!(self.said.durable <= self.said.committed || !self.serving(), "durable <= committed");
        if self.serving() {
            assert!(self.said.committed <= self.version(self.seq), "nothing is committed that was not sent");
        }
        for (i, c) in self.chunks.iter().enumerate() {
            let lies = self.bugs.has(|b| b.forget_stale || b.take_error_as_unchanged);
            assert!(lies || c.set & c.required == c.set, "chunk {i}: the in-sync set is required");
            assert!(c.inter & c.set == c.inter, "chunk {i}: the intersection lies in the set");
            assert!(c.required & c.fanout == c.required, "chunk {i}: everyone required is sent writes");
            assert!(
                self.phase < Phase::Fencing
                    || self.phase == Phase::Closed
                    || (c.set != 0) == (c.number.0 > 0),
                "chunk {i} has a member, if it is made"
            );
            let seen =
                u64::from(u32::try_from(i).expect("at most 2^20 chunks")) * self.geometry.chunk_bytes();
            assert!(
                self.phase < Phase::Fencing || c.number.0 > 0 || seen >= self.geometry.size,
                "chunk {i}: a guest sees it, and it is not made"
            );
        }
        self.check_seal();
        self.check_parents();
        if self.phase == Phase::Closed {
            assert!(self.requests.is_empty() && self.flushes.is_empty() && self.arrivals.is_empty());
        }
    }
}
