//! What only the operator sets for an account: feature pack, console model policy,
//! the binding to Zitadel.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::accounts::{ACCOUNT_NOT_FOUND, AtAccount, held_account};
use super::answer::{Answer, Halt, Outcome, Refusals, StatusOk, or_404, taken};
use super::call::{Call, IfMatch, SuperAdmin};
use super::input::{Body, Path};
use super::revocations::accepted;
use crate::context::Tenant;
use crate::id::Id;
use crate::model::accounts::{
    Account, AdminRole, ConsoleModelPolicy, FeaturePack, ServiceUrl, ZitadelConfig, or_empty_object,
};
use crate::model::audit::{Action, Label};
use crate::model::field::Field;
use crate::model::text::{Name, blank_clears};
use crate::problem::{FieldError, Problem};
use crate::store::Tx;
use crate::store::audit::Entry;
use crate::store::policies::Versioned;

/// What is to be switched on; replaces what was.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewFeaturePack {
    /// Codes of features.
    #[serde(default)]
    #[schema(value_type = Vec<String>, example = json!(["create_agents"]))]
    features: Vec<Name>,
    /// Settings of features, by code.
    #[serde(default)]
    #[schema(value_type = Object)]
    config: serde_json::Map<String, serde_json::Value>,
}

impl From<NewFeaturePack> for FeaturePack {
    fn from(new: NewFeaturePack) -> Self {
        let mut features = Vec::with_capacity(new.features.len());
        for code in new.features.into_iter().map(Name::into_string) {
            if !features.contains(&code) {
                features.push(code);
            }
        }
        Self { features, config: new.config }
    }
}

/// How the account is to be bound to Zitadel: what is left out stays as it was, `null` or a blank
/// text removes it.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "enabled": true,
    "issuer": "https://login.example.com",
    "project_id": "259242039378444300",
    "organization_id": "259242039378444290",
    "role_prefix": "acme_",
    "role_mappings": {"account_admin": "acme_account_admin"}
}))]
pub struct NewZitadelConfig {
    /// Where there was no binding: `true`, unless said.
    #[serde(default)]
    enabled: Option<bool>,
    /// One of the gateway's issuers: tokens of another one are not for the account, whatever they
    /// name. Where none is named here, those of the platform's own count.
    #[serde(default, deserialize_with = "blank_clears")]
    #[schema(value_type = Option<String>, example = "https://login.example.com")]
    issuer: Field<ServiceUrl>,
    #[serde(default, deserialize_with = "blank_clears")]
    #[schema(value_type = Option<String>)]
    audience: Field<Name>,
    #[serde(default, deserialize_with = "blank_clears")]
    #[schema(value_type = Option<String>, example = "259242039378444300")]
    project_id: Field<Name>,
    /// The organisation that the account is; of one account at most.
    #[serde(default, deserialize_with = "blank_clears")]
    #[schema(value_type = Option<String>, example = "259242039378444290")]
    organization_id: Field<Name>,
    /// What stands before the canonical role in the project's role keys.
    #[serde(default, deserialize_with = "blank_clears")]
    #[schema(value_type = Option<String>, example = "acme_")]
    role_prefix: Field<Name>,
    /// Canonical role to the project's role key.
    #[serde(default)]
    #[schema(value_type = Option<Object>, example = json!({"account_admin": "acme_account_admin"}))]
    role_mappings: Field<BTreeMap<String, Name>>,
    #[serde(default, deserialize_with = "blank_clears")]
    #[schema(value_type = Option<String>, example = "alchemi:account_id")]
    account_id_claim: Field<Name>,
    #[serde(default, deserialize_with = "blank_clears")]
    #[schema(value_type = Option<String>, example = "product_domains_allowed")]
    product_domains_claim: Field<Name>,
}

impl NewZitadelConfig {
    /// The binding after the change.
    fn over(self, before: Option<ZitadelConfig>) -> Result<ZitadelConfig, Problem> {
        let before = before.unwrap_or_else(ZitadelConfig::unbound);
        let texts = |mappings: BTreeMap<String, Name>| -> BTreeMap<String, String> {
            mappings.into_iter().map(|(role, key)| (role, key.into_string())).collect()
        };
        let role_mappings = self.role_mappings.map(texts).over(Some(before.role_mappings)).unwrap_or_default();
        let errors: Vec<_> = role_mappings
            .keys()
            .filter_map(|role| {
                let detail = role.parse::<AdminRole>().err()?;
                Some(FieldError { pointer: "/role_mappings".to_owned(), detail: format!("{role:?}: a role {detail}") })
            })
            .collect();
        if !errors.is_empty() {
            return Err(Problem::invalid_fields(errors));
        }
        let text = |name: Field<Name>, before| name.map(Name::into_string).over(before);
        Ok(ZitadelConfig {
            enabled: self.enabled.unwrap_or(before.enabled),
            issuer: self.issuer.map(ServiceUrl::into_string).over(before.issuer),
            audience: text(self.audience, before.audience),
            project_id: text(self.project_id, before.project_id),
            organization_id: text(self.organization_id, before.organization_id),
            role_prefix: text(self.role_prefix, before.role_prefix),
            role_mappings,
            account_id_claim: text(self.account_id_claim, before.account_id_claim),
            product_domains_claim: text(self.product_domains_claim, before.product_domains_claim),
        })
    }
}

/// `{"feature_pack": …}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ShownFeaturePack {
    feature_pack: FeaturePack,
}

/// `{"console_model_policy": …}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ShownConsoleModelPolicy {
    console_model_policy: ConsoleModelPolicy,
}

/// `{"zitadel_config": …}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ShownZitadelConfig {
    /// `{}` while the account is not bound.
    #[serde(serialize_with = "or_empty_object")]
    #[schema(value_type = ZitadelConfig)]
    zitadel_config: Option<ZitadelConfig>,
}

/// `{"status": "ok"}` and the document.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Stored<T> {
    #[serde(flatten)]
    status: StatusOk,
    #[serde(flatten)]
    document: T,
}

fn stored<T>(document: T) -> Stored<T> {
    Stored { status: StatusOk::OK, document }
}

fn parts<T>(stored: Option<Versioned<T>>) -> (Option<T>, i64) {
    stored.map_or((None, 0), |document| (Some(document.value), document.version))
}

fn setting_of<'a>(account: &'a Id<Account>, table: &'static str, label: Label) -> Entry<'a> {
    Entry { action: Action::Update, table, id: account.as_str(), label }
}

/// A reading transaction within an account that exists.
async fn read_within(call: &Call<SuperAdmin>, account: Id<Account>) -> Result<Tx<Tenant>, Halt> {
    let mut tx = call.read().await?.within(account);
    or_404(tx.this_account().await?, ACCOUNT_NOT_FOUND)?;
    Ok(tx)
}

/// A transaction within an account, which is held until the commit.
async fn begin_within(call: &Call<SuperAdmin>, account: Id<Account>) -> Result<Tx<Tenant>, Halt> {
    let mut tx = call.begin().await?.within(account);
    held_account(&mut tx).await?;
    Ok(tx)
}

/// Show what is switched on for an account
#[utoipa::path(get, path = "/v1/accounts/{account_id}/feature-pack", tag = "accounts", params(AtAccount),
    responses((status = 200, description = "The feature pack", body = ShownFeaturePack), Refusals))]
pub async fn get_feature_pack(call: Call<SuperAdmin>, Path(AtAccount { account_id: id }): Path<AtAccount>) -> Outcome {
    let pack = read_within(&call, id).await?.feature_pack().await?;
    Ok(Answer::of(&ShownFeaturePack { feature_pack: pack.value }).tagged(pack.version))
}

/// Replace what is switched on for an account
///
/// A feature that is absent from a non-empty pack is off, whatever an entitlement says.
#[utoipa::path(put, path = "/v1/accounts/{account_id}/feature-pack", tag = "accounts", params(AtAccount, IfMatch),
    request_body = NewFeaturePack,
    responses((status = 200, description = "The feature pack", body = Stored<ShownFeaturePack>), Refusals))]
pub async fn put_feature_pack(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Body(new): Body<NewFeaturePack>,
) -> Outcome {
    let mut tx = begin_within(&call, id.clone()).await?;
    let before = tx.feature_pack().await?;
    call.expects(before.version)?;
    let before = ShownFeaturePack { feature_pack: before.value };
    let after = ShownFeaturePack { feature_pack: new.into() };
    let version = tx.put_feature_pack(&after.feature_pack).await?;
    tx.audit(setting_of(&id, "Alchemi_AccountFeaturePackTable", Label::Iam), Some(&before), &after).await?;
    call.done_tagged(tx, &stored(after), version).await
}

/// Show which models an account's console may use
#[utoipa::path(get, path = "/v1/accounts/{account_id}/console-model-policy", tag = "accounts", params(AtAccount),
    responses((status = 200, description = "The policy", body = ShownConsoleModelPolicy), Refusals))]
pub async fn get_console_model_policy(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
) -> Outcome {
    let policy = read_within(&call, id).await?.console_model_policy().await?;
    Ok(Answer::of(&ShownConsoleModelPolicy { console_model_policy: policy.value }).tagged(policy.version))
}

/// Replace which models an account's console may use
///
/// In the console domain, `deny_models` always deny, and a non-empty `allow_models`
/// bounds what grants can allow.
#[utoipa::path(put, path = "/v1/accounts/{account_id}/console-model-policy", tag = "accounts", params(AtAccount, IfMatch),
    request_body = ConsoleModelPolicy,
    responses((status = 200, description = "The policy", body = Stored<ShownConsoleModelPolicy>), Refusals))]
pub async fn put_console_model_policy(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Body(new): Body<ConsoleModelPolicy>,
) -> Outcome {
    let mut tx = begin_within(&call, id.clone()).await?;
    let before = tx.console_model_policy().await?;
    call.expects(before.version)?;
    let before = ShownConsoleModelPolicy { console_model_policy: before.value };
    let after = ShownConsoleModelPolicy { console_model_policy: new };
    let version = tx.put_console_model_policy(&after.console_model_policy).await?;
    tx.audit(setting_of(&id, "Alchemi_AccountModelPolicyTable", Label::Console), Some(&before), &after).await?;
    call.done_tagged(tx, &stored(after), version).await
}

/// Show how an account is bound to Zitadel
#[utoipa::path(get, path = "/v1/accounts/{account_id}/zitadel/config", tag = "accounts", params(AtAccount),
    responses((status = 200, description = "The binding", body = ShownZitadelConfig), Refusals))]
pub async fn get_zitadel_config(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
) -> Outcome {
    let (zitadel_config, version) = parts(read_within(&call, id).await?.zitadel_config().await?);
    Ok(Answer::of(&ShownZitadelConfig { zitadel_config }).tagged(version))
}

/// Bind an account to Zitadel
///
/// What is left out stays as it was: `{"enabled": false}` alone switches the binding off, and
/// `{"enabled": true}` on again. Once `organization_id` is set, only roles that
/// this organisation granted count in the account. With `enabled: false`, no token but an
/// operator's acts for the account, and nobody is granted anything in Zitadel.
#[utoipa::path(put, path = "/v1/accounts/{account_id}/zitadel/config", tag = "accounts", params(AtAccount, IfMatch),
    request_body = NewZitadelConfig,
    responses((status = 200, description = "The binding", body = Stored<ShownZitadelConfig>), Refusals))]
pub async fn put_zitadel_config(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Body(new): Body<NewZitadelConfig>,
) -> Outcome {
    let mut tx = begin_within(&call, id.clone()).await?;
    let (before, version) = parts(tx.zitadel_config().await?);
    call.expects(version)?;
    let named = matches!(new.issuer, Field::Set(_));
    let new = new.over(before.clone())?;
    // One that was configured once, and is no more, may stay.
    if let Some(issuer) = new.issuer.as_deref().filter(|_| named) {
        accepted(&call.app, issuer)?;
    }
    let version = tx
        .put_zitadel_config(&new)
        .await
        .map_err(taken("organization_id", "organization_id already assigned to another account"))?;
    let before = ShownZitadelConfig { zitadel_config: before };
    let after = ShownZitadelConfig { zitadel_config: Some(new) };
    tx.audit(setting_of(&id, "Alchemi_AccountZitadelTable", Label::Iam), Some(&before), &after).await?;
    call.done_tagged(tx, &stored(after), version).await
}
