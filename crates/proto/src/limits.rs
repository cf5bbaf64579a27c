//! All limits, with their relations proved at compile time.

use crate::time::Span;

/// Unit of checksums and of atomicity, bytes.
pub const BLOCK: usize = 4096;
/// Unit of space on a drive and of resync, bytes.
pub const EXTENT: usize = 65536;
pub const BLOCKS_PER_EXTENT: u32 = 16;
/// Sector that guests address, bytes; smaller than a block: merged by the session.
pub const SECTOR: usize = 512;

/// Chunk sizes: powers of two, as log2 of bytes.
pub const CHUNK_SHIFT_MIN: u8 = 24; // 16 MiB
pub const CHUNK_SHIFT_DEFAULT: u8 = 28; // 256 MiB
pub const CHUNK_SHIFT_MAX: u8 = 32; // 4 GiB
/// Blocks of the largest chunk.
pub const CHUNK_BLOCKS_MAX: u32 = 1 << (CHUNK_SHIFT_MAX - 12);

pub const VOLUME_SIZE_MIN: u64 = 1 << 20;
pub const VOLUME_SIZE_MAX: u64 = 16 << 40;
/// Granularity of volume sizes.
pub const VOLUME_SIZE_STEP: u64 = BLOCK as u64;
/// Longest volume, node and zone name, bytes (RFC 1123 label characters plus `_` and `.`).
pub const NAME_MAX: usize = 63;

/// Copies of a chunk that a class may ask for.
pub const COPIES_DEFAULT: u8 = 3;
pub const COPIES_MAX: u8 = 5;
/// Members of one configuration: copies plus those that replace others for a while.
pub const MEMBERS_MAX: usize = 8;
pub const MIN_IN_SYNC_DEFAULT: u8 = 2;

/// Requests of a guest: what is advertised, and what is still accepted, bytes.
pub const REQUEST_ADVERTISED: u32 = 32 << 20;
pub const REQUEST_MAX: u32 = 64 << 20;

/// Epoch = lineage (high bits) and a counter of sessions (low bits).
pub const LINEAGE_BITS: u32 = 6;
pub const EPOCH_COUNTER_MAX: u32 = (1 << (32 - LINEAGE_BITS)) - 1;
/// The epoch that a reader of snapshots shows, who has no session: it is served sealed, kept, complete views, and
/// nothing else. No session has it: the first one of a branch is 1.
pub const READER_EPOCH: crate::ids::Epoch = crate::ids::Epoch(0);

/// Frames: fixed header; body of one frame; payload of one frame (a read may answer up to this).
pub const FRAME_HEADER: usize = 128;
/// The longest body is `Create` for a volume of 65,536 chunks on one drive: some 60 bytes for each.
pub const FRAME_BODY_MAX: usize = 16 << 20;
/// Runs in one part of a report: below 30 bytes each.
pub const REPORT_RUNS: usize = 1 << 18;
pub const FRAME_PAYLOAD_MAX: usize = 1 << 20;

/// Leases (5.5): granted for, renewed each, given up by the holder, waited out by a replica.
pub const LEASE: Span = Span::secs(3);
pub const LEASE_RENEW: Span = Span::secs(1);
pub const LEASE_HELD: Span = Span::millis(2700);
pub const LEASE_WAIT: Span = Span::millis(3030);

/// 5.2: a connection that is not back, an answer that does not come.
pub const RECONNECT_GRACE: Span = Span::millis(300);
pub const ANSWER_TIMEOUT: Span = Span::secs(2);
/// Opening an export whose present holder may be dead, or is closing.
pub const OPEN_WAIT: Span = Span::secs(6);
/// After the last disconnect of an export its session closes.
pub const CLOSE_AFTER: Span = Span::secs(2);

/// A node is dead for metad after so long without a heartbeat.
pub const HEARTBEAT: Span = Span::millis(500);
pub const NODE_DEAD: Span = Span::secs(2);
/// A dead node's replicas are placed anew after this (cluster setting `down_out`).
pub const DOWN_OUT_DEFAULT: Span = Span::secs(600);

/// A drive flushes by itself when anything is unflushed for so long, or so many bytes.
pub const SELF_FLUSH_AFTER: Span = Span::secs(1);
pub const SELF_FLUSH_BYTES: u64 = 64 << 20;

/// Journal: a sixteenth of the drive, within these bounds, bytes; replay after a crash is bounded.
pub const JOURNAL_SHARE: u64 = 16;
pub const JOURNAL_MIN: u64 = 64 << 20;
pub const JOURNAL_MAX: u64 = 1 << 30;
pub const REPLAY_MAX: u64 = 256 << 20;
/// Smallest drive that can be formatted, bytes.
pub const DRIVE_MIN: u64 = 256 << 20;

/// Marks are told at least this often while they move (5.1).
pub const MARKS_EVERY: Span = Span::secs(1);

// A holder stops before the replica lets another one in; renewals fit in between.
const _: () = assert!(LEASE_HELD.0 < LEASE.0 && LEASE.0 < LEASE_WAIT.0);
const _: () = assert!(2 * LEASE_RENEW.0 < LEASE_HELD.0);
// A takeover after the death of a node: dead (2 s) + leases (3.03 s) leaves room within the 6 s a connect waits.
const _: () = assert!(NODE_DEAD.0 + LEASE_WAIT.0 < OPEN_WAIT.0);
const _: () = assert!(EXTENT == BLOCK * BLOCKS_PER_EXTENT as usize);
const _: () = assert!(REQUEST_ADVERTISED <= REQUEST_MAX);
const _: () = assert!(COPIES_MAX as usize + 2 <= MEMBERS_MAX);
// A journal of the least size holds two self-flush intervals' worth of small writes' headers and more.
const _: () = assert!(JOURNAL_MIN >= SELF_FLUSH_BYTES);

/// What one export connection may have in flight, bytes (payloads of writes, answers of reads, replies not yet
/// sent; exceeded by one request at most) and requests: beyond it the connection is not read.
pub const EXPORT_CREDIT_BYTES: usize = 32 << 20;
pub const EXPORT_CREDIT_REQUESTS: usize = 1024;
