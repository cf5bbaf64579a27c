//! The server's half of the newstyle handshake: one option at a time, in sync whatever the client sends.
//!
//! Invariants: while a question is with the owner no input is read; no option holds more memory than
//! `OPTION_MAX`; every option but EXPORT_NAME gets exactly one final reply.

use super::option::{InfoRequest, Malformed, MetaRequest, parse_info, parse_meta};
use super::{Ask, Close, Listed, RefusalKind, Refused, Violation};
use crate::export::{BLOCK_SIZES, Export};
use crate::gather::{Gather, discard};
use crate::output::Output;
use crate::wire::{
    self, Mode, OPTION_LEN, Reader, STRING_MAX, ZEROES, allocation, changed, hello, info, opt, rep,
};
use proto::Generation;
use std::collections::VecDeque;

/// Most data of one option that is looked at, bytes: a longest name and more queries than anyone has.
const OPTION_MAX: u32 = 64 << 10;
/// Replies that wait to be sent stop the reading of options from here on, bytes: a client that only asks and
/// never listens costs no more than this and one list.
const REPLIES_MAX: usize = 64 << 10;
/// Id of `base:allocation`; those of `blockd:changed:` follow it.
const ALLOCATION_ID: u32 = 1;

/// A context that was selected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Context {
    pub id: u32,
    /// `blockd:changed:` of the snapshot that sealed this generation; none: `base:allocation`.
    pub since: Option<Generation>,
}

const _: () = assert!(OPTION_MAX as usize > 2 * STRING_MAX);

/// What the transmission phase starts with.
pub(crate) struct Agreed {
    pub mode: Mode,
    /// Those that were selected for this very export.
    pub contexts: Vec<Context>,
    pub export: Export,
}

pub(crate) enum Step {
    Continue,
    Transmission(Agreed),
    Close(Close),
}

enum State {
    Flags,
    Option,
    Data { option: u32, len: u32 },
    Skip { option: u32, left: u64 },
    Asking(Question),
}

/// What the owner was asked, and for which option.
enum Question {
    List,
    ExportName { name: String },
    Info { option: u32, request: InfoRequest },
    Meta { option: u32, request: MetaRequest },
}

pub(crate) struct Handshake {
    state: State,
    gather: Gather,
    no_zeroes: bool,
    mode: Mode,
    /// Contexts that are selected, and for which export.
    selected: Option<(String, Vec<Context>)>,
    draining: bool,
}

impl Handshake {
    pub fn new(out: &mut Output) -> Handshake {
        out.u64(wire::INIT);
        out.u64(wire::IHAVEOPT);
        out.u16(hello::FIXED_NEWSTYLE | hello::NO_ZEROES);
        Handshake {
            state: State::Flags,
            gather: Gather::default(),
            no_zeroes: false,
            mode: Mode::Simple,
            selected: None,
            draining: false,
        }
    }
    pub fn wants_input(&self, out: &Output) -> bool {
        !matches!(self.state, State::Asking(_)) && out.len() < REPLIES_MAX
    }
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Reads from the front of `input` up to the end of one header or option.
    pub fn step(&mut self, input: &mut &[u8], out: &mut Output, asks: &mut VecDeque<Ask>) -> Step {
        match &mut self.state {
            State::Flags => {
                if !self.gather.fill(4, input) {
                    return Step::Continue;
                }
                self.flags()
            }
            State::Option => {
                if !self.gather.fill(OPTION_LEN, input) {
                    return Step::Continue;
                }
                self.option(out, asks)
            }
            &mut State::Data { option, len } => {
                if !self.gather.fill(len as usize, input) {
                    return Step::Continue;
                }
                let data = self.gather.take();
                self.state = State::Option;
                self.data(option, &data, out, asks)
            }
            State::Skip { option, left } => {
                let option = *option;
                if discard(left, input) {
                    self.state = State::Option;
                    refuse(out, option, rep::ERR_TOO_BIG, "option too long");
                }
                Step::Continue
            }
            State::Asking(_) => Step::Continue,
        }
    }

    fn flags(&mut self) -> Step {
        let flags = Reader(self.gather.bytes()).u32().expect("four bytes were gathered");
        self.gather.clear();
        if flags & !u32::from(hello::FIXED_NEWSTYLE | hello::NO_ZEROES) != 0 {
            return Step::Close(Close::Violation(Violation::ClientFlags(flags)));
        }
        self.no_zeroes = flags & u32::from(hello::NO_ZEROES) != 0;
        self.state = State::Option;
        Step::Continue
    }

    fn option(&mut self, out: &mut Output, asks: &mut VecDeque<Ask>) -> Step {
        let mut r = Reader(self.gather.bytes());
        let (magic, option, len) = (r.u64(), r.u32(), r.u32());
        let (option, len) = (option.expect("gathered"), len.expect("gathered"));
        self.gather.clear();
        if magic != Some(wire::IHAVEOPT) {
            return Step::Close(Close::Violation(Violation::OptionMagic));
        }
        if option == opt::SET_META_CONTEXT {
            self.selected = None; // whatever becomes of this selection, it replaces the earlier one
        }
        if len == 0 {
            return self.data(option, &[], out, asks);
        }
        if len > OPTION_MAX {
            if option == opt::EXPORT_NAME {
                return Step::Close(Close::Violation(Violation::ExportName));
            }
            self.state = State::Skip { option, left: u64::from(len) };
        } else {
            self.state = State::Data { option, len };
        }
        Step::Continue
    }

    /// A whole option has arrived.
    fn data(&mut self, option: u32, data: &[u8], out: &mut Output, asks: &mut VecDeque<Ask>) -> Step {
        if self.draining && option != opt::ABORT {
            if option == opt::EXPORT_NAME {
                return Step::Close(Close::Refused);
            }
            refuse(out, option, rep::ERR_SHUTDOWN, "the server is shutting down");
            return Step::Continue;
        }
        let result = match option {
            opt::EXPORT_NAME => return self.export_name(data, asks),
            opt::ABORT => {
                reply(out, option, rep::ACK, &[]);
                return Step::Close(Close::Aborted);
            }
            opt::LIST => no_data(data).map(|()| {
                asks.push_back(Ask::List);
                self.state = State::Asking(Question::List);
            }),
            opt::INFO | opt::GO => parse_info(data).map(|request| {
                asks.push_back(Ask::Export { name: request.name.clone(), open: option == opt::GO });
                self.state = State::Asking(Question::Info { option, request });
            }),
            opt::STRUCTURED_REPLY | opt::EXTENDED_HEADERS => {
                no_data(data).map(|()| self.upgrade(option, out))
            }
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => self.meta(option, data, asks),
            // PEEK_EXPORT was withdrawn, STARTTLS is not offered, the rest is unknown.
            _ => {
                refuse(out, option, rep::ERR_UNSUP, "option not supported");
                Ok(())
            }
        };
        if let Err(Malformed(why)) = result {
            refuse(out, option, rep::ERR_INVALID, why);
        }
        Step::Continue
    }

    fn export_name(&mut self, data: &[u8], asks: &mut VecDeque<Ask>) -> Step {
        // After extended headers this option is forbidden: its answer has no form there.
        let Some(name) = wire::text(data).filter(|_| self.mode < Mode::Extended) else {
            return Step::Close(Close::Violation(Violation::ExportName));
        };
        asks.push_back(Ask::Export { name: name.to_owned(), open: true });
        self.state = State::Asking(Question::ExportName { name: name.to_owned() });
        Step::Continue
    }

    fn upgrade(&mut self, option: u32, out: &mut Output) {
        let wanted = if option == opt::STRUCTURED_REPLY { Mode::Structured } else { Mode::Extended };
        if self.mode < wanted {
            self.mode = wanted;
            reply(out, option, rep::ACK, &[]);
        } else if self.mode == wanted {
            refuse(out, option, rep::ERR_INVALID, "already negotiated");
        } else {
            refuse(out, option, rep::ERR_EXT_HEADER_REQD, "extended headers are already negotiated");
        }
    }

    fn meta(&mut self, option: u32, data: &[u8], asks: &mut VecDeque<Ask>) -> Result<(), Malformed> {
        if self.mode < Mode::Structured {
            return Err(Malformed("structured replies were not negotiated"));
        }
        let request = parse_meta(option, data)?;
        asks.push_back(if request.since.is_empty() {
            Ask::Export { name: request.name.clone(), open: false }
        } else {
            Ask::Contexts { name: request.name.clone(), since: request.since.clone() }
        });
        self.state = State::Asking(Question::Meta { option, request });
        Ok(())
    }

    /// The owner's answer to `Ask::List`. Panics if that was not asked.
    pub fn answer_list(&mut self, answer: Result<Vec<Listed>, Refused>, out: &mut Output) {
        let state = std::mem::replace(&mut self.state, State::Option);
        assert!(matches!(state, State::Asking(Question::List)), "an answer to a list that nobody asked for");
        match answer {
            Ok(exports) => {
                for e in &exports {
                    let mut data = Vec::with_capacity(4 + e.name.len() + e.description.len());
                    data.extend_from_slice(&length(e.name.len()).to_be_bytes());
                    data.extend_from_slice(e.name.as_bytes());
                    data.extend_from_slice(e.description.as_bytes());
                    reply(out, opt::LIST, rep::SERVER, &data);
                }
                reply(out, opt::LIST, rep::ACK, &[]);
            }
            Err(refused) => refuse(out, opt::LIST, refused.code(), &refused.message),
        }
    }

    /// The owner's answer to `Ask::Export`. Panics if that was not asked.
    pub fn answer_export(&mut self, answer: Result<Export, Refused>, out: &mut Output) -> Step {
        match std::mem::replace(&mut self.state, State::Option) {
            State::Asking(Question::ExportName { name }) => match answer {
                Ok(export) => {
                    out.u64(export.size);
                    out.u16(export.flags(self.mode));
                    if !self.no_zeroes {
                        out.zeroes(ZEROES);
                    }
                    self.agreed(&name, export)
                }
                Err(_) => Step::Close(Close::Refused),
            },
            State::Asking(Question::Info { option, request }) => match answer {
                Ok(export) => {
                    self.informations(option, &request, &export, out);
                    reply(out, option, rep::ACK, &[]);
                    if option == opt::GO { self.agreed(&request.name, export) } else { Step::Continue }
                }
                Err(refused) => {
                    refuse(out, option, refused.code(), &refused.message);
                    Step::Continue
                }
            },
            State::Asking(Question::Meta { option, request }) if request.since.is_empty() => {
                match answer {
                    Ok(_) => self.contexts(option, request, &[], out),
                    Err(refused) => refuse(out, option, refused.code(), &refused.message),
                }
                Step::Continue
            }
            _ => panic!("an answer about an export that nobody asked for"),
        }
    }

    /// The owner's answer to `Ask::Contexts`, one for each snapshot. Panics if that was not asked.
    pub fn answer_contexts(&mut self, answer: Result<Vec<Option<Generation>>, Refused>, out: &mut Output) {
        let state = std::mem::replace(&mut self.state, State::Option);
        let State::Asking(Question::Meta { option, request }) = state else {
            panic!("an answer about contexts that nobody asked for")
        };
        match answer {
            Ok(found) => {
                assert!(found.len() == request.since.len(), "an answer for each snapshot");
                self.contexts(option, request, &found, out);
            }
            Err(refused) => refuse(out, option, refused.code(), &refused.message),
        }
    }

    fn contexts(
        &mut self,
        option: u32,
        request: MetaRequest,
        found: &[Option<Generation>],
        out: &mut Output,
    ) {
        let selecting = option == opt::SET_META_CONTEXT;
        let mut selected = Vec::new();
        let names = request.since.iter().map(|s| format!("{}{s}", changed::PREFIX));
        let changed = names.zip(found).filter_map(|(name, g)| Some((name, Some((*g)?))));
        let allocation = request.allocation.then(|| (allocation::NAME.to_owned(), None));
        for (id, (name, since)) in (ALLOCATION_ID..).zip(allocation.into_iter().chain(changed)) {
            let mut data = if selecting { id } else { 0 }.to_be_bytes().to_vec();
            data.extend_from_slice(name.as_bytes());
            reply(out, option, rep::META_CONTEXT, &data);
            selected.push(Context { id, since });
        }
        if selecting && !selected.is_empty() {
            self.selected = Some((request.name, selected));
        }
        reply(out, option, rep::ACK, &[]);
    }

    fn informations(&self, option: u32, request: &InfoRequest, export: &Export, out: &mut Output) {
        let mut data = info::EXPORT.to_be_bytes().to_vec();
        data.extend_from_slice(&export.size.to_be_bytes());
        data.extend_from_slice(&export.flags(self.mode).to_be_bytes());
        reply(out, option, rep::INFO, &data);
        // Sent unasked: QEMU assumes other sizes when it is not told.
        let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [BLOCK_SIZES.min, BLOCK_SIZES.preferred, BLOCK_SIZES.max] {
            data.extend_from_slice(&size.to_be_bytes());
        }
        reply(out, option, rep::INFO, &data);
        for (wanted, kind, text) in [
            (request.wants_name, info::NAME, &request.name),
            (request.wants_description, info::DESCRIPTION, &export.description),
        ] {
            if wanted && !text.is_empty() {
                let mut data = kind.to_be_bytes().to_vec();
                data.extend_from_slice(text.as_bytes());
                reply(out, option, rep::INFO, &data);
            }
        }
    }

    fn agreed(&self, name: &str, export: Export) -> Step {
        let mine = self.selected.as_ref().filter(|(selected, _)| selected == name);
        let contexts = mine.map(|(_, contexts)| contexts.clone()).unwrap_or_default();
        Step::Transmission(Agreed { mode: self.mode, contexts, export })
    }
}

fn no_data(data: &[u8]) -> Result<(), Malformed> {
    if data.is_empty() { Ok(()) } else { Err(Malformed("the option takes no data")) }
}

/// Lengths of what we make ourselves; all far below 4 GiB.
fn length(n: usize) -> u32 {
    u32::try_from(n).expect("names and replies of options are short")
}

fn reply(out: &mut Output, option: u32, kind: u32, data: &[u8]) {
    out.u64(wire::OPTION_REPLY);
    out.u32(option);
    out.u32(kind);
    out.u32(length(data.len()));
    out.put(data);
}

/// An error with its text, cut to what a string may hold.
fn refuse(out: &mut Output, option: u32, code: u32, message: &str) {
    reply(out, option, code, cut(message).as_bytes());
}

/// The longest start of `message` that a string of the protocol may hold.
pub(crate) fn cut(message: &str) -> &str {
    &message[..message.floor_char_boundary(STRING_MAX)]
}

impl Refused {
    fn code(&self) -> u32 {
        match self.kind {
            RefusalKind::Unknown => rep::ERR_UNKNOWN,
            RefusalKind::Policy => rep::ERR_POLICY,
            RefusalKind::Shutdown => rep::ERR_SHUTDOWN,
        }
    }
}
