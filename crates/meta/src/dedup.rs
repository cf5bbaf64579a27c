//! First answers of requests, for those who ask again.
//!
//! Refusals are kept too: a request that was refused once must not take effect when a late double of it
//! arrives. Whoever wants another try takes another request id. A ring of `KEPT_MAX`.

use crate::answer::Answer;
use crate::rows::Key;
use crate::state::MetaState;
use proto::control::{MetaAnswer, MetaRefusal};
use proto::{BranchId, Epoch, RequestId};
use serde::{Deserialize, Serialize};

/// Answers kept.
pub(crate) const KEPT_MAX: usize = 10_000;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Order of arrival.
    pub(crate) number: u64,
    pub(crate) answer: KeptAnswer,
}

/// An answer to `attach` can be megabytes: only what cannot be told later is kept of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum KeptAnswer {
    Plain(Answer),
    Attached { branch: BranchId, epoch: Epoch, clean: bool },
}

impl MetaState {
    /// The answer to a request that was already answered.
    pub(crate) fn kept_answer(&self, request: RequestId) -> Option<Answer> {
        Some(match &self.kept.get(&request)?.answer {
            KeptAnswer::Plain(answer) => answer.clone(),
            KeptAnswer::Attached { branch, epoch, clean } => Answer::Node(match self.branches.get(branch) {
                None => MetaAnswer::Refused(MetaRefusal::NoSuchVolume),
                Some(b) if b.epoch == *epoch && b.session.is_some() => {
                    self.attached(*branch, *clean).expect("the branch exists")
                }
                Some(b) => MetaAnswer::Refused(MetaRefusal::OldEpoch { epoch: b.epoch }),
            }),
        })
    }

    pub(crate) fn keep(&mut self, request: RequestId, answer: &Answer) {
        let answer = match answer {
            Answer::Node(MetaAnswer::Attached(a)) => {
                KeptAnswer::Attached { branch: a.branch, epoch: a.epoch, clean: a.clean }
            }
            other => KeptAnswer::Plain(other.clone()),
        };
        self.head.last_kept += 1;
        let number = self.head.last_kept;
        self.kept.insert(request, Kept { number, answer });
        self.index.kept.insert(number, request);
        self.mark(Key::Kept(request));
        while self.index.kept.len() > KEPT_MAX {
            if let Some((_, old)) = self.index.kept.pop_first() {
                self.kept.remove(&old);
                self.mark(Key::Kept(old));
            }
        }
    }
}
