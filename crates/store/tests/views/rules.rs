//! One rule each.

use crate::bench::{BLOCKS, BRANCH, Bench, CHUNK, g, list, page, set};
use proto::message::*;
use proto::record::Sum;
use proto::*;

fn sum(value: u64) -> Option<Sum> {
    Some(Sum::of(&page(value)))
}
fn read(view: View) -> Request {
    Request::Read { view, range: BlockRange::new(0, 4), media: false, source_process: None }
}
fn refused(refusal: Refusal) -> Vec<Reply> {
    vec![Reply::Refused { refusal, version: Version::ZERO }]
}
fn map(reply: &[Reply]) -> Vec<(BlockState, u32)> {
    let [Reply::Map { runs }] = reply else { panic!("{reply:?}") };
    runs.iter().map(|r| (r.state, r.count)).collect()
}

#[test]
fn absent_clears_the_interval() {
    let (mut source, mut target) = (Bench::new(true), Bench::new(true));
    source.write(1, 1, 0, &[1]);
    target.write(1, 1, 0, &[1]);
    // Nobody acknowledged these; the views are 1 and 4.
    target.write(2, 2, 1, &[9]);
    target.write(3, 3, 2, &[9]);
    source.write(4, 4, 3, &[4]);
    target.begin(1, 4, &set(&[1]));
    assert!(target.pull(&mut source, 1, (View::Head, 1, 4), 0));
    assert_eq!(target.look(View::Head, true), source.look(View::Head, true));
    assert_eq!(target.at(1, true), source.at(1, true));
    target.request(Request::AttemptEnd { number: 1 });
    target.durable(9);
    target.pass(Span::secs(40));
    let left = target.store.extents(BRANCH, CHUNK);
    assert_eq!(left, [(0, g(1)), (0, g(4))], "homes without a block are no homes");
}

#[test]
fn what_was_written_meanwhile_wins_in_the_head_only() {
    let (mut source, mut target) = (Bench::new(false), Bench::new(false));
    source.write(1, 1, 0, &[1]);
    target.begin(1, 2, &set(&[1]));
    target.write(2, 5, 0, &[5]);
    assert!(target.pull(&mut source, 1, (View::At(g(1)), 0, 1), 0));
    assert!(target.pull(&mut source, 1, (View::Head, 1, 2), 0));
    assert_eq!((target.at(1, false)[0], target.look(View::Head, false)[0]), (sum(1), sum(5)));
}

#[test]
fn a_discard_hides_what_a_resync_pulls_beneath_it_later() {
    let (mut source, mut target) = (Bench::new(false), Bench::new(false));
    source.write(1, 1, 0, &[1, 2]);
    target.begin(1, 2, &set(&[1]));
    for s in [&mut source, &mut target] {
        s.zero(2, 5, 0, 16);
    }
    assert!(target.pull(&mut source, 1, (View::At(g(1)), 0, 1), 0));
    assert_eq!(target.at(1, false)[..2], [sum(1), sum(2)]);
    assert_eq!(target.look(View::Head, false)[..2], [None, None]);
}

#[test]
fn a_view_without_a_change_lists_nothing() {
    let (mut a, mut b) = (Bench::new(false), Bench::new(false));
    a.write(1, 1, 0, &[1, 2]);
    b.write(1, 1, 0, &[1, 2]);
    a.write(3, 3, 17, &[3]);
    assert_eq!(a.differ(&mut b, View::At(g(1)), g(0)), Some(vec![]));
    assert_eq!(a.differ(&mut b, View::At(g(2)), g(1)), Some(vec![]));
    assert_eq!(a.differ(&mut b, View::At(g(3)), g(1)), Some(vec![1]));
    let equal = |a: &mut Bench, b: &mut Bench, views| a.digest(&views) == b.digest(&views);
    assert!(!equal(&mut a, &mut b, set(&[1])));
    b.write(2, 3, 17, &[3]);
    assert!(equal(&mut a, &mut b, set(&[1])), "the generation in between is nobody's view");
    assert!(!equal(&mut a, &mut b, set(&[2])));
}

/// Its bytes lie beside the journal: after a power loss a recovery may drop its entry, and what it hid must be there.
#[test]
fn a_large_write_hides_nothing_until_it_is_flushed() {
    let mut b = Bench::new(false);
    b.write(1, 1, 0, &[1; 16]);
    b.keep(list(1, 2, 2, &[]));
    b.pass(Span::secs(3));
    b.write(2, 2, 0, &[2; 16]);
    b.pass(Span::millis(600));
    assert_eq!(b.store.extents(BRANCH, CHUNK), [(0, g(1)), (0, g(2))], "not flushed yet");
    b.pass(Span::secs(3));
    assert_eq!(b.store.extents(BRANCH, CHUNK), [(0, g(2))]);
    assert_eq!(b.look(View::Head, false)[0], sum(2));
}

#[test]
fn a_withdrawn_view_is_refused_before_it_is_freed() {
    let mut b = Bench::new(false);
    b.write(1, 1, 0, &[1]);
    b.write(2, 2, 0, &[2]);
    b.write(3, 3, 0, &[3]);
    b.keep(list(1, 3, 3, &[1, 2]));
    assert!(matches!(b.outsider(read(View::At(g(1))))[..], [Reply::ReadDone { .. }]));
    let homes = b.store.extents(BRANCH, CHUNK).len();
    b.store.handle(b.now, store::Event::Keep(list(2, 3, 3, &[2])));
    assert_eq!(b.store.extents(BRANCH, CHUNK).len(), homes, "nothing is freed yet");
    assert_eq!(b.outsider(read(View::At(g(1)))), refused(Refusal::UnknownView));
    assert_eq!(b.request(read(View::At(g(1)))), refused(Refusal::UnknownView), "by nobody");
    let changes = Request::Changes { view: View::Head, after: g(1), range: BlockRange::new(0, 4) };
    assert_eq!(b.request(changes), refused(Refusal::UnknownView));
    let digest = Request::Digest { views: set(&[1, 2]), head: true, source_process: None };
    assert_eq!(b.request(digest), refused(Refusal::UnknownView));
    b.pass(Span::secs(3));
    assert_eq!(b.store.extents(BRANCH, CHUNK), [(0, g(2)), (0, g(3))]);
    assert_eq!((b.at(2, false)[0], b.look(View::Head, false)[0]), (sum(2), sum(3)));
}

#[test]
fn who_has_no_session_reads_sealed_kept_whole_views_and_nothing_else() {
    let mut b = Bench::new(false);
    b.write(1, 1, 0, &[1]);
    let behind = vec![(CHUNK, crate::bench::INCARNATION)];
    assert_eq!(b.outsider(read(View::At(g(1)))), refused(Refusal::UnknownView), "no list");
    b.keep(KeepList { behind: behind.clone(), ..list(1, 2, 2, &[1]) });
    assert_eq!(b.outsider(read(View::At(g(1)))), refused(Refusal::UnknownView), "behind");
    b.keep(list(2, 2, 3, &[1, 2]));
    assert!(matches!(b.outsider(read(View::At(g(1))))[..], [Reply::ReadDone { .. }]));
    assert_eq!(b.outsider(read(View::At(g(2)))), refused(Refusal::UnknownView), "not sealed");
    assert_eq!(b.outsider(read(View::Head)), refused(Refusal::OldEpoch));
    b.keep(KeepList { behind, ..list(3, 4, 4, &[1, 2, 3]) });
    assert!(
        b.store.serves(BRANCH, CHUNK, g(1)) && !b.store.serves(BRANCH, CHUNK, g(2)),
        "what it held until then"
    );
    let done = b.outsider(Request::Map { view: View::At(g(1)), range: BlockRange::new(0, 2) });
    assert_eq!(map(&done), [(BlockState::Data, 1), (BlockState::Absent, 1)]);
    let written = b.write(2, 9, 0, &[7]);
    assert_eq!(written, [Reply::Refused { refusal: Refusal::Invalid, version: Version::new(Epoch(1), 9) }]);
    let digest = Request::Digest { views: set(&[]), head: true, source_process: None };
    assert_eq!(b.outsider(digest), refused(Refusal::OldEpoch));
}

#[test]
fn changed_and_absent_blocks_are_told() {
    let mut b = Bench::new(true);
    b.write(1, 1, 0, &[1, 1]);
    b.write(2, 2, 1, &[2]);
    b.zero(3, 3, 2, 1);
    let changes = |view, after| Request::Changes { view, after: g(after), range: BlockRange::new(0, 4) };
    let (data, zero, none) = (BlockState::Data, BlockState::Zero, BlockState::Absent);
    assert_eq!(map(&b.request(changes(View::Head, 0))), [(data, 2), (zero, 1), (none, 1)]);
    assert_eq!(map(&b.request(changes(View::Head, 1))), [(none, 1), (data, 1), (zero, 1), (none, 1)]);
    assert_eq!(map(&b.request(changes(View::At(g(2)), 1))), [(none, 1), (data, 1), (none, 2)]);
    assert_eq!(b.request(changes(View::At(g(1)), 1)), refused(Refusal::Invalid));
    let absent = |b: &mut Bench, views, head| {
        b.request(Request::Absent { views, head, blocks: u32::MAX }) == [Reply::Absence { any: true }]
    };
    assert!(absent(&mut b, set(&[]), true));
    for extent in 0..BLOCKS / 16 {
        b.write(4, 10 + u64::from(extent), extent * 16, &[4; 16]);
    }
    assert!(
        !absent(&mut b, set(&[]), true)
            && absent(&mut b, set(&[3]), true)
            && !absent(&mut b, set(&[4]), false)
    );
}
