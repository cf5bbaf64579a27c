//! `nbd_memory SOCKET MIB`: serves a disk in memory as export `vol` until it is killed.

use client::memory_server::{Shared, spawn};
use nbd::memory::{MemoryDisk, MemoryOwner};
use std::path::Path;

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(socket), Some(mib)) = (args.next(), args.next().and_then(|n| n.parse::<u64>().ok())) else {
        eprintln!("usage: nbd_memory SOCKET MIB");
        std::process::exit(2);
    };
    let owner = MemoryOwner { name: "vol".into(), read_only: false, disk: MemoryDisk::new(mib << 20) };
    if let Err(e) = spawn(Path::new(&socket), Shared::new(owner)) {
        eprintln!("{socket}: {e}");
        std::process::exit(1);
    }
    println!("nbd+unix:///vol?socket={socket}");
    loop {
        std::thread::park();
    }
}
