//! Exact effects of connecting, and which connection is the newest.

use super::*;
use crate::bugs::Bugs;
use proto::ClusterId;
use proto::deframer::{Deframer, Message};

const T0: Time = Time(1_000_000_000);

fn identity(node: u32) -> Identity {
    Identity { cluster: ClusterId(1), node: NodeId(node), process: ProcessNumber(5) }
}
fn links() -> (Links, VecDeque<Effect>) {
    let mut l = Links::new(identity(1), Seeded::default());
    let node =
        |n: u32| NodeSummary { node: NodeId(n), name: String::new(), address: format!("a{n}"), up: true };
    l.set_nodes(T0, &[node(1), node(2)]);
    (l, VecDeque::new())
}
fn dialled(out: &mut VecDeque<Effect>) -> Option<LinkId> {
    match out.pop_front()? {
        Effect::Dial { link, to: NodeId(2), address } if address == "a2" => Some(link),
        other => panic!("{other:?}"),
    }
}
fn agreed(process: u64, connection: u64) -> Agreed {
    Agreed {
        protocol: frame::PROTOCOL,
        features: 0,
        peer: NodeId(2),
        process: ProcessNumber(process),
        connection: ConnNumber(connection),
        drives: vec![],
    }
}

#[test]
fn a_peer_is_dialled_again_later_and_later_and_soon_after_it_worked() {
    let (mut l, mut out) = links();
    assert_eq!(l.maintain(T0, &mut out), []);
    let mut link = dialled(&mut out).unwrap();
    assert_eq!(l.maintain(T0, &mut out), []);
    assert!(out.is_empty(), "one dial at a time, and never to ourselves");
    let mut now = T0;
    for wait in [100, 200, 400, 800, 1000, 1000] {
        assert_eq!(l.closed(now, link), None);
        l.maintain(now + Span::millis(wait - 1), &mut out);
        assert!(out.is_empty());
        now = now + Span::millis(wait);
        assert_eq!(l.next_wake(), now);
        l.maintain(now, &mut out);
        link = dialled(&mut out).unwrap();
    }
    l.dialled(now, link, &mut out);
    l.concluded(now, link, agreed(3, 1));
    assert_eq!(l.reached(), [NodeId(2)]);
    let lost = l.closed(now, link);
    assert_eq!(lost, Some(Lost { peer: NodeId(2), dialled: true, source: None }));
    assert_eq!(l.next_wake(), now + BACKOFF_MIN);
}

#[test]
fn an_idle_link_is_pinged_and_a_silent_one_given_up() {
    let (mut l, mut out) = links();
    l.maintain(T0, &mut out);
    let link = dialled(&mut out).unwrap();
    l.dialled(T0, link, &mut out);
    let Some(Effect::Send { bytes, .. }) = out.pop_front() else { panic!("a hello") };
    let Ok(Some(Message::Hello(hello))) = Deframer::new().next(&mut &bytes[..]) else { panic!("a hello") };
    assert_eq!((hello.from, hello.to, hello.process), (NodeId(1), NodeId(2), ProcessNumber(5)));
    l.concluded(T0, link, agreed(3, 1));
    assert_eq!(l.maintain(T0 + Span::millis(999), &mut out), []);
    assert!(!l.is_dirty());
    assert_eq!(l.maintain(T0 + PING_EVERY, &mut out), []);
    assert!(l.is_dirty(), "a ping");
    l.send_all(&mut out);
    assert!(matches!(out.pop_front(), Some(Effect::Send { .. })));
    assert_eq!(l.maintain(T0 + PING_EVERY + Span::millis(1999), &mut out), []);
    assert_eq!(l.maintain(T0 + PING_EVERY + SILENCE_MAX, &mut out), [link]);
}

#[test]
fn links_that_fall_due_soon_are_pinged_along_with_one_that_is_due() {
    let (mut l, mut out) = links();
    let node =
        |n: u32| NodeSummary { node: NodeId(n), name: String::new(), address: format!("a{n}"), up: true };
    l.set_nodes(T0, &[2, 3, 4].map(node));
    l.maintain(T0, &mut out);
    let said = [0, 250, 251].map(|ms| T0 + Span::millis(ms));
    let dials: Vec<LinkId> = out
        .drain(..)
        .filter_map(|e| if let Effect::Dial { link, .. } = e { Some(link) } else { None })
        .collect();
    for (n, (link, said)) in (2..).zip(dials.iter().zip(said)) {
        l.dialled(said, *link, &mut out);
        l.concluded(said, *link, Agreed { peer: NodeId(n), ..agreed(3, 1) });
    }
    out.clear();
    assert_eq!(l.next_wake(), T0 + PING_EVERY);
    l.maintain(T0 + PING_EVERY, &mut out);
    l.send_all(&mut out);
    let pinged: Vec<LinkId> = out
        .drain(..)
        .map(|e| if let Effect::Send { link, .. } = e { link } else { panic!("{e:?}") })
        .collect();
    assert_eq!(pinged, dials[..2], "not the one whose time is a quarter of a second and more away");
    assert_eq!(l.next_wake(), said[2] + PING_EVERY);
}

#[test]
fn a_handshake_that_hangs_is_given_up() {
    let (mut l, mut out) = links();
    l.maintain(T0, &mut out);
    let link = dialled(&mut out).unwrap();
    assert_eq!(l.maintain(T0 + HANDSHAKE_MAX, &mut out), [link]);
    l.accepted(T0, LinkId(1 << 63));
    assert!(l.maintain(T0 + HANDSHAKE_MAX, &mut out).contains(&LinkId(1 << 63)));
}

fn accept(l: &mut Links, id: u64, process: u64, connection: u64) -> Result<Option<LinkId>, Refusal> {
    let id = LinkId(id);
    l.accepted(T0, id);
    l.greeted(T0, id, agreed(process, connection))?;
    let older = l.replaced_by(id);
    if let Some(older) = older {
        assert!(l.close(T0, older, &mut VecDeque::new()).is_some());
    }
    l.admit(T0, id, Source(id.0), vec![], &mut VecDeque::new());
    Ok(older)
}

#[test]
fn only_the_newest_connection_of_a_peer_is_heard() {
    let (mut l, _) = links();
    assert_eq!(accept(&mut l, 100, 3, 10), Ok(None));
    assert_eq!(accept(&mut l, 101, 3, 11), Ok(Some(LinkId(100))));
    assert!(l.get(LinkId(100)).is_none(), "what the older one still says is nobody's");
    assert_eq!(accept(&mut l, 102, 3, 10), Err(Refusal::OldConnection));
    assert_eq!(accept(&mut l, 103, 2, 99), Err(Refusal::OldConnection), "an older process");
    assert_eq!(accept(&mut l, 104, 4, 1), Ok(Some(LinkId(101))), "a newer process counts anew");
    assert_eq!(l.accepted_of(NodeId(2)), Some(LinkId(104)));
}

#[test]
fn the_seeded_bug_hears_old_connections() {
    let mut l = Links::new(identity(1), Seeded::new(Bugs { old_connection: true, ..Bugs::default() }));
    assert_eq!(accept(&mut l, 100, 3, 10), Ok(None));
    assert_eq!(accept(&mut l, 101, 3, 11), Ok(None));
    assert!(l.get(LinkId(100)).is_some_and(|l| l.is_up()));
}
