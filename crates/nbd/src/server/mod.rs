//! The server's end of one connection. It opens nothing and knows no volume: what it cannot know it asks.
//!
//! The owner's loop: while `wants_input()`, `receive` what came, and offer again later what was not taken;
//! `poll` the questions and answer them, in any order for requests; take the output when the socket can take
//! it (not earlier: output not taken is what holds a client back that does not read); when `finished()` and
//! the output is sent, close the socket.

mod handshake;
mod option;
mod reply;
mod request;
mod transmission;

use crate::export::Export;
use crate::output::{Output, Piece};
use crate::wire::Errno;
use handshake::{Handshake, Step};
use proto::message::Run;
use proto::{Generation, Payload};
use std::collections::VecDeque;
use transmission::Transmission;

/// A request on its connection: must be completed exactly once. Never reused on a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// What the machine wants of its owner.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Which exports are there? `answer_list`.
    List,
    /// What is this export? `answer_export`. `open`: the client enters it; if the answer is a success the
    /// export is open until this connection ends. Otherwise nothing is opened.
    Export { name: String, open: bool },
    /// Which generations did these snapshots of the export's volume seal? `answer_contexts`.
    Contexts { name: String, since: Vec<String> },
    /// `done`, `read_done`, `status_done` or `fail`.
    Request { id: RequestId, op: Op },
}

/// A guest's operation. Field by field the volume's `GuestOp`; aligned to 512 bytes, within the export,
/// length > 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    Read {
        offset: u64,
        len: u32,
    },
    /// `data` is whole blocks; the first byte lies at `offset % 4096`. What lies around means nothing.
    Write {
        offset: u64,
        len: u32,
        data: Payload,
        fua: bool,
    },
    Flush,
    Discard {
        offset: u64,
        len: u64,
        fua: bool,
    },
    WriteZeroes {
        offset: u64,
        len: u64,
        fua: bool,
        no_hole: bool,
    },
    Map {
        offset: u64,
        len: u64,
    },
    /// Which blocks were written or discarded in a generation above `since`? Answered as a map: absent did not change.
    Changes {
        offset: u64,
        len: u64,
        since: Generation,
    },
}

/// A piece of what a read returns, in order.
#[derive(Clone, Debug)]
pub enum ReadPiece {
    Zero {
        bytes: u32,
    },
    /// `len` bytes from `skip` bytes into the payload.
    Data {
        payload: Payload,
        skip: u32,
        len: u32,
    },
}

/// An export in a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    pub name: String,
    /// For people; may be empty.
    pub description: String,
}

/// Why an export is not to be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalKind {
    /// No such export.
    Unknown,
    /// It is there, but not for this client now: held elsewhere, not ready, not listed to anyone.
    Policy,
    Shutdown,
}

/// A refusal and what to tell the client's user; at most 4,096 bytes of it are sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    pub kind: RefusalKind,
    pub message: String,
}

/// Why a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Close {
    /// NBD_OPT_ABORT.
    Aborted,
    /// NBD_CMD_DISC.
    Disconnected,
    /// The server goes. What it has not answered the client asks again, of the next one: a pause, not an error.
    Drained,
    /// EXPORT_NAME could not be served; the protocol has no other answer.
    Refused,
    /// The client broke the protocol where it cannot be mended.
    Violation(Violation),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    #[error("unknown client flags {0:#x}")]
    ClientFlags(u32),
    #[error("an option without its magic number")]
    OptionMagic,
    #[error("a bad EXPORT_NAME")]
    ExportName,
    #[error("a request without its magic number")]
    RequestMagic,
    #[error("a payload of {0} bytes")]
    PayloadLength(u64),
}

enum Phase {
    Handshake(Handshake),
    Transmission(Box<Transmission>),
    /// Ended in the handshake.
    Over,
}

/// One connection.
pub struct Server {
    phase: Phase,
    out: Output,
    asks: VecDeque<Ask>,
    closing: Option<Close>,
    draining: bool,
}

impl Default for Server {
    fn default() -> Server {
        Server::new()
    }
}

impl Server {
    /// A client has connected; the greeting is in the output.
    #[must_use]
    pub fn new() -> Server {
        let mut out = Output::default();
        let handshake = Handshake::new(&mut out);
        Server {
            phase: Phase::Handshake(handshake),
            out,
            asks: VecDeque::new(),
            closing: None,
            draining: false,
        }
    }

    /// False while a question is open in the handshake, while the credit is used up, and after the end.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.closing.is_none()
            && match &self.phase {
                Phase::Handshake(h) => h.wants_input(&self.out),
                Phase::Transmission(t) => t.wants_input(&self.out),
                Phase::Over => false,
            }
    }

    /// Takes bytes from the front of `input`; returns how many. What is left is to be offered again, before
    /// anything newer, once `wants_input()`.
    pub fn receive(&mut self, input: &[u8]) -> usize {
        let mut rest = input;
        while !rest.is_empty() && self.wants_input() {
            self.step(&mut rest);
        }
        input.len() - rest.len()
    }

    fn step(&mut self, rest: &mut &[u8]) {
        match &mut self.phase {
            Phase::Handshake(h) => {
                let step = h.step(rest, &mut self.out, &mut self.asks);
                self.take_step(step);
            }
            Phase::Transmission(t) => {
                if let Some(close) = t.step(rest, &mut self.out, &mut self.asks) {
                    t.close();
                    self.closing = Some(close);
                }
            }
            Phase::Over => {}
        }
    }

    fn take_step(&mut self, step: Step) {
        match step {
            Step::Continue => {}
            Step::Transmission(agreed) => {
                self.phase = Phase::Transmission(Box::new(Transmission::new(agreed)));
                if self.draining {
                    self.hang_up();
                }
            }
            Step::Close(close) => {
                self.phase = Phase::Over;
                self.closing = Some(close);
            }
        }
    }

    /// The next question.
    pub fn poll(&mut self) -> Option<Ask> {
        self.asks.pop_front()
    }

    /// Answers `Ask::List`.
    pub fn answer_list(&mut self, answer: Result<Vec<Listed>, Refused>) {
        let Phase::Handshake(h) = &mut self.phase else { panic!("no list was asked for") };
        h.answer_list(answer, &mut self.out);
    }

    /// Answers `Ask::Export`.
    pub fn answer_export(&mut self, answer: Result<Export, Refused>) {
        let Phase::Handshake(h) = &mut self.phase else { panic!("no export was asked for") };
        let step = h.answer_export(answer, &mut self.out);
        self.take_step(step);
    }

    /// Answers `Ask::Contexts`: the generation that each snapshot sealed; none: there is no such snapshot, or it is of
    /// another line of history.
    pub fn answer_contexts(&mut self, answer: Result<Vec<Option<Generation>>, Refused>) {
        let Phase::Handshake(h) = &mut self.phase else { panic!("no contexts were asked for") };
        h.answer_contexts(answer, &mut self.out);
    }

    /// Completes a write, flush, discard or write of zeroes.
    pub fn done(&mut self, id: RequestId) {
        let (t, out) = self.transmission();
        t.done(id, out);
    }

    /// Completes a read with pieces that cover it.
    pub fn read_done(&mut self, id: RequestId, pieces: impl IntoIterator<Item = ReadPiece>) {
        let (t, out) = self.transmission();
        t.read_done(id, pieces.into_iter(), out);
    }

    /// Completes a map with runs from the block in which it begins. May cover less than was asked for, not
    /// nothing.
    pub fn status_done(&mut self, id: RequestId, runs: &[Run]) {
        let Phase::Transmission(t) = &mut self.phase else {
            panic!("a status on a connection without requests")
        };
        t.status_done(id, runs, &mut self.out, &mut self.asks);
    }

    /// Completes any request with an error; `why` reaches clients that negotiated structured replies.
    pub fn fail(&mut self, id: RequestId, errno: Errno, why: &str) {
        let (t, out) = self.transmission();
        t.fail(id, errno, why, out);
    }

    /// Nobody will answer this request: the connection ends after what is answered, so that the client asks again.
    pub fn forsake(&mut self, id: RequestId) {
        let (t, _) = self.transmission();
        t.forsake(id);
        self.hang_up();
    }

    fn hang_up(&mut self) {
        if let Phase::Transmission(t) = &mut self.phase {
            t.close();
            self.closing.get_or_insert(Close::Drained);
        }
    }

    fn transmission(&mut self) -> (&mut Transmission, &mut Output) {
        match &mut self.phase {
            Phase::Transmission(t) => (t, &mut self.out),
            _ => panic!("a completion on a connection without requests"),
        }
    }

    /// The export grew. The client learns of it by connecting anew; requests beyond the old end are served.
    pub fn resized(&mut self, size: u64) {
        if let Phase::Transmission(t) = &mut self.phase {
            t.resize(size);
        }
    }

    /// Takes no further request until it goes on: one that is half received still.
    pub fn pause(&mut self, paused: bool) {
        if let Phase::Transmission(t) = &mut self.phase {
            t.pause(paused);
        }
    }

    /// In transmission, with everything answered that was taken.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(&self.phase, Phase::Transmission(t) if t.is_idle())
    }

    /// Takes no more requests, and refuses options; the connection ends when what is in flight is answered. (An error
    /// would reach the guest: clients that connect again by themselves do so for a lost connection only.)
    pub fn drain(&mut self) {
        self.draining = true;
        match &mut self.phase {
            Phase::Handshake(h) => h.drain(),
            Phase::Transmission(_) => self.hang_up(),
            Phase::Over => {}
        }
    }

    /// The export that this connection has open.
    #[must_use]
    pub fn export(&self) -> Option<&Export> {
        match &self.phase {
            Phase::Transmission(t) => Some(t.export()),
            _ => None,
        }
    }

    /// Requests handed out and not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        match &self.phase {
            Phase::Transmission(t) => t.in_flight(),
            _ => 0,
        }
    }

    /// Nothing more will come out than is in the output now: send it, then close the socket.
    #[must_use]
    pub fn finished(&self) -> Option<Close> {
        self.closing.filter(|_| self.in_flight() == 0)
    }

    /// Bytes waiting to be taken.
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.out.len()
    }

    /// The next piece of output. What was taken no longer counts against the client's credit.
    pub fn poll_output(&mut self) -> Option<Piece> {
        self.out.poll()
    }

    /// Gives a buffer of `Piece::Bytes` back for reuse.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.out.recycle(buffer);
    }

    /// All output, copied to the end of `out`.
    pub fn write_output(&mut self, out: &mut Vec<u8>) {
        self.out.drain_into(out);
    }
}
