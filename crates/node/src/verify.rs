//! `volume verify`: a session reads all its replicas again, piece by piece, and the result is kept for whoever
//! asks the node.

use crate::event::Notice;
use crate::node::Node;
use crate::seats::{Asked, Client};
use proto::{BranchId, RequestId, Ticket};
use std::collections::BTreeMap;
use volume::{GuestError, GuestOp, GuestReply};

/// Bytes of one piece.
const PIECE: u64 = 16 << 20;
/// Results that are kept.
const KEPT: usize = 64;
/// Places that differ, of one verification, at most.
const PLACES: usize = 16;

/// How far a verification is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VerifyState {
    pub branch: BranchId,
    /// Bytes of the volume, and verified so far.
    pub total: u64,
    pub done: u64,
    /// Byte offsets of extents that differ or are bad, at most 16.
    pub differing: Vec<u64>,
    pub finished: bool,
    /// Why it ended early.
    pub error: Option<GuestError>,
}

#[derive(Default)]
pub(crate) struct Verifies {
    pub all: BTreeMap<RequestId, VerifyState>,
    /// In the order in which they came.
    order: std::collections::VecDeque<RequestId>,
    /// Pieces to be asked for.
    next: Vec<RequestId>,
}

impl Verifies {
    pub fn running(&self, branch: BranchId) -> bool {
        self.all.values().any(|v| v.branch == branch && !v.finished)
    }
}

impl Node {
    /// metad's order; a repeat of one that is known changes nothing.
    pub(crate) fn verify_wanted(&mut self, branch: BranchId, request: RequestId) {
        let Some((_, live)) = self.seats.of_branch(branch) else { return };
        let total = live.geometry.size;
        if self.verifies.all.contains_key(&request) {
            return;
        }
        while self.verifies.order.len() >= KEPT {
            let oldest = self.verifies.order.pop_front();
            oldest.map(|r| self.verifies.all.remove(&r));
        }
        self.verifies.order.push_back(request);
        self.verifies.all.insert(request, VerifyState { branch, total, ..VerifyState::default() });
        self.verifies.next.push(request);
    }
    pub(crate) fn tend_verifies(&mut self) {
        for request in std::mem::take(&mut self.verifies.next) {
            let Some(state) = self.verifies.all.get_mut(&request) else { continue };
            let (branch, offset, len) = (state.branch, state.done, PIECE.min(state.total - state.done));
            match self.seat_of(branch) {
                Some((id, _)) => {
                    let op = GuestOp::Verify { offset, len };
                    self.submit(id, Asked { client: Client::Verify(request), ticket: Ticket(0), op });
                }
                None => self.verified(request, Err(GuestError::Gone)),
            }
        }
    }
    pub(crate) fn verified(&mut self, request: RequestId, result: Result<GuestReply, GuestError>) {
        let Some(state) = self.verifies.all.get_mut(&request) else { return };
        match result {
            Ok(GuestReply::Verified { differing, .. }) => {
                state.done += PIECE.min(state.total - state.done);
                state.differing.extend(differing);
                state.differing.truncate(PLACES);
                state.finished = state.done == state.total;
            }
            Ok(_) => unreachable!("a verification is answered as one"),
            Err(error) => (state.error, state.finished) = (Some(error), true),
        }
        // The next piece is to be asked for; or the session may be idle now.
        self.stirred = true;
        if state.finished {
            let state = state.clone();
            self.notice(Notice::Verified { request, state });
        } else {
            self.verifies.next.push(request);
        }
    }
    /// Result of a `volume verify` that this node's session does.
    #[must_use]
    pub fn verify(&self, request: RequestId) -> Option<&VerifyState> {
        self.verifies.all.get(&request)
    }
}
