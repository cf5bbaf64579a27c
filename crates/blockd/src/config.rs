//! `blockd.toml`: node-local facts, nothing else (cluster settings live in Raft).
//!
//! Owns the keys, their defaults and the rules between them. Never touches a drive or a socket. An unknown key is an
//! error that names the nearest spelling: a setting that is silently ignored is a trap.

use proto::{ClusterId, NodeId};
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Connections of guests at once, unless the file says otherwise.
const CLIENTS_DEFAULT: u32 = 1024;
/// Unix sockets' paths have at most 107 bytes (`sun_path` less its zero).
pub const SOCKET_PATH_MAX: usize = 107;

pub use edge::LogFormat;

/// The file as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    node_id: Option<u32>,
    name: Option<String>,
    cluster: Option<String>,
    zone: String,
    token: String,
    state_dir: PathBuf,
    data_address: SocketAddr,
    nbd_socket: PathBuf,
    nbd_tcp: Option<SocketAddr>,
    nbd_clients: u32,
    admin_socket: PathBuf,
    admin_address: Option<SocketAddr>,
    metad: Vec<String>,
    metad_file: Option<PathBuf>,
    drives: Vec<PathBuf>,
    insecure_network: bool,
    log: String,
    log_format: LogFormat,
}

impl Default for File {
    fn default() -> File {
        File {
            node_id: None,
            name: None,
            cluster: None,
            zone: String::new(),
            token: String::new(),
            state_dir: "/var/lib/blockd".into(),
            data_address: SocketAddr::from(([127, 0, 0, 1], 0)),
            nbd_socket: "/run/blockd/nbd.sock".into(),
            nbd_tcp: None,
            nbd_clients: CLIENTS_DEFAULT,
            admin_socket: "/run/blockd/admin.sock".into(),
            admin_address: None,
            metad: Vec::new(),
            metad_file: None,
            drives: Vec::new(),
            insecure_network: false,
            log: "info".into(),
            log_format: LogFormat::Logfmt,
        }
    }
}

/// All keys, for the nearest spelling; a test holds it equal to `File`.
const KEYS: &[&str] = &[
    "node_id",
    "name",
    "cluster",
    "zone",
    "token",
    "state_dir",
    "data_address",
    "nbd_socket",
    "nbd_tcp",
    "nbd_clients",
    "admin_socket",
    "admin_address",
    "metad",
    "metad_file",
    "drives",
    "insecure_network",
    "log",
    "log_format",
];

/// A checked configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Both may be missing: then `state_dir` knows them since the node joined.
    pub node: Option<NodeId>,
    pub cluster: Option<ClusterId>,
    pub name: Option<String>,
    /// Failure domain above the node; empty: none.
    pub zone: String,
    /// What `cluster init` printed; needed once, to join.
    pub token: String,
    pub state_dir: PathBuf,
    /// Port 0: the kernel chooses; what was chosen stands in `state_dir/data.addr`, and is tried first next time.
    pub data_address: SocketAddr,
    pub nbd_socket: PathBuf,
    pub nbd_tcp: Option<SocketAddr>,
    /// Connections of guests at once.
    pub nbd_clients: usize,
    pub admin_socket: PathBuf,
    pub admin_address: Option<SocketAddr>,
    /// `host:port` of each metad; read again from `metad_file` when it changes.
    pub metad: Vec<String>,
    pub metad_file: Option<PathBuf>,
    pub drives: Vec<PathBuf>,
    pub insecure_network: bool,
    /// Filter of the log, as `info` or `info,node=debug`.
    pub log: String,
    pub log_format: LogFormat,
}

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
    #[error("not a cluster id: 32 hexadecimal digits")]
    Cluster,
    #[error("node ids are 1 and up")]
    NodeZero,
    #[error("0 would let no guest in")]
    NoClients,
    #[error("a name has 1 to {} bytes, and no spaces or slashes", proto::limits::NAME_MAX)]
    Name,
    #[error(
        "{0} is not the loopback: there is no encryption yet. Set insecure_network = true if that network is trusted"
    )]
    NotLoopback(SocketAddr),
    #[error(
        "{0} can be reached by nobody: other nodes are told this address and dial it. Give this node's own"
    )]
    Unspecified(SocketAddr),
    #[error("{0} bytes, but a socket's path has at most {SOCKET_PATH_MAX}: use a shorter folder")]
    SocketPath(usize),
    #[error("no metad: give metad = [\"host:port\", ..] or metad_file = \"PATH\"")]
    NoMetad,
    #[error("\"{0}\" is not host:port")]
    Endpoint(String),
    #[error("\"{0}\" stands there twice")]
    Twice(String),
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
        let file: File = toml::from_str(text).map_err(|e| syntax(&e))?;
        file.check(path.parent().unwrap_or(Path::new("."))).map_err(|(key, cause)| ConfigError::Value {
            path: path.into(),
            key,
            cause,
        })
    }
}

impl File {
    fn check(self, base: &Path) -> Result<Config, (&'static str, BadValue)> {
        let cluster = self.cluster.as_deref().map(parse_cluster).transpose().map_err(|e| ("cluster", e))?;
        if self.node_id == Some(0) {
            return Err(("node_id", BadValue::NodeZero));
        }
        if self.nbd_clients == 0 {
            return Err(("nbd_clients", BadValue::NoClients));
        }
        for (key, name) in
            [("name", self.name.as_deref()), ("zone", Some(&*self.zone).filter(|z| !z.is_empty()))]
        {
            if name.is_some_and(|n| !is_name(n)) {
                return Err((key, BadValue::Name));
            }
        }
        for (key, address) in [
            ("data_address", Some(self.data_address)),
            ("nbd_tcp", self.nbd_tcp),
            ("admin_address", self.admin_address),
        ] {
            if let Some(a) = address
                && !is_loopback(a.ip())
                && !self.insecure_network
            {
                return Err((key, BadValue::NotLoopback(a)));
            }
        }
        if self.data_address.ip().is_unspecified() {
            return Err(("data_address", BadValue::Unspecified(self.data_address)));
        }
        let (nbd_socket, admin_socket) = (base.join(self.nbd_socket), base.join(self.admin_socket));
        for (key, socket) in [("nbd_socket", &nbd_socket), ("admin_socket", &admin_socket)] {
            let len = socket.as_os_str().len();
            if len > SOCKET_PATH_MAX {
                return Err((key, BadValue::SocketPath(len)));
            }
        }
        if self.metad.is_empty() && self.metad_file.is_none() {
            return Err(("metad", BadValue::NoMetad));
        }
        if let Some(bad) = self.metad.iter().find(|m| !is_endpoint(m)) {
            return Err(("metad", BadValue::Endpoint(bad.clone())));
        }
        let drives: Vec<PathBuf> = self.drives.iter().map(|d| base.join(d)).collect();
        if let Some(i) = (1..drives.len()).find(|&i| drives[..i].contains(&drives[i])) {
            return Err(("drives", BadValue::Twice(drives[i].display().to_string())));
        }
        if let Err(e) = tracing_subscriber::EnvFilter::try_new(&self.log) {
            return Err(("log", BadValue::Filter(e.to_string())));
        }
        Ok(Config {
            node: self.node_id.map(NodeId),
            cluster,
            name: self.name,
            zone: self.zone,
            token: self.token,
            state_dir: base.join(self.state_dir),
            data_address: self.data_address,
            nbd_socket,
            nbd_tcp: self.nbd_tcp,
            nbd_clients: self.nbd_clients as usize,
            admin_socket,
            admin_address: self.admin_address,
            metad: self.metad,
            metad_file: self.metad_file.map(|f| base.join(f)),
            drives,
            insecure_network: self.insecure_network,
            log: self.log,
            log_format: self.log_format,
        })
    }
}

/// A cluster id as 32 hexadecimal digits, as it is shown and typed.
pub fn parse_cluster(text: &str) -> Result<ClusterId, BadValue> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 {
        return Err(BadValue::Cluster);
    }
    u128::from_str_radix(&digits, 16).map(ClusterId).map_err(|_| BadValue::Cluster)
}

/// The other way round.
#[must_use]
pub fn show_cluster(cluster: ClusterId) -> String {
    format!("{:032x}", cluster.0)
}

fn is_name(name: &str) -> bool {
    (1..=proto::limits::NAME_MAX).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.is_loopback()
}

/// `host:port`, the host a name, an address, or an IPv6 address in brackets.
#[must_use]
pub fn is_endpoint(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok_and(|p| p != 0)
    })
}

/// The key nearest to `key`, if one is near enough to be what was meant.
fn nearest(key: &str) -> Option<&'static str> {
    KEYS.iter()
        .map(|k| (distance(key, k), *k))
        .min()
        .filter(|(d, k)| *d <= (k.len() / 3).max(2))
        .map(|(_, k)| k)
}

/// Letters to insert, drop or change to make `a` of `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/blockd/blockd.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_whole_file_is_read_and_its_paths_start_at_its_folder() {
        let c = parse(
            r#"
            node_id = 3
            name = "n3"
            cluster = "000102030405060708090a0b0c0d0e0f"
            state_dir = "state"
            data_address = "127.0.0.1:0"
            nbd_socket = "/tmp/d/nbd.sock"
            nbd_tcp = "127.0.0.1:10809"
            admin_socket = "admin.sock"
            admin_address = "[::1]:0"
            metad = ["127.0.0.1:7001", "m2:7001"]
            drives = ["drive0", "/dev/nvme0n1"]
            log = "info,node=debug"
            log_format = "json"
            "#,
        )
        .unwrap();
        assert_eq!(c.node, Some(NodeId(3)));
        assert_eq!(c.cluster, Some(ClusterId(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f)));
        assert_eq!(show_cluster(c.cluster.unwrap()), "000102030405060708090a0b0c0d0e0f");
        assert_eq!(c.state_dir, Path::new("/etc/blockd/state"));
        assert_eq!(c.admin_socket, Path::new("/etc/blockd/admin.sock"));
        assert_eq!(c.drives, [PathBuf::from("/etc/blockd/drive0"), "/dev/nvme0n1".into()]);
        assert_eq!(c.log_format, LogFormat::Json);
    }

    #[test]
    fn an_unknown_key_names_the_nearest_spelling() {
        assert_eq!(
            parse("metads = ['a:1']").unwrap_err(),
            "/etc/blockd/blockd.toml: unknown key \"metads\"; did you mean \"metad\"?"
        );
        assert!(parse("data_adress = '127.0.0.1:1'").unwrap_err().contains("did you mean \"data_address\"?"));
        assert!(parse("banana = 1").unwrap_err().contains("known: node_id, name"));
    }

    #[test]
    fn every_key_of_the_file_is_in_the_list_of_spellings() {
        let error = toml::from_str::<File>("banana = 1").unwrap_err().to_string();
        let named: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
        assert_eq!(named, KEYS);
    }

    #[test]
    fn other_networks_than_the_loopback_need_the_key() {
        let e = parse("metad = ['a:1']\ndata_address = '10.0.0.1:7420'").unwrap_err();
        assert!(e.contains("data_address: 10.0.0.1:7420 is not the loopback"), "{e}");
        assert!(parse("metad = ['a:1']\nnbd_tcp = '0.0.0.0:10809'").is_err());
        assert!(parse("metad = ['a:1']\ndata_address = '10.0.0.1:7420'\ninsecure_network = true").is_ok());
    }

    #[test]
    fn values_that_cannot_be_used_are_named_with_their_key() {
        for (text, want) in [
            ("", "metad: no metad"),
            ("metad = ['a']", "metad: \"a\" is not host:port"),
            (
                "metad = ['a:1']\ndata_address = '0.0.0.0:7420'\ninsecure_network = true",
                "data_address: 0.0.0.0:7420 can be reached by nobody",
            ),
            ("metad = ['a:1']\ndata_address = '[::]:0'\ninsecure_network = true", "data_address: [::]:0 can"),
            ("metad = ['a:1']\nnode_id = 0", "node_id: node ids are 1 and up"),
            ("metad = ['a:1']\nnbd_clients = 0", "nbd_clients: 0 would let no guest in"),
            ("metad = ['a:1']\nname = 'a b'", "name: a name has 1 to 63 bytes"),
            ("metad = ['a:1']\ncluster = 'xyz'", "cluster: not a cluster id"),
            ("metad = ['a:1']\ndrives = ['/x', '/x']", "drives: \"/x\" stands there twice"),
            ("metad = ['a:1']\nlog = 'a=b=c'", "log: not a log filter"),
            ("metad = 3", "invalid type"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.contains(want), "{text:?}: {e}");
        }
        let long = format!("metad = ['a:1']\nnbd_socket = '/{}'", "x".repeat(107));
        assert!(parse(&long).unwrap_err().contains("108 bytes, but a socket's path has at most 107"));
    }
}
