//! Sizes as they are typed: `10G`, `10GiB`, `10Gi` are binary, `10GB` is decimal.

/// Bytes, and whether a decimal unit was used (then the exact number is shown).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    pub bytes: u64,
    pub decimal: bool,
}

const LETTERS: &str = "KMGTP";

impl std::str::FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Size, String> {
        let refused =
            || format!("\"{text}\" is no size: write 10G, 10GiB (both binary), 10GB (decimal) or bytes");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| refused())?;
        let unit = text[digits..].trim_start();
        let (decimal, factor) = match unit {
            "" | "B" => (false, 1_u64),
            _ => {
                let letter = unit.chars().next().map(|c| c.to_ascii_uppercase()).ok_or_else(refused)?;
                let power = LETTERS.find(letter).ok_or_else(refused)? + 1;
                let power = u32::try_from(power).expect("five letters");
                match &unit[1..] {
                    "" | "i" | "iB" => (false, 1024_u64.pow(power)),
                    "B" => (true, 1000_u64.pow(power)),
                    _ => return Err(refused()),
                }
            }
        };
        let bytes =
            number.checked_mul(factor).ok_or_else(|| format!("\"{text}\" is more than 2^64 bytes"))?;
        Ok(Size { bytes, decimal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_and_decimal_units_are_told_apart() {
        for (text, bytes, decimal) in [
            ("4096", 4096, false),
            ("10G", 10 << 30, false),
            ("10GiB", 10 << 30, false),
            ("10Gi", 10 << 30, false),
            ("10g", 10 << 30, false),
            ("10GB", 10_000_000_000, true),
            ("1 MiB", 1 << 20, false),
        ] {
            assert_eq!(text.parse(), Ok(Size { bytes, decimal }), "{text}");
        }
        for text in ["", "G", "10X", "10Gb", "-1", "1.5G", "99999999999999P"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
