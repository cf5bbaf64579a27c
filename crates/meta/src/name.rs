//! Names and sizes, as an operator may give them.

use crate::refusal::AdminRefusal;
use proto::limits::{
    CHUNK_SHIFT_MAX, CHUNK_SHIFT_MIN, COPIES_MAX, NAME_MAX, VOLUME_SIZE_MAX, VOLUME_SIZE_MIN,
    VOLUME_SIZE_STEP,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is wrong with a name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum NameFault {
    #[error("it is empty")]
    Empty,
    #[error("it is longer than 63 bytes")]
    TooLong,
    #[error("it has a character other than letters, digits, '-', '_' and '.'")]
    Character,
    #[error("it must begin and end with a letter or a digit")]
    Edge,
}

/// Letters, digits, `-`, `_`, `.`; first and last a letter or digit; 1 to 63 bytes.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_name(name: &str) -> Result<(), AdminRefusal> {
    let fault = if name.is_empty() {
        NameFault::Empty
    } else if name.len() > NAME_MAX {
        NameFault::TooLong
    } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        NameFault::Character
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !name.ends_with(|c: char| c.is_ascii_alphanumeric())
    {
        NameFault::Edge
    } else {
        return Ok(());
    };
    Err(AdminRefusal::BadName { name: name.chars().take(80).collect(), fault })
}

/// The nearest size that is possible.
#[must_use]
pub fn nearest_size(size: u64) -> u64 {
    let rest = size % VOLUME_SIZE_STEP;
    let down = size - rest;
    let near = if rest * 2 >= VOLUME_SIZE_STEP { down.saturating_add(VOLUME_SIZE_STEP) } else { down };
    near.clamp(VOLUME_SIZE_MIN, VOLUME_SIZE_MAX)
}

/// A multiple of 4 KiB, 1 MiB to 16 TiB.
///
/// # Errors
/// Names the nearest possible size.
pub fn check_size(size: u64) -> Result<(), AdminRefusal> {
    if size.is_multiple_of(VOLUME_SIZE_STEP) && (VOLUME_SIZE_MIN..=VOLUME_SIZE_MAX).contains(&size) {
        return Ok(());
    }
    Err(AdminRefusal::BadSize { size, nearest: nearest_size(size) })
}

/// # Errors
/// Names the range.
pub fn check_chunk_shift(shift: u8) -> Result<(), AdminRefusal> {
    if (CHUNK_SHIFT_MIN..=CHUNK_SHIFT_MAX).contains(&shift) {
        return Ok(());
    }
    Err(AdminRefusal::BadChunkSize { low: 1 << CHUNK_SHIFT_MIN, high: 1 << CHUNK_SHIFT_MAX })
}

/// Labels of one object.
pub const LABELS_MAX: usize = 32;
/// Bytes of a label's value.
pub const LABEL_MAX: usize = 255;

/// Few labels; keys as names are, values short and printable.
///
/// # Errors
/// Names the label.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), AdminRefusal> {
    let bad = |(key, value): &(&String, &String)| {
        check_name(key).is_err() || value.len() > LABEL_MAX || value.chars().any(char::is_control)
    };
    let too_many = || labels.iter().nth(LABELS_MAX);
    match labels.iter().find(bad).or_else(too_many) {
        Some((key, _)) => Err(AdminRefusal::BadLabel { key: key.chars().take(80).collect() }),
        None => Ok(()),
    }
}

/// # Errors
/// Names the range.
pub fn check_copies(copies: u8, min_in_sync: u8) -> Result<(), AdminRefusal> {
    if !(1..=COPIES_MAX).contains(&copies) {
        return Err(AdminRefusal::BadCopies { copies: copies.into(), most: COPIES_MAX });
    }
    if !(1..=copies).contains(&min_in_sync) {
        return Err(AdminRefusal::BadMinInSync { min_in_sync: min_in_sync.into(), copies });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_refused_with_the_nearest() {
        for size in [1 << 20, (1 << 20) + 4096, 16 << 40] {
            assert_eq!(check_size(size), Ok(()));
        }
        for (size, nearest) in [
            (0, 1 << 20),
            (4096, 1 << 20),
            ((1 << 20) + 1, 1 << 20),
            ((1 << 20) + 2048, (1 << 20) + 4096),
            ((16 << 40) + 4096, 16 << 40),
            (u64::MAX, 16 << 40),
        ] {
            assert_eq!(check_size(size), Err(AdminRefusal::BadSize { size, nearest }));
        }
    }

    #[test]
    fn names_are_refused_with_the_fault() {
        for good in ["v", "vol-1", "a.b_c", "7", &"x".repeat(63)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for (bad, fault) in [
            ("", NameFault::Empty),
            (&"x".repeat(64) as &str, NameFault::TooLong),
            ("a b", NameFault::Character),
            ("a@s", NameFault::Character),
            ("a/b", NameFault::Character),
            ("\u{e9}", NameFault::Character),
            ("-a", NameFault::Edge),
            ("a.", NameFault::Edge),
            ("..", NameFault::Edge),
        ] {
            assert_eq!(check_name(bad), Err(AdminRefusal::BadName { name: bad.to_owned(), fault }));
        }
    }

    #[test]
    fn copies_and_min_in_sync_have_ranges() {
        assert_eq!(check_copies(3, 2), Ok(()));
        assert_eq!(check_copies(1, 1), Ok(()));
        assert_eq!(check_copies(0, 0), Err(AdminRefusal::BadCopies { copies: 0, most: 5 }));
        assert_eq!(check_copies(6, 2), Err(AdminRefusal::BadCopies { copies: 6, most: 5 }));
        assert_eq!(check_copies(2, 3), Err(AdminRefusal::BadMinInSync { min_in_sync: 3, copies: 2 }));
        assert!(
            check_chunk_shift(28).is_ok() && check_chunk_shift(23).is_err() && check_chunk_shift(33).is_err()
        );
    }
}
