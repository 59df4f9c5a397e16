//! What every gateway does beside its requests, embedded or served.
//!
//! ```no_run
//! # use alchemi::{Identity, Store, allocation::Allocations, jobs};
//! # async fn start(store: Store, identity: Identity, allocations: Allocations) -> Result<(), Box<dyn std::error::Error>> {
//! let mut jobs = tokio::task::JoinSet::new();
//! jobs.spawn(jobs::follow_revocations(store, identity).await?);
//! jobs.spawn(jobs::keep_reservations(allocations));
//! // …and at the end, before the settler is waited for, which ends with the last of the allocations:
//! jobs.shutdown().await;
//! # Ok(())
//! # }
//! ```

use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior};

use crate::allocation::Allocations;
use crate::context::Granted;
use crate::identity::{Identity, Revocation};
use crate::store::changes::{Change, ChangeKind};
use crate::store::{Store, StoreError};

/// The deny-list is read anew this often, whatever the feed says.
const REVOCATIONS_TTL: Duration = Duration::from_secs(60);

/// After how long a reading that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How often abandoned reservations are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Reads the deny-list once.
pub(crate) async fn load_revocations(store: &Store, identity: &Identity) -> Result<(), StoreError> {
    loop {
        let seen = identity.revocations().seen();
        let mut tx = store.read(&Granted::system()).await?;
        let (rows, logouts) = (tx.revocations().await?, tx.logouts().await?);
        let list = rows.into_iter().map(|row| Revocation {
            issuer: row.issuer,
            subject: row.subject,
            issued_before: row.issued_before,
        });
        if identity.revocations().replace(&seen, list.collect(), logouts) {
            return Ok(());
        }
    }
}

/// Reads the deny-list, by which `identity` refuses tokens of subjects that were cut off; gives what keeps it as the
/// store's changes say, and reads it every minute whatever they say. That is to be spawned, and does not end.
///
/// # Errors
/// [`StoreError`] when the list cannot be read now. Later failures are tried again, and the last list stays in force.
pub async fn follow_revocations(
    store: Store,
    identity: Identity,
) -> Result<impl Future<Output = ()> + Send + 'static, StoreError> {
    // Before the first reading, so that nothing is missed between.
    let changes = store.changes();
    load_revocations(&store, &identity).await?;
    Ok(async move { refresh_on_change(changes, || load_revocations(&store, &identity)).await })
}

/// Calls `load` whenever the deny-list has changed, and every [`REVOCATIONS_TTL`] whatever
/// else changes; what fails is tried again.
async fn refresh_on_change<L>(mut changes: Receiver<Change>, load: impl Fn() -> L)
where
    L: Future<Output = Result<(), StoreError>>,
{
    let mut refresh = tokio::time::interval_at(Instant::now() + REVOCATIONS_TTL, REVOCATIONS_TTL);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = refresh.tick() => {}
            change = changes.recv() => match change {
                Ok(change) if !matches!(change.kind, ChangeKind::Revocations | ChangeKind::Everything) => continue,
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
        }
        while let Err(error) = load().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the deny-list cannot be read; the last one stays in force"
            );
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}

/// Keeps reservations whose requests are under way here, or wait for the ledger, from being taken for abandoned, and
/// charges those that nobody settled, whichever gateway made them. It is to be spawned, and to be aborted before the settler
/// is waited for: it does not end, and the settler does when nothing of the allocations is left.
pub async fn keep_reservations(allocations: Allocations) {
    tokio::join!(renew_reservations(&allocations), charge_abandoned(&allocations));
}

async fn renew_reservations(allocations: &Allocations) {
    let pause = (allocations.abandon_after() / 3).clamp(Duration::from_millis(100), SWEEP_EVERY);
    loop {
        tokio::time::sleep(pause).await;
        if let Err(error) = allocations.renew_rows().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "reservations cannot be renewed; trying again");
        }
    }
}

async fn charge_abandoned(allocations: &Allocations) {
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::sync::broadcast;

    use super::*;
    use crate::id::Id;

    fn change(kind: ChangeKind) -> Change {
        Change::of(Id::nobody(), kind)
    }

    /// How often the deny-list was read `after` some time in which `other` changes came every second.
    async fn readings(after: Duration, failures: u32, first: ChangeKind) -> u32 {
        let (sender, changes) = broadcast::channel(16);
        let read = Cell::new(0);
        let load = || async {
            read.set(read.get() + 1);
            if read.get() > failures { Ok(()) } else { Err(StoreError::Unavailable("gone".to_owned())) }
        };
        let busy = async {
            sender.send(change(first)).unwrap();
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                sender.send(change(ChangeKind::Budget)).unwrap();
            }
        };
        tokio::select! {
            () = refresh_on_change(changes, load) => {}
            () = busy => {}
            () = tokio::time::sleep(after) => {}
        }
        read.get()
    }

    #[tokio::test(start_paused = true)]
    async fn other_changes_do_not_postpone_the_deny_list() {
        assert_eq!(readings(REVOCATIONS_TTL * 2 + RETRY_AFTER / 2, 0, ChangeKind::Budget).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_the_deny_list_is_read_until_it_succeeds() {
        assert_eq!(readings(RETRY_AFTER / 2, 0, ChangeKind::Revocations).await, 1);
        assert_eq!(readings(RETRY_AFTER * 5 / 2, 2, ChangeKind::Everything).await, 3);
    }
}
