//! The data network: connections that carry real bytes, in order, late, cut, or one way only.
//!
//! Owns the connections and what is on its way in them. What was sent before a connection broke may still arrive
//! until that end hears of the break, while a newer connection is already in use.

use crate::rng::Rng;
use node::LinkId;
use proto::{Span, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Index of a host (its node's number less one).
pub type HostIndex = usize;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u64);

/// One end: the process that holds it, and what it calls the link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    pub host: HostIndex,
    pub life: u64,
    pub link: LinkId,
}

#[derive(Debug)]
enum Parcel {
    Bytes(Vec<u8>),
    Close,
}

#[derive(Debug)]
struct Conn {
    ends: [End; 2],
    /// This end has closed, or has been told.
    closed: [bool; 2],
    /// Broken: nothing more goes in.
    broken: bool,
    /// Parcels towards end `i` arrive in order.
    last: [Time; 2],
    /// Towards end `i` nothing arrives for now.
    stalled: [bool; 2],
    /// Towards end `i`, while that direction is cut or stalled.
    held: [VecDeque<Parcel>; 2],
}

/// To be put into the world's queue.
#[derive(Debug)]
pub enum Transit {
    Bytes { conn: ConnId, end: usize, bytes: Vec<u8> },
    Close { conn: ConnId, end: usize },
}

#[derive(Debug)]
pub struct Net {
    conns: BTreeMap<ConnId, Conn>,
    by_link: BTreeMap<(HostIndex, u64, LinkId), (ConnId, usize)>,
    next: u64,
    /// (from, to): nothing passes.
    cut: BTreeSet<(HostIndex, HostIndex)>,
    /// Extra delay of everything to and from a host.
    slow: BTreeMap<HostIndex, Span>,
    pub base: Span,
    pub jitter: Span,
}

impl Net {
    #[must_use]
    pub fn new(base: Span, jitter: Span) -> Net {
        Net {
            conns: BTreeMap::new(),
            by_link: BTreeMap::new(),
            next: 1,
            cut: BTreeSet::new(),
            slow: BTreeMap::new(),
            base,
            jitter,
        }
    }

    #[must_use]
    pub fn passes(&self, from: HostIndex, to: HostIndex) -> bool {
        !self.cut.contains(&(from, to))
    }
    pub fn cut(&mut self, from: HostIndex, to: HostIndex) {
        self.cut.insert((from, to));
    }
    pub fn slow_down(&mut self, host: HostIndex, by: Span) {
        self.slow.insert(host, by);
    }
    pub fn speed_up(&mut self, host: HostIndex) {
        self.slow.remove(&host);
    }

    #[must_use]
    pub fn delay(&self, from: HostIndex, to: HostIndex, rng: &mut Rng) -> Span {
        let extra = |h| self.slow.get(&h).map_or(0, |s: &Span| s.0);
        let slow = extra(from) + extra(to);
        let jitter = if rng.permille(20) { self.jitter.0 * 20 } else { self.jitter.0 };
        let slow = if slow == 0 { 0 } else { rng.within(slow / 4, slow) };
        Span(self.base.0 + rng.below(jitter + 1) + slow)
    }

    /// A connection is made; the ends hear of it by themselves.
    pub fn connect(&mut self, dialler: End, acceptor: End) -> ConnId {
        let id = ConnId(self.next);
        self.next += 1;
        for (i, e) in [dialler, acceptor].into_iter().enumerate() {
            self.by_link.insert((e.host, e.life, e.link), (id, i));
        }
        let conn = Conn {
            ends: [dialler, acceptor],
            closed: [false; 2],
            broken: false,
            last: [Time::ZERO; 2],
            stalled: [false; 2],
            held: [VecDeque::new(), VecDeque::new()],
        };
        self.conns.insert(id, conn);
        id
    }

    /// The edge's number for the next accepted connection.
    #[must_use]
    pub fn accepted_link(&self) -> LinkId {
        LinkId(1 << 63 | self.next)
    }

    #[must_use]
    pub fn end(&self, conn: ConnId, end: usize) -> Option<End> {
        self.conns.get(&conn).filter(|c| !c.closed[end]).map(|c| c.ends[end])
    }

    /// True if the connection is broken: what still arrives was sent before.
    #[must_use]
    pub fn is_late(&self, conn: ConnId) -> bool {
        self.conns.get(&conn).is_some_and(|c| c.broken)
    }
    /// Nothing reaches this end before `at`.
    pub fn not_before(&mut self, conn: ConnId, end: usize, at: Time) {
        if let Some(c) = self.conns.get_mut(&conn) {
            c.last[end] = c.last[end].max(at);
        }
    }

    #[must_use]
    pub fn hosts_of(&self, conn: ConnId) -> Vec<HostIndex> {
        self.conns.get(&conn).map(|c| c.ends.iter().map(|e| e.host).collect()).unwrap_or_default()
    }

    /// Live connections, for faults to choose from.
    #[must_use]
    pub fn live(&self) -> Vec<ConnId> {
        self.conns
            .iter()
            .filter(|(_, c)| !c.broken && !c.closed[0] && !c.closed[1])
            .map(|(id, _)| *id)
            .collect()
    }

    pub fn send(
        &mut self,
        now: Time,
        from: (HostIndex, u64, LinkId),
        bytes: Vec<u8>,
        rng: &mut Rng,
    ) -> Option<(Time, Transit)> {
        let (id, end) = *self.by_link.get(&from)?;
        let c = self.conns.get(&id)?;
        if c.broken || c.closed[end] {
            return None;
        }
        self.put(now, id, 1 - end, Parcel::Bytes(bytes), rng)
    }

    fn put(
        &mut self,
        now: Time,
        id: ConnId,
        to: usize,
        parcel: Parcel,
        rng: &mut Rng,
    ) -> Option<(Time, Transit)> {
        let (a, b) = {
            let c = &self.conns[&id];
            (c.ends[1 - to].host, c.ends[to].host)
        };
        let delay = self.delay(a, b, rng);
        let passes = self.passes(a, b);
        let c = self.conns.get_mut(&id)?;
        if !passes || c.stalled[to] || !c.held[to].is_empty() {
            c.held[to].push_back(parcel);
            return None;
        }
        let at = (now + delay).max(c.last[to]);
        c.last[to] = at;
        Some((at, parcel.on_its_way(id, to)))
    }

    /// The process at `from` closes its end: the other one hears of it behind what is on its way.
    pub fn close(
        &mut self,
        now: Time,
        from: (HostIndex, u64, LinkId),
        rng: &mut Rng,
    ) -> Option<(Time, Transit)> {
        let (id, end) = *self.by_link.get(&from)?;
        self.close_end(now, id, end, rng)
    }

    fn close_end(&mut self, now: Time, id: ConnId, end: usize, rng: &mut Rng) -> Option<(Time, Transit)> {
        let c = self.conns.get_mut(&id)?;
        if c.closed[end] {
            return None;
        }
        c.closed[end] = true;
        let out =
            if c.broken || c.closed[1 - end] { None } else { self.put(now, id, 1 - end, Parcel::Close, rng) };
        self.forget(id);
        out
    }

    /// The end has been told (or its process is gone).
    pub fn told(&mut self, id: ConnId, end: usize) {
        if let Some(c) = self.conns.get_mut(&id) {
            c.closed[end] = true;
            c.broken = true;
        }
        self.forget(id);
    }

    fn forget(&mut self, id: ConnId) {
        if let Some(c) = self.conns.get(&id).filter(|c| c.closed == [true, true]) {
            for e in c.ends {
                self.by_link.remove(&(e.host, e.life, e.link));
            }
            self.conns.remove(&id);
        }
    }

    /// Nothing arrives at this end any more, for a while: the connection is about to break.
    pub fn stall(&mut self, id: ConnId, end: usize) {
        if let Some(c) = self.conns.get_mut(&id) {
            c.stalled[end] = true;
        }
    }

    /// The connection breaks; each end hears of it after its own time, and until then of what was sent before.
    pub fn break_conn(
        &mut self,
        now: Time,
        id: ConnId,
        hears: [Span; 2],
        rng: &mut Rng,
    ) -> Vec<(Time, Transit)> {
        let Some(c) = self.conns.get_mut(&id) else { return vec![] };
        c.broken = true;
        let mut out = vec![];
        for end in (0..2).filter(|&e| !c.closed[e]) {
            let held = std::mem::take(&mut c.held[end]);
            let mut times: Vec<u64> = held.iter().map(|_| rng.below(hears[end].0 + 1)).collect();
            times.sort_unstable();
            out.extend(held.into_iter().zip(times).map(|(p, t)| (now + Span(t), p.on_its_way(id, end))));
            out.push((now + hears[end], Transit::Close { conn: id, end }));
        }
        out
    }

    /// A process is gone, its machine lives: the kernel closes its connections.
    pub fn process_gone(&mut self, now: Time, host: HostIndex, rng: &mut Rng) -> Vec<(Time, Transit)> {
        let mine: Vec<(ConnId, usize)> = self.of_host(host);
        mine.into_iter().filter_map(|(id, end)| self.close_end(now, id, end, rng)).collect()
    }

    /// A machine is gone: the others hear nothing for a while.
    pub fn machine_gone(&mut self, now: Time, host: HostIndex, rng: &mut Rng) -> Vec<(Time, Transit)> {
        let mine: Vec<(ConnId, usize)> = self.of_host(host);
        let mut out = vec![];
        for (id, end) in mine {
            let late = Span::millis(rng.within(200, 15_000));
            out.extend(
                self.break_conn(now, id, [late; 2], rng)
                    .into_iter()
                    .filter(|(_, t)| matches!(t, Transit::Close { end: e, .. } | Transit::Bytes { end: e, .. } if *e != end)),
            );
            self.told(id, end);
        }
        out
    }

    fn of_host(&self, host: HostIndex) -> Vec<(ConnId, usize)> {
        self.conns
            .iter()
            .flat_map(|(id, c)| (0..2).filter(|&e| c.ends[e].host == host && !c.closed[e]).map(|e| (*id, e)))
            .collect()
    }

    /// The direction is free again: what was held goes on when its sender tries the next time, each connection in its
    /// own time.
    pub fn heal(&mut self, now: Time, from: HostIndex, to: HostIndex, rng: &mut Rng) -> Vec<(Time, Transit)> {
        self.cut.remove(&(from, to));
        let ids: Vec<ConnId> = self.conns.keys().copied().collect();
        let mut out = vec![];
        for id in ids {
            for end in 0..2 {
                let c = &self.conns[&id];
                if c.ends[1 - end].host == from && c.ends[end].host == to {
                    let c = self.conns.get_mut(&id).expect("listed");
                    let held = std::mem::take(&mut c.held[end]);
                    if !held.is_empty() {
                        let retry = Span::millis(rng.pick(&[0, 0, 50, 400, 1500]));
                        c.last[end] = c.last[end].max(now + retry);
                    }
                    out.extend(held.into_iter().filter_map(|p| self.put(now, id, end, p, rng)));
                }
            }
        }
        out
    }

    /// Pairs that are cut now.
    #[must_use]
    pub fn cuts(&self) -> Vec<(HostIndex, HostIndex)> {
        self.cut.iter().copied().collect()
    }
}

impl Parcel {
    fn on_its_way(self, conn: ConnId, end: usize) -> Transit {
        match self {
            Parcel::Bytes(bytes) => Transit::Bytes { conn, end, bytes },
            Parcel::Close => Transit::Close { conn, end },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: End = End { host: 0, life: 1, link: LinkId(1) };
    const B: End = End { host: 1, life: 1, link: LinkId(1 << 63 | 1) };

    fn net() -> (Net, ConnId, Rng) {
        let mut n = Net::new(Span(1000), Span(500));
        let c = n.connect(A, B);
        (n, c, Rng::new(1))
    }
    fn send(n: &mut Net, rng: &mut Rng, now: u64, byte: u8) -> Option<(Time, Transit)> {
        n.send(Time(now), (A.host, A.life, A.link), vec![byte], rng)
    }

    #[test]
    fn bytes_keep_their_order() {
        let (mut n, _, mut rng) = net();
        let mut last = Time::ZERO;
        for i in 0..200 {
            let (at, _) = send(&mut n, &mut rng, i, 0).unwrap();
            assert!(at >= last);
            last = at;
        }
    }

    #[test]
    fn what_was_sent_before_a_break_arrives_until_the_end_has_heard() {
        let (mut n, c, mut rng) = net();
        assert!(send(&mut n, &mut rng, 0, 1).is_some());
        assert_eq!(n.break_conn(Time(5), c, [Span(1), Span(9000)], &mut rng).len(), 2);
        assert!(send(&mut n, &mut rng, 6, 2).is_none(), "nothing more goes in");
        assert_eq!(n.end(c, 1), Some(B), "its end still takes what comes");
        n.told(c, 1);
        assert_eq!(n.end(c, 1), None);
    }

    #[test]
    fn a_cut_direction_holds_what_is_sent_and_the_other_passes() {
        let (mut n, _, mut rng) = net();
        n.cut(0, 1);
        assert!(send(&mut n, &mut rng, 0, 1).is_none());
        assert!(n.send(Time(0), (B.host, B.life, B.link), vec![2], &mut rng).is_some());
        assert_eq!(n.heal(Time(10_000), 0, 1, &mut rng).len(), 1);
    }

    #[test]
    fn what_a_stalled_connection_held_arrives_before_its_end_has_heard_of_the_break() {
        let (mut n, c, mut rng) = net();
        n.stall(c, 1);
        assert!(send(&mut n, &mut rng, 0, 1).is_none() && send(&mut n, &mut rng, 1, 2).is_none());
        let out = n.break_conn(Time(5), c, [Span(1), Span(9000)], &mut rng);
        let towards_b: Vec<_> = out
            .iter()
            .filter_map(|(at, t)| match t {
                Transit::Bytes { end: 1, bytes, .. } => Some((*at, bytes[0])),
                _ => None,
            })
            .collect();
        assert!(matches!(towards_b[..], [(a, 1), (b, 2)] if a <= b && b <= Time(9005)), "{towards_b:?}");
    }

    #[test]
    fn a_process_that_ends_closes_behind_its_last_bytes() {
        let (mut n, c, mut rng) = net();
        let (sent, _) = send(&mut n, &mut rng, 0, 1).unwrap();
        let closes = n.process_gone(Time(1), 0, &mut rng);
        assert!(matches!(closes[..], [(at, Transit::Close { conn, end: 1 })] if at >= sent && conn == c));
    }
}
