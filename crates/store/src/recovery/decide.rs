//! The decisions of recovery, as data: a row for each case, the first that fits. Tested over all combinations.

/// What a row asks of a fact.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    Yes,
    No,
    Any,
}
use Want::{Any, No, Yes};

/// One row: facts wanted, and what to do.
pub struct Row<const N: usize, T: 'static> {
    pub when: [Want; N],
    pub then: T,
    /// Why: read by people, and by the tests.
    #[cfg_attr(not(test), expect(dead_code, reason = "for those who read the table"))]
    pub why: &'static str,
}

fn fits<const N: usize>(when: &[Want; N], facts: &[bool; N]) -> bool {
    when.iter().zip(facts).all(|(w, f)| *w == Any || (*w == Yes) == *f)
}

/// The row that fits the facts. The tables are complete and free of overlap (tested).
pub fn decide<const N: usize, T: Copy>(rows: &'static [Row<N, T>], facts: [bool; N]) -> T {
    rows.iter().find(|r| fits(&r.when, &facts)).expect("the table is complete").then
}

/// What to do with what lies where the next header should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chain {
    Take,
    /// The chain ends here.
    End,
    /// What is missing was flushed.
    Lost,
}
/// Facts: it is an intact header of this drive; it has the number and place that are due; it carries the checksum
/// of the one before; its open number may stand here; we understand its entries; its number was flushed.
pub const CHAIN: &[Row<6, Chain>] = &[
    Row { when: [Yes, Yes, Yes, Yes, Yes, Any], then: Chain::Take, why: "the next link" },
    Row { when: [Yes, Yes, Yes, Yes, No, Any], then: Chain::Lost, why: "whole, and not ours to skip" },
    Row { when: [No, Any, Any, Any, Any, No], then: Chain::End, why: "never written, or torn" },
    Row { when: [No, Any, Any, Any, Any, Yes], then: Chain::Lost, why: "it was flushed" },
    Row { when: [Yes, No, Any, Any, Any, No], then: Chain::End, why: "of an earlier lap" },
    Row { when: [Yes, No, Any, Any, Any, Yes], then: Chain::Lost, why: "it was flushed" },
    Row { when: [Yes, Yes, No, Any, Any, No], then: Chain::End, why: "behind a hole" },
    Row { when: [Yes, Yes, No, Any, Any, Yes], then: Chain::Lost, why: "it was flushed" },
    Row { when: [Yes, Yes, Yes, No, Any, No], then: Chain::End, why: "of before the last opening's end" },
    Row { when: [Yes, Yes, Yes, No, Any, Yes], then: Chain::Lost, why: "it was flushed" },
];

/// What to do with a batch of the chain, by its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    Take,
    /// The chain ends before it.
    Cut,
    /// Replayed, whatever its payload is: blocks that do not match are bad, to be repaired.
    TakeUnseen,
}
/// Facts: all payload has been read and matches its checksums; the batch was recorded as flushed.
pub const BODY: &[Row<2, Body>] = &[
    Row { when: [Yes, Any], then: Body::Take, why: "whole" },
    Row { when: [No, No], then: Body::Cut, why: "torn: never acknowledged as flushed" },
    Row { when: [No, Yes], then: Body::TakeUnseen, why: "never drop what was flushed" },
];

/// What to do with the entry of a large write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Large {
    Replay,
    /// An earlier opening dropped it.
    Skip,
    /// Its data did not survive: dropped, and recorded as such.
    Drop,
}
/// Facts: an earlier opening dropped it; the table page includes it; it was recorded as flushed; each block that no
/// newer entry covers matches its checksum.
pub const LARGE: &[Row<4, Large>] = &[
    Row { when: [Yes, Any, Any, Any], then: Large::Skip, why: "its extent may be another's by now" },
    Row { when: [No, Yes, Any, Any], then: Large::Replay, why: "pages speak only of what is flushed" },
    Row { when: [No, No, Yes, Any], then: Large::Replay, why: "flushed: a mismatch is a bad block" },
    Row { when: [No, No, No, Yes], then: Large::Replay, why: "its data is there" },
    Row { when: [No, No, No, No], then: Large::Drop, why: "its data did not survive" },
];

/// Whether a drive's branches fall into doubt.
/// Facts: closed cleanly; the same boot; the drive has a volatile cache.
pub const DOUBT: &[Row<3, bool>] = &[
    Row { when: [Yes, Any, Any], then: false, why: "everything was flushed" },
    Row { when: [No, Yes, Any], then: false, why: "the drive's cache has lived through it" },
    Row { when: [No, No, No], then: false, why: "what completes is durable" },
    Row { when: [No, No, Yes], then: true, why: "what was acknowledged and not flushed may be lost" },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn all<const N: usize>() -> impl Iterator<Item = [bool; N]> {
        (0..1u32 << N).map(|bits| std::array::from_fn(|i| bits >> i & 1 == 1))
    }
    fn exactly_one_row_fits<const N: usize, T>(rows: &[Row<N, T>]) {
        for facts in all::<N>() {
            let n = rows.iter().filter(|r| fits(&r.when, &facts)).count();
            assert_eq!(n, 1, "{facts:?}");
        }
        assert!(rows.iter().all(|r| !r.why.is_empty()));
    }

    #[test]
    fn each_table_has_exactly_one_row_for_each_case() {
        exactly_one_row_fits(CHAIN);
        exactly_one_row_fits(BODY);
        exactly_one_row_fits(LARGE);
        exactly_one_row_fits(DOUBT);
    }

    #[test]
    fn nothing_flushed_is_ever_skipped_in_silence() {
        for f in all::<6>() {
            let good = f[..5].iter().all(|x| *x);
            let verdict = decide(CHAIN, f);
            assert_eq!(verdict == Chain::Take, good, "{f:?}");
            assert!(verdict != Chain::End || !f[5], "{f:?}");
        }
        for f in all::<2>() {
            assert!(decide(BODY, f) != Body::Cut || !f[1]);
        }
        for f in all::<4>() {
            assert!(decide(LARGE, f) != Large::Drop || !(f[1] || f[2] || f[3]));
        }
    }

    #[test]
    fn doubt_needs_a_cache_a_crash_and_another_boot() {
        let doubtful: Vec<[bool; 3]> = all::<3>().filter(|f| decide(DOUBT, *f)).collect();
        assert_eq!(doubtful, [[false, false, true]]);
    }
}
