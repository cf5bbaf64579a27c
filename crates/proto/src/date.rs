//! Dates as people write them, in UTC, against Unix milliseconds. No leap seconds, as in Unix time.

const MS_PER_DAY: u64 = 86_400_000;
/// Days from 0000-03-01 to 1970-01-01, in the calendar of today carried backwards.
const TO_1970: i64 = 719_468;
/// Days of 400 years, after which the calendar repeats.
const ERA: i64 = 146_097;

/// Days since 1970-01-01. Years begin in March, so that a leap day is the last one of its year.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * ERA + of_era * 365 + of_era / 4 - of_era / 100 + of_year - TO_1970
}

/// Year, month, day.
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + TO_1970;
    let era = days.div_euclid(ERA);
    let d = days.rem_euclid(ERA);
    let of_era = (d - d / 1460 + d / 36_524 - d / 146_096) / 365;
    let of_year = d - (365 * of_era + of_era / 4 - of_era / 100);
    let m = (5 * of_year + 2) / 153;
    let month = (m + 2) % 12 + 1;
    let year = era * 400 + of_era + i64::from(month <= 2);
    (year, month, of_year - (153 * m + 2) / 5 + 1)
}

/// `2026-11-22T03:04:05Z`; the time is left out at midnight.
#[must_use]
pub fn show_date(ms: u64) -> String {
    let days = i64::try_from(ms / MS_PER_DAY).expect("64 bits of ms are fewer days");
    let (year, month, day) = date_of(days);
    let s = ms % MS_PER_DAY / 1000;
    if s == 0 {
        return format!("{year:04}-{month:02}-{day:02}");
    }
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

/// `2026-11-22`, `2026-11-22T03:04Z`, `2026-11-22 03:04:05` (UTC); from 1970 on.
#[must_use]
pub fn parse_date(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00"));
    let [year, month, day] = numbers(date, '-')?[..] else { return None };
    let (hour, minute, second) = match numbers(time, ':')?[..] {
        [h, m] => (h, m, 0),
        [h, m, s] => (h, m, s),
        _ => return None,
    };
    let days = days_of(year, month, day);
    let exists = (1970..=9999).contains(&year) && date_of(days) == (year, month, day);
    if !exists || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    Some(u64::try_from(seconds).ok()? * 1000)
}

fn numbers(text: &str, between: char) -> Option<Vec<i64>> {
    let plain = |p: &str| {
        (!p.is_empty() && p.len() <= 4 && p.bytes().all(|b| b.is_ascii_digit())).then(|| p.parse().ok())?
    };
    text.split(between).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_and_shown() {
        for (text, ms) in [
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400_000),
            ("2026-11-22T03:04:05Z", 1_795_316_645_000),
            ("2100-03-01", 4_107_542_400_000),
        ] {
            assert_eq!(parse_date(text), Some(ms), "{text}");
            assert_eq!(show_date(ms), text);
        }
        assert_eq!(parse_date("2026-11-22 03:04"), Some(1_795_316_640_000));
        for bad in [
            "",
            "2026",
            "2026-13-01",
            "2026-02-29",
            "2100-02-29",
            "1969-12-31",
            "2026-11-22T24:00",
            "2026-11-+2",
            "10000-01-01",
        ] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_day_of_four_hundred_years_comes_back() {
        for day in 0..150_000 {
            let (y, m, d) = date_of(day);
            assert_eq!(days_of(y, m, d), day);
        }
    }
}
