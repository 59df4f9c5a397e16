//! `/v1/copilot/guardrails/presets`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{PRESET_NOT_FOUND, entry, held_preset};
use crate::context::Tenant;
use crate::id::Id;
use crate::model::accounts::JsonText;
use crate::model::agents::Agent;
use crate::model::audit::Action;
use crate::model::guardrails::GuardrailPreset;
use crate::model::text::Name;
use crate::problem::Problem;
use crate::store::Tx;
use crate::v1::answer::{Answer, Deleted, Halt, Item, Items, Outcome, Refusals, or_404};
use crate::v1::call::{Call, CopilotAdmin, IfMatch};
use crate::v1::input::{Body, PageParams, Paging, Path, Query};
use crate::v1::trial::{Trial, Tried};

/// A preset, or a change of the one with the same code.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"code": "finance", "name": "Finance data", "preset_json": {"config": {}}}))]
pub struct NewPreset {
    /// Unique in the account.
    code: Name,
    name: Name,
    /// Settings of your own. Patterns have routes of their own: what an earlier answer
    /// showed under `custom_patterns` may be sent back, and changes nothing.
    #[serde(default)]
    #[schema(value_type = Object)]
    preset_json: Map<String, Value>,
}

/// The preset of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtPreset {
    /// The preset.
    #[param(value_type = String)]
    preset_id: Id<GuardrailPreset>,
}

const TABLE: &str = "Alchemi_CopilotGuardrailPresetTable";

/// The preset as it is shown: with its patterns.
async fn shown(tx: &mut Tx<Tenant>, preset: GuardrailPreset) -> Result<GuardrailPreset, Halt> {
    let patterns = tx.patterns_of_presets(std::slice::from_ref(&preset.id)).await?;
    Ok(preset.showing(&patterns))
}

/// The agents that have a preset, held until the end of the transaction: before it, and in
/// the order of their ids, as by whoever changes what guards one of them.
async fn held_agents(tx: &mut Tx<Tenant>, preset: &Id<GuardrailPreset>) -> Result<BTreeMap<Id<Agent>, Agent>, Halt> {
    let mut held = BTreeMap::new();
    for id in tx.agents_guarded_by(preset).await? {
        if let Some(agent) = tx.hold_agent(&id).await? {
            held.insert(id, agent);
        }
    }
    Ok(held)
}

/// List guardrail presets
#[utoipa::path(get, path = "/v1/copilot/guardrails/presets", tag = "guardrails", params(PageParams),
    responses((status = 200, description = "A page of presets, newest first", body = Items<GuardrailPreset>), Refusals))]
pub async fn list_guardrail_presets(call: Call<CopilotAdmin>, Paging(slice): Paging<1000>) -> Outcome {
    let mut tx = call.read().await?;
    let page = tx.guardrail_presets(&slice).await?;
    let ids: Vec<_> = page.items.iter().map(|p| p.id.clone()).collect();
    let patterns = tx.patterns_of_presets(&ids).await?;
    Ok(Answer::of(&Items::from(page.map(|preset| preset.showing(&patterns)))))
}

/// Make a guardrail preset
///
/// Posted again with the same code, its name and settings are replaced; its patterns stay.
#[utoipa::path(post, path = "/v1/copilot/guardrails/presets", tag = "guardrails", params(Trial),
    request_body = NewPreset,
    responses((status = 200, description = "The preset", body = Tried<Item<GuardrailPreset>>), Refusals))]
pub async fn create_guardrail_preset(
    call: Call<CopilotAdmin>,
    Query(trial): Query<Trial>,
    Body(new): Body<NewPreset>,
) -> Outcome {
    let mut json = new.preset_json;
    let echoed = GuardrailPreset::take_patterns(&mut json);
    let mut tx = call.begin_or_try(&trial).await?;
    let before = tx.hold_guardrail_preset_of(new.code.as_str()).await?;
    let ids: Vec<_> = before.iter().map(|preset| preset.id.clone()).collect();
    let patterns = tx.patterns_of_presets(&ids).await?;
    let unknown = echoed.iter().position(|id| !patterns.iter().any(|p| Some(p.id.as_str()) == id.as_deref()));
    if let Some(place) = unknown {
        return Err(Problem::invalid(
            format!("/preset_json/custom_patterns/{place}"),
            "is no pattern of this preset: add it with POST /v1/copilot/guardrails/patterns and its preset_id",
        )
        .into());
    }
    let preset = GuardrailPreset {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        code: new.code.into_string(),
        name: new.name.into_string(),
        preset_json: JsonText::of(&json),
        is_system: false,
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    };
    let preset = tx.upsert_guardrail_preset(&preset).await?;
    tx.audit(entry(Action::Upsert, TABLE, preset.id.as_str()), before.as_ref(), &preset).await?;
    let version = preset.version;
    call.done_tagged(tx, &Item { item: preset.showing(&patterns) }, version).await
}

/// Show a guardrail preset
#[utoipa::path(get, path = "/v1/copilot/guardrails/presets/{preset_id}", tag = "guardrails", params(AtPreset),
    responses((status = 200, description = "The preset", body = Item<GuardrailPreset>), Refusals))]
pub async fn get_guardrail_preset(
    call: Call<CopilotAdmin>,
    Path(AtPreset { preset_id: id }): Path<AtPreset>,
) -> Outcome {
    let mut tx = call.read().await?;
    let preset = or_404(tx.guardrail_preset(&id).await?, PRESET_NOT_FOUND)?;
    let version = preset.version;
    Ok(Answer::of(&Item { item: shown(&mut tx, preset).await? }).tagged(version))
}

/// Remove a guardrail preset
///
/// Its patterns and assignments go with it; the audit keeps them. System presets stay, and
/// so does the last preset of an agent.
#[utoipa::path(delete, path = "/v1/copilot/guardrails/presets/{preset_id}", tag = "guardrails",
    params(AtPreset, Trial, IfMatch),
    responses((status = 200, description = "Removed", body = Tried<Deleted>), Refusals))]
pub async fn delete_guardrail_preset(
    call: Call<CopilotAdmin>,
    Path(AtPreset { preset_id: id }): Path<AtPreset>,
    Query(trial): Query<Trial>,
) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let guarded = held_agents(&mut tx, &id).await?;
    let preset = held_preset(&mut tx, &id).await?;
    call.expects(preset.version)?;
    if preset.is_system {
        return Err(Problem::forbidden("system_preset", "System presets cannot be deleted").into());
    }
    let late = tx.agents_guarded_by(&id).await?.into_iter().find(|agent| !guarded.contains_key(agent));
    if let Some(agent) = late {
        let detail = "An agent was given the guardrail preset at the same moment: look at it, then repeat";
        return Err(Problem::conflict("guardrail_preset_assigned", detail).with("agent_id", agent).into());
    }
    let agents = tx.agents_guarded_only_by(&id).await?;
    if let Some(agent) = agents.first() {
        return Err(Problem::conflict(
            "guardrail_preset_required",
            "An agent has no other guardrail preset: give it another one first",
        )
        .with("agent_id", agent)
        .into());
    }
    let before = shown(&mut tx, preset).await?;
    let deleted = tx.delete_guardrail_preset(&id).await?;
    for agent in guarded.values() {
        tx.update_agent(agent).await?;
    }
    tx.audit(entry(Action::Delete, TABLE, id.as_str()), Some(&before), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted }).await
}
