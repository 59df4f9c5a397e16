//! The audit: who changed what, chained by hash.

use std::fmt;

use aws_lc_rs::digest;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::domain::Domain;
use crate::clock::Timestamp;
use crate::secret::names_a_secret;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
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

impl From<Domain> for Label {
    fn from(domain: Domain) -> Self {
        match domain {
            Domain::Console => Self::Console,
            Domain::Copilot => Self::Copilot,
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
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct AuditEvent {
    /// Its id.
    #[schema(example = "019a3c5e-7d10-7c3a-9b1e-2f6d8a4c0b11")]
    pub id: String,
    /// Its place in the account's chain, from 1.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: AuditActor,
    /// What was done.
    #[schema(example = "update")]
    pub action: String,
    /// To what kind of row.
    #[schema(example = "Alchemi_OrgTable")]
    pub resource_type: String,
    /// To which row.
    pub resource_id: String,
    /// `console`, `copilot`, `iam` or `billing`.
    pub domain: String,
    /// The row before, or `{}`.
    #[schema(value_type = Object)]
    pub before_value: Box<RawValue>,
    /// The row after, or what was changed.
    #[schema(value_type = Object)]
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

/// An event with its hash. As JSON, `hash` comes last: what stands before it is
/// what the hash is taken over.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Recorded {
    /// The event.
    #[serde(flatten)]
    pub event: AuditEvent,
    /// Its hash.
    #[schema(example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    pub hash: String,
}

/// The JSON of `value` as the audit keeps it: without white space, and with
/// `"[redacted]"` where the name of a member says that its text is a secret.
///
/// # Errors
/// When `value` has no JSON form.
pub fn redacted(value: &impl Serialize) -> Result<Box<RawValue>, serde_json::Error> {
    let json = serde_json::value::to_raw_value(value)?;
    serde_json::value::to_raw_value(&Redacted { json: &json, depth: 0 })
}

const REDACTED: &str = "[redacted]";
/// As deep as serde_json's own readers go.
const MAX_DEPTH: usize = 128;

/// Numbers pass through as text, so that no digit is lost.
struct Redacted<'a> {
    json: &'a RawValue,
    depth: usize,
}

impl Redacted<'_> {
    fn inner<'a>(&self, json: &'a RawValue) -> Redacted<'a> {
        Redacted { json, depth: self.depth + 1 }
    }
}

impl Serialize for Redacted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.json.get();
        match text.as_bytes().first() {
            Some(b'{' | b'[') if self.depth >= MAX_DEPTH => serializer.serialize_str(REDACTED),
            Some(b'{') => {
                let Members(members) = serde_json::from_str(text).map_err(serde::ser::Error::custom)?;
                serializer.collect_map(members.into_iter().map(|(name, json)| {
                    let hidden = names_a_secret(&name) && json.get().starts_with(['"', '{', '[']);
                    (name, if hidden { Shown::Hidden } else { Shown::Json(self.inner(json)) })
                }))
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text).map_err(serde::ser::Error::custom)?;
                serializer.collect_seq(items.into_iter().map(|json| self.inner(json)))
            }
            _ => self.json.serialize(serializer),
        }
    }
}

enum Shown<'a> {
    Hidden,
    Json(Redacted<'a>),
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Hidden => serializer.serialize_str(REDACTED),
            Self::Json(json) => json.serialize(serializer),
        }
    }
}

/// An object's members in their order.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(json: &str) -> String {
        redacted(&RawValue::from_string(json.to_owned()).unwrap()).unwrap().get().to_owned()
    }

    #[test]
    fn secrets_are_redacted_by_name_and_nothing_else_changes() {
        assert_eq!(
            shown(
                r#" { "smtp" : { "host":"mx", "password": "hunter2" }, "apiKey": "k", "client-secret": {"v": 1},
                "list": [ {"access_token":"t"}, 9000000000.000000001 ], "max_token": 5, "secret": null,
                "credential_visibility": "use_only", "text": "a b\n" } "#
            ),
            r#"{"smtp":{"host":"mx","password":"[redacted]"},"apiKey":"[redacted]","client-secret":"[redacted]","list":[{"access_token":"[redacted]"},9000000000.000000001],"max_token":5,"secret":null,"credential_visibility":"use_only","text":"a b\n"}"#
        );
    }

    #[test]
    fn depth_is_bounded() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(shown(&deep), format!("{}\"[redacted]\"{}", "[".repeat(128), "]".repeat(128)));
    }
}
