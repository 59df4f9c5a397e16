//! The books, checked: what the ledger's rows add up to is what every counter and
//! every roll-up says and what each account is said to have spent, what reservations and
//! leases hold is what counters have leased, and both together are within the cap and what
//! was used beyond holds.
//!
//! Accounts are added up one after the other, each in a transaction of its own that
//! reads one moment, so that requests go on being settled and no snapshot is held for
//! longer than one account takes. The database does the grouping; here are, at any
//! time, at most 100,000 counters.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;

use super::ledger::RollupSums;
use super::{Result, Store, StoreError, Tx, on};
use crate::clock::Timestamp;
use crate::context::{Granted, Platform};
use crate::credits::{Credits, Usd};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::usage::CounterKey;

mod checks;
mod rows;
pub use checks::{Check, LastCheck, LedgerConfig};
use rows::{CHAINS, COUNTERS, ChainSum, CounterRow, Held, LEASES, RESERVATIONS, ROLLED_UP, RolledUp};

/// Calls a closure with each row of a statement about one account, as they come.
macro_rules! each {
    ($tx:expr, $row:ty, $sql:expr, $account:expr, $fold:expr) => {{
        let mut fold = $fold;
        let mut folded: Result<()> = Ok(());
        let read = on!($tx, |c| {
            let mut rows = sqlx::query_as::<_, $row>($sql).bind($account).fetch(c);
            loop {
                match rows.try_next().await {
                    Ok(Some(row)) => folded = fold(row),
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
                if folded.is_err() {
                    break Ok(());
                }
            }
        });
        read.and(folded)
    }};
}
/// Counters of an account that are compared at once; one with more is read several times.
const AT_ONCE: u64 = 100_000;

/// Differences that are told in words; of the others there is the number.
const TOLD: usize = 1_000;

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
    /// What does not fit, the first thousand; empty when the books balance.
    pub differences: Vec<Difference>,
    /// How many more there are.
    pub more_differences: u64,
}

impl Report {
    /// How many sums do not fit.
    pub fn differing(&self) -> u64 {
        u64::try_from(self.differences.len()).unwrap_or(u64::MAX).saturating_add(self.more_differences)
    }

    fn differs(&mut self, account: &Id<Account>, what: String, expected: impl fmt::Display, found: impl fmt::Display) {
        if self.differences.len() >= TOLD {
            self.more_differences += 1;
            return;
        }
        let (account, expected, found) = (account.clone(), expected.to_string(), found.to_string());
        self.differences.push(Difference { account, what, expected, found });
    }
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

/// Adds up the whole ledger, which may be done while requests are settled.
///
/// # Errors
/// [`StoreError`].
pub async fn verify(store: &Store) -> Result<Report> {
    verify_at_leisure(store, 0).await
}

/// The same, resting after each account for `rest` times as long as it took.
///
/// # Errors
/// [`StoreError`].
pub async fn verify_at_leisure(store: &Store, rest: u32) -> Result<Report> {
    let mut report = Report::default();
    let mut after = String::new();
    loop {
        let begun = Instant::now();
        let mut tx = store.read(&Granted::system()).await?;
        let Some(account) = tx.next_account(&after).await? else { return Ok(report) };
        match verify_account(&mut tx, &account, &mut report).await {
            // It is told like anything else that does not fit, and the other accounts are looked at.
            Err(StoreError::Unreadable { table, reason }) => {
                report.differs(&account, format!("a row of {table}"), "readable", reason);
            }
            done => done?,
        }
        drop(tx);
        if rest > 0 {
            tokio::time::sleep(begun.elapsed().saturating_mul(rest).min(LONGEST_REST)).await;
        }
        after = account.to_string();
    }
}

const LONGEST_REST: Duration = Duration::from_secs(60);

async fn verify_account(tx: &mut Tx<Platform>, account: &Id<Account>, report: &mut Report) -> Result<()> {
    let parts = tx.counter_count(account).await? / AT_ONCE + 1;
    for part in 0..parts {
        let seen = verify_counters(tx, account, Part { part, parts }, report).await?;
        if part == 0 {
            report.rows += seen.rows;
            report.reservations += seen.reservations;
            report.leases += seen.leases;
            report.accounts += u64::from(seen.rows > 0);
            verify_total(tx, account, (seen.raw_cost, seen.credits), report).await?;
        }
    }
    each!(tx, RolledUp, ROLLED_UP, account, |row: RolledUp| {
        let RolledUp { key, expected, found } = row;
        let told = |sums: RollupSums| {
            if sums == RollupSums::default() { "missing".to_owned() } else { sums.to_string() }
        };
        report.differs(account, format!("the roll-up of {key}"), told(expected), told(found));
        Ok(())
    })
}

/// What the account is said to have spent, against what its rows add up to.
async fn verify_total(
    tx: &mut Tx<Platform>,
    account: &Id<Account>,
    expected: (Usd, Credits),
    report: &mut Report,
) -> Result<()> {
    let total = tx.totals_of(std::slice::from_ref(account)).await?.pop();
    let found = total.map(|total| (total.raw_cost, total.credits_incurred)).unwrap_or_default();
    if expected != found {
        let told = |(cost, credits): (Usd, Credits)| format!("{cost} USD, {credits} credits");
        report.differs(account, "what the account has spent".to_owned(), told(expected), told(found));
    }
    Ok(())
}

/// What was added up beside the counters.
#[derive(Debug, Default)]
struct Seen {
    rows: u64,
    raw_cost: Usd,
    credits: Credits,
    reservations: u64,
    leases: u64,
}

/// What some counters should have used and leased.
struct Sums {
    part: Part,
    sums: BTreeMap<CounterKey, (Credits, Credits)>,
}

/// Which counters: one of so many parts of them all.
#[derive(Debug, Clone, Copy)]
struct Part {
    part: u64,
    parts: u64,
}

impl Part {
    fn has(self, key: &CounterKey) -> bool {
        self.parts == 1 || foldhash::fast::FixedState::default().hash_one(key) % self.parts == self.part
    }
}

impl Sums {
    fn add(&mut self, keys: Vec<CounterKey>, (used, leased): (Credits, Credits)) -> Result<()> {
        for key in keys.into_iter().filter(|key| self.part.has(key)) {
            let sums = self.sums.entry(key).or_default();
            sums.0 = sums.0.checked_add(used).ok_or(StoreError::Overflow)?;
            sums.1 = sums.1.checked_add(leased).ok_or(StoreError::Overflow)?;
        }
        Ok(())
    }
}

async fn verify_counters(
    tx: &mut Tx<Platform>,
    account: &Id<Account>,
    part: Part,
    report: &mut Report,
) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut sums = Sums { part, sums: BTreeMap::new() };
    each!(tx, ChainSum, CHAINS, account, |row: ChainSum| {
        seen.rows += u64::try_from(row.ledger_rows).unwrap_or(0);
        seen.raw_cost = seen.raw_cost.checked_add(row.raw_cost).ok_or(StoreError::Overflow)?;
        seen.credits = seen.credits.checked_add(row.credits).ok_or(StoreError::Overflow)?;
        sums.add(chain("Alchemi_UsageLedgerTable", &row.chain)?, (row.credits, Credits::ZERO))
    })?;
    each!(tx, Held, RESERVATIONS, account, |row: Held| {
        seen.reservations += 1;
        sums.add(held(&row.held)?, (Credits::ZERO, row.amount))
    })?;
    each!(tx, Held, LEASES, account, |row: Held| {
        seen.leases += 1;
        sums.add(chain("Alchemi_AllocationLeaseTable", &row.held)?, (Credits::ZERO, row.amount))
    })?;
    let Sums { mut sums, .. } = sums;
    each!(tx, CounterRow, COUNTERS, account, |CounterRow { counter, cap }: CounterRow| {
        let key = counter.key();
        if part.has(&key) {
            report.counters += 1;
            let expected = sums.remove(&key).unwrap_or_default();
            compare(report, account, &key, expected, (counter.used, counter.leased));
            let drawn = counter.used.saturating_add(counter.leased);
            if drawn > cap {
                let what = format!("`used` and `leased` of {} from {}", key.scope, counter.window_start);
                report.differs(account, what, format_args!("at most {cap}"), drawn);
            }
        }
        Ok(())
    })?;
    // A counter that is missing counts nothing. A removed account takes its counters along; its rows stay.
    if !sums.is_empty() && tx.account_exists(account).await? {
        for (key, expected) in sums {
            compare(report, account, &key, expected, Default::default());
        }
    }
    Ok(seen)
}

fn compare(
    report: &mut Report,
    account: &Id<Account>,
    key: &CounterKey,
    expected: (Credits, Credits),
    found: (Credits, Credits),
) {
    for (name, expected, found) in [("used", expected.0, found.0), ("leased", expected.1, found.1)] {
        if expected != found {
            let what = format!("`{name}` of {} from {}", key.scope, Timestamp::from_micros(key.window_start));
            report.differs(account, what, expected, found);
        }
    }
}

fn chain(table: &'static str, text: &str) -> Result<Vec<CounterKey>> {
    serde_json::from_str(text).map_err(|e| StoreError::Unreadable { table, reason: e.to_string() })
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

impl Tx<Platform> {
    /// The first account after `after` that has anything to be added up.
    async fn next_account(&mut self, after: &str) -> Result<Option<Id<Account>>> {
        on!(self, |c| sqlx::query_scalar(
            r#"SELECT MIN(account_id) FROM (
               SELECT MIN(account_id) AS account_id FROM "Alchemi_UsageLedgerTable" WHERE account_id > $1
               UNION ALL SELECT MIN(account_id) FROM "Alchemi_UsageRollupTable" WHERE account_id > $1
               UNION ALL SELECT MIN(account_id) FROM "Alchemi_UsageTotalTable" WHERE account_id > $1
               UNION ALL SELECT MIN(account_id) FROM "Alchemi_AllocationCounterTable" WHERE account_id > $1
               UNION ALL SELECT MIN(account_id) FROM "Alchemi_AllocationReservationTable" WHERE account_id > $1
               UNION ALL SELECT MIN(account_id) FROM "Alchemi_AllocationLeaseTable" WHERE account_id > $1) AS firsts"#
        )
        .bind(after)
        .fetch_one(c)
        .await)
    }

    async fn counter_count(&mut self, account: &Id<Account>) -> Result<u64> {
        let count: i64 = on!(self, |c| sqlx::query_scalar(
            r#"SELECT COUNT(*) FROM "Alchemi_AllocationCounterTable" WHERE account_id = $1"#
        )
        .bind(account)
        .fetch_one(c)
        .await)?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    async fn account_exists(&mut self, account: &Id<Account>) -> Result<bool> {
        let found: Option<Id<Account>> = on!(self, |c| sqlx::query_scalar(
            r#"SELECT account_id FROM "Alchemi_AccountTable" WHERE account_id = $1"#
        )
        .bind(account)
        .fetch_optional(c)
        .await)?;
        Ok(found.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::run;
    use crate::store::testing::{self, Fresh};

    /// Two settled requests, one of them of an account that is removed, and one that holds 3 credits.
    async fn books(fresh: &Fresh) -> Id<Account> {
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
        account
    }

    async fn found(tx: &mut Tx<Platform>) -> Vec<String> {
        let (mut report, mut after) = (Report::default(), String::new());
        while let Some(account) = tx.next_account(&after).await.unwrap() {
            verify_account(tx, &account, &mut report).await.unwrap();
            after = account.to_string();
        }
        assert_eq!((report.rows, report.accounts, report.reservations), (3, 2, 1));
        report.differences.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn books_that_balance_and_every_way_to_spoil_them() {
        for fresh in testing::databases().await {
            books(&fresh).await;
            assert_eq!(verify(&fresh.store).await.unwrap().differences, []);
            let spoilt: [(&str, &[&str]); 11] = [
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
                (
                    r#"UPDATE "Alchemi_UsageTotalTable" SET raw_cost = 1 WHERE credits_incurred = 5000000000"#,
                    &["what the account has spent should be 0.005 USD, 5 credits and is 0.000000001 USD, 5 credits"],
                ),
                (
                    r#"DELETE FROM "Alchemi_UsageTotalTable" WHERE credits_incurred = 16000000000"#,
                    &["should be 0.016 USD, 16 credits and is 0 USD, 0 credits"],
                ),
                (r#"UPDATE "Alchemi_AllocationCounterTable" SET used = 6000000000"#, &["should be 5 and is 6"]),
                (r#"UPDATE "Alchemi_AllocationCounterTable" SET cap = 7000000000"#, &["should be at most 7 and is 8"]),
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

    #[tokio::test]
    async fn parts_of_the_counters_find_what_all_of_them_find() {
        for fresh in testing::databases().await {
            let account = books(&fresh).await;
            let mut tx = fresh.store.begin(&Granted::system()).await.unwrap();
            run!(tx, r#"UPDATE "Alchemi_AllocationCounterTable" SET used = 6000000000"#).unwrap();
            for parts in 1..4 {
                let mut report = Report::default();
                for part in 0..parts {
                    verify_counters(&mut tx, &account, Part { part, parts }, &mut report).await.unwrap();
                }
                assert_eq!((report.counters, report.differing()), (1, 1), "{parts} parts: {report:?}");
            }
        }
    }

    #[test]
    fn only_so_many_differences_are_told_in_words() {
        let mut report = Report::default();
        (0..TOLD + 3).for_each(|n| report.differs(&Id::nobody(), n.to_string(), 1, 2));
        assert_eq!((report.differences.len(), report.more_differences), (TOLD, 3));
        assert_eq!(report.differing(), 1_003);
    }
}
