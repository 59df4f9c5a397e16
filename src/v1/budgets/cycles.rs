//! Renewals: one plan is closed, its successor begins with what was left.

use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::plans::{self, OVERTAKEN};
use super::{PLAN_NOT_FOUND, acting, entry, held_plan, require_kept, roll_over};
use crate::clock::Timestamp;
use crate::context::{Domain, Tenant};
use crate::credits::Credits;
use crate::id::Id;
use crate::model::accounts::JsonText;
use crate::model::audit::Action;
use crate::model::budgets::{
    AccountAllocation, Allocation, BudgetCycle, Calendar, Closed, Lineage, Lot, Override, Plan, PlanStatus,
    RenewalSummary, RolloverMode, carry, just_before, total,
};
use crate::model::scope::ScopeType;
use crate::model::text::Name;
use crate::policy::budget::POOL;
use crate::problem::Problem;
use crate::store::Tx;
use crate::store::budgets::rollover::{Ending, ROLLED_OVER};
use crate::store::page::Slice;
use crate::v1::answer::{Answer, Halt, Items, Outcome, Refusals, or_404, taken};
use crate::v1::call::{Call, CopilotAdmin};
use crate::v1::input::{Body, PageParams, Paging, Query, require};
use crate::v1::trial::{Trial, Tried};

/// The cycle to be closed.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "cycle_start": "2026-01-01T00:00:00Z",
    "cycle_end": "2026-02-01T00:00:00Z",
    "new_plan_name": "February",
    "rollover_cap": 100,
    "copy_overrides": true
}))]
pub struct Renewal {
    /// Its first moment.
    cycle_start: Timestamp,
    /// The first moment behind it.
    cycle_end: Timestamp,
    /// The new plan's name; else the old one with the end's date.
    #[serde(default)]
    new_plan_name: Option<Name>,
    /// The most that is carried over; null: what the plan says, else all.
    #[serde(default)]
    rollover_cap: Option<Credits>,
    /// Whether overrides that have not expired go on.
    #[serde(default)]
    copy_overrides: bool,
}

/// What came of a renewal.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Renewed {
    /// The id of the renewal.
    cycle_id: Id<BudgetCycle>,
    /// The new plan; in force, unless another one has taken its place since.
    item: Plan,
    /// What was found and carried over.
    #[schema(value_type = RenewalSummary)]
    summary: JsonText,
}

/// Renew the plan in force
///
/// Closes the plan and puts a copy of its allocations in its place. What the plan
/// gave out and nobody used or holds in the cycle's last window (where its `rollover`
/// is `unallocated`, what it did not give out), up to `rollover_cap`, is added to the
/// new plan's pool for as many of its windows as `rollover_windows` says. Each window
/// is carried over once: one that rolled over by itself, or of which an earlier renewal
/// carried over a part, leaves nothing more, and one that ended before the first of the
/// plans was made leaves nothing. A cycle that has not begun is not renewed; a renewal
/// that was done is answered again, not done again.
#[utoipa::path(post, path = "/v1/budgets/copilot/cycles/renew", tag = "budgets", params(Trial), request_body = Renewal,
    responses((status = 200, description = "The new plan", body = Tried<Renewed>), Refusals))]
pub async fn renew_budget_cycle(
    call: Call<CopilotAdmin>,
    Query(trial): Query<Trial>,
    Body(renewal): Body<Renewal>,
) -> Outcome {
    if renewal.cycle_end <= renewal.cycle_start {
        return Err(Problem::bad_request("invalid_cycle", "cycle_end must be after cycle_start").into());
    }
    require(!renewal.rollover_cap.unwrap_or_default().is_negative(), "/rollover_cap", "cannot be negative")?;
    roll_over(&call).await?;
    let mut tx = call.begin_or_try(&trial).await?;
    require(renewal.cycle_start <= tx.now(), "/cycle_start", "must not be in the future: the cycle has not begun")?;
    let source = or_404(held_plan(&mut tx, Domain::Copilot).await?, "No active budget plan found")?;
    let line = tx.lineage(&source.id).await?;
    let ends = (renewal.cycle_start, renewal.cycle_end);
    if let Some(done) = line.renewal_of(ends) {
        if (done.cycle_start, done.cycle_end) != ends {
            let detail = format!("A part of the cycle was renewed with {} to {}", done.cycle_start, done.cycle_end);
            return Err(Problem::conflict("cycle_overlaps", detail).into());
        }
        let item = or_404(tx.plan(&done.new_plan_id).await?, PLAN_NOT_FOUND)?;
        let again = Renewed { cycle_id: done.id.clone(), item, summary: done.summary_json.clone() };
        return call.done(tx, &again).await;
    }
    let former = plans::retire(&mut tx).await?.ok_or_else(|| Problem::conflict("already_exists", OVERTAKEN))?;
    let terms = tx.account_terms().await?;
    let (calendar, account) = (&terms.0, terms.1.as_ref());
    let used = tx.used_in(calendar, renewal.cycle_start, renewal.cycle_end).await?;
    let (ending, left) = left_by(&mut tx, &source, &line, (renewal.cycle_end, calendar, account)).await?;
    let fresh = Lot { credits: left.unused, until: lapse(&source, tx.now().max(renewal.cycle_end), calendar) };
    let lots = source.lots(&ending.left.lots, calendar);
    let carried_over = carry(fresh, &lots, tx.now(), renewal.rollover_cap.or(source.rollover_cap));
    let rollover = total(&carried_over);
    let plan = successor(&tx, &source, &renewal, (calendar, rollover));
    tx.insert_plan(&plan).await.map_err(taken("active", OVERTAKEN))?;
    tx.audit(entry(Action::Create, plans::TABLE, plan.id.as_str()), Some(&former), &plan).await?;
    let present = plan.window(tx.now(), calendar);
    copy_allocations(&mut tx, &source, &plan, (rollover, present.end)).await?;
    if renewal.copy_overrides {
        copy_overrides(&mut tx, &source, &plan).await?;
    }
    require_kept(&mut tx, &plan).await?;
    let Left { unused, held, drawn } = left;
    let closed = Closed { used, unused, held, taken: drawn, carried_in: ending.carried_in };
    let summary = RenewalSummary::new((&source.id, &plan.id), account, closed, carried_over);
    let cycle = BudgetCycle::new(tx.new_id(), tx.account().clone(), ends, &summary, (acting(&tx), tx.now()));
    tx.insert_renewal(&cycle).await.map_err(taken("source", "This plan has been renewed already"))?;
    tx.audit(entry(Action::Create, "Alchemi_CopilotBudgetCycleTable", cycle.id.as_str()), None::<&()>, &cycle).await?;
    call.done(tx, &Renewed { cycle_id: cycle.id.clone(), item: plan, summary: cycle.summary_json }).await
}

/// What the last window of a cycle has left.
#[derive(Default)]
struct Left {
    unused: Credits,
    held: Credits,
    /// What was used and is held.
    drawn: Credits,
}

impl From<(&Ending, RolloverMode)> for Left {
    fn from((ending, mode): (&Ending, RolloverMode)) -> Self {
        Self { unused: ending.fresh(mode), held: ending.left.held, drawn: ending.left.taken }
    }
}

/// How the plan stands now, with what is left of what had been carried into it; and what the cycle
/// that ends at `cycle_end` leaves besides. That is nothing of a window that was carried over
/// before, by itself or by a renewal, or in which there was no plan.
async fn left_by(
    tx: &mut Tx<Tenant>,
    plan: &Plan,
    line: &Lineage,
    (cycle_end, calendar, account): (Timestamp, &Calendar, Option<&AccountAllocation>),
) -> Result<(Ending, Left), Halt> {
    let (now, at) = (tx.now(), just_before(cycle_end).min(tx.now()));
    let present = plan.window(now, calendar);
    let ending = tx.ending(plan, account, (present.start, now), None).await?;
    let origin = match line.origin() {
        Some(first) => tx.plan(first).await?.map_or(plan.created_at, |first| first.created_at),
        None => plan.created_at,
    };
    let Some((owner, since)) = line.in_force(at, (line.origin().unwrap_or(&plan.id), origin)) else {
        return Ok((ending, Left::default()));
    };
    let last = plan.cycle.window(at, calendar, since);
    let is_over = match last.end {
        Some(end) => line.has_carried(plan.cycle, at, calendar) || tx.has_rolled_over(end, line, &plan.id).await?,
        // The only window of a plan ends with its renewal.
        None => *owner != plan.id,
    };
    if is_over {
        return Ok((ending, Left::default()));
    }
    if last == present {
        let left = Left::from((&ending, plan.rollover));
        return Ok((ending, left));
    }
    let carried_in = tx.carried_then(owner, since, last.start).await?;
    let then = tx.ending(plan, account, (last.start, at), Some(carried_in)).await?;
    Ok((ending, Left::from((&then, plan.rollover))))
}

/// List closed cycles
///
/// Renewals, and windows that rolled over into the next one by themselves.
#[utoipa::path(get, path = "/v1/budgets/copilot/cycles/history", tag = "budgets", params(PageParams),
    responses((status = 200, description = "A page of them, newest first", body = Items<BudgetCycle>), Refusals))]
pub async fn list_budget_cycles(call: Call<CopilotAdmin>, Paging(slice): Paging<50>) -> Outcome {
    let cycles = call.read().await?.renewals(&slice).await?;
    Ok(Answer::of(&Items::from(cycles)))
}

/// When credits lapse that are carried into the first window of a renewed plan.
fn lapse(plan: &Plan, now: Timestamp, calendar: &Calendar) -> Option<Timestamp> {
    match plan.rollover {
        RolloverMode::None => plan.window(now, calendar).end,
        RolloverMode::Unused | RolloverMode::Unallocated => plan.lapse(now, calendar),
    }
}

fn successor(tx: &Tx<Tenant>, source: &Plan, renewal: &Renewal, (calendar, carried): (&Calendar, Credits)) -> Plan {
    let name = renewal.new_plan_name.as_ref().map_or_else(
        || format!("{} ({})", undated(&source.name), calendar.day_of(renewal.cycle_end)),
        |name| name.as_str().to_owned(),
    );
    Plan {
        id: tx.new_id(),
        name,
        status: PlanStatus::Active,
        rolled_to: (source.rollover != RolloverMode::None || carried > Credits::ZERO).then(|| tx.now()),
        look_again_at: None,
        created_by: acting(tx),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
        ..source.clone()
    }
}

/// A plan's name without the date that a renewal put behind it.
fn undated(name: &str) -> &str {
    let dated = |date: &str| date.strip_suffix(')').is_some_and(|d| d.parse::<Date>().is_ok());
    match name.rsplit_once(" (") {
        Some((name, date)) if dated(date) => name,
        _ => name,
    }
}

/// Copies the shares without what had been rolled over into them, and rolls `over`
/// into the pool.
async fn copy_allocations(
    tx: &mut Tx<Tenant>,
    from: &Plan,
    to: &Plan,
    (over, until): (Credits, Option<Timestamp>),
) -> Result<(), Halt> {
    let source = tx.allocations(Some(&from.id), &Slice::first(u32::MAX)).await?.items;
    let (account, by, now) = (tx.account().clone(), acting(tx), tx.now());
    let mut copies: Vec<Allocation> = source
        .into_iter()
        .map(|a| Allocation {
            id: tx.new_id(),
            plan_id: to.id.clone(),
            allocated_credits: a.allocated_credits.saturating_sub(a.rollover_credits),
            rollover_credits: Credits::ZERO,
            rollover_until: None,
            created_by: by.clone(),
            created_at: now,
            updated_at: now,
            ..a
        })
        .filter(|a| a.source != ROLLED_OVER || a.allocated_credits > Credits::ZERO)
        .collect();
    if over > Credits::ZERO {
        let is_pool = |a: &Allocation| a.scope_type == ScopeType::Pool && a.scope_id == POOL;
        let pool = copies.iter().position(is_pool).map(|at| copies.swap_remove(at));
        let base = pool.as_ref().map(|p| p.allocated_credits).unwrap_or_default();
        copies.push(Allocation {
            id: tx.new_id(),
            account_id: account,
            plan_id: to.id.clone(),
            scope_type: ScopeType::Pool,
            scope_id: POOL.to_owned(),
            allocated_credits: base.saturating_add(over),
            overflow_cap: pool.as_ref().and_then(|p| p.overflow_cap),
            rollover_credits: over,
            rollover_until: until,
            source: pool.map_or_else(|| ROLLED_OVER.to_owned(), |p| p.source),
            created_by: by,
            created_at: now,
            updated_at: now,
            version: 1,
        });
    }
    Ok(tx.insert_allocations(&copies).await?)
}

/// Copies overrides that have not expired; their order, which decides, stays.
async fn copy_overrides(tx: &mut Tx<Tenant>, from: &Plan, to: &Plan) -> Result<(), Halt> {
    let source = tx.overrides(Some(&from.id), &Slice::first(u32::MAX)).await?.items;
    let (by, now) = (acting(tx), tx.now());
    let copies: Vec<Override> = source
        .into_iter()
        .rev()
        .filter(|o| o.expires_at.is_none_or(|at| now < at))
        .map(|o| Override {
            id: tx.new_id(),
            plan_id: to.id.clone(),
            reason: Some(format!("copied_from:{}", from.id)),
            created_by: by.clone(),
            ..o
        })
        .collect();
    Ok(tx.insert_overrides(&copies).await?)
}

#[cfg(test)]
mod tests {
    use super::undated;

    #[test]
    fn a_renewed_name_does_not_grow() {
        assert_eq!(undated("2026 (2026-02-01)"), "2026");
        assert_eq!(undated("Plan (draft)"), "Plan (draft)");
        assert_eq!(undated("Plan"), "Plan");
    }
}
