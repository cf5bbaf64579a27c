//! Shrinking: a job for a maintenance session, which makes sure that nothing is beyond the new end; then the size is set.
//!
//! While the job runs no guest attaches, nothing is sealed, and the volume does not grow: so what the session has seen beyond
//! the end stays so until Raft decides. The chunks beyond stay placed, as long as the branch is there: snapshots may reach into
//! them, and a later growth takes them up again. They read as zeroes in the head.
//! Invariants: a branch has at least the chunks of its size; a running shrink's branch is a volume's, untied, ready, of the
//! size that the job is from, without a guest and without a seal under way.

use crate::admin::AdminAnswer;
use crate::event::EventKind;
use crate::model::{JobKind, JobState, Phase};
use crate::name::check_size;
use crate::refusal::{AdminRefusal, Noun};
use crate::rows::Key;
use crate::state::MetaState;
use crate::touch::Touch;
use proto::control::{JobOrder, JobWork, MetaAnswer, MetaRefusal};
use proto::{BranchId, Epoch, JobId, NodeId, VolumeId};

type Decision = Result<AdminAnswer, AdminRefusal>;

/// Whom `Branch::note_guest` is told where nobody may go on: no node has this id.
const NOBODY: NodeId = NodeId(0);

impl MetaState {
    /// Asked for twice it is one job.
    pub(crate) fn apply_volume_shrink(
        &mut self,
        at: u64,
        volume: VolumeId,
        branch: BranchId,
        (from, to): (u64, u64),
        discard: bool,
    ) -> Decision {
        check_size(to)?;
        let found = self.volumes.get(&volume);
        let found =
            found.ok_or_else(|| AdminRefusal::NotFound { noun: Noun::Volume, name: volume.to_string() })?;
        let name = found.name.clone();
        let row = &self.branches[&found.branch];
        if found.branch != branch || row.geometry.size != from || to >= from {
            return Err(AdminRefusal::Changed { name });
        }
        if row.phase != Phase::Ready {
            return Err(AdminRefusal::NotReady { name });
        }
        let kind = JobKind::Shrink { from, to, discard };
        if let Some(job) = self.index.jobs.get(&branch) {
            let same = self.jobs[job].kind == kind;
            return if same { Ok(AdminAnswer::JobStarted { job: *job }) } else { Err(self.job_runs(*job)) };
        }
        if let Some(s) = row.guest() {
            let (node_name, epoch) = (self.node_name(s.node), row.epoch);
            return Err(AdminRefusal::InUse { name, node: s.node, node_name, epoch });
        }
        if let Some(tie) = row.tie() {
            let parent = self.point_name(tie.branch, tie.generation);
            return Err(AdminRefusal::ShrinkClone { name, parent });
        }
        if row.sealing.is_some() {
            return Err(AdminRefusal::SealBusy { name });
        }
        let job = self.start_job(at, branch, name.clone(), kind);
        if discard {
            // The session that is there may begin at once.
            self.nobody_goes_on(branch);
        }
        self.log(at, EventKind::Shrinking { name, from, to, discard });
        Ok(AdminAnswer::JobStarted { job })
    }

    /// The session is done. The answer is what Raft knows now, whatever was decided.
    pub(crate) fn apply_shrunk(
        &mut self,
        at: u64,
        branch: BranchId,
        epoch: Epoch,
        job: JobId,
        written: Option<u64>,
    ) -> MetaAnswer {
        let row = self.branches.get(&branch);
        let current = row.is_some_and(|b| b.epoch == epoch && b.session.is_some());
        let wanted = self.shrinking(branch) == Some(job);
        let kind = self.jobs.get(&job).map(|j| j.kind).filter(|_| current && wanted);
        if let Some(JobKind::Shrink { from, to, .. }) = kind {
            match written {
                Some(last) => self.end_job(at, branch, JobState::Failed { written: last }),
                None => self.set_smaller(at, branch, from, to),
            }
        }
        self.present_job(branch)
    }

    fn set_smaller(&mut self, at: u64, branch: BranchId, from: u64, to: u64) {
        let row = self.branches.get_mut(&branch).expect("looked up by the caller");
        assert_eq!(row.geometry.size, from, "nothing changes the size while the job runs");
        row.geometry.size = to;
        self.nobody_goes_on(branch);
        self.end_job(at, branch, JobState::Done);
        self.touch(Touch::Resized(branch));
        let name = self.branch_name(branch);
        self.log(at, EventKind::VolumeResized { name, from, to });
    }

    /// Who had the volume open before, and lost it without a word (its node was given up for dead), may not go on as if the
    /// disk were the same.
    pub(crate) fn nobody_goes_on(&mut self, branch: BranchId) {
        let row = self.branches.get_mut(&branch).expect("the caller looked it up");
        row.note_guest(NOBODY, row.epoch);
        self.mark(Key::Branch(branch));
    }

    /// The job that makes the volume smaller, if one runs.
    pub(crate) fn shrinking(&self, branch: BranchId) -> Option<JobId> {
        let job = self.running_job(branch)?;
        matches!(self.jobs[&job].kind, JobKind::Shrink { .. }).then_some(job)
    }
    /// The same, and it may change what is beyond the new end.
    pub(crate) fn discards(&self, branch: BranchId) -> bool {
        let job = self.running_job(branch);
        job.is_some_and(|j| matches!(self.jobs[&j].kind, JobKind::Shrink { discard: true, .. }))
    }
    /// Refuses what cannot be while the branch shrinks.
    pub(crate) fn not_while_shrinking(&self, branch: BranchId) -> Result<(), AdminRefusal> {
        self.shrinking(branch).map_or(Ok(()), |job| Err(self.job_runs(job)))
    }
    pub(crate) fn job_runs(&self, job: JobId) -> AdminRefusal {
        let row = &self.jobs[&job];
        let (kind, name) = (row.kind.word().to_owned(), self.branch_name(row.branch));
        AdminRefusal::JobRuns { name, job: job.to_string(), kind }
    }

    /// What the branch's session is to do.
    pub(crate) fn job_order(&self, branch: BranchId) -> Option<JobOrder> {
        let job = self.running_job(branch)?;
        let work = match self.jobs[&job].kind {
            JobKind::Flatten => JobWork::Flatten,
            JobKind::Shrink { from, to, discard } => JobWork::Shrink { from, to, discard },
        };
        Some(JobOrder { job, work })
    }

    fn present_job(&self, branch: BranchId) -> MetaAnswer {
        let Some(row) = self.branches.get(&branch) else {
            return MetaAnswer::Refused(MetaRefusal::NoSuchVolume);
        };
        MetaAnswer::Job {
            epoch: row.epoch,
            index: self.list_index(),
            job: self.job_order(branch),
            geometry: row.geometry,
            placement: row.pending(),
        }
    }

    /// Of a running job: what it is about is as it must be.
    pub(crate) fn fits(&self, branch: BranchId, kind: JobKind) -> bool {
        let Some(row) = self.branches.get(&branch).filter(|_| self.is_named(branch)) else { return false };
        match kind {
            JobKind::Flatten => row.tie().is_some(),
            JobKind::Shrink { from, to, .. } => {
                let still = row.geometry.size == from && to < from && row.phase == Phase::Ready;
                still && row.tie().is_none() && row.guest().is_none() && row.sealing.is_none()
            }
        }
    }
}
