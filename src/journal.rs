//! A journal on the local disk: what was begun is known after the process is gone.
//!
//! An *entry* is begun with one record and finished with another; both are bytes of the
//! owner's, who [releases](Journal::release) the entry when it is safe elsewhere. What is
//! not released when the process ends is there for the next one ([`Recovery`]).
//!
//! ```text
//! begin ──write(2)──▶ segment ──fdatasync, grouped──▶ disk
//! finish ─▶ buffer ──with the next begin, or 5 ms later──▶ segment
//! release ─▶ segments that nobody needs are removed
//! ```
//!
//! **What is safe when.** When [`Journal::begin`] returns, the kernel has the record: it is
//! there whatever becomes of the process. A finishing record waits for the next begin or
//! for the flusher: a process that is killed loses at most 5 ms of those, and what they
//! finish then looks unfinished, which the owner reads as the dearer case. Against the
//! power going away, [`Fsync`] says how much: `group` loses at most 10 ms, `always` makes
//! [`Journal::synced`] wait, `off` leaves it to the system. A process knows after a crash
//! whether the kernel has run since ([`Recovery::is_complete`]).
//!
//! **Files.** Segments are numbered and only ever appended to; a process begins a new one at
//! its start and never writes to an earlier one's. Each record has its own checksum, so that
//! damage costs what is damaged ([`record`]). A segment whose entries are all released goes;
//! an entry that lasts is written again into the present segment, so that it keeps no old
//! one. What is of a later format, or not ours, is reported and stays.
//!
//! **A disk that is full or fails.** `journal.on_error` says whether an entry is then refused
//! or goes on in memory alone. Half a record is cut off again. After a failed fsync nothing of
//! that file is trusted: what began in it and is not over is written again in another (PostgreSQL's
//! lesson, <https://wiki.postgresql.org/wiki/Fsync_Errors>).
//!
//! **Why not a crate.** Tried with records of 450 bytes on one thread, release build, on the
//! machine of benches/README.md, µs per record: one `write(2)` with a CRC32C 1.4, commitlog
//! 0.2.0 1.7, raft-engine 0.4.2 3.3 without and 183 with a sync, okaywal 0.3.1 102 (each commit
//! is synced). okaywal cannot do without the sync, and raft-engine is a key-value engine with
//! tables of its own. In none of the three does one record keep its segment, or move to
//! another, by itself, which is what entries need that end in any order. The framing here is a
//! hundred lines; the checksum (`crc32c`) and the table of entries (`slab`) are crates.
//!
//! **One lock, and nobody woken.** The record is made before the lock is taken, and under it
//! there is one `write(2)`. The flusher looks after the buffer on a timer of its own while there
//! is work; only the first entry after a second without any wakes it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use tokio::sync::watch;

mod flusher;
pub mod record;
mod recovery;
mod segment;
mod writer;

pub use record::{Kind, Record};
pub use recovery::{Contents, Damage, Recovered, Recovery};

use flusher::Flusher;
use writer::{Key, Writer};

/// When records reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fsync {
    /// Before the entry's owner goes on.
    Always,
    /// Every 10 ms, beside the owners.
    #[default]
    Group,
    /// When the system likes.
    Off,
}

/// What becomes of entries that the disk does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// They are refused.
    #[default]
    Refuse,
    /// They are in memory alone, and are gone with the process.
    Memory,
}

/// How the journal is kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalConfig {
    /// `always`, `group` or `off`.
    pub fsync: Fsync,
    /// `refuse` or `memory`.
    pub on_error: OnError,
    /// Most bytes on the disk; beyond them entries are what `on_error` says.
    pub max_bytes: u64,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { fsync: Fsync::Group, on_error: OnError::Refuse, max_bytes: 1 << 30 }
    }
}

/// Why there is no journal.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the folder.
    #[error("the journal in {} is in use by {owner}: give each gateway a folder of its own", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// The process, as it noted itself.
        owner: String,
    },
    /// The folder cannot be used.
    #[error("the journal in {} cannot be kept: {reason}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
}

/// Why an entry was not written down.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// `journal.max_bytes` are on the disk.
    #[error("the journal has as many bytes as journal.max_bytes allows")]
    Full,
    /// The payload is longer than a mebibyte.
    #[error("a record for the journal is too long")]
    TooLong,
    /// The disk does not take it.
    #[error("the journal cannot be written: {0}")]
    Disk(#[from] std::io::Error),
    /// The disk did not keep it.
    #[error("the journal cannot be synced")]
    Unsynced,
}

/// An entry that was begun. Dropped without being released, it stays for the next process.
#[derive(Debug, Default)]
#[must_use = "an entry that is not released stays in the journal"]
pub struct Entry {
    /// None: it is in memory alone.
    key: Option<Key>,
    written: u64,
}

impl Entry {
    /// Whether the journal has it, rather than memory alone.
    pub fn is_written(&self) -> bool {
        self.key.is_some()
    }
}

/// What the journal has and has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Segments.
    pub segments: u64,
    /// Entries that are not released.
    pub entries: u64,
    /// Segments of earlier processes that stay.
    pub left: u64,
    /// Entries begun.
    pub begun: u64,
    /// Writes and syncs that failed.
    pub errors: u64,
    /// Times that the disk was told to keep what was written.
    pub syncs: u64,
    /// How long that took altogether, in microseconds.
    pub sync_micros: u64,
    /// The longest of the last ones, in microseconds.
    pub slowest_sync_micros: u64,
}

/// The journal; cheap to clone.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Handle>);

/// Ends the flusher with the last clone.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    flusher: Flusher,
}

#[derive(Debug)]
struct Shared {
    writer: Mutex<Writer>,
    version: u8,
    fsync: Fsync,
    on_error: OnError,
    synced: watch::Sender<Synced>,
    closing: AtomicBool,
    begun: AtomicU64,
    left: AtomicU64,
    errors: AtomicU64,
    syncs: AtomicU64,
    sync_micros: AtomicU64,
    slowest_sync_micros: AtomicU64,
    /// Goes with the process.
    _lock: std::fs::File,
}

/// Up to where the disk has what was written.
#[derive(Debug, Clone, Copy, Default)]
struct Synced {
    up_to: u64,
    /// What was written up to here, and is not below `up_to`, is not safe.
    broken: u64,
}

thread_local! {
    /// Where a record is made before the lock is taken.
    static RECORD: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(1024));
}

impl Journal {
    /// Opens the journal in `folder`, which is made if need be, for this process alone; gives
    /// what earlier ones left there. Payloads are of `version`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(folder: &Path, config: &JournalConfig, version: u8) -> Result<(Self, Recovery), OpenError> {
        let (shared, recovery) = Shared::open(folder, config, version)?;
        let shared = Arc::new(shared);
        let flusher = Flusher::start(Arc::clone(&shared))
            .map_err(|reason| OpenError::Folder { folder: folder.to_owned(), reason })?;
        Ok((Self(Arc::new(Handle { shared, flusher })), recovery))
    }

    /// Begins an entry with the bytes that `payload` appends. When this returns, they are there
    /// after the process is gone.
    ///
    /// # Errors
    /// [`JournalError`], unless `journal.on_error` is `memory`.
    pub fn begin(&self, payload: impl FnOnce(&mut Vec<u8>)) -> Result<Entry, JournalError> {
        let shared = &*self.0.shared;
        let begun = shared.with_record(Kind::Begin, payload, |writer, record| {
            let key = writer.begin(record)?;
            let wake = std::mem::replace(&mut writer.idle, false);
            Ok((Entry { key: Some(key), written: writer.written }, wake))
        });
        match begun {
            Ok((entry, wake)) => {
                shared.begun.fetch_add(1, Ordering::Relaxed);
                if wake || shared.fsync == Fsync::Always {
                    self.0.flusher.wake();
                }
                Ok(entry)
            }
            Err(error) => {
                shared.failed(&error);
                if shared.on_error == OnError::Memory { Ok(Entry::default()) } else { Err(error) }
            }
        }
    }

    /// Waits until the disk has the entry's beginning, where that is wanted.
    ///
    /// # Errors
    /// [`JournalError::Unsynced`], unless `journal.on_error` is `memory`.
    pub async fn synced(&self, entry: &Entry) -> Result<(), JournalError> {
        let shared = &*self.0.shared;
        if shared.fsync != Fsync::Always || entry.key.is_none() {
            return Ok(());
        }
        let mut synced = shared.synced.subscribe();
        let told = synced.wait_for(|synced| synced.up_to >= entry.written || synced.broken >= entry.written).await;
        let safe = told.is_ok_and(|synced| synced.broken < entry.written);
        if safe || shared.on_error == OnError::Memory { Ok(()) } else { Err(JournalError::Unsynced) }
    }

    /// Finishes an entry with the bytes that `payload` appends, within 5 ms. On a disk that takes
    /// nothing it waits; beyond 8 MiB of such, the entry looks unfinished to a later process.
    pub fn finish(&self, entry: &Entry, payload: impl FnOnce(&mut Vec<u8>)) {
        let Some(key) = entry.key else { return };
        let shared = &*self.0.shared;
        let finished = shared.with_record(Kind::Finish, payload, |writer, record| {
            let wake = std::mem::replace(&mut writer.idle, false);
            if writer.finish(key, record) { Ok(wake) } else { Err(JournalError::Full) }
        });
        match finished {
            Ok(true) => self.0.flusher.wake(),
            Ok(false) => {}
            Err(error) => shared.failed(&error),
        }
    }

    /// Forgets entries that are safe elsewhere, and removes segments that nobody needs any more.
    pub fn release(&self, entries: impl IntoIterator<Item = Entry>) {
        let unneeded = {
            let mut writer = self.0.shared.writer();
            writer.release(entries.into_iter().filter_map(|entry| entry.key));
            writer.take_unneeded(false)
        };
        self.0.shared.remove(&unneeded);
    }

    /// Whether entries that the disk does not take go on in memory alone.
    pub fn goes_on_in_memory(&self) -> bool {
        self.0.shared.on_error == OnError::Memory
    }

    /// Notes something about this process in every segment.
    ///
    /// # Errors
    /// [`JournalError`]; the next segment has it.
    pub fn note(&self, note: &[u8]) -> Result<(), JournalError> {
        self.0.shared.writer().note(note).inspect_err(|error| self.0.shared.failed(error))
    }

    /// Counts segments of earlier processes that their owner could not read altogether.
    pub fn leaves(&self, segments: usize) {
        self.0.shared.left.store(segments as u64, Ordering::Relaxed);
    }

    /// What it has and has done.
    pub fn counts(&self) -> Counts {
        let shared = &*self.0.shared;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut counts = Counts {
            begun: of(&shared.begun),
            left: of(&shared.left),
            errors: of(&shared.errors),
            syncs: of(&shared.syncs),
            sync_micros: of(&shared.sync_micros),
            slowest_sync_micros: of(&shared.slowest_sync_micros),
            ..Counts::default()
        };
        shared.writer().count(&mut counts);
        counts
    }

    /// Gives everything to the disk and ends the flusher; what was released altogether is gone
    /// afterwards. Nothing is begun any more.
    pub fn close(&self) {
        self.0.flusher.stop(&self.0.shared);
        let unneeded = self.0.shared.writer().take_unneeded(true);
        self.0.shared.remove(&unneeded);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.flusher.stop(&self.shared);
    }
}

impl Shared {
    fn open(folder: &Path, config: &JournalConfig, version: u8) -> Result<(Self, Recovery), OpenError> {
        let failed = |reason| OpenError::Folder { folder: folder.to_owned(), reason };
        let lock = segment::lock(folder)?;
        let boot = segment::boot();
        let recovery = Recovery::of(folder, &boot).map_err(failed)?;
        let writer = Writer::new(
            folder.to_owned(),
            boot,
            version,
            (config.max_bytes, config.fsync != Fsync::Off),
            recovery.next,
        );
        let shared = Self {
            writer: Mutex::new(writer),
            version,
            fsync: config.fsync,
            on_error: config.on_error,
            synced: watch::Sender::default(),
            closing: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            left: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            sync_micros: AtomicU64::new(0),
            slowest_sync_micros: AtomicU64::new(0),
            _lock: lock,
        };
        Ok((shared, recovery))
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_record<T>(
        &self,
        kind: Kind,
        payload: impl FnOnce(&mut Vec<u8>),
        write: impl FnOnce(&mut Writer, &[u8]) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        RECORD.with_borrow_mut(|record| {
            record.clear();
            if !record::write(record, kind, self.version, payload) {
                return Err(JournalError::TooLong);
            }
            write(&mut self.writer(), record)
        })
    }

    /// Counts a failure; the first, and each thousandth, is told.
    fn failed(&self, error: &JournalError) {
        let errors = self.errors.fetch_add(1, Ordering::Relaxed);
        if errors.is_multiple_of(1_000) {
            tracing::error!(error = error as &dyn std::error::Error, errors = errors + 1, "the journal fails");
        }
    }

    fn remove(&self, segments: &[PathBuf]) {
        for path in segments {
            if let Err(error) = std::fs::remove_file(path) {
                // It is read again at the next start, which changes nothing.
                tracing::warn!(file = %path.display(), %error, "a segment of the journal cannot be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests;
