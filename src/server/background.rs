//! Jobs beside the listeners.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;

use crate::allocation::Allocations;
use crate::context::Granted;
use crate::identity::{Identity, Revocation};
use crate::store::changes::ChangeKind;
use crate::store::{Store, StoreError};

/// The deny-list is read anew this often, whatever the feed says.
const REVOCATIONS_TTL: Duration = Duration::from_secs(60);

/// How often abandoned reservations are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Reads the deny-list.
pub(super) async fn load_revocations(store: &Store, identity: &Identity) -> Result<(), StoreError> {
    let rows = store.read(&Granted::system()).await?.revocations().await?;
    let list = rows.into_iter().map(|row| Revocation {
        issuer: row.issuer,
        subject: row.subject,
        issued_before: row.issued_before,
    });
    identity.revocations().replace(list.collect());
    Ok(())
}

/// Reads the deny-list whenever it has changed.
pub(super) async fn follow_revocations(store: Store, identity: Identity) {
    let mut changes = store.changes();
    loop {
        let due = match tokio::time::timeout(REVOCATIONS_TTL, changes.recv()).await {
            Err(_) | Ok(Err(RecvError::Lagged(_))) => true,
            Ok(Ok(change)) => matches!(change.kind, ChangeKind::Revocations | ChangeKind::Everything),
            Ok(Err(RecvError::Closed)) => return,
        };
        if due && let Err(error) = load_revocations(&store, &identity).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the deny-list cannot be read; the last one stays in force"
            );
        }
    }
}

/// Charges reservations that nobody settled.
pub(super) async fn charge_abandoned(allocations: Allocations) {
    loop {
        match allocations.charge_abandoned().await {
            Ok(0) => {}
            Ok(count) => tracing::warn!(count, "abandoned reservations were charged at their estimate"),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "abandoned reservations cannot be charged");
            }
        }
        tokio::time::sleep(SWEEP_EVERY).await;
    }
}
