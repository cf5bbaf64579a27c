//! One io_uring, in safe clothes. The thread that makes a ring is the only one that uses it.
//!
//! Owns the descriptors it works on and every buffer of an operation until its completion: a caller hands both in and
//! gets buffers back with the outcome. So no order of calls, nor dropping the ring, lets the kernel write into memory
//! that is somebody else's by now. One system call per turn: `turn` submits what was queued and waits.

mod fds;
mod op;
mod setup;

pub use fds::Fd;
pub use op::{Address, Errno, Outcome, Outgoing};
pub use setup::RingError;

use io_uring::{IoUring, squeue, types};
use op::{Job, Step, Vector};
use proto::{PageBuf, Payload, Span};
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long a ring that is dropped waits for what is in flight.
const TEARDOWN: Duration = Duration::from_secs(10);
/// `user_data` of cancellations.
const CANCEL: u64 = u64::MAX;

/// Vectors kept to be used again.
const VECTORS_KEPT: usize = 64;

/// What became of a send.
#[must_use]
pub enum Sent {
    /// All of it has gone, or it has failed; the memory comes back.
    Now(Result<(), Errno>, Outgoing),
    /// Under way; an `Outcome::Sent` follows.
    Later,
}

struct Pending<T> {
    fd: Fd,
    tag: T,
    job: Job,
}

/// A completed operation.
pub struct Done<T> {
    pub tag: T,
    pub outcome: Outcome,
}

pub struct Ring<T> {
    uring: IoUring,
    fds: fds::Fds,
    ops: Slab<Pending<T>>,
    done: VecDeque<Done<T>>,
    /// Vectors to be used again.
    vectors: Vec<Vector>,
    /// Scratch of `reap`.
    completed: Vec<(u64, i32)>,
    /// Being dropped: nothing is tried again.
    tearing: bool,
    /// Test setting: zeroes that are written to a drive become a hole of its file.
    sparse: bool,
    /// Calls of io_uring_enter so far.
    pub enters: u64,
}

/// If it is set, a volume full of zeroes takes its extents on a file drive and none of the disk beneath: so large
/// volumes can be measured on small machines. For tests: each write is looked through.
const SPARSE_ZEROES: &str = "BLOCKD_TEST_SPARSE_ZEROES";

impl<T> Ring<T> {
    /// A ring for this thread.
    pub fn new() -> Result<Ring<T>, RingError> {
        Ring::build(setup::build, setup::switched_off)
    }

    fn build(
        build: impl FnOnce() -> io::Result<IoUring>,
        switched_off: impl FnOnce() -> Option<u32>,
    ) -> Result<Ring<T>, RingError> {
        let uring = build().map_err(|e| setup::explain(e, switched_off()))?;
        let fds = fds::Fds::new(&uring);
        Ok(Ring {
            uring,
            fds,
            ops: Slab::new(),
            done: VecDeque::new(),
            vectors: Vec::new(),
            completed: Vec::new(),
            tearing: false,
            sparse: std::env::var_os(SPARSE_ZEROES).is_some(),
            enters: 0,
        })
    }

    /// Hands a descriptor to the ring.
    pub fn add(&mut self, fd: OwnedFd) -> Fd {
        self.fds.add(&self.uring, fd)
    }

    /// No further operation on it; what is in flight is cancelled (its outcomes still come) or, on a drive, ends. Then
    /// the descriptor is closed.
    pub fn close(&mut self, fd: Fd) {
        let raw = self.fds.raw(fd);
        let target = self.fds.again(fd);
        if self.fds.close(&self.uring, fd) {
            return;
        }
        // Ends receives and sends of a socket; of anything else it is an error that means nothing.
        // SAFETY: a system call on a descriptor that is open, without pointers.
        unsafe { libc::shutdown(raw, libc::SHUT_RDWR) };
        let n = target.fd.0;
        let builder = if target.flags.contains(squeue::Flags::FIXED_FILE) {
            types::CancelBuilder::fd(types::Fixed(n.cast_unsigned()))
        } else {
            types::CancelBuilder::fd(types::Fd(n))
        };
        self.push(&io_uring::opcode::AsyncCancel2::new(builder.all()).build().user_data(CANCEL));
    }

    /// Reads `blocks` blocks at `offset` bytes.
    pub fn read(&mut self, fd: Fd, offset: u64, blocks: usize, tag: T) {
        assert!(blocks > 0, "an empty read is a bug");
        self.begin(fd, tag, Job::Read { buf: PageBuf::for_overwrite(blocks), offset, done: 0 });
    }

    /// Writes all pieces, one after the other, at `offset` bytes.
    pub fn write(&mut self, fd: Fd, offset: u64, pieces: Vec<Payload>, tag: T) {
        assert!(pieces.iter().any(|p| !p.is_empty()), "an empty write is a bug");
        if self.sparse && pieces.iter().all(|p| p.bytes().iter().all(|b| *b == 0)) {
            let len = pieces.iter().map(|p| p.len() as u64).sum();
            return self.begin(fd, tag, Job::Punch { offset, len });
        }
        let vector = self.vectors.pop().unwrap_or_default();
        self.begin(fd, tag, Job::write(pieces, vector, offset));
    }

    /// fdatasync: what completed before is on the media when this completes.
    pub fn flush(&mut self, fd: Fd, tag: T) {
        self.begin(fd, tag, Job::Flush);
    }

    /// Receives into `buf` (its length counts); it comes back with the outcome.
    pub fn recv(&mut self, fd: Fd, buf: Vec<u8>, tag: T) {
        assert!(!buf.is_empty(), "an empty receive would look like the end");
        self.begin(fd, tag, Job::Recv { buf });
    }

    /// Sends all of `out`. What the socket takes at once is sent here and now, without a completion: it would only wake
    /// the loop for a turn in which nothing has happened. The rest, if any, is an operation like any other.
    pub fn send(&mut self, fd: Fd, out: Outgoing, tag: T) -> Sent {
        assert!(!out.is_empty(), "an empty send is a bug");
        let vector = self.vectors.pop().unwrap_or_default();
        let mut job = Job::send(out, vector);
        let raw = self.fds.raw(fd);
        let sent = job.send_now(raw);
        match sent {
            None => {
                self.begin(fd, tag, job);
                Sent::Later
            }
            Some(result) => {
                let (out, vector) = job.into_outgoing();
                if self.vectors.len() < VECTORS_KEPT {
                    self.vectors.push(vector);
                }
                Sent::Now(result, out)
            }
        }
    }

    /// Accepts one connection on a listening socket.
    pub fn accept(&mut self, fd: Fd, tag: T) {
        self.begin(fd, tag, Job::Accept);
    }

    pub fn connect(&mut self, fd: Fd, address: Address, tag: T) {
        self.begin(fd, tag, Job::Connect { address: Box::new(address) });
    }

    /// Waits for an eventfd, once.
    pub fn event(&mut self, fd: Fd, tag: T) {
        self.begin(fd, tag, Job::Event { value: vec![0; 8] });
    }

    /// Operations whose outcome has not been taken.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    fn begin(&mut self, fd: Fd, tag: T, mut job: Job) {
        let entry = job.entry(self.fds.begin(fd));
        let key = self.ops.insert(Pending { fd, tag, job });
        self.push(&entry.user_data(key as u64));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        for _ in 0..3 {
            // SAFETY: what the entry points at is owned by the operation of the same key in `ops` (see `op`), which is
            // removed only at its completion; a cancellation points at nothing. The descriptor is held by `fds`
            // until no operation on it is in flight.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return;
            }
            self.enters += 1;
            // The queue is full: submit. On EBUSY or EINTR the next round tries again.
            let _ = self.uring.submit();
            self.reap();
        }
        unreachable!("the submission queue has room after a submit");
    }

    /// Submits what was queued and waits for a completion, at most `wait` (none: for ever). Zero: does not wait.
    pub fn turn(&mut self, wait: Option<Span>) -> io::Result<()> {
        let waits = if self.done.is_empty() { wait } else { Some(Span(0)) };
        self.enters += 1;
        let result = match waits {
            None => self.uring.submit_and_wait(1),
            Some(span) => {
                let time = types::Timespec::from(Duration::from_nanos(span.0));
                self.uring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
            }
        };
        self.reap();
        match result {
            Ok(_) => Ok(()),
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// The next outcome that is there.
    pub fn completion(&mut self) -> Option<Done<T>> {
        self.done.pop_front()
    }

    /// Takes completions out of the kernel's queue; the rest of short operations is queued for the next turn.
    fn reap(&mut self) {
        let mut again = Vec::new();
        let mut completed = std::mem::take(&mut self.completed);
        completed.extend(self.uring.completion().map(|c| (c.user_data(), c.result())));
        {
            let Ring { uring, fds, ops, done, vectors, .. } = self;
            for (key, result) in completed.drain(..) {
                if key == CANCEL {
                    continue;
                }
                let key = usize::try_from(key).expect("a key of `ops`");
                let pending = ops.get_mut(key).expect("a completion belongs to an operation in flight");
                let retry = !self.tearing && !fds.is_closing(pending.fd);
                match pending.job.completed(result, retry) {
                    Step::Again => again.push(key),
                    Step::Over(outcome) => {
                        let p = ops.remove(key);
                        fds.end(uring, p.fd);
                        if let Some(v) = p.job.into_vector()
                            && vectors.len() < VECTORS_KEPT
                        {
                            vectors.push(v);
                        }
                        done.push_back(Done { tag: p.tag, outcome });
                    }
                }
            }
        }
        self.completed = completed;
        for key in again {
            let p = &mut self.ops[key];
            let entry = p.job.entry(self.fds.again(p.fd)).user_data(key as u64);
            self.push(&entry);
        }
    }
}

impl<T> Drop for Ring<T> {
    /// Cancels what can be cancelled and waits for the rest. What does not come back in time keeps its memory: leaked
    /// rather than written by the kernel under a new owner.
    fn drop(&mut self) {
        self.tearing = true;
        self.push(
            &io_uring::opcode::AsyncCancel2::new(types::CancelBuilder::any().all()).build().user_data(CANCEL),
        );
        let deadline = Instant::now() + TEARDOWN;
        while !self.ops.is_empty() && Instant::now() < deadline {
            if self.turn(Some(Span::millis(100))).is_err() {
                break;
            }
            self.done.clear();
        }
        std::mem::forget(std::mem::take(&mut self.ops));
        // The kernel frees a ring some time after its close: locks and sockets in its table must not wait for that.
        let _ = self.uring.submitter().unregister_files();
    }
}

#[cfg(test)]
mod tests;
