//! `snapshot export`: a snapshot as a stream (docs/stream-format.md).
//!
//! A file is written only if it is new, or goes on with `--resume`; what a failure leaves can go on.

use super::diff::deleted;
use super::input::{refused, runs};
use super::progress::Progress;
use super::{BLOCK, Cluster, Ranges, changed, comparable, nbd_failed, windows};
use crate::cli::args::SnapshotName;
use crate::cli::context::hex;
use crate::cli::error::{CliError, exit};
use crate::cli::output::{Output, bytes};
use crate::nbd_client::{Client, Error};
use api::v1;
use nbd::client::{Command, Outcome};
use nbd::wire::allocation;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use stream::{Begin, Good, Item, Point, Reader, Writer};

/// Bytes of one read, and of one frame.
const READ: u64 = stream::PAYLOAD_MAX as u64;
/// Reads at once.
const DEPTH: usize = 8;
/// A read that takes longer failed.
const READ_WITHIN: Duration = Duration::from_secs(60);

pub fn run(
    cluster: &Cluster,
    name: &SnapshotName,
    from: Option<&SnapshotName>,
    output: &Path,
    resume: bool,
) -> Result<Output, CliError> {
    let to = cluster.snapshot(name)?;
    let from = from.map(|f| Ok::<_, CliError>((f, cluster.snapshot(f)?))).transpose()?;
    if let Some((f, a)) = &from {
        comparable((f, a), (name, &to))?;
    }
    let begin = described(cluster, name, &to, from.as_ref().map(|(_, a)| a))?;
    let pipe = output == Path::new("-");
    if pipe && resume {
        return Err(CliError::usage("a pipe cannot go on", "--resume goes with --output FILE"));
    }
    let mut sink = Sink::open(output, resume, &begin)?;
    let Some(writer) = sink.writer(&begin)? else {
        return Ok(done(name, output, "is whole already", &stream::End::default()));
    };
    let named: Vec<(&SnapshotName, &v1::Snapshot)> =
        [Some((name, &to)), from.as_ref().map(|(f, a)| (*f, a))].into_iter().flatten().collect();
    let result = Export::connect(cluster, &named, begin.size).and_then(|mut e| e.write(writer, &mut sink));
    let end = result.map_err(|e| {
        let mut e = if sink.broken { e } else { deleted(cluster, &named, e) };
        if !pipe && e.fix.is_empty() {
            e.fix = "go on with what is written: the same command with --resume".into();
        }
        e
    })?;
    Ok(if pipe { silent(name, &end) } else { done(name, output, "is written", &end) })
}

fn done(name: &SnapshotName, output: &Path, what: &str, end: &stream::End) -> Output {
    let file = output.display().to_string();
    let text = format!("{file} {what}: {name}, {} of data\n", bytes(end.data));
    let json = json!({
        "snapshot": name.to_string(), "file": file, "frames": end.frames, "data_bytes": end.data,
        "zero_bytes": end.zeroes,
    });
    Output::new("snapshot.export/1", json, text)
}

/// The stream is on the standard output: nothing else goes there.
fn silent(name: &SnapshotName, end: &stream::End) -> Output {
    eprintln!("{name} is written, {} of data", bytes(end.data));
    Output::silent()
}

fn described(
    cluster: &Cluster,
    name: &SnapshotName,
    to: &v1::Snapshot,
    from: Option<&v1::Snapshot>,
) -> Result<Begin, CliError> {
    if !to.size.is_multiple_of(BLOCK) {
        let message = format!("{name} has {} bytes: a stream has whole blocks of 4 KiB", to.size);
        return Err(CliError::new(
            1942,
            exit::STATE,
            message,
            "",
            "blockctl volume resize VOLUME --size SIZE",
        ));
    }
    let point = |s: &v1::Snapshot| Point {
        name: s.name.clone().unwrap_or_default().snapshot,
        id: hex(&s.id),
        created_ms: s.created_ms,
    };
    let chunk_bytes = cluster.volume(&name.volume)?.chunk_bytes;
    Ok(Begin {
        format: stream::FORMAT,
        requires: Vec::new(),
        cluster: cluster.name()?,
        volume: name.volume.clone(),
        size: to.size,
        chunk_shift: u8::try_from(chunk_bytes.trailing_zeros()).expect("at most 64"),
        from: from.map(point),
        to: point(to),
    })
}

// ---------------------------------------------------------------------- where it goes

enum Out {
    Pipe(std::io::Stdout),
    File(File),
}

struct Sink {
    out: Out,
    name: String,
    /// What is there of the stream already.
    good: Option<Good>,
    whole: bool,
    /// Writing failed: it is not the cluster's fault.
    broken: bool,
}

impl Sink {
    fn open(path: &Path, resume: bool, begin: &Begin) -> Result<Sink, CliError> {
        let name = path.display().to_string();
        let mut sink =
            Sink { out: Out::Pipe(std::io::stdout()), name, good: None, whole: false, broken: false };
        if path == Path::new("-") {
            return Ok(sink);
        }
        let mut how = File::options();
        let how = how.read(true).write(true);
        let opened = if resume {
            how.create(true).truncate(false).open(path)
        } else {
            how.create_new(true).open(path)
        };
        let mut file = opened.map_err(|e| {
            let mut failed = CliError::io(path.display(), &e);
            if e.kind() == std::io::ErrorKind::AlreadyExists {
                failed.fix = "go on with it by --resume, or name another file".into();
            }
            failed
        })?;
        if resume {
            (sink.good, sink.whole) = looked(&mut file, begin).map_err(|e| at(&sink.name, e))?;
            let keep = sink.good.map_or(0, |g| g.bytes);
            file.set_len(keep)
                .and_then(|()| file.seek(SeekFrom::Start(keep)))
                .map_err(|e| sink.failed(&e))?;
        }
        sink.out = Out::File(file);
        Ok(sink)
    }

    /// `None`: the stream is whole.
    fn writer(&mut self, begin: &Begin) -> Result<Option<Writer>, CliError> {
        if self.whole {
            return Ok(None);
        }
        if let Some(good) = &self.good {
            return Ok(Some(Writer::resume(begin, good)));
        }
        let mut bytes = Vec::new();
        let writer = Writer::begin(&mut bytes, begin);
        self.put(&mut bytes)?;
        Ok(Some(writer))
    }

    fn put(&mut self, bytes: &mut Vec<u8>) -> Result<(), CliError> {
        let written = match &mut self.out {
            Out::Pipe(p) => p.write_all(bytes),
            Out::File(f) => f.write_all(bytes),
        };
        bytes.clear();
        written.map_err(|e| self.failed(&e))
    }

    fn finish(&mut self) -> Result<(), CliError> {
        let done = match &mut self.out {
            Out::Pipe(p) => p.flush(),
            Out::File(f) => f.sync_all(),
        };
        done.map_err(|e| self.failed(&e))
    }

    fn failed(&mut self, e: &std::io::Error) -> CliError {
        self.broken = true;
        CliError::io(&self.name, e)
    }
}

fn at(name: &str, mut e: CliError) -> CliError {
    e.message = format!("{name}: {}", e.message);
    e
}

/// How far a file is the beginning of this very stream; and whether it is all of it.
fn looked(file: &mut File, begin: &Begin) -> Result<(Option<Good>, bool), CliError> {
    let mut reader = Reader::new();
    let mut buffer = vec![0; 1 << 20];
    let (mut any, mut same, mut whole) = (false, false, false);
    loop {
        let n = file.read(&mut buffer).map_err(|e| CliError::io("reading it", &e))?;
        any |= n > 0;
        let mut input = &buffer[..n];
        let broken = loop {
            match reader.next(&mut input) {
                Ok(Some(Item::Begin(b))) if *b == *begin => same = true,
                Ok(Some(Item::Begin(_))) => {
                    let cause = "the file is the beginning of another one";
                    let message = "this is not the stream to go on with";
                    return Err(CliError::new(1941, exit::CONFLICT, message, cause, "name another file"));
                }
                Ok(Some(Item::End(_))) => whole = true,
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(e) => break Some(e),
            }
        };
        match broken {
            // What is no stream at all is not written over.
            Some(e) if !same => return Err(refused(&e)),
            Some(_) => break,
            None if n == 0 => break,
            None => {}
        }
    }
    let good = reader.good();
    Ok((Some(good).filter(|_| any && same), whole))
}

// ---------------------------------------------------------------------- what goes

struct Export {
    name: String,
    size: u64,
    data: Client,
    changed: Option<Client>,
}

impl Export {
    /// The snapshot, and the one that it is compared with.
    fn connect(
        cluster: &Cluster,
        named: &[(&SnapshotName, &v1::Snapshot)],
        size: u64,
    ) -> Result<Export, CliError> {
        let name = named[0].0.to_string();
        let data = cluster.connect(&name)?;
        let changed =
            named.get(1).map(|(from, _)| cluster.connect_since(&name, &from.snapshot)).transpose()?;
        cluster.unchanged(named)?;
        Ok(Export { name, size, data, changed })
    }

    fn write(&mut self, mut writer: Writer, sink: &mut Sink) -> Result<stream::End, CliError> {
        let mut progress = Progress::new("export");
        let mut out = Vec::new();
        let before = writer.position();
        for (offset, len) in windows(self.size).filter(|(offset, len)| offset + len > before) {
            let mut told = Ranges::default();
            told.push(offset, len);
            let mut holes = Ranges::default();
            let mut at = offset;
            for e in self.data.map(offset, len).map_err(|e| nbd_failed(&self.name, &e))? {
                if e.flags & u64::from(allocation::ZERO) != 0 {
                    holes.push(at, e.len);
                }
                at += e.len;
            }
            match &mut self.changed {
                Some(c) => told = changed(c, &self.name, offset, len)?,
                // What a full stream does not name is zero.
                None => told = told.without(&holes),
            }
            if before > offset {
                let mut had = Ranges::default();
                had.push(offset, before - offset);
                told = told.without(&had);
            }
            for piece in pieces(&told, &holes).chunks(DEPTH) {
                for (offset, what) in self.fetch(piece)? {
                    put(&mut writer, &mut out, offset, &what);
                    if out.len() > 4 << 20 {
                        sink.put(&mut out)?;
                    }
                }
                sink.put(&mut out)?;
                progress.say(writer.position(), self.size, writer.told().data);
            }
        }
        let told = writer.told();
        writer.end(&mut out);
        sink.put(&mut out)?;
        sink.finish()?;
        Ok(told)
    }

    /// The content of some pieces, in order.
    fn fetch(&mut self, pieces: &[Piece]) -> Result<BTreeMap<u64, Content>, CliError> {
        let mut asked = BTreeMap::new();
        let mut found = BTreeMap::new();
        for p in pieces {
            if p.hole {
                found.insert(p.offset, Content::Zero(p.len));
            } else {
                let len = u32::try_from(p.len).expect("at most 1 MiB");
                asked.insert(
                    self.data.submit(Command::Read { offset: p.offset, len, whole: false }),
                    p.offset,
                );
            }
        }
        let failed = |e: Error| nbd_failed(&self.name, &e);
        self.data.send().map_err(failed)?;
        let until = Instant::now() + READ_WITHIN;
        while !asked.is_empty() {
            let (cookie, result) =
                self.data.next(until).map_err(failed)?.ok_or(Error::Timeout).map_err(failed)?;
            let Outcome::Read(bytes) = result.map_err(|e| failed(Error::Request(e)))? else {
                unreachable!("a read gives data")
            };
            let offset = asked.remove(&cookie).expect("it was asked");
            found.insert(offset, Content::Data(bytes));
        }
        Ok(found)
    }
}

enum Content {
    Zero(u64),
    Data(Vec<u8>),
}

fn put(writer: &mut Writer, out: &mut Vec<u8>, offset: u64, content: &Content) {
    match content {
        Content::Zero(len) => writer.zero(out, offset, *len),
        Content::Data(bytes) => {
            let mut at = 0;
            for (len, zero) in runs(bytes) {
                let place = offset + at as u64;
                if zero {
                    writer.zero(out, place, len as u64);
                } else {
                    writer.data(out, place, &bytes[at..at + len]);
                }
                at += len;
            }
        }
    }
}

/// Told at once: zeroes of any length, or data of at most 1 MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    offset: u64,
    len: u64,
    hole: bool,
}

fn pieces(told: &Ranges, holes: &Ranges) -> Vec<Piece> {
    let zero = told.and(holes);
    let mut all: Vec<Piece> = zero.iter().map(|(offset, len)| Piece { offset, len, hole: true }).collect();
    for (mut offset, len) in told.without(holes).iter() {
        let end = offset + len;
        while offset < end {
            // At the same places, wherever it begins.
            let stop = ((offset / READ + 1) * READ).min(end);
            all.push(Piece { offset, len: stop - offset, hole: false });
            offset = stop;
        }
    }
    all.sort_by_key(|p| p.offset);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_told_in_order_and_split_at_the_same_places() {
        let (mut told, mut holes) = (Ranges::default(), Ranges::default());
        told.push(READ - 4096, 3 * READ);
        holes.push(0, READ);
        holes.push(2 * READ, 8192);
        let all: Vec<_> = pieces(&told, &holes).iter().map(|p| (p.offset, p.len, p.hole)).collect();
        assert_eq!(
            all,
            [
                (READ - 4096, 4096, true),
                (READ, READ, false),
                (2 * READ, 8192, true),
                (2 * READ + 8192, READ - 8192, false),
                (3 * READ, READ - 4096, false),
            ]
        );
    }

    #[test]
    fn a_cut_file_goes_on_after_its_last_whole_frame_and_ends_as_if_it_had_not_been_cut() {
        let point = Point { name: "s".into(), id: "0".repeat(32), created_ms: 1 };
        let begin = Begin {
            format: stream::FORMAT,
            requires: vec![],
            cluster: "lab".into(),
            volume: "v".into(),
            size: 1 << 24,
            chunk_shift: 28,
            from: None,
            to: point,
        };
        let fill = |w: Writer, out: &mut Vec<u8>| {
            let mut w = w;
            for i in (w.position() / 8192)..20 {
                w.data(out, i * 8192, &[u8::try_from(i).unwrap(); 4096]);
                w.zero(out, i * 8192 + 4096, 4096);
            }
            w.end(out);
        };
        let mut whole = vec![];
        let w = Writer::begin(&mut whole, &begin);
        fill(w, &mut whole);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let resumed = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Sink::open(&path, true, &begin)
        };
        for cut in (0..whole.len()).step_by(7) {
            let mut sink = resumed(&whole[..cut]).unwrap();
            let mut w = sink.writer(&begin).unwrap().unwrap();
            let mut out = vec![];
            // the second half of a pair
            if w.position() % 8192 != 0 {
                let at = w.position();
                w.zero(&mut out, at, 4096);
            }
            fill(w, &mut out);
            sink.put(&mut out).unwrap();
            assert!(std::fs::read(&path).unwrap() == whole, "cut at {cut}");
        }
        assert!(resumed(&whole).unwrap().writer(&begin).unwrap().is_none(), "nothing is left to do");
        // not over what is something else
        assert_eq!(resumed(b"something else altogether").err().unwrap().code, 1941);
        assert_eq!(std::fs::read(&path).unwrap(), b"something else altogether");
        std::fs::write(&path, &whole).unwrap();
        let other = Begin { volume: "w".into(), ..begin.clone() };
        assert_eq!(Sink::open(&path, true, &other).err().unwrap().exit, exit::CONFLICT);
        assert!(Sink::open(&path, false, &begin).err().unwrap().fix.contains("--resume"));
        assert!(std::fs::read(&path).unwrap() == whole);
    }
}
