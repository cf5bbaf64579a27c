//! Schedules: `minute hour day month weekday`, as cron has them, or a word: hourly, daily, weekly, monthly, yearly.
//!
//! A field is `*`, a number, a range `1-5`, a list `1,3`, each with a step `*/15`, `0-30/10`; months and weekdays by their
//! English three letters too; 7 is Sunday as 0 is. As in cron: if both day fields are limited, either is enough.

use crate::calendar::{DAY, HOUR, LAST, MINUTE, Moment};
use serde::{Deserialize, Serialize};

/// A set of numbers below 64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Set(u64);
impl Set {
    fn has(self, n: u32) -> bool {
        self.0 >> n & 1 == 1
    }
}

/// When something is due, to the minute, in UTC. Kept and sent as its text.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Schedule {
    text: String,
    minutes: Set,
    hours: Set,
    days: Set,
    months: Set,
    weekdays: Set,
    /// Both day fields are limited: either is enough.
    either: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ScheduleError {
    #[error(
        "a schedule is one of hourly, daily, weekly, monthly, yearly, or five fields (minute hour day month weekday), \
         as in \"30 2 * * mon-fri\"; {0:?} has {1}"
    )]
    Fields(String, usize),
    #[error(
        "{part:?} is no {field}: a number from {least} to {most}, a range, a list, or *, with a step if wanted (*/5)"
    )]
    Part { field: &'static str, part: String, least: u32, most: u32 },
    #[error("{0:?} is never due: there is no such day")]
    Never(String),
}

struct Field {
    name: &'static str,
    least: u32,
    most: u32,
    /// Names of the numbers from `least` on.
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field { name: "minute", least: 0, most: 59, names: &[] },
    Field { name: "hour", least: 0, most: 23, names: &[] },
    Field { name: "day of the month", least: 1, most: 31, names: &[] },
    Field {
        name: "month",
        least: 1,
        most: 12,
        names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    },
    Field { name: "weekday", least: 0, most: 7, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] },
];

impl Field {
    fn number(&self, text: &str) -> Option<u32> {
        let named = self.names.iter().position(|n| n.eq_ignore_ascii_case(text));
        if let Some(i) = named {
            return Some(self.least + u32::try_from(i).ok()?);
        }
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let n: u32 = digits.then(|| text.parse().ok())??;
        (self.least..=self.most).contains(&n).then_some(n)
    }
    fn part(&self, text: &str) -> Option<u64> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, step.parse::<u32>().ok().filter(|s| *s > 0 && *s < 64)?),
            None => (text, 1),
        };
        let (from, to) = match (range, range.split_once('-')) {
            ("*", _) => (self.least, self.most - u32::from(self.name == "weekday")),
            (_, Some((a, b))) => (self.number(a)?, self.number(b)?),
            (_, None) => {
                let n = self.number(range)?;
                (n, if step > 1 { self.most } else { n })
            }
        };
        (from <= to).then(|| (from..=to).step_by(step as usize).fold(0, |set, n| set | 1 << n))
    }
    fn parse(&self, text: &str) -> Result<Set, ScheduleError> {
        text.split(',').try_fold(Set(0), |set, part| {
            let bits = self.part(part).ok_or_else(|| ScheduleError::Part {
                field: self.name,
                part: part.to_owned(),
                least: self.least,
                most: self.most,
            })?;
            Ok(Set(set.0 | bits))
        })
    }
}

impl Schedule {
    /// # Errors
    /// What part of the text cannot be, and what could.
    pub fn parse(text: &str) -> Result<Schedule, ScheduleError> {
        let fields = match text.trim().to_ascii_lowercase().as_str() {
            "hourly" => "0 * * * *",
            "daily" => "0 0 * * *",
            "weekly" => "0 0 * * 0",
            "monthly" => "0 0 1 * *",
            "yearly" => "0 0 1 1 *",
            _ => text,
        };
        let parts: Vec<&str> = fields.split_whitespace().collect();
        let &[minute, hour, day, month, weekday] = &parts[..] else {
            return Err(ScheduleError::Fields(text.to_owned(), parts.len()));
        };
        let weekdays = FIELDS[4].parse(weekday)?;
        let s = Schedule {
            text: text.trim().to_owned(),
            minutes: FIELDS[0].parse(minute)?,
            hours: FIELDS[1].parse(hour)?,
            days: FIELDS[2].parse(day)?,
            months: FIELDS[3].parse(month)?,
            weekdays: Set((weekdays.0 | weekdays.0 >> 7) & 0x7f),
            either: !day.starts_with('*') && !weekday.starts_with('*'),
        };
        // Days repeat after 400 years, and a day that is due at all is due within eight (29 February).
        if s.next_after(0).is_none() { Err(ScheduleError::Never(text.to_owned())) } else { Ok(s) }
    }
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    fn day_is_due(&self, m: Moment) -> bool {
        let (day, weekday) = (self.days.has(m.day), self.weekdays.has(m.weekday()));
        self.months.has(m.month) && if self.either { day || weekday } else { day && weekday }
    }

    /// The first time after `unix_ms` at which it is due, Unix ms.
    #[must_use]
    pub fn next_after(&self, unix_ms: u64) -> Option<u64> {
        let mut at = (unix_ms / MINUTE + 1) * MINUTE;
        let end = at.saturating_add(9 * 366 * DAY).min(LAST);
        while at <= end {
            let m = Moment::of(at);
            if !self.months.has(m.month) {
                let (year, month) = if m.month == 12 { (m.year + 1, 1) } else { (m.year, m.month + 1) };
                at = Moment { year, month, day: 1, hour: 0, minute: 0 }.unix_ms()?;
            } else if !self.day_is_due(m) {
                at = (at / DAY + 1) * DAY;
            } else if !self.hours.has(m.hour) {
                at = (at / HOUR + 1) * HOUR;
            } else if !self.minutes.has(m.minute) {
                at += MINUTE;
            } else {
                return Some(at);
            }
        }
        None
    }

    /// The last time up to `unix_ms` at which it was due.
    #[must_use]
    pub fn last_until(&self, unix_ms: u64) -> Option<u64> {
        let mut at = unix_ms.min(LAST) / MINUTE * MINUTE;
        let end = at.saturating_sub(9 * 366 * DAY);
        loop {
            let m = Moment::of(at);
            let before = if !self.months.has(m.month) {
                Moment { day: 1, hour: 0, minute: 0, ..m }.unix_ms()?
            } else if !self.day_is_due(m) {
                at / DAY * DAY
            } else if !self.hours.has(m.hour) {
                at / HOUR * HOUR
            } else if !self.minutes.has(m.minute) {
                at
            } else {
                return Some(at);
            };
            at = before.checked_sub(MINUTE)?;
            if at < end {
                return None;
            }
        }
    }
}

impl TryFrom<String> for Schedule {
    type Error = ScheduleError;
    fn try_from(text: String) -> Result<Schedule, ScheduleError> {
        Schedule::parse(&text)
    }
}
impl From<Schedule> for String {
    fn from(s: Schedule) -> String {
        s.text
    }
}

/// By how much a volume's run is later than its slot, ms: spread over `most_ms`, the same each time for the same
/// volume, so that a thousand volumes of one policy do not all begin at once.
#[must_use]
pub fn jitter(volume: u64, most_ms: u64) -> u64 {
    let mixed = volume.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0x94d0_49bb_1331_11eb);
    if most_ms == 0 { 0 } else { (mixed ^ mixed >> 32) % most_ms }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(year: u32, month: u32, day: u32, hour: u32, minute: u32) -> u64 {
        Moment { year, month, day, hour, minute }.unix_ms().unwrap()
    }
    fn next(text: &str, after: u64) -> Moment {
        Moment::of(Schedule::parse(text).unwrap().next_after(after).unwrap())
    }
    fn m(year: u32, month: u32, day: u32, hour: u32, minute: u32) -> Moment {
        Moment { year, month, day, hour, minute }
    }

    #[test]
    fn what_people_write() {
        let now = ms(2026, 11, 22, 10, 17); // a Sunday
        assert_eq!(next("hourly", now), m(2026, 11, 22, 11, 0));
        assert_eq!(next("daily", now), m(2026, 11, 23, 0, 0));
        assert_eq!(next("weekly", now), m(2026, 11, 29, 0, 0));
        assert_eq!(next("monthly", now), m(2026, 12, 1, 0, 0));
        assert_eq!(next("Yearly", now), m(2027, 1, 1, 0, 0));
        assert_eq!(next("*/15 * * * *", now), m(2026, 11, 22, 10, 30));
        assert_eq!(next("30 2 * * mon-fri", now), m(2026, 11, 23, 2, 30));
        assert_eq!(next("5/20 9-17/4 * * *", now), m(2026, 11, 22, 13, 5));
        assert_eq!(next("0 0 29 feb *", now), m(2028, 2, 29, 0, 0));
        assert_eq!(next("0 0 31 * *", ms(2026, 11, 30, 0, 0)), m(2026, 12, 31, 0, 0));
        assert_eq!(next("0 12 * * 7", now), m(2026, 11, 22, 12, 0));
        // Either day field: the 13th, and every Friday.
        assert_eq!(next("0 0 13 * fri", now), m(2026, 11, 27, 0, 0));
        assert_eq!(next("17 10 * * *", now), m(2026, 11, 23, 10, 17), "strictly after");
        assert_eq!(next("0 0 29 2 *", ms(2096, 3, 1, 0, 0)), m(2104, 2, 29, 0, 0), "2100 has none");
    }

    #[test]
    fn what_cannot_be() {
        for (text, word) in [
            ("", "has 0"),
            ("* * * *", "has 4"),
            ("60 * * * *", "minute"),
            ("* 24 * * *", "hour"),
            ("* * 0 * *", "day of the month"),
            ("* * * 13 *", "month"),
            ("* * * * 8", "weekday"),
            ("5-1 * * * *", "minute"),
            ("*/0 * * * *", "minute"),
            ("1,,2 * * * *", "minute"),
            ("+5 * * * *", "minute"),
            ("0 0 31 2 *", "never"),
            ("sometimes", "has 1"),
        ] {
            let error = Schedule::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }

    #[test]
    fn jitter_spreads_and_stays() {
        let all: std::collections::BTreeSet<u64> = (1..1000).map(|v| jitter(v, 600_000) / 60_000).collect();
        assert_eq!(all.len(), 10, "every minute gets some");
        assert_eq!(jitter(7, 600_000), jitter(7, 600_000));
        assert_eq!(jitter(7, 0), 0);
    }

    fn schedules() -> impl Strategy<Value = Schedule> {
        let minute =
            prop_oneof![Just("*".into()), Just("*/7".into()), (0..60u32).prop_map(|n| n.to_string())];
        let hour =
            prop_oneof![Just("*".into()), Just("1-5/2".into()), (0..24u32).prop_map(|n| n.to_string())];
        let day = prop_oneof![Just("*".into()), (1..32u32).prop_map(|n| n.to_string())];
        let month = prop_oneof![Just("*".into()), Just("2,7".into()), (1..13u32).prop_map(|n| n.to_string())];
        let weekday =
            prop_oneof![Just("*".into()), Just("mon-wed".into()), (0..8u32).prop_map(|n| n.to_string())];
        let parts: [BoxedStrategy<String>; 5] =
            [minute.boxed(), hour.boxed(), day.boxed(), month.boxed(), weekday.boxed()];
        parts.prop_filter_map("never due", |p| Schedule::parse(&p.join(" ")).ok())
    }

    proptest! {
        /// Minute by minute, over two days, by the definition.
        #[test]
        fn due_minutes_are_the_due_minutes(s in schedules(), day in 0..60_000u64) {
            let start = day * DAY;
            let due = |at: u64| {
                let m = Moment::of(at);
                s.day_is_due(m) && s.hours.has(m.hour) && s.minutes.has(m.minute)
            };
            let plain: Vec<u64> = (0..2 * 1440).map(|i| start + i * MINUTE).filter(|at| due(*at)).collect();
            let mut found = vec![];
            let mut at = start.saturating_sub(1);
            if start == 0 && due(0) {
                found.push(0);
            }
            while let Some(next) = s.next_after(at).filter(|n| *n < start + 2 * DAY) {
                found.push(next);
                at = next;
            }
            prop_assert_eq!(&found, &plain);
            if let Some(last) = plain.last() {
                prop_assert_eq!(s.last_until(start + 2 * DAY - 1), Some(*last));
            }
        }
        #[test]
        fn no_text_panics(text in "[-0-9*/, a-z]{0,24}") {
            let _ = Schedule::parse(&text);
        }
    }
}
