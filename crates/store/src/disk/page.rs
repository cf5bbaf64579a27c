//! Pages of the extent table and of the records: the effect of the journal up to a position that they name.
//! Each page has two slots, which are written in turn.

use super::crc_without;
use proto::limits::{BLOCK, BLOCKS_PER_EXTENT};
use proto::{
    BranchId, ChunkIndex, ConfigNumber, Configuration, DriveId, Epoch, Generation, Generations, Geometry,
    Incarnation, ListIndex, Marks, Member, MemberState, NodeId, PageBuf, Place, Version,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const HEADER: usize = 128;
/// Bytes of one table entry.
pub const TABLE_ENTRY: usize = 128;
pub const TABLE_PER_PAGE: usize = (BLOCK - HEADER) / TABLE_ENTRY;
/// Bytes of one record slot.
pub const RECORD_SLOT: usize = 256;
pub const RECORDS_PER_PAGE: usize = (BLOCK - HEADER) / RECORD_SLOT;
const CRC_AT: usize = 8;

/// The table page that an extent's entry is in.
#[must_use]
pub const fn table_page_of(extent: u32) -> u32 {
    extent / TABLE_PER_PAGE_U32
}
/// The record page that a slot is in.
#[must_use]
pub const fn record_page_of(slot: u32) -> u32 {
    slot / RECORDS_PER_PAGE_U32
}
pub(crate) const TABLE_PER_PAGE_U32: u32 = 31;
pub(crate) const RECORDS_PER_PAGE_U32: u32 = 15;
const _: () = assert!(TABLE_PER_PAGE_U32 as usize == TABLE_PER_PAGE);
const _: () = assert!(RECORDS_PER_PAGE_U32 as usize == RECORDS_PER_PAGE);

/// Which zone a page belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zone {
    Table,
    Records,
}
impl Zone {
    const fn magic(self) -> [u8; 8] {
        match self {
            Zone::Table => *b"BLOCKDTB",
            Zone::Records => *b"BLOCKDRC",
        }
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    crc: U32,
    reserved: U32,
    index: U64,
    sequence: U64,
    upto: U64,
    drive: U64,
    rest: [u8; HEADER - 48],
}
const _: () = assert!(size_of::<RawHeader>() == HEADER);

/// A page's head, checked. The body follows in the same page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageHead {
    /// Rises with each write of this page; 0 if it was never written.
    pub sequence: u64,
    /// The page includes the effect of all batches up to this one.
    pub upto: u64,
}

/// Heads a page whose body is filled in.
pub fn seal_page(page: &mut PageBuf, zone: Zone, drive: DriveId, index: u64, head: PageHead) {
    let raw = RawHeader {
        magic: zone.magic(),
        crc: U32::ZERO,
        reserved: U32::ZERO,
        index: index.into(),
        sequence: head.sequence.into(),
        upto: head.upto.into(),
        drive: drive.0.into(),
        rest: [0; HEADER - 48],
    };
    let bytes = page.bytes_mut();
    bytes[..HEADER].copy_from_slice(raw.as_bytes());
    let crc = crc_without(bytes, CRC_AT);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
}

/// The head of one slot's page; `None` if it is damaged. A page of zeroes was never written: it is empty.
#[must_use]
pub fn open_page(bytes: &[u8], zone: Zone, drive: DriveId, index: u64) -> Option<PageHead> {
    assert_eq!(bytes.len(), BLOCK, "one page");
    let (raw, _) = RawHeader::read_from_prefix(bytes).ok()?;
    if raw.magic == [0; 8] {
        return bytes.iter().all(|b| *b == 0).then_some(PageHead::default());
    }
    let ours = raw.magic == zone.magic() && raw.index.get() == index && raw.drive.get() == drive.0;
    let whole = ours && crc_without(bytes, CRC_AT) == raw.crc.get();
    whole.then(|| PageHead { sequence: raw.sequence.get(), upto: raw.upto.get() })
}

/// The newer of a page's two slots (`bytes`: both, one after the other): slot, head, body. `None`: both damaged.
#[must_use]
pub fn newest_slot(bytes: &[u8], zone: Zone, drive: DriveId, index: u64) -> Option<(u8, PageHead, &[u8])> {
    let (a, b) = bytes.split_at(BLOCK);
    let heads = [open_page(a, zone, drive, index), open_page(b, zone, drive, index)];
    let slot = match heads {
        [None, None] => return None,
        [Some(a), Some(b)] => u8::from(b.sequence > a.sequence),
        [a, _] => u8::from(a.is_none()),
    };
    let page = if slot == 0 { a } else { b };
    Some((slot, heads[usize::from(slot)]?, &page[HEADER..]))
}

/// State of one block of an extent in its generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Presence {
    #[default]
    Absent,
    Data,
    Zero,
}

/// Two bits for each of 16 blocks.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct States(pub u32);
impl States {
    pub const ALL_DATA: States = States(0x5555_5555);
    pub const ALL_ZERO: States = States(0xaaaa_aaaa);
    #[must_use]
    pub fn get(self, block: u32) -> Presence {
        match self.0 >> (2 * block) & 3 {
            0 => Presence::Absent,
            1 => Presence::Data,
            _ => Presence::Zero,
        }
    }
    pub fn set(&mut self, block: u32, p: Presence) {
        let bits = match p {
            Presence::Absent => 0,
            Presence::Data => 1,
            Presence::Zero => 2,
        };
        self.0 = self.0 & !(3 << (2 * block)) | bits << (2 * block);
    }
    /// Any block with bytes?
    #[must_use]
    pub fn any_data(self) -> bool {
        self.0 & 0x5555_5555 != 0
    }
    #[must_use]
    pub fn any_zero(self) -> bool {
        self.0 & 0xaaaa_aaaa != 0
    }
    #[must_use]
    pub fn is_valid(self) -> bool {
        self.0 & (self.0 >> 1) & 0x5555_5555 == 0
    }
}
impl std::fmt::Debug for States {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (0..16).try_for_each(|b| f.write_str(["-", "D", "0"][self.get(b) as usize]))
    }
}

/// Entry of a physical extent in the table. `generation` 0: free.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
pub struct RawExtent {
    pub branch: U64,
    pub incarnation: U64,
    pub chunk: U32,
    /// Index of the extent within the chunk.
    pub extent: U32,
    pub generation: U32,
    pub epoch: U32,
    pub seq: U64,
    pub states: U32,
    pub key: U32,
    pub reserved: [u8; 16],
    pub sums: [U32; BLOCKS_PER_EXTENT as usize],
}
const _: () = assert!(size_of::<RawExtent>() == TABLE_ENTRY);

impl RawExtent {
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.generation.get() == 0
    }
}

/// Puts an entry into a table page's buffer.
pub fn put_extent(page: &mut PageBuf, at: usize, e: &RawExtent) {
    let from = HEADER + at * TABLE_ENTRY;
    page.bytes_mut()[from..from + TABLE_ENTRY].copy_from_slice(e.as_bytes());
}
/// An entry of a page's body.
#[must_use]
pub fn extent_at(body: &[u8], at: usize) -> RawExtent {
    RawExtent::read_from_bytes(&body[at * TABLE_ENTRY..(at + 1) * TABLE_ENTRY]).expect("its length")
}

/// What a replica's drive keeps about a branch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BranchRecord {
    pub branch: BranchId,
    pub epoch: Epoch,
    pub holder: NodeId,
    pub marks: Marks,
    /// Batch at which its doubt was last cleared (or the record made).
    pub clear_seq: u64,
    pub generation: Generation,
    pub parent: Option<(BranchId, Generation)>,
    pub geometry: Geometry,
    pub name: String,
    pub list: ListRecord,
}

/// What the newest keep-list said that was obeyed; which generations are kept stands in windows of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ListRecord {
    /// 0: there was none.
    pub index: ListIndex,
    /// All generations below are sealed. Never falls.
    pub open: Generation,
    /// The head's generation at that index. Never falls.
    pub head: Generation,
    pub placed: Incarnation,
    /// The head is a view.
    pub named: bool,
}

/// What a drive keeps about one chunk that it has a replica of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaRecord {
    pub branch: BranchId,
    pub chunk: ChunkIndex,
    pub incarnation: Incarnation,
    pub configuration: Configuration,
    /// It holds every kept generation up to here (0: none); while it is `whole`, all below the list's `open` too.
    pub complete: Generation,
    /// The newest keep-list calls it in-sync.
    pub whole: bool,
}

/// Generations of a window.
pub const WINDOW: u32 = 1536;

/// Which generations of a branch are kept, `WINDOW` of them: those named by a keep-list and not withdrawn since.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeepWindow {
    pub branch: BranchId,
    /// The first one is `window * WINDOW`.
    pub window: u32,
    /// The list that changed it last; information only.
    pub index: ListIndex,
    pub kept: Generations,
}

/// Extents that one slot of whole zero extents speaks of.
pub const ZEROES: u32 = 1024;
/// A bit for each of them.
pub type ZeroBits = [u64; ZEROES as usize / 64];

/// Extents of a replica that are zero as a whole in one generation, where that generation has nothing else.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZeroWindow {
    pub branch: BranchId,
    pub chunk: ChunkIndex,
    pub incarnation: Incarnation,
    pub generation: Generation,
    /// The first extent is `window * ZEROES`.
    pub window: u32,
    /// At least that of each of them.
    pub version: Version,
    pub bits: ZeroBits,
}

/// What a record slot holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Slot {
    #[default]
    Empty,
    Branch(BranchRecord),
    Replica(ReplicaRecord),
    Keep(KeepWindow),
    Zeroes(ZeroWindow),
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawBranch {
    kind: u8,
    chunk_shift: u8,
    name_length: u8,
    reserved: u8,
    epoch: U32,
    branch: U64,
    holder: U32,
    generation: U32,
    committed_epoch: U32,
    durable_epoch: U32,
    committed_seq: U64,
    durable_seq: U64,
    clear_seq: U64,
    size: U64,
    parent: U64,
    parent_generation: U32,
    reserved2: U32,
    name: [u8; 64],
    list_index: U64,
    list_open: U32,
    list_head: U32,
    list_placed: U64,
    list_named: U32,
    reserved3: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawMember {
    drive: U64,
    incarnation: U64,
    node: U32,
    state: u8,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawReplica {
    kind: u8,
    members: u8,
    reserved: U16,
    chunk: U32,
    branch: U64,
    incarnation: U64,
    number: U64,
    member: [RawMember; proto::limits::MEMBERS_MAX],
    complete: U32,
    whole: u8,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawWindow {
    kind: u8,
    reserved: [u8; 3],
    window: U32,
    branch: U64,
    index: U64,
    reserved2: U64,
    bits: [u8; WINDOW as usize / 8],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawZeroes {
    kind: u8,
    reserved: [u8; 3],
    window: U32,
    branch: U64,
    incarnation: U64,
    chunk: U32,
    generation: U32,
    epoch: U32,
    reserved2: U32,
    seq: U64,
    bits: [U64; ZEROES as usize / 64],
}
const _: () = assert!(size_of::<RawZeroes>() <= RECORD_SLOT);
const _: () = assert!(size_of::<RawBranch>() <= RECORD_SLOT && size_of::<RawReplica>() <= RECORD_SLOT);
const _: () = assert!(size_of::<RawWindow>() <= RECORD_SLOT);
const KIND_BRANCH: u8 = 1;
const KIND_REPLICA: u8 = 2;
const KIND_KEEP: u8 = 3;
const KIND_ZEROES: u8 = 4;

impl Slot {
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_SLOT] {
        let mut out = [0; RECORD_SLOT];
        match self {
            Slot::Empty => {}
            Slot::Branch(b) => out[..size_of::<RawBranch>()].copy_from_slice(RawBranch::of(b).as_bytes()),
            Slot::Replica(r) => out[..size_of::<RawReplica>()].copy_from_slice(RawReplica::of(r).as_bytes()),
            Slot::Keep(w) => out[..size_of::<RawWindow>()].copy_from_slice(RawWindow::of(w).as_bytes()),
            Slot::Zeroes(w) => out[..size_of::<RawZeroes>()].copy_from_slice(RawZeroes::of(w).as_bytes()),
        }
        out
    }
    /// `None`: no slot that this code wrote.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Slot> {
        match bytes.first()? {
            0 => Some(Slot::Empty),
            &KIND_BRANCH => RawBranch::read_from_prefix(bytes).ok()?.0.record().map(Slot::Branch),
            &KIND_REPLICA => RawReplica::read_from_prefix(bytes).ok()?.0.record().map(Slot::Replica),
            &KIND_KEEP => RawWindow::read_from_prefix(bytes).ok()?.0.window().map(Slot::Keep),
            &KIND_ZEROES => RawZeroes::read_from_prefix(bytes).ok()?.0.window().map(Slot::Zeroes),
            _ => None,
        }
    }
}
/// Puts a record slot into a record page's buffer.
pub fn put_slot(page: &mut PageBuf, at: usize, slot: &Slot) {
    let from = HEADER + at * RECORD_SLOT;
    page.bytes_mut()[from..from + RECORD_SLOT].copy_from_slice(&slot.encode());
}
/// A slot of a record page's body.
#[must_use]
pub fn slot_at(body: &[u8], at: usize) -> Option<Slot> {
    Slot::decode(&body[at * RECORD_SLOT..(at + 1) * RECORD_SLOT])
}

impl RawBranch {
    fn of(b: &BranchRecord) -> RawBranch {
        let mut raw = RawBranch::new_zeroed();
        let name = b.name.as_bytes();
        let length = name.len().min(64);
        raw.kind = KIND_BRANCH;
        raw.chunk_shift = b.geometry.chunk_shift;
        raw.name_length = u8::try_from(length).expect("at most 64");
        raw.name[..length].copy_from_slice(&name[..length]);
        raw.epoch = b.epoch.0.into();
        raw.branch = b.branch.0.into();
        raw.holder = b.holder.0.into();
        raw.generation = b.generation.0.into();
        raw.committed_epoch = b.marks.committed.epoch.0.into();
        raw.committed_seq = b.marks.committed.seq.into();
        raw.durable_epoch = b.marks.durable.epoch.0.into();
        raw.durable_seq = b.marks.durable.seq.into();
        raw.clear_seq = b.clear_seq.into();
        raw.size = b.geometry.size.into();
        if let Some((parent, generation)) = b.parent {
            raw.parent = parent.0.into();
            raw.parent_generation = generation.0.into();
        }
        raw.list_index = b.list.index.0.into();
        raw.list_open = b.list.open.0.into();
        raw.list_head = b.list.head.0.into();
        raw.list_placed = b.list.placed.0.into();
        raw.list_named = u32::from(b.list.named).into();
        raw
    }
    fn record(&self) -> Option<BranchRecord> {
        let name = self.name.get(..usize::from(self.name_length))?;
        let parent = (self.parent_generation.get() != 0)
            .then(|| (BranchId(self.parent.get()), Generation(self.parent_generation.get())));
        Some(BranchRecord {
            branch: BranchId(self.branch.get()),
            epoch: Epoch(self.epoch.get()),
            holder: NodeId(self.holder.get()),
            marks: Marks {
                committed: Version::new(Epoch(self.committed_epoch.get()), self.committed_seq.get()),
                durable: Version::new(Epoch(self.durable_epoch.get()), self.durable_seq.get()),
            },
            clear_seq: self.clear_seq.get(),
            generation: Generation(self.generation.get()),
            parent,
            geometry: Geometry { size: self.size.get(), chunk_shift: self.chunk_shift },
            name: std::str::from_utf8(name).ok()?.to_owned(),
            list: ListRecord {
                index: ListIndex(self.list_index.get()),
                open: Generation(self.list_open.get()),
                head: Generation(self.list_head.get()),
                placed: Incarnation(self.list_placed.get()),
                named: self.list_named.get() != 0,
            },
        })
    }
}

impl RawReplica {
    fn of(r: &ReplicaRecord) -> RawReplica {
        let mut raw = RawReplica::new_zeroed();
        raw.kind = KIND_REPLICA;
        raw.members = u8::try_from(r.configuration.members.len()).expect("at most MEMBERS_MAX");
        raw.chunk = r.chunk.0.into();
        raw.branch = r.branch.0.into();
        raw.incarnation = r.incarnation.0.into();
        raw.number = r.configuration.number.0.into();
        raw.complete = r.complete.0.into();
        raw.whole = u8::from(r.whole);
        for (raw, m) in raw.member.iter_mut().zip(&r.configuration.members) {
            raw.drive = m.place.drive.0.into();
            raw.incarnation = m.place.incarnation.0.into();
            raw.node = m.place.node.0.into();
            raw.state = match m.state {
                MemberState::InSync => 1,
                MemberState::Stale => 2,
                MemberState::Leaving => 3,
            };
        }
        raw
    }
    fn record(&self) -> Option<ReplicaRecord> {
        let mut configuration =
            Configuration { number: ConfigNumber(self.number.get()), ..Default::default() };
        for m in self.member.get(..usize::from(self.members))? {
            let place = Place {
                node: NodeId(m.node.get()),
                drive: DriveId(m.drive.get()),
                incarnation: Incarnation(m.incarnation.get()),
            };
            let state = match m.state {
                1 => MemberState::InSync,
                2 => MemberState::Stale,
                3 => MemberState::Leaving,
                _ => return None,
            };
            configuration.members.push(Member { place, state });
        }
        Some(ReplicaRecord {
            branch: BranchId(self.branch.get()),
            chunk: ChunkIndex(self.chunk.get()),
            incarnation: Incarnation(self.incarnation.get()),
            configuration,
            complete: Generation(self.complete.get()),
            whole: self.whole != 0,
        })
    }
}

impl RawWindow {
    fn of(w: &KeepWindow) -> RawWindow {
        let mut raw = RawWindow::new_zeroed();
        raw.kind = KIND_KEEP;
        raw.window = w.window.into();
        raw.branch = w.branch.0.into();
        raw.index = w.index.0.into();
        for g in w.kept.iter() {
            assert_eq!(g.0 / WINDOW, w.window, "a window holds its own generations");
            let at = (g.0 % WINDOW) as usize;
            raw.bits[at / 8] |= 1 << (at % 8);
        }
        raw
    }
    fn window(&self) -> Option<KeepWindow> {
        let window = self.window.get();
        let first = window.checked_mul(WINDOW).filter(|f| f.checked_add(WINDOW).is_some())?;
        let set = |at: &u32| self.bits[(at / 8) as usize] >> (at % 8) & 1 == 1;
        let kept: Generations =
            (0..WINDOW).filter(set).filter(|at| first + at > 0).map(|at| Generation(first + at)).collect();
        let index = ListIndex(self.index.get());
        Some(KeepWindow { branch: BranchId(self.branch.get()), window, index, kept })
    }
}

impl RawZeroes {
    fn of(w: &ZeroWindow) -> RawZeroes {
        RawZeroes {
            kind: KIND_ZEROES,
            reserved: [0; 3],
            window: w.window.into(),
            branch: w.branch.0.into(),
            incarnation: w.incarnation.0.into(),
            chunk: w.chunk.0.into(),
            generation: w.generation.0.into(),
            epoch: w.version.epoch.0.into(),
            reserved2: U32::ZERO,
            seq: w.version.seq.into(),
            bits: w.bits.map(U64::new),
        }
    }
    fn window(&self) -> Option<ZeroWindow> {
        let (window, generation) = (self.window.get(), Generation(self.generation.get()));
        // A chunk has at most 65,536 extents.
        let possible = window < 65_536 / ZEROES && generation >= Generation::FIRST;
        possible.then(|| ZeroWindow {
            branch: BranchId(self.branch.get()),
            chunk: ChunkIndex(self.chunk.get()),
            incarnation: Incarnation(self.incarnation.get()),
            generation,
            window,
            version: Version::new(Epoch(self.epoch.get()), self.seq.get()),
            bits: self.bits.map(U64::get),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slots_come_back_as_they_were(
            numbers: [u64; 8], small: [u32; 6], named: bool, whole: bool, window in 0u32..2_000_000,
            bits in prop::collection::btree_set(0u32..WINDOW, 0..200), parent: bool, members in 0usize..8,
        ) {
            let list = ListRecord {
                index: ListIndex(numbers[0]), open: Generation(small[0]), head: Generation(small[1]),
                placed: Incarnation(numbers[1]), named,
            };
            let branch = Slot::Branch(BranchRecord {
                branch: BranchId(numbers[2]), epoch: Epoch(small[2]), holder: NodeId(small[3]),
                marks: Marks { committed: Version::new(Epoch(1), numbers[3]), durable: Version::new(Epoch(1), numbers[4]) },
                clear_seq: numbers[5], generation: Generation(small[4]),
                parent: parent.then(|| (BranchId(numbers[6]), Generation(small[5].max(1)))),
                geometry: Geometry { size: numbers[7], chunk_shift: 24 }, name: "v".into(), list,
            });
            let place = Place { node: NodeId(small[3]), drive: DriveId(numbers[3]), incarnation: Incarnation(numbers[4]) };
            let member = Member { place, state: MemberState::Stale };
            let replica = Slot::Replica(ReplicaRecord {
                branch: BranchId(numbers[0]), chunk: ChunkIndex(small[0]), incarnation: Incarnation(numbers[1]),
                configuration: Configuration { number: ConfigNumber(numbers[2]), members: std::iter::repeat_n(member, members).collect() },
                complete: Generation(small[1]), whole,
            });
            let kept = bits.into_iter().map(|b| window * WINDOW + b).filter(|g| *g > 0).map(Generation).collect();
            let keep = Slot::Keep(KeepWindow { branch: BranchId(numbers[3]), window, index: ListIndex(numbers[4]), kept });
            let zeroes = Slot::Zeroes(ZeroWindow {
                branch: BranchId(numbers[3]), chunk: ChunkIndex(small[0]), incarnation: Incarnation(numbers[1]),
                generation: Generation(small[4].max(1)), window: window % 64, version: Version::new(Epoch(small[2]), numbers[5]),
                bits: std::array::from_fn(|i| numbers[i % 8].rotate_left(u32::try_from(i).unwrap())),
            });
            for slot in [branch, replica, keep, zeroes, Slot::Empty] {
                prop_assert_eq!(Slot::decode(&slot.encode()), Some(slot));
            }
        }

        #[test]
        fn rubbish_in_a_slot_never_panics(kind in 0u8..6, rest in prop::collection::vec(any::<u8>(), RECORD_SLOT - 1)) {
            let bytes: Vec<u8> = std::iter::once(kind).chain(rest).collect();
            let _ = Slot::decode(&bytes);
        }
    }
}
