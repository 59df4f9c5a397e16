//! Budgets by how much of them is used.
//!
//! An index leads to them: a counter carries which whole hundredth of its budget is reached,
//! and every settlement writes that along with what is used. A hundredth of which budget, is
//! another matter: whenever the account's budgets change, they get another revision, and the
//! counters of those before are ranked anew by whoever asks next. Until then, and where a row is
//! just being written, what is not ranked is looked at one by one.

use super::rules::push_effective;
use crate::clock::Timestamp;
use crate::context::{Granted, Tenant};
use crate::credits::Credits;
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::budgets::Plan;
use crate::model::scope::{Scope, ScopeType};
use crate::store::changes::ChangeKind;
use crate::store::page::{Page, Slice};
use crate::store::{Result, Store, Tx, dialect, from_columns, on, run};

/// A budget with what is used of it in its current window.
#[derive(Debug, Clone, PartialEq)]
pub struct UsedShare {
    /// The kind of scope.
    pub scope_type: ScopeType,
    /// The scope.
    pub scope_id: String,
    /// What it has: the override that counts, else what was allocated.
    pub allocated: Credits,
    /// Credits that may be spent beyond.
    pub overflow_cap: Option<Credits>,
    /// Credits of settled requests.
    pub used: Credits,
    /// Credits that requests under way and gateways hold.
    pub leased: Credits,
    /// Used of allocated, in per cent; 0 when nothing is allocated.
    pub percentage: f64,
    /// The same in whole hundredths, which lists are led by.
    reached: i64,
}

/// What the counters of an account are ranked for.
struct Ranking {
    revision: i64,
    ranked: i64,
    ranked_at: Timestamp,
    lapses_at: Option<Timestamp>,
}

from_columns! {
    UsedShare { scope_type, scope_id, allocated, overflow_cap, used, leased, percentage, reached }
    Ranking { revision, ranked, ranked_at, lapses_at }
}

impl UsedShare {
    /// Whose budget.
    pub fn scope(&self) -> Scope {
        Scope::new(self.scope_type, self.scope_id.as_str())
    }
}

impl Ranking {
    /// Of an account whose budgets were never changed or ranked.
    const NONE: Self = Self { revision: 0, ranked: -1, ranked_at: Timestamp::from_micros(0), lapses_at: None };

    /// Whether what is ranked does not tell what holds `now`: of other budgets, or of another moment, as
    /// somebody's clock has it who is ahead.
    fn is_void(&self, now: Timestamp) -> bool {
        self.ranked != self.revision || now < self.ranked_at || self.lapses_at.is_some_and(|at| at <= now)
    }
}

/// Which budgets are looked at: the account's month, and a plan in one of its windows.
#[derive(Debug, Clone, Copy)]
pub struct Windows<'a> {
    /// The first moment of the account's month.
    pub month: Timestamp,
    /// The plan, with the first moment of its window.
    pub plan: Option<(&'a Id<Plan>, Timestamp)>,
}

/// What the account's month has used.
const OF_THE_ACCOUNT: [&str; 2] = [
    r#"WITH budgets AS MATERIALIZED (
       SELECT 'account' AS scope_type, l.account_id AS scope_id, l.monthly_credits AS allocated,
       l.overflow_limit AS overflow_cap, COALESCE(c.used, 0) AS used, COALESCE(c.leased, 0) AS leased
       FROM "Alchemi_AccountAllocationTable" l
       LEFT JOIN "Alchemi_AllocationCounterTable" c ON c.account_id = l.account_id AND c.scope_type = 'account'
       AND c.scope_id = l.account_id AND c.window_start = "#,
    " WHERE l.account_id = ",
];

/// What a plan gives, with its counters. SQLite takes a CROSS JOIN in the order in which it is written: from counters
/// to what is allocated; of what is allocated, a counter may be missing.
const OF_A_PLAN: &str = r#" UNION ALL SELECT * FROM (SELECT e.scope_type, e.scope_id,
    COALESCE(e.override_credits, e.base) AS allocated, e.overflow_cap, COALESCE(c.used, 0) AS used,
    COALESCE(c.leased, 0) AS leased FROM "#;
const FROM_COUNTERS: [&str; 2] = [
    r#""Alchemi_AllocationCounterTable" c CROSS JOIN ("#,
    ") AS e WHERE c.scope_type = e.scope_type AND c.scope_id = e.scope_id AND c.account_id = ",
];
const FROM_ALLOCATIONS: [&str; 2] = [
    "(",
    r#") AS e LEFT JOIN "Alchemi_AllocationCounterTable" c
       ON c.scope_type = e.scope_type AND c.scope_id = e.scope_id AND c.account_id = "#,
];

/// A share in per cent, as [`Credits::percent_of`] reckons it.
macro_rules! percentage {
    ($used:literal, $allocated:literal) => {
        concat!(
            "CASE WHEN ",
            $allocated,
            " = 0 THEN 0e0 ELSE CAST(",
            $used,
            " AS DOUBLE PRECISION) * 100 / CAST(",
            $allocated,
            " AS DOUBLE PRECISION) END"
        )
    };
}

/// The same in whole hundredths. A hundredth is rounded down, and a share is never below its percentage; budgets of less
/// than a hundred nano-credits have none, and come before all others.
macro_rules! reached {
    ($used:literal, $hundredth:literal) => {
        concat!("CASE WHEN ", $hundredth, " = 0 THEN 9223372036854775806 ELSE ", $used, " / ", $hundredth, " END")
    };
}

/// A hundredth; of nothing, more than can be used.
macro_rules! hundredth {
    ($allocated:literal) => {
        concat!("CASE WHEN ", $allocated, " = 0 THEN 9223372036854775807 ELSE ", $allocated, " / 100 END")
    };
}

const AND_A_SHARE_OF: &str = concat!(" AND ", percentage!("c.used", "COALESCE(e.override_credits, e.base)"), " >= ");

const BY_SHARE: &str = concat!(
    "), hundredths AS (SELECT budgets.*, ",
    hundredth!("allocated"),
    " AS hundredth FROM budgets), shares AS (SELECT hundredths.*, ",
    percentage!("used", "allocated"),
    " AS percentage, ",
    reached!("used", "hundredth"),
    " AS reached FROM hundredths) SELECT * FROM shares WHERE percentage >= "
);

/// Ranks the counters of a window that are not ranked for a revision, without those that another transaction is
/// writing.
const RANK: [&str; 9] = [
    concat!(
        r#"UPDATE "Alchemi_AllocationCounterTable" AS c SET hundredth = v.hundredth, reached = "#,
        reached!("c.used", "v.hundredth"),
        ", revision = "
    ),
    concat!(
        " FROM (SELECT b.scope_type, b.scope_id, ",
        hundredth!("b.allocated"),
        " AS hundredth FROM (SELECT k.scope_type, k.scope_id, COALESCE(e.override_credits, e.base, 0) AS allocated FROM "
    ),
    r#""Alchemi_AllocationCounterTable" k LEFT JOIN ("#,
    ") AS e ON e.scope_type = k.scope_type AND e.scope_id = k.scope_id WHERE k.account_id = ",
    " AND k.window_start = ",
    " AND k.revision < ",
    " LIMIT ",
    ") AS b) AS v WHERE c.scope_type = v.scope_type AND c.scope_id = v.scope_id AND c.account_id = ",
    " AND c.window_start = ",
];

/// On SQLite there is one writer.
const BUT_WHAT_IS_BEING_WRITTEN: [&str; 2] = ["", " FOR UPDATE OF k SKIP LOCKED"];

/// Counters that are ranked in one transaction: settlements wait for it.
const RANKED_AT_ONCE: u32 = 1_000;

/// When the first override of a plan, or what was carried into it, lapses.
const FIRST_LAPSE: [&str; 2] = [
    "SELECT MIN(CASE WHEN e.next_expiry < e.rollover_until OR e.rollover_until IS NULL OR e.rollover_until <= ",
    " THEN e.next_expiry ELSE e.rollover_until END) FROM (",
];

/// [`OF_A_PLAN`] in one of its orders; conditions may follow, and the end of its parenthesis.
macro_rules! push_plan {
    ($q:expr, $order:expr, $now:expr, $account:expr, $plan:expr) => {{
        let ([from, same_scope], (plan, window)) = ($order, $plan);
        $q.push(OF_A_PLAN).push(from);
        push_effective!($q, $now, $account, plan);
        $q.push(same_scope).push_bind($account).push(" AND c.window_start = ").push_bind(window);
    }};
}

impl Store {
    /// Makes the index that leads [`Tx::most_used`] know of everything in the present window of the
    /// account's plan in force; but for what somebody is writing, which is found without it.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError); the list is the same without it.
    pub async fn rank_shares(&self, account: &Id<Account>) -> Result<()> {
        let granted = Granted::system().over(account.clone());
        loop {
            let mut tx = self.begin(&granted).await?;
            let ranked = tx.rank_shares().await?;
            tx.commit().await?;
            if ranked < u64::from(RANKED_AT_ONCE) {
                return Ok(());
            }
        }
    }
}

impl Tx<Tenant> {
    /// Budgets of which at least `threshold` per cent is used, by whole hundredths the most used first. An index
    /// leads to them, unless the threshold is 0.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn most_used(&mut self, of: Windows<'_>, threshold: f64, slice: &Slice) -> Result<Page<UsedShare>> {
        let ranking = self.ranking().await?;
        // Where the ranking is void, nothing counts as ranked.
        let revision = if ranking.is_void(self.now) { i64::MAX } else { ranking.revision };
        let all_are_ranked = match of.plan {
            Some((_, window)) if threshold > 0.0 => self.all_are_ranked(revision, window).await?,
            _ => false,
        };
        // The place in the list is a share where other lists have a moment.
        let (account, now, (reached, id)) = (self.account.clone(), self.now, slice.before());
        // One less, for the percentage is rounded.
        #[expect(clippy::cast_possible_truncation, reason = "a threshold has at most four digits before its point")]
        let least = threshold as i64 - 1;
        let rows: Vec<UsedShare> = on!(self, |c| {
            let [month, whose] = OF_THE_ACCOUNT;
            let mut q = sqlx::QueryBuilder::new(month);
            q.push_bind(of.month).push(whose).push_bind(&account);
            match of.plan {
                Some(plan) if threshold > 0.0 => {
                    push_plan!(q, FROM_COUNTERS, now, &account, plan);
                    q.push(" AND c.revision = ").push_bind(revision).push(" AND c.reached >= ").push_bind(least);
                    q.push(AND_A_SHARE_OF).push_bind(threshold);
                    q.push(" AND (c.reached, c.scope_id) < (").push_bind(reached).push(", ").push_bind(&id);
                    q.push(") ORDER BY c.reached DESC, c.scope_id DESC LIMIT ");
                    q.push_bind(slice.fetch().saturating_add(slice.skip())).push(") AS ranked");
                    // A database that does not know yet that there are none would read all of the plan for them.
                    if !all_are_ranked {
                        push_plan!(q, FROM_COUNTERS, now, &account, plan);
                        q.push(" AND c.revision < ").push_bind(revision).push(") AS unranked");
                    }
                }
                Some(plan) => {
                    push_plan!(q, FROM_ALLOCATIONS, now, &account, plan);
                    q.push(") AS everything");
                }
                None => {}
            }
            q.push(BY_SHARE).push_bind(threshold).push(" AND (reached, scope_id) < (").push_bind(reached).push(", ");
            q.push_bind(&id).push(") ORDER BY reached DESC, scope_id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip()).build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page(rows, |row| (Timestamp::from_micros(row.reached), row.scope_id.as_str())))
    }

    /// Whether the index that leads [`most_used`](Self::most_used) knows of everything in a window.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn shares_are_ranked(&mut self, window: Timestamp) -> Result<bool> {
        let ranking = self.ranking().await?;
        Ok(!ranking.is_void(self.now) && self.all_are_ranked(ranking.revision, window).await?)
    }

    async fn all_are_ranked(&mut self, revision: i64, window: Timestamp) -> Result<bool> {
        let account = self.account.clone();
        let unranked: Option<i64> = on!(self, |c| sqlx::query_scalar(
            r#"SELECT revision FROM "Alchemi_AllocationCounterTable"
               WHERE account_id = $1 AND window_start = $2 AND revision < $3 LIMIT 1"#
        )
        .bind(&account)
        .bind(window)
        .bind(revision)
        .fetch_optional(c)
        .await)?;
        Ok(unranked.is_none())
    }

    /// Ranks some counters, and gives how many.
    async fn rank_shares(&mut self) -> Result<u64> {
        let (account, now) = (self.account.clone(), self.now);
        // Its row is held from before budgets are read: whoever changes them comes with the next revision.
        let held: Ranking = on!(self, |c| sqlx::query_as(
            r#"INSERT INTO "Alchemi_BudgetRevisionTable" AS r (account_id, revision) VALUES ($1, 0)
               ON CONFLICT (account_id) DO UPDATE SET revision = r.revision
               RETURNING revision, ranked, ranked_at, lapses_at"#
        )
        .bind(&account)
        .fetch_one(c)
        .await)?;
        let Some(plan) = self.active_plan().await?.filter(|_| held.ranked_at <= now) else { return Ok(0) };
        let (calendar, _) = self.account_terms().await?;
        let window = plan.window(now, &calendar).start;
        let mut revision = held.revision;
        if held.is_void(now) {
            revision += i64::from(held.ranked == held.revision);
            let lapses_at: Option<Timestamp> = on!(self, |c| {
                let [first, of] = FIRST_LAPSE;
                let mut q = sqlx::QueryBuilder::new(first);
                q.push_bind(now).push(of);
                push_effective!(q, now, &account, &plan.id);
                q.push(") AS e").build_query_scalar().fetch_one(c).await
            })?;
            run!(
                self,
                r#"UPDATE "Alchemi_BudgetRevisionTable" SET revision = $2, ranked = $2, ranked_at = $3, lapses_at = $4
                   WHERE account_id = $1"#,
                &account,
                revision,
                now,
                lapses_at
            )?;
        }
        let unlocked = dialect::text_for(&self.inner, BUT_WHAT_IS_BEING_WRITTEN);
        on!(self, |c| {
            let [rank, hundredths, of, whose, window_of, before, at_once, counters, within] = RANK;
            let mut q = sqlx::QueryBuilder::new(rank);
            q.push_bind(revision).push(hundredths).push(of);
            push_effective!(q, now, &account, &plan.id);
            q.push(whose).push_bind(&account).push(window_of).push_bind(window).push(before).push_bind(revision);
            q.push(at_once).push_bind(i64::from(RANKED_AT_ONCE)).push(unlocked);
            q.push(counters).push_bind(&account).push(within).push_bind(window);
            q.build().execute(c).await.map(|done| done.rows_affected())
        })
    }

    async fn ranking(&mut self) -> Result<Ranking> {
        let account = self.account.clone();
        let found: Option<Ranking> = on!(self, |c| {
            sqlx::query_as(
            r#"SELECT revision, ranked, ranked_at, lapses_at FROM "Alchemi_BudgetRevisionTable" WHERE account_id = $1"#
        )
        .bind(&account)
        .fetch_optional(c)
        .await
        })?;
        Ok(found.unwrap_or(Ranking::NONE))
    }
}

impl<R> Tx<R> {
    /// Gives budgets that were changed in this transaction their next revision.
    pub(in crate::store) async fn revise_budgets(&mut self) -> Result<()> {
        let changed = self.changes.iter().find(|change| change.kind == ChangeKind::Budget);
        let Some(account) = changed.map(|change| change.account.clone()) else { return Ok(()) };
        run!(
            self,
            r#"INSERT INTO "Alchemi_BudgetRevisionTable" AS r (account_id, revision) VALUES ($1, 1)
               ON CONFLICT (account_id) DO UPDATE SET revision = r.revision + 1"#,
            &account
        )?;
        Ok(())
    }
}
