//! The deframer: bytes of a connection, in pieces of any size, become messages.
//!
//! It owns what has arrived of one frame. A payload is copied once, into block-aligned memory of its own. What
//! does not add up is a `FrameError`: the connection is closed, nobody else is harmed; no input panics. It
//! never answers and never waits.

use crate::frame::{FLAG_FRESH, FrameError, Header, Kind, RawAck, RawRun, RawVersion};
use crate::ids::Generation;
use crate::limits::{BLOCKS_PER_EXTENT, CHUNK_BLOCKS_MAX, FRAME_HEADER, FRAME_PAYLOAD_MAX};
use crate::message::{
    Attempt, BranchInfo, Hello, Probe, Reply, ReplyFrame, Report, ReportedRun, Request, RequestFrame, Run,
    View,
};
use crate::payload::{PageBuf, Payload};
use crate::record::{RECORD_BYTES, Record, Sum};
use crate::refusal::Refusal;
use crate::units::BlockRange;
use serde::de::DeserializeOwned;
use zerocopy::FromBytes;

/// What a frame said.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a request is moved once; a box would be an allocation per write"
)]
pub enum Message {
    Hello(Box<Hello>),
    Refuse(Refusal),
    Request(RequestFrame),
    Reply(ReplyFrame),
}

/// What has arrived of the frame that is under way.
enum State {
    /// This many bytes of the header.
    Header(usize),
    Body(Header),
    /// The body is whole, and this many bytes of the payload.
    Payload(Header, PageBuf, usize),
    /// An error was returned: nothing more is read.
    Broken(FrameError),
}

pub struct Deframer {
    header: [u8; FRAME_HEADER],
    /// The body as far as it has arrived; kept for its memory.
    body: Vec<u8>,
    state: State,
    /// The version that the handshake agreed on; until then only its own frames are read.
    agreed: Option<u16>,
}

impl Default for Deframer {
    fn default() -> Deframer {
        Deframer::new()
    }
}

/// Extents of the largest chunk.
const EXTENTS_MAX: u32 = CHUNK_BLOCKS_MAX / BLOCKS_PER_EXTENT;

/// A body's memory above this is not kept from frame to frame, bytes.
const BODY_KEPT: usize = 64 << 10;

impl Deframer {
    #[must_use]
    pub fn new() -> Deframer {
        Deframer { header: [0; FRAME_HEADER], body: Vec::new(), state: State::Header(0), agreed: None }
    }
    /// The handshake is over: from here on all frames are of this version.
    pub fn agree(&mut self, protocol: u16) {
        self.agreed = Some(protocol);
    }
    /// Takes bytes from the front of `input` and returns the next message, or `None` when `input` is used up.
    /// After an error every call returns that error.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Message>, FrameError> {
        match self.advance(input) {
            Err(e) => {
                self.state = State::Broken(e);
                Err(e)
            }
            other => other,
        }
    }

    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Message>, FrameError> {
        loop {
            match &mut self.state {
                State::Header(have) => {
                    let piece = take(input, FRAME_HEADER - *have);
                    self.header[*have..*have + piece.len()].copy_from_slice(piece);
                    *have += piece.len();
                    if *have < FRAME_HEADER {
                        return Ok(None);
                    }
                    let header = Header::read(&self.header, self.agreed)?;
                    if self.body.capacity() > BODY_KEPT {
                        self.body = Vec::new();
                    }
                    self.body.clear();
                    self.state = State::Body(header);
                }
                State::Body(header) => {
                    let piece = take(input, header.body - self.body.len());
                    self.body.extend_from_slice(piece);
                    if self.body.len() < header.body {
                        return Ok(None);
                    }
                    if crc32c::crc32c(&self.body) != header.body_sum {
                        return Err(FrameError::BodySum);
                    }
                    let pages = PageBuf::for_overwrite(header.payload / crate::limits::BLOCK);
                    self.state = State::Payload(*header, pages, 0);
                }
                State::Payload(header, pages, have) => {
                    let piece = take(input, header.payload - *have);
                    pages.bytes_mut()[*have..*have + piece.len()].copy_from_slice(piece);
                    *have += piece.len();
                    if *have < header.payload {
                        return Ok(None);
                    }
                    let (header, payload) = (*header, std::mem::take(pages).freeze());
                    self.state = State::Header(0);
                    return decode(&header, &self.body, payload).map(Some);
                }
                State::Broken(e) => return Err(*e),
            }
        }
    }
}

fn take<'a>(input: &mut &'a [u8], want: usize) -> &'a [u8] {
    let (piece, rest) = input.split_at(want.min(input.len()));
    *input = rest;
    piece
}

fn decode(h: &Header, body: &[u8], payload: Payload) -> Result<Message, FrameError> {
    Ok(match h.kind {
        // Later versions may append fields: what is left over is not ours.
        Kind::Hello => Message::Hello(Box::new(
            postcard::take_from_bytes(body).map_err(|_| FrameError::Body(h.kind.code()))?.0,
        )),
        Kind::Refuse => {
            let code: &[u8; 2] = body.first_chunk().ok_or(FrameError::Body(h.kind.code()))?;
            // A reason that this version has no name for is a refusal all the same.
            Message::Refuse(Refusal::from_code(u16::from_le_bytes(*code)).unwrap_or(Refusal::WrongVersion))
        }
        k if k.is_reply() => Message::Reply(ReplyFrame {
            token: h.token,
            branch: h.scope.branch,
            drive: h.scope.drive,
            reply: reply(h, body, payload)?,
        }),
        _ => Message::Request(RequestFrame {
            token: h.token,
            scope: h.scope,
            request: request(h, body, payload)?,
        }),
    })
}

/// A postcard body, all of it.
fn whole<T: DeserializeOwned>(h: &Header, body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(FrameError::Body(h.kind.code())),
    }
}

/// What would not fit into a chunk is no message at all: nobody's arithmetic meets it.
fn possible(h: &Header, fits: bool) -> Result<(), FrameError> {
    if fits { Ok(()) } else { Err(FrameError::Body(h.kind.code())) }
}

/// A view is listed against an older one.
fn view_follows(view: View, after: Generation) -> bool {
    match view {
        View::Head => true,
        View::At(g) => after < g,
    }
}

fn blocks_of(runs: &[Run]) -> u64 {
    runs.iter().map(|r| u64::from(r.count)).sum()
}

fn refusal(h: &Header, code: u16) -> Result<Refusal, FrameError> {
    Refusal::from_code(code).ok_or(FrameError::Body(h.kind.code()))
}

/// The record at the front of a body, and the payload that it speaks of.
fn record(h: &Header, body: &[u8], payload: &Payload) -> Result<Record, FrameError> {
    let bytes = body.get(..RECORD_BYTES).ok_or(FrameError::Body(h.kind.code()))?;
    let record = Record::decode(bytes, None).map_err(|_| FrameError::Body(h.kind.code()))?;
    if record.matches(payload) { Ok(record) } else { Err(FrameError::PayloadSum) }
}

fn request(h: &Header, body: &[u8], payload: Payload) -> Result<Request, FrameError> {
    Ok(match h.kind {
        Kind::Write => {
            Request::Write { record: record(h, body, &payload)?, payload, fresh: h.flags & FLAG_FRESH != 0 }
        }
        Kind::Repair => {
            let record = record(h, body, &payload)?;
            let failed = RawVersion::read_from_bytes(&body[RECORD_BYTES..])
                .map_err(|_| FrameError::Body(h.kind.code()))?
                .get();
            Request::Repair { record, payload, failed }
        }
        Kind::Flush => Request::Flush,
        Kind::Marks => Request::Marks,
        Kind::Configure => Request::Configure { configuration: whole(h, body)? },
        Kind::Fence => {
            let (number, holder) = whole(h, body)?;
            Request::Fence { number, holder }
        }
        Kind::Create => {
            let (info, chunks): (BranchInfo, _) = whole(h, body)?;
            possible(h, info.geometry.is_possible())?;
            Request::Create { info, chunks }
        }
        Kind::AttemptBegin => {
            let attempt: Attempt = whole(h, body)?;
            possible(h, attempt.views.last().is_none_or(|g| g < attempt.generation))?;
            Request::AttemptBegin { attempt }
        }
        Kind::AttemptList => Request::AttemptList { number: whole(h, body)? },
        Kind::AttemptEnd => Request::AttemptEnd { number: whole(h, body)? },
        Kind::EndDoubt => Request::EndDoubt,
        Kind::Lease => Request::Lease { shown: whole(h, body)? },
        Kind::LeaseReturn => Request::LeaseReturn { branches: whole(h, body)? },
        Kind::Ping => Request::Ping,
        _ => question(h, body)?,
    })
}

/// What is asked of a replica and changes nothing.
fn question(h: &Header, body: &[u8]) -> Result<Request, FrameError> {
    Ok(match h.kind {
        Kind::Read => {
            let (view, range, media, source_process): (_, BlockRange, _, _) = whole(h, body)?;
            possible(h, range.is_possible())?;
            Request::Read { view, range, media, source_process }
        }
        Kind::Manifest => {
            let (view, after, from, source_process): (View, Generation, _, _) = whole(h, body)?;
            possible(h, from <= EXTENTS_MAX && view_follows(view, after))?;
            Request::Manifest { view, after, from, source_process }
        }
        Kind::Digest => {
            let (views, head, source_process) = whole(h, body)?;
            Request::Digest { views, head, source_process }
        }
        Kind::Changes => {
            let (view, after, range): (_, _, BlockRange) = whole(h, body)?;
            possible(h, range.is_possible() && view_follows(view, after))?;
            Request::Changes { view, after, range }
        }
        Kind::Absent => {
            let (views, head, blocks) = whole(h, body)?;
            Request::Absent { views, head, blocks }
        }
        Kind::Usage => Request::Usage,
        Kind::Credit => {
            let (want, probe): (_, Option<Probe>) = whole(h, body)?;
            possible(h, probe.is_none_or(|p| p.generation.0 > 0 && p.range.is_possible()))?;
            Request::Credit { want, probe }
        }
        Kind::Map => {
            let (view, range): (_, BlockRange) = whole(h, body)?;
            possible(h, range.is_possible())?;
            Request::Map { view, range }
        }
        Kind::Verify => {
            let (view, first_extent, extents): (_, u32, u32) = whole(h, body)?;
            possible(h, first_extent.checked_add(extents).is_some_and(|end| end <= EXTENTS_MAX))?;
            Request::Verify { view, first_extent, extents }
        }
        other => return Err(FrameError::Unexpected(other.code())),
    })
}

fn acks(h: &Header, body: &[u8]) -> Result<Reply, FrameError> {
    let raw = <[RawAck]>::ref_from_bytes(body).map_err(|_| FrameError::Body(h.kind.code()))?;
    Ok(Reply::Acks(raw.iter().map(|a| a.get(h.scope.drive)).collect()))
}

fn read_done(h: &Header, body: &[u8], payload: Payload) -> Result<Reply, FrameError> {
    let wrong = FrameError::Body(h.kind.code());
    let (count, rest) = body.split_first_chunk::<4>().ok_or(wrong)?;
    let runs_bytes = (u32::from_le_bytes(*count) as usize).checked_mul(size_of::<RawRun>()).ok_or(wrong)?;
    let (runs, sums) = rest.split_at_checked(runs_bytes).ok_or(wrong)?;
    let runs = <[RawRun]>::ref_from_bytes(runs).map_err(|_| wrong)?;
    let runs: Vec<_> = runs.iter().map(|r| r.get()).collect::<Option<_>>().ok_or(wrong)?;
    let sums = <[zerocopy::little_endian::U32]>::ref_from_bytes(sums).map_err(|_| wrong)?;
    let sums: Vec<Sum> = sums.iter().map(|s| Sum(s.get())).collect();
    let data: u64 =
        runs.iter().filter(|r| r.state == crate::message::BlockState::Data).map(|r| u64::from(r.count)).sum();
    let blocks = payload.blocks();
    possible(
        h,
        sums.len() == blocks && data == blocks as u64 && blocks_of(&runs) <= u64::from(CHUNK_BLOCKS_MAX),
    )?;
    if sums.iter().enumerate().any(|(i, s)| *s != Sum::of(payload.block(i))) {
        return Err(FrameError::PayloadSum);
    }
    Ok(Reply::ReadDone { runs, sums, payload })
}

fn reply(h: &Header, body: &[u8], payload: Payload) -> Result<Reply, FrameError> {
    Ok(match h.kind {
        Kind::Acks => acks(h, body)?,
        Kind::ReadDone => read_done(h, body, payload)?,
        Kind::Refused => {
            let (code, version) = whole(h, body)?;
            Reply::Refused { refusal: refusal(h, code)?, version }
        }
        Kind::FlushBegun => {
            let (drive, flush) = whole(h, body)?;
            Reply::FlushBegun { drive, flush }
        }
        Kind::FlushDone => {
            let (drive, flush) = whole(h, body)?;
            Reply::FlushDone { drive, flush }
        }
        Kind::Flushed => Reply::Flushed,
        Kind::Report => {
            let report: Report = whole(h, body)?;
            let end = |r: &ReportedRun| r.first.checked_add(r.count).filter(|_| r.count > 0);
            possible(h, report.runs.iter().all(|r| end(r).is_some_and(|e| e <= EXTENTS_MAX)))?;
            Reply::Report(report)
        }
        Kind::Done => Reply::Done,
        Kind::Progress => {
            let (number, bytes_done, bytes_left, bytes_moved) = whole(h, body)?;
            Reply::Progress { number, bytes_done, bytes_left, bytes_moved }
        }
        Kind::Pulled => {
            let (number, bytes_moved) = whole(h, body)?;
            Reply::Pulled { number, bytes_moved }
        }
        Kind::AttemptFailed => {
            let (number, code) = whole(h, body)?;
            Reply::AttemptFailed { number, refusal: refusal(h, code)? }
        }
        Kind::ManifestPage => {
            let (entries, next) = whole(h, body)?;
            Reply::Manifest { entries, next }
        }
        Kind::DigestDone => {
            let (hash, extents) = whole(h, body)?;
            Reply::Digest { hash, extents }
        }
        Kind::CreditGiven => {
            let (granted, allocated) = whole(h, body)?;
            Reply::Credit { granted, allocated }
        }
        Kind::MapDone => {
            let runs: Vec<Run> = whole(h, body)?;
            possible(h, blocks_of(&runs) <= u64::from(CHUNK_BLOCKS_MAX))?;
            Reply::Map { runs }
        }
        Kind::AbsenceDone => Reply::Absence { any: whole(h, body)? },
        Kind::UsageDone => Reply::Usage(whole(h, body)?),
        Kind::Verified => {
            let (extents, bad) = whole(h, body)?;
            Reply::Verified { extents, bad }
        }
        Kind::Leased => {
            let (refused, unknown) = whole(h, body)?;
            Reply::Leased { refused, unknown }
        }
        Kind::Revoke => Reply::Revoke { branches: whole(h, body)? },
        Kind::DriveState => {
            let (drive, failed, in_doubt) = whole(h, body)?;
            Reply::DriveState { drive, failed, in_doubt }
        }
        other => return Err(FrameError::Unexpected(other.code())),
    })
}

// A payload is at most this, so `PageBuf::for_overwrite` is bounded by the header alone.
const _: () = assert!(FRAME_PAYLOAD_MAX <= 1 << 20);

#[cfg(test)]
mod tests;
