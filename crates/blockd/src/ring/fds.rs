//! The descriptors that a ring works on: the ring owns them, so that none is closed, and its number given to another
//! file, while an operation on it is in flight or about to be submitted.

use io_uring::{IoUring, squeue, types};
use slab::Slab;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Size of the table of registered files; descriptors beyond it are used unregistered.
const REGISTERED: u32 = 1024;

/// A descriptor of a ring. Using one after `Ring::close` is a bug and asserts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Fd {
    index: u32,
    serial: u32,
}

struct Entry {
    fd: OwnedFd,
    serial: u32,
    /// Registered under the entry's own index.
    registered: bool,
    in_flight: u32,
    closing: bool,
}

#[derive(Default)]
pub(super) struct Fds {
    entries: Slab<Entry>,
    serial: u32,
    /// The table of registered files exists.
    table: bool,
}

/// How an operation names its file.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub fd: types::Fd,
    pub flags: squeue::Flags,
}

impl Fds {
    /// Without a table (old kernel, limits) everything works, a little slower.
    pub(super) fn new(uring: &IoUring) -> Fds {
        Fds { table: uring.submitter().register_files_sparse(REGISTERED).is_ok(), ..Fds::default() }
    }

    pub(super) fn add(&mut self, uring: &IoUring, fd: OwnedFd) -> Fd {
        self.serial = self.serial.wrapping_add(1);
        let raw = fd.as_raw_fd();
        let index = self.entries.insert(Entry {
            fd,
            serial: self.serial,
            registered: false,
            in_flight: 0,
            closing: false,
        });
        let index32 = u32::try_from(index).expect("fewer descriptors than 2^32");
        if self.table && index32 < REGISTERED {
            self.entries[index].registered =
                uring.submitter().register_files_update(index32, &[raw]).is_ok_and(|n| n == 1);
        }
        Fd { index: index32, serial: self.serial }
    }

    fn entry(&mut self, fd: Fd) -> &mut Entry {
        let e = self.entries.get_mut(fd.index as usize).expect("a descriptor is not used after its close");
        assert_eq!(e.serial, fd.serial, "a descriptor is not used after its close");
        e
    }

    /// Counts an operation in.
    pub(super) fn begin(&mut self, fd: Fd) -> Target {
        let e = self.entry(fd);
        assert!(!e.closing, "no operation begins on a descriptor that is being closed");
        e.in_flight += 1;
        target(e, fd)
    }

    /// The same file again, for the rest of an operation that is counted in already.
    pub(super) fn again(&mut self, fd: Fd) -> Target {
        let e = self.entry(fd);
        target(e, fd)
    }

    pub(super) fn is_closing(&mut self, fd: Fd) -> bool {
        self.entry(fd).closing
    }

    pub(super) fn raw(&mut self, fd: Fd) -> RawFd {
        self.entry(fd).fd.as_raw_fd()
    }

    /// An operation is over; true if the descriptor has gone with it.
    pub(super) fn end(&mut self, uring: &IoUring, fd: Fd) -> bool {
        let e = self.entry(fd);
        e.in_flight -= 1;
        let gone = e.closing && e.in_flight == 0;
        if gone {
            self.release(uring, fd);
        }
        gone
    }

    /// No new operation; true if the descriptor has gone at once, false if operations are still in flight.
    pub(super) fn close(&mut self, uring: &IoUring, fd: Fd) -> bool {
        let e = self.entry(fd);
        assert!(!e.closing, "closed once");
        e.closing = true;
        let gone = e.in_flight == 0;
        if gone {
            self.release(uring, fd);
        }
        gone
    }

    fn release(&mut self, uring: &IoUring, fd: Fd) {
        let e = self.entries.remove(fd.index as usize);
        if e.registered {
            // The table's reference keeps the file open: a socket would not be closed, a lock not released.
            let n = uring.submitter().register_files_update(fd.index, &[-1]);
            assert!(n.is_ok(), "a registered file can be taken out of its table: {n:?}");
        }
    }
}

fn target(e: &Entry, fd: Fd) -> Target {
    if e.registered {
        let index = i32::try_from(fd.index).expect("below REGISTERED");
        Target { fd: types::Fd(index), flags: squeue::Flags::FIXED_FILE }
    } else {
        Target { fd: types::Fd(e.fd.as_raw_fd()), flags: squeue::Flags::empty() }
    }
}
