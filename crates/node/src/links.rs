//! All connections, by peer: dialling, which one is the newest, who is silent.
//!
//! Every peer that metad's node table names is dialled (the node's reach is told to metad from it, and a session
//! or a resync finds its connection ready), again after 50 ms to 1 s. It owns the numbers of connections. Never
//! looks into requests and replies.
//! Invariants: per peer at most one link of each direction is up, the newest; a link that is forgotten here is
//! never heard again, whatever the edge still reports of it.

use crate::bugs::Seeded;
use crate::event::{Effect, LinkId};
use crate::link::{Link, Phase, Role};
use proto::control::NodeSummary;
use proto::frame;
use proto::handshake::{Agreed, Identity};
use proto::message::{DriveHello, ReplyFrame, Request, RequestFrame, Scope};
use proto::{ConnNumber, Map, NodeId, ProcessNumber, Refusal, Span, Time};
use std::collections::{BTreeMap, VecDeque};
use store::Source;

/// Between attempts to connect.
pub(crate) const BACKOFF_MIN: Span = Span::millis(50);
pub(crate) const BACKOFF_MAX: Span = Span::secs(1);
/// A connection that does not get through its handshake.
const HANDSHAKE_MAX: Span = Span::secs(2);
/// Something is awaited, and no byte comes.
const SILENCE_MAX: Span = Span::secs(2);
/// The dialler says something at least this often; the other side gives up after four times that.
const PING_EVERY: Span = Span::secs(1);
/// When one link is pinged, so are those that would be soon: an idle node is woken once for all of them.
const PING_ALONG: Span = Span::millis(750);
const UNHEARD_MAX: Span = Span::secs(4);

pub(crate) struct Peer {
    address: String,
    /// In metad's table; a peer that has left it is not dialled.
    listed: bool,
    dialled: Option<LinkId>,
    accepted: Option<LinkId>,
    /// The newest connection that was accepted: process, number.
    newest: (ProcessNumber, ConnNumber),
    backoff: Span,
    dial_at: Time,
}

/// A link that was up is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lost {
    pub peer: NodeId,
    /// Which of the two directions.
    pub dialled: bool,
    /// The replica side's source, if it was one.
    pub source: Option<Source>,
}

pub(crate) struct Links {
    me: Identity,
    bugs: Seeded,
    peers: BTreeMap<NodeId, Peer>,
    links: Map<LinkId, Link>,
    next_link: u64,
    next_connection: u64,
    spare: Vec<Vec<u8>>,
    dirty: Vec<LinkId>,
}

/// Links in the order of their numbers, wherever the order is seen outside.
impl Links {
    pub fn new(me: Identity, bugs: Seeded) -> Links {
        Links {
            me,
            bugs,
            peers: BTreeMap::new(),
            links: Map::default(),
            next_link: 1,
            next_connection: 1,
            spare: Vec::new(),
            dirty: Vec::new(),
        }
    }
    #[cfg(feature = "bugs")]
    pub fn set_bugs(&mut self, bugs: Seeded) {
        self.bugs = bugs;
    }
    /// Numbers of connections rise over all of a process's connections, the own node's too.
    pub fn next_connection(&mut self) -> ConnNumber {
        self.next_connection += 1;
        ConnNumber(self.next_connection - 1)
    }
    pub fn set_nodes(&mut self, now: Time, nodes: &[NodeSummary]) {
        for peer in self.peers.values_mut() {
            peer.listed = false;
        }
        let me = self.me.node;
        for n in nodes.iter().filter(|n| n.node != me) {
            let peer = self.peer(n.node);
            if peer.address != n.address {
                peer.address.clone_from(&n.address);
                (peer.backoff, peer.dial_at) = (BACKOFF_MIN, now);
            }
            peer.listed = true;
        }
    }
    fn peer(&mut self, node: NodeId) -> &mut Peer {
        self.peers.entry(node).or_insert(Peer {
            address: String::new(),
            listed: false,
            dialled: None,
            accepted: None,
            newest: (ProcessNumber(0), ConnNumber(0)),
            backoff: BACKOFF_MIN,
            dial_at: Time::ZERO,
        })
    }
    pub fn get(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links.get_mut(&id)
    }
    /// The link to `node` that our requests go out on, if it is up.
    pub fn to(&mut self, node: NodeId) -> Option<&mut Link> {
        let id = self.peers.get(&node)?.dialled?;
        self.links.get_mut(&id).filter(|l| l.is_up())
    }
    pub fn agreed_to(&self, node: NodeId) -> Option<&Agreed> {
        match &self.links.get(&self.peers.get(&node)?.dialled?)?.phase {
            Phase::Up(agreed) => Some(agreed),
            _ => None,
        }
    }
    /// Peers that the data network reaches, in either direction.
    pub fn reached(&self) -> Vec<NodeId> {
        let up = |id: Option<LinkId>| id.and_then(|id| self.links.get(&id)).is_some_and(Link::is_up);
        self.peers.iter().filter(|(_, p)| up(p.dialled) || up(p.accepted)).map(|(n, _)| *n).collect()
    }
    /// Peers with a connection of ours that is up, and what they said in the handshake.
    pub fn connected(&self) -> Vec<Agreed> {
        self.peers.keys().filter_map(|n| self.agreed_to(*n).cloned()).collect()
    }

    /// Queues a request to `node`; false if there is no connection.
    pub fn request(&mut self, now: Time, node: NodeId, frame: &RequestFrame) -> bool {
        let Some(link) = self.to(node) else { return false };
        let clean = !link.is_dirty();
        link.request(now, frame);
        let id = link.id;
        self.mark(id, clean);
        true
    }
    /// Queues a reply; dropped if the link is gone.
    pub fn reply(&mut self, now: Time, id: LinkId, frame: ReplyFrame) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let clean = !link.is_dirty();
        link.reply(frame);
        link.said = now;
        self.mark(id, clean);
    }
    fn mark(&mut self, id: LinkId, was_clean: bool) {
        if was_clean {
            self.dirty.push(id);
        }
    }
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        /// Buffers that are kept; larger ones are given back.
        const KEPT: usize = 16;
        const KEPT_BYTES: usize = 4 << 20;
        if self.spare.len() < KEPT && buffer.capacity() <= KEPT_BYTES {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
    /// One send per link that has anything to say.
    pub fn send_all(&mut self, out: &mut VecDeque<Effect>) {
        for id in std::mem::take(&mut self.dirty) {
            self.send(id, out);
        }
    }
    fn send(&mut self, id: LinkId, out: &mut VecDeque<Effect>) {
        if let Some(link) = self.links.get_mut(&id).filter(|l| l.is_dirty()) {
            let bytes = link.take_out(self.spare.pop().unwrap_or_default());
            out.push_back(Effect::Send { link: id, bytes });
        }
    }
    /// True if something waits to be sent.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Dials who is due, pings who was not spoken to. Returns the links that have been silent too long.
    pub fn maintain(&mut self, now: Time, out: &mut VecDeque<Effect>) -> Vec<LinkId> {
        let due: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(_, p)| p.listed && p.dialled.is_none() && p.dial_at <= now)
            .map(|(n, _)| *n)
            .collect();
        for node in due {
            self.dial(now, node, out);
        }
        let mut ids: Vec<LinkId> = self.links.keys().copied().collect();
        ids.sort_unstable();
        let pinged = |l: &Link, after: Span| l.is_up() && l.role != Role::Acceptor && l.said + after <= now;
        let any = self.links.values().any(|l| pinged(l, PING_EVERY));
        for id in ids.iter().filter(|_| any) {
            let link = self.links.get_mut(id).expect("just listed");
            if pinged(link, PING_ALONG) {
                let clean = !link.is_dirty();
                let ping = RequestFrame { token: 0, scope: Scope::default(), request: Request::Ping };
                link.request(now, &ping);
                self.mark(*id, clean);
            }
        }
        ids.retain(|id| Links::deadline(&self.links[id]) <= now);
        ids
    }
    /// When the link is to be given up if nothing is heard until then.
    fn deadline(link: &Link) -> Time {
        match (&link.phase, link.role) {
            (Phase::Up(_), Role::Dialler { .. }) => link.awaits.map_or(Time::FAR, |t| t + SILENCE_MAX),
            (Phase::Up(_), Role::Acceptor) => link.heard + UNHEARD_MAX,
            // The answer waits for our drives; the dialler gives up by itself.
            (Phase::Settling(_), _) => link.since + UNHEARD_MAX,
            _ => link.since + HANDSHAKE_MAX,
        }
    }
    pub fn next_wake(&self) -> Time {
        let dials = self.peers.values().filter(|p| p.listed && p.dialled.is_none()).map(|p| p.dial_at);
        let links = self.links.values().map(|l| {
            let ping = if l.is_up() && l.role != Role::Acceptor { l.said + PING_EVERY } else { Time::FAR };
            ping.min(Links::deadline(l))
        });
        dials.chain(links).min().unwrap_or(Time::FAR)
    }

    fn dial(&mut self, now: Time, node: NodeId, out: &mut VecDeque<Effect>) {
        let link = LinkId(self.next_link);
        self.next_link += 1;
        let connection = self.next_connection();
        let peer = self.peer(node);
        peer.dialled = Some(link);
        let address = peer.address.clone();
        let role = Role::Dialler { to: node, connection };
        self.links.insert(link, Link::new(link, role, Phase::Dialling, now));
        out.push_back(Effect::Dial { link, to: node, address });
    }
    /// Our dial has got through: say hello.
    pub fn dialled(&mut self, now: Time, id: LinkId, out: &mut VecDeque<Effect>) {
        let Some(link) = self.links.get_mut(&id).filter(|l| l.phase == Phase::Dialling) else { return };
        let Role::Dialler { to, connection } = link.role else { return };
        (link.phase, link.since) = (Phase::Greeting, now);
        frame::encode_hello(link.raw(), &self.me.dial(to, connection));
        self.send(id, out);
    }
    pub fn accepted(&mut self, now: Time, id: LinkId) {
        self.links.insert(id, Link::new(id, Role::Acceptor, Phase::Greeting, now));
    }

    /// The dialler's `Hello` has come. Refused, or to be answered by `admit` once the drives are open.
    pub fn greeted(&mut self, now: Time, id: LinkId, agreed: Agreed) -> Result<(), Refusal> {
        let (node, number) = (agreed.peer, (agreed.process, agreed.connection));
        let newest = self.peer(node).newest;
        if number <= newest && !self.bugs.has(|b| b.old_connection) {
            return Err(Refusal::OldConnection);
        }
        self.peer(node).newest = number.max(newest);
        if let Some(link) = self.links.get_mut(&id) {
            (link.phase, link.since) = (Phase::Settling(Box::new(agreed)), now);
        }
        Ok(())
    }
    /// Links whose `Hello` waits for our drives.
    pub fn settling(&self) -> Vec<LinkId> {
        let waits = |l: &&Link| matches!(l.phase, Phase::Settling(_));
        let mut ids: Vec<LinkId> = self.links.values().filter(waits).map(|l| l.id).collect();
        ids.sort_unstable();
        ids
    }
    /// False if a newer connection of the same peer has greeted meanwhile.
    pub fn is_newest(&self, id: LinkId) -> bool {
        let Some(Link { phase: Phase::Settling(a) | Phase::Up(a), .. }) = self.links.get(&id) else {
            return false;
        };
        let newest = self.peers.get(&a.peer).is_none_or(|p| p.newest == (a.process, a.connection));
        newest || self.bugs.has(|b| b.old_connection)
    }
    /// Answers a `Hello`: the link is up and the newest of its peer. Returns the peer, and the older link that it
    /// replaces (to be dropped first).
    pub fn admit(
        &mut self,
        now: Time,
        id: LinkId,
        source: Source,
        drives: Vec<DriveHello>,
        out: &mut VecDeque<Effect>,
    ) -> Agreed {
        let me = self.me;
        let link = self.links.get_mut(&id).expect("a link that settles");
        let Phase::Settling(agreed) = link.phase.clone() else { unreachable!("a link that settles") };
        frame::encode_hello(link.raw(), &me.answer(&agreed, drives));
        link.deframer.agree(agreed.protocol);
        (link.phase, link.since, link.source) = (Phase::Up(agreed.clone()), now, Some(source));
        link.hears(now);
        self.send(id, out);
        self.peer(agreed.peer).accepted = Some(id);
        *agreed
    }
    /// The accepted link of that peer that a newer one would replace.
    pub fn replaced_by(&self, id: LinkId) -> Option<LinkId> {
        let peer = self.links.get(&id)?.peer()?;
        let older = self.peers.get(&peer)?.accepted?;
        (older != id && !self.bugs.has(|b| b.old_connection)).then_some(older)
    }
    /// The answer to our `Hello` was good.
    pub fn concluded(&mut self, now: Time, id: LinkId, agreed: Agreed) {
        self.peer(agreed.peer).backoff = BACKOFF_MIN;
        if let Some(link) = self.links.get_mut(&id) {
            link.deframer.agree(agreed.protocol);
            (link.phase, link.since) = (Phase::Up(Box::new(agreed)), now);
            link.hears(now);
            link.said = now;
        }
    }

    /// Says why, then closes.
    pub fn refuse(
        &mut self,
        now: Time,
        id: LinkId,
        refusal: Refusal,
        out: &mut VecDeque<Effect>,
    ) -> Option<Lost> {
        if let Some(link) = self.links.get_mut(&id) {
            frame::encode_refuse(link.raw(), refusal);
            self.send(id, out);
        }
        self.close(now, id, out)
    }
    /// Closes by our own will.
    pub fn close(&mut self, now: Time, id: LinkId, out: &mut VecDeque<Effect>) -> Option<Lost> {
        if self.links.contains_key(&id) {
            out.push_back(Effect::CloseLink { link: id });
        }
        self.closed(now, id)
    }
    /// The link is gone. Returns what was lost if it was up.
    pub fn closed(&mut self, now: Time, id: LinkId) -> Option<Lost> {
        let link = self.links.remove(&id)?;
        let node = link.peer()?;
        let was_up = link.is_up();
        let peer = self.peer(node);
        let dialled = peer.dialled == Some(id);
        if dialled {
            peer.dialled = None;
            // A connection that worked is dialled again soon; one that never did, later and later.
            peer.backoff = if was_up { BACKOFF_MIN } else { Span((peer.backoff.0 * 2).min(BACKOFF_MAX.0)) };
            peer.dial_at = now + peer.backoff;
        } else if peer.accepted == Some(id) {
            peer.accepted = None;
        }
        was_up.then_some(Lost { peer: node, dialled, source: link.source })
    }
    /// All links, in order, that `which` picks.
    pub fn all(&self, which: impl Fn(&Link) -> bool) -> Vec<LinkId> {
        let mut ids: Vec<LinkId> = self.links.values().filter(|l| which(l)).map(|l| l.id).collect();
        ids.sort_unstable();
        ids
    }
    /// The link that carries `node`'s requests to us.
    pub fn accepted_of(&self, node: NodeId) -> Option<LinkId> {
        self.peers.get(&node)?.accepted
    }
}

#[cfg(test)]
mod tests;
