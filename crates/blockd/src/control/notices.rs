//! Whatever is not well on this node, in words: what, since when, why, and what to do.

use super::Status;
use super::member::Member;
use super::openings::AGAIN;
use crate::drives::DriveCounts;
use crate::format::remedy;
use crate::sys;
use node::DriveState;
use proto::control::MetaRefusal;
use proto::{Span, Time};
use std::time::Duration;

/// What lasts shorter than this is no news: every session attaches, every drive opens.
const WORTH: Duration = Duration::from_secs(2);

/// How long ago that was, by the shard's clock.
#[must_use]
pub fn ago(since: Time) -> Span {
    sys::now().since(since)
}

/// A drive of this node, open or not.
#[derive(Clone, Debug)]
pub struct DriveLine {
    /// 0 until it is known.
    pub drive: u64,
    pub path: String,
    pub capacity: u64,
    pub state: &'static str,
    /// Empty while it serves.
    pub reason: String,
    pub ago: Duration,
    pub counts: DriveCounts,
    pub journal: node::JournalFill,
}

impl DriveLine {
    #[must_use]
    pub fn serves(&self) -> bool {
        self.state == "serving"
    }
}

/// The drives that the shard has, and those that could not be opened.
#[must_use]
pub fn drives(member: &Member, s: &Status) -> Vec<DriveLine> {
    let mut lines: Vec<DriveLine> = s
        .drives
        .iter()
        .map(|d| DriveLine {
            drive: d.drive,
            path: d.path.clone(),
            capacity: d.capacity,
            state: name(&d.state),
            reason: reason(&d.state),
            ago: d.since.map_or(Duration::ZERO, |t| Duration::from_nanos(ago(t).0)),
            counts: d.counts,
            journal: d.journal,
        })
        .collect();
    for m in member.openings.missing() {
        let path = m.path.display().to_string();
        // Its next try is under way, or has brought it in.
        if lines.iter().any(|l| l.path == path && l.state != "failed") {
            continue;
        }
        lines.retain(|l| l.path != path);
        lines.push(DriveLine {
            drive: 0,
            path,
            capacity: 0,
            state: "failed",
            reason: format!("it cannot be opened: {}. Tried again every {} s", m.error, AGAIN.as_secs()),
            ago: m.since.elapsed(),
            counts: DriveCounts::default(),
            journal: node::JournalFill::default(),
        });
    }
    lines
}

fn name(state: &DriveState) -> &'static str {
    match state {
        DriveState::Opening => "opening",
        DriveState::Confirming { .. } => "confirming",
        DriveState::Serving => "serving",
        DriveState::Stranger => "stranger",
        DriveState::Failed(_) => "failed",
        DriveState::Closed => "closed",
    }
}

fn reason(state: &DriveState) -> String {
    match state {
        DriveState::Serving => String::new(),
        DriveState::Opening => "its journal is being read; no answer of the device for long: see the kernel's log".into(),
        DriveState::Confirming { refused: None } => {
            "metad has not confirmed its list of openings yet: it does when a metad leads".into()
        }
        DriveState::Confirming { refused: Some(MetaRefusal::UnknownDrive) } => {
            "metad does not know this drive: it was removed from the cluster, or is not registered yet. If it was \
             removed, format it anew: blockctl drive add --force=REASON"
                .into()
        }
        DriveState::Confirming { refused: Some(refusal) } => format!("metad does not confirm it: {}", node::in_words(refusal)),
        DriveState::Stranger => "metad calls it a stranger: its contents were rolled back or copied. It serves nobody. Drain it \
             (blockctl drive drain), then stop this blockd and format it anew (blockd-format --force)"
            .into(),
        DriveState::Failed(failure) => format!("{failure}. {}", remedy(failure)),
        DriveState::Closed => "blockd is stopping".into(),
    }
}

/// Everything that is not well.
#[must_use]
pub fn all(member: &Member, s: &Status) -> Vec<String> {
    let drives = drives(member, s).into_iter().filter(|d| !d.serves()).map(|d| {
        let id = if d.drive == 0 { String::new() } else { format!(" ({})", proto::DriveId(d.drive)) };
        let (state, secs) = (d.state, d.ago.as_secs());
        format!("drive {}{id} does not serve ({state} for {secs} s): {}", d.path, d.reason)
    });
    let seen = member.seen();
    let waits = seen
        .sessions
        .iter()
        .filter_map(|x| x.waiting.as_ref().map(|w| format!("I/O of branch {} waits: {w}", x.branch.0)));
    let attaching = s.attaching.iter().filter(|a| Duration::from_nanos(ago(a.since).0) >= WORTH).map(|a| {
        let secs = ago(a.since).as_millis() / 1000;
        let (volume, exports, requests) = (&a.volume, a.exports, a.requests);
        format!(
            "volume {volume} is not attached for {secs} s ({exports} exports, {requests} requests wait): {}",
            a.reason
        )
    });
    let silent = match member.metad.last_answer() {
        None => Some("no metad has answered yet".to_string()),
        Some((_, ago)) if ago.as_secs() >= 5 => {
            Some(format!("no metad has answered for {} s", ago.as_secs()))
        }
        Some(_) => None,
    };
    drives.chain(waits).chain(attaching).chain(silent).chain(seen.refused.clone()).collect()
}
