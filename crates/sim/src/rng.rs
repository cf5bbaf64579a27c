//! Chance: all of it comes from the seed.

/// splitmix64: quick, repeatable, and good enough to choose faults with.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    #[must_use]
    pub fn new(seed: u64) -> Rng {
        let mut r = Rng(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9_7f4a_7c15);
        r.next();
        r
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A generator of its own, so that one part's draws do not shift another's.
    #[must_use]
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.next())
    }
    /// 0 .. n; n > 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    /// low ..= high
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a usize")
    }
    /// True with a chance of `n` in a thousand.
    pub fn permille(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }
    /// Mostly near `mean`, sometimes far above: waiting times.
    pub fn around(&mut self, mean: u64) -> u64 {
        match self.below(16) {
            0 => self.within(0, mean * 8),
            1..=3 => self.within(0, mean * 3),
            _ => self.within(mean / 2, mean + mean / 2),
        }
    }
}
