//! The client's end of one connection, for our own tools and tests.
//!
//! The owner's loop: `receive` what came (all of it is taken), `poll` the events, send the output. It trusts
//! the server with nothing but its data: replies that break the protocol end in `Event::Broken`.

mod handshake;
mod transmission;

use crate::output::{Output, Piece};
use crate::server::Listed;
use crate::wire::{BlockSizes, Errno, Mode, opt};
use handshake::{Handshake, Step};
use std::collections::VecDeque;
use transmission::Transmission;

/// What to connect for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Goal {
    /// Use the export.
    Go,
    /// Use it, by the oldest option.
    ExportName,
    /// Only ask about it.
    Info,
    /// Only ask which exports there are.
    List,
    /// Only ask which meta contexts the export has.
    ListContexts,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    pub export: String,
    pub goal: Goal,
    /// The most to be negotiated; a server that has less is accepted.
    pub mode: Mode,
    /// Ask for this meta context, `base:allocation` or `blockd:changed:SNAPSHOT` (needs structured replies).
    pub context: Option<String>,
}

/// What the server said of the export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Negotiated {
    pub mode: Mode,
    /// Bytes.
    pub size: u64,
    /// Transmission flags, `wire::tflag`.
    pub flags: u16,
    pub blocks: Option<BlockSizes>,
    pub description: Option<String>,
    /// Id of the context that was wished for, if the server has it.
    pub context: Option<u32>,
}

/// A run of one state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Bytes.
    pub len: u64,
    /// `wire::allocation`, or `wire::changed`.
    pub flags: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Done,
    Read(Vec<u8>),
    Status(Vec<Extent>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The transmission phase has begun.
    Ready(Negotiated),
    /// Answers of the goals that only ask; `abort` is the polite end.
    Info(Negotiated),
    Listed(Vec<Listed>),
    Contexts(Vec<String>),
    /// The server refused the goal.
    Refused {
        code: u32,
        message: String,
    },
    Completed {
        cookie: u64,
        result: Result<Outcome, Errno>,
    },
    /// The server broke the protocol; nothing more comes.
    Broken(Broken),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Broken {
    #[error("not a newstyle NBD server")]
    Greeting,
    #[error("a bad reply to option {0}")]
    OptionReply(u32),
    #[error("a reply without a known magic number: {0:#x}")]
    ReplyMagic(u32),
    #[error("a reply to cookie {0}, which is not waited for")]
    Cookie(u64),
    #[error("a chunk of type {kind} and {len} bytes that fits no request of ours")]
    Chunk { kind: u16, len: u64 },
    #[error("the reply to cookie {0} lacks data")]
    Incomplete(u64),
}

/// A request. Offsets and lengths in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command<'a> {
    /// `whole`: in one chunk.
    Read {
        offset: u64,
        len: u32,
        whole: bool,
    },
    Write {
        offset: u64,
        data: &'a [u8],
        fua: bool,
    },
    Flush,
    Trim {
        offset: u64,
        len: u64,
        fua: bool,
    },
    WriteZeroes {
        offset: u64,
        len: u64,
        fua: bool,
        no_hole: bool,
        fast: bool,
    },
    Cache {
        offset: u64,
        len: u64,
    },
    /// `one`: only the first run.
    Status {
        offset: u64,
        len: u64,
        one: bool,
    },
}

enum Phase {
    Handshake(Box<Handshake>),
    Transmission(Box<Transmission>),
    Over,
}

/// One connection.
pub struct Client {
    phase: Phase,
    out: Output,
    events: VecDeque<Event>,
}

impl Client {
    #[must_use]
    pub fn new(wish: Wish) -> Client {
        Client {
            phase: Phase::Handshake(Box::new(Handshake::new(wish))),
            out: Output::default(),
            events: VecDeque::new(),
        }
    }

    /// Takes all of `input`.
    pub fn receive(&mut self, input: &[u8]) {
        let mut rest = input;
        while !rest.is_empty() {
            match &mut self.phase {
                Phase::Handshake(h) => match h.step(&mut rest, &mut self.out) {
                    Step::Continue => {}
                    Step::Answered(event) => {
                        self.phase = Phase::Over;
                        self.events.push_back(event);
                    }
                    Step::Ready(negotiated) => {
                        self.phase = Phase::Transmission(Box::new(Transmission::new(&negotiated)));
                        self.events.push_back(Event::Ready(negotiated));
                    }
                },
                Phase::Transmission(t) => {
                    if let Err(broken) = t.step(&mut rest, &mut self.events) {
                        self.phase = Phase::Over;
                        self.events.push_back(Event::Broken(broken));
                    }
                }
                Phase::Over => return,
            }
        }
    }

    /// Sends a request; the cookie comes back with its completion. Panics before `Event::Ready`; after
    /// `Event::Broken` nothing is sent and no completion comes.
    pub fn submit(&mut self, command: Command<'_>) -> u64 {
        match &mut self.phase {
            Phase::Transmission(t) => t.submit(command, &mut self.out),
            Phase::Handshake(_) => panic!("a request before the handshake is done"),
            Phase::Over => 0,
        }
    }

    /// Requests without a completion.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        match &self.phase {
            Phase::Transmission(t) => t.in_flight(),
            _ => 0,
        }
    }

    /// The polite end: NBD_CMD_DISC, or NBD_OPT_ABORT if there is no transmission.
    pub fn disconnect(&mut self) {
        match &mut self.phase {
            Phase::Transmission(t) => t.disconnect(&mut self.out),
            _ => handshake::send_option(&mut self.out, opt::ABORT, &[]),
        }
    }

    pub fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub fn poll_output(&mut self) -> Option<Piece> {
        self.out.poll()
    }

    /// All output, copied to the end of `out`.
    pub fn write_output(&mut self, out: &mut Vec<u8>) {
        self.out.drain_into(out);
    }
}
