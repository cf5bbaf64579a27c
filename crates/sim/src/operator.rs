//! The operator: asks for snapshots of volumes, alone and in groups, for clones and rollbacks, and deletes all of them,
//! whatever goes on.
//!
//! Owns what was asked and what has come of it. What a snapshot holds is judged by `properties::cut`, that it stays so by
//! `properties::views`. What needs a detached volume is an errand (`errands`).

use crate::counts::Operator as Did;
use crate::errands::Errand;
use crate::rng::Rng;
use crate::world::{Due, Phase, World};
use meta::AdminRequest;
use meta::admin::{SnapshotName, SnapshotOrder};
use oracle::{Entry, SnapshotNumber};
use proto::limits::BLOCK;
use proto::{BranchId, Generation, Span};
use std::collections::BTreeMap;

/// Volumes that are there at once.
const VOLUMES_MOST: usize = 5;
/// ... and that are not deleted.
const VOLUMES_LEAST: usize = 2;

/// One snapshot, of one volume or of a group.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub number: SnapshotNumber,
    /// So many volumes were to have it.
    pub volumes: usize,
    /// Judged as a cut.
    pub judged: bool,
}

/// All that were asked for, by name.
#[derive(Debug, Default)]
pub struct Snapshots {
    pub asked: BTreeMap<String, Snapshot>,
    /// By volume.
    pub errands: BTreeMap<usize, Errand>,
    next: u64,
    next_clone: u64,
}

/// A row of metad: sealed, or on the way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The volume that its branch is, or was before a rollback.
    pub volume: usize,
    pub name: String,
    pub branch: BranchId,
    pub generation: Generation,
    pub sealed: bool,
    /// A fork point: no operator sees it.
    pub hidden: bool,
}

impl World {
    /// Snapshots that metad has of the guests' volumes.
    #[must_use]
    pub fn snapshot_rows(&self) -> Vec<Row> {
        let row = |((branch, generation), s): (&(BranchId, Generation), &meta::Snapshot)| {
            Some(Row {
                volume: self.volume_of_branch(*branch)?,
                name: s.name.clone(),
                branch: *branch,
                generation: *generation,
                sealed: s.state == meta::SnapshotState::Sealed,
                hidden: s.hidden,
            })
        };
        self.metad.state.snapshots().iter().filter_map(row).collect()
    }
    /// Those that an operator sees.
    fn visible_rows(&self) -> Vec<Row> {
        self.snapshot_rows().into_iter().filter(|r| !r.hidden).collect()
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
        let rows = self.visible_rows();
        if self.swarm.clones > 0 && self.rng.permille(self.swarm.clones) {
            self.fork_turn(&rows);
        }
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
        let first = self.some_volume();
        let volumes = if group { self.live() } else { vec![first] };
        self.ask_snapshot(&volumes);
        // Often a second one on the heels of the first: a seal waits for the one before.
        if self.rng.permille(150) {
            self.ask_snapshot(&[first]);
        }
    }

    /// Drives that hold little may be too full of snapshots for a resync: their operator lets them go.
    fn make_room(&mut self) {
        let rows = self.visible_rows();
        for row in &rows {
            self.delete_snapshot(row);
        }
        if !rows.is_empty() {
            self.put(Span::secs(1), Due::Operator);
        }
    }

    // ------------------------------------------------------------------ snapshots

    /// A snapshot of this name is being asked for: what it holds is of a moment from here on.
    pub fn snapshot_asked(&mut self, name: String, volumes: usize) -> SnapshotNumber {
        self.snapshots.next += 1;
        let number = SnapshotNumber(self.snapshots.next);
        self.snapshots.asked.insert(name, Snapshot { number, volumes, judged: false });
        self.tell(Entry::SnapshotAsked { snapshot: number });
        number
    }

    fn ask_snapshot(&mut self, volumes: &[usize]) {
        let group = volumes.len() > 1;
        self.counts.operator(if group { Did::Group } else { Did::Snapshot });
        let name = format!("s{}", self.snapshots.next + 1);
        let number = self.snapshot_asked(name.clone(), volumes.len());
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
        let name = self.name_of(row);
        self.operator_asks(AdminRequest::SnapshotDelete { name });
    }

    fn name_of(&self, row: &Row) -> SnapshotName {
        let volume = self.volumes[row.volume].name.clone();
        SnapshotName { volume, snapshot: row.name.clone() }
    }

    /// The operator's command reaches a leader, or nobody.
    pub fn operator_asks(&mut self, request: AdminRequest) {
        if self.metad.leads() {
            self.admin(request);
        }
    }

    // ------------------------------------------------------------------ clones, rollbacks

    fn fork_turn(&mut self, rows: &[Row]) {
        let sealed: Vec<&Row> = rows.iter().filter(|r| r.sealed).collect();
        let live = self.live().len();
        if self.rng.permille(350) {
            self.flatten();
        }
        match self.rng.below(100) {
            0..45 if live < VOLUMES_MOST => {
                let from = (!sealed.is_empty() && self.rng.permille(600))
                    .then(|| sealed[self.rng.index(sealed.len())].clone());
                self.ask_clone(from.as_ref());
            }
            0..75 if !sealed.is_empty() => {
                let row = sealed[self.rng.index(sealed.len())].clone();
                self.roll_back(&row);
            }
            75..85 if self.volumes.iter().any(|v| v.trashed) => self.empty_trash(),
            _ if live > VOLUMES_LEAST => self.delete_volume(),
            _ => {}
        }
    }

    /// Of a snapshot, or of a volume as it is now.
    fn ask_clone(&mut self, from: Option<&Row>) {
        let v = from.map_or_else(|| self.some_volume(), |r| r.volume);
        let id = id(&mut self.rng);
        let snapshots = self.metad.state.snapshots();
        let size = match from {
            Some(r) => snapshots.get(&(r.branch, r.generation)).map(|s| s.size),
            None => {
                let branch = self.branch_of(v).and_then(|b| self.metad.state.branches().get(&b));
                branch.map(|b| b.geometry.size)
            }
        };
        let more = self.rng.pick(&[0, 0, 0, 1, 24, 4096]) * BLOCK as u64;
        let Some(size) = size else { return };
        self.snapshots.next_clone += 1;
        let name = format!("clone{}", self.snapshots.next_clone);
        if from.is_none() {
            self.snapshot_asked(format!("~{id:032x}"), 1);
        }
        let request = AdminRequest::VolumeClone {
            source: self.volumes[v].name.clone(),
            snapshot: from.map(|r| r.name.clone()),
            name,
            size: (more > 0).then_some(size + more),
            class: None,
            prefer: None,
            id,
        };
        self.operator_asks(request);
    }

    /// A clone, or a volume that went back, is to need its parent no more; or that is called off.
    fn flatten(&mut self) {
        let tied = |v: &usize| {
            let row = self.branch_of(*v).and_then(|b| self.metad.state.branches().get(&b));
            row.is_some_and(|b| b.tied)
        };
        let tied: Vec<usize> = self.live().into_iter().filter(tied).collect();
        if tied.is_empty() {
            return;
        }
        let v = tied[self.rng.index(tied.len())];
        let running = self.branch_of(v).and_then(|b| self.metad.state.running_job(b));
        if let Some(job) = running.filter(|_| self.rng.permille(200)) {
            return self.operator_asks(AdminRequest::JobCancel { job });
        }
        self.counts.operator(Did::Flatten);
        self.operator_asks(AdminRequest::VolumeFlatten { name: self.volumes[v].name.clone() });
    }

    /// Mostly the guest is asked to let go of it first: what somebody has open is not rolled back.
    fn roll_back(&mut self, row: &Row) {
        // The volume that has the name now, whatever it was when the snapshot was made.
        let of = &self.volumes[row.volume].name;
        let Some(v) = self.live().into_iter().find(|v| self.volumes[*v].name == *of) else { return };
        let safety = self.rng.permille(500).then(|| id(&mut self.rng));
        if let Some(id) = safety {
            self.snapshot_asked(format!("before-rollback-{:08x}", id >> 96), 1);
        }
        let request = AdminRequest::VolumeRollback { name: self.name_of(row), safety };
        if self.rng.permille(100) {
            return self.operator_asks(request);
        }
        self.begin_errand(v, request);
    }

    /// Restores a volume, or erases it before its time.
    fn empty_trash(&mut self) {
        let trashed = |v: &&crate::guest::Volume| v.trashed && v.gone.is_none();
        let names: Vec<String> = self.volumes.iter().filter(trashed).map(|v| v.name.clone()).collect();
        if names.is_empty() {
            return;
        }
        let name = names[self.rng.index(names.len())].clone();
        let request = if self.rng.permille(700) {
            AdminRequest::VolumeRestore { name, to: None }
        } else {
            AdminRequest::VolumePurge { name }
        };
        self.operator_asks(request);
    }

    fn delete_volume(&mut self) {
        // One stays, whatever is still on its way.
        let v = self.some_volume();
        if self.volumes[v].name == self.volumes[0].name {
            return;
        }
        let force = self.rng.permille(250);
        let request = AdminRequest::VolumeDelete {
            name: self.volumes[v].name.clone(),
            force: force.then(|| "not needed any more".into()),
            with_snapshots: self.rng.permille(600),
            now: self.rng.permille(400),
            despite_clones: self.rng.permille(500),
        };
        if force {
            return self.operator_asks(request);
        }
        self.begin_errand(v, request);
    }
}

fn id(rng: &mut Rng) -> u128 {
    u128::from(rng.next()) << 64 | u128::from(rng.next())
}
