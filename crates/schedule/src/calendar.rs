//! Calendar time from Unix time, in UTC: no leap seconds, no zones, no daylight saving. Days are counted by the
//! proleptic Gregorian calendar: 146,097 in 400 years.

pub const MINUTE: u64 = 60_000;
pub const HOUR: u64 = 60 * MINUTE;
pub const DAY: u64 = 24 * HOUR;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: u64 = 719_468;
/// Days of 400 years.
const ERA: u64 = 146_097;
/// The end of the calendar: 9999-12-31T23:59. Later times count as this one.
pub const LAST: u64 = 253_402_300_740_000;

/// A minute.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment {
    pub year: u32,
    /// 1..=12
    pub month: u32,
    /// 1..=31
    pub day: u32,
    pub hour: u32,
    pub minute: u32,
}

impl Moment {
    #[must_use]
    pub fn of(unix_ms: u64) -> Moment {
        let ms = unix_ms.min(LAST);
        let (days, rest) = (ms / DAY + EPOCH, ms % DAY);
        let (era, day) = (days / ERA, days % ERA);
        // Years of the era begin in March, so that the odd day of a leap year is the last one.
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let of_year = day - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let of_month = of_year - (153 * month + 2) / 5;
        let (month, turn) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        Moment {
            year: small(era * 400 + year + turn),
            month: small(month),
            day: small(of_month + 1),
            hour: small(rest / HOUR),
            minute: small(rest % HOUR / MINUTE),
        }
    }
    /// Unix milliseconds of the minute's beginning; `None` before 1970, and for a date that does not exist.
    #[must_use]
    pub fn unix_ms(self) -> Option<u64> {
        if self.month == 0 || self.month > 12 || self.day == 0 || self.day > days_in(self.year, self.month) {
            return None;
        }
        if self.hour > 23 || self.minute > 59 || self.year > 9999 {
            return None;
        }
        let (month, day) = (u64::from(self.month), u64::from(self.day));
        let year = u64::from(self.year).checked_sub(u64::from(month <= 2))?;
        let (era, of_era) = (year / 400, year % 400);
        let month = if month > 2 { month - 3 } else { month + 9 };
        let of_year = (153 * month + 2) / 5 + day - 1;
        let days = era * ERA + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
        let days = days.checked_sub(EPOCH)?;
        Some(days * DAY + u64::from(self.hour) * HOUR + u64::from(self.minute) * MINUTE)
    }
    /// 0 is Sunday.
    #[must_use]
    pub fn weekday(self) -> u32 {
        // 1970-01-01 was a Thursday.
        self.unix_ms().map_or(0, |ms| small((ms / DAY + 4) % 7))
    }
}

/// Days of a month.
#[must_use]
pub fn days_in(year: u32, month: u32) -> u32 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 31,
    }
}

fn small(n: u64) -> u32 {
    u32::try_from(n).expect("years are below 10,000")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(year: u32, month: u32, day: u32, hour: u32, minute: u32) -> Moment {
        Moment { year, month, day, hour, minute }
    }

    #[test]
    fn known_days() {
        assert_eq!(Moment::of(0), at(1970, 1, 1, 0, 0));
        assert_eq!(Moment::of(1_709_210_096_000), at(2024, 2, 29, 12, 34));
        assert_eq!(Moment::of(4_107_542_399_999), at(2100, 2, 28, 23, 59));
        assert_eq!(Moment::of(4_107_542_400_000), at(2100, 3, 1, 0, 0));
        assert_eq!(Moment::of(u64::MAX), at(9999, 12, 31, 23, 59));
        assert_eq!(at(2024, 2, 29, 0, 0).weekday(), 4);
        assert_eq!(at(2026, 11, 22, 0, 0).weekday(), 0);
        for none in
            [at(2023, 2, 29, 0, 0), at(2024, 13, 1, 0, 0), at(2024, 4, 31, 0, 0), at(1969, 12, 31, 0, 0)]
        {
            assert_eq!(none.unix_ms(), None, "{none:?}");
        }
    }

    proptest! {
        #[test]
        fn there_and_back(minute in 0..=LAST / MINUTE) {
            let m = Moment::of(minute * MINUTE);
            prop_assert_eq!(m.unix_ms(), Some(minute * MINUTE));
            prop_assert!(m.day <= days_in(m.year, m.month));
        }
        #[test]
        fn tomorrow_is_the_day_after(day in 0..LAST / DAY - 1) {
            let (a, b) = (Moment::of(day * DAY), Moment::of((day + 1) * DAY));
            prop_assert_eq!((a.weekday() + 1) % 7, b.weekday());
            let next = if a.day < days_in(a.year, a.month) { (a.year, a.month, a.day + 1) }
                else if a.month < 12 { (a.year, a.month + 1, 1) } else { (a.year + 1, 1, 1) };
            prop_assert_eq!((b.year, b.month, b.day), next);
        }
    }
}
