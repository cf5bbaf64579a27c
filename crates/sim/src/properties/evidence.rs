//! EVIDENCE (5.2): a session proposes to drop a member for silence or slowness only while those that stay and speak for it
//! are a majority of the copies; with fewer, but at least one, only if Raft calls the member's drive down too.
//!
//! Judged when the proposal is first made: what is undecided is proposed again whatever happens meanwhile.

use crate::counts::Property;
use crate::net::HostIndex;
use crate::world::World;
use proto::control::{ChangeCause, ChunkChange};
use proto::{BranchId, ChunkIndex, ConfigNumber, DriveId, Epoch};
use std::collections::BTreeSet;

/// Of three copies.
const MAJORITY: usize = 2;

/// Proposals that have been made.
#[derive(Debug, Default)]
pub struct Evidence {
    made: BTreeSet<(BranchId, Epoch, ChunkIndex, ConfigNumber, DriveId)>,
}

impl World {
    /// A session on this host sends metad a proposal.
    pub fn check_evidence(
        &mut self,
        host: HostIndex,
        branch: BranchId,
        epoch: Epoch,
        changes: &[ChunkChange],
    ) {
        for change in changes {
            let needs = match change.cause {
                ChangeCause::Silent | ChangeCause::NoAnswer if !change.only_if_down.is_empty() => 1,
                ChangeCause::Silent | ChangeCause::NoAnswer | ChangeCause::TooSlow => MAJORITY,
                ChangeCause::Reported | ChangeCause::InDoubt => 1,
                ChangeCause::Promoted(_) | ChangeCause::Left | ChangeCause::Withdrawn => continue,
            };
            let Some(session) = self.session(host, branch).filter(|s| s.epoch() == epoch) else { continue };
            let old = session.configuration(change.chunk.0);
            let stays = |d: DriveId| change.members.iter().any(|m| m.place.drive == d && m.in_sync());
            let Some(dropped) = old.in_sync().map(|m| m.place.drive).find(|d| !stays(*d)) else { continue };
            let stay = change.members.iter().filter(|m| m.in_sync());
            let vouch = stay.filter(|m| session.vouched_by(change.chunk.0, m.place.drive)).count();
            if !self.watchers.evidence.made.insert((branch, epoch, change.chunk, change.from, dropped)) {
                continue;
            }
            self.counts.checked(Property::Evidence, 1);
            if vouch < needs {
                let (chunk, cause) = (change.chunk, change.cause);
                let text = format!(
                    "{branch} {chunk}: epoch {epoch} drops {dropped} ({cause:?}) on the word of {vouch} members"
                );
                return self.fail("EVIDENCE", text);
            }
        }
    }
}
