//! The few system calls that std does not have, each behind a safe function.

use proto::Time;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// CLOCK_BOOTTIME: it goes on while the machine is suspended, so a lease does not outlive a nap.
#[must_use]
pub fn now() -> Time {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is valid for writing; the clock exists on every Linux that has io_uring.
    let r = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut t) };
    assert_eq!(r, 0, "CLOCK_BOOTTIME can be read");
    Time(t.tv_sec.cast_unsigned() * 1_000_000_000 + t.tv_nsec.cast_unsigned())
}

/// Random bytes of the kernel, as a number.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    // SAFETY: the buffer is valid for writing that many bytes. Requests up to 256 bytes are never short.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if n == 8 { Ok(u64::from_ne_bytes(bytes)) } else { Err(io::Error::last_os_error()) }
}

/// An eventfd, blocking (the ring waits on it).
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before it is owned.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A TCP socket of the address's family, blocking (the ring waits), not connected yet.
pub fn tcp_socket(address: std::net::SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers; the result is checked before it is owned.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// TCP_NODELAY: a frame is not held back for the acknowledgement of the one before.
pub fn no_delay(fd: &impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("a small constant");
    // SAFETY: the value is valid for reading `len` bytes, the descriptor is open.
    let r = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            (&raw const on).cast(),
            len,
        )
    };
    if r == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// flock, exclusive, on this very description; waits up to `wait`. False if somebody else holds it still.
pub fn lock(file: &File, wait: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + wait;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() >= deadline => return Ok(false),
            Err(std::fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
            Err(std::fs::TryLockError::Error(e)) => return Err(e),
        }
    }
}

/// Size of a block device, bytes.
pub fn device_size(file: &File) -> io::Result<u64> {
    /// `_IOR(0x12, 114, size_t)`: BLKGETSIZE64.
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    let mut size = 0_u64;
    // SAFETY: this request writes one u64 to the pointer, which is valid.
    let r = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut size) };
    if r == 0 { Ok(size) } else { Err(io::Error::last_os_error()) }
}

/// Major and minor number of a device file.
#[must_use]
pub fn device_numbers(rdev: u64) -> (u32, u32) {
    (libc::major(rdev), libc::minor(rdev))
}

/// Raises the limit of open files as far as it goes.
pub fn raise_limits() {
    let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is valid for writing and reading.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files) == 0 {
            files.rlim_cur = files.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files);
        }
    }
}

/// How many descriptors this process may have (RLIMIT_NOFILE).
#[must_use]
pub fn descriptors() -> u64 {
    let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is valid for writing.
    let r = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files) };
    assert_eq!(r, 0, "RLIMIT_NOFILE can be read");
    files.rlim_cur
}

/// Ends this process at once, without destructors: for the second SIGTERM.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: does not return; the kernel finishes what is in flight.
    unsafe { libc::_exit(code) }
}

/// Takes the space of the first `size` bytes of a file.
pub fn allocate(file: &File, size: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(size).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    // SAFETY: no pointers; the descriptor is open.
    let r = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len) };
    if r == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(r)) }
}

/// Keeps freed memory for the next request instead of giving it back: a megabyte that is mapped anew for each request
/// costs a page fault for each of its pages, more than the request itself.
pub fn keep_memory() {
    /// Largest threshold that glibc takes, bytes.
    const THRESHOLD: libc::c_int = 32 << 20;
    // SAFETY: mallopt takes two numbers; called before other threads run.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, THRESHOLD);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 8 * THRESHOLD);
        libc::mallopt(libc::M_TOP_PAD, THRESHOLD / 8);
    }
}
