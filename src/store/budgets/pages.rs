//! Pages of what a plan gives: as it counts now, and by how much of it is used.

use super::rules::{EffectiveRow, push_effective};
use crate::clock::Timestamp;
use crate::context::Tenant;
use crate::credits::Credits;
use crate::id::Id;
use crate::model::budgets::{EffectiveAllocation, Plan};
use crate::model::scope::{Scope, ScopeType};
use crate::store::page::{Page, Slice};
use crate::store::{Result, Tx, from_columns, on};

/// A budget with what is used of it in its current window.
#[derive(Debug, Clone, PartialEq)]
pub struct UsedShare {
    id: String,
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
}

from_columns! { UsedShare { id, scope_type, scope_id, allocated, overflow_cap, used, leased, percentage } }

impl UsedShare {
    /// Whose budget.
    pub fn scope(&self) -> Scope {
        Scope::new(self.scope_type, self.scope_id.as_str())
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
       SELECT l.account_id AS id, 'account' AS scope_type, l.account_id AS scope_id, l.monthly_credits AS allocated,
       l.overflow_limit AS overflow_cap, COALESCE(c.used, 0) AS used, COALESCE(c.leased, 0) AS leased
       FROM "Alchemi_AccountAllocationTable" l
       LEFT JOIN "Alchemi_AllocationCounterTable" c ON c.account_id = l.account_id AND c.scope_type = 'account'
       AND c.scope_id = l.account_id AND c.window_start = "#,
    " WHERE l.account_id = ",
];

const OF_A_PLAN: &str = r#" UNION ALL SELECT e.id, e.scope_type, e.scope_id, COALESCE(e.override_credits, e.base),
    e.overflow_cap, COALESCE(c.used, 0), COALESCE(c.leased, 0) FROM "#;

/// From the counters to what is allocated; SQLite takes a CROSS JOIN in this order.
const USED: [&str; 2] = [r#""Alchemi_AllocationCounterTable" c CROSS JOIN ("#, " WHERE c.used > 0 AND "];

/// From what is allocated to the counters, which may be missing.
const ALL: [&str; 2] = ["(", r#" LEFT JOIN "Alchemi_AllocationCounterTable" c ON "#];

const SAME_SCOPE: &str = "c.scope_type = e.scope_type AND c.scope_id = e.scope_id AND c.account_id = ";

/// Its share is reckoned as [`Credits::percent_of`] does.
const BY_SHARE: &str = r#"), shares AS MATERIALIZED (
    SELECT budgets.*, CASE WHEN allocated = 0 THEN 0e0 ELSE CAST(used AS DOUBLE PRECISION) * 100
    / CAST(allocated AS DOUBLE PRECISION) END AS percentage FROM budgets)
    SELECT * FROM shares WHERE percentage >= "#;

impl Tx<Tenant> {
    /// What `plan` gives now, newest first.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn effective_page(&mut self, plan: &Id<Plan>, slice: &Slice) -> Result<Page<EffectiveAllocation>> {
        let (account, now, (at, id)) = (self.account.clone(), self.now, slice.before());
        let rows: Vec<EffectiveRow> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new("");
            push_effective!(q, now, &account, plan);
            q.push(" AND (a.created_at, a.id) < (").push_bind(at).push(", ").push_bind(&id);
            q.push(") ORDER BY a.created_at DESC, a.id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip()).build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page(rows, |row| (row.created_at, row.id.as_str())).map(|row| row.at(now)))
    }

    /// Budgets of which at least `threshold` per cent is used, the most used first. Of a
    /// threshold above 0, only those are read of which anything is.
    ///
    /// # Errors
    /// [`StoreError`](crate::store::StoreError).
    pub async fn most_used(&mut self, of: Windows<'_>, threshold: f64, slice: &Slice) -> Result<Page<UsedShare>> {
        let (account, now, (share, id)) = (self.account.clone(), self.now, slice.below());
        let [month, whose] = OF_THE_ACCOUNT;
        let [from, join] = if threshold > 0.0 { USED } else { ALL };
        let rows: Vec<UsedShare> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(month);
            q.push_bind(of.month).push(whose).push_bind(&account);
            if let Some((plan, window)) = of.plan {
                q.push(OF_A_PLAN).push(from);
                push_effective!(q, now, &account, plan);
                q.push(") AS e").push(join).push(SAME_SCOPE).push_bind(&account);
                q.push(" AND c.window_start = ").push_bind(window);
            }
            q.push(BY_SHARE).push_bind(threshold).push(" AND (percentage, id) < (").push_bind(share).push(", ");
            q.push_bind(&id).push(") ORDER BY percentage DESC, id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip()).build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page_by_share(rows, |row| (row.percentage, row.id.as_str())))
    }
}
