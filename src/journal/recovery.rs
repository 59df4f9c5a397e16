//! What earlier processes left in the folder.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::record::{self, Found, Record};
use super::segment::{self, Boot, Head};

/// Segments that were there when the journal was opened, oldest first.
#[derive(Debug, Default)]
pub struct Recovery {
    segments: Vec<Recovered>,
    /// Files that stay unread.
    unread: usize,
    /// The next segment's number.
    pub(super) next: u64,
}

/// A segment of an earlier process.
#[derive(Debug)]
pub struct Recovered {
    path: PathBuf,
    /// Whether the kernel that took its last record still runs: then nothing that a process
    /// was told is written can be missing.
    same_boot: bool,
    /// Where its records begin.
    head: usize,
}

/// What is in a segment.
#[derive(Debug)]
pub struct Contents {
    bytes: Vec<u8>,
    head: usize,
}

/// What is wrong with a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Damage {
    /// Bytes between whole records.
    pub damaged: usize,
    /// Bytes after the last whole record.
    pub torn: usize,
    /// Records whose payload is of a later version.
    pub newer: usize,
}

impl Recovery {
    /// Looks at the folder's files. What is of a later format, or of no format of ours, stays as
    /// it is and is reported; so is what the system cannot read.
    pub(super) fn of(folder: &Path, boot: &Boot) -> io::Result<Self> {
        let mut recovery = Self { segments: Vec::new(), unread: 0, next: 1 };
        for (number, path) in segment::list(folder)? {
            recovery.next = recovery.next.max(number.saturating_add(1));
            match Recovered::of(path.clone(), boot) {
                Ok(Some(recovered)) => recovery.segments.push(recovered),
                Ok(None) => recovery.unread += 1,
                Err(error) => {
                    recovery.unread += 1;
                    tracing::error!(file = %path.display(), %error, "a segment of the journal cannot be read and stays");
                }
            }
        }
        Ok(recovery)
    }

    /// The segments, oldest first.
    pub fn segments(&self) -> &[Recovered] {
        &self.segments
    }

    /// Whether the kernel kept everything: it has run since every segment was written, and none
    /// stays unread.
    pub fn is_complete(&self) -> bool {
        self.unread == 0 && self.segments.iter().all(|segment| segment.same_boot)
    }

    /// Files of a later format, of none of ours, or that the system cannot read.
    pub fn unread(&self) -> usize {
        self.unread
    }

    /// Removes the segments, once all that is in them is somewhere else, but for those that `stay`.
    ///
    /// # Errors
    /// When a file cannot be removed: the last such error, after the others are gone. It will be read again.
    pub fn remove(self, stay: &[PathBuf]) -> io::Result<()> {
        let mut done = Ok(());
        for segment in self.segments.iter().filter(|segment| !stay.contains(&segment.path)) {
            if let Err(error) = std::fs::remove_file(&segment.path) {
                done = Err(error);
            }
        }
        done
    }
}

impl Recovered {
    /// None: it is not ours to read.
    fn of(path: PathBuf, boot: &Boot) -> io::Result<Option<Self>> {
        let mut bytes = Vec::with_capacity(segment::HEAD);
        std::fs::File::open(&path)?.take(segment::HEAD as u64).read_to_end(&mut bytes)?;
        let file = path.display();
        let (same_boot, head) = match segment::read_head(&bytes) {
            // Zeros: the system does not tell which boot it is.
            Head::Own(written) => (written == *boot && written.iter().any(|byte| *byte != 0), segment::HEAD),
            Head::Newer(format) => {
                tracing::error!(%file, format, "a segment of the journal was written by a later version and stays as it is");
                return Ok(None);
            }
            // Made a moment before the end of the process.
            Head::Unreadable if bytes.len() < segment::HEAD => (true, bytes.len()),
            Head::Unreadable if records(&std::fs::read(&path)?).next().is_some() => {
                tracing::error!(%file, "the head of a segment of the journal is damaged; its records are read");
                (false, 0)
            }
            Head::Unreadable => {
                tracing::error!(%file, "a file in the journal's folder is no segment and stays as it is");
                return Ok(None);
            }
        };
        Ok(Some(Self { path, same_boot, head }))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the system cannot.
    pub fn contents(&self) -> io::Result<Contents> {
        Ok(Contents { bytes: std::fs::read(&self.path)?, head: self.head })
    }
}

impl Contents {
    /// The records in their order, those alone whose payload is of `version` or earlier.
    pub fn records(&self, version: u8) -> impl Iterator<Item = Record<'_>> {
        records(self.body()).filter(move |record| record.version <= version)
    }

    /// What is not among them.
    pub fn damage(&self, version: u8) -> Damage {
        let mut damage = Damage::default();
        for found in record::read(self.body()) {
            match found {
                Found::Record(record) => damage.newer += usize::from(record.version > version),
                // The head, where it is damaged, is no record.
                Found::Damaged { at: 0, length } if self.head == 0 && length == segment::HEAD => {}
                Found::Damaged { length, .. } => damage.damaged += length,
                Found::Torn { length, .. } => damage.torn += length,
            }
        }
        damage
    }

    fn body(&self) -> &[u8] {
        self.bytes.get(self.head..).unwrap_or_default()
    }
}

fn records(bytes: &[u8]) -> impl Iterator<Item = Record<'_>> {
    record::read(bytes).filter_map(|found| match found {
        Found::Record(record) => Some(record),
        Found::Damaged { .. } | Found::Torn { .. } => None,
    })
}

impl Damage {
    /// Whether a record that was acknowledged may be lost.
    pub fn loses(&self) -> bool {
        self.damaged > 0 || self.newer > 0
    }
}
