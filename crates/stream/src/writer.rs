//! The writer: content in, bytes out.

use crate::frame::{BLOCK, Begin, Codec, End, Kind, MAGIC, PAYLOAD_MAX, RawHeader, TEXT_MAX, ZERO_MAX};
use crate::reader::Good;
use serde::Serialize;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

/// Writes one stream, in rising order of offsets.
#[derive(Debug)]
pub struct Writer {
    size: u64,
    chain: u32,
    index: u64,
    /// All below has been told.
    position: u64,
    told: End,
}

impl Writer {
    /// Begins a stream.
    ///
    /// # Panics
    /// If the description is longer than 64 KiB.
    pub fn begin(out: &mut Vec<u8>, begin: &Begin) -> Writer {
        out.extend_from_slice(&MAGIC);
        let mut w = Writer { size: begin.size, chain: 0, index: 0, position: 0, told: End::default() };
        w.text(out, Kind::Begin, begin);
        w
    }
    /// Goes on with a stream of which a reader has seen a good beginning.
    #[must_use]
    pub fn resume(begin: &Begin, good: &Good) -> Writer {
        let Good { chain, index, position, told, .. } = *good;
        Writer { size: begin.size, chain, index, position, told }
    }
    /// All below this offset has been told.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }
    /// What has been told so far.
    #[must_use]
    pub fn told(&self) -> End {
        self.told
    }

    /// Bytes of the volume.
    ///
    /// # Panics
    /// If they are not whole blocks within the volume, beyond what was told before, at most 1 MiB.
    pub fn data(&mut self, out: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
        assert!(bytes.len() <= PAYLOAD_MAX as usize, "a frame holds at most 1 MiB");
        self.advance(offset, bytes.len() as u64);
        self.told.data += bytes.len() as u64;
        let packed = lz4_flex::block::compress(bytes);
        let (codec, stored) =
            if packed.len() < bytes.len() { (Codec::Lz4, &packed[..]) } else { (Codec::Raw, bytes) };
        self.frame(out, Kind::Data, codec, (offset, bytes.len() as u64), stored);
    }
    /// A range that reads as zeroes.
    ///
    /// # Panics
    /// As `data`.
    pub fn zero(&mut self, out: &mut Vec<u8>, mut offset: u64, mut length: u64) {
        self.advance(offset, length);
        self.told.zeroes += length;
        while length > 0 {
            let piece = length.min(ZERO_MAX);
            self.frame(out, Kind::Zero, Codec::Raw, (offset, piece), &[]);
            (offset, length) = (offset + piece, length - piece);
        }
    }
    /// The end: without it no reader calls the stream complete.
    pub fn end(mut self, out: &mut Vec<u8>) {
        let told = End { frames: self.index, ..self.told };
        self.text(out, Kind::End, &told);
    }

    fn advance(&mut self, offset: u64, length: u64) {
        let whole = length > 0 && offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK);
        assert!(whole && offset >= self.position && offset + length <= self.size, "blocks in rising order");
        self.position = offset + length;
    }
    fn text(&mut self, out: &mut Vec<u8>, kind: Kind, what: &impl Serialize) {
        let text = serde_json::to_vec(what).expect("writing to a vector does not fail");
        assert!(text.len() <= TEXT_MAX as usize, "a short description");
        self.frame(out, kind, Codec::Raw, (0, text.len() as u64), &text);
    }
    fn frame(&mut self, out: &mut Vec<u8>, kind: Kind, codec: Codec, at: (u64, u64), stored: &[u8]) {
        let mut header = RawHeader {
            chain: U32::ZERO,
            kind: (kind as u16).into(),
            codec: (codec as u16).into(),
            index: self.index.into(),
            offset: at.0.into(),
            length: at.1.into(),
            stored: u32::try_from(stored.len()).expect("at most 1 MiB").into(),
            sum: crc32c::crc32c(stored).into(),
            reserved: U64::ZERO,
        };
        self.chain = header.chained(self.chain);
        header.chain = self.chain.into();
        self.index += 1;
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(stored);
    }
}
