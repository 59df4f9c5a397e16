//! The thread that writes what waits, syncs, and keeps old segments from being kept.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use super::writer::Unsynced;
use super::{Fsync, JournalError, Shared, Synced};

/// How long a finishing record waits at most.
const PAUSE: Duration = Duration::from_millis(5);

/// How often the disk is told to keep what was written.
const SYNC_EVERY: Duration = Duration::from_millis(10);

/// After how long without work the thread rests until it is woken.
const REST_AFTER: Duration = Duration::from_secs(1);

/// Entries that are carried over at once, under the lock.
const CARRIED: usize = 16;

#[derive(Debug)]
pub(super) struct Flusher {
    thread: Thread,
    joined: Mutex<Option<JoinHandle<()>>>,
}

impl Flusher {
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let running =
            std::thread::Builder::new().name("journal".to_owned()).spawn(move || Round::new(&shared).run())?;
        Ok(Self { thread: running.thread().clone(), joined: Mutex::new(Some(running)) })
    }

    pub(super) fn wake(&self) {
        self.thread.unpark();
    }

    /// Ends the thread after all is written and synced.
    pub(super) fn stop(&self, shared: &Shared) {
        shared.closing.store(true, Ordering::Release);
        self.wake();
        if let Some(running) = self.joined.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = running.join();
        }
    }
}

struct Round<'a> {
    shared: &'a Shared,
    /// Up to where the kernel had what was written when it was last looked.
    seen: u64,
    /// Up to where the disk has it.
    synced: u64,
    synced_at: Instant,
    worked_at: Instant,
    /// Has the disk keep what was written.
    keep: fn(&Unsynced) -> io::Result<()>,
}

impl<'a> Round<'a> {
    fn new(shared: &'a Shared) -> Self {
        let now = Instant::now();
        Self { shared, seen: 0, synced: 0, synced_at: now, worked_at: now, keep }
    }

    fn run(mut self) {
        let always = self.shared.fsync == Fsync::Always;
        loop {
            let closing = self.shared.closing.load(Ordering::Acquire);
            self.write();
            if always || closing || self.synced_at.elapsed() >= SYNC_EVERY {
                self.sync();
            }
            if closing {
                return;
            }
            if self.worked_at.elapsed() >= REST_AFTER && self.rests() {
                std::thread::park();
                self.worked_at = Instant::now();
            } else {
                std::thread::park_timeout(PAUSE);
            }
        }
    }

    /// Gives the kernel what waits, and carries over what lasts.
    fn write(&mut self) {
        let mut writer = self.shared.writer();
        let written = writer.flush();
        let carried = if written.is_ok() { writer.carry_over(CARRIED) } else { Ok(0) };
        let unneeded = if matches!(carried, Ok(1..)) { writer.take_unneeded(false) } else { Vec::new() };
        if writer.written != self.seen || writer.waits() {
            self.seen = writer.written;
            self.worked_at = Instant::now();
        }
        drop(writer);
        self.shared.remove(&unneeded);
        if let Err(error) = written.and(carried) {
            self.shared.failed(&error);
        }
    }

    /// Whether there is nothing to do until somebody wakes this thread.
    fn rests(&self) -> bool {
        let mut writer = self.shared.writer();
        let synced = self.shared.fsync == Fsync::Off || (writer.written == self.synced && !writer.doubts());
        writer.idle = !writer.waits() && synced;
        writer.idle
    }

    fn sync(&mut self) {
        if self.shared.fsync == Fsync::Off {
            return;
        }
        let unsynced = {
            let mut writer = self.shared.writer();
            if writer.written == self.synced {
                let doubts = writer.doubts();
                drop(writer);
                self.let_go(doubts);
                return;
            }
            writer.take_unsynced()
        };
        let begun = Instant::now();
        let done = (self.keep)(&unsynced);
        self.synced_at = Instant::now();
        let shared = self.shared;
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.syncs.fetch_add(1, Ordering::Relaxed);
        shared.sync_micros.fetch_add(micros, Ordering::Relaxed);
        // What was slow once is forgotten by and by.
        let slowest = shared.slowest_sync_micros.load(Ordering::Relaxed);
        shared.slowest_sync_micros.store(micros.max(slowest - slowest / 256), Ordering::Relaxed);
        self.synced = unsynced.written;
        match done {
            Ok(()) => {
                shared.synced.send_modify(|synced| *synced = Synced { up_to: unsynced.written, ..*synced });
                self.let_go(unsynced.doubts);
            }
            Err(error) => {
                shared.writer().distrust();
                shared.synced.send_modify(|synced| synced.broken = unsynced.written);
                shared.failed(&JournalError::Disk(error));
            }
        }
    }

    /// Removes what stands elsewhere; while anything of that is in doubt, the first copies stay.
    fn let_go(&self, doubts: bool) {
        if !doubts {
            let unneeded = {
                let mut writer = self.shared.writer();
                writer.is_safe(self.synced);
                writer.take_unneeded(false)
            };
            self.shared.remove(&unneeded);
        }
    }
}

fn keep(unsynced: &Unsynced) -> io::Result<()> {
    for file in &unsynced.files {
        file.sync_data()?;
    }
    // The names of new files; where folders cannot be opened, there is nothing to do.
    #[cfg(unix)]
    if let Some(folder) = &unsynced.folder {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::record::{self, Kind};
    use super::super::{JournalConfig, segment};
    use super::*;

    #[test]
    fn first_copies_stay_until_all_later_ones_are_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let (shared, _) = Shared::open(folder.path(), &JournalConfig::default(), 1).unwrap();
        let numbers =
            || -> Vec<u64> { segment::list(folder.path()).unwrap().into_iter().map(|(number, _)| number).collect() };
        let entries = CARRIED + 4;
        for n in 0..entries {
            let mut begin = Vec::new();
            record::write(&mut begin, Kind::Begin, 1, |out| out.extend_from_slice(format!("entry {n}").as_bytes()));
            shared.writer().begin(&begin).unwrap();
        }
        let mut round = Round::new(&shared);
        round.sync();
        // They move to the second segment, which the disk then does not keep.
        shared.writer().distrust();
        round.write();
        round.write();
        round.keep = |_| Err(io::Error::other("the disk does not keep it"));
        round.sync();
        round.keep = keep;
        assert_eq!(numbers(), [1, 2]);
        // Nothing new was written; or not all of them moved on.
        round.sync();
        assert_eq!(numbers(), [1, 2]);
        round.write();
        round.sync();
        assert_eq!(numbers(), [1, 2, 3]);
        round.write();
        round.sync();
        assert_eq!(numbers(), [3]);
        let bytes = std::fs::read(segment::path(folder.path(), 3)).unwrap();
        let begun = |found: &record::Found<'_>| matches!(found, record::Found::Record(r) if r.kind == Kind::Begin);
        assert_eq!(record::read(&bytes[segment::HEAD..]).filter(begun).count(), entries);
    }

    #[test]
    fn what_is_released_takes_no_first_copy_along_before_the_disk_has_the_second() {
        let folder = tempfile::tempdir().unwrap();
        let (shared, _) = Shared::open(folder.path(), &JournalConfig::default(), 1).unwrap();
        let record = |kind| {
            let mut record = Vec::new();
            record::write(&mut record, kind, 1, |out| out.extend_from_slice(b"entry"));
            record
        };
        let (stream, chat) = (record(Kind::Begin), record(Kind::Begin));
        shared.writer().begin(&stream).unwrap();
        let chat = shared.writer().begin(&chat).unwrap();
        let mut round = Round::new(&shared);
        round.sync();
        // The stream moves to the second segment; what is over stays where it is, until the ledger has it.
        shared.writer().distrust();
        assert!(shared.writer().finish(chat, &record(Kind::Finish)));
        round.write();
        shared.writer().release([chat]);
        assert_eq!(shared.writer().take_unneeded(false), [] as [std::path::PathBuf; 0]);
        round.sync();
        let left: Vec<u64> = segment::list(folder.path()).unwrap().into_iter().map(|(number, _)| number).collect();
        assert_eq!(left, [2]);
    }
}
