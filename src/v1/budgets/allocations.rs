//! Which scope has how much of a plan.

use std::collections::{BTreeSet, HashSet};

use serde::{Deserialize, Serialize};

use super::{Divided, Dividing, OfPlan, acting, entry, held_scope, read_current, roll_over};
use crate::context::Tenant;
use crate::credits::Credits;
use crate::id::Id;
use crate::model::audit::Action;
use crate::model::budgets::{Allocation, Plan};
use crate::model::scope::{Scope, ScopeType};
use crate::model::text::Name;
use crate::problem::Problem;
use crate::store::Tx;
use crate::v1::answer::{Answer, Deleted, Halt, Item, Items, Outcome, Refusals};
use crate::v1::call::{Call, CopilotAdmin, IfMatch};
use crate::v1::input::{Body, PageParams, Paging, Query, require};
use crate::v1::trial::{Trial, Tried};

const TABLE: &str = "Alchemi_CopilotBudgetAllocationTable";

/// How many scopes one call may divide a sum over.
const MAX_SHARES: usize = 1_000;

/// A scope's share of a plan.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAllocation {
    plan_id: Id<Plan>,
    /// `org` (or `group`), `team`, `user` or `pool`.
    #[schema(example = "team", pattern = "^(org|group|team|user|pool)$")]
    scope_type: String,
    /// The scope's id; `pool` for the pool.
    scope_id: Id<Scope>,
    /// Credits for each window of the plan.
    allocated_credits: Credits,
    /// Credits that may be spent beyond them; null: none.
    #[serde(default)]
    overflow_cap: Option<Credits>,
    /// Where the figure comes from; `manual` unless said.
    #[serde(default)]
    source: Option<Name>,
}

/// A scope of a plan.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfScope {
    /// The plan.
    #[param(value_type = String)]
    plan_id: Id<Plan>,
    /// `org` (or `group`), `team`, `user` or `pool`.
    #[param(pattern = "^(org|group|team|user|pool)$")]
    scope_type: String,
    /// The scope's id; `pool` for the pool.
    #[param(value_type = String)]
    scope_id: Id<Scope>,
}

/// A sum to be divided equally.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EqualDistribution {
    plan_id: Id<Plan>,
    /// `org` (or `group`), `team`, `user` or `pool`.
    #[schema(example = "user", pattern = "^(org|group|team|user|pool)$")]
    scope_type: String,
    /// Who gets a share, each once; `pool` for the pool.
    #[schema(value_type = Vec<String>, min_items = 1, max_items = 1000)]
    scope_ids: Vec<Id<Scope>>,
    /// What the shares add up to, exactly.
    total_credits: Credits,
    /// Credits that each may spend beyond its share; null: none.
    #[serde(default)]
    overflow_cap: Option<Credits>,
}

/// How a sum was divided.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Distributed {
    #[schema(example = "ok")]
    status: &'static str,
    /// The first share: no other is larger, none is smaller by more than 0.000000001.
    per_scope: Credits,
    /// Every share; they add up to the total.
    shares: Vec<Share>,
    /// The ids of the allocations, in the same order.
    allocation_ids: Vec<Id<Allocation>>,
}

/// One share.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Share {
    /// Whose.
    scope_id: Id<Scope>,
    /// How much.
    allocated_credits: Credits,
}

/// List allocations
#[utoipa::path(get, path = "/v1/budgets/copilot/allocations", tag = "budgets", params(OfPlan, PageParams),
    responses((status = 200, description = "A page of allocations, newest first", body = Items<Allocation>), Refusals))]
pub async fn list_budget_allocations(
    call: Call<CopilotAdmin>,
    Query(of): Query<OfPlan>,
    Paging(slice): Paging<100>,
) -> Outcome {
    let allocations = read_current(&call).await?.allocations(of.plan_id.as_ref(), &slice).await?;
    Ok(Answer::of(&Items::from(allocations)))
}

/// Give a scope its share of a plan
///
/// Replaces the share that it had, with what had been rolled over to it.
#[utoipa::path(post, path = "/v1/budgets/copilot/allocations/upsert", tag = "budgets", params(Trial), request_body = NewAllocation,
    responses((status = 200, description = "The allocation", body = Tried<Divided<Item<Allocation>>>), Refusals))]
pub async fn upsert_budget_allocation(
    call: Call<CopilotAdmin>,
    Query(trial): Query<Trial>,
    Body(new): Body<NewAllocation>,
) -> Outcome {
    let kind = ScopeType::parse_budgeted(&new.scope_type)?;
    require(!new.allocated_credits.is_negative(), "/allocated_credits", "cannot be negative")?;
    require_overflow(new.overflow_cap)?;
    roll_over(&call).await?;
    let mut tx = call.begin_or_try(&trial).await?;
    let dividing = Dividing::begin(&mut tx, &new.plan_id).await?;
    let scope = held_scope(&mut tx, kind, new.scope_id.as_str()).await?;
    let source = new.source.as_ref().map_or("manual", Name::as_str);
    let share = Given { scope, credits: new.allocated_credits, overflow_cap: new.overflow_cap, source };
    let allocation = give(&mut tx, &dividing.plan, share).await?;
    let answer = dividing.check(&mut tx, Item { item: &allocation }).await?;
    call.done_tagged(tx, &answer, allocation.version).await
}

/// Take a scope's share away
///
/// What is inside it is then promised by the next above that has a share, or by the account; a
/// plan that forbids over-commitment refuses what does not fit there.
#[utoipa::path(delete, path = "/v1/budgets/copilot/allocations", tag = "budgets", params(OfScope, Trial, IfMatch),
    responses((status = 200, description = "Whether there was one", body = Tried<Deleted>), Refusals))]
pub async fn delete_budget_allocation(
    call: Call<CopilotAdmin>,
    Query(of): Query<OfScope>,
    Query(trial): Query<Trial>,
) -> Outcome {
    let kind = ScopeType::parse_budgeted(&of.scope_type)?;
    roll_over(&call).await?;
    let mut tx = call.begin_or_try(&trial).await?;
    let plan = tx.locked_plan(&of.plan_id).await?;
    let allocation = tx.allocation(&of.plan_id, &Scope::new(kind, of.scope_id.as_str())).await?;
    let (Some(plan), Some(allocation)) = (plan, allocation) else {
        return call.done(tx, &Deleted { deleted: false }).await;
    };
    call.expects(allocation.version)?;
    let dividing = Dividing::of(&mut tx, plan).await?;
    let deleted = tx.delete_allocation(&allocation.id).await?;
    dividing.check(&mut tx, ()).await?;
    let gone = entry(Action::Delete, TABLE, allocation.id.as_str());
    tx.audit(gone, Some(&allocation), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted }).await
}

/// Divide a sum equally
///
/// The shares add up to the total exactly: what does not divide goes to the first
/// scopes, 0.000000001 each.
#[utoipa::path(post, path = "/v1/budgets/copilot/distribute/equal", tag = "budgets", params(Trial), request_body = EqualDistribution,
    responses((status = 200, description = "The shares", body = Tried<Divided<Distributed>>), Refusals))]
pub async fn distribute_equally(
    call: Call<CopilotAdmin>,
    Query(trial): Query<Trial>,
    Body(new): Body<EqualDistribution>,
) -> Outcome {
    let kind = ScopeType::parse_budgeted(&new.scope_type)?;
    if new.scope_ids.is_empty() {
        return Err(Problem::bad_request("scope_ids_empty", "scope_ids cannot be empty").into());
    }
    require(new.scope_ids.len() <= MAX_SHARES, "/scope_ids", "must be at most 1000")?;
    require(!new.total_credits.is_negative(), "/total_credits", "cannot be negative")?;
    require_overflow(new.overflow_cap)?;
    require_distinct(&new.scope_ids)?;
    roll_over(&call).await?;
    let mut tx = call.begin_or_try(&trial).await?;
    let dividing = Dividing::begin(&mut tx, &new.plan_id).await?;
    for id in new.scope_ids.iter().collect::<BTreeSet<_>>() {
        // In their own order, so that two calls cannot wait for each other in a circle.
        held_scope(&mut tx, kind, id.as_str()).await?;
    }
    let (mut shares, mut allocation_ids) = (Vec::new(), Vec::new());
    for (scope_id, credits) in new.scope_ids.iter().zip(new.total_credits.split(new.scope_ids.len())) {
        let scope = Scope::new(kind, scope_id.as_str());
        let share = Given { scope, credits, overflow_cap: new.overflow_cap, source: "equal" };
        allocation_ids.push(give(&mut tx, &dividing.plan, share).await?.id);
        shares.push(Share { scope_id: scope_id.clone(), allocated_credits: credits });
    }
    let per_scope = shares.first().map(|s| s.allocated_credits).unwrap_or_default();
    let distributed = Distributed { status: "ok", per_scope, shares, allocation_ids };
    let answer = dividing.check(&mut tx, distributed).await?;
    call.done(tx, &answer).await
}

fn require_overflow(cap: Option<Credits>) -> Result<(), Problem> {
    require(!cap.unwrap_or_default().is_negative(), "/overflow_cap", "cannot be negative")
}

fn require_distinct(ids: &[Id<Scope>]) -> Result<(), Problem> {
    let mut seen = HashSet::new();
    match ids.iter().position(|id| !seen.insert(id)) {
        Some(at) => Err(Problem::invalid(format!("/scope_ids/{at}"), "is in the list twice")),
        None => Ok(()),
    }
}

/// What a scope is given.
struct Given<'a> {
    scope: Scope,
    credits: Credits,
    overflow_cap: Option<Credits>,
    source: &'a str,
}

/// Writes one share, with its event in the audit.
async fn give(tx: &mut Tx<Tenant>, plan: &Plan, share: Given<'_>) -> Result<Allocation, Halt> {
    let before = tx.allocation(&plan.id, &share.scope).await?;
    let allocation = Allocation {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        plan_id: plan.id.clone(),
        scope_type: share.scope.scope_type,
        scope_id: share.scope.scope_id,
        allocated_credits: share.credits,
        overflow_cap: share.overflow_cap,
        rollover_credits: Credits::ZERO,
        rollover_until: None,
        source: share.source.to_owned(),
        created_by: acting(tx),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    };
    let after = tx.upsert_allocation(&allocation).await?;
    tx.audit(entry(Action::Upsert, TABLE, after.id.as_str()), before.as_ref(), &after).await?;
    Ok(after)
}
