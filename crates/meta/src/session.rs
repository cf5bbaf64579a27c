//! Commands of sessions: attach, detach, propose, created.
//!
//! A session proposes states of members that are there; only metad places. What a chunk's member may
//! become is the table of `allowed`. Every answer carries the present configurations.

use crate::answer::Answer;
use crate::command::{Op, Replacement};
use crate::event::EventKind;
use crate::model::{Class, Phase, Session};
use crate::rows::Key;
use crate::state::MetaState;
use crate::touch::Touch;
use crate::volume::unmade;
use proto::control::{Attached, ChangeCause, ChunkChange, MetaAnswer, MetaRefusal, SessionKind, VolumeRef};
use proto::{
    BranchId, ChunkIndex, ConfigNumber, Configuration, DriveId, Epoch, MemberState, NodeId, Place,
    ProcessNumber,
};
use std::collections::{BTreeMap, BTreeSet};

/// An order to attach, as `Op::Attach` names it.
struct AttachOrder<'a> {
    volume: &'a VolumeRef,
    node: NodeId,
    process: ProcessNumber,
    kind: SessionKind,
    force: bool,
    holder_unheard: bool,
    after: Option<Epoch>,
}

fn refused(r: MetaRefusal) -> MetaAnswer {
    MetaAnswer::Refused(r)
}

impl MetaState {
    pub(crate) fn perform_session(&mut self, at: u64, op: &Op) -> Answer {
        Answer::Node(match op {
            Op::Attach { volume, node, process, kind, force, holder_unheard, after } => self.apply_attach(
                at,
                &AttachOrder {
                    volume,
                    node: *node,
                    process: *process,
                    kind: *kind,
                    force: *force,
                    holder_unheard: *holder_unheard,
                    after: *after,
                },
            ),
            Op::Detach { branch, epoch, clean } => self.apply_detach(at, *branch, *epoch, *clean),
            Op::Release { branch, epoch } => {
                return Answer::Planned(self.apply_release(at, *branch, *epoch));
            }
            Op::Propose { branch, epoch, changes } => self.apply_propose(at, *branch, *epoch, changes),
            Op::Created { branch, epoch, placement, failed, replacements } => {
                self.apply_created(at, *branch, *epoch, *placement, failed, replacements)
            }
            _ => unreachable!("perform sends only sessions' commands here"),
        })
    }

    /// The branch that a node means.
    #[must_use]
    pub fn resolve(&self, volume: &VolumeRef) -> Option<BranchId> {
        match volume {
            VolumeRef::Name(name) => self.volume_named(name).map(|(_, v)| v.branch),
            VolumeRef::Branch(b) => self.branches.contains_key(b).then_some(*b),
        }
    }

    fn apply_attach(&mut self, at: u64, o: &AttachOrder<'_>) -> MetaAnswer {
        let Some(branch) = self.resolve(o.volume) else { return refused(MetaRefusal::NoSuchVolume) };
        // Its volume went back to a snapshot: what a guest held of it is nobody's head any more. Or it is in the trash.
        if o.kind == SessionKind::Guest && !self.is_live(branch) {
            return refused(MetaRefusal::NoSuchVolume);
        }
        let Some(node) = self.nodes.get(&o.node) else { return refused(MetaRefusal::UnknownNode) };
        let row = &self.branches[&branch];
        let current = row.epoch;
        if o.process < node.process {
            return refused(MetaRefusal::OldEpoch { epoch: current });
        }
        if let Some((node, epoch)) = row.superseded(o.node, o.after) {
            return refused(MetaRefusal::Superseded { epoch, node });
        }
        if let Some(job) = self.shrinking(branch).filter(|_| o.kind == SessionKind::Guest) {
            return refused(MetaRefusal::Shrinking { job });
        }
        match o.kind {
            SessionKind::Guest if row.phase == Phase::Creating => return refused(MetaRefusal::NotReady),
            SessionKind::Maintenance if row.appointed != Some(o.node) => {
                return refused(MetaRefusal::OldEpoch { epoch: current });
            }
            _ => {}
        }
        if let Some(held) = self.held_against(branch, o) {
            return refused(held);
        }
        let Some(epoch) = current.next() else { return refused(MetaRefusal::Exhausted) };
        let displaced = row.session;
        let clean = row.clean;
        let row = self.branches.get_mut(&branch).expect("resolved above");
        row.epoch = epoch;
        row.clean = false;
        if let Some(seal) = &mut row.sealing {
            // The new session reconciles what it finds, in this generation too: the others of a group wait for it.
            seal.drained = false;
        }
        if o.kind == SessionKind::Guest {
            row.note_guest(o.node, epoch);
        }
        self.set_session(
            branch,
            Some(Session { node: o.node, process: o.process, kind: o.kind, since_ms: at }),
        );
        if o.kind == SessionKind::Guest {
            self.set_appointed(branch, None);
        }
        if self.discards(branch) {
            self.nobody_goes_on(branch);
        }
        self.learn_process(o.node, o.process);
        if let Some(old) = displaced.filter(|s| s.node != o.node) {
            self.touch(Touch::Fenced(old.node, branch, epoch));
        }
        let name = self.branch_name(branch);
        self.log(at, EventKind::Attached { name, node: o.node, epoch, kind: o.kind, forced: o.force });
        self.attached(branch, clean).expect("resolved above")
    }

    /// A guest's session elsewhere stands in the way, unless it is dead: its node is down in Raft (or runs
    /// a newer process) and no node's data network reaches it.
    fn held_against(&self, branch: BranchId, o: &AttachOrder<'_>) -> Option<MetaRefusal> {
        let row = &self.branches[&branch];
        let holder = row.guest().filter(|s| s.node != o.node || o.kind == SessionKind::Maintenance)?;
        if o.force && o.kind == SessionKind::Guest {
            return None;
        }
        let down = self.node_down(holder.node);
        let gone = self.nodes.get(&holder.node).is_none_or(|n| n.process > holder.process);
        let dead = gone || (down && o.holder_unheard);
        (!dead).then(|| MetaRefusal::Held {
            node: holder.node,
            name: self.node_name(holder.node),
            epoch: row.epoch,
            live: !down,
        })
    }

    fn learn_process(&mut self, node: NodeId, process: ProcessNumber) {
        let row = self.nodes.get_mut(&node).expect("checked by the caller");
        if process > row.process {
            row.process = process;
            row.changes += 1;
            self.mark(Key::Node(node));
        }
    }

    /// What a session needs to open, as of now.
    pub(crate) fn attached(&self, branch: BranchId, clean: bool) -> Option<MetaAnswer> {
        let row = self.branches.get(&branch)?;
        let Class { copies, min_in_sync, wait_when_degraded, write_through } = row.class;
        Some(MetaAnswer::Attached(Box::new(Attached {
            volume: row.volume,
            // What the drives' records keep: a name as operators give it, no longer than that.
            name: self.any_volume(row.volume).map_or_else(|| branch.to_string(), |v| v.name.clone()),
            branch,
            epoch: row.epoch,
            kind: row.session.map_or(SessionKind::Guest, |s| s.kind),
            geometry: row.geometry,
            views: self.views(branch)?,
            parents: self.levels_below(branch),
            origin: row.parent.map(|l| (l.branch, l.generation)),
            job: self.job_order(branch),
            min_in_sync,
            wait_when_degraded,
            write_through,
            copies,
            configurations: self.chunks.get(&branch)?.iter().map(|(_, c)| c).collect(),
            placement: row.pending(),
            clean,
            loss_accepted: row.loss_accepted,
            down: self.drives_down(),
        })))
    }

    fn apply_detach(&mut self, at: u64, branch: BranchId, epoch: Epoch, clean: bool) -> MetaAnswer {
        let Some(row) = self.branches.get_mut(&branch) else { return refused(MetaRefusal::NoSuchVolume) };
        if row.epoch != epoch {
            return refused(MetaRefusal::OldEpoch { epoch: row.epoch });
        }
        if row.session.is_none() {
            return MetaAnswer::Ok;
        }
        row.clean = clean;
        self.set_session(branch, None);
        if clean {
            self.closed_cleanly(at, branch);
        }
        let name = self.branch_name(branch);
        self.log(at, EventKind::Detached { name, epoch, clean });
        MetaAnswer::Ok
    }

    /// The session of this epoch is gone; should it live after all, the new epoch tells it so.
    fn apply_release(&mut self, at: u64, branch: BranchId, epoch: Epoch) -> bool {
        let current = self.branches.get(&branch).is_some_and(|b| b.epoch == epoch && b.session.is_some());
        if !current {
            return false;
        }
        self.end_session(branch);
        let name = self.branch_name(branch);
        self.log(at, EventKind::Released { name, epoch });
        true
    }

    /// The present configurations of these chunks (those that exist).
    pub(crate) fn present(
        &self,
        branch: BranchId,
        chunks: impl IntoIterator<Item = ChunkIndex>,
    ) -> MetaAnswer {
        let Some(row) = self.branches.get(&branch) else { return refused(MetaRefusal::NoSuchVolume) };
        let chunks = chunks.into_iter().filter_map(|c| Some((c, self.configuration(branch, c)?))).collect();
        MetaAnswer::Configurations { epoch: row.epoch, chunks, down: self.drives_down() }
    }

    fn apply_propose(
        &mut self,
        at: u64,
        branch: BranchId,
        epoch: Epoch,
        changes: &[ChunkChange],
    ) -> MetaAnswer {
        let Some(row) = self.branches.get(&branch) else { return refused(MetaRefusal::NoSuchVolume) };
        let copies = row.class.copies;
        let current = row.epoch == epoch && row.session.is_some();
        let mut decided: BTreeMap<ChunkIndex, Configuration> = BTreeMap::new();
        let mut tally = Tally::default();
        if current || self.bugs.apply_old_epoch {
            for change in changes {
                let Some(old) = self.configuration(branch, change.chunk) else { continue };
                if decided.contains_key(&change.chunk) || !self.acceptable(&old, change, copies) {
                    continue;
                }
                tally.note(&old, change);
                let members = change.members.iter().copied().collect();
                decided.insert(change.chunk, Configuration { number: old.number.next(), members });
            }
        }
        self.set_chunks(at, branch, &decided);
        self.log_tally(at, branch, tally);
        self.present(branch, changes.iter().map(|c| c.chunk))
    }

    fn acceptable(&self, old: &Configuration, change: &ChunkChange, copies: u8) -> bool {
        let numbered = old.number > ConfigNumber(0)
            && (change.from == old.number || (self.bugs.apply_old_configuration && change.from < old.number));
        let proven = change.only_if_down.iter().all(|d| self.drive_down(*d));
        numbered && proven && allowed(old, change, copies)
    }

    fn log_tally(&mut self, at: u64, branch: BranchId, tally: Tally) {
        let name = self.branch_name(branch);
        for ((drive, cause), chunks) in tally.stale {
            self.log_stale(at, branch, drive, chunks, cause.0);
        }
        for (drive, chunks) in tally.in_sync {
            self.log(at, EventKind::InSync { branch, name: name.clone(), drive, chunks });
        }
    }

    fn apply_created(
        &mut self,
        at: u64,
        branch: BranchId,
        epoch: Epoch,
        placement: u32,
        failed: &[DriveId],
        replacements: &[Replacement],
    ) -> MetaAnswer {
        let Some(row) = self.branches.get(&branch) else { return refused(MetaRefusal::NoSuchVolume) };
        if row.epoch != epoch || row.session.is_none() {
            return refused(MetaRefusal::OldEpoch { epoch: row.epoch });
        }
        if row.pending() != Some(placement) {
            return self.created_answer(branch);
        }
        let (first, class) = (row.placement_first, row.class);
        let mut new: BTreeMap<ChunkIndex, Configuration> = BTreeMap::new();
        let mut anew = 0;
        let chunks = &self.chunks[&branch];
        let unmade: Vec<(ChunkIndex, Configuration)> =
            chunks.iter_unwell().filter(|(i, c)| i.0 >= first && c.number == ConfigNumber(0)).collect();
        let replacements: BTreeMap<ChunkIndex, &Replacement> =
            replacements.iter().map(|r| (r.chunk, r)).collect();
        let mut left = 0;
        for (chunk, c) in unmade {
            let made = self.made(&c, class, failed, replacements.get(&chunk).copied());
            left += u32::from(made.number == ConfigNumber(0));
            anew += u32::from(made.number == ConfigNumber(0) && made != c);
            if made != c {
                new.insert(chunk, made);
            }
        }
        if new.is_empty() && left > 0 {
            // Too few drives: it stays as it is.
            return self.created_answer(branch);
        }
        let row = self.branches.get_mut(&branch).expect("looked up above");
        if left == 0 {
            row.phase = Phase::Ready;
        } else if anew > 0 {
            row.placement += 1;
        }
        self.mark(Key::Branch(branch));
        self.set_chunks(at, branch, &new);
        let name = self.branch_name(branch);
        if anew > 0 {
            self.log(at, EventKind::PlacedAround { name, failed: failed.to_vec(), chunks: anew });
        } else if left == 0 {
            self.log(at, EventKind::VolumeReady { name });
        }
        self.created_answer(branch)
    }

    /// What becomes of a placed chunk when records are flushed on all of its drives but the failed ones:
    /// made; or placed anew on the replacement; or made without them, if enough are left; or still unmade.
    fn made(
        &mut self,
        c: &Configuration,
        class: Class,
        failed: &[DriveId],
        replacement: Option<&Replacement>,
    ) -> Configuration {
        let is_failed = |p: &Place| failed.contains(&p.drive);
        let lost = c.members.iter().filter(|m| is_failed(&m.place)).count();
        if lost == 0 {
            return Configuration { number: ConfigNumber(1), members: c.members.clone() };
        }
        if let Some(drives) = replacement.map(|r| &r.drives)
            && self.sound_group(drives, class.copies, failed)
        {
            let kept = |d: &DriveId| c.member(*d).map(|m| m.place);
            let places: Vec<Place> =
                drives.iter().map(|d| kept(d).unwrap_or_else(|| self.new_place(*d))).collect();
            return unmade(places);
        }
        if c.members.len() - lost >= usize::from(class.min_in_sync) {
            let mut made = Configuration { number: ConfigNumber(1), members: c.members.clone() };
            for m in made.members.iter_mut().filter(|m| is_failed(&m.place)) {
                m.state = MemberState::Stale;
            }
            return made;
        }
        c.clone()
    }

    fn sound_group(&self, drives: &[DriveId], copies: u8, failed: &[DriveId]) -> bool {
        let nodes: BTreeSet<NodeId> =
            drives.iter().filter_map(|d| self.drives.get(d)).map(|d| d.node).collect();
        drives.len() == usize::from(copies)
            && nodes.len() == drives.len()
            && drives.iter().all(|d| !failed.contains(d) && self.drives.get(d).is_some_and(|r| !r.stranger))
    }

    /// The configurations of the last placement, and the placement that is still to be made.
    fn created_answer(&self, branch: BranchId) -> MetaAnswer {
        let row = &self.branches[&branch];
        let chunks = &self.chunks[&branch];
        let first = row.placement_first;
        let configurations = chunks.iter().filter(|(c, _)| c.0 >= first).collect();
        MetaAnswer::Created { configurations, placement: row.pending() }
    }

    /// Branches with a session on this node.
    #[must_use]
    pub fn sessions_on(&self, node: NodeId) -> Vec<BranchId> {
        self.index.sessions.get(&node).map(|s| s.iter().copied().collect()).unwrap_or_default()
    }
    /// Branches whose maintenance session this node is to hold.
    #[must_use]
    pub fn appointed_on(&self, node: NodeId) -> Vec<BranchId> {
        self.index.appointed.get(&node).map(|s| s.iter().copied().collect()).unwrap_or_default()
    }
}

/// What a session may make of a chunk's members. Rows: from; columns: to.
///
/// | from \ to | `InSync` | `Stale` | `Leaving` | gone |
/// | --- | --- | --- | --- | --- |
/// | `InSync` | yes | yes | no | no |
/// | `Stale` | as a promotion | yes | no | if `copies` others stay in-sync |
/// | `Leaving` | no | yes | yes | if `copies` others stay in-sync |
///
/// It adds nobody, and someone stays in-sync.
pub(crate) fn allowed(old: &Configuration, change: &ChunkChange, copies: u8) -> bool {
    let distinct: BTreeSet<DriveId> = change.members.iter().map(|m| m.place.drive).collect();
    let known = |p: &Place| old.members.iter().any(|m| m.place == *p);
    if distinct.len() != change.members.len()
        || !change.members.iter().all(|m| known(&m.place))
        || !change.members.iter().any(|m| m.in_sync())
    {
        return false;
    }
    let staying = change.members.iter().filter(|m| m.state == MemberState::InSync).count();
    let promotion = matches!(change.cause, ChangeCause::Promoted(_));
    old.members.iter().all(|from| {
        let to = change.members.iter().find(|m| m.place == from.place).map(|m| m.state);
        match (from.state, to) {
            (MemberState::InSync, Some(MemberState::InSync | MemberState::Stale))
            | (MemberState::Stale, Some(MemberState::Stale))
            | (MemberState::Leaving, Some(MemberState::Leaving | MemberState::Stale)) => true,
            (MemberState::Stale, Some(MemberState::InSync)) => promotion,
            (MemberState::Stale | MemberState::Leaving, None) => staying >= usize::from(copies),
            (MemberState::InSync, Some(MemberState::Leaving) | None)
            | (MemberState::Stale, Some(MemberState::Leaving))
            | (MemberState::Leaving, Some(MemberState::InSync)) => false,
        }
    })
}

/// `ChangeCause` in an order, for counting.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Cause(ChangeCause);
impl Cause {
    fn rank(self) -> (u8, u64) {
        match self.0 {
            ChangeCause::Silent => (0, 0),
            ChangeCause::NoAnswer => (1, 0),
            ChangeCause::Reported => (2, 0),
            ChangeCause::InDoubt => (3, 0),
            ChangeCause::TooSlow => (4, 0),
            ChangeCause::Promoted(n) => (5, n),
            ChangeCause::Left => (6, 0),
            ChangeCause::Withdrawn => (7, 0),
        }
    }
}
impl PartialOrd for Cause {
    fn partial_cmp(&self, o: &Cause) -> Option<std::cmp::Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for Cause {
    fn cmp(&self, o: &Cause) -> std::cmp::Ordering {
        self.rank().cmp(&o.rank())
    }
}

/// Counts what a proposal does, for the event log: one line per drive, not per chunk.
#[derive(Default)]
struct Tally {
    stale: BTreeMap<(DriveId, Cause), u32>,
    in_sync: BTreeMap<DriveId, u32>,
}
impl Tally {
    fn note(&mut self, old: &Configuration, change: &ChunkChange) {
        for m in &change.members {
            let was = old.members.iter().any(|o| o.place == m.place && o.in_sync());
            if was && !m.in_sync() {
                *self.stale.entry((m.place.drive, Cause(change.cause))).or_default() += 1;
            } else if !was && m.in_sync() {
                *self.in_sync.entry(m.place.drive).or_default() += 1;
            }
        }
    }
}
