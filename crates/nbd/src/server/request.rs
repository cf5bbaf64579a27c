//! A request's header: decoded, then admitted or rejected. The error rules live here and nowhere else.

use crate::export::Export;
use crate::wire::{self, Errno, Mode, Reader, cflag, cmd};
use proto::limits::{REQUEST_MAX, SECTOR};

/// A header as it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
}

impl Header {
    pub fn size(mode: Mode) -> usize {
        if mode == Mode::Extended { wire::EXTENDED_REQUEST_LEN } else { wire::COMPACT_REQUEST_LEN }
    }
    /// `None` if the magic number is wrong: nothing after it can be trusted.
    pub fn decode(mode: Mode, bytes: &[u8]) -> Option<Header> {
        let extended = mode == Mode::Extended;
        let mut r = Reader(bytes);
        if r.u32()? != if extended { wire::EXTENDED_REQUEST } else { wire::COMPACT_REQUEST } {
            return None;
        }
        Some(Header {
            flags: r.u16()?,
            command: r.u16()?,
            cookie: r.u64()?,
            offset: r.u64()?,
            length: if extended { r.u64()? } else { u64::from(r.u32()?) },
        })
    }
    /// Bytes that follow the header on the wire. A write always brings its data: extended headers demand that
    /// it says so by PAYLOAD_LEN, but QEMU (10.0 and before) does not, and its own server lets that pass.
    pub fn payload(&self, mode: Mode) -> u64 {
        let marked = mode == Mode::Extended && self.flags & cflag::PAYLOAD_LEN != 0;
        if marked || self.command == cmd::WRITE { self.length } else { 0 }
    }
}

/// A request that keeps all rules: aligned, within the export, of a bearable size, with known flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Admitted {
    Read {
        offset: u64,
        len: u32,
        whole: bool,
    },
    Write {
        offset: u64,
        len: u32,
        fua: bool,
    },
    Flush,
    Trim {
        offset: u64,
        len: u64,
        fua: bool,
    },
    Zeroes {
        offset: u64,
        len: u64,
        fua: bool,
        no_hole: bool,
    },
    Status {
        offset: u64,
        len: u64,
        one: bool,
    },
    /// Nothing to do: a cache hint, or a length of zero.
    Nothing {
        offset: u64,
    },
    Disconnect,
}

/// Why not, as the reply says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rejected {
    pub errno: Errno,
    pub why: &'static str,
}

const fn rejected(errno: Errno, why: &'static str) -> Rejected {
    Rejected { errno, why }
}

/// What is in force on a connection.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub mode: Mode,
    /// Some context was selected.
    pub contexts: bool,
    pub export: &'a Export,
}

impl Rules<'_> {
    /// Judges a header. The payload, if any, is consumed either way.
    pub fn admit(&self, h: &Header) -> Result<Admitted, Rejected> {
        if h.command == cmd::DISC {
            return Ok(Admitted::Disconnect);
        }
        self.check_flags(h)?;
        if h.command == cmd::FLUSH {
            return Ok(Admitted::Flush); // offset and length are reserved; a whole flush covers any part
        }
        self.check_range(h)?;
        let (offset, len) = (h.offset, h.length);
        let fua = h.flags & cflag::FUA != 0;
        if h.command == cmd::BLOCK_STATUS {
            if len == 0 {
                return Err(rejected(Errno::Invalid, "block status of nothing"));
            }
            return Ok(Admitted::Status { offset, len, one: h.flags & cflag::REQ_ONE != 0 });
        }
        match h.command {
            cmd::CACHE => Ok(Admitted::Nothing { offset }),
            cmd::TRIM if len > 0 => Ok(Admitted::Trim { offset, len, fua }),
            // Space is kept by writing zeroes as data: no faster than any other write.
            cmd::WRITE_ZEROES
                if h.flags & (cflag::NO_HOLE | cflag::FAST_ZERO) == cflag::NO_HOLE | cflag::FAST_ZERO =>
            {
                Err(rejected(Errno::NotSupported, "zeroes that keep their space are not fast"))
            }
            cmd::WRITE_ZEROES if len > 0 => {
                Ok(Admitted::Zeroes { offset, len, fua, no_hole: h.flags & cflag::NO_HOLE != 0 })
            }
            cmd::WRITE if len > 0 => {
                let too_long = rejected(Errno::Invalid, "write longer than 64 MiB");
                Ok(Admitted::Write { offset, len: bounded(len).ok_or(too_long)?, fua })
            }
            cmd::READ => {
                // Chunks could be split, memory could not: one answer is held at a time.
                let errno = if self.mode == Mode::Simple { Errno::Invalid } else { Errno::Overflow };
                let len = bounded(len).ok_or(rejected(errno, "read longer than 64 MiB"))?;
                Ok(Admitted::Read { offset, len, whole: h.flags & cflag::DF != 0 })
            }
            _ => Ok(Admitted::Nothing { offset }),
        }
    }

    /// Known command, known flags, and those valid for it. FUA is accepted on every command.
    fn check_flags(&self, h: &Header) -> Result<(), Rejected> {
        let structured = self.mode >= Mode::Structured;
        let mut allowed = cflag::FUA;
        match h.command {
            cmd::READ if structured => allowed |= cflag::DF,
            cmd::READ | cmd::FLUSH | cmd::TRIM | cmd::CACHE => {}
            cmd::WRITE if self.mode == Mode::Extended => allowed |= cflag::PAYLOAD_LEN,
            cmd::WRITE => {}
            cmd::WRITE_ZEROES => allowed |= cflag::NO_HOLE | cflag::FAST_ZERO,
            cmd::BLOCK_STATUS if self.contexts => allowed |= cflag::REQ_ONE,
            cmd::BLOCK_STATUS => {
                return Err(rejected(Errno::Invalid, "no meta context was negotiated"));
            }
            _ => return Err(rejected(Errno::Invalid, "unknown command")),
        }
        if h.flags & !allowed != 0 {
            return Err(rejected(Errno::Invalid, "unknown flag, or not for this command"));
        }
        if self.export.read_only && matches!(h.command, cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES) {
            return Err(rejected(Errno::Perm, "the export is read-only"));
        }
        Ok(())
    }

    fn check_range(&self, h: &Header) -> Result<(), Rejected> {
        let sector = SECTOR as u64;
        if !h.offset.is_multiple_of(sector) || !h.length.is_multiple_of(sector) {
            return Err(rejected(Errno::Invalid, "not aligned to 512 bytes"));
        }
        if h.offset.checked_add(h.length).is_none_or(|end| end > self.export.size) {
            let grows = matches!(h.command, cmd::WRITE | cmd::WRITE_ZEROES);
            let errno = if grows { Errno::NoSpace } else { Errno::Invalid };
            return Err(rejected(errno, "beyond the end of the export"));
        }
        Ok(())
    }
}

/// A length that one request may have in memory.
fn bounded(len: u64) -> Option<u32> {
    u32::try_from(len).ok().filter(|&l| l <= REQUEST_MAX)
}
