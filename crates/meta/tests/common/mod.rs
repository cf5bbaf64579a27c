//! A replica of the state beside the rows it handed out: after each command they must agree.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod fleet;

use meta::command::Plan;
use meta::rows::Row;
use meta::{AdminAnswer, AdminRefusal, Answer, Class, Command, KeyChange, MetaState, Op, Table};
use proto::control::{Attached, ChangeCause, ChunkChange, MetaAnswer, SessionKind, VolumeRef};
use proto::{
    BranchId, ChunkIndex, ClusterId, ConfigNumber, Configuration, DriveId, Epoch, Geometry, LogIndex,
    MemberState, NodeId, OpenId, ProcessNumber, RequestId, VolumeId,
};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const MIB: u64 = 1 << 20;

#[derive(Default)]
pub struct World {
    pub state: MetaState,
    pub rows: BTreeMap<(Table, Vec<u8>), Arc<[u8]>>,
    pub index: u64,
    pub at_ms: u64,
}

pub fn drive_of(node: u32) -> DriveId {
    DriveId(0xd000_0000_0000_0000 + u64::from(node))
}

impl World {
    /// A cluster of so many nodes with a confirmed drive each, all up.
    pub fn with_nodes(nodes: u32) -> World {
        let mut w = World { at_ms: 1_000_000, ..World::default() };
        let init = Op::ClusterInit { cluster: ClusterId(77), name: "test".into(), token: "secret".into() };
        w.admin(init).expect("a cluster is made");
        for n in 1..=nodes {
            w.add_node(n);
        }
        w
    }

    pub fn add_node(&mut self, n: u32) {
        let added = self.admin(Op::NodeAdd {
            name: format!("node-{n}"),
            zone: String::new(),
            address: format!("10.0.0.{n}:1"),
            identity: u128::from(n),
            token: Some("secret".into()),
        });
        assert_eq!(added, Ok(AdminAnswer::NodeAdded { node: NodeId(n), cluster: ClusterId(77) }));
        let drive = drive_of(n);
        self.admin(Op::DriveAdd { node: NodeId(n), drive, capacity: 100 << 30, path: "/dev/x".into() })
            .expect("a drive is added");
        assert_eq!(self.opened(n, &[u64::from(n)]), MetaAnswer::DriveConfirmed { drive });
        let seen = self.state.nodes()[&NodeId(n)].changes;
        assert!(self.own(Op::NodeUp { node: NodeId(n), seen, process: ProcessNumber(1) }));
    }

    pub fn opened(&mut self, n: u32, openings: &[u64]) -> MetaAnswer {
        self.node(Op::DriveOpened {
            node: NodeId(n),
            drive: drive_of(n),
            openings: openings.iter().map(|o| OpenId(*o)).collect(),
            capacity: 100 << 30,
            path: "/dev/x".into(),
            orphans: vec![],
            unknown: 0,
        })
    }

    /// Applies through the encoding, keeps the rows, and compares.
    pub fn apply(&mut self, request: Option<u128>, op: Op) -> Answer {
        self.index += 1;
        self.at_ms += 10;
        let command = Command { at_ms: self.at_ms, request: request.map(RequestId), op };
        let command = Command::decode(&command.encode()).expect("what was encoded is decoded");
        let outcome = self.state.apply(LogIndex(self.index), &command);
        for KeyChange { table, key, value } in outcome.changes {
            match value {
                Some(v) => drop(self.rows.insert((table, key), v)),
                None => drop(self.rows.remove(&(table, key))),
            }
        }
        self.compare();
        outcome.answer
    }

    pub fn compare(&self) {
        self.state.check();
        let kept = self.rows.iter().map(|((table, key), value)| Row {
            table: *table,
            key: key.clone(),
            value: value.clone(),
        });
        let loaded = MetaState::load(kept).expect("rows are readable");
        assert!(loaded == self.state, "the changes rebuild the state");
        let snapshot = MetaState::load(self.state.rows()).expect("rows are readable");
        assert!(snapshot == self.state, "the snapshot rebuilds the state");
    }

    pub fn admin(&mut self, op: Op) -> Result<AdminAnswer, AdminRefusal> {
        match self.apply(None, op) {
            Answer::Admin(a) => a,
            other => panic!("not an operator's answer: {other:?}"),
        }
    }
    pub fn node(&mut self, op: Op) -> MetaAnswer {
        match self.apply(None, op) {
            Answer::Node(a) => a,
            other => panic!("not a node's answer: {other:?}"),
        }
    }
    pub fn own(&mut self, op: Op) -> bool {
        match self.apply(None, op) {
            Answer::Planned(changed) => changed,
            other => panic!("not the planner's answer: {other:?}"),
        }
    }

    pub fn create_op(&self, name: &str, size: u64, nodes: &[u32]) -> Op {
        let geometry = Geometry { size, chunk_shift: 24 };
        let plan = Plan {
            groups: vec![nodes.iter().map(|n| drive_of(*n)).collect()],
            chunks: vec![0; geometry.chunks() as usize],
        };
        let class = Class::of_copies(u8::try_from(nodes.len()).expect("few nodes"));
        Op::VolumeCreate { name: name.into(), geometry, class, plan }
    }

    /// A volume of 16 MiB chunks, ready, on these nodes; its maintenance session has detached.
    pub fn volume(&mut self, name: &str, size: u64, nodes: &[u32]) -> (VolumeId, BranchId) {
        let op = self.create_op(name, size, nodes);
        let Ok(AdminAnswer::VolumeCreated { volume }) = self.admin(op) else { panic!("not created") };
        let branch = self.state.volumes()[&volume].branch;
        let node = nodes[0];
        self.own(Op::Appoint { branch, epoch: self.epoch(branch), node: Some(NodeId(node)) });
        let a = self.attached(branch, node, SessionKind::Maintenance);
        let placement = a.placement.expect("a new volume has one");
        let (epoch, replacements) = (a.epoch, vec![]);
        self.node(Op::Created { branch, epoch, placement, failed: vec![], replacements });
        self.own(Op::Appoint { branch, epoch, node: None });
        assert_eq!(self.node(Op::Detach { branch, epoch, clean: true }), MetaAnswer::Ok);
        assert!(self.state.is_healthy(branch));
        (volume, branch)
    }

    pub fn epoch(&self, branch: BranchId) -> Epoch {
        self.state.branches()[&branch].epoch
    }

    pub fn attach(&mut self, branch: BranchId, node: u32, kind: SessionKind) -> MetaAnswer {
        self.node(attach_op(branch, node, kind))
    }
    pub fn attached(&mut self, branch: BranchId, node: u32, kind: SessionKind) -> Attached {
        match self.attach(branch, node, kind) {
            MetaAnswer::Attached(a) => *a,
            other => panic!("not attached: {other:?}"),
        }
    }

    pub fn config(&self, branch: BranchId, chunk: u32) -> Configuration {
        self.state.configuration(branch, ChunkIndex(chunk)).expect("a chunk of the branch")
    }

    pub fn down(&mut self, n: u32) {
        let (node, seen) = (NodeId(n), self.state.nodes()[&NodeId(n)].changes);
        assert!(self.own(Op::NodeDown { node, seen, cause: meta::model::DownCause::Silent }));
    }
    pub fn up(&mut self, n: u32, process: u64) {
        let (node, seen) = (NodeId(n), self.state.nodes()[&NodeId(n)].changes);
        assert!(self.own(Op::NodeUp { node, seen, process: ProcessNumber(process) }));
    }
}

pub fn attach_op(branch: BranchId, node: u32, kind: SessionKind) -> Op {
    Op::Attach {
        volume: VolumeRef::Branch(branch),
        node: NodeId(node),
        process: ProcessNumber(1),
        kind,
        force: false,
        holder_unheard: false,
        after: None,
    }
}

/// The same members with other states: `None` removes.
pub fn change(
    c: &Configuration,
    chunk: u32,
    cause: ChangeCause,
    new: impl Fn(DriveId, MemberState) -> Option<MemberState>,
) -> ChunkChange {
    let members = c
        .members
        .iter()
        .filter_map(|m| Some(proto::Member { place: m.place, state: new(m.place.drive, m.state)? }))
        .collect();
    ChunkChange { chunk: ChunkIndex(chunk), from: c.number, members, cause, only_if_down: vec![] }
}

/// Marks one drive's member.
pub fn to(
    c: &Configuration,
    chunk: u32,
    cause: ChangeCause,
    drive: DriveId,
    state: MemberState,
) -> ChunkChange {
    change(c, chunk, cause, |d, s| Some(if d == drive { state } else { s }))
}

pub fn states(c: &Configuration) -> Vec<MemberState> {
    c.members.iter().map(|m| m.state).collect()
}

pub fn number(c: &Configuration) -> ConfigNumber {
    c.number
}
