//! Logs on stderr, one event a line, as logfmt or JSON. Repeats of one place in the code are rate-limited: what was
//! left out is counted in the next line of that place.

use crate::LogFormat;
use crate::capped::Stderr;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// Lines of one place that may follow one another at once, and how many a second go on after that.
const BURST: u32 = 20;
const PER_SECOND: u32 = 5;

/// Changes the filter of a running process.
#[derive(Clone)]
pub struct Reload(reload::Handle<EnvFilter, Registry>);

impl Reload {
    /// `filter` has been checked by the configuration.
    pub fn set(&self, filter: &str) {
        if let Ok(filter) = EnvFilter::try_new(filter) {
            let _ = self.0.reload(filter);
        }
    }
}

/// Sets up logging for the process.
pub fn start(filter: &str, format: LogFormat) -> Reload {
    let (filter, handle) = reload::Layer::new(EnvFilter::new(filter));
    let lines = Lines { format, places: Mutex::default(), out: Mutex::new(Stderr::of_environment()) };
    let subscriber = Registry::default().with(filter).with(lines);
    // Fails only if it was set up before (tests): then that one stays.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Reload(handle)
}

struct Lines {
    format: LogFormat,
    places: Mutex<HashMap<tracing::callsite::Identifier, Place>>,
    out: Mutex<Stderr>,
}

/// A token bucket.
struct Place {
    tokens: u32,
    since: Instant,
    left_out: u64,
}

impl Place {
    fn new(now: Instant) -> Place {
        Place { tokens: BURST, since: now, left_out: 0 }
    }
    /// May this one be shown; and how many were not shown before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let ticks = (now - self.since).as_millis() * u128::from(PER_SECOND) / 1000;
        if ticks > 0 {
            self.tokens = u32::try_from(ticks).map_or(BURST, |t| self.tokens.saturating_add(t).min(BURST));
            self.since = now;
        }
        if self.tokens == 0 {
            self.left_out += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let now = Instant::now();
        let left_out = {
            // A thread that panicked with the lock held aborts the process: it is never poisoned.
            let Ok(mut places) = self.places.lock() else { return };
            places.entry(event.metadata().callsite()).or_insert_with(|| Place::new(now)).admit(now)
        };
        let Some(left_out) = left_out else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        if left_out > 0 {
            fields.rest.push(("repeats_left_out", left_out.to_string()));
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let line = match self.format {
            LogFormat::Logfmt => logfmt(since, event.metadata(), &fields),
            LogFormat::Json => json(since, event.metadata(), &fields),
        };
        if let Ok(mut out) = self.out.lock() {
            out.write(line.as_bytes());
        }
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_string());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.take(field, format!("{value:?}"));
    }
}

impl Fields {
    fn take(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
        } else {
            self.rest.push((field.name(), value));
        }
    }
}

/// RFC 3339 in UTC, milliseconds.
fn stamp(since: Duration) -> String {
    let secs = since.as_secs();
    let (days, day) = (secs / 86_400, secs % 86_400);
    // Civil date of a day number, counted from 0000-03-01 in eras of 400 years.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (d, m) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let y = yoe + era * 400 + u64::from(m <= 2);
    let (h, min, s, ms) = (day / 3600, day / 60 % 60, day % 60, since.subsec_millis());
    format!("{y:04}-{m:02}-{d:02}T{h:02}:{min:02}:{s:02}.{ms:03}Z")
}

fn logfmt(since: Duration, meta: &Metadata<'_>, fields: &Fields) -> String {
    let level = meta.level().as_str().to_lowercase();
    let mut line =
        format!("ts={} level={level} target={} msg={}", stamp(since), meta.target(), quoted(&fields.message));
    for (name, value) in &fields.rest {
        let value = if plain(value) { value.clone() } else { quoted(value) };
        let _ = write!(line, " {name}={value}");
    }
    line.push('\n');
    line
}

fn plain(value: &str) -> bool {
    !value.is_empty() && value.chars().all(|c| c.is_ascii_graphic() && c != '"' && c != '=' && c != '\\')
}

fn quoted(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

fn json(since: Duration, meta: &Metadata<'_>, fields: &Fields) -> String {
    let mut map = serde_json::Map::new();
    let mut put = |k: &str, v: String| map.insert(k.into(), v.into());
    put("ts", stamp(since));
    put("level", meta.level().as_str().to_lowercase());
    put("target", meta.target().into());
    put("msg", fields.message.clone());
    for (name, value) in &fields.rest {
        put(name, value.clone());
    }
    serde_json::Value::Object(map).to_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_a_second_is_right() {
        assert_eq!(stamp(Duration::ZERO), "1970-01-01T00:00:00.000Z");
        assert_eq!(stamp(Duration::from_millis(951_827_696_789)), "2000-02-29T12:34:56.789Z");
        assert_eq!(stamp(Duration::from_secs(1_795_258_800)), "2026-11-21T11:00:00.000Z");
    }

    #[test]
    fn repeats_are_left_out_and_counted() {
        let t = Instant::now();
        let mut p = Place::new(t);
        let shown = (0..100).filter(|_| p.admit(t).is_some()).count();
        assert_eq!(shown, 20);
        assert_eq!(p.admit(t + Duration::from_secs(1)), Some(80));
        assert_eq!((0..100).filter(|_| p.admit(t + Duration::from_secs(1)).is_some()).count(), 4);
    }

    #[test]
    fn values_with_blanks_are_quoted() {
        assert!(plain("n3") && plain("/dev/nvme0n1"));
        assert!(!plain("") && !plain("a b") && !plain("a=b"));
        assert_eq!(quoted("a \"b\"\n"), r#""a \"b\"\n""#);
    }
}
