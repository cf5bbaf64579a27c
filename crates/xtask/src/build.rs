//! Where things are, and building them.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("crates/xtask lies two below the root")
        .to_path_buf()
}

pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Which build a command uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Profile {
    /// The build that the tests use.
    Dev,
    /// What is measured and shipped.
    Release,
    /// The simulator: optimized, with unwinding panics.
    Sim,
}
impl Profile {
    fn flag(self) -> &'static str {
        match self {
            Profile::Dev => "dev",
            Profile::Release => "release",
            Profile::Sim => "sim",
        }
    }
    fn folder(self) -> &'static str {
        match self {
            Profile::Dev => "debug",
            Profile::Release => "release",
            Profile::Sim => "sim",
        }
    }
}

pub fn cargo() -> Command {
    let mut c = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    c.current_dir(root()).stdin(Stdio::null());
    c
}

/// Builds packages and returns the folder of their binaries.
pub fn build(profile: Profile, packages: &[&str], features: &[&str]) -> Result<PathBuf> {
    let mut c = cargo();
    c.args(["build", "--quiet", "--bins", "--profile", profile.flag()]);
    for p in packages {
        c.args(["-p", p]);
    }
    for f in features {
        c.args(["--features", f]);
    }
    run(&mut c)?;
    Ok(target_dir().join(profile.folder()))
}

/// The daemons and blockctl.
pub fn daemons(profile: Profile) -> Result<PathBuf> {
    build(profile, &["blockd", "metad", "client"], &[])
}

/// Runs to the end; an error names the command.
pub fn run(c: &mut Command) -> Result<()> {
    let shown = shown(c);
    let status = c.status().with_context(|| format!("cannot start: {shown}"))?;
    if !status.success() {
        bail!("failed ({status}): {shown}");
    }
    Ok(())
}

/// Runs to the end and returns what it printed on stdout.
pub fn output(c: &mut Command) -> Result<String> {
    let shown = shown(c);
    let out = c.stderr(Stdio::piped()).output().with_context(|| format!("cannot start: {shown}"))?;
    if !out.status.success() {
        let said =
            [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).trim_end().to_owned()).join("\n");
        bail!("failed ({}): {shown}\n{}", out.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

pub fn shown(c: &Command) -> String {
    let mut s = c.get_program().to_string_lossy().into_owned();
    for a in c.get_args() {
        s.push(' ');
        s.push_str(&a.to_string_lossy());
    }
    s
}
