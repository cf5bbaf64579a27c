//! A disk in memory, and an owner for `Server` that serves it: the model of the tests, and the path without a
//! volume when the path itself is measured.

use crate::export::Export;
use crate::server::{Ask, Listed, Op, ReadPiece, RefusalKind, Refused, RequestId, Server};
use proto::limits::{BLOCK, SECTOR};
use proto::message::{BlockState, Run};
use proto::{Generation, PageBuf, Payload, Version};
use std::collections::{BTreeMap, VecDeque};

/// Thin: blocks never written, discarded or zeroed take no memory and read as zeroes.
pub struct MemoryDisk {
    size: u64,
    blocks: BTreeMap<u64, Payload>,
    /// What is written now, and in which generation each block was last written or discarded.
    generation: u32,
    touched: BTreeMap<u64, u32>,
    snapshots: BTreeMap<String, Generation>,
}

/// What an operation gives.
#[derive(Debug)]
pub enum Reply {
    Done,
    Read(Vec<ReadPiece>),
    Map(Vec<Run>),
}

const BYTES: u64 = BLOCK as u64;

impl MemoryDisk {
    /// `size` in bytes, a multiple of 512.
    #[must_use]
    pub fn new(size: u64) -> MemoryDisk {
        assert!(size.is_multiple_of(SECTOR as u64), "a disk is made of sectors");
        MemoryDisk {
            size,
            blocks: BTreeMap::new(),
            generation: 1,
            touched: BTreeMap::new(),
            snapshots: BTreeMap::new(),
        }
    }
    /// Remembers this moment: only what changes from here on is asked about, its content is not kept.
    pub fn snapshot(&mut self, name: &str) {
        self.snapshots.insert(name.to_owned(), Generation(self.generation));
        self.generation += 1;
    }
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }
    /// The operation is within the disk: `Server` has checked it.
    pub fn apply(&mut self, op: Op) -> Reply {
        match op {
            Op::Read { offset, len } => return Reply::Read(self.read(offset, len)),
            Op::Map { offset, len } => return Reply::Map(self.map(offset, len)),
            Op::Changes { offset, len, since } => return Reply::Map(self.changes(offset, len, since)),
            Op::Write { offset, len, data, .. } => self.write(offset, u64::from(len), &data),
            Op::Discard { offset, len, .. } | Op::WriteZeroes { offset, len, .. } => self.zero(offset, len),
            Op::Flush => {}
        }
        Reply::Done
    }

    fn write(&mut self, offset: u64, len: u64, data: &Payload) {
        self.touch(offset, len);
        let first = offset / BYTES;
        for (i, block) in (first..(offset + len).div_ceil(BYTES)).enumerate() {
            let from = offset.max(block * BYTES) - block * BYTES;
            let to = (offset + len).min((block + 1) * BYTES) - block * BYTES;
            if to - from == BYTES {
                self.blocks.insert(block, data.slice(i, 1));
            } else {
                self.merge(block, from, &data.block(i)[index(from)..index(to)]);
            }
        }
    }

    fn touch(&mut self, offset: u64, len: u64) {
        let blocks = offset / BYTES..(offset + len).div_ceil(BYTES);
        self.touched.extend(blocks.map(|block| (block, self.generation)));
    }

    fn merge(&mut self, block: u64, at: u64, bytes: &[u8]) {
        let mut page =
            self.blocks.get(&block).map_or_else(|| PageBuf::zeroed(1), |p| PageBuf::copy_of(p.bytes()));
        page.bytes_mut()[index(at)..index(at) + bytes.len()].copy_from_slice(bytes);
        self.blocks.insert(block, page.freeze());
    }

    fn zero(&mut self, offset: u64, len: u64) {
        self.touch(offset, len);
        let end = offset + len;
        let written: Vec<u64> =
            self.blocks.range(offset / BYTES..end.div_ceil(BYTES)).map(|(&block, _)| block).collect();
        for block in written {
            let from = offset.max(block * BYTES) - block * BYTES;
            let to = end.min((block + 1) * BYTES) - block * BYTES;
            if to - from == BYTES {
                self.blocks.remove(&block);
            } else {
                self.merge(block, from, &vec![0; index(to - from)]);
            }
        }
    }

    fn read(&self, offset: u64, len: u32) -> Vec<ReadPiece> {
        let end = offset + u64::from(len);
        (offset / BYTES..end.div_ceil(BYTES))
            .map(|block| {
                let from = offset.max(block * BYTES) - block * BYTES;
                let to = end.min((block + 1) * BYTES) - block * BYTES;
                let len = small(to - from);
                match self.blocks.get(&block) {
                    Some(payload) => ReadPiece::Data { payload: payload.clone(), skip: small(from), len },
                    None => ReadPiece::Zero { bytes: len },
                }
            })
            .collect()
    }

    fn map(&self, offset: u64, len: u64) -> Vec<Run> {
        Self::runs(offset, len, |blocks| self.blocks.range(blocks).map(|(block, _)| *block).collect())
    }

    fn changes(&self, offset: u64, len: u64, since: Generation) -> Vec<Run> {
        let newer = |touched: &(&u64, &u32)| *touched.1 > since.0;
        Self::runs(offset, len, |blocks| {
            self.touched.range(blocks).filter(newer).map(|(block, _)| *block).collect()
        })
    }

    fn runs(offset: u64, len: u64, there: impl Fn(std::ops::Range<u64>) -> Vec<u64>) -> Vec<Run> {
        let run = |count: u64, state| Run {
            count: small(count),
            state,
            version: Version::default(),
            generation: Generation(0),
        };
        let (mut at, end) = (offset / BYTES, (offset + len).div_ceil(BYTES));
        let mut runs = Vec::new();
        for block in there(at..end) {
            if block > at {
                runs.push(run(block - at, BlockState::Absent));
            }
            runs.push(run(1, BlockState::Data));
            at = block + 1;
        }
        if end > at {
            runs.push(run(end - at, BlockState::Absent));
        }
        runs
    }
}

fn unknown(name: &str) -> Refused {
    Refused { kind: RefusalKind::Unknown, message: format!("no volume \"{name}\"") }
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("within a block")
}
fn small(n: u64) -> u32 {
    u32::try_from(n).expect("a request's blocks fit 32 bits")
}

/// Owns a disk and answers a server's questions about it.
pub struct MemoryOwner {
    pub name: String,
    pub read_only: bool,
    pub disk: MemoryDisk,
}

impl MemoryOwner {
    /// Answers everything that the server asks. Requests go to `held`, if given, instead of being applied.
    pub fn serve(&mut self, server: &mut Server, mut held: Option<&mut VecDeque<(RequestId, Op)>>) {
        while let Some(ask) = server.poll() {
            match ask {
                Ask::List => {
                    let description = "a disk in memory".to_owned();
                    server.answer_list(Ok(vec![Listed { name: self.name.clone(), description }]));
                }
                Ask::Export { name, .. } if name == self.name => server.answer_export(Ok(Export {
                    size: self.disk.size(),
                    read_only: self.read_only,
                    description: "a disk in memory".to_owned(),
                })),
                Ask::Contexts { name, since } if name == self.name => {
                    let found = since.iter().map(|s| self.disk.snapshots.get(s).copied()).collect();
                    server.answer_contexts(Ok(found));
                }
                Ask::Contexts { name, .. } => server.answer_contexts(Err(unknown(&name))),
                Ask::Export { name, .. } => server.answer_export(Err(unknown(&name))),
                Ask::Request { id, op } => match &mut held {
                    Some(held) => held.push_back((id, op)),
                    None => self.complete(server, id, op),
                },
            }
        }
    }

    /// Applies an operation and completes its request.
    pub fn complete(&mut self, server: &mut Server, id: RequestId, op: Op) {
        match self.disk.apply(op) {
            Reply::Done => server.done(id),
            Reply::Read(pieces) => server.read_done(id, pieces),
            Reply::Map(runs) => server.status_done(id, &runs),
        }
    }
}
