//! Collects the bytes of one header or option from however they arrive. Bounded by the caller.

#[derive(Default)]
pub(crate) struct Gather {
    have: Vec<u8>,
}

impl Gather {
    /// Moves bytes from the front of `input` until `need` are held. True when they are; then `take` them.
    pub fn fill(&mut self, need: usize, input: &mut &[u8]) -> bool {
        debug_assert!(self.have.len() <= need, "a header grew smaller while it was read");
        let n = (need - self.have.len()).min(input.len());
        self.have.extend_from_slice(&input[..n]);
        *input = &input[n..];
        self.have.len() == need
    }
    pub fn bytes(&self) -> &[u8] {
        &self.have
    }
    pub fn clear(&mut self) {
        self.have.clear();
    }
    /// The bytes themselves, leaving none.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.have)
    }
}

/// Drops up to `left` bytes from the front of `input`. True when none are left to drop.
pub(crate) fn discard(left: &mut u64, input: &mut &[u8]) -> bool {
    let n = usize::try_from(*left).map_or(input.len(), |l| l.min(input.len()));
    *input = &input[n..];
    *left -= n as u64;
    *left == 0
}
