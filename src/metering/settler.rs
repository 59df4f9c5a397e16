//! The settler: drains finished requests into the ledger, in batches, each in one
//! transaction.
//!
//! Settling is idempotent on the request id, so a batch that may or may not have
//! been committed is simply sent again. While the database is away, finished
//! requests wait here; if the process dies first, their reservations are still in
//! the database and are charged at their estimate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::allocation::{Finished, Outbox};
use crate::context::{Granted, Platform};
use crate::store::ledger::Settlement;
use crate::store::{Store, StoreError, Tx};

/// Most requests in one transaction.
const BATCH: usize = 500;

/// How long the first request of a batch waits for others: few transactions, and few
/// threads woken, for many requests.
const GATHERING: Duration = Duration::from_millis(20);

/// Longest pause between attempts while the database is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the settler has done.
#[derive(Debug, Default)]
pub struct SettlerCounts {
    settled: AtomicU64,
    waiting: AtomicU64,
    failures: AtomicU64,
}

impl SettlerCounts {
    /// Requests settled since the start.
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::Relaxed)
    }

    /// Finished requests that are not in the ledger yet.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Attempts that failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// The far end of the queue.
#[derive(Debug)]
pub struct Settler {
    store: Store,
    inbox: mpsc::UnboundedReceiver<Finished>,
    counts: Arc<SettlerCounts>,
}

impl Settler {
    /// A settler into `store`, and the outbox that feeds it.
    pub fn new(store: Store) -> (Self, Outbox) {
        let (outbox, inbox) = mpsc::unbounded_channel();
        (Self { store, inbox, counts: Arc::default() }, outbox)
    }

    /// What it has done, for metrics.
    pub fn counts(&self) -> Arc<SettlerCounts> {
        Arc::clone(&self.counts)
    }

    /// Settles until every outbox is gone and nothing waits any more; gives how many
    /// requests it settled. Blocks the thread while a batch gathers, so it is run on one
    /// of its own.
    pub async fn run(mut self) -> u64 {
        let mut batch = Vec::with_capacity(BATCH);
        while self.inbox.recv_many(&mut batch, BATCH).await > 0 {
            if batch.len() < BATCH {
                // Not a timer: the runtime may be gone while the last requests gather.
                std::thread::sleep(GATHERING);
                batch.extend(std::iter::from_fn(|| self.inbox.try_recv().ok()).take(BATCH - batch.len()));
            }
            let settlements: Vec<Settlement> = batch.drain(..).map(Finished::settlement).collect();
            self.settle(&settlements).await;
            self.note_waiting(0);
        }
        self.counts.settled()
    }

    /// Settles a batch, however long it takes the database to come back.
    async fn settle(&self, batch: &[Settlement]) {
        if self.write(batch, batch.len(), Tx::settle).await.is_ok() {
            return;
        }
        // One row spoils the batch: each goes alone.
        for (done, one) in batch.chunks(1).enumerate() {
            let left = batch.len() - done;
            let mut outcome = self.write(one, left, Tx::settle).await;
            if matches!(outcome, Err(StoreError::ForeignKey)) {
                outcome = self.write(one, left, Tx::settle_orphans).await;
            }
            if let Err(error) = outcome {
                self.counts.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    request_id = one.first().map(|s| &*s.row.request_id),
                    error = &error as &dyn std::error::Error,
                    "a request cannot be settled; its reservation stays"
                );
            }
        }
    }

    /// Writes a batch in one transaction, again and again while the database is away.
    /// `left` of those that were taken from the queue are not written yet.
    async fn write(
        &self,
        batch: &[Settlement],
        left: usize,
        how: impl AsyncFn(&mut Tx<Platform>, &[Settlement]) -> Result<usize, StoreError>,
    ) -> Result<(), StoreError> {
        let attempt = async || {
            let mut tx = self.store.begin(&Granted::system()).await?;
            how(&mut tx, batch).await?;
            tx.commit().await
        };
        let mut pause = Duration::from_millis(50);
        loop {
            let waiting = self.note_waiting(left);
            match attempt().await {
                Ok(()) => {
                    self.counts.settled.fetch_add(u64::try_from(batch.len()).unwrap_or(0), Ordering::Relaxed);
                    batch.iter().for_each(log);
                    return Ok(());
                }
                Err(error @ (StoreError::Unavailable(_) | StoreError::ReadOnly(_))) => {
                    self.counts.failures.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%error, waiting, "the ledger cannot be written; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Counts what is not in the ledger: the queue, and `left` of those taken from it.
    fn note_waiting(&self, left: usize) -> u64 {
        let waiting = u64::try_from(self.inbox.len() + left).unwrap_or(u64::MAX);
        self.counts.waiting.store(waiting, Ordering::Relaxed);
        waiting
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
        marks = row.marks,
        duration_us = row.duration_us,
        "settled"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocation::{AllocationConfig, Allocations};
    use crate::credits::Credits;
    use crate::model::usage::CostSource;
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
            // Two sweeps see it before either is settled, and two processes settle.
            let (other, outbox) = Settler::new(fresh.store.clone());
            let beside =
                Allocations::new(fresh.store.clone(), fresh.clock.clone(), &AllocationConfig::default(), outbox);
            for sweep in [&allocations, &allocations, &beside] {
                assert_eq!(sweep.charge_abandoned().await.unwrap(), 1);
            }
            drop((allocations, beside));
            tokio::join!(settler.run(), other.run());
            assert_eq!(ledger(&fresh.store).await, [("lost".to_owned(), CostSource::Unsettled, 3_000_000_000)]);
            let report = conservation::verify(&fresh.store).await.unwrap();
            assert_eq!((report.counters, report.reservations, report.differences), (1, 0, Vec::new()));
        }
    }

    #[tokio::test]
    async fn while_the_database_is_away_requests_wait() {
        let fresh = sqlite().await;
        let account = fresh.account("Acme").await;
        // Another process holds SQLite's only writer.
        let config = crate::store::DatabaseConfig { acquire_timeout_ms: 10, ..fresh.config.clone() };
        let ids = Arc::new(crate::id::RandomIds);
        let impatient = Store::open(&config, fresh.clock.clone(), ids).await.unwrap();
        let blocker = fresh.store.begin(&Granted::system()).await.unwrap();
        let (settler, _outbox) = Settler::new(impatient);
        let counts = settler.counts();
        let batch = [settlement(&account, "one", 1), settlement(&account, "two", 2)];
        tokio::join!(settler.settle(&batch), async {
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
            let (settler, _outbox) = Settler::new(fresh.store.clone());
            settler.settle(&batch).await;
            assert_eq!((settler.counts.settled(), settler.counts.failures()), (3, 1));
            let written: Vec<_> = ledger(&fresh.store).await.into_iter().map(|(id, ..)| id).collect();
            assert_eq!(written, ["a", "orphan", "z"]);
            let report = conservation::verify(&fresh.store).await.unwrap();
            assert_eq!((report.accounts, report.reservations, report.differences), (2, 1, Vec::new()));
        }
    }
}
