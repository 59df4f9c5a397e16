//! What finished requests go through: settler, leases, journal.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::StartError;
use crate::allocation::lease::Leases;
use crate::allocation::record::{self, Note};
use crate::clock::SharedClock;
use crate::config::Config;
use crate::context::Granted;
use crate::journal::{Journal, OnError, OpenError};
use crate::metering::replay::replay;
use crate::metering::settler::{Settler, SettlerCounts};
use crate::store::Store;

/// The parts, before anything runs.
pub(super) struct Ledger {
    pub(super) settler: Settler,
    pub(super) leases: Leases,
    pub(super) journal: Option<Journal>,
}

/// The same while requests come.
#[derive(Debug)]
pub(super) struct RunningLedger {
    settler: SettlerThread,
    leases: Leases,
    journal: Option<Journal>,
}

impl Ledger {
    /// # Errors
    /// When the system has no thread for the settler.
    pub(super) fn start(self) -> std::io::Result<RunningLedger> {
        let Self { settler, leases, journal } = self;
        Ok(RunningLedger { settler: SettlerThread::start(settler)?, leases, journal })
    }
}

impl RunningLedger {
    /// Waits until all is settled, gives leases back, and closes the journal; gives how many
    /// requests were settled since the start.
    pub(super) async fn stop(self, patience: Duration) -> u64 {
        let settled = self.settler.stop(patience).await;
        self.leases.end().await;
        if let Some(journal) = &self.journal {
            journal.close();
        }
        settled
    }
}

/// The settler on a thread of its own, so that building batches does not delay requests.
#[derive(Debug)]
struct SettlerThread {
    counts: Arc<SettlerCounts>,
    /// Closed when the thread ends, in whatever way.
    ended: oneshot::Receiver<()>,
}

impl SettlerThread {
    fn start(settler: Settler) -> std::io::Result<Self> {
        let (counts, runtime) = (settler.counts(), tokio::runtime::Handle::current());
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new().name("settler".to_owned()).spawn(move || {
            let _end = end;
            runtime.block_on(settler.run());
        })?;
        Ok(Self { counts, ended })
    }

    /// Waits until all is settled, if every outbox is gone; gives how many requests were
    /// settled since the start.
    async fn stop(self, patience: Duration) -> u64 {
        if tokio::time::timeout(patience, self.ended).await.is_err() {
            let waiting = self.counts.waiting();
            tracing::warn!(waiting, "the ledger did not take everything in time; reservations left are charged later");
        }
        self.counts.settled()
    }
}

/// The journal in the data directory, after what an earlier process left in it has gone into the ledger.
pub(super) async fn open_journal(
    config: &Config,
    store: &Store,
    clock: &SharedClock,
) -> Result<Option<Journal>, StartError> {
    let folder = config.data_dir.join("journal");
    match Journal::open(&folder, &config.journal, record::VERSION) {
        Ok((journal, recovery)) => {
            let (lost, in_memory) = (config.allocation.leases.lost, journal.goes_on_in_memory());
            let replayed = replay(store, recovery, clock, lost, in_memory).await?;
            journal.leaves(replayed.left);
            // From here on what is written is for this database; under whose leases, the holder adds.
            let database = store.read(&Granted::system()).await?.database_id().await?;
            // Where it cannot be noted now, the next segment has it.
            let note = Note { holder: "", database: Some(&database), in_memory: Some(journal.goes_on_in_memory()) };
            let _ = journal.note(&note.to_bytes());
            Ok(Some(journal))
        }
        Err(error @ OpenError::Folder { .. }) if config.journal.on_error == OnError::Memory => {
            tracing::warn!(%error, "requests are in memory alone until they settle");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
