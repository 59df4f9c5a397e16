//! `/v1/copilot/guardrails/…`: what prompts are screened by.

use serde::{Deserialize, Serialize};

use super::answer::{Answer, Halt, Outcome, Refusals, or_404};
use super::call::{Call, CopilotAdmin};
use super::directory::{ChainQuery, check_scope};
use super::input::Query;
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::accounts::JsonText;
use crate::model::agents::Agent;
use crate::model::audit::{Action, Label};
use crate::model::guardrails::{AssignedPreset, GuardrailPreset};
use crate::model::scope::{Scope, ScopeType};
use crate::store::Tx;
use crate::store::audit::Entry;

pub mod assignments;
pub mod patterns;
pub mod presets;

pub(super) const PRESET_NOT_FOUND: &str = "Guardrail preset not found";

fn entry<'a>(action: Action, table: &'static str, id: &'a str) -> Entry<'a> {
    Entry { action, table, id, label: Label::Copilot }
}

/// The preset, held until the end of the transaction.
async fn held_preset(tx: &mut Tx<Tenant>, id: &Id<GuardrailPreset>) -> Result<GuardrailPreset, Halt> {
    Ok(or_404(tx.hold_guardrail_preset(id).await?, PRESET_NOT_FOUND)?)
}

/// Through which agent, beside the chain.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EffectiveGuardrailsQuery {
    /// The agent that the request is made through.
    #[param(value_type = Option<String>)]
    agent_id: Option<Id<Agent>>,
}

/// What a chain of scopes is screened by.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EffectiveGuardrails {
    /// Every preset that is assigned to a scope of the chain, in the order of the chain.
    items: Vec<EffectivePreset>,
    /// The scopes, the most specific one first.
    resolution_order: Vec<Scope>,
}

/// A preset in force.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EffectivePreset {
    scope_type: ScopeType,
    scope_id: String,
    #[schema(value_type = String)]
    preset_id: Id<GuardrailPreset>,
    #[schema(example = "pii")]
    code: String,
    #[schema(example = "PII")]
    name: String,
    #[schema(value_type = Object)]
    preset_json: JsonText,
    /// The scope that it is assigned to.
    source_scope_type: ScopeType,
    source_scope_id: String,
}

impl EffectivePreset {
    fn of(assigned: AssignedPreset) -> Self {
        let AssignedPreset { scope_type, scope_id, preset } = assigned;
        Self {
            scope_type,
            scope_id: scope_id.clone(),
            preset_id: preset.id,
            code: preset.code,
            name: preset.name,
            preset_json: preset.preset_json,
            source_scope_type: scope_type,
            source_scope_id: scope_id,
        }
    }
}

/// Resolve what a chain of scopes is screened by
///
/// The union over the agent, the user, the team, the org and the account: no scope takes
/// away what another one demands.
#[utoipa::path(get, path = "/v1/copilot/guardrails/effective", tag = "guardrails", params(EffectiveGuardrailsQuery, ChainQuery),
    responses((status = 200, description = "What holds, and from where", body = EffectiveGuardrails), Refusals))]
pub async fn get_effective_guardrails(
    call: Call<CopilotAdmin>,
    Query(asked): Query<EffectiveGuardrailsQuery>,
    Query(chain): Query<ChainQuery>,
) -> Outcome {
    let mut tx = call.read().await?;
    let mut chain = chain.scopes(&mut tx, Domain::Copilot).await?;
    if let Some(agent) = asked.agent_id {
        let agent = Scope::new(ScopeType::Agent, agent.as_str());
        check_scope(&mut tx, Domain::Copilot, &agent).await?;
        chain.insert(0, agent);
    }
    let mut assigned = tx.assigned_presets(&chain).await?;
    let mut ids: Vec<_> = assigned.iter().map(|a| a.preset.id.clone()).collect();
    ids.sort_unstable();
    ids.dedup();
    let patterns = tx.patterns_of_presets(&ids).await?;
    for one in &mut assigned {
        one.preset = one.preset.clone().showing(&patterns);
    }
    let items = assigned.into_iter().map(EffectivePreset::of).collect();
    Ok(Answer::of(&EffectiveGuardrails { items, resolution_order: chain }))
}
