//! The parents of a clone: replicas of other branches on the same nodes, that refuse, move, and are incomplete.

use super::{BRANCH, Rng};
use proto::control::MetaAnswer;
use proto::limits::READER_EPOCH;
use proto::message::*;
use proto::record::Sum;
use proto::*;
use std::collections::{BTreeMap, BTreeSet};

pub struct Family {
    pub levels: Vec<Level>,
    /// Blocks that a level has: its value, 0 for zeroes.
    pub truth: Vec<BTreeMap<(u32, u32), u64>>,
    pub places: BTreeMap<(BranchId, u32), Configuration>,
    /// Replicas that do not hold the view (yet, or any more).
    pub incomplete: BTreeSet<(BranchId, u32, Place)>,
    /// What all of them say, whatever they are asked.
    pub refuses: Option<Refusal>,
    /// What was asked: level, and whether for data.
    pub asked: Vec<(usize, bool, BlockRange)>,
    incarnation: u64,
    chunk: u64,
    blocks: u32,
}

/// A block as the tests write it.
pub fn block_of(value: u64) -> Vec<u8> {
    let mut b = vec![0; 4096];
    b[..8].copy_from_slice(&value.to_le_bytes());
    b[4088..].copy_from_slice(&value.to_le_bytes());
    b
}

impl Family {
    /// Levels of these sizes in bytes, the nearest first, with data in some of these blocks.
    pub fn new(rng: &mut Rng, shift: u8, sizes: &[u64], places: &[(u32, u32)], nodes: u32) -> Family {
        let chunk = 1 << shift;
        let mut f = Family {
            levels: vec![],
            truth: vec![],
            places: BTreeMap::new(),
            incomplete: BTreeSet::new(),
            refuses: None,
            asked: vec![],
            incarnation: 1000,
            chunk,
            blocks: u32::try_from(chunk / 4096).unwrap(),
        };
        for (i, &size) in sizes.iter().enumerate() {
            let branch = BranchId(20 + i as u64);
            f.levels.push(Level { branch, generation: Generation(3), size });
            let mut has = BTreeMap::new();
            for &(c, b) in places {
                if f.offset(c, b) < size && rng.chance(45) {
                    let v = (i as u64 + 1) << 40 | u64::from(c) << 20 | u64::from(b);
                    has.insert((c, b), if rng.chance(20) { 0 } else { v });
                }
            }
            f.truth.push(has);
            for c in 0..u32::try_from(size.div_ceil(chunk)).unwrap() {
                f.places.insert((branch, c), Configuration::default());
                for n in (1..=nodes).rev().take(3) {
                    f.place(branch, c, n);
                }
            }
        }
        f
    }

    fn offset(&self, chunk: u32, block: u32) -> u64 {
        u64::from(chunk) * self.chunk + u64::from(block) * 4096
    }

    /// A new replica on that node.
    pub fn place(&mut self, branch: BranchId, chunk: u32, n: u32) {
        self.incarnation += 1;
        let place = super::metad::place(n, self.incarnation);
        let c = self.places.get_mut(&(branch, chunk)).unwrap();
        c.members.retain(|m| m.place.node.0 != n);
        c.members.push(Member { place, state: MemberState::InSync });
        c.number = c.number.next();
    }

    /// What a clone's guest sees where the clone has nothing: `None`, nobody has anything.
    pub fn is(&self, chunk: u32, block: u32) -> Option<u64> {
        for (l, has) in self.levels.iter().zip(&self.truth) {
            if self.offset(chunk, block) >= l.size {
                return None;
            }
            if let Some(v) = has.get(&(chunk, block)) {
                return Some(*v);
            }
        }
        None
    }

    /// Where anything can be, as blocks of the volume.
    pub fn values(&self) -> BTreeMap<u64, u64> {
        let all: BTreeSet<(u32, u32)> = self.truth.iter().flat_map(|t| t.keys().copied()).collect();
        let at = |k: (u32, u32)| u64::from(k.0) * u64::from(self.blocks) + u64::from(k.1);
        all.into_iter().filter_map(|k| Some((at(k), self.is(k.0, k.1)?))).collect()
    }

    pub fn chunks(&self, branch: BranchId, chunks: &[ChunkIndex], epoch: Epoch) -> MetaAnswer {
        assert_eq!(epoch, READER_EPOCH, "places of another branch are asked for as a reader does");
        let of = |c: &ChunkIndex| Some((*c, self.places.get(&(branch, c.0))?.clone()));
        let chunks = chunks.iter().filter_map(of).collect();
        MetaAnswer::Configurations { epoch: Epoch(77), chunks, down: vec![] }
    }

    pub fn handle(&mut self, node: NodeId, f: &RequestFrame) -> ReplyFrame {
        let (scope, token) = (f.scope, f.token);
        assert_ne!(scope.branch, BRANCH);
        let frame = |reply| ReplyFrame { token, branch: scope.branch, drive: scope.drive, reply };
        let refused = |refusal| frame(Reply::Refused { refusal, version: Version::ZERO });
        let level = self.levels.iter().position(|l| l.branch == scope.branch).unwrap();
        let (view, range, data) = match &f.request {
            Request::Read { view, range, .. } => (*view, *range, true),
            Request::Map { view, range } => (*view, *range, false),
            other => panic!("a parent is only read: {other:?}"),
        };
        self.asked.push((level, data, range));
        let chunk = scope.chunk.0;
        let c = &self.places[&(scope.branch, chunk)];
        let here = c.members.iter().find(|m| m.place.node == node && m.place.drive == scope.drive);
        let Some(place) = here.map(|m| m.place).filter(|p| p.incarnation == scope.incarnation) else {
            return refused(Refusal::UnknownReplica);
        };
        if let Some(r) = self.refuses {
            return refused(r);
        }
        let head = view == View::Head;
        if !head {
            assert_eq!(scope.epoch, READER_EPOCH, "a parent's view is read without a session");
            assert_eq!(view, View::At(self.levels[level].generation));
            if self.incomplete.contains(&(scope.branch, chunk, place)) {
                return refused(Refusal::UnknownView);
            }
        }
        assert!(range.end() <= self.blocks);
        let (mut runs, mut sums, mut bytes): (Vec<Run>, _, _) = (vec![], vec![], vec![]);
        for b in range.first..range.end() {
            // the head goes on
            let v = self.truth[level].get(&(chunk, b)).map(|v| if head { v + (1 << 50) } else { *v });
            let state = match v {
                None => BlockState::Absent,
                Some(0) => BlockState::Zero,
                Some(v) => {
                    let block = block_of(v);
                    sums.push(Sum::of(&block));
                    if data {
                        bytes.extend(block);
                    }
                    BlockState::Data
                }
            };
            match runs.last_mut() {
                Some(r) if r.state == state => r.count += 1,
                _ => runs.push(Run { count: 1, state, version: Version::ZERO, generation: Generation(1) }),
            }
        }
        if data {
            frame(Reply::ReadDone { runs, sums, payload: Payload::copy_of(&bytes) })
        } else {
            frame(Reply::Map { runs })
        }
    }

    /// Something happens to a parent. At most one replica of a chunk that has the view is left.
    pub fn stir(&mut self, rng: &mut Rng) {
        let keys: Vec<(BranchId, u32)> = self.places.keys().copied().collect();
        let (branch, chunk) = keys[rng.below(keys.len())];
        let members: Vec<Place> = self.places[&(branch, chunk)].members.iter().map(|m| m.place).collect();
        let p = members[rng.below(members.len())];
        match rng.below(5) {
            0 => {
                self.refuses = Some([Refusal::NoDrive, Refusal::Closing, Refusal::UnknownView][rng.below(3)])
            }
            1 => self.refuses = None,
            2 => drop(self.incomplete.insert((branch, chunk, p))),
            3 => self.incomplete.retain(|_| rng.chance(50)),
            _ => self.place(branch, chunk, p.node.0),
        }
    }

    pub fn calm(&mut self) {
        self.refuses = None;
        self.incomplete.clear();
    }
}
