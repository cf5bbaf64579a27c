//! Questions to metad: whose each is, and what is told without being asked.

use crate::seats::{Instance, SeatId};
use proto::{BranchId, Epoch, RequestId, Span, Time};
use std::collections::BTreeMap;

/// Who waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Use {
    /// By the id of the request: whichever of its repeats is answered, the answer is the same.
    Attach(SeatId, RequestId),
    /// A session's own question, with its token.
    Session(SeatId, Instance, u64),
    /// A reader's.
    Reader(SeatId, Instance, u64),
    Heartbeat,
    /// A drive asks to be confirmed.
    Opened(usize),
    /// An epoch that came too late.
    GiveBack(BranchId, Epoch),
    /// So many erased replicas of a drive.
    Erased(usize, usize),
}

/// A question that no answer came to is asked again.
pub(crate) const ASK_AGAIN: Span = Span::millis(1500);

pub(crate) struct Desk {
    uses: BTreeMap<u64, Use>,
    next: u64,
    /// State of the generator of request ids.
    seed: u64,
    pub heartbeat_at: Time,
    /// The newest heartbeat's token.
    pub heartbeat: Option<u64>,
    /// Epochs to be given back, and when to say so (again).
    pub give_backs: BTreeMap<(BranchId, Epoch), Time>,
}

impl Desk {
    pub fn new(seed: u64) -> Desk {
        Desk {
            uses: BTreeMap::new(),
            next: 1,
            seed,
            heartbeat_at: Time::ZERO,
            heartbeat: None,
            give_backs: BTreeMap::new(),
        }
    }
    pub fn next_wake(&self) -> Time {
        self.give_backs.values().copied().min().unwrap_or(Time::FAR).min(self.heartbeat_at)
    }
    pub fn token(&mut self, of: Use) -> u64 {
        let token = self.next;
        self.next += 1;
        self.uses.insert(token, of);
        token
    }
    /// Of what is said once, whatever the answer: whoever wants to hear it makes us say it again.
    pub fn token_for_nobody(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }
    pub fn answered(&mut self, token: u64) -> Option<Use> {
        self.uses.remove(&token)
    }
    /// A token of the node's own questions to its peers.
    pub fn own_token(&mut self) -> u64 {
        self.next += 1;
        crate::pull::OWN_TOKEN | self.next
    }
    pub fn forget(&mut self, token: u64) {
        self.uses.remove(&token);
    }
    /// 64 bits of the node's chance (splitmix64).
    fn chance(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn request_id(&mut self) -> RequestId {
        RequestId(u128::from(self.chance()) << 64 | u128::from(self.chance()))
    }
}
