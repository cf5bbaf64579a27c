//! Serves a disk in memory over a unix socket, a thread per connection: for tests with real clients, and to
//! measure the protocol without a volume behind it. No cluster, no durability.

use nbd::memory::MemoryOwner;
use nbd::{Op, RequestId, Server};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Received at once, bytes.
const RECEIVE: usize = 256 << 10;

/// What the server does wrong, on purpose. Shared by all connections; may be changed while it serves.
#[derive(Default)]
pub struct Faults {
    /// Drop each connection after so many requests of its own; 0: never.
    pub drop_after: AtomicU64,
    /// Acknowledge writes without doing them.
    pub lose_writes: AtomicBool,
    /// Do only the first sector of each block that is written, and acknowledge.
    pub tear_writes: AtomicBool,
    /// Answer writes with an error.
    pub fail_writes: AtomicBool,
    /// Answer nothing.
    pub freeze: AtomicBool,
}

/// A disk and its faults, shared with whoever made the server.
#[derive(Clone)]
pub struct Shared {
    owner: Arc<Mutex<MemoryOwner>>,
    pub faults: Arc<Faults>,
}

impl Shared {
    #[must_use]
    pub fn new(owner: MemoryOwner) -> Shared {
        Shared { owner: Arc::new(Mutex::new(owner)), faults: Arc::default() }
    }
    /// The disk; connections wait meanwhile.
    pub fn owner(&self) -> MutexGuard<'_, MemoryOwner> {
        self.owner.lock().expect("no connection panics while it holds the disk")
    }
}

/// Listens on `socket` (which must not exist) and serves every client until the process ends.
pub fn spawn(socket: &Path, shared: Shared) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    std::thread::Builder::new().name("nbd-accept".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let shared = shared.clone();
            // A client that goes away is no error of ours.
            std::thread::spawn(move || serve(stream, &shared).ok());
        }
    })?;
    Ok(())
}

/// One connection, to its end.
fn serve(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    let mut server = Server::new();
    let mut input = vec![0; RECEIVE];
    let mut output = Vec::new();
    let mut held = VecDeque::new();
    let mut requests = 0;
    loop {
        server.write_output(&mut output);
        stream.write_all(&output)?;
        output.clear();
        if server.finished().is_some() {
            return Ok(());
        }
        let n = stream.read(&mut input)?;
        if n == 0 {
            return Ok(());
        }
        let mut rest = &input[..n];
        while !rest.is_empty() && server.finished().is_none() {
            let taken = server.receive(rest);
            rest = &rest[taken..];
            shared.owner().serve(&mut server, Some(&mut held));
            requests += held.len() as u64;
            while let Some((id, op)) = held.pop_front() {
                complete(shared, &mut server, id, op);
            }
            server.write_output(&mut output);
            let limit = shared.faults.drop_after.load(Ordering::Relaxed);
            if limit > 0 && requests >= limit {
                return Ok(());
            }
        }
    }
}

fn complete(shared: &Shared, server: &mut Server, id: RequestId, op: Op) {
    let on = |fault: &AtomicBool| fault.load(Ordering::Relaxed);
    let faults = &shared.faults;
    while on(&faults.freeze) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    match op {
        Op::Write { .. } if on(&faults.fail_writes) => server.fail(id, nbd::Errno::Io, "as ordered"),
        Op::Write { .. } if on(&faults.lose_writes) => server.done(id),
        Op::Write { offset, len, data, fua } if on(&faults.tear_writes) => {
            let block = proto::limits::BLOCK as u64;
            for i in 0..u64::from(len) / block {
                let first = usize::try_from(i).expect("a request's blocks");
                let data = data.slice(first, 1);
                let op = Op::Write { offset: offset + i * block, len: 512, data, fua };
                shared.owner().disk.apply(op);
            }
            server.done(id);
        }
        op => shared.owner().complete(server, id, op),
    }
}
