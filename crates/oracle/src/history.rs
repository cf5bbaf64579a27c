//! A history: what was asked and what was answered, in order. One entry is one line of JSON in the log of a real run.

use crate::register::{Value, ZERO};
use serde::{Deserialize, Serialize};

/// One operation of a guest; unique in a history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct OpId(pub u64);

/// A volume, as the history numbers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct VolumeNumber(pub u32);

/// A snapshot, of one volume or of a group, as the history numbers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SnapshotNumber(pub u64);

/// Registers `first .. first + count`; which unit they are is the log's own affair (blocks, or sectors).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Span {
    pub first: u64,
    pub count: u64,
}
impl Span {
    pub fn each(self) -> std::ops::Range<u64> {
        self.first..self.first + self.count
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OpKind {
    Read {
        span: Span,
    },
    /// The same value into every register of the span; no other operation writes this value there.
    Write {
        span: Span,
        value: Value,
        fua: bool,
    },
    /// Discard or write zeroes: [`ZERO`] into every register, not unique.
    Zero {
        span: Span,
        fua: bool,
    },
    Flush,
}
impl OpKind {
    /// What it writes, if it writes.
    #[must_use]
    pub fn writes(&self) -> Option<(Span, Value)> {
        match self {
            OpKind::Write { span, value, .. } => Some((*span, *value)),
            OpKind::Zero { span, .. } => Some((*span, ZERO)),
            OpKind::Read { .. } | OpKind::Flush => None,
        }
    }
    #[must_use]
    pub fn fua(&self) -> bool {
        matches!(self, OpKind::Write { fua: true, .. } | OpKind::Zero { fua: true, .. })
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    Done,
    /// One value per register of the span.
    Read(Vec<Value>),
    /// What block status says: that these registers hold these values. Of the others of the span it says nothing.
    Partly(Vec<(u64, Value)>),
    /// A block whose pieces are of different writes, or bytes that no write wrote: the register's index.
    Torn(u64),
    /// An I/O error: only where more is broken than section 2 promises to survive. A write that fails is unknown.
    Failed,
    /// The connection or the session is gone: unknown.
    Gone,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Entry {
    /// `client` numbers the attachments of a volume, rising: a guest that attaches anew, elsewhere or after a crash of
    /// its node, is a new client.
    Ask {
        op: OpId,
        volume: VolumeNumber,
        client: u32,
        kind: OpKind,
    },
    Answer {
        op: OpId,
        outcome: Outcome,
    },
    /// The volume is served to `client` for the first time: what older clients left unanswered has taken effect by now
    /// or never will.
    Serves {
        volume: VolumeNumber,
        client: u32,
    },
    /// Every in-sync replica of these registers has lost power since it was whole: what was not flushed may be lost
    /// when the volume is served again.
    LossPermitted {
        volume: VolumeNumber,
        span: Span,
    },
    /// A snapshot is asked for. What was acknowledged before is in it.
    SnapshotAsked {
        snapshot: SnapshotNumber,
    },
    /// It is there: what is asked from here on is not in it. The values that it holds, per volume and register; a
    /// register that is not named is not judged.
    SnapshotMade {
        snapshot: SnapshotNumber,
        volumes: Vec<(VolumeNumber, Vec<(u64, Value)>)>,
    },
    /// A clone, or a volume that was rolled back: its registers begin with what the view holds that it is made of; `None`: that
    /// is not known yet, and may be said later. Said before anything is asked of the volume.
    Begins {
        volume: VolumeNumber,
        values: Vec<(u64, Option<Value>)>,
    },
    /// More is broken than is promised to survive: errors are permitted from here on (`true`), or no more.
    ErrorsPermitted {
        volume: VolumeNumber,
        permitted: bool,
    },
}

/// A whole history, to be judged at once.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct History(pub Vec<Entry>);
