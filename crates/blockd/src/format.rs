//! Makes a drive ours: carries the store's plan out. Never over something that is there already, unless told to.

use crate::device::{self, Access, DeviceError, Drive, signature};
use crate::sys;
use proto::limits::BLOCK;
use proto::{ClusterId, DriveId, NodeId, PageBuf};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::disk::superblock::{self, Superblock};
use store::event::Failure;
use store::format::{FormatParams, FormatStep};
use store::layout::{Layout, LayoutError, SUPERBLOCK_PAGES};

/// Bytes of both superblocks, which stand at the start of a drive.
const SUPERBLOCKS: u64 = 2 * SUPERBLOCK_PAGES * BLOCK as u64;
/// Pages zeroed by one write.
const ZERO_AT_ONCE: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: is not there. {}", .tool.new_file())]
    NoSize { path: PathBuf, tool: Tool },
    #[error("{path}: holds {what}. Nothing was changed. To destroy it: {}", .tool.force())]
    Occupied { path: PathBuf, what: String, tool: Tool },
    #[error("{path}: {source}, this one has {size}")]
    Layout { path: PathBuf, size: u64, source: LayoutError },
}

/// By what the operator asks for it: remedies name its own options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tool {
    Blockctl,
    BlockdFormat,
}

impl Tool {
    const fn force(self) -> &'static str {
        match self {
            Tool::Blockctl => "blockctl drive add --force=REASON",
            Tool::BlockdFormat => "blockd-format --force",
        }
    }
    const fn new_file(self) -> &'static str {
        match self {
            Tool::Blockctl => {
                "To make a file that is a drive: blockd-format --size 10GiB, then drive add --no-format"
            }
            Tool::BlockdFormat => "A new file needs its size: blockd-format --size 10GiB",
        }
    }
}

/// What to format with.
#[derive(Clone, Debug)]
pub struct Wish {
    pub tool: Tool,
    pub cluster: ClusterId,
    pub node: NodeId,
    /// Bytes; for a file that is not there yet.
    pub size: Option<u64>,
    /// A file takes all its space now, and its journal is written once: no allocation later.
    pub preallocate: bool,
    /// Over whatever is there.
    pub force: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Formatted {
    pub drive: DriveId,
    /// Bytes.
    pub size: u64,
    pub journal: u64,
    pub extents: u32,
}

/// Formats the drive at `path`.
pub fn format(path: &Path, wish: &Wish) -> Result<Formatted, FormatError> {
    let failed = |source| FormatError::Io { path: path.into(), source };
    if !path.try_exists().map_err(failed)? {
        let size = wish.size.ok_or_else(|| FormatError::NoSize { path: path.into(), tool: wish.tool })?;
        layout(path, size)?;
        device::create_file(path, size, wish.preallocate).map_err(failed)?;
    }
    let drive = device::open(path, Access::ReadWrite, Duration::from_secs(1))?;
    let size = drive.size;
    let layout = layout(path, size)?;
    let file = File::from(drive.fd);
    if !wish.force
        && let Some(what) = occupant(&file, size).map_err(failed)?
    {
        return Err(FormatError::Occupied { path: path.into(), what, tool: wish.tool });
    }
    let id = DriveId(sys::random().map_err(failed)?);
    let params = FormatParams { size, cluster: wish.cluster, node: wish.node, drive: id, journal: None };
    let steps =
        store::format(&params).map_err(|source| FormatError::Layout { path: path.into(), size, source })?;
    for step in steps {
        carry_out(&file, step).map_err(failed)?;
    }
    let journal = layout.journal_pages * BLOCK as u64;
    Ok(Formatted { drive: id, size, journal, extents: layout.extents })
}

fn layout(path: &Path, size: u64) -> Result<Layout, FormatError> {
    Layout::plan(size, None).map_err(|source| FormatError::Layout { path: path.into(), size, source })
}

/// What is there already.
fn occupant(file: &File, size: u64) -> io::Result<Option<String>> {
    if size >= SUPERBLOCKS
        && let Ok(found) = read_superblock(file)?
    {
        let cluster = crate::config::show_cluster(found.cluster);
        return Ok(Some(format!(
            "a blockd drive ({}) of node {} in cluster {cluster}",
            found.drive, found.node
        )));
    }
    Ok(signature::find(file, size)?.map(String::from))
}

/// The drive's superblock, the newer of the two.
pub fn read_superblock(file: &File) -> io::Result<Result<Superblock, Failure>> {
    let pages = usize::try_from(SUPERBLOCK_PAGES).expect("a few");
    let mut copies = [PageBuf::zeroed(pages), PageBuf::zeroed(pages)];
    for (slot, copy) in (0_u8..).zip(&mut copies) {
        file.read_exact_at(copy.bytes_mut(), Layout::superblock(slot))?;
    }
    Ok(superblock::newest([copies[0].bytes(), copies[1].bytes()]).map(|(_, s)| s))
}

/// Why a drive's superblock was not found.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path}: has {size} bytes, less than the {SUPERBLOCKS} that a drive begins with: it was cut off, or never was a \
         drive. Nothing was changed. If it was one, restore it from where it lies whole; what it held is on the other \
         replicas, too: then format it anew (blockctl drive add; as a file: blockd-format --size)"
    )]
    Cut { path: PathBuf, size: u64 },
    #[error("{path}: {source}. {}", remedy(.source))]
    Bad { path: PathBuf, source: Failure },
}

/// What an operator does about a drive that cannot be opened, or has failed.
#[must_use]
pub fn remedy(failure: &Failure) -> &'static str {
    match failure {
        Failure::NoSuperblock | Failure::Foreign(_) => {
            "Nothing was changed. To make it a drive of this node: blockctl drive add (over what is there: \
             --force=REASON), or blockd-format"
        }
        Failure::Shrunk { .. } => "Nothing was changed: give it its size back",
        Failure::Version(_) => {
            "Nothing was changed: the version of blockd that wrote it reads it; a drive that is formatted anew (blockctl drive \
             add --force=REASON) gets its replicas from the others"
        }
        Failure::Twin => {
            "The one that was open first goes on serving. Take the copy away, or format it anew: blockctl drive add --force=REASON"
        }
        Failure::Features(_) => {
            "Nothing was changed: run the version of blockd that wrote it, or a newer one"
        }
        Failure::JournalLost | Failure::TableLost(_) => {
            "What it held cannot be trusted any more; the other replicas have it. Replace it, or format it anew: \
             blockctl drive add --force=REASON"
        }
        Failure::Io { .. } | Failure::Flush { .. } => {
            "See the kernel's log. When the device is well again: blockctl drive add --no-format; else replace it"
        }
    }
}

/// The same of a drive that is open already.
pub fn superblock_of(drive: &Drive) -> Result<Superblock, SuperblockError> {
    let path = || drive.path.clone();
    if drive.size < SUPERBLOCKS {
        return Err(SuperblockError::Cut { path: path(), size: drive.size });
    }
    let read = || read_superblock(&File::from(drive.fd.try_clone()?));
    let found = read().map_err(|source| SuperblockError::Io { path: path(), source })?;
    found.map_err(|source| SuperblockError::Bad { path: path(), source })
}

/// Zeroes are written, in a file too: a journal write must never have to find room in a file system first, which is
/// slow and can fail.
fn carry_out(file: &File, step: FormatStep) -> io::Result<()> {
    match step {
        FormatStep::Zero { offset, length } => write_zeroes(file, offset, length),
        FormatStep::Write { offset, bytes } => file.write_all_at(bytes.bytes(), offset),
        FormatStep::Flush => file.sync_data(),
    }
}

fn write_zeroes(file: &File, mut offset: u64, length: u64) -> io::Result<()> {
    let zeroes = PageBuf::zeroed(ZERO_AT_ONCE);
    let end = offset + length;
    while offset < end {
        let n = usize::try_from(end - offset).map_or(zeroes.bytes().len(), |n| n.min(zeroes.bytes().len()));
        file.write_all_at(&zeroes.bytes()[..n], offset)?;
        offset += n as u64;
    }
    Ok(())
}

/// `10GiB`, `10G`, `10Gi` (binary), `10GB` (decimal), or bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| format!("\"{text}\" is no size, as 10GiB is"))?;
    let unit = text[digits..].trim();
    let power = match unit.chars().next().map(|c| c.to_ascii_uppercase()) {
        None => return Ok(number),
        Some('B') if unit.len() == 1 => return Ok(number),
        Some('K') => 1,
        Some('M') => 2,
        Some('G') => 3,
        Some('T') => 4,
        _ => return Err(format!("\"{unit}\" is no unit: K, M, G, T with iB, i or B")),
    };
    let base: u64 = match unit[1..].to_ascii_lowercase().as_str() {
        "" | "i" | "ib" => 1024,
        "b" => 1000,
        _ => return Err(format!("\"{unit}\" is no unit: K, M, G, T with iB, i or B")),
    };
    number.checked_mul(base.pow(power)).ok_or_else(|| format!("{text} is too much"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Wish {
        Wish {
            tool: Tool::Blockctl,
            cluster: ClusterId(7),
            node: NodeId(3),
            size: Some(256 << 20),
            preallocate: false,
            force: false,
        }
    }

    #[test]
    fn a_new_file_becomes_a_drive_whose_journal_is_written_and_that_is_not_formatted_again() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drive");
        let f = format(&path, &wish()).unwrap();
        assert_eq!((f.size, f.journal), (256 << 20, 64 << 20));
        let taken = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(
            (64 << 20..80 << 20).contains(&taken),
            "journal and tables are there, the rest is sparse: {taken}"
        );
        let drive = device::open(&path, Access::ReadOnly, Duration::ZERO).unwrap();
        let s = superblock_of(&drive).unwrap();
        assert_eq!((s.cluster, s.node, s.drive), (ClusterId(7), NodeId(3), f.drive));
        drop(drive);
        let again = format(&path, &wish()).unwrap_err().to_string();
        assert!(
            again.contains("To destroy it: blockctl drive add --force=REASON")
                && again.contains("holds a blockd drive")
                && again.contains("of node n3 in cluster 0"),
            "{again}"
        );
        let by_hand = format(&path, &Wish { tool: Tool::BlockdFormat, ..wish() }).unwrap_err().to_string();
        assert!(by_hand.ends_with("To destroy it: blockd-format --force"), "{by_hand}");
        let forced = format(&path, &Wish { force: true, ..wish() }).unwrap();
        assert_ne!(forced.drive, f.drive);
    }

    #[test]
    fn a_file_system_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let mut bytes = vec![0; 256 << 20];
        bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
        std::fs::write(&path, &bytes).unwrap();
        let e = format(&path, &wish()).unwrap_err().to_string();
        assert!(e.contains("holds an ext2, ext3 or ext4 file system. Nothing was changed"), "{e}");
        assert!(std::fs::read(&path).unwrap() == bytes);
    }

    #[test]
    fn a_drive_in_use_or_too_small_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drive");
        let small = Wish { size: Some(1 << 20), ..wish() };
        assert!(matches!(format(&path, &small), Err(FormatError::Layout { .. })));
        assert!(!path.exists(), "and not made");
        assert!(matches!(format(&path, &Wish { size: None, ..wish() }), Err(FormatError::NoSize { .. })));
        format(&path, &wish()).unwrap();
        let _held = device::open(&path, Access::ReadWrite, Duration::ZERO).unwrap();
        let forced = format(&path, &Wish { force: true, ..wish() });
        assert!(matches!(forced, Err(FormatError::Device(DeviceError::InUse { .. }))));
    }

    #[test]
    fn a_drive_that_was_cut_off_is_told_by_its_size_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drive");
        format(&path, &wish()).unwrap();
        for size in [0, 4096, 100_000] {
            std::fs::File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
            let drive = device::open(&path, Access::ReadOnly, Duration::ZERO).unwrap();
            let e = superblock_of(&drive).unwrap_err().to_string();
            let has = format!("drive: has {} bytes, less than the 131072", size / 4096 * 4096);
            assert!(e.contains(&has) && e.contains("blockctl drive add"), "{e}");
            let e = crate::inspect::inspect(&drive).unwrap_err().to_string();
            assert!(e.contains(&has), "{e}");
        }
        // Longer than that, and yet shorter than it was: the superblock knows.
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let drive = device::open(&path, Access::ReadOnly, Duration::ZERO).unwrap();
        let e = superblock_of(&drive).unwrap_err().to_string();
        assert!(e.contains("not a blockd drive: no superblock. Nothing was changed."), "{e}");
    }

    #[test]
    fn sizes_are_binary_unless_they_say_otherwise() {
        for (text, want) in [
            ("4096", 4096),
            ("10GiB", 10 << 30),
            ("10G", 10 << 30),
            ("2Ki", 2048),
            ("1MB", 1_000_000),
            ("7b", 7),
        ] {
            assert_eq!(parse_size(text), Ok(want), "{text}");
        }
        for bad in ["", "G", "1X", "1Gx", "99999999T", "-1"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
