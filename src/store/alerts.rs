//! Where alerts are sent, what was told, and how far each message is.

use std::collections::HashSet;

use super::changes::ChangeKind;
use super::page::{Page, Slice};
use super::policies::{json, read};
use super::{Result, StoreError, Tx, columns, from_columns, list, of_accounts, on, run};
use crate::clock::Timestamp;
use crate::context::{Platform, Tenant};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::alerts::{AlertDelivery, AlertEvent, AlertWebhook, DeliveryState, Reached};
use crate::model::scope::{Scope, ScopeType};
use crate::secret::Sealed;

columns::stored_as_name!(AlertEvent, DeliveryState);

struct WebhookRow {
    account_id: Id<Account>,
    id: Id<AlertWebhook>,
    url: String,
    enabled: bool,
    thresholds: String,
    secret_json: String,
    secret_key_id: String,
    created_by: Option<String>,
    created_at: Timestamp,
    updated_at: Timestamp,
    version: i64,
}

/// A webhook whose account's counters are to be looked at.
#[derive(Debug, Clone)]
pub struct Watch {
    /// The account.
    pub account_id: Id<Account>,
    /// When somebody looked last.
    pub observed_at: Timestamp,
}

struct ReachedRow {
    scope_type: ScopeType,
    scope_id: String,
    window_start: Timestamp,
    threshold: i64,
}

from_columns! {
    WebhookRow {
        account_id, id, url, enabled, thresholds, secret_json, secret_key_id, created_by, created_at, updated_at,
        version,
    }
    Watch { account_id, observed_at }
    ReachedRow { scope_type, scope_id, window_start, threshold }
    AlertDelivery {
        id, account_id, event, scope_type, scope_id, threshold, window_start, state, attempts, next_attempt_at,
        last_status, last_error, delivered_at, created_at, payload,
    }
}

impl TryFrom<WebhookRow> for AlertWebhook {
    type Error = StoreError;

    fn try_from(row: WebhookRow) -> Result<Self> {
        Ok(Self {
            thresholds: read(Self::TABLE, &row.thresholds)?,
            id: row.id,
            account_id: row.account_id,
            url: row.url,
            enabled: row.enabled,
            created_by: row.created_by,
            created_at: row.created_at,
            updated_at: row.updated_at,
            version: row.version,
            sealed: Sealed { key_id: row.secret_key_id, envelope: row.secret_json },
        })
    }
}

/// How an attempt to deliver went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempted {
    /// What comes of the delivery.
    pub state: DeliveryState,
    /// When it is tried next, if it is still pending.
    pub next_attempt_at: Timestamp,
    /// What the receiver answered.
    pub status: Option<i64>,
    /// Why it failed.
    pub error: Option<String>,
}

impl<R> Tx<R> {
    /// The webhooks of several accounts.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn alert_webhooks_of(&mut self, accounts: &[Id<Account>]) -> Result<Vec<AlertWebhook>> {
        let rows: Vec<WebhookRow> =
            of_accounts!(self, r#"SELECT * FROM "Alchemi_AlertWebhookTable" WHERE account_id IN ("#, accounts, ")")?;
        rows.into_iter().map(TryInto::try_into).collect()
    }
}

impl Tx<Tenant> {
    /// Where the account's alerts are sent.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn alert_webhook(&mut self) -> Result<Option<AlertWebhook>> {
        let account = self.account.clone();
        Ok(self.alert_webhooks_of(std::slice::from_ref(&account)).await?.pop())
    }

    /// Says where the account's alerts are sent from now on; its counters are looked at soon.
    ///
    /// # Errors
    /// [`StoreError::ForeignKey`] when the account is gone.
    pub async fn put_alert_webhook(&mut self, webhook: &AlertWebhook) -> Result<AlertWebhook> {
        let (account, now, thresholds) = (self.account.clone(), self.now, json(&webhook.thresholds));
        let row: WebhookRow = on!(self, |c| {
            sqlx::query_as(
                r#"INSERT INTO "Alchemi_AlertWebhookTable" AS w (account_id, id, url, enabled, thresholds, secret_json,
                   secret_key_id, created_by, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
                   ON CONFLICT (account_id) DO UPDATE SET url = excluded.url, enabled = excluded.enabled,
                   thresholds = excluded.thresholds, secret_json = excluded.secret_json,
                   secret_key_id = excluded.secret_key_id, observed_at = 0, updated_at = excluded.updated_at,
                   version = w.version + 1 RETURNING *"#,
            )
            .bind(&account)
            .bind(&webhook.id)
            .bind(&webhook.url)
            .bind(webhook.enabled)
            .bind(&thresholds)
            .bind(&webhook.sealed.envelope)
            .bind(&webhook.sealed.key_id)
            .bind(&webhook.created_by)
            .bind(now)
            .fetch_one(c)
            .await
        })?;
        self.changed(ChangeKind::Alerts);
        row.try_into()
    }

    /// Sends the account's alerts nowhere any more; what was not delivered never is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_alert_webhook(&mut self) -> Result<bool> {
        let account = self.account.clone();
        run!(
            self,
            r#"UPDATE "Alchemi_AlertDeliveryTable" SET state = 'failed', last_error = 'the webhook was removed'
               WHERE account_id = $1 AND state = 'pending'"#,
            &account
        )?;
        Ok(run!(self, r#"DELETE FROM "Alchemi_AlertWebhookTable" WHERE account_id = $1"#, &account)? > 0)
    }

    /// Messages of `state`, or all of them, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn alert_deliveries(
        &mut self,
        state: Option<DeliveryState>,
        slice: &Slice,
    ) -> Result<Page<AlertDelivery>> {
        list!(self, slice, AlertDelivery in "Alchemi_AlertDeliveryTable"; state = state)
    }

    /// Writes a message down. `false`: the same threshold was told before, in the same window.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn insert_alert_delivery(
        &mut self,
        delivery: &AlertDelivery,
        window_end: Option<Timestamp>,
    ) -> Result<bool> {
        let account = self.account.clone();
        let written = run!(
            self,
            r#"INSERT INTO "Alchemi_AlertDeliveryTable" (account_id, id, event, scope_type, scope_id, window_start,
               window_end, threshold, payload, state, next_attempt_at, created_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'pending', $10, $11)
               ON CONFLICT (account_id, scope_type, scope_id, window_start, threshold) DO NOTHING"#,
            &account,
            &delivery.id,
            delivery.event,
            delivery.scope_type,
            &delivery.scope_id,
            delivery.window_start,
            window_end,
            delivery.threshold,
            &delivery.payload,
            delivery.next_attempt_at,
            delivery.created_at
        )?;
        Ok(written > 0)
    }

    /// What was told of windows that began at `from` or later.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn told_alerts(&mut self, from: Timestamp) -> Result<HashSet<Reached>> {
        let account = self.account.clone();
        let rows: Vec<ReachedRow> = on!(self, |c| sqlx::query_as(
            r#"SELECT scope_type, scope_id, window_start, threshold FROM "Alchemi_AlertDeliveryTable"
               WHERE account_id = $1 AND event = 'alert' AND window_start >= $2"#
        )
        .bind(&account)
        .bind(from)
        .fetch_all(c)
        .await)?;
        let reached = |row: ReachedRow| {
            let threshold = u16::try_from(row.threshold).unwrap_or(u16::MAX);
            (Scope::new(row.scope_type, row.scope_id), row.window_start, threshold)
        };
        Ok(rows.into_iter().map(reached).collect())
    }

    /// Takes it on to look at the account's counters of windows from `from` on, unless
    /// somebody else has since `watch` was read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take_watch(&mut self, watch: &Watch, from: Timestamp) -> Result<bool> {
        let (account, now) = (self.account.clone(), self.now);
        let taken = run!(
            self,
            r#"UPDATE "Alchemi_AlertWebhookTable" SET observed_at = $3, observed_from = $4
               WHERE account_id = $1 AND observed_at = $2 AND enabled = TRUE"#,
            &account,
            watch.observed_at,
            now,
            from
        )?;
        Ok(taken > 0)
    }
}

impl Tx<Platform> {
    /// Webhooks whose account's counters have changed since somebody looked, or that nobody
    /// looked at since `stale`. A change may be committed `slack` after its moment.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn due_watches(&mut self, stale: Timestamp, slack: i64, limit: u32) -> Result<Vec<Watch>> {
        on!(self, |c| sqlx::query_as(
            r#"SELECT w.account_id, w.observed_at FROM "Alchemi_AlertWebhookTable" w
               WHERE w.enabled = TRUE AND (w.observed_at <= $1 OR EXISTS (
               SELECT 1 FROM "Alchemi_AllocationCounterTable" c WHERE c.account_id = w.account_id
               AND c.window_start >= w.observed_from AND c.updated_at >= w.observed_at - $2))
               ORDER BY w.observed_at, w.account_id LIMIT $3"#
        )
        .bind(stale)
        .bind(slack)
        .bind(i64::from(limit))
        .fetch_all(c)
        .await)
    }

    /// Whether any account has a webhook.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn has_alert_webhooks(&mut self) -> Result<bool> {
        let any: Option<i64> =
            on!(self, |c| sqlx::query_scalar(r#"SELECT CAST(1 AS BIGINT) FROM "Alchemi_AlertWebhookTable" LIMIT 1"#)
                .fetch_optional(c)
                .await)?;
        Ok(any.is_some())
    }

    /// Whether a message is to be tried now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn has_due_deliveries(&mut self) -> Result<bool> {
        let now = self.now;
        let due: Option<i64> = on!(self, |c| sqlx::query_scalar(
            r#"SELECT CAST(1 AS BIGINT) FROM "Alchemi_AlertDeliveryTable" d
               JOIN "Alchemi_AlertWebhookTable" w ON w.account_id = d.account_id
               WHERE d.state = 'pending' AND d.next_attempt_at <= $1 AND w.enabled = TRUE LIMIT 1"#
        )
        .bind(now)
        .fetch_optional(c)
        .await)?;
        Ok(due.is_some())
    }

    /// Takes messages that are due, and counts the attempt. Who has not said by `until` how
    /// it went is taken for dead, and others try again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take_deliveries(&mut self, until: Timestamp, limit: u32) -> Result<Vec<AlertDelivery>> {
        let now = self.now;
        // Said twice: of two who chose the same row, the second one finds it changed.
        on!(self, |c| sqlx::query_as(
            r#"UPDATE "Alchemi_AlertDeliveryTable" SET attempts = attempts + 1, next_attempt_at = $2
               WHERE state = 'pending' AND next_attempt_at <= $1 AND (account_id, id) IN (
               SELECT d.account_id, d.id FROM "Alchemi_AlertDeliveryTable" d
               JOIN "Alchemi_AlertWebhookTable" w ON w.account_id = d.account_id
               WHERE d.state = 'pending' AND d.next_attempt_at <= $1 AND w.enabled = TRUE
               ORDER BY d.next_attempt_at, d.id LIMIT $3) RETURNING *"#
        )
        .bind(now)
        .bind(until)
        .bind(i64::from(limit))
        .fetch_all(c)
        .await)
    }

    /// Puts back a message that was taken and is not tried.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_back_delivery(&mut self, delivery: &AlertDelivery) -> Result<()> {
        let now = self.now;
        run!(
            self,
            r#"UPDATE "Alchemi_AlertDeliveryTable" SET attempts = attempts - 1, next_attempt_at = $4
               WHERE account_id = $1 AND id = $2 AND state = 'pending' AND attempts = $3"#,
            &delivery.account_id,
            &delivery.id,
            delivery.attempts,
            now
        )?;
        Ok(())
    }

    /// Notes how an attempt went, unless another one has begun since.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn attempted(&mut self, delivery: &AlertDelivery, how: &Attempted) -> Result<()> {
        let delivered_at = (how.state == DeliveryState::Delivered).then_some(self.now);
        run!(
            self,
            r#"UPDATE "Alchemi_AlertDeliveryTable" SET state = $4, next_attempt_at = $5, last_status = $6,
               last_error = $7, delivered_at = $8
               WHERE account_id = $1 AND id = $2 AND state = 'pending' AND attempts = $3"#,
            &delivery.account_id,
            &delivery.id,
            delivery.attempts,
            how.state,
            how.next_attempt_at,
            how.status,
            &how.error,
            delivered_at
        )?;
        Ok(())
    }

    /// Forgets messages that were written before `before` and are done with, once the window
    /// that they are about has ended, too.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_alert_deliveries(&mut self, before: Timestamp) -> Result<u64> {
        run!(
            self,
            r#"DELETE FROM "Alchemi_AlertDeliveryTable" WHERE state <> 'pending' AND created_at < $1
               AND (event = 'test' OR window_end < $1)"#,
            before
        )
    }
}
