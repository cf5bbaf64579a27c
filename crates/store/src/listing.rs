//! What a replica holds, told without reading it: manifests, digests, block maps. Computed from memory.

use crate::disk::page::Presence;
use crate::event::Source;
use crate::overlay::What;
use crate::store::{Disk, Store};
use crate::table::{NONE, Px};
use proto::limits::BLOCKS_PER_EXTENT;
use proto::message::{BlockState, ManifestEntry, Reply, Request, Run, Scope, View};
use proto::{BlockRange, Generation, Refusal, Version};

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

impl Disk {
    /// States and sums of an extent's 16 blocks as a view sees them; `None` if nothing of it is there.
    fn states(&self, newest: Px, view: View) -> Option<([(Presence, u32); 16], Version)> {
        let mut out = [(Presence::Absent, 0); 16];
        let mut version = None;
        let mut px = newest;
        while px != NONE {
            let e = self.table.get(px);
            let visible = match view {
                View::Head => true,
                View::At(g) => e.generation <= g,
            };
            if visible {
                let mut here: [(Presence, u32); 16] =
                    std::array::from_fn(|i| (e.states.get(u32::try_from(i).expect("16")), e.sums[i]));
                for b in self.overlay.of(px) {
                    here[usize::from(b.block)] = match b.what {
                        What::Data | What::Bad => (Presence::Data, b.sum),
                        What::Zero => (Presence::Zero, 0),
                        What::Absent => (Presence::Absent, 0),
                    };
                }
                for (o, h) in out.iter_mut().zip(here) {
                    if o.0 == Presence::Absent {
                        *o = h;
                    }
                }
                version.get_or_insert(self.version(px));
            }
            px = e.next;
        }
        version.map(|v| (out, v))
    }

    /// The hash of an extent's states; `None` if it is as good as nothing. Zero is nothing where the branch never
    /// had a parent.
    pub(crate) fn extent_hash(&self, newest: Px, view: View, has_parent: bool) -> Option<(u64, Version)> {
        let (states, version) = self.states(newest, view)?;
        let mut hash = 0;
        let mut any = false;
        for (presence, sum) in states {
            let word = match presence {
                Presence::Data => 1 << 32 | u64::from(sum),
                Presence::Zero if has_parent => 2 << 32,
                Presence::Zero | Presence::Absent => 0,
            };
            any |= word != 0;
            hash = mix(hash, word);
        }
        any.then_some((hash, version))
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
                let head_alone = *after == proto::Generation(0);
                if !head_alone {
                    return Err(Refusal::UnknownView);
                }
                let replica = self.check_reader(scope, *view, source_process.is_some())?;
                self.manifest(replica, *view, *from)
            }
            Request::Digest { views, head, source_process } => {
                if !views.is_empty() || !head {
                    return Err(Refusal::UnknownView);
                }
                let replica = self.check_reader(scope, View::Head, source_process.is_some())?;
                self.digest(replica)
            }
            Request::Map { view, range } => {
                let replica = self.check_reader(scope, *view, false)?;
                let end = range.first.checked_add(range.count).ok_or(Refusal::Invalid)?;
                if range.count == 0 || end > self.chunk_blocks(replica) {
                    return Err(Refusal::Invalid);
                }
                self.map(replica, *view, *range)
            }
            _ => return Err(Refusal::Invalid),
        };
        self.reply(source, token, scope.branch, reply);
        Ok(())
    }

    fn manifest(&self, replica: u32, view: View, from: u32) -> Reply {
        let disk = self.disk();
        let has_parent = disk.records.branch_of(replica).record.parent.is_some();
        let mut entries = Vec::new();
        for (extent, px) in disk.records.replica(replica).index.range(from, u32::MAX) {
            let Some((hash, version)) = disk.extent_hash(px, view, has_parent) else { continue };
            if entries.len() == MANIFEST_MAX {
                return Reply::Manifest { entries, next: Some(extent) };
            }
            entries.push(ManifestEntry { extent, version, hash });
        }
        Reply::Manifest { entries, next: None }
    }

    /// Over the head's manifest: equal hashes and versions give equal digests.
    fn digest(&self, replica: u32) -> Reply {
        let disk = self.disk();
        let has_parent = disk.records.branch_of(replica).record.parent.is_some();
        let (mut hash, mut extents) = (0, 0);
        for (extent, px) in disk.records.replica(replica).index.range(0, u32::MAX) {
            if let Some((h, version)) = disk.extent_hash(px, View::Head, has_parent) {
                hash = mix(mix(hash, u64::from(extent)), h);
                hash = mix(mix(hash, u64::from(version.epoch.0)), version.seq);
                extents += 1;
            }
        }
        Reply::Digest { hash, extents }
    }

    /// Runs of equal state; versions and generations are left out (0), so that runs are long.
    fn map(&self, replica: u32, view: View, range: BlockRange) -> Reply {
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
            match disk.states(newest, view) {
                None => put(BlockState::Absent, end - block),
                Some((states, _)) => {
                    for b in block..end {
                        put(
                            match states[(b % BLOCKS_PER_EXTENT) as usize].0 {
                                Presence::Data => BlockState::Data,
                                Presence::Zero => BlockState::Zero,
                                Presence::Absent => BlockState::Absent,
                            },
                            1,
                        );
                    }
                }
            }
            block = end;
        }
        Reply::Map { runs }
    }
}
