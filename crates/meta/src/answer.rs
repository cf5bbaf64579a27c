//! What a command comes to.

use crate::admin::AdminAnswer;
use crate::refusal::AdminRefusal;
use crate::rows::KeyChange;
use proto::control::MetaAnswer;
use serde::{Deserialize, Serialize};

/// The answer to the one who asked, as Raft decided it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer {
    Node(MetaAnswer),
    Admin(Result<AdminAnswer, AdminRefusal>),
    /// The planner's and liveness's own commands: whether anything changed.
    Planned(bool),
}

/// Result of applying one command. The edge commits `changes` together with the applied index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub answer: Answer,
    pub changes: Vec<KeyChange>,
}
