//! Formats a drive for a node of a cluster.

use anyhow::Context;
use blockd::config::parse_cluster;
use blockd::format::{Tool, Wish, format, parse_size};
use clap::Parser;
use proto::{ClusterId, NodeId};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "blockd-format", version, about = "Formats a drive for blockd")]
struct Arguments {
    /// A block device, or a file (made if it is not there, with --size).
    path: PathBuf,
    /// The cluster's id, 32 hexadecimal digits.
    #[arg(long, value_parser = |t: &str| parse_cluster(t).map_err(|e| e.to_string()))]
    cluster: ClusterId,
    /// The node's number.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    node: u32,
    /// Size of a new file: 10GiB, 10G, 10GB.
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// Take all the space of a file now.
    #[arg(long)]
    preallocate: bool,
    /// Over whatever is there: it is lost.
    #[arg(long)]
    force: bool,
}

fn main() -> ExitCode {
    blockd::finish(run())
}

fn run() -> anyhow::Result<ExitCode> {
    let a = Arguments::parse();
    let wish = Wish {
        tool: Tool::BlockdFormat,
        cluster: a.cluster,
        node: NodeId(a.node),
        size: a.size,
        preallocate: a.preallocate,
        force: a.force,
    };
    let done = format(&a.path, &wish).context("nothing was formatted")?;
    let report = serde_json::json!({
        "schema": "drive.format/1",
        "path": a.path.display().to_string(),
        "drive": done.drive.0,
        "size": done.size,
        "journal": done.journal,
        "extents": done.extents,
    });
    println!("{report}");
    Ok(ExitCode::SUCCESS)
}
