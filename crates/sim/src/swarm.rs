//! What a seed is about: each draws its own mix, so that over many seeds every combination comes.

use crate::counts::Fault;
pub use crate::guest::Taste;
use crate::layout::{CHUNK_BLOCKS, Layout};
use crate::rng::Rng;
use proto::Span;
use proto::limits::{BLOCK, VOLUME_SIZE_MIN};

/// Guest operations and faults of a seed, at least.
pub const OPERATIONS: u64 = 2_000;
pub const FAULTS: u64 = 20;

#[derive(Clone, Debug)]
pub struct Swarm {
    pub seed: u64,
    pub nodes: usize,
    pub volumes: Vec<(Layout, Taste)>,
    /// Chunks of each volume; or it ends with its region.
    chunks: u64,
    ends_early: bool,
    pub operations: u64,
    /// Time in which the operations and faults are spread.
    pub span: Span,
    /// Kinds of faults and how much this seed likes each.
    pub faults: Vec<(Fault, u64)>,
    pub fault_count: u64,
    /// Of a thousand: a session's first service is followed by another fault at once.
    pub aftershock: u64,
    /// Parts in a million by which each node's clock is fast (or slow).
    pub drift: Vec<i64>,
    pub net_base: Span,
    pub net_jitter: Span,
    pub disk_write: Span,
    pub disk_flush: Span,
    /// Drives without a volatile cache.
    pub no_cache: Vec<bool>,
    /// Turns of a node's loop are this long at most.
    pub turn: Span,
    pub meta_delay: Span,
    /// The drives hold little: sessions run out of credits.
    pub tight: bool,
    /// Bytes of each drive, and of its journal.
    pub drive: u64,
    pub journal: u64,
    /// Placed anew after so long; none: never within a seed.
    pub down_out: Option<Span>,
    /// A process that starts is handed its drives up to so much later: peers and sessions are there before them.
    pub late_drives: Span,
    /// How often the operator turns to snapshots; 0: never. Of a thousand: a group. And how many are kept at most.
    pub snapshots: u64,
    pub groups: u64,
    pub snapshots_kept: usize,
    /// Of a thousand of the operator's turns: clones, rollbacks, deletions of volumes.
    pub clones: u64,
    /// Deleted volumes rest so long.
    pub trash: Span,
}

/// Faults that a seed draws; the others of the table happen along with these.
const DRAWN: &[Fault] = &[
    Fault::ProcessCrash,
    Fault::CrashBetweenEffects,
    Fault::PowerLoss,
    Fault::PowerLossAll,
    Fault::Stop,
    Fault::StopBetweenEffects,
    Fault::LinkBreak,
    Fault::LinkHalfBreak,
    Fault::DataOneWay,
    Fault::DataTwoWay,
    Fault::ControlOneWay,
    Fault::ControlTwoWay,
    Fault::Leaderless,
    Fault::MetadSlow,
    Fault::AnswerLost,
    Fault::CommandDoubled,
    Fault::CommandLate,
    Fault::DiskSlow,
    Fault::DiskError,
    Fault::NetSlow,
    Fault::ForcedAttach,
    Fault::CleanMove,
    Fault::Takeover,
];

impl Swarm {
    #[must_use]
    pub fn draw(seed: u64, nodes: Option<usize>, many_clones: bool) -> Swarm {
        let mut rng = Rng::new(seed);
        let nodes = nodes.unwrap_or_else(|| rng.pick(&[3, 3, 3, 4, 4, 5, 7]));
        let count = rng.pick(&[2, 2, 2, 3]);
        let chunks = rng.within(2, 3);
        let mut volumes: Vec<_> = (1..=count).map(|n| (layout(n, &mut rng), taste(&mut rng))).collect();
        // A draw of its own: it moves none of the others.
        let no_hole = Rng::new(!seed).pick(&[0, 0, 0, 500]);
        volumes.iter_mut().for_each(|(_, taste)| taste.no_hole = no_hole);
        // ... nor do these.
        let mut own = Rng::new(seed ^ 0x5a17);
        let snapshots = own.pick(&[0, 4, 12, 12, 40]);
        let (groups, snapshots_kept) = (own.pick(&[0, 200, 500]), own.pick(&[2, 4, 8]));
        let clones = own.pick(&[0, 0, 200, 400, 700]);
        let tight = rng.permille(50);
        // Drives that hold little have no room for more volumes.
        let clones = match (tight, snapshots) {
            (true, _) => 0,
            _ if many_clones => 700,
            (_, 0) => 0,
            _ => clones,
        };
        let snapshots = if clones > 0 { snapshots.max(12) } else { snapshots };
        let map = own.pick(&[0, 2, 6]);
        if clones > 0 {
            volumes.iter_mut().for_each(|(_, taste)| taste.map = map);
        }
        let trash = Span::secs(own.pick(&[0, 4, 15, 86_400]));
        let ends_early = clones > 0 && own.permille(500);
        let drifting = rng.permille(700);
        let drift = |r: &mut Rng| i64::try_from(r.below(4001)).expect("small") - 2000;
        Swarm {
            seed,
            nodes,
            volumes,
            chunks,
            ends_early,
            operations: OPERATIONS + rng.below(400),
            span: Span::secs(rng.within(25, 80)),
            faults: likes(&mut rng),
            fault_count: FAULTS + rng.below(15),
            aftershock: rng.pick(&[0, 0, 0, 150, 500]),
            drift: (0..nodes).map(|_| if drifting { drift(&mut rng) } else { 0 }).collect(),
            net_base: Span::micros(rng.pick(&[20, 50, 100, 500])),
            net_jitter: Span::micros(rng.pick(&[10, 50, 300, 3000])),
            disk_write: Span::micros(rng.pick(&[20, 60, 200, 2000])),
            disk_flush: Span::micros(rng.pick(&[100, 500, 3000, 30_000])),
            no_cache: (0..nodes).map(|_| rng.permille(150)).collect(),
            turn: Span::micros(rng.pick(&[1, 10, 50])),
            meta_delay: Span::micros(rng.pick(&[300, 1000, 5000, 30_000])),
            drive: if tight { 32 << 20 } else { 128 << 20 },
            tight,
            journal: rng.pick(&[1 << 19, 1 << 20, 2 << 20, 8 << 20]),
            down_out: rng.permille(300).then(|| Span::secs(rng.within(5, 12))),
            late_drives: Span::millis(rng.pick(&[0, 0, 20, 400, 6000])),
            snapshots,
            groups,
            snapshots_kept,
            clones,
            trash,
        }
    }

    /// Somebody makes snapshots, or clones.
    #[must_use]
    pub fn has_views(&self) -> bool {
        self.snapshots > 0
    }
    /// Bytes of a volume that is made for this region.
    #[must_use]
    pub fn bytes_of(&self, layout: &Layout) -> u64 {
        let blocks = if self.ends_early { layout.first + layout.blocks } else { self.chunks * CHUNK_BLOCKS };
        (blocks * BLOCK as u64).max(VOLUME_SIZE_MIN)
    }
}

fn layout(family: u32, rng: &mut Rng) -> Layout {
    // Across the border of the first two chunks, or within the first.
    let blocks = rng.pick(&[64, 96, 256]);
    let first = if rng.permille(600) { CHUNK_BLOCKS - blocks / 2 / 16 * 16 } else { 16 * rng.below(64) };
    Layout { family, first, blocks, fine: rng.pick(&[2, 4, 16]) }
}

/// What a guest likes.
pub fn taste(rng: &mut Rng) -> Taste {
    let depth = usize::try_from(rng.pick(&[1, 4, 16, 32])).expect("small");
    Taste {
        read: rng.within(10, 50),
        write: rng.within(20, 60),
        discard: rng.pick(&[0, 4, 10, 20]),
        zeroes: rng.pick(&[0, 2, 8]),
        no_hole: 0,
        flush: rng.pick(&[1, 4, 12]),
        map: 0,
        fua: rng.pick(&[0, 30, 200]),
        fine: rng.pick(&[50, 150, 400]),
        depth,
        writers: rng.pick(&[1, depth.div_ceil(4), depth, depth]),
        longest: rng.pick(&[8, 16, 64]),
        extents: rng.pick(&[0, 100, 400]),
    }
}

/// A third of the kinds is left out, some are favourites.
fn likes(rng: &mut Rng) -> Vec<(Fault, u64)> {
    let mut v: Vec<(Fault, u64)> = vec![];
    for f in DRAWN {
        let weight = match rng.below(6) {
            0 | 1 => 0,
            2 | 3 => 4,
            4 => 10,
            _ => 24,
        };
        let scale = match f {
            Fault::PowerLossAll => 1,
            Fault::ProcessCrash | Fault::PowerLoss | Fault::CrashBetweenEffects => 3,
            _ => 2,
        };
        if weight > 0 {
            v.push((*f, weight * scale));
        }
    }
    if v.len() < 3 { likes(rng) } else { v }
}
