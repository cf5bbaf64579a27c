//! Messages to the shard from other threads: a queue under a lock that the hot path does not touch, and an eventfd that
//! wakes the ring.

use crate::sys;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

struct Shared<T> {
    queue: Mutex<Vec<T>>,
    wake: File,
}

/// The sending end; any number, in any thread.
pub struct Sender<T>(Arc<Shared<T>>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender(self.0.clone())
    }
}

impl<T> Sender<T> {
    pub fn send(&self, message: T) {
        let was_empty = {
            let mut q = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner);
            q.push(message);
            q.len() == 1
        };
        if was_empty {
            // It can only fail by overflow, and then the reader is awake.
            let _ = (&self.0.wake).write(&1_u64.to_ne_bytes());
        }
    }
}

/// The receiving end, in the shard's thread.
pub struct Mailbox<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Mailbox<T> {
    /// A mailbox, and the eventfd that is to be watched for it.
    pub fn new() -> io::Result<(Mailbox<T>, OwnedFd)> {
        let wake = sys::eventfd()?;
        let watched = wake.try_clone()?;
        Ok((Mailbox { shared: Arc::new(Shared { queue: Mutex::default(), wake: wake.into() }) }, watched))
    }

    #[must_use]
    pub fn sender(&self) -> Sender<T> {
        Sender(self.shared.clone())
    }

    /// Everything sent so far. To be called after each event of the eventfd.
    #[must_use]
    pub fn take(&self) -> Vec<T> {
        std::mem::take(&mut self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
