//! `metad.toml`: node-local facts. An unknown key is an error that names the nearest spelling.

use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use edge::LogFormat;

/// The file as it is written, and as it is used once checked.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// 1 and up, unique among the metads of a cluster, never changed.
    pub id: u64,
    pub state_dir: PathBuf,
    /// gRPC for peers, nodes and operators. Port 0: the kernel chooses; what was chosen stands in
    /// `state_dir/metad.addr` and is taken again at the next start.
    pub address: SocketAddr,
    /// What the others are told, if it is not `address`: `host:port`.
    pub advertise: Option<String>,
    /// `/metrics` and `/healthz`; port 0 as above, in `state_dir/metrics.addr`.
    pub metrics_address: Option<SocketAddr>,
    /// Allow other networks than the loopback: there is no encryption yet.
    pub insecure_network: bool,
    pub heartbeat_ms: u64,
    pub election_ms: u64,
    /// Filter of the log, as `info` or `info,openraft=debug`.
    pub log: String,
    pub log_format: LogFormat,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            id: 0,
            state_dir: "/var/lib/blockd/metad".into(),
            address: SocketAddr::from(([127, 0, 0, 1], 7400)),
            advertise: None,
            metrics_address: None,
            insecure_network: false,
            heartbeat_ms: 200,
            election_ms: 600,
            log: "info,openraft=warn".into(),
            log_format: LogFormat::Logfmt,
        }
    }
}

/// All keys, for the nearest spelling; a test holds it equal to `Config`.
const KEYS: &[&str] = &[
    "id",
    "state_dir",
    "address",
    "advertise",
    "metrics_address",
    "insecure_network",
    "heartbeat_ms",
    "election_ms",
    "log",
    "log_format",
];

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: unknown key \"{key}\"{}", nearest_hint(nearest))]
    UnknownKey { path: PathBuf, key: String, nearest: Option<&'static str> },
    #[error("{path}: {message}")]
    Syntax { path: PathBuf, message: String },
    #[error("{path}: {key}: {cause}")]
    Value { path: PathBuf, key: &'static str, cause: BadValue },
}

/// Why a value of the right type cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadValue {
    #[error("ids are 1 and up, and each metad needs its own")]
    Id,
    #[error(
        "{0} is not the loopback: there is no encryption yet. Set insecure_network = true if that network is trusted"
    )]
    NotLoopback(SocketAddr),
    #[error("{0} can be reached from nowhere else: set advertise = \"host:port\"")]
    Unspecified(SocketAddr),
    #[error("\"{0}\" is not host:port")]
    Endpoint(String),
    #[error("{low} to {high} are possible")]
    Range { low: u64, high: u64 },
    #[error("not a log filter: {0}")]
    Filter(String),
}

fn nearest_hint(nearest: &Option<&'static str>) -> String {
    nearest.map_or_else(|| format!("; known: {}", KEYS.join(", ")), |k| format!("; did you mean \"{k}\"?"))
}

impl Config {
    /// Reads and checks the file at `path`. Relative paths in it start at its folder.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Config::parse(&text, path)
    }

    /// The same, of a text; `path` is for messages and for relative paths.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let syntax = |e: &toml::de::Error| ConfigError::Syntax { path: path.into(), message: e.to_string() };
        let table: toml::Table = text.parse().map_err(|e| syntax(&e))?;
        if let Some(key) = table.keys().find(|k| !KEYS.contains(&k.as_str())) {
            return Err(ConfigError::UnknownKey {
                path: path.into(),
                key: key.clone(),
                nearest: nearest(key),
            });
        }
        let mut config: Config = toml::from_str(text).map_err(|e| syntax(&e))?;
        config.check().map_err(|(key, cause)| ConfigError::Value { path: path.into(), key, cause })?;
        config.state_dir = path.parent().unwrap_or(Path::new(".")).join(&config.state_dir);
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, BadValue)> {
        if self.id == 0 {
            return Err(("id", BadValue::Id));
        }
        for (key, address) in [("address", Some(self.address)), ("metrics_address", self.metrics_address)] {
            if let Some(a) = address
                && !a.ip().is_loopback()
                && !self.insecure_network
            {
                return Err((key, BadValue::NotLoopback(a)));
            }
        }
        if self.advertise.is_none() && self.address.ip().is_unspecified() {
            return Err(("address", BadValue::Unspecified(self.address)));
        }
        if let Some(a) = self.advertise.as_ref().filter(|a| !is_endpoint(a)) {
            return Err(("advertise", BadValue::Endpoint(a.clone())));
        }
        for (key, value, low, high) in [
            ("heartbeat_ms", self.heartbeat_ms, 20, 5_000),
            ("election_ms", self.election_ms, 2 * self.heartbeat_ms, 60_000),
        ] {
            if !(low..=high).contains(&value) {
                return Err((key, BadValue::Range { low, high }));
            }
        }
        tracing_subscriber::EnvFilter::try_new(&self.log)
            .map_err(|e| ("log", BadValue::Filter(e.to_string())))
            .map(drop)
    }
}

/// `host:port`.
#[must_use]
pub fn is_endpoint(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok_and(|p| p != 0)
    })
}

/// The key nearest to `key`, if one is near enough to be what was meant.
fn nearest(key: &str) -> Option<&'static str> {
    let near = KEYS.iter().map(|k| (distance(key, k), *k)).min();
    near.filter(|(d, k)| *d <= (k.len() / 3).max(2)).map(|(_, k)| k)
}

/// Letters to insert, drop or change to make `a` of `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let swap = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = swap.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/blockd/metad.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_file_is_read_and_its_paths_start_at_its_folder() {
        let c = parse("id = 2\nstate_dir = 'm2'\naddress = '127.0.0.1:0'\nlog_format = 'json'").unwrap();
        assert_eq!((c.id, c.log_format), (2, LogFormat::Json));
        assert_eq!(c.state_dir, Path::new("/etc/blockd/m2"));
    }

    #[test]
    fn an_unknown_key_names_the_nearest_spelling() {
        assert_eq!(
            parse("adress = 'x'").unwrap_err(),
            "/etc/blockd/metad.toml: unknown key \"adress\"; did you mean \"address\"?"
        );
        assert!(parse("banana = 1").unwrap_err().contains("known: id, state_dir"));
    }

    #[test]
    fn every_key_of_the_file_is_in_the_list_of_spellings() {
        let error = toml::from_str::<Config>("banana = 1").unwrap_err().to_string();
        let named: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
        assert_eq!(named, KEYS);
    }

    #[test]
    fn values_that_cannot_be_used_are_named_with_their_key() {
        for (text, want) in [
            ("", "id: ids are 1 and up"),
            ("id = 1\naddress = '10.0.0.1:7400'", "address: 10.0.0.1:7400 is not the loopback"),
            ("id = 1\naddress = '0.0.0.0:1'\ninsecure_network = true", "address: 0.0.0.0:1 can be reached"),
            ("id = 1\nadvertise = 'm1'", "advertise: \"m1\" is not host:port"),
            ("id = 1\nheartbeat_ms = 1", "heartbeat_ms: 20 to 5000"),
            ("id = 1\nelection_ms = 200", "election_ms: 400 to 60000"),
            ("id = 1\nlog = 'a=b=c'", "log: not a log filter"),
            ("id = 'x'", "invalid type"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.contains(want), "{text:?}: {e}");
        }
    }
}
