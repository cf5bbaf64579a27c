//! The cores' true state, as the properties read it.

use crate::effects::index_of;
use crate::net::HostIndex;
use crate::world::World;
use proto::message::View;
use proto::record::Sum;
use proto::{BlockRange, BranchId, ChunkIndex, DriveId, Epoch, Payload, Place, Version};
use store::view::{BlockView, BytesAt};

/// What a replica holds of a block. Where the branch never had a parent absent is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Block {
    Data(Sum),
    Zero,
    /// What the parent's view holds.
    Absent,
}

impl Block {
    /// A block of zeroes may be stored as such.
    #[must_use]
    pub fn same_as(self, o: Block) -> bool {
        self == o
    }
}

impl World {
    pub(super) fn store(&self, host: HostIndex, drive: DriveId) -> Option<&store::Store> {
        self.hosts[host].node.as_ref()?.stores().find(|s| s.0 == drive).map(|s| s.1)
    }
    #[must_use]
    pub fn session(&self, host: HostIndex, branch: BranchId) -> Option<&volume::Session> {
        self.hosts[host].node.as_ref()?.session(branch)
    }

    /// The host whose session of this epoch serves.
    #[must_use]
    pub fn serving_host(&self, branch: BranchId, epoch: Epoch) -> Option<HostIndex> {
        (0..self.hosts.len())
            .find(|h| self.session(*h, branch).is_some_and(|s| s.epoch() == epoch && s.is_serving()))
    }
    /// A session of an older epoch that believes that it serves: how many chunks it has.
    #[must_use]
    pub fn older_session(&self, host: HostIndex, branch: BranchId, epoch: Epoch) -> Option<u32> {
        let s = self.session(host, branch).filter(|s| s.epoch() < epoch && s.is_serving())?;
        u32::try_from(s.chunks()).ok()
    }
    /// True if the host's session would be allowed to answer a read of this chunk now.
    #[must_use]
    pub fn leased(&self, host: HostIndex, branch: BranchId, chunk: ChunkIndex) -> bool {
        let Some(node) = self.hosts[host].node.as_ref() else { return false };
        let now = self.hosts[host].clock.local(self.now);
        let required = self.session(host, branch).map(|s| s.required(chunk.0)).unwrap_or_default();
        !required.is_empty() && required.iter().all(|p| node.lease_until(p.drive, branch) > now)
    }
    #[must_use]
    pub fn session_epoch(&self, host: HostIndex, branch: BranchId) -> Option<Epoch> {
        Some(self.session(host, branch)?.epoch())
    }
    #[must_use]
    pub fn required(&self, host: HostIndex, branch: BranchId, chunk: ChunkIndex) -> Vec<DriveId> {
        let places = self.session(host, branch).map(|s| s.required(chunk.0)).unwrap_or_default();
        places.into_iter().map(|p| p.drive).collect()
    }
    /// Blocks of a chunk with a write in flight.
    #[must_use]
    pub fn in_flight(&self, host: HostIndex, branch: BranchId, chunk: ChunkIndex) -> Vec<BlockRange> {
        self.session(host, branch).map(|s| s.in_flight(chunk.0).map(|f| f.0).collect()).unwrap_or_default()
    }

    /// What the replica holds in its head now; none: nobody can tell (its process is down, or opens).
    #[must_use]
    pub fn held(&self, place: Place, branch: BranchId, chunk: ChunkIndex, block: u32) -> Option<Block> {
        self.held_in(place, branch, chunk, block, View::Head)
    }
    /// ... and in another view.
    #[must_use]
    pub fn held_in(
        &self,
        place: Place,
        branch: BranchId,
        chunk: ChunkIndex,
        block: u32,
        view: View,
    ) -> Option<Block> {
        let seen = self.store(index_of(place.node), place.drive)?.block(branch, chunk, block, view)?;
        Some(self.block_of(branch, seen.0))
    }
    pub(super) fn block_of(&self, branch: BranchId, view: BlockView) -> Block {
        match view {
            BlockView::Data(sum) => Block::Data(sum),
            BlockView::Absent if self.has_parent(branch) => Block::Absent,
            BlockView::Zero | BlockView::Absent => Block::Zero,
        }
    }
    /// The bytes of a block that is written in a view.
    #[must_use]
    pub fn bytes_in(
        &self,
        place: Place,
        branch: BranchId,
        chunk: ChunkIndex,
        block: u32,
        view: View,
    ) -> Option<Payload> {
        let host = index_of(place.node);
        let store = self.store(host, place.drive)?;
        Some(match store.bytes_at(branch, chunk, block, view)? {
            BytesAt::Memory(payload) => payload,
            BytesAt::Drive(offset) => self.hosts[host].disks[self.disk_of(place.drive)].medium.get(offset, 1),
        })
    }
    #[must_use]
    pub fn in_doubt(&self, place: Place, branch: BranchId) -> bool {
        self.store(index_of(place.node), place.drive)
            .is_none_or(|s| s.branch(branch).is_none_or(|b| b.in_doubt))
    }
    #[must_use]
    pub fn stored_epoch(&self, place: Place, branch: BranchId) -> Option<Epoch> {
        Some(self.store(index_of(place.node), place.drive)?.branch(branch)?.epoch)
    }
    /// What a drive that is open is just writing to its journal.
    #[must_use]
    pub fn entering(
        &self,
        host: HostIndex,
        drive: DriveId,
    ) -> Option<Vec<(BranchId, ChunkIndex, BlockRange)>> {
        Some(self.store(host, drive).filter(|s| s.is_open())?.entering())
    }
    /// What a drive holds and must hold after its process ends; and whether after a power loss too.
    #[must_use]
    pub fn at_rest(
        &self,
        host: HostIndex,
        drive: DriveId,
        branch: BranchId,
        chunk: ChunkIndex,
        block: u32,
    ) -> Option<(Block, bool)> {
        let store = self.store(host, drive)?;
        let (view, _) = store.block(branch, chunk, block, View::Head)?;
        Some((self.block_of(branch, view), store.is_flushed(branch, chunk, block)))
    }
    #[must_use]
    pub fn found(
        &self,
        host: HostIndex,
        drive: DriveId,
        branch: BranchId,
        chunk: ChunkIndex,
        block: u32,
    ) -> Option<(Block, Version)> {
        let (view, version) = self.store(host, drive)?.block(branch, chunk, block, View::Head)?;
        Some((self.block_of(branch, view), version))
    }

    /// What a drive says of a block that is at home there, and what its medium holds in that place.
    #[must_use]
    pub fn at_home(
        &self,
        host: HostIndex,
        drive: DriveId,
        branch: BranchId,
        chunk: ChunkIndex,
        block: u32,
    ) -> Option<(Block, Block)> {
        let store = self.store(host, drive)?;
        let offset = store.home_offset(branch, chunk, block)?;
        let (view, _) = store.block(branch, chunk, block, View::Head)?;
        let medium = &self.hosts[host].disks[self.disk_of(drive)].medium;
        Some((self.block_of(branch, view), Block::Data(Sum::of(medium.get(offset, 1).bytes()))))
    }
    fn disk_of(&self, drive: DriveId) -> usize {
        usize::try_from(drive.0 % 100).expect("few drives")
    }
}
