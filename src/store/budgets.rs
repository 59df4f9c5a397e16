//! Account allocations, plans, their allocations and overrides, and renewals.

use super::changes::ChangeKind;
use super::columns::stored_as_name;
use super::page::{Page, Slice};
use super::{Result, Tx, find, from_columns, list, on, remove, run};
use crate::context::{Platform, Tenant};
use crate::id::Id;
use crate::model::budgets::{
    AccountAllocation, Allocation, BudgetCycle, Cycle, Enforcement, Lineage, OverCommit, Override, Plan, PlanStatus,
    RolloverMode,
};
use crate::model::scope::Scope;

mod plans;
pub mod rollover;
mod rules;
pub mod shares;

stored_as_name!(Cycle, PlanStatus, OverCommit, RolloverMode, Enforcement);

from_columns! {
    Allocation {
        id, account_id, plan_id, scope_type, scope_id, allocated_credits, overflow_cap, rollover_credits,
        rollover_until, source, created_by, created_at, updated_at, version,
    }
    Override {
        id, account_id, plan_id, scope_type, scope_id, override_credits, reason, expires_at, created_by, created_at,
    }
    BudgetCycle {
        id, account_id, source_plan_id, new_plan_id, cycle_start, cycle_end, rollover_credits,
        overflow_charge_credits, summary_json, created_by, created_at,
    }
}

/// Rows of one INSERT of allocations: 13 parameters each, and SQLite takes 32,766.
const ROWS_AT_ONCE: usize = 1_000;

impl Tx<Platform> {
    /// Allocations of all accounts, the one that was last set first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn account_allocations(&mut self, slice: &Slice) -> Result<Page<AccountAllocation>> {
        let (at, id) = slice.before();
        let rows: Vec<AccountAllocation> = on!(self, |c| sqlx::query_as(
            r#"SELECT l.*, e.enforcement FROM "Alchemi_AccountAllocationTable" l
               LEFT JOIN "Alchemi_AccountEnforcementTable" e ON e.account_id = l.account_id
               WHERE (l.updated_at, l.account_id) < ($1, $2)
               ORDER BY l.updated_at DESC, l.account_id DESC LIMIT $3 OFFSET $4"#
        )
        .bind(at)
        .bind(&id)
        .bind(slice.fetch())
        .bind(slice.skip())
        .fetch_all(c)
        .await)?;
        Ok(slice.page(rows, |a| (a.updated_at, a.account_id.as_str())))
    }
}

/// The account's own allocation.
impl Tx<Tenant> {
    /// What the account may spend; none: uncapped.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn account_allocation(&mut self) -> Result<Option<AccountAllocation>> {
        let account = self.account.clone();
        Ok(self.allocations_of(std::slice::from_ref(&account)).await?.pop())
    }

    /// Sets what the account may spend, and how strictly that holds.
    ///
    /// # Errors
    /// [`StoreError::ForeignKey`](super::StoreError::ForeignKey) when the account is gone.
    pub async fn put_account_allocation(&mut self, allocation: &AccountAllocation) -> Result<AccountAllocation> {
        let account = self.account.clone();
        let version: i64 = on!(self, |c| {
            sqlx::query_scalar(
                r#"INSERT INTO "Alchemi_AccountAllocationTable" AS a (account_id, monthly_credits, overflow_limit, credit_factor,
               effective_from, updated_by, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
               ON CONFLICT (account_id) DO UPDATE SET monthly_credits = excluded.monthly_credits,
               overflow_limit = excluded.overflow_limit, credit_factor = excluded.credit_factor,
               effective_from = excluded.effective_from, updated_by = excluded.updated_by,
               updated_at = excluded.updated_at, version = a.version + 1 RETURNING version"#,
            )
            .bind(&account)
            .bind(allocation.monthly_credits)
            .bind(allocation.overflow_limit)
            .bind(allocation.credit_factor)
            .bind(allocation.effective_from)
            .bind(&allocation.updated_by)
            .bind(allocation.updated_at)
            .fetch_one(c)
            .await
        })?;
        match allocation.enforcement {
            Some(enforcement) => run!(
                self,
                r#"INSERT INTO "Alchemi_AccountEnforcementTable" (account_id, enforcement) VALUES ($1, $2)
                   ON CONFLICT (account_id) DO UPDATE SET enforcement = excluded.enforcement"#,
                &account,
                enforcement
            )?,
            None => run!(self, r#"DELETE FROM "Alchemi_AccountEnforcementTable" WHERE account_id = $1"#, &account)?,
        };
        self.changed(ChangeKind::Budget);
        let stored = self.account_allocation().await?;
        Ok(stored.unwrap_or_else(|| AccountAllocation { version, ..allocation.clone() }))
    }
}

/// Allocations of plans.
impl Tx<Tenant> {
    /// Allocations of `plan`, or of every plan, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn allocations(&mut self, plan: Option<&Id<Plan>>, slice: &Slice) -> Result<Page<Allocation>> {
        list!(self, slice, Allocation in "Alchemi_CopilotBudgetAllocationTable"; plan_id = plan)
    }

    /// What `plan` gives to `scope`.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn allocation(&mut self, plan: &Id<Plan>, scope: &Scope) -> Result<Option<Allocation>> {
        find!(
            self,
            "Alchemi_CopilotBudgetAllocationTable",
            plan_id = plan,
            scope_type = scope.scope_type,
            scope_id = &scope.scope_id
        )
    }

    /// Gives a scope its share, or another one; what had been rolled over to it is
    /// then replaced, too.
    ///
    /// # Errors
    /// [`StoreError::ForeignKey`](super::StoreError::ForeignKey) without the plan.
    pub async fn upsert_allocation(&mut self, allocation: &Allocation) -> Result<Allocation> {
        let account = self.account.clone();
        let row = on!(self, |c| {
            sqlx::query_as(
            r#"INSERT INTO "Alchemi_CopilotBudgetAllocationTable" AS a (account_id, id, plan_id, scope_type, scope_id,
               allocated_credits, overflow_cap, rollover_credits, rollover_until, source, created_by, created_at, updated_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12)
               ON CONFLICT (account_id, plan_id, scope_type, scope_id) DO UPDATE SET
               allocated_credits = excluded.allocated_credits, overflow_cap = excluded.overflow_cap,
               rollover_credits = excluded.rollover_credits, rollover_until = excluded.rollover_until,
               source = excluded.source, updated_at = excluded.updated_at, version = a.version + 1 RETURNING *"#
        )
        .bind(&account)
        .bind(&allocation.id)
        .bind(&allocation.plan_id)
        .bind(allocation.scope_type)
        .bind(&allocation.scope_id)
        .bind(allocation.allocated_credits)
        .bind(allocation.overflow_cap)
        .bind(allocation.rollover_credits)
        .bind(allocation.rollover_until)
        .bind(&allocation.source)
        .bind(&allocation.created_by)
        .bind(allocation.updated_at)
        .fetch_one(c)
        .await
        })?;
        self.changed(ChangeKind::Budget);
        Ok(row)
    }

    /// Adds the allocations of a plan that has none of them yet.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) when a scope has one.
    pub async fn insert_allocations(&mut self, allocations: &[Allocation]) -> Result<()> {
        let account = self.account.clone();
        for rows in allocations.chunks(ROWS_AT_ONCE) {
            on!(self, |c| {
                let mut q = sqlx::QueryBuilder::new(
                    r#"INSERT INTO "Alchemi_CopilotBudgetAllocationTable" (account_id, id, plan_id, scope_type, scope_id,
                       allocated_credits, overflow_cap, rollover_credits, rollover_until, source, created_by, created_at,
                       updated_at) "#,
                );
                q.push_values(rows, |mut row, a| {
                    row.push_bind(&account).push_bind(&a.id).push_bind(&a.plan_id);
                    row.push_bind(a.scope_type).push_bind(&a.scope_id).push_bind(a.allocated_credits);
                    row.push_bind(a.overflow_cap).push_bind(a.rollover_credits).push_bind(a.rollover_until);
                    row.push_bind(&a.source).push_bind(&a.created_by).push_bind(a.created_at).push_bind(a.updated_at);
                });
                q.build().execute(c).await.map(|done| done.rows_affected())
            })?;
        }
        self.changed(ChangeKind::Budget);
        Ok(())
    }

    /// Takes a scope's share away.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn delete_allocation(&mut self, id: &Id<Allocation>) -> Result<bool> {
        let gone = remove!(self, "Alchemi_CopilotBudgetAllocationTable", id = id)?;
        self.changed(ChangeKind::Budget);
        Ok(gone)
    }
}

/// Overrides.
impl Tx<Tenant> {
    /// Overrides of `plan`, or of every plan, newest first, those that expired included.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn overrides(&mut self, plan: Option<&Id<Plan>>, slice: &Slice) -> Result<Page<Override>> {
        list!(self, slice, Override in "Alchemi_CopilotBudgetOverrideTable"; plan_id = plan)
    }

    /// One override.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn budget_override(&mut self, id: &Id<Override>) -> Result<Option<Override>> {
        find!(self, "Alchemi_CopilotBudgetOverrideTable", id = id)
    }

    /// Adds overrides.
    ///
    /// # Errors
    /// [`StoreError::ForeignKey`](super::StoreError::ForeignKey) without the plan.
    pub async fn insert_overrides(&mut self, overrides: &[Override]) -> Result<()> {
        let account = self.account.clone();
        for rows in overrides.chunks(ROWS_AT_ONCE) {
            on!(self, |c| {
                let mut q = sqlx::QueryBuilder::new(
                    r#"INSERT INTO "Alchemi_CopilotBudgetOverrideTable" (account_id, id, plan_id, scope_type, scope_id,
                       override_credits, reason, expires_at, created_by, created_at) "#,
                );
                q.push_values(rows, |mut row, o| {
                    row.push_bind(&account).push_bind(&o.id).push_bind(&o.plan_id);
                    row.push_bind(o.scope_type).push_bind(&o.scope_id).push_bind(o.override_credits);
                    row.push_bind(&o.reason).push_bind(o.expires_at).push_bind(&o.created_by).push_bind(o.created_at);
                });
                q.build().execute(c).await.map(|done| done.rows_affected())
            })?;
        }
        self.changed(ChangeKind::Budget);
        Ok(())
    }

    /// Takes an override back.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn delete_override(&mut self, id: &Id<Override>) -> Result<bool> {
        let gone = remove!(self, "Alchemi_CopilotBudgetOverrideTable", id = id)?;
        self.changed(ChangeKind::Budget);
        Ok(gone)
    }
}

/// Renewals.
impl Tx<Tenant> {
    /// Renewals, and windows that were carried over, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn renewals(&mut self, slice: &Slice) -> Result<Page<BudgetCycle>> {
        let (account, (at, id)) = (self.account.clone(), slice.before());
        let rows: Vec<BudgetCycle> = on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM (
               SELECT id, account_id, source_plan_id, new_plan_id, cycle_start, cycle_end, rollover_credits,
               overflow_charge_credits, summary_json, created_by, created_at FROM "Alchemi_CopilotBudgetCycleTable"
               UNION ALL
               SELECT id, account_id, plan_id, plan_id, cycle_start, cycle_end, rollover_credits,
               overflow_charge_credits, summary_json, created_by, created_at FROM "Alchemi_CopilotBudgetWindowTable"
               ) AS c WHERE account_id = $1 AND (created_at, id) < ($2, $3)
               ORDER BY created_at DESC, id DESC LIMIT $4 OFFSET $5"#
        )
        .bind(&account)
        .bind(at)
        .bind(&id)
        .bind(slice.fetch())
        .bind(slice.skip())
        .fetch_all(c)
        .await)?;
        Ok(slice.page(rows, |row| (row.created_at, row.id.as_str())))
    }

    /// The renewal that made `plan`.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn renewal_into(&mut self, plan: &Id<Plan>) -> Result<Option<BudgetCycle>> {
        find!(self, "Alchemi_CopilotBudgetCycleTable", new_plan_id = plan)
    }

    /// The renewal that put another plan in the place of `plan`.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn renewal_of(&mut self, plan: &Id<Plan>) -> Result<Option<BudgetCycle>> {
        find!(self, "Alchemi_CopilotBudgetCycleTable", source_plan_id = plan)
    }

    /// The renewals that led to `plan`.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn lineage(&mut self, plan: &Id<Plan>) -> Result<Lineage> {
        let account = self.account.clone();
        let all: Vec<BudgetCycle> =
            on!(self, |c| sqlx::query_as(r#"SELECT * FROM "Alchemi_CopilotBudgetCycleTable" WHERE account_id = $1"#)
                .bind(&account)
                .fetch_all(c)
                .await)?;
        let with_unused = |renewal: BudgetCycle| {
            let unused = rollover::summary(&renewal)?.unused_credits;
            Ok((renewal, unused))
        };
        Ok(Lineage::of(plan, all.into_iter().map(with_unused).collect::<Result<_>>()?))
    }

    /// Writes a renewal down.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) when the source plan was renewed before.
    pub async fn insert_renewal(&mut self, renewal: &BudgetCycle) -> Result<()> {
        let account = self.account.clone();
        run!(
            self,
            r#"INSERT INTO "Alchemi_CopilotBudgetCycleTable" (account_id, id, source_plan_id, new_plan_id, cycle_start,
               cycle_end, rollover_credits, overflow_charge_credits, summary_json, created_by, created_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"#,
            &account,
            &renewal.id,
            &renewal.source_plan_id,
            &renewal.new_plan_id,
            renewal.cycle_start,
            renewal.cycle_end,
            renewal.rollover_credits,
            renewal.overflow_charge_credits,
            &renewal.summary_json,
            &renewal.created_by,
            renewal.created_at
        )?;
        Ok(())
    }
}
