//! The audit: who changed what, chained by hash.

use aws_lc_rs::digest;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::clock::Timestamp;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A row was made.
    Create,
    /// A row was changed.
    Update,
    /// A row was made or changed.
    Upsert,
    /// A row was removed.
    Delete,
}

impl Action {
    /// The name in the audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Upsert => "upsert",
            Self::Delete => "delete",
        }
    }
}

/// Which part of the product an event belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// Accounts, admins, sign-on, revocations.
    Iam,
    /// Money.
    Billing,
    /// The console domain.
    Console,
    /// The copilot domain.
    Copilot,
}

impl Label {
    /// The name in the audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Iam => "iam",
            Self::Billing => "billing",
            Self::Console => "console",
            Self::Copilot => "copilot",
        }
    }
}

impl From<crate::context::Domain> for Label {
    fn from(domain: crate::context::Domain) -> Self {
        match domain {
            crate::context::Domain::Console => Self::Console,
            crate::context::Domain::Copilot => Self::Copilot,
        }
    }
}

/// Who acted, as the audit keeps it.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct AuditActor {
    /// The token's subject.
    pub subject: String,
    /// The token's issuer.
    pub issuer: String,
    /// The verified e-mail address, if the token showed one.
    pub email: Option<String>,
    /// The roles that counted.
    pub roles: Vec<String>,
    /// `zitadel`, `master_key` or `system`.
    pub auth_provider: String,
}

/// One event. The fields up to `source_ip`, in this order and as JSON without
/// white space, are what the hash is taken over.
#[derive(Debug, Clone, Serialize)]
pub struct AuditEvent {
    /// Its id.
    pub id: String,
    /// Its place in the account's chain, from 1.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: AuditActor,
    /// What was done.
    pub action: String,
    /// To what kind of row.
    pub resource_type: String,
    /// To which row.
    pub resource_id: String,
    /// `console`, `copilot`, `iam` or `billing`.
    pub domain: String,
    /// The row before, or `{}`.
    pub before_value: Box<RawValue>,
    /// The row after, or what was changed.
    pub updated_values: Box<RawValue>,
    /// The request that caused it.
    pub request_id: Option<String>,
    /// Where the request came from.
    pub source_ip: Option<String>,
}

impl AuditEvent {
    /// `SHA-256(previous hash ‖ canonical JSON)` in hex; the first event's
    /// previous hash is empty.
    pub fn hash(&self, previous: &str) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(previous.as_bytes());
        context.update(&serde_json::to_vec(self).unwrap_or_default());
        crate::id::hex(context.finish().as_ref())
    }
}
