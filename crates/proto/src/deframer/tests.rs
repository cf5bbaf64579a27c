//! Round trips of every message in pieces of every size, and rubbish of every sort.

use super::*;
use crate::configuration::{Configuration, Member, MemberState, Place};
use crate::frame::{MAGIC, PROTOCOL, encode_hello, encode_refuse, encode_reply, encode_request};
use crate::generations::Generations;
use crate::ids::*;
use crate::limits::{BLOCK, FRAME_HEADER};
use crate::marks::{Marks, Version};
use crate::message::*;
use crate::record::RecordKind;
use crate::units::{BlockRange, Geometry};
use crate::views::ListIndex;
use proptest::prelude::*;

fn version() -> impl Strategy<Value = Version> {
    (0..9u32, any::<u64>()).prop_map(|(e, s)| Version::new(Epoch(e), s))
}
fn range() -> impl Strategy<Value = BlockRange> {
    (0..1000u32, 1..64u32).prop_map(|(f, c)| BlockRange::new(f, c))
}
fn place() -> impl Strategy<Value = Place> {
    (1..9u32, any::<u64>(), any::<u64>()).prop_map(|(n, d, i)| Place {
        node: NodeId(n),
        drive: DriveId(d),
        incarnation: Incarnation(i),
    })
}
fn configuration() -> impl Strategy<Value = Configuration> {
    (any::<u64>(), prop::collection::vec((place(), 0..3u8), 0..8)).prop_map(|(n, ms)| Configuration {
        number: ConfigNumber(n),
        members: ms
            .into_iter()
            .map(|(place, s)| Member {
                place,
                state: [MemberState::InSync, MemberState::Stale, MemberState::Leaving][s as usize],
            })
            .collect(),
    })
}
fn scope() -> impl Strategy<Value = Scope> {
    (any::<[u64; 4]>(), any::<[u32; 2]>(), version(), version()).prop_map(|(a, b, committed, durable)| {
        Scope {
            drive: DriveId(a[0]),
            branch: BranchId(a[1]),
            chunk: ChunkIndex(b[0]),
            epoch: Epoch(b[1]),
            incarnation: Incarnation(a[2]),
            configuration: ConfigNumber(a[3]),
            marks: Marks { committed, durable },
        }
    })
}
fn payload() -> impl Strategy<Value = Payload> {
    (1..=16usize, any::<u8>()).prop_map(|(blocks, seed)| {
        let bytes: Vec<u8> =
            (0..blocks * BLOCK).map(|i| seed.wrapping_add(u8::try_from(i % 251).unwrap())).collect();
        Payload::copy_of(&bytes)
    })
}
fn write_record() -> impl Strategy<Value = (Record, Payload)> {
    (payload(), any::<u64>(), 0..99u32, version(), 0..50u32, any::<bool>()).prop_map(
        |(p, branch, chunk, version, extent, zero)| {
            let (kind, payload) =
                if zero { (RecordKind::Zero, Payload::empty()) } else { (RecordKind::Write, p.clone()) };
            let record = Record {
                kind,
                branch: BranchId(branch),
                chunk: ChunkIndex(chunk),
                range: BlockRange::new(extent * 16, u32::try_from(p.blocks()).unwrap()),
                version,
                generation: Generation(1),
                incarnation: Incarnation(4),
                key: KeyId(0),
                sums: Record::sums_of(&payload),
            };
            (record, payload)
        },
    )
}
fn view() -> impl Strategy<Value = View> {
    prop_oneof![Just(View::Head), any::<u32>().prop_map(|g| View::At(Generation(g)))]
}
/// A view, and one before it.
fn view_after() -> impl Strategy<Value = (View, Generation)> {
    prop_oneof![
        any::<u32>().prop_map(|g| (View::Head, Generation(g))),
        (1..u32::MAX).prop_map(|g| (View::At(Generation(g)), Generation(g / 2))),
    ]
}
fn generations() -> impl Strategy<Value = Generations> {
    prop::collection::vec(1..99u32, 0..9).prop_map(|v| v.into_iter().map(Generation).collect())
}
fn process() -> impl Strategy<Value = Option<ProcessNumber>> {
    prop::option::of(any::<u64>().prop_map(ProcessNumber))
}
fn info() -> impl Strategy<Value = BranchInfo> {
    (any::<u64>(), "[a-z]{1,20}", prop::option::of((any::<u64>(), any::<u32>()))).prop_map(
        |(branch, name, parent)| BranchInfo {
            branch: BranchId(branch),
            name,
            geometry: Geometry { size: 1 << 30, chunk_shift: 28 },
            parent: parent.map(|(b, g)| (BranchId(b), Generation(g))),
            generation: Generation(3),
        },
    )
}
fn attempt() -> impl Strategy<Value = Attempt> {
    (any::<u64>(), generations(), place(), place()).prop_map(|(n, views, source, target)| Attempt {
        number: n,
        epoch: Epoch(3),
        chunk: ChunkIndex(4),
        configuration: ConfigNumber(n ^ 1),
        generation: Generation(99),
        views,
        head: n % 5 != 0,
        source,
        source_process: ProcessNumber(n),
        target,
        target_process: ProcessNumber(n ^ 7),
    })
}

/// One of every sort: a kind that is added must be added here (`every_kind_is_tried`).
fn request_of() -> impl Strategy<Value = Request> {
    let n = any::<u64>();
    prop_oneof![
        (write_record(), any::<bool>()).prop_map(|((record, payload), fresh)| Request::Write {
            record,
            payload,
            fresh
        }),
        Just(Request::Flush),
        Just(Request::Marks),
        configuration().prop_map(|configuration| Request::Configure { configuration }),
        any::<u32>().prop_map(|number| Request::Fence { number, holder: NodeId(number ^ 5) }),
        (info(), prop::collection::vec((any::<u32>(), any::<u64>(), configuration()), 0..5)).prop_map(
            |(info, cs)| Request::Create {
                info,
                chunks: cs
                    .into_iter()
                    .map(|(c, i, configuration)| ChunkRecord {
                        chunk: ChunkIndex(c),
                        incarnation: Incarnation(i),
                        configuration
                    })
                    .collect()
            }
        ),
        attempt().prop_map(|attempt| Request::AttemptBegin { attempt }),
        n.prop_map(|number| Request::AttemptList { number }),
        n.prop_map(|number| Request::AttemptEnd { number }),
        Just(Request::EndDoubt),
        (view(), range(), any::<bool>(), process()).prop_map(|(view, range, media, source_process)| {
            Request::Read { view, range, media, source_process }
        }),
        (view_after(), 0..65536u32, process()).prop_map(|((view, after), from, source_process)| {
            Request::Manifest { view, after, from, source_process }
        }),
        (generations(), any::<bool>(), process()).prop_map(|(views, head, source_process)| Request::Digest {
            views,
            head,
            source_process
        }),
        (view_after(), range()).prop_map(|((view, after), range)| Request::Changes { view, after, range }),
        (generations(), any::<bool>(), any::<u32>()).prop_map(|(views, head, blocks)| Request::Absent {
            views,
            head,
            blocks
        }),
        Just(Request::Usage),
        (write_record(), version()).prop_map(|((record, payload), failed)| Request::Repair {
            record,
            payload,
            failed
        }),
        (any::<u32>(), prop::option::of((1..9u32, range(), any::<bool>())))
            .prop_map(|(want, p)| (
                want,
                p.map(|(g, range, zero)| Probe { generation: Generation(g), range, zero })
            ))
            .prop_map(|(want, probe)| Request::Credit { want, probe }),
        (view(), range()).prop_map(|(view, range)| Request::Map { view, range }),
        (view(), 0..9999u32).prop_map(|(view, e)| Request::Verify { view, first_extent: e, extents: 7 }),
        prop::collection::vec((any::<u64>(), any::<u32>()), 0..9).prop_map(|v| Request::Lease {
            shown: v.into_iter().map(|(b, e)| (BranchId(b), Epoch(e))).collect()
        }),
        prop::collection::vec(any::<u64>().prop_map(BranchId), 0..9)
            .prop_map(|branches| Request::LeaseReturn { branches }),
        Just(Request::Ping),
    ]
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    prop::collection::vec((1..9u32, 0..4u8, version(), any::<u32>()), 0..6).prop_map(|rs| {
        rs.into_iter()
            .map(|(count, s, version, g)| Run {
                count,
                state: [BlockState::Data, BlockState::Zero, BlockState::Absent, BlockState::Bad][s as usize],
                version,
                generation: Generation(g),
            })
            .collect()
    })
}
fn read_done() -> impl Strategy<Value = Reply> {
    (runs(), any::<u8>()).prop_map(|(runs, fill)| {
        let data: u32 = runs.iter().filter(|r| r.state == BlockState::Data).map(|r| r.count).sum();
        let payload = Payload::copy_of(&vec![fill; data as usize * BLOCK]);
        let sums = (0..payload.blocks()).map(|i| Sum::of(payload.block(i))).collect();
        Reply::ReadDone { runs, sums, payload }
    })
}
fn refusal_of() -> impl Strategy<Value = Refusal> {
    (0..Refusal::ALL.len()).prop_map(|i| Refusal::ALL[i])
}
fn report() -> impl Strategy<Value = Report> {
    (any::<u32>(), any::<bool>(), version(), prop::collection::vec((0..65535u32, version()), 0..9)).prop_map(
        |(fence, in_doubt, v, es)| Report {
            fence,
            in_doubt,
            marks: Marks { committed: v, durable: v },
            more: fence % 2 == 1,
            runs: es
                .into_iter()
                .map(|(first, version)| ReportedRun {
                    chunk: ChunkIndex(1),
                    first,
                    count: 1 + fence % (65536 - first),
                    generation: Generation(1),
                    version,
                })
                .collect(),
            chunks: vec![(ChunkIndex(fence), Incarnation(8))],
            free_extents: u64::from(fence),
        },
    )
}
fn usage() -> impl Strategy<Value = Usage> {
    let view = any::<(u32, u64, u64)>().prop_map(|(g, seen, exclusive)| ViewUsage {
        generation: Generation(g),
        seen,
        exclusive,
    });
    (any::<[u64; 3]>(), prop::collection::vec(view.clone(), 0..5), view).prop_map(
        |([index, total, unseen], views, head)| Usage { index: ListIndex(index), total, unseen, views, head },
    )
}
fn reply_of() -> impl Strategy<Value = Reply> {
    let (n, d) = (any::<u64>(), any::<u64>().prop_map(DriveId));
    prop_oneof![
        prop::collection::vec((any::<u64>(), version(), any::<[u32; 2]>()), 0..20).prop_map(|acks| {
            let ack = |(b, version, [chunk, extents]): (u64, Version, [u32; 2])| Ack {
                branch: BranchId(b),
                drive: DriveId(6),
                version,
                chunk: ChunkIndex(chunk),
                extents,
            };
            Reply::Acks(acks.into_iter().map(ack).collect())
        }),
        (refusal_of(), version()).prop_map(|(refusal, version)| Reply::Refused { refusal, version }),
        (d, n).prop_map(|(drive, flush)| Reply::FlushBegun { drive, flush }),
        n.prop_map(|flush| Reply::FlushDone { drive: DriveId(2), flush }),
        Just(Reply::Flushed),
        report().prop_map(Reply::Report),
        Just(Reply::Done),
        any::<[u64; 4]>().prop_map(|[number, bytes_done, bytes_left, bytes_moved]| Reply::Progress {
            number,
            bytes_done,
            bytes_left,
            bytes_moved
        }),
        any::<[u64; 2]>().prop_map(|[number, bytes_moved]| Reply::Pulled { number, bytes_moved }),
        (any::<u64>(), refusal_of()).prop_map(|(number, refusal)| Reply::AttemptFailed { number, refusal }),
        read_done(),
        (prop::collection::vec((any::<u32>(), version(), any::<u64>()), 0..9), any::<Option<u32>>())
            .prop_map(|(es, next)| Reply::Manifest {
                entries: es
                    .into_iter()
                    .map(|(extent, version, hash)| ManifestEntry { extent, version, hash })
                    .collect(),
                next
            }),
        any::<[u64; 2]>().prop_map(|[hash, extents]| Reply::Digest { hash, extents }),
        (any::<u32>(), any::<bool>()).prop_map(|(granted, allocated)| Reply::Credit { granted, allocated }),
        runs().prop_map(|runs| Reply::Map { runs }),
        any::<bool>().prop_map(|any| Reply::Absence { any }),
        usage().prop_map(Reply::Usage),
        (prop::collection::vec(any::<(u32, u64)>(), 0..5), any::<Vec<u32>>())
            .prop_map(|(extents, bad)| Reply::Verified { extents, bad }),
        [(); 2]
            .map(|()| prop::collection::vec(any::<u64>().prop_map(BranchId), 0..9))
            .prop_map(|[refused, unknown]| Reply::Leased { refused, unknown }),
        prop::collection::vec((any::<u64>(), any::<u32>()), 0..9).prop_map(|v| Reply::Revoke {
            branches: v.into_iter().map(|(b, e)| (BranchId(b), Epoch(e))).collect()
        }),
        (any::<bool>(), prop::collection::vec(any::<u64>().prop_map(BranchId), 0..4))
            .prop_map(|(failed, in_doubt)| Reply::DriveState { drive: DriveId(2), failed, in_doubt }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any::<u64>(), scope(), request_of())
            .prop_map(|(token, scope, request)| Message::Request(RequestFrame { token, scope, request })),
        (any::<u64>(), any::<u64>(), reply_of()).prop_map(|(token, branch, reply)| Message::Reply(
            ReplyFrame { token, branch: BranchId(branch), drive: DriveId(6), reply }
        )),
        refusal_of().prop_map(Message::Refuse),
    ]
}

fn encode(out: &mut Vec<u8>, m: &Message) {
    match m {
        Message::Hello(h) => encode_hello(out, h),
        Message::Refuse(r) => encode_refuse(out, *r),
        Message::Request(f) => encode_request(out, f),
        Message::Reply(f) => encode_reply(out, f),
    }
}
fn agreed() -> Deframer {
    let mut d = Deframer::new();
    d.agree(PROTOCOL);
    d
}
/// Feeds `bytes` in pieces of these sizes (again and again); the messages up to the first error.
fn feed(d: &mut Deframer, mut bytes: &[u8], pieces: &[usize]) -> (Vec<Message>, Option<FrameError>) {
    let (mut got, mut i) = (Vec::new(), 0);
    while !bytes.is_empty() {
        let mut piece = take(&mut bytes, pieces[i % pieces.len()].max(1));
        i += 1;
        loop {
            match d.next(&mut piece) {
                Ok(Some(m)) => got.push(m),
                Ok(None) => break,
                Err(e) => return (got, Some(e)),
            }
        }
    }
    (got, None)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_message_comes_back_whatever_the_pieces(
        messages in prop::collection::vec(message(), 1..6),
        pieces in prop::collection::vec(1..9000usize, 1..5),
    ) {
        let mut bytes = Vec::new();
        messages.iter().for_each(|m| encode(&mut bytes, m));
        let (got, error) = feed(&mut agreed(), &bytes, &pieces);
        prop_assert_eq!(error, None);
        prop_assert_eq!(got, messages);
    }

    #[test]
    fn a_changed_byte_is_noticed_and_nothing_after_it_is_read(
        before in message(), hit in message(), at in any::<prop::sample::Index>(), with in 1..=255u8,
    ) {
        let mut bytes = Vec::new();
        encode(&mut bytes, &before);
        let start = bytes.len();
        encode(&mut bytes, &hit);
        let at = start + at.index(bytes.len() - start);
        bytes[at] ^= with;
        encode(&mut bytes, &before);
        let mut d = agreed();
        let (got, error) = feed(&mut d, &bytes, &[usize::MAX]);
        prop_assert_eq!(got, vec![before]);
        prop_assert!(error.is_some());
        let mut more: &[u8] = &bytes;
        prop_assert_eq!(d.next(&mut more).err(), error);
    }

    #[test]
    fn rubbish_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        feed(&mut agreed(), &bytes, &[7]);
        feed(&mut Deframer::new(), &bytes, &[usize::MAX]);
    }

    /// A body of rubbish under a header that is right in itself: sums match, so the decoders see it.
    #[test]
    fn a_malicious_body_never_panics(
        kind in 0..crate::frame::Kind::ALL.len(),
        body in prop::collection::vec(any::<u8>(), 0..400),
        blocks in 0..3usize, scope in scope(),
    ) {
        let kind = crate::frame::Kind::ALL[kind];
        let mut bytes = Vec::new();
        encode_request(&mut bytes, &RequestFrame { token: 1, scope, request: Request::Ping });
        reseal(&mut bytes, kind.code(), &body, blocks * BLOCK);
        feed(&mut agreed(), &bytes, &[usize::MAX]);
        feed(&mut Deframer::new(), &bytes, &[usize::MAX]);
    }
}

/// Makes the frame in `bytes` one of `kind` with this body and a payload of zeroes, sums right.
fn reseal(bytes: &mut Vec<u8>, kind: u16, body: &[u8], payload: usize) {
    bytes.truncate(FRAME_HEADER);
    bytes[8..10].copy_from_slice(&kind.to_le_bytes());
    bytes[12..16].copy_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    bytes[16..20].copy_from_slice(&u32::try_from(payload).unwrap().to_le_bytes());
    bytes[20..24].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    let sum = crc32c::crc32c(&bytes[8..FRAME_HEADER]);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes.resize(bytes.len() + payload, 0);
}
fn ping() -> Vec<u8> {
    let mut bytes = Vec::new();
    let frame = RequestFrame { token: 3, scope: Scope::default(), request: Request::Ping };
    encode_request(&mut bytes, &frame);
    bytes
}
fn error_of(d: &mut Deframer, bytes: &[u8]) -> FrameError {
    feed(d, bytes, &[usize::MAX]).1.expect("an error")
}

#[test]
fn each_wrong_header_has_its_error() {
    let mut bytes = ping();
    assert_eq!(&bytes[..4], &MAGIC);
    bytes[0] = b'X';
    assert_eq!(error_of(&mut agreed(), &bytes), FrameError::Magic);
    let mut bytes = ping();
    bytes[40] ^= 1;
    assert_eq!(error_of(&mut agreed(), &bytes), FrameError::HeaderSum);
    let mut bytes = ping();
    reseal(&mut bytes, 999, &[], 0);
    assert_eq!(error_of(&mut agreed(), &bytes), FrameError::Kind(999));
    let mut bytes = ping();
    reseal(&mut bytes, Kind::Ping.code(), &[1], 0);
    assert_eq!(error_of(&mut agreed(), &bytes), FrameError::BodyLength(1));
    for (kind, length) in
        [(Kind::Ping, BLOCK), (Kind::Write, 100), (Kind::ReadDone, FRAME_PAYLOAD_MAX + BLOCK)]
    {
        let mut bytes = ping();
        reseal(&mut bytes, kind.code(), &[], length);
        let want = FrameError::PayloadLength(u32::try_from(length).unwrap());
        assert_eq!(error_of(&mut agreed(), &bytes), want);
    }
    let mut later = Deframer::new();
    later.agree(PROTOCOL + 1);
    assert_eq!(error_of(&mut later, &ping()), FrameError::Version(PROTOCOL));
}

#[test]
fn nothing_but_a_handshake_comes_before_the_handshake() {
    assert_eq!(error_of(&mut Deframer::new(), &ping()), FrameError::Unexpected(Kind::Ping.code()));
    let hello =
        crate::handshake::Identity { cluster: ClusterId(1), node: NodeId(1), process: ProcessNumber(1) }
            .dial(NodeId(2), ConnNumber(1));
    let mut bytes = Vec::new();
    encode_hello(&mut bytes, &hello);
    let (got, error) = feed(&mut Deframer::new(), &bytes, &[11]);
    assert_eq!((got, error), (vec![Message::Hello(Box::new(hello))], None));
    assert_eq!(error_of(&mut agreed(), &bytes), FrameError::Unexpected(Kind::Hello.code()));
}

#[test]
fn a_huge_length_costs_nothing_until_its_bytes_come() {
    let mut bytes = ping();
    reseal(&mut bytes, Kind::Report.code(), &[], 0);
    let length = u32::try_from(crate::limits::FRAME_BODY_MAX).unwrap();
    bytes[12..16].copy_from_slice(&length.to_le_bytes());
    let sum = crc32c::crc32c(&bytes[8..FRAME_HEADER]);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    let mut d = agreed();
    assert_eq!(feed(&mut d, &bytes, &[usize::MAX]), (vec![], None));
    assert!(d.body.capacity() < 4096);
}

#[test]
fn a_write_whose_payload_does_not_match_its_sums_is_refused() {
    let payload = Payload::copy_of(&[7; BLOCK]);
    let record = Record {
        kind: RecordKind::Write,
        branch: BranchId(1),
        chunk: ChunkIndex(0),
        range: BlockRange::new(3, 1),
        version: Version::new(Epoch(1), 1),
        generation: Generation(1),
        incarnation: Incarnation(1),
        key: KeyId(0),
        sums: Record::sums_of(&payload),
    };
    let mut bytes = Vec::new();
    let request = Request::Write { record, payload, fresh: false };
    encode_request(&mut bytes, &RequestFrame { token: 0, scope: Scope::default(), request });
    assert_eq!(bytes.len(), FRAME_HEADER + RECORD_BYTES + BLOCK);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert_eq!(error_of(&mut agreed(), &bytes), FrameError::PayloadSum);
}

/// Lengths that add up to more than their type holds must not reach anybody's arithmetic.
#[test]
fn impossible_ranges_and_geometries_are_refused() {
    let far = BlockRange::new(u32::MAX, 2);
    let read = Request::Read { view: View::Head, range: far, media: false, source_process: None };
    let info = BranchInfo {
        branch: BranchId(1),
        name: String::new(),
        geometry: Geometry { size: 1 << 30, chunk_shift: 99 },
        parent: None,
        generation: Generation(1),
    };
    let manifest = |view, after, from| Request::Manifest { view, after, from, source_process: None };
    let requests = [
        (read, Kind::Read),
        (Request::Map { view: View::Head, range: BlockRange::new(1, 0) }, Kind::Map),
        (
            Request::Credit {
                want: 1,
                probe: Some(Probe { generation: Generation(1), range: far, zero: false }),
            },
            Kind::Credit,
        ),
        (Request::Verify { view: View::Head, first_extent: u32::MAX, extents: 1 }, Kind::Verify),
        (manifest(View::Head, Generation(0), u32::MAX), Kind::Manifest),
        (manifest(View::At(Generation(3)), Generation(3), 0), Kind::Manifest),
        (
            Request::Changes {
                view: View::At(Generation(2)),
                after: Generation(5),
                range: BlockRange::new(0, 1),
            },
            Kind::Changes,
        ),
        (Request::Changes { view: View::Head, after: Generation(5), range: far }, Kind::Changes),
        (Request::Create { info, chunks: vec![] }, Kind::Create),
    ];
    for (request, kind) in requests {
        let mut bytes = Vec::new();
        encode_request(&mut bytes, &RequestFrame { token: 0, scope: Scope::default(), request });
        assert_eq!(error_of(&mut agreed(), &bytes), FrameError::Body(kind.code()));
    }
    let run =
        |count| Run { count, state: BlockState::Absent, version: Version::ZERO, generation: Generation(0) };
    let reply = Reply::Map { runs: vec![run(u32::MAX), run(u32::MAX)] };
    let mut bytes = Vec::new();
    encode_reply(&mut bytes, &ReplyFrame { token: 0, branch: BranchId(0), drive: DriveId(0), reply });
    assert_eq!(error_of(&mut agreed(), &bytes), FrameError::Body(Kind::MapDone.code()));
}

/// Places in the header are the protocol: they never move.
#[test]
fn the_header_has_its_fixed_places() {
    let frame = RequestFrame {
        token: 0x0102,
        scope: Scope {
            drive: DriveId(0x11),
            branch: BranchId(0x22),
            chunk: ChunkIndex(0x33),
            epoch: Epoch(0x44),
            incarnation: Incarnation(0x55),
            configuration: ConfigNumber(0x66),
            marks: Marks {
                committed: Version::new(Epoch(0x77), 0x88),
                durable: Version::new(Epoch(0x99), 0xaa),
            },
        },
        request: Request::Flush,
    };
    let mut b = Vec::new();
    encode_request(&mut b, &frame);
    let places: Vec<(usize, u8)> =
        b.iter().copied().enumerate().skip(8).filter(|(_, byte)| *byte != 0).collect();
    assert_eq!(
        places,
        [
            (8, 17),
            (10, 2),
            (24, 2),
            (25, 1),
            (32, 0x11),
            (40, 0x22),
            (48, 0x55),
            (56, 0x66),
            (64, 0x33),
            (68, 0x44),
            (72, 0x77),
            (80, 0x88),
            (88, 0x99),
            (96, 0xaa)
        ]
    );
}

#[test]
fn every_kind_is_tried() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut seen = std::collections::BTreeSet::from([Kind::Hello.code()]);
    for _ in 0..3000 {
        let mut bytes = Vec::new();
        encode(&mut bytes, &message().new_tree(&mut runner).unwrap().current());
        seen.insert(u16::from_le_bytes([bytes[8], bytes[9]]));
    }
    assert_eq!(seen.len(), Kind::ALL.len());
}
