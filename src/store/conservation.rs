//! The books, checked: what the ledger's rows add up to is what counters and
//! roll-ups say, and what reservations hold is what counters have leased.

use std::collections::BTreeMap;
use std::fmt;

use super::ledger::Counter;
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
    pub expected: Credits,
    /// What is written down.
    pub found: Credits,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "account {}: {} should be {} and is {}", self.account, self.what, self.expected, self.found)
    }
}

type Sums = BTreeMap<(Id<Account>, CounterKey), (Credits, Credits)>;

/// Adds up the whole ledger; reads it in one transaction, so that it may be done
/// while requests are settled.
///
/// # Errors
/// [`StoreError`].
pub async fn verify(store: &Store) -> Result<Report> {
    let mut tx = store.read(&Granted::system()).await?;
    let mut report = Report::default();
    let mut sums = Sums::new();
    let mut totals: BTreeMap<Id<Account>, Credits> = BTreeMap::new();
    let mut after = String::new();
    loop {
        let rows = tx.ledger_run(&after).await?;
        let Some(last) = rows.last() else { break };
        after.clone_from(&last.request_id);
        for row in rows {
            report.rows += 1;
            add(totals.entry(row.account_id.clone()).or_default(), row.credits_incurred)?;
            for key in chain(&row.chain)? {
                add(&mut sums.entry((row.account_id.clone(), key)).or_default().0, row.credits_incurred)?;
            }
        }
    }
    for (account, amount, detail) in tx.holds().await? {
        report.reservations += 1;
        for key in held(&detail)? {
            add(&mut sums.entry((account.clone(), key)).or_default().1, amount)?;
        }
    }
    compare_counters(&mut tx, sums, &mut report).await?;
    report.accounts = u64::try_from(totals.len()).unwrap_or(u64::MAX);
    compare_rollups(&mut tx, totals, &mut report).await?;
    Ok(report)
}

async fn compare_counters(tx: &mut Tx<Platform>, mut sums: Sums, report: &mut Report) -> Result<()> {
    for (account, counter) in tx.all_counters().await? {
        report.counters += 1;
        let key = counter.key();
        let (used, leased) = sums.remove(&(account.clone(), key.clone())).unwrap_or_default();
        for (name, expected, found) in [("used", used, counter.used), ("leased", leased, counter.leased)] {
            if expected != found {
                let what = format!("`{name}` of {} from {}", key.scope, counter.window_start);
                report.differences.push(Difference { account: account.clone(), what, expected, found });
            }
        }
    }
    // A removed account takes its counters along; its rows stay.
    let living = tx.account_ids().await?;
    for ((account, key), (used, leased)) in sums {
        if living.contains(&account) && (used, leased) != (Credits::ZERO, Credits::ZERO) {
            let what = format!("the missing counter of {}", key.scope);
            report.differences.push(Difference { account, what, expected: used, found: Credits::ZERO });
        }
    }
    Ok(())
}

async fn compare_rollups(
    tx: &mut Tx<Platform>,
    mut totals: BTreeMap<Id<Account>, Credits>,
    report: &mut Report,
) -> Result<()> {
    for (account, found) in tx.rollup_totals().await? {
        let expected = totals.remove(&account).unwrap_or_default();
        if expected != found {
            report.differences.push(Difference { account, what: "the sum of roll-ups".to_owned(), expected, found });
        }
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

struct LedgerSum {
    request_id: String,
    account_id: Id<Account>,
    credits_incurred: Credits,
    chain: String,
}

from_columns! { LedgerSum { request_id, account_id, credits_incurred, chain } }

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
    async fn ledger_run(&mut self, after: &str) -> Result<Vec<LedgerSum>> {
        on!(self, |c| sqlx::query_as(
            r#"SELECT request_id, account_id, credits_incurred, chain FROM "Alchemi_UsageLedgerTable"
               WHERE request_id > $1 ORDER BY request_id LIMIT 1000"#
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

    async fn account_ids(&mut self) -> Result<Vec<Id<Account>>> {
        on!(self, |c| sqlx::query_scalar(r#"SELECT account_id FROM "Alchemi_AccountTable""#).fetch_all(c).await)
    }

    async fn rollup_totals(&mut self) -> Result<Vec<(Id<Account>, Credits)>> {
        on!(self, |c| {
            sqlx::query_as(
            r#"SELECT account_id, CAST(SUM(credits_incurred) AS BIGINT) FROM "Alchemi_UsageRollupTable" GROUP BY account_id"#
        )
        .fetch_all(c)
        .await
        })
    }
}
