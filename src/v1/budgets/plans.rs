//! Plans: how the copilot domain's credits are divided, and for how long.

use serde::Deserialize;

use super::{Dividing, PLAN_NOT_FOUND, entry, require_kept, roll_over};
use crate::context::Tenant;
use crate::credits::Credits;
use crate::id::Id;
use crate::model::audit::Action;
use crate::model::budgets::{Cycle, OverCommit, Plan, PlanStatus, RolloverMode};
use crate::model::field::Field;
use crate::model::text::Name;
use crate::problem::Problem;
use crate::store::Tx;
use crate::v1::accounts::ACCOUNT_NOT_FOUND;
use crate::v1::answer::{Answer, Halt, Item, Items, Outcome, Refusals, or_404, taken};
use crate::v1::call::{Call, CopilotAdmin, IfMatch};
use crate::v1::input::{Body, PageParams, Paging, Path, Query, require};
use crate::v1::trial::{Trial, Tried};

pub(super) const TABLE: &str = "Alchemi_CopilotBudgetPlanTable";
pub(super) const OVERTAKEN: &str = "Another plan was put in force at the same moment: look at it, then repeat";

/// A new plan.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPlan {
    name: Name,
    /// How long its windows are.
    #[serde(default = "monthly")]
    cycle: Cycle,
    /// Whether allocations may add up to more than there is.
    #[serde(default)]
    over_commit: OverCommit,
    /// What of a window that ends is carried into the pool of the next one.
    #[serde(default)]
    rollover: RolloverMode,
    /// The most that is carried into a window; null: no limit.
    #[serde(default)]
    rollover_cap: Option<Credits>,
    /// For how many windows carried credits last.
    #[serde(default = "once")]
    #[schema(minimum = 1, maximum = 12)]
    rollover_windows: i64,
}

fn once() -> i64 {
    1
}

fn monthly() -> Cycle {
    Cycle::Monthly
}

/// A change of a plan.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanChange {
    #[serde(default)]
    #[schema(value_type = Option<Name>)]
    name: Field<String>,
    #[serde(default)]
    #[schema(value_type = Option<OverCommit>)]
    over_commit: Field<OverCommit>,
    /// From the end of the present window on.
    #[serde(default)]
    #[schema(value_type = Option<RolloverMode>)]
    rollover: Field<RolloverMode>,
    /// Null: no limit.
    #[serde(default)]
    #[schema(value_type = Option<Credits>)]
    rollover_cap: Field<Credits>,
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 1, maximum = 12, example = 1)]
    rollover_windows: Field<i64>,
}

/// The plan of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtPlan {
    /// The plan.
    #[param(value_type = String)]
    plan_id: Id<Plan>,
}

/// List plans
#[utoipa::path(get, path = "/v1/budgets/copilot/plans", tag = "budgets", params(PageParams),
    responses((status = 200, description = "A page of plans, newest first", body = Items<Plan>), Refusals))]
pub async fn list_budget_plans(call: Call<CopilotAdmin>, Paging(slice): Paging<100>) -> Outcome {
    let plans = call.read().await?.plans(&slice).await?;
    Ok(Answer::of(&Items::from(plans)))
}

/// Make a plan and put it in force
///
/// The plan that was in force is kept, without effect: what it gives to scopes no longer caps
/// them, until it is put in force again.
#[utoipa::path(post, path = "/v1/budgets/copilot/plans", tag = "budgets", params(Trial), request_body = NewPlan,
    responses((status = 200, description = "The new plan", body = Tried<Item<Plan>>), Refusals))]
pub async fn create_budget_plan(
    call: Call<CopilotAdmin>,
    Query(trial): Query<Trial>,
    Body(new): Body<NewPlan>,
) -> Outcome {
    roll_over(&call).await?;
    let mut tx = call.begin_or_try(&trial).await?;
    // Whoever joins a team while there is no plan has come to an end then.
    or_404(tx.hold_account().await?, ACCOUNT_NOT_FOUND)?;
    let former = retire(&mut tx).await?;
    let plan = Plan {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        name: new.name.into_string(),
        cycle: new.cycle,
        status: PlanStatus::Active,
        over_commit: new.over_commit,
        rollover: new.rollover,
        rollover_cap: new.rollover_cap,
        rollover_windows: new.rollover_windows,
        rolled_to: (new.rollover != RolloverMode::None).then(|| tx.now()),
        look_again_at: None,
        created_by: super::acting(&tx),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    };
    require_rollover(&plan)?;
    tx.insert_plan(&plan).await.map_err(taken("active", OVERTAKEN))?;
    tx.audit(entry(Action::Create, TABLE, plan.id.as_str()), former.as_ref(), &plan).await?;
    call.done_tagged(tx, &Item { item: &plan }, plan.version).await
}

/// Show the plan in force
#[utoipa::path(get, path = "/v1/budgets/copilot/plans/active", tag = "budgets",
    responses((status = 200, description = "The plan, or null", body = Item<Option<Plan>>), Refusals))]
pub async fn get_active_budget_plan(call: Call<CopilotAdmin>) -> Outcome {
    let item = call.read().await?.active_plan().await?;
    let version = item.as_ref().map(|p| p.version);
    Ok(version.into_iter().fold(Answer::of(&Item { item }), Answer::tagged))
}

/// Show a plan
#[utoipa::path(get, path = "/v1/budgets/copilot/plans/{plan_id}", tag = "budgets", params(AtPlan),
    responses((status = 200, description = "The plan", body = Item<Plan>), Refusals))]
pub async fn get_budget_plan(call: Call<CopilotAdmin>, Path(AtPlan { plan_id }): Path<AtPlan>) -> Outcome {
    let plan = or_404(call.read().await?.plan(&plan_id).await?, PLAN_NOT_FOUND)?;
    Ok(Answer::of(&Item { item: &plan }).tagged(plan.version))
}

/// Change a plan
///
/// A plan whose allocations add up to more than there is cannot begin to forbid that.
#[utoipa::path(patch, path = "/v1/budgets/copilot/plans/{plan_id}", tag = "budgets", params(AtPlan, Trial, IfMatch),
    request_body = PlanChange,
    responses((status = 200, description = "The changed plan", body = Tried<Item<Plan>>), Refusals))]
pub async fn update_budget_plan(
    call: Call<CopilotAdmin>,
    Path(AtPlan { plan_id }): Path<AtPlan>,
    Query(trial): Query<Trial>,
    Body(change): Body<PlanChange>,
) -> Outcome {
    roll_over(&call).await?;
    let mut tx = call.begin_or_try(&trial).await?;
    let before = Dividing::begin(&mut tx, &plan_id).await?.plan;
    call.expects(before.version)?;
    let mut plan = before.clone();
    plan.name = renamed(change.name, plan.name)?;
    plan.over_commit = change.over_commit.over_required(plan.over_commit, "/over_commit")?;
    if before.over_commit == OverCommit::Allow {
        require_kept(&mut tx, &plan).await?;
    }
    plan.rollover = change.rollover.over_required(plan.rollover, "/rollover")?;
    plan.rollover_cap = change.rollover_cap.over(plan.rollover_cap);
    plan.rollover_windows = change.rollover_windows.over_required(plan.rollover_windows, "/rollover_windows")?;
    require_rollover(&plan)?;
    let plan = tx.update_plan(&plan).await?;
    tx.audit(entry(Action::Update, TABLE, plan.id.as_str()), Some(&before), &plan).await?;
    call.done_tagged(tx, &Item { item: &plan }, plan.version).await
}

/// Puts the plan in force out of it; gives it as it was.
pub(super) async fn retire(tx: &mut Tx<Tenant>) -> Result<Option<Plan>, Halt> {
    let Some((was, is)) = tx.deactivate_plan().await? else { return Ok(None) };
    tx.audit(entry(Action::Update, TABLE, is.id.as_str()), Some(&was), &is).await?;
    Ok(Some(was))
}

fn require_rollover(plan: &Plan) -> Result<(), Problem> {
    let ends = plan.cycle != Cycle::None || plan.rollover == RolloverMode::None;
    require(ends, "/rollover", "must be none: a plan whose cycle is none has no window that ends")?;
    require(!plan.rollover_cap.unwrap_or_default().is_negative(), "/rollover_cap", "cannot be negative")?;
    require((1..=12).contains(&plan.rollover_windows), "/rollover_windows", "must be 1 to 12")
}

fn renamed(name: Field<String>, old: String) -> Result<String, Problem> {
    let name = name.over_required(old, "/name")?;
    if name.trim().is_empty() {
        return Err(Problem::bad_request("name_required", "name is required"));
    }
    name.parse().map(Name::into_string).map_err(|e| Problem::invalid("/name", e))
}

/// Put a plan in force
///
/// The plan that was in force is kept, without effect. One that forbids over-commitment
/// must keep to it, and one that was renewed is closed.
#[utoipa::path(post, path = "/v1/budgets/copilot/plans/{plan_id}/activate", tag = "budgets", params(AtPlan, Trial, IfMatch),
    responses((status = 200, description = "The plan, in force", body = Tried<Item<Plan>>), Refusals))]
pub async fn activate_budget_plan(
    call: Call<CopilotAdmin>,
    Path(AtPlan { plan_id }): Path<AtPlan>,
    Query(trial): Query<Trial>,
) -> Outcome {
    roll_over(&call).await?;
    let mut tx = call.begin_or_try(&trial).await?;
    let before = or_404(tx.locked_plan(&plan_id).await?, PLAN_NOT_FOUND)?;
    call.expects(before.version)?;
    if before.status == PlanStatus::Active {
        return call.done_tagged(tx, &Item { item: &before }, before.version).await;
    }
    if let Some(renewal) = tx.renewal_of(&plan_id).await? {
        let detail = format!("The plan was renewed: plan {} has taken its place", renewal.new_plan_id);
        return Err(Problem::conflict("plan_renewed", detail).into());
    }
    // Out of force first: who changes teams under it has come to an end then.
    retire(&mut tx).await?;
    require_kept(&mut tx, &before).await?;
    // What its windows would have left while it was without effect is not carried over.
    let (rolled_to, look_again_at) = (before.rolled_to.map(|_| tx.now()), None);
    let plan = Plan { status: PlanStatus::Active, rolled_to, look_again_at, ..before.clone() };
    let plan = tx.update_plan(&plan).await.map_err(taken("active", OVERTAKEN))?;
    tx.audit(entry(Action::Update, TABLE, plan.id.as_str()), Some(&before), &plan).await?;
    call.done_tagged(tx, &Item { item: &plan }, plan.version).await
}
