//! Windows that have ended: what they leave is carried into the pool of the next one.
//!
//! No job does it. Whoever reads or changes the budgets of an account after the end of
//! a window carries it over first, under the lock of the plan's row: of many gateways
//! one does, the others find it done.

use std::collections::HashMap;
use std::time::Duration;

use super::ChangeKind;
use crate::clock::Timestamp;
use crate::context::{Domain, Granted, Tenant};
use crate::credits::Credits;
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::audit::{Action, Label};
use crate::model::budgets::{
    AccountAllocation, Allocation, BudgetCycle, Calendar, Closed, Leftover, Lineage, Lot, Plan, RenewalSummary,
    RolloverMode, Taken, Window, carry, just_before, total,
};
use crate::model::scope::{Scope, ScopeType};
use crate::policy::budget::POOL;
use crate::store::audit::Entry;
use crate::store::usage::CostFilter;
use crate::store::{Result, Store, StoreError, Tx, on, run};

const TABLE: &str = "Alchemi_CopilotBudgetWindowTable";

/// Windows that were closed by themselves, up to the account that they are of.
const CLOSED: &str = r#"SELECT id, account_id, plan_id AS source_plan_id, plan_id AS new_plan_id, cycle_start, cycle_end,
    rollover_credits, overflow_charge_credits, summary_json, created_by, created_at
    FROM "Alchemi_CopilotBudgetWindowTable" WHERE account_id = "#;

/// The `source` of a pool that has credits which were carried over.
pub const ROLLED_OVER: &str = "cycle_rollover";

/// How soon a window is looked at again of which requests still held some.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What a plan leaves at the end of a window, or of a part of it.
#[derive(Debug, Clone)]
pub struct Ending {
    /// What is left.
    pub left: Leftover,
    /// What the plan did not give out of the account's monthly credits.
    pub unallocated: Credits,
    /// What had been carried into the window.
    pub carried_in: Vec<Lot>,
    /// The pool, if there is one.
    pub pool: Option<Allocation>,
}

impl Ending {
    /// What is there to be carried over.
    pub fn fresh(&self, mode: RolloverMode) -> Credits {
        match mode {
            RolloverMode::Unallocated => self.unallocated,
            RolloverMode::Unused | RolloverMode::None => self.left.unused,
        }
    }

    /// What the pool has beside what was carried into it.
    pub fn own(&self) -> Credits {
        self.pool.as_ref().map(own).unwrap_or_default()
    }
}

fn own(pool: &Allocation) -> Credits {
    pool.allocated_credits.saturating_sub(pool.rollover_credits)
}

/// What was carried into a window.
#[derive(Default)]
struct Carried {
    credits: Credits,
    look_again_at: Option<Timestamp>,
}

/// Of an account, what windows depend on.
struct Terms {
    calendar: Calendar,
    account: Option<AccountAllocation>,
}

impl Store {
    /// Carries over what windows of the account's plan have left that ended since it
    /// was last done; gives whether there was something to do.
    ///
    /// # Errors
    /// [`StoreError`]; it is done by whoever comes next, then.
    pub async fn roll_over(&self, account: &Id<Account>) -> Result<bool> {
        let granted = Granted::system().over(account.clone());
        let mut tx = self.read(&granted).await?;
        let Some(plan) = tx.active_plan().await?.filter(Plan::rolls_over) else { return Ok(false) };
        let (calendar, _) = tx.account_terms().await?;
        if !plan.rollover_is_due(tx.now(), &calendar) {
            return Ok(false);
        }
        drop(tx);
        let mut tx = self.begin(&granted).await?;
        let done = tx.roll_over(&plan.id).await?;
        tx.commit().await?;
        Ok(done)
    }
}

impl Tx<Tenant> {
    async fn roll_over(&mut self, plan: &Id<Plan>) -> Result<bool> {
        // The account's calendar is read behind the lock, which whoever changes it takes first.
        if self.locked_plan(plan).await?.is_none() {
            return Ok(false);
        }
        let (calendar, account) = self.account_terms().await?;
        let now = self.now;
        // Another one may have been faster.
        let due = |plan: &Plan| plan.rollover_is_due(now, &calendar);
        let Some(plan) = self.plan(plan).await?.filter(due) else { return Ok(false) };
        let ended = plan.ended_windows(now, &calendar);
        let terms = Terms { calendar, account };
        match ended.last().and_then(|last| last.end) {
            Some(rolled_to) => {
                let mut carried = Carried::default();
                for window in ended {
                    carried = self.close(&plan, &terms, window, None).await?;
                }
                match plan.rollover {
                    RolloverMode::None if carried.credits == Credits::ZERO => self.end_rollover(&plan.id).await?,
                    _ => self.rolled(&plan.id, rolled_to, carried.look_again_at).await?,
                }
            }
            None => self.look_again(&plan, &terms).await?,
        }
        self.changed(ChangeKind::Budget);
        Ok(true)
    }

    /// Looks again at the window that was last carried over.
    async fn look_again(&mut self, plan: &Plan, terms: &Terms) -> Result<()> {
        let Some(rolled_to) = plan.rolled_to else { return Ok(()) };
        let carried = match self.closed_until(&plan.id, rolled_to).await? {
            Some(row) => {
                let window = Window { start: row.cycle_start, end: Some(row.cycle_end) };
                self.close(plan, terms, window, Some(&row)).await?
            }
            None => Carried::default(),
        };
        self.rolled(&plan.id, rolled_to, carried.look_again_at).await
    }

    /// Carries a window that has ended into the next one.
    async fn close(
        &mut self,
        plan: &Plan,
        terms: &Terms,
        window: Window,
        before: Option<&BudgetCycle>,
    ) -> Result<Carried> {
        let Some(end) = window.end else { return Ok(Carried::default()) };
        let before = before.map(|row| Ok::<_, StoreError>((row, summary(row)?))).transpose()?;
        let carried_in = before.as_ref().map(|(_, summary)| summary.carried_in.clone());
        let account = terms.account.as_ref();
        let ending = self.ending(plan, account, (window.start, just_before(end)), carried_in).await?;
        let has = ending.pool.as_ref().map(|pool| pool.rollover_credits).unwrap_or_default();
        let fresh = match &before {
            // Somebody has given the pool other credits since.
            Some((_, then)) if has != then.rollover_credits => return Ok(Carried::default()),
            Some((_, then)) => come_back(then, &ending, plan.rollover),
            None if plan.rollover == RolloverMode::None => Credits::ZERO,
            None if self.lineage(&plan.id).await?.has_carried(plan.cycle, just_before(end), &terms.calendar) => {
                Credits::ZERO
            }
            None => ending.fresh(plan.rollover),
        };
        let fresh = Lot { credits: fresh, until: plan.lapse(end, &terms.calendar) };
        let carried = carry(fresh, &plan.lots(&ending.left.lots, &terms.calendar), end, plan.rollover_cap);
        self.carry_into_pool(plan, &ending, total(&carried), plan.window(end, &terms.calendar).end).await?;
        if plan.rollover == RolloverMode::None && carried.is_empty() {
            return Ok(Carried::default());
        }
        let look_again_at = (ending.left.held > Credits::ZERO
            && (plan.rollover == RolloverMode::Unused || !ending.carried_in.is_empty()))
        .then(|| self.now.plus(LOOK_AGAIN));
        let used = self.used_in(&terms.calendar, window.start, end).await?;
        let Leftover { held, taken, .. } = ending.left;
        let unused = fresh.credits;
        let closed = Closed { used, unused, held, taken, carried_in: ending.carried_in };
        let summary = RenewalSummary::new((&plan.id, &plan.id), account, closed, carried);
        let cycle = BudgetCycle {
            created_at: before.as_ref().map_or(self.now, |(row, _)| row.created_at),
            ..BudgetCycle::new(
                before.as_ref().map_or_else(|| self.new_id(), |(row, _)| row.id.clone()),
                self.account.clone(),
                (window.start, end),
                &summary,
                (Some("system".to_owned()), self.now),
            )
        };
        self.put_window(&cycle).await?;
        if before.as_ref().is_none_or(|(_, then)| then.carried_over != summary.carried_over) {
            let entry = Entry { action: Action::Upsert, table: TABLE, id: cycle.id.as_str(), label: Label::Copilot };
            self.audit(entry, before.as_ref().map(|(row, _)| *row), &cycle).await?;
        }
        Ok(Carried { credits: summary.rollover_credits, look_again_at })
    }

    /// What had been carried into the window of a plan that began at `start`, when the plan was made
    /// at `since`; as it was then.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn carried_then(&mut self, plan: &Id<Plan>, since: Timestamp, start: Timestamp) -> Result<Vec<Lot>> {
        let row = match self.closed_until(plan, start).await? {
            None if start == since => self.renewal_into(plan).await?,
            row => row,
        };
        Ok(row.as_ref().map(summary).transpose()?.map(|summary| summary.carried_over).unwrap_or_default())
    }

    /// Whether a window that ended at `end` has left something by itself, to a plan of the line or
    /// to `plan`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn has_rolled_over(&mut self, end: Timestamp, line: &Lineage, plan: &Id<Plan>) -> Result<bool> {
        let account = self.account.clone();
        let rows: Vec<BudgetCycle> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(CLOSED);
            q.push_bind(&account).push(" AND cycle_end = ").push_bind(end).build_query_as().fetch_all(c).await
        })?;
        for row in rows.iter().filter(|row| row.source_plan_id == *plan || line.has(&row.source_plan_id)) {
            if summary(row)?.unused_credits > Credits::ZERO {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What a plan has left `at` a moment of the window that began at `start`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ending(
        &mut self,
        plan: &Plan,
        account: Option<&AccountAllocation>,
        (start, at): (Timestamp, Timestamp),
        carried_in: Option<Vec<Lot>>,
    ) -> Result<Ending> {
        let pool = self.allocation(&plan.id, &Scope::new(ScopeType::Pool, POOL)).await?;
        let carried_in = match carried_in {
            Some(lots) => lots,
            None => self.carried_into(plan, start, pool.as_ref()).await?,
        };
        let mut taken = HashMap::new();
        for counter in self.counters_from(start).await? {
            let scope = Scope::new(counter.scope_type, counter.scope_id);
            taken.insert(scope, Taken { used: counter.used, held: counter.leased });
        }
        let division = self.division_at(&plan.id, at).await?;
        let own = pool.as_ref().map(own).unwrap_or_default();
        let monthly = account.map(|a| a.monthly_credits).unwrap_or_default();
        let unallocated = monthly.saturating_sub(division.fresh()).max(Credits::ZERO);
        Ok(Ending { left: Leftover::of(&division, &taken, own, &carried_in), unallocated, carried_in, pool })
    }

    /// What was carried into the window of a plan that began at `start`.
    async fn carried_into(&mut self, plan: &Plan, start: Timestamp, pool: Option<&Allocation>) -> Result<Vec<Lot>> {
        let Some(pool) = pool.filter(|pool| pool.rollover_credits > Credits::ZERO) else { return Ok(Vec::new()) };
        let row = match self.closed_until(&plan.id, start).await? {
            Some(row) => Some(row),
            None => self.renewal_into(&plan.id).await?,
        };
        let mut lots = row.as_ref().map(summary).transpose()?.map(|s| s.carried_over).unwrap_or_default();
        // Somebody may have given the pool other credits since.
        if total(&lots) != pool.rollover_credits {
            lots = vec![Lot { credits: pool.rollover_credits, until: pool.rollover_until }];
        }
        lots.retain(|lot| lot.until.is_none_or(|until| until > start));
        Ok(lots)
    }

    /// Gives the pool what was carried over, beside its own credits.
    async fn carry_into_pool(
        &mut self,
        plan: &Plan,
        ending: &Ending,
        carried: Credits,
        until: Option<Timestamp>,
    ) -> Result<()> {
        let own = ending.own();
        let pool = ending.pool.as_ref();
        if own == Credits::ZERO && carried == Credits::ZERO {
            match pool {
                None => return Ok(()),
                // There was none before something was carried over.
                Some(pool) if pool.source == ROLLED_OVER => return self.delete_allocation(&pool.id).await.map(drop),
                Some(_) => {}
            }
        }
        let allocation = Allocation {
            id: self.new_id(),
            account_id: self.account.clone(),
            plan_id: plan.id.clone(),
            scope_type: ScopeType::Pool,
            scope_id: POOL.to_owned(),
            allocated_credits: own.saturating_add(carried),
            overflow_cap: pool.and_then(|pool| pool.overflow_cap),
            rollover_credits: carried,
            rollover_until: until.filter(|_| carried > Credits::ZERO),
            source: pool.map_or_else(|| ROLLED_OVER.to_owned(), |pool| pool.source.clone()),
            created_by: Some("system".to_owned()),
            created_at: self.now,
            updated_at: self.now,
            version: 1,
        };
        self.upsert_allocation(&allocation).await.map(drop)
    }

    /// Credits of the copilot domain on the days of a cycle.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn used_in(&mut self, calendar: &Calendar, start: Timestamp, end: Timestamp) -> Result<Credits> {
        let days = CostFilter {
            from: Some(calendar.day_of(start)),
            to: Some(calendar.day_of(just_before(end))),
            ..CostFilter::of(Domain::Copilot)
        };
        Ok(self.cost_total(&days).await?.credits)
    }

    /// The window of a plan that ended at `end`, if it was carried over.
    async fn closed_until(&mut self, plan: &Id<Plan>, end: Timestamp) -> Result<Option<BudgetCycle>> {
        let account = self.account.clone();
        on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(CLOSED);
            q.push_bind(&account).push(" AND cycle_end = ").push_bind(end);
            q.push(" AND plan_id = ").push_bind(plan).build_query_as().fetch_optional(c).await
        })
    }

    async fn put_window(&mut self, cycle: &BudgetCycle) -> Result<()> {
        let account = self.account.clone();
        run!(
            self,
            r#"INSERT INTO "Alchemi_CopilotBudgetWindowTable" (account_id, id, plan_id, cycle_start, cycle_end,
               rollover_credits, overflow_charge_credits, summary_json, created_by, created_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
               ON CONFLICT (account_id, plan_id, cycle_end) DO UPDATE SET rollover_credits = excluded.rollover_credits,
               overflow_charge_credits = excluded.overflow_charge_credits, summary_json = excluded.summary_json"#,
            &account,
            &cycle.id,
            &cycle.source_plan_id,
            cycle.cycle_start,
            cycle.cycle_end,
            cycle.rollover_credits,
            cycle.overflow_charge_credits,
            &cycle.summary_json,
            &cycle.created_by,
            cycle.created_at
        )?;
        Ok(())
    }
}

/// What is there to be carried over of a window that was closed before: besides what was `then`,
/// what was held of it and has come back. What was allocated meanwhile is for the next window.
fn come_back(then: &RenewalSummary, ending: &Ending, mode: RolloverMode) -> Credits {
    let back = match (mode, then.taken_credits) {
        (RolloverMode::Unused, Some(taken)) => taken.saturating_sub(ending.left.taken).max(Credits::ZERO),
        (RolloverMode::Unused, None) => then.held_credits,
        (RolloverMode::Unallocated | RolloverMode::None, _) => Credits::ZERO,
    };
    ending.fresh(mode).max(then.unused_credits).min(then.unused_credits.saturating_add(back))
}

pub(super) fn summary(row: &BudgetCycle) -> Result<RenewalSummary> {
    row.summary_json.read().map_err(|e| StoreError::Unreadable { table: TABLE, reason: e.to_string() })
}
