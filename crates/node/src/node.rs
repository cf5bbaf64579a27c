//! The machine: one node. Owns all parts, takes events, hands out effects.
//!
//! What one part wants of another becomes a `Job` and waits its turn, so that no machine is entered twice and
//! what was said first is heard first. After each event the same `maintain` pushes whatever can be pushed.

use crate::bugs::Seeded;
use crate::desk::{Desk, Use};
use crate::drives::Drive;
use crate::event::{Effect, Event, LinkId, NodeParams, Notice};
use crate::lease::{Granter, Holder};
use crate::links::{Links, Lost};
use crate::measure::Measures;
use crate::pull::Pulls;
use crate::seats::{Instance, Seat, SeatId, Seats};
use crate::serve::HeldFence;
use crate::shutdown::Stopping;
use crate::verify::Verifies;
use proto::control::{HeldReplica, MetaAnswer, MetaRequest, WatchUpdate};
use proto::handshake::Identity;
use proto::message::{Reply, ReplyFrame, RequestFrame};
use proto::{BranchId, DriveId, Epoch, LogIndex, Map, NodeId, Time};
use std::collections::{BTreeMap, VecDeque};
use store::Source;
use volume::{ReaderEffect, ReaderEvent};

/// What one part wants of another.
#[expect(clippy::large_enum_variant, reason = "a write is moved, not boxed: no allocation per request")]
pub(crate) enum Job {
    Store(usize, store::Event),
    Session(SeatId, Instance, volume::Event),
    Reader(SeatId, Instance, ReaderEvent),
    /// After what came before in the queue has stopped to count on it.
    ReturnLease(NodeId, Vec<BranchId>),
}

/// Who is behind a `Source`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Endpoint {
    Link(LinkId, NodeId),
    Seat(SeatId, Instance),
    /// Our own resync, asking our own stores.
    Pulls,
}

/// The resync's name at our own stores.
pub(crate) const PULLS: Source = Source(0);

pub struct Node {
    pub(crate) params: NodeParams,
    pub(crate) links: Links,
    pub(crate) granter: Granter,
    pub(crate) holder: Holder,
    pub(crate) fences: Vec<HeldFence>,
    pub(crate) drives: Vec<Drive>,
    pub(crate) by_drive: Map<DriveId, usize>,
    pub(crate) by_handle: BTreeMap<u32, usize>,
    /// metad's orders to erase, for drives that are not open yet.
    pub(crate) deletes: BTreeMap<DriveId, (LogIndex, Vec<HeldReplica>)>,
    /// Keep-lists for drives that are not open yet.
    pub(crate) keeps: BTreeMap<DriveId, BTreeMap<BranchId, proto::KeepList>>,
    pub(crate) seats: Seats,
    /// Branches whose maintenance session metad wants here; and not before when.
    pub(crate) appointed: BTreeMap<BranchId, Time>,
    pub(crate) pulls: Pulls,
    pub(crate) verifies: Verifies,
    pub(crate) measures: Measures,
    pub(crate) desk: Desk,
    pub(crate) endpoints: Map<Source, Endpoint>,
    next_source: u64,
    pub(crate) jobs: VecDeque<Job>,
    pub(crate) out: VecDeque<Effect>,
    /// Drives whose store had an event this turn.
    turn_drives: Vec<usize>,
    /// The next deadline, as the end of the turn found it; none: something has happened since.
    due: Option<Time>,
    /// Handshakes are answered at the latest from here on, whatever our drives do.
    pub(crate) greet_by: Time,
    pub(crate) stopping: Option<Stopping>,
    /// Something other than I/O happened: look at everything.
    pub(crate) stirred: bool,
    #[cfg(feature = "bugs")]
    pub(crate) store_bugs: store::Bugs,
    #[cfg(feature = "bugs")]
    pub(crate) volume_bugs: volume::Bugs,
}

/// How long handshakes wait for the drives of a node that has just started.
const GREET_WAIT: proto::Span = proto::Span::secs(1);

impl Node {
    #[must_use]
    pub fn new(params: NodeParams, now: Time) -> Node {
        let me = Identity { cluster: params.cluster, node: params.node, process: params.process };
        let bugs = Seeded::default();
        let seed = params.seed;
        Node {
            params,
            links: Links::new(me, bugs),
            granter: Granter::new(now, bugs),
            holder: Holder::default(),
            fences: Vec::new(),
            drives: Vec::new(),
            by_drive: Map::default(),
            by_handle: BTreeMap::new(),
            deletes: BTreeMap::new(),
            keeps: BTreeMap::new(),
            seats: Seats::default(),
            appointed: BTreeMap::new(),
            pulls: Pulls::new(),
            verifies: Verifies::default(),
            measures: Measures::default(),
            desk: Desk::new(seed),
            endpoints: std::iter::once((PULLS, Endpoint::Pulls)).collect(),
            next_source: 1,
            jobs: VecDeque::new(),
            out: VecDeque::new(),
            turn_drives: Vec::new(),
            due: None,
            greet_by: now + GREET_WAIT,
            stopping: None,
            stirred: false,
            #[cfg(feature = "bugs")]
            store_bugs: store::Bugs::default(),
            #[cfg(feature = "bugs")]
            volume_bugs: volume::Bugs::default(),
        }
    }
    /// Switches seeded bugs on: the node's own, and those of the stores and sessions it will make.
    #[cfg(feature = "bugs")]
    pub fn set_bugs(&mut self, bugs: crate::Bugs, store: store::Bugs, volume: volume::Bugs) {
        let seeded = Seeded::new(bugs);
        self.links.set_bugs(seeded);
        self.granter.set_bugs(seeded);
        self.pulls.set_bugs(seeded);
        (self.store_bugs, self.volume_bugs) = (store, volume);
    }
    pub(crate) fn me(&self) -> NodeId {
        self.params.node
    }
    pub(crate) fn source(&mut self, endpoint: Endpoint) -> Source {
        let source = Source(self.next_source);
        self.next_source += 1;
        self.endpoints.insert(source, endpoint);
        source
    }
    pub(crate) fn notice(&mut self, notice: Notice) {
        self.out.push_back(Effect::Notice(notice));
    }

    /// One event. Effects are to be drained by `poll` afterwards.
    pub fn handle(&mut self, now: Time, event: Event) {
        self.due = None;
        self.stirred |= !matches!(event, Event::Io { .. } | Event::Guest { .. } | Event::TurnEnd);
        match event {
            Event::AddDrive(params) => self.add_drive(now, params),
            Event::Io { handle, io, result } => {
                if let Some(&ix) = self.by_handle.get(&handle) {
                    self.jobs.push_back(Job::Store(ix, store::Event::Io { io, result }));
                }
            }
            Event::Accepted { link } => self.links.accepted(now, link),
            Event::Dialled { link } => self.links.dialled(now, link, &mut self.out),
            Event::LinkClosed { link } => {
                let lost = self.links.closed(now, link);
                self.lost(lost);
            }
            Event::Meta { token, answer } => self.meta_answer(now, token, answer),
            Event::Watch(update) => self.watch(now, update),
            Event::OpenExport { export, volume, force } => self.open_export(now, export, volume, force),
            Event::CloseExport { export } => self.close_export(now, export),
            Event::Guest { export, request } => self.guest(export, request),
            Event::Wake => {}
            Event::TurnEnd => self.turn_end(now),
            Event::Shutdown => self.shutdown(now),
        }
        self.settle(now);
    }
    /// Bytes of a peer.
    pub fn received(&mut self, now: Time, link: LinkId, bytes: &[u8]) {
        self.due = None;
        let mut input = bytes;
        if let Some(l) = self.links.get(link) {
            l.hears(now);
        }
        // The link may be dropped by what it says: then the rest of its bytes is nobody's.
        while let Some(l) = self.links.get(link) {
            match l.deframer.next(&mut input) {
                Ok(Some(message)) => self.message(now, link, message),
                Ok(None) => break,
                Err(error) => {
                    let node = l.peer();
                    self.notice(Notice::BadFrame { node, error });
                    let lost = self.links.close(now, link, &mut self.out);
                    self.lost(lost);
                }
            }
            self.run(now);
        }
        self.settle(now);
    }
    /// After I/O only what it asked for; after anything else, and when something is due, everything.
    fn settle(&mut self, now: Time) {
        self.run(now);
        if self.stirred {
            self.maintain(now);
            self.due = None;
        }
        #[cfg(debug_assertions)]
        self.check();
    }
    /// The next effect, in order.
    pub fn poll(&mut self) -> Option<Effect> {
        self.out.pop_front()
    }
    /// A buffer of an `Effect::Send` comes back.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.links.recycle(buffer);
    }
    /// When `Wake` is wanted; `Time::FAR` when nothing has a deadline.
    #[must_use]
    pub fn next_wake(&self) -> Time {
        if self.links.is_dirty() {
            return Time::ZERO;
        }
        self.due.unwrap_or_else(|| self.next_deadline())
    }
    /// When anything is due; what waits to be sent is not looked at.
    fn next_deadline(&self) -> Time {
        let drives = self.drives.iter().map(Drive::next_wake);
        let seats = self.seats.all.values().map(|s| self.seat_wake(s));
        let fences = self.fences.iter().map(|f| f.clear_at);
        let settle = if self.links.settling().is_empty() { Time::FAR } else { self.greet_by };
        drives
            .chain(seats)
            .chain(fences)
            .chain([
                self.links.next_wake(),
                self.holder.next_wake(),
                self.pulls.next_wake(),
                self.desk.next_wake(),
                self.measures.next_wake(),
                self.appointed_wake(),
                settle,
                self.stopping_wake(),
            ])
            .min()
            .unwrap_or(Time::FAR)
    }

    /// Seals this turn: what stores hold back for a batch, then one send per link.
    fn turn_end(&mut self, now: Time) {
        self.run(now);
        let mut drives = std::mem::take(&mut self.turn_drives);
        drives.sort_unstable();
        for ix in drives.drain(..) {
            self.jobs.push_back(Job::Store(ix, store::Event::TurnEnd));
        }
        // What waited for this is not due any more.
        self.run(now);
        // Guests' I/O alone changes nothing that is to be looked after; a resync and a shutdown feed on its completions.
        let feeds = self.pulls.is_busy() || self.stopping.is_some();
        let mut due = self.next_deadline();
        if self.stirred || feeds || due <= now {
            self.maintain(now);
            due = self.next_deadline();
        }
        // What the end itself caused is no event of the next turn.
        self.turn_drives = drives;
        self.links.send_all(&mut self.out);
        self.due = Some(due);
    }

    /// Pushes whatever can be pushed. Cheap when nothing is due.
    fn maintain(&mut self, now: Time) {
        self.run(now);
        self.stirred = false;
        for link in self.links.maintain(now, &mut self.out) {
            let lost = self.links.close(now, link, &mut self.out);
            self.lost(lost);
        }
        self.greet(now);
        self.wake_due(now);
        self.clear_fences(now);
        self.ask_leases(now);
        self.tend_seats(now);
        self.tend_drives(now);
        self.tend_verifies();
        self.tend_measures(now);
        self.tend_give_backs(now);
        self.heartbeat(now);
        self.pulls.push(now);
        self.run(now);
        self.tend_shutdown(now);
        self.run(now);
    }
    fn wake_due(&mut self, now: Time) {
        for (ix, d) in self.drives.iter().enumerate() {
            if d.store.next_wake() <= now {
                self.jobs.push_back(Job::Store(ix, store::Event::Wake));
            }
        }
        for (id, r) in self.seats.readers() {
            if r.reader.next_wake() <= now {
                self.jobs.push_back(Job::Reader(id, r.instance, ReaderEvent::Wake));
            }
        }
        for (id, live) in self.seats.live() {
            if live.session.next_wake() <= now {
                self.jobs.push_back(Job::Session(id, live.instance, volume::Event::Wake));
            }
        }
        self.run(now);
    }

    /// Runs jobs until nobody wants anything of another.
    pub(crate) fn run(&mut self, now: Time) {
        loop {
            if let Some(job) = self.jobs.pop_front() {
                self.run_job(now, job);
            } else if let Some(out) = self.pulls.poll() {
                self.pull_out(now, out);
            } else {
                return;
            }
        }
    }
    fn run_job(&mut self, now: Time, job: Job) {
        match job {
            Job::Store(ix, event) => {
                let seals = !matches!(event, store::Event::TurnEnd | store::Event::Wake);
                if seals && !self.turn_drives.contains(&ix) {
                    self.turn_drives.push(ix);
                }
                self.drives[ix].store.handle(now, event);
                while let Some(effect) = self.drives[ix].store.poll() {
                    self.store_effect(now, ix, effect);
                }
            }
            Job::Session(id, instance, event) => self.run_session(now, id, instance, event),
            Job::Reader(id, instance, event) => self.run_reader(now, id, instance, event),
            Job::ReturnLease(node, branches) => self.return_lease(now, node, branches),
        }
    }
    fn run_session(&mut self, now: Time, id: SeatId, instance: Instance, event: volume::Event) {
        let me = self.me();
        let seat = self.seats.all.get_mut(&id);
        let Some(live) = seat.and_then(Seat::live_mut).filter(|l| l.instance == instance) else { return };
        let counted =
            crate::seats::Counted { me, epoch: live.epoch, holder: &self.holder, granter: &self.granter };
        live.session.handle(now, &counted, event);
        loop {
            // A closed session leaves its seat, and takes what it still has to say with it.
            let seat = self.seats.all.get_mut(&id);
            let Some(live) = seat.and_then(Seat::live_mut).filter(|l| l.instance == instance) else { return };
            let Some(effect) = live.session.poll() else { return };
            self.session_effect(now, id, instance, effect);
        }
    }

    fn run_reader(&mut self, now: Time, id: SeatId, instance: Instance, event: ReaderEvent) {
        let mut event = Some(event);
        loop {
            let seat = self.seats.all.get_mut(&id);
            let Some(r) = seat.and_then(Seat::reading_mut).filter(|r| r.instance == instance) else { return };
            if let Some(event) = event.take() {
                r.reader.handle(now, event);
            }
            let source = r.source;
            match r.reader.poll() {
                None => return,
                Some(ReaderEffect::Send { node, mut frame }) => {
                    frame.token = crate::seats::wrap(frame.token, instance);
                    if node == self.me() {
                        self.serve(now, source, node, frame);
                    } else {
                        self.links.request(now, node, &frame);
                    }
                }
                Some(ReaderEffect::Complete { ticket, result }) => self.completed(id, ticket, result),
                // Its exports are broken; who comes anew asks metad anew.
                Some(ReaderEffect::Gone) => self.remove_seat(id, volume::GuestError::Gone),
                Some(ReaderEffect::Meta { token, request }) => {
                    self.ask_metad(Use::Reader(id, instance, token), request);
                }
            }
        }
    }
    pub(crate) fn tell_reader(&mut self, id: SeatId, event: ReaderEvent) {
        if let Some(instance) = self.seats.all.get(&id).and_then(Seat::reading).map(|r| r.instance) {
            self.jobs.push_back(Job::Reader(id, instance, event));
        }
    }
    pub(crate) fn tell_readers(&mut self, event: &ReaderEvent) {
        let ids: Vec<SeatId> = self.seats.readers().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.tell_reader(id, event.clone()));
    }

    /// To one session, if it is still there.
    pub(crate) fn tell(&mut self, id: SeatId, event: volume::Event) {
        if let Some(instance) = self.seats.all.get(&id).and_then(Seat::live).map(|l| l.instance) {
            self.jobs.push_back(Job::Session(id, instance, event));
        }
    }
    pub(crate) fn tell_all(&mut self, event: &volume::Event) {
        let ids: Vec<SeatId> = self.seats.live().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.tell(id, event.clone()));
    }
    /// A newer epoch has been heard of: a session here that holds an older one is over.
    pub(crate) fn revoke(&mut self, node: NodeId, branch: BranchId, newer: Epoch) {
        if let Some((id, live)) = self.seats.of_branch(branch)
            && live.epoch < newer
        {
            self.tell(id, volume::Event::Revoked { node, epoch: newer });
        }
    }

    pub(crate) fn ask_metad(&mut self, of: Use, request: MetaRequest) -> u64 {
        let token = self.desk.token(of);
        self.out.push_back(Effect::Meta { token, request });
        token
    }
    fn meta_answer(&mut self, now: Time, token: u64, answer: MetaAnswer) {
        match self.desk.answered(token) {
            Some(Use::Attach(seat, request)) => self.attach_answer(now, seat, request, token, answer),
            Some(Use::Session(seat, instance, token)) => {
                self.jobs.push_back(Job::Session(seat, instance, volume::Event::Meta { token, answer }));
            }
            Some(Use::Reader(seat, instance, token)) => {
                self.jobs.push_back(Job::Reader(seat, instance, ReaderEvent::Meta { token, answer }));
            }
            Some(Use::Opened(drive)) => self.drive_answer(now, drive, token, &answer),
            Some(Use::GiveBack(branch, epoch)) => self.given_back(now, branch, epoch, &answer),
            Some(Use::Erased(drive, count)) => self.erased_answer(now, drive, count, &answer),
            Some(Use::Heartbeat) => {}
            None => {}
        }
    }
    fn watch(&mut self, now: Time, update: WatchUpdate) {
        match update {
            WatchUpdate::Nodes(nodes) => self.links.set_nodes(now, &nodes),
            WatchUpdate::Appointed(branches) => self.set_appointed(now, &branches),
            WatchUpdate::ChunksChanged { branch, chunks } => {
                if let Some((id, _)) = self.seats.of_branch(branch) {
                    self.tell(id, volume::Event::ChunksChanged { chunks });
                }
            }
            WatchUpdate::Fenced { branch, epoch } => self.revoke(self.me(), branch, epoch),
            WatchUpdate::Delete { drive, replicas, index } => {
                match self.open_drive(drive) {
                    Some(ix) => self.jobs.push_back(Job::Store(ix, store::Event::Delete { replicas, index })),
                    // Kept until it is open; the newest order alone counts.
                    None => drop(self.deletes.insert(drive, (index, replicas))),
                }
            }
            WatchUpdate::Down(drives) => self.tell_all(&volume::Event::Down { drives }),
            WatchUpdate::Resized { branch, index, geometry, placement } => {
                if let Some((id, _)) = self.seats.of_branch(branch) {
                    self.tell(id, volume::Event::Resized { index, geometry, placement });
                }
            }
            WatchUpdate::Views { branch, views } => {
                if let Some((id, _)) = self.seats.of_branch(branch) {
                    self.tell(id, volume::Event::Views { views });
                }
            }
            WatchUpdate::Job { branch, index, job } => {
                if let Some((id, _)) = self.seats.of_branch(branch) {
                    self.tell(id, volume::Event::Job { index, job });
                }
            }
            WatchUpdate::Keep { drive, lists } => self.keep_views(drive, lists),
            WatchUpdate::Verify { branch, request } => self.verify_wanted(branch, request),
            WatchUpdate::Measure(order) => self.measures.take(order),
            WatchUpdate::Reconnect { branch } => self.reconnect_exports(branch),
        }
    }

    /// A link that was up is gone.
    pub(crate) fn lost(&mut self, lost: Option<Lost>) {
        let Some(Lost { peer, dialled, source }) = lost else { return };
        if dialled {
            self.holder.disconnected(peer);
            self.tell_all(&volume::Event::Disconnected { node: peer });
            self.tell_readers(&ReaderEvent::Disconnected { node: peer });
            self.pulls.source_lost(peer);
            self.notice(Notice::LinkDown { node: peer });
        }
        if let Some(source) = source {
            self.source_closed(source);
        }
    }
    /// Nothing more is heard from there, nor said to it.
    pub(crate) fn source_closed(&mut self, source: Source) {
        self.endpoints.remove(&source);
        self.fences.retain(|f| f.source != source);
        self.pulls.connection_closed(source);
        for (ix, d) in self.drives.iter_mut().enumerate() {
            if d.sources.remove(&source) {
                self.jobs.push_back(Job::Store(ix, store::Event::SourceClosed { source }));
            }
        }
    }

    fn session_effect(&mut self, now: Time, id: SeatId, instance: Instance, effect: volume::Effect) {
        self.stirred |= !matches!(effect, volume::Effect::Send { .. } | volume::Effect::Complete { .. });
        match effect {
            volume::Effect::Send { node, mut frame } => {
                frame.token = crate::seats::wrap(frame.token, instance);
                if node == self.me() {
                    let live = self.seats.all.get(&id).and_then(Seat::live);
                    let source = live.expect("a session speaks from its seat").source;
                    self.serve(now, source, node, frame);
                } else {
                    self.links.request(now, node, &frame);
                }
            }
            volume::Effect::Complete { ticket, result } => self.completed(id, ticket, result),
            volume::Effect::Meta { token, request } => {
                if let MetaRequest::Detach { branch, .. } = request {
                    // It serves no more: leases are returned before the detach is committed.
                    self.forget_leases(now, branch);
                    // What it has moved is said while it is there to say it.
                    self.desk.heartbeat_at = now;
                }
                self.ask_metad(Use::Session(id, instance, token), request);
            }
            volume::Effect::Opened { geometry } => self.session_opened(id, geometry),
            volume::Effect::Resized { geometry } => self.session_resized(id, geometry),
            volume::Effect::Closed { reason } => self.session_closed(now, id, reason),
            volume::Effect::Notice(notice) => self.session_notice(id, notice),
        }
    }

    /// A reply from a replica's node, ours or another's, to whoever asked.
    pub(crate) fn reply(&mut self, now: Time, node: NodeId, frame: ReplyFrame) {
        let event = |frame| volume::Event::Reply { node, frame };
        self.stirred |= !matches!(
            frame.reply,
            Reply::Acks(_)
                | Reply::ReadDone { .. }
                | Reply::FlushBegun { .. }
                | Reply::FlushDone { .. }
                | Reply::Flushed
        );
        match frame.reply {
            Reply::Leased { refused, unknown } => {
                let not = crate::lease::granter::NotCovered { refused, unknown };
                self.leased(now, node, frame.token, &not);
            }
            Reply::Revoke { branches } => self.revoked(node, branches),
            reply if frame.token & crate::pull::OWN_TOKEN != 0 => self.pulls.reply(now, frame.token, reply),
            reply @ (Reply::FlushBegun { .. } | Reply::FlushDone { .. } | Reply::DriveState { .. }) => {
                self.tell_all(&event(ReplyFrame { reply, ..frame }));
            }
            Reply::Acks(acks) => {
                for group in acks.chunk_by(|a, b| a.branch == b.branch) {
                    let branch = group[0].branch;
                    if let Some((id, _)) = self.seats.of_branch(branch) {
                        let reply = Reply::Acks(group.to_vec());
                        self.tell(id, event(ReplyFrame { token: 0, branch, drive: frame.drive, reply }));
                    }
                }
            }
            reply => {
                // What was asked comes back to whoever asked; of its own accord a replica speaks to its session.
                let asker = match frame.token {
                    0 => self.seats.of_branch(frame.branch).map(|(id, _)| (id, 0)),
                    wire => self.seats.of_token(wire),
                };
                let Some((id, token)) = asker else { return };
                let Some(live) = self.seats.all.get(&id).and_then(Seat::live) else {
                    let frame = ReplyFrame { token, reply, ..frame };
                    return self.tell_reader(id, ReaderEvent::Reply { frame });
                };
                if live.branch == frame.branch
                    && matches!(reply, Reply::Report(_) | Reply::Done)
                    && node != self.me()
                {
                    // The session holds the epoch there: from here on the lease is to cover it.
                    self.stirred |= self.holder.show(now, node, frame.branch, live.epoch);
                }
                self.tell(id, event(ReplyFrame { token, reply, ..frame }));
            }
        }
    }
    /// A request of our own (leases), to a node; the answer carries the token.
    pub(crate) fn request(&mut self, now: Time, node: NodeId, token: u64, request: proto::message::Request) {
        let frame = RequestFrame { token, scope: proto::message::Scope::default(), request };
        self.links.request(now, node, &frame);
    }

    /// Invariants of the whole.
    #[cfg(debug_assertions)]
    fn check(&self) {
        assert!(self.jobs.is_empty(), "every job was run");
        assert!(self.due.is_none_or(|due| due == self.next_deadline()), "nothing has happened since");
        for (branch, id) in &self.seats.by_branch {
            let live = self.seats.all.get(id).and_then(Seat::live);
            assert!(live.is_some_and(|l| l.branch == *branch), "a branch names its live session");
        }
        for (id, live) in self.seats.live() {
            assert!(self.seats.by_branch.get(&live.branch) == Some(&id), "one live session per branch");
            assert!(self.endpoints.get(&live.source) == Some(&Endpoint::Seat(id, live.instance)));
        }
        for (id, r) in self.seats.readers() {
            assert!(self.endpoints.get(&r.source) == Some(&Endpoint::Seat(id, r.instance)));
        }
        for id in self.seats.by_instance.values() {
            let sits = self.seats.all.get(id).and_then(Seat::instance);
            assert!(sits.is_some(), "a token names who sits");
        }
        for (export, id) in &self.seats.by_export {
            assert!(self.seats.all.get(id).is_some_and(|s| s.exports.contains_key(export)), "{export} sits");
        }
    }
}
