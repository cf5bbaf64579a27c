//! `volume space`: metad orders what our drives have of a volume to be counted; counted from memory, a slice at a time, so that
//! no guest waits for it.
//!
//! Owns the orders that wait. Keeps nothing of what was said: an answer that is lost is ordered, and counted, again.

use crate::node::Node;
use proto::control::MetaRequest;
use proto::space::{Measure, MeasureId, Measured, MeasuredReplica, Sums};
use proto::{Span, Time};
use std::collections::VecDeque;
use store::Tally;

/// Physical extents that are looked at in one turn: some 100 us. What a replica costs that has none, in the same measure.
const SLICE: usize = 1024;
const REPLICA: usize = 16;
/// Between two slices: nine tenths of the time are others'.
const PAUSE: Span = Span::millis(1);
/// Orders that wait; more are dropped, metad gives them again.
const WAITING: usize = 64;

/// An order, and how far it is.
struct Counting {
    order: Measure,
    /// The replica that is being counted, from this extent on.
    at: usize,
    from: u32,
    tally: Tally,
    sums: Sums,
}

#[derive(Default)]
pub(crate) struct Measures {
    orders: VecDeque<Counting>,
    /// The next slice, not before.
    at: Time,
}

impl Measures {
    pub fn next_wake(&self) -> Time {
        if self.orders.is_empty() { Time::FAR } else { self.at }
    }
    /// A repeat of one that waits changes nothing. One that began later takes the place of all earlier ones of its request.
    pub fn take(&mut self, order: Measure) {
        let MeasureId { request, begun, .. } = order.id;
        self.orders.retain(|c| c.order.id.request != request || c.order.id.begun >= begun);
        let known = self.orders.iter().any(|c| c.order.id == order.id);
        if known || self.orders.len() == WAITING {
            return;
        }
        let tally = Tally::new(&order.kept, order.named);
        self.orders.push_back(Counting { order, at: 0, from: 0, tally, sums: Sums::default() });
    }
}

impl Node {
    pub(crate) fn tend_measures(&mut self, now: Time) {
        if self.measures.at > now {
            return;
        }
        let Some(mut counting) = self.measures.orders.pop_front() else { return };
        self.measures.at = now + PAUSE;
        let mut budget = SLICE;
        while let Some(replica) = counting.order.replicas.get(counting.at).copied() {
            if budget == 0 {
                return self.measures.orders.push_front(counting);
            }
            budget = budget.saturating_sub(REPLICA);
            self.count(&mut counting, replica, &mut budget);
        }
        // Said once: metad gives the order again until it has heard this.
        let token = self.desk.token_for_nobody();
        let measured = Measured { id: counting.order.id, sums: counting.sums };
        let request = MetaRequest::Measured { node: self.me(), measured };
        self.out.push_back(crate::Effect::Meta { token, request });
    }
    /// Goes on with a replica: to its end, or until the budget is used up. One that is not here counts for nothing.
    fn count(&self, c: &mut Counting, replica: MeasuredReplica, budget: &mut usize) {
        let MeasuredReplica { drive, chunk, incarnation, views } = replica;
        let named = (c.order.branch, chunk, incarnation);
        let serving = self.by_drive.get(&drive).map(|&ix| &self.drives[ix]).filter(|d| d.serving());
        match serving.map(|d| d.store.tally(named, c.from, budget, &mut c.tally)) {
            Some(Ok(Some(next))) => {
                c.from = next;
                return;
            }
            Some(Ok(None)) => {
                let whole = std::mem::replace(&mut c.tally, Tally::new(&c.order.kept, c.order.named));
                c.sums.put(&whole.usage(), views);
            }
            Some(Err(_)) | None => c.tally = Tally::new(&c.order.kept, c.order.named),
        }
        (c.at, c.from) = (c.at + 1, 0);
    }
}
