//! The replicated state, and `apply`.
//!
//! `apply` is a function of the state and the command: no clock, no chance, no iteration order that is
//! not given by ids. Every change of a row goes through `mark`, so that the rows handed out as changes
//! rebuild the very same state (`load`). What is refused changes nothing but the kept answer.

use crate::answer::{Answer, Outcome};
use crate::bugs::Bugs;
use crate::chunks::Chunks;
use crate::command::{Command, Op};
use crate::dedup::Kept;
use crate::event::EventRecord;
use crate::garbage::{GarbageKey, GarbagePage};
use crate::index::{self, Index};
use crate::model::{
    Branch, Drive, Head, Job, JobState, Node, Policy, PolicyId, PolicyUse, Quota, Snapshot, SnapshotState,
    Trashed, Volume,
};
use crate::rows::{Key, KeyChange, LoadError, Row, Table};
use crate::settings::Settings;
use crate::touch::Touched;
use proto::{
    BranchId, ChunkIndex, Configuration, DriveId, Generation, JobId, ListIndex, LogIndex, NodeId, RequestId,
    VolumeId,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Clone, Debug, Default)]
pub struct MetaState {
    pub(crate) head: Head,
    pub(crate) settings: Settings,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) drives: BTreeMap<DriveId, Drive>,
    pub(crate) volumes: BTreeMap<VolumeId, Volume>,
    pub(crate) trash: BTreeMap<VolumeId, Trashed>,
    pub(crate) policies: BTreeMap<PolicyId, Policy>,
    pub(crate) policy_uses: BTreeMap<(VolumeId, PolicyId), PolicyUse>,
    pub(crate) quotas: BTreeMap<VolumeId, Quota>,
    pub(crate) branches: BTreeMap<BranchId, Branch>,
    pub(crate) chunks: BTreeMap<BranchId, Chunks>,
    pub(crate) garbage: BTreeMap<GarbageKey, GarbagePage>,
    pub(crate) kept: BTreeMap<RequestId, Kept>,
    pub(crate) events: BTreeMap<u64, EventRecord>,
    pub(crate) snapshots: BTreeMap<(BranchId, Generation), Snapshot>,
    /// Drives that have not confirmed the branch's keep-list, and when it last changed for them.
    pub(crate) owed: BTreeMap<(DriveId, BranchId), ListIndex>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) index: Index,
    /// Rows changed by the command being applied.
    dirty: BTreeSet<Key>,
    pub(crate) touched: Touched,
    pub(crate) bugs: Bugs,
}

/// Equal rows (and what is derived from them); what was touched lately does not count.
impl PartialEq for MetaState {
    fn eq(&self, o: &MetaState) -> bool {
        self.head == o.head
            && self.settings == o.settings
            && self.nodes == o.nodes
            && self.drives == o.drives
            && self.volumes == o.volumes
            && self.trash == o.trash
            && self.policies == o.policies
            && self.policy_uses == o.policy_uses
            && self.quotas == o.quotas
            && self.branches == o.branches
            && self.chunks == o.chunks
            && self.garbage == o.garbage
            && self.kept == o.kept
            && self.events == o.events
            && self.snapshots == o.snapshots
            && self.owed == o.owed
            && self.jobs == o.jobs
            && self.index == o.index
    }
}

impl MetaState {
    #[must_use]
    pub fn new() -> MetaState {
        MetaState::default()
    }

    /// For the simulator: leaves out the named rules.
    pub fn set_bugs(&mut self, bugs: Bugs) {
        self.bugs = bugs.effective();
    }

    /// Applies one committed command. Indexes rise; each is applied once.
    pub fn apply(&mut self, index: LogIndex, command: &Command) -> Outcome {
        assert!(index > self.head.applied, "log entries are applied in order, once");
        self.head.applied = index;
        let kept = command.request.and_then(|r| self.kept_answer(r));
        let answer = kept.unwrap_or_else(|| {
            let answer = self.perform(command);
            if let Some(request) = command.request {
                self.keep(request, &answer);
            }
            answer
        });
        Outcome { answer, changes: self.take_changes() }
    }

    /// A log entry without a command (an election, a change of metad's own members).
    pub fn pass(&mut self, index: LogIndex) -> Vec<KeyChange> {
        assert!(index > self.head.applied, "log entries are applied in order, once");
        self.head.applied = index;
        self.take_changes()
    }

    fn perform(&mut self, command: &Command) -> Answer {
        let at = command.at_ms;
        match &command.op {
            Op::ClusterInit { cluster, name, token } => {
                Answer::Admin(self.apply_cluster_init(at, *cluster, name, token))
            }
            Op::SettingSet { setting } => Answer::Admin(self.apply_setting(at, *setting)),
            Op::NodeAdd { .. }
            | Op::NodeRegister { .. }
            | Op::NodeDrain { .. }
            | Op::NodeRemove { .. }
            | Op::NodeDown { .. }
            | Op::NodeUp { .. } => self.perform_node(at, &command.op),
            Op::DriveAdd { .. }
            | Op::DriveOpened { .. }
            | Op::DriveDown { .. }
            | Op::DriveUp { .. }
            | Op::DriveRetire { .. }
            | Op::DriveRemove { .. } => self.perform_drive(at, &command.op),
            Op::VolumeCreate { .. }
            | Op::VolumeDelete { .. }
            | Op::VolumeRename { .. }
            | Op::VolumeResize { .. }
            | Op::VolumeClass { .. } => Answer::Admin(self.perform_volume(at, &command.op)),
            Op::VolumeTrash { .. } | Op::VolumeRestore { .. } | Op::VolumePurge { .. } => {
                Answer::Admin(self.perform_trash(at, &command.op))
            }
            Op::PolicyCreate { .. }
            | Op::PolicyDelete { .. }
            | Op::PolicyAttach { .. }
            | Op::PolicyDetach { .. }
            | Op::QuotaSet { .. }
            | Op::PolicyRun { .. } => Answer::Admin(self.perform_policy(at, &command.op)),
            Op::Attach { .. }
            | Op::Detach { .. }
            | Op::Release { .. }
            | Op::Propose { .. }
            | Op::Created { .. } => self.perform_session(at, &command.op),
            Op::Appoint { branch, epoch, node } => {
                Answer::Planned(self.apply_appoint(*branch, *epoch, *node))
            }
            Op::Place { branch, epoch, items } => {
                Answer::Planned(self.apply_place(at, *branch, *epoch, items))
            }
            Op::Prune { branch, epoch, items } => {
                Answer::Planned(self.apply_prune(at, *branch, *epoch, items))
            }
            Op::Deleted { drive, replicas } => Answer::Planned(self.apply_deleted(*drive, replicas)),
            Op::SnapshotCreate { .. }
            | Op::SnapshotDelete { .. }
            | Op::SnapshotRename { .. }
            | Op::SnapshotProtect { .. }
            | Op::SnapshotLabel { .. } => Answer::Admin(self.perform_snapshot(at, &command.op)),
            Op::Sealed { branch, epoch, generation } => {
                Answer::Node(self.apply_sealed(at, *branch, *epoch, *generation))
            }
            Op::SealCancel { branch, generation } => {
                Answer::Planned(self.apply_seal_cancel(at, *branch, *generation))
            }
            Op::CloneCreate { .. } | Op::Rollback { .. } | Op::ForkPoint { .. } => {
                Answer::Admin(self.perform_clone(at, &command.op))
            }
            Op::ForkPointDrop { branch, generation } => {
                Answer::Planned(self.apply_fork_point_drop(*branch, *generation))
            }
            Op::Kept { drive, branch, index } => Answer::Planned(self.apply_kept(*drive, *branch, *index)),
            Op::Flatten { .. } | Op::JobCancel { .. } | Op::Cut { .. } => self.perform_job(at, &command.op),
            Op::VolumeShrink { .. } | Op::Shrunk { .. } => self.perform_job(at, &command.op),
        }
    }

    pub(crate) fn mark(&mut self, key: Key) {
        self.dirty.insert(key);
    }

    fn take_changes(&mut self) -> Vec<KeyChange> {
        self.dirty.insert(Key::Head);
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|k| KeyChange { table: k.table(), key: k.bytes(), value: self.row(k) })
            .collect()
    }

    /// The row as stored, if there is one.
    fn row(&self, key: Key) -> Option<Arc<[u8]>> {
        match key {
            Key::Head => Some(encode(&self.head)),
            Key::Settings => Some(encode(&self.settings)),
            Key::Node(n) => self.nodes.get(&n).map(encode),
            Key::Drive(d) => self.drives.get(&d).map(encode),
            Key::Volume(v) => self.volumes.get(&v).map(encode),
            Key::Trash(v) => self.trash.get(&v).map(encode),
            Key::Policy(p) => self.policies.get(&p).map(encode),
            Key::PolicyUse(v, p) => self.policy_uses.get(&(v, p)).map(encode),
            Key::Quota(v) => self.quotas.get(&v).map(encode),
            Key::Branch(b) => self.branches.get(&b).map(encode),
            Key::Chunks(b, page) => self.chunks.get(&b)?.row(page),
            Key::Garbage(d, b, page) => self.garbage.get(&(d, b, page)).map(encode),
            Key::Kept(r) => self.kept.get(&r).map(encode),
            Key::Event(e) => self.events.get(&e).map(encode),
            Key::Snapshot(b, g) => self.snapshots.get(&(b, g)).map(encode),
            Key::Owed(d, b) => self.owed.get(&(d, b)).map(encode),
            Key::Job(j) => self.jobs.get(&j).map(encode),
        }
    }

    /// All rows, table by table: the snapshot.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        let chunks = self.chunks.iter().flat_map(|(b, c)| (0..c.pages()).map(|p| Key::Chunks(*b, p)));
        [Key::Head, Key::Settings]
            .into_iter()
            .chain(self.nodes.keys().map(|k| Key::Node(*k)))
            .chain(self.drives.keys().map(|k| Key::Drive(*k)))
            .chain(self.volumes.keys().map(|k| Key::Volume(*k)))
            .chain(self.trash.keys().map(|k| Key::Trash(*k)))
            .chain(self.policies.keys().map(|k| Key::Policy(*k)))
            .chain(self.policy_uses.keys().map(|(v, p)| Key::PolicyUse(*v, *p)))
            .chain(self.quotas.keys().map(|k| Key::Quota(*k)))
            .chain(self.branches.keys().map(|k| Key::Branch(*k)))
            .chain(chunks)
            .chain(self.garbage.keys().map(|(d, b, p)| Key::Garbage(*d, *b, *p)))
            .chain(self.kept.keys().map(|k| Key::Kept(*k)))
            .chain(self.events.keys().map(|k| Key::Event(*k)))
            .chain(self.snapshots.keys().map(|(b, g)| Key::Snapshot(*b, *g)))
            .chain(self.owed.keys().map(|(d, b)| Key::Owed(*d, *b)))
            .chain(self.jobs.keys().map(|j| Key::Job(*j)))
            .map(|k| Row {
                table: k.table(),
                key: k.bytes(),
                value: self.row(k).expect("keys of existing rows"),
            })
    }

    /// The state of these rows. They may come in any order of tables, but in the order of keys within one.
    /// No rows: a new state.
    ///
    /// # Errors
    /// A row that cannot be read, or rows that contradict each other: this metad must stop.
    pub fn load(rows: impl IntoIterator<Item = Row>) -> Result<MetaState, LoadError> {
        let mut s = MetaState::new();
        let mut pages = Vec::new();
        for row in rows {
            let refused = || LoadError::Row { table: row.table, key: row.key.clone() };
            let key = Key::parse(row.table, &row.key).ok_or_else(refused)?;
            if row.table == Table::Chunks {
                pages.push((key, row.value));
            } else {
                s.load_row(key, &row.value).ok_or_else(refused)?;
            }
        }
        for (key, value) in pages {
            let Key::Chunks(branch, page) = key else { unreachable!("only pages are put here") };
            let refused = || LoadError::Row { table: Table::Chunks, key: key.bytes() };
            let b = s.branches.get(&branch).ok_or(LoadError::Torn("chunks of no branch"))?;
            let chunks = s.chunks.entry(branch).or_insert_with(|| Chunks::new(b.class.copies));
            chunks.load(page, &value).ok_or_else(refused)?;
        }
        s.derive()?;
        s.touched = Touched::starting_at(s.head.applied);
        Ok(s)
    }

    fn load_row(&mut self, key: Key, value: &[u8]) -> Option<()> {
        match key {
            Key::Head => self.head = decode(value)?,
            Key::Settings => self.settings = decode(value)?,
            Key::Node(n) => drop(self.nodes.insert(n, decode(value)?)),
            Key::Drive(d) => drop(self.drives.insert(d, decode(value)?)),
            Key::Volume(v) => drop(self.volumes.insert(v, decode(value)?)),
            Key::Trash(v) => drop(self.trash.insert(v, decode(value)?)),
            Key::Policy(p) => drop(self.policies.insert(p, decode(value)?)),
            Key::PolicyUse(v, p) => drop(self.policy_uses.insert((v, p), decode(value)?)),
            Key::Quota(v) => drop(self.quotas.insert(v, decode(value)?)),
            Key::Branch(b) => drop(self.branches.insert(b, decode(value)?)),
            Key::Chunks(..) => return None,
            Key::Garbage(d, b, page) => drop(self.garbage.insert((d, b, page), decode(value)?)),
            Key::Kept(r) => drop(self.kept.insert(r, decode(value)?)),
            Key::Event(e) => drop(self.events.insert(e, decode(value)?)),
            Key::Snapshot(b, g) => drop(self.snapshots.insert((b, g), decode(value)?)),
            Key::Owed(d, b) => drop(self.owed.insert((d, b), decode(value)?)),
            Key::Job(j) => drop(self.jobs.insert(j, decode(value)?)),
        }
        Some(())
    }

    fn derive(&mut self) -> Result<(), LoadError> {
        let mut i = Index {
            names: self.volumes.iter().map(|(v, r)| (r.name.clone(), *v)).collect(),
            node_names: self.nodes.iter().map(|(n, r)| (r.name.clone(), *n)).collect(),
            kept: self.kept.iter().map(|(r, k)| (k.number, *r)).collect(),
            ..Index::default()
        };
        for (id, b) in &self.branches {
            let chunks = self.chunks.get(id).ok_or(LoadError::Torn("a branch without chunks"))?;
            if chunks.count() < b.geometry.chunks() || self.any_volume(b.volume).is_none() {
                return Err(LoadError::Torn("a branch with too few chunks, or without a volume"));
            }
            for page in 0..chunks.pages() {
                i.count_all(*id, chunks.page(page).iter().map(|(_, c)| c));
            }
            if chunks.unwell() > 0 {
                i.unwell.insert(*id);
            }
            if let Some(node) = b.appointed {
                index::put(&mut i.appointed, node, *id);
            }
            if let Some(session) = b.session {
                index::put(&mut i.sessions, session.node, *id);
            }
            if b.sealing.is_some() {
                i.sealing.insert(*id);
            }
            if let Some(tie) = b.tie() {
                let parent = self.branches.get(&tie.branch).filter(|p| p.generation > tie.generation);
                if tie.branch >= *id || parent.is_none() {
                    return Err(LoadError::Torn("a branch whose parent is gone, or has no such generation"));
                }
                i.forks.entry((tie.branch, tie.generation)).or_default().insert(*id);
            }
            i.branches.insert((b.volume, *id));
            if !self.is_named(*id) && b.unsealed < b.generation {
                i.unclosed.insert(*id);
            }
        }
        self.derive_snapshots(&mut i)?;
        for (job, row) in self.jobs.iter().filter(|(_, j)| j.state == JobState::Running) {
            if !self.fits(row.branch, row.kind) || i.jobs.insert(row.branch, *job).is_some() {
                return Err(LoadError::Torn(
                    "a job of a branch that is not as it must be, or the second one",
                ));
            }
        }
        let own =
            |(v, row): (&VolumeId, &Volume)| self.branches.get(&row.branch).is_some_and(|b| b.volume == *v);
        if !self.volumes.iter().chain(self.trash.iter().map(|(id, t)| (id, &t.volume))).all(own) {
            return Err(LoadError::Torn("a volume without a branch"));
        }
        let attached =
            |(v, p): &(VolumeId, PolicyId)| self.any_volume(*v).is_some() && self.policies.contains_key(p);
        if !self.policy_uses.keys().all(attached) || self.quotas.keys().any(|v| self.any_volume(*v).is_none())
        {
            return Err(LoadError::Torn("a policy or a quota of a volume that is gone"));
        }
        if self.trash.keys().any(|id| self.volumes.contains_key(id)) {
            return Err(LoadError::Torn("a volume that is in the trash and is not"));
        }
        self.index = i;
        Ok(())
    }

    fn derive_snapshots(&self, i: &mut Index) -> Result<(), LoadError> {
        for ((branch, generation), s) in &self.snapshots {
            let Some(b) =
                self.branches.get(branch).filter(|b| b.volume == s.volume && b.generation > *generation)
            else {
                return Err(LoadError::Torn("a snapshot of no branch, or not below its head"));
            };
            let sealing = b.sealing.is_some_and(|seal| seal.generation == *generation);
            if sealing != (s.state == SnapshotState::Sealing) {
                return Err(LoadError::Torn("a snapshot and its branch differ on whether it is sealed"));
            }
            if s.hidden {
                i.hidden.insert((*branch, *generation));
            }
            let name = (s.volume, s.name.clone());
            if i.snapshots.insert(name, (*branch, *generation)).is_some() {
                return Err(LoadError::Torn("two snapshots of one name"));
            }
        }
        let kept = |(d, b): &(DriveId, BranchId)| i.uses.get(d).is_some_and(|u| u.contains_key(b));
        if !self.owed.keys().all(kept) {
            return Err(LoadError::Torn("a keep-list is owed to a drive without the branch"));
        }
        Ok(())
    }

    /// Invariants that cost a walk over everything: for tests and the simulator.
    ///
    /// # Panics
    /// If one is broken.
    pub fn check(&self) {
        for (id, chunks) in &self.chunks {
            let b = &self.branches[id];
            assert!(chunks.count() >= b.geometry.chunks(), "{id} has a configuration per chunk");
            for (chunk, c) in chunks.iter() {
                let made = c.number.0 > 0;
                assert!(!made || c.in_sync_count() > 0, "{id} {chunk}: no in-sync member");
                assert!(made || b.pending().is_some(), "{id} {chunk}: unmade in a branch that is ready");
                let drives: BTreeSet<DriveId> = c.members.iter().map(|m| m.place.drive).collect();
                assert_eq!(drives.len(), c.members.len(), "{id} {chunk}: a drive twice");
                assert!(
                    c.members.iter().all(|m| m.place.incarnation.0 <= self.head.last_incarnation),
                    "{id} {chunk}: an incarnation that was never given"
                );
            }
        }
        for (id, b) in &self.branches {
            assert!(b.unsealed <= b.generation, "{id}: open above the head");
            let needed = self.is_named(*id) || !self.kept(*id).is_empty();
            assert!(needed, "{id}: no name, no snapshot, no fork");
            assert!(b.sealing.is_none() || self.is_named(*id), "{id}: sealed, and no volume's");
            if let Some(seal) = b.sealing {
                assert_eq!(seal.generation.0 + 1, b.generation.0, "{id}: the one below the head is sealed");
                assert!(b.unsealed <= seal.generation, "{id}: open above what is being sealed");
                assert!(self.snapshots.contains_key(&(*id, seal.generation)), "{id}: sealed for nobody");
                assert!(!seal.drained || seal.group.is_some(), "{id}: drained, and nobody to wait for");
            }
        }
        for ((id, g), s) in &self.snapshots {
            let open = self.branches[id].unsealed;
            assert!(s.state == SnapshotState::Sealing || *g < open, "{id} {g}: sealed, and still open");
        }
        let mut fresh = self.clone();
        fresh.derive().expect("rows agree");
        assert_eq!(fresh.index, self.index, "what is derived is current");
    }

    // Readers.

    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
    #[must_use]
    pub fn jobs(&self) -> &BTreeMap<JobId, Job> {
        &self.jobs
    }
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, Node> {
        &self.nodes
    }
    #[must_use]
    pub fn drives(&self) -> &BTreeMap<DriveId, Drive> {
        &self.drives
    }
    #[must_use]
    pub fn volumes(&self) -> &BTreeMap<VolumeId, Volume> {
        &self.volumes
    }
    #[must_use]
    pub fn branches(&self) -> &BTreeMap<BranchId, Branch> {
        &self.branches
    }
    #[must_use]
    pub fn chunks(&self, branch: BranchId) -> Option<&Chunks> {
        self.chunks.get(&branch)
    }
    #[must_use]
    pub fn events(&self) -> &BTreeMap<u64, EventRecord> {
        &self.events
    }
    #[must_use]
    pub fn configuration(&self, branch: BranchId, chunk: ChunkIndex) -> Option<Configuration> {
        self.chunks.get(&branch)?.get(chunk)
    }
    #[must_use]
    pub fn volume_named(&self, name: &str) -> Option<(VolumeId, &Volume)> {
        let id = *self.index.names.get(name)?;
        Some((id, &self.volumes[&id]))
    }
    #[must_use]
    pub fn node_named(&self, name: &str) -> Option<NodeId> {
        self.index.node_names.get(name).copied()
    }
    /// Replicas on a drive, those of placements not made yet included.
    #[must_use]
    pub fn replicas_on(&self, drive: DriveId) -> u64 {
        self.index.replicas.get(&drive).copied().unwrap_or(0)
    }
    /// Raft calls the node down (or does not know it).
    #[must_use]
    pub fn node_down(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_none_or(|n| n.down.is_some())
    }
    /// Raft calls the drive down: by itself, with its node, or because it is not known.
    #[must_use]
    pub fn drive_down(&self, drive: DriveId) -> bool {
        self.drives.get(&drive).is_none_or(|d| d.down.is_some() || d.stranger || self.node_down(d.node))
    }
    /// All drives that Raft calls down.
    #[must_use]
    pub fn drives_down(&self) -> Vec<DriveId> {
        self.drives.keys().copied().filter(|d| self.drive_down(*d)).collect()
    }
    /// Name of a node, for humans.
    #[must_use]
    pub fn node_name(&self, node: NodeId) -> String {
        self.nodes.get(&node).map_or_else(|| node.to_string(), |n| n.name.clone())
    }
}

/// First byte of every row, but of pages, which have their own.
const ROW_FORMAT: u8 = 4;

fn encode<T: Serialize>(value: &T) -> Arc<[u8]> {
    postcard::to_extend(value, vec![ROW_FORMAT]).expect("writing to a vector does not fail").into()
}
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (&format, body) = bytes.split_first()?;
    let (value, rest) = postcard::take_from_bytes(body).ok()?;
    (format == ROW_FORMAT && rest.is_empty()).then_some(value)
}
