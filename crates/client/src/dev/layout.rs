//! Where things are in the folder, and the file that says what the cluster is.

use super::DevError;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Longest path of a unix socket (`sun_path` less its zero).
const SOCKET_PATH_MAX: usize = 107;

#[derive(Clone, Debug)]
pub struct Layout {
    pub dir: PathBuf,
    /// Where blockd, metad and blockd-format are.
    pub bins: PathBuf,
}

/// `dev.json`: written when everything about it is decided, before the first process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct State {
    pub schema: String,
    pub metads: u32,
    pub nodes: u32,
    /// Bytes.
    pub drive_size: u64,
    /// Hexadecimal, once `init` is done.
    pub cluster: Option<String>,
    pub token: Option<String>,
    /// Settings still to be made, KEY=VALUE.
    pub settings: Vec<String>,
}

pub const SCHEMA: &str = "dev/1";

impl State {
    pub fn load(layout: &Layout) -> Result<State, DevError> {
        let path = layout.state();
        let text = match std::fs::read_to_string(&path) {
            Ok(t) => t,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(DevError::NoCluster(layout.dir.clone()));
            }
            Err(source) => return Err(DevError::Io { path, source }),
        };
        let state: State = serde_json::from_str(&text)
            .map_err(|e| DevError::Damaged { path: path.clone(), message: e.to_string() })?;
        if state.schema != SCHEMA {
            return Err(DevError::Damaged {
                path,
                message: format!("schema {} is not {SCHEMA}", state.schema),
            });
        }
        Ok(state)
    }

    /// Replaced whole: a reader sees the old or the new one.
    pub fn save(&self, layout: &Layout) -> Result<(), DevError> {
        let text = serde_json::to_string_pretty(self).expect("plain data");
        write(&layout.dir.join("dev.json.new"), &text)?;
        let path = layout.state();
        std::fs::rename(layout.dir.join("dev.json.new"), &path)
            .map_err(|source| DevError::Io { path, source })
    }

    /// All processes: metads, then nodes.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.metad_names().chain((1..=self.nodes).map(|i| format!("n{i}"))).collect()
    }

    pub fn metad_names(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.metads).map(|i| format!("m{i}"))
    }
}

pub fn write(path: &Path, text: &str) -> Result<(), DevError> {
    std::fs::write(path, text).map_err(|source| DevError::Io { path: path.into(), source })
}

impl Layout {
    /// The folder as an absolute path; the daemons beside the running program.
    pub fn new(dir: &Path) -> Result<Layout, DevError> {
        let io = |source| DevError::Io { path: dir.into(), source };
        let dir = std::path::absolute(dir).map_err(io)?;
        let exe = std::env::current_exe().map_err(io)?;
        let bins = exe.parent().map(Path::to_path_buf).unwrap_or_default();
        Ok(Layout { dir, bins })
    }

    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("dev.json")
    }
    #[must_use]
    pub fn home(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.home(name).join("log")
    }
    /// The metads' addresses, a line each.
    #[must_use]
    pub fn metad_file(&self) -> PathBuf {
        self.dir.join("metad.list")
    }
    /// A node's NBD socket, a metad's nothing.
    #[must_use]
    pub fn socket(&self, name: &str) -> Option<PathBuf> {
        name.starts_with('n').then(|| self.home(name).join("nbd.sock"))
    }
    #[must_use]
    pub fn config(&self, name: &str) -> PathBuf {
        self.home(name).join(if name.starts_with('m') { "metad.toml" } else { "blockd.toml" })
    }

    /// The program that a process of this name runs.
    pub fn program(&self, name: &str) -> Result<PathBuf, DevError> {
        self.binary(if name.starts_with('m') { "metad" } else { "blockd" })
    }
    pub fn binary(&self, file: &str) -> Result<PathBuf, DevError> {
        let path = self.bins.join(file);
        if path.is_file() { Ok(path) } else { Err(DevError::NoBinary(path)) }
    }

    /// Every socket must fit before anything is made.
    pub fn check_sockets(&self, nodes: u32) -> Result<(), DevError> {
        let name = format!("n{nodes}");
        for path in [self.home(&name).join("nbd.sock"), self.home(&name).join("admin.sock")] {
            let len = path.as_os_str().len();
            if len > SOCKET_PATH_MAX {
                return Err(DevError::SocketPath { path, len });
            }
        }
        Ok(())
    }

    /// The last lines of a process's log.
    #[must_use]
    pub fn log_end(&self, name: &str) -> String {
        let text = std::fs::read(self.log(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}
