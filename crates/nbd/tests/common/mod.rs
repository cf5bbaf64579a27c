//! Bytes, written as the fact sheet writes them.
#![allow(dead_code, reason = "each test file uses its part")]

use nbd::memory::{MemoryDisk, MemoryOwner};
use nbd::{Close, Server};

/// Big-endian bytes, piece by piece.
#[derive(Clone, Default)]
pub struct B(pub Vec<u8>);

impl B {
    pub fn new() -> B {
        B::default()
    }
    pub fn u16(mut self, v: u16) -> B {
        self.0.extend(v.to_be_bytes());
        self
    }
    pub fn u32(mut self, v: u32) -> B {
        self.0.extend(v.to_be_bytes());
        self
    }
    pub fn u64(mut self, v: u64) -> B {
        self.0.extend(v.to_be_bytes());
        self
    }
    pub fn raw(mut self, v: &[u8]) -> B {
        self.0.extend(v);
        self
    }
    /// A string behind its 32-bit length.
    pub fn string(self, v: &str) -> B {
        self.u32(v.len() as u32).raw(v.as_bytes())
    }
}

pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    B::new().u64(0x4948_4156_454f_5054).u32(option).u32(data.len() as u32).raw(data).0
}

pub fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    B::new().u64(0x3_e889_0455_65a9).u32(option).u32(kind).u32(data.len() as u32).raw(data).0
}

pub fn error_reply(option: u32, error: u32, message: &str) -> Vec<u8> {
    option_reply(option, (1 << 31) + error, message.as_bytes())
}

pub fn compact(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    B::new().u32(0x2560_9513).u16(flags).u16(command).u64(cookie).u64(offset).u32(len).0
}

pub fn extended(flags: u16, command: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    B::new().u32(0x21e4_1c71).u16(flags).u16(command).u64(cookie).u64(offset).u64(len).0
}

pub fn simple(error: u32, cookie: u64) -> B {
    B::new().u32(0x6744_6698).u32(error).u64(cookie)
}

pub fn chunk(flags: u16, kind: u16, cookie: u64, len: u32) -> B {
    B::new().u32(0x668e_33ef).u16(flags).u16(kind).u64(cookie).u32(len)
}

pub fn ext_chunk(flags: u16, kind: u16, cookie: u64, offset: u64, len: u64) -> B {
    B::new().u32(0x6e8a_278c).u16(flags).u16(kind).u64(cookie).u64(offset).u64(len)
}

/// A server with a disk behind it.
pub struct Rig {
    pub server: Server,
    pub owner: MemoryOwner,
}

impl Rig {
    /// Greeting and client flags are exchanged.
    pub fn new(size: u64) -> Rig {
        let owner = MemoryOwner { name: "vol".into(), read_only: false, disk: MemoryDisk::new(size) };
        let mut rig = Rig { server: Server::new(), owner };
        let greeting = rig.say(&3u32.to_be_bytes());
        assert_eq!(greeting, B::new().raw(b"NBDMAGICIHAVEOPT").u16(3).0);
        rig
    }
    /// Negotiates replies of `mode` (0 simple, 1 structured, 2 extended) and block status, and enters.
    pub fn entered(size: u64, mode: u8) -> Rig {
        let mut rig = Rig::new(size);
        rig.enter(mode);
        rig
    }
    pub fn enter(&mut self, mode: u8) {
        if mode > 0 {
            let upgrade = if mode == 1 { 8 } else { 11 };
            assert_eq!(self.say(&option(upgrade, &[])), option_reply(upgrade, 1, &[]));
            let meta = B::new().string("vol").u32(1).string("base:allocation").0;
            let selected = B::new().u32(1).raw(b"base:allocation").0;
            let expected = [option_reply(10, 4, &selected), option_reply(10, 1, &[])].concat();
            assert_eq!(self.say(&option(10, &meta)), expected);
        }
        let go = B::new().string("vol").u16(0).0;
        let answer = self.say(&option(7, &go));
        assert!(answer.ends_with(&option_reply(7, 1, &[])), "GO was refused");
        assert!(self.server.export().is_some());
    }
    /// Sends bytes, serves, and returns what came back. All bytes must be taken.
    pub fn say(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = bytes;
        loop {
            let n = self.server.receive(rest);
            rest = &rest[n..];
            self.owner.serve(&mut self.server, None);
            let before = out.len();
            self.server.write_output(&mut out);
            if rest.is_empty() || self.server.finished().is_some() {
                return out;
            }
            assert!(n > 0 || out.len() > before, "the server takes nothing and says nothing");
        }
    }
    pub fn closed(&self) -> Option<Close> {
        self.server.finished()
    }
}
