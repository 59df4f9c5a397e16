//! Who delivers messages.

use std::error::Error as _;
use std::hash::BuildHasher;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;

use super::Alerts;
use crate::context::Granted;
use crate::model::alerts::{AlertDelivery, AlertWebhook, DeliveryState, SigningSecret};
use crate::outbound::Refused;
use crate::store::StoreError;
use crate::store::alerts::Attempted;

/// How many messages are sent side by side.
const MOST: u32 = 32;

/// For how long, beyond the time that a receiver has, a message is left to who took it.
const GRACE: Duration = Duration::from_secs(20);

impl Alerts {
    /// Delivers what is due, message by message.
    ///
    /// # Errors
    /// [`StoreError`]; what was sent and could not be noted is sent again.
    pub async fn deliver(&self) -> Result<(), StoreError> {
        if !self.store.read(&Granted::system()).await?.has_due_deliveries().await? {
            return Ok(());
        }
        let mut tx = self.store.begin(&Granted::system()).await?;
        let until = tx.now().plus(Duration::from_millis(self.config.timeout_ms) + GRACE);
        let taken = tx.take_deliveries(until, MOST).await?;
        let mut accounts: Vec<_> = taken.iter().map(|delivery| delivery.account_id.clone()).collect();
        accounts.sort_unstable();
        accounts.dedup();
        let webhooks = tx.alert_webhooks_of(&accounts).await?;
        let of = |delivery: &AlertDelivery| webhooks.iter().find(|w| w.enabled && w.account_id == delivery.account_id);
        // Paused since they were taken.
        for delivery in taken.iter().filter(|delivery| of(delivery).is_none()) {
            tx.put_back_delivery(delivery).await?;
        }
        tx.commit().await?;
        let sending = taken.iter().filter_map(|delivery| Some(self.attempt(of(delivery)?, delivery)));
        let attempts = join_all(sending).await;
        let mut tx = self.store.begin(&Granted::system()).await?;
        for (delivery, how) in &attempts {
            tx.attempted(delivery, how).await?;
        }
        tx.commit().await
    }

    async fn attempt<'a>(&self, webhook: &AlertWebhook, delivery: &'a AlertDelivery) -> (&'a AlertDelivery, Attempted) {
        let sent = self.send(webhook, delivery).await;
        let now = self.clock.now();
        let how = match sent {
            Ok(status) => {
                self.counts.delivered.fetch_add(1, Ordering::Relaxed);
                let state = DeliveryState::Delivered;
                Attempted { state, next_attempt_at: now, status: Some(i64::from(status)), error: None }
            }
            Err(Failure { status, error }) => {
                self.counts.failures.fetch_add(1, Ordering::Relaxed);
                let last = delivery.attempts >= i64::from(self.config.attempts);
                if last {
                    self.counts.given_up.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(
                        account = %delivery.account_id, delivery = %delivery.id, error,
                        "an alert was not delivered, and is not tried again"
                    );
                }
                let state = if last { DeliveryState::Failed } else { DeliveryState::Pending };
                let next_attempt_at = now.plus(self.pause(delivery));
                Attempted { state, next_attempt_at, status: status.map(i64::from), error: Some(error) }
            }
        };
        (delivery, how)
    }

    /// Sends a message; gives the status of its success.
    async fn send(&self, webhook: &AlertWebhook, delivery: &AlertDelivery) -> Result<u16, Failure> {
        // Rules may have changed since the address was written, and literal addresses are not looked up.
        let url = self.rules.check(&webhook.url).map_err(|refused| Failure::of(refused.to_string()))?;
        let secret = self.keys.open(&webhook.sealed.envelope, webhook.place()).ok();
        let secret: Option<SigningSecret> =
            secret.and_then(|bytes| std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()));
        let secret = secret.ok_or_else(|| Failure::of("the signing secret cannot be opened".to_owned()))?;
        let at = self.clock.now().as_secs();
        let signature = secret.sign(delivery.id.as_str(), at, &delivery.payload);
        let request = self
            .client
            .post(url)
            .header("content-type", "application/json")
            .header("webhook-id", delivery.id.as_str())
            .header("webhook-timestamp", at.to_string())
            .header("webhook-signature", signature)
            .body(delivery.payload.clone());
        let answer = request.send().await.map_err(|error| Failure::of(reason(&error).to_owned()))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(status.as_u16());
        }
        let error = format!("the receiver answered with status {}", status.as_u16());
        Err(Failure { status: Some(status.as_u16()), error })
    }

    /// Twice as long after each attempt, and between a half and the whole of it, so that
    /// messages that failed together do not come back together.
    fn pause(&self, delivery: &AlertDelivery) -> Duration {
        let doublings = u32::try_from(delivery.attempts.saturating_sub(1)).unwrap_or(0).min(32);
        let full = self.config.retry_ms.saturating_mul(1 << doublings).min(self.config.longest_retry_ms);
        let spread = foldhash::fast::FixedState::default().hash_one((delivery.id.as_str(), delivery.attempts)) % 1_000;
        Duration::from_millis(full / 2 + full.saturating_mul(spread) / 2_000)
    }
}

/// Why a message did not arrive; the text repeats neither address nor answer.
struct Failure {
    status: Option<u16>,
    error: String,
}

impl Failure {
    fn of(error: String) -> Self {
        Self { status: None, error }
    }
}

fn reason(error: &reqwest::Error) -> &'static str {
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.is::<Refused>() {
            return "the address leads to where the gateway does not allow";
        }
        source = cause.source();
    }
    if error.is_timeout() {
        "the receiver did not answer in time"
    } else if error.is_connect() {
        "the receiver cannot be reached"
    } else {
        "the connection broke"
    }
}
