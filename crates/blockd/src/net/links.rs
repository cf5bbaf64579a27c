//! Connections between nodes: dials, accepts, bytes in and out. What they mean is the node's business.
//!
//! The node numbers the links it dials; those accepted get numbers with the top bit set.

use super::{Stream, Way};
use crate::ring::{Address, Errno, Ring};
use crate::shard::Tag;
use crate::sys;
use node::{Event, LinkId};
use proto::Map;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// A peer that leaves so much unread is not slow but stuck: its link is closed. Bytes.
const UNSENT_MAX: usize = 256 << 20;
const ACCEPTED: u64 = 1 << 63;

struct Link {
    stream: Stream,
    up: bool,
    dirty: bool,
}

#[derive(Default)]
pub struct Links {
    links: Map<LinkId, Link>,
    dirty: Vec<LinkId>,
    accepted: u64,
    /// Buffers of what has been sent, for the node.
    pub spent: Vec<Vec<u8>>,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Links {
    /// A peer has connected to us.
    pub fn accept(&mut self, ring: &mut Ring<Tag>, socket: OwnedFd) -> Event {
        prepare(&socket);
        let link = LinkId(ACCEPTED | self.accepted);
        self.accepted += 1;
        let mut stream = Stream::new(ring.add(socket));
        stream.receive(ring, Tag::Link(link, Way::Receive));
        self.links.insert(link, Link { stream, up: true, dirty: false });
        Event::Accepted { link }
    }

    /// Connects. If that fails at once the event says so.
    pub fn dial(&mut self, ring: &mut Ring<Tag>, link: LinkId, address: SocketAddr) -> Option<Event> {
        assert_eq!(link.0 & ACCEPTED, 0, "the top bit is the edge's");
        let socket = match sys::tcp_socket(address) {
            Ok(s) => s,
            Err(error) => {
                tracing::warn!(%address, %error, "no socket for a link");
                return Some(Event::LinkClosed { link });
            }
        };
        prepare(&socket);
        let fd = ring.add(socket);
        ring.connect(fd, Address::of(address), Tag::Link(link, Way::Connect));
        self.links.insert(link, Link { stream: Stream::new(fd), up: false, dirty: false });
        None
    }

    pub fn connected(
        &mut self,
        ring: &mut Ring<Tag>,
        link: LinkId,
        result: Result<(), Errno>,
    ) -> Option<Event> {
        let l = self.links.get_mut(&link)?;
        if let Err(errno) = result {
            tracing::debug!(link = link.0, error = %std::io::Error::from_raw_os_error(errno), "dial failed");
            return self.lost(ring, link);
        }
        l.up = true;
        l.stream.receive(ring, Tag::Link(link, Way::Receive));
        Some(Event::Dialled { link })
    }

    /// True if the bytes are for a link that is still there; then `again` must follow.
    pub fn received(&mut self, link: LinkId, n: usize) -> bool {
        let Some(l) = self.links.get_mut(&link) else { return false };
        l.stream.received();
        self.bytes_in += n as u64;
        true
    }

    /// The received bytes have been handed in: receive more.
    pub fn again(&mut self, ring: &mut Ring<Tag>, link: LinkId, buf: Vec<u8>) {
        if let Some(l) = self.links.get_mut(&link) {
            l.stream.reuse(buf);
            l.stream.receive(ring, Tag::Link(link, Way::Receive));
        }
    }

    /// Queues bytes; they go out at the turn's end. An event, if the link is given up for it.
    pub fn send(&mut self, ring: &mut Ring<Tag>, link: LinkId, bytes: Vec<u8>) -> Option<Event> {
        let l = self.links.get_mut(&link)?;
        self.bytes_out += bytes.len() as u64;
        l.stream.out().push(bytes);
        if l.stream.out().len() > UNSENT_MAX {
            tracing::warn!(link = link.0, unsent = UNSENT_MAX, "the peer does not read: link closed");
            return self.lost(ring, link);
        }
        if !std::mem::replace(&mut l.dirty, true) {
            self.dirty.push(link);
        }
        None
    }

    /// A send is over; what has come up meanwhile goes out next.
    pub fn sent(&mut self, ring: &mut Ring<Tag>, link: LinkId, result: Result<(), Errno>) -> Option<Event> {
        let l = self.links.get_mut(&link)?;
        l.stream.sent();
        if result.is_err() {
            return self.lost(ring, link);
        }
        self.push(ring, link)
    }

    /// One send for every link with output and none in flight. Events of links that turn out to be gone.
    pub fn flush(&mut self, ring: &mut Ring<Tag>, events: &mut VecDeque<Event>) {
        while let Some(link) = self.dirty.pop() {
            if let Some(l) = self.links.get_mut(&link) {
                l.dirty = false;
                if l.up {
                    events.extend(self.push(ring, link));
                }
            }
        }
    }
    fn push(&mut self, ring: &mut Ring<Tag>, link: LinkId) -> Option<Event> {
        let l = self.links.get_mut(&link)?;
        let (result, out) = l.stream.flush(ring, Tag::Link(link, Way::Send))?;
        self.spent.extend(out.into_buffers());
        if result.is_err() { self.lost(ring, link) } else { None }
    }

    /// The connection is gone: says so once.
    pub fn lost(&mut self, ring: &mut Ring<Tag>, link: LinkId) -> Option<Event> {
        self.close(ring, link).then_some(Event::LinkClosed { link })
    }

    /// The node wants it closed. False if it was gone already.
    pub fn close(&mut self, ring: &mut Ring<Tag>, link: LinkId) -> bool {
        match self.links.remove(&link) {
            Some(l) => {
                ring.close(l.stream.fd());
                true
            }
            None => false,
        }
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.links.len()
    }
}

/// Without these a link works too, only slower: failures are not worth more than a line.
fn prepare(socket: &OwnedFd) {
    if let Err(error) = sys::no_delay(socket) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
}
