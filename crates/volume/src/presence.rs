//! What a clone's session knows of where blocks lie, so that a read asks the one level that has them.
//!
//! By sections of 16 MiB, as they are read: *presence*, a bit per extent: the branch itself has something there; and
//! *depth*, per extent: the nearest parent that has something there. Owns no data and asks nobody (`parents` does).
//! A bit that is not set is the truth: all that the branch had when it was asked, and all that this session has sent
//! since, is set; and the session is the only writer. Depth is of views that never change. Both are forgotten when too
//! many sections are known, and asked for anew.

use proto::limits::BLOCKS_PER_EXTENT;
use proto::message::{BlockState, Run};
use proto::{BlockRange, Map, Span, Time};
use std::collections::VecDeque;

/// Extents of a section.
pub(crate) const EXTENTS: usize = 256;
pub(crate) const BLOCKS: u32 = 256 * BLOCKS_PER_EXTENT;
/// Sections known at most: 1 TiB, some 20 MB.
const SECTIONS: usize = 65_536;
/// Questions under way at once: guests' reads first.
const QUESTIONS: usize = 8;
/// A section about which a question was lost.
const AGAIN: Span = Span::millis(50);
/// No parent has anything there.
pub(crate) const NOWHERE: u8 = u8::MAX;
/// The deepest level that is told apart; from there on a read looks for itself.
pub(crate) const DEEPEST: u8 = u8::MAX - 1;

/// A section: chunk, and which of its sections.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct At {
    pub chunk: u32,
    pub section: u32,
}

impl At {
    pub fn of(chunk: u32, block: u32) -> At {
        At { chunk, section: block / BLOCKS }
    }
    pub fn range(self) -> BlockRange {
        BlockRange::new(self.section * BLOCKS, BLOCKS)
    }
}

fn extent(block: u32) -> usize {
    (block / BLOCKS_PER_EXTENT) as usize % EXTENTS
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Known {
    #[default]
    No,
    Asked,
    Yes,
}

#[derive(Debug, Default)]
struct Section {
    own: Known,
    depth: Known,
    /// Extents in which the branch itself may have something; exact when `own` is known.
    has: [u64; EXTENTS / 64],
    /// Per extent the nearest level that has something.
    nearest: Option<Box<[u8; EXTENTS]>>,
    ask_after: Time,
}

impl Section {
    fn is_asked(&self) -> bool {
        self.own == Known::Asked || self.depth == Known::Asked
    }
}

#[derive(Debug)]
pub(crate) struct Presence {
    sections: Map<At, Section>,
    /// As they became known.
    order: VecDeque<At>,
    questions: usize,
    most: usize,
}

impl Default for Presence {
    fn default() -> Presence {
        Presence { sections: Map::default(), order: VecDeque::new(), questions: 0, most: SECTIONS }
    }
}

impl Presence {
    /// What is to be asked for before reads of this section can go the shortest way: the branch's own map; the depths.
    pub fn wanted(&mut self, at: At, now: Time) -> (bool, bool) {
        if !self.sections.contains_key(&at) {
            self.make_room();
            self.order.push_back(at);
        }
        let s = self.sections.entry(at).or_default();
        if now < s.ask_after {
            return (false, false);
        }
        let own = s.own == Known::No && self.questions < QUESTIONS;
        let depth = s.depth == Known::No && self.questions + usize::from(own) < QUESTIONS;
        (own, depth)
    }

    fn make_room(&mut self) {
        for _ in 0..self.order.len() {
            if self.sections.len() < self.most {
                return;
            }
            let oldest = self.order.pop_front().expect("as many as there are sections");
            if self.sections[&oldest].is_asked() {
                self.order.push_back(oldest);
            } else {
                self.sections.remove(&oldest);
            }
        }
    }

    /// The branch is asked; what was sent and is not acknowledged by all may not be there yet.
    pub fn own_asked(&mut self, at: At, in_flight: impl Iterator<Item = BlockRange>) {
        let s = self.sections.get_mut(&at).expect("wanted");
        (s.own, s.has) = (Known::Asked, [0; EXTENTS / 64]);
        self.questions += 1;
        for range in in_flight {
            self.wrote(at.chunk, range);
        }
    }
    pub fn own_answered(&mut self, at: At, runs: &[Run]) {
        self.questions -= 1;
        let s = self.sections.get_mut(&at).expect("kept while it is asked");
        let mut first = 0;
        for run in runs {
            if run.state != BlockState::Absent && run.count > 0 {
                for e in first / BLOCKS_PER_EXTENT..=(first + run.count - 1) / BLOCKS_PER_EXTENT {
                    s.has[e as usize / 64] |= 1 << (e % 64);
                }
            }
            first += run.count;
        }
        assert_eq!(first, BLOCKS, "an answer of all of the section");
        s.own = Known::Yes;
    }
    pub fn own_lost(&mut self, at: At, now: Time) {
        self.questions -= 1;
        let s = self.sections.get_mut(&at).expect("kept while it is asked");
        (s.own, s.ask_after) = (Known::No, now + AGAIN);
    }

    pub fn depth_asked(&mut self, at: At) {
        self.sections.get_mut(&at).expect("wanted").depth = Known::Asked;
        self.questions += 1;
    }
    pub fn depth_answered(&mut self, at: At, nearest: Box<[u8; EXTENTS]>) {
        self.questions -= 1;
        let s = self.sections.get_mut(&at).expect("kept while it is asked");
        (s.depth, s.nearest) = (Known::Yes, Some(nearest));
    }

    /// The session sends a write, of bytes or of zeroes.
    pub fn wrote(&mut self, chunk: u32, range: BlockRange) {
        if self.sections.is_empty() {
            return;
        }
        for e in range.extent()..=(range.end() - 1) / BLOCKS_PER_EXTENT {
            let block = e * BLOCKS_PER_EXTENT;
            if let Some(s) = self.sections.get_mut(&At::of(chunk, block)) {
                s.has[extent(block) / 64] |= 1 << (extent(block) % 64);
            }
        }
    }

    /// Whether the branch itself may have something in the extent of this block.
    pub fn has(&self, chunk: u32, block: u32) -> bool {
        self.sections
            .get(&At::of(chunk, block))
            .is_none_or(|s| s.own != Known::Yes || s.has[extent(block) / 64] & 1 << (extent(block) % 64) != 0)
    }
    /// The level from which on the extent of this block is to be looked for.
    pub fn nearest(&self, chunk: u32, block: u32) -> u8 {
        let s = self.sections.get(&At::of(chunk, block));
        s.and_then(|s| s.nearest.as_ref()).map_or(0, |n| n[extent(block)])
    }
}

/// The depths of a section, while the levels are asked one after another.
#[derive(Debug)]
pub(crate) struct Depths {
    pub at: At,
    pub level: u8,
    nearest: Box<[u8; EXTENTS]>,
}

impl Depths {
    pub fn new(at: At) -> Depths {
        Depths { at, level: 0, nearest: Box::new([NOWHERE; EXTENTS]) }
    }
    /// What this level has.
    pub fn found(&mut self, first: u32, count: u32, state: BlockState) {
        if state == BlockState::Absent || count == 0 {
            return;
        }
        for e in first / BLOCKS_PER_EXTENT..=(first + count - 1) / BLOCKS_PER_EXTENT {
            let n = &mut self.nearest[e as usize % EXTENTS];
            *n = (*n).min(self.level);
        }
    }
    /// Goes one level down: the blocks that are still to be found there. `None`: all that can be known is known.
    pub fn next(&mut self, levels: usize) -> Option<BlockRange> {
        self.level += 1;
        let missing = |n: &u8| *n == NOWHERE;
        let first = self.nearest.iter().position(missing)?;
        if usize::from(self.level) >= levels {
            return None;
        }
        if self.level >= DEEPEST {
            self.nearest.iter_mut().filter(|n| **n == NOWHERE).for_each(|n| *n = DEEPEST);
            return None;
        }
        let last = self.nearest.iter().rposition(missing).unwrap_or(first);
        let block = |e: usize| u32::try_from(e).expect("256 extents") * BLOCKS_PER_EXTENT;
        let from = self.at.range().first + block(first);
        Some(BlockRange::new(from, block(last + 1 - first)))
    }
    pub fn done(self) -> (At, Box<[u8; EXTENTS]>) {
        (self.at, self.nearest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::{Generation, Version};
    use std::collections::BTreeSet;

    fn runs(has: &BTreeSet<u32>, at: At) -> Vec<Run> {
        let state = |b: u32| if has.contains(&b) { BlockState::Zero } else { BlockState::Absent };
        at.range().blocks_of(state)
    }
    trait Blocks {
        fn blocks_of(self, state: impl Fn(u32) -> BlockState) -> Vec<Run>;
    }
    impl Blocks for BlockRange {
        fn blocks_of(self, state: impl Fn(u32) -> BlockState) -> Vec<Run> {
            let run =
                |b| Run { count: 1, state: state(b), version: Version::ZERO, generation: Generation::FIRST };
            (self.first..self.end()).map(run).collect()
        }
    }

    /// A branch of one chunk of four sections; writes reach the replica when they are acknowledged, or before.
    #[derive(Clone, Debug)]
    enum Step {
        Write(u32, u32),
        Acknowledge,
        Read(u32),
        Answer(bool),
        Wait,
    }
    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let block = || (0u32..4, 0u32..40).prop_map(|(s, b)| s * BLOCKS + b * 7);
        let step = prop_oneof![
            3 => (block(), 1u32..40).prop_map(|(b, n)| Step::Write(b, n)),
            2 => Just(Step::Acknowledge),
            4 => block().prop_map(Step::Read),
            4 => any::<bool>().prop_map(Step::Answer),
            1 => Just(Step::Wait),
        ];
        proptest::collection::vec(step, 1..120)
    }

    proptest! {
        #[test]
        fn presence_is_exact(steps in steps(), most in 1usize..5) {
            let mut p = Presence { most, ..Presence::default() };
            let mut now = Time(1);
            // what the replica has, what is on its way to it, and what it was asked, in the order of its link
            let mut has: BTreeSet<u32> = BTreeSet::new();
            let mut flying: Vec<BlockRange> = vec![];
            let mut asked: Vec<(At, Vec<Run>)> = vec![];
            for step in steps {
                match step {
                    Step::Write(first, count) => {
                        let range = BlockRange::new(first, count);
                        p.wrote(0, range);
                        flying.push(range);
                    }
                    Step::Acknowledge => {
                        has.extend(flying.drain(..).flat_map(|r| r.first..r.end()));
                    }
                    Step::Read(block) => {
                        let at = At::of(0, block);
                        let (own, _) = p.wanted(at, now);
                        if own {
                            p.own_asked(at, flying.iter().copied());
                            asked.push((at, runs(&has, at)));
                        }
                    }
                    Step::Answer(lost) => {
                        if let Some((at, runs)) = asked.pop() {
                            if lost {
                                p.own_lost(at, now);
                            } else {
                                p.own_answered(at, &runs);
                            }
                        }
                    }
                    Step::Wait => now = now + AGAIN,
                }
                prop_assert!(p.sections.len() <= most.max(QUESTIONS + 1));
                prop_assert_eq!(p.sections.len(), p.order.len());
                prop_assert_eq!(p.questions, asked.len());
                let sent: BTreeSet<u32> =
                    has.iter().copied().chain(flying.iter().flat_map(|r| r.first..r.end())).collect();
                let present: BTreeSet<u32> = sent.iter().map(|b| b / BLOCKS_PER_EXTENT).collect();
                for e in 0..4 * 256u32 {
                    let block = e * BLOCKS_PER_EXTENT;
                    let known = p.sections.get(&At::of(0, block)).is_some_and(|s| s.own == Known::Yes);
                    let is = present.contains(&e);
                    prop_assert!(p.has(0, block) || !is, "extent {} is there", e);
                    prop_assert!(!known || p.has(0, block) == is, "extent {} is not there", e);
                }
            }
        }
    }

    #[test]
    fn depths_are_those_of_the_nearest_level() {
        let at = At { chunk: 0, section: 1 };
        let first = at.range().first;
        let mut d = Depths::new(at);
        d.found(first + 3, 20, BlockState::Data);
        let next = d.next(3).expect("more is to be found");
        assert_eq!(next, BlockRange::new(first + 32, BLOCKS - 32));
        d.found(first, 40, BlockState::Zero);
        d.found(first + BLOCKS - 1, 1, BlockState::Bad);
        d.found(first + 60, 8, BlockState::Absent);
        let next = d.next(3).expect("more is to be found");
        assert_eq!(next, BlockRange::new(first + 48, BLOCKS - 64));
        assert_eq!(d.next(3), None, "there is no fourth level");
        let (_, nearest) = d.done();
        assert_eq!((nearest[..3].to_vec(), nearest[255]), (vec![0, 0, 1], 1));
        assert!(nearest[3..255].iter().all(|n| *n == NOWHERE));
    }

    #[test]
    fn levels_beyond_all_count_are_looked_for() {
        let mut d = Depths::new(At { chunk: 0, section: 0 });
        d.level = DEEPEST - 1;
        assert_eq!(d.next(1000), None);
        assert!(d.done().1.iter().all(|n| *n == DEEPEST), "never taken for nothing");
    }
}
