//! The log of a run: one line per event, in the order in which the generator knew it.
//!
//! ```text
//! R <unix ns> <run> <size>      a run begins; all later times are ns since then
//! C <t>                         connected
//! S <t> <seq> <off> <len> <fua> a write is about to be sent
//! A <t> <seq>                   it is acknowledged
//! E <t> <seq> <errno>           it failed: unknown
//! F <t> <n>                     a flush is about to be sent
//! D <t> <n>                     it is done
//! X <t> <n> <errno>             it failed
//! L <t>                         the connection is lost: all that is unanswered is unknown
//! Z <t>                         the run ended by itself
//! ```
//!
//! Several runs may share a log. The last line of a run that was killed may be cut off.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

const HEAD: &str = "blockd-load 1";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    Run { unix_ns: u64, run: u64, size: u64 },
    Connected,
    Sent { sequence: u64, offset: u64, len: u64, fua: bool },
    Acknowledged { sequence: u64 },
    Failed { sequence: u64, errno: u64 },
    FlushSent { number: u64 },
    FlushDone { number: u64 },
    FlushFailed { number: u64, errno: u64 },
    Lost,
    End,
}

/// Appends to a log. What is noted reaches the kernel with `sync`, and so survives this process.
pub struct Writer {
    file: File,
    buffer: Vec<u8>,
    start: Instant,
}

impl Writer {
    /// Opens or makes the log and begins a run in it.
    pub fn begin(path: &Path, run: u64, size: u64) -> io::Result<Writer> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut buffer = Vec::new();
        let len = file.metadata()?.len();
        if len == 0 {
            buffer.extend_from_slice(format!("{HEAD}\n").as_bytes());
        } else {
            let mut last = [0];
            file.seek(SeekFrom::Start(len - 1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                // Spoiled, so that a number that was cut is not taken for a shorter one.
                buffer.extend_from_slice(b"~\n");
            }
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ns = u64::try_from(since.as_nanos()).unwrap_or(0);
        buffer.extend_from_slice(format!("R {unix_ns} {run:x} {size}\n").as_bytes());
        let mut writer = Writer { file, buffer, start: Instant::now() };
        writer.sync()?;
        Ok(writer)
    }
    pub fn note(&mut self, line: Line) {
        let t = self.start.elapsed().as_nanos();
        let b = &mut self.buffer;
        let written = match line {
            Line::Run { .. } => unreachable!("written by begin"),
            Line::Connected => writeln!(b, "C {t}"),
            Line::Sent { sequence, offset, len, fua } => {
                writeln!(b, "S {t} {sequence} {offset} {len} {}", u8::from(fua))
            }
            Line::Acknowledged { sequence } => writeln!(b, "A {t} {sequence}"),
            Line::Failed { sequence, errno } => writeln!(b, "E {t} {sequence} {errno}"),
            Line::FlushSent { number } => writeln!(b, "F {t} {number}"),
            Line::FlushDone { number } => writeln!(b, "D {t} {number}"),
            Line::FlushFailed { number, errno } => writeln!(b, "X {t} {number} {errno}"),
            Line::Lost => writeln!(b, "L {t}"),
            Line::End => writeln!(b, "Z {t}"),
        };
        written.expect("memory takes all bytes");
    }
    /// Hands everything noted to the kernel.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("this is no log of load")]
    NotALog,
    #[error("line {0} of the log makes no sense")]
    Line(u64),
}

/// Reads a log to its end, handing out each line with its number.
pub fn read(path: &Path, mut each: impl FnMut(u64, Line)) -> Result<(), LogError> {
    let mut input = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut text = String::new();
    input.read_line(&mut text)?;
    if text.trim_end() != HEAD {
        return Err(LogError::NotALog);
    }
    let mut number = 1;
    // A line that makes no sense is one that a killed run cut off, if a new run or the end follows.
    let mut cut = None;
    loop {
        text.clear();
        if input.read_line(&mut text)? == 0 {
            return Ok(());
        }
        number += 1;
        let whole = text.ends_with('\n');
        let line = if whole { parse(text.trim_end()) } else { None };
        match (line, cut) {
            (Some(line), None) => each(number, line),
            (Some(line @ Line::Run { .. }), Some(_)) => {
                cut = None;
                each(number, line);
            }
            (_, Some(bad)) => return Err(LogError::Line(bad)),
            (None, None) => cut = Some(number),
        }
    }
}

fn parse(text: &str) -> Option<Line> {
    let mut words = text.split(' ');
    let kind = words.next()?;
    if kind == "R" {
        let unix_ns = words.next()?.parse().ok()?;
        let run = u64::from_str_radix(words.next()?, 16).ok()?;
        let size = words.next()?.parse().ok()?;
        return words.next().is_none().then_some(Line::Run { unix_ns, run, size });
    }
    let mut number = || words.next()?.parse::<u64>().ok();
    number()?; // the time is for people and plots
    let line = match kind {
        "C" => Line::Connected,
        "S" => Line::Sent { sequence: number()?, offset: number()?, len: number()?, fua: number()? != 0 },
        "A" => Line::Acknowledged { sequence: number()? },
        "E" => Line::Failed { sequence: number()?, errno: number()? },
        "F" => Line::FlushSent { number: number()? },
        "D" => Line::FlushDone { number: number()? },
        "X" => Line::FlushFailed { number: number()?, errno: number()? },
        "L" => Line::Lost,
        "Z" => Line::End,
        _ => return None,
    };
    words.next().is_none().then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(path: &Path) -> Result<Vec<Line>, LogError> {
        let mut lines = Vec::new();
        read(path, |_, line| lines.push(line)).map(|()| lines)
    }

    #[test]
    fn what_is_noted_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let lines = [
            Line::Connected,
            Line::Sent { sequence: 1, offset: 4096, len: 8192, fua: true },
            Line::FlushSent { number: 1 },
            Line::Acknowledged { sequence: 1 },
            Line::Failed { sequence: 2, errno: 5 },
            Line::FlushDone { number: 1 },
            Line::FlushFailed { number: 2, errno: 5 },
            Line::Lost,
            Line::End,
        ];
        let mut w = Writer::begin(&path, 0xabc, 1 << 20).unwrap();
        lines.iter().for_each(|l| w.note(*l));
        w.sync().unwrap();
        let got = all(&path).unwrap();
        assert!(matches!(got[0], Line::Run { run: 0xabc, size: 1_048_576, .. }));
        assert_eq!(got[1..], lines);
    }

    #[test]
    fn a_cut_line_is_forgiven_at_the_end_of_a_run_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let write = |text: &str| std::fs::write(&path, format!("{HEAD}\nR 1 a 4096\n{text}")).unwrap();
        write("S 5 1 0 4096 0\nA 6");
        assert_eq!(all(&path).unwrap().len(), 2);
        let mut again = Writer::begin(&path, 0xb, 4096).unwrap();
        again.note(Line::End);
        again.sync().unwrap();
        assert_eq!(all(&path).unwrap().len(), 4);
        write("S 5 1 0 40\nA 6 1\n");
        assert!(matches!(all(&path), Err(LogError::Line(3))));
        write("A 6 1 1\nA 6 1\n");
        assert!(matches!(all(&path), Err(LogError::Line(3))));
        std::fs::write(&path, "something else\n").unwrap();
        assert!(matches!(all(&path), Err(LogError::NotALog)));
    }

    #[test]
    fn a_number_that_was_cut_is_not_taken_for_a_shorter_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, format!("{HEAD}\nR 1 a 4096\nS 5 12 0 4096 0\nA 6 1")).unwrap();
        assert_eq!(all(&path).unwrap().len(), 2);
        // A new run's line end behind it makes it look whole: it must not count either.
        Writer::begin(&path, 0xb, 4096).unwrap();
        let lines = all(&path).unwrap();
        assert!(!lines.contains(&Line::Acknowledged { sequence: 1 }), "{lines:?}");
    }
}
