//! Exact effects of an attempt's target side.

use super::*;
use proto::message::Attempt;
use proto::record::Sum;
use proto::{ChunkIndex, ConfigNumber, Epoch, Generation, Incarnation, Payload, Place, ProcessNumber};

const SESSION: Source = Source(5);
const B: BranchId = BranchId(3);
const NOW: Time = Time(1_000_000_000);

fn place(n: u32) -> Place {
    Place { node: NodeId(n), drive: DriveId(u64::from(n) + 100), incarnation: Incarnation(u64::from(n)) }
}
fn attempt(number: u64) -> Attempt {
    Attempt {
        number,
        epoch: Epoch(4),
        chunk: ChunkIndex(2),
        configuration: ConfigNumber(9),
        generation: Generation(1),
        views: proto::Generations::new(),
        head: true,
        source: place(1),
        source_process: ProcessNumber(11),
        target: place(2),
        target_process: ProcessNumber(12),
    }
}
/// Everything that is to be done, in order.
fn drain(p: &mut Pulls) -> Vec<Out> {
    std::iter::from_fn(|| p.poll()).collect()
}
fn begun() -> Pulls {
    let mut p = Pulls::new();
    p.begun(SESSION, B, attempt(7));
    assert!(drain(&mut p).is_empty(), "nothing is asked before the session says so");
    p.list(SESSION, B, place(2).drive, 7, 77);
    p
}
/// The tokens of what was asked of the source and of our own store.
fn tokens(outs: &[Out]) -> (Vec<u64>, Vec<u64>) {
    let (mut source, mut own) = (vec![], vec![]);
    for out in outs {
        match out {
            Out::Source { node, frame } => {
                assert_eq!(
                    (*node, frame.scope.drive, frame.scope.incarnation),
                    (NodeId(1), DriveId(101), Incarnation(1))
                );
                source.push(frame.token);
            }
            Out::Own(frame) => {
                assert_eq!((frame.scope.drive, frame.scope.incarnation), (DriveId(102), Incarnation(2)));
                own.push(frame.token);
            }
            other => panic!("{other:?}"),
        }
    }
    (source, own)
}
/// What was said to the session.
fn said(outs: Vec<Out>) -> Vec<Reply> {
    let reply = |out| match out {
        Out::Reply {
            source: SESSION,
            frame: ReplyFrame { token: 77, branch: B, drive: DriveId(102), reply },
        } => reply,
        other => panic!("{other:?}"),
    };
    outs.into_iter().map(reply).collect()
}
fn digests(p: &mut Pulls, source: u64, own: u64) {
    let (s, o) = tokens(&drain(p));
    p.reply(NOW, s[0], Reply::Digest { hash: source, extents: 1 });
    p.reply(NOW, o[0], Reply::Digest { hash: own, extents: 1 });
}
fn entry(extent: u32, hash: u64) -> ManifestEntry {
    ManifestEntry { extent, version: Version::new(Epoch(1), 1), hash }
}
fn listed(source: Vec<ManifestEntry>, own: Vec<ManifestEntry>) -> Pulls {
    let mut p = begun();
    digests(&mut p, 1, 2);
    let (s, o) = tokens(&drain(&mut p));
    p.reply(NOW, s[0], Reply::Manifest { entries: source, next: None });
    p.reply(NOW, o[0], Reply::Manifest { entries: own, next: None });
    p
}
fn data(seq: u64) -> Reply {
    let payload = Payload::copy_of(&[8; 4096]);
    let version = Version::new(Epoch(2), seq);
    let run = |count, state, version| Run { count, state, version, generation: Generation(1) };
    Reply::ReadDone {
        runs: vec![run(1, BlockState::Data, version), run(15, BlockState::Absent, Version::ZERO)],
        sums: vec![Sum::of(payload.block(0))],
        payload,
    }
}

#[test]
fn an_equal_digest_needs_no_listing() {
    let mut p = begun();
    digests(&mut p, 5, 5);
    assert_eq!(said(drain(&mut p)), [Reply::Pulled { number: 7, bytes_moved: 0 }]);
    assert_eq!(p.attempts().count(), 0);
}

#[test]
fn what_differs_is_read_and_pulled_and_then_said() {
    let mut p =
        listed(vec![entry(1, 5), entry(2, 6), entry(4, 7)], vec![entry(1, 5), entry(2, 0), entry(9, 1)]);
    let reads = drain(&mut p);
    let range = |o: &Out| match o {
        Out::Source {
            frame: RequestFrame { request: Request::Read { range, source_process, .. }, .. },
            ..
        } => {
            assert_eq!(*source_process, Some(ProcessNumber(11)));
            range.first / 16
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(reads.iter().map(range).collect::<Vec<_>>(), [2, 4, 9], "what only we have is asked for too");
    let mut said_at_last = vec![];
    for (i, token) in tokens(&reads).0.into_iter().enumerate() {
        p.reply(NOW, token, data(i as u64));
        let outs = drain(&mut p);
        let [Out::Pull { drive: DriveId(102), pull }] = &outs[..] else { panic!("{outs:?}") };
        assert_eq!((pull.attempt, pull.source, pull.version.seq), (7, SESSION, i as u64));
        assert_eq!((pull.generation, pull.runs.len()), (Generation(1), 2));
        p.pulled(NOW, pull.token, Ok(1));
        said_at_last = drain(&mut p);
    }
    assert_eq!(said(said_at_last), [Reply::Pulled { number: 7, bytes_moved: 3 * 4096 }]);
    assert_eq!(p.flying, 0);
}

/// Hashes are of 32-bit sums: where they meet by chance the versions still differ.
#[test]
fn an_extent_of_another_version_is_pulled_whatever_its_hash() {
    let newer = ManifestEntry { version: Version::new(Epoch(1), 2), ..entry(2, 6) };
    let mut p = listed(vec![entry(1, 5), newer], vec![entry(1, 5), entry(2, 6)]);
    let reads = drain(&mut p);
    assert_eq!(reads.len(), 1, "{reads:?}");
}

#[test]
fn pages_are_asked_for_until_the_last_and_one_that_leads_nowhere_fails() {
    let mut p = begun();
    digests(&mut p, 1, 2);
    let (s, _) = tokens(&drain(&mut p));
    p.reply(NOW, s[0], Reply::Manifest { entries: vec![entry(3, 1)], next: Some(10) });
    let outs = drain(&mut p);
    let [
        Out::Source {
            frame: RequestFrame { token, request: Request::Manifest { from: 10, .. }, .. }, ..
        },
    ] = outs[..]
    else {
        panic!("{outs:?}")
    };
    p.reply(NOW, token, Reply::Manifest { entries: vec![entry(12, 1)], next: Some(12) });
    assert_eq!(said(drain(&mut p)), [Reply::AttemptFailed { number: 7, refusal: Refusal::Invalid }]);
}

#[test]
fn a_bad_block_at_the_source_or_a_refusal_fails_the_attempt() {
    let bad = Run { count: 16, state: BlockState::Bad, version: Version::ZERO, generation: Generation(1) };
    let bad = Reply::ReadDone { runs: vec![bad], sums: vec![], payload: Payload::empty() };
    let refused = Reply::Refused { refusal: Refusal::InDoubt, version: Version::ZERO };
    for (reply, refusal) in [(bad, Refusal::BadBlock), (refused, Refusal::InDoubt)] {
        let mut p = listed(vec![entry(1, 5), entry(2, 5)], vec![]);
        let (s, _) = tokens(&drain(&mut p));
        p.reply(NOW, s[0], reply);
        assert_eq!(said(drain(&mut p)), [Reply::AttemptFailed { number: 7, refusal }]);
        p.reply(NOW, s[1], data(1));
        assert!(drain(&mut p).is_empty(), "the rest of it is nobody's");
        assert_eq!(p.flying, 0);
    }
}

#[test]
fn an_attempt_ends_with_its_connection_and_fails_with_its_source() {
    let mut p = listed(vec![entry(1, 5)], vec![]);
    p.connection_closed(SESSION);
    let (s, _) = tokens(&drain(&mut p));
    p.reply(NOW, s[0], data(1));
    assert!(drain(&mut p).is_empty());

    let mut p = listed(vec![entry(1, 5)], vec![]);
    drain(&mut p);
    p.source_lost(NodeId(3));
    assert!(drain(&mut p).is_empty());
    p.source_lost(NodeId(1));
    assert_eq!(said(drain(&mut p)), [Reply::AttemptFailed { number: 7, refusal: Refusal::OldConnection }]);
}

#[test]
fn a_list_of_an_unknown_attempt_fails() {
    let mut p = begun();
    drain(&mut p);
    p.ended(SESSION, B, 7);
    p.list(SESSION, B, place(2).drive, 7, 77);
    assert_eq!(said(drain(&mut p)), [Reply::AttemptFailed { number: 7, refusal: Refusal::OldAttempt }]);
}

#[test]
fn guests_writes_slow_the_pulls_down() {
    let many: Vec<_> = (0..100).map(|e| entry(e, 1)).collect();
    let mut p = Pulls::new();
    p.guest_write(NOW);
    p.begun(SESSION, B, attempt(7));
    p.list(SESSION, B, place(2).drive, 7, 77);
    digests(&mut p, 1, 2);
    let (s, o) = tokens(&drain(&mut p));
    p.reply(NOW, s[0], Reply::Manifest { entries: many, next: None });
    p.reply(NOW, o[0], Reply::Manifest { entries: vec![], next: None });
    assert_eq!(drain(&mut p).len(), WINDOW_BUSY);
    assert_eq!(p.next_wake(), NOW + BUSY);
    p.push(NOW + BUSY);
    assert_eq!(drain(&mut p).len(), WINDOW - WINDOW_BUSY);
    assert_eq!(p.next_wake(), Time::FAR);
}

#[test]
fn the_next_session_on_the_same_connection_is_not_answered_with_what_the_older_one_asked() {
    let mut p = listed(vec![entry(1, 5)], vec![]);
    let (asked, _) = tokens(&drain(&mut p));
    let next = Attempt { epoch: Epoch(5), chunk: ChunkIndex(3), ..attempt(7) };
    p.begun(SESSION, B, next);
    p.reply(NOW, asked[0], data(1));
    assert!(drain(&mut p).is_empty(), "an extent of another chunk is not pulled into this one");
    assert_eq!(p.flying, 0, "what the older one had under way counts no more");
}

#[test]
fn an_older_sessions_attempt_that_begins_late_ends_nothing() {
    let mut p = listed(vec![entry(1, 5)], vec![]);
    let (asked, _) = tokens(&drain(&mut p));
    let old = Source(4);
    p.begun(old, B, Attempt { epoch: Epoch(3), ..attempt(7) });
    p.list(old, B, place(2).drive, 7, 78);
    let refused = Reply::AttemptFailed { number: 7, refusal: Refusal::OldAttempt };
    let outs = drain(&mut p);
    assert!(matches!(&outs[..], [Out::Reply { source, frame }] if *source == old && frame.reply == refused));
    p.reply(NOW, asked[0], data(1));
    let outs = drain(&mut p);
    let [Out::Pull { pull, .. }] = &outs[..] else { panic!("{outs:?}") };
    assert_eq!((pull.attempt, pull.epoch), (7, Epoch(4)));
    p.pulled(NOW, pull.token, Ok(1));
    assert_eq!(said(drain(&mut p)), [Reply::Pulled { number: 7, bytes_moved: 4096 }]);
}

#[test]
fn views_are_made_equal_oldest_first_each_listed_when_the_one_before_is_pulled() {
    let views: proto::Generations = [Generation(2), Generation(5)].into_iter().collect();
    let mut p = Pulls::new();
    p.begun(SESSION, B, Attempt { generation: Generation(7), views: views.clone(), ..attempt(7) });
    p.list(SESSION, B, place(2).drive, 7, 77);
    let asked = drain(&mut p);
    assert!(asked.iter().all(|o| matches!(o,
        Out::Source { frame, .. } | Out::Own(frame)
            if matches!(&frame.request, Request::Digest { views: v, head: true, .. } if *v == views))));
    let (s, o) = tokens(&asked);
    p.reply(NOW, s[0], Reply::Digest { hash: 1, extents: 1 });
    p.reply(NOW, o[0], Reply::Digest { hash: 2, extents: 1 });
    let mut said_at_last = vec![];
    let at = |g| View::At(Generation(g));
    for (view, after, into) in [(at(2), 0, 2), (at(5), 2, 5), (View::Head, 5, 7)] {
        let lists = drain(&mut p);
        let asks = |o: &Out| match o {
            Out::Source { frame, .. } | Out::Own(frame) => {
                matches!(frame.request, Request::Manifest { view: v, after: a, from: 0, .. } if (v, a) == (view, Generation(after)))
            }
            _ => false,
        };
        assert!(lists.len() == 2 && lists.iter().all(asks), "{lists:?}");
        let (s, o) = tokens(&lists);
        p.reply(NOW, o[0], Reply::Manifest { entries: vec![], next: None });
        assert!(drain(&mut p).is_empty(), "one side says nothing");
        p.reply(NOW, s[0], Reply::Manifest { entries: vec![entry(3, 9)], next: None });
        let reads = drain(&mut p);
        let [Out::Source { frame, .. }] = &reads[..] else { panic!("{reads:?}") };
        assert!(matches!(frame.request, Request::Read { view: v, .. } if v == view));
        p.reply(NOW, frame.token, data(1));
        let outs = drain(&mut p);
        let [Out::Pull { pull, .. }] = &outs[..] else { panic!("{outs:?}") };
        assert_eq!((pull.generation, pull.after), (Generation(into), Generation(after)));
        let token = pull.token;
        p.pulled(NOW, token, Ok(1));
        if view == View::Head {
            said_at_last = drain(&mut p);
        }
    }
    assert_eq!(said(said_at_last), [Reply::Pulled { number: 7, bytes_moved: 3 * 4096 }]);
    assert_eq!((p.flying, p.attempts().count()), (0, 0));
}

#[test]
fn an_attempt_without_any_view_has_nothing_to_pull() {
    let mut p = Pulls::new();
    p.begun(SESSION, B, Attempt { head: false, ..attempt(7) });
    p.list(SESSION, B, place(2).drive, 7, 77);
    digests(&mut p, 1, 2);
    assert_eq!(said(drain(&mut p)), [Reply::Pulled { number: 7, bytes_moved: 0 }]);
}
