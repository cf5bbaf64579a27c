//! The handshake: the first frame in both directions, and what it must say.
//!
//! The dialler sends its `Hello`; the other side answers with its own, or with a `Refuse` that says why, and
//! closes. Nothing else is read before. Cluster, node, process and connection numbers bind the connection to
//! one pair of processes; which of several connections of a pair is the newest, the node decides.

use crate::frame::{PROTOCOL, PROTOCOL_MIN};
use crate::ids::{ClusterId, ConnNumber, NodeId, ProcessNumber};
use crate::message::{DriveHello, Hello};
use crate::refusal::Refusal;

/// Feature bits that this build understands. A peer that requires another one is refused.
pub const FEATURES: u64 = 0;

/// Who we are, in every handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    pub cluster: ClusterId,
    pub node: NodeId,
    pub process: ProcessNumber,
}

/// What a handshake came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// Version of all later frames.
    pub protocol: u16,
    /// Bits that both offered.
    pub features: u64,
    pub peer: NodeId,
    pub process: ProcessNumber,
    pub connection: ConnNumber,
    /// The peer's drives (told by the side that answers).
    pub drives: Vec<DriveHello>,
}

impl Identity {
    fn hello(&self, to: NodeId, connection: ConnNumber, drives: Vec<DriveHello>) -> Hello {
        Hello {
            protocol: PROTOCOL,
            protocol_min: PROTOCOL_MIN,
            features_required: 0,
            features_offered: FEATURES,
            cluster: self.cluster,
            from: self.node,
            to,
            process: self.process,
            connection,
            auth: Vec::new(),
            drives,
        }
    }
    /// The dialler's first frame.
    #[must_use]
    pub fn dial(&self, to: NodeId, connection: ConnNumber) -> Hello {
        self.hello(to, connection, Vec::new())
    }
    /// The other side's view of the dialler's `Hello`: agreed, or refused. The answer is [`Identity::answer`].
    pub fn accept(&self, hello: &Hello) -> Result<Agreed, Refusal> {
        self.check(hello)
    }
    /// The answer to a `Hello` that was accepted.
    #[must_use]
    pub fn answer(&self, agreed: &Agreed, drives: Vec<DriveHello>) -> Hello {
        self.hello(agreed.peer, agreed.connection, drives)
    }
    /// The dialler's view of the answer to `dial(to, connection)`.
    pub fn conclude(&self, to: NodeId, connection: ConnNumber, answer: &Hello) -> Result<Agreed, Refusal> {
        let agreed = self.check(answer)?;
        if answer.from != to {
            return Err(Refusal::WrongNode);
        }
        if answer.connection != connection {
            return Err(Refusal::OldConnection);
        }
        Ok(agreed)
    }

    fn check(&self, hello: &Hello) -> Result<Agreed, Refusal> {
        if hello.cluster != self.cluster {
            return Err(Refusal::WrongCluster);
        }
        if hello.to != self.node || hello.from == self.node || hello.from == NodeId(0) {
            return Err(Refusal::WrongNode);
        }
        let protocol = PROTOCOL.min(hello.protocol);
        let sane = hello.protocol_min <= hello.protocol;
        if !sane || protocol < PROTOCOL_MIN || protocol < hello.protocol_min {
            return Err(Refusal::WrongVersion);
        }
        if hello.features_required & !FEATURES != 0 {
            return Err(Refusal::WrongVersion);
        }
        Ok(Agreed {
            protocol,
            features: hello.features_offered & FEATURES,
            peer: hello.from,
            process: hello.process,
            connection: hello.connection,
            drives: hello.drives.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(node: u32) -> Identity {
        Identity { cluster: ClusterId(7), node: NodeId(node), process: ProcessNumber(3) }
    }

    #[test]
    fn two_nodes_of_a_cluster_agree() {
        let (a, b) = (identity(1), identity(2));
        let hello = a.dial(NodeId(2), ConnNumber(9));
        let agreed = b.accept(&hello).unwrap();
        assert_eq!((agreed.peer, agreed.process, agreed.connection), (NodeId(1), a.process, ConnNumber(9)));
        let drives =
            vec![DriveHello { drive: crate::DriveId(5), failed: false, serving: true, in_doubt: vec![] }];
        let back = a.conclude(NodeId(2), ConnNumber(9), &b.answer(&agreed, drives.clone())).unwrap();
        assert_eq!((back.peer, back.protocol, back.drives), (NodeId(2), PROTOCOL, drives));
    }

    #[test]
    fn each_wrong_field_has_its_refusal() {
        type Edit = fn(&mut Hello);
        let b = identity(2);
        let cases: [(Edit, Refusal); 8] = [
            (|h| h.cluster = ClusterId(8), Refusal::WrongCluster),
            (|h| h.to = NodeId(3), Refusal::WrongNode),
            (|h| h.from = NodeId(2), Refusal::WrongNode),
            (|h| h.from = NodeId(0), Refusal::WrongNode),
            (|h| h.protocol = 0, Refusal::WrongVersion),
            (|h| (h.protocol, h.protocol_min) = (PROTOCOL + 5, PROTOCOL + 1), Refusal::WrongVersion),
            (|h| (h.protocol, h.protocol_min) = (1, 2), Refusal::WrongVersion),
            (|h| h.features_required = 1 << 60, Refusal::WrongVersion),
        ];
        for (edit, refusal) in cases {
            let mut hello = identity(1).dial(NodeId(2), ConnNumber(9));
            edit(&mut hello);
            assert_eq!(b.accept(&hello), Err(refusal), "{hello:?}");
        }
    }

    #[test]
    fn a_newer_peer_that_still_speaks_ours_is_taken() {
        let mut hello = identity(1).dial(NodeId(2), ConnNumber(9));
        (hello.protocol, hello.features_offered) = (PROTOCOL + 4, u64::MAX);
        let agreed = identity(2).accept(&hello).unwrap();
        assert_eq!((agreed.protocol, agreed.features), (PROTOCOL, FEATURES));
    }

    #[test]
    fn an_answer_of_another_node_or_connection_is_refused() {
        let (a, b) = (identity(1), identity(2));
        let agreed = b.accept(&a.dial(NodeId(2), ConnNumber(9))).unwrap();
        let answer = b.answer(&agreed, vec![]);
        assert_eq!(a.conclude(NodeId(3), ConnNumber(9), &answer), Err(Refusal::WrongNode));
        assert_eq!(a.conclude(NodeId(2), ConnNumber(10), &answer), Err(Refusal::OldConnection));
    }
}
