//! Figures at the design size: 100,000 volumes, 16 million chunks. Not run by default:
//!
//!     cargo test --profile fast -p meta --test scale -- --ignored --nocapture
//!
//! Times are CPU time of the thread. `SCALE=n` makes an n-th of the volumes (default 20), and what is printed is for that many.
#![expect(clippy::disallowed_methods, reason = "it measures")]

mod common;

use common::{World, drive_of};
use meta::placement::{Candidate, Placer};
use meta::{Class, Command, MetaState, Op, Service, ServiceEvent};
use proto::control::{MetaAnswer, SessionKind};
use proto::{BranchId, Geometry, LogIndex, NodeId, Time};
use std::time::Duration;

const NODES: u32 = 100;

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn placer() -> Placer {
    let candidate =
        |n| Candidate { drive: drive_of(n), node: NodeId(n), zone: String::new(), free: 1 << 40, load: 0 };
    Placer::new((1..=NODES).map(candidate).collect())
}

/// Time this thread has spent on a CPU: others on the machine do not count.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0))
}

struct Bench {
    state: MetaState,
    index: u64,
    changes: usize,
    /// Per command.
    spent: Vec<Duration>,
}

impl Bench {
    fn apply(&mut self, op: Op) -> meta::Answer {
        self.index += 1;
        let command = Command { at_ms: 1, request: None, op };
        let start = cpu();
        let outcome = self.state.apply(LogIndex(self.index), &command);
        self.spent.push(cpu() - start);
        self.changes +=
            outcome.changes.iter().map(|c| c.value.as_ref().map_or(0, |v| v.len())).sum::<usize>();
        outcome.answer
    }

    /// Created, attached, made, detached.
    fn volume(&mut self, name: String, placer: &mut Placer, geometry: Geometry) {
        let plan = placer.plan(3, geometry.chunks(), 1 << geometry.chunk_shift, None).expect("enough nodes");
        self.apply(Op::VolumeCreate { name, geometry, class: Class::default(), plan });
        let branch = BranchId(self.state.head().last_branch);
        let epoch = self.state.branches()[&branch].epoch;
        self.apply(Op::Appoint { branch, epoch, node: Some(NodeId(1)) });
        let attach = common::attach_op(branch, 1, SessionKind::Maintenance);
        let meta::Answer::Node(MetaAnswer::Attached(a)) = self.apply(attach) else { panic!("not attached") };
        let placement = a.placement.expect("a new volume has one");
        self.apply(Op::Created { branch, epoch: a.epoch, placement, failed: vec![], replacements: vec![] });
        self.apply(Op::Appoint { branch, epoch: a.epoch, node: None });
        self.apply(Op::Detach { branch, epoch: a.epoch, clean: true });
    }
}

#[test]
#[ignore = "measures; needs an optimized build"]
fn a_volume_of_16_tib_is_made_in_time() {
    let w = World::with_nodes(NODES);
    let mut b = Bench { state: w.state, index: w.index, changes: 0, spent: vec![] };
    let geometry = Geometry { size: 16 << 40, chunk_shift: 28 };
    let start = cpu();
    b.volume("big".into(), &mut placer(), geometry);
    let took = cpu() - start;
    println!(
        "16 TiB, {} chunks: {took:?} for plan and all commands, {} KiB of rows",
        geometry.chunks(),
        b.changes >> 10
    );
    println!("create, appoint, attach, created, appoint, detach: {:?}", b.spent);
    assert!(took.as_secs_f64() < 2.5, "it leaves time for the drives within 5 s");
}

#[test]
#[ignore = "measures; needs an optimized build"]
fn the_design_size() {
    let scale: u32 = std::env::var("SCALE").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    let volumes = 100_000 / scale;
    let w = World::with_nodes(NODES);
    let mut b = Bench { state: w.state, index: w.index, changes: 0, spent: vec![] };
    let mut placer = placer();
    let geometry = Geometry { size: 40 << 30, chunk_shift: 28 };
    let (before, start) = (resident_kib(), cpu());
    for v in 0..volumes {
        b.volume(format!("volume-{v}"), &mut placer, geometry);
    }
    let chunks = u64::from(volumes) * u64::from(geometry.chunks());
    let took = cpu() - start;
    println!("{volumes} volumes, {chunks} chunks: {took:?}, {:?} per volume", took / volumes);
    let kib = resident_kib().saturating_sub(before);
    println!("memory: {} MiB, {} bytes per chunk", kib >> 10, (kib << 10) / chunks);
    let start = cpu();
    let rows: Vec<meta::Row> = b.state.rows().collect();
    let bytes: usize = rows.iter().map(|r| r.key.len() + r.value.len()).sum();
    println!(
        "snapshot: {} rows, {} MiB, {} bytes per chunk, {:?}",
        rows.len(),
        bytes >> 20,
        bytes as u64 / chunks,
        (cpu() - start)
    );
    let start = cpu();
    let loaded = MetaState::load(rows).expect("rows are readable");
    println!("load: {:?}", (cpu() - start));
    assert!(loaded == b.state);
    planner_steps(&mut b);
}

/// A node is gone for good: what the leader's steps cost.
fn planner_steps(b: &mut Bench) {
    let mut service = Service::new();
    let mut step = |state: &MetaState, what: &str, secs: u64, event| {
        let start = cpu();
        service.handle(Time(secs * 1_000_000_000), secs * 1000, state, event);
        let effects = std::iter::from_fn(|| service.poll()).count();
        println!("{what}: {:?}, {effects} effects", (cpu() - start));
    };
    step(&b.state, "a new leader's first step", 1, ServiceEvent::BecameLeader);
    let seen = b.state.nodes()[&NodeId(1)].changes;
    b.apply(Op::NodeDown { node: NodeId(1), seen, cause: meta::model::DownCause::Silent });
    step(&b.state, "a node's death", 2, ServiceEvent::StateChanged);
    step(&b.state, "the round when it is out", 5000, ServiceEvent::Wake);
    let status =
        ServiceEvent::Admin { token: meta::Token(1), id: None, request: meta::AdminRequest::ClusterStatus };
    step(&b.state, "cluster status", 5000, status);
}
