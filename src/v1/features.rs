//! `/v1/features/…` and `/v1/me/features`: who has which feature of the product.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::answer::{Answer, Deleted, Halt, Item, Items, Outcome, Refusals, or_404};
use super::call::{Call, EitherAdmin, IfMatch, Member};
use super::directory::{ChainQuery, Standpoint, StandpointHeaders, StandpointQuery, hold_scope};
use super::input::{Body, PageParams, Paging, Path, Query};
use super::trial::{Trial, Tried};
use crate::clock::Timestamp;
use crate::context::{Domain, Tenant};
use crate::id::Id;
use crate::model::accounts::JsonText;
use crate::model::audit::Action;
use crate::model::features::FeatureEntitlement;
use crate::model::scope::{GranteeType, Scope, ScopeType};
use crate::model::text::Name;
use crate::policy::features::{FeatureReason, FeatureRules};
use crate::problem::Problem;
use crate::store::Tx;
use crate::store::audit::Entry;

/// An entitlement, or a change of the one of the same scope for the same feature.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "domain": "copilot",
    "feature_code": "create_agents",
    "scope_type": "team",
    "scope_id": "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11",
    "enabled": true,
    "config_json": {"max_agents": 5}
}))]
pub struct NewEntitlement {
    /// The product domain.
    #[schema(value_type = Domain, example = "copilot")]
    domain: String,
    #[schema(value_type = String, example = "create_agents")]
    feature_code: Name,
    /// `account`, `org`, `team` or `user`.
    #[schema(value_type = GranteeType, example = "team")]
    scope_type: String,
    #[schema(example = "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11")]
    scope_id: String,
    /// Whether the feature is on; true unless said.
    #[serde(default = "yes")]
    #[schema(default = true)]
    enabled: bool,
    /// Settings of the feature.
    #[serde(default)]
    #[schema(value_type = Object)]
    config_json: Map<String, Value>,
}

fn yes() -> bool {
    true
}

/// The entitlement of the path.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
pub struct AtEntitlement {
    /// The entitlement.
    #[param(value_type = String)]
    entitlement_id: Id<FeatureEntitlement>,
}

/// Which entitlements are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EntitlementFilter {
    /// The product domain.
    domain: Domain,
    /// Only those for exactly this feature.
    feature_code: Option<String>,
}

/// `{"domain": …, "items": […], "next_cursor": …}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Entitlements {
    /// The product domain.
    domain: Domain,
    #[serde(flatten)]
    page: Items<FeatureEntitlement>,
}

/// Which feature is asked for.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EffectiveFeatureQuery {
    /// The product domain.
    domain: Domain,
    /// The feature.
    #[param(value_type = String, example = "create_agents")]
    feature_code: Name,
}

/// What holds for a feature and a chain of scopes.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EffectiveFeature {
    /// The product domain.
    domain: Domain,
    /// The feature.
    #[schema(example = "create_agents")]
    feature_code: String,
    /// Whether it is on.
    effective_enabled: bool,
    /// Its settings, merged from the operator's and the account's to the user's.
    #[schema(value_type = Object)]
    effective_config: Map<String, Value>,
    /// The scope whose entitlement decided.
    resolved_from: Option<Scope>,
    /// What decided.
    reason: FeatureReason,
    /// Entitlements whose settings were merged; the first one decided.
    candidates: Vec<EntitlementCandidate>,
    /// The scopes, in the order in which they are asked.
    resolution_order: Vec<Scope>,
}

/// An entitlement that takes part in a decision.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct EntitlementCandidate {
    id: Id<FeatureEntitlement>,
    enabled: bool,
    #[schema(value_type = Object)]
    config_json: JsonText,
    scope_type: ScopeType,
    scope_id: String,
    created_at: Timestamp,
}

/// What holds for the caller.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct MyFeatures {
    /// The product domain.
    domain: Domain,
    /// Features that the account's pack or an entitlement of the caller's chain names, by code.
    items: Vec<MyFeature>,
}

/// Whether the caller has a feature.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct MyFeature {
    /// The feature.
    #[schema(example = "create_agents")]
    feature_code: String,
    /// Whether they have it.
    enabled: bool,
    /// Its settings.
    #[schema(value_type = Object)]
    effective_config: Map<String, Value>,
    /// The scope whose entitlement decided.
    resolved_from: Option<Scope>,
    /// What decided.
    reason: FeatureReason,
}

fn entry(action: Action, entitlement: &FeatureEntitlement) -> Entry<'_> {
    let (table, id) = ("Alchemi_FeatureEntitlementTable", entitlement.id.as_str());
    Entry { action, table, id, label: entitlement.domain.into() }
}

/// List feature entitlements
///
/// Needs the admin rights of the domain that is asked for.
#[utoipa::path(get, path = "/v1/features/entitlements", tag = "features", params(EntitlementFilter, PageParams),
    responses((status = 200, description = "A page of entitlements, newest first", body = Entitlements), Refusals))]
pub async fn list_feature_entitlements(
    call: Call<EitherAdmin>,
    Query(filter): Query<EntitlementFilter>,
    Paging(slice): Paging<1000>,
) -> Outcome {
    let call = call.domain_admin(filter.domain)?;
    let page = call.read().await?.entitlements(filter.domain, filter.feature_code.as_deref(), &slice).await?;
    Ok(Answer::of(&Entitlements { domain: filter.domain, page: page.into() }))
}

/// Switch a feature on or off for a scope
///
/// The most specific scope of user, team, org and account that has an entitlement decides;
/// settings are merged along them. Posted again for the same feature and scope, the
/// entitlement is changed. What the account's feature pack leaves out stays off. Needs the
/// admin rights of the domain that is named.
#[utoipa::path(post, path = "/v1/features/entitlements", tag = "features", params(Trial), request_body = NewEntitlement,
    responses((status = 200, description = "The entitlement", body = Tried<Item<FeatureEntitlement>>), Refusals))]
pub async fn create_feature_entitlement(
    call: Call<EitherAdmin>,
    Query(trial): Query<Trial>,
    Body(new): Body<NewEntitlement>,
) -> Outcome {
    let domain: Domain = new
        .domain
        .parse()
        .map_err(|()| Problem::bad_request("invalid_domain", format!("Invalid domain: {}", new.domain)))?;
    let call = call.domain_admin(domain)?;
    let scope = Scope::new(ScopeType::parse(&new.scope_type, ScopeType::GRANTEES)?, new.scope_id);
    let mut tx = call.begin_or_try(&trial).await?;
    hold_scope(&mut tx, domain, &scope).await?;
    let before = tx.entitlement_of(domain, new.feature_code.as_str(), &scope).await?;
    let entitlement = FeatureEntitlement {
        id: tx.new_id(),
        account_id: tx.account().clone(),
        domain,
        feature_code: new.feature_code.into_string(),
        scope_type: scope.scope_type,
        scope_id: scope.scope_id,
        enabled: new.enabled,
        config_json: JsonText::of(&new.config_json),
        created_by: Some(tx.acting().actor.subject.to_string()),
        created_at: tx.now(),
        updated_at: tx.now(),
        version: 1,
    };
    let entitlement = tx.upsert_entitlement(&entitlement).await?;
    tx.audit(entry(Action::Upsert, &entitlement), before.as_ref(), &entitlement).await?;
    call.done_tagged(tx, &Item { item: &entitlement }, entitlement.version).await
}

/// Show a feature entitlement
#[utoipa::path(get, path = "/v1/features/entitlements/{entitlement_id}", tag = "features", params(AtEntitlement),
    responses((status = 200, description = "The entitlement", body = Item<FeatureEntitlement>), Refusals))]
pub async fn get_feature_entitlement(call: Call<EitherAdmin>, Path(at): Path<AtEntitlement>) -> Outcome {
    let mut tx = call.read().await?;
    let entitlement = visible(&call, &mut tx, &at).await?;
    Ok(Answer::of(&Item { item: &entitlement }).tagged(entitlement.version))
}

/// Remove a feature entitlement
#[utoipa::path(delete, path = "/v1/features/entitlements/{entitlement_id}", tag = "features",
    params(AtEntitlement, Trial, IfMatch),
    responses((status = 200, description = "Removed", body = Tried<Deleted>), Refusals))]
pub async fn delete_feature_entitlement(
    call: Call<EitherAdmin>,
    Path(at): Path<AtEntitlement>,
    Query(trial): Query<Trial>,
) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let entitlement = visible(&call, &mut tx, &at).await?;
    call.expects(entitlement.version)?;
    let deleted = tx.delete_entitlement(&entitlement.id).await?;
    tx.audit(entry(Action::Delete, &entitlement), Some(&entitlement), &serde_json::json!({})).await?;
    call.done(tx, &Deleted { deleted }).await
}

/// The entitlement of the path; of a domain that the caller does not administer, none.
async fn visible(
    call: &Call<EitherAdmin>,
    tx: &mut Tx<Tenant>,
    at: &AtEntitlement,
) -> Result<FeatureEntitlement, Halt> {
    let found = tx.entitlement(&at.entitlement_id).await?;
    let own = found.filter(|e| call.context.domain_admin(e.domain).is_ok());
    Ok(or_404(own, "Feature entitlement not found")?)
}

/// Resolve who has a feature
///
/// The answer for the chain of scopes that is sent, and the account. Needs the admin
/// rights of the domain that is asked for.
#[utoipa::path(get, path = "/v1/features/effective", tag = "features", params(EffectiveFeatureQuery, ChainQuery),
    responses((status = 200, description = "What holds, and why", body = EffectiveFeature), Refusals))]
pub async fn get_effective_feature(
    call: Call<EitherAdmin>,
    Query(asked): Query<EffectiveFeatureQuery>,
    Query(chain): Query<ChainQuery>,
) -> Outcome {
    let call = call.domain_admin(asked.domain)?;
    let mut tx = call.read().await?;
    let chain = chain.scopes(&mut tx, asked.domain).await?;
    let feature = asked.feature_code.into_string();
    let rules = rules(&mut tx, asked.domain, Some(&feature), &chain).await?;
    let verdict = rules.resolve(&feature);
    Ok(Answer::of(&EffectiveFeature {
        domain: asked.domain,
        effective_enabled: verdict.enabled,
        effective_config: verdict.config,
        resolved_from: verdict.resolved_from.cloned(),
        reason: verdict.reason,
        candidates: verdict.candidates.into_iter().map(EntitlementCandidate::of).collect(),
        feature_code: feature,
        resolution_order: chain,
    }))
}

/// List the features that you have
///
/// The answer for the caller's own user, team and org: features that the account's pack or
/// an entitlement names, whether they are on, and their settings.
#[utoipa::path(get, path = "/v1/me/features", tag = "self-service", params(StandpointQuery, StandpointHeaders),
    responses((status = 200, description = "Features, by code", body = MyFeatures), Refusals))]
pub async fn list_my_features(call: Call<Member>, standpoint: Standpoint) -> Outcome {
    let mut tx = call.read().await?;
    let chain = standpoint.place(&mut tx, &call.context).await?.scopes(tx.account());
    let rules = rules(&mut tx, standpoint.domain, None, &chain).await?;
    let items = rules.named().into_iter().map(|code| MyFeature::of(code, &rules)).collect();
    Ok(Answer::of(&MyFeatures { domain: standpoint.domain, items }))
}

async fn rules(
    tx: &mut Tx<Tenant>,
    domain: Domain,
    feature: Option<&str>,
    chain: &[Scope],
) -> Result<FeatureRules, Halt> {
    let entitlements = tx.entitlements_for(domain, feature, chain).await?;
    let pack = tx.feature_pack().await?.value;
    Ok(FeatureRules::new(domain, chain, entitlements, pack))
}

impl EntitlementCandidate {
    fn of(entitlement: &FeatureEntitlement) -> Self {
        Self {
            id: entitlement.id.clone(),
            enabled: entitlement.enabled,
            config_json: entitlement.config_json.clone(),
            scope_type: entitlement.scope_type,
            scope_id: entitlement.scope_id.clone(),
            created_at: entitlement.created_at,
        }
    }
}

impl MyFeature {
    fn of(code: &str, rules: &FeatureRules) -> Self {
        let verdict = rules.resolve(code);
        Self {
            feature_code: code.to_owned(),
            enabled: verdict.enabled,
            effective_config: verdict.config,
            resolved_from: verdict.resolved_from.cloned(),
            reason: verdict.reason,
        }
    }
}
