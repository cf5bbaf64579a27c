//! Commands and replies, byte for byte, in all three forms.
#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "a test's numbers are small, and its failures may panic"
)]

mod common;
use common::*;
use nbd::memory::MemoryDisk;
use nbd::{Ask, Close, Errno, Op, Server, Violation};
use proto::limits::{EXPORT_CREDIT_BYTES, EXPORT_CREDIT_REQUESTS};
use proto::message::{BlockState, Run};
use proto::{Generation, Version};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

fn write(cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    [compact(0, WRITE, cookie, offset, data.len() as u32), data.to_vec()].concat()
}

/// The error of a reply that is an error and nothing else.
fn error_of(mode: u8, reply: &[u8], cookie: u64, offset: u64) -> u32 {
    let (head, code_at) = match mode {
        0 => (simple(0, cookie).0, 4),
        1 => (chunk(1, 0x8001, cookie, reply.len() as u32 - 20).0, 20),
        _ => (ext_chunk(1, 0x8001, cookie, offset, reply.len() as u64 - 32).0, 32),
    };
    let code = u32::from_be_bytes(reply[code_at..code_at + 4].try_into().unwrap());
    if mode == 0 {
        assert_eq!(reply, simple(code, cookie).0);
    } else {
        assert_eq!(reply[..head.len()], head);
        let text = &reply[code_at + 6..];
        assert_eq!(reply[code_at + 4..code_at + 6], (text.len() as u16).to_be_bytes());
    }
    code
}

#[test]
fn simple_write_read_flush() {
    let mut rig = Rig::entered(MIB, 0);
    let data = [7; 4096];
    assert_eq!(rig.say(&write(9, BLOCK, &data)), simple(0, 9).0);
    assert_eq!(rig.say(&compact(0, FLUSH, 10, 0, 0)), simple(0, 10).0);
    let read = rig.say(&compact(0, READ, 11, BLOCK - 512, 4096 + 1024));
    assert_eq!(read, simple(0, 11).raw(&[0; 512]).raw(&data).raw(&[0; 512]).0);
}

#[test]
fn structured_read_sends_data_and_holes_as_chunks() {
    let mut rig = Rig::entered(MIB, 1);
    let data = [[1; 4096], [2; 4096]].concat();
    assert_eq!(rig.say(&write(1, BLOCK, &data)), simple(0, 1).0);
    let expected = [
        chunk(0, 2, 2, 12).u64(0).u32(4096).0,
        chunk(0, 1, 2, 8 + 8192).u64(BLOCK).raw(&data).0,
        chunk(1, 2, 2, 12).u64(3 * BLOCK).u32(8192).0,
    ];
    assert_eq!(rig.say(&compact(0, READ, 2, 0, 5 * 4096)), expected.concat());
    let hole = chunk(1, 2, 3, 12).u64(4 * BLOCK).u32(4096).0;
    assert_eq!(rig.say(&compact(0, READ, 3, 4 * BLOCK, 4096)), hole);
}

#[test]
fn unfragmented_read_is_one_chunk() {
    let mut rig = Rig::entered(MIB, 1);
    rig.say(&write(1, BLOCK, &[1; 4096]));
    let expected = chunk(1, 1, 2, 8 + 12288).u64(0).raw(&[0; 4096]).raw(&[1; 4096]).raw(&[0; 4096]).0;
    assert_eq!(rig.say(&compact(4, READ, 2, 0, 12288)), expected);
    // All zero: a hole is one chunk as well.
    let hole = chunk(1, 2, 3, 12).u64(2 * BLOCK).u32(65536).0;
    assert_eq!(rig.say(&compact(4, READ, 3, 2 * BLOCK, 65536)), hole);
}

#[test]
fn extended_requests_get_extended_replies() {
    let mut rig = Rig::entered(MIB, 2);
    let data = [5; 512];
    let request = [extended(32, WRITE, 1, 512, 512), data.to_vec()].concat();
    assert_eq!(rig.say(&request), ext_chunk(1, 0, 1, 512, 0).0);
    let read = ext_chunk(1, 1, 2, 512, 8 + 512).u64(512).raw(&data).0;
    assert_eq!(rig.say(&extended(0, READ, 2, 512, 512)), read);
    assert_eq!(rig.say(&extended(0, FLUSH, 3, 0, 0)), ext_chunk(1, 0, 3, 0, 0).0);
    let status = ext_chunk(1, 6, 4, 0, 8 + 32).u32(1).u32(2).u64(4096).u64(0).u64(4096).u64(3).0;
    assert_eq!(rig.say(&extended(0, STATUS, 4, 0, 8192)), status);
}

#[test]
fn block_status_gives_runs_of_base_allocation() {
    let mut rig = Rig::entered(MIB, 1);
    rig.say(&write(1, BLOCK, &[1; 8192]));
    let all = chunk(1, 5, 2, 4 + 3 * 8).u32(1).u32(4096).u32(3).u32(8192).u32(0).u32(4096).u32(3).0;
    assert_eq!(rig.say(&compact(0, STATUS, 2, 0, 4 * 4096)), all);
    let one = chunk(1, 5, 3, 4 + 8).u32(1).u32(3584).u32(3).0;
    assert_eq!(rig.say(&compact(8, STATUS, 3, 512, 4 * 4096)), one);
    // Clipped to the request, not to the block.
    let clipped = chunk(1, 5, 4, 4 + 8).u32(1).u32(512).u32(0).0;
    assert_eq!(rig.say(&compact(8, STATUS, 4, BLOCK + 512, 512)), clipped);
}

/// What was written or discarded since a snapshot; with `base:allocation` beside it, a chunk for each.
#[test]
fn block_status_tells_what_changed_since_a_snapshot() {
    let mut rig = Rig::new(MIB);
    rig.say(&option(8, &[]));
    rig.owner.disk.apply(nbd::Op::Write {
        offset: 0,
        len: 3 * 4096,
        data: proto::Payload::copy_of(&[1; 3 * 4096]),
        fua: false,
    });
    rig.owner.disk.snapshot("mon");
    let meta = B::new().string("vol").u32(2).string("blockd:changed:mon").string("base:allocation").0;
    rig.say(&option(10, &meta));
    rig.say(&option(7, &B::new().string("vol").u16(0).0));
    rig.say(&write(1, BLOCK, &[2; 4096]));
    rig.say(&compact(0, TRIM, 2, 2 * BLOCK, 4096));
    let allocation = chunk(0, 5, 3, 4 + 2 * 8).u32(1).u32(8192).u32(0).u32(8192).u32(3).0;
    let changed = chunk(1, 5, 3, 4 + 3 * 8).u32(2).u32(4096).u32(0).u32(8192).u32(1).u32(4096).u32(0).0;
    assert_eq!(rig.say(&compact(0, STATUS, 3, 0, 4 * 4096)), [allocation, changed].concat());
    let ones = [chunk(0, 5, 4, 12).u32(1).u32(4096).u32(0).0, chunk(1, 5, 4, 12).u32(2).u32(8192).u32(1).0];
    assert_eq!(rig.say(&compact(8, STATUS, 4, BLOCK, 2 * 4096)), ones.concat());
}

/// A context that fails after another was answered ends the reply with its error.
#[test]
fn a_status_may_fail_in_its_second_context() {
    let mut rig = Rig::new(MIB);
    rig.say(&option(8, &[]));
    rig.owner.disk.snapshot("mon");
    let meta = B::new().string("vol").u32(2).string("blockd:changed:mon").string("base:allocation").0;
    rig.say(&option(10, &meta));
    rig.say(&option(7, &B::new().string("vol").u16(0).0));
    let mut held = std::collections::VecDeque::new();
    rig.server.receive(&compact(0, STATUS, 3, 0, 4096));
    rig.owner.serve(&mut rig.server, Some(&mut held));
    let (id, op) = held.pop_front().unwrap();
    assert!(matches!(op, nbd::Op::Map { .. }));
    rig.owner.complete(&mut rig.server, id, op);
    rig.owner.serve(&mut rig.server, Some(&mut held));
    let (id, op) = held.pop_front().unwrap();
    assert!(matches!(op, nbd::Op::Changes { since: proto::Generation(1), .. }));
    rig.server.fail(id, nbd::Errno::Io, "gone");
    let mut out = Vec::new();
    rig.server.write_output(&mut out);
    let first = chunk(0, 5, 3, 4 + 8).u32(1).u32(4096).u32(3).0;
    assert!(out.starts_with(&first));
    assert_eq!(error_of(1, &out[first.len()..], 3, 0), EIO);
    assert_eq!(rig.server.in_flight(), 0);
}

#[test]
fn block_status_needs_a_context_and_a_length() {
    let mut rig = Rig::entered(MIB, 0);
    assert_eq!(error_of(0, &rig.say(&compact(0, STATUS, 1, 0, 4096)), 1, 0), EINVAL);
    let mut rig = Rig::entered(MIB, 1);
    assert_eq!(error_of(1, &rig.say(&compact(0, STATUS, 1, 0, 0)), 1, 0), EINVAL);
}

#[test]
fn trim_zeroes_and_cache_succeed_with_their_flags() {
    for mode in 0..3 {
        let mut rig = Rig::entered(MIB, mode);
        for (flags, command) in [
            (0, TRIM),
            (1, TRIM),
            (0, ZEROES),
            (1, ZEROES),
            (2, ZEROES),
            (16, ZEROES),
            (17, ZEROES),
            (3, ZEROES),
            (1, CACHE),
        ] {
            let (request, success) = if mode == 2 {
                (extended(flags, command, 4, BLOCK, BLOCK), ext_chunk(1, 0, 4, BLOCK, 0).0)
            } else {
                (compact(flags, command, 4, BLOCK, 4096), simple(0, 4).0)
            };
            assert_eq!(rig.say(&request), success, "mode {mode} command {command} flags {flags}");
        }
    }
}

/// Operations that a server hands out for these bytes.
fn ops(rig: &mut Rig, bytes: &[u8]) -> Vec<Op> {
    assert_eq!(rig.server.receive(bytes), bytes.len());
    let mut list = Vec::new();
    while let Some(ask) = rig.server.poll() {
        let Ask::Request { id, op } = ask else { panic!("{ask:?}") };
        rig.server.fail(id, Errno::Io, "");
        list.push(op);
    }
    rig.server.write_output(&mut Vec::new());
    list
}

#[test]
fn flags_and_offsets_reach_the_owner() {
    let mut rig = Rig::entered(MIB, 0);
    let (offset, len) = (BLOCK, BLOCK);
    assert_eq!(ops(&mut rig, &compact(1, TRIM, 1, offset, 4096)), [Op::Discard { offset, len, fua: true }]);
    let zeroes = Op::WriteZeroes { offset, len, fua: true, no_hole: true };
    assert_eq!(ops(&mut rig, &compact(3, ZEROES, 1, offset, 4096)), [zeroes]);
    assert_eq!(ops(&mut rig, &compact(1, READ, 1, offset, 4096)), [Op::Read { offset, len: 4096 }]);
    assert_eq!(ops(&mut rig, &compact(1, FLUSH, 1, 0, 0)), [Op::Flush]);
    let got = ops(&mut rig, &[compact(1, WRITE, 1, 4608, 4096), vec![9; 4096]].concat());
    let [Op::Write { offset: 4608, len: 4096, data, fua: true }] = &got[..] else { panic!("{got:?}") };
    // Two blocks; the first byte where it lies in its block.
    assert_eq!(data.blocks(), 2);
    assert_eq!(data.bytes()[512..4608], [9; 4096]);
}

#[test]
fn zeroes_are_fast_or_keep_their_space_but_not_both() {
    for mode in 0..2 {
        let mut rig = Rig::entered(MIB, mode);
        let reply = rig.say(&compact(2 | 16, ZEROES, 3, BLOCK, 4096));
        assert_eq!(error_of(mode, &reply, 3, BLOCK), 95, "ENOTSUP");
    }
    let mut rig = Rig::entered(MIB, 0);
    let (offset, len, fua) = (BLOCK, BLOCK, false);
    for (flags, no_hole) in [(16, false), (2, true)] {
        let zeroes = Op::WriteZeroes { offset, len, fua, no_hole };
        assert_eq!(ops(&mut rig, &compact(flags, ZEROES, 1, offset, 4096)), [zeroes]);
    }
}

#[test]
fn fua_is_accepted_on_every_command() {
    let mut rig = Rig::entered(MIB, 1);
    for command in [READ, FLUSH, TRIM, CACHE, ZEROES, STATUS] {
        let len = if command == FLUSH { 0 } else { 4096 };
        let reply = rig.say(&compact(1, command, 8, 0, len));
        let ok = reply[..16] == simple(0, 8).0 || reply[4..8] == [0, 1, 0, 2] || reply[4..8] == [0, 1, 0, 5];
        assert!(ok, "command {command}: {reply:?}");
    }
}

#[test]
fn requests_beyond_the_end_fail_by_the_rules() {
    for mode in 0..2 {
        let mut rig = Rig::entered(MIB, mode);
        let cases = [(READ, EINVAL), (TRIM, EINVAL), (CACHE, EINVAL), (ZEROES, ENOSPC), (STATUS, EINVAL)];
        for (command, error) in cases {
            for (offset, len) in [(MIB, 512), (MIB - 512, 1024), (u64::MAX - 511, 512)] {
                let reply = rig.say(&compact(0, command, 3, offset, len));
                assert_eq!(error_of(mode, &reply, 3, offset), error, "command {command} at {offset}");
            }
        }
        assert_eq!(error_of(mode, &rig.say(&write(3, MIB - 512, &[1; 1024])), 3, 0), ENOSPC);
        assert_eq!(rig.say(&compact(0, FLUSH, 4, 0, 0)), simple(0, 4).0, "in sync");
    }
}

#[test]
fn unaligned_requests_and_unknown_flags_are_invalid() {
    let mut rig = Rig::entered(MIB, 1);
    for command in [READ, TRIM, CACHE, ZEROES, STATUS] {
        for (flags, offset, len) in [(0, 1, 512), (0, 512, 511), (1 << 9, 0, 512), (32, 0, 512)] {
            let reply = rig.say(&compact(flags, command, 3, offset, len));
            assert_eq!(error_of(1, &reply, 3, offset), EINVAL, "command {command} flags {flags} at {offset}");
        }
    }
    assert_eq!(error_of(1, &rig.say(&write(3, 100, &[1; 512])), 3, 100), EINVAL);
    for (command, flags) in
        [(READ, 2), (FLUSH, 4), (TRIM, 2), (TRIM, 8), (CACHE, 16), (ZEROES, 4), (STATUS, 4)]
    {
        let reply = rig.say(&compact(flags, command, 3, 0, 512));
        assert_eq!(error_of(1, &reply, 3, 0), EINVAL, "command {command} flags {flags}");
    }
    assert_eq!(rig.say(&compact(0, FLUSH, 4, 0, 0)), simple(0, 4).0, "in sync");
}

#[test]
fn df_needs_structured_replies() {
    let mut rig = Rig::entered(MIB, 0);
    assert_eq!(error_of(0, &rig.say(&compact(4, READ, 1, 0, 512)), 1, 0), EINVAL);
}

#[test]
fn unknown_commands_are_invalid() {
    let mut rig = Rig::entered(MIB, 0);
    for command in [8, 9, 100, u16::MAX] {
        assert_eq!(error_of(0, &rig.say(&compact(0, command, 3, 0, 512)), 3, 0), EINVAL);
    }
}

#[test]
fn read_only_exports_refuse_changes() {
    let mut rig = Rig::new(MIB);
    rig.owner.read_only = true;
    rig.enter(1);
    assert_eq!(error_of(1, &rig.say(&write(1, 0, &[1; 512])), 1, 0), EPERM);
    assert_eq!(error_of(1, &rig.say(&compact(0, TRIM, 2, 0, 512)), 2, 0), EPERM);
    assert_eq!(error_of(1, &rig.say(&compact(0, ZEROES, 3, 0, 512)), 3, 0), EPERM);
    assert_eq!(rig.say(&compact(0, FLUSH, 4, 0, 0)), simple(0, 4).0);
}

#[test]
fn too_large_reads_and_writes_fail_and_keep_sync() {
    let size = 8 << 30;
    let len = (64 << 20) + 512;
    for (mode, error) in [(0, EINVAL), (1, EOVERFLOW)] {
        let mut rig = Rig::entered(size, mode);
        assert_eq!(error_of(mode, &rig.say(&compact(0, READ, 1, 0, len)), 1, 0), error);
        let mut answer = rig.say(&compact(0, WRITE, 2, 0, len));
        let junk = vec![0x25; 1 << 20];
        for _ in 0..64 {
            answer.extend(rig.say(&junk));
        }
        answer.extend(rig.say(&junk[..512]));
        assert_eq!(error_of(mode, &answer, 2, 0), EINVAL);
        assert_eq!(rig.say(&compact(0, FLUSH, 4, 0, 0)), simple(0, 4).0, "in sync");
    }
    // What needs no memory may be as long as the export.
    let mut rig = Rig::entered(size, 2);
    assert_eq!(rig.say(&extended(0, ZEROES, 1, 0, size)), ext_chunk(1, 0, 1, 0, 0).0);
    assert_eq!(rig.say(&extended(0, TRIM, 1, 0, size)), ext_chunk(1, 0, 1, 0, 0).0);
    assert_eq!(error_of(2, &rig.say(&extended(4, READ, 1, 0, size)), 1, 0), EOVERFLOW);
}

#[test]
fn payload_flags_of_extended_requests_are_obeyed() {
    let mut rig = Rig::entered(MIB, 2);
    // A write brings its data, marked or not (QEMU does not mark it).
    for flags in [0, 32] {
        let request = [extended(flags, WRITE, 1, 0, 512), vec![1; 512]].concat();
        assert_eq!(rig.say(&request), ext_chunk(1, 0, 1, 0, 0).0);
    }
    // Anything else with the flag has one: it is consumed.
    for command in [READ, FLUSH, TRIM, CACHE, ZEROES, STATUS, 77] {
        let request = [extended(32, command, 2, 0, 512), vec![1; 512]].concat();
        assert_eq!(error_of(2, &rig.say(&request), 2, 0), EINVAL, "command {command}");
    }
    assert_eq!(rig.say(&extended(0, FLUSH, 3, 0, 0)), ext_chunk(1, 0, 3, 0, 0).0, "in sync");
    // No memory is spent and no end awaited for an absurd one.
    assert_eq!(rig.say(&extended(32, WRITE, 4, 0, 1 << 40)), b"");
    assert_eq!(rig.closed(), Some(Close::Violation(Violation::PayloadLength(1 << 40))));
}

#[test]
fn requests_of_nothing_succeed() {
    let mut rig = Rig::entered(MIB, 1);
    assert_eq!(rig.say(&compact(0, READ, 1, 0, 0)), chunk(1, 0, 1, 0).0);
    for command in [WRITE, TRIM, CACHE, ZEROES] {
        assert_eq!(rig.say(&compact(0, command, 2, MIB, 0)), simple(0, 2).0);
    }
}

#[test]
fn bad_magic_closes_after_what_is_in_flight() {
    let mut rig = Rig::entered(MIB, 0);
    rig.server.receive(&compact(0, READ, 1, 0, 512));
    let Some(Ask::Request { id, .. }) = rig.server.poll() else { panic!() };
    rig.server.receive(&extended(0, READ, 1, 0, 512));
    assert_eq!(rig.closed(), None);
    rig.server.fail(id, Errno::Io, "gone");
    assert_eq!(rig.closed(), Some(Close::Violation(Violation::RequestMagic)));
    let mut out = Vec::new();
    rig.server.write_output(&mut out);
    assert_eq!(out, simple(EIO, 1).0);
}

#[test]
fn disconnect_waits_for_what_is_in_flight() {
    let mut rig = Rig::entered(MIB, 0);
    rig.server.receive(&write(1, 0, &[1; 512]));
    let Some(Ask::Request { id, .. }) = rig.server.poll() else { panic!() };
    let disc = compact(0, DISC, 2, 0, 0);
    assert_eq!(rig.server.receive(&[disc, vec![0; 100]].concat()), 28, "nothing is read behind it");
    assert_eq!(rig.closed(), None);
    rig.server.done(id);
    assert_eq!(rig.closed(), Some(Close::Disconnected));
    let mut out = Vec::new();
    rig.server.write_output(&mut out);
    assert_eq!(out, simple(0, 1).0);
}

#[test]
fn a_draining_server_answers_what_is_in_flight_and_hangs_up() {
    let mut rig = Rig::entered(MIB, 0);
    rig.server.receive(&write(1, 0, &[1; 512]));
    let Some(Ask::Request { id, .. }) = rig.server.poll() else { panic!("a request") };
    let half = write(2, 0, &[1; 512]);
    rig.server.receive(&half[..100]);
    rig.server.drain();
    assert_eq!(rig.server.receive(&half[100..]), 0, "nothing more is taken");
    assert_eq!(rig.closed(), None);
    rig.server.done(id);
    assert_eq!(rig.closed(), Some(Close::Drained));
    let mut out = Vec::new();
    rig.server.write_output(&mut out);
    assert_eq!(out, simple(0, 1).0, "the other one has no answer, not even an error");
}

#[test]
fn a_forsaken_request_ends_the_connection_without_an_answer() {
    let mut rig = Rig::entered(MIB, 0);
    rig.server.receive(&[write(1, 0, &[1; 512]), write(2, 4096, &[1; 512])].concat());
    let ids: Vec<_> = std::iter::from_fn(|| rig.server.poll())
        .filter_map(|a| if let Ask::Request { id, .. } = a { Some(id) } else { None })
        .collect();
    rig.server.forsake(ids[0]);
    assert_eq!(rig.closed(), None);
    rig.server.done(ids[1]);
    assert_eq!(rig.closed(), Some(Close::Drained));
    let mut out = Vec::new();
    rig.server.write_output(&mut out);
    assert_eq!(out, simple(0, 2).0);
}

#[test]
fn growth_is_served_at_once() {
    let mut rig = Rig::entered(MIB, 0);
    assert_eq!(error_of(0, &rig.say(&write(1, MIB, &[1; 512])), 1, 0), ENOSPC);
    rig.owner.disk = MemoryDisk::new(2 * MIB);
    rig.server.resized(2 * MIB);
    assert_eq!(rig.say(&write(1, MIB, &[1; 512])), simple(0, 1).0);
}

#[test]
fn credit_of_requests_is_bounded() {
    let mut rig = Rig::entered(MIB, 0);
    let train = compact(0, READ, 1, 0, 512).repeat(2 * EXPORT_CREDIT_REQUESTS);
    assert_eq!(rig.server.receive(&train), 28 * EXPORT_CREDIT_REQUESTS);
    assert!(!rig.server.wants_input());
    let Some(Ask::Request { id, .. }) = rig.server.poll() else { panic!() };
    rig.server.fail(id, Errno::Io, "");
    assert!(rig.server.wants_input());
    assert_eq!(rig.server.receive(&train), 28, "one more, and again the credit is used up");
}

#[test]
fn credit_of_bytes_is_bounded_and_covers_replies_not_taken() {
    let mut rig = Rig::entered(1 << 30, 0);
    let big = 16 << 20;
    let train = compact(0, READ, 1, 0, big).repeat(4);
    assert_eq!(rig.server.receive(&train), 2 * 28);
    rig.owner.disk = MemoryDisk::new(1 << 30);
    rig.owner.serve(&mut rig.server, None);
    assert_eq!(rig.server.in_flight(), 0);
    assert!(rig.server.output_len() > EXPORT_CREDIT_BYTES);
    assert!(!rig.server.wants_input(), "the client does not read: nothing more is begun");
    while rig.server.poll_output().is_some() {}
    assert!(rig.server.wants_input());
    // A write that was begun is read to its end whatever else is in flight.
    let mut server = std::mem::take(&mut rig.server);
    assert_eq!(server.output_len(), 0);
    assert_eq!(server.receive(&compact(0, WRITE, 1, 0, 40 << 20)), 28);
    let part = vec![0; 20 << 20];
    assert_eq!(server.receive(&part), part.len());
    assert!(server.wants_input());
    assert_eq!(server.receive(&part), part.len());
    assert!(!server.wants_input());
}

#[test]
#[should_panic(expected = "exactly once")]
fn completing_twice_is_a_bug() {
    let mut rig = Rig::entered(MIB, 0);
    rig.server.receive(&compact(0, FLUSH, 1, 0, 0));
    let Some(Ask::Request { id, .. }) = rig.server.poll() else { panic!() };
    rig.server.done(id);
    rig.server.done(id);
}

#[test]
#[should_panic(expected = "was answered with")]
fn a_short_read_is_a_bug() {
    let mut rig = Rig::entered(MIB, 0);
    rig.server.receive(&compact(0, READ, 1, 0, 1024));
    let Some(Ask::Request { id, .. }) = rig.server.poll() else { panic!() };
    rig.server.read_done(id, [nbd::ReadPiece::Zero { bytes: 512 }]);
}

#[test]
fn a_server_begins_with_its_greeting() {
    assert_eq!(Server::default().output_len(), 18);
}

fn run(count: u32, state: BlockState) -> Run {
    Run { count, state, version: Version::ZERO, generation: Generation(1) }
}

#[test]
fn block_status_asks_for_a_bounded_range_and_answers_in_bounded_pieces() {
    let size = 1 << 40;
    let mut rig = Rig::entered(size, 2);
    rig.server.receive(&extended(0, STATUS, 1, 0, size));
    let Some(Ask::Request { id, op: Op::Map { offset: 0, len } }) = rig.server.poll() else { panic!() };
    assert_eq!(len, 1 << 30, "a piece at a time, whatever the client asks for");
    // The worst map: no two neighbours alike.
    let runs: Vec<Run> = (0..len / BLOCK)
        .map(|i| run(1, if i % 2 == 0 { BlockState::Data } else { BlockState::Zero }))
        .collect();
    rig.server.status_done(id, &runs);
    let mut reply = Vec::new();
    rig.server.write_output(&mut reply);
    let extents: u32 = 1 << 16;
    let head = ext_chunk(1, 6, 1, 0, 8 + 16 * u64::from(extents)).u32(1).u32(extents).0;
    assert_eq!(reply[..40], head);
    assert_eq!(reply.len(), 40 + 16 * extents as usize);
}

#[test]
fn a_map_may_say_less_or_more_than_was_asked() {
    let mut rig = Rig::entered(MIB, 1);
    let answer = |rig: &mut Rig, flags, offset, len, runs: &[Run]| {
        rig.server.receive(&compact(flags, STATUS, 1, offset, len));
        let Some(Ask::Request { id, .. }) = rig.server.poll() else { panic!() };
        rig.server.status_done(id, runs);
        let mut reply = Vec::new();
        rig.server.write_output(&mut reply);
        reply
    };
    // Runs of like state join across extents of the volume; absent and zero look alike, bad is data.
    let runs = [run(1, BlockState::Absent), run(2, BlockState::Zero), run(1, BlockState::Bad)];
    let joined = chunk(1, 5, 1, 4 + 16).u32(1).u32(3 * 4096).u32(3).u32(4096).u32(0).0;
    assert_eq!(answer(&mut rig, 0, 0, 16 * 4096, &runs), joined);
    // More than was asked for is cut off, less is passed on.
    let cut = chunk(1, 5, 1, 4 + 8).u32(1).u32(512).u32(3).0;
    assert_eq!(answer(&mut rig, 0, 512, 512, &runs), cut);
    // Nothing is an error of the owner's, not of the protocol.
    assert_eq!(error_of(1, &answer(&mut rig, 0, 0, 512, &[]), 1, 0), EIO);
}

/// Its client is to connect anew: what it has asked is answered first, a write that is half there included.
#[test]
fn paused_it_ends_what_it_has_begun_and_begins_nothing() {
    let mut rig = Rig::entered(MIB, 0);
    let request = write(9, BLOCK, &[7; 4096]);
    let (half, rest) = request.split_at(1000);
    assert_eq!(rig.server.receive(half), half.len());
    rig.server.pause(true);
    assert!(!rig.server.is_idle(), "a request is half received");
    assert_eq!(rig.server.receive(rest), rest.len());
    assert!(!rig.server.wants_input() && !rig.server.is_idle(), "it is not answered");
    let next = compact(0, FLUSH, 10, 0, 0);
    assert_eq!(rig.server.receive(&next), 0, "nothing more is begun");
    rig.owner.serve(&mut rig.server, None);
    let mut out = Vec::new();
    rig.server.write_output(&mut out);
    assert_eq!(out, simple(0, 9).0);
    assert!(rig.server.is_idle() && rig.server.finished().is_none());
    rig.server.pause(false);
    assert_eq!(rig.say(&next), simple(0, 10).0);
}
