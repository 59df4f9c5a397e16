use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::*;

fn config(max_bytes: u64) -> JournalConfig {
    JournalConfig { max_bytes, ..JournalConfig::default() }
}

fn open(folder: &Path) -> (Journal, Recovery) {
    Journal::open(folder, &config(1 << 30), 1).unwrap()
}

fn begin(journal: &Journal, text: &str) -> Entry {
    journal.begin(|out| out.extend_from_slice(text.as_bytes())).unwrap()
}

fn finish(journal: &Journal, entry: &Entry, text: &str) {
    journal.finish(entry, |out| out.extend_from_slice(text.as_bytes()));
}

/// What a process would find that began after one was killed at this moment: a copy of the files.
fn after_kill(folder: &Path) -> Vec<(Kind, String)> {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // A segment may be removed meanwhile.
        let _ = std::fs::copy(&path, copy.path().join(path.file_name().unwrap()));
    }
    found(&open(copy.path()).1)
}

fn found(recovery: &Recovery) -> Vec<(Kind, String)> {
    let mut all = Vec::new();
    for segment in recovery.segments() {
        let contents = segment.contents().unwrap();
        assert_eq!(contents.damage(1), Damage::default());
        let text = |record: Record<'_>| (record.kind, String::from_utf8(record.payload.to_vec()).unwrap());
        all.extend(contents.records(1).map(text).filter(|(kind, _)| *kind != Kind::Note));
    }
    all
}

fn own(texts: &[(Kind, &str)]) -> Vec<(Kind, String)> {
    texts.iter().map(|(kind, text)| (*kind, (*text).to_owned())).collect()
}

fn eventually(mut so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < until, "it does not come to pass");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn segments(folder: &Path) -> usize {
    segment::list(folder).unwrap().len()
}

#[test]
fn what_was_begun_is_there_at_once_and_what_was_finished_soon() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, recovery) = open(folder.path());
    assert!(recovery.segments().is_empty() && recovery.is_complete());
    let one = begin(&journal, "one");
    assert_eq!(after_kill(folder.path()), own(&[(Kind::Begin, "one")]));
    finish(&journal, &one, "done");
    eventually(|| after_kill(folder.path()).len() == 2);
    let two = begin(&journal, "two");
    let all = own(&[(Kind::Begin, "one"), (Kind::Finish, "done"), (Kind::Begin, "two")]);
    assert_eq!(after_kill(folder.path()), all);
    // A process that ends without releasing leaves them, and the next one begins behind.
    drop((journal, one, two));
    let (journal, recovery) = open(folder.path());
    assert!(recovery.is_complete(), "the kernel still runs");
    let _three = begin(&journal, "three");
    assert_eq!(found(&recovery), all);
    recovery.remove(&[]).unwrap();
    assert_eq!(after_kill(folder.path()), own(&[(Kind::Begin, "three")]));
}

#[test]
fn a_begin_takes_what_finished_before_it_along() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(folder.path());
    let one = begin(&journal, "one");
    finish(&journal, &one, "done");
    let _two = begin(&journal, "two");
    assert_eq!(after_kill(folder.path()).len(), 3);
}

#[test]
fn a_disk_that_nobody_asks_to_keep_anything_has_no_files_open_for_it() {
    for fsync in [Fsync::Off, Fsync::Group] {
        let folder = tempfile::tempdir().unwrap();
        let config = JournalConfig { fsync, ..config(1 << 20) };
        let (journal, _) = Journal::open(folder.path(), &config, 1).unwrap();
        let text = "x".repeat(1000);
        for _ in 0..10 {
            let entries: Vec<_> = (0..100).map(|_| begin(&journal, &text)).collect();
            journal.release(entries);
        }
        let rolled = || journal.0.shared.writer().rolled();
        if fsync == Fsync::Off {
            assert_eq!(rolled(), 0);
        }
        eventually(|| rolled() == 0 && segments(folder.path()) == 1);
    }
}

#[test]
fn a_process_that_ends_in_order_leaves_nothing_that_was_released() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(folder.path());
    let (one, two) = (begin(&journal, "one"), begin(&journal, "two"));
    finish(&journal, &one, "done");
    journal.release([one]);
    journal.close();
    assert_eq!(segments(folder.path()), 1, "one is not released");
    journal.release([two]);
    journal.close();
    assert_eq!(segments(folder.path()), 0);
}

#[test]
fn segments_go_when_all_in_them_is_released() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(folder.path(), &config(1 << 20), 1).unwrap();
    let text = "x".repeat(1000);
    let mut entries: Vec<_> = (0..600).map(|_| begin(&journal, &text)).collect();
    let before = journal.counts();
    assert!(before.segments >= 8 && before.entries == 600 && before.bytes > 600_000, "{before:?}");
    journal.release(entries.split_off(300));
    eventually(|| journal.counts().segments < before.segments);
    journal.release(entries);
    assert_eq!(journal.counts().entries, 0);
    // A file goes when what was carried over out of it is on the disk.
    eventually(|| (journal.counts().segments, segments(folder.path())) == (1, 1));
}

#[test]
fn an_entry_that_lasts_keeps_no_old_segment() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(folder.path(), &config(1 << 20), 1).unwrap();
    let stream = begin(&journal, "stream");
    let text = "x".repeat(1000);
    for _ in 0..30 {
        let entries: Vec<_> = (0..100).map(|_| begin(&journal, &text)).collect();
        journal.release(entries);
    }
    eventually(|| journal.counts().segments <= 3);
    // A segment that was carried over goes when its copy is on the disk.
    eventually(|| after_kill(folder.path()).iter().filter(|(_, text)| text == "stream").count() == 1);
    finish(&journal, &stream, "done");
    eventually(|| after_kill(folder.path()).iter().any(|(kind, _)| *kind == Kind::Finish));
    journal.release([stream]);
    journal.close();
    assert_eq!(segments(folder.path()), 0);
}

#[test]
fn a_full_journal_refuses_or_goes_on_in_memory_until_there_is_room() {
    for on_error in [OnError::Refuse, OnError::Memory] {
        let folder = tempfile::tempdir().unwrap();
        let config = JournalConfig { on_error, ..config(100_000) };
        let (journal, _) = Journal::open(folder.path(), &config, 1).unwrap();
        let text = "x".repeat(10_000);
        let mut entries = Vec::new();
        let refused = loop {
            match journal.begin(|out| out.extend_from_slice(text.as_bytes())) {
                Ok(entry) if entry.key.is_some() => entries.push(entry),
                other => break other,
            }
        };
        assert_eq!(refused.is_err(), on_error == OnError::Refuse);
        assert!((5..10).contains(&entries.len()) && journal.counts().bytes <= 100_000);
        assert_eq!(journal.counts().errors, 1);
        assert_eq!(after_kill(folder.path()).len(), entries.len(), "nothing of it is half there");
        // What is in memory alone may be finished and released like any other.
        if let Ok(entry) = refused {
            finish(&journal, &entry, "done");
            journal.release([entry]);
        }
        journal.release(entries);
        assert!(begin(&journal, &text).key.is_some());
    }
}

#[test]
fn a_disk_that_fails_is_told_and_forgiven() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("journal");
    let (journal, _) = open(&inside);
    std::fs::remove_dir_all(&inside).unwrap();
    assert!(matches!(journal.begin(|_| {}), Err(JournalError::Disk(_))));
    std::fs::create_dir(&inside).unwrap();
    let _entry = begin(&journal, "one");
    assert_eq!(after_kill(&inside), own(&[(Kind::Begin, "one")]));
}

#[test]
fn a_folder_has_one_journal_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(folder.path());
    let refused = Journal::open(folder.path(), &config(1 << 30), 1).unwrap_err();
    assert!(refused.to_string().contains("is in use by process"), "{refused}");
    drop(journal);
    open(folder.path());
}

#[test]
fn notes_are_in_every_segment() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(folder.path(), &config(1 << 20), 1).unwrap();
    journal.note(b"first").unwrap();
    let text = "x".repeat(1000);
    let _entries: Vec<_> = (0..150).map(|_| begin(&journal, &text)).collect();
    journal.note(b"second").unwrap();
    drop(journal);
    let (_journal, recovery) = open(folder.path());
    let mut notes = Vec::new();
    for segment in recovery.segments() {
        let contents = segment.contents().unwrap();
        let own = contents.records(1).filter(|record| record.kind == Kind::Note).map(|r| r.payload.to_vec());
        notes.push(own.collect::<Vec<_>>());
    }
    assert!(notes.len() > 1);
    // What is carried over meanwhile may begin a segment after the second note as well as before it.
    assert!(notes.iter().all(|notes| !notes.is_empty()), "{notes:?}");
    assert!(notes.concat().is_sorted() && notes[0][0] == b"first", "{notes:?}");
    assert_eq!(notes.last().unwrap().last().unwrap(), b"second");
}

#[test]
fn what_is_newer_or_foreign_stays_and_what_is_damaged_is_read_around() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(folder.path());
    let _kept: Vec<_> = ["one", "two", "three"].map(|text| begin(&journal, text)).into();
    drop(journal);
    let (_, path) = segment::list(folder.path()).unwrap().remove(0);
    let good = std::fs::read(&path).unwrap();
    let with = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let (_journal, recovery) = open(folder.path());
        let texts: Vec<_> = recovery
            .segments()
            .iter()
            .flat_map(|segment| {
                let contents = segment.contents().unwrap();
                let damage = contents.damage(1);
                let begun = contents.records(1).filter(|record| record.kind == Kind::Begin);
                begun.map(|record| (String::from_utf8(record.payload.to_vec()).unwrap(), damage)).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "it is not touched");
        (
            texts.iter().map(|(text, _)| text.clone()).collect::<Vec<_>>(),
            texts.last().map(|t| t.1),
            recovery.is_complete(),
        )
    };
    assert_eq!(with(&good), (vec!["one".into(), "two".into(), "three".into()], Some(Damage::default()), true));
    // A later format.
    let mut newer = good.clone();
    newer[8] = 2;
    let crc = crc32c::crc32c(&newer[..segment::HEAD - 4]);
    newer[segment::HEAD - 4..segment::HEAD].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(with(&newer), (vec![], None, false));
    // Not ours.
    assert_eq!(with(&[b'?'; 200]), (vec![], None, false));
    // A head with a flipped bit: the records are there.
    let mut headless = good.clone();
    headless[9] ^= 1;
    assert_eq!(with(&headless), (vec!["one".into(), "two".into(), "three".into()], Some(Damage::default()), false));
    // A record with one.
    let mut spoilt = good.clone();
    let at = good.len() - (record::HEAD + 5) - 1;
    spoilt[at] ^= 8;
    let (left, damage, complete) = with(&spoilt);
    assert_eq!(left, ["one", "three"]);
    assert!(damage.unwrap().loses() && complete);
    // The last record with one: it was acknowledged.
    let mut spoilt = good.clone();
    *spoilt.last_mut().unwrap() ^= 8;
    let (left, damage, complete) = with(&spoilt);
    assert_eq!(left, ["one", "two"]);
    assert!(damage.unwrap().loses() && complete);
    // The last record was being written.
    let (left, damage, complete) = with(&good[..good.len() - 1]);
    assert_eq!(left, ["one", "two"]);
    assert!(!damage.unwrap().loses() && damage.unwrap().torn > 0 && complete);
    // A later payload.
    let contents = {
        std::fs::write(&path, &good).unwrap();
        open(folder.path()).1.segments()[0].contents().unwrap()
    };
    assert_eq!((contents.records(0).count(), contents.damage(0).newer), (0, 4));
}

#[tokio::test]
async fn always_means_that_the_disk_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = JournalConfig { fsync: Fsync::Always, ..config(1 << 30) };
    let (journal, _) = Journal::open(folder.path(), &config, 1).unwrap();
    for _ in 0..3 {
        let entry = begin(&journal, "one");
        journal.synced(&entry).await.unwrap();
        let (written, synced) = (entry.written, *journal.0.shared.synced.borrow());
        assert!(synced.up_to >= written, "{synced:?}");
        journal.release([entry]);
    }
    assert!(journal.counts().syncs >= 3);
}

#[test]
fn a_disk_that_does_not_keep_is_not_trusted_with_what_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = open(folder.path());
    let one = begin(&journal, "one");
    journal.0.shared.writer().distrust();
    eventually(|| {
        segments(folder.path()) == 1 && journal.counts().segments == 1 && {
            let (number, _) = segment::list(folder.path()).unwrap().remove(0);
            number == 2
        }
    });
    assert_eq!(after_kill(folder.path()), own(&[(Kind::Begin, "one")]));
    journal.release([one]);
}

#[test]
fn threads_lose_nothing_of_one_another() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(folder.path(), &config(8 << 20), 1).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let journal = &journal;
            scope.spawn(move || {
                for n in 0..2_000 {
                    let entry = begin(journal, &format!("{thread}-{n}"));
                    if n % 2 == 0 {
                        finish(journal, &entry, &format!("{thread}-{n}"));
                    }
                }
            });
        }
    });
    drop(journal);
    let mut times: BTreeMap<(u8, String), u32> = BTreeMap::new();
    for (kind, text) in found(&open(folder.path()).1) {
        *times.entry((u8::from(kind == Kind::Finish), text)).or_default() += 1;
    }
    let begun = times.iter().filter(|((finish, _), _)| *finish == 0);
    assert_eq!(begun.clone().count(), 8_000);
    // An entry that lasts may be there twice.
    assert!(begun.into_iter().all(|(_, times)| *times <= 2));
    assert_eq!(times.keys().filter(|(finish, _)| *finish == 1).count(), 4_000);
}
