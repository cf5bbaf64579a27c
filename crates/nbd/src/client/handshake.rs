//! The client's half of the newstyle handshake: one option after the other, less where the server has less.

use super::{Broken, Event, Goal, Negotiated, Wish};
use crate::gather::Gather;
use crate::output::Output;
use crate::server::Listed;
use crate::wire::{self, BlockSizes, Mode, OPTION_REPLY_LEN, Reader, ZEROES, hello, info, opt, rep};

/// Most data of one reply, bytes: a name, a description and change.
const REPLY_MAX: u32 = 1 << 16;

pub(super) enum Step {
    Continue,
    /// The handshake was all there is.
    Answered(Event),
    Ready(Negotiated),
}

enum State {
    Greeting,
    ReplyHeader,
    ReplyData {
        kind: u32,
        len: u32,
    },
    /// The answer to EXPORT_NAME.
    ExportName,
}

pub(super) struct Handshake {
    wish: Wish,
    state: State,
    gather: Gather,
    /// The option that is being answered.
    option: u32,
    no_zeroes: bool,
    found: Negotiated,
    has_export: bool,
    listed: Vec<Listed>,
    contexts: Vec<String>,
}

impl Handshake {
    pub fn new(wish: Wish) -> Handshake {
        let found = Negotiated {
            mode: Mode::Simple,
            size: 0,
            flags: 0,
            blocks: None,
            description: None,
            context: None,
        };
        Handshake {
            wish,
            state: State::Greeting,
            gather: Gather::default(),
            option: 0,
            no_zeroes: false,
            found,
            has_export: false,
            listed: Vec::new(),
            contexts: Vec::new(),
        }
    }

    pub fn step(&mut self, input: &mut &[u8], out: &mut Output) -> Step {
        let need = match self.state {
            State::Greeting => 18,
            State::ReplyHeader => OPTION_REPLY_LEN,
            State::ReplyData { len, .. } => len as usize,
            State::ExportName => 10 + if self.no_zeroes { 0 } else { ZEROES },
        };
        if !self.gather.fill(need, input) {
            return Step::Continue;
        }
        let bytes = self.gather.take();
        let result = match self.state {
            State::Greeting => self.greeting(&bytes, out),
            State::ReplyHeader => self.reply_header(&bytes, out),
            State::ReplyData { kind, .. } => self.reply(kind, &bytes, out),
            State::ExportName => self.export_name(&bytes),
        };
        result.unwrap_or_else(|| Step::Answered(Event::Broken(self.broken())))
    }

    fn broken(&self) -> Broken {
        if matches!(self.state, State::Greeting) {
            Broken::Greeting
        } else {
            Broken::OptionReply(self.option)
        }
    }

    fn greeting(&mut self, bytes: &[u8], out: &mut Output) -> Option<Step> {
        let mut r = Reader(bytes);
        if r.u64()? != wire::INIT || r.u64()? != wire::IHAVEOPT {
            return None;
        }
        let flags = r.u16()?;
        if flags & hello::FIXED_NEWSTYLE == 0 && self.wish.goal != Goal::ExportName {
            return None;
        }
        self.no_zeroes = flags & hello::NO_ZEROES != 0;
        out.u32(u32::from(flags & (hello::FIXED_NEWSTYLE | hello::NO_ZEROES)));
        self.next(out);
        Some(Step::Continue)
    }

    /// Sends the option that comes after the present one.
    fn next(&mut self, out: &mut Output) {
        self.state = State::ReplyHeader;
        let candidates =
            [opt::EXTENDED_HEADERS, opt::STRUCTURED_REPLY, opt::SET_META_CONTEXT, self.wish.goal.option()];
        // The list is walked once: begin behind the option that was just answered.
        let from = candidates.iter().position(|&o| o == self.option).map_or(0, |i| i + 1);
        let option = candidates[from..].iter().copied().find(|&o| self.wants(o)).expect("the goal is wanted");
        self.option = option;
        let data = self.option_data(option);
        if option == opt::EXPORT_NAME {
            self.state = State::ExportName;
        }
        send_option(out, option, &data);
    }

    fn wants(&self, option: u32) -> bool {
        let (goal, most) = (self.wish.goal, self.wish.mode);
        match option {
            // A goal that only lists needs none; the oldest option has no form for extended headers.
            opt::EXTENDED_HEADERS => most == Mode::Extended && goal != Goal::ExportName && goal != Goal::List,
            opt::STRUCTURED_REPLY => {
                most >= Mode::Structured && self.found.mode == Mode::Simple && goal != Goal::List
            }
            opt::SET_META_CONTEXT => {
                self.wish.context.is_some()
                    && self.found.mode >= Mode::Structured
                    && matches!(goal, Goal::Go | Goal::ExportName)
            }
            _ => true,
        }
    }

    fn option_data(&self, option: u32) -> Vec<u8> {
        let name = self.wish.export.as_bytes();
        let len = u32::try_from(name.len()).expect("an export's name is short");
        let mut data = Vec::new();
        match option {
            opt::EXPORT_NAME => data.extend_from_slice(name),
            opt::INFO | opt::GO => {
                data.extend_from_slice(&len.to_be_bytes());
                data.extend_from_slice(name);
                data.extend_from_slice(&2u16.to_be_bytes());
                data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
                data.extend_from_slice(&info::DESCRIPTION.to_be_bytes());
            }
            opt::SET_META_CONTEXT | opt::LIST_META_CONTEXT => {
                data.extend_from_slice(&len.to_be_bytes());
                data.extend_from_slice(name);
                if option == opt::SET_META_CONTEXT {
                    data.extend_from_slice(&1u32.to_be_bytes());
                    let query = self.wish.context.as_deref().unwrap_or_default().as_bytes();
                    data.extend_from_slice(
                        &u32::try_from(query.len()).expect("a context's name is short").to_be_bytes(),
                    );
                    data.extend_from_slice(query);
                } else {
                    data.extend_from_slice(&0u32.to_be_bytes());
                }
            }
            _ => {}
        }
        data
    }

    fn reply_header(&mut self, bytes: &[u8], out: &mut Output) -> Option<Step> {
        let mut r = Reader(bytes);
        if r.u64()? != wire::OPTION_REPLY || r.u32()? != self.option {
            return None;
        }
        let (kind, len) = (r.u32()?, r.u32()?);
        if len > REPLY_MAX {
            return None;
        }
        if len == 0 {
            return self.reply(kind, &[], out);
        }
        self.state = State::ReplyData { kind, len };
        Some(Step::Continue)
    }

    fn reply(&mut self, kind: u32, data: &[u8], out: &mut Output) -> Option<Step> {
        self.state = State::ReplyHeader;
        match kind {
            rep::ACK => self.acknowledged(out),
            k if k & rep::ERROR != 0 => Some(self.refused(k, data, out)),
            rep::INFO if matches!(self.option, opt::GO | opt::INFO) => self.information(data),
            rep::SERVER if self.option == opt::LIST => {
                let mut r = Reader(data);
                let name = r.string()?.to_owned();
                self.listed.push(Listed { name, description: String::from_utf8_lossy(r.0).into_owned() });
                Some(Step::Continue)
            }
            rep::META_CONTEXT => {
                let mut r = Reader(data);
                let id = r.u32()?;
                let name = wire::text(r.0)?.to_owned();
                if self.option == opt::SET_META_CONTEXT && self.wish.context.as_deref() == Some(&name) {
                    self.found.context = Some(id);
                }
                self.contexts.push(name);
                Some(Step::Continue)
            }
            _ => None,
        }
    }

    fn information(&mut self, data: &[u8]) -> Option<Step> {
        let mut r = Reader(data);
        match r.u16()? {
            info::EXPORT => {
                self.found.size = r.u64()?;
                self.found.flags = r.u16()?;
                self.has_export = true;
            }
            info::BLOCK_SIZE => {
                self.found.blocks = Some(BlockSizes { min: r.u32()?, preferred: r.u32()?, max: r.u32()? });
            }
            info::DESCRIPTION => self.found.description = wire::text(r.0).map(str::to_owned),
            _ => {} // unknown information is to be ignored
        }
        Some(Step::Continue)
    }

    fn acknowledged(&mut self, out: &mut Output) -> Option<Step> {
        match self.option {
            opt::EXTENDED_HEADERS => self.found.mode = Mode::Extended,
            opt::STRUCTURED_REPLY => self.found.mode = Mode::Structured,
            opt::SET_META_CONTEXT => {}
            opt::GO | opt::INFO if !self.has_export => return None,
            opt::GO => return Some(Step::Ready(self.found.clone())),
            opt::INFO => return Some(Step::Answered(Event::Info(self.found.clone()))),
            opt::LIST => return Some(Step::Answered(Event::Listed(std::mem::take(&mut self.listed)))),
            opt::LIST_META_CONTEXT => {
                return Some(Step::Answered(Event::Contexts(std::mem::take(&mut self.contexts))));
            }
            _ => return None,
        }
        self.next(out);
        Some(Step::Continue)
    }

    fn refused(&mut self, code: u32, data: &[u8], out: &mut Output) -> Step {
        let message = String::from_utf8_lossy(data).into_owned();
        match self.option {
            // We can do with less.
            opt::EXTENDED_HEADERS | opt::STRUCTURED_REPLY => {
                self.next(out);
                Step::Continue
            }
            opt::SET_META_CONTEXT => {
                self.found.context = None;
                self.next(out);
                Step::Continue
            }
            _ => Step::Answered(Event::Refused { code, message }),
        }
    }

    fn export_name(&mut self, bytes: &[u8]) -> Option<Step> {
        let mut r = Reader(bytes);
        self.found.size = r.u64()?;
        self.found.flags = r.u16()?;
        Some(Step::Ready(self.found.clone()))
    }
}

impl Goal {
    fn option(self) -> u32 {
        match self {
            Goal::Go => opt::GO,
            Goal::ExportName => opt::EXPORT_NAME,
            Goal::Info => opt::INFO,
            Goal::List => opt::LIST,
            Goal::ListContexts => opt::LIST_META_CONTEXT,
        }
    }
}

pub(super) fn send_option(out: &mut Output, option: u32, data: &[u8]) {
    out.u64(wire::IHAVEOPT);
    out.u32(option);
    out.u32(u32::try_from(data.len()).expect("options of ours are short"));
    out.put(data);
}
