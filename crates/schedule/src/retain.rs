//! Retention: which snapshots of a series are kept, by the words that Proxmox uses for its backups.
//!
//! `last` keeps the newest so many. `hourly` keeps the newest of each of so many hours, newest hours first; then `daily`,
//! `weekly` (from Monday), `monthly`, `yearly` in the same way. A period of which something is kept already by an earlier
//! word is passed over, so that each word reaches further back.

use crate::calendar::{DAY, HOUR, Moment};
use crate::cron::Schedule;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// How many of each; all zero: everything is kept.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Retention {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
}

type Period = fn(u64) -> u64;

impl Retention {
    #[must_use]
    pub fn keeps_all(&self) -> bool {
        *self == Retention::default()
    }
    fn words(&self) -> [(u32, Period); 6] {
        let day = |ms| ms / DAY;
        // 1970-01-01 was a Thursday: three days after a Monday.
        let week = |ms| (ms / DAY + 3) / 7;
        let month = |ms| u64::from(Moment::of(ms).year) * 12 + u64::from(Moment::of(ms).month);
        [
            (self.last, |ms| ms),
            (self.hourly, |ms| ms / HOUR),
            (self.daily, day),
            (self.weekly, week),
            (self.monthly, month),
            (self.yearly, |ms| u64::from(Moment::of(ms).year)),
        ]
    }

    /// Of a series (times of creation, Unix ms, in any order; equal times count as one each) the places of those that are
    /// kept.
    #[must_use]
    pub fn kept(&self, created_ms: &[u64]) -> BTreeSet<usize> {
        if self.keeps_all() {
            return (0..created_ms.len()).collect();
        }
        let mut newest: Vec<usize> = (0..created_ms.len()).collect();
        newest.sort_by_key(|i| std::cmp::Reverse((created_ms[*i], *i)));
        let mut kept = BTreeSet::new();
        kept.extend(newest.iter().take(self.last as usize).copied());
        for (count, period) in self.words().into_iter().skip(1) {
            let covered: BTreeSet<u64> = kept.iter().map(|i| period(created_ms[*i])).collect();
            let mut taken = BTreeSet::new();
            for i in &newest {
                let id = period(created_ms[*i]);
                if taken.len() < count as usize && !covered.contains(&id) && taken.insert(id) {
                    kept.insert(*i);
                }
            }
        }
        kept
    }
}

/// More than this many are never asked for at once.
const LOOKS: usize = 100_000;

/// How many snapshots a volume has at most under a policy, after it has run for ever: what a quota must allow. `None`: there is
/// no end to them. `from_ms`: any time; the year that follows is looked at, at its fullest.
#[must_use]
pub fn most_kept(schedules: &[Schedule], retention: &Retention, from_ms: u64) -> Option<u64> {
    if schedules.is_empty() {
        return Some(0);
    }
    if retention.keeps_all() {
        return None;
    }
    // Besides those that are kept there is the one just made: it is made before another goes.
    let last = |until: u64| schedules.iter().filter_map(|s| s.last_until(until)).max();
    let looks = (0..53).filter_map(|week| last(from_ms + week * 7 * DAY));
    looks.map(|now| steady(&last, retention, now) + 1).max()
}

/// How many are kept just after `now`, if there was a snapshot at every slot since ever.
fn steady(last: &impl Fn(u64) -> Option<u64>, retention: &Retention, now: u64) -> u64 {
    let mut kept = BTreeSet::new();
    for (i, (count, period)) in retention.words().into_iter().enumerate() {
        let covered: BTreeSet<u64> =
            kept.iter().map(|t| if i == 0 { u64::MAX } else { period(*t) }).collect();
        let mut left = count;
        let mut at = Some(now);
        for _ in 0..LOOKS {
            let Some(t) = at.filter(|_| left > 0) else { break };
            if !covered.contains(&period(t)) {
                kept.insert(t);
                left -= 1;
            }
            // The newest slot of the period before.
            at = last(begin_of(period, t).saturating_sub(1)).filter(|before| *before < t);
        }
    }
    kept.len() as u64
}

/// The first moment of the period that `t` lies in.
fn begin_of(period: Period, t: u64) -> u64 {
    let id = period(t);
    let (mut low, mut high) = (0, t);
    while low < high {
        let middle = low.midpoint(high);
        if period(middle) < id { low = middle + 1 } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(month: u32, day: u32, hour: u32) -> u64 {
        Moment { year: 2026, month, day, hour, minute: 0 }.unix_ms().unwrap()
    }
    fn kept(r: Retention, times: &[u64]) -> Vec<u64> {
        r.kept(times).into_iter().map(|i| times[i]).collect()
    }

    #[test]
    fn each_word_reaches_further_back() {
        let mut times: Vec<u64> = (1..=30).flat_map(|day| [at(6, day, 1), at(6, day, 13)]).collect();
        times.extend((1..=31).map(|day| at(5, day, 1)));
        let r = Retention { last: 2, daily: 3, weekly: 2, monthly: 2, ..Retention::default() };
        let mut expected = vec![
            at(6, 30, 13),
            at(6, 30, 1), // last
            at(6, 29, 13),
            at(6, 28, 13),
            at(6, 27, 13), // daily: the 30th is covered
            at(6, 21, 13),
            at(6, 14, 13), // weekly: the weeks of the 29th and of the 22nd to 28th are covered
            at(5, 31, 1),  // monthly: June is covered, and there is no other month
        ];
        expected.sort_unstable();
        let mut found = kept(r, &times);
        found.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn nothing_asked_keeps_everything() {
        assert_eq!(kept(Retention::default(), &[5, 5, 1]).len(), 3);
        assert_eq!(kept(Retention { last: 2, ..Retention::default() }, &[5, 9, 5]), [9, 5]);
    }

    #[test]
    fn a_week_begins_on_monday() {
        let (sunday, monday) = (at(11, 22, 12), at(11, 23, 12));
        let r = Retention { weekly: 5, ..Retention::default() };
        assert_eq!(kept(r, &[at(11, 17, 0), sunday, monday]), [sunday, monday]);
    }

    #[test]
    fn what_a_quota_must_allow() {
        let s = |t: &str| Schedule::parse(t).unwrap();
        let keep =
            |last, hourly, daily, weekly| Retention { last, hourly, daily, weekly, ..Retention::default() };
        let most = |schedules: &[Schedule], r| most_kept(schedules, &r, at(3, 1, 7));
        assert_eq!(most(&[s("daily")], keep(0, 0, 7, 0)), Some(8), "seven, and the one just made");
        assert_eq!(most(&[s("hourly")], keep(0, 24, 7, 0)), Some(24 + 7 + 1));
        assert_eq!(
            most(&[s("weekly")], keep(0, 0, 7, 4)),
            Some(7 + 4 + 1),
            "a day without a snapshot counts for nothing"
        );
        assert_eq!(most(&[s("daily"), s("0 12 * * *")], keep(10, 0, 0, 0)), Some(11));
        assert_eq!(most(&[s("daily")], Retention::default()), None);
        assert_eq!(most(&[], keep(5, 0, 0, 0)), Some(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// `most_kept` against a policy that runs: make one at each slot, then drop what is not kept.
        #[test]
        fn a_policy_that_runs_never_has_more(
            which in 0..5usize, counts in prop::array::uniform4(0..5u32), start in 0..300u64,
        ) {
            let s = Schedule::parse(["daily", "0 */6 * * *", "0 3 * * mon,thu", "weekly", "monthly"][which]).unwrap();
            let r = Retention { last: counts[0], hourly: 0, daily: counts[1], weekly: counts[2], monthly: counts[3], yearly: 0 };
            prop_assume!(!r.keeps_all());
            let from = at(1, 1, 0) + start * DAY;
            let bound = most_kept(std::slice::from_ref(&s), &r, from + 1000 * DAY).unwrap();
            let (mut have, mut most, mut now) = (Vec::new(), 0, from);
            while let Some(t) = s.next_after(now).filter(|t| *t < from + 400 * DAY) {
                now = t;
                have.push(t);
                most = most.max(have.len() as u64);
                have = kept(r, &have);
            }
            prop_assert!(most <= bound, "{most} > {bound}");
            prop_assert!(most + 2 >= bound, "{most} is far from {bound}");
        }
    }
}
