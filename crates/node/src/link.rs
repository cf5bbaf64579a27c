//! One connection of the data plane: its handshake, what has come, what is to go out.
//!
//! A link is directed: the side that dialled sends requests, the other side answers. It owns the deframer, the
//! out buffer of this turn and the acknowledgements that wait to be put into one frame. Never decides which of
//! two connections is the newer one (`links` does).
//! Invariant: what was put in first goes out first; acknowledgements never overtake, nor are overtaken by,
//! another reply.

use crate::event::LinkId;
use proto::deframer::Deframer;
use proto::frame;
use proto::handshake::Agreed;
use proto::message::{Ack, Reply, ReplyFrame, RequestFrame};
use proto::{BranchId, ConnNumber, DriveId, NodeId, Time};
use store::Source;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// We dialled: our sessions' requests go out, replies come.
    Dialler { to: NodeId, connection: ConnNumber },
    /// A peer dialled: requests come, replies go out.
    Acceptor,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// The edge is connecting.
    Dialling,
    /// Connected; the peer's `Hello` has not come.
    Greeting,
    /// Acceptor: the peer's `Hello` was good; our answer waits until our drives are open.
    Settling(Box<Agreed>),
    Up(Box<Agreed>),
}

pub(crate) struct Link {
    pub id: LinkId,
    pub role: Role,
    pub phase: Phase,
    /// The replica side's name for the connection, once it is up.
    pub source: Option<Source>,
    pub deframer: Deframer,
    /// Since when the link is in its phase.
    pub since: Time,
    pub heard: Time,
    pub said: Time,
    /// The first time something was asked since a byte last came.
    pub awaits: Option<Time>,
    out: Vec<u8>,
    acks: Vec<Ack>,
    acks_of: DriveId,
}

impl Link {
    pub fn new(id: LinkId, role: Role, phase: Phase, now: Time) -> Link {
        Link {
            id,
            role,
            phase,
            source: None,
            deframer: Deframer::new(),
            since: now,
            heard: now,
            said: now,
            awaits: None,
            out: Vec::new(),
            acks: Vec::new(),
            acks_of: DriveId(0),
        }
    }
    pub fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up(_))
    }
    /// The other side, once it has said so (or whom we dialled).
    pub fn peer(&self) -> Option<NodeId> {
        match (&self.phase, self.role) {
            (Phase::Up(a) | Phase::Settling(a), _) => Some(a.peer),
            (_, Role::Dialler { to, .. }) => Some(to),
            _ => None,
        }
    }
    /// True if there is something to send.
    pub fn is_dirty(&self) -> bool {
        !self.out.is_empty() || !self.acks.is_empty()
    }
    /// The buffer that handshake frames are put into.
    pub fn raw(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }
    pub fn request(&mut self, now: Time, frame: &RequestFrame) {
        frame::encode_request(&mut self.out, frame);
        self.said = now;
        self.awaits = self.awaits.or(Some(now));
    }
    /// Acknowledgements of one turn go out as one frame per drive; everything else after them, in order.
    pub fn reply(&mut self, frame: ReplyFrame) {
        if let Reply::Acks(acks) = frame.reply {
            if frame.drive != self.acks_of {
                self.seal_acks();
                self.acks_of = frame.drive;
            }
            self.acks.extend(acks);
        } else {
            self.seal_acks();
            frame::encode_reply(&mut self.out, &frame);
        }
    }
    fn seal_acks(&mut self) {
        if self.acks.is_empty() {
            return;
        }
        let acks = Reply::Acks(std::mem::take(&mut self.acks));
        let frame = ReplyFrame { token: 0, branch: BranchId(0), drive: self.acks_of, reply: acks };
        frame::encode_reply(&mut self.out, &frame);
        if let Reply::Acks(mut kept) = frame.reply {
            kept.clear();
            self.acks = kept;
        }
    }
    /// Everything that is to go out; `spare` becomes the next buffer.
    pub fn take_out(&mut self, spare: Vec<u8>) -> Vec<u8> {
        debug_assert!(spare.is_empty(), "a spare buffer is empty");
        self.seal_acks();
        std::mem::replace(&mut self.out, spare)
    }
    /// Bytes have come.
    pub fn hears(&mut self, now: Time) {
        self.heard = now;
        self.awaits = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::deframer::Message;
    use proto::{ChunkIndex, Epoch, Version};

    fn ack(drive: u64, seq: u64) -> ReplyFrame {
        let ack = Ack {
            branch: BranchId(1),
            drive: DriveId(drive),
            version: Version::new(Epoch(1), seq),
            chunk: ChunkIndex(0),
            extents: 0,
        };
        ReplyFrame { token: 0, branch: BranchId(1), drive: DriveId(drive), reply: Reply::Acks(vec![ack]) }
    }

    #[test]
    fn acks_of_a_turn_share_a_frame_and_keep_their_place_in_the_stream() {
        let mut link = Link::new(LinkId(1), Role::Acceptor, Phase::Greeting, Time::ZERO);
        let begun = Reply::FlushBegun { drive: DriveId(5), flush: 1 };
        let begun = ReplyFrame { token: 0, branch: BranchId(0), drive: DriveId(5), reply: begun };
        for frame in [ack(5, 1), ack(5, 2), begun, ack(5, 3), ack(6, 4)] {
            link.reply(frame);
        }
        let bytes = link.take_out(Vec::new());
        assert!(!link.is_dirty());
        let (mut input, mut deframer) = (&bytes[..], Deframer::new());
        deframer.agree(proto::frame::PROTOCOL);
        let mut seen = Vec::new();
        while let Some(Message::Reply(f)) = deframer.next(&mut input).unwrap() {
            seen.push(match f.reply {
                Reply::Acks(a) => a.iter().map(|a| (a.drive.0, a.version.seq)).collect(),
                other => {
                    assert_eq!(other, Reply::FlushBegun { drive: DriveId(5), flush: 1 });
                    vec![]
                }
            });
        }
        assert_eq!(seen, [vec![(5, 1), (5, 2)], vec![], vec![(5, 3)], vec![(6, 4)]]);
    }
}
