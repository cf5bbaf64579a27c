//! Frames: the bytes of everything that two nodes say to each other (`docs/protocol.md`).
//!
//! A frame is a header of 128 bytes with its own CRC, a body, and a payload of whole blocks. This module turns
//! messages into bytes, appending to a buffer that is reused; `deframer` turns bytes into messages. The hot
//! ones (`Write`, `Acks`, `ReadDone`) have fixed places, the others a postcard body.
//!
//! Invariants: nothing that `encode_*` wrote is refused by the deframer of the same version; a header says
//! every length before a byte of the body is believed.

use crate::ids::{BranchId, ChunkIndex, ConfigNumber, DriveId, Epoch, Generation, Incarnation};
use crate::limits::{BLOCK, FRAME_BODY_MAX, FRAME_HEADER, FRAME_PAYLOAD_MAX};
use crate::marks::{Marks, Version};
use crate::message::{Ack, BlockState, Hello, Reply, ReplyFrame, Request, RequestFrame, Run, Scope};
use crate::payload::Payload;
use crate::record::RECORD_BYTES;
use crate::refusal::Refusal;
use serde::Serialize;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"blkD";
/// Protocol versions that this build speaks.
pub const PROTOCOL: u16 = 2;
/// No release ever spoke 1.
pub const PROTOCOL_MIN: u16 = 2;

/// Why bytes of a peer are not believed. Each closes the connection that they came on, and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame does not begin with the magic bytes")]
    Magic,
    #[error("checksum of a frame's header does not match")]
    HeaderSum,
    #[error("protocol version {0} was not agreed on")]
    Version(u16),
    #[error("unknown kind of frame {0}")]
    Kind(u16),
    #[error("a frame of kind {0} is out of place here")]
    Unexpected(u16),
    #[error("a body of {0} bytes is not possible")]
    BodyLength(u32),
    #[error("a payload of {0} bytes is not possible")]
    PayloadLength(u32),
    #[error("checksum of a frame's body does not match")]
    BodySum,
    #[error("the body of a frame of kind {0} is malformed")]
    Body(u16),
    #[error("a payload does not match its checksums")]
    PayloadSum,
}

macro_rules! kinds {
    ($($name:ident = $code:literal;)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u16)]
        pub enum Kind { $($name = $code),* }
        impl Kind {
            pub const ALL: &[Kind] = &[$(Kind::$name),*];
            #[must_use]
            pub const fn code(self) -> u16 { self as u16 }
            #[must_use]
            pub const fn from_code(code: u16) -> Option<Kind> {
                match code { $($code => Some(Kind::$name),)* _ => None }
            }
        }
    };
}
kinds! {
    Hello = 1; Refuse = 2;
    Write = 16; Flush = 17; Marks = 18; Configure = 19; Fence = 20; Create = 21;
    AttemptBegin = 22; AttemptList = 23; AttemptEnd = 24; EndDoubt = 25; Read = 26; Manifest = 27;
    Digest = 28; Repair = 29; Credit = 30; Map = 31; Verify = 32; Lease = 33; LeaseReturn = 34; Ping = 35;
    Changes = 36; Absent = 37; Usage = 38;
    Acks = 64; Refused = 65; FlushBegun = 66; FlushDone = 67; Flushed = 68; Report = 69; Done = 70;
    Progress = 71; Pulled = 72; AttemptFailed = 73; ReadDone = 74; ManifestPage = 75; DigestDone = 76;
    CreditGiven = 77; MapDone = 78; Verified = 79; Leased = 80; Revoke = 81; DriveState = 82;
    AbsenceDone = 83; UsageDone = 84;
}
impl Kind {
    /// Part of the handshake: understood whatever versions the two sides speak.
    #[must_use]
    pub const fn handshake(self) -> bool {
        matches!(self, Kind::Hello | Kind::Refuse)
    }
    /// Said by the side that answers.
    #[must_use]
    pub const fn is_reply(self) -> bool {
        self.code() >= Kind::Acks.code()
    }
    /// May carry a payload.
    #[must_use]
    pub const fn has_payload(self) -> bool {
        matches!(self, Kind::Write | Kind::Repair | Kind::ReadDone)
    }
    /// Longest body, bytes.
    #[must_use]
    pub const fn body_max(self) -> usize {
        match self {
            Kind::Write => RECORD_BYTES,
            Kind::Hello => 4 << 20,
            // Room for what later versions may add.
            Kind::Refuse => 1024,
            Kind::Repair => RECORD_BYTES + size_of::<RawVersion>(),
            Kind::Flush
            | Kind::Marks
            | Kind::EndDoubt
            | Kind::Ping
            | Kind::Flushed
            | Kind::Done
            | Kind::Usage => 0,
            _ => FRAME_BODY_MAX,
        }
    }
}

/// The header's bytes. All numbers little-endian, no padding, any alignment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    pub magic: [u8; 4],
    /// CRC-32C of the 120 bytes that follow this field.
    pub sum: U32,
    pub kind: U16,
    pub protocol: U16,
    pub body: U32,
    pub payload: U32,
    pub body_sum: U32,
    pub token: U64,
    pub drive: U64,
    pub branch: U64,
    pub incarnation: U64,
    pub configuration: U64,
    pub chunk: U32,
    pub epoch: U32,
    pub committed: RawVersion,
    pub durable: RawVersion,
    /// Bit 0 of a `Write`: a credit for a new extent comes with it.
    pub flags: U32,
    pub reserved: [u8; 20],
}
const _: () = assert!(size_of::<RawHeader>() == FRAME_HEADER);

/// A version in fixed places.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawVersion {
    pub epoch: U32,
    pub reserved: U32,
    pub seq: U64,
}
impl RawVersion {
    #[must_use]
    pub fn of(v: Version) -> RawVersion {
        RawVersion { epoch: v.epoch.0.into(), reserved: U32::ZERO, seq: v.seq.into() }
    }
    #[must_use]
    pub fn get(self) -> Version {
        Version::new(Epoch(self.epoch.get()), self.seq.get())
    }
}

/// `flags` of a `Write`.
pub const FLAG_FRESH: u32 = 1;

/// An acknowledgement: 32 bytes. The drive is the header's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawAck {
    branch: U64,
    seq: U64,
    epoch: U32,
    chunk: U32,
    extents: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<RawAck>() == 32);
impl RawAck {
    fn of(a: &Ack) -> RawAck {
        RawAck {
            branch: a.branch.0.into(),
            seq: a.version.seq.into(),
            epoch: a.version.epoch.0.into(),
            chunk: a.chunk.0.into(),
            extents: a.extents.into(),
            reserved: U32::ZERO,
        }
    }
    pub(crate) fn get(self, drive: DriveId) -> Ack {
        Ack {
            branch: BranchId(self.branch.get()),
            drive,
            version: Version::new(Epoch(self.epoch.get()), self.seq.get()),
            chunk: ChunkIndex(self.chunk.get()),
            extents: self.extents.get(),
        }
    }
}

/// A run of blocks in the answer to a read: 24 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawRun {
    count: U32,
    state: U32,
    seq: U64,
    epoch: U32,
    generation: U32,
}
const _: () = assert!(size_of::<RawRun>() == 24);
impl RawRun {
    fn of(r: &Run) -> RawRun {
        RawRun {
            count: r.count.into(),
            state: match r.state {
                BlockState::Data => 0,
                BlockState::Zero => 1,
                BlockState::Absent => 2,
                BlockState::Bad => 3,
            }
            .into(),
            seq: r.version.seq.into(),
            epoch: r.version.epoch.0.into(),
            generation: r.generation.0.into(),
        }
    }
    pub(crate) fn get(self) -> Option<Run> {
        let state = match self.state.get() {
            0 => BlockState::Data,
            1 => BlockState::Zero,
            2 => BlockState::Absent,
            3 => BlockState::Bad,
            _ => return None,
        };
        Some(Run {
            count: self.count.get(),
            state,
            version: Version::new(Epoch(self.epoch.get()), self.seq.get()),
            generation: Generation(self.generation.get()),
        })
    }
}

/// A header that was checked: magic, sum, lengths within their limits, a kind that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub kind: Kind,
    pub protocol: u16,
    /// Bytes.
    pub body: usize,
    pub payload: usize,
    pub body_sum: u32,
    pub token: u64,
    pub scope: Scope,
    pub flags: u32,
}

/// Where the summed part of a header begins.
const SUMMED: usize = 8;

impl Header {
    fn write(&self, to: &mut [u8]) {
        let mut raw = RawHeader {
            magic: MAGIC,
            sum: U32::ZERO,
            kind: self.kind.code().into(),
            protocol: self.protocol.into(),
            body: u32::try_from(self.body).expect("bounded by FRAME_BODY_MAX").into(),
            payload: u32::try_from(self.payload).expect("bounded by FRAME_PAYLOAD_MAX").into(),
            body_sum: self.body_sum.into(),
            token: self.token.into(),
            drive: self.scope.drive.0.into(),
            branch: self.scope.branch.0.into(),
            incarnation: self.scope.incarnation.0.into(),
            configuration: self.scope.configuration.0.into(),
            chunk: self.scope.chunk.0.into(),
            epoch: self.scope.epoch.0.into(),
            committed: RawVersion::of(self.scope.marks.committed),
            durable: RawVersion::of(self.scope.marks.durable),
            flags: self.flags.into(),
            reserved: [0; 20],
        };
        raw.sum = crc32c::crc32c(&raw.as_bytes()[SUMMED..]).into();
        to.copy_from_slice(raw.as_bytes());
    }
    /// Checks the bytes of a header; `agreed` is the protocol version of the handshake, if it is over.
    pub fn read(bytes: &[u8; FRAME_HEADER], agreed: Option<u16>) -> Result<Header, FrameError> {
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.magic != MAGIC {
            return Err(FrameError::Magic);
        }
        if raw.sum.get() != crc32c::crc32c(&bytes[SUMMED..]) {
            return Err(FrameError::HeaderSum);
        }
        let code = raw.kind.get();
        let kind = Kind::from_code(code).ok_or(FrameError::Kind(code))?;
        match agreed {
            None if !kind.handshake() => return Err(FrameError::Unexpected(code)),
            Some(_) if kind == Kind::Hello => return Err(FrameError::Unexpected(code)),
            Some(v) if !kind.handshake() && raw.protocol.get() != v => {
                return Err(FrameError::Version(raw.protocol.get()));
            }
            _ => {}
        }
        let (body, payload) = (raw.body.get(), raw.payload.get());
        if body as usize > kind.body_max() {
            return Err(FrameError::BodyLength(body));
        }
        let fits = payload as usize <= FRAME_PAYLOAD_MAX && (payload as usize).is_multiple_of(BLOCK);
        if !fits || (payload != 0 && !kind.has_payload()) {
            return Err(FrameError::PayloadLength(payload));
        }
        Ok(Header {
            kind,
            protocol: raw.protocol.get(),
            body: body as usize,
            payload: payload as usize,
            body_sum: raw.body_sum.get(),
            token: raw.token.get(),
            scope: Scope {
                drive: DriveId(raw.drive.get()),
                branch: BranchId(raw.branch.get()),
                chunk: ChunkIndex(raw.chunk.get()),
                epoch: Epoch(raw.epoch.get()),
                incarnation: Incarnation(raw.incarnation.get()),
                configuration: ConfigNumber(raw.configuration.get()),
                marks: Marks { committed: raw.committed.get(), durable: raw.durable.get() },
            },
            flags: raw.flags.get(),
        })
    }
}

/// One frame under construction at the end of `out`.
struct Draft<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    kind: Kind,
    token: u64,
    scope: Scope,
    flags: u32,
}

impl Draft<'_> {
    fn new(out: &mut Vec<u8>, kind: Kind, token: u64, scope: Scope) -> Draft<'_> {
        let start = out.len();
        out.resize(start + FRAME_HEADER, 0);
        Draft { out, start, kind, token, scope, flags: 0 }
    }
    fn bytes(self, body: &[u8]) -> Self {
        self.out.extend_from_slice(body);
        self
    }
    fn postcard(self, body: &impl Serialize) -> Self {
        let whole = std::mem::take(self.out);
        *self.out = postcard::to_extend(body, whole).expect("a vector takes all bytes");
        self
    }
    fn payload(self, payload: &Payload) {
        let body_at = self.start + FRAME_HEADER;
        let body = self.out.len() - body_at;
        assert!(body <= self.kind.body_max(), "a body of {body} bytes in a frame of kind {:?}", self.kind);
        assert!(payload.len() <= FRAME_PAYLOAD_MAX, "a payload of {} bytes", payload.len());
        assert!(payload.is_empty() || self.kind.has_payload(), "no payload in {:?}", self.kind);
        let header = Header {
            kind: self.kind,
            protocol: PROTOCOL,
            body,
            payload: payload.len(),
            body_sum: crc32c::crc32c(&self.out[body_at..]),
            token: self.token,
            scope: self.scope,
            flags: self.flags,
        };
        header.write(&mut self.out[self.start..body_at]);
        self.out.extend_from_slice(payload.bytes());
    }
    fn end(self) {
        self.payload(&Payload::empty());
    }
}

/// Appends a `Hello`.
pub fn encode_hello(out: &mut Vec<u8>, hello: &Hello) {
    Draft::new(out, Kind::Hello, 0, Scope::default()).postcard(hello).end();
}

/// Appends the refusal that ends a handshake, or a connection.
pub fn encode_refuse(out: &mut Vec<u8>, refusal: Refusal) {
    Draft::new(out, Kind::Refuse, 0, Scope::default()).bytes(&refusal.code().to_le_bytes()).end();
}

/// Appends a request.
pub fn encode_request(out: &mut Vec<u8>, frame: &RequestFrame) {
    let draft = |out, kind| Draft::new(out, kind, frame.token, frame.scope);
    match &frame.request {
        Request::Write { record, payload, fresh } => {
            let mut d = draft(out, Kind::Write).bytes(&record.encode());
            d.flags = if *fresh { FLAG_FRESH } else { 0 };
            d.payload(payload);
        }
        Request::Repair { record, payload, failed } => draft(out, Kind::Repair)
            .bytes(&record.encode())
            .bytes(RawVersion::of(*failed).as_bytes())
            .payload(payload),
        Request::Flush => draft(out, Kind::Flush).end(),
        Request::Marks => draft(out, Kind::Marks).end(),
        Request::Configure { configuration } => draft(out, Kind::Configure).postcard(configuration).end(),
        Request::Fence { number, holder } => draft(out, Kind::Fence).postcard(&(number, holder)).end(),
        Request::Create { info, chunks } => draft(out, Kind::Create).postcard(&(info, chunks)).end(),
        Request::AttemptBegin { attempt } => draft(out, Kind::AttemptBegin).postcard(attempt).end(),
        Request::AttemptList { number } => draft(out, Kind::AttemptList).postcard(number).end(),
        Request::AttemptEnd { number } => draft(out, Kind::AttemptEnd).postcard(number).end(),
        Request::EndDoubt => draft(out, Kind::EndDoubt).end(),
        Request::Read { view, range, media, source_process } => {
            draft(out, Kind::Read).postcard(&(view, range, media, source_process)).end();
        }
        Request::Manifest { view, after, from, source_process } => {
            draft(out, Kind::Manifest).postcard(&(view, after, from, source_process)).end();
        }
        Request::Digest { views, head, source_process } => {
            draft(out, Kind::Digest).postcard(&(views, head, source_process)).end();
        }
        Request::Changes { view, after, range } => {
            draft(out, Kind::Changes).postcard(&(view, after, range)).end();
        }
        Request::Absent { views, head, blocks } => {
            draft(out, Kind::Absent).postcard(&(views, head, blocks)).end()
        }
        Request::Usage => draft(out, Kind::Usage).end(),
        Request::Credit { want, probe } => draft(out, Kind::Credit).postcard(&(want, probe)).end(),
        Request::Map { view, range } => draft(out, Kind::Map).postcard(&(view, range)).end(),
        Request::Verify { view, first_extent, extents } => {
            draft(out, Kind::Verify).postcard(&(view, first_extent, extents)).end();
        }
        Request::Lease { shown } => draft(out, Kind::Lease).postcard(shown).end(),
        Request::LeaseReturn { branches } => draft(out, Kind::LeaseReturn).postcard(branches).end(),
        Request::Ping => draft(out, Kind::Ping).end(),
    }
}

/// Appends a reply. `Acks` are all of the frame's drive.
pub fn encode_reply(out: &mut Vec<u8>, frame: &ReplyFrame) {
    let scope = Scope { drive: frame.drive, branch: frame.branch, ..Scope::default() };
    let draft = |out, kind| Draft::new(out, kind, frame.token, scope);
    match &frame.reply {
        Reply::Acks(acks) => acks
            .iter()
            .fold(draft(out, Kind::Acks), |d, ack| {
                assert_eq!(ack.drive, frame.drive, "an Acks frame speaks of one drive");
                d.bytes(RawAck::of(ack).as_bytes())
            })
            .end(),
        Reply::ReadDone { runs, sums, payload } => {
            assert_eq!(sums.len(), payload.blocks(), "a checksum for each block that was read");
            let count = u32::try_from(runs.len()).expect("a run is at least one block");
            let d = draft(out, Kind::ReadDone).bytes(&count.to_le_bytes());
            let d = runs.iter().fold(d, |d, run| d.bytes(RawRun::of(run).as_bytes()));
            sums.iter().fold(d, |d, sum| d.bytes(&sum.0.to_le_bytes())).payload(payload);
        }
        Reply::Refused { refusal, version } => {
            draft(out, Kind::Refused).postcard(&(refusal.code(), version)).end();
        }
        Reply::FlushBegun { drive, flush } => draft(out, Kind::FlushBegun).postcard(&(drive, flush)).end(),
        Reply::FlushDone { drive, flush } => draft(out, Kind::FlushDone).postcard(&(drive, flush)).end(),
        Reply::Flushed => draft(out, Kind::Flushed).end(),
        Reply::Report(report) => draft(out, Kind::Report).postcard(report).end(),
        Reply::Done => draft(out, Kind::Done).end(),
        Reply::Progress { number, bytes_done, bytes_left, bytes_moved } => {
            draft(out, Kind::Progress).postcard(&(number, bytes_done, bytes_left, bytes_moved)).end();
        }
        Reply::Pulled { number, bytes_moved } => {
            draft(out, Kind::Pulled).postcard(&(number, bytes_moved)).end();
        }
        Reply::AttemptFailed { number, refusal } => {
            draft(out, Kind::AttemptFailed).postcard(&(number, refusal.code())).end();
        }
        Reply::Manifest { entries, next } => draft(out, Kind::ManifestPage).postcard(&(entries, next)).end(),
        Reply::Digest { hash, extents } => draft(out, Kind::DigestDone).postcard(&(hash, extents)).end(),
        Reply::Credit { granted, allocated } => {
            draft(out, Kind::CreditGiven).postcard(&(granted, allocated)).end();
        }
        Reply::Absence { any } => draft(out, Kind::AbsenceDone).postcard(any).end(),
        Reply::Usage(usage) => draft(out, Kind::UsageDone).postcard(usage).end(),
        Reply::Map { runs } => draft(out, Kind::MapDone).postcard(runs).end(),
        Reply::Verified { extents, bad } => draft(out, Kind::Verified).postcard(&(extents, bad)).end(),
        Reply::Leased { refused, unknown } => draft(out, Kind::Leased).postcard(&(refused, unknown)).end(),
        Reply::Revoke { branches } => draft(out, Kind::Revoke).postcard(branches).end(),
        Reply::DriveState { drive, failed, in_doubt } => {
            draft(out, Kind::DriveState).postcard(&(drive, failed, in_doubt)).end();
        }
    }
}
