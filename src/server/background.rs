//! Jobs of a server of our own, beside its listeners and the [`jobs`](crate::jobs) of every gateway.

use std::time::Duration;

use crate::context::Granted;
use crate::secret::KeyRing;
use crate::store::conservation::{Check, LastCheck, verify_at_leisure};
use crate::store::{Store, StoreError};

/// Says which keys the database's secrets need and the configuration does not have.
pub(super) async fn look_for_lost_keys(store: &Store, keys: &KeyRing) -> Result<(), StoreError> {
    for count in store.read(&Granted::system()).await?.sealed_counts().await? {
        if !keys.ids().any(|id| id == count.key_id) {
            tracing::warn!(
                table = count.table,
                key = count.key_id,
                secrets = count.secrets,
                "secrets are sealed under a key that is not among secrets.keys (ALCHEMI_SECRET_KEY)"
            );
        }
    }
    Ok(())
}

/// How often it is looked whether the ledger is due, and what another gateway has found.
const LOOK_AT_BOOKS: Duration = Duration::from_secs(60);

/// A check of the ledger takes a tenth of its time at work, whatever its size.
const REST: u32 = 9;

/// Has the ledger added up every so often by one of the gateways, and tells what was found.
pub(super) async fn verify_ledger(store: Store, every: Duration, books: LastCheck) {
    let look = every.min(LOOK_AT_BOOKS);
    loop {
        // Not at once: a gateway that is started has better things to do.
        tokio::time::sleep(look).await;
        if let Err(error) = verify_if_due(&store, every, &books).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the ledger cannot be verified; trying again");
        }
    }
}

async fn verify_if_due(store: &Store, every: Duration, books: &LastCheck) -> Result<(), StoreError> {
    let mut tx = store.begin(&Granted::system()).await?;
    let started_at = tx.now();
    let claimed = tx.claim_ledger_check(every).await?;
    tx.commit().await?;
    if claimed {
        let report = verify_at_leisure(store, REST).await?;
        let mut tx = store.begin(&Granted::system()).await?;
        tx.note_ledger_check(started_at, &report).await?;
        tx.commit().await?;
        for difference in &report.differences {
            tracing::error!(%difference, "the books do not balance");
        }
        tracing::info!(
            rows = report.rows,
            counters = report.counters,
            differences = report.differing(),
            "the ledger was verified"
        );
    }
    let last: Option<Check> = store.read(&Granted::system()).await?.last_ledger_check().await?;
    books.publish(last);
    Ok(())
}
