//! Which gateway adds up the ledger next, and what the last one found.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::Report;
use crate::clock::Timestamp;
use crate::context::Platform;
use crate::store::{Result, Tx, from_columns, on, run};

/// How often the ledger is added up beside requests.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LedgerConfig {
    /// Seconds from one check of the whole ledger to the next, whichever gateway makes it; 0: never.
    pub verify_seconds: u64,
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self { verify_seconds: 3_600 }
    }
}

/// A check of the whole ledger that came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// When it was begun.
    pub started_at: Timestamp,
    /// When it was over.
    pub finished_at: Timestamp,
    /// Rows that were added up.
    pub ledger_rows: i64,
    /// Sums that do not fit.
    pub differences: i64,
    /// One of them, in words; empty when the books balance.
    pub first_difference: String,
}

from_columns! { Check { started_at, finished_at, ledger_rows, differences, first_difference } }

/// The last check that this process has heard of, for metrics and readiness.
#[derive(Debug, Clone, Default)]
pub struct LastCheck(Arc<RwLock<Option<Check>>>);

impl LastCheck {
    /// None: there has been no check yet.
    pub fn last(&self) -> Option<Check> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From here on this is the last one.
    pub fn publish(&self, check: Option<Check>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = check;
    }
}

impl Tx<Platform> {
    /// Takes the next check of the ledger on, if the last one was begun at least `every` ago.
    /// `false`: another process has, or will when it is time.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn claim_ledger_check(&mut self, every: Duration) -> Result<bool> {
        let claimed = run!(
            self,
            r#"INSERT INTO "Alchemi_LedgerCheckTable" AS l (id, claimed_at) VALUES (1, $1)
               ON CONFLICT (id) DO UPDATE SET claimed_at = excluded.claimed_at WHERE l.claimed_at <= $2"#,
            self.now,
            self.now.minus(every)
        )?;
        Ok(claimed > 0)
    }

    /// Writes down what a check that was begun at `started_at` has found.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn note_ledger_check(&mut self, started_at: Timestamp, report: &Report) -> Result<()> {
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        run!(
            self,
            r#"UPDATE "Alchemi_LedgerCheckTable" SET started_at = $1, finished_at = $2, ledger_rows = $3,
               differences = $4, first_difference = $5 WHERE id = 1"#,
            started_at,
            self.now,
            count(report.rows),
            count(report.differing()),
            report.differences.first().map(ToString::to_string).unwrap_or_default()
        )
        .map(drop)
    }

    /// The last check that came to its end.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn last_ledger_check(&mut self) -> Result<Option<Check>> {
        on!(self, |c| sqlx::query_as(
            r#"SELECT started_at, finished_at, ledger_rows, differences, first_difference
               FROM "Alchemi_LedgerCheckTable" WHERE finished_at IS NOT NULL"#
        )
        .fetch_optional(c)
        .await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Granted;
    use crate::store::conservation::verify;
    use crate::store::testing;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn one_process_checks_in_each_interval_and_all_read_what_it_found() {
        for fresh in testing::databases().await {
            let claim = async || {
                let mut tx = fresh.store.begin(&Granted::system()).await.unwrap();
                let claimed = tx.claim_ledger_check(HOUR).await.unwrap();
                tx.commit().await.unwrap();
                claimed
            };
            assert!(claim().await, "the first");
            assert!(!claim().await, "it is under way");
            let last = async || fresh.store.read(&Granted::system()).await.unwrap().last_ledger_check().await.unwrap();
            assert_eq!(last().await, None);

            let account = fresh.account("Acme").await;
            fresh.reserve(&account, "one", 3).await;
            let mut tx = fresh.store.begin(&Granted::system()).await.unwrap();
            let started_at = tx.now();
            run!(tx, r#"UPDATE "Alchemi_AllocationCounterTable" SET leased = 0"#).unwrap();
            tx.commit().await.unwrap();
            fresh.clock.advance(Duration::from_secs(5));
            let report = verify(&fresh.store).await.unwrap();
            let mut tx = fresh.store.begin(&Granted::system()).await.unwrap();
            tx.note_ledger_check(started_at, &report).await.unwrap();
            tx.commit().await.unwrap();
            let check = last().await.unwrap();
            assert_eq!((check.started_at, check.ledger_rows, check.differences), (started_at, 0, 1));
            assert_eq!(check.finished_at.since(started_at), Duration::from_secs(5));
            assert!(check.first_difference.contains("`leased`"), "{check:?}");

            fresh.clock.advance(HOUR - Duration::from_secs(6));
            assert!(!claim().await, "not yet");
            fresh.clock.advance(Duration::from_secs(1));
            assert!(claim().await, "an hour after the claim, whether or not that check came to its end");
            assert_eq!(last().await, Some(check), "until the next one is over");
        }
    }
}
