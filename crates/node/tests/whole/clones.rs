//! Clones of the whole way: attached on any node, they read from their parents' drives what they have not, and their
//! parents go on as if nothing were.

use super::snapshots::sealed;
use super::*;
use proto::message::BlockState;
use volume::event::WaitReason;
use volume::{GuestError, GuestReply};

/// A volume on nodes 1 to 3, written, sealed as `s`, written again; and its clone `c`.
fn cloned(nodes: u32, on: &[u32]) -> (World, BranchId, BranchId) {
    let (mut w, v) = made_among(nodes, 2);
    w.must_open(1, 1, "v", false);
    w.must_write(1, 1, (16 << 20) - 65_536, &pattern(1, 200_704));
    w.must_write(1, 1, 4096, &pattern(2, 8192));
    sealed(&mut w, v, "s");
    for block in 0..4 {
        w.must_write(1, 1, block * 4096, &pattern(9, 4096));
    }
    w.must_write(1, 1, (16 << 20) - 65_536, &pattern(8, 200_704));
    let c = w.metad.clone_of(v, "s", "c", 3, on);
    created(&mut w, c, on[0]);
    (w, v, c)
}

fn states(w: &mut World, n: u32, export: u64, len: u64) -> Vec<BlockState> {
    let t = w.ask(n, export, GuestOp::Map { offset: 0, len });
    let GuestReply::Map(runs) = w.wait(export, t, Span::secs(4)).unwrap() else { panic!("a map") };
    runs.iter().flat_map(|r| (0..r.count).map(|_| r.state)).collect()
}

/// A clone's replicas hold the same, and tell zero from absent alike.
fn same_to_the_state(w: &World, branch: BranchId, nodes: &[u32]) {
    for chunk in 0..u32::try_from(w.metad.volumes[&branch].chunks.len()).unwrap() {
        for block in 0..w.metad.volumes[&branch].geometry.chunk_blocks() {
            let of = |n: u32| {
                let store = w.node(n).stores().next().unwrap().1;
                store.block(branch, proto::ChunkIndex(chunk), block, View::Head).unwrap().0
            };
            assert!(nodes.iter().all(|&n| of(n) == of(nodes[0])), "chunk {chunk} block {block}");
        }
    }
}

#[test]
fn a_clone_on_other_nodes_is_the_snapshot_until_it_is_written() {
    let (mut w, _, _) = cloned(6, &[4, 5, 6]);
    w.must_open(6, 6, "c", false);
    let (a, b) = (pattern(1, 200_704), pattern(2, 8192));
    for _ in 0..2 {
        assert!(w.read(6, 6, (16 << 20) - 65_536, 200_704) == a);
        assert!(w.read(6, 6, 0, 16_384) == [vec![0; 4096], b.clone(), vec![0; 4096]].concat());
    }
    // it is larger than what it was made of
    assert!(w.read(6, 6, 47 << 20, 65_536) == vec![0; 65_536]);
    let s = states(&mut w, 6, 6, 48 << 20);
    assert_eq!(s.len(), 3 * 4096);
    assert_eq!(s.iter().filter(|s| **s == BlockState::Data).count(), 2 + 49);
    // a sector, a discard, a block
    w.must_write(6, 6, 4096 + 512, &[7; 512]);
    let t = w.ask(6, 6, GuestOp::Discard { offset: 8192, len: 4096, fua: false });
    w.wait(6, t, Span::secs(2)).unwrap();
    w.must_write(6, 6, 12_288, &pattern(5, 4096));
    let mut is = [vec![0; 4096], b[..4096].to_vec(), vec![0; 4096], pattern(5, 4096)].concat();
    is[4096 + 512..4096 + 1024].fill(7);
    assert!(w.read(6, 6, 0, 16_384) == is);
    // the parent has not noticed
    assert!(w.read(1, 1, 4096, 4096) == pattern(9, 4096));
    w.must_open(2, 2, "v@s", false);
    assert!(w.read(2, 2, 4096, 8192) == b);
    // and the next session of the clone finds what this one left
    w.close(6, 6);
    w.run(Span::secs(6));
    w.must_open(4, 4, "c", false);
    assert!(w.read(4, 4, 0, 16_384) == is);
    assert!(w.read(4, 4, (16 << 20) - 65_536, 200_704) == a);
}

#[test]
fn nodes_of_the_parent_are_lost_and_what_the_clone_has_goes_on() {
    let (mut w, _, _) = cloned(6, &[4, 5, 6]);
    w.must_open(5, 5, "c", false);
    w.must_write(5, 5, 1 << 20, &pattern(4, 65_536));
    let b = pattern(2, 8192);
    for n in 1..=2 {
        w.kill(n);
        assert!(w.read(5, 5, 4096, 8192) == b, "another one has it");
    }
    w.kill(3);
    // also what nobody has: nobody can say so (that of extents which were looked at is known)
    let waits = w.ask(5, 5, GuestOp::Read { offset: (16 << 20) - 65_536, len: 65_536 });
    let merge = w.write(5, 5, 4096 + 512, &[7; 512]);
    w.run(Span::secs(3));
    w.must_write(5, 5, (1 << 20) + 512, &[3; 512]);
    w.must_write(5, 5, 16_384, &pattern(6, 4096));
    let mut own = pattern(4, 65_536);
    own[512..1024].fill(3);
    assert!(w.read(5, 5, 1 << 20, 65_536) == own);
    let t = w.ask(5, 5, GuestOp::Flush);
    w.wait(5, t, Span::secs(2)).unwrap();
    assert!(w.result(5, waits).is_none() && w.result(5, merge).is_none(), "never zeroes");
    let waiting = |n: &Notice| matches!(n, Notice::Volume { notice: volume::Notice::Waiting { reason }, .. } if *reason == WaitReason::Parent);
    assert_eq!(w.noticed(waiting), 1);
    w.start(2);
    assert!(matches!(w.wait(5, waits, Span::secs(8)), Ok(GuestReply::Read(_))));
    w.wait(5, merge, Span::secs(8)).unwrap();
    let mut is = b;
    is[512..1024].fill(7);
    assert!(w.read(5, 5, 4096, 8192) == is);
    assert!(w.read(5, 5, (16 << 20) - 65_536, 200_704) == pattern(1, 200_704));
}

#[test]
fn a_clone_of_a_clone_heals_and_is_taken_over_beside_its_parents() {
    let (mut w, v, c) = cloned(4, &[2, 3, 4]);
    w.must_open(4, 4, "c", false);
    w.must_write(4, 4, 8192, &pattern(5, 4096));
    w.must_write(4, 4, 40 << 20, &pattern(6, 4096));
    sealed(&mut w, c, "t");
    w.must_write(4, 4, 8192, &pattern(7, 4096));
    let d = w.metad.clone_of(c, "t", "d", 3, &[1, 2, 4]);
    created(&mut w, d, 1);
    w.must_open(1, 9, "d", false);
    let mut is = [pattern(2, 4096), pattern(5, 4096)].concat();
    assert!(w.read(1, 9, 4096, 8192) == is);
    assert!(w.read(1, 9, 40 << 20, 8192) == [pattern(6, 4096), vec![0; 4096]].concat());
    // a replica misses discards and sectors, and comes back
    w.kill(4);
    let t = w.ask(1, 9, GuestOp::Discard { offset: 8192, len: 4096, fua: false });
    w.wait(9, t, Span::secs(8)).unwrap();
    w.must_write(1, 9, 4096 + 1024, &[1; 512]);
    is[4096..].fill(0);
    is[1024..1536].fill(1);
    assert!(w.read(1, 9, 4096, 8192) == is);
    w.start(4);
    for branch in [v, c, d] {
        // the clone's session died with its node
        w.metad.appoint(branch, Some(NodeId(2)));
        heals(&mut w, branch);
    }
    w.run(Span::secs(2));
    same_to_the_state(&w, d, &[1, 2, 4]);
    same_to_the_state(&w, c, &[2, 3, 4]);
    // the session's node dies: another one reconciles and tells zero from absent
    let t = w.write(1, 9, 65_536, &pattern(3, 4096));
    w.run(Span::micros(120));
    let answered = w.result(9, t).is_some();
    w.kill(1);
    w.must_open(4, 10, "d", false);
    assert!(w.read(4, 10, 4096, 8192) == is);
    let new = w.read(4, 10, 65_536, 4096);
    assert!(new == pattern(3, 4096) || !answered && new == vec![0; 4096]);
    assert!(w.read(4, 10, (16 << 20) - 65_536, 200_704) == pattern(1, 200_704));
    w.start(1);
    heals(&mut w, d);
    w.run(Span::secs(1));
    same_to_the_state(&w, d, &[1, 2, 4]);
}

#[test]
fn a_clone_whose_parent_is_gone_for_good_waits_and_a_forced_close_ends_it() {
    let (mut w, _, _) = cloned(6, &[4, 5, 6]);
    for n in 1..=3 {
        w.kill(n);
    }
    w.must_open(5, 5, "c", false);
    let t = w.ask(5, 5, GuestOp::Read { offset: 4096, len: 4096 });
    w.run(Span::secs(5));
    assert!(w.result(5, t).is_none(), "never zeroes");
    w.event(5, Event::Shutdown);
    let stopped = w.until(Span::secs(20), |w| w.stopped.contains(&NodeId(5)));
    assert!(stopped, "{}", w.tail());
    assert!(matches!(w.result(5, t), None | Some(Err(GuestError::Gone))));
}
