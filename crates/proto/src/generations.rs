//! A set of generations, as ranges: a volume of a thousand snapshots is a few numbers on the wire.
//!
//! Invariant: ranges are not empty, ascend, and do not touch; none holds generation 0. What comes from outside
//! is a set only if it keeps to that, so two equal sets have equal bytes.

use crate::ids::Generation;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// Ranges, and generations, that a set from outside may have: bounds the memory and the time of those who walk it.
pub const RANGES_MAX: usize = 1 << 16;
pub const COUNT_MAX: u64 = 1 << 16;

#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize)]
pub struct Generations(Vec<(Generation, Generation)>);

impl Generations {
    #[must_use]
    pub const fn new() -> Generations {
        Generations(Vec::new())
    }
    /// The set of these ranges (both ends included), or `None` if they break the invariant.
    #[must_use]
    pub fn of_ranges(ranges: Vec<(Generation, Generation)>) -> Option<Generations> {
        let sound = ranges.iter().all(|(a, b)| a.0 > 0 && a <= b);
        let apart = ranges.is_sorted_by(|a, b| a.1.0.checked_add(1).is_some_and(|next| next < b.0.0));
        (sound && apart && ranges.len() <= RANGES_MAX).then_some(Generations(ranges))
    }
    /// Ranges, ascending, both ends included.
    #[must_use]
    pub fn ranges(&self) -> &[(Generation, Generation)] {
        &self.0
    }
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// How many generations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(a, b)| u64::from(b.0 - a.0) + 1).sum()
    }
    #[must_use]
    pub fn contains(&self, g: Generation) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < g);
        self.0.get(at).is_some_and(|(first, _)| *first <= g)
    }
    pub fn insert(&mut self, g: Generation) {
        assert!(g.0 > 0, "0 is no generation");
        let at = self.0.partition_point(|(_, last)| *last < g);
        if self.0.get(at).is_some_and(|(first, _)| *first <= g) {
            return;
        }
        let joins_before = at > 0 && self.0[at - 1].1.0 + 1 == g.0;
        let joins_after = self.0.get(at).is_some_and(|(first, _)| first.0 - 1 == g.0);
        match (joins_before, joins_after) {
            (true, true) => {
                self.0[at - 1].1 = self.0[at].1;
                self.0.remove(at);
            }
            (true, false) => self.0[at - 1].1 = g,
            (false, true) => self.0[at].0 = g,
            (false, false) => self.0.insert(at, (g, g)),
        }
    }
    pub fn remove(&mut self, g: Generation) {
        let at = self.0.partition_point(|(_, last)| *last < g);
        let Some((first, last)) = self.0.get(at).copied().filter(|(first, _)| *first <= g) else { return };
        let below = (first < g).then(|| (first, Generation(g.0 - 1)));
        let above = (g < last).then(|| (Generation(g.0 + 1), last));
        self.0.splice(at..=at, below.into_iter().chain(above));
    }
    /// One by one, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Generation> + '_ {
        self.0.iter().flat_map(|(a, b)| (a.0..=b.0).map(Generation))
    }
    /// The least one that is at least `g`: the view that a block of generation `g` is first seen in.
    #[must_use]
    pub fn at_or_above(&self, g: Generation) -> Option<Generation> {
        let at = self.0.partition_point(|(_, last)| *last < g);
        self.0.get(at).map(|(first, _)| (*first).max(g))
    }
    /// The greatest one below `g`: the view before.
    #[must_use]
    pub fn before(&self, g: Generation) -> Option<Generation> {
        let at = self.0.partition_point(|(first, _)| *first < g);
        let (_, last) = self.0.get(at.checked_sub(1)?)?;
        Some((*last).min(Generation(g.0 - 1)))
    }
    #[must_use]
    pub fn last(&self) -> Option<Generation> {
        self.0.last().map(|(_, last)| *last)
    }
    /// Those below `g`.
    #[must_use]
    pub fn below(&self, g: Generation) -> Generations {
        let cut = self.0.iter().take_while(|(first, _)| *first < g);
        Generations(
            cut.map(|(first, last)| (*first, (*last).min(Generation(g.0.saturating_sub(1))))).collect(),
        )
    }
}

impl FromIterator<Generation> for Generations {
    fn from_iter<T: IntoIterator<Item = Generation>>(all: T) -> Generations {
        let mut set = Generations::new();
        all.into_iter().for_each(|g| set.insert(g));
        set
    }
}

impl fmt::Debug for Generations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(a, b)| a.0..=b.0)).finish()
    }
}

impl<'de> Deserialize<'de> for Generations {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Generations, D::Error> {
        let ranges = Vec::deserialize(from)?;
        let set = Generations::of_ranges(ranges).filter(|set| set.count() <= COUNT_MAX);
        set.ok_or_else(|| serde::de::Error::custom("not a set of generations, or one that nobody has"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Every operation does what a plain set does, and the bytes come back.
        #[test]
        fn a_set_of_generations_is_a_set(steps in prop::collection::vec((1u32..40, any::<bool>()), 0..120), probe in 1u32..42) {
            let (mut set, mut plain) = (Generations::new(), BTreeSet::new());
            for (g, add) in steps {
                if add {
                    set.insert(Generation(g));
                    plain.insert(g);
                } else {
                    set.remove(Generation(g));
                    plain.remove(&g);
                }
                prop_assert!(Generations::of_ranges(set.0.clone()).is_some(), "{set:?}");
                prop_assert_eq!(set.iter().map(|g| g.0).collect::<BTreeSet<_>>(), plain.clone());
            }
            let p = Generation(probe);
            prop_assert_eq!(set.count(), plain.len() as u64);
            prop_assert_eq!(set.contains(p), plain.contains(&probe));
            prop_assert_eq!(set.at_or_above(p).map(|g| g.0), plain.range(probe..).next().copied());
            prop_assert_eq!(set.before(p).map(|g| g.0), plain.range(..probe).next_back().copied());
            prop_assert_eq!(set.last().map(|g| g.0), plain.last().copied());
            let below: Vec<u32> = plain.range(..probe).copied().collect();
            prop_assert_eq!(set.below(p).iter().map(|g| g.0).collect::<Vec<_>>(), below);
            let bytes = postcard::to_stdvec(&set).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Generations>(&bytes).unwrap(), set.clone());
            prop_assert_eq!(plain.into_iter().map(Generation).collect::<Generations>(), set);
        }
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for ranges in [
            vec![(1, u32::MAX - 1)],
            vec![(0u32, 1u32)],
            vec![(3, 2)],
            vec![(1, 2), (3, 4)],
            vec![(5, 6), (1, 2)],
            vec![(1, u32::MAX), (7, 8)],
        ] {
            let bytes = postcard::to_stdvec(&ranges).unwrap();
            assert!(postcard::from_bytes::<Generations>(&bytes).is_err(), "{ranges:?}");
        }
    }
}
