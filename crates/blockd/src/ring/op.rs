//! An operation in flight: what it does, and the memory that the kernel reads or writes meanwhile.
//!
//! Invariant: everything that a submission points at is owned by its `Job` and lies on the heap, so it neither moves
//! when the table of operations grows nor goes away before the completion. Memory that the kernel writes is held in a
//! `Vec` (or `PageBuf`), never in a `Box`, and nothing looks at it until the completion.

use super::fds::Target;
use io_uring::{opcode, squeue, types};
use proto::limits::BLOCK;
use proto::{PageBuf, Payload};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// An errno.
pub type Errno = i32;

/// Most pieces of one vectored operation (the kernel's IOV_MAX).
const PIECES_MAX: usize = 1024;

/// Bytes to be sent, gathered from several places.
#[derive(Default)]
pub struct Outgoing {
    pieces: Vec<Piece>,
    len: usize,
}

enum Piece {
    Bytes(Vec<u8>),
    Pages { payload: Payload, skip: usize, len: usize },
}

/// A piece of a payload that is smaller is copied rather than pointed at: cheaper than an element of a vector.
const COPY_BELOW: usize = 16 << 10;

impl Outgoing {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Appends a buffer; no copy.
    pub fn push(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.pieces.push(Piece::Bytes(bytes));
        }
    }
    /// Appends a copy to the last buffer.
    pub fn write(&mut self, bytes: &[u8]) {
        self.tail().extend_from_slice(bytes);
        self.len += bytes.len();
    }
    /// Appends `len` zero bytes.
    pub fn zeroes(&mut self, len: usize) {
        let t = self.tail();
        t.resize(t.len() + len, 0);
        self.len += len;
    }
    /// Appends `len` bytes from `skip` bytes into the payload.
    pub fn payload(&mut self, payload: Payload, skip: usize, len: usize) {
        assert!(skip + len <= payload.len(), "within the payload");
        if len < COPY_BELOW {
            self.write(&payload.bytes()[skip..skip + len]);
        } else {
            self.pieces.push(Piece::Pages { payload, skip, len });
            self.len += len;
        }
    }
    /// Takes all of `other` to its end.
    pub fn append(&mut self, other: &mut Outgoing) {
        self.pieces.append(&mut other.pieces);
        self.len += std::mem::take(&mut other.len);
    }
    fn tail(&mut self) -> &mut Vec<u8> {
        if !matches!(self.pieces.last(), Some(Piece::Bytes(b)) if b.len() < 256 << 10) {
            self.pieces.push(Piece::Bytes(Vec::with_capacity(4096)));
        }
        match self.pieces.last_mut() {
            Some(Piece::Bytes(b)) => b,
            _ => unreachable!("a buffer was pushed if there was none"),
        }
    }
    /// The buffers, once they are sent, for use again.
    pub fn into_buffers(self) -> impl Iterator<Item = Vec<u8>> {
        self.pieces.into_iter().filter_map(|p| match p {
            Piece::Bytes(b) => Some(b),
            Piece::Pages { .. } => None,
        })
    }
    fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(|p| match p {
            Piece::Bytes(b) => b.as_slice(),
            Piece::Pages { payload, skip, len } => &payload.bytes()[*skip..skip + len],
        })
    }
}

/// Elements of a vectored operation. They point into what the same `Job` owns.
#[derive(Default)]
pub(super) struct Vector(Vec<libc::iovec>);

impl Vector {
    /// Points at `slices` without their first `skip` bytes.
    fn fill<'a>(&mut self, slices: impl Iterator<Item = &'a [u8]>, mut skip: usize) {
        self.0.clear();
        for s in slices {
            let from = skip.min(s.len());
            skip -= from;
            if from < s.len() && self.0.len() < PIECES_MAX {
                let rest = &s[from..];
                self.0.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
            }
        }
    }
}

/// What an operation does and owns.
pub(super) enum Job {
    Read {
        buf: PageBuf,
        offset: u64,
        done: usize,
    },
    Write {
        pieces: Vec<Payload>,
        vector: Vector,
        offset: u64,
        done: usize,
        len: usize,
    },
    /// A hole instead of zeroes, in a file (`sparse_zeroes`).
    Punch {
        offset: u64,
        len: u64,
    },
    Flush,
    Recv {
        buf: Vec<u8>,
    },
    Send {
        out: Outgoing,
        vector: Vector,
        header: Box<libc::msghdr>,
        done: usize,
    },
    Accept,
    Connect {
        address: Box<Address>,
    },
    /// Read of an eventfd's counter.
    Event {
        value: Vec<u8>,
    },
}

/// A socket address as the kernel reads it.
pub struct Address {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl Address {
    #[must_use]
    pub fn of(address: std::net::SocketAddr) -> Address {
        // SAFETY: sockaddr_storage is plain old data; all zeroes is one of its values (AF_UNSPEC).
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let len = match address {
            std::net::SocketAddr::V4(a) => {
                let s = libc::sockaddr_in {
                    sin_family: libc::sa_family_t::try_from(libc::AF_INET).expect("a small constant"),
                    sin_port: a.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(a.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is at least as large and as aligned as every sockaddr_*, and is ours.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(s) };
                size_of::<libc::sockaddr_in>()
            }
            std::net::SocketAddr::V6(a) => {
                let s = libc::sockaddr_in6 {
                    sin6_family: libc::sa_family_t::try_from(libc::AF_INET6).expect("a small constant"),
                    sin6_port: a.port().to_be(),
                    sin6_flowinfo: a.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: a.ip().octets() },
                    sin6_scope_id: a.scope_id(),
                };
                // SAFETY: as above.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(s) };
                size_of::<libc::sockaddr_in6>()
            }
        };
        Address { storage, len: libc::socklen_t::try_from(len).expect("a small constant") }
    }
}

/// What came of an operation; memory comes back with it.
pub enum Outcome {
    Read(Result<PageBuf, Errno>),
    Written(Result<(), Errno>),
    Flushed(Result<(), Errno>),
    /// Bytes received into the front of the buffer; 0 is the end of the stream.
    Received(Result<usize, Errno>, Vec<u8>),
    Sent(Result<(), Errno>, Outgoing),
    Accepted(Result<OwnedFd, Errno>),
    Connected(Result<(), Errno>),
    Event,
}

/// After a completion: over, or to be submitted again for the rest.
pub(super) enum Step {
    Over(Outcome),
    Again,
}

fn len32(n: usize) -> u32 {
    u32::try_from(n).expect("one operation moves less than 4 GiB")
}

impl Job {
    pub(super) fn write(pieces: Vec<Payload>, vector: Vector, offset: u64) -> Job {
        let len = pieces.iter().map(Payload::len).sum();
        Job::Write { pieces, vector, offset, done: 0, len }
    }
    pub(super) fn send(out: Outgoing, vector: Vector) -> Job {
        // SAFETY: msghdr is plain old data; all zeroes is a message without address, data and control.
        let header = Box::new(unsafe { std::mem::zeroed::<libc::msghdr>() });
        Job::Send { out, vector, header, done: 0 }
    }

    /// Tries a send at once: none if something is left for later.
    pub(super) fn send_now(&mut self, fd: RawFd) -> Option<Result<(), Errno>> {
        let Job::Send { out, vector, header, done } = self else { unreachable!("only sends") };
        vector.fill(out.slices(), 0);
        header.msg_iov = vector.0.as_mut_ptr();
        header.msg_iovlen = vector.0.len();
        // SAFETY: the message points at this job's vector, and that at this job's buffers, all borrowed here; the call
        // does not wait and keeps no pointer.
        let n = unsafe { libc::sendmsg(fd, &raw const **header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        match usize::try_from(n) {
            Ok(n) if n == out.len => Some(Ok(())),
            Ok(n) => {
                *done = n;
                None
            }
            Err(_) => match std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) {
                libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM => None,
                errno => Some(Err(errno)),
            },
        }
    }
    /// A send that is over: its memory.
    pub(super) fn into_outgoing(self) -> (Outgoing, Vector) {
        let Job::Send { out, vector, .. } = self else { unreachable!("only sends") };
        (out, vector)
    }

    /// The submission for what is left to do.
    pub(super) fn entry(&mut self, target: Target) -> squeue::Entry {
        let fd = target.fd;
        let entry = match self {
            Job::Read { buf, offset, done } => {
                let rest = &mut buf.bytes_mut()[*done..];
                opcode::Read::new(fd, rest.as_mut_ptr(), len32(rest.len()))
                    .offset(*offset + *done as u64)
                    .build()
            }
            Job::Write { pieces, vector, offset, done, .. } => {
                let at = *offset + *done as u64;
                vector.fill(pieces.iter().map(Payload::bytes), *done);
                match vector.0.as_slice() {
                    [one] => {
                        opcode::Write::new(fd, one.iov_base.cast(), len32(one.iov_len)).offset(at).build()
                    }
                    many => opcode::Writev::new(fd, many.as_ptr(), len32(many.len())).offset(at).build(),
                }
            }
            Job::Punch { offset, len } => opcode::Fallocate::new(fd, *len)
                .offset(*offset)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
            Job::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Job::Recv { buf } => opcode::Recv::new(fd, buf.as_mut_ptr(), len32(buf.len())).build(),
            Job::Send { out, vector, header, done } => {
                let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
                vector.fill(out.slices(), *done);
                if let [one] = vector.0.as_slice() {
                    opcode::Send::new(fd, one.iov_base.cast(), len32(one.iov_len)).flags(flags).build()
                } else {
                    header.msg_iov = vector.0.as_mut_ptr();
                    header.msg_iovlen = vector.0.len();
                    opcode::SendMsg::new(fd, &raw const **header).flags(flags.cast_unsigned()).build()
                }
            }
            // Not SOCK_NONBLOCK: the ring would answer EAGAIN instead of waiting.
            Job::Accept => opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build(),
            Job::Connect { address } => {
                opcode::Connect::new(fd, (&raw const address.storage).cast(), address.len).build()
            }
            Job::Event { value } => opcode::Read::new(fd, value.as_mut_ptr(), len32(value.len())).build(),
        };
        entry.flags(target.flags)
    }

    /// What a completion with `result` means; `retry` is false where the descriptor is being closed.
    pub(super) fn completed(&mut self, result: i32, retry: bool) -> Step {
        if retry && matches!(-result, libc::EINTR | libc::EAGAIN) {
            return Step::Again;
        }
        let moved = usize::try_from(result).map_err(|_| -result);
        match self {
            Job::Read { buf, done, .. } => match rest(moved, done, buf.bytes().len()) {
                Err(e) => Step::Over(Outcome::Read(Err(e))),
                Ok(false) => Step::Again,
                Ok(true) => Step::Over(Outcome::Read(Ok(std::mem::take(buf)))),
            },
            Job::Write { done, len, .. } => match rest(moved, done, *len) {
                Err(e) => Step::Over(Outcome::Written(Err(e))),
                Ok(false) => Step::Again,
                Ok(true) => Step::Over(Outcome::Written(Ok(()))),
            },
            Job::Punch { .. } => Step::Over(Outcome::Written(moved.map(drop))),
            Job::Flush => Step::Over(Outcome::Flushed(moved.map(drop))),
            Job::Recv { buf } => Step::Over(Outcome::Received(moved, std::mem::take(buf))),
            Job::Send { out, done, .. } => {
                if let Ok(n) = moved {
                    *done += n;
                    if *done < out.len && retry && n > 0 {
                        return Step::Again;
                    }
                }
                let whole = if *done == out.len { Ok(()) } else { Err(moved.err().unwrap_or(libc::EPIPE)) };
                Step::Over(Outcome::Sent(whole, std::mem::take(out)))
            }
            Job::Accept => Step::Over(Outcome::Accepted(moved.map(|_| {
                // SAFETY: a successful accept's result is a new descriptor that nobody else owns.
                unsafe { OwnedFd::from_raw_fd(result) }
            }))),
            Job::Connect { .. } => Step::Over(Outcome::Connected(moved.map(drop))),
            Job::Event { .. } => Step::Over(Outcome::Event),
        }
    }

    /// Memory to be used again.
    pub(super) fn into_vector(self) -> Option<Vector> {
        match self {
            Job::Write { vector, .. } | Job::Send { vector, .. } => Some(vector),
            _ => None,
        }
    }
}

/// Progress of a read or write of a drive: true when whole. A drive does not end in mid-operation: nothing moved is
/// an error. What is left begins at a whole block, for O_DIRECT.
fn rest(moved: Result<usize, Errno>, done: &mut usize, len: usize) -> Result<bool, Errno> {
    let moved = moved?;
    let at = *done + moved;
    if at >= len {
        return Ok(true);
    }
    if moved < BLOCK {
        return Err(libc::EIO);
    }
    *done = at / BLOCK * BLOCK;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(job: &mut Job, result: i32) -> &'static str {
        match job.completed(result, true) {
            Step::Over(Outcome::Read(Ok(_)) | Outcome::Written(Ok(())) | Outcome::Sent(Ok(()), _)) => "done",
            Step::Over(_) => "failed",
            Step::Again => "again",
        }
    }

    #[test]
    fn a_short_write_goes_on_at_the_last_whole_block() {
        let mut job = Job::write(vec![Payload::copy_of(&[7; 3 * BLOCK])], Vector::default(), 0);
        assert_eq!(step(&mut job, 5000), "again");
        assert!(matches!(job, Job::Write { done: BLOCK, .. }));
        assert_eq!(step(&mut job, 2 * i32::try_from(BLOCK).unwrap()), "done");
    }

    #[test]
    fn interrupted_operations_are_repeated_and_errors_are_not() {
        let mut job = Job::Read { buf: PageBuf::zeroed(2), offset: 0, done: 0 };
        assert_eq!(step(&mut job, -libc::EINTR), "again");
        assert_eq!(step(&mut job, -libc::EAGAIN), "again");
        assert_eq!(step(&mut job, -libc::EIO), "failed");
        assert_eq!(step(&mut job, 0), "failed", "the end of the file in the middle of a drive");
    }

    #[test]
    fn the_rest_of_a_send_skips_what_has_gone() {
        let mut out = Outgoing::default();
        out.push(vec![1; 10]);
        out.payload(Payload::copy_of(&[2; 8 * BLOCK]), 100, 20_000);
        out.write(&[3; 5]);
        let mut job = Job::send(out, Vector::default());
        assert_eq!(step(&mut job, 15), "again");
        let Job::Send { out, vector, done, .. } = &mut job else { unreachable!() };
        vector.fill(out.slices(), *done);
        let lens: Vec<usize> = vector.0.iter().map(|v| v.iov_len).collect();
        assert_eq!(lens, [20_000 - 5, 5]);
        assert_eq!(step(&mut job, 20_000), "done");
    }
}
