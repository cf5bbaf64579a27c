//! `/metrics`, as Prometheus reads it: base units, `_total` for what only grows.

use super::Status;
use super::member::Seen;
use super::notices::DriveLine;
use crate::export::latency::{BOUNDS, Kind};
use std::fmt::Write;

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, about: &str) {
        let _ = writeln!(self.0, "# HELP {name} {about}\n# TYPE {name} {kind}");
    }
    fn value(&mut self, name: &str, labels: &str, value: u64) {
        let _ = if labels.is_empty() {
            writeln!(self.0, "{name} {value}")
        } else {
            writeln!(self.0, "{name}{{{labels}}} {value}")
        };
    }
    fn one(&mut self, name: &str, kind: &str, about: &str, value: u64) {
        self.head(name, kind, about);
        self.value(name, "", value);
    }
}

fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ")
}

/// The page.
#[must_use]
pub fn page(s: &Status, lines: &[DriveLine], seen: &Seen) -> String {
    let mut p = Page(String::with_capacity(4096));
    p.one("blockd_guest_connections", "gauge", "Connected NBD clients.", s.clients as u64);
    p.one("blockd_guest_requests_in_flight", "gauge", "Guest requests not yet answered.", s.in_flight as u64);
    p.one("blockd_guest_requests_total", "counter", "Guest requests taken in.", s.requests);
    let about = "NBD clients that were not let in, or entered no export in time.";
    p.one("blockd_guest_connections_refused_total", "counter", about, s.turned_away);
    latencies(&mut p, s);
    p.one("blockd_links", "gauge", "Data-plane connections to other nodes.", s.links as u64);
    p.one("blockd_link_received_bytes_total", "counter", "Bytes received from other nodes.", s.link_bytes_in);
    p.one("blockd_link_sent_bytes_total", "counter", "Bytes sent to other nodes.", s.link_bytes_out);
    p.one("blockd_shard_turns_total", "counter", "Turns of the shard's loop.", s.turns);
    p.one("blockd_ring_enters_total", "counter", "System calls of the shard's ring.", s.enters);
    drives(&mut p, lines, seen);
    sessions(&mut p, s, seen);
    p.0
}

/// `0.00005`: seconds of a number of nanoseconds, exactly.
fn seconds(nanos: u64) -> String {
    let text = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn latencies(p: &mut Page, s: &Status) {
    let name = "blockd_guest_latency_seconds";
    p.head(name, "histogram", "From a guest's request until its answer, by kind.");
    for kind in Kind::ALL {
        let (h, label) = (s.latencies.of(kind), format!("kind=\"{}\"", kind.name()));
        let mut below = 0;
        for (i, count) in h.buckets.iter().enumerate() {
            below += count;
            let bound = BOUNDS.get(i).map_or_else(|| "+Inf".into(), |us| seconds(us * 1000));
            p.value(&format!("{name}_bucket"), &format!("{label},le=\"{bound}\""), below);
        }
        let _ = writeln!(p.0, "{name}_sum{{{label}}} {}", seconds(h.sum));
        p.value(&format!("{name}_count"), &label, below);
    }
}

fn drives(p: &mut Page, lines: &[DriveLine], seen: &Seen) {
    let rows: Vec<(String, _)> =
        lines.iter().map(|d| (format!("path=\"{}\",drive=\"{}\"", label(&d.path), d.drive), d)).collect();
    type Get = fn(&DriveLine) -> u64;
    let gets: [(&str, &str, &str, Get); 9] = [
        ("blockd_drive_capacity_bytes", "gauge", "Size of the drive.", |d| d.capacity),
        ("blockd_drive_serving", "gauge", "1 while the drive serves.", |d| u64::from(d.serves())),
        ("blockd_drive_reads_total", "counter", "Reads of the drive.", |d| d.counts.reads),
        ("blockd_drive_writes_total", "counter", "Writes to the drive.", |d| d.counts.writes),
        ("blockd_drive_flushes_total", "counter", "Flushes of the drive.", |d| d.counts.flushes),
        ("blockd_drive_read_bytes_total", "counter", "Bytes read.", |d| d.counts.bytes_read),
        ("blockd_drive_written_bytes_total", "counter", "Bytes written.", |d| d.counts.bytes_written),
        ("blockd_drive_journal_bytes", "gauge", "Size of its journal.", |d| d.journal.size),
        ("blockd_drive_journal_used_bytes", "gauge", "What of it is in use.", |d| d.journal.used),
    ];
    for (name, kind, about, get) in gets {
        p.head(name, kind, about);
        for (labels, d) in &rows {
            p.value(name, labels, get(d));
        }
    }
    p.head("blockd_drive_used_bytes", "gauge", "Space taken by extents.");
    for d in &seen.drives {
        let labels = format!("path=\"{}\",drive=\"{}\"", label(&d.path), d.drive.0);
        p.value("blockd_drive_used_bytes", &labels, d.used);
    }
}

fn sessions(p: &mut Page, s: &Status, seen: &Seen) {
    p.head("blockd_export_connections", "gauge", "NBD clients of a volume.");
    for e in &s.exports {
        p.value("blockd_export_connections", &format!("volume=\"{}\"", label(&e.volume)), e.clients as u64);
    }
    p.one(
        "blockd_sessions",
        "gauge",
        "Sessions of this node, maintenance included.",
        seen.sessions.len() as u64,
    );
    p.head("blockd_session_degraded_chunks", "gauge", "Chunks with a replica that is not in-sync.");
    for x in &seen.sessions {
        let labels = format!("branch=\"{}\"", x.branch.0);
        p.value("blockd_session_degraded_chunks", &labels, u64::from(x.degraded_chunks));
    }
    p.head("blockd_session_waiting", "gauge", "1 while I/O waits, by reason (see docs/operations.md).");
    for x in &seen.sessions {
        if let Some(reason) = &x.waiting {
            let export = s.exports.iter().find(|e| e.branch == Some(x.branch));
            let volume = export.map_or("", |e| &e.volume);
            let labels = format!(
                "branch=\"{}\",volume=\"{}\",reason=\"{}\"",
                x.branch.0,
                label(volume),
                label(reason)
            );
            p.value("blockd_session_waiting", &labels, 1);
        }
    }
    for a in &s.attaching {
        let labels = format!("branch=\"\",volume=\"{}\",reason=\"attaching\"", label(&a.volume));
        p.value("blockd_session_waiting", &labels, 1);
    }
    p.head("blockd_session_resync_left_bytes", "gauge", "Bytes still to compare or move.");
    for x in &seen.sessions {
        p.value("blockd_session_resync_left_bytes", &format!("branch=\"{}\"", x.branch.0), x.resync_left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str, state: &'static str) -> DriveLine {
        DriveLine {
            drive: 7,
            path: path.into(),
            capacity: 10,
            state,
            reason: String::new(),
            ago: std::time::Duration::ZERO,
            counts: crate::drives::DriveCounts::default(),
            journal: node::JournalFill { used: 3, size: 9 },
        }
    }

    fn waiting() -> proto::control::SessionStatus {
        proto::control::SessionStatus {
            branch: proto::BranchId(3),
            epoch: proto::Epoch(1),
            kind: proto::control::SessionKind::Guest,
            state: proto::control::SessionState::Serving,
            generation: proto::Generation::FIRST,
            resync_left: 0,
            resync_moved: 0,
            resync_rate: 0,
            degraded_chunks: 0,
            waiting: Some("lease".into()),
            job: None,
            size: 0,
        }
    }

    #[test]
    fn every_sample_has_a_type_and_labels_are_escaped() {
        let mut status = Status {
            exports: vec![crate::control::ExportStatus {
                volume: "v1".into(),
                branch: Some(proto::BranchId(3)),
                clients: 2,
                in_flight: 0,
            }],
            attaching: vec![node::SeatView {
                volume: "v2".into(),
                kind: proto::control::SessionKind::Guest,
                since: proto::Time(1),
                reason: String::new(),
                exports: 1,
                requests: 4,
            }],
            ..Status::default()
        };
        status.latencies.add(Kind::Read, proto::Span::micros(70));
        status.latencies.add(Kind::Read, proto::Span::secs(40));
        let seen = Seen { sessions: vec![waiting()], ..Seen::default() };
        let page = page(&status, &[line("/dev/a\"b", "serving"), line("/dev/c", "stranger")], &seen);
        for want in [
            "blockd_drive_serving{path=\"/dev/a\\\"b\",drive=\"7\"} 1\n",
            "blockd_drive_serving{path=\"/dev/c\",drive=\"7\"} 0\n",
            "blockd_drive_journal_bytes{path=\"/dev/c\",drive=\"7\"} 9\n",
            "blockd_drive_journal_used_bytes{path=\"/dev/c\",drive=\"7\"} 3\n",
            "blockd_export_connections{volume=\"v1\"} 2\n",
            "blockd_session_waiting{branch=\"3\",volume=\"v1\",reason=\"lease\"} 1\n",
            "blockd_session_waiting{branch=\"\",volume=\"v2\",reason=\"attaching\"} 1\n",
            "blockd_guest_latency_seconds_bucket{kind=\"read\",le=\"0.00005\"} 0\n",
            "blockd_guest_latency_seconds_bucket{kind=\"read\",le=\"0.0001\"} 1\n",
            "blockd_guest_latency_seconds_bucket{kind=\"read\",le=\"30\"} 1\n",
            "blockd_guest_latency_seconds_bucket{kind=\"read\",le=\"+Inf\"} 2\n",
            "blockd_guest_latency_seconds_sum{kind=\"read\"} 40.00007\n",
            "blockd_guest_latency_seconds_count{kind=\"read\"} 2\n",
            "blockd_guest_latency_seconds_count{kind=\"flush\"} 0\n",
        ] {
            assert!(page.contains(want), "{want}{page}");
        }
        for line in page.lines().filter(|l| !l.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let of = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let histogram = of.is_some_and(|n| page.contains(&format!("# TYPE {n} histogram")));
            assert!(histogram || page.contains(&format!("# TYPE {name} ")), "{line}");
        }
    }
}
