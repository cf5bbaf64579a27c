//! Where replicas go. Pure: drives with their free space and load in, a plan out.
//!
//! Replicas of a chunk lie on distinct nodes, in distinct zones too where enough zones are labelled.
//! Only few sets of nodes are used (copysets): with every combination of a large cluster's nodes in use,
//! the loss of any three nodes would hit some chunk. The sets are windows on two rings, in which nodes
//! stand in an order of their own that a node's coming or going disturbs only near its place. Among the
//! sets, the one whose fullest drive has most free space per replica is next.
//!
//! Neighbouring chunks lie together, a few GiB of them: the fewer drives the writes of a session go to, the more of them
//! share a journal batch, a message and a wake-up (docs/decisions/0009). A large volume is spread all the same.

use crate::command::Plan;
use proto::{DriveId, NodeId};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// Rings of nodes; each gives a node (2 * copies - 2) neighbours.
const RINGS: u64 = 2;
/// Bytes of neighbouring chunks that lie on the same drives; no more than this part of what the fullest drive has free.
const RUN: u64 = 4 << 30;
const RUN_SHARE: u64 = 4;

/// A drive that takes new replicas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub drive: DriveId,
    pub node: NodeId,
    /// Empty: none.
    pub zone: String,
    /// Bytes.
    pub free: u64,
    /// Replicas there already.
    pub load: u64,
}
impl Candidate {
    /// Free bytes per replica, with one more: the drive with most is next.
    fn score(&self) -> u64 {
        self.free / (self.load + 1)
    }
}

/// Fewer failure domains than copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooFew {
    pub have: u32,
}

#[derive(Clone, Debug)]
pub struct Placer {
    candidates: Vec<Candidate>,
    /// By node, indexes of its drives.
    nodes: BTreeMap<NodeId, Vec<usize>>,
}

impl Placer {
    #[must_use]
    pub fn new(mut candidates: Vec<Candidate>) -> Placer {
        candidates.sort_by_key(|c| (c.node, c.drive));
        candidates.dedup_by_key(|c| c.drive);
        let mut nodes: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for (i, c) in candidates.iter().enumerate() {
            nodes.entry(c.node).or_default().push(i);
        }
        Placer { candidates, nodes }
    }

    fn zone(&self, node: NodeId) -> &str {
        self.nodes.get(&node).and_then(|d| d.first()).map_or("", |i| &self.candidates[*i].zone)
    }

    /// Zones count as failure domains if all nodes have one and there are enough of them.
    fn zones_count(&self, copies: u8) -> bool {
        let zones: BTreeSet<&str> = self.nodes.keys().map(|n| self.zone(*n)).collect();
        !zones.contains("") && zones.len() >= usize::from(copies)
    }

    /// The sets of nodes that may hold a chunk together.
    #[must_use]
    pub fn sets(&self, copies: u8) -> BTreeSet<Vec<NodeId>> {
        let zoned = self.zones_count(copies);
        let mut sets = BTreeSet::new();
        for ring in 0..RINGS {
            let mut order: Vec<NodeId> = self.nodes.keys().copied().collect();
            order.sort_by_key(|n| (mix(ring, u64::from(n.0)), *n));
            for start in 0..order.len() {
                let mut set: Vec<NodeId> = Vec::new();
                for node in order.iter().cycle().skip(start).take(order.len()) {
                    let apart = !zoned || set.iter().all(|s| self.zone(*s) != self.zone(*node));
                    if apart && set.len() < usize::from(copies) {
                        set.push(*node);
                    }
                }
                if set.len() == usize::from(copies) {
                    set.sort_unstable();
                    sets.insert(set);
                }
            }
        }
        sets
    }

    /// Chunks of this length that lie together.
    fn run(&self, chunk_bytes: u64) -> usize {
        let free = self.candidates.iter().map(|c| c.free).min().unwrap_or(0);
        usize::try_from(RUN.min(free / RUN_SHARE) / chunk_bytes).unwrap_or(1).max(1)
    }

    /// Drives for so many new chunks of a length; the first of each on the preferred node, if it has a drive.
    ///
    /// # Errors
    /// Fewer usable nodes than copies.
    pub fn plan(
        &mut self,
        copies: u8,
        chunks: u32,
        chunk_bytes: u64,
        prefer: Option<NodeId>,
    ) -> Result<Plan, TooFew> {
        let mut sets: Vec<Vec<NodeId>> = self.sets(copies).into_iter().collect();
        if sets.is_empty() {
            return Err(TooFew { have: u32::try_from(self.nodes.len()).unwrap_or(u32::MAX) });
        }
        if let Some(p) = prefer.filter(|p| self.nodes.contains_key(p)) {
            sets.retain(|s| s.contains(&p));
            sets.iter_mut().for_each(|s| s.sort_by_key(|n| (*n != p, *n)));
        }
        let groups = self.groups(&sets);
        let run = self.run(chunk_bytes);
        let mut heap: BinaryHeap<((u64, u64), std::cmp::Reverse<u16>)> =
            groups.iter().zip(0u16..).map(|(g, i)| (self.group_score(g), std::cmp::Reverse(i))).collect();
        let mut plan = Plan::default();
        let mut numbers: BTreeMap<u16, u16> = BTreeMap::new();
        while plan.chunks.len() < chunks as usize {
            let (noted, std::cmp::Reverse(i)) = heap.pop().expect("there is a set, and each is put back");
            let group = &groups[usize::from(i)];
            let now = self.group_score(group);
            if now < noted {
                // Its drives were used by another set meanwhile.
                heap.push((now, std::cmp::Reverse(i)));
                continue;
            }
            let next = u16::try_from(plan.groups.len()).expect("at most as many as groups");
            let number = *numbers.entry(i).or_insert(next);
            if number == next {
                plan.groups.push(group.iter().map(|c| self.candidates[*c].drive).collect());
            }
            let together = run.min(chunks as usize - plan.chunks.len());
            plan.chunks.extend(std::iter::repeat_n(number, together));
            for c in group {
                self.candidates[*c].load += together as u64;
            }
            heap.push((self.group_score(group), std::cmp::Reverse(i)));
        }
        Ok(plan)
    }

    /// As `plan`, but a chunk goes where the one that it is made of lies, if all of that takes replicas: `like` are the
    /// drives of the source's first chunks, in their order.
    ///
    /// # Errors
    /// Fewer usable nodes than copies, and a chunk that cannot lie where its source does.
    pub fn plan_like(
        &mut self,
        copies: u8,
        chunks: u32,
        chunk_bytes: u64,
        prefer: Option<NodeId>,
        like: &[Vec<DriveId>],
    ) -> Result<Plan, TooFew> {
        let mut plan = Plan::default();
        let mut numbers: BTreeMap<Vec<DriveId>, u16> = BTreeMap::new();
        // Half of the numbers are left for what is placed anew.
        let most = usize::from(u16::MAX / 2);
        let homes: BTreeMap<DriveId, NodeId> = self.candidates.iter().map(|c| (c.drive, c.node)).collect();
        let mut beside: Vec<Option<u16>> = Vec::with_capacity(chunks as usize);
        for i in 0..chunks as usize {
            let group = like.get(i).and_then(|drives| same_place(&homes, copies, drives, prefer));
            let number = group.and_then(|group| {
                let next = u16::try_from(plan.groups.len()).expect("at most half of the numbers");
                if let Some(n) = numbers.get(&group) {
                    return Some(*n);
                }
                (plan.groups.len() < most).then(|| {
                    plan.groups.push(group.clone());
                    numbers.insert(group, next);
                    next
                })
            });
            beside.push(number);
        }
        let rest = beside.iter().filter(|n| n.is_none()).count();
        let anew = match u32::try_from(rest).expect("at most all chunks") {
            0 => Plan::default(),
            n => self.plan(copies, n, chunk_bytes, prefer)?,
        };
        let first = u16::try_from(plan.groups.len()).expect("at most half of the numbers");
        let room = u16::MAX - first;
        plan.groups.extend(anew.groups.into_iter().take(usize::from(room)));
        let mut anew_chunks = anew.chunks.into_iter().map(|n| first + n % room);
        plan.chunks =
            beside.into_iter().map(|n| n.or_else(|| anew_chunks.next()).expect("one for each")).collect();
        Ok(plan)
    }

    /// Per set of nodes, sets of drives: the k-th of each node, so that these stay few too.
    fn groups(&self, sets: &[Vec<NodeId>]) -> Vec<Vec<usize>> {
        let mut groups = Vec::new();
        for set in sets {
            let most = set.iter().map(|n| self.nodes[n].len()).max().unwrap_or(0);
            for k in 0..most {
                let group = set.iter().map(|n| self.nodes[n][k % self.nodes[n].len()]).collect();
                groups.push(group);
            }
        }
        groups.truncate(usize::from(u16::MAX));
        groups
    }

    /// The fullest drive's score, then all together. Both only fall while a plan is made.
    fn group_score(&self, group: &[usize]) -> (u64, u64) {
        let scores = || group.iter().map(|c| self.candidates[*c].score());
        (scores().min().unwrap_or(0), scores().fold(0, u64::saturating_add))
    }

    /// A drive for one more replica of a chunk whose other replicas lie on these nodes: apart from them
    /// all, and from their zones if that can be; with them one of the sets, if that can be. Not one of `not`.
    pub fn one_more_of(
        &mut self,
        sets: &BTreeSet<Vec<NodeId>>,
        others: &[NodeId],
        zones: &[String],
        not: &[DriveId],
    ) -> Option<DriveId> {
        let neighbours: BTreeSet<NodeId> = sets
            .iter()
            .filter(|s| others.iter().filter(|o| s.contains(o)).count() + 1 >= s.len())
            .flatten()
            .copied()
            .collect();
        let best = self
            .candidates
            .iter_mut()
            .filter(|c| !others.contains(&c.node) && !not.contains(&c.drive))
            .max_by_key(|c| {
                let apart = c.zone.is_empty() || !zones.contains(&c.zone);
                (apart, neighbours.contains(&c.node), c.score(), std::cmp::Reverse(c.drive))
            })?;
        best.load += 1;
        Some(best.drive)
    }

    /// True if a drive on another node is to be had.
    pub fn has_room(&self, others: &[NodeId], usable: impl Fn(DriveId) -> bool) -> bool {
        self.candidates.iter().any(|c| !others.contains(&c.node) && usable(c.drive))
    }
}

/// As many of these drives as there shall be copies, on nodes apart, the preferred node's first.
fn same_place(
    takers: &BTreeMap<DriveId, NodeId>,
    copies: u8,
    drives: &[DriveId],
    prefer: Option<NodeId>,
) -> Option<Vec<DriveId>> {
    let mut homes: Vec<(NodeId, DriveId)> = Vec::new();
    for drive in drives {
        let node = *takers.get(drive)?;
        if !homes.iter().any(|(n, _)| *n == node) {
            homes.push((node, *drive));
        }
    }
    homes.sort_by_key(|(n, _)| Some(*n) != prefer);
    homes.truncate(usize::from(copies));
    (homes.len() == usize::from(copies)).then(|| homes.into_iter().map(|(_, d)| d).collect())
}

/// A fixed scramble: the order of a ring.
fn mix(ring: u64, n: u64) -> u64 {
    let mut x = n.wrapping_add(ring.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x2545_f491_4f6c_dd1d);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn candidate(node: u32, drive: u64, zone: &str, free: u64) -> Candidate {
        Candidate { drive: DriveId(drive), node: NodeId(node), zone: zone.into(), free, load: 0 }
    }
    fn cluster(nodes: u32) -> Vec<Candidate> {
        (1..=nodes).map(|n| candidate(n, u64::from(n), "", 100 * GIB)).collect()
    }
    fn node_of(all: &[Candidate], d: DriveId) -> NodeId {
        all.iter().find(|c| c.drive == d).unwrap().node
    }

    #[test]
    fn too_few_nodes_are_refused_with_their_number() {
        assert_eq!(Placer::new(cluster(2)).plan(3, 1, GIB, None), Err(TooFew { have: 2 }));
        assert_eq!(Placer::new(vec![]).plan(1, 1, GIB, None), Err(TooFew { have: 0 }));
        let one_node = vec![candidate(1, 1, "", GIB), candidate(1, 2, "", GIB), candidate(1, 3, "", GIB)];
        assert_eq!(Placer::new(one_node).plan(2, 1, GIB, None), Err(TooFew { have: 1 }));
    }

    #[test]
    fn chunks_are_spread_by_free_space() {
        let mut all = cluster(6);
        all[5].free = 200 * GIB;
        let plan = Placer::new(all.clone()).plan(3, 600, GIB, None).unwrap();
        let mut count: BTreeMap<NodeId, u32> = BTreeMap::new();
        for g in &plan.chunks {
            for d in &plan.groups[usize::from(*g)] {
                *count.entry(node_of(&all, *d)).or_default() += 1;
            }
        }
        assert_eq!(count.values().sum::<u32>(), 1800);
        let (roomy, other) = (count[&NodeId(6)], count[&NodeId(1)]);
        assert!(roomy > other * 5 / 4, "the drive with twice the space holds more: {count:?}");
        assert!(count.values().all(|c| *c > 150), "and everyone holds some: {count:?}");
    }

    #[test]
    fn neighbouring_chunks_lie_together_and_a_large_volume_is_spread() {
        let sets = |plan: &Plan| plan.chunks.chunk_by(|a, b| a == b).map(<[u16]>::len).collect::<Vec<_>>();
        let small = Placer::new(cluster(7)).plan(3, 8, GIB / 4, None).unwrap();
        assert_eq!((sets(&small), small.groups.len()), (vec![8], 1), "2 GiB on three drives");
        let large = Placer::new(cluster(7)).plan(3, 400, GIB / 4, None).unwrap();
        assert!(sets(&large).iter().all(|run| run % 16 == 0), "4 GiB at a time: {:?}", sets(&large));
        let on: BTreeSet<DriveId> = large.groups.iter().flatten().copied().collect();
        assert_eq!(on.len(), 7, "100 GiB lie everywhere");
        // Little room: no more than a quarter of it at once, and a chunk at least.
        let mut little = cluster(7);
        little[3].free = 2 * GIB;
        let plan = Placer::new(little.clone()).plan(3, 20, GIB / 4, None).unwrap();
        assert!(sets(&plan).iter().all(|run| run % 2 == 0), "{:?}", sets(&plan));
        little[3].free = 0;
        assert_eq!(Placer::new(little).plan(3, 3, GIB / 4, None).unwrap().chunks.len(), 3);
    }

    #[test]
    fn the_preferred_node_comes_first_in_every_chunk() {
        let all = cluster(9);
        let plan = Placer::new(all.clone()).plan(3, 100, GIB, Some(NodeId(4))).unwrap();
        assert!(plan.groups.iter().all(|g| node_of(&all, g[0]) == NodeId(4)));
        assert!(plan.groups.len() >= 2, "with more than one pair of others");
        let without = Placer::new(all).plan(3, 100, GIB, Some(NodeId(77))).unwrap();
        assert_eq!(without.chunks.len(), 100, "a node that takes none is no reason to refuse");
    }

    #[test]
    fn sets_of_nodes_stay_few_and_a_new_node_disturbs_few() {
        let before = Placer::new(cluster(100)).sets(3);
        assert!(before.len() <= 200, "{}", before.len());
        let after = Placer::new(cluster(101)).sets(3);
        assert!(after.intersection(&before).count() >= before.len() - 6);
    }

    #[test]
    fn a_replacement_keeps_to_the_sets() {
        let all = cluster(20);
        let sets = Placer::new(all.clone()).sets(3);
        for set in &sets {
            let mut placer = Placer::new(all.clone());
            let drive = placer.one_more_of(&sets, &set[..2], &[], &[]).unwrap();
            let mut now = vec![set[0], set[1], node_of(&all, drive)];
            now.sort_unstable();
            assert!(sets.contains(&now), "{now:?}");
        }
        let mut three = Placer::new(cluster(3));
        let sets = three.sets(3);
        let all = [NodeId(1), NodeId(2), NodeId(3)];
        assert_eq!(three.one_more_of(&sets, &all, &[], &[]), None);
        assert_eq!(three.one_more_of(&sets, &all[..2], &[], &[DriveId(3)]), None, "not that drive again");
        assert!(!three.has_room(&all, |_| true) && three.has_room(&all[..2], |_| true));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_chunk_has_its_copies_on_nodes_and_zones_apart(
            drives in prop::collection::vec((1..12u32, 0..4u8, 1..100u64), 1..40),
            copies in 1..=5u8, chunks in 1..40u32, prefer in prop::option::of(1..12u32),
        ) {
            let all: Vec<Candidate> = drives.iter().enumerate()
                .map(|(i, (n, _, free))| candidate(*n, i as u64 + 1, ["a", "b", "c", "d"][(*n % 4) as usize], free * GIB))
                .collect();
            let nodes: BTreeSet<NodeId> = all.iter().map(|c| c.node).collect();
            let zones: BTreeSet<&String> = all.iter().map(|c| &c.zone).collect();
            let mut placer = Placer::new(all.clone());
            match placer.plan(copies, chunks, GIB / 2, prefer.map(NodeId)) {
                Err(TooFew { have }) => {
                    prop_assert_eq!(have as usize, nodes.len());
                    prop_assert!(nodes.len() < usize::from(copies));
                }
                Ok(plan) => {
                    prop_assert_eq!(plan.chunks.len(), chunks as usize);
                    for g in &plan.groups {
                        let on: BTreeSet<NodeId> = g.iter().map(|d| node_of(&all, *d)).collect();
                        prop_assert_eq!(on.len(), usize::from(copies));
                        if zones.len() >= usize::from(copies) {
                            let in_zones: BTreeSet<u32> = on.iter().map(|n| n.0 % 4).collect();
                            prop_assert_eq!(in_zones.len(), usize::from(copies));
                        }
                    }
                    prop_assert!(plan.chunks.iter().all(|g| usize::from(*g) < plan.groups.len()));
                }
            }
        }
    }
}
