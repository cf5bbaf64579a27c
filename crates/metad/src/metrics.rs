//! `/metrics` (Prometheus) and `/healthz`, answered by hand: two pages need no web framework.

use crate::raft::types::Metrics;
use crate::rpc::lead::Lead;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// A request's head, bytes; a longer one is refused.
const HEAD_MAX: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections answered at once; others wait.
const AT_ONCE: usize = 16;

pub async fn serve(listener: TcpListener, lead: Lead) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptors: others will be closed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let lead = lead.clone();
        tokio::spawn(async move {
            // Who asks and goes away is no concern of ours.
            let _ = tokio::time::timeout(PATIENCE, answer(stream, &lead)).await;
            drop(slot);
        });
    }
}

async fn answer(mut stream: TcpStream, lead: &Lead) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let mut piece = [0; 1024];
        let n = stream.read(&mut piece).await?;
        if n == 0 || head.len() + n > HEAD_MAX {
            return Ok(());
        }
        head.extend_from_slice(&piece[..n]);
    }
    let (status, body) = page(&head, &lead.metrics());
    let reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
}

fn page(head: &[u8], metrics: &Metrics) -> (&'static str, String) {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics")) => ("200 OK", text(metrics)),
        (Some("GET"), Some("/healthz")) => match (&metrics.running_state, metrics.current_leader) {
            (Err(e), _) => ("503 Service Unavailable", format!("stopped: {e}\n")),
            (Ok(()), None) => ("503 Service Unavailable", "no leader is known\n".into()),
            (Ok(()), Some(leader)) => ("200 OK", format!("ok, metad {leader} leads\n")),
        },
        (Some("GET"), Some(_)) => ("404 Not Found", "there are /metrics and /healthz\n".into()),
        _ => ("405 Method Not Allowed", String::new()),
    }
}

fn text(m: &Metrics) -> String {
    let mut out = String::new();
    let mut gauge = |name: &str, help: &str, value: String| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    };
    let leads = m.current_leader == Some(m.id);
    gauge("metad_leader", "1 if this metad leads.", u8::from(leads).to_string());
    gauge("metad_leader_known", "1 if a leader is known.", u8::from(m.current_leader.is_some()).to_string());
    gauge("metad_term", "Raft term.", m.current_term.to_string());
    gauge("metad_log_index", "Index of the last log entry.", m.last_log_index.unwrap_or(0).to_string());
    gauge(
        "metad_applied_index",
        "Index of the last entry applied.",
        m.last_applied.map_or(0, |l| l.index).to_string(),
    );
    gauge(
        "metad_snapshot_index",
        "Index that the last snapshot holds.",
        m.snapshot.map_or(0, |l| l.index).to_string(),
    );
    gauge(
        "metad_purged_index",
        "Index up to which the log is purged.",
        m.purged.map_or(0, |l| l.index).to_string(),
    );
    let members = m.membership_config.membership().nodes().count();
    gauge("metad_members", "Members of the Raft group.", members.to_string());
    if let Some(ms) = m.millis_since_quorum_ack {
        let seconds = Duration::from_millis(ms).as_secs_f64();
        gauge(
            "metad_quorum_ack_age_seconds",
            "Since a quorum last answered the leader.",
            seconds.to_string(),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::RaftMetrics;

    #[test]
    fn pages_are_found_and_others_are_not() {
        let mut m = RaftMetrics::new_initial(3);
        assert_eq!(page(b"GET /healthz HTTP/1.1\r\n\r\n", &m).0, "503 Service Unavailable");
        m.current_leader = Some(3);
        assert_eq!(page(b"GET /healthz HTTP/1.1\r\n\r\n", &m), ("200 OK", "ok, metad 3 leads\n".into()));
        let (status, body) = page(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", &m);
        assert_eq!(status, "200 OK");
        assert!(body.contains("\nmetad_leader 1\n"), "{body}");
        assert_eq!(page(b"GET /x HTTP/1.1\r\n\r\n", &m).0, "404 Not Found");
        assert_eq!(page(b"rubbish", &m).0, "405 Method Not Allowed");
    }
}
