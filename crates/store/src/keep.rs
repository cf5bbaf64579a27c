//! Keep-lists: which views of a branch stay, up to where they are sealed, and which replicas hold them whole.
//!
//! It owns what a list changes and the order in which that becomes durable: windows (withdrawn views first of all),
//! replicas, the branch with the list's index. It never frees: that is `sweep`'s, and comes after. Invariants: only newer
//! lists count; a view that was withdrawn never comes back; `open` and `head` never fall; what is younger than the list
//! (generations from its head's on, replicas placed after it) is left alone.

use crate::event::Effect;
use crate::op::{Answer, Then};
use crate::records::Branch;
use crate::store::{Disk, Phase, Store};
use proto::{ChunkIndex, Generation, Generations, Incarnation, KeepList};
use std::collections::BTreeSet;

/// What is kept once the list is obeyed: what it names, unless the one before could have named it and did not (a snapshot
/// takes the head's generation of its day); and what is younger than the list.
fn obeyed(b: &Branch, list: &KeepList) -> Generations {
    let head_before = b.record.list.head;
    let named = list.kept.iter().filter(|g| *g >= head_before || b.kept.contains(*g));
    let younger = b.kept.iter().filter(|g| *g >= list.head);
    named.chain(younger).collect()
}

impl Store {
    /// metad's word on a branch's views. In memory it holds at once; it is confirmed when it is flushed.
    pub(crate) fn keep(&mut self, list: KeepList) {
        if !matches!(self.phase, Phase::Open) || !list.is_possible() {
            return;
        }
        let (branch, index) = (list.branch, list.index);
        let records = &self.disk().records;
        let Some(number) = records.branch_number(branch) else {
            // Nothing of it is here: what will be is younger.
            return self.effect(Effect::Kept { branch, index });
        };
        let b = &records.branches[number as usize];
        if index <= b.record.list.index {
            if index <= b.list_flushed {
                self.effect(Effect::Kept { branch, index });
            }
            return;
        }
        let kept = obeyed(b, &list);
        // Without a slot for what is kept nothing is obeyed, and so nothing freed; metad tells it again.
        if records.windows_lacking(number, &kept) > records.free_slots() {
            return;
        }
        let sealed_before = b.record.list.open;
        let slot = b.slot;
        let replicas: Vec<u32> = b.replicas.values().copied().collect();
        let r = &mut self.disk_mut().records.branches[number as usize].record.list;
        r.index = index;
        r.open = r.open.max(list.open);
        r.head = r.head.max(list.head);
        (r.placed, r.named) = (list.placed, list.named);
        for window in self.disk_mut().records.set_kept(number, kept) {
            self.push_slot(branch, window, Then::Nothing);
        }
        self.note_completeness(&list, &replicas, sealed_before);
        self.push_slot(branch, slot, Then::Flushed(Box::new(Answer::Kept { branch, index })));
        for replica in replicas {
            self.sweep_all(replica);
        }
    }

    /// Who holds every view from here on, and who no longer does.
    fn note_completeness(&mut self, list: &KeepList, replicas: &[u32], sealed_before: Generation) {
        let behind: BTreeSet<(ChunkIndex, Incarnation)> = list.behind.iter().copied().collect();
        for &number in replicas {
            let r = &mut self.disk_mut().records.replica_mut(number).record;
            // One that was placed later, by a metad that was restored since, is not judged: it keeps what it held.
            let judged = r.incarnation <= list.placed;
            let whole = judged && !behind.contains(&(r.chunk, r.incarnation));
            if whole == r.whole {
                continue;
            }
            if r.whole {
                r.complete = Generation(sealed_before.0.saturating_sub(1));
            }
            r.whole = whole;
            let slot = self.disk().records.replica(number).slot;
            self.push_slot(list.branch, slot, Then::Nothing);
        }
    }
}

impl Disk {
    /// The replica holds every kept generation up to here.
    pub(crate) fn complete(&self, replica: u32) -> Generation {
        let r = &self.records.replica(replica).record;
        let open = self.records.branch_of(replica).record.list.open;
        if r.whole { Generation(open.0.saturating_sub(1)) } else { r.complete }
    }
    /// May somebody without a session read this view? `incomplete`: seeded bug.
    pub(crate) fn serves(&self, replica: u32, g: Generation, incomplete: bool) -> bool {
        let b = self.records.branch_of(replica);
        let sealed = g < b.record.list.open && b.kept.contains(g);
        sealed && (incomplete || g <= self.complete(replica))
    }
}
