//! Plans, with what their windows leave to the next one.

use super::ChangeKind;
use crate::clock::Timestamp;
use crate::context::Tenant;
use crate::id::Id;
use crate::model::budgets::{Plan, PlanStatus, RolloverMode};
use crate::store::page::{Page, Slice};
use crate::store::{Result, StoreError, Tx, from_columns, on, run};

from_columns! {
    Plan {
        id, account_id, name, cycle, status, over_commit, rollover, rollover_cap, rollover_windows, rolled_to,
        look_again_at, created_by, created_at, updated_at, version,
    }
}

/// A plan's columns, up to the account that it is of.
const PLANS: &str = r#"SELECT p.*, COALESCE(r.rollover, 'none') AS rollover, r.rollover_cap,
    COALESCE(r.rollover_windows, 1) AS rollover_windows, r.rolled_to, r.look_again_at
    FROM "Alchemi_CopilotBudgetPlanTable" p
    LEFT JOIN "Alchemi_CopilotBudgetRolloverTable" r ON r.account_id = p.account_id AND r.plan_id = p.id
    WHERE p.account_id = "#;

impl Tx<Tenant> {
    /// Plans, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn plans(&mut self, slice: &Slice) -> Result<Page<Plan>> {
        let (account, (at, id)) = (self.account.clone(), slice.before());
        let rows: Vec<Plan> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(PLANS);
            q.push_bind(&account).push(" AND (p.created_at, p.id) < (").push_bind(at).push(", ").push_bind(&id);
            q.push(") ORDER BY p.created_at DESC, p.id DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip()).build_query_as().fetch_all(c).await
        })?;
        Ok(slice.page(rows, |row| (row.created_at, row.id.as_str())))
    }

    /// One plan.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn plan(&mut self, id: &Id<Plan>) -> Result<Option<Plan>> {
        let account = self.account.clone();
        on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(PLANS);
            q.push_bind(&account).push(" AND p.id = ").push_bind(id).build_query_as().fetch_optional(c).await
        })
    }

    /// The plan in force.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn active_plan(&mut self) -> Result<Option<Plan>> {
        let account = self.account.clone();
        on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(PLANS);
            q.push_bind(&account).push(" AND p.status = 'active'").build_query_as().fetch_optional(c).await
        })
    }

    /// One plan, whose row stays locked until the commit: what is divided out of it
    /// is checked by one writer at a time.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn locked_plan(&mut self, id: &Id<Plan>) -> Result<Option<Plan>> {
        let held = run!(
            self,
            r#"UPDATE "Alchemi_CopilotBudgetPlanTable" SET version = version WHERE account_id = $1 AND id = $2"#,
            &self.account,
            id
        )?;
        if held == 0 { Ok(None) } else { self.plan(id).await }
    }

    /// Makes a plan.
    ///
    /// # Errors
    /// [`StoreError::Unique`] when it is active and another one is, too.
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
        self.put_rollover(plan).await?;
        self.changed(ChangeKind::Budget);
        Ok(())
    }

    /// Writes a plan's name, status, rule on over-commitment, and what its windows leave.
    ///
    /// # Errors
    /// [`StoreError::Unique`] when it becomes active and another one is.
    pub async fn update_plan(&mut self, plan: &Plan) -> Result<Plan> {
        let (account, now) = (self.account.clone(), self.now);
        run!(
            self,
            r#"UPDATE "Alchemi_CopilotBudgetPlanTable" SET name = $3, status = $4, over_commit = $5, updated_at = $6,
               version = version + 1 WHERE account_id = $1 AND id = $2"#,
            &account,
            &plan.id,
            &plan.name,
            plan.status,
            plan.over_commit,
            now
        )?;
        self.put_rollover(plan).await?;
        self.changed(ChangeKind::Budget);
        self.stored_plan(&plan.id).await
    }

    /// Puts the plan in force out of it, and gives it as it was and as it is then.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn deactivate_plan(&mut self) -> Result<Option<(Plan, Plan)>> {
        let was = match self.active_plan().await? {
            Some(active) => self.locked_plan(&active.id).await?,
            None => None,
        };
        let (account, now) = (self.account.clone(), self.now);
        let id: Option<Id<Plan>> = on!(self, |c| {
            sqlx::query_scalar(
                r#"UPDATE "Alchemi_CopilotBudgetPlanTable" SET status = 'inactive', updated_at = $2, version = version + 1
               WHERE account_id = $1 AND status = 'active' RETURNING id"#,
            )
            .bind(&account)
            .bind(now)
            .fetch_optional(c)
            .await
        })?;
        self.changed(ChangeKind::Budget);
        let Some(id) = id else { return Ok(None) };
        let is = self.stored_plan(&id).await?;
        // Another one may have come into force before it was held.
        let was = was.filter(|was| was.id == id).unwrap_or_else(|| Plan { status: PlanStatus::Active, ..is.clone() });
        Ok(Some((was, is)))
    }

    async fn stored_plan(&mut self, id: &Id<Plan>) -> Result<Plan> {
        let gone = || StoreError::Unreadable {
            table: "Alchemi_CopilotBudgetPlanTable",
            reason: "a row is gone that was written in this transaction".to_owned(),
        };
        self.plan(id).await?.ok_or_else(gone)
    }

    /// Writes what the plan's windows leave, as the plan says.
    async fn put_rollover(&mut self, plan: &Plan) -> Result<()> {
        let account = self.account.clone();
        if plan.rollover == RolloverMode::None && plan.rolled_to.is_none() {
            return self.end_rollover(&plan.id).await;
        }
        run!(
            self,
            r#"INSERT INTO "Alchemi_CopilotBudgetRolloverTable"
               (account_id, plan_id, rollover, rollover_cap, rollover_windows, rolled_to, look_again_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7)
               ON CONFLICT (account_id, plan_id) DO UPDATE SET rollover = excluded.rollover,
               rollover_cap = excluded.rollover_cap, rollover_windows = excluded.rollover_windows,
               rolled_to = excluded.rolled_to, look_again_at = excluded.look_again_at"#,
            &account,
            &plan.id,
            plan.rollover,
            plan.rollover_cap,
            plan.rollover_windows,
            plan.rolled_to.unwrap_or(self.now),
            plan.look_again_at
        )?;
        Ok(())
    }

    /// Closes no more windows of a plan.
    pub(super) async fn end_rollover(&mut self, plan: &Id<Plan>) -> Result<()> {
        run!(
            self,
            r#"DELETE FROM "Alchemi_CopilotBudgetRolloverTable" WHERE account_id = $1 AND plan_id = $2"#,
            &self.account,
            plan
        )?;
        Ok(())
    }

    /// Notes how far windows of a plan were closed.
    pub(super) async fn rolled(&mut self, plan: &Id<Plan>, to: Timestamp, look_again: Option<Timestamp>) -> Result<()> {
        let account = self.account.clone();
        run!(
            self,
            r#"UPDATE "Alchemi_CopilotBudgetRolloverTable" SET rolled_to = $3, look_again_at = $4
               WHERE account_id = $1 AND plan_id = $2"#,
            &account,
            plan,
            to,
            look_again
        )?;
        Ok(())
    }
}
