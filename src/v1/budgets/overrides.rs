//! What a scope has for a while instead of its share.

use serde::Deserialize;

use super::{Divided, Dividing, OfPlan, acting, entry, held_scope, roll_over};
use crate::clock::Timestamp;
use crate::credits::Credits;
use crate::id::Id;
use crate::model::audit::Action;
use crate::model::budgets::{Override, Plan};
use crate::model::scope::{Scope, ScopeType};
use crate::model::text::Description;
use crate::problem::Problem;
use crate::v1::answer::{Answer, Deleted, Item, Items, Outcome, Refusals, or_404};
use crate::v1::call::{Call, CopilotAdmin};
use crate::v1::input::{Body, PageParams, Paging, Path, Query, require};
use crate::v1::trial::{Trial, Tried};

const TABLE: &str = "Alchemi_CopilotBudgetOverrideTable";

/// What a scope has instead of its share.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "plan_id": "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11",
    "scope_type": "user",
    "scope_id": "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11",
    "override_credits": 50,
    "reason": "A demonstration",
    "expires_at": "2099-12-31T23:00:00Z"
}))]
pub struct NewOverride {
    plan_id: Id<Plan>,
    /// `org` (or `group`), `team`, `user` or `pool`.
    #[schema(example = "user", pattern = "^(org|group|team|user|pool)$")]
    scope_type: String,
    /// The scope's id; `pool` for the pool.
    scope_id: Id<Scope>,
    /// Credits for each window of the plan.
    override_credits: Credits,
    /// Why.
    #[serde(default)]
    reason: Option<Description>,
    /// Until when; null: for good.
    #[serde(default)]
    expires_at: Option<Timestamp>,
}

/// The override of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtOverride {
    /// The override.
    #[param(value_type = String)]
    override_id: Id<Override>,
}

/// List overrides
///
/// Of those that have not expired, the newest of a scope counts.
#[utoipa::path(get, path = "/v1/budgets/copilot/overrides", tag = "budgets", params(OfPlan, PageParams),
    responses((status = 200, description = "A page of overrides, newest first", body = Items<Override>), Refusals))]
pub async fn list_budget_overrides(
    call: Call<CopilotAdmin>,
    Query(of): Query<OfPlan>,
    Paging(slice): Paging<100>,
) -> Outcome {
    let overrides = call.read().await?.overrides(of.plan_id.as_ref(), &slice).await?;
    Ok(Answer::of(&Items::from(overrides)))
}

/// Override a scope's share
///
/// It stands over the scope's allocation: a scope without one has nothing to override yet (409).
#[utoipa::path(post, path = "/v1/budgets/copilot/overrides", tag = "budgets", params(Trial), request_body = NewOverride,
    responses((status = 200, description = "The override", body = Tried<Divided<Item<Override>>>), Refusals))]
pub async fn create_budget_override(
    call: Call<CopilotAdmin>,
    Query(trial): Query<Trial>,
    Body(new): Body<NewOverride>,
) -> Outcome {
    let kind = ScopeType::parse_budgeted(&new.scope_type)?;
    require(!new.override_credits.is_negative(), "/override_credits", "cannot be negative")?;
    roll_over(&call).await?;
    let mut tx = call.begin_or_try(&trial).await?;
    require(new.expires_at.is_none_or(|at| at > tx.now()), "/expires_at", "must lie ahead")?;
    let dividing = Dividing::begin(&mut tx, &new.plan_id).await?;
    let scope = held_scope(&mut tx, kind, new.scope_id.as_str()).await?;
    if tx.allocation(&new.plan_id, &scope).await?.is_none() {
        let detail = format!("{scope} has no allocation in this plan: give it one first (POST …/allocations/upsert)");
        return Err(Problem::conflict("nothing_to_override", detail).into());
    }
    let created = Override {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        plan_id: new.plan_id,
        scope_type: scope.scope_type,
        scope_id: scope.scope_id,
        override_credits: new.override_credits,
        reason: new.reason.map(Description::into_string),
        expires_at: new.expires_at,
        created_by: acting(&tx),
        created_at: tx.now(),
    };
    tx.insert_overrides(std::slice::from_ref(&created)).await?;
    let answer = dividing.check(&mut tx, Item { item: &created }).await?;
    tx.audit(entry(Action::Create, TABLE, created.id.as_str()), None::<&()>, &created).await?;
    call.done(tx, &answer).await
}

/// Take an override back
#[utoipa::path(delete, path = "/v1/budgets/copilot/overrides/{override_id}", tag = "budgets", params(AtOverride, Trial),
    responses((status = 200, description = "Taken back", body = Tried<Deleted>), Refusals))]
pub async fn delete_budget_override(
    call: Call<CopilotAdmin>,
    Path(AtOverride { override_id }): Path<AtOverride>,
    Query(trial): Query<Trial>,
) -> Outcome {
    roll_over(&call).await?;
    let mut tx = call.begin_or_try(&trial).await?;
    let gone = or_404(tx.budget_override(&override_id).await?, "Budget override not found")?;
    let dividing = Dividing::begin(&mut tx, &gone.plan_id).await?;
    let deleted = tx.delete_override(&override_id).await?;
    dividing.check(&mut tx, ()).await?;
    tx.audit(entry(Action::Delete, TABLE, override_id.as_str()), Some(&gone), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted }).await
}
