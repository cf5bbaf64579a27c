//! Exports: opening and closing them, and the guests' requests.
//!
//! Several exports of one volume share its session. While the session opens, or the node attaches again, requests
//! queue: a guest sees a pause, never an error. Each request is completed exactly once.

use crate::event::{Effect, ExportError, ExportInfo};
use crate::node::Node;
use crate::seats::{Asked, Client, Opening, Phase, Seat, SeatId, to_session};
use proto::control::{SessionKind, VolumeRef};
use proto::limits::{CLOSE_AFTER, OPEN_WAIT};
use proto::{ExportId, Ticket, Time};
use std::collections::BTreeSet;
use volume::{GuestError, GuestReply, GuestRequest, ReaderEvent};

impl Node {
    pub(crate) fn open_export(&mut self, now: Time, export: ExportId, volume: String, force: bool) {
        assert!(!self.seats.by_export.contains_key(&export), "an export is opened once");
        if self.stopping.is_some() {
            self.out.push_back(Effect::ExportRefused { export, error: ExportError::Closing });
            return;
        }
        let id = match self.seats.guest_seat(&volume) {
            Some(id) => id,
            None => self.new_seat(now, VolumeRef::Name(volume), SessionKind::Guest),
        };
        let seat = self.seats.all.get_mut(&id).expect("found or made");
        seat.exports.insert(export, Opening { since: now, force, opened: false });
        if seat.leftovers.is_empty() {
            seat.linger = None;
        }
        if let Phase::Attaching(a) = &mut seat.phase
            && force
        {
            a.next = now;
        }
        self.seats.by_export.insert(export, id);
        self.open_exports(id);
    }
    /// Says `ExportOpened` to those that wait, if the session serves.
    pub(crate) fn open_exports(&mut self, id: SeatId) {
        let Some(seat) = self.seats.all.get_mut(&id) else { return };
        if !seat.leftovers.is_empty() {
            return;
        }
        let info = match &seat.phase {
            Phase::Live(live) if live.opened && !live.closing => ExportInfo {
                name: live.name.clone(),
                branch: live.branch,
                geometry: live.geometry,
                read_only: false,
            },
            Phase::Reading(r) => ExportInfo {
                name: r.name.clone(),
                branch: r.reader.branch(),
                geometry: r.reader.geometry(),
                read_only: true,
            },
            _ => return,
        };
        for (&export, opening) in seat.exports.iter_mut().filter(|(_, o)| !o.opened) {
            opening.opened = true;
            self.out.push_back(Effect::ExportOpened { export, info: info.clone() });
        }
    }
    pub(crate) fn close_export(&mut self, now: Time, export: ExportId) {
        self.seats.broken.remove(&export);
        let Some(id) = self.seats.by_export.remove(&export) else { return };
        let Some(seat) = self.seats.all.get_mut(&id) else { return };
        seat.exports.remove(&export);
        // Its clients are gone: what they asked and was not handed in will not be.
        let (gone, kept): (Vec<Asked>, Vec<Asked>) =
            seat.queue.drain(..).partition(|a| a.client == Client::Export(export));
        seat.queue = kept.into();
        if seat.is_idle() && seat.kind == SessionKind::Guest {
            seat.linger = Some(now + CLOSE_AFTER);
        }
        for asked in gone {
            self.complete(&asked, Err(GuestError::Gone));
        }
        self.withdraw(id, export);
    }
    /// What a closed export asked, and has no answer: none of it is begun any more; what is under way is waited for before
    /// the next export opens.
    fn withdraw(&mut self, id: SeatId, export: ExportId) {
        let Some(seat) = self.seats.all.get_mut(&id) else { return };
        if seat.live().is_none() {
            return;
        }
        let of_export = |a: &Asked| a.client == Client::Export(export) && a.op.writes();
        let tickets: BTreeSet<Ticket> =
            seat.flying.iter().filter(|(_, a)| of_export(a)).map(|(t, _)| *t).collect();
        if !tickets.is_empty() {
            seat.leftovers.extend(&tickets);
            self.tell(id, volume::Event::Withdraw { tickets });
        }
    }
    /// An operator's order: the clients of the volume's exports learn its size by connecting anew.
    pub(crate) fn reconnect_exports(&mut self, branch: proto::BranchId) {
        let exports = self.seat_of(branch).map(|(_, seat)| seat.exports.iter().filter(|(_, o)| o.opened));
        let exports: Vec<ExportId> = exports.into_iter().flatten().map(|(x, _)| *x).collect();
        self.out.extend(exports.into_iter().map(|export| Effect::ExportReconnect { export }));
    }
    /// Exports that have waited long enough for their session.
    pub(crate) fn expire_exports(&mut self, now: Time, id: SeatId) {
        let Some(seat) = self.seats.all.get_mut(&id) else { return };
        let late = |o: &Opening| !o.opened && o.since + OPEN_WAIT <= now;
        if !seat.exports.values().any(late) {
            return;
        }
        let why = seat.why();
        let expired: Vec<ExportId> = seat.exports.iter().filter(|(_, o)| late(o)).map(|(x, _)| *x).collect();
        for export in expired {
            seat.exports.remove(&export);
            self.seats.by_export.remove(&export);
            self.out.push_back(Effect::ExportRefused { export, error: why.clone() });
        }
        if seat.exports.is_empty() && seat.live().is_some() {
            seat.linger = Some(now + CLOSE_AFTER);
        }
    }

    // ------------------------------------------------------------------ requests

    pub(crate) fn guest(&mut self, export: ExportId, request: GuestRequest) {
        let asked = Asked { client: Client::Export(export), ticket: request.ticket, op: request.op };
        match self.seats.by_export.get(&export) {
            Some(&id) => self.submit(id, asked),
            None if self.seats.broken.contains(&export) => self.complete(&asked, Err(GuestError::Io)),
            None => self.complete(&asked, Err(GuestError::Gone)),
        }
    }
    /// Hands a request to the seat's session, or keeps it until there is one.
    pub(crate) fn submit(&mut self, id: SeatId, asked: Asked) {
        let ticket = self.seats.ticket();
        let Some(seat) = self.seats.all.get_mut(&id) else {
            return self.complete(&asked, Err(GuestError::Gone));
        };
        if seat.reading().is_some() {
            let request = to_session(ticket, &asked);
            seat.flying.insert(ticket, asked);
            return self.tell_reader(id, ReaderEvent::Guest(request));
        }
        if !seat.live().is_some_and(|l| l.opened && !l.closing) {
            seat.queue.push_back(asked);
            return;
        }
        let request = to_session(ticket, &asked);
        seat.flying.insert(ticket, asked);
        self.tell(id, volume::Event::Guest(request));
    }
    /// The session has completed a ticket.
    pub(crate) fn completed(&mut self, id: SeatId, ticket: Ticket, result: Result<GuestReply, GuestError>) {
        let seat = self.seats.all.get_mut(&id).expect("a session speaks from its seat");
        // The session is over: what becomes of the request is decided when it has closed.
        if matches!(result, Err(GuestError::Gone)) && seat.live().is_some() {
            assert!(seat.flying.contains_key(&ticket), "{ticket} was handed in and not completed");
            return;
        }
        let asked = seat.flying.remove(&ticket);
        let asked = asked.expect("a ticket is completed once");
        let last = !seat.leftovers.is_empty() && seat.leftovers.remove(&ticket) && seat.leftovers.is_empty();
        if last && !seat.exports.is_empty() {
            seat.linger = None;
        }
        // Who asked has gone: to the edge it is as if the session had.
        let result =
            if matches!(result, Err(GuestError::Withdrawn)) { Err(GuestError::Gone) } else { result };
        self.complete(&asked, result);
        if last {
            self.open_exports(id);
        }
    }
    pub(crate) fn complete(&mut self, asked: &Asked, result: Result<GuestReply, GuestError>) {
        match asked.client {
            Client::Export(export) => {
                self.out.push_back(Effect::Complete { export, ticket: asked.ticket, result });
            }
            Client::Verify(request) => self.verified(request, result),
        }
    }
    /// For whoever asks in the name of the node.
    pub(crate) fn seat_of(&self, branch: proto::BranchId) -> Option<(SeatId, &Seat)> {
        let id = *self.seats.by_branch.get(&branch)?;
        Some((id, self.seats.all.get(&id)?))
    }
}
