//! `/v1/{domain}/models/…` and `/v1/me/models`: who may use which model.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::App;
use super::answer::{Answer, Deleted, Halt, Item, Items, Outcome, Refusals, or_404};
use super::call::{Call, DomainAdmin, IfMatch, Member};
use super::directory::{ChainQuery, Standpoint, StandpointHeaders, StandpointQuery, hold_scope};
use super::input::{Body, PageParams, Paging, Path, Query};
use super::trial::{Trial, Tried};
use crate::clock::Timestamp;
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::audit::Action;
use crate::model::models::{AccessMode, ModelGrant};
use crate::model::scope::{GranteeType, Scope, ScopeType};
use crate::model::text::ModelPattern;
use crate::policy::models::{ModelRules, Reason};
use crate::problem::Problem;
use crate::store::Tx;
use crate::store::audit::Entry;

/// The models that the upstream knows, asked anew for each answer.
#[derive(Clone)]
pub struct Catalogue(Arc<dyn Fn() -> Vec<String> + Send + Sync>);

impl Catalogue {
    /// A catalogue that `list` gives.
    pub fn new(list: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(list))
    }

    pub(super) fn models(&self) -> Vec<String> {
        (self.0)()
    }
}

impl Default for Catalogue {
    fn default() -> Self {
        Self::new(Vec::new)
    }
}

impl fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Catalogue")
    }
}

/// A grant, or a change of the one for the same model and scope.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "model_name": "gpt-4o*",
    "scope_type": "team",
    "scope_id": "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11",
    "access_mode": "allow"
}))]
pub struct NewModelGrant {
    /// The product domain; when sent, the one of the path.
    #[serde(default)]
    #[schema(value_type = Option<Domain>)]
    domain: Option<String>,
    model_name: ModelPattern,
    /// `account`, `org`, `team` or `user`.
    #[schema(value_type = GranteeType, example = "team")]
    scope_type: String,
    #[schema(example = "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11")]
    scope_id: String,
    /// `allow` unless said.
    #[serde(default)]
    #[schema(value_type = Option<AccessMode>)]
    access_mode: Option<String>,
}

/// The grant of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtGrant {
    /// The grant.
    #[param(value_type = String)]
    grant_id: Id<ModelGrant>,
}

/// Which grants are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GrantFilter {
    /// Only grants for exactly this name.
    model_name: Option<String>,
}

/// Which model's access is asked for.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EffectiveQuery {
    /// The model's public name.
    #[param(example = "gpt-4o-mini")]
    model_name: String,
}

/// What holds for a model and a chain of scopes.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EffectiveModel {
    /// The model.
    model_name: String,
    /// `allow` or `deny`.
    effective_access: AccessMode,
    /// The same as a boolean.
    allowed: bool,
    /// The scope whose grant decided.
    resolved_from: Option<Scope>,
    /// What decided.
    reason: Reason,
    /// Grants of that scope that match; the first one decided.
    candidates: Vec<Candidate>,
    /// The scopes, in the order in which they are asked.
    resolution_order: Vec<Scope>,
}

/// A grant that takes part in a decision.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Candidate {
    id: Id<ModelGrant>,
    /// The name it is for, perhaps with `*` at the end.
    model_name: String,
    access_mode: AccessMode,
    scope_type: ScopeType,
    scope_id: String,
    created_at: Timestamp,
}

/// What holds for the caller.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct MyModels {
    /// The product domain.
    domain: Domain,
    /// Models that a grant of the caller's chain names or that the upstream knows, by name.
    items: Vec<MyModel>,
}

/// Whether the caller may use a model.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct MyModel {
    /// The model; with `*` at its end, every one that starts so and is not listed.
    #[schema(example = "gpt-4o-mini")]
    model_name: String,
    /// Whether they may.
    allowed: bool,
    /// The scope whose grant decided.
    resolved_from: Option<Scope>,
    /// What decided.
    reason: Reason,
}

const GRANT_NOT_FOUND: &str = "Model grant not found";

fn entry(action: Action, grant: &ModelGrant) -> Entry<'_> {
    Entry { action, table: "Alchemi_ModelGrantTable", id: grant.id.as_str(), label: grant.domain.into() }
}

/// List model grants
#[utoipa::path(get, path = "/v1/{domain}/models/grants", tag = "models", params(GrantFilter, PageParams),
    responses((status = 200, description = "A page of grants, newest first", body = Items<ModelGrant>), Refusals))]
pub async fn list_model_grants(
    call: Call<DomainAdmin>,
    Query(filter): Query<GrantFilter>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    let grants = call.read().await?.model_grants(call.guard.0, filter.model_name.as_deref(), &slice).await?;
    Ok(Answer::of(&Items::from(grants)))
}

/// Grant or deny a model to a scope
///
/// The most specific scope of user, team, org and account that has a grant for a model
/// decides. A name may end in `*`; in one scope an exact name beats a wildcard, and a
/// longer wildcard a shorter one. Posted again for the same model and scope, the access
/// mode is changed. With `dry_run=true` the answer is the effect, and nothing is written.
#[utoipa::path(post, path = "/v1/{domain}/models/grants", tag = "models", params(Trial), request_body = NewModelGrant,
    responses((status = 200, description = "The grant", body = Tried<Item<ModelGrant>>), Refusals))]
pub async fn create_model_grant(
    call: Call<DomainAdmin>,
    Query(trial): Query<Trial>,
    Body(new): Body<NewModelGrant>,
) -> Outcome {
    let domain = call.guard.0;
    if new.domain.as_deref().is_some_and(|sent| sent != domain.as_str()) {
        return Err(Problem::bad_request("domain_mismatch", format!("domain must be {domain}")).into());
    }
    let scope = Scope::new(ScopeType::parse(&new.scope_type, ScopeType::GRANTEES)?, new.scope_id);
    let access_mode = access_mode(new.access_mode.as_deref())?;
    let mut tx = call.begin_or_try(&trial).await?;
    hold_scope(&mut tx, domain, &scope).await?;
    let before = tx.model_grant_of(domain, new.model_name.as_str(), &scope).await?;
    let grant = ModelGrant {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        domain,
        model_name: new.model_name.into_string(),
        scope_type: scope.scope_type,
        scope_id: scope.scope_id,
        access_mode,
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    };
    let grant = tx.upsert_model_grant(&grant).await?;
    tx.audit(entry(Action::Upsert, &grant), before.as_ref(), &grant).await?;
    call.done_tagged(tx, &Item { item: &grant }, grant.version).await
}

/// Show a model grant
#[utoipa::path(get, path = "/v1/{domain}/models/grants/{grant_id}", tag = "models", params(AtGrant),
    responses((status = 200, description = "The grant", body = Item<ModelGrant>), Refusals))]
pub async fn get_model_grant(call: Call<DomainAdmin>, Path(AtGrant { grant_id: id }): Path<AtGrant>) -> Outcome {
    let grant = or_404(call.read().await?.model_grant(call.guard.0, &id).await?, GRANT_NOT_FOUND)?;
    Ok(Answer::of(&Item { item: &grant }).tagged(grant.version))
}

/// Remove a model grant
///
/// With `dry_run=true` the answer is the effect, and nothing is removed.
#[utoipa::path(delete, path = "/v1/{domain}/models/grants/{grant_id}", tag = "models", params(AtGrant, Trial, IfMatch),
    responses((status = 200, description = "Removed", body = Tried<Deleted>), Refusals))]
pub async fn delete_model_grant(
    call: Call<DomainAdmin>,
    Path(AtGrant { grant_id: id }): Path<AtGrant>,
    Query(trial): Query<Trial>,
) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let grant = or_404(tx.model_grant(call.guard.0, &id).await?, GRANT_NOT_FOUND)?;
    call.expects(grant.version)?;
    let deleted = tx.delete_model_grant(call.guard.0, &id).await?;
    tx.audit(entry(Action::Delete, &grant), Some(&grant), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted }).await
}

/// Resolve who may use a model
///
/// The answer for the chain of scopes that is sent, and the account. No grant that
/// matches: the gateway's default, which is `deny` unless configured.
#[utoipa::path(get, path = "/v1/{domain}/models/effective", tag = "models", params(EffectiveQuery, ChainQuery),
    responses((status = 200, description = "What holds, and why", body = EffectiveModel), Refusals))]
pub async fn get_effective_model(
    call: Call<DomainAdmin>,
    Query(asked): Query<EffectiveQuery>,
    Query(chain): Query<ChainQuery>,
) -> Outcome {
    let mut tx = call.read().await?;
    let chain = chain.scopes(&mut tx, call.guard.0).await?;
    let rules = rules(&mut tx, &call.app, call.guard.0, &chain).await?;
    let verdict = rules.resolve(&asked.model_name);
    let candidates = verdict.candidates.iter().map(|g| Candidate::of(g)).collect();
    Ok(Answer::of(&EffectiveModel {
        effective_access: if verdict.allowed { AccessMode::Allow } else { AccessMode::Deny },
        allowed: verdict.allowed,
        resolved_from: verdict.resolved_from.cloned(),
        reason: verdict.reason,
        candidates,
        model_name: asked.model_name,
        resolution_order: chain,
    }))
}

/// List the models that you may use
///
/// The answer for the caller's own user, team and org: models that a grant names or that
/// the upstream knows, and whether they are allowed.
#[utoipa::path(get, path = "/v1/me/models", tag = "self-service", params(StandpointQuery, StandpointHeaders),
    responses((status = 200, description = "Models, by name", body = MyModels), Refusals))]
pub async fn list_my_models(call: Call<Member>, standpoint: Standpoint) -> Outcome {
    let mut tx = call.read().await?;
    let chain = standpoint.place(&mut tx, &call.context).await?.scopes(tx.account());
    let rules = rules(&mut tx, &call.app, standpoint.domain, &chain).await?;
    let catalogue = call.app.catalogue.models();
    let names: BTreeSet<&str> = rules.named().chain(catalogue.iter().map(String::as_str)).collect();
    let items = names.into_iter().map(|name| MyModel::of(name, &rules)).collect();
    Ok(Answer::of(&MyModels { domain: standpoint.domain, items }))
}

async fn rules(tx: &mut Tx<Tenant>, app: &App, domain: Domain, chain: &[Scope]) -> Result<ModelRules, Halt> {
    let grants = tx.model_grants_for(domain, chain).await?;
    let policy = match domain {
        Domain::Console => Some(tx.console_model_policy().await?.value),
        Domain::Copilot => None,
    };
    Ok(ModelRules::new(domain, chain, grants, policy, app.terms.default_access))
}

fn access_mode(text: Option<&str>) -> Result<AccessMode, Problem> {
    let text = text.unwrap_or(AccessMode::Allow.as_str());
    AccessMode::ALL
        .into_iter()
        .find(|mode| mode.as_str() == text)
        .ok_or_else(|| Problem::bad_request("invalid_access_mode", "access_mode must be allow|deny"))
}

impl Candidate {
    fn of(grant: &ModelGrant) -> Self {
        Self {
            id: grant.id.clone(),
            model_name: grant.model_name.clone(),
            access_mode: grant.access_mode,
            scope_type: grant.scope_type,
            scope_id: grant.scope_id.clone(),
            created_at: grant.created_at,
        }
    }
}

impl MyModel {
    fn of(name: &str, rules: &ModelRules) -> Self {
        let verdict = rules.resolve(name);
        Self {
            model_name: name.to_owned(),
            allowed: verdict.allowed,
            resolved_from: verdict.resolved_from.cloned(),
            reason: verdict.reason,
        }
    }
}
