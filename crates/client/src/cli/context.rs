//! Which cluster, and how careful.

use super::args::Global;
use super::error::CliError;
use super::output::Output;
use crate::control::{self, Control, PATIENCE};
use crate::dev::Folder;
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};

/// Where metad listens if nothing else is said.
const ENDPOINT: &str = "127.0.0.1:7400";

pub struct Context {
    pub global: Global,
}

impl Context {
    pub fn new(global: Global) -> Context {
        Context { global }
    }

    /// The folder named by --dir.
    pub fn folder(&self) -> Result<Folder, CliError> {
        let dir = self.global.dir.as_ref();
        let dir = dir.ok_or_else(|| CliError::usage("a folder is needed", "--dir DIR"))?;
        Ok(Folder::new(dir)?)
    }

    pub fn control(&self) -> Result<Control, CliError> {
        let endpoints = match &self.global.dir {
            Some(dir) => Folder::new(dir)?.endpoints()?,
            None if self.global.endpoint.is_empty() => vec![ENDPOINT.into()],
            None => self.global.endpoint.clone(),
        };
        Ok(Control::new(endpoints, PATIENCE)?)
    }

    /// Before what cannot be undone: the name must be typed on a terminal, --yes is needed elsewhere. With --dry-run
    /// the answer is what would be done.
    pub fn confirm(&self, what: &str, name: &str) -> Result<Option<Output>, CliError> {
        if let Some(o) = self.dry(what) {
            return Ok(Some(o));
        }
        if self.global.yes {
            return Ok(None);
        }
        if !std::io::stdin().is_terminal() {
            return Err(CliError::unconfirmed(what));
        }
        eprint!("to {what}, type its name: ");
        let _ = std::io::stderr().flush();
        let mut typed = String::new();
        std::io::stdin().lock().read_line(&mut typed).map_err(|e| CliError::io("the terminal", &e))?;
        if typed.trim() == name { Ok(None) } else { Err(CliError::unconfirmed(what)) }
    }

    /// For what changes something: says what would be done.
    pub fn dry(&self, what: &str) -> Option<Output> {
        self.global.dry_run.then(|| self.would(what))
    }

    /// The answer to `--dry-run`.
    #[expect(clippy::unused_self, reason = "beside `dry` and `confirm`")]
    pub fn would(&self, what: &str) -> Output {
        Output::new("dry-run/1", json!({"would": what}), format!("would {what}\n"))
    }
}

pub fn request_id() -> Result<Vec<u8>, CliError> {
    control::request_id().map_err(|e| CliError::io("/dev/urandom", &e))
}

/// An output that only says that it is done.
pub fn done(schema: &'static str, text: impl Into<String>) -> Output {
    let text = text.into();
    Output::new(schema, json!({"done": text}), text.clone() + "\n")
}

/// 16 bytes as they are shown and typed.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
