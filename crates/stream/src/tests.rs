//! Every stream comes back as it was; cut anywhere, or with any bit flipped, it is refused.

use super::*;
use crate::frame::BLOCK;
use proptest::prelude::*;

const SIZE: u64 = 64 << 20;

fn begin() -> Begin {
    let point = |name: &str, id| Point { name: name.into(), id, created_ms: 1_700_000_000_000 };
    Begin {
        format: FORMAT,
        requires: vec![],
        cluster: "lab".into(),
        volume: "web".into(),
        size: SIZE,
        chunk_shift: 28,
        from: Some(point("monday", "0".repeat(32))),
        to: point("tuesday", "1".repeat(32)),
    }
}

/// A piece of content: blocks to skip, blocks, and a fill (0: zeroes; even: packs well; odd: does not).
type Piece = (u64, u64, u8);

fn bytes_of(blocks: u64, fill: u8) -> Vec<u8> {
    let mut x = u64::from(fill) + 1;
    let noise = |_| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if fill.is_multiple_of(2) { fill } else { x.to_be_bytes()[0] }
    };
    (0..blocks * BLOCK).map(noise).collect()
}

fn items(pieces: &[Piece]) -> Vec<Item> {
    let mut at = 0;
    let mut out = vec![];
    for (skip, blocks, fill) in pieces {
        at += skip * BLOCK;
        out.push(match fill {
            0 => Item::Zero { offset: at, length: blocks * BLOCK },
            _ => Item::Data { offset: at, bytes: bytes_of(*blocks, *fill) },
        });
        at += blocks * BLOCK;
    }
    out
}

fn tell(w: &mut Writer, out: &mut Vec<u8>, item: &Item) {
    match item {
        Item::Zero { offset, length } => w.zero(out, *offset, *length),
        Item::Data { offset, bytes } => w.data(out, *offset, bytes),
        Item::Begin(_) | Item::End(_) => {}
    }
}

fn written(items: &[Item]) -> Vec<u8> {
    let mut out = vec![];
    let mut w = Writer::begin(&mut out, &begin());
    items.iter().for_each(|i| tell(&mut w, &mut out, i));
    w.end(&mut out);
    out
}

/// What a reader makes of bytes that come in pieces; the error, if it is no whole stream.
fn read(bytes: &[u8], step: usize) -> (Vec<Item>, Reader, Result<(), StreamError>) {
    let (mut r, mut got) = (Reader::new(), vec![]);
    for mut piece in bytes.chunks(step.max(1)) {
        loop {
            match r.next(&mut piece) {
                Ok(Some(item)) => got.push(item),
                Ok(None) => break,
                Err(e) => return (got, r, Err(e)),
            }
        }
    }
    let end = r.finish();
    (got, r, end)
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    prop::collection::vec((0..9u64, 1..40u64, 0..9u8), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_written_is_read(pieces in pieces(), step in 1..70_000usize) {
        let all = items(&pieces);
        let (got, reader, end) = read(&written(&all), step);
        prop_assert_eq!(end, Ok(()));
        prop_assert_eq!(&got[0], &Item::Begin(Box::new(begin())));
        prop_assert_eq!(&got[1..=all.len()], &all[..]);
        let Item::End(said) = got.last().unwrap() else { panic!("{:?}", got.last()) };
        prop_assert_eq!(said.frames, all.len() as u64 + 1);
        prop_assert_eq!(reader.good().bytes, written(&all).len() as u64);
    }

    /// A writer that goes on after the last whole frame writes the very bytes that the first one would have.
    #[test]
    fn a_stream_that_was_cut_is_resumed(pieces in pieces(), cut in any::<prop::sample::Index>()) {
        let all = items(&pieces);
        let whole = written(&all);
        let (got, reader, end) = read(&whole[..cut.index(whole.len())], 4096);
        prop_assert!(end.is_err());
        let good = reader.good();
        if !got.is_empty() {
            let mut out = whole[..usize::try_from(good.bytes).unwrap()].to_vec();
            let mut w = Writer::resume(&begin(), &good);
            all[got.len() - 1..].iter().for_each(|i| tell(&mut w, &mut out, i));
            w.end(&mut out);
            prop_assert_eq!(out, whole);
        }
    }

    #[test]
    fn rubbish_is_refused_and_does_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..4000), like in any::<bool>()) {
        if like {
            bytes.splice(0..0, MAGIC);
        }
        prop_assert!(read(&bytes, 700).2.is_err());
    }
}

fn small() -> Vec<u8> {
    written(&items(&[(1, 1, 0), (0, 2, 2), (3, 1, 3), (0, 1, 0)]))
}

#[test]
fn a_stream_cut_anywhere_is_refused() {
    let whole = small();
    for end in 0..whole.len() {
        let (_, _, result) = read(&whole[..end], whole.len());
        assert!(result.is_err(), "cut at {end}");
    }
}

#[test]
fn any_flipped_bit_is_found() {
    let whole = small();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bad = whole.clone();
            bad[at] ^= 1 << bit;
            let (got, _, result) = read(&bad, whole.len());
            assert!(result.is_err(), "byte {at}, bit {bit}");
            let (good, _, _) = read(&whole, whole.len());
            assert!(good.starts_with(&got), "byte {at}, bit {bit}: what came before it was read as it is");
        }
    }
}

#[test]
fn frames_stand_in_their_places() {
    let all = items(&[(0, 1, 2), (0, 1, 2), (0, 1, 4)]);
    let whole = written(&all);
    let mut ends = vec![];
    let (mut r, mut input) = (Reader::new(), &whole[..]);
    while let Some(_item) = r.next(&mut input).unwrap() {
        ends.push(usize::try_from(r.good().bytes).unwrap());
    }
    let frame = |i: usize| whole[ends[i - 1]..ends[i]].to_vec();
    let with = |frames: &[usize]| {
        let mut bytes = whole[..ends[0]].to_vec();
        frames.iter().for_each(|i| bytes.extend(frame(*i)));
        read(&bytes, bytes.len()).2
    };
    assert_eq!(with(&[1, 2, 3, 4]), Ok(()));
    assert_eq!(with(&[2, 1, 3, 4]), Err(StreamError::Chain(1)), "swapped");
    assert_eq!(with(&[1, 3, 4]), Err(StreamError::Chain(2)), "left out");
    assert_eq!(with(&[1, 1, 2, 3, 4]), Err(StreamError::Chain(2)), "twice");
    assert_eq!(with(&[1, 2, 3, 4, 4]), Err(StreamError::Trailing));
    assert_eq!(with(&[1, 2, 3]), Err(StreamError::Cut(4)));
}

#[test]
fn newer_formats_are_refused_by_name() {
    let of = |change: fn(&mut Begin)| {
        let mut b = begin();
        change(&mut b);
        let mut out = vec![];
        Writer::begin(&mut out, &b).end(&mut out);
        read(&out, 100).2.unwrap_err()
    };
    assert_eq!(of(|b| b.format = 2), StreamError::Format(2));
    assert_eq!(of(|b| b.requires = vec!["keys".into()]), StreamError::Requires("keys".into()));
    assert!(matches!(of(|b| b.size = 77), StreamError::Malformed(0, _)));
}

#[test]
#[should_panic(expected = "rising order")]
fn a_writer_goes_forward() {
    let mut out = vec![];
    let mut w = Writer::begin(&mut out, &begin());
    w.zero(&mut out, 8192, 4096);
    w.zero(&mut out, 4096, 4096);
}
