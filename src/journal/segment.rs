//! Segments: the journal's files, their names and heads, and the folder that has one process.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::OpenError;

/// What a segment begins with.
const MAGIC: [u8; 8] = *b"alchemiJ";

/// The layout of segments and records. A file of a later one is left alone.
const FORMAT: u16 = 1;

/// Magic, format, number, boot, checksum.
pub(super) const HEAD: usize = 8 + 2 + 8 + BOOT + 4;

/// Length of the kernel's id of the present boot.
const BOOT: usize = 36;

/// One run of the kernel: what a process that was killed has written is there until it ends.
pub(super) type Boot = [u8; BOOT];

/// The present one; zeros where the system does not tell.
pub(super) fn boot() -> Boot {
    let mut boot = [0; BOOT];
    let told = File::open("/proc/sys/kernel/random/boot_id").and_then(|mut file| file.read_exact(&mut boot));
    if told.is_err() {
        boot = [0; BOOT];
    }
    boot
}

/// What a file's first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// A segment of ours, written during that boot.
    Own(Boot),
    /// A segment of a later format.
    Newer(u16),
    /// Cut short or damaged, or not ours at all: the records tell.
    Unreadable,
}

pub(super) fn head(number: u64, boot: &Boot) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD);
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&FORMAT.to_le_bytes());
    head.extend_from_slice(&number.to_le_bytes());
    head.extend_from_slice(boot);
    let crc = crc32c::crc32c(&head);
    head.extend_from_slice(&crc.to_le_bytes());
    head
}

/// The head of every format, also of those to come, is laid out like this.
pub(super) fn read_head(bytes: &[u8]) -> Head {
    let own = || {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (format, rest) = rest.split_first_chunk::<2>()?;
        let (_number, rest) = rest.split_first_chunk::<8>()?;
        let (boot, rest) = rest.split_first_chunk::<BOOT>()?;
        let (crc, _) = rest.split_first_chunk::<4>()?;
        let whole = crc32c::crc32c(bytes.get(..HEAD - 4)?) == u32::from_le_bytes(*crc);
        (*magic == MAGIC && whole).then_some((u16::from_le_bytes(*format), *boot))
    };
    match own() {
        Some((format, boot)) if format <= FORMAT => Head::Own(boot),
        Some((format, _)) => Head::Newer(format),
        None => Head::Unreadable,
    }
}

/// `0000000000000001.journal`
pub(super) fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:016x}.journal"))
}

/// The number in a file's name, if it is a segment's.
fn number(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".journal")?;
    (name.len() == 16).then(|| u64::from_str_radix(name, 16).ok())?
}

/// The folder's segments, oldest first.
pub(super) fn list(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        found.extend(number(&path).map(|number| (number, path)));
    }
    found.sort_unstable();
    Ok(found)
}

/// Makes the next segment.
pub(super) fn create(folder: &Path, number: u64, boot: &Boot) -> io::Result<(File, PathBuf)> {
    let path = path(folder, number);
    let mut options = File::options();
    options.append(true).read(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&path)?;
    if let Err(error) = file.write_all(&head(number, boot)) {
        let _ = std::fs::remove_file(&path);
        return Err(error);
    }
    Ok((file, path))
}

/// The folder, made if need be, for this process alone for as long as the file lives.
pub(super) fn lock(folder: &Path) -> Result<File, OpenError> {
    let failed = |reason| OpenError::Folder { folder: folder.to_owned(), reason };
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder).map_err(failed)?;
    let path = folder.join("lock");
    let mut file = File::options().create(true).read(true).append(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = file.read_to_string(&mut owner);
            return Err(OpenError::InUse { folder: folder.to_owned(), owner: owner.trim().to_owned() });
        }
        Err(TryLockError::Error(reason)) => return Err(failed(reason)),
    }
    // Who has it, for whom it is refused; on a full disk it remains unsaid.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "process {}", std::process::id()));
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_back_and_every_flipped_bit_of_it_is_noticed() {
        let boot = [b'b'; BOOT];
        let bytes = head(7, &boot);
        assert_eq!(bytes.len(), HEAD);
        assert_eq!(read_head(&bytes), Head::Own(boot));
        for cut in 0..HEAD {
            assert_eq!(read_head(&bytes[..cut]), Head::Unreadable, "cut at {cut}");
        }
        for bit in 0..HEAD * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(read_head(&bytes), Head::Own(boot), "bit {bit}");
        }
        let mut newer = bytes;
        newer[8] = 2;
        assert_eq!(read_head(&newer), Head::Unreadable, "a bit that flipped");
        let crc = crc32c::crc32c(&newer[..HEAD - 4]);
        newer[HEAD - 4..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(read_head(&newer), Head::Newer(2));
    }

    #[test]
    fn only_segments_are_listed_and_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["0000000000000010.journal", "000000000000000f.journal", "lock", "x.journal", "10.journal"] {
            std::fs::write(folder.path().join(name), b"").unwrap();
        }
        let numbers: Vec<_> = list(folder.path()).unwrap().into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, [15, 16]);
    }

    #[test]
    fn a_folder_has_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(folder.path()).unwrap();
        let refused = lock(folder.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(held);
        lock(folder.path()).unwrap();
    }
}
