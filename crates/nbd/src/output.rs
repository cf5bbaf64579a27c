//! What goes to the peer: headers and small data joined in one buffer, large data as slices of the memory in
//! which it already lies, so that an edge can send it without copying.

use proto::Payload;
use proto::limits::BLOCK;
use std::collections::VecDeque;

/// Data up to this many bytes is copied behind its header: cheaper than a piece of its own.
const INLINE_MAX: usize = 32 << 10;

/// A piece of the stream, in order.
#[derive(Debug)]
pub enum Piece {
    Bytes(Vec<u8>),
    /// `len` bytes from `skip` bytes into the payload.
    Data {
        payload: Payload,
        skip: usize,
        len: usize,
    },
    Zeroes {
        len: usize,
    },
}

impl Piece {
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Piece::Bytes(b) => b.len(),
            Piece::Data { len, .. } | Piece::Zeroes { len } => *len,
        }
    }
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Appends the piece's bytes.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        match self {
            Piece::Bytes(b) => out.extend_from_slice(b),
            Piece::Data { payload, skip, len } => out.extend_from_slice(&payload.bytes()[*skip..skip + len]),
            Piece::Zeroes { len } => out.resize(out.len() + len, 0),
        }
    }
}

#[derive(Default)]
pub(crate) struct Output {
    queue: VecDeque<Piece>,
    tail: Vec<u8>,
    spare: Option<Vec<u8>>,
    bytes: usize,
}

impl Output {
    /// Bytes not yet taken.
    pub fn len(&self) -> usize {
        self.bytes
    }
    pub fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.bytes += bytes.len();
    }
    pub fn u16(&mut self, v: u16) {
        self.put(&v.to_be_bytes());
    }
    pub fn u32(&mut self, v: u32) {
        self.put(&v.to_be_bytes());
    }
    pub fn u64(&mut self, v: u64) {
        self.put(&v.to_be_bytes());
    }
    pub fn zeroes(&mut self, len: usize) {
        if len <= BLOCK {
            self.tail.resize(self.tail.len() + len, 0);
            self.bytes += len;
        } else {
            self.push(Piece::Zeroes { len });
        }
    }
    pub fn data(&mut self, payload: Payload, skip: usize, len: usize) {
        assert!(skip + len <= payload.len(), "data beyond its payload");
        if len <= INLINE_MAX {
            self.put(&payload.bytes()[skip..skip + len]);
        } else {
            self.push(Piece::Data { payload, skip, len });
        }
    }
    fn push(&mut self, piece: Piece) {
        self.seal();
        self.bytes += piece.len();
        self.queue.push_back(piece);
    }
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            let fresh = self.spare.take().unwrap_or_default();
            self.queue.push_back(Piece::Bytes(std::mem::replace(&mut self.tail, fresh)));
        }
    }
    pub fn poll(&mut self) -> Option<Piece> {
        if self.queue.is_empty() {
            self.seal();
        }
        let piece = self.queue.pop_front()?;
        self.bytes -= piece.len();
        Some(piece)
    }
    /// Gives a buffer back that `poll` gave out, for reuse.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        if self.spare.is_none() {
            self.spare = Some(buffer);
        }
    }
    /// Appends everything to `out`, copying.
    pub fn drain_into(&mut self, out: &mut Vec<u8>) {
        while let Some(piece) = self.poll() {
            piece.append_to(out);
            if let Piece::Bytes(b) = piece {
                self.recycle(b);
            }
        }
    }
}
