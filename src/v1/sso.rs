//! `/v1/accounts/{account_id}/sso`: how people of an account sign on.

use serde::{Deserialize, Serialize};

use super::accounts::{AtAccount, held_account};
use super::answer::{Answer, Outcome, Refusals, StatusOk};
use super::call::{Call, IfMatch, SuperAdmin};
use super::input::{Body, Path};
use crate::model::audit::{Action, Label};
use crate::model::sso::{SsoChange, SsoConfig, SsoSettings};
use crate::model::text::{Name, blank_is_none};
use crate::problem::Problem;
use crate::secret::SecretObject;
use crate::store::audit::Entry;

/// How people are to sign on. Provider and `enabled` replace what was; settings merge.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "sso_provider": "google",
    "enabled": true,
    "sso_settings": {"google_client_id": "9241.apps.example.com", "google_client_secret": "the secret"}
}))]
pub struct NewSsoConfig {
    /// Such as `google`, `microsoft`, `okta` or `generic`.
    #[serde(default, deserialize_with = "blank_is_none")]
    #[schema(value_type = Option<String>, example = "google")]
    sso_provider: Option<Name>,
    #[serde(default)]
    enabled: bool,
    /// Merges with the settings: `null` removes one; a blank text or a mask keeps it.
    /// What is secret by its name is kept sealed and shown as eight bullets. URLs are
    /// `https` and lead outside.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    sso_settings: Option<SecretObject>,
}

/// `{"status": "ok", "deleted": true}`
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct SsoDeleted {
    #[serde(flatten)]
    status: StatusOk,
    /// Whether there was something to delete.
    deleted: bool,
}

fn entry(action: Action, account: &str) -> Entry<'_> {
    Entry { action, table: SsoConfig::TABLE, id: account, label: Label::Iam }
}

/// Show how people of an account sign on
///
/// An account without settings, or one that does not exist, shows an empty set.
#[utoipa::path(get, path = "/v1/accounts/{account_id}/sso", tag = "accounts", params(AtAccount),
    responses((status = 200, description = "The settings", body = SsoConfig), Refusals))]
pub async fn get_account_sso(call: Call<SuperAdmin>, Path(AtAccount { account_id: id }): Path<AtAccount>) -> Outcome {
    let stored = call.read().await?.within(id.clone()).sso_config().await?;
    let config = stored.unwrap_or_else(|| SsoConfig::none(id));
    Ok(Answer::of(&config).tagged(config.version))
}

/// Set how people of an account sign on
///
/// The secrets are sealed under the operator's key; without one, settings that have
/// secrets are refused with 503 `secrets_not_configured`.
#[utoipa::path(post, path = "/v1/accounts/{account_id}/sso", tag = "accounts", params(AtAccount, IfMatch),
    request_body = NewSsoConfig,
    responses((status = 200, description = "They are set", body = StatusOk), Refusals))]
pub async fn put_account_sso(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
    Body(new): Body<NewSsoConfig>,
) -> Outcome {
    let SsoChange { shown, secret } = SsoChange::new(new.sso_settings.unwrap_or_default(), &call.app.outbound)?;
    let keys = &call.app.secrets;
    let mut tx = call.begin().await?.within(id.clone());
    held_account(&mut tx).await?;
    let before = tx.sso_config().await?;
    call.expects(before.as_ref().map_or(0, |config| config.version))?;
    let mut after = before.clone().unwrap_or_else(|| SsoConfig::none(id.clone()));
    after.id.get_or_insert_with(|| tx.new_id());
    after.sso_provider = new.sso_provider.map(Name::into_string);
    after.enabled = new.enabled;
    let SsoSettings { shown: old, secret_keys } = after.sso_settings;
    after.sso_settings = SsoSettings { shown: SsoChange::over(old, shown), secret_keys };
    if !secret.is_empty() {
        let stored = SecretObject::opened(after.sealed.as_ref(), after.place(), keys).map_err(Problem::from)?;
        let secret = stored.merged(secret, "/sso_settings")?;
        after.sso_settings.secret_keys = secret.names();
        after.sealed = secret.sealed(after.place(), keys).map_err(Problem::from)?;
    }
    let after = tx.put_sso_config(&after).await?;
    tx.audit(entry(Action::Upsert, id.as_str()), before.as_ref(), &after).await?;
    call.done_tagged(tx, &StatusOk::OK, after.version).await
}

/// Remove how people of an account sign on
#[utoipa::path(delete, path = "/v1/accounts/{account_id}/sso", tag = "accounts", params(AtAccount, IfMatch),
    responses((status = 200, description = "Whether there was something to remove", body = SsoDeleted), Refusals))]
pub async fn delete_account_sso(
    call: Call<SuperAdmin>,
    Path(AtAccount { account_id: id }): Path<AtAccount>,
) -> Outcome {
    let mut tx = call.begin().await?.within(id.clone());
    let before = tx.sso_config().await?;
    call.expects(before.as_ref().map_or(0, |config| config.version))?;
    let deleted = tx.delete_sso_config().await?;
    if let Some(before) = &before {
        tx.audit(entry(Action::Delete, id.as_str()), Some(before), &serde_json::json!({})).await?;
    }
    call.done(tx, &SsoDeleted { status: StatusOk::OK, deleted }).await
}
