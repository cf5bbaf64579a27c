//! Random commands, doubled and late ones among them: what must hold after every one of them.

mod common;

use common::fleet::Fleet;
use common::{World, drive_of};
use meta::command::{PlaceItem, Plan, PruneItem, Replacement, SnapshotItem};
use meta::model::DownCause;
use meta::view::WaitFor;
use meta::{Answer, Branch, Class, JobKind, JobState, MetaState, Op, Phase, SnapshotState};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proto::control::{ChangeCause, ChunkChange, HeldReplica, MetaAnswer, SessionKind, VolumeRef};
use proto::{
    BranchId, ChunkIndex, ConfigNumber, DriveId, Epoch, Generation, Geometry, Incarnation, JobId, ListIndex,
    Member, MemberState, NodeId, OpenId, ProcessNumber, Span, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

const NODES: u32 = 5;

/// What the generator knows when it makes the next command: numbers to be taken modulo what exists.
#[derive(Clone, Debug)]
enum Step {
    /// Kind, and numbers to make its fields of; `late`: how far behind its epoch and numbers are.
    New { kind: u8, n: [u32; 5], late: u8, request: bool },
    /// The k-th last command again, with its request id.
    Again { back: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..54u8, prop::array::uniform5(0..1000u32), prop_oneof![4 => Just(0u8), 1 => 1..3u8], any::<bool>())
            .prop_map(|(kind, n, late, request)| Step::New { kind, n, late, request }),
        1 => (1..40u8).prop_map(|back| Step::Again { back }),
    ]
}

/// Makes a command of the numbers, mostly one that makes sense.
struct Maker<'a> {
    state: &'a MetaState,
    n: [u32; 5],
    late: u8,
}

impl Maker<'_> {
    fn node(&self, i: usize) -> NodeId {
        NodeId(self.n[i] % NODES + 1)
    }
    fn branch(&self) -> BranchId {
        let all: Vec<BranchId> = self.state.branches().keys().copied().collect();
        all.get(self.n[0] as usize % all.len().max(1)).copied().unwrap_or(BranchId(1))
    }
    /// One whose records are to be made, if there is any.
    fn unmade(&self) -> BranchId {
        let pending = self.state.branches().iter().find(|(_, b)| b.pending().is_some());
        pending.map_or_else(|| self.branch(), |(id, _)| *id)
    }
    fn volume(&self) -> VolumeId {
        self.state.branches().get(&self.branch()).map_or(VolumeId(1), |b| b.volume)
    }
    fn epoch(&self) -> Epoch {
        let now = self.state.branches().get(&self.branch()).map_or(0, |b| b.epoch.0);
        Epoch(now.saturating_sub(u32::from(self.late)))
    }
    fn group(&self, from: usize) -> Vec<DriveId> {
        (0..3).map(|k| drive_of((self.n[from] + k) % NODES + 1)).collect()
    }
    fn plan(&self, chunks: u32) -> Plan {
        Plan {
            groups: vec![self.group(1), self.group(2)],
            chunks: (0..chunks).map(|c| u16::from(c % 2 == 1)).collect(),
        }
    }
    fn chunk(&self, i: usize) -> Option<(ChunkIndex, proto::Configuration)> {
        let chunks = self.state.chunks(self.branch())?;
        let chunk = ChunkIndex(self.n[i] % chunks.count());
        let mut c = chunks.get(chunk)?;
        c.number = ConfigNumber(c.number.0.saturating_sub(u64::from(self.late)));
        Some((chunk, c))
    }
    fn change(&self, i: usize) -> Option<ChunkChange> {
        let (chunk, c) = self.chunk(i)?;
        let who = self.n[i + 1] as usize % c.members.len().max(1);
        let what = self.n[i + 2] % 6;
        let mut members: Vec<Member> = c.members.to_vec();
        let cause = match what {
            0 | 5 => ChangeCause::Promoted(1),
            1 => ChangeCause::Left,
            _ => ChangeCause::Silent,
        };
        match what {
            0 => members.get_mut(who)?.state = MemberState::InSync,
            5 => members.iter_mut().find(|m| m.state == MemberState::Stale)?.state = MemberState::InSync,
            1 => drop(members.remove(who)),
            2 => members.iter_mut().for_each(|m| m.state = MemberState::Stale),
            _ => members.get_mut(who)?.state = MemberState::Stale,
        }
        let only_if_down = if what == 4 { vec![c.members.get(who)?.place.drive] } else { vec![] };
        Some(ChunkChange { chunk, from: c.number, members, cause, only_if_down })
    }

    fn op(&self, kind: u8) -> Option<Op> {
        Some(match kind {
            0..=3 => self.lifecycle(kind)?,
            4..=7 => self.attach(kind),
            8..=19 => self.session(kind)?,
            20..=25 => self.planned(kind)?,
            32..=39 => self.snapshot(kind)?,
            40..=45 => self.fork(kind)?,
            46..=48 => self.job()?,
            49 => self.rest()?,
            50 => self.policy(),
            51..=53 => self.shrink()?,
            _ => self.hardware(kind),
        })
    }

    fn lifecycle(&self, kind: u8) -> Option<Op> {
        let size = u64::from(self.n[4] % 70 + 1) << 20;
        let geometry = Geometry { size, chunk_shift: 24 };
        Some(match kind {
            0 | 1 => Op::VolumeCreate {
                name: format!("v{}", self.n[3] % 3),
                geometry,
                class: Class::default(),
                plan: self.plan(geometry.chunks()),
            },
            2 => {
                let row = self.state.branches().get(&self.branch())?;
                let grown = Geometry { size: row.geometry.size + size, ..row.geometry };
                let there = self.state.chunks(self.branch())?.count();
                let added = grown.chunks().saturating_sub(there);
                let (volume, from, to) = (row.volume, row.geometry.size, grown.size);
                if to > 400 << 20 {
                    return None;
                }
                Op::VolumeResize { volume, from, to, plan: self.plan(added) }
            }
            _ if self.n[1].is_multiple_of(3) => Op::VolumeDelete {
                volume: self.volume(),
                force: (self.n[2].is_multiple_of(2)).then(|| "test".into()),
                with_snapshots: self.n[3].is_multiple_of(2),
            },
            _ => Op::VolumeClass {
                volume: self.volume(),
                class: Class::of_copies(u8::try_from(self.n[2] % 3 + 2).expect("small")),
            },
        })
    }

    /// One policy, which keeps one; a fitting or late run of it; and quotas.
    fn policy(&self) -> Op {
        let (policy, volume) = (meta::model::PolicyId(1), self.volume());
        match self.n[1] % 8 {
            0 => Op::PolicyCreate {
                name: "p".into(),
                schedules: vec![schedule::Schedule::parse("daily").expect("a word")],
                jitter_ms: 0,
                retention: schedule::Retention { last: 1, ..Default::default() },
                keeps: 1,
            },
            1 => Op::PolicyAttach { policy, volume },
            2 => Op::PolicyDetach { policy, volume },
            3 => Op::QuotaSet {
                volume,
                quota: Some(meta::model::Quota { most: self.n[2] % 4, manual_only: self.late > 0 }),
            },
            _ => {
                let branch = self.state.volumes().get(&volume).map_or(self.branch(), |v| v.branch);
                let name = format!("p{}", self.n[3]);
                let item = SnapshotItem { volume, branch, name, id: u128::from(self.n[4]) };
                Op::PolicyRun { policy, item, slot_ms: 2_000_000 + u64::from(self.n[2]) * 1000 }
            }
        }
    }

    /// To the trash, out of it, and gone.
    fn rest(&self) -> Option<Op> {
        let trashed: Vec<VolumeId> = self.state.trash().keys().copied().collect();
        let trashed = trashed.get(self.n[0] as usize % trashed.len().max(1)).copied();
        Some(match self.n[2] % 3 {
            0 => Op::VolumeTrash {
                volume: self.volume(),
                force: self.n[3].is_multiple_of(2).then(|| "test".into()),
                with_snapshots: !self.n[3].is_multiple_of(3),
                despite_clones: self.n[3] % 5 > 1,
            },
            1 => Op::VolumeRestore { volume: trashed?, name: format!("v{}", self.n[3] % 3) },
            _ => Op::VolumePurge { volume: trashed?, early: !self.n[3].is_multiple_of(4) },
        })
    }

    fn attach(&self, kind: u8) -> Op {
        let branch = if kind == 4 { self.unmade() } else { self.branch() };
        let appointed = self.state.branches().get(&branch).and_then(|b| b.appointed);
        let maintenance = kind < 6;
        let node = appointed.filter(|_| maintenance).unwrap_or(self.node(1));
        if maintenance && appointed.is_none() {
            let epoch = self.state.branches().get(&branch).map_or(Epoch(0), |b| b.epoch);
            return Op::Appoint { branch, epoch, node: Some(node) };
        }
        let known = self.state.nodes().get(&node).map_or(1, |n| n.process.0);
        Op::Attach {
            volume: VolumeRef::Branch(branch),
            node,
            process: ProcessNumber(
                known.saturating_sub(u64::from(self.late)) + u64::from(self.n[2].is_multiple_of(9)),
            ),
            kind: if maintenance { SessionKind::Maintenance } else { SessionKind::Guest },
            force: self.n[3].is_multiple_of(5),
            holder_unheard: self.n[4].is_multiple_of(2),
            after: self.n[5 % self.n.len()].is_multiple_of(3).then(|| self.epoch()),
        }
    }

    fn session(&self, kind: u8) -> Option<Op> {
        let (branch, epoch) = (self.branch(), self.epoch());
        Some(match kind {
            8 | 9 => {
                let branch = self.unmade();
                let row = self.state.branches().get(&branch)?;
                let epoch = Epoch(row.epoch.0.saturating_sub(u32::from(self.late)));
                let failed = if self.n[1].is_multiple_of(2) {
                    vec![drive_of((self.n[3] + 3) % NODES + 1)]
                } else {
                    vec![]
                };
                let replacements = (0..row.geometry.chunks())
                    .map(|c| Replacement { chunk: ChunkIndex(c), drives: self.group(3) })
                    .filter(|r| r.chunk.0 % 2 == 0)
                    .collect();
                Op::Created { branch, epoch, placement: row.placement, failed, replacements }
            }
            10 => Op::Detach { branch, epoch, clean: self.n[1].is_multiple_of(2) },
            11 if self.n[1].is_multiple_of(3) => Op::Release { branch, epoch },
            _ => {
                let changes = [self.change(1), self.change(2)].into_iter().flatten().collect();
                Op::Propose { branch, epoch, changes }
            }
        })
    }

    fn planned(&self, kind: u8) -> Option<Op> {
        let (branch, epoch) = (self.branch(), self.epoch());
        let (chunk, c) = self.chunk(1)?;
        let member =
            |i: usize| c.members.get(self.n[i] as usize % c.members.len().max(1)).map(|m| m.place.drive);
        Some(match kind {
            20..=23 => {
                let drive = drive_of(self.n[2] % NODES + 1);
                let items = vec![PlaceItem { chunk, from: c.number, drive, replaces: member(3) }];
                Op::Place { branch, epoch, items }
            }
            _ => Op::Prune {
                branch,
                epoch,
                items: vec![PruneItem { chunk, from: c.number, drive: member(2)? }],
            },
        })
    }

    /// A volume, and the branch that it points at.
    fn item(&self, i: usize) -> Option<SnapshotItem> {
        let all: Vec<(VolumeId, BranchId)> =
            self.state.volumes().iter().map(|(v, r)| (*v, r.branch)).collect();
        let (volume, branch) = *all.get(self.n[i] as usize % all.len().max(1))?;
        let name = format!("s{}", self.n[i] % 7);
        Some(SnapshotItem { volume, branch, name, id: u128::from(self.n[i]) })
    }

    fn snapshot(&self, kind: u8) -> Option<Op> {
        let branch = self.branch();
        let row = self.state.branches().get(&branch)?;
        let all: Vec<_> = self.state.snapshots().iter().collect();
        let chosen = all.get(self.n[1] as usize % all.len().max(1));
        Some(match kind {
            32 | 33 => {
                let mut items = vec![self.item(1)?];
                if kind == 33 {
                    items.extend(self.item(2));
                }
                Op::SnapshotCreate { items, labels: BTreeMap::new(), protect_until_ms: 0 }
            }
            34 | 35 => {
                // Mostly of one that waits for it.
                let waits =
                    self.state.branches().iter().find(|(_, b)| b.sealing.is_some() && b.session.is_some());
                let (branch, row) = waits.map_or((branch, row), |(b, r)| (*b, r));
                let generation = Generation(row.generation.0.saturating_sub(1 + u32::from(self.late)));
                Op::Sealed { branch, epoch: Epoch(row.epoch.0.saturating_sub(self.n[3] / 900)), generation }
            }
            36 => {
                let generation = Generation(row.generation.0.saturating_sub(1 + u32::from(self.late)));
                Op::SealCancel { branch, generation }
            }
            37 => {
                let (key, s) = chosen?;
                let (branch, generation) = **key;
                if self.n[2].is_multiple_of(3) {
                    let (from, to) = (s.name.clone(), format!("s{}", self.n[3] % 7));
                    return Some(Op::SnapshotRename { branch, generation, from, to });
                }
                Op::SnapshotDelete { branch, generation, name: s.name.clone() }
            }
            _ => {
                let all: Vec<_> = self.state.owed().collect();
                let (drive, branch, index) = *all.get(self.n[1] as usize % all.len().max(1))?;
                Op::Kept { drive, branch, index: ListIndex(index.0 - u64::from(self.late.min(1))) }
            }
        })
    }

    fn fork(&self, kind: u8) -> Option<Op> {
        let all: Vec<_> = self.state.snapshots().iter().collect();
        let chosen = all.get(self.n[1] as usize % all.len().max(1));
        Some(match kind {
            40 => {
                let SnapshotItem { volume, branch, .. } = self.item(1)?;
                let generation = self.state.branches().get(&branch)?.generation;
                let name = self.n[3].is_multiple_of(3).then(|| format!("s{}", self.n[3] % 5));
                Op::ForkPoint { volume, branch, generation, id: u128::from(self.n[2]), name }
            }
            41 if self.n[2].is_multiple_of(3) => {
                let (branch, generation) = *chosen?.0;
                Op::ForkPointDrop { branch, generation }
            }
            41..=43 => {
                let ((branch, generation), s) = *chosen?;
                let (branch, generation) = (*branch, *generation);
                let geometry = Geometry { size: s.size, chunk_shift: 24 };
                let (plan, class) = (self.plan(geometry.chunks()), Class::default());
                let name = format!("v{}", self.n[3] % 5);
                Op::CloneCreate { branch, generation, name, size: s.size, class, plan }
            }
            _ => {
                let ((branch, generation), s) = *chosen?;
                let seen = self.state.volumes().get(&s.volume)?.branch;
                let copies = self.state.branches()[&seen].class.copies;
                if copies != 3 {
                    return None;
                }
                let geometry = Geometry { size: s.size, chunk_shift: 24 };
                let plan = self.plan(geometry.chunks());
                Op::Rollback {
                    volume: s.volume,
                    seen,
                    branch: *branch,
                    generation: *generation,
                    plan,
                    safety: None,
                }
            }
        })
    }

    /// Of a volume that gets smaller, or of one that could: what comes next, mostly.
    fn shrink(&self) -> Option<Op> {
        let running = self.state.jobs().iter().find_map(|(id, j)| match j.kind {
            JobKind::Shrink { .. } if j.state == JobState::Running => Some((*id, j.branch)),
            _ => None,
        });
        let Some((job, branch)) = running else {
            let able = |b: &Branch| {
                let detached = !b.tied && b.guest().is_none() && b.phase == Phase::Ready;
                detached && b.geometry.size > 1 << 20
            };
            let all: Vec<(BranchId, &Branch)> =
                self.state.branches().iter().filter(|(_, b)| able(b)).map(|(id, b)| (*id, b)).collect();
            let (branch, row) = *all.get(self.n[1] as usize % all.len().max(1))?;
            let (volume, from) = (row.volume, row.geometry.size);
            let to = (from / 1000 * u64::from(self.n[2]) / (1 << 20)).max(1) << 20;
            return Some(Op::VolumeShrink { volume, branch, from, to, discard: self.n[3].is_multiple_of(2) });
        };
        let row = self.state.branches().get(&branch)?;
        let epoch = Epoch(row.epoch.0.saturating_sub(u32::from(self.late)));
        Some(match row.appointed {
            _ if self.n[2].is_multiple_of(9) => Op::JobCancel { job },
            _ if row.session.is_some() => {
                let written = self.n[3].is_multiple_of(4).then_some(7);
                Op::Shrunk { branch, epoch, job, written }
            }
            None => Op::Appoint { branch, epoch: row.epoch, node: Some(self.node(1)) },
            Some(node) => {
                let process = self.state.nodes().get(&node).map_or(ProcessNumber(1), |n| n.process);
                let (volume, kind) = (VolumeRef::Branch(branch), SessionKind::Maintenance);
                Op::Attach { volume, node, process, kind, force: false, holder_unheard: true, after: None }
            }
        })
    }

    /// Of a clone: what comes next, mostly.
    fn job(&self) -> Option<Op> {
        let clones: Vec<(BranchId, &Branch)> =
            self.state.branches().iter().filter(|(_, b)| b.tied).map(|(id, b)| (*id, b)).collect();
        let (branch, row) = *clones.get(self.n[1] as usize % clones.len().max(1))?;
        let job = self.state.running_job(branch);
        let epoch = Epoch(row.epoch.0.saturating_sub(u32::from(self.late)));
        Some(match job {
            _ if self.n[2].is_multiple_of(9) => Op::JobCancel { job: JobId(self.state.head().last_job) },
            None if self.n[2].is_multiple_of(9) => {
                Op::Cut { branch, epoch, job: JobId(self.state.head().last_job) }
            }
            None => Op::Flatten { volume: row.volume, branch },
            Some(job) if row.session.is_some() => Op::Cut { branch, epoch, job },
            Some(_) if row.appointed.is_none() => {
                Op::Appoint { branch, epoch: row.epoch, node: Some(self.node(1)) }
            }
            Some(_) => {
                let node = row.appointed.expect("just seen");
                let process = self.state.nodes().get(&node).map_or(ProcessNumber(1), |n| n.process);
                let (volume, kind) = (VolumeRef::Branch(branch), SessionKind::Maintenance);
                Op::Attach { volume, node, process, kind, force: false, holder_unheard: true, after: None }
            }
        })
    }

    fn hardware(&self, kind: u8) -> Op {
        let node = self.node(0);
        let drive = drive_of(node.0);
        let seen = self.state.nodes().get(&node).map_or(0, |n| n.changes).saturating_sub(self.late.into());
        let process = self.state.nodes().get(&node).map_or(ProcessNumber(1), |n| n.process);
        let row = self.state.drives().get(&drive);
        match kind {
            26 => Op::NodeDown { node, seen, cause: DownCause::Silent },
            27 | 28 => {
                Op::NodeUp { node, seen, process: ProcessNumber(process.0 + u64::from(self.n[1] % 2)) }
            }
            29 => {
                let mut openings = row.map(|d| d.openings.clone()).unwrap_or_default();
                openings.truncate(openings.len() - openings.len().min(self.late.into()));
                openings.push(OpenId(u64::from(self.n[1]) * 1000 + u64::from(self.n[2])));
                let orphans = (0..8)
                    .map(|i| HeldReplica {
                        branch: self.branch(),
                        chunk: ChunkIndex(i % 3),
                        incarnation: Incarnation(u64::from(self.n[3] % 50 + i)),
                    })
                    .collect();
                Op::DriveOpened {
                    node,
                    drive,
                    openings,
                    capacity: 100 << 30,
                    path: "p".into(),
                    orphans,
                    unknown: self.n[3] % 3,
                }
            }
            30 => Op::DriveRetire { drive, retire: self.n[1].is_multiple_of(4) },
            _ => Op::Deleted { drive, replicas: self.state.garbage(drive, self.n[1] as usize % 9) },
        }
    }
}

/// Per chunk: number, and who is in-sync.
type Seen = BTreeMap<(BranchId, ChunkIndex), (ConfigNumber, BTreeSet<Incarnation>)>;

fn see(state: &MetaState) -> Seen {
    let mut seen = Seen::new();
    for branch in state.branches().keys() {
        for (chunk, c) in state.chunks(*branch).expect("every branch has chunks").iter() {
            let in_sync = c.in_sync().map(|m| m.place.incarnation).collect();
            seen.insert((*branch, chunk), (c.number, in_sync));
        }
    }
    seen
}

/// Between two states, one command apart.
fn check_step(op: &Op, before: &MetaState, after: &MetaState) {
    let (old, new) = (see(before), see(after));
    for (key, (number, in_sync)) in &new {
        let Some((old_number, old_in_sync)) = old.get(key) else { continue };
        assert!(number >= old_number, "{key:?}: numbers only rise");
        let changed = before.configuration(key.0, key.1) != after.configuration(key.0, key.1);
        assert!(
            !changed || number > old_number || *old_number == ConfigNumber(0),
            "{key:?}: a change has a number"
        );
        let added = !in_sync.is_subset(old_in_sync);
        match op {
            Op::Created { .. } => {
                assert!(!added || *old_number == ConfigNumber(0), "{key:?}: only what was unmade")
            }
            Op::Propose { branch, epoch, .. } => {
                let row = before.branches().get(branch);
                let current = row.is_some_and(|r| r.epoch == *epoch && r.session.is_some());
                assert!(!changed || (current && key.0 == *branch), "{key:?}: only the current session's");
            }
            _ => assert!(!added, "{key:?}: {op:?} puts nobody into a set"),
        }
    }
    for (branch, row) in after.branches() {
        if let Some(old) = before.branches().get(branch) {
            assert!(row.epoch >= old.epoch, "{branch}: epochs only rise");
            assert!(row.generation >= old.generation, "{branch}: nor does the head fall");
            assert!(row.unsealed >= old.unsealed, "{branch}: what was sealed stays so");
            check_sealing(op, *branch, old, row);
            let session = |epoch: Epoch| old.epoch == epoch && old.session.is_some();
            let by = matches!(op, Op::Cut { branch: b, epoch, .. } if b == branch && session(*epoch));
            assert!(row.tied == old.tied || by, "{branch}: a tie is cut by its session");
            assert_eq!(row.parent, old.parent, "{branch}: whose parent is who never changes");
            let by = matches!(op, Op::Shrunk { branch: b, epoch, .. } if b == branch && session(*epoch));
            assert!(row.geometry.size >= old.geometry.size || by, "{branch}: made smaller by its session");
            assert!(!by || row.guest().is_none(), "{branch}: under a guest");
        }
    }
    for (key, s) in after.snapshots() {
        let old = before.snapshots().get(key);
        assert!(old.is_none_or(|o| o.id == s.id), "{key:?}: a generation is used once");
        assert!(
            old.is_some()
                || matches!(op, Op::SnapshotCreate { .. } | Op::ForkPoint { .. } | Op::PolicyRun { .. }),
            "{key:?}: {op:?} makes no snapshot"
        );
        let was_sealed = old.is_some_and(|o| o.state == SnapshotState::Sealed);
        assert!(!was_sealed || s.state == SnapshotState::Sealed, "{key:?}: sealed for good");
    }
    for (key, s) in before.snapshots().iter().filter(|(k, _)| !after.snapshots().contains_key(*k)) {
        let ordered = match op {
            Op::SnapshotDelete { branch, generation, .. } => *key == (*branch, *generation),
            Op::VolumeDelete { volume, .. } | Op::VolumePurge { volume, .. } => s.volume == *volume,
            Op::SealCancel { .. } => s.state == SnapshotState::Sealing,
            // A newer one of the policy is sealed.
            Op::Sealed { .. } | Op::Detach { .. } | Op::PolicyRun { .. } => {
                s.policy.is_some() && s.state == SnapshotState::Sealed && s.protect_until_ms == 0
            }
            Op::ForkPointDrop { branch, generation } | Op::CloneCreate { branch, generation, .. } => {
                s.hidden && *key == (*branch, *generation)
            }
            _ => false,
        };
        assert!(ordered, "{key:?}: gone by {op:?}");
    }
}

/// Nothing is called sealed that somebody may still write.
fn check_sealing(op: &Op, branch: BranchId, old: &Branch, new: &Branch) {
    if new.unsealed == old.unsealed {
        return;
    }
    let current = |epoch: Epoch| old.epoch == epoch && old.session.is_some();
    let drained = match op {
        Op::Detach { epoch, clean, .. } => *clean && current(*epoch),
        Op::Sealed { epoch, .. } => current(*epoch) && old.sealing.is_some(),
        Op::SnapshotCreate { .. } | Op::ForkPoint { .. } | Op::Rollback { .. } | Op::PolicyRun { .. } => {
            old.clean && old.session.is_none()
        }
        _ => false,
    };
    // Of a group: this one may have drained before.
    let before = old.sealing.is_some_and(|s| s.drained);
    assert!(drained || before, "{branch}: sealed by {op:?}");
}

/// A repeat says the same; only what it says of an attach may have moved on.
fn same_answer(first: &Answer, second: &Answer) -> bool {
    match (first, second) {
        (Answer::Node(MetaAnswer::Attached(a)), Answer::Node(MetaAnswer::Attached(b))) => {
            (a.epoch, a.clean, a.branch, a.kind) == (b.epoch, b.clean, b.branch, b.kind)
        }
        (Answer::Node(MetaAnswer::Attached(_)), Answer::Node(MetaAnswer::Refused(_))) => true,
        (a, b) => a == b,
    }
}

/// Applies a history, checking after every step.
fn run_history(steps: Vec<Step>) -> World {
    let mut w = World::with_nodes(NODES);
    let (_, branch) = w.volume("v0", 40 << 20, &[1, 2, 3]);
    w.attached(branch, 1, SessionKind::Guest);
    let mut history: Vec<(Option<u128>, Op, Answer)> = Vec::new();
    for step in steps {
        let (request, op, first) = match step {
            Step::New { kind, n, late, request } => {
                let Some(op) = (Maker { state: &w.state, n, late }).op(kind) else { continue };
                (request.then_some(history.len() as u128 + 1), op, None)
            }
            Step::Again { back } => {
                let Some(i) = history.len().checked_sub(usize::from(back)) else { continue };
                let (request, op, answer) = history[i].clone();
                (request, op, Some(answer))
            }
        };
        let before = w.state.clone();
        // Rows against the state, and the invariants of one state, are compared in there.
        let answer = w.apply(request, op.clone());
        check_step(&op, &before, &w.state);
        if let (Some(first), true) = (&first, request.is_some()) {
            assert!(same_answer(first, &answer), "{first:?} / {answer:?}");
        }
        history.push((request, op, first.unwrap_or(answer)));
    }
    w
}

#[test]
fn the_histories_reach_what_they_are_about() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut met: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..300 {
        let steps = prop::collection::vec(step(), 60..80).new_tree(&mut runner).expect("a history").current();
        for e in run_history(steps).state.events().values() {
            *met.entry(e.kind.name()).or_default() += 1;
        }
    }
    let wanted = [
        "VolumeReady",
        "VolumeDeleted",
        "VolumeTrashed",
        "VolumeRestored",
        "VolumeResized",
        "VolumeClass",
        "Attached",
        "Detached",
        "Released",
        "Stale",
        "InSync",
        "Replacing",
        "PlacedAround",
        "NodeDown",
        "NodeUp",
        "DriveStranger",
        "DriveRetired",
        "SnapshotSealed",
        "SealCalledOff",
        "SnapshotDeleted",
        "SnapshotRenamed",
        "VolumeCloned",
        "RolledBack",
        "Flattened",
        "Shrinking",
    ];
    for kind in wanted {
        assert!(met.get(kind).is_some_and(|n| *n > 3), "{kind} is hardly met: {met:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn any_history_of_commands_keeps_the_invariants(steps in prop::collection::vec(step(), 1..80)) {
        run_history(steps);
    }

    #[test]
    fn after_any_failures_everything_becomes_whole_and_quiet(
        faults in prop::collection::vec((1..=6u32, 0..6u8, 1..40u64), 0..12),
        guests in prop::array::uniform2(1..=6u32),
    ) {
        let mut f = Fleet::new(6);
        f.admin(meta::AdminRequest::SettingSet { key: "down_out".into(), value: "10s".into() }).unwrap();
        let branches = [f.ready("a", 200), f.ready("b", 100), f.ready("c", 50)];
        for (branch, node) in branches.iter().zip(guests) {
            f.guest(node, *branch);
        }
        for (node, what, secs) in faults {
            match what {
                0..=2 => f.kill(node),
                3 => f.start(node),
                4 => f.no_quorum = !f.no_quorum,
                _ => {
                    f.event(meta::ServiceEvent::LostLeader);
                    f.event(meta::ServiceEvent::BecameLeader);
                }
            }
            f.run(Span::secs(secs));
            f.state.check();
        }
        f.no_quorum = false;
        for n in 1..=6 {
            f.start(n);
        }
        f.until("healthy", 120, |f| ["a", "b", "c"].iter().all(|v| f.waited(v, WaitFor::Healthy)));
        f.until("nothing too much", 60, |f| {
            branches.iter().all(|b| f.state.chunks(*b).unwrap().iter().all(|(_, c)| c.members.len() == 3))
        });
        f.settle(60);
        f.until("erased", 60, |f| f.state.drives().keys().all(|d| f.state.garbage(*d, 1).is_empty()));
        f.run(Span::secs(20));
        let before = f.log.len();
        f.run(Span::secs(20));
        prop_assert_eq!(&f.log[before..], &[][..], "at rest nothing is proposed");
        f.state.check();
    }
}
