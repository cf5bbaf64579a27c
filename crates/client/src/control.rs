//! The control plane's client: finds the leader among the metads it knows, repeats what is harmless to repeat, and
//! tells apart what was refused, what was not reached, and what nobody knows.
//!
//! A request that changes something carries a request id, so a repeat has the first answer.

use api::v1::ErrorDetail;
use api::v1::cluster_service_client::ClusterServiceClient;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

const CONNECT: Duration = Duration::from_millis(500);
/// One try at one metad.
const TRY: Duration = Duration::from_secs(5);
/// Between two rounds of tries.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a request is repeated: an election and more.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// Where nobody answers, not even to say that it does not lead.
const NOBODY: Duration = Duration::from_secs(5);
/// `meta`'s code of "the leader changed while it was under way".
const OUTCOME_UNKNOWN: u32 = 1009;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// metad has decided: no.
    #[error("{}", .0.message)]
    Refused(Box<ErrorDetail>),
    #[error("no metad answers at {endpoints}: {cause}")]
    Unreachable { endpoints: String, cause: String },
    /// It was sent, and no answer came.
    #[error("no answer in time: it may have been done, or not ({cause})")]
    Unknown { cause: String },
    #[error("\"{0}\" is not HOST:PORT")]
    Endpoint(String),
}

pub type Client = ClusterServiceClient<Channel>;

/// What came of the tries so far.
#[derive(Default)]
struct Tried {
    /// Somebody answered, or may have.
    answered: bool,
    cause: String,
    /// Once a try was sent and not answered, nobody knows whether it was done.
    unknown: Option<String>,
}
impl Tried {
    fn unknown(&mut self, cause: String) -> Option<String> {
        self.answered = true;
        self.unknown = Some(cause);
        None
    }
    fn error(self, endpoints: String) -> ControlError {
        match self.unknown {
            Some(cause) => ControlError::Unknown { cause },
            None => ControlError::Unreachable { endpoints, cause: self.cause },
        }
    }
}

/// What is known of the metads.
struct Directory {
    endpoints: Vec<String>,
    channels: BTreeMap<String, Channel>,
    /// Whom to ask next.
    current: usize,
}

pub struct Control {
    directory: Mutex<Directory>,
    patience: Duration,
}

impl Control {
    /// # Errors
    /// An endpoint that cannot be one.
    pub fn new(endpoints: Vec<String>, patience: Duration) -> Result<Control, ControlError> {
        if let Some(bad) = endpoints.iter().find(|e| !is_endpoint(e)) {
            return Err(ControlError::Endpoint(bad.clone()));
        }
        let directory = Mutex::new(Directory { endpoints, channels: BTreeMap::new(), current: 0 });
        Ok(Control { directory, patience })
    }

    /// The same metads, asked for another while.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Control {
        let d = self.locked();
        let directory = Mutex::new(Directory {
            endpoints: d.endpoints.clone(),
            channels: d.channels.clone(),
            current: d.current,
        });
        Control { directory, patience }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Directory> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request to the leader, repeated until it has an answer or patience ends.
    ///
    /// # Errors
    /// Refused, not reached, or unknown.
    pub async fn call<T, F>(&self, ask: impl Fn(Client) -> F) -> Result<T, ControlError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let begun = Instant::now();
        let mut tried = Tried::default();
        loop {
            let (address, client) = self.pick()?;
            let left = self.patience_for(&tried).saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(tried.error(self.locked().endpoints.join(",")));
            }
            let leader = match tokio::time::timeout(TRY.min(left), ask(client)).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Err(_) => tried.unknown(format!("{address} is silent")),
                Ok(Err(status)) => match sort(&status) {
                    Sorted::Refused(detail) => return Err(ControlError::Refused(detail)),
                    Sorted::Elsewhere(leader) => {
                        tried.answered = true;
                        tried.cause = "none of them leads".into();
                        leader
                    }
                    Sorted::Unreached(cause) => {
                        tried.cause = cause;
                        None
                    }
                    Sorted::Unknown(cause) => tried.unknown(cause),
                },
            };
            self.turn(&address, leader);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Where nobody has answered at all there is no election to wait for.
    fn patience_for(&self, tried: &Tried) -> Duration {
        if tried.answered { self.patience } else { self.patience.min(NOBODY) }
    }

    fn pick(&self) -> Result<(String, Client), ControlError> {
        let mut d = self.locked();
        let none =
            || ControlError::Unreachable { endpoints: "(none)".into(), cause: "no endpoint is known".into() };
        let address = d.endpoints.get(d.current).cloned().ok_or_else(none)?;
        let channel = match d.channels.get(&address) {
            Some(channel) => channel.clone(),
            None => {
                let channel = channel(&address)?;
                d.channels.insert(address.clone(), channel.clone());
                channel
            }
        };
        Ok((address, client(channel)))
    }

    fn turn(&self, from: &str, leader: Option<String>) {
        let mut d = self.locked();
        if let Some(leader) = leader.filter(|l| is_endpoint(l) && l != from) {
            d.current = d.endpoints.iter().position(|e| *e == leader).unwrap_or_else(|| {
                d.endpoints.push(leader);
                d.endpoints.len() - 1
            });
        } else if d.endpoints.get(d.current).is_some_and(|e| e == from) {
            d.current = (d.current + 1) % d.endpoints.len();
        }
    }
}

/// A client of one metad, whether it leads or not.
///
/// # Errors
/// The address cannot be one.
pub fn one(address: &str) -> Result<Client, ControlError> {
    Ok(client(channel(address)?))
}

fn channel(address: &str) -> Result<Channel, ControlError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|_| ControlError::Endpoint(address.into()))?;
    Ok(endpoint.connect_timeout(CONNECT).tcp_nodelay(true).connect_lazy())
}

fn client(channel: Channel) -> Client {
    ClusterServiceClient::new(channel)
        .max_decoding_message_size(api::MESSAGE_MAX)
        .max_encoding_message_size(api::MESSAGE_MAX)
}

/// `HOST:PORT`.
pub(crate) fn is_endpoint(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok_and(|p| p != 0)
    })
}

/// What a failed try means.
#[derive(Debug, PartialEq)]
enum Sorted {
    Refused(Box<ErrorDetail>),
    /// The leader's address, if it is known.
    Elsewhere(Option<String>),
    Unreached(String),
    Unknown(String),
}

fn sort(status: &Status) -> Sorted {
    match api::error::detail(status) {
        Some(d) if d.code == api::error::NOT_LEADER => Sorted::Elsewhere(d.leader.filter(|l| !l.is_empty())),
        Some(d) if d.code == OUTCOME_UNKNOWN => Sorted::Unknown(d.message),
        Some(d) => Sorted::Refused(Box::new(d)),
        None => {
            let text = status.message().to_owned();
            match status.code() {
                Code::Unavailable => Sorted::Unreached(text),
                Code::InvalidArgument | Code::Unimplemented | Code::FailedPrecondition | Code::NotFound => {
                    Sorted::Refused(Box::new(ErrorDetail {
                        code: 1910,
                        message: text,
                        cause: format!("metad answered {:?}", status.code()),
                        fix: "use a blockctl of metad's version".into(),
                        leader: None,
                        exit: 1,
                    }))
                }
                _ => Sorted::Unknown(text),
            }
        }
    }
}

/// 16 random bytes: the id of a request.
///
/// # Errors
/// /dev/urandom cannot be read.
pub fn request_id() -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = vec![0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_there_is_unreachable_and_not_unknown() {
        // Nobody listens on a port that was just given back.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let control = Control::new(vec![port.to_string()], Duration::from_millis(300)).unwrap();
        let error = control.call(|mut c| async move { c.status(api::v1::StatusRequest {}).await }).await;
        assert!(matches!(error, Err(ControlError::Unreachable { .. })), "{error:?}");
    }

    #[test]
    fn statuses_are_told_apart() {
        assert_eq!(sort(&api::error::not_leader(Some("a:1".into()))), Sorted::Elsewhere(Some("a:1".into())));
        assert_eq!(sort(&api::error::not_leader(None)), Sorted::Elsewhere(None));
        assert_eq!(sort(&Status::unavailable("x")), Sorted::Unreached("x".into()));
        assert_eq!(sort(&Status::internal("x")), Sorted::Unknown("x".into()));
        assert!(matches!(sort(&Status::invalid_argument("x")), Sorted::Refused(_)));
        let mut detail = ErrorDetail { code: OUTCOME_UNKNOWN, message: "m".into(), ..ErrorDetail::default() };
        assert_eq!(sort(&api::error::status(Code::Unknown, &detail)), Sorted::Unknown("m".into()));
        detail.code = 1203;
        assert!(
            matches!(sort(&api::error::status(Code::Unknown, &detail)), Sorted::Refused(d) if d.code == 1203)
        );
    }

    #[test]
    fn the_leaders_address_is_asked_next_and_learned() {
        let c = Control::new(vec!["a:1".into(), "b:1".into()], PATIENCE).unwrap();
        c.turn("a:1", Some("c:1".into()));
        assert_eq!(c.locked().current, 2);
        assert_eq!(c.locked().endpoints.len(), 3);
        c.turn("c:1", None);
        assert_eq!(c.locked().current, 0);
        c.turn("b:1", None);
        assert_eq!(c.locked().current, 0, "another call has turned already");
        assert!(matches!(Control::new(vec!["a".into()], PATIENCE), Err(ControlError::Endpoint(_))));
    }
}
