//! The sum of a block: what integrity is checked by, and what resync compares.
//!
//! It is not a CRC (decision 0006). A CRC is linear: two blocks that differ only in a part that carries its own CRC of the
//! same polynomial behind it (file systems' metadata, databases' pages, fio's verify headers) have *equal* CRCs, always.
//! Here every 16 bytes are multiplied into one of eight lanes, 64 x 64 to 128 bits, high half folded onto the low one.
//! The function is part of the disk format and of the protocol: it never changes.

use crate::limits::BLOCK;
use serde::{Deserialize, Serialize};

/// Sum of one block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Sum(pub u32);

const LANES: usize = 8;
/// Bytes that all lanes take in one turn.
const TURN: usize = LANES * 16;
const _: () = assert!(BLOCK.is_multiple_of(TURN));

/// Digits of the fractional part of pi: for the lanes, and for the end.
const KEYS: [u64; LANES] = [
    0x243f_6a88_85a3_08d3,
    0x1319_8a2e_0370_7344,
    0xa409_3822_299f_31d0,
    0x082e_fa98_ec4e_6c89,
    0x4528_21e6_38d0_1377,
    0xbe54_66cf_34e9_0c6c,
    0xc0ac_29b7_c97c_50dd,
    0x3f84_d5b5_b547_0917,
];
const END: u64 = 0x9216_d5d9_8979_fb1b;

/// The product's two halves, one upon the other.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let wide = (u128::from(a) * u128::from(b)).to_le_bytes();
    let half = |at: usize| u64::from_le_bytes(wide[at..at + 8].try_into().expect("eight bytes"));
    half(0) ^ half(8)
}

impl Sum {
    #[must_use]
    pub fn of(block: &[u8]) -> Sum {
        debug_assert_eq!(block.len(), BLOCK);
        let word = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
        // Not the keys themselves: a pair's words would be interchangeable in the first turn.
        let mut lanes = KEYS.map(|k| k.rotate_left(29) ^ END);
        for turn in block.chunks_exact(TURN) {
            for (i, lane) in lanes.iter_mut().enumerate() {
                let pair = &turn[16 * i..16 * i + 16];
                *lane = fold(word(&pair[..8]) ^ KEYS[i], word(&pair[8..]) ^ *lane);
            }
        }
        let all = lanes.iter().fold(END, |h, lane| fold(h ^ lane, END).rotate_left(23) ^ lane);
        let end = fold(all ^ KEYS[0], END).to_le_bytes();
        Sum(u32::from_le_bytes([end[0] ^ end[4], end[1] ^ end[5], end[2] ^ end[6], end[3] ^ end[7]]))
    }
}

impl std::fmt::Debug for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A block as file systems, databases and fio write them: a head that ends with its own CRC-32C, and a body.
    fn with_own_crc(count: u64) -> Vec<u8> {
        let mut block = vec![0x5a; BLOCK];
        block[..8].copy_from_slice(&count.to_le_bytes());
        let crc = crc32c::crc32c(&block[..44]);
        block[44..48].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Found by fio: a replica that came back kept old blocks, for their CRCs were those of the new ones.
    #[test]
    fn blocks_that_carry_their_own_crc_have_different_sums() {
        let crcs: BTreeSet<u32> = (0..1000).map(|n| crc32c::crc32c(&with_own_crc(n))).collect();
        assert_eq!(crcs.len(), 1, "a CRC cannot tell them apart");
        let sums: BTreeSet<u32> = (0..1000).map(|n| Sum::of(&with_own_crc(n)).0).collect();
        assert_eq!(sums.len(), 1000);
    }

    #[test]
    fn the_function_is_what_stands_on_the_drives() {
        let counting: Vec<u8> = (0..BLOCK).map(|i| u8::try_from(i % 251).expect("below 251")).collect();
        let sums = [Sum::of(&[0; BLOCK]), Sum::of(&[0xff; BLOCK]), Sum::of(&counting)];
        assert_eq!(sums, [Sum(0xdf15_4012), Sum(0x1d9c_f456), Sum(0x2612_2a4a)]);
    }

    #[test]
    fn every_changed_bit_and_every_two_swapped_words_change_the_sum() {
        for fill in [0u8, 0xff, 0x5a] {
            let mut block = vec![fill; BLOCK];
            let mut seen = BTreeSet::from([Sum::of(&block).0]);
            for bit in 0..BLOCK * 8 {
                block[bit / 8] ^= 1 << (bit % 8);
                seen.insert(Sum::of(&block).0);
                block[bit / 8] ^= 1 << (bit % 8);
            }
            // 32,769 values of 32 bits: a collision among all pairs is not unlikely by itself.
            assert!(seen.len() >= BLOCK * 8 - 2, "{}", seen.len());
        }
        let mut block: Vec<u8> = (0..512u64).flat_map(u64::to_le_bytes).collect();
        let whole = Sum::of(&block);
        for word in 1..512 {
            for i in 0..8 {
                block.swap(i, word * 8 + i);
            }
            assert_ne!(Sum::of(&block), whole, "{word}");
            for i in 0..8 {
                block.swap(i, word * 8 + i);
            }
        }
    }

    /// Half of the bits change, whichever bit is changed.
    #[test]
    fn a_changed_bit_changes_half_of_the_sum() {
        let mut block = vec![0; BLOCK];
        let whole = Sum::of(&block).0;
        let mut changed = [0u32; 32];
        for bit in 0..BLOCK * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            let differ = Sum::of(&block).0 ^ whole;
            (0..32).for_each(|i| changed[i] += differ >> i & 1);
            block[bit / 8] ^= 1 << (bit % 8);
        }
        let n = u32::try_from(BLOCK * 8).expect("32,768");
        assert!(changed.iter().all(|c| (n * 47 / 100..n * 53 / 100).contains(c)), "{changed:?}");
    }
}
