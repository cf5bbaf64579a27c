//! Real files with O_DIRECT, real sockets: what the operations do, and that nothing outlives its owner.

use super::*;
use proto::limits::BLOCK;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

fn ring() -> Ring<u32> {
    Ring::new().expect("io_uring is there")
}

fn drive(dir: &Path, blocks: u64) -> OwnedFd {
    let f = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT)
        .open(dir.join("drive"))
        .unwrap();
    f.set_len(blocks * BLOCK as u64).unwrap();
    f.into()
}

fn next(ring: &mut Ring<u32>) -> Done<u32> {
    loop {
        if let Some(d) = ring.completion() {
            return d;
        }
        ring.turn(Some(Span::secs(10))).unwrap();
    }
}

fn pattern(blocks: usize, seed: u8) -> Payload {
    let bytes: Vec<u8> =
        (0..blocks * BLOCK).map(|i| seed.wrapping_add(u8::try_from(i / 7 % 251).unwrap())).collect();
    Payload::copy_of(&bytes)
}

#[test]
fn a_vectored_write_reads_back_from_the_media() {
    let dir = tempfile::tempdir().unwrap();
    let mut r = ring();
    let fd = r.add(drive(dir.path(), 64));
    let pieces = vec![pattern(1, 1), pattern(16, 2), pattern(3, 3).slice(1, 2)];
    let want: Vec<u8> = pieces.iter().flat_map(|p| p.bytes().to_vec()).collect();
    r.write(fd, 8 * BLOCK as u64, pieces, 1);
    assert!(matches!(next(&mut r), Done { tag: 1, outcome: Outcome::Written(Ok(())) }));
    r.flush(fd, 2);
    assert!(matches!(next(&mut r), Done { tag: 2, outcome: Outcome::Flushed(Ok(())) }));
    r.read(fd, 8 * BLOCK as u64, 19, 3);
    let Done { tag: 3, outcome: Outcome::Read(Ok(buf)) } = next(&mut r) else { panic!("the read failed") };
    assert_eq!(buf.bytes(), want);
    assert_eq!(r.in_flight(), 0);
}

/// The test setting: zeroes take nothing of the disk, and read as zeroes; bytes do as ever.
#[test]
fn zeroes_can_be_holes() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let mut r = ring();
    r.sparse = true;
    let fd = r.add(drive(dir.path(), 64));
    let used = || std::fs::metadata(dir.path().join("drive")).unwrap().blocks() * 512;
    for (i, piece) in [pattern(32, 1), PageBuf::zeroed(16).freeze()].into_iter().enumerate() {
        r.write(fd, 8 * BLOCK as u64, vec![piece], 1);
        assert!(matches!(next(&mut r).outcome, Outcome::Written(Ok(()))), "{i}");
    }
    r.flush(fd, 2);
    next(&mut r);
    assert_eq!(used(), 16 * BLOCK as u64);
    r.read(fd, 8 * BLOCK as u64, 32, 3);
    let Done { outcome: Outcome::Read(Ok(buf)), .. } = next(&mut r) else { panic!("the read failed") };
    assert!(buf.bytes()[..16 * BLOCK].iter().all(|b| *b == 0));
    assert_eq!(buf.bytes()[16 * BLOCK..], pattern(32, 1).bytes()[16 * BLOCK..]);
}

#[test]
fn a_read_over_the_end_of_a_drive_fails_and_one_before_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut r = ring();
    let fd = r.add(drive(dir.path(), 4));
    r.read(fd, 2 * BLOCK as u64, 4, 1);
    let Done { outcome: Outcome::Read(Err(errno)), .. } = next(&mut r) else { panic!("it cannot succeed") };
    assert_eq!(errno, libc::EIO);
    r.read(fd, 0, 4, 2);
    assert!(matches!(next(&mut r).outcome, Outcome::Read(Ok(_))));
}

#[test]
fn more_operations_than_the_queue_holds_all_complete() {
    let dir = tempfile::tempdir().unwrap();
    let mut r = ring();
    let fd = r.add(drive(dir.path(), 2048));
    for i in 0..2000_u32 {
        r.write(fd, u64::from(i) * BLOCK as u64, vec![pattern(1, u8::try_from(i % 200).unwrap())], i);
    }
    let mut seen = vec![false; 2000];
    for _ in 0..2000 {
        let d = next(&mut r);
        assert!(matches!(d.outcome, Outcome::Written(Ok(()))));
        assert!(!std::mem::replace(&mut seen[d.tag as usize], true), "once each");
    }
    r.read(fd, 1234 * BLOCK as u64, 1, 0);
    let Done { outcome: Outcome::Read(Ok(b)), .. } = next(&mut r) else { panic!("the read failed") };
    assert_eq!(b.bytes(), pattern(1, 34).bytes());
}

#[test]
fn a_send_larger_than_the_sockets_buffer_arrives_whole_and_in_order() {
    let (a, mut b) = UnixStream::pair().unwrap();
    let mut r = ring();
    let fd = r.add(a.into());
    let mut out = Outgoing::default();
    let mut want = Vec::new();
    for i in 0..40_u8 {
        let p = pattern(32, i);
        want.extend_from_slice(&[i; 28]);
        want.extend_from_slice(&p.bytes()[100..100_100]);
        out.push(vec![i; 28]);
        out.payload(p, 100, 100_000);
    }
    let len = want.len();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; len];
        let mut at = 0;
        while at < len {
            std::thread::sleep(Duration::from_micros(200));
            let end = (at + 30_000).min(len);
            at += b.read(&mut got[at..end]).unwrap();
        }
        (got, b)
    });
    assert!(matches!(r.send(fd, out, 9), Sent::Later), "more than a socket takes at once");
    assert!(matches!(next(&mut r), Done { tag: 9, outcome: Outcome::Sent(Ok(()), _) }));
    let (got, _b) = reader.join().unwrap();
    assert!(got == want);
}

#[test]
fn a_send_to_a_peer_that_is_gone_fails_without_a_signal() {
    let (a, b) = UnixStream::pair().unwrap();
    let mut r = ring();
    let fd = r.add(a.into());
    drop(b);
    let mut out = Outgoing::default();
    out.push(vec![1; 1000]);
    assert!(matches!(r.send(fd, out, 1), Sent::Now(Err(libc::EPIPE), _)));
    r.recv(fd, vec![0; 100], 2);
    assert!(matches!(next(&mut r).outcome, Outcome::Received(Ok(0), _)));
}

#[test]
fn echo_over_tcp_with_accept_and_connect_on_the_same_ring() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut r = ring();
    let l = r.add(listener.into());
    r.accept(l, 1);
    // SAFETY: a system call without pointers; the result is checked and owned at once.
    let s = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    assert!(s >= 0);
    // SAFETY: a new descriptor that nobody else owns.
    let client = r.add(unsafe { OwnedFd::from_raw_fd(s) });
    r.connect(client, Address::of(address), 2);
    let (mut accepted, mut connected) = (None, false);
    while accepted.is_none() || !connected {
        match next(&mut r).outcome {
            Outcome::Accepted(fd) => accepted = Some(fd.unwrap()),
            Outcome::Connected(c) => connected = c.is_ok(),
            _ => panic!("nothing else is in flight"),
        }
    }
    let server = r.add(accepted.unwrap());
    let mut out = Outgoing::default();
    out.push(b"hello".to_vec());
    let Sent::Now(Ok(()), back) = r.send(client, out, 3) else { panic!("five bytes go at once") };
    assert_eq!(back.into_buffers().count(), 1, "the memory comes back");
    r.recv(server, vec![0; 64], 4);
    let mut got = Vec::new();
    while got.is_empty() {
        if let Outcome::Received(n, buf) = next(&mut r).outcome {
            got = buf[..n.unwrap()].to_vec();
        }
    }
    assert_eq!(got, b"hello");
}

#[test]
fn closing_gives_back_what_was_in_flight_and_then_closes_the_descriptor() {
    let (a, mut b) = UnixStream::pair().unwrap();
    let mut r = ring();
    let fd = r.add(a.into());
    r.recv(fd, vec![0; 100], 1);
    r.turn(Some(Span(0))).unwrap();
    r.close(fd);
    let Done { tag: 1, outcome: Outcome::Received(result, buf) } = next(&mut r) else {
        panic!("the receive ends")
    };
    assert!(matches!(result, Ok(0) | Err(libc::ECANCELED)));
    assert_eq!(buf.len(), 100);
    assert_eq!(b.read(&mut [0; 8]).unwrap(), 0, "the other side sees the end");
    assert!(b.write(&[1]).is_err());
}

#[test]
#[should_panic(expected = "not used after its close")]
fn a_closed_descriptor_cannot_be_used() {
    let (a, _b) = UnixStream::pair().unwrap();
    let mut r = ring();
    let fd = r.add(a.as_fd().try_clone_to_owned().unwrap());
    r.close(fd);
    r.add(a.into());
    r.recv(fd, vec![0; 1], 1);
}

#[test]
fn a_ring_that_dies_waits_for_or_cancels_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (a, mut b) = UnixStream::pair().unwrap();
    let (c, _d) = UnixStream::pair().unwrap();
    let mut r = ring();
    let (recv, send) = (r.add(a.into()), r.add(c.into()));
    let file = r.add(drive(dir.path(), 1024));
    r.recv(recv, vec![0; 4096], 1);
    let mut out = Outgoing::default();
    out.push(vec![7; 64 << 20]);
    assert!(matches!(r.send(send, out, 2), Sent::Later));
    for i in 0..64_u32 {
        r.write(file, u64::from(i) * 16 * BLOCK as u64, vec![pattern(16, 5)], 100 + i);
    }
    r.turn(Some(Span(0))).unwrap();
    let t = Instant::now();
    drop(r);
    assert!(t.elapsed() < Duration::from_secs(5));
    assert!(b.write_all(&[1; 16]).is_err() || b.read(&mut [0; 1]).unwrap() == 0, "nobody receives any more");
    // A write that had not begun may have been cancelled; none goes on.
    let read = || std::fs::read(dir.path().join("drive")).unwrap();
    let before = read();
    for write in before.chunks(16 * BLOCK).take(64) {
        assert!(write == pattern(16, 5).bytes() || write.iter().all(|b| *b == 0));
    }
    std::thread::sleep(Duration::from_millis(50));
    assert!(before == read(), "nothing is written after the ring has gone");
}

#[test]
fn an_idle_ring_sleeps_until_its_time_or_an_event() {
    let mut r = ring();
    // SAFETY: a system call without pointers; the result is checked and owned at once.
    let e = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    assert!(e >= 0);
    // SAFETY: a new descriptor that nobody else owns.
    let owned = unsafe { OwnedFd::from_raw_fd(e) };
    let mut other = std::fs::File::from(owned.try_clone().unwrap());
    let fd = r.add(owned);
    r.event(fd, 5);
    let t = Instant::now();
    r.turn(Some(Span::millis(50))).unwrap();
    assert!(t.elapsed() >= Duration::from_millis(50) && r.completion().is_none());
    let enters = r.enters;
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        other.write_all(&1_u64.to_ne_bytes()).unwrap();
    });
    r.turn(None).unwrap();
    assert!(matches!(r.completion(), Some(Done { tag: 5, outcome: Outcome::Event })));
    assert_eq!(r.enters, enters + 1, "one system call slept all the time");
}

#[test]
fn where_there_is_no_ring_the_error_says_why() {
    let refused = || Err(io::Error::from_raw_os_error(libc::EPERM));
    let Err(e) = Ring::<u32>::build(refused, || Some(2)) else { panic!("it cannot be built") };
    assert!(e.to_string().contains("sysctl kernel.io_uring_disabled=0"), "{e}");
}
