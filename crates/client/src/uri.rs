//! Where an export is: `nbd+unix:///NAME?socket=PATH` or `nbd://HOST:PORT/NAME`.

use std::fmt;
use std::path::PathBuf;

/// Registered port of NBD.
const PORT: u16 = 10809;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    Unix(PathBuf),
    /// `host:port`, an IPv6 host in brackets.
    Tcp(String),
}

/// An export somewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uri {
    pub address: Address,
    pub export: String,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UriError {
    #[error("\"{0}\" is no NBD URI: want nbd+unix:///NAME?socket=PATH or nbd://HOST:PORT/NAME")]
    Form(String),
    #[error("\"{0}\" lacks ?socket=PATH")]
    Socket(String),
    #[error("\"{0}\": TLS is not supported")]
    Tls(String),
}

impl Uri {
    #[must_use]
    pub fn unix(socket: impl Into<PathBuf>, export: impl Into<String>) -> Uri {
        Uri { address: Address::Unix(socket.into()), export: export.into() }
    }
}

impl std::str::FromStr for Uri {
    type Err = UriError;
    fn from_str(s: &str) -> Result<Uri, UriError> {
        let form = || UriError::Form(s.to_owned());
        let (scheme, rest) = s.split_once("://").ok_or_else(form)?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, export) = place.split_once('/').unwrap_or((place, ""));
        let export = decode(export).ok_or_else(form)?;
        match scheme {
            "nbd+unix" if host.is_empty() => {
                let path = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
                let path = path.filter(|p| !p.is_empty()).ok_or_else(|| UriError::Socket(s.to_owned()))?;
                Ok(Uri::unix(decode(path).ok_or_else(form)?, export))
            }
            "nbd" if !host.is_empty() => {
                let has_port =
                    host.rsplit_once(':').is_some_and(|(h, _)| !h.contains(':') || h.ends_with(']'));
                let host = if has_port { host.to_owned() } else { format!("{host}:{PORT}") };
                Ok(Uri { address: Address::Tcp(host), export })
            }
            "nbds" | "nbds+unix" => Err(UriError::Tls(s.to_owned())),
            _ => Err(form()),
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = encode(&self.export);
        match &self.address {
            Address::Unix(path) => {
                write!(f, "nbd+unix:///{export}?socket={}", encode(&path.to_string_lossy()))
            }
            Address::Tcp(host) => write!(f, "nbd://{host}/{export}"),
        }
    }
}

/// `%41` -> `A`; `None` if that is no text.
fn decode(s: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = s.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

/// Leaves what needs no care, a path's slashes and a snapshot's `@` too.
fn encode(s: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/@:".contains(&b);
    s.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, export: &str) -> Uri {
        Uri { address: Address::Tcp(host.into()), export: export.into() }
    }

    #[test]
    fn both_forms_are_read_and_written() {
        for (text, uri) in [
            ("nbd+unix:///vol?socket=/run/blockd/nbd.sock", Uri::unix("/run/blockd/nbd.sock", "vol")),
            ("nbd+unix:///vol@s1?socket=/a%20b", Uri::unix("/a b", "vol@s1")),
            ("nbd://host:9/vol", tcp("host:9", "vol")),
            ("nbd://[::1]:9/v", tcp("[::1]:9", "v")),
        ] {
            assert_eq!(text.parse(), Ok(uri.clone()));
            assert_eq!(uri.to_string(), text);
        }
        assert_eq!("nbd://host".parse(), Ok(tcp("host:10809", "")));
        assert_eq!("nbd://[::1]/v".parse(), Ok(tcp("[::1]:10809", "v")));
        assert_eq!("nbd+unix:///v?x=1&socket=/s".parse(), Ok(Uri::unix("/s", "v")));
    }

    #[test]
    fn others_are_refused() {
        for text in ["", "vol", "http://x/y", "nbd+unix://host/vol?socket=/s", "nbd:///vol", "nbd://h/%zz"] {
            assert!(matches!(text.parse::<Uri>(), Err(UriError::Form(_))), "{text}");
        }
        assert!(matches!("nbd+unix:///vol".parse::<Uri>(), Err(UriError::Socket(_))));
        assert!(matches!("nbds://h/v".parse::<Uri>(), Err(UriError::Tls(_))));
    }
}
