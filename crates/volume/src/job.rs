//! The job that metad has for the session: which one it is, and when it gives way to another, or to none.
//!
//! What is told is a committed state with its index, and only what is newer is taken; older than its attach nothing is. That
//! is what makes it safe to act on it: what a guest wrote after a job had ended it wrote under a later epoch than that of any
//! session that was attached before, and every in-sync replica had refused those by then.
//! What is under way of a job ends before the next one begins.

use crate::session::Session;
use proto::control::{JobOrder, JobStatus, JobWork, SessionKind};
use proto::{JobId, ListIndex};

impl Session {
    /// metad's order, or that there is none (any more), as of this index.
    pub(crate) fn job_told(&mut self, index: ListIndex, order: Option<JobOrder>) {
        if index < self.job_as_of {
            return;
        }
        self.job_as_of = index;
        let order = order.filter(|o| match o.work {
            JobWork::Flatten => self.parents.is_some(),
            JobWork::Shrink { .. } => {
                self.parents.is_none() && self.attached.kind == SessionKind::Maintenance
            }
        });
        if self.job() == order.map(|o| o.job) {
            self.next_job = None;
            return;
        }
        if self.job_is_busy() {
            self.next_job = Some(order);
            self.withdraw_zeroes();
        } else {
            self.begin_job(order);
        }
        self.dirty = true;
    }

    fn begin_job(&mut self, order: Option<JobOrder>) {
        (self.flatten, self.shrink) = (None, None);
        match order.map(|o| (o.job, o.work)) {
            Some((job, JobWork::Flatten)) => {
                self.flatten = Some(Box::new(crate::flatten::Flatten::new(job)));
            }
            Some((job, JobWork::Shrink { from, to, discard })) => {
                self.shrink = Some(Box::new(crate::shrink::Shrink::new(job, from, to, discard)));
            }
            None => {}
        }
    }

    fn job(&self) -> Option<JobId> {
        let shrink = self.shrink.as_ref().map(|s| s.job());
        self.flatten.as_ref().map(|f| f.job()).or(shrink)
    }
    pub(crate) fn has_job(&self) -> bool {
        self.flatten.is_some() || self.shrink.is_some()
    }
    /// Something of it is under way.
    fn job_is_busy(&self) -> bool {
        let shrink = self.shrink.as_ref().is_some_and(|s| s.is_busy());
        self.flatten.as_ref().is_some_and(|f| f.is_busy()) || shrink
    }
    /// Every required drive is to be flushed up to this write for it.
    pub(crate) fn job_flushes(&self) -> Option<u64> {
        let shrink = || self.shrink.as_ref().and_then(|s| s.flush_upto());
        self.flatten.as_ref().and_then(|f| f.flush_upto()).or_else(shrink)
    }

    pub(crate) fn push_job(&mut self) {
        if self.next_job.is_some() && !self.job_is_busy() {
            let next = self.next_job.take().expect("just seen");
            self.begin_job(next);
        }
        self.push_flatten();
        self.push_shrink();
    }

    pub(crate) fn job_status(&self) -> Option<JobStatus> {
        self.flatten_status().or_else(|| self.shrink.as_ref().map(|s| s.status()))
    }
}
