//! What a write costs in the session alone: by hand, in a release build.
#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use proto::message::{Ack, Reply, ReplyFrame, Request};
use proto::*;
use volume::*;
use world::metad::{Metad, configuration};
use world::*;

#[test]
#[ignore = "by hand: cargo test --release -p volume --test speed -- --ignored --nocapture"]
#[expect(clippy::disallowed_types, reason = "a measurement")]
fn random_writes_at_depth_32() {
    let mut w = World::new(1, 3, Metad::new(vec![configuration(1, &[1, 2, 3], 100)]));
    let h = w.attach(NodeId(1), control::SessionKind::Guest);
    w.calm(20);
    let now = w.now;
    let host = &mut w.hosts[h];
    let payload = PageBuf::zeroed(1).freeze();
    let mut rng = Rng(7);
    let (total, mut begun, mut ended) = (300_000u64, 0u64, 0u64);
    let mut acks: [Vec<Ack>; 3] = Default::default();
    let start = std::time::Instant::now();
    while ended < total {
        while begun < total && begun - ended < 32 {
            begun += 1;
            let op = GuestOp::Write {
                offset: (rng.next() % 4096) * 4096,
                len: 4096,
                data: GuestData { payload: payload.clone() },
                fua: false,
            };
            host.session.handle(now, &host.leases, Event::Guest(GuestRequest { ticket: Ticket(begun), op }));
        }
        loop {
            while let Some(e) = host.session.poll() {
                match e {
                    Effect::Send { node, frame } => {
                        if let Request::Write { record, .. } = frame.request {
                            let ack = Ack {
                                branch: BRANCH,
                                drive: frame.scope.drive,
                                version: record.version,
                                chunk: record.chunk,
                                extents: 0,
                            };
                            acks[node.0 as usize - 1].push(ack);
                        } else if let Request::Credit { want, .. } = frame.request {
                            let reply = Reply::Credit { granted: want, allocated: false };
                            let f = ReplyFrame {
                                token: frame.token,
                                branch: BRANCH,
                                drive: frame.scope.drive,
                                reply,
                            };
                            host.session.handle(now, &host.leases, Event::Reply { node, frame: f });
                        }
                    }
                    Effect::Complete { .. } => ended += 1,
                    _ => {}
                }
            }
            if acks.iter().all(Vec::is_empty) {
                break;
            }
            for (i, list) in acks.iter_mut().enumerate() {
                let reply = Reply::Acks(std::mem::take(list));
                let frame = ReplyFrame { token: 0, branch: BranchId(0), drive: DriveId(0), reply };
                let node = NodeId(u32::try_from(i).unwrap() + 1);
                host.session.handle(now, &host.leases, Event::Reply { node, frame });
            }
        }
    }
    let each = start.elapsed().as_nanos() / u128::from(total);
    println!("{each} ns per write, checksum of a block included");
}
