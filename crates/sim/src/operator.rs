//! The operator: asks for snapshots of volumes, alone and in groups, and deletes them, whatever goes on.
//!
//! Owns what was asked and what has come of it. What a snapshot holds is judged by `properties::cut`, that it stays so by
//! `properties::views`.

use crate::counts::Operator as Did;
use crate::world::{Due, Phase, World};
use meta::AdminRequest;
use meta::admin::{SnapshotName, SnapshotOrder};
use oracle::{Entry, SnapshotNumber};
use proto::{BranchId, Generation, Span};
use std::collections::BTreeMap;

/// One snapshot, of one volume or of a group.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub number: SnapshotNumber,
    /// Volumes that were to have it.
    pub volumes: Vec<usize>,
    /// Judged as a cut.
    pub judged: bool,
}

/// All that were asked for, by name.
#[derive(Debug, Default)]
pub struct Snapshots {
    pub asked: BTreeMap<String, Snapshot>,
    next: u64,
}

/// A row of metad: sealed, or on the way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    pub volume: usize,
    pub name: String,
    pub branch: BranchId,
    pub generation: Generation,
    pub sealed: bool,
}

impl World {
    /// Snapshots that metad has of the guests' volumes.
    #[must_use]
    pub fn snapshot_rows(&self) -> Vec<Row> {
        let of = |v: usize| {
            let name = &self.volumes[v].name;
            let volume = self.metad.state.volume_named(name).map(|(id, _)| id);
            let rows = self.metad.state.snapshots().iter();
            rows.filter(move |(_, s)| Some(s.volume) == volume).map(move |((branch, generation), s)| Row {
                volume: v,
                name: s.name.clone(),
                branch: *branch,
                generation: *generation,
                sealed: s.state == meta::SnapshotState::Sealed,
            })
        };
        (0..self.volumes.len()).flat_map(of).collect()
    }

    pub fn operator_turn(&mut self) {
        if matches!(self.phase, Phase::Rest { .. }) {
            return self.make_room();
        }
        if self.phase != Phase::Faults {
            return;
        }
        let mean = self.swarm.span.0 / self.swarm.snapshots.max(1);
        let after = Span(self.rng.around(mean) + 1);
        self.put(after, Due::Operator);
        let rows = self.snapshot_rows();
        if !rows.is_empty() && self.rng.permille(400) {
            let row = rows[self.rng.index(rows.len())].clone();
            self.open_reader(&row);
        }
        let many = rows.len() >= self.swarm.snapshots_kept;
        if many || (!rows.is_empty() && self.rng.permille(300)) {
            let row = rows[self.rng.index(rows.len())].clone();
            self.delete_snapshot(&row);
            if !many {
                return;
            }
        }
        let group = self.rng.permille(self.swarm.groups);
        let first = self.rng.index(self.volumes.len());
        let volumes = if group { (0..self.volumes.len()).collect() } else { vec![first] };
        self.ask_snapshot(volumes);
        // Often a second one on the heels of the first: a seal waits for the one before.
        if self.rng.permille(150) {
            self.ask_snapshot(vec![first]);
        }
    }

    /// Drives that hold little may be too full of snapshots for a resync: their operator lets them go.
    fn make_room(&mut self) {
        let rows = self.snapshot_rows();
        for row in &rows {
            self.delete_snapshot(row);
        }
        if !rows.is_empty() {
            self.put(Span::secs(1), Due::Operator);
        }
    }

    fn ask_snapshot(&mut self, volumes: Vec<usize>) {
        let s = &mut self.snapshots;
        s.next += 1;
        let (number, name) = (SnapshotNumber(s.next), format!("s{}", s.next));
        let group = volumes.len() > 1;
        self.counts.operator(if group { Did::Group } else { Did::Snapshot });
        s.asked.insert(name.clone(), Snapshot { number, volumes: volumes.clone(), judged: false });
        self.tell(Entry::SnapshotAsked { snapshot: number });
        let order = |v: &usize| SnapshotOrder {
            name: SnapshotName { volume: self.volumes[*v].name.clone(), snapshot: name.clone() },
            id: u128::from(number.0) << 32 | *v as u128,
        };
        let items = volumes.iter().map(order).collect();
        let labels = BTreeMap::new();
        self.operator_asks(AdminRequest::SnapshotCreate { items, labels, protect_until_ms: 0 });
    }

    fn delete_snapshot(&mut self, row: &Row) {
        self.counts.operator(Did::Delete);
        let volume = self.volumes[row.volume].name.clone();
        let name = SnapshotName { volume, snapshot: row.name.clone() };
        self.operator_asks(AdminRequest::SnapshotDelete { name });
    }

    /// The operator's command reaches a leader, or nobody.
    fn operator_asks(&mut self, request: AdminRequest) {
        if self.metad.leads() {
            self.admin(request);
        }
    }
}
