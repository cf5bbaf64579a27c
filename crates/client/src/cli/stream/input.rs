//! A stream that is read twice: first to the end, to be checked, then to be applied. A pipe is kept in a temporary file
//! without a name.

use super::{BLOCK, Ranges, interrupt, unhex};
use crate::cli::error::{CliError, exit};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use stream::{Begin, Item, Reader, StreamError};

/// Read at once.
const PIECE: usize = 1 << 20;

/// What was read to its end, and is good.
pub struct Checked {
    file: File,
    pub begin: Begin,
    /// All that it tells of.
    pub ranges: Ranges,
}

pub fn refused(e: &StreamError) -> CliError {
    let message = format!("the stream is refused: {e}");
    CliError::new(1941, exit::FAILURE, message, "nothing was made of it", "export it again")
}

impl Checked {
    pub fn open(path: &Path) -> Result<Checked, CliError> {
        if path == Path::new("-") {
            return Checked::of(spooled(&mut std::io::stdin().lock())?);
        }
        let failed = |e| CliError::io(path.display(), &e);
        let mut file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_file() {
            return Checked::of(file);
        }
        Checked::of(spooled(&mut file)?)
    }

    fn of(mut file: File) -> Result<Checked, CliError> {
        let mut begin = None;
        let mut ranges = Ranges::default();
        items(&mut file, |item| {
            match item {
                Item::Begin(b) => begin = Some(*b),
                Item::Data { offset, bytes } => ranges.push(offset, bytes.len() as u64),
                Item::Zero { offset, length } => ranges.push(offset, length),
                Item::End(_) => {}
            }
            Ok(())
        })?;
        let begin: Begin = begin.expect("a whole stream has one");
        let ids = [Some(&begin.to), begin.from.as_ref()];
        if ids.into_iter().flatten().any(|p| unhex(&p.id).is_none()) || !(12..64).contains(&begin.chunk_shift)
        {
            return Err(refused(&StreamError::Malformed(0, "an id or a size of chunks that cannot be")));
        }
        Ok(Checked { file, begin, ranges })
    }

    /// Its content once more. A file that was changed meanwhile is refused where it is wrong.
    pub fn items(&mut self, each: impl FnMut(Item) -> Result<(), CliError>) -> Result<(), CliError> {
        items(&mut self.file, each)
    }
}

fn items(file: &mut File, mut each: impl FnMut(Item) -> Result<(), CliError>) -> Result<(), CliError> {
    let failed = |e| CliError::io("the stream", &e);
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut reader = Reader::new();
    let mut buffer = vec![0; PIECE];
    loop {
        let n = file.read(&mut buffer).map_err(failed)?;
        if n == 0 {
            return reader.finish().map_err(|e| refused(&e));
        }
        let mut input = &buffer[..n];
        while let Some(item) = reader.next(&mut input).map_err(|e| refused(&e))? {
            each(item)?;
        }
        interrupt::check()?;
    }
}

/// A copy of what comes, in a file that goes with this process.
fn spooled(input: &mut dyn Read) -> Result<File, CliError> {
    let path = std::env::temp_dir().join(format!("blockctl-{}.stream", std::process::id()));
    let failed = |e| CliError::io(path.display(), &e);
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
    std::fs::remove_file(&path).map_err(failed)?;
    std::io::copy(input, &mut file).map_err(failed)?;
    Ok(file)
}

/// The runs of blocks that are all zero and not, of these bytes: (length, is zero). Short runs of zeroes are told as data.
pub fn runs(bytes: &[u8]) -> Vec<(usize, bool)> {
    const SHORT: usize = 64 << 10;
    let block = usize::try_from(BLOCK).expect("small");
    let mut runs: Vec<(usize, bool)> = Vec::new();
    for b in bytes.chunks(block) {
        let zero = b.iter().all(|x| *x == 0);
        match runs.last_mut() {
            Some((len, was)) if *was == zero => *len += b.len(),
            _ => runs.push((b.len(), zero)),
        }
    }
    let mut joined: Vec<(usize, bool)> = Vec::new();
    let alone = runs.len() == 1;
    for (len, zero) in runs {
        let zero = zero && (len >= SHORT || alone);
        match joined.last_mut() {
            Some((had, was)) if *was == zero => *had += len,
            _ => joined.push((len, zero)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use stream::{Point, Writer};

    fn sample() -> Vec<u8> {
        let point = |n: u8| Point { name: "s".into(), id: format!("{n:032x}"), created_ms: 1 };
        let begin = Begin {
            format: stream::FORMAT,
            requires: vec![],
            cluster: "lab".into(),
            volume: "v".into(),
            size: 1 << 20,
            chunk_shift: 28,
            from: Some(point(1)),
            to: point(2),
        };
        let mut out = vec![];
        let mut w = Writer::begin(&mut out, &begin);
        w.data(&mut out, 4096, &[7; 8192]);
        w.zero(&mut out, 12_288, 4096);
        w.data(&mut out, 65_536, &[9; 4096]);
        w.end(&mut out);
        out
    }

    fn open(bytes: &[u8]) -> Result<Checked, CliError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        File::create(&path).unwrap().write_all(bytes).unwrap();
        Checked::open(&path)
    }

    #[test]
    fn a_stream_is_read_twice_and_one_that_is_not_whole_never() {
        let bytes = sample();
        let mut c = open(&bytes).unwrap();
        assert_eq!(c.ranges.iter().collect::<Vec<_>>(), [(4096, 12_288), (65_536, 4096)]);
        let mut count = 0;
        c.items(|_| {
            count += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!((count, c.begin.to.id.as_str()), (5, "00000000000000000000000000000002"));
        for cut in 0..bytes.len() {
            assert_eq!(open(&bytes[..cut]).err().unwrap().code, 1941);
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_eq!(open(&flipped).err().unwrap().code, 1941, "byte {at}");
        }
    }

    #[test]
    fn a_pipe_is_kept_in_a_file() {
        let mut f = spooled(&mut &b"abc"[..]).unwrap();
        f.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        f.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
    }

    #[test]
    fn long_runs_of_zeroes_are_told_as_such() {
        assert_eq!(runs(&[0; 4096]), [(4096, true)]);
        let mut bytes = vec![1; 4096];
        bytes.extend(vec![0; 4096]);
        bytes.extend(vec![1; 4096]);
        assert_eq!(runs(&bytes), [(12_288, false)]);
        bytes.extend(vec![0; 65_536]);
        assert_eq!(runs(&bytes), [(12_288, false), (65_536, true)]);
    }
}
