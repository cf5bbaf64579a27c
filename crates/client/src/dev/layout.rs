//! What lies where in a cluster's folder.
//!
//! ```text
//! DIR/making.json       made first, removed last: with it alone the making was broken off
//! DIR/cluster.json      its shape, made when all serve: without it there is no cluster here
//! DIR/metad.addrs       addresses of the metads, for the nodes
//! DIR/m1/               metad.toml, state/, log, pid
//! DIR/n1/               blockd.toml, state/, drive0, nbd.sock, admin.sock, log, pid
//! ```

use super::{DevError, SOCKET_PATH_MAX, io};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// metads of a cluster in a folder.
pub const METADS: u32 = 3;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Metad,
    Blockd,
}
impl Role {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Role::Metad => "metad",
            Role::Blockd => "blockd",
        }
    }
}

/// One process of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Member {
    pub role: Role,
    /// 1 and up.
    pub number: u32,
}
impl Member {
    #[must_use]
    pub fn name(self) -> String {
        let letter = if self.role == Role::Metad { 'm' } else { 'n' };
        format!("{letter}{}", self.number)
    }
}

/// What is needed to remove what a `dev up` that was broken off has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub nodes: u32,
}

/// The cluster's shape.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shape {
    pub nodes: u32,
    /// Bytes.
    pub drive_size: u64,
    /// 32 hexadecimal digits.
    pub cluster: String,
    pub token: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folder {
    dir: PathBuf,
}

impl Folder {
    /// # Errors
    /// The current folder is gone.
    pub fn new(dir: &Path) -> Result<Folder, DevError> {
        Ok(Folder { dir: std::path::absolute(dir).map_err(io(dir))? })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }
    #[must_use]
    pub fn of(&self, m: Member) -> PathBuf {
        self.dir.join(m.name())
    }
    #[must_use]
    pub fn log(&self, m: Member) -> PathBuf {
        self.of(m).join("log")
    }
    #[must_use]
    pub fn config(&self, m: Member) -> PathBuf {
        self.of(m).join(if m.role == Role::Metad { "metad.toml" } else { "blockd.toml" })
    }
    #[must_use]
    pub fn nbd_socket(&self, node: u32) -> PathBuf {
        self.dir.join(format!("n{node}")).join("nbd.sock")
    }
    #[must_use]
    pub fn admin_socket(&self, node: u32) -> PathBuf {
        self.dir.join(format!("n{node}")).join("admin.sock")
    }
    #[must_use]
    pub fn drive(&self, node: u32) -> PathBuf {
        self.dir.join(format!("n{node}")).join("drive0")
    }
    #[must_use]
    pub fn addresses_file(&self) -> PathBuf {
        self.dir.join("metad.addrs")
    }
    #[must_use]
    pub fn shape_file(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }

    #[must_use]
    pub fn making_file(&self) -> PathBuf {
        self.dir.join("making.json")
    }

    #[must_use]
    pub fn metads() -> Vec<Member> {
        (1..=METADS).map(|number| Member { role: Role::Metad, number }).collect()
    }

    /// All processes: metads first.
    #[must_use]
    pub fn members(shape: &Shape) -> Vec<Member> {
        Folder::planned(Plan { nodes: shape.nodes })
    }

    /// The processes of a cluster that was to be so.
    #[must_use]
    pub fn planned(plan: Plan) -> Vec<Member> {
        let nodes = (1..=plan.nodes).map(|number| Member { role: Role::Blockd, number });
        Folder::metads().into_iter().chain(nodes).collect()
    }

    /// The cluster in this folder.
    ///
    /// # Errors
    /// There is none, or its file is damaged.
    pub fn shape(&self) -> Result<Shape, DevError> {
        let path = self.shape_file();
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let dir = self.dir.clone();
                return Err(match self.making()? {
                    Some(_) => DevError::BrokenOff(dir),
                    None => DevError::NoCluster(dir),
                });
            }
            other => other.map_err(io(&path))?,
        };
        serde_json::from_str(&text).map_err(|_| DevError::Damaged(path))
    }

    /// What is being made here, or was when it was broken off.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    pub fn making(&self) -> Result<Option<Plan>, DevError> {
        let path = self.making_file();
        match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io(&path)(e)),
            Ok(text) => serde_json::from_str(&text).map(Some).map_err(|_| DevError::Damaged(path)),
        }
    }

    /// Where a metad listens, as it wrote down itself.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn metad_address(&self, m: Member) -> Result<Option<String>, DevError> {
        let path = self.of(m).join("state").join("metad.addr");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io(&path)(e)),
        }
    }

    /// Addresses of all metads that have one.
    ///
    /// # Errors
    /// A file cannot be read, or there is no cluster.
    pub fn endpoints(&self) -> Result<Vec<String>, DevError> {
        self.shape()?;
        let all: Result<Vec<_>, _> = Folder::metads().into_iter().map(|m| self.metad_address(m)).collect();
        Ok(all?.into_iter().flatten().collect())
    }

    /// The longest path of a socket must fit.
    ///
    /// # Errors
    /// It does not.
    pub fn check_sockets(&self, nodes: u32) -> Result<(), DevError> {
        let path = self.admin_socket(nodes);
        let len = path.as_os_str().len();
        if len > SOCKET_PATH_MAX { Err(DevError::SocketPath { path, len }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_path_that_is_too_long_is_refused() {
        let long = format!("/{}", "x".repeat(90));
        assert!(Folder::new(Path::new(&long)).unwrap().check_sockets(9).is_ok());
        let error = Folder::new(Path::new(&format!("{long}yyyy"))).unwrap().check_sockets(9).unwrap_err();
        assert!(matches!(error, DevError::SocketPath { len: 109, .. }), "{error:?}");
    }

    #[test]
    fn a_folder_without_a_cluster_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path()).unwrap();
        assert!(matches!(folder.shape(), Err(DevError::NoCluster(_))));
        std::fs::write(folder.shape_file(), "{").unwrap();
        assert!(matches!(folder.shape(), Err(DevError::Damaged(_))));
    }
}
