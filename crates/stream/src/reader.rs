//! The reader: bytes in pieces of any size in, content out. No input panics, and none makes it take more memory than
//! one frame has.

use crate::frame::{
    BLOCK, Begin, Codec, End, FORMAT, HEADER, Kind, MAGIC, PAYLOAD_MAX, RawHeader, TEXT_MAX, ZERO_MAX,
};
use serde::de::DeserializeOwned;
use zerocopy::FromBytes;

/// What a stream says, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// First, once.
    Begin(Box<Begin>),
    Data {
        offset: u64,
        bytes: Vec<u8>,
    },
    Zero {
        offset: u64,
        length: u64,
    },
    /// Last, once: the stream is complete.
    End(End),
}

/// Why a stream is refused. Each names the frame, so that a human finds the place.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StreamError {
    #[error("this is not a stream of a snapshot: it does not begin with BLKDSTRM")]
    Magic,
    #[error("the stream ends in frame {0}: it was cut")]
    Cut(u64),
    #[error("frame {0} is damaged, or is not the one that follows here")]
    Chain(u64),
    #[error("frame {0}: the bytes do not match their checksum")]
    Sum(u64),
    #[error("frame {0} is malformed: {1}")]
    Malformed(u64, &'static str),
    #[error("the stream is of format {0}; this program knows format {FORMAT}")]
    Format(u32),
    #[error("the stream needs {0}, which this program does not know")]
    Requires(String),
    #[error("bytes follow after the end of the stream")]
    Trailing,
    #[error("the stream says that it has {0:?}, and has {1:?}")]
    Counts(End, End),
}

/// How far a stream is good: a writer can go on from here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Good {
    /// Bytes of the stream up to the end of the last whole frame.
    pub bytes: u64,
    pub(crate) chain: u32,
    pub(crate) index: u64,
    pub(crate) position: u64,
    pub(crate) told: End,
}

#[derive(Debug)]
enum State {
    Magic,
    Header,
    Payload(RawHeader, Kind),
    Over,
    Broken(StreamError),
}

#[derive(Debug)]
pub struct Reader {
    state: State,
    /// What has arrived of the part under way.
    have: Vec<u8>,
    begun: Option<u64>,
    good: Good,
}

impl Default for Reader {
    fn default() -> Reader {
        Reader::new()
    }
}

impl Reader {
    #[must_use]
    pub fn new() -> Reader {
        Reader { state: State::Magic, have: Vec::new(), begun: None, good: Good::default() }
    }
    /// How far the stream is good.
    #[must_use]
    pub fn good(&self) -> Good {
        self.good
    }

    /// Takes bytes from the front of `input`; the next item, or `None` when the input is used up. After an error every
    /// call returns that error.
    ///
    /// # Errors
    /// The stream is damaged, of a newer format, or no stream at all.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Item>, StreamError> {
        let result = self.advance(input);
        if let Err(e) = &result {
            self.state = State::Broken(e.clone());
        }
        result
    }
    /// No more bytes come.
    ///
    /// # Errors
    /// The stream is not complete.
    pub fn finish(&self) -> Result<(), StreamError> {
        match &self.state {
            State::Over => Ok(()),
            State::Broken(e) => Err(e.clone()),
            State::Magic if self.have.is_empty() => Err(StreamError::Magic),
            _ => Err(StreamError::Cut(self.good.index)),
        }
    }

    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Item>, StreamError> {
        loop {
            let want = match &self.state {
                State::Magic => MAGIC.len(),
                State::Header => HEADER,
                State::Payload(h, _) => h.stored.get() as usize,
                State::Over if input.is_empty() => return Ok(None),
                State::Over => return Err(StreamError::Trailing),
                State::Broken(e) => return Err(e.clone()),
            };
            let (piece, rest) = input.split_at((want - self.have.len()).min(input.len()));
            self.have.extend_from_slice(piece);
            *input = rest;
            if self.have.len() < want {
                return Ok(None);
            }
            let bytes = std::mem::take(&mut self.have);
            match &self.state {
                State::Magic => {
                    if bytes != MAGIC {
                        return Err(StreamError::Magic);
                    }
                    self.good.bytes = MAGIC.len() as u64;
                    self.state = State::Header;
                }
                State::Header => {
                    let (raw, kind) = self.header(&bytes)?;
                    self.state = State::Payload(raw, kind);
                }
                State::Payload(raw, kind) => {
                    let (raw, kind) = (*raw, *kind);
                    return self.frame(&raw, kind, bytes).map(Some);
                }
                State::Over | State::Broken(_) => unreachable!("left above"),
            }
        }
    }

    /// A header is believed only if it follows what came before it.
    fn header(&self, bytes: &[u8]) -> Result<(RawHeader, Kind), StreamError> {
        let at = self.good.index;
        let raw = RawHeader::read_from_bytes(bytes).map_err(|_| StreamError::Chain(at))?;
        if raw.chained(self.good.chain) != raw.chain.get() || raw.index.get() != at {
            return Err(StreamError::Chain(at));
        }
        let wrong = |why| Err(StreamError::Malformed(at, why));
        let Some(kind) = Kind::of(raw.kind.get()) else { return wrong("an unknown kind") };
        if (kind == Kind::Begin) != (at == 0) {
            return wrong("the description comes first, and once");
        }
        let (length, stored) = (raw.length.get(), raw.stored.get());
        let fits = match kind {
            Kind::Begin | Kind::End => stored <= TEXT_MAX && length == u64::from(stored),
            Kind::Data => {
                let packed = raw.codec.get() == Codec::Lz4 as u16;
                let raw_length = length == u64::from(stored);
                length <= u64::from(PAYLOAD_MAX) && u64::from(stored) <= length && (packed || raw_length)
            }
            Kind::Zero => length <= ZERO_MAX && stored == 0,
        };
        let coded = raw.codec.get() == Codec::Raw as u16
            || (kind == Kind::Data && raw.codec.get() == Codec::Lz4 as u16);
        if !fits || !coded {
            return wrong("a length or a codec that cannot be");
        }
        if matches!(kind, Kind::Data | Kind::Zero) {
            let (offset, size) = (raw.offset.get(), self.begun.unwrap_or(0));
            let blocks = length > 0 && offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK);
            let within = offset.checked_add(length).is_some_and(|end| end <= size);
            if !blocks || !within || offset < self.good.position {
                return wrong("a range outside the volume, or out of order");
            }
        }
        Ok((raw, kind))
    }

    fn frame(&mut self, raw: &RawHeader, kind: Kind, stored: Vec<u8>) -> Result<Item, StreamError> {
        let at = self.good.index;
        if crc32c::crc32c(&stored) != raw.sum.get() {
            return Err(StreamError::Sum(at));
        }
        let (offset, length) = (raw.offset.get(), raw.length.get());
        let mut told = self.good.told;
        let item = match kind {
            Kind::Begin => {
                let begin = described(at, &stored)?;
                self.begun = Some(begin.size);
                Item::Begin(Box::new(begin))
            }
            Kind::Data => {
                told.data += length;
                Item::Data { offset, bytes: unpacked(at, raw, stored)? }
            }
            Kind::Zero => {
                told.zeroes += length;
                Item::Zero { offset, length }
            }
            Kind::End => {
                let said: End = text(at, &stored)?;
                let found = End { frames: at, ..told };
                if said != found {
                    return Err(StreamError::Counts(said, found));
                }
                Item::End(said)
            }
        };
        self.state = if kind == Kind::End { State::Over } else { State::Header };
        let position =
            if matches!(kind, Kind::Data | Kind::Zero) { offset + length } else { self.good.position };
        self.good = Good {
            bytes: self.good.bytes + (HEADER + raw.stored.get() as usize) as u64,
            chain: raw.chain.get(),
            index: at + 1,
            position,
            told,
        };
        Ok(item)
    }
}

fn unpacked(at: u64, raw: &RawHeader, stored: Vec<u8>) -> Result<Vec<u8>, StreamError> {
    if raw.codec.get() == Codec::Raw as u16 {
        return Ok(stored);
    }
    let wrong = StreamError::Malformed(at, "the packed bytes cannot be unpacked");
    let length = usize::try_from(raw.length.get()).map_err(|_| wrong.clone())?;
    let bytes = lz4_flex::block::decompress(&stored, length).map_err(|_| wrong.clone())?;
    if bytes.len() == length { Ok(bytes) } else { Err(wrong) }
}

fn described(at: u64, stored: &[u8]) -> Result<Begin, StreamError> {
    /// Understood whatever the format is.
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
    }
    let version: Version = text(at, stored)?;
    if version.format != FORMAT {
        return Err(StreamError::Format(version.format));
    }
    let begin: Begin = text(at, stored)?;
    if let Some(word) = begin.requires.first() {
        return Err(StreamError::Requires(word.clone()));
    }
    if begin.size == 0 || !begin.size.is_multiple_of(BLOCK) {
        return Err(StreamError::Malformed(at, "a volume's size is a multiple of 4 KiB"));
    }
    Ok(begin)
}

fn text<T: DeserializeOwned>(at: u64, stored: &[u8]) -> Result<T, StreamError> {
    serde_json::from_slice(stored)
        .map_err(|_| StreamError::Malformed(at, "a description that is not what it should be"))
}
