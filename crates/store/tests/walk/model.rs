//! What the session knows: per block the writes in the order in which they were sent.

use proto::limits::BLOCK;
use proto::message::View;
use proto::record::Sum;
use proto::{Payload, Version};
use std::collections::BTreeMap;
use store::view::BlockView;

/// One write of one block. Value 0 is zeroes.
#[derive(Clone, Debug)]
pub struct W {
    pub value: u64,
    pub version: Version,
    pub generation: u32,
    pub acked: bool,
    pub flushed: bool,
    /// Pulls have no place in the session's order: when they were done.
    pub done_at: u64,
}

#[derive(Default)]
pub struct Model {
    pub blocks: BTreeMap<(u32, u32), Vec<W>>,
    /// The value of what was never written.
    pub nothing: u64,
    sums: BTreeMap<Sum0, u64>,
}
type Sum0 = u32;
/// What a block has that nobody wrote or zeroed, where that is not the same as zeroes.
pub const ABSENT: u64 = u64::MAX;

pub fn page(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK / 8)
}
pub fn pages(values: &[u64]) -> Payload {
    Payload::copy_of(&values.iter().flat_map(|v| page(*v)).collect::<Vec<_>>())
}

impl Model {
    pub fn history(&mut self, at: (u32, u32)) -> &mut Vec<W> {
        let nothing = self.nothing;
        self.blocks.entry(at).or_insert_with(|| {
            vec![W {
                value: nothing,
                version: Version::ZERO,
                generation: 1,
                acked: true,
                flushed: true,
                done_at: 0,
            }]
        })
    }
    pub fn sent(&mut self, at: (u32, u32), value: u64, version: Version, generation: u32) {
        self.note(value);
        self.history(at).push(W { value, version, generation, acked: false, flushed: false, done_at: 0 });
    }
    /// A pulled value: older than whatever was sent at or above `v0`.
    pub fn pulled(&mut self, at: (u32, u32), value: u64, version: Version, v0: Version, generation: u32) {
        self.note(value);
        let h = self.history(at);
        let place = h.iter().position(|w| w.version >= v0).unwrap_or(h.len());
        h.insert(place, W { value, version, generation, acked: false, flushed: false, done_at: 0 });
    }
    fn note(&mut self, value: u64) {
        self.sums.insert(Sum::of(&page(value)).0, value);
    }
    pub fn value_of(&self, state: BlockView) -> Option<u64> {
        match state {
            BlockView::Zero => Some(0),
            BlockView::Absent => Some(self.nothing),
            BlockView::Data(sum) => self.sums.get(&sum.0).copied(),
        }
    }
    pub fn acked(&mut self, version: Version) {
        for w in self.blocks.values_mut().flatten().filter(|w| w.version == version) {
            w.acked = true;
        }
    }
    pub fn flushed_below(&mut self, note: Version, begun: u64) {
        for w in
            self.blocks.values_mut().flatten().filter(|w| w.acked && w.version < note && w.done_at <= begun)
        {
            w.flushed = true;
        }
    }
    /// Writes that one view sees.
    pub fn visible(&self, at: (u32, u32), view: View) -> Vec<W> {
        let all = self.blocks.get(&at).cloned().unwrap_or_default();
        match view {
            View::Head => all,
            View::At(g) => all.into_iter().filter(|w| w.generation <= g.0).collect(),
        }
    }
    /// Is `value` the newest promised write, or a newer one?
    pub fn allows(
        &self,
        at: (u32, u32),
        view: View,
        value: u64,
        flushed_only: bool,
    ) -> Result<usize, String> {
        let h = self.visible(at, view);
        let promised = |w: &W| if flushed_only { w.flushed } else { w.acked };
        let floor = h.iter().rposition(promised).unwrap_or(0);
        // Zeroes look alike: the oldest that may be meant.
        let newest = h.iter().rposition(|w| w.value == value);
        let found = h.iter().skip(floor).position(|w| w.value == value).map(|i| i + floor).or(newest);
        match found {
            Some(i) if i >= floor => Ok(i),
            None if h.is_empty() && value == self.nothing => Ok(0),
            found => Err(format!(
                "block {at:?} in {view:?} gives {value} (place {found:?}); at least {floor} of {:?}",
                h.iter().map(|w| (w.value, w.version, w.acked, w.flushed)).collect::<Vec<_>>()
            )),
        }
    }
    /// After a crash: what is read now is what was written.
    pub fn settle(&mut self, at: (u32, u32), place: usize) {
        let h = self.history(at);
        h.truncate(place + 1);
        for w in h {
            (w.acked, w.flushed) = (true, true);
        }
    }
}
