//! One connected socket: at most one receive and one send in flight, large ones.

use crate::ring::{Errno, Fd, Outgoing, Ring, Sent};

/// One receive takes so much: many frames by one system call.
const RECEIVE: usize = 256 << 10;

pub struct Stream {
    fd: Fd,
    /// The receive buffer, while no receive is in flight.
    buf: Option<Vec<u8>>,
    receiving: bool,
    out: Outgoing,
    sending: bool,
}

impl Stream {
    #[must_use]
    pub fn new(fd: Fd) -> Stream {
        Stream { fd, buf: None, receiving: false, out: Outgoing::default(), sending: false }
    }

    #[must_use]
    pub fn fd(&self) -> Fd {
        self.fd
    }

    /// Begins a receive if none is in flight.
    pub fn receive<T>(&mut self, ring: &mut Ring<T>, tag: T) {
        if !self.receiving {
            self.receiving = true;
            let buf = self.buf.take().unwrap_or_else(|| vec![0; RECEIVE]);
            ring.recv(self.fd, buf, tag);
        }
    }

    /// The receive is over; its buffer is to be given back by `reuse`.
    pub fn received(&mut self) {
        assert!(self.receiving, "one receive, one completion");
        self.receiving = false;
    }

    pub fn reuse(&mut self, buf: Vec<u8>) {
        self.buf = Some(buf);
    }

    /// Where output is appended.
    pub fn out(&mut self) -> &mut Outgoing {
        &mut self.out
    }

    #[must_use]
    pub fn is_sending(&self) -> bool {
        self.sending
    }

    /// Sends all output, if no send is in flight. What went out at once (or failed at once) comes back.
    pub fn flush<T>(&mut self, ring: &mut Ring<T>, tag: T) -> Option<(Result<(), Errno>, Outgoing)> {
        if self.sending || self.out.is_empty() {
            return None;
        }
        match ring.send(self.fd, std::mem::take(&mut self.out), tag) {
            Sent::Now(result, out) => Some((result, out)),
            Sent::Later => {
                self.sending = true;
                None
            }
        }
    }

    /// The send is over.
    pub fn sent(&mut self) {
        assert!(self.sending, "one send, one completion");
        self.sending = false;
    }
}
