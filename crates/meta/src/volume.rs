//! Commands about volumes, and the helpers that keep a branch's row, pages and indexes together.

use crate::admin::AdminAnswer;
use crate::chunks::{Chunks, PAGE_CHUNKS};
use crate::command::{Op, Plan};
use crate::event::EventKind;
use crate::index;
use crate::model::{Branch, Class, JobState, Phase, Session, Volume};
use crate::name::{check_chunk_shift, check_copies, check_name, check_size};
use crate::planner::APPOINTED_MAX;
use crate::refusal::{AdminRefusal, Noun};
use crate::rows::{Key, page_of};
use crate::state::MetaState;
use crate::touch::Touch;
use arrayvec::ArrayVec;
use proto::control::ChangeCause;
use proto::limits::MEMBERS_MAX;
use proto::{
    BranchId, ChunkIndex, ConfigNumber, Configuration, DriveId, Epoch, Generation, Geometry, Incarnation,
    Level, Member, MemberState, NodeId, Place, VolumeId,
};
use std::collections::{BTreeMap, BTreeSet};

type Decision = Result<AdminAnswer, AdminRefusal>;

impl MetaState {
    pub(crate) fn perform_volume(&mut self, at: u64, op: &Op) -> Decision {
        match op {
            Op::VolumeCreate { name, geometry, class, plan } => {
                self.apply_volume_create(at, name, *geometry, *class, plan)
            }
            Op::VolumeDelete { volume, force, with_snapshots } => {
                self.apply_volume_delete(at, *volume, force.as_ref(), *with_snapshots)
            }
            Op::VolumeRename { volume, from, to } => self.apply_volume_rename(at, *volume, from, to),
            Op::VolumeResize { volume, from, to, plan } => {
                self.apply_volume_resize(at, *volume, *from, *to, plan)
            }
            Op::VolumeClass { volume, class } => self.apply_volume_class(at, *volume, *class),
            _ => unreachable!("perform sends only volumes' commands here"),
        }
    }

    fn apply_volume_create(
        &mut self,
        at: u64,
        name: &str,
        geometry: Geometry,
        class: Class,
        plan: &Plan,
    ) -> Decision {
        if self.head.cluster.is_none() {
            return Err(AdminRefusal::NoCluster);
        }
        check_name(name)?;
        check_size(geometry.size)?;
        check_chunk_shift(geometry.chunk_shift)?;
        check_copies(class.copies, class.min_in_sync)?;
        if self.index.names.contains_key(name) {
            return Err(AdminRefusal::Exists { noun: Noun::Volume, name: name.to_owned() });
        }
        self.check_plan(plan, geometry.chunks(), class.copies)?;
        let (volume, _) = self.add_volume(at, name, geometry, class, None, plan);
        self.log(at, EventKind::VolumeCreated { name: name.to_owned(), size: geometry.size });
        Ok(AdminAnswer::VolumeCreated { volume })
    }

    pub(crate) fn add_volume(
        &mut self,
        at: u64,
        name: &str,
        geometry: Geometry,
        class: Class,
        parent: Option<Level>,
        plan: &Plan,
    ) -> (VolumeId, BranchId) {
        self.head.last_volume += 1;
        let volume = VolumeId(self.head.last_volume);
        let branch = self.add_branch(at, volume, geometry, class, parent, plan);
        self.volumes.insert(volume, Volume { name: name.to_owned(), branch, created_ms: at });
        self.index.names.insert(name.to_owned(), volume);
        self.mark(Key::Volume(volume));
        (volume, branch)
    }

    /// A branch whose chunks are placed, and whose records are to be made.
    pub(crate) fn add_branch(
        &mut self,
        at: u64,
        volume: VolumeId,
        geometry: Geometry,
        class: Class,
        parent: Option<Level>,
        plan: &Plan,
    ) -> BranchId {
        self.head.last_branch += 1;
        let branch = BranchId(self.head.last_branch);
        let row = Branch {
            volume,
            geometry,
            generation: Generation::FIRST,
            unsealed: Generation::FIRST,
            sealing: None,
            parent,
            tied: parent.is_some(),
            class,
            phase: Phase::Creating,
            placement: 1,
            placement_first: 0,
            epoch: Epoch(u32::from(self.head.lineage) << (32 - proto::limits::LINEAGE_BITS)),
            session: None,
            guests: [None; 2],
            clean: true,
            loss_accepted: false,
            appointed: None,
            unwell_since: None,
        };
        self.branches.insert(branch, row);
        self.chunks.insert(branch, Chunks::new(class.copies));
        self.append_chunks(at, branch, plan);
        self.index.branches.insert((volume, branch));
        if let Some(level) = parent {
            self.index.forks.entry((level.branch, level.generation)).or_default().insert(branch);
        }
        self.mark(Key::Branch(branch));
        self.appoint_maker(branch, plan);
        branch
    }

    /// The records are made by a node that holds some of them, told by this very command: whoever waits for the volume
    /// waits for one round of Raft less. If nobody can, the planner finds somebody.
    fn appoint_maker(&mut self, branch: BranchId, plan: &Plan) {
        let asked = |n: &NodeId| self.index.appointed.get(n).map_or(0, BTreeSet::len);
        let drives = plan.chunks.first().into_iter().flat_map(|g| &plan.groups[usize::from(*g)]);
        let nodes = drives.filter(|d| !self.drive_down(**d)).map(|d| self.drives[d].node);
        let maker = nodes.filter(|n| asked(n) < APPOINTED_MAX).min_by_key(asked);
        self.set_appointed(branch, maker);
    }

    /// The plan names known drives that take replicas, each group on distinct nodes.
    pub(crate) fn check_plan(&self, plan: &Plan, chunks: u32, copies: u8) -> Result<(), AdminRefusal> {
        let sound = |group: &Vec<DriveId>| {
            let nodes: BTreeSet<NodeId> =
                group.iter().filter_map(|d| self.drives.get(d)).map(|d| d.node).collect();
            let usable = |d: &DriveId| self.drives.get(d).is_some_and(|r| !r.retired && !r.stranger);
            group.len() == usize::from(copies) && nodes.len() == group.len() && group.iter().all(usable)
        };
        let complete = plan.chunks.len() == chunks as usize
            && plan.chunks.iter().all(|g| usize::from(*g) < plan.groups.len());
        if complete && plan.groups.iter().all(sound) { Ok(()) } else { Err(AdminRefusal::PlacementOutdated) }
    }

    /// Adds the plan's chunks with number 0: placed, records not made yet.
    fn append_chunks(&mut self, at: u64, branch: BranchId, plan: &Plan) {
        let mut new = Vec::with_capacity(plan.chunks.len());
        for group in &plan.chunks {
            let places =
                plan.groups[usize::from(*group)].iter().map(|d| self.new_place(*d)).collect::<Vec<_>>();
            new.push(unmade(places));
        }
        self.index.count_all(branch, new.iter());
        let chunks = self.chunks.get_mut(&branch).expect("the caller made it");
        for page in chunks.append(&new) {
            self.mark(Key::Chunks(branch, page));
        }
        self.judge_branch(at, branch);
    }

    fn apply_volume_delete(
        &mut self,
        at: u64,
        id: VolumeId,
        force: Option<&String>,
        with_snapshots: bool,
    ) -> Decision {
        let branch = self.check_delete(at, id, force, with_snapshots, false)?;
        let name = self.volumes.remove(&id).expect("checked above").name;
        self.index.names.remove(&name);
        self.mark(Key::Volume(id));
        self.end_job(at, branch, JobState::Void);
        self.erase_volume(id, branch);
        self.log(at, EventKind::VolumeDeleted { name, forced: force.cloned() });
        Ok(AdminAnswer::Done)
    }

    /// Why it cannot be deleted now; else its branch.
    pub(crate) fn check_delete(
        &self,
        at: u64,
        id: VolumeId,
        force: Option<&String>,
        with_snapshots: bool,
        despite_clones: bool,
    ) -> Result<BranchId, AdminRefusal> {
        let volume = self.volumes.get(&id).ok_or_else(|| no_volume(id))?;
        let row = &self.branches[&volume.branch];
        if let Some(s) = row.guest()
            && force.is_none()
        {
            let (name, node_name) = (volume.name.clone(), self.node_name(s.node));
            return Err(AdminRefusal::Attached { name, node: s.node, node_name, epoch: row.epoch });
        }
        self.snapshots_in_the_way(at, id, with_snapshots, despite_clones)?;
        Ok(volume.branch)
    }

    fn apply_volume_rename(&mut self, at: u64, id: VolumeId, from: &str, to: &str) -> Decision {
        check_name(to)?;
        let volume = self.volumes.get(&id).ok_or_else(|| no_volume(id))?;
        if volume.name != from {
            return Err(AdminRefusal::Changed { name: volume.name.clone() });
        }
        if self.index.names.contains_key(to) {
            return Err(AdminRefusal::Exists { noun: Noun::Volume, name: to.to_owned() });
        }
        self.index.names.remove(from);
        self.index.names.insert(to.to_owned(), id);
        to.clone_into(&mut self.volumes.get_mut(&id).expect("looked up above").name);
        self.mark(Key::Volume(id));
        self.log(at, EventKind::VolumeRenamed { from: from.to_owned(), to: to.to_owned() });
        Ok(AdminAnswer::Done)
    }

    /// Growth. The session that is there makes the new chunks' records; else one is appointed.
    fn apply_volume_resize(&mut self, at: u64, id: VolumeId, from: u64, to: u64, plan: &Plan) -> Decision {
        check_size(to)?;
        let volume = self.volumes.get(&id).ok_or_else(|| no_volume(id))?;
        let (name, branch) = (volume.name.clone(), volume.branch);
        let row = &self.branches[&branch];
        if row.geometry.size != from {
            return Err(AdminRefusal::Changed { name });
        }
        if row.phase != Phase::Ready {
            return Err(AdminRefusal::NotReady { name });
        }
        if to < from {
            return Err(AdminRefusal::Shrink { name, size: from, to });
        }
        self.not_while_shrinking(branch)?;
        if to == from {
            return Ok(AdminAnswer::Done);
        }
        // Chunks of a larger size that it once had are there.
        let old_chunks = self.chunks[&branch].count();
        let geometry = Geometry { size: to, ..row.geometry };
        let added = geometry.chunks().saturating_sub(old_chunks);
        self.check_plan(plan, added, row.class.copies)?;
        let row = self.branches.get_mut(&branch).expect("looked up above");
        row.geometry = geometry;
        if added > 0 {
            row.phase = Phase::Growing;
            row.placement += 1;
            row.placement_first = old_chunks;
            self.append_chunks(at, branch, plan);
        }
        self.mark(Key::Branch(branch));
        self.touch(Touch::Resized(branch));
        self.log(at, EventKind::VolumeResized { name, from, to });
        Ok(AdminAnswer::Done)
    }

    fn apply_volume_class(&mut self, at: u64, id: VolumeId, class: Class) -> Decision {
        check_copies(class.copies, class.min_in_sync)?;
        let volume = self.volumes.get(&id).ok_or_else(|| no_volume(id))?;
        let (name, branch) = (volume.name.clone(), volume.branch);
        let row = self.branches.get_mut(&branch).expect("a volume has a branch");
        if row.class == class {
            return Ok(AdminAnswer::Done);
        }
        if row.phase != Phase::Ready {
            return Err(AdminRefusal::NotReady { name });
        }
        if let Some(s) = row.guest().copied() {
            let (epoch, node_name) = (row.epoch, self.node_name(s.node));
            return Err(AdminRefusal::InUse { name, node: s.node, node_name, epoch });
        }
        row.class = class;
        self.end_session(branch);
        self.chunks.get_mut(&branch).expect("every branch has chunks").set_copies(class.copies);
        self.judge_branch(at, branch);
        self.mark(Key::Branch(branch));
        self.log(at, EventKind::VolumeClass { name });
        Ok(AdminAnswer::Done)
    }

    // Helpers.

    /// A place on a drive, with an incarnation never given before.
    pub(crate) fn new_place(&mut self, drive: DriveId) -> Place {
        self.head.last_incarnation += 1;
        let node = self.drives[&drive].node;
        Place { node, drive, incarnation: Incarnation(self.head.last_incarnation) }
    }

    /// Replaces configurations of existing chunks, keeping counts, rows and what is to be erased in step.
    pub(crate) fn set_chunks(
        &mut self,
        at: u64,
        branch: BranchId,
        changes: &BTreeMap<ChunkIndex, Configuration>,
    ) {
        if changes.is_empty() {
            return;
        }
        let mut page: Vec<(ChunkIndex, Configuration)> = Vec::new();
        let mut moved: BTreeSet<DriveId> = BTreeSet::new();
        for (chunk, new) in changes {
            if page.first().is_none_or(|(first, _)| page_of(*first) != page_of(*chunk)) {
                page = self.chunks[&branch].page(page_of(*chunk));
            }
            let (_, old) = &page[(chunk.0 % PAGE_CHUNKS) as usize];
            assert!(new.number >= old.number, "numbers only rise");
            let drives = |c: &Configuration| {
                c.members.iter().map(|m| m.place.drive).collect::<ArrayVec<DriveId, MEMBERS_MAX>>()
            };
            if drives(old) != drives(new) {
                self.index.discount(branch, old);
                self.index.count(branch, new);
            }
            moved.extend(changed_sides(old, new));
            for m in &old.members {
                if !new.members.iter().any(|n| n.place == m.place) {
                    self.discard(branch, *chunk, m.place);
                    self.touch_garbage(m.place.drive);
                }
            }
        }
        let chunks = self.chunks.get_mut(&branch).expect("every branch has chunks");
        for page in chunks.set(changes) {
            self.mark(Key::Chunks(branch, page));
        }
        self.owe_moved(branch, &moved);
        self.judge_branch(at, branch);
    }

    fn touch_garbage(&mut self, drive: DriveId) {
        self.touch(Touch::Garbage(drive));
    }

    /// Notes whether the branch has chunks that are not well, and since when.
    pub(crate) fn judge_branch(&mut self, at: u64, branch: BranchId) {
        let unwell = self.chunks[&branch].unwell() > 0;
        let row = self.branches.get_mut(&branch).expect("every set of chunks has a branch");
        if unwell {
            self.index.unwell.insert(branch);
        } else {
            self.index.unwell.remove(&branch);
        }
        if row.unwell_since.is_some() != unwell {
            row.unwell_since = unwell.then_some(at);
            self.mark(Key::Branch(branch));
        }
        self.touch(Touch::Branch(branch));
    }

    pub(crate) fn set_session(&mut self, branch: BranchId, session: Option<Session>) {
        let row = self.branches.get_mut(&branch).expect("the caller looked it up");
        let old = std::mem::replace(&mut row.session, session);
        if let Some(old) = old {
            index::remove(&mut self.index.sessions, old.node, branch);
        }
        if let Some(new) = session {
            index::put(&mut self.index.sessions, new.node, branch);
        }
        self.mark(Key::Branch(branch));
        self.touch(Touch::Branch(branch));
    }

    pub(crate) fn set_appointed(&mut self, branch: BranchId, node: Option<NodeId>) {
        let row = self.branches.get_mut(&branch).expect("the caller looked it up");
        let old = std::mem::replace(&mut row.appointed, node);
        if old == node {
            return;
        }
        if let Some(old) = old {
            index::remove(&mut self.index.appointed, old, branch);
            self.touch(Touch::Appointed(old));
        }
        if let Some(new) = node {
            index::put(&mut self.index.appointed, new, branch);
            self.touch(Touch::Appointed(new));
        }
        self.mark(Key::Branch(branch));
        self.touch(Touch::Branch(branch));
    }

    /// Ends a maintenance session by a new epoch that nobody holds.
    pub(crate) fn end_session(&mut self, branch: BranchId) {
        let row = self.branches.get_mut(&branch).expect("the caller looked it up");
        let Some(session) = row.session else { return };
        let Some(next) = row.epoch.next() else { return };
        row.epoch = next;
        row.clean = false;
        self.set_session(branch, None);
        self.touch(Touch::Fenced(session.node, branch, next));
    }

    pub(crate) fn branch_name(&self, branch: BranchId) -> String {
        let Some(v) = self.branches.get(&branch).and_then(|b| self.any_volume(b.volume)) else {
            return branch.to_string();
        };
        match (v.branch == branch, self.is_live(branch)) {
            (true, true) => v.name.clone(),
            (true, false) => format!("{} (in the trash)", v.name),
            (false, _) => format!("{} ({branch}, before a rollback)", v.name),
        }
    }

    pub(crate) fn log_stale(
        &mut self,
        at: u64,
        branch: BranchId,
        drive: DriveId,
        chunks: u32,
        cause: ChangeCause,
    ) {
        let name = self.branch_name(branch);
        self.log(at, EventKind::Stale { branch, name, drive, chunks, cause });
    }
}

/// A chunk that is placed and whose records are not made yet.
pub(crate) fn unmade(places: impl IntoIterator<Item = Place>) -> Configuration {
    let members = places.into_iter().map(|place| Member { place, state: MemberState::InSync }).collect();
    Configuration { number: ConfigNumber(0), members }
}

/// Drives whose replica of a chunk came into the in-sync set, left it, was placed, made or let go.
fn changed_sides(old: &Configuration, new: &Configuration) -> ArrayVec<DriveId, { 2 * MEMBERS_MAX }> {
    let made = (old.number == ConfigNumber(0)) != (new.number == ConfigNumber(0));
    let state = |c: &Configuration, p: &Place| c.members.iter().find(|m| m.place == *p).map(Member::in_sync);
    let places = old.members.iter().chain(&new.members).map(|m| m.place);
    places.filter(|p| made || state(old, p) != state(new, p)).map(|p| p.drive).collect()
}

fn no_volume(id: VolumeId) -> AdminRefusal {
    AdminRefusal::NotFound { noun: Noun::Volume, name: id.to_string() }
}
