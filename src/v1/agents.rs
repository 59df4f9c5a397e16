//! `/v1/copilot/agents` and `/v1/me/agents`: agents, whom they are granted to, and the
//! guardrails that they must have.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::answer::{Answer, Deleted, Halt, Item, Items, Outcome, Refusals, or_404};
use super::call::{Call, CopilotAdmin, IfMatch, Member};
use super::directory::{Standpoint, StandpointHeaders, StandpointQuery, hold_scope};
use super::input::{Body, PageParams, Paging, Path, Query, require};
use super::trial::{Trial, Tried};
use crate::clock::Timestamp;
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::accounts::JsonText;
use crate::model::agents::{Agent, AgentGrant, AgentVisibility};
use crate::model::audit::{Action, Label};
use crate::model::field::Field;
use crate::model::guardrails::GuardrailPreset;
use crate::model::scope::{MemberType, Scope, ScopeType};
use crate::model::text::{Description, Name};
use crate::problem::Problem;
use crate::store::Tx;
use crate::store::audit::Entry;

/// A scope, as a caller names it.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"scope_type": "team", "scope_id": "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11"}))]
pub struct Grantee {
    /// `org`, `team` or `user`.
    #[schema(value_type = MemberType, example = "team")]
    scope_type: String,
    #[schema(example = "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11")]
    scope_id: String,
}

/// A new agent.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "Support desk",
    "description": "Answers customers",
    "definition_json": {"model": "gpt-4o-mini"},
    "guardrail_preset_ids": ["019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11"],
    "grants": [{"scope_type": "team", "scope_id": "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11"}]
}))]
pub struct NewAgent {
    name: Name,
    #[serde(default)]
    description: Option<Description>,
    /// What the agent is; alchemi keeps it and does not read it.
    #[serde(default)]
    #[schema(value_type = Object)]
    definition_json: Map<String, Value>,
    /// Presets that every request through the agent is screened by; at least one.
    #[serde(default)]
    #[schema(required = true, min_items = 1, max_items = 100)]
    guardrail_preset_ids: Vec<String>,
    /// Who may use it; without any, everybody of the account.
    #[serde(default)]
    #[schema(max_items = 1000)]
    grants: Vec<Grantee>,
    /// `granted`: only those who have a grant may use it, which without any is nobody.
    #[serde(default)]
    visibility: Option<AgentVisibility>,
}

/// A change of an agent: what is not sent stays.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "Service desk", "description": null}))]
pub struct AgentChange {
    #[serde(default)]
    #[schema(value_type = Option<Name>)]
    name: Field<Name>,
    #[serde(default)]
    #[schema(value_type = Option<Description>)]
    description: Field<Description>,
    /// Replaces the definition.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    definition_json: Field<Map<String, Value>>,
    /// Replaces the presets; at least one.
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>, max_items = 100)]
    guardrail_preset_ids: Field<Vec<String>>,
    /// Replaces the grants; those who lose theirs cannot use the agent any more.
    #[serde(default)]
    #[schema(value_type = Option<Vec<Grantee>>, max_items = 1000)]
    grants: Field<Vec<Grantee>>,
    /// `account` opens the agent to everybody of the account and takes its grants away;
    /// `granted` leaves it to those who have one.
    #[serde(default)]
    #[schema(value_type = Option<AgentVisibility>)]
    visibility: Field<AgentVisibility>,
}

/// An agent with what belongs to it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct AgentItem {
    #[serde(flatten)]
    agent: Agent,
    /// Presets that every request through it is screened by, oldest assignment first.
    #[schema(value_type = Vec<String>)]
    mandatory_guardrail_preset_ids: Vec<Id<GuardrailPreset>>,
    /// Who may use it, oldest first; in lists only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    grants: Option<Vec<Scope>>,
}

/// An agent as those see it who may use it; its definition is for admins.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct MyAgent {
    /// What `x-alchemi-agent-id` names.
    id: Id<Agent>,
    #[schema(example = "Support desk")]
    name: String,
    description: Option<String>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl From<Agent> for MyAgent {
    fn from(agent: Agent) -> Self {
        let Agent { id, name, description, created_at, updated_at, .. } = agent;
        Self { id, name, description, created_at, updated_at }
    }
}

/// The agent of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtAgent {
    /// The agent.
    #[param(value_type = String)]
    agent_id: Id<Agent>,
}

/// How agents are to be listed.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AgentParams {
    /// With who may use each.
    #[serde(default)]
    include_grants: bool,
}

/// The grant of an agent to a scope.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GranteeQuery {
    /// `org`, `team` or `user`.
    #[param(value_type = MemberType, inline)]
    scope_type: String,
    /// The scope.
    scope_id: String,
}

/// How many guardrail presets one call may name.
const MAX_PRESETS: usize = 100;

/// How many scopes one call may grant an agent to.
const MAX_GRANTS: usize = 1_000;

const AGENT_NOT_FOUND: &str = "Agent not found";
const TABLE: &str = "Alchemi_CopilotAgentTable";
const GRANT_TABLE: &str = "Alchemi_CopilotAgentGrantTable";

fn entry<'a>(action: Action, table: &'static str, id: &'a str) -> Entry<'a> {
    Entry { action, table, id, label: Label::Copilot }
}

/// Agents with their presets, and their grants if asked for, in as many statements for a
/// page as for one.
async fn items(tx: &mut Tx<Tenant>, agents: Vec<Agent>, with_grants: bool) -> Result<Vec<AgentItem>, Halt> {
    let ids: Vec<_> = agents.iter().map(|agent| agent.id.clone()).collect();
    let mut presets = HashMap::<_, Vec<_>>::new();
    for (agent, preset) in tx.presets_of_agents(&ids).await? {
        presets.entry(agent).or_default().push(preset);
    }
    let mut grants = HashMap::<_, Vec<_>>::new();
    if with_grants {
        for grant in tx.grants_of_agents(&ids).await? {
            grants.entry(grant.agent_id).or_default().push(Scope::new(grant.scope_type, grant.scope_id));
        }
    }
    let item = |agent: Agent| AgentItem {
        mandatory_guardrail_preset_ids: presets.remove(&agent.id).unwrap_or_default(),
        grants: with_grants.then(|| grants.remove(&agent.id).unwrap_or_default()),
        agent,
    };
    Ok(agents.into_iter().map(item).collect())
}

async fn item(tx: &mut Tx<Tenant>, agent: Agent) -> Result<AgentItem, Halt> {
    Ok(or_404(items(tx, vec![agent], true).await?.pop(), AGENT_NOT_FOUND)?)
}

/// The presets that are named, each once and in the order of their ids, held until the end
/// of the transaction.
async fn hold_presets(tx: &mut Tx<Tenant>, named: &[String]) -> Result<Vec<Id<GuardrailPreset>>, Halt> {
    require(named.len() <= MAX_PRESETS, "/guardrail_preset_ids", "must be at most 100")?;
    let named: BTreeSet<&str> = named.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
    let (mut presets, mut missing) = (Vec::new(), Vec::new());
    for name in named {
        let preset = match name.parse() {
            Ok(id) => tx.hold_guardrail_preset(&id).await?,
            Err(_) => None,
        };
        match preset {
            Some(preset) => presets.push(preset.id),
            None => missing.push(name),
        }
    }
    if !missing.is_empty() {
        return Err(Problem::not_found(format!("Guardrail preset not found: {}", missing.join(","))).into());
    }
    if presets.is_empty() {
        return Err(Problem::bad_request(
            "guardrail_preset_required",
            "At least one guardrail preset is required for agent creation/update",
        )
        .into());
    }
    Ok(presets)
}

impl Grantee {
    fn scope(&self) -> Result<Scope, Problem> {
        let kind = ScopeType::parse(&self.scope_type, ScopeType::MEMBERS)?;
        let id = self.scope_id.trim();
        if id.is_empty() {
            return Err(Problem::bad_request("scope_id_required", "scope_id is required for agent grants"));
        }
        Ok(Scope::new(kind, id))
    }
}

/// The scopes that are named, each once and in one order, held until the end of the
/// transaction.
async fn hold_grantees(tx: &mut Tx<Tenant>, grantees: &[Grantee]) -> Result<Vec<Scope>, Halt> {
    require(grantees.len() <= MAX_GRANTS, "/grants", "must be at most 1000")?;
    let scopes = grantees.iter().map(Grantee::scope).collect::<Result<BTreeSet<_>, _>>()?;
    for scope in &scopes {
        hold_scope(tx, Domain::Copilot, scope).await?;
    }
    Ok(scopes.into_iter().collect())
}

fn open_and_granted() -> Problem {
    Problem::invalid("/visibility", "is account while grants are given: send one of them")
}

async fn held(tx: &mut Tx<Tenant>, id: &Id<Agent>) -> Result<Agent, Halt> {
    Ok(or_404(tx.hold_agent(id).await?, AGENT_NOT_FOUND)?)
}

/// As [`held`], in the words of the routes of its grants.
async fn held_for_grants(tx: &mut Tx<Tenant>, id: &Id<Agent>) -> Result<Agent, Halt> {
    Ok(or_404(tx.hold_agent(id).await?, "Copilot agent not found")?)
}

/// List agents
#[utoipa::path(get, path = "/v1/copilot/agents", tag = "agents", params(AgentParams, PageParams),
    responses((status = 200, description = "A page of agents, newest first", body = Items<AgentItem>), Refusals))]
pub async fn list_agents(
    call: Call<CopilotAdmin>,
    Query(params): Query<AgentParams>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    let mut tx = call.read().await?;
    let page = tx.agents(&slice).await?;
    let next_cursor = page.next.map(|c| c.encode());
    Ok(Answer::of(&Items { items: items(&mut tx, page.items, params.include_grants).await?, next_cursor }))
}

/// Make an agent
///
/// Everything is checked before anything is written. An agent needs at least one guardrail
/// preset, which screens every request that names the agent in `x-alchemi-agent-id`.
#[utoipa::path(post, path = "/v1/copilot/agents", tag = "agents", params(Trial), request_body = NewAgent,
    responses((status = 200, description = "The new agent", body = Tried<Item<AgentItem>>), Refusals))]
pub async fn create_agent(call: Call<CopilotAdmin>, Query(trial): Query<Trial>, Body(new): Body<NewAgent>) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let presets = hold_presets(&mut tx, &new.guardrail_preset_ids).await?;
    let grantees = hold_grantees(&mut tx, &new.grants).await?;
    let visibility = match new.visibility {
        Some(AgentVisibility::Account) if !grantees.is_empty() => return Err(open_and_granted().into()),
        Some(visibility) => visibility,
        None if grantees.is_empty() => AgentVisibility::Account,
        None => AgentVisibility::Granted,
    };
    let agent = Agent {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        name: new.name.into_string(),
        description: new.description.map(Description::into_string),
        definition_json: JsonText::of(&new.definition_json),
        visibility,
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    };
    tx.insert_agent(&agent).await?;
    tx.replace_agent_presets(&agent.id, &presets).await?;
    tx.replace_agent_grants(&agent.id, &grantees).await?;
    let item = item(&mut tx, agent).await?;
    tx.audit(entry(Action::Create, TABLE, item.agent.id.as_str()), None::<&()>, &item).await?;
    call.done_tagged(tx, &Item { item: &item }, item.agent.version).await
}

/// Show an agent
#[utoipa::path(get, path = "/v1/copilot/agents/{agent_id}", tag = "agents", params(AtAgent),
    responses((status = 200, description = "The agent", body = Item<AgentItem>), Refusals))]
pub async fn get_agent(call: Call<CopilotAdmin>, Path(AtAgent { agent_id: id }): Path<AtAgent>) -> Outcome {
    let mut tx = call.read().await?;
    let agent = or_404(tx.agent(&id).await?, AGENT_NOT_FOUND)?;
    let version = agent.version;
    Ok(Answer::of(&Item { item: item(&mut tx, agent).await? }).tagged(version))
}

/// Change an agent
#[utoipa::path(put, path = "/v1/copilot/agents/{agent_id}", tag = "agents", params(AtAgent, Trial, IfMatch),
    request_body = AgentChange,
    responses((status = 200, description = "The changed agent", body = Tried<Item<AgentItem>>), Refusals))]
pub async fn update_agent(
    call: Call<CopilotAdmin>,
    Path(AtAgent { agent_id: id }): Path<AtAgent>,
    Query(trial): Query<Trial>,
    Body(change): Body<AgentChange>,
) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let agent = held(&mut tx, &id).await?;
    call.expects(agent.version)?;
    let before = item(&mut tx, agent.clone()).await?;
    let mut agent = agent;
    agent.name = change.name.map(Name::into_string).over_required(agent.name, "/name")?;
    agent.description = change.description.map(Description::into_string).over(agent.description);
    agent.definition_json = match change.definition_json {
        Field::Keep => agent.definition_json,
        Field::Clear => JsonText::empty_object(),
        Field::Set(definition) => JsonText::of(&definition),
    };
    // Null is what the former API took for "as it is".
    if let Field::Set(named) = &change.guardrail_preset_ids {
        let presets = hold_presets(&mut tx, named).await?;
        tx.replace_agent_presets(&id, &presets).await?;
    }
    let granted = match &change.grants {
        Field::Set(grantees) => Some(hold_grantees(&mut tx, grantees).await?),
        Field::Keep | Field::Clear => None,
    };
    let is_granted = granted.as_ref().is_some_and(|grantees| !grantees.is_empty());
    agent.visibility = match change.visibility {
        Field::Set(AgentVisibility::Account) if is_granted => {
            return Err(open_and_granted().into());
        }
        Field::Set(visibility) => visibility,
        Field::Keep | Field::Clear if is_granted => AgentVisibility::Granted,
        Field::Keep | Field::Clear => agent.visibility,
    };
    let open = agent.visibility == AgentVisibility::Account;
    if let Some(grantees) = granted.or_else(|| open.then(Vec::new)) {
        tx.replace_agent_grants(&id, &grantees).await?;
    }
    let agent = tx.update_agent(&agent).await?;
    let item = item(&mut tx, agent).await?;
    tx.audit(entry(Action::Update, TABLE, id.as_str()), Some(&before), &item).await?;
    call.done_tagged(tx, &Item { item: &item }, item.agent.version).await
}

/// Remove an agent
///
/// Its grants and its guardrails' assignments go with it.
#[utoipa::path(delete, path = "/v1/copilot/agents/{agent_id}", tag = "agents", params(AtAgent, IfMatch),
    responses((status = 200, description = "Removed", body = Deleted), Refusals))]
pub async fn delete_agent(call: Call<CopilotAdmin>, Path(AtAgent { agent_id: id }): Path<AtAgent>) -> Outcome {
    let mut tx = call.begin().await?;
    let agent = held(&mut tx, &id).await?;
    call.expects(agent.version)?;
    let before = item(&mut tx, agent).await?;
    let deleted = tx.delete_agent(&id).await?;
    tx.audit(entry(Action::Delete, TABLE, id.as_str()), Some(&before), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted }).await
}

/// List whom an agent is granted to
#[utoipa::path(get, path = "/v1/copilot/agents/{agent_id}/grants", tag = "agents", params(AtAgent, PageParams),
    responses((status = 200, description = "A page of grants, newest first", body = Items<AgentGrant>), Refusals))]
pub async fn list_agent_grants(
    call: Call<CopilotAdmin>,
    Path(AtAgent { agent_id: id }): Path<AtAgent>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    let mut tx = call.read().await?;
    let agent = or_404(tx.agent(&id).await?, "Copilot agent not found")?;
    Ok(Answer::of(&Items::from(tx.agent_grants(&id, &slice).await?)).tagged(agent.version))
}

/// Grant an agent to a scope
///
/// The first grant takes the agent from everybody else, which the audit and a dry run tell
/// as a change of the agent. Granted again, nothing changes.
#[utoipa::path(post, path = "/v1/copilot/agents/{agent_id}/grants", tag = "agents", params(AtAgent, Trial),
    request_body = Grantee,
    responses((status = 200, description = "The grant", body = Tried<Item<AgentGrant>>), Refusals))]
pub async fn create_agent_grant(
    call: Call<CopilotAdmin>,
    Path(AtAgent { agent_id: id }): Path<AtAgent>,
    Query(trial): Query<Trial>,
    Body(grantee): Body<Grantee>,
) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let agent = held_for_grants(&mut tx, &id).await?;
    let scope = grantee.scope()?;
    hold_scope(&mut tx, Domain::Copilot, &scope).await?;
    if let Some(grant) = tx.agent_grant_of(&id, &scope).await? {
        return call.done(tx, &Item { item: grant }).await;
    }
    let closes = agent.visibility == AgentVisibility::Account;
    let before = if closes { Some(item(&mut tx, agent.clone()).await?) } else { None };
    let grant = tx.insert_agent_grant(&id, &scope).await?;
    let agent = tx.update_agent(&Agent { visibility: AgentVisibility::Granted, ..agent }).await?;
    tx.audit(entry(Action::Upsert, GRANT_TABLE, grant.id.as_str()), None::<&()>, &grant).await?;
    if before.is_some() {
        let after = item(&mut tx, agent).await?;
        tx.audit(entry(Action::Update, TABLE, id.as_str()), before.as_ref(), &after).await?;
    }
    call.done(tx, &Item { item: &grant }).await
}

/// Take an agent from a scope
///
/// Without its last grant, nobody may use the agent: `PUT` it with `"grants": []` to open
/// it to the whole account. Grants belong to the agent's version.
#[utoipa::path(delete, path = "/v1/copilot/agents/{agent_id}/grants", tag = "agents",
    params(AtAgent, GranteeQuery, Trial, IfMatch),
    responses((status = 200, description = "Removed, or never there", body = Tried<Deleted>), Refusals))]
pub async fn delete_agent_grant(
    call: Call<CopilotAdmin>,
    Path(AtAgent { agent_id: id }): Path<AtAgent>,
    Query(asked): Query<GranteeQuery>,
    Query(trial): Query<Trial>,
) -> Outcome {
    let kind = ScopeType::parse(&asked.scope_type, ScopeType::MEMBERS)?;
    let mut tx = call.begin_or_try(&trial).await?;
    let agent = held_for_grants(&mut tx, &id).await?;
    call.expects(agent.version)?;
    let scope = Scope::new(kind, asked.scope_id);
    let Some(grant) = tx.agent_grant_of(&id, &scope).await? else {
        return call.done(tx, &Deleted { deleted: false }).await;
    };
    let deleted = tx.delete_agent_grant(&grant.id).await?;
    tx.update_agent(&agent).await?;
    tx.audit(entry(Action::Delete, GRANT_TABLE, grant.id.as_str()), Some(&grant), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted }).await
}

/// List the agents that you may use
///
/// Those that are everybody's or granted to your user, team or org, newest first. Name one
/// in `x-alchemi-agent-id` to make a request through it.
#[utoipa::path(get, path = "/v1/me/agents", tag = "self-service",
    params(StandpointQuery, StandpointHeaders, PageParams),
    responses((status = 200, description = "A page of agents", body = Items<MyAgent>), Refusals))]
pub async fn list_my_agents(call: Call<Member>, standpoint: Standpoint, Paging(slice): Paging<1000>) -> Outcome {
    let mut tx = call.read().await?;
    let chain = standpoint.place(&mut tx, &call.context).await?.scopes(tx.account());
    let agents = tx.agents_for(&chain, &slice).await?;
    Ok(Answer::of(&Items::from(agents.map(MyAgent::from))))
}
