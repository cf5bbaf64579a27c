//! Sets of bytes of a volume, as rising ranges that do not touch.

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Behind all that is there.
    ///
    /// # Panics
    /// If it is not.
    pub fn push(&mut self, offset: u64, len: u64) {
        match self.0.last_mut() {
            Some((at, had)) => {
                assert!(*at + *had <= offset, "ranges rise");
                if *at + *had == offset {
                    *had += len;
                } else {
                    self.0.push((offset, len));
                }
            }
            None => self.0.push((offset, len)),
        }
    }
    /// (offset, length).
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().copied()
    }
    pub fn bytes(&self) -> u64 {
        self.iter().map(|(_, len)| len).sum()
    }
    pub fn extend(&mut self, other: &Ranges) {
        other.iter().for_each(|(offset, len)| self.push(offset, len));
    }
    /// What is here and not there.
    pub fn without(&self, other: &Ranges) -> Ranges {
        let mut left = Ranges::default();
        let mut rest = &other.0[..];
        for (mut at, len) in self.iter() {
            let end = at + len;
            while let Some(((o, n), more)) = rest.split_first() {
                if *o >= end {
                    break;
                }
                if *o > at {
                    left.push(at, o - at);
                }
                at = at.max(o + n);
                if o + n > end {
                    break;
                }
                rest = more;
            }
            if at < end {
                left.push(at, end - at);
            }
        }
        left
    }
    /// What is in both.
    pub fn and(&self, other: &Ranges) -> Ranges {
        self.without(&self.without(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(bits: &[bool]) -> Ranges {
        let mut r = Ranges::default();
        (0..).zip(bits).filter(|(_, b)| **b).for_each(|(i, _)| r.push(i, 1));
        r
    }
    fn bits(r: &Ranges) -> Vec<bool> {
        (0..24).map(|i| r.iter().any(|(at, len)| (at..at + len).contains(&i))).collect()
    }

    proptest! {
        #[test]
        fn they_are_sets(a in prop::collection::vec(any::<bool>(), 24), b in prop::collection::vec(any::<bool>(), 24)) {
            let (x, y) = (of(&a), of(&b));
            let zip = |f: fn(bool, bool) -> bool| -> Vec<bool> {
                a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect()
            };
            prop_assert_eq!(bits(&x.without(&y)), zip(|a, b| a && !b));
            prop_assert_eq!(bits(&x.and(&y)), zip(|a, b| a && b));
            prop_assert_eq!(x.bytes(), a.iter().filter(|a| **a).count() as u64);
            // as few as possible
            prop_assert!(x.0.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0));
        }
    }
}
