//! What will happen, in order of time; what is due at one moment happens in the order in which it was put in.

use proto::Time;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

#[derive(Debug)]
pub struct Queue<T> {
    heap: BinaryHeap<Reverse<(Time, u64, usize)>>,
    slots: Vec<Option<T>>,
    free: Vec<usize>,
    count: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue { heap: BinaryHeap::new(), slots: vec![], free: vec![], count: 0 }
    }
}

impl<T> Queue<T> {
    pub fn put(&mut self, at: Time, what: T) {
        let slot = match self.free.pop() {
            Some(s) => {
                self.slots[s] = Some(what);
                s
            }
            None => {
                self.slots.push(Some(what));
                self.slots.len() - 1
            }
        };
        self.count += 1;
        self.heap.push(Reverse((at, self.count, slot)));
    }
    pub fn take(&mut self) -> Option<(Time, T)> {
        let Reverse((at, _, slot)) = self.heap.pop()?;
        self.free.push(slot);
        let what = self.slots[slot].take().expect("a slot in the heap is filled");
        Some((at, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_first_comes_first_and_ties_keep_their_order() {
        let mut q = Queue::default();
        for (at, what) in [(5, 'a'), (3, 'b'), (5, 'c'), (1, 'd')] {
            q.put(Time(at), what);
        }
        let order: String = std::iter::from_fn(|| q.take()).map(|(_, c)| c).collect();
        assert_eq!(order, "dbac");
    }
}
