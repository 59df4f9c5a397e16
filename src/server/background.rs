//! Jobs beside the listeners.

use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior};

use crate::allocation::Allocations;
use crate::context::Granted;
use crate::identity::{Identity, Revocation};
use crate::secret::KeyRing;
use crate::store::changes::{Change, ChangeKind};
use crate::store::conservation::{Books, Check, verify_at_leisure};
use crate::store::{Store, StoreError};

/// The deny-list is read anew this often, whatever the feed says.
const REVOCATIONS_TTL: Duration = Duration::from_secs(60);

/// After how long a reading that failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How often abandoned reservations are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Reads the deny-list.
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

/// Keeps the deny-list, once read, as `changes` of the store say; they are to be
/// subscribed to before the first reading, so that nothing is missed between.
pub(super) async fn follow_revocations(changes: Receiver<Change>, store: Store, identity: Identity) {
    refresh_on_change(changes, || load_revocations(&store, &identity)).await;
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

/// Keeps reservations whose requests are under way here, or wait for the ledger, from being
/// taken for abandoned.
pub(super) async fn renew_reservations(allocations: Allocations) {
    let pause = (allocations.abandon_after() / 3).clamp(Duration::from_millis(100), SWEEP_EVERY);
    loop {
        tokio::time::sleep(pause).await;
        if let Err(error) = allocations.renew_rows().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "reservations cannot be renewed; trying again");
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

/// How often it is looked whether the ledger is due, and what another gateway has found.
const LOOK_AT_BOOKS: Duration = Duration::from_secs(60);

/// A check of the ledger takes a tenth of its time at work, whatever its size.
const REST: u32 = 9;

/// Has the ledger added up every so often by one of the gateways, and tells what was found.
pub(super) async fn verify_ledger(store: Store, every: Duration, books: Books) {
    let look = every.min(LOOK_AT_BOOKS);
    loop {
        // Not at once: a gateway that is started has better things to do.
        tokio::time::sleep(look).await;
        if let Err(error) = verify_if_due(&store, every, &books).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the ledger cannot be verified; trying again");
        }
    }
}

async fn verify_if_due(store: &Store, every: Duration, books: &Books) -> Result<(), StoreError> {
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
