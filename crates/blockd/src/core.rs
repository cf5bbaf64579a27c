//! The node as the shard sees it: a machine that decides everything.

use node::{DriveView, Effect, Event, LinkId, Node, SeatView, VerifyState};
use proto::{RequestId, Time};

/// `node::Node`; a trait so that the edge's own tests can put a plain machine in its place.
pub trait Core {
    fn handle(&mut self, now: Time, event: Event);
    /// Bytes that came on a link.
    fn received(&mut self, now: Time, link: LinkId, bytes: &[u8]);
    /// The next effect; drained before the next event.
    fn poll(&mut self) -> Option<Effect>;
    /// When `Event::Wake` is due; `Time::FAR`: never.
    fn next_wake(&self) -> Time;
    /// A buffer of `Effect::Send`, sent.
    fn recycle(&mut self, buffer: Vec<u8>);
    /// How far a `volume verify` is that this node's session does.
    fn verification(&self, request: RequestId) -> Option<VerifyState>;
    /// Every drive that was handed in, by its handle.
    fn drives(&self) -> Vec<DriveView>;
    /// Seats whose session metad has not granted yet.
    fn attaching(&self) -> Vec<SeatView>;
}

impl Core for Node {
    fn handle(&mut self, now: Time, event: Event) {
        Node::handle(self, now, event);
    }
    fn received(&mut self, now: Time, link: LinkId, bytes: &[u8]) {
        Node::received(self, now, link, bytes);
    }
    fn poll(&mut self) -> Option<Effect> {
        Node::poll(self)
    }
    fn next_wake(&self) -> Time {
        Node::next_wake(self)
    }
    fn recycle(&mut self, buffer: Vec<u8>) {
        Node::recycle(self, buffer);
    }
    fn verification(&self, request: RequestId) -> Option<VerifyState> {
        self.verify(request).cloned()
    }
    fn drives(&self) -> Vec<DriveView> {
        self.drive_views()
    }
    fn attaching(&self) -> Vec<SeatView> {
        self.seats_attaching()
    }
}
