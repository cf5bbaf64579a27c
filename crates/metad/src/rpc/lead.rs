//! Who leads, and how a request gets there: another metad answers with the leader's address, and reads wait until this
//! one has confirmed that it still leads and has applied all that was committed.

use crate::core::Core;
use crate::raft::types::{MetadId, Metrics, Raft};
use api::error;
use openraft::ServerState;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::Status;

/// A read that is not confirmed by then is refused: the client asks again, or elsewhere.
const CONFIRM: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(10);

/// Where this metad stands among the others.
#[derive(Clone)]
pub struct Lead {
    id: MetadId,
    raft: Raft,
    metrics: watch::Receiver<Metrics>,
    /// A leader that has not heard a quorum for so long is none any more.
    patience: Duration,
    /// The core acts as the leader: only then is it asked.
    acting: Arc<watch::Sender<bool>>,
}

impl Lead {
    pub fn new(id: MetadId, raft: Raft, patience: Duration) -> Lead {
        let metrics = raft.metrics();
        Lead { id, raft, metrics, patience, acting: Arc::new(watch::Sender::new(false)) }
    }

    pub fn metrics(&self) -> Metrics {
        self.metrics.borrow().clone()
    }

    /// The term in which this metad leads, if it does.
    fn term(&self) -> Option<u64> {
        let m = self.metrics.borrow();
        let heard = m.millis_since_quorum_ack.is_none_or(|ms| Duration::from_millis(ms) < self.patience);
        (m.state == ServerState::Leader && m.current_leader == Some(self.id) && heard)
            .then_some(m.current_term)
    }

    /// Refuses with the leader's address if this one does not lead.
    pub fn check(&self) -> Result<(), Status> {
        if self.term().is_some() && *self.acting.borrow() {
            return Ok(());
        }
        self.elsewhere()
    }

    fn elsewhere(&self) -> Result<(), Status> {
        let m = self.metrics.borrow();
        let leader = m
            .current_leader
            .filter(|id| *id != self.id)
            .and_then(|id| m.membership_config.membership().get_node(&id).map(|n| n.addr.clone()));
        Err(error::not_leader(leader))
    }

    /// After this the state holds all that was committed when it was called, and the core acts as the leader.
    pub async fn confirm(&self) -> Result<(), Status> {
        self.linearize().await?;
        let mut acting = self.acting.subscribe();
        match tokio::time::timeout(CONFIRM, acting.wait_for(|a| *a)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(error::not_leader(None)),
        }
    }

    async fn linearize(&self) -> Result<(), Status> {
        let confirmed = async {
            loop {
                if self.term().is_none() {
                    return self.elsewhere();
                }
                match self.raft.ensure_linearizable().await {
                    Ok(_) => return Ok(()),
                    // A leader so new that nothing of its term is committed, or one that lost its quorum: the next
                    // look tells.
                    Err(e) => tracing::debug!(error = %e, "leadership is not confirmed"),
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        match tokio::time::timeout(CONFIRM, confirmed).await {
            Ok(result) => result,
            Err(_) => Err(error::not_leader(None)),
        }
    }

    /// Tells the core when this metad begins and ends to lead. It begins only with the state of all earlier leaders.
    pub async fn follow(mut self, core: Core) {
        let mut led: Option<u64> = None;
        loop {
            let term = self.term();
            if led.is_some() && term != led {
                tracing::info!(term = led, "leads no longer");
                self.acting.send_replace(false);
                core.lead(false);
                led = None;
            }
            if let Some(term) = term
                && led.is_none()
                && self.linearize().await.is_ok()
                && self.term() == Some(term)
            {
                tracing::info!(term, "leads");
                core.lead(true);
                self.acting.send_replace(true);
                led = Some(term);
                continue;
            }
            // A leader's own clock counts too: it must notice that nobody answers.
            let wait = tokio::time::timeout(self.patience / 4, self.metrics.changed());
            if let Ok(Err(_)) = wait.await {
                return;
            }
        }
    }
}
