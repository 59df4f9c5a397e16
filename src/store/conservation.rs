//! The books, checked: what the ledger's rows add up to is what every counter and
//! every roll-up says, and what reservations and leases hold is what counters
//! have leased.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::ledger::{Counter, RollupKey, RollupSums};
use super::{Result, Store, StoreError, Tx, from_columns, on};
use crate::clock::Timestamp;
use crate::context::{Granted, Platform};
use crate::credits::Credits;
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::usage::CounterKey;

/// What was read and what does not fit.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Rows of the ledger.
    pub rows: u64,
    /// Counters.
    pub counters: u64,
    /// Requests that hold a reservation.
    pub reservations: u64,
    /// Leases that gateways have.
    pub leases: u64,
    /// Accounts with a ledger.
    pub accounts: u64,
    /// What does not fit; empty when the books balance.
    pub differences: Vec<Difference>,
}

/// One sum that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The account.
    pub account: Id<Account>,
    /// What is compared.
    pub what: String,
    /// What the ledger's rows or the reservations add up to.
    pub expected: String,
    /// What is written down.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "account {}: {} should be {} and is {}", self.account, self.what, self.expected, self.found)
    }
}

/// What counters have used and leased.
type Counters = BTreeMap<(Id<Account>, CounterKey), (Credits, Credits)>;
type Rollups = BTreeMap<RollupKey, RollupSums>;

/// Adds up the whole ledger; reads it in one transaction, so that it may be done
/// while requests are settled.
///
/// # Errors
/// [`StoreError`].
pub async fn verify(store: &Store) -> Result<Report> {
    verify_in(&mut store.read(&Granted::system()).await?).await
}

async fn verify_in(tx: &mut Tx<Platform>) -> Result<Report> {
    let mut report = Report::default();
    let (mut counters, mut rollups) = (Counters::new(), Rollups::new());
    let mut after = String::new();
    loop {
        let rows = tx.ledger_run(&after).await?;
        let Some(last) = rows.last() else { break };
        after.clone_from(&last.0.request_id);
        for (row, Rollup(key, sums)) in rows.into_iter().map(|LedgerRun(row, rollup)| (row, rollup)) {
            report.rows += 1;
            for counter in chain(&row.chain)? {
                add(&mut counters.entry((key.account_id.clone(), counter)).or_default().0, row.credits_incurred)?;
            }
            rollups.entry(key).or_default().add(&sums)?;
        }
    }
    for (account, amount, detail) in tx.holds().await? {
        report.reservations += 1;
        for key in held(&detail)? {
            add(&mut counters.entry((account.clone(), key)).or_default().1, amount)?;
        }
    }
    for (account, amount, text) in tx.open_leases().await? {
        report.leases += 1;
        for key in chain(&text)? {
            add(&mut counters.entry((account.clone(), key)).or_default().1, amount)?;
        }
    }
    let accounts: BTreeSet<_> = rollups.keys().map(|key| &key.account_id).collect();
    report.accounts = u64::try_from(accounts.len()).unwrap_or(u64::MAX);
    compare_counters(tx, counters, &mut report).await?;
    compare_rollups(tx, rollups, &mut report).await?;
    Ok(report)
}

async fn compare_counters(tx: &mut Tx<Platform>, mut sums: Counters, report: &mut Report) -> Result<()> {
    let mut compare = |(account, key): (Id<Account>, CounterKey), expected: (Credits, Credits), found| {
        let (used, leased): (Credits, Credits) = found;
        for (name, expected, found) in [("used", expected.0, used), ("leased", expected.1, leased)] {
            if expected != found {
                let what = format!("`{name}` of {} from {}", key.scope, Timestamp::from_micros(key.window_start));
                let (expected, found) = (expected.to_string(), found.to_string());
                report.differences.push(Difference { account: account.clone(), what, expected, found });
            }
        }
    };
    for (account, counter) in tx.all_counters().await? {
        report.counters += 1;
        let key = (account, counter.key());
        let expected = sums.remove(&key).unwrap_or_default();
        compare(key, expected, (counter.used, counter.leased));
    }
    // A counter that is missing counts nothing. A removed account takes its counters along; its rows stay.
    let living = tx.account_ids().await?;
    for (key, expected) in sums {
        if living.contains(&key.0) {
            compare(key, expected, Default::default());
        }
    }
    Ok(())
}

async fn compare_rollups(tx: &mut Tx<Platform>, mut sums: Rollups, report: &mut Report) -> Result<()> {
    let mut compare = |key: &RollupKey, expected: Option<RollupSums>, found: Option<RollupSums>| {
        if expected != found {
            let [expected, found] =
                [expected, found].map(|sums| sums.map_or_else(|| "missing".to_owned(), |s| s.to_string()));
            let (account, what) = (key.account_id.clone(), format!("the roll-up of {key}"));
            report.differences.push(Difference { account, what, expected, found });
        }
    };
    for Rollup(key, found) in tx.all_rollups().await? {
        compare(&key, sums.remove(&key), Some(found));
    }
    for (key, expected) in sums {
        compare(&key, Some(expected), None);
    }
    Ok(())
}

fn add(sum: &mut Credits, amount: Credits) -> Result<()> {
    *sum = sum.checked_add(amount).ok_or(StoreError::Overflow)?;
    Ok(())
}

fn chain(text: &str) -> Result<Vec<CounterKey>> {
    serde_json::from_str(text)
        .map_err(|e| StoreError::Unreadable { table: "Alchemi_UsageLedgerTable", reason: e.to_string() })
}

/// The counters that a reservation's detail says it holds.
fn held(detail: &str) -> Result<Vec<CounterKey>> {
    #[derive(serde::Deserialize)]
    struct Detail {
        held: Vec<CounterKey>,
    }
    serde_json::from_str::<Detail>(detail)
        .map(|d| d.held)
        .map_err(|e| StoreError::Unreadable { table: "Alchemi_AllocationReservationTable", reason: e.to_string() })
}

/// A row of the roll-ups, or what a row of the ledger adds to one.
struct Rollup(RollupKey, RollupSums);

/// A row of the ledger: what it adds to counters, and to a roll-up.
struct LedgerRun(LedgerSum, Rollup);

struct LedgerSum {
    request_id: String,
    credits_incurred: Credits,
    chain: String,
}

from_columns! { LedgerSum { request_id, credits_incurred, chain } }

impl<'r, R: sqlx::Row> sqlx::FromRow<'r, R> for Rollup
where
    RollupKey: sqlx::FromRow<'r, R>,
    RollupSums: sqlx::FromRow<'r, R>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        Ok(Self(RollupKey::from_row(row)?, RollupSums::from_row(row)?))
    }
}

impl<'r, R: sqlx::Row> sqlx::FromRow<'r, R> for LedgerRun
where
    LedgerSum: sqlx::FromRow<'r, R>,
    Rollup: sqlx::FromRow<'r, R>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        Ok(Self(LedgerSum::from_row(row)?, Rollup::from_row(row)?))
    }
}

struct AccountCounter {
    account_id: Id<Account>,
    scope_type: crate::model::scope::ScopeType,
    scope_id: String,
    window_start: Timestamp,
    used: Credits,
    leased: Credits,
}

from_columns! { AccountCounter { account_id, scope_type, scope_id, window_start, used, leased } }

impl Tx<Platform> {
    async fn ledger_run(&mut self, after: &str) -> Result<Vec<LedgerRun>> {
        on!(self, |c| sqlx::query_as(
            r#"SELECT request_id, chain, account_id, domain, day, COALESCE(org_id, '') AS org_id,
               COALESCE(team_id, '') AS team_id, COALESCE(user_id, '') AS user_id, COALESCE(agent_id, '') AS agent_id,
               COALESCE(model_name, '') AS model_name, COALESCE(connection_id, '') AS connection_id,
               COALESCE(guardrail_code, '') AS guardrail_code, CAST(1 AS BIGINT) AS requests, input_tokens,
               output_tokens, raw_cost, credits_incurred
               FROM "Alchemi_UsageLedgerTable" WHERE request_id > $1 ORDER BY request_id LIMIT 1000"#
        )
        .bind(after)
        .fetch_all(c)
        .await)
    }

    async fn holds(&mut self) -> Result<Vec<(Id<Account>, Credits, String)>> {
        on!(self, |c| sqlx::query_as(r#"SELECT account_id, amount, detail FROM "Alchemi_AllocationReservationTable""#)
            .fetch_all(c)
            .await)
    }

    async fn open_leases(&mut self) -> Result<Vec<(Id<Account>, Credits, String)>> {
        on!(self, |c| sqlx::query_as(
            r#"SELECT account_id, amount, counters FROM "Alchemi_AllocationLeaseTable" WHERE state = 'open'"#
        )
        .fetch_all(c)
        .await)
    }

    async fn all_counters(&mut self) -> Result<Vec<(Id<Account>, Counter)>> {
        let rows: Vec<AccountCounter> = on!(self, |c| {
            sqlx::query_as(
            r#"SELECT account_id, scope_type, scope_id, window_start, used, leased FROM "Alchemi_AllocationCounterTable""#
        )
        .fetch_all(c)
        .await
        })?;
        let counter = |row: AccountCounter| {
            let AccountCounter { account_id, scope_type, scope_id, window_start, used, leased } = row;
            (account_id, Counter { scope_type, scope_id, window_start, used, leased })
        };
        Ok(rows.into_iter().map(counter).collect())
    }

    async fn account_ids(&mut self) -> Result<BTreeSet<Id<Account>>> {
        let ids: Vec<Id<Account>> =
            on!(self, |c| sqlx::query_scalar(r#"SELECT account_id FROM "Alchemi_AccountTable""#).fetch_all(c).await)?;
        Ok(ids.into_iter().collect())
    }

    async fn all_rollups(&mut self) -> Result<Vec<Rollup>> {
        on!(self, |c| sqlx::query_as(r#"SELECT * FROM "Alchemi_UsageRollupTable""#).fetch_all(c).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::run;
    use crate::store::testing::{self, Fresh};

    /// Two settled requests, one of them of an account that is removed, and one that holds 3 credits.
    async fn books(fresh: &Fresh) {
        let (account, removed) = (fresh.account("Acme").await, fresh.account("Gone").await);
        let batch = [testing::settlement(&account, "one", 5), testing::settlement(&removed, "two", 7)];
        let mut tx = fresh.store.begin(&Granted::system()).await.unwrap();
        assert_eq!(tx.settle(&batch).await.unwrap(), 2);
        tx.commit().await.unwrap();
        fresh.remove(&removed).await;
        // Its last request was under way.
        let mut tx = fresh.store.begin(&Granted::system()).await.unwrap();
        assert_eq!(tx.settle_orphans(&[testing::settlement(&removed, "three", 9)]).await.unwrap(), 1);
        tx.commit().await.unwrap();
        fresh.reserve(&account, "four", 3).await;
    }

    async fn found(tx: &mut Tx<Platform>) -> Vec<String> {
        let report = verify_in(tx).await.unwrap();
        assert_eq!((report.rows, report.accounts, report.reservations), (3, 2, 1));
        report.differences.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn books_that_balance_and_every_way_to_spoil_them() {
        for fresh in testing::databases().await {
            books(&fresh).await;
            assert_eq!(verify(&fresh.store).await.unwrap().differences, []);
            let spoilt: [(&str, &[&str]); 8] = [
                (
                    r#"DELETE FROM "Alchemi_UsageRollupTable" WHERE credits_incurred = 5000000000"#,
                    &["should be 1 requests, 10 + 20 tokens, 0.005 USD, 5 credits and is missing"],
                ),
                (
                    r#"UPDATE "Alchemi_UsageRollupTable" SET model_name = 'x' WHERE credits_incurred = 5000000000"#,
                    &["model x should be missing", "and is missing"],
                ),
                (
                    r#"UPDATE "Alchemi_UsageRollupTable" SET requests = 3 WHERE credits_incurred = 16000000000"#,
                    &["should be 2 requests, 20 + 40 tokens, 0.016 USD, 16 credits and is 3 requests"],
                ),
                (r#"UPDATE "Alchemi_UsageRollupTable" SET output_tokens = 0"#, &["+ 0 tokens", "+ 0 tokens"]),
                (
                    r#"UPDATE "Alchemi_UsageLedgerTable" SET day = '' WHERE request_id = 'one'"#,
                    &["is missing", "missing and"],
                ),
                (r#"UPDATE "Alchemi_AllocationCounterTable" SET used = 6000000000"#, &["should be 5 and is 6"]),
                (r#"UPDATE "Alchemi_AllocationCounterTable" SET leased = 0"#, &["should be 3 and is 0"]),
                (r#"DELETE FROM "Alchemi_AllocationCounterTable""#, &["should be 5 and is 0", "should be 3 and is 0"]),
            ];
            for (sql, expected) in spoilt {
                // Never committed: each starts from books that balance.
                let mut tx = fresh.store.begin(&Granted::system()).await.unwrap();
                run!(tx, sql).unwrap();
                let mut found = found(&mut tx).await;
                found.sort_by_key(|line| !line.contains(expected[0]));
                assert_eq!(found.len(), expected.len(), "{sql}: {found:#?}");
                for (line, expected) in found.iter().zip(expected) {
                    assert!(line.contains(expected), "{sql}: {line}");
                }
            }
        }
    }
}
