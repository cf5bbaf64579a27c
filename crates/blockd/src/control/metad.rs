//! The client of metad: finds the leader among the addresses it knows, and gives up when its patience ends.
//!
//! An answer that did not come decides nothing: the node asks again. Whatever is repeated here is harmless to repeat.

use api::v1::node_service_client::NodeServiceClient;
use api::v1::{NodeCall, RegisterAnswer, RegisterRequest, WatchEvent, WatchRequest};
use proto::control::{MetaAnswer, MetaRequest};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

const CONNECT_WITHIN: Duration = Duration::from_millis(300);
/// A connection on which nothing moves is asked for a sign of life after this, and given up after as much again.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// Between rounds through all addresses.
const PAUSE: Duration = Duration::from_millis(50);

/// Where metads are, and which one led when it was asked last.
struct Directory {
    addresses: Vec<String>,
    channels: HashMap<String, Channel>,
    current: usize,
    answered: Option<(String, Instant)>,
    /// Why an address did not answer, the last time.
    failed: HashMap<String, String>,
}

pub struct Metad {
    directory: Mutex<Directory>,
    file: Option<PathBuf>,
}

/// Why a call had no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("no metad leads, or none can be reached")]
    Unavailable,
    #[error("metad refused: {0}")]
    Refused(String),
}

/// What a call failed of: the innermost error says it.
fn cause(status: &Status) -> String {
    let mut innermost: &dyn std::error::Error = status;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    if std::error::Error::source(status).is_some() {
        innermost.to_string()
    } else {
        status.message().to_string()
    }
}

impl Metad {
    /// `file` lists further addresses, one a line; it may change.
    #[must_use]
    pub fn new(addresses: Vec<String>, file: Option<PathBuf>) -> Metad {
        let directory = Mutex::new(Directory {
            addresses,
            channels: HashMap::new(),
            current: 0,
            answered: None,
            failed: HashMap::new(),
        });
        let metad = Metad { directory, file };
        metad.reload();
        metad
    }

    fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the file of addresses again.
    pub fn reload(&self) {
        let Some(text) = self.file.as_ref().and_then(|f| std::fs::read_to_string(f).ok()) else { return };
        let lines = text.split_whitespace().filter(|l| crate::config::is_endpoint(l)).map(String::from);
        self.learn(lines);
    }

    fn learn(&self, addresses: impl IntoIterator<Item = String>) {
        let mut d = self.directory();
        for a in addresses {
            if !d.addresses.contains(&a) {
                d.addresses.push(a);
            }
        }
    }

    /// Who answered last, and how long ago.
    #[must_use]
    pub fn last_answer(&self) -> Option<(String, Duration)> {
        self.directory().answered.as_ref().map(|(a, t)| (a.clone(), t.elapsed()))
    }

    /// Every address, and why it did not answer the last time; for whoever waits.
    #[must_use]
    pub fn tried(&self) -> String {
        let d = self.directory();
        let why = |a: &String| d.failed.get(a).map_or("not asked yet", String::as_str).to_string();
        let all: Vec<String> = d.addresses.iter().map(|a| format!("{a} ({})", why(a))).collect();
        if all.is_empty() { "no address of a metad is known".into() } else { all.join(", ") }
    }

    fn note_failure(&self, address: &str, why: String) {
        self.directory().failed.insert(address.into(), why);
    }

    /// The one to ask now.
    fn pick(&self) -> Option<(String, NodeServiceClient<Channel>)> {
        let mut d = self.directory();
        let address = d.addresses.get(d.current)?.clone();
        let channel = match d.channels.get(&address) {
            Some(c) => c.clone(),
            None => {
                let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
                let channel = endpoint
                    .connect_timeout(CONNECT_WITHIN)
                    .tcp_nodelay(true)
                    .http2_keep_alive_interval(SIGN_OF_LIFE)
                    .keep_alive_timeout(SIGN_OF_LIFE)
                    .connect_lazy();
                d.channels.insert(address.clone(), channel.clone());
                channel
            }
        };
        let client = NodeServiceClient::new(channel)
            .max_decoding_message_size(api::MESSAGE_MAX)
            .max_encoding_message_size(api::MESSAGE_MAX);
        Some((address, client))
    }

    fn answered(&self, address: &str) {
        self.directory().answered = Some((address.into(), Instant::now()));
    }

    /// `address` did not do it: ask `leader` next, or the one after it.
    fn turn(&self, address: &str, leader: Option<String>) {
        let mut d = self.directory();
        if d.addresses.get(d.current).is_some_and(|a| a != address) {
            return; // another call has turned already
        }
        if let Some(leader) = leader.filter(|l| !l.is_empty() && l != address) {
            d.current = d.addresses.iter().position(|a| *a == leader).unwrap_or_else(|| {
                d.addresses.push(leader);
                d.addresses.len() - 1
            });
            return;
        }
        d.current = (d.current + 1) % d.addresses.len().max(1);
    }

    /// What to do after a failed try; an error if trying again is of no use.
    async fn failed(&self, address: &str, status: &Status) -> Result<(), CallError> {
        let detail = api::error::detail(status);
        let leader = detail.as_ref().and_then(|d| d.leader.clone());
        if let Some(d) = detail.filter(|d| d.code != api::error::NOT_LEADER && d.leader.is_none()) {
            return Err(CallError::Refused(format!("{} ({}) {}", d.message, d.cause, d.fix)));
        }
        if !matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal
        ) {
            return Err(CallError::Refused(status.message().into()));
        }
        tracing::debug!(metad = address, status = %status.message(), "metad did not answer");
        self.note_failure(address, cause(status));
        let hinted = leader.as_ref().is_some_and(|l| !l.is_empty());
        self.turn(address, leader);
        if !hinted {
            self.reload();
        }
        // With a hint too: two that point at each other are not asked in a tight circle.
        tokio::time::sleep(if hinted { PAUSE / 10 } else { PAUSE }).await;
        Ok(())
    }

    /// Tries one call after another, at one metad after another, for so long.
    async fn with_leader<A, F>(
        &self,
        limit: Duration,
        call: impl Fn(NodeServiceClient<Channel>) -> F,
    ) -> Result<A, CallError>
    where
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let Some((address, client)) = self.pick() else { return Err(CallError::Unavailable) };
            match tokio::time::timeout_at(deadline, call(client)).await {
                Ok(Ok(answer)) => {
                    self.answered(&address);
                    return Ok(answer.into_inner());
                }
                Ok(Err(status)) => self.failed(&address, &status).await?,
                Err(_) => {
                    // Connected, yet silent: stopped, or cut off.
                    self.note_failure(&address, "no answer in time".into());
                    self.turn(&address, None);
                    return Err(CallError::Unavailable);
                }
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(CallError::Unavailable);
            }
        }
    }

    /// One request of the node's, answered; `Unavailable` if it could not be.
    pub async fn call(&self, request: &MetaRequest) -> MetaAnswer {
        let bytes = postcard::to_stdvec(request).expect("plain data is encoded");
        let answer = self
            .with_leader(Duration::from_nanos(request.patience().0), |mut c| {
                let (request, wall_ms) = (bytes.clone(), wall_ms());
                async move { c.call(NodeCall { request, wall_ms }).await }
            })
            .await;
        match answer {
            Ok(a) => postcard::from_bytes(&a.answer).unwrap_or_else(|error| {
                tracing::error!(%error, "an answer of metad that this version does not understand");
                MetaAnswer::Unavailable
            }),
            Err(error) => {
                tracing::debug!(%error, "no answer of metad");
                MetaAnswer::Unavailable
            }
        }
    }

    pub async fn register(&self, request: &RegisterRequest) -> Result<RegisterAnswer, CallError> {
        let answer = self
            .with_leader(Duration::from_secs(2), |mut c| {
                let request = request.clone();
                async move { c.register(request).await }
            })
            .await?;
        self.learn(answer.metad.iter().cloned());
        Ok(answer)
    }

    /// The leader's stream of updates.
    pub async fn watch(&self, request: WatchRequest) -> Result<Streaming<WatchEvent>, CallError> {
        self.with_leader(Duration::from_secs(2), |mut c| async move { c.watch(request).await }).await
    }
}

/// This machine's wall clock, Unix milliseconds.
fn wall_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Metad {
        Metad::new((0..n).map(|i| format!("m{i}:1")).collect(), None)
    }
    fn current(m: &Metad) -> String {
        let d = m.directory();
        d.addresses[d.current].clone()
    }

    #[test]
    fn a_hint_is_followed_and_without_one_the_next_is_asked() {
        let m = names(3);
        m.turn("m0:1", Some("m2:1".into()));
        assert_eq!(current(&m), "m2:1");
        m.turn("m2:1", None);
        assert_eq!(current(&m), "m0:1");
        m.turn("m0:1", Some("m9:1".into()));
        assert_eq!(current(&m), "m9:1", "one that was not known");
        m.turn("m0:1", None);
        assert_eq!(current(&m), "m9:1", "a late failure of another turns nothing");
    }

    #[test]
    fn where_no_metad_is_the_answer_comes_within_a_second_and_says_so() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let m = Metad::new(vec!["127.0.0.1:1".into(), "127.0.0.1:2".into()], None);
        let t = Instant::now();
        let answer = runtime.block_on(m.call(&MetaRequest::Volumes { name: None }));
        assert_eq!(answer, MetaAnswer::Unavailable);
        assert!(t.elapsed() < Duration::from_millis(1500), "{:?}", t.elapsed());
        let tried = m.tried();
        assert!(tried.starts_with("127.0.0.1:1 (") && tried.contains(", 127.0.0.1:2 ("), "{tried}");
        assert!(tried.contains("refused"), "{tried}");
    }

    #[test]
    fn a_metad_that_hangs_is_left_for_the_next() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let m = Metad::new(vec![address.clone(), "127.0.0.1:2".into()], None);
        let t = Instant::now();
        assert_eq!(runtime.block_on(m.call(&MetaRequest::Volumes { name: None })), MetaAnswer::Unavailable);
        assert!(t.elapsed() < Duration::from_millis(1500), "{:?}", t.elapsed());
        assert_ne!(current(&m), address);
        assert!(m.tried().contains(&format!("{address} (no answer in time)")), "{}", m.tried());
    }

    #[test]
    fn the_file_of_addresses_adds_to_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("metad");
        let m = Metad::new(vec!["a:1".into()], Some(file.clone()));
        std::fs::write(&file, "b:2\na:1\nrubbish\n").unwrap();
        m.reload();
        assert_eq!(m.directory().addresses, ["a:1", "b:2"]);
    }
}
