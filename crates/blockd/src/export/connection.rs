//! One guest's connection: its server machine, its socket, and input that the machine does not want yet.

use crate::net::Stream;
use crate::ring::{Fd, Outgoing, Ring};
use crate::shard::Tag;
use nbd::{Piece, Server};
use proto::{BranchId, ExportId, PageBuf, Payload};
use std::sync::OnceLock;

/// Bytes of one send; what else there is waits in the machine, where it counts against the client's credit.
const SEND_MAX: usize = 4 << 20;

pub(super) struct Connection {
    pub server: Server,
    stream: Stream,
    /// Received, not yet taken by the machine: the buffer, and what part of it.
    rest: Option<(Vec<u8>, usize, usize)>,
    /// The volume that it entered, or waits for.
    pub name: Option<String>,
    /// Once open.
    pub export: Option<ExportId>,
    /// Branches that contexts of changes which it was offered are of.
    pub compared: Vec<BranchId>,
    /// In the list of connections to be flushed.
    pub dirty: bool,
    /// Was answered: may want input again.
    pub resume: bool,
    /// Its client is to connect anew: paused until all is answered that was asked.
    pub leaves: bool,
}

impl Connection {
    pub fn new(fd: Fd) -> Connection {
        Connection {
            server: Server::new(),
            stream: Stream::new(fd),
            rest: None,
            name: None,
            export: None,
            compared: Vec::new(),
            dirty: false,
            resume: false,
            leaves: false,
        }
    }

    pub fn fd(&self) -> Fd {
        self.stream.fd()
    }

    pub fn received(&mut self, buf: Vec<u8>, n: usize) {
        self.stream.received();
        self.rest = Some((buf, 0, n));
    }

    /// Offers the machine what was received; true if it took anything.
    pub fn offer(&mut self) -> bool {
        let Some((buf, from, to)) = &mut self.rest else { return false };
        let taken = self.server.receive(&buf[*from..*to]);
        *from += taken;
        if from == to
            && let Some((buf, ..)) = self.rest.take()
        {
            self.stream.reuse(buf);
        }
        taken > 0
    }

    /// Receives more, if the machine has taken everything and wants more.
    pub fn receive(&mut self, ring: &mut Ring<Tag>, tag: Tag) {
        if self.rest.is_none() && self.server.wants_input() {
            self.stream.receive(ring, tag);
        }
    }

    /// Takes what the machine has to say, if no send is in flight: it counts against its credit no longer.
    pub fn collect(&mut self) {
        if self.stream.is_sending() {
            return;
        }
        let out = self.stream.out();
        while out.len() < SEND_MAX {
            match self.server.poll_output() {
                None => break,
                Some(Piece::Bytes(b)) => out.push(b),
                Some(Piece::Data { payload, skip, len }) => out.payload(payload, skip, len),
                Some(Piece::Zeroes { len }) => zeroes(out, len),
            }
        }
    }

    /// Sends that, if nothing is in flight; again, as long as all of it goes out at once. False if the client is gone.
    pub fn flush(&mut self, ring: &mut Ring<Tag>, tag: Tag) -> bool {
        self.collect();
        while let Some((result, out)) = self.stream.flush(ring, tag) {
            self.recycle(out);
            if result.is_err() {
                return false;
            }
            self.collect();
        }
        true
    }

    /// A send that was in flight is over.
    pub fn sent(&mut self, out: Outgoing) {
        self.stream.sent();
        self.recycle(out);
    }
    fn recycle(&mut self, out: Outgoing) {
        for buffer in out.into_buffers() {
            self.server.recycle(buffer);
        }
    }

    /// Holds input that the machine may take now.
    pub fn holds_input(&self) -> bool {
        self.rest.is_some() && self.server.wants_input()
    }

    /// Nothing is left to be said.
    pub fn is_quiet(&self) -> bool {
        !self.stream.is_sending() && self.server.output_len() == 0
    }

    /// Its client is to connect anew, and misses no answer.
    pub fn may_leave(&self) -> bool {
        self.leaves && self.server.is_idle() && self.is_quiet()
    }

    /// The machine has ended and everything it said is sent.
    pub fn is_over(&self) -> bool {
        self.server.finished().is_some() && self.is_quiet()
    }
}

/// Zeroes by pointing at the same page again and again, once they are many.
fn zeroes(out: &mut Outgoing, mut len: usize) {
    static ZEROES: OnceLock<Payload> = OnceLock::new();
    let page = ZEROES.get_or_init(|| PageBuf::zeroed(64).freeze());
    while len > 0 {
        let n = len.min(page.len());
        out.payload(page.clone(), 0, n);
        len -= n;
    }
}
