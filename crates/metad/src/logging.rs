//! Logs on stderr, one event a line: logfmt-like, or JSON.

use crate::config::LogFormat;
use tracing_subscriber::EnvFilter;

/// Sets up logging for the process; `filter` has been checked by the configuration.
pub fn start(filter: &str, format: LogFormat) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(false);
    // Fails only if it was set up before (tests): then that one stays.
    let _ = match format {
        LogFormat::Logfmt => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
