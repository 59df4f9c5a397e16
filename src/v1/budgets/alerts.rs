//! Where an account's alerts are sent, and what became of them.

use serde::Deserialize;

use super::{acting, entry};
use crate::model::alerts::{AlertDelivery, AlertWebhook, DEFAULT_THRESHOLDS, DeliveryState, Message, SigningSecret};
use crate::model::audit::Action;
use crate::problem::Problem;
use crate::secret::{Sealed, secret_in_query};
use crate::v1::answer::{Answer, Deleted, Item, Items, Outcome, Refusals, or_404};
use crate::v1::call::{Call, CopilotAdmin, IfMatch};
use crate::v1::input::{Body, PageParams, Paging, Query, require};
use crate::v1::trial::{Trial, Tried};

const NOT_FOUND: &str = "The account has no alert webhook";

/// How many thresholds there may be.
const MOST_THRESHOLDS: usize = 10;

/// Where alerts are sent from now on.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "url": "https://hooks.example.com/budgets",
    "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "thresholds": [80, 90, 100]
}))]
pub struct NewAlertWebhook {
    /// An `https` URL that leads outside. It is shown and audited, so that it cannot hold a secret in
    /// its query: the receiver knows a delivery by its signature.
    #[schema(example = "https://hooks.example.com/budgets")]
    url: String,
    /// What deliveries are signed with: `whsec_` and 24 to 64 random bytes in base64. It is
    /// kept sealed and never shown. Absent or null: as it was.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    secret: Option<NewSecret>,
    /// Whether alerts are sent; else they wait. Absent or null: as it was, at first true.
    #[serde(default)]
    enabled: Option<bool>,
    /// At how many per cent of what is allocated; each 1 to 1000 and once. Absent or null: as they
    /// were, at first 80, 90 and 100.
    #[serde(default)]
    #[schema(min_items = 1, max_items = 10)]
    thresholds: Option<Vec<u16>>,
}

/// A signing secret as it is sent; no error repeats it.
#[derive(Debug)]
struct NewSecret(SigningSecret);

impl<'de> Deserialize<'de> for NewSecret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = |_| serde::de::Error::custom(crate::model::alerts::SigningSecretError);
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text.parse().map(Self).map_err(wrong),
            _ => Err(wrong(crate::model::alerts::SigningSecretError)),
        }
    }
}

/// In order, each once.
fn checked(mut thresholds: Vec<u16>) -> Result<Vec<u16>, Problem> {
    thresholds.sort_unstable();
    let bounded =
        (1..=MOST_THRESHOLDS).contains(&thresholds.len()) && thresholds.iter().all(|t| (1..=1000).contains(t));
    let distinct = thresholds.windows(2).all(|pair| pair.first() != pair.last());
    require(bounded && distinct, "/thresholds", "must be 1 to 10 different whole numbers from 1 to 1000")?;
    Ok(thresholds)
}

/// Which deliveries.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct OfState {
    /// Only of this state.
    state: Option<DeliveryState>,
}

/// Show where alerts are sent
#[utoipa::path(get, path = "/v1/budgets/copilot/alerts/webhook", tag = "budgets",
    responses((status = 200, description = "The webhook, or null", body = Item<Option<AlertWebhook>>), Refusals))]
pub async fn get_alert_webhook(call: Call<CopilotAdmin>) -> Outcome {
    let item = call.read().await?.alert_webhook().await?;
    let version = item.as_ref().map(|webhook| webhook.version);
    Ok(version.into_iter().fold(Answer::of(&Item { item }), Answer::tagged))
}

/// Say where alerts are sent
///
/// Whenever a budget of the account reaches one of the thresholds in its window, of its
/// effective credits, a message is posted to the URL, once for each threshold and
/// window; also for those that are reached already. It is signed as
/// [Standard Webhooks](https://www.standardwebhooks.com) says: `webhook-signature` is
/// `v1,` and the HMAC-SHA256 of `webhook-id`, `webhook-timestamp` and the body, joined
/// by dots. It is tried again until the receiver answers with a 2xx, with growing pauses:
/// one that was received before is known by its `webhook-id`. Redirects are not followed.
#[utoipa::path(put, path = "/v1/budgets/copilot/alerts/webhook", tag = "budgets", params(Trial, IfMatch),
    request_body = NewAlertWebhook,
    responses((status = 200, description = "The webhook", body = Tried<Item<AlertWebhook>>), Refusals))]
pub async fn put_alert_webhook(
    call: Call<CopilotAdmin>,
    Query(trial): Query<Trial>,
    Body(new): Body<NewAlertWebhook>,
) -> Outcome {
    let NewAlertWebhook { url, secret, enabled, thresholds } = new;
    let url = call.app.outbound.check(&url).map_err(|refused| Problem::invalid("/url", refused.to_string()))?;
    if let Some(name) = secret_in_query(&url) {
        let detail = format!("would show a secret in its query, `{name}`: deliveries are known by their signature");
        return Err(Problem::invalid("/url", detail).into());
    }
    let thresholds = thresholds.map(checked).transpose()?;
    let mut tx = call.begin_or_try(&trial).await?;
    let before = tx.alert_webhook().await?;
    call.expects(before.as_ref().map_or(0, |webhook| webhook.version))?;
    let mut webhook = match &before {
        Some(before) => before.clone(),
        None => AlertWebhook {
            id: tx.new_id(),
            account_id: tx.account().clone(),
            url: String::new(),
            enabled: true,
            thresholds: DEFAULT_THRESHOLDS.to_vec(),
            created_by: acting(&tx),
            created_at: tx.now(),
            updated_at: tx.now(),
            version: 1,
            sealed: Sealed { key_id: String::new(), envelope: String::new() },
        },
    };
    webhook.url = url.into();
    webhook.enabled = enabled.unwrap_or(webhook.enabled);
    webhook.thresholds = thresholds.unwrap_or(webhook.thresholds);
    require(secret.is_some() || before.is_some(), "/secret", "is required: there is none yet")?;
    if let Some(NewSecret(secret)) = secret {
        let sealed = call.app.secrets.seal(secret.expose().as_bytes(), webhook.place());
        webhook.sealed = sealed.map_err(Problem::from)?;
    }
    let after = tx.put_alert_webhook(&webhook).await?;
    tx.audit(entry(Action::Upsert, AlertWebhook::TABLE, after.id.as_str()), before.as_ref(), &after).await?;
    call.done_tagged(tx, &Item { item: &after }, after.version).await
}

/// Send alerts nowhere
///
/// What is not delivered yet never is.
#[utoipa::path(delete, path = "/v1/budgets/copilot/alerts/webhook", tag = "budgets", params(Trial, IfMatch),
    responses((status = 200, description = "Whether there was a webhook", body = Tried<Deleted>), Refusals))]
pub async fn delete_alert_webhook(call: Call<CopilotAdmin>, Query(trial): Query<Trial>) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let before = tx.alert_webhook().await?;
    call.expects(before.as_ref().map_or(0, |webhook| webhook.version))?;
    let deleted = tx.delete_alert_webhook().await?;
    if let Some(gone) = &before {
        let gone_by = entry(Action::Delete, AlertWebhook::TABLE, gone.id.as_str());
        tx.audit(gone_by, Some(gone), &serde_json::json!({})).await?;
    }
    call.done(tx, &Deleted { deleted }).await
}

/// Try whether alerts arrive
///
/// Sends a message of type `webhook.test`, by the same way as alerts: look at the
/// deliveries for what came of it.
#[utoipa::path(post, path = "/v1/budgets/copilot/alerts/webhook/test", tag = "budgets", params(Trial),
    responses((status = 200, description = "The delivery, which is pending", body = Tried<Item<AlertDelivery>>), Refusals))]
pub async fn test_alert_webhook(call: Call<CopilotAdmin>, Query(trial): Query<Trial>) -> Outcome {
    let mut tx = call.begin_or_try(&trial).await?;
    let webhook = or_404(tx.alert_webhook().await?, NOT_FOUND)?;
    let data = serde_json::json!({ "account_id": tx.account() });
    let body = Message { kind: "webhook.test", timestamp: tx.now(), data };
    let payload = serde_json::to_string(&body).unwrap_or_default();
    let delivery = AlertDelivery::test(tx.new_id(), webhook.account_id, payload, tx.now());
    tx.insert_alert_delivery(&delivery, None).await?;
    tx.audit(entry(Action::Create, AlertDelivery::TABLE, delivery.id.as_str()), None::<&()>, &delivery).await?;
    call.done(tx, &Item { item: &delivery }).await
}

/// List what was sent
///
/// Messages that are done with are kept for a month, and for as long as the window lasts
/// that they are about.
#[utoipa::path(get, path = "/v1/budgets/copilot/alerts/deliveries", tag = "budgets", params(OfState, PageParams),
    responses((status = 200, description = "A page of deliveries, newest first", body = Items<AlertDelivery>), Refusals))]
pub async fn list_alert_deliveries(
    call: Call<CopilotAdmin>,
    Query(of): Query<OfState>,
    Paging(slice): Paging<100>,
) -> Outcome {
    let deliveries = call.read().await?.alert_deliveries(of.state, &slice).await?;
    Ok(Answer::of(&Items::from(deliveries)))
}
