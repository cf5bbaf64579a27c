//! `/metrics`, as Prometheus reads it: base units, `_total` for what only grows.

use super::Status;
use super::member::Seen;
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
pub fn page(s: &Status, seen: &Seen) -> String {
    let mut p = Page(String::with_capacity(4096));
    p.one("blockd_guest_connections", "gauge", "Connected NBD clients.", s.clients as u64);
    p.one("blockd_guest_requests_in_flight", "gauge", "Guest requests not yet answered.", s.in_flight as u64);
    p.one("blockd_guest_requests_total", "counter", "Guest requests taken in.", s.requests);
    p.one("blockd_links", "gauge", "Data-plane connections to other nodes.", s.links as u64);
    p.one("blockd_link_received_bytes_total", "counter", "Bytes received from other nodes.", s.link_bytes_in);
    p.one("blockd_link_sent_bytes_total", "counter", "Bytes sent to other nodes.", s.link_bytes_out);
    p.one("blockd_shard_turns_total", "counter", "Turns of the shard's loop.", s.turns);
    p.one("blockd_ring_enters_total", "counter", "System calls of the shard's ring.", s.enters);
    drives(&mut p, s, seen);
    sessions(&mut p, s, seen);
    p.0
}

fn drives(p: &mut Page, s: &Status, seen: &Seen) {
    let rows: Vec<(String, _)> =
        s.drives.iter().map(|d| (format!("path=\"{}\",drive=\"{}\"", label(&d.path), d.drive), d)).collect();
    type Get = fn(&super::DriveStatus) -> u64;
    let gets: [(&str, &str, &str, Get); 7] = [
        ("blockd_drive_capacity_bytes", "gauge", "Size of the drive.", |d| d.capacity),
        ("blockd_drive_serving", "gauge", "1 while the drive serves.", |d| u64::from(d.state == "serving")),
        ("blockd_drive_reads_total", "counter", "Reads of the drive.", |d| d.counts.reads),
        ("blockd_drive_writes_total", "counter", "Writes to the drive.", |d| d.counts.writes),
        ("blockd_drive_flushes_total", "counter", "Flushes of the drive.", |d| d.counts.flushes),
        ("blockd_drive_read_bytes_total", "counter", "Bytes read.", |d| d.counts.bytes_read),
        ("blockd_drive_written_bytes_total", "counter", "Bytes written.", |d| d.counts.bytes_written),
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
    p.head("blockd_session_resync_left_bytes", "gauge", "Bytes still to compare or move.");
    for x in &seen.sessions {
        p.value("blockd_session_resync_left_bytes", &format!("branch=\"{}\"", x.branch.0), x.resync_left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_has_a_type_and_labels_are_escaped() {
        let status = Status {
            drives: vec![crate::control::DriveStatus {
                drive: 7,
                path: "/dev/a\"b".into(),
                capacity: 10,
                state: "serving",
                counts: crate::shard::DriveCounts::default(),
            }],
            exports: vec![crate::control::ExportStatus {
                volume: "v1".into(),
                branch: None,
                clients: 2,
                in_flight: 0,
            }],
            ..Status::default()
        };
        let page = page(&status, &Seen::default());
        assert!(page.contains("blockd_drive_serving{path=\"/dev/a\\\"b\",drive=\"7\"} 1\n"), "{page}");
        assert!(page.contains("blockd_export_connections{volume=\"v1\"} 2\n"));
        for line in page.lines().filter(|l| !l.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(page.contains(&format!("# TYPE {name} ")), "{line}");
        }
    }
}
