//! What a replica holds, told without reading it: manifests, digests, block maps. Computed from memory.
//!
//! A manifest lists what changes from one view to the next: the 16 blocks' states *as seen*, however they are stored.
//! Its versions are those of the extents that the view sees a block of, where it sees bytes at all: what nothing sees, and
//! how zeroes are stored, counts for nothing, so that replicas that have freed or joined more or less are still equal.

use crate::disk::page::Presence;
use crate::event::Source;
use crate::overlay::What;
use crate::store::{Disk, Store};
use crate::table::{NONE, Px, is_bit};
use proto::limits::BLOCKS_PER_EXTENT;
use proto::message::{BlockState, ManifestEntry, Reply, Request, Run, Scope, View};
use proto::{BlockRange, Generation, Generations, Refusal, Version};

/// Entries of one answer.
const MANIFEST_MAX: usize = 8192;

/// One step of a hash; not cryptographic, the same on every node and for ever.
#[must_use]
pub(crate) fn mix(hash: u64, word: u64) -> u64 {
    let wide = u128::from(hash ^ 0x9e37_79b9_7f4a_7c15) * u128::from(word ^ 0xd1b5_4a32_d192_ed03 | 1);
    let low = u64::try_from(wide & u128::from(u64::MAX)).expect("64 bits");
    let high = u64::try_from(wide >> 64).expect("64 bits");
    (low ^ high).rotate_left(29).wrapping_add(word)
}

/// The last generation that a view sees.
pub(crate) fn last_of(view: View) -> Generation {
    match view {
        View::Head => Generation(u32::MAX),
        View::At(g) => g,
    }
}

/// One block as a view sees it: state and sum, and the extent that has it.
type Shown = (Presence, u32, Px);
/// The 16 blocks of an extent.
pub(crate) type States = [Shown; 16];
const NOTHING: States = [(Presence::Absent, 0, NONE); 16];

impl Disk {
    /// States and sums in one physical extent.
    fn states_in(&self, px: Px) -> States {
        let e = self.table.get(px);
        let mut out: States =
            std::array::from_fn(|i| (e.states.get(u32::try_from(i).expect("16")), e.sums[i], px));
        for b in self.overlay.of(px) {
            out[usize::from(b.block)] = match b.what {
                What::Data | What::Bad => (Presence::Data, b.sum, px),
                What::Zero => (Presence::Zero, 0, px),
                What::Absent => (Presence::Absent, 0, px),
            };
        }
        out
    }
    /// Blocks that a physical extent has, zeroes too.
    pub(crate) fn present(&self, px: Px) -> u16 {
        let shown = self.states_in(px).into_iter().rev();
        shown.fold(0, |mask, s| mask << 1 | u16::from(s.0 != Presence::Absent))
    }
    /// Any of its blocks has bytes.
    pub(crate) fn has_data(&self, px: Px) -> bool {
        self.states_in(px).iter().any(|s| s.0 == Presence::Data)
    }
    /// The homes of an extent, oldest first.
    pub(crate) fn chain(&self, newest: Px) -> Vec<Px> {
        let mut chain = Vec::new();
        self.list_chain(newest, &mut chain);
        chain
    }
    pub(crate) fn list_chain(&self, newest: Px, chain: &mut Vec<Px>) {
        chain.clear();
        let mut px = newest;
        while px != NONE {
            chain.push(px);
            px = self.table.get(px).next;
        }
        chain.reverse();
    }
    /// A physical extent covers what is older.
    fn cover(&self, shown: &mut States, px: Px) {
        for (s, here) in shown.iter_mut().zip(self.states_in(px)) {
            if here.0 != Presence::Absent {
                *s = here;
            }
        }
    }
    /// States and sums of an extent's 16 blocks as a view sees them.
    pub(crate) fn states(&self, newest: Px, view: View) -> States {
        let mut shown = NOTHING;
        for px in self.chain(newest) {
            if self.table.get(px).generation <= last_of(view) {
                self.cover(&mut shown, px);
            }
        }
        shown
    }

    /// Hash and version of states; `None` if they are as good as nothing. Zero is nothing where the branch never had a
    /// parent.
    fn content(&self, states: &States, has_parent: bool) -> Option<(u64, Version)> {
        let (mut hash, mut any, mut data, mut version) = (0, false, false, Version::ZERO);
        for (presence, sum, px) in states {
            let word = match presence {
                Presence::Data => 1 << 32 | u64::from(*sum),
                Presence::Zero if has_parent => 2 << 32,
                Presence::Zero | Presence::Absent => 0,
            };
            // A bit knows its own but roughly. Whatever lies above it is younger; and what is zero as a whole is what it is
            // without a version.
            if *presence != Presence::Absent && !is_bit(*px) {
                version = version.max(self.version(*px));
            }
            data |= *presence == Presence::Data;
            any |= word != 0;
            hash = mix(hash, word);
        }
        any.then_some((hash, if data { version } else { Version::ZERO }))
    }

    /// What an extent (its homes, oldest first) is in each of these views (ascending) where it differs from the view
    /// before: the view, hash and version. An extent of which nothing is left differs, too.
    fn changes(
        &self,
        chain: &[Px],
        after: Generation,
        views: &[View],
        has_parent: bool,
        mut each: impl FnMut(View, u64, Version),
    ) {
        let mut rest = chain;
        let mut shown = NOTHING;
        let mut advance = |shown: &mut States, upto: Generation| {
            let taken = rest.iter().take_while(|px| self.table.get(**px).generation <= upto).count();
            rest[..taken].iter().for_each(|px| self.cover(shown, *px));
            rest = &rest[taken..];
            taken > 0
        };
        advance(&mut shown, after);
        let mut before = self.content(&shown, has_parent);
        for view in views {
            if !advance(&mut shown, last_of(*view)) {
                continue;
            }
            let now = self.content(&shown, has_parent);
            if now != before {
                let (hash, version) = now.unwrap_or((0, Version::ZERO));
                each(*view, hash, version);
                before = now;
            }
        }
    }
}

impl Store {
    pub(crate) fn list_request(
        &mut self,
        source: Source,
        token: u64,
        scope: &Scope,
        request: &Request,
    ) -> Result<(), Refusal> {
        let reply = match request {
            Request::Manifest { view, after, from, source_process } => {
                let replica = self.check_reader(scope, *view, source_process.is_some())?;
                self.check_after(replica, *view, *after)?;
                self.manifest(replica, *view, *after, *from)
            }
            Request::Digest { views, head, source_process } => {
                let replica = self.check_session(scope, source_process.is_some())?;
                self.check_views(replica, views)?;
                self.digest(replica, views, *head)
            }
            Request::Map { view, range } => {
                let replica = self.check_reader(scope, *view, false)?;
                self.check_range(replica, *range)?;
                self.map(replica, *range, |states| states.0, *view)
            }
            Request::Changes { view, after, range } => {
                let replica = self.check_reader(scope, *view, false)?;
                self.check_after(replica, *view, *after)?;
                self.check_range(replica, *range)?;
                let table = &self.disk().table;
                let state = |s: Shown| match s.0 {
                    Presence::Absent => Presence::Absent,
                    _ if table.get(s.2).generation <= *after => Presence::Absent,
                    there => there,
                };
                self.map(replica, *range, state, *view)
            }
            Request::Absent { views, head, blocks } => {
                let replica = self.check_session(scope, false)?;
                self.check_views(replica, views)?;
                Reply::Absence { any: self.any_absent(replica, views, *head, *blocks) }
            }
            Request::Usage => {
                let replica = self.check_replica(scope)?;
                Reply::Usage(self.disk().usage_of(replica))
            }
            _ => return Err(Refusal::Invalid),
        };
        self.reply(source, token, scope.branch, reply);
        Ok(())
    }

    /// Views that may be listed together: none is withdrawn.
    fn check_views(&self, replica: u32, views: &Generations) -> Result<(), Refusal> {
        let b = self.disk().records.branch_of(replica);
        let open = b.record.list.open;
        let all_kept = views.below(open).iter().all(|g| !b.is_withdrawn(g));
        if all_kept { Ok(()) } else { Err(Refusal::UnknownView) }
    }
    /// The view that another one is compared with: older, and not withdrawn, for what is gone of it would look equal.
    fn check_after(&self, replica: u32, view: View, after: Generation) -> Result<(), Refusal> {
        if after == Generation(0) {
            return Ok(());
        }
        if after >= last_of(view) {
            return Err(Refusal::Invalid);
        }
        let b = self.disk().records.branch_of(replica);
        if b.is_withdrawn(after) { Err(Refusal::UnknownView) } else { Ok(()) }
    }
    fn check_range(&self, replica: u32, range: BlockRange) -> Result<(), Refusal> {
        let end = range.first.checked_add(range.count).ok_or(Refusal::Invalid)?;
        let fits = range.count > 0 && end <= self.chunk_blocks(replica);
        if fits { Ok(()) } else { Err(Refusal::Invalid) }
    }

    fn manifest(&self, replica: u32, view: View, after: Generation, from: u32) -> Reply {
        let disk = self.disk();
        let has_parent = disk.records.branch_of(replica).record.parent.is_some();
        let (mut entries, mut chain) = (Vec::new(), Vec::new());
        for (extent, px) in disk.records.replica(replica).index.range(from, u32::MAX) {
            if entries.len() == MANIFEST_MAX {
                return Reply::Manifest { entries, next: Some(extent) };
            }
            disk.list_chain(px, &mut chain);
            disk.changes(&chain, after, &[view], has_parent, |_, hash, version| {
                entries.push(ManifestEntry { extent, version, hash });
            });
        }
        Reply::Manifest { entries, next: None }
    }

    /// Over the manifests of these views and of the head, each against the one before it: equal hashes and versions give
    /// equal digests.
    fn digest(&self, replica: u32, views: &Generations, head: bool) -> Reply {
        let disk = self.disk();
        let has_parent = disk.records.branch_of(replica).record.parent.is_some();
        let views: Vec<View> = views.iter().map(View::At).chain(head.then_some(View::Head)).collect();
        let (mut hash, mut extents, mut chain) = (0, 0, Vec::new());
        for (extent, px) in disk.records.replica(replica).index.range(0, u32::MAX) {
            disk.list_chain(px, &mut chain);
            disk.changes(&chain, Generation(0), &views, has_parent, |view, h, version| {
                hash = mix(mix(hash, u64::from(extent)), u64::from(last_of(view).0));
                hash = mix(hash, h);
                hash = mix(mix(hash, u64::from(version.epoch.0)), version.seq);
                extents += 1;
            });
        }
        Reply::Digest { hash, extents }
    }

    /// Runs of equal state; versions and generations are left out (0), so that runs are long.
    fn map(&self, replica: u32, range: BlockRange, state: impl Fn(Shown) -> Presence, view: View) -> Reply {
        let disk = self.disk();
        let mut runs: Vec<Run> = Vec::new();
        let mut put = |state: BlockState, count: u32| match runs.last_mut() {
            Some(r) if r.state == state => r.count += count,
            _ => runs.push(Run { count, state, version: Version::ZERO, generation: Generation(0) }),
        };
        let mut block = range.first;
        while block < range.end() {
            let extent = block / BLOCKS_PER_EXTENT;
            let end = range.end().min((extent + 1) * BLOCKS_PER_EXTENT);
            let newest = disk.records.replica(replica).index.get(extent);
            if newest == NONE {
                put(BlockState::Absent, end - block);
            } else {
                let states = disk.states(newest, view);
                for b in block..end {
                    put(
                        match state(states[(b % BLOCKS_PER_EXTENT) as usize]) {
                            Presence::Data => BlockState::Data,
                            Presence::Zero => BlockState::Zero,
                            Presence::Absent => BlockState::Absent,
                        },
                        1,
                    );
                }
            }
            block = end;
        }
        Reply::Map { runs }
    }

    /// Is any of the first `blocks` absent in one of the views? What lies beyond the volume's end is not asked about.
    fn any_absent(&self, replica: u32, views: &Generations, head: bool, blocks: u32) -> bool {
        let disk = self.disk();
        let r = disk.records.replica(replica);
        let geometry = disk.records.branch_of(replica).record.geometry;
        let begin = geometry.offset(r.record.chunk, 0);
        let bytes = geometry.size.saturating_sub(begin).min(geometry.chunk_bytes());
        let whole = u32::try_from(bytes.div_ceil(proto::limits::BLOCK as u64)).expect("at most a chunk");
        let blocks = blocks.min(whole);
        // The oldest view sees least: what is there is there in all later ones.
        let Some(oldest) = views.iter().next().map(View::At).or(head.then_some(View::Head)) else {
            return false;
        };
        (0..blocks.div_ceil(BLOCKS_PER_EXTENT)).any(|extent| {
            let states = disk.states(r.index.get(extent), oldest);
            let count = (blocks - extent * BLOCKS_PER_EXTENT).min(BLOCKS_PER_EXTENT) as usize;
            states[..count].iter().any(|s| s.0 == Presence::Absent)
        })
    }
}
