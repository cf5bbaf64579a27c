//! Jobs: work that takes its time, that an operator can look at and call off: here `flatten`; `shrink` has a room of its own.
//!
//! A row stands for the order and its end. How far the work is only the session knows that does it; nothing of that must
//! last. Invariants: a branch has one running job at most; a running flatten's branch has a volume, and is tied.

use crate::admin::AdminAnswer;
use crate::answer::Answer;
use crate::command::Op;
use crate::event::EventKind;
use crate::model::{Job, JobKind, JobState};
use crate::refusal::{AdminRefusal, Noun};
use crate::rows::Key;
use crate::state::MetaState;
use crate::touch::Touch;
use proto::control::MetaAnswer;
use proto::{BranchId, Epoch, JobId, VolumeId};

/// Rows of jobs that have ended; older ones go.
const ENDED_MAX: usize = 256;

type Decision = Result<AdminAnswer, AdminRefusal>;

impl MetaState {
    pub(crate) fn perform_job(&mut self, at: u64, op: &Op) -> Answer {
        match op {
            Op::Flatten { volume, branch } => Answer::Admin(self.apply_flatten(at, *volume, *branch)),
            Op::JobCancel { job } => Answer::Admin(self.apply_job_cancel(at, *job)),
            Op::Cut { branch, epoch, job } => Answer::Node(self.apply_cut(at, *branch, *epoch, *job)),
            Op::VolumeShrink { volume, branch, from, to, discard } => {
                Answer::Admin(self.apply_volume_shrink(at, *volume, *branch, (*from, *to), *discard))
            }
            Op::Shrunk { branch, epoch, job, written } => {
                Answer::Node(self.apply_shrunk(at, *branch, *epoch, *job, *written))
            }
            _ => unreachable!("perform sends only jobs' commands here"),
        }
    }

    /// A clone is to stand by itself. Asked for twice it is one job.
    pub(crate) fn apply_flatten(&mut self, at: u64, volume: VolumeId, branch: BranchId) -> Decision {
        let row = self.volumes.get(&volume);
        let row =
            row.ok_or_else(|| AdminRefusal::NotFound { noun: Noun::Volume, name: volume.to_string() })?;
        let name = row.name.clone();
        if row.branch != branch {
            return Err(AdminRefusal::Changed { name });
        }
        if let Some(job) = self.index.jobs.get(&branch) {
            let same = self.jobs[job].kind == JobKind::Flatten;
            return if same { Ok(AdminAnswer::JobStarted { job: *job }) } else { Err(self.job_runs(*job)) };
        }
        let row = &self.branches[&branch];
        if row.tie().is_none() {
            return Err(AdminRefusal::NotAClone { name });
        }
        let job = self.start_job(at, branch, name, JobKind::Flatten);
        Ok(AdminAnswer::JobStarted { job })
    }

    pub(crate) fn start_job(&mut self, at: u64, branch: BranchId, name: String, kind: JobKind) -> JobId {
        self.head.last_job += 1;
        let job = JobId(self.head.last_job);
        let row = Job { kind, branch, name, state: JobState::Running, started_ms: at, ended_ms: 0 };
        self.jobs.insert(job, row);
        self.index.jobs.insert(branch, job);
        self.mark(Key::Job(job));
        self.touch(Touch::Job(branch));
        self.touch(Touch::Branch(branch));
        job
    }

    pub(crate) fn apply_job_cancel(&mut self, at: u64, job: JobId) -> Decision {
        let row = self.jobs.get(&job);
        let row = row.ok_or_else(|| AdminRefusal::NotFound { noun: Noun::Job, name: job.to_string() })?;
        if row.state != JobState::Running {
            return Err(AdminRefusal::JobOver { name: job.to_string(), state: row.state.word().to_owned() });
        }
        self.end_job(at, row.branch, JobState::Cancelled);
        Ok(AdminAnswer::Done)
    }

    /// The session has made sure that nothing is read from the parent any more. The answer is what Raft knows now, whatever
    /// was decided.
    pub(crate) fn apply_cut(&mut self, at: u64, branch: BranchId, epoch: Epoch, job: JobId) -> MetaAnswer {
        let Some(row) = self.branches.get(&branch) else { return self.present_views(branch) };
        let current = row.epoch == epoch && row.session.is_some();
        let wanted = self.index.jobs.get(&branch) == Some(&job);
        if let Some(level) = row.tie().filter(|_| current && wanted) {
            self.branches.get_mut(&branch).expect("looked up above").tied = false;
            self.changed_views(branch);
            let parent = self.release(level, branch);
            self.reap(parent);
            self.end_job(at, branch, JobState::Done);
            let name = self.branch_name(branch);
            self.log(at, EventKind::Flattened { name });
        }
        self.present_views(branch)
    }

    /// The branch's job, if it has one, ends so.
    pub(crate) fn end_job(&mut self, at: u64, branch: BranchId, state: JobState) {
        let Some(job) = self.index.jobs.remove(&branch) else { return };
        let row = self.jobs.get_mut(&job).expect("indexed as running");
        (row.state, row.ended_ms) = (state, at);
        self.mark(Key::Job(job));
        self.touch(Touch::Job(branch));
        self.touch(Touch::Branch(branch));
        let ended: Vec<JobId> =
            self.jobs.iter().filter(|(_, j)| j.state != JobState::Running).map(|(id, _)| *id).collect();
        for old in &ended[..ended.len().saturating_sub(ENDED_MAX)] {
            self.jobs.remove(old);
            self.mark(Key::Job(*old));
        }
    }

    /// The job that the branch's session is to work at.
    #[must_use]
    pub fn running_job(&self, branch: BranchId) -> Option<JobId> {
        self.index.jobs.get(&branch).copied()
    }
}
