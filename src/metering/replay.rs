//! What an earlier process left in the journal goes into the ledger, before anything is served.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::settler::Books;
use crate::allocation::lease::end_orphans;
use crate::allocation::record::{Note, Replay, VERSION};
use crate::clock::{SharedClock, Timestamp};
use crate::context::Granted;
use crate::journal::{Damage, Kind, Recovered, Recovery};
use crate::store::leases::LostLease;
use crate::store::ledger::Settlement;
use crate::store::{Store, StoreError};

/// Most requests in one transaction.
const BATCH: usize = 500;

/// What was found and done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replayed {
    /// Requests that had finished; written now, or before the process ended.
    pub finished: usize,
    /// Requests that had not: charged at their estimate.
    pub unsettled: usize,
    /// Requests that cannot be written; their segments stay.
    pub failed: usize,
    /// Whether nothing that was admitted can be missing.
    pub complete: bool,
    /// Segments that stay, because not all that is in them could be read or written.
    pub left: usize,
}

/// Writes what `recovery` holds and removes it, then ends the leases of the processes that wrote
/// it: what they had not used is free, if nothing is missing, and else what `lost` says. Something may
/// be if such a process went on in memory; where it does not say, `in_memory` is whether this one would.
/// Waits for the database as long as it takes to write what is there.
///
/// # Errors
/// [`StoreError`]; nothing is removed then, and doing it again counts nothing twice.
pub async fn replay(
    store: &Store,
    recovery: Recovery,
    clock: &SharedClock,
    lost: LostLease,
    in_memory: bool,
) -> Result<Replayed, StoreError> {
    let complete = recovery.is_complete();
    let unread = recovery.unread();
    if recovery.segments().is_empty() {
        return Ok(Replayed { complete, left: unread, ..Replayed::default() });
    }
    let database = store.read(&Granted::system()).await?.database_id().await?;
    let mut reading = Reading::into(store, database, complete, in_memory);
    for segment in recovery.segments() {
        reading.read(segment).await;
    }
    let Reading { mut done, holders, stays, foreign, .. } = reading.end(clock.now()).await;
    let Replayed { finished, unsettled, failed, complete, .. } = done;
    // What a segment of ours lacks may stand in another of ours, never in one for another database.
    let all_stay = failed > 0 || stays;
    done.left = unread + if all_stay { recovery.segments().len() } else { foreign.len() };
    let left = done.left;
    tracing::warn!(finished, unsettled, failed, complete, left, "the journal of an earlier process is in the ledger");
    for holder in &holders {
        end_leases(store, holder, if complete && failed == 0 { LostLease::Release } else { lost }).await?;
    }
    if !all_stay && let Err(error) = recovery.remove(&foreign) {
        tracing::warn!(%error, "a segment of the journal cannot be removed; it is read again at the next start");
    }
    Ok(done)
}

struct Reading {
    books: Books,
    /// Which database that is.
    database: String,
    found: Replay,
    batch: Vec<Settlement>,
    /// Under whose leases requests were admitted.
    holders: BTreeSet<String>,
    /// Whether a process that does not say so may have gone on in memory.
    in_memory: bool,
    /// Something in the segments is for another time.
    stays: bool,
    /// Segments that were written for another database.
    foreign: Vec<PathBuf>,
    done: Replayed,
}

impl Reading {
    fn into(store: &Store, database: String, complete: bool, in_memory: bool) -> Self {
        let done = Replayed { complete, ..Replayed::default() };
        let (found, batch, holders) = (Replay::default(), Vec::with_capacity(BATCH), BTreeSet::new());
        let (books, foreign) = (Books::of(store.clone()), Vec::new());
        Self { books, database, found, batch, holders, in_memory, stays: false, foreign, done }
    }

    async fn read(&mut self, segment: &Recovered) {
        let file = segment.path().display();
        let contents = match segment.contents() {
            Ok(contents) => contents,
            Err(error) => {
                tracing::error!(%file, %error, "a segment of the journal cannot be read and stays");
                (self.stays, self.done.complete) = (true, false);
                return;
            }
        };
        let notes = || contents.records(VERSION).filter(|r| r.kind == Kind::Note).filter_map(|r| Note::read(r.payload));
        if notes().any(|note| note.database.is_some_and(|database| database != self.database)) {
            tracing::error!(
                %file,
                "a segment of the journal was written for another database and stays: give this gateway a data_dir of \
                 its own, and start one with the other database on what is here; if that is gone, remove the file"
            );
            self.foreign.push(segment.path().to_owned());
            return;
        }
        // What was admitted in memory alone is in no journal.
        self.done.complete &= !notes().any(|note| note.in_memory.unwrap_or(self.in_memory));
        self.holders.extend(notes().map(|note| note.holder).filter(|holder| !holder.is_empty()).map(str::to_owned));
        let damage = contents.damage(VERSION);
        if damage != Damage::default() {
            let Damage { damaged, torn, newer } = damage;
            tracing::error!(%file, damaged, torn, newer, "a segment of the journal is not whole; the rest of it is charged");
            self.done.complete &= !damage.loses();
            self.stays |= newer > 0;
        }
        for record in contents.records(VERSION) {
            self.batch.extend(self.found.take(&record));
            if self.batch.len() >= BATCH {
                self.done.finished += self.batch.len();
                self.write().await;
            }
        }
    }

    async fn end(mut self, now: Timestamp) -> Self {
        self.done.finished += self.batch.len();
        self.write().await;
        self.batch.extend(self.found.unsettled(now));
        self.done.unsettled = self.batch.len();
        self.write().await;
        if self.found.unreadable > 0 {
            tracing::error!(records = self.found.unreadable, "records of the journal are whole and not understood");
            (self.stays, self.done.complete) = (true, false);
        }
        self
    }

    async fn write(&mut self) {
        for chunk in self.batch.chunks(BATCH) {
            self.done.failed += self.books.settle(chunk).await.len();
        }
        self.batch.clear();
    }
}

/// Ends what a process that is gone had leased.
async fn end_leases(store: &Store, holder: &str, lost: LostLease) -> Result<(), StoreError> {
    let mut tx = store.begin(&Granted::system()).await?;
    tx.fence_lease_holder(holder).await?;
    if lost == LostLease::Release {
        tx.reverse_lost_leases(holder).await?;
    }
    tx.commit().await?;
    end_orphans(store, Some(holder), lost).await
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::allocation::record::testing::{begun, finished};
    use crate::context::Domain;
    use crate::credits::Credits;
    use crate::id::Id;
    use crate::journal::{Journal, JournalConfig};
    use crate::model::accounts::Account;
    use crate::model::budgets::Window;
    use crate::model::scope::{Scope, ScopeType};
    use crate::policy::budget::Link;
    use crate::store::conservation;
    use crate::store::leases::{Lease, Taken};
    use crate::store::testing::{Fresh, databases};

    fn open(folder: &Path) -> (Journal, Recovery) {
        Journal::open(folder, &JournalConfig::default(), VERSION).unwrap()
    }

    /// A process that has leased 10, admitted one request for 3, which used 2, and one for 4, and is gone.
    async fn killed(fresh: &Fresh, account: &Id<Account>, folder: &Path) {
        killed_with(fresh, account, folder, &JournalConfig::default()).await;
    }

    async fn killed_with(fresh: &Fresh, account: &Id<Account>, folder: &Path, config: &JournalConfig) {
        let window = Window { start: Timestamp::from_micros(0), end: None };
        let scope = Scope::new(ScopeType::Account, account.as_str());
        let links = [Link { scope, cap: Some(Credits::from_nanos(100)), window }];
        let amount = Credits::from_nanos(10);
        let lease = Lease { id: "lease", holder: "gone", domain: Domain::Copilot, links: &links, amount };
        let mut tx = fresh.store.begin(&Granted::system()).await.unwrap();
        let expires_at = tx.now().plus(Duration::from_secs(60));
        tx.insert_lease_holder("gone", expires_at).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = fresh.store.begin(&Granted::system().over(account.clone())).await.unwrap();
        assert_eq!(tx.take_lease(&lease).await.unwrap(), Taken::Yes);
        tx.commit().await.unwrap();
        let (journal, _) = Journal::open(folder, config, VERSION).unwrap();
        let mut tx = fresh.store.read(&Granted::system()).await.unwrap();
        let database = tx.database_id().await.unwrap();
        let in_memory = Some(journal.goes_on_in_memory());
        journal.note(&Note { holder: "gone", database: Some(&database), in_memory }.to_bytes()).unwrap();
        let entry = |id: &str, hold| {
            let payload = begun(id, account, Some("lease"), hold);
            journal.begin(|out| out.extend_from_slice(&payload)).unwrap()
        };
        let (one, _two) = (entry("one", 3), entry("two", 4));
        journal.finish(&one, |out| out.extend_from_slice(&finished("one", 2)));
    }

    /// What the account has used and holds, of books that balance.
    async fn counter(fresh: &Fresh, account: &Id<Account>) -> (i64, i64) {
        let report = conservation::verify(&fresh.store).await.unwrap();
        assert_eq!(report.differences, []);
        let mut tx = fresh.store.read(&Granted::system().over(account.clone())).await.unwrap();
        let counters = tx.counters_from(Timestamp::from_micros(0)).await.unwrap();
        counters.iter().fold((0, 0), |sum, c| (sum.0 + c.used.nanos(), sum.1 + c.leased.nanos()))
    }

    async fn again(fresh: &Fresh, folder: &Path) -> Replayed {
        let (_journal, recovery) = open(folder);
        let clock: SharedClock = Arc::<crate::clock::ManualClock>::clone(&fresh.clock);
        replay(&fresh.store, recovery, &clock, LostLease::Charge, false).await.unwrap()
    }

    #[tokio::test]
    async fn what_a_killed_process_had_admitted_is_charged_once_and_the_rest_of_its_lease_is_free() {
        for fresh in databases().await {
            let account = fresh.account("Acme").await;
            let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            killed(&fresh, &account, folder.path()).await;
            assert_eq!(counter(&fresh, &account).await, (0, 10));
            for file in std::fs::read_dir(folder.path()).unwrap() {
                let path = file.unwrap().path();
                std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
            }
            let done = Replayed { finished: 1, unsettled: 1, complete: true, ..Replayed::default() };
            assert_eq!(again(&fresh, folder.path()).await, done);
            assert_eq!(counter(&fresh, &account).await, (2 + 4, 0));
            assert_eq!(again(&fresh, folder.path()).await, Replayed { complete: true, ..Replayed::default() });
            // As if it had ended before the segments were removed.
            assert_eq!(again(&fresh, copy.path()).await, done);
            assert_eq!(counter(&fresh, &account).await, (2 + 4, 0));
        }
    }

    #[tokio::test]
    async fn what_was_written_for_another_database_stays_for_it() {
        for (fresh, other) in databases().await.into_iter().zip(databases().await) {
            let account = fresh.account("Acme").await;
            let folder = tempfile::tempdir().unwrap();
            killed(&fresh, &account, folder.path()).await;
            let elsewhere = again(&other, folder.path()).await;
            assert_eq!(elsewhere, Replayed { complete: true, left: 1, ..Replayed::default() });
            let mut tx = other.store.read(&Granted::system()).await.unwrap();
            assert_eq!(tx.ledger().await, []);
            // Beside it, what was written for the one that is there is booked and goes.
            let beside = other.account("Beta").await;
            killed(&other, &beside, folder.path()).await;
            let mixed = again(&other, folder.path()).await;
            assert_eq!(mixed, Replayed { finished: 1, unsettled: 1, complete: true, left: 1, ..Replayed::default() });
            assert_eq!(counter(&other, &beside).await, (2 + 4, 0));
            let done = Replayed { finished: 1, unsettled: 1, complete: true, ..Replayed::default() };
            assert_eq!(again(&fresh, folder.path()).await, done);
            assert_eq!(counter(&fresh, &account).await, (2 + 4, 0));
        }
    }

    #[tokio::test]
    async fn a_lease_that_was_charged_meanwhile_is_taken_back() {
        for fresh in databases().await {
            let account = fresh.account("Acme").await;
            let folder = tempfile::tempdir().unwrap();
            killed(&fresh, &account, folder.path()).await;
            fresh.clock.advance(Duration::from_secs(60));
            let mut tx = fresh.store.begin(&Granted::system()).await.unwrap();
            tx.fence_lease_holder("gone").await.unwrap();
            for orphan in tx.orphaned_leases(None, 10).await.unwrap() {
                tx.end_orphan(&orphan, LostLease::Charge).await.unwrap();
            }
            tx.commit().await.unwrap();
            assert_eq!(counter(&fresh, &account).await, (10, 0));
            again(&fresh, folder.path()).await;
            assert_eq!(counter(&fresh, &account).await, (2 + 4, 0));
        }
    }

    #[tokio::test]
    async fn where_a_record_is_lost_the_rest_of_the_lease_is_charged() {
        for fresh in databases().await {
            let account = fresh.account("Acme").await;
            let folder = tempfile::tempdir().unwrap();
            killed(&fresh, &account, folder.path()).await;
            let path = folder.path().join(format!("{:016x}.journal", 1));
            let mut bytes = std::fs::read(&path).unwrap();
            let at = bytes.windows(4).position(|window| window == b"\x03one").unwrap() + 1;
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let done = again(&fresh, folder.path()).await;
            assert_eq!(done, Replayed { unsettled: 1, ..Replayed::default() });
            assert_eq!(counter(&fresh, &account).await, (10, 0));
        }
    }

    #[tokio::test]
    async fn where_requests_may_have_been_in_memory_alone_the_rest_of_the_lease_is_charged() {
        for fresh in databases().await {
            let account = fresh.account("Acme").await;
            let folder = tempfile::tempdir().unwrap();
            let config = JournalConfig { on_error: crate::journal::OnError::Memory, ..JournalConfig::default() };
            killed_with(&fresh, &account, folder.path(), &config).await;
            // Whatever the configuration says now.
            let done = again(&fresh, folder.path()).await;
            assert_eq!(done, Replayed { finished: 1, unsettled: 1, ..Replayed::default() });
            assert_eq!(counter(&fresh, &account).await, (10, 0));
        }
    }

    #[tokio::test]
    async fn a_lease_that_cannot_be_read_is_no_reason_not_to_start() {
        for fresh in databases().await {
            let account = fresh.account("Acme").await;
            let folder = tempfile::tempdir().unwrap();
            killed(&fresh, &account, folder.path()).await;
            fresh.spoil(r#"UPDATE "Alchemi_AllocationLeaseTable" SET counters = '?'"#).await;
            let done = again(&fresh, folder.path()).await;
            assert_eq!((done.finished, done.unsettled), (1, 1));
            // The check of the books tells it, and looks at the rest.
            let report = conservation::verify(&fresh.store).await.unwrap();
            let told: Vec<_> = report.differences.iter().map(ToString::to_string).collect();
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].contains("a row of Alchemi_AllocationLeaseTable should be readable"), "{told:?}");
        }
    }

    #[tokio::test]
    async fn what_was_charged_at_its_estimate_and_settles_late_is_adjusted() {
        for fresh in databases().await {
            let account = fresh.account("Acme").await;
            let books = Books::of(fresh.store.clone());
            let mut found = Replay::default();
            let begin = begun("late", &account, None, 9);
            let begin = crate::journal::Record { kind: Kind::Begin, version: VERSION, payload: &begin };
            found.take(&begin);
            let estimated: Vec<_> =
                found.unsettled(Timestamp::from_secs(1)).map(|s| Settlement { held: Vec::new(), ..s }).collect();
            assert_eq!(books.settle(&estimated).await, [] as [usize; 0]);
            assert_eq!(counter(&fresh, &account).await, (9, 0));
            found.take(&begin);
            let finish = finished("late", 4);
            let finish = crate::journal::Record { kind: Kind::Finish, version: VERSION, payload: &finish };
            let exact = found.take(&finish).map(|s| Settlement { held: Vec::new(), ..s }).unwrap();
            for _ in 0..2 {
                assert_eq!(books.settle(std::slice::from_ref(&exact)).await, [] as [usize; 0]);
                assert_eq!(counter(&fresh, &account).await, (4, 0));
            }
            // The estimate does not come back.
            assert_eq!(books.settle(&estimated).await, [] as [usize; 0]);
            assert_eq!(counter(&fresh, &account).await, (4, 0));
        }
    }
}
