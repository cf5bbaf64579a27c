//! How a seat lives: metad is asked for an epoch until it answers, the session runs, and when it has closed it
//! is decided what follows.
//!
//! A guest's session that was fenced attaches again by itself; another guest's session ends that. A maintenance
//! session is held while metad appoints it here, and gives way to a guest's. A snapshot needs no epoch: metad is asked
//! where it is, and a reader sits there.

use crate::desk::{ASK_AGAIN, Use};
use crate::event::{Effect, ExportError, Notice};
use crate::node::{Endpoint, Node};
use crate::seats::{Asked, Attaching, Client, Live, Opening, Phase, Reading, Seat, SeatId, error_of};
use proto::control::{Attached, MetaAnswer, MetaRefusal, MetaRequest, SessionKind, SnapshotFound, VolumeRef};
use proto::limits::{CLOSE_AFTER, OPEN_WAIT};
use proto::{BranchId, Epoch, ExportId, NodeId, RequestId, Span, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use volume::{CloseReason, GuestError, Reader, ReaderEvent, Session};

/// Between two attempts to attach.
const RETRY: Span = Span::millis(200);
/// A maintenance session that did not come about is tried again.
const RETRY_APPOINTED: Span = Span::secs(1);
/// A holder elsewhere that is alive may be closing (its last client has just gone): it is given this long before
/// the export is refused.
const HELD_PATIENCE: Span = Span::millis(CLOSE_AFTER.as_millis() + 1000);

impl Node {
    pub(crate) fn new_seat(&mut self, now: Time, volume: VolumeRef, kind: SessionKind) -> SeatId {
        let attaching = self.attaching(now, false);
        self.seats.add(Seat {
            volume,
            kind,
            phase: Phase::Attaching(attaching),
            held: None,
            exports: BTreeMap::new(),
            queue: VecDeque::new(),
            flying: BTreeMap::new(),
            leftovers: BTreeSet::new(),
            linger: None,
        })
    }
    fn attaching(&mut self, now: Time, again: bool) -> Attaching {
        let request = self.desk.request_id();
        Attaching { request, asked: None, next: now, since: now, again, question: None, refused: None }
    }
    pub(crate) fn set_appointed(&mut self, now: Time, branches: &[BranchId]) {
        self.appointed.retain(|b, _| branches.contains(b));
        for &b in branches {
            self.appointed.entry(b).or_insert(now);
        }
    }
    /// The branch that a maintenance seat is about.
    fn maintained(&self, seat: &Seat) -> Option<BranchId> {
        match (&seat.volume, seat.kind) {
            (VolumeRef::Branch(b), SessionKind::Maintenance) => Some(*b),
            _ => None,
        }
    }
    /// True if somebody wants the seat to have a session.
    fn wanted(&self, seat: &Seat) -> bool {
        let appointed = self.maintained(seat).is_some_and(|b| self.appointed.contains_key(&b));
        self.stopping.is_none() && (appointed || !seat.exports.is_empty())
    }

    // ------------------------------------------------------------------ time

    pub(crate) fn seat_wake(&self, seat: &Seat) -> Time {
        let exports = seat.exports.values().filter(|o| !o.opened).map(|o| o.since + OPEN_WAIT);
        let phase = match &seat.phase {
            Phase::Attaching(a) => a.asked.map_or(a.next, |(_, at)| at + ASK_AGAIN),
            Phase::Reading(r) => r.reader.next_wake(),
            Phase::Live(l) if l.closing => l.session.next_wake(),
            // What keeps an idle session is not waited for: its end is an event of its own.
            Phase::Live(l) if self.verifies.running(l.branch) => l.session.next_wake(),
            Phase::Live(l) => {
                let ends = seat.exports.is_empty() || seat.is_held_up();
                l.session.next_wake().min(seat.linger.filter(|_| ends).unwrap_or(Time::FAR))
            }
        };
        exports.chain([phase]).min().unwrap_or(Time::FAR)
    }
    pub(crate) fn appointed_wake(&self) -> Time {
        if self.stopping.is_some() {
            return Time::FAR;
        }
        let idle = self.appointed.iter().filter(|(b, _)| !self.has_seat(**b));
        idle.map(|(_, at)| *at).min().unwrap_or(Time::FAR)
    }
    fn has_seat(&self, branch: BranchId) -> bool {
        self.seats.by_branch.contains_key(&branch)
            || self.seats.all.values().any(|s| self.maintained(s) == Some(branch))
    }
    pub(crate) fn tend_seats(&mut self, now: Time) {
        if self.stopping.is_none() {
            let due: Vec<BranchId> = self
                .appointed
                .iter()
                .filter(|(b, at)| **at <= now && !self.has_seat(**b))
                .map(|(b, _)| *b)
                .collect();
            for branch in due {
                self.new_seat(now, VolumeRef::Branch(branch), SessionKind::Maintenance);
            }
        }
        let ids: Vec<SeatId> = self.seats.all.keys().copied().collect();
        for id in ids {
            self.expire_exports(now, id);
            self.tend_seat(now, id);
        }
    }
    fn tend_seat(&mut self, now: Time, id: SeatId) {
        let Some(seat) = self.seats.all.get(&id) else { return };
        let wanted = self.wanted(seat);
        match &seat.phase {
            Phase::Attaching(_) if !wanted => self.remove_seat(id, GuestError::Gone),
            Phase::Attaching(a) => {
                let due = a.asked.map_or(a.next, |(_, at)| at + ASK_AGAIN);
                if due <= now {
                    self.ask_attach(now, id);
                }
            }
            Phase::Reading(_) if !wanted => self.remove_seat(id, GuestError::Gone),
            Phase::Reading(_) => {}
            Phase::Live(live) if live.closing || wanted && !seat.is_held_up() => {}
            Phase::Live(live) => {
                // A new session decides what became of writes that cannot be finished now.
                // whoever verifies a volume wants an answer from one session
                let idle = seat.linger.is_none_or(|at| at <= now) && !self.verifies.running(live.branch);
                if idle || self.stopping.is_some() {
                    self.close_seat(now, id);
                }
            }
        }
    }
    /// The session is to close cleanly.
    pub(crate) fn close_seat(&mut self, now: Time, id: SeatId) {
        if let Some(live) = self.seats.all.get_mut(&id).and_then(Seat::live_mut).filter(|l| !l.closing) {
            live.closing = true;
            self.tell(id, volume::Event::Close);
            self.desk.heartbeat_at = now;
        }
    }

    // ------------------------------------------------------------------ metad

    fn ask_attach(&mut self, now: Time, id: SeatId) {
        let (node, process) = (self.params.node, self.params.process);
        let Some(seat) = self.seats.all.get_mut(&id) else { return };
        let force = seat.exports.values().any(|o| o.force && !o.opened);
        // An export that was open goes on: only over the disk as its clients know it, whatever its name is now.
        let snapshot = seat.snapshot().map(|(v, s)| (v.to_owned(), s.to_owned()));
        let held = seat.held.filter(|_| seat.exports.values().any(|o| o.opened));
        let Phase::Attaching(a) = &mut seat.phase else { return };
        // Older repeats of the question stay: the first answer that comes is the answer.
        let token = self.desk.token(Use::Attach(id, a.request));
        a.asked = Some((token, now));
        if let Some((volume, snapshot)) = snapshot {
            let request = MetaRequest::Snapshot { volume, snapshot };
            return self.out.push_back(Effect::Meta { token, request });
        }
        let question = a.question.get_or_insert_with(|| match held {
            Some((branch, epoch)) => (VolumeRef::Branch(branch), Some(epoch)),
            None => (seat.volume.clone(), None),
        });
        let (volume, after) = question.clone();
        let (request, kind) = (a.request, seat.kind);
        let force = force && !a.again;
        let request = MetaRequest::Attach { request, volume, node, process, kind, force, after };
        self.out.push_back(Effect::Meta { token, request });
    }
    pub(crate) fn attach_answer(
        &mut self,
        now: Time,
        id: SeatId,
        request: RequestId,
        token: u64,
        answer: MetaAnswer,
    ) {
        let attaching = match self.seats.all.get_mut(&id).map(|s| &mut s.phase) {
            Some(Phase::Attaching(a)) if a.request == request => Some(a),
            _ => None,
        };
        let Some(a) = attaching else { return self.give_back(now, answer) };
        // That a repeat was not heard says nothing while a later one is under way.
        if matches!(answer, MetaAnswer::Unavailable) && a.asked.is_some_and(|(t, _)| t != token) {
            return;
        }
        a.asked = None;
        a.next = now + RETRY;
        match answer {
            MetaAnswer::Attached(attached) => self.attached(now, id, *attached),
            MetaAnswer::Snapshot(found) => self.found(now, id, *found),
            MetaAnswer::Refused(refusal) => self.attach_refused(now, id, refusal),
            // The same question again, with the same id: its first answer is kept.
            _ => {}
        }
    }
    fn attach_refused(&mut self, now: Time, id: SeatId, refusal: MetaRefusal) {
        // A refusal is kept under its id too: what is asked from now on is another question.
        let request = self.desk.request_id();
        let Some(seat) = self.seats.all.get_mut(&id) else { return };
        let kind = seat.kind;
        let Phase::Attaching(a) = &mut seat.phase else { return };
        a.request = request;
        a.refused = Some(refusal.clone());
        let question = a.question.take();
        let (again, waited) = (a.again, now.since(a.since));
        if kind == SessionKind::Maintenance {
            return self.give_up_appointed(now, id);
        }
        let by_branch = matches!(question, Some((VolumeRef::Branch(_), _)));
        if matches!(refusal, MetaRefusal::Superseded { .. })
            || by_branch && refusal == MetaRefusal::NoSuchVolume
        {
            return self.break_open(now, id);
        }
        let over = match &refusal {
            MetaRefusal::Held { .. } if again => true,
            // One that neither metad nor we hear may be dead: then metad will let us in.
            MetaRefusal::Held { live, node, .. } => {
                *live && waited >= HELD_PATIENCE && self.links.reached().contains(node)
            }
            // Created meanwhile, or a metad that does not know us yet.
            MetaRefusal::NotReady | MetaRefusal::Shrinking { .. } | MetaRefusal::UnknownNode => false,
            // The epoch that this request got has passed (the answer came too late): another request gets another one,
            // and what stands in its way says so.
            MetaRefusal::OldEpoch { .. } => false,
            _ => true,
        };
        if over {
            self.refuse_exports(id, &error_of(&refusal));
            self.remove_seat(id, GuestError::Gone);
        }
    }
    /// The disk is not what the open exports believe: another guest had it meanwhile, it is gone, or writes are. They
    /// must not go on. Those that wait start anew.
    fn break_open(&mut self, now: Time, id: SeatId) {
        let Some(seat) = self.seats.all.get_mut(&id) else { return };
        let (broken, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut seat.exports).into_iter().partition(|(_, o)| o.opened);
        (seat.exports, seat.held) = (kept, None);
        if let Phase::Attaching(a) = &mut seat.phase {
            (a.again, a.since, a.next) = (false, now, now);
        }
        // What waits was asked by an open export (or by nobody): a new one asks nothing yet.
        let lost = seat.take_flying().into_values().chain(std::mem::take(&mut seat.queue));
        let empty = seat.exports.is_empty();
        self.break_exports(broken.into_keys());
        for asked in lost {
            self.complete_lost(&asked, GuestError::Gone);
        }
        if empty {
            self.remove_seat(id, GuestError::Gone);
        }
    }
    fn break_exports(&mut self, exports: impl Iterator<Item = ExportId>) {
        for export in exports {
            self.seats.by_export.remove(&export);
            self.seats.broken.insert(export);
            self.out.push_back(Effect::ExportBroken { export });
        }
    }
    /// A request that no session will answer.
    fn complete_lost(&mut self, asked: &Asked, error: GuestError) {
        let broken = matches!(asked.client, Client::Export(x) if self.seats.broken.contains(&x));
        self.complete(asked, Err(if broken { GuestError::Io } else { error }));
    }
    fn give_up_appointed(&mut self, now: Time, id: SeatId) {
        if let Some(branch) = self.seats.all.get(&id).and_then(|s| self.maintained(s))
            && let Some(at) = self.appointed.get_mut(&branch)
        {
            *at = now + RETRY_APPOINTED;
        }
        self.remove_seat(id, GuestError::Gone);
    }
    /// An epoch that nobody here waits for any more is given back: the next session reconciles. (Not one that lives
    /// here: that is a repeat's answer, come late.)
    pub(crate) fn give_back(&mut self, now: Time, answer: MetaAnswer) {
        let MetaAnswer::Attached(a) = answer else { return };
        if self.seats.of_branch(a.branch).is_none_or(|(_, l)| l.epoch < a.epoch) {
            self.desk.give_backs.insert((a.branch, a.epoch), now);
            self.stirred = true;
        }
    }
    pub(crate) fn tend_give_backs(&mut self, now: Time) {
        let due: Vec<_> =
            self.desk.give_backs.iter().filter(|(_, at)| **at <= now).map(|(k, _)| *k).collect();
        for (branch, epoch) in due {
            self.desk.give_backs.insert((branch, epoch), now + ASK_AGAIN);
            let request = MetaRequest::Detach { branch, epoch, clean: false };
            self.ask_metad(Use::GiveBack(branch, epoch), request);
        }
    }
    pub(crate) fn given_back(&mut self, now: Time, branch: BranchId, epoch: Epoch, answer: &MetaAnswer) {
        match answer {
            MetaAnswer::Ok | MetaAnswer::Refused(_) => self.desk.give_backs.remove(&(branch, epoch)),
            _ => self.desk.give_backs.insert((branch, epoch), now + RETRY),
        };
    }

    fn attached(&mut self, now: Time, id: SeatId, attached: Attached) {
        let branch = attached.branch;
        let seat = self.seats.all.get(&id).expect("answered");
        if seat.exports.values().any(|o| o.opened) && seat.held.is_some_and(|(b, _)| b != branch) {
            // Not the disk that they had open.
            self.desk.give_backs.insert((branch, attached.epoch), now);
            return self.break_open(now, id);
        }
        let mut exports = BTreeMap::new();
        if let Some((older, live)) = self.seats.of_branch(branch) {
            if live.epoch >= attached.epoch {
                // A late answer: the session here is newer.
                return self.remove_seat(id, GuestError::Gone);
            }
            // Displaced on the same node: a maintenance session by a guest's, or an older name of the same.
            let unbroken = live.epoch.next() == Some(attached.epoch);
            exports = self.displace(now, older);
            if !unbroken {
                // Somebody held the disk between the two.
                let broken: Vec<ExportId> = exports.extract_if(.., |_, o| o.opened).map(|(x, _)| x).collect();
                self.break_exports(broken.into_iter());
            }
        }
        let instance = self.seats.instance();
        let source = self.source(Endpoint::Seat(id, instance));
        let (epoch, name, geometry) = (attached.epoch, attached.name.clone(), attached.geometry);
        let session = Session::new(attached, self.params.node, self.params.process, now);
        #[cfg(feature = "bugs")]
        let session = {
            let mut session = session;
            session.set_bugs(self.volume_bugs);
            session
        };
        let seat = self.seats.all.get_mut(&id).expect("answered");
        for (&export, &opening) in &exports {
            seat.exports.insert(export, opening);
            self.seats.by_export.insert(export, id);
        }
        let live = Live {
            session,
            instance,
            branch,
            epoch,
            name,
            geometry,
            source,
            opened: false,
            closing: false,
            waiting: None,
        };
        seat.phase = Phase::Live(live);
        seat.held = Some((branch, epoch));
        self.seats.by_branch.insert(branch, id);
        self.seats.sits(instance, id);
        self.renamed(now, id);
        self.connect_local(id);
        for agreed in self.links.connected() {
            self.tell(id, crate::serve::connected(agreed));
        }
    }
    /// metad knows the snapshot: it is read from here on, by whoever shares the seat.
    fn found(&mut self, now: Time, id: SeatId, found: SnapshotFound) {
        let seat = self.seats.all.get(&id).expect("answered");
        let Some((volume, snapshot)) = seat.snapshot().map(|(v, s)| (v.to_owned(), s.to_owned())) else {
            return;
        };
        let name = format!("{volume}@{snapshot}");
        let instance = self.seats.instance();
        let source = self.source(Endpoint::Seat(id, instance));
        let reader = Reader::new(volume, snapshot, found, self.params.node, now);
        let seat = self.seats.all.get_mut(&id).expect("just seen");
        seat.phase = Phase::Reading(Reading { reader, instance, name, source });
        self.seats.sits(instance, id);
        let peers: Vec<NodeId> = self.links.connected().iter().map(|agreed| agreed.peer).collect();
        for node in peers {
            self.tell_reader(id, ReaderEvent::Connected { node });
        }
        self.tell_reader(id, ReaderEvent::Wake);
        self.open_exports(id);
    }
    /// The seat goes by the name that metad told. Who waits for the name that it had before waits elsewhere.
    fn renamed(&mut self, now: Time, id: SeatId) {
        let Some(seat) = self.seats.all.get_mut(&id) else { return };
        let Some(name) = seat.live().map(|l| l.name.clone()) else { return };
        let VolumeRef::Name(before) = &mut seat.volume else { return };
        if *before == name {
            return;
        }
        let before = std::mem::replace(before, name);
        let waiting: Vec<(ExportId, Opening)> = seat.exports.extract_if(.., |_, o| !o.opened).collect();
        if waiting.is_empty() {
            return;
        }
        let other = match self.seats.guest_seat(&before) {
            Some(other) => other,
            None => self.new_seat(now, VolumeRef::Name(before), SessionKind::Guest),
        };
        self.seats.by_export.extend(waiting.iter().map(|(x, _)| (*x, other)));
        self.seats.all.get_mut(&other).expect("found or made").exports.extend(waiting);
        self.open_exports(other);
    }
    /// Ends a live session at once; its exports go to the next one.
    fn displace(&mut self, now: Time, id: SeatId) -> BTreeMap<ExportId, Opening> {
        self.end_live(now, id, CloseReason::Fenced);
        let exports = self.seats.all.get_mut(&id).map(|s| std::mem::take(&mut s.exports)).unwrap_or_default();
        self.remove_seat(id, GuestError::Gone);
        exports
    }
    /// What is known and counted on for the seat's session is dropped; the seat itself stays.
    pub(crate) fn end_live(&mut self, now: Time, id: SeatId, reason: CloseReason) {
        let Some(live) = self.seats.all.get(&id).and_then(Seat::live) else { return };
        let (branch, source, instance) = (live.branch, live.source, live.instance);
        self.seats.by_branch.remove(&branch);
        self.seats.leaves(instance);
        self.forget_leases(now, branch);
        self.source_closed(source);
        self.notice(Notice::SessionClosed { branch, reason });
        let attaching = self.attaching(now, reason == CloseReason::Fenced);
        if let Some(seat) = self.seats.all.get_mut(&id) {
            seat.phase = Phase::Attaching(attaching);
            seat.linger = None;
        }
    }
    /// Everything that waits in the seat ends here. Open exports are broken: who had the disk open must not open it anew
    /// as if nothing had happened. (Not when the node stops: then they come back to the next process.)
    pub(crate) fn remove_seat(&mut self, id: SeatId, error: GuestError) {
        let Some(mut seat) = self.seats.all.remove(&id) else { return };
        if let Some(r) = seat.reading() {
            let (source, instance) = (r.source, r.instance);
            self.seats.leaves(instance);
            self.source_closed(source);
        }
        let stops = self.stopping.is_some();
        let broken: Vec<ExportId> =
            seat.exports.extract_if(.., |_, o| o.opened && !stops).map(|(x, _)| x).collect();
        self.break_exports(broken.into_iter());
        let waiting = seat.take_flying().into_values().chain(std::mem::take(&mut seat.queue));
        for asked in waiting {
            self.complete_lost(&asked, error);
        }
        for export in seat.exports.keys() {
            self.seats.by_export.remove(export);
            self.out.push_back(Effect::ExportClosed { export: *export });
        }
    }

    // ------------------------------------------------------------------ what a session says of itself

    pub(crate) fn session_opened(&mut self, id: SeatId, geometry: proto::Geometry) {
        let Some(live) = self.seats.all.get_mut(&id).and_then(Seat::live_mut) else { return };
        (live.opened, live.geometry) = (true, geometry);
        self.open_exports(id);
        let queue = self.seats.all.get_mut(&id).map(|s| std::mem::take(&mut s.queue)).unwrap_or_default();
        for asked in queue {
            self.submit(id, asked);
        }
    }
    pub(crate) fn session_resized(&mut self, id: SeatId, geometry: proto::Geometry) {
        let Some(seat) = self.seats.all.get_mut(&id) else { return };
        let Some(live) = seat.live_mut() else { return };
        live.geometry = geometry;
        for (&export, _) in seat.exports.iter().filter(|(_, o)| o.opened) {
            self.out.push_back(Effect::ExportResized { export, geometry });
        }
    }
    pub(crate) fn session_notice(&mut self, id: SeatId, notice: volume::Notice) {
        let Some(live) = self.seats.all.get_mut(&id).and_then(Seat::live_mut) else { return };
        match &notice {
            volume::Notice::Waiting { reason } => live.waiting = Some(*reason),
            volume::Notice::WaitOver { .. } => live.waiting = None,
            _ => {}
        }
        let (branch, name) = (live.branch, live.name.clone());
        self.notice(Notice::Volume { branch, name, notice });
    }
    pub(crate) fn session_closed(&mut self, now: Time, id: SeatId, reason: CloseReason) {
        self.end_live(now, id, reason);
        let Some(seat) = self.seats.all.get(&id) else { return };
        let wanted = self.wanted(seat);
        match reason {
            _ if !wanted => self.remove_seat(id, GuestError::Gone),
            _ if seat.kind == SessionKind::Maintenance => self.give_up_appointed(now, id),
            // What the guest believes written may be gone: as with a drive that was reset under it.
            CloseReason::Doubt => self.break_open(now, id),
            CloseReason::Fenced | CloseReason::Clean | CloseReason::GivenUp => {
                let seat = self.seats.all.get_mut(&id).expect("just found");
                let mut flying: VecDeque<Asked> = seat.take_flying().into_values().collect();
                flying.append(&mut seat.queue);
                seat.queue = flying;
                // Pieces of a verification are asked anew by whoever wants it. What an export asked that has closed
                // since ends with its session: another guest may write before the next one.
                let exports = &seat.exports;
                let goes_on = |a: &Asked| matches!(a.client, Client::Export(x) if exports.get(&x).is_some_and(|o| o.opened));
                let (kept, lost): (VecDeque<Asked>, VecDeque<Asked>) =
                    std::mem::take(&mut seat.queue).into_iter().partition(goes_on);
                seat.queue = kept;
                for asked in lost {
                    self.complete(&asked, Err(GuestError::Gone));
                }
            }
        }
    }
    /// Every export of the seat that is not open is refused; those that are open stay in it.
    pub(crate) fn refuse_exports(&mut self, id: SeatId, error: &ExportError) {
        let Some(seat) = self.seats.all.get_mut(&id) else { return };
        let refused: Vec<ExportId> =
            seat.exports.iter().filter(|(_, o)| !o.opened).map(|(x, _)| *x).collect();
        for export in refused {
            seat.exports.remove(&export);
            self.seats.by_export.remove(&export);
            self.out.push_back(Effect::ExportRefused { export, error: error.clone() });
        }
    }
}
