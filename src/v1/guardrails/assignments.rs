//! `/v1/copilot/guardrails/assignments`.

use serde::Deserialize;

use super::{entry, held_preset};
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::agents::Agent;
use crate::model::audit::Action;
use crate::model::guardrails::{GuardrailAssignment, GuardrailPreset};
use crate::model::scope::{GuardedType, Scope, ScopeType};
use crate::problem::Problem;
use crate::store::Tx;
use crate::store::page::Slice;
use crate::v1::answer::{Answer, Deleted, Halt, Item, Items, Outcome, Refusals, or_404};
use crate::v1::call::{Call, CopilotAdmin};
use crate::v1::directory::hold_scope;
use crate::v1::input::{Body, PageParams, Paging, Path, Query};
use crate::v1::trial::{Trial, Tried};

/// A preset for a scope.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "preset_id": "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11",
    "scope_type": "team",
    "scope_id": "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11"
}))]
pub struct NewAssignment {
    #[schema(value_type = String)]
    preset_id: Id<GuardrailPreset>,
    /// `account`, `org`, `team`, `user` or `agent`.
    #[schema(value_type = GuardedType, example = "team")]
    scope_type: String,
    #[schema(example = "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11")]
    scope_id: String,
}

/// Which assignments are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AssignmentFilter {
    /// `account`, `org`, `team`, `user` or `agent`.
    #[param(value_type = Option<GuardedType>, inline)]
    scope_type: Option<String>,
    /// The scope; needed with `scope_type`, and of no effect without it.
    scope_id: Option<String>,
}

/// The assignment of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtAssignment {
    /// The assignment.
    #[param(value_type = String)]
    assignment_id: Id<GuardrailAssignment>,
}

const NOT_FOUND: &str = "Guardrail assignment not found";
const TABLE: &str = "Alchemi_CopilotGuardrailAssignmentTable";

/// The agent whose guardrails an assignment is one of, held until the end of the transaction.
async fn held_agent(tx: &mut Tx<Tenant>, kind: ScopeType, id: &str) -> Result<Option<Agent>, Halt> {
    match id.parse() {
        Ok(id) if kind == ScopeType::Agent => Ok(tx.hold_agent(&id).await?),
        _ => Ok(None),
    }
}

/// List guardrail assignments
#[utoipa::path(get, path = "/v1/copilot/guardrails/assignments", tag = "guardrails",
    params(AssignmentFilter, PageParams),
    responses((status = 200, description = "A page of assignments, newest first", body = Items<GuardrailAssignment>), Refusals))]
pub async fn list_guardrail_assignments(
    call: Call<CopilotAdmin>,
    Query(filter): Query<AssignmentFilter>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    let kind = filter.scope_type.as_deref().map(|kind| ScopeType::parse(kind, ScopeType::GUARDED)).transpose()?;
    let scope = match (kind, filter.scope_id) {
        (None, _) => None,
        (Some(kind), Some(id)) => Some(Scope::new(kind, id)),
        (Some(_), None) => {
            let detail = "scope_id is required when scope_type is provided";
            return Err(Problem::bad_request("scope_id_required", detail).into());
        }
    };
    Ok(Answer::of(&Items::from(call.read().await?.guardrail_assignments(scope.as_ref(), &slice).await?)))
}

/// Assign a guardrail preset to a scope
///
/// It then screens every request of that scope. Assigned again, nothing changes.
#[utoipa::path(post, path = "/v1/copilot/guardrails/assignments", tag = "guardrails", params(Trial),
    request_body = NewAssignment,
    responses((status = 200, description = "The assignment", body = Tried<Item<GuardrailAssignment>>), Refusals))]
pub async fn create_guardrail_assignment(
    call: Call<CopilotAdmin>,
    Query(trial): Query<Trial>,
    Body(new): Body<NewAssignment>,
) -> Outcome {
    let scope = Scope::new(ScopeType::parse(&new.scope_type, ScopeType::GUARDED)?, new.scope_id);
    let mut tx = call.begin_or_try(&trial).await?;
    let agent = held_agent(&mut tx, scope.scope_type, &scope.scope_id).await?;
    hold_scope(&mut tx, Domain::Copilot, &scope).await?;
    held_preset(&mut tx, &new.preset_id).await?;
    let (made, assignment) = tx.assign_guardrail_preset(&new.preset_id, &scope).await?;
    if made {
        if let Some(agent) = agent {
            tx.update_agent(&agent).await?;
        }
        tx.audit(entry(Action::Create, TABLE, assignment.id.as_str()), None::<&()>, &assignment).await?;
    }
    call.done(tx, &Item { item: &assignment }).await
}

/// Take a guardrail preset from a scope
///
/// An agent keeps its last one.
#[utoipa::path(delete, path = "/v1/copilot/guardrails/assignments/{assignment_id}", tag = "guardrails",
    params(AtAssignment, Trial),
    responses((status = 200, description = "Removed", body = Tried<Deleted>), Refusals))]
pub async fn delete_guardrail_assignment(
    call: Call<CopilotAdmin>,
    Path(AtAssignment { assignment_id: id }): Path<AtAssignment>,
    Query(trial): Query<Trial>,
) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let assignment = or_404(tx.guardrail_assignment(&id).await?, NOT_FOUND)?;
    if let Some(agent) = held_agent(&mut tx, assignment.scope_type, &assignment.scope_id).await? {
        // It may have gone while the agent was waited for.
        or_404(tx.guardrail_assignment(&id).await?, NOT_FOUND)?;
        let scope = Scope::new(ScopeType::Agent, agent.id.as_str());
        if tx.guardrail_assignments(Some(&scope), &Slice::first(2)).await?.items.len() < 2 {
            let detail = "At least one guardrail preset is required for agent creation/update";
            return Err(Problem::conflict("guardrail_preset_required", detail).into());
        }
        tx.update_agent(&agent).await?;
    }
    let deleted = tx.delete_guardrail_assignment(&id).await?;
    tx.audit(entry(Action::Delete, TABLE, id.as_str()), Some(&assignment), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted }).await
}
