//! What a block holds: who wrote it, where and as which write, and a checksum over all of it.
//!
//! Layout (little-endian): 0 magic, 8 run, 16 offset in the volume, 24 sequence, 32 crc32c of the block with
//! this field zero, 36 zero, 40.. words that follow from all of these.

use proto::limits::BLOCK;

const MAGIC: [u8; 8] = *b"blkdload";
const HEAD: usize = 40;
const CRC: usize = 32;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stamp {
    /// Of one run of the generator; random.
    pub run: u64,
    /// Of this block, bytes.
    pub offset: u64,
    /// Of the write within its run, 1 and up.
    pub sequence: u64,
}

/// What a block turned out to hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    Zeroes,
    /// Whole, and meant for this place.
    Stamped(Stamp),
    /// Whole, but of another place.
    Misplaced(Stamp),
    /// Begins like a block of ours and is not whole.
    Torn,
    /// Nothing of ours.
    Foreign,
}

impl Stamp {
    /// Fills one block.
    pub fn fill(self, block: &mut [u8]) {
        assert!(block.len() == BLOCK, "a stamp fills a block");
        block[..8].copy_from_slice(&MAGIC);
        block[8..16].copy_from_slice(&self.run.to_le_bytes());
        block[16..24].copy_from_slice(&self.offset.to_le_bytes());
        block[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        block[CRC..HEAD].fill(0);
        let mut word = mix(self.run ^ mix(self.offset) ^ mix(self.sequence).rotate_left(32));
        for bytes in block[HEAD..].chunks_exact_mut(8) {
            word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ self.sequence;
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c::crc32c(block);
        block[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
    }
    /// Looks at one block that was read from `offset`.
    #[must_use]
    pub fn read(block: &[u8], offset: u64) -> Found {
        assert!(block.len() == BLOCK, "a stamp fills a block");
        if block[..8] != MAGIC {
            return if block.iter().all(|&b| b == 0) { Found::Zeroes } else { Found::Foreign };
        }
        let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"));
        let crc = crc32c::crc32c(&block[..CRC]);
        let crc = crc32c::crc32c_append(crc, &[0; HEAD - CRC]);
        let crc = crc32c::crc32c_append(crc, &block[HEAD..]);
        if block[CRC..CRC + 4] != crc.to_le_bytes() {
            return Found::Torn;
        }
        let stamp = Stamp { run: word(8), offset: word(16), sequence: word(24) };
        if stamp.offset == offset { Found::Stamped(stamp) } else { Found::Misplaced(stamp) }
    }
}

/// Spreads the bits of a number.
pub fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_back_and_every_changed_byte_is_noticed() {
        let stamp = Stamp { run: 7, offset: 40960, sequence: 99 };
        let mut block = vec![0xff; BLOCK];
        stamp.fill(&mut block);
        assert_eq!(Stamp::read(&block, 40960), Found::Stamped(stamp));
        assert_eq!(Stamp::read(&block, 0), Found::Misplaced(stamp));
        for at in 8..BLOCK {
            if (36..40).contains(&at) {
                continue; // not covered, not used
            }
            block[at] ^= 1;
            assert_eq!(Stamp::read(&block, 40960), Found::Torn, "byte {at}");
            block[at] ^= 1;
        }
    }

    #[test]
    fn halves_of_two_writes_are_torn() {
        let (mut a, mut b) = (vec![0; BLOCK], vec![0; BLOCK]);
        Stamp { run: 7, offset: 0, sequence: 1 }.fill(&mut a);
        Stamp { run: 7, offset: 0, sequence: 2 }.fill(&mut b);
        for sectors in 1..8 {
            let at = sectors * 512;
            assert_eq!(Stamp::read(&[&a[..at], &b[at..]].concat(), 0), Found::Torn);
        }
    }

    #[test]
    fn zeroes_and_strangers_are_told_apart() {
        assert_eq!(Stamp::read(&[0; BLOCK], 0), Found::Zeroes);
        assert_eq!(Stamp::read(&[1; BLOCK], 0), Found::Foreign);
    }
}
