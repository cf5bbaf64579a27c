//! Making a ring, and saying clearly why there is none.

use io_uring::IoUring;
use std::io;

/// Entries of the submission queue; a turn that needs more submits twice.
const SUBMISSIONS: u32 = 512;
/// Entries of the completion queue: everything in flight fits as a rule; the kernel keeps what does not.
const COMPLETIONS: u32 = 8192;

/// Why io_uring is not to be had here. Each with its remedy.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("this kernel has no io_uring (ENOSYS). Remedy: Linux 6.1 or newer with CONFIG_IO_URING")]
    Absent,
    #[error(
        "io_uring is switched off for this process: kernel.io_uring_disabled = {0}. Remedy: sysctl \
         kernel.io_uring_disabled=0, or 1 and blockd's group in kernel.io_uring_group"
    )]
    SwitchedOff(u32),
    #[error(
        "io_uring is forbidden to this process (EPERM), as a container's seccomp profile does. Remedy: allow \
         io_uring_setup, io_uring_enter and io_uring_register, or run outside of the container"
    )]
    Forbidden,
    #[error(
        "this kernel's io_uring is too old: it lacks SINGLE_ISSUER or DEFER_TASKRUN (EINVAL). Remedy: Linux 6.1 or newer"
    )]
    TooOld,
    #[error(
        "not enough locked memory for a ring (ENOMEM). Remedy: raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity)"
    )]
    NoMemory,
    #[error("io_uring_setup failed: {0}")]
    Other(io::Error),
}

/// Builds the ring of this thread.
pub(super) fn build() -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_submit_all()
        .setup_cqsize(COMPLETIONS)
        .setup_clamp()
        .build(SUBMISSIONS)
}

/// `kernel.io_uring_disabled`, if this kernel has it.
pub(super) fn switched_off() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// What an error of setup means, given the value of `kernel.io_uring_disabled`.
pub(super) fn explain(error: io::Error, disabled: Option<u32>) -> RingError {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => RingError::Absent,
        Some(libc::EPERM | libc::EACCES) => match disabled {
            Some(n) if n > 0 => RingError::SwitchedOff(n),
            _ => RingError::Forbidden,
        },
        Some(libc::EINVAL) => RingError::TooOld,
        Some(libc::ENOMEM) => RingError::NoMemory,
        _ => RingError::Other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_of_having_no_ring_names_its_cause_and_remedy() {
        for (errno, disabled, words) in [
            (libc::ENOSYS, None, "no io_uring (ENOSYS). Remedy: Linux 6.1"),
            (libc::EPERM, Some(2), "kernel.io_uring_disabled = 2. Remedy: sysctl kernel.io_uring_disabled=0"),
            (libc::EPERM, Some(0), "seccomp profile does. Remedy: allow io_uring_setup"),
            (libc::EPERM, None, "seccomp"),
            (libc::EINVAL, Some(0), "too old"),
            (libc::ENOMEM, Some(0), "RLIMIT_MEMLOCK"),
            (libc::EMFILE, Some(0), "io_uring_setup failed: Too many open files"),
        ] {
            let text = explain(io::Error::from_raw_os_error(errno), disabled).to_string();
            assert!(text.contains(words), "{errno}: {text}");
        }
    }
}
