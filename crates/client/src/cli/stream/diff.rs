//! `snapshot diff`.

use super::{Cluster, Ranges, changed, comparable, windows};
use crate::cli::args::SnapshotName;
use crate::cli::error::CliError;
use crate::cli::output::{Output, Table, bytes};
use serde_json::{Value, json};

pub fn run(cluster: &Cluster, from: &SnapshotName, to: &SnapshotName) -> Result<Output, CliError> {
    let (a, b) = (cluster.snapshot(from)?, cluster.snapshot(to)?);
    comparable((from, &a), (to, &b))?;
    let export = to.to_string();
    let mut client = cluster.connect_since(&export, &from.snapshot)?;
    cluster.unchanged(&[(from, &a), (to, &b)])?;
    let mut all = Ranges::default();
    for (offset, len) in windows(client.size()) {
        let found = changed(&mut client, &export, offset, len);
        all.extend(&found.map_err(|e| deleted(cluster, &[(from, &a), (to, &b)], e))?);
    }
    client.disconnect();
    Ok(shown(from, to, &all, b.size))
}

/// An error, and a better reason if one of them is gone.
pub fn deleted(cluster: &Cluster, all: &[(&SnapshotName, &api::v1::Snapshot)], e: CliError) -> CliError {
    cluster.unchanged(all).err().unwrap_or(e)
}

fn shown(from: &SnapshotName, to: &SnapshotName, all: &Ranges, size: u64) -> Output {
    let mut table = Table::new(&["offset", "length"]);
    all.iter().for_each(|(offset, len)| table.row(vec![offset.to_string(), len.to_string()]));
    let sum = format!("{} of {} changed from {from} to {to}\n", bytes(all.bytes()), bytes(size));
    let ranges: Vec<Value> =
        all.iter().map(|(offset, len)| json!({"offset": offset, "length": len})).collect();
    let json = json!({
        "from": from.to_string(), "to": to.to_string(), "size_bytes": size, "changed_bytes": all.bytes(),
        "ranges": ranges,
    });
    Output::new("snapshot.diff/1", json, table.text() + &sum)
}
