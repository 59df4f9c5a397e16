//! The audit: written in the transaction of the change, chained by hash.

use serde::Serialize;
use serde_json::value::RawValue;

use super::page::{Page, Slice};
use super::{Result, StoreError, Tx, on, run};
use crate::clock::Timestamp;
use crate::context::Tenant;
use crate::model::audit::{Action, AuditActor, AuditEvent, Label};

/// What a change writes into the audit.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// What was done.
    pub action: Action,
    /// The table.
    pub table: &'static str,
    /// The row.
    pub id: &'a str,
    /// The part of the product.
    pub label: Label,
}

/// Which events are wanted.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Only this label.
    pub domain: Option<String>,
    /// Only this actor's subject or e-mail.
    pub actor: Option<String>,
    /// Only this action.
    pub action: Option<String>,
    /// Only this kind of row.
    pub resource_type: Option<String>,
    /// Only this row.
    pub resource_id: Option<String>,
    /// From this moment on.
    pub from: Option<Timestamp>,
    /// Before this moment.
    pub to: Option<Timestamp>,
}

/// Where a chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct AuditVerdict {
    /// Whether every event's hash follows from the one before, and the last one is the head.
    pub valid: bool,
    /// How many events were read.
    pub events: i64,
    /// The first event that does not fit.
    pub broken_at_seq: Option<i64>,
    /// Why.
    pub reason: Option<String>,
}

#[derive(sqlx::FromRow)]
struct AuditRow {
    seq: i64,
    id: String,
    at: Timestamp,
    actor_subject: String,
    actor_issuer: String,
    actor_email: Option<String>,
    actor_roles: String,
    auth_provider: String,
    action: String,
    resource_type: String,
    resource_id: String,
    domain: String,
    before_value: String,
    updated_values: String,
    request_id: Option<String>,
    source_ip: Option<String>,
    hash: String,
}

/// An event with its hash.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The event.
    pub event: AuditEvent,
    /// Its hash.
    pub hash: String,
}

impl TryFrom<AuditRow> for Recorded {
    type Error = StoreError;

    fn try_from(row: AuditRow) -> Result<Self> {
        let unreadable =
            |e: serde_json::Error| StoreError::Unreadable { table: "Alchemi_AuditTable", reason: e.to_string() };
        Ok(Self {
            event: AuditEvent {
                id: row.id,
                seq: row.seq,
                at: row.at,
                actor: AuditActor {
                    subject: row.actor_subject,
                    issuer: row.actor_issuer,
                    email: row.actor_email,
                    roles: serde_json::from_str(&row.actor_roles).map_err(unreadable)?,
                    auth_provider: row.auth_provider,
                },
                action: row.action,
                resource_type: row.resource_type,
                resource_id: row.resource_id,
                domain: row.domain,
                before_value: RawValue::from_string(row.before_value).map_err(unreadable)?,
                updated_values: RawValue::from_string(row.updated_values).map_err(unreadable)?,
                request_id: row.request_id,
                source_ip: row.source_ip,
            },
            hash: row.hash,
        })
    }
}

impl Tx<Tenant> {
    /// Adds an event to the account's chain. `before` and `after` are what the row
    /// was and is; they must hold no secrets.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audit(
        &mut self,
        entry: Entry<'_>,
        before: Option<&impl Serialize>,
        after: &impl Serialize,
    ) -> Result<()> {
        let raw = |value: Result<Box<RawValue>, serde_json::Error>| {
            value.map_err(|e| StoreError::Unreadable { table: "Alchemi_AuditTable", reason: e.to_string() })
        };
        let before = raw(match before {
            Some(before) => serde_json::value::to_raw_value(before),
            None => RawValue::from_string("{}".to_owned()),
        })?;
        let after = raw(serde_json::value::to_raw_value(after))?;
        let (seq, previous) = self.next_link().await?;
        let by = self.acting();
        let event = AuditEvent {
            id: self.new_id::<AuditEvent>().to_string(),
            seq,
            at: self.now(),
            actor: AuditActor {
                subject: by.actor.subject.to_string(),
                issuer: by.actor.issuer.to_string(),
                email: by.actor.email.as_deref().map(str::to_owned),
                roles: by.roles.clone(),
                auth_provider: by.provider.to_owned(),
            },
            action: entry.action.as_str().to_owned(),
            resource_type: entry.table.to_owned(),
            resource_id: entry.id.to_owned(),
            domain: entry.label.as_str().to_owned(),
            before_value: before,
            updated_values: after,
            request_id: by.request_id.as_deref().map(str::to_owned),
            source_ip: by.source_ip.map(|ip| ip.to_string()),
        };
        let hash = event.hash(&previous);
        self.insert_event(&event, &hash).await
    }

    /// Takes the next place in the chain; the head's row stays locked until the commit.
    async fn next_link(&mut self) -> Result<(i64, String)> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"INSERT INTO "Alchemi_AuditHeadTable" (account_id, seq, hash) VALUES ($1, 1, '')
               ON CONFLICT (account_id) DO UPDATE SET seq = "Alchemi_AuditHeadTable".seq + 1
               RETURNING seq, hash"#
        )
        .bind(&account)
        .fetch_one(c)
        .await)
    }

    async fn insert_event(&mut self, event: &AuditEvent, hash: &str) -> Result<()> {
        let account = self.account.clone();
        let roles = serde_json::to_string(&event.actor.roles).unwrap_or_default();
        run!(
            self,
            r#"INSERT INTO "Alchemi_AuditTable" (account_id, seq, id, at, actor_subject, actor_issuer, actor_email,
               actor_roles, auth_provider, action, resource_type, resource_id, domain, before_value, updated_values,
               request_id, source_ip, hash)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)"#,
            &account,
            event.seq,
            &event.id,
            event.at,
            &event.actor.subject,
            &event.actor.issuer,
            &event.actor.email,
            &roles,
            &event.actor.auth_provider,
            &event.action,
            &event.resource_type,
            &event.resource_id,
            &event.domain,
            event.before_value.get(),
            event.updated_values.get(),
            &event.request_id,
            &event.source_ip,
            hash
        )?;
        run!(self, r#"UPDATE "Alchemi_AuditHeadTable" SET hash = $2 WHERE account_id = $1"#, &account, hash)?;
        Ok(())
    }

    /// Events that match, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn events(&mut self, filter: &AuditFilter, slice: &Slice) -> Result<Page<Recorded>> {
        let account = self.account.clone();
        let (at, id) = slice.before();
        let rows: Vec<AuditRow> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_AuditTable" WHERE account_id = "#);
            q.push_bind(&account).push(" AND (at, id) < (").push_bind(at).push(", ").push_bind(&id).push(")");
            for (column, value) in [
                (" AND domain = ", &filter.domain),
                (" AND action = ", &filter.action),
                (" AND resource_type = ", &filter.resource_type),
                (" AND resource_id = ", &filter.resource_id),
            ] {
                if let Some(value) = value {
                    q.push(column).push_bind(value);
                }
            }
            if let Some(actor) = &filter.actor {
                q.push(" AND (actor_subject = ").push_bind(actor).push(" OR actor_email = ").push_bind(actor).push(")");
            }
            if let Some(from) = filter.from {
                q.push(" AND at >= ").push_bind(from);
            }
            if let Some(to) = filter.to {
                q.push(" AND at < ").push_bind(to);
            }
            q.push(" ORDER BY at DESC, id DESC LIMIT ")
                .push_bind(slice.fetch())
                .push(" OFFSET ")
                .push_bind(slice.skip());
            q.build_query_as().fetch_all(c).await
        })?;
        let events = rows.into_iter().map(Recorded::try_from).collect::<Result<Vec<_>>>()?;
        Ok(slice.page(events, |r| (r.event.at, &r.event.id)))
    }

    /// A run of the chain in its own order, from behind `after`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn chain(&mut self, after: i64, limit: u32) -> Result<Vec<Recorded>> {
        let account = self.account.clone();
        let rows: Vec<AuditRow> = on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_AuditTable" WHERE account_id = $1 AND seq > $2 ORDER BY seq LIMIT $3"#
        )
        .bind(&account)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(c)
        .await)?;
        rows.into_iter().map(Recorded::try_from).collect()
    }

    /// Recomputes the account's chain from its first event to its head.
    ///
    /// # Errors
    /// [`StoreError`]; a chain that does not hold is a verdict, not an error.
    pub async fn verify_audit(&mut self) -> Result<AuditVerdict> {
        let (mut seq, mut hash) = (0_i64, String::new());
        let broken = |events, at, reason: &str| AuditVerdict {
            valid: false,
            events,
            broken_at_seq: Some(at),
            reason: Some(reason.to_owned()),
        };
        loop {
            let run = self.chain(seq, 500).await?;
            if run.is_empty() {
                break;
            }
            for recorded in run {
                let at = recorded.event.seq;
                if at != seq + 1 {
                    return Ok(broken(seq, seq + 1, "an event is missing"));
                }
                if recorded.event.hash(&hash) != recorded.hash {
                    return Ok(broken(seq, at, "the event was changed after it was written"));
                }
                (seq, hash) = (at, recorded.hash);
            }
        }
        let account = self.account.clone();
        let head: Option<(i64, String)> =
            on!(self, |c| sqlx::query_as(r#"SELECT seq, hash FROM "Alchemi_AuditHeadTable" WHERE account_id = $1"#)
                .bind(&account)
                .fetch_optional(c)
                .await)?;
        if head.unwrap_or_default() != (seq, hash) {
            return Ok(broken(seq, seq + 1, "events at the end are missing"));
        }
        Ok(AuditVerdict { valid: true, events: seq, broken_at_seq: None, reason: None })
    }
}
