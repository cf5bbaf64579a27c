//! Seats: one volume's place on this node, from the wish for a session until the last word about it.
//!
//! A seat holds at most one `volume::Session`, the exports that share it, and the guests' requests: those that
//! wait for a session, and those handed to it (kept, so that they go to the next session if this one is fenced
//! by anything but another guest). Here is only what a seat is; `attach` says how it lives, `guests` what its
//! exports see.
//! Invariants: a branch has at most one live session on this node; a guest's request stands in exactly one of
//! `queue` and `flying` until it is completed.

use crate::event::ExportError;
use proto::control::{MetaRefusal, SessionKind, VolumeRef};
use proto::{BranchId, Epoch, ExportId, Geometry, Map, NodeId, RequestId, Ticket, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use store::Source;
use volume::event::WaitReason;
use volume::{GuestOp, GuestRequest, Reader, Session};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct SeatId(pub u32);

/// One session of this process; what is meant for another one is dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Instance(pub u32);

/// An export that uses the seat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Opening {
    pub since: Time,
    pub force: bool,
    /// `ExportOpened` was said.
    pub opened: bool,
}

/// Whose a ticket is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Client {
    Export(ExportId),
    /// A piece of `volume verify`.
    Verify(RequestId),
}

#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub client: Client,
    /// The client's own ticket.
    pub ticket: Ticket,
    pub op: GuestOp,
}

/// metad is asked for an epoch.
#[derive(Debug)]
pub(crate) struct Attaching {
    pub request: RequestId,
    /// The question under way, and since when.
    pub asked: Option<(u64, Time)>,
    /// Not before.
    pub next: Time,
    /// Since when this attach is wanted.
    pub since: Time,
    /// A session here was fenced: guests wait, and there is no deadline; but another guest's session ends it.
    pub again: bool,
    /// What this request asks: the volume, and the epoch held last. Its repeats ask the same.
    pub question: Option<(VolumeRef, Option<Epoch>)>,
    /// The last answer that was none.
    pub refused: Option<MetaRefusal>,
}

pub(crate) struct Live {
    pub session: Session,
    pub instance: Instance,
    pub branch: BranchId,
    pub epoch: Epoch,
    pub name: String,
    pub geometry: Geometry,
    /// The session's name at our own stores; a new one at each reconnect.
    pub source: Source,
    /// It serves.
    pub opened: bool,
    /// `Close` was said.
    pub closing: bool,
    pub waiting: Option<WaitReason>,
}

/// A snapshot that is read: no session, no epoch, no lease.
pub(crate) struct Reading {
    pub reader: Reader,
    pub instance: Instance,
    pub name: String,
    /// The reader's name at our own stores.
    pub source: Source,
}

#[expect(clippy::large_enum_variant, reason = "nearly all seats are live")]
pub(crate) enum Phase {
    Attaching(Attaching),
    Live(Live),
    Reading(Reading),
}

pub(crate) struct Seat {
    pub volume: VolumeRef,
    pub kind: SessionKind,
    pub phase: Phase,
    /// Branch and epoch of its last session: what its open exports have seen of the disk is that, as of then.
    pub held: Option<(BranchId, Epoch)>,
    pub exports: BTreeMap<ExportId, Opening>,
    pub queue: VecDeque<Asked>,
    /// By the session's ticket: in the order in which they were handed in.
    pub flying: BTreeMap<Ticket, Asked>,
    /// Of these, writes of exports that have closed since. While there are any no export is opened: what a client that
    /// has gone asked for must not take effect when the next one reads already.
    pub leftovers: BTreeSet<Ticket>,
    /// The last open export has gone: close then.
    pub linger: Option<Time>,
}

impl Seat {
    pub fn live(&self) -> Option<&Live> {
        match &self.phase {
            Phase::Live(l) => Some(l),
            Phase::Attaching(_) | Phase::Reading(_) => None,
        }
    }
    pub fn live_mut(&mut self) -> Option<&mut Live> {
        match &mut self.phase {
            Phase::Live(l) => Some(l),
            Phase::Attaching(_) | Phase::Reading(_) => None,
        }
    }
    /// The session is over.
    pub fn take_flying(&mut self) -> BTreeMap<Ticket, Asked> {
        self.leftovers.clear();
        std::mem::take(&mut self.flying)
    }
    /// Nobody has it open.
    pub fn is_idle(&self) -> bool {
        !self.exports.values().any(|o| o.opened)
    }
    /// Nobody has it open, and who would waits for what another one left.
    pub fn is_held_up(&self) -> bool {
        !self.leftovers.is_empty() && self.is_idle()
    }
    pub fn reading(&self) -> Option<&Reading> {
        if let Phase::Reading(r) = &self.phase { Some(r) } else { None }
    }
    pub fn reading_mut(&mut self) -> Option<&mut Reading> {
        if let Phase::Reading(r) = &mut self.phase { Some(r) } else { None }
    }
    /// Who speaks from the seat.
    pub fn instance(&self) -> Option<Instance> {
        match &self.phase {
            Phase::Attaching(_) => None,
            Phase::Live(l) => Some(l.instance),
            Phase::Reading(r) => Some(r.instance),
        }
    }
    /// Volume and snapshot, if it is one that is asked for: no volume has an `@` in its name.
    pub fn snapshot(&self) -> Option<(&str, &str)> {
        match &self.volume {
            VolumeRef::Name(name) => name.split_once('@'),
            VolumeRef::Branch(_) => None,
        }
    }
    pub fn is_named(&self, name: &str) -> bool {
        match (&self.phase, &self.volume) {
            (Phase::Live(l), _) => l.name == name,
            (_, VolumeRef::Name(n)) => n == name,
            _ => false,
        }
    }
    /// Why it is not open yet, for whoever has waited long enough.
    pub fn why(&self) -> ExportError {
        match &self.phase {
            Phase::Attaching(a) => match &a.refused {
                Some(r) => error_of(r),
                None => ExportError::NoMetad,
            },
            Phase::Reading(_) => ExportError::NoMetad,
            Phase::Live(l) => ExportError::Timeout(match l.waiting {
                _ if !self.leftovers.is_empty() => {
                    let why = l.waiting.map_or(String::new(), |r| format!(", which wait for {}", r.code()));
                    let n = self.leftovers.len();
                    format!(
                        "{n} writes of a client that has gone are not finished{why} (see docs/operations.md)"
                    )
                }
                Some(reason) => format!("it waits for {} (see docs/operations.md)", reason.code()),
                None => "its replicas have not all answered".to_owned(),
            }),
        }
    }
}

/// A refusal of metad in the words of an export.
pub(crate) fn error_of(refusal: &MetaRefusal) -> ExportError {
    match refusal {
        MetaRefusal::NoSuchVolume => ExportError::NoSuchVolume,
        MetaRefusal::NoSuchSnapshot => ExportError::NoSuchSnapshot,
        MetaRefusal::NotReady => ExportError::NotReady,
        MetaRefusal::Held { name, epoch, .. } => ExportError::Held { holder: name.clone(), epoch: epoch.0 },
        other => ExportError::Timeout(format!("metad refused: {}", in_words(other))),
    }
}

/// A refusal of metad for an operator.
#[must_use]
pub fn in_words(refusal: &MetaRefusal) -> String {
    match refusal {
        MetaRefusal::NoSuchVolume => "there is no such volume".into(),
        MetaRefusal::NoSuchSnapshot => "the volume has no such snapshot, or it is not sealed yet".into(),
        MetaRefusal::NotReady => "the volume is still being created, or is being deleted".into(),
        MetaRefusal::Held { name, epoch, live, .. } => {
            let life = if *live { "" } else { ", which is silent: its session is being taken over" };
            format!("the volume is attached on node {name} (epoch {}){life}", epoch.0)
        }
        MetaRefusal::OldEpoch { epoch } => format!("the session is older than epoch {}", epoch.0),
        MetaRefusal::Shrinking { job } => {
            format!("{job} makes the volume smaller: blockctl job wait {job}, or: blockctl job cancel {job}")
        }
        MetaRefusal::Superseded { node: NodeId(0), .. } => "the volume was made smaller meanwhile".into(),
        MetaRefusal::Superseded { node, .. } => format!("a guest on node {node} had the volume meanwhile"),
        MetaRefusal::Stranger => "the drive was rolled back or copied".into(),
        MetaRefusal::UnknownNode => "metad does not know this node yet".into(),
        MetaRefusal::UnknownDrive => "metad does not know this drive".into(),
        MetaRefusal::Exhausted => "the volume has used up its epochs".into(),
    }
}

#[derive(Default)]
pub(crate) struct Seats {
    pub all: BTreeMap<SeatId, Seat>,
    /// Live sessions only.
    pub by_branch: Map<BranchId, SeatId>,
    pub by_export: Map<ExportId, SeatId>,
    /// Whose a token on the wire is: sessions and readers, by what `wrap` puts there.
    pub by_instance: Map<u64, SeatId>,
    /// Open exports whose disk is not what their clients believe: every request fails until the clients have gone.
    pub broken: BTreeSet<ExportId>,
    next_seat: u32,
    /// The last one; what stands on the wire of it is never 0.
    next_instance: u32,
    next_ticket: u64,
}

impl Seats {
    pub fn add(&mut self, seat: Seat) -> SeatId {
        self.next_seat += 1;
        let id = SeatId(self.next_seat);
        self.all.insert(id, seat);
        id
    }
    pub fn instance(&mut self) -> Instance {
        loop {
            self.next_instance += 1;
            let instance = Instance(self.next_instance);
            if on_wire(instance) != 0 && !self.by_instance.contains_key(&on_wire(instance)) {
                return instance;
            }
        }
    }
    pub fn sits(&mut self, instance: Instance, id: SeatId) {
        self.by_instance.insert(on_wire(instance), id);
    }
    pub fn leaves(&mut self, instance: Instance) {
        self.by_instance.remove(&on_wire(instance));
    }
    /// Whose question this token is, and the token that it was asked under.
    pub fn of_token(&self, wire: u64) -> Option<(SeatId, u64)> {
        let id = *self.by_instance.get(&(wire >> TOKEN_BITS))?;
        Some((id, wire & ((1 << TOKEN_BITS) - 1)))
    }
    pub fn readers(&self) -> impl Iterator<Item = (SeatId, &Reading)> + '_ {
        self.all.iter().filter_map(|(id, s)| Some((*id, s.reading()?)))
    }
    pub fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }
    /// The live session of a branch.
    pub fn of_branch(&self, branch: BranchId) -> Option<(SeatId, &Live)> {
        let id = *self.by_branch.get(&branch)?;
        Some((id, self.all.get(&id)?.live()?))
    }
    pub fn live(&self) -> impl Iterator<Item = (SeatId, &Live)> + '_ {
        self.all.iter().filter_map(|(id, s)| Some((*id, s.live()?)))
    }
    /// A guest's seat of that volume.
    pub fn guest_seat(&self, name: &str) -> Option<SeatId> {
        let wanted = |s: &&Seat| s.kind == SessionKind::Guest && s.is_named(name);
        self.all.iter().find(|(_, s)| wanted(s)).map(|(id, _)| *id)
    }
}

/// What a session counts on (5.5): other nodes' leases as the holder has them; its own node's as long as its epoch is
/// the newest that is known here.
pub(crate) struct Counted<'a> {
    pub me: NodeId,
    pub epoch: Epoch,
    pub holder: &'a crate::lease::Holder,
    pub granter: &'a crate::lease::Granter,
}
impl volume::Leases for Counted<'_> {
    fn until(&self, node: NodeId, branch: BranchId) -> Time {
        if node != self.me {
            return self.holder.until(node, branch, self.epoch);
        }
        if self.granter.known(branch) == self.epoch { Time::FAR } else { Time::ZERO }
    }
}

/// A session's token on the wire names the session too: an answer to an older one of the same branch is nobody's.
const TOKEN_BITS: u32 = 48;
const INSTANCE_MASK: u64 = 0x7fff;

fn on_wire(instance: Instance) -> u64 {
    u64::from(instance.0) & INSTANCE_MASK
}

pub(crate) fn wrap(token: u64, instance: Instance) -> u64 {
    assert!(token >> TOKEN_BITS == 0, "a session asks fewer than 2^48 questions");
    if token == 0 { 0 } else { on_wire(instance) << TOKEN_BITS | token }
}

pub(crate) fn to_session(ticket: Ticket, asked: &Asked) -> GuestRequest {
    GuestRequest { ticket, op: asked.op.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_to_its_own_session_only() {
        let mut seats = Seats::default();
        let (a, b) = (seats.instance(), seats.instance());
        seats.sits(a, SeatId(1));
        seats.sits(b, SeatId(2));
        assert_eq!(seats.of_token(wrap(7, a)), Some((SeatId(1), 7)));
        assert_eq!(seats.of_token(wrap(7, b)), Some((SeatId(2), 7)));
        seats.leaves(a);
        assert_eq!(seats.of_token(wrap(7, a)), None, "an answer to a session that is gone is nobody's");
        assert_eq!(wrap(0, b), 0, "what is not asked for is nobody's");
        assert_eq!(wrap(7, Instance(0x7fff)) & crate::pull::OWN_TOKEN, 0);
    }

    #[test]
    fn no_two_that_sit_have_the_same_place_on_the_wire() {
        let mut seats = Seats::default();
        let old = seats.instance();
        seats.sits(old, SeatId(1));
        for i in 2..0x10_0000 {
            let new = seats.instance();
            assert!(on_wire(new) != 0 && on_wire(new) != on_wire(old), "{i}");
        }
    }
}
