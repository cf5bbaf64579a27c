//! A blocking NBD client over a unix or TCP socket: one call at a time, or many requests in flight.
//!
//! Owns the socket and its buffers; the protocol is `nbd::client`. After an error other than `Error::Request`
//! the connection is of no more use.

use crate::uri::{Address, Uri};
use nbd::client::{Broken, Command, Event, Extent, Goal, Negotiated, Outcome, Wish};
use nbd::{Errno, Mode};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Received at once, bytes.
const RECEIVE: usize = 256 << 10;
/// A write to the socket that makes no progress for so long lets replies be read meanwhile.
const WRITE_PATIENCE: Duration = Duration::from_millis(5);
/// Longest read or write that the simple calls send as one request, bytes.
const REQUEST: usize = 8 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("no answer in time")]
    Timeout,
    #[error("the server refuses the export: {message} (NBD reply {code:#x})")]
    Refused { code: u32, message: String },
    #[error("the server breaks the protocol: {0}")]
    Broken(Broken),
    /// One request failed; the connection is good.
    #[error("the request failed: {0}")]
    Request(Errno),
}

/// A completed request: its cookie, and what came of it.
pub type Completion = (u64, Result<Outcome, Errno>);

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn connect(address: &Address, timeout: Duration) -> io::Result<Stream> {
        match address {
            Address::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path)?)),
            Address::Tcp(host) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
                for address in host.to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, timeout) {
                        Ok(s) => {
                            s.set_nodelay(true)?;
                            return Ok(Stream::Tcp(s));
                        }
                        Err(e) => last = e,
                    }
                }
                Err(last)
            }
        }
    }
    fn set_read_timeout(&self, t: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Unix(s) => s.set_read_timeout(t),
            Stream::Tcp(s) => s.set_read_timeout(t),
        }
    }
    fn set_write_timeout(&self, t: Option<Duration>) -> io::Result<()> {
        match self {
            Stream::Unix(s) => s.set_write_timeout(t),
            Stream::Tcp(s) => s.set_write_timeout(t),
        }
    }
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(s) => s.read(buffer),
            Stream::Tcp(s) => s.read(buffer),
        }
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(s) => s.write(bytes),
            Stream::Tcp(s) => s.write(bytes),
        }
    }
}

/// What a connection asks for.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// For connecting and the handshake; a server may let a client wait for an export that is being freed.
    pub handshake: Duration,
    /// For each of the simple calls.
    pub request: Duration,
    pub mode: Mode,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            handshake: Duration::from_secs(15),
            request: Duration::from_secs(60),
            mode: Mode::Extended,
        }
    }
}

/// A connection to an export.
pub struct Client {
    stream: Stream,
    machine: nbd::client::Client,
    negotiated: Negotiated,
    settings: Settings,
    /// Bytes to send, from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
    incoming: Vec<u8>,
    /// The socket's present timeout: setting it costs a system call.
    read_timeout: Option<Duration>,
    /// Completions that came while another was waited for.
    early: BTreeMap<u64, Result<Outcome, Errno>>,
}

impl Client {
    /// Connects and enters the export.
    pub fn connect(uri: &Uri, settings: Settings) -> Result<Client, Error> {
        Client::with_context(uri, settings, nbd::wire::allocation::NAME)
    }

    /// Connects and enters the export; `map` then tells this meta context, if `negotiated` has it.
    pub fn with_context(uri: &Uri, settings: Settings, context: &str) -> Result<Client, Error> {
        let stream = Stream::connect(&uri.address, settings.handshake)?;
        stream.set_write_timeout(Some(WRITE_PATIENCE))?;
        let wish = Wish {
            export: uri.export.clone(),
            goal: Goal::Go,
            mode: settings.mode,
            context: Some(context.into()),
        };
        let negotiated = Negotiated {
            mode: Mode::Simple,
            size: 0,
            flags: 0,
            blocks: None,
            description: None,
            context: None,
        };
        let mut client = Client {
            stream,
            machine: nbd::client::Client::new(wish),
            negotiated,
            settings,
            outgoing: Vec::new(),
            sent: 0,
            incoming: vec![0; RECEIVE],
            read_timeout: None,
            early: BTreeMap::new(),
        };
        client.enter()?;
        Ok(client)
    }

    fn enter(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + self.settings.handshake;
        loop {
            self.send()?;
            match self.machine.poll() {
                Some(Event::Ready(negotiated)) => {
                    self.negotiated = negotiated;
                    return Ok(());
                }
                Some(Event::Refused { code, message }) => return Err(Error::Refused { code, message }),
                Some(Event::Broken(b)) => return Err(Error::Broken(b)),
                Some(other) => unreachable!("not an answer to GO: {other:?}"),
                None if !self.receive(deadline)? => return Err(Error::Timeout),
                None => {}
            }
        }
    }

    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }
    /// Of the export, bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.negotiated.size
    }

    /// Reads once, if anything comes before the deadline.
    fn receive(&mut self, deadline: Instant) -> Result<bool, Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        // In coarse steps, so that the timeout seldom changes. The caller asks again.
        let step = if left > Duration::from_secs(1) { Duration::from_secs(1) } else { left };
        if self.read_timeout != Some(step) {
            self.stream.set_read_timeout(Some(step))?;
            self.read_timeout = Some(step);
        }
        loop {
            match self.stream.read(&mut self.incoming) {
                Ok(0) => return Err(Error::Closed),
                Ok(n) => {
                    self.machine.receive(&self.incoming[..n]);
                    return Ok(true);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if waited(&e) => return Ok(Instant::now() < deadline),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Puts a request into the buffer; `send` sends it, its cookie comes back by `next`.
    pub fn submit(&mut self, command: Command<'_>) -> u64 {
        self.machine.submit(command)
    }

    /// Requests without a completion.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.machine.in_flight()
    }

    /// Sends everything submitted. A server that waits for its replies to be read gets them read.
    pub fn send(&mut self) -> Result<(), Error> {
        self.machine.write_output(&mut self.outgoing);
        while self.sent < self.outgoing.len() {
            match self.stream.write(&self.outgoing[self.sent..]) {
                Ok(0) => return Err(Error::Closed),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if waited(&e) => {
                    // All that comes: the server will read again when its replies are out.
                    while self.receive(Instant::now() + Duration::from_millis(2))? {}
                }
                Err(e) => return Err(e.into()),
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(())
    }

    /// The next completion; `None` if none comes before the deadline.
    pub fn next(&mut self, deadline: Instant) -> Result<Option<Completion>, Error> {
        if let Some(first) = self.early.pop_first() {
            return Ok(Some(first));
        }
        loop {
            if let Some(completion) = self.polled()? {
                return Ok(Some(completion));
            }
            if !self.receive(deadline)? {
                return Ok(None);
            }
        }
    }

    /// A completion that has already been received.
    pub fn ready(&mut self) -> Result<Option<Completion>, Error> {
        if let Some(first) = self.early.pop_first() {
            return Ok(Some(first));
        }
        self.polled()
    }

    fn polled(&mut self) -> Result<Option<Completion>, Error> {
        match self.machine.poll() {
            Some(Event::Completed { cookie, result }) => Ok(Some((cookie, result))),
            Some(Event::Broken(b)) => Err(Error::Broken(b)),
            Some(other) => unreachable!("the handshake is over: {other:?}"),
            None => Ok(None),
        }
    }

    /// Sends one request and waits for it; other completions are kept for `next`.
    pub fn call(&mut self, command: Command<'_>) -> Result<Outcome, Error> {
        let cookie = self.submit(command);
        self.send()?;
        let deadline = Instant::now() + self.settings.request;
        loop {
            while let Some((c, result)) = self.polled()? {
                if c == cookie {
                    return result.map_err(Error::Request);
                }
                self.early.insert(c, result);
            }
            if !self.receive(deadline)? {
                return Err(Error::Timeout);
            }
        }
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let mut data = Vec::with_capacity(len);
        while data.len() < len {
            let n = u32::try_from((len - data.len()).min(REQUEST)).expect("REQUEST fits");
            let at = offset + data.len() as u64;
            match self.call(Command::Read { offset: at, len: n, whole: false })? {
                Outcome::Read(part) if data.is_empty() => data = part,
                Outcome::Read(part) => data.extend_from_slice(&part),
                other => unreachable!("a read gives data: {other:?}"),
            }
        }
        Ok(data)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let mut at = offset;
        for part in data.chunks(REQUEST) {
            self.call(Command::Write { offset: at, data: part, fua: false })?;
            at += part.len() as u64;
        }
        Ok(())
    }

    pub fn flush(&mut self) -> Result<(), Error> {
        self.call(Command::Flush).map(|_| ())
    }

    /// Where there is data. Lengths as long as the server's mode has bits for are asked for at once.
    pub fn map(&mut self, offset: u64, len: u64) -> Result<Vec<Extent>, Error> {
        let most = if self.negotiated.mode == Mode::Extended { u64::MAX } else { 1 << 31 };
        let (mut at, end) = (offset, offset + len);
        let mut all: Vec<Extent> = Vec::new();
        while at < end {
            let ask = (end - at).min(most);
            let Outcome::Status(extents) = self.call(Command::Status { offset: at, len: ask, one: false })?
            else {
                unreachable!("a status gives extents")
            };
            for e in extents {
                let len = e.len.min(end - at);
                at += len;
                match all.last_mut() {
                    Some(last) if last.flags == e.flags => last.len += len,
                    _ if len > 0 => all.push(Extent { len, ..e }),
                    _ => {}
                }
            }
        }
        Ok(all)
    }

    /// The polite end. Errors do not matter any more.
    pub fn disconnect(mut self) {
        self.machine.disconnect();
        let _sent = self.send();
    }
}

/// The socket's timeout ran out.
fn waited(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
