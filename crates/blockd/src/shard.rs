//! The shard: one thread, one ring, the node and its sockets and drives.
//!
//! The loop waits, hands every completion to the node as an event, says `TurnEnd`, and submits what came of it: one
//! system call per turn. It decides nothing. It sleeps when nothing is due.

use crate::control::{DriveOpened, Status, ToControl, ToShard};
use crate::core::Core;
use crate::device::Drive;
use crate::drives::Drives;
use crate::export::{ConnId, Exports, Limits};
use crate::mailbox::Mailbox;
use crate::net::{Links, Way};
use crate::ring::{Done, Errno, Fd, Outcome, Ring};
use crate::sys;
use node::event::DriveParams;
use node::{Effect, Event, LinkId};
use proto::{OpenId, Span, Time};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use store::{IoId, IoResult};

/// An accept that failed (no descriptors left) is tried again after this.
const ACCEPT_AGAIN: Span = Span::millis(100);
/// Memory that was not needed for so long is given back, a bit of it every so often.
const TRIM_LOOK: Span = Span::secs(60);
const TRIM_EVERY: Span = Span::secs(1);
/// From the order to stop to the end, at most.
const STOP_WITHIN: Span = Span::secs(9);
/// After the node has stopped: for the last replies.
const SAY_WITHIN: Span = Span::millis(500);

/// Whose completion it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tag {
    Drive { handle: u32, io: IoId },
    Link(LinkId, Way),
    Guest(ConnId, Way),
    Accept(usize),
    Mail,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Visitor {
    Peer,
    Guest { tcp: bool },
}

struct Door {
    fd: Fd,
    visitor: Visitor,
    /// The accept failed; again at this time.
    again: Option<Time>,
}

/// How a shard ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Drained, flushed, drives closed.
    Clean,
    /// Not in time: the next process recovers.
    GivenUp,
}

pub struct Shard<C> {
    core: C,
    ring: Ring<Tag>,
    links: Links,
    exports: Exports,
    drives: Drives,
    doors: Vec<Door>,
    mailbox: Mailbox<ToShard>,
    mail: Fd,
    control: Box<dyn Fn(ToControl)>,
    /// Ordered to stop, by then at the latest.
    stopping: Option<Time>,
    stopped: bool,
    turns: u64,
    /// When memory is looked at, and when some is given back.
    trim_look: Time,
    trim_at: Time,
    /// Events of links and drives, that came up while effects were drained.
    pending: VecDeque<Event>,
}

impl<C: Core> Shard<C> {
    /// `wake` is the mailbox's eventfd; `control` takes messages for the control thread.
    pub fn new(
        core: C,
        mut ring: Ring<Tag>,
        (mailbox, wake): (Mailbox<ToShard>, OwnedFd),
        control: impl Fn(ToControl) + 'static,
    ) -> Shard<C> {
        let mail = ring.add(wake);
        ring.event(mail, Tag::Mail);
        Shard {
            core,
            ring,
            links: Links::default(),
            exports: Exports::default(),
            drives: Drives::default(),
            doors: Vec::new(),
            mailbox,
            mail,
            control: Box::new(control),
            stopping: None,
            stopped: false,
            turns: 0,
            trim_look: Time::ZERO,
            trim_at: Time::ZERO,
            pending: VecDeque::new(),
        }
    }

    /// This node's name, and what its guests may take.
    pub fn serve_as(&mut self, node: &str, limits: Limits) {
        self.exports.node = node.into();
        self.exports.limits = limits;
    }

    /// Lets visitors in by a listening socket.
    pub fn listen(&mut self, socket: OwnedFd, visitor: Visitor) {
        let fd = self.ring.add(socket);
        self.ring.accept(fd, Tag::Accept(self.doors.len()));
        self.doors.push(Door { fd, visitor, again: None });
    }

    /// Runs until it is told to stop.
    pub fn run(&mut self) -> io::Result<End> {
        loop {
            let (now, due) = (sys::now(), self.core.next_wake());
            self.ring.turn(self.wait(now, due))?;
            let now = sys::now();
            self.exports.turn(&mut self.ring, now);
            while let Some(done) = self.ring.completion() {
                self.completed(now, done);
            }
            // As it was when the turn before ended: what has become due since then the end of this one sees.
            if due <= now {
                self.event(now, Event::Wake);
            }
            self.end_turn(now);
            if let Some(end) = self.ended(now) {
                return Ok(end);
            }
        }
    }

    /// `due`: the core's.
    fn wait(&self, now: Time, due: Time) -> Option<Span> {
        let due = [
            Some(due.min(self.exports.next_wake())),
            self.doors.iter().filter_map(|d| d.again).min(),
            self.stopping,
        ];
        let due = due.into_iter().flatten().min().expect("the node's is there");
        (due != Time::FAR).then(|| due.since(now))
    }

    /// Everything that was ready has been handed in.
    fn end_turn(&mut self, now: Time) {
        self.turns += 1;
        if self.trim_at <= now {
            let look = self.trim_look <= now;
            proto::payload::trim(look);
            self.trim_at = now + TRIM_EVERY;
            self.trim_look = if look { now + TRIM_LOOK } else { self.trim_look };
        }
        for i in 0..self.doors.len() {
            if self.doors[i].again.is_some_and(|t| t <= now) {
                self.doors[i].again = None;
                self.ring.accept(self.doors[i].fd, Tag::Accept(i));
            }
        }
        // Input that a connection held back is part of this turn: one batch, not two.
        self.exports.resume(&mut self.ring);
        while self.pump(now) {
            self.exports.resume(&mut self.ring);
        }
        loop {
            self.event(now, Event::TurnEnd);
            self.exports.resume(&mut self.ring);
            if self.pump(now) {
                continue;
            }
            self.links.flush(&mut self.ring, &mut self.pending);
            while let Some(buffer) = self.links.spent.pop() {
                self.core.recycle(buffer);
            }
            let goes_on = self.exports.flush(&mut self.ring);
            if !self.pump(now) && !goes_on {
                break;
            }
        }
    }

    fn ended(&mut self, now: Time) -> Option<End> {
        let deadline = self.stopping?;
        if self.stopped && (self.exports.is_quiet() || now >= deadline) {
            return Some(End::Clean);
        }
        (now >= deadline).then_some(End::GivenUp)
    }

    /// One event, and all that comes of it.
    fn event(&mut self, now: Time, event: Event) {
        self.core.handle(now, event);
        self.drain(now);
    }

    /// Events that came up on this side; true if there were any.
    fn pump(&mut self, now: Time) -> bool {
        let mut any = false;
        while let Some(event) = self.pending.pop_front().or_else(|| self.exports.events.pop_front()) {
            any = true;
            self.event(now, event);
        }
        for ask in self.exports.asks.drain(..) {
            (self.control)(ask);
        }
        any
    }

    fn completed(&mut self, now: Time, done: Done<Tag>) {
        match done.tag {
            Tag::Drive { handle, io } => {
                let event = Event::Io { handle, io, result: io_result(done.outcome) };
                self.event(now, event);
            }
            Tag::Link(link, _) => self.link(now, link, done.outcome),
            Tag::Guest(id, _) => self.guest(now, id, done.outcome),
            Tag::Accept(door) => self.accepted(now, door, done.outcome),
            Tag::Mail => {
                self.ring.event(self.mail, Tag::Mail);
                for message in self.mailbox.take() {
                    self.message(now, message);
                }
            }
        }
    }

    fn link(&mut self, now: Time, link: LinkId, outcome: Outcome) {
        let event = match outcome {
            Outcome::Connected(result) => self.links.connected(&mut self.ring, link, result),
            Outcome::Received(Ok(n), buf) if n > 0 => {
                if self.links.received(link, n) {
                    self.core.received(now, link, &buf[..n]);
                    self.drain(now);
                    self.links.again(&mut self.ring, link, buf);
                }
                None
            }
            Outcome::Received(..) => self.links.lost(&mut self.ring, link),
            Outcome::Sent(result, out) => {
                for buffer in out.into_buffers() {
                    self.core.recycle(buffer);
                }
                self.links.sent(&mut self.ring, link, result)
            }
            _ => unreachable!("no other operation has a link's tag"),
        };
        if let Some(event) = event {
            self.event(now, event);
        }
    }

    fn guest(&mut self, now: Time, id: ConnId, outcome: Outcome) {
        match outcome {
            Outcome::Received(result, buf) => self.exports.received(&mut self.ring, id, result, buf),
            Outcome::Sent(result, out) => self.exports.sent(&mut self.ring, id, result, out),
            _ => unreachable!("no other operation has a guest's tag"),
        }
        self.pump(now);
    }

    fn accepted(&mut self, now: Time, index: usize, outcome: Outcome) {
        let Outcome::Accepted(result) = outcome else { unreachable!("the tag of an accept") };
        if self.stopping.is_some() {
            return;
        }
        let door = &mut self.doors[index];
        match result {
            Err(errno) => {
                let error = io::Error::from_raw_os_error(errno);
                tracing::warn!(%error, "cannot accept a connection");
                door.again = Some(now + ACCEPT_AGAIN);
            }
            Ok(socket) => {
                self.ring.accept(door.fd, Tag::Accept(index));
                match door.visitor {
                    Visitor::Peer => {
                        let event = self.links.accept(&mut self.ring, socket);
                        self.event(now, event);
                    }
                    Visitor::Guest { tcp } => {
                        if tcp && let Err(error) = sys::no_delay(&socket) {
                            tracing::debug!(%error, "TCP_NODELAY");
                        }
                        self.exports.accept(&mut self.ring, socket);
                        self.pump(now);
                    }
                }
            }
        }
    }

    fn message(&mut self, now: Time, message: ToShard) {
        match message {
            ToShard::Meta { token, answer } => self.event(now, Event::Meta { token, answer }),
            ToShard::Watch(update) => self.event(now, Event::Watch(update)),
            ToShard::Volumes { question, answer } => {
                self.exports.answered(question, answer);
                self.pump(now);
            }
            ToShard::Since { connection, export, answer } => {
                self.exports.compared(connection, &export, answer);
                self.pump(now);
            }
            ToShard::Resolved { link, address } => {
                let event = match address {
                    Some(a) => self.links.dial(&mut self.ring, link, a),
                    None => Some(Event::LinkClosed { link }),
                };
                if let Some(event) = event {
                    self.event(now, event);
                }
            }
            ToShard::Drive { drive, opening, opened } => self.add_drive(now, drive, opening, opened),
            ToShard::Status(reply) => reply(self.status()),
            ToShard::Verification { request, reply } => reply(self.core.verification(request)),
            ToShard::Stop => self.stop(now),
        }
    }

    fn add_drive(&mut self, now: Time, drive: Drive, opening: OpenId, opened: DriveOpened) {
        let (size, volatile_cache, path) =
            (drive.size, drive.volatile_cache, drive.path.display().to_string());
        let handle = self.drives.add(&mut self.ring, drive, opened);
        self.event(now, Event::AddDrive(DriveParams { handle, size, volatile_cache, path, opening }));
    }

    fn stop(&mut self, now: Time) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(now + STOP_WITHIN);
        for door in &self.doors {
            self.ring.close(door.fd);
        }
        self.doors.clear();
        self.exports.drain();
        self.event(now, Event::Shutdown);
    }

    /// Turns the node's effects into operations; drained before the next event.
    fn drain(&mut self, now: Time) {
        while let Some(effect) = self.core.poll() {
            match effect {
                Effect::Io { handle, io, op } => {
                    self.pending.extend(self.drives.io(&mut self.ring, handle, io, op));
                }
                Effect::Send { link, bytes } => {
                    if let Some(event) = self.links.send(&mut self.ring, link, bytes) {
                        self.pending.push_back(event);
                    }
                }
                Effect::Dial { link, address, .. } => self.dial(link, address),
                Effect::CloseLink { link } => {
                    self.links.close(&mut self.ring, link);
                }
                Effect::Meta { token, request } => (self.control)(ToControl::Meta { token, request }),
                Effect::ExportOpened { export, info } => self.exports.opened(export, info),
                Effect::ExportRefused { export, error } => self.exports.refused(export, &error),
                Effect::ExportResized { export, geometry } => self.exports.resized(export, geometry),
                Effect::ExportReconnect { export } => self.exports.reconnect(export),
                Effect::ExportClosed { export } => self.exports.closed(&mut self.ring, export),
                Effect::ExportBroken { export } => self.exports.broken(export),
                Effect::Complete { ticket, result, .. } => self.exports.complete(now, ticket, result),
                Effect::DriveOpened { handle, drive } => self.drives.opened(handle, drive),
                Effect::DriveFailed { handle, failure } => {
                    self.drives.failed(&mut self.ring, handle, failure);
                }
                Effect::Stopped => {
                    self.stopped = true;
                    self.stopping = self.stopping.map(|t| t.min(now + SAY_WITHIN));
                }
                Effect::Notice(notice) => crate::notice::log(&notice),
            }
        }
    }

    fn dial(&mut self, link: LinkId, address: String) {
        match address.parse() {
            Ok(address) => {
                if let Some(event) = self.links.dial(&mut self.ring, link, address) {
                    self.pending.push_back(event);
                }
            }
            Err(_) => (self.control)(ToControl::Resolve { link, address }),
        }
    }

    /// What the admin socket and the metrics tell.
    fn status(&self) -> Status {
        Status {
            drives: self.drives.status(self.core.drives()),
            exports: self.exports.status(),
            attaching: self.core.attaching(),
            clients: self.exports.clients(),
            turned_away: self.exports.turned_away,
            latencies: self.exports.latencies,
            in_flight: self.exports.in_flight(),
            requests: self.exports.requests,
            links: self.links.count(),
            link_bytes_in: self.links.bytes_in,
            link_bytes_out: self.links.bytes_out,
            turns: self.turns,
            enters: self.ring.enters,
        }
    }
}

fn io_result(outcome: Outcome) -> IoResult {
    let failed = |e: Errno| IoResult::Failed(e);
    match outcome {
        Outcome::Read(r) => r.map_or_else(failed, |buf| IoResult::Read(buf.freeze())),
        Outcome::Written(r) => r.map_or_else(failed, |()| IoResult::Written),
        Outcome::Flushed(r) => r.map_or_else(failed, |()| IoResult::Flushed),
        _ => unreachable!("no other operation has a drive's tag"),
    }
}
