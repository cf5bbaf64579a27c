//! What lives, and who leads.

use super::process::{self, ProcessState};
use super::{DevError, Layout, State};
use serde::Serialize;

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ProcessStatus {
    pub name: String,
    /// `metad` or `blockd`.
    pub role: &'static str,
    pub pid: Option<u32>,
    /// `running`, `suspended` or `stopped`.
    pub state: &'static str,
    pub socket: Option<String>,
    pub log: String,
}

pub fn status(layout: &Layout) -> Result<Vec<ProcessStatus>, DevError> {
    let state = State::load(layout)?;
    let one = |name: String| {
        Ok(ProcessStatus {
            role: if name.starts_with('m') { "metad" } else { "blockd" },
            pid: process::pid(layout, &name)?,
            state: match process::state(layout, &name)? {
                ProcessState::Running => "running",
                ProcessState::Suspended => "suspended",
                ProcessState::Stopped => "stopped",
            },
            socket: layout.socket(&name).map(|p| p.display().to_string()),
            log: layout.log(&name).display().to_string(),
            name,
        })
    };
    state.names().into_iter().map(one).collect()
}

/// The metad that says itself that it leads, by the highest term.
pub fn leader(layout: &Layout, state: &State) -> Result<Option<String>, DevError> {
    let runtime = super::up::runtime()?;
    let mut best: Option<(u64, String)> = None;
    for name in state.metad_names() {
        if process::state(layout, &name)? != ProcessState::Running {
            continue;
        }
        let Ok(address) = super::up::address(layout, &name) else { continue };
        let Ok(answer) = runtime.block_on(super::up::ask_metad(&address)) else { continue };
        if answer.role == "leader" && best.as_ref().is_none_or(|b| b.0 < answer.term) {
            best = Some((answer.term, name));
        }
    }
    Ok(best.map(|b| b.1))
}
