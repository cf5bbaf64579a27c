//! Errors as an operator sees them: three lines, a code, an exit code.

use crate::control::ControlError;
use std::fmt;
use std::path::Path;

/// Exit codes (docs/operations.md).
pub mod exit {
    pub const FAILURE: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const NOT_FOUND: u8 = 3;
    pub const CONFLICT: u8 = 4;
    pub const STATE: u8 = 5;
    pub const PERMISSION: u8 = 6;
    pub const FULL: u8 = 7;
    pub const PRECONDITION: u8 = 8;
    pub const UNREACHABLE: u8 = 20;
    pub const UNKNOWN_OUTCOME: u8 = 21;
    pub const INTERRUPTED: u8 = 130;

    /// Of what the operating system refused.
    #[must_use]
    pub fn of_io(e: &std::io::Error) -> u8 {
        if e.kind() == std::io::ErrorKind::PermissionDenied { PERMISSION } else { FAILURE }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CliError {
    /// Shown as `E1203`; each is explained in docs/errors.md.
    pub code: u32,
    pub exit: u8,
    pub message: String,
    pub cause: String,
    pub fix: String,
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[E{}]: {}", self.code, self.message)?;
        if !self.cause.is_empty() {
            write!(f, "\ncause: {}", self.cause)?;
        }
        if !self.fix.is_empty() {
            write!(f, "\nfix: {}", self.fix)?;
        }
        Ok(())
    }
}
impl std::error::Error for CliError {}

impl CliError {
    #[must_use]
    pub fn new(
        code: u32,
        exit: u8,
        message: impl Into<String>,
        cause: impl Into<String>,
        fix: impl Into<String>,
    ) -> CliError {
        CliError { code, exit, message: message.into(), cause: cause.into(), fix: fix.into() }
    }
    /// What was typed is wrong.
    #[must_use]
    pub fn usage(message: impl Into<String>, fix: impl Into<String>) -> CliError {
        CliError::new(1920, exit::USAGE, message, "", fix)
    }
    /// A destructive verb without a yes.
    #[must_use]
    pub fn unconfirmed(what: &str) -> CliError {
        let fix = "repeat it with --yes, or look first with --dry-run";
        CliError::new(1921, exit::USAGE, format!("{what} needs a yes"), "this cannot be undone", fix)
    }
    #[must_use]
    pub fn io(what: impl fmt::Display, e: &std::io::Error) -> CliError {
        CliError::new(1930, exit::of_io(e), format!("{what}: {e}"), "the operating system refused it", "")
    }
    /// Nobody answers at blockd's admin socket, or this user may not ask.
    #[must_use]
    pub fn admin(socket: &Path, e: &(dyn std::error::Error + 'static)) -> CliError {
        if denied(e) {
            return CliError::new(
                1912,
                exit::PERMISSION,
                format!("{} is not for this user", socket.display()),
                chain(e),
                "repeat it as the user that blockd runs as, or as root",
            );
        }
        CliError::new(
            1908,
            exit::UNREACHABLE,
            format!("blockd does not answer at {}", socket.display()),
            chain(e),
            "start blockd, or name its socket with --socket",
        )
    }
}

/// An error and all that is behind it, each once.
fn chain(e: &(dyn std::error::Error + 'static)) -> String {
    let mut text = e.to_string();
    for cause in causes(e).skip(1) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn causes<'a>(
    e: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(e), |e| e.source())
}

fn denied(e: &(dyn std::error::Error + 'static)) -> bool {
    let io = |e: &(dyn std::error::Error + 'static)| {
        e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
    };
    causes(e).any(io)
}

impl From<ControlError> for CliError {
    fn from(e: ControlError) -> CliError {
        let message = e.to_string();
        match e {
            ControlError::Refused(d) => CliError {
                code: d.code,
                exit: u8::try_from(d.exit).ok().filter(|e| *e != 0).unwrap_or(exit::FAILURE),
                message: d.message,
                cause: d.cause,
                fix: d.fix,
            },
            ControlError::Unreachable { endpoints, cause } => CliError::new(
                1900,
                exit::UNREACHABLE,
                format!("no metad answers at {endpoints}"),
                cause,
                "start metad, or name another with --endpoint HOST:PORT or --dir DIR",
            ),
            ControlError::Unknown { cause } => CliError::new(
                1909,
                exit::UNKNOWN_OUTCOME,
                "no answer in time: it may have been done, or not",
                cause,
                "look, and repeat it if nothing happened",
            ),
            ControlError::Endpoint(_) => CliError::usage(message, "--endpoint 127.0.0.1:7400"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_three_lines() {
        let e = CliError::new(
            1203,
            5,
            "volume \"v1\" is attached on n3 (epoch 41)",
            "a guest uses it",
            "detach it",
        );
        assert_eq!(
            e.to_string(),
            "error[E1203]: volume \"v1\" is attached on n3 (epoch 41)\ncause: a guest uses it\nfix: detach it"
        );
    }

    #[derive(Debug, thiserror::Error)]
    #[error("transport error")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_socket_of_another_user_is_no_daemon_that_is_down() {
        let socket = Path::new("/run/blockd/admin.sock");
        let e = CliError::admin(socket, &Outer(std::io::Error::from_raw_os_error(13)));
        assert_eq!((e.code, e.exit), (1912, exit::PERMISSION));
        assert!(e.cause.starts_with("transport error: Permission denied"), "{}", e.cause);
        let e = CliError::admin(socket, &Outer(std::io::Error::from_raw_os_error(2)));
        assert_eq!((e.code, e.exit), (1908, exit::UNREACHABLE));
        assert!(e.cause.contains("No such file"), "{}", e.cause);
        let denied = std::io::Error::from_raw_os_error(13);
        assert_eq!(CliError::io("x", &denied).exit, exit::PERMISSION);
        assert_eq!(CliError::from(crate::dev::DevError::Io { path: "x".into(), source: denied }).exit, 6);
    }

    #[test]
    fn exit_codes_come_from_what_happened() {
        let refused = api::v1::ErrorDetail { code: 1007, exit: 3, ..Default::default() };
        let none = || String::new();
        for (e, want) in [
            (ControlError::Refused(Box::new(refused)), exit::NOT_FOUND),
            (ControlError::Unreachable { endpoints: none(), cause: none() }, exit::UNREACHABLE),
            (ControlError::Unknown { cause: none() }, exit::UNKNOWN_OUTCOME),
            (ControlError::Endpoint("x".into()), exit::USAGE),
        ] {
            assert_eq!(CliError::from(e).exit, want);
        }
    }
}
