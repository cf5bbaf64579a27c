//! CPU cost of a 4 KiB write in the store, the drive left out: `cargo run --release -p store --example write_cost`.
#![allow(clippy::disallowed_types, clippy::unwrap_used, clippy::too_many_lines, reason = "a measurement")]

use proto::message::{BranchInfo, ChunkRecord, Request, RequestFrame, Scope};
use proto::*;
use std::collections::VecDeque;
use store::{Effect, Event, FormatParams, IoId, IoOp, IoResult, OpenParams, Source, Store};

fn main() {
    let size = 4u64 << 30;
    let format =
        FormatParams { size, cluster: ClusterId(1), node: NodeId(1), drive: DriveId(1), journal: None };
    let mut medium = store::medium::Medium::new(size, true);
    medium.format(&format).unwrap();
    let open = OpenParams {
        size,
        boot: [1; 16],
        cluster: ClusterId(1),
        node: NodeId(1),
        opening: OpenId(1),
        volatile_cache: true,
        now: Time(1),
    };
    let mut store = Store::new(open);
    let mut queue: VecDeque<(IoId, IoOp)> = VecDeque::new();
    let run = |store: &mut Store, queue: &mut VecDeque<(IoId, IoOp)>| {
        loop {
            while let Some(e) = store.poll() {
                if let Effect::Io { io, op } = e {
                    queue.push_back((io, op));
                }
            }
            let Some((io, op)) = queue.pop_front() else { break };
            let result = match op {
                IoOp::Read { offset, blocks } => IoResult::Read(medium.get(offset, blocks)),
                IoOp::Write { .. } => IoResult::Written,
                IoOp::Flush => IoResult::Flushed,
            };
            store.handle(Time(1), Event::Io { io, result });
        }
    };
    run(&mut store, &mut queue);
    store.handle(Time(1), Event::Confirmed);
    run(&mut store, &mut queue);
    let geometry = Geometry { size: 2 << 30, chunk_shift: 28 };
    let info = BranchInfo {
        branch: BranchId(1),
        name: "v".into(),
        geometry,
        parent: None,
        generation: Generation(1),
    };
    let chunk = |c| ChunkRecord {
        chunk: ChunkIndex(c),
        incarnation: Incarnation(1),
        configuration: Configuration::default(),
    };
    let mut scope = Scope {
        drive: DriveId(1),
        branch: BranchId(1),
        epoch: Epoch(1),
        incarnation: Incarnation(1),
        ..Scope::default()
    };
    let send = |store: &mut Store, scope: Scope, request| {
        store.handle(
            Time(1),
            Event::Request { source: Source(1), frame: RequestFrame { token: 0, scope, request } },
        );
    };
    send(&mut store, scope, Request::Create { info, chunks: (0..8).map(chunk).collect() });
    run(&mut store, &mut queue);
    store.handle(Time(1), Event::TurnEnd);
    run(&mut store, &mut queue);
    let payload = Payload::copy_of(&[7; 4096]);
    let sums = Record::sums_of(&payload);
    for depth in [1u64, 32, 128] {
        let writes = 400_000u64;
        let mut seq = depth << 32;
        let mut now = Time(1_000_000_000);
        let start = std::time::Instant::now();
        let mut x = 1u64;
        while seq < (depth << 32) + writes {
            for _ in 0..depth {
                seq += 1;
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let block = u32::try_from(x >> 33).unwrap() % (8 * 65536);
                scope.chunk = ChunkIndex(block / 65536);
                scope.marks.committed = Version::new(Epoch(1), seq - depth);
                let record = Record {
                    kind: RecordKind::Write,
                    branch: BranchId(1),
                    chunk: scope.chunk,
                    range: BlockRange::new(block % 65536, 1),
                    version: Version::new(Epoch(1), seq),
                    generation: Generation(1),
                    incarnation: Incarnation(1),
                    key: KeyId(0),
                    sums,
                };
                send(&mut store, scope, Request::Write { record, payload: payload.clone(), fresh: true });
                run(&mut store, &mut queue);
            }
            now = now + Span::micros(depth * 10);
            store.handle(now, Event::TurnEnd);
            run(&mut store, &mut queue);
        }
        let spent = start.elapsed();
        println!(
            "depth {depth}: {:.2} us per write, {:?}",
            spent.as_secs_f64() * 1e6 / writes as f64,
            store.usage()
        );
    }
}
