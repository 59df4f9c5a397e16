//! Sign-on settings of an account, with sealed client secrets.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::accounts::Account;
use super::connections::check_settings;
use crate::clock::Timestamp;
use crate::id::Id;
use crate::outbound::OutboundRules;
use crate::problem::{FieldError, Problem};
use crate::secret::{MASK, Place, Sealed, SecretObject, names_a_secret};

/// How people of an account sign on.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct SsoConfig {
    /// Its id; `null` while there are no settings.
    pub id: Option<Id<SsoConfig>>,
    /// The account.
    pub account_id: Id<Account>,
    /// The provider, such as `google`, `microsoft`, `okta` or `generic`.
    #[schema(example = "google")]
    pub sso_provider: Option<String>,
    /// The provider's settings; secrets are shown as eight bullets.
    #[schema(value_type = Object, example = json!({"google_client_id": "9241", "google_client_secret": "••••••••"}))]
    pub sso_settings: SsoSettings,
    /// Whether they are in use.
    pub enabled: bool,
    /// When they were made.
    pub created_at: Option<Timestamp>,
    /// When they were last changed.
    pub updated_at: Option<Timestamp>,
    /// Counts changes; the `ETag`.
    #[serde(skip)]
    pub version: i64,
    /// The secrets, sealed; none when there are none.
    #[serde(skip)]
    pub sealed: Option<Sealed>,
}

/// Settings that are shown, and the names of those that are not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SsoSettings {
    /// What is shown.
    pub shown: Map<String, Value>,
    /// What is not.
    pub secret_keys: Vec<String>,
}

impl Serialize for SsoSettings {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let masked = Value::from(MASK);
        let mut all: BTreeMap<&str, &Value> = self.shown.iter().map(|(name, value)| (name.as_str(), value)).collect();
        all.extend(self.secret_keys.iter().map(|name| (name.as_str(), &masked)));
        serializer.collect_map(all)
    }
}

impl SsoConfig {
    /// The table.
    pub const TABLE: &'static str = "Alchemi_AccountSsoTable";

    /// What an account has that was never given settings.
    pub fn none(account_id: Id<Account>) -> Self {
        Self {
            id: None,
            account_id,
            sso_provider: None,
            sso_settings: SsoSettings::default(),
            enabled: false,
            created_at: None,
            updated_at: None,
            version: 0,
            sealed: None,
        }
    }

    /// Where the secrets stand.
    pub fn place(&self) -> Place<'_> {
        let row = self.id.as_ref().map_or("", Id::as_str);
        Place { account: self.account_id.as_str(), table: Self::TABLE, row, column: "secret_json" }
    }
}

/// What a caller sends, split into what is secret and what is not.
#[derive(Debug)]
pub struct SsoChange {
    /// What will be shown.
    pub shown: Map<String, Value>,
    /// What will not.
    pub secret: SecretObject,
}

impl SsoChange {
    /// Splits what a caller sends into what is secret by its name and what is not.
    ///
    /// # Errors
    /// 422 below `/sso_settings` for an object, or a URL that may not be.
    pub fn new(sent: SecretObject, rules: &OutboundRules) -> Result<Self, Problem> {
        let (mut shown, mut secret, mut errors) = (Map::new(), Map::new(), Vec::new());
        for name in sent.names() {
            let Some(value) = sent.expose(&name).cloned() else { continue };
            let nested = |value: &Value| matches!(value, Value::Object(_) | Value::Array(_));
            let deep = match &value {
                Value::Array(items) => names_a_secret(&name) || items.iter().any(nested),
                Value::Object(_) => !names_a_secret(&name),
                _ => false,
            };
            if deep {
                let pointer = format!("/sso_settings/{}", name.replace('~', "~0").replace('/', "~1"));
                let detail = "must be a text, a number, true, false, null or a list of such".to_owned();
                errors.push(FieldError { pointer, detail });
            } else if names_a_secret(&name) {
                secret.insert(name, value);
            } else {
                shown.insert(name, value);
            }
        }
        check_settings(&shown, "/sso_settings", rules, &mut errors);
        if errors.is_empty() {
            Ok(Self { shown, secret: SecretObject::new(secret) })
        } else {
            Err(Problem::invalid_fields(errors))
        }
    }

    /// Settings after the change: members merge, a blank text keeps, `null` removes.
    pub fn over(shown: Map<String, Value>, change: Map<String, Value>) -> Map<String, Value> {
        let mut after = shown;
        for (name, value) in change {
            match value {
                Value::Null => _ = after.remove(&name),
                Value::String(text) if text.trim().is_empty() => {}
                value => _ = after.insert(name, value),
            }
        }
        after
    }
}
