//! The audit: written in the transaction of the change, chained by hash.
//!
//! Each account has its own chain, which outlives it; what belongs to no account
//! goes into the operator's chain, kept under [`platform`].

use serde::Serialize;
use serde_json::value::RawValue;

use super::page::{Page, Slice};
use super::{Result, StoreError, Tx, on, run};
use crate::clock::Timestamp;
use crate::context::{Platform, Tenant};
use crate::id::Id;
use crate::model::accounts::Account;
use crate::model::audit::{Action, AuditActor, AuditEvent, Label, Recorded, redacted};

/// The account id under which the operator's own events are chained. No account
/// has it: accounts are given UUIDs.
pub fn platform() -> Id<Account> {
    Id::stored("platform")
}

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
    pub label: Option<Label>,
    /// Only this actor, by subject or e-mail.
    pub actor: Option<String>,
    /// Only this action.
    pub action: Option<Action>,
    /// Only this row, or this table.
    pub resource: Option<String>,
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
    /// How many events hold.
    pub events: i64,
    /// The place of the first event that does not.
    pub broken_at_seq: Option<i64>,
    /// Why.
    pub reason: Option<String>,
}

impl AuditVerdict {
    fn broken(events: i64, at: i64, reason: &str) -> Self {
        Self { valid: false, events, broken_at_seq: Some(at), reason: Some(reason.to_owned()) }
    }
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

fn unreadable(error: serde_json::Error) -> StoreError {
    StoreError::Unreadable { table: "Alchemi_AuditTable", reason: error.to_string() }
}

impl TryFrom<AuditRow> for Recorded {
    type Error = StoreError;

    fn try_from(row: AuditRow) -> Result<Self> {
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

impl Tx<Platform> {
    /// Adds an event to the operator's own chain; what concerns an account is
    /// audited [`within`](Tx::within) it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audit(
        &mut self,
        entry: Entry<'_>,
        before: Option<&impl Serialize>,
        after: &impl Serialize,
    ) -> Result<()> {
        self.append(&platform(), entry, before, after).await
    }
}

impl<R> Tx<R> {
    /// Adds an event to a chain.
    pub(super) async fn append(
        &mut self,
        chain: &Id<Account>,
        entry: Entry<'_>,
        before: Option<&impl Serialize>,
        after: &impl Serialize,
    ) -> Result<()> {
        let before = match before {
            Some(before) => redacted(before).map_err(unreadable)?,
            None => RawValue::from_string("{}".to_owned()).map_err(unreadable)?,
        };
        let after = redacted(after).map_err(unreadable)?;
        let (seq, previous) = self.next_link(chain).await?;
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
        self.insert_event(chain, &event, &hash).await
    }

    /// Takes the next place in the chain; the head's row stays locked until the commit.
    async fn next_link(&mut self, chain: &Id<Account>) -> Result<(i64, String)> {
        on!(self, |c| sqlx::query_as(
            r#"INSERT INTO "Alchemi_AuditHeadTable" (account_id, seq, hash) VALUES ($1, 1, '')
               ON CONFLICT (account_id) DO UPDATE SET seq = "Alchemi_AuditHeadTable".seq + 1
               RETURNING seq, hash"#
        )
        .bind(chain)
        .fetch_one(c)
        .await)
    }

    async fn insert_event(&mut self, chain: &Id<Account>, event: &AuditEvent, hash: &str) -> Result<()> {
        let roles = serde_json::to_string(&event.actor.roles).unwrap_or_default();
        run!(
            self,
            r#"INSERT INTO "Alchemi_AuditTable" (account_id, seq, id, at, actor_subject, actor_issuer, actor_email,
               actor_roles, auth_provider, action, resource_type, resource_id, domain, before_value, updated_values,
               request_id, source_ip, hash)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)"#,
            chain,
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
        run!(self, r#"UPDATE "Alchemi_AuditHeadTable" SET hash = $2 WHERE account_id = $1"#, chain, hash)?;
        Ok(())
    }
}

impl Tx<Tenant> {
    /// Adds an event to the account's chain. `before` and `after` are what the row
    /// was and is; what is a secret by its name is redacted, other secrets must not
    /// be in them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audit(
        &mut self,
        entry: Entry<'_>,
        before: Option<&impl Serialize>,
        after: &impl Serialize,
    ) -> Result<()> {
        let account = self.account.clone();
        self.append(&account, entry, before, after).await?;
        self.audited = self.audited.saturating_add(1);
        Ok(())
    }

    /// Events that match, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn events(&mut self, filter: &AuditFilter, slice: &Slice) -> Result<Page<Recorded>> {
        let account = self.account.clone();
        let (at, place) = slice.before();
        // Several events share a moment; the chain knows which came first.
        let seq = place.parse::<i64>().unwrap_or(0);
        let rows: Vec<AuditRow> = on!(self, |c| {
            let mut q = sqlx::QueryBuilder::new(r#"SELECT * FROM "Alchemi_AuditTable" WHERE account_id = "#);
            q.push_bind(&account).push(" AND (at, seq) < (").push_bind(at).push(", ").push_bind(seq).push(")");
            if let Some(label) = filter.label {
                q.push(" AND domain = ").push_bind(label.as_str());
            }
            if let Some(action) = filter.action {
                q.push(" AND action = ").push_bind(action.as_str());
            }
            if let Some(actor) = &filter.actor {
                q.push(" AND (actor_subject = ").push_bind(actor).push(" OR actor_email = ").push_bind(actor).push(")");
            }
            if let Some(resource) = &filter.resource {
                q.push(" AND (resource_id = ").push_bind(resource);
                q.push(" OR resource_type = ").push_bind(resource).push(")");
            }
            if let Some(from) = filter.from {
                q.push(" AND at >= ").push_bind(from);
            }
            if let Some(to) = filter.to {
                q.push(" AND at < ").push_bind(to);
            }
            q.push(" ORDER BY at DESC, seq DESC LIMIT ").push_bind(slice.fetch());
            q.push(" OFFSET ").push_bind(slice.skip());
            q.build_query_as().fetch_all(c).await
        })?;
        let placed = rows
            .into_iter()
            .map(|row| Ok((row.seq.to_string(), Recorded::try_from(row)?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(slice.page(placed, |(place, r)| (r.event.at, place)).map(|(_, recorded)| recorded))
    }

    /// A run of the chain in its own order, from behind `after`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn chain(&mut self, after: i64, limit: u32) -> Result<Vec<Recorded>> {
        self.chain_rows(after, limit).await?.into_iter().map(Recorded::try_from).collect()
    }

    async fn chain_rows(&mut self, after: i64, limit: u32) -> Result<Vec<AuditRow>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(
            r#"SELECT * FROM "Alchemi_AuditTable" WHERE account_id = $1 AND seq > $2 ORDER BY seq LIMIT $3"#
        )
        .bind(&account)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(c)
        .await)
    }

    /// The last event's place and hash; none where nothing was ever audited.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn chain_head(&mut self) -> Result<Option<(i64, String)>> {
        let account = self.account.clone();
        on!(self, |c| sqlx::query_as(r#"SELECT seq, hash FROM "Alchemi_AuditHeadTable" WHERE account_id = $1"#)
            .bind(&account)
            .fetch_optional(c)
            .await)
    }

    /// Recomputes the account's chain from its first event to its head.
    ///
    /// # Errors
    /// [`StoreError`]; a chain that does not hold is a verdict, not an error.
    pub async fn verify_audit(&mut self) -> Result<AuditVerdict> {
        let (mut seq, mut hash) = (0_i64, String::new());
        loop {
            let run = self.chain_rows(seq, 500).await?;
            if run.is_empty() {
                break;
            }
            for row in run {
                let at = row.seq;
                if at != seq + 1 {
                    return Ok(AuditVerdict::broken(seq, seq + 1, "an event is missing"));
                }
                match Recorded::try_from(row) {
                    Ok(Recorded { event, hash: kept }) if event.hash(&hash) == kept => (seq, hash) = (at, kept),
                    _ => return Ok(AuditVerdict::broken(seq, at, "the event was changed after it was written")),
                }
            }
        }
        if self.chain_head().await?.unwrap_or_default() != (seq, hash) {
            return Ok(AuditVerdict::broken(seq, seq + 1, "events at the end are missing"));
        }
        Ok(AuditVerdict { valid: true, events: seq, broken_at_seq: None, reason: None })
    }
}

impl Tx<crate::context::Platform> {
    /// The accounts that have a chain, removed ones included.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn audited(&mut self) -> Result<Vec<crate::id::Id<crate::model::accounts::Account>>> {
        on!(self, |c| sqlx::query_scalar(r#"SELECT account_id FROM "Alchemi_AuditHeadTable" ORDER BY account_id"#)
            .fetch_all(c)
            .await)
    }
}
