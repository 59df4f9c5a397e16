//! What is behind the journal's lock: the segment that is written, and which entries keep
//! which segments.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use slab::Slab;

use super::record::{self, Kind};
use super::segment::{self, Boot};
use super::{Counts, JournalError};

/// Most bytes of finishing records that wait for a disk which takes none.
const MOST_PENDING: usize = 8 << 20;

/// An entry that was begun and is not released.
#[derive(Debug)]
struct Slot {
    id: u64,
    /// Where its first record is.
    segment: u64,
    at: u64,
    length: usize,
    /// Where its last record is; none: it has not finished, or that is not written yet.
    finished_in: Option<u64>,
    finished: bool,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    path: PathBuf,
    file: Arc<File>,
    bytes: u64,
    /// Records in it that are needed still.
    pins: u64,
    /// Up to where the kernel had what was written when something was last carried over out of it.
    carried: u64,
    /// Its bytes may not be on the disk although the system said so: what is needed of it is
    /// written again.
    suspect: bool,
}

/// Which entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    slot: usize,
    id: u64,
}

#[derive(Debug)]
pub(super) struct Writer {
    folder: PathBuf,
    boot: Boot,
    version: u8,
    segment_bytes: u64,
    most_bytes: u64,
    next: u64,
    /// Oldest first.
    segments: VecDeque<Segment>,
    /// Whether the last of them takes more.
    open: bool,
    slots: Slab<Slot>,
    ids: u64,
    /// Records that the kernel does not have yet.
    buffer: Vec<u8>,
    /// Which entries they finish.
    pending: Vec<Key>,
    note: Vec<u8>,
    bytes: u64,
    /// Bytes that the kernel was ever given.
    pub(super) written: u64,
    /// Up to where the disk has what is needed; none: nobody asks it.
    safe: Option<u64>,
    /// Files that are to be synced beside the last one.
    rolled: Vec<Arc<File>>,
    folder_changed: bool,
    /// Nobody looks after the buffer until woken.
    pub(super) idle: bool,
}

/// What there is to sync.
#[derive(Debug)]
pub(super) struct Unsynced {
    pub(super) files: Vec<Arc<File>>,
    pub(super) folder: Option<PathBuf>,
    /// After it, all up to here is on the disk.
    pub(super) written: u64,
    /// Beside what is needed of segments that are distrusted.
    pub(super) doubts: bool,
}

impl Writer {
    /// `syncs`: somebody [takes](Self::take_unsynced) what is to be synced.
    pub(super) fn new(folder: PathBuf, boot: Boot, version: u8, (most_bytes, syncs): (u64, bool), next: u64) -> Self {
        Self {
            folder,
            boot,
            version,
            segment_bytes: (most_bytes / 16).clamp(64 << 10, 4 << 20),
            most_bytes,
            next,
            segments: VecDeque::new(),
            open: false,
            slots: Slab::new(),
            ids: 0,
            buffer: Vec::with_capacity(64 << 10),
            pending: Vec::new(),
            note: Vec::new(),
            bytes: 0,
            written: 0,
            safe: syncs.then_some(0),
            rolled: Vec::new(),
            folder_changed: false,
            idle: true,
        }
    }

    /// Writes a whole record that begins an entry.
    pub(super) fn begin(&mut self, record: &[u8]) -> Result<Key, JournalError> {
        let before = self.buffer.len();
        self.buffer.extend_from_slice(record);
        if let Err(error) = self.flush() {
            // Whatever else waited goes on waiting.
            self.buffer.truncate(before.min(self.buffer.len()));
            return Err(error);
        }
        self.ids += 1;
        let Some(segment) = self.segments.back_mut() else { return Err(JournalError::Full) };
        segment.pins += 1;
        let (id, length) = (self.ids, record.len());
        let at = segment.bytes.saturating_sub(length as u64);
        let slot = Slot { id, segment: segment.number, at, length, finished_in: None, finished: false };
        Ok(Key { slot: self.slots.insert(slot), id })
    }

    /// Takes a whole record that finishes an entry; [`flush`](Self::flush) gives it to the
    /// kernel. `false`: there is no room, and the entry looks unfinished to a later process.
    pub(super) fn finish(&mut self, key: Key, record: &[u8]) -> bool {
        let Some(slot) = self.slots.get_mut(key.slot).filter(|slot| slot.id == key.id) else { return false };
        slot.finished = true;
        if self.buffer.len() + record.len() > MOST_PENDING {
            return false;
        }
        self.buffer.extend_from_slice(record);
        self.pending.push(key);
        true
    }

    /// What is noted in every segment.
    pub(super) fn note(&mut self, note: &[u8]) -> Result<(), JournalError> {
        note.clone_into(&mut self.note);
        if self.open {
            record::write(&mut self.buffer, Kind::Note, self.version, |out| out.extend_from_slice(note));
            return self.flush();
        }
        Ok(())
    }

    /// Entries that nobody needs any more.
    pub(super) fn release(&mut self, keys: impl IntoIterator<Item = Key>) {
        for key in keys {
            if self.slots.get(key.slot).is_some_and(|slot| slot.id == key.id) {
                let slot = self.slots.remove(key.slot);
                self.unpin(slot.segment);
                if let Some(segment) = slot.finished_in {
                    self.unpin(segment);
                }
            }
        }
    }

    fn unpin(&mut self, number: u64) {
        if let Some(segment) = self.segment_mut(number) {
            segment.pins = segment.pins.saturating_sub(1);
        }
    }

    fn segment_mut(&mut self, number: u64) -> Option<&mut Segment> {
        self.segments.iter_mut().rev().find(|segment| segment.number == number)
    }

    /// Files that hold nothing which is needed, and of whose entries the disk has those elsewhere that were carried
    /// over; they are to be removed.
    pub(super) fn take_unneeded(&mut self, all: bool) -> Vec<PathBuf> {
        let last = self.segments.back().filter(|_| self.open && !all).map(|segment| segment.number);
        let mut paths = Vec::new();
        let (bytes, safe) = (&mut self.bytes, self.safe.unwrap_or(u64::MAX));
        self.segments.retain(|segment| {
            let keep = segment.pins > 0 || segment.carried > safe || Some(segment.number) == last;
            if !keep {
                *bytes = bytes.saturating_sub(segment.bytes);
                paths.push(segment.path.clone());
            }
            keep
        });
        self.open &= !self.segments.is_empty() && !all;
        paths
    }

    /// Gives the kernel what waits.
    pub(super) fn flush(&mut self) -> Result<(), JournalError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let length = self.buffer.len() as u64;
        let full = self.segments.back().is_none_or(|segment| segment.bytes + length > self.segment_bytes);
        if !self.open || full {
            self.roll(length)?;
        } else if self.bytes + length > self.most_bytes {
            return Err(JournalError::Full);
        }
        let Some(segment) = self.segments.back_mut() else { return Err(JournalError::Full) };
        if let Err(error) = (&*segment.file).write_all(&self.buffer) {
            // A part of it may be there. If it cannot be cut off, the next segment begins.
            self.open = segment.file.set_len(segment.bytes).is_ok();
            return Err(error.into());
        }
        segment.bytes += length;
        self.bytes += length;
        self.written += length;
        let number = segment.number;
        self.buffer.clear();
        for key in self.pending.drain(..) {
            if let Some(slot) = self.slots.get_mut(key.slot).filter(|slot| slot.id == key.id) {
                slot.finished_in = Some(number);
                segment.pins += 1;
            }
        }
        Ok(())
    }

    /// Begins the next segment.
    fn roll(&mut self, more: u64) -> Result<(), JournalError> {
        let mut note = Vec::new();
        record::write(&mut note, Kind::Note, self.version, |out| out.extend_from_slice(&self.note));
        let begun = segment::HEAD as u64 + note.len() as u64;
        if self.bytes + begun + more > self.most_bytes {
            return Err(JournalError::Full);
        }
        // Whatever becomes of the file, its name is used.
        let number = self.next;
        self.next += 1;
        let (mut file, path) = segment::create(&self.folder, number, &self.boot)?;
        if let Err(error) = file.write_all(&note) {
            let _ = std::fs::remove_file(&path);
            return Err(error.into());
        }
        if let Some(before) = self.segments.back().filter(|_| self.safe.is_some()) {
            self.rolled.push(Arc::clone(&before.file));
        }
        let file = Arc::new(file);
        self.segments.push_back(Segment { number, path, file, bytes: begun, pins: 0, carried: 0, suspect: false });
        self.bytes += begun;
        self.folder_changed = true;
        self.open = true;
        Ok(())
    }

    /// What the disk may not have yet.
    pub(super) fn take_unsynced(&mut self) -> Unsynced {
        let mut files = std::mem::take(&mut self.rolled);
        files.extend(self.segments.back().map(|segment| Arc::clone(&segment.file)));
        let folder = std::mem::take(&mut self.folder_changed).then(|| self.folder.clone());
        Unsynced { files, folder, written: self.written, doubts: self.doubts() }
    }

    /// The disk has all that is needed of what was written up to here.
    pub(super) fn is_safe(&mut self, up_to: u64) {
        self.safe = self.safe.map(|safe| safe.max(up_to));
    }

    /// Whether something that is needed stands in a segment which is distrusted, and nowhere after it yet.
    pub(super) fn doubts(&self) -> bool {
        self.segments.iter().any(|segment| segment.suspect && segment.pins > 0)
    }

    /// The disk did not take what it was told to keep. After that, a system may say of the
    /// same bytes that they are safe: they are written once more, in another segment.
    pub(super) fn distrust(&mut self) {
        self.segments.iter_mut().for_each(|segment| segment.suspect = true);
        self.open = false;
        self.folder_changed = true;
    }

    /// Writes what begins unfinished entries of old segments into the last one, so that one
    /// entry that lasts does not keep a segment; at most so many.
    pub(super) fn carry_over(&mut self, most: usize) -> Result<usize, JournalError> {
        if !self.open && self.doubts() {
            self.roll(0)?;
        }
        let Some(last) = self.segments.back().map(|segment| segment.number) else { return Ok(0) };
        let old = |segment: &&Segment| {
            segment.pins > 0 && segment.number < last && (segment.suspect || segment.number + 1 < last)
        };
        let old: Vec<(u64, Arc<File>)> =
            self.segments.iter().filter(old).map(|segment| (segment.number, Arc::clone(&segment.file))).collect();
        if old.is_empty() {
            return Ok(0);
        }
        let wanted = |slot: &Slot| !slot.finished && old.iter().any(|(number, _)| *number == slot.segment);
        let keys: Vec<usize> =
            self.slots.iter().filter(|(_, slot)| wanted(slot)).map(|(key, _)| key).take(most).collect();
        for key in &keys {
            self.carry(*key, &old)?;
        }
        Ok(keys.len())
    }

    fn carry(&mut self, key: usize, old: &[(u64, Arc<File>)]) -> Result<(), JournalError> {
        self.flush()?;
        let Some(slot) = self.slots.get(key) else { return Ok(()) };
        let Some((from, file)) = old.iter().find(|(number, _)| *number == slot.segment) else { return Ok(()) };
        let mut record = vec![0; slot.length];
        read_at(file, &mut record, slot.at)?;
        self.buffer.extend_from_slice(&record);
        if let Err(error) = self.flush() {
            self.buffer.clear();
            return Err(error);
        }
        let Some((number, end)) = self.segments.back_mut().map(|segment| {
            segment.pins += 1;
            (segment.number, segment.bytes)
        }) else {
            return Ok(());
        };
        if let Some(slot) = self.slots.get_mut(key) {
            slot.segment = number;
            slot.at = end.saturating_sub(record.len() as u64);
        }
        self.unpin(*from);
        let written = self.written;
        if let Some(segment) = self.segment_mut(*from) {
            segment.carried = written;
        }
        Ok(())
    }

    pub(super) fn waits(&self) -> bool {
        !self.buffer.is_empty()
    }

    pub(super) fn count(&self, counts: &mut Counts) {
        counts.bytes = self.bytes;
        counts.segments = self.segments.len() as u64;
        counts.entries = self.slots.len() as u64;
    }
}

#[cfg(test)]
impl Writer {
    /// How many files wait to be synced beside the last one.
    pub(super) fn rolled(&self) -> usize {
        self.rolled.len()
    }
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

/// What is appended is appended wherever the file was read.
#[cfg(not(unix))]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    use std::io::{Read as _, Seek as _};
    let mut file = file;
    file.seek(io::SeekFrom::Start(at))?;
    file.read_exact(bytes)
}
