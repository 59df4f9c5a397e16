//! What was used: counters by window, ledger rows by user, and sums out of roll-ups.
//!
//! Sums never scan the ledger: credits of a window are its counters, costs are the
//! roll-ups that are kept when a row is written.

use std::collections::HashMap;

use super::dialect::push_in;
use super::ledger::Counter;
use super::page::{Page, Slice};
use super::{Result, Tx, from_columns, of_accounts, on};
use crate::clock::Timestamp;
use crate::context::{Domain, Tenant};
use crate::credits::{Credits, Usd};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::directory::User;
use crate::model::scope::{Scope, ScopeType};
use crate::model::usage::{CostDimension, EntryKind, UsageEntry};

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

    /// Beside the domain, what a row has to be.
    fn conditions(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let all = [
            (" AND day >= ", &self.from),
            (" AND day <= ", &self.to),
            (" AND org_id = ", &self.org),
            (" AND team_id = ", &self.team),
            (" AND user_id = ", &self.user),
        ];
        all.into_iter().filter_map(|(condition, value)| Some((condition, value.as_ref()?)))
    }
}

/// Which rows of the ledger are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryFilter {
    /// Whose, and of which days.
    pub costs: CostFilter,
    /// Only usage, or only corrections of a kind.
    pub entry: Option<EntryKind>,
    /// Only rows with this mark.
    pub mark: Option<String>,
}

/// Whose rows are listed.
enum Wanted<'a> {
    /// Of one person: the directory's user, else the token's subject.
    Person(Option<&'a Id<User>>, &'a str),
    Of(&'a EntryFilter),
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

/// What an account has spent, in both domains and ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageTotal {
    /// The account.
    pub account_id: Id<Account>,
    /// What its requests cost.
    pub raw_cost: Usd,
    /// What it paid.
    pub credits_incurred: Credits,
}

struct ScopeName {
    scope_type: ScopeType,
    scope_id: String,
    name: Option<String>,
}

from_columns! {
    CostRow { k0, k1, k2, k3, requests, input_tokens, output_tokens, raw_cost, credits }
    UsageTotal { account_id, raw_cost, credits_incurred }
    ScopeName { scope_type, scope_id, name }
    UsageEntry {
        id, account_id, kind, entry, domain, org_id, team_id, user_id, agent_id, model_name, connection_id,
        guardrail_code, input_tokens, output_tokens, raw_cost, credit_factor, credits_incurred, cost_source,
        marks, status, metadata, created_at,
    }
}

impl<R> Tx<R> {
    /// What several accounts have spent; of one that has spent nothing yet, nothing.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn totals_of(&mut self, accounts: &[Id<Account>]) -> Result<Vec<UsageTotal>> {
        of_accounts!(self, r#"SELECT * FROM "Alchemi_UsageTotalTable" WHERE account_id IN ("#, accounts, ")")
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

    /// Names of some scopes, of a user without one the e-mail address. The account's is always
    /// among them.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn scope_names(&mut self, scopes: &[Scope]) -> Result<HashMap<Scope, String>> {
        let account = self.account.clone();
        let mut names = HashMap::new();
        for scopes in scopes.chunks(NAMES_AT_ONCE) {
            let rows: Vec<ScopeName> = on!(self, |c| {
                let mut q = sqlx::QueryBuilder::new(
                    r#"SELECT 'account' AS scope_type, account_id AS scope_id, account_name AS name
                       FROM "Alchemi_AccountTable" WHERE account_id = "#,
                );
                q.push_bind(&account);
                for (kind, select) in NAMES {
                    let ids: Vec<_> =
                        scopes.iter().filter(|s| s.scope_type == kind).map(|s| s.scope_id.as_str()).collect();
                    q.push(select).push_bind(&account).push(" AND domain = ").push_bind(Domain::Copilot);
                    push_in!(q, "id", &ids);
                }
                q.build_query_as().fetch_all(c).await
            })?;
            names.extend(rows.into_iter().filter_map(|r| Some((Scope::new(r.scope_type, r.scope_id), r.name?))));
        }
        Ok(names)
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
        self.entries(&Wanted::Person(user, subject), slice).await
    }

    /// Ledger rows that `filter` lets through, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn usage_entries(&mut self, filter: &EntryFilter, slice: &Slice) -> Result<Page<UsageEntry>> {
        self.entries(&Wanted::Of(filter), slice).await
    }

    async fn entries(&mut self, wanted: &Wanted<'_>, slice: &Slice) -> Result<Page<UsageEntry>> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<UsageEntry> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(ENTRIES);
            q.push_bind(&account);
            match wanted {
                Wanted::Person(Some(user), _) => _ = q.push(" AND user_id = ").push_bind(*user),
                Wanted::Person(None, subject) => {
                    q.push(" AND user_id IS NULL AND subject = ").push_bind(*subject);
                }
                Wanted::Of(EntryFilter { costs, entry, mark }) => {
                    q.push(" AND domain = ").push_bind(costs.domain);
                    for (condition, value) in costs.conditions() {
                        q.push(condition).push_bind(value);
                    }
                    if let Some(entry) = entry {
                        q.push(" AND entry = ").push_bind(*entry);
                    }
                    if let Some(mark) = mark {
                        q.push(" AND marks <> '' AND REPLACE(',' || marks || ',', ")
                            .push_bind(format!(",{mark},"))
                            .push(", '') <> ',' || marks || ','");
                    }
                }
            }
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
            for (condition, value) in filter.conditions() {
                q.push(condition).push_bind(value);
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
    pub async fn booked(&mut self) -> Result<UsageTotal> {
        let account = self.account.clone();
        let total = self.totals_of(std::slice::from_ref(&account)).await?.pop();
        Ok(total.unwrap_or(UsageTotal { account_id: account, raw_cost: Usd::ZERO, credits_incurred: Credits::ZERO }))
    }

    /// One sum of everything that `filter` lets through.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn cost_total(&mut self, filter: &CostFilter) -> Result<CostRow> {
        Ok(self.costs(filter, &[], &Slice::first(1)).await?.pop().unwrap_or_default())
    }
}

/// How many scopes' names one statement asks for.
const NAMES_AT_ONCE: usize = 1_000;

const NAMES: [(ScopeType, &str); 3] = [
    (ScopeType::Org, r#" UNION ALL SELECT 'org', id, name FROM "Alchemi_OrgTable" WHERE account_id = "#),
    (ScopeType::Team, r#" UNION ALL SELECT 'team', id, name FROM "Alchemi_TeamTable" WHERE account_id = "#),
    (
        ScopeType::User,
        r#" UNION ALL SELECT 'user', id, COALESCE(display_name, email) FROM "Alchemi_UserTable" WHERE account_id = "#,
    ),
];

const ENTRIES: &str = r#"SELECT request_id AS id, account_id, kind, entry, domain, org_id, team_id, user_id, agent_id, model_name,
    connection_id, guardrail_code, input_tokens, output_tokens, raw_cost, credit_factor, credits_incurred, cost_source,
    marks, status, metadata, created_at FROM "Alchemi_UsageLedgerTable" WHERE account_id = "#;

const SUMS: &str = r#"CAST(COALESCE(SUM(requests), 0) AS BIGINT) AS requests,
    CAST(COALESCE(SUM(input_tokens), 0) AS BIGINT) AS input_tokens,
    CAST(COALESCE(SUM(output_tokens), 0) AS BIGINT) AS output_tokens,
    CAST(COALESCE(SUM(raw_cost), 0) AS BIGINT) AS raw_cost,
    CAST(COALESCE(SUM(credits_incurred), 0) AS BIGINT) AS credits
    FROM "Alchemi_UsageRollupTable" WHERE account_id = "#;
