//! What was used: counters by window, ledger rows by user, and sums out of roll-ups.
//!
//! Sums never scan the ledger: credits of a window are its counters, costs are the
//! roll-ups that are kept when a row is written.

use std::collections::HashMap;

use super::ledger::Counter;
use super::page::{Page, Slice};
use super::{Result, Tx, from_columns, on};
use crate::clock::Timestamp;
use crate::context::{Domain, Tenant};
use crate::credits::{Credits, Usd};
use crate::id::Id;
use crate::model::budgets::Plan;
use crate::model::directory::User;
use crate::model::scope::{Scope, ScopeType};
use crate::model::usage::{CostDimension, UsageEntry};

/// Which roll-ups are added up. Days are `YYYY-MM-DD`, both included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CostFilter {
    /// The product domain.
    pub domain: Domain,
    /// The first day.
    pub from: Option<String>,
    /// The last day.
    pub to: Option<String>,
    /// Only this org.
    pub org: Option<String>,
    /// Only this team.
    pub team: Option<String>,
    /// Only this user.
    pub user: Option<String>,
}

impl CostFilter {
    /// Everything in `domain`.
    pub fn of(domain: Domain) -> Self {
        Self { domain, from: None, to: None, org: None, team: None, user: None }
    }
}

/// How many dimensions a sum can be broken down by.
pub const MAX_DIMENSIONS: usize = 4;

/// One sum, with the values of the dimensions asked for, in their order; `''` stands for none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CostRow {
    k0: String,
    k1: String,
    k2: String,
    k3: String,
    /// How many requests.
    pub requests: i64,
    /// Their input tokens.
    pub input_tokens: i64,
    /// Their output tokens.
    pub output_tokens: i64,
    /// What they cost.
    pub raw_cost: Usd,
    /// What the account paid.
    pub credits: Credits,
}

impl CostRow {
    /// The values of the dimensions, `''` standing for none.
    pub fn keys(&self) -> [&str; MAX_DIMENSIONS] {
        [&self.k0, &self.k1, &self.k2, &self.k3]
    }
}

struct ScopeName {
    scope_type: ScopeType,
    scope_id: String,
    name: Option<String>,
}

from_columns! {
    CostRow { k0, k1, k2, k3, requests, input_tokens, output_tokens, raw_cost, credits }
    ScopeName { scope_type, scope_id, name }
    UsageEntry {
        id, account_id, kind, entry, domain, org_id, team_id, user_id, agent_id, model_name, connection_id,
        guardrail_code, input_tokens, output_tokens, raw_cost, credit_factor, credits_incurred, cost_source,
        metadata, created_at,
    }
}

impl Tx<Tenant> {
    /// Every counter whose window starts at `start`.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn counters_from(&mut self, start: Timestamp) -> Result<Vec<Counter>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT scope_type, scope_id, window_start, used, leased FROM "Alchemi_AllocationCounterTable"
               WHERE account_id = $1 AND window_start = $2"#
        )
        .bind(&account)
        .bind(start)
        .fetch_all(c)
        .await)
    }

    /// Names of the orgs, teams and users that `plan` gives something to; without
    /// a name, a user's e-mail address.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn scope_names(&mut self, plan: &Id<Plan>) -> Result<HashMap<Scope, String>> {
        let account = self.account.clone();
        let rows: Vec<ScopeName> = on!(self, |c| {
            sqlx::query_as(
                r#"SELECT a.scope_type, a.scope_id, COALESCE(o.name, t.name, u.display_name, u.email) AS name
                   FROM "Alchemi_CopilotBudgetAllocationTable" a
                   LEFT JOIN "Alchemi_OrgTable" o ON a.scope_type = 'org' AND o.account_id = a.account_id
                   AND o.domain = $3 AND o.id = a.scope_id
                   LEFT JOIN "Alchemi_TeamTable" t ON a.scope_type = 'team' AND t.account_id = a.account_id
                   AND t.domain = $3 AND t.id = a.scope_id
                   LEFT JOIN "Alchemi_UserTable" u ON a.scope_type = 'user' AND u.account_id = a.account_id
                   AND u.domain = $3 AND u.id = a.scope_id
                   WHERE a.account_id = $1 AND a.plan_id = $2"#,
            )
            .bind(&account)
            .bind(plan)
            .bind(Domain::Copilot)
            .fetch_all(c)
            .await
        })?;
        let named = rows.into_iter().filter_map(|row| Some((Scope::new(row.scope_type, row.scope_id), row.name?)));
        Ok(named.collect())
    }

    /// Ledger rows of one person, newest first: of the directory's user, else of
    /// the token's subject whom the directory does not know.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn usage_of(
        &mut self,
        user: Option<&Id<User>>,
        subject: &str,
        slice: &Slice,
    ) -> Result<Page<UsageEntry>> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<UsageEntry> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(
                r#"SELECT request_id AS id, account_id, kind, entry, domain, org_id, team_id, user_id, agent_id, model_name,
                   connection_id, guardrail_code, input_tokens, output_tokens, raw_cost, credit_factor, credits_incurred,
                   cost_source, metadata, created_at FROM "Alchemi_UsageLedgerTable" WHERE account_id = "#,
            );
            q.push_bind(&account);
            match user {
                Some(user) => q.push(" AND user_id = ").push_bind(user),
                None => q.push(" AND user_id IS NULL AND subject = ").push_bind(subject),
            };
            q.push(" AND (created_at, request_id) < (").push_bind(at).push(", ").push_bind(&id).push(")");
            q.push(" ORDER BY created_at DESC, request_id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip());
            q.build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page(rows, |r| (r.created_at, r.id.as_str())))
    }

    /// Sums by `dimensions`, at most [`MAX_DIMENSIONS`], the largest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn costs(
        &mut self,
        filter: &CostFilter,
        dimensions: &[CostDimension],
        slice: &Slice,
    ) -> Result<Vec<CostRow>> {
        let account = self.account.clone();
        on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new("SELECT ");
            for (place, key) in ["k0", "k1", "k2", "k3"].into_iter().enumerate() {
                let column = dimensions.get(place).map_or("''", |d| d.column());
                q.push(column).push(" AS ").push(key).push(", ");
            }
            q.push(SUMS).push_bind(&account).push(" AND domain = ").push_bind(filter.domain);
            for (condition, value) in [
                (" AND day >= ", &filter.from),
                (" AND day <= ", &filter.to),
                (" AND org_id = ", &filter.org),
                (" AND team_id = ", &filter.team),
                (" AND user_id = ", &filter.user),
            ] {
                if let Some(value) = value {
                    q.push(condition).push_bind(value);
                }
            }
            for (place, dimension) in dimensions.iter().take(MAX_DIMENSIONS).enumerate() {
                q.push(if place == 0 { " GROUP BY " } else { ", " }).push(dimension.column());
            }
            q.push(" ORDER BY credits DESC, k0, k1, k2, k3 LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip());
            q.build_query_as().fetch_all(c).await
        })
    }

    /// What the account has spent, in both domains and ever: what its books hold.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn booked(&mut self) -> Result<CostRow> {
        let account = self.account.clone();
        on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new("SELECT '' AS k0, '' AS k1, '' AS k2, '' AS k3, ");
            q.push(SUMS).push_bind(&account).build_query_as().fetch_one(c).await
        })
    }

    /// One sum of everything that `filter` lets through.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn cost_total(&mut self, filter: &CostFilter) -> Result<CostRow> {
        Ok(self.costs(filter, &[], &Slice::first(1)).await?.pop().unwrap_or_default())
    }
}

const SUMS: &str = r#"CAST(COALESCE(SUM(requests), 0) AS BIGINT) AS requests,
    CAST(COALESCE(SUM(input_tokens), 0) AS BIGINT) AS input_tokens,
    CAST(COALESCE(SUM(output_tokens), 0) AS BIGINT) AS output_tokens,
    CAST(COALESCE(SUM(raw_cost), 0) AS BIGINT) AS raw_cost,
    CAST(COALESCE(SUM(credits_incurred), 0) AS BIGINT) AS credits
    FROM "Alchemi_UsageRollupTable" WHERE account_id = "#;
