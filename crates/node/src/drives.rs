//! Our drives: a store each, from `AddDrive` to `Closed`, and what is told of them.
//!
//! A drive serves when metad has matched its list of openings, or before that if the boot is the same (the store
//! itself keeps that rule; the node says `Confirmed`). It never touches a drive's bytes.

use crate::desk::{ASK_AGAIN, Use};
use crate::event::{DriveParams, Effect, Notice};
use crate::node::{Endpoint, Job, Node, PULLS};
use crate::seats::{Seat, SeatId};
use crate::status::{DriveState, DriveView, JournalFill};
use proto::control::{DriveStatus, HeldReplica, MetaAnswer, MetaRefusal, MetaRequest};
use proto::message::{DriveHello, Reply, ReplyFrame};
use proto::{BranchId, DriveId, Epoch, KeepList, NodeId, Refusal, Span, Time};
use std::collections::BTreeSet;
use store::event::{Failure, Opened};
use store::{OpenParams, Source, Store};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Opening,
    Open,
    Failed,
    Closed,
}

/// Whether metad has matched the openings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Confirmation {
    /// To be asked at this time; the newest question under way.
    Wanted(Time, Option<u64>),
    Done,
    /// Rolled back or copied: it does not serve.
    Stranger,
}

/// For humans: how long it has been like this.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    state: DriveState,
    since: Time,
}

pub(crate) struct Drive {
    pub params: DriveParams,
    pub store: Store,
    pub state: State,
    pub opened: Option<Opened>,
    pub confirmation: Confirmation,
    /// Connections that have sent this drive anything.
    pub sources: BTreeSet<Source>,
    /// Erased as ordered; metad has not heard of it. Said again from then on.
    pub erased: Vec<HeldReplica>,
    pub erased_at: Time,
    pub erased_asked: Option<u64>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// metad's last refusal to confirm it.
    pub refused: Option<MetaRefusal>,
    pub seen: Seen,
}

impl Drive {
    pub fn next_wake(&self) -> Time {
        let ask = match (self.state, self.confirmation) {
            (State::Open, Confirmation::Wanted(at, _)) => at,
            _ => Time::FAR,
        };
        let erased = if self.erased.is_empty() { Time::FAR } else { self.erased_at };
        ask.min(erased).min(self.store.next_wake())
    }
    /// The branch's epoch and its holder, as stored. Node 0: some session's that never fenced here (a resync began
    /// under it); it may hold our lease all the same.
    pub fn on_record(&self, branch: BranchId) -> Option<(Epoch, NodeId)> {
        self.store.branch(branch).map(|view| (view.epoch, view.holder))
    }
    /// Bytes that are not free.
    fn used(&self) -> u64 {
        let usage = self.store.usage();
        u64::from(usage.extents - usage.free_extents) * proto::limits::EXTENT as u64
    }
    pub fn id(&self) -> DriveId {
        self.opened.as_ref().map_or(DriveId(0), |o| o.drive)
    }
    pub fn serving(&self) -> bool {
        let same_boot = self.opened.as_ref().is_some_and(|o| o.same_boot);
        match self.confirmation {
            Confirmation::Done => self.state == State::Open,
            Confirmation::Wanted(..) => self.state == State::Open && same_boot,
            Confirmation::Stranger => false,
        }
    }
    fn view_state(&self) -> DriveState {
        match (self.state, &self.confirmation) {
            (State::Opening, _) => DriveState::Opening,
            (State::Failed, _) => {
                DriveState::Failed(self.failure.clone().expect("a failed drive has its cause"))
            }
            (State::Closed, _) => DriveState::Closed,
            (State::Open, Confirmation::Stranger) => DriveState::Stranger,
            (State::Open, _) if self.serving() => DriveState::Serving,
            (State::Open, _) => DriveState::Confirming { refused: self.refused.clone() },
        }
    }
    /// Another state than before begins now.
    pub fn look(&mut self, now: Time) {
        let state = self.view_state();
        if std::mem::discriminant(&state) != std::mem::discriminant(&self.seen.state) {
            self.seen.since = now;
        }
        self.seen.state = state;
    }
    pub fn view(&self) -> DriveView {
        DriveView {
            handle: self.params.handle,
            drive: self.id(),
            state: self.seen.state.clone(),
            since: self.seen.since,
            journal: self.journal(),
        }
    }
    fn journal(&self) -> JournalFill {
        if self.state != State::Open {
            return JournalFill::default();
        }
        let (usage, page) = (self.store.usage(), proto::limits::BLOCK as u64);
        JournalFill { used: usage.journal_used * page, size: usage.journal_window * page }
    }
    /// Why it answers nobody, if so.
    pub fn refuses(&self) -> Option<Refusal> {
        match self.state {
            State::Open if self.confirmation == Confirmation::Stranger => Some(Refusal::DriveNotConfirmed),
            State::Open => None,
            State::Failed => Some(Refusal::DriveFailed),
            State::Opening | State::Closed => Some(Refusal::NoDrive),
        }
    }
}

/// A refusal of metad to confirm a drive is asked about again so often.
const ASK_REFUSED: Span = Span::secs(5);

impl Node {
    pub(crate) fn add_drive(&mut self, now: Time, params: DriveParams) {
        assert!(!self.by_handle.contains_key(&params.handle), "each drive has a handle of its own");
        let store = Store::new(OpenParams {
            size: params.size,
            boot: self.boot_for(&params),
            cluster: self.params.cluster,
            node: self.params.node,
            opening: params.opening,
            volatile_cache: params.volatile_cache,
            now,
        });
        // A drive that could not be opened, and is tried again, takes its old place: nobody else knows of it.
        let before =
            |d: &Drive| d.state == State::Failed && d.opened.is_none() && d.params.path == params.path;
        let ix = self.drives.iter().position(before).unwrap_or(self.drives.len());
        if let Some(older) = self.drives.get(ix) {
            self.by_handle.remove(&older.params.handle);
        }
        self.by_handle.insert(params.handle, ix);
        let drive = Drive {
            params,
            store,
            state: State::Opening,
            opened: None,
            confirmation: Confirmation::Wanted(now, None),
            sources: BTreeSet::new(),
            erased: Vec::new(),
            erased_at: now,
            erased_asked: None,
            failure: None,
            refused: None,
            seen: Seen { state: DriveState::Opening, since: now },
        };
        if ix == self.drives.len() {
            self.drives.push(drive);
        } else {
            self.drives[ix] = drive;
        }
        #[cfg(feature = "bugs")]
        self.drives[ix].store.set_bugs(self.store_bugs);
        while let Some(effect) = self.drives[ix].store.poll() {
            self.store_effect(now, ix, effect);
        }
    }
    /// The boot that the store takes for its own. A drive that failed while it was open may have lost what was not
    /// flushed, as by a power cut: its next opening must not believe that nothing happened since the last one.
    fn boot_for(&self, params: &DriveParams) -> [u8; 16] {
        let mut boot = self.params.boot;
        if self
            .drives
            .iter()
            .any(|d| d.opened.is_some() && d.failure.is_some() && d.params.path == params.path)
        {
            let (_, low) = boot.split_at_mut(8);
            low.iter_mut().zip(params.opening.0.to_le_bytes()).for_each(|(b, o)| *b ^= o);
        }
        boot
    }
    pub(crate) fn open_drive(&self, drive: DriveId) -> Option<usize> {
        self.by_drive.get(&drive).copied().filter(|&ix| self.drives[ix].state == State::Open)
    }
    /// No drive is still being opened.
    pub(crate) fn drives_settled(&self) -> bool {
        self.drives.iter().all(|d| d.state != State::Opening)
    }
    /// What a handshake says of our drives.
    pub(crate) fn hellos(&self) -> Vec<DriveHello> {
        let known = self.drives.iter().filter(|d| d.opened.is_some() && d.state != State::Closed);
        known
            .map(|d| DriveHello {
                drive: d.id(),
                failed: d.state == State::Failed,
                serving: d.serving(),
                in_doubt: if d.state == State::Open { d.store.in_doubt() } else { Vec::new() },
            })
            .collect()
    }

    pub(crate) fn store_effect(&mut self, now: Time, ix: usize, effect: store::Effect) {
        let handle = self.drives[ix].params.handle;
        use store::Effect as E;
        self.stirred |=
            !matches!(effect, E::Io { .. } | E::Reply { .. } | E::Broadcast { .. } | E::Pulled { .. });
        match effect {
            store::Effect::Io { io, op } => self.out.push_back(Effect::Io { handle, io, op }),
            store::Effect::Reply { source, frame } => self.deliver(now, source, frame),
            store::Effect::Broadcast { frame } => {
                let sources: Vec<Source> = self.drives[ix].sources.iter().copied().collect();
                for source in sources {
                    self.deliver(now, source, frame.clone());
                }
            }
            store::Effect::Pulled { token, result } => self.pulls.pulled(now, token, result),
            store::Effect::Opened(opened) => self.drive_opened(now, ix, *opened),
            store::Effect::Failed(failure) => {
                self.drives[ix].state = State::Failed;
                self.drives[ix].failure = Some(failure.clone());
                self.drives[ix].look(now);
                let drive = self.drives[ix].id();
                self.pulls.drive_lost(drive);
                self.out.push_back(Effect::DriveFailed { handle, failure });
                self.desk.heartbeat_at = now;
            }
            store::Effect::Closed => {
                self.drives[ix].state = State::Closed;
                self.drives[ix].look(now);
            }
            store::Effect::Deleted { replicas } => {
                let d = &mut self.drives[ix];
                d.erased.extend(replicas);
                d.erased_at = now;
            }
            store::Effect::Kept { branch, index } => {
                // Not said again: metad tells the list again until it has heard this.
                let drive = self.drives[ix].id();
                let token = self.desk.token_for_nobody();
                let request = MetaRequest::Kept { drive, branch, index };
                self.out.push_back(Effect::Meta { token, request });
            }
            store::Effect::Notice(notice) => {
                let drive = self.drives[ix].opened.as_ref().map(|o| o.drive);
                self.notice(Notice::Store { drive, notice });
            }
        }
    }
    fn drive_opened(&mut self, now: Time, ix: usize, opened: Opened) {
        let (drive, handle) = (opened.drive, self.drives[ix].params.handle);
        if let Some(&older) = self.by_drive.get(&drive) {
            if self.drives[older].state == State::Open {
                // The file was copied, or a disk cloned: which of the two has what was written cannot be told from here.
                return self.jobs.push_back(Job::Store(ix, store::Event::Fail(Failure::Twin)));
            }
            // It is back after a failure: what it was before is no drive of ours any more.
            self.drives[older].state = State::Closed;
            self.drives[older].look(now);
        }
        let d = &mut self.drives[ix];
        (d.state, d.opened) = (State::Open, Some(opened));
        d.confirmation = Confirmation::Wanted(now, None);
        d.look(now);
        let branches: BTreeSet<_> = d.store.replicas().into_iter().map(|r| r.branch).collect();
        for branch in branches {
            if let Some((epoch, _)) = d.on_record(branch) {
                self.granter.recorded(branch, epoch);
            }
        }
        self.by_drive.insert(drive, ix);
        if let Some((index, replicas)) = self.deletes.remove(&drive) {
            self.jobs.push_back(Job::Store(ix, store::Event::Delete { replicas, index }));
        }
        for list in self.keeps.remove(&drive).unwrap_or_default().into_values() {
            self.jobs.push_back(Job::Store(ix, store::Event::Keep(list)));
        }
        self.out.push_back(Effect::DriveOpened { handle, drive });
        // Whoever is connected was told of our drives without this one: let them hear it afresh.
        for link in self.links.all(|l| l.is_up() && l.source.is_some()) {
            let lost = self.links.close(now, link, &mut self.out);
            self.lost(lost);
        }
        let ids: Vec<SeatId> = self.seats.live().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.connect_local(id));
        self.desk.heartbeat_at = now;
    }
    /// metad's keep-lists for a drive of ours; those for one that is not open yet wait, the newest of each branch.
    pub(crate) fn keep_views(&mut self, drive: DriveId, lists: Vec<KeepList>) {
        let open = self.open_drive(drive);
        for list in lists {
            if let Some(ix) = open {
                self.jobs.push_back(Job::Store(ix, store::Event::Keep(list)));
                continue;
            }
            let waiting = self.keeps.entry(drive).or_default();
            if waiting.get(&list.branch).is_none_or(|older| older.index < list.index) {
                waiting.insert(list.branch, list);
            }
        }
    }
    /// Whoever was told of a drive that did not serve yet hears that it does.
    fn tell_serving(&mut self, now: Time, ix: usize) {
        let (drive, in_doubt) = (self.drives[ix].id(), self.drives[ix].store.in_doubt());
        let mut sources: Vec<Source> = self.endpoints.keys().copied().filter(|s| *s != PULLS).collect();
        sources.sort_unstable();
        for source in sources {
            let reply = Reply::DriveState { drive, failed: false, in_doubt: in_doubt.clone() };
            self.deliver(now, source, ReplyFrame { token: 0, branch: BranchId(0), drive, reply });
        }
    }
    /// A session's own node, as a connection: at its start, and when our drives are others than before.
    pub(crate) fn connect_local(&mut self, id: SeatId) {
        let Some(live) = self.seats.all.get(&id).and_then(Seat::live) else { return };
        let (older, instance) = (live.source, live.instance);
        self.source_closed(older);
        let source = self.source(Endpoint::Seat(id, instance));
        self.seats.all.get_mut(&id).and_then(Seat::live_mut).expect("just found").source = source;
        let event = volume::Event::Connected {
            node: self.me(),
            connection: self.links.next_connection(),
            process: self.params.process,
            drives: self.hellos(),
        };
        self.tell(id, event);
    }

    /// Asks metad to confirm what is not confirmed, and tells it what was erased.
    pub(crate) fn tend_drives(&mut self, now: Time) {
        for ix in 0..self.drives.len() {
            let d = &mut self.drives[ix];
            if !d.erased.is_empty() && d.erased_at <= now {
                d.erased_at = now + ASK_AGAIN;
                let (drive, replicas, older) = (d.id(), d.erased.clone(), d.erased_asked.take());
                let of = Use::Erased(ix, replicas.len());
                let token = self.ask_metad(of, MetaRequest::Deleted { drive, replicas });
                self.drives[ix].erased_asked = Some(token);
                if let Some(older) = older {
                    self.desk.forget(older);
                }
            }
            let d = &self.drives[ix];
            let (State::Open, Confirmation::Wanted(at, _)) = (d.state, d.confirmation) else { continue };
            if at > now {
                continue;
            }
            let opened = d.opened.as_ref().expect("open");
            let request = MetaRequest::DriveOpened {
                node: self.params.node,
                drive: opened.drive,
                openings: opened.openings.clone(),
                capacity: opened.capacity,
                replicas: opened.replicas.clone(),
                path: d.params.path.clone(),
            };
            // Older repeats of the question stay: whichever is answered first.
            let token = self.ask_metad(Use::Opened(ix), request);
            self.drives[ix].confirmation = Confirmation::Wanted(now + ASK_AGAIN, Some(token));
        }
    }
    pub(crate) fn erased_answer(&mut self, now: Time, ix: usize, count: usize, answer: &MetaAnswer) {
        let d = &mut self.drives[ix];
        if *answer == MetaAnswer::Ok {
            // The list only grows at its end, and only the newest question is answered.
            d.erased.drain(..count);
            d.erased_asked = None;
            d.erased_at = now;
        }
    }
    pub(crate) fn drive_answer(&mut self, now: Time, ix: usize, token: u64, answer: &MetaAnswer) {
        let d = &mut self.drives[ix];
        let Confirmation::Wanted(_, asked) = d.confirmation else { return };
        // That a repeat was not heard says nothing while a later one is under way.
        if matches!(answer, MetaAnswer::Unavailable) && asked != Some(token) {
            return;
        }
        let drive = d.id();
        match answer {
            MetaAnswer::DriveConfirmed { drive: confirmed } if *confirmed == drive => {
                (d.confirmation, d.refused) = (Confirmation::Done, None);
                let open = d.state == State::Open;
                if open {
                    self.jobs.push_back(Job::Store(ix, store::Event::Confirmed));
                    self.tell_serving(now, ix);
                }
                self.desk.heartbeat_at = now;
            }
            MetaAnswer::Refused(MetaRefusal::Stranger) => {
                d.confirmation = Confirmation::Stranger;
                self.notice(Notice::Stranger { drive });
            }
            MetaAnswer::Refused(refusal) => {
                d.confirmation = Confirmation::Wanted(now + ASK_REFUSED, None);
                // Once for each reason: it is asked again for ever.
                if d.refused.replace(refusal.clone()).as_ref() != Some(refusal) {
                    self.notice(Notice::NotConfirmed { drive, refusal: refusal.clone() });
                }
            }
            _ => d.confirmation = Confirmation::Wanted(now + Span::millis(200), None),
        }
        self.drives[ix].look(now);
    }

    // ------------------------------------------------------------------ heartbeats

    pub(crate) fn heartbeat(&mut self, now: Time) {
        if now < self.desk.heartbeat_at {
            return;
        }
        self.desk.heartbeat_at = now + proto::limits::HEARTBEAT;
        let request = MetaRequest::Heartbeat {
            node: self.params.node,
            process: self.params.process,
            drives: self.drive_statuses(),
            reaches: self.links.reached(),
            sessions: self.seats.live().map(|(_, l)| l.session.status()).collect(),
        };
        // Only the newest one matters; answers to older ones are nobody's.
        let token = self.ask_metad(Use::Heartbeat, request);
        if let Some(older) = self.desk.heartbeat.replace(token) {
            self.desk.forget(older);
        }
    }
    pub(crate) fn drive_statuses(&self) -> Vec<DriveStatus> {
        let known = self.drives.iter().filter(|d| d.opened.is_some() && d.state != State::Closed);
        known
            .map(|d| DriveStatus {
                drive: d.id(),
                failed: d.state == State::Failed,
                serving: d.serving(),
                capacity: d.opened.as_ref().map_or(0, |o| o.capacity),
                used: if d.state == State::Open { d.used() } else { 0 },
                path: d.params.path.clone(),
            })
            .collect()
    }
}
