//! The settler: drains finished requests into the ledger, in batches, each in one
//! transaction.
//!
//! Settling is idempotent on the request id, so a batch that may or may not have
//! been committed is simply sent again. While the database is away, finished
//! requests wait here, and in the journal, from which they are released when they are
//! written: if the process dies first, the next one finds them there. When too many
//! wait, no request is admitted (`allocation.max_waiting`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::allocation::{Finished, Outbox, Receipt};
use crate::context::{Granted, Platform};
use crate::journal::Journal;
use crate::model::usage::CostSource;
use crate::store::ledger::Settlement;
use crate::store::{Store, StoreError, Tx};

/// Most requests in one transaction.
const BATCH: usize = 500;

/// How long a batch gathers: few transactions, and nobody woken, for many requests.
const GATHERING: Duration = Duration::from_millis(40);

/// After so many gatherings that brought nothing, the thread rests until it is woken.
const REST_AFTER: u32 = 25;

/// After so long, what could not be written is tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Longest pause between attempts while the database is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the settler has done.
#[derive(Debug)]
pub struct SettlerCounts {
    begun: Instant,
    settled: AtomicU64,
    waiting: Arc<AtomicUsize>,
    failures: AtomicU64,
    unpriced: AtomicU64,
    /// When the oldest that waits was taken from the queue, in microseconds from the beginning; 0: none.
    oldest: AtomicU64,
}

impl SettlerCounts {
    fn new(waiting: Arc<AtomicUsize>) -> Self {
        let (settled, failures, unpriced, oldest) = Default::default();
        Self { begun: Instant::now(), settled, waiting, failures, unpriced, oldest }
    }

    /// Requests settled since the start.
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::Relaxed)
    }

    /// Finished requests that are not in the ledger yet.
    pub fn waiting(&self) -> u64 {
        u64::try_from(self.waiting.load(Ordering::Relaxed)).unwrap_or(u64::MAX)
    }

    /// Of those settled, requests for models without a price.
    pub fn unpriced(&self) -> u64 {
        self.unpriced.load(Ordering::Relaxed)
    }

    /// Attempts that failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// For how long the batch that is being written has waited for the database.
    pub fn oldest_waits(&self) -> Duration {
        match self.oldest.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.begun.elapsed().saturating_sub(Duration::from_micros(since)),
        }
    }

    fn taken(&self) {
        let now = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.oldest.store(now.max(1), Ordering::Relaxed);
    }

    fn written(&self, count: usize) {
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        self.oldest.store(0, Ordering::Relaxed);
    }
}

/// The far end of the queue.
#[derive(Debug)]
pub struct Settler {
    books: Books,
    inbox: mpsc::UnboundedReceiver<Finished>,
    journal: Option<Journal>,
    /// What could not be written, and when it was tried last.
    parked: Vec<(Settlement, Receipt)>,
    tried_at: Instant,
}

impl Settler {
    /// A settler into `store`, and the outbox that feeds it.
    pub fn new(store: Store) -> (Self, Outbox) {
        let (outbox, inbox, waiting) = Outbox::new();
        let books = Books { store, counts: Arc::new(SettlerCounts::new(waiting)) };
        (Self { books, inbox, journal: None, parked: Vec::new(), tried_at: Instant::now() }, outbox)
    }

    /// The same, which releases what it has written from the journal that it is in.
    #[must_use]
    pub fn with_journal(self, journal: Option<Journal>) -> Self {
        Self { journal, ..self }
    }

    /// What it has done, for metrics.
    pub fn counts(&self) -> Arc<SettlerCounts> {
        Arc::clone(&self.books.counts)
    }

    /// Settles until every outbox is gone and nothing waits any more; gives how many
    /// requests it settled. Blocks the thread while a batch gathers, so it is run on one
    /// of its own.
    pub async fn run(mut self) -> u64 {
        let mut batch = Vec::with_capacity(BATCH);
        let mut nothing = 0;
        loop {
            let more = self.gather(&mut batch);
            if !self.parked.is_empty() && (!more || self.tried_at.elapsed() >= TRY_AGAIN_AFTER) {
                let parked = std::mem::take(&mut self.parked);
                self.write(parked.into_iter()).await;
            }
            if batch.is_empty() {
                if !more {
                    break;
                }
                // A sender wakes whoever waits, which costs the request: only after a while without any.
                if nothing < REST_AFTER || !self.parked.is_empty() {
                    nothing += 1;
                    std::thread::sleep(GATHERING);
                } else if let Some(first) = self.inbox.recv().await {
                    batch.push(first);
                    nothing = 0;
                    std::thread::sleep(GATHERING);
                }
                continue;
            }
            nothing = 0;
            let full = batch.len() == BATCH;
            self.write(batch.drain(..).map(Finished::settlement)).await;
            if !full && more {
                // Not a timer: the runtime may be gone while the last requests gather.
                std::thread::sleep(GATHERING);
            }
        }
        self.books.counts.settled()
    }

    /// Fills the batch with what waits. `false`: nothing will come any more.
    fn gather(&mut self, batch: &mut Vec<Finished>) -> bool {
        while batch.len() < BATCH {
            match self.inbox.try_recv() {
                Ok(finished) => batch.push(finished),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    /// Writes a batch; what cannot be written stays in the journal, and is tried again by and by.
    async fn write(&mut self, batch: impl Iterator<Item = (Settlement, Receipt)>) {
        let (mut settlements, mut receipts): (Vec<Settlement>, Vec<Receipt>) = batch.unzip();
        self.books.counts.taken();
        let mut failed = self.books.settle(&settlements).await;
        self.tried_at = Instant::now();
        while let Some(index) = failed.pop() {
            self.parked.push((settlements.swap_remove(index), receipts.swap_remove(index)));
        }
        if let Some(journal) = &self.journal {
            journal.release(receipts.into_iter().map(|receipt| receipt.entry));
        }
        self.books.counts.written(settlements.len());
    }
}

/// Writes settlements, whatever becomes of the database meanwhile.
#[derive(Debug)]
pub(super) struct Books {
    store: Store,
    counts: Arc<SettlerCounts>,
}

impl Books {
    pub(super) fn of(store: Store) -> Self {
        Self { store, counts: Arc::new(SettlerCounts::new(Arc::default())) }
    }

    /// Settles a batch, however long it takes the database to come back; gives the places of
    /// those that cannot be written, in their order.
    pub(super) async fn settle(&self, batch: &[Settlement]) -> Vec<usize> {
        let mut failed = Vec::new();
        let mut outcome = self.write(batch, Tx::settle_first).await;
        if matches!(outcome, Err(StoreError::Unique(_))) {
            outcome = self.write(batch, Tx::settle).await;
        }
        if outcome.is_ok() {
            return failed;
        }
        // One row spoils the batch: each goes alone.
        for (index, one) in batch.chunks(1).enumerate() {
            let mut outcome = self.write(one, Tx::settle).await;
            if matches!(outcome, Err(StoreError::ForeignKey)) {
                outcome = self.write(one, Tx::settle_orphans).await;
            }
            if let Err(error) = outcome {
                failed.push(index);
                self.counts.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    request_id = one.first().map(|s| &*s.row.request_id),
                    error = &error as &dyn std::error::Error,
                    "a request cannot be settled; it is tried again, and stays in the journal until it is"
                );
            }
        }
        failed
    }

    /// Writes a batch in one transaction, again and again while the database is away.
    async fn write(
        &self,
        batch: &[Settlement],
        how: impl AsyncFn(&mut Tx<Platform>, &[Settlement]) -> Result<usize, StoreError>,
    ) -> Result<(), StoreError> {
        let attempt = async || {
            let mut tx = self.store.begin(&Granted::system()).await?;
            how(&mut tx, batch).await?;
            tx.commit().await
        };
        let mut pause = Duration::from_millis(50);
        loop {
            match attempt().await {
                Ok(()) => {
                    self.counts.settled.fetch_add(u64::try_from(batch.len()).unwrap_or(0), Ordering::Relaxed);
                    let unpriced = batch.iter().filter(|one| one.row.cost_source == CostSource::Unpriced).count();
                    self.counts.unpriced.fetch_add(u64::try_from(unpriced).unwrap_or(0), Ordering::Relaxed);
                    batch.iter().for_each(log);
                    return Ok(());
                }
                Err(error @ (StoreError::Unavailable(_) | StoreError::ReadOnly(_))) => {
                    self.counts.failures.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%error, waiting = self.counts.waiting(), "the ledger cannot be written; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A line for each request that was let through, at the level `debug`: what the ledger
/// says of it, and nothing of what was asked or answered.
fn log(settlement: &Settlement) {
    let row = &settlement.row;
    tracing::debug!(
        request_id = row.request_id,
        account = row.account_id.as_str(),
        kind = row.kind.as_str(),
        model = row.dimensions.model_name,
        status = row.status,
        input_tokens = row.tokens.input,
        output_tokens = row.tokens.output,
        nano_credits = row.credits.nanos(),
        decision = "allow",
        marks = row.marks,
        duration_us = row.duration_us,
        "settled"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocation::{AllocationConfig, Allocations};
    use crate::credits::{Credits, Usd};
    use crate::model::usage::{EntryKind, LedgerRow};
    use crate::store::conservation;
    use crate::store::testing::{databases, settlement, sqlite};

    async fn ledger(store: &Store) -> Vec<(String, CostSource, i64)> {
        store.read(&Granted::system()).await.unwrap().ledger().await
    }

    #[tokio::test]
    async fn an_abandoned_request_is_charged_once_at_its_estimate() {
        for fresh in databases().await {
            let account = fresh.account("Acme").await;
            fresh.reserve(&account, "lost", 3).await;
            let (settler, outbox) = Settler::new(fresh.store.clone());
            let allocations =
                Allocations::new(fresh.store.clone(), fresh.clock.clone(), &AllocationConfig::default(), outbox);
            assert_eq!(allocations.charge_abandoned().await.unwrap(), 0);
            fresh.clock.advance(Duration::from_secs(3600));
            // Sweeps of two processes see it before either settles; one process hands it over once.
            let (other, outbox) = Settler::new(fresh.store.clone());
            let beside =
                Allocations::new(fresh.store.clone(), fresh.clock.clone(), &AllocationConfig::default(), outbox);
            for (sweep, found) in [(&allocations, 1), (&allocations, 0), (&beside, 1)] {
                assert_eq!(sweep.charge_abandoned().await.unwrap(), found);
            }
            drop((allocations, beside));
            tokio::join!(settler.run(), other.run());
            assert_eq!(ledger(&fresh.store).await, [("lost".to_owned(), CostSource::Unsettled, 3_000_000_000)]);
            let report = conservation::verify(&fresh.store).await.unwrap();
            assert_eq!((report.counters, report.reservations, report.differences), (1, 0, Vec::new()));
        }
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_tried_again() {
        for fresh in databases().await {
            let account = fresh.account("Acme").await;
            fresh.reserve(&account, "bad", 1).await;
            // More than its counter has leased.
            let mut bad = settlement(&account, "bad", 1);
            (bad.held, bad.hold) = (bad.counters.clone(), Credits::from_nanos(2_000_000_000));
            let (mut settler, outbox) = Settler::new(fresh.store.clone());
            settler.write(std::iter::once((bad, Receipt::default()))).await;
            assert_eq!(ledger(&fresh.store).await, []);
            fresh.reserve(&account, "other", 1).await;
            drop(outbox);
            assert_eq!(settler.run().await, 1);
            assert_eq!(ledger(&fresh.store).await, [("bad".to_owned(), CostSource::Header, 1_000_000_000)]);
        }
    }

    #[tokio::test]
    async fn what_was_charged_at_its_estimate_and_reversed_is_charged_when_it_settles() {
        for fresh in databases().await {
            let account = fresh.account("Acme").await;
            let books = Books::of(fresh.store.clone());
            let mut charged = settlement(&account, "late", 9);
            charged.row.cost_source = CostSource::Unsettled;
            assert!(books.settle(&[charged.clone()]).await.is_empty());
            let mut reversal = LedgerRow { request_id: "late:reversed".to_owned(), ..charged.row };
            (reversal.entry, reversal.credits) = (EntryKind::Reversal, Credits::from_nanos(-9_000_000_000));
            reversal.raw_cost = Usd::ZERO.saturating_sub(reversal.raw_cost);
            let mut tx = fresh.store.begin(&Granted::system().over(account.clone())).await.unwrap();
            assert!(tx.book(&reversal, charged.counters).await.unwrap());
            tx.commit().await.unwrap();
            assert!(books.settle(&[settlement(&account, "late", 4)]).await.is_empty());
            let credits: i64 = ledger(&fresh.store).await.iter().map(|(_, _, credits)| credits).sum();
            assert_eq!(credits, 4_000_000_000);
            assert_eq!(conservation::verify(&fresh.store).await.unwrap().differences, []);
        }
    }

    #[tokio::test]
    async fn while_the_database_is_away_requests_wait() {
        let fresh = sqlite().await;
        let account = fresh.account("Acme").await;
        // Another process holds SQLite's only writer.
        let config = crate::store::DatabaseConfig { acquire_timeout_ms: 100, ..fresh.config.clone() };
        let ids = Arc::new(crate::id::RandomIds);
        let impatient = Store::open(&config, fresh.clock.clone(), ids).await.unwrap();
        let blocker = fresh.store.begin(&Granted::system()).await.unwrap();
        let books = Books::of(impatient);
        let counts = Arc::clone(&books.counts);
        counts.waiting.store(2, Ordering::Relaxed);
        let batch = [settlement(&account, "one", 1), settlement(&account, "two", 2)];
        tokio::join!(books.settle(&batch), async {
            while counts.failures() < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!((counts.waiting(), counts.settled()), (2, 0));
            drop(blocker);
        });
        assert_eq!(counts.settled(), 2);
        assert_eq!(ledger(&fresh.store).await.len(), 2);
    }

    #[tokio::test]
    async fn a_row_that_cannot_be_written_spoils_no_other() {
        for fresh in databases().await {
            let (account, removed) = (fresh.account("Acme").await, fresh.account("Gone").await);
            fresh.reserve(&account, "bad", 1).await;
            fresh.reserve(&removed, "orphan", 1).await;
            fresh.remove(&removed).await;
            // More than its counter has leased.
            let mut bad = settlement(&account, "bad", 1);
            (bad.held, bad.hold) = (bad.counters.clone(), Credits::from_nanos(2_000_000_000));
            let orphan = settlement(&removed, "orphan", 4);
            let batch = [settlement(&account, "a", 2), bad, orphan, settlement(&account, "z", 3)];
            let books = Books::of(fresh.store.clone());
            assert_eq!(books.settle(&batch).await, [1]);
            assert_eq!((books.counts.settled(), books.counts.failures()), (3, 1));
            let written: Vec<_> = ledger(&fresh.store).await.into_iter().map(|(id, ..)| id).collect();
            assert_eq!(written, ["a", "orphan", "z"]);
            let report = conservation::verify(&fresh.store).await.unwrap();
            assert_eq!((report.accounts, report.reservations, report.differences), (2, 1, Vec::new()));
        }
    }
}
