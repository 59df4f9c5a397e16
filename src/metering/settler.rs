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
use crate::context::Granted;
use crate::store::ledger::Settlement;
use crate::store::{Store, StoreError};

/// Most requests in one transaction.
const BATCH: usize = 500;

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
    /// requests it settled.
    pub async fn run(mut self) -> u64 {
        let mut batch = Vec::with_capacity(BATCH);
        while self.inbox.recv_many(&mut batch, BATCH).await > 0 {
            let waiting = batch.len() + self.inbox.len();
            self.counts.waiting.store(u64::try_from(waiting).unwrap_or(u64::MAX), Ordering::Relaxed);
            let settlements: Vec<Settlement> = batch.drain(..).map(Finished::settlement).collect();
            self.settle(&settlements).await;
            self.counts.waiting.store(u64::try_from(self.inbox.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        self.counts.settled()
    }

    /// Settles a batch, however long it takes the database to come back.
    async fn settle(&self, batch: &[Settlement]) {
        let mut pause = Duration::from_millis(50);
        loop {
            match self.commit(batch).await {
                Ok(()) => return,
                Err(StoreError::Unavailable(reason)) => {
                    self.counts.failures.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%reason, waiting = batch.len(), "the ledger cannot be reached; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) if batch.len() == 1 => return self.settle_alone(batch, &error).await,
                Err(_) => {
                    // One row spoils the batch: find it.
                    for one in batch.chunks(1) {
                        Box::pin(self.settle(one)).await;
                    }
                    return;
                }
            }
        }
    }

    async fn commit(&self, batch: &[Settlement]) -> Result<(), StoreError> {
        let mut tx = self.store.begin(&Granted::system()).await?;
        tx.settle(batch).await?;
        tx.commit().await?;
        self.counts.settled.fetch_add(u64::try_from(batch.len()).unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }

    /// The last resort for a row that cannot be added up: the ledger alone, because
    /// its account is gone.
    async fn settle_alone(&self, batch: &[Settlement], error: &StoreError) {
        let Some(settlement) = batch.first() else { return };
        let request_id = &settlement.row.request_id;
        tracing::warn!(request_id, error = error as &dyn std::error::Error, "settling without counters");
        let alone = async {
            let mut tx = self.store.begin(&Granted::system()).await?;
            tx.settle_orphan(settlement).await?;
            tx.commit().await
        };
        match alone.await {
            Ok(()) => _ = self.counts.settled.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                self.counts.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    request_id,
                    error = &error as &dyn std::error::Error,
                    "a request cannot be settled; its reservation stays"
                );
            }
        }
    }
}
