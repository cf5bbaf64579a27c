//! What lies on a drive already, so that nothing is formatted over by mistake.

use proto::PageBuf;
use proto::limits::BLOCK;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes looked at, from the start.
const HEAD: usize = 256 << 10;
/// Bytes in which data of an unknown kind counts.
const UNKNOWN: usize = 64 << 10;

struct Magic {
    name: &'static str,
    at: usize,
    bytes: &'static [u8],
}

const fn magic(name: &'static str, at: usize, bytes: &'static [u8]) -> Magic {
    Magic { name, at, bytes }
}

/// The more special first: a boot sector's mark is on several of them.
const MAGICS: &[Magic] = &[
    magic("an ext2, ext3 or ext4 file system", 1080, &[0x53, 0xef]),
    magic("an xfs file system", 0, b"XFSB"),
    magic("a btrfs file system", 0x1_0040, b"_BHRfS_M"),
    magic("an f2fs file system", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    magic("a squashfs file system", 0, b"hsqs"),
    magic("an ISO 9660 file system", 32_769, b"CD001"),
    magic("an NTFS file system", 3, b"NTFS    "),
    magic("an exFAT file system", 3, b"EXFAT   "),
    magic("a FAT file system", 54, b"FAT1"),
    magic("a FAT file system", 82, b"FAT32"),
    magic("swap space", 4086, b"SWAPSPACE2"),
    magic("a blockd drive", 0, b"BLOCKDSB"),
    magic("a blockd drive", 16 * BLOCK, b"BLOCKDSB"),
    magic("an LVM physical volume", 0, b"LABELONE"),
    magic("an LVM physical volume", 512, b"LABELONE"),
    magic("an LVM physical volume", 1024, b"LABELONE"),
    magic("an LVM physical volume", 1536, b"LABELONE"),
    magic("a LUKS container", 0, b"LUKS\xba\xbe"),
    magic("a LUKS container", 16_384, b"SKUL\xba\xbe"),
    magic("a member of a Linux RAID", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    magic("a member of a Linux RAID", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    magic("a bcache or bcachefs device", 4096 + 24, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca]),
    magic("a ZFS member", 128 << 10, &[0x0c, 0xb1, 0xba, 0]),
    magic("a Ceph BlueStore device", 0, b"bluestore block device"),
    magic("a qcow2 image", 0, b"QFI\xfb"),
    magic("a GPT partition table", 512, b"EFI PART"),
    magic("a GPT partition table", 4096, b"EFI PART"),
    magic("an MBR partition table or boot sector", 510, &[0x55, 0xaa]),
];

/// What is on the drive, in words; none if it looks empty. `size` in bytes, whole blocks.
pub fn find(file: &File, size: u64) -> io::Result<Option<&'static str>> {
    // Whole, aligned pages: the file may be open by O_DIRECT.
    let mut head = PageBuf::zeroed(HEAD.min(usize::try_from(size).unwrap_or(HEAD)) / BLOCK);
    file.read_exact_at(head.bytes_mut(), 0)?;
    if let Some(name) = in_head(head.bytes()) {
        return Ok(Some(name));
    }
    let mut tail = PageBuf::zeroed(1);
    file.read_exact_at(tail.bytes_mut(), size - BLOCK as u64)?;
    let backup = [BLOCK - 512, 0].iter().any(|at| tail.bytes()[*at..].starts_with(b"EFI PART"));
    Ok(backup.then_some("the backup of a GPT partition table"))
}

fn in_head(head: &[u8]) -> Option<&'static str> {
    let known = MAGICS.iter().find(|m| head.get(m.at..m.at + m.bytes.len()) == Some(m.bytes));
    let unknown =
        || head[..UNKNOWN.min(head.len())].iter().any(|b| *b != 0).then_some("data of an unknown kind");
    known.map(|m| m.name).or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_magic_is_found_under_its_name() {
        for m in MAGICS {
            let mut head = vec![0; HEAD];
            head[m.at..m.at + m.bytes.len()].copy_from_slice(m.bytes);
            assert_eq!(in_head(&head), Some(m.name));
        }
        assert_eq!(in_head(&vec![0; HEAD]), None);
        assert_eq!(in_head(&[0, 0, 7]), Some("data of an unknown kind"));
    }

    #[test]
    fn the_backup_table_at_the_end_is_found_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("drive");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(2 << 20).unwrap();
        assert_eq!(find(&file, 2 << 20).unwrap(), None);
        file.write_all_at(b"EFI PART", (2 << 20) - 512).unwrap();
        assert_eq!(find(&file, 2 << 20).unwrap(), Some("the backup of a GPT partition table"));
    }
}
