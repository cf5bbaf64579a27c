//! The handshake, byte for byte.
#![allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "a test's numbers are small, and its failures may panic"
)]

mod common;
use common::*;
use nbd::{Close, Server, Violation};

const MIB: u64 = 1 << 20;
/// HAS_FLAGS FLUSH FUA TRIM WRITE_ZEROES MULTI_CONN CACHE FAST_ZERO.
const FLAGS: u16 = 1 | 4 | 8 | 32 | 64 | 256 | 1024 | 2048;
const DF: u16 = 128;

fn infos(option: u32, size: u64, flags: u16) -> Vec<u8> {
    let export = B::new().u16(0).u64(size).u16(flags).0;
    let sizes = B::new().u16(3).u32(512).u32(4096).u32(32 << 20).0;
    [option_reply(option, 3, &export), option_reply(option, 3, &sizes)].concat()
}

#[test]
fn greeting_is_fixed_newstyle_without_zeroes() {
    let mut server = Server::new();
    let mut out = Vec::new();
    server.write_output(&mut out);
    assert_eq!(out, *b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn unknown_client_flag_closes() {
    let mut server = Server::new();
    server.receive(&[0, 0, 0, 7]);
    assert_eq!(server.finished(), Some(Close::Violation(Violation::ClientFlags(7))));
    assert!(!server.wants_input());
    assert_eq!(server.receive(b"more"), 0);
}

#[test]
fn export_name_answers_without_header() {
    let mut rig = Rig::new(MIB);
    assert_eq!(rig.say(&option(1, b"vol")), B::new().u64(MIB).u16(FLAGS).0);
    assert!(rig.server.export().is_some());
}

#[test]
fn export_name_pads_with_124_zeroes_unless_waived() {
    let mut server = Server::new();
    let mut rig = Rig::new(MIB);
    server.receive(&1u32.to_be_bytes());
    std::mem::swap(&mut rig.server, &mut server);
    let answer = rig.say(&option(1, b"vol"));
    let greeting = 18;
    assert_eq!(answer[greeting..], B::new().u64(MIB).u16(FLAGS).raw(&[0; 124]).0);
}

#[test]
fn export_name_of_an_unknown_export_closes() {
    let mut rig = Rig::new(MIB);
    assert_eq!(rig.say(&option(1, b"other")), b"");
    assert_eq!(rig.closed(), Some(Close::Refused));
}

#[test]
fn export_name_is_forbidden_after_extended_headers() {
    let mut rig = Rig::new(MIB);
    rig.say(&option(11, &[]));
    assert_eq!(rig.say(&option(1, b"vol")), b"");
    assert_eq!(rig.closed(), Some(Close::Violation(Violation::ExportName)));
}

#[test]
fn abort_is_acknowledged_and_closes() {
    let mut rig = Rig::new(MIB);
    assert_eq!(rig.say(&option(2, &[])), option_reply(2, 1, &[]));
    assert_eq!(rig.closed(), Some(Close::Aborted));
}

#[test]
fn list_names_the_exports() {
    let mut rig = Rig::new(MIB);
    let entry = B::new().string("vol").raw(b"a disk in memory").0;
    assert_eq!(rig.say(&option(3, &[])), [option_reply(3, 2, &entry), option_reply(3, 1, &[])].concat());
    assert_eq!(rig.say(&option(3, b"x")), error_reply(3, 3, "the option takes no data"));
}

#[test]
fn peek_starttls_and_unknown_options_are_unsupported_and_keep_sync() {
    let mut rig = Rig::new(MIB);
    for o in [4, 5, 12, 0, u32::MAX] {
        assert_eq!(rig.say(&option(o, b"some data")), error_reply(o, 1, "option not supported"));
    }
    assert_eq!(rig.say(&option(2, &[])), option_reply(2, 1, &[]));
}

#[test]
fn info_tells_size_flags_and_block_sizes_and_opens_nothing() {
    let mut rig = Rig::new(MIB);
    let data = B::new().string("vol").u16(0).0;
    assert_eq!(rig.say(&option(6, &data)), [infos(6, MIB, FLAGS), option_reply(6, 1, &[])].concat());
    assert!(rig.server.export().is_none());
}

#[test]
fn info_gives_name_and_description_when_asked_and_ignores_unknown_kinds() {
    let mut rig = Rig::new(MIB);
    let data = B::new().string("vol").u16(4).u16(2).u16(3).u16(77).u16(1).0;
    let expected = [
        infos(6, MIB, FLAGS),
        option_reply(6, 3, &B::new().u16(1).raw(b"vol").0),
        option_reply(6, 3, &B::new().u16(2).raw(b"a disk in memory").0),
        option_reply(6, 1, &[]),
    ];
    assert_eq!(rig.say(&option(6, &data)), expected.concat());
}

#[test]
fn go_enters_the_transmission_phase() {
    let mut rig = Rig::new(MIB);
    rig.owner.read_only = true;
    let data = B::new().string("vol").u16(1).u16(3).0;
    assert_eq!(rig.say(&option(7, &data)), [infos(7, MIB, FLAGS | 2), option_reply(7, 1, &[])].concat());
    assert!(rig.server.export().is_some());
}

#[test]
fn go_to_an_unknown_export_is_refused_with_text_and_may_be_tried_again() {
    let mut rig = Rig::new(MIB);
    let data = B::new().string("other").u16(0).0;
    assert_eq!(rig.say(&option(7, &data)), error_reply(7, 6, "no volume \"other\""));
    rig.enter(1);
}

#[test]
fn malformed_info_is_invalid_and_keeps_sync() {
    let mut rig = Rig::new(MIB);
    let long = "x".repeat(4097);
    let bad: [Vec<u8>; 7] = [
        vec![],
        B::new().u32(100).raw(b"vol").0,
        B::new().string("vol").0,
        B::new().string("vol").u16(2).u16(1).0,
        B::new().string("vol").u16(0).raw(b"tail").0,
        B::new().string("v\0l").u16(0).0,
        B::new().string(&long).u16(0).0,
    ];
    for data in bad {
        let answer = rig.say(&option(7, &data));
        assert_eq!(answer[..16], B::new().u64(0x3_e889_0455_65a9).u32(7).u32((1 << 31) + 3).0, "{data:?}");
    }
    assert_eq!(rig.say(&option(7, &B::new().u32(3).raw(&[0xff; 3]).u16(0).0))[8..16], {
        B::new().u32(7).u32((1 << 31) + 3).0
    });
    rig.enter(0);
}

#[test]
fn too_long_an_option_is_skipped_and_refused() {
    let mut rig = Rig::new(MIB);
    let answer = rig.say(&option(7, &vec![0; 1 << 20]));
    assert_eq!(answer, error_reply(7, 9, "option too long"));
    rig.enter(2);
}

#[test]
fn structured_replies_and_extended_headers_are_negotiated_once() {
    let mut rig = Rig::new(MIB);
    assert_eq!(rig.say(&option(8, b"x")), error_reply(8, 3, "the option takes no data"));
    assert_eq!(rig.say(&option(8, &[])), option_reply(8, 1, &[]));
    assert_eq!(rig.say(&option(8, &[])), error_reply(8, 3, "already negotiated"));
    assert_eq!(rig.say(&option(11, &[])), option_reply(11, 1, &[]));
    assert_eq!(rig.say(&option(11, &[])), error_reply(11, 3, "already negotiated"));
    let taken = error_reply(8, 10, "extended headers are already negotiated");
    assert_eq!(rig.say(&option(8, &[])), taken);
    let data = B::new().string("vol").u16(0).0;
    assert_eq!(rig.say(&option(6, &data)), [infos(6, MIB, FLAGS | DF), option_reply(6, 1, &[])].concat());
}

#[test]
fn meta_contexts_need_structured_replies() {
    let mut rig = Rig::new(MIB);
    let data = B::new().string("vol").u32(0).0;
    for o in [9, 10] {
        let expected = error_reply(o, 3, "structured replies were not negotiated");
        assert_eq!(rig.say(&option(o, &data)), expected);
    }
}

#[test]
fn meta_contexts_are_listed_by_name_and_by_namespace() {
    let mut rig = Rig::new(MIB);
    rig.say(&option(8, &[]));
    let found = [option_reply(9, 4, &B::new().u32(0).raw(b"base:allocation").0), option_reply(9, 1, &[])];
    let none = option_reply(9, 1, &[]);
    let list = |queries: &[&str]| {
        let data = B::new().string("vol").u32(queries.len() as u32);
        option(9, &queries.iter().fold(data, |b, q| b.string(q)).0)
    };
    assert_eq!(rig.say(&list(&[])), found.concat());
    assert_eq!(rig.say(&list(&["base:"])), found.concat());
    assert_eq!(rig.say(&list(&["x:y", "base:allocation"])), found.concat());
    assert_eq!(rig.say(&list(&["x:y", "base:other"])), none);
    assert_eq!(rig.say(&list(&["nonsense"])), error_reply(9, 3, "a query without a namespace"));
    let unknown = B::new().string("other").u32(0).0;
    assert_eq!(rig.say(&option(9, &unknown)), error_reply(9, 6, "no volume \"other\""));
}

#[test]
fn selecting_by_namespace_selects_nothing() {
    let mut rig = Rig::new(MIB);
    rig.say(&option(8, &[]));
    for query in ["base:", "x:y", "base:none"] {
        let data = B::new().string("vol").u32(1).string(query).0;
        assert_eq!(rig.say(&option(10, &data)), option_reply(10, 1, &[]));
    }
}

#[test]
fn changes_since_a_snapshot_are_a_context_if_the_owner_knows_it() {
    let context = |o, id: u32, name: &str| option_reply(o, 4, &B::new().u32(id).raw(name.as_bytes()).0);
    let mut rig = Rig::new(MIB);
    rig.say(&option(8, &[]));
    rig.owner.disk.snapshot("mon");
    rig.owner.disk.snapshot("tue");
    let queries = ["blockd:changed:tue", "base:allocation", "blockd:changed:none", "blockd:changed:mon"];
    let ask = |o, name: &str, queries: &[&str]| {
        let data = B::new().string(name).u32(queries.len() as u32);
        option(o, &queries.iter().fold(data, |b, q| b.string(q)).0)
    };
    for (o, ids) in [(9, [0, 0, 0]), (10, [1, 2, 3])] {
        let found = [
            context(o, ids[0], "base:allocation"),
            context(o, ids[1], "blockd:changed:tue"),
            context(o, ids[2], "blockd:changed:mon"),
            option_reply(o, 1, &[]),
        ];
        assert_eq!(rig.say(&ask(o, "vol", &queries)), found.concat());
    }
    let unknown = ask(10, "other", &["blockd:changed:mon"]);
    assert_eq!(rig.say(&unknown), error_reply(10, 6, "no volume \"other\""));
    // A fifth snapshot is not selected, nor one twice, nor none.
    let names: Vec<String> = (0..6).map(|i| format!("s{i}")).collect();
    names.iter().for_each(|n| rig.owner.disk.snapshot(n));
    let queries: Vec<String> = names.iter().map(|n| format!("blockd:changed:{n}")).collect();
    let queries: Vec<&str> =
        ["blockd:changed:", "blockd:changed:s0"].into_iter().chain(queries.iter().map(|q| &q[..])).collect();
    let answer = rig.say(&ask(10, "vol", &queries));
    let selected: Vec<Vec<u8>> =
        (0..4).map(|i| context(10, i + 1, &format!("blockd:changed:s{i}"))).collect();
    assert_eq!(answer, [selected.concat(), option_reply(10, 1, &[])].concat());
}

/// After entering, is a block status served?
fn has_status(rig: &mut Rig) -> bool {
    let answer = rig.say(&compact(0, 7, 1, 0, 4096));
    answer[..20] == chunk(1, 5, 1, 12).0
}

#[test]
fn a_selection_holds_for_its_export_and_until_the_next_one() {
    let select = |name: &str, query: &str| option(10, &B::new().string(name).u32(1).string(query).0);
    let go = option(7, &B::new().string("vol").u16(0).0);
    let mut rig = Rig::entered(MIB, 1);
    assert!(has_status(&mut rig));
    let too_long = option(10, &vec![0; 1 << 20]);
    let selections = [select("other", "base:allocation"), select("vol", "nonsense"), select("vol", "x:y")];
    for failing in selections.into_iter().chain([too_long, option(10, &[])]) {
        let mut rig = Rig::new(MIB);
        rig.say(&option(8, &[]));
        rig.say(&select("vol", "base:allocation"));
        rig.say(&failing);
        rig.say(&go);
        assert!(!has_status(&mut rig));
    }
}

#[test]
fn bad_option_magic_closes() {
    let mut rig = Rig::new(MIB);
    assert_eq!(rig.say(&[0; 16]), b"");
    assert_eq!(rig.closed(), Some(Close::Violation(Violation::OptionMagic)));
}

#[test]
fn a_draining_server_refuses_options() {
    let mut rig = Rig::new(MIB);
    rig.server.drain();
    let go = option(7, &B::new().string("vol").u16(0).0);
    assert_eq!(rig.say(&go), error_reply(7, 7, "the server is shutting down"));
    assert_eq!(rig.say(&option(2, &[])), option_reply(2, 1, &[]));
}

#[test]
fn no_input_is_read_while_the_owner_thinks() {
    let mut server = Server::new();
    server.receive(&3u32.to_be_bytes());
    let both = [option(3, &[]), option(2, &[])].concat();
    assert_eq!(server.receive(&both), 16);
    assert!(!server.wants_input());
    server.answer_list(Ok(vec![]));
    assert!(server.wants_input());
    assert_eq!(server.receive(&both[16..]), 16);
    assert_eq!(server.finished(), Some(Close::Aborted));
}

#[test]
fn a_client_that_never_listens_is_not_read_for_ever() {
    let mut server = Server::new();
    server.receive(&3u32.to_be_bytes());
    let train = option(77, &[]).repeat(100_000);
    let taken = server.receive(&train);
    assert!(taken < train.len() && !server.wants_input());
    assert!(server.output_len() < 128 << 10);
    while server.poll_output().is_some() {}
    assert!(server.wants_input());
    assert_eq!(server.receive(&train[taken..taken + 16]), 16);
}
