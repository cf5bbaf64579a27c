//! Real clients against our server: libnbd's tools, QEMU's and fio. What is not installed is skipped, and said.
#![allow(clippy::unwrap_used, reason = "a test's failures may panic")]

use client::memory_server::{Shared, spawn};
use nbd::memory::{MemoryDisk, MemoryOwner};
use std::path::{Path, PathBuf};
use std::process::Command;

const SIZE: usize = 24 << 20;

struct Rig {
    dir: tempfile::TempDir,
    uri: String,
    socket: PathBuf,
}

/// `None`, and a word about it, if the program is missing.
fn rig(program: &str) -> Option<Rig> {
    if Command::new(program).arg("--version").output().is_err() {
        // `cargo xtask verify` has made sure that they are there, or names at its end what was skipped.
        let needed = std::env::var_os("BLOCKD_NEED_CLIENTS").is_some();
        assert!(!needed, "{program} is not installed, and this run is to skip nothing");
        eprintln!("SKIPPED: {program} is not installed");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = MemoryDisk::new(SIZE as u64);
    let socket = dir.path().join("nbd.sock");
    spawn(&socket, Shared::new(MemoryOwner { name: "vol".into(), read_only: false, disk })).unwrap();
    Some(Rig { uri: format!("nbd+unix:///vol?socket={}", socket.display()), socket, dir })
}

fn run(program: &str, args: &[&str], dir: &Path) -> String {
    let out = Command::new(program).args(args).current_dir(dir).output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program} {args:?}: {}\n{text}\n{errors}", out.status);
    text.into_owned()
}

/// Data with holes, none of them aligned to anything larger than a sector.
fn image(rig: &Rig) -> (String, Vec<u8>) {
    let mut bytes: Vec<u8> = (0..SIZE).map(|i| (i / 7 + i / 4099).to_le_bytes()[0] | 1).collect();
    for hole in bytes.chunks_mut(5 << 20) {
        hole[512..(1 << 20) + 1536].fill(0);
    }
    let path = rig.dir.path().join("image.raw");
    std::fs::write(&path, &bytes).unwrap();
    (path.to_str().unwrap().to_owned(), bytes)
}

#[test]
fn nbdinfo_reads_the_handshake() {
    let Some(rig) = rig("nbdinfo") else { return };
    let info: serde_json::Value =
        serde_json::from_str(&run("nbdinfo", &["--json", &rig.uri], rig.dir.path())).unwrap();
    assert_eq!((&info["protocol"], &info["structured"]), (&"newstyle-fixed".into(), &true.into()));
    let export = &info["exports"][0];
    for can in ["can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn"] {
        assert_eq!(export[can], true, "{can}");
    }
    for can in ["can_trim", "can_zero"] {
        assert_eq!(export[can], true, "{can}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["export-size"], SIZE);
    assert_eq!(export["contexts"][0], "base:allocation");
    assert_eq!(export["block_size_minimum"], 512);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 32 << 20);
    let all = format!("nbd+unix:///?socket={}", rig.socket.display());
    let list = run("nbdinfo", &["--list", &all], rig.dir.path());
    assert!(list.contains("export=\"vol\"") && list.contains("a disk in memory"), "{list}");
    let map = run("nbdinfo", &["--map", &rig.uri], rig.dir.path());
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", &SIZE.to_string(), "3", "hole,zero"]);
}

#[test]
fn nbdcopy_copies_there_and_back() {
    let Some(rig) = rig("nbdcopy") else { return };
    let (path, bytes) = image(&rig);
    run("nbdcopy", &["--connections=4", &path, &rig.uri], rig.dir.path());
    run("nbdcopy", &["--flush", &rig.uri, "back.raw"], rig.dir.path());
    assert!(std::fs::read(rig.dir.path().join("back.raw")).unwrap() == bytes, "another content came back");
}

#[test]
fn qemu_img_converts_and_compares() {
    let Some(rig) = rig("qemu-img") else { return };
    let (path, bytes) = image(&rig);
    let raw = ["-f", "raw", "-O", "raw"];
    run("qemu-img", &[&["convert", "-n"][..], &raw, &[&path, &rig.uri]].concat(), rig.dir.path());
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &path, &rig.uri], rig.dir.path());
    run("qemu-img", &[&["convert"][..], &raw, &[&rig.uri, "back.raw"]].concat(), rig.dir.path());
    assert!(std::fs::read(rig.dir.path().join("back.raw")).unwrap() == bytes, "another content came back");
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &rig.uri], rig.dir.path());
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let map = map.as_array().unwrap();
    let length: u64 = map.iter().map(|e| e["length"].as_u64().unwrap()).sum();
    assert_eq!(length, SIZE as u64);
    assert!(map.iter().any(|e| e["zero"] == true), "holes stayed holes");
    assert!(map.iter().any(|e| e["zero"] == false));
}

#[test]
fn qemu_io_reads_what_it_wrote() {
    let Some(rig) = rig("qemu-io") else { return };
    let commands = [
        "write -P 7 4k 64k",
        "read -P 7 4k 64k",
        "discard 4k 4k",
        "write -z 8k 4k",
        "read -P 0 8k 4k",
        "write -z -u 12k 8k",
        "write -z -u -n 16k 64k",
        "read -P 0 12k 68k",
        "write -P 3 512 512",
        "read -P 3 512 512",
        "write -P 4 100 1000",
        "read -P 4 100 1000",
        "write -f -P 9 1M 2M",
        "read -P 9 1M 2M",
        "aio_write -P 5 8M 1M",
        "aio_write -P 6 9M 1M",
        "aio_flush",
        "read -P 5 8M 1M",
        "read -P 6 9M 1M",
        "flush",
    ];
    let mut args = vec!["-f", "raw", &rig.uri];
    for c in commands {
        args.extend(["-c", c]);
    }
    let said = run("qemu-io", &args, rig.dir.path());
    assert!(!said.contains("failed") && !said.contains("error"), "{said}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    let Some(rig) = rig("fio") else { return };
    if !run("fio", &["--enghelp"], rig.dir.path()).lines().any(|l| l.trim() == "nbd") {
        eprintln!("SKIPPED: this fio has no nbd engine");
        return;
    }
    let uri = format!("--uri={}", rig.uri);
    for pattern in [
        &["--rw=randwrite", "--bsrange=512-128k"][..],
        &["--rw=randrw", "--bs=4k"],
        &["--rw=trimwrite", "--bs=64k"],
        &["--rw=write", "--bs=1m"],
    ] {
        let common = ["--name=v", "--ioengine=nbd", &uri, "--iodepth=32", "--size=24m", "--verify=crc32c"];
        let rest = ["--do_verify=1", "--verify_fatal=1", "--output-format=json"];
        let out = run("fio", &[&common[..], pattern, &rest].concat(), rig.dir.path());
        let json: serde_json::Value = serde_json::from_str(&out[out.find('{').unwrap()..]).unwrap();
        assert_eq!(json["jobs"][0]["error"], 0, "{out}");
        assert!(json["jobs"][0]["read"]["total_ios"].as_u64().unwrap() > 0, "nothing was verified");
    }
}
