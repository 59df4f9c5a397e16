//! Account allocations, plans, their allocations and overrides, and renewals.

use super::changes::ChangeKind;
use super::dialect::stored_as_name;
use super::page::{Page, Slice};
use super::{Result, Tx, find, from_columns, list, on, remove, run};
use crate::context::{Platform, Tenant};
use crate::id::Id;
use crate::model::budgets::{
    AccountAllocation, Allocation, BudgetCycle, Cycle, OverCommit, Override, Plan, PlanStatus,
};
use crate::model::scope::Scope;

mod rules;

stored_as_name!(Cycle, PlanStatus, OverCommit);

from_columns! {
    Plan { id, account_id, name, cycle, status, over_commit, created_by, created_at, updated_at, version }
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
            r#"SELECT * FROM "Alchemi_AccountAllocationTable" WHERE (updated_at, account_id) < ($1, $2)
               ORDER BY updated_at DESC, account_id DESC LIMIT $3 OFFSET $4"#
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
        on!(self, |c| sqlx::query_as(r#"SELECT * FROM "Alchemi_AccountAllocationTable" WHERE account_id = $1"#)
            .bind(&account)
            .fetch_optional(c)
            .await)
    }

    /// Sets what the account may spend.
    ///
    /// # Errors
    /// [`StoreError::ForeignKey`](super::StoreError::ForeignKey) when the account is gone.
    pub async fn put_account_allocation(&mut self, allocation: &AccountAllocation) -> Result<AccountAllocation> {
        let account = self.account.clone();
        let row = on!(self, |c| {
            sqlx::query_as(
            r#"INSERT INTO "Alchemi_AccountAllocationTable" AS a (account_id, monthly_credits, overflow_limit, credit_factor,
               effective_from, updated_by, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
               ON CONFLICT (account_id) DO UPDATE SET monthly_credits = excluded.monthly_credits,
               overflow_limit = excluded.overflow_limit, credit_factor = excluded.credit_factor,
               effective_from = excluded.effective_from, updated_by = excluded.updated_by,
               updated_at = excluded.updated_at, version = a.version + 1 RETURNING *"#
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
        self.changed(ChangeKind::Budget);
        Ok(row)
    }
}

/// Plans.
impl Tx<Tenant> {
    /// Plans, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn plans(&mut self, slice: &Slice) -> Result<Page<Plan>> {
        list!(self, slice, Plan in "Alchemi_CopilotBudgetPlanTable")
    }

    /// One plan.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn plan(&mut self, id: &Id<Plan>) -> Result<Option<Plan>> {
        find!(self, "Alchemi_CopilotBudgetPlanTable", id = id)
    }

    /// The plan in force.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn active_plan(&mut self) -> Result<Option<Plan>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_CopilotBudgetPlanTable" WHERE account_id = $1 AND status = 'active'"#
        )
        .bind(&account)
        .fetch_optional(c)
        .await)
    }

    /// One plan, whose row stays locked until the commit: what is divided out of it
    /// is checked by one writer at a time.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn locked_plan(&mut self, id: &Id<Plan>) -> Result<Option<Plan>> {
        let account = self.account.clone();
        on!(self, |c| {
            sqlx::query_as(
            r#"UPDATE "Alchemi_CopilotBudgetPlanTable" SET version = version WHERE account_id = $1 AND id = $2 RETURNING *"#
        )
        .bind(&account)
        .bind(id)
        .fetch_optional(c)
        .await
        })
    }

    /// Makes a plan.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) when it is active and another one is, too.
    pub async fn insert_plan(&mut self, plan: &Plan) -> Result<()> {
        let account = self.account.clone();
        run!(
            self,
            r#"INSERT INTO "Alchemi_CopilotBudgetPlanTable" (account_id, id, name, cycle, status, over_commit, created_by,
               created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)"#,
            &account,
            &plan.id,
            &plan.name,
            plan.cycle,
            plan.status,
            plan.over_commit,
            &plan.created_by,
            plan.created_at
        )?;
        self.changed(ChangeKind::Budget);
        Ok(())
    }

    /// Writes a plan's name, status and rule on over-commitment.
    ///
    /// # Errors
    /// [`StoreError::Unique`](super::StoreError::Unique) when it becomes active and another one is.
    pub async fn update_plan(&mut self, plan: &Plan) -> Result<Plan> {
        let (account, now) = (self.account.clone(), self.now);
        let row = on!(self, |c| {
            sqlx::query_as(
            r#"UPDATE "Alchemi_CopilotBudgetPlanTable" SET name = $3, status = $4, over_commit = $5, updated_at = $6,
               version = version + 1 WHERE account_id = $1 AND id = $2 RETURNING *"#
        )
        .bind(&account)
        .bind(&plan.id)
        .bind(&plan.name)
        .bind(plan.status)
        .bind(plan.over_commit)
        .bind(now)
        .fetch_one(c)
        .await
        })?;
        self.changed(ChangeKind::Budget);
        Ok(row)
    }

    /// Puts the plan in force out of it, and gives it as it is then.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn deactivate_plan(&mut self) -> Result<Option<Plan>> {
        let (account, now) = (self.account.clone(), self.now);
        let row = on!(self, |c| {
            sqlx::query_as(
            r#"UPDATE "Alchemi_CopilotBudgetPlanTable" SET status = 'inactive', updated_at = $2, version = version + 1
               WHERE account_id = $1 AND status = 'active' RETURNING *"#
        )
        .bind(&account)
        .bind(now)
        .fetch_optional(c)
        .await
        })?;
        self.changed(ChangeKind::Budget);
        Ok(row)
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
    /// Renewals, newest first.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn renewals(&mut self, slice: &Slice) -> Result<Page<BudgetCycle>> {
        list!(self, slice, BudgetCycle in "Alchemi_CopilotBudgetCycleTable")
    }

    /// The renewal that made `plan`.
    ///
    /// # Errors
    /// [`StoreError`](super::StoreError).
    pub async fn renewal_into(&mut self, plan: &Id<Plan>) -> Result<Option<BudgetCycle>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_CopilotBudgetCycleTable" WHERE account_id = $1 AND new_plan_id = $2"#
        )
        .bind(&account)
        .bind(plan)
        .fetch_optional(c)
        .await)
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
