//! Settings of the cluster: held in Raft, changed by `blockctl cluster config set`.

use crate::refusal::AdminRefusal;
use proto::Span;
use proto::limits::{DOWN_OUT_DEFAULT, HEARTBEAT, NODE_DEAD};
use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// A dead node's replicas are placed anew after so many milliseconds.
    pub down_out_ms: u64,
    /// A node is dead after so many milliseconds without a heartbeat.
    pub node_dead_ms: u64,
    /// A drive takes no new replicas when so many percent of it are used.
    pub full_percent: u64,
    /// Deleted volumes rest for so many milliseconds; 0: they are erased at once.
    pub trash_ms: u64,
}
impl Default for Settings {
    fn default() -> Settings {
        Settings {
            down_out_ms: DOWN_OUT_DEFAULT.as_millis(),
            node_dead_ms: NODE_DEAD.as_millis(),
            full_percent: 95,
            trash_ms: MS_PER_DAY,
        }
    }
}

/// One setting with its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Setting {
    DownOut(u64),
    NodeDead(u64),
    FullPercent(u64),
    Trash(u64),
}

const MS_PER_DAY: u64 = 86_400_000;
/// Key, smallest, largest (durations in ms), and whether it is a duration.
const TABLE: &[(&str, u64, u64, bool)] = &[
    ("down_out", 5_000, 30 * MS_PER_DAY, true),
    ("node_dead", 1_500, 60_000, true),
    ("full_percent", 50, 99, false),
    ("trash", 0, 90 * MS_PER_DAY, true),
];
// A node that misses one heartbeat is not dead.
const _: () = assert!(TABLE[1].1 >= 3 * HEARTBEAT.as_millis());

impl Setting {
    /// Reads `key = value` as an operator types it: durations as `500ms`, `20s`, `10m` (or `10min`), `1h`, `1d`.
    ///
    /// # Errors
    /// Unknown key, unreadable value, out of range: each names what is allowed.
    pub fn parse(key: &str, value: &str) -> Result<Setting, AdminRefusal> {
        let Some(&(name, low, high, duration)) = TABLE.iter().find(|t| t.0 == key) else {
            let known = TABLE.iter().map(|t| t.0.to_owned()).collect();
            return Err(AdminRefusal::UnknownSetting { key: key.to_owned(), known });
        };
        let number = if duration { parse_ms(value) } else { value.trim_end_matches('%').parse().ok() };
        let show = |n: u64| if duration { show_ms(n) } else { n.to_string() };
        let refused = || AdminRefusal::BadSetting {
            key: name.to_owned(),
            value: value.to_owned(),
            low: show(low),
            high: show(high),
        };
        let n = number.filter(|n| (low..=high).contains(n)).ok_or_else(refused)?;
        Ok(match name {
            "down_out" => Setting::DownOut(n),
            "node_dead" => Setting::NodeDead(n),
            "trash" => Setting::Trash(n),
            _ => Setting::FullPercent(n),
        })
    }

    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Setting::DownOut(_) => "down_out",
            Setting::NodeDead(_) => "node_dead",
            Setting::FullPercent(_) => "full_percent",
            Setting::Trash(_) => "trash",
        }
    }
    #[must_use]
    pub fn show(self) -> String {
        match self {
            Setting::DownOut(n) | Setting::NodeDead(n) | Setting::Trash(n) => show_ms(n),
            Setting::FullPercent(n) => n.to_string(),
        }
    }
}

impl Settings {
    pub(crate) fn set(&mut self, setting: Setting) {
        match setting {
            Setting::DownOut(n) => self.down_out_ms = n,
            Setting::NodeDead(n) => self.node_dead_ms = n,
            Setting::FullPercent(n) => self.full_percent = n,
            Setting::Trash(n) => self.trash_ms = n,
        }
    }
    #[must_use]
    pub fn all(&self) -> Vec<Setting> {
        vec![
            Setting::DownOut(self.down_out_ms),
            Setting::NodeDead(self.node_dead_ms),
            Setting::FullPercent(self.full_percent),
            Setting::Trash(self.trash_ms),
        ]
    }
    #[must_use]
    pub fn node_dead(&self) -> Span {
        Span::millis(self.node_dead_ms)
    }
}

const UNITS: &[(&str, u64)] =
    &[("ms", 1), ("min", 60_000), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", MS_PER_DAY)];

fn parse_ms(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let (suffix, unit) = UNITS.iter().find(|u| text.ends_with(u.0))?;
    text.strip_suffix(suffix)?.trim().parse::<u64>().ok()?.checked_mul(*unit)
}

/// The largest unit that leaves no rest.
#[must_use]
pub fn show_ms(ms: u64) -> String {
    let units = [("d", MS_PER_DAY), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)];
    if ms == 0 {
        return "0 s".to_owned();
    }
    match units.iter().find(|u| ms >= u.1 && ms.is_multiple_of(u.1)) {
        Some((name, unit)) => format!("{} {name}", ms / unit),
        None => format!("{ms} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_shown() {
        assert_eq!(Setting::parse("down_out", "20s"), Ok(Setting::DownOut(20_000)));
        assert_eq!(Setting::parse("down_out", "10min"), Ok(Setting::DownOut(600_000)));
        assert_eq!(Setting::parse("node_dead", "2500ms"), Ok(Setting::NodeDead(2500)));
        assert_eq!(Setting::parse("full_percent", "90%"), Ok(Setting::FullPercent(90)));
        assert_eq!(Setting::parse("trash", "0"), Ok(Setting::Trash(0)));
        assert_eq!(Setting::parse("trash", "3d"), Ok(Setting::Trash(3 * MS_PER_DAY)));
        assert_eq!((show_ms(0), show_ms(600_000)), ("0 s".into(), "10 min".into()));
        assert_eq!(show_ms(2_500), "2500 ms");
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_the_range() {
        let refused = Setting::parse("down_out", "1s").unwrap_err();
        let AdminRefusal::BadSetting { low, high, .. } = refused else { panic!("{refused:?}") };
        assert_eq!((low.as_str(), high.as_str()), ("5 s", "30 d"));
        assert!(matches!(Setting::parse("down_out", "soon"), Err(AdminRefusal::BadSetting { .. })));
        assert!(matches!(Setting::parse("down_put", "20s"), Err(AdminRefusal::UnknownSetting { .. })));
    }
}
